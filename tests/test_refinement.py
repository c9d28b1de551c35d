"""The coarse problem from which ADMM starts: interpolation, coarse kernels, and what is carried over."""

import numpy as np
import pytest

from invcryo.backend import norm
from invcryo.costs import L1, L21, Box, LeastSquares, NonNegative, Quadratic, Support
from invcryo.data import Poses
from invcryo.operators import Gradient, Projector, Refinement, Toeplitz, Wavelet
from invcryo.rotation import random_rotations
from invcryo.solvers import admm, run
from invcryo.solvers.admm import _coarse_start, _parts
from invcryo.window import KaiserBessel


@pytest.mark.parametrize("n", range(1, 12))
def test_interpolation_is_that_of_numpy(n, rng):
    """Value by value against np.interp, with the same centre and zeros beyond the coarse ends."""
    E = Refinement((n,), np.float64)
    c = rng.standard_normal(E.ishape)
    m = np.arange(-1, len(c) + 1)
    positions = 2.0 * (m - len(c) // 2)  # of the coarse samples, and one more at each end, from the centre
    expected = np.interp(np.arange(n) - n // 2, positions, np.concatenate([[0], c, [0]]))
    np.testing.assert_allclose(E(c), expected, atol=1e-14)
    # one sample on another: what lies on a fine sample is thinned out again
    inside = [k for k in range(len(c)) if 0 <= 2 * k + E.offset(0) < n]
    np.testing.assert_allclose(E.thinned(E(c))[inside], c[inside], atol=1e-14)
    near = E.nearest(np.stack([c, -c]))
    assert near.shape == (2, n) and set(np.round(near[0], 12)) <= set(np.round(c, 12))


@pytest.mark.parametrize("shape", [(16, 16, 16), (12, 20, 18), (15, 13, 22)])
def test_the_coarse_kernel_is_that_of_the_interpolation(shape, rng):
    """``E^H T E`` against the operators themselves, inside, for a kernel whose lags do not reach the ends."""
    kernel = rng.standard_normal([2 * n - 1 for n in shape])
    kernel += kernel[::-1, ::-1, ::-1]
    short = np.zeros_like(kernel)
    near = tuple(slice(n - 3, n + 2) for n in shape)
    short[near] = kernel[near]
    T, E = Toeplitz(short, np.float64), Refinement(shape, np.float64)
    coarse = T.coarsened()
    assert coarse.ishape == E.ishape
    x = np.zeros(E.ishape)
    inner = tuple(slice(2, -2) for _ in shape)
    x[inner] = rng.standard_normal(x[inner].shape)
    expected = E.adjoint(T(E(x)))
    inside = tuple(slice(1, -1) for _ in shape)
    np.testing.assert_allclose(coarse(x)[inside], expected[inside], atol=1e-12 * np.abs(expected).max())


def test_a_kernel_that_cannot_be_halved(rng):
    kernel = np.zeros((3, 3, 3))
    kernel[1, 1, 1] = 1
    assert Toeplitz(kernel).coarsened() is None


@pytest.fixture(scope="module")
def problem():
    n, rng = 48, np.random.default_rng(3)
    A = Projector(Poses(random_rotations(40, rng=rng)), KaiserBessel(), n, (n, n), dtype=np.float64)
    z, y, x = np.indices((n, n, n)) - n // 2
    truth = 1.0 * (z**2 + (y - 1) ** 2 + 2 * x**2 < 150) + 0.5 * ((z - 6) ** 2 + y**2 + x**2 < 40)
    images = A(truth)
    images += images.std() * rng.standard_normal(images.shape)
    data = LeastSquares(A, images, progress=False).quadratic()
    lam = 2e-2 * np.abs(data.b).max()
    inside = np.sum((np.indices((n, n, n)) - n // 2) ** 2, axis=0) < 22**2
    return data, lam, inside


@pytest.mark.parametrize("constraint", ["none", "nonnegative", "support"])
def test_a_coarse_start_saves_iterations(problem, constraint):
    data, lam, inside = problem
    cost = data + lam * (L21() @ Gradient(data.Q.ishape, dtype=np.float64))
    if constraint != "none":
        cost = cost + (NonNegative() if constraint == "nonnegative" else Support(inside, nonnegative=True))
    constraints = [t.cost for t in cost.terms() if t.cost.is_indicator]

    def value(x):
        for c in constraints:
            x = c.prox(x, 1.0)
        return cost(x)

    reference = run(admm(cost, coarse_start=False), 700, progress=False)
    lowest = value(reference.x)
    iterations = {}
    for start in (False, True):
        for state in admm(cost, coarse_start=start):
            if value(state.x) - lowest < 2e-3 * (data.c - lowest) or state.iteration == 100:
                break
        iterations[start] = state.iteration
    assert iterations[True] <= 0.75 * iterations[False], iterations
    # and it ends at the same minimum
    end = run(admm(cost), 300, progress=False)
    assert value(end.x) - lowest < 1e-5 * (data.c - lowest)
    assert norm(end.x - reference.x) < 0.02 * norm(reference.x)


def test_where_there_is_no_coarse_problem(problem):
    """Another term, another operator, a small volume: the start is zero, and nothing is said."""
    data, _, inside = problem
    shape = data.Q.ishape
    tv = L21() @ Gradient(shape, dtype=np.float64)
    for terms, possible in [
        ([tv, NonNegative()], True),
        ([tv, Box(-1.0, 2.0), Support(inside)], True),
        ([L1() @ Wavelet(shape, dtype=np.float64)], False),
        ([tv, L1()], False),
    ]:
        cost = data
        for t in terms:
            cost = cost + t
        q, splits = _parts(cost, *cost.domain)
        assert (_coarse_start(q, splits) is not None) == possible
    for Q in (data.Q + Gradient(shape, dtype=np.float64).gram(), Gradient(shape, dtype=np.float64).gram()):
        q, splits = _parts(Quadratic(Q, data.b) + NonNegative(), shape, np.dtype(np.float64))
        assert _coarse_start(q, splits) is None


def test_a_resumed_run_after_a_coarse_start(problem):
    data, lam, _ = problem
    cost = data + lam * (L21() @ Gradient(data.Q.ishape, dtype=np.float64)) + NonNegative()
    whole = run(admm(cost), 9, progress=False)
    part = run(admm(cost), 4, progress=False)
    rest = run(admm(cost, state=part.state), 5, progress=False)
    np.testing.assert_array_equal(rest.x, whole.x)
    given = run(admm(cost, x0=np.zeros_like(whole.x)), 1, progress=False)  # a start of one's own is respected
    cold = run(admm(cost, coarse_start=False), 1, progress=False)
    np.testing.assert_allclose(given.x, cold.x, atol=1e-12)
