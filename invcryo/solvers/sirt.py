"""The simultaneous iterative reconstruction technique."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from numpy.typing import NDArray

from ..backend import array_module, norm
from ..operators import LinOp
from .driver import State

__all__ = ["sirt"]

#: Sums below this part of the largest count as zero, and below minus this as negative.
_EDGE = 1e-3


def sirt(
    A: LinOp,
    y: NDArray,
    x0: NDArray | None = None,
    *,
    nonnegative: bool = False,
    relaxation: float = 1.0,
    state: State | None = None,
) -> Iterator[State]:
    """Landweber iterations weighted by the row and column sums of ``A``, one iteration per state.

    Parameters
    ----------
    A : LinOp
        With entries that are not negative, or the scheme need not converge. `RealSpaceProjector` on a `KaiserBessel`
        window has such entries; so, but for small ripples, have `Projector` and `SingleAxisProjector` on one; with
        `BandLimited` they have not, and this cannot be seen from the sums: negative ``A 1`` or ``A^H 1`` are refused.
    y : ndarray, shape ``A.oshape``
    x0 : ndarray, optional
        Start; default zero.
    nonnegative : bool
        Set negative coefficients to zero after every iteration.
    relaxation : float
        In (0, 2).
    state : State, optional
        Go on from an earlier run's ``result.state``, to the same result as an unbroken run.

    Yields
    ------
    State
        ``info["residual"]`` is ``||y - A x|| / ||y||`` at the iterate before the step, which costs nothing.

    Notes
    -----
    ``x += relaxation C A^H R (y - A x)``, with R and C the inverses of the sums over rows and columns: converges to a
    minimum of ``||y - A x||_R`` (Gilbert 1972; Gregor and Benson 2008). Rows and columns that sum to nothing are left
    out. It converges slowly, low frequencies first, so that the number of iterations acts as the regulariser.
    """
    if tuple(y.shape) != A.oshape:
        raise ValueError(f"the data have shape {tuple(y.shape)}, {A!r} makes {A.oshape}")
    if not 0 < relaxation < 2:
        raise ValueError(f"relaxation must lie in (0, 2), got {relaxation}")
    xp = array_module(y)
    rows = _inverse(A.apply(xp.ones(A.ishape, A.dtype)), "A 1")
    columns = _inverse(A.adjoint(xp.ones(A.oshape, A.dtype)), "A^H 1")
    begin = x0 if state is None else state.x
    x = xp.zeros(A.ishape, A.dtype) if begin is None else begin.astype(A.dtype, copy=True)
    size = norm(y) or 1.0
    for k in count(1 if state is None else state.iteration + 1):
        r = y - A.apply(x)
        residual = norm(r) / size
        r *= rows
        step = A.adjoint(r)
        step *= columns
        step *= A.dtype.type(relaxation)
        x += step
        if nonnegative:
            xp.maximum(x, 0, out=x)
        yield State(k, x, {"residual": residual})


def _inverse(sums: NDArray, name: str) -> NDArray:
    largest = float(sums.max())
    least = float(sums.min())
    if largest <= 0 or least < -_EDGE * largest:
        raise ValueError(
            f"sirt needs an operator without negative entries, but {name} reaches {least:.3g} (largest {largest:.3g}):"
            " take coefficients on a Kaiser-Bessel window and RealSpaceProjector"
        )
    xp, kept = array_module(sums), sums > _EDGE * largest
    return kept / xp.where(kept, sums, sums.dtype.type(1))
