"""Poses from what networks give: Euler angles, quaternions, or two vectors; with gradients of every order."""

from __future__ import annotations

import math
from typing import Any

from . import ops
from .tape import Var, const

__all__ = ["matrix_from_euler", "matrix_from_quaternion", "matrix_from_s2s2", "quaternion_angle"]

_NEAR = 1 - 1e-6  # cosine beyond which the derivative of arccos is cut off


def _columns(x: Any, count: int, what: str) -> list[Var]:
    x = x if isinstance(x, Var) else const(x)
    if x.ndim != 2 or x.shape[1] != count or x.dtype.kind != "f":
        raise ValueError(f"{what} are real, (images, {count}), got {x!r}")
    return [x[:, k] for k in range(count)]


def _matrices(rows: list[list[Var]]) -> Var:
    return ops.stack([ops.stack(row, 1) for row in rows], 1)


def matrix_from_euler(angles: Any) -> Var:
    """Pose matrices (images, 3, 3) of RELION's angles rot, tilt, psi (images, 3) in radians.

    The same matrices as `invcryo.rotation.matrix_from_euler`. Derivatives in rot and psi coincide at tilt 0 and pi.
    """
    rot, tilt, psi = _columns(angles, 3, "Euler angles")
    (ca, sa), (cb, sb), (cg, sg) = ((ops.cos(v), ops.sin(v)) for v in (rot, tilt, psi))
    return _matrices(
        [
            [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -(cg * sb)],
            [-(sg * cb * ca) - cg * sa, cg * ca - sg * cb * sa, sg * sb],
            [sb * ca, sb * sa, cb],
        ]
    )


def matrix_from_quaternion(quaternions: Any) -> Var:
    """Matrices (images, 3, 3) of quaternions (images, 4), scalar last as in SciPy, of any length but zero."""
    i, j, k, r = _columns(quaternions, 4, "quaternions")
    s = 2.0 / (i * i + j * j + k * k + r * r)
    return _matrices(
        [
            [1.0 - s * (j * j + k * k), s * (i * j - k * r), s * (i * k + j * r)],
            [s * (i * j + k * r), 1.0 - s * (i * i + k * k), s * (j * k - i * r)],
            [s * (i * k - j * r), s * (j * k + i * r), 1.0 - s * (i * i + j * j)],
        ]
    )


def matrix_from_s2s2(vectors: Any) -> Var:
    """Pose matrices of pairs of vectors (images, 6): Gram-Schmidt gives rows 0 and 1, their product row 2.

    Continuous wherever the two are not parallel, which no map from fewer numbers is (Zhou et al. 2019; Nashed et al.
    2021 call it s2s2).
    """
    vectors = vectors if isinstance(vectors, Var) else const(vectors)
    if vectors.ndim != 2 or vectors.shape[1] != 6 or vectors.dtype.kind != "f":
        raise ValueError(f"pairs of vectors are real, (images, 6), got {vectors!r}")
    a, b = _unit(vectors[:, :3]), vectors[:, 3:]
    b = _unit(b - a * ops.sum(a * b, 1, keepdims=True))
    return ops.stack([a, b, ops.cross(a, b)], 1)


def _unit(v: Var) -> Var:
    return v / ops.sqrt(ops.squared_norm(v, -1, keepdims=True))


def quaternion_angle(p: Any, q: Any) -> Var:
    """Angle of the rotation between unit quaternions (..., 4), ``2 arccos |<p, q>|`` in radians.

    The cosine is cut off at 1 - 1e-6 (0.16 degrees), where the derivative has no limit.
    """
    cosine = ops.absolute(ops.sum(ops.mul(p, q), -1))
    return 2.0 * ops.arccos(ops.clip(cosine, -1.0, _NEAR))


#: The least angle that `quaternion_angle` tells from zero, radians.
SMALLEST_ANGLE = 2 * math.acos(_NEAR)
