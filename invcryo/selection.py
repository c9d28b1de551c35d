"""The weight of a regulariser from the data themselves: cross-validation of half sets, discrepancy, and its bounds.

No rule needs a truth, or the FSC that is quoted afterwards. All work on normal equations, without another pass over the
images; only the noise level for the discrepancy principle is measured from a sample of them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backend import inner, norm
from .costs import Cost, Quadratic
from .inversion import mean_eigenvalue, regularised_map, supported, unless_interrupted
from .operators import Identity, LinOp, Mask
from .solvers import NonFiniteError, cg, circulant_preconditioner, residual_below, run

__all__ = [
    "RULES",
    "NoiseLevel",
    "Selection",
    "choose_lambda",
    "lambda_max",
    "natural_lambda",
    "noise_level",
    "scaled_lambda",
]

RULES = ("cross-validation", "discrepancy")

#: The search never leaves this range of `lambda_max`.
LOWEST, HIGHEST = 1e-5, 1.0


@dataclass
class Selection:
    """What `choose_lambda` returns.

    Attributes
    ----------
    lam : float
        For all the data: a part of them takes `scaled_lambda`.
    rule : str
    trials : list of dict
        In increasing order of ``lam``: ``misfit``, the data term at its map, ``penalty``, the value of the regulariser
        (None for a denoiser), ``iterations``; and by cross-validation ``score``, the misfit of the other half's data,
        relative to that of an empty map less 1: negative where the map predicts them. Misfit and penalty are then those
        of the first half alone.
    """

    lam: float
    rule: str
    trials: list[dict[str, Any]] = field(default_factory=list)

    @property
    def iterations(self) -> int:
        return sum(trial["iterations"] for trial in self.trials)


@dataclass(frozen=True)
class NoiseLevel:
    """Variance of the noise of a pixel, and its standard error."""

    variance: float
    error: float


def noise_level(images: Any, *, sample: int = 5000) -> NoiseLevel:
    """The noise of images, from their corners: the pixels beyond the circle that fits the image.

    Parameters
    ----------
    images : array-like (n, ny, nx)
        May be lazy: at most ``sample`` images are read, in 50 runs that are spread evenly.

    Notes
    -----
    The mean square of these pixels counts noise of every frequency, as the misfit does; an estimate from high
    frequencies alone fails where noise is not white, or where images were filtered or binned, as real ones are. It is
    too high by what the CTF spreads of the particle into the corners, and by neighbours in crowded micrographs.
    """
    n, ny, nx = images.shape
    y, x = np.ogrid[:ny, :nx]
    corners = ((y - ny // 2) / (ny / 2)) ** 2 + ((x - nx // 2) / (nx / 2)) ** 2 > 1
    runs = min(50, n)
    length = max(min(sample, n) // runs, 1)
    powers = []
    for start in np.unique(np.linspace(0, n - length, runs).astype(int)):
        part = np.asarray(images[int(start) : int(start) + length])
        powers.append((part[:, corners].astype(np.float64) ** 2).mean(axis=1))
    power = np.concatenate(powers)
    variance = float(power.mean())
    if not (math.isfinite(variance) and variance > 0):
        raise ValueError(
            f"the corners of the images have a mean square of {variance}: were the images masked? Give lam, or"
            " choose it by cross-validation (lam='auto')"
        )
    # one image alone has no spread: that of white noise then
    spread = power.std(ddof=1) if len(power) > 1 else variance * math.sqrt(2 / np.count_nonzero(corners))
    return NoiseLevel(variance, float(spread / math.sqrt(len(power))))


# -- scales -------------------------------------------------------------------------------------------------------


def _grows(penalty: Cost, shape: tuple[int, ...], dtype: Any) -> bool:
    """Whether the best weight grows with the amount of data: of norms, but not of quadratic forms and denoisers."""
    return penalty.has_value and penalty.quadratic(shape, dtype) is None


def scaled_lambda(lam: float, penalty: Cost, data: Quadratic, share: float) -> float:
    """``lam`` for a part of the data, ``share`` of all: the noise of H^H y, and with it the weight of a norm, grows as
    the square root of their number; that of a quadratic form or a denoiser is a variance, which stays."""
    return lam * math.sqrt(share) if _grows(penalty, *data.domain) else lam


def natural_lambda(data: Quadratic, penalty: Cost, n_pixels: int) -> float:
    """The order of magnitude of the weight, from which a search starts.

    Of a norm, the standard deviation of the noise of ``H^H y``, if all of the images' energy were white noise, divided
    by the root mean eigenvalue of ``L^H L`` (times sqrt(3), which suits total variation). Of a quadratic form, the
    weight at which its eigenvalues are those of the data in the mean. Of a denoiser, the variance of the noise.
    """
    shape, dtype = data.domain
    variance = 2.0 * data.c / n_pixels
    if not penalty.has_value:
        return max(variance, 1e-300)
    form = penalty.quadratic(shape, dtype)
    if form is not None:
        return mean_eigenvalue(data) / max(mean_eigenvalue(form), 1e-300)
    L = _operator(penalty, shape, dtype)
    spectrum = None if L is None else L.gram().nearest_circulant()
    mean = 1.0 if spectrum is None else mean_eigenvalue(Quadratic(L.gram(), data.b))  # type: ignore[union-attr]
    return max(math.sqrt(3.0 * variance * mean_eigenvalue(data) / max(mean, 1e-300)), 1e-300)


def _operator(penalty: Cost, shape: tuple[int, ...], dtype: Any) -> LinOp | None:
    """The operator of a penalty that is one term."""
    terms = penalty.terms()
    if len(terms) != 1:
        return None
    return terms[0].acting(shape, dtype)


def lambda_max(
    data: Quadratic, penalty: Cost, support: NDArray | None = None, *, tolerance: float = 1e-3
) -> float | None:
    """A weight from which on the minimiser is trivial: of the maps that the penalty does not see, the best.

    Parameters
    ----------
    data : Quadratic
    penalty : Cost
        A norm or semi-norm of a linear operator: ``f(L c)``, one term.
    support : ndarray of bool, optional
    tolerance : float
        Relative residual of the linear equations.

    Returns
    -------
    float or None
        An upper bound on the smallest such weight. None where the penalty is not a norm, so that there is none, or
        where the equations could not be solved to the tolerance: with wavelets whose coarse band is free, on a support.

    Notes
    -----
    Let P be the support, D leave out entries of L c that f does not see, and c_0 minimise the data term where
    ``D L c = 0``; its gradient there is g = Q c_0 - b. By convexity c_0 minimises ``data + lam f(L c)`` on the support
    if and only if some y in ``lam df(0)``, which is the ball ``f°(y) <= lam`` of the dual norm, satisfies
    ``P (g + L^H y) = 0``. The y of least length does, ``y = D L P (P L^H D L P)^+ (-P g)``: -P g lies in the range,
    since c_0 is the best in the null space of ``D L P``. So every ``lam >= f°(y)`` will do. That of another y may be
    smaller; ``<y, y> / f(y)`` is below the true value. For total variation y is a gradient field, from one Poisson
    problem. Positivity is left out of account.
    """
    shape, dtype = data.domain
    terms = penalty.terms()
    if len(terms) != 1:
        return None
    f, scale = terms[0].cost, terms[0].scale
    L = terms[0].acting(shape, dtype)
    ones = np.ones(L.oshape, L.dtype)
    try:
        f.dual_norm(ones)
    except NotImplementedError:
        return None
    if scale == 0:
        return None
    seen = f.prox(ones, 1e20) == 0  # the prox of a norm leaves nothing of what it sees
    D = Identity(L.oshape, L.dtype) if seen.all() else Mask(seen, L.dtype)
    P = Identity(shape, dtype) if support is None else Mask(support, dtype)
    G: LinOp = P @ (L.gram() if seen.all() else L.H @ D @ L) @ P
    M = None
    if seen.all() and L.gram().nearest_circulant() is not None:
        M = (P @ circulant_preconditioner(L.gram(), floor=1e-4) @ P).apply
    b = P.apply(data.b)
    if not b.any():
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # whether the tolerance was reached is seen below
        descent = b - P.apply(data.Q.apply(_trivial(data.Q, G, P, b, tolerance)))
        try:
            result = run(cg(G, descent, M=M), 300, stop=residual_below(tolerance), progress=False)
        except NonFiniteError:
            return None
    if result.history["residual"][-1] > tolerance:
        return None
    return f.dual_norm(D.apply(L.apply(P.apply(result.x)))) / scale


def _trivial(Q: LinOp, G: LinOp, P: LinOp, b: NDArray, tolerance: float) -> NDArray:
    """The minimiser of the data term over the null space of G: the one that the operators here can have."""
    once = G.apply(b)
    # a projection: the coarse band of a wavelet transform
    if norm(G.apply(once) - once) <= 1e-3 * norm(once):
        rest = Identity(G.ishape, G.dtype) + (-1.0) * G
        states = cg(rest @ Q @ rest, rest.apply(b))
        return run(states, 100, stop=residual_below(0.1 * tolerance), progress=False).x
    one = P.apply(np.ones_like(b))
    if norm(G.apply(one)) <= 1e-3 * norm(one):  # constants
        return one * b.dtype.type(inner(b, one) / inner(one, Q.apply(one)))
    return np.zeros_like(b)


# -- rules --------------------------------------------------------------------------------------------------------


def choose_lambda(
    parts: Sequence[Quadratic],
    n_pixels: Sequence[int],
    penalty: Cost,
    support: NDArray | None = None,
    *,
    rule: str = "cross-validation",
    noise: NoiseLevel | None = None,
    largest: float | None = None,
    positivity: bool = False,
    progress: bool | None = None,
) -> Selection:
    """The weight of a regulariser from the data.

    Parameters
    ----------
    parts : sequence of Quadratic
        The data terms: of the two half sets for cross-validation, of all the data for the discrepancy.
    n_pixels : sequence of int
        Number of pixels of each.
    penalty : Cost
    support : ndarray of bool, optional
    rule : str
        "cross-validation": the map of the first half is asked to predict the images of the second, so that the score
        is ``J_2(c_1)`` with the data term J_2. The weight moves in factors of 2 until the score stops falling, and a
        parabola through the three best gives the minimum.

        "discrepancy": the misfit ``||H c - y||^2`` is that of the noise, ``n_pixels sigma^2``.
    noise : NoiseLevel, optional
        For the discrepancy.
    largest : float, optional
        `lambda_max` of all the data: the search stays below it, and above 1e-5 of it.

    Notes
    -----
    The score the other way, ``J_1(c_2)``, would cost as much again and tell nothing new: for a linear method the terms
    that hold the noise, ``<H_2^H y_2, c_1>`` and ``<H_1^H y_1, c_2>``, are the same. In 27 simulated cases the
    two minima lay within a fifth of an octave.

    At a low signal-to-noise ratio the discrepancy compares a residual that is almost all noise with an estimate of
    that noise: the fluctuation of both, ``sigma^2 sqrt(2 / n)`` and the error of the estimate, must be small beside the
    energy of the signal, and beside what lambda changes, which is often a few thousandths of the residual. Where it is
    not, the rule refuses. It also takes what the CTF spreads into the corners for noise, and at best smooths more
    than cross-validation does (by a factor of about 2 in lambda, at a loss of 1 to 3 dB, in simulations).
    """
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}: expected one of {', '.join(RULES)}")
    if len(parts) != (2 if rule == "cross-validation" else 1):
        wanted = "the data terms of two half sets" if rule == "cross-validation" else "one data term"
        raise ValueError(f"{rule} needs {wanted}, got {len(parts)}")
    if len(n_pixels) != len(parts) or min(n_pixels) < 1:
        raise ValueError(
            f"{len(parts)} data terms need as many numbers of pixels, above 0, got {list(n_pixels)}"
        )
    empty = [i for i, q in enumerate(parts, 1) if not q.c > 0]
    if empty:
        raise ValueError(f"half set {empty[0]} holds no data, or images of zeros: no weight can be chosen")
    trials = _Trials(parts, n_pixels, penalty, support, largest, positivity, progress)
    if rule == "cross-validation":
        lam = _cross_validation(trials)
    else:
        if noise is None:
            raise ValueError("the discrepancy principle needs the noise level: noise=noise_level(images)")
        lam = _discrepancy(trials, noise)
    return Selection(lam, rule, [trials.table[k] for k in sorted(trials.table)])


class _Trials:
    """Maps at ``unit * 2^step``, each from its own start so that their order does not matter, and their figures."""

    def __init__(
        self,
        parts: Sequence[Quadratic],
        n_pixels: Sequence[int],
        penalty: Cost,
        support: NDArray | None,
        largest: float | None,
        positivity: bool,
        progress: bool | None,
    ) -> None:
        self.data, self.n_pixels = parts[0], n_pixels[0]
        self.other = parts[1] if len(parts) == 2 else None
        self.penalty, self.support = penalty, support
        self.positivity, self.progress = positivity, progress
        share = n_pixels[0] / sum(n_pixels)
        #: weight for the part that is solved, over that for all the data
        self.factor = scaled_lambda(1.0, penalty, self.data, share)
        natural = natural_lambda(self.data, penalty, self.n_pixels)
        quadratic = penalty.has_value and not _grows(penalty, *self.data.domain)
        # the eigenvalues of the data term grow with their number
        self.unit = natural / share if quadratic else natural / self.factor
        self.low, self.high = -12.0, 10.0
        if largest is not None and largest > 0:
            self.low, self.high = (math.log2(f * largest / self.unit) for f in (LOWEST, HIGHEST))
        self.table: dict[float, dict[str, Any]] = {}

    def clipped(self, step: float) -> float:
        return min(max(step, self.low), self.high)

    def lam(self, step: float) -> float:
        return float(self.unit * 2.0**step)

    def at(self, step: float) -> dict[str, Any]:
        """The figures of a trial, which is made only once."""
        if step not in self.table:
            self.table[step] = self._trial(step)
        return self.table[step]

    def _trial(self, step: float) -> dict[str, Any]:
        lam = self.lam(step)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a trial may be cut short
            result = regularised_map(
                self.data,
                self.penalty,
                self.factor * lam,
                self.n_pixels,
                self.support,
                positivity=self.positivity,
                tolerance=3e-2,
                max_iter=40,
                progress=self.progress,
                label=f"lambda {lam:.3g}",
            )
        unless_interrupted(result)
        c = supported(result.x, self.support)
        if self.positivity:
            c = np.maximum(c, 0)
        value = self.penalty(c) if self.penalty.has_value else None
        row = {"lam": lam, "misfit": self.data(c), "penalty": value}
        row["iterations"] = len(result.history["iteration"])
        if self.other is not None:
            row["score"] = self.other(c) / self.other.c - 1.0
        return row


def _cross_validation(trials: _Trials) -> float:
    """The minimum of the score over log lambda."""

    def score(step: float) -> float:
        return float(trials.at(step)["score"])

    step = trials.clipped(0.0)
    upward, downward = trials.clipped(step + 1), trials.clipped(step - 1)
    direction = 1 if upward != step and score(upward) < score(step) else -1
    if direction == -1 and not (downward != step and score(downward) < score(step)):
        direction = 0
    while direction:
        following = trials.clipped(step + direction)
        if following == step or not score(following) < score(step):
            break
        step = following
    left, right = trials.clipped(step - 1), trials.clipped(step + 1)
    if left in trials.table and right in trials.table and left < step < right:
        step += _vertex((left, step, right), (score(left), score(step), score(right)))
    return trials.lam(step)


def _vertex(x: tuple[float, float, float], y: tuple[float, float, float]) -> float:
    """Where the parabola through three points is least, from the middle one, which is the lowest; 0 if it is flat."""
    a, b = x[0] - x[1], x[2] - x[1]
    p, q = y[0] - y[1], y[2] - y[1]
    bend = p * b - q * a  # of 2 a b (b - a) times the curvature, whose sign it has
    if not bend > 0:
        return 0.0
    return float(np.clip((p * b * b - q * a * a) / (2 * bend), a / 2, b / 2))


def _discrepancy(trials: _Trials, noise: NoiseLevel) -> float:
    """Where the misfit crosses that of the noise: it grows with lambda."""
    n, empty = trials.n_pixels, trials.data.c
    target = 0.5 * n * noise.variance
    error = 0.5 * n * math.hypot(noise.error, noise.variance * math.sqrt(2 / n))
    if empty - target < 3 * error:
        raise ValueError(
            f"the discrepancy principle cannot tell signal from noise here: the images hold {2 * empty / n:.5g} per"
            f" pixel, the noise in their corners is {noise.variance:.5g} +- {2 * error / n:.2g}; choose lambda by"
            " cross-validation of half sets (--lam auto)"
        )

    def excess(step: float) -> float:
        return float(trials.at(step)["misfit"]) - target

    high = trials.clipped(0.0)
    low = high
    while excess(high) < 0 and high < trials.high:
        low, high = high, trials.clipped(high + 1)
    if low == high:
        low = trials.clipped(high - 1)
        while excess(low) > 0 and low > trials.low:
            high, low = low, trials.clipped(low - 1)
    if excess(low) > 0:
        raise ValueError(
            f"even the smallest weight leaves a misfit above the noise level {noise.variance:.5g} of the images'"
            " corners: that is too low, or the poses or the CTF do not fit the images; choose lambda by"
            " cross-validation of half sets (--lam auto)"
        )
    if excess(high) < 0:
        return trials.lam(high)
    for _ in range(6):
        below, above = excess(low), excess(high)
        if high - low < 0.1 or min(-below, above) < 0.3 * error:
            break
        middle = low + (high - low) * float(np.clip(-below / (above - below), 0.1, 0.9))
        if excess(middle) < 0:
            low = middle
        else:
            high = middle
    below, above = excess(low), excess(high)
    uncertain = error * (high - low) / max(above - below, 1e-300)
    if uncertain > 1:
        raise ValueError(
            f"the discrepancy principle leaves lambda uncertain by a factor of {2 ** min(uncertain, 99):.3g}: the noise"
            f" level {noise.variance:.5g} +- {2 * error / n:.2g} per pixel is not known well enough beside what lambda"
            " changes; choose it by cross-validation of half sets (--lam auto)"
        )
    return trials.lam(low - below / (above - below) * (high - low))
