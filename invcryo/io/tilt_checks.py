"""What the images of a tilt series say about its axis and contrast, against what is stated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .tilt_series import TiltSeries

__all__ = ["AxisFit", "contrast_score", "fit_axis", "line_moments", "suspicions"]

#: Longest side of the images that are looked at; larger ones are averaged down.
_SIDE = 96


def suspicions(series: TiltSeries) -> list[str]:
    """Doubts about a series, each a sentence with the value seen and the cure; none for a sound series."""
    doubts = []
    size = series.pixel_size
    if size is not None and not 0.05 <= size <= 100:
        doubts.append(
            f"a pixel size of {size:g} angstrom is unusual: angstrom and nm mixed up? (pixel_size=)"
        )
    if len(series) < 5:
        return [*doubts, f"only {len(series)} tilts: hardly a tomogram"]
    degrees = series.angles_deg
    same = len(degrees) - len(np.unique(np.round(degrees, 3)))
    if same:
        doubts.append(f"{same} tilts occur twice")
    if series.fraction < 0.5:
        return doubts  # too little to judge images by
    other = "x" if series.axis == "y" else "y"
    turn = np.pi / 2 if other == "x" else -np.pi / 2
    stated, swapped = (fit_axis(series, series.in_plane_angle + d).error for d in (0.0, turn))
    if swapped < 0.5 * stated:
        doubts.append(
            f"the axis looks like {other}, not {series.axis}: the moments of the images contradict it by {swapped:.3f},"
            f" and {series.axis} by {stated:.3f}; pass axis='{other}', and see estimate_axis for the angle"
        )
    score = contrast_score(series)
    if abs(score) > 0.5 and (score > 0) != (series.contrast == "bright"):
        seen = "bright" if score > 0 else "dark"
        doubts.append(
            f"the contrast looks {seen} (skewness of the images {score:+.2f}), but is stated as {series.contrast}: a"
            f" {'dark' if seen == 'bright' else 'bright'}-field image? pass contrast='{seen}'"
        )
    return doubts


def contrast_score(series: TiltSeries) -> float:
    """Median over tilts of the skewness of the smoothed images: matter that is sparse and bright gives > 0."""
    images, _ = _small(series)
    centred = images - images.mean(axis=(1, 2), keepdims=True)
    deviation = centred.std(axis=(1, 2))
    deviation[deviation == 0] = np.inf
    return float(np.median((centred**3).mean(axis=(1, 2)) / deviation**3))


@dataclass(frozen=True, eq=False)
class AxisFit:
    """How well an axis explains a series, by the moments of the matter along lines across it.

    Attributes
    ----------
    error : float
        What the moments contradict it by: 0 for a perfect axis, of order 1 for a wrong one.
    along, across : ndarray, (n,)
        Shifts of the images, pixels, that fit best: along the axis, and at right angles to it.
    """

    error: float
    along: NDArray
    across: NDArray


def fit_axis(series: TiltSeries, in_plane_angle: float) -> AxisFit:
    """Test an axis turned by ``in_plane_angle`` (radians).

    On a line across the axis the same matter is seen at every tilt (its sum is constant), and its centre of mass
    goes round the axis: its position times its mass is ``a cos t + b sin t``. These are the consistency conditions of
    order 0 and 1 (Helgason 1965, Ludwig 1966); shifts of the images are fitted along with them.
    """
    images, factor = _small(series)
    direction = in_plane_angle + (np.pi / 2 if series.axis == "y" else 0.0)  # of the axis, from x
    mass, moment = line_moments(images, direction)
    along = _alignment(mass)
    mass, moment = _moved(mass, -along), _moved(moment, -along)
    mean = mass.mean(axis=0)
    basis = np.linalg.qr(np.stack([np.cos(series.angles), np.sin(series.angles)], axis=1))[0]

    def rest(values: NDArray) -> NDArray:  # what no cosine and sine of the tilt explain
        return values - basis @ (basis.T @ values)

    energy = float(mean @ mean)
    if energy == 0:
        return AxisFit(1.0, along * factor, np.zeros(len(images)))
    left = rest(moment)
    across = left @ mean / energy
    left -= np.outer(across, mean)
    bins = np.arange(len(mean)) - len(mean) // 2
    weight = abs(mean) / abs(mean).sum()
    length = max(
        1.0, float(np.sqrt(weight @ (bins - weight @ bins) ** 2))
    )  # the size of the object along the axis
    order0 = float(((mass - mean) ** 2).sum()) / (len(mass) * energy)
    order1 = float((left**2).sum()) / (len(mass) * energy * length**2)
    return AxisFit(float(np.sqrt(order0 + order1)), along * factor, across * factor)


def line_moments(images: NDArray, direction: float) -> tuple[NDArray, NDArray]:
    """Sum and first moment over lines at right angles to ``direction`` (radians from x towards y).

    Two arrays (n, bins) with bins 1 pixel wide. Bin ``bins // 2`` belongs to the centre ``n // 2`` of the image; a
    pixel is shared out between two bins. The moment counts pixels from the centre to the right of ``direction``.
    """
    n, height, width = images.shape
    y, x = np.ogrid[-(height // 2) : height - height // 2, -(width // 2) : width - width // 2]
    cos, sin = np.cos(direction), np.sin(direction)
    bins = int(np.ceil(np.hypot(height, width))) + 3
    place = (x * cos + y * sin + bins // 2).ravel()
    across = (x * sin - y * cos).ravel()
    low = np.floor(place).astype(np.intp)
    part = place - low
    sums, moments = np.empty((n, bins)), np.empty((n, bins))
    for i, image in enumerate(images.reshape(n, -1)):
        for out, values in ((sums, image), (moments, across * image)):
            out[i] = np.bincount(low, (1 - part) * values, bins) + np.bincount(low + 1, part * values, bins)
    return sums, moments


def _alignment(sums: NDArray, rounds: int = 3) -> NDArray:
    """Shift of each row, pixels, that fits the mean of the rows best; their median is 0."""
    n, bins = sums.shape
    shifts = np.zeros(n)
    spectra = np.fft.rfft(sums - sums.mean(axis=1, keepdims=True), 2 * bins, axis=1)
    k = np.arange(spectra.shape[1])
    for _ in range(rounds):
        mean = (spectra * np.exp(1j * np.pi * k / bins * shifts[:, None])).mean(axis=0)
        shifts = _peak(np.fft.irfft(spectra * np.conj(mean), axis=1))
        shifts -= np.median(shifts)
    return shifts


def _moved(rows: NDArray, shifts: NDArray) -> NDArray:
    """Rows moved right by ``shifts`` pixels, by their Fourier transforms."""
    bins = rows.shape[1]
    k = np.arange(bins // 2 + 1)
    phase = np.exp(-2j * np.pi * k / bins * shifts[:, None])
    return np.fft.irfft(np.fft.rfft(rows, axis=1) * phase, bins, axis=1)


def _peak(correlations: NDArray) -> NDArray:
    """Position of the peak of each row, to a fraction of a pixel by a parabola through three samples."""
    n, length = correlations.shape
    best = correlations.argmax(axis=1)
    rows = np.arange(n)
    before, at, after = (correlations[rows, (best + d) % length] for d in (-1, 0, 1))
    curve = before - 2 * at + after
    part = np.where(curve < 0, 0.5 * (before - after) / np.where(curve < 0, curve, 1), 0.0)
    place = best + np.clip(part, -0.5, 0.5)
    return np.where(place > length / 2, place - length, place)


def _small(series: TiltSeries) -> tuple[NDArray, int]:
    """Images averaged down to `_SIDE`, minus their background (median of the border), unmeasured pixels filled."""
    images = series.images.astype(float)
    if series.mask is not None:
        known = series.mask
        mean = (images * known).sum(axis=(1, 2)) / known.sum(axis=(1, 2))
        images = np.where(known, images, mean[:, None, None])
    factor = max(1, -(-max(images.shape[1:]) // _SIDE)) | 1  # odd, so that a block has a middle pixel
    if factor > 1:
        images = _binned(_binned(images, factor, 1), factor, 2)
    border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1)
    return images - np.median(border, axis=1)[:, None, None], factor


def _binned(images: NDArray, factor: int, axis: int) -> NDArray:
    """Means over ``factor`` (odd) pixels along an axis, the middle one of which is centred on the pixel ``n // 2``."""
    n, half = images.shape[axis], factor // 2
    before = (n // 2 - half) // factor
    after = (n - n // 2 - half - 1) // factor
    before = min(before, after + 1)
    after = min(after, before)  # so that the middle of the short axis is its own n // 2
    start = n // 2 - half - factor * before
    count = before + 1 + after
    kept = np.moveaxis(images, axis, -1)[..., start : start + factor * count]
    return np.moveaxis(kept.reshape(*kept.shape[:-1], count, factor).mean(axis=-1), -1, axis)
