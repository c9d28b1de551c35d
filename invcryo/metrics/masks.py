"""Soft masks, in [0, 1], float32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft, ndimage

from ..grid import centred_coordinates, frequencies

__all__ = ["automatic_threshold", "soft_mask", "soft_sphere"]


def soft_sphere(shape: Sequence[int], radius: float, edge: float = 6.0) -> NDArray:
    """Ball (disc in 2-D) about ``n // 2``: 1 up to ``radius``, a raised cosine over ``edge`` pixels, then 0.

    Parameters
    ----------
    shape : sequence of int
    radius, edge : float
        In pixels; ``edge=0`` gives a binary mask.

    Returns
    -------
    ndarray, ``shape``, float32
    """
    if radius < 0 or edge < 0:
        raise ValueError(f"radius and edge must not be negative, got {radius} and {edge} pixels")
    distance = np.sqrt(sum(c**2 for c in centred_coordinates(shape)))
    return _raised_cosine(distance - radius, edge)


def soft_mask(
    volume: ArrayLike,
    threshold: float,
    *,
    pixel_size: float,
    lowpass: float | None = 15.0,
    extend: float = 3.0,
    edge: float = 6.0,
) -> NDArray:
    """Mask of a map by threshold, extension and a raised-cosine edge, as `relion_mask_create` makes it.

    The map is low-passed, voxels at or above ``threshold`` are set, the set grows by all voxels closer than
    ``extend`` pixels to it (a voxel at ``extend`` exactly stays out, as in RELION), and falls off as
    ``(1 + cos(pi d / edge)) / 2`` at distance ``d`` from the grown set.

    Parameters
    ----------
    volume : array_like
        Density, protein bright; any number of axes.
    threshold : float
        In the units of the map.
    pixel_size : float
        Angstrom per pixel.
    lowpass : float or None
        Resolution of the low-pass filter in angstrom, with RELION's cosine edge of 2 shells; None to skip it.
    extend, edge : float
        In pixels.

    Returns
    -------
    ndarray, float32
    """
    volume = np.asarray(volume)
    if not np.isfinite(volume).all():
        raise ValueError("the volume holds NaN or infinite values")
    if not pixel_size > 0:
        raise ValueError(f"pixel size must be positive angstrom, got {pixel_size}")
    if extend < 0 or edge < 0:
        raise ValueError(f"extend and edge must not be negative, got {extend} and {edge} pixels")
    if lowpass is not None:
        volume = _lowpassed(volume, lowpass, pixel_size)
    inside = volume >= threshold
    if not inside.any():
        raise ValueError(
            f"no voxel reaches the threshold {threshold:g}: the largest value is {volume.max():g}"
            f"{'' if lowpass is None else f' after the low-pass at {lowpass:g} angstrom'}; lower it"
        )
    if extend > 0:
        inside = ndimage.distance_transform_edt(~inside) < extend
    return _raised_cosine(ndimage.distance_transform_edt(~inside), edge)


def automatic_threshold(volume: ArrayLike, *, pixel_size: float, lowpass: float | None = 15.0) -> float:
    """Density that parts particle from solvent, for `soft_mask`, by Otsu's rule on the low-passed map.

    The rule takes the threshold that leaves the least variance within the two classes. It needs a particle
    that stands out from the noise after the low-pass and fills some percent of the box; look at the mask.

    Parameters
    ----------
    volume, pixel_size, lowpass
        As for `soft_mask`.
    """
    volume = np.asarray(volume)
    if not np.isfinite(volume).all():
        raise ValueError("the volume holds NaN or infinite values")
    if volume.size == 0 or volume.min() == volume.max():
        raise ValueError("the volume is constant: no threshold parts it")
    if not pixel_size > 0:
        raise ValueError(f"pixel size must be positive angstrom, got {pixel_size}")
    if lowpass is not None:
        volume = _lowpassed(volume, lowpass, pixel_size)
    counts, edges = np.histogram(volume, bins=512)
    below = np.cumsum(counts)[:-1].astype(float)
    moment = np.cumsum(counts * 0.5 * (edges[1:] + edges[:-1]))
    total = float(counts.sum())
    # between-class variance of a split at each inner edge; no class is empty, the ends of the range are taken
    between = (moment[-1] * below / total - moment[:-1]) ** 2 / (below * (total - below))
    return float(edges[1 + int(np.argmax(between))])


def _raised_cosine(distance: NDArray, edge: float) -> NDArray:
    """1 at ``distance <= 0``, 0 at ``distance >= edge``, half a period of a cosine between."""
    if edge == 0:
        return (distance <= 0).astype(np.float32)
    return (0.5 + 0.5 * np.cos(np.pi * np.clip(distance / edge, 0.0, 1.0))).astype(np.float32)


def lowpass_weight(radius: NDArray, resolution: float, *, box: int, pixel_size: float) -> NDArray:
    """Low-pass with a cosine edge of 2 shells about the shell of ``resolution`` (angstrom), as RELION.

    Parameters
    ----------
    radius : ndarray
        Frequencies, cycles/pixel.
    """
    if resolution < 2 * pixel_size:
        raise ValueError(
            f"low-pass at {resolution:g} angstrom lies beyond Nyquist, {2 * pixel_size:g} angstrom at a pixel"
            f" size of {pixel_size:g}; check pixel_size, or pass lowpass=None"
        )
    cutoff = np.rint(box * pixel_size / resolution) / box  # cycles/pixel
    return _raised_cosine(radius - (cutoff - 1 / box), 2 / box)


def _lowpassed(volume: NDArray, resolution: float, pixel_size: float) -> NDArray:
    radius = np.sqrt(sum(f**2 for f in frequencies(volume.shape, half=True)))
    weight = lowpass_weight(radius, resolution, box=max(volume.shape), pixel_size=pixel_size)
    return fft.irfftn(fft.rfftn(volume) * weight, s=volume.shape)
