"""Non-uniform FFTs in three dimensions. Arrays (z, y, x), centre index ``n // 2``.

FINUFFT only spreads points onto a fine grid and interpolates from it; the transforms between the fine grid and
the wanted one are done here. Everything wanted is real, so half of the fine grid is enough: points ``q`` with
negative ``z`` are taken as ``-q`` with the conjugate value. Each axis is transformed only where something is
kept, and one transform serves any number of batches of points.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..backend import fft, threads

__all__ = ["TOLERANCE", "GridReader", "GridWriter"]

#: Relative accuracy asked of FINUFFT for float32 and float64 arrays.
TOLERANCE = {np.dtype(np.float32): 3e-5, np.dtype(np.float64): 1e-12}

# Samples of the fine grid per sample of the wanted one: the least that reaches the accuracy. Wider margins allow
# narrower spreading kernels, but in single precision that gains little time and costs memory.
_UPSAMPLING = {np.dtype(np.float32): 1.25, np.dtype(np.float64): 2.0}

_SMALLEST = 32  # side of the smallest fine grid: two widths of the widest spreading kernel
_SLAB = 1 << 19  # entries of the fine grid that are transformed at a time


class _HalfGrid:
    """Planes 0 to the middle of a fine grid, between margins for the width of the spreading kernel."""

    def __init__(self, kind: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.kind, self.dtype, self.complex = kind, dtype, np.result_type(dtype, np.complex64)
        self.fine = tuple(_fine_size(n, dtype) for n in shape)
        self.planes = self.fine[0] // 2 + 1
        self.margin = _half_width(dtype)
        self.shape = (self.planes + 2 * self.margin, *self.fine[1:])

    def plan(self, points: NDArray) -> tuple[Any, NDArray]:
        """FINUFFT's plan for points, which are overwritten, and which of them were replaced by their opposite.

        A plan holds its points and as much again, so each serves one batch.
        """
        opposite = np.empty(points.shape[1], bool)
        kernels.fold_points(points, self.fine[0], self.margin, self.shape[0], opposite)
        plan = _plan(self.kind, self.shape, self.dtype)
        plan.setpts(points[2], points[1], points[0])
        return plan, opposite

    def slabs(self) -> list[slice]:
        step = max(1, _SLAB // (self.fine[1] * self.fine[2]))
        return [slice(z, min(z + step, self.planes)) for z in range(0, self.planes, step)]


class GridReader:
    """``sum_k c[k] exp(-i q . k)`` of real ``c`` at any points ``q``, ``k`` counted from the centre.

    Parameters
    ----------
    coefficients : ndarray (nz, ny, nx), float32 or float64
    """

    def __init__(self, coefficients: NDArray) -> None:
        self._half = half = _HalfGrid(2, coefficients.shape, coefficients.dtype)
        self._grid = np.empty(half.shape, half.complex)
        lib = fft(self._grid)
        rows = lib.rfft(_spread_out(_deconvolved(coefficients), half.fine[0], axis=0), axis=0)
        inside = self._grid[half.margin : half.margin + half.planes]
        for part in half.slabs():
            planes = lib.fft(_spread_out(rows[part], half.fine[1], axis=1), axis=1, overwrite_x=True)
            planes = _spread_out(planes, half.fine[2], axis=2)
            inside[part] = lib.fft(planes, axis=2, overwrite_x=True)
        kernels.fill_margins(self._grid, half.margin)

    def at(self, points: NDArray) -> NDArray:
        """The values at points (3, J) in the order x, y, z, rad per coefficient; complex (J,).

        ``points`` is overwritten.
        """
        plan, opposite = self._half.plan(points)
        values = plan.execute(self._grid)
        return np.conjugate(values, out=values, where=opposite)


class GridWriter:
    """The adjoint of `GridReader`: the real part of ``sum_j s[j] exp(+i q_j . k)``, added up over batches.

    Parameters
    ----------
    shape : (nz, ny, nx)
        Of the result.
    dtype : float32 or float64
    real : bool
        Whether the strengths ``s`` are real (yet of complex type). The result is then even, and takes half
        the memory and time beyond the spreading.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any, *, real: bool = False) -> None:
        self._shape, self._real = tuple(shape), real
        self._half = half = _HalfGrid(1, self._shape, np.dtype(dtype))
        self._total = np.zeros((half.planes, *half.fine[1:]), half.dtype if real else half.complex)
        self._grid: NDArray | None = None  # what FINUFFT spreads onto, one batch at a time

    def add(self, points: NDArray, strengths: NDArray) -> None:
        """Add strengths (J,), complex, at points (3, J) in the order x, y, z, rad per coefficient.

        Both are overwritten.
        """
        if self._grid is None:
            self._grid = np.empty(self._half.shape, self._half.complex)
        plan, opposite = self._half.plan(points)
        if not self._real:
            np.conjugate(strengths, out=strengths, where=opposite)
        plan.execute(strengths, self._grid)
        kernels.add_planes(self._grid.real if self._real else self._grid, self._half.margin, self._total)

    def result(self) -> NDArray:
        """The sum so far, real (nz, ny, nx)."""
        self._grid = None
        half = self._half
        # of real strengths the columns x >= 0 are enough
        kept = tuple(2 * (n // 2) + 1 for n in self._shape) if self._real else self._shape
        columns = self._shape[2] // 2 + 1 if self._real else self._shape[2]
        rows = np.empty((half.planes, kept[1], columns), half.complex)
        lib = fft(self._total)
        for part in half.slabs():
            if self._real:
                planes = lib.rfft(self._total[part], axis=2)[:, :, :columns]
            else:
                planes = _gathered(lib.fft(self._total[part], axis=2), columns, axis=2)
            rows[part] = _gathered(lib.fft(planes, axis=1), kept[1], axis=1)
        # hfft: the real part of the sum over all planes, from half of them
        out = _gathered(lib.hfft(rows, half.fine[0], axis=0), kept[0], axis=0)
        if self._real:
            out[:, :, 0] = 0.5 * (
                out[:, :, 0] + out[::-1, ::-1, 0]
            )  # their own mirror image, but for rounding
            whole = np.empty(kept, half.dtype)
            whole[:, :, columns - 1 :] = out
            whole[:, :, : columns - 1] = out[::-1, ::-1, :0:-1]
            out = whole[tuple(slice(0, n) for n in self._shape)]
        return _deconvolved(out, scale=0.5)  # `hfft` counts all planes twice, `add_planes` the first and last


def _plan(kind: int, grid: tuple[int, ...], dtype: np.dtype) -> Any:
    import finufft

    return finufft.Plan(
        kind,
        grid,
        eps=TOLERANCE[dtype],
        dtype=np.result_type(dtype, np.complex64).name,
        nthreads=threads(),
        upsampfac=_UPSAMPLING[dtype],
        spreadinterponly=1,
    )


def _fine_size(n: int, dtype: np.dtype) -> int:
    """Even, so that the point 0 of FINUFFT's grid, its middle, is a sample, and so is the middle plane."""
    lib = fft(np.empty(0))
    size = lib.next_fast_len(max(int(np.ceil(_UPSAMPLING[dtype] * n)), _SMALLEST))
    while size % 2:
        size = lib.next_fast_len(size + 1)
    return size


def _spread_out(x: NDArray, size: int, axis: int) -> NDArray:
    """Zero-padded to ``size`` on one axis, with the centre index moved to 0 and what is before it to the end."""
    n = x.shape[axis]
    before = (slice(None),) * axis
    out = np.zeros((*x.shape[:axis], size, *x.shape[axis + 1 :]), x.dtype)
    out[(*before, slice(0, n - n // 2))] = x[(*before, slice(n // 2, n))]
    out[(*before, slice(size - n // 2, size))] = x[(*before, slice(0, n // 2))]
    return out


def _gathered(x: NDArray, n: int, axis: int) -> NDArray:
    """The adjoint of `_spread_out`."""
    before, size = (slice(None),) * axis, x.shape[axis]
    parts = x[(*before, slice(size - n // 2, size))], x[(*before, slice(0, n - n // 2))]
    return np.concatenate(parts, axis=axis)


def _deconvolved(x: NDArray, scale: float = 1.0) -> NDArray:
    """Divided by the transform of the spreading kernel, times ``scale``."""
    factors = [_factors(n, x.dtype) for n in x.shape]
    # FINUFFT has the point 0 in the middle of its grid: y and x, but not z, which is folded
    y, x_ = (f * (-1.0) ** (np.arange(len(f)) - len(f) // 2) for f in factors[1:])
    out = x * ((scale * factors[0])[:, None] * y).astype(x.dtype)[:, :, None]
    out *= x_.astype(x.dtype)
    return out


@functools.lru_cache(maxsize=64)
def _factors(n: int, dtype: np.dtype) -> NDArray:
    """One over the transform of the spreading kernel at ``-(n // 2) ..``, for one axis."""
    offsets, values = _spreading_kernel(dtype)
    k = np.arange(n // 2 + 1)
    transform = np.cos(2 * np.pi / _fine_size(n, dtype) * np.outer(k, offsets)) @ values
    return 1.0 / transform[np.abs(np.arange(n) - n // 2)]  # even to the last bit


def _half_width(dtype: np.dtype) -> int:
    """Of the spreading kernel, in samples of the fine grid."""
    offsets, values = _spreading_kernel(dtype)
    return int(np.ceil(np.abs(offsets[values != 0]).max()))


@functools.cache
def _spreading_kernel(dtype: np.dtype) -> tuple[NDArray, NDArray]:
    """Offsets from a point, in samples of the fine grid, and FINUFFT's kernel there times their spacing.

    Measured by spreading one point at a time: FINUFFT does not tell its kernel, and changes it.
    """
    shifts, side = 16, _SMALLEST
    plan = _plan(1, (side,) * 3, dtype)
    origin, one = np.zeros(1, dtype), np.ones(1, np.result_type(dtype, np.complex64))
    offsets, lines = [], []
    for i in range(shifts):
        plan.setpts(origin, origin, np.full(1, 2 * np.pi / side * i / shifts, dtype))
        lines.append(plan.execute(one)[side // 2, side // 2].real.astype(np.float64))
        offsets.append(np.arange(side) - side // 2 - i / shifts)
    peak = lines[0][side // 2] ** (1 / 3)  # the kernel is a product over the axes
    return np.concatenate(offsets), np.concatenate(lines) / (peak**2 * shifts)
