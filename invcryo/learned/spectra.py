"""Fourier voxels of a map and the images they are seen in: grids, shells, Friedel pairs, and what a grid does to a map.

A model's voxels are the half spectrum (n, n, n // 2 + 1) of a cube of side ``n = padding * box``, origin at index 0, of
which slices are taken by trilinear interpolation. Between samples of a spectrum, that is to multiply the density by
``sinc(r / n)^2`` along each axis, and to repeat it beyond the cube: see `VoxelGrid.window`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..backend import fft
from ..data import ParticleStack
from ..grid import centred_coordinates

__all__ = [
    "VoxelGrid",
    "image_spectra",
    "image_weights",
    "map_variance",
    "mirrored",
    "tie",
]


class VoxelGrid:
    """The Fourier voxels of a model.

    Attributes
    ----------
    box, padding : int
        Side of the images and maps; how much finer than theirs the spectrum is sampled.
    n : int
        ``padding * box``.
    shape : (n, n, n // 2 + 1)
    shells : ndarray of int, shape
        Fourier shell of each voxel in units of the images, at most ``box // 2``: corners count as the last one.
    inside : ndarray of bool, shape
        Where shells are not cut off.
    multiplicity : ndarray of float, shape
        Independent coefficients that a stored one stands for: 1, and 1/2 in planes that hold both Friedel mates.
    """

    def __init__(self, box: int, padding: int) -> None:
        if box < 4 or padding < 1 or int(padding) != padding:
            raise ValueError(f"voxels need a box of 4 or more and a whole padding, got {box} and {padding}")
        self.box, self.padding, self.n = int(box), int(padding), int(box) * int(padding)
        n = self.n
        self.shape = (n, n, n // 2 + 1)
        k, x = np.fft.fftfreq(n, 1 / n) / padding, np.fft.rfftfreq(n, 1 / n) / padding
        fine = np.rint(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + x**2)).astype(np.int32)
        self.inside = fine <= box // 2
        self.shells = np.minimum(fine, box // 2)
        self.multiplicity = np.ones(self.shape, np.float32)
        for plane in self.planes:
            self.multiplicity[..., plane] = 0.5

    @property
    def radius(self) -> float:
        """Where slices end, in samples of an image."""
        return min(self.box / 2, (self.n // 2) / self.padding)

    @property
    def planes(self) -> tuple[int, ...]:
        """Planes of constant k_x that hold both mates of each pair."""
        return (0,) if self.n % 2 else (0, self.n // 2)

    def window(self) -> NDArray:
        """What trilinear slices multiply a density in the box by, (box, box, box)."""
        line = self.line()
        return line[:, None, None] * line[:, None] * line

    def line(self) -> NDArray:
        """One axis of `window`."""
        return np.sinc(centred_coordinates((self.box,))[0] / self.n) ** 2

    def spectrum(self, volume: NDArray) -> NDArray:
        """Voxels whose trilinear slices are the projections of a map."""
        n, box = self.n, self.box
        whole = np.zeros((n, n, n), volume.dtype)
        start = n // 2 - box // 2
        whole[(slice(start, start + box),) * 3] = volume / self.window().astype(volume.dtype)
        return fft(whole).rfftn(np.fft.ifftshift(whole))

    def volume(self, spectrum: NDArray) -> NDArray:
        """The map whose projections trilinear slices of voxels are."""
        n, box = self.n, self.box
        whole = np.fft.fftshift(fft(spectrum).irfftn(spectrum, (n, n, n)))
        start = n // 2 - box // 2
        return whole[(slice(start, start + box),) * 3] * self.window().astype(whole.dtype)

    def mean_of_shells(self, values: NDArray) -> NDArray:
        """Mean of a real array over the independent voxels of each shell, (box // 2 + 1,) float64."""
        weight = np.where(self.inside, self.multiplicity, 0).ravel()
        length = self.box // 2 + 1
        flat = self.shells.ravel()
        total = np.bincount(flat, weight, length)
        return np.bincount(flat, weight * values.ravel(), length) / total


def mirrored(plane: NDArray) -> NDArray:
    """The Friedel mates of the samples of a plane, in their places: ``conj(plane[-y, -x])``."""
    return np.roll(plane[::-1, ::-1], 1, (0, 1)).conj()


def tie(values: NDArray, grid: VoxelGrid) -> NDArray:
    """Add to each value that of its stored mate, in place: the derivative where the two are one parameter."""
    for plane in grid.planes:
        values[..., plane] += mirrored(values[..., plane])
    return values


def image_spectra(stack: ParticleStack, index: NDArray, images: NDArray | None = None) -> NDArray:
    """Half spectra (len(index), box, box // 2 + 1) of images about their centres, shifts undone.

    They are divided by ``box``, so that white noise has the variance of a pixel.
    """
    images = np.asarray(stack.images[index]) if images is None else images
    box = stack.box
    spectra = fft(images).rfft2(np.fft.ifftshift(images, axes=(1, 2))) / images.dtype.type(box)
    assert stack.poses is not None
    shifts = stack.poses.shifts[index]
    if shifts.any():
        ky, kx = np.fft.fftfreq(box), np.fft.rfftfreq(box)
        phase = shifts[:, 1, None, None] * ky[:, None] + shifts[:, 0, None, None] * kx
        spectra *= np.exp(2j * np.pi * phase).astype(spectra.dtype)
    return spectra


def image_weights(grid: VoxelGrid) -> tuple[NDArray, NDArray]:
    """(weights, shells) of the samples of a half spectrum of an image, (box, box // 2 + 1) each.

    Weights are the independent coefficients that a sample stands for: 1, 1/2 where its mate is stored too, 0 where
    slices end.
    """
    box = grid.box
    ky, kx = np.fft.fftfreq(box, 1 / box)[:, None], np.fft.rfftfreq(box, 1 / box)
    radius = np.hypot(ky, kx)
    weights = np.where(radius < grid.radius, 1.0, 0.0)
    weights[:, 0] *= 0.5
    return weights, np.minimum(np.rint(radius), box // 2).astype(np.int32)


def map_variance(variance: NDArray, grid: VoxelGrid) -> NDArray:
    """``E |M - mean|^2`` of the half spectrum of the map of independent voxels with these variances.

    Voxels that are independent make a stationary field, whose covariance is the inverse transform of the variances;
    the map is that field times `VoxelGrid.window`. Its coefficients have the transform of the product of that
    covariance with the window's own autocorrelation.
    """
    n, box = grid.n, grid.box
    covariance = fft(variance).irfftn(variance.astype(np.float64), (n, n, n)) / n**3
    line = grid.line()
    lags = np.arange(1 - box, box)
    auto = np.correlate(line, line, "full")
    fold = np.zeros((box, n))
    np.add.at(fold, (lags % box, lags % n), auto)
    for axis in range(3):
        covariance = np.moveaxis(np.tensordot(fold, covariance, (1, axis)), 0, axis)
    return np.maximum(fft(covariance).rfftn(covariance).real, 0)
