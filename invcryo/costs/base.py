"""The cost algebra.

A cost is a function of a real array. It offers what it can of value, proximal operator, gradient and a
quadratic form; costs add, scale, and compose with operators: ``0.5 * f + lam * (L21() @ Gradient(shape))``.
Costs are immutable and remember nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..backend import inner
from ..operators import Circulant, Compose, LinOp

__all__ = ["Composed", "Cost", "Quadratic", "ScaledCost", "SumOfCosts", "Term"]


class Term(NamedTuple):
    """``scale * cost(operator x)``; ``operator`` None means the identity."""

    scale: float
    cost: Cost
    operator: LinOp | None


class Cost:
    """A function of an array, to be minimised."""

    __array_ufunc__ = None

    def __call__(self, x: NDArray) -> float:
        """The value; ``inf`` outside the domain."""
        raise NotImplementedError(f"{type(self).__name__} has no value")

    def prox(self, z: NDArray, tau: float) -> NDArray:
        """``argmin_x f(x) + ||x - z||^2 / (2 tau)``."""
        raise NotImplementedError(
            f"{type(self).__name__} has no closed-form prox; solvers that split, like admm, do not need one"
        )

    def gradient(self, x: NDArray) -> NDArray:
        raise NotImplementedError(f"{type(self).__name__} is not differentiable")

    def quadratic(self, shape: tuple[int, ...] | None = None, dtype: Any = None) -> Quadratic | None:
        """The same cost as a `Quadratic`, or None if it is not one.

        ``shape`` and ``dtype`` say on which arrays, for costs that do not know it themselves.
        """
        return None

    @property
    def domain(self) -> tuple[tuple[int, ...], np.dtype] | None:
        """Shape and dtype of the argument, where the cost knows them."""
        return None

    def terms(self) -> list[Term]:
        """The cost as a flat sum."""
        return [Term(1.0, self, None)]

    def __add__(self, other: Any) -> Cost:
        return SumOfCosts([self, other]) if isinstance(other, Cost) else NotImplemented

    def __mul__(self, factor: Any) -> Cost:
        if np.ndim(factor) != 0 or isinstance(factor, Cost):
            return NotImplemented
        return ScaledCost(float(factor), self)

    __rmul__ = __mul__

    def __matmul__(self, operator: Any) -> Cost:
        return Composed(self, operator) if isinstance(operator, LinOp) else NotImplemented


class SumOfCosts(Cost):
    """``f_1 + f_2 + ...``"""

    def __init__(self, parts: list[Cost]) -> None:
        self.parts: list[Cost] = []
        for p in parts:
            self.parts += p.parts if isinstance(p, SumOfCosts) else [p]

    def __call__(self, x: NDArray) -> float:
        return float(sum(p(x) for p in self.parts))

    def gradient(self, x: NDArray) -> NDArray:
        total = self.parts[0].gradient(x)
        for p in self.parts[1:]:
            total = total + p.gradient(x)
        return total

    def quadratic(self, shape: tuple[int, ...] | None = None, dtype: Any = None) -> Quadratic | None:
        total: Quadratic | None = None
        for p in self.parts:
            q = p.quadratic(shape, dtype)
            if q is None:
                return None
            total = q if total is None else total.plus(q)
        return total

    @property
    def domain(self) -> tuple[tuple[int, ...], np.dtype] | None:
        return next((p.domain for p in self.parts if p.domain is not None), None)

    def terms(self) -> list[Term]:
        return [t for p in self.parts for t in p.terms()]


class ScaledCost(Cost):
    """``factor * f`` with ``factor >= 0``."""

    def __init__(self, factor: float, cost: Cost) -> None:
        if not (np.isfinite(factor) and factor >= 0):
            raise ValueError(f"a cost can be scaled by a finite number that is not negative, got {factor}")
        self.factor, self.cost = factor, cost

    def __call__(self, x: NDArray) -> float:
        value = self.cost(x)
        return value if value == np.inf else self.factor * value  # 0 times a constraint is the constraint

    def prox(self, z: NDArray, tau: float) -> NDArray:
        return self.cost.prox(z, self.factor * tau)

    def gradient(self, x: NDArray) -> NDArray:
        return self.factor * self.cost.gradient(x)

    def quadratic(self, shape: tuple[int, ...] | None = None, dtype: Any = None) -> Quadratic | None:
        q = self.cost.quadratic(shape, dtype)
        return None if q is None else Quadratic(self.factor * q.Q, self.factor * q.b, self.factor * q.c)

    @property
    def domain(self) -> tuple[tuple[int, ...], np.dtype] | None:
        return self.cost.domain

    def terms(self) -> list[Term]:
        return [Term(self.factor * t.scale, t.cost, t.operator) for t in self.cost.terms()]


class Composed(Cost):
    """``f(A x)``. Solvers split it; its prox is known only through a quadratic form."""

    def __init__(self, cost: Cost, operator: LinOp) -> None:
        self.cost, self.operator = cost, operator

    def __call__(self, x: NDArray) -> float:
        return self.cost(self.operator.apply(x))

    def gradient(self, x: NDArray) -> NDArray:
        return self.operator.adjoint(self.cost.gradient(self.operator.apply(x)))

    def quadratic(self, shape: tuple[int, ...] | None = None, dtype: Any = None) -> Quadratic | None:
        A = self.operator
        q = self.cost.quadratic(A.oshape, A.dtype)
        if q is None:
            return None
        return Quadratic(A.gram(q.Q), A.adjoint(q.b), q.c)

    @property
    def domain(self) -> tuple[tuple[int, ...], np.dtype] | None:
        return self.operator.ishape, self.operator.dtype

    def terms(self) -> list[Term]:
        return [
            Term(t.scale, t.cost, self.operator if t.operator is None else Compose(t.operator, self.operator))
            for t in self.cost.terms()
        ]


class Quadratic(Cost):
    """``x'Q x / 2 - b'x + c``.

    Parameters
    ----------
    Q : LinOp
        Symmetric, positive semi-definite.
    b : ndarray
    c : float
        A constant: for a data term half the energy of the images, mostly noise. The value is accumulated in
        float64, so it can be kept.
    """

    def __init__(self, Q: LinOp, b: NDArray, c: float = 0.0) -> None:
        if Q.ishape != Q.oshape or tuple(b.shape) != Q.ishape:
            raise ValueError(
                f"a quadratic needs a square Q that fits b, got {Q!r} and b of shape {tuple(b.shape)}"
            )
        self.Q, self.b, self.c = Q, b.astype(Q.dtype, copy=False), float(c)

    def __call__(self, x: NDArray) -> float:
        return 0.5 * inner(x, self.Q.apply(x)) - inner(self.b, x) + self.c

    def gradient(self, x: NDArray) -> NDArray:
        return self.Q.apply(x) - self.b

    def prox(self, z: NDArray, tau: float) -> NDArray:
        """Exact, by division in Fourier space; needs ``Q.spectrum``."""
        spectrum = self.Q.spectrum
        if spectrum is None:
            return super().prox(z, tau)
        if float(spectrum.min()) <= -1.0 / tau:
            raise ValueError(
                f"the quadratic is indefinite (smallest eigenvalue {spectrum.min():.3g}) and tau = {tau:.3g}"
                f" is too large for its prox: use tau below {-1.0 / float(spectrum.min()):.3g}"
            )
        return Circulant(1.0 / (1.0 + tau * spectrum), z.shape, self.Q.dtype).apply(
            z + self.Q.dtype.type(tau) * self.b
        )

    def quadratic(self, shape: tuple[int, ...] | None = None, dtype: Any = None) -> Quadratic:
        return self

    @property
    def domain(self) -> tuple[tuple[int, ...], np.dtype]:
        return self.Q.ishape, self.Q.dtype

    def plus(self, other: Quadratic) -> Quadratic:
        """The sum, as one quadratic."""
        return Quadratic(self.Q + other.Q, self.b + other.b, self.c + other.c)

    def __repr__(self) -> str:
        return f"Quadratic({self.Q!r})"
