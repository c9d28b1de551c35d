"""The inputs that every engine gets: made from a seed by NumPy alone, so that each process makes the same ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Angstrom per pixel, kilovolts, millimetres, fraction: a common microscope.
PIXEL_SIZE, VOLTAGE_KV, CS_MM, AMPLITUDE_CONTRAST = 1.5, 300.0, 2.7, 0.1


@dataclass(frozen=True)
class Problem:
    """Random views of a random volume.

    Attributes
    ----------
    matrices : (views, 3, 3), float64
        A point r = (x, y, z) is seen at ``(matrices[p] @ r)[:2]``.
    volume : (size, size, size)
        Noise smoothed by a Gaussian of one voxel, zero outside the ball of radius ``0.4 * size`` about
        ``size // 2``.
    images : (views, size, size)
        White noise.
    defocus_u, defocus_v, defocus_angle : (views,)
        Angstrom, angstrom, radians; different for every view.
    """

    matrices: NDArray
    volume: NDArray
    images: NDArray
    defocus_u: NDArray
    defocus_v: NDArray
    defocus_angle: NDArray

    @property
    def size(self) -> int:
        return len(self.volume)


def make_problem(size: int, views: int, dtype: str = "float32") -> Problem:
    rng = np.random.default_rng(20261121)
    w, x, y, z = (q := rng.standard_normal((views, 4))).T / np.linalg.norm(q, axis=1)
    matrices = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    mean = rng.uniform(8e3, 2e4, views)
    half = rng.uniform(0, 200.0, views)
    angle = rng.uniform(0, np.pi, views)
    volume = rng.standard_normal((size, size, size))
    w2 = (2 * np.pi * np.fft.fftfreq(size)) ** 2
    envelope = np.exp(-0.5 * (w2[:, None, None] + w2[:, None] + w2[: size // 2 + 1]))
    volume = np.fft.irfftn(np.fft.rfftn(volume) * envelope, s=volume.shape, axes=(0, 1, 2))
    axis = np.arange(size) - size // 2
    volume[axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2 > (0.4 * size) ** 2] = 0
    images = rng.standard_normal((views, size, size), dtype=np.float32)
    return Problem(
        np.ascontiguousarray(np.moveaxis(matrices, 2, 0)),
        volume.astype(dtype),
        images.astype(dtype),
        mean + half,
        mean - half,
        angle,
    )
