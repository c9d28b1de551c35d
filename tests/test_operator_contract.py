"""One table of operators, one set of properties; a public operator that is missing from the table is a failure."""

import pickle

import numpy as np
import pytest

from invcryo import operators as ops
from invcryo.backend import norm, use
from invcryo.ctf import CTF
from invcryo.data import Poses
from invcryo.operators.projector import _FilteredProjector
from invcryo.rotation import random_rotations
from invcryo.testing import check_adjoint, check_gram
from invcryo.window import BandLimited, KaiserBessel

N = 3  # views
CTFS = CTF([9000, 12000, 15000], [8000, 12500, 11000], [0.2, 1.0, -0.7], 300.0, 2.7, 0.1)


def poses():
    rng = np.random.default_rng(5)
    return Poses(random_rotations(N, rng=5), rng.uniform(-1.5, 1.5, (N, 2)))


def kernel(shape):
    """An even kernel on all lags, positive definite on its shape."""
    r = np.random.default_rng(6).standard_normal([2 * n - 1 for n in shape])
    r = r + r[::-1, ::-1, ::-1]
    r[tuple(n - 1 for n in shape)] += 40.0
    return r


def half_spectrum(shape, even=False):
    """Eigenvalues of a convolution with a real kernel (an even one: real eigenvalues)."""
    s = np.fft.rfftn(np.random.default_rng(7).standard_normal(shape))
    return np.abs(s) if even else s


def ctf_filter(dtype, shape=(9, 8)):
    return ops.ImageFilter.from_ctf(CTFS, shape, 3.0, dtype=dtype)


def diagonal(shape, dtype):
    return ops.Diagonal(np.random.default_rng(8).standard_normal(shape), dtype)


def mask(shape, dtype):
    return ops.Mask(np.random.default_rng(9).random(shape) > 0.4, dtype)


def projector(dtype, cls=ops.Projector, **options):
    return cls(poses(), KaiserBessel(), (7, 8, 6), (9, 8), dtype=dtype, **options)


def tilted(dtype, shape, image=None, **options):
    shifts = [[0.3, -1.2], [2.0, 0.5], [-0.7, 0.1]]
    return ops.SingleAxisProjector(
        [-1.1, 0.0, 0.7], KaiserBessel(), shape, image, shifts=shifts, dtype=dtype, **options
    )


#: name: (class, maker). Sizes are odd, even and unequal, so that axes in the wrong order cannot pass.
TABLE = {
    "identity": (ops.Identity, lambda d: ops.Identity((3, 4, 5), d)),
    "diagonal": (ops.Diagonal, lambda d: diagonal((3, 4, 5), d)),
    "mask": (ops.Mask, lambda d: mask((3, 4, 5), d)),
    "pad-even": (ops.ZeroPad, lambda d: ops.ZeroPad((3, 4, 5), (6, 7, 8), d)),
    "pad-odd": (ops.ZeroPad, lambda d: ops.ZeroPad((4, 3, 2), (4, 6, 7), d)),
    "crop": (ops.Crop, lambda d: ops.Crop((6, 7, 8), (3, 4, 5), d)),
    "circulant-odd": (ops.Circulant, lambda d: ops.Circulant(half_spectrum((4, 6, 5)), (4, 6, 5), d)),
    "circulant-even": (ops.Circulant, lambda d: ops.Circulant(half_spectrum((5, 6, 4)), (5, 6, 4), d)),
    "circulant-real": (ops.Circulant, lambda d: ops.Circulant(half_spectrum((5, 4), True), (5, 4), d)),
    "circulant-constant": (ops.Circulant, lambda d: ops.Circulant(np.full((1, 1, 1), 2.5), (3, 4, 5), d)),
    "toeplitz": (ops.Toeplitz, lambda d: ops.Toeplitz(kernel((5, 4, 6)), d)),
    "toeplitz-big": (ops.Toeplitz, lambda d: ops.Toeplitz(kernel((3, 18, 7)), d)),
    "gradient-3d": (ops.Gradient, lambda d: ops.Gradient((4, 5, 6), dtype=d)),
    "gradient-3d-periodic": (ops.Gradient, lambda d: ops.Gradient((4, 5, 6), "periodic", d)),
    "gradient-thin": (ops.Gradient, lambda d: ops.Gradient((1, 2, 3), "periodic", d)),
    "gradient-2d": (ops.Gradient, lambda d: ops.Gradient((4, 5), dtype=d)),
    "gradient-2d-periodic": (ops.Gradient, lambda d: ops.Gradient((4, 5), "periodic", d)),
    "laplacian": (ops.Laplacian, lambda d: ops.Gradient((4, 5, 6), dtype=d).gram()),
    "laplacian-periodic": (ops.Laplacian, lambda d: ops.Gradient((5, 4, 7), "periodic", d).gram()),
    "hessian": (ops.Hessian, lambda d: ops.Hessian((4, 5, 6), dtype=d)),
    "hessian-periodic": (ops.Hessian, lambda d: ops.Hessian((4, 5, 6), "periodic", d)),
    "hessian-thin": (ops.Hessian, lambda d: ops.Hessian((1, 2, 3), "periodic", d)),
    "hessian-2d": (ops.Hessian, lambda d: ops.Hessian((4, 5), dtype=d)),
    "bilaplacian": (ops.Bilaplacian, lambda d: ops.Hessian((4, 5, 6), dtype=d).gram()),
    "bilaplacian-periodic": (ops.Bilaplacian, lambda d: ops.Hessian((5, 4, 7), "periodic", d).gram()),
    "wavelet": (ops.Wavelet, lambda d: ops.Wavelet((4, 6, 8), "db2", 2, d)),
    "wavelet-odd": (ops.Wavelet, lambda d: ops.Wavelet((5, 12, 7), "sym4", 2, d)),
    "wavelet-2d": (ops.Wavelet, lambda d: ops.Wavelet((8, 12), "haar", 2, d)),
    "wavelet-4d": (ops.Wavelet, lambda d: ops.Wavelet((2, 3, 4, 6), "db3", 1, d)),
    "refinement": (ops.Refinement, lambda d: ops.Refinement((7, 4, 10), d)),
    "refinement-odd": (ops.Refinement, lambda d: ops.Refinement((5, 9), d)),
    "refinement-one": (ops.Refinement, lambda d: ops.Refinement((1, 2, 3), d)),
    "synthesis": (ops.Synthesis, lambda d: ops.Synthesis(KaiserBessel(), (5, 6, 7), dtype=d)),
    "synthesis-scaled": (
        ops.Synthesis,
        lambda d: ops.Synthesis(KaiserBessel(), (5, 6, 7), (9, 10, 13), scale=1.7, dtype=d),
    ),
    "synthesis-even": (
        ops.Synthesis,
        lambda d: ops.Synthesis(BandLimited(), (6, 5, 4), (7, 8, 6), scale=1.0, dtype=d),
    ),
    "filter-ctf": (ops.ImageFilter, ctf_filter),
    "filter-ctf-odd": (ops.ImageFilter, lambda d: ctf_filter(d, (8, 7))),
    "filter-shifts": (
        ops.ImageFilter,
        lambda d: ops.ImageFilter.from_shifts([[0.3, -1.2], [2.0, 0.5], [-0.7, 0.1]], (8, 6), dtype=d),
    ),
    "filter-array": (
        ops.ImageFilter,
        lambda d: ops.ImageFilter.from_array(np.random.default_rng(3).random((N, 6, 5)), (6, 8), dtype=d),
    ),
    "filter-radial": (
        ops.ImageFilter,
        lambda d: ops.ImageFilter.from_radial([1.0, 0.5, 0.2], (9, 8), N, dtype=d),
    ),
    "projector": (ops.Projector, projector),
    "projector-scaled": (ops.Projector, lambda d: projector(d, scale=1.7)),
    "projector-cutoff": (ops.Projector, lambda d: projector(d, cutoff=0.8)),
    "projector-coarse": (ops.Projector, lambda d: projector(d, tol=5e-4)),
    "projector-band-limited": (
        ops.Projector,
        lambda d: ops.Projector(poses(), BandLimited(), (7, 6, 5), (8, 7), dtype=d),
    ),
    "projector-small-detector": (
        ops.Projector,
        lambda d: ops.Projector(poses(), KaiserBessel(), (9, 8, 10), (5, 4), dtype=d),
    ),
    "projector-tilt-y": (ops.SingleAxisProjector, lambda d: tilted(d, (7, 8, 6))),
    "projector-tilt-x": (ops.SingleAxisProjector, lambda d: tilted(d, (7, 6, 8), axis="x")),
    "projector-tilt-z": (ops.SingleAxisProjector, lambda d: tilted(d, (9, 8, 10), (5, 4), axis="z")),
    "projector-tilt-tall": (ops.SingleAxisProjector, lambda d: tilted(d, (5, 6, 7), (11, 9))),
    "projector-tilt-scaled": (ops.SingleAxisProjector, lambda d: tilted(d, (7, 8, 6), scale=1.7)),
    "projector-tilt-turned": (ops.SingleAxisProjector, lambda d: tilted(d, (7, 8, 6), in_plane_angle=0.2)),
    "real-space": (ops.RealSpaceProjector, lambda d: projector(d, ops.RealSpaceProjector)),
    "real-space-scaled": (ops.RealSpaceProjector, lambda d: projector(d, ops.RealSpaceProjector, scale=1.7)),
    "real-space-small-detector": (
        ops.RealSpaceProjector,
        lambda d: ops.RealSpaceProjector(poses(), KaiserBessel(), (9, 8, 10), (5, 4), dtype=d),
    ),
    "adjoint": (ops.Adjoint, lambda d: ops.Gradient((4, 5, 6), dtype=d).H),
    "adjoint-circulant": (ops.Adjoint, lambda d: ops.Circulant(half_spectrum((4, 5)), (4, 5), d).H),
    "compose": (ops.Compose, lambda d: ops.Gradient((6, 7, 8), dtype=d) @ ops.ZeroPad((3, 4, 5), (6, 7, 8), d)),
    "compose-views": (ops.Compose, lambda d: ops.Compose(ctf_filter(d), projector(d))),
    "compose-filtered-views": (_FilteredProjector, lambda d: ctf_filter(d) @ projector(d)),
    "compose-circulants": (
        ops.Compose,
        lambda d: ops.Circulant(half_spectrum((4, 5)), (4, 5), d)
        @ ops.Circulant(half_spectrum((4, 5), True), (4, 5), d),
    ),
    "sum": (ops.Sum, lambda d: diagonal((3, 4, 5), d) + mask((3, 4, 5), d)),
    "difference": (ops.Sum, lambda d: ctf_filter(d) - ops.ImageFilter.from_radial([1.0], (9, 8), N, dtype=d)),
    "sum-circulants": (
        ops.Sum,
        lambda d: ops.Circulant(half_spectrum((4, 5)), (4, 5), d) + 0.5 * ops.Identity((4, 5), d),
    ),
    "scaled": (ops.Scaled, lambda d: -2.5 * projector(d)),
    "scaled-circulant": (ops.Scaled, lambda d: 2.5 * ops.Gradient((4, 5, 6), "periodic", d).gram()),
    "stack": (ops.Stack, lambda d: ops.Stack([diagonal((3, 4, 5), d), mask((3, 4, 5), d)])),
    "stack-uneven": (ops.Stack, lambda d: ops.Stack([ops.Gradient((3, 4, 5), dtype=d), mask((3, 4, 5), d)])),
}  # fmt: skip

DTYPES = [np.float32, np.float64]


@pytest.fixture(autouse=True)
def one_thread():
    """These arrays are small: a second thread would cost more than it saves."""
    with use(threads=1):
        yield


#: Grams that are known to be approximations (`RealSpaceProjector`): tested in test_projector.py.
APPROXIMATE = {"real-space", "real-space-scaled", "real-space-small-detector"}
#: Operators that contain a non-uniform FFT, and the accuracy asked of it.
NUFFT = {np.float32: 1e-4, np.float64: 1e-11}


def has_nufft(name):
    return name.startswith("projector") or name in ("compose-views", "compose-filtered-views", "scaled")


def tolerance(name, dtype, nufft=False):
    """20 units of rounding; for results that two different transforms must agree on, their accuracy."""
    return NUFFT[dtype] if nufft and has_nufft(name) else 20 * float(np.finfo(dtype).eps)


@pytest.fixture(params=DTYPES, ids=["f4", "f8"])
def dtype(request):
    return request.param


@pytest.fixture(params=TABLE)
def case(request, dtype):
    """(name, operator, x, y): x and y of both signs, read-only."""
    return make_case(request.param, dtype)


def make_case(name, dtype):
    A = TABLE[name][1](dtype)
    rng = np.random.default_rng(11)
    x, y = (rng.standard_normal(s).astype(dtype) for s in (A.ishape, A.oshape))
    x.setflags(write=False)
    y.setflags(write=False)
    return name, A, x, y


def test_every_public_operator_is_in_the_table():
    listed = {cls for cls, _ in TABLE.values()} | {ops.LinOp}
    missing = [name for name in ops.__all__ if getattr(ops, name) not in listed]
    assert not missing, f"add {missing} to TABLE"
    for name, (cls, make) in TABLE.items():
        assert type(make(np.float32)) is cls, name


def test_adjoint(case):
    name, A, _, _ = case
    for seed in range(3):
        assert check_adjoint(A, seed) <= tolerance(name, A.dtype.type)
    assert A.H.ishape == A.oshape and A.H.oshape == A.ishape
    assert check_adjoint(A.H, 3) <= tolerance(name, A.dtype.type)


def test_linear(case):
    name, A, x, y = case
    other = np.random.default_rng(12).standard_normal(A.ishape).astype(A.dtype)
    both = A(A.dtype.type(0.75) * x + other)
    apart = A.dtype.type(0.75) * A(x) + A(other)
    # the error of a non-uniform FFT is itself linear in the input, but its rounding is larger
    assert norm(both - apart) <= 5 * tolerance(name, A.dtype.type) * (norm(A(x)) + norm(A(other)))
    assert not A(np.zeros_like(x)).any() and not A.adjoint(np.zeros_like(y)).any()


def test_pure(case):
    """Inputs may be read-only, are left alone and not returned; two calls give the same bits; the type stays."""
    name, A, x, y = case
    for function, v, shape in ((A.apply, x, A.oshape), (A.adjoint, y, A.ishape)):
        before = v.copy()
        strided = np.zeros((*v.shape, 2), v.dtype)
        strided[..., 0] = v
        first, second, third = function(v), function(v), function(strided[..., 0])
        np.testing.assert_array_equal(v, before)
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(first, third)
        assert first.shape == shape and first.dtype == A.dtype and np.isrealobj(first)
        assert not np.shares_memory(first, v) and first.flags.writeable
        with use(threads=2):
            assert norm(function(v) - first) <= tolerance(name, A.dtype.type) * norm(first)


@pytest.mark.parametrize("name", [name for name in TABLE if name not in APPROXIMATE])
def test_gram(name, dtype):
    name, A, x, _ = make_case(name, dtype)
    assert check_gram(A, x=x) <= tolerance(name, A.dtype.type, nufft=True)
    weight = 0.5 * diagonal(A.oshape, A.dtype)
    assert check_gram(A, weight, x=x) <= tolerance(name, A.dtype.type, nufft=True)
    assert check_gram(A, 3.0 * ops.Identity(A.oshape, A.dtype), x=x) <= tolerance(
        name, A.dtype.type, nufft=True
    )
    with pytest.raises(ValueError, match=r"weight .* does not fit"):
        A.gram(ops.Identity((*A.oshape, 2), A.dtype))
    with pytest.raises(TypeError, match="dtypes differ"):
        A.gram(ops.Identity(A.oshape, np.float32 if A.dtype == np.float64 else np.float64))


@pytest.mark.parametrize("name", [n for n in TABLE if n.startswith(("projector", "filter")) or has_nufft(n)])
def test_gram_of_views_with_a_filter(name, dtype):
    name, A, x, _ = make_case(name, dtype)
    for W in (
        ops.ImageFilter.from_radial(np.linspace(1, 3, 8), A.oshape[1:], N, dtype=A.dtype),
        0.5 * ops.ImageFilter.from_ctf(CTFS, A.oshape[1:], 2.0, dtype=A.dtype).gram(),
    ):
        assert check_gram(A, W, x=x) <= tolerance(name, A.dtype.type, nufft=True)
    if has_nufft(name):  # the whole point of the kernel: no image is touched again
        assert isinstance(A.gram(W), ops.Toeplitz)


def test_spectrum(case):
    """Against the action on a random input: both sides of the convolution theorem."""
    name, A, x, _ = case
    for operator in (A, A.H, A.gram()):
        spectrum = operator.spectrum
        if spectrum is None:
            continue
        axes = tuple(range(x.ndim))
        expected = np.fft.irfftn(np.fft.rfftn(x.astype(float)) * spectrum, s=x.shape, axes=axes)
        assert norm(operator(x) - expected) <= tolerance(name, A.dtype.type) * norm(expected)
    known = ("circulant", "laplacian-periodic", "bilaplacian-periodic", "adjoint-c", "compose-c", "sum-c",
             "scaled-c", "identity")  # fmt: skip
    assert (A.spectrum is not None) == (name.startswith(known) or name == "synthesis")
    if name in ("gradient-3d-periodic", "gradient-2d-periodic"):
        assert (
            A.gram().spectrum is not None
            and A.gram(2.0 * ops.Identity(A.oshape, A.dtype)).spectrum is not None
        )


def test_flat_protocol(case):
    _, A, x, y = case
    assert A.shape == (y.size, x.size)
    np.testing.assert_array_equal(A.matvec(x.ravel()), A(x).ravel())
    np.testing.assert_array_equal(A.rmatvec(y.ravel()), A.adjoint(y).ravel())
    # SciPy's solvers work in double: the vector's type comes back
    assert A.matvec(x.ravel().astype(np.float64)).dtype == np.float64
    assert A.matvec(x.reshape(-1, 1)).size == y.size
    with pytest.raises(TypeError, match="real vectors"):
        A.matvec(x.ravel() + 0j)
    with pytest.raises(ValueError, match="expected"):
        A.matvec(np.zeros(x.size + 1, x.dtype))


def test_wrong_input_is_refused_by_name(case):
    _, A, x, y = case
    other = np.float32 if A.dtype == np.float64 else np.float64
    for function, v in ((A.apply, x), (A.adjoint, y)):
        with pytest.raises(ValueError, match=rf"{type(A).__name__}.*has shape .*, expected"):
            function(np.zeros((*v.shape, 1), v.dtype))
        with pytest.raises(TypeError, match=rf"has dtype .*, expected {A.dtype}; cast it with"):
            function(v.astype(other))
    assert type(A).__name__ in repr(A) and str(A.dtype) in repr(A)


def test_pickle(case):
    _, A, x, y = case
    again = pickle.loads(pickle.dumps(A))
    np.testing.assert_array_equal(again(x), A(x))
    np.testing.assert_array_equal(again.adjoint(y), A.adjoint(y))


HAVE_ROWS = ("identity", "diagonal", "mask", "filter", "projector", "real-space", "compose-views",
             "compose-filtered-views", "sum", "difference", "scaled")  # fmt: skip


def test_rows(case):
    name, A, x, _ = case
    if not name.startswith(HAVE_ROWS) or name in ("sum-circulants", "scaled-circulant"):
        with pytest.raises(TypeError, match="has no rows"):
            A.rows(slice(0, 1))
        return
    whole = A(x)
    own = A.ishape == A.oshape  # acts within the stack: a row of input for a row of output
    for index in (slice(1, 3), [2, 0], np.arange(N) != 1, 1, -1, slice(None)):
        kept = np.atleast_1d(np.arange(N)[index])
        part = A.rows(index)
        assert part.oshape == (len(kept), *A.oshape[1:])
        small = part(x[kept] if own else x)
        assert norm(small - whole[kept]) <= tolerance(name, A.dtype.type, nufft=True) * norm(whole)
        assert check_adjoint(part) <= tolerance(name, A.dtype.type)
    with pytest.raises(IndexError):
        A.rows(7)
    with pytest.raises(IndexError):
        A.rows([True, False])


def test_the_other_fft_engine(case):
    name, A, x, y = case
    forward, back = A(x), A.adjoint(y)
    with use(fft="pyfftw"):
        assert norm(A(x) - forward) <= tolerance(name, A.dtype.type) * norm(forward)
        assert norm(A.adjoint(y) - back) <= tolerance(name, A.dtype.type) * norm(back)


# -- the algebra -----------------------------------------------------------------------------------------


def test_algebra_is_that_of_matrices(rng):
    A, B = diagonal((3, 4, 5), np.float64), mask((3, 4, 5), np.float64)
    G = ops.Gradient((3, 4, 5), dtype=np.float64)

    def dense(operator):
        return np.stack([operator.matvec(e) for e in np.eye(operator.shape[1])], axis=1)

    a, b, g = dense(A), dense(B), dense(G)
    for operator, expected in (
        (A + B, a + b), (A - B, a - b), (-A, -a), (2.5 * A, 2.5 * a), (A * 2.5, 2.5 * a),
        (np.float64(2.5) * A, 2.5 * a), (A @ B, a @ b), (G @ (A + B), g @ (a + b)), (G.H @ G, g.T @ g),
        (G.gram(), g.T @ g), ((G @ A).H, a.T @ g.T), (A.H.H, a), (3 * (A @ B).H, 3 * b.T @ a.T),
        (ops.Stack([A, B]), np.concatenate([a, b])), (ops.Stack([G, A]).H, np.concatenate([g, a]).T),
        (ops.Stack([G, A]).gram(), g.T @ g + a.T @ a),
    ):  # fmt: skip
        np.testing.assert_allclose(dense(operator), expected, atol=1e-13)


@pytest.mark.parametrize("factor", [2.5, np.float64(2.5), np.float32(2.5), 2])
def test_scaling_keeps_single_precision(factor):
    A = factor * ops.Gradient((3, 4, 5))
    assert A(np.ones((3, 4, 5), np.float32)).dtype == np.float32


def test_what_does_not_fit_is_refused():
    a, b = ops.Identity((3, 4)), ops.Identity((4, 3))
    with pytest.raises(ValueError, match="cannot compose"):
        a @ b
    with pytest.raises(ValueError, match="cannot add"):
        a + b
    with pytest.raises(ValueError, match="cannot stack"):
        ops.Stack([a, b])
    with pytest.raises(ValueError, match="at least one"):
        ops.Stack([])
    for combine in (lambda: a @ ops.Identity((3, 4), float), lambda: a + ops.Identity((3, 4), float)):
        with pytest.raises(TypeError, match="dtypes differ"):
            combine()
    with pytest.raises(TypeError):
        a @ np.ones((3, 4), np.float32)
    with pytest.raises(TypeError):
        np.ones((3, 4), np.float32) @ a
    with pytest.raises(TypeError, match="float32 or float64"):
        ops.Identity((3, 4), np.float16)
    for method, argument in (("rows", 0), ("rotated", np.eye(3)), ("resized", (3, 4))):
        with pytest.raises(TypeError, match="Gradient"):
            getattr(ops.Gradient((3, 4)), method)(argument)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: ops.ZeroPad((5, 5), (4, 6)), "cannot pad"),
        (lambda: ops.Mask(np.ones((3, 3))), "must be boolean"),
        (lambda: ops.Gradient((3, 3), "wrap"), "unknown boundary 'wrap'"),
        (lambda: ops.Circulant(np.ones((3, 3)), (3, 3)), r"has shape \(3, 2\)"),
        (lambda: ops.Toeplitz(np.ones((4, 5, 5))), "three axes"),
        (lambda: ops.Toeplitz(np.arange(27.0).reshape(3, 3, 3)), "not even"),
        (lambda: ops.ImageFilter.from_array(np.ones((8, 8)), 8), "needs"),
        (lambda: ops.ImageFilter.from_array(np.ones((2, 8, 5)), 8, 3), "2 responses for 3 images"),
        (lambda: ops.ImageFilter.from_array(np.ones((8, 5), complex), 8), "real responses"),
        (lambda: ops.ImageFilter.from_radial([[1.0]], 8, 1), "finite vector"),
        (lambda: ops.ImageFilter.from_radial([np.nan], 8, 1), "finite vector"),
        (lambda: ops.ImageFilter.from_ctf(CTFS, 8, 0.0), "positive angstrom"),
        (lambda: ops.Projector(poses(), KaiserBessel(), 8, scale=0.5), "scale must be at least 1"),
        (lambda: ops.Projector(poses(), KaiserBessel(), (8, 8)), "volume needs 3"),
        (lambda: ops.Projector(poses(), KaiserBessel(), 8, cutoff=0), "must be positive"),
        (lambda: ops.RealSpaceProjector(poses(), BandLimited(), 8), "no finite support"),
        (lambda: ops.SingleAxisProjector([-60.0, 60.0], KaiserBessel(), 8), r"beyond pi.*np\.deg2rad"),
        (lambda: ops.SingleAxisProjector([0.1, np.nan], KaiserBessel(), 8), r"angle 1 .*NaN"),
        (lambda: ops.SingleAxisProjector([], KaiserBessel(), 8), "one for each image"),
        (lambda: ops.SingleAxisProjector([0.1], KaiserBessel(), 8, axis="tilt"), "'x', 'y' or 'z'"),
        (lambda: ops.SingleAxisProjector([0.1], KaiserBessel(), 8, in_plane_angle=85.3), "in radians"),
        (lambda: ops.SingleAxisProjector([0.1], KaiserBessel(), 8, shifts=np.zeros((2, 2))), "need shifts"),
        (lambda: ops.Synthesis(KaiserBessel(), (5, 5, 5), (4, 4)), "cannot have shape"),
    ],
)
def test_constructors_refuse_nonsense(build, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build()


# -- single operators against their meaning ----------------------------------------------------------------


@pytest.mark.parametrize("n, m", [(4, 7), (5, 8), (4, 8), (5, 9), (3, 3)])
def test_padding_keeps_the_centre(n, m):
    x = np.zeros((n, n), np.float32)
    x[n // 2, n // 2] = 1
    y = ops.ZeroPad((n, n), (m, m))(x)
    assert y[m // 2, m // 2] == 1 and y.sum() == 1
    np.testing.assert_array_equal(ops.Crop((m, m), (n, n))(y), x)


@pytest.mark.parametrize("boundary", ["zero-flux", "periodic"])
@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 5), (1, 3, 2)])
def test_gradient_is_the_difference(rng, boundary, shape):
    x = rng.standard_normal(shape)
    y = ops.Gradient(shape, boundary, np.float64)(x)
    for axis in range(len(shape)):
        if boundary == "periodic":
            expected = np.roll(x, -1, axis) - x
        else:
            expected = np.diff(x, axis=axis, append=np.take(x, [-1], axis))
        np.testing.assert_allclose(y[axis], expected, atol=1e-15)


def test_toeplitz_is_the_convolution(rng):
    shape = (3, 5, 4)
    r, x = kernel(shape), rng.standard_normal(shape)
    T = ops.Toeplitz(r, np.float64)
    k = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 3)
    lag = k[:, None] - k[None] + np.array(shape) - 1
    dense = r[lag[..., 0], lag[..., 1], lag[..., 2]]
    np.testing.assert_allclose(T(x).ravel(), dense @ x.ravel(), atol=1e-12 * np.abs(dense).sum())
    np.testing.assert_allclose(T.kernel, r, atol=1e-13)
    embedded = T.pad.H @ (T.circulant @ T.pad)
    np.testing.assert_allclose(embedded(x), T(x), atol=1e-12)
    np.testing.assert_allclose((T + 2.0 * T)(x), 3 * T(x), atol=1e-12)
    assert isinstance(T + 2.0 * T, ops.Toeplitz) and isinstance((T + 2 * T).circulant, ops.Circulant)


def test_nearest_circulant_is_the_nearest(rng):
    """T. Chan's optimum: no other periodic convolution is closer in the Frobenius norm."""
    shape = (3, 4, 5)
    T = ops.Toeplitz(kernel(shape), np.float64)
    dense = np.stack([T.matvec(e) for e in np.eye(60)])
    F = np.stack([np.fft.fftn(e.reshape(shape), norm="ortho").ravel() for e in np.eye(60)], axis=1)
    best = np.diag(F @ dense @ F.conj().T).real.reshape(shape)[:, :, :3]
    np.testing.assert_allclose(T.nearest_circulant(), best, atol=1e-12 * np.abs(best).max())


@pytest.mark.parametrize("name", ["toeplitz", "gradient-3d", "mask", "projector", "circulant-odd", "scaled",
                                  "stack-uneven", "identity", "filter-ctf"])  # fmt: skip
def test_norm_is_the_largest_singular_value(name):
    """T18: not an underestimate from too few power iterations."""
    A = TABLE[name][1](np.float64)
    dense = np.stack([A.matvec(e) for e in np.eye(A.shape[1])], axis=1)
    exact = np.linalg.norm(dense, 2)
    assert abs(A.norm() - exact) <= 1e-3 * exact
    assert abs(A.norm(tol=1e-9, rng=3) - exact) <= 1e-8 * exact
    assert A.norm() == A.norm()  # seeded


def test_norm_of_tiny_and_zero_operators():
    assert ops.Diagonal(np.array([3.0, -4.0])).norm() == pytest.approx(4.0)
    assert (0.0 * ops.Gradient((4, 4, 4))).norm() == 0.0


class Wrong(ops.Gradient):
    """An adjoint that is off by 1 %: what a user's own operator may look like."""

    def _adjoint(self, y):
        return 1.01 * super()._adjoint(y)


def test_the_checks_find_wrong_operators():
    from scipy.sparse.linalg import aslinearoperator

    assert check_adjoint(Wrong((4, 5, 6), dtype=np.float64)) > 1e-4
    assert check_gram(Wrong((4, 5, 6), dtype=np.float64), diagonal((3, 4, 5, 6), np.float64)) < 1e-15

    class Off(ops.Gradient):
        def _gram(self, W):
            return 1.01 * super()._gram(W)

    assert check_gram(Off((4, 5, 6), dtype=np.float64)) == pytest.approx(0.01, rel=1e-6)
    m = np.random.default_rng(0).standard_normal((5, 7))
    assert check_adjoint(aslinearoperator(m)) < 1e-15  # operators on flat vectors, whoever made them
