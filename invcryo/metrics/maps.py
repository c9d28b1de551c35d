"""Figures that compare two maps or images in real space, and the radial average."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..grid import centred_coordinates

__all__ = ["correlation", "nrmse", "psnr", "radial_average"]


def radial_average(volume: ArrayLike) -> NDArray:
    """Mean over the real-space shells ``round(|r|) = 0, 1, ...`` about ``n // 2``, float64.

    The last shell is ``(min(shape) - 1) // 2``. These are the shells that the box holds whole; the corners
    are left out. Works on any number of axes.
    """
    volume = np.asarray(volume)
    last = (min(volume.shape) - 1) // 2
    shell = np.rint(np.sqrt(sum(c**2 for c in centred_coordinates(volume.shape)))).astype(np.intp)
    inside = shell <= last
    sums = np.bincount(shell[inside], weights=volume[inside], minlength=last + 1)
    return sums / np.bincount(shell[inside], minlength=last + 1)


def correlation(a: ArrayLike, b: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Pearson correlation of two arrays, each voxel weighted by ``mask`` (>= 0) where one is given."""
    a, b, weight = _weighted(a, b, mask)
    da = a - np.average(a, weights=weight)
    db = b - np.average(b, weights=weight)
    norm = np.sqrt(np.sum(weight * da**2) * np.sum(weight * db**2))
    if norm == 0:
        raise ValueError("one of the arrays is constant inside the mask: its correlation does not exist")
    return float(np.sum(weight * da * db) / norm)


def psnr(
    image: ArrayLike, reference: ArrayLike, *, data_range: float, mask: ArrayLike | None = None
) -> float:
    """Peak signal-to-noise ratio, ``20 log10(data_range / rms error)``, decibels; infinite for equal arrays.

    ``data_range`` is to be given, for instance ``reference.max() - reference.min()``: it shifts the figure,
    so figures compare only at the same range.
    """
    error = nrmse(image, reference, data_range=data_range, mask=mask)
    return float("inf") if error == 0 else float(-20 * np.log10(error))


def nrmse(
    image: ArrayLike, reference: ArrayLike, *, data_range: float, mask: ArrayLike | None = None
) -> float:
    """Root of the mean squared error over ``data_range``; ``mask``, where given, weighs the mean."""
    if not (np.isfinite(data_range) and data_range > 0):
        raise ValueError(f"data_range must be positive, got {data_range}")
    image, reference, weight = _weighted(image, reference, mask)
    return float(np.sqrt(np.average((image - reference) ** 2, weights=weight)) / data_range)


def _weighted(a: ArrayLike, b: ArrayLike, mask: ArrayLike | None) -> tuple[NDArray, NDArray, NDArray]:
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape:
        raise ValueError(f"the arrays differ in shape: {a.shape} and {b.shape}")
    weight = np.ones(a.shape) if mask is None else np.asarray(mask, dtype=float)
    if weight.shape != a.shape:
        raise ValueError(f"the mask has shape {weight.shape}, the arrays have {a.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all() and np.isfinite(weight).all()):
        raise ValueError("the arrays or the mask hold NaN or infinite values")
    if weight.min() < 0 or weight.sum() == 0:
        raise ValueError("the mask must not be negative nor empty")
    return a, b, weight
