"""Direct methods against analytic projections, each other, dense algebra, and RELION."""

import dataclasses
import json
import subprocess

import numpy as np
import pytest

from invcryo.backend import norm
from invcryo.costs import LeastSquares, Quadratic
from invcryo.ctf import CTF
from invcryo.data import ParticleStack, Poses
from invcryo.direct import direct_fourier, direct_reconstruction, fbp, ramp_filter, wbp, wiener_weight
from invcryo.direct.backprojection import WINDOWS, _steps
from invcryo.grid import centred_coordinates
from invcryo.io import read_map, read_particles, write_particles
from invcryo.metrics import fsc
from invcryo.operators import Diagonal, RealSpaceProjector, SingleAxisProjector, Toeplitz
from invcryo.operators.single_axis import tilt_poses
from invcryo.reconstruction import forward_model, reconstruct
from invcryo.rotation import random_rotations
from invcryo.simulate import gaussian_beads
from invcryo.solvers import cg, run, sirt
from invcryo.window import BandLimited, KaiserBessel

WIDTH = 1.7  # standard deviation of the blobs, voxels: nothing above the Nyquist frequency to 1e-6
CENTRES = np.array([[6.0, -4.0, 3.0], [-7.0, 2.5, -5.5], [0.0, 5.0, 7.0], [1.5, -6.0, -3.0]])  # x, y, z
HEIGHTS = np.array([1.0, 0.6, -0.4, 0.8])


def blobs(shape):
    """Blobs on a grid, in closed form."""
    z, y, x = centred_coordinates(shape)
    return sum(
        h * np.exp(-((x - c[0]) ** 2 + (y - c[1]) ** 2 + (z - c[2]) ** 2) / (2 * WIDTH**2))
        for h, c in zip(HEIGHTS, CENTRES, strict=True)
    )


def views(matrices, shape, shifts=None):
    """Their line integrals, in closed form: no operator is used."""
    y, x = centred_coordinates(shape)
    out = np.zeros((len(matrices), *shape))
    for image, M, t in zip(
        out, matrices, np.zeros((len(matrices), 2)) if shifts is None else shifts, strict=True
    ):
        for h, c in zip(HEIGHTS, CENTRES, strict=True):
            u, v = M[:2] @ c + t
            image += h * (2 * np.pi) ** 0.5 * WIDTH * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * WIDTH**2))
    return out


def error(a, b):
    return norm(np.asarray(a) - b) / norm(np.asarray(b, float))


# --- filtered back-projection -------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [30, 31, 64])
def test_the_ramp_is_that_of_its_samples_in_space(n):
    f = np.fft.rfftfreq(n)
    k = np.concatenate([np.arange((n + 1) // 2), np.arange(-(n // 2), 0)])
    taps = [0.25 if i == 0 else (0.0 if i % 2 == 0 else -1 / (np.pi * i) ** 2) for i in k]
    exact = [sum(t * np.cos(2 * np.pi * a * i) for t, i in zip(taps, k, strict=True)) for a in f]
    np.testing.assert_allclose(ramp_filter(n), exact, atol=1e-13)
    assert ramp_filter(n)[0] > 0 and np.abs(ramp_filter(n) - f).max() < 0.5 / n
    for name, window in WINDOWS.items():
        np.testing.assert_allclose(ramp_filter(n, name), ramp_filter(n) * window(f))
    np.testing.assert_allclose(ramp_filter(n, lambda f: f**2), ramp_filter(n) * f**2)


def test_fbp_of_a_sinogram_with_its_mean():
    """Three voxels of the disc's sum would show a wrong response at frequency zero."""
    n, theta = 41, np.linspace(0, np.pi, 90, endpoint=False)
    z, x = centred_coordinates((n, n))
    truth = sum(
        h * np.exp(-((x - c[0]) ** 2 + (z - c[2]) ** 2) / (2 * WIDTH**2))
        for h, c in zip(HEIGHTS, CENTRES, strict=True)
    )
    t = np.arange(n) - n // 2
    centre = CENTRES[:, [0]] * np.cos(theta) - CENTRES[:, [2]] * np.sin(theta)
    profile = np.exp(-((t - centre[:, :, None]) ** 2) / (2 * WIDTH**2)) * (2 * np.pi) ** 0.5 * WIDTH
    sinogram = np.tensordot(HEIGHTS, profile, 1)
    found = fbp(sinogram, theta)
    assert found.dtype == np.float64 and error(found, truth) < 2e-3
    assert abs(found.sum() / truth.sum() - 1) < 2e-3
    single = fbp(sinogram.astype(np.float32), theta)
    assert single.dtype == np.float32 and error(single, found) < 2e-4
    order = np.random.default_rng(1).permutation(90)
    np.testing.assert_allclose(fbp(sinogram[order], theta[order]), found, atol=1e-10)
    smooth = fbp(sinogram, theta, filter="hann")
    assert 0.02 < error(smooth, truth) < 0.5 and abs(smooth.sum() / truth.sum() - 1) < 2e-3


@pytest.mark.parametrize("axis", ["y", "x", "z"])
def test_fbp_of_a_series(axis):
    theta = np.deg2rad(np.arange(-90, 90, 3.0))
    shape = {"y": (26, 28, 30), "x": (26, 28, 30), "z": (28, 30, 30)}[axis]
    image = {"y": (28, 30), "x": (28, 30), "z": (28, 30)}[axis]
    images = views(tilt_poses(theta, axis=axis).matrices, image)
    found = fbp(images, theta, axis=axis, volume_shape=shape)
    assert found.shape == shape and error(found, blobs(shape)) < 3e-3


def test_weights_of_views():
    even = np.deg2rad(np.arange(-60, 61, 2.0))
    np.testing.assert_allclose(_steps(even), np.deg2rad(2.0))  # the wedge of 60 degrees is nobody's
    whole = np.linspace(0, np.pi, 20, endpoint=False) + 0.3
    np.testing.assert_allclose(_steps(whole), np.pi / 20)
    np.testing.assert_allclose(_steps(-whole[::-1]), np.pi / 20)
    uneven = np.array([0.0, 0.1, 0.3, 0.6, 1.1, 1.6, 2.1, 2.6])
    np.testing.assert_allclose(_steps(uneven).sum(), np.pi)
    np.testing.assert_allclose(_steps(uneven)[2], 0.25)
    np.testing.assert_allclose(_steps(np.array([0.4, 0.4, 2.0])).sum(), np.pi)  # twice the same view shares
    assert _steps(np.array([0.2])) == pytest.approx(np.pi)
    theta = np.sort(np.concatenate([np.linspace(0, 1, 70), np.linspace(1, np.pi, 80, endpoint=False)]))
    images = views(tilt_poses(theta).matrices, (15, 31))
    truth = blobs((31, 15, 31))
    assert error(fbp(images, theta), truth) < 0.3 * error(
        fbp(images, theta, weights=np.full(150, np.pi / 150)), truth
    )


def test_fbp_beside_scikit_image():
    transform = pytest.importorskip("skimage.transform")
    n, degrees = 48, np.arange(0, 180, 2.0)
    z, x = centred_coordinates((n, n))
    truth = np.exp(-((x - 8) ** 2 + (z + 5) ** 2) / 18) + 0.5 * np.exp(-((x + 9) ** 2 + (z - 6) ** 2) / 8)
    sinogram = transform.radon(truth, degrees, circle=True)
    ours = fbp(sinogram.T, np.deg2rad(degrees))
    theirs = transform.iradon(sinogram, degrees, interpolation="cubic", circle=True)
    inside = np.hypot(z, x) < n / 2 - 1
    assert error(ours[inside], truth[inside]) < 1.05 * error(theirs[inside], truth[inside])
    assert error(ours[inside], theirs[inside]) < 0.02


# --- weighted back-projection -------------------------------------------------------------------------------


def test_wbp_of_random_views():
    shape = (26, 28, 30)
    poses = Poses(random_rotations(300, rng=3), np.random.default_rng(4).uniform(-2, 2, (300, 2)))
    images = views(poses.matrices, (31, 30), poses.shifts)
    truth = blobs(shape)
    exact, radial = (wbp(images, poses, weighting=w, volume_shape=shape) for w in ("exact", "radial"))
    assert error(exact, truth) < 0.02 and error(radial, truth) < 0.15
    assert abs(exact.sum() / truth.sum() - 1) < 0.2 and abs(radial.sum() / truth.sum() - 1) < 0.05


def test_exact_weights_follow_uneven_views():
    """Half of the views within a cone: "radial" takes them for twice as many, "exact" does not."""
    rng = np.random.default_rng(5)
    matrices = random_rotations(400, rng=5)
    near = np.abs(matrices[:, 2, 2]) > 0.9
    matrices = np.concatenate([matrices[:200], np.repeat(matrices[near], 5, axis=0)])
    poses = Poses(matrices, rng.uniform(-1, 1, (len(matrices), 2)))
    images = views(poses.matrices, (30, 30), poses.shifts)
    truth = blobs((30, 30, 30))
    assert error(wbp(images, poses), truth) < 0.2 * error(wbp(images, poses, weighting="radial"), truth)


def test_exact_weights_of_a_single_axis_are_the_ramp():
    theta = np.deg2rad(np.arange(-90, 90, 3.0))
    images = views(tilt_poses(theta).matrices, (28, 30))
    ball = sum(c**2 for c in centred_coordinates((30, 28, 30))) < 13**2
    assert error((wbp(images, tilt_poses(theta)) * ball), fbp(images, theta) * ball) < 0.004


def test_wrong_input_of_back_projection():
    images = np.zeros((3, 8, 8))
    with pytest.raises(ValueError, match="as many angles"):
        fbp(images, [0.1, 0.2])
    with pytest.raises(ValueError, match="unknown filter 'hanning'"):
        fbp(images, [0.1, 0.2, 0.3], filter="hanning")
    with pytest.raises(ValueError, match="radians"):
        fbp(images, [0, 45, 90])
    with pytest.raises(ValueError, match="no direction but across"):
        fbp(images[:, 0], [0.1, 0.2, 0.3], axis="x")
    with pytest.raises(ValueError, match="3 poses need images"):
        wbp(images[:2], tilt_poses([0.1, 0.2, 0.3]))
    with pytest.raises(ValueError, match="'exact' or 'radial'"):
        wbp(images, tilt_poses([0.1, 0.2, 0.3]), weighting="ramp")


# --- SIRT ---------------------------------------------------------------------------------------------------


def test_sirt_is_its_formula(rng):
    A = RealSpaceProjector(
        tilt_poses(np.linspace(-1, 1, 5)), KaiserBessel(), (7, 6, 8), (6, 8), dtype=np.float64
    )
    matrix = np.stack([A.matvec(e) for e in np.eye(A.shape[1])], axis=1)
    assert matrix.min() >= 0
    y = rng.uniform(0, 1, A.oshape)
    R, C = (np.where(s > 1e-3 * s.max(), 1 / np.maximum(s, 1e-30), 0) for s in (matrix.sum(1), matrix.sum(0)))
    x = np.zeros(A.shape[1])
    for _ in range(4):
        x = np.maximum(x + 1.3 * C * (matrix.T @ (R * (y.ravel() - matrix @ x))), 0)
    found = run(sirt(A, y, nonnegative=True, relaxation=1.3), 4, progress=False)
    np.testing.assert_allclose(found.x.ravel(), x, atol=1e-10)
    assert found.history["residual"][0] == 1.0
    half = run(sirt(A, y, nonnegative=True, relaxation=1.3), 2, progress=False)
    resumed = run(sirt(A, y, nonnegative=True, relaxation=1.3, state=half.state), 2, progress=False)
    np.testing.assert_array_equal(resumed.x, found.x)
    assert resumed.state.iteration == 4


def test_sirt_of_a_tilt_series():
    theta = np.deg2rad(np.arange(-70, 71, 4.0))
    A = SingleAxisProjector(theta, KaiserBessel(), (26, 20, 30), (20, 30), dtype=np.float32)
    y = views(tilt_poses(theta).matrices, (20, 30)).astype(np.float32)
    result = run(sirt(A, y), 60, progress=False)
    residual = result.history["residual"]
    assert result.x.dtype == np.float32 and residual[-1] < 0.04 and all(np.diff(residual) < 0)
    truth = blobs((26, 20, 30))
    assert error(KaiserBessel().synthesize(result.x), truth) < error(
        fbp(y, theta, volume_shape=truth.shape), truth
    )


def test_sirt_refuses_operators_with_negative_entries():
    A = Diagonal(np.array([1.0, -0.1, 2.0]), np.float64)
    with pytest.raises(ValueError, match="without negative entries"):
        next(sirt(A, np.zeros(3)))
    B = Diagonal(np.ones((3, 4)), np.float64)
    with pytest.raises(ValueError, match="relaxation"):
        next(sirt(B, np.zeros((3, 4)), relaxation=2.0))
    with pytest.raises(ValueError, match="shape"):
        next(sirt(B, np.zeros((4, 3))))


# --- direct Fourier -----------------------------------------------------------------------------------------


def test_the_division(rng):
    """For a data term that is a multiple of the identity everything can be written down."""
    n, power = 6, 5.0
    kernel = np.zeros((2 * n - 1,) * 3)
    kernel[n - 1, n - 1, n - 1] = power
    b = rng.standard_normal((n,) * 3)
    data = Quadratic(Toeplitz(kernel, np.float64), b, 0.0)
    np.testing.assert_allclose(direct_fourier(data, 0.0), b / power)
    np.testing.assert_allclose(direct_fourier(data, 2.0), b / (power + 2))
    np.testing.assert_allclose(direct_fourier(data), b / (1.03 * power))
    curve = np.array([1.0, 0.9, 0.5, 0.2])
    weight = wiener_weight(data, curve)
    np.testing.assert_allclose(weight, power * (1 - curve.clip(0, 0.999)) / curve.clip(0, 0.999))
    after = wiener_weight(data, [0.9, 0.0, 0.8, 0.2])  # what comes after zero correlation is noise
    np.testing.assert_allclose(after[1:], power * 999)
    for bad in (-1.0, np.nan, np.ones((2, 2))):
        with pytest.raises(ValueError, match="one number or one per shell"):
            direct_fourier(data, bad)


@pytest.fixture(scope="module")
def particles():
    """48 pixels, 700 views, astigmatic CTF, shifts, a signal-to-noise ratio of 0.2."""
    rng = np.random.default_rng(11)
    steps = rng.standard_normal((160, 3))
    positions = np.cumsum(2.0 * steps / np.linalg.norm(steps, axis=1, keepdims=True), axis=0)
    positions -= positions.mean(0)
    truth = gaussian_beads(48, positions * 13 / np.abs(positions).max(), 1.2, np.ones(160))
    n = 700
    u = rng.uniform(8000, 20000, n)
    ctf = CTF(u, u - 500, rng.uniform(0, np.pi, n), 300, 2.7, 0.1)
    poses = Poses(random_rotations(n, rng=12), rng.uniform(-3, 3, (n, 2)))
    stack = ParticleStack(np.zeros((n, 48, 48), np.float32), 3.0, poses, ctf, np.arange(n) % 2 + 1)
    images = forward_model(stack, BandLimited()).apply(truth.astype(np.float32))
    noise = rng.standard_normal(images.shape, np.float32)
    return dataclasses.replace(stack, images=images + (images.var() / 0.2) ** 0.5 * noise), truth


def quality(volume, truth):
    """Mean FSC with the truth up to 0.8 of the Nyquist frequency."""
    return fsc(np.asarray(volume, np.float32), truth, pixel_size=3.0).correlation[1:20].mean()


def test_direct_reconstruction(particles):
    stack, truth = particles
    out = direct_reconstruction(stack, half_maps=True, progress=False)
    plain = reconstruct(stack, reg="none", progress=False)
    assert out.reg == "wiener" and out.stopped_by == "direct" and out.gram_error < 1e-3
    # one division does in noise what the solution does; the Wiener weight takes noise away
    assert quality(out.map_noreg, truth) > quality(plain.map, truth) - 0.01
    assert error(out.map, truth) < 0.6 * error(out.map_noreg, truth)
    scale = (out.map * truth).sum() / (truth**2).sum()
    assert 0.8 < scale < 1.1
    inside = sum(c**2 for c in centred_coordinates((48,) * 3)) > 24**2
    assert np.abs(out.map[inside]).max() < 0.05 * out.map.max()
    assert np.array_equal(
        out.fsc_noreg.correlation, fsc(out.half1_noreg, out.half2_noreg, pixel_size=3.0).correlation
    )
    np.testing.assert_allclose(out.fsc.correlation[3:15], out.fsc_noreg.correlation[3:15], atol=0.12)
    bare = direct_reconstruction(stack, wiener=False, progress=False)
    assert bare.reg == "none" and bare.half1 is None and bare.fsc is None
    assert error(bare.map, out.map_noreg) < 1e-3


def test_direct_symmetry_and_scale(particles):
    stack, truth = particles
    out = direct_reconstruction(stack, wiener=False, symmetry="C2", scale=2.0, progress=False)
    turned = out.map[:, ::-1, ::-1][:, :-1, :-1]  # half a turn about z, about index n // 2
    assert error(out.map[:, 1:, 1:], turned) < 0.05  # the circulant has no plane at -n / 2
    assert out.map.shape == truth.shape


def test_direct_by_command(particles, tmp_path, cli):
    """`reconstruct --method direct` is `direct_reconstruction`, with the files of a reconstruction."""
    stack, _ = particles
    star, folder = tmp_path / "p.star", tmp_path / "run"
    write_particles(star, stack[:200], stack_path=tmp_path / "p.mrcs")
    words = ("reconstruct", star, "-o", folder, "--method", "direct", "--data-dir", tmp_path)
    code, out, _ = cli(*words, "--half-maps")
    assert code == 0 and "direct Fourier, Wiener weights" in out and "iteration" not in out
    expected = direct_reconstruction(read_particles(star, data_dir=tmp_path), half_maps=True, progress=False)
    for name in ("map", "map_noreg", "half1", "half2_noreg"):
        assert error(read_map(folder / f"{name}.mrc").data, getattr(expected, name)) < 1e-6, name
    report = json.loads((folder / "run.json").read_text())
    assert report["regulariser"] == "wiener" and report["stopped_by"] == "direct" and report["lambda"] is None
    assert report["resolution_0.143_angstrom"]["fsc_noreg"] == expected.fsc_noreg.resolution()
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "direct Fourier, Wiener weights" in page and page.count("<img") == 2 and "Iterations" not in page
    assert {f.name for f in folder.glob("fsc*")} == {
        "fsc.png",
        "fsc.xml",
        "fsc.star",
        "fsc_noreg.xml",
        "fsc_noreg.star",
    }
    assert not list(folder.glob("convergence*"))
    code, out, _ = cli(*words, "--reg", "none", "--overwrite")
    assert code == 0 and "no weights" in out and not (folder / "map_noreg.mrc").exists()
    assert error(read_map(folder / "map.mrc").data, expected.map_noreg) < 1e-3
    assert cli(*words, "--dry-run")[0] == 0
    for wrong in (("--lam", "2"), ("--positivity",), ("--reg", "tv"), ("--max-iter", "3")):
        code, _, problem = cli(*words, *wrong)
        assert code == 2 and "--method direct" in problem
    assert cli("reconstruct", star, "-o", folder, "--reg", "wiener")[0] == 2


def test_noise_free_views_with_ctf():
    """The numerator and the denominator belong together: without noise what is left is the division's own error."""
    n = 500
    rng = np.random.default_rng(14)
    poses = Poses(random_rotations(n, rng=15), rng.uniform(-2, 2, (n, 2)))
    u = rng.uniform(8000, 16000, n)
    ctf = CTF(u, u, 0.0, 300, 2.7, 0.1)
    stack = ParticleStack(np.zeros((n, 32, 32), np.float32), 3.0, poses, ctf)
    A = forward_model(stack, BandLimited())
    truth = blobs((32,) * 3).astype(np.float32)
    found = direct_fourier(LeastSquares(A, A.apply(truth), progress=False).quadratic(), 1e-3 * n)
    ball = sum(c**2 for c in centred_coordinates((32,) * 3)) < 14**2
    curve = fsc((found * ball).astype(np.float32), truth, pixel_size=3.0).correlation
    assert curve[1:9].min() > 0.97  # the blobs hold nothing further out


@pytest.mark.relion
def test_direct_fourier_beside_relion(relion, particles, tmp_path):
    stack, truth = particles
    write_particles(tmp_path / "p.star", stack, stack_path=tmp_path / "p.mrcs")
    command = ["relion_reconstruct", "--i", "p.star", "--o", "r.mrc", "--ctf", "--angpix", "3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    theirs = read_map(tmp_path / "r.mrc").data
    ours = direct_reconstruction(
        read_particles(tmp_path / "p.star", data_dir=tmp_path), wiener=False, progress=False
    ).map_noreg
    shells = slice(1, 20)
    to_truth = [fsc(v, truth, pixel_size=3.0).correlation[shells] for v in (ours, theirs)]
    assert (to_truth[0] - to_truth[1]).min() > -0.02
    between = fsc(ours, theirs, pixel_size=3.0).correlation[shells]
    # further out both are mostly noise, weighted differently
    assert between[:8].min() > 0.98 and between.min() > 0.6


def test_cg_starts_where_direct_ends(particles):
    """The direct map is a good start: the residual of the normal equations falls at once."""
    stack, _ = particles
    A = forward_model(stack)
    data = LeastSquares(A, stack.images, progress=False).quadratic()
    x = direct_fourier(data)
    residual = run(cg(data.Q, data.b, x), 1, progress=False).history["residual"][0]
    assert residual < 0.3
