"""Threads, FFT engines, and reductions that do not lose digits."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest

from invcryo import kernels
from invcryo.backend import array_module, fft, inner, norm, real_dtype, threads, to_host, use


def test_inner_accumulates_in_double(rng):
    """np.dot of float32 vectors is off by 1e-4 at this size; ours by the rounding of the result."""
    n = 3_000_000
    x = (1 + 0.1 * rng.standard_normal(n)).astype(np.float32)
    exact = float(np.dot(x.astype(np.float64), x.astype(np.float64)))
    assert abs(inner(x, x) - exact) <= 1e-12 * exact
    assert type(inner(x, x)) is float and type(norm(x)) is float
    assert abs(norm(x) - exact**0.5) <= 1e-12 * norm(x)
    with use(threads=1):
        one = inner(x, x)
    assert one == inner(x, x)


def test_inner_is_exact_on_small_integers():
    x = np.array([[1, -2, 3]], np.float32)
    y = np.array([[1e8, 1, -1]], np.float64)
    assert inner(x, y) == float(
        sum(Fraction(a) * Fraction(b) for a, b in zip([1, -2, 3], [1e8, 1, -1], strict=True))
    )
    assert inner(np.zeros(0), np.zeros(0)) == 0.0
    assert inner(x[:, ::2], x[:, ::2]) == 10.0
    assert inner(np.arange(6.0).reshape(2, 3).T, np.arange(6.0).reshape(2, 3).T) == 55.0


def test_inner_does_not_broadcast():
    with pytest.raises(ValueError, match=r"shapes \(3,\) and \(1, 3\)"):
        inner(np.ones(3), np.ones((1, 3)))


def test_array_module_and_to_host():
    x = np.ones(3)
    assert array_module(x) is np and to_host(x) is x
    assert array_module([1, 2]) is np


@pytest.mark.parametrize("dtype", [np.float16, np.int32, np.complex64, "O", bool])
def test_real_dtype_refuses(dtype):
    with pytest.raises(TypeError, match="float32 or float64"):
        real_dtype(dtype)


# -- threads -----------------------------------------------------------------------------------------------


def test_threads(monkeypatch):
    monkeypatch.delenv("INVCRYO_NUM_THREADS", raising=False)
    assert threads() == len(os.sched_getaffinity(0))
    monkeypatch.setenv("INVCRYO_NUM_THREADS", "3")
    assert threads() == 3
    with use(threads=5):
        assert threads() == 5
        with use(threads=1):
            assert threads() == 1
        with use(fft="pyfftw"):
            assert threads() == 5
        assert threads() == 5
    assert threads() == 3
    for bad in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv("INVCRYO_NUM_THREADS", bad)
        with pytest.raises(ValueError, match=f"INVCRYO_NUM_THREADS must be a positive integer, got '{bad}'"):
            threads()


def test_use_leaves_nothing_behind():
    before = threads()
    for options, message in (
        ({"threads": 0}, "at least 1, got 0"),
        ({"threads": 7, "fft": "mkl"}, "engine 'mkl'"),
    ):
        with pytest.raises(ValueError, match=message), use(**options):
            pass
        assert threads() == before
    with pytest.raises(RuntimeError), use(threads=7, fft="pyfftw"):
        raise RuntimeError
    assert threads() == before


def test_use_belongs_to_its_thread():
    """Two threads with their own choices do not see each other's."""

    def inside(n):
        with use(threads=n):
            return [threads() for _ in range(100)] == [n] * 100

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(inside, [1, 2, 3, 4]))


# -- FFT engines -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["scipy", "pyfftw"])
@pytest.mark.parametrize("shape", [(30, 31), (31, 32), (33, 30), (4, 5, 6), (5, 4, 7)])
@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-6), (np.float64, 1e-14)])
def test_engines_agree_with_numpy_and_keep_the_type(engine, shape, dtype, tolerance, rng):
    """T8, T16: odd and even sizes; single precision stays single, and is as good as it can be."""
    x = rng.standard_normal(shape).astype(dtype)
    x.setflags(write=False)
    with use(fft=engine):
        lib = fft(x)
        s = lib.rfftn(x)
        assert s.dtype == np.result_type(dtype, np.complex64)
        exact = np.fft.rfftn(x.astype(np.float64))
        assert np.linalg.norm(s - exact) <= tolerance * np.linalg.norm(exact)
        kept = s.copy()
        back = lib.irfftn(s, s=shape)
        np.testing.assert_array_equal(s, kept)  # c2r of FFTW destroys its input unless told not to
        assert back.dtype == dtype and np.linalg.norm(back - x) <= tolerance * np.linalg.norm(x)
        two = lib.irfft2(lib.rfft2(x), s=shape[-2:])
        assert two.dtype == dtype and np.linalg.norm(two - x) <= tolerance * np.linalg.norm(x)
        padded = lib.fft(lib.rfft(x, 2 * shape[-1], axis=-1), 11, axis=0)
        wide = np.fft.fft(np.fft.rfft(x.astype(float), 2 * shape[-1], axis=-1), 11, axis=0)
        assert np.linalg.norm(padded - wide) <= tolerance * np.linalg.norm(wide)
        assert lib.next_fast_len(31, True) == 32


# -- kernels -----------------------------------------------------------------------------------------------


def test_kernels_do_not_depend_on_threads(rng):
    """Each thread writes its own cells: the same bits on one thread and on several."""
    x = rng.standard_normal((6, 7, 8)).astype(np.float32)
    axes = np.linalg.qr(rng.standard_normal((4, 3, 3)))[0][:, :2]
    table = np.linspace(1, 0, 50)
    table[-2:] = 0

    def all_kernels():
        g = np.empty((3, *x.shape), np.float32)
        kernels.difference_apply(x, True, g)
        d = np.empty_like(x)
        kernels.difference_adjoint(g, True, d)
        images = np.empty((4, 9, 8), np.float32)
        kernels.splat_apply(x, axes, np.zeros((4, 2)), table, 1.5, images)
        back = np.empty_like(x)
        kernels.splat_adjoint(images, axes, np.zeros((4, 2)), table, 1.5, back)
        return [g, d, images, back, kernels.tube_kernel(axes, table, 1.5, (5, 6, 7))]

    with use(threads=1):
        one = all_kernels()
    with use(threads=2):
        two = all_kernels()
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


def test_tube_kernel_is_the_sum_over_all_lags(rng):
    """The walk along the tube against the plain formula, for axes in general position and along the grid."""
    from scipy.spatial.transform import Rotation

    special = Rotation.from_euler("ZYZ", [[0, 0, 0], [0, 90, 0], [90, 90, 0], [0, 45, 0], [45, 90, 45], [0, 180, 0]],
                                  degrees=True).as_matrix()  # fmt: skip
    axes = np.concatenate([special, np.linalg.qr(rng.standard_normal((5, 3, 3)))[0]])[:, :2]
    radius, half = 2.2, (5, 4, 6)
    grid = np.arange(201) / 200  # linear in the squared distance: interpolation is exact
    table = np.append(1 - grid, 0.0)
    k = np.stack(np.meshgrid(*(np.arange(-h, h + 1) for h in half), indexing="ij"), -1)[..., ::-1]
    squared = ((k[..., None, None, :] * axes).sum(-1) ** 2).sum(-1)
    expected = np.clip(1 - squared / radius**2, 0, None).sum(-1)
    np.testing.assert_allclose(kernels.tube_kernel(axes, table, radius, half), expected, atol=1e-12)


def test_numba_is_not_loaded_before_it_is_needed():
    code = "import sys; from invcryo import kernels; from invcryo.operators import Gradient; Gradient((3, 3, 3));" \
           "assert 'numba' not in sys.modules"  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True)
