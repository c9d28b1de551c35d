"""A uniform grid of rotations: directions on a spiral, times turns in the plane."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..rotation import spiral_views
from ..symmetry import point_group

__all__ = ["RotationGrid", "rotation_grid"]

#: Measured for 30 to 100 000 directions: no point of the sphere is further from a direction than this over sqrt(n).
_COVERING = 2.75


@dataclass(frozen=True, eq=False)
class RotationGrid:
    """Poses ``turn(psi[j]) @ views[d]``, at equal distances in the plane.

    Attributes
    ----------
    views : ndarray, (directions, 3, 3)
        Poses with psi = 0.
    turns : int
        ``psi[j] = (j + 1/2) 360 / turns`` degrees, counted from the x to the y axis of the image (RELION's psi with
        the other sign); a multiple of 4.
    covering_deg : float
        No rotation is further than this from a pose of the grid or a symmetric copy of one.
    group : ndarray, (|G|, 3, 3)
    """

    views: NDArray
    turns: int
    covering_deg: float
    group: NDArray

    def __len__(self) -> int:
        return len(self.views) * self.turns

    @property
    def angles(self) -> NDArray:
        """Of the turns in the plane, radians, (turns,)."""
        return (np.arange(self.turns) + 0.5) * (2 * np.pi / self.turns)

    def matrices(self, direction: ArrayLike, turn: ArrayLike) -> NDArray:
        """Poses (..., 3, 3) of indices of directions and of turns."""
        angle = self.angles[np.asarray(turn)]
        c, s, zero = np.cos(angle), np.sin(angle), np.zeros_like(angle)
        in_plane = np.stack([c, -s, zero, s, c, zero, zero, zero, zero + 1], axis=-1)
        return in_plane.reshape(angle.shape + (3, 3)) @ self.views[np.asarray(direction)]


def rotation_grid(step_deg: float, group: str | ArrayLike = "C1") -> RotationGrid:
    """Uniform grid of SO(3), or of the part of it that a symmetry leaves.

    Parameters
    ----------
    step_deg : float
        Mean distance of neighbouring directions, and the largest of turns in the plane. Directions lie on a spiral
        of equal areas; with turns at equal distances their density is that of the uniform measure of SO(3).
    group : str or ndarray (|G|, 3, 3)
        Views ``A`` and ``A @ g`` are the same. Directions are kept where they are closer to one general axis than
        their symmetric copies are, and so far around that none lacks its neighbours.

    Notes
    -----
    A rotation is a turn in the plane by at most half a step after a tilt of at most the covering radius of the
    directions, which together give ``covering_deg``, 0.75 to 0.8 steps.
    """
    if not 0.2 <= step_deg <= 60:
        raise ValueError(f"the step of a grid of rotations is 0.2 to 60 degrees, got {step_deg}")
    copies = point_group(group) if isinstance(group, str) else np.asarray(group, float)
    step = np.deg2rad(step_deg)
    n = int(np.ceil(4 * np.pi / step**2))
    turns = 4 * int(np.ceil(np.pi / 2 / step))
    views = spiral_views(n)
    tilt = _COVERING / np.sqrt(n)
    axis = np.array([0.2171, 0.3303, 0.9186])
    apart = axis - copies @ axis
    length = np.linalg.norm(apart, axis=1)
    apart = apart[length > 1e-6] / length[length > 1e-6, None]
    inside = (views[:, 2] @ apart.T >= -np.sin(tilt)).all(axis=1)
    covering = 2 * np.arccos(np.cos(tilt / 2) * np.cos(np.pi / turns / 2))
    return RotationGrid(views[inside], turns, float(np.rad2deg(covering)), copies)
