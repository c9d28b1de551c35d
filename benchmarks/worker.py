"""One engine and one case in a process of its own, driven by lines of JSON on standard input; see `run`."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import sys
import time
from typing import Any

import numpy as np
from problem import make_problem


def peak_mb() -> float:
    """Largest resident size of this process, in 1e6 bytes: since `forget_peak` on Linux, else since the start."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024 / 1e6
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def forget_peak() -> None:
    """Let the peak start again at the present size, so that the first call does not hide that of the others."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")


class Worker:
    def setup(self, engine: str, case: str, size: int, views: int) -> dict[str, Any]:
        name, _, variant = engine.partition(":")
        self._module = importlib.import_module(f"engine_{name}")
        self._case, self._variant = case, variant
        self._call = self._module.call(case, make_problem(case, size, views), variant)
        return {"versions": self._module.versions()}

    def warm_up(self) -> dict[str, Any]:
        """The first call: compiled loops are loaded, tables made, memory taken from the system."""
        start = time.perf_counter()
        self._call()
        seconds = time.perf_counter() - start
        forget_peak()
        return {"first_seconds": seconds, "before_mb": peak_mb()}

    def time(self) -> dict[str, Any]:
        start = time.perf_counter()
        self._call()
        return {"seconds": time.perf_counter() - start, "peak_mb": peak_mb()}

    def check(self, size: int, views: int, out: str) -> dict[str, Any]:
        """Write the engine's answer to a small problem."""
        small = make_problem(self._case, size, views)
        np.save(out, self._module.answer(self._case, small, self._variant))
        return {}

    def compare(self, case: str, engine: str, size: int, views: int, answer: str) -> dict[str, Any]:
        """Relative error of an engine's answer, against double precision."""
        import engine_invcryo

        small = make_problem(case, size, views, "float64")
        return {"error": engine_invcryo.error(case, small, engine, np.load(answer))}

    def rates(self, size: int, threads: int) -> dict[str, Any]:
        import floor

        return {"rates": floor.measure_rates(size, threads)}

    def simulate(self, folder: str, size: int, particles: int) -> dict[str, Any]:
        """Write a stack with CTF, shifts and noise for the whole-process benchmarks."""
        from problem import PIXEL_SIZE

        from invcryo.simulate import phantom, simulate_particles, write_simulation

        volume = phantom("enzyme", size, rng=1)
        stack = simulate_particles(volume, particles, PIXEL_SIZE, snr=0.5, shift_px=2.0, rng=2)
        write_simulation(folder, stack)
        return {}

    def resolution(self, map: str, truth: str) -> dict[str, Any]:
        """Resolution, angstrom, at FSC 0.5 against the truth inside a soft sphere that holds the particle."""
        from invcryo.io import read_map
        from invcryo.metrics import fsc, soft_sphere

        a, b = read_map(map), read_map(truth)
        mask = soft_sphere(b.data.shape, 0.42 * b.data.shape[0])
        curve = fsc(a.data, b.data, pixel_size=b.pixel_size, mask=mask)
        return {"resolution_angstrom": curve.resolution(0.5, interpolate=True)}


def serve(worker: Any) -> None:
    """Call the methods that the lines of standard input name; each answers with a line."""
    # Whatever an engine prints must not get into the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps(getattr(worker, request.pop("do"))(**request)) + "\n")


if __name__ == "__main__":
    serve(Worker())
