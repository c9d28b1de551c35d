"""Constraints: zero inside a set, infinite outside. Their prox is the projection on the set."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import kernels
from ..backend import array_module
from ..operators import Refinement
from .base import Cost

__all__ = ["Box", "NonNegative", "Support"]


class Box(Cost):
    """``low <= x <= high``, entry by entry. The conjugate is the sum of ``max(low y, high y)``."""

    is_indicator = True

    def __init__(self, low: float = -np.inf, high: float = np.inf) -> None:
        if not low <= high or low == np.inf or high == -np.inf:
            raise ValueError(f"an empty box: low {low}, high {high}")
        self.low, self.high = float(low), float(high)

    def thinned(self, fine: Refinement) -> Box:
        return self

    def __call__(self, x: NDArray) -> float:
        low, high = x.dtype.type(self.low), x.dtype.type(self.high)  # as the prox rounds them
        return 0.0 if x.min() >= low and x.max() <= high else np.inf

    def _prox(self, z: NDArray, tau: float, out: NDArray) -> None:
        array_module(z).clip(z, z.dtype.type(self.low), z.dtype.type(self.high), out=out)

    def _prox_conjugate(self, z: NDArray, sigma: float, factor: float, out: NDArray) -> None:
        xp = array_module(z)
        low, high = z.dtype.type(sigma * self.low), z.dtype.type(sigma * self.high)
        if xp is np and z.flags.c_contiguous and out.flags.c_contiguous:
            kernels.dead_zone(z.reshape(-1), low, high, out.reshape(-1))
        else:
            xp.subtract(z, xp.clip(z, low, high), out=out)

    def _conjugate(self, y: NDArray, factor: float) -> float:
        xp, zero = array_module(y), y.dtype.type(0)
        up = float(xp.maximum(y, zero).sum(dtype=np.float64))
        down = float(xp.minimum(y, zero).sum(dtype=np.float64))
        # an infinite bound costs nothing where no y points to it
        total = (float(y.dtype.type(self.high)) * up if up else 0.0) + (
            float(y.dtype.type(self.low)) * down if down else 0.0
        )
        return total


class NonNegative(Box):
    """``x >= 0``. The conjugate is the indicator of ``y <= 0``."""

    def __init__(self) -> None:
        super().__init__(0.0, np.inf)


class Support(Cost):
    """``x = 0`` outside a boolean mask, and ``x >= 0`` inside it if ``nonnegative``.

    The conjugate is the indicator of ``y = 0`` inside the mask, of ``y <= 0`` there if ``nonnegative``.
    """

    is_indicator = True

    def __init__(self, mask: ArrayLike, *, nonnegative: bool = False) -> None:
        self.mask: Any = mask.copy() if hasattr(mask, "dtype") else np.array(mask)  # type: ignore[union-attr]
        if self.mask.dtype != bool:
            raise TypeError(f"a support is a boolean mask, got {self.mask.dtype}; write mask > 0.5")
        self._outside = ~self.mask
        self.nonnegative = nonnegative

    def thinned(self, fine: Refinement) -> Support:
        return Support(fine.thinned(self.mask), nonnegative=self.nonnegative)

    def _check(self, x: NDArray) -> None:
        if tuple(x.shape) != tuple(self.mask.shape):
            raise ValueError(
                f"a support of shape {self.mask.shape} does not fit an array of shape {tuple(x.shape)}"
            )

    def __call__(self, x: NDArray) -> float:
        self._check(x)
        inside = not x[self._outside].any() and not (self.nonnegative and not float(x.min()) >= 0)
        return 0.0 if inside else np.inf

    def _prox(self, z: NDArray, tau: float, out: NDArray) -> None:
        self._check(z)
        xp, zero = array_module(z), z.dtype.type(0)
        if self.nonnegative:
            xp.clip(z, zero, z.dtype.type(np.inf), out=out)  # twice as fast as maximum
        elif out is not z:
            xp.copyto(out, z)
        xp.copyto(out, zero, where=self._outside)

    def _prox_conjugate(self, z: NDArray, sigma: float, factor: float, out: NDArray) -> None:
        self._check(z)
        xp, zero = array_module(z), z.dtype.type(0)
        if out is not z:
            xp.copyto(out, z)
        if not self.nonnegative:
            xp.copyto(out, zero, where=self.mask)
        elif xp is np:
            np.minimum(out, zero, out=out, where=self.mask)
        else:
            xp.copyto(out, xp.minimum(out, zero), where=self.mask)

    def _conjugate(self, y: NDArray, factor: float) -> float:
        self._check(y)
        inside = y[self.mask]
        outside_domain = not bool((inside <= 0).all()) if self.nonnegative else bool(inside.any())
        return np.inf if outside_domain else 0.0
