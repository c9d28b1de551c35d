"""Non-uniform transforms against the sums that they stand for, written out in double precision."""

import numpy as np
import pytest

from invcryo.backend import use
from invcryo.operators.nufft import GridReader, GridWriter

TOLERANCE = {"f4": 5e-5, "f8": 1e-11}
SHAPES = [
    # tiny, with every residue that padding could get wrong
    (1, 1, 1), (2, 2, 2), (3, 3, 3), (1, 2, 3), (3, 1, 2), (8, 7, 6), (5, 4, 8),
    # each axis even or odd
    (16, 18, 20), (17, 18, 20), (16, 19, 20), (16, 18, 21), (17, 19, 21),
    # fine grids that are no larger than they must be, on every axis and on one
    (40, 40, 40), (48, 13, 12), (12, 48, 13), (13, 12, 48),
]  # fmt: skip
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
both_types = pytest.mark.parametrize("dtype", ["f4", "f8"])


@pytest.fixture(autouse=True)
def one_thread():
    """So that sums are made in one order."""
    with use(threads=1):
        yield


def waves(shape, points):
    """``exp(i q k)`` per axis (z, y, x), (n, J) complex128."""
    return [
        np.exp(1j * np.outer(np.arange(n) - n // 2, q.astype(float)))
        for n, q in zip(shape, points[::-1], strict=True)
    ]


def direct_values(c, points):
    z, y, x = (w.conj() for w in waves(c.shape, points))
    return np.einsum("zyx,zj,yj,xj->j", c, z, y, x, optimize=True)


def direct_sum(shape, points, s):
    z, y, x = waves(shape, points)
    return np.einsum("j,zj,yj,xj->zyx", s, z, y, x, optimize=True).real


def problem(shape, dtype, rng, n=300):
    """Coefficients, points within a turn and a half, complex strengths."""
    points = rng.uniform(-1.5, 1.5, (3, n)) * np.pi
    s = rng.standard_normal(n) + 1j * rng.standard_normal(n)
    return (
        rng.standard_normal(shape).astype(dtype),
        points.astype(dtype),
        s.astype(np.result_type(dtype, "c8")),
    )


def written(shape, dtype, points, s, *, real=False, parts=1):
    writer = GridWriter(shape, dtype, real=real)
    for part in np.array_split(np.arange(len(s)), parts):
        writer.add(points[:, part].copy(), s[part])  # indexing by an array copies, but not in C order
    return writer.result()


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@every_shape
@both_types
def test_values_at_points(shape, dtype, rng):
    c, points, s = problem(shape, dtype, rng)
    expected = direct_values(c, points)
    values = GridReader(c).at(points)
    assert values.dtype == s.dtype
    assert relative(values, expected) < TOLERANCE[dtype]


@every_shape
@both_types
@pytest.mark.parametrize("parts", [1, 3])
def test_sum_on_a_grid(shape, dtype, parts, rng):
    c, points, s = problem(shape, dtype, rng)
    total = written(shape, dtype, points, s, parts=parts)
    assert total.dtype == c.dtype and total.shape == shape
    assert relative(total, direct_sum(shape, points, s)) < TOLERANCE[dtype]


@every_shape
@both_types
def test_sum_of_real_strengths(shape, dtype, rng):
    c, points, s = problem(shape, dtype, rng)
    s.imag = 0
    total = written(shape, dtype, points, s, real=True, parts=2)
    assert total.dtype == c.dtype and total.shape == shape
    assert relative(total, direct_sum(shape, points, s)) < TOLERANCE[dtype]
    odd = total[tuple(slice(1 - n % 2, None) for n in shape)]
    np.testing.assert_array_equal(odd, odd[::-1, ::-1, ::-1])  # even, to the last bit


@every_shape
@both_types
def test_writer_is_the_adjoint_of_the_reader(shape, dtype, rng):
    c, points, s = problem(shape, dtype, rng)
    values = GridReader(c).at(points.copy()).astype(complex)
    total = written(shape, dtype, points, s.copy())
    difference = np.vdot(s, values).real - np.vdot(total.astype(float), c)
    # the accuracy of the transform does not enter: both are one map, up to rounding
    assert abs(difference) < 20 * np.finfo(dtype).eps * np.linalg.norm(values) * np.linalg.norm(s)


@both_types
@pytest.mark.parametrize("shape", [(16, 18, 20), (17, 19, 21)], ids=str)
def test_points_on_the_planes_where_the_grid_is_folded(shape, dtype, rng):
    """z = 0, half a turn, and as near to them as numbers get: slices of views along an axis are made of these."""
    tiny = np.finfo(dtype).tiny
    near = np.nextafter(np.asarray(np.pi, dtype), np.asarray(4, dtype))
    special = np.array([0.0, -0.0, tiny, -tiny, 1e-7, -1e-7, np.pi, -np.pi, near, -near, 3 * np.pi], dtype)
    points = np.stack([g.ravel() for g in np.meshgrid(special, special, special)])
    c, _, _ = problem(shape, dtype, rng)
    s = (rng.standard_normal(len(points[0])) + 1j * rng.standard_normal(len(points[0]))).astype(
        np.result_type(dtype, "c8")
    )
    expected, total = direct_values(c, points), direct_sum(shape, points, s)
    assert relative(GridReader(c).at(points.copy()), expected) < TOLERANCE[dtype]
    assert relative(written(shape, dtype, points.copy(), s.copy()), total) < TOLERANCE[dtype]
    s.imag = 0
    total = direct_sum(shape, points, s)
    assert relative(written(shape, dtype, points, s, real=True), total) < TOLERANCE[dtype]


@both_types
def test_one_grid_serves_any_batches(dtype, rng):
    c, points, _ = problem((14, 15, 16), dtype, rng)
    reader = GridReader(c)
    whole = reader.at(points.copy())
    parts = [reader.at(points[:, p].copy()) for p in (slice(0, 7), slice(7, 300))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_result_so_far(rng):
    """`result` may be asked for between batches, and a writer without points holds zero."""
    _, points, s = problem((6, 7, 8), "f8", rng)
    writer = GridWriter((6, 7, 8), "f8")
    np.testing.assert_array_equal(writer.result(), 0)
    expected = 0.0
    for part in (slice(0, 100), slice(100, 300)):
        expected = expected + direct_sum((6, 7, 8), points[:, part], s[part])
        writer.add(points[:, part].copy(), s[part].copy())
        assert relative(writer.result(), expected) < TOLERANCE["f8"]


@both_types
def test_same_bits_on_one_thread_and_same_values_on_two(dtype, rng):
    shape = (33, 30, 35)
    c, points, s = problem(shape, dtype, rng, n=40_000)
    for read_or_write in (
        lambda: GridReader(c).at(points.copy()),
        lambda: written(shape, dtype, points.copy(), s.copy()),
        lambda: written(shape, dtype, points.copy(), s.real.astype(s.dtype), real=True),
    ):
        first = read_or_write()
        np.testing.assert_array_equal(read_or_write(), first)
        with use(threads=2):  # FINUFFT then splits the points otherwise, and rounds them otherwise
            assert relative(read_or_write(), first) < TOLERANCE[dtype]


@both_types
def test_the_other_fft_engine(dtype, rng):
    shape = (12, 13, 15)
    c, points, s = problem(shape, dtype, rng)
    expected = GridReader(c).at(points.copy()), written(shape, dtype, points.copy(), s.copy())
    with use(fft="pyfftw"):
        found = GridReader(c).at(points.copy()), written(shape, dtype, points.copy(), s.copy())
    for a, b in zip(found, expected, strict=True):
        assert relative(a, b) < 100 * np.finfo(dtype).eps


def test_nothing_is_printed(rng, capfd):
    for dtype in ("f4", "f8"):
        c, points, s = problem((9, 20, 33), dtype, rng)
        GridReader(c).at(points.copy())
        written(c.shape, dtype, points, s)
    assert capfd.readouterr() == ("", "")
