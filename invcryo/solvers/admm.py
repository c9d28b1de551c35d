"""The alternating direction method of multipliers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, islice

import numpy as np
from numpy.typing import NDArray

from ..backend import inner
from ..costs import Cost, Quadratic
from ..operators import Identity, LinOp
from .cg import cg, inverse_circulant
from .driver import State

__all__ = ["admm"]

_BALANCE = 10  # iterations between two adaptations of the penalties
_REFRESH = 20  # iterations between two products that remove the rounding errors of the known residual


def admm(
    cost: Cost,
    rho: float | Sequence[float],
    x0: NDArray | None = None,
    *,
    inner_iterations: int = 3,
    relaxation: float = 1.0,
    precondition: bool = True,
    adapt: bool = False,
    state: State | None = None,
) -> Iterator[State]:
    """Minimise ``cost`` = quadratic terms + ``sum_i f_i(L_i x)``, each ``f_i`` with a prox.

    Parameters
    ----------
    cost : Cost
        At least one term must be quadratic (a data term). Every other term becomes a split variable
        ``u_i = L_i x``.
    rho : float or sequence
        Penalty of each split term, in the order of the cost; a single number serves all.
    x0 : ndarray, optional
        Start; default zero.
    inner_iterations : int
        Conjugate-gradient steps on the linear equation of each iteration, warm-started. Where every operator
        has a Fourier spectrum the equation is solved exactly instead, without inner loop.
    relaxation : float
        Over-relaxation in (0, 2); 1 is none.
    precondition : bool
        Use the circulant preconditioner in the inner loop.
    adapt : bool
        Balance the residuals: every 10 iterations, scale all penalties by the square root of the ratio of the primal to
        the dual residual where that is above 5 or below 1/5 (Boyd 2011, section 3.4.1).
    state : State, optional
        Go on from an earlier run's ``result.state``, to the same result as an unbroken run.

    Yields
    ------
    State
        ``info``: ``objective`` (at ``x``, constraints left out), ``primal`` = the relative distance between ``L x`` and
        ``u``, ``dual`` = the relative change of the splits (Boyd 2011, section 3.3). ``memory["splits"]`` holds
        the ``u_i``: they satisfy the constraints exactly.

    Notes
    -----
    With multipliers of ``<alpha, u - L c>`` (the thesis mixes two signs; Donati 2020, Algorithms 1, 2 and 4)::

        c      solves (Q + sum rho_i L_i^H L_i) c = b + sum L_i^H (rho_i u_i + alpha_i)
        u_i    = prox_{f_i / rho_i}(L_i c - alpha_i / rho_i)
        alpha_i += rho_i (u_i - L_i c)
    """
    if cost.domain is None:
        raise ValueError(
            "no term of the cost knows the shape of its argument: a data term such as LeastSquares is needed"
        )
    shape, dtype = cost.domain
    data: Quadratic | None = None
    splits = []
    for term in cost.terms():
        piece = term.scale * (term.cost if term.operator is None else term.cost @ term.operator)
        q = piece.quadratic(shape, dtype)
        if q is None:
            splits.append(term)
        else:
            data = q if data is None else data.plus(q)
    if data is None:
        raise ValueError("admm needs a quadratic term, such as LeastSquares, in the cost")
    rhos = [float(r) for r in (np.ravel(rho) if np.ndim(rho) else [rho] * len(splits))]  # type: ignore[arg-type]
    if len(rhos) != len(splits) or any(not r > 0 for r in rhos):
        raise ValueError(f"{len(splits)} split terms need as many positive rho, got {rho}")
    if not 0 < relaxation < 2:
        raise ValueError(f"relaxation must lie in (0, 2), got {relaxation}")

    operators: list[LinOp] = [Identity(shape, dtype) if t.operator is None else t.operator for t in splits]
    if state is not None:
        rhos = list(state.memory["rho"])
    grams = [L.gram() for L in operators]
    exact = all(g.spectrum is not None for g in [data.Q, *grams])
    nearest = [s for s in (g.nearest_circulant() for g in [data.Q, *grams]) if s is not None]

    def linear_system() -> tuple[LinOp, LinOp | None]:
        """``Q + sum rho_i L_i^H L_i``, and its inverse: exact, approximate, or None."""
        system = data.Q
        for r, g in zip(rhos, grams, strict=True):
            system = system + r * g
        if len(nearest) <= len(grams) or not (exact or precondition):
            return system, None
        spectrum = np.asarray(nearest[0], np.float64)
        for r, s in zip(rhos, nearest[1:], strict=True):
            spectrum = spectrum + r * s
        if not exact:
            return system, inverse_circulant(spectrum, system, 1e-4)
        lowest = float((spectrum + np.minimum(nearest[0], 0)).min())
        if lowest < 0 or float(spectrum.min()) <= 0:
            raise ValueError(
                f"the data term is indefinite: its smallest eigenvalue is {float(np.min(nearest[0])):.3g}, and rho too"
                " small for the iteration to contract; a rho of twice its size does"
            )
        return system, inverse_circulant(spectrum, system, 0.0)

    system, inverse = linear_system()
    if state is None:
        x = np.zeros(shape, dtype) if x0 is None else x0.astype(dtype, copy=True)
        u = [t.cost.prox(L.apply(x), t.scale / r) for t, L, r in zip(splits, operators, rhos, strict=True)]
        dual = [np.zeros_like(v) for v in u]  # alpha / rho
        product = None
        start = 1
    else:
        x = state.x.copy()
        u = [v.copy() for v in state.memory["splits"]]
        dual = [v.copy() for v in state.memory["duals"]]
        product = state.memory["product"]
        start = state.iteration + 1

    for k in count(start):
        right = data.b.copy()
        for r, L, v, a in zip(rhos, operators, u, dual, strict=True):
            right += dtype.type(r) * L.adjoint(v + a)
        if exact and inverse is not None:
            x = inverse.apply(right)
            product = right
        else:
            # The residual is known from the last iteration; from time to time it is computed afresh, because
            # rounding errors add up in it.
            known = None if product is None or k % _REFRESH == 0 else right - product
            steps = cg(system, right, x, M=None if inverse is None else inverse.apply, residual=known)
            for inner_state in islice(steps, inner_iterations):
                x = inner_state.x
                product = right - inner_state.memory["r"]
        value = distance = change = size_x = size_u = size_dual = penalty = 0.0
        # new lists of new arrays: the last state may still be wanted if this iteration is interrupted
        moved_u, moved_dual = [], []
        for term, r, L, old, a in zip(splits, rhos, operators, u, dual, strict=True):
            image = L.apply(x)
            if np.isfinite(part := term.cost(image)):
                value += term.scale * part
            # the multiplier less the (relaxed) image: the prox takes its negative, the new multiplier adds to it
            multiplier = a - dtype.type(relaxation) * image
            if relaxation != 1.0:
                multiplier -= dtype.type(1 - relaxation) * old
            new = term.cost.prox(-multiplier, term.scale / r)
            multiplier += new
            distance += square(image - new)
            change += r * r * square(L.adjoint(new - old))
            size = square(image)
            penalty += r * size
            size_x += size
            size_u += square(new)
            size_dual += r * r * square(L.adjoint(multiplier))
            moved_u.append(new)
            moved_dual.append(multiplier)
        u, dual = moved_u, moved_dual
        # x'Qx = x'(system x) - sum rho |L x|^2: the value of the data term needs no product of its own
        value += 0.5 * (inner(x, product) - penalty) - inner(data.b, x) + data.c
        info = {
            "objective": value,
            "primal": (distance / max(size_x, size_u, 1e-300)) ** 0.5,
            "dual": (change / max(size_dual, 1e-300)) ** 0.5,
        }
        if adapt and splits and k % _BALANCE == 0:
            ratio = info["primal"] / max(info["dual"], 1e-300)
            if not 1 / 5 <= ratio <= 5:
                factor = float(np.clip(ratio**0.5, 0.1, 10.0))
                rhos = [factor * r for r in rhos]
                for a in dual:  # the multipliers stay; their scaled form does not
                    a /= dtype.type(factor)
                system, inverse = linear_system()
                product = None
        yield State(k, x, info, {"splits": u, "duals": dual, "product": product, "rho": list(rhos)})


def square(x: NDArray) -> float:
    """``||x||^2``; infinite, and no error, where a diverging iteration overflows."""
    return inner(x, x)
