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
PARTS = ["forward", "adjoint", "kernel", "gram", "mean", "tilt", "tv", "reconstruct"]
CALLS = ["forward", "adjoint", "adjoint-ctf", "kernel", "kernel-ctf", "gram", "gram-2x", "mean", "tilt", "tv"]
CASES = [*CALLS, "reconstruct", "reconstruct-10x"]

#: Relative error of single precision with NUFFTs at 3e-5; the tube kernel is an approximation, see its class.
#: RESIDUAL is of `mean`: what 20 iterations leave of the normal equations.
ERROR = {"invcryo": 2e-4, "invcryo:tube": 5e-2, "fftpair": 1e-6}
RESIDUAL = 0.2

OPTIONS = {"size": 16, "views": 4, "tilts": 3, "particles": 12, "repeat": 2, "runs": 1, "threads": 1}


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
    """All calls at a tiny size, in one run: (record, printed table)."""
    return measured(tmp_path_factory, "--part", *(p for p in PARTS if p != "reconstruct"))


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The same of the whole programs."""
    return measured(tmp_path_factory, "--part", "reconstruct")


def measured(tmp_path_factory, *words):
    out = tmp_path_factory.mktemp("benchmarks") / "record.json"
    tiny = [word for name, value in OPTIONS.items() for word in (f"--{name}", value)]
    done = script("run.py", *tiny, *words, "--rivals", "none", "--json", out)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), done.stdout


def test_no_script_hides_a_package_of_a_rival():
    """A script's folder comes first where its processes look for modules; ASPIRE imports autograd, for one."""
    taken = {"aspire", "astra", "autograd", "invcryo", "matplotlib", "numba", "numpy", "pylops", "pymanopt",
             "pyproximal", "scipy", "skimage", "torch", "jax", "ray", "sklearn",
             "gemmi", "mrcfile", "finufft"}  # fmt: skip
    names = {path.stem for path in FOLDER.glob("*.py")}
    assert not names & (taken | sys.stdlib_module_names)


def test_record_states_where_and_how(run):
    record, _ = run
    assert record["schema"] == 2
    assert record["machine"]["cpu"] and record["machine"]["cores"] >= 1
    assert record["options"] == OPTIONS
    assert all(record["rates"][k] > 0 for k in ("fft_gflops", "copy_gbs", "matmul_gflops"))
    assert [r["case"] for r in record["results"]] == CALLS


def check_engines(result, table, calls):
    """Figures of those that were timed; the others are said to be missing."""
    timed = {e["engine"]: e for e in result["engines"] if "missing" not in e}
    for e in timed.values():
        assert len(e["seconds"]) == calls
        assert 0 < e["min"] <= e["median"] <= e["max"]
        assert e["peak_mb"] > 0
    for e in result["engines"]:
        if "missing" in e:
            assert e["missing"] == "left out by --rivals none"
            start = f"{result['case']:15} {e['engine']} "
            assert any(line.startswith(start) and "missing" in line for line in table.splitlines())
    assert len(result["engines"]) > len(timed)
    return timed


@pytest.mark.parametrize("case", CALLS)
def test_case(run, case):
    record, table = run
    result = next(r for r in record["results"] if r["case"] == case)
    timed = check_engines(result, table, calls=2)
    more = {"kernel": {"invcryo:tube"}, "gram": {"fftpair"}, "gram-2x": {"fftpair"}}.get(case, set())
    assert set(timed) == {"invcryo", *more}
    for name, e in timed.items():
        assert e["first_seconds"] > 0 and e["versions"]["numpy"] == np.__version__
        assert e["error"] < (RESIDUAL if case == "mean" else ERROR[name])
    floor = result["floor"]
    assert floor["formula"]
    assert floor["seconds"] == pytest.approx(sum(floor["stage_seconds"].values()))
    assert floor["bytes"] > 0 and floor["fft_flops"] + floor["flops"] > 0
    pairs = [(r["of"], r["to"], r["target"]) for r in result["ratios"]]
    assert pairs == ([("invcryo", "fftpair", 1.25)] if "fftpair" in more else [])


def test_programs(programs):
    record, table = programs
    assert [(r["case"], r["views"]) for r in record["results"]] == [
        ("reconstruct", 12),
        ("reconstruct-10x", 120),
    ]
    for result in record["results"]:
        timed = check_engines(result, table, calls=1)
        assert list(timed) == ["invcryo", "invcryo:tv", "invcryo:tv-fixed"]
        assert [e["options"][1] for e in timed.values()] == ["none", "tv", "tv"]
        assert timed["invcryo:tv"]["options"][3] == "auto"
        assert float(timed["invcryo:tv-fixed"]["options"][3]) > 0
        assert all(2 * 1.5 <= e["resolution_angstrom"] <= 16 * 1.5 for e in timed.values())
        assert result["ratios"] == []


def test_targets_are_printed(run, programs):
    """Beside the ratio, or said to have no rival."""
    lines = [line.split() for _, text in (run, programs) for line in text.splitlines()]
    assert ["tilt", "invcryo", "astra"] in [line[:3] for line in lines if line[-2:] == ["missing", "0.07"]]
    assert any(line[:3] == ["reconstruct-10x", "invcryo:tv", "relion"] for line in lines)
    (pair,) = (line for line in lines if line[:3] == ["gram", "invcryo", "fftpair"])
    record, _ = run
    gram = next(r for r in record["results"] if r["case"] == "gram")
    assert float(pair[5]) == pytest.approx(gram["ratios"][0]["medians"], abs=1e-3) and pair[6] == "1.25"
    assert pair[7] == ("met" if gram["ratios"][0]["medians"] <= 1.25 else "missed")


def test_cases_of_the_record_are_those_of_the_program(benchmarks):
    run = benchmarks("run")
    assert list(run.PARTS) == PARTS and [c for cases in run.PARTS.values() for c in cases] == CASES
    for case, targets in run.TARGETS.items():
        assert all(engine in run.ENGINES[case] for pair in targets for engine in pair)


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


@pytest.mark.parametrize("case", ["forward", "adjoint-ctf", "kernel-ctf", "gram", "tilt", "tv"])
def test_wrong_answer_has_a_large_error(benchmarks, tmp_path, case):
    worker, engine, problem = benchmarks("worker"), benchmarks("engine_invcryo"), benchmarks("problem")
    path = tmp_path / "answer.npy"
    answer = engine.answer(case, problem.make_problem(case, 16, 3), "")
    for factor, wrong, low, high in ((1, False, 0, 1e-4), (-3, False, 0, 1e-4), (1, True, 0.1, 1.01)):
        np.save(path, factor * (np.roll(answer, 1, axis=-1) if wrong else answer))
        error = worker.Worker().compare(case, "invcryo", 16, 3, str(path))["error"]
        assert low <= error < high


def test_mean_solves_the_normal_equations(benchmarks):
    """Fewer iterations leave more; the answer of another problem leaves nearly all."""
    engine, problem = benchmarks("engine_invcryo"), benchmarks("problem")
    small, exact = (problem.make_problem("mean", 16, 6, kind) for kind in ("float32", "float64"))
    answer = engine.answer("mean", small, "")
    error = engine.error("mean", exact, "invcryo", answer)
    adjoint = engine.error("mean", exact, "invcryo", engine.answer("adjoint-ctf", small, ""))
    assert error < 0.5 * adjoint
    assert engine.error("mean", exact, "invcryo", np.roll(answer, 5, axis=0)) > 2 * error


def test_tilt_series_turns_about_y(benchmarks):
    problem = benchmarks("problem").make_problem("tilt", 8, 3)
    assert problem.volume.shape == (8, 16, 16) and problem.images.shape == (3, 16, 16)
    half = 0.5 * 3**0.5
    expected = [[0.5, 0, -half], [1, 0, 0], [0.5, 0, half]]
    np.testing.assert_allclose(problem.matrices[:, 0], expected, atol=1e-12)
    np.testing.assert_allclose(problem.matrices[:, 1], [[0, 1, 0]] * 3, atol=1e-12)


@pytest.mark.parametrize("engine", ["astra", "pylops"])
def test_rivals_that_are_installed_agree(benchmarks, engine):
    """The linear interpolation of ASTRA is another discretisation: rays at 45 degrees do not see all pixels alike."""
    for module in {"astra": ["astra"], "pylops": ["pylops", "pyproximal"]}[engine]:
        pytest.importorskip(module)
    case, most = {"astra": ("tilt", 0.1), "pylops": ("tv", 1e-6)}[engine]
    problem, ours = benchmarks("problem"), benchmarks("engine_invcryo")
    answer = benchmarks(f"engine_{engine}").answer(case, problem.make_problem(case, 32, 6), "")
    assert ours.error(case, problem.make_problem(case, 32, 6, "float64"), engine, answer) < most


def test_fft_pair_is_the_identity(benchmarks):
    x = np.random.default_rng(0).standard_normal((9, 9, 9), dtype=np.float32)
    np.testing.assert_allclose(benchmarks("engine_fftpair").pair(x), x, atol=1e-5)


def test_ratios_pair_calls_of_one_round(benchmarks):
    engines = [
        {"engine": "invcryo", "seconds": [1.0, 2.0, 4.0]},
        {"engine": "invcryo:tube", "missing": "why not"},
        {"engine": "aspire", "seconds": [4.0, 4.0, 8.0]},
    ]
    assert benchmarks("run")._ratios("forward", engines) == [
        {"of": "invcryo", "to": "aspire", "medians": 0.5, "pairs": [0.25, 0.5, 0.5], "target": 0.20}
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


def test_floor_of_tilt_is_that_of_a_separable_evaluation(benchmarks):
    floor = benchmarks("floor")
    rates = {"fft_gflops": 1.0, "copy_gbs": 1.0, "matmul_gflops": 1.0}
    bound = floor.floor("tilt", 8, 5, rates)  # volume (8, 16, 16), slices on (10, 20)
    assert bound["points"] == 2 * 8 * 5 * 16 and bound["flops"] == 4 * 64 * bound["points"]
    along_y = (8 * 16 + 5 * 16) / 2 * 5 * 16 * 4
    slices = 8 * (16 * 5 * 10 * np.log2(10) + 10 * 5 * 20 * np.log2(20))
    images = 5 * 8 * 5 * 16 * 4
    assert bound["fft_flops"] == pytest.approx(2 * (along_y + slices + images))


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


def test_tilt_series_with_missing_pixels(tmp_path):
    out = tmp_path / "stet.json"
    words = (
        "--size 24 --tilts 8 --reference 40 --limit 40 --repeat 1 --threads 1 --schemes ours plain-1".split()
    )
    done = script("stet.py", *words, "--json", out)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert 1 <= record["iterations"]["ours"] < (record["iterations"]["plain-1"] or 41)
    assert len(record["seconds"]["ours"]) == 1


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
