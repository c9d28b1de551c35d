"""Costs one by one: matrices with awkward eigenvalues, wide inputs, memory, denoisers, what users get wrong."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from invcryo import costs
from invcryo.backend import inner, norm, use
from invcryo.costs import (
    L1,
    L21,
    Box,
    Denoiser,
    GroupLasso,
    LeastSquares,
    NonNegative,
    Quadratic,
    Schatten,
    SquaredL2,
    Support,
)
from invcryo.operators import Circulant, Hessian, Identity
from invcryo.testing import check_prox

ORDERS = [1, 2, np.inf]
PLACES = {2: [(0, 0), (1, 1), (1, 0)], 3: [(0, 0), (1, 1), (2, 2), (1, 0), (2, 0), (2, 1)]}


@pytest.fixture(params=[np.float32, np.float64], ids=["f4", "f8"])
def dtype(request):
    return request.param


def packed(matrices, dtype=np.float64):
    """Components along the first axis from symmetric matrices (n, d, d)."""
    places = PLACES[matrices.shape[-1]]
    rows = [matrices[:, i, j] * (1 if i == j else np.sqrt(2)) for i, j in places]
    return np.stack(rows).astype(dtype)


def unpacked(x):
    """Symmetric matrices (n, d, d) in float64 from components (c, n)."""
    places = PLACES[{3: 2, 6: 3}[len(x)]]
    out = np.empty((x.shape[1], places[-1][0] + 1, places[-1][0] + 1))
    for component, (i, j) in zip(x.astype(float), places, strict=True):
        out[:, i, j] = out[:, j, i] = component / (1 if i == j else np.sqrt(2))
    return out


def rotations(n, d, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, d, d)))[0]


def awkward(d):
    """Matrices with given eigenvalues in random frames, and in the frame of the axes."""
    triples = [
        (0, 0, 0), (1, 1, 1), (-2, -2, -2), (1, 0, 0), (-1, 0, 0), (1, 1, 0), (2, 2, 1), (2, 1, 1), (1, -1, 0),
        (1, 1, -1), (1, -1, -1), (3, 0.5, -2), (1, 1 + 1e-9, 1 - 1e-9), (1, 1 + 1e-15, 0), (1e6, 1, 1e-6),
        (1e-20, 2e-20, 3e-20), (1e-7, 1e6, 1e6), (0.6, 0.6, 0.6 + 1e-12), (1, 1e-8, -1e-8), (5, 5, -5),
        (1e-40, 0, 0), (0.7, 0.7, 0.7), (0.7, -0.7, 0.3),
    ]  # fmt: skip
    values = np.array(triples)[:, :d]
    frames = np.concatenate([rotations(len(values), d, seed) for seed in range(20)])
    values = np.tile(values, (21, 1))
    frames = np.concatenate([frames, np.broadcast_to(np.eye(d), (len(triples), d, d))])
    return np.einsum("nik,nk,njk->nij", frames, values, frames)


def shrunk(values, tau, order):
    """The prox of the norm of a few numbers, one vector at a time, by bisection where there is no formula."""
    if order == 1:
        return np.sign(values) * np.maximum(abs(values) - tau, 0)
    if order == 2:
        return values * max(1 - tau / max(np.linalg.norm(values), 1e-300), 0)
    if abs(values).sum() <= tau:
        return 0 * values
    low, high = 0.0, abs(values).max()
    for _ in range(200):  # the level at which what sticks out sums to tau
        level = (low + high) / 2
        low, high = (level, high) if np.maximum(abs(values) - level, 0).sum() > tau else (low, level)
    return np.clip(values, -low, low)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("tau", [0.0, 1e-7, 0.7, 2.0])
def test_schatten_prox_shrinks_eigenvalues_of_any_matrix(order, d, tau, dtype):
    z = packed(awkward(d), dtype)
    if order == 2:  # lengths are computed in the type of the array, whose squares must not underflow
        z = np.ascontiguousarray(z[:, np.linalg.norm(z.astype(float), axis=0) > 1e-15])
    # in float64 NumPy's own eigenvectors put a matrix together again to 11 units of rounding
    units = 2 if dtype == np.float32 and order != 2 else 20
    p, y = Schatten(order).prox(z, tau), Schatten(order).prox_conjugate(z, 3.0)
    assert p.dtype == y.dtype == dtype and np.isfinite(p).all() and np.isfinite(y).all()
    for k, matrix in enumerate(unpacked(z)):
        values, vectors = np.linalg.eigh(matrix)
        tolerance = units * np.finfo(dtype).eps * max(abs(values).max(), np.finfo(dtype).tiny)
        expected = vectors * shrunk(values, tau, order) @ vectors.T
        assert np.linalg.norm(unpacked(p[:, k : k + 1])[0] - expected) <= tolerance
        ball = matrix - vectors * shrunk(values, 1.0, order) @ vectors.T
        assert np.linalg.norm(unpacked(y[:, k : k + 1])[0] - ball) <= tolerance
    if tau == 0:
        np.testing.assert_array_equal(p, z)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("d", [2, 3])
def test_schatten_values(order, d, dtype):
    x = packed(awkward(d), dtype)
    values = np.linalg.eigvalsh(unpacked(x))
    lengths = {p: np.linalg.norm(values, p, axis=1) for p in ORDERS}
    dual = {1: np.inf, 2: 2, np.inf: 1}[order]
    eps = 4 * float(np.finfo(dtype if order == 2 else float).eps)  # the loops compute in float64
    assert Schatten(order)(x) == pytest.approx(lengths[order].sum(), rel=eps)
    assert Schatten(order).dual_norm(x) == pytest.approx(lengths[dual].max(), rel=eps)
    strided = np.repeat(x[..., None], 2, axis=-1)[..., 0]
    assert Schatten(order)(strided) == pytest.approx(Schatten(order)(x), rel=10 * eps)
    assert Schatten(order).dual_norm(strided) == pytest.approx(Schatten(order).dual_norm(x), rel=10 * eps)


@pytest.mark.parametrize("order", [1, np.inf])
@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("method", ["prox", "prox_conjugate"])
def test_compiled_matrices_against_array_code(order, d, method, dtype):
    z = np.random.default_rng(1).standard_normal((len(PLACES[d]), 7, 9)).astype(dtype)
    z[:, 3] *= 100
    strided = np.repeat(z[..., None], 2, axis=-1)[..., 0]
    size = np.linalg.norm(
        z, axis=0
    )  # of each matrix: NumPy's eigenvectors are good to some units of rounding of it
    for step in (0.01, 1.0, 50.0):
        call = getattr(Schatten(order), method)
        compiled, plain = call(z, step), call(strided, step)
        assert (np.linalg.norm(compiled - plain, axis=0) <= 11 * np.finfo(dtype).eps * size).all()


@settings(max_examples=200, deadline=None)
@given(
    arrays(np.float32, (6, 2), elements=st.floats(-1e4, 1e4, width=32)),
    st.floats(0, 1e5),
    st.sampled_from(ORDERS),
)
def test_schatten_prox_of_anything(z, tau, order):
    """The three laws of a subgradient: in the dual ball, p + tau y = z, and <p, y> = f(p)."""
    f, eps = Schatten(order), float(np.finfo(np.float32).eps)
    p, rest = f.prox(z, tau), f.prox_conjugate(z, 1.0)
    assert np.isfinite(p).all() and f.dual_norm(rest) <= 1 + 16 * eps
    leftover = z.astype(float) - p
    assert f.dual_norm(leftover) <= tau + 16 * eps * (norm(z) + tau)
    assert abs(inner(p.astype(float), leftover) - tau * f(p)) <= 16 * eps * norm(z) * (norm(z) + tau)


def floats():
    return arrays(
        np.float32, st.tuples(st.integers(1, 5), st.integers(1, 6)), elements=st.floats(-1e6, 1e6, width=32)
    )


@settings(max_examples=200, deadline=None)
@given(st.data(), floats(), st.floats(0, 1e6))
def test_any_norm_of_anything(draw, z, tau):
    weight = draw.draw(arrays(np.float64, st.sampled_from([z.shape, (1,), z.shape[1:], (z.shape[0], 1)]),
                              elements=st.floats(0, 1e3)))  # fmt: skip
    labels = draw.draw(arrays(np.int64, z.shape, elements=st.integers(-2, 4)))
    f = draw.draw(st.sampled_from([L1(), L1(weight), L21(), GroupLasso(labels), 0.5 * L21(), 0 * L1(weight)]))
    eps = float(np.finfo(np.float32).eps)
    p = f.prox(z, tau)
    leftover = z.astype(float) - p
    # entries that the norm does not see stay as they are, to the bit: else the dual norm would be infinite
    assert p.dtype == np.float32 and f.dual_norm(leftover) < np.inf
    assert abs(inner(p.astype(float), leftover) - tau * f(p)) <= 64 * eps * norm(z) * (norm(z) + 1) + 1e-30
    ball = f.prox_conjugate(z, 1.0)
    assert f.dual_norm(ball) <= 1 + 16 * eps and f.conjugate(ball) == 0.0
    assert abs(inner(ball.astype(float), z) - inner(ball, ball)) >= -64 * eps * norm(z) ** 2


@settings(max_examples=200, deadline=None)
@given(floats(), st.floats(-1e3, 1e3), st.floats(0, 1e3), st.floats(1e-3, 1e3))
def test_box_of_anything(z, low, width, sigma):
    f, eps = Box(low, low + width), float(np.finfo(np.float32).eps)
    p = f.prox(z, sigma)
    assert f(p) == 0.0 and p.dtype == np.float32
    y = f.prox_conjugate(z, sigma)
    x = f.prox(z / np.float32(sigma), 1.0)
    assert norm(y + np.float32(sigma) * x - z) <= 8 * eps * (norm(z) + sigma * norm(x))
    scale = norm(y) * (norm(x) + abs(f.low) + abs(f.high)) + norm(z) * (abs(f.low) + abs(f.high) + norm(x))
    assert abs(f.conjugate(y) - inner(x, y)) <= 16 * eps * scale


SIZE = (6, 16, 40, 40)
REGION = np.random.default_rng(0).random(SIZE) < 0.4
IN_PLACE = {
    "l1": L1(),
    "l1-weight": L1(REGION.astype(np.float32)),
    "l1-band": L1(np.arange(6.0).reshape(6, 1, 1, 1)),
    "l21": L21(),
    "scaled": 0.3 * L21(),
    "schatten": Schatten(),
    "schatten-2": Schatten(2),
    "schatten-inf": Schatten(np.inf),
    "squared": SquaredL2(),
    "box": Box(-0.5, 1),
    "nonnegative": NonNegative(),
    "support": Support(REGION),
    "support-nonnegative": Support(REGION, nonnegative=True),
}


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("method", ["prox", "prox_conjugate"])
def test_in_place_nothing_is_allocated(name, method):
    z = np.random.default_rng(1).standard_normal(SIZE).astype(np.float32)
    call = getattr(IN_PLACE[name], method)
    call(z.copy(), 0.3, out=z)  # compiles what is to be compiled
    tracemalloc.start()
    call(z, 0.3, out=z)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.02 * z.nbytes


@pytest.mark.parametrize("cost", [L1(np.arange(6.0)[:, None, None, None]), L21(), Schatten(), Schatten(np.inf), Box(0)],
                         ids=["l1", "l21", "schatten", "schatten-inf", "box"])  # fmt: skip
def test_the_number_of_threads_changes_no_bit(cost):
    z = np.random.default_rng(1).standard_normal((6, 20, 40, 40)).astype(np.float32)

    def all_of_it():
        return [
            cost.prox(z, 0.4).tobytes(),
            cost.prox_conjugate(z, 0.4).tobytes(),
            cost(z),
            cost.conjugate(z),
        ]

    with use(threads=1):
        one = all_of_it()
    with use(threads=2):
        assert all_of_it() == one


def test_values():
    x = np.array([[3.0, -4.0], [0.0, 12.0]])
    assert L1([[1.0, 0.5], [7.0, 0.0]])(x) == 5.0
    assert L1([2.0, 0.5])(x) == 6.0 + 8.0
    assert GroupLasso([[0, 0], [-1, 1]])(x) == pytest.approx(5 * np.sqrt(2) + 12)
    assert GroupLasso([[0, 0], [-1, 1]], [1, 3])(x) == pytest.approx(5 + 36)
    # yy = 2, xx = -1, yx = 0; and a matrix of ones: eigenvalues 2 and 0
    field = np.array([[2.0, 1.0], [-1.0, 1.0], [0.0, np.sqrt(2)]])
    assert Schatten()(field) == pytest.approx(3 + 2)
    assert Schatten(2)(field) == pytest.approx(np.sqrt(5) + 2)
    assert Schatten(np.inf)(field) == pytest.approx(2 + 2)
    np.testing.assert_allclose(
        Schatten().prox(field, 0.5), [[1.5, 0.75], [-0.5, 0.75], [0, 0.75 * np.sqrt(2)]]
    )
    assert L1([2.0, 0.5]).dual_norm(x) == 24.0 and L1([2.0, 0.0]).dual_norm(x) == np.inf
    assert L21().dual_norm(x) == np.hypot(4, 12) and Schatten().dual_norm(field) == pytest.approx(2.0)
    assert GroupLasso([[0, 0], [1, 1]], [1, 4]).dual_norm(x) == 5.0


def test_values_of_conjugates():
    y = np.array([1.0, -2.0])
    assert L1().conjugate(y / 2) == 0.0 and L1().conjugate(y) == np.inf and (2 * L1()).conjugate(y) == 0.0
    assert Box(-3, 5).conjugate(y) == 5 + 6 and Box(high=5).conjugate(y) == np.inf
    assert Box(high=5).conjugate(abs(y)) == 15.0 and Box(2, 2).conjugate(y) == 2 - 4
    assert NonNegative().conjugate(-abs(y)) == 0.0 and NonNegative().conjugate(y) == np.inf
    assert (
        Support([True, False]).conjugate([0, 7] * y) == 0.0 and Support([True, False]).conjugate(y) == np.inf
    )
    assert Support([False, True], nonnegative=True).conjugate(y) == 0.0
    assert SquaredL2().conjugate(y) == 2.5 and (5 * SquaredL2()).conjugate(y) == 0.5
    assert SquaredL2(np.array([3.0, 1.0])).conjugate(y) == 2.5 + 3 - 2
    q = Quadratic(4.0 * Identity((2,), float), np.array([1.0, 1.0]), 3.0)
    assert q.conjugate(y) == pytest.approx((4 + 1) / 8 - 3)


def test_factor_zero():
    """0 f is zero where f is finite: its conjugate is that of a constraint to the domain of f."""
    y = np.array([1.0, -2.0])
    q = Quadratic(Identity((2,), float), np.ones(2), 3.0)
    for f in (L1(), L21(), SquaredL2(), SquaredL2(np.ones(2)), q, GroupLasso([0, 0])):
        assert (0 * f).conjugate(y) == np.inf and (0 * f).conjugate(0 * y) == 0.0
        np.testing.assert_array_equal((0 * f).prox_conjugate(y, 2.0), [0, 0])
    assert (0 * L1()).dual_norm(y) == np.inf and (0 * L1()).dual_norm(0 * y) == 0.0
    assert (0 * Box(-3, 5)).conjugate(y) == 11.0


def test_quadratic_that_is_no_convex_function_has_an_infinite_conjugate():
    q = Quadratic(Circulant(np.array([[2.0, -0.5], [1, 1]]), (2, 2), float), np.zeros((2, 2)))
    assert q.conjugate(np.zeros((2, 2))) == np.inf


def test_conjugate_of_a_quadratic_is_infinite_out_of_the_range():
    q = Quadratic(
        Circulant(np.array([[0.0, 1.0], [1, 1]]), (2, 2), float), np.zeros((2, 2))
    )  # blind to the mean
    assert q.conjugate(np.array([[1.0, -1], [2, -2]])) == pytest.approx(5.0)
    assert q.conjugate(np.array([[1.0, -1], [2, -1.9]])) == np.inf


def test_hessian_schatten_keeps_a_slope():
    """Second differences of a plane vanish; of a parabola they are one matrix everywhere."""
    z, y, x = np.indices((6, 7, 8), np.float64)
    inner_voxels = (slice(None), *(slice(1, -2),) * 3)
    H = Hessian((6, 7, 8), dtype=np.float64)
    f = Schatten()
    assert f(H(2 * z - y + 3 * x)[inner_voxels].copy()) == pytest.approx(0.0, abs=1e-11)
    # (z + y)^2 has eigenvalues 4, 0, 0; z^2 - x^2 has 2, 0, -2
    assert f(H((z + y) ** 2)[inner_voxels].copy()) == pytest.approx(4 * 3 * 4 * 5)
    assert f(H(z**2 - x**2)[inner_voxels].copy()) == pytest.approx(4 * 3 * 4 * 5)
    assert Schatten(np.inf)(H(z**2 - x**2)[inner_voxels].copy()) == pytest.approx(2 * 3 * 4 * 5)


# -- denoisers ------------------------------------------------------------------------------------------------------


def test_denoiser_is_called_with_the_deviation_of_the_noise():
    seen = []

    def smooth(z, sigma):
        seen.append(sigma)
        z *= 0.5  # its own copy, to work in
        return z

    z = np.ones((2, 3), np.float32)
    out = np.empty_like(z)
    assert (4 * Denoiser(smooth)).prox(z, 0.25, out=out) is out
    assert seen == [1.0] and (z == 1).all() and (out == 0.5).all()
    assert Denoiser(lambda z, sigma: z.astype(np.float64)).prox(z, 1.0).dtype == np.float32


def test_denoiser_that_is_a_prox():
    """Shrinking is what L1 does: the denoiser in its place gives the same, and obeys the same laws."""
    f = Denoiser(lambda z, sigma: np.sign(z) * np.maximum(abs(z) - sigma**2, 0))
    z = np.random.default_rng(0).standard_normal((5, 6))
    np.testing.assert_allclose(f.prox(z, 0.3), L1().prox(z, 0.3), atol=1e-15)
    np.testing.assert_allclose(f.prox_conjugate(z, 0.3), L1().prox_conjugate(z, 0.3), atol=1e-15)


def test_a_sum_with_a_denoiser_has_no_value():
    data = LeastSquares(Identity((2, 3)), np.ones((2, 3), np.float32))
    cost = data + 0.5 * (Denoiser(lambda z, sigma: z) @ Identity((2, 3)))
    assert not cost.has_value and data.has_value and (data + L1()).has_value
    assert [t.cost.has_value for t in cost.terms()] == [True, False]
    with pytest.raises(NotImplementedError, match="Denoiser has no value"):
        cost(np.ones((2, 3), np.float32))


@pytest.mark.parametrize(
    "function, error, message",
    [
        (
            lambda z, s: z[:-1],
            ValueError,
            r"denoiser <lambda> got .*shape \(4, 5\) and returned shape \(3, 5\)",
        ),
        (lambda z, s: None, ValueError, "returned a NoneType: it must return an array of the same shape"),
        (lambda z, s: 0.0, ValueError, "returned a float"),
        (lambda z, s: z / 0, ValueError, r"<lambda> returned NaN or infinity at sigma = 0\.5477"),
        (lambda z, s: z * 1j, TypeError, "returned complex128: it must return real numbers"),
    ],
)
def test_a_bad_denoiser_is_named(function, error, message):
    with np.errstate(divide="ignore"), pytest.raises(error, match=message):
        Denoiser(function).prox(np.ones((4, 5)), 0.3)
    with pytest.raises(TypeError, match=r"a denoiser is a function of \(z, sigma\), got float"):
        Denoiser(0.5)


# -- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: L1([1.0, -0.5]), r"weights must be finite and not negative, got -0\.5"),
        (lambda: L1([1.0, np.nan]), "got nan"),
        (lambda: L1(np.array([1.0, np.inf], np.float32)), "got inf"),
        (lambda: L1(np.ones(3))(np.zeros((3, 4))), r"weight of shape \(3,\) does not fit .* \(3, 4\)"),
        (lambda: L1(np.ones((3, 4))).prox(np.zeros(4), 1.0), r"weight of shape \(3, 4\) does not fit .* \(4,\)"),
        (lambda: GroupLasso([0.0, 1.0]), "labels of groups are integers, got float64"),
        (lambda: GroupLasso(np.zeros((0, 3), int)), r"integers, got int64 of shape \(0, 3\)"),
        (lambda: GroupLasso([0, 1, 2], [1, 1]), r"labels up to 2 need 3 weights, got shape \(2,\)"),
        (lambda: GroupLasso([0, 1], [1, -2]), "not negative, got -2"),
        (lambda: GroupLasso([0, 1])(np.zeros((2, 1))), r"labels of shape \(2,\) do not fit .* \(2, 1\)"),
        (lambda: Schatten(3), "order of a Schatten norm is 1, 2 or inf here, got 3"),
        (lambda: Schatten()(np.zeros((4, 5))), r"has 3 components .* or 6 .* got shape \(4, 5\)"),
        (lambda: Schatten(2).prox(np.zeros((4, 5)), 1.0), "has 3 components"),
        (lambda: Schatten().prox_conjugate(np.zeros(()), 1.0), "has 3 components"),
        (lambda: Support(np.ones((2, 3), bool)).prox(np.zeros((3, 2)), 1.0), r"\(2, 3\) does not fit .* \(3, 2\)"),
        (lambda: Support(np.ones((2, 3), bool)).conjugate(np.zeros((3, 2))), r"\(2, 3\) does not fit .* \(3, 2\)"),
        (lambda: Box(np.nan, 1), "empty box: low nan, high 1"),
        (lambda: Box(np.inf, np.inf), "empty box"),
        (lambda: (np.inf * L1()), "finite"),
        (lambda: L1().prox([1, 2], 1.0), "takes float32 or float64, got int64"),
    ],
)  # fmt: skip
def test_nonsense_is_refused(build, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build()


def test_lists_and_unpenalised_groups_are_welcome():
    np.testing.assert_array_equal(L1().prox([1.0, -3.0], 2.0), [0, -1])
    free = GroupLasso([-1, -5])
    np.testing.assert_array_equal(free.prox(np.array([1.0, 2.0]), 3.0), [1, 2])
    assert (
        free(np.ones(2)) == 0.0
        and free.conjugate(np.zeros(2)) == 0.0
        and free.conjugate(np.ones(2)) == np.inf
    )


def test_a_cost_of_your_own_gets_the_conjugate_from_its_prox():
    """The general way, on a cost that says only what its value and prox are."""

    class Huber(costs.Cost):
        def __call__(self, x):
            size = abs(x)
            return float(np.where(size < 1, x**2 / 2, size - 0.5).sum())

        def _prox(self, z, tau, out):
            np.subtract(z, tau * z / np.maximum(abs(z), 1 + tau), out=out)

    class Conjugate:  # |y|^2 / 2 on the unit cube
        def __call__(self, y):
            return 0.5 * norm(y) ** 2 if abs(y).max() <= 1 + 1e-12 else np.inf

        def prox(self, z, sigma):
            return Huber().prox_conjugate(z, sigma)

    z = np.random.default_rng(0).standard_normal((4, 5)) * 2
    assert check_prox(Huber(), z, 0.7) < 1e-14 and check_prox(Conjugate(), z, 0.7) < 1e-14
    np.testing.assert_allclose(Huber().prox_conjugate(z, 0.7), np.clip(z / 1.7, -1, 1), atol=1e-15)
    with pytest.raises(NotImplementedError, match="conjugate of Huber is not known"):
        Huber().conjugate(z)
