#!/usr/bin/env python
"""What one ADMM iteration of total variation with positivity costs beyond its Fourier transforms, in time and memory.

``python benchmarks/iteration.py --size 128``: iterations and their transforms alone (one product with the kernel, one
with the preconditioner) are timed in turn in one run; memory is the peak of arrays during an iteration against those
that the method needs by definition.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import processes

from invcryo.backend import use
from invcryo.costs import L21, NonNegative, Quadratic
from invcryo.data import Poses
from invcryo.operators import Circulant, Gradient, Projector, Toeplitz
from invcryo.rotation import random_rotations
from invcryo.solvers import admm
from invcryo.window import KaiserBessel


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--views", type=int, default=30)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="file to write the record to")
    options = parser.parse_args(argv)
    with use(threads=options.threads):
        record = measure(options.size, options.views, options.repeat)
    record |= {"machine": processes.machine(), "threads": options.threads, "size": options.size}
    if options.json:
        processes.write_json(Path(options.json), record)
    print(
        f"{options.size}^3, {options.threads} threads: iteration {record['iteration_s']:.4f} s,"
        f" its transforms {record['transforms_s']:.4f} s, the rest {100 * record['rest']:.0f} % (target 35 %)\n"
        f"arrays: peak {record['peak_bytes'] / 2**20:.0f} MiB, by definition {record['defined_bytes'] / 2**20:.0f} MiB,"
        f" ratio {record['memory']:.2f} (target 1.3)"
    )
    return 0


def problem(n: int, views: int) -> tuple[Any, Toeplitz]:
    rng = np.random.default_rng(0)
    A = Projector(Poses(random_rotations(views, rng=rng)), KaiserBessel(), n, (n, n))
    Q = A.gram()
    assert isinstance(Q, Toeplitz)
    z, y, x = np.indices((n, n, n), np.int16) - n // 2
    truth = (z**2 + 2 * y**2 + x**2 < (n / 4) ** 2).astype(np.float32)
    b = Q.apply(truth)
    b += rng.standard_normal(b.shape).astype(np.float32) * b.std()
    lam = 0.02 * float(b.max())
    return Quadratic(Q, b) + lam * (L21() @ Gradient(b.shape)) + NonNegative(), Q


def measure(n: int, views: int, repeat: int) -> dict[str, Any]:
    cost, Q = problem(n, views)
    states = admm(cost, coarse_start=False)
    inverse = Circulant(1.0 / (1.0 + np.asarray(Q.nearest_circulant())), Q.ishape)
    x = np.ones(Q.ishape, np.float32)
    for _ in range(24):  # past the iterations at which the penalties change
        next(states)
    iterations, transforms = [], []
    for _ in range(repeat):
        iterations.append(_timed(lambda: next(states)))
        transforms.append(_timed(lambda: (Q.apply(x), inverse.apply(x))))
    iteration, both = statistics.median(iterations), statistics.median(transforms)

    tracemalloc.start()
    cost, Q = problem(n, views)
    states = admm(cost, coarse_start=False)
    next(states)
    tracemalloc.reset_peak()
    for _ in range(3):
        next(states)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    volume = 4 * n**3
    defined = {
        "x, b, Q x, residual, direction, Q direction": 6 * volume,
        "splits u and multipliers": 8 * volume,
        "spectra of kernel and preconditioner": Q.circulant.spectrum.nbytes + volume // 2,
        # the pruned transform of the kernel: all z and padded y of half the padded x, and what it is made from
        "transform": 8 * Q.ishape[0] * (Q.pad.oshape[1] + Q.ishape[1]) * (Q.pad.oshape[2] // 2 + 1),
    }
    return {
        "iteration_s": iteration,
        "transforms_s": both,
        "rest": 1 - both / iteration,
        "peak_bytes": peak,
        "defined_bytes": sum(defined.values()),
        "defined": defined,
        "memory": peak / sum(defined.values()),
    }


def _timed(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
