"""The CTF against RELION's values and an independent formula; filters of image stacks."""

import numpy as np
import pytest

from invcryo.ctf import CTF, electron_wavelength
from invcryo.operators import ImageFilter
from invcryo.testing import check_adjoint, check_gram


def plain_ctf(defocus_u, defocus_v, angle, kv, cs_mm, w, phase, b, scale, sx, sy):
    """One particle, written from scratch in polar coordinates."""
    volts = kv * 1000
    wavelength = 12.2643247 / np.sqrt(volts * (1 + 0.978466e-6 * volts))
    s, azimuth = np.hypot(sx, sy), np.arctan2(sy, sx)
    defocus = (defocus_u + defocus_v) / 2 + (defocus_u - defocus_v) / 2 * np.cos(2 * (azimuth - angle))
    chi = np.pi * wavelength * defocus * s**2 - np.pi / 2 * cs_mm * 1e7 * wavelength**3 * s**4
    chi += phase + np.arctan(w / np.sqrt(1 - w**2))
    return scale * np.sin(chi) * np.exp(-b * s**2 / 4)


def parameters(n, rng):
    return {
        "defocus_u_angstrom": rng.uniform(8000, 30000, n), "defocus_v_angstrom": rng.uniform(8000, 30000, n),
        "defocus_angle": rng.uniform(-np.pi, np.pi, n), "voltage_kv": rng.choice([80.0, 200.0, 300.0], n),
        "cs_mm": rng.uniform(0, 3, n), "amplitude_contrast": rng.uniform(0, 0.3, n),
        "phase_shift": rng.uniform(0, np.pi, n), "b_factor": rng.uniform(0, 80, n), "scale": rng.uniform(0.5, 1, n),
    }  # fmt: skip


@pytest.mark.parametrize(
    "kv, angstrom", [(300, 0.0196876), (200, 0.0250795), (120, 0.0334923), (100, 0.0370146), (80, 0.0417574)]
)
def test_wavelength(kv, angstrom):
    assert electron_wavelength(kv) == pytest.approx(angstrom, abs=5e-8)


@pytest.mark.parametrize(
    "s, value",
    [
        (0, 0.1),
        (1 / 40, 0.628707),
        (1 / 20, 0.662428),
        (1 / 10, 0.079321),
        (1 / 5, -0.844959),
        (1 / 3, -0.973996),
    ],
)
def test_values_of_relion(s, value):
    """T5: the sign is positive at zero frequency, for white particles."""
    ctf = CTF(15000, 15000, 0.0, 300.0, 2.7, 0.1)
    for turn in (0.0, 0.7, 2.0, np.pi):
        assert ctf(s * np.cos(turn), s * np.sin(turn))[0] == pytest.approx(value, abs=5e-7)


def test_the_plain_formula(rng):
    p = parameters(6, rng)
    ctf = CTF(**p)
    sx, sy = rng.uniform(-0.4, 0.4, (2, 5, 7))
    values = ctf(sx, sy)
    assert values.shape == (6, 5, 7) and values.dtype == np.float64
    for i in range(6):
        expected = plain_ctf(*(v[i] for v in p.values()), sx, sy)
        # the phase has hundreds of radians: rounding of the phase, not of the sine
        np.testing.assert_allclose(values[i], expected, atol=1e-12)
        np.testing.assert_allclose(ctf(sx, sy, power=2)[i], expected**2, atol=1e-12)
    single = ctf(sx, sy, dtype=np.float32)
    assert single.dtype == np.float32 and np.abs(single - values).max() < 1e-7


def test_astigmatism_lies_along_its_angle():
    """The defocus of axis U is seen at ``defocus_angle`` from X towards Y, that of V across it."""
    angle, s = np.deg2rad(30), 0.05
    ctf = CTF(20000, 10000, angle, 300, 2.7, 0.1)
    for turn, defocus in (
        (angle, 20000),
        (angle + np.pi, 20000),
        (angle + np.pi / 2, 10000),
        (angle + np.pi / 4, 15000),
    ):
        expected = CTF(defocus, defocus, 0, 300, 2.7, 0.1)(s, 0.0)
        np.testing.assert_allclose(ctf(s * np.cos(turn), s * np.sin(turn)), expected, atol=1e-12)
    # exchanging U and V turns the pattern by 90 degrees
    sx, sy = np.meshgrid(np.linspace(-0.2, 0.2, 9), np.linspace(-0.2, 0.2, 9))
    other = CTF(10000, 20000, angle + np.pi / 2, 300, 2.7, 0.1)
    np.testing.assert_allclose(ctf(sx, sy), other(sx, sy), atol=1e-11)


def test_b_factor_is_the_envelope_of_relion():
    flat, damped = (CTF(15000, 15000, 0, 300, 2.7, 0.1, b_factor=b) for b in (0.0, 50.0))
    s = np.linspace(0, 0.3, 20)
    np.testing.assert_allclose(damped(s, 0.0), flat(s, 0.0) * np.exp(-50 * s**2 / 4), atol=1e-14)


def test_phase_plate_and_amplitude_contrast_add_up():
    at_zero = CTF(15000, 15000, 0, 300, 2.7, [0.1, 0.0, 0.1], phase_shift=[0.0, np.arcsin(0.1), np.pi / 2])(
        0.0, 0.0
    )
    np.testing.assert_allclose(at_zero, [0.1, 0.1, np.cos(np.arcsin(0.1))], atol=1e-15)
    assert CTF(15000, 15000, 0, 300, 2.7, 1.0)(0.0, 0.0) == pytest.approx(1.0)


def test_slicing_and_broadcasting(rng):
    ctf = CTF(rng.uniform(1e4, 2e4, 5), 15000, 0.3, 300, 2.7, 0.1)
    assert len(ctf) == 5 and len(ctf[1:3]) == 2 and len(ctf[np.array([True, False, True, True, False])]) == 3
    assert len(ctf[2]) == 1 and ctf[[4, 0]].defocus_u_angstrom[0] == ctf.defocus_u_angstrom[4]
    with pytest.raises(IndexError):
        ctf[5]
    with pytest.raises(ValueError, match="read-only"):
        ctf.cs_mm[0] = 0.0
    with pytest.raises(ValueError, match="power must be 1 or 2"):
        ctf(0.1, 0.1, power=3)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"defocus_u_angstrom": np.nan}, "defocus_u_angstrom holds NaN"),
        ({"voltage_kv": 300000.0}, "voltage_kv = 300000 is out of range: expected kilovolts"),
        ({"amplitude_contrast": 10.0}, "a fraction; per cent need a factor 0.01"),
        ({"defocus_v_angstrom": 1.5e7}, "positive for underfocus"),
        ({"cs_mm": 2.7e7}, "millimetres"),
        ({"scale": np.ones((2, 2))}, r"shape \(n,\)"),
    ],
)
def test_wrong_units_are_refused(change, message):
    """T6"""
    good = {"defocus_u_angstrom": 1e4, "defocus_v_angstrom": 1e4, "defocus_angle": 0.0, "voltage_kv": 300.0,
            "cs_mm": 2.7, "amplitude_contrast": 0.1}  # fmt: skip
    with pytest.raises(ValueError, match=message):
        CTF(**good | change)


# -- filters -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 8), (9, 9), (8, 9), (9, 8), (30, 33)])
def test_filter_is_the_product_in_fourier_space(shape, rng):
    """With the full FFT and the CTF on both signs of each frequency.

    On the Nyquist column their mean; on the Nyquist row, which the half spectrum stores with one sign of y, the
    value of that sign (the projector has nothing on either).
    """
    ctf = CTF(**parameters(3, rng))
    x = rng.standard_normal((3, *shape))
    sy, sx = np.meshgrid(np.fft.fftfreq(shape[0], 2.5), np.fft.fftfreq(shape[1], 2.5), indexing="ij")
    values = ctf(sx, sy)
    if shape[0] % 2 == 0:
        x = np.fft.ifft2(np.fft.fft2(x) * (np.arange(shape[0]) != shape[0] // 2)[:, None]).real
    mirrored = values[:, (-np.arange(shape[0])) % shape[0]][:, :, (-np.arange(shape[1])) % shape[1]]
    expected = np.fft.ifft2(np.fft.fft2(x) * (values + mirrored) / 2)
    assert np.abs(expected.imag).max() < 1e-12
    A = ImageFilter.from_ctf(ctf, shape, 2.5, dtype=np.float64)
    np.testing.assert_allclose(A(x), expected.real, atol=1e-12)


@pytest.mark.parametrize("shape", [(8, 8), (9, 8), (8, 9)])
def test_gram_holds_at_the_nyquist_columns(shape, rng):
    """Inputs with nothing but Nyquist frequencies, where an astigmatic CTF differs between +pi and -pi (T2, T3)."""
    ctf = CTF(20000, 12000, 0.4, 300, 2.7, 0.1)
    A = ImageFilter.from_ctf(ctf, shape, 1.5, dtype=np.float64)
    y, x = np.mgrid[: shape[0], : shape[1]]
    for image in (
        (-1.0) ** x,
        (-1.0) ** y,
        (-1.0) ** (x + y),
        (-1.0) ** x * np.cos(2 * np.pi * y / shape[0] + 0.3),
    ):
        assert check_gram(A, x=image[None]) < 1e-13
        weight = ImageFilter.from_array(rng.random((shape[0], shape[1] // 2 + 1)), shape, 1, dtype=np.float64)
        assert check_gram(A, weight, x=image[None]) < 1e-13
    assert check_adjoint(weight) < 1e-15  # whatever is written in the self-conjugate columns


@pytest.mark.parametrize("shape", [(8, 9), (9, 8), (12, 12)])
def test_integer_shifts_move_pixels_exactly(shape, rng):
    """T11: (x, y) order, sign, and an asymmetric shift; for fractional ones, that two halves make a whole."""
    t = np.array([[2, 0], [0, 3], [-1, 2], [3, -2]])
    x = rng.standard_normal((4, *shape))
    A = ImageFilter.from_shifts(t, shape, dtype=np.float64)
    for image, moved, (tx, ty) in zip(x, A(x), t, strict=True):
        np.testing.assert_allclose(moved, np.roll(image, (ty, tx), (0, 1)), atol=1e-13)
    delta = np.zeros((4, *shape))
    delta[:, shape[0] // 2, shape[1] // 2] = 1
    peaks = [np.unravel_index(image.argmax(), shape) for image in A(delta)]
    assert peaks == [((shape[0] // 2 + ty) % shape[0], (shape[1] // 2 + tx) % shape[1]) for tx, ty in t]
    radius = np.hypot(*np.meshgrid(np.fft.rfftfreq(shape[1]), np.fft.fftfreq(shape[0])))
    smooth = np.fft.irfft2(np.fft.rfft2(x) * (radius < 0.4), s=shape)
    half = ImageFilter.from_shifts(t / 2, shape, dtype=np.float64)
    np.testing.assert_allclose((half @ half)(smooth), A(smooth), atol=1e-13)
    np.testing.assert_allclose(half.H(half(smooth)), smooth, atol=1e-13)


def test_composition_of_filters(rng):
    ctf, t = CTF(**parameters(4, rng)), rng.uniform(-2, 2, (4, 2))
    shape = (8, 9)
    x = rng.standard_normal((4, *shape))
    A = ImageFilter.from_ctf(ctf, shape, 2.0, dtype=np.float64)
    B = ImageFilter.from_shifts(t, shape, dtype=np.float64)
    both = A @ B
    assert isinstance(both, ImageFilter)
    np.testing.assert_allclose(both(x), A(B(x)), atol=1e-13)
    np.testing.assert_allclose(both.H(x), B.H(A.H(x)), atol=1e-13)
    rows = both.rows([3, 1])
    np.testing.assert_allclose(rows(x[[3, 1]]), both(x)[[3, 1]], atol=1e-13)
    np.testing.assert_allclose(both.gram().rows(2)(x[2:3]), both.gram()(x)[2:3], atol=1e-13)


def test_values_are_made_batch_by_batch(rng, monkeypatch):
    """The same images whether filtered together or one at a time."""
    from invcryo.operators import fourier

    A = ImageFilter.from_ctf(CTF(**parameters(5, rng)), (8, 9), 2.0)
    x = rng.standard_normal((5, 8, 9)).astype(np.float32)
    whole = A(x)
    monkeypatch.setattr(fourier, "_BATCH_PIXELS", 2 * 72 + 1)
    np.testing.assert_array_equal(A(x), whole)


def test_radial_weights_whiten_coloured_noise(rng):
    """Noise of a known radial power spectrum, filtered by 1 / sigma, is white in every shell."""
    n, shape = 400, (24, 24)
    sigma2 = 1.0 / (1.0 + np.arange(18.0)) + 0.2
    colour = ImageFilter.from_radial(np.sqrt(sigma2), shape, n, dtype=np.float64)
    weight = ImageFilter.from_radial(1 / sigma2, shape, n, dtype=np.float64)
    noise = colour(rng.standard_normal((n, *shape)))
    radius = np.rint(24 * np.hypot(*np.meshgrid(np.fft.rfftfreq(24), np.fft.fftfreq(24)))).astype(int)
    power = (
        np.abs(np.fft.rfft2(ImageFilter.from_radial(sigma2**-0.5, shape, n, dtype=np.float64)(noise))) ** 2
    ).mean(0)
    shells = [power[radius == k].mean() / 24**2 for k in range(13)]
    np.testing.assert_allclose(shells, 1.0, atol=0.12)
    # <n, W n> is the number of pixels, up to chance
    assert (noise * weight(noise)).sum() == pytest.approx(noise.size, rel=0.02)
    # one value per shell, exactly at whole radii, the last one beyond
    response = ImageFilter.from_radial([3.0, 2.0, 1.0], (8, 12), 1, dtype=np.float64).values(slice(None))[0]
    np.testing.assert_allclose(
        response[:, 0], [3, 2, 1, 1, 1, 1, 1, 2], atol=1e-14
    )  # the shorter side counts
    assert response[0, 3] == pytest.approx(1.0)  # 3 of 12 along x is 2 of 8 along y
