"""The command line, each command from its words to its files."""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

import invcryo.cli.demo
import invcryo.inversion
import invcryo.reconstruction
from invcryo.checkpoint import Checkpoint
from invcryo.cli import _parser, main
from invcryo.cli.common import in_words_of_the_command_line, plain
from invcryo.cli.output import OutputFolder
from invcryo.cli.reconstruct import REGULARISERS, RESULTS
from invcryo.cli.runlog import LOG
from invcryo.cli.simulate import PHANTOM_NAMES
from invcryo.cli.simulate import RESULTS as SIMULATED
from invcryo.costs.normal import NormalSums
from invcryo.io import describe, open_stack, read_map, read_particles, write_map
from invcryo.metrics import correlation, fsc, read_fsc_star, read_fsc_xml, soft_sphere
from invcryo.simulate import PHANTOMS, phantom, simulate_particles

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = (
    "doctor",
    "demo",
    "info",
    "convert",
    "simulate",
    "reconstruct",
    "refine",
    "posterior",
    "mask",
    "fsc",
    "postprocess",
    "local-resolution",
    "stet",
    "external-reconstruct",
)
SMALL = ("--phantom", "blobs", "-n", "60", "--box", "16", "--pixel-size", "4", "--snr", "2", "--shift", "1")


def python(*words, **options):
    """A new Python with this package on its path."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


@pytest.fixture(scope="module")
def particles(tmp_path_factory):
    """The STAR file of a small simulation."""
    folder = tmp_path_factory.mktemp("simulated")
    assert main(["simulate", *SMALL, "-o", str(folder), "--quiet"]) == 0
    return folder / "particles.star"


@pytest.fixture(scope="module")
def finished(particles, tmp_path_factory):
    """The folder of a reconstruction with half maps."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(["reconstruct", str(particles), "-o", str(folder), "--half-maps", "--quiet"]) == 0
    return folder


def contents(folder):
    """The files but for the log, which grows with every run."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != LOG}


# --- the program as a whole ---------------------------------------------------------------------------------


def test_help_comes_without_loading_numpy():
    code = "import sys; from invcryo.cli import main; main(['--help']); print([m for m in %r if m in sys.modules])"
    done = python("-c", code % (["numpy", "scipy", "numba", "gemmi", "matplotlib", "tqdm"],))
    assert done.returncode == 0 and done.stdout.endswith("[]\n")
    assert all(f"  {command}" in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(cli, command):
    code, out, err = cli(command, "--help")
    assert code == 0 and err == ""
    assert "examples:" in out and f"invcryo {command}" in out.split("examples:")[1]
    assert "--json" in out and "--quiet" in out


def test_every_option_is_explained():
    commands = next(a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    assert tuple(sorted(commands)) == tuple(sorted(COMMANDS))
    for name, parser in commands.items():
        for action in parser._actions:
            assert action.help, (name, action.option_strings)


@pytest.mark.parametrize(
    "words", [[], ["cook"], ["info"], ["simulate", "-o", "x"], ["info", "--colour", "a.mrc"]]
)
def test_wrong_usage(cli, words):
    code, out, err = cli(*words)
    assert code == 2 and out == "" and "usage: invcryo" in err


def test_wrong_usage_is_an_object_with_json(cli):
    code, out, err = cli("info", "--json")
    assert code == 2 and "usage: invcryo info" in err
    assert json.loads(out) == {
        "command": "info",
        "exit_code": 2,
        "error": "the following arguments are required: FILE",
    }
    code, out, _ = cli("cook", "--json")
    report = json.loads(out)
    assert code == report["exit_code"] == 2 and report["command"] is None and "'cook'" in report["error"]
    code, out, _ = cli("mask", "m.mrc", "-o", "x.mrc", "--edge", "-1", "--json")
    report = json.loads(out)
    assert report["command"] == "mask" and "argument --edge/--width-soft-edge" in report["error"]


def test_version(cli):
    assert cli("--version") == (0, f"invcryo {invcryo._version.__version__}\n", "")


def test_as_a_module_with_honest_exit_codes(tmp_path):
    done = python("-m", "invcryo", "info", ROOT / "data" / "demo" / "truth.mrc", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["shape"] == [48, 48, 48] and done.stderr == ""
    done = python("-m", "invcryo", "info", tmp_path / "none.mrc")
    assert done.returncode == 1 and done.stdout == "" and "no such file" in done.stderr
    assert "Traceback" not in done.stderr
    assert python("-m", "invcryo", "info").returncode == 2


def test_debug_shows_the_traceback(cli, tmp_path):
    code, _, err = cli("info", tmp_path / "none.mrc", "--debug")
    assert code == 1 and "Traceback" in err and "no such file" in err


def test_an_unforeseen_error_is_called_a_bug(cli, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise KeyError("unforeseen")

    monkeypatch.setattr("invcryo.io.describe", broken)
    code, out, err = cli("info", tmp_path, "--json")
    assert code == 1 and "a bug" in err and "--debug" in err and "Traceback" not in err
    assert json.loads(out)["exit_code"] == 1 and "KeyError" in json.loads(out)["error"]


def test_a_reader_that_leaves_early(tmp_path):
    command = (
        f"'{sys.executable}' -m invcryo info '{ROOT / 'data' / 'demo' / 'particles.star'}' --json | head -c 1"
    )
    done = subprocess.run(
        command, shell=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.stdout == "{" and done.stderr == ""


@pytest.mark.parametrize(
    "message, said",
    [
        ("pass pixel_size= to choose", "pass --pixel-size to choose"),
        ("pass pixel_size=", "pass --pixel-size"),
        ("run there, or pass data_dir=", "run there, or pass --data-dir"),
        ("pass degrees=False (or degrees=True if so)", "pass --angles radians (or --angles degrees if so)"),
        (
            "pass ignore=('rlnBeamTiltX', 'rlnBeamTiltY') to go on",
            "pass --ignore rlnBeamTiltX rlnBeamTiltY to go on",
        ),
        ("pass ignore=('rlnBeamTiltX',) to go on", "pass --ignore rlnBeamTiltX to go on"),
        ("one at a time with optics_group=, or", "one at a time with --optics-group, or"),
        ("which the CTF needs; pass cs_mm=", "which the CTF needs; pass --cs"),
        ("pass contrast='dark'", "pass --contrast dark"),
        ("cs_mm = 2.7e7 is out of range", "cs_mm = 2.7e7 is out of range"),
        ("no particle of optics_group=5", "no particle of optics_group=5"),
    ],
)
def test_messages_speak_of_options(message, said):
    assert in_words_of_the_command_line(message) == said


def test_json_has_no_infinities():
    values = {"a": np.float32(np.inf), 1: (np.arange(2), Path("x")), "b": [np.nan, np.True_, None]}
    assert plain(values) == {"a": None, "1": [[0, 1], "x"], "b": [None, True, None]}
    with pytest.raises(TypeError, match="object does not go into JSON"):
        plain(object())


# --- doctor -------------------------------------------------------------------------------------------------


def test_doctor(cli):
    code, out, err = cli("doctor")
    assert code == 0 and err == "" and "everything that is needed works" in out and "BROKEN" not in out
    code, out, _ = cli("doctor", "--json", "--threads", "1")
    report = json.loads(out)
    assert code == 0 and report["ok"] and report["threads"] == 1
    assert report["versions"]["numpy"] == np.__version__
    assert all(check["ok"] for check in report["checks"]) and len(report["checks"]) == 5


def test_doctor_finds_what_is_broken(cli, monkeypatch):
    for name in ("gemmi", "invcryo.kernels.cpu_nufft"):
        monkeypatch.setitem(sys.modules, name, None)
    code, out, err = cli("doctor")
    assert code == 1 and "BROKEN  projector and its adjoint" in out
    assert "needed but broken: packages, projector and its adjoint, normal operator" in err


def test_doctor_notices_wrong_numbers(cli, monkeypatch):
    right = invcryo.operators.Projector._adjoint
    monkeypatch.setattr(
        "invcryo.operators.Projector._adjoint", lambda self, y: right(self, y) * np.float32(1.01)
    )
    code, out, _ = cli("doctor", "--json")
    failed = {check["name"]: check["detail"] for check in json.loads(out)["checks"] if not check["ok"]}
    assert code == 1 and set(failed) == {"projector and its adjoint", "normal operator"}
    assert "reinstall numba" in failed["projector and its adjoint"]


# --- info ---------------------------------------------------------------------------------------------------


def test_info_of_particles(cli, particles):
    code, out, err = cli("info", particles)
    assert code == 0 and err == ""
    for words in (
        "60 in 1 stack",
        "16 x 16 pixels",
        "4 angstrom",
        "300 kV",
        "30 and 30",
        "efficiency 0.9",
        "all stacks are there",
    ):
        assert words in out
    code, out, _ = cli("info", particles, "--json")
    expected = plain(describe(particles))
    assert json.loads(out) == {"command": "info", "exit_code": 0, **expected}


def test_info_of_particles_without_their_stack(cli, particles, tmp_path):
    alone = tmp_path / "alone.star"
    alone.write_bytes(particles.read_bytes())
    code, out, _ = cli("info", alone)
    assert code == 0 and "MISSING: 1 of 1 stack not found (particles.mrcs); try --data-dir" in out
    code, out, _ = cli("info", alone, "--data-dir", particles.parent)
    assert code == 0 and "MISSING" not in out


def test_info_of_maps_stacks_and_tables(cli, finished, particles):
    assert "volume, by the suffix .mrc" in cli("info", finished / "map.mrc")[1]
    assert "60 images of 16 x 16 pixels" in cli("info", particles.with_name("particles.mrcs"))[1]
    out = cli("info", finished / "fsc.star")[1]
    assert "without particles" in out and "data_fsc: 9 rows of rlnSpectralIndex" in out


# --- simulate -----------------------------------------------------------------------------------------------


def test_phantoms_are_those_of_the_library():
    assert PHANTOM_NAMES == PHANTOMS


def test_simulate_writes_what_the_library_makes(cli, tmp_path):
    code, out, err = cli("simulate", *SMALL, "-o", tmp_path / "a", "--seed", "7", "--json")
    report = json.loads(out)
    assert code == 0 and err == "" and report["particles"] == 60
    assert sorted(contents(tmp_path / "a")) == sorted(SIMULATED)

    rng = np.random.default_rng(7)
    volume = phantom("blobs", 16, rng=rng)
    expected = simulate_particles(volume, 60, 4.0, snr=2.0, shift_px=1.0, rng=rng)
    found = read_particles(tmp_path / "a" / "particles.star")
    np.testing.assert_array_equal(found.images[:], expected.images[:])
    np.testing.assert_allclose(found.poses.matrices, expected.poses.matrices, atol=1e-7)
    np.testing.assert_array_equal(read_map(tmp_path / "a" / "truth.mrc").data, expected.images.truth)
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    assert record["arguments"]["snr"] == 2.0 and record["arguments"]["seed"] == 7
    assert record["command_line"][:2] == ["invcryo", "simulate"]

    assert cli("simulate", *SMALL, "-o", tmp_path / "b", "--seed", "7", "--quiet") == (0, "", "")
    same = [name for name in report["files"] if not name.endswith(("run.json", "report.html"))]
    for name in same:
        assert Path(name).read_bytes() == (tmp_path / "b" / Path(name).name).read_bytes()


def test_simulate_without_ctf_and_noise(cli, tmp_path):
    words = (
        "simulate",
        "--phantom",
        "shell",
        "-n",
        "4",
        "--box",
        "17",
        "-o",
        tmp_path,
        "--no-ctf",
        "--snr",
        "none",
    )
    code, out, _ = cli(*words)
    assert code == 0 and "no noise" in out
    stack = read_particles(tmp_path / "particles.star")
    assert stack.ctf is None and stack.box == 17
    truth = read_map(tmp_path / "truth.mrc").data
    np.testing.assert_allclose(stack.images[:].sum(axis=(1, 2)), truth.sum(), rtol=1e-4)


def test_simulate_of_a_map_with_symmetry(cli, tmp_path):
    write_map(tmp_path / "helix.mrc", phantom("helix", 16), 3.5)
    code, *_ = cli(
        "simulate", "--map", tmp_path / "helix.mrc", "-n", "3", "-o", tmp_path / "s", "--sym", "C2"
    )
    truth = read_map(tmp_path / "s" / "truth.mrc")
    assert code == 0 and truth.pixel_size == pytest.approx(3.5)
    turned = np.roll(truth.data[:, ::-1, ::-1], 1, axis=(1, 2))
    np.testing.assert_allclose(truth.data, turned, atol=1e-6 * truth.data.max())
    code, _, err = cli("simulate", "--map", tmp_path / "helix.mrc", "--box", "20", "-o", tmp_path / "t")
    assert code == 1 and "--box 20, but" in err and "box of 16" in err and not (tmp_path / "t").exists()


def test_simulate_of_an_atomic_model(cli, tmp_path):
    lines = [
        f"ATOM  {i:5d}  CA  ALA A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 20.00           C"
        for i, (x, y, z) in enumerate([(0, 0, 0), (6, 0, 0), (0, 9, 0), (3, 3, 8)], 1)
    ]
    (tmp_path / "model.pdb").write_text("\n".join([*lines, "END", ""]))
    words = ("simulate", "--model", tmp_path / "model.pdb", "-n", "5", "--box", "20", "--pixel-size", "2")
    assert cli(*words, "-o", tmp_path / "s")[0] == 0
    assert open_stack(tmp_path / "s" / "particles.mrcs").shape == (5, 20, 20)
    code, _, err = cli("simulate", "--phantom", "shell", "--resolution", "6", "-o", tmp_path / "t")
    assert code == 2 and "--resolution goes with --model only" in err


def test_preferred_views(cli, tmp_path):
    words = (
        "simulate",
        "--phantom",
        "shell",
        "--box",
        "16",
        "-n",
        "200",
        "-o",
        tmp_path,
        "--preferred",
        "50",
    )
    assert cli(*words)[0] == 0
    along = read_particles(tmp_path / "particles.star").poses.matrices[:, 2, 2]
    assert np.abs(along).min() > 0.8 and 60 < (along > 0).sum() < 140


# --- reconstruct --------------------------------------------------------------------------------------------


def test_reconstruct_gives_the_truth_and_all_files(finished, particles):
    assert sorted(contents(finished)) == sorted(RESULTS)
    truth = read_map(particles.with_name("truth.mrc"))
    found = read_map(finished / "map.mrc")
    assert found.pixel_size == pytest.approx(4.0)
    assert correlation(found.data, truth.data) > 0.97
    assert correlation(found.data, truth.data) > correlation(
        read_map(finished / "map_noreg.mrc").data, truth.data
    )


def test_the_files_agree_with_each_other(finished):
    for suffix in ("", "_noreg"):
        a, b = (read_map(finished / f"half{i}{suffix}.mrc").data for i in (1, 2))
        curve = fsc(a, b, pixel_size=4.0)
        _, values = read_fsc_xml(finished / f"fsc{suffix}.xml")
        np.testing.assert_allclose(values, curve.correlation, atol=2e-6)
        table = read_fsc_star(finished / f"fsc{suffix}.star")[1]["rlnFourierShellCorrelationUnmaskedMaps"]
        np.testing.assert_allclose(table.correlation, curve.correlation, atol=2e-6)
    rows = (finished / "convergence.csv").read_text().splitlines()
    record = json.loads((finished / "run.json").read_text())
    assert rows[0].startswith("iteration,seconds,objective") and len(rows) == record["iterations"] + 1
    for name in ("slices.png", "fsc.png", "convergence.png", "lcurve.png"):
        assert (finished / name).read_bytes()[:4] == b"\x89PNG"


def test_the_record_of_a_run(finished, particles):
    record = json.loads((finished / "run.json").read_text())
    assert record["inputs"]["sha256"] == {str(particles): hashlib.sha256(particles.read_bytes()).hexdigest()}
    (stack,) = record["inputs"]["stacks"]
    assert stack["path"].endswith("particles.mrcs")
    assert stack["bytes"] == particles.with_name("particles.mrcs").stat().st_size
    assert record["arguments"]["half_maps"] is True and record["arguments"]["lam"] == "auto"
    assert record["regulariser"] == "tv" and record["lambda_rule"] == "cross-validation"
    assert 0 < record["lambda"] < record["lambda_max"] and len(record["lambda_search"]) >= 3
    for trial in record["lambda_search"]:
        assert set(trial) == {"lam", "misfit", "penalty", "score", "iterations"}
    assert record["seed"] == 0 and record["threads"] >= 1 and record["particles"] == 60
    assert 0 < record["gram_error"] < 1e-2 and record["stopped_by"] and record["seconds"]["total"] > 0
    assert record["versions"]["invcryo"] == invcryo._version.__version__


def test_options_as_in_relion(cli, particles, tmp_path):
    one = (
        "reconstruct",
        particles,
        "-o",
        tmp_path / "a",
        "--lam",
        "3",
        "--pixel-size",
        "4.01",
        "--threads",
        "1",
    )
    two = (
        "reconstruct",
        "--i",
        particles,
        "--o",
        tmp_path / "b",
        "--lam",
        "3",
        "--angpix",
        "4.01",
        "--j",
        "1",
    )
    for words in (one, two):
        code, out, _ = cli(*words, "--json")
        report = json.loads(out)
        assert code == 0 and report["threads"] == 1 and report["pixel_size"] == pytest.approx(4.01)
        assert report["lambda"] == 3.0 and report["lambda_search"] is None
        assert report["lambda_rule"] == "given" and report["lambda_max"] > 3
    assert (tmp_path / "a" / "map.mrc").read_bytes() == (tmp_path / "b" / "map.mrc").read_bytes()


def test_reconstruct_without_regularisation(cli, particles, tmp_path):
    code, out, err = cli("reconstruct", particles, "-o", tmp_path, "--reg", "none", "--half-maps")
    assert code == 0 and err == "" and "no regularisation" in out and "quote the first" not in out
    names = contents(tmp_path)
    assert not any("noreg" in name for name in names) and {"half1.mrc", "fsc.xml", "fsc.png"} <= set(names)


def test_other_regularisers_and_rules(cli, particles, tmp_path):
    assert set(REGULARISERS) == {"none", *invcryo.inversion.PENALTIES}
    words = ("reconstruct", particles, "--json")
    code, out, err = cli(*words, "-o", tmp_path / "w", "--reg", "wavelet")
    report = json.loads(out)
    assert code == 0 and report["regulariser"] == "wavelet" and report["lambda_max"] is None
    assert (tmp_path / "w" / "lcurve.png").exists()
    assert main(["simulate", *SMALL, "-n", "30", "-o", str(tmp_path / "few"), "--quiet"]) == 0
    few = tmp_path / "few" / "particles.star"
    code, out, err = cli("reconstruct", few, "--json", "-o", tmp_path / "d", "--lam", "discrepancy")
    report = json.loads(out)
    assert code == 0 and report["lambda_rule"] == "discrepancy" and report["lambda"] > 0
    assert all("score" not in trial for trial in report["lambda_search"])
    code, out, err = cli(*words, "-o", tmp_path / "u", "--reg", "sobolev", "--lam", "discrepancy")
    assert code == 1 and "leaves lambda uncertain" in err and "--lam auto" in err
    code, out, err = cli("reconstruct", particles, "-o", tmp_path / "r", "--reg", "TV")
    assert code == 2 and "tv, tv-aniso, wavelet" in err.replace("'", "")


def test_mask_subset_half_and_scale(cli, particles, tmp_path):
    mask = soft_sphere((16,) * 3, 4, 2)
    write_map(tmp_path / "mask.mrc", mask, 4.0)
    words = ("reconstruct", particles, "--reg", "none", "--json")
    code, out, _ = cli(*words, "-o", tmp_path / "m", "--mask", tmp_path / "mask.mrc")
    assert code == 0 and set(json.loads(out)["inputs"]["sha256"]) == {
        str(particles),
        str(tmp_path / "mask.mrc"),
    }
    expected = invcryo.reconstruction.reconstruct(read_particles(particles), reg="none", mask=mask >= 0.5)
    found = read_map(tmp_path / "m" / "map.mrc").data
    np.testing.assert_allclose(found, expected.map, atol=1e-5 * expected.map.max())
    ball = invcryo.reconstruction.reconstruct(read_particles(particles), reg="none")
    assert np.abs(found - ball.map).max() > 0.05 * ball.map.max()

    code, out, _ = cli(*words, "-o", tmp_path / "s", "--subset", "20", "--scale", "2", "--mask", "none")
    report = json.loads(out)
    assert code == 0 and report["particles"] == 20 and report["box"] == 16
    code, out, _ = cli(*words, "-o", tmp_path / "h", "--half", "1")
    assert code == 0 and json.loads(out)["particles"] == 30


def test_the_same_seed_draws_the_same_particles(cli, particles, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        words = (
            "reconstruct",
            particles,
            "--reg",
            "none",
            "--subset",
            "20",
            "--seed",
            seed,
            "--threads",
            "1",
        )
        assert cli(*words, "-o", tmp_path / name)[0] == 0
    a, b, c = ((tmp_path / name / "map.mrc").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "give the particle set once"),
        (["x.star", "--i", "y.star"], "give the particle set once"),
        (["x.star", "--subset", "1"], "use --half 1"),
        (["x.star", "--half", "1", "--half-maps"], "needs both"),
        (["x.star", "--reg", "none", "--lam", "3"], "need a regularisation"),
        (["x.star", "--reg", "none", "--positivity"], "need a regularisation"),
        (["x.star", "--scale", "0.5"], "1 or more"),
        (["x.star", "--lam", "-1"], "must be a number, 0 or more"),
        (["x.star", "--pixel-size", "nan"], "must be a positive number"),
        (["x.star", "--threads", "0"], "must be a whole number, 1 or more"),
        (["x.star", "--reg", "l2"], "invalid choice"),
    ],
)
def test_options_that_do_not_go_together(cli, tmp_path, words, said):
    code, out, err = cli("reconstruct", *words, "-o", tmp_path / "run")
    assert code == 2 and out == "" and said in err and not (tmp_path / "run").exists()


def test_without_matplotlib_all_but_the_pictures(cli, particles, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = cli("reconstruct", particles, "-o", tmp_path, "--reg", "none", "--json")
    assert code == 0 and "pip install 'invcryo[plot]'" in err
    assert "pip install 'invcryo[plot]'" in json.loads(out)["warnings"][0]
    assert sorted(contents(tmp_path)) == ["convergence.csv", "map.cxc", "map.mrc", "report.html", "run.json"]


def test_warnings_are_said_once_and_kept(cli, particles, tmp_path):
    words = ("reconstruct", particles, "-o", tmp_path, "--lam", "3", "--max-iter", "2", "--json")
    code, out, err = cli(*words)
    (warning,) = [text for text in json.loads(out)["warnings"] if "tv: stopped" in text]
    assert code == 0 and err.count(warning) == 1 and "raise --max-iter" in warning and "state=" not in warning
    assert warning in json.loads((tmp_path / "run.json").read_text())["warnings"]


@pytest.mark.relion
def test_relion_takes_the_half_maps(finished, relion, tmp_path):
    write_map(tmp_path / "mask.mrc", soft_sphere((16,) * 3, 5, 3), 4.0)
    for name in ("half1", "half1_noreg"):
        (tmp_path / name).mkdir()
        command = f"relion_postprocess --i {finished / name}.mrc --mask mask.mrc --o {name} --angpix 4"
        done = subprocess.run(command.split(), cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        curves = read_fsc_star(tmp_path / f"{name}.star")[1]
        ours = read_fsc_star(finished / f"{name.replace('half1', 'fsc')}.star")[1]
        theirs = curves["rlnFourierShellCorrelationUnmaskedMaps"].correlation
        # RELION weighs the plane kx = 0 twice: a small shell of a box of 16 may differ by some hundredths
        difference = theirs - ours["rlnFourierShellCorrelationUnmaskedMaps"].correlation
        assert np.abs(difference[1:]).max() < 0.1 and np.abs(difference[1:]).mean() < 0.03


# --- nothing half-written -----------------------------------------------------------------------------------


def test_results_are_not_overwritten_unasked(cli, particles, tmp_path):
    words = ("reconstruct", particles, "-o", tmp_path, "--reg", "none")
    assert cli(*words, "--half-maps")[0] == 0
    before = contents(tmp_path)
    code, _, err = cli(*words)
    assert code == 1 and "holds results already (map.mrc, half1.mrc, half2.mrc, ...)" in err
    assert "--overwrite" in err and contents(tmp_path) == before
    (tmp_path / "notes.txt").write_text("mine")
    assert cli(*words, "--overwrite")[0] == 0
    after = contents(tmp_path)
    assert "half1.mrc" not in after and "fsc.xml" not in after  # they would not belong to the new map
    assert after["notes.txt"] == b"mine" and after["run.json"] != before["run.json"]


def test_results_without_run_json_are_incomplete(tmp_path, monkeypatch):
    def write(text):
        with (
            OutputFolder(tmp_path, ("a", "b", "run.json"), overwrite=True) as folder,
            folder.results() as staging,
        ):
            for name in folder.names:
                (staging / name).write_text(text)

    write("old")
    assert contents(tmp_path) == dict.fromkeys(("a", "b", "run.json"), b"old")
    replace = os.replace

    def failing(source, target):
        if Path(target).name == "b":
            raise OSError("the disk went away")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="went away"):
        write("new")
    assert contents(tmp_path) == {"a": b"new", "b": b"old"}


_STAND_STILL = """
    import pathlib, sys, time
    import {module} as module
    def wait(*args, **options):
        pathlib.Path({flag!r}).touch()
        time.sleep(100)
    module.{function} = wait
    from invcryo.cli import main
    sys.exit(main({words!r}))
"""


@contextlib.contextmanager
def standing_still(module, function, words, flag):
    """A process that runs a command and stands still in a function, which it has just entered."""
    code = textwrap.dedent(
        _STAND_STILL.format(module=module, function=function, flag=str(flag), words=[str(w) for w in words])
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 60
        while not flag.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        assert flag.exists(), process.communicate(timeout=10)
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "module, function, when",
    [("invcryo.reconstruction", "reconstruct", "computing"), ("invcryo.metrics", "write_fsc_xml", "writing")],
)
@pytest.mark.parametrize("earlier", [True, False])
def test_a_kill_leaves_what_was_there(particles, tmp_path, module, function, when, earlier):
    folder, words = (
        tmp_path / "run",
        ("reconstruct", particles, "-o", tmp_path / "run", "--half-maps", "--quiet"),
    )
    if earlier:
        assert main(["reconstruct", str(particles), "-o", str(folder), "--reg", "none", "--quiet"]) == 0
    before = contents(folder) if earlier else {}
    more = ("--overwrite", "--lam", "3", "--max-iter", "2")
    with standing_still(module, function, (*words, *more), tmp_path / "flag") as process:
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=10) == -signal.SIGKILL
    left = {path.name: path for path in folder.iterdir() if path.name.endswith(".part")}
    assert len(left) == (1 if when == "writing" else 0)
    for path in left.values():
        shutil.rmtree(path)
    assert contents(folder) == before


def test_ctrl_c_outside_the_solver(particles, tmp_path):
    words = ("reconstruct", particles, "-o", tmp_path / "run", "--json")
    with standing_still("invcryo.reconstruction", "reconstruct", words, tmp_path / "flag") as process:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 130 and "nothing was written" in err and "Traceback" not in err
    assert json.loads(out)["exit_code"] == 130 and not (tmp_path / "run").exists()


@pytest.fixture
def interrupted_solver(monkeypatch):
    """Function: the solver gets Ctrl-C in these iterations."""

    def install(*iterations):
        admm = invcryo.inversion.admm

        def with_signals(*args, **options):
            for state in admm(*args, **options):
                yield state
                if state.iteration in iterations:
                    signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(invcryo.inversion, "admm", with_signals)

    return install


def test_ctrl_c_in_the_solver_saves_what_is_there(cli, particles, tmp_path, interrupted_solver):
    interrupted_solver(3)
    words = ("reconstruct", particles, "-o", tmp_path / "run", "--lam", "3")
    code, out, err = cli(*words, "--json")
    report = json.loads(out)
    assert (
        code == report["exit_code"] == 130
        and report["stopped_by"] == "interrupt"
        and report["iterations"] == 3
    )
    assert "press Ctrl-C again to stop at once" in err and "reached so far was saved in" in err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["stopped_by"] == "interrupt"
    before = contents(tmp_path / "run")
    code, _, err = cli(*words, "--overwrite")
    assert code == 130 and "earlier results" in err and contents(tmp_path / "run") == before


def test_ctrl_c_twice_stops_at_once(cli, particles, tmp_path, interrupted_solver, monkeypatch):
    interrupted_solver(2)
    ended = invcryo.reconstruction.unless_interrupted

    def interrupted_again(result):
        if result.stopped_by == "interrupt":
            signal.raise_signal(signal.SIGINT)
        ended(result)

    monkeypatch.setattr(invcryo.reconstruction, "unless_interrupted", interrupted_again)
    words = ("reconstruct", particles, "-o", tmp_path / "run", "--half-maps", "--lam", "3")
    handler = signal.getsignal(signal.SIGINT)
    code, _, err = cli(*words)
    assert code == 130 and "nothing was written" in err and not (tmp_path / "run").exists()
    assert signal.getsignal(signal.SIGINT) is handler


def test_ctrl_c_in_the_demo(cli, particles, tmp_path, monkeypatch, interrupted_solver):
    small = (read_particles(particles), read_map(particles.with_name("truth.mrc")).data, "small")
    monkeypatch.setattr("invcryo.cli.demo.load", lambda: small)
    interrupted_solver(1)
    code, _, err = cli("demo", "-o", tmp_path / "d", "--json")
    assert code == 130 and "nothing was written" in err and not (tmp_path / "d").exists()


def test_keyboard_interrupt_anywhere(cli, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("invcryo.io.describe", interrupted)
    code, out, err = cli("info", "x.mrc")
    assert code == 130 and out == "" and "interrupted" in err


# --- a run that was cut short; memory -----------------------------------------------------------------------


@pytest.fixture
def cut_short(cli, particles, tmp_path, monkeypatch):
    """The words of a command that was killed in its pass over the images, with the state it left."""
    monkeypatch.setattr(Checkpoint.__init__, "__defaults__", (0.0,))  # written after every chunk
    plans = invcryo.reconstruction.plan_memory
    small = {"plan_memory": lambda *a, **k: dataclasses.replace(plans(*a, **k), chunk=8)}
    monkeypatch.setattr(invcryo.reconstruction, "plan_memory", small["plan_memory"])
    words = ("reconstruct", particles, "-o", tmp_path / "run", "--reg", "none")
    add, calls = NormalSums.add, []

    def stopping(self, *args):
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        add(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(NormalSums, "add", stopping)
        code, _, err = cli(*words)
    assert code == 130 and "no map was written" in err and "the same command goes on from there" in err
    assert list(contents(tmp_path / "run")) == ["unfinished.npz"]
    return words


def test_the_same_command_goes_on(cli, cut_short, particles, tmp_path):
    code, _, err = cli(*cut_short, "--debug")
    assert code == 0 and "going on with an earlier pass: " in err and " of 60 images are done" in err
    report = json.loads((tmp_path / "run" / "run.json").read_text())
    assert 0 < report["first_pass"]["resumed_at"] <= 32 and report["first_pass"]["chunk"] == 8
    assert set(report["first_pass"]["seconds"]) >= {"computing", "reading", "waiting"}
    assert "unfinished.npz" not in contents(tmp_path / "run")
    assert cli("reconstruct", particles, "-o", tmp_path / "whole", "--reg", "none")[0] == 0
    a, b = (read_map(tmp_path / name / "map.mrc").data for name in ("run", "whole"))
    np.testing.assert_array_equal(a, b)


def test_another_command_does_not(cli, cut_short, tmp_path):
    before = contents(tmp_path / "run")
    code, _, err = cli(*cut_short, "--sym", "C3")
    assert code == 1 and "symmetry (C1, now C3)" in err and "pass --fresh to begin anew" in err
    assert contents(tmp_path / "run") == before
    assert cli(*cut_short, "--sym", "C3", "--fresh")[0] == 0
    report = json.loads((tmp_path / "run" / "run.json").read_text())
    assert report["first_pass"]["resumed_at"] == 0 and "unfinished.npz" not in contents(tmp_path / "run")


def test_a_dry_run_says_what_it_would_take(cli, particles, tmp_path):
    words = ("reconstruct", particles, "-o", tmp_path / "run", "--half-maps", "--dry-run")
    code, out, err = cli(*words)
    assert code == 0 and err == "" and "spectrum of the kernel: 3 x 32 x 32 x 17 float32" in out
    assert "at the peak" in out and "60 images are read at a time" in out and not (tmp_path / "run").exists()
    code, out, _ = cli(*words, "--json", "--memory", "2.5")
    planned = json.loads(out)["memory"]
    assert planned["limit_bytes"] == 2.5e9 and planned["peak_bytes"] == max(planned["stages"].values())


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_too_little_memory_is_refused(cli, particles, tmp_path, more):
    code, out, err = cli("reconstruct", particles, "-o", tmp_path / "run", "--memory", "0.01", *more)
    assert (
        code == 1
        and "a box of 16 at scale 1 needs" in err
        and "0.01 GB may be used: bin the particles" in err
    )
    assert out == "" and not (tmp_path / "run").exists()


def test_the_record_holds_the_plan_and_the_peak(finished):
    report = json.loads((finished / "run.json").read_text())
    assert report["memory"]["chunk"] == report["first_pass"]["images"] == 60
    assert sum(a["bytes"] for a in report["memory"]["arrays"]) > 0
    assert report["peak_memory_bytes"] > report["memory"]["libraries_bytes"]


# --- fsc ----------------------------------------------------------------------------------------------------


def test_fsc_says_what_the_library_finds(cli, finished):
    halves = finished / "half1_noreg.mrc", finished / "half2_noreg.mrc"
    code, out, err = cli("fsc", *halves, "--json")
    report = json.loads(out)
    curve = fsc(*(read_map(path).data for path in halves), pixel_size=4.0)
    assert code == 0 and err == ""
    np.testing.assert_allclose(report["correlation"]["FSC"], curve.correlation)
    for threshold in (0.143, 0.5, "half-bit"):
        assert report["resolution_angstrom"]["FSC"][str(threshold)]["angstrom"] == curve.resolution(threshold)
    code, out, _ = cli("fsc", *halves, "--table")
    assert code == 0 and f"at 0.143     {curve.resolution():.2f} angstrom" in out
    assert len([line for line in out.splitlines() if line.startswith("    ") and "." in line]) == 9


def test_fsc_with_a_mask_and_files(cli, finished, tmp_path):
    write_map(tmp_path / "mask.mrc", soft_sphere((16,) * 3, 5, 3), 4.0)
    words = (
        "fsc",
        finished / "half1_noreg.mrc",
        finished / "half2_noreg.mrc",
        "--mask",
        tmp_path / "mask.mrc",
    )
    outputs = ("-o", tmp_path / "masked", "--plot", tmp_path / "masked.png")
    code, out, _ = cli(*words, *outputs)
    assert code == 0 and "corrected for the mask:" in out and "unmasked:" in out
    curves = read_fsc_star(tmp_path / "masked.star")[1]
    assert "rlnFourierShellCorrelationCorrected" in curves
    assert (tmp_path / "masked.png").read_bytes()[:4] == b"\x89PNG"
    code, _, err = cli(*words, *outputs)
    assert code == 1 and "masked.xml exists and was left alone" in err
    assert cli(*words, *outputs, "--overwrite")[0] == 0
    assert cli(*words, "-o", f"{tmp_path / 'folder'}/")[0] == 0
    assert sorted(contents(tmp_path / "folder")) == ["fsc.star", "fsc.xml"]


def test_fsc_notices_an_inverted_map(cli, finished, tmp_path):
    volume = read_map(finished / "map.mrc").data
    write_map(tmp_path / "dark.mrc", -volume, 4.0)
    code, out, err = cli("fsc", finished / "half1.mrc", tmp_path / "dark.mrc", "--json")
    assert (
        code == 0 and "one of the maps is probably inverted" in err and len(json.loads(out)["warnings"]) == 1
    )
    assert "inverted" not in cli("fsc", finished / "half1.mrc", finished / "map.mrc")[2]
    rng = np.random.default_rng(5)
    for name in ("n1", "n2"):  # noise correlates a little, either way, and must not be called inverted
        write_map(tmp_path / f"{name}.mrc", rng.standard_normal((16, 16, 16)), 4.0)
    code, out, err = cli("fsc", tmp_path / "n1.mrc", tmp_path / "n2.mrc")
    assert code == 0 and err == ""


# --- demo ---------------------------------------------------------------------------------------------------


def test_demo_simulates_what_the_files_hold():
    stored = read_particles(invcryo.cli.demo.data_file())
    made = invcryo.cli.demo.simulate()
    # the random numbers are the same everywhere, the last digits of the transforms are not
    np.testing.assert_allclose(made.images[:20], stored.images[:20], atol=2e-5)
    np.testing.assert_allclose(made.poses.matrices, stored.poses.matrices, atol=1e-7)


def test_demo(cli, particles, tmp_path, monkeypatch):
    """The whole demo, on a smaller set."""
    small = (read_particles(particles), read_map(particles.with_name("truth.mrc")).data, "small")
    monkeypatch.setattr("invcryo.cli.demo.load", lambda: small)
    code, out, err = cli("demo", "-o", tmp_path / "d")
    assert code == 0 and err == ""
    for words in ("against the truth", "FSC 0.5 at", "FSC 0.143 at", "the resolution to quote", "slices.png"):
        assert words in out
    assert {"images.png", "truth.mrc", "fsc_truth.png", *RESULTS} == set(contents(tmp_path / "d"))
    assert json.loads((tmp_path / "d" / "run.json").read_text())["against_truth"]["map"]["correlation"] > 0.97
    code, _, err = cli("demo", "-o", tmp_path / "d")
    assert code == 1 and "--overwrite" in err


def test_demo_without_the_files(monkeypatch):
    monkeypatch.setattr("invcryo.cli.demo.data_file", lambda: None)
    stack, truth, source = invcryo.cli.demo.load()
    assert len(stack) == 500 and truth.shape == (48, 48, 48) and "simulated now" in source
