"""One table of costs, one set of properties; a public cost that is missing from the table is a failure."""

import numpy as np
import pytest
from scipy.optimize import minimize

from invcryo import costs
from invcryo.backend import inner, norm
from invcryo.costs import L1, L21, Box, LeastSquares, NonNegative, Quadratic, SquaredL2, Support
from invcryo.data import Poses
from invcryo.operators import Circulant, Diagonal, Gradient, Identity, Mask, Projector, Toeplitz
from invcryo.rotation import random_rotations
from invcryo.testing import check_gradient, check_prox
from invcryo.window import KaiserBessel

SHAPE = (3, 4, 5)


def data(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def circulant(d):
    return Circulant(np.abs(np.fft.rfftn(data(seed=3))) + 0.1, SHAPE, d)


def least_squares(d, **options):
    A = Gradient(SHAPE, dtype=d) @ Diagonal(data(seed=1), d)
    return LeastSquares(A, data(A.oshape, seed=2).astype(d), **options)


#: name: (class, maker, what it offers). Each takes an array of SHAPE.
TABLE = {
    "l1": (costs.L1, lambda d: L1(), "prox"),
    "l21": (costs.L21, lambda d: L21(), "prox"),
    "squared": (costs.SquaredL2, lambda d: SquaredL2(), "prox gradient quadratic"),
    "squared-centre": (costs.SquaredL2, lambda d: SquaredL2(data().astype(d)), "prox gradient quadratic"),
    "box": (costs.Box, lambda d: Box(-0.25, 0.5), "prox"),
    "box-below": (costs.Box, lambda d: Box(high=0.25), "prox"),
    "nonnegative": (costs.NonNegative, lambda d: NonNegative(), "prox"),
    "support": (costs.Support, lambda d: Support(data() > -0.5), "prox"),
    "quadratic": (
        costs.Quadratic,
        lambda d: Quadratic(circulant(d), data(seed=4).astype(d), 1.5),
        "prox gradient quadratic",
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
    "scaled": (costs.ScaledCost, lambda d: 0.3 * L21(), "prox"),
    "scaled-quadratic": (
        costs.ScaledCost,
        lambda d: 0.3 * SquaredL2(data().astype(d)),
        "prox gradient quadratic",
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
          ("prox", "gradient", "quadratic")}  # fmt: skip


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


@pytest.mark.parametrize("name", OFFERS["prox"])
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


@pytest.mark.parametrize("name", OFFERS["prox"])
def test_prox_against_brute_force(name):
    """A tiny problem solved by SciPy's constrained minimiser: x = a - b with a, b >= 0 makes L1 smooth."""
    shape, tau = (2, 2), 0.6
    z = np.array([[1.3, -0.4], [0.2, -2.1]])
    make = {
        "support": lambda d: Support(np.array([[True, False], [True, True]])),
        "squared-centre": lambda d: SquaredL2(np.array([[0.5, 0.5], [-1.0, 2.0]])),
        "scaled-quadratic": lambda d: 0.3 * SquaredL2(np.array([[0.5, 0.5], [-1.0, 2.0]])),
        "quadratic": lambda d: Quadratic(
            Circulant(np.array([[3.0, 1], [0.5, 2]]), shape, d), z[::-1].copy(), 1.0
        ),
    }.get(name, TABLE[name][1])
    cost = make(np.float64)
    p = cost.prox(z, tau)
    # exhaustive: repeated zooming grid search around the best point, which needs no derivative
    centre, width = z.ravel().copy(), 4.0

    def objective(v):
        return cost(v.reshape(shape)) + ((v - z.ravel()) ** 2).sum() / (2 * tau)

    zero = np.zeros(4)
    best, value = (zero, objective(zero)) if np.isfinite(objective(zero)) else (centre, objective(centre))
    rng = np.random.default_rng(0)
    while width > 1e-7:
        for _ in range(60):
            step = width * rng.uniform(-1, 1, 4) * (rng.random(4) < 0.5)
            for v in (best + step, np.where(rng.random(4) < 0.3, 0.0, best + step), np.clip(best + step, -0.25, 0.5),
                      np.maximum(best + step, 0), np.minimum(best + step, 0.25)):  # fmt: skip
                if objective(v) < value:
                    best, value = v, objective(v)
        width *= 0.8
    np.testing.assert_allclose(p.ravel(), best, atol=2e-4)
    assert objective(p.ravel()) <= value + 1e-12


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
    if "prox" not in offers:
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
