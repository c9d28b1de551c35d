"""The fuzzer of the file readers: a few hundred cases, and that it would see what it looks for."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from invcryo.data import ParticleStack, Poses
from invcryo.io import read_particles, write_cs, write_map, write_particles, write_stack
from invcryo.rotation import random_rotations

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def fuzzer():
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("fuzz")
    sys.path.remove(str(FOLDER))
    sys.modules.pop("fuzz", None)


@pytest.fixture
def files(tmp_path, fuzzer, monkeypatch):
    """One sound file of each format, the same in every run: no name in them depends on where they lie."""
    folder = tmp_path / "sound"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder = Path()
    images = np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32)
    poses = Poses(random_rotations(3, rng=1), np.ones((3, 2)))
    stack = ParticleStack(images, 1.5, poses, half=np.array([1, 2, 1]))
    write_particles(folder / "p.star", stack, stack_path=folder / "p.mrcs")
    write_cs(folder / "p.cs", read_particles(folder / "p.star"))
    write_map(folder / "m.mrc", np.ones((4, 4, 4)), 1.0)
    write_stack(folder / "s.mrcs", images, 1.0)
    return fuzzer.files_of([folder])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_spoilt_files_give_a_result_or_a_named_error(fuzzer, files):
    report = fuzzer.fuzz(files, 300, batch=150)
    assert report["findings"] == []
    assert report["outcomes"]["result"] > 50 and report["outcomes"]["named error"] > 50
    assert report["unnamed"] == {}


def test_a_case_is_made_from_its_number_alone(fuzzer, files):
    cases = [fuzzer.make(number, 0, files) for number in range(30)]
    assert cases == [fuzzer.make(number, 0, files) for number in range(30)]
    assert len({content for _, content in cases}) == 30
    assert {name for name, _ in cases} == {"case.star", "case.cs", "case.mrc", "case.mrcs"}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("raise KeyError('x')", "KeyError at "),
        ("raise ValueError('')", "ValueError at "),
        ("import time; time.sleep(5)", "TooSlow at "),
        ("import os; os.kill(os.getpid(), 11)", "process ended with -11"),
        ("bytearray(2**31)", "MemoryError at "),
    ],
)
def test_what_it_looks_for_is_found(fuzzer, files, monkeypatch, what, expected):
    """A reader that fails in each way, once."""

    def reader(path):
        if path.name == "case.cs":
            fuzzer.attempt(lambda: exec(what))

    monkeypatch.setattr(fuzzer, "use", reader)
    report = fuzzer.fuzz(files, 12, memory=512, seconds=0.2)
    spoilt = [n for n in range(12) if fuzzer.make(n, 0, files)[0] == "case.cs"]
    assert spoilt and [f["case"] for f in report["findings"]] == spoilt
    assert all(f["what"].startswith(expected) for f in report["findings"])
