"""Figures of image quality in real space: structural similarity, and how far a missing wedge stretches."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["affine_grey_fit", "elongation", "expected_elongation", "ssim"]


def ssim(
    image: ArrayLike,
    reference: ArrayLike,
    *,
    data_range: float,
    sigma: float = 1.5,
    mask: ArrayLike | None = None,
) -> float:
    """Mean structural similarity of two images or volumes; 1 for equal ones.

    Parameters
    ----------
    image, reference : array_like
        Of equal shape, any number of axes; at least 11 pixels a side.
    data_range : float
        To be given, for instance ``reference.max() - reference.min()``: the figure depends on it.
    sigma : float
        Of the Gaussian window, pixels, which ends at 3.5 sigma.
    mask : array_like, optional
        Weighs the mean; a border of 3.5 sigma, where the window would leave the image, never counts.

    References
    ----------
    Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli, IEEE Trans. Image Process. 13(4), 2004, eq. 13, with
    K1 = 0.01 and K2 = 0.03.
    """
    from scipy.ndimage import gaussian_filter

    x, y = np.asarray(image, dtype=float), np.asarray(reference, dtype=float)
    if x.shape != y.shape:
        raise ValueError(f"the arrays differ in shape: {x.shape} and {y.shape}")
    if not (np.isfinite(data_range) and data_range > 0):
        raise ValueError(f"data_range must be positive, got {data_range}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("the arrays hold NaN or infinite values")
    border = int(3.5 * sigma + 0.5)
    if min(x.shape) <= 2 * border:
        raise ValueError(f"SSIM needs more than {2 * border} pixels a side, got shape {x.shape}")

    def mean(values: NDArray) -> NDArray:
        return gaussian_filter(values, sigma, truncate=3.5)

    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = ((2 * mx * my + c1) * (2 * vxy + c2)) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    inner = (slice(border, -border),) * x.ndim
    weights = None if mask is None else np.asarray(mask, dtype=float)[inner]
    return float(np.average(values[inner], weights=weights))


def affine_grey_fit(image: ArrayLike, reference: ArrayLike, mask: ArrayLike | None = None) -> NDArray:
    """``a image + b`` nearest to the reference in the mean square: for images in arbitrary units."""
    x, y = np.asarray(image, dtype=float), np.asarray(reference, dtype=float)
    w = np.ones(x.shape) if mask is None else np.asarray(mask, dtype=float)
    mx, my = np.average(x, weights=w), np.average(y, weights=w)
    variance = np.average((x - mx) ** 2, weights=w)
    a = np.average((x - mx) * (y - my), weights=w) / variance if variance > 0 else 0.0
    return a * (x - mx) + my


def elongation(
    volume: ArrayLike, *, across: int = 2, beam: int = 0, reference: ArrayLike | None = None
) -> float:
    """How far features are stretched along the beam: rms slope across it over rms slope along it.

    Parameters
    ----------
    volume : array_like, (z, y, x)
    across : int
        The array axis at right angles to the beam and to the tilt axis: 2 (x) for a tilt axis y.
    beam : int
        The array axis of the beam at tilt 0.
    reference : array_like, optional
        The truth, whose own ratio is divided out.

    Notes
    -----
    Slopes are derivatives in Fourier space: the ratio of the mean squares of two frequencies over the power of the
    volume. For an object without preferred direction whose frequencies within a missing wedge are zero it is
    `expected_elongation`; for a Gaussian, the ratio of its widths.
    """
    v = np.asarray(volume, dtype=float)
    power = abs(np.fft.rfftn(v - v.mean())) ** 2
    power[..., 1 : (v.shape[-1] + 1) // 2] *= 2  # the half spectrum holds these for their mirror images too
    squares = []
    for axis in (across, beam):
        f = np.fft.rfftfreq(v.shape[-1]) if axis in (v.ndim - 1, -1) else np.fft.fftfreq(v.shape[axis])
        other = tuple(i for i in range(v.ndim) if i != axis % v.ndim)
        squares.append(float(power.sum(axis=other) @ f**2))
    if squares[1] == 0:
        raise ValueError("the volume does not vary along the beam: its elongation is infinite")
    ratio = float(np.sqrt(squares[0] / squares[1]))
    return ratio if reference is None else ratio / elongation(reference, across=across, beam=beam)


def expected_elongation(limit_deg: float) -> float:
    """Elongation by a missing wedge: ``sqrt((a + sin a cos a) / (a - sin a cos a))``, tilts up to ``a``.

    References
    ----------
    M. Radermacher, W. Hoppe, Proc. 7th Eur. Congr. Electron Microsc. (1980): 1.55 for 60 degrees, 1.31 for 70.
    """
    if not 0 < limit_deg <= 90:
        raise ValueError(f"the tilt limit lies in (0, 90] degrees, got {limit_deg}")
    a = np.deg2rad(limit_deg)
    product = np.sin(a) * np.cos(a)
    return float(np.sqrt((a + product) / (a - product)))
