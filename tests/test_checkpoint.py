"""A pass over the images that is cut short goes on where it was, to the same bits."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from invcryo import checkpoint as module
from invcryo.backend import use
from invcryo.checkpoint import Checkpoint, digest
from invcryo.costs import LeastSquares
from invcryo.ctf import CTF
from invcryo.data import Poses
from invcryo.operators import ImageFilter, Projector
from invcryo.rotation import random_rotations
from invcryo.window import BandLimited, KaiserBessel

ROOT = Path(__file__).resolve().parent.parent
N, BOX = 60, 16


def problem(symmetry="C1", seed=3, window=None, **options):
    """A cost of 60 images in chunks of 7, and their half sets."""
    rng = np.random.default_rng(seed)
    poses = Poses(random_rotations(N, rng=rng), rng.uniform(-1.5, 1.5, (N, 2)))
    ctf = CTF(np.linspace(8e3, 2e4, N), np.linspace(8e3, 1.8e4, N), 0.3, 300, 2.7, 0.1)
    projector = Projector(poses, window or KaiserBessel(), BOX, **options)
    y = rng.standard_normal((N, BOX, BOX)).astype(np.float32)
    A = ImageFilter.from_ctf(ctf, BOX, 4.0) @ projector
    return LeastSquares(A, y, symmetry=symmetry, chunk=7, progress=False), rng.permutation(N) % 2


class Stopped(Exception):
    pass


class Stopping:
    """Images that can be read up to a place only; 0: all."""

    read_ahead = False  # so that all chunks before that place are added

    def __init__(self, array, last=0):
        self.array, self.shape, self.dtype, self.last = array, array.shape, array.dtype, last

    def __getitem__(self, index):
        if self.last and index.stop > self.last and index.start > 0 and index.stop - index.start > 1:
            raise Stopped(f"at {index.start}")
        return self.array[index]


def equal(a, b):
    """Both passes gave the same bits."""
    return all(
        (p.b == q.b).all() and (p.Q.kernel == q.Q.kernel).all() and p.c == q.c
        for p, q in zip(a.quadratics, b.quadratics, strict=True)
    )


@pytest.mark.parametrize("symmetry", ["C1", "C3", "D2"])
def test_a_pass_that_was_cut_short_goes_on(symmetry, tmp_path):
    cost, halves = problem(symmetry)
    images = cost.y
    unbroken = cost.normal_equations(halves)
    cost.y = Stopping(images, last=33)
    with pytest.raises(Stopped, match="at 28"):
        cost.normal_equations(halves, checkpoint=Checkpoint(tmp_path, every=0))
    cost.y = Stopping(images)
    resumed = cost.normal_equations(halves, checkpoint=Checkpoint(tmp_path, every=0))
    assert 0 < resumed.resumed_at <= 28 and resumed.resumed_at % 7 == 0 and unbroken.resumed_at == 0
    assert equal(resumed, unbroken)
    fresh = cost.normal_equations(halves, checkpoint=Checkpoint(tmp_path, fresh=True))
    assert fresh.resumed_at == 0 and equal(fresh, unbroken)


def test_the_bits_are_the_same_on_other_threads(tmp_path):
    """Images and chunks so large that the threads are used."""
    rng = np.random.default_rng(0)
    n, box = 240, 64
    A = Projector(Poses(random_rotations(n, rng=rng)), KaiserBessel(), box)
    images = rng.standard_normal((n, box, box)).astype(np.float32)
    with use(threads=2):
        unbroken = LeastSquares(A, images, chunk=100).normal_equations()
        with pytest.raises(Stopped):
            LeastSquares(A, Stopping(images, last=239), chunk=100).normal_equations(
                checkpoint=Checkpoint(tmp_path, every=0)
            )
    with use(threads=1):
        resumed = LeastSquares(A, images, chunk=100).normal_equations(checkpoint=Checkpoint(tmp_path))
    assert resumed.resumed_at >= 100 and equal(resumed, unbroken)


_JOB = """
    import os, signal, sys, json
    import numpy as np
    sys.path.insert(0, {tests!r})
    from test_checkpoint import problem, Checkpoint, use
    class Killing:
        def __init__(self, array):
            self.array, self.shape, self.dtype = array, array.shape, array.dtype
        def __getitem__(self, index):
            if {kill} and index.start == 42:
                os.kill(os.getpid(), signal.SIGKILL)
            return self.array[index]
    with use(threads=2):
        cost, halves = problem()
        cost.y = Killing(cost.y)
        done = cost.normal_equations(halves, checkpoint=Checkpoint({folder!r}, every=0))
    np.savez({out!r}, at=done.resumed_at, **{{k + str(i): v for i, q in enumerate(done.quadratics)
             for k, v in dict(b=q.b, kernel=q.Q.kernel, c=q.c).items()}})
"""


def test_a_killed_process_goes_on_to_the_same_bits(tmp_path):
    def job(folder, *, kill):
        text = textwrap.dedent(_JOB).format(
            tests=str(ROOT / "tests"), kill=kill, folder=str(tmp_path / folder), out=str(tmp_path / "out.npz")
        )
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True)

    assert job("killed", kill=True).returncode == -signal.SIGKILL
    assert not (tmp_path / "out.npz").exists() and (tmp_path / "killed" / "unfinished.npz").exists()
    done = job("killed", kill=False)
    assert done.returncode == 0, done.stderr
    resumed = dict(np.load(tmp_path / "out.npz"))
    assert job("unbroken", kill=False).returncode == 0
    unbroken = dict(np.load(tmp_path / "out.npz"))
    assert 0 < resumed.pop("at") < 42 and unbroken.pop("at") == 0
    assert set(resumed) == {"b0", "kernel0", "c0", "b1", "kernel1", "c1"}
    for name, array in resumed.items():
        np.testing.assert_array_equal(array, unbroken[name])


@pytest.mark.parametrize(
    "change, said",
    [
        ({"seed": 4}, "poses, CTF, window or scale, half sets, images"),
        ({"window": BandLimited()}, "poses, CTF, window or scale:"),
        ({"cutoff": 0.9}, "poses, CTF, window or scale:"),
        ({"symmetry": "D2"}, r"symmetry \(C1, now D2\):"),
        ("images", "in images:"),
        ("sign", "in images:"),
        ("halves", "in half sets:"),
        ("chunk", r"chunk size \(7, now 8\):"),
        ("version", r"version of invcryo \(.*, now 9.9\):"),
    ],
)
def test_another_job_is_refused(change, said, tmp_path, monkeypatch):
    cost, halves = problem()
    cost.normal_equations(halves, checkpoint=Checkpoint(tmp_path, every=0))
    before = (tmp_path / "unfinished.npz").read_bytes()
    other, _ = problem(**change) if isinstance(change, dict) else problem()
    if isinstance(change, dict) and "seed" in change:
        halves = _
    if change == "images":
        other.y[N // 2, 3, 3] += 1e-3
    elif change == "sign":
        other.y = -other.y
    elif change == "halves":
        halves = 1 - halves
    elif change == "chunk":
        other.chunk = 8
    elif change == "version":
        monkeypatch.setattr(module, "__version__", "9.9")
    with pytest.raises(ValueError, match=f"another job, .*{said}.* fresh=True"):
        other.normal_equations(halves, checkpoint=Checkpoint(tmp_path, every=0))
    assert (tmp_path / "unfinished.npz").read_bytes() == before


def test_a_damaged_file_is_said(tmp_path):
    cost, halves = problem()
    cost.normal_equations(halves, checkpoint=Checkpoint(tmp_path, every=0))
    path = tmp_path / "unfinished.npz"
    whole = path.read_bytes()
    for damaged in (b"", whole[:1000], whole[: len(whole) // 2] + b"x" + whole[len(whole) // 2 + 1 :]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"unfinished\.npz.* cannot be read .*fresh=True"):
            cost.normal_equations(halves, checkpoint=Checkpoint(tmp_path))


def test_a_write_that_fails_leaves_the_earlier_one(tmp_path, monkeypatch):
    keeper = Checkpoint(tmp_path, every=0)
    keeper.save({"n": 1}, {"a": np.arange(3)})

    def half(file, **arrays):
        file.write(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", half)
    with pytest.raises(OSError, match="no space left"):
        keeper.save({"n": 1}, {"a": np.arange(4)})
    monkeypatch.undo()
    np.testing.assert_array_equal(keeper.load({"n": 1})["a"], np.arange(3))
    assert [p.name for p in tmp_path.iterdir()] == ["unfinished.npz"]
    left = tmp_path / ".12345678.part.unfinished.npz"  # what a kill in the middle of a write leaves
    left.write_bytes(b"half")
    assert Checkpoint(tmp_path).load({"n": 1}) is not None and not left.exists()
    keeper.remove()
    assert Checkpoint(tmp_path).load({"n": 1}) is None and not list(tmp_path.iterdir())


def test_it_is_written_from_time_to_time(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    keeper = Checkpoint(tmp_path, every=10)
    keeper.load({})
    assert not keeper.due()
    clock[0] = 10.0
    assert keeper.due()

    def slow(file, **arrays):
        clock[0] += 2.0

    monkeypatch.setattr(np, "savez", slow)
    keeper.save({}, {})
    clock[0] += 39.0
    assert not keeper.due()  # a twentieth of the time at most
    clock[0] += 1.0
    assert keeper.due()


def test_the_file_needs_no_pickle_and_says_its_job(tmp_path):
    cost, halves = problem()
    cost.normal_equations(halves, checkpoint=Checkpoint(tmp_path, every=0))
    with np.load(tmp_path / "unfinished.npz", allow_pickle=False) as file:
        job = json.loads(file["job"].tobytes())
        assert job["number of particles"] == "60"
        assert all(np.isfinite(file[name]).all() for name in file.files)


def test_digests_tell_contents_apart():
    cost, _ = problem()
    A = cost.A
    first = digest(A)
    A.apply(np.zeros(A.ishape, np.float32))  # what is computed when first needed does not count
    assert digest(A) == first == digest(problem()[0].A)
    assert digest(problem(cutoff=0.5)[0].A) != first and digest(A.rows(slice(0, N - 1))) != first
    values = [
        1,
        1.0,
        True,
        "1",
        None,
        [1],
        [[1]],
        {"1": 1},
        np.ones(1),
        np.ones((1, 1)),
        np.ones(1, "f4"),
        [],
    ]
    assert len({digest(v) for v in values}) == len(values)
