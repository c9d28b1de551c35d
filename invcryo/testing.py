"""Checks for your own operators and costs: each returns a relative error, to compare with a tolerance.

Nothing here asks for a class: an operator has ``apply``, ``adjoint``, ``ishape``, ``oshape`` and ``dtype``, or,
as SciPy's, ``matvec``, ``rmatvec``, ``shape`` and ``dtype``; a cost is called for its value and has ``prox`` or
``gradient``. Errors are scaled by norms, not by the inner product, which may be near zero by chance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backend import inner, norm

__all__ = ["check_adjoint", "check_gradient", "check_gram", "check_prox"]

Random = np.random.Generator | int | None


def check_adjoint(A: Any, rng: Random = 0) -> float:
    """``|<A x, y> - <x, A^H y>| / max(|A x| |y|, |x| |A^H y|)`` for random ``x`` and ``y`` of both signs.

    An exact pair gives a few units of rounding: about 1e-7 in float32, 1e-16 in float64.

    Examples
    --------
    >>> from invcryo.operators import Gradient
    >>> check_adjoint(Gradient((8, 9, 10))) < 1e-6
    True
    """
    rng = np.random.default_rng(rng)
    apply, adjoint, ishape, oshape = _maps(A)
    x, y = _random(ishape, A.dtype, rng), _random(oshape, A.dtype, rng)
    forward, back = apply(x), adjoint(y)
    scale = max(norm(forward) * norm(y), norm(x) * norm(back))
    return abs(inner(forward, y) - inner(x, back)) / scale if scale else 0.0


def check_gram(A: Any, W: Any = None, rng: Random = 0, *, x: NDArray | None = None) -> float:
    """``|A.gram(W) x - A^H W A x| / |A^H W A x|`` for a random ``x``, or the one given.

    A kernel that approximates the gram is to be checked with the ``x`` that it is meant for.
    """
    rng = np.random.default_rng(rng)
    apply, adjoint, ishape, _ = _maps(A)
    x = _random(ishape, A.dtype, rng) if x is None else x
    image = apply(x)
    exact = adjoint(image if W is None else _maps(W)[0](image))
    difference = _maps(A.gram(W))[0](x) - exact
    return norm(difference) / norm(exact)


def check_prox(cost: Any, z: NDArray, tau: float, rng: Random = 0, *, trials: int = 20) -> float:
    """How far ``p = cost.prox(z, tau)`` is from the laws that the prox of a convex cost obeys.

    With ``F(x) = cost(x) + |x - z|^2 / (2 tau)`` these are ``F(x) >= F(p) + |x - p|^2 / (2 tau)`` for every
    ``x``, and ``|p - p'|^2 <= <p - p', z - z'>`` for the prox ``p'`` of any other point ``z'`` (firm
    non-expansiveness). The largest violation over random ``x`` and ``z'`` at distances from 1e-3 to 10 times
    ``|z|`` is returned, relative to the terms compared; ``inf`` where ``p`` is outside the cost's domain.
    """
    rng = np.random.default_rng(rng)
    p = cost.prox(z, tau)

    def distance(a: NDArray, b: NDArray) -> float:
        return norm(a.astype(np.float64) - b) ** 2 / (2 * tau)

    at_p = cost(p), distance(p, z)
    if not np.isfinite(at_p[0]):
        return np.inf
    worst = 0.0
    for size in np.geomspace(1e-3, 10.0, trials):
        step = _random(z.shape, z.dtype, rng)
        step *= z.dtype.type(size * (norm(z) or 1.0) / norm(step))
        other = cost.prox(z + step, tau)
        # the prox of a neighbour is a neighbour that lies in the domain; blends of the two see kinks
        for x in (p + step, other, p + z.dtype.type(0.5) * (other - p), z):
            terms = (*at_p, distance(x, p), -cost(x), -distance(x, z))
            if np.isfinite(terms[3]):
                worst = max(worst, sum(terms) / max(sum(map(abs, terms)), 1e-300))
        moved = p.astype(np.float64) - other
        along = inner(moved, z.astype(np.float64) - (z + step))
        worst = max(worst, (inner(moved, moved) - along) / max(norm(z) ** 2, norm(step) ** 2))
    return worst


def check_gradient(cost: Any, x: NDArray, rng: Random = 0, *, trials: int = 5) -> float:
    """``|<g, d> - (f(x + h d) - f(x - h d)) / (2 h)| / (|g| |d|)``, the worst of some random ``d``.

    Use float64: about 1e-9 where the gradient is right, limited by the differences.
    """
    rng = np.random.default_rng(rng)
    gradient = cost.gradient(x)
    worst = 0.0
    for _ in range(trials):
        d = _random(x.shape, x.dtype, rng)
        h = float(np.finfo(x.dtype).eps) ** (1 / 3) * max(norm(x), 1e-3) / norm(d)
        step = x.dtype.type(h) * d
        slope = (cost(x + step) - cost(x - step)) / (2 * h)
        worst = max(worst, abs(inner(gradient, d) - slope) / (max(norm(gradient), 1e-300) * norm(d)))
    return worst


def _random(shape: tuple[int, ...], dtype: Any, rng: np.random.Generator) -> NDArray:
    return rng.standard_normal(shape).astype(dtype)


def _maps(A: Any) -> tuple[Callable, Callable, tuple[int, ...], tuple[int, ...]]:
    """(forward, adjoint, shape in, shape out) of an operator like ours, or of one on flat vectors."""
    if hasattr(A, "ishape"):
        return A.apply, A.adjoint, tuple(A.ishape), tuple(A.oshape)
    rows, columns = A.shape
    return A.matvec, A.rmatvec, (columns,), (rows,)
