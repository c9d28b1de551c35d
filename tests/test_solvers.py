"""Solvers against dense answers of tiny problems, and the driver against what users do to it."""

import logging
import signal
import warnings

import numpy as np
import pytest
from scipy.optimize import nnls

from invcryo.backend import inner, norm, use
from invcryo.costs import L1, L21, Box, LeastSquares, NonNegative, Quadratic, SquaredL2, Support
from invcryo.data import Poses
from invcryo.operators import Circulant, Diagonal, Gradient, Identity, LinOp, Projector
from invcryo.rotation import random_rotations
from invcryo.solvers import (
    NonFiniteError,
    State,
    admm,
    any_of,
    cg,
    circulant_preconditioner,
    max_seconds,
    relative_change,
    residual_below,
    run,
)
from invcryo.window import KaiserBessel

N = 6  # 216 unknowns: every answer below is also computed with dense matrices
SHAPE = (N, N, N)


@pytest.fixture(autouse=True)
def one_thread():
    with use(threads=1):
        yield


def dense(A):
    return np.stack([A.matvec(e) for e in np.eye(A.shape[1])], axis=1)


@pytest.fixture(autouse=True)
def ctrl_c():
    """Ctrl-C as Python sets it up; jobs in the background of a shell inherit that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def quiet(states, max_iter, **options):
    return run(states, max_iter, progress=False, **options)


@pytest.fixture(scope="module")
def problem():
    """Twelve noisy views of positive blobs: (projector, images)."""
    rng = np.random.default_rng(4)
    P = Projector(Poses(random_rotations(12, rng=rng)), KaiserBessel(), N, 12, dtype=np.float64)
    z, y, x = np.ogrid[-3:3, -3:3, -3:3]
    truth = np.exp(-(x**2 + (y - 1) ** 2 + z**2) / 2.5) - 0.05 * (x > 0)
    images = P(truth)
    return P, images + 0.1 * images.std() * rng.standard_normal(images.shape)


@pytest.fixture(scope="module")
def data(problem):
    return LeastSquares(*problem).quadratic()


def ridge(data, amount=1.0):
    return (data + amount * SquaredL2()).quadratic(SHAPE, np.float64)


# -- conjugate gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("preconditioned", [False, True])
def test_cg_solves(data, preconditioned):
    q = ridge(data)
    M = circulant_preconditioner(q.Q) if preconditioned else None
    result = quiet(cg(q.Q, q.b, M=M), 400, stop=residual_below(1e-11))
    exact = np.linalg.solve(dense(q.Q), q.b.ravel())
    assert np.linalg.norm(result.x.ravel() - exact) <= 1e-8 * np.linalg.norm(exact)
    assert result.converged and result.stopped_by == "residual_below(1e-11)"
    # what is reported is what it is
    assert result.history["residual"][-1] == pytest.approx(norm(q.b - q.Q(result.x)) / norm(q.b), abs=1e-12)
    assert result.history["objective"][-1] + q.c == pytest.approx(q(result.x), rel=1e-10)
    assert (np.diff(result.history["objective"]) <= 1e-12 * abs(result.history["objective"][-1])).all()
    # the gap is estimated: without a preconditioner the pace varies
    objective, gap = (np.array(result.history[name]) for name in ("objective", "gap"))
    true = (objective - q(exact.reshape(SHAPE)) + q.c) / abs(objective)
    assert (gap[:2] == 1).all()
    seen = (gap < 1) & (true > 1e-12)
    assert seen.sum() > 5
    ratio = gap[seen] / true[seen]
    assert ratio.min() > (0.3 if preconditioned else 0.1) and 0.3 < np.median(ratio) < 3


def test_preconditioner_saves_iterations(data):
    q = ridge(data, 0.3)
    steps = [
        len(quiet(cg(q.Q, q.b, M=M), 500, stop=residual_below(1e-6)).history["iteration"])
        for M in (None, circulant_preconditioner(q.Q))
    ]
    assert steps[1] < 0.7 * steps[0]
    with pytest.raises(ValueError, match="no nearest circulant"):
        circulant_preconditioner(Gradient(SHAPE).H @ Gradient(SHAPE))


def test_cg_ends_within_the_dimension(rng):
    """Five distinct eigenvalues: five iterations."""
    Q = Diagonal(np.tile([1.0, 2, 3, 5, 8], 20))
    result = quiet(cg(Q, rng.standard_normal(100)), 5)
    assert result.history["residual"][-1] < 1e-13


def test_cg_in_single_precision(data):
    q = ridge(data)
    Q32 = Quadratic(Diagonal(np.full(SHAPE, 2.0), np.float32), np.ones(SHAPE, np.float32))
    assert quiet(cg(Q32.Q, Q32.b), 3).x.dtype == np.float32
    b = q.b.astype(np.float32)

    class Single(LinOp):
        def __init__(self):
            super().__init__(SHAPE, SHAPE, np.float32)

        def _apply(self, x):
            return q.Q(x.astype(np.float64)).astype(np.float32)

    result = quiet(cg(Single(), b), 100, stop=residual_below(1e-5))
    assert result.x.dtype == np.float32
    exact = np.linalg.solve(dense(q.Q), q.b.ravel())
    assert np.linalg.norm(result.x.ravel() - exact) <= 1e-3 * np.linalg.norm(exact)


def test_cg_from_a_start(data, rng):
    q = ridge(data)
    x0 = rng.standard_normal(SHAPE)
    x0.setflags(write=False)
    exact = np.linalg.solve(dense(q.Q), q.b.ravel()).reshape(SHAPE)
    result = quiet(cg(q.Q, q.b, x0), 300, stop=residual_below(1e-10))
    np.testing.assert_allclose(result.x, exact, atol=1e-7)


def test_cg_of_nothing_and_of_a_singular_operator(rng, caplog):
    zero = quiet(cg(Identity((4,), float), np.zeros(4)), 10)
    assert zero.stopped_by == "solver" and not zero.x.any()
    # consistent: the answer of least norm, without a word
    Q = Diagonal(np.array([1.0, 0.0, 2.0]))
    result = quiet(cg(Q, np.array([1.0, 0.0, 1.0])), 10)
    np.testing.assert_allclose(result.x, [1, 0, 0.5], atol=1e-14)
    assert not caplog.records
    # not consistent, and indefinite: it ends, and says why
    for Q, b in ((Diagonal(np.array([0.0, 0.0])), [1.0, 1.0]), (Diagonal(np.array([1.0, -2.0])), [1.0, 1.0])):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            result = quiet(cg(Q, np.array(b)), 10)
        assert "no positive curvature" in caplog.text and np.isfinite(result.x).all()


# -- ADMM --------------------------------------------------------------------------------------------------


def test_admm_of_positivity_is_nnls(problem, data):
    P, y = problem
    exact, _ = nnls(dense(P), y.ravel(), maxiter=5000)
    result = quiet(admm(data + NonNegative(), 5.0), 3000, stop=residual_below(1e-7, "primal", "dual"))
    assert result.converged
    split = result.state.memory["splits"][0]
    assert split.min() >= 0  # exactly in the domain
    assert 0.5 * norm(P(split) - y) ** 2 <= 0.5 * norm(P(exact.reshape(SHAPE)) - y) ** 2 * (1 + 1e-9)
    np.testing.assert_allclose(split.ravel(), exact, atol=1e-4 * exact.max())


def test_admm_of_l1_is_soft_thresholding(rng):
    z = rng.standard_normal(SHAPE)
    cost = Quadratic(Identity(SHAPE, float), z) + 0.3 * L1()
    result = quiet(admm(cost, 1.0), 200, stop=residual_below(1e-10, "primal", "dual"))
    np.testing.assert_allclose(result.x, np.sign(z) * np.maximum(np.abs(z) - 0.3, 0), atol=1e-8)


def test_admm_of_a_box_and_a_support(rng):
    z, mask = 2 * rng.standard_normal(SHAPE), rng.random(SHAPE) > 0.5
    cost = Quadratic(Identity(SHAPE, float), z) + Box(-0.5, 1.0) + Support(mask)
    result = quiet(admm(cost, (1.0, 1.0)), 500, stop=residual_below(1e-10, "primal", "dual"))
    np.testing.assert_allclose(result.x, np.where(mask, np.clip(z, -0.5, 1.0), 0), atol=1e-7)


def tv_denoised(z, lam, iterations=4000):
    """Total variation denoising by accelerated projected gradients on the dual, in plain NumPy: x, gap."""

    def gradient(x):
        return np.stack([np.diff(x, axis=a, append=np.take(x, [-1], a)) for a in range(3)])

    def adjoint(p):
        out = np.zeros_like(z)
        for a in range(3):
            q = np.moveaxis(p[a].copy(), a, 0)
            q[-1] = 0
            np.moveaxis(out, a, 0)[...] += np.concatenate([-q[:1], q[:-1] - q[1:]])
        return out

    p = momentum = np.zeros((3, *z.shape))
    t = 1.0
    for _ in range(iterations):
        new = momentum + gradient(z - adjoint(momentum)) / 12
        new *= lam / np.maximum(np.sqrt((new**2).sum(0)), lam)
        t_new = (1 + np.sqrt(1 + 4 * t * t)) / 2
        momentum = new + (t - 1) / t_new * (new - p)
        p, t = new, t_new
    x = z - adjoint(p)
    primal = 0.5 * ((x - z) ** 2).sum() + lam * np.sqrt((gradient(x) ** 2).sum(0)).sum()
    return x, primal - 0.5 * ((z**2).sum() - (x**2).sum())


@pytest.mark.parametrize("relaxation", [1.0, 1.6])
def test_tv_denoising_against_the_dual(relaxation, rng):
    z = np.zeros(SHAPE)
    z[2:5, 1:4, 2:] = 1
    z += 0.2 * rng.standard_normal(SHAPE)
    expected, gap = tv_denoised(z, 0.15)
    assert gap < 1e-6
    cost = SquaredL2(z) + 0.15 * (L21() @ Gradient(SHAPE, dtype=np.float64))
    result = quiet(admm(cost, 2.0, relaxation=relaxation), 3000, stop=residual_below(1e-6, "primal", "dual"))
    assert result.converged
    # what the gap guarantees, by strong convexity
    assert norm(result.x - expected) <= (2 * gap) ** 0.5 + 1e-4
    assert result.history["objective"][-1] == pytest.approx(cost(result.x), rel=1e-9)
    assert cost(result.x) <= cost(expected) + 1e-6


def test_tv_denoising_against_pyproximal(rng):
    pyproximal = pytest.importorskip("pyproximal")
    z = np.zeros((9, 8))
    z[2:6, 3:] = 1
    z += 0.2 * rng.standard_normal(z.shape)
    expected = (
        pyproximal.TV(dims=z.shape, sigma=0.2, niter=3000, rtol=1e-12).prox(z.ravel(), 1.0).reshape(z.shape)
    )
    cost = SquaredL2(z) + 0.2 * (L21() @ Gradient(z.shape, dtype=np.float64))
    result = quiet(admm(cost, 2.0), 3000, stop=residual_below(1e-6, "primal", "dual"))
    assert result.converged and cost(result.x) <= cost(expected) + 1e-5
    np.testing.assert_allclose(result.x, expected, atol=5e-3)


def dense_admm(Q, b, terms, rhos, iterations, relaxation=1.0):
    """The slow twin: the same algorithm with matrices and exact solutions; terms are (L, prox)."""
    x = np.zeros(len(b))
    us = [prox(L @ x, 1 / r) for (L, prox), r in zip(terms, rhos, strict=True)]
    duals = [np.zeros(len(L)) for L, _ in terms]  # multipliers alpha of <alpha, u - L x>
    system = Q + sum(r * L.T @ L for (L, _), r in zip(terms, rhos, strict=True))
    for _ in range(iterations):
        right = b + sum(L.T @ (r * u + a) for (L, _), r, u, a in zip(terms, rhos, us, duals, strict=True))
        x = np.linalg.solve(system, right)
        for i, ((L, prox), r) in enumerate(zip(terms, rhos, strict=True)):
            v = relaxation * L @ x + (1 - relaxation) * us[i]
            us[i] = prox(v - duals[i] / r, 1 / r)
            duals[i] = duals[i] + r * (us[i] - v)
    return x, us


@pytest.mark.parametrize("relaxation", [1.0, 1.5])
@pytest.mark.parametrize("path", ["inner loop", "no preconditioner", "exact"])
def test_admm_is_the_algorithm(data, path, relaxation):
    """Iterate by iterate: Donati 2020, Algorithms 1 and 2, with one sign of the multipliers."""
    boundary = "periodic" if path == "exact" else "zero-flux"
    if path == "exact":
        data = Quadratic(Circulant(data.Q.nearest_circulant(), SHAPE, np.float64), data.b, data.c)
    G = Gradient(SHAPE, boundary, np.float64)
    g = dense(G)
    lam = 0.05 * np.abs(data.b).max()
    rhos = (4.0, 7.0)

    def shrink(v, tau):
        v = v.reshape(3, -1)
        length = np.sqrt((v**2).sum(0))
        return (v * np.maximum(1 - lam * tau / np.maximum(length, 1e-300), 0)).ravel()

    terms = [(g, shrink), (np.eye(N**3), lambda v, tau: np.maximum(v, 0))]
    expected, splits = dense_admm(dense(data.Q), data.b.ravel(), terms, rhos, 12, relaxation)
    cost = data + lam * (L21() @ G) + NonNegative()
    options = {"inner_iterations": 200, "relaxation": relaxation, "precondition": path != "no preconditioner"}
    result = quiet(admm(cost, rhos, **options), 12)
    np.testing.assert_allclose(result.x.ravel(), expected, atol=1e-8 * np.abs(expected).max())
    for ours, theirs in zip(result.state.memory["splits"], splits, strict=True):
        np.testing.assert_allclose(ours.ravel(), theirs, atol=1e-8 * np.abs(theirs).max())
    if path == "exact":  # no inner loop at all
        once = quiet(admm(cost, rhos, inner_iterations=1, relaxation=relaxation), 12)
        np.testing.assert_array_equal(once.x, result.x)
    x = result.x
    objective = data(x) + lam * L21()(G(x))  # constraints left out
    assert result.history["objective"][-1] == pytest.approx(objective, rel=1e-8)
    primal = (
        norm(G(x) - result.state.memory["splits"][0]) ** 2 + norm(x - result.state.memory["splits"][1]) ** 2
    ) ** 0.5
    size = (
        max(sum(norm(u) ** 2 for u in result.state.memory["splits"]), norm(G(x)) ** 2 + norm(x) ** 2) ** 0.5
    )
    assert result.history["primal"][-1] == pytest.approx(primal / size, rel=1e-8)


def test_few_inner_steps_reach_the_same_minimum(data):
    lam = 0.05 * np.abs(data.b).max()
    cost = data + lam * (L21() @ Gradient(SHAPE, dtype=np.float64)) + NonNegative()
    values = []
    for options in ({}, {"inner_iterations": 1}, {"precondition": False, "inner_iterations": 5}, {"relaxation": 1.7},
                    {"adapt": True}):  # fmt: skip
        result = quiet(admm(cost, 20.0, **options), 4000, stop=residual_below(1e-7, "primal", "dual"))
        assert result.converged, options
        values.append(result.history["objective"][-1])
    assert np.ptp(values) <= 1e-5 * abs(values[0])


def test_padded_admm_has_the_same_minimum(data):
    """House, section 2.4: on the padded grid the system is diagonal in Fourier space; the support is a prox."""
    T = data.Q
    S = T.pad
    inside = np.zeros(S.oshape, bool)
    inside[S._place] = True
    padded = Quadratic(T.circulant, S(data.b), data.c)
    # the split must outweigh the negative part twice, or the multipliers grow without end
    rho = -2.0 * float(T.circulant.spectrum.min())
    tikhonov, stop = 20.0 * SquaredL2(), residual_below(1e-8, "primal", "dual")
    padded_cost = padded + tikhonov + Support(inside, nonnegative=True)
    result = quiet(admm(padded_cost, rho, relaxation=1.0), 2000, stop=stop)
    classic = quiet(admm(data + tikhonov + NonNegative(), rho), 2000, stop=stop)
    assert result.converged and classic.converged
    np.testing.assert_allclose(S.adjoint(result.x), classic.x, atol=1e-5 * classic.x.max())
    for factor in (0.5, 1.1, 1.9):  # above 1 the linear system is definite, and the iteration still diverges
        small = -factor * float(T.circulant.spectrum.min())
        with pytest.raises(ValueError, match=r"indefinite: its smallest eigenvalue is -.*twice its size"):
            next(admm(padded + Box(low=0.0), small, relaxation=1.0))
    with pytest.raises(ValueError, match=r"indefinite .* relaxation=1"):
        next(admm(padded_cost, rho))


def test_inner_loop_free_is_the_algorithm(data):
    """Donati 2020, Algorithm 6 and eq. 4.55, iterate by iterate against matrices."""
    G = Gradient(SHAPE, "periodic", np.float64)
    g, Q, b = dense(G), dense(data.Q), data.b.ravel()
    A = 1.01 * np.linalg.eigvalsh(Q)[-1]
    lam, rho, x = 0.05 * np.abs(b).max(), 4.0, np.zeros(N**3)
    cost = data + lam * (L21() @ G) + NonNegative()
    u, v = np.zeros(3 * N**3), np.zeros(N**3)
    au, av = np.zeros_like(u), np.zeros_like(v)
    system = A * np.eye(N**3) + rho * (g.T @ g + np.eye(N**3))
    result = quiet(admm(cost, rho, relaxation=1.0, majoriser=A), 15)
    for _ in range(15):
        right = b + g.T @ (rho * u + au) + rho * v + av + A * x - Q @ x
        x = np.linalg.solve(system, right)
        u = L21().prox((g @ x - au / rho).reshape(3, *SHAPE), lam / rho).ravel()
        v = np.maximum(x - av / rho, 0)
        au, av = au + rho * (u - g @ x), av + rho * (v - x)
    np.testing.assert_allclose(result.x.ravel(), x, atol=1e-10 * np.abs(x).max())


def test_inner_loop_free_needs_periodic_operators(data):
    with pytest.raises(ValueError, match="periodic"):
        next(admm(data + L21() @ Gradient(SHAPE, dtype=np.float64), 1.0, majoriser=5.0))
    with pytest.raises(ValueError, match="positive number, got nan"):
        next(admm(data + NonNegative(), 1.0, majoriser=np.nan))


def test_the_norm_is_that_of_eigsh(data):
    from scipy.sparse.linalg import eigsh

    largest = float(eigsh(data.Q, k=1, return_eigenvectors=False)[0])
    assert data.Q.norm() == pytest.approx(largest, rel=1e-2) and 1.01 * data.Q.norm() >= largest


def test_quadratic_terms_in_any_order(data):
    """SquaredL2 knows no shape by itself; it may stand first, last, scaled, composed."""
    G = Gradient(SHAPE, dtype=np.float64)
    parts = [0.5 * SquaredL2(), data, 2.0 * SquaredL2() @ G, NonNegative()]
    expected = None
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]):
        cost = parts[order[0]]
        for i in order[1:]:
            cost = cost + parts[i]
        x = quiet(admm(cost, 10.0, inner_iterations=40), 30).x
        expected = x if expected is None else expected
        np.testing.assert_allclose(x, expected, atol=1e-9 * np.abs(expected).max())
    alone = quiet(admm(parts[0] + data, [], inner_iterations=40), 60, stop=relative_change(1e-15))
    q = ridge(data, 0.5)
    np.testing.assert_allclose(alone.x.ravel(), np.linalg.solve(dense(q.Q), q.b.ravel()), atol=1e-6)


def test_admm_keeps_single_precision(rng):
    z = rng.standard_normal(SHAPE).astype(np.float32)
    cost = SquaredL2(z) + 0.1 * (L21() @ Gradient(SHAPE)) + NonNegative()
    for options in ({}, {"relaxation": 1.5}):
        result = quiet(admm(cost, np.float64(1.0), **options), 20)
        assert result.x.dtype == np.float32
        assert all(v.dtype == np.float32 for k in ("splits", "duals") for v in result.state.memory[k])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda d: admm(L1(), 1.0), "data term such as LeastSquares is needed"),
        (lambda d: admm(L1() @ Gradient(SHAPE, dtype=float), 1.0), "needs a quadratic term"),
        (lambda d: admm(d + L1() + NonNegative(), (1.0,)), "2 split terms need as many positive rho"),
        (lambda d: admm(d + L1(), 0.0), "positive rho"),
        (lambda d: admm(d + L1(), (-1.0,)), "positive rho"),
        (lambda d: admm(d + L1(), 1.0, relaxation=2.0), r"relaxation must lie in \(0, 2\)"),
    ],
)
def test_admm_refuses(data, make, message):
    with pytest.raises(ValueError, match=message):
        next(make(data))


# -- resuming ----------------------------------------------------------------------------------------------


def solver(name, data, **options):
    """A function that makes a fresh solver, or one that goes on from a state."""
    lam = 0.05 * np.abs(data.b).max()
    q = ridge(data)
    if name == "cg":
        return lambda **o: cg(q.Q, q.b, **o)
    if name == "pcg":
        return lambda **o: cg(q.Q, q.b, M=circulant_preconditioner(q.Q), **o)
    if name == "admm exact":
        periodic = Quadratic(Circulant(data.Q.nearest_circulant(), SHAPE, np.float64), data.b, data.c)
        cost = periodic + lam * (L21() @ Gradient(SHAPE, "periodic", np.float64)) + NonNegative()
    else:
        boundary = "periodic" if name == "admm inner-loop-free" else "zero-flux"
        cost = data + lam * (L21() @ Gradient(SHAPE, boundary, np.float64)) + NonNegative()
    if name == "admm by itself":
        return lambda **o: admm(cost, **o)
    extra = {
        "admm": {"relaxation": 1.0, "inner_iterations": 3},
        "admm adapted": {"adapt": True},
        "admm inner-loop-free": {"majoriser": 1.01 * data.Q.norm()},
    }
    return lambda **o: admm(cost, (5.0, 9.0), **extra.get(name, {}), **o)


SOLVERS = [
    "cg",
    "pcg",
    "admm",
    "admm exact",
    "admm relaxed",
    "admm adapted",
    "admm by itself",
    "admm inner-loop-free",
]


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("first", [1, 7, 20])
def test_a_resumed_run_equals_an_unbroken_one(data, name, first):
    make = solver(name, data)
    whole = quiet(make(), 26)
    one = quiet(make(), first)
    kept = one.x.copy()
    two = quiet(make(state=one.state), 26 - first)
    np.testing.assert_array_equal(two.x, whole.x)  # bit by bit
    for key in whole.history:
        if key != "seconds":
            assert one.history[key] + two.history[key] == whole.history[key], key
    np.testing.assert_array_equal(one.x, kept)  # the first result is not touched by the second run
    assert two.history["iteration"] == list(range(first + 1, 27))


class Interrupting(LinOp):
    """Passes to ``Q``; at one call the user presses Ctrl-C, so many times."""

    def __init__(self, Q, call, times=1):
        super().__init__(Q.ishape, Q.oshape, Q.dtype)
        self.Q, self.left, self.times = Q, [call], times

    def _apply(self, x):
        self.left[0] -= 1
        for _ in range(self.times if self.left[0] == 0 else 0):
            signal.raise_signal(signal.SIGINT)
        return self.Q._apply(x)

    def nearest_circulant(self):
        return self.Q.nearest_circulant()


@pytest.mark.parametrize("call", [3, 5, 8])
def test_an_interrupted_cg_can_be_resumed(data, call, caplog):
    """Ctrl-C in the middle of an iteration: the state is that of the last whole one, not half of the next."""
    q = ridge(data)
    whole = quiet(cg(q.Q, q.b), 12)
    stopped = quiet(cg(Interrupting(q.Q, call), q.b), 12)
    assert stopped.stopped_by == "interrupt" and not stopped.converged
    assert "interrupted at iteration" in caplog.text
    done = len(stopped.history["iteration"])
    again = quiet(cg(q.Q, q.b, state=stopped.state), 12 - done)
    np.testing.assert_array_equal(again.x, whole.x)


def test_an_interrupted_admm_can_be_resumed(data):
    lam = 0.05 * np.abs(data.b).max()

    def make(call, times=1, **options):
        q = Quadratic(Interrupting(data.Q, call, times), data.b, data.c)
        return admm(q + lam * (L21() @ Gradient(SHAPE, dtype=np.float64)) + NonNegative(), **options)

    whole = quiet(make(10**6), 10)
    stopped = quiet(make(4), 10)
    done = stopped.state.iteration
    assert stopped.stopped_by == "interrupt" and 0 < done < 10
    again = quiet(make(10**6, state=stopped.state), 10 - done)
    np.testing.assert_array_equal(again.x, whole.x)

    # a second Ctrl-C does not wait: the iterate before is kept, and a new run can only begin from it
    torn = quiet(make(5, times=2), 10)
    assert torn.stopped_by == "interrupt" and torn.state.memory == {}
    before = quiet(make(10**6), torn.state.iteration)
    np.testing.assert_array_equal(torn.x, before.x)
    from_there = quiet(make(10**6, state=torn.state), 3)
    np.testing.assert_array_equal(from_there.x, quiet(make(10**6, x0=torn.x), 3).x)


def test_ctrl_c_is_the_users_again_after_a_run():
    before = signal.getsignal(signal.SIGINT)
    quiet(counting(), 3)
    assert signal.getsignal(signal.SIGINT) is before


# -- the driver --------------------------------------------------------------------------------------------


def counting(values=None, x=None):
    """A solver that does nothing: states with figures 1, 1/2, 1/3, ... or those given."""
    x = np.zeros(3) if x is None else x
    k = 0
    while values is None or k < len(values):
        k += 1
        x += 1
        yield State(
            k, x, {"objective": 1 / k if values is None else values[k - 1], "residual": 1 / k}, {"k": k}
        )


def test_run_counts_and_records():
    result = quiet(counting(), 5)
    assert result.stopped_by == "max_iter" and not result.converged
    assert result.history["iteration"] == [1, 2, 3, 4, 5]
    assert result.history["objective"] == [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]
    assert (np.diff(result.history["seconds"]) >= 0).all() and result.seconds >= result.history["seconds"][-1]
    assert result.state.iteration == 5 and result.state.memory == {"k": 5}
    np.testing.assert_array_equal(result.x, [5, 5, 5])
    ended = quiet(counting([3.0, 2.0]), 5)
    assert ended.stopped_by == "solver" and ended.converged and len(ended.history["objective"]) == 2


def test_reaching_max_iter_with_a_rule_is_a_warning():
    """T19: nobody overlooks it, and it says what to do."""
    with pytest.warns(
        RuntimeWarning, match=r"data: stopped at max_iter = 3 .*resume with state=result.state"
    ):
        result = quiet(counting(), 3, stop=residual_below(1e-3), label="data")
    assert not result.converged
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet(counting(), 3)  # without a rule it was asked for
        assert quiet(counting(), 4, stop=residual_below(0.25)).converged  # the rule holds at the last one


def test_stopping_rules():
    for rule, iterations, name in (
        (residual_below(0.21), 5, "residual_below(0.21)"),
        (residual_below(0.21, "residual", "objective"), 5, "residual_below(0.21)"),
        (relative_change(0.21), 5, "relative_change(0.21)"),
        (relative_change(0.21, "residual"), 5, "relative_change(0.21)"),
        (max_seconds(0.0), 1, "max_seconds(0)"),
        (any_of(residual_below(0.1), relative_change(0.26)), 4, "relative_change(0.26)"),
        (any_of(residual_below(0.3), max_seconds(1e9)), 4, "residual_below(0.3)"),
        (lambda state: state.iteration == 2, 2, "<lambda>"),
    ):
        result = quiet(counting(), 50, stop=rule)
        assert (len(result.history["iteration"]), result.stopped_by) == (iterations, name)
        assert result.converged
    with pytest.raises(KeyError, match=r"no figure 'primal' to stop by: it gives objective, residual"):
        quiet(counting(), 5, stop=residual_below(0.1, "primal"))


def test_relative_change_needs_two_values():
    assert len(quiet(counting([5.0, 5.0, 5.0]), 9, stop=relative_change(0.0)).history["iteration"]) == 2
    assert len(quiet(counting([0.0, 0.0, 0.0]), 9, stop=relative_change(0.0)).history["iteration"]) == 2


def test_callback_sees_each_state_and_may_end_the_run():
    seen = []

    def callback(state):
        seen.append((state.iteration, state.x))
        if state.iteration == 3:
            raise StopIteration

    result = quiet(counting(), 10, callback=callback)
    assert [k for k, _ in seen] == [1, 2, 3] and result.stopped_by == "callback" and not result.converged
    np.testing.assert_array_equal(result.x, [3, 3, 3])
    assert seen[0][1] is seen[2][1]  # a live view, as documented
    assert not np.shares_memory(result.x, seen[0][1])  # the result is not
    with pytest.raises(ZeroDivisionError):  # anything else passes through
        quiet(counting(), 3, callback=lambda state: 1 / 0)


def test_interrupt(caplog):
    def callback(state):
        if state.iteration == 2:
            raise KeyboardInterrupt

    result = quiet(counting(), 10, callback=callback)
    assert result.stopped_by == "interrupt" and result.state.iteration == 2
    assert "interrupted at iteration 2" in caplog.text

    def at_once():
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        quiet(at_once(), 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_figures_stop_the_run(bad):
    with pytest.raises(
        NonFiniteError, match=r"iteration 3 gave objective = -?(nan|inf).*step size or penalty"
    ) as error:
        quiet(counting([2.0, 1.0, bad, 0.5]), 10)
    result = error.value.result
    assert result.state.iteration == 2 and result.stopped_by == "non-finite" and not result.converged
    np.testing.assert_array_equal(result.x, [2, 2, 2])
    assert result.history["objective"] == [2.0, 1.0]
    with pytest.raises(NonFiniteError) as error:
        quiet(counting([bad]), 10)
    assert error.value.result is None


def test_nan_in_the_data_is_found_in_the_first_iteration():
    with pytest.raises(NonFiniteError, match="iteration 1"):
        quiet(cg(Identity((4,), float), np.array([1.0, np.nan, 0, 0])), 10)
    cost = Quadratic(Identity((4,), float), np.array([1.0, np.nan, 0, 0])) + NonNegative()
    with pytest.raises(NonFiniteError, match="iteration 1"):
        quiet(admm(cost, 1.0), 10)


def test_bad_calls():
    with pytest.raises(ValueError, match="max_iter must be at least 1, got 0"):
        quiet(counting(), 0)
    with pytest.raises(RuntimeError, match="before its first iteration"):
        quiet(iter(()), 3)


def test_progress_is_silent_unless_asked(capsys):
    run(counting(), 3)
    assert capsys.readouterr() == ("", "")
    run(counting(), 3, progress=True, label="my solver")
    captured = capsys.readouterr()
    assert captured.out == "" and "my solver" in captured.err


def test_lipschitz_constant_bounds_the_gradient(problem, rng):
    """T18: with a step of 1 / norm^2 gradient descent goes down at each step."""
    cost = LeastSquares(*problem)
    q = cost.quadratic()
    step = 1 / (problem[0].norm() ** 2 * 1.001)
    x = rng.standard_normal(SHAPE)
    values = []
    for _ in range(30):
        x = x - step * q.gradient(x)
        values.append(q(x))
    assert (np.diff(values) < 0).all()
    # and the bound is sharp: twice the step along the first eigenvector does not go down
    eigenvalues, vectors = np.linalg.eigh(dense(q.Q))
    assert eigenvalues[-1] == pytest.approx(problem[0].norm() ** 2, rel=2e-3)
    v = vectors[:, -1].reshape(SHAPE)
    assert inner(v, q.Q(v)) * 2.01 * step > 2
