"""Progress bars, what they promise, and the log of a run."""

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import invcryo.progress
from invcryo.cli import main
from invcryo.cli.output import OutputFolder
from invcryo.io import write_map
from invcryo.metrics import directional_fsc, phase_randomised_fsc, postprocess, soft_sphere
from invcryo.progress import Meter, track
from invcryo.simulate import phantom
from invcryo.solvers import State, residual_below, run

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (INFO|WARNING|ERROR) invcryo[.\w]*: .")


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand: add to ``clock[0]``."""
    now = [100.0]
    monkeypatch.setattr(invcryo.progress.time, "perf_counter", lambda: now[0])
    return now


def test_the_log_says_how_far_and_how_long(clock, caplog):
    caplog.set_level(logging.INFO, "invcryo.progress")
    for i in track(range(10), "reading", unit="chunks", show=False):
        clock[0] += 20.0 if i < 4 else 1.0
    assert caplog.messages == [
        "reading: 2 of 10 chunks after 40 s, about 160 s to go",
        "reading: 4 of 10 chunks after 80 s, about 120 s to go",
        "reading: 10 of 10 chunks after 86.0 s",
    ]


def test_nothing_is_promised_of_a_loop_that_may_end_early(clock, caplog, capsys):
    caplog.set_level(logging.INFO, "invcryo.progress")
    with Meter("solver", total=100, unit="iterations", show=True, at_most=True) as meter:
        clock[0] += 40
        meter.step(gap=0.5)
    assert caplog.messages == [
        "solver: 1 of at most 100 iterations after 40 s",
        "solver: 1 of at most 100 iterations after 40.0 s",
    ]
    assert "of at most 100" in capsys.readouterr().err
    with Meter("open", show=False) as meter:
        meter.step()
    assert caplog.messages[-1].startswith("open: 1 rounds after")


def test_a_loop_that_breaks_off_says_where(caplog):
    caplog.set_level(logging.INFO, "invcryo.progress")
    with pytest.raises(ZeroDivisionError):
        for i in track([3, 2, 0, 1], "dividing", show=False):
            1 / i
    assert caplog.messages == [caplog.messages[0]] and caplog.messages[0].startswith(
        "dividing: 2 of 4 rounds"
    )


def test_one_bar_per_solver(capsys):
    def states():
        for k in range(1, 9):
            yield State(k, np.zeros(1), {"residual": 1 / k})

    run(states(), 50, stop=residual_below(0.3), progress=True, label="my solver")
    err = capsys.readouterr().err
    assert "my solver: " in err and "of at most 50" in err and "100%" not in err
    run(states(), 8, progress=True, label="counted")
    assert "/8 [" in capsys.readouterr().err  # a known number of rounds: a share, and the time to go


# --- the log of a run ---------------------------------------------------------------------------------------


@pytest.fixture
def halves(tmp_path):
    truth = phantom("enzyme", 24, rng=1)
    rng = np.random.default_rng(3)
    for i in (1, 2):
        write_map(tmp_path / f"half{i}.mrc", truth + 0.05 * rng.standard_normal(truth.shape), 3.0)
    return tmp_path / "half1.mrc", tmp_path / "half2.mrc"


def test_every_run_adds_to_the_log(halves, tmp_path, capsys):
    folder = tmp_path / "post"
    words = ["postprocess", *map(str, halves), "-o", str(folder), "--bfactor", "20", "--quiet"]
    assert main(words) == 0
    first = (folder / "run.log").read_text(encoding="utf-8")
    header, *lines = first.splitlines()
    assert header == "# invcryo " + " ".join(words)
    assert lines[0].startswith(f"# in {Path.cwd()}, process ") and "numpy " in lines[1]
    assert all(LINE.match(line) or line.startswith("    ") for line in lines[2:])
    assert first.count("positive B-factor") == 1 and " WARNING invcryo.cli: you asked for" in first
    assert "resolution at 0.143" in first  # --quiet or not
    assert re.search(r"INFO invcryo\.cli: exit code 0 after \d+\.\d s$", first.rstrip())
    assert main([*words, "--overwrite", "--json"]) == 0
    both = (folder / "run.log").read_text(encoding="utf-8")
    assert both.startswith(first + "\n# invcryo ") and both.count("exit code 0") == 2
    assert not [h for h in logging.getLogger("invcryo").handlers if type(h) is not logging.NullHandler]
    assert "run.log" not in json.loads(capsys.readouterr().out)["files"]


def test_a_run_that_fails_leaves_its_log_where_there_is_a_folder(halves, tmp_path, capsys):
    folder = tmp_path / "there"
    words = ["postprocess", str(halves[0]), str(tmp_path / "none.mrc"), "-o", str(folder)]
    assert main(words) == 1 and not folder.exists()  # made for nothing
    folder.mkdir()
    assert main(words) == 1
    log = (folder / "run.log").read_text(encoding="utf-8")
    assert "ERROR invcryo.cli: " in log and "none.mrc" in log and "exit code 1" in log
    assert [p.name for p in folder.iterdir()] == ["run.log"]
    capsys.readouterr()


def test_a_killed_run_leaves_its_log(halves, tmp_path):
    code = (
        "import os, signal, sys, invcryo.metrics; from invcryo.cli import main\n"
        "invcryo.metrics.postprocess = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"
        "main(sys.argv[1:])"
    )
    words = ["postprocess", *halves, "-o", tmp_path / "post", "--debug"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, timeout=120)
    assert done.returncode == -9
    log = (tmp_path / "post" / "run.log").read_text(encoding="utf-8")
    assert log.startswith("# invcryo postprocess") and "exit code" not in log


def test_no_message_looks_like_another_line(tmp_path):
    from invcryo.cli.common import Console

    console = Console(quiet=True)
    with console.listening(["a\nb"]):
        with OutputFolder(tmp_path / "out", ("x",), overwrite=False):
            console.note("one\n2026-01-01T00:00:00Z INFO forged: two\r\nthree \udce9")
    lines = (tmp_path / "out" / "run.log").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# invcryo 'a\\nb'"
    assert lines[3].endswith("invcryo.cli: one") and lines[4].startswith("    2026")
    assert lines[5] == r"    three \udce9" and len(lines) == 6


def test_a_log_where_it_was_asked_for(halves, tmp_path, capsys):
    """For commands without a folder, and in place of the one in the folder; what stands there stays."""
    log = tmp_path / "what.log"
    assert main(["fsc", *map(str, halves), "--log", str(log)]) == 0
    first = log.read_text(encoding="utf-8")
    assert first.startswith("# invcryo fsc ") and "at 0.143" in first and "exit code 0" in first
    words = [
        "postprocess",
        *map(str, halves),
        "-o",
        str(tmp_path / "post"),
        "--bfactor",
        "0",
        "--log",
        str(log),
    ]
    assert main(words) == 0 and not (tmp_path / "post" / "run.log").exists()
    both = log.read_text(encoding="utf-8")
    assert (
        both.startswith(first) and both.count("exit code 0") == 2 and "post-processing: 5 of 5 steps" in both
    )
    assert main(["fsc", str(halves[0]), str(tmp_path / "none.mrc"), "--log", str(log)]) == 1
    assert "ERROR" in log.read_text(encoding="utf-8").removeprefix(both)
    capsys.readouterr()
    assert main(["fsc", *map(str, halves), "--log", str(tmp_path / "no" / "folder.log")]) == 0
    assert "no log is written" in capsys.readouterr().err


def test_a_log_that_cannot_be_written_does_not_end_the_run(halves, tmp_path, capsys):
    (tmp_path / "post" / "run.log").mkdir(parents=True)
    words = ["postprocess", *map(str, halves), "-o", str(tmp_path / "post"), "--bfactor", "0"]
    assert main(words) == 0
    assert capsys.readouterr().err.count("no log is written") == 1


def test_a_working_folder_that_is_gone(tmp_path, monkeypatch):
    """It goes into the log and the record of a run, and must not end it."""
    from invcryo.cli.runlog import working_folder

    assert working_folder() == str(Path.cwd())
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert working_folder() is None


def test_ctrl_c_within_a_line_of_the_log(tmp_path):
    """A signal may come while a line is written; the file refuses to be entered twice."""
    from invcryo.cli.runlog import RunLog

    class Busy:
        def write(self, text):
            raise RuntimeError("reentrant call inside BufferedWriter")

    log = RunLog(["x"])
    log._file = Busy()
    log.emit(
        logging.makeLogRecord(
            {"msg": "interrupted", "levelno": 40, "levelname": "ERROR", "name": "invcryo.cli"}
        )
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"mtf": ([0.0, 0.5], [1.0, 0.4]), "fsc_weighting": False, "bfactor": 0}]
)
def test_post_processing_is_one_bar(rng, caplog, capsys, masked, options):
    """It reaches its end, and what lies within draws none of its own."""
    truth = phantom("blobs", 16, rng=1)
    halves = [truth + 0.3 * rng.standard_normal(truth.shape) for _ in range(2)]
    mask = soft_sphere((16,) * 3, 5, 2) if masked else None
    caplog.set_level(logging.INFO, "invcryo.progress")
    postprocess(*halves, mask, pixel_size=3.0, fit_range=(30.0, 0.0), rng=0, progress=True, **options)
    (said,) = [m for m in caplog.messages if " steps after " in m]
    done, total = re.match(r"post-processing: (\d+) of (\d+) steps", said).groups()
    assert done == total == str((5 if masked else 1) + 3 + 1)
    assert set(re.findall(r"[\w -]+(?=: +\d+%)", capsys.readouterr().err)) == {"post-processing"}


def test_random_phases_are_one_bar_even_where_none_are(rng, caplog, capsys):
    truth = phantom("blobs", 16, rng=1)
    caplog.set_level(logging.INFO, "invcryo.progress")
    for noise in (1e-6, 0.5):  # nothing to randomise, and much
        other = truth + noise * rng.standard_normal(truth.shape)
        phase_randomised_fsc(truth, other, soft_sphere((16,) * 3, 5, 2), pixel_size=3.0, rng=0, progress=True)
    said = [r.getMessage().partition(" after")[0] for r in caplog.records if r.name == "invcryo.progress"]
    assert said == ["FSC and random phases: 5 of 5 steps"] * 2
    assert "FSC and random phases" in capsys.readouterr().err


def test_directions_are_one_bar(rng, caplog, capsys, monkeypatch):
    truth = phantom("blobs", 16, rng=1)
    other = truth + 0.3 * rng.standard_normal(truth.shape)
    caplog.set_level(logging.INFO, "invcryo.progress")
    expected = directional_fsc(truth, other, pixel_size=3.0, n_axes=6, progress=False)
    assert capsys.readouterr().err == ""
    # several slabs, as in a large box
    monkeypatch.setattr(sys.modules["invcryo.metrics.fsc"], "_CHUNK", 1000)
    again = directional_fsc(truth, other, pixel_size=3.0, n_axes=6, progress=True)
    np.testing.assert_allclose(again.curves, expected.curves, atol=1e-12)
    assert "FSC by direction" in capsys.readouterr().err
    first, second = (re.match(r"FSC by direction: (\d+) of (\d+) cones", m).groups() for m in caplog.messages)
    assert first == ("6", "6") and second[0] == second[1] and int(second[0]) > 6
