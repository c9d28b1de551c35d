"""From what a detector counts to line integrals: matter bright, nothing at zero."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..io.tilt_series import TiltSeries

__all__ = ["line_integrals"]


def line_integrals(
    series: TiltSeries, *, background: float | str = "border", logarithm: bool = False
) -> TiltSeries:
    """The series with its background at 0 and matter bright, as a projector makes it; ``notes`` say what was done.

    Parameters
    ----------
    series : TiltSeries
    background : "border" or float
        What is counted where there is no matter: a number, or the median of the outermost measured pixels of each
        image. The border must be empty for that: of a slab that fills the field give the number.
    logarithm : bool
        For a bright field: ``log(background / image)``, where the image is positive, by the law of Beer and Lambert;
        else the difference.
    """
    images = series.images
    level: NDArray | float
    if isinstance(background, str):
        if background != "border":
            raise ValueError(f"background is 'border' or a number, got {background!r}")
        level = _border(series)[:, None, None]
        said = f"median of the border, {float(np.median(level)):.4g}"
    else:
        level = float(background)
        if not np.isfinite(level):
            raise ValueError(f"background must be finite, got {background}")
        said = f"{level:.4g}"
    if logarithm:
        if series.contrast != "dark":
            raise ValueError(f"{series.source}: a logarithm is for contrast 'dark', a bright field")
        lowest = float(images[series.measured].min())
        if lowest <= 0 or np.min(level) <= 0:
            raise ValueError(
                f"{series.source}: the logarithm needs positive counts, the lowest is {lowest:g} and the background"
                f" {np.min(level):g}"
            )
        out = np.log(level / np.where(series.measured, images, level))
    else:
        out = images - level if series.contrast == "bright" else level - images
    out = np.where(series.measured, out, 0).astype(images.dtype)
    note = f"background ({said}) taken off" + (", by logarithm" if logarithm else "")
    if series.contrast == "dark":
        note += "; matter made bright"
    return series.replace(images=out, contrast="bright", note=note)


def _border(series: TiltSeries) -> NDArray:
    """Median over the outermost twentieth of each image, of the pixels that were measured."""
    n, height, width = series.images.shape
    edge = max(1, round(0.05 * min(height, width)))
    frame = np.ones((height, width), bool)
    frame[edge:-edge, edge:-edge] = False
    levels = np.empty(n)
    for i in range(n):
        known = frame & series.measured[i]
        if not known.any():
            raise ValueError(
                f"{series.source}: no pixel at the border of image {i} is measured; give background="
            )
        levels[i] = np.median(series.images[i][known])
    return levels
