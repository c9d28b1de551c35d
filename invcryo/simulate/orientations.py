"""Sets of orientations: uniform, preferred, limited to a cone. All give pose matrices (n, 3, 3)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..rotation import matrix_from_euler, random_rotations

__all__ = ["cone_orientations", "preferred_orientations", "uniform_orientations"]


def uniform_orientations(n: int, *, rng: np.random.Generator | int | None = None) -> NDArray:
    """``n`` orientations drawn uniformly on SO(3), (n, 3, 3)."""
    return random_rotations(n, rng=rng)


def preferred_orientations(
    n: int, axes: ArrayLike, kappa: ArrayLike, *, rng: np.random.Generator | int | None = None
) -> NDArray:
    """Orientations whose viewing directions gather about one or several axes, as of particles that stick.

    Parameters
    ----------
    n : int
        Number of orientations.
    axes : array_like, (3,) or (m, 3)
        Preferred viewing directions (x, y, z) in the frame of the map; each view picks one of them with equal
        chance. A particle that lies on either face needs both ``axis`` and ``-axis``.
    kappa : float or array_like, (m,)
        Concentration of the von Mises-Fisher distribution about each axis: 0 is uniform; for large values
        the angle to the axis is about ``sqrt(2 / kappa)`` radians (root mean square).
    rng : Generator or int, optional
        Source of randomness.

    Returns
    -------
    ndarray, (n, 3, 3)
        Row 3 of each matrix is its viewing direction. The in-plane angle is uniform.
    """
    rng = np.random.default_rng(rng)
    axes = _unit_axes(axes)
    kappa = np.broadcast_to(np.asarray(kappa, dtype=float), len(axes))
    if not (np.isfinite(kappa).all() and (kappa >= 0).all()):
        raise ValueError(f"kappa must be finite and not negative, got {kappa.tolist()}")
    pick = rng.integers(len(axes), size=n)
    concentration = kappa[pick]
    u = rng.random(n)
    # inverse of the cumulative distribution of the cosine to the axis; its limit at kappa = 0 is uniform
    safe = np.maximum(concentration, 1e-6)
    cosine = np.where(concentration > 1e-6, 1 + np.log(u + (1 - u) * np.exp(-2 * safe)) / safe, 2 * u - 1)
    return _from_directions(_about(axes[pick], np.clip(cosine, -1.0, 1.0), rng), rng)


def cone_orientations(
    n: int,
    max_angle: float,
    axis: ArrayLike = (0.0, 0.0, 1.0),
    *,
    min_angle: float = 0.0,
    rng: np.random.Generator | int | None = None,
) -> NDArray:
    """Orientations whose viewing directions are uniform within a cone about an axis.

    Parameters
    ----------
    n : int
        Number of orientations.
    max_angle, min_angle : float
        Largest and smallest angle to the axis, radians, ``0 <= min_angle <= max_angle <= pi``. A
        ``min_angle`` above 0 leaves a cone of views out.
    axis : array_like, (3,)
        (x, y, z) in the frame of the map.
    rng : Generator or int, optional
        Source of randomness.

    Returns
    -------
    ndarray, (n, 3, 3)
        Row 3 of each matrix is its viewing direction. The in-plane angle is uniform.
    """
    if not 0.0 <= min_angle <= max_angle <= np.pi:
        raise ValueError(
            f"angles must satisfy 0 <= min_angle <= max_angle <= pi in radians,"
            f" got min_angle = {min_angle:g}, max_angle = {max_angle:g}; use np.deg2rad for degrees"
        )
    rng = np.random.default_rng(rng)
    axes = _unit_axes(axis)
    if len(axes) != 1:
        raise ValueError(f"a cone has one axis of shape (3,), got {len(axes)} axes")
    cosine = rng.uniform(np.cos(max_angle), np.cos(min_angle), n)
    return _from_directions(_about(np.repeat(axes, n, axis=0), cosine, rng), rng)


def _unit_axes(axes: ArrayLike) -> NDArray:
    axes = np.atleast_2d(np.asarray(axes, dtype=float))
    if axes.ndim != 2 or axes.shape[1] != 3 or not len(axes):
        raise ValueError(f"axes must have shape (3,) or (m, 3), got {axes.shape}")
    length = np.linalg.norm(axes, axis=1, keepdims=True)
    if not np.isfinite(length).all() or length.min() == 0:
        raise ValueError(f"axes must be finite and not zero, got {axes.tolist()}")
    return axes / length


def _about(axes: NDArray, cosine: NDArray, rng: np.random.Generator) -> NDArray:
    """Unit vectors (n, 3) at given cosines to the axes (n, 3), uniform in azimuth."""
    azimuth = rng.uniform(0, 2 * np.pi, len(axes))
    # two vectors across each axis, started from the coordinate axis that is least along it
    helper = np.eye(3)[np.abs(axes).argmin(axis=1)]
    e1 = np.cross(axes, helper)
    e1 /= np.linalg.norm(e1, axis=1, keepdims=True)
    e2 = np.cross(axes, e1)
    sine = np.sqrt(1.0 - cosine**2)
    return (
        cosine[:, None] * axes
        + (sine * np.cos(azimuth))[:, None] * e1
        + (sine * np.sin(azimuth))[:, None] * e2
    )


def _from_directions(directions: NDArray, rng: np.random.Generator) -> NDArray:
    """Matrices (n, 3, 3) with given viewing directions and uniform in-plane angles."""
    rot = np.arctan2(directions[:, 1], directions[:, 0])
    tilt = np.arctan2(np.hypot(directions[:, 0], directions[:, 1]), directions[:, 2])
    psi = rng.uniform(-np.pi, np.pi, len(directions))
    return matrix_from_euler(rot, tilt, psi, degrees=False)
