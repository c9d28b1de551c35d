"""From normal equations to coefficients: least squares, and maps with any regulariser.

Each function takes a `Quadratic` made from the data, and never sees an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .costs import L1, L21, Cost, NonNegative, Quadratic, Schatten, SquaredL2, Support
from .operators import Gradient, Hessian, Identity, LinOp, Mask, Wavelet
from .solvers import Result, State, admm, any_of, cg, circulant_preconditioner, residual_below, run

__all__ = [
    "PENALTIES",
    "InterruptedStage",
    "admm_apart",
    "least_squares_map",
    "mean_eigenvalue",
    "penalty_for",
    "regularised_map",
    "supported",
    "unless_interrupted",
]

#: Weight of the small Tikhonov term of the unregularised map, relative to the mean eigenvalue of H^H H. It only
#: decides frequencies that were hardly measured.
FLOOR = 0.03

_SPLIT = 0.1  # first penalty of images that are a variable of their own, against the 1 of the data term
_LEAST_GAP = 1e-6  # an estimate in single precision resolves no less


def _wavelet(shape: tuple[int, ...]) -> Cost:
    transform = Wavelet(shape)
    weight = np.ones(shape, np.float32)
    weight[transform.coarse] = 0  # the coarse band holds the shape of the particle, which is not sparse
    return L1(weight) @ transform


#: Regularisers by name: the cost of coefficients of a shape, without its weight.
PENALTIES: dict[str, Callable[[tuple[int, ...]], Cost]] = {
    "tv": lambda shape: L21() @ Gradient(shape),
    "tv-aniso": lambda shape: L1() @ Gradient(shape),
    "wavelet": _wavelet,
    "hessian": lambda shape: Schatten() @ Hessian(shape),
    "tikhonov": lambda shape: SquaredL2(),
    "sobolev": lambda shape: SquaredL2() @ Gradient(shape),
}


def penalty_for(reg: Any, shape: tuple[int, ...]) -> Cost:
    """The regulariser that ``reg`` means on coefficients of a shape.

    Parameters
    ----------
    reg : str, Cost or callable
        A name in `PENALTIES`, a cost of the coefficients, or a function that makes one from their shape.
    """
    if isinstance(reg, Cost):
        penalty: Any = reg
    elif isinstance(reg, str):
        if reg not in PENALTIES:
            raise ValueError(f"unknown regulariser {reg!r}: expected none, {', '.join(PENALTIES)}, or a cost")
        penalty = PENALTIES[reg](shape)
    elif callable(reg):
        penalty = reg(shape)
    else:
        raise TypeError(f"a regulariser is a name, a cost, or a function of a shape, got {reg!r}")
    if not isinstance(penalty, Cost):
        raise TypeError(
            f"the regulariser made {type(penalty).__name__} of the shape {shape}, not a cost: return one, such as"
            " L1() @ Wavelet(shape)"
        )
    if penalty.domain is not None and tuple(penalty.domain[0]) != tuple(shape):
        raise ValueError(
            f"the regulariser is made for shape {tuple(penalty.domain[0])}, the coefficients have {tuple(shape)}"
            " (box / scale on each side): give a function of the shape instead"
        )
    return penalty


class InterruptedStage(Exception):
    """Ctrl-C ended a stage: what has been reached is returned, and nothing more is begun."""


def unless_interrupted(result: Result) -> None:
    if result.stopped_by == "interrupt":
        raise InterruptedStage


def supported(x: NDArray, support: NDArray | None) -> NDArray:
    """``x`` with zeros outside the support: what ADMM holds only up to its tolerance, exactly."""
    return x if support is None else np.where(support, x, 0).astype(x.dtype)


def mean_eigenvalue(data: Quadratic) -> float:
    """Mean eigenvalue of the quadratic form: of a data term, the sum over views of the energy of one footprint."""
    spectrum = data.Q.nearest_circulant()
    if spectrum is None:
        raise ValueError(f"{data.Q!r} has no nearest circulant to take the mean of")
    full = np.broadcast_to(spectrum, (*data.Q.ishape[:-1], data.Q.ishape[-1] // 2 + 1)).astype(np.float64)
    weight = np.full(full.shape[-1], 2.0)  # the half spectrum holds each of these twice
    weight[0] = 1.0
    if data.Q.ishape[-1] % 2 == 0:
        weight[-1] = 1.0
    return float((full * weight).sum() / math.prod(data.Q.ishape))


def least_squares_map(
    data: Quadratic,
    support: NDArray | None = None,
    *,
    n_pixels: int | None = None,
    floor: float = FLOOR,
    tolerance: float = 3e-4,
    max_iter: int = 100,
    progress: bool | None = None,
) -> Result:
    """The unregularised coefficients: preconditioned conjugate gradients on the normal equations.

    Parameters
    ----------
    data : Quadratic
        From ``LeastSquares(...).quadratic()``.
    support : ndarray of bool, optional
        Coefficients outside are zero.
    n_pixels : int, optional
        Number of pixels of the data. It says what part of what is not explained can be noise in the map, and with it
        the solver also stops when less than a thousandth of that energy is left to gain.
    floor : float
        Tikhonov weight relative to the mean eigenvalue, for frequencies that were hardly measured.
    tolerance : float
        Relative residual at which to stop.
    """
    damped = (data + floor * mean_eigenvalue(data) * SquaredL2()).quadratic(*data.domain)
    assert damped is not None
    stop = residual_below(tolerance)
    if n_pixels is not None:
        stop = any_of(stop, _below_noise(1e-3, _share(data, support, n_pixels), data.c))
    return _solve(damped, support, None, stop, max_iter, progress, "least squares")


def _solve(
    cost: Quadratic,
    support: NDArray | None,
    x0: NDArray | None,
    stop: Callable[[State], bool],
    max_iter: int,
    progress: bool | None,
    label: str,
) -> Result:
    """The minimum of a quadratic on a support."""
    Q, b = cost.Q, cost.b
    known = Q.nearest_circulant() is not None
    M: LinOp | None = circulant_preconditioner(Q, floor=1e-4) if known else None
    if support is not None:
        S = Mask(support, Q.dtype)
        Q, b, M = S @ Q @ S, S.apply(b), None if M is None else S @ M @ S
        x0 = None if x0 is None else S.apply(x0)
    return run(
        cg(Q, b, x0, M=None if M is None else M.apply),
        max_iter,
        stop=stop,
        label=label,
        progress=progress,
    )


def regularised_map(
    data: Quadratic,
    penalty: Cost,
    lam: float,
    n_pixels: int,
    support: NDArray | None = None,
    *,
    positivity: bool = False,
    x0: NDArray | None = None,
    tolerance: float = 1e-2,
    max_iter: int = 200,
    progress: bool | None = None,
    label: str = "regularised map",
    apart: tuple[Cost, LinOp] | None = None,
) -> Result:
    """Minimise ``data(c) + lam penalty(c)`` with support and positivity.

    Parameters
    ----------
    data : Quadratic
    penalty : Cost
        Of the coefficients, e.g. ``L21() @ Gradient(shape)``. A `Denoiser` works as a prior without value; ``lam``
        then is the variance of the noise in the images, ``lam / rho`` that which is removed.
    lam : float
        Not negative.
    n_pixels : int
        Number of pixels of the data, which sets what the noise can change.
    support : ndarray of bool, optional
        Coefficients outside are zero.
    tolerance : float
        Stop when the objective is this close to its minimum, relative to the part of what the map leaves unexplained
        that noise can put into it, or to 0.3 of the energy that the map explains if that is less.
    x0 : ndarray, optional
        Start; by default half the resolution, or zero.
    apart : (f, H), optional
        ``data`` as a cost of images, ``f(H c)``. Then ``H c`` becomes a variable of its own, and the linear equations
        have the kernel of ``H^H H``, even if ``f`` masks pixels.

    Notes
    -----
    A penalty with a quadratic form, and no positivity: preconditioned conjugate gradients, to a relative residual of
    3 % of ``tolerance``. Else ADMM, whose penalties find themselves.
    """
    if not (isinstance(lam, (int, float)) and math.isfinite(lam) and lam >= 0):
        raise ValueError(f"lam, the weight of the regulariser, must be finite and not negative, got {lam!r}")
    shape, dtype = data.domain
    if support is not None and support.shape != shape:
        raise ValueError(f"the support has shape {support.shape}, the coefficients {shape}")
    prior = lam * penalty if lam > 0 else 0.0 * SquaredL2()
    cost: Cost = data + prior
    quadratic = None if positivity or apart is not None else cost.quadratic(shape, dtype)
    if quadratic is not None:
        return _solve(quadratic, support, x0, residual_below(0.03 * tolerance), max_iter, progress, label)
    if support is not None:
        cost = cost + Support(support, nonnegative=positivity)
    elif positivity:
        cost = cost + NonNegative()
    result = run(
        admm(cost, x0=x0) if apart is None else admm_apart(cost, data, *apart, x0),
        max_iter,
        stop=_near_minimum(tolerance, _share(data, support, n_pixels), data.c),
        label=label,
        progress=progress,
    )
    if result.history["objective"][-1] > data.c and result.stopped_by != "interrupt" and prior.has_value:
        empty = np.zeros_like(result.x)
        if result.history["objective"][-1] > data.c + prior(empty):
            result.x = empty  # lambda is so large that an empty map is the better one, and likely the best
    return result


class _Apart(Cost):
    """``f - c``, without its quadratic form, so that it is split; ``c`` is its value at zero."""

    def __init__(self, f: Cost, c: float) -> None:
        self.f, self.c = f, c

    def __call__(self, x: NDArray) -> float:
        return self.f(x) - self.c

    def _prox(self, z: NDArray, tau: float, out: NDArray) -> None:
        self.f.prox(z, tau, out=out)


def admm_apart(cost: Cost, data: Quadratic, f: Cost, H: LinOp, x0: NDArray | None = None) -> Iterator[State]:
    """ADMM of ``cost``, whose first term is ``data(c) = f(H c)``, with ``H c`` as a variable of its own.

    The first penalties of the other terms are those of the plain splitting.
    """
    rho = next(admm(cost, x0=x0, coarse_start=False)).memory["rho"]
    nothing = Quadratic(0.0 * Identity(data.Q.ishape, data.Q.dtype), np.zeros_like(data.b), data.c)
    split: Cost = nothing + _Apart(f, data.c) @ H
    for term in cost.terms()[1:]:
        split = split + term.joined()
    return admm(split, [_SPLIT, *rho], x0, adapt=True)


def _share(data: Quadratic, support: NDArray | None, n_pixels: int) -> float:
    """The part of white noise in so many pixels that can be put into a map."""
    coefficients = data.b.size if support is None else np.count_nonzero(support)
    return min(coefficients / n_pixels, 1.0)


def _below_noise(fraction: float, share: float, empty: float) -> Callable[[State], bool]:
    """Whether the gap is small beside the energy of the noise in the map, of which the residual tells."""

    def rule(state: State) -> bool:
        objective = state.info["objective"]  # without the energy of the data
        return state.info["gap"] * abs(objective) <= fraction * share * max(empty + objective, 0.0)

    rule.__name__ = f"below_noise({fraction:g})"
    return rule


def _near_minimum(tolerance: float, share: float, empty: float) -> Callable[[State], bool]:
    """Whether the gap, an estimate relative to the energy of the map, is small beside what noise changes.

    The objective bounds the energy of the noise: closely where noise is most of the data, and not by far too much where
    there is little of it.
    """

    def rule(state: State) -> bool:
        objective = max(state.info["objective"], 0.0)
        energy = abs(empty - objective)
        near = tolerance * min(0.3 * energy, share * objective)
        return state.info["gap"] * energy <= max(near, _LEAST_GAP * energy)

    rule.__name__ = f"gap_below({tolerance:g})"
    return rule
