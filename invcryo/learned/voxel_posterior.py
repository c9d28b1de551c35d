"""A posterior over the Fourier voxels of a map, learned from particles whose poses are known.

Ullrich et al., "Differentiable probabilistic models of scientific imaging with the Fourier slice theorem", 2019: each
voxel is Gaussian about its own mean, with a standard deviation that tells where the data say little. Mean and deviation
minimise the evidence bound of their equation 15 by stochastic gradients.

>>> from invcryo.learned import VoxelPosterior
>>> posterior = VoxelPosterior.fit(stack, rng=0)                     # doctest: +SKIP
>>> volume = posterior.mean_map()                                    # doctest: +SKIP
>>> posterior.uncertainty                 # sigma / prior: 1 where nothing was seen     # doctest: +SKIP
>>> posterior.fsc().resolution(0.143)     # from one fit, without half sets             # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_ndtr

from ..autograd import Var, const, no_grad, ops, slices, value_and_grad
from ..autograd.optimise import Adam
from ..autograd.parameters import Parameters
from ..autograd.training import Batch, Batches, load_state, save_state, train
from ..backend import real_dtype
from ..checkpoint import Checkpoint, digest
from ..data import ParticleStack
from ..grid import centred_coordinates
from ..io.atomic import atomic_path
from ..kernels.posterior import slice_weights
from ..metrics import FSC
from ..reconstruction import reconstruct
from ..solvers import NonFiniteError, State, run
from .spectra import VoxelGrid, image_spectra, image_weights, map_variance, mirrored, planes, tie

__all__ = ["Calibration", "VoxelPosterior"]

log = logging.getLogger(__name__)

#: Images from which the spectrum of the signal is estimated.
PILOT = 10_000
#: Part of a new estimate of the noise that enters after each batch.
MEMORY = 0.05
#: The smallest variance of the noise, relative to the power of the images: of what trilinear slices cannot say.
FLOOR = 1e-6


@dataclass(frozen=True, eq=False)
class Calibration:
    """How often the truth lies within a posterior, shell by shell.

    Attributes
    ----------
    within : ndarray, (2, shells)
        Fraction of the real and imaginary parts of coefficients within 1 and 2 standard deviations of their means;
        0.683 and 0.954 where the posterior is right.
    counts : ndarray, (shells,)
        Real numbers that were counted.
    """

    within: NDArray
    counts: NDArray

    def overall(self) -> tuple[float, float]:
        """The two fractions over all shells."""
        first, second = (self.within * self.counts).sum(axis=1) / self.counts.sum()
        return float(first), float(second)


@dataclass(eq=False)
class VoxelPosterior:
    """Independent Gaussian Fourier voxels. Made by `fit`.

    Attributes
    ----------
    mean : ndarray, (field, field, field // 2 + 1), complex
        Means of the voxels, in units of ``rfftn`` of the map; origin at index 0.
    sigma : ndarray, (field, field, field // 2 + 1)
        Root of the mean square distance of a voxel from its mean, ``E |v - mean|^2``; zero for a Dirac posterior.
    prior : ndarray, (field // 2 + 1,)
        The same before any image was seen, by shell of the field; the mean is 0 then.
    noise : ndarray, (box // 2 + 1,)
        Variance of the noise by shell of the images, in units of the variance of a pixel.
    box, field, padding : int
        Side of the images, and of the map in the middle of theirs; how much finer its spectrum is sampled for slices.
    pixel_size : float
        Angstrom.
    kind : "gaussian" or "dirac"
    history : dict
        Figures of the steps: ``loss`` is the evidence bound per Fourier sample, in nats.
    stopped_by : str

    Notes
    -----
    Voxels that are independent make a map of noise that is alike everywhere in the field. Slices of a spectrum that is
    sampled twice as fine say the same of all places, so that each voxel has the data of its own: deviations and
    signal-to-noise ratios are then those of the map. With a padding of 1, as in the paper, the voxels are those whose
    *trilinear* slices are the images, which hardly see a density near the faces of the box: noise and signal are not in
    the same places, sigma is that of a mean field, and the expected FSC is too low where the particle is in the middle
    alone. `mean_map` takes off what this does to the density itself.
    """

    mean: NDArray
    sigma: NDArray
    prior: NDArray
    noise: NDArray
    box: int
    field: int
    padding: int
    pixel_size: float
    kind: str = "gaussian"
    history: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    stopped_by: str = ""

    @classmethod
    def fit(
        cls,
        stack: ParticleStack,
        *,
        kind: Literal["gaussian", "dirac"] = "gaussian",
        noise: ArrayLike | Literal["learned"] = "learned",
        prior: ArrayLike | Literal["estimated"] = "estimated",
        diameter: float | None = None,
        padding: int = 2,
        start: NDArray | Literal["least-squares"] | None = None,
        epochs: float = 10,
        batch: int = 32,
        rate: float = 0.03,
        polish: bool = True,
        rng: np.random.Generator | int | None = None,
        dtype: Any = np.float32,
        checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
        callback: Callable[[VoxelPosterior, State], None] | None = None,
        progress: bool | None = None,
    ) -> VoxelPosterior:
        """Fit to particles with known poses.

        Parameters
        ----------
        stack : ParticleStack
            Images are read batch by batch.
        kind : "gaussian" or "dirac"
            A Dirac posterior has no deviation: its mean is the most probable map.
        noise : float, (box // 2 + 1,) or "learned"
            Variance of the noise of a pixel, of all shells or each; or learned from what the slices leave.
        prior : float, (field // 2 + 1,) or "estimated"
            Standard deviation of the voxels before the data, of all shells or each, in units of ``rfftn`` of the map;
            or that of the signal, which two back-projections of half of the images each have in common.
        diameter : float, optional
            Of the particle, angstrom: the map is the cube in the middle of the box that just holds it, and nothing is
            outside; default: the whole box. Images stay as they are, with the whole of what a CTF spreads. The time of
            the Fourier transforms of each step falls with the third power.
        padding : int
            How much finer than the map's the spectrum is sampled that slices are taken of. 1 is the model of the paper,
            without those transforms, whose deviations are not calibrated.
        start : (box, box, box) or (field, field, field), "least-squares" or None
            A map to start from, of the field or the box, the least-squares map of `reconstruct`, or nothing, as in the
            paper.
        epochs : float
            How often each image is seen; with 0 the start itself is returned.
        batch : int
            Images of a step.
        rate : float
            Of Adam at the start, in units of the prior; it falls to zero as a cosine.
        polish : bool
            End with two steps of the means with all images, and with the deviations that minimise the bound given the
            noise, which have a closed form: what stochastic gradients find scatters about these.
        checkpoint : Checkpoint or path, optional
            A folder for the state, written every minute, and where the run ends early: by Ctrl-C, or by figures that
            are not finite. If it holds an unfinished fit, that goes on. Removed at the end.
        callback : callable, optional
            ``callback(posterior, state)`` after each epoch; may raise StopIteration.

        Returns
        -------
        VoxelPosterior
            After Ctrl-C as far as it came, with ``stopped_by == "interrupt"``.
        """
        model = _Model(
            stack, kind, noise, prior, diameter, padding, epochs, batch, rate, rng, real_dtype(dtype)
        )
        if isinstance(checkpoint, (str, os.PathLike)):
            checkpoint = Checkpoint(checkpoint)
        state = None
        if checkpoint is not None:
            state = load_state(checkpoint, model.job(start), model.parameters)
        if state is None:
            model.begin(start, progress)
        if model.steps == 0:
            return model.result({}, "start")
        return model.run(state, checkpoint, start, callback, progress, polish=polish)

    @staticmethod
    def field_of(stack: ParticleStack, diameter: float | None) -> int:
        """Side in pixels of the smallest even cube that holds a particle, and a pixel more at each face."""
        if diameter is None:
            return stack.box
        if not (math.isfinite(diameter) and diameter > 0):
            raise ValueError(f"the diameter must be positive, got {diameter!r}")
        return max(4, min(stack.box, 2 * math.ceil(diameter / stack.pixel_size / 2 + 1)))

    # -- what it says ------------------------------------------------------------------------------------------------

    @property
    def grid(self) -> VoxelGrid:
        """Where the voxels are."""
        return VoxelGrid(self.box, self.padding, self.field)

    @property
    def uncertainty(self) -> NDArray:
        """``sigma`` over the prior's deviation: near 1 where nothing was seen, near 0 where much was."""
        return self.sigma / self.prior[self.grid.shells].astype(self.sigma.dtype)

    def mean_map(self) -> NDArray:
        """The mean as a map (field, field, field)."""
        return self.grid.volume(self.mean)

    def sigma_map(self) -> NDArray:
        """Standard deviation of the voxels of `mean_map`, (field, field, field).

        Fourier voxels that are independent say nothing of places: it is one number, with a padding of 1 times
        `VoxelGrid.window`. Where in Fourier space the map is uncertain is in ``sigma``.
        """
        grid = self.grid
        whole = np.sum(self.sigma.astype(np.float64) ** 2 * 2 * grid.multiplicity)
        window = grid.window() if self.padding == 1 else np.ones((self.field,) * 3)
        return (math.sqrt(whole) / self.field**3 * window).astype(self.sigma.dtype)

    def sample(self, *, rng: np.random.Generator | int | None = None) -> NDArray:
        """A map drawn from the posterior."""
        noise = _standard_normal(self.grid, np.random.default_rng(rng), self.sigma.dtype)
        return self.grid.volume(self.mean + self.sigma * noise)

    def ss_snr(self, of: Literal["map", "voxels"] = "map") -> NDArray:
        """Spectral signal-to-noise ratio by shell of the field, ``sum |mean|^2 / sum sigma^2`` (equation 19).

        Parameters
        ----------
        of : "map" or "voxels"
            Of the coefficients of `mean_map`, or of the voxels themselves; with a padding of 2 they are the same.
            Voxels of a padding of 1 hold noise that the map does not, of places near the faces of the box.
        """
        mean, sigma = self._coefficients(of)
        if not sigma.any():
            raise ValueError(
                "a Dirac posterior has no sigma, and so no signal-to-noise ratio: fit a Gaussian"
            )
        power = self.grid.mean_of_shells(np.abs(mean).astype(np.float64) ** 2)
        return power / self.grid.mean_of_shells(sigma.astype(np.float64) ** 2)

    def fsc(self, of: Literal["map", "voxels"] = "map", *, with_truth: bool = False) -> FSC:
        """What the FSC of two such data sets would be, ``alpha / (1 + alpha)`` with the `ss_snr` alpha.

        Parameters
        ----------
        with_truth : bool
            What the FSC of the map with the truth would be, which is the square root.
        """
        alpha = self.ss_snr(of)
        curve = alpha / (1 + alpha)
        grid = self.grid
        voxels = np.bincount(grid.shells[grid.inside], 2 * grid.multiplicity[grid.inside])
        return FSC(
            np.arange(len(curve)) / (self.field * self.pixel_size),
            np.sqrt(curve) if with_truth else curve,
            np.rint(voxels).astype(int),
            self.pixel_size,
            self.field,
        )

    def calibration(self, truth: NDArray, of: Literal["map", "voxels"] = "map") -> Calibration:
        """How often a true map, in the units of the images, of the field or the box, lies within the posterior."""
        grid = self.grid
        mean, sigma = self._coefficients(of)
        true = grid.voxels(truth) if of == "voxels" else _map_spectrum(grid.within(truth))
        # of a part of a complex number; the planes of real ones and pairs are left out
        part = np.ones(mean.shape, bool) & grid.inside & (grid.multiplicity == 1) & (sigma > 0)
        length = self.field // 2 + 1
        shells = grid.shells[part]
        off = (true - mean)[part] / (sigma[part] / math.sqrt(2))
        counts = 2 * np.bincount(shells, minlength=length)
        within = [
            sum(
                np.bincount(shells, np.abs(x) <= limit, length).astype(np.float64)
                for x in (off.real, off.imag)
            )
            / np.maximum(counts, 1)
            for limit in (1, 2)
        ]
        return Calibration(np.array(within), counts)

    def _coefficients(self, of: str) -> tuple[NDArray, NDArray]:
        """Means and deviations of coefficients of the map or of the voxels."""
        if of == "voxels":
            return self.mean, self.sigma
        if of != "map":
            raise ValueError(f"unknown coefficients {of!r}: 'map' or 'voxels'")
        sigma = np.sqrt(map_variance(self.sigma.astype(np.float64) ** 2, self.grid))
        return _map_spectrum(self.mean_map()), sigma

    # -- files -------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an .npz file."""
        with atomic_path(Path(path)) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                mean=self.mean,
                sigma=self.sigma,
                prior=self.prior,
                noise=self.noise,
                grid=np.array([self.box, self.field, self.padding]),
                pixel_size=np.array(self.pixel_size),
                kind=np.frombuffer(self.kind.encode(), np.uint8),
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> VoxelPosterior:
        """Read a file of `save`."""
        with np.load(path, allow_pickle=False) as file:
            try:
                box, field, padding = (int(v) for v in file["grid"])
                return cls(
                    file["mean"],
                    file["sigma"],
                    file["prior"],
                    file["noise"],
                    box,
                    field,
                    padding,
                    float(file["pixel_size"]),
                    file["kind"].tobytes().decode(),
                )
            except KeyError as error:
                raise ValueError(f"{path} holds no posterior: {error.args[0]}") from None


def _map_spectrum(volume: NDArray) -> NDArray:
    return np.fft.rfftn(np.fft.ifftshift(volume.astype(np.float64)))


def _standard_normal(grid: VoxelGrid, rng: np.random.Generator, dtype: Any) -> NDArray:
    """Complex normal voxels with ``E |v|^2 = 1``, real where they are their own mates."""
    dtype = real_dtype(dtype)
    parts = rng.standard_normal((*grid.shape, 2), dtype=dtype.type)
    parts *= dtype.type(math.sqrt(0.5))
    values = parts.view(np.result_type(dtype, np.complex64))[..., 0]
    for plane in planes(grid.field):
        values[..., plane] += mirrored(values[..., plane])
        values[..., plane] *= dtype.type(math.sqrt(0.5))
    return values


# -- the fit ----------------------------------------------------------------------------------------------------------


def _positive_power(signal: NDArray, error: NDArray) -> NDArray:
    """Power by shell from estimates with errors that may be negative.

    From the first shell that is below four errors on it does not increase: shells that would make it so are taken
    together, each by what it says. What is left is the mean of a normal law cut off at zero.
    """
    error = np.maximum(error, 1e-6 * signal.max())
    unsure = np.flatnonzero(signal[1:] <= 4 * error[1:]) + 1
    first = unsure[0] if len(unsure) else len(signal)
    blocks: list[list[float]] = []  # mean, precision, shells
    for power, off in zip(signal, error, strict=True):
        blocks.append([power, off**-2.0, 1])
        while len(blocks) - 2 >= first and blocks[-1][0] > blocks[-2][0]:
            (one, p, n), (other, q, m) = blocks[-2:]
            blocks[-2:] = [[(one * p + other * q) / (p + q), p + q, n + m]]
    mean, precision, count = np.array(blocks).T
    off = 1 / np.sqrt(precision)
    cut = off * np.exp(-0.5 * (mean / off) ** 2 - log_ndtr(mean / off)) / math.sqrt(2 * math.pi)
    return np.repeat(np.maximum(mean + cut, 0.1 * off), count.astype(int))


class _Model:
    """Parameters, loss and step of a fit.

    Voxels are ``scale * u`` with ``u = mean + exp(log_sigma) noise``. Scale is the deviation of the prior,
    so that u has the prior N(0, 1) of the paper. The noise is learned in closed form after each batch.
    """

    def __init__(
        self,
        stack: ParticleStack,
        kind: str,
        noise: Any,
        prior: Any,
        diameter: float | None,
        padding: int,
        epochs: float,
        batch: int,
        rate: float,
        rng: Any,
        dtype: np.dtype,
    ) -> None:
        if kind not in ("gaussian", "dirac"):
            raise ValueError(f"unknown posterior {kind!r}: expected 'gaussian' or 'dirac'")
        if stack.poses is None:
            raise ValueError(
                "the particles have no poses, and a posterior of voxels needs them: refine them first"
            )
        if not (epochs >= 0 and rate > 0):
            raise ValueError(f"epochs must not be negative, and rate positive: got {epochs:g} and {rate:g}")
        self.stack, self.kind, self.rate, self.dtype = stack, kind, rate, dtype
        self.grid = VoxelGrid(stack.box, padding, VoxelPosterior.field_of(stack, diameter))
        self.batches = Batches(len(stack), batch, rng=rng)
        self.per_epoch = len(stack) // batch
        self.steps = math.ceil(epochs * self.per_epoch)
        self.weights, self.shells = image_weights(self.grid)
        shells = stack.box // 2 + 1
        self.samples = np.bincount(self.shells.ravel(), self.weights.ravel(), shells)
        self.given = {
            "noise": self._given(noise, "noise", "learned", stack.box),
            "prior": self._given(prior, "prior", "estimated", self.grid.field),
        }
        self.pilot = np.unique(np.linspace(0, len(stack) - 1, min(PILOT, len(stack))).astype(int))
        self.signal, self.power, first = self._spectra()
        prior_given = self.given["prior"]
        self.scale = np.sqrt(self.signal) if prior_given is None else prior_given / stack.box
        free: dict[str, NDArray] = {"mean": np.zeros(self.grid.shape, np.result_type(dtype, np.complex64))}
        if kind == "gaussian":
            free["log_sigma"] = np.full(self.grid.shape, math.log(0.1), dtype)
        noises = self.given["noise"]
        noises = first if noises is None else noises
        self.parameters = Parameters({"posterior": free, "shells": {"noise": noises.astype(dtype)}})
        self.adam = Adam(self.parameters, "posterior", rate=rate, betas=(0.9, 0.99))
        self.both = value_and_grad(self._loss)
        self.voxel_scale = self.scale[self.grid.shells].astype(dtype)

    @staticmethod
    def _given(value: Any, name: str, otherwise: str, side: int) -> NDArray | None:
        if isinstance(value, str):
            if value == otherwise:
                return None
            raise ValueError(f"{name} must be {otherwise!r}, a number or one for each shell, got {value!r}")
        shells = side // 2 + 1
        array = np.asarray(value, np.float64)
        if array.shape not in ((), (shells,)) or not (np.isfinite(array).all() and (array > 0).all()):
            raise ValueError(f"{name} must be positive, one number or {shells} of the shells, got {value!r}")
        return np.broadcast_to(array, shells).copy()

    # -- first estimates ---------------------------------------------------------------------------------------------

    def _by_shell(self, values: NDArray) -> NDArray:
        """Weighted mean over the samples of each shell of an image; 0 where there are none."""
        total = np.bincount(self.shells.ravel(), (self.weights * values).ravel(), len(self.samples))
        return total / np.maximum(self.samples, 1e-12)

    def _spectra(self) -> tuple[NDArray, NDArray, NDArray]:
        """By shell: power of the signal in a voxel, power of the images, and a first variance of the noise.

        Two back-projections, each of every other image, have the signal in common and no noise: with sums W of weights,
        ``E B_1 conj(B_2) = W_1 W_2 |v|^2`` where v hardly varies between samples.
        """
        grid = self.grid
        sampled = (2, grid.n, grid.n, grid.n // 2 + 1)
        back, sums, unused = np.zeros(sampled, complex), np.zeros(sampled), np.zeros(sampled[1:])
        power, transfer = np.zeros(self.weights.shape), np.zeros(self.weights.shape)
        assert self.stack.poses is not None
        for first in range(0, len(self.pilot), 256):
            index = self.pilot[first : first + 256]
            pixels = np.asarray(self.stack.images[index], self.dtype)
            bad = ~np.isfinite(pixels).all(axis=(1, 2))
            if bad.any():
                shown = ", ".join(map(str, index[bad][:5]))
                raise ValueError(f"images {shown} hold NaN or infinite pixels: leave them out")
            spectra = image_spectra(self.stack, index, pixels)
            power += (np.abs(spectra).astype(np.float64) ** 2).sum(axis=0)
            filters = self._filters(index)
            g = np.broadcast_to(self.weights.astype(self.dtype), spectra.shape)
            g = g if filters is None else g * filters
            seen = g if filters is None else g * filters
            transfer += len(index) if filters is None else (filters.astype(np.float64) ** 2).sum(axis=0)
            turns = self.stack.poses.matrices[index].astype(self.dtype)
            for half in (0, 1):
                part = slice(half, None, 2)
                back[half] += slices.slice_adjoint(
                    g[part] * spectra[part], turns[part], grid.n, grid.radius
                ).data
                slice_weights(seen[part], turns[part], grid.step, grid.radius, sums[half], unused)
        count = len(self.pilot)
        power, transfer = self._by_shell(power) / count, self._by_shell(transfer) / count
        if not power.any():
            raise ValueError("the images are zero everywhere")
        power = np.maximum(power, 1e-12 * power.max())
        for values in (*back, *sums):
            tie(values)
        if grid.padding > 1:
            back = np.stack([grid.gathered(b) for b in back])
            sums = np.stack([grid.gathered_weights(s) for s in sums])
        weights = sums[0] * sums[1]
        both = np.maximum(grid.mean_of_shells(weights), 1e-300)
        signal = grid.mean_of_shells((back[0] * back[1].conj()).real) / both
        # of each half, from their difference; and what it does to the power in common, over the voxels that were seen
        squares = np.maximum(grid.mean_of_shells(weights**2), 1e-300)
        own = grid.mean_of_shells(np.abs(back[0] * sums[1] - back[1] * sums[0]) ** 2) / (2 * squares)
        voxels = np.bincount(grid.shells[grid.inside], grid.multiplicity[grid.inside]) * both**2 / squares
        error = np.sqrt((np.maximum(signal, 0) + own / 2) * own / np.maximum(voxels, 1))
        if count == 1:
            signal, error = np.full(len(signal), power.mean()), np.zeros(len(signal))
        sure = signal > 4 * error
        signal = _positive_power(signal, error)
        # shells of the images are finer or coarser than those of the field by the ratio of their sides
        seen = np.interp(np.arange(len(power)) * grid.field / grid.box, np.arange(len(signal)), signal)
        noise = np.clip(power - seen * transfer, 1e-3 * power, power)
        if grid.padding == 1:
            signal = signal * self._faded(back, sums, np.where(sure, signal, np.inf))
        return signal, power, noise

    def _faded(self, back: NDArray, sums: NDArray, signal: NDArray) -> float:
        """Power of the voxels over that of their back-projection, which has the window of the grid on it once more.

        From the energy that the two halves have in common in real space, every sure shell counted alike.
        """
        grid = self.grid
        signal[0] = np.inf
        if not np.isfinite(signal).any():
            return 1.0
        floor = 0.1 * grid.mean_of_shells(sums.sum(axis=0))[grid.shells]
        white = 1 / np.sqrt(signal)[grid.shells] / (sums + floor)
        ball = sum(c**2 for c in centred_coordinates((grid.box,) * 3)) <= (grid.box / 2 - 1) ** 2
        first, second = (grid.volume(b * w) for b, w in zip(back, white, strict=True))
        # of the density times the window twice, `volume` has multiplied once more
        window = np.where(ball, grid.window(), np.inf)
        common = first * second
        return float(np.clip((common / window**6).sum() / (common / window**2).sum(), 1, 10))

    def _filters(self, index: NDArray) -> NDArray | None:
        if self.stack.ctf is None:
            return None
        box, size = self.stack.box, self.stack.pixel_size
        ky, kx = np.fft.fftfreq(box, size)[:, None], np.fft.rfftfreq(box, size)
        return self.stack.ctf[index](kx, ky, dtype=self.dtype)

    def begin(self, start: NDArray | str | None, progress: bool | None) -> None:
        """Set the parameters to a map, and to the deviations that the poses imply."""
        if start is None:
            return
        if isinstance(start, str):
            if start != "least-squares":
                raise ValueError(f"unknown start {start!r}: expected a map, 'least-squares' or None")
            plain = reconstruct(self.stack, reg="none", progress=progress)
            if plain.stopped_by == "interrupt":
                raise KeyboardInterrupt
            start = plain.map
        start = np.asarray(start)
        sides = {self.stack.box, self.grid.field}
        if start.shape not in {(n,) * 3 for n in sides} or not np.isfinite(start).all():
            raise ValueError(f"a start is a finite map {(self.stack.box,) * 3}, got {start.shape}")
        u = self.grid.voxels(start.astype(self.dtype)) / self.stack.box / self.voxel_scale
        if self.given["noise"] is None:
            self.parameters.array("shells/noise")[...] = self._left_over(u * self.voxel_scale)
        sums = self.polish()
        # shrunk as independent voxels would be: more where less was seen
        self.parameters.array("posterior/mean")[...] = u * (sums / (sums + 1))
        self.parameters.changed()

    def polish(self, passes: int = 0) -> NDArray:
        """Give the means some steps with all images, and the deviations their closed form; returns the sums.

        The sums are those of `information`.
        """
        squares, sums = self.information()
        for _ in range(passes):
            self._settle(sums)
        if self.kind == "gaussian":
            self.parameters.array("posterior/log_sigma")[...] = -0.5 * np.log1p(squares)
            self.parameters.changed()
        return sums

    def _settle(self, sums: NDArray) -> None:
        """A step of the means down the gradient of the whole bound, each by what the data say of it."""
        mean = self.parameters.array("posterior/mean")
        slope = np.zeros_like(mean)
        for first in range(0, len(self.stack), 256):
            index = np.arange(first, min(first + 256, len(self.stack)))
            slope += self.both(self.parameters.tree["posterior"], self._data(index))[1]["mean"]
        mean -= tie(slope) / (2 * (1 + sums)).astype(self.dtype)
        self.parameters.changed()

    def information(self) -> tuple[NDArray, NDArray]:
        """(squares, sums): precision that the data give each u by squared weights of slices, and by weights.

        The first makes the deviations exact: ``1 / sigma^2 = 1 + squares``. With a padding of 2 they are the same.
        """
        grid = self.grid
        sums = np.zeros((grid.n, grid.n, grid.n // 2 + 1))
        squares = np.zeros_like(sums)
        weight = self.weights / self.parameters.array("shells/noise").astype(np.float64)[self.shells]
        assert self.stack.poses is not None
        for first in range(0, len(self.stack), 256):
            index = np.arange(first, min(first + 256, len(self.stack)))
            filters = self._filters(index)
            g = np.broadcast_to(weight, (len(index), *weight.shape))
            g = g if filters is None else g * filters.astype(np.float64) ** 2
            slice_weights(g, self.stack.poses.matrices[index], grid.step, grid.radius, sums, squares)
        tie(sums)
        if grid.padding > 1:
            # what no slice touches has rounding errors of the transforms
            sums = squares = np.maximum(grid.gathered_weights(sums), 0)
        else:
            tie(squares)
        scale = self.voxel_scale.astype(np.float64) ** 2
        return squares * scale, sums * scale

    def _left_over(self, voxels: NDArray) -> NDArray:
        """Variance by shell of what slices of some voxels leave of some images."""
        index = self.pilot[:: -(-len(self.pilot) // 500)]
        assert self.stack.poses is not None
        turns = self.stack.poses.matrices[index].astype(self.dtype)
        voxels = voxels.astype(np.result_type(self.dtype, np.complex64))
        with no_grad():
            model = slices.central_slice(self.grid.sliced_of(const(voxels)), turns, self.stack.box).data
        filters = self._filters(index)
        rest = image_spectra(self.stack, index) - (model if filters is None else model * filters)
        power = self._by_shell((np.abs(rest).astype(np.float64) ** 2).mean(axis=0))
        return np.maximum(power, FLOOR * self.power)

    # -- steps -------------------------------------------------------------------------------------------------------

    def _voxels(self, tree: Mapping[str, Var], noise: NDArray | None) -> Var:
        u = tree["mean"]
        if noise is not None:
            u = u + ops.exp(tree["log_sigma"]) * noise
        return self.grid.sliced_of(ops.scale(u, self.voxel_scale))

    def _loss(self, tree: Mapping[str, Var], data: dict[str, Any]) -> Var:
        """Equation 15: the misfit of a batch, and its share of the divergence from the prior."""
        model = slices.central_slice(self._voxels(tree, data["noise"]), data["turns"], self.stack.box)
        if data["filters"] is not None:
            model = ops.scale(model, data["filters"])
        power = ops.squared_norm(model - data["images"], 0)
        data["left"] = power.data
        misfit = ops.sum(ops.scale(power, data["precision"]))
        return misfit + data["share"] * self._divergence(tree)

    def _divergence(self, tree: Mapping[str, Var]) -> Var:
        """KL of the posterior from the prior; of a Dirac one, minus the logarithm of the prior."""
        weight = self.grid.multiplicity.astype(self.dtype)
        divergence = ops.squared_norm(ops.scale(tree["mean"], np.sqrt(weight)))
        if "log_sigma" in tree:
            double = 2.0 * tree["log_sigma"]
            divergence = divergence + ops.sum(ops.scale(ops.exp(double) - double - 1.0, weight))
        return divergence

    def _data(self, index: NDArray) -> dict[str, Any]:
        """What the loss of some images needs, at the means."""
        assert self.stack.poses is not None
        noise = self.parameters.array("shells/noise").astype(np.float64)
        images = image_spectra(self.stack, index).astype(self.parameters.array("posterior/mean").dtype)
        images[:, self.weights == 0] = 0
        return {
            "images": images,
            "turns": self.stack.poses.matrices[index].astype(self.dtype),
            "filters": self._filters(index),
            "precision": (self.weights / noise[self.shells]).astype(self.dtype),
            "share": len(index) / len(self.stack),
            "noise": None,
        }

    def step(self, batch: Batch) -> Mapping[str, float]:
        size = len(batch.index)
        data = self._data(batch.index)
        if self.kind == "gaussian":
            data["noise"] = _standard_normal(self.grid, batch.rng, self.dtype)
        value, gradients = self.both(self.parameters.tree["posterior"], data)
        for g in gradients.values():
            tie(g)
        noise = self.parameters.array("shells/noise").astype(np.float64)
        entropy = size * float(np.sum(self.samples * np.log(noise)))
        loss = (float(value) + entropy) / (size * self.samples.sum())
        if not math.isfinite(loss):
            return {"loss": math.nan, "gradient": math.nan}
        done = int(self.adam.memory()["count"])
        self.adam.rate = 0.5 * self.rate * (1 + math.cos(math.pi * min(1, done / self.steps)))
        norm = self.adam.step(gradients)
        if math.isfinite(norm):
            self._learn(data["left"] / size)
        return {"loss": loss, "gradient": norm}

    def _learn(self, left: NDArray) -> None:
        """The noise in closed form, given the posterior."""
        if self.given["noise"] is None:
            noise = self.parameters.array("shells/noise")
            new = np.maximum(self._by_shell(left), FLOOR * self.power)
            new[self.samples == 0] = noise[self.samples == 0]
            noise += MEMORY * (new - noise)
            self.parameters.changed("shells")

    # -- running -----------------------------------------------------------------------------------------------------

    def job(self, start: Any) -> dict[str, Any]:
        """What decides the result, for a checkpoint."""
        ends = np.unique([0, len(self.stack) - 1])
        return {
            "particles": digest([self.stack.poses, self.stack.ctf, np.asarray(self.stack.images[ends])]),
            "kind": self.kind,
            "noise": digest(self.given["noise"]),
            "prior": digest(self.given["prior"]),
            "padding": self.grid.padding,
            "field": self.grid.field,
            "start": start if isinstance(start, str) else digest(start),
            "steps": self.steps,
            "batch": self.batches.size,
            "rate": self.rate,
        }

    def run(
        self,
        state: State | None,
        checkpoint: Checkpoint | None,
        start: Any,
        callback: Callable[[VoxelPosterior, State], None] | None,
        progress: bool | None,
        *,
        polish: bool = False,
    ) -> VoxelPosterior:
        job = self.job(start)
        last: list[State] = []

        def seen(now: State) -> None:
            last[:] = [now]
            if checkpoint is not None and checkpoint.due():
                save_state(checkpoint, job, now)
            if callback is not None and now.iteration % self.per_epoch == 0:
                callback(self.result({}, ""), now)

        left = self.steps - (0 if state is None else state.iteration)
        if left <= 0:
            raise ValueError("the fit in the checkpoint has ended: remove it, or ask for more epochs")
        states = train(self.step, self.parameters, {"posterior": self.adam}, self.batches, state=state)
        try:
            result = run(states, left, callback=seen, label="posterior", progress=progress)
        except NonFiniteError as error:
            # a step whose figures are not finite leaves all parameters as they were
            if checkpoint is not None and last:
                save_state(checkpoint, job, last[0])
                raise NonFiniteError(f"{error}; it is also in {checkpoint.path}", error.result) from error
            raise
        if checkpoint is not None:
            if result.stopped_by == "interrupt":
                if (
                    result.state.memory
                ):  # not so where a second Ctrl-C tore a step: then the last checkpoint stays
                    save_state(checkpoint, job, result.state)
            else:
                checkpoint.remove()
        if polish and result.stopped_by != "interrupt":
            self.polish(2)
        stopped = "epochs" if result.stopped_by == "max_iter" else result.stopped_by
        return self.result(result.history, stopped)

    def result(self, history: dict[str, list[float]], stopped_by: str) -> VoxelPosterior:
        box = self.stack.box
        unit = box * self.voxel_scale
        mean = self.parameters.array("posterior/mean") * unit
        if self.kind == "gaussian":
            sigma = np.exp(self.parameters.array("posterior/log_sigma")) * unit
        else:
            sigma = np.zeros(self.grid.shape, self.dtype)
        noise = self.parameters.array("shells/noise").astype(np.float64)
        return VoxelPosterior(
            mean,
            sigma,
            box * self.scale,
            noise,
            box,
            self.grid.field,
            self.grid.padding,
            self.stack.pixel_size,
            self.kind,
            history,
            stopped_by,
        )
