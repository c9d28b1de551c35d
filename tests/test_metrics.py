"""Grid, FSC, masks and map figures against direct sums, published numbers and RELION."""

import logging
import subprocess
import sys

import mrcfile
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import fft

from invcryo.grid import centred_coordinates, frequencies, shell_index
from invcryo.metrics import (
    FSC,
    MaskedFSC,
    correlation,
    fsc,
    half_bit,
    nrmse,
    phase_randomised_fsc,
    psnr,
    radial_average,
    read_fsc_star,
    read_fsc_xml,
    soft_mask,
    soft_sphere,
    write_fsc_star,
    write_fsc_xml,
)
from invcryo.metrics.fsc import _corrected, _randomise_phases

SHAPES = [(6, 6, 6), (7, 7, 7), (6, 7, 10), (30, 30, 30), (31, 31, 31), (32, 32), (33, 33), (12, 17), (21,)]


def curve_of(values, *, voxels=None, pixel_size=1.0):
    values = np.asarray(values, dtype=float)
    box = 2 * (len(values) - 1)
    counts = np.full(len(values), 10**9) if voxels is None else np.asarray(voxels)
    return FSC(np.arange(len(values)) / (box * pixel_size), values, counts, pixel_size, box)


def half_maps(rng, *, noise=0.5, n=32, width=2.0):
    """A few blobs near the centre plus white noise, twice."""
    z, y, x = centred_coordinates((n, n, n))
    truth = np.zeros((n, n, n))
    for cx, cy, cz in rng.uniform(-n / 6, n / 6, (6, 3)):
        truth += np.exp(-((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2) / (2 * width**2))
    a, b = (truth + noise * rng.standard_normal(truth.shape) for _ in range(2))
    return a.astype(np.float32), b.astype(np.float32)


def direct_fsc(a, b):
    """The definition, over the full complex spectrum, in float64."""
    fa, fb = fft.fftn(a.astype(float)), fft.fftn(b.astype(float))
    box = max(a.shape)
    f2 = sum(g**2 for g in np.meshgrid(*[fft.fftfreq(n) for n in a.shape], indexing="ij"))
    shells = np.round(np.sqrt(f2) * box).astype(int)
    values, voxels = [], []
    for i in range(box // 2 + 1):
        s = shells == i
        voxels.append(s.sum())
        power = np.sqrt((np.abs(fa[s]) ** 2).sum() * (np.abs(fb[s]) ** 2).sum())
        values.append((fa[s] * fb[s].conj()).sum().real / power if power > 0 else 0.0)
    return np.array(values), np.array(voxels)


# grid


@pytest.mark.parametrize("n", [1, 2, 5, 6, 30, 31])
def test_centre_is_n_over_2_for_both_parities(n):
    z, y, x = centred_coordinates((n, 4, n + 1))
    assert (z.shape, y.shape, x.shape) == ((n, 1, 1), (1, 4, 1), (1, 1, n + 1))
    assert z[n // 2, 0, 0] == 0 and x[0, 0, (n + 1) // 2] == 0
    np.testing.assert_array_equal(np.diff(z.ravel()), 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_frequencies_are_those_of_the_fft(shape):
    for axis, (n, full, half) in enumerate(
        zip(shape, frequencies(shape), frequencies(shape, half=True), strict=True)
    ):
        assert full.shape == tuple(n if i == axis else 1 for i in range(len(shape)))
        np.testing.assert_array_equal(full.ravel(), fft.fftfreq(n))
        last = axis == len(shape) - 1
        np.testing.assert_array_equal(half.ravel(), fft.rfftfreq(n) if last else fft.fftfreq(n))


def test_shells_of_a_cube_and_of_another_box():
    k = np.array([0, 1, 2, -3, -2, -1])
    radius = np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k[None, None, :] ** 2)
    np.testing.assert_array_equal(shell_index((6, 6, 6), half=False), np.round(radius))
    np.testing.assert_array_equal(shell_index((6, 6, 6)), np.round(radius)[:, :, :4])
    # a box of 8 x 16: one step along the short axis is two shells of the long one
    shells = shell_index((8, 16), half=False)
    np.testing.assert_array_equal(shells[:, 0], [0, 2, 4, 6, 8, 6, 4, 2])
    np.testing.assert_array_equal(shells[0], [0, 1, 2, 3, 4, 5, 6, 7, 8, 7, 6, 5, 4, 3, 2, 1])
    np.testing.assert_array_equal(shell_index((8, 16), rows=slice(2, 5)), shell_index((8, 16))[2:5])


# FSC


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fsc_against_the_definition(shape, dtype, rng):
    a, b = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    b += 0.7 * a
    found = fsc(a, b, pixel_size=1.3)
    values, voxels = direct_fsc(a, b)
    np.testing.assert_array_equal(found.voxels, voxels)
    np.testing.assert_allclose(found.correlation, values, atol=2e-6 if dtype == np.float32 else 1e-13)
    assert found.box == max(shape)
    np.testing.assert_allclose(
        found.frequency, np.arange(max(shape) // 2 + 1) / (1.3 * max(shape)), rtol=1e-15
    )


def test_large_spectrum_is_summed_in_parts(monkeypatch, rng):
    a, b = rng.standard_normal((2, 12, 10, 9))
    whole = fsc(a, b, pixel_size=1.0)
    monkeypatch.setattr(sys.modules[FSC.__module__], "_CHUNK", 130)
    parts = fsc(a, b, pixel_size=1.0)
    np.testing.assert_allclose(parts.correlation, whole.correlation, atol=1e-14)
    np.testing.assert_array_equal(parts.voxels, whole.voxels)


@pytest.mark.parametrize("n", [30, 31, 32, 33])
def test_identical_maps_give_one_and_nyquist(n, rng):
    a = rng.standard_normal((n, n, n)).astype(np.float32)
    curve = fsc(a, a, pixel_size=2.0)
    np.testing.assert_allclose(curve.correlation, 1.0, atol=1e-12)
    for threshold in (0.143, 0.5, "half-bit"):
        assert curve.beyond_nyquist(threshold)
        assert curve.resolution(threshold) == pytest.approx(2.0 * n / (n // 2))
    np.testing.assert_allclose(fsc(a, -a, pixel_size=2.0).correlation, -1.0, atol=1e-12)


def test_pure_noise_gives_zero(rng):
    a, b = rng.standard_normal((2, 48, 48, 48)).astype(np.float32)
    curve = fsc(a, b, pixel_size=2.0)
    # n Fourier voxels are n / 2 independent complex terms: a correlation of s.d. 1 / sqrt(n)
    scores = curve.correlation[1:] * np.sqrt(curve.voxels[1:])
    assert np.abs(scores).max() < 4.5
    assert 0.5 < scores.std() < 1.5
    assert not curve.beyond_nyquist()
    assert curve.resolution("half-bit") > 20  # 48 voxels of 2 A: within the first shells


def test_white_signal_and_noise_have_the_expected_correlation(rng):
    """FSC = SNR / (1 + SNR) where both maps hold the same signal and noise of their own."""
    signal = rng.standard_normal((48, 48, 48))
    a, b = (signal + 0.5 * rng.standard_normal(signal.shape) for _ in range(2))
    curve = fsc(a, b, pixel_size=1.0)
    bound = 5 * (1 - 0.8**2) / np.sqrt(curve.voxels[1:])
    assert (np.abs(curve.correlation[1:] - 0.8) < np.maximum(bound, 1e-3)).all()


@given(st.floats(1e-3, 1e3), st.floats(-1e2, 1e2), st.floats(0.1, 20))
@settings(max_examples=20, deadline=None)
def test_scale_and_offset_do_not_matter(scale, offset, pixel_size):
    a, b = np.random.default_rng(5).standard_normal((2, 8, 8, 8))
    plain = fsc(a, b, pixel_size=pixel_size)
    moved = fsc(scale * a + offset, b, pixel_size=pixel_size)
    # the offset enters shell 0 alone; in the others it leaves its rounding, relative to the scale
    tolerance = 1e-14 * (1 + abs(offset) / scale) * 100
    np.testing.assert_allclose(moved.correlation[1:], plain.correlation[1:], atol=tolerance)
    assert plain.frequency[1] == pytest.approx(1 / (8 * pixel_size))


def test_axis_is_in_angstrom(rng):
    """The pixel size scales the axis and nothing else: shell i of a box of n pixels is n * pixel / i."""
    a, b = half_maps(rng)
    one, three = fsc(a, b, pixel_size=1.0), fsc(a, b, pixel_size=3.0)
    np.testing.assert_allclose(3 * three.frequency, one.frequency, rtol=1e-15)
    assert three.resolution() == pytest.approx(3 * one.resolution())
    assert 1 / three.frequency[4] == pytest.approx(32 * 3 / 4)
    with pytest.raises(TypeError):
        fsc(a, b)


def test_a_shift_is_seen_at_high_frequency(rng):
    a, _ = half_maps(rng, noise=0.2)
    shifted = np.roll(a, 1, axis=0)
    k = np.fft.fftfreq(32)[:, None, None]
    shells = shell_index((32, 32, 32), half=False)
    power = np.abs(fft.fftn(a.astype(float))) ** 2
    expected = [
        (power * np.cos(2 * np.pi * k))[shells == i].sum() / power[shells == i].sum() for i in range(17)
    ]
    np.testing.assert_allclose(fsc(a, shifted, pixel_size=1.0).correlation, expected, atol=1e-5)


def test_mask_multiplies_the_maps(rng):
    a, b = half_maps(rng)
    mask = soft_sphere(a.shape, 8, 4)
    found = fsc(a, b, pixel_size=1.0, mask=mask)
    np.testing.assert_allclose(found.correlation, direct_fsc(a * mask, b * mask)[0], atol=1e-5)
    assert found.fraction == pytest.approx(mask.mean(dtype=float))
    # maps of integers are not cut down to the integers of the mask
    ints = (10 * a).astype(np.int8)
    np.testing.assert_allclose(
        fsc(ints, ints + 1, pixel_size=1.0, mask=mask).correlation,
        direct_fsc(ints * mask.astype(float), (ints + 1) * mask.astype(float))[0],
        atol=1e-9,
    )


def test_empty_shells_give_zero_not_nan():
    x = np.cos(2 * np.pi * 2 * np.arange(16) / 16)
    curve = fsc(x, x, pixel_size=1.0)
    assert np.isfinite(curve.correlation).all()
    assert curve.correlation[2] == pytest.approx(1.0)
    flat = np.zeros((8, 8))
    flat[0, 0] = 1e-200  # its power underflows in every shell
    np.testing.assert_array_equal(fsc(flat, flat, pixel_size=1.0).correlation, 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: (a, b[:-1]), r"differ in shape: \(8, 8, 8\) and \(7, 8, 8\)"),
        (lambda a, b: (a, np.where(b > 0, b, np.nan)), "second map holds NaN"),
        (lambda a, b: (a * np.inf, b), "first map holds NaN"),
        (lambda a, b: (np.full_like(a, 3.0), b), r"first map is constant \(3\)"),
        (lambda a, b: (a, b + 0j), "complex"),
        (lambda a, b: (np.float64(1), np.float64(2)), "no Fourier shells"),
    ],
)
def test_bad_maps_are_refused(change, message, rng):
    a, b = rng.standard_normal((2, 8, 8, 8))
    with pytest.raises(ValueError, match=message):
        fsc(*change(a, b), pixel_size=1.0)


def test_bad_pixel_sizes_and_masks_are_refused(rng):
    a, b = rng.standard_normal((2, 8, 8, 8))
    with pytest.raises(ValueError, match=r"1\.06 and 1 angstrom"):
        fsc(a, b, pixel_size=(1.06, 1.0))
    assert fsc(a, b, pixel_size=(1.06, 1.0601)).pixel_size == 1.06
    for bad in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="pixel size must be positive"):
            fsc(a, b, pixel_size=bad)
    for mask in (np.ones((8, 8)), np.zeros_like(a), 2 * np.ones_like(a), np.full_like(a, np.nan)):
        with pytest.raises(ValueError, match="mask"):
            fsc(a, b, pixel_size=1.0, mask=mask)


# thresholds


def test_half_bit_numbers():
    """The published formula; public copies of it carry typing errors."""
    np.testing.assert_allclose(half_bit([100, 1e3, 1e4, 1e6]), [0.3067, 0.2164, 0.1860, 0.1730], atol=5.1e-5)
    assert half_bit(1e14) == pytest.approx(0.2071 / 1.2071, abs=1e-6)
    assert half_bit(1) == pytest.approx(1.0)


def test_half_bit_counts_independent_voxels():
    curve = curve_of(np.ones(6), voxels=[1, 18, 62, 98, 210, 350])
    np.testing.assert_allclose(curve.threshold("half-bit")[3], half_bit(49))
    np.testing.assert_allclose(curve.threshold("half-bit", symmetry_order=7)[3], half_bit(7))
    masked = FSC(curve.frequency, curve.correlation, curve.voxels, 1.0, 10, fraction=0.5)
    np.testing.assert_allclose(masked.threshold("half-bit")[3], half_bit(24.5))
    # with 60-fold symmetry the first shells hold less than one voxel: no curve could pass, none is failed
    assert curve.threshold("half-bit", symmetry_order=60)[1] > 1
    assert curve.beyond_nyquist("half-bit", symmetry_order=60)
    with pytest.raises(ValueError, match="'half-bits'"):
        curve.threshold("half-bits")


def test_resolution_is_the_last_shell_before_the_first_dip():
    curve = curve_of([1, 0.9, 0.6, 0.4, 0.1, 0.3, 0.05, 0.02, 0.0], pixel_size=2.0)  # box 16
    assert curve.resolution(0.143) == pytest.approx(32 / 3)  # not shell 5, after the dip
    assert curve.resolution(0.5) == pytest.approx(32 / 2)
    assert curve.resolution(0.5, interpolate=True) == pytest.approx(32 / 2.5)
    position = 3 + (0.4 - 0.143) / (0.4 - 0.1)
    assert curve.resolution(0.143, interpolate=True) == pytest.approx(32 / position)
    assert not curve.beyond_nyquist(0.143)
    # a value at the threshold passes
    assert curve_of([1, 0.9, 0.143, 0.1]).resolution() == pytest.approx(6 / 2)


def test_resolution_without_a_crossing_and_without_any_signal():
    assert curve_of([1, 0.9, 0.8, 0.7], pixel_size=1.5).resolution() == pytest.approx(3.0)
    assert curve_of([1, 0.9, 0.8, 0.7]).beyond_nyquist()
    nothing = curve_of([1, 0.1, 0.9, 0.9])
    assert nothing.resolution() == np.inf and not nothing.beyond_nyquist()
    # shell 0 is the sign of the product of the means: it decides nothing
    assert curve_of([-1, 0.9, 0.1, 0.0]).resolution() == pytest.approx(6.0)


@pytest.mark.data
def test_resolution_of_a_relion_file(reference_data):
    general, curves = read_fsc_star(reference_data / "formats-star" / "postprocess.star")
    corrected = curves["rlnFourierShellCorrelationCorrected"]
    unmasked = curves["rlnFourierShellCorrelationUnmaskedMaps"]
    assert (corrected.box, corrected.pixel_size) == (96, pytest.approx(7.5))
    assert corrected.resolution(0.143) == pytest.approx(float(general["rlnFinalResolution"]), abs=1e-6)
    assert corrected.resolution(0.143, interpolate=True) == pytest.approx(16.106, abs=6e-4)
    assert unmasked.resolution(0.143) == pytest.approx(26.667, abs=6e-4)
    assert unmasked.resolution(0.143, interpolate=True) == pytest.approx(26.552, abs=6e-4)


# mask correction


@pytest.mark.data
def test_correction_formula_against_a_relion_file(reference_data):
    _, curves = read_fsc_star(reference_data / "formats-star" / "postprocess.star")
    masked = curves["rlnFourierShellCorrelationMaskedMaps"].correlation
    noise = curves["rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps"].correlation
    start = int(np.argmax(curves["rlnFourierShellCorrelationUnmaskedMaps"].correlation < 0.8))
    expected = curves["rlnFourierShellCorrelationCorrected"].correlation
    # six decimals, divided by 1 - n >= 0.37
    np.testing.assert_allclose(_corrected(masked, noise, start), expected, atol=3e-6)


@pytest.mark.parametrize("shape", [(12, 12, 12), (11, 11, 11), (9, 12, 10), (16, 15)])
def test_random_phases_keep_amplitudes_and_stay_hermitian(shape, rng):
    volume = rng.standard_normal(shape)
    spectrum = fft.rfftn(volume)
    changed = spectrum.copy()
    _randomise_phases(changed, shape, 3, rng)
    inner = shell_index(shape) < 3
    np.testing.assert_array_equal(changed[inner], spectrum[inner])
    # what the map keeps of the changed spectrum is all of it: a real map has it
    back = fft.rfftn(fft.irfftn(changed, s=shape))
    np.testing.assert_allclose(back, changed, atol=1e-5)  # the phases are those of float32 noise
    np.testing.assert_allclose(np.abs(changed), np.abs(spectrum), rtol=1e-6)
    assert np.abs(correlation(changed[~inner].real, spectrum[~inner].real)) < 0.3


def test_correction_removes_what_the_mask_makes(rng):
    a, b = half_maps(rng, noise=0.15)
    mask = soft_sphere(a.shape, 7, 2)
    # the same mask on both: correlated by it at all frequencies when it cuts a constant
    result = phase_randomised_fsc(a + 0.3, b + 0.3, mask, pixel_size=3.0, rng=1)
    assert isinstance(result, MaskedFSC)
    start = result.randomised_from
    assert result.unmasked.correlation[start] < 0.8 <= result.unmasked.correlation[1:start].min()
    np.testing.assert_array_equal(
        result.corrected.correlation[: start + 2], result.masked.correlation[: start + 2]
    )
    t, n = (c.correlation[start + 2 :] for c in (result.masked, result.randomised))
    np.testing.assert_allclose(
        result.corrected.correlation[start + 2 :], np.where(n > t, 0, (t - n) / (1 - n)), atol=1e-12
    )
    assert result.randomised.correlation[start + 2 :].max() > 0.05  # there was something to remove
    again = phase_randomised_fsc(a + 0.3, b + 0.3, mask, pixel_size=3.0, rng=1)
    np.testing.assert_array_equal(again.corrected.correlation, result.corrected.correlation)
    other = phase_randomised_fsc(a + 0.3, b + 0.3, mask, pixel_size=3.0, rng=2)
    assert not np.array_equal(other.corrected.correlation, result.corrected.correlation)


def test_a_tight_mask_is_reported(rng, caplog):
    a, b = rng.standard_normal((2, 32, 32, 32)).astype(np.float32)
    mask = np.zeros(a.shape, np.float32)
    mask[16:18, 16:18, 16:18] = 1  # 8 voxels: shells are correlated by the mask
    z, y, x = centred_coordinates(a.shape)
    blob = 20 * np.exp(-(x**2 + y**2 + z**2) / 8)
    with caplog.at_level(logging.WARNING, logger="invcryo"):
        result = phase_randomised_fsc(a + blob, b + blob, mask, pixel_size=1.0, rng=0)
    assert result.randomised.correlation[-1] > 0.1
    assert "the mask alone makes a correlation" in caplog.text


def test_maps_that_never_part_are_not_randomised(rng, caplog):
    a = rng.standard_normal((16, 16, 16))
    with caplog.at_level(logging.WARNING, logger="invcryo"):
        result = phase_randomised_fsc(a, a, np.ones_like(a), pixel_size=1.0)
    assert result.randomised is None and result.randomised_from is None
    assert result.corrected is result.masked
    assert "no phases were randomised" in caplog.text


# files


def test_xml_round_trip(tmp_path, rng):
    curve = fsc(*half_maps(rng), pixel_size=1.7)
    write_fsc_xml(tmp_path / "a.xml", curve, title='half maps <1> & "2"')
    frequency, values = read_fsc_xml(tmp_path / "a.xml")
    np.testing.assert_allclose(frequency, curve.frequency, atol=5.1e-7)
    np.testing.assert_allclose(values, curve.correlation, atol=5.1e-7)
    text = (tmp_path / "a.xml").read_text()
    assert 'xaxis="Resolution (A-1)" yaxis="Correlation Coefficient"' in text
    (tmp_path / "b.xml").write_text("<other/>")
    with pytest.raises(ValueError, match="<other>"):
        read_fsc_xml(tmp_path / "b.xml")
    (tmp_path / "c.xml").write_text("<fsc><coordinate><x>1</x></coordinate></fsc>")
    with pytest.raises(ValueError, match="without x or y"):
        read_fsc_xml(tmp_path / "c.xml")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.xml", "b.xml", "c.xml"]  # no temporary left


def test_star_round_trip(tmp_path, rng):
    a, b = half_maps(rng, noise=0.15)
    result = phase_randomised_fsc(a, b, soft_sphere(a.shape, 9, 4), pixel_size=1.7, rng=0)
    write_fsc_star(tmp_path / "fsc.star", result)
    general, curves = read_fsc_star(tmp_path / "fsc.star")
    assert float(general["rlnFinalResolution"]) == pytest.approx(result.corrected.resolution(), abs=1e-6)
    start = 1 / result.corrected.frequency[result.randomised_from]
    assert float(general["rlnRandomiseFrom"]) == pytest.approx(start, abs=1e-6)
    written = {
        "rlnFourierShellCorrelationCorrected": result.corrected,
        "rlnFourierShellCorrelationUnmaskedMaps": result.unmasked,
        "rlnFourierShellCorrelationMaskedMaps": result.masked,
        "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps": result.randomised,
    }
    assert list(curves) == list(written)
    for name, curve in written.items():
        np.testing.assert_allclose(curves[name].correlation, curve.correlation, atol=5.1e-7)
        np.testing.assert_allclose(curves[name].frequency, curve.frequency, rtol=1e-6)
        np.testing.assert_array_equal(curves[name].voxels, curve.voxels)
        assert curves[name].box == 32


def test_star_of_a_single_curve_and_of_no_resolution(tmp_path):
    write_fsc_star(tmp_path / "one.star", curve_of([1, 0.0, 0.0, 0.0, 0.0]))
    general, curves = read_fsc_star(tmp_path / "one.star")
    assert general == {"rlnFinalResolution": "999.000000"}
    assert list(curves) == ["rlnFourierShellCorrelationUnmaskedMaps"]
    (tmp_path / "two.star").write_text("data_particles\n\nloop_\n_rlnImageName #1\na\n")
    with pytest.raises(ValueError, match=r"no table data_fsc.*particles"):
        read_fsc_star(tmp_path / "two.star")


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "fsc.xml"
    write_fsc_xml(path, curve_of([1, 0.5, 0.1]))
    old = path.read_text()

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_fsc_xml(path, curve_of([1, 0.9, 0.9]))
    assert path.read_text() == old
    assert list(tmp_path.iterdir()) == [path]


# RELION and real data


@pytest.mark.relion
def test_unmasked_curve_of_relion_postprocess(tmp_path, relion):
    """RELION's unmasked curve, first by its own weights, then by ours.

    It sums over the half-spectrum that FFTW stores, in which the plane kx = 0 holds both Friedel mates and
    the rest only one. With that weighting the curves agree to the digits written. Counting every Fourier
    voxel once, as `fsc` does, changes a shell of n voxels by a part of its noise, of the order of (1 - FSC^2)
    / sqrt(n).
    """
    a, b = half_maps(np.random.default_rng(0), n=64, noise=0.005, width=1.2)
    for i, half in enumerate((a, b), start=1):
        with mrcfile.new(tmp_path / f"run_half{i}_class001_unfil.mrc") as file:
            file.set_data(half)
            file.voxel_size = 3.0
    # RELION 3.1.3 stops with an error of its own after it has written the table, while it draws a PDF
    subprocess.run(
        ["relion_postprocess", "--i", "run_half1_class001_unfil.mrc", "--i2", "run_half2_class001_unfil.mrc"]
        + ["--angpix", "3", "--o", "post"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    general, curves = read_fsc_star(tmp_path / "post.star")
    theirs = curves["rlnFourierShellCorrelationUnmaskedMaps"]
    ours = fsc(a, b, pixel_size=3.0)

    fa, fb = (fft.rfftn(h.astype(float)) for h in (a, b))
    shells = shell_index(a.shape).ravel()
    sums = [
        np.bincount(shells, weights=w.ravel())[:33]
        for w in ((fa * fb.conj()).real, np.abs(fa) ** 2, np.abs(fb) ** 2)
    ]
    np.testing.assert_allclose(theirs.correlation, sums[0] / np.sqrt(sums[1] * sums[2]), atol=6e-6)

    np.testing.assert_allclose(theirs.frequency, ours.frequency, rtol=1e-6)
    noise = (1 - ours.correlation**2) / np.sqrt(ours.voxels)
    assert (np.abs(theirs.correlation - ours.correlation) < 2 * noise + 6e-6).all()
    high = ours.correlation > 0.98
    assert high.sum() > 8
    assert np.abs(theirs.correlation - ours.correlation)[high].max() < 1e-3
    assert ours.resolution() == pytest.approx(float(general["rlnFinalResolution"]), abs=1e-6)


@pytest.mark.data
def test_curve_of_the_betagal_reference(reference_data):
    folder = reference_data / "spa-betagal-10061-a"
    reference = np.loadtxt(folder / "reference_fsc.csv", delimiter=",")
    found = mrcfile.read(folder / "reference_reconstruction_96.mrc")
    model = mrcfile.read(folder / "model_5a1a_molmap_96.mrc")
    ball = soft_sphere(found.shape, 110 / 2.548, 0)
    curve = fsc(found, model, pixel_size=2.548, mask=ball)
    np.testing.assert_allclose(curve.frequency[:48], reference[:, 0], atol=5.1e-6)
    # five decimals, and a map stored in half precision
    np.testing.assert_allclose(curve.correlation[:48], reference[:, 1], atol=2e-5)


# masks


@pytest.mark.parametrize("shape", [(30, 30, 30), (31, 31, 31), (32, 33, 30), (24, 25)])
def test_soft_sphere(shape):
    mask = soft_sphere(shape, 5, 6)
    assert mask.dtype == np.float32 and mask.shape == shape
    assert mask.min() == 0 and mask.max() == 1
    line = mask[tuple(n // 2 for n in shape[:-1])]
    c = shape[-1] // 2
    np.testing.assert_array_equal(line[c - 5 : c + 6], 1)  # about n // 2, both parities
    np.testing.assert_allclose(line[c : c + 12], line[c : c - 12 : -1])
    np.testing.assert_allclose(line[c + 5 : c + 12], 0.5 + 0.5 * np.cos(np.pi * np.arange(7) / 6), atol=1e-7)
    binary = soft_sphere(shape, 5, 0)
    np.testing.assert_array_equal(binary, sum(x**2 for x in centred_coordinates(shape)) <= 25)
    with pytest.raises(ValueError, match="negative"):
        soft_sphere(shape, -1)


def test_soft_mask_by_steps():
    volume = np.zeros((21, 22, 23))
    volume[10, 11, 11] = 1.0
    distance = np.sqrt(sum(x**2 for x in centred_coordinates(volume.shape)))
    grown = soft_mask(volume, 0.5, pixel_size=1.0, lowpass=None, extend=3, edge=0)
    np.testing.assert_array_equal(grown, distance < 3)
    soft = soft_mask(volume, 0.5, pixel_size=1.0, lowpass=None, extend=0, edge=6)
    assert soft.dtype == np.float32
    np.testing.assert_allclose(soft, 0.5 + 0.5 * np.cos(np.pi * np.minimum(distance / 6, 1)), atol=1e-6)


def test_soft_mask_refuses_what_cannot_work(rng):
    volume = rng.standard_normal((12, 12, 12))
    with pytest.raises(ValueError, match="no voxel reaches the threshold 99"):
        soft_mask(volume, 99.0, pixel_size=3.0)
    with pytest.raises(ValueError, match="beyond Nyquist, 20 angstrom"):
        soft_mask(volume, 0.1, pixel_size=10.0)
    with pytest.raises(ValueError, match="pixel size"):
        soft_mask(volume, 0.1, pixel_size=0.0)
    with pytest.raises(ValueError, match="negative"):
        soft_mask(volume, 0.1, pixel_size=3.0, edge=-1)
    with pytest.raises(ValueError, match="NaN"):
        soft_mask(volume * np.nan, 0.1, pixel_size=3.0)


@pytest.mark.relion
@pytest.mark.parametrize(
    ("lowpass", "extend", "edge", "threshold"),
    [(None, 3, 0, 0.3), (None, 0, 6, 0.3), (15, 3, 6, 0.3), (20, 2, 5, 0.2), (15, 2.5, 5.5, 0.2)],
)
def test_soft_mask_of_relion(tmp_path, relion, lowpass, extend, edge, threshold):
    volume, _ = half_maps(np.random.default_rng(0), n=48, noise=0.03)
    with mrcfile.new(tmp_path / "map.mrc") as file:
        file.set_data(volume)
        file.voxel_size = 3.0
    command = ["relion_mask_create", "--i", "map.mrc", "--o", "mask.mrc", "--ini_threshold", str(threshold)]
    command += ["--extend_inimask", str(extend), "--width_soft_edge", str(edge), "--angpix", "3"]
    command += [] if lowpass is None else ["--lowpass", str(lowpass)]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    theirs = mrcfile.read(tmp_path / "mask.mrc")
    assert 0.001 < theirs.mean() < 0.5
    ours = soft_mask(volume, threshold, pixel_size=3.0, lowpass=lowpass, extend=extend, edge=edge)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


# maps


@pytest.mark.parametrize("shape", [(30, 30, 30), (31, 33, 35), (24, 25)])
def test_radial_average(shape):
    shell = np.round(np.sqrt(sum(x**2 for x in centred_coordinates(shape))))
    average = radial_average(np.cos(shell) + 2)
    np.testing.assert_allclose(average, np.cos(np.arange((min(shape) - 1) // 2 + 1)) + 2)
    np.testing.assert_allclose(radial_average(np.full(shape, 3.0)), 3.0)  # no voxel lost or counted twice


def test_correlation_psnr_and_nrmse(rng):
    a, b = rng.standard_normal((2, 10, 11, 12))
    assert correlation(a, b) == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1])
    assert correlation(a, 3 * a - 7) == pytest.approx(1) and correlation(a, -a) == pytest.approx(-1)
    mask = rng.random(a.shape) < 0.3
    assert correlation(a, b, mask) == pytest.approx(np.corrcoef(a[mask], b[mask])[0, 1])
    rms = np.sqrt(np.mean((a - b) ** 2))
    assert nrmse(a, b, data_range=4.0) == pytest.approx(rms / 4)
    assert psnr(a, b, data_range=4.0) == pytest.approx(10 * np.log10(16 / rms**2))
    assert psnr(a, a, data_range=1.0) == np.inf
    assert nrmse(a, b, data_range=1.0, mask=mask) == pytest.approx(np.sqrt(np.mean((a - b)[mask] ** 2)))
    with pytest.raises(TypeError):
        psnr(a, b)


def test_map_figures_refuse_bad_input(rng):
    a = rng.standard_normal((4, 4))
    with pytest.raises(ValueError, match="differ in shape"):
        correlation(a, a[:2])
    with pytest.raises(ValueError, match="constant"):
        correlation(a, np.ones_like(a))
    with pytest.raises(ValueError, match="data_range"):
        psnr(a, a, data_range=0.0)
    with pytest.raises(ValueError, match="NaN"):
        nrmse(a, a * np.nan, data_range=1.0)
    with pytest.raises(ValueError, match="mask"):
        correlation(a, a, np.zeros_like(a))
