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
        return 0.0 if float(x.min()) >= self.low and float(x.max()) <= self.high else np.inf

    def prox(self, z: NDArray, tau: float) -> NDArray:
        return array_module(z).clip(z, z.dtype.type(self.low), z.dtype.type(self.high))


class NonNegative(Box):
    """``x >= 0``."""

    def __init__(self) -> None:
        super().__init__(0.0, np.inf)


class Support(Cost):
    """``x = 0`` outside a boolean mask, and ``x >= 0`` inside it if ``nonnegative``."""

    def __init__(self, mask: ArrayLike, *, nonnegative: bool = False) -> None:
        self.mask: Any = mask if hasattr(mask, "dtype") else np.asarray(mask)
        if self.mask.dtype != bool:
            raise TypeError(f"a support is a boolean mask, got {self.mask.dtype}; write mask > 0.5")
        self.nonnegative = nonnegative

    def __call__(self, x: NDArray) -> float:
        if x[~self.mask].any() or (self.nonnegative and float(x.min()) < 0):
            return np.inf
        return 0.0

    def prox(self, z: NDArray, tau: float) -> NDArray:
        xp = array_module(z)
        zero = z.dtype.type(0)
        return xp.where(self.mask, xp.maximum(z, zero) if self.nonnegative else z, zero)
