#!/usr/bin/env python
"""How fast the objective falls: our default, the published schemes, primal-dual ones, and rivals.

After the study of Donati 2020, section 4.3.3 and Figure 4.16; see CONVERGENCE.md. The record holds every curve as it is
finished, so that a run that is broken off goes on from there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

TARGETS = (1e-2, 1e-3, 1e-4)
TUNED_FOR = 1e-3  # the target for which a parameter is chosen where only one can be
STEP = 10**0.5  # between two values of a scan
ROOT = Path(__file__).resolve().parent.parent

Curve = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    options = _options(argv)
    for name in ("OMP", "OPENBLAS", "MKL", "NUMBA", "INVCRYO"):  # before anything that reads them is imported
        os.environ[f"{name}_NUM_THREADS"] = str(options.threads)
    sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]
    study = Study(options)
    if options.part == "rho":
        print(penalties(study))
        return 0
    if options.scan == "walk" and options.scan_size < options.size:
        study.scan(options.scan_size, every=True)
    study.scan(options.size, every=options.scan == "full")
    study.time(options.size)
    print(table(study.record, options.size))
    if options.plot:
        plot(study.record, options.size, options.plot)
    return 0


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=["curves", "rho"], default="curves",
                        help="the curves; or the default against penalties by hand, over lambda and views")  # fmt: skip
    parser.add_argument("--size", type=int, default=64, help="voxels along the box of 256 angstrom")
    parser.add_argument(
        "--views", type=int, nargs="+", default=None, help="default 30; part rho: 30 300 1000"
    )
    parser.add_argument("--snr", type=float, default=1.0)
    parser.add_argument("--lam-fraction", type=float, nargs="+", default=None,
                        help="of lambda_max; default 0.01; part rho: 0.001 0.01 0.1")  # fmt: skip
    parser.add_argument(
        "--model", type=Path, help="PDB or mmCIF file; default: 5a1a.pdb of the reference data"
    )
    parser.add_argument("--methods", nargs="+", help="keys of the methods; default: all")
    parser.add_argument("--scan", choices=["full", "walk", "none"], default="walk",
                        help="full: four decades; walk: from the best at --scan-size, where all four are scanned, until"
                        " the best lies between two others; none: the best at --scan-size")  # fmt: skip
    parser.add_argument("--scan-size", type=int, default=32)
    parser.add_argument("--max-iter", type=int, default=1000, help="of a curve")
    parser.add_argument("--max-seconds", type=float, default=30.0, help="of solver time of a curve")
    parser.add_argument(
        "--reference-gap", type=float, default=2e-6, help="estimated gap of the reference optimum"
    )
    parser.add_argument("--reference-iterations", type=int, default=3000)
    parser.add_argument(
        "--check-iterations", type=int, default=100, help="of FISTA, which checks the optimum; 0: none"
    )
    parser.add_argument("--repeat", type=int, default=5, help="rounds of the timing of iterations")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="record: written after every curve, taken up if it exists")
    parser.add_argument("--plot", type=Path, help="figure to write")
    options = parser.parse_args(argv)
    several = options.part == "rho"
    options.views = options.views or ([30, 300, 1000] if several else [30])
    options.lam_fraction = options.lam_fraction or ([1e-3, 1e-2, 1e-1] if several else [1e-2])
    if not several and len(options.views) + len(options.lam_fraction) > 2:
        parser.error("the curves are of one number of --views and one --lam-fraction")
    if options.scan_size > options.size:
        options.scan_size = options.size
    if options.model is None:
        named = os.environ.get("INVCRYO_TEST_DATA")
        folder = Path(named) if named else ROOT.parent / "shared" / "data"
        model = folder / "models" / "5a1a.pdb"
        options.model = model if model.is_file() else None
    elif not options.model.is_file():
        parser.error(f"there is no model at {options.model}")
    return options


class Study:
    """The record, and what adds to it."""

    def __init__(self, options: argparse.Namespace) -> None:
        import convergence_methods
        import processes

        self.library, self.options = convergence_methods, options
        self._write = processes.write_json
        self._problems: dict[tuple[int, int, float], Any] = {}
        chosen = {
            "views": options.views,
            "snr": options.snr,
            "lam_fraction": options.lam_fraction,
            "model": None if options.model is None else options.model.name,
            "threads": options.threads,
        }
        self.record: dict[str, Any] = {
            "schema": 1,
            "machine": processes.machine(),
            "load": list(os.getloadavg()),
            "options": chosen,
            "problems": {},
            "references": {},
            "curves": {},
            "timing": {},
            "missing": {},
            "left out": {},
        }
        if options.json and options.json.exists():
            self.record = json.loads(options.json.read_text())
            if self.record["options"] != chosen:
                raise SystemExit(
                    f"{options.json} holds a study with other options, {self.record['options']}: name another file"
                )
        known = {m.key: m for m in convergence_methods.METHODS}
        unknown = set(options.methods or ()) - set(known)
        if unknown:
            raise SystemExit(f"unknown methods {sorted(unknown)}: there are {', '.join(known)}")
        self.methods = []
        for m in known.values():
            if options.methods and m.key not in options.methods:
                continue
            if m.missing:
                self.record["missing"][m.key] = m.missing
                say(f"{m.label}: missing, {m.missing}")
            else:
                self.record["missing"].pop(m.key, None)
                self.methods.append(m)

    def problem(self, size: int, views: int | None = None, fraction: float | None = None) -> tuple[str, Any]:
        """Its name in the record, and the problem."""
        views = self.options.views[0] if views is None else views
        fraction = self.options.lam_fraction[0] if fraction is None else fraction
        name = f"{size}|{views}|{fraction:g}"
        key = (size, views, fraction)
        if key not in self._problems:
            self._problems.clear()  # one at a time: they may be large
            p = self.library.make_problem(size, views, self.options.snr, fraction, self.options.model)
            self._problems[key] = p
            self.record["problems"][name] = {
                "source": p.source,
                "lambda": p.lam,
                "norm": p.norm,
                "mean eigenvalue": p.mean,
                "unit": p.unit,
            }
        return name, self._problems[key]

    def save(self) -> None:
        if self.options.json:
            self._write(self.options.json, self.record)

    # -- the optimum ----------------------------------------------------------------------------------------

    def optimum(self, name: str, problem: Any, border: str) -> float:
        key = f"{name}|{border}"
        if key not in self.record["references"]:
            self.record["references"][key] = self._long_run(problem, border)
            self.save()
        return Curves(self.record, name).optimum(border)

    def _long_run(self, problem: Any, border: str) -> dict[str, Any]:
        import numpy as np

        from invcryo.solvers import admm

        cost, limit = problem.cost(border), self.options.reference_iterations
        for state in admm(cost):
            if state.info["gap"] < self.options.reference_gap or state.iteration >= limit:
                break
        x = np.maximum(state.x, 0)
        value = problem.value(x, border)
        out = {
            "value": value,
            "iterations": state.iteration,
            "estimated gap": state.info["gap"],
            "error of the map": float(np.linalg.norm(x - problem.truth) / np.linalg.norm(problem.truth)),
        }
        checks = self.options.check_iterations
        if border == "zero-flux" and checks:
            # a way to the same point that shares nothing with it
            other = next(islice(self.library.fista(problem, 20), checks - 1, None))
            out["check"] = {
                "method": f"FISTA, {checks} iterations with 20 inner ones",
                "gap against the reference": 1 - problem.value(other, border) / value,
                "distance of the maps": float(np.linalg.norm(other - x) / np.linalg.norm(x)),
            }
        say(f"reference, {border}: {json.dumps(out)}")
        return out

    # -- curves -----------------------------------------------------------------------------------------------

    def curve(
        self, size: int, method: Any, parameter: float, limit: int | None = None, **which: Any
    ) -> Curve:
        """The curve, from the record if it is there."""
        import numpy as np

        name, problem = self.problem(size, **which)
        key = f"{name}|{method.key}|{parameter:.4g}"
        if key not in self.record["curves"]:
            best = self.optimum(name, problem, method.border)
            curve = trace(
                method.start(problem, parameter),
                lambda x: problem.value(np.asarray(x, problem.data.Q.dtype), method.border),
                best,
                limit or self.options.max_iter,
                self.options.max_seconds,
            )
            curve.update(problem=name, method=method.key, border=method.border, parameter=parameter)
            self.record["curves"][key] = curve
            self.save()
            known = Curves(self.record, name)
            reached = ", ".join(f"{known.reach(curve, t) or math.inf:.0f}" for t in TARGETS)
            say(f"{key}: {reached} iterations, {curve['seconds'][-1]:.1f} s, {curve['stopped']}")
        return self.record["curves"][key]

    def found(self, size: int, **which: Any) -> Curves:
        """All curves that are there."""
        return Curves(self.record, self.problem(size, **which)[0])

    def scan(self, size: int, every: bool) -> None:
        """The curves of all methods."""
        for method in self.methods:
            grid = method.grid
            if method.twin:
                found = self.found(size)
                if twins := found.of(method.twin):
                    self.curve(size, method, found.quickest(twins, TUNED_FOR)["parameter"])
                    continue
            if every or len(grid) == 1:
                for value in grid:
                    self.curve(size, method, value)
                continue
            found = self.found(self.options.scan_size)
            small = found.of(method.key)
            if small and all(found.reach(c, TARGETS[0]) is None for c in small):
                why = (
                    f"left out: at {self.options.scan_size}^3 no curve of the scan came below {TARGETS[0]:g}"
                )
                self.record["left out"][method.key] = why
                say(f"{method.label}: {why}")
                continue
            first = found.quickest(small, TUNED_FOR)["parameter"] if small else grid[len(grid) // 2]
            if self.options.scan == "none":
                self.curve(size, method, first)
            else:
                self.walk(size, method, first)

    def walk(self, size: int, method: Any, first: float, **which: Any) -> None:
        """From ``first`` on until the best parameter lies between two others."""
        values = method.grid if method.parameter == "inner" else None

        def neighbour(p: float, way: int) -> float | None:
            if values is None:
                return p * STEP**way
            i = values.index(p) + way
            return values[i] if 0 <= i < len(values) else None

        done: dict[float, Curve] = {}

        def run(p: float | None) -> None:
            if p is None or any(math.isclose(p, q, rel_tol=1e-3) for q in done):
                return
            found = self.found(size, **which)
            reached = [found.reach(c, TARGETS[-1]) for c in done.values()]
            quickest = min((k for k in reached if k is not None), default=None)
            limit = None if quickest is None else min(self.options.max_iter, math.ceil(1.5 * quickest) + 10)
            done[p] = self.curve(size, method, p, limit, **which)

        run(first)
        centre = first
        for _ in range(12):
            run(neighbour(centre, -1))
            run(neighbour(centre, 1))
            best = self.found(size, **which).quickest(list(done.values()), TUNED_FOR)["parameter"]
            if best == centre:
                return
            centre = best

    # -- seconds ----------------------------------------------------------------------------------------------

    def time(self, size: int, each: int = 2) -> None:
        """Seconds per iteration of all methods in turn, A B C A B C ..."""
        name, problem = self.problem(size)
        found = self.found(size)
        runs: dict[str, Iterator[Any]] = {"product": (problem.data.Q(problem.truth) for _ in iter(int, 1))}
        next(runs["product"])
        for method in self.methods:
            if not (curves := found.of(method.key)):
                continue
            chosen = [found.quickest(curves, TUNED_FOR)] if method.parameter != "inner" else curves
            for curve in chosen:
                key = timing_key(curve)
                runs[key] = method.start(problem, curve["parameter"])
                next(runs[key])  # compiles, plans, allocates: not counted
        seconds: dict[str, list[float]] = {key: [] for key in runs}
        for _ in range(self.options.repeat):
            for key, states in runs.items():
                for _ in range(each):
                    start = time.perf_counter()
                    next(states)
                    seconds[key].append(time.perf_counter() - start)
        timing = self.record["timing"].setdefault(name, {})
        for key, values in seconds.items():
            timing[key] = {"median": statistics.median(values), "all": values}
        self.record["load_after"] = list(os.getloadavg())
        self.save()


def trace(
    states: Iterator[Any], value: Callable[[Any], float], best: float, max_iter: int, max_seconds: float
) -> Curve:
    """The values along an iteration; only the iteration is timed.

    Each of the first 20 iterations is evaluated, later ones 5 % apart. Ends well below the last target.
    """
    iterations, values, seconds, stopped = [], [], [], "max_iter"
    total, due = 0.0, 1
    for k in range(1, max_iter + 1):
        start = time.perf_counter()
        x = next(states)
        total += time.perf_counter() - start
        if k < due and k < max_iter:
            continue
        due = k + max(1, k // 20)
        v = value(x)
        iterations.append(k)
        values.append(v)
        seconds.append(total)
        if not v < 1e3 * abs(best):
            stopped = "diverged"
            values[-1] = 1e3 * abs(best)
            break
        if 1 - v / best < 0.5 * TARGETS[-1]:
            stopped = "target"
            break
        if total > max_seconds:
            stopped = "max_seconds"
            break
    return {"iterations": iterations, "values": values, "seconds": seconds, "stopped": stopped}


def timing_key(curve: Curve) -> str:
    """Under which the timing of its iterations is kept: a number of inner ones changes it, a penalty does not."""
    return f"{curve['method']}|{curve['parameter']:g}" if curve["method"] == "fista" else curve["method"]


class Curves:
    """The curves of one problem in a record."""

    def __init__(self, record: dict[str, Any], name: str) -> None:
        self.all = [c for c in record["curves"].values() if c["problem"] == name]
        self.timing = record["timing"].get(name, {})
        self._optimum: dict[str, float] = {}
        for key, reference in record["references"].items():
            of, border = key.rsplit("|", 1)
            if of == name:
                values = [min(c["values"]) for c in self.all if c["border"] == border]
                self._optimum[border] = min([reference["value"], *values])

    def of(self, method: str) -> list[Curve]:
        return [c for c in self.all if c["method"] == method]

    def optimum(self, border: str) -> float:
        """The least value that is known: of the long run of the default, or of any curve."""
        return self._optimum[border]

    def gaps(self, curve: Curve) -> list[float]:
        """``(F(x_k) - min F) / (F(0) - min F)``, where ``F(0) = 0``."""
        best = self.optimum(curve["border"])
        return [max(1 - v / best, 1e-9) for v in curve["values"]]

    def reach(self, curve: Curve, target: float) -> float | None:
        """The iteration from which the gap is below the target, interpolated where not all were evaluated."""
        g = self.gaps(curve)
        if g[-1] > target:
            return None
        last = max((i for i, v in enumerate(g) if v > target), default=None)
        if last is None:
            return float(curve["iterations"][0])
        k0, k1 = curve["iterations"][last], curve["iterations"][last + 1]
        part = math.log(g[last] / target) / math.log(g[last] / g[last + 1])
        return float(math.ceil(k0 + part * (k1 - k0)))

    def seconds(self, curve: Curve) -> float:
        """Per iteration; from the curve itself where they were not yet timed in turn with the others."""
        timed = self.timing.get(timing_key(curve))
        return timed["median"] if timed else curve["seconds"][-1] / curve["iterations"][-1]

    def elapsed(self, curve: Curve, k: float, like: Curve | None = None) -> float:
        """Seconds to iteration ``k`` of a curve: at the median of `seconds`, and the time before the first iteration.

        That time (a coarser problem solved, penalties looked for) is counted in iterations as they came. ``like``
        is the curve that has been timed, where ``curve`` is its twin.
        """
        timed = like or curve
        came = timed["seconds"]
        first = statistics.median([b - a for a, b in itertools.pairwise(came[:12])] or [came[0]])
        return (k + max(0.0, came[0] / first - 1.0)) * self.seconds(timed)

    def quickest(self, curves: list[Curve], target: float) -> Curve:
        """To the target; where none got there, the one that got furthest."""

        def cost(curve: Curve) -> tuple[float, float]:
            k = self.reach(curve, target)
            if k is None:
                return math.inf, min(curve["values"])
            return k * (self.seconds(curve) if curve["method"] == "fista" else 1.0), 0.0

        return min(curves, key=cost)


def at(curve: Curve, name: str, k: float) -> float:
    """Another figure of the curve at an iteration, on a line between those that were kept."""
    import numpy as np

    return float(np.interp(k, [0, *curve["iterations"]], [0, *curve[name]]))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# -- what is reported -----------------------------------------------------------------------------------------


def summary(record: dict[str, Any], size: int) -> dict[str, dict[str, Any]]:
    """For each method its seconds per iteration, and for each target its best parameter and what it takes."""
    from convergence_methods import METHODS

    found = Curves(record, name_of(record, size))
    rows: dict[str, dict[str, Any]] = {}
    for method in METHODS:
        if not (own := found.of(method.key)):
            continue
        rows[method.key] = {"seconds per iteration": found.seconds(found.quickest(own, TUNED_FOR))}
        for target in TARGETS:
            curve = found.quickest(found.of(method.twin) or own, target)  # a twin has the same iterates
            mine = next((c for c in own if c["parameter"] == curve["parameter"]), None)
            k = found.reach(curve, target)
            rows[method.key][f"{target:g}"] = {
                "parameter": curve["parameter"],
                "iterations": k,
                "seconds": None if k is None else found.elapsed(curve, k, mine or own[0]),
                "raw seconds": None if k is None or mine is None else at(mine, "seconds", k),
                "gap reached": found.gaps(curve)[-1],
                "iterations done": curve["iterations"][-1],
            }
    return rows


def name_of(record: dict[str, Any], size: int) -> str:
    options = record["options"]
    return f"{size}|{options['views'][0]}|{options['lam_fraction'][0]:g}"


def table(record: dict[str, Any], size: int) -> str:
    """The record as text."""
    from convergence_methods import METHODS

    labels = {m.key: m.label for m in METHODS}
    name, rows = name_of(record, size), summary(record, size)
    problem, machine, options = record["problems"][name], record["machine"], record["options"]
    lines = [
        f"{problem['source']}, {size}^3, {options['views'][0]} views, SNR {options['snr']:g}, lambda"
        f" {options['lam_fraction'][0]:g} of its bound; {options['threads']} threads of {machine['cpu']}; load"
        f" {record['load'][0]:.1f} before, {record.get('load_after', [math.nan])[0]:.1f} after"
    ]
    for key, r in record["references"].items():
        if key.startswith(name + "|"):
            check = r.get("check")
            other = f"; by {check['method']}: gap {check['gap against the reference']:.1e}" if check else ""
            lines.append(
                f"optimum, border {key.rsplit('|', 1)[1]}: {r['iterations']} iterations, estimated gap"
                f" {r['estimated gap']:.1e}, error of the map {r['error of the map']:.3f}{other}"
            )
    lines.append(
        f"{'':36} {'ms/iter':>8}"
        + "".join(f" | to {t:<6g} {'par.':>7} {'s':>7} {'raw s':>7} {'ratio':>6}" for t in TARGETS)
    )
    for key, row in rows.items():
        line = f"{labels[key]:36} {1e3 * row['seconds per iteration']:8.1f}"
        for t in TARGETS:
            cell, ours = row[f"{t:g}"], rows.get("default", {}).get(f"{t:g}", {}).get("seconds")
            if cell["iterations"] is None:
                reached = f"{cell['gap reached']:.0e} at {cell['iterations done']}"
                line += f" | {'-':>8} {cell['parameter']:8.3g} {reached:>22}"
                continue
            ratio = f"{ours / cell['seconds']:.2f}" if ours else "-"
            line += (
                f" | {cell['iterations']:8.0f} {cell['parameter']:8.3g} {cell['seconds']:7.2f}"
                f" {'-' if cell['raw seconds'] is None else format(cell['raw seconds'], '.2f'):>7} {ratio:>6}"
            )
        lines.append(line)
    product = record["timing"].get(name, {}).get("product", {}).get("median", math.nan)
    lines.append(f"{'one product with the normal operator':36} {1e3 * product:8.1f}")
    lines += [f"{labels[key]}: missing, {why}" for key, why in record["missing"].items()]
    lines += [f"{labels[key]}: {why}" for key, why in record["left out"].items()]
    lines.append(
        "iterations, best parameter (in the problem's unit), seconds as iterations x median, as timed, and ours over it"
    )
    return "\n".join(lines)


def plot(record: dict[str, Any], size: int, path: Path) -> None:
    """Gap against seconds and against iterations, as Figure 4.16 of the thesis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from convergence_methods import METHODS

    name = name_of(record, size)
    found = Curves(record, name)
    figure, panels = plt.subplots(1, 2, figsize=(12, 5.2), sharey=True, layout="constrained")
    colours = iter(plt.get_cmap("tab20").colors)  # type: ignore[attr-defined]
    for method in METHODS:
        curves = found.of(method.key)
        if not curves:
            continue
        curve = found.quickest(curves, TUNED_FOR)
        g, k = found.gaps(curve), curve["iterations"]
        seconds = [found.elapsed(curve, i) for i in k]
        style = {
            "color": "black" if method.key == "default" else next(colours),
            "linewidth": 2.6 if method.key == "default" else 1.4,
            "linestyle": "--" if method.twin or method.needs else "-",
            "zorder": 5 if method.key == "default" else 2,
        }
        panels[0].plot(seconds, g, label=method.label, **style)
        panels[1].plot(k, g, **style)
    for panel, what in zip(panels, ("seconds", "iterations"), strict=True):
        panel.set(xscale="log", yscale="log", ylim=(3e-5, 1.5), xlabel=what)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("relative gap of the objective")
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    options = record["options"]
    figure.suptitle(
        f"{record['problems'][name]['source']}, {size}$^3$ voxels, {options['views'][0]} views,"
        f" SNR {options['snr']:g}; each at its best parameter for a gap of {TUNED_FOR:g}",
        fontsize=10,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


# -- penalties --------------------------------------------------------------------------------------------------


def penalties(study: Study) -> str:
    """The default against one penalty for both terms, and against a pair, each by hand."""
    from convergence_methods import METHODS, Method, admm

    options, size = study.options, study.options.size
    by_key = {m.key: m for m in METHODS}
    lines = [
        "iterations to "
        + ", ".join(f"{t:g}" for t in TARGETS)
        + ": default; best single rho; best pair; ratios"
    ]
    for views in options.views:
        for fraction in options.lam_fraction:
            which = {"views": views, "fraction": fraction}
            study.curve(size, by_key["default"], 0.0, **which)
            for value in by_key["tuned"].grid:
                study.curve(size, by_key["tuned"], value, **which)
            found = study.found(size, **which)
            single = found.quickest(found.of("tuned"), TUNED_FOR)["parameter"]
            _walk_pairs(study, size, single, which, Method, admm)
            lines.append(_penalty_line(study.found(size, **which), views, fraction))
            say(lines[-1])
    return "\n".join(lines)


def _walk_pairs(
    study: Study, size: int, single: float, which: dict[str, Any], Method: Any, admm: Any
) -> None:
    """From the best single penalty, until no step of one of the two is quicker to the target."""

    def run(i: int, j: int) -> Curve:
        def start(problem: Any, ratio: float) -> Iterator[Any]:
            first = single * STEP**i * problem.unit
            return (s.x for s in admm(problem.cost(), [first, first * ratio]))

        ratio = STEP ** (j - i)
        method = Method(f"pair {single * STEP**i:.3g}", "", start)
        return study.curve(size, method, ratio, **which)

    done = {(0, 0): run(0, 0)}
    centre = (0, 0)
    for _ in range(8):
        for di, dj in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            place = (centre[0] + di, centre[1] + dj)
            if place not in done:
                done[place] = run(*place)
        best = study.found(size, **which).quickest(list(done.values()), TUNED_FOR)
        place = next(p for p, c in done.items() if c is best)
        if place == centre:
            return
        centre = place


def _penalty_line(found: Curves, views: int, fraction: float) -> str:
    default = found.of("default")[0]
    pairs = [c for c in found.all if c["method"].startswith("pair")] + found.of("tuned")
    columns: list[list[float]] = [[], [], []]
    for target in TARGETS:
        for column, curves in zip(columns, ([default], found.of("tuned"), pairs), strict=True):
            column.append(found.reach(found.quickest(curves, target), target) or math.inf)
    ratios = [[a / b for a, b in zip(columns[0], other, strict=True)] for other in columns[1:]]
    words = ["/".join(f"{v:.0f}" for v in c) for c in columns] + [
        "/".join(f"{v:.2f}" for v in r) for r in ratios
    ]
    return f"{views:5d} views, {fraction:g} lambda_max: " + "; ".join(words)


if __name__ == "__main__":
    sys.exit(main())
