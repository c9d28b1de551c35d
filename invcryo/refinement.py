"""Joint refinement: poses and map in turns, from coarse to fine.

Donati 2020, section 4.2, with Levenberg-Marquardt steps on central slices in place of gradient steps in real space, a
basis whose scale follows the resolution (sections 4.1.2 and 4.4), weights by shell, and a search over all rotations for
particles that are stuck.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special
from scipy.spatial.transform import Rotation

from .checkpoint import Checkpoint
from .costs import Cost, LeastSquares, Quadratic
from .ctf import CTF
from .data import ParticleStack, Poses
from .inversion import (
    InterruptedStage,
    least_squares_map,
    penalty_for,
    regularised_map,
    supported,
    unless_interrupted,
)
from .metrics import FSC, fsc
from .operators import ImageFilter, LinOp, Projector
from .operators.nufft import GridReader
from .poses import STATUS, PoseFit, levenberg_marquardt
from .poses.rotation_grid import rotation_grid
from .poses.search import global_search
from .reconstruction import support_mask, with_halves
from .rotation import geodesic_distance
from .selection import natural_lambda
from .window import KaiserBessel, Window

__all__ = ["Refinement", "refine"]

log = logging.getLogger(__name__)

# Fourier pixels: half a slice holds some 25 values up to there, to tell five unknowns from.
_FIRST_BAND = 4
# Of the band from round to round: a phase that is right to 1 radian at its edge is still within a quarter of a period.
_GROWTH = 1.25
# Band over the largest frequency of the coefficients: 0.9 in the round after, which reads the same map.
_MARGIN = 0.9 / _GROWTH
# In which rounds particles are searched for, and how far the search looks: below, directions are not told apart, and
# beyond, the steps of the grid are too long for a climb.
_SEARCH_BAND = (6, 16)
# Of the particles, that are searched for anyway in these rounds: steps alone leave 6 to 9 % stuck.
_WORST = 0.1
# Amplitude relative to the median below which a particle is searched for: the gain in log-likelihood goes with its
# square, and is then about half of what is usual.
_WEAK = 0.75
# Log-likelihood that a pose far away must gain, 20 : 1: the best of many poses is better by chance.
_ODDS = 3.0
# Shells that the sum of the FSC must gain: the standard deviation of the sum of a curve that ends at shell 5, from
# (1 - FSC^2)^2 / voxels of each shell; that of finer maps is smaller.
_GAIN = 0.1
# Standard deviations: the best of 10^5 independent poses scores more on 1 of 500 images of pure noise.
_NOISE_SCORE = 5.5
# Of the usual gain in log-likelihood: an image with less tells next to nothing, and may be noise that finds itself in
# a map which was made of it too.
_NO_GAIN = 1 / 8
# Chance that there is any outlier among particles whose fits are normally distributed.
_FALSE_ALARM = 0.05
_PIXELS = 1 << 23  # of images in memory at a time
_SAMPLE = 400  # particles that noise is measured on: to 5 % with a single frequency, and a shell has many


@dataclass
class Refinement:
    """What `refine` returns.

    Attributes
    ----------
    stack : ParticleStack
        With the refined poses.
    start : Poses
        Those it began with.
    map : ndarray, (box, box, box)
        Regularised, from all particles.
    half1, half2, half1_noreg, half2_noreg : ndarray or None
        With ``half_maps``: regularised, and by least squares.
    fsc : FSC
        Of the unregularised maps of two half sets. Only with ``half_maps`` were these refined apart: else the curve is
        too good, and `warnings` says so.
    status : ndarray of int, (n,)
        Into `STATUS`, of each particle's last optimisation.
    no_signal : ndarray of bool, (n,)
        Images that agree with the map no better than noise would, at any pose.
    outlier : ndarray of bool, (n,)
        Others that fit far worse than the rest, by contrast or residual: dark particles, dirt, wrong poses.
    score : ndarray, (n,)
        Overlap of image and projection in standard deviations of the noise.
    particle_scale : ndarray, (n,)
        Contrast of each particle in the model, mean 1: see ``particle_scale`` of `refine`. It is a factor of the CTF
        of ``stack``, and rlnCtfScalefactor in a file.
    angle_change, shift_change : ndarray, (n,)
        From the start, degrees and pixels.
    history : list of dict
        Round by round: band (Fourier pixels), scale, particles searched and moved by the search, status counts, median
        changes, resolution, seconds.
    stopped_by : str
        "fsc" (no better any more), "max_rounds", or "interrupt".
    """

    stack: ParticleStack
    start: Poses
    map: NDArray
    half1: NDArray | None
    half2: NDArray | None
    half1_noreg: NDArray | None
    half2_noreg: NDArray | None
    fsc: FSC
    status: NDArray
    no_signal: NDArray
    outlier: NDArray
    score: NDArray
    particle_scale: NDArray
    angle_change: NDArray
    shift_change: NDArray
    history: list[dict[str, Any]]
    stopped_by: str
    seconds: float
    warnings: list[str] = field(default_factory=list)

    @property
    def poses(self) -> Poses:
        assert self.stack.poses is not None
        return self.stack.poses

    @property
    def flagged(self) -> NDArray:
        """Particles that are better left out, bool (n,)."""
        return self.no_signal | self.outlier

    @property
    def pixel_size(self) -> float:
        return self.stack.pixel_size

    @property
    def status_counts(self) -> dict[str, int]:
        return {name: int((self.status == i).sum()) for i, name in enumerate(STATUS)}


def refine(
    stack: ParticleStack,
    reference: NDArray,
    *,
    reference_pixel_size: float | None = None,
    init_lowpass: float | None = None,
    search: str = "local",
    half_maps: bool = False,
    symmetry: str = "C1",
    mask: NDArray | str | None = "ball",
    reg: str | Cost = "tv",
    lam: float = 0.3,
    positivity: bool = True,
    max_shift: float | None = None,
    prior_angle: float = math.inf,
    prior_shift: float = math.inf,
    particle_scale: bool = False,
    exclude_flagged: bool = False,
    max_rounds: int = 40,
    window: Window | None = None,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
    rng: np.random.Generator | int | None = 0,
    progress: bool | None = None,
) -> Refinement:
    """Refine poses and map from rough poses, or from a rough map alone.

    Parameters
    ----------
    stack : ParticleStack
        With poses, for ``search="local"``.
    reference : ndarray, (box, box, box)
        A first map, on the pixels of the images, in any units.
    reference_pixel_size : float, optional
        Angstrom; checked against that of the images.
    init_lowpass : float, optional
        Angstrom: the reference is used up to this resolution only. What is finer in a wrong map comes back in the
        poses, and from there in the result.
    search : "local" or "global"
        "global" first searches all rotations for every particle, at low resolution. In both, the rounds of low
        resolution do so for particles that fit badly.
    half_maps : bool
        Refine the two half sets (``stack.half``, else a random split) apart from start to end, each against its own
        map. Without, all particles share one map, whose resolution is then overestimated.
    symmetry : str
        Point group in RELION's names.
    mask : ndarray, "ball" or None
        Where the map may differ from zero: voxels above 0 of a (box, box, box) mask, which also weighs the FSC.
    reg, lam, positivity
        Regulariser of the maps, and its weight relative to `natural_lambda`; see `reconstruct`. "none": least squares.
    max_shift : float, optional
        Pixels from the centre that the search looks at; default: 3 beyond the largest shift of the start.
    prior_angle, prior_shift : float
        Standard deviations, radians and pixels, of priors about the poses that each round begins with.
    particle_scale : bool
        Give every particle, which needs a CTF, a contrast of its own: that which fits it best, drawn to the mean by as
        much as noise explains of the spread.
    exclude_flagged : bool
        Leave flagged particles (`Refinement.flagged`) out of the final maps.
    max_rounds : int
    window : Window, optional
        Default `KaiserBessel()`.
    checkpoint : Checkpoint or path, optional
        A folder for the state after each round. A run that was cut short, by Ctrl-C too, goes on from there, to the
        same result. Removed at the end. Without it Ctrl-C returns the best round so far.
    rng : Generator or int
        Of a random split into half sets.

    Returns
    -------
    Refinement

    Notes
    -----
    Every round optimises the poses in a band of frequencies, reconstructs, and compares the half sets. The band grows
    by a quarter, no further than a little beyond the shell where the FSC falls to 0.143; the basis is as coarse as the
    band allows. Shells are weighted by ``2 FSC / (1 + FSC)`` over the variance of the residual, so that those in the
    noise cannot pull poses. The rounds end when the band has stopped and the sum of the FSC no longer grows (as in
    the thesis); the best round counts.
    """
    begin = time.perf_counter()
    job = _Job(stack, reference, reference_pixel_size, init_lowpass, search, half_maps, symmetry, mask, reg, lam,
               positivity, max_shift, (prior_angle, prior_shift), particle_scale, exclude_flagged, window, rng,
               progress)  # fmt: skip
    if isinstance(checkpoint, (str, os.PathLike)):
        checkpoint = Checkpoint(checkpoint)
    described = job.description(max_rounds)
    if checkpoint is not None and (saved := checkpoint.load(described)) is not None:
        job.restore(saved)
        log.info("going on after round %d", len(job.history))
    try:
        while not job.ended and len(job.history) < max_rounds:
            job.round()
            if checkpoint is not None:
                checkpoint.save(described, job.state())
        result = job.result("fsc" if job.ended else "max_rounds", begin)
    except (KeyboardInterrupt, InterruptedStage):
        if checkpoint is not None or not job.history:
            raise KeyboardInterrupt from None
        result = job.result("interrupt", begin)
    for note in result.warnings:
        log.warning(note)
    if checkpoint is not None:
        checkpoint.remove()
    return result


class _Job:
    """The state of a refinement, and one round of it."""

    def __init__(
        self,
        stack: ParticleStack,
        reference: NDArray,
        reference_pixel_size: float | None,
        init_lowpass: float | None,
        search: str,
        half_maps: bool,
        symmetry: str,
        mask: NDArray | str | None,
        reg: str | Cost,
        lam: float,
        positivity: bool,
        max_shift: float | None,
        priors: tuple[float, float],
        particle_scale: bool,
        exclude_flagged: bool,
        window: Window | None,
        rng: Any,
        progress: bool | None,
    ) -> None:
        self.notes: list[str] = []
        n = self.box = stack.box
        if len(stack) < 2:
            raise ValueError(f"a refinement needs particles, got {len(stack)}")
        if search not in ("local", "global"):
            raise ValueError(f"search is 'local' or 'global', got {search!r}")
        if not (math.isfinite(lam) and lam >= 0):
            raise ValueError(f"lam must be finite and not negative, got {lam}")
        reference = _checked_reference(reference, n, stack.pixel_size, reference_pixel_size)
        if stack.poses is None:
            if search == "local":
                raise ValueError(
                    "the particles have no poses to begin with: use search='global', or give poses"
                )
            stack = dataclasses.replace(stack, poses=Poses(np.broadcast_to(np.eye(3), (len(stack), 3, 3))))
        self.window = KaiserBessel() if window is None else window
        self.apart, self.symmetry, self.reg, self.lam, self.positivity = (
            half_maps,
            symmetry,
            reg,
            lam,
            positivity,
        )
        self.priors, self.progress, self.search = priors, progress, search
        self.particle_scale, self.exclude_flagged = particle_scale, exclude_flagged
        if particle_scale and stack.ctf is None:
            raise ValueError("particle_scale: a scale is a factor of the CTF, and the particles have none")
        self.mask, self.soft = _masks(mask, n)
        self.stack = _split(stack, half_maps, rng, self.notes)
        assert self.stack.poses is not None
        self.start = self.stack.poses
        self.members = (
            [np.flatnonzero(self.stack.half == h) for h in (1, 2)] if half_maps else [np.arange(len(stack))]
        )
        self.max_shift = (
            float(np.linalg.norm(self.start.shifts, axis=1).max()) + 3.0
            if max_shift is None
            else float(max_shift)
        )
        if not 0 <= self.max_shift < n / 2:
            raise ValueError(f"max_shift is 0 to half the box of {n} pixels, got {self.max_shift:g}")
        self.nyquist = n // 2 - 1
        first = 0.0
        if init_lowpass is not None:
            if not init_lowpass > 2 * stack.pixel_size:
                raise ValueError(
                    f"init_lowpass must be coarser than the Nyquist resolution, {2 * stack.pixel_size:g} angstrom, got"
                    f" {init_lowpass:g}"
                )
            first = n * stack.pixel_size / init_lowpass
            reference = _lowpassed(reference, first / n)
        self.reference = reference
        self.directions_alike = search == "local" and _alike(self.start)
        if self.directions_alike:
            self.notes.append(
                "all particles start with the same orientation: are the angles set? Use search='global' if not"
            )
        self.matrices, self.shifts = self.start.matrices.copy(), self.start.shifts.copy()
        self.maps = [self.window.analyze(reference)] * len(self.members)
        self.scale = 1.0
        self.band = int(min(self.nyquist, max(_FIRST_BAND, math.ceil(first) + 1)))
        self.curve = np.ones(n // 2 + 1)
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, NDArray] | None = None
        self.best_quality, self.idle = -math.inf, 0
        self.status = np.zeros(len(stack), int)
        self.score = np.zeros(len(stack))
        self.amplitude, self.misfit, self.scales = (np.ones(len(stack)) for _ in range(3))
        self.vain = np.zeros(len(stack), bool)  # of the last search

    def _ctf(self) -> CTF | None:
        """With the scales of the particles."""
        ctf = self.stack.ctf
        if ctf is None or not self.particle_scale:
            return ctf
        return dataclasses.replace(ctf, scale=ctf.scale * self.scales)

    @property
    def filters(self) -> ImageFilter | None:
        ctf = self._ctf()
        return (
            None if ctf is None else ImageFilter.from_ctf(ctf, self.stack.image_shape, self.stack.pixel_size)
        )

    # -- what decides the result, and what is needed to go on ---------------------------------------------------

    def description(self, max_rounds: int) -> dict[str, Any]:
        n = len(self.stack)
        sample = [np.asarray(self.stack.images[i : i + 1]) for i in sorted({0, n // 2, n - 1})]
        return {
            "number of particles": n,
            "shape of the images": self.stack.image_shape,
            "starting poses": self.start,
            "CTF": self.stack.ctf,
            "half sets": self.stack.half,
            "images": sample,
            "reference": self.reference,
            "mask": self.mask,
            "window": self.window,
            "regulariser": self.reg if isinstance(self.reg, str) else [self.reg],
            "options": (
                self.apart,
                self.symmetry,
                self.lam,
                self.positivity,
                self.max_shift,
                self.priors,
                self.search,
                self.particle_scale,
                self.exclude_flagged,
            ),
            "first band": self.band,
            "most rounds": max_rounds,
        }

    _NUMBERS = ("scale", "band", "best_quality", "idle")
    _KEPT = ("matrices", "shifts", "status", "score", "amplitude", "misfit", "scales")
    _ARRAYS = (*_KEPT, "curve", "vain")

    def state(self) -> dict[str, NDArray]:
        out = {name: np.array(getattr(self, name)) for name in self._NUMBERS + self._ARRAYS}
        out |= {f"map {i}": c for i, c in enumerate(self.maps)}
        out |= {f"best {name}": array for name, array in (self.best or {}).items()}
        text = json.dumps({"history": self.history, "notes": self.notes})
        return out | {"text": np.frombuffer(text.encode(), np.uint8)}

    def restore(self, saved: dict[str, NDArray]) -> None:
        for name in self._NUMBERS:
            setattr(self, name, saved[name].item())
        for name in self._ARRAYS:
            setattr(self, name, saved[name])
        self.maps = [saved[f"map {i}"] for i in range(len(self.members))]
        self.best = {k.removeprefix("best "): v for k, v in saved.items() if k.startswith("best ")} or None
        text = json.loads(saved["text"].tobytes())
        self.history, self.notes = text["history"], text["notes"]

    @property
    def ended(self) -> bool:
        return self.idle >= 2

    # -- a round ------------------------------------------------------------------------------------------------

    def round(self) -> None:
        start = time.perf_counter()
        before = Poses(self.matrices, self.shifts)
        report: dict[str, Any] = {"round": len(self.history) + 1, "band": self.band, "scale": self.scale}
        searched = moved = 0
        everyone = self.search == "global" and not self.history
        cutoff = 2 * self.band / self.box
        readers = [GridReader(c) for c in self.maps]
        weights = [self._weights(r, rows, cutoff) for r, rows in zip(readers, self.members, strict=True)]
        if everyone:
            searched, moved = self._search(readers, weights, np.arange(len(self.stack)))
        self._optimise(readers, weights, cutoff)
        low, high = _SEARCH_BAND
        if low <= self.band <= high:
            found = self._search(readers, weights, self._outliers())
            searched, moved = searched + found[0], moved + found[1]
        if not self.history and np.median(self.amplitude) < 0:
            raise ValueError(
                "the images anti-correlate with the reference: are the particles dark? Read them with contrast='dark';"
                " the reference must be white on black"
            )
        if self.apart:
            self._register(readers, cutoff)
        if self.particle_scale:
            self.scales = self._scales()
        seconds = {"poses": time.perf_counter() - start}
        poses = Poses(self.matrices, self.shifts)
        self.scale = _scale_for(self.box, self.band)
        quadratics = self._normal_equations(poses)
        self.curve = self._fsc_of(quadratics)
        wanted = quadratics if self.apart else [quadratics[0].plus(quadratics[1])]
        self.maps = [
            self._map(q, rows.size, c) for q, rows, c in zip(wanted, self.members, self.maps, strict=True)
        ]
        seconds["map"] = time.perf_counter() - start - seconds["poses"]
        resolved = _resolved(self.curve)
        quality = float(self.curve[1:].clip(0).sum())
        band = min(
            self.nyquist, math.ceil(_GROWTH * self.band), max(self.band, math.ceil(1.1 * resolved) + 1)
        )
        if quality > self.best_quality + _GAIN:
            self.idle = 0
        elif band == self.band:
            self.idle += 1
        if quality > self.best_quality - _GAIN:  # the later of rounds that are as good
            self.best = {name: getattr(self, name).copy() for name in self._KEPT}
        self.best_quality = max(quality, self.best_quality)
        changed = np.rad2deg(geodesic_distance(before.matrices, self.matrices))
        report |= {
            "searched": searched / len(self.stack),
            "found_better": moved / len(self.stack),
            "status": {name: int((self.status == i).sum()) for i, name in enumerate(STATUS)},
            "median_turn_degrees": float(np.median(changed)),
            "median_shift_pixels": float(np.median(np.linalg.norm(before.shifts - self.shifts, axis=1))),
            "resolution_angstrom": self.box * self.stack.pixel_size / max(resolved, 1),
            "sum_of_fsc": quality,
            "seconds": seconds,
        }
        self.history.append(report)
        self.band = band
        names = ("round", "band", "scale", "resolution_angstrom", "median_turn_degrees")
        log.info(
            "round %d: band %d, scale %.2f, resolution %.1f angstrom, %.2f degrees", *map(report.get, names)
        )

    def _chunks(self, rows: NDArray) -> Iterator[NDArray]:
        step = max(16, _PIXELS // self.box**2)
        for i in range(0, len(rows), step):
            yield rows[i : i + step]

    def _fit(self, reader: GridReader, rows: NDArray, cutoff: float, weights: NDArray | None) -> PoseFit:
        images = np.asarray(self.stack.images[rows], np.float32)
        finite = np.isfinite(images.sum(axis=(1, 2), dtype=np.float64))
        if not finite.all():
            raise ValueError(
                f"image {rows[np.argmin(finite)]} (counted from 0) holds NaN or infinite pixels: leave it out, or"
                " repair it"
            )
        filters = self.filters
        return PoseFit(
            reader,
            images,
            window=self.window,
            filters=None if filters is None else filters.rows(rows),
            weights=weights,
            cutoff=cutoff,
            scale=self._scale_of(reader),
        )

    def _scale_of(self, reader: GridReader) -> float:
        return self.box / reader.shape[0]

    def _weights(self, reader: GridReader, rows: NDArray, cutoff: float) -> NDArray:
        """``2 FSC / (1 + FSC)`` over the variance of the noise, by shell, from the residuals of some particles."""
        sound = rows[~np.any(self._flags(), axis=0)[rows]]  # others' residuals are more than noise
        rows = sound if sound.size else rows
        some = rows[:: max(1, len(rows) // _SAMPLE)][:_SAMPLE]
        fit = self._fit(reader, some, cutoff, None)
        overlap, power = fit.overlaps(self.matrices[some], self.shifts[some], np.arange(len(some)))
        # one amplitude for all: a reference in other units, or one that is too smooth
        amplitude = max(float(overlap.sum() / max(power.sum(), 1e-300)), 0.0)
        variance = fit.residual_power(Poses(self.matrices[some], self.shifts[some]), amplitude)
        good = variance > 0
        if not good.any():
            raise ValueError("the images hold nothing in the frequencies in use")
        variance = np.where(good, variance, variance[good].min())
        f = np.clip(self.curve[: len(variance)], 0.0, 1.0)
        return 2 * f / (1 + f) / variance

    def _optimise(self, readers: list[GridReader], weights: list[NDArray], cutoff: float) -> None:
        for reader, weight, rows in zip(readers, weights, self.members, strict=True):
            for part in self._chunks(rows):
                fit = self._fit(reader, part, cutoff, weight)
                found = levenberg_marquardt(
                    fit,
                    Poses(self.matrices[part], self.shifts[part]),
                    max_iter=8,
                    max_shift=self.max_shift,
                    prior_angle=self.priors[0],
                    prior_shift=self.priors[1],
                    free_amplitude=True,
                    information=1.0,
                )
                self.matrices[part], self.shifts[part] = found.poses.matrices, found.poses.shifts
                self.status[part] = found.status
                misfit = found.energy - np.maximum(found.overlap, 0) ** 2 / np.maximum(found.power, 1e-300)
                self._note(part, found.overlap, found.power, misfit)

    def _register(self, readers: list[GridReader], cutoff: float) -> None:
        """Turn the second half set into the frame of the first, from which it drifts: six numbers, no more.

        Projections of the second map, at views all around, are fitted to the first by one rotation and one shift of
        the object.
        """
        views = Poses(rotation_grid(45.0).views)
        scale = self._scale_of(readers[1])
        model = Projector(
            views, self.window, readers[1].shape, self.stack.image_shape, scale=scale, cutoff=cutoff
        )
        fit = PoseFit(readers[0], model.apply(self.maps[1]), window=self.window, cutoff=cutoff, scale=scale)
        turn, origin = np.eye(3), np.zeros(3)
        for _ in range(8):
            matrices = views.matrices @ turn
            d = fit.derivatives(Poses(matrices, matrices[:, :2] @ origin))
            # a turn of the object by w is R w in the frame of an image, a shift of it d is (R d)[:2]
            spread = np.zeros((len(views), 5, 6))
            spread[:, :3, :3], spread[:, 3:, 3:] = matrices, matrices[:, :2]
            slope = np.einsum("kia,ki->a", spread, d.gradient)
            step = -np.linalg.lstsq(
                np.einsum("kia,kij,kjb->ab", spread, d.hessian, spread), slope, rcond=1e-9
            )[0]
            turn = turn @ Rotation.from_rotvec(step[:3]).as_matrix()
            origin = step[3:] + Rotation.from_rotvec(-step[:3]).apply(origin)
        rows = self.members[1]
        self.matrices[rows] = self.matrices[rows] @ turn
        self.shifts[rows] += self.matrices[rows, :2] @ origin

    def _note(self, rows: NDArray, overlap: NDArray, power: NDArray, misfit: NDArray) -> None:
        self.misfit[rows] = misfit
        self.score[rows] = overlap / np.sqrt(np.maximum(power, 1e-300))
        self.amplitude[rows] = self.scales[rows] * overlap / np.maximum(power, 1e-300)

    def _badness(self) -> NDArray:
        """By how many standard deviations each particle fits worse than usual.

        Its amplitude is too low, which tells where noise is strong, or its residual too large, which tells where it is
        weak, since amplitudes then vary from view to view by more than a wrong pose takes off.
        """
        out = []
        for values in (-self.amplitude, self.misfit):
            centre, spread = _robust(values)
            out.append((values - centre) / max(spread, 1e-300))
        return np.maximum(*out)

    def _outliers(self) -> NDArray:
        """Particles that fit badly: weak beside the others, without a sound optimum, or among the worst.

        Those that the last search could not help give way to others.
        """
        typical = float(np.median(self.amplitude))
        bad = (self.amplitude < _WEAK * typical) | (self.status >= STATUS.index("failed"))
        badness = np.where(self.vain, -np.inf, self._badness())
        bad[np.argsort(-badness, kind="stable")[: math.ceil(_WORST * len(bad))]] = True
        return np.flatnonzero(bad & ~self.vain)

    def _scales(self) -> NDArray:
        """Amplitudes, drawn to their centre where their spread is no wider than their errors; of mean 1.

        The best estimate where both are normal. Flagged particles have no part in it, and a scale of 1.
        """
        sound = ~np.any(self._flags(), axis=0)
        if sound.sum() < 2:
            return np.ones(len(sound))
        a = self.amplitude[sound]
        centre, spread = _robust(a)
        # a score of s standard deviations tells an amplitude to 1 / s of it
        noise = (a / self.score[sound]) ** 2
        signal = max(spread**2 - float(np.median(noise)), 0.0)
        drawn = centre + (a - centre) * signal / (signal + noise)
        scales = np.ones(len(sound))
        scales[sound] = drawn / drawn.mean()
        return scales

    def _flags(self) -> tuple[NDArray, NDArray]:
        """Particles without signal, and others that fit far worse than the rest."""
        if not self.score.any():  # before the first round
            return np.zeros(len(self.score), bool), np.zeros(len(self.score), bool)
        usual = max(float(np.median(self.score)), 0.0)
        no_signal = self.score < max(_NOISE_SCORE, _NO_GAIN**0.5 * usual)
        far = -float(special.ndtri(0.5 * _FALSE_ALARM / len(no_signal)))  # of two figures for each particle
        return no_signal, ~no_signal & (self._badness() > far)

    def _search(self, readers: list[GridReader], weights: list[NDArray], which: NDArray) -> tuple[int, int]:
        """Search all rotations for some particles; those that fit better elsewhere move there."""
        moved, filters = 0, self.filters
        self.vain[:] = False
        band = float(min(self.band, _SEARCH_BAND[1]))
        for reader, weight, rows in zip(readers, weights, self.members, strict=True):
            mine = np.intersect1d(rows, which)
            for part in self._chunks(mine):
                fit = self._fit(reader, part, 2 * band / self.box, weight)
                overlap, power = fit.overlaps(self.matrices[part], self.shifts[part], np.arange(len(part)))
                present = overlap / np.sqrt(np.maximum(power * fit.energy, 1e-300))
                found = global_search(
                    reader,
                    np.asarray(self.stack.images[part], np.float32),
                    window=self.window,
                    filters=None if filters is None else filters.rows(part),
                    weights=weight,
                    band=band,
                    max_shift=self.max_shift,
                    group=self.symmetry,
                    keep=1,
                    scale=self._scale_of(reader),
                    progress=False,
                )
                odds = (
                    0.5 * fit.energy * (np.maximum(found.scores[:, 0], 0) ** 2 - np.maximum(present, 0) ** 2)
                )
                better = odds > _ODDS
                self.vain[part] = ~better
                rows_moved = part[better]
                self.matrices[rows_moved] = found.rotations[better, 0]
                self.shifts[rows_moved] = found.shifts[better, 0]
                index = np.flatnonzero(better)
                if index.size:
                    sums = fit.overlaps(self.matrices[rows_moved], self.shifts[rows_moved], index)
                    self._note(rows_moved, *sums, self.misfit[rows_moved] - 2 * odds[better])
                moved += int(better.sum())
        return len(which), moved

    # -- the map ------------------------------------------------------------------------------------------------

    def _model(self, poses: Poses, scale: float) -> LinOp:
        side = round(self.box / scale)
        projector = Projector(
            poses, self.window, side, self.stack.image_shape, scale=scale, cutoff=min(1.0, 1.0 / scale)
        )
        filters = self.filters
        return projector if filters is None else filters @ projector

    def _normal_equations(self, poses: Poses, rows: NDArray | None = None) -> list[Quadratic]:
        """Of the two half sets, or of what ``rows`` leaves of them."""
        model, stack = self._model(poses, self.scale), self.stack
        if rows is not None:
            model, stack = model.rows(rows), stack[rows]
        cost = LeastSquares(model, stack.images, symmetry=self.symmetry, progress=self.progress)
        return cost.normal_equations(stack.half).quadratics

    def _support(self, shape: tuple[int, ...], scale: float) -> NDArray | None:
        return support_mask(self.mask, shape, self.box, scale)

    def _fsc_of(self, quadratics: list[Quadratic]) -> NDArray:
        """Of maps that are made at once: right sides divided by the nearest convolution, for want of a solver."""
        scale = self.box / quadratics[0].b.shape[0]
        volumes = []
        for q in quadratics:
            spectrum = np.asarray(q.Q.nearest_circulant(), float)
            spectrum = np.maximum(spectrum, 0) + 0.03 * spectrum.mean()
            c = np.fft.irfftn(np.fft.rfftn(q.b) / spectrum, s=q.b.shape, axes=(0, 1, 2)).astype(np.float32)
            volumes.append(self.window.synthesize(c, self.box, scale=scale))
        if not all(v.any() for v in volumes):
            raise ValueError("the map of a half set is empty: do its images hold anything?")
        curve = fsc(*volumes, pixel_size=self.stack.pixel_size, mask=self.soft).correlation
        edge = int(_band_of(self.box, scale))
        return np.where(np.arange(len(curve)) <= edge, curve, 0.0)

    def _map(
        self, q: Quadratic, particles: int, earlier: NDArray, *, iterations: int | None = None
    ) -> NDArray:
        """The regularised coefficients."""
        shape = q.b.shape
        scale = self.box / shape[0]
        support = self._support(shape, scale)
        # never from the first map, which would be left in what no image tells, and is in units of its own
        x0 = earlier if self.history and earlier.shape == shape else None
        if iterations is None:
            iterations = 15 if x0 is None else 8
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of the limit, which is meant
            if isinstance(self.reg, str) and self.reg == "none":
                result = least_squares_map(q, support, max_iter=iterations, progress=False)
            else:
                penalty = penalty_for(self.reg, shape)
                result = regularised_map(
                    q,
                    penalty,
                    self.lam * natural_lambda(q, penalty, particles * self.box**2),
                    particles * self.box**2,
                    support,
                    positivity=self.positivity,
                    x0=x0,
                    max_iter=iterations,
                    progress=False,
                )
        unless_interrupted(result)
        c = supported(result.x, support)
        return np.maximum(c, 0) if self.positivity and self.reg != "none" else c

    def result(self, stopped_by: str, begin: float) -> Refinement:
        if self.best is not None:
            for name, array in self.best.items():
                setattr(self, name, array)
        poses = Poses(self.matrices, self.shifts)
        no_signal, outlier = self._flags()
        flagged = no_signal | outlier
        used = ~flagged if self.exclude_flagged else np.ones(len(flagged), bool)
        assert self.stack.half is not None
        if self.exclude_flagged and len(np.unique(self.stack.half[used])) < 2:
            raise ValueError(
                f"{int(flagged.sum())} of {len(flagged)} particles are flagged: no half set is left"
            )
        self.scale = 1.0
        halves = self._normal_equations(poses, None if used.all() else np.flatnonzero(used))
        whole = halves[0].plus(halves[1])

        def voxels(c: NDArray) -> NDArray:
            return self.window.synthesize(c, self.box)

        final = voxels(self._map(whole, int(used.sum()), self.maps[0], iterations=25))
        support = self._support(whole.b.shape, 1.0)
        plain = []
        for q in halves:
            solved = least_squares_map(q, support, progress=False)
            unless_interrupted(solved)
            plain.append(voxels(supported(solved.x, support)))
        regularised: list[NDArray | None] = [None, None]
        if self.apart:
            regularised = [
                voxels(self._map(q, int(used[rows].sum()), c, iterations=25))
                for q, rows, c in zip(halves, self.members, self.maps, strict=True)
            ]
        curve = fsc(*plain, pixel_size=self.stack.pixel_size, mask=self.soft)
        notes = list(self.notes)
        done = "they are left out of the maps" if self.exclude_flagged else "leave them out"
        for flag, text in (
            (no_signal, "agree with the map no better than noise would"),
            (outlier, "fit far worse than the others"),
        ):
            if flag.any():
                notes.append(f"{int(flag.sum())} of {len(flag)} images {text}: {done}")
        if not self.apart:
            notes.append("the half sets shared one map while their poses were refined: their FSC is too good")
        return Refinement(
            stack=dataclasses.replace(self.stack, poses=poses, ctf=self._ctf()),
            start=self.start,
            map=final,
            half1=regularised[0],
            half2=regularised[1],
            half1_noreg=plain[0] if self.apart else None,
            half2_noreg=plain[1] if self.apart else None,
            fsc=curve,
            status=self.status,
            no_signal=no_signal,
            outlier=outlier,
            score=self.score,
            particle_scale=self.scales,
            angle_change=np.rad2deg(geodesic_distance(self.start.matrices, self.matrices)),
            shift_change=np.linalg.norm(self.shifts - self.start.shifts, axis=1),
            history=self.history,
            stopped_by=stopped_by,
            seconds=time.perf_counter() - begin,
            warnings=notes,
        )


def _checked_reference(reference: NDArray, box: int, pixel_size: float, stated: float | None) -> NDArray:
    reference = np.asarray(reference, np.float32)
    if reference.shape != (box,) * 3:
        raise ValueError(
            f"the reference has shape {reference.shape}, images of {box} pixels need {(box,) * 3}: crop or pad it, and"
            " resample it if its pixels differ"
        )
    if stated is not None and abs(stated / pixel_size - 1) > 0.01:
        raise ValueError(
            f"the reference has pixels of {stated:g} angstrom, the images of {pixel_size:g}: resample it to the pixels"
            " of the images"
        )
    if not np.isfinite(reference).all():
        raise ValueError("the reference holds NaN or infinite values")
    if not reference.any() or np.ptp(reference) == 0:
        raise ValueError("the reference is constant: it tells no orientation from another")
    return reference


def _masks(mask: Any, box: int) -> tuple[Any, NDArray | None]:
    """The mask as a support, and as a weight."""
    if mask is None or isinstance(mask, str):
        return mask, None
    soft = np.asarray(mask, float)
    if soft.shape != (box,) * 3:
        raise ValueError(f"the mask has shape {soft.shape}, the images need {(box,) * 3}")
    if not (np.isfinite(soft).all() and soft.min() >= 0 and soft.max() <= 1 and soft.any()):
        raise ValueError("a mask holds values from 0 to 1, and not zeros alone")
    return soft > 0, soft


def _split(stack: ParticleStack, half_maps: bool, rng: Any, notes: list[str]) -> ParticleStack:
    """The stack with half sets 1 and 2."""
    found = set() if stack.half is None else {int(h) for h in np.unique(stack.half)}
    if half_maps and found not in (set(), {1, 2}):
        raise ValueError(
            f"half-set numbers (rlnRandomSubset) are {sorted(found)}: both 1 and 2 must occur, or leave them out"
            " and the particles are split at random"
        )
    if half_maps and not found:
        notes.append("no half sets in the input: the particles were split at random")
    return with_halves(stack, rng, [])  # its own notes are of poses that are not refined


def _robust(values: NDArray) -> tuple[float, float]:
    """Median, and the standard deviation of normal values with the same median of absolute differences from it."""
    centre = float(np.median(values))
    return centre, float(np.median(np.abs(values - centre)) / special.ndtri(0.75))


def _alike(poses: Poses) -> bool:
    return bool(len(poses) > 2 and geodesic_distance(poses.matrices[:1], poses.matrices).max() < 1e-3)


def _lowpassed(volume: NDArray, frequency: float) -> NDArray:
    """With a cosine edge of two shells about ``frequency``, cycles per voxel."""
    n = volume.shape[0]
    k = np.fft.fftfreq(n)
    radius = np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + np.fft.rfftfreq(n) ** 2)
    edge = np.clip((radius - frequency) * n / 2 + 0.5, 0, 1)
    return np.fft.irfftn(
        np.fft.rfftn(volume) * (0.5 + 0.5 * np.cos(np.pi * edge)), s=volume.shape, axes=(0, 1, 2)
    ).astype(np.float32)


def _scale_for(box: int, band: int) -> float:
    """Pixels per coefficient of a basis that holds a band, and that of the round after it."""
    side = min(box, math.ceil(2 * band / _MARGIN / 2) * 2 + box % 2)
    return box / side


def _band_of(box: int, scale: float) -> float:
    """The largest shell that coefficients of a scale hold."""
    return box / (2 * scale)


def _resolved(curve: NDArray) -> int:
    """The last shell before the FSC first falls below 0.143."""
    below = np.flatnonzero(curve[1:] < 0.143)
    return int(below[0]) if below.size else len(curve) - 1
