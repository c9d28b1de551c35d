"""Conjugate gradients, and the preconditioner that makes few of them enough."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
from numpy.typing import NDArray

from ..backend import norm
from ..operators import Circulant, LinOp
from .driver import State
from .vectors import add_scaled, inner, scale_add

__all__ = ["cg", "circulant_preconditioner"]

log = logging.getLogger(__name__)


def cg(
    Q: LinOp,
    b: NDArray,
    x0: NDArray | None = None,
    *,
    M: Callable[[NDArray], NDArray] | None = None,
    state: State | None = None,
) -> Iterator[State]:
    """Solve ``Q x = b`` for a symmetric positive (semi-)definite ``Q``, one iteration per state.

    Parameters
    ----------
    Q : LinOp
    b : ndarray
    x0 : ndarray, optional
        Start; default zero.
    M : callable, optional
        Preconditioner, close to the inverse of ``Q``; symmetric and positive.
    state : State, optional
        Go on from the state of an earlier run, to the same result as an unbroken one.

    Yields
    ------
    State
        ``info["residual"]`` is ``||b - Q x|| / ||b||``, and ``info["objective"]`` is ``x'Qx/2 - b'x``. ``info["gap"]``
        estimates how far that is above its minimum, relative to its size, as if it went on to fall as slowly as in the
        slower of the last two iterations; it is 1 while that is not known. ``memory["r"]`` is the residual ``b - Q x``.
        Ends when the residual is zero, or the curvature is not positive.
    """
    if state is not None and state.memory:
        x = state.x.copy()
        r, p, rz = state.memory["r"].copy(), state.memory["p"].copy(), state.memory["rz"]
        falls = list(state.memory["falls"])
        start = state.iteration + 1
    else:
        begin = x0 if state is None else state.x
        x = np.zeros_like(b) if begin is None else begin.astype(b.dtype, copy=True)
        r = b.copy() if begin is None else b - Q.apply(x)
        p = r.copy() if M is None else M(r)
        rz = inner(r, p)
        falls = []  # of the objective, in the last three iterations
        start = 1
    size = norm(b) or 1.0
    for k in count(start):
        if rz == 0:
            if k == start:  # already solved: say so once
                yield State(k, x, _figures(x, b, r, size, [0.0]), {"r": r, "p": p, "rz": rz, "falls": falls})
            return
        q = Q.apply(p)
        curvature = inner(p, q)
        if curvature <= 0:
            memory = {"r": r, "p": p, "rz": rz, "falls": falls}
            figures = _figures(x, b, r, size, falls)
            if figures["residual"] > float(np.finfo(b.dtype).eps) ** 0.5:
                log.warning(
                    "cg ends at iteration %d with a relative residual of %.2g: the operator has no positive"
                    " curvature there (%.2g), so it is indefinite, or singular with b outside its range",
                    k, figures["residual"], curvature,
                )  # fmt: skip
            if k == start:
                yield State(k, x, figures, memory)
            return
        add_scaled(x, rz / curvature, p)
        add_scaled(r, -rz / curvature, q)
        falls = [*falls[-2:], 0.5 * rz * rz / curvature]
        z = r if M is None else M(r)
        new = inner(r, z)
        scale_add(p, new / rz, z)
        rz = new
        memory = {"r": r, "p": p, "rz": rz, "falls": falls}
        yield State(k, x, _figures(x, b, r, size, falls), memory)


def _figures(x: NDArray, b: NDArray, r: NDArray, size: float, falls: list[float]) -> dict[str, float]:
    # x'Qx/2 - b'x with Q x = b - r
    objective = -0.5 * (inner(x, b) + inner(x, r))
    gap = min(_remaining(falls) / abs(objective), 1.0) if objective else 0.0
    return {"objective": objective, "residual": inner(r, r) ** 0.5 / size, "gap": gap}


def _remaining(falls: list[float]) -> float:
    """The sum of what follows, a geometric series with the larger of the last two ratios."""
    if falls[-1:] == [0.0]:
        return 0.0
    if len(falls) < 3:
        return math.inf
    ratio = max(falls[1] / falls[0], falls[2] / falls[1])
    return falls[2] * ratio / (1.0 - ratio) if ratio < 1.0 else math.inf


def circulant_preconditioner(Q: LinOp, *, floor: float = 1e-3) -> LinOp:
    """The inverse of the periodic convolution nearest to ``Q``, its eigenvalues kept above ``floor`` x the largest."""
    spectrum = Q.nearest_circulant()
    if spectrum is None:
        raise ValueError(f"{Q!r} has no nearest circulant: solve without preconditioner (M=None)")
    spectrum = np.asarray(spectrum, np.float64)
    return Circulant(1.0 / np.maximum(spectrum, floor * spectrum.max()), Q.ishape, Q.dtype)
