"""The Kaiser-Bessel window: every formula against quadrature of its definition, in double precision."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import iv, j0

from invcryo.operators import Synthesis
from invcryo.window import BandLimited, KaiserBessel, Window

#: The two sets of the papers, and others for which no digit was ever copied.
WINDOWS = [KaiserBessel(), KaiserBessel.wide(), KaiserBessel(1.7, 6.0, 1), KaiserBessel(2.5, 9.0, 3)]
PAPER = WINDOWS[:2]


@pytest.fixture(params=WINDOWS, ids=repr)
def window(request):
    return request.param


@pytest.fixture(params=PAPER, ids=repr)
def paper_window(request):
    return request.param


def integral(f, a, b):
    return quad(f, a, b, epsabs=1e-13, epsrel=1e-12, limit=400)[0]


# -- formulas ----------------------------------------------------------------------------------------------


def test_the_two_parameter_sets():
    assert (KaiserBessel().radius, KaiserBessel().alpha, KaiserBessel().order) == (2.0, 10.83, 2)
    wide = KaiserBessel.wide()
    assert (wide.radius, wide.alpha, wide.order) == (4.0, 19.0, 2)


def test_value_is_its_formula(window):
    a, alpha, m = window.radius, window.alpha, window.order
    r = np.linspace(0, 0.999 * a, 40)
    beta = np.sqrt(1 - (r / a) ** 2)
    np.testing.assert_allclose(window.value(r), beta**m * iv(m, alpha * beta) / iv(m, alpha), rtol=1e-12)
    assert window.value(0.0) == pytest.approx(1.0, abs=1e-15)
    assert not window.value([a, 1.5 * a, 100.0]).any() and not window.projection([a, 2 * a]).any()
    np.testing.assert_array_equal(window.value(-r), window.value(r))


def test_projection_is_the_line_integral(window):
    a = window.radius
    for r in (0.0, 0.3, 0.5 * a, 0.9 * a, 0.99 * a):
        half = np.sqrt(a**2 - r**2)
        exact = 2 * integral(lambda t, r=r: float(window.value(np.hypot(r, t))), 0, half)
        assert abs(window.projection(r) - exact) <= 1e-11 * window.projection(0.0)


def test_slope_is_the_derivative_of_the_projection(window):
    h = 1e-5
    for r in np.linspace(0.1, 0.95, 9) * window.radius:
        difference = (window.projection(r + h) - window.projection(r - h)) / (2 * h)
        assert abs(window.slope(r) * r - difference) <= 1e-8 * window.projection(0.0)


def test_fourier_is_the_transform_of_the_window(window):
    a, alpha = window.radius, window.alpha
    # below, at and above the frequency where the Bessel function changes from I to J
    for w in (
        0.0,
        0.5,
        np.pi,
        0.999 * alpha / a,
        alpha / a,
        alpha / a + 1e-9,
        1.001 * alpha / a,
        2 * np.pi,
        9.0,
    ):
        exact = integral(
            lambda r, w=w: 4 * np.pi * r**2 * float(window.value(r)) * np.sinc(w * r / np.pi), 0, a
        )
        assert abs(window.fourier(w) - exact) <= 1e-11 * window.fourier(0.0)
    assert window.fourier(-1.0) == window.fourier(1.0)


def test_central_slice(window):
    """The transform on a plane is the 2-D transform of the projection."""
    for w in (0.0, 1.0, np.pi, 6.0):
        exact = integral(
            lambda r, w=w: 2 * np.pi * r * float(window.projection(r)) * j0(w * r), 0, window.radius
        )
        assert abs(window.fourier(w) - exact) <= 1e-11 * window.fourier(0.0)


def test_autocorrelation_of_the_projection(window):
    """Against the integral over the plane, by the trapezoidal rule on a fine grid."""
    a, step = window.radius, window.radius / 60
    y = step * np.arange(-60, 61)
    grid_x, grid_y = np.meshgrid(y, y)
    p = window.projection(np.hypot(grid_x, grid_y))
    top = (p**2).sum() * step**2
    for r in (0.0, 0.1 * a, a, 1.5 * a, 1.9 * a):
        exact = (p * window.projection(np.hypot(grid_x - r, grid_y))).sum() * step**2
        assert abs(window.autocorrelation(r) - exact) <= 1e-7 * top
    assert not window.autocorrelation([2 * a, 3 * a]).any()
    assert abs(window.autocorrelation(2 * a * (1 - 1e-9))) <= 1e-7 * top  # no step at the end of the support
    assert window.autocorrelation(np.zeros((2, 3))).shape == (2, 3)


def test_autocorrelation_is_positive_definite(window):
    """Its transform is a square: the Hankel transform of the table gives phi^ squared back."""
    for w in (0.0, 1.0, np.pi):
        nodes, weights = np.polynomial.legendre.leggauss(100)
        r = window.radius * (nodes + 1)
        transform = window.radius * (weights * 2 * np.pi * r * window.autocorrelation(r) * j0(w * r)).sum()
        assert abs(transform - window.fourier(w) ** 2) <= 1e-7 * window.fourier(0.0) ** 2


def test_near_partition_of_unity(paper_window):
    """Constant coefficients give a nearly constant function: what the parameters are chosen for.

    The ripple is that of the six nearest points of the reciprocal lattice.
    """
    k = np.arange(-6, 7)
    rng = np.random.default_rng(0)
    sums = []
    for x in rng.uniform(0, 1, (50, 3)):
        r = np.sqrt(((np.stack(np.meshgrid(k, k, k, indexing="ij"), -1) - x) ** 2).sum(-1))
        sums.append(paper_window.value(r).sum())
    ripple = abs(float(paper_window.fourier(2 * np.pi) / paper_window.fourier(0.0)))
    assert ripple <= 3.3e-4
    assert np.ptp(sums) <= (12.1 * ripple + 1e-7) * np.mean(sums)
    assert abs(np.mean(sums) - float(paper_window.fourier(0.0))) <= 6 * ripple * np.mean(sums)


def test_localisation_in_fourier_space():
    """The wide window holds its transform below Nyquist, the default lets a little through."""
    through = [float(w.fourier(2 * np.pi) / w.fourier(0.0)) for w in PAPER]
    assert abs(through[1]) < 1e-4 and 1e-5 < abs(through[0]) < 1e-2


# -- tables ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", PAPER, ids=repr)
def test_tables_hold_the_formulas(window):
    """Linear interpolation in the squared distance, as the kernels do it."""
    u = np.random.default_rng(1).uniform(0, 1, 300)
    for name, radius in (("projection", window.radius), ("autocorrelation", 2 * window.radius)):
        table, function = getattr(window, f"{name}_table"), getattr(window, name)
        position = u * (len(table) - 2)
        i = position.astype(int)
        value = table[i] + (position - i) * (table[i + 1] - table[i])
        assert np.abs(value - function(radius * np.sqrt(u))).max() <= 3e-7 * table[0]
        assert table[-2] == table[-1] == 0.0  # the padding of the last cell
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 1.0


def test_windows_compare_by_their_parameters():
    assert KaiserBessel() == KaiserBessel(2, 10.83, 2) and hash(KaiserBessel()) == hash(
        KaiserBessel(2, 10.83, 2)
    )
    assert KaiserBessel() != KaiserBessel(2 + 1e-12, 10.83, 2) and KaiserBessel() != BandLimited()
    assert BandLimited() == BandLimited() and len({BandLimited(), BandLimited(), KaiserBessel()}) == 2
    assert repr(KaiserBessel()) == "KaiserBessel(2, 10.83, 2)"


@pytest.mark.parametrize("arguments", [(0, 1, 2), (2, -1, 2), (2, 10, 0), (np.nan, 10, 2)])
def test_bad_parameters(arguments):
    with pytest.raises(ValueError, match="a > 0, alpha > 0, order >= 1"):
        KaiserBessel(*arguments)


# -- coefficients to voxels --------------------------------------------------------------------------------

CASES = [
    ((12, 12, 12), None, 1.0), ((13, 13, 13), None, 1.0), ((12, 13, 11), (15, 14, 17), 1.0),
    ((12, 11, 10), None, 1.7), ((11, 12, 9), (23, 21, 20), 2.0), ((12, 9, 11), (18, 17, 16), 1.3),
]  # fmt: skip


def smooth(shape, rng, width=1.6):
    """Gaussian blobs of both signs near the centre: below 1e-5 both beyond Nyquist and at the edges."""
    mesh = np.meshgrid(*(np.arange(n) - n // 2 for n in shape), indexing="ij")
    out = np.zeros(shape)
    for _ in range(5):
        centre, weight = rng.uniform(-2, 2, 3), rng.standard_normal()
        out += weight * np.exp(-sum((g - c) ** 2 for g, c in zip(mesh, centre, strict=True)) / (2 * width**2))
    return out


def direct(window, c, shape, scale):
    """``f(x) = sum_k c[k] phi(x / s - k)``, coefficient by coefficient."""
    axes = [np.arange(m) - m // 2 for m in shape]
    out = np.zeros(shape)
    for k in np.ndindex(c.shape):
        squared = [(x / scale - (i - n // 2)) ** 2 for x, i, n in zip(axes, k, c.shape, strict=True)]
        z, y, x = squared
        out += c[k] * window.value(np.sqrt(z[:, None, None] + y[:, None] + x))
    return out


@pytest.mark.parametrize(
    "scale, shape", [(1.0, (5, 6, 4)), (1.0, (4, 7, 5)), (1.7, (9, 6, 7)), (2.0, (8, 13, 9))]
)
def test_sample_is_the_sum(paper_window, scale, shape, rng):
    c = rng.standard_normal((4, 5, 3))
    found = paper_window.sample(c, shape, scale=scale)
    np.testing.assert_allclose(found, direct(paper_window, c, shape, scale), atol=1e-12)
    assert paper_window.sample(c.astype(np.float32), shape, scale=scale).dtype == np.float32


@pytest.mark.parametrize("size, scale", [(0, 1.0), (5, 1.0), (1, 1.5)])
def test_synthesis_samples_the_function(paper_window, size, scale, rng):
    """On smooth coefficients point values, to the leak of the window beyond Nyquist, which `sample` folds."""
    shape, width, leak = ((20, 19, 21), 1.6, 1e-5) if paper_window.radius == 4 else ((24, 25, 23), 2.4, 6e-3)
    full = tuple(round(scale * n) + size for n in shape)
    c = smooth(shape, rng, width)
    points = paper_window.sample(c, full, scale=scale)
    voxels = paper_window.synthesize(c, full, scale=scale)
    assert voxels.shape == points.shape == full
    assert np.linalg.norm(voxels - points) <= leak * np.linalg.norm(points)


def test_sampling_folds_what_synthesis_drops(paper_window, rng):
    """Of rough coefficients too: the spectrum of the point values is that of all aliases together."""
    shape = (14, 15, 13)
    c = np.zeros(shape)
    c[5:9, 5:9, 5:8] = rng.standard_normal((4, 4, 3))
    fold = np.zeros(shape)
    for m in np.ndindex(7, 7, 7):
        w = [2 * np.pi * (np.fft.fftfreq(n) + i - 3) for n, i in zip(shape, m, strict=True)]
        fold += paper_window.fourier(np.sqrt(sum(np.meshgrid(*(a**2 for a in w), indexing="ij"))))
    expected = np.fft.ifftn(np.fft.fftn(c) * fold).real
    found = paper_window.sample(c)
    assert np.linalg.norm(found - expected) <= 3e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("shape, full, scale", CASES)
@pytest.mark.parametrize("window", [KaiserBessel(), BandLimited()], ids=repr)
def test_synthesis_is_its_fourier_formula(window, shape, full, scale, rng):
    """``s^3 phi^(s w) chat(s w)`` by plain sums, on full-band coefficients."""
    c = rng.standard_normal(shape)
    full = full or tuple(round(scale * n) for n in shape)
    spectrum = c.astype(complex)
    for axis, (n, m) in enumerate(zip(shape, full, strict=True)):
        w = 2 * np.pi * np.fft.fftfreq(m)
        matrix = np.exp(-1j * np.outer(w, scale * (np.arange(n) - n // 2) + m // 2))
        spectrum = np.moveaxis(np.tensordot(matrix, spectrum, (1, axis)), 0, axis)
    radius = np.sqrt(sum(np.meshgrid(*((2 * np.pi * np.fft.fftfreq(m)) ** 2 for m in full), indexing="ij")))
    spectrum *= scale**3 * window.fourier(scale * radius)
    for axis, m in enumerate(full):
        if m % 2 == 0:
            np.moveaxis(spectrum, axis, 0)[m // 2] = 0
    expected = np.fft.ifftn(spectrum)
    assert np.abs(expected.imag).max() <= 1e-12 * np.abs(expected).max()
    np.testing.assert_allclose(window.synthesize(c, full, scale=scale), expected.real, atol=1e-11)
    A = Synthesis(window, shape, full, scale=scale, dtype=np.float64)
    np.testing.assert_allclose(A(c), expected.real, atol=1e-11)
    single = window.synthesize(c.astype(np.float32), full, scale=scale)
    assert single.dtype == np.float32
    assert np.linalg.norm(single - expected.real) <= 2e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("n", [8, 9])
@pytest.mark.parametrize("m", [14, 15])
def test_a_delta_at_the_centre_stays_there(paper_window, n, m):
    """T7: index n // 2 goes to m // 2, for all parities, and the map is even about it."""
    c = np.zeros((n, n, n))
    c[n // 2, n // 2, n // 2] = 1
    for v in (paper_window.synthesize(c, m, scale=1.6), paper_window.sample(c, m, scale=1.6)):
        assert np.unravel_index(v.argmax(), v.shape) == (m // 2,) * 3
        inner = v[1:, 1:, 1:] if m % 2 == 0 else v
        np.testing.assert_allclose(inner, inner[::-1, ::-1, ::-1], atol=1e-13)
    assert paper_window.sample(c, m, scale=1.6).max() == pytest.approx(1.0)


def test_a_constant_stays_a_constant(paper_window):
    v = paper_window.synthesize(np.ones((9, 8, 10)))
    np.testing.assert_allclose(v, float(paper_window.fourier(0.0)), rtol=1e-12)
    coefficients = paper_window.analyze(np.full((9, 8, 10), 3.0))
    np.testing.assert_allclose(coefficients, 3.0 / float(paper_window.fourier(0.0)), rtol=1e-12)


@pytest.mark.parametrize("shape", [(12, 12, 12), (13, 13, 13), (12, 13, 11)])
@pytest.mark.parametrize("window", [*PAPER, BandLimited()], ids=repr)
def test_analysis_inverts_synthesis(window, shape, rng):
    # below the sphere where the wide window falls under its floor, and inside every Nyquist frequency
    x = rng.standard_normal(shape)
    f = np.sqrt(sum(np.meshgrid(*(np.fft.fftfreq(n) ** 2 for n in shape), indexing="ij")))
    band = np.fft.ifftn(np.fft.fftn(x) * (f < 0.3)).real
    for first, second in ((window.analyze, window.synthesize), (window.synthesize, window.analyze)):
        again = second(first(band))
        assert np.linalg.norm(again - band) <= 1e-12 * np.linalg.norm(band)
        single = second(first(band.astype(np.float32)))
        assert single.dtype == np.float32
        assert np.linalg.norm(single - band) <= 1e-4 * np.linalg.norm(band)  # dividing by phi^ down to 1e-3
    # what cannot be represented is left out, not blown up
    assert np.linalg.norm(window.synthesize(window.analyze(x))) <= (1 + 1e-12) * np.linalg.norm(x)


def test_band_limited_keeps_the_voxels(rng):
    x = smooth((20, 21, 22), rng)
    np.testing.assert_allclose(BandLimited().synthesize(x), x, atol=1e-4 * np.abs(x).max())
    np.testing.assert_array_equal(BandLimited().fourier([0.0, np.pi, 1.01 * np.pi, -2.0]), [1, 1, 0, 1])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda w, c: w.synthesize(c, scale=0.9), "scale must be at least 1"),
        (lambda w, c: w.synthesize(c, scale=np.nan), "scale must be at least 1"),
        (lambda w, c: w.synthesize(c, (4, 4)), "cannot have shape"),
        (lambda w, c: w.synthesize(c, 0), "cannot have shape"),
        (lambda w, c: w.synthesize(c.astype(int)), "float32 or float64"),
        (lambda w, c: w.sample(c.astype(np.float16)), "float32 or float64"),
    ],
)
def test_bad_maps(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(KaiserBessel(), np.zeros((4, 4, 4)))


def test_a_window_must_say_its_transform():
    with pytest.raises(NotImplementedError):
        Window().fourier(1.0)
