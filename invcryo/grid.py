"""Coordinates of voxels and of Fourier samples. Arrays are (z, y, x); the origin is index ``n // 2``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["centred_coordinates", "frequencies", "shell_index"]


def centred_coordinates(shape: Sequence[int]) -> tuple[NDArray, ...]:
    """Coordinates in voxels from the centre ``n // 2``, one open-mesh array per axis, float64.

    For ``shape = (4, 5)`` these are ``[[-2], [-1], [0], [1]]`` and ``[[-2, -1, 0, 1, 2]]``; they broadcast
    to ``shape`` and take no more memory than its sides.
    """
    return _open_mesh([np.arange(n, dtype=float) - n // 2 for n in shape])


def frequencies(shape: Sequence[int], half: bool = False) -> tuple[NDArray, ...]:
    """Frequencies in cycles/pixel in the order of the FFT, one open-mesh array per axis, float64.

    Parameters
    ----------
    shape : sequence of int
        Shape in real space.
    half : bool
        Whether the last axis is that of a real transform (``rfftn``), ``n // 2 + 1`` samples from 0 to 1/2.
    """
    axes = [np.fft.fftfreq(n) for n in shape]
    if half:
        axes[-1] = np.fft.rfftfreq(shape[-1])
    return _open_mesh(axes)


def shell_index(shape: Sequence[int], half: bool = True, rows: slice | None = None) -> NDArray:
    """Index of the Fourier shell of each sample, in the order of the FFT, int32.

    For a cube of side n this is ``round(|k|)`` with k in Fourier voxels (``1 / n`` cycles/pixel), the shells
    of RELION. A box that is not cubic has Fourier voxels of unequal sides: its shells are spheres in
    frequency all the same, ``round(|f| * max(shape))`` with f in cycles/pixel, so the unit is the finest
    Fourier voxel, and thin shells may hold few samples or none. Corners beyond Nyquist get indices above
    ``max(shape) // 2``.

    Parameters
    ----------
    shape : sequence of int
        Shape in real space.
    half : bool
        Index the half-spectrum of ``rfftn`` rather than the full one.
    rows : slice, optional
        Only these entries of the first axis, to walk through a large spectrum in parts.
    """
    unit = max(shape)
    squared = np.zeros((1,) * len(shape))
    for axis, (n, f) in enumerate(zip(shape, frequencies(shape, half), strict=True)):
        if axis == 0 and rows is not None:
            f = f[rows]
        # rint gives back the integer of a cube exactly; other boxes keep their fractional units
        squared = squared + (np.rint(f * n) * (unit / n)) ** 2
    return np.rint(np.sqrt(squared)).astype(np.int32)


def _open_mesh(axes: Sequence[NDArray]) -> tuple[NDArray, ...]:
    return tuple(axis.reshape((1,) * i + (-1,) + (1,) * (len(axes) - 1 - i)) for i, axis in enumerate(axes))
