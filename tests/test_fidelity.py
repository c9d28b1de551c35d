"""The data term: symmetry against brute force, batches, weights, what is refused."""

import os
import signal
import threading
import time

import numpy as np
import pytest

from invcryo.backend import norm, use
from invcryo.backend import threads as backend_threads
from invcryo.costs import LeastSquares, SquaredL2, fidelity
from invcryo.ctf import CTF
from invcryo.data import ParticleStack, Poses
from invcryo.operators import Diagonal, Gradient, ImageFilter, Mask, Projector, Toeplitz
from invcryo.rotation import random_rotations
from invcryo.symmetry import _permuted, point_group
from invcryo.testing import check_gradient
from invcryo.window import KaiserBessel

GROUPS = ["D2", "C3", "C4", "T", "O", "I"]


@pytest.fixture(autouse=True)
def one_thread():
    with use(threads=1):
        yield


def views(n, rng):
    return Poses(random_rotations(n, rng=rng), rng.uniform(-1.5, 1.5, (n, 2)))


def model(poses, shape, box, rng, dtype=np.float64, ctf=True):
    P = Projector(poses, KaiserBessel(), shape, box, dtype=dtype)
    if not ctf:
        return P
    n = len(poses)
    c = CTF(np.linspace(8e3, 2e4, n), np.linspace(1e4, 1.8e4, n), np.linspace(0, 2, n), 300, 2.7, 0.1)
    return ImageFilter.from_ctf(c, box, 3.0, dtype=dtype) @ P


def relative(a, b):
    return norm(a - b) / norm(b)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("shape", [(12, 12, 12), (13, 13, 13), (12, 13, 10)], ids=str)
def test_symmetry_is_the_expansion_of_views(group, shape, rng):
    """A view A stands for the views A @ g: the same images seen from each of them, at weight 1 / |G|."""
    g = point_group(group)
    poses = views(2, rng)
    box = 14
    A = model(poses, shape, box, rng)
    y = rng.standard_normal(A.oshape)
    W = ImageFilter.from_radial(np.linspace(1, 0.2, 8), box, 2, dtype=np.float64)
    cost = LeastSquares(A, y, W, symmetry=group)
    q = cost.quadratic()

    x = rng.standard_normal(shape)
    Qx, b, value, gradient = np.zeros(shape), np.zeros(shape), 0.0, np.zeros(shape)
    for element in g:
        turned = model(Poses(poses.matrices @ element, poses.shifts), shape, box, rng)
        Qx += turned.gram(W)(x) / len(g)
        b += turned.adjoint(W(y)) / len(g)
        r = turned(x) - y
        value += 0.5 * float((r * W(r)).sum()) / len(g)
        gradient += turned.adjoint(W(r)) / len(g)
    assert relative(q.Q(x), Qx) < 1e-9
    assert relative(q.b, b) < 1e-9
    assert q(x) == pytest.approx(value, rel=1e-9)
    assert cost(x) == pytest.approx(value, rel=1e-9)
    assert relative(cost.gradient(x), gradient) < 1e-9
    assert isinstance(q.Q, Toeplitz)  # no more work per iteration than without symmetry


@pytest.mark.parametrize("group, element", [("D2", 1), ("D2", 3), ("C4", 1), ("O", 7), ("I", 0)])
def test_a_symmetric_cost_does_not_see_the_turn(group, element, rng):
    """Odd box: its value is the same on a turned volume, exactly, for the elements that permute voxels."""
    A = model(views(3, rng), (13, 13, 13), 14, rng)
    q = LeastSquares(A, rng.standard_normal(A.oshape), symmetry=group).quadratic()
    x = rng.standard_normal((13, 13, 13))
    g = point_group(group)
    g = g[[np.allclose(h, np.rint(h)) for h in g]][element]
    assert q(_permuted(x, g).copy()) == pytest.approx(q(x), rel=1e-9)


def test_symmetry_in_single_precision(rng):
    A64, A32 = (
        model(views(2, np.random.default_rng(3)), (12,) * 3, 12, rng, d) for d in (np.float64, np.float32)
    )
    y = rng.standard_normal(A64.oshape).astype(np.float32)
    x = rng.standard_normal(A64.ishape).astype(np.float32)
    single, double = (LeastSquares(A, y, symmetry="D2").quadratic() for A in (A32, A64))
    assert single.Q.dtype == single.b.dtype == np.float32 and double.b.dtype == np.float64
    assert relative(single.Q(x), double.Q(x.astype(float))) < 1e-4
    assert relative(single.b, double.b) < 1e-4


def test_symmetry_needs_views(rng):
    from invcryo.operators import Identity

    with pytest.raises(TypeError, match="cannot be rotated"):
        LeastSquares(Identity((4, 4, 4), float), np.zeros((4, 4, 4)) + 1, symmetry="C2").quadratic()
    with pytest.raises(ValueError, match="unknown point group"):
        LeastSquares(Identity((4, 4, 4)), np.ones((4, 4, 4)), symmetry="X")
    # a weight that is no filter has no kernel: refused where the lattice part needs one, exact elsewhere
    P = model(views(2, rng), (9, 9, 9), 10, rng, ctf=False)
    y, w = rng.standard_normal(P.oshape), Diagonal(rng.random(P.oshape), np.float64)
    with pytest.raises(TypeError, match="Toeplitz kernel"):
        LeastSquares(P, y, w, symmetry="D2").quadratic()
    q = LeastSquares(P, y, w, symmetry="C3").quadratic()
    x = rng.standard_normal(P.ishape)
    assert q(x) == pytest.approx(LeastSquares(P, y, w, symmetry="C3")(x), rel=1e-9)


# -- reading -----------------------------------------------------------------------------------------------


class Images:
    """A lazy stack that counts how often each image is read."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.reads = np.zeros(len(array), int)
        self.largest = 0

    def __getitem__(self, index):
        self.reads[index] += 1
        part = self.array[index]
        self.largest = max(self.largest, len(part))
        return part


@pytest.mark.parametrize("symmetry", ["C1", "C3", "D2"])
def test_images_are_read_once_in_batches(symmetry, rng, monkeypatch):
    A = model(views(7, rng), (10,) * 3, 12, rng)
    y = rng.standard_normal(A.oshape)
    W = ImageFilter.from_radial([1.0, 0.5], 12, 7, dtype=np.float64)
    whole = LeastSquares(A, y, W, symmetry=symmetry).quadratic()
    monkeypatch.setattr(fidelity, "_BATCH_PIXELS", 3 * 144)
    images = Images(y)
    cost = LeastSquares(A, images, W, symmetry=symmetry)
    assert not images.reads.any()  # nothing before it is needed
    q = cost.quadratic()
    assert (images.reads == 1).all() and images.largest == 3
    assert relative(q.b, whole.b) < 1e-12 and q.c == pytest.approx(whole.c, rel=1e-12)
    x = rng.standard_normal(A.ishape)
    assert cost(x) == pytest.approx(whole(x), rel=1e-9)
    assert relative(cost.gradient(x), whole.gradient(x)) < 1e-9


def test_images_of_another_type_are_cast(rng):
    """float16 and integer stacks, as cameras and RELION write them."""
    A = model(views(3, rng), (8,) * 3, 8, rng, np.float32)
    y = np.round(10 * rng.standard_normal(A.oshape))
    expected = LeastSquares(A, y.astype(np.float32)).quadratic()
    for dtype in (np.float16, np.int16, np.float64, ">f4"):
        q = LeastSquares(A, y.astype(dtype)).quadratic()
        np.testing.assert_array_equal(q.b, expected.b)
        assert q.b.dtype == np.float32


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_image_is_named(bad, rng, monkeypatch):
    A = model(views(5, rng), (8,) * 3, 8, rng)
    y = rng.standard_normal(A.oshape)
    y[3, 2, 1] = bad
    for size in (1 << 23, 64):
        monkeypatch.setattr(fidelity, "_BATCH_PIXELS", size)
        with pytest.raises(ValueError, match=r"image 3 .*holds NaN or infinite pixels"):
            LeastSquares(A, y).quadratic()


def test_of_a_stack_and_its_halves(rng):
    """A `ParticleStack` and what slicing gives; the two halves add up to the whole."""
    poses = views(6, rng)
    stack = ParticleStack(rng.standard_normal((6, 10, 10)), 1.0, poses, half=np.array([1, 2, 2, 1, 2, 1]))
    x = rng.standard_normal((10, 10, 10))

    def cost(s):
        return LeastSquares(Projector(s.poses, KaiserBessel(), 10, dtype=np.float64), s.images).quadratic()

    one, two = stack.halves()
    assert cost(one)(x) + cost(two)(x) == pytest.approx(cost(stack)(x), rel=1e-10)
    assert [len(stack[2]), len(stack[-1]), len(stack[1:3]), len(stack[stack.half == 1])] == [1, 1, 2, 3]
    np.testing.assert_array_equal(stack[2].images[0], stack.images[2])
    with pytest.raises(IndexError, match="row 6 of 6"):
        stack[6]
    with pytest.raises(IndexError, match="boolean index"):
        stack[[True, False]]
    assert sum(1 for _ in poses) == 6  # iteration ends
    assert np.shares_memory(stack[1:3].images, stack.images)  # a slice reads nothing
    empty = ParticleStack(np.zeros((0, 10, 10)), 1.0, poses[:0])
    with pytest.raises(ValueError, match="the data are empty"):
        cost(empty)


# -- weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pixels", "mask", "images", "scaled filter"])
def test_weights(kind, rng):
    """Per pixel, masked, per image, and a filter with a factor: value, gradient and quadratic form agree."""
    A = model(views(3, rng), (8,) * 3, 9, rng)
    y, x = rng.standard_normal(A.oshape), rng.standard_normal(A.ishape)
    W = {
        "pixels": Diagonal(rng.random(A.oshape), np.float64),
        "mask": Mask(rng.random(A.oshape) > 0.3, np.float64),
        "images": Diagonal(np.broadcast_to(np.array([1.0, 2.0, 0.5])[:, None, None], A.oshape), np.float64),
        "scaled filter": 0.5 * ImageFilter.from_radial([1.0, 0.3], 9, 3, dtype=np.float64),
    }[kind]
    cost = LeastSquares(A, y, W)
    r = A(x) - y
    assert cost(x) == pytest.approx(0.5 * (r * W(r)).sum(), rel=1e-12)
    assert cost.quadratic()(x) == pytest.approx(cost(x), rel=1e-9)
    assert check_gradient(cost, x) < 1e-8
    assert isinstance(cost.quadratic().Q, Toeplitz) == (kind == "scaled filter")


def test_masked_model(rng):
    """A mask in the model itself, as in a tilt series with hidden pixels."""
    P = model(views(3, rng), (8,) * 3, 9, rng, ctf=False)
    M = Mask(rng.random(P.oshape) > 0.5, np.float64)
    y, x = rng.standard_normal(P.oshape), rng.standard_normal(P.ishape)
    cost = LeastSquares(M @ P, M(y))
    assert cost.quadratic()(x) == pytest.approx(0.5 * (M(P(x) - y) ** 2).sum(), rel=1e-9)
    both = (cost + 0.5 * SquaredL2()).quadratic(P.ishape, np.float64)
    assert both(x) == pytest.approx(cost(x) + 0.25 * (x**2).sum(), rel=1e-9)


# -- one pass for several groups, reading ahead ------------------------------------------------------------


@pytest.mark.parametrize("symmetry", ["C1", "C3", "D2"])
def test_groups_in_one_pass(symmetry, rng):
    """Each group's quadratic is that of its images alone; each image is read once, in the order of the file."""
    A = model(views(11, rng), (10,) * 3, 12, rng)
    images = Images(rng.standard_normal(A.oshape))
    W = ImageFilter.from_radial([1.0, 0.5], 12, 11, dtype=np.float64)
    label = np.array([2, 1, 1, 2, 1, 1, 1, 1, 1, 7, 2])  # chunks with all of them, with two, with one
    done = LeastSquares(A, images, W, symmetry=symmetry, chunk=3).normal_equations(label)
    assert (images.reads == 1).all() and images.largest == 3
    assert (done.images, done.chunk, done.resumed_at) == (11, 3, 0)
    for group, q in zip((1, 2, 7), done.quadratics, strict=True):
        rows = np.flatnonzero(label == group)
        alone = LeastSquares(A.rows(rows), images.array[rows], W.rows(rows), symmetry=symmetry).quadratic()
        assert relative(q.b, alone.b) < 1e-12 and q.c == pytest.approx(alone.c, rel=1e-12)
        assert relative(q.Q.kernel, alone.Q.kernel) < 1e-12
    assert set(done.seconds) == {"computing", "reading", "waiting", "saving", "finishing"}
    assert min(done.seconds.values()) >= 0
    with pytest.raises(ValueError, match=r"groups of 11 images have shape \(11,\), got \(4,\)"):
        LeastSquares(A, images).normal_equations([1, 1, 2, 2])


def test_groups_without_a_kernel_of_views(rng):
    """A scaled model, and a weight per pixel: each group's Q is the product of the operators of its rows."""
    P = model(views(5, rng), (8,) * 3, 9, rng, ctf=False)
    y, w, x = rng.standard_normal(P.oshape), rng.random(P.oshape), rng.standard_normal(P.ishape)
    label = np.array([0, 1, 0, 0, 1])
    scaled = LeastSquares(0.5 * P, y, chunk=2).normal_equations(label)
    weighted = LeastSquares(P, y, Diagonal(w, np.float64), chunk=2).normal_equations(label)
    for group in (0, 1):
        rows = label == group
        r = 0.5 * P.rows(rows)(x) - y[rows]
        assert scaled.quadratics[group](x) == pytest.approx(0.5 * (r**2).sum(), rel=1e-9)
        r = P.rows(rows)(x) - y[rows]
        assert weighted.quadratics[group](x) == pytest.approx(0.5 * (w[rows] * r**2).sum(), rel=1e-9)
    with pytest.raises(TypeError, match="cannot be told apart"):
        LeastSquares(Gradient((4, 4, 4)), np.ones((3, 4, 4, 4), np.float32)).normal_equations([1, 2, 1])


class Watched(Images):
    """Says which thread reads, with how many threads, and what has been computed by then."""

    def __init__(self, array):
        super().__init__(array)
        self.log = []

    def __getitem__(self, index):
        self.log.append((threading.current_thread().name, backend_threads()))
        return super().__getitem__(index)


def test_the_next_chunk_comes_in_meanwhile(rng, monkeypatch):
    A = model(views(6, rng), (8,) * 3, 8, rng)
    images = Watched(rng.standard_normal(A.oshape))
    started = threading.Event()
    add = fidelity.NormalSums.add

    def waiting(self, part, *rest):
        # the read of the chunk after this one begins without us
        end = time.monotonic() + 20
        while len(images.log) < min(3, 1 + computed[0] + 1) and time.monotonic() < end:
            time.sleep(1e-3)
        started.set()
        assert len(images.log) >= min(3, computed[0] + 2)
        computed[0] += 1
        add(self, part, *rest)

    computed = [0]
    monkeypatch.setattr(fidelity.NormalSums, "add", waiting)
    with use(threads=2):
        LeastSquares(A, images, chunk=2).quadratic()
    assert computed == [3] and started.is_set()
    assert all(name.startswith("invcryo-reader") and n == 1 for name, n in images.log)
    images.log.clear()
    images.read_ahead = False
    monkeypatch.setattr(fidelity.NormalSums, "add", add)
    with use(threads=2):
        LeastSquares(A, images, chunk=2).quadratic()
    assert images.log == [(threading.current_thread().name, 2)] * 3


def test_what_the_reader_meets_is_raised(rng):
    A = model(views(6, rng), (8,) * 3, 8, rng)

    class Broken(Images):
        def __getitem__(self, index):
            if index.start == 4:
                raise OSError("the disk went away")
            return super().__getitem__(index)

    with pytest.raises(OSError, match="the disk went away"):
        LeastSquares(A, Broken(rng.standard_normal(A.oshape)), chunk=2).quadratic()
    assert not [t for t in threading.enumerate() if t.name.startswith("invcryo-reader")]


def test_ctrl_c_ends_the_pass_and_its_reader(rng):
    A = model(views(6, rng), (8,) * 3, 8, rng)

    class Slow(Images):
        def __getitem__(self, index):
            if index.start == 4:
                os.kill(os.getpid(), signal.SIGINT)  # while the pass waits for this chunk
                time.sleep(0.3)
            return super().__getitem__(index)

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            LeastSquares(A, Slow(rng.standard_normal(A.oshape)), chunk=2).quadratic()
    finally:
        signal.signal(signal.SIGINT, previous)
    assert not [t for t in threading.enumerate() if t.name.startswith("invcryo-reader")]
