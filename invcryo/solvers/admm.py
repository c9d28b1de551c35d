"""The alternating direction method of multipliers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, islice

import numpy as np
from numpy.typing import NDArray

from ..backend import inner, norm
from ..costs import Cost, Quadratic
from ..operators import Circulant, Identity, LinOp
from .cg import cg, circulant_preconditioner
from .driver import State

__all__ = ["admm"]

_REFRESH = 20  # iterations between two products that remove the rounding errors of the known residual


def admm(
    cost: Cost,
    rho: float | Sequence[float],
    x0: NDArray | None = None,
    *,
    inner_iterations: int = 3,
    relaxation: float = 1.0,
    precondition: bool = True,
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
    rhos = [float(r) for r in (rho if isinstance(rho, Sequence) else [rho] * len(splits))]
    if len(rhos) != len(splits) or any(not r > 0 for r in rhos):
        raise ValueError(f"{len(splits)} split terms need as many positive rho, got {rho}")
    if not 0 < relaxation < 2:
        raise ValueError(f"relaxation must lie in (0, 2), got {relaxation}")

    operators: list[LinOp] = [Identity(shape, dtype) if t.operator is None else t.operator for t in splits]
    system = data.Q
    for r, L in zip(rhos, operators, strict=True):
        system = system + r * L.gram()
    exact = None
    M = None
    if system.spectrum is not None:
        if float(system.spectrum.min()) <= 0:
            raise ValueError(
                f"the linear system has a smallest eigenvalue of {float(system.spectrum.min()):.3g}: a rho above minus"
                " the smallest eigenvalue of the data term is needed"
            )
        exact = Circulant(1.0 / system.spectrum, shape, dtype)
    elif precondition and system.nearest_circulant() is not None:
        M = circulant_preconditioner(system, floor=1e-4)

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
        if exact is not None:
            x = exact.apply(right)
            product = right
        else:
            # The residual is known from the last iteration; from time to time it is computed afresh, because
            # rounding errors add up in it.
            known = None if product is None or k % _REFRESH == 0 else right - product
            for inner_state in islice(cg(system, right, x, M=M, residual=known), inner_iterations):
                x = inner_state.x
                product = right - inner_state.memory["r"]
        value = distance = change = size_x = size_u = size_dual = penalty = 0.0
        for i, (term, r, L) in enumerate(zip(splits, rhos, operators, strict=True)):
            image = L.apply(x)
            if np.isfinite(part := term.cost(image)):
                value += term.scale * part
            relaxed = image if relaxation == 1.0 else relaxation * image + (1 - relaxation) * u[i]
            new = term.cost.prox(relaxed - dual[i], term.scale / r)
            dual[i] += new - relaxed
            distance += norm(image - new) ** 2
            change += (r * norm(L.adjoint(new - u[i]))) ** 2
            square = norm(image) ** 2
            penalty += r * square
            size_x += square
            size_u += norm(new) ** 2
            size_dual += (r * norm(L.adjoint(dual[i]))) ** 2
            u[i] = new
        # x'Qx = x'(system x) - sum rho |L x|^2: the value of the data term needs no product of its own
        value += 0.5 * (inner(x, product) - penalty) - inner(data.b, x) + data.c
        info = {
            "objective": value,
            "primal": (distance / max(size_x, size_u, 1e-300)) ** 0.5,
            "dual": (change / max(size_dual, 1e-300)) ** 0.5,
        }
        yield State(k, x, info, {"splits": u, "duals": dual, "product": product})
