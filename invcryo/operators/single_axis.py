"""The projector of a tilt series about one axis, separable along that axis."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import kernels
from ..backend import fft
from ..data import Poses
from ..window import Window
from .base import Compose, LinOp
from .basic import Diagonal
from .fourier import ImageFilter, Toeplitz, _padded_length
from .nufft import GridWriter, _factors, _fine_size, _gathered, _polynomials, _spread_out, spreading
from .projector import Projector, _shape

__all__ = ["SingleAxisProjector", "tilt_poses"]

_AXES = {"z": 0, "y": 1, "x": 2}

_PLANES = 64  # frequencies along the tilt axis that are transformed at a time


def tilt_poses(
    angles: ArrayLike, *, axis: str = "y", in_plane_angle: float = 0.0, shifts: ArrayLike | None = None
) -> Poses:
    """Poses of a tilt series about one axis of the volume.

    Parameters
    ----------
    angles : array_like (n,)
        Radians, between -pi and pi.
    axis : "y", "x" or "z"
        Axis of the volume about which it is turned. "y" and "x" lie in the untilted image, the poses being RELION's
        (0, t, 0) and (90, t, -90); "z" is the vertical axis of images that look along y at angle 0.
    in_plane_angle : float
        Radians by which every image is turned, from x to y.
    shifts : array_like (n, 2), optional
        Of each image in pixels, (x, y).
    """
    t = np.atleast_1d(np.asarray(angles, float))
    if t.ndim != 1 or t.size == 0:
        raise ValueError(f"tilt angles are a list of numbers, one for each image, got shape {t.shape}")
    if not np.isfinite(t).all():
        raise ValueError(
            f"tilt angle {np.flatnonzero(~np.isfinite(t))[0]} (counted from 0) is NaN or infinite"
        )
    if np.abs(t).max() > np.pi * (1 + 1e-9):
        raise ValueError(
            f"tilt angles reach {np.abs(t).max():g}, beyond pi: they are radians here; if yours are degrees, pass"
            " np.deg2rad(angles)"
        )
    if not np.isfinite(in_plane_angle) or abs(in_plane_angle) > 2 * np.pi:
        raise ValueError(
            f"the in-plane angle is {in_plane_angle:g}: it is in radians, between -2 pi and 2 pi; for degrees pass"
            " np.deg2rad(angle)"
        )
    if axis not in _AXES:
        raise ValueError(f"the tilt axis is 'x', 'y' or 'z', an axis of the volume, got {axis!r}")
    c, s, one = np.cos(t), np.sin(t), np.ones_like(t)
    none = 0 * t
    rows = {
        "y": [[c, none, -s], [none, one, none], [s, none, c]],
        "x": [[one, none, none], [none, c, -s], [none, s, c]],
        "z": [[c, s, none], [none, none, one], [s, -c, none]],
    }[axis]
    matrices = np.moveaxis(np.array(rows), 2, 0)
    if in_plane_angle:
        ci, si = np.cos(in_plane_angle), np.sin(in_plane_angle)
        matrices = np.array([[ci, -si, 0], [si, ci, 0], [0, 0, 1]]) @ matrices
    return Poses(matrices, shifts)  # type: ignore[arg-type]


class SingleAxisProjector(Projector):
    """Projections of a volume that is tilted about one of its axes; `Projector`, several times faster.

    Parameters
    ----------
    angles : array_like (n,)
        Tilt of each image in radians, between -pi and pi; any values in any order.
    window : Window
        Basis function of the coefficients.
    volume_shape : int or (nz, ny, nx)
    image_shape : int or (height, width), optional
        Default: the extents along the tilt axis and across it at angle 0, times ``scale``.
    axis : "y", "x" or "z"
        Tilt axis, an axis of the volume. About y and x the untilted image looks along z and shows (y, x); about z it
        looks along y and shows (z, x). The tilt axis is the images' x for "x", else their y.
    in_plane_angle : float
        Radians by which every image is turned, from x to y: where the tilt axis lies in raw images.
    shifts : array_like (n, 2), optional
        Of each image in pixels, (x, y).
    scale, cutoff, dtype
        As in `Projector`.

    Notes
    -----
    The same map as `Projector` at `tilt_poses`, to the accuracy of the transforms. A Fourier transform along the tilt
    axis, then for each frequency along it a non-uniform one in the plane across, at points that are the same for all:
    ``8^2`` cells for each in place of ``8^3``, found once. Shifts are phases.

    Images that are turned in their plane do not share points: with an ``in_plane_angle``, and after `rotated`,
    `separable` is False and `Projector` does the work. Turn such images first.

    `gram` is exact. Where images are at least as tall as the volume along the tilt axis, and ``scale`` is 1, the
    kernel is periodic along this axis, needs no padding there, and is made plane by plane.
    """

    def __init__(
        self,
        angles: ArrayLike,
        window: Window,
        volume_shape: int | Sequence[int],
        image_shape: int | Sequence[int] | None = None,
        *,
        axis: str = "y",
        in_plane_angle: float = 0.0,
        shifts: ArrayLike | None = None,
        scale: float = 1.0,
        cutoff: float | None = None,
        dtype: Any = np.float32,
    ) -> None:
        poses = tilt_poses(angles, axis=axis, in_plane_angle=in_plane_angle, shifts=shifts)
        volume = _shape(volume_shape, 3, "volume")
        if image_shape is None:
            image_shape = [round(scale * n) for n in ((volume[0] if axis == "z" else volume[1]), volume[2])]
        super().__init__(poses, window, volume, image_shape, scale=scale, cutoff=cutoff, dtype=dtype)
        self.axis = axis

    @property
    def separable(self) -> bool:
        """Whether every view keeps the tilt axis on its axis of the image."""
        rows = self.poses.matrices[:, :2]
        k, a = self._component, self._image_axis
        other = np.delete(rows[:, a], k, axis=1)
        return bool((rows[:, a, k] == 1).all() and not other.any() and not rows[:, 1 - a, k].any())

    @property
    def _component(self) -> int:
        """Of the tilt axis in a vector (x, y, z)."""
        return 2 - _AXES[self.axis]

    @property
    def _image_axis(self) -> int:
        """Of the tilt axis among those of an image, (x, y)."""
        return 0 if self.axis == "x" else 1

    # -- both ways -----------------------------------------------------------------------------------------

    def _images(self, x: NDArray, filters: ImageFilter | None) -> NDArray:
        if not self.separable:
            return super()._images(x, filters)
        lines = _Lines(self, self.ishape)
        spectra = np.zeros((len(self.poses), *self._half), self._complex)
        out = spectra if self.axis == "x" else spectra.transpose(0, 2, 1)
        for part, planes in lines.planes(x):
            grid = lines.transformed(planes)
            lines.points.take(
                grid, lines.transfer[:, part], lines.across, lines.along[:, part], out[..., part]
            )
        images = fft(spectra).irfftn(spectra, self._sides, axes=self._axes_of_images, overwrite_x=True)
        return images if filters is None else filters._apply(images)

    def _adjoint(self, y: NDArray) -> NDArray:
        if not self.separable:
            return super()._adjoint(y)
        lines = _Lines(self, self.ishape)
        spectra = fft(y).rfftn(y, axes=self._axes_of_images)
        values = spectra if self.axis == "x" else spectra.transpose(0, 2, 1)
        weight = lines.transfer / self.dtype.type(self.image_shape[0] * self.image_shape[1])
        rows = lines.empty()
        for part in lines.parts:
            grid = lines.zeros(part)
            lines.points.put(values[..., part], weight[:, part], lines.across, lines.along[:, part], grid)
            rows[..., part] = lines.gathered(grid)[..., : part.stop - part.start]
        return lines.volume(rows)

    def adjoint_sum(self) -> Any:
        return LinOp.adjoint_sum(self) if self.separable else super().adjoint_sum()

    def add_adjoint(self, y: NDArray, total: Any) -> None:
        if isinstance(total, GridWriter):
            super().add_adjoint(y, total)
        else:
            LinOp.add_adjoint(self, y, total)

    def _after(self, left: LinOp) -> Compose:
        return LinOp._after(self, left) if self.separable else super()._after(left)

    @property
    def _axes_of_images(self) -> tuple[int, int]:
        """Axes of a stack to transform, the one along the tilt axis last: half of it is kept."""
        return (1, 2) if self.axis == "x" else (2, 1)

    @property
    def _sides(self) -> tuple[int, int]:
        """Sides of an image: across the tilt axis, and along it."""
        height, width = self.image_shape
        return (height, width) if self.axis == "x" else (width, height)

    @property
    def _half(self) -> tuple[int, int]:
        across, along = self._sides
        kept = along // 2 + 1
        return (across, kept) if self.axis == "x" else (kept, across)

    # -- the normal kernel ---------------------------------------------------------------------------------

    @property
    def _periodic(self) -> bool:
        """Whether the kernel of the gram has the period of the images along the tilt axis, and covers the volume."""
        return self.separable and self.scale == 1.0 and self._sides[1] >= self.ishape[_AXES[self.axis]]

    def gram_sum(self, W: LinOp | None = None, beside: Any | None = None) -> GridWriter | None:
        if W is None and self._periodic:
            return None
        return super().gram_sum(W, beside if isinstance(beside, GridWriter) else None)

    def add_normal(self, y: NDArray, W: LinOp | None, right: Any, kernel: GridWriter) -> None:
        if isinstance(right, GridWriter):
            super().add_normal(y, W, right, kernel)
        else:
            LinOp.add_normal(self, y, W, right, kernel)

    def slice_kernel(self, W: ImageFilter | None = None) -> NDArray:
        return self._planewise_gram().kernel if W is None and self._periodic else super().slice_kernel(W)

    def _gram(self, W: LinOp | None) -> LinOp:
        if W is None and self._periodic:
            return self._planewise_gram()
        if isinstance(W, Diagonal):
            return _MaskedGram(self, W)
        return super()._gram(W)

    def mean_gram(self, W: Diagonal) -> Toeplitz:
        """``sum_p w_p H_p^H H_p`` with the mean weight of every image: what is next to ``H^H W H`` and has a kernel."""
        share = W.diagonal.mean(axis=(1, 2), dtype=np.float64)
        if self._periodic:
            return self._planewise_gram(share)
        height, width = self.image_shape
        flat = np.broadcast_to(share[:, None, None], (len(share), height, width // 2 + 1))
        return super()._gram(ImageFilter.from_array(flat, self.image_shape, dtype=self.dtype))  # type: ignore[return-value]

    def _planewise_gram(self, share: NDArray | None = None) -> Toeplitz:
        """The kernel by two-dimensional transforms, one for each frequency along the tilt axis."""
        axis = _AXES[self.axis]
        sides = tuple(2 * n - 1 for n in self.ishape)
        lines = _Lines(self, sides)
        across, along = self._sides
        padded = [_padded_length(n, fft(lines.transfer)) for n in sides]
        padded[axis] = along
        plane = (padded[lines.plane[0]], padded[lines.plane[1]])
        whole = np.zeros((plane[0], plane[1], along // 2 + 1), self.dtype)
        strengths = lines.transfer**2 / self.dtype.type(across)
        each = (np.ones(len(self.poses)) if share is None else share).astype(self.dtype)
        for part in lines.parts:
            grid = lines.zeros(part, real=True)
            lines.points.put_strengths(strengths[:, part], each, grid)
            kernel = lines.gathered(grid, real=True)[..., : part.stop - part.start]
            whole[..., part] = _even_spectrum(kernel, plane)
        spectrum = np.moveaxis(whole, 2, axis)
        if axis == 2:
            full = spectrum
        else:
            mirrored = np.take(spectrum, range((along - 1) // 2, 0, -1), axis=axis)
            full = np.concatenate([spectrum, mirrored], axis=axis)[..., : padded[2] // 2 + 1]
        return Toeplitz.from_spectrum(np.ascontiguousarray(full), self.ishape, tuple(padded))


class _MaskedGram(Compose):
    """``H^H W H`` with a weight for every pixel: no convolution, but near one.

    A random mask acts as its mean and noise on top, so the circulant nearest to the kernel of `mean_gram` is a good
    preconditioner.
    """

    def __init__(self, projector: SingleAxisProjector, W: Diagonal) -> None:
        super().__init__(projector.H, W @ projector)
        self.projector, self.weight = projector, W

    def nearest_circulant(self) -> NDArray | None:
        return self._nearest

    @functools.cached_property
    def _nearest(self) -> NDArray | None:
        if float(self.weight.diagonal.min()) < 0:
            return None
        return self.projector.mean_gram(self.weight).nearest_circulant()


class _Lines:
    """One pass of a projector: its points in the plane across the tilt axis, and grids of such planes.

    Arrays (rows, columns, k): the two axes of the plane in the order of the volume's, then frequencies along the tilt
    axis, so many at a time.
    """

    def __init__(self, A: SingleAxisProjector, shape: tuple[int, ...]) -> None:
        self.dtype, self.complex, self.scale = A.dtype, A._complex, A.scale
        self.axis = _AXES[A.axis]
        self.plane = ((1, 2), (0, 2), (0, 1))[self.axis]
        self.shape, self.length = (shape[self.plane[0]], shape[self.plane[1]]), shape[self.axis]
        self.fine = (_fine_size(self.shape[0], A.dtype), _fine_size(self.shape[1], A.dtype))
        across, self.image = A._sides
        w: NDArray = 2 * np.pi * np.fft.fftfreq(across)
        self.w = (
            2 * np.pi * np.arange((self.image + 1) // 2) / self.image
        )  # all but Nyquist, which is left out
        rows = A.poses.matrices[:, 1 - A._image_axis]
        turns = np.stack([rows[:, 2 - i] for i in self.plane], axis=1) / (2 * np.pi)
        self.points = kernels.TiltedLines(turns, A.scale * w, self.fine, _polynomials(spreading(A.dtype)))
        self.transfer = self._transfer(A, w)
        t = A.poses.shifts[:, ::-1] if A._image_axis == 0 else A.poses.shifts  # across, along
        # without folding or scaling the transform along the axis starts at its first entry, not at its centre
        self.plain = A.scale == 1.0 and self.length <= self.image
        centre = self.image // 2 - (self.length // 2 if self.plain else 0)
        self.across = np.exp(-1j * w * (t[:, :1] + across // 2)).astype(self.complex)
        self.along = np.exp(-1j * self.w * (t[:, 1:] + centre)).astype(self.complex)
        n = len(self.w)
        self.parts = [slice(k, min(k + _PLANES, n)) for k in range(0, n, _PLANES)]
        factors = [
            _factors(n, fine, spreading(A.dtype)) for n, fine in zip(self.shape, self.fine, strict=True)
        ]
        self.factors = np.outer(*factors).astype(A.dtype)[:, :, None]

    def _transfer(self, A: SingleAxisProjector, w: NDArray) -> NDArray:
        """`Projector`'s, on all frequencies of an image across the tilt axis, and half of those along."""
        height, width = A.image_shape
        half: NDArray = np.zeros(height * (width // 2 + 1))
        half[A._index] = A._transfer
        half = half.reshape(height, -1)
        if A._image_axis == 0:
            whole = half
        else:
            mirrored = half[-np.arange(height) % height, 1 : (width + 1) // 2][:, ::-1]
            whole = np.concatenate([half, mirrored], axis=1).T
        return np.ascontiguousarray(whole[:, : len(self.w)]).astype(A.dtype)

    def _dense(self) -> NDArray:
        """Matrix of the transform along the axis, for a scaled or a folded one: (length, k)."""
        places = np.arange(self.length) - self.length // 2
        return np.exp(-1j * self.scale * np.outer(places, self.w)).astype(self.complex)

    def planes(self, x: NDArray) -> Iterator[tuple[slice, NDArray]]:
        """The volume, transformed along the tilt axis, and divided by the spreading kernel's transform."""
        moved = np.moveaxis(x, self.axis, 2)
        if self.plain:
            spectra = fft(x).rfft(moved, self.image, axis=2)  # Nyquist included: it is in no part
        else:
            spectra = np.tensordot(moved, self._dense(), axes=1)
        for part in self.parts:
            yield part, spectra[..., part] * self.factors

    def transformed(self, planes: NDArray) -> NDArray:
        """Onto the fine grid, as pairs of real numbers; planes are filled up to a whole chunk."""
        n, chunk = planes.shape[2], self.points.PLANES
        lib = fft(planes)
        rows = lib.fft(_spread_out(planes, self.fine[0], axis=0), axis=0, overwrite_x=True)
        grid = np.zeros((*self.fine, -(-n // chunk) * chunk), self.complex)
        m = self.shape[1]
        grid[:, : m - m // 2, :n] = rows[:, m // 2 :]
        grid[:, self.fine[1] - m // 2 :, :n] = rows[:, : m // 2]
        return lib.fft(grid, axis=1, overwrite_x=True).view(self.dtype)

    def zeros(self, part: slice, real: bool = False) -> NDArray:
        chunk = self.points.PLANES * (2 if real else 1)
        n = -(-(part.stop - part.start) // chunk) * chunk
        return np.zeros((*self.fine, n if real else 2 * n), self.dtype)

    def gathered(self, grid: NDArray, real: bool = False) -> NDArray:
        """The adjoint of `transformed`; of real grids, which must be even, the real result."""
        grid = grid if real else grid.view(self.complex)
        lib = fft(grid)
        rows = lib.ifft(grid, axis=1, norm="forward", overwrite_x=True)
        rows = _gathered(rows, self.shape[1], axis=1)
        rows = _gathered(lib.ifft(rows, axis=0, norm="forward", overwrite_x=True), self.shape[0], axis=0)
        rows = rows.real if real else rows
        return rows * self.factors

    def empty(self) -> NDArray:
        """For all frequencies of the half spectrum, Nyquist (0) included."""
        return np.zeros((*self.shape, self.image // 2 + 1), self.complex)

    def volume(self, planes: NDArray) -> NDArray:
        """The adjoint of `planes`, where those of negative frequencies count as well."""
        if self.plain:
            moved = np.moveaxis(planes, 2, self.axis)
            whole = fft(planes).irfft(moved, self.image, axis=self.axis, norm="forward")
            return np.ascontiguousarray(whole[(slice(None),) * self.axis + (slice(0, self.length),)])
        planes = planes[..., : len(self.w)]
        twice = np.where(self.w > 0, 2.0, 1.0).astype(self.dtype)
        moved = np.tensordot(planes * twice, self._dense().conj().T, axes=1).real
        return np.ascontiguousarray(np.moveaxis(moved, 2, self.axis))


def _even_spectrum(kernel: NDArray, shape: tuple[int, int]) -> NDArray:
    """Real spectrum on ``shape`` of even kernels on lags -(n-1)..n-1 of two axes."""
    out = _spread_out(_spread_out(kernel, shape[0], axis=0), shape[1], axis=1)
    lib = fft(out)
    return lib.fft2(out, axes=(0, 1)).real
