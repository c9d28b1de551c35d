"""The commands mask, postprocess and local-resolution, from their words to their files."""

import json
import re
import subprocess

import mrcfile
import numpy as np
import pytest

from invcryo.io import read_map, read_star, write_map
from invcryo.metrics import (
    automatic_threshold,
    directional_fsc,
    local_resolution,
    postprocess,
    read_fsc_star,
    read_fsc_xml,
    soft_mask,
)
from invcryo.simulate import phantom

pytest.importorskip("matplotlib")

BOX, PIXEL = 32, 3.0
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def maps(tmp_path):
    """A folder with half1.mrc, half2.mrc, mask.mrc."""
    truth = phantom("enzyme", BOX, rng=1)
    rng = np.random.default_rng(3)
    for i in (1, 2):
        noise = 0.08 * rng.standard_normal(truth.shape)
        write_map(tmp_path / f"half{i}.mrc", truth + noise, PIXEL, origin=(1.0, 2.0, 3.0))
    write_map(tmp_path / "mask.mrc", soft_mask(truth, 0.2, pixel_size=PIXEL, extend=2, edge=4), PIXEL)
    return tmp_path


# mask


def test_mask_states_its_threshold(cli, maps):
    code, out, err = cli("mask", maps / "half1.mrc", "-o", maps / "m.mrc")
    assert (code, err) == (0, "")
    volume = read_map(maps / "half1.mrc")
    threshold = automatic_threshold(volume.data, pixel_size=PIXEL)
    assert f"{threshold:.4g}, found by Otsu's rule" in out
    assert "kDa of protein" in out
    mask = read_map(maps / "m.mrc")
    np.testing.assert_array_equal(mask.data, soft_mask(volume.data, threshold, pixel_size=PIXEL))
    assert mask.origin == (1.0, 2.0, 3.0) and mask.pixel_size == pytest.approx(PIXEL)
    assert (maps / "m.png").read_bytes()[:8] == PNG


def test_mask_with_everything_given(cli, maps):
    words = ("--threshold", "0.1", "--lowpass", "0", "--extend", "1", "--edge", "5", "--json")
    code, out, _ = cli("mask", maps / "half1.mrc", "-o", maps / "m.mrc", *words)
    report = json.loads(out)
    assert code == report["exit_code"] == 0
    assert report["threshold"] == 0.1 and not report["threshold_is_automatic"]
    assert report["lowpass_angstrom"] is None
    volume = read_map(maps / "half1.mrc").data
    expected = soft_mask(volume, 0.1, pixel_size=PIXEL, lowpass=None, extend=1, edge=5)
    np.testing.assert_array_equal(read_map(maps / "m.mrc").data, expected)
    assert report["fraction_above_threshold"] == pytest.approx((volume >= 0.1).mean())
    assert report["mass_kda"] == pytest.approx((volume >= 0.1).sum() * PIXEL**3 * 0.81e-3)


@pytest.mark.relion
def test_mask_of_relion_with_its_own_words(cli, maps, relion):
    words = ["--ini_threshold", "0.2", "--extend_inimask", "2.5", "--width_soft_edge", "5", "--lowpass", "16"]
    subprocess.run(
        ["relion_mask_create", "--i", "half1.mrc", "--o", "theirs.mrc", "--angpix", str(PIXEL), *words],
        cwd=maps,
        capture_output=True,
        check=True,
        timeout=60,
    )
    code, _, _ = cli("mask", maps / "half1.mrc", "--o", maps / "ours.mrc", "--angpix", PIXEL, *words)
    assert code == 0
    theirs = mrcfile.read(maps / "theirs.mrc")
    assert 0.01 < theirs.mean() < 0.5
    np.testing.assert_allclose(read_map(maps / "ours.mrc").data, theirs, atol=1e-6)


def test_mask_refuses(cli, maps):
    code, _, err = cli("mask", maps / "half1.mrc", "-o", maps / "mask.mrc")
    assert code == 1 and "exists and was left alone" in err
    code, _, err = cli("mask", maps / "half1.mrc", "-o", maps / "m.txt")
    assert code == 2 and "must end in .mrc" in err
    code, _, err = cli("mask", maps / "half1.mrc", "-o", maps / "m.mrc", "--threshold", "99")
    assert code == 1 and "no voxel reaches the threshold 99" in err
    code, _, err = cli("mask", maps / "half1.mrc", "-o", maps / "m.mrc", "--lowpass", "2")
    assert code == 1 and "beyond Nyquist" in err
    code, _, err = cli("mask", maps / "no.mrc", "-o", maps / "m.mrc")
    assert code == 1 and "no.mrc" in err
    assert not (maps / "m.mrc").exists() and not (maps / "m.png").exists()


def test_mask_warns_of_what_spoils_it(cli, maps):
    _, _, err = cli("mask", maps / "half1.mrc", "-o", maps / "m.mrc", "--edge", "1")
    assert "edge of 1 pixels is sharp" in err
    volume = read_map(maps / "half1.mrc").data
    write_map(maps / "dark.mrc", -volume, PIXEL)
    _, _, err = cli("mask", maps / "dark.mrc", "-o", maps / "d.mrc")
    assert "is the map inverted" in err and "reaches the border" in err


# the automatic threshold


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_threshold_parts_two_levels(noise):
    """A ball of 1 in 0, blurred and noisy: the split lies between, and finds the volume of the ball."""
    z, y, x = np.ogrid[-24:24, -24:24, -24:24]
    ball = (z**2 + y**2 + x**2 <= 12**2).astype(float)
    volume = ball + noise * np.random.default_rng(0).standard_normal(ball.shape)
    threshold = automatic_threshold(volume, pixel_size=3.0)
    assert 0.2 < threshold < 0.8
    seed = soft_mask(volume, threshold, pixel_size=3.0, extend=0, edge=0)
    assert seed.sum() == pytest.approx(ball.sum(), rel=0.1)


def test_threshold_of_nothing():
    with pytest.raises(ValueError, match="constant"):
        automatic_threshold(np.ones((8, 8, 8)), pixel_size=3.0)
    with pytest.raises(ValueError, match="NaN"):
        automatic_threshold(np.full((8, 8, 8), np.nan), pixel_size=3.0)


@pytest.mark.data
def test_threshold_encloses_the_mass_of_groel(reference_data):
    """800 kDa; the map is at 11.5 angstrom, which blurs its surface outwards."""
    volume = read_map(reference_data / "maps" / "groel-11.5A.mrc")
    threshold = automatic_threshold(volume.data, pixel_size=volume.pixel_size)
    seed = soft_mask(volume.data, threshold, pixel_size=volume.pixel_size, extend=0, edge=0)
    assert 700 < seed.sum(dtype=float) * volume.pixel_size**3 * 0.81e-3 < 1000


# postprocess


def halves(folder):
    return folder / "half1.mrc", folder / "half2.mrc", "--mask", folder / "mask.mrc"


def test_postprocess_files(cli, maps):
    words = ("-o", maps / "post", "--bfactor", "-80", "--lowpass", "final")
    code, out, err = cli("postprocess", *halves(maps), *words)
    assert (code, err) == (0, "")
    assert sorted(p.name for p in (maps / "post").iterdir()) == [
        "fsc.png",
        "guinier.png",
        "postprocess.cxc",
        "postprocess.mrc",
        "postprocess.star",
        "postprocess_fsc.xml",
        "postprocess_masked.mrc",
        "report.html",
        "run.json",
        "run.log",
        "slices.png",
    ]
    a, b, mask = (read_map(maps / f"{n}.mrc") for n in ("half1", "half2", "mask"))
    expected = postprocess(a.data, b.data, mask.data, pixel_size=PIXEL, bfactor=-80.0, lowpass="final", rng=0)
    found = read_map(maps / "post" / "postprocess.mrc")
    np.testing.assert_array_equal(found.data, expected.map)
    assert found.origin == (1.0, 2.0, 3.0)
    np.testing.assert_array_equal(read_map(maps / "post" / "postprocess_masked.mrc").data, expected.masked)
    assert f"{expected.resolution:.2f} angstrom" in out
    general, curves = read_fsc_star(maps / "post" / "postprocess.star")
    assert float(general["rlnFinalResolution"]) == pytest.approx(expected.resolution, abs=1e-5)
    assert len(curves) == 5
    assert set(read_star(maps / "post" / "postprocess.star")) == {"general", "fsc", "guinier"}
    _, correlation = read_fsc_xml(maps / "post" / "postprocess_fsc.xml")
    np.testing.assert_allclose(correlation, expected.fsc.correlation, atol=1e-6)
    for picture in (maps / "post").glob("*.png"):
        assert picture.read_bytes()[:8] == PNG
    record = json.loads((maps / "post" / "run.json").read_text())
    assert record["bfactor"] == -80 and record["arguments"]["lowpass"] == "final"


def test_postprocess_report_and_its_words(cli, maps):
    words = ("-o", maps / "post", "--autob_lowres", "12", "--autob_highres", "7", "--counting", "relion")
    code, out, _ = cli("postprocess", *halves(maps), *words, "--json")
    report = json.loads(out)
    assert code == 0 and report["counting"] == "relion"
    assert report["bfactor"] == pytest.approx(4 * report["guinier_fit"]["slope"])
    assert report["curve"] == "corrected for the mask" and not report["is_nyquist"]
    assert len(report["fsc"]) == len(report["frequency"]) == BOX // 2 + 1
    plain = cli("postprocess", *halves(maps)[:2], "-o", maps / "plain", "--bfactor", "0", "--json")
    report = json.loads(plain[1])
    assert report["curve"] == "unmasked" and report["guinier_fit"] is None
    assert not (maps / "plain" / "postprocess_masked.mrc").exists()


def test_postprocess_by_direction(cli, maps):
    words = ("-o", maps / "post", "--bfactor", "0", "--directional", "--json")
    code, out, _ = cli("postprocess", *halves(maps), *words)
    a, b, mask = (read_map(maps / f"{n}.mrc").data for n in ("half1", "half2", "mask"))
    expected = directional_fsc(a, b, mask, pixel_size=PIXEL)
    report = json.loads(out)["directional"]
    assert code == 0 and report["cfar_like"] == pytest.approx(expected.cfar_like)
    assert report["best_angstrom"] == pytest.approx(expected.resolution.min())
    assert (maps / "post" / "directional_fsc.png").read_bytes()[:8] == PNG


@pytest.mark.parametrize("suffix", ["noreg", "unfil"])
def test_postprocess_warns_of_regularised_halves(cli, maps, suffix):
    for i in (1, 2):
        (maps / f"half{i}_{suffix}.mrc").write_bytes((maps / f"half{i}.mrc").read_bytes())
    words = ("-o", maps / "post", "--bfactor", "0")
    code, out, err = cli("postprocess", *halves(maps), *words, "--json")
    assert code == 0 and err.count("is a regularised map") == 2
    assert len(json.loads(out)["warnings"]) == 2
    noreg = (maps / f"half1_{suffix}.mrc", maps / f"half2_{suffix}.mrc", "--mask", maps / "mask.mrc")
    _, out, err = cli("postprocess", *noreg, *words, "--overwrite")
    assert err == "" and "regularised ones share their prior" in out


def test_postprocess_refuses_and_writes_nothing(cli, maps):
    folder = maps / "post"
    same = (maps / "half1.mrc", maps / "half1.mrc", "-o", folder)
    code, _, err = cli("postprocess", *same)
    assert code == 1 and "the same map" in err
    code, _, err = cli("postprocess", *halves(maps), "-o", folder, "--fit-from", "6.5", "--fit-to", "6.4")
    assert code == 1 and "give --bfactor a number" in err and "(--fit-from)" in err
    code, _, err = cli("postprocess", *halves(maps), "-o", folder, "--bfactor", "sharp")
    assert code == 2 and "'sharp'" in err
    assert not folder.exists()
    assert cli("postprocess", *halves(maps), "-o", folder, "--bfactor", "0")[0] == 0
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    code, _, err = cli("postprocess", *halves(maps), "-o", folder)
    assert code == 1 and "pass --overwrite" in err
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_help(cli):
    for command in ("mask", "postprocess", "local-resolution"):
        code, out, _ = cli(command, "--help")
        assert code == 0 and "examples:" in out and "--json" in out
        assert max(map(len, out.splitlines())) < 130


# local resolution


def test_local_resolution_files(cli, maps):
    words = ("-o", maps / "local", "--window", "54", "--step", "15")
    code, out, err = cli("local-resolution", *halves(maps), *words)
    assert (code, err) == (0, "") and "54.0 and 15.0 angstrom" in out
    names = [
        "histogram.csv",
        "histogram.png",
        "local_resolution.cxc",
        "local_resolution.mrc",
        "local_resolution.png",
    ]
    names += ["report.html", "run.json", "run.log"]
    assert sorted(p.name for p in (maps / "local").iterdir()) == names
    a, b, mask = (read_map(maps / f"{n}.mrc") for n in ("half1", "half2", "mask"))
    expected = local_resolution(a.data, b.data, mask.data, pixel_size=PIXEL, window=54, step=15, rng=0)
    found = read_map(maps / "local" / "local_resolution.mrc")
    np.testing.assert_array_equal(found.data, expected.map)
    assert found.origin == (1.0, 2.0, 3.0)
    record = json.loads((maps / "local" / "run.json").read_text())
    assert record["local_angstrom"]["median"] == pytest.approx(np.median(found.data[found.data > 0]))
    table = np.loadtxt(maps / "local" / "histogram.csv", delimiter=",", skiprows=1)
    assert table[:, 2].sum() == record["voxels"] == (mask.data > 0.5).sum()
    for picture in (maps / "local").glob("*.png"):
        assert picture.read_bytes()[:8] == PNG


def test_local_resolution_refuses_and_writes_nothing(cli, maps):
    code, out, err = cli("local-resolution", *halves(maps), "-o", maps / "local", "--window", "9", "--json")
    assert code == 1 and "8 pixels" in err and json.loads(out)["exit_code"] == 1
    assert not (maps / "local").exists()


def test_scripts_for_chimerax(cli, maps):
    """They name the maps as seen from the folder of results, quoted, at a level inside the map."""
    mask = ("--mask", maps / "mask.mrc")
    assert cli("postprocess", *halves(maps), *mask, "-o", maps / "post", "--bfactor", "0")[0] == 0
    text = (maps / "post" / "postprocess.cxc").read_text()
    for name in ("postprocess_masked.mrc", "../half1.mrc", "../half2.mrc"):
        assert f'open "{name}"' in text and (maps / "post" / name).exists()
    level = float(re.search(r"volume #1 .* level (\S+)", text)[1])
    assert 0 < level < read_map(maps / "post" / "postprocess_masked.mrc").data.max()
    words = ("--window", "40", "--map", maps / "post" / "postprocess.mrc")
    assert cli("local-resolution", *halves(maps), *mask, "-o", maps / "local", *words)[0] == 0
    text = (maps / "local" / "local_resolution.cxc").read_text()
    for name in ("../post/postprocess.mrc", "local_resolution.mrc"):
        assert f'open "{name}"' in text and (maps / "local" / name).exists()
    assert "color sample #1 map #2 palette " in text


def test_a_name_that_no_script_can_say(cli, maps):
    odd = maps / 'half"1.mrc'
    (maps / "half1.mrc").rename(odd)
    code, _, err = cli("postprocess", odd, maps / "half2.mrc", "-o", maps / "post", "--bfactor", "0")
    assert code == 0 and "no script for ChimeraX was written" in err
    assert not (maps / "post" / "postprocess.cxc").exists()
