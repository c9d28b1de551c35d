"""``invcryo posterior``, from its words to its files."""

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from invcryo.autograd import optimise
from invcryo.cli import posterior as command
from invcryo.io import read_map
from invcryo.learned import VoxelPosterior
from invcryo.metrics import correlation
from invcryo.simulate import phantom, simulate_particles, write_simulation


@pytest.fixture(autouse=True)
def _ctrl_c_raises():
    """Also where tests run in the background, whose shells ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


QUICK = ("--epochs", "2", "--batch", "16", "--json")


@pytest.fixture(scope="module")
def particles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("particles")
    stack = simulate_particles(phantom("enzyme", 20, rng=0), 120, 6.0, snr=0.5, shift_px=1.0, rng=0)
    return write_simulation(folder, stack)


def test_help(cli):
    code, out, err = cli("posterior", "--help")
    assert code == 0 and err == "" and "invcryo posterior" in out.split("examples:")[1] and "--json" in out


def test_folder(cli, particles, tmp_path):
    run = tmp_path / "run"
    words = ("--epochs", "3", "--batch", "16", "--diameter", "84")
    code, out, err = cli("posterior", particles, "-o", run, *words)
    assert code == 0 and "expected FSC at 0.143" in out and "report.html" in out
    assert {p.name for p in run.iterdir()} == {*command.RESULTS, "run.log"}
    report = json.loads((run / "run.json").read_text())
    assert report["particles"] == 120 and report["steps"] == 21 and report["kind"] == "gaussian"
    assert (report["box"], report["field"], report["padding"]) == (20, 16, 2)
    mean, truth = read_map(run / "mean.mrc"), read_map(particles.parent / "truth.mrc").data
    assert mean.pixel_size == pytest.approx(6) and correlation(mean.data, truth) > 0.8
    kept = VoxelPosterior.load(run / "posterior.npz")
    np.testing.assert_allclose(kept.mean_map(), mean.data[2:-2, 2:-2, 2:-2], rtol=1e-5, atol=1e-5)
    assert not mean.data[:2].any() and not mean.data[..., -2:].any()
    uncertainty = read_map(run / "uncertainty.mrc").data
    assert uncertainty.shape == (16, 16, 16) and uncertainty[8, 8, 9] == kept.uncertainty[0, 0, 1]
    np.testing.assert_allclose(uncertainty[8, 8, 7], kept.uncertainty[0, 0, 1])
    rows = list(csv.DictReader((run / "shells.csv").open()))
    assert len(rows) == 9 and float(rows[2]["frequency_per_angstrom"]) == pytest.approx(2 / 96)
    assert float(rows[3]["ss_snr"]) == pytest.approx(kept.ss_snr()[3])
    assert "Not determined" in (run / "report.html").read_text()
    code, _, err = cli("posterior", particles, "-o", run)
    assert code == 1 and "--overwrite" in err


def test_choices(cli, particles, tmp_path):
    words = ("--start", "none", "--no-half-maps", "--dirac", "--noise", "1", *QUICK)
    code, out, _ = cli("posterior", particles, "-o", tmp_path / "d", *words)
    report = json.loads(out)
    assert code == 0 and report["kind"] == "dirac" and report["half_map_resolution_0.143_angstrom"] is None
    names = {Path(name).name for name in report["files"]}
    assert "mean.mrc" in names and not names & {"sigma.png", "fsc.png", "fsc.star", "uncertainty.mrc"}
    words = ("--start", particles.parent / "truth.mrc", "--padding", "1", "--prior", "50", *QUICK)
    code, out, _ = cli("posterior", particles, "-o", tmp_path / "p", "--no-half-maps", *words)
    assert code == 0 and json.loads(out)["padding"] == 1


def test_bad_input(cli, particles, tmp_path):
    run = tmp_path / "run"
    for words, text, exit_code in (
        (("--batch", "1000"), "--batch 1000, but there are 120 particles", 1),
        (("--dirac",), "--no-half-maps", 2),
        (("--diameter", "80", "--padding", "1"), "--padding of 2", 2),
        (("--noise", "-3"), "positive", 2),
        (("--start", tmp_path / "none.mrc"), "none.mrc", 1),
    ):
        code, _, err = cli("posterior", particles, "-o", run, *words)
        assert code == exit_code and text in err and not run.exists(), err
    assert cli("posterior", "-o", run)[0] == 2


def test_interrupted_run_goes_on_to_the_same_map(cli, particles, tmp_path, monkeypatch):
    words = ("--start", "none", "--no-half-maps", *QUICK)
    assert cli("posterior", particles, "-o", tmp_path / "whole", *words)[0] == 0
    step, steps = optimise.Adam.step, []

    def interrupted(self, gradients):
        steps.append(1)
        if len(steps) == 5:
            signal.raise_signal(signal.SIGINT)
        return step(self, gradients)

    monkeypatch.setattr(optimise.Adam, "step", interrupted)
    run = tmp_path / "run"
    code, out, err = cli("posterior", particles, "-o", run, *words)
    assert code == 130 and "the same command goes on" in err and (run / "unfinished.npz").exists()
    assert not (run / "mean.mrc").exists() and json.loads(out)["exit_code"] == 130
    code, _, err = cli("posterior", particles, "-o", run, *words, "--padding", "1")
    assert code == 1 and "another job" in err and "--fresh" in err
    code, out, _ = cli("posterior", particles, "-o", run, *words)
    assert code == 0 and json.loads(out)["steps"] == 14 and not (run / "unfinished.npz").exists()
    assert (run / "mean.mrc").read_bytes()[1024:] == (tmp_path / "whole" / "mean.mrc").read_bytes()[1024:]


def test_diverging_fit_ends_at_the_last_good_state(cli, particles, tmp_path, monkeypatch):
    step, steps = optimise.Adam.step, []

    def broken(self, gradients):
        steps.append(1)
        if len(steps) == 4:
            gradients["mean"][0, 0, 0] = np.nan
        return step(self, gradients)

    monkeypatch.setattr(optimise.Adam, "step", broken)
    run = tmp_path / "run"
    code, _, err = cli("posterior", particles, "-o", run, "--start", "none", "--no-half-maps", *QUICK)
    assert code == 1 and "iteration 4" in err and "unfinished.npz" in err and not (run / "mean.mrc").exists()
    with np.load(run / "unfinished.npz") as file:
        assert file["iteration"] == 3 and np.isfinite(file["x"]).all()


def test_classical_commands_load_nothing_learned(particles, tmp_path):
    """Nor the tape; a fresh process, because this one has loaded them."""
    code = f"""
import sys
from invcryo.cli import main
assert main(["info", {str(particles)!r}, "--quiet"]) == 0
run = {str(tmp_path / "run")!r}
words = [{str(particles)!r}, "-o", run, "--reg", "none", "--half-maps", "--quiet"]
assert main(["reconstruct", *words]) == 0
assert main(["fsc", run + "/half1.mrc", run + "/half2.mrc", "--quiet"]) == 0
assert main(["posterior", "--help"]) == 0
print([name for name in sys.modules if name.startswith(("invcryo.autograd", "invcryo.learned"))])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
