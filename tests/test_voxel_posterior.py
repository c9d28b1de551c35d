"""The posterior of Fourier voxels: against brute force, against exact Gaussian posteriors, and on particles."""

import dataclasses
import signal

import numpy as np
import pytest

from invcryo.autograd import const, slices
from invcryo.checkpoint import Checkpoint
from invcryo.data import ParticleStack, Poses
from invcryo.kernels.posterior import slice_weights
from invcryo.learned import VoxelPosterior, spectra
from invcryo.learned.pose_surface import PoseErrors
from invcryo.learned.voxel_posterior import _Model, _standard_normal
from invcryo.metrics import fsc
from invcryo.rotation import geodesic_distance, matrix_from_euler, random_rotations
from invcryo.simulate import simulate_particles
from invcryo.solvers import NonFiniteError


@pytest.fixture(autouse=True)
def _ctrl_c_raises():
    """Also where tests run in the background, whose shells ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def beads(n, rng, spread=1.5, width=1.2):
    grid = np.indices((n,) * 3) - n // 2.0
    volume = np.zeros((n,) * 3, np.float32)
    for centre in rng.normal(size=(6, 3)) * spread:
        volume += np.exp(-((grid - centre[:, None, None, None]) ** 2).sum(0) / (2 * width**2))
    return volume


def in_memory(stack):
    return dataclasses.replace(stack, images=np.array(stack.images[np.arange(len(stack))]))


def white_stack(box, poses, rng, dtype=np.float64, ctf=None):
    images = rng.standard_normal((len(poses), box, box)).astype(dtype)
    return ParticleStack(images, 2.0, poses, ctf)


def model_of(stack, **options):
    given = {
        "kind": "gaussian", "noise": 1.0, "prior": "estimated", "diameter": None, "padding": 1, "epochs": 1.0,
        "batch": 2, "rate": 0.01, "rng": 0, "dtype": np.dtype(float),
    } | options  # fmt: skip
    return _Model(stack, **given)


# --- the grid ----------------------------------------------------------------------------------------------------


GRIDS = [(8, 1, 8), (7, 1, 7), (6, 2, 6), (5, 2, 5), (9, 2, 6), (8, 3, 5)]


@pytest.mark.parametrize(("box", "padding", "field"), GRIDS)
def test_voxels_of_a_map_and_back(box, padding, field, rng):
    grid = spectra.VoxelGrid(box, padding, field)
    volume = rng.standard_normal((box,) * 3)
    voxels = grid.voxels(volume)
    assert voxels.shape == grid.shape == grid.shells.shape
    np.testing.assert_allclose(grid.volume(voxels), grid.within(volume), atol=1e-12)
    centre = np.zeros((box,) * 3)
    centre[(box // 2,) * 3] = 1
    np.testing.assert_allclose(grid.voxels(centre), 1, atol=1e-14)
    for plane in spectra.planes(field):  # Hermitian where both mates are stored
        np.testing.assert_allclose(spectra.mirrored(voxels[..., plane]), voxels[..., plane], atol=1e-11)
    # independent real numbers are as many as voxels of the cube
    assert 2 * grid.multiplicity.sum() == field**3
    # to the spectrum that is sliced, by the tape and at once; and back, in the inner product of whole spectra
    sliced = grid.sliced_of(const(voxels)).data
    np.testing.assert_allclose(sliced, grid.sliced(volume), atol=1e-10)
    other = spectra.tie(rng.standard_normal(sliced.shape) + 1j * rng.standard_normal(sliced.shape))
    back = grid.gathered(other)
    products = [np.vdot(scaled(x), scaled(y)).real for x, y in ((sliced, other), (voxels, back))]
    bound = 20 * np.finfo(float).eps * np.linalg.norm(scaled(sliced)) * np.linalg.norm(scaled(other))
    assert abs(products[0] - products[1]) < bound


def scaled(spectrum):
    """So that the norm is that of the whole of a Hermitian spectrum."""
    n = spectrum.shape[0]
    factors = np.full(spectrum.shape[2], np.sqrt(2.0))
    factors[list(spectra.planes(n))] = 1
    return spectrum * factors


@pytest.mark.parametrize("box", [24, 25])
def test_slices_of_the_voxels_are_projections(box, rng):
    """A smooth map well within the box, by the toolbox's own projector; the rest is that of trilinear slices."""
    from invcryo.operators import Projector
    from invcryo.window import BandLimited

    volume = beads(box, rng, spread=0.8)
    poses = Poses(random_rotations(5, rng=rng), rng.uniform(-1, 1, (5, 2)))
    images = Projector(poses, BandLimited(), volume.shape, box)(volume)
    measured = spectra.image_spectra(ParticleStack(images, 1.0, poses), np.arange(5))
    weights, _ = spectra.image_weights(spectra.VoxelGrid(box, 1))
    for padding, field, bound in ((1, box, 0.04), (2, box, 0.01), (2, 16, 0.02)):
        grid = spectra.VoxelGrid(box, padding, field)
        voxels = grid.sliced(volume).astype(np.complex64) / box
        mine = slices.central_slice(voxels, poses.matrices.astype("f4"), box).data
        off = np.sqrt(
            (weights * np.abs(mine - measured) ** 2).sum() / (weights * np.abs(measured) ** 2).sum()
        )
        assert off < bound


@pytest.mark.parametrize(("box", "padding"), [(6, 1), (5, 1), (5, 2)])
def test_variance_of_the_map_against_draws(box, padding, rng):
    grid = spectra.VoxelGrid(box, padding)
    sigma = rng.uniform(0.5, 2, grid.shape)
    for plane in spectra.planes(box):
        sigma[..., plane] = 0.5 * (sigma[..., plane] + spectra.mirrored(sigma[..., plane]))
    zero = np.zeros(grid.shape, complex)
    shells = np.ones(box // 2 + 1)
    posterior = VoxelPosterior(zero, sigma, shells, shells, box, box, padding, 1.0)
    draws = 400
    power, real = 0.0, 0.0
    for _ in range(draws):
        volume = posterior.sample(rng=rng)
        power = power + np.abs(np.fft.rfftn(volume)) ** 2
        real = real + volume**2
    expected = spectra.map_variance(sigma**2, grid)
    # |v|^2 of a complex Gaussian spreads as its mean, of a real one by sqrt(2) more: 5.5 deviations of the mean
    assert np.abs(power / draws / expected - 1).max() < 5.5 * np.sqrt(2 / draws)
    assert np.abs(real / draws / posterior.sigma_map() ** 2 - 1).max() < 5.5 * np.sqrt(2 / draws)


# --- the bound -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("box", [6, 7])
def test_squares_of_the_weights_against_impulses(box, rng):
    turns = random_rotations(3, rng=rng)
    g = rng.uniform(0, 1, (3, box, box // 2 + 1))
    sums, squares, slow = (np.zeros((box, box, box // 2 + 1)) for _ in range(3))
    slice_weights(g, turns, 1.0, box // 2, sums, squares)
    for place in np.ndindex(slow.shape):
        impulse = np.zeros(slow.shape, complex)
        impulse[place] = 1
        slow[place] = (g * slices.central_slice(impulse, turns).data.real ** 2).sum()
    np.testing.assert_allclose(squares, slow, atol=1e-13)
    adjoint = slices.slice_adjoint(g.astype(complex), turns, box).data
    np.testing.assert_allclose(sums, adjoint.real, atol=1e-13)


@pytest.mark.parametrize("options", [{}, {"padding": 2, "diameter": 4.0}])
def test_gradient_of_the_bound_against_differences(options, rng):
    """In Hermitian directions, with CTF, shifts, and a noise of each shell."""
    box = 6
    stack = simulate_particles(beads(box, rng, 0.7), 4, 2.0, snr=1.0, shift_px=1.0, rng=1)
    stack = dataclasses.replace(in_memory(stack), images=np.asarray(stack.images[np.arange(4)], float))
    model = model_of(stack, noise=np.linspace(0.5, 2, box // 2 + 1), batch=4, **options)
    grid = model.grid
    assert grid.field == (4 if options else 6)
    mean, log_sigma = (model.parameters.array(f"posterior/{k}") for k in ("mean", "log_sigma"))
    mean[...] = _standard_normal(grid, rng, float)
    data = model._data(np.arange(4)) | {"share": 0.7, "noise": _standard_normal(grid, rng, float)}
    tree = model.parameters.tree["posterior"]
    _, gradients = model.both(tree, data)
    for g in gradients.values():
        spectra.tie(g)
    along = {"mean": _standard_normal(grid, rng, float), "log_sigma": _standard_normal(grid, rng, float).real}
    for values in along.values():
        for plane in spectra.planes(grid.field):
            values[..., plane] = 0.5 * (values[..., plane] + spectra.mirrored(values[..., plane]))
    step = 1e-5
    sides = []
    for sign in (1, -1):
        mean += sign * step * along["mean"]
        log_sigma += sign * step * along["log_sigma"]
        model.parameters.changed()
        sides.append(float(model.both(tree, data)[0]))
        mean -= sign * step * along["mean"]
        log_sigma -= sign * step * along["log_sigma"]
    slope = sum((grid.multiplicity * (g.conj() * along[k]).real).sum() for k, g in gradients.items())
    assert slope == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-6)


def exact_posterior(stack, noise, prior, grid=None):
    """Mean and mean-field deviation of every voxel by a dense linear system in real numbers."""
    grid = spectra.VoxelGrid(stack.box, 1) if grid is None else grid
    weights, _ = spectra.image_weights(grid)
    root = np.sqrt(weights / noise)
    base = []  # real parameters: unit vectors of voxels, E |v|^2 = 1 each in all
    for place in np.ndindex(grid.shape):
        for unit in (1, 1j):
            v = np.zeros(grid.shape, complex)
            v[place] = unit
            plane = place[2]
            if plane in spectra.planes(grid.field):
                mate = (-place[0] % grid.field, -place[1] % grid.field)
                if mate < place[:2] or (mate == place[:2] and unit == 1j):
                    continue
                v[(*mate, plane)] = np.conj(unit)
            base.append((place, v))
    rows = [
        root * slices.central_slice(grid.sliced_of(const(v)).data, stack.poses.matrices, stack.box).data
        for _, v in base
    ]
    A = np.array([np.concatenate([r.real.ravel(), r.imag.ravel()]) for r in rows])
    images = root * spectra.image_spectra(stack, np.arange(len(stack)))
    y = np.concatenate([images.real.ravel(), images.imag.ravel()])
    # of a real one the prior variance is prior^2, of parts of a complex one half of it; noise is of |n|^2
    real = np.array(
        [
            (v.imag == 0).all() and np.count_nonzero(v) == 1 and p[2] in spectra.planes(grid.field)
            for p, v in base
        ]
    )
    each = np.where(real, prior**2, prior**2 / 2)
    precision = 2 * A @ A.T + np.diag(1 / each)
    solution = np.linalg.solve(precision, 2 * A @ y)
    mean = sum(s * v for s, (_, v) in zip(solution, base, strict=True))
    variance = np.zeros(grid.shape)
    for (place, _), q in zip(base, 1 / np.diag(precision), strict=True):
        variance[place] += q
        if place[2] in spectra.planes(grid.field):
            mate = (-place[0] % grid.field, -place[1] % grid.field, place[2])
            variance[mate] = variance[place]
    return mean, np.sqrt(variance)


@pytest.mark.parametrize("box", [4, 5])
def test_deviations_are_those_of_the_exact_mean_field(box, rng):
    """`information`, from squares of weights, against the diagonal of a dense system; and the start from a map."""
    poses = Poses(random_rotations(12, rng=rng))
    stack = white_stack(box, poses, rng)
    model = model_of(stack, noise=0.7, prior=3.0)
    _, sigma = exact_posterior(stack, 0.7, 3.0 / box)
    squares, _ = model.information()
    mine = model.voxel_scale / np.sqrt(1 + squares)
    np.testing.assert_allclose(mine, sigma, rtol=1e-9)
    model.begin(np.zeros((box,) * 3), False)
    np.testing.assert_allclose(box * mine, model.result({}, "").sigma, rtol=1e-9)


@pytest.mark.parametrize(("box", "field"), [(6, 6), (8, 4)])
def test_padded_voxels_have_data_of_their_own(box, field, rng):
    """Deviations from transforms of weights against the dense system: as near as trilinear slices, of second order."""
    stack = white_stack(box, Poses(random_rotations(60, rng=rng)), rng)
    off = []
    for padding in (2, 4):
        model = model_of(stack, noise=0.7, prior=3.0, padding=padding, diameter=2.0 * (field - 2))
        assert model.grid.field == field
        _, sigma = exact_posterior(stack, 0.7, 3.0 / box, model.grid)
        squares, sums = model.information()
        off.append(np.sqrt(np.mean((model.voxel_scale / np.sqrt(1 + squares) / sigma - 1) ** 2)))
        np.testing.assert_array_equal(squares, sums)
    assert off[0] < 0.03 and off[1] < off[0] / 3


def test_a_truth_drawn_from_the_prior_is_within_the_posterior(rng):
    """By images of the toolbox's own projector: squares of errors, fractions within sigma, and the expected FSC."""
    from invcryo.operators import Projector
    from invcryo.window import BandLimited

    box, field, count = 20, 14, 300
    grid = spectra.VoxelGrid(box, 2, field)
    prior = 40 * np.exp(-np.arange(field // 2 + 1) / 2.0)
    true = _standard_normal(grid, rng, float) * prior[grid.shells]
    volume = grid.volume(true)
    whole = np.pad(volume, (box - field) // 2).astype("f4")
    poses = Poses(random_rotations(count, rng=rng))
    images = Projector(poses, BandLimited(), whole.shape, box)(whole) + rng.standard_normal((count, box, box))
    found = VoxelPosterior.fit(
        ParticleStack(images.astype("f4"), 4.0, poses), noise=1.0, prior=prior, diameter=4.0 * (field - 2),
        start="least-squares", epochs=1, rng=0, progress=False,
    )  # fmt: skip
    assert found.field == field
    voxels = np.bincount(grid.shells[grid.inside], grid.multiplicity[grid.inside])
    square = grid.mean_of_shells(np.abs(found.mean - true) ** 2 / found.sigma**2)
    # four deviations of the mean; the first shells have a signal so strong that trilinear slices are its noise
    assert (np.abs(square - 1) < 4 / np.sqrt(voxels))[2:].all()
    curve, expected = fsc(found.mean_map(), volume, pixel_size=4.0), found.fsc(with_truth=True).correlation
    assert expected[-1] < 0.5 < 0.99 < expected[1]
    assert (np.abs(curve.correlation - expected) < 4 * (1 - expected**2) / np.sqrt(voxels))[1:].all()
    calibration = found.calibration(whole)
    np.testing.assert_array_equal(found.calibration(volume).within, calibration.within)
    for fraction, right in zip(calibration.overall(), (0.6827, 0.9545), strict=True):
        assert abs(fraction - right) < 4 * np.sqrt(right * (1 - right) / calibration.counts.sum())


def test_slices_on_the_grid_give_the_wiener_solution(rng):
    """Quarter turns hit voxels alone, so that each has a closed form: sum of data over the sum of precisions."""
    box = 6
    turns = np.concatenate([matrix_from_euler(r, t, 0) [None] for r in (0, 90) for t in (0, 90)])  # fmt: skip
    stack = white_stack(box, Poses(np.rint(np.repeat(turns, 5, axis=0))), rng)
    noise, prior = 0.5, 6.0
    mean, sigma = exact_posterior(stack, noise, prior / box)
    grid = spectra.VoxelGrid(box, 1)
    assert sigma[1, 1, 1] == pytest.approx(prior / box)  # k_z = k_y = k_x = 1: never hit
    assert sigma[0, 2, 1] < 0.5 * prior / box  # k_z = 0: by five images of each of two turns about z
    found = VoxelPosterior.fit(
        stack,
        noise=noise,
        prior=prior,
        padding=1,
        epochs=300,
        batch=20,
        rng=0,
        dtype=float,
        polish=False,
        progress=False,
    )
    part = grid.inside
    assert np.abs(found.mean / box - mean)[part].max() < 0.05 * sigma.max()
    np.testing.assert_allclose(found.sigma[part] / box, sigma[part], rtol=0.08)


def test_fit_reaches_the_exact_posterior(rng):
    """Any poses: means of the dense system, deviations of the mean field; a Dirac posterior has the same mean."""
    box = 5
    stack = white_stack(box, Poses(random_rotations(24, rng=rng)), rng)
    mean, sigma = exact_posterior(stack, 1.0, 1.0)
    inside = spectra.VoxelGrid(box, 1).inside
    options = {
        "noise": 1.0,
        "prior": float(box),
        "padding": 1,
        "epochs": 200,
        "batch": 24,
        "polish": False,
        "rng": 1,
        "dtype": float,
        "progress": False,
    }
    for kind in ("gaussian", "dirac"):
        found = VoxelPosterior.fit(stack, kind=kind, **options)
        off = np.abs(found.mean / box - mean)[inside]
        assert np.sqrt((off**2).mean()) < (0.05 if kind == "gaussian" else 1e-3) * sigma[inside].mean()
        if kind == "gaussian":
            assert np.abs(found.sigma / box / sigma - 1)[inside].mean() < 0.03
        else:
            assert not found.sigma.any()


def test_power_that_may_be_below_its_error():
    from invcryo.learned.voxel_posterior import _positive_power

    power, error = np.array([50, 10, 12.0, 3, 0.5, 2.0, -0.5, -30]), np.full(8, 1.0)
    error[0] = 0.5
    found = _positive_power(power, error)
    assert (found > 0).all() and (np.diff(found[3:]) <= 0).all()  # from the first below four errors on
    np.testing.assert_allclose(found[:3], power[:3], rtol=1e-12)  # sure ones stay
    # two that rise share their mean, of which draws of the error that leave it positive have this mean
    draws = 1.25 + np.random.default_rng(0).normal(size=100_000) * np.sqrt(0.5)
    assert found[4] == found[5] == pytest.approx(draws[draws > 0].mean(), abs=5 * np.sqrt(0.5 / 1e5))
    np.testing.assert_allclose(_positive_power(np.array([3.0, 2, 1]), np.zeros(3)), [3, 2, 1])


# --- particles -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def particles():
    volume = beads(20, np.random.default_rng(3), spread=2.2)
    stack = simulate_particles(volume, 400, 4.0, snr=0.3, defocus_angstrom=(8000, 15000), shift_px=2, rng=0)
    return in_memory(stack), stack.images.truth


@pytest.fixture(scope="module")
def fitted(particles):
    return VoxelPosterior.fit(
        particles[0], diameter=52.0, start="least-squares", epochs=4, rng=0, progress=False
    )


def test_maps_of_particles(particles, fitted):
    """With CTF, shifts and a noise that is learned: the map is the truth where the posterior says so."""
    truth, grid = particles[1], fitted.grid
    assert fitted.field == 16 and fitted.mean.shape == (16, 16, 9) and len(fitted.noise) == 11
    curve = fsc(fitted.mean_map(), grid.within(truth), pixel_size=4.0)
    expected = fitted.fsc(with_truth=True)
    np.testing.assert_array_equal(expected.voxels, curve.voxels)
    np.testing.assert_array_equal(expected.frequency, curve.frequency)
    assert abs(64 / curve.resolution(0.5) - 64 / expected.resolution(0.5)) <= 1  # a shell
    assert fitted.noise[4:-1] == pytest.approx(np.ones(len(fitted.noise) - 5), abs=0.1)
    assert fitted.mean.dtype == np.complex64 and fitted.sigma.dtype == np.float32
    alpha = fitted.ss_snr()
    np.testing.assert_allclose(fitted.fsc().correlation, alpha / (1 + alpha))
    np.testing.assert_allclose(fitted.ss_snr("voxels"), alpha, rtol=1e-6)
    draw = fitted.sample(rng=1) - fitted.mean_map()
    ratio = (draw.astype(float) ** 2).sum() / (fitted.sigma_map().astype(float) ** 2).sum()
    # squares of numbers that are as many as voxels, mostly of the last shells
    assert ratio == pytest.approx(1, abs=5 * np.sqrt(2 / 16**3))


def test_files(fitted, tmp_path):
    fitted.save(tmp_path / "p.npz")
    again = VoxelPosterior.load(tmp_path / "p.npz")
    np.testing.assert_array_equal(again.mean, fitted.mean)
    assert again.kind == "gaussian" and (again.box, again.field) == (20, 16) and again.pixel_size == 4.0
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="holds no posterior"):
        VoxelPosterior.load(tmp_path / "other.npz")


def test_an_unfinished_fit_goes_on_to_the_same_bits(particles, tmp_path):
    stack = particles[0][:64]
    options = {"epochs": 4, "batch": 16, "rng": 5, "progress": False}
    whole = VoxelPosterior.fit(stack, **options)

    class Broken(Exception):
        pass

    def stop(posterior, state):
        if state.iteration == 8:
            raise StopIteration

    every = Checkpoint(tmp_path, every=0.0)
    early = VoxelPosterior.fit(stack, **options, callback=stop, checkpoint=every)
    assert early.stopped_by == "callback" and not np.array_equal(early.mean, whole.mean)
    # what Ctrl-C leaves: a state at the step before the one that the callback ended
    assert not every.path.exists()
    model = _Model(stack, "gaussian", "learned", "estimated", None, 2, 4, 16, 0.03, 5, np.dtype("f4"))
    checkpoint = Checkpoint(tmp_path)

    def interrupt(posterior, state):
        if state.iteration == 8:
            signal.raise_signal(signal.SIGINT)

    part = model.run(None, checkpoint, None, interrupt, False)
    assert part.stopped_by == "interrupt" and checkpoint.path.exists()
    rest = VoxelPosterior.fit(stack, **options | {"rng": 99}, checkpoint=tmp_path)
    np.testing.assert_array_equal(rest.mean, whole.mean)
    np.testing.assert_array_equal(rest.sigma, whole.sigma)
    assert not checkpoint.path.exists()


def test_resume_with_another_model_is_refused(particles, tmp_path):
    stack = particles[0][:64]
    model = _Model(stack, "gaussian", "learned", "estimated", None, 2, 4, 16, 0.03, 5, np.dtype("f4"))

    def interrupt(posterior, state):
        signal.raise_signal(signal.SIGINT)

    model.run(None, Checkpoint(tmp_path), None, interrupt, False)
    for other in ({"kind": "dirac"}, {"padding": 1}, {"diameter": 40.0}, {"batch": 8}, {"rate": 0.5}):
        with pytest.raises(ValueError, match="another job"):
            options = {"epochs": 4, "batch": 16, "rng": 5, "progress": False} | other
            VoxelPosterior.fit(stack, **options, checkpoint=tmp_path)


def test_not_a_number_ends_the_fit_at_the_last_good_state(particles, tmp_path):
    stack = particles[0][:600]
    images = np.concatenate([stack.images, stack.images[:200]])
    poses = Poses(np.concatenate([stack.poses.matrices, stack.poses.matrices[:200]]))
    whole = ParticleStack(images, 4.0, poses)

    class Images:  # sound until the fit reads one of them
        shape, dtype = images.shape, images.dtype
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            return images[index] * (np.nan if self.reads > 9 else 1)

    with pytest.raises(NonFiniteError, match="last finite state") as caught:
        VoxelPosterior.fit(
            dataclasses.replace(whole, images=Images()), batch=32, rng=0, checkpoint=tmp_path, progress=False
        )
    state = caught.value.result.state
    assert state.iteration > 2 and np.isfinite(state.x).all() and str(tmp_path) in str(caught.value)
    with np.load(tmp_path / "unfinished.npz") as file:
        np.testing.assert_array_equal(file["x"], state.x)
        assert file["iteration"] == state.iteration


def test_wrong_input_is_explained(particles):
    stack = particles[0]
    for options, text in (
        ({"batch": 1000}, "a batch of 1000 images cannot be drawn from 400"),
        ({"kind": "cauchy"}, "unknown posterior"),
        ({"noise": -1.0}, "noise must be"),
        ({"prior": np.ones(3)}, "prior must be"),
        ({"padding": 0}, "padding"),
        ({"padding": 1, "diameter": 20.0}, "padding of 2"),
        ({"diameter": -3.0}, "diameter must be positive"),
        ({"epochs": -1}, "negative"),
        ({"start": "zero"}, "unknown start"),
        ({"start": np.zeros((3, 3, 3))}, "a start is a finite map"),
    ):
        with pytest.raises(ValueError, match=text):
            VoxelPosterior.fit(stack, progress=False, **options)
    with pytest.raises(ValueError, match="no poses"):
        VoxelPosterior.fit(dataclasses.replace(stack, poses=None))
    with pytest.raises(ValueError, match="zero everywhere"):
        VoxelPosterior.fit(dataclasses.replace(stack, images=np.zeros(stack.images.shape, "f4")))
    bad = np.array(stack.images)
    bad[7, 3, 3] = np.nan
    with pytest.raises(ValueError, match="images 7 hold NaN"):
        VoxelPosterior.fit(dataclasses.replace(stack, images=bad))
    dirac = VoxelPosterior.fit(stack[:32], kind="dirac", epochs=1, progress=False)
    with pytest.raises(ValueError, match="Dirac"):
        dirac.ss_snr()


# --- poses ---------------------------------------------------------------------------------------------------------


def test_descent_in_poses_ends_at_the_true_ones(particles):
    """From three degrees away; and the surface has its least value at the truth."""
    stack, truth = particles
    stack = stack[:20]
    errors = PoseErrors(truth, stack)
    angles = np.stack(stack.poses.euler_deg(), 1)
    off = angles + np.random.default_rng(1).uniform(-3, 3, angles.shape)
    starts = Poses(matrix_from_euler(*off.T), stack.poses.shifts)
    clean = dataclasses.replace(stack, images=simulate_particles_clean(stack, truth))
    found = PoseErrors(truth, clean).descend(starts, steps=150, progress=False)
    distance = np.degrees(geodesic_distance(found.poses.matrices, stack.poses.matrices))
    assert (found.errors < found.start_errors).all() and np.median(distance) < 0.5
    assert found.path.shape[1:] == (20, 3)
    rot, tilt, _ = (float(a[0]) for a in stack.poses[4].euler_deg())
    grid = np.radians(np.linspace(-20, 20, 9))
    surface = PoseErrors(truth, clean).surface(4, np.radians(rot) + grid, np.radians(tilt) + grid)
    assert surface.shape == (9, 9) and np.unravel_index(surface.argmin(), (9, 9)) == (4, 4)
    assert errors.errors(stack.poses.matrices).shape == (20,)
    with pytest.raises(ValueError, match="as many starts"):
        errors.descend(starts[:3])
    with pytest.raises(ValueError, match="images need"):
        PoseErrors(truth[1:], stack)


def test_noise_puts_best_poses_off_by_their_bound(particles):
    """Of 200 images of one pose: mean square angle from the truth, and the gain in likelihood, half of 3 parameters."""
    stack, truth = particles
    stack = stack[np.full(200, 3)]
    clean = 8 * simulate_particles_clean(stack, truth).astype(np.float64)
    noisy = clean + np.random.default_rng(3).standard_normal(clean.shape)
    errors = PoseErrors(8 * truth.astype(np.float64), dataclasses.replace(stack, images=noisy))
    found = errors.descend(steps=60, rate=0.005, progress=False)
    off = np.degrees(geodesic_distance(found.poses.matrices, stack.poses.matrices))
    bound = errors.bound(stack.poses.matrices)
    assert np.ptp(bound) < 1e-6 * bound[0]
    # the standard deviations of both are some 5 %
    assert np.sqrt((off**2).mean()) == pytest.approx(bound[0], rel=0.15)
    assert (found.start_errors - found.errors).mean() == pytest.approx(1.5, rel=0.2)


def simulate_particles_clean(stack, truth):
    """The images of a stack without noise, by the toolbox's own projector."""
    from invcryo.operators import ImageFilter, Projector
    from invcryo.window import BandLimited

    images = Projector(stack.poses, BandLimited(), truth.shape, stack.box)(truth)
    return ImageFilter.from_ctf(stack.ctf, stack.box, stack.pixel_size)(images)
