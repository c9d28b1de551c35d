"""The inputs that every engine gets: made from a seed by NumPy alone, so that each process makes the same ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Angstrom per pixel, kilovolts, millimetres, fraction: a common microscope.
PIXEL_SIZE, VOLTAGE_KV, CS_MM, AMPLITUDE_CONTRAST = 1.5, 300.0, 2.7, 0.1

#: Threshold of the lengths of gradients in `tv`: about half of them are set to zero.
TV_THRESHOLD = 0.2


@dataclass(frozen=True)
class Problem:
    """Views of a random volume.

    Attributes
    ----------
    matrices : (views, 3, 3), float64
        A point r = (x, y, z) is seen at ``(matrices[p] @ r)[:2]``.
    volume : (size, size, size)
        Noise smoothed by a Gaussian of one voxel, zero outside the ball of radius ``0.4 * size`` about
        ``size // 2``. In `tilt` (size, 2 size, 2 size), and smoothed by a Gaussian of two voxels.
    images : (views, size, size)
        White noise. In `tilt` (views, 2 size, 2 size), and smooth.
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


def make_problem(case: str, size: int, views: int, dtype: str = "float32") -> Problem:
    rng = np.random.default_rng(20261121)
    matrices = _matrices(rng.standard_normal((views, 4)))
    mean = rng.uniform(8e3, 2e4, views)
    half = rng.uniform(0, 200.0, views)
    angle = rng.uniform(0, np.pi, views)
    if case == "tilt":
        tilt = np.deg2rad(np.linspace(-60, 60, views))
        matrices = _matrices(np.stack([np.cos(tilt / 2), 0 * tilt, np.sin(tilt / 2), 0 * tilt], axis=1))
        volume = _smooth(rng, (size, 2 * size, 2 * size), 2.0)
        images = np.stack([_smooth(rng, (2 * size, 2 * size), 2.0) for _ in range(views)])
    else:
        volume = _smooth(rng, (size, size, size), 1.0)
        images = rng.standard_normal((views, size, size), dtype=np.float32)
    volume[~_ball(volume.shape)] = 0
    return Problem(matrices, volume.astype(dtype), images.astype(dtype), mean + half, mean - half, angle)


def tilt_answer(images: NDArray, volume: NDArray) -> NDArray:
    """Projections and backprojection as one vector, with about equal weights.

    The backprojection counts where the ball of the volume is: outside, images that are periodic and images that are
    not differ.
    """
    return np.concatenate([images.ravel(), volume[_ball(volume.shape)] * (20 / len(images)) ** 0.5])


def _matrices(quaternions: NDArray) -> NDArray:
    w, x, y, z = quaternions.T / np.linalg.norm(quaternions, axis=1)
    matrices = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    return np.ascontiguousarray(np.moveaxis(matrices, 2, 0))


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], width: float) -> NDArray:
    """White noise after a Gaussian of so many voxels."""
    spectrum = np.fft.rfftn(rng.standard_normal(shape))
    for axis, n in enumerate(shape):
        w = 2 * np.pi * np.fft.fftfreq(n)[: spectrum.shape[axis]]
        spectrum *= np.exp(-0.5 * (width * w) ** 2).reshape((-1,) + (1,) * (len(shape) - 1 - axis))
    return np.fft.irfftn(spectrum, s=shape, axes=range(len(shape)))


def _ball(shape: tuple[int, ...]) -> NDArray:
    axes = np.ogrid[tuple(slice(-(n // 2), n - n // 2) for n in shape)]
    return np.asarray(sum(a**2 for a in axes) <= (0.4 * min(shape)) ** 2)
