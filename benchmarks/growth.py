#!/usr/bin/env python
"""How the pass over the images grows with their number, their size and the number of threads.

Every measurement is a process of its own. The images, with CTF and in two half sets, are made when they are read and
are white noise: what they hold changes no time. Making them is not counted: the pass reports its own seconds of
computing. The peak of memory is that of the whole process, a table of 2 kB per particle included, as it comes from a
STAR file. ``--estimate RECORD.json`` says, without measuring, what a record means for a data set of another size.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import processes

SWEEPS = ("particles", "size", "threads")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--particles", type=int, nargs="+", default=[100, 1000, 10_000, 100_000])
    parser.add_argument("--size", type=int, nargs="+", default=[64, 96, 128, 192, 256, 384])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--at", type=int, nargs=3, default=[1000, 128, 2], metavar=("P", "N", "T"),
                        help="particles, size and threads where these are not varied")  # fmt: skip
    parser.add_argument("--repeat", type=int, default=3, help="of each measurement; the quickest counts")
    parser.add_argument("--whole", action="store_true",
                        help="also a reconstruction of the largest number of --particles, for its memory")  # fmt: skip
    parser.add_argument("--json", type=Path, help="file to write the record to")
    parser.add_argument("--png", type=Path, help="file to write the plot to")
    parser.add_argument("--estimate", type=Path, metavar="RECORD.json",
                        help="print what the record says of a larger data set, and measure nothing")  # fmt: skip
    parser.add_argument("--of", type=int, nargs=2, default=[1_000_000, 512], metavar=("P", "N"),
                        help="particles and size of --estimate")  # fmt: skip
    parser.add_argument("--point", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.point:
        print(json.dumps(measure(**json.loads(options.point))))
        return 0
    if options.estimate:
        print(estimate(json.loads(options.estimate.read_text()), *options.of))
        return 0
    base = dict(zip(SWEEPS, options.at, strict=True))
    record: dict[str, Any] = {"schema": 1, "machine": processes.machine(), "at": base, "sweeps": {}}
    for name in SWEEPS:
        values = sorted(set(getattr(options, name)))
        rows = [point({**base, name: value}, options.repeat) for value in values]
        record["sweeps"][name] = {"rows": rows, "exponent": exponent(rows, name)}
        show(name, record["sweeps"][name])
    if options.whole:
        record["whole"] = point({**base, "particles": max(options.particles), "whole": True}, 1)
        print(f"reconstruction of {record['whole']['particles']} images: {said(record['whole'])}")
    if options.json:
        processes.write_json(options.json, record)
    if options.png:
        plot(record, options.png)
    return 0


def point(what: dict[str, Any], repeat: int) -> dict[str, Any]:
    """The quickest of some processes; the memory is their largest."""
    runs = []
    with tempfile.TemporaryDirectory(prefix="invcryo-benchmark-") as folder:
        for _ in range(repeat):
            done = subprocess.run(
                [sys.executable, str(Path(__file__).resolve()), "--point", json.dumps(what)],
                cwd=folder,
                env=processes.environment(what["threads"]),
                capture_output=True,
                text=True,
            )
            if done.returncode != 0:
                raise processes.Failed(f"{what} ended with status {done.returncode}:\n{done.stderr[-3000:]}")
            runs.append(json.loads(done.stdout))
    best = min(runs, key=lambda run: run["seconds"]["computing"])
    return {**best, "peak_mb": max(run["peak_mb"] for run in runs)}


def measure(particles: int, size: int, threads: int, whole: bool = False) -> dict[str, Any]:
    """One pass, or one reconstruction, in this process."""
    from invcryo.backend import use
    from invcryo.costs import LeastSquares
    from invcryo.memory import peak_memory, plan_memory
    from invcryo.reconstruction import ACCURACY, forward_model, reconstruct

    stack = noise_stack(particles, size)
    with use(threads=threads):
        if whole:
            out = reconstruct(stack, reg="none", half_maps=True, progress=False)
            planned, first_pass, seconds = out.memory, out.first_pass, out.seconds["total"]
        else:
            warm = stack[: min(16, particles)]
            LeastSquares(forward_model(warm, tol=ACCURACY), warm.images, progress=False).quadratic()
            planned = plan_memory(particles, size)
            model = forward_model(stack, tol=ACCURACY)
            cost = LeastSquares(model, stack.images, chunk=planned.chunk, progress=False)
            first_pass = vars(cost.normal_equations(stack.half))
            seconds = None
    return {
        "particles": particles,
        "size": size,
        "threads": threads,
        "chunk": planned.chunk,
        "seconds": first_pass["seconds"],
        "milliseconds_per_particle": 1e3 * first_pass["seconds"]["computing"] / particles,
        "peak_mb": (peak_memory() or math.nan) / 1e6,
        "planned_mb": planned.peak / 1e6 if whole else planned.stages["kernels"] / 1e6,
        "total_seconds": seconds,
    }


def noise_stack(particles: int, size: int) -> Any:
    import numpy as np

    from invcryo.data import ParticleStack, Poses
    from invcryo.simulate import random_ctf, uniform_orientations

    class Noise:
        """Images made when they are read, the same for the same places."""

        read_ahead = False  # making them would take the time of the pass

        def __init__(self, places: Any) -> None:
            self.places, self.shape, self.dtype = places, (len(places), size, size), np.dtype(np.float32)

        def subset(self, index: Any) -> Noise:
            return Noise(self.places[index])

        def __getitem__(self, index: Any) -> Any:
            places = self.places[index]
            rng = np.random.default_rng(int(places[0]))
            return rng.standard_normal((len(places), size, size), dtype=np.float32)

    rng = np.random.default_rng(0)
    poses = Poses(uniform_orientations(particles, rng=rng), rng.uniform(-2, 2, (particles, 2)))
    ctf = random_ctf(particles, (8e3, 2e4), astigmatism_angstrom=500, rng=rng)
    table = {f"column {i}": np.full(particles, "0" * 25) for i in range(20)}  # 2 kB of text per particle
    return ParticleStack(Noise(np.arange(particles)), 1.5, poses, ctf, np.arange(particles) % 2 + 1, table)


def exponent(rows: list[dict[str, Any]], name: str) -> float | None:
    """The slope of the logarithm of the seconds, by least squares over the three largest values."""
    points = [(math.log(r[name]), math.log(r["seconds"]["computing"])) for r in rows[-3:]]
    if len(points) < 2:
        return None
    mean = [sum(p[i] for p in points) / len(points) for i in (0, 1)]
    return sum((x - mean[0]) * (y - mean[1]) for x, y in points) / sum((x - mean[0]) ** 2 for x, _ in points)


def estimate(record: dict[str, Any], particles: int, size: int) -> str:
    """Seconds of the pass over a data set that was not measured, from the fitted power of the size.

    The number of particles enters as it is: its measured exponent is printed beside, and should be 1.
    """
    sweeps, at = record["sweeps"], record["at"]
    power = sweeps["size"]["exponent"]
    if power is None:
        raise SystemExit("the record holds one size only, from which nothing can be foretold")
    rows = sweeps["size"]["rows"]
    largest = rows[-1]
    per_image = 1e-3 * largest["milliseconds_per_particle"] * (size / largest["size"]) ** power
    # the end of the pass is transforms of a volume: n^3 log n, on a grid five times as wide
    finish = largest["seconds"]["finishing"] * (size / largest["size"]) ** 3
    finish *= math.log(5 * size) / math.log(5 * largest["size"])
    hours, gigabytes = particles * per_image / 3600, 4e-9 * particles * size**2
    lines = [
        f"{particles} particles of {size} pixels with CTF, {largest['threads']} threads of {record['machine']['cpu']}",
        f"measured: {largest['milliseconds_per_particle']:.3f} ms per image of {largest['size']} pixels,"
        f" seconds ~ size^{power:.2f} (sizes {', '.join(str(r['size']) for r in rows[-3:])})",
    ]
    exponent = sweeps["particles"]["exponent"]
    if exponent is not None:
        lines.append(f"measured: seconds ~ particles^{exponent:.2f} at {at['size']} pixels")
    lines += [
        f"estimate: {1e3 * per_image:.2f} ms per image, {hours:.1f} hours for the pass over the images,"
        f" {finish:.0f} s for its end",
        f"the images are {gigabytes:.0f} GB in float32, read at {gigabytes / 3.6 / hours:.0f} MB/s meanwhile",
    ]
    return "\n".join(lines)


def show(name: str, sweep: dict[str, Any]) -> None:
    print(f"{name:>9} {'s':>9} {'ms/image':>9} {'finish s':>9} {'peak MB':>9}")
    for row in sweep["rows"]:
        seconds = row["seconds"]
        print(
            f"{row[name]:9} {seconds['computing']:9.3f} {row['milliseconds_per_particle']:9.3f}"
            f" {seconds['finishing']:9.3f} {row['peak_mb']:9.0f}"
        )
    if sweep["exponent"] is not None:
        print(f"seconds grow as {name}^{sweep['exponent']:.2f} (by the largest three)")


def said(row: dict[str, Any]) -> str:
    return (
        f"{row['total_seconds']:.1f} s, peak {row['peak_mb']:.0f} MB of {row['planned_mb']:.0f} planned,"
        f" {row['milliseconds_per_particle']:.3f} ms per image in the pass"
    )


def plot(record: dict[str, Any], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, 3), SWEEPS, strict=True):
        sweep = record["sweeps"][name]
        values = [r[name] for r in sweep["rows"]]
        milliseconds = [r["milliseconds_per_particle"] for r in sweep["rows"]]
        axes.loglog(values, milliseconds, "o-", label="measured")
        title = ", ".join(f"{k} {v}" for k, v in record["at"].items() if k != name)
        if sweep["exponent"] is not None:
            # of one image: the number of images is not among what the fit is of
            power = sweep["exponent"] - (name == "particles")
            x, y = (math.exp(sum(map(math.log, v[-3:])) / len(v[-3:])) for v in (values, milliseconds))
            fit = [y * (v / x) ** power for v in values[-3:]]
            axes.loglog(
                values[-3:], fit, "k--", linewidth=1, label=f"seconds ~ {name}^{sweep['exponent']:.2f}"
            )
        low, high = axes.get_ylim()
        wider = math.sqrt(max(1.0, 10 * low / high))  # a decade at least, so that what is constant looks so
        axes.set(xlabel=name, ylabel="ms per image", title=title, ylim=(low / wider, high * wider))
        axes.set_xticks(values, [str(v) for v in values])
        axes.set_xticks([], minor=True)
        axes.title.set_fontsize(9)
        axes.legend(fontsize=8)
        axes.grid(True, alpha=0.3)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    raise SystemExit(main())
