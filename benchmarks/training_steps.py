#!/usr/bin/env python
"""Training steps and central slices by our tape and by PyTorch on the CPU, in turn.

    python benchmarks/training_steps.py --torch-python torch/bin/python --json steps.json

One process per engine and case, the same number of threads and OMP_WAIT_POLICY=PASSIVE for all. After a few steps that
do not count, runs of steps in turn, A B C A B C ... Reported: medians, and the ratio ours / the fastest of PyTorch's
variants; "cpu" is the time that all threads of a process have used, which other jobs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import autograd_problem
from processes import Worker, import_error, machine, write_json

#: ours / PyTorch, at most.
TARGETS = {"wgan-64": 1.0, "wgan-128": 1.0, "posenet-64": 1.2, "slices-8": 0.3, "slices-64": 0.3}
VARIANTS = {
    "wgan": ("torch:nchw", "torch:nhwc"),
    "posenet": ("torch:nchw", "torch:nhwc", "torch:nchw gather", "torch:nhwc gather"),
    "slices": ("torch:nchw", "torch:gather"),
}
#: Of slices the target is against grid_sample, PyTorch's own interpolation.
RIVALS = {"slices": ("torch:nchw",)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--torch-python", default=sys.executable, help="interpreter with benchmarks/requirements-torch.txt"
    )
    parser.add_argument("--case", nargs="+", choices=autograd_problem.CASES, default=autograd_problem.CASES)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=15, help="turns of each engine")
    parser.add_argument("--steps", type=int, default=4, help="steps per turn")
    parser.add_argument("--json", type=Path, help="where to write the record")
    options = parser.parse_args(argv)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    missing = import_error(options.torch_python, "torch")
    if missing:
        print(f"PyTorch is missing: {missing}", file=sys.stderr)
    record: dict[str, Any] = {
        "machine": machine(),
        "options": {"threads": options.threads, "rounds": options.rounds, "steps": options.steps},
        "load_before": os.getloadavg(),
        "results": [],
    }
    for case in options.case:
        result = measure(case, options, with_torch=not missing)
        record["results"].append(result)
        print("\n".join(lines(result)), flush=True)
    record["load_after"] = os.getloadavg()
    print(f"load {record['load_before'][0]:.1f} before, {record['load_after'][0]:.1f} after")
    if options.json:
        write_json(options.json, record)
    return 0


def measure(case: str, options: argparse.Namespace, with_torch: bool) -> dict[str, Any]:
    kind = case.partition("-")[0]
    engines = ["ours", *(VARIANTS[kind] if with_torch else ())]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = {}
        for engine in engines:
            python = sys.executable if engine == "ours" else options.torch_python
            worker = Worker(python, folder, options.threads, "autograd_worker.py")
            workers[engine] = stack.enter_context(worker)
        entries = {e: {"engine": e, **w.ask("setup", engine=e, case=case)} for e, w in workers.items()}
        seconds: dict[str, list[float]] = {e: [] for e in engines}
        cpu: dict[str, list[float]] = {e: [] for e in engines}
        for w in workers.values():
            w.ask("time", calls=3)
        for _ in range(options.rounds):
            for engine, worker in workers.items():
                answer = worker.ask("time", calls=options.steps)
                seconds[engine] += answer["seconds"]
                cpu[engine] += answer["cpu_seconds"]
                entries[engine]["peak_mb"] = answer["peak_mb"]
    for engine, entry in entries.items():
        s, c = seconds[engine], cpu[engine]
        entry |= {"median": statistics.median(s), "min": min(s), "max": max(s), "cpu": statistics.median(c)}
        entry |= {"seconds": s, "cpu_seconds": c}
    result: dict[str, Any] = {"case": case, "engines": list(entries.values())}
    rivals = [entries[e] for e in RIVALS.get(kind, VARIANTS[kind]) if e in entries]
    if rivals:
        ours = entries["ours"]
        result["rival"] = min(rivals, key=lambda e: e["median"])["engine"]
        result["ratio"] = ours["median"] / min(e["median"] for e in rivals)
        result["ratio_of_minima"] = ours["min"] / min(e["min"] for e in rivals)
        result["ratio_of_cpu"] = ours["cpu"] / min(e["cpu"] for e in rivals)
        result["at_most"] = TARGETS[case]
    return result


def lines(result: dict[str, Any]) -> list[str]:
    out = []
    for e in result["engines"]:
        out.append(
            f"{result['case']:11} {e['engine']:18} median {1e3 * e['median']:8.1f} ms  min {1e3 * e['min']:8.1f}"
            f"  cpu {1e3 * e['cpu']:8.1f}  {e['peak_mb']:6.0f} MB"
        )
    if "ratio" in result:
        said = "" if result["ratio"] <= result["at_most"] else "  MISSED"
        out.append(
            f"{result['case']:11} ours / {result['rival']}: {result['ratio']:.2f} (minima"
            f" {result['ratio_of_minima']:.2f}, cpu {result['ratio_of_cpu']:.2f}), at most {result['at_most']}{said}"
        )
    return out


if __name__ == "__main__":
    raise SystemExit(main())
