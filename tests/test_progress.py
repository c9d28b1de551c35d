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
