"""Loops of the learned methods, one function each: convolutions, pooling, trilinear slices, Adam.

As in the other kernels, the type of an array picks the compiled twin, Numba's or CUDA's, and formulas stay with their
callers. Arrays that are not contiguous are copied, those changed in place must be. Training alternates these loops with
products by BLAS, whose own threads get into their way: see `one_blas_thread`.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..backend import array_module, threads

__all__ = [
    "adam",
    "adam_rows",
    "bias_relu",
    "by_sign",
    "central_slice",
    "conv",
    "conv_weights",
    "mark",
    "one_blas_thread",
    "pick",
    "pool",
    "product",
    "slice_adjoint",
    "slice_rotations",
    "sparse_factors",
    "sparse_project",
    "sparse_rows",
    "unpool",
]

#: Rows, at most, and numbers of a matrix, at least, with which our own products are faster than those of BLAS, on one
#: thread too: 0.4 to 0.98 of its time with 8 rows and 2^22 numbers; matrices that fit a cache are better left to it.
FEW, LARGE = 8, 1 << 20

_limited: contextvars.ContextVar[bool] = contextvars.ContextVar("invcryo_blas", default=False)


@functools.cache
def _blas() -> Any:
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        raise ImportError(
            "the learned methods hold BLAS at one thread per core by threadpoolctl, which is not installed:"
            " pip install 'invcryo[learned]'"
        ) from None
    return ThreadpoolController()


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Inside, BLAS works on the calling thread alone, as it should between loops that are parallel themselves.

    Two pools of threads that wait on the same cores were measured 25 times slower than one. Entering costs some
    microseconds, and next to nothing inside another such block: a training loop enters once.
    """
    if _limited.get():
        yield
        return
    token = _limited.set(True)
    try:
        with _blas().limit(limits=1, user_api="blas"):
            yield
    finally:
        _limited.reset(token)


def _twins(name: str, *arrays: Any, work: int) -> Any:
    """The compiled twins: ``cpu_<name>`` for NumPy arrays, with threads set for the size of the work, else ``cuda``."""
    places = {array_module(a) is np for a in arrays}
    if len(places) == 2:
        raise TypeError("some arrays are on the host and some on a GPU: move them with cupy.asarray")
    if False in places:
        return importlib.import_module("invcryo.kernels.cuda")
    importlib.import_module("invcryo.kernels.cpu").set_threads(threads(work))
    return importlib.import_module(f"invcryo.kernels.cpu_{name}")


def _plain(x: Any) -> Any:
    """Contiguous, to be read only. A read-only array would be another type to the compiler, and compile anew."""
    xp = array_module(x)
    x = xp.ascontiguousarray(x)
    if xp is np and not x.flags.writeable:
        try:
            x = x.view()
            x.flags.writeable = True
        except ValueError:  # of a file or of somebody else
            x = x.copy()
    return x


def _empty(like: Any, shape: tuple[int, ...], dtype: Any = None) -> Any:
    return array_module(like).empty(shape, dtype=like.dtype if dtype is None else dtype)


# -- convolutions and pooling: images (n, height, width, channels), filters (k, k, in, out) ---------------------------


def conv(x: Any, w: Any) -> Any:
    """``out[b, y, x, f] = sum w[i, j, c, f] x[b, y + i - k // 2, x + j - k // 2, c]``, zeros beyond the border."""
    out = _empty(x, (*x.shape[:3], w.shape[3]))
    work = out.size * w[..., 0].size // 8
    _twins("conv", x, w, work=work).conv(_plain(x), _plain(w), threads(work), out)
    return out


def conv_weights(x: Any, g: Any, kernel: int) -> Any:
    """``out[i, j, c, f] = sum g[b, y, x, f] x[b, y + i - k // 2, x + j - k // 2, c]``: the transpose of `conv` in w."""
    if g.shape[3] < x.shape[3]:  # the same sum, seen from the other side; loops run over filters
        turned = conv_weights(g, x, kernel)[::-1, ::-1]
        return array_module(x).ascontiguousarray(turned.transpose(0, 1, 3, 2))
    out = _empty(x, (kernel, kernel, x.shape[3], g.shape[3]))
    if not g.size:
        out[...] = 0
        return out
    work = g.size * out[..., 0].size // 8
    _twins("conv", x, g, work=work).conv_weights(_plain(x), _plain(g), threads(work), out)
    return out


def pool(x: Any, bias: Any, slope: float) -> tuple[Any, Any]:
    """Maximum of each 2 x 2 square plus a bias per channel, times ``slope`` where negative.

    An odd last row or column is left out. Returns the values and a byte each: which of the four it was, the first of
    equal ones, plus 4 where negative.
    """
    b, height, width, channels = x.shape
    out = _empty(x, (b, height // 2, width // 2, channels))
    code = _empty(x, out.shape, "u1")
    loops = _twins("conv", x, bias, work=x.size // 2)
    loops.pool(_plain(x), _plain(bias), x.dtype.type(slope), out, code)
    return out, code


def bias_relu(x: Any, bias: Any, slope: float) -> tuple[Any, Any]:
    """``x + bias``, times ``slope`` where negative; and a byte each, 4 where negative."""
    out, code = _empty(x, x.shape), _empty(x, x.shape, "u1")
    x2, out2, code2 = (a.reshape(-1, x.shape[-1]) for a in (_plain(x), out, code))
    loops = _twins("conv", x, bias, work=x.size // 4)
    loops.bias_relu(x2, _plain(bias), x.dtype.type(slope), out2, code2)
    return out, code


def by_sign(g: Any, code: Any, slope: float) -> Any:
    """``g``, times ``slope`` where the byte says negative."""
    out = _empty(g, g.shape)
    loops = _twins("conv", g, code, work=g.size // 4)
    loops.by_sign(_plain(g).reshape(-1), _plain(code).reshape(-1), g.dtype.type(slope), out.reshape(-1))
    return out


def unpool(g: Any, code: Any, shape: tuple[int, ...]) -> Any:
    """Each value to where the byte says; zeros elsewhere."""
    out = _empty(g, shape)
    _twins("conv", g, code, work=out.size // 2).unpool(_plain(g), _plain(code), out)
    return out


def pick(q: Any, code: Any) -> Any:
    """The transpose of `unpool`."""
    out = _empty(q, code.shape)
    _twins("conv", q, code, work=q.size // 2).pick(_plain(q), _plain(code), out)
    return out


# -- products of matrices ----------------------------------------------------------------------------------------------


def product(x: Any, y: Any) -> Any:
    """``x @ y`` over the last two axes, the others broadcast.

    By BLAS, but for the three products of a dense layer on the CPU, of a few rows and a large matrix: forward, in what
    comes in and in the weights.
    """
    loop = _own_product(x, y)
    if loop is None:
        return array_module(x).matmul(x, y)
    out = _empty(x, (x.shape[0], y.shape[1]))
    loops = _twins("dense", x, y, work=out.size * x.shape[1] // 8)
    if loop == "rows":
        loops.rows(_plain(x), _plain(y), out)
    elif loop == "dots":
        loops.dots(_plain(x), _plain(y.T), out)
    else:
        loops.outer(_plain(x.T), _plain(y), out)
    return out


def _own_product(x: Any, y: Any) -> str | None:
    """Which loop of `cpu_dense` a product is for, by shapes and by how the large matrix lies in memory."""
    if array_module(x) is not np or x.dtype != y.dtype or x.dtype.kind != "f":
        return None
    if not (x.ndim == y.ndim == 2 and x.shape[1] == y.shape[0]):
        return None
    if 0 < x.shape[0] <= FEW and y.size >= LARGE:
        return "rows" if y.flags.c_contiguous else "dots" if y.flags.f_contiguous else None
    if 0 < x.shape[1] <= FEW and x.shape[0] * y.shape[1] >= LARGE and x.flags.f_contiguous:
        return "outer"
    return None


# -- slices: geometry in `cpu_slices` ---------------------------------------------------------------------------------


def _shares(work: int) -> int:
    """Threads among which the planes of a spectrum are dealt out: each goes through all points."""
    return min(threads(work), 8)


def central_slice(spectrum: Any, turns: Any, step: float, radius: float, height: int) -> Any:
    out = _empty(spectrum, (len(turns), height, height // 2 + 1))
    loops = _twins("slices", spectrum, turns, work=8 * out.size)
    loops.central_slice(_plain(spectrum), _plain(turns), float(step), float(radius), out)
    return out


def slice_adjoint(g: Any, turns: Any, step: float, radius: float, n: int) -> Any:
    out = _empty(g, (n, n, n // 2 + 1))
    loops = _twins("slices", g, turns, work=8 * g.size)
    loops.slice_adjoint(_plain(g), _plain(turns), float(step), float(radius), _shares(8 * g.size), out)
    return out


def slice_rotations(spectrum: Any, turns: Any, g: Any, step: float, radius: float) -> Any:
    """``d Re <g, slice> / d turns``, (n, 3, 3); the third rows are zero."""
    out = _empty(turns, turns.shape)
    loops = _twins("slices", spectrum, turns, g, work=8 * g.size)
    loops.slice_rotations(_plain(spectrum), _plain(turns), _plain(g), float(step), float(radius), out)
    return out


def mark(turns: Any, step: float, radius: float, height: int, n: int) -> Any:
    """Which entries of a spectrum (n, n, n // 2 + 1) the slices touch."""
    out = _empty(turns, (n, n, n // 2 + 1), "?")
    work = 4 * len(turns) * height * height
    loops = _twins("slices", turns, work=work)
    loops.mark(_plain(turns), float(step), float(radius), height, _shares(work), out)
    return out


def sparse_project(
    rows: Any, places: Any, factors: Any, turns: Any, step: float, radius: float, height: int
) -> Any:
    """Slices of ``sum_k factors[b, k] V_k``, whose touched entries ``places`` finds in ``rows`` (touched, k)."""
    out = _empty(rows, (len(turns), height, height // 2 + 1))
    loops = _twins("slices", rows, places, factors, turns, work=8 * out.size * rows.shape[1])
    loops.sparse_project(
        _plain(rows), _plain(places), _plain(factors), _plain(turns), float(step), float(radius), out
    )
    return out


def sparse_rows(
    places: Any, factors: Any, g: Any, turns: Any, step: float, radius: float, touched: int
) -> Any:
    """The transpose of `sparse_project` in ``rows``."""
    out = _empty(g, (touched, factors.shape[1]))
    work = 8 * g.size * factors.shape[1]
    loops = _twins("slices", places, factors, g, turns, work=work)
    loops.sparse_rows(
        _plain(places),
        _plain(factors),
        _plain(g),
        _plain(turns),
        float(step),
        float(radius),
        _shares(work),
        out,
    )
    return out


def sparse_factors(rows: Any, places: Any, g: Any, turns: Any, step: float, radius: float) -> Any:
    """The transpose of `sparse_project` in ``factors``: ``Re <g_b, slice_b of V_k>``."""
    out = _empty(turns, (len(turns), rows.shape[1]))
    loops = _twins("slices", rows, places, g, turns, work=8 * g.size * rows.shape[1])
    loops.sparse_factors(
        _plain(rows), _plain(places), _plain(g), _plain(turns), float(step), float(radius), out
    )
    return out


# -- Adam -------------------------------------------------------------------------------------------------------------


def adam(p: Any, m: Any, v: Any, g: Any, rate: float, betas: tuple[float, float], floor: float) -> None:
    """``m = b1 m + (1 - b1) g``, ``v = b2 v + (1 - b2) g^2``, ``p -= rate m / (sqrt(v) + floor)``; real, contiguous."""
    _changed(p, m, v)
    kind = p.dtype.type
    flat = (a.reshape(-1) for a in (p, m, v, _plain(g)))
    loops = _twins("conv", p, m, v, g, work=p.size // 4)
    loops.adam(*flat, kind(rate), kind(betas[0]), kind(betas[1]), kind(floor))


def adam_rows(
    p: Any, m: Any, v: Any, g: Any, rows: Any, rate: float, betas: tuple[float, float], floor: float
) -> None:
    """The same for some rows of ``p``, ``m`` and ``v`` (n, k) alone; ``g`` is (len(rows), k), no row comes twice."""
    _changed(p, m, v)
    kind = p.dtype.type
    loops = _twins("conv", p, m, v, g, rows, work=g.size // 4)
    loops.adam_rows(p, m, v, _plain(g), rows, kind(rate), kind(betas[0]), kind(betas[1]), kind(floor))


def _changed(*arrays: Any) -> None:
    for a in arrays:
        if not a.flags.c_contiguous:
            raise ValueError(f"an array {a.shape} that is changed in place must be contiguous: pass a copy")
