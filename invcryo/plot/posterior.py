"""Posteriors of Fourier voxels and errors over poses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .common import COLOURS, GREY, new_axes, new_panels, open_frame, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["calibration", "fourier_slices", "pose_errors_surface"]


def fourier_slices(
    values: ArrayLike,
    *,
    label: str = "sigma / prior",
    limits: tuple[float, float] = (0.0, 1.0),
    title: str | None = None,
    axes: Sequence[Axes] | None = None,
) -> NDArray:
    """The three central planes of real values on a half spectrum (n, n, n // 2 + 1), origin in the middle.

    Parameters
    ----------
    values : array_like, (n, n, n // 2 + 1)
        In the order of ``rfftn``, equal at Friedel mates.
    limits : pair of float
        Values at the ends of the colour scale.

    Returns
    -------
    ndarray of Axes, (3,)
    """
    values = np.asarray(values)
    n = values.shape[0]
    if values.shape != (n, n, n // 2 + 1):
        raise ValueError(f"a half spectrum (n, n, n // 2 + 1) is needed, got {values.shape}")
    whole = centred_spectrum(values)
    middle = n // 2
    cuts = (whole[middle], whole[:, middle], whole[:, :, middle])
    panels = new_panels(1, 3, (9.6, 3.4)).ravel() if axes is None else np.asarray(axes, dtype=object).ravel()
    if len(panels) != 3:
        raise ValueError(f"fourier_slices draws on three axes, got {len(panels)}")
    sides = (("x", "y"), ("x", "z"), ("y", "z"))
    for ax, cut, (right, up) in zip(panels, cuts, sides, strict=True):
        picture = ax.imshow(cut, cmap="viridis", vmin=limits[0], vmax=limits[1], origin="lower")
        ax.set(xticks=[], yticks=[], xlabel=f"$k_{right}$ →", ylabel=f"$k_{up}$ →")
    panels[0].figure.colorbar(picture, ax=list(panels), label=label, shrink=0.8)
    if title is not None:
        panels[0].set_title(title, fontsize=10, loc="left")
    return panels


def centred_spectrum(values: NDArray) -> NDArray:
    """Real values on a half spectrum, equal at Friedel mates, on the whole one (n, n, n), the origin in the middle."""
    n = values.shape[0]
    back = -np.arange(n) % n
    rest = values[np.ix_(back, back, np.arange((n - 1) // 2, 0, -1))]
    return np.fft.fftshift(np.concatenate([values, rest], axis=2))


def calibration(
    within: Mapping[str, ArrayLike], *, pixel_size: float, box: int, ax: Axes | None = None
) -> Axes:
    """Fractions of true coefficients within 1 and 2 standard deviations, by shell; grey is what they should be.

    Parameters
    ----------
    within : mapping of str to (2, shells)
        Labels and fractions, as of ``VoxelPosterior.calibration(truth).within``.
    """
    ax = ax if ax is not None else new_axes((6.4, 4.2))
    open_frame(ax)
    for level in (0.6827, 0.9545):
        ax.axhline(level, color=GREY, lw=0.9, ls=":")
    for i, (label, fractions) in enumerate(within.items()):
        both = np.asarray(fractions)
        frequency = np.arange(both.shape[1]) / (box * pixel_size)
        for k, fraction in enumerate(both):
            text = label if k == 0 else None
            ax.plot(frequency[1:], fraction[1:], label=text, **style(i))
    ax.set(xlabel="frequency (1/Å)", ylabel="part within 1 and 2 sigma", ylim=(0, 1.02))
    ax.legend(frameon=False, fontsize=9)
    return ax


def pose_errors_surface(
    errors: ArrayLike,
    rot_deg: ArrayLike,
    tilt_deg: ArrayLike,
    *,
    true: tuple[float, float] | None = None,
    paths: Sequence[Any] = (),
    ax: Axes | None = None,
) -> Axes:
    """Errors over two Euler angles, darker where smaller, with descents on them.

    Parameters
    ----------
    errors : array_like, (len(tilt_deg), len(rot_deg))
    true : pair of float, optional
        Angles of the truth, a red star.
    paths : sequence of arrays (points, 2)
        Angles along descents, in degrees; each begins at a ring and ends at a dot.
    """
    ax = ax if ax is not None else new_axes((7.2, 4.2))
    rot, tilt = np.asarray(rot_deg), np.asarray(tilt_deg)
    picture = ax.pcolormesh(rot, tilt, np.asarray(errors), cmap="gray", shading="nearest", rasterized=True)
    ax.figure.colorbar(picture, ax=ax, label="error, nats above the least")
    for path in paths:
        path = np.asarray(path)
        # a line that leaves on one side comes back on the other
        x = np.where(np.abs(np.diff(path[:, 0], prepend=path[0, 0])) > 180, np.nan, path[:, 0])
        ax.plot(x, path[:, 1], color=COLOURS[1], lw=1)
        ax.plot(*path[0], "o", mfc="none", color=COLOURS[1], ms=5)
        ax.plot(*path[-1], "o", color=COLOURS[1], ms=4)
    if true is not None:
        ax.plot(*true, "*", color="red", ms=13, mec="white")
    ax.set(xlabel="rot (degrees)", ylabel="tilt (degrees)", xlim=(rot[0], rot[-1]), ylim=(tilt[0], tilt[-1]))
    return ax
