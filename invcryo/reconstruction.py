"""The main job: from a particle stack to a map, half maps and their FSC.

Everything here is a composition of the public operators, costs and solvers; read `reconstruct` to see how.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checkpoint import Checkpoint
from .costs import Cost, LeastSquares
from .data import ParticleStack
from .grid import centred_coordinates
from .inversion import (
    PENALTIES,
    InterruptedStage,
    least_squares_map,
    penalty_for,
    regularised_map,
    supported,
    unless_interrupted,
)
from .memory import MemoryPlan, plan_memory
from .metrics import FSC, fsc
from .operators import ImageFilter, LinOp, Projector
from .operators.nufft import COARSE
from .selection import choose_lambda, lambda_max, noise_level, scaled_lambda
from .solvers import Result
from .testing import check_gram
from .window import KaiserBessel, Window

__all__ = ["ACCURACY", "Job", "Reconstruction", "forward_model", "plan", "reconstruct"]

log = logging.getLogger(__name__)

#: Of the transforms, relative: 1e-4 of the map, far below the noise of images.
ACCURACY = COARSE


@dataclass
class Reconstruction:
    """What `reconstruct` returns; maps are (z, y, x) voxels of ``pixel_size`` angstrom, None where not asked for."""

    map: NDArray
    map_noreg: NDArray
    pixel_size: float
    half1: NDArray | None = None
    half2: NDArray | None = None
    half1_noreg: NDArray | None = None
    half2_noreg: NDArray | None = None
    fsc: FSC | None = None
    fsc_noreg: FSC | None = None
    #: How the images are regularised: a name of `PENALTIES`, "none", or the type of a cost that was given.
    reg: str = "none"
    lam: float | None = None
    #: "cross-validation", "discrepancy" or "given".
    lam_rule: str | None = None
    #: A weight from which on the map is trivial, where the regulariser is a norm.
    lam_max: float | None = None
    #: Of every weight that was tried: see `Selection`.
    lam_search: list[dict[str, Any]] | None = None
    history: dict[str, list[float]] = field(default_factory=dict)
    stopped_by: str = ""
    gram_error: float = math.nan
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    memory: MemoryPlan | None = None
    #: Of the pass over the images: their number, the chunk, where an earlier pass was taken up, seconds.
    first_pass: dict[str, Any] = field(default_factory=dict)


def forward_model(
    stack: ParticleStack,
    window: Window | None = None,
    *,
    scale: float = 1.0,
    cutoff: float | None = 1.0,
    tol: float | None = None,
    dtype: Any = np.float32,
) -> LinOp:
    """``CTF @ Projector`` for a stack: from coefficients on a cube of ``box / scale`` to its images.

    Parameters
    ----------
    stack : ParticleStack
        With poses; without CTF the projector alone is returned.
    window : Window, optional
        Default `KaiserBessel()`.
    scale : float
        Pixels per coefficient.
    cutoff : float, optional
        Leave out image frequencies above this fraction of the Nyquist frequency. The default, 1, leaves out the
        corners of the Fourier square, where RELION's images hold nothing.
    tol : float, optional
        Relative accuracy of the transforms: see `Projector`.
    """
    if stack.poses is None:
        raise ValueError(
            "the particles have no poses (rlnAngleRot, rlnAngleTilt, rlnAnglePsi): a reconstruction needs them; run a"
            " refinement first, or give poses"
        )
    side = round(stack.box / scale)
    projector = Projector(
        stack.poses,
        KaiserBessel() if window is None else window,
        side,
        stack.image_shape,
        scale=scale,
        cutoff=cutoff,
        tol=tol,
        dtype=dtype,
    )
    if stack.ctf is None:
        return projector
    return ImageFilter.from_ctf(stack.ctf, stack.image_shape, stack.pixel_size, dtype=dtype) @ projector


def reconstruct(
    stack: ParticleStack,
    *,
    reg: str | Cost | Callable[[tuple[int, ...]], Cost] = "tv",
    lam: float | str = "auto",
    positivity: bool = False,
    mask: NDArray | str | None = "ball",
    symmetry: str = "C1",
    scale: float = 1.0,
    window: Window | None = None,
    half_maps: bool = False,
    max_iter: int | None = None,
    memory: float | None = None,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
    rng: np.random.Generator | int | None = 0,
    progress: bool | None = None,
) -> Reconstruction:
    """Reconstruct a map from particles with poses.

    Parameters
    ----------
    stack : ParticleStack
        Images are read once, in chunks, while others are computed with.
    reg : str, Cost or callable
        The regulariser R of the coefficients c: "tv" (isotropic total variation), another name in `PENALTIES`, "none"
        (least squares), a cost such as ``L1() @ Wavelet(shape)`` or `Denoiser`, or a function that makes one from the
        shape of the coefficients.
    lam : float, "auto" or "discrepancy"
        Weight of the regulariser in ``||H c - y||^2 / 2 + lam R(c)``; "auto" chooses it by cross-validation of the half
        sets, "discrepancy" by the noise in the corners of the images: see `choose_lambda`.
    positivity : bool
        Keep the coefficients, and with them the density, at or above zero. Needs a regulariser.
    mask : ndarray of bool, "ball" or None
        Where the coefficients may differ from zero: a (box, box, box) mask in voxels, the largest ball of the box
        less two voxels, or everywhere.
    symmetry : str
        Point group in RELION's names.
    scale : float
        Pixels per coefficient; 2, 3, 4 are coarse, fast and robust. The map keeps the box of the images.
    window : Window, optional
        Default `KaiserBessel()`.
    half_maps : bool
        Also reconstruct the two half sets, with the same lambda, and their FSC. Uses ``stack.half``, or splits at
        random with a warning.
    max_iter : int, optional
        Limit of iterations; default 100 for "none", else 200.
    memory : float, optional
        Gigabytes (1e9 bytes) that the process may hold; default: what it holds now and what the machine has free. It
        decides how many images are read at a time; what cannot fit is refused before work, see `plan`.
    checkpoint : Checkpoint or path, optional
        A folder for the state of the pass over the images, written every minute. If it holds the state of a pass
        that was cut short, the pass goes on from there. Removed at the end.

    Returns
    -------
    Reconstruction

    Notes
    -----
    The FSC of two maps that share a regulariser is biased by it: ``fsc_noreg``, between the unregularised half
    maps, is the one to quote as a resolution.
    """
    rule = _check(reg, lam, positivity)
    if len(stack) == 0:
        raise ValueError("the stack holds no particles")
    if len(stack) == 1 and (half_maps or rule == "cross-validation"):
        raise ValueError("one particle cannot be split into half sets: give lam and half_maps=False")
    job = Job(
        stack,
        window=window,
        mask=mask,
        symmetry=symmetry,
        scale=scale,
        penalty=None if rule is None else lambda shape: penalty_for(reg, shape),
        rule=rule,
        halves=half_maps or rule == "cross-validation",
        half_maps=half_maps,
        memory=memory,
        checkpoint=checkpoint,
        rng=rng,
        progress=progress,
    )
    penalty, support, data, whole, n_pixels = job.penalty, job.support, job.data, job.whole, job.n_pixels
    noise = noise_level(stack.images) if rule == "discrepancy" else None
    seconds, notes = job.seconds, job.notes

    def voxels(result: Result) -> NDArray:
        return job.voxels(np.maximum(result.x, 0) if positivity else result.x)

    begin = time.perf_counter()
    limit = 100 if max_iter is None else max_iter
    plain = least_squares_map(whole, support, n_pixels=sum(n_pixels), max_iter=limit, progress=progress)
    out = job.result(voxels(plain), plain.stopped_by)
    out.history, out.lam_rule = plain.history, rule
    out.reg = reg if isinstance(reg, str) else _name(penalty)
    try:
        unless_interrupted(plain)
        del plain  # with the arrays of its solver
        if half_maps:
            plain_halves = []
            for q, n in zip(data, n_pixels, strict=True):
                result = least_squares_map(q, support, n_pixels=n, max_iter=limit, progress=progress)
                unless_interrupted(result)
                plain_halves.append(voxels(result))
                del result
            out.half1_noreg, out.half2_noreg = out.half1, out.half2 = plain_halves
        seconds["least squares"] = time.perf_counter() - begin
        if penalty is not None:
            begin = time.perf_counter()
            total = sum(n_pixels)
            out.lam_max = lambda_max(whole, penalty, support)
            if rule == "given":
                out.lam = float(lam)
            else:
                halves = rule == "cross-validation"
                chosen = choose_lambda(
                    data if halves else [whole],
                    n_pixels if halves else [total],
                    penalty,
                    support,
                    rule=rule or "",
                    noise=noise,
                    largest=out.lam_max,
                    positivity=positivity,
                    progress=progress,
                )
                out.lam, out.lam_search = chosen.lam, chosen.trials
                log.info("lambda %.4g chosen by %s in %d iterations", out.lam, rule, chosen.iterations)
            seconds["lambda"] = time.perf_counter() - begin
            begin = time.perf_counter()
            options: dict[str, Any] = {
                "positivity": positivity,
                "max_iter": 200 if max_iter is None else max_iter,
                "progress": progress,
                "label": out.reg,
            }
            result = regularised_map(whole, penalty, out.lam, total, support, **options)
            out.map, out.history, out.stopped_by = voxels(result), result.history, result.stopped_by
            unless_interrupted(result)
            del result
            if half_maps:
                regularised = []
                for q, n in zip(data, n_pixels, strict=True):
                    share = scaled_lambda(out.lam, penalty, q, n / total)
                    result = regularised_map(q, penalty, share, n, support, **options)
                    unless_interrupted(result)
                    regularised.append(voxels(result))
                    del result
                out.half1, out.half2 = regularised
            seconds["regularised"] = time.perf_counter() - begin
    except InterruptedStage:
        out.stopped_by = "interrupt"
    if out.half1 is not None and out.half2 is not None:
        assert out.half1_noreg is not None and out.half2_noreg is not None
        out.fsc_noreg = fsc(out.half1_noreg, out.half2_noreg, pixel_size=stack.pixel_size)
        if out.half1.any() and out.half2.any():
            out.fsc = fsc(out.half1, out.half2, pixel_size=stack.pixel_size)
        else:
            notes.append(
                "a regularised half map is empty, so the two have no FSC: lambda is too large, or there is no signal"
            )
    return job.finished(out)


class Job:
    """What reconstructions from particles share: the plan, the sums over the images, and what is said at the end.

    Parameters
    ----------
    penalty : callable, optional
        From the shape of the coefficients to the regulariser.
    rule : str, optional
        By which lambda is chosen.
    halves : bool
        Whether the sums of the half sets are kept apart.
    stack, window, mask, symmetry, scale, half_maps, memory, checkpoint, rng, progress
        As for `reconstruct`.
    """

    def __init__(
        self,
        stack: ParticleStack,
        *,
        window: Window | None,
        mask: NDArray | str | None,
        symmetry: str,
        scale: float,
        penalty: Callable[[tuple[int, ...]], Cost] | None,
        rule: str | None,
        halves: bool,
        half_maps: bool,
        memory: float | None,
        checkpoint: Checkpoint | str | os.PathLike[str] | None,
        rng: np.random.Generator | int | None,
        progress: bool | None,
    ) -> None:
        self._start = time.perf_counter()
        self.window, self.scale = KaiserBessel() if window is None else window, scale
        self.notes: list[str] = []
        model = forward_model(stack, self.window, scale=scale, tol=ACCURACY)
        self.support = support_mask(mask, model.ishape, stack.box, scale)
        self.penalty = None if penalty is None else penalty(model.ishape)
        self.plan, self.gram_error = plan_with_check(
            stack, model, self.penalty, rule, scale, half_maps, memory
        )
        self.stack = with_halves(stack, rng, self.notes) if halves else stack
        groups = self.stack.half if halves else None
        self._checkpoint = (
            Checkpoint(checkpoint) if isinstance(checkpoint, (str, os.PathLike)) else checkpoint
        )
        cost = LeastSquares(model, stack.images, symmetry=symmetry, chunk=self.plan.chunk, progress=progress)
        self._pass = cost.normal_equations(groups, checkpoint=self._checkpoint)
        self.data = self._pass.quadratics
        self.whole = self.data[0] if len(self.data) == 1 else self.data[0].plus(self.data[1])
        sizes = [len(stack)] if groups is None else [int((groups == g).sum()) for g in (1, 2)]
        self.n_pixels = [size * stack.box**2 for size in sizes]
        self.seconds = {"data": time.perf_counter() - self._start}

    def voxels(self, coefficients: NDArray) -> NDArray:
        """The map of coefficients, 0 outside the support."""
        c = supported(coefficients, self.support)
        return self.window.synthesize(c, self.stack.box, scale=self.scale)

    def result(self, volume: NDArray, stopped_by: str) -> Reconstruction:
        """With an unregularised map, and what is known by now."""
        return Reconstruction(
            map=volume,
            map_noreg=volume,
            pixel_size=self.stack.pixel_size,
            stopped_by=stopped_by,
            gram_error=self.gram_error,
            seconds=self.seconds,
            warnings=self.notes,
            memory=self.plan,
            first_pass={k: v for k, v in vars(self._pass).items() if k != "quadratics"},
        )

    def finished(self, out: Reconstruction) -> Reconstruction:
        """Says what there is to doubt; the state of the pass is needed no longer, unless this was interrupted."""
        self.notes.extend(doubts_about(out))
        for note in self.notes:
            log.warning(note)
        self.seconds["total"] = time.perf_counter() - self._start
        if self._checkpoint is not None and out.stopped_by != "interrupt":
            self._checkpoint.remove()
        return out


def plan(
    stack: ParticleStack,
    *,
    reg: str | Cost | Callable[[tuple[int, ...]], Cost] = "tv",
    lam: float | str = "auto",
    scale: float = 1.0,
    window: Window | None = None,
    half_maps: bool = False,
    memory: float | None = None,
) -> MemoryPlan:
    """What `reconstruct` with these options will hold in memory, array by array; no image is read.

    Raises
    ------
    TooLargeError
        A MemoryError: it does not fit into ``memory`` gigabytes, or what the machine has free.
    """
    rule = _check(reg, lam, False)
    model = forward_model(stack, window, scale=scale, tol=ACCURACY)
    penalty = None if rule is None else penalty_for(reg, model.ishape)
    return plan_with_check(stack, model, penalty, rule, scale, half_maps, memory)[0]


def _check(reg: Any, lam: Any, positivity: bool) -> str | None:
    """The rule by which lambda is chosen: "given" for a number, None without regulariser."""
    if isinstance(reg, str) and reg != "none" and reg not in PENALTIES:
        raise ValueError(
            f"unknown regulariser {reg!r}: expected none, {', '.join(PENALTIES)}, a cost, or a function that makes one"
            " from the shape of the coefficients"
        )
    rules = {"auto": "cross-validation", "discrepancy": "discrepancy"}
    if isinstance(lam, str) and lam in rules:
        rule = rules[lam]
    elif isinstance(lam, (int, float)) and not isinstance(lam, bool) and math.isfinite(lam) and lam >= 0:
        rule = "given"
    else:
        raise ValueError(
            f"lam must be 'auto', 'discrepancy' or a finite number that is not negative, got {lam!r}"
        )
    if isinstance(reg, str) and reg == "none":
        if positivity or lam != "auto":
            raise ValueError("positivity and lam need a regulariser: use reg='tv' (lam=0 is no penalty)")
        return None
    return rule


def _name(penalty: Cost | None) -> str:
    return "none" if penalty is None else " + ".join(type(t.cost).__name__ for t in penalty.terms())


def plan_with_check(
    stack: ParticleStack,
    model: LinOp,
    penalty: Cost | None,
    rule: str | None,
    scale: float,
    half_maps: bool,
    memory: float | None,
) -> tuple[MemoryPlan, float]:
    """The plan, and the error of the self-check, which loads the libraries whose memory the plan measures."""
    error = _gram_error(model)
    planned = plan_memory(
        len(stack),
        stack.box,
        scale=scale,
        reg="none" if penalty is None else "regularised",
        splits=_splits(penalty, model),
        groups=2 if half_maps or rule == "cross-validation" else 1,
        half_maps=half_maps,
        ctf=stack.ctf is not None,
        limit=None if memory is None else 1e9 * memory,
    )
    return planned, error


def _splits(penalty: Cost | None, model: LinOp) -> int:
    """Volumes that the operators of a regulariser make of one: what ADMM holds; 0 where the problem is quadratic."""
    if penalty is None or penalty.quadratic(model.ishape, model.dtype) is not None:
        return 0
    operators = [term.operator for term in penalty.terms()]
    return sum(1 if L is None else -(-math.prod(L.oshape) // math.prod(L.ishape)) for L in operators)


def doubts_about(out: Reconstruction) -> list[str]:
    """What in the result should make a user look again."""
    doubts = []
    inside = sum(c**2 for c in centred_coordinates(out.map.shape)) <= (min(out.map.shape) / 2 - 2) ** 2
    density = out.map[inside].astype(np.float64)
    spread = density.std()
    if spread == 0 or (out.lam is not None and spread < 0.02 * out.map_noreg[inside].std(dtype=np.float64)):
        doubts.append(
            f"the map is almost constant: lambda = {out.lam:.3g} is too large; leave it to be chosen, or try a tenth"
            if out.lam is not None
            else "the map is constant: do the images hold anything?"
        )
    elif (skew := float((((density - density.mean()) / spread) ** 3).mean())) < -0.5:
        doubts.append(
            f"the density is darker than its surroundings (skewness {skew:.2f}): are the particles dark? Read them"
            " with contrast='dark', or without it if that was given"
        )
    return doubts


def with_halves(stack: ParticleStack, rng: Any, notes: list[str]) -> ParticleStack:
    """The stack with half-set numbers 1 and 2, drawn if it has none."""
    half = stack.half
    if half is not None:
        found = {int(h) for h in np.unique(half)}
        if found == {1, 2}:
            return stack
        notes.append(f"half-set numbers (rlnRandomSubset) are {sorted(found)}, not 1 and 2: drawn anew")
    drawn = np.random.default_rng(rng).permutation(len(stack)) % 2 + 1
    notes.append(
        "no half sets in the input: the particles were split at random. Their poses were refined together, so the"
        " FSC is not a gold standard"
    )
    return dataclasses.replace(stack, half=drawn)


def support_mask(mask: Any, shape: tuple[int, ...], box: int, scale: float) -> NDArray | None:
    """The mask on the grid of the coefficients."""
    if mask is None:
        return None
    if isinstance(mask, str):
        if mask != "ball":
            raise ValueError(f"unknown mask {mask!r}: expected 'ball', None or a boolean array")
        radius = (box / 2 - 2) / scale
        return np.asarray(sum(c**2 for c in centred_coordinates(shape)) <= radius**2)
    mask = np.asarray(mask)
    if mask.shape != (box,) * 3:
        raise ValueError(f"the mask has shape {mask.shape}, the images need {(box,) * 3}")
    if mask.dtype != bool:
        raise TypeError(f"the mask must be boolean, got {mask.dtype}; write mask > 0.5")
    if not mask.any():
        raise ValueError("the mask is empty")
    # nearest voxel of each coefficient
    index = [
        np.clip(np.rint(scale * (np.arange(n) - n // 2)).astype(int) + box // 2, 0, box - 1) for n in shape
    ]
    return mask[np.ix_(*index)]


def _gram_error(A: LinOp, views: int = 8, side: int = 48) -> float:
    """The self-check: relative error of the kernel against H^H H on a few views of a small volume."""
    shape = tuple(min(n, side - (side - n) % 2) for n in A.ishape)  # keeps the parity of the sides
    error = check_gram(A.rows(slice(0, views)).resized(shape))
    if error > 1e-2:
        raise RuntimeError(
            f"the normal kernel differs from H^H H by {error:.2g} on a random volume: this is a defect of the"
            " toolbox, please report it with the input"
        )
    return error
