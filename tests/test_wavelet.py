"""Filters and transform against PyWavelets, and against what makes them wavelets."""

import itertools
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from invcryo.backend import norm, use
from invcryo.operators import Identity, Wavelet
from invcryo.operators.wavelet import scaling_filter
from invcryo.testing import check_adjoint

pywt = pytest.importorskip("pywt")

NAMES = ["haar", *(f"db{n}" for n in range(1, 21)), *(f"sym{n}" for n in range(2, 21))]


def reference(name):
    """PyWavelets with our filter: its tables of symlets are rounded to 12 digits, its transform is not."""
    low = scaling_filter(name)
    high = [(-1) ** i * c for i, c in enumerate(low[::-1])]
    return pywt.Wavelet(name, filter_bank=[low[::-1], high[::-1], low, high])


def pyramid(x, name, levels):
    """The transform axis by axis with ``pywt.dwt``; axes of odd length are left alone."""
    out = x.copy()
    box = x.shape
    for _ in range(levels):
        corner = out[tuple(map(slice, box))]
        for axis in np.flatnonzero(np.array(box) % 2 == 0):
            low, high = pywt.dwt(corner, reference(name), mode="periodization", axis=int(axis))
            corner[...] = np.concatenate([low, high], int(axis))
        box = tuple(n // 2 if n % 2 == 0 else n for n in box)
    return out


# -- filters -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_filters_are_those_of_pywavelets(name):
    tolerance = 2e-11 if name.startswith("sym") else 1e-15
    np.testing.assert_allclose(scaling_filter(name), pywt.Wavelet(name).rec_lo, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_filters_are_orthonormal_with_vanishing_moments(name):
    h = scaling_filter(name)
    n = len(h) // 2
    assert abs(h.sum() - 2**0.5) < 1e-15
    for shift in range(n):
        assert abs(h[2 * shift :] @ h[: len(h) - 2 * shift] - (shift == 0)) < 1e-15
    # a zero of order n at pi: polynomials of lower degree, scaled to [-1, 1], leave the high-pass filter empty
    t = np.linspace(-1, 1, 2 * n)
    signs = (-1.0) ** np.arange(2 * n)
    for degree in range(n):
        assert abs((signs * h) @ np.polynomial.legendre.Legendre.basis(degree)(t)) < 1e-15 * 2 * n


@pytest.mark.parametrize("order", range(2, 21))
def test_symlets_and_daubechies_share_their_modulus(order):
    pair = [np.abs(np.fft.rfft(scaling_filter(f"{family}{order}"), 64)) for family in ("db", "sym")]
    np.testing.assert_allclose(*pair, atol=1e-14)


@pytest.mark.parametrize("order", [4, 7, 10])
def test_symlets_are_the_least_asymmetric(order):
    """Of all filters of this modulus, built from the zeros found here: the straightest phase, in the mean square."""
    zeros = np.roots(scaling_filter(f"db{order}"))
    zeros = zeros[np.argsort(np.abs(zeros + 1))][order:]  # without those at -1, which rounding scatters
    groups = [[z] if abs(z.imag) < 1e-6 else [z, z.conj()] for z in zeros if z.imag > -1e-6]
    w = np.linspace(0, np.pi, 513)

    def bend(roots):
        phase = np.unwrap(np.angle(np.polyval(np.poly(roots), np.exp(1j * w))))
        return np.std(phase - phase[0] - (phase[-1] - phase[0]) * w / np.pi, mean=0.0)

    best = min(
        bend([1 / z if out else z for group, out in zip(groups, choice, strict=True) for z in group])
        for choice in itertools.product([False, True], repeat=len(groups))
    )
    own = np.roots(scaling_filter(f"sym{order}"))
    own = own[np.argsort(np.abs(own + 1))][order:]
    assert bend(own) == pytest.approx(best, rel=1e-6) and best < 0.9 * bend(zeros)


@pytest.mark.parametrize(
    "name", ["db0", "db21", "sym1", "sym21", "db", "db04", "coif2", "DB4", "", "bior2.2", 4]
)
def test_unknown_wavelets_are_refused(name):
    with pytest.raises(ValueError, match=r"unknown wavelet .*: expected haar, db1 to db20 or sym2 to sym20"):
        Wavelet((8, 8), name)


def test_filters_are_shared_and_cannot_be_changed():
    assert scaling_filter("db4") is scaling_filter("db4")
    with pytest.raises(ValueError, match="read-only"):
        scaling_filter("db4")[0] = 0


# -- the transform -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape, levels", [((64,), 3), ((32, 48), 3), ((16, 24, 40), 3), ((8, 4, 12, 4), 2)])
@pytest.mark.parametrize("name", ["haar", "db2", "db4", "db11", "sym6"])
@pytest.mark.filterwarnings("ignore:Level value")
def test_layout_and_values_are_those_of_pywavelets(shape, levels, name, rng):
    x = rng.standard_normal(shape)
    expected = pywt.coeffs_to_array(pywt.wavedecn(x, reference(name), mode="periodization", level=levels))[0]
    W = Wavelet(shape, name, levels, np.float64)
    np.testing.assert_allclose(W(x), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(W.adjoint(expected), x, rtol=0, atol=1e-12)
    single = Wavelet(shape, name, levels)(x.astype(np.float32))
    assert norm(single - expected) <= 1e-6 * norm(expected)


@st.composite
def cases(draw):
    shapes = st.lists(st.integers(1, 13), min_size=1, max_size=4).map(tuple)
    shape = draw(shapes.filter(lambda shape: any(n % 2 == 0 for n in shape)))
    largest = max((n & -n).bit_length() - 1 for n in shape)
    return shape, draw(st.sampled_from(NAMES)), draw(st.integers(1, largest)), draw(st.integers(0, 2**32 - 1))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_any_shape_level_and_wavelet(case):
    """Equal to PyWavelets axis by axis, orthonormal, and the compiled loops equal to the array code."""
    shape, name, levels, seed = case
    x = np.random.default_rng(seed).standard_normal(shape)
    W = Wavelet(shape, name, levels, np.float64)
    y = W(x)
    np.testing.assert_allclose(y, pyramid(x, name, levels), rtol=0, atol=1e-12)
    np.testing.assert_allclose(W.adjoint(y), x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(W(W.adjoint(x)), x, rtol=0, atol=1e-12)
    assert abs(norm(y) - norm(x)) <= 1e-13 * norm(x)
    assert check_adjoint(W, seed) < 1e-14


@pytest.mark.parametrize("shape", [(12,), (6, 10), (4, 6, 10), (7, 8, 12)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_compiled_loops_are_the_array_code(shape, dtype, rng, monkeypatch):
    x = rng.standard_normal(shape).astype(dtype)
    for name in ("haar", "db3", "sym4", "db9"):
        W = Wavelet(shape, name, 1, dtype)
        with monkeypatch.context() as patch:
            patch.setattr(Wavelet, "_compiled", lambda self, x: False)
            forward, back = W(x), W.adjoint(x)
        assert forward.dtype == dtype and back.dtype == dtype
        tolerance = 10 * float(np.finfo(dtype).eps) * norm(x)
        assert norm(W(x) - forward) <= tolerance and norm(W.adjoint(x) - back) <= tolerance


def test_bits_do_not_depend_on_threads(rng):
    x = rng.standard_normal((64, 64, 64)).astype(np.float32)  # large enough that a second thread is used
    W = Wavelet(x.shape, "db4", 3)
    with use(threads=1):
        one = W(x), W.adjoint(x)
    with use(threads=2):
        two = W(x), W.adjoint(x)
    np.testing.assert_array_equal(one, two)


def test_array_code_needs_little_memory(rng, monkeypatch):
    x = rng.standard_normal((64, 64, 64))
    monkeypatch.setattr(Wavelet, "_compiled", lambda self, x: False)
    W = Wavelet(x.shape, "db4", 2, np.float64)
    for function in (W.apply, W.adjoint):
        function(x)
        tracemalloc.start()
        function(x)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert x.nbytes <= peak <= 1.3 * x.nbytes  # the output and a slab


def test_the_coarse_band(rng):
    """A constant is all coarse; smooth data nearly so; the band is the innermost corner."""
    W = Wavelet((16, 24, 20), "db3", 2, np.float64)
    assert W.coarse == (slice(0, 4), slice(0, 6), slice(0, 5))
    y = W(np.ones(W.ishape))
    np.testing.assert_allclose(y[W.coarse], 8.0, atol=1e-12)  # sqrt(2) per axis and level
    y[W.coarse] = 0
    assert norm(y) < 1e-12
    # an axis that becomes odd is left alone: 12 -> 6 -> 3
    assert Wavelet((12, 16), "haar", 4).coarse == (slice(0, 3), slice(0, 1))
    assert Wavelet((7, 4), "haar", 1).coarse == (slice(0, 7), slice(0, 2))


@pytest.mark.parametrize(
    "shape, name, levels",
    [
        ((128, 128, 128), "db4", 4),
        ((128, 128, 128), "haar", 4),
        ((64, 64, 64), "db4", 3),
        ((64, 64), "db8", 2),
        ((12, 12), "haar", 2),
        ((8, 8, 8), "db4", 1),
        ((128, 128, 2), "db4", 1),
        ((128, 128, 3), "db4", 4),
    ],
)
def test_default_levels(shape, name, levels):
    assert Wavelet(shape, name).levels == levels


def test_gram_is_the_identity():
    W = Wavelet((8, 6, 4), "db2", 1)
    assert isinstance(W.gram(), Identity) and isinstance((3.0 * W).gram().operator, Identity)
    assert W.norm() == 1.0


def test_pickle_keeps_everything(rng):
    W = pickle.loads(pickle.dumps(Wavelet((8, 12), "sym5", 2, np.float64)))
    x = rng.standard_normal((8, 12))
    np.testing.assert_array_equal(W(x), Wavelet((8, 12), "sym5", 2, np.float64)(x))
    assert (W.wavelet, W.levels, W.coarse) == ("sym5", 2, (slice(0, 2), slice(0, 3)))


@pytest.mark.parametrize("levels", [0, -1, 4, 1.5])
def test_impossible_levels_are_refused(levels):
    with pytest.raises(ValueError, match=rf"levels = {levels}, but shape \(8, 12\) admits 1 to 3"):
        Wavelet((8, 12), "haar", levels)


@pytest.mark.parametrize("shape", [(), (0,), (4, 0, 4), (-2, 4)])
def test_empty_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"at least one axis and no empty one, got shape"):
        Wavelet(shape)


@pytest.mark.parametrize("shape", [(1,), (1, 1, 1), (3, 5)])
def test_odd_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"no axis of shape .* can be split: .* even length, so pad"):
        Wavelet(shape)
