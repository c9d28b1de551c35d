"""Non-uniform FFTs in three dimensions. Arrays (z, y, x), centre index ``n // 2``.

Points are spread onto a fine grid, and values interpolated from it, with a Kaiser-Bessel kernel; fine and wanted
grid differ by a Fourier transform and a division by the kernel's. Everything wanted is real, so half of the fine grid
is enough: points ``q`` with negative ``z`` are taken as ``-q`` with the conjugate value. Each axis is transformed only
where something is kept, and one transform serves any number of batches of points.

Results have the same bits whatever the number of threads.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..backend import fft

__all__ = ["COARSE", "TOLERANCE", "GridReader", "GridWriter"]

#: Relative accuracy for float32 and float64 arrays, unless a coarser one is asked for.
TOLERANCE = {np.dtype(np.float32): 3e-5, np.dtype(np.float64): 1e-12}

#: The coarsest accuracy there is, in single precision: its kernel has 216 cells where that of `TOLERANCE` has 512.
COARSE = 5e-4


class _Spreading(NamedTuple):
    """A spreading kernel: its type, its width in cells, its shape parameter per cell, and what accuracy it gives.

    The shape is the best for the width and the upsampling, in the mean over the wanted samples.
    """

    dtype: np.dtype
    width: int
    shape: float
    tolerance: float


_SPREADINGS = (  # cheapest first
    _Spreading(np.dtype(np.float32), 6, 1.835, COARSE),
    _Spreading(np.dtype(np.float32), 8, 1.853, TOLERANCE[np.dtype(np.float32)]),
    _Spreading(np.dtype(np.float64), 14, 2.346, TOLERANCE[np.dtype(np.float64)]),
)

# Samples of the fine grid per sample of the wanted one. Finer grids allow narrower kernels, but in single precision
# what that saves in spreading is lost in the transforms, and they take memory.
_UPSAMPLING = {np.dtype(np.float32): 1.25, np.dtype(np.float64): 2.0}

_SMALLEST = 32  # side of the smallest fine grid: two widths of the widest spreading kernel
_SLAB = 1 << 19  # entries of the fine grid that are transformed at a time


def spreading(dtype: Any, tol: float | None = None) -> _Spreading:
    """The cheapest spreading kernel with a relative accuracy of ``tol``; by default, and at best, `TOLERANCE`."""
    own = [s for s in _SPREADINGS if s.dtype == dtype]
    if tol is None:
        return own[-1]
    if not tol >= own[-1].tolerance:
        raise ValueError(
            f"tol = {tol:g}: in {np.dtype(dtype).name} the transform is accurate to {own[-1].tolerance:g} at best"
        )
    return next(s for s in own if s.tolerance <= tol)


class _HalfGrid:
    """Planes 0 to the middle of a fine grid, between margins for the width of the spreading kernel."""

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype,
        tol: float | None = None,
        fine: tuple[int, ...] | None = None,
    ) -> None:
        self.dtype, self.complex = dtype, np.result_type(dtype, np.complex64)
        self.spreading = spreading(dtype, tol)
        self.fine = tuple(_fine_size(n, dtype) for n in shape) if fine is None else fine
        self.planes = self.fine[0] // 2 + 1
        self._size = (self.planes, *self.fine[1:])
        width = self.spreading.width
        lanes, _ = kernels.SPREADING[dtype.name, width]
        self.margin = width // 2
        whole = [n + 2 * self.margin for n in self._size]
        self.shape = (*whole[:2], whole[2] + lanes - width)

    @property
    def kernel(self) -> tuple[NDArray, int]:
        """Polynomials and width of the spreading kernel."""
        return _polynomials(self.spreading), self.spreading.width

    def inside(self, grid: NDArray) -> NDArray:
        return grid[tuple(slice(self.margin, self.margin + n) for n in self._size)]

    def sorted(self, axes: NDArray, frequencies: NDArray) -> kernels.SortedPoints:
        turns = np.ascontiguousarray(axes, np.float64) / (2 * np.pi)
        if not (np.isfinite(turns).all() and np.isfinite(frequencies).all()):
            raise ValueError("points of a non-uniform FFT must be finite: is there a NaN among the poses?")
        return kernels.SortedPoints(
            turns, np.ascontiguousarray(frequencies, np.float64), self.fine, self.dtype
        )

    def fold_margins(self, grid: NDArray) -> None:
        kernels.fold_margins(grid, self.margin, self._size)

    def fill_margins(self, grid: NDArray) -> None:
        kernels.fill_margins(grid, self.margin, self._size)

    def slabs(self) -> list[slice]:
        return _parts(self.planes, self.fine[1] * self.fine[2])


class GridReader:
    """``sum_k c[k] exp(-i q . k)`` of real ``c`` at points ``q`` of planes, ``k`` counted from the centre.

    Parameters
    ----------
    coefficients : ndarray (nz, ny, nx), float32 or float64
    tol : float, optional
        Relative accuracy; see `TOLERANCE` and `COARSE`.
    """

    def __init__(self, coefficients: NDArray, tol: float | None = None) -> None:
        self.shape, self.dtype = coefficients.shape, coefficients.dtype
        self._half = half = _HalfGrid(coefficients.shape, coefficients.dtype, tol)
        self._grid = np.empty(half.shape, half.complex)
        lib = fft(self._grid)
        z, y, x = (
            _factors(*sizes, half.spreading) for sizes in zip(coefficients.shape, half.fine, strict=True)
        )
        rows = coefficients * np.outer(z, y).astype(half.dtype)[:, :, None]
        rows *= x.astype(half.dtype)
        rows = lib.rfft(_spread_out(rows, half.fine[0], axis=0), axis=0)
        inside = half.inside(self._grid)
        for part in half.slabs():
            planes = lib.fft(_spread_out(rows[part], half.fine[1], axis=1), axis=1, overwrite_x=True)
            planes = _spread_out(planes, half.fine[2], axis=2)
            inside[part] = lib.fft(planes, axis=2, overwrite_x=True)
        half.fill_margins(self._grid)

    def at(self, axes: NDArray, frequencies: NDArray) -> NDArray:
        """The values at ``q[p, j] = frequencies[0, j] axes[p, 0] + frequencies[1, j] axes[p, 1]``, complex (n, m).

        ``axes`` (n, 2, 3) in the order x, y, z, and ``frequencies`` (2, m), in rad per coefficient together.
        """
        points = self._half.sorted(axes, frequencies)
        values = np.empty((len(axes), frequencies.shape[1]), self._half.complex)
        points.interpolate(self._grid, *self._half.kernel, self._half.margin, values.reshape(-1))
        return values

    def with_gradients(self, axes: NDArray, frequencies: NDArray) -> tuple[NDArray, NDArray]:
        """The values of `at`, and their gradients in ``q``, complex (n, m, 3) in the order x, y, z.

        The gradient is that of the interpolant, which consists of polynomials: exact for `at`, and an approximation
        of ``sum_k -i k c[k] exp(-i q . k)`` that is a few times less accurate than the values.
        """
        frames = np.ascontiguousarray(axes, np.float64) / (2 * np.pi)
        values = np.empty((len(axes), frequencies.shape[1]), self._half.complex)
        gradients = np.empty((*values.shape, 3), self._half.complex)
        kernels.slice_gradients(*self._table(), frames, frequencies, values, gradients)
        gradients /= self._half.dtype.type(2 * np.pi)
        return values, gradients

    def products(
        self,
        frames: NDArray,
        frequencies: NDArray,
        index: tuple[NDArray, NDArray],
        phases: tuple[NDArray, NDArray],
        image: NDArray,
        data: NDArray,
        power: NDArray,
        *,
        derivatives: bool,
    ) -> NDArray:
        """Inner products of the slices with data, and derivatives: see `kernels.slice_products`.

        ``frames`` (n, 3, 3) are the axes of the images, in coefficients per pixel; ``frequencies`` are in rad.
        """
        turns = np.ascontiguousarray(frames, np.float64) / (2 * np.pi)
        return kernels.slice_products(
            *self._table(), turns, frequencies, index, phases, image, data, power, derivatives
        )

    def _table(self) -> tuple[NDArray, int, tuple[int, ...], NDArray, int]:
        return self._grid, self._half.margin, self._half.fine, *self._half.kernel


class GridWriter:
    """The adjoint of `GridReader`: the real part of ``sum_pj s[p, j] exp(+i q[p, j] . k)``, added up over batches.

    Parameters
    ----------
    shape : (nz, ny, nx)
        Of the result.
    dtype : float32 or float64
    real : bool
        Whether the strengths ``s`` are real, of type ``dtype``. The result is then even, and takes half the memory,
        and half the time beyond the spreading.
    tol : float, optional
        Relative accuracy; see `TOLERANCE` and `COARSE`.
    beside : GridWriter, optional
        Another sum, of shape n where this one has at most 2 n + 1 samples, whose `add_beside` then serves both.

    Attributes
    ----------
    total : ndarray
        What `add` adds to, and all that `result` depends on.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: Any,
        *,
        real: bool = False,
        tol: float | None = None,
        beside: GridWriter | None = None,
    ) -> None:
        self._shape, self._real, self._beside = tuple(shape), real, beside
        if beside is None:
            fine = None
        elif all(n <= 2 * m + 1 for m, n in zip(beside._shape, self._shape, strict=True)):
            fine = tuple(2 * n for n in beside._half.fine)
        else:
            raise ValueError(f"a sum of shape {self._shape} is too large to be beside one of {beside._shape}")
        self._half: _HalfGrid = _HalfGrid(self._shape, np.dtype(dtype), tol, fine)
        half = self._half
        self.total = np.zeros(half.shape, half.dtype if real else half.complex)

    def add(self, axes: NDArray, frequencies: NDArray, strengths: NDArray) -> None:
        """Add strengths (n, m) at the points of `GridReader.at`."""
        self._spread(self._half.sorted(axes, frequencies), axes, frequencies, strengths)

    def add_beside(
        self, other: GridWriter, axes: NDArray, frequencies: NDArray, strengths: NDArray, others: NDArray
    ) -> None:
        """Add strengths here and, at the same points, to a sum that was made beside this one: sorts them once."""
        if other._beside is not self:
            raise ValueError("the other sum was not made beside this one")
        points = self._half.sorted(axes, frequencies)
        self._spread(points, axes, frequencies, strengths)
        other._spread(points, axes, frequencies, others, finer=2)

    def _spread(
        self,
        points: kernels.SortedPoints,
        axes: NDArray,
        frequencies: NDArray,
        strengths: NDArray,
        finer: int = 1,
    ) -> None:
        if strengths.shape != (len(axes), frequencies.shape[1]):
            raise ValueError(
                f"{len(axes)} planes of {frequencies.shape[1]} points need as many strengths, got {strengths.shape}"
            )
        if self._real and np.iscomplexobj(strengths):
            raise TypeError("this sum takes real strengths: make it with real=False")
        flat = np.ascontiguousarray(strengths, self.total.dtype).reshape(-1)
        points.spread(flat, *self._half.kernel, self._half.margin, self.total, finer)

    def result(self) -> NDArray:
        """The sum so far, real (nz, ny, nx)."""
        half = self._half
        half.fold_margins(self.total)
        inside = half.inside(self.total)
        # of real strengths the columns x >= 0 are enough
        kept = tuple(2 * (n // 2) + 1 for n in self._shape) if self._real else self._shape
        columns = self._shape[2] // 2 + 1 if self._real else self._shape[2]
        rows = np.empty((half.planes, kept[1], columns), half.complex)
        lib = fft(self.total)
        for part in half.slabs():
            if self._real:  # even, so that the sign of the transforms does not matter
                planes = lib.rfft(inside[part], axis=2)[:, :, :columns]
                planes = lib.fft(planes, axis=1)
            else:
                planes = _gathered(lib.ifft(inside[part], axis=2, norm="forward"), columns, axis=2)
                planes = lib.ifft(planes, axis=1, norm="forward")
            rows[part] = _gathered(planes, kept[1], axis=1)
        rows[0] *= 2  # the transforms below count all planes twice but the first and the last
        rows[-1] *= 2
        out = np.empty(kept, half.dtype)
        right = out[:, :, kept[2] - columns :]
        z, y, x = (_factors(*sizes, half.spreading) for sizes in zip(kept, half.fine, strict=True))
        for part in _parts(kept[1], half.fine[0] * columns):
            # the real part of the sum over all planes, from half of them
            if self._real:
                lines = lib.hfft(rows[:, part], half.fine[0], axis=0)
            else:
                lines = lib.irfft(rows[:, part], half.fine[0], axis=0, norm="forward")
            factors = (0.5 * np.outer(z, y[part])).astype(half.dtype)[:, :, None]
            for to, start in ((slice(kept[0] // 2, None), 0), (slice(0, kept[0] // 2), -(kept[0] // 2))):
                mine = factors[to]
                np.multiply(lines[start:][: len(mine)], mine, out=right[to, part])
                right[to, part] *= x[-columns:].astype(half.dtype)
        if self._real:
            middle = right[:, :, 0]
            right[:, :, 0] = 0.5 * (middle + middle[::-1, ::-1])  # its own mirror image, but for rounding
            out[:, :, : columns - 1] = right[::-1, ::-1, :0:-1]
            out = np.ascontiguousarray(out[tuple(slice(0, n) for n in self._shape)])
        return out


def _parts(planes: int, entries: int) -> list[slice]:
    """Planes of so many entries, a few at a time."""
    step = max(1, _SLAB // entries)
    return [slice(z, min(z + step, planes)) for z in range(0, planes, step)]


def _fine_size(n: int, dtype: np.dtype) -> int:
    """Even, so that the middle plane is a sample."""
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


@functools.lru_cache(maxsize=64)
def _factors(n: int, fine: int, spreading: _Spreading) -> NDArray:
    """One over the transform of the spreading kernel at ``-(n // 2) ..``, for one axis."""
    width = spreading.width
    nodes, weights = np.polynomial.legendre.leggauss(100)
    offsets, values = 0.5 * width * nodes, 0.5 * width * weights * _kaiser_bessel(nodes, spreading)
    k = np.arange(n // 2 + 1)
    transform = np.cos(2 * np.pi / fine * np.outer(k, offsets)) @ values
    return 1.0 / transform[np.abs(np.arange(n) - n // 2)]  # even to the last bit


def _kaiser_bessel(u: NDArray, spreading: _Spreading) -> NDArray:
    """The spreading kernel, 1 in its middle; ``u`` from -1 to 1 over its width."""
    shape = spreading.shape * spreading.width
    return np.i0(shape * np.sqrt(np.maximum(0.0, 1.0 - u * u))) / np.i0(shape)


@functools.cache
def _polynomials(spreading: _Spreading) -> NDArray:
    """Coefficients (degree + 1, lanes) from the highest: the kernel in every cell, for the place of a point in it.

    In cell ``i`` the place ``u``, from -1 to 1, is at ``i + (u + 1 - width) / 2`` samples from the point.
    """
    width = spreading.width
    lanes, degree = kernels.SPREADING[spreading.dtype.name, width]
    out = np.zeros((degree + 1, lanes))
    u = np.cos(np.pi * (np.arange(64) + 0.5) / 64)
    for i in range(width):
        samples = _kaiser_bessel((2 * i + u + 1 - width) / width, spreading)
        fitted = np.polynomial.Chebyshev.fit(u, samples, degree, domain=[-1, 1])
        coefficients = fitted.convert(kind=np.polynomial.Polynomial).coef[::-1]
        out[degree + 1 - len(coefficients) :, i] = coefficients
    return out.astype(spreading.dtype)
