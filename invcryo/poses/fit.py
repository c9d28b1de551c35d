"""How well images fit a map at given poses, with derivatives in the poses.

Everything happens on central slices: ``O(m)`` per image for ``m`` frequencies in use (Donati 2020, section 4.2, in
Fourier space). A pose changes by a small rotation on the left, ``R -> exp([d]x) R``: about the axes of the image, so
that ``d[2]`` turns the image in its plane, and by a shift ``t -> t + e`` along x and y of the image. The five unknowns
are ``(d_x, d_y, d_z, e_x, e_y)``, radians and pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from ..data import Poses
from ..operators import ImageFilter, Projector
from ..operators.nufft import GridReader
from ..window import KaiserBessel, Window

__all__ = ["Derivatives", "PoseFit", "moved"]


def moved(poses: Poses, step: NDArray) -> Poses:
    """Poses after steps (n, 5): ``exp([d]x) R`` and ``t + e``."""
    step = np.asarray(step, float)
    turns = Rotation.from_rotvec(step[:, :3]).as_matrix()
    return Poses(turns @ poses.matrices, poses.shifts + step[:, 3:])


def assembled(sums: NDArray, amplitudes: NDArray) -> tuple[NDArray, NDArray]:
    """Gradient (k, 5) and Gauss-Newton matrix (k, 5, 5) of the cost from the sums of `PoseFit.sums`."""
    a = amplitudes[:, None]
    gradient = -a * sums[:, 2:7]
    gradient[:, :3] += a * a * sums[:, 7:10]
    hessian = np.empty((len(sums), 5, 5))
    i, j = np.triu_indices(5)
    hessian[:, i, j] = hessian[:, j, i] = a * a * sums[:, 10:]
    return gradient, hessian


@dataclass(frozen=True, eq=False)
class Derivatives:
    """The cost of k poses and what a Newton-like step needs of it.

    Attributes
    ----------
    cost : ndarray, (k,)
    gradient : ndarray, (k, 5)
        In (d_x, d_y, d_z, e_x, e_y).
    hessian : ndarray, (k, 5, 5)
        Gauss-Newton: ``J^T W J``.
    overlap, power : ndarray, (k,)
        ``<y, H c>_W`` and ``|H c|^2_W`` at an amplitude of 1: their ratio is the best amplitude.
    """

    cost: NDArray
    gradient: NDArray
    hessian: NDArray
    overlap: NDArray
    power: NDArray


class PoseFit:
    """``J_p(R, t) = |a_p F_p H(R, t) c - y_p|^2_W / 2`` of each image p, as a function of its pose.

    Parameters
    ----------
    coefficients : ndarray (nz, ny, nx), or GridReader
        ``c``. A `GridReader` of them is made once and may serve several sets of images; float32 or float64 decides
        the precision of all.
    images : ndarray, (n, height, width)
        ``y``.
    window : Window, optional
        Basis function of the coefficients; default `KaiserBessel()`.
    filters : ImageFilter, optional
        ``F``: the CTF of each image.
    weights : array_like (shells,), optional
        ``W``, by shell: entry i at ``i / max(height, width)`` cycles per pixel, linear between, the last value beyond.
        With one over the variance of a pixel's noise the cost is minus a log-likelihood.
    cutoff : float
        Frequencies up to this fraction of the Nyquist frequency are used; others cost nothing.
    scale : float
        Pixels per coefficient.
    amplitudes : array_like (n,), optional
        ``a``; default 1.

    Attributes
    ----------
    reader : GridReader
    projector : Projector
        Of as many views, whose poses do not matter; its ``frequencies`` are those in use.
    data, power : ndarray, (n, m) and (1 or n, m)
        The images after ``(F H)^H W``, but for poses, and ``(F H)^H W (F H)``: see `Projector.matched`.
    energy : ndarray, (n,)
        ``|y|^2_W``.
    amplitudes : ndarray, (n,)

    Notes
    -----
    Only frequencies in use count, of the images too: without weights and at a cutoff beyond the corners, the cost
    is half the sum of the squared residuals over pixels, less what the images hold at the Nyquist frequency of even
    sides.

    Methods take `Poses`, one for each image, or for the images of ``index``, which may name an image several times.
    """

    def __init__(
        self,
        coefficients: NDArray | GridReader,
        images: NDArray,
        *,
        window: Window | None = None,
        filters: ImageFilter | None = None,
        weights: ArrayLike | None = None,
        cutoff: float | None = 1.0,
        scale: float = 1.0,
        amplitudes: ArrayLike | None = None,
    ) -> None:
        self.reader = coefficients if isinstance(coefficients, GridReader) else GridReader(coefficients)
        n = len(images)
        self.projector = Projector(
            Poses(np.broadcast_to(np.eye(3), (n, 3, 3))),
            KaiserBessel() if window is None else window,
            self.reader.shape,
            images.shape[1:],
            scale=scale,
            cutoff=cutoff,
            dtype=self.reader.dtype,
        )
        if filters is not None and filters.oshape != images.shape:
            raise ValueError(f"the filters are for images {filters.oshape}, these are {images.shape}")
        images = np.asarray(images, self.reader.dtype)
        radii = self.projector.radii
        weight = None
        if weights is not None:
            profile = np.asarray(weights, float)
            if profile.ndim != 1 or not np.isfinite(profile).all() or profile.min() < 0:
                raise ValueError("weights are a vector, finite and not negative, one for each shell")
            weight = np.interp(radii * max(images.shape[1:]), np.arange(len(profile)), profile)
        self.data, self.power, self.energy = self.projector.matched(images, filters, weight)
        finite = np.isfinite(self.energy)
        if not finite.all():
            raise ValueError(
                f"image {np.flatnonzero(~finite)[0]} (counted from 0) holds NaN or infinite pixels: leave it out, or"
                " repair it"
            )
        if amplitudes is None:
            self.amplitudes = np.ones(n)
        else:
            self.amplitudes = np.array(np.broadcast_to(np.asarray(amplitudes, float), (n,)))

    def __len__(self) -> int:
        return len(self.data)

    @property
    def frequencies(self) -> int:
        """Number of frequencies in use, of half the plane."""
        return self.data.shape[1]

    @property
    def radii(self) -> NDArray:
        """Of the frequencies in use, cycles per pixel, (m,)."""
        return self.projector.radii

    def cost(self, poses: Poses, index: ArrayLike | None = None) -> NDArray:
        """``J`` of each pose, (k,)."""
        rows = self._rows(poses, index)
        overlap, power = self.overlaps(poses.matrices, poses.shifts, rows)
        return self._cost(overlap, power, rows)

    def gradient(self, poses: Poses, index: ArrayLike | None = None) -> NDArray:
        """Of `cost`, (k, 5)."""
        return self.derivatives(poses, index).gradient

    def derivatives(self, poses: Poses, index: ArrayLike | None = None) -> Derivatives:
        """Cost, gradient and Gauss-Newton matrix in one pass that holds no Jacobian."""
        rows = self._rows(poses, index)
        return self._derivatives(poses.matrices, poses.shifts, rows)

    def overlaps(self, matrices: NDArray, shifts: NDArray, index: NDArray) -> tuple[NDArray, NDArray]:
        """``<y, H c>_W`` and ``|H c|^2_W`` of views k of the images ``index[k]``, (k,) each.

        With the amplitude ``a`` the cost is ``energy / 2 - a overlap + a^2 power / 2``; the best ``a`` is their ratio.
        """
        sums = self.sums(matrices, shifts, index, derivatives=False)
        return sums[:, 0], sums[:, 1]

    def sums(self, matrices: NDArray, shifts: NDArray, index: NDArray, *, derivatives: bool) -> NDArray:
        """`overlaps` as (k, 2), or with their derivatives, (k, 25): see `kernels.slice_products`."""
        return self.projector.products(
            self.reader, matrices, shifts, index, self.data, self.power, derivatives=derivatives
        )

    def residual(self, poses: Poses, index: ArrayLike | None = None) -> NDArray:
        """Weighted residuals (k, 2 m + 1), of which `cost` is half the sum of squares, in float64.

        Real parts, imaginary parts, and one constant: what the images hold where their filter is zero.
        """
        rows = self._rows(poses, index)
        values = self.reader.at(self.projector.scale * poses.matrices[:, :2], self.projector.frequencies)
        return self._residual(poses, rows, values.astype(complex))

    def residual_and_jacobian(self, poses: Poses, index: ArrayLike | None = None) -> tuple[NDArray, NDArray]:
        """`residual` and its derivatives (k, 2 m + 1, 5): the slow twin of `derivatives`."""
        rows = self._rows(poses, index)
        w, R = self.projector.frequencies, poses.matrices
        values, slopes = self.reader.with_gradients(self.projector.scale * R[:, :2], w)
        values, slopes = values.astype(complex), self.projector.scale * slopes.astype(complex)
        # q = s R^T (w, 0) moves by s R^T (w x d)
        out_of, right, up = (np.einsum("kmx,kx->km", slopes, R[:, i]) for i in (2, 0, 1))
        columns = [
            -w[1] * out_of,
            w[0] * out_of,
            w[1] * right - w[0] * up,
            -1j * w[0] * values,
            -1j * w[1] * values,
        ]
        factor = self._root(rows) * np.exp(-1j * poses.shifts @ w) * self.amplitudes[rows, None]
        jacobian = np.stack([factor * c for c in columns], axis=-1)
        flat = np.concatenate([jacobian.real, jacobian.imag, np.zeros((len(rows), 1, 5))], axis=1)
        return self._residual(poses, rows, values), flat

    def _residual(self, poses: Poses, rows: NDArray, values: NDArray) -> NDArray:
        root = self._root(rows)
        # (F H)^H W y over the root of (F H)^H W (F H) is sqrt(W) y with the sign of F, which the model then lacks
        there = np.broadcast_to(root > 0, values.shape)
        seen = np.divide(self.data[rows], root, out=np.zeros(values.shape, complex), where=there)
        lost = np.maximum(self.energy[rows] - (np.abs(seen) ** 2).sum(axis=1), 0.0)
        phase = np.exp(-1j * poses.shifts @ self.projector.frequencies)
        residual = self.amplitudes[rows, None] * root * values * phase - seen
        return np.concatenate([residual.real, residual.imag, np.sqrt(lost)[:, None]], axis=1)

    def _root(self, rows: NDArray) -> NDArray:
        root = np.sqrt(self.power.astype(float))
        return root if len(root) == 1 else root[rows]

    def residual_power(self, poses: Poses, amplitude: float = 1.0) -> NDArray:
        """Mean square of the residuals by shell, as the variance of a pixel of white noise, (shells,).

        For weights: shell i at ``i / max(height, width)`` cycles per pixel, up to the last in use. Of every image at
        one ``amplitude``.
        """
        before, self.amplitudes = self.amplitudes, np.full(len(self), float(amplitude))
        try:
            r = self.residual(poses)[:, :-1] ** 2
        finally:
            self.amplitudes = before
        total = r.reshape(len(self), 2, -1).sum(axis=(0, 1))
        shell = np.rint(self.radii * max(self.projector.image_shape)).astype(int)
        count = np.bincount(shell, self.projector.multiplicity) * max(len(self), 1)
        return np.bincount(shell, total) / np.maximum(count, 1e-300)

    # -- arrays -------------------------------------------------------------------------------------------

    def _derivatives(self, matrices: NDArray, shifts: NDArray, rows: NDArray) -> Derivatives:
        sums = self.sums(matrices, shifts, rows, derivatives=True)
        a = self.amplitudes[rows]
        overlap, power = sums[:, 0], sums[:, 1]
        return Derivatives(self._cost(overlap, power, rows), *assembled(sums, a), overlap, power)

    def _cost(self, overlap: NDArray, power: NDArray, rows: NDArray) -> NDArray:
        a = self.amplitudes[rows]
        return 0.5 * self.energy[rows] - a * overlap + 0.5 * a * a * power

    def _rows(self, poses: Poses, index: ArrayLike | None) -> NDArray:
        rows: Any = np.arange(len(self)) if index is None else np.asarray(index, int)
        if rows.shape != (len(poses),):
            raise ValueError(f"{len(poses)} poses for {rows.size} images")
        if rows.size and not (0 <= rows.min() and rows.max() < len(self)):
            raise IndexError(f"images {rows.min()} to {rows.max()} of {len(self)}")
        return rows
