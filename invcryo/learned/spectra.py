"""Fourier voxels of a map and the images they are seen in: grids, shells, Friedel pairs, and what a grid does to a map.

A model's voxels are a half spectrum (m, m, m // 2 + 1), origin at index 0, that of a map of side m, its field. Slices
are trilinear, of a spectrum of side n. Between samples of a spectrum, that is to multiply the density by
``sinc(r / n)^2`` along each axis, and to repeat it beyond the cube: see `VoxelGrid.window`. With n = m the voxels
themselves are those samples, and the window is on the map; with n = 2 m or more the map is divided by it and
padded with zeros before slices are taken.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..autograd import Var, ops
from ..autograd.slices import volume_spectrum
from ..backend import fft
from ..data import ParticleStack
from ..grid import centred_coordinates
from ..operators import ZeroPad

__all__ = [
    "VoxelGrid",
    "image_spectra",
    "image_weights",
    "map_variance",
    "mirrored",
    "planes",
    "tie",
]


class VoxelGrid:
    """The Fourier voxels of a model.

    Attributes
    ----------
    box : int
        Side of the images.
    field : int
        Side of the map that the voxels are of, in pixels of the images: ``box`` or less.
    padding : int
        How much finer than the field's the spectrum is sampled that slices are taken of: 1 of the voxels themselves.
    n : int
        Side of that spectrum, ``padding * field``.
    shape : (field, field, field // 2 + 1)
    shells : ndarray of int, shape
        Fourier shell of each voxel in units of the field, at most ``field // 2``: corners count as the last one.
    inside : ndarray of bool, shape
        Where shells are not cut off.
    multiplicity : ndarray of float, shape
        Independent coefficients that a stored one stands for: 1, and 1/2 in planes that hold both Friedel mates.
    """

    def __init__(self, box: int, padding: int, field: int | None = None) -> None:
        field = box if field is None else field
        if not 4 <= field <= box or padding < 1 or int(padding) != padding:
            raise ValueError(
                f"voxels need a field of 4 to {box} pixels, the box, and a whole padding: got {field} and {padding}"
            )
        if padding == 1 and field != box:
            raise ValueError("a field smaller than the box needs a padding of 2 or more")
        self.box, self.padding, self.field = int(box), int(padding), int(field)
        self.n = self.padding * self.field
        m = self.field
        self.shape = (m, m, m // 2 + 1)
        k, x = np.fft.fftfreq(m, 1 / m), np.fft.rfftfreq(m, 1 / m)
        fine = np.rint(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + x**2)).astype(np.int32)
        self.inside = fine <= m // 2
        self.shells = np.minimum(fine, m // 2)
        self.multiplicity = np.ones(self.shape, np.float32)
        for plane in planes(m):
            self.multiplicity[..., plane] = 0.5

    @property
    def step(self) -> float:
        """Samples of the sliced spectrum for one of an image."""
        return self.n / self.box

    @property
    def radius(self) -> float:
        """Where slices end, in samples of an image."""
        return min(self.box / 2, (self.n // 2) / self.step)

    def window(self) -> NDArray:
        """What trilinear slices multiply a density in the field by, (field, field, field)."""
        line = self.line()
        return line[:, None, None] * line[:, None] * line

    def line(self) -> NDArray:
        """One axis of `window`."""
        return np.sinc(centred_coordinates((self.field,))[0] / self.n) ** 2

    def within(self, volume: NDArray) -> NDArray:
        """The part of a map that lies in the field; it has the side of the box, or of the field."""
        start = volume.shape[0] // 2 - self.field // 2
        return volume[(slice(start, start + self.field),) * 3]

    def sliced(self, volume: NDArray) -> NDArray:
        """The half spectrum of side n whose trilinear slices are the projections of a map."""
        part = self.within(volume) / self.window().astype(volume.dtype)
        whole = ZeroPad(part.shape, (self.n,) * 3, part.dtype)(part)
        return fft(whole).rfftn(np.fft.ifftshift(whole))

    def sliced_of(self, voxels: Var) -> Var:
        """`sliced` of the map of some voxels."""
        if self.padding == 1:
            return voxels
        density = ops.fftshift(ops.irfftn(voxels, (self.field,) * 3, (0, 1, 2)), (0, 1, 2))
        window = self.window().astype(density.dtype)
        return volume_spectrum(ops.scale(density, 1 / window), self.n)

    def gathered(self, spectrum: NDArray) -> NDArray:
        """The adjoint of `sliced_of`, of a half spectrum that is tied."""
        if self.padding == 1:
            return spectrum
        n = self.n
        whole = np.fft.fftshift(fft(spectrum).irfftn(spectrum, (n, n, n)))
        density = np.fft.ifftshift(self.within(whole) / self.window())
        return self.padding**3 * fft(density).rfftn(density)

    def gathered_weights(self, sums: NDArray) -> NDArray:
        """Diagonal of what `gathered` makes of the weights ``sums`` of samples, tied, of a spectrum of side n.

        Samples anywhere have the transform ``sums`` has, over the window of its trilinear gridding; the square of the
        interpolation from voxels has that of the autocorrelation of the field.
        """
        n, field = self.n, self.field
        lags = np.arange(1 - field, field)
        auto = (field - np.abs(lags)) / np.sinc(lags / n) ** 2
        lagged = fft(sums).irfftn(sums, (n, n, n))
        weights = _folded(lagged, lags, auto, field)
        return self.padding**3 / field**3 * fft(weights).rfftn(weights).real

    def voxels(self, volume: NDArray) -> NDArray:
        """Voxels of a map."""
        if self.padding == 1:
            return self.sliced(volume)
        part = np.fft.ifftshift(self.within(volume))
        return fft(part).rfftn(part)

    def volume(self, voxels: NDArray) -> NDArray:
        """The map of some voxels, (field, field, field)."""
        found = np.fft.fftshift(fft(voxels).irfftn(voxels, (self.field,) * 3))
        return found * self.window().astype(found.dtype) if self.padding == 1 else found

    def mean_of_shells(self, values: NDArray) -> NDArray:
        """Mean of a real array over the independent voxels of each shell, (field // 2 + 1,) float64."""
        weight = np.where(self.inside, self.multiplicity, 0).ravel()
        length = self.field // 2 + 1
        flat = self.shells.ravel()
        total = np.bincount(flat, weight, length)
        return np.bincount(flat, weight * values.ravel(), length) / total


def mirrored(plane: NDArray) -> NDArray:
    """The Friedel mates of the samples of a plane, in their places: ``conj(plane[-y, -x])``."""
    return np.roll(plane[::-1, ::-1], 1, (0, 1)).conj()


def planes(n: int) -> tuple[int, ...]:
    """Planes of constant k_x of a half spectrum of side n that hold both mates of each pair."""
    return (0,) if n % 2 else (0, n // 2)


def tie(values: NDArray) -> NDArray:
    """Add to each value that of its stored mate, in place: the derivative where the two are one parameter."""
    for plane in planes(values.shape[0]):
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

    Voxels that are independent make a stationary field, whose covariance is the inverse transform of the variances.
    With a padding of 1 the map is that field times `VoxelGrid.window`: its coefficients have the transform of the
    product of that covariance with the window's own autocorrelation.
    """
    if grid.padding > 1:
        return variance
    n = grid.n
    covariance = fft(variance).irfftn(variance.astype(np.float64), (n, n, n)) / n**3
    line = grid.line()
    covariance = _folded(covariance, np.arange(1 - n, n), np.correlate(line, line, "full"), n)
    return np.maximum(fft(covariance).rfftn(covariance).real, 0)


def _folded(values: NDArray, lags: NDArray, factors: NDArray, size: int) -> NDArray:
    """Values at lags modulo their side, times factors along each axis, added up modulo another side."""
    fold = np.zeros((size, values.shape[0]))
    np.add.at(fold, (lags % size, lags % values.shape[0]), factors)
    for axis in range(3):
        values = np.moveaxis(np.tensordot(fold, values, (1, axis)), 0, axis)
    return values
