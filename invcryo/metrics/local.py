"""Local resolution: FSC of two half maps in soft windows that slide over the particle."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft, ndimage, sparse

from ..backend import threads
from ..grid import shell_index
from ..progress import track
from .fsc import (
    FSC,
    _checked,
    _corrected,
    _parts,
    _randomise_phases,
    _single_pixel_size,
    fsc,
    phase_randomised_fsc,
)
from .masks import soft_sphere

__all__ = ["LocalResolution", "local_resolution"]

logger = logging.getLogger(__name__)

#: Values of all windows transformed at a time; bounds the memory.
_BATCH = 1 << 21


@dataclass(frozen=True, eq=False)
class LocalResolution:
    """What `local_resolution` found.

    Attributes
    ----------
    map : ndarray, (z, y, x), float32
        Angstrom; 0 outside the mask.
    points : ndarray of int, (n, 3)
        Centres of the windows, voxel indices (z, y, x).
    values : ndarray, (n,)
        Angstrom there.
    whole : FSC
        Of the whole maps, corrected for the mask where there is one.
    window, step : float
        Diameter of the window at half its height, and distance of the centres, angstrom.
    """

    map: NDArray
    points: NDArray
    values: NDArray
    whole: FSC
    window: float
    step: float


def local_resolution(
    half1: ArrayLike,
    half2: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    pixel_size: float | Sequence[float],
    window: float | None = None,
    step: float | None = None,
    threshold: float = 0.143,
    worst: float = 50.0,
    randomise_below: float = 0.8,
    rng: np.random.Generator | int | None = None,
    progress: bool | None = None,
) -> LocalResolution:
    """Resolution around each point of a map, by the FSC of its two halves within a soft ball about the point.

    The ball is 1 up to a quarter of ``window`` from its centre and falls as a raised cosine to 0 at three
    quarters, RELION's proportions (its defaults are ``window=50, step=25``). The curve is corrected for what
    the window correlates by random phases, as `phase_randomised_fsc` does for a mask, and the resolution is
    where it first falls below the threshold, linear between shells. Between the points the frequency is
    interpolated linearly.

    A figure holds for a window, not for a voxel: detail finer than the window does not show, and windows that
    reach over a border mix what lies on its two sides. Regularised half maps share their prior: their local
    FSC is too good everywhere.

    Parameters
    ----------
    half1, half2 : array_like, (nz, ny, nx)
        Unfiltered.
    mask : array_like, optional
        In [0, 1]; resolutions are found where it is above 0.5. Without it, in the whole box.
    pixel_size : float or pair of float
        Angstrom; see `fsc`.
    window : float, optional
        Diameter at half height, angstrom. Seven times the resolution of the whole map unless given, at least
        16 pixels: smaller ones hold too few Fourier voxels for a curve (Cardone et al., 2013).
    step : float, optional
        Distance of the centres, angstrom; a quarter of the window unless given.
    threshold : float
    worst : float
        The lowest resolution reported, angstrom; shells below it take no part.
    randomise_below : float
    rng : Generator or int, optional
        Of the random phases.
    progress : bool, optional
        Whether to show a bar; None shows it on a terminal.
    """
    size = _single_pixel_size(pixel_size)
    first, second, weight = _checked(half1, half2, mask)
    if first.ndim != 3:
        raise ValueError(f"local resolution takes volumes (z, y, x), got shape {first.shape}")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold lies between 0 and 1, got {threshold}")
    generator = np.random.default_rng(rng)
    whole, start = _whole(first, second, weight, size, randomise_below, generator)
    window = _window(window, whole, threshold, size)
    pitch = max(1, round((window / 4 if step is None else step) / size))
    if step is not None and not step > 0:
        raise ValueError(f"step must be positive angstrom, got {step}")
    if not worst > 2 * size:
        raise ValueError(f"worst = {worst:g} angstrom is beyond Nyquist, {2 * size:g} angstrom")
    maps = [first, second]
    if start is not None:
        maps += [_random_beyond(v, start, generator) for v in (first, second)]
    inside = np.ones(first.shape, bool) if weight is None else weight > 0.5
    grid = _Grid(inside, pitch)
    if len(grid.points) == 0:
        raise ValueError("the mask is nowhere above 0.5: there is no point to look at")
    local = _Windows(window, size)
    begin = None if start is None else int(np.ceil(start / max(first.shape) * local.side))
    values = np.empty(len(grid.points))
    batch = max(1, _BATCH // local.side**3)
    starts = range(0, len(values), batch)
    for i in track(starts, "local resolution", total=len(starts), unit="batch", show=progress):
        part = slice(i, i + batch)
        curves = local.correlations(maps, grid.points[part], begin)
        values[part] = [local.crossing(curve, threshold, worst) for curve in curves]
    found = np.where(inside, 1 / grid.spread(1 / values, first.shape), 0.0).astype(np.float32)
    return LocalResolution(found, grid.points, values, whole, float(window), float(pitch * size))


def _whole(
    first: NDArray,
    second: NDArray,
    mask: NDArray | None,
    size: float,
    randomise_below: float,
    rng: np.random.Generator,
) -> tuple[FSC, int | None]:
    """The curve of the whole maps and the shell from which phases are to be random."""
    if mask is not None:
        curves = phase_randomised_fsc(
            first,
            second,
            mask,
            pixel_size=size,
            randomise_below=randomise_below,
            rng=rng,
            progress=False,
        )
        return curves.corrected, curves.randomised_from
    curve = fsc(first, second, pixel_size=size)
    below = curve.correlation < randomise_below
    below[0] = False
    return curve, int(np.argmax(below)) if below.any() else None


def _window(window: float | None, whole: FSC, threshold: float, size: float) -> float:
    if window is None:
        resolution = whole.resolution(threshold)
        if not np.isfinite(resolution):
            raise ValueError(
                f"the whole maps do not correlate above {threshold:g} in any shell: there is no local"
                " resolution to find; are they two halves of one particle, on one grid?"
            )
        window = max(7 * resolution, 16 * size)
    if not np.isfinite(window) or window < 8 * size:
        raise ValueError(
            f"window = {window:g} angstrom holds too few voxels for a curve; use {8 * size:g} (8 pixels) or more"
        )
    return window


def _random_beyond(volume: NDArray, start: int, rng: np.random.Generator) -> NDArray:
    transform = fft.rfftn(volume)
    _randomise_phases(transform, volume.shape, start, rng)
    return fft.irfftn(transform, s=volume.shape, overwrite_x=True)


class _Windows:
    """Soft balls cut out of maps, in small boxes, and their correlation shell by shell."""

    def __init__(self, window: float, pixel_size: float) -> None:
        radius, edge = window / 4 / pixel_size, window / 2 / pixel_size
        # even, so that the last shell is at Nyquist
        self.side = 2 * fft.next_fast_len(int(np.ceil(radius + edge)) + 1, real=True)
        shape = (self.side,) * 3
        self._ball = soft_sphere(shape, radius, edge)
        self._count = self.side // 2 + 1
        self.frequency = np.arange(self._count) / (self.side * pixel_size)
        shells = shell_index(shape).ravel()
        weights = np.concatenate([w.ravel() for _, _, w in _parts(shape)])
        used = np.flatnonzero(shells < self._count)
        # one row per shell: multiplied by samples it gives their sums
        self._sums = sparse.csr_matrix(
            (weights[used], (shells[used], used)), shape=(self._count, len(shells)), dtype=np.float64
        )

    def correlations(self, maps: Sequence[NDArray], points: NDArray, begin: int | None) -> NDArray:
        """Curves, (points, shells), about each of the points; maps 2 and 3 are those with random phases."""
        curves = self._pair(maps[0], maps[1], points)
        if begin is None:
            return curves
        noise = self._pair(maps[2], maps[3], points)
        return np.array([_corrected(c, n, begin) for c, n in zip(curves, noise, strict=True)])

    def crossing(self, curve: NDArray, threshold: float, worst: float) -> float:
        """Angstrom where the curve first falls below the threshold."""
        tested = np.flatnonzero(self.frequency > 1 / worst)
        below = tested[curve[tested] < threshold]
        if len(below) == 0:
            return float(1 / self.frequency[-1])
        i = below[0]
        if i == tested[0]:
            return float(worst)
        part = (curve[i - 1] - threshold) / (curve[i - 1] - curve[i])
        step = self.frequency[i] - self.frequency[i - 1]
        return float(1 / (self.frequency[i - 1] + part * step))

    def _pair(self, a: NDArray, b: NDArray, points: NDArray) -> NDArray:
        fa, fb = self._transforms(a, points), self._transforms(b, points)
        terms = (fa.real * fb.real + fa.imag * fb.imag, np.abs(fa) ** 2, np.abs(fb) ** 2)
        cross, power_a, power_b = (self._sums @ t.T.astype(np.float64) for t in terms)
        norm = np.sqrt(power_a) * np.sqrt(power_b)
        return np.divide(cross, norm, out=np.zeros_like(cross), where=norm > 0).T

    def _transforms(self, volume: NDArray, points: NDArray) -> NDArray:
        cut = np.zeros((len(points), self.side, self.side, self.side), volume.dtype)
        half = self.side // 2
        for box, centre in zip(cut, points, strict=True):
            low = centre - half
            source = tuple(slice(max(0, s), max(0, s + self.side)) for s in low)
            piece = volume[source]
            at = tuple(slice(max(0, -s), max(0, -s) + n) for s, n in zip(low, piece.shape, strict=True))
            box[at] = piece
        cut *= self._ball
        return fft.rfftn(cut, axes=(1, 2, 3), workers=threads(), overwrite_x=True).reshape(len(points), -1)


class _Grid:
    """Points at a regular distance, through the centre, near the voxels of interest."""

    def __init__(self, inside: NDArray, pitch: int) -> None:
        self._pitch = pitch
        self._axes = [np.arange((n // 2) % pitch, n, pitch) for n in inside.shape]
        # every voxel inside must have all corners of its cell
        near = ndimage.maximum_filter(inside, size=2 * pitch - 1, mode="constant")
        self._used = near[np.ix_(*self._axes)]
        self.points = np.argwhere(self._used) * pitch + [axis[0] for axis in self._axes]

    def spread(self, values: NDArray, shape: Sequence[int]) -> NDArray:
        """Linear interpolation of the values at the points; weights of missing corners go to the others."""
        grid = np.zeros((2, *self._used.shape))
        grid[0][self._used], grid[1][self._used] = values, 1.0
        for axis, (n, at) in enumerate(zip(shape, self._axes, strict=True), start=1):
            tent = np.clip(1 - np.abs(np.arange(n)[:, None] - at) / self._pitch, 0, None)
            grid = np.moveaxis(np.tensordot(tent, grid, axes=(1, axis)), 0, axis)
        return np.divide(grid[0], grid[1], out=np.full(tuple(shape), np.nan), where=grid[1] > 0)
