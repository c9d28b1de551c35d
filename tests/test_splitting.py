"""The parts of ADMM: vector loops, splits and their fused twins, penalties that find themselves, the gap."""

import numpy as np
import pytest

from invcryo import kernels
from invcryo.backend import use
from invcryo.costs import L1, L21, Box, Denoiser, LeastSquares, NonNegative, Quadratic, Schatten, Support
from invcryo.data import Poses
from invcryo.operators import Gradient, Hessian, Projector, Wavelet
from invcryo.rotation import random_rotations
from invcryo.solvers import admm, residual_below, run, splitting, vectors
from invcryo.solvers.splitting import Split, TotalVariation
from invcryo.window import KaiserBessel

SHAPE = (6, 5, 7)


def quiet(states, max_iter, **options):
    return run(states, max_iter, progress=False, **options)


# -- loops against array code ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 3, 64, 257, 40_000])
def test_vector_loops(dtype, n, rng):
    x, y, u = (rng.standard_normal(n).astype(dtype) for _ in range(3))
    tolerance = {"rtol": 50 * np.finfo(dtype).eps, "atol": 50 * np.finfo(dtype).eps}
    expected = float(x.astype("f8") @ y.astype("f8"))
    assert vectors.inner(x, y) == pytest.approx(expected, abs=1e-12 * n)
    z = y.copy()
    vectors.add_scaled(z, 0.3, x)
    np.testing.assert_allclose(z, y + dtype(0.3) * x, **tolerance)
    z = y.copy()
    vectors.scale_add(z, 0.3, x)
    np.testing.assert_allclose(z, x + dtype(0.3) * y, **tolerance)
    a = y.copy()
    kernels.relax(x, u, a, 1.7)
    np.testing.assert_allclose(a, 1.7 * x - 0.7 * u - y, atol=10 * tolerance["atol"])
    a = y.copy()
    sums = kernels.settle(x, u, a)
    d = (x - u).astype("f8")
    np.testing.assert_allclose(a, u - y, **tolerance)
    expected = [d @ d, x.astype("f8") @ x, u.astype("f8") @ u, a.astype("f8") @ a, a.astype("f8") @ d]
    np.testing.assert_allclose(
        sums, expected, rtol=1e-6 if dtype is np.float32 else 1e-12, atol=1e-5 * n**0.5
    )
    for add in (True, False):
        out = y.copy()
        kernels.spring(x, u, y, 0.7, out, add)
        np.testing.assert_allclose(out, add * y + dtype(0.7) * (u + y - x), atol=10 * tolerance["atol"])


def test_sums_do_not_depend_on_threads(rng):
    x, y = rng.standard_normal((2, 300_000)).astype(np.float32)
    v = rng.standard_normal((40, 50, 60)).astype(np.float32)
    results = []
    for threads in (1, 2):
        with use(threads=threads):
            u, a = rng.standard_normal((2, 3, *v.shape)).astype(np.float32) if not results else results[0][3]
            start = u.copy(), a.copy()
            sums = kernels.tv_move(v, u, a, 1.8, 0.3, False)
            results.append(
                (kernels.dot(x, y), kernels.sum_lengths(v.reshape(40, -1)), sums.tolist(), start, u, a)
            )
    (d1, s1, m1, _, u1, a1), (d2, s2, m2, _, u2, a2) = results
    assert d1 == d2 and s1 == s2 and m1 == m2
    np.testing.assert_array_equal(u1, u2)
    np.testing.assert_array_equal(a1, a2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("boundary", ["zero-flux", "periodic"])
@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 1), (2, 1, 3), (1, 9, 2), (17, 16, 33)])
def test_fused_total_variation_is_the_split(shape, boundary, dtype, rng):
    """Three steps by the fused loops and by the general ones: the slow twin."""
    ways = []
    term = (0.8 * (L21() @ Gradient(shape, boundary, dtype))).terms()[0]
    for kind in (Split, TotalVariation):
        s = kind(term, shape, dtype)
        s.rho = 2.5
        ways.append(s)
    assert type(splitting.split(term, shape, dtype)) is TotalVariation
    x = rng.standard_normal(shape).astype(dtype)
    for s in ways:
        s.begin(x)
    tolerance = 200 * float(np.finfo(dtype).eps)
    for _ in range(3):
        x = rng.standard_normal(shape).astype(dtype)
        sums = [np.array(s.move(x, 1.8)) for s in ways]
        np.testing.assert_allclose(sums[1], sums[0], rtol=tolerance * 10, atol=tolerance * x.size)
        np.testing.assert_allclose(ways[1].u, ways[0].u, atol=tolerance)
        np.testing.assert_allclose(ways[1].a, ways[0].a, atol=tolerance)
        pulls = [np.ones(shape, dtype), np.ones(shape, dtype)]
        for s, out in zip(ways, pulls, strict=True):
            s.pull(x, out)
        np.testing.assert_allclose(pulls[1], pulls[0], atol=20 * tolerance)
        assert ways[1].curvature(x) == pytest.approx(ways[0].curvature(x), rel=tolerance, abs=tolerance)


def test_array_code_is_the_same_step(rng, monkeypatch):
    """What runs where the compiled loops cannot: on other kinds of arrays."""
    term = (0.8 * (L21() @ Gradient(SHAPE, dtype=np.float64))).terms()[0]
    results = []
    x0, x1 = rng.standard_normal((2, *SHAPE))
    for fast in (True, False):
        if not fast:
            for module in (splitting, vectors):
                monkeypatch.setattr(module, "compiled", lambda *arrays: False)
        s = splitting.split(term, SHAPE, np.float64)
        s.rho = 2.0
        s.begin(x0)
        moved = s.move(x1, 1.5)
        out = np.zeros(SHAPE)
        s.pull(x1, out)
        y = x0.copy()
        vectors.add_scaled(y, 2.0, x1)
        vectors.scale_add(y, -0.5, x1)
        results.append((np.array(moved), s.u, s.a, out, y, s.curvature(x1)))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_nan_stays_nan(rng):
    x = rng.standard_normal(SHAPE).astype(np.float32)
    x[2, 3, 3] = np.nan
    u, a = np.zeros((2, 3, *SHAPE), np.float32)
    sums = kernels.tv_move(x, u, a, 1.0, 0.1, False)
    assert np.isnan(sums).all() and np.isnan(u[:, 2, 3, 3]).all()


# -- penalties and the gap ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    n, rng = 16, np.random.default_rng(3)
    A = Projector(Poses(random_rotations(30, rng=rng)), KaiserBessel(), n, (n, n), dtype=np.float64)
    z, y, x = np.indices((n, n, n)) - n // 2
    truth = 1.0 * (z**2 + (y - 1) ** 2 + 2 * x**2 < 20)
    images = A(truth)
    images += images.std() * rng.standard_normal(images.shape)
    return LeastSquares(A, images, progress=False).quadratic()


def penalties(data):
    shape, d = data.domain
    scale = np.abs(data.b).max()
    tv = L21() @ Gradient(shape, dtype=d)
    wavelet = Wavelet(shape, "db2", 2, d)
    inside = np.indices(shape).sum(0) > 3
    return {
        "tv weak": 1e-4 * scale * tv + NonNegative(),
        "tv": 1e-2 * scale * tv + NonNegative(),
        "tv strong": 0.1 * scale * tv + NonNegative(),
        "tv support": 1e-2 * scale * tv + Support(inside, nonnegative=True),
        "tv alone": 1e-2 * scale * tv,
        "anisotropic": 1e-2 * scale * (L1() @ Gradient(shape, dtype=d)) + NonNegative(),
        "wavelet": 1e-2 * scale * (L1() @ wavelet) + Box(low=-0.1),
        "hessian": 1e-2 * scale * (Schatten() @ Hessian(shape, dtype=d)) + NonNegative(),
        "l1": 1e-2 * scale * L1(),
        "constraint alone": NonNegative() * 1.0,
    }


def feasible(cost, x, data):
    """The cost at the nearest point that meets the constraints."""
    for term in cost.terms():
        if term.cost.is_indicator:
            x = term.cost.prox(x, 1.0)
    return cost(x)


@pytest.mark.parametrize("name", list(penalties(Quadratic(Gradient((16,) * 3).gram(), np.ones((16,) * 3)))))
def test_no_penalty_needs_to_be_tuned(data, name):
    """The penalties found by themselves against the best of a scan, and the estimated gap against the true one."""
    cost = data + penalties(data)[name]
    best = quiet(admm(cost), 3000)
    lowest = feasible(cost, best.x, data)
    drop = data.c - lowest
    assert best.history["gap"][-1] < 1e-6

    def iterations(states, target=1e-3, limit=150):
        for state in states:
            if feasible(cost, state.x, data) - lowest <= target * drop:
                return state.iteration
            if state.iteration >= limit:
                return limit
        raise AssertionError("a solver that ends")

    spectrum = data.Q.nearest_circulant()
    tuned = min(iterations(admm(cost, float(f * spectrum.mean()))) for f in 10.0 ** np.arange(-3, 4))
    ours = iterations(admm(cost))
    assert ours <= max(1.5 * tuned, tuned + 4), (ours, tuned)

    stopped = quiet(admm(cost), 500, stop=residual_below(1e-3, "gap"))
    assert stopped.stopped_by == "residual_below(0.001)"
    true = (feasible(cost, stopped.x, data) - lowest) / drop
    assert true <= 5e-3


def test_the_gap_is_near_the_true_one(data):
    """Within a factor of 5 in all iterations but the first few."""
    cost = data + penalties(data)["tv"]
    lowest = feasible(cost, quiet(admm(cost), 4000).x, data)
    ratios = []
    for state in admm(cost):
        true = (feasible(cost, state.x, data) - lowest) / (data.c - lowest)
        if state.iteration > 5:
            ratios.append(state.info["gap"] / true)
        if state.iteration == 40:
            break
    assert 0.2 < min(ratios) and max(ratios) < 5, (min(ratios), max(ratios))


def test_a_denoiser_keeps_its_penalty(data):
    """There the penalty is part of the problem; the objective is that of the data alone."""
    from scipy.ndimage import gaussian_filter

    cost = data + Denoiser(lambda z, sigma: gaussian_filter(z, 0.6)) + NonNegative()
    states = admm(cost)
    rhos = {s.memory["rho"][0] for s, _ in zip(states, range(25), strict=False)}
    assert len(rhos) == 1
    result = quiet(admm(cost), 60, stop=residual_below(1e-2, "primal", "dual"))
    assert result.converged
    assert result.history["objective"][-1] == pytest.approx(data(result.x), rel=1e-9)


def test_penalties_of_nothing(rng):
    """No data, no signal: nothing to scale by, and still an answer."""
    shape = (4, 4, 4)
    Q = Gradient(shape, dtype=np.float64).gram() + Gradient(shape, dtype=np.float64).gram()
    cost = Quadratic(Q, np.zeros(shape)) + L1() + NonNegative()
    result = quiet(admm(cost), 20)
    np.testing.assert_array_equal(result.x, np.zeros(shape))


def test_single_precision_stays(data):
    q = Quadratic(Gradient((8,) * 3).gram(), np.ones((8,) * 3, np.float32))
    result = quiet(admm(q + L21() @ Gradient((8,) * 3) + NonNegative()), 5)
    assert result.x.dtype == np.float32
    assert all(v.dtype == np.float32 for k in ("splits", "duals") for v in result.state.memory[k])


def test_x0_of_another_shape(data):
    with pytest.raises(ValueError, match=r"x0 has shape \(3,\), the cost needs \(16, 16, 16\)"):
        next(admm(data + NonNegative(), x0=np.zeros(3)))


def test_no_array_is_made_inside_the_loop():
    """Beyond what the transforms return: the peak of arrays is that of the method's own, and nothing grows."""
    import tracemalloc

    n = 48
    rng = np.random.default_rng(0)
    Q = Projector(Poses(random_rotations(10, rng=rng)), KaiserBessel(), n, (n, n)).gram()
    b = Q(rng.standard_normal((n, n, n)).astype(np.float32))
    cost = Quadratic(Q, b) + 0.1 * float(b.max()) * (L21() @ Gradient(b.shape)) + NonNegative()
    with use(threads=1):
        states = admm(cost, coarse_start=False)
        for _ in range(8):
            next(states)
        tracemalloc.start()
        states = admm(cost, coarse_start=False)
        next(states)
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(6):
            next(states)
        after, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    volume = 4 * n**3
    assert abs(after - held) < 0.1 * volume
    # u, multipliers, x, Q x, residual, preconditioner and its parts
    assert held < 1.05 * (4 + 4 + 1 + 1 + 1 + 1) * volume
    # a direction, its product, and the pruned transforms of the product
    work = 8 * n * (Q.pad.oshape[1] + n) * (Q.pad.oshape[2] // 2 + 1)
    assert peak - held < 1.3 * (2 * volume + work)
