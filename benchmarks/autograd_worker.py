"""One engine of `training_steps.py` in a process of its own, driven by lines of JSON on standard input."""

from __future__ import annotations

import importlib
import time
from typing import Any

import autograd_problem
import worker


class Worker:
    def setup(self, engine: str, case: str) -> dict[str, Any]:
        name, _, variant = engine.partition(":")
        module = importlib.import_module(f"autograd_{name}")
        self._call = module.step(autograd_problem.make(case), variant)
        return {"versions": module.versions()}

    def time(self, calls: int) -> dict[str, Any]:
        """Seconds of each of some steps in a row, and of the cores that worked on them."""
        seconds, cpu = [], []
        for _ in range(calls):
            start = time.perf_counter(), time.process_time()
            self._call()
            seconds.append(time.perf_counter() - start[0])
            cpu.append(time.process_time() - start[1])
        return {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": worker.peak_mb()}


if __name__ == "__main__":
    worker.serve(Worker())
