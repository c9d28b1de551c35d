"""CUDA twins of the loops in `cpu_conv` and `cpu_slices`, with their arguments, for arrays of CuPy.

The source is ``cuda.cu``; CuPy compiles it when a kernel is first needed, for its precision. Sums that many points
enter are taken voxel by voxel over points sorted by cells, and convolutions are products of matrices by cuBLAS.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import array_module

__all__ = ["OPTIONS", "SOURCE", "types"]

SOURCE = Path(__file__).with_name("cuda.cu")
#: For the compiler, besides -DREAL=...; see the head of the source.
OPTIONS = ("-std=c++17", "-fmad=false")

_REALS = {"f": "float", "F": "float", "d": "double", "D": "double"}
_TYPES = {
    "unsigned": "u4",
    "int": "i4",
    "long long": "i8",
    "unsigned char": "u1",
    "bool": "?",
    "double": "f8",
}
_THREADS, _BLOCKS = 256, 65535
_LARGEST = 2**31  # entries of an array: kernels count in 32 bits
_SCRATCH = 1 << 26  # entries of neighbourhoods at a time


@functools.cache
def types(real: str) -> dict[str, list[tuple[np.dtype, bool]]]:
    """By the source: for each kernel the types of its arguments, and which of them are arrays."""
    size = {"float": 4, "double": 8}[real]
    known = {**_TYPES, "REAL": f"f{size}", "COMPLEX": f"c{2 * size}"}
    kernels = {}
    for name, text in re.findall(r"^KERNEL (\w+)\(([^)]*)\)", SOURCE.read_text(), re.MULTILINE):
        words = [re.fullmatch(r"\s*(?:const )?(.+?) (\*?)\w+", word) for word in text.split(",")]
        kernels[name] = [(np.dtype(known[w[1]]), bool(w[2])) for w in words if w]
    return kernels


@functools.cache
def _module(xp: Any, real: str) -> Any:
    return xp.RawModule(code=SOURCE.read_text(), options=(*OPTIONS, f"-DREAL={real}"))


def _launch(name: str, count: int, *arguments: Any) -> None:
    """One thread for each of ``count`` entries. What a kernel would misread in silence is refused."""
    arrays = [a for a in arguments if hasattr(a, "flags") and not isinstance(a, np.generic)]
    real = next(_REALS[a.dtype.char] for a in arrays if a.dtype.char in _REALS)
    given = []
    for a, (dtype, is_array) in zip(arguments, types(real)[name], strict=True):
        if not is_array:
            given.append(dtype.type(a))
            continue
        if a.dtype != dtype:
            raise TypeError(f"{name}: an array of {a.dtype} where the kernel takes {dtype}")
        if not a.flags.c_contiguous:
            raise ValueError(
                f"{name}: an array {a.shape} is not contiguous, and kernels on a GPU see no strides"
            )
        if a.size >= _LARGEST:
            raise ValueError(f"{name}: an array {a.shape} has 2^31 entries or more: use smaller batches")
        given.append(a)
    if count:
        kernel = _module(array_module(arrays[0]), real).get_function(name)
        kernel((min(-(-count // _THREADS), _BLOCKS),), (_THREADS,), tuple(given))


# -- networks ---------------------------------------------------------------------------------------------------------


def _neighbourhoods(x: Any, kernel: int) -> Iterator[tuple[slice, Any]]:
    """Runs of pixels, counted through the stack, with the matrix of their neighbourhoods."""
    n, height, width, channels = x.shape
    length = kernel * kernel * channels
    step = max(1, _SCRATCH // (width * length))
    scratch = array_module(x).empty((min(step, n * height) * width, length), dtype=x.dtype)
    for first in range(0, n * height, step):
        pixels = (min(first + step, n * height) - first) * width
        part = scratch[:pixels]
        _launch("gather", part.size, x, height, width, channels, kernel, first, part.size, part)
        yield slice(first * width, first * width + pixels), part


def conv(x: Any, w: Any, threads: int, out: Any) -> None:
    weights, flat = w.reshape(-1, w.shape[3]), out.reshape(-1, w.shape[3])
    for pixels, part in _neighbourhoods(x, w.shape[0]):
        array_module(x).dot(part, weights, out=flat[pixels])


def conv_weights(x: Any, g: Any, threads: int, out: Any) -> None:
    total, flat = out.reshape(-1, out.shape[3]), g.reshape(-1, out.shape[3])
    total[...] = 0
    for pixels, part in _neighbourhoods(x, out.shape[0]):
        total += part.T.dot(flat[pixels])


def pool(x: Any, bias: Any, slope: Any, out: Any, code: Any) -> None:
    _launch("pool", out.size, x, bias, slope, *x.shape[1:], out.size, out, code)


def bias_relu(x: Any, bias: Any, slope: Any, out: Any, code: Any) -> None:
    _launch("bias_relu", out.size, x, bias, slope, bias.size, out.size, out, code)


def by_sign(g: Any, code: Any, slope: Any, out: Any) -> None:
    _launch("by_sign", out.size, g, code, slope, out.size, out)


def unpool(g: Any, code: Any, out: Any) -> None:
    _launch("unpool", out.size, g, code, *out.shape[1:], out.size, out)


def pick(q: Any, code: Any, out: Any) -> None:
    _launch("pick", out.size, q, code, *q.shape[1:], out.size, out)


def adam(p: Any, m: Any, v: Any, g: Any, rate: Any, beta1: Any, beta2: Any, floor: Any) -> None:
    _launch("adam", p.size, p, m, v, g, rate, beta1, beta2, floor, p.size)


def adam_rows(
    p: Any, m: Any, v: Any, g: Any, rows: Any, rate: Any, beta1: Any, beta2: Any, floor: Any
) -> None:
    _launch("adam_rows", g.size, p, m, v, g, rows, rate, beta1, beta2, floor, p.shape[1], g.size)


# -- slices -----------------------------------------------------------------------------------------------------------


def _by_cell(turns: Any, step: float, radius: float, height: int, n: int) -> tuple[Any, Any]:
    """The points of slices in order of the cell that they lie in, and where the points of each cell begin."""
    xp = array_module(turns)
    keys = xp.empty(len(turns) * height * (height // 2 + 1), dtype=np.int32)
    _launch("cells", keys.size, turns, step, radius, n, height, keys.size, keys)
    order = xp.argsort(keys, kind="stable")
    return order, xp.searchsorted(keys[order], xp.arange(n * n * (n // 2) + 1, dtype=np.int32))


def central_slice(spectrum: Any, turns: Any, step: float, radius: float, out: Any) -> None:
    n, height = len(spectrum), out.shape[1]
    _launch("central_slice", out.size, spectrum, turns, step, radius, n, height, out.size, out)


def slice_adjoint(g: Any, turns: Any, step: float, radius: float, parts: int, out: Any) -> None:
    n, height = len(out), g.shape[1]
    runs = _by_cell(turns, step, radius, height, n)
    _launch("slice_adjoint", out.size, g, turns, *runs, step, n, height, out.size, out)


def slice_rotations(spectrum: Any, turns: Any, g: Any, step: float, radius: float, out: Any) -> None:
    n, height = len(spectrum), g.shape[1]
    sums = array_module(g).empty((len(g), height, 2, 3), dtype=np.float64)
    rows = len(g) * height
    _launch("slice_rotations", rows, spectrum, turns, g, step, radius, n, height, rows, sums)
    out[:, :2] = (step * sums.sum(axis=1)).astype(out.dtype)
    out[:, 2] = 0


def mark(turns: Any, step: float, radius: float, height: int, parts: int, out: Any) -> None:
    out[...] = False
    count = len(turns) * height * (height // 2 + 1)
    _launch("mark", count, turns, step, radius, len(out), height, count, out)


def sparse_project(
    rows: Any, places: Any, factors: Any, turns: Any, step: float, radius: float, out: Any
) -> None:
    sizes = len(places), out.shape[1], rows.shape[1], out.size
    _launch("sparse_project", out.size, rows, places, factors, turns, step, radius, *sizes, out)


def sparse_rows(
    places: Any, factors: Any, g: Any, turns: Any, step: float, radius: float, parts: int, out: Any
) -> None:
    n, height, volumes = len(places), g.shape[1], out.shape[1]
    runs = _by_cell(turns, step, radius, height, n)
    count = places.size * volumes
    _launch("sparse_rows", count, places, factors, g, turns, *runs, step, n, height, volumes, count, out)


def sparse_factors(rows: Any, places: Any, g: Any, turns: Any, step: float, radius: float, out: Any) -> None:
    height, volumes = g.shape[1], rows.shape[1]
    sums = array_module(g).empty((len(g), height, volumes), dtype=np.float64)
    sizes = len(places), height, volumes, sums.size
    _launch("sparse_factors", sums.size, rows, places, g, turns, step, radius, *sizes, sums)
    out[...] = sums.sum(axis=1).astype(out.dtype)
