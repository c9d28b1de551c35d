#!/usr/bin/env python
"""How good is the lambda that is chosen without the truth? Simulated particles, against the best of a scan with it.

For every structure, signal-to-noise ratio and number of views: a scan of lambda in steps of sqrt(2) with the truth in
hand, and the rules of `choose_lambda`. Two figures count: the signal-to-noise ratio of the map in the box (decibel),
and the resolution at which its FSC with the truth falls below 0.5, interpolated between shells. The record is written
after every case; a case that it holds is not done again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import processes

from invcryo.backend import use
from invcryo.costs import LeastSquares
from invcryo.grid import centred_coordinates
from invcryo.inversion import PENALTIES, least_squares_map, penalty_for, regularised_map, supported
from invcryo.metrics import fsc
from invcryo.operators import LinOp
from invcryo.reconstruction import forward_model
from invcryo.selection import choose_lambda, lambda_max, natural_lambda, noise_level
from invcryo.simulate import PHANTOMS, phantom, simulate_particles
from invcryo.window import KaiserBessel

PIXEL = 4.0
WITHIN_DECIBEL, WITHIN_RESOLUTION = 1.0, 1.05


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--structure", nargs="+", choices=PHANTOMS, default=["enzyme", "blobs", "shepp-logan", "helix"]
    )
    parser.add_argument("--snr", type=float, nargs="+", default=[0.01, 0.1, 1.0])
    parser.add_argument("--views", type=int, nargs="+", default=[200, 1000, 5000])
    parser.add_argument("--box", type=int, default=48)
    parser.add_argument("--reg", nargs="+", choices=sorted(PENALTIES), default=["tv"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--json", type=Path, default=Path("selection.json"), help="record, gone on with if it is there"
    )
    parser.add_argument("--quick", action="store_true", help="one small structure, few views")
    options = parser.parse_args(argv)
    if options.quick:
        options.structure, options.snr, options.views, options.box = ["enzyme"], [0.1, 1.0], [100], 24
    record: dict[str, Any] = {"schema": 1, "machine": processes.machine(), "cases": []}
    if options.json.exists():
        record = json.loads(options.json.read_text())
    done = {tuple(case["of"]) for case in record["cases"]}
    for structure, snr, views in itertools.product(options.structure, options.snr, options.views):
        wanted = [r for r in options.reg if (r, structure, snr, views, options.box, options.seed) not in done]
        if not wanted:
            continue
        with use(threads=options.threads), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            problem = Problem(structure, snr, views, options.box, options.seed)
            for reg in wanted:
                case = {"of": [reg, structure, snr, views, options.box, options.seed], **study(problem, reg)}
                record["cases"].append(case)
                processes.write_json(options.json, record)
                print(said(case), flush=True)
    print(verdict(record["cases"]))
    return 0


class Problem:
    """Normal equations of simulated particles, and their truth."""

    def __init__(self, structure: str, snr: float, views: int, box: int, seed: int) -> None:
        volume = phantom(structure, box, rng=seed)
        self.stack = simulate_particles(volume, views, PIXEL, snr=snr, shift_px=2.0, rng=seed + 1)
        model: LinOp = forward_model(self.stack)
        cost = LeastSquares(model, self.stack.images, progress=False)
        self.halves = cost.normal_equations(self.stack.half).quadratics
        self.whole = self.halves[0].plus(self.halves[1])
        self.pixels = [int((self.stack.half == h).sum()) * box**2 for h in (1, 2)]
        radius = sum(c**2 for c in centred_coordinates(model.ishape)) ** 0.5
        self.support = np.asarray(radius <= box / 2 - 2)
        self.truth = self.stack.images.truth
        self.plain = least_squares_map(self.whole, self.support, progress=False).x

    def quality(self, c: Any) -> dict[str, float]:
        """Figures of a map against the truth."""
        box = self.truth.shape[0]
        x = KaiserBessel().synthesize(supported(c, self.support), box, scale=1.0).astype(np.float64)
        truth = self.truth.astype(np.float64)
        error = float(((x - truth) ** 2).sum())
        found = math.inf
        if x.any():
            found = fsc(x, truth, pixel_size=PIXEL).resolution(0.5, interpolate=True)
        return {"decibel": 10 * math.log10(float((truth**2).sum()) / error), "resolution": found}


def study(problem: Problem, reg: str) -> dict[str, Any]:
    """The scan and the rules for one regulariser."""
    penalty, total = penalty_for(reg, problem.whole.b.shape), sum(problem.pixels)
    support = problem.support

    def solve(lam: float, x0: Any) -> Any:
        return regularised_map(
            problem.whole, penalty, lam, total, support, x0=x0, max_iter=400, progress=False
        )

    begin = time.perf_counter()
    largest = lambda_max(problem.whole, penalty, support)
    seconds = {"lambda_max": time.perf_counter() - begin}
    rules: dict[str, Any] = {}
    begin = time.perf_counter()
    chosen = choose_lambda(
        problem.halves,
        problem.pixels,
        penalty,
        support,
        largest=largest,
        progress=False,
    )
    seconds["auto"] = time.perf_counter() - begin
    result = solve(chosen.lam, None)
    iterations = {"auto": chosen.iterations, "map": len(result.history["iteration"])}
    rules["auto"] = {"lam": chosen.lam, "trials": chosen.trials, **problem.quality(result.x)}
    try:
        noise = noise_level(problem.stack.images)
        met = choose_lambda(
            [problem.whole], [total], penalty, support, rule="discrepancy", noise=noise, largest=largest,
            progress=False,
        )  # fmt: skip
        iterations["discrepancy"] = met.iterations
        rules["discrepancy"] = {
            "lam": met.lam, "noise": noise.variance, **problem.quality(solve(met.lam, None).x)
        }  # fmt: skip
    except ValueError as error:
        rules["discrepancy"] = {"refused": str(error)}
    unit = natural_lambda(problem.whole, penalty, total)
    scan, x = [], problem.plain
    reach = 8 if penalty.quadratic(*problem.whole.domain) is None else 16
    for step in range(reach, -reach - 1, -1):
        lam = unit * 2 ** (step / 2)
        x = solve(lam, x).x
        scan.append({"lam": lam, **problem.quality(x)})
    return {
        "lambda_max": largest,
        "unit": unit,
        "best": {
            "decibel": max(s["decibel"] for s in scan),
            "resolution": min(s["resolution"] for s in scan),
            "lam": max(scan, key=lambda s: s["decibel"])["lam"],
        },
        "rules": rules,
        "unregularised": problem.quality(problem.plain),
        "iterations": iterations,
        "seconds": seconds,
        "scan": scan,
    }


def losses(case: dict[str, Any], rule: str) -> tuple[float, float]:
    """Decibels lost, and the ratio of resolutions, against the best of the scan in each."""
    found, best = case["rules"][rule], case["best"]
    return best["decibel"] - found["decibel"], found["resolution"] / best["resolution"]


def said(case: dict[str, Any]) -> str:
    reg, structure, snr, views, *_ = case["of"]
    best, plain = case["best"], case["unregularised"]
    text = (
        f"{reg:9s} {structure:12s} SNR {snr:<5g} {views:5d} views: unregularised {plain['decibel']:6.2f} dB"
        f" {plain['resolution']:5.2f} A; best {best['decibel']:5.2f} dB {best['resolution']:5.2f} A"
    )
    for rule, found in case["rules"].items():
        if "refused" in found:
            text += f"; {rule}: refused"
            continue
        decibel, ratio = losses(case, rule)
        bad = "" if decibel <= WITHIN_DECIBEL and ratio <= WITHIN_RESOLUTION else " *"
        octaves = math.log2(found["lam"] / best["lam"])
        text += f"; {rule}: -{decibel:.2f} dB x{ratio:.3f} at 2^{octaves:+.1f}{bad}"
    return text + f"; {case['iterations']['auto']} iterations, then {case['iterations']['map']}"


def verdict(cases: list[dict[str, Any]]) -> str:
    """How often each rule is within a decibel, and within 5 % of the resolution, of the best."""
    lines = []
    for reg in sorted({case["of"][0] for case in cases}):
        mine = [case for case in cases if case["of"][0] == reg]
        for rule in ("auto", "discrepancy"):
            lost = [losses(case, rule) for case in mine if "refused" not in case["rules"][rule]]
            if not lost:
                lines.append(f"{reg} {rule}: refused in all of {len(mine)} cases")
                continue
            decibels, ratios = np.array(lost).T
            lines.append(
                f"{reg} {rule}: of {len(mine)} cases {len(mine) - len(lost)} refused,"
                f" {int((decibels <= WITHIN_DECIBEL).sum())} within {WITHIN_DECIBEL:g} dB (worst {decibels.max():.2f}),"
                f" {int((ratios <= WITHIN_RESOLUTION).sum())} within 5 % of the resolution (worst {ratios.max():.3f})"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
