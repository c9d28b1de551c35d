"""Optimisers of poses: what they reach, what they keep to, and what they say of themselves."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from invcryo.data import Poses
from invcryo.grid import centred_coordinates
from invcryo.operators import Projector
from invcryo.poses import STATUS, PoseFit, gradient_descent, levenberg_marquardt, moved
from invcryo.rotation import geodesic_distance, random_rotations
from invcryo.window import KaiserBessel

N = 24


@pytest.fixture(scope="module")
def blobs():
    """An object without symmetry, well inside the box."""
    rng = np.random.default_rng(5)
    out = np.zeros((N, N, N))
    for _ in range(9):
        centre = rng.uniform(-6, 6, 3)
        square = sum((x - m) ** 2 for x, m in zip(centred_coordinates(out.shape), centre, strict=True))
        out += rng.uniform(0.5, 1.0) * np.exp(-0.5 * square / 1.5**2)
    return out.astype(np.float32)


def views(blobs, rng, n=20, noise=0.0, angle=0.1, shift=1.0):
    """Images, their poses, and poses that are off."""
    truth = Poses(random_rotations(n, rng=rng), rng.uniform(-1, 1, (n, 2)))
    images = Projector(truth, KaiserBessel(), blobs.shape)(blobs)
    images = images + noise * rng.standard_normal(images.shape).astype(np.float32)
    off = np.hstack([rng.uniform(-angle, angle, (n, 3)), rng.uniform(-shift, shift, (n, 2))])
    return images, truth, moved(truth, off)


def errors(poses, truth):
    return geodesic_distance(poses.matrices, truth.matrices), np.linalg.norm(
        poses.shifts - truth.shifts, axis=1
    )


def test_levenberg_marquardt_finds_the_poses(blobs, rng):
    images, truth, start = views(blobs, rng)
    fit = PoseFit(blobs, images)
    found = levenberg_marquardt(fit, start, angle_tolerance=1e-5, shift_tolerance=1e-4, max_iter=30)
    assert found.converged.all() and found.counts["converged"] == len(images)
    angle, shift = errors(found.poses, truth)
    assert angle.max() < 2e-4 and shift.max() < 1e-3  # the errors of single precision
    assert (found.cost <= found.start_cost).all() and np.allclose(
        found.cost, fit.cost(found.poses), rtol=1e-3, atol=1e-3
    )
    assert np.allclose(found.angles, errors(found.poses, start)[0], atol=1e-8)


def test_particles_do_not_know_of_each_other(blobs, rng):
    images, _, start = views(blobs, rng, noise=1.0)
    fit = PoseFit(blobs, images)
    together = levenberg_marquardt(fit, start)
    few = np.array([7, 3, 11])
    alone = levenberg_marquardt(fit, start[few], index=few)
    assert np.allclose(alone.poses.matrices, together.poses.matrices[few], atol=1e-12)
    assert np.array_equal(alone.status, together.status[few])


def test_noise_gives_the_errors_that_the_matrix_says(blobs, rng):
    """The inverse of J^T W J is the covariance of the estimates."""
    sigma = 2.0
    images, truth, start = views(blobs, rng, n=60, noise=sigma, angle=0.05, shift=0.5)
    fit = PoseFit(blobs, images, weights=[1 / sigma**2])
    found = levenberg_marquardt(fit, start, angle_tolerance=1e-4)
    turn = Rotation.from_matrix(truth.matrices @ found.poses.matrices.transpose(0, 2, 1)).as_rotvec()
    step = np.hstack([turn, truth.shifts - found.poses.shifts])
    hessian = fit.derivatives(truth).hessian
    chi = np.einsum("ki,kij,kj->k", step, hessian, step)  # chi-square of 5 degrees of freedom
    assert abs(chi.mean() - 5) < 4 * np.sqrt(10 / 60)


def test_a_prior_holds_back(blobs, rng):
    images, _truth, start = views(blobs, rng)
    fit = PoseFit(blobs, images)
    free = levenberg_marquardt(fit, start)
    held = levenberg_marquardt(fit, start, prior_angle=1e-6, prior_shift=1e-6)
    some = levenberg_marquardt(fit, start, prior_angle=1e-3, prior_shift=1e-3)
    assert held.angles.max() < 1e-4 and held.shifts.max() < 1e-4
    assert (some.angles < free.angles + 1e-9).all() and (some.angles > held.angles).all()
    # the minimum of the cost with the prior: its gradient vanishes there
    exact = levenberg_marquardt(
        fit, start, prior_angle=0.02, prior_shift=0.3, angle_tolerance=1e-6, shift_tolerance=1e-5, max_iter=60
    )
    step = np.zeros((len(images), 5))
    for i in range(5):
        step[:] = 0
        step[:, i] = 1e-3

        def cost(poses):
            angle, shift = errors(poses, start)
            return fit.cost(poses) + 0.5 * (angle / 0.02) ** 2 + 0.5 * (shift / 0.3) ** 2

        up, down = cost(moved(exact.poses, step)), cost(moved(exact.poses, -step))
        assert (np.minimum(up, down) > exact.cost - 1e-4 * exact.start_cost).all()


def test_bounds_are_kept_and_told(blobs, rng):
    images, _, start = views(blobs, rng, angle=0.15, shift=1.5)
    fit = PoseFit(blobs, images)
    free = levenberg_marquardt(fit, start)
    found = levenberg_marquardt(fit, start, max_angle=0.05, max_shift=0.4, max_iter=40)
    assert found.angles.max() < 0.05 * (1 + 1e-6) and found.shifts.max() < 0.4 * (1 + 1e-6)
    outside = (free.angles > 0.06) | (free.shifts > 0.5)
    assert outside.sum() > 5 and found.at_bound[outside & (found.status != 0)].all()
    assert (found.cost <= found.start_cost).all()


def test_the_best_amplitude_makes_the_scale_of_the_map_irrelevant(blobs, rng):
    images, truth, start = views(blobs, rng)
    wrong = levenberg_marquardt(PoseFit(10 * blobs, images), start)
    right = levenberg_marquardt(PoseFit(10 * blobs, images), start, free_amplitude=True)
    assert np.median(errors(right.poses, truth)[0]) < 1e-3
    assert np.median(errors(wrong.poses, truth)[0]) > 1e-2
    assert np.allclose(right.overlap / right.power, 0.1, rtol=1e-3)


def test_published_gradient_descent(blobs, rng):
    """It descends, at the settings for units like these, more slowly by far."""
    images, truth, start = views(blobs, rng, n=8)
    fit = PoseFit(blobs, images)
    curvature = np.median(np.einsum("kii->ki", fit.derivatives(start).hessian), axis=0)
    options = {"rotation_step": 4 / curvature[:3].mean(), "shift_step": 4 / curvature[3:].mean()}
    costs = [fit.cost(start)]
    for steps in (1, 3, 10):
        found = gradient_descent(fit, start, steps=steps, **options)
        assert (found.cost <= costs[-1] * (1 + 1e-9)).all() and np.allclose(
            found.cost, fit.cost(found.poses), rtol=1e-5
        )
        costs.append(found.cost)
    assert (costs[-1] < 0.2 * costs[0]).all()
    newton = levenberg_marquardt(fit, start)
    assert np.median(errors(newton.poses, truth)[0]) < 0.2 * np.median(errors(found.poses, truth)[0])
    assert newton.iterations.mean() < 0.5 * found.iterations.mean()
    # a step that is far too long is shortened
    wild = gradient_descent(fit, start, steps=1, rotation_step=1e3, shift_step=1e3)
    assert (wild.cost < wild.start_cost).all()


def test_flags(blobs, rng):
    """Of what cannot be known, and of what was cut short."""
    images, _, start = views(blobs, rng, n=6)
    assert levenberg_marquardt(PoseFit(blobs, images), start, max_iter=1).counts["unfinished"] == 6
    z, y, x = centred_coordinates(blobs.shape)
    ball = np.exp(-0.5 * (x**2 + y**2 + z**2) / 9.0).astype(np.float32)
    images = Projector(start, KaiserBessel(), blobs.shape)(ball)
    empty = levenberg_marquardt(PoseFit(np.zeros_like(ball), images), start)
    assert empty.no_information.all() and np.isfinite(empty.poses.matrices).all()
    noisy = images + rng.standard_normal(images.shape).astype(np.float32)
    round_ = levenberg_marquardt(PoseFit(ball, noisy, weights=[1.0]), start, information=1.0)
    assert round_.no_information.all()
    assert not levenberg_marquardt(
        PoseFit(blobs, images, weights=[1.0]), start, information=1.0
    ).no_information.any()
    assert len(STATUS) == len(empty.counts)
    nobody = levenberg_marquardt(PoseFit(blobs, images), start[:0], index=[])
    assert len(nobody.poses) == 0
    with pytest.raises(ValueError, match="5 poses for 6 images"):
        levenberg_marquardt(PoseFit(blobs, images), start[:5])
