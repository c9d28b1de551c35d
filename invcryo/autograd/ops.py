"""Elementwise operations, shapes, sums, products and Fourier transforms on the tape.

Every function that calls `record` is a `primitive`, with the rules of its inputs beside it. Single and double
precision do not mix, and nothing is cast in silence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import backend
from ..kernels import network
from .tape import Var, const, namespace, precision, primitive, record

__all__ = [
    "absolute",
    "add",
    "arccos",
    "broadcast_to",
    "cast",
    "clip",
    "concatenate",
    "conj",
    "cos",
    "cross",
    "div",
    "exp",
    "fftshift",
    "getitem",
    "ifftshift",
    "imag",
    "irfftn",
    "leaky_relu",
    "log",
    "matmul",
    "mean",
    "mul",
    "neg",
    "power",
    "real",
    "reshape",
    "rfftn",
    "scale",
    "scatter_add",
    "setitem",
    "sigmoid",
    "sin",
    "softplus",
    "split",
    "sqrt",
    "squared_norm",
    "stack",
    "sub",
    "sum",
    "sum_to",
    "take",
    "tanh",
    "to_complex",
    "transpose",
]

# -- helpers ----------------------------------------------------------------------------------------------------


def _is_complex(x: Any) -> bool:
    return x.dtype.kind == "c"


def _var(x: Any) -> Var:
    return x if isinstance(x, Var) else const(x)


def _scalar(x: Any) -> Any:
    """A Python number where ``x`` is one, or NumPy's: these take the type of what they meet. Else None."""
    if isinstance(x, (int, float, complex)):
        return x
    return x.item() if isinstance(x, np.generic) else None


def _pair(x: Any, y: Any) -> tuple[Var, Var]:
    """Two operands of one precision; a number becomes an array of the other's type."""
    sx, sy = _scalar(x), _scalar(y)
    if sx is not None:
        y = _var(y)
        return const(_like(sx, y)), y
    x = _var(x)
    if sy is not None:
        return x, const(_like(sy, x))
    y = _var(y)
    if precision(x) != precision(y):
        raise TypeError(
            f"{x!r} and {y!r} differ in precision: cast one of them with astype, or `cast` on the tape"
        )
    return x, y


def _like(value: Any, x: Var) -> Any:
    dtype = np.result_type(x.dtype, np.complex64) if isinstance(value, complex) else x.dtype
    return namespace(x.data).asarray(value, dtype=dtype)


def _fit(g: Var, x: Var) -> Var:
    """A cotangent in the shape and type of an input that was broadcast, or real among complex ones."""
    if _is_complex(g) and not _is_complex(x):
        g = real(g)
    return sum_to(g, x.shape)


def _conj(x: Var) -> Var:
    return conj(x) if _is_complex(x) else x


def _axes(axis: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    axes = range(ndim) if axis is None else [axis] if isinstance(axis, (int, np.integer)) else axis
    return tuple(sorted(int(a) % ndim for a in axes))


# -- shape, broadcasting, sums ------------------------------------------------------------------------------------


@primitive
def sum_to(x: Any, shape: Sequence[int]) -> Var:
    """The transpose of broadcasting: sums the axes that ``shape`` has not, or has as 1."""
    x, shape = _var(x), tuple(shape)
    if x.shape == shape:
        return x
    extra = x.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(
        extra + k for k, n in enumerate(shape) if n == 1 and x.shape[extra + k] != 1
    )
    out = x.data.sum(axis=axes, keepdims=True).reshape(shape)
    before = x.shape
    return record(out, (x, lambda g: broadcast_to(g, before)))


@primitive
def broadcast_to(x: Any, shape: Sequence[int]) -> Var:
    x, shape = _var(x), tuple(shape)
    if x.shape == shape:
        return x
    out = namespace(x.data).broadcast_to(x.data, shape)
    return record(out, (x, lambda g: sum_to(g, x.shape)))


@primitive
def reshape(x: Any, shape: int | Sequence[int]) -> Var:
    x = _var(x)
    return record(x.data.reshape(shape), (x, lambda g: reshape(g, x.shape)))


@primitive
def transpose(x: Any, axes: Sequence[int] | None = None) -> Var:
    x = _var(x)
    order = tuple(range(x.ndim))[::-1] if axes is None else tuple(a % x.ndim for a in axes)
    back = tuple(int(k) for k in np.argsort(order))
    return record(x.data.transpose(order), (x, lambda g: transpose(g, back)))


@primitive
def sum(x: Any, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Var:
    x = _var(x)
    axes = _axes(axis, x.ndim)
    kept = tuple(1 if k in axes else n for k, n in enumerate(x.shape))
    out = x.data.sum(axis=axes, keepdims=keepdims)
    before = x.shape
    return record(out, (x, lambda g: broadcast_to(reshape(g, kept), before)))


def mean(x: Any, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Var:
    x = _var(x)
    return sum(x, axis, keepdims) / math.prod(x.shape[k] for k in _axes(axis, x.ndim))


def squared_norm(x: Any, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Var:
    """``sum |x|^2``, real."""
    x = _var(x)
    square = real(mul(x, conj(x))) if _is_complex(x) else mul(x, x)
    return sum(square, axis, keepdims)


@primitive
def getitem(x: Any, index: Any) -> Var:
    """``x[index]``: slices, integers, None and ellipsis; `take` for arrays of indices."""
    x = _var(x)
    _check_index(index)
    return record(x.data[index], (x, lambda g: setitem(g, index, x.shape)))


@primitive
def setitem(x: Any, index: Any, shape: Sequence[int]) -> Var:
    """Zeros of ``shape`` with ``x`` at ``index``."""
    x = _var(x)
    _check_index(index)
    out = namespace(x.data).zeros(shape, dtype=x.dtype)
    out[index] = x.data
    return record(out, (x, lambda g: getitem(g, index)))


def _check_index(index: Any) -> None:
    for i in index if isinstance(index, tuple) else (index,):
        if not (i is None or i is Ellipsis or isinstance(i, (int, np.integer, slice))):
            raise TypeError("the tape indexes with integers and slices: use take for an array of indices")


@primitive
def take(x: Any, index: Any) -> Var:
    """Entries of the first axis, ``x[index]`` for an array of integers; one may come more than once."""
    x = _var(x)
    return record(x.data[index], (x, lambda g: scatter_add(g, index, x.shape[0])))


@primitive
def scatter_add(x: Any, index: Any, length: int) -> Var:
    """The transpose of `take`: adds ``x[k]`` to row ``index[k]`` of zeros.

    CuPy does it by atomics, in any order: the one operation whose last bits may differ from run to run on a GPU.
    """
    x = _var(x)
    xp = namespace(x.data)
    out = xp.zeros((length, *x.shape[index.ndim :]), dtype=x.dtype)
    if _is_complex(x) and xp is not np:  # CuPy adds real numbers alone
        xp.add.at(out.real, index, x.data.real)
        xp.add.at(out.imag, index, x.data.imag)
    else:
        xp.add.at(out, index, x.data)
    return record(out, (x, lambda g: take(g, index)))


@primitive
def concatenate(xs: Sequence[Any], axis: int = 0) -> Var:
    xs = [_var(x) for x in xs]
    if len({x.dtype for x in xs}) != 1:
        raise TypeError(f"cannot join values of the types {', '.join(str(x.dtype) for x in xs)}")
    axis %= xs[0].ndim
    ends = np.cumsum([0, *(x.shape[axis] for x in xs)]).tolist()
    before = (slice(None),) * axis

    def rule(start: int, stop: int) -> Callable[[Var], Var]:
        return lambda g: getitem(g, (*before, slice(start, stop)))

    out = namespace(xs[0].data).concatenate([x.data for x in xs], axis=axis)
    return record(out, *((x, rule(*ends[k : k + 2])) for k, x in enumerate(xs)))


def stack(xs: Sequence[Any], axis: int = 0) -> Var:
    xs = [_var(x) for x in xs]
    axis %= xs[0].ndim + 1
    return concatenate([reshape(x, (*x.shape[:axis], 1, *x.shape[axis:])) for x in xs], axis)


def split(x: Any, parts: int, axis: int = 0) -> list[Var]:
    """Equal parts along an axis."""
    x = _var(x)
    axis %= x.ndim
    size, rest = divmod(x.shape[axis], parts)
    if rest:
        raise ValueError(f"an axis of {x.shape[axis]} entries does not fall into {parts} equal parts")
    before = (slice(None),) * axis
    return [getitem(x, (*before, slice(k * size, (k + 1) * size))) for k in range(parts)]


# -- arithmetic ---------------------------------------------------------------------------------------------------


@primitive
def add(x: Any, y: Any) -> Var:
    x, y = _pair(x, y)
    return record(x.data + y.data, (x, lambda g: _fit(g, x)), (y, lambda g: _fit(g, y)))


@primitive
def sub(x: Any, y: Any) -> Var:
    x, y = _pair(x, y)
    return record(x.data - y.data, (x, lambda g: _fit(g, x)), (y, lambda g: _fit(neg(g), y)))


@primitive
def mul(x: Any, y: Any) -> Var:
    x, y = _pair(x, y)
    out = x.data * y.data
    return record(out, (x, lambda g: _fit(mul(g, _conj(y)), x)), (y, lambda g: _fit(mul(g, _conj(x)), y)))


@primitive
def div(x: Any, y: Any) -> Var:
    x, y = _pair(x, y)
    return record(
        x.data / y.data,
        (x, lambda g: _fit(div(g, _conj(y)), x)),
        (y, lambda g: _fit(neg(mul(g, _conj(div(x, mul(y, y))))), y)),
    )


@primitive
def neg(x: Any) -> Var:
    x = _var(x)
    return record(-x.data, (x, neg))


@primitive
def power(x: Any, p: float) -> Var:
    """``x ** p`` for a number ``p``."""
    x, p = _var(x), _scalar(p)
    if p is None:
        raise TypeError("the exponent must be a number")
    return record(x.data**p, (x, lambda g: mul(g, _conj(mul(power(x, p - 1), p)))))


@primitive
def exp(x: Any) -> Var:
    x = _var(x)
    out = namespace(x.data).exp(x.data)
    return record(out, (x, lambda g, y: mul(g, _conj(y))), keep=True)


@primitive
def log(x: Any) -> Var:
    x = _var(x)
    return record(namespace(x.data).log(x.data), (x, lambda g: div(g, _conj(x))))


@primitive
def sqrt(x: Any) -> Var:
    x = _var(x)
    out = namespace(x.data).sqrt(x.data)
    return record(out, (x, lambda g, y: div(mul(g, 0.5), _conj(y))), keep=True)


@primitive
def sin(x: Any) -> Var:
    x = _var(x)
    return record(namespace(x.data).sin(x.data), (x, lambda g: mul(g, _conj(cos(x)))))


@primitive
def cos(x: Any) -> Var:
    x = _var(x)
    return record(namespace(x.data).cos(x.data), (x, lambda g: neg(mul(g, _conj(sin(x))))))


@primitive
def tanh(x: Any) -> Var:
    x = _var(x)
    out = namespace(x.data).tanh(x.data)
    return record(out, (x, lambda g, y: mul(g, _conj(sub(1.0, mul(y, y))))), keep=True)


@primitive
def sigmoid(x: Any) -> Var:
    """``1 / (1 + exp(-x))`` of real values."""
    x = _real(x, "sigmoid")
    out = 0.5 * (1.0 + namespace(x.data).tanh(0.5 * x.data))  # no overflow
    return record(out, (x, lambda g, y: mul(g, mul(y, sub(1.0, y)))), keep=True)


@primitive
def softplus(x: Any) -> Var:
    """``log(1 + exp(x))`` of real values."""
    x = _real(x, "softplus")
    xp = namespace(x.data)
    out = xp.maximum(x.data, 0) + xp.log1p(xp.exp(-xp.abs(x.data)))
    return record(out, (x, lambda g: mul(g, sigmoid(x))))


@primitive
def arccos(x: Any) -> Var:
    """Of real values inside (-1, 1); `clip` those that may come from rounding, where the derivative is infinite."""
    x = _real(x, "arccos")
    out = namespace(x.data).arccos(x.data)
    return record(out, (x, lambda g: neg(div(g, sqrt(sub(1.0, mul(x, x)))))))


def _real(x: Any, what: str) -> Var:
    x = _var(x)
    if _is_complex(x):
        raise TypeError(f"{what} is of real values, got {x!r}")
    return x


# -- masks: their second derivative is absent, not zero ---------------------------------------------------------------


@primitive
def scale(x: Any, factors: Any) -> Var:
    """``x * factors`` for a constant array of factors, of the shape of ``x``."""
    x = _var(x)
    if factors.shape != x.shape or (_is_complex(factors) and not _is_complex(x)):
        raise ValueError(f"factors {factors.shape} {factors.dtype} do not fit {x!r}")
    back = factors.conj() if _is_complex(factors) else factors
    return record(x.data * factors, (x, lambda g: scale(g, back)))


def leaky_relu(x: Any, slope: float = 0.0) -> Var:
    """``max(x, 0) + slope min(x, 0)``."""
    x = _real(x, "leaky_relu")
    return scale(x, _choose(x, x.data >= 0, 1.0, slope))


def absolute(x: Any) -> Var:
    """``|x|`` of real values, derivative 1 at 0. Of complex ones ``sqrt(|x|^2)``, which has none there."""
    x = _var(x)
    if _is_complex(x):
        return sqrt(real(mul(x, conj(x))))
    return scale(x, _choose(x, x.data >= 0, 1.0, -1.0))


def clip(x: Any, low: float, high: float) -> Var:
    """Values between ``low`` and ``high``; derivative 0 beyond."""
    x = _real(x, "clip")
    inside = _choose(x, (x.data >= low) & (x.data <= high), 1.0, 0.0)
    bound = _choose(x, x.data > high, high, 0.0) + _choose(x, x.data < low, low, 0.0)
    return add(scale(x, inside), const(bound))


def _choose(x: Var, where: Any, yes: float, no: float) -> Any:
    xp = namespace(x.data)
    return xp.where(where, xp.asarray(yes, dtype=x.dtype), xp.asarray(no, dtype=x.dtype))


# -- complex numbers ------------------------------------------------------------------------------------------------


@primitive
def conj(x: Any) -> Var:
    x = _var(x)
    return record(x.data.conj(), (x, conj)) if _is_complex(x) else x


@primitive
def real(x: Any) -> Var:
    x = _var(x)
    if not _is_complex(x):
        return x
    return record(namespace(x.data).ascontiguousarray(x.data.real).reshape(x.shape), (x, to_complex))


@primitive
def imag(x: Any) -> Var:
    x = _var(x)
    out = namespace(x.data).ascontiguousarray(x.data.imag).reshape(x.shape)
    return record(out, (x, lambda g: mul(to_complex(g), 1j)))


@primitive
def to_complex(x: Any) -> Var:
    """Real values as complex ones of the same precision."""
    x = _var(x)
    if _is_complex(x):
        return x
    return record(x.data.astype(np.result_type(x.dtype, np.complex64)), (x, real))


@primitive
def cast(x: Any, dtype: Any) -> Var:
    """To another precision, real to real or complex to complex."""
    x, dtype = _var(x), np.dtype(dtype)
    if dtype == x.dtype:
        return x
    if dtype.kind != x.dtype.kind or dtype.kind not in "fc":
        raise TypeError(
            f"cast changes the precision alone, not {x.dtype} to {dtype}: see real and to_complex"
        )
    return record(x.data.astype(dtype), (x, lambda g: cast(g, x.dtype)))


# -- products ---------------------------------------------------------------------------------------------------------


@primitive
def matmul(x: Any, y: Any) -> Var:
    """Matrix product over the last two axes, the others broadcast."""
    x, y = _pair(x, y)
    if x.ndim < 2 or y.ndim < 2:
        raise ValueError(f"matmul takes matrices or stacks of them, got {x!r} and {y!r}")
    return record(
        network.product(x.data, y.data),
        (x, lambda g: _fit(matmul(g, _conj(_swap(y))), x)),
        (y, lambda g: _fit(matmul(_conj(_swap(x)), g), y)),
    )


def _swap(x: Var) -> Var:
    return transpose(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


def cross(x: Any, y: Any) -> Var:
    """Vector products along a last axis of three."""
    x, y = _var(x), _var(y)
    a, b = ([v[..., k] for k in range(3)] for v in (x, y))
    return stack([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]], -1)


# -- Fourier transforms -----------------------------------------------------------------------------------------------


@primitive
def fftshift(x: Any, axes: Sequence[int]) -> Var:
    """The origin from index 0 to ``n // 2``."""
    x, axes = _var(x), tuple(axes)
    return record(namespace(x.data).fft.fftshift(x.data, axes=axes), (x, lambda g: ifftshift(g, axes)))


@primitive
def ifftshift(x: Any, axes: Sequence[int]) -> Var:
    """The origin from index ``n // 2`` to 0."""
    x, axes = _var(x), tuple(axes)
    return record(namespace(x.data).fft.ifftshift(x.data, axes=axes), (x, lambda g: fftshift(g, axes)))


@primitive
def rfftn(x: Any, axes: Sequence[int]) -> Var:
    """Fourier transform of real values over some axes, the last of them halved.

    The stored coefficients are independent: in a norm of the whole spectrum those between the ends of the last axis
    count twice.
    """
    x, axes = _real(x, "rfftn"), tuple(a % _var(x).ndim for a in axes)
    sizes = tuple(x.shape[a] for a in axes)
    out = backend.fft(x.data).rfftn(x.data, axes=axes)
    total = math.prod(sizes)

    def rule(g: Var) -> Var:
        return irfftn(scale(g, _mirror(g, axes[-1], sizes[-1], 1.0 * total, 0.5 * total)), sizes, axes)

    return record(out, (x, rule))


@primitive
def irfftn(x: Any, sizes: Sequence[int], axes: Sequence[int]) -> Var:
    """The inverse of `rfftn`, of the real part of what the first and the Nyquist plane stand for.

    These planes of a half spectrum need not be Hermitian here; NumPy leaves out their odd part, and so do we on a
    GPU, where the library's own transform may not.
    """
    x, sizes = _var(x), tuple(int(n) for n in sizes)
    axes = tuple(a % x.ndim for a in axes)
    if not _is_complex(x):
        raise TypeError(f"irfftn is of a complex spectrum, got {x!r}")
    total = math.prod(sizes)

    def rule(g: Var) -> Var:
        y = rfftn(g, axes)
        return scale(y, _mirror(y, axes[-1], sizes[-1], 1 / total, 2 / total))

    return record(_irfftn(x.data, sizes, axes), (x, rule))


def _irfftn(spectrum: Any, sizes: tuple[int, ...], axes: tuple[int, ...]) -> Any:
    lib = backend.fft(spectrum)
    if namespace(spectrum) is np:
        return lib.irfftn(spectrum, s=sizes, axes=axes)
    return _irfftn_by_planes(lib, spectrum, sizes, axes)


def _irfftn_by_planes(lib: Any, spectrum: Any, sizes: tuple[int, ...], axes: tuple[int, ...]) -> Any:
    """With the last transform given real values where it may rely on them."""
    if len(axes) > 1:
        spectrum = lib.ifftn(spectrum, s=sizes[:-1], axes=axes[:-1])
    else:
        spectrum = spectrum.copy()
    before = (slice(None),) * axes[-1]
    for plane in {0, sizes[-1] // 2} if sizes[-1] % 2 == 0 else {0}:
        spectrum.imag[(*before, plane)] = 0
    return lib.irfft(spectrum, n=sizes[-1], axis=axes[-1])


def _mirror(x: Var, axis: int, size: int, ends: float, between: float) -> Any:
    """Weights of a half spectrum: ``ends`` on the planes that are their own mirror image, ``between`` elsewhere."""
    xp = namespace(x.data)
    line = np.full(size // 2 + 1, between, x.data.real.dtype)
    line[0] = ends
    if size % 2 == 0:
        line[-1] = ends
    shape = [1] * x.ndim
    shape[axis] = line.size
    return xp.broadcast_to(xp.asarray(line).reshape(shape), x.shape)
