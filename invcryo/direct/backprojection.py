"""Filtered and weighted back-projection, in parallel beams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..backend import fft, real_dtype
from ..data import Poses
from ..grid import frequencies
from ..operators import ImageFilter, Projector, SingleAxisProjector, ZeroPad
from ..operators.nufft import GridReader
from ..window import BandLimited

__all__ = ["WINDOWS", "fbp", "ramp_filter", "wbp"]

Window = str | Callable[[NDArray], NDArray]

#: Factors on the ramp, as functions of the frequency in cycles per pixel, 0 to 1/2.
WINDOWS: dict[str, Callable[[NDArray], NDArray]] = {
    "ram-lak": np.ones_like,
    "shepp-logan": np.sinc,
    "cosine": lambda f: np.cos(np.pi * f),
    "hamming": lambda f: 0.54 + 0.46 * np.cos(2 * np.pi * f),
    "hann": lambda f: 0.5 + 0.5 * np.cos(2 * np.pi * f),
}

#: Passes over the exact weights of `wbp`; after three the rest is within a per cent where views leave no gaps.
_PASSES = 3

#: Mean distance of the points of a unit square from its centre.
_CELL = (2**0.5 + np.log(1 + 2**0.5)) / 6


def ramp_filter(n: int, window: Window = "ram-lak") -> NDArray:
    """The ramp filter of ``n`` samples on the half spectrum of ``rfft``, float64.

    The transform of the band-limited ramp sampled in space, 1/4, -1/(pi k)^2 at odd k and else 0 (Ramachandran and
    Lakshminarayanan, 1971). The ramp itself, sampled in frequency, is 0 at frequency 0, which takes from every
    projection the mean of its filtered form and leaves a map that is too low.

    Parameters
    ----------
    n : int
        Length of the padded projections: twice theirs or more, or the ends meet.
    window : str or callable
        Name in `WINDOWS`, or a function of the frequency in cycles per pixel.
    """
    k = np.fft.fftfreq(n) * n
    taps = np.zeros(n)
    odd = np.rint(k).astype(int) % 2 == 1
    taps[odd] = -1 / (np.pi * k[odd]) ** 2
    taps[0] = 0.25
    return np.fft.rfft(taps).real * _window(window)(np.fft.rfftfreq(n))


def fbp(
    images: ArrayLike,
    angles: ArrayLike,
    *,
    filter: Window = "ram-lak",
    weights: ArrayLike | None = None,
    axis: str = "y",
    volume_shape: int | Sequence[int] | None = None,
) -> NDArray:
    """Filtered back-projection of a series about one axis: a sinogram, or a stack of tilted images.

    Parameters
    ----------
    images : array_like, (n, width) or (n, height, width)
        Line integrals, in units of the map times pixels; float32 stays float32, all else becomes float64.
    angles : array_like (n,)
        Radians; a voxel (x, z) of the map is seen at ``x cos - z sin`` (about y).
    filter : str or callable
        "ram-lak", "shepp-logan", "cosine", "hamming", "hann", or a function of the frequency in cycles per pixel
        that multiplies the ramp.
    weights : array_like (n,), optional
        Radians that each view stands for. Default: half the way to its neighbours on both sides, round the half
        circle; a gap three times as wide as the median step is a missing wedge and is not shared out.
    axis : "y", "x" or "z"
        Tilt axis, as in `SingleAxisProjector`.
    volume_shape : int or (nz, ny, nx), optional
        Default: as deep as the images are wide across the axis. Of a sinogram: (nz, nx).

    Returns
    -------
    ndarray, (nz, ny, nx); of a sinogram (nz, nx)

    Notes
    -----
    Filtered images are interpolated by their trigonometric polynomials, so the map has no loss at high frequencies
    other than by ``filter``: with few views the plain ramp shows every streak.
    """
    y = _images(images)
    flat = y.ndim == 2
    if flat:
        if axis != "y":
            raise ValueError(f"a sinogram has no direction but across its axis: axis='y', got {axis!r}")
        y = y[:, None, :]
        if volume_shape is not None:
            nz, nx = (volume_shape,) * 2 if isinstance(volume_shape, int) else volume_shape
            volume_shape = (nz, 1, nx)
    theta = np.atleast_1d(np.asarray(angles, float))
    if theta.shape != (len(y),):
        raise ValueError(f"{len(y)} images need as many angles, got {theta.shape}")
    steps = _steps(theta) if weights is None else np.asarray(weights, float)
    if steps.shape != theta.shape:
        raise ValueError(f"{len(y)} images need as many weights, got {steps.shape}")
    across = 1 if axis == "x" else 2
    if volume_shape is None:
        width = y.shape[across]
        volume_shape = {"x": (width, *y.shape[1:]), "z": (y.shape[1], width, width)}.get(
            axis, (width, *y.shape[1:])
        )
    # odd sides, so that no Nyquist frequency is lost; twice the width, so that the filter does not come round
    padded = [n + 1 - n % 2 for n in y.shape[1:]]
    padded[across - 1] = 2 * y.shape[across] + 1
    A = SingleAxisProjector(theta, BandLimited(), volume_shape, padded, axis=axis, dtype=y.dtype)
    y = ZeroPad(y.shape, A.oshape, y.dtype).apply(y)
    lib = fft(y)
    response = ramp_filter(y.shape[across], filter).reshape((-1, 1) if across == 1 else (1, -1))
    spectrum = lib.rfft(y, axis=across)
    spectrum *= (steps[:, None, None] * response).astype(y.dtype)
    volume = A.adjoint(lib.irfft(spectrum, y.shape[across], axis=across))
    return volume[:, 0] if flat else volume


def wbp(
    images: ArrayLike,
    poses: Poses,
    *,
    weighting: str = "exact",
    filter: Window = "ram-lak",
    volume_shape: int | Sequence[int] | None = None,
) -> NDArray:
    """Weighted back-projection of images from any directions.

    Parameters
    ----------
    images : array_like, (n, height, width)
        Line integrals without CTF, in units of the map times pixels.
    poses : Poses
    weighting : str
        "exact" divides every frequency of every image by how often all views together hold it, for any geometry; see
        the notes.
        "radial" multiplies by the frequency, ``2 |k| / n``, which is the same for views spread evenly over the sphere.
    filter : str or callable
        Window over the radial frequency, as in `fbp`.
    volume_shape : int or (nz, ny, nx), optional
        Default: (width, height, width).

    Notes
    -----
    How often a frequency is held is the spectrum there of the kernel of H^H W H, within twice the box. With W = 1 this
    is the exact filter of Harauz and van Heel (1986) and Radermacher (1986), with the views' own geometry in place of
    a slab of the object's thickness. Dividing by it once is no inverse, since the density changes within a Fourier
    voxel, most near the origin: on a full half turn, where `fbp` is right to 0.2 %, the map is 3 % off (and 6 to 11 %
    with slabs). So the weights W that come of it are weighed again, ``W / (spectrum of H^H W H)``, twice: the
    iteration of Pipe and Menon (1999). It takes as much memory as the spectra of the padded images.
    """
    y = _images(images)
    if y.ndim != 3 or len(y) != len(poses):
        raise ValueError(
            f"{len(poses)} poses need images of shape ({len(poses)}, height, width), got {y.shape}"
        )
    if weighting not in ("exact", "radial"):
        raise ValueError(f"weighting is 'exact' or 'radial', got {weighting!r}")
    if volume_shape is None:
        volume_shape = (y.shape[2], y.shape[1], y.shape[2])
    padded = [2 * n + 1 for n in y.shape[1:]]
    A = Projector(poses, BandLimited(), volume_shape, padded, dtype=y.dtype)
    fy, fx = frequencies(padded, half=True)
    radius = np.hypot(fy, fx)
    window = np.where(radius <= 0.5, _window(filter)(np.minimum(radius, 0.5)), 0.0)
    if weighting == "exact":
        points = 2 * np.pi * np.stack(np.broadcast_arrays(fx, fy)).reshape(2, -1)
        weights = _exact_weights(A, points)
    else:
        ramp = radius.copy()
        ramp[0, 0] = _CELL / np.sqrt(np.prod(padded))
        window *= 2 * ramp / len(poses)
    total = A.adjoint_sum()
    step = max(1, (1 << 22) // radius.size)
    for start in range(0, len(y), step):
        part = slice(start, min(start + step, len(y)))
        batch = ZeroPad(y[part].shape, (len(y[part]), *padded), y.dtype).apply(y[part])
        lib = fft(batch)
        spectrum = lib.rfft2(batch)
        if weighting == "exact":
            spectrum *= weights[part]
        spectrum *= window.astype(y.dtype)
        A.rows(part).add_adjoint(lib.irfft2(spectrum, s=tuple(padded)), total)
    return total.result()


def _exact_weights(A: Projector, points: NDArray) -> NDArray:
    """Weights (n, height, width // 2 + 1) under which all views together hold each frequency of an image once.

    The spectrum is that of the kernel brought to zero at its ends by a cosine. It blurs least among the windows whose
    transforms have no side lobes worth mention; what the lobes could do is bounded, since no frequency of an image
    counts for less than half of that image alone. Beyond the Nyquist frequency, where images hold nothing, weights
    are some number.
    """
    n, height, width = A.oshape
    weights = np.ones((n, height, width // 2 + 1), A.dtype)
    step = max(1, (1 << 22) // weights[0].size)
    largest = 0.0
    for _ in range(_PASSES):
        kernel = A.slice_kernel(
            ImageFilter.from_array(weights, A.image_shape, dtype=A.dtype) if largest else None
        )
        if not largest:
            own = float(kernel[tuple(k - 1 for k in A.ishape)]) / n
            largest = 1 / (
                0.5 * own * 4 / np.pi * min(A.ishape)
            )  # the window, summed along the axis of a view
        for axis, k in enumerate(A.ishape):
            window = np.cos(0.5 * np.pi / k * np.arange(1 - k, k))
            kernel *= window.reshape((-1,) + (1,) * (2 - axis)).astype(kernel.dtype)
        density = GridReader(kernel)
        for start in range(0, n, step):
            part = slice(start, min(start + step, n))
            held = density.at(A.poses.matrices[part, :2], points).real.reshape(weights[part].shape)
            # at most `largest`, also where the lobes of the window have made it zero or less
            weights[part] /= np.maximum(held, weights[part] / largest)
    return weights


def _images(images: ArrayLike) -> NDArray:
    y = np.asarray(images)
    if y.ndim not in (2, 3) or 0 in y.shape:
        raise ValueError(f"images have shape (n, width) or (n, height, width), got {y.shape}")
    return np.ascontiguousarray(y, real_dtype(y.dtype if y.dtype == np.float32 else np.float64))


def _window(window: Any) -> Callable[[NDArray], NDArray]:
    if callable(window):
        return window
    if window not in WINDOWS:
        raise ValueError(f"unknown filter {window!r}: expected {', '.join(WINDOWS)}, or a function")
    return WINDOWS[window]


def _steps(angles: NDArray) -> NDArray:
    """Half the way to both neighbours on the circle of pi, without the missing wedge."""
    place = np.mod(angles, np.pi)
    order = np.argsort(place, kind="stable")
    gaps = np.diff(place[order], append=place[order[0]] + np.pi)  # after each view
    widest, typical = int(np.argmax(gaps)), float(np.median(gaps))
    if len(gaps) > 2 and gaps[widest] > 3 * typical:
        ends = gaps[widest - 1], gaps[(widest + 1) % len(gaps)]
        after, before = gaps.copy(), np.roll(gaps, 1)
        after[widest], before[(widest + 1) % len(gaps)] = ends
    else:
        after, before = gaps, np.roll(gaps, 1)
    out = np.empty_like(gaps)
    out[order] = 0.5 * (after + before)
    return out
