#!/usr/bin/env python
"""Time invcryo against other programs: ``python benchmarks/run.py --help``, and the README beside this file.

Imports only the standard library: a process that starts others passes its own size on to their peak memory.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import processes
from floor import floor

#: Cases of each part, and the engines of each case; "engine:variant" is one engine in another way of use.
PARTS = {
    "forward": ["forward"],
    "adjoint": ["adjoint", "adjoint-ctf"],
    "kernel": ["kernel", "kernel-ctf"],
    "gram": ["gram"],
    "reconstruct": ["reconstruct"],
}
ENGINES = {
    "forward": ["invcryo", "aspire", "aspire:same-accuracy"],
    "adjoint": ["invcryo", "aspire", "aspire:same-accuracy"],
    "adjoint-ctf": ["invcryo", "aspire", "aspire:same-accuracy"],
    "kernel": ["invcryo", "invcryo:tube", "aspire", "aspire:same-accuracy"],
    "kernel-ctf": ["invcryo", "aspire", "aspire:same-accuracy"],
    "gram": ["invcryo", "aspire"],
    "reconstruct": ["invcryo", "relion", "relion:mpi"],
}

#: Views and largest size of the problem on which the answers are compared.
CHECK_VIEWS, CHECK_SIZE = 6, 32

#: Seconds between two timed calls: idle threads of the other engine spin for a while before they sleep.
PAUSE = 0.3


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    parts = options.part or list(PARTS)
    with tempfile.TemporaryDirectory(prefix="invcryo-benchmark-") as scratch:
        record = _new_record(options, Path(scratch))
        for case in (c for part in parts for c in PARTS[part]):
            _say(f"{case} ...")
            measure = _whole_processes if case == "reconstruct" else _calls
            record["results"].append(measure(case, options, record["rates"], Path(scratch)))
            record["load_after"] = list(os.getloadavg())
            if options.json:  # after every case, so that a long run that is stopped leaves what it has
                processes.write_json(Path(options.json), record)
    print(table(record))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", nargs="+", choices=list(PARTS), help="default: all")
    parser.add_argument("--size", type=int, default=128, help="side of volume and images")
    parser.add_argument(
        "--views", type=int, default=500, help="number of images of all parts but reconstruct"
    )
    parser.add_argument("--particles", type=int, default=1000, help="number of images of reconstruct")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--json", help="file to write the record to")
    parser.add_argument("--rivals", choices=["all", "none"], default="all")
    parser.add_argument(
        "--rival-python",
        default=sys.executable,
        help="interpreter that has ASPIRE (see requirements-rivals.txt); default: this one",
    )
    return parser


def _new_record(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    with processes.Worker(sys.executable, scratch, options.threads) as worker:
        rates = worker.ask("rates", size=options.size, threads=options.threads)["rates"]
    return {
        "schema": 1,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": processes.machine(),
        "load_before": list(os.getloadavg()),
        "rates": rates,
        "options": {k: getattr(options, k) for k in ("size", "views", "particles", "repeat", "threads")},
        "results": [],
    }


# -- calls inside processes that stay alive ---------------------------------------------------------------


def _calls(case: str, options: argparse.Namespace, rates: dict[str, float], scratch: Path) -> dict[str, Any]:
    """Time the engines of one case in turn: A B C A B C ..., after one call of each that does not count."""
    engines: list[dict[str, Any]] = []
    workers: dict[str, processes.Worker] = {}
    try:
        for name in ENGINES[case]:
            result: dict[str, Any] = {"engine": name}
            engines.append(result)
            missing = _missing(name, options)
            if missing:
                result["missing"] = missing
                _say(f"  {name} is missing: {missing}")
                continue
            python = options.rival_python if name.startswith("aspire") else sys.executable
            worker = workers[name] = processes.Worker(python, scratch, options.threads)
            try:
                result |= worker.ask("setup", engine=name, case=case, size=options.size, views=options.views)
                result |= worker.ask("warm_up")
            except processes.Failed as error:
                _give_up(result, error)
                continue
            result["seconds"] = []
        timed = [e for e in engines if "missing" not in e]
        for _ in range(options.repeat):
            for result in timed:
                time.sleep(PAUSE)
                answer = workers[result["engine"]].ask("time")
                result["seconds"].append(answer["seconds"])
                result["peak_mb"] = answer["peak_mb"]
        bound = floor(case, options.size, options.views, rates)
        for result in timed:
            result["error"] = _error(case, result["engine"], workers, options, scratch)
    finally:
        for worker in workers.values():
            worker.close()
    return {"case": case, "floor": bound, "engines": _summarised(engines), "ratios": _ratios(engines)}


def _error(
    case: str, name: str, workers: dict[str, processes.Worker], options: argparse.Namespace, scratch: Path
) -> float:
    """Relative error of the engine's answer to a small problem, against ours in double precision."""
    answer = str(scratch / "answer.npy")
    small = {"size": min(options.size, CHECK_SIZE), "views": CHECK_VIEWS}
    workers[name].ask("check", out=answer, **small)
    exact = "kernel" if case == "gram" else case
    return workers["invcryo"].ask("compare", case=exact, tube=name.endswith(":tube"), answer=answer, **small)[
        "error"
    ]


def _give_up(result: dict[str, Any], error: processes.Failed) -> None:
    """A rival that fails is said and left out; our own failure ends the benchmark."""
    if result["engine"].startswith("invcryo"):
        raise error
    result["missing"] = f"failed: {str(error).strip().splitlines()[-1]}"
    _say(str(error))


def _missing(name: str, options: argparse.Namespace) -> str | None:
    """Why a rival cannot run, or None."""
    engine, _, variant = name.partition(":")
    if engine == "invcryo":
        return None
    if options.rivals == "none":
        return "left out by --rivals none"
    if engine == "aspire":
        return processes.import_error(options.rival_python, "aspire")
    if not shutil.which("relion_reconstruct_mpi" if variant == "mpi" else "relion_reconstruct"):
        return "its program is not on the PATH"
    if variant == "mpi" and not shutil.which("mpirun"):
        return "mpirun is not on the PATH"
    return None


# -- whole processes --------------------------------------------------------------------------------------


def _whole_processes(
    case: str, options: argparse.Namespace, rates: dict[str, float], scratch: Path
) -> dict[str, Any]:
    """Time programs from start to end on one stack: A B A B ..., after one run of each that does not count."""
    with processes.Worker(sys.executable, scratch, options.threads) as worker:
        worker.ask("simulate", folder=str(scratch / "stack"), size=options.size, particles=options.particles)
        engines: list[dict[str, Any]] = []
        for name in ENGINES[case]:
            missing = _missing(name, options)
            engines.append(
                {"engine": name, "missing": missing} if missing else {"engine": name, "seconds": []}
            )
            if missing:
                _say(f"  {name} is missing: {missing}")
        for turn in range(options.repeat + 1):
            for result in (e for e in engines if "missing" not in e):
                folder = scratch / result["engine"].replace(":", "-")
                try:
                    run = processes.reconstruct(result["engine"], scratch / "stack", folder, options.threads)
                except processes.Failed as error:
                    _give_up(result, error)
                    continue
                if turn == 0:
                    result["first_seconds"] = run.seconds
                else:
                    result["seconds"].append(run.seconds)
                result["peak_mb"] = max(result.get("peak_mb", 0.0), run.peak_mb)
                result["program"], result["made"] = run.command[:3], str(run.map)
        for result in (e for e in engines if "missing" not in e):
            truth = str(scratch / "stack" / "truth.mrc")
            result |= worker.ask("resolution", map=result.pop("made"), truth=truth)
    return {"case": case, "engines": _summarised(engines), "ratios": _ratios(engines)}


# -- figures ----------------------------------------------------------------------------------------------


def _summarised(engines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for result in engines:
        if "missing" not in result:
            seconds = result["seconds"]
            result |= {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
    return engines


def _ratios(engines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Seconds of each rival over those of each way of ours: above 1 we are faster."""
    timed = [e for e in engines if "missing" not in e]
    out = []
    for rival in (e for e in timed if not e["engine"].startswith("invcryo")):
        for ours in (e for e in timed if e["engine"].startswith("invcryo")):
            pairs = [r / o for r, o in zip(rival["seconds"], ours["seconds"], strict=True)]
            ratio = statistics.median(rival["seconds"]) / statistics.median(ours["seconds"])
            out.append({"of": rival["engine"], "to": ours["engine"], "medians": ratio, "pairs": pairs})
    return out


def table(record: dict[str, Any]) -> str:
    """The record as text."""
    options, rates, machine = record["options"], record["rates"], record["machine"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {options['threads']} threads; size {options['size']},"
        f" {options['views']} views ({options['particles']} particles), {options['repeat']} timed calls each",
        f"FFT {rates['fft_gflops']:.1f} GFlop/s, copy {rates['copy_gbs']:.1f} GB/s, matrix product"
        f" {rates['matmul_gflops']:.0f} GFlop/s; load {record['load_before'][0]:.1f} before,"
        f" {record['load_after'][0]:.1f} after",
        "",
        f"{'case':12} {'engine':21} {'median s':>9} {'min':>8} {'max':>8} {'first':>7} {'peak MB':>8}"
        f" {'+MB':>6} {'error':>8} {'x floor':>8}",
    ]
    for result in record["results"]:
        bound = result.get("floor", {}).get("seconds")
        for e in result["engines"]:
            name = f"{result['case']:12} {e['engine']:21}"
            if "missing" in e:
                lines.append(f"{name} missing: {e['missing']}")
                continue
            grown = f"{e['peak_mb'] - e['before_mb']:6.0f}" if "before_mb" in e else " " * 6
            error = f"{e['error']:8.1e}" if "error" in e else " " * 8
            over = f"{e['median'] / bound:8.1f}" if bound else f"{e['resolution_angstrom']:6.2f} A"
            lines.append(
                f"{name} {e['median']:9.3f} {e['min']:8.3f} {e['max']:8.3f} {e['first_seconds']:7.2f}"
                f" {e['peak_mb']:8.0f} {grown} {error} {over}"
            )
        if bound:
            parts = ", ".join(f"{k} {1e3 * v:.1f} ms" for k, v in result["floor"]["stage_seconds"].items())
            lines.append(f"{'':12} floor {bound:.4f} s ({parts}): {result['floor']['formula']}")
        for r in result["ratios"]:
            pairs = " ".join(f"{p:.2f}" for p in r["pairs"])
            lines.append(f"{'':12} {r['of']} / {r['to']} = {r['medians']:.2f} (pairs {pairs})")
    return "\n".join(lines)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
