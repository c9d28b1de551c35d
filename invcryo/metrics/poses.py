"""Errors of poses after the alignment of two pose sets: one rotation, one origin and one hand of the map.

Particles alone fix a map up to a rotation, a translation and a mirror image, so two refinements of the same
particles must be aligned before their poses can be compared. The alignment is robust: a fifth of wrong poses moves
a least-squares alignment by a degree, which is more than the error of the right ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft, ndimage
from scipy.spatial.transform import Rotation

from ..data import Poses
from ..rotation import euler_from_matrix
from ..symmetry import point_group

__all__ = ["PoseAlignment", "PoseErrors", "align_poses", "pose_errors"]

_STARTS = 64  # particles whose own pose pairs are tried as the rotation
_SAMPLE = 1000  # particles that rank the starts
_TUKEY = 4.685  # cut in standard deviations: nearly as precise as least squares where nothing is an outlier
_MAXWELL_MEDIAN = 1.5382  # of the length of a normal vector of three components
_RAYLEIGH_MEDIAN = 1.1774  # and of two
_ROUNDS = 50


@dataclass(frozen=True, eq=False)
class PoseAlignment:
    """How the frame of one map lies in that of another: ``reference(r) = map(hand * rotation @ r + origin)``.

    Attributes
    ----------
    rotation : ndarray, (3, 3)
        Acts on (x, y, z) from the centre of the box.
    hand : int
        1, or -1 where the map is the point inversion (equally: a mirror image) of the reference.
    origin : ndarray, (3,)
        (x, y, z) in image pixels.
    cost : float
        Mean over the views of the sum of absolute errors that ranks hands and starts, radians.
    other_cost : float
        The lowest one of the other hand; NaN where it was not tried. As low as ``cost``, the views do not tell
        the hand (they all look along one line).
    """

    rotation: NDArray
    hand: int = 1
    origin: NDArray = field(default_factory=lambda: np.zeros(3))
    cost: float = 0.0
    other_cost: float = float("nan")

    def poses(self, poses: Poses) -> Poses:
        """The same views of the reference instead of the map.

        ``A -> diag(hand, hand, 1) A rotation`` and ``t -> t + (A origin)[:2]``: what the mirrored map shows from
        one side is what the map itself shows from that side after half a turn in the plane.
        """
        matrices = _mirrored(poses.matrices, self.hand) @ self.rotation
        return Poses(matrices, poses.shifts + (poses.matrices @ self.origin)[:, :2])

    def volume(self, volume: ArrayLike, *, scale: float = 1.0) -> NDArray:
        """The map (z, y, x) moved onto the reference; zero where it has no voxels.

        Sampled by quintic splines on a grid twice as fine, filled in by Fourier: exact to 1e-3 for a map without
        power in the outer tenth of its shells.

        Parameters
        ----------
        volume : ndarray (nz, ny, nx)
        scale : float
            Image pixels per voxel.
        """
        volume = np.asarray(volume)
        # voxel k lies at index 2 k of the finer grid, and so does the centre n // 2
        centre = np.array([n // 2 for n in volume.shape], float)
        matrix = self.hand * self.rotation[::-1, ::-1]
        start = 2 * (centre + self.origin[::-1] / scale - matrix @ centre)
        moved = ndimage.affine_transform(_twice_as_fine(volume), 2 * matrix, start, volume.shape, order=5)
        return moved.astype(volume.dtype if volume.dtype == np.float32 else np.float64)


@dataclass(frozen=True, eq=False)
class PoseErrors:
    """Errors of n poses, aligned, against a reference; see `pose_errors`.

    Attributes
    ----------
    angle : ndarray, (n,)
        Geodesic distance to the nearest symmetric copy of the reference pose, degrees.
    euler : ndarray, (n, 3)
        Differences reference - pose of rot, tilt, psi in degrees, from -180 to 180, as in Figures 4.8 and 4.14 of
        Donati 2020. Near the poles rot and psi differ wildly where the rotations do not: judge by ``angle``.
    shift : ndarray, (n, 2)
        Differences reference - pose of the shifts (x, y), pixels, as in Figures 4.9 and 4.15.
    alignment : PoseAlignment
    """

    angle: NDArray
    euler: NDArray
    shift: NDArray
    alignment: PoseAlignment

    @property
    def shift_length(self) -> NDArray:
        """Length of the errors of the shifts, pixels, (n,)."""
        return np.hypot(self.shift[:, 0], self.shift[:, 1])

    def within(self, degrees: float) -> float:
        """Fraction of the views whose angle is at most so many degrees."""
        return float(np.mean(self.angle <= degrees))

    def summary(self, within: Sequence[float] = (1, 2, 5, 10)) -> dict[str, float]:
        """Medians, percentiles and fractions, for a table."""
        out = {f"angle_p{q}_deg": float(np.percentile(self.angle, q)) for q in (50, 90, 95, 99)}
        out |= {f"within_{d:g}_deg": self.within(d) for d in within}
        out |= {f"shift_p{q}_px": float(np.percentile(self.shift_length, q)) for q in (50, 95)}
        return out | {"hand": float(self.alignment.hand), "views": float(len(self.angle))}


def align_poses(
    poses: Poses,
    reference: Poses,
    group: str | ArrayLike = "C1",
    *,
    hands: Sequence[int] = (1, -1),
    origin: bool = True,
) -> PoseAlignment:
    """The rotation, origin and hand that take poses to a reference, whatever up to 40 % of outliers say.

    Parameters
    ----------
    poses, reference : Poses
        Of the same particles, in the same order.
    group : str or ndarray (|G|, 3, 3)
        Symmetry of the reference map: a view A of it is as good as ``A @ g``.
    hands : sequence of 1 and -1
        What to try; a tie goes to the first.
    origin : bool
        Whether to fit the translation of the map, which the shifts show.

    Notes
    -----
    Every view with its reference names a rotation. The few dozen that some views name are ranked by the mean angle
    they leave, the best is refined by Weiszfeld's iteration for the geodesic median, and from there by Tukey's
    biweight with the scale of the median error, which leaves outliers out altogether. The origin follows by the
    same two steps, linear, from the views that the rotation fits. Of the rotations ``R @ g`` that are equally good
    under a symmetry, that with the smallest angle is returned.
    """
    copies = _group(group)
    if len(poses) != len(reference) or not len(poses):
        raise ValueError(
            f"cannot align {len(poses)} poses with {len(reference)}: give the same views of both"
        )
    if not hands or set(hands) - {1, -1}:
        raise ValueError(f"hands are 1 and -1, got {hands}")
    found = {}
    for hand in dict.fromkeys(hands):
        # each view names the rotation that takes its pose to the reference
        named = np.swapaxes(_mirrored(poses.matrices, hand), 1, 2) @ reference.matrices
        found[hand] = _robust_rotation(named, copies)
    hand = min(found, key=lambda h: round(found[h][1], 9))
    rotation, cost, weight = found[hand]
    others = [found[h][1] for h in found if h != hand]
    rotation = max((rotation @ g for g in copies), key=np.trace)
    shift = np.zeros(3)
    if origin:
        shift = _robust_origin(poses.matrices[:, :2], reference.shifts - poses.shifts, weight)
    return PoseAlignment(rotation, hand, shift, cost, others[0] if others else float("nan"))


def pose_errors(
    poses: Poses,
    reference: Poses,
    group: str | ArrayLike = "C1",
    *,
    alignment: PoseAlignment | None = None,
    hands: Sequence[int] = (1, -1),
    origin: bool = True,
) -> PoseErrors:
    """Errors of poses against a reference, after one robust alignment (see `align_poses`).

    Parameters
    ----------
    alignment : PoseAlignment, optional
        Used as it is; ``PoseAlignment(np.eye(3))`` compares the poses as they stand. Default: fitted.

    Examples
    --------
    >>> errors = pose_errors(refined, true, "D2")             # doctest: +SKIP
    >>> errors.summary(), errors.alignment.hand               # doctest: +SKIP
    """
    if alignment is None:
        alignment = align_poses(poses, reference, group, hands=hands, origin=origin)
    elif len(poses) != len(reference):
        raise ValueError(f"cannot compare {len(poses)} poses with {len(reference)}")
    moved = alignment.poses(poses)
    copies = _group(group)
    named = np.swapaxes(moved.matrices, 1, 2) @ reference.matrices
    vectors, nearest = _residuals(np.eye(3), named, copies)
    # the copy A g of the reference that the pose is closest to
    true = reference.matrices @ np.swapaxes(copies[nearest], 1, 2)
    difference = np.stack(euler_from_matrix(true), 1) - np.stack(euler_from_matrix(moved.matrices), 1)
    return PoseErrors(
        np.rad2deg(np.linalg.norm(vectors, axis=1)),
        (difference + 180.0) % 360.0 - 180.0,
        reference.shifts - moved.shifts,
        alignment,
    )


def _group(group: str | ArrayLike) -> NDArray:
    copies = point_group(group) if isinstance(group, str) else np.asarray(group, float)
    if copies.ndim != 3 or copies.shape[1:] != (3, 3):
        raise ValueError(f"a group is an array (n, 3, 3) or a name such as 'D2', got shape {copies.shape}")
    return copies


def _mirrored(matrices: NDArray, hand: int) -> NDArray:
    return matrices * np.array([hand, hand, 1.0])[:, None]


def _residuals(rotation: NDArray, named: NDArray, copies: NDArray) -> tuple[NDArray, NDArray]:
    """Rotation vectors (n, 3) from ``rotation`` to what each view names, and the symmetric copy it names it by.

    A view that names K names ``K g^T`` for each g just as well: its copies are interchangeable.
    """
    apart = rotation.T @ named
    nearest = (apart.reshape(-1, 9) @ copies.reshape(-1, 9).T).argmax(axis=1)  # trace of apart g^T
    apart = apart @ np.swapaxes(copies[nearest], 1, 2)
    return Rotation.from_matrix(apart).as_rotvec(), nearest


def _robust_rotation(named: NDArray, copies: NDArray) -> tuple[NDArray, float, NDArray]:
    """Rotation, mean angle that it leaves (radians), and Tukey's weights (n,)."""
    rng = np.random.default_rng(0)
    order = rng.permutation(len(named))
    sample = named[order[:_SAMPLE]]
    costs = [np.linalg.norm(_residuals(k, sample, copies)[0], axis=1).mean() for k in named[order[:_STARTS]]]
    rotation = named[order[int(np.argmin(costs))]]

    rotation = _refined(rotation, named, copies, _weiszfeld)
    cost = float(np.linalg.norm(_residuals(rotation, named, copies)[0], axis=1).mean())
    rotation = _refined(rotation, named, copies, lambda length: _tukey(length, _MAXWELL_MEDIAN))
    length = np.linalg.norm(_residuals(rotation, named, copies)[0], axis=1)
    return rotation, cost, _tukey(length, _MAXWELL_MEDIAN)


def _refined(
    rotation: NDArray, named: NDArray, copies: NDArray, weigh: Callable[[NDArray], NDArray]
) -> NDArray:
    """Reweighted means in the tangent space."""
    for _ in range(_ROUNDS):
        vectors = _residuals(rotation, named, copies)[0]
        weight = weigh(np.linalg.norm(vectors, axis=1))
        move = weight @ vectors / weight.sum()
        rotation = rotation @ Rotation.from_rotvec(move).as_matrix()
        if np.linalg.norm(move) < 1e-10:
            break
    return rotation


def _robust_origin(axes: NDArray, shifts: NDArray, weight: NDArray) -> NDArray:
    """``d`` (3,) with ``axes @ d = shifts`` for most views; what the views do not show of it is zero."""
    d = np.zeros(3)
    for weigh in (_weiszfeld, lambda length: _tukey(length, _RAYLEIGH_MEDIAN)):
        for _ in range(_ROUNDS):
            w = weight * weigh(np.linalg.norm(shifts - axes @ d, axis=1))
            normal = np.einsum("p,pai,paj->ij", w, axes, axes)
            new = np.linalg.lstsq(normal, np.einsum("p,pai,pa->i", w, axes, shifts), rcond=1e-9)[0]
            moved, d = np.linalg.norm(new - d), new
            if moved < 1e-9:
                break
    return d


def _weiszfeld(length: NDArray) -> NDArray:
    return 1.0 / np.maximum(length, 1e-6)


def _tukey(length: NDArray, median_of_normal: float) -> NDArray:
    scale = max(float(np.median(length)) / median_of_normal, 1e-9)
    return np.maximum(1.0 - (length / (_TUKEY * scale)) ** 2, 0.0) ** 2


def _twice_as_fine(volume: NDArray) -> NDArray:
    """Samples of the trigonometric interpolant at half steps, index 2 k at voxel k."""
    out = volume.astype(np.float64)
    for axis, n in enumerate(volume.shape):
        spectrum = fft.rfft(out, axis=axis)
        if n % 2 == 0:  # the one sample at Nyquist stands for both its signs
            spectrum[(slice(None),) * axis + (n // 2,)] *= 0.5
        out = 2.0 * fft.irfft(spectrum, 2 * n, axis=axis)
    return out
