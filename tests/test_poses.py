"""The misfit as a function of the poses: three gradients that agree, and what uses them."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from invcryo.backend import use
from invcryo.ctf import CTF
from invcryo.data import Poses
from invcryo.grid import centred_coordinates
from invcryo.operators import ImageFilter, Projector
from invcryo.operators.nufft import GridReader
from invcryo.poses import PoseFit, footprint_cost, footprint_gradient, moved
from invcryo.rotation import matrix_from_euler, random_rotations
from invcryo.window import BandLimited, KaiserBessel

both_types = pytest.mark.parametrize("dtype", ["f4", "f8"])
# (coefficients, image, pixels per coefficient): sides of both parities, boxes that are not cubic, coarse bases
SIZES = [((12, 13, 14), (16, 16), 1.0), ((8, 8, 9), (17, 14), 1.7), ((9, 10, 9), (18, 21), 2.0)]
every_size = pytest.mark.parametrize(("shape", "image", "scale"), SIZES, ids=str)


def poses_of(n, rng, shift=2.0):
    """Uniform ones, and two that look along an axis of the grid."""
    matrices = random_rotations(n, rng=rng)
    matrices[0] = np.eye(3)
    matrices[1] = matrix_from_euler(0.0, 90.0, 45.0)
    return Poses(matrices, rng.uniform(-shift, shift, (n, 2)))


def problem(shape, image, scale, dtype, rng, n=4, ctf=True, **options):
    """A fit of noise to noise, and the same as operators."""
    c = rng.standard_normal(shape).astype(dtype)
    images = rng.standard_normal((n, *image)).astype(dtype)
    poses = poses_of(n, rng)
    model = Projector(poses, KaiserBessel(), shape, image, scale=scale, cutoff=2.0, dtype=dtype)
    filters = None
    if ctf:
        defocus = rng.uniform(5000, 9000, (2, n))
        optics = CTF(*defocus, rng.uniform(0, 3, n), 300.0, 2.7, 0.1)
        filters = ImageFilter.from_ctf(optics, image, 2.0, dtype=dtype)
        model = filters @ model
    fit = PoseFit(c, images, filters=filters, cutoff=2.0, scale=scale, **options)
    return c, images, poses, model, fit


def differences(f, poses, step):
    """Central differences of a function of poses in the five unknowns, (n, 5)."""
    columns = []
    for i in range(5):
        h = np.zeros((len(poses), 5))
        h[:, i] = step
        columns.append((f(moved(poses, h)) - f(moved(poses, -h))) / (2 * step))
    return np.stack(columns, axis=1)


def close(a, b, tolerance):
    return np.abs(a - b).max() <= tolerance * np.abs(b).max()


# -- the interpolant ------------------------------------------------------------------------------------------


@both_types
def test_slices_with_gradients(dtype, rng):
    """Against the sums that they stand for, in double precision, and against the values of the other loop."""
    c = rng.standard_normal((12, 17, 14)).astype(dtype)
    axes, w = poses_of(5, rng).matrices[:, :2], rng.uniform(-2, 2, (2, 40))
    reader = GridReader(c)
    values, gradients = reader.with_gradients(axes, w)
    assert close(values, reader.at(axes, w), {"f4": 1e-6, "f8": 1e-14}[dtype])
    q = np.einsum("jm,pjx->pmx", w, axes)
    k = [g.ravel() for g in reversed(centred_coordinates(c.shape))]
    waves = [np.exp(-1j * q[..., i, None] * k[i]) for i in range(3)]
    for i in range(3):
        steep = [(-1j * k[a] * e if a == i else e) for a, e in enumerate(waves)]
        exact = np.einsum("zyx,pmz,pmy,pmx->pm", c.astype(float), *steep[::-1], optimize=True)
        assert (
            np.abs(gradients[..., i] - exact).max() < {"f4": 3e-4, "f8": 1e-11}[dtype] * np.abs(exact).max()
        )


# -- the gradients --------------------------------------------------------------------------------------------


@both_types
@every_size
def test_the_cost_is_that_of_the_operators(shape, image, scale, dtype, rng):
    c, images, poses, model, _ = problem(shape, image, scale, dtype, rng)
    images = model(c) + model(rng.standard_normal(shape).astype(dtype))  # of the band that the fit sees
    amplitude = rng.uniform(0.5, 1.5, len(images))
    fit = PoseFit(c, images, filters=model.left, cutoff=2.0, scale=scale, amplitudes=amplitude)
    residual = amplitude[:, None, None] * model(c).astype(float) - images
    exact = 0.5 * (residual**2).sum(axis=(1, 2))
    assert np.allclose(fit.cost(poses), exact, rtol={"f4": 1e-4, "f8": 1e-11}[dtype])
    overlap, power = fit.overlaps(poses.matrices, poses.shifts, np.arange(len(poses)))
    assert np.allclose(power, (model(c).astype(float) ** 2).sum(axis=(1, 2)), rtol=1e-4)
    best = PoseFit(c, images, filters=model.left, cutoff=2.0, scale=scale, amplitudes=overlap / power)
    assert (best.cost(poses) <= fit.cost(poses) * (1 + 1e-6)).all()


@both_types
@every_size
@pytest.mark.parametrize("ctf", [False, True], ids=["plain", "ctf"])
def test_derivatives_equal_those_of_the_jacobian(shape, image, scale, ctf, dtype, rng):
    weights = rng.uniform(0.2, 2.0, 20)
    options = {"weights": weights, "amplitudes": rng.uniform(0.5, 1.5, 4)}
    _, _, poses, _, fit = problem(shape, image, scale, dtype, rng, ctf=ctf, **options)
    index = np.array([2, 0, 3, 3, 1, 0])
    many = poses[np.array([0, 1, 2, 3, 0, 2])]
    d = fit.derivatives(many, index)
    r, J = fit.residual_and_jacobian(many, index)
    tolerance = {"f4": 2e-6, "f8": 1e-13}[dtype]
    assert close(d.cost, 0.5 * (r**2).sum(axis=1), tolerance)
    assert close(d.gradient, np.einsum("kmi,km->ki", J, r), tolerance)
    assert close(d.hessian, np.einsum("kmi,kmj->kij", J, J), tolerance)
    assert close(fit.cost(many, index), d.cost, 1e-6 if dtype == "f4" else 1e-14)
    assert close(fit.residual(many, index), r, {"f4": 1e-5, "f8": 1e-13}[dtype])


@every_size
def test_gradient_against_differences(shape, image, scale, rng):
    """Of itself in float64: the derivative of an interpolant that consists of polynomials."""
    _, _, poses, _, fit = problem(shape, image, scale, "f8", rng, weights=rng.uniform(0.2, 2.0, 20))
    assert close(fit.gradient(poses), differences(fit.cost, poses, 1e-5), 1e-7)
    _, J = fit.residual_and_jacobian(poses)
    for i in range(5):
        h = np.zeros((len(poses), 5))
        h[:, i] = 1e-5
        slope = (fit.residual(moved(poses, h)) - fit.residual(moved(poses, -h))) / 2e-5
        assert close(J[..., i], slope, 1e-6)


@both_types
@every_size
def test_pose_vjp_against_differences(shape, image, scale, dtype, rng):
    """Of the images of the operators themselves."""
    c, _, poses, model, _ = problem(shape, image, scale, dtype, rng)
    g = rng.standard_normal(model.oshape).astype(dtype)
    for A in (model, model.right):

        def paired(poses, A=A):
            P = model.right.at(poses)
            images = (P if A is model.right else model.left @ P)(c)
            return (images.astype(float) * g).sum(axis=(1, 2))

        exact = differences(paired, poses, {"f4": 3e-3, "f8": 1e-5}[dtype])
        found = np.hstack(A.pose_vjp(c, g))
        assert found.dtype == np.float64 and close(found, exact, {"f4": 2e-3, "f8": 1e-7}[dtype])
    with pytest.raises(ValueError, match="cotangent"):
        model.pose_vjp(c, g[:-1])


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_the_published_gradient(scale, rng):
    """Theorem 3: against differences of its own cost, in both parametrisations, and against the slices."""
    n = 7
    c, window = rng.random((n, n, n)), KaiserBessel.wide()
    side = round(scale * 22) | 1
    angles, shift = rng.uniform(-2, 2, 3), rng.uniform(-1, 1, 2)
    matrix = matrix_from_euler(*angles, degrees=False)
    image = gaussian_filter(rng.standard_normal((side, side)), 0.8)
    options = {"window": window, "scale": scale}
    pose = Poses(matrix[None], shift[None])

    def cost(poses):
        return np.array([footprint_cost(c, image, poses.matrices[0], poses.shifts[0], **options)])

    found = footprint_gradient(c, image, matrix, shift, **options)
    assert close(found, differences(cost, pose, 1e-4)[0], 1e-6)

    h = 1e-5
    turns = np.stack(
        [
            matrix_from_euler(*(angles + h * e), degrees=False)
            - matrix_from_euler(*(angles - h * e), degrees=False)
            for e in np.eye(3)
        ]
    )[:, :2] / (2 * h)
    by_angles = footprint_gradient(c, image, matrix, shift, turns=turns, **options)
    exact = [
        (cost(Poses.from_euler_deg(*np.rad2deg(angles + 1e-4 * e), shift[None])) -
         cost(Poses.from_euler_deg(*np.rad2deg(angles - 1e-4 * e), shift[None])))[0] / 2e-4
        for e in np.eye(3)
    ]  # fmt: skip
    assert close(by_angles[:3], np.array(exact), 1e-6)
    assert np.array_equal(by_angles[3:], found[3:])

    # they differ by what the window, and the image, hold near the Nyquist frequency of the pixels
    fit = PoseFit(c, image[None], window=window, cutoff=2.0, scale=scale)
    assert close(fit.gradient(pose)[0], found, 1e-3)


# -- what else holds ------------------------------------------------------------------------------------------


@both_types
def test_same_bits_on_any_number_of_threads(dtype, rng):
    _, _, poses, _, fit = problem((20, 20, 20), (20, 20), 1.0, dtype, rng, n=40)
    results = []
    for n in (1, 2):
        with use(threads=n):
            d = fit.derivatives(poses)
            results.append((d.cost, d.gradient, d.hessian, fit.cost(poses)))
    for a, b in zip(*results, strict=True):
        assert np.array_equal(a, b)
    few = fit.derivatives(poses[np.array([7, 3])], np.array([7, 3]))
    assert np.array_equal(few.gradient, d.gradient[[7, 3]])


def test_only_the_band_is_evaluated(rng):
    """What lies beyond the cutoff changes nothing."""
    c, images, poses, model, _ = problem((16, 16, 16), (16, 16), 1.0, "f4", rng)
    fit = PoseFit(c, images, filters=model.left, cutoff=0.5)
    assert fit.radii.max() <= 0.25 * (1 + 1e-12) and fit.frequencies == len(fit.radii)
    assert fit.frequencies < 0.3 * PoseFit(c, images, filters=model.left).frequencies
    high = Projector(poses, BandLimited(), c.shape, cutoff=2.0)(c)
    high = high - Projector(poses, BandLimited(), c.shape, cutoff=0.5)(c)
    other = PoseFit(c, images + high, filters=model.left, cutoff=0.5)
    assert np.allclose(
        other.gradient(poses), fit.gradient(poses), rtol=1e-3, atol=1e-3 * np.abs(fit.gradient(poses)).max()
    )


def test_bad_input(rng):
    c, images, poses, model, fit = problem((12, 12, 12), (12, 12), 1.0, "f4", rng)
    with pytest.raises(ValueError, match="3 poses for 4 images"):
        fit.cost(poses[:3])
    with pytest.raises(IndexError):
        fit.cost(poses[:1], [4])
    with pytest.raises(ValueError, match="weights"):
        PoseFit(c, images, weights=[-1.0, 2.0])
    with pytest.raises(ValueError, match="filters"):
        PoseFit(c, images[:2], filters=model.left)
    images[2, 3, 4] = np.nan
    with pytest.raises(ValueError, match=r"image 2 .*NaN"):
        PoseFit(c, images)
