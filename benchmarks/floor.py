"""Lower bounds: the work that a case cannot do without, at the rates that this machine was measured to reach.

Each bound is a sum of stages that follow one another: FFTs at the rate of contiguous one-dimensional ones,
interpolation at the rate of a matrix product, memory at the rate of a copy. The rates are the best ones of the
machine, so no program comes near the sum; it says how far there is to go, and in which stage the work lies.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

#: Iterations of conjugate gradients in `mean`.
ITERATIONS = 20

#: Our non-uniform FFT in single precision: samples of the fine grid per wanted one, and width of the spreading kernel.
UPSAMPLING, WIDTH = 1.25, 8

#: Radius of the tube around each viewing direction, in voxels: twice that of the default window.
TUBE_RADIUS = 4.0


def measure_rates(size: int, threads: int) -> dict[str, float]:
    """Best of ten: GFlop/s of FFTs of length 2 size, GB/s of a copy (read and written), GFlop/s of sgemm."""
    import numpy as np
    import scipy.fft

    def best(call: Callable[[], Any]) -> float:
        call()
        seconds = []
        for _ in range(10):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    length = fast_length(2 * size - 1)
    rows = max(1, (1 << 22) // length)
    lines = np.ones((rows, length), np.complex64)
    fft = best(lambda: scipy.fft.fft(lines, axis=1, workers=threads))
    parts = [(np.ones(1 << 24, np.float32), np.empty(1 << 24, np.float32)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        copy = best(lambda: list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), parts)))
    matrix = np.ones((1024, 1024), np.float32)
    product = best(lambda: matrix @ matrix)
    return {
        "fft_gflops": fft_flops(length) * rows / fft / 1e9,
        "copy_gbs": 8 * threads * (1 << 24) / copy / 1e9,
        "matmul_gflops": 2 * 1024**3 / product / 1e9,
    }


def fft_flops(length: int) -> float:
    """The customary count for one complex transform."""
    return 5 * length * math.log2(length)


def fast_length(n: int) -> int:
    """Smallest number from ``n`` on that has no prime factor above 5."""
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1


def slice_points(size: int) -> int:
    """Frequencies of one image that carry its content: half of the plane, without Nyquist."""
    return (size - 1) * (size // 2) if size % 2 == 0 else size * (size + 1) // 2


def floor(case: str, size: int, views: int, rates: dict[str, float]) -> dict[str, Any]:
    """Formula, counts and seconds of the lower bound of a case."""
    stages = {
        "forward": _forward,
        "adjoint": _forward,
        "adjoint-ctf": _forward,
        "kernel": _tube,
        "kernel-ctf": _kernel,
        "gram": _toeplitz,
        "gram-2x": _toeplitz,
        "mean": _mean,
        "tilt": _tilt,
        "tv": _tv,
    }[case](size, views)
    speed = {"fft_flops": rates["fft_gflops"], "flops": rates["matmul_gflops"], "bytes": rates["copy_gbs"]}
    seconds = {stage: stages[stage] / speed[stage] / 1e9 for stage in speed}
    return {**stages, "stage_seconds": seconds, "seconds": sum(seconds.values())}


def _nufft(grid: int, points: int, operations: int) -> dict[str, Any]:
    """``operations`` per point and cell: a product and a sum of two real numbers, or of a complex and a real one."""
    side = fast_length(math.ceil(UPSAMPLING * grid))
    # real, so half of the lines, and on each axis only those that hold or will keep something
    lines = 0.5 * (grid**2 + grid * side + side**2)
    return {
        "fft_flops": lines * fft_flops(side),
        "flops": float(operations * points * WIDTH**3),
        "points": points,
    }


def _forward(size: int, views: int) -> dict[str, Any]:
    points = views * slice_points(size)
    nufft = _nufft(size, points, 4)
    # each real two-dimensional transform: half the rows, then half the columns
    images = views * size * fft_flops(size)
    return {
        **nufft,
        "formula": "one 3-D NUFFT of P h points (h: half a slice) on (1.25 n)^3, 8^3 cells a point;"
        " P real 2-D FFTs; images, slices and points through memory once",
        "fft_flops": nufft["fft_flops"] + images,
        "bytes": 4.0 * views * size**2 + points * (8 + 12) + 4.0 * size**3,
    }


def _kernel(size: int, views: int) -> dict[str, Any]:
    points = views * slice_points(size)
    nufft = _nufft(2 * size - 1, points, 2)
    side = fast_length(2 * size - 1)
    return {
        **nufft,
        "formula": "one real 3-D NUFFT of P h points on (1.25 (2n-1))^3, 8^3 cells a point; P h squared CTF values;"
        " one real FFT of (2n)^3; points, strengths and kernel through memory once",
        "fft_flops": nufft["fft_flops"] + 1.5 * side**2 * fft_flops(side),
        "bytes": points * (4 + 12) + 3 * 4.0 * side**3,
    }


def _tube(size: int, views: int) -> dict[str, Any]:
    side = fast_length(2 * size - 1)
    # a cylinder of length 2n to 2n sqrt(3) about each direction, half of it by symmetry
    cells = 0.5 * views * math.pi * TUBE_RADIUS**2 * (2 * size - 1)
    return {
        "formula": "P pi (2a)^2 (2n-1) / 2 lattice points in tubes, 12 operations each; one real FFT of (2n)^3;"
        " kernel and spectrum through memory once",
        "points": round(cells),
        "flops": 12.0 * cells,
        "fft_flops": 1.5 * side**2 * fft_flops(side),
        "bytes": 3 * 4.0 * side**3,
    }


def _toeplitz(size: int, views: int) -> dict[str, Any]:
    side = fast_length(2 * size - 1)
    half = side // 2 + 1
    lines = 0.5 * size**2 + size * half + side * half  # x (real), y, z; then the same back
    return {
        "formula": "pruned FFTs of length L = 2n, forth and back: n^2 real ones along x, n (L/2+1) along y, L (L/2+1)"
        " along z; the spectrum read once, the n L (L/2+1) half-transformed values four times",
        "points": 0,
        "flops": 0.0,
        "fft_flops": 2 * lines * fft_flops(side),
        "bytes": 4.0 * side**2 * half + 4 * 8.0 * size * side * half + 8.0 * size**3,
    }


def _mean(size: int, views: int) -> dict[str, Any]:
    parts = [_forward(size, views), _kernel(size, views)]
    parts += ITERATIONS * [_toeplitz(size, views), _preconditioner(size)]
    return {
        "formula": f"adjoint and kernel with CTF, and {ITERATIONS} times: gram, one real FFT of n^3 forth and back, and"
        " ten volumes through memory",
        **{key: sum(part[key] for part in parts) for key in ("points", "flops", "fft_flops", "bytes")},
    }


def _preconditioner(size: int) -> dict[str, Any]:
    """With the vectors of an iteration: x, r, p, q and z are read seven times and written three times."""
    return {
        "points": 0,
        "flops": 0.0,
        "fft_flops": 2 * 1.5 * size**2 * fft_flops(size),
        "bytes": 10 * 4.0 * size**3,
    }


def _tilt(size: int, views: int) -> dict[str, Any]:
    """Of an evaluation that is separable along the tilt axis, as ours is."""
    nz, ny, nx, rows = size, 2 * size, 2 * size, size  # frequencies 0 to Nyquist along the tilt axis
    fz, fx = (fast_length(math.ceil(UPSAMPLING * n)) for n in (nz, nx))
    points = rows * views * nx
    along_y = 0.5 * (nz + views) * nx * fft_flops(ny)
    slices = rows * (nx * fft_flops(fz) + fz * fft_flops(fx))
    images = views * rows * fft_flops(nx)
    # real volume and images, both half-transformed in complex, and the points
    memory = 4.0 * (nz + views) * ny * nx + 2 * 8.0 * rows * (nz + views) * nx
    return {
        "formula": "twice: real FFTs of volume and images along the tilt axis; for each of n frequencies a 2-D NUFFT of"
        " (n, 2n) on (1.25 n, 2.5 n), 8^2 cells for each of T 2n points, and T FFTs of 2n; all arrays once",
        "points": 2 * points,
        "flops": 2 * 4.0 * points * WIDTH**2,
        "fft_flops": 2 * (along_y + slices + images),
        "bytes": 2 * memory,
    }


def _tv(size: int, views: int) -> dict[str, Any]:
    return {
        "formula": "the volume read and three components written; 14 operations a voxel, a root and a quotient apart",
        "points": 0,
        "flops": 14.0 * size**3,
        "fft_flops": 0.0,
        "bytes": 4 * 4.0 * size**3,
    }
