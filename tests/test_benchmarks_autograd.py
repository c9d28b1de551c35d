"""The benchmark of training steps runs without its rival and leaves a well-formed record. Nothing depends on time."""

import importlib
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def benchmark():
    """Imports a module of the benchmarks, and forgets all of them afterwards."""
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module
    sys.path.remove(str(FOLDER))
    for path in FOLDER.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_a_record_without_pytorch(benchmark, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    module = benchmark("training_steps")
    monkeypatch.setattr(module, "import_error", lambda *words: "it is not there")
    record = tmp_path / "record.json"
    arguments = [
        "--case",
        "slices-8",
        "--rounds",
        "2",
        "--steps",
        "1",
        "--threads",
        "1",
        "--json",
        str(record),
    ]
    assert module.main(arguments) == 0
    (result,) = json.loads(record.read_text())["results"]
    (ours,) = result["engines"]
    assert ours["engine"] == "ours" and len(ours["seconds"]) == len(ours["cpu_seconds"]) == 2
    assert 0 < ours["min"] <= ours["median"] <= ours["max"] and "ratio" not in result
    out, err = capsys.readouterr()
    assert "slices-8" in out and "PyTorch is missing: it is not there" in err


def test_small_steps_go_down(benchmark):
    """The two training problems at a size that a test can afford: Adam lowers both losses."""
    problem, ours = benchmark("autograd_problem"), benchmark("autograd_ours")
    sizes = {"wgan-16": {"channels": (2, 4)}, "posenet-16": {"channels": (4,), "hidden": 8}}
    for case, small in sizes.items():
        p = problem.make(case, batch=3, **small)
        p.rate = 3e-3
        step = ours.step(p)
        losses = [step() for _ in range(12)]
        assert losses[-1] < losses[0], case
