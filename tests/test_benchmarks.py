"""The benchmarks run without rivals and leave well-formed records. Nothing here depends on time."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import fft

from invcryo.data import Poses
from invcryo.operators import Projector
from invcryo.window import BandLimited

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
CASES = ["forward", "adjoint", "adjoint-ctf", "kernel", "kernel-ctf", "gram", "reconstruct"]

#: Relative error of single precision with NUFFTs at 3e-5; the tube kernel is an approximation, see its class.
ERROR = {"invcryo": 2e-4, "invcryo:tube": 5e-2}


@pytest.fixture(scope="module")
def benchmarks():
    """Imports a module of the benchmarks, and forgets all of them afterwards."""
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module
    sys.path.remove(str(FOLDER))
    for path in FOLDER.glob("*.py"):
        sys.modules.pop(path.stem, None)


def script(name, *arguments):
    command = [sys.executable, str(FOLDER / name), *map(str, arguments)]
    environment = {
        k: v for k, v in os.environ.items() if k != "PYTHONPATH"
    }  # the script must find the package
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """All parts at a tiny size, in one run: (record, printed table)."""
    out = tmp_path_factory.mktemp("benchmarks") / "record.json"
    tiny = ["--size", 16, "--views", 4, "--particles", 12, "--repeat", 2, "--threads", 1]
    done = script("run.py", *tiny, "--rivals", "none", "--json", out)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), done.stdout


def test_record_states_where_and_how(run):
    record, _ = run
    assert record["schema"] == 1
    assert record["machine"]["cpu"] and record["machine"]["cores"] >= 1
    assert record["options"] == {"size": 16, "views": 4, "particles": 12, "repeat": 2, "threads": 1}
    assert all(record["rates"][k] > 0 for k in ("fft_gflops", "copy_gbs", "matmul_gflops"))
    assert [r["case"] for r in record["results"]] == CASES


@pytest.mark.parametrize("case", CASES)
def test_case(run, case):
    record, table = run
    result = next(r for r in record["results"] if r["case"] == case)
    timed = {e["engine"]: e for e in result["engines"] if "missing" not in e}
    assert set(timed) == {"invcryo", "invcryo:tube"} if case == "kernel" else {"invcryo"}
    for name, e in timed.items():
        assert len(e["seconds"]) == 2
        assert 0 < e["min"] <= e["median"] <= e["max"]
        assert e["peak_mb"] > 0 and e["first_seconds"] > 0
        if case == "reconstruct":
            assert 2 * 1.5 <= e["resolution_angstrom"] <= 16 * 1.5
        else:
            assert e["error"] < ERROR[name]
            assert e["versions"]["numpy"] == np.__version__
    if case != "reconstruct":
        floor = result["floor"]
        assert floor["formula"]
        assert floor["seconds"] == pytest.approx(sum(floor["stage_seconds"].values()))
        assert floor["bytes"] > 0 and floor["fft_flops"] > 0
    for e in result["engines"]:
        if "missing" in e:  # said in the record and in the table
            assert e["missing"] == "left out by --rivals none"
            assert any(
                line.startswith(f"{case:12} {e['engine']}") and "missing" in line
                for line in table.splitlines()
            )
    assert len(result["engines"]) > len(timed)
    assert result["ratios"] == []


def test_rival_that_cannot_be_imported_is_named(benchmarks):
    processes = benchmarks("processes")
    assert processes.import_error(sys.executable, "numpy") is None
    assert "No module named" in processes.import_error(sys.executable, "no_such_rival")
    assert "cannot be started" in processes.import_error("no-such-python", "numpy")


def test_request_that_fails_says_why(benchmarks, tmp_path):
    processes = benchmarks("processes")
    with processes.Worker(sys.executable, tmp_path, 1) as worker:
        with pytest.raises(processes.Failed, match="no_such_engine"):
            worker.ask("setup", engine="no_such_engine", case="forward", size=16, views=2)


@pytest.mark.parametrize("case", ["forward", "adjoint-ctf", "kernel-ctf"])
def test_wrong_answer_has_a_large_error(benchmarks, tmp_path, case):
    worker, engine, problem = benchmarks("worker"), benchmarks("engine_invcryo"), benchmarks("problem")
    path = tmp_path / "answer.npy"
    answer = engine.answer(case, problem.make_problem(16, 3), "")
    for factor, wrong, low, high in ((1, False, 0, 1e-4), (-3, False, 0, 1e-4), (1, True, 0.1, 1.01)):
        np.save(path, factor * (np.roll(answer, 1, axis=-1) if wrong else answer))
        error = worker.Worker().compare(case, False, 16, 3, str(path))["error"]
        assert low <= error < high


def test_ratios_pair_calls_of_one_round(benchmarks):
    engines = [
        {"engine": "invcryo", "seconds": [1.0, 2.0, 4.0]},
        {"engine": "invcryo:tube", "missing": "why not"},
        {"engine": "aspire", "seconds": [3.0, 4.0, 6.0]},
    ]
    assert benchmarks("run")._ratios(engines) == [
        {"of": "aspire", "to": "invcryo", "medians": 2.0, "pairs": [3.0, 2.0, 1.5]}
    ]


@pytest.mark.parametrize("size", [15, 16, 31, 32])
def test_floor_counts(benchmarks, size):
    floor = benchmarks("floor")
    projector = Projector(Poses(np.eye(3)[None]), benchmarks("engine_invcryo").Voxels(), size)
    assert floor.slice_points(size) == projector._index.size
    assert projector._index.size > Projector(Poses(np.eye(3)[None]), BandLimited(), size)._index.size
    assert floor.fast_length(2 * size - 1) == fft.next_fast_len(2 * size - 1, real=True)


def test_floor_of_gram_counts_every_line(benchmarks):
    floor = benchmarks("floor")
    rates = {"fft_gflops": 1.0, "copy_gbs": 1.0, "matmul_gflops": 1.0}
    bound = floor.floor("gram", 8, 1, rates)  # padded to 15 = 3 * 5 points: half spectrum of 8
    lines = 2 * (8 * 8 / 2 + 8 * 8 + 15 * 8)
    assert bound["fft_flops"] == pytest.approx(lines * 5 * 15 * np.log2(15))
    assert bound["bytes"] == 4 * 15 * 15 * 8 + 4 * 8 * 8 * 15 * 8 + 8 * 8**3


def test_compare(benchmarks):
    def record(median, spread, cpu):
        engine = {
            "engine": "invcryo",
            "median": median,
            "min": median - spread,
            "max": median + spread,
            "peak_mb": 9.0,
        }
        missing = {"engine": "aspire", "missing": "not there"}
        return {
            "machine": {"cpu": cpu},
            "options": {"size": 16},
            "results": [{"case": "gram", "engines": [engine, missing]}],
        }

    comparison = benchmarks("compare").comparison
    text = comparison(record(1.0, 0.1, "a"), record(2.0, 0.1, "b"))
    assert "cpu differs: a before, b after" in text
    assert text.splitlines()[-1].split() == ["gram", "invcryo", "1.000", "2.000", "2.00", "9", "9"]
    assert "ranges overlap" in comparison(record(1.0, 0.6, "a"), record(2.0, 0.6, "a"))
    assert "differs" not in comparison(record(1.0, 0.6, "a"), record(2.0, 0.6, "a"))


def test_memory(tmp_path):
    out = tmp_path / "memory.json"
    done = script("memory.py", "--size", 16, "--particles", 12, 24, "--threads", 1, "--json", out)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert [row["particles"] for row in record["rows"]] == [12, 24]
    assert all(row["peak_mb"] > 1 for row in record["rows"])
    assert record["image_bytes"] == 4 * 16**2
    if Path("/proc/self/status").exists():
        first, last = (row["own_mb"] for row in record["rows"])
        assert 1 < first < record["rows"][0]["peak_mb"]
        assert record["own_bytes_per_particle"] == pytest.approx(1e6 * (last - first) / 12)
