"""The alternating direction method of multipliers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..costs import Cost, Quadratic
from ..operators import Circulant, LinOp, Refinement, Toeplitz
from .driver import State
from .splitting import Moved, Split, split
from .vectors import add_scaled, inner, scale_add

__all__ = ["admm"]

_REFRESH = 20  # iterations between two products that remove the rounding errors of the known ones
_FIRST = 3  # iteration after which the penalties are first adapted
_GROWTH = 1.25  # of the iterations between two adaptations, which therefore end
_BALANCE = 4.0  # how far the balance of the gap may move the penalties from their natural size
_COARSEST = 24  # side below which a coarser problem is not worth its while
_COARSE_GAP = 1e-3  # at which the coarse problem is left
_COARSE_LIMIT = 40  # iterations
_SMALLEST = 1 / 60  # of a penalty, against the largest, in the unit of L^H L


def admm(
    cost: Cost,
    rho: float | Sequence[float] | None = None,
    x0: NDArray | None = None,
    *,
    inner_iterations: int = 1,
    relaxation: float = 1.8,
    precondition: bool = True,
    majoriser: float | None = None,
    adapt: bool | None = None,
    coarse_start: bool | None = None,
    state: State | None = None,
) -> Iterator[State]:
    """Minimise ``cost`` = quadratic terms + ``sum_i f_i(L_i x)``, each ``f_i`` with a prox.

    Parameters
    ----------
    cost : Cost
        At least one term must be quadratic (a data term). Every other term becomes a split variable
        ``u_i = L_i x``.
    rho : float or sequence, optional
        Penalty of each split term, in the order of the cost; a single number serves all. Default: found from the
        data.
    x0 : ndarray, optional
        Start; default zero.
    inner_iterations : int
        Conjugate-gradient steps on the linear equation of each iteration, warm-started. With the preconditioner one
        step was measured to do the work of any number. Where every operator has a Fourier spectrum the equation is
        solved exactly.
    relaxation : float
        Over-relaxation in (0, 2); 1 is none.
    precondition : bool
        Use the circulant preconditioner in the inner loop.
    majoriser : float, optional
        ``A >= ||H||^2``: the inner-loop-free scheme of Donati 2020, eq. 4.55 and Algorithm 6, which adds
        ``(x - x_k)'(A - Q)(x - x_k) / 2`` to each linear equation, so that Fourier transforms solve it. Every ``L_i``
        must have a spectrum: periodic boundaries. Take ``1.01 * Q.norm()`` for the ``Q`` of the data term.
    adapt : bool, optional
        Change the penalties as the iteration goes on; default where no ``rho`` is given.
    coarse_start : bool, optional
        First solve the problem with half the resolution, itself begun in the same way, and start from its answer,
        multipliers and penalties. Default: where neither ``rho`` nor ``x0`` is given, and the terms allow it (Toeplitz
        data term; total variation, box, support).
    state : State, optional
        Go on from an earlier run's ``result.state``, to the same result as an unbroken run.

    Yields
    ------
    State
        ``info``: ``objective`` at ``x``, constraints left out; ``primal``, the relative distance between ``L x`` and
        ``u``; ``dual``, the size of the residual of optimality of ``x``, relative to that of zero (in the norm of the
        preconditioner); ``gap``, an estimate of ``(F(x) - min F) / (F(0) - min F)``. ``memory["splits"]`` holds the
        ``u_i``: they satisfy the constraints exactly. All are live views of arrays that the next iteration changes.

    Notes
    -----
    With multipliers of ``<alpha, u - L c>`` (the thesis mixes two signs; Donati 2020, Algorithms 1, 2 and 4)::

        c      solves (Q + sum rho_i L_i^H L_i) c = b + sum L_i^H (rho_i u_i + alpha_i)
        u_i    = prox_{f_i / rho_i}(L_i c - alpha_i / rho_i)
        alpha_i += rho_i (u_i - L_i c)

    The published algorithms are ``admm(cost, rho, inner_iterations=K, relaxation=1, precondition=False)`` and
    ``admm(cost, rho, relaxation=1, majoriser=A)``, except that both start each equation from the last solution, whose
    residual is known.

    *The gap.* ``-alpha_i`` is a subgradient of ``f_i`` at ``u_i``, so that by convexity ::

        F(x) - min F <= sum_i [f_i(L_i x) - f_i(u_i) + <alpha_i, L_i x - u_i>] + <e, x - x*>,
        e = Q x - b - sum_i L_i^H alpha_i.

    The bracket is computed. The last term needs the unknown ``x*``; the decrease that the step of ``x`` promised,
    times half the number of iterations, was within a factor of a few of it on every problem tried, and is taken for
    it: the gap is an estimate, not a bound.

    *The penalties.* Each is set to ``||alpha_i|| / ||L_i x||``, at first from guesses, and all are then moved by one
    factor, at most 4 either way, that balances the two parts of the gap: a large penalty lets the bracket fall, a
    small one the residual.

    *The coarse start.* Interpolated coefficients ``E c`` have a Toeplitz data term of their own, made from the kernel
    and ``E^H b`` alone (`Toeplitz.coarsened`); its iterations cost an eighth.
    """
    if cost.domain is None:
        raise ValueError(
            "no term of the cost knows the shape of its argument: a data term such as LeastSquares is needed"
        )
    shape, dtype = cost.domain
    data, splits = _parts(cost, shape, dtype)
    if not 0 < relaxation < 2:
        raise ValueError(f"relaxation must lie in (0, 2), got {relaxation}")
    if inner_iterations < 1:
        raise ValueError(f"inner_iterations must be at least 1, got {inner_iterations}")
    if rho is not None:
        given = [float(r) for r in (np.ravel(rho) if np.ndim(rho) else [rho] * len(splits))]  # type: ignore[arg-type]
        if len(given) != len(splits) or any(not 0 < r < math.inf for r in given):
            raise ValueError(f"{len(splits)} split terms need as many positive rho, got {rho}")
        for s, r in zip(splits, given, strict=True):
            s.rho = r
    adapt = rho is None if adapt is None else adapt
    equation = _Equation(data.Q, splits, precondition, majoriser)
    if equation.exact and relaxation > 1 and float(np.min(data.Q.spectrum)) < 0:  # type: ignore[arg-type]
        raise ValueError(
            "the data term is indefinite (a padded kernel is): over-relaxation does not converge there; use"
            " relaxation=1"
        )

    if state is not None and state.memory:
        x = state.x.copy()
        for s, r, u, a in zip(splits, *(state.memory[k] for k in ("rho", "splits", "duals")), strict=True):
            s.rho = r
            s.resume(u, a)
        product = state.memory["product"].copy()
        first_promise, balance, due = (state.memory[k] for k in ("promise", "balance", "due"))
        start = state.iteration + 1
    else:
        start_at = x0 if state is None else state.x
        if start_at is not None and start_at.shape != shape:
            raise ValueError(f"x0 has shape {start_at.shape}, the cost needs {shape}")
        x = np.zeros_like(data.b) if start_at is None else start_at.astype(dtype, copy=True)
        if coarse_start is None:
            coarse_start = rho is None and start_at is None
        begun = _coarse_start(data, splits) if coarse_start else None
        if begun is None:
            if rho is None:
                _first_penalties(splits, data, equation.hessian)
            for s in splits:
                s.begin(x)
        else:
            x = begun
        product = np.zeros_like(x) if start_at is None and begun is None else data.Q.apply(x)
        first_promise, balance, due = 0.0, 1.0, _FIRST
        start = 1
    equation.update()
    right = np.empty_like(x)

    for k in count(start):
        if k % _REFRESH == 0:
            product = data.Q.apply(x)
        np.subtract(data.b, product, out=right)
        for s in splits:
            s.pull(x, right)
        promise = equation.step(right, x, product, inner_iterations)
        first_promise = max(first_promise, promise)
        moved = [s.move(x, relaxation) for s in splits]
        info, gaps = _figures(data, splits, moved, x, product, promise, first_promise, k)
        if adapt and splits and k == due:
            due = k + max(2, math.ceil((_GROWTH - 1) * k))
            if k > _FIRST:
                ratio = sum(gaps) / max(0.25 * k * promise, 1e-300)
                balance = float(np.clip(balance * np.clip(ratio, 1 / 81, 81) ** 0.25, 1 / _BALANCE, _BALANCE))
            if _adapt_penalties(splits, moved, balance):
                equation.update()
        memory: dict[str, Any] = {
            "splits": [s.u for s in splits],
            "duals": [s.a for s in splits],
            "rho": [s.rho for s in splits],
            "product": product,
            "promise": first_promise,
            "balance": balance,
            "due": due,
        }
        yield State(k, x, info, memory)


def _coarse_start(data: Quadratic, splits: list[Split]) -> NDArray | None:
    """Solve at half the resolution and let the splits begin from there; the start, or None where it cannot be."""
    if min(data.Q.ishape) < 2 * _COARSEST or not isinstance(data.Q, Toeplitz):
        return None
    Q = data.Q.coarsened()
    fine = Refinement(data.Q.ishape, data.Q.dtype)
    terms = [s.coarsened(fine) for s in splits]
    if Q is None or None in terms:
        return None
    cost: Cost = Quadratic(Q, fine.adjoint(data.b), data.c)
    for term in terms:
        assert term is not None
        cost = cost + term.joined()
    states = admm(cost)
    for state in states:
        if state.info["gap"] <= _COARSE_GAP or state.iteration == _COARSE_LIMIT:
            break
    x = fine.apply(state.x)
    _, ends = _parts(cost, *cost.domain)  # type: ignore[misc]
    for s, end, r, u, a in zip(
        splits, ends, *(state.memory[k] for k in ("rho", "splits", "duals")), strict=True
    ):
        end.rho, end.u, end.a = r, u, a
        s.refine(end, x, fine)
    return x


def _parts(cost: Cost, shape: tuple[int, ...], dtype: Any) -> tuple[Quadratic, list[Split]]:
    """The quadratic terms as one, and the splits of all others."""
    data: Quadratic | None = None
    splits = []
    for term in cost.terms():
        q = term.joined().quadratic(shape, dtype)
        if q is None:
            splits.append(split(term, shape, dtype))
        else:
            data = q if data is None else data.plus(q)
    if data is None:
        raise ValueError("admm needs a quadratic term, such as LeastSquares, in the cost")
    return data, splits


class _Equation:
    """``(Q + sum rho_i L_i^H L_i) x = right``, and how it is solved: exactly, or by steps that lower its residual."""

    def __init__(self, Q: LinOp, splits: list[Split], precondition: bool, majoriser: float | None) -> None:
        self.Q, self.splits, self.majoriser = Q, splits, majoriser
        model = Q.nearest_circulant()
        spectra = [s.gram.spectrum for s in splits]
        known = all(s.circulant is not None for s in splits)
        self.exact = Q.spectrum is not None and all(s is not None for s in spectra)
        if majoriser is not None:
            if not 0 < majoriser < math.inf or any(s is None for s in spectra):
                raise ValueError(
                    f"a majoriser must be a positive number, got {majoriser}, and every split operator must be a"
                    " periodic convolution or the identity: use Gradient(shape, boundary='periodic')"
                )
            model = np.full((1,) * len(Q.ishape), majoriser)
        self._model = model
        self._used = known and model is not None and (precondition or self.exact or majoriser is not None)
        self.inverse: LinOp | None = None

    @property
    def hessian(self) -> LinOp | None:
        """The nearest periodic convolution to ``Q``, if it is known."""
        model = self.Q.nearest_circulant()
        return None if model is None else Circulant(np.asarray(model), self.Q.ishape, self.Q.dtype)

    def update(self) -> None:
        """Take up new penalties."""
        if not self._used:
            return
        model = np.asarray(self._model)
        spectrum = model.astype(np.float64)
        for s in self.splits:
            assert s.circulant is not None
            spectrum = spectrum + s.rho * s.circulant
        if self.exact:
            lowest = float((spectrum + np.minimum(model, 0)).min())
            if lowest < 0 or float(spectrum.min()) <= 0:
                raise ValueError(
                    f"the data term is indefinite: its smallest eigenvalue is {float(model.min()):.3g}, and rho"
                    " too small for the iteration to contract; a rho of twice its size does"
                )
        floor = 0.0 if self.exact else 1e-4 * float(spectrum.max())
        self.inverse = Circulant(1.0 / np.maximum(spectrum, floor), self.Q.ishape, self.Q.dtype)

    def step(self, residual: NDArray, x: NDArray, product: NDArray, steps: int) -> float:
        """Improve ``x``, and its ``product`` Q x with it, in place; returns the decrease of the quadratic, doubled.

        ``residual`` is ``right`` less the system times ``x``, and is used up.
        """
        if self.majoriser is not None:
            assert self.inverse is not None
            move = self.inverse.apply(residual)
            add_scaled(x, 1.0, move)
            add_scaled(product, 1.0, self.Q.apply(move))
            return inner(residual, move)
        total = 0.0
        p: Any = None
        rz = 0.0
        for j in range(1 if self.exact else steps):
            z = residual.copy() if self.inverse is None else self.inverse.apply(residual)
            new = inner(residual, z)
            if new == 0:
                break
            if p is None:
                p = z
            else:
                scale_add(p, new / rz, z)
            rz = new
            q = self.Q.apply(p)
            curvature = inner(p, q) + sum(s.curvature(p) for s in self.splits)
            if not curvature > 0:
                if math.isnan(curvature):
                    return math.nan
                break
            length = rz / curvature
            add_scaled(x, length, p)
            add_scaled(product, length, q)
            total += length * rz
            if j + 1 < steps:
                add_scaled(residual, -length, q)
                for s in self.splits:
                    add_scaled(residual, -length * s.rho, s.gram.apply(p))
        return total


def _figures(
    data: Quadratic,
    splits: list[Split],
    moved: list[Moved],
    x: NDArray,
    product: NDArray,
    promise: float,
    first_promise: float,
    k: int,
) -> tuple[dict[str, float], list[float]]:
    """The figures of an iteration, and each split's part of the gap."""
    curved, linear = inner(x, product), inner(data.b, x)
    objective = 0.5 * curved - linear + data.c + sum(m.value for m in moved)
    gaps = [
        abs(s.rho * m.pairing + (m.value - m.value_u if s.cost.has_value else 0.0))
        for s, m in zip(splits, moved, strict=True)
    ]
    drop = data.c - objective  # from x = 0, where all penalties are taken to be zero
    size = max(drop, 0.1 * (0.5 * curved + abs(linear) + sum(m.value for m in moved)))
    distance = sum(m.distance for m in moved)
    spread = max(sum(m.image for m in moved), sum(m.size for m in moved), 1e-300)
    info = {
        "objective": objective,
        "primal": (distance / spread) ** 0.5,
        "dual": (promise / max(first_promise, 1e-300)) ** 0.5 if promise >= 0 else math.nan,
        "gap": (sum(gaps) + 0.5 * k * promise) / max(size, first_promise, 1e-300),
    }
    return info, gaps


def _bounded(splits: list[Split], natural: list[float]) -> list[float]:
    """Penalties that are positive, and none so small that its term would never be felt."""
    largest = max(r * s.unit for s, r in zip(splits, natural, strict=True))
    return [max(r, _SMALLEST * largest / s.unit) for s, r in zip(splits, natural, strict=True)]


def _first_penalties(splits: list[Split], data: Quadratic, hessian: LinOp | None) -> None:
    """Penalties from a first guess of the solution: the data term's, damped by its mean eigenvalue."""
    if not splits:
        return
    b = data.b
    if hessian is None:
        curvature = inner(b, data.Q.apply(b))
        mean = curvature / max(inner(b, b), 1e-300)
        guess, hessian = b / b.dtype.type(max(mean, 1e-30)), data.Q
    else:
        spectrum = np.asarray(hessian.spectrum, np.float64)
        mean = max(float(np.mean(spectrum)), 1e-30)
        guess = Circulant(1.0 / (np.maximum(spectrum, 0) + mean), b.shape, b.dtype).apply(b)
    natural = [s.natural_penalty(guess, hessian) if s.cost.has_value else mean for s in splits]
    if not any(r > 0 and math.isfinite(r) for r in natural):
        natural = [mean / s.unit for s in splits]
    natural = [r if math.isfinite(r) else 0.0 for r in natural]
    for s, r in zip(splits, _bounded(splits, natural), strict=True):
        s.rho = r


def _adapt_penalties(splits: list[Split], moved: list[Moved], balance: float) -> bool:
    """Move the penalties to their natural size times ``balance``; whether any moved by a tenth.

    A prior without value (a denoiser) keeps its own: there the penalty is part of the problem.
    """
    natural = [
        s.rho * math.sqrt(m.dual / max(m.image, m.size, 1e-300)) for s, m in zip(splits, moved, strict=True)
    ]
    if not any(r > 0 for r in natural):
        return False
    changed = False
    for s, r in zip(splits, _bounded(splits, natural), strict=True):
        wanted = balance * r
        if s.cost.has_value and not 0.9 < wanted / s.rho < 1.1:
            s.rescale(wanted)
            changed = True
    return changed
