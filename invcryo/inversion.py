"""From normal equations to coefficients: least squares, total variation, and the choice of its weight.

Each function takes a `Quadratic` made from the data, and never sees an image.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
from numpy.typing import NDArray

from .costs import L21, NonNegative, Quadratic, SquaredL2, Support
from .operators import Gradient, LinOp, Mask
from .solvers import Result, admm, cg, circulant_preconditioner, residual_below, run

__all__ = [
    "InterruptedStage",
    "choose_lambda",
    "least_squares_map",
    "mean_eigenvalue",
    "noise_scale",
    "supported",
    "total_variation_map",
    "unless_interrupted",
]

#: Weight of the small Tikhonov term of the unregularised map, relative to the mean eigenvalue of H^H H. It only
#: decides frequencies that were hardly measured.
FLOOR = 0.03


class InterruptedStage(Exception):
    """Ctrl-C ended a stage: what has been reached is returned, and nothing more is begun."""


def unless_interrupted(result: Result) -> None:
    if result.stopped_by == "interrupt":
        raise InterruptedStage


def supported(x: NDArray, support: NDArray | None) -> NDArray:
    """``x`` with zeros outside the support: what ADMM holds only up to its tolerance, exactly."""
    return x if support is None else np.where(support, x, 0).astype(x.dtype)


def mean_eigenvalue(data: Quadratic) -> float:
    """Mean eigenvalue of the normal operator: the sum over views of the energy of one footprint."""
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
    floor : float
        Tikhonov weight relative to the mean eigenvalue, for frequencies that were hardly measured.
    tolerance : float
        Relative residual at which to stop.
    """
    shape, dtype = data.domain
    damped = (data + floor * mean_eigenvalue(data) * SquaredL2()).quadratic(shape, dtype)
    assert damped is not None
    Q, b = damped.Q, damped.b
    M: LinOp = circulant_preconditioner(Q, floor=1e-4)
    if support is not None:
        S = Mask(support, dtype)
        Q, b, M = S @ Q @ S, S.apply(b), S @ M @ S
    return run(
        cg(Q, b, M=M.apply),
        max_iter,
        stop=residual_below(tolerance),
        label="least squares",
        progress=progress,
    )


def total_variation_map(
    data: Quadratic,
    lam: float,
    n_pixels: int,
    support: NDArray | None = None,
    *,
    positivity: bool = False,
    x0: NDArray | None = None,
    tolerance: float = 1e-2,
    max_iter: int = 200,
    progress: bool | None = None,
    label: str = "total variation",
) -> Result:
    """Minimise ``data(c) + lam TV(c)`` with support and positivity, by ADMM.

    Parameters
    ----------
    data : Quadratic
    lam : float
    n_pixels : int
        Number of pixels of the data, from which the scale of the penalty is taken.
    tolerance : float
        Stop when the relative primal and dual residuals are both below.

    Notes
    -----
    Isotropic total variation with zero-flux borders. One preconditioned CG step per iteration: with the optimal
    circulant preconditioner and warm starts, more steps were measured to save no iterations. The penalty puts
    the threshold of the gradients, ``lam / rho``, at half the noise of a coefficient; on simulated particles this
    reached a relative gap of 1e-3 in 16 to 25 iterations over a range of lam of 16.
    """
    gradient = Gradient(data.Q.ishape, dtype=data.Q.dtype)
    cost = data + lam * (L21() @ gradient)
    if support is not None:
        cost = cost + Support(support, nonnegative=positivity)
    elif positivity:
        cost = cost + NonNegative()
    penalty = 2.0 * lam * mean_eigenvalue(data) / noise_scale(data, n_pixels)
    states = admm(cost, max(penalty, 1e-30), x0, inner_iterations=1, relaxation=1.8, adapt=True)
    result = run(
        states,
        max_iter,
        stop=residual_below(tolerance, "primal", "dual"),
        label=label,
        progress=progress,
    )
    if result.history["objective"][-1] > data.c and result.stopped_by != "interrupt":
        # an empty map costs data.c: lambda is so large that it is the better one, and likely the best
        result.x = np.zeros_like(result.x)
    return result


def noise_scale(data: Quadratic, n_pixels: int) -> float:
    """Standard deviation of the noise in H^H y, if all of the images' energy were white noise.

    ``sigma sqrt(mean eigenvalue)``, an upper bound that is close for cryo-EM images. It is the natural unit of
    lambda.
    """
    return math.sqrt(max(2.0 * data.c, 1e-300) / n_pixels * mean_eigenvalue(data))


def choose_lambda(
    halves: tuple[Quadratic, Quadratic],
    n_pixels: tuple[int, int],
    support: NDArray | None,
    *,
    positivity: bool = False,
    starts: tuple[NDArray | None, NDArray | None] = (None, None),
    progress: bool | None = None,
) -> tuple[float, list[dict[str, float]]]:
    """The weight of the total variation by cross-validation between half sets.

    Each half's map is asked to predict the images of the other half: the score of lambda is
    ``J_2(c_1(lambda)) + J_1(c_2(lambda))`` with the data terms J of the two halves. It needs neither a truth nor
    the FSC, and no pass over the images. Lambda moves in factors of 2 from half the noise scale until the score
    stops falling, and a parabola through the three best gives the minimum.

    Returns
    -------
    lam : float
        For all the data: the noise in H^H y grows as the square root of their number, and lambda with it.
    search : list of dict
        ``lam`` and ``score`` of every trial, relative to the score of an empty map.
    """
    scales = [noise_scale(q, n) for q, n in zip(halves, n_pixels, strict=True)]
    unit = math.hypot(*scales)
    empty = halves[0].c + halves[1].c
    search: dict[int, float] = {}
    current = list(starts)

    def score(step: int) -> float:
        if step not in search:
            maps = []
            for i in (0, 1):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", RuntimeWarning)  # a trial may be cut short
                    result = total_variation_map(
                        halves[i],
                        2.0**step * scales[i],
                        n_pixels[i],
                        support,
                        positivity=positivity,
                        x0=current[i],
                        tolerance=3e-2,
                        max_iter=15,
                        progress=progress,
                        label=f"lambda x 2^{step}",
                    )
                maps.append(supported(result.x, support))
                current[i] = result.x
            search[step] = halves[1](maps[0]) + halves[0](maps[1]) - empty
        return search[step]

    lowest, highest = -10, 8
    direction = 1 if score(0) < score(-1) else -1
    step = 0 if direction == 1 else -1
    while lowest < step < highest and score(step + direction) < score(step):
        step += direction
    best = min(search, key=lambda k: search[k])
    offset = 0.0
    if best - 1 in search and best + 1 in search:
        left, middle, right = (search[best + d] for d in (-1, 0, 1))
        bend = left - 2 * middle + right
        if bend > 0:
            offset = float(np.clip(0.5 * (left - right) / bend, -0.5, 0.5))
    trials = [{"lam": 2.0**k * unit, "score": search[k] / empty} for k in sorted(search)]
    return 2.0 ** (best + offset) * unit, trials
