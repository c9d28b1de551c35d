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
    "gram": ["gram", "gram-2x"],
    "mean": ["mean"],
    "tilt": ["tilt"],
    "tv": ["tv"],
    "reconstruct": ["reconstruct", "reconstruct-10x"],
}
PROGRAMS = ["invcryo", "invcryo:tv", "invcryo:tv-fixed", "relion", "relion:mpi"]
ENGINES = {
    "forward": ["invcryo", "aspire", "aspire:same-accuracy"],
    "adjoint": ["invcryo", "aspire", "aspire:same-accuracy"],
    "adjoint-ctf": ["invcryo", "aspire", "aspire:same-accuracy"],
    "kernel": ["invcryo", "invcryo:tube", "aspire", "aspire:same-accuracy"],
    "kernel-ctf": ["invcryo", "aspire", "aspire:same-accuracy"],
    "gram": ["invcryo", "fftpair", "aspire"],
    "gram-2x": ["invcryo", "fftpair", "aspire"],
    "mean": ["invcryo", "aspire"],
    "tilt": ["invcryo", "astra"],
    "tv": ["invcryo", "pylops"],
    "reconstruct": PROGRAMS,
    "reconstruct-10x": PROGRAMS,
}

#: What we want at most: the seconds of ours over those of the other, by case.
TARGETS = {
    "forward": {("invcryo", "aspire"): 0.20},
    "adjoint": {("invcryo", "aspire"): 0.08},
    "kernel": {("invcryo", "aspire"): 0.02, ("invcryo:tube", "aspire"): 0.02},
    "kernel-ctf": {("invcryo", "aspire"): 0.25},
    "gram": {("invcryo", "aspire"): 0.40, ("invcryo", "fftpair"): 1.25},
    "gram-2x": {("invcryo", "aspire"): 0.40, ("invcryo", "fftpair"): 1.25},
    "mean": {("invcryo", "aspire"): 0.10},
    "tilt": {("invcryo", "astra"): 0.07},
    "tv": {("invcryo", "pylops"): 0.10},
    "reconstruct": {("invcryo", "relion"): 0.30, ("invcryo:tv", "relion"): 0.80},
    "reconstruct-10x": {("invcryo", "relion"): 0.30, ("invcryo:tv", "relion"): 0.80},
}

#: What the interpreter of a rival must be able to import.
MODULES = {"aspire": "aspire", "astra": "astra", "pylops": "pylops, pyproximal"}

SETTINGS = ("size", "views", "tilts", "particles", "repeat", "runs", "threads")

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
            measure = _whole_processes if case.startswith("reconstruct") else _calls
            record["results"].append(measure(case, options, record["rates"], Path(scratch)))
            record["load_after"] = list(os.getloadavg())
            if options.json:  # after every case, so that a long run that is stopped leaves what it has
                processes.write_json(Path(options.json), record)
    print(table(record))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", nargs="+", choices=list(PARTS), help="default: all")
    parser.add_argument(
        "--size",
        type=int,
        default=128,
        help="side n of volume and images; gram-2x and tv have 2n, tilt has (n, 2n, 2n)",
    )
    parser.add_argument("--views", type=int, default=500, help="number of images where no other is named")
    parser.add_argument("--tilts", type=int, default=140, help="number of images of tilt")
    parser.add_argument(
        "--particles", type=int, default=1000, help="of reconstruct; reconstruct-10x has ten times as many"
    )
    parser.add_argument("--repeat", type=int, default=3, help="timed calls of each")
    parser.add_argument(
        "--runs",
        type=int,
        default=3,
        help="timed runs of each program in reconstruct; reconstruct-10x has a third, and no run that does not count",
    )
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--json", help="file to write the record to")
    parser.add_argument("--rivals", choices=["all", "none"], default="all")
    parser.add_argument(
        "--rival-python",
        default=sys.executable,
        help="interpreter that has the rivals (see requirements-rivals.txt); what it lacks is looked for in this one",
    )
    return parser


def _new_record(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    with processes.Worker(sys.executable, scratch, options.threads) as worker:
        rates = worker.ask("rates", size=options.size, threads=options.threads)["rates"]
    return {
        "schema": 2,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": processes.machine(),
        "load_before": list(os.getloadavg()),
        "rates": rates,
        "options": {k: getattr(options, k) for k in SETTINGS},
        "results": [],
    }


# -- calls inside processes that stay alive ---------------------------------------------------------------


def _calls(case: str, options: argparse.Namespace, rates: dict[str, float], scratch: Path) -> dict[str, Any]:
    """Time the engines of one case in turn: A B C A B C ..., after one call of each that does not count."""
    engines: list[dict[str, Any]] = []
    workers: dict[str, processes.Worker] = {}
    size, views = _extent(case, options)
    try:
        for name in ENGINES[case]:
            result: dict[str, Any] = {"engine": name}
            engines.append(result)
            missing = _missing(name, options)
            if missing:
                result["missing"] = missing
                _say(f"  {name} is missing: {missing}")
                continue
            worker = workers[name] = processes.Worker(_python(name, options), scratch, options.threads)
            try:
                result |= worker.ask("setup", engine=name, case=case, size=size, views=views)
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
        bound = floor(case, size, views, rates)
        for result in timed:
            result["error"] = _error(case, result["engine"], workers, options, scratch)
    finally:
        for worker in workers.values():
            worker.close()
    return {
        "case": case,
        "size": size,
        "views": views,
        "floor": bound,
        "engines": _summarised(engines),
        "ratios": _ratios(case, engines),
    }


def _extent(case: str, options: argparse.Namespace) -> tuple[int, int]:
    """Size and number of views of a case. The number matters neither to an application of a kernel nor to `tv`."""
    if case in ("gram-2x", "tv"):
        return 2 * options.size, min(options.views, 8)
    return options.size, options.tilts if case == "tilt" else options.views


def _error(
    case: str, name: str, workers: dict[str, processes.Worker], options: argparse.Namespace, scratch: Path
) -> float:
    """Relative error of the engine's answer to a small problem, against ours in double precision."""
    answer = str(scratch / "answer.npy")
    small = {"size": min(options.size, CHECK_SIZE), "views": CHECK_VIEWS}
    workers[name].ask("check", out=answer, **small)
    return workers["invcryo"].ask("compare", case=case, engine=name, answer=answer, **small)["error"]


def _give_up(result: dict[str, Any], error: processes.Failed) -> None:
    """A rival that fails is said and left out; our own failure ends the benchmark."""
    if result["engine"].startswith("invcryo"):
        raise error
    result["missing"] = f"failed: {str(error).strip().splitlines()[-1]}"
    _say(str(error))


def _missing(name: str, options: argparse.Namespace) -> str | None:
    """Why a rival cannot run, or None."""
    engine, _, variant = name.partition(":")
    if engine in ("invcryo", "fftpair"):
        return None
    if options.rivals == "none":
        return "left out by --rivals none"
    if engine in MODULES:
        return processes.import_error(_python(name, options), MODULES[engine])
    if not shutil.which("relion_reconstruct_mpi" if variant == "mpi" else "relion_reconstruct"):
        return "its program is not on the PATH"
    if variant == "mpi" and not shutil.which("mpirun"):
        return "mpirun is not on the PATH"
    return None


def _python(name: str, options: argparse.Namespace) -> str:
    """The interpreter for an engine."""
    modules = MODULES.get(name.partition(":")[0])
    if modules is None:
        return sys.executable
    candidates = (options.rival_python, sys.executable)
    return next((p for p in candidates if processes.import_error(p, modules) is None), candidates[0])


# -- whole processes --------------------------------------------------------------------------------------


def _whole_processes(
    case: str, options: argparse.Namespace, rates: dict[str, float], scratch: Path
) -> dict[str, Any]:
    """Time programs from start to end on one stack: A B A B ...; see --runs for how often."""
    large = case.endswith("10x")
    particles = options.particles * (10 if large else 1)
    turns = range(1, max(1, options.runs // 3) + 1) if large else range(options.runs + 1)
    words = {
        "invcryo": ["--reg", "none"],
        "invcryo:tv": ["--reg", "tv", "--lam", "auto"],
        # what is chosen for these images, which is in units of the noise of H^T y
        "invcryo:tv-fixed": ["--reg", "tv", "--lam", f"{1.15 * particles**0.5:.3g}"],
    }
    with processes.Worker(sys.executable, scratch, options.threads) as worker:
        worker.ask("simulate", folder=str(scratch / "stack"), size=options.size, particles=particles)
        engines: list[dict[str, Any]] = []
        for name in ENGINES[case]:
            missing = _missing(name, options)
            engines.append(
                {"engine": name, "missing": missing} if missing else {"engine": name, "seconds": []}
            )
            if missing:
                _say(f"  {name} is missing: {missing}")
        for turn in turns:
            for result in (e for e in engines if "missing" not in e):
                folder = scratch / result["engine"].replace(":", "-")
                try:
                    run = processes.reconstruct(
                        result["engine"],
                        scratch / "stack",
                        folder,
                        options.threads,
                        words.get(result["engine"], ()),
                    )
                except processes.Failed as error:
                    _give_up(result, error)
                    continue
                if turn == 0:
                    result["first_seconds"] = run.seconds
                else:
                    result["seconds"].append(run.seconds)
                result["peak_mb"] = max(result.get("peak_mb", 0.0), run.peak_mb)
                result["program"], result["made"] = run.command[:3], str(run.map)
                result["options"] = words.get(result["engine"], [])
        for result in (e for e in engines if "missing" not in e):
            truth = str(scratch / "stack" / "truth.mrc")
            result |= worker.ask("resolution", map=result.pop("made"), truth=truth)
    return {
        "case": case,
        "size": options.size,
        "views": particles,
        "engines": _summarised(engines),
        "ratios": _ratios(case, engines),
    }


# -- figures ----------------------------------------------------------------------------------------------


def _summarised(engines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for result in engines:
        if "missing" not in result:
            seconds = result["seconds"]
            result |= {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
    return engines


def _ratios(case: str, engines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Seconds of each way of ours over those of each rival: below 1 we are faster."""
    timed = [e for e in engines if "missing" not in e]
    out = []
    for ours in (e for e in timed if e["engine"].startswith("invcryo")):
        for rival in (e for e in timed if not e["engine"].startswith("invcryo")):
            pairs = [o / r for o, r in zip(ours["seconds"], rival["seconds"], strict=True)]
            ratio = statistics.median(ours["seconds"]) / statistics.median(rival["seconds"])
            target = TARGETS.get(case, {}).get((ours["engine"], rival["engine"]))
            out.append(
                {
                    "of": ours["engine"],
                    "to": rival["engine"],
                    "medians": ratio,
                    "pairs": pairs,
                    "target": target,
                }
            )
    return out


def table(record: dict[str, Any]) -> str:
    """The record as text: every case with its figures, then every target."""
    options, rates, machine = record["options"], record["rates"], record["machine"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {options['threads']} threads; "
        + ", ".join(f"{k} {v}" for k, v in options.items() if k != "threads"),
        f"FFT {rates['fft_gflops']:.1f} GFlop/s, copy {rates['copy_gbs']:.1f} GB/s, matrix product"
        f" {rates['matmul_gflops']:.0f} GFlop/s; load {record['load_before'][0]:.1f} before,"
        f" {record['load_after'][0]:.1f} after",
        "",
        f"{'case':15} {'engine':20} {'median s':>9} {'min':>8} {'max':>8} {'first':>7} {'peak MB':>8}"
        f" {'+MB':>6} {'error':>8} {'x floor':>8}",
    ]
    for result in record["results"]:
        lines += _details(result)
    return "\n".join([*lines, "", *_targets(record)])


def _details(result: dict[str, Any]) -> list[str]:
    lines = []
    bound = result.get("floor", {}).get("seconds")
    for e in result["engines"]:
        name = f"{result['case']:15} {e['engine']:20}"
        if "missing" in e:
            lines.append(f"{name} missing: {e['missing']}")
            continue
        first = f"{e['first_seconds']:7.2f}" if "first_seconds" in e else " " * 7
        grown = f"{e['peak_mb'] - e['before_mb']:6.0f}" if "before_mb" in e else " " * 6
        error = f"{e['error']:8.1e}" if "error" in e else " " * 8
        over = f"{e['median'] / bound:8.1f}" if bound else f"{e['resolution_angstrom']:6.2f} A"
        seconds = f"{e['median']:9.3f} {e['min']:8.3f} {e['max']:8.3f} {first}"
        lines.append(f"{name} {seconds} {e['peak_mb']:8.0f} {grown} {error} {over}")
    if bound:
        parts = ", ".join(f"{k} {1e3 * v:.1f} ms" for k, v in result["floor"]["stage_seconds"].items())
        lines.append(f"{'':15} floor {bound:.4f} s ({parts}): {result['floor']['formula']}")
    for r in result["ratios"]:
        pairs = " ".join(f"{p:.3g}" for p in r["pairs"])
        lines.append(f"{'':15} {r['of']} / {r['to']} = {r['medians']:.3g} (pairs {pairs})")
    return lines


def _targets(record: dict[str, Any]) -> list[str]:
    """One line per target of the cases that were run."""
    lines = [
        f"{'target':15} {'ours':16} {'rival':8} {'ours s':>9} {'rival s':>9} {'ratio':>7} {'at most':>8}"
    ]
    for result in record["results"]:
        engines = {e["engine"]: e for e in result["engines"]}
        ratios = {(r["of"], r["to"]): r["medians"] for r in result["ratios"]}
        for (ours, rival), target in TARGETS.get(result["case"], {}).items():
            start = f"{result['case']:15} {ours:16} {rival:8} {engines[ours]['median']:9.3f}"
            if (ours, rival) not in ratios:
                lines.append(f"{start} {'missing':>9} {'':7} {target:8.2f}")
                continue
            ratio = ratios[ours, rival]
            said = "met" if ratio <= target else f"missed by a factor {ratio / target:.2f}"
            lines.append(f"{start} {engines[rival]['median']:9.3f} {ratio:7.3f} {target:8.2f}  {said}")
    return lines


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
