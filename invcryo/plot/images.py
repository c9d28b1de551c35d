"""Images and their spectra: what a map leaves unexplained, the CTF, Thon rings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..grid import shell_index
from .common import GREY, new_axes, new_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..ctf import CTF

__all__ = ["ctf_image", "residuals", "thon_rings"]


def residuals(
    images: Any, predicted: Any, n: int = 4, *, labels: Sequence[str] | None = None, axes: Any = None
) -> NDArray:
    """Images, what the map predicts of them, and the whitened difference, one row for each of the first ``n``.

    Parameters
    ----------
    images, predicted : array-like, (count, height, width)
        Data, and projections of the map with CTF, shift and scale as in the data.
    n : int
    labels : sequence of str, optional
        One for each row; their numbers by default.
    axes : array of Axes, (n, 3), optional

    Returns
    -------
    ndarray of Axes, (n, 3)

    Notes
    -----
    Whitened: each Fourier shell is divided by its root mean square over the residuals of all images given. Noise of any
    colour becomes white with variance 1; what the map does not explain stays as a shape, seen best with many images.
    Below each row stands the correlation of residual and prediction, both whitened: near 0 where the model holds, with
    a spread of 1 / sqrt(pixels). One that is positive, row after row, says that the scale or the map is too weak.
    """
    images, predicted = np.asarray(images, dtype=float), np.asarray(predicted, dtype=float)
    if images.ndim != 3 or images.shape != predicted.shape or not len(images):
        raise ValueError(
            f"residuals needs images and predictions of one shape (count, height, width), got {images.shape} and"
            f" {predicted.shape}"
        )
    left, explained = _whitened(images - predicted, predicted)
    n = min(n, len(images))
    if axes is None:
        aspect = images.shape[1] / images.shape[2]
        axes = new_panels(n, 3, (6.6, (2.0 * aspect + 0.42) * n + 0.3))
    axes = np.asarray(axes, dtype=object).reshape(n, 3)
    for i, row in enumerate(axes):
        low, high = np.percentile(predicted[i], (0.5, 99.5))
        shown = (
            (images[i], np.percentile(images[i], (1, 99))),
            (predicted[i], (low, high if high > low else low + 1.0)),
            (left[i], (-3.0, 3.0)),
        )
        for ax, (picture, (dark, bright)) in zip(row, shown, strict=True):
            ax.imshow(picture, cmap="gray", vmin=dark, vmax=bright, origin="lower", interpolation="nearest")
            ax.set(xticks=[], yticks=[])
        row[0].set_ylabel(labels[i] if labels is not None else f"{i}")
        match = np.corrcoef(left[i].ravel(), explained[i].ravel())[0, 1] if np.ptp(explained[i]) else 0.0
        row[2].set_xlabel(f"correlation {match:+.3f}", fontsize=8)
    for ax, title in zip(axes[0], ("image", "prediction", "residual, whitened, ±3 σ"), strict=True):
        ax.set_title(title, fontsize=10)
    return axes


def _whitened(residual: NDArray, other: NDArray) -> tuple[NDArray, NDArray]:
    """``residual`` with a flat mean spectrum of variance 1, and ``other`` through the same filter."""
    shape = residual.shape[1:]
    shells = shell_index(shape)
    spectra = np.fft.rfft2(residual)
    # the columns that the half spectrum leaves out count again
    weight = np.full(shells.shape, 2.0)
    weight[:, 0] = 1.0
    if shape[1] % 2 == 0:
        weight[:, -1] = 1.0
    power = np.bincount(shells.ravel(), (weight * (np.abs(spectra) ** 2).mean(axis=0)).ravel())
    count = np.bincount(shells.ravel(), weight.ravel())
    level = np.sqrt(power / np.maximum(count, 1) / (shape[0] * shape[1]))
    level[level <= 1e-12 * level.max()] = np.inf  # shells that hold nothing
    if not np.isfinite(level).any():
        return np.zeros_like(residual), np.zeros_like(other)
    gain = 1 / level[shells]
    return np.fft.irfft2(spectra * gain, s=shape), np.fft.irfft2(np.fft.rfft2(other) * gain, s=shape)


def ctf_image(ctf: CTF, *, pixel_size: float, index: int = 0, box: int = 256, ax: Axes | None = None) -> Axes:
    """The CTF of one particle over the plane of frequencies, zero in the middle, to Nyquist.

    Parameters
    ----------
    ctf : CTF
    pixel_size : float
        Angstrom.
    index : int
        Which particle.
    box : int
        Pixels on a side.
    """
    ax = ax if ax is not None else new_axes((5.2, 4.4))
    values = _centred_ctf(ctf, index, box, pixel_size)
    picture = _draw_plane(ax, values, pixel_size, cmap="RdBu_r", vmin=-1, vmax=1)
    ax.figure.colorbar(picture, ax=ax, label="CTF", shrink=0.85)
    return ax


def thon_rings(
    images: ArrayLike,
    *,
    pixel_size: float,
    ctf: CTF | None = None,
    index: int = 0,
    box: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The mean power spectrum of images of one defocus, over its background; with a CTF, its square in the right half.

    Parameters
    ----------
    images : array_like, (height, width) or (n, height, width)
        A micrograph, or particles of one micrograph.
    pixel_size : float
        Angstrom.
    ctf : CTF, optional
        Where its rings go on in those of the data, it is right.
    index : int
        Which entry of ``ctf``.
    box : int, optional
        Images are cut into squares of this side, whose spectra are averaged; 512 pixels, or the smaller side if that is
        less, by default.

    Notes
    -----
    Each square has its mean subtracted and is tapered by a Hann window. The background is the mean over circles,
    smoothed along the radius by a Gaussian of a 20th of the box.
    """
    from scipy.ndimage import gaussian_filter1d

    images = np.asarray(images)
    images = images[None] if images.ndim == 2 else images
    if images.ndim != 3 or not images.size:
        raise ValueError(f"thon_rings needs one image or a stack of them, got shape {images.shape}")
    side = min(images.shape[1:])
    box = min(512, side) if box is None else box
    if not 8 <= box <= side:
        raise ValueError(
            f"squares of {box} pixels do not fit images of {images.shape[2]} x {images.shape[1]}"
        )
    window = np.hanning(box + 1)[:-1]
    taper = np.outer(window, window)
    power, count = np.zeros((box, box)), 0
    for image in images:
        for y in range(0, image.shape[0] - box + 1, box):
            for x in range(0, image.shape[1] - box + 1, box):
                part = np.asarray(image[y : y + box, x : x + box], dtype=float)
                power += np.abs(np.fft.fft2((part - part.mean()) * taper)) ** 2
                count += 1
    shells = shell_index((box, box), half=False)
    mean = np.bincount(shells.ravel(), power.ravel()) / np.bincount(shells.ravel())
    mean[0] = mean[1]  # the images have no mean
    background = gaussian_filter1d(mean, box / 20, mode="nearest")[shells]
    relative = np.fft.fftshift(power / np.where(background > 0, background, 1.0))
    inside = np.fft.fftshift((shells > box / 20) & (shells < box / 2))
    low, high = np.percentile(relative[inside], (2, 98))
    shown = np.clip((relative - low) / max(high - low, 1e-12), 0, 1)
    if ctf is not None:
        shown[:, box // 2 :] = _centred_ctf(ctf, index, box, pixel_size, power=2)[:, box // 2 :]
    ax = ax if ax is not None else new_axes((4.6, 4.4))
    _draw_plane(ax, shown, pixel_size, cmap="gray", vmin=0, vmax=1)
    if ctf is not None:
        ax.axvline(0, color=GREY, lw=0.6)
        ax.set_title("data | CTF²", fontsize=10)
    return ax


def _centred_ctf(ctf: CTF, index: int, box: int, pixel_size: float, power: int = 1) -> NDArray:
    """The CTF over (y, x) frequencies, zero at ``box // 2``."""
    s = np.fft.fftshift(np.fft.fftfreq(box, pixel_size))
    return ctf[[index]](s[None, :], s[:, None], power=power)[0]


def _draw_plane(ax: Axes, values: NDArray, pixel_size: float, **options: Any) -> Any:
    """An image over frequencies in 1/angstrom, with circles of resolution."""
    from matplotlib.patches import Circle

    box = len(values)
    s = np.fft.fftshift(np.fft.fftfreq(box, pixel_size))
    half = 0.5 / (box * pixel_size)
    extent = (s[0] - half, s[-1] + half, s[0] - half, s[-1] + half)
    picture = ax.imshow(values, origin="lower", extent=extent, interpolation="nearest", **options)
    nyquist = 0.5 / pixel_size
    for part in (1 / 3, 2 / 3, 1.0):
        ax.add_patch(Circle((0, 0), part * nyquist, fill=False, color=GREY, lw=0.7, ls=":"))
        place = part * nyquist / np.sqrt(2)
        ax.annotate(
            f"{1 / (part * nyquist):.3g} Å",
            (place, place),
            fontsize=8,
            ha="center",
            va="center",
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.75, "edgecolor": "none"},
        )
    ax.set(xlim=(-nyquist, nyquist), ylim=(-nyquist, nyquist), aspect="equal")
    ax.set(xlabel="frequency along x (1/Å)", ylabel="along y (1/Å)")
    return picture
