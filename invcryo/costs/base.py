"""The cost algebra.

A cost is a function of a real array. It offers what it can of value, proximal operator, convex conjugate, gradient and
a quadratic form; costs add, scale, and compose with operators: ``0.5 * f + lam * (L21() @ Gradient(shape))``.
Costs are immutable and remember nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..backend import array_module, inner, norm
from ..operators import Circulant, Compose, Identity, LinOp, Refinement

__all__ = ["Composed", "Cost", "Quadratic", "ScaledCost", "SumOfCosts", "Term"]


class Term(NamedTuple):
    """``scale * cost(operator x)``; ``operator`` None means the identity."""

    scale: float
    cost: Cost
    operator: LinOp | None

    def acting(self, shape: tuple[int, ...], dtype: Any) -> LinOp:
        """The operator, on arrays of this shape and type."""
        return Identity(shape, dtype) if self.operator is None else self.operator

    def joined(self) -> Cost:
        """The term as a cost of ``x``."""
        return self.scale * (self.cost if self.operator is None else self.cost @ self.operator)


class Cost:
    """A function of an array, to be minimised.

    A subclass writes what it has of ``__call__``, ``_prox``, ``_prox_conjugate``, ``_conjugate``, ``gradient``,
    ``quadratic``; the public methods check their arguments and call these.
    """

    __array_ufunc__ = None

    @property
    def has_value(self) -> bool:
        """Whether the cost can be called for its value; a solver leaves out of its objective what has none."""
        return True

    def thinned(self, fine: Refinement) -> Cost | None:
        """The constraint that coarse ``c`` meet where, about, ``fine(c)`` meets this one; None if unknown."""
        return None

    #: Whether the cost is a constraint: zero where it is met, else infinite.
    is_indicator = False

    def __call__(self, x: NDArray) -> float:
        """The value; ``inf`` outside the domain."""
        raise NotImplementedError(f"{type(self).__name__} has no value")

    def prox(self, z: NDArray, tau: float, out: NDArray | None = None) -> NDArray:
        """``argmin_x f(x) + ||x - z||^2 / (2 tau)``.

        Parameters
        ----------
        z : ndarray
            float32 or float64; the result has the same type.
        tau : float
            Not negative; 0 gives the nearest point of the domain.
        out : ndarray, optional
            Where to write the result: of the shape and type of ``z``, and perhaps ``z`` itself.
        """
        z, out = _checked(z, out)
        self._prox(z, _step("tau", tau), out)
        return out

    def prox_conjugate(self, z: NDArray, sigma: float, out: NDArray | None = None) -> NDArray:
        """``argmin_y f*(y) + ||y - z||^2 / (2 sigma)``: the prox of the conjugate, ``sigma > 0``.

        By Moreau's identity ``z - sigma prox_{f / sigma}(z / sigma)``, where no direct way is cheaper. ``out`` as in
        `prox`.
        """
        z, out = _checked(z, out)
        if _step("sigma", sigma) == 0:
            raise ValueError("sigma, the step of the prox of a conjugate, must be positive, got 0")
        self._prox_conjugate(z, float(sigma), 1.0, out)
        return out

    def conjugate(self, y: NDArray) -> float:
        """``f*(y) = sup_x <x, y> - f(x)``; ``inf`` outside its domain.

        A ball that is the domain (of a norm) is taken 16 units of rounding larger than it is, so that a point
        projected on it in the type of ``y`` lies in it.
        """
        return self._conjugate(y, 1.0)

    def dual_norm(self, y: NDArray) -> float:
        """``sup <x, y> / f(x)`` where f is a norm."""
        raise NotImplementedError(f"{type(self).__name__} is not a norm and has no dual norm")

    def _prox(self, z: NDArray, tau: float, out: NDArray) -> None:
        """Write the prox to ``out``, which may be ``z``."""
        raise NotImplementedError(
            f"{type(self).__name__} has no closed-form prox; solvers that split, like admm, do not need one"
        )

    def _prox_conjugate(self, z: NDArray, sigma: float, factor: float, out: NDArray) -> None:
        """Write the prox of ``sigma (factor f)*`` to ``out``, which may be ``z``."""
        xp = array_module(z)
        s = z.dtype.type(sigma)
        p = xp.empty_like(z) if xp.may_share_memory(z, out) else out
        xp.divide(z, s, out=p)
        self.prox(p, factor / sigma, out=p)
        xp.multiply(p, s, out=p)
        xp.subtract(z, p, out=out)

    def _conjugate(self, y: NDArray, factor: float) -> float:
        """``(factor f)*(y)``."""
        raise NotImplementedError(f"the conjugate of {type(self).__name__} is not known")

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


def _step(name: str, value: float) -> float:
    if not 0 <= value < np.inf:
        raise ValueError(
            f"{name}, the step of a prox, must be a finite number that is not negative, got {value}: look at the"
            " weight of the cost and at the penalty or step size of the solver"
        )
    return float(value)


def _checked(z: Any, out: Any) -> tuple[Any, Any]:
    """The argument of a prox, and an array for its result."""
    if not hasattr(z, "dtype"):
        z = np.asarray(z)
    if z.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"a prox takes float32 or float64, got {z.dtype}; cast it with z.astype(np.float32)")
    if out is None:
        return z, array_module(z).empty_like(z)
    if out.shape != z.shape or out.dtype != z.dtype:
        raise ValueError(
            f"out has shape {tuple(out.shape)} and dtype {out.dtype}, the argument {tuple(z.shape)} and {z.dtype}"
        )
    return z, out


class SumOfCosts(Cost):
    """``f_1 + f_2 + ...``"""

    def __init__(self, parts: list[Cost]) -> None:
        self.parts: list[Cost] = []
        for p in parts:
            self.parts += p.parts if isinstance(p, SumOfCosts) else [p]

    @property
    def has_value(self) -> bool:
        return all(p.has_value for p in self.parts)

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

    @property
    def has_value(self) -> bool:
        return self.cost.has_value

    def __call__(self, x: NDArray) -> float:
        value = self.cost(x)
        return value if value == np.inf else self.factor * value  # 0 times a constraint is the constraint

    def dual_norm(self, y: NDArray) -> float:
        value = self.cost.dual_norm(y)
        return value / self.factor if self.factor else (np.inf if value else 0.0)

    def _prox(self, z: NDArray, tau: float, out: NDArray) -> None:
        self.cost.prox(z, self.factor * tau, out=out)

    def _prox_conjugate(self, z: NDArray, sigma: float, factor: float, out: NDArray) -> None:
        self.cost._prox_conjugate(z, sigma, factor * self.factor, out)

    def _conjugate(self, y: NDArray, factor: float) -> float:
        return self.cost._conjugate(y, factor * self.factor)

    def gradient(self, x: NDArray) -> NDArray:
        return self.factor * self.cost.gradient(x)

    def quadratic(self, shape: tuple[int, ...] | None = None, dtype: Any = None) -> Quadratic | None:
        q = self.cost.quadratic(shape, dtype)
        if q is None or self.factor == 1.0:  # no copy of the kernel
            return q
        return Quadratic(self.factor * q.Q, self.factor * q.b, self.factor * q.c)

    @property
    def domain(self) -> tuple[tuple[int, ...], np.dtype] | None:
        return self.cost.domain

    def terms(self) -> list[Term]:
        return [Term(self.factor * t.scale, t.cost, t.operator) for t in self.cost.terms()]


class Composed(Cost):
    """``f(A x)``. Solvers split it; its prox is known only through a quadratic form."""

    def __init__(self, cost: Cost, operator: LinOp) -> None:
        self.cost, self.operator = cost, operator

    @property
    def has_value(self) -> bool:
        return self.cost.has_value

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

    def _prox(self, z: NDArray, tau: float, out: NDArray) -> None:
        """Exact, by division in Fourier space; needs ``Q.spectrum``."""
        spectrum = self.Q.spectrum
        if spectrum is None:
            return super()._prox(z, tau, out)
        if 1.0 + tau * float(spectrum.min()) <= 0:
            raise ValueError(
                f"the quadratic is indefinite (smallest eigenvalue {spectrum.min():.3g}) and tau = {tau:.3g}"
                f" is too large for its prox: use tau below {-1.0 / float(spectrum.min()):.3g}"
            )
        out[...] = Circulant(1.0 / (1.0 + tau * spectrum), z.shape, self.Q.dtype).apply(
            z + self.Q.dtype.type(tau) * self.b
        )

    def _conjugate(self, y: NDArray, factor: float) -> float:
        """``(y + b)' Q^+ (y + b) / 2 - c`` where ``y + b`` is in the range of Q; needs ``Q.spectrum``.

        Eigenvalues below 100 units of rounding of the largest count as zero, and so does a part of ``y + b``
        outside the range that is as small.
        """
        spectrum = self.Q.spectrum
        if spectrum is None:
            return super()._conjugate(y, factor)
        v = y + self.Q.dtype.type(factor) * self.b
        if factor == 0:
            return np.inf if y.any() else 0.0
        tiny = 100 * float(np.finfo(self.Q.dtype).eps)
        floor = tiny * float(abs(spectrum).max())
        if float(spectrum.min()) < -floor:
            return np.inf  # not convex, and not bounded below by any plane
        used = spectrum > floor
        xp = array_module(spectrum)
        inverse = xp.where(used, 1.0 / (factor * xp.where(used, spectrum, 1.0)), 0.0)
        outside = Circulant(xp.where(used, 0.0, 1.0), y.shape, self.Q.dtype).apply(v)
        if norm(outside) > tiny * norm(v):
            return np.inf
        return 0.5 * inner(v, Circulant(inverse, y.shape, self.Q.dtype).apply(v)) - factor * self.c

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
