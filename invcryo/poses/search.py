"""Global search: each particle against a map seen from everywhere, at low resolution.

Every pose of a uniform grid of rotations and every shift of a grid is tried. Slices of the map are taken once per
direction, on rings; the turns in the plane are then a sum over the harmonics of the rings, and a shift is a phase of
the image. The best poses that differ are climbed from there to their maxima in the continuum.

The score of a pose is the cosine of the angle between image and projection,

    <y, H c>_W / (|y|_W |H c|_W),

over the frequencies of the band, CTF and weights included: least squares with a free amplitude, normalised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize

from .. import kernels
from ..backend import fft
from ..data import Poses
from ..operators import ImageFilter
from ..operators.nufft import GridReader
from ..progress import track
from ..window import Window
from .fit import PoseFit
from .optimise import levenberg_marquardt
from .rotation_grid import RotationGrid, rotation_grid

__all__ = ["Candidates", "global_search"]

_BATCH = 128  # particles at a time, at most
_BATCH_BYTES = 1 << 26  # for their scores on the grid and their harmonics
_BATCH_PIXELS = 1 << 23  # of their images
_STENCIL = 6  # rings that a value between two of them is interpolated from
_EXTENT = 0.8  # diameter of the object over the side of the images, for that interpolation
_GYRATION = 0.2  # radius of gyration of the object over the side of the images, for what the grid misses
_FAINT = 1e-3  # harmonics below this part of the strongest are left out
_CLIMBS = 6  # steps of Levenberg-Marquardt


@dataclass(frozen=True, eq=False)
class Candidates:
    """The best poses of n particles, k of each, best first; see `global_search`.

    Attributes
    ----------
    rotations : ndarray, (n, k, 3, 3)
    shifts : ndarray, (n, k, 2)
        Pixels, (x, y).
    scores : ndarray, (n, k)
        Correlations from -1 to 1. Minus infinity where fewer than k poses are distinct: such places repeat the best.
    energy : ndarray, (n,)
        ``|y|^2_W`` of the band.
    """

    rotations: NDArray
    shifts: NDArray
    scores: NDArray
    energy: NDArray

    def __len__(self) -> int:
        return len(self.rotations)

    def poses(self, rank: int = 0) -> Poses:
        """The candidates of one rank, 0 for the best."""
        return Poses(self.rotations[:, rank], self.shifts[:, rank])

    @property
    def log_odds(self) -> NDArray:
        """By how much the best pose is likelier than the second, natural logarithm, (n,).

        With one over the variance of the noise as weights, and amplitudes free: ``(s_1^2 - s_2^2) energy / 2``. Small
        values mark particles whose pose is ambiguous at this resolution. Infinite where there is no second.
        """
        if self.scores.shape[1] < 2:
            return np.full(len(self), np.inf)
        best, second = np.maximum(self.scores[:, :2], 0.0).T
        odds = 0.5 * self.energy * (best**2 - second**2)
        return np.where(np.isneginf(self.scores[:, 1]), np.inf, odds)


def global_search(
    coefficients: NDArray | GridReader,
    images: Any,
    *,
    window: Window | None = None,
    filters: ImageFilter | None = None,
    weights: ArrayLike | None = None,
    band: float = 14.0,
    max_shift: float = 5.0,
    shift_step: float | None = None,
    grid: RotationGrid | float = 7.5,
    group: str | ArrayLike = "C1",
    keep: int = 3,
    starts: int = 8,
    scale: float = 1.0,
    progress: bool | None = None,
) -> Candidates:
    """Poses of particles from nothing but a map.

    Parameters
    ----------
    coefficients, window, filters, weights, scale
        As for `PoseFit`; computed in float32.
    images : array-like (n, height, width)
        Only indexed by slices, a batch at a time.
    band : float
        Largest frequency, in Fourier pixels: periods in the longer side of the images. Those that the map holds and
        that are above the noise; 12 to 16 is plenty, and more asks for a finer grid.
    max_shift : float
        Pixels, in any direction.
    shift_step : float, optional
        Pixels; default a third of the shortest period.
    grid : RotationGrid or float
        Or its step in degrees. Over ``19 side / (band r)`` degrees the edge of an object of radius ``r`` pixels moves
        by a third of the shortest period; twice as coarse a grid still finds poses well above the noise.
    group : str or ndarray (|G|, 3, 3)
        Symmetry of the map: only that part of the rotations is searched, and poses that are symmetric copies count as
        one. Not used where a `RotationGrid` is given, which knows its own.
    keep : int
        Poses to return for each particle.
    starts : int
        Distinct poses of the grid to climb from.

    Returns
    -------
    Candidates
        Any two of a particle are further apart than 1.5 steps of the grid, symmetric copies included.

    Notes
    -----
    Time goes as particles x directions x shifts x harmonics x (2 rings + turns / 2). Memory: 64 MB for a batch of
    particles, their images (32 MB) with spectra, and the slices, 8 bytes per direction, ring and harmonic.

    On the grid, slices are interpolated between rings, and the length of ``H c`` is summed by shells, which leaves
    out how it changes with the turn under an astigmatic CTF: a start may be ranked wrongly by a few per cent, which
    is what ``starts`` is for. Frequencies whose signal is far above the noise count less there, since the nearest pose
    of the grid misses more of them than the noise hides: how much less is measured on the first batch. The scores
    returned are exact, with the weights that were given.
    """
    n = images.shape[0]
    side = max(images.shape[1:])
    if not 2 <= band <= side / 2:
        raise ValueError(f"band is in Fourier pixels, 2 to {side / 2:g} for these images, got {band:g}")
    if not 1 <= keep <= starts:
        raise ValueError(f"keep is 1 to starts = {starts}, got {keep}")
    if not 0 <= max_shift < side / 2:
        raise ValueError(f"max_shift is 0 to half the side of the images, got {max_shift:g} pixels")
    if not isinstance(grid, RotationGrid):
        grid = rotation_grid(grid, group)
    if not isinstance(coefficients, GridReader):
        coefficients = GridReader(np.asarray(coefficients, np.float32))
    options: dict[str, Any] = {
        "window": window, "weights": weights, "cutoff": 2 * band / side, "scale": scale
    }  # fmt: skip
    spacing = side / (3 * band) if shift_step is None else shift_step
    shifts = _shift_grid(max_shift, spacing)
    templates = None
    each = 6 * len(grid) + 8 * len(shifts) * int(np.pi * (band + 3) ** 2)
    step = max(1, min(_BATCH, _BATCH_BYTES // each, _BATCH_PIXELS // (images.shape[1] * images.shape[2])))
    parts = [slice(i, min(i + step, n)) for i in range(0, n, step)]
    found = []
    for part in track(parts, "searching poses", unit="batch", show=progress):
        stack = np.asarray(images[part], np.float32)
        fit = PoseFit(coefficients, stack, filters=None if filters is None else filters.rows(part), **options)
        if templates is None:
            templates = _Templates(coefficients, grid, fit, side, scale, spacing)
        picked, places = templates.search(fit, shifts, starts)
        found.append(_climbed(fit, picked, places, grid, keep))
    if not found:
        return Candidates(np.empty((0, keep, 3, 3)), np.empty((0, keep, 2)), np.empty((0, keep)), np.empty(0))
    return Candidates(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))


def _shift_grid(radius: float, step: float) -> NDArray:
    """Shifts (s, 2) of a square grid about 0, in a disc that they cover up to ``radius``."""
    if step <= 0:
        raise ValueError(f"shift_step must be positive, got {step:g} pixels")
    reach = int(np.ceil(radius / step))
    line = np.arange(-reach, reach + 1.0) * step
    x, y = np.meshgrid(line, line)
    inside = np.hypot(x, y) <= radius + 0.3 * step * (radius > 0)
    if inside.sum() > 1 << 16:
        raise ValueError(
            f"{inside.sum()} shifts of {step:g} pixels up to {radius:g} are too many for a search"
        )
    return np.stack([x[inside], y[inside]], axis=1)


class _Templates:
    """Slices of the map in all directions of a grid, as harmonics ``t[l, r, d]`` of rings r."""

    def __init__(
        self, reader: GridReader, grid: RotationGrid, fit: PoseFit, side: int, scale: float, spacing: float
    ) -> None:
        self.grid = grid
        self.rho = rho = fit.radii * side
        rings = max(int(np.ceil(rho.max())) + 2, _STENCIL)
        # the object reaches to half the side at most, so that ring r has about pi r harmonics
        samples = 2 * (int(np.ceil(np.pi * rings)) + 8)
        angle = np.arange(samples // 2) * (2 * np.pi / samples)
        wave = (2 * np.pi / side) * np.arange(rings)
        points = np.stack([np.outer(wave, np.cos(angle)), np.outer(wave, np.sin(angle))]).reshape(2, -1)
        half = reader.at(scale * grid.views[:, :2], points).reshape(len(grid.views), rings, -1)
        whole = np.concatenate([half, half.conj()], axis=2)  # the other half plane
        table = fft(whole).fft(whole, axis=2, norm="forward")[:, :, : samples // 2].transpose(2, 1, 0)
        strength = np.abs(table).max(axis=2)
        strong = strength > _FAINT * strength.max()
        harmonics = int(np.flatnonzero(strong.any(axis=1))[-1]) + 1
        directions = len(grid.views)
        shape = (-(-harmonics // 8) * 8, rings, -(-directions // kernels.SEARCH_LANES) * kernels.SEARCH_LANES)
        self.real, self.imag = np.zeros((2, *shape), np.float32)
        self.real[:harmonics, :, :directions] = table[:harmonics].real
        self.imag[:harmonics, :, :directions] = table[:harmonics].imag
        strong = np.pad(strong[:harmonics], ((0, shape[0] - harmonics), (0, 0)))
        self.first = np.where(strong.any(axis=1), strong.argmax(axis=1), rings)
        l = np.arange(shape[0])[:, None]
        both = np.where(l == 0, 1, 2)  # harmonics l and -l together
        self.cosine = (both * np.cos(l * grid.angles)).astype(np.float32)
        self.sine = (both * np.sin(l * grid.angles)).astype(np.float32)
        # An image to harmonics of rings, the adjoint of the interpolation of slices between rings. With the other half
        # of the plane, harmonic l takes the real parts of the image where it is even, the imaginary ones where odd.
        frequencies = fit.projector.frequencies
        self.start, self.stencil = _stencils(rho, rings)
        turn = np.exp(-1j * l.T * np.arctan2(frequencies[1], frequencies[0])[:, None]) * 1j ** (l.T % 2)
        self.turn_real, self.turn_imag = turn.real.astype(np.float32), turn.imag.astype(np.float32)
        self.frequencies = frequencies
        # power of the slices by shell
        self.shell = np.rint(rho).astype(int)
        slices = np.abs(reader.at(scale * grid.views[:, :2], frequencies)) ** 2
        self.members = np.zeros((len(self.shell), self.shell.max() + 1))
        self.members[np.arange(len(self.shell)), self.shell] = 1.0
        self.shell_power = np.einsum("dm,ms->ds", slices, self.members / np.maximum(self.members.sum(0), 1))
        self.trust = self._trust(fit, spacing, side)

    def _trust(self, fit: PoseFit, spacing: float, side: int) -> NDArray:
        """Weights (m,) of the frequencies on the grid: noise over noise and what the nearest pose of the grid misses.

        Where the signal is far above the noise, a pose between those of the grid is missed by much more than the noise.
        Noise and amplitude of the signal are those that explain the power of the images, shell by shell.
        """
        count = np.maximum(self.members.sum(axis=0), 1)
        noise = np.where(self.members.sum(axis=0) > 0, fit.power.mean(axis=0) @ self.members, 0) / count
        seen = np.mean(np.abs(fit.data) ** 2, axis=0) @ self.members / count
        signal = noise**2 * self.shell_power.mean(axis=0)
        used = seen > 0
        if not used.any():
            return np.ones(len(self.shell), np.float32)
        model = np.stack([noise, signal], axis=1)[used] / seen[used, None]
        level, amplitude = optimize.nnls(model, np.ones(len(model)))[0]
        ratio = np.zeros(len(count))
        ratio[used] = amplitude * signal[used] / np.maximum(level * noise[used], 1e-4 * seen[used])
        missed = (
            spacing**2 / 12 + np.deg2rad(360 / self.grid.turns) ** 2 / 12 * (_GYRATION * side) ** 2 * 2 / 3
        )
        wave = 2 * np.pi / side * self.rho
        return (1 / (1 + ratio[self.shell] * (1 - np.exp(-(wave**2) * missed)))).astype(np.float32)

    def search(self, fit: PoseFit, shifts: NDArray, starts: int) -> tuple[NDArray, NDArray]:
        """Poses of the grid, matrices (n, starts, 3, 3), and shifts (n, starts, 2); NaN where there are no more."""
        grid, directions = self.grid, len(self.grid.views)
        phases = np.exp(1j * shifts @ self.frequencies).astype(np.complex64)
        real, imag = kernels.ring_harmonics(
            fit.data,
            phases * self.trust,
            self.turn_real,
            self.turn_imag,
            self.start,
            self.stencil,
            self.real.shape[1],
        )
        best, where = kernels.best_turns(
            (self.real, self.imag), (real, imag), self.first, self.cosine, self.sine, grid.turns
        )
        power = (fit.power * self.trust) @ self.members
        length = np.sqrt(np.einsum("ps,ds->pd", power, self.shell_power))
        best[:, :, :directions] /= np.maximum(length, 1e-30)[:, None]
        best[:, :, directions:] = -np.inf
        apart = 1 + 2 * np.cos(np.deg2rad(_separation(grid)))
        picked = kernels.pick_distinct(best, grid.views, grid.angles, grid.group, apart, starts)
        rows = np.arange(len(fit))[:, None]
        missing = picked[:, :, 0] < 0
        matrices = grid.matrices(picked[:, :, 0], picked[:, :, 1])
        places = shifts[where[rows, picked[:, :, 1], picked[:, :, 0]]]
        matrices[missing], places[missing] = np.nan, np.nan
        return matrices, places


def _separation(grid: RotationGrid) -> float:
    """Degrees between candidates."""
    return 1.5 * 360.0 / grid.turns


def _stencils(rho: NDArray, rings: int) -> tuple[NDArray, NDArray]:
    """First ring (m,) and weights (m, width) that interpolate at radii ``rho``: best in the mean over the object.

    A point of the object at ``x`` sides from the centre oscillates as ``exp(2 pi i x rho)``, ``|x| <= extent / 2``.
    """
    start = np.clip(np.floor(rho).astype(int) - _STENCIL // 2 + 1, 0, rings - _STENCIL)
    j = np.arange(_STENCIL)
    gram = np.sinc(_EXTENT * (j[:, None] - j)) + 1e-6 * np.eye(_STENCIL)
    wanted = np.sinc(_EXTENT * ((rho - start)[:, None] - j))
    return start, np.linalg.solve(gram, wanted.T).T.astype(np.float32)


def _climbed(
    fit: PoseFit, matrices: NDArray, shifts: NDArray, grid: RotationGrid, keep: int
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """From every start to the maximum of the score next to it, and the best distinct ones."""
    n, starts = matrices.shape[:2]
    valid = np.isfinite(matrices[..., 0, 0]).ravel()
    image = np.repeat(np.arange(n), starts)[valid]
    start = Poses(matrices.reshape(-1, 3, 3)[valid], shifts.reshape(-1, 2)[valid])
    top = levenberg_marquardt(fit, start, index=image, max_iter=_CLIMBS, free_amplitude=True)
    scores = np.full(n * starts, -np.inf)
    scores[valid] = top.overlap / np.sqrt(np.maximum(top.power * top.energy, 1e-300))
    scores = scores.reshape(n, starts)
    out, spots = np.repeat(matrices[:, :1], starts, axis=1), np.repeat(shifts[:, :1], starts, axis=1)
    out[valid.reshape(n, starts)], spots[valid.reshape(n, starts)] = top.poses.matrices, top.poses.shifts
    rows = np.arange(n)[:, None]
    order = np.argsort(-scores, axis=1, kind="stable")
    out, spots, scores = out[rows, order], spots[rows, order], scores[rows, order]
    # two starts that reached one maximum are one
    relative = np.einsum("pkij,plim->pkljm", out, out).reshape(n, starts, starts, 9)
    trace = (relative @ grid.group.reshape(-1, 9).T).max(axis=-1)
    near = trace > 1 + 2 * np.cos(np.deg2rad(_separation(grid)))
    alone = np.ones((n, starts), bool)
    for k in range(1, starts):
        alone[:, k] = ~(near[:, k, :k] & alone[:, :k]).any(axis=1)
    scores = np.where(alone, scores, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :keep]
    out, spots, scores = out[rows, order], spots[rows, order], scores[rows, order]
    lost = np.isneginf(scores)
    out[lost] = np.broadcast_to(out[:, :1], out.shape)[lost]
    spots[lost] = np.broadcast_to(spots[:, :1], spots.shape)[lost]
    return out, spots, scores, fit.energy
