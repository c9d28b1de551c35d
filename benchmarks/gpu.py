#!/usr/bin/env python
"""Kernels, rules of the tape and whole training steps on a GPU: compared with those on the host, and timed.

    python benchmarks/gpu.py --json gpu.json

The tables are those of the tests, which run the same comparisons without a GPU. Exit code 0: all agree; 1: something
differs, and is named; 2: there is no GPU to be used, with what to do about it. Times are medians, of the host and of
the GPU with everything in its memory, waited for.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import autograd_ours
import autograd_problem
import numpy as np
from processes import ROOT, machine, write_json

sys.path.insert(0, str(ROOT / "tests"))
import autograd_table
import kernel_table

#: Largest error of a rule, relative to the norm: float64, float32.
TOLERANCES = {"float64": 1e-11, "float32": 1e-4}
#: Losses and gradients of these are compared, at sizes where the order of sums does not matter.
SMALL: dict[str, dict[str, Any]] = {
    "wgan-16": {"batch": 3, "channels": (2, 3, 4)},
    "posenet-16": {"batch": 3, "channels": (4, 3), "hidden": 8},
}
DTYPES = {"float64": kernel_table.double, "float32": kernel_table.single}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20, help="calls that are timed")
    parser.add_argument("--case", nargs="*", choices=autograd_problem.CASES, default=autograd_problem.CASES)
    parser.add_argument("--json", type=Path, help="where to write the record")
    options = parser.parse_args(argv)
    cupy, why = gpu()
    if cupy is None:
        print(why, file=sys.stderr)
        return 2
    properties = cupy.cuda.runtime.getDeviceProperties(0)
    record: dict[str, Any] = {
        "machine": machine(),
        "gpu": properties["name"].decode(),
        "errors": {},
        "seconds": {},
    }
    print(f"GPU: {record['gpu']}")
    for name, error in compared(cupy):
        record["errors"][name] = error
    wrong = {name: error for name, error in record["errors"].items() if not error <= 1}
    print(f"{len(record['errors'])} comparisons, {len(wrong)} differ (errors in units of the tolerance)")
    for name, error in wrong.items():
        print(f"  DIFFERS {name}: {error:.3g}")
    print(f"{'float32':16}{'host ms':>10}{'GPU ms':>10}{'GPU/host':>10}")
    for name, here, there in timed(cupy, options):
        record["seconds"][name] = {"host": here, "gpu": there}
        print(f"{name:16}{1e3 * here:10.3f}{1e3 * there:10.3f}{there / here:10.3f}", flush=True)
    if options.json:
        write_json(options.json, record)
    return 1 if wrong else 0


def gpu() -> tuple[Any, str]:
    """CuPy, or None and why."""
    try:
        cupy: Any = importlib.import_module("cupy")
    except ImportError as error:
        return None, (
            f"no GPU can be used, CuPy is missing ({error}): pip install 'invcryo[cuda12]', or 'invcryo[cuda13]' for"
            " drivers from 580 on"
        )
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # of whatever class the driver's absence has
        return (
            None,
            f"CuPy finds no GPU ({error}): does nvidia-smi show one, and a driver that fits this CuPy?",
        )
    return (cupy, "") if count else (None, "CuPy finds no GPU: does nvidia-smi show one?")


def compared(cupy: Any) -> Iterator[tuple[str, float]]:
    """(name, error in units of what is allowed) of every comparison."""
    for precision, dtype in DTYPES.items():
        for name, kernel in kernel_table.KERNELS.items():
            for k, listed in enumerate(kernel.calls):
                arguments = kernel_table.convert(listed, dtype)
                there = kernel_table.elsewhere(name, arguments, cupy)
                here = kernel_table.call(name, arguments)
                yield f"{name}-{k} {precision}", kernel_table.distance(name, here, there)
        for name, case in autograd_table.on_a_gpu():
            inputs = [dtype(a) for a in case.inputs]
            there = [a.get() for a in autograd_table.derivatives(case, [cupy.asarray(a) for a in inputs])]
            yield (
                f"rule {name} {precision}",
                _error(autograd_table.derivatives(case, inputs), there, precision),
            )
        for case, sizes in SMALL.items():
            p = autograd_problem.make(case, precision, **sizes)
            loss, gradients = autograd_ours.value_and_gradients(p)
            other, found = autograd_ours.value_and_gradients(autograd_problem.moved(p, cupy.asarray))
            here = [np.array(loss), *_arrays(gradients)]
            there = [np.array(other), *(a.get() for a in _arrays(found))]
            yield f"loss {case} {precision}", _error(here, there, precision)


def _arrays(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict):
        for item in tree.values():
            yield from _arrays(item)
    else:
        yield tree


def _error(expected: list[Any], found: list[Any], precision: str) -> float:
    """Worst relative error over some arrays, in units of the tolerance."""
    worst = 0.0
    for e, f in zip(expected, found, strict=True):
        if e.shape != f.shape or e.dtype != f.dtype or not np.isfinite(f).all():
            return np.inf
        worst = max(worst, float(np.linalg.norm(f - e)) / max(float(np.linalg.norm(e)), 1e-3))
    return worst / TOLERANCES[precision]


def timed(cupy: Any, options: argparse.Namespace) -> Iterator[tuple[str, float, float]]:
    """(name, seconds on the host, seconds on the GPU) of each kernel, then of whole steps."""

    def both(here: Callable[[], Any], there: Callable[[], Any]) -> tuple[float, float]:
        wait = cupy.cuda.Device().synchronize
        return seconds(here, lambda: None, options.rounds), seconds(there, wait, options.rounds)

    for name, listed in kernel_table.large().items():
        arguments = kernel_table.convert(listed, kernel_table.single)
        moved = kernel_table.convert(arguments, cupy.asarray)
        yield name, *both(_call(name, arguments), _call(name, moved))
    for case in options.case:
        p = autograd_problem.make(case)
        yield case, *both(autograd_ours.step(p), autograd_ours.step(autograd_problem.moved(p, cupy.asarray)))


def _call(name: str, arguments: tuple[Any, ...]) -> Callable[[], Any]:
    return lambda: kernel_table.call(name, arguments)


def seconds(call: Callable[[], Any], wait: Callable[[], Any], rounds: int) -> float:
    """Median of some calls after two that do not count."""
    out = []
    for k in range(rounds + 2):
        start = time.perf_counter()
        call()
        wait()
        if k > 1:
            out.append(time.perf_counter() - start)
    return statistics.median(out)


if __name__ == "__main__":
    sys.exit(main())
