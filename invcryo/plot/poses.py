"""Orientations of the views."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .common import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..data import Poses

__all__ = ["orientations"]


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
