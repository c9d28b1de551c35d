"""Primitives of networks: convolutions, 2 x 2 pooling, and a fused pooling with bias and leaky ReLU.

Images are (n, height, width, channels), filters (k, k, in, out) with ``k`` odd.
"""

from __future__ import annotations

from typing import Any

from ..kernels import network as kernels
from .ops import sum_to
from .tape import Var, const, namespace, precision, primitive, record

__all__ = [
    "bias_relu",
    "by_sign",
    "conv2d",
    "conv2d_weights",
    "flip",
    "maxpool2",
    "pick2",
    "pool_bias_relu",
    "unpool2",
]


def _reals(*values: Any) -> list[Var]:
    out = [v if isinstance(v, Var) else const(v) for v in values]
    for v in out:
        if v.dtype.kind == "c" or precision(v) != precision(out[0]):
            raise TypeError(f"networks take real values of one precision, got {', '.join(map(repr, out))}")
    return out


@primitive
def conv2d(x: Any, w: Any) -> Var:
    """Correlation with the filters, zeros beyond the border: what networks call convolution."""
    x, w = _reals(x, w)
    if x.ndim != 4 or w.ndim != 4 or w.shape[0] != w.shape[1] or w.shape[0] % 2 == 0:
        raise ValueError(
            f"conv2d takes images (n, height, width, channels) and odd filters (k, k, in, out): {x!r}, {w!r}"
        )
    if x.shape[3] != w.shape[2]:
        raise ValueError(f"filters for {w.shape[2]} channels do not fit images of {x.shape[3]}")
    return record(
        kernels.conv(x.data, w.data),
        (x, lambda g: conv2d(g, flip(w))),
        (w, lambda g: conv2d_weights(x, g, w.shape[0])),
    )


@primitive
def conv2d_weights(x: Any, g: Any, kernel: int) -> Var:
    """The transpose of `conv2d` in the filters."""
    x, g = _reals(x, g)
    return record(
        kernels.conv_weights(x.data, g.data, kernel),
        (x, lambda q: conv2d(g, flip(q))),
        (g, lambda q: conv2d(x, q)),
    )


@primitive
def flip(w: Any) -> Var:
    """Filters turned by 180 degrees, with input and output exchanged."""
    (w,) = _reals(w)
    out = namespace(w.data).ascontiguousarray(w.data[::-1, ::-1].transpose(0, 1, 3, 2))
    return record(out, (w, flip))


@primitive
def pool_bias_relu(x: Any, bias: Any, slope: float = 0.0) -> Var:
    """``leaky_relu(maxpool2(x) + bias, slope)`` in one loop: bias and maximum commute, and a quarter is less to do."""
    x, bias = _reals(x, bias)
    if x.ndim != 4 or bias.shape != x.shape[3:]:
        raise ValueError(f"a bias per channel is needed, got {bias!r} for {x!r}")
    out, code = kernels.pool(x.data, bias.data, slope)
    shape = x.shape  # alone in the rule: the largest arrays of a network go at once
    # the sum before the activation is on the tape by its shape alone: its cotangent, which serves both, is made once
    before = record(out, (x, lambda g: unpool2(g, code, shape)), (bias, lambda g: sum_to(g, bias.shape)))
    return record(out, (before, lambda g: by_sign(g, code, slope)))


@primitive
def bias_relu(x: Any, bias: Any, slope: float = 0.0) -> Var:
    """``leaky_relu(x + bias, slope)``, a bias per last index."""
    x, bias = _reals(x, bias)
    if bias.shape != x.shape[-1:]:
        raise ValueError(f"a bias per channel is needed, got {bias!r} for {x!r}")
    out, code = kernels.bias_relu(x.data, bias.data, slope)
    before = record(out, (x, lambda g: g), (bias, lambda g: sum_to(g, bias.shape)))  # as above
    return record(out, (before, lambda g: by_sign(g, code, slope)))


@primitive
def by_sign(g: Any, code: Any, slope: float) -> Var:
    """``g`` times the slope where the byte of an activation says so."""
    (g,) = _reals(g)
    return record(kernels.by_sign(g.data, code, slope), (g, lambda q: by_sign(q, code, slope)))


def maxpool2(x: Any) -> Var:
    """Maximum of each 2 x 2 square; an odd last row or column is left out. Of equal values the first one counts."""
    (x,) = _reals(x)
    return pool_bias_relu(x, namespace(x.data).zeros(x.shape[3:], dtype=x.dtype), 1.0)


@primitive
def unpool2(g: Any, code: Any, shape: tuple[int, ...]) -> Var:
    """Values back to the places that pooling took them from."""
    (g,) = _reals(g)
    return record(kernels.unpool(g.data, code, shape), (g, lambda q: pick2(q, code)))


@primitive
def pick2(q: Any, code: Any) -> Var:
    """Values at the places that pooling took its from: the transpose of `unpool2`."""
    (q,) = _reals(q)
    shape = q.shape
    return record(kernels.pick(q.data, code), (q, lambda g: unpool2(g, code, shape)))
