"""Studies: cells that are computed once, tables, and the results they are made for."""

import csv
import json

import numpy as np
import pytest

import invcryo.studies.tilt_study as tilt_study_module
from invcryo.direct import fbp
from invcryo.operators import SingleAxisProjector
from invcryo.studies.cells import StudyFolder, write_table
from invcryo.studies.incoherence import incoherence_study
from invcryo.studies.lines import line_figures, line_profiles, structure_lines
from invcryo.studies.simulated_series import simulated_cell
from invcryo.studies.thesis import one_step_against_two, random_pixels_against_tilts
from invcryo.studies.tilt_study import METRICS, summary, tilt_study
from invcryo.window import BandLimited


def test_cells_are_computed_once(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"value": np.float64(2.5), "none": float("nan"), "list": (1, 2)}, {"a": np.arange(3)}

    place = StudyFolder(tmp_path / "s", {"size": 3, "images": np.ones(4)})
    row = place.cell("one", compute)
    assert row["value"] == 2.5 and row["none"] is None and row["list"] == [1, 2] and row["seconds"] >= 0
    again = StudyFolder(tmp_path / "s", {"size": 3, "images": np.ones(4)})
    assert again.cell("one", compute) == row and len(calls) == 1
    np.testing.assert_array_equal(again.arrays("one")["a"], [0, 1, 2])
    assert again.row("two") is None
    with pytest.raises(ValueError, match="another study, which differs in size"):
        StudyFolder(tmp_path / "s", {"size": 4, "images": np.ones(4)})
    with pytest.raises(ValueError, match="differs in images"):
        StudyFolder(tmp_path / "s", {"size": 3, "images": np.zeros(4)})
    with pytest.raises(ValueError, match="becomes that of a file"):
        place.cell("a/b", compute)
    anew = StudyFolder(tmp_path / "s", {"size": 4, "images": np.ones(4)}, fresh=True)
    assert anew.row("one") is None


def test_a_cell_cut_short_is_computed_again(tmp_path):
    place = StudyFolder(tmp_path, {})

    def fails():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place.cell("a", fails)
    # killed between the two files of a cell, or inside one
    np.savez(tmp_path / "cells" / "a.npz", a=np.zeros(2))
    (tmp_path / "cells" / ".1234abcd.part.a.json").write_text("{")
    again = StudyFolder(tmp_path, {})
    assert again.row("a") is None and not list((tmp_path / "cells").glob(".*"))
    assert again.cell("a", lambda: ({"v": 1}, {"a": np.ones(2)}))["v"] == 1
    np.testing.assert_array_equal(again.arrays("a")["a"], [1, 1])


def test_table(tmp_path):
    write_table(tmp_path, [{"a": 1, "b": None}, {"a": 2, "c": "x, y"}])
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"a": "1", "b": "", "c": ""}, {"a": "2", "b": "", "c": "x, y"}]
    assert json.loads((tmp_path / "table.json").read_text())[0] == {"a": 1, "b": None}


def test_random_sampling_is_incoherent_and_uniform_is_not(tmp_path):
    """The thesis' third result, small; with the spread over the seeds between them."""
    rows = incoherence_study(
        tmp_path, size=32, views=90, fractions=(0.5, 0.25), seeds=(0, 1, 2), pictures=False
    )
    assert len(rows) == 2 * (3 + 1 + 1) and (tmp_path / "table.csv").exists()
    for fraction in (0.5, 0.25):
        by = {
            scheme: [r for r in rows if r["scheme"] == scheme and r["fraction"] == fraction]
            for scheme in ("random", "uniform")
        }
        (uniform,) = by["uniform"]
        for metric in ("peak_sidelobe", "kurtosis"):
            assert max(r[metric] for r in by["random"]) < 0.5 * uniform[metric], (fraction, metric)


# -- tilt series --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cell():
    return simulated_cell((24, 32, 40), angles_deg=np.arange(-60, 61, 2.0))


@pytest.fixture
def quick(monkeypatch):
    """Filtered back-projection of what is there, in place of the iterative methods; counts its calls."""
    calls = []

    def reconstruct(series, method, lam, settings):
        calls.append((method, lam, len(series), series.fraction))
        images = series.images / np.float32(series.fraction)
        volume = fbp(images, series.angles, volume_shape=(24, *images.shape[1:]))
        return volume, 0.5 if lam == "auto" else lam

    monkeypatch.setattr(tilt_study_module, "reconstructed", reconstruct)
    return calls


def test_simulated_cell(cell):
    series, truth = cell
    assert truth.shape == (24, 32, 40) and len(series) == 61 and series.images.min() >= 0
    assert 0.8 < truth.max() < 1 and abs(truth).min() < 0.02
    # the images are those of the truth, up to what a window of finite support aliases
    A = SingleAxisProjector(series.angles, BandLimited(), truth.shape, series.images.shape[1:])
    difference = A(truth) - series.images
    assert np.linalg.norm(difference) < 0.03 * np.linalg.norm(series.images)


def test_study(tmp_path, cell, quick, caplog):
    series, truth = cell
    options = {"truth": truth, "fractions": (0.5, 0.03), "methods": ("tv", "sirt"), "seeds": (0, 1)}
    rows = tilt_study(series, tmp_path / "s", **options)
    # whole; two fractions, two methods: two masks each of random pixels, once the tilts, in which nothing is random
    assert len(rows) == 2 + 2 * 2 * (2 + 1) == len(quick)
    by = {(r["mode"], r["fraction"], r["method"], r["seed"]): r for r in rows}
    assert (
        by["tilt", 0.03, "tv", 0]["tilts"] == 2 and "only 2 of 61 tilts" in by["tilt", 0.03, "tv", 0]["note"]
    )
    assert "only 2 of 61 tilts" in caplog.text
    few = by["image", 0.03, "tv", 0]
    assert few["tilts"] == 61 and few["measured"] == pytest.approx(round(0.03 * 32 * 40) / 1280)
    for row in rows:
        assert set(METRICS) <= set(row) and row["data_range"] == pytest.approx(float(np.ptp(truth)))
        assert (row["held_out"] is None) == (row["mode"] == "full")
    assert by["full", 1.0, "tv", 0]["psnr"] > by["image", 0.5, "tv", 0]["psnr"] > few["psnr"]
    # lambda is found for the first mask and kept for the others
    assert [lam for method, lam, n, f in quick if n == 61 and f < 1] == ["auto", 0.5] * 4
    for name in ("table.csv", "table.json", "psnr.png", "sections_xz.png", "sections_xy.png", "spectrum.png"):
        assert (tmp_path / "s" / name).stat().st_size > 0, name
    # again: nothing is computed; another series is refused
    assert tilt_study(series, tmp_path / "s", **options, pictures=False) == rows and len(quick) == len(rows)
    with pytest.raises(ValueError, match="another study, which differs in images"):
        tilt_study(series.replace(images=series.images * 2), tmp_path / "s", **options)
    more = tilt_study(series, tmp_path / "s", **{**options, "seeds": (0, 1, 2)}, pictures=False)
    assert len(more) == len(rows) + 4 == len(quick)
    means = {(m["mode"], m["fraction"], m["method"]): m for m in summary(more, "psnr")}
    three = [r["psnr"] for r in more if (r["mode"], r["fraction"], r["method"]) == ("image", 0.5, "tv")]
    assert means["image", 0.5, "tv"]["mean"] == pytest.approx(np.mean(three))
    assert means["image", 0.5, "tv"]["sd"] == pytest.approx(np.std(three, ddof=1)) and len(three) == 3


def test_study_goes_on_after_a_kill(tmp_path, cell, quick, monkeypatch):
    series, truth = cell
    options = {"truth": truth, "fractions": (0.5, 0.2), "electrons": 20.0, "pictures": False}
    whole = tilt_study(series, tmp_path / "whole", **options)
    count = len(quick)
    working = tilt_study_module.reconstructed
    left = [2]

    def dies(*arguments):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return working(*arguments)

    monkeypatch.setattr(tilt_study_module, "reconstructed", dies)
    with pytest.raises(KeyboardInterrupt):
        tilt_study(series, tmp_path / "cut", **options)
    assert not (tmp_path / "cut" / "table.csv").exists()
    monkeypatch.setattr(tilt_study_module, "reconstructed", working)
    rows = tilt_study(series, tmp_path / "cut", **options)
    assert len(quick) == 2 * count  # two before, the others after
    for a, b in zip(rows, whole, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


def test_study_without_truth(tmp_path, cell, quick):
    """The whole series is its own reference."""
    series, _ = cell
    rows = tilt_study(series, tmp_path, fractions=(0.3,), modes=("image",), methods=("sirt",), pictures=False)
    assert [(r["mode"], r["method"]) for r in rows] == [("full", "tv"), ("full", "sirt"), ("image", "sirt")]
    assert rows[0]["ssim"] is None and rows[1]["ssim"] == 1 and rows[2]["ssim"] < 0.9
    with pytest.raises(ValueError, match="'image' or 'tilt'"):
        tilt_study(series, tmp_path, modes=("both",))
    with pytest.raises(ValueError, match="at least one"):
        tilt_study(series, tmp_path, methods=())


def test_equal_total_dose(tmp_path, cell, quick):
    """The electrons of the whole series on half the pixels: less noise in each than at equal dwell time."""
    series, truth = cell
    errors = {}
    for equal_total in (False, True):
        rows = tilt_study(
            series,
            tmp_path / str(equal_total),
            truth=truth,
            fractions=(0.2,),
            modes=("tilt",),
            electrons=5.0,
            equal_total=equal_total,
            pictures=False,
        )
        errors[equal_total] = rows[-1]["psnr"]
    assert errors[True] > errors[False]


# -- the thesis' results, small -----------------------------------------------------------------------------------


def test_random_pixels_beat_tilts_at_low_dose(tmp_path):
    """At 3 % of the dose (4 tilts of 141 against 3 % of the pixels of all): finer, nearer, more alike."""
    rows = random_pixels_against_tilts(
        tmp_path,
        shape=(24, 48, 48),
        fractions=(0.03,),
        seeds=(0,),
        electrons=30.0,
        pictures=False,
        progress=False,
    )
    difference = {row["metric"]: row["difference"] for row in rows}
    assert difference["fsc05_pixels"] < -0.5 and difference["psnr"] > 0.3 and difference["ssim"] > 0.02
    assert difference["held_out"] < 0
    assert (tmp_path / "comparison.csv").exists()


def test_one_step_beats_two(tmp_path):
    rows = one_step_against_two(
        tmp_path,
        shape=(24, 32, 32),
        fractions=(0.2,),
        seeds=(0,),
        electrons=30.0,
        angles_deg=np.arange(-70, 71, 4.0),
        progress=False,
    )
    difference = {row["metric"]: row["difference"] for row in rows}
    assert difference["fsc05_pixels"] < -0.2 and difference["psnr"] > 0.5 and difference["held_out"] < 0
    assert (tmp_path / "profiles.png").exists()


def test_lines_across_membranes_and_filaments():
    """A sphere's shell and a straight rod are found, crossed at right angles, and worth what was left of them."""
    z, y, x = np.meshgrid(*(np.arange(n) - n // 2 for n in (40, 48, 56)), indexing="ij")
    shell = np.exp(-((np.sqrt(z**2 + y**2 + (x + 6) ** 2) - 12) ** 2) / 2)
    rod = np.exp(-(z**2 + (x - 16) ** 2) / 2)
    truth = (shell + 0.7 * rod).astype(np.float32)
    lines = structure_lines(truth, count=20)
    middle = {kind: points[:, 7] - np.array([20, 24, 28]) for kind, points in lines.items()}
    radius = np.linalg.norm(middle["membranes"] + [0, 0, 6], axis=1)
    assert len(radius) >= 10 and np.abs(radius - 12).max() < 1.5
    direction = lines["membranes"][:, 8] - lines["membranes"][:, 7]
    outward = (middle["membranes"] + [0, 0, 6]) / radius[:, None]
    assert (np.abs((direction * outward).sum(axis=1)) > 0.95).all()
    assert len(middle["filaments"]) >= 3 and np.abs(middle["filaments"][:, [0, 2]] - [0, 16]).max() <= 1
    along = lines["filaments"][:, 8] - lines["filaments"][:, 7]
    assert np.abs(along[:, 1]).max() < 0.1
    true = line_profiles(truth, lines)
    same = line_figures(true, true)
    assert all(value == pytest.approx(1, abs=1e-6) for value in same.values())
    part = line_figures(line_profiles((shell + 0.35 * rod).astype(np.float32) + 3, lines), true)
    assert part["membranes_contrast"] == pytest.approx(1, abs=0.02)
    assert part["filaments_contrast"] == pytest.approx(0.5, abs=0.02) and part["filaments"] > 0.99
    none = structure_lines(truth[:12])
    assert line_figures(line_profiles(truth[:12], none), line_profiles(truth[:12], none))["membranes"] is None
