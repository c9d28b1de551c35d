#!/usr/bin/env python
"""Total variation from a tenth of the pixels of a tilt series: seconds to a relative gap, and memory.

``python benchmarks/stet.py --size 128``: a volume of (n, 2n, 2n), positive, 140 tilts from -70 to 70 degrees. The
minimum is found by a long run. Each scheme is run once to see at which iteration its objective comes within the gap of
it, ``(F(x) - min F) / (F(0) - min F)`` with negative values clipped, and is then timed for so many, in turn with the
others.

ours      one step of conjugate gradients on H^T S H per iteration, preconditioned by the circulant next to it
plain-k   the same ADMM with k steps and no preconditioner
split     H c is a split variable too, so that the mask is in a pointwise prox and the equation has the Toeplitz kernel
          of H^T H; the way of ``reconstruct_series(split_images=True)``

Seconds are processor time.

``--memory``: only the peak of the process after a few iterations of ours.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import processes
from numpy.typing import NDArray

from invcryo.backend import inner, use
from invcryo.costs import L21, LeastSquares, NonNegative
from invcryo.inversion import admm_apart
from invcryo.operators import Gradient, Mask
from invcryo.selection import natural_lambda
from invcryo.simulate import cell_phantom
from invcryo.solvers import State, admm
from invcryo.stet import series_model
from invcryo.window import KaiserBessel

Scheme = Callable[[], Iterator[State]]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=64, help="n: the volume is (n, 2n, 2n)")
    parser.add_argument("--tilts", type=int, default=140)
    parser.add_argument("--fraction", type=float, default=0.1, help="of the pixels that are measured")
    parser.add_argument("--gap", type=float, default=1e-3)
    parser.add_argument("--schemes", nargs="+", default=["ours", "plain-1", "plain-3", "plain-7"])
    parser.add_argument("--reference", type=int, default=300, help="iterations of the long run")
    parser.add_argument("--limit", type=int, default=400, help="iterations after which a scheme has failed")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--json", type=Path, help="file to write the record to")
    options = parser.parse_args(argv)
    with use(threads=options.threads):
        problem = Problem(options.size, options.tilts, options.fraction)
        record = _memory(problem) if options.memory else _times(problem, options)
    settings = {k: v for k, v in vars(options).items() if k != "json"}
    record |= {"machine": processes.machine(), "settings": settings}
    if options.json:
        processes.write_json(options.json, record)
    return 0


class Problem:
    """Images of a phantom on one window, to be reconstructed on another."""

    def __init__(self, size: int, tilts: int, fraction: float) -> None:
        shape = (size, 2 * size, 2 * size)
        angles = np.deg2rad(np.linspace(-70, 70, tilts))
        rng = np.random.default_rng(20261121)
        A, place = series_model(angles, shape, shape[1:], window=KaiserBessel())
        images = place.H(A(cell_phantom(shape)))
        images += (0.05 * images.std() * rng.standard_normal(images.shape)).astype(np.float32)
        mask = rng.random(images.shape) < fraction
        self.A, place = series_model(angles, shape, shape[1:], window=KaiserBessel.wide())
        self.S = Mask(place(mask.astype(np.float32)) > 0)
        self.images = place(np.where(mask, images, 0).astype(np.float32))
        start = time.perf_counter()
        self.data = LeastSquares(self.S @ self.A, self.images, progress=False).quadratic()
        self.data.Q.nearest_circulant()
        self.setup = time.perf_counter() - start
        self.prior = L21() @ Gradient(shape)
        self.lam = 0.4 * natural_lambda(self.data, self.prior, int(mask.sum()))
        self.cost = self.data + self.lam * self.prior + NonNegative()

    def objective(self, x: NDArray) -> float:
        x = np.maximum(x, 0)
        r = self.S(self.A(x)) - self.images
        return 0.5 * inner(r, r) + self.lam * self.prior(x)

    def scheme(self, name: str) -> Scheme:
        if name == "ours":
            return lambda: admm(self.cost)
        if name == "split":
            images = LeastSquares(self.S, self.images, progress=False)
            return lambda: admm_apart(self.cost, self.data, images, self.A)
        steps = int(name.removeprefix("plain-"))
        return lambda: admm(self.cost, precondition=False, inner_iterations=steps)


def _times(problem: Problem, options: argparse.Namespace) -> dict[str, Any]:
    state = _after(admm(problem.cost), options.reference)
    least, zero = problem.objective(state.x), problem.objective(np.zeros_like(state.x))
    estimate = state.info["gap"]
    print(f"long run: gap {estimate:.1e} by its own estimate; set-up {problem.setup:.2f} s")
    schemes = {name: problem.scheme(name) for name in options.schemes}
    needed: dict[str, int | None] = {}
    for name, scheme in schemes.items():
        needed[name] = None
        for k, state in zip(range(1, options.limit + 1), scheme(), strict=False):
            if (problem.objective(state.x) - least) / (zero - least) <= options.gap:
                needed[name] = k
                break
    seconds: dict[str, list[float]] = {name: [] for name in schemes}
    for _ in range(options.repeat):
        for name, scheme in schemes.items():
            if needed[name] is not None:
                start = time.process_time()
                _after(scheme(), needed[name])  # type: ignore[arg-type]
                seconds[name].append(time.process_time() - start)
    print(f"{'scheme':10} {'iterations':>10} {'seconds':>9} {'ours / it':>9}")
    for name, times in seconds.items():
        if times:
            ratio = [a / b for a, b in zip(seconds.get("ours", []), times, strict=False)]
            shown = f"{statistics.median(ratio):9.2f}" if ratio else ""
            print(f"{name:10} {needed[name]:10} {statistics.median(times):9.2f} {shown}")
        else:
            print(f"{name:10} not within {options.limit} iterations")
    return {"iterations": needed, "seconds": seconds, "setup": problem.setup, "reference_gap": estimate}


def _after(states: Iterator[State], count: int) -> State:
    return next(itertools.islice(states, count - 1, None))


def _memory(problem: Problem) -> dict[str, Any]:
    start = time.perf_counter()
    _after(admm(problem.cost), 2)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1 << 20 if sys.platform != "darwin" else 1 << 30
    )
    print(
        f"{problem.A.ishape}: peak {peak:.2f} GB; 2 iterations in {seconds:.1f} s, set-up {problem.setup:.1f} s"
    )
    return {"peak_gb": peak, "seconds": seconds, "setup": problem.setup}


if __name__ == "__main__":
    sys.exit(main())
