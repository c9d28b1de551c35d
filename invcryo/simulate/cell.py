"""A piece of a cell: membranes, vesicles, microtubules, filaments and granules, for tomography."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfc

from ..rotation import matrix_from_euler, random_rotations

__all__ = ["cell_phantom"]

_SLAB = 16  # sections painted at a time, which bounds the temporary arrays

_CYTOSOL, _MEMBRANE, _FILAMENT, _TUBULE, _GRANULE = 0.18, 0.85, 0.7, 0.8, 1.0


def cell_phantom(shape: Sequence[int], *, rng: np.random.Generator | int | None = 0) -> NDArray[np.float32]:
    """A volume (z, y, x) with the structures that cellular tomography looks for.

    A cell with a wavy double-leaflet membrane, a nucleus with an envelope of two membranes and clumps inside, vesicles
    full and empty, an axoneme (nine microtubules about two) and single microtubules, thin filaments, granules.

    Parameters
    ----------
    shape : (nz, ny, nx)
        Any, each at least 24; the cell is made for a box twice as wide as deep.
    rng : Generator or int
        Of all shapes and places. Lengths follow the box: a seed gives the same cell at every size, with finer parts
        in a larger box.

    Returns
    -------
    ndarray, (nz, ny, nx), float32
        Between 0 and 1, 0 outside the cell and at the border. Edges are soft over a voxel.
    """
    shape = tuple(int(n) for n in shape)
    if len(shape) != 3 or min(shape) < 24:
        raise ValueError(f"a cell needs a box (nz, ny, nx) of at least 24 voxels a side, got {shape}")
    rng = np.random.default_rng(rng)
    canvas = _Canvas(shape)
    wave = rng.uniform(0, 2 * np.pi, 6)
    body = np.array([0.43 * shape[2], 0.43 * shape[1], 0.40 * shape[0]]) - 3
    canvas.fill_ellipsoid(np.zeros(3), body, np.eye(3), _CYTOSOL, wave=wave)
    canvas.membrane(np.zeros(3), body, np.eye(3), wave=wave)

    # everything below in units of the cell, so that it does not depend on the box
    nucleus, nucleus_axes = np.array([-0.38, 0.22, -0.08]), np.array([0.36, 0.42, 0.55])
    turn = matrix_from_euler(rng.uniform(-35, 35), 0, 0)
    canvas.fill_ellipsoid(nucleus * body, nucleus_axes * body, turn, 0.28)
    canvas.membrane(nucleus * body, nucleus_axes * body, turn)
    canvas.membrane(nucleus * body, nucleus_axes * body - 3.2 * canvas.unit, turn)
    for _ in range(14):
        place = nucleus + turn @ (_in_ball(rng) * 0.7 * nucleus_axes)
        canvas.fill_ellipsoid(
            place * body, rng.uniform(1.5, 4.0, 3) * canvas.unit, np.eye(3), rng.uniform(0.4, 0.65)
        )

    taken = [(nucleus, float(nucleus_axes.max()))]
    start = np.array([0.42, -0.95, 0.0])
    axoneme = _curve(rng, start, np.array([-0.10, 1.0, 0.02]), 0.05, 2.0)
    for tube, radius in _axoneme(axoneme * body, canvas.unit):
        canvas.tube(tube, radius, 0.75, _TUBULE)

    made = 0
    for _ in range(400):
        if made == 16:
            break
        place, radius = _in_ball(rng) * 0.85, rng.uniform(0.05, 0.15)
        near = min(np.linalg.norm(axoneme - place, axis=1).min(), 1 - np.linalg.norm(place))
        if near < radius + 0.12 or any(np.linalg.norm(place - c) < r + radius + 0.02 for c, r in taken):
            continue
        taken.append((place, radius))
        size = radius * body[0] * rng.uniform(0.85, 1.15, 3)
        turn = random_rotations(1, rng=rng)[0]
        canvas.fill_ellipsoid(place * body, size, turn, rng.choice([0.04, 0.3, 0.55]))
        canvas.membrane(place * body, size, turn)
        made += 1

    for _ in range(5):
        canvas.tube(_curve(rng, _in_ball(rng) * 0.8, None, 0.1, 1.4) * body, 2.2 * canvas.unit, 0.7, _TUBULE)
    for _ in range(60):
        path = _curve(rng, _in_ball(rng) * 0.9, None, 0.5, rng.uniform(0.3, 1.0))
        canvas.tube(path * body, 0.0, 0.8, _FILAMENT)
    for _ in range(400):
        canvas.bead(_in_ball(rng) * 0.9 * body, 0.9, _GRANULE)
    return canvas.finished()


class _Canvas:
    """A volume that shapes are painted into, each only where it lies; coordinates (x, y, z) from the centre."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.volume = np.zeros(shape, np.float32)
        self.unit = min(shape[2], shape[1], 2 * shape[0]) / 128  # lengths below are for a box of 128
        self._centre = np.array([shape[2] // 2, shape[1] // 2, shape[0] // 2])

    def finished(self) -> NDArray[np.float32]:
        return np.clip(self.volume, 0.0, 1.0)

    def _patch(self, low: NDArray, high: NDArray) -> tuple[tuple[slice, ...], list[NDArray]] | None:
        """Slices (z, y, x) of a box, and its coordinates x, y, z."""
        first = np.maximum(np.floor(low).astype(int) + self._centre, 0)
        last = np.minimum(np.ceil(high).astype(int) + self._centre + 1, self.volume.shape[::-1])
        if (last <= first).any():
            return None
        x, y, z = (
            np.arange(a, b, dtype=np.float32) - c for a, b, c in zip(first, last, self._centre, strict=True)
        )
        place = tuple(slice(a, b) for a, b in zip(first[::-1], last[::-1], strict=True))
        return place, [x[None, None, :], y[None, :, None], z[:, None, None]]

    def _ellipsoid(
        self, centre: NDArray, axes: NDArray, turn: NDArray, wave: NDArray | None, margin: float
    ) -> list[tuple[tuple[slice, ...], NDArray]]:
        """Pieces of the volume and the distance from the surface there (negative inside), to first order."""
        reach = np.sqrt((turn**2) @ (axes**2)) * (1.0 if wave is None else 1.05) + margin
        found: list[tuple[tuple[slice, ...], NDArray]] = []
        patch = self._patch(centre - reach, centre + reach)
        if patch is None:
            return found
        (rows, *others), (x, y, z) = patch
        for first in range(0, len(z), _SLAB):
            xyz = [x, y, z[first : first + _SLAB]]
            place = (slice(rows.start + first, rows.start + first + len(xyz[2])), *others)
            d = [a - np.float32(c) for a, c in zip(xyz, centre, strict=True)]
            u = [sum(np.float32(turn[j, i]) * d[j] for j in range(3)) / np.float32(axes[i]) for i in range(3)]
            squared = u[0] ** 2 + u[1] ** 2 + u[2] ** 2
            rho = np.sqrt(squared)
            slope = sum((u[i] / np.float32(axes[i])) ** 2 for i in range(3))
            distance = (rho - 1) * rho / np.maximum(np.sqrt(slope), np.float32(1e-6))
            distance = np.where(rho < 0.2, -0.8 * np.float32(axes.min()), distance)
            if wave is not None:
                swell = sum(
                    np.sin(k * 2.5 * u[i] + wave[3 * (k - 1) + i]) / k for i in range(3) for k in (1, 2)
                )
                distance = distance + np.float32(0.025 * axes.min()) * swell
            found.append((place, distance))
        return found

    def fill_ellipsoid(
        self,
        centre: NDArray,
        axes: NDArray,
        turn: NDArray,
        value: float,
        wave: NDArray | None = None,
    ) -> None:
        for place, distance in self._ellipsoid(centre, axes, turn, wave, 4.0):
            part = self.volume[place]
            part += (np.float32(value) - part) * (0.5 * erfc(distance / np.float32(np.sqrt(2)))).astype(
                np.float32
            )

    def membrane(self, centre: NDArray, axes: NDArray, turn: NDArray, wave: NDArray | None = None) -> None:
        """Two leaflets, which a coarse grid merges into one."""
        gap, width = 0.55 * self.unit, max(0.8, 0.3 * self.unit)
        for place, distance in self._ellipsoid(centre, axes, turn, wave, gap + 5 * width):
            part = self.volume[place]
            leaflets = np.exp(-0.5 * ((abs(distance) - gap) / width) ** 2, dtype=np.float32)
            part += (np.float32(_MEMBRANE) - part) * leaflets

    def tube(self, path: NDArray, radius: float, width: float, value: float) -> None:
        """A wall of that width about a curve (n, 3); radius 0 is a rod."""
        width = max(width, 0.45 * width * self.unit)
        for a, b in itertools.pairwise(path):
            margin = radius + 4 * width
            patch = self._patch(np.minimum(a, b) - margin, np.maximum(a, b) + margin)
            if patch is None:
                continue
            place, xyz = patch
            along = b - a
            length = float(along @ along)
            d = [p - np.float32(c) for p, c in zip(xyz, a, strict=True)]
            t = sum(np.float32(w / length) * p for w, p in zip(along, d, strict=True))
            foot = t if radius else np.clip(t, 0, 1)  # a tube is open at its ends
            distance = np.sqrt(sum((p - np.float32(w) * foot) ** 2 for w, p in zip(along, d, strict=True)))
            wall = np.exp(-0.5 * ((distance - radius) / width) ** 2, dtype=np.float32)
            if radius:
                wall = np.where(abs(t - 0.5) <= 0.5 + 0.7 / np.sqrt(length), wall, np.float32(0))
            part = self.volume[place]
            np.maximum(part, np.float32(value) * wall, out=part)

    def bead(self, centre: NDArray, width: float, value: float) -> None:
        width = max(width, 0.6 * width * self.unit)
        patch = self._patch(centre - 4 * width, centre + 4 * width)
        if patch is not None:
            place, xyz = patch
            squared = sum((p - np.float32(c)) ** 2 for p, c in zip(xyz, centre, strict=True))
            part = self.volume[place]
            np.maximum(part, np.float32(value) * np.exp(-0.5 * squared / np.float32(width**2)), out=part)


def _in_ball(rng: np.random.Generator) -> NDArray:
    direction = rng.standard_normal(3)
    return direction / np.linalg.norm(direction) * np.cbrt(rng.random())


def _curve(
    rng: np.random.Generator, start: NDArray, direction: NDArray | None, bend: float, length: float
) -> NDArray:
    """A smooth random walk in the unit ball, which ends where it would leave it."""
    heading = rng.standard_normal(3) * [1, 1, 0.5] if direction is None else direction.astype(float)
    heading /= np.linalg.norm(heading)
    step, points, turn = 0.03, [start], np.zeros(3)
    while step * len(points) < length:
        turn = 0.8 * turn + 0.2 * bend * rng.standard_normal(3)
        heading = heading + turn
        heading /= np.linalg.norm(heading)
        following = points[-1] + step * heading
        if np.linalg.norm(following) > 0.94 and len(points) > 4:
            break
        points.append(following)
    return np.array(points)


def _axoneme(path: NDArray, unit: float) -> list[tuple[NDArray, float]]:
    """Nine tubes round two, along a curve."""
    tangent = path[-1] - path[0]
    tangent /= np.linalg.norm(tangent)
    side = np.cross(tangent, [0.0, 0.0, 1.0])
    side /= np.linalg.norm(side)
    up = np.cross(side, tangent)
    ring = 2 * np.pi * np.arange(9) / 9
    offsets = [7.5 * (np.cos(a) * side + np.sin(a) * up) for a in ring] + [2.2 * side, -2.2 * side]
    return [(path + unit * offset, 1.6 * unit) for offset in offsets]
