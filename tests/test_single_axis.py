"""The separable projector of tilt series against the two projectors that know nothing of a tilt axis."""

import numpy as np
import pytest

from invcryo import kernels
from invcryo.backend import norm, use
from invcryo.operators import (
    Diagonal,
    Mask,
    Projector,
    RealSpaceProjector,
    SingleAxisProjector,
    Toeplitz,
)
from invcryo.operators.single_axis import tilt_poses
from invcryo.rotation import matrix_from_euler
from invcryo.testing import check_gram
from invcryo.window import BandLimited, KaiserBessel

ANGLES = np.array([-1.2, 0.0, 0.3, 0.9, np.pi])
TOLERANCE = {np.float32: 1e-4, np.float64: 1e-12}


@pytest.mark.parametrize(
    "axis, volume, image, scale",
    [
        ("y", (7, 8, 6), None, 1.0),
        ("y", (30, 38, 33), (41, 36), 1.0),  # taller than the volume
        ("y", (9, 8, 10), (5, 4), 1.0),  # smaller: what overlaps is folded
        ("y", (8, 7, 9), (12, 13), 1.7),
        ("x", (7, 8, 6), None, 1.0),
        ("x", (40, 33, 38), None, 1.0),
        ("x", (8, 9, 7), (9, 6), 1.0),
        ("x", (8, 9, 7), None, 1.3),
        ("z", (7, 8, 6), None, 1.0),
        ("z", (38, 40, 33), None, 1.0),
        ("z", (8, 6, 9), (5, 7), 1.2),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f4", "f8"])
def test_equals_the_projector(axis, volume, image, scale, dtype, rng):
    """Images, adjoint and kernel, every pixel of them; sizes odd, even and unequal, shifts in both directions."""
    window = BandLimited() if scale == 1.3 else KaiserBessel()
    options = {"scale": scale, "dtype": dtype}
    A = SingleAxisProjector(
        ANGLES, window, volume, image, axis=axis, shifts=rng.uniform(-2, 2, (5, 2)), **options
    )
    P = Projector(A.poses, window, volume, A.image_shape, **options)
    assert A.separable
    x, y = (rng.standard_normal(s).astype(dtype) for s in (A.ishape, A.oshape))
    assert norm(A(x) - P(x)) <= TOLERANCE[dtype] * norm(P(x))
    assert norm(A.H(y) - P.H(y)) <= TOLERANCE[dtype] * norm(P.H(y))
    ours, theirs = A.gram(), P.gram()
    assert isinstance(ours, Toeplitz) and check_gram(A, x=x) <= TOLERANCE[dtype]
    assert norm(ours(x) - theirs(x)) <= 2 * TOLERANCE[dtype] * norm(theirs(x))
    assert np.abs(ours.kernel - A.slice_kernel()).max() <= 2 * TOLERANCE[dtype] * np.abs(ours.kernel).max()
    np.testing.assert_allclose(
        ours.nearest_circulant(),
        theirs.nearest_circulant(),
        atol=5 * TOLERANCE[dtype] * theirs.nearest_circulant().max(),
    )


def test_equals_the_sum_of_footprints(rng):
    """The real-space twin, on a smooth object inside the images: up to what the window folds above Nyquist."""
    window, shape = KaiserBessel.wide(), (20, 28, 28)
    mesh = np.meshgrid(*(np.arange(n) - n // 2 for n in shape), indexing="ij")
    x = np.exp(-sum((m - c) ** 2 for m, c in zip(mesh, (1, -2, 3), strict=True)) / 6.0)
    A = SingleAxisProjector(ANGLES, window, shape, shifts=rng.uniform(-1, 1, (5, 2)), dtype=np.float64)
    twin = RealSpaceProjector(A.poses, window, shape, A.image_shape, dtype=np.float64)
    assert norm(A(x) - twin(x)) <= 1e-5 * norm(twin(x))


def test_axes_are_where_their_names_say():
    """A point off the axis moves across it alone; poses about y and x are RELION's."""
    degrees = np.rad2deg(ANGLES)
    np.testing.assert_allclose(
        tilt_poses(ANGLES).matrices, matrix_from_euler(0 * degrees, degrees, 0 * degrees), atol=1e-15
    )
    ninety = np.full(5, 90.0)
    np.testing.assert_allclose(
        tilt_poses(ANGLES, axis="x").matrices, matrix_from_euler(ninety, degrees, -ninety), atol=1e-15
    )
    for axis, along in (("y", (1, 4.0)), ("x", (0, 3.0)), ("z", (1, 5.0))):
        seen = tilt_poses(ANGLES, axis=axis).matrices @ np.array([3.0, 4.0, 5.0])
        np.testing.assert_allclose(seen[:, along[0]], along[1])
        assert np.ptp(seen[:, 1 - along[0]]) > 1
    turned = tilt_poses(ANGLES, in_plane_angle=np.pi / 2).matrices @ np.array([0.0, 1.0, 0.0])
    np.testing.assert_allclose(turned[:, :2], [[-1.0, 0.0]] * 5, atol=1e-15)


def test_turned_images_are_the_projectors(rng):
    """With an in-plane angle nothing is separable, and nothing is approximated either."""
    A = SingleAxisProjector(ANGLES, KaiserBessel(), (7, 8, 6), (9, 10), in_plane_angle=0.1, dtype=np.float64)
    P = Projector(A.poses, KaiserBessel(), (7, 8, 6), (9, 10), dtype=np.float64)
    x = rng.standard_normal(A.ishape)
    assert not A.separable
    np.testing.assert_array_equal(A(x), P(x))
    np.testing.assert_array_equal(A.H(A(x)), P.H(P(x)))
    straight = SingleAxisProjector(ANGLES, KaiserBessel(), (8, 8, 8), dtype=np.float64)
    assert straight.separable and not straight.rotated(matrix_from_euler(10, 20, 30)).separable


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f4", "f8"])
def test_same_bits_on_any_number_of_threads(dtype, rng):
    A = SingleAxisProjector(np.linspace(-1, 1, 40), KaiserBessel(), (20, 70, 72), dtype=dtype)
    x, y = (rng.standard_normal(s).astype(dtype) for s in (A.ishape, A.oshape))
    results = []
    for threads in (1, 2):
        with use(threads=threads):
            results.append((A(x), A.H(y), A.gram().kernel))
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)


def test_lines_are_the_sums_they_say(rng):
    """The loops against the sum over all cells of the grid, wrapped round both its ends."""
    from invcryo.operators.nufft import _kaiser_bessel, _polynomials, spreading

    dtype, fine, planes = np.dtype(np.float64), (36, 40), 16
    lines, frequencies = rng.uniform(-1, 1, (2, 2)), rng.uniform(-0.5, 0.5, 3)
    kernel = spreading(dtype)
    points = kernels.TiltedLines(lines, frequencies, fine, _polynomials(kernel))
    grid = rng.standard_normal((*fine, planes)) + 1j * rng.standard_normal((*fine, planes))
    transfer, across = rng.random((3, 7)), np.exp(1j * rng.random((2, 3)))
    along = np.exp(1j * rng.random((2, 7)))
    width = kernel.width
    matrix = np.zeros((2, 3, *fine))
    for p in range(2):
        for r in range(3):
            weights = []
            for axis in range(2):
                u = np.arange(fine[axis]) - fine[axis] * (lines[p, axis] * frequencies[r] % 1.0)
                u = (u + fine[axis] / 2) % fine[axis] - fine[axis] / 2
                weights.append(np.where(np.abs(u) <= width / 2, _kaiser_bessel(2 * u / width, kernel), 0))
            matrix[p, r] = np.outer(*weights)
    factors = transfer * across[:, :, None] * along[:, None]
    out = np.empty((2, 3, 7), complex)
    points.take(grid.view(float), transfer, across, along, out)
    np.testing.assert_allclose(out, factors * np.einsum("przx,zxk->prk", matrix, grid[..., :7]), atol=1e-12)
    values = rng.standard_normal((2, 3, 7)) + 1j
    back = np.zeros_like(grid)
    points.put(values, transfer, across, along, back.view(float))
    expected = np.einsum("przx,prk->zxk", matrix, factors.conj() * values)
    np.testing.assert_allclose(back[..., :7], expected, atol=1e-12)
    assert not back[..., 7:].any()
    real = np.zeros((*fine, 32))
    points.put_strengths(transfer, np.array([2.0, 0.5]), real)
    expected = np.einsum("przx,rk,p->zxk", matrix, transfer, [2.0, 0.5])
    np.testing.assert_allclose(real[..., :7], expected, atol=1e-12)


@pytest.mark.parametrize(
    "axis, volume, image", [("y", (8, 9, 10), None), ("x", (8, 9, 10), (5, 6)), ("z", (8, 9, 10), (12, 13))]
)
def test_gram_with_a_mask(axis, volume, image, rng):
    """``H^H S H`` and the convolution next to it: exact where every image has one weight."""
    A = SingleAxisProjector([-0.5, 0.1, 0.9], KaiserBessel(), volume, image, axis=axis, dtype=np.float64)
    mask = rng.random(A.oshape) < 0.3
    x = rng.standard_normal(volume)
    assert check_gram(A, Mask(mask, np.float64), x=x) < 1e-13
    Q = (Mask(mask, np.float64) @ A).gram()
    mean = A.mean_gram(Mask(mask, np.float64))
    np.testing.assert_array_equal(Q.nearest_circulant(), mean.nearest_circulant())
    share = Diagonal(np.broadcast_to(mask.mean(axis=(1, 2))[:, None, None], A.oshape).copy())
    assert norm(mean(x) - A.gram(share)(x)) < 1e-12 * norm(mean(x))
    # on average over masks the two are one
    total = sum(A.gram(Mask(rng.random(A.oshape) < 0.3, np.float64))(x) for _ in range(400)) / 400
    expected = 0.3 * A.gram()(x)
    assert norm(total - expected) < 0.1 * norm(expected)
    assert A.gram(-1.0 * Mask(mask, np.float64)).nearest_circulant().max() <= 0
    signed = Diagonal(np.where(mask, 1.0, -1.0))
    assert A.gram(signed).nearest_circulant() is None


def test_measured_pixels_from_the_data():
    data = np.ones((2, 3, 4), np.float32)
    data[0, 1, 2] = np.nan
    S = Mask.measured(data)
    assert S.diagonal.sum() == 23 and S.diagonal[0, 1, 2] == 0
