"""Spoilt files: every reader of invcryo gives a result or a named error, never a crash, a hang or a flood.

Takes sound files of the formats STAR, MRC, .cs and those of tilt series (.mdoc, .tlt, .rawtlt, .xf), spoils them in
ways that happen (cut off, bits turned over, fields overwritten, lines and numbers exchanged) and reads them. What
counts as a finding:

- an exception other than ValueError or OSError, or one without a message: nobody thought of that case;
- more than --seconds for one file; more than --memory MiB on top of what Python takes;
- the end of the process (a crash in compiled code).

Cases are numbered, and each is made from its number alone: `--only NUMBER` repeats one, with the traceback.

    python benchmarks/fuzz.py FOLDER [FOLDER ...] -n 20000
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from invcryo.io import (
    describe,
    open_stack,
    read_cs,
    read_map,
    read_mdoc,
    read_particles,
    read_star,
    read_tilt_series,
    read_xf,
    write_cs,
    write_particles,
    write_stack,
    write_star,
)

TEXTS = (".mdoc", ".tlt", ".rawtlt", ".xf")
SUFFIXES = (".star", ".cs", ".mrc", ".mrcs", ".map", ".ccp4", ".gz", ".bz2", *TEXTS)
MAX_BYTES = 1_000_000
WORDS = (
    b"nan", b"inf", b"-inf", b"1e999", b"-999", b"0", b"-1", b"1e-320", b"99999999999999999999", b"''", b'"',
    b"'", b";", b"\n;\n", b"#", b"loop_", b"data_", b"_rlnImageName", b"_x", b"@", b"0@x", b"000001@", b"\x00",
    b"\xff\xfe", b"\r", b" ", b"\n\n", b"(", b"[", b"{", b"O", b"<u8", b"|S0", b"()", b"(-1,)", b"'descr'",
    b"\xc3\xa9", b"(3,)", b"<f4", b"(2, 3)",
)  # fmt: skip
NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    4,
    6,
    12,
    101,
    127,
    128,
    255,
    1000,
    4096,
    2**16,
    2**24,
    2**31 - 1,
    -(2**31),
    1 << 30,
)
FLOATS = (0.0, -1.0, float("nan"), float("inf"), 1e38, 1e-40, 360.0)


# --- spoiling -----------------------------------------------------------------------------------------------


def spoil(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """``data`` after one, two or four changes; ``other`` is a file to take pieces from."""
    for _ in range(int(rng.choice([1, 1, 1, 2, 4]))):
        change = CHANGES[int(rng.integers(len(CHANGES)))]
        data = change(data, other, rng) if data else other[:64]
    return data


def _place(data: bytes, rng: np.random.Generator) -> int:
    """A position in the file, more often near its beginning, where headers are."""
    end = min(len(data), int(rng.choice([16, 256, 1024, len(data)])))
    return int(rng.integers(end)) if end else 0


def _cut(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(len(data) + 1))]


def _flip(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        out[_place(data, rng)] ^= 1 << int(rng.integers(8))
    return bytes(out)


def _number(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """A field of 4 bytes overwritten by a number that means trouble."""
    at = _place(data, rng) // 4 * 4
    order = str(rng.choice(["<", ">"]))
    if rng.random() < 0.7:
        field = np.array(int(rng.choice(NUMBERS)), order + "i4").tobytes()
    else:
        field = np.array(float(rng.choice(FLOATS)), order + "f4").tobytes()
    return data[:at] + field + data[at + 4 :]


def _drop(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    at = _place(data, rng)
    return data[:at] + data[at + int(rng.integers(1, 64)) :]


def _repeat(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    at, length = _place(data, rng), int(rng.integers(1, 256))
    return data[:at] + data[at : at + length] * int(rng.integers(2, 20)) + data[at:]


def _word(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    at = _place(data, rng)
    return data[:at] + WORDS[int(rng.integers(len(WORDS)))] + data[at + int(rng.integers(0, 8)) :]


def _token(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """One word of a text replaced by another word, or by trouble."""
    lines = data.split(b"\n")
    row = int(rng.integers(len(lines)))
    words = lines[row].split(b" ")
    at = int(rng.integers(len(words)))
    if rng.random() < 0.5:
        words[at] = WORDS[int(rng.integers(len(WORDS)))]
    else:
        words[at] = words[int(rng.integers(len(words)))]
    lines[row] = b" ".join(words)
    return b"\n".join(lines)


def _lines(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    lines = data.split(b"\n")
    a, b = rng.integers(len(lines), size=2)
    if rng.random() < 0.5:
        lines[a], lines[b] = lines[b], lines[a]
    else:
        del lines[a]
    return b"\n".join(lines)


def _splice(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    a, b = _place(data, rng), _place(other, rng)
    return data[:a] + other[b:]


CHANGES: tuple[Callable[[bytes, bytes, np.random.Generator], bytes], ...] = (
    _cut, _flip, _flip, _number, _number, _drop, _repeat, _word, _token, _token, _lines, _splice,
)  # fmt: skip


# --- reading ------------------------------------------------------------------------------------------------


def use_star(path: Path) -> None:
    """All that is done with a STAR file; what was read must be written and read again to the same."""
    blocks = attempt(lambda: read_star(path))
    if blocks is not FAILED:
        again = path.with_name("again.star")
        if attempt(lambda: write_star(again, blocks)) is not FAILED and read_star(again) != blocks:
            raise AssertionError("a STAR file that was read and written reads differently")
    attempt(lambda: describe(path))
    use_particles(path)


def use_cs(path: Path) -> None:
    attempt(lambda: read_cs(path))
    attempt(lambda: describe(path))
    use_particles(path)


def use_particles(path: Path) -> None:
    stack = attempt(lambda: read_particles(path, open_images=False))
    if stack is not FAILED:
        for write, name in ((write_particles, "again.star"), (write_cs, "again.cs")):
            again = path.with_name(name)
            if attempt(partial(write, again, stack)) is not FAILED:
                if len(read_particles(again, open_images=False)) != len(stack):
                    raise AssertionError("a particle set that was written has another number of particles")


def use_mrc(path: Path) -> None:
    attempt(lambda: describe(path))
    attempt(lambda: read_map(path, kind="volume"))
    stack = attempt(lambda: open_stack(path))
    if stack is not FAILED:
        attempt(lambda: stack[:2])
        if path.suffix in (".mrc", ".mrcs") and len(stack) <= 200:
            attempt(lambda: read_tilt_series(path, angles=np.linspace(-60, 60, len(stack))))


def use_tilts(path: Path) -> None:
    """A file beside a sound stack of as many small images as it, or the file it was made from, has entries."""
    if path.suffix == ".mdoc":
        attempt(lambda: read_mdoc(path))
    if path.suffix == ".xf":
        attempt(lambda: read_xf(path))
    for n in (1, 41, 60, 61):
        stack = path.with_suffix(".mrcs")
        write_stack(stack, np.ones((n, 6, 6), np.float32), 2.0)
        angles = np.linspace(-60, 60, n) if path.suffix == ".xf" else None
        attempt(partial(read_tilt_series, stack, angles=angles))
        stack.unlink()


FAILED = object()


class TooSlow(BaseException):
    """No OSError, as TimeoutError is: those count as named errors."""


outcomes: Counter[str] = Counter()
unnamed: Counter[str] = Counter()


def attempt(action: Callable[[], Any]) -> Any:
    """The result, or FAILED after a named error; other exceptions pass."""
    try:
        found = action()
    except (ValueError, OSError) as error:
        if isinstance(error, UnicodeError) or len(str(error)) < 10:
            raise
        named = any(name in str(error) for name in ("case.", "again."))
        outcomes["named error" if named else "error without the name of the file"] += 1
        if not named:
            unnamed[str(error)[:60]] += 1
        return FAILED
    outcomes["result"] += 1
    return found


def use(path: Path) -> None:
    name = path.name
    if name.endswith(".star"):
        use_star(path)
    elif name.endswith(".cs"):
        use_cs(path)
    elif name.endswith(TEXTS):
        use_tilts(path)
    else:
        use_mrc(path)


# --- cases --------------------------------------------------------------------------------------------------


def files_of(folders: Sequence[Path]) -> list[Path]:
    """Sound files to begin with, smaller than 1 MB, in the order of their names."""
    found = [p for folder in folders for p in ([folder] if folder.is_file() else sorted(folder.rglob("*")))]
    return [p for p in found if p.suffix.lower() in SUFFIXES and p.stat().st_size <= MAX_BYTES]


def make(number: int, seed: int, files: Sequence[Path]) -> tuple[str, bytes]:
    """Name (with the suffix of its format) and content of a case."""
    rng = np.random.default_rng([seed, number])
    # Formats come up equally often, whatever the number of files of each.
    kinds = sorted({p.suffix for p in files})
    kind = kinds[int(rng.integers(len(kinds)))]
    chosen = [p for p in files if p.suffix == kind]
    first, second = chosen[int(rng.integers(len(chosen)))], files[int(rng.integers(len(files)))]
    suffix = "".join(first.suffixes[-2:]) if first.suffix in (".gz", ".bz2") else first.suffix
    data = first.read_bytes()
    if kind in (".cs", ".star", ".mdoc") and len(data) > 50_000:  # the beginning of a long table will do
        data = _shorter(first, data)
    return f"case{suffix}", spoil(data, second.read_bytes(), rng)


def _shorter(path: Path, data: bytes) -> bytes:
    if path.suffix != ".cs":
        return data[:50_000]
    end = data.index(b"\n") + 1
    rows = data.split(b"'shape': (", 1)[1].split(b",", 1)[0]
    size = (len(data) - end) // int(rows)
    return data[:end].replace(b"(" + rows, b"(" + b"20".ljust(len(rows)), 1) + data[end : end + 20 * size]


def _work(first: int, last: int, seed: int, files: list[Path], limits: dict, queue, now) -> None:
    """Cases ``first`` to ``last``; what is found goes to ``queue``, the case at work into ``now``."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + limits["memory"] * 2**20,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def late(*_: object) -> None:
        raise TooSlow

    signal.signal(signal.SIGALRM, late)
    slowest = (0.0, first)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, last):
            now.value = number
            name, content = make(number, seed, files)
            path = Path(folder) / name
            path.write_bytes(content)
            start = time.perf_counter()
            signal.setitimer(signal.ITIMER_REAL, limits["seconds"])
            try:
                use(path)
            except BaseException as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{Path(where.filename).name}:{where.lineno}"
                queue.put(
                    {
                        "case": number,
                        "file": name,
                        "what": f"{type(error).__name__} at {place}: {error}"[:300],
                    }
                )
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            slowest = max(slowest, (time.perf_counter() - start, number))
            path.unlink(missing_ok=True)
    now.value = last
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    queue.put({"outcomes": dict(outcomes), "unnamed": dict(unnamed), "slowest": slowest, "peak_mib": peak})


def fuzz(
    files: list[Path], n: int, *, seed: int = 0, memory: int = 1024, seconds: float = 10.0, batch: int = 500
) -> dict:
    """Run ``n`` cases in processes of ``batch`` each; what was found, and how the rest ended."""
    context = multiprocessing.get_context("fork")
    report: dict = {
        "cases": n,
        "seed": seed,
        "files": len(files),
        "findings": [],
        "outcomes": Counter(),
        "unnamed": Counter(),
    }
    report |= {"slowest_seconds": 0.0, "slowest_case": 0, "peak_mib": 0.0}
    start, first = time.time(), 0
    while first < n:
        last = min(first + batch, n)
        queue, now = context.SimpleQueue(), context.Value("q", first)
        limits = {"memory": memory, "seconds": seconds}
        process = context.Process(target=_work, args=(first, last, seed, files, limits, queue, now))
        process.start()
        while process.is_alive() or not queue.empty():
            if queue.empty():
                time.sleep(0.005)
                continue
            found = queue.get()
            if "case" in found:
                report["findings"].append(found)
            else:
                report["outcomes"].update(found["outcomes"])
                report["unnamed"].update(found["unnamed"])
                report["peak_mib"] = max(report["peak_mib"], found["peak_mib"])
                if found["slowest"][0] > report["slowest_seconds"]:
                    report["slowest_seconds"], report["slowest_case"] = found["slowest"]
        process.join()
        if now.value < last:  # it died at a case
            report["findings"].append({"case": now.value, "what": f"process ended with {process.exitcode}"})
            last = now.value + 1
        first = last
    report |= {"outcomes": dict(report["outcomes"]), "unnamed": dict(report["unnamed"].most_common(20))}
    report["wall_seconds"] = round(time.time() - start, 1)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="folders (or files) with sound files")
    parser.add_argument("-n", type=int, default=20000, help="number of cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", type=int, default=1024, metavar="MiB")
    parser.add_argument("--seconds", type=float, default=10.0, help="for one case")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="repeat one case here, with its traceback")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="with --only: leave the spoilt file there"
    )
    args = parser.parse_args(argv)
    files = files_of(args.folders)
    if not files:
        parser.error("no file to begin with")
    if args.only is not None:
        name, content = make(args.only, args.seed, files)
        with tempfile.TemporaryDirectory() as folder:
            path = (args.keep or Path(folder)) / name
            path.write_bytes(content)
            use(path)
            print(dict(outcomes), dict(unnamed))
        return 0
    report = fuzz(files, args.n, seed=args.seed, memory=args.memory, seconds=args.seconds)
    print(json.dumps(report, indent=2))
    return 1 if report["findings"] else 0


if __name__ == "__main__":
    os.environ.setdefault("INVCRYO_NUM_THREADS", "1")
    sys.exit(main())
