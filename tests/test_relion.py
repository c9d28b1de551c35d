"""Side by side with RELION, on stacks that it projected itself: 64 pixels, 500 views, astigmatic CTF, shifts."""

import json
import subprocess

import numpy as np
import pytest

from invcryo.cli import main
from invcryo.ctf import CTF
from invcryo.data import ParticleStack, Poses
from invcryo.io import read_map, read_particles, read_star, write_map, write_particles, write_stack
from invcryo.metrics import fsc
from invcryo.reconstruction import reconstruct
from invcryo.rotation import random_rotations
from invcryo.simulate import gaussian_beads

pytestmark = pytest.mark.relion

BOX, VIEWS, PIXEL_SIZE = 64, 500, 2.0
SHELLS = slice(1, int(0.8 * BOX / 2) + 1)


def call(folder, *command):
    done = subprocess.run([str(c) for c in command], cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.fixture(scope="module")
def clean(relion, tmp_path_factory):
    """A folder with truth.mrc, and clean.star and clean.mrcs as relion_project makes them."""
    folder = tmp_path_factory.mktemp("relion")
    rng = np.random.default_rng(7)
    steps = rng.standard_normal((600, 3))
    positions = np.cumsum(2.5 * steps / np.linalg.norm(steps, axis=1, keepdims=True), axis=0)
    positions *= 0.3 * BOX / np.abs(positions - positions.mean(0)).max()
    truth = gaussian_beads(BOX, positions - positions.mean(0), 1.0, np.ones(600))
    write_map(folder / "truth.mrc", truth, PIXEL_SIZE)
    u = rng.uniform(8000, 20000, VIEWS)
    ctf = CTF(u, u - rng.uniform(0, 1500, VIEWS), rng.uniform(0, np.pi, VIEWS), 300, 2.7, 0.1)
    poses = Poses(random_rotations(VIEWS, rng=8), rng.uniform(-5, 5, (VIEWS, 2)))
    blank = np.zeros((VIEWS, BOX, BOX), np.float32)
    write_particles(
        folder / "angles.star", ParticleStack(blank, PIXEL_SIZE, poses, ctf, np.arange(VIEWS) % 2 + 1),
        stack_path=folder / "blank.mrcs",
    )  # fmt: skip
    call(folder, "relion_project", "--i", "truth.mrc", "--ang", "angles.star", "--o", "clean", "--ctf",
           "--angpix", PIXEL_SIZE, "--pad", 2)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def noisy(clean):
    """The same images with white noise at a signal-to-noise ratio of 0.05."""
    stack = read_particles(clean / "clean.star", data_dir=clean)
    images = stack.images[:]
    sigma = (images.var() / 0.05) ** 0.5
    images += sigma * np.random.default_rng(9).standard_normal(images.shape, dtype=np.float32)
    write_stack(clean / "noisy.mrcs", images, PIXEL_SIZE)
    (clean / "noisy.star").write_text((clean / "clean.star").read_text().replace("clean.mrcs", "noisy.mrcs"))
    return clean


def curve(folder, volume):
    truth = read_map(folder / "truth.mrc").data
    return fsc(np.asarray(volume, np.float32), truth, pixel_size=PIXEL_SIZE).correlation[SHELLS]


def relion_curve(folder, name):
    call(folder, "relion_reconstruct", "--i", f"{name}.star", "--o", f"{name}_relion.mrc", "--ctf",
           "--angpix", PIXEL_SIZE, "--j", 2)  # fmt: skip
    return curve(folder, read_map(folder / f"{name}_relion.mrc").data)


def test_without_noise_no_shell_is_below_relion(clean):
    ours = reconstruct(read_particles(clean / "clean.star", data_dir=clean), reg="none")
    assert ours.stopped_by.startswith("residual_below") and ours.gram_error < 1e-3
    difference = curve(clean, ours.map) - relion_curve(clean, "clean")
    assert difference.min() > -0.01, f"shell {difference.argmin() + 1} is lower by {-difference.min():.3f}"


def test_with_noise_no_shell_is_below_relion_and_tv_is_better_than_both(noisy, tmp_path):
    arguments = [
        "reconstruct",
        str(noisy / "noisy.star"),
        "-o",
        str(tmp_path / "run"),
        "--data-dir",
        str(noisy),
    ]
    assert main([*arguments, "--half-maps", "--quiet"]) == 0
    theirs = relion_curve(noisy, "noisy")
    plain = curve(noisy, read_map(tmp_path / "run" / "map_noreg.mrc").data)
    tv = curve(noisy, read_map(tmp_path / "run" / "map.mrc").data)
    assert (plain - theirs).min() > -0.01
    assert (tv - theirs).min() > -0.01 and (tv - plain).min() > -0.01
    assert tv.mean() > plain.mean() + 0.05 and tv.mean() > theirs.mean() + 0.05
    assert json.loads((tmp_path / "run" / "run.json").read_text())

    # RELION's post-processing takes our unregularised half maps. It may fail later, where it draws its plot.
    halves = [tmp_path / "run" / f"half{i}_noreg.mrc" for i in (1, 2)]
    subprocess.run(
        ["relion_postprocess", "--i", str(halves[0]), "--i2", str(halves[1]), "--o", str(tmp_path / "post"),
         "--angpix", str(PIXEL_SIZE)], capture_output=True, timeout=300,
    )  # fmt: skip
    table = read_star(tmp_path / "post.star")
    assert 2 * PIXEL_SIZE <= table["general"].numbers("rlnFinalResolution")[0] < 20
