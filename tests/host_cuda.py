"""CUDA source run on the host: compiled unchanged by a C++ compiler, one CUDA thread after another.

Covers kernels without barriers, atomics and warp intrinsics, in any order of the threads. Arrays lie between red zones:
what is written there is reported, and what is read there is NaN. Not covered: races of memory, real timing.
"""

import ctypes
import functools
import math
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from invcryo.kernels import cuda

SHIM = """
#include <math.h>
#define __global__
#define __device__ static inline
struct Index { unsigned x; };
static thread_local Index blockIdx, threadIdx, blockDim, gridDim;
"""
ZONE = 1 << 12  # bytes
COMPILER = shutil.which("g++") or shutil.which("clang++")

#: CUDA threads run "forward", "backward" or "mixed".
order = "forward"
#: Names of the kernels that have run.
seen: set[str] = set()


@functools.cache
def library(source, real):
    """The source with a launcher for each kernel, as a shared object."""
    parts = [SHIM, source]
    for name, parameters in re.findall(r"^KERNEL (\w+)\(([^)]*)\)", source, re.MULTILINE):
        names = ", ".join(re.findall(r"(\w+)\s*(?:,|$)", parameters))
        head = (
            f'extern "C" void run_{name}(unsigned blocks, unsigned threads, unsigned stride, unsigned start'
        )
        parts.append(
            f"{head}, {parameters})"
            """
{
    gridDim.x = blocks, blockDim.x = threads;
    unsigned total = blocks * threads, at = start;
    for (unsigned k = 0; k < total; ++k, at = (unsigned)(((unsigned long long)at + stride) % total)) {
        blockIdx.x = at / threads, threadIdx.x = at % threads;
        """
            f"{name}({names});\n    }}\n}}\n"
        )
    with tempfile.TemporaryDirectory() as folder:
        code, made = Path(folder, "kernels.cpp"), Path(folder, "kernels.so")
        code.write_text("\n".join(parts))
        flags = "-std=c++17 -O1 -ffp-contract=off -fPIC -shared -Wall -Wno-unused -Wno-unknown-pragmas -Werror".split()
        done = subprocess.run(
            [COMPILER, *flags, f"-DREAL={real}", code, "-o", made], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return ctypes.CDLL(str(made))


def launch(source, real, name, grid, block, arguments):
    """Run a kernel on NumPy arrays and scalars; what a GPU would misread in silence is refused."""
    seen.add(name)
    (blocks,), (threads,) = grid, block
    assert 1 <= blocks < 2**31 and 1 <= threads <= 1024, f"{name}: grid {grid}, block {block}"
    total = blocks * threads
    stride = {"forward": 1, "backward": total - 1, "mixed": 7919}[order]
    assert math.gcd(stride, total) == 1
    expected = cuda.types(real)[name]
    assert len(arguments) == len(expected), f"{name} takes {len(expected)} arguments, got {len(arguments)}"
    given, buffers = [], []
    for a, (dtype, is_array) in zip(arguments, expected, strict=True):
        assert isinstance(a, np.ndarray if is_array else np.generic), (
            f"{name}: {a!r} has the wrong width on a GPU"
        )
        assert a.dtype == dtype, f"{name}: {a.dtype} where {dtype} is read"
        if not is_array:
            given.append(np.ctypeslib.as_ctypes_type(dtype)(a.item()))
            continue
        assert a.flags.c_contiguous, f"{name}: strides are lost on a GPU"
        buffer = np.full(a.nbytes + 2 * ZONE, 0xFF, np.uint8)
        buffer[ZONE : ZONE + a.nbytes] = a.reshape(-1).view(np.uint8)
        buffers.append((a, buffer))
        given.append(ctypes.c_void_p(buffer.ctypes.data + ZONE))
    function = getattr(library(source, real), f"run_{name}")
    start = 0 if order == "forward" else total - 1
    function(*map(ctypes.c_uint, (blocks, threads, stride, start)), *given)
    for a, buffer in buffers:
        inside = buffer[ZONE : ZONE + a.nbytes]
        assert (buffer[:ZONE] == 0xFF).all() and (buffer[ZONE + a.nbytes :] == 0xFF).all(), (
            f"{name} wrote beyond an array {a.shape} {a.dtype}"
        )
        a.reshape(-1).view(np.uint8)[...] = inside
