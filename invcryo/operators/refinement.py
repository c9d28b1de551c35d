"""From a grid of half the resolution to the full one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import array_module
from .base import LinOp

__all__ = ["Refinement"]


class Refinement(LinOp):
    """Linear interpolation of a grid with twice the spacing, with the same centre ``n // 2``.

    Parameters
    ----------
    shape : tuple of int
        Of the fine grid, the output; the coarse one has ``ceil(n / 2)`` samples per axis.

    Notes
    -----
    Coarse sample ``m`` lies on fine sample ``2 m + n // 2 - 2 (ceil(n / 2) // 2)``; beyond its ends the coarse array is
    zero. Positive arrays stay positive.
    """

    def __init__(self, shape: Sequence[int], dtype: Any = np.float32) -> None:
        fine = tuple(shape)
        super().__init__(tuple((n + 1) // 2 for n in fine), fine, dtype)

    def offset(self, axis: int) -> int:
        """The fine sample under coarse sample 0."""
        return self.oshape[axis] // 2 - 2 * (self.ishape[axis] // 2)

    def _apply(self, x: NDArray) -> NDArray:
        for axis, n in enumerate(self.oshape):
            x = self._interpolated(x, axis, n)
        return x

    def _adjoint(self, y: NDArray) -> NDArray:
        for axis in range(len(self.oshape)):
            y = self._gathered(y, axis)
        return y

    def nearest(self, x: NDArray) -> NDArray:
        """Each fine sample the value of the coarse one below or before it, for fields (..., *coarse shape)."""
        xp, lead = array_module(x), x.ndim - len(self.ishape)
        for axis, n in enumerate(self.oshape):
            index = (xp.arange(n) - self.offset(axis)) // 2
            x = xp.take(x, xp.clip(index, 0, self.ishape[axis] - 1), axis=lead + axis)
        return xp.ascontiguousarray(x)

    def thinned(self, x: NDArray) -> NDArray:
        """The fine samples that lie on coarse ones; those at the ends for coarse samples beyond them."""
        xp = array_module(x)
        for axis, n in enumerate(self.oshape):
            index = 2 * xp.arange(self.ishape[axis]) + self.offset(axis)
            x = xp.take(x, xp.clip(index, 0, n - 1), axis=axis)
        return x

    def _interpolated(self, x: NDArray, axis: int, n: int) -> NDArray:
        out = array_module(x).zeros((*x.shape[:axis], n, *x.shape[axis + 1 :]), x.dtype)
        for shift, weight in ((0, 1.0), (-1, 0.5), (1, 0.5)):
            coarse, fine = self._pairs(axis, shift)
            before = (slice(None),) * axis
            out[(*before, fine)] += x.dtype.type(weight) * x[(*before, coarse)]
        return out

    def _gathered(self, y: NDArray, axis: int) -> NDArray:
        out = array_module(y).zeros((*y.shape[:axis], self.ishape[axis], *y.shape[axis + 1 :]), y.dtype)
        for shift, weight in ((0, 1.0), (-1, 0.5), (1, 0.5)):
            coarse, fine = self._pairs(axis, shift)
            before = (slice(None),) * axis
            out[(*before, coarse)] += y.dtype.type(weight) * y[(*before, fine)]
        return out

    def _pairs(self, axis: int, shift: int) -> tuple[slice, slice]:
        """The coarse samples whose fine sample plus ``shift`` exists, and these."""
        n, start = self.oshape[axis], self.offset(axis) + shift
        first = 0 if start >= 0 else (1 - start) // 2
        count = min(self.ishape[axis], (n - 1 - start) // 2 + 1) - first
        begin = start + 2 * first
        return slice(first, first + count), slice(begin, begin + 2 * count, 2)
