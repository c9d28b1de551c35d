"""Test objects: non-negative volumes inside a ball of radius ``0.4 * box``, smooth enough to be sampled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfc

from ..grid import centred_coordinates
from ..symmetry import point_group

__all__ = ["PHANTOMS", "gaussian_beads", "phantom"]

#: Largest radius at which a phantom is not zero, as a fraction of the box.
RADIUS = 0.4

#: Standard deviation, in voxels, of the Gaussian that rounds off every edge: 0.7 % is left at Nyquist.
EDGE = 1.0

# The head phantom of Shepp and Logan in three dimensions (Kak and Slaney, table 3.1), with the contrast of
# Toft so that the small features can be seen: value, semi-axes (x, y, z), centre (x, y, z), angle about z in
# degrees.
_SHEPP_LOGAN = (
    (1.0, (0.69, 0.92, 0.81), (0.0, 0.0, 0.0), 0.0),
    (-0.8, (0.6624, 0.874, 0.78), (0.0, -0.0184, 0.0), 0.0),
    (-0.2, (0.11, 0.31, 0.22), (0.22, 0.0, 0.0), -18.0),
    (-0.2, (0.16, 0.41, 0.28), (-0.22, 0.0, 0.0), 18.0),
    (0.1, (0.21, 0.25, 0.41), (0.0, 0.35, -0.15), 0.0),
    (0.1, (0.046, 0.046, 0.05), (0.0, 0.1, 0.25), 0.0),
    (0.1, (0.046, 0.046, 0.05), (0.0, -0.1, 0.25), 0.0),
    (0.1, (0.046, 0.023, 0.05), (-0.08, -0.605, 0.0), 0.0),
    (0.1, (0.023, 0.023, 0.02), (0.0, -0.606, 0.0), 0.0),
    (0.1, (0.023, 0.046, 0.02), (0.06, -0.605, 0.0), 0.0),
)


def phantom(
    name: str, box: int, *, rng: np.random.Generator | int | None = None, symmetry: str = "C1"
) -> NDArray[np.float32]:
    """A test object.

    Parameters
    ----------
    name : str
        One of `PHANTOMS`:

        - ``"shepp-logan"``: the head of Shepp and Logan, made of ellipsoids; sharp edges, flat regions.
        - ``"blobs"``: 24 Gaussian blobs of random place, width and weight; smooth, without symmetry.
        - ``"helix"``: a right-handed coil of two turns, heavier towards +z, so that a mirror image or a flip
          is seen at once.
        - ``"shell"``: a hollow ball; the same from every side, its projections are known in closed form.
        - ``"enzyme"``: random compact chains of beads at the distances and the density of a protein.
    box : int
        Side of the volume in voxels, at least 16, odd or even.
    rng : Generator or int, optional
        Source of the random shapes ("blobs", "enzyme").
    symmetry : str
        Point group of "blobs" and "enzyme", by name, such as ``"D2"``; the other names exist in C1 only (a
        shell has every symmetry).

    Returns
    -------
    ndarray, (box, box, box), float32
        Not negative, the largest value is 1, zero outside the ball of radius ``0.4 * box`` about the centre
        ``box // 2``. All but "shepp-logan" have their centre of mass there.
    """
    if name not in PHANTOMS:
        raise ValueError(f"no phantom is called {name!r}; there are {', '.join(PHANTOMS)}")
    if box < 16:
        raise ValueError(f"box = {box} voxels is too small for a phantom with smooth edges; use 16 or more")
    if len(point_group(symmetry)) > 1 and name in ("shepp-logan", "helix"):
        raise ValueError(f"phantom {name!r} has no symmetry, {symmetry!r} was asked; use 'blobs' or 'enzyme'")
    volume = _MAKERS[name](box, np.random.default_rng(rng), symmetry)
    volume[_squared_radius(box) > (RADIUS * box) ** 2] = 0.0
    np.maximum(volume, 0.0, out=volume)
    return (volume / volume.max()).astype(np.float32)


def gaussian_beads(box: int, positions: NDArray, sigma: NDArray | float, weights: NDArray | float) -> NDArray:
    """Sum of Gaussians, cut at 5 sigma, of unit peak times weight.

    Parameters
    ----------
    box : int
        Side of the volume in voxels.
    positions : ndarray, (n, 3)
        Centres (x, y, z) in voxels from ``box // 2``.
    sigma, weights : ndarray, (n,) or float
        Standard deviations in voxels, and peak values.

    Returns
    -------
    ndarray, (box, box, box), float64
    """
    volume = np.zeros((box, box, box))
    sigmas = np.broadcast_to(sigma, len(positions))
    heights = np.broadcast_to(weights, len(positions))
    for centre, width, height in zip(positions + box // 2, sigmas, heights, strict=True):
        low = np.maximum(np.floor(centre - 5 * width).astype(int), 0)
        high = np.minimum(np.ceil(centre + 5 * width).astype(int) + 1, box)
        x, y, z = (
            np.exp(-0.5 * ((np.arange(a, b) - c) / width) ** 2)
            for a, b, c in zip(low, high, centre, strict=True)
        )
        patch = volume[low[2] : high[2], low[1] : high[1], low[0] : high[0]]
        patch += height * z[:, None, None] * y[:, None] * x
    return volume


def _squared_radius(box: int) -> NDArray:
    z, y, x = centred_coordinates((box, box, box))
    return z**2 + y**2 + x**2


def _inner_radius(box: int) -> float:
    """Where shapes must end so that their soft edge (3 standard deviations) ends at the ball."""
    return RADIUS * box - 3 * EDGE


def _step_down(distance: NDArray) -> NDArray:
    """A step from 1 (inside, negative distance in voxels) to 0, blurred by a Gaussian of width `EDGE`."""
    return 0.5 * erfc(distance / (np.sqrt(2.0) * EDGE))


def _shepp_logan(box: int, rng: np.random.Generator, symmetry: str) -> NDArray:
    unit = _inner_radius(box) / 0.92
    z, y, x = (axis / unit for axis in centred_coordinates((box, box, box)))
    volume = np.zeros((box, box, box))
    for value, (a, b, c), (x0, y0, z0), degrees in _SHEPP_LOGAN:
        cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        u = ((x - x0) * cos + (y - y0) * sin) / a
        v = ((y - y0) * cos - (x - x0) * sin) / b
        w = (z - z0) / c
        rho = np.sqrt(u * u + v * v + w * w)
        slope = np.sqrt((u / a) ** 2 + (v / b) ** 2 + (w / c) ** 2) / np.maximum(rho, 1e-6)
        # (rho - 1) / slope is the distance to the surface, to first order
        volume += value * _step_down((rho - 1.0) / np.maximum(slope, 1e-6) * unit)
    return volume


def _shell(box: int, rng: np.random.Generator, symmetry: str) -> NDArray:
    r = np.sqrt(_squared_radius(box))
    outer = _inner_radius(box)
    return _step_down(r - outer) - _step_down(r - 0.7 * outer)


def _helix(box: int, rng: np.random.Generator, symmetry: str) -> NDArray:
    turn = np.linspace(-2 * np.pi, 2 * np.pi, 121)
    points = np.stack([0.5 * np.cos(turn), 0.5 * np.sin(turn), 0.6 * turn / (2 * np.pi)], axis=1)
    return _fill_ball(box, points, 0.08, np.linspace(0.5, 1.5, len(turn)), np.eye(3)[None])


def _blobs(box: int, rng: np.random.Generator, symmetry: str) -> NDArray:
    group = point_group(symmetry)
    n = max(2, round(24 / len(group)))
    points = 0.7 * _unit(rng.standard_normal((n, 3))) * np.cbrt(rng.random((n, 1)))
    return _fill_ball(box, points, rng.uniform(0.08, 0.15, n), rng.uniform(0.5, 1.5, n), group)


def _enzyme(box: int, rng: np.random.Generator, symmetry: str) -> NDArray:
    group = point_group(symmetry)
    chain = _compact_chain(max(12, round(320 / len(group))), group, rng)
    # beads of 1.9 A: neighbours at 3.8 A merge, chains that pass at 5 A or more stay apart
    return _fill_ball(box, chain, 1.9, 1.0, group)


_MAKERS = {
    "shepp-logan": _shepp_logan,
    "blobs": _blobs,
    "helix": _helix,
    "shell": _shell,
    "enzyme": _enzyme,
}

#: The names that `phantom` knows.
PHANTOMS = tuple(_MAKERS)


def _fill_ball(
    box: int, points: NDArray, sigma: NDArray | float, weights: NDArray | float, group: NDArray
) -> NDArray:
    """Gaussian beads and their copies under the group, centred by mass and scaled to fill the ball."""
    n, order = len(points), len(group)
    sigma, weights = (np.tile(np.broadcast_to(v, n), order) for v in (sigma, weights))
    copies = np.einsum("gij,pj->gpi", group, points).reshape(-1, 3)
    mass = weights * sigma**3
    copies -= mass @ copies / mass.sum()
    distance = np.linalg.norm(copies, axis=1)
    scale = RADIUS * box / (distance + 3 * sigma).max()
    # in a small box all beads are widened alike (which keeps the centre of mass), and the centres draw in
    sigma = scale * sigma * max(1.0, EDGE / (scale * sigma.min()))
    scale = min(scale, ((RADIUS * box - 3 * sigma) / np.maximum(distance, 1e-9)).min())
    return gaussian_beads(box, scale * copies, sigma, weights)


def _compact_chain(n: int, group: NDArray, rng: np.random.Generator) -> NDArray:
    """Positions (n, 3) in angstrom of a chain with steps of 3.8 A that fills a ball with its copies.

    Grown bead by bead: of 48 random directions the one is taken that keeps 5 A from every earlier bead and
    copy, stays in the ball, and bends least abruptly. The ball has the volume of a protein of that many
    residues (134 cubic angstrom each), made a fifth larger so that the chain finds its way.
    """
    step, clearance = 3.8, 5.0
    ball = 1.2 * np.cbrt(3 * 134.0 * n * len(group) / (4 * np.pi))
    chain = np.empty((n, 3))
    direction = _unit(rng.standard_normal(3))
    starts = 0.6 * ball * _unit(rng.standard_normal((8, 3)))
    chain[0] = starts[np.argmax(_own_distance(starts, group))]
    for k in range(1, n):
        directions = _unit(rng.standard_normal((48, 3)) + 0.7 * direction)
        ends = chain[k - 1] + step * directions
        cost = 0.3 * rng.random(len(ends)) + 2.0 * np.maximum(np.linalg.norm(ends, axis=1) - ball, 0.0) ** 2
        # the last bead is meant to be near, and is as far from its own copies as it could be
        others = np.einsum("gij,pj->gpi", group, chain[: k - 1]).reshape(-1, 3)
        apart = np.linalg.norm(ends[:, None] - others, axis=2)
        cost += (np.maximum(clearance - apart, 0.0) ** 2).sum(axis=1)
        cost += np.maximum(clearance - _own_distance(ends, group), 0.0) ** 2
        best = int(np.argmin(cost))
        chain[k], direction = ends[best], directions[best]
    return chain


def _own_distance(points: NDArray, group: NDArray) -> NDArray:
    """Distance (n,) from each point to the nearest of its own copies; infinite in C1."""
    copies = np.einsum("gij,pj->pgi", group, points)
    moved = ~np.isclose(np.einsum("gii->g", group), 3.0)
    return np.linalg.norm(points[:, None] - copies[:, moved], axis=2).min(axis=1, initial=np.inf)


def _unit(vectors: NDArray) -> NDArray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
