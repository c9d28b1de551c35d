"""Joint refinement of poses and map: what it reaches from rough poses, and what it says of bad input."""

import contextlib
import csv
import dataclasses
import io
import json
import subprocess

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import invcryo.refinement
from invcryo.checkpoint import Checkpoint
from invcryo.cli import main
from invcryo.data import Poses
from invcryo.grid import centred_coordinates
from invcryo.io import read_map, read_particles, read_star, write_map, write_particles
from invcryo.metrics import fsc
from invcryo.metrics.poses import PoseAlignment, pose_errors
from invcryo.operators import ImageFilter, Projector
from invcryo.operators.nufft import GridReader
from invcryo.poses import STATUS, PoseFit
from invcryo.reconstruction import reconstruct
from invcryo.refinement import refine
from invcryo.rotation import geodesic_distance, random_rotations
from invcryo.simulate import simulate_particles
from invcryo.window import KaiserBessel

N, PIXEL = 32, 3.0
LOWPASS = 26.0  # angstrom: shell 3.7


def molecule(n=N, seed=3):
    """Blobs of several widths along a walk, without symmetry."""
    rng = np.random.default_rng(seed)
    out, centre = np.zeros((n, n, n), np.float32), np.zeros(3)
    for _ in range(40):
        step = rng.standard_normal(3)
        centre = centre + 2.2 * step / np.linalg.norm(step)
        centre *= min(1.0, 0.26 * n / max(np.linalg.norm(centre), 1e-9))
        square = sum((x - m) ** 2 for x, m in zip(centred_coordinates(out.shape), centre, strict=True))
        out += rng.uniform(0.5, 1.0) * np.exp(-0.5 * square / 0.9**2)
    return out


def problem(n=200, seed=0, snr=2.0, error=0.5, shift=1.5, ctf=None):
    """A stack with rough poses, the true ones, and the true map in the units of the images."""
    stack = simulate_particles(
        molecule(), n, PIXEL, snr=snr, shift_px=shift, defocus_angstrom=ctf, rng=seed, voltage_kv=300.0
    )
    truth = stack.poses
    off = np.rad2deg(np.random.default_rng(seed + 99).uniform(-error, error, (3, n)))
    start = Poses.from_euler_deg(*(np.stack(truth.euler_deg()) + off))
    images = np.asarray(stack.images[:])
    return dataclasses.replace(stack, images=images, poses=start), truth, stack.images.truth


def filters_of(stack):
    return None if stack.ctf is None else ImageFilter.from_ctf(stack.ctf, (N, N), PIXEL)


def expected(stack, truth, volume):
    """Median and 95 % quantile of the angles (degrees), and median of the shifts, of estimates as good as can be.

    Cramer-Rao: normal errors whose covariance is the inverse of J^T W J, at the true poses and with the true map.
    """
    fit = PoseFit(KaiserBessel().analyze(volume), stack.images, filters=filters_of(stack), weights=[1.0])
    root = np.linalg.cholesky(np.linalg.inv(fit.derivatives(truth).hessian))
    drawn = np.einsum("kij,skj->ski", root, np.random.default_rng(0).standard_normal((200, len(truth), 5)))
    angle = np.rad2deg(np.linalg.norm(drawn[..., :3], axis=-1))
    return np.median(angle), np.quantile(angle, 0.95), np.median(np.linalg.norm(drawn[..., 3:], axis=-1))


#: A shell counts as 2 FSC / (1 + FSC) of what it would with a map without noise, 1/2 or more where the FSC is over 1/3:
#: no more than half of the information is lost, and errors grow by sqrt 2 at most. A fifth more for a median of 60
#: particles or more, three of its standard deviations of 1.25 x 0.42 / sqrt(60) each.
ROOM = 1.2 * 2**0.5
#: The 5 degrees that the proof of concept asks for at 84 voxels, at the same arc of the edge of the object.
FAR = 5 * 84 / N

OPTIONS = {"init_lowpass": LOWPASS, "max_shift": 3.0, "progress": False}


def resolved(volume, truth, threshold=0.5):
    return N * PIXEL / fsc(volume, truth, pixel_size=PIXEL).resolution(threshold)


@pytest.fixture(scope="module")
def done():
    stack, truth, volume = problem()
    return stack, truth, volume, refine(stack, volume, **OPTIONS)


def test_rough_poses_become_right(done):
    """The proof of concept of the thesis, small: as good a map as from the true poses."""
    stack, truth, volume, result = done
    errors = pose_errors(result.poses, truth)
    assert np.median(pose_errors(stack.poses, truth).angle) > 15
    median, most, shift = expected(stack, truth, volume)
    assert np.median(errors.angle) < ROOM * median
    assert np.quantile(errors.angle, 0.95) < ROOM * most
    assert np.median(errors.shift_length) < ROOM * shift
    assert (errors.angle > FAR).mean() <= 0.005
    oracle = refine(dataclasses.replace(stack, poses=truth), volume, max_rounds=0, **OPTIONS)
    assert resolved(errors.alignment.volume(result.map), volume) >= resolved(oracle.map, volume) - 1
    assert result.stopped_by == "fsc" and result.status_counts["converged"] > 0.9 * len(stack)
    assert not result.flagged.any() and result.half1 is None
    bands = [h["band"] for h in result.history]
    assert bands == sorted(bands) and bands[0] == 5 and bands[-1] > 10
    assert any(h["searched"] > 0 for h in result.history)
    assert any("too good" in note for note in result.warnings)
    turns = np.rad2deg(geodesic_distance(stack.poses.matrices, result.poses.matrices))
    assert np.allclose(result.angle_change, turns)


def test_the_first_map_is_for_poses_alone(done):
    """Where these are not refined, its units and what it shows leave no trace."""
    stack, _, volume, _ = done
    one, other = (refine(stack[:60], v, max_rounds=0, **OPTIONS).map for v in (volume, 50 * volume[::-1]))
    assert np.array_equal(one, other)


def test_half_sets_stay_apart():
    """Each with its own map: what happens to one half changes nothing in the other."""
    stack, truth, volume = problem(n=120, ctf=(9000.0, 14000.0))
    result = refine(stack, volume, half_maps=True, max_rounds=6, **OPTIONS)
    first, second = (np.flatnonzero(stack.half == h) for h in (1, 2))
    median, _, _ = expected(stack, truth, volume)
    for rows in (first, second):
        assert np.median(pose_errors(result.poses[rows], truth[rows]).angle) < ROOM * median
    assert np.median(pose_errors(result.poses, truth).angle) < ROOM * median  # in one frame
    true = dataclasses.replace(stack, poses=truth)
    oracle = refine(true, volume, half_maps=True, max_rounds=0, **OPTIONS)
    shells = [N * PIXEL / r.fsc.resolution(0.143) for r in (result, oracle)]
    assert shells[0] >= shells[1] - 1 and result.half2_noreg.shape == (N, N, N)
    assert not any("too good" in note for note in result.warnings)
    images = stack.images.copy()
    images[second] = images[second][::-1]
    other = refine(dataclasses.replace(stack, images=images), volume, half_maps=True, max_rounds=1, **OPTIONS)
    same = refine(stack, volume, half_maps=True, max_rounds=1, **OPTIONS)
    assert np.array_equal(other.poses.matrices[first], same.poses.matrices[first])
    assert np.array_equal(other.half1, same.half1) and not np.array_equal(other.half2, same.half2)


def test_half_maps_share_a_frame():
    """The second half is turned into the frame of the first: a rotation and an origin, nothing else."""
    stack, _, volume = problem(n=20)
    priors = (np.inf, np.inf)
    job = invcryo.refinement._Job(
        stack,
        volume,
        None,
        LOWPASS,
        "local",
        True,
        "C1",
        "ball",
        "tv",
        0.3,
        True,
        3.0,
        priors,
        False,
        False,
        None,
        0,
        False,
    )
    turn, origin = Rotation.from_rotvec([0.05, -0.03, 0.04]).as_matrix(), np.array([0.4, -0.3, 0.2])
    moved = PoseAlignment(turn, 1, origin).volume(
        volume
    )  # its value at r is that of the volume at turn r + origin
    job.maps = [job.window.analyze(v.astype(np.float32)) for v in (volume, moved)]
    first, second = job.members
    before, shifts = job.matrices.copy(), job.shifts.copy()
    job._register([GridReader(c) for c in job.maps], 0.6)
    assert np.array_equal(job.matrices[first], before[first])
    assert np.allclose(job.matrices[second], before[second] @ turn.T, atol=1e-3)
    expected = shifts[second] - job.matrices[second, :2] @ origin
    assert np.allclose(job.shifts[second], expected, atol=0.01)


def test_from_no_poses_at_all():
    stack, truth, volume = problem(n=70, snr=4.0)
    lost = dataclasses.replace(stack, poses=None)
    with pytest.raises(ValueError, match="no poses"):
        refine(lost, volume, **OPTIONS)
    result = refine(
        lost, volume, search="global", init_lowpass=16.0, max_shift=3.0, max_rounds=5, progress=False
    )
    errors = pose_errors(result.poses, truth)
    assert np.median(errors.angle) < ROOM * expected(stack, truth, volume)[0]
    assert (errors.angle > FAR).sum() <= 1
    assert result.history[0]["searched"] >= 1.0


def test_interrupted_and_resumed_is_the_same(tmp_path, monkeypatch):
    stack, _, volume = problem(n=40)
    whole = refine(stack, volume, max_rounds=4, **OPTIONS)
    rounds, plain = [], invcryo.refinement._Job.round

    def stops_in_the_third(self):
        rounds.append(len(self.history))
        if len(rounds) == 3:
            raise KeyboardInterrupt
        plain(self)

    monkeypatch.setattr(invcryo.refinement._Job, "round", stops_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        refine(stack, volume, max_rounds=4, checkpoint=tmp_path, **OPTIONS)
    assert Checkpoint(tmp_path).path.exists()
    with pytest.raises(ValueError, match="another job"):
        refine(stack, volume, max_rounds=4, checkpoint=tmp_path, symmetry="C2", **OPTIONS)
    resumed = refine(stack, volume, max_rounds=4, checkpoint=tmp_path, **OPTIONS)
    assert rounds == [0, 1, 2, 2, 3]
    assert np.array_equal(resumed.poses.matrices, whole.poses.matrices)
    assert np.array_equal(resumed.map, whole.map) and np.array_equal(resumed.status, whole.status)
    assert not Checkpoint(tmp_path).path.exists()
    # without a place to keep the state, what there is is returned
    rounds.clear()
    cut = refine(stack, volume, max_rounds=4, **OPTIONS)
    assert cut.stopped_by == "interrupt" and len(cut.history) == 2


def test_noise_and_dark_particles_are_flagged_and_not_forced(done):
    """What a particle scores here, |H c| = 45 standard deviations, is far from all thresholds."""
    stack, truth, volume, _ = done
    rows, images = np.arange(100), stack.images[:100].copy()
    junk, dark = rows % 12 == 0, rows % 19 == 5
    images[junk] = np.random.default_rng(1).standard_normal((junk.sum(), N, N))
    images[dark] *= -1
    result = refine(dataclasses.replace(stack[rows], images=images), volume, exclude_flagged=True, **OPTIONS)
    assert np.array_equal(result.flagged, junk | dark) and result.no_signal[junk].all()
    assert not (result.no_signal & result.outlier).any()
    assert any("left out of the maps" in note for note in result.warnings)
    # the others are as good as alone, and the map is made of them
    sound = rows[~junk & ~dark]
    errors = pose_errors(result.poses[sound], truth[sound])
    assert np.median(errors.angle) < ROOM * expected(stack, truth, volume)[0]
    mine = refine(result.stack[sound], volume, max_rounds=0, **OPTIONS)
    curves = [
        fsc(errors.alignment.volume(m), volume, pixel_size=PIXEL).correlation for m in (result.map, mine.map)
    ]
    # the solver starts from other maps
    assert np.abs(curves[0] - curves[1])[1:13].max() < 0.01


def test_particle_scales():
    """Known contrasts come back as well as one image tells its own, and the map is the better for them."""
    stack, truth, volume = problem(n=100, ctf=(9000.0, 14000.0))
    scale = np.random.default_rng(3).uniform(0.5, 1.5, len(stack)).astype(np.float32)
    noise = np.random.default_rng(4).standard_normal(stack.images.shape).astype(np.float32)
    clean = filters_of(stack)(Projector(truth, KaiserBessel(), N)(KaiserBessel().analyze(volume)))
    # poses are known: what is tested is the scale
    varied = dataclasses.replace(stack, images=scale[:, None, None] * clean + noise, poses=truth)
    result = refine(varied, volume, particle_scale=True, max_rounds=3, **OPTIONS)
    assert result.particle_scale.mean() == pytest.approx(1, abs=1e-6) and not result.flagged.any()
    assert np.array_equal(result.stack.ctf.scale, result.particle_scale)
    error = result.particle_scale * scale.mean() - scale
    # in units of what an image tells of its own; a mean of 100 squares varies by 14 %, three times that is in the ROOM
    assert np.sqrt(np.mean(error**2 * (clean**2).sum(axis=(1, 2)))) < ROOM
    plain = refine(varied, volume, max_rounds=3, **OPTIONS)
    assert (plain.particle_scale == 1).all()
    curves = [fsc(r.map, volume, pixel_size=PIXEL).correlation[1:] for r in (result, plain)]
    assert curves[0].sum() > curves[1].sum()
    with pytest.raises(ValueError, match="factor of the CTF"):
        refine(dataclasses.replace(varied, ctf=None), volume, particle_scale=True, **OPTIONS)


def test_symmetric_particles_are_searched_in_their_asymmetric_unit():
    """A C2 object from rough poses; errors count symmetric copies as one."""
    one = molecule(seed=8)
    two = one + np.roll(one[:, ::-1, ::-1], 1, axis=(1, 2))
    stack = simulate_particles(two, 70, PIXEL, snr=2.0, shift_px=1.0, defocus_angstrom=None, rng=4)
    truth, volume = stack.poses, stack.images.truth
    off = np.rad2deg(np.random.default_rng(1).uniform(-0.4, 0.4, (3, 70)))
    start = Poses.from_euler_deg(*(np.stack(truth.euler_deg()) + off))
    stack = dataclasses.replace(stack, images=np.asarray(stack.images[:]), poses=start)
    result = refine(stack, two, symmetry="C2", max_rounds=6, **OPTIONS)
    assert np.median(pose_errors(result.poses, truth, "C2").angle) < ROOM * expected(stack, truth, volume)[0]
    # least squares are symmetric to the tolerance of the interpolation; the differences of a regulariser, which are
    # one-sided, are not
    plain = refine(result.stack, two, symmetry="C2", max_rounds=0, reg="none", **OPTIONS).map
    turned = np.roll(plain[:, ::-1, ::-1], 1, axis=(1, 2))
    assert np.linalg.norm(plain - turned) < 1e-3 * np.linalg.norm(plain)


# -- bad input ------------------------------------------------------------------------------------------------


def test_bad_references(done):
    stack, _, volume, _ = done
    few = stack[:10]
    with pytest.raises(ValueError, match=r"shape \(30, 30, 30\).*32 pixels"):
        refine(few, volume[1:-1, 1:-1, 1:-1], **OPTIONS)
    with pytest.raises(ValueError, match=r"pixels of 2.5 angstrom, the images of 3"):
        refine(few, volume, reference_pixel_size=2.5, **OPTIONS)
    with pytest.raises(ValueError, match="constant"):
        refine(few, np.ones_like(volume), **OPTIONS)
    broken = volume.copy()
    broken[3, 4, 5] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        refine(few, broken, **OPTIONS)
    with pytest.raises(ValueError, match="Nyquist"):
        refine(few, volume, init_lowpass=5.0)
    with pytest.raises(ValueError, match="search"):
        refine(few, volume, search="everywhere")


def test_dark_particles_are_told(done):
    stack, _, volume, _ = done
    with pytest.raises(ValueError, match="contrast='dark'"):
        refine(dataclasses.replace(stack[:40], images=-stack.images[:40]), volume, **OPTIONS)


def test_an_empty_half_and_a_broken_image(done):
    stack, _, volume, _ = done
    few = dataclasses.replace(stack[:20], half=np.ones(20, int))
    with pytest.raises(ValueError, match=r"\[1\].*both 1 and 2"):
        refine(few, volume, half_maps=True, **OPTIONS)
    images = stack.images[:20].copy()
    images[13, 4, 4] = np.nan
    with pytest.raises(ValueError, match=r"image 13 .*NaN"):
        refine(dataclasses.replace(stack[:20], images=images), volume, **OPTIONS)
    blank = np.zeros_like(images)
    with pytest.raises(ValueError, match=r"hold nothing|empty"):
        refine(dataclasses.replace(stack[:20], images=blank), volume, **OPTIONS)


def test_poses_all_equal(done):
    """Nothing breaks, and it is said; the search finds most of them all the same."""
    stack, truth, volume, _ = done
    alike = Poses(np.repeat(random_rotations(1, rng=2), 50, axis=0))
    result = refine(dataclasses.replace(stack[:50], poses=alike), volume, max_rounds=3, **OPTIONS)
    assert any("same orientation" in note for note in result.warnings)
    assert np.isfinite(result.map).all() and np.isfinite(result.poses.matrices).all()
    assert (result.status < len(STATUS)).all() and len(truth) == 200


def test_a_reference_of_the_other_hand():
    """Nothing in the data tells the hand: the answer is the mirror image, as good as the other."""
    stack, truth, volume = problem(n=70, snr=4.0)
    mirrored = np.roll(volume[::-1, ::-1, ::-1], 1, axis=(0, 1, 2))
    result = refine(
        stack, mirrored, search="global", init_lowpass=12.0, max_shift=3.0, max_rounds=4, progress=False
    )
    errors = pose_errors(result.poses, truth)
    assert errors.alignment.hand == -1 and np.median(errors.angle) < ROOM * expected(stack, truth, volume)[0]
    assert resolved(errors.alignment.volume(result.map), volume) > N * PIXEL / 12.0  # of the first map


# -- the command ----------------------------------------------------------------------------------------------


FEW = {"n": 90, "ctf": (9000.0, 14000.0)}
JUNK = [8, 50]


def refine_words(folder, particles="particles.star"):
    ref = folder / "initial.mrc"
    return f"refine {folder / particles} --ref {ref} --init-lowpass {LOWPASS} --max-shift 3"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with particles, two of them noise, a first map, and what the command made of them in ``run``."""
    folder = tmp_path_factory.mktemp("project")
    stack, _, volume = problem(**FEW)
    stack.images[JUNK] = np.random.default_rng(0).standard_normal((2, N, N))
    names = np.array([f"{i:06d}@particles.mrcs" for i in range(1, 91)])
    table = {"rlnImageName": names, "rlnGroupName": np.array([f"group_{i % 3}" for i in range(90)])}
    stack = dataclasses.replace(stack, table=table)
    write_particles(folder / "particles.star", stack, stack_path=folder / "particles.mrcs")
    write_map(folder / "initial.mrc", volume, PIXEL)
    words = f"{refine_words(folder)} --max-rounds 4 --half-maps --particle-scale --json -o {folder / 'run'}"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(words.split()) == 0
    return folder, json.loads(out.getvalue())


def test_command(cli, project, tmp_path):
    """Files, RELION's columns, and the table of rounds."""
    folder, report = project
    stack, truth, volume = problem(**FEW)
    sound = np.setdiff1d(np.arange(90), JUNK)
    run = folder / "run"
    assert "their FSC flatters" in (run / "report.html").read_text(encoding="utf-8")
    assert (
        report["views"]["efficiency"] > 0.9
        and report["particles"] == 90
        and len(report["rounds"]) == 4
        and report["stopped_by"] == "max_rounds"
    )
    for name in ("map", "half1", "half2", "half1_noreg", "half2_noreg"):
        written = read_map(run / f"{name}.mrc")
        assert written.data.shape == (N, N, N) and written.pixel_size == pytest.approx(PIXEL)
    refined = read_particles(run / "particles_refined.star")
    errors = pose_errors(refined.poses[sound], truth[sound])
    assert np.median(errors.angle) < ROOM * expected(stack, truth, volume)[0]
    columns = read_star(run / "particles_refined.star")["particles"]
    assert list(columns["rlnGroupName"]) == [f"group_{i % 3}" for i in range(90)]
    assert (np.asarray(refined.half) == stack.half).all()
    assert np.flatnonzero(columns["rlnSelected"].astype(int) == 0).tolist() == JUNK
    rows = list(csv.DictReader((run / "particles.csv").open()))
    assert len(rows) == 90 and {r["status"] for r in rows} <= set(STATUS)
    assert [i for i, r in enumerate(rows) if r["no_signal"] == "1"] == JUNK and report["no_signal"] == 2
    assert np.allclose([float(r["scale"]) for r in rows], refined.ctf.scale, rtol=1e-3)
    assert refined.ctf.scale[JUNK].tolist() == [1, 1] and np.ptp(refined.ctf.scale) > 0
    assert len(list(csv.DictReader((run / "rounds.csv").open()))) == 4
    pictures = {p.name for p in run.glob("*.png")}
    assert {"fsc.png", "slices.png", "angle_changes.png", "shift_changes.png", "resolution.png"} <= pictures
    assert not (run / "unfinished.npz").exists()
    again = refine_words(folder, "run/particles_refined.star").split()
    code, out, err = cli(*again, "--max-rounds", 1, "--exclude-flagged", "-o", tmp_path / "again")
    assert code == 0 and "2 without signal, left out" in out, err
    assert len(read_particles(tmp_path / "again" / "particles_refined.star")) == 88
    star = folder / "particles.star"
    code, _, err = cli(*refine_words(folder).split(), "--i", star, "-o", tmp_path / "x")
    assert code == 2 and "once" in err
    write_map(tmp_path / "finer.mrc", volume, 2.0)
    code, _, err = cli("refine", star, "--ref", tmp_path / "finer.mrc", "-o", tmp_path / "y")
    assert code == 1 and "2 angstrom" in err


@pytest.mark.relion
def test_relion_reads_the_refined_particles(project, relion, tmp_path):
    """relion_reconstruct makes the map from particles_refined.star that our least squares make, scales included."""
    folder, _ = project
    _, truth, volume = problem(**FEW)
    refined = read_particles(folder / "run" / "particles_refined.star", data_dir=folder)

    def reconstructed(particles):
        done = subprocess.run(
            ["relion_reconstruct", "--i", particles, "--o", str(tmp_path / "relion.mrc"), "--ctf"],
            cwd=folder, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-1000:]
        return read_map(tmp_path / "relion.mrc", pixel_size=PIXEL).data

    theirs = reconstructed("run/particles_refined.star")
    ours = reconstruct(refined, reg="none", progress=False).map
    alignment = pose_errors(refined.poses, truth).alignment
    curves = [fsc(alignment.volume(m), volume, pixel_size=PIXEL) for m in (ours, theirs)]
    # made of the same noise, they are nearer to each other than to the truth, in every shell
    same = fsc(theirs, ours, pixel_size=PIXEL).correlation
    assert (same >= np.minimum(*(c.correlation for c in curves))).all()
    shells = [N * PIXEL / c.resolution(0.5) for c in curves]
    assert shells[1] > shells[0] - 2
    # scales are factors of the CTF to RELION as well
    twice = dataclasses.replace(refined.ctf, scale=2 * refined.ctf.scale)
    write_particles(tmp_path / "twice.star", dataclasses.replace(refined, ctf=twice))
    assert np.vdot(reconstructed(tmp_path / "twice.star"), theirs) / np.vdot(theirs, theirs) == pytest.approx(
        0.5, abs=0.01
    )
