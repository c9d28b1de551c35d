"""The tilt series of a simulated cell that the studies of sampling start from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..io.tilt_series import TiltSeries
from ..operators import SingleAxisProjector
from ..simulate import cell_phantom
from ..window import KaiserBessel

__all__ = ["simulated_cell"]


def simulated_cell(
    shape: Sequence[int],
    *,
    angles_deg: ArrayLike | None = None,
    pixel_size: float = 20.0,
    rng: int = 0,
) -> tuple[TiltSeries, NDArray]:
    """A series without noise of `cell_phantom`, and the truth that belongs to it.

    Parameters
    ----------
    shape : (nz, ny, nx)
    angles_deg : array_like, optional
        Tilts; by default -70 to 70 degrees in steps of 1, as in the thesis.
    pixel_size : float
        Angstrom; only written into the series.
    rng : int
        Of the cell.

    Notes
    -----
    The coefficients of a Kaiser-Bessel window with radius 2 and taper 10.8 are the phantom, the truth is the map that
    they stand for. Reconstruct with another window, (4, 19), which cannot copy it (Donati 2020, section 3.6.1).
    """
    shape = tuple(int(n) for n in shape)
    window = KaiserBessel(2.0, 10.8, 2)
    coefficients = cell_phantom(shape, rng=rng) / np.float32(window.fourier(0.0))
    angles = np.deg2rad(np.arange(-70.0, 71.0) if angles_deg is None else np.asarray(angles_deg, float))
    images = SingleAxisProjector(angles, window, shape)(coefficients)
    np.maximum(images, 0, out=images)  # the band limit leaves a ripple about zero
    truth = window.synthesize(coefficients)
    series = TiltSeries(
        images, angles, pixel_size, thickness=float(shape[0]), source=f"simulated cell {shape}, seed {rng}"
    )
    return series, truth
