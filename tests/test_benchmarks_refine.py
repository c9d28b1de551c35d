"""The benchmark of refinement: what it gives to both programs, and how it scores what they return."""

import argparse
import dataclasses
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from invcryo.data import Poses
from invcryo.io import read_map, read_particles, write_map, write_particles
from invcryo.metrics.poses import pose_errors

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("refine")
    sys.path.remove(str(FOLDER))
    for name in ("refine", "processes", "joint_refinement", "betagal_refinement"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def made(bench, tmp_path_factory):
    folder = tmp_path_factory.mktemp("refine")
    rng = np.random.default_rng(0)
    grid = np.arange(28) - 14
    z, y, x = (np.exp(-((grid[None] - c[:, None]) ** 2) / 3) for c in rng.normal(0, 3, (3, 40)))
    write_map(folder / "map.mrc", np.einsum("az,ay,ax->zyx", z, y, x).astype(np.float32), 2.0)
    options = bench._parser().parse_args(
        ["--map", str(folder / "map.mrc"), "--size", "32", "--views", "40", "--lowpass", "20", "--shift", "1"]
    )
    return folder, options, bench.make_problem(folder, options)


def test_both_start_alike(bench, made):
    folder, _, problem = made
    true, start, relion = (read_particles(folder / f"{n}.star") for n in ("particles", "start", "relion"))
    assert len(true) == 40 and problem["pixel_size"] == pytest.approx(2.0)
    np.testing.assert_allclose(start.poses.matrices, relion.poses.matrices, atol=1e-6)
    assert start.ctf is None and relion.ctf is not None  # a microscope, without which RELION stops
    assert not start.poses.shifts.any() and true.poses.shifts.any()
    off = np.stack(start.poses.euler_deg()) - np.stack(true.poses.euler_deg())
    tilt = off[1][np.abs(off[1]) < 90]
    assert np.abs(tilt).max() <= np.rad2deg(0.7) + 1e-3 and np.abs(tilt).max() > 20
    # the first map holds nothing beyond its resolution
    first = np.abs(np.fft.fftn(read_map(folder / "first.mrc").data))
    f = np.fft.fftfreq(32)
    beyond = np.sqrt(f[:, None, None] ** 2 + f[None, :, None] ** 2 + f**2) > 2.0 / 20 + 1e-9
    assert first[beyond].max() < 1e-4 * first.max()


def test_scores_are_free_of_the_gauge(bench, made):
    """True poses and the truth, turned and moved together and in another order, score as perfect."""
    folder, *_ = made
    stack = read_particles(folder / "particles.star")
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    small = Rotation.from_rotvec(np.deg2rad(0.5) * np.random.default_rng(1).standard_normal((40, 3)))
    matrices = small.as_matrix() @ stack.poses.matrices @ turn.T
    order = np.random.default_rng(2).permutation(40)
    other = dataclasses.replace(stack, poses=Poses(matrices, stack.poses.shifts))[order]
    write_particles(folder / "other.star", other)
    truth = read_map(folder / "truth.mrc")
    # map(turn r) = reference(r), turn (x, y) = (-y, x): what was at (x, y) is at (-y, x); no voxel is interpolated
    x, y = np.meshgrid(np.arange(32) - 16, np.arange(32) - 16)
    moved = truth.data[:, (-x + 16) % 32, (y + 16) % 32]
    write_map(folder / "moved.mrc", np.ascontiguousarray(moved), truth.pixel_size)
    row = bench.score(folder / "moved.mrc", folder / "other.star", folder, "C1")
    assert row["shell"] == 16 and row["hand"] == 1
    assert row["angle_p50_deg"] == pytest.approx(0.77, abs=0.2) and row["within_5_deg"] == 1
    assert row["shift_p50_px"] < 0.05


def test_boxed(bench):
    rng = np.random.default_rng(0)
    small, pixel = bench.boxed(rng.standard_normal((6, 5, 8)).astype(np.float32), 1.5, 12)
    assert small.shape == (12, 12, 12) and pixel == 1.5
    wave = np.cos(2 * np.pi * 3 * (np.arange(24) - 12) / 24)[None, None, :] * np.ones((24, 24, 1))
    binned, pixel = bench.boxed(wave.astype(np.float32), 1.5, 12)
    assert pixel == 3.0
    np.testing.assert_allclose(binned[0, 0], np.cos(2 * np.pi * 3 * (np.arange(12) - 6) / 12), atol=1e-5)


def test_commands_and_table(bench, made):
    folder, options, _ = made
    ours = bench.command("invcryo", folder, folder / "a", options)
    theirs = bench.command("relion", folder, folder / "b", options)
    assert ours[1:4] == ["-m", "invcryo", "refine"] and "20.00" in ours
    assert "--auto_refine" in theirs and "--ctf" not in theirs
    assert theirs[theirs.index("--ini_high") + 1] == "20.00"
    row = {
        "seconds": 10.0, "peak_mb": 200.0, "resolution_A": 4.0, "shell": 16, "angle_p50_deg": 0.4,
        "within_1_deg": 0.9, "within_5_deg": 1.0, "shift_p50_px": 0.1,
    }  # fmt: skip
    record = {
        "options": vars(argparse.Namespace(**{**vars(options), "size": 32})),
        "load_before": [0.1, 0, 0],
        "engines": [{"engine": "invcryo", **row}, {"engine": "relion", **row, "seconds": 250.0}],
    }
    text = bench.table(json.loads(json.dumps(record)))
    assert "relion / invcryo: 25.0 in time" in text and "4.00 A" in text
    record["engines"][1] = {"engine": "relion", "missing": "not on the PATH"}
    assert "missing: not on the PATH" in bench.table(record)


def test_resampled(bench):
    """A smooth map on finer pixels: the same function of the distance from the centre, and no part of it lost."""
    x = np.arange(30) - 15

    def ball(pixel, n):
        square = ((np.arange(n) - n // 2) * pixel) ** 2
        return np.exp(-(square[:, None, None] + square[:, None] + square) / 50)

    made, pixel = bench.resampled(ball(3.0, len(x)).astype(np.float32), 3.0, 2.0, 32)
    assert pixel == 2.0 and made.shape == (32, 32, 32)
    np.testing.assert_allclose(made, ball(2.0, 32), atol=2e-3)
    with pytest.raises(SystemExit, match="lose"):
        bench.resampled(ball(3.0, 30), 3.0, 4.0, 32)
    # a normal of 3.5 angstrom from -7 to 5: 0.90 of it along each axis
    with pytest.raises(SystemExit, match=r"loses 2[67] %"):
        bench.resampled(ball(3.0, 30), 3.0, 2.0, 6)


@pytest.mark.relion
def test_postprocessing(bench, made, relion):
    """RELION's programs take half maps of the names that its refinement gives them, and the result is scored."""
    folder, options, _ = made
    out = folder / "relion"
    out.mkdir()
    truth = read_map(folder / "truth.mrc")
    noise = (
        0.05 * truth.data.max() * np.random.default_rng(0).standard_normal((2, 32, 32, 32)).astype(np.float32)
    )
    write_map(out / "run_class001.mrc", truth.data, truth.pixel_size)
    for i in (1, 2):
        half = truth.data + noise[i - 1]
        write_map(out / f"run_half{i}_class001_unfil.mrc", half, truth.pixel_size)
    write_particles(out / "run_data.star", read_particles(folder / "particles.star"))
    row = bench.postprocessed(folder, options)
    assert "missing" not in row, row
    assert row["angle_p50_deg"] == pytest.approx(0, abs=1e-3) and row["shell"] > 8  # finer than the first map


def test_published_descent_beside_ours(bench):
    """The comparison at a small size: same cost, same start; the published one takes far more evaluations."""
    module = importlib.import_module("joint_refinement")
    rng = np.random.default_rng(0)
    grid = np.arange(32) - 16
    z, y, x = (np.exp(-((grid[None] - c[:, None]) ** 2) / 3) for c in rng.normal(0, 3, (3, 40)))
    volume = np.einsum("az,ay,ax->zyx", z, y, x).astype(np.float32)
    case = module.Case("", 32, 2.0, 6.0, 1.0, 0.05)
    module.BANDS = (5, 9)
    rows = module.descent(volume, case, 0, longest=60, views=40)
    assert [r["band"] for r in rows] == [5, 9] and rows[1]["start"] == rows[0]["newton"]
    for r in rows:
        assert r["newton"][0] < r["start"][0]
        near = all(a <= 1.1 * b for a, b in zip(r["descent"], r["newton"], strict=True))
        assert near or r["descent_steps"] == 60
        assert r["descent_evaluations"] > r["newton_evaluations"] > 1


@pytest.mark.data
def test_real_particles_get_better(bench, reference_data):
    """Beta-galactosidase, small: one round in the continuum from the estimated poses, against their model."""
    module = importlib.import_module("betagal_refinement")
    problem = module.Problem(reference_data / "spa-betagal-10061-a", 48)
    row = module.run(problem, "model")
    assert row["rounds"] == 1 and 0 < row["median_turn"] < 3
    assert all(a > b for a, b in zip(row["mean_after"], row["mean_before"], strict=True))
    # twins of the particles: matched poses are as near to the truth as the noise of the images allows
    true, start = problem.simulated(0)
    errors = pose_errors(start.poses, true.poses, "D2")
    assert 0.3 < np.median(errors.angle) < 3
