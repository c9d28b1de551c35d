"""Maps from normal equations with any regulariser."""

import numpy as np
import pytest

from invcryo.costs import L1, L21, Denoiser, NonNegative, Quadratic, SquaredL2, Support
from invcryo.grid import centred_coordinates
from invcryo.inversion import (
    FLOOR,
    PENALTIES,
    least_squares_map,
    mean_eigenvalue,
    penalty_for,
    regularised_map,
    supported,
)
from invcryo.operators import Gradient, Mask, Toeplitz

N = 12
SHAPE = (N, N, N)


@pytest.fixture(scope="module")
def problem():
    """Normal equations of a blurring kernel, noisy data of a ball, and a support: (data, pixels, support, truth)."""
    rng = np.random.default_rng(4)
    lag = sum(c**2 for c in np.ogrid[-11:12, -11:12, -11:12])
    Q = Toeplitz((50 * np.exp(-lag / 1.5)).astype(np.float32) + 10 * (lag == 0).astype(np.float32))
    radius = sum(c**2 for c in centred_coordinates(SHAPE))
    truth = (radius <= 9).astype(np.float32)
    noise = rng.standard_normal(SHAPE).astype(np.float32) * 20
    b = Q.apply(truth) + noise
    return Quadratic(Q, b, 4000.0), 4096, np.asarray(radius <= 25), truth


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("positivity", [False, True])
def test_no_change_of_the_map_is_better(problem, name, positivity):
    """The objective at the minimiser against that of maps near it, for every name."""
    data, n, support, truth = problem
    penalty = penalty_for(name, SHAPE)
    lam = 0.05 * mean_eigenvalue(data) if name in ("tikhonov", "sobolev") else 10.0
    result = regularised_map(
        data, penalty, lam, n, support, positivity=positivity, tolerance=1e-4, max_iter=2000
    )
    x = supported(result.x, support)
    x = np.maximum(x, 0) if positivity else x
    cost = data + lam * penalty
    least = cost(x)
    assert least < cost(np.zeros_like(x)) - 100
    rng = np.random.default_rng(0)
    for other in (truth, np.zeros_like(x), *(rng.standard_normal((3, *SHAPE)).astype(np.float32))):
        for step in (0.3, 0.03, -0.03):
            moved = x + np.float32(step) * np.where(support, other - x, 0)
            moved = np.maximum(moved, 0) if positivity else moved
            # the tolerance is in parts of the energy of the map, which is of the order of data.c
            assert cost(moved) >= least - 1e-4 * data.c
    assert (name in ("tikhonov", "sobolev") and not positivity) == ("dual" not in result.history)


def test_quadratic_penalties_agree_with_a_dense_solution(problem):
    data, n, support, _ = problem
    lam = 30.0
    places = np.flatnonzero(support.ravel())
    for penalty in (SquaredL2(), SquaredL2() @ Gradient(SHAPE)):
        form = (data + lam * penalty).quadratic(SHAPE, np.float32).Q
        columns = np.eye(N**3, dtype=np.float32)[places].reshape(-1, *SHAPE)
        dense = np.stack([form.apply(c).ravel()[places] for c in columns]).astype(np.float64)
        expected = np.linalg.solve(dense, data.b.ravel()[places].astype(np.float64))
        x = regularised_map(data, penalty, lam, n, support, tolerance=1e-3).x
        assert np.linalg.norm(x.ravel()[places] - expected) < 1e-3 * np.linalg.norm(expected)
        assert not x.ravel()[~support.ravel()].any()


def test_least_squares_stops_where_the_noise_hides_the_rest(problem):
    """Far below the noise in the map, in fewer iterations; what has no noise is solved as closely as ever."""
    data, n, support, _ = problem
    exact = least_squares_map(data, support, tolerance=1e-6)
    explained = -exact.history["objective"][-1]
    noisy = Quadratic(data.Q, data.b, 4 * explained)
    early = least_squares_map(noisy, support, n_pixels=n)
    assert early.stopped_by == "below_noise(0.001)"
    assert len(early.history["iteration"]) < len(least_squares_map(data, support).history["iteration"])
    form = (noisy + FLOOR * mean_eigenvalue(data) * SquaredL2()).quadratic(SHAPE, np.float32)
    noise = np.count_nonzero(support) / n * form(exact.x)
    assert 0 < form(early.x) - form(exact.x) < 2e-3 * noise
    clean = Quadratic(data.Q, data.b, explained)
    assert least_squares_map(clean, support, n_pixels=n).stopped_by == "residual_below(0.0003)"


def test_no_weight_is_least_squares(problem):
    data, n, support, _ = problem
    plain = least_squares_map(data, support, floor=0.0, tolerance=1e-5).x
    x = regularised_map(data, penalty_for("tv", SHAPE), 0.0, n, support, tolerance=1e-3).x
    assert np.linalg.norm(x - plain) < 1e-3 * np.linalg.norm(plain)
    # with positivity the same weight is a constrained problem
    positive = regularised_map(data, penalty_for("tv", SHAPE), 0.0, n, support, positivity=True).x
    assert data(np.maximum(supported(positive, support), 0)) > data(plain)


@pytest.mark.filterwarnings("ignore:.*stopped at max_iter:RuntimeWarning")
def test_a_denoiser_scales_with_lambda(problem):
    data, n, support, _ = problem
    seen = []

    def shrink(z, sigma):
        seen.append(sigma)
        return z / np.float32(1 + sigma**2)

    for lam in (4.0, 16.0):
        regularised_map(data, Denoiser(shrink), lam, n, support, max_iter=5)
    assert seen[-1] == pytest.approx(2 * seen[0])
    # this one is the prox of the squared norm
    for positivity in (False, True):
        both = [
            regularised_map(data, p, 40.0, n, support, positivity=positivity, tolerance=1e-4, max_iter=1000)
            for p in (Denoiser(shrink), SquaredL2())
        ]
        x, y = (supported(r.x, support) for r in both)
        assert np.linalg.norm(x - y) < 1e-2 * np.linalg.norm(y)


def test_a_quadratic_beside_a_denoiser_or_a_norm(problem):
    """Sums of terms of every kind are one problem."""
    data, n, support, _ = problem
    alone = regularised_map(data, SquaredL2(), 40.0, n, support, tolerance=1e-3).x
    nothing = Denoiser(lambda z, sigma: z)
    for other in (nothing, L1(np.zeros(SHAPE))):
        x = regularised_map(data, SquaredL2() + other, 40.0, n, support, tolerance=1e-4, max_iter=1000).x
        assert np.linalg.norm(supported(x, support) - alone) < 1e-2 * np.linalg.norm(alone)


def test_an_empty_map_where_it_is_the_better_one(problem):
    data, n, support, _ = problem
    with pytest.warns(RuntimeWarning, match="max_iter = 1"):
        result = regularised_map(data, penalty_for("tv", SHAPE), 1e9, n, support, x0=data.b, max_iter=1)
    assert not result.x.any()


@pytest.mark.parametrize("lam", [-1.0, np.nan, np.inf, "auto", None])
def test_weights_that_are_none(problem, lam):
    data, n, support, _ = problem
    with pytest.raises(
        ValueError, match="lam, the weight of the regulariser, must be finite and not negative"
    ):
        regularised_map(data, SquaredL2(), lam, n, support)


def test_other_bad_input(problem):
    data, n, _, _ = problem
    with pytest.raises(
        ValueError, match=r"the support has shape \(8, 8, 8\), the coefficients \(12, 12, 12\)"
    ):
        regularised_map(data, SquaredL2(), 1.0, n, np.ones((8, 8, 8), bool))
    with pytest.raises(ValueError, match="unknown regulariser 'TV': expected none, tv, tv-aniso"):
        penalty_for("TV", SHAPE)
    with pytest.raises(TypeError, match="a name, a cost, or a function of a shape, got None"):
        penalty_for(None, SHAPE)
    with pytest.raises(ValueError, match="give a function of the shape instead"):
        penalty_for(L21() @ Gradient((8, 8, 8)), SHAPE)
    assert penalty_for(NonNegative(), SHAPE).is_indicator


def test_the_mask_of_a_support_is_exact():
    mask = np.zeros(SHAPE, bool)
    mask[3:9] = True
    x = np.ones(SHAPE, np.float32)
    np.testing.assert_array_equal(supported(x, mask), Mask(mask).apply(x))
    assert Support(mask)(supported(x, mask)) == 0
