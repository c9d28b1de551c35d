"""Second differences against their definition and against the Laplacian."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from invcryo import kernels
from invcryo.backend import norm, use
from invcryo.operators import Bilaplacian, Gradient, Hessian
from invcryo.operators import hessian as module
from invcryo.testing import check_adjoint

BOUNDARIES = ["zero-flux", "periodic"]


def by_definition(x, boundary):
    """Entry by entry, on an array continued by one entry at each end."""
    p = np.pad(x, 1, mode="edge" if boundary == "zero-flux" else "wrap")
    d = x.ndim
    inner = [np.arange(1, n + 1) for n in x.shape]

    def at(*moves):  # (axis, step) pairs
        index = list(inner)
        for axis, step in moves:
            index[axis] = index[axis] + step
        return p[np.ix_(*index)]

    pure = [at((a, 1)) - 2 * at() + at((a, -1)) for a in range(d)]
    mixed = [
        at((a, 1), (b, 1)) - at((a, 1)) - at((b, 1)) + at() for a, b in itertools.combinations(range(d), 2)
    ]
    return np.stack(pure + [np.sqrt(2) * m for m in mixed])


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple),
    boundary=st.sampled_from(BOUNDARIES),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape(shape, boundary, seed):
    x = np.random.default_rng(seed).standard_normal(shape)
    H = Hessian(shape, boundary, np.float64)
    assert H.oshape == (len(shape) * (len(shape) + 1) // 2, *shape)
    np.testing.assert_allclose(H(x), by_definition(x, boundary), rtol=0, atol=1e-14 * 16)
    assert check_adjoint(H, seed) < 1e-14
    # the gram is the square of the Laplacian, for both boundaries
    L = Gradient(shape, boundary, np.float64).gram()
    np.testing.assert_allclose(H.adjoint(H(x)), L(L(x)), rtol=0, atol=1e-12)
    np.testing.assert_allclose(H.gram()(x), L(L(x)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 2, 3), (3, 1, 1), (2, 2, 1), (5, 1, 4), (1, 1, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_compiled_loops_are_the_array_code(boundary, shape, dtype, rng):
    H = Hessian(shape, boundary, dtype)
    x, u = rng.standard_normal(shape).astype(dtype), rng.standard_normal(H.oshape).astype(dtype)
    forward, back = np.empty(H.oshape, dtype), np.empty(shape, dtype)
    module._apply(x, boundary == "periodic", forward)
    module._adjoint(u, boundary == "periodic", back)
    eps = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(H(x), forward, rtol=0, atol=40 * eps)
    np.testing.assert_allclose(H.adjoint(u), back, rtol=0, atol=60 * eps)
    laplacian = np.empty_like(x)
    kernels.laplacian(x, boundary == "periodic", laplacian)
    np.testing.assert_allclose(laplacian, Gradient(shape, boundary, dtype).gram()(x), rtol=0, atol=40 * eps)


def test_bits_do_not_depend_on_threads(rng):
    H = Hessian((64, 64, 64))  # large enough that a second thread is used
    x, u = (rng.standard_normal(s).astype(np.float32) for s in (H.ishape, H.oshape))
    with use(threads=1):
        one = H(x), H.adjoint(u), H.gram()(x)
    with use(threads=2):
        two = H(x), H.adjoint(u), H.gram()(x)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


def test_order_and_scale_of_the_components():
    """Of a quadratic form x' M x / 2, away from the border: the entries of M, in the order stated."""
    M = np.array([[1.0, 2, 3], [2, 5, 7], [3, 7, 11]])  # z, y, x
    k = np.stack(np.meshgrid(*map(np.arange, (5, 6, 7)), indexing="ij"), -1).astype(float)
    f = 0.5 * np.einsum("...i,ij,...j", k, M, k)
    u = Hessian(f.shape, dtype=np.float64)(f)[:, 1:-1, 1:-1, 1:-1]
    expected = [1, 5, 11, *(np.sqrt(2) * np.array([2, 3, 7]))]
    np.testing.assert_allclose(u, np.broadcast_to(np.reshape(expected, (6, 1, 1, 1)), u.shape), atol=1e-12)
    np.testing.assert_allclose((u**2).sum(0), (M**2).sum(), rtol=1e-12)  # Frobenius


def test_a_ramp_is_flat_inside(rng):
    z, y, x = np.meshgrid(*map(np.arange, (5, 6, 7)), indexing="ij")
    u = Hessian((5, 6, 7), dtype=np.float64)(2.0 * z - 3.0 * y + x + 4.0)
    assert not u[:, 1:-1, 1:-1, 1:-1].any() and u.any()
    assert not Hessian((5, 6, 7))(np.full((5, 6, 7), 3, np.float32)).any()


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("shape", [(16,), (12, 10), (8, 6, 10), (7, 5, 9)])
def test_the_bound_on_the_norm(boundary, shape, rng):
    """Power iterations stay below 16 d^2 and come close; periodic even sizes attain it on the checkerboard."""
    H = Hessian(shape, boundary, np.float64)
    x = rng.standard_normal(shape)
    for _ in range(300):
        x = H.adjoint(H(x / norm(x)))
    bound = 16 * len(shape) ** 2
    assert 0.7 * bound < norm(x) <= bound * (1 + 1e-12)
    even = all(n % 2 == 0 for n in shape)
    if boundary == "periodic" and even:
        checkerboard = (-1.0) ** np.indices(shape).sum(0)
        assert norm(H(checkerboard)) ** 2 == pytest.approx(bound * norm(checkerboard) ** 2, rel=1e-12)
        assert H.norm() == pytest.approx(bound**0.5, rel=1e-12)
    else:
        assert norm(x) < 0.9999 * bound


@pytest.mark.parametrize("shape", [(6, 5), (4, 5, 6)])
def test_spectra(shape, rng):
    periodic = Hessian(shape, "periodic", np.float64).gram()
    flux = Hessian(shape, "zero-flux", np.float64).gram()
    assert isinstance(periodic, Bilaplacian) and isinstance(flux, Bilaplacian)
    x = rng.standard_normal(shape)
    axes = tuple(range(len(shape)))
    expected = np.fft.irfftn(np.fft.rfftn(x) * periodic.spectrum, s=shape, axes=axes)
    np.testing.assert_allclose(periodic(x), expected, atol=1e-11)
    assert flux.spectrum is None
    np.testing.assert_array_equal(flux.nearest_circulant(), periodic.nearest_circulant())
    np.testing.assert_array_equal(periodic.spectrum, periodic.nearest_circulant())


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="unknown boundary 'mirror': expected one of"):
        Hessian((4, 4), "mirror")
    for shape in ((), (4, 0, 4), (-1,)):
        with pytest.raises(ValueError, match="at least one axis and no empty one, got shape"):
            Hessian(shape)
