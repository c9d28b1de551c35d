"""Non-uniform transforms against the sums that they stand for, written out in double precision."""

import numpy as np
import pytest

from invcryo.backend import use
from invcryo.operators.nufft import COARSE, GridReader, GridWriter, _fine_size

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


def as_planes(points):
    """Points of as many planes as there are points, one frequency on each."""
    axes = np.zeros((points.shape[1], 2, 3))
    axes[:, 0] = points.T
    return axes, np.array([[1.0], [0.0]])


def read(reader, points):
    return reader.at(*as_planes(points))[:, 0]


def written(shape, dtype, points, s, *, real=False, parts=1, tol=None):
    writer = GridWriter(shape, dtype, real=real, tol=tol)
    s = s.real if real else s
    for part in np.array_split(np.arange(len(s)), parts):
        writer.add(*as_planes(points[:, part]), s[part, None])
    return writer.result()


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@every_shape
@both_types
def test_values_at_points(shape, dtype, rng):
    c, points, s = problem(shape, dtype, rng)
    expected = direct_values(c, points)
    values = read(GridReader(c), points)
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
def test_a_coarser_accuracy(shape, rng):
    c, points, s = problem(shape, "f4", rng)
    allowed = COARSE / 3e-5 * TOLERANCE["f4"]
    assert relative(read(GridReader(c, COARSE), points), direct_values(c, points)) < allowed
    assert relative(written(shape, "f4", points, s, tol=COARSE), direct_sum(shape, points, s)) < allowed
    s.imag = 0
    even = written(shape, "f4", points, s, real=True, tol=COARSE)
    assert relative(even, direct_sum(shape, points, s)) < allowed


def test_the_cheapest_accuracy_that_is_enough(rng):
    c, points, _ = problem((16, 18, 20), "f4", rng)
    fine, coarse = (read(GridReader(c, tol), points) for tol in (None, COARSE))
    np.testing.assert_array_equal(read(GridReader(c, 0.9 * COARSE), points), fine)
    np.testing.assert_array_equal(read(GridReader(c, 0.1), points), coarse)
    assert relative(coarse, fine) > 1e-5
    for tol in (1e-6, np.nan):
        with pytest.raises(ValueError, match=f"tol = {tol:g}: in float32 the transform is accurate to 3e-05"):
            GridReader(c, tol)
    GridReader(c.astype("f8"), COARSE)  # has one that is better


@every_shape
@both_types
@pytest.mark.parametrize("tol", [None, COARSE])
def test_writer_is_the_adjoint_of_the_reader(shape, dtype, tol, rng):
    c, points, s = problem(shape, dtype, rng)
    values = read(GridReader(c, tol), points).astype(complex)
    total = written(shape, dtype, points, s.copy(), tol=tol)
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
    assert relative(read(GridReader(c), points), expected) < TOLERANCE[dtype]
    assert relative(written(shape, dtype, points, s), total) < TOLERANCE[dtype]
    s.imag = 0
    total = direct_sum(shape, points, s)
    assert relative(written(shape, dtype, points, s, real=True), total) < TOLERANCE[dtype]


@both_types
def test_one_grid_serves_any_batches(dtype, rng):
    c, points, _ = problem((14, 15, 16), dtype, rng)
    reader = GridReader(c)
    whole = read(reader, points)
    parts = [read(reader, points[:, p]) for p in (slice(0, 7), slice(7, 300))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_result_so_far(rng):
    """`result` may be asked for between batches, and a writer without points holds zero."""
    _, points, s = problem((6, 7, 8), "f8", rng)
    writer = GridWriter((6, 7, 8), "f8")
    np.testing.assert_array_equal(writer.result(), 0)
    expected = 0.0
    for part in (slice(0, 100), slice(100, 300)):
        expected = expected + direct_sum((6, 7, 8), points[:, part], s[part])
        writer.add(*as_planes(points[:, part]), s[part, None])
        assert relative(writer.result(), expected) < TOLERANCE["f8"]


@both_types
@pytest.mark.parametrize("fft", ["scipy", "pyfftw"])
def test_same_bits_in_every_run_and_on_any_number_of_threads(dtype, fft, rng):
    """With blocks of points that are as uneven as can be, and small ones beside large ones."""
    shape = (70, 75, 72)
    c, points, s = problem(shape, dtype, rng, n=150_000)  # more than is left to one thread
    points[:, ::3] *= 0.05
    calls = (
        lambda: read(GridReader(c), points),
        lambda: written(shape, dtype, points, s),
        lambda: written(shape, dtype, points, s, real=True),
    )
    for call in calls:
        with use(threads=1, fft=fft):
            first = call()
        for threads in (1, 2, 2, 2, 3):
            with use(threads=threads, fft=fft):
                np.testing.assert_array_equal(call(), first)


@both_types
def test_points_where_rounding_could_leave_the_grid(dtype, rng):
    """Tiny negative numbers, whole turns and the numbers next to them, and the borders of blocks of the fine grid."""
    shape = (20, 40, 60)
    c, _, _ = problem(shape, dtype, rng)
    fine = _fine_size(60, np.dtype(dtype))
    borders = 2 * np.pi * np.array([16, 32, 48]) / fine
    exact = np.concatenate([[0, -1e-300, -1e-17, 2 * np.pi, -2 * np.pi, 4 * np.pi], borders, -borders])
    special = np.concatenate([exact, np.nextafter(exact, 10), np.nextafter(exact, -10)])
    points = rng.choice(special, (3, 2000))
    s = (rng.standard_normal(2000) + 1j * rng.standard_normal(2000)).astype(np.result_type(dtype, "c8"))
    assert relative(read(GridReader(c), points), direct_values(c, points)) < TOLERANCE[dtype]
    assert relative(written(shape, dtype, points, s), direct_sum(shape, points, s)) < TOLERANCE[dtype]


@both_types
def test_points_of_planes(dtype, rng):
    """``q[p, j] = w[0, j] axes[p, 0] + w[1, j] axes[p, 1]`` in the order x, y, z, view by view."""
    shape, axes, w = (12, 9, 14), rng.standard_normal((7, 2, 3)), rng.uniform(-2, 2, (2, 11))
    s = (rng.standard_normal((7, 11)) + 1j * rng.standard_normal((7, 11))).astype(np.result_type(dtype, "c8"))
    points = np.stack([
        [sum(w[i, j] * axes[p, i, a] for i in range(2)) for p in range(7) for j in range(11)] for a in range(3)
    ])  # fmt: skip
    c = rng.standard_normal(shape).astype(dtype)
    values = GridReader(c).at(axes, w)
    assert values.shape == s.shape and values.dtype == s.dtype
    assert relative(values.ravel(), direct_values(c, points)) < TOLERANCE[dtype]
    writer = GridWriter(shape, dtype)
    writer.add(axes, w, s)
    assert relative(writer.result(), direct_sum(shape, points, s.ravel())) < TOLERANCE[dtype]


@pytest.mark.parametrize("place", ["axes", "frequencies"])
def test_points_that_are_no_numbers(place, rng):
    planes = {"axes": np.ones((2, 2, 3)), "frequencies": np.ones((2, 3))}
    planes[place][0, 0] = np.nan
    with pytest.raises(ValueError, match="must be finite"):
        GridReader(np.ones((5, 5, 5))).at(planes["axes"], planes["frequencies"])
    with pytest.raises(ValueError, match="must be finite"):
        GridWriter((5, 5, 5), "f8").add(planes["axes"], planes["frequencies"], np.ones((2, 3)))


def test_strengths_that_do_not_fit():
    planes = np.ones((2, 2, 3)), np.ones((2, 3))
    with pytest.raises(ValueError, match=r"2 planes of 3 points .* got \(3, 2\)"):
        GridWriter((5, 5, 5), "f8").add(*planes, np.ones((3, 2)))
    with pytest.raises(TypeError, match="real strengths"):
        GridWriter((5, 5, 5), "f8", real=True).add(*planes, np.ones((2, 3), complex))


@both_types
def test_two_sums_at_the_same_points(dtype, rng):
    """Sorted once for both: the first has the same bits as alone, the other, on another grid, the same values."""
    axes, w = rng.standard_normal((7, 2, 3)), rng.uniform(-2, 2, (2, 11))
    s = (rng.standard_normal((7, 11)) + 1j * rng.standard_normal((7, 11))).astype(np.result_type(dtype, "c8"))
    power = rng.uniform(0, 1, (7, 11)).astype(dtype)
    alone, alone_power = GridWriter((12, 9, 14), dtype), GridWriter((25, 17, 27), dtype, real=True)
    alone.add(axes, w, s)
    alone_power.add(axes, w, power)
    first = GridWriter((12, 9, 14), dtype)
    second = GridWriter((25, 17, 27), dtype, real=True, beside=first)
    first.add_beside(second, axes, w, s, power)
    second.add(axes, w, power)  # by itself too
    np.testing.assert_array_equal(first.result(), alone.result())
    assert relative(second.result(), 2 * alone_power.result()) < 2 * TOLERANCE[dtype]
    with pytest.raises(ValueError, match="too large to be beside"):
        GridWriter((26, 17, 27), dtype, real=True, beside=first)
    with pytest.raises(ValueError, match="not made beside"):
        first.add_beside(alone_power, axes, w, s, power)


def test_the_state_of_a_sum(rng):
    """``total`` is all of it: a copy of it goes on where the first left off."""
    _, points, s = problem((6, 7, 8), "f8", rng)
    first, second = GridWriter((6, 7, 8), "f8"), GridWriter((6, 7, 8), "f8")
    first.add(*as_planes(points[:, :100]), s[:100, None])
    second.total[...] = first.total
    for writer in (first, second):
        writer.add(*as_planes(points[:, 100:]), s[100:, None])
    np.testing.assert_array_equal(second.result(), first.result())


@both_types
def test_the_other_fft_engine(dtype, rng):
    shape = (12, 13, 15)
    c, points, s = problem(shape, dtype, rng)
    expected = read(GridReader(c), points), written(shape, dtype, points, s)
    with use(fft="pyfftw"):
        found = read(GridReader(c), points), written(shape, dtype, points, s)
    for a, b in zip(found, expected, strict=True):
        assert relative(a, b) < 100 * np.finfo(dtype).eps


def test_nothing_is_printed(rng, capfd):
    for dtype in ("f4", "f8"):
        c, points, s = problem((9, 20, 33), dtype, rng)
        read(GridReader(c), points)
        written(c.shape, dtype, points, s)
    assert capfd.readouterr() == ("", "")
