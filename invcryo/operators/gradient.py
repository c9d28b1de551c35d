"""Finite differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..backend import array_module
from .base import LinOp

__all__ = ["Gradient", "Laplacian"]

_BOUNDARIES = ("zero-flux", "periodic")


class Gradient(LinOp):
    """Forward differences along each axis: ``(n_1, ..., n_d) -> (d, n_1, ..., n_d)``.

    Parameters
    ----------
    shape : tuple of int
    boundary : "zero-flux" or "periodic"
        The difference at the end of an axis: zero, or to the first entry. The periodic operator has a
        Fourier ``spectrum`` of its gram.

    Notes
    -----
    ``||Gradient||^2 <= 4 d``.
    """

    def __init__(self, shape: Sequence[int], boundary: str = "zero-flux", dtype: Any = np.float32) -> None:
        shape = tuple(shape)
        if boundary not in _BOUNDARIES:
            raise ValueError(f"unknown boundary {boundary!r}: expected one of {_BOUNDARIES}")
        super().__init__(shape, (len(shape), *shape), dtype)
        self.boundary = boundary

    def _apply(self, x: NDArray) -> NDArray:
        xp = array_module(x)
        out = xp.empty(self.oshape, x.dtype)
        if xp is np and x.ndim == 3:
            kernels.difference_apply(x, self.boundary == "periodic", out)
            return out
        for axis in range(x.ndim):
            out[axis] = xp.roll(x, -1, axis) - x
            if self.boundary == "zero-flux":
                out[(axis, *(slice(None),) * axis, -1)] = 0
        return out

    def _adjoint(self, y: NDArray) -> NDArray:
        xp = array_module(y)
        out = xp.zeros(self.ishape, y.dtype)
        if xp is np and out.ndim == 3:
            kernels.difference_adjoint(y, self.boundary == "periodic", out)
            return out
        for axis in range(out.ndim):
            u = y[axis]
            if self.boundary == "zero-flux":
                u = u.copy()
                u[(*(slice(None),) * axis, -1)] = 0
            out += xp.roll(u, 1, axis) - u
        return out

    def _gram(self, W: LinOp | None) -> LinOp:
        return Laplacian(self) if W is None else super()._gram(W)


class Laplacian(LinOp):
    """``Gradient^H Gradient``, the negative Laplacian."""

    def __init__(self, gradient: Gradient) -> None:
        super().__init__(gradient.ishape, gradient.ishape, gradient.dtype)
        self.gradient = gradient

    def _apply(self, x: NDArray) -> NDArray:
        return self.gradient._adjoint(self.gradient._apply(x))

    def _adjoint(self, y: NDArray) -> NDArray:
        return self._apply(y)

    @property
    def spectrum(self) -> NDArray | None:
        return self.nearest_circulant() if self.gradient.boundary == "periodic" else None

    def nearest_circulant(self) -> NDArray:
        """``sum_a 4 sin^2(w_a / 2)``: exact for the periodic boundary."""
        total: Any = 0.0
        d = len(self.ishape)
        for axis, n in enumerate(self.ishape):
            frequency = np.fft.rfftfreq(n) if axis == d - 1 else np.fft.fftfreq(n)
            total = total + (4 * np.sin(np.pi * frequency) ** 2).reshape((-1,) + (1,) * (d - 1 - axis))
        return total.astype(self.dtype)
