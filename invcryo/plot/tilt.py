"""Tilt series: figures of merit against dose, slices along the beam, spectra with the missing wedge, leakage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .common import COLOURS, GREY, new_axes, new_panels, open_frame, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["dose_curves", "profiles", "section_grid", "tilt_masks", "tpsf", "wedge_spectrum"]


def dose_curves(
    rows: Sequence[Mapping[str, Any]],
    metric: str,
    *,
    label: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A figure of merit against the part of the dose, one curve for each way of sampling and reconstructing.

    Parameters
    ----------
    rows : sequence of mapping
        A table with ``mode``, ``method``, ``fraction`` and ``metric``; rows that differ in nothing else (by ``seed``)
        become one point, their mean, with a bar from the lowest to the highest.
    metric : str
        Name of the column.
    label : str, optional
        Of the axis.
    """
    groups: dict[tuple[str, str], dict[float, list[float]]] = {}
    for row in rows:
        value = row.get(metric)
        if value is not None and np.isfinite(value):
            group = groups.setdefault((str(row["mode"]), str(row["method"])), {})
            group.setdefault(float(row["fraction"]), []).append(float(value))
    if not groups:
        raise ValueError(f"no row of the table has a finite value of {metric!r}")
    ax = ax if ax is not None else new_axes((6.4, 4.2))
    open_frame(ax)
    methods = list(dict.fromkeys(method for _, method in groups))
    modes = list(dict.fromkeys(mode for mode, _ in groups))
    for (mode, method), points in groups.items():
        x = np.array(sorted(points))
        values = [np.array(points[f]) for f in x]
        mean = np.array([v.mean() for v in values])
        spread = np.array([[m - v.min(), v.max() - m] for m, v in zip(mean, values, strict=True)]).T
        # the colour says how it was reconstructed, dashes and marker how it was sampled
        ax.errorbar(
            100 * x,
            mean,
            np.maximum(spread, 0),
            color=COLOURS[methods.index(method) % len(COLOURS)],
            ls=style(modes.index(mode))["ls"],
            marker="os^D"[modes.index(mode) % 4],
            markersize=4.5,
            lw=1.6,
            capsize=3,
            label=f"{mode}, {method}",
        )
    ax.set_xscale("log")
    ticks = sorted({100 * f for points in groups.values() for f in points})
    ax.set_xticks(ticks, [f"{t:.3g}" for t in ticks])
    ax.minorticks_off()
    ax.set(xlabel="dose (% of the full series)", ylabel=label or metric)
    ax.legend(frameon=False, fontsize=9)
    return ax


def section_grid(
    volumes: Sequence[Sequence[ArrayLike | None]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    plane: str = "xz",
    index: int | None = None,
    contrast: tuple[float, float] | None = None,
) -> NDArray:
    """The same section through many volumes (z, y, x), or the sections themselves, on one grey scale.

    Parameters
    ----------
    volumes : sequence of sequences
        By row and column; None leaves a place empty.
    rows, columns : sequence of str
        Their titles.
    plane : "xz", "xy" or "yz"
    index : int, optional
        Of the section; the middle one by default.
    contrast : pair of float, optional
        Values shown black and white; the 0.5 and 99.5 percentiles of the first volume by default.
    """
    if plane not in ("xz", "xy", "yz"):
        raise ValueError(f"a section is 'xz', 'xy' or 'yz', got {plane!r}")
    axis = {"xy": 0, "xz": 1, "yz": 2}[plane]

    def cut(volume: ArrayLike | None) -> NDArray | None:
        if volume is None or np.ndim(volume) == 2:
            return None if volume is None else np.asarray(volume)
        v = np.asarray(volume)
        return v.take(v.shape[axis] // 2 if index is None else index, axis=axis)

    sections = [[cut(v) for v in row] for row in volumes]
    some = next((s for row in sections for s in row if s is not None), None)
    if some is None:
        raise ValueError("there is no volume to draw")
    low, high = np.percentile(some, (0.5, 99.5)) if contrast is None else contrast
    height, width = some.shape
    size = 2.6
    grid = new_panels(
        len(rows), len(columns), (size * len(columns) + 0.3, (size * height / width + 0.1) * len(rows) + 0.3)
    )
    for i, (row, name) in enumerate(zip(sections, rows, strict=True)):
        for j, (section, title) in enumerate(zip(row, columns, strict=True)):
            ax = grid[i, j]
            ax.set(xticks=[], yticks=[])
            if i == 0:
                ax.set_title(title, fontsize=9)
            if j == 0:
                ax.set_ylabel(name, fontsize=9)
            if section is None:
                ax.set_frame_on(False)
                continue
            ax.imshow(section, cmap="gray", vmin=low, vmax=high, origin="lower", interpolation="nearest")
    return grid


def profiles(
    lines: Mapping[str, ArrayLike], *, pixel_size: float | None = None, ax: Axes | None = None
) -> Axes:
    """Values along a line through several volumes; the first is drawn in black, for the truth."""
    ax = ax if ax is not None else new_axes((6.8, 3.2))
    open_frame(ax)
    step = 1.0 if pixel_size is None else pixel_size
    for i, (name, values) in enumerate(lines.items()):
        v = np.asarray(values, dtype=float)
        look = {"color": "black", "lw": 1.2} if i == 0 else style(i - 1)
        ax.plot(step * np.arange(len(v)), v, label=name, **look)
    ax.set(xlabel="position (pixels)" if pixel_size is None else "position (Å)", ylabel="value")
    ax.legend(frameon=False, fontsize=9)
    return ax


def wedge_spectrum(
    volume: ArrayLike,
    angles: ArrayLike,
    *,
    axis: str = "y",
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Power of a volume in the plane across the tilt axis (logarithm, summed along it), with the wedge drawn.

    Parameters
    ----------
    volume : array_like, (z, y, x)
    angles : array_like
        Tilts in radians; the wedge is what lies between the outermost ones.
    axis : "y" or "x"
        Tilt axis.
    """
    v = np.asarray(volume, dtype=float)
    if v.ndim != 3:
        raise ValueError(f"a volume has axes (z, y, x), got shape {v.shape}")
    along, name = (1, "x") if axis == "y" else (2, "y")
    spectrum = np.fft.fftshift(np.fft.fft2(v - v.mean(), axes=(0, 3 - along)), axes=(0, 3 - along))
    power = np.log10(np.square(abs(spectrum)).sum(axis=along) + 1e-30)
    high = float(power.max())
    ax = ax if ax is not None else new_axes((4.2, 4.2))
    ax.imshow(
        power,
        cmap="magma",
        vmin=high - 7,
        vmax=high,
        origin="lower",
        extent=(-0.5, 0.5, -0.5, 0.5),
        interpolation="nearest",
    )
    tilts = np.asarray(angles, dtype=float)
    reach = np.array([-0.75, 0.75])
    if tilts.max() - tilts.min() < np.pi * 0.995:
        for t in (tilts.min(), tilts.max()):  # a tilt t measures the line (cos t, -sin t)
            ax.plot(reach * np.cos(t), -reach * np.sin(t), color="white", lw=1.0, ls="--")
        ax.set_title(
            title or f"tilts {np.rad2deg(tilts.min()):.0f} to {np.rad2deg(tilts.max()):.0f} degrees",
            fontsize=9,
        )
    elif title:
        ax.set_title(title, fontsize=9)
    ax.set(
        xlim=(-0.5, 0.5),
        ylim=(-0.5, 0.5),
        xlabel=f"{name} frequency (1/pixel)",
        ylabel="z frequency (1/pixel)",
    )
    return ax


def tpsf(responses: Mapping[str, Any]) -> NDArray:
    """Transform point-spread functions side by side: where a coefficient leaks to, and how much how often.

    Parameters
    ----------
    responses : mapping of str to TPSF
        By name of the sampling. Responses of more than two axes show the plane of the coefficient.
    """
    names = list(responses)
    if not names:
        raise ValueError("there is no response to draw")
    grid = new_panels(2, len(names), (3.0 * len(names) + 0.3, 5.2), height_ratios=[1.6, 1])
    limit = max(r.peak_sidelobe for r in responses.values()) or 1.0
    bins = np.linspace(-limit, limit, 61)
    for j, name in enumerate(names):
        r = responses[name]
        picture = abs(r.leakage)
        if picture.ndim == 3:
            picture = picture[:, r.index[1]]
        place = (r.index[0], r.index[-1])
        ax = grid[0, j]
        ax.imshow(
            picture,
            cmap="magma",
            vmin=0,
            vmax=0.5 * limit,
            origin="lower",
            interpolation="nearest",
            aspect="auto",
        )
        ax.plot(place[1], place[0], marker="o", mfc="none", mec="white", ms=9)
        ax.set(xticks=[], yticks=[])
        ax.set_title(name, fontsize=9)
        ax = grid[1, j]
        open_frame(ax)
        ax.hist(r.leakage.ravel(), bins=bins, color=COLOURS[0], log=True)
        ax.set(xlabel="leakage", ylim=(0.5, None))
        if j == 0:
            ax.set_ylabel("coefficients")
        ax.text(
            0.97,
            0.95,
            f"peak {r.peak_sidelobe:.3f}\nkurtosis {r.kurtosis:.0f}",
            transform=ax.transAxes,
            ha="right",
            va="top",
            fontsize=8,
            color=GREY,
        )
    return grid


def tilt_masks(mask: ArrayLike, angles_deg: ArrayLike, *, count: int = 4) -> NDArray:
    """The masks of a few tilts, evenly spaced; measured pixels are white."""
    m = np.asarray(mask)
    degrees = np.asarray(angles_deg, dtype=float)
    shown = np.unique(np.linspace(0, len(m) - 1, min(count, len(m))).round().astype(int))
    grid = new_panels(1, len(shown), (2.4 * len(shown), 2.7))
    for ax, i in zip(grid.ravel(), shown, strict=True):
        ax.imshow(m[i], cmap="gray", vmin=0, vmax=1, origin="lower", interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.set_title(f"{degrees[i]:.1f} degrees, {100 * m[i].mean():.3g} %", fontsize=9)
    return grid
