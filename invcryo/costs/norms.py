"""Norms."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..backend import array_module, inner
from ..operators import Identity
from .base import Cost, Quadratic

__all__ = ["L1", "L21", "SquaredL2"]


class L1(Cost):
    """``sum |x|``; anisotropic total variation as ``L1() @ Gradient(shape)``."""

    def __call__(self, x: NDArray) -> float:
        return float(array_module(x).abs(x).sum(dtype=np.float64))

    def prox(self, z: NDArray, tau: float) -> NDArray:
        xp = array_module(z)
        return xp.sign(z) * xp.maximum(xp.abs(z) - z.dtype.type(tau), 0)


class L21(Cost):
    """``sum_k ||x[:, k]||_2``: groups along the first axis; isotropic TV as ``L21() @ Gradient(shape)``."""

    def __call__(self, x: NDArray) -> float:
        return float(self._lengths(x).sum(dtype=np.float64))

    def prox(self, z: NDArray, tau: float) -> NDArray:
        xp = array_module(z)
        if xp is np and z.flags.c_contiguous:
            out = np.empty_like(z)
            kernels.shrink_groups(z.reshape(len(z), -1), tau, out.reshape(len(z), -1))
            return out
        lengths = self._lengths(z)
        # max(1 - tau / length, 0), written so that a length of zero is no division by zero
        shrunk = xp.maximum(lengths - z.dtype.type(tau), 0)
        return z * (shrunk / xp.maximum(lengths, np.finfo(z.dtype).tiny))

    @staticmethod
    def _lengths(x: NDArray) -> NDArray:
        xp = array_module(x)
        return xp.sqrt(xp.einsum("i...,i...->...", x, x))


class SquaredL2(Cost):
    """``||x - center||^2 / 2``; Tikhonov as ``lam * SquaredL2()``, Sobolev as ``lam * (SquaredL2() @ D)``."""

    def __init__(self, center: NDArray | None = None) -> None:
        self.center = center

    def _center(self, x: NDArray) -> NDArray:
        """The centre in the type of ``x``, which stays what it is."""
        if self.center.shape != x.shape:  # type: ignore[union-attr]
            raise ValueError(f"the centre has shape {self.center.shape}, the argument {x.shape}")  # type: ignore
        return self.center.astype(x.dtype, copy=False)  # type: ignore[union-attr]

    def _difference(self, x: NDArray) -> NDArray:
        return x if self.center is None else x - self._center(x)

    def __call__(self, x: NDArray) -> float:
        d = self._difference(x)
        return 0.5 * inner(d, d)

    def prox(self, z: NDArray, tau: float) -> NDArray:
        t = z.dtype.type(tau)
        shifted = z if self.center is None else z + t * self._center(z)
        return shifted / (1 + t)

    def gradient(self, x: NDArray) -> NDArray:
        return self._difference(x).copy()

    def quadratic(self, shape: tuple[int, ...] | None = None, dtype: Any = None) -> Quadratic | None:
        y = self.center
        if y is not None:
            if shape is not None and tuple(shape) != y.shape:
                raise ValueError(f"the centre has shape {y.shape}, the argument {tuple(shape)}")
            return Quadratic(Identity(y.shape, y.dtype if dtype is None else dtype), y, 0.5 * inner(y, y))
        if shape is None:
            raise ValueError("SquaredL2 does not know the shape of its argument: quadratic(shape, dtype)")
        dtype = np.dtype(np.float32 if dtype is None else dtype)
        return Quadratic(Identity(shape, dtype), np.zeros(shape, dtype), 0.0)

    @property
    def domain(self) -> tuple[tuple[int, ...], np.dtype] | None:
        return None if self.center is None else (self.center.shape, self.center.dtype)
