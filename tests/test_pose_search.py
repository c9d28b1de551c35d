"""Global search: the grid covers, its scores are those of the projector, and poses are found again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from invcryo.data import Poses
from invcryo.operators import ImageFilter, Projector
from invcryo.operators.nufft import GridReader
from invcryo.poses import Candidates, global_search, rotation_grid
from invcryo.poses.fit import PoseFit
from invcryo.poses.search import _shift_grid, _Templates
from invcryo.rotation import geodesic_distance, random_rotations
from invcryo.simulate import random_ctf
from invcryo.symmetry import point_group, symmetrise
from invcryo.window import BandLimited, KaiserBessel

BOX = 32


def molecule(box=BOX, seed=3, atoms=60):
    """Gaussians of many weights in a ball of 0.35 sides: nothing near to a symmetry."""
    rng = np.random.default_rng(seed)
    places = rng.standard_normal((atoms, 3))
    places *= 0.35 * box * rng.uniform(0, 1, (atoms, 1)) ** (1 / 3) / np.linalg.norm(places, axis=1)[:, None]
    grid = np.arange(box) - box // 2
    z, y, x = (np.exp(-((grid[None] - c[:, None]) ** 2) / (2 * 1.2**2)) for c in places.T)
    return np.einsum("a,az,ay,ax->zyx", rng.uniform(0, 2, atoms), z, y, x, optimize=True).astype(np.float32)


def ctfs(n, rng):
    return random_ctf(n, (6e3, 1.5e4), astigmatism_angstrom=1500, rng=rng)


def views(volume, poses, snr=np.inf, filters=None, rng=None, window=None):
    images = Projector(poses, window or BandLimited(), volume.shape)(volume)
    images = images if filters is None else filters(images)
    noise = np.sqrt(np.mean(images**2) / snr)
    return images if noise == 0 else images + (noise * rng.standard_normal(images.shape)).astype(np.float32)


def degrees(found, true, group="C1"):
    """From each candidate (n, k) to the nearest copy of the truth."""
    copies = true[:, None, None] @ point_group(group)
    return np.rad2deg(geodesic_distance(found[:, :, None], copies)).min(axis=2)


# -- the grid -----------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(step=st.floats(5, 40), name=st.sampled_from(["C1", "C4", "D2", "D7", "T", "O", "I"]))
def test_covering_radius(step, name):
    """No rotation is further from the grid than it says, symmetric copies counted; and it is nearly as far."""
    grid = rotation_grid(step, name)
    rotations = random_rotations(300, rng=1)
    copies = point_group(name)
    poses = grid.matrices(*np.indices((len(grid.views), grid.turns)))
    trace = np.full(len(rotations), -1.0)
    for g in copies:
        trace = np.maximum(trace, (rotations.reshape(-1, 9) @ (poses @ g).reshape(-1, 9).T).max(axis=1))
    far = np.rad2deg(np.arccos(np.clip((trace.min() - 1) / 2, -1, 1)))
    assert far <= grid.covering_deg * (1 + 1e-9)
    assert name != "C1" or far > 0.5 * grid.covering_deg
    assert grid.covering_deg < 0.95 * step + 1
    assert len(grid) == len(grid.views) * grid.turns and grid.turns % 4 == 0


def test_grid_is_uniform_and_reduced_by_symmetry():
    whole = rotation_grid(6)
    directions = whole.views[:, 2]
    np.testing.assert_allclose(directions.T @ directions / len(directions), np.eye(3) / 3, atol=2e-3)
    for name in ("C4", "D7", "O"):
        share = len(rotation_grid(6, name).views) / len(whole.views) * len(point_group(name))
        assert 1 <= share < 2.5  # the border that keeps the covering
    # every pose is a rotation whose turn is in the plane of the image
    pose = whole.matrices(17, 5)
    np.testing.assert_allclose(pose @ pose.T, np.eye(3), atol=1e-12)
    c, t = np.cos(whole.angles[5]), np.sin(whole.angles[5])
    np.testing.assert_allclose(pose, [[c, -t, 0], [t, c, 0], [0, 0, 1]] @ whole.views[17], atol=1e-12)


@pytest.mark.parametrize("radius,step", [(0, 2), (5, 2), (3, 1.1), (1, 4)])
def test_shift_grid_covers(radius, step, rng):
    grid = _shift_grid(radius, step)
    angle, r = rng.uniform(0, 2 * np.pi, 500), radius * np.sqrt(rng.uniform(0, 1, 500))
    points = np.stack([r * np.cos(angle), r * np.sin(angle)], axis=1)
    gap = np.linalg.norm(points[:, None] - grid[None], axis=2).min(axis=1)
    assert gap.max() <= step and (grid == 0).all(axis=1).any()


# -- scores against the projector ---------------------------------------------------------------------------


@pytest.mark.parametrize("with_ctf", [False, True])
def test_grid_scores_are_those_of_the_projector(with_ctf, rng):
    """Every pose of the grid and every shift, by projecting the map: the slow twin of harmonics and turns."""
    volume, band, n = molecule(), 7.0, 2
    filters = ImageFilter.from_ctf(ctfs(n, rng), BOX, 3.0) if with_ctf else None
    true = Poses(random_rotations(n, rng=rng), rng.uniform(-2, 2, (n, 2)))
    images = views(volume, true, 1.0, filters, rng)
    grid, shifts = rotation_grid(30), _shift_grid(3, 2)
    reader = GridReader(volume)
    fit = PoseFit(reader, images, window=BandLimited(), filters=filters, cutoff=2 * band / BOX)
    templates = _Templates(reader, grid, fit, BOX, 1.0, 2.0)
    templates.trust[:] = 1
    picked, places = templates.search(fit, shifts, 2)

    d, j, s = np.indices((len(grid.views), grid.turns, len(shifts))).reshape(3, -1)
    poses = Poses(grid.matrices(d, j), shifts[s])
    clean = Projector(poses, BandLimited(), BOX, cutoff=2 * band / BOX)(volume).astype(float)
    brute = np.empty((n, len(d)))
    for p in range(n):
        seen = clean
        if with_ctf:
            response = filters.rows([p]).values(slice(0, 1))
            seen = np.fft.irfft2(np.fft.rfft2(clean) * response, s=(BOX, BOX), axes=(1, 2))
        kept = Projector(poses[:1], BandLimited(), BOX, cutoff=2 * band / BOX)
        inside = np.fft.rfft2(images[p].astype(float)) * (np.abs(np.fft.rfft2(delta_image(kept))) > 1e-6)
        image = np.fft.irfft2(inside, s=(BOX, BOX))
        overlap = np.einsum("kij,ij->k", seen, image)
        brute[p] = overlap / np.linalg.norm(seen, axis=(1, 2)) / np.linalg.norm(image)
    for p in range(n):
        ours = exact_scores(fit, picked[p], places[p], p)
        # the best of all places, within what the interpolation between rings leaves
        assert ours[0] > brute[p].max() - 0.03
        best = brute[p].argmax()
        assert degrees(picked[p : p + 1], poses.matrices[best : best + 1])[0].min() < 1e-3
        np.testing.assert_allclose(
            exact_scores(fit, poses.matrices[best : best + 1], poses.shifts[best : best + 1], p),
            brute[p, best],
            atol=2e-4,
        )
        # the starts are in order, and apart
        assert ours[0] >= ours.max() - 0.03


def delta_image(projector):
    """Non-zero in Fourier space exactly where the projector is."""
    point = np.zeros(projector.ishape, np.float32)
    point[tuple(n // 2 for n in projector.ishape)] = 1
    return projector(point)[0].astype(float)


def exact_scores(fit, matrices, shifts, image):
    overlap, power = fit.overlaps(matrices, shifts, np.full(len(matrices), image))
    return overlap / np.sqrt(power * fit.energy[image])


def test_every_score_on_the_grid(rng):
    """The table itself, not just its maxima: within 2 % of the exact scores at all places."""
    from invcryo import kernels

    volume, band = molecule(), 9.0
    true = Poses(random_rotations(1, rng=rng))
    images = views(volume, true, 2.0, None, rng)
    reader, grid = GridReader(volume), rotation_grid(45)
    fit = PoseFit(reader, images, window=BandLimited(), cutoff=2 * band / BOX)
    templates = _Templates(reader, grid, fit, BOX, 1.0, 2.0)
    shift = np.array([[1.3, -0.7]])
    phases = np.exp(1j * shift @ templates.frequencies).astype(np.complex64)
    x = kernels.ring_harmonics(
        fit.data, phases, templates.turn_real, templates.turn_imag, templates.start, templates.stencil,
        templates.real.shape[1],
    )  # fmt: skip
    table, where = kernels.best_turns(
        (templates.real, templates.imag), x, templates.first, templates.cosine, templates.sine, grid.turns
    )
    d, j = np.indices((len(grid.views), grid.turns)).reshape(2, -1)
    overlap, power = fit.overlaps(grid.matrices(d, j), np.repeat(shift, len(d), 0), np.zeros(len(d), int))
    scale = np.sqrt(power * fit.energy[0])
    np.testing.assert_allclose(table[0, j, d] / scale, overlap / scale, atol=0.02)
    assert (where == 0).all()


# -- poses found again --------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_ctf", [False, True])
@pytest.mark.parametrize("snr", [np.inf, 1.0])
def test_poses_are_found(snr, with_ctf, rng):
    """To the tolerance of the last climb without noise, and as well as the noise allows with it."""
    n, volume = 40, molecule()
    filters = ImageFilter.from_ctf(ctfs(n, rng), BOX, 3.0) if with_ctf else None
    angle, r = rng.uniform(0, 2 * np.pi, n), 5 * np.sqrt(rng.uniform(0, 1, n))
    true = Poses(random_rotations(n, rng=rng), np.stack([r * np.cos(angle), r * np.sin(angle)], 1))
    images = views(volume, true, snr, filters, rng)
    found = global_search(
        volume, images, window=BandLimited(), filters=filters, band=10, grid=12, progress=False
    )
    off = degrees(found.rotations, true.matrices)
    limit, place = 0.1, 0.1  # steps shorter than 1e-3 rad and 0.01 pixels end a climb
    if snr < np.inf:  # Cramer-Rao, in the band; the median of 40 varies by 3 x 1.25 x 0.42 / sqrt(40) = 1/4
        clean = views(volume, true, filters=filters)
        weight = 1 / np.var(images - clean)
        fit = PoseFit(
            volume, images, window=BandLimited(), filters=filters, weights=[weight], cutoff=20 / BOX
        )
        root = np.linalg.cholesky(np.linalg.inv(fit.derivatives(true).hessian))
        drawn = np.einsum("kij,skj->ski", root, rng.standard_normal((100, n, 5)))
        limit = 1.25 * np.median(np.rad2deg(np.linalg.norm(drawn[..., :3], axis=-1)))
        place = np.linalg.norm(drawn[..., 3:], axis=-1).max()
    right = off[:, 0] < 5 * limit  # beyond is another maximum
    assert right.mean() >= 0.95 and np.median(off[:, 0]) < limit
    assert np.linalg.norm(found.shifts[right, 0] - true.shifts[right], axis=1).max() < place
    assert (found.scores[:, 1:] <= found.scores[:, :-1]).all() and found.scores.max() <= 1 + 1e-5
    if snr == np.inf:
        assert found.scores[right, 0].min() > 0.999
    # candidates of one particle are different poses
    first, second = found.rotations[:, 0], found.rotations[:, 1]
    real = np.isfinite(found.scores[:, 1])
    assert np.rad2deg(geodesic_distance(first, second))[real].min() > 15
    assert isinstance(found, Candidates) and len(found.poses(1)) == n and found.log_odds.shape == (n,)


def test_symmetric_map_and_its_copies(rng):
    """With D2 a quarter of the poses is searched, found up to a copy; copies are no second candidate."""
    volume = symmetrise(molecule(), "D2").astype(np.float32)
    true = Poses(random_rotations(20, rng=rng))
    images = views(volume, true, 8.0, None, rng)
    options = {"window": BandLimited(), "band": 10, "grid": 12, "max_shift": 1, "progress": False}
    found = global_search(volume, images, group="D2", **options)
    off = degrees(found.rotations, true.matrices, "D2")
    assert (off[:, 0] < 5).all() and off[:, 1][np.isfinite(found.scores[:, 1])].min() > 5
    plain = global_search(volume, images, keep=4, **options)
    assert (degrees(plain.rotations, true.matrices, "D2") < 5).sum(
        axis=1
    ).min() >= 3  # without it, copies compete
    assert np.median(plain.log_odds) < 1e-2 * np.median(found.log_odds)


def test_basis_scale_window_and_weights(rng):
    """Coefficients of a coarse grid of Kaiser-Bessel functions, weights by shell, batches of a lazy stack."""
    coarse = molecule(box=16, seed=5, atoms=12)
    true = Poses(random_rotations(12, rng=rng), rng.uniform(-2, 2, (12, 2)))
    images = Projector(true, KaiserBessel(), 16, 33, scale=2.0)(coarse)

    class Lazy:
        shape = images.shape

        def __getitem__(self, index):
            assert isinstance(index, slice)
            return images[index]

    weights = np.linspace(1, 0.2, 20)
    found = global_search(coarse, Lazy(), window=KaiserBessel(), weights=weights, band=6, grid=10, scale=2.0,
                          max_shift=3, progress=False)  # fmt: skip
    assert (degrees(found.rotations, true.matrices)[:, 0] < 1).all()
    assert found.energy.min() > 0


def test_pure_noise_is_told_by_scores_and_odds(rng):
    volume = molecule()
    true = Poses(random_rotations(20, rng=rng))
    real = views(volume, true, 1.0, None, rng)
    noise = rng.standard_normal(real.shape).astype(np.float32)
    options = {"window": BandLimited(), "band": 10, "grid": 15, "max_shift": 2, "progress": False}
    sd = 1 / np.var(real - views(volume, true))
    good = global_search(volume, real, weights=[sd], **options)
    bad = global_search(volume, noise, weights=[1.0], **options)
    assert np.median(bad.scores[:, 0]) < 0.6 * np.median(good.scores[:, 0])
    assert np.median(bad.log_odds) < 0.2 * np.median(good.log_odds)


def test_same_result_on_one_thread(rng):
    from invcryo import backend

    volume = molecule()
    images = views(volume, Poses(random_rotations(5, rng=rng)), 1.0, None, rng)
    results = []
    for threads in (1, 2):
        with backend.use(threads=threads):
            results.append(global_search(volume, images, band=8, grid=20, max_shift=1, progress=False))
    np.testing.assert_array_equal(results[0].rotations, results[1].rotations)
    np.testing.assert_array_equal(results[0].scores, results[1].scores)


def test_refused(rng):
    volume, images = molecule(), np.zeros((2, BOX, BOX), np.float32)
    for match, options in {
        "band": {"band": 17},
        "keep": {"keep": 9},
        "max_shift": {"max_shift": 16},
        "shift_step": {"shift_step": 0},
        "too many": {"shift_step": 0.01},
        "step of a grid": {"grid": 0.1},
    }.items():
        with pytest.raises(ValueError, match=match):
            global_search(volume, images, **{"band": 8, "progress": False} | options)
    assert len(global_search(volume, images[:0], band=8, grid=20, progress=False)) == 0
    dark = global_search(volume, images, band=8, grid=30, progress=False)
    assert np.isfinite(dark.rotations).all() and (dark.scores[:, 0] == 0).all()
    images[1, 3, 3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        global_search(volume, images, band=8, grid=30, progress=False)
