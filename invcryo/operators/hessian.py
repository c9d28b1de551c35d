"""Second differences."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..backend import array_module
from .base import LinOp
from .gradient import Gradient

__all__ = ["Bilaplacian", "Hessian"]

_BOUNDARIES = ("zero-flux", "periodic")


class Hessian(LinOp):
    """All second differences of an array: ``(n_1, ..., n_d) -> (d (d + 1) / 2, n_1, ..., n_d)``.

    The components of a volume are zz, yy, xx, sqrt(2) zy, sqrt(2) zx, sqrt(2) yx; of an image yy, xx, sqrt(2) yx.
    With these factors the norm of the components at a voxel is the Frobenius norm of its symmetric matrix.

    Parameters
    ----------
    shape : tuple of int
    boundary : "zero-flux" or "periodic"
        Beyond its ends the array repeats its border, or starts again.

    Notes
    -----
    Along one axis ``x[k + 1] - 2 x[k] + x[k - 1]``; for two axes the forward difference of the forward difference,
    ``x[k + 1, l + 1] - x[k + 1, l] - x[k, l + 1] + x[k, l]``, which belongs to the point (k + 1/2, l + 1/2).

    These are the differences of Lefkimmiatis et al., with the pure ones moved by one voxel: theirs are forward,
    ``x[k + 2] - 2 x[k + 1] + x[k]``, ours centred on the voxel. Mixed terms by central differences would not see
    the checkerboard. With forward ones ``Hessian^H Hessian`` is exactly the square of ``Gradient^H Gradient``, for
    both boundaries; hence ``||Hessian||^2 <= 16 d^2`` (144 for volumes), with equality for periodic even sizes.

    References
    ----------
    S. Lefkimmiatis, J. P. Ward, M. Unser, "Hessian Schatten-norm regularization for linear inverse problems", IEEE
    Trans. Image Process. 22(5), 2013.
    """

    def __init__(self, shape: Sequence[int], boundary: str = "zero-flux", dtype: Any = np.float32) -> None:
        shape = tuple(int(n) for n in shape)
        if boundary not in _BOUNDARIES:
            raise ValueError(f"unknown boundary {boundary!r}: expected one of {_BOUNDARIES}")
        if not shape or min(shape) < 1:
            raise ValueError(f"a Hessian needs at least one axis and no empty one, got shape {shape}")
        d = len(shape)
        super().__init__(shape, (d * (d + 1) // 2, *shape), dtype)
        self.boundary = boundary

    def _apply(self, x: NDArray) -> NDArray:
        out = array_module(x).empty(self.oshape, x.dtype)
        loops = array_module(x) is np and x.ndim == 3
        (kernels.hessian_apply if loops else _apply)(x, self.boundary == "periodic", out)
        return out

    def _adjoint(self, y: NDArray) -> NDArray:
        out = array_module(y).empty(self.ishape, y.dtype)
        loops = array_module(y) is np and out.ndim == 3
        (kernels.hessian_adjoint if loops else _adjoint)(y, self.boundary == "periodic", out)
        return out

    def _gram(self, W: LinOp | None) -> LinOp:
        return Bilaplacian(self) if W is None else super()._gram(W)


class Bilaplacian(LinOp):
    """``Hessian^H Hessian``, the square of the Laplacian."""

    def __init__(self, hessian: Hessian) -> None:
        super().__init__(hessian.ishape, hessian.ishape, hessian.dtype)
        self.hessian = hessian
        self._laplacian = Gradient(hessian.ishape, hessian.boundary, hessian.dtype).gram()

    def _apply(self, x: NDArray) -> NDArray:
        if array_module(x) is not np or x.ndim != 3:
            return self._laplacian._apply(self._laplacian._apply(x))
        periodic = self.hessian.boundary == "periodic"
        once, twice = np.empty_like(x), np.empty_like(x)
        kernels.laplacian(x, periodic, once)
        kernels.laplacian(once, periodic, twice)
        return twice

    def _adjoint(self, y: NDArray) -> NDArray:
        return self._apply(y)

    @property
    def spectrum(self) -> NDArray | None:
        s = self._laplacian.spectrum
        return None if s is None else s**2

    def nearest_circulant(self) -> NDArray | None:
        """``(sum_a 4 sin^2(w_a / 2))^2``: exact for the periodic boundary."""
        s = self._laplacian.nearest_circulant()
        return None if s is None else s**2


# -- array code: any number of dimensions, and the reference for the compiled loops ------------------------------


def _apply(x: NDArray, periodic: bool, out: NDArray) -> None:
    d = x.ndim
    for axis in range(d):
        out[axis] = _back(_forward(x, axis, periodic), axis, periodic)
    for component, (a, b) in enumerate(itertools.combinations(range(d), 2), d):
        out[component] = math.sqrt(2) * _forward(_forward(x, a, periodic), b, periodic)


def _adjoint(u: NDArray, periodic: bool, out: NDArray) -> None:
    d = out.ndim
    out[...] = 0
    for axis in range(d):
        out += _back(_forward(u[axis], axis, periodic), axis, periodic)
    for component, (a, b) in enumerate(itertools.combinations(range(d), 2), d):
        out += math.sqrt(2) * _back(_back(u[component], b, periodic), a, periodic)


def _forward(x: NDArray, axis: int, periodic: bool) -> NDArray:
    """``x[k + 1] - x[k]``, at the last k zero or wrapped."""
    out = array_module(x).roll(x, -1, axis)
    out -= x
    if not periodic:
        out[(slice(None),) * axis + (-1,)] = 0
    return out


def _back(u: NDArray, axis: int, periodic: bool) -> NDArray:
    """``u[k] - u[k - 1]``, with zero for the last entry of ``u`` and the one before the first, or wrapped.

    Minus the transpose of `_forward`.
    """
    if not periodic:
        u = u.copy()
        u[(slice(None),) * axis + (-1,)] = 0
    return u - array_module(u).roll(u, 1, axis)
