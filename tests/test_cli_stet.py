"""``invcryo stet``, from its words to its files."""

import argparse
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from invcryo.cli import _parser
from invcryo.cli import stet as stet_command
from invcryo.io import read_map, write_map, write_tilt_series
from invcryo.metrics import correlation
from invcryo.stet import load_sampling
from invcryo.stet.reconstruction import METHODS
from invcryo.stet.sampling import KINDS
from invcryo.studies.simulated_series import simulated_cell


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """A simulated series on a background of 7 counts, and its truth."""
    folder = tmp_path_factory.mktemp("series")
    series, truth = simulated_cell((24, 32, 40), angles_deg=np.arange(-60, 61, 4.0))
    # this cell fills its box: leave an empty border for the background
    images = np.pad(series.images, ((0, 0), (4, 4), (4, 4))) + np.float32(7)
    write_tilt_series(folder / "a.st", series.replace(images=images))
    write_map(folder / "truth.mrc", np.pad(truth, ((0, 0), (4, 4), (4, 4))), 20.0)
    return folder / "a.st"


def test_names_are_those_of_the_library():
    assert stet_command.KINDS == KINDS and stet_command.METHODS == METHODS


@pytest.mark.parametrize("command", ["info", "mask", "reconstruct", "study"])
def test_help(cli, command):
    code, out, err = cli("stet", command, "--help")
    assert (
        code == 0 and err == "" and f"invcryo stet {command}" in out.split("examples:")[1] and "--json" in out
    )
    outer = next(a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)).choices["stet"]
    inner = next(a for a in outer._actions if isinstance(a, argparse._SubParsersAction)).choices
    for action in inner[command]._actions:
        assert action.help, action.option_strings


def test_wrong_usage(cli, series):
    assert cli("stet")[0] == 2
    assert cli("stet", "cook")[0] == 2
    code, _, err = cli("stet", "mask", series, "-o", "m.npz", "--fraction", "10")
    assert code == 2 and "10 % is 0.1" in err
    code, _, err = cli("stet", "mask", series, "-o", "m.mrc", "--fraction", "0.1")
    assert code == 2 and ".npz" in err
    code, _, err = cli("stet", "study", series, "-o", "x", "--equal-total")
    assert code == 2 and "--electrons" in err
    code, _, err = cli("stet", "info", "nothing.st")
    assert code == 1 and "nothing.st does not exist" in err


def test_info(cli, series):
    code, out, err = cli("stet", "info", series, "--estimate-axis")
    assert code == 0 and err == ""
    for words in (
        "31 of 48 x 40 pixels",
        "20 angstrom (2 nm)",
        "-60 to 60 degrees, steps 4 to 4",
        "matter bright",
    ):
        assert words in out
    assert "not applied" in out and "--axis y" in out
    code, out, _ = cli("stet", "info", series, "--json", "--estimate-axis")
    report = json.loads(out)
    assert code == 0 and report["tilts"] == 31 and abs(report["estimate"]["in_plane_angle_deg"]) < 2
    code, _, err = cli("stet", "info", series, "--axis", "x")
    assert code == 0 and "the axis looks like y" in err


def test_mask(cli, series, tmp_path):
    output = tmp_path / "m.npz"
    words = ("stet", "mask", series, "-o", output, "--fraction", "0.1", "--kind", "line", "--seed", "3")
    code, out, err = cli(*words)
    assert code == 0 and err == "" and "192 pixels of each tilt (10 %)" in out
    sampling = load_sampling(output)
    assert (sampling.mask.sum(axis=(1, 2)) == 192).all() and sampling.seed == 3 and sampling.kind == "line"
    assert (tmp_path / "m.png").exists()
    code, _, err = cli(*words)
    assert code == 1 and "--overwrite" in err
    assert cli(*words, "--overwrite", "--json")[0] == 0


def test_reconstruct(cli, series, tmp_path):
    mask, run = tmp_path / "m.npz", tmp_path / "run"
    assert cli("stet", "mask", series, "-o", mask, "--fraction", "0.5", "--quiet")[0] == 0
    words = ("stet", "reconstruct", series, "-o", run, "--mask", mask, "--lam", "5", "--thickness", "24")
    code, out, err = cli(*words)
    assert code == 0 and err == "", err
    assert "background (median of the border, 7) taken off" in out and "map of 48 x 40 x 24 voxels" in out
    found, truth = read_map(run / "map.mrc"), read_map(series.parent / "truth.mrc").data
    assert found.pixel_size == pytest.approx(20) and correlation(found.data, truth) > 0.9
    assert {p.name for p in run.iterdir()} >= set(stet_command._RESULTS)
    report = json.loads((run / "run.json").read_text())
    assert report["lam"] == 5 and report["series"]["measured_fraction"] == pytest.approx(0.5)
    code, _, err = cli(*words)
    assert code == 1 and "--overwrite" in err
    code, _, err = cli("stet", "reconstruct", series, "-o", tmp_path / "n", "--thickness", "-4")
    assert code == 2 and "positive" in err


def test_study(cli, series, tmp_path):
    words = (
        "stet",
        "study",
        series,
        "-o",
        tmp_path / "s",
        "--truth",
        series.parent / "truth.mrc",
        "--thickness",
        "24",
    )
    words += ("--fractions", "0.06", "--methods", "tv", "zero-fill", "--lam", "5", "--background", "7")
    code, out, err = cli(*words)
    assert code == 0 and "only 2 of 31 tilts" in err and "background (7) taken off" in out
    lines = [line.split() for line in out.splitlines() if line.startswith(("full", "image", "tilt"))]
    assert len(lines) == 2 + 2 * 2
    # again: everything is there already
    code, again, _ = cli(*words, "--json")
    rows = json.loads(again)["rows"]
    assert code == 0 and [row["mode"] for row in rows] == [line[0] for line in lines]
    figures = {(r["mode"], r["method"], r["fraction"]): r["psnr"] for r in rows}
    assert figures["image", "tv", 0.06] > figures["image", "zero-fill", 0.06]
    assert (tmp_path / "s" / "run.json").exists() and (tmp_path / "s" / "psnr.png").exists()
    code, _, err = cli(*words[:-1], "6")
    assert code == 1 and "another study" in err and "--fresh" in err


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_study_goes_on_after_a_kill(series, tmp_path):
    """Killed by the system after its first cell: the same command again gives the table of an unbroken run."""
    words = ["stet", "study", str(series), "--truth", str(series.parent / "truth.mrc"), "--thickness", "24"]
    words += ["--fractions", "0.5", "0.1", "--methods", "tv", "--lam", "5", "--quiet"]
    program = [sys.executable, "-m", "invcryo"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert subprocess.run([*program, *words, "-o", str(whole)]).returncode == 0
    process = subprocess.Popen([*program, *words, "-o", str(cut)])
    deadline = time.monotonic() + 60
    while not list(cut.glob("cells/[!.]*.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=10) == -signal.SIGKILL
    done = {path.name: path.stat().st_mtime_ns for path in cut.glob("cells/[!.]*.json")}
    assert 1 <= len(done) < 5 and not (cut / "table.csv").exists()
    assert subprocess.run([*program, *words, "-o", str(cut)]).returncode == 0
    tables = [json.loads((folder / "table.json").read_text()) for folder in (cut, whole)]
    for one, other in zip(*tables, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    for name, written in done.items():
        assert (cut / "cells" / name).stat().st_mtime_ns == written
