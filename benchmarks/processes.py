"""Processes that the benchmarks start: workers that answer requests, and programs that run from start to end."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


class Failed(RuntimeError):
    """A process that ended badly, with the end of what it said."""


def environment(threads: int) -> dict[str, str]:
    """The same number of threads for every library, and the package of this repository."""
    names = ("OMP", "OPENBLAS", "MKL", "NUMBA", "INVCRYO")
    counts = {f"{name}_NUM_THREADS": str(threads) for name in names}
    paths = os.pathsep.join([str(ROOT), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, **counts, "PYTHONPATH": paths}


class Worker:
    """A process of ``worker.py``, or of another such script; `ask` sends a request and waits for its answer."""

    def __init__(self, python: str, folder: Path, threads: int, script: str = "worker.py") -> None:
        # ASPIRE writes a folder of logs wherever it is imported
        self._log = tempfile.TemporaryFile("w+", dir=folder)
        self._process = subprocess.Popen(
            [python, str(HERE / script)],
            cwd=folder,
            env=environment(threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")  # type: ignore[union-attr]
            line = self._process.stdout.readline()  # type: ignore[union-attr]
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            self._log.seek(0)
            raise Failed(f"the request {do!r} {arguments} failed:\n{self._log.read()[-3000:]}")
        return json.loads(line)

    def close(self) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait()
        self._process.stdout.close()  # type: ignore[union-attr]
        self._log.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def write_json(path: Path, record: dict[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(partial, path)


def machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as info:
            cpu = next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux, or a processor that does not say its model
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6,
    }


@functools.cache
def import_error(python: str, modules: str) -> str | None:
    """Why ``python`` cannot import all of the modules (names with commas between), or None."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [python, "-c", f"import {modules}"], cwd=folder, capture_output=True, text=True
            )
        except OSError as error:
            return f"{python} cannot be started: {error}"
    if done.returncode == 0:
        return None
    return f"{python} cannot import it: {done.stderr.strip().splitlines()[-1]}"


@dataclass(frozen=True)
class Run:
    """A program that has ended: what it took, in seconds and 1e6 bytes, and what it wrote.

    ``peak_mb`` is the largest resident size. It counts the pages of mapped files, which the system takes back when
    memory is short; ``own_mb``, sampled 50 times a second, does not (None where the system cannot tell).
    """

    command: list[str]
    seconds: float
    peak_mb: float
    own_mb: float | None
    map: Path


def reconstruct(
    engine: str, stack: Path, out: Path, threads: int, options: Sequence[str] = ("--reg", "none")
) -> Run:
    """Run one program on ``stack/particles.star``; its map goes below ``out``. ``options`` are for ours."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    star = str(stack / "particles.star")
    ours = engine.startswith("invcryo")
    made = out / "run" / "map.mrc" if ours else out / "map.mrc"
    relion = ["--i", star, "--o", str(made), "--ctf"]
    words = ["reconstruct", star, "-o", str(out / "run"), *options, "--threads", str(threads)]
    command = {
        "invcryo": [sys.executable, "-m", "invcryo", *words],
        "relion": ["relion_reconstruct", *relion],
        "relion:mpi": [
            "mpirun",
            "--allow-run-as-root",
            "-n",
            str(threads),
            "relion_reconstruct_mpi",
            *relion,
        ],
    }["invcryo" if ours else engine]
    with open(out / "log.txt", "w") as log:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=stack, env=environment(threads), stdout=log, stderr=subprocess.STDOUT
        )
        with _sampling(process.pid) as samples:
            _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0 or not made.exists():
        text = (out / "log.txt").read_text()[-3000:]
        raise Failed(f"{' '.join(command)} ended with status {process.returncode}:\n{text}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(command, seconds, usage.ru_maxrss * unit / 1e6, max(samples, default=None), made)


@contextlib.contextmanager
def _sampling(pid: int) -> Iterator[list[float]]:
    """Sizes, in 1e6 bytes, of what a process holds without the pages of files; empty where /proc is not."""
    samples: list[float] = []
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(0.02):
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                return
            samples.extend(
                int(line.split()[1]) * 1024 / 1e6
                for line in status.splitlines()
                if line.startswith("RssAnon")
            )

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()
