"""One split variable of ADMM, ``u = L x``, with its multiplier and its penalty."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..backend import array_module, norm
from ..costs import L21
from ..costs.base import Term
from ..operators import Gradient, Identity, LinOp, Refinement, Toeplitz
from .vectors import compiled, inner

__all__ = ["Moved", "Split", "split"]


class Moved(NamedTuple):
    """The sums of one step of a split."""

    distance: float  # ||L x - u||^2
    image: float  # ||L x||^2
    size: float  # ||u||^2
    dual: float  # ||a||^2
    pairing: float  # <a, L x - u>
    value: float  # f(L x); 0 where it is infinite or unknown
    value_u: float  # f(u)


class Split:
    """``scale * f(L x)`` as ``scale * f(u)`` with ``u = L x``.

    Attributes
    ----------
    u : ndarray
        The split variable.
    a : ndarray
        The multiplier of ``<alpha, u - L x>`` over the penalty: ``a = alpha / rho``. ``-alpha`` is a subgradient of
        ``scale * f`` at ``u``.
    rho : float
        The penalty.
    """

    def __init__(self, term: Term, shape: tuple[int, ...], dtype: Any) -> None:
        self.cost, self.scale = term.cost, term.scale
        self.operator = term.acting(shape, dtype)
        self.gram = self.operator.gram()
        self.rho = math.nan

    @functools.cached_property
    def circulant(self) -> NDArray | None:
        """Spectrum of a periodic convolution close to ``L^H L``; None if unknown."""
        return self.gram.nearest_circulant()

    @functools.cached_property
    def unit(self) -> float:
        """Mean eigenvalue of ``L^H L``, about."""
        return 1.0 if self.circulant is None else max(float(np.mean(self.circulant)), 1e-30)

    def begin(self, x: NDArray) -> None:
        """``u = prox(L x)``, no multiplier."""
        self.u = self.operator.apply(x)
        self.cost.prox(self.u, self.scale / self.rho, out=self.u)
        self.a = array_module(x).zeros_like(self.u)

    def resume(self, u: NDArray, a: NDArray) -> None:
        self.u, self.a = u.copy(), a.copy()

    def pull(self, x: NDArray, out: NDArray) -> None:
        """``out += rho L^H (u + a - L x)``."""
        image = self._image(x)
        if compiled(image, self.u, self.a, out):
            flat = image.reshape(-1), self.u.reshape(-1), self.a.reshape(-1)
            if image is x:
                kernels.spring(*flat, self.rho, out.reshape(-1), True)
                return
            kernels.spring(*flat, self.rho, flat[0], False)
        else:
            image = out.dtype.type(self.rho) * (self.u + self.a - image)
        out += self.operator.adjoint(image)

    def curvature(self, p: NDArray) -> float:
        """``rho ||L p||^2``."""
        image = self._image(p)
        return self.rho * inner(image, image)

    def move(self, x: NDArray, relaxation: float) -> Moved:
        """The over-relaxed step of ``u`` and ``a`` towards the new ``x``, in place."""
        image, u, a = self._image(x), self.u, self.a
        fast = compiled(image, u, a)
        if fast:
            kernels.relax(image.reshape(-1), u.reshape(-1), a.reshape(-1), relaxation)
        else:
            a *= -1
            a += a.dtype.type(relaxation) * image + a.dtype.type(1 - relaxation) * u
        self.cost.prox(a, self.scale / self.rho, out=u)
        if fast:
            sums = kernels.settle(image.reshape(-1), u.reshape(-1), a.reshape(-1))
        else:
            np.subtract(u, a, out=a)
            d = image - u
            sums = np.array([inner(d, d), inner(image, image), inner(u, u), inner(a, a), inner(a, d)])
        distance, size, size_u, dual, pairing = (float(v) for v in sums)
        return Moved(distance, size, size_u, dual, pairing, self._value(image), self._value(u))

    def rescale(self, rho: float) -> None:
        """Another penalty for the same multiplier."""
        self.a *= self.a.dtype.type(self.rho / rho)
        self.rho = rho

    def natural_penalty(self, x: NDArray, hessian: LinOp) -> float:
        """The penalty at which the multiplier is as large as ``L x``, guessed before any multiplier is known.

        ``x`` is a first guess of the solution, ``hessian`` an estimate of the data term's.
        """
        image = self._image(x)
        size = norm(image)
        if size == 0 or not self.cost.has_value:
            return 0.0
        if self.cost.is_indicator:
            # what the data pull out of the constraint, the multiplier must push back
            inside = self.cost.prox(image, 1.0)
            return norm(hessian.apply(self.operator.adjoint(image - inside))) / (norm(inside) or size)
        value = self._value(image)
        if not value > 0:
            return 0.0
        tau = 0.1 * size**2 / value  # a tenth of the way: its slope is the multiplier
        step = self.cost.prox(image, tau * self.scale)
        step -= image
        return norm(step) / (tau * size)

    def coarsened(self, fine: Refinement) -> Term | None:
        """The same penalty of ``fine(c)`` as one of the coarse ``c``, or None where that is not known."""
        cost = self.cost.thinned(fine) if isinstance(self.operator, Identity) else None
        return None if cost is None else Term(self.scale, cost, None)

    def refine(self, coarse: Split, x: NDArray, fine: Refinement) -> None:
        """Begin from the end of the coarse problem, ``x`` its solution on the fine grid."""
        self._take_over(coarse, x, fine, 0.5 ** len(fine.oshape), 0.5 ** len(fine.oshape))

    def _take_over(self, coarse: Split, x: NDArray, fine: Refinement, dual: float, penalty: float) -> None:
        """``dual`` and ``penalty`` are the sizes of the fine multiplier and penalty, the coarse ones being 1."""
        self.rho = penalty * coarse.rho
        self.a = fine.nearest(coarse.a)
        self.a *= self.a.dtype.type(dual / penalty)
        # the split that belongs to this multiplier, were it not for what the coarse grid cannot show
        self.u = self.cost.prox(self._image(x) - self.a, self.scale / self.rho)

    def _image(self, x: NDArray) -> NDArray:
        return x if isinstance(self.operator, Identity) else self.operator.apply(x)

    def _value(self, image: NDArray) -> float:
        """Scaled; a constraint counts nothing where it is not met, nor does a prior that has no value."""
        return 0.0 if self.cost.is_indicator or not self.cost.has_value else self.scale * self.cost(image)


class TotalVariation(Split):
    """Isotropic total variation of a volume: the same steps without the gradient of ``x`` ever being stored."""

    def __init__(self, term: Term, shape: tuple[int, ...], dtype: Any) -> None:
        super().__init__(term, shape, dtype)
        assert isinstance(self.operator, Gradient)
        self._periodic = self.operator.boundary == "periodic"

    def coarsened(self, fine: Refinement) -> Term:
        # an interpolated volume has half the slope at eight times the voxels
        assert isinstance(self.operator, Gradient)
        gradient = Gradient(fine.ishape, self.operator.boundary, self.operator.dtype)
        return Term(4.0 * self.scale, self.cost, gradient)

    def refine(self, coarse: Split, x: NDArray, fine: Refinement) -> None:
        self._take_over(coarse, x, fine, 1 / 4, 1 / 2)

    def pull(self, x: NDArray, out: NDArray) -> None:
        if compiled(x, self.u, self.a, out):
            kernels.tv_pull(x, self.u, self.a, self.rho, self._periodic, out)
        else:
            super().pull(x, out)

    def curvature(self, p: NDArray) -> float:
        return self.rho * kernels.tv_square(p, self._periodic) if compiled(p) else super().curvature(p)

    def move(self, x: NDArray, relaxation: float) -> Moved:
        if not compiled(x, self.u, self.a):
            return super().move(x, relaxation)
        tau = self.scale / self.rho
        sums = kernels.tv_move(x, self.u, self.a, relaxation, tau, self._periodic)
        distance, size, size_u, dual, pairing, value, value_u = (float(v) for v in sums)
        return Moved(distance, size, size_u, dual, pairing, self.scale * value, self.scale * value_u)


class Projected(Split):
    """An operator that costs more than the convolution ``L^H L``: it is applied once in each iteration."""

    _known: NDArray | None = None  # L x, from `move` to the next `pull`

    def curvature(self, p: NDArray) -> float:
        return self.rho * inner(p, self.gram.apply(p))

    def move(self, x: NDArray, relaxation: float) -> Moved:
        image = self._known = self.operator.apply(x)
        moved = super().move(x, relaxation)
        self._known = image
        return moved

    def _image(self, x: NDArray) -> NDArray:
        image, self._known = self._known, None
        return self.operator.apply(x) if image is None else image


#: Pairs of cost and operator whose steps are fused; every other pair takes those of `Split`.
_FUSED: dict[tuple[type, type], type[Split]] = {(L21, Gradient): TotalVariation}


def split(term: Term, shape: tuple[int, ...], dtype: Any) -> Split:
    """The split of a term of a cost, by the fastest way that is known for it."""
    way = _FUSED.get((type(term.cost), type(term.operator)), Split) if len(shape) == 3 else Split
    made = way(term, shape, dtype)
    if way is Split and isinstance(made.gram, Toeplitz) and made.operator.ishape != made.operator.oshape:
        made = Projected(term, shape, dtype)
    return made
