"""Rotations: thin wrappers over `scipy.spatial.transform.Rotation` in the field's conventions.

A pose is a matrix ``A`` (3x3) that acts on column vectors (x, y, z): its rows are the axes of the image
frame written in the frame of the map, so that a point ``r`` of the map is seen at ``(A r)[:2]`` and row 3 is
the viewing direction. In RELION's angles ``A = Rz(-psi) Ry(-tilt) Rz(-rot)`` (active matrices).
Euler angles exist at file boundaries only; inside, poses are matrices.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

__all__ = [
    "align_rotations",
    "euler_from_matrix",
    "geodesic_distance",
    "matrix_from_euler",
    "matrix_from_rotvec",
    "random_rotations",
    "rotvec_from_matrix",
    "spiral_views",
]


_GOLDEN_ANGLE = np.pi * (3 - 5**0.5)


def matrix_from_euler(rot: ArrayLike, tilt: ArrayLike, psi: ArrayLike, *, degrees: bool = True) -> NDArray:
    """Matrices (n, 3, 3) of RELION's angles rot, tilt, psi (the thesis' theta_1, theta_2, theta_3).

    Parameters
    ----------
    rot, tilt, psi : array_like, (n,) or scalars
        Euler angles, ZYZ, in degrees unless ``degrees=False``.

    Returns
    -------
    ndarray, (n, 3, 3) or (3, 3), float64
    """
    angles = np.stack(np.broadcast_arrays(*(np.asarray(a, dtype=float) for a in (rot, tilt, psi))), axis=-1)
    matrices = Rotation.from_euler("ZYZ", angles.reshape(-1, 3), degrees=degrees).inv().as_matrix()
    return matrices.reshape(angles.shape[:-1] + (3, 3))


def euler_from_matrix(matrices: ArrayLike, *, degrees: bool = True) -> tuple[NDArray, NDArray, NDArray]:
    """Angles (rot, tilt, psi) of pose matrices (n, 3, 3); at tilt 0 or 180 degrees rot is 0, as in RELION."""
    a = np.asarray(matrices, dtype=float)
    flat = a.reshape(-1, 3, 3)
    # Written out rather than by SciPy, whose convention at the poles puts the in-plane angle in rot.
    sin_tilt = np.hypot(flat[:, 2, 0], flat[:, 2, 1])
    pole = sin_tilt < 1e-9
    rot = np.where(pole, 0.0, np.arctan2(flat[:, 2, 1], flat[:, 2, 0]))
    tilt = np.arctan2(sin_tilt, flat[:, 2, 2])
    psi = np.where(
        pole,
        np.arctan2(-flat[:, 1, 0] * np.sign(flat[:, 2, 2]), flat[:, 1, 1]),
        np.arctan2(flat[:, 1, 2], -flat[:, 0, 2]),
    )
    angles = [v.reshape(a.shape[:-2]) for v in (rot, tilt, psi)]
    if degrees:
        angles = [np.rad2deg(v) for v in angles]
    return angles[0], angles[1], angles[2]


def matrix_from_rotvec(vectors: ArrayLike) -> NDArray:
    """Matrices (n, 3, 3) of cryoSPARC's ``alignments3D/pose`` (axis times angle, radians): A = exp([v]x)^T."""
    v = np.asarray(vectors, dtype=float)
    return Rotation.from_rotvec(v.reshape(-1, 3)).inv().as_matrix().reshape(v.shape[:-1] + (3, 3))


def rotvec_from_matrix(matrices: ArrayLike) -> NDArray:
    """cryoSPARC's rotation vectors (n, 3), radians, of pose matrices (n, 3, 3)."""
    a = np.asarray(matrices, dtype=float)
    return Rotation.from_matrix(a.reshape(-1, 3, 3)).inv().as_rotvec().reshape(a.shape[:-2] + (3,))


def random_rotations(n: int, *, rng: np.random.Generator | int | None = None) -> NDArray:
    """``n`` matrices drawn uniformly on SO(3), (n, 3, 3)."""
    return Rotation.random(n, rng=np.random.default_rng(rng)).as_matrix()


def spiral_views(n: int) -> NDArray:
    """Poses (n, 3, 3) with psi = 0 whose directions lie on a spiral, each with the same area of the sphere.

    Direction k is the third row of matrix k; its height is ``1 - (2 k + 1) / n``.
    """
    height = 1 - (2 * np.arange(n) + 1) / n
    # the tilts about y after rot about z look along (sin tilt cos rot, sin tilt sin rot, cos tilt)
    return matrix_from_euler(np.arange(n) * _GOLDEN_ANGLE, np.arccos(height), np.zeros(n), degrees=False)


def geodesic_distance(a: ArrayLike, b: ArrayLike) -> NDArray:
    """Angle in radians between rotations ``a`` and ``b``, both (..., 3, 3); accurate near 0 and near pi."""
    relative = np.einsum("...ij,...kj->...ik", np.asarray(a, float), np.asarray(b, float))
    return Rotation.from_matrix(relative.reshape(-1, 3, 3)).magnitude().reshape(relative.shape[:-2])


def align_rotations(poses: ArrayLike, reference: ArrayLike) -> NDArray:
    """The rotation G (3, 3) of the map frame that best makes ``poses @ G`` equal ``reference``.

    Joint reconstructions are defined up to one global rotation; apply G before measuring pose errors.
    Minimises ``sum ||poses_p G - reference_p||_F^2`` (orthogonal Procrustes).
    """
    m = np.einsum("pji,pjk->ik", np.asarray(poses, float), np.asarray(reference, float))
    u, _, vt = np.linalg.svd(m)
    return u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
