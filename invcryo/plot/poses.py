"""Orientations of the views, errors and changes of poses, and how a refinement went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .common import GREY, new_axes, new_panels, open_frame, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..data import Poses
    from ..metrics.poses import PoseErrors

__all__ = ["angular_errors", "orientations", "resolution_by_round", "robustness", "shift_errors"]


def orientations(poses: Poses, *, bins: int = 24, ax: Axes | None = None) -> Axes:
    """Viewing directions: number of views over rot and cos(tilt), in bins of equal solid angle.

    Equal spacing in cos(tilt) is equal area on the sphere, so uniform views give a flat picture; the axis is
    marked in degrees of tilt.

    Parameters
    ----------
    poses : Poses
    bins : int
        Along rot; half as many along tilt.
    """
    rot, tilt, _ = poses.euler_deg()
    ax = ax if ax is not None else new_axes((6.4, 3.8))
    rows = max(1, bins // 2)
    counts, rot_edges, height_edges = np.histogram2d(
        rot, np.cos(np.deg2rad(tilt)), bins=(bins, rows), range=((-180, 180), (-1, 1))
    )
    mesh = ax.pcolormesh(rot_edges, height_edges, counts.T, cmap="viridis", vmin=0, rasterized=True)
    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.02)
    bar.set_label(f"views per bin (mean {len(poses) / (bins * rows):.3g})")
    ticks = np.array([0, 30, 60, 90, 120, 150, 180])
    ax.set_yticks(np.cos(np.deg2rad(ticks)), [f"{t}" for t in ticks])
    ax.set(xticks=range(-180, 181, 60), xlabel="rot (degrees)", ylabel="tilt (degrees, equal area)")
    ax.set_ylim(-1, 1)  # tilt 0, the pole of the z axis, on top
    return ax


def angular_errors(errors: Mapping[str, PoseErrors], *, limit: float = 15.0, bins: int = 60) -> NDArray:
    """Histograms of the errors of rot, tilt and psi, and of the whole rotation, in four panels.

    Parameters
    ----------
    errors : mapping of str to PoseErrors
        For changes rather than errors: those of the start against the refined poses, with the alignment
        ``PoseAlignment(np.eye(3))``.
    limit : float
        Degrees shown on either side; the legend counts what lies beyond in the whole rotation.
    bins : int
    """
    panels = new_panels(1, 4, (12.8, 3.4), sharey=True)[0]
    for axis, name in enumerate(("rot", "tilt", "psi")):
        values = {label: e.euler[:, axis] for label, e in errors.items()}
        _histograms(panels[axis], values, np.linspace(-limit, limit, bins + 1))
        panels[axis].set_xlabel(f"error of {name} (degrees)")
    named = {
        f"{label}: median {np.median(e.angle):.2f}°, {100 * (1 - e.within(limit)):.1f} % beyond": e.angle
        for label, e in errors.items()
    }
    _histograms(panels[3], named, np.linspace(0, limit, bins + 1))
    panels[3].set_xlabel("angle of the rotation (degrees)")
    panels[0].set_ylabel("fraction of the views")
    panels[3].legend(fontsize=7.5, frameon=False, loc="upper right")
    return panels


def shift_errors(errors: Mapping[str, PoseErrors], *, limit: float = 4.0, bins: int = 60) -> NDArray:
    """Histograms of the errors of the shifts along x and y, in two panels.

    Parameters
    ----------
    errors : mapping of str to PoseErrors
        As for `angular_errors`.
    limit : float
        Pixels shown on either side.
    bins : int
    """
    panels = new_panels(1, 2, (8.0, 3.4), sharey=True)[0]
    edges = np.linspace(-limit, limit, bins + 1)
    for axis, name in enumerate("xy"):
        values = {
            f"{label}: median length {np.median(e.shift_length):.2f} px": e.shift[:, axis]
            for label, e in errors.items()
        }
        _histograms(panels[axis], values, edges)
        panels[axis].set_xlabel(f"error of the shift along {name} (pixels)")
    panels[0].set_ylabel("fraction of the views")
    panels[1].legend(fontsize=7.5, frameon=False, loc="upper right")
    return panels


def resolution_by_round(
    resolution: Mapping[str, Sequence[float] | ArrayLike],
    *,
    limits: Mapping[str, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Resolution of the map after each round of a refinement, finer upwards (Figure 4.11 of Donati 2020).

    Parameters
    ----------
    resolution : mapping of str to sequence of float
        Angstrom after rounds 0, 1, ...; round 0 is the start. Values that are not finite are left out.
    limits : mapping of str to float, optional
        Drawn as horizontal lines: the resolution with true poses, Nyquist.
    """
    ax = ax if ax is not None else new_axes((6.4, 4.2))
    open_frame(ax)
    for i, (label, values) in enumerate(resolution.items()):
        values = np.asarray(values, float)
        rounds = np.arange(len(values))
        good = np.isfinite(values) & (values > 0)
        ax.plot(rounds[good], 1 / values[good], label=label, marker="o", ms=4, **style(i))
    for i, (label, value) in enumerate((limits or {}).items()):
        ax.axhline(1 / value, color=GREY, lw=1.0, ls=("-", ":", "--")[i % 3], label=f"{label}: {value:.3g} Å")
    ax.set_xlabel("round")
    ax.locator_params(axis="x", integer=True)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("resolution (Å)")
    low, high = ax.get_ylim()
    candidates = np.array([1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100])
    shown = [v for v in candidates if low < 1 / v < high]
    kept: list[float] = []
    for v in shown:  # labels a fifteenth of the axis apart
        if not kept or 1 / kept[-1] - 1 / v > (high - low) / 15:
            kept.append(v)
    ax.set_yticks([1 / v for v in kept], [f"{v:g}" for v in kept])
    ax.legend(fontsize=8, frameon=False)
    return ax


def robustness(rows: Sequence[Mapping[str, float]], *, ax: Axes | None = None) -> Axes:
    """Resolution against the error of the orientations, a line for each scale (Figure 4.2a of Donati 2020).

    Parameters
    ----------
    rows : sequence of mapping
        ``scale``, ``error_deg``, ``resolution_angstrom``, as of `studies.multiscale.angular_error_study`.
    """
    ax = ax if ax is not None else new_axes((5.6, 4.2))
    open_frame(ax)
    for i, scale in enumerate(sorted({row["scale"] for row in rows})):
        mine = sorted((r["error_deg"], r["resolution_angstrom"]) for r in rows if r["scale"] == scale)
        ax.plot(*zip(*mine, strict=True), label=f"s = {scale:g}", marker="o", ms=4, **style(i))
    ax.set_ylim(bottom=0)
    ax.set_xlabel("standard deviation of the errors of the angles (degrees)")
    ax.set_ylabel("resolution, FSC 0.5 against the truth (Å)")
    ax.legend(fontsize=8, frameon=False)
    return ax


def _histograms(ax: Axes, values: Mapping[str, NDArray], edges: NDArray) -> None:
    open_frame(ax)
    for i, (label, sample) in enumerate(values.items()):
        # fractions of all views, also of those that are not shown
        counts = np.histogram(sample, edges)[0] / max(len(sample), 1)
        ax.stairs(counts, edges, label=label, **style(i))
        # room for the legend; the panels share this axis
        ax.set_ylim(0, max(ax.get_ylim()[1] if ax.get_autoscaley_on() is False else 0.0, 1.35 * counts.max()))
    ax.set_xlim(edges[0], edges[-1])
