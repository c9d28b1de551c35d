"""One table of costs, one set of properties; a public cost that is missing from the table is a failure."""

import numpy as np
import pytest
from scipy.optimize import minimize

from invcryo import costs
from invcryo.backend import inner, norm
from invcryo.costs import (
    L1,
    L21,
    Box,
    Cost,
    Denoiser,
    GroupLasso,
    LeastSquares,
    NonNegative,
    Quadratic,
    Schatten,
    SquaredL2,
    Support,
)
from invcryo.data import Poses
from invcryo.operators import Circulant, Diagonal, Gradient, Identity, Mask, Projector, Toeplitz
from invcryo.rotation import random_rotations
from invcryo.testing import check_gradient, check_prox
from invcryo.window import KaiserBessel

SHAPE = (6, 2, 5)  # a field of 3 x 3 matrices, too


def data(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def circulant(d):
    return Circulant(np.abs(np.fft.rfftn(data(seed=3))) + 0.1, SHAPE, d)


def periodic(d):
    return Gradient(SHAPE, "periodic", d)


def least_squares(d, **options):
    A = Gradient(SHAPE, dtype=d) @ Diagonal(data(seed=1), d)
    return LeastSquares(A, data(A.oshape, seed=2).astype(d), **options)


def masked(d, shape, A=None, weight=None):
    rng = np.random.default_rng(9)
    S = Mask(rng.random(shape) < 0.5, d) if A is None else A
    return LeastSquares(S, rng.standard_normal(shape).astype(d), weight)


LABELS = np.random.default_rng(7).integers(-1, 6, SHAPE)
WEIGHT = np.array([0.0, 0.7, 1.3, 0.2, 2.0])

NORM, SET = "prox conjugate norm", "prox conjugate"

#: name: (class, maker, what it offers). Each takes an array of SHAPE.
TABLE = {
    "l1": (costs.L1, lambda d: L1(), NORM),
    "l1-weight": (costs.L1, lambda d: L1(np.abs(data(seed=8)).round(1)), NORM),
    "l1-band": (costs.L1, lambda d: L1(WEIGHT[[3, 0, 1, 1, 4, 2], None, None].astype(d)), NORM),
    "l1-columns": (costs.L1, lambda d: L1(WEIGHT), NORM),
    "l21": (costs.L21, lambda d: L21(), NORM),
    "schatten": (costs.Schatten, lambda d: Schatten(), NORM),
    "schatten-2": (costs.Schatten, lambda d: Schatten(2), NORM),
    "schatten-inf": (costs.Schatten, lambda d: Schatten(np.inf), NORM),
    "group": (costs.GroupLasso, lambda d: GroupLasso(LABELS), NORM),
    "group-weights": (costs.GroupLasso, lambda d: GroupLasso(LABELS, [1, 0.3, 0, 2, 1, 0.5]), NORM),
    "squared": (costs.SquaredL2, lambda d: SquaredL2(), "prox conjugate gradient quadratic"),
    "squared-centre": (
        costs.SquaredL2,
        lambda d: SquaredL2(data().astype(d)),
        "prox conjugate gradient quadratic",
    ),
    "box": (costs.Box, lambda d: Box(-0.25, 0.5), SET),
    "box-below": (costs.Box, lambda d: Box(high=0.25), SET),
    "nonnegative": (costs.NonNegative, lambda d: NonNegative(), SET),
    "support": (costs.Support, lambda d: Support(data() > -0.5), SET),
    "support-nonnegative": (costs.Support, lambda d: Support(data() > -0.5, nonnegative=True), SET),
    "denoiser": (costs.Denoiser, lambda d: Denoiser(lambda z, sigma: z / (1 + sigma**2)), "prox valueless"),
    "quadratic": (
        costs.Quadratic,
        lambda d: Quadratic(circulant(d), data(seed=4).astype(d), 1.5),
        "prox conjugate gradient quadratic",
    ),
    "quadratic-periodic": (
        costs.Quadratic,
        lambda d: Quadratic(periodic(d).gram(), periodic(d).gram()(data(seed=4).astype(d)), 0.5),
        "prox conjugate gradient quadratic",
    ),
    "quadratic-no-spectrum": (
        costs.Quadratic,
        lambda d: Quadratic(Gradient(SHAPE, dtype=d).gram(), data(seed=4).astype(d), -2.0),
        "gradient quadratic",
    ),
    "least-squares": (costs.LeastSquares, least_squares, "gradient quadratic"),
    "least-squares-weight": (
        costs.LeastSquares,
        lambda d: least_squares(d, weight=Diagonal(np.abs(data((3, *SHAPE), seed=6)), d)),
        "gradient quadratic",
    ),
    "least-squares-mask": (
        costs.LeastSquares,
        lambda d: masked(d, SHAPE),
        "prox gradient quadratic",
    ),
    "least-squares-diagonal": (
        costs.LeastSquares,
        lambda d: masked(d, SHAPE, Diagonal(data(seed=6), d), Diagonal(np.abs(data(seed=7)), d)),
        "prox gradient quadratic",
    ),
    "scaled": (costs.ScaledCost, lambda d: 0.3 * L21(), NORM),
    "scaled-twice": (costs.ScaledCost, lambda d: 2 * (0.3 * L1(WEIGHT)), NORM),
    "scaled-box": (costs.ScaledCost, lambda d: 0.3 * Box(-0.25, 0.5), SET),
    "scaled-by-zero": (costs.ScaledCost, lambda d: 0 * Support(data() > -0.5, nonnegative=True), SET),
    "scaled-quadratic": (
        costs.ScaledCost,
        lambda d: 0.3 * SquaredL2(data().astype(d)),
        "prox conjugate gradient quadratic",
    ),
    "scaled-circulant": (
        costs.ScaledCost,
        lambda d: 0.3 * Quadratic(circulant(d), data(seed=4).astype(d), 1.5),
        "prox conjugate gradient quadratic",
    ),
    "sum": (
        costs.SumOfCosts,
        lambda d: 0.5 * SquaredL2() + least_squares(d) + 2 * SquaredL2() @ Gradient(SHAPE, dtype=d),
        "gradient quadratic",
    ),
    "sum-mixed": (costs.SumOfCosts, lambda d: SquaredL2() + L1(), ""),
    "composed": (
        costs.Composed,
        lambda d: (0.7 * SquaredL2()) @ Gradient(SHAPE, "periodic", d),
        "gradient quadratic",
    ),
    "composed-l21": (costs.Composed, lambda d: L21() @ Gradient(SHAPE, dtype=d), ""),
}
OFFERS = {feature: [n for n, (_, _, o) in TABLE.items() if feature in o.split()] for feature in
          ("prox", "conjugate", "norm", "gradient", "quadratic", "valueless")}  # fmt: skip
VALUED = [n for n in OFFERS["prox"] if n not in OFFERS["valueless"]]


@pytest.fixture(params=[np.float32, np.float64], ids=["f4", "f8"])
def dtype(request):
    return request.param


def point(dtype, seed=10, size=1.0):
    x = (size * data(seed=seed)).astype(dtype)
    x.setflags(write=False)
    return x


def test_every_public_cost_is_in_the_table():
    listed = {cls for cls, _, _ in TABLE.values()} | {costs.Cost, costs.Term}
    missing = [name for name in costs.__all__ if getattr(costs, name) not in listed]
    assert not missing, f"add {missing} to TABLE"
    for name, (cls, make, _) in TABLE.items():
        assert type(make(np.float32)) is cls, name


@pytest.mark.parametrize("name", VALUED)
@pytest.mark.parametrize("tau", [0.05, 0.7, 20.0])
@pytest.mark.parametrize("size", [0.2, 3.0])
def test_prox_minimises_and_is_firmly_non_expansive(name, tau, size, dtype):
    cost, z = TABLE[name][1](dtype), point(dtype, size=size)
    before = z.copy()
    p = cost.prox(z, tau)
    assert p.dtype == dtype and p.shape == z.shape and not np.shares_memory(p, z)
    assert cost.prox(z, np.float64(tau)).dtype == dtype
    np.testing.assert_array_equal(z, before)
    np.testing.assert_array_equal(cost.prox(z, tau), p)
    for seed in range(3):
        assert check_prox(cost, z, tau, seed) <= 20 * np.finfo(dtype).eps


#: costs of a shape of their own, made for the tiny problem of the brute force
SMALL = {
    "least-squares-mask": lambda d: masked(d, (2, 2)),
    "least-squares-diagonal": lambda d: masked(d, (2, 2), Diagonal(np.array([[1.0, 0.3], [-2.0, 0.0]]), d)),
    "l1-weight": lambda d: L1(np.array([[0.5, 0.0], [2.0, 1.0]])),
    "l1-band": lambda d: L1(np.array([[0.0], [0.8]])),
    "l1-columns": lambda d: L1(np.array([0.3, 1.2])),
    "scaled-twice": lambda d: 2 * (0.3 * L1(np.array([0.3, 1.2]))),
    "group": lambda d: GroupLasso(np.array([[0, 1], [-1, 1]])),
    "group-weights": lambda d: GroupLasso(np.array([[0, 1], [2, 1]]), [0.2, 1.5, 0]),
    "support": lambda d: Support(np.array([[True, False], [True, True]])),
    "support-nonnegative": lambda d: Support(np.array([[True, False], [True, True]]), nonnegative=True),
    "scaled-by-zero": lambda d: 0 * Support(np.array([[True, False], [True, True]]), nonnegative=True),
    "squared-centre": lambda d: SquaredL2(np.array([[0.5, 0.5], [-1.0, 2.0]])),
    "scaled-quadratic": lambda d: 0.3 * SquaredL2(np.array([[0.5, 0.5], [-1.0, 2.0]])),
    "quadratic": lambda d: Quadratic(small_circulant(d), np.array([[0.2, -2.1], [1.3, -0.4]]), 1.0),
    "quadratic-periodic": lambda d: Quadratic(Gradient((2, 2), "periodic", d).gram(), np.array([[1, -1], [-1.0, 1]])),
    "scaled-circulant": lambda d: 0.3 * Quadratic(small_circulant(d), np.array([[0.2, -2.1], [1.3, -0.4]])),
}  # fmt: skip


def small_circulant(d):
    return Circulant(np.array([[3.0, 1], [0.5, 2]]), (2, 2), d)


@pytest.mark.parametrize("name", VALUED)
def test_prox_against_brute_force(name):
    """A tiny problem, solved by a random search that zooms in, without derivatives."""
    z = np.array([[1.3, -0.4], [0.2, -2.1]])
    if "schatten" in name:  # one 2 x 2 matrix, and one that the prox makes zero
        z = np.array([[1.3, 0.2], [-0.4, 0.1], [0.9, -0.1]])
    cost, tau = SMALL.get(name, TABLE[name][1])(np.float64), 0.6
    p = cost.prox(z, tau)

    def objective(v):
        return cost(v.reshape(z.shape)) + ((v - z.ravel()) ** 2).sum() / (2 * tau)

    n = z.size
    start = [v for v in (np.zeros(n), z.ravel().copy(), np.full(n, -0.2)) if np.isfinite(objective(v))]
    best = min(start, key=objective)
    value, width = objective(best), 4.0
    rng = np.random.default_rng(0)
    while width > 1e-7:
        for _ in range(60):
            step = width * rng.uniform(-1, 1, n) * (rng.random(n) < 0.5)
            tried = best + step
            for v in (tried, np.where(rng.random(n) < 0.3, 0.0, tried), np.clip(tried, -0.25, 0.5),
                      np.maximum(tried, 0), np.minimum(tried, 0.25)):  # fmt: skip
                if objective(v) < value:
                    best, value = v, objective(v)
        width *= 0.8
    np.testing.assert_allclose(p.ravel(), best, atol=2e-4)
    assert objective(p.ravel()) <= value + 1e-12


class Conjugate:
    """The conjugate of a cost as a cost, for `check_prox`."""

    def __init__(self, cost):
        self.cost = cost

    def __call__(self, y):
        return self.cost.conjugate(y)

    def prox(self, z, sigma):
        return self.cost.prox_conjugate(z, sigma)


@pytest.mark.parametrize("name", OFFERS["conjugate"])
@pytest.mark.parametrize("sigma", [0.05, 0.7, 20.0])
def test_prox_of_the_conjugate_minimises_and_is_firmly_non_expansive(name, sigma, dtype):
    # the domain of one is a subspace, which `conjugate` takes for 100 units of rounding thick
    tolerance = (2000 if name == "quadratic-periodic" else 20) * np.finfo(dtype).eps
    for size in (0.2, 3.0):
        assert check_prox(Conjugate(TABLE[name][1](dtype)), point(dtype, size=size), sigma) <= tolerance


@pytest.mark.parametrize("name", OFFERS["conjugate"])
def test_conjugate_is_the_supremum(name):
    """``sup <x, y> - f(x)``: passed by no random point, reached by steps ``x = prox_f(x + t y)``; or unbounded."""
    cost, rng = TABLE[name][1](np.float64), np.random.default_rng(0)
    for seed in range(6):
        y = point(np.float64, seed)
        if cost.conjugate(y) == np.inf:
            # it grows along x = y less the projection of y on the domain
            away = y - cost.prox_conjugate(y, 1e-9)
            values = [inner(r * away, y) - cost(r * away) for r in (1e2, 1e4, 1e6)]
            assert values[0] > 0 and values[2] > 90 * values[1] > 8000 * values[0]
            y = cost.prox_conjugate(y, 1.0)
        expected, x = cost.conjugate(y), cost.prox(y, 1.0)
        assert np.isfinite(expected)
        for size in np.geomspace(1e-2, 10, 20):
            v = cost.prox(x + size * rng.standard_normal(SHAPE), 1e-9)
            assert inner(v, y) - cost(v) <= expected + 1e-12 * (1 + abs(expected))
        for _ in range(60):
            x = cost.prox(x + 100 * y, 100)
        assert inner(x, y) - cost(x) == pytest.approx(expected, rel=1e-10, abs=1e-10 * norm(x))


@pytest.mark.parametrize("name", OFFERS["prox"])
@pytest.mark.parametrize("tau", [0.05, 0.7, 20.0])
def test_moreau(name, tau, dtype):
    """``z = prox_f(z) + tau prox_{f* / tau}(z / tau)``, for the direct way and for the general one."""
    cost, eps = TABLE[name][1](dtype), float(np.finfo(dtype).eps)
    for size in (0.2, 3.0):
        z = point(dtype, size=size)
        p, y = cost.prox(z, tau), cost.prox_conjugate(z / dtype(tau), 1 / tau)
        scale = max(norm(z), norm(p), tau * norm(y))
        assert y.dtype == dtype and norm(p + dtype(tau) * y - z) <= 4 * eps * scale
        general = np.empty_like(z)
        Cost._prox_conjugate(cost, z, tau, 1.0, general)
        direct = cost.prox_conjugate(z, tau)
        assert norm(direct - general) <= 8 * eps * max(
            norm(z), tau * norm(cost.prox(z / dtype(tau), 1 / tau))
        )


@pytest.mark.parametrize("name", OFFERS["conjugate"])
def test_fenchel_young(name, dtype):
    """``f(x) + f*(y) >= <x, y>``, equal where y is the subgradient that the prox gives."""
    cost = TABLE[name][1](dtype)
    for seed, tau, size in ((0, 0.3, 1.0), (1, 5.0, 3.0), (2, 0.02, 0.1)):
        z, other = point(dtype, seed, size), point(dtype, seed + 20, size)
        p, y = cost.prox(z, tau), cost.prox_conjugate(z / dtype(tau), 1 / tau)
        x, v = cost.prox(other, 1.0), cost.prox_conjugate(other, 1.0)
        for a, b in ((x, v), (x, y), (p, v), (p, y)):
            f, g = cost(a), cost.conjugate(b)
            assert np.isfinite(f) and np.isfinite(g)
            # b misses the subgradient by units of rounding of z / tau, and a by as many of z
            slack = 16 * np.finfo(dtype).eps * (abs(f) + abs(g) + norm(a) * norm(b) + norm(z) * norm(z) / tau)
            assert f + g - inner(a, b) >= -slack
            if a is p and b is y:
                assert f + g - inner(a, b) <= slack


@pytest.mark.parametrize("name", OFFERS["norm"])
def test_norm_and_dual_norm(name, dtype):
    cost, eps = TABLE[name][1](dtype), float(np.finfo(dtype).eps)
    zero = np.zeros(SHAPE, dtype)
    assert cost(zero) == cost.dual_norm(zero) == cost.conjugate(zero) == 0.0
    for seed in range(3):
        x, y = point(dtype, seed), point(dtype, seed + 20)
        in_ball = cost.prox_conjugate(y, 1.0)  # zero where the norm sees nothing
        for v in (y, in_ball):
            assert abs(inner(x, v)) <= cost(x) * cost.dual_norm(v) * (1 + 8 * eps)
        assert cost(dtype(-3) * x) == pytest.approx(3 * cost(x), rel=8 * eps)
        assert cost.dual_norm(dtype(-3) * in_ball) == pytest.approx(3 * cost.dual_norm(in_ball), rel=8 * eps)
        assert cost(x + y) <= (cost(x) + cost(y)) * (1 + 8 * eps)
        # a large z lies far outside the ball: its projection is on the sphere, and the bound is reached at z's prox
        p, v = cost.prox(dtype(10) * x, 1.0), cost.prox_conjugate(dtype(10) * x, 1.0)
        assert cost.dual_norm(v) == pytest.approx(1.0, rel=8 * eps)
        assert inner(p, v) == pytest.approx(cost(p), rel=100 * eps)
        assert cost.conjugate(v) == 0.0 and cost.conjugate(dtype(1 + 64 * eps) * v) == np.inf


@pytest.mark.parametrize("name", OFFERS["prox"])
@pytest.mark.parametrize("method", ["prox", "prox_conjugate"])
def test_out_gives_the_same_bits(name, method, dtype):
    cost = TABLE[name][1](dtype)
    for size, step in ((0.2, 0.7), (3.0, 0.7), (3.0, 20.0)):
        z = point(dtype, size=size)
        call = getattr(cost, method)
        plain = call(z, step)
        fresh, alias, spread = np.full_like(z, np.nan), z.copy(), np.full((*SHAPE, 2), np.nan, dtype)[..., 0]
        view = alias[:]
        assert call(z, step, out=fresh) is fresh and call(alias, step, out=view) is view
        assert fresh.tobytes() == alias.tobytes() == plain.tobytes()
        # arrays that do not lie in one piece take other code, to the same result
        call(z, step, out=spread)
        strided = np.repeat(z[..., None], 2, axis=-1)[..., 0]
        for other in (spread, call(strided, step), call(strided, step, out=strided)):
            assert norm(other - plain) <= 8 * np.finfo(dtype).eps * norm(z)
        assert other is strided


@pytest.mark.parametrize("name", OFFERS["prox"])
def test_arguments_of_a_prox_are_checked(name):
    cost, z = TABLE[name][1](np.float64), point(np.float64)
    for method, step in (("prox", "tau"), ("prox_conjugate", "sigma")):
        call = getattr(cost, method)
        for wrong in (-0.1, np.nan, np.inf):
            with pytest.raises(ValueError, match=f"{step}, the step of a prox, .* got {wrong}"):
                call(z, wrong)
        with pytest.raises(TypeError, match="takes float32 or float64, got int64; cast it"):
            call(z.astype(np.int64), 1.0)
        with pytest.raises(
            ValueError, match=r"out has shape \(2, 5\) and dtype float64, the argument \(6, 2, 5\)"
        ):
            call(z, 1.0, out=np.empty((2, 5)))
        with pytest.raises(ValueError, match=r"dtype float32, the argument .* float64"):
            call(z, 1.0, out=np.empty(SHAPE, np.float32))
    with pytest.raises(ValueError, match="must be positive, got 0"):
        cost.prox_conjugate(z, 0)
    assert cost.prox(z, 0).dtype == np.float64


@pytest.mark.parametrize("name", OFFERS["prox"])
def test_nan_is_not_hidden(name, dtype):
    z = point(dtype).copy()
    z[2, 1, 3] = np.nan
    cost = TABLE[name][1](dtype)
    if cost.has_value:
        everywhere = "support" not in name and name != "scaled-by-zero"
        assert np.isnan(cost.prox(z, 0.3)).any() == (everywhere or (data() > -0.5)[2, 1, 3])
        assert not cost(z) < np.inf
    else:
        with pytest.raises(ValueError, match="its argument was not finite"):
            cost.prox(z, 0.3)


@pytest.mark.parametrize("name", OFFERS["gradient"])
def test_gradient(name):
    cost, x = TABLE[name][1](np.float64), point(np.float64)
    assert check_gradient(cost, x) <= 1e-9
    single = TABLE[name][1](np.float32).gradient(point(np.float32))
    assert single.dtype == np.float32
    assert norm(single - cost.gradient(x)) <= 1e-5 * norm(single)
    assert not np.shares_memory(cost.gradient(x), x)


@pytest.mark.parametrize("name", OFFERS["quadratic"])
def test_quadratic_form_is_the_cost(name, dtype):
    cost = TABLE[name][1](dtype)
    q = cost.quadratic(SHAPE, dtype)
    assert q.Q.dtype == q.b.dtype == dtype and q.domain == (SHAPE, np.dtype(dtype))
    for seed in range(3):
        x = point(dtype, seed)
        size = abs(cost(x)) + abs(q.c) + 0.5 * abs(inner(x, q.Q(x))) + abs(inner(x, q.b))
        assert abs(q(x) - cost(x)) <= 20 * np.finfo(dtype).eps * size
        scale = norm(q.Q(x)) + norm(q.b)
        assert norm(q.gradient(x) - cost.gradient(x)) <= 50 * np.finfo(dtype).eps * scale


@pytest.mark.parametrize("name", TABLE)
def test_what_a_cost_lacks_it_says(name):
    cost, z = TABLE[name][1](np.float64), point(np.float64)
    offers = TABLE[name][2].split()
    assert cost.has_value == ("valueless" not in offers)
    if not cost.has_value:
        with pytest.raises(NotImplementedError, match="has no value"):
            cost(z)
    if "conjugate" not in offers:
        with pytest.raises(NotImplementedError, match=r"conjugate of .* is not known"):
            cost.conjugate(z)
    if "norm" not in offers:
        with pytest.raises(NotImplementedError, match="is not a norm"):
            cost.dual_norm(z)
    if "prox" not in offers:
        with pytest.raises(NotImplementedError, match="no closed-form prox"):
            cost.prox_conjugate(z, 1.0)
        with pytest.raises(NotImplementedError, match="no closed-form prox"):
            cost.prox(z, 1.0)
    if "gradient" not in offers:
        with pytest.raises(NotImplementedError, match="is not differentiable"):
            cost.gradient(z)
    if "quadratic" not in offers:
        assert cost.quadratic(SHAPE, np.float64) is None


def test_values():
    x = np.array([[3.0, -4.0], [0.0, 12.0]])
    assert L1()(x) == 19.0
    assert L21()(x) == 3.0 + np.hypot(4.0, 12.0)  # groups along the first axis
    assert SquaredL2()(x) == 0.5 * 169
    assert SquaredL2(x)(x) == 0.0
    assert NonNegative()(x) == np.inf and NonNegative()(np.abs(x)) == 0.0
    assert Box(-4, 12)(x) == 0.0 and Box(-3.9, 12)(x) == np.inf and Box(-4, 11.9)(x) == np.inf
    assert Support(x != 0)(x) == 0.0 and Support(x > 0)(x) == np.inf
    assert Quadratic(2.0 * Identity((2, 2), float), x, 7.0)(x) == 169 - 169 + 7
    assert LeastSquares(Identity((2, 2), float), x)(np.zeros((2, 2))) == 0.5 * 169


def test_prox_values():
    z = np.array([[3.0, -0.5], [4.0, 0.0]])
    np.testing.assert_array_equal(L1().prox(z, 1.0), [[2, 0], [3, 0]])
    np.testing.assert_allclose(L21().prox(z, 1.0), [[2.4, 0], [3.2, 0]])  # (3, 4) from length 5 to 4
    np.testing.assert_array_equal(SquaredL2().prox(z, 1.0), z / 2)
    assert np.isfinite(L21().prox(np.zeros((3, 4), np.float32), 1.0)).all()


def test_scaling_sum_and_composition():
    x, d = point(np.float64), np.float64
    G = Gradient(SHAPE, dtype=d)
    f, g = L21() @ G, SquaredL2()
    assert (2 * f + g * 3 + f)(x) == pytest.approx(3 * f(x) + 3 * g(x))
    np.testing.assert_array_equal((2 * L1()).prox(x, 0.3), L1().prox(x, 0.6))
    np.testing.assert_array_equal((2 * (3 * L1())).prox(x, 0.1), L1().prox(x, 6 * 0.1))
    assert ((2 * L1()) @ G)(x) == pytest.approx(2 * L1()(G(x)))
    M = Mask(data() > 0, d)
    assert ((L1() @ G) @ M)(x) == pytest.approx(L1()(G(M(x))))
    terms = (2 * ((3 * L1()) @ G + SquaredL2()) + NonNegative()).terms()
    assert [t.scale for t in terms] == [6, 2, 1]
    assert [type(t.cost) for t in terms] == [L1, SquaredL2, NonNegative]
    assert terms[0].operator is G and terms[1].operator is terms[2].operator is None
    nested = ((L1() @ G + SquaredL2()) @ M).terms()
    np.testing.assert_array_equal(nested[0].operator(x), G(M(x)))
    np.testing.assert_array_equal(nested[1].operator(x), M(x))


def test_zero_times_a_constraint_is_the_constraint():
    x = point(np.float64)
    assert (0 * NonNegative())(x) == np.inf and (0 * NonNegative())(np.abs(x)) == 0.0
    assert (0 * L1())(x) == 0.0
    np.testing.assert_array_equal((0 * NonNegative()).prox(x, 1.0), np.maximum(x, 0))
    np.testing.assert_array_equal((0 * L1()).prox(x, 1.0), x)


def test_structure_survives_scaling_and_composition():
    """What lets ADMM divide in Fourier space: the quadratic of a scaled, composed cost has a spectrum."""
    periodic = Gradient(SHAPE, "periodic", np.float64)
    q = (
        0.7 * SquaredL2() @ periodic + 0.2 * SquaredL2() + Quadratic(circulant(np.float64), data())
    ).quadratic(SHAPE, np.float64)
    assert q.Q.spectrum is not None
    P = Projector(Poses(random_rotations(2, rng=0)), KaiserBessel(), 6, dtype=np.float64)
    y = data((2, 6, 6))
    assert isinstance((0.5 * LeastSquares(P, y)).quadratic().Q, Toeplitz)
    assert isinstance(((0.5 * SquaredL2(y)) @ P).quadratic().Q, Toeplitz)


def test_composed_quadratic_solves_its_prox():
    """prox of a quadratic with a spectrum against a dense solution."""
    z, tau = point(np.float64), 0.8
    q = ((0.7 * SquaredL2()) @ Gradient(SHAPE, "periodic", np.float64)).quadratic()
    p = q.prox(z, tau)
    Q = np.stack([q.Q.matvec(e) for e in np.eye(60)])
    np.testing.assert_allclose(p.ravel(), np.linalg.solve(Q + np.eye(60) / tau, z.ravel() / tau), atol=1e-12)
    assert check_prox(q, z, tau) < 1e-14


def test_indefinite_quadratic_refuses_a_large_step():
    q = Quadratic(Circulant(np.array([[2.0, -0.5], [1, 1]]), (2, 2), float), np.zeros((2, 2)))
    q.prox(np.ones((2, 2)), 1.9)
    with pytest.raises(ValueError, match=r"smallest eigenvalue -0.5.*use tau below 2"):
        q.prox(np.ones((2, 2)), 2.0)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: -1 * L1(), "not negative, got -1"),
        (lambda: np.nan * L1(), "finite"),
        (lambda: Box(1, 0), "empty box"),
        (lambda: Support(np.ones((2, 2))), "boolean mask"),
        (lambda: Quadratic(Gradient((4, 4)), np.zeros((4, 4), np.float32)), "square Q"),
        (lambda: Quadratic(Identity((4, 4)), np.zeros(4, np.float32)), "square Q"),
        (lambda: SquaredL2().quadratic(), "does not know the shape"),
        (lambda: SquaredL2(np.zeros(3))(np.zeros(4)), "centre has shape"),
        (lambda: SquaredL2(np.zeros(3)).quadratic((4,)), "centre has shape"),
        (lambda: LeastSquares(Identity((4, 4)), np.zeros((3, 4), np.float32)), "data have shape"),
        (lambda: LeastSquares(Identity((0, 4)), np.zeros((0, 4), np.float32)), "data are empty"),
        (
            lambda: LeastSquares(Identity((4, 4)), np.zeros((4, 4), np.float32), Identity((3, 4))),
            "weight .* does not fit",
        ),
    ],
)
def test_nonsense_is_refused(build, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build()
    with pytest.raises(TypeError):
        L1() * L1()
    with pytest.raises(TypeError):
        L1() @ np.ones(3)


def test_the_checks_find_wrong_costs():
    """An L1 that shrinks by twice as much, a gradient off by 1 %, a projection on the wrong set."""
    z = point(np.float64)

    class Greedy(L1):
        def prox(self, z, tau):
            return super().prox(z, 2 * tau)

    class Lazy(L1):
        def prox(self, z, tau):
            return super().prox(z, 0.9 * tau)

    class Outside(NonNegative):
        def prox(self, z, tau):
            return z

    class Off(SquaredL2):
        def gradient(self, x):
            return 1.01 * x

    assert check_prox(Greedy(), z, 0.5) > 1e-3
    assert check_prox(Lazy(), z, 0.5) > 1e-4
    assert check_prox(Outside(), z, 0.5) == np.inf
    assert check_gradient(Off(), z) > 1e-3
    assert check_gradient(SquaredL2(), z) < 1e-9


def test_minimum_of_a_smooth_cost_is_where_scipy_finds_it():
    """Value and gradient work together: L-BFGS on a composed cost ends where the normal equations do."""
    cost = least_squares(np.float64) + 0.5 * SquaredL2()
    q = cost.quadratic(SHAPE, np.float64)
    found = minimize(
        lambda v: (cost(v.reshape(SHAPE)), cost.gradient(v.reshape(SHAPE)).ravel()),
        np.zeros(60), jac=True, method="L-BFGS-B", options={"gtol": 1e-10, "ftol": 1e-15, "maxiter": 500},
    )  # fmt: skip
    Q = np.stack([q.Q.matvec(e) for e in np.eye(60)])
    np.testing.assert_allclose(found.x, np.linalg.solve(Q, q.b.ravel()), atol=1e-6)
