"""The bridge: every operator of the toolbox is differentiable as it is, and projectors in their poses too."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..data import Poses
from ..operators import LinOp
from . import ops
from .tape import Var, const, namespace, primitive, record

__all__ = ["apply", "project"]


@primitive
def apply(operator: LinOp, x: Any) -> Var:
    """``A x`` on the tape, with derivatives of every order by ``A.H``."""
    x = x if isinstance(x, Var) else const(x)
    return record(operator.apply(x.data), (x, lambda g: apply(operator.H, g)))


def project(projector: Any, x: Any, matrices: Any = None, shifts: Any = None) -> Var:
    """``projector.at(poses).apply(x)``, differentiable in the volume, the orientations and the shifts.

    Parameters
    ----------
    projector : Projector
        An operator with ``at`` and ``pose_vjp``. Filters go on top: ``apply(filters, project(...))``.
    x : (n, n, n)
        Volume or coefficients, of the projector's type.
    matrices : (images, 3, 3), optional
        Rotations; default: the projector's. Derivatives are those along rotations alone.
    shifts : (images, 2), optional
        Pixels, along x and y, of the same precision as ``matrices``; default: the projector's.

    Notes
    -----
    The derivative in the poses is that of joint refinement. Derivatives of second order mix volume and poses no further
    than through the images; a second one in the poses is refused.
    """
    x = x if isinstance(x, Var) else const(x)
    given = [v for v in (matrices, shifts) if isinstance(v, Var)]
    _on_host(x, *given)
    kind = given[0].dtype if given else np.dtype(float)
    poses = projector.poses
    turns, moves = (
        v if isinstance(v, Var) else const(np.asarray(own if v is None else v, kind))
        for v, own in ((matrices, poses.matrices), (shifts, poses.shifts))
    )
    if turns.ndim != 3 or turns.shape[1:] != (3, 3) or moves.shape != (len(turns), 2):
        raise ValueError(
            f"poses are matrices (images, 3, 3) and shifts (images, 2), got {turns!r}, {moves!r}"
        )
    # as one value, because one evaluation gives all derivatives
    return pose_project(projector, x, ops.concatenate([ops.reshape(turns, (len(turns), 9)), moves], 1))


def _on_host(*values: Var) -> None:
    if any(namespace(v.data) is not np for v in values):
        raise TypeError(
            "projectors work on the host: give them x.data.get(), or take `slices.central_slice` on a GPU"
        )


def _at(projector: Any, poses: Var) -> Any:
    _on_host(poses)
    matrices = np.asarray(poses.data[:, :9], float).reshape(-1, 3, 3)
    return projector.at(Poses(matrices, np.asarray(poses.data[:, 9:], float)))


@primitive
def pose_project(projector: Any, x: Var, poses: Var) -> Var:
    """`project` at rows of nine entries of a matrix and two of a shift."""
    return record(
        _at(projector, poses).apply(x.data),
        (x, lambda g: pose_backproject(projector, g, poses)),
        (poses, lambda g: pose_gradient(projector, x, g, poses)),
    )


@primitive
def pose_backproject(projector: Any, g: Var, poses: Var) -> Var:
    """The adjoint of `pose_project` in the volume."""
    return record(
        _at(projector, poses).adjoint(g.data),
        (g, lambda q: pose_project(projector, q, poses)),
        (poses, lambda q: pose_gradient(projector, q, g, poses)),
    )


@primitive
def pose_gradient(projector: Any, x: Var, g: Var, poses: Var) -> Var:
    """The derivative of ``<g, project(x)>`` in the poses, in the shape of these."""
    operator = _at(projector, poses)
    turns, shifts = operator.pose_vjp(x.data, g.data)
    # the matrix G with <G, [d]x A> = d . turns for every small rotation exp([d]x) A
    x_, y_, z_ = turns.T
    zero = np.zeros_like(x_)
    cross = np.stack([zero, -z_, y_, z_, zero, -x_, -y_, x_, zero], axis=1).reshape(-1, 3, 3)
    matrices = 0.5 * cross @ operator.poses.matrices
    out = np.concatenate([matrices.reshape(-1, 9), shifts], axis=1).astype(poses.dtype)

    def refused(q: Var) -> Var:
        raise NotImplementedError(
            "the derivative of projections in their poses cannot be differentiated again: use it without create_graph"
        )

    return record(namespace(poses.data).asarray(out), (x, refused), (g, refused), (poses, refused))
