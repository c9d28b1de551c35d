"""Post-processing of half maps against RELION's, step by step, and against what was put in."""

import ctypes
import importlib
import subprocess

import mrcfile
import numpy as np
import pytest
from scipy import fft

from invcryo.grid import frequencies
from invcryo.io import read_star
from invcryo.metrics import (
    fsc,
    mask_fraction_fsc,
    phase_randomised_fsc,
    postprocess,
    read_fsc_star,
    read_fsc_xml,
    read_mtf,
    soft_mask,
    write_postprocess,
)
from invcryo.simulate import phantom

BOX, PIXEL = 64, 2.0
RANDOM = "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps"


def sharp_truth(box=BOX, decay=60.0):
    """A phantom of unit variance whose amplitudes were damped by a B-factor of ``decay``."""
    volume = phantom("enzyme", box, rng=1).astype(float)
    s = np.sqrt(sum(f**2 for f in frequencies(volume.shape, half=True))) / PIXEL
    return fft.irfftn(fft.rfftn(volume / volume.std()) * np.exp(-decay * s**2 / 4), s=volume.shape)


@pytest.fixture(scope="module")
def halves():
    truth = sharp_truth()
    rng = np.random.default_rng(3)
    pair = tuple((truth + 0.25 * rng.standard_normal(truth.shape)).astype(np.float32) for _ in range(2))
    return *pair, soft_mask(truth, 1.0, pixel_size=PIXEL, extend=3, edge=5)


# against RELION


MTF = np.array([(x, np.exp(-1.3 * x)) for x in np.linspace(0, 0.5, 101)])


def run_relion(folder, halves, *options, mask=True):
    """relion_postprocess on the halves; its table, and its map."""
    for name, data in zip(
        ("run_half1_class001_unfil", "run_half2_class001_unfil", "mask"), halves, strict=True
    ):
        with mrcfile.new(folder / f"{name}.mrc") as file:
            file.set_data(data)
            file.voxel_size = PIXEL
    rows = "\n".join(f"{x:.6f} {y:.6f}" for x, y in MTF)
    (folder / "mtf.star").write_text(f"data_\nloop_\n_rlnResolutionInversePixel\n_rlnMtfValue\n{rows}\n")
    command = [
        "relion_postprocess",
        "--i",
        "run_half1_class001_unfil.mrc",
        "--angpix",
        str(PIXEL),
        "--o",
        "post",
    ]
    # it may fail while it draws its plots, after the table is there
    subprocess.run(
        [*command, *(("--mask", "mask.mrc") if mask else ()), *options],
        cwd=folder,
        capture_output=True,
        check=False,
        timeout=60,
    )
    return read_star(folder / "post.star"), mrcfile.read(folder / "post.mrc")


@pytest.fixture
def phases_of_relion(monkeypatch):
    """The random phases that RELION draws, from the C library's generator with the seed 0."""
    library = ctypes.CDLL(None)
    library.srand(0)
    # float arithmetic as in its rnd_unif(0, 2 pi)
    scale = np.float32(np.float32(2147483647.0) / np.float32(2 * np.pi))

    def draw(count, rng):
        return np.array([library.rand() for _ in range(count)], dtype=np.float32) / scale

    # the module, not the function of its name
    module = importlib.import_module("invcryo.metrics.fsc")
    monkeypatch.setattr(module, "_uniform_phases", draw)


CASES = {
    "auto, mtf": (["--auto_bfac", "--mtf", "mtf.star"], {"mtf": (MTF[:, 0], MTF[:, 1])}),
    "auto, range": (
        ["--auto_bfac", "--autob_lowres", "12", "--autob_highres", "6.5", "--low_pass", "-1"],
        {"fit_range": (12.0, 6.5), "lowpass": "final"},
    ),
    "adhoc, no weights": (
        ["--adhoc_bfac", "-80", "--skip_fsc_weighting", "--low_pass", "5"],
        {"bfactor": -80.0, "fsc_weighting": False, "lowpass": 5.0},
    ),
    "unmasked": (["--auto_bfac"], {}),
}


@pytest.mark.relion
@pytest.mark.parametrize("case", CASES)
def test_every_column_of_relion(tmp_path, relion, halves, phases_of_relion, case):
    flags, options = CASES[case]
    mask = case != "unmasked"
    theirs, their_map = run_relion(tmp_path, halves, *flags, mask=mask)
    result = postprocess(
        *halves[:2], halves[2] if mask else None, pixel_size=PIXEL, counting="relion", **options
    )
    write_postprocess(
        tmp_path / "ours",
        result,
        halves=("run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc"),
        mask="mask.mrc" if mask else None,
    )
    ours = read_star(tmp_path / "ours.star")
    # without a mask RELION 3.1.3 stops with an error of its own before it writes the third table
    for block in ("general", "fsc", "guinier") if mask else ("general", "fsc"):
        assert list(ours[block]) == list(theirs[block])
        for column in theirs[block]:
            if column.startswith(("rlnUnfiltered", "rlnMaskName")):
                assert ours[block][column] == theirs[block][column]
                continue
            found, expected = ours[block].numbers(column), theirs[block].numbers(column)
            if column in ("rlnBfactorUsedForSharpening", "rlnFittedSlopeGuinierPlot"):
                np.testing.assert_allclose(found, expected, rtol=1e-5)
            else:
                # six digits written, from sums in single precision
                np.testing.assert_allclose(found, expected, atol=5e-5, err_msg=f"{block} {column}")
    scale = np.abs(their_map).max()
    np.testing.assert_allclose(result.map, their_map, atol=2e-5 * scale)
    if mask:
        their_masked = mrcfile.read(tmp_path / "post_masked.mrc")
        np.testing.assert_allclose(result.masked, their_masked, atol=2e-5 * scale)
    assert result.resolution == pytest.approx(theirs["general"].numbers("rlnFinalResolution")[0], abs=1e-5)


@pytest.mark.relion
def test_honest_counting_finds_the_same_resolution(tmp_path, relion, halves):
    """Within the scatter of the random phases; the fit ends before the shells where they decide."""
    theirs, _ = run_relion(tmp_path, halves, "--auto_bfac", "--autob_highres", "6.5")
    result = postprocess(*halves, pixel_size=PIXEL, fit_range=(10.0, 6.5), rng=0)
    assert result.resolution == pytest.approx(theirs["general"].numbers("rlnFinalResolution")[0], abs=1e-5)
    assert result.bfactor == pytest.approx(
        theirs["general"].numbers("rlnBfactorUsedForSharpening")[0], rel=0.02
    )
    table = theirs["fsc"]
    noise = 3 / np.sqrt(result.fsc.voxels)
    for name, curve in (
        ("rlnFourierShellCorrelationMaskedMaps", result.curves.masked),
        (RANDOM, result.curves.randomised),
    ):
        # a mask correlates neighbouring voxels: fewer are independent
        spread = noise / np.sqrt(result.curves.masked.fraction)
        difference = np.abs(curve.correlation - table.numbers(name))
        if name == RANDOM:  # the shell where they begin is half random in RELION, wholly here
            difference[result.curves.randomised_from] = 0
        assert (difference < spread + 1e-6).all()


@pytest.mark.data
def test_final_resolution_of_a_relion_file(reference_data):
    general, curves = read_fsc_star(reference_data / "formats-star" / "postprocess.star")
    final = curves["rlnFourierShellCorrelationCorrected"].resolution(0.143)
    assert final == pytest.approx(float(general["rlnFinalResolution"]), abs=1e-5)
    assert final == pytest.approx(16.364, abs=1e-3)


# against what was put in


def test_the_b_factor_put_in_comes_out():
    """Amplitudes that fall as exp(-B s^2 / 4), with noise too weak to matter: the fit finds -B."""
    rng = np.random.default_rng(0)
    white = rng.standard_normal((BOX,) * 3)
    s = np.sqrt(sum(f**2 for f in frequencies(white.shape, half=True))) / PIXEL
    decayed = fft.irfftn(fft.rfftn(white) * np.exp(-120 * s**2 / 4), s=white.shape)
    pair = [decayed + 1e-6 * rng.standard_normal(white.shape) for _ in range(2)]
    result = postprocess(*pair, pixel_size=PIXEL, fsc_weighting=False)
    assert result.bfactor == pytest.approx(-120, abs=1)
    assert result.guinier.fit.correlation > 0.999
    # and sharpening by it gives the flat spectrum back, up to Nyquist
    flat = result.guinier.sharpened[8:-1]  # few voxels below, half a shell at the end
    assert np.ptp(flat) < 0.05
    assert np.ptp(result.guinier.original[8:-1]) > 1.5


def test_weights_are_those_of_rosenthal_and_henderson(halves):
    result = postprocess(*halves[:2], pixel_size=PIXEL, bfactor=0)
    gain = np.exp(result.guinier.weighted - result.guinier.original)
    c = result.fsc.correlation
    first_bad = int(np.argmax(c < 1e-4))
    good = slice(1, first_bad)
    np.testing.assert_allclose(gain[good], np.sqrt(2 * c[good] / (1 + c[good])), rtol=1e-5)
    assert (result.guinier.weighted[first_bad:] == -99).all()
    assert result.guinier.sharpened is None and result.bfactor == 0


def test_mtf_is_divided_out(halves):
    mean = 0.5 * (halves[0] + halves[1])
    frequency, value = np.array([0.0, 0.25, 0.5]), np.array([1.0, 0.6, 0.3])
    plain = postprocess(*halves[:2], pixel_size=PIXEL, bfactor=0, fsc_weighting=False)
    np.testing.assert_allclose(plain.map, mean, atol=1e-5)
    divided = postprocess(
        *halves[:2],
        pixel_size=PIXEL,
        bfactor=0,
        fsc_weighting=False,
        mtf=(frequency, value),
        mtf_pixel_size=1.0,
    )
    radius = np.sqrt(sum(f**2 for f in frequencies(mean.shape, half=True)))
    # the maps have 2 angstrom pixels, the detector 1: their Nyquist is half of its
    expected = fft.rfftn(mean.astype(float)) / np.where(
        radius < 0.5, np.interp(radius / 2, frequency, value), 1
    )
    np.testing.assert_allclose(divided.map, fft.irfftn(expected, s=mean.shape), atol=1e-4)


def test_lowpass_at_the_final_resolution(halves):
    result = postprocess(*halves, pixel_size=PIXEL, lowpass="final", rng=0)
    assert result.lowpass == result.resolution
    power = np.abs(fft.rfftn(result.map.astype(float)))
    radius = np.sqrt(sum(f**2 for f in frequencies(result.map.shape, half=True)))
    shell = BOX * PIXEL / result.resolution
    beyond = radius * BOX > shell + 1.01
    assert power[beyond].max() < 1e-5 * power.max()


def test_a_bad_mask_is_passed_over_unless_forced(halves, caplog):
    """A mask beside the particle: the unmasked curve reaches further."""
    wrong = np.zeros_like(halves[2])
    wrong[:10, :10, :10] = 1.0
    result = postprocess(*halves[:2], wrong, pixel_size=PIXEL, bfactor=0, rng=0)
    assert result.mask_passed_over and result.fsc is result.curves.unmasked
    assert "unmasked curve" in caplog.text
    forced = postprocess(*halves[:2], wrong, pixel_size=PIXEL, bfactor=0, rng=0, force_mask=True)
    assert not forced.mask_passed_over and forced.resolution > result.resolution


def test_mask_fraction_formula(halves):
    unmasked = fsc(*halves[:2], pixel_size=PIXEL)
    f, curve = mask_fraction_fsc(unmasked, halves[2])
    assert f == pytest.approx(0.476 / (halves[2] > 0.5).mean())
    c = unmasked.correlation
    np.testing.assert_allclose(curve.correlation, f * c / (1 + (f - 1) * c))
    with pytest.raises(ValueError, match=r"nowhere above 0\.5"):
        mask_fraction_fsc(unmasked, halves[2] * 0.4)


def test_noise_has_no_resolution():
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((2, 32, 32, 32))
    result = postprocess(a, b, pixel_size=PIXEL, bfactor=0)
    assert result.resolution > 30
    with pytest.raises(ValueError, match="2 are needed; give bfactor="):
        postprocess(a, b, pixel_size=PIXEL)


def test_files(tmp_path, halves):
    result = postprocess(*halves, pixel_size=PIXEL, rng=0)
    files = write_postprocess(tmp_path / "postprocess", result, halves=("a.mrc", "b.mrc"), mask="m.mrc")
    names = ["postprocess.mrc", "postprocess.star", "postprocess_fsc.xml", "postprocess_masked.mrc"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert sorted(files) == [str(tmp_path / n) for n in names]
    with mrcfile.open(tmp_path / "postprocess.mrc") as file:
        np.testing.assert_array_equal(file.data, result.map)
        assert file.voxel_size.x == pytest.approx(PIXEL) and file.is_volume()
    _, curves = read_fsc_star(tmp_path / "postprocess.star")
    np.testing.assert_allclose(
        curves["rlnFourierShellCorrelationCorrected"].correlation, result.fsc.correlation, atol=1e-6
    )
    frequency, correlation = read_fsc_xml(tmp_path / "postprocess_fsc.xml")
    np.testing.assert_allclose(frequency, result.fsc.frequency, atol=1e-6)
    np.testing.assert_allclose(correlation, result.fsc.correlation, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fit_range": (5.0, 8.0)}, "got 5 to 8"),
        ({"fit_range": (4.2, 4.1)}, "2 are needed"),
        ({"counting": "half"}, "'friedel' or 'relion'"),
        ({"mtf": ([0, 0.5], [1, 0])}, "not positive"),
        ({"mtf": ([0.5, 0], [1, 1])}, "do not ascend"),
        ({"mtf": ([0, 0.5], [1, 1]), "mtf_pixel_size": -1}, "positive angstrom"),
        ({"lowpass": 1.0}, "beyond Nyquist"),
    ],
)
def test_bad_options_are_refused(halves, options, message):
    with pytest.raises(ValueError, match=message):
        postprocess(*halves[:2], pixel_size=PIXEL, **options)


def test_maps_must_be_cubic():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="cubic"):
        postprocess(*rng.standard_normal((2, 16, 16, 18)), pixel_size=1.0)


def test_mtf_file(tmp_path, reference_data):
    frequency, value = read_mtf(reference_data / "ref-mtf" / "mtf_k2_300kV.star")
    assert frequency[:3].tolist() == [0, 0.0005, 0.001] and value[1] == 0.988714
    (tmp_path / "no.star").write_text("data_\nloop_\n_rlnImageName\na\n")
    with pytest.raises(ValueError, match="holds no MTF"):
        read_mtf(tmp_path / "no.star")


def test_counting_changes_the_noise_only(halves):
    friedel = phase_randomised_fsc(*halves, pixel_size=PIXEL, rng=0)
    relion = phase_randomised_fsc(*halves, pixel_size=PIXEL, rng=0, counting="relion")
    np.testing.assert_array_equal(friedel.masked.voxels, relion.masked.voxels)
    difference = np.abs(friedel.unmasked.correlation - relion.unmasked.correlation)
    noise = (1 - friedel.unmasked.correlation**2) / np.sqrt(friedel.unmasked.voxels)
    assert 0 < difference.max() < 0.02 and (difference < 3 * noise + 1e-6).all()
    assert relion.corrected.correlation.min() < 0 <= friedel.corrected.correlation.min()
