"""The reconstruction step for RELION: its files, its own formula, and priors in its place."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from invcryo.backend import inner
from invcryo.ctf import CTF
from invcryo.data import ParticleStack, Poses
from invcryo.direct.external import (
    _corrected,
    _quadratic,
    matched_lambda,
    read_external,
    regularised_external,
    wiener_map,
)
from invcryo.grid import centred_coordinates
from invcryo.inversion import penalty_for
from invcryo.io import read_map, write_map, write_particles
from invcryo.metrics import fsc
from invcryo.operators import ImageFilter, Projector
from invcryo.rotation import random_rotations
from invcryo.simulate import gaussian_beads
from invcryo.window import BandLimited

BOX, SIGMA = 24, 3.0


def truth_map(box):
    rng = np.random.default_rng(3)
    steps = rng.standard_normal((60, 3))
    positions = np.cumsum(2.0 * steps / np.linalg.norm(steps, axis=1, keepdims=True), axis=0)
    positions -= positions.mean(0)
    positions *= 0.24 * box / np.abs(positions).max()
    return gaussian_beads(box, positions, 1.3, np.ones(60)).astype(np.float32)


def write_sums(folder, data, weight, tau2, correlation, *, box=BOX, padding=2.0, current=None, stem="x"):
    """Files as RELION 3.1.3 names and lays them out."""
    for name, values in (("data_real", data.real), ("data_imag", data.imag), ("weight", weight)):
        write_map(folder / f"{stem}_{name}.mrc", values.astype(np.float32), 1.0)
    star = folder / f"{stem}.star"
    rows = "\n".join(f"{i} {t:.6e} {c:.6f}" for i, (t, c) in enumerate(zip(tau2, correlation, strict=True)))
    star.write_text(f"""
# version 30001

data_external_reconstruct_general

_rlnExtReconsDataReal                  {folder}/{stem}_data_real.mrc
_rlnExtReconsDataImag                  {folder}/{stem}_data_imag.mrc
_rlnExtReconsWeight                    {folder}/{stem}_weight.mrc
_rlnExtReconsResult                    {folder}/{stem}.mrc
_rlnExtReconsResultStarfile            {folder}/{stem}_out.star
_rlnTau2FudgeFactor                        1.000000
_rlnPaddingFactor                          {padding:.6f}
_rlnReferenceDimensionality                       3
_rlnOriginalImageSize                            {box}
_rlnCurrentImageSize                             {box if current is None else current}


# version 30001

data_external_reconstruct_tau2

loop_
_rlnSpectralIndex #1
_rlnReferenceTau2 #2
_rlnGoldStandardFsc #3
{rows}

""")
    return star


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    """(star, truth): sums over 200 noisy views, made voxel by voxel as RELION shares them out."""
    folder = tmp_path_factory.mktemp("sums")
    truth = truth_map(BOX)
    n, side = 200, 2 * BOX
    rng = np.random.default_rng(4)
    poses = Poses(random_rotations(n, rng=5))
    u = rng.uniform(8000, 16000, n)
    filters = ImageFilter.from_ctf(CTF(u, u, 0.0, 300, 2.7, 0.1), BOX, 3.0)
    images = (filters @ Projector(poses, BandLimited(), BOX)).apply(truth)
    images += SIGMA * rng.standard_normal(images.shape, np.float32)
    centred = np.fft.ifftshift(images, axes=(1, 2)).astype(float)
    spectra, response = np.fft.rfft2(centred) / BOX**2, filters.values(slice(0, n))
    kx, ky = np.meshgrid(np.arange(BOX // 2 + 1), np.fft.fftfreq(BOX) * BOX)
    used = np.hypot(kx, ky) < BOX / 2
    variance = SIGMA**2 / (2 * BOX**2)  # of the real and of the imaginary part
    data, weight = np.zeros((side,) * 3, complex), np.zeros((side,) * 3)
    for M, spectrum, ctf in zip(poses.matrices, spectra, response, strict=True):
        q = 2 * (M[:2].T @ np.stack([kx[used], ky[used]]))[::-1]  # z, y, x on the padded grid
        for sign in (1, -1):
            value = spectrum[used] if sign == 1 else spectrum[used].conj()
            low = np.floor(sign * q).astype(int)
            part = sign * q - low
            own = np.where(kx[used] == 0, 0.5, 1.0)  # both halves of this column are there already
            for corner in np.ndindex(2, 2, 2):
                share = own.copy()
                for c, p in zip(corner, part, strict=True):
                    share *= p if c else 1 - p
                place = tuple(np.mod(k + c, side) for k, c in zip(low, corner, strict=True))
                np.add.at(data, place, share * ctf[used] * value / variance)
                np.add.at(weight, place, share * ctf[used] ** 2 / variance)
    data, weight = data[:, :, : BOX + 1], weight[:, :, : BOX + 1]
    spectrum = np.fft.rfftn(np.fft.ifftshift(truth)) / BOX**2
    k = np.fft.fftfreq(BOX) * BOX
    shell = np.rint(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + np.arange(BOX // 2 + 1) ** 2)).astype(
        int
    )
    tau2 = 0.5 * np.bincount(shell.ravel(), (abs(spectrum) ** 2).ravel()) / np.bincount(shell.ravel())
    star = write_sums(folder, data, weight, tau2[: BOX // 2 + 1], np.ones(BOX // 2 + 1))
    return star, truth


def quality(volume, truth):
    return fsc(volume, truth, pixel_size=3.0).correlation[1 : truth.shape[0] // 2].mean()


def test_the_wiener_map(sums):
    star, truth = sums
    read = read_external(star)
    assert read.box == BOX and read.padding == 2 and read.radius == BOX / 2
    found = wiener_map(read)
    assert found.dtype == np.float32 and found.shape == truth.shape
    inside = sum(c**2 for c in centred_coordinates(truth.shape)) < 8**2
    assert np.corrcoef(found[inside], truth[inside])[0, 1] > 0.93
    # in the units of the images, but for what the prior takes away
    assert 0.7 < (found * truth)[inside].sum() / (truth**2)[inside].sum() < 1.1


def test_the_likelihood_is_that_of_the_images(sums):
    """In the truth the quadratic form is close to its least value, and noise lowers it by half of what it should."""
    star, truth = sums
    read = read_external(star)
    q = _quadratic(read, read.weight)
    r = np.sqrt(sum(c**2 for c in centred_coordinates(truth.shape)))
    u = (truth * np.sinc(np.minimum(r / (2 * BOX), 0.5)) ** 2).astype(np.float32)

    def value(v):
        return 0.5 * inner(v, q.Q.apply(v)) - inner(v, q.b)

    line = [value(np.float32(f) * u) for f in (0.9, 1.0, 1.1)]
    assert line[1] < line[0] and line[1] < line[2]
    _, _, wanted, least, _ = matched_lambda(read, q, penalty_for("tv", truth.shape), progress=False)
    coefficients = 4 / 3 * np.pi * (BOX / 2) ** 3
    assert 0.4 * coefficients < line[1] - least < 1.3 * coefficients
    assert least < wanted <= least + 1.001 * coefficients


@pytest.mark.parametrize(
    ("reg", "loss"), [("tv", -0.005), ("wavelet", 0.12)]
)  # a box this small suits no wavelet
def test_regularised_maps(sums, reg, loss):
    star, truth = sums
    read = read_external(star)
    made = regularised_external(read, reg, progress=False)
    assert made.lam > 0 and made.gap <= 2e-3
    assert abs(made.trials[-1][1] - made.wanted) <= 0.15 * (made.wanted - made.least) or len(made.trials) == 8
    assert quality(made.map, truth) > quality(wiener_map(read), truth) - loss
    if reg == "tv":
        more = regularised_external(read, reg, lam=10 * made.lam, progress=False)
        penalty = penalty_for(reg, truth.shape)
        assert penalty(more.map) < 0.8 * penalty(made.map) and more.lam_rule == "given" and not more.trials
        plain = regularised_external(read, reg, lam=made.lam, positivity=True, progress=False)
        assert plain.map.min() >= 0


def test_a_grid_that_is_not_padded(tmp_path):
    """Data of a weight that is the same everywhere: the map itself comes back, whatever the padding."""
    truth = truth_map(BOX)
    for padding in (1, 2):
        side = padding * BOX
        wide = np.zeros((side,) * 3)
        k = (np.arange(BOX) - BOX // 2) % side
        r = np.sqrt(sum(c**2 for c in centred_coordinates(truth.shape)))
        wide[np.ix_(k, k, k)] = truth * np.sinc(np.minimum(r / side, 0.5)) ** 2
        weight = np.full((side, side, side // 2 + 1), 5.0)
        data = 5.0 * np.fft.rfftn(wide) / BOX**2
        star = write_sums(
            tmp_path, data, weight, np.full(BOX // 2 + 1, 1e9), np.ones(BOX // 2 + 1), padding=padding,
            current=2 * BOX, stem=f"p{padding}",
        )  # fmt: skip
        read = read_external(star)
        expected = _corrected(read, wide[np.ix_(k, k, k)].astype(np.float32))
        np.testing.assert_allclose(wiener_map(read), expected, atol=1e-5 * truth.max())
        made = regularised_external(read, "tv", lam=0.0, progress=False)
        # the gap at which the solver stops is a part of the energy, whose root is one of the map
        assert made.gap <= 2e-3 and np.linalg.norm(made.map - expected) < 2e-3**0.5 * np.linalg.norm(expected)


def test_the_command(sums, tmp_path, cli, monkeypatch):
    star, _ = sums
    for file in star.parent.glob("x*"):
        shutil.copy(file, tmp_path)
    moved = tmp_path / "x.star"
    moved.write_text(moved.read_text().replace(f"{star.parent}/", "Refine3D/job001/"))
    monkeypatch.chdir(tmp_path)
    code, _, problem = cli("external-reconstruct", moved)  # its folder for the result is not there
    assert code == 1 and "Refine3D" in problem
    code, out, _ = cli("external-reconstruct", moved, "-o", "w.mrc", "--reg", "wiener")
    assert code == 0 and "wiener" in out and "share it" not in out
    np.testing.assert_array_equal(read_map("w.mrc").data, wiener_map(read_external(moved)))
    code, out, _ = cli("external-reconstruct", star, "--json", "--lam-factor", "0.5")
    report = json.loads(out)
    assert "_unfil.mrc" in report["note"]
    assert code == 0 and report["regulariser"] == "tv" and Path(report["map"]) == star.parent / "x.mrc"
    record = json.loads(star.with_suffix(".json").read_text())
    assert record["lambda"] == pytest.approx(0.5 * record["lambda_search"][-1]["lambda"])
    page = star.with_suffix(".html").read_text(encoding="utf-8")
    assert f"{record['lambda']:.4g}" in page and "Choice of lambda" in page and "_unfil.mrc" in page
    assert page.count("<img") == 1 and f"{record['lambda_search'][0]['lambda']:.4g}" in page
    log = star.with_suffix(".log").read_text(encoding="utf-8")
    assert "external-reconstruct" in log and "exit code 0" in log and "lambda" in log
    assert cli("external-reconstruct", star, "--reg", "wiener", "--log", tmp_path / "other.log")[0] == 0
    assert (
        "exit code 0" in (tmp_path / "other.log").read_text() and star.with_suffix(".log").read_text() == log
    )
    assert "Choice of lambda" not in star.with_suffix(".html").read_text(encoding="utf-8")
    assert cli("external-reconstruct", moved, "--reg", "wiener", "--lam", "2")[0] == 2
    assert cli("external-reconstruct", moved, "--lam", "2", "--lam-factor", "2")[0] == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("_rlnPaddingFactor", "_rlnSomething", "lacks 'rlnPaddingFactor'"),
        ("data_external_reconstruct_tau2", "data_other", "external_reconstruct_tau2"),
        ("_rlnReferenceDimensionality                       3", "_rlnReferenceDimensionality 2", "only 3"),
        (
            "_rlnPaddingFactor                          2.0",
            "_rlnPaddingFactor 3.0",
            "does not make a grid of 48",
        ),
        ("_rlnTau2FudgeFactor                        1.0", "_rlnTau2FudgeFactor -1.0", "tau2_fudge -1"),
        ("_rlnCurrentImageSize                             24", "_rlnCurrentImageSize many", "not a number"),
        ("x_weight.mrc", "nowhere.mrc", "nowhere.mrc"),
    ],
)
def test_broken_files(sums, tmp_path, old, new, message):
    star, _ = sums
    text = star.read_text()
    assert old in text
    (tmp_path / "broken.star").write_text(text.replace(old, new))
    with pytest.raises((ValueError, OSError), match=message):
        read_external(tmp_path / "broken.star")


def test_broken_sums(tmp_path):
    shape = (2 * BOX, 2 * BOX, BOX + 1)
    data, weight, shells = np.zeros(shape, complex), np.ones(shape), np.ones(BOX // 2 + 1)
    for bad, message in (
        (write_sums(tmp_path, data, -weight, shells, shells, stem="a"), "negative weights"),
        (write_sums(tmp_path, data, 0 * weight, shells, shells, stem="b"), "all weights are zero"),
        (write_sums(tmp_path, data[:-1], weight[:-1], shells, shells, stem="c"), "half spectra of one cube"),
    ):
        with pytest.raises(ValueError, match=message):
            read_external(bad)


# --- with RELION itself -------------------------------------------------------------------------------------

PARTICLES, SIDE = 250, 32


@pytest.fixture(scope="module")
def project(relion, tmp_path_factory):
    """A folder with 250 noisy particles of 32 pixels, with poses, and a start map."""
    if shutil.which("relion_external_reconstruct") is None:
        pytest.skip("relion_external_reconstruct is not on the PATH")
    folder = tmp_path_factory.mktemp("project")
    truth = truth_map(SIDE)
    rng = np.random.default_rng(6)
    poses = Poses(random_rotations(PARTICLES, rng=7), rng.uniform(-2, 2, (PARTICLES, 2)))
    u = rng.uniform(8000, 20000, PARTICLES)
    ctf = CTF(u, u, 0.0, 300, 2.7, 0.1)
    images = (ImageFilter.from_ctf(ctf, SIDE, 4.0) @ Projector(poses, BandLimited(), SIDE)).apply(truth)
    noise = rng.standard_normal(images.shape, np.float32)
    images = images / (images.var() / 0.2) ** 0.5 + noise
    stack = ParticleStack(images, 4.0, poses, ctf, np.arange(PARTICLES) % 2 + 1)
    write_particles(folder / "particles.star", stack, stack_path=folder / "particles.mrcs")
    write_map(folder / "start.mrc", truth, 4.0)
    return folder


def refine(folder, name, command):
    """One iteration of relion_refine at the poses of the file."""
    (folder / name).mkdir()
    words = ["relion_refine", "--i", "particles.star", "--o", f"{name}/run", "--ref", "start.mrc", "--ini_high", "9",
             "--ctf", "--zero_mask", "--particle_diameter", "110", "--skip_align", "--norm", "--scale", "--pad", "2",
             "--iter", "1", "--flatten_solvent", "--dont_check_norm", "--external_reconstruct"]  # fmt: skip
    root = str(Path(__file__).resolve().parent.parent)
    search = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    variables = os.environ | {"RELION_EXTERNAL_RECONSTRUCT_EXECUTABLE": command, "PYTHONPATH": search}
    done = subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return read_map(folder / name / "run_it001_class001.mrc").data


OURS = f"{sys.executable} -m invcryo external-reconstruct"


@pytest.mark.relion
@pytest.mark.parametrize(
    ("weights", "tau2", "tolerance"),
    [
        ("alike", 1e9, 3e-4),
        ("alike", 0.1, 3e-4),
        ("1/r", 1e9, 3e-4),
        ("1/r", 0.1, 3e-4),
        ("random", 1e9, 1e-3),
    ],
)
def test_the_division_is_that_of_relion_where_weights_are_smooth(relion, tmp_path, weights, tau2, tolerance):
    """Sums of a known map, given to its program and to ours; where they are rough, it also evens the weights out."""
    if shutil.which("relion_external_reconstruct") is None:
        pytest.skip("relion_external_reconstruct is not on the PATH")
    side, truth = 2 * BOX, truth_map(BOX)
    k = np.fft.fftfreq(side) * side
    r = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + np.arange(side // 2 + 1) ** 2)
    rng = np.random.default_rng(0)
    weight = {
        "alike": np.full(r.shape, 5.0),
        "1/r": 100 / np.maximum(r, 1),
        "random": rng.uniform(0.5, 1.5, r.shape),
    }
    wide = np.zeros((side,) * 3)
    place = (np.arange(BOX) - BOX // 2) % side
    distance = np.sqrt(sum(c**2 for c in centred_coordinates(truth.shape)))
    wide[np.ix_(place, place, place)] = truth * np.sinc(distance / side) ** 2
    data = weight[weights] * np.fft.rfftn(wide) / BOX**2
    shells = np.ones(BOX // 2 + 1)
    star = write_sums(tmp_path, data, weight[weights], tau2 * shells, shells)
    done = subprocess.run(
        ["relion_external_reconstruct", star], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    theirs, ours = read_map(tmp_path / "x.mrc", pixel_size=1.0).data, wiener_map(read_external(star))
    inside = distance < BOX / 2 - 6
    assert np.linalg.norm((ours - theirs)[inside]) < tolerance * np.linalg.norm(theirs[inside])


@pytest.mark.relion
def test_a_refinement_with_our_step(project):
    """The environment variable takes the command with its options; RELION reads back what we write.

    Compared with RELION's own external program: its internal step leaves the lowest shells without prior.
    """
    truth = read_map(project / "start.mrc").data
    theirs = refine(project, "theirs", "relion_external_reconstruct")
    twin = refine(project, "twin", f"{OURS} --reg wiener")
    tv = refine(project, "tv", f"{OURS} --reg tv")
    inside = sum(c**2 for c in centred_coordinates(truth.shape)) < 12**2

    def distance(a, b):
        return np.linalg.norm((a - b)[inside]) / np.linalg.norm(b[inside])

    star = project / "theirs" / "run_it001_class001_external_reconstruct.star"
    step = read_map(star.with_suffix(".mrc"), pixel_size=4.0).data
    # few views pass near a voxel of so small a set, and RELION weighs these in its own way: 2 % or less on larger ones
    assert distance(wiener_map(read_external(star)), step) < 0.1
    assert distance(twin, theirs) < 0.1
    record = json.loads((project / "tv" / "run_it001_class001_external_reconstruct.json").read_text())
    assert record["lambda"] > 0 and record["gap"] <= 2e-3
    assert quality(tv, truth) > quality(theirs, truth) - 0.02
