"""Constraints: zero inside a set, infinite outside. Their prox is the projection on the set."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..backend import array_module
from .base import Cost

__all__ = ["Box", "NonNegative", "Support"]


class Box(Cost):
    """``low <= x <= high``, entry by entry."""

    def __init__(self, low: float = -np.inf, high: float = np.inf) -> None:
        if not low <= high:
            raise ValueError(f"an empty box: low {low} is above high {high}")
        self.low, self.high = float(low), float(high)

    def __call__(self, x: NDArray) -> float:
        low, high = x.dtype.type(self.low), x.dtype.type(self.high)  # as the prox rounds them
        return 0.0 if x.min() >= low and x.max() <= high else np.inf

    def prox(self, z: NDArray, tau: float) -> NDArray:
        return array_module(z).clip(z, z.dtype.type(self.low), z.dtype.type(self.high))


class NonNegative(Box):
    """``x >= 0``."""

    def __init__(self) -> None:
        super().__init__(0.0, np.inf)


class Support(Cost):
    """``x = 0`` outside a boolean mask, and ``x >= 0`` inside it if ``nonnegative``."""

    def __init__(self, mask: ArrayLike, *, nonnegative: bool = False) -> None:
        self.mask: Any = mask.copy() if hasattr(mask, "dtype") else np.array(mask)  # type: ignore[union-attr]
        if self.mask.dtype != bool:
            raise TypeError(f"a support is a boolean mask, got {self.mask.dtype}; write mask > 0.5")
        self.nonnegative = nonnegative

    def _check(self, x: NDArray) -> None:
        if tuple(x.shape) != tuple(self.mask.shape):
            raise ValueError(
                f"a support of shape {self.mask.shape} does not fit an array of shape {tuple(x.shape)}"
            )

    def __call__(self, x: NDArray) -> float:
        self._check(x)
        if x[~self.mask].any() or (self.nonnegative and float(x.min()) < 0):
            return np.inf
        return 0.0

    def prox(self, z: NDArray, tau: float) -> NDArray:
        self._check(z)
        xp = array_module(z)
        zero = z.dtype.type(0)
        return xp.where(self.mask, xp.maximum(z, zero) if self.nonnegative else z, zero)
