"""Better poses near given ones, all particles at once, each with its own steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from ..data import Poses
from .fit import PoseFit, assembled

__all__ = ["STATUS", "PoseResult", "gradient_descent", "levenberg_marquardt"]

#: What `PoseResult.status` means.
STATUS = ("unfinished", "converged", "at bound", "failed", "no information")
_UNFINISHED, _CONVERGED, _AT_BOUND, _FAILED, _NO_INFORMATION = range(5)

_FIRST_DAMPING = 1e-2
_LARGEST_DAMPING = 1e9
_LONGEST_STEP = 0.35  # radians: beyond it no slice is linear


@dataclass(frozen=True, eq=False)
class PoseResult:
    """Poses after an optimisation of k of them.

    Attributes
    ----------
    poses : Poses
    cost, start_cost : ndarray, (k,)
        With the priors, where there are any. Never does the cost exceed that of the start.
    status : ndarray of int, (k,)
        Into `STATUS`. "converged": the last steps were shorter than the tolerances. "at bound": the same, at a bound.
        "failed": the cost is not finite, or no step lowered it; the start is returned. "no information": the image says
        next to nothing of some direction of the rotation.
    iterations : ndarray of int, (k,)
        Evaluations of the cost.
    angles, shifts : ndarray, (k,)
        Distance from the start, radians and pixels.
    overlap, power, energy : ndarray, (k,)
        ``<y, H c>_W``, ``|H c|^2_W`` and ``|y|^2_W`` at the poses.
    """

    poses: Poses
    cost: NDArray
    start_cost: NDArray
    status: NDArray
    iterations: NDArray
    angles: NDArray
    shifts: NDArray
    overlap: NDArray
    power: NDArray
    energy: NDArray

    @property
    def converged(self) -> NDArray:
        return self.status == _CONVERGED

    @property
    def at_bound(self) -> NDArray:
        return self.status == _AT_BOUND

    @property
    def failed(self) -> NDArray:
        return self.status == _FAILED

    @property
    def no_information(self) -> NDArray:
        return self.status == _NO_INFORMATION

    @property
    def counts(self) -> dict[str, int]:
        """Number of particles of each status."""
        return {name: int((self.status == i).sum()) for i, name in enumerate(STATUS)}


class _Objective:
    """The cost of one pose per image, with priors about the start and perhaps the best amplitude."""

    def __init__(
        self,
        fit: PoseFit,
        start: Poses,
        index: NDArray,
        free_amplitude: bool,
        prior: tuple[float, float],
    ) -> None:
        self.fit, self.index, self.free = fit, index, free_amplitude
        self.start = start.matrices, start.shifts
        #: inverse variances
        self.tight = tuple(0.0 if not np.isfinite(s) else 1.0 / s**2 for s in prior)

    def __call__(
        self, matrices: NDArray, shifts: NDArray, rows: NDArray, derivatives: bool
    ) -> tuple[NDArray, ...]:
        """Cost, overlap, power, and with derivatives gradient (k, 5) and matrix (k, 5, 5), of some particles."""
        fit, image = self.fit, self.index[rows]
        sums = fit.sums(matrices, shifts, image, derivatives=derivatives)
        overlap, power = sums[:, 0], sums[:, 1]
        a = fit.amplitudes[image]
        if self.free:
            # at its best; a projection that anti-correlates is first to be turned at a fixed amplitude
            a = np.where(overlap > 0, overlap / np.maximum(power, 1e-300), 1.0)
        cost = 0.5 * fit.energy[image] - a * overlap + 0.5 * a * a * power
        turn, move = self.displacement(matrices, shifts, rows)
        cost = (
            cost + 0.5 * self.tight[0] * (turn**2).sum(axis=1) + 0.5 * self.tight[1] * (move**2).sum(axis=1)
        )
        if not derivatives:
            return cost, overlap, power
        return cost, overlap, power, *assembled(sums, a)

    def prior(self, matrices: NDArray, shifts: NDArray, rows: NDArray) -> tuple[NDArray, NDArray]:
        """Gradient (k, 5) and diagonal (5,) of the priors; the gradient of half the squared angle is the angle."""
        turn, move = self.displacement(matrices, shifts, rows)
        gradient = np.concatenate([self.tight[0] * turn, self.tight[1] * move], axis=1)
        return gradient, np.repeat(self.tight, [3, 2])

    def displacement(self, matrices: NDArray, shifts: NDArray, rows: NDArray) -> tuple[NDArray, NDArray]:
        """Rotation vector, on the left, and shift from the start."""
        first, place = self.start
        turn = Rotation.from_matrix(matrices @ first[rows].transpose(0, 2, 1)).as_rotvec()
        return turn, shifts - place[rows]

    def bounded(
        self, matrices: NDArray, shifts: NDArray, rows: NDArray, max_angle: float, max_shift: float
    ) -> tuple[NDArray, NDArray]:
        """The nearest poses within the bounds."""
        turn, move = self.displacement(matrices, shifts, rows)
        angle, length = np.linalg.norm(turn, axis=1), np.linalg.norm(move, axis=1)
        far = angle > max_angle
        if far.any():
            turn = turn[far] * (max_angle / angle[far])[:, None]
            matrices = matrices.copy()
            matrices[far] = Rotation.from_rotvec(turn).as_matrix() @ self.start[0][rows[far]]
        factor = np.minimum(1.0, max_shift / np.maximum(length, 1e-300))[:, None]
        return matrices, self.start[1][rows] + factor * move

    def result(
        self,
        matrices: NDArray,
        shifts: NDArray,
        cost: NDArray,
        start_cost: NDArray,
        status: NDArray,
        iterations: NDArray,
        overlap: NDArray,
        power: NDArray,
    ) -> PoseResult:
        rows = np.arange(len(matrices))
        turn, move = self.displacement(matrices, shifts, rows)
        return PoseResult(
            Poses(matrices, shifts),
            cost,
            start_cost,
            status,
            iterations,
            np.linalg.norm(turn, axis=1),
            np.linalg.norm(move, axis=1),
            overlap,
            power,
            self.fit.energy[self.index],
        )


def levenberg_marquardt(
    fit: PoseFit,
    poses: Poses,
    *,
    index: ArrayLike | None = None,
    max_iter: int = 15,
    angle_tolerance: float = 1e-3,
    shift_tolerance: float = 0.01,
    max_angle: float = np.inf,
    max_shift: float = np.inf,
    prior_angle: float = np.inf,
    prior_shift: float = np.inf,
    free_amplitude: bool = False,
    information: float = 0.0,
) -> PoseResult:
    """Minimise the cost of each particle over its five unknowns by damped Gauss-Newton steps.

    Parameters
    ----------
    fit : PoseFit
    poses : Poses
        Start: of every image, or of those of ``index``.
    index : array_like of int, optional
        Images that the poses belong to.
    max_iter : int
        Evaluations of the cost after the first.
    angle_tolerance, shift_tolerance : float
        Steps shorter than both, radians and pixels, end the iteration of a particle.
    max_angle, max_shift : float
        Bounds on the distance from the start: a trust region, radians and pixels.
    prior_angle, prior_shift : float
        Standard deviations of Gaussian priors about the start, radians and pixels, per axis. They mean what they say
        where the weights of the fit are one over the variance of the noise.
    free_amplitude : bool
        Take the best amplitude of every pose, rather than those of the fit.
    information : float
        Particles whose data give the rotation less than this in some direction, the smallest eigenvalue of that part
        of ``J^T W J`` in 1 / rad^2, are flagged; with weights as above it is the inverse of a variance.

    Notes
    -----
    Each particle has a damping of its own, relative to the diagonal of ``J^T W J``: a fifth after a step that lowered
    the cost, five times as much after one that did not and is taken back (Donati 2020, Algorithm 5, has gradient steps
    in this place: `gradient_descent`).
    """
    rows_of = np.arange(len(fit)) if index is None else np.asarray(index, int)
    if rows_of.shape != (len(poses),):
        raise ValueError(f"{len(poses)} poses for {rows_of.size} images")
    objective = _Objective(fit, poses, rows_of, free_amplitude, (prior_angle, prior_shift))
    n = len(poses)
    every = np.arange(n)
    matrices, shifts = poses.matrices.copy(), poses.shifts.copy()
    cost, overlap, power, gradient, hessian = objective(matrices, shifts, every, True)
    start_cost = cost.copy()
    damping = np.full(n, _FIRST_DAMPING)
    status = np.full(n, _UNFINISHED)
    status[~np.isfinite(cost)] = _FAILED
    iterations = np.ones(n, int)
    for _ in range(max_iter):
        active = np.flatnonzero(status == _UNFINISHED)
        if not active.size:
            break
        slope, tight = objective.prior(matrices[active], shifts[active], active)
        step = _damped(gradient[active] + slope, hessian[active] + np.diag(tight), damping[active])
        new, place = objective.bounded(
            Rotation.from_rotvec(step[:, :3]).as_matrix() @ matrices[active],
            shifts[active] + step[:, 3:],
            active,
            max_angle,
            max_shift,
        )
        before = matrices[active], shifts[active]
        found = objective(new, place, active, True)
        iterations[active] += 1
        better = found[0] <= cost[active]
        kept = active[better]
        matrices[kept], shifts[kept] = new[better], place[better]
        for array, values in zip((cost, overlap, power, gradient, hessian), found, strict=True):
            array[kept] = values[better]
        damping[active] *= np.where(better, 0.2, 5.0)
        turned = Rotation.from_matrix(new @ before[0].transpose(0, 2, 1)).magnitude()
        short = (turned < angle_tolerance) & (np.linalg.norm(place - before[1], axis=1) < shift_tolerance)
        status[active[short]] = _CONVERGED
        status[active[~short & (damping[active] > _LARGEST_DAMPING)]] = _FAILED
    turn, move = objective.displacement(matrices, shifts, every)
    edge = (np.linalg.norm(turn, axis=1) > 0.999 * max_angle) | (
        np.linalg.norm(move, axis=1) > 0.999 * max_shift
    )
    status[edge & (status == _CONVERGED)] = _AT_BOUND
    smallest = np.linalg.eigvalsh(np.nan_to_num(hessian[:, :3, :3]))[:, 0] if n else np.empty(0)
    scale = np.nan_to_num(np.einsum("kii->k", hessian[:, :3, :3]))
    status[(status != _FAILED) & (smallest <= np.maximum(information, 1e-9 * scale))] = _NO_INFORMATION
    return objective.result(matrices, shifts, cost, start_cost, status, iterations, overlap, power)


def _damped(gradient: NDArray, hessian: NDArray, damping: NDArray) -> NDArray:
    """Levenberg-Marquardt steps (k, 5), no rotation longer than `_LONGEST_STEP`."""
    diagonal = np.einsum("kii->ki", hessian)
    floor = (
        1e-9 * np.stack([diagonal[:, :3].max(axis=1)] * 3 + [diagonal[:, 3:].max(axis=1)] * 2, axis=1)
        + 1e-300
    )
    lifted = hessian + ((1.0 + damping)[:, None] * np.maximum(diagonal, floor) - diagonal)[
        :, :, None
    ] * np.eye(5)
    # in units of the diagonal, where the matrix is well scaled
    root = 1.0 / np.sqrt(np.einsum("kii->ki", lifted))
    scaled = lifted * root[:, :, None] * root[:, None, :]
    step = -np.linalg.solve(scaled, (root * gradient)[:, :, None])[:, :, 0] * root
    step = np.where(np.isfinite(step), step, 0.0)
    angle = np.linalg.norm(step[:, :3], axis=1)
    return step * np.minimum(1.0, _LONGEST_STEP / np.maximum(angle, 1e-300))[:, None]


def gradient_descent(
    fit: PoseFit,
    poses: Poses,
    *,
    index: ArrayLike | None = None,
    steps: int = 3,
    rotation_step: float = 1e-7,
    shift_step: float = 1e-5,
    backtracking: float = 0.25,
    max_backtracks: int = 40,
) -> PoseResult:
    """Gradient steps on the rotation, then on the shift, each shortened until the cost does not rise.

    The published scheme (Donati 2020, Algorithm 5) and its settings, on the tangent space of the rotations in place of
    Euler angles. Its step sizes depend on the units of the images: a gradient step is their product with the
    gradient, in radians and pixels.

    Parameters
    ----------
    fit, poses, index
        As for `levenberg_marquardt`.
    steps : int
        ``K_GD``.
    rotation_step, shift_step : float
        ``gamma_theta`` and ``gamma_t``, from which every line search begins.
    backtracking : float
        ``eta``, the factor by which a step is shortened.
    max_backtracks : int
        Of one line search, after which the particle stays where it is.
    """
    rows_of = np.arange(len(fit)) if index is None else np.asarray(index, int)
    if rows_of.shape != (len(poses),):
        raise ValueError(f"{len(poses)} poses for {rows_of.size} images")
    if not 0 < backtracking < 1:
        raise ValueError(f"backtracking is a factor between 0 and 1, got {backtracking:g}")
    objective = _Objective(fit, poses, rows_of, False, (np.inf, np.inf))
    n = len(poses)
    every = np.arange(n)
    matrices, shifts = poses.matrices.copy(), poses.shifts.copy()
    cost, overlap, power = objective(matrices, shifts, every, False)
    start_cost, iterations = cost.copy(), np.ones(n, int)
    for _ in range(steps):
        for rotation in (True, False):
            gradient = objective(matrices, shifts, every, True)[3]
            iterations += 1
            size = np.full(n, rotation_step if rotation else shift_step)
            left = np.flatnonzero(np.isfinite(cost))
            for _ in range(max_backtracks):
                if not left.size:
                    break
                move = -size[left, None] * gradient[left]
                new, place = matrices[left], shifts[left]
                if rotation:
                    new = Rotation.from_rotvec(move[:, :3]).as_matrix() @ new
                else:
                    place = place + move[:, 3:]
                trial, *rest = objective(new, place, left, False)
                iterations[left] += 1
                good = trial <= cost[left]
                kept = left[good]
                matrices[kept], shifts[kept], cost[kept] = new[good], place[good], trial[good]
                overlap[kept], power[kept] = rest[0][good], rest[1][good]
                size[left] *= backtracking
                left = left[~good]
    status = np.where(np.isfinite(cost), _UNFINISHED, _FAILED)
    return objective.result(matrices, shifts, cost, start_cost, status, iterations, overlap, power)
