"""``invcryo refine``: better poses and a map from rough ones."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import (
    EXIT_DONE,
    Console,
    Interrupted,
    Interrupts,
    add_output,
    add_threads,
    count,
    facts,
    natural,
    new_parser,
    non_negative,
    positive,
)
from .fsc import resolution_text
from .output import OutputFolder, record, write_json
from .pages import PAGE, write_refine_page
from .particles import add_fresh, add_particles, add_seed, load, name_once, open_checkpoint
from .pictures import draw_slices, matplotlib_is_there
from .reconstruct import REGULARISERS

if TYPE_CHECKING:
    from ..data import ParticleStack
    from ..refinement import Refinement

MAPS = ("map", "half1", "half2", "half1_noreg", "half2_noreg")
RESULTS = (
    *(f"{name}.mrc" for name in MAPS),
    "particles_refined.star",
    "fsc.xml",
    "fsc.star",
    "fsc.png",
    "slices.png",
    "angle_changes.png",
    "shift_changes.png",
    "resolution.png",
    "particles.csv",
    "rounds.csv",
    PAGE,
    "run.json",
)

_DESCRIPTION = """\
Refine the orientations and shifts of particles, and the map, in turns: poses by Levenberg-Marquardt steps on central
slices, maps by regularised reconstruction, from coarse to fine as the FSC of the half sets allows. Particles that fit
badly are searched for over all rotations at low resolution. It ends when the FSC no longer improves.

The particles need rough poses (from a class average, an ab-initio map, another program), or --search global.

DIR receives
  report.html              all of it on one page, to look at first
  map.mrc                  the regularised map of all particles
  half1.mrc, half2.mrc     with --half-maps: of the half sets, which were refined apart; half1_noreg.mrc,
                           half2_noreg.mrc, the same by least squares
  particles_refined.star   the particles with new poses; RELION reads it, and every other column is kept. rlnSelected
                           is 0 for flagged ones; rlnCtfScalefactor holds the scales of --particle-scale
  fsc.xml, fsc.star        FSC of the unregularised half sets
  particles.csv            of each particle: status, flags, score, scale, change of angle and shift
  rounds.csv               round by round; resolution.png, the same as a curve
  angle_changes.png, shift_changes.png, fsc.png, slices.png
  run.json                 options, versions, inputs, times

Quote the FSC of the unregularised half sets that were refined apart (--half-maps), which is fsc.xml. half1.mrc and
half2.mrc share their prior: their FSC is too good, and tells no resolution.

Flagged are images that agree with the map no better than noise would (no_signal), and others that fit it far worse
than the rest, such as dark ones or particles in a wrong pose (outlier).

After each round the state is kept in DIR (unfinished.npz) until the maps are there: a run that was cut short goes on
from there, to the same result, when the same command is given again.
"""
_EXAMPLES = """\
  invcryo refine particles.star --ref initial.mrc --init-lowpass 40 -o refined --half-maps
  invcryo refine particles.star --ref initial.mrc --init-lowpass 40 -o refined --search global --sym D2
"""


def add_parser(commands: Any) -> None:
    parser = new_parser(
        commands, "refine", run, "rough poses to better ones, and a map", _DESCRIPTION, _EXAMPLES
    )
    add_particles(parser)

    problem = parser.add_argument_group("the refinement")
    problem.add_argument(
        "--ref", metavar="MAP.mrc", required=True, help="a first map, white, on the pixels of the images"
    )
    problem.add_argument(
        "--init-lowpass",
        type=positive,
        metavar="A",
        help="use the first map up to this resolution only, angstrom; give it, unless the map is known to be right",
    )
    problem.add_argument(
        "--search",
        choices=("local", "global"),
        default="local",
        help="global: begin with a search over all rotations for every particle; default: local",
    )
    problem.add_argument(
        "--half-maps", action="store_true", help="refine the two half sets apart, start to end"
    )
    problem.add_argument("--sym", default="C1", metavar="G", help="point group: C1, C4, D2, T, O, I, ...")
    problem.add_argument(
        "--mask",
        default="ball",
        metavar="M.mrc",
        help="where the map may differ from 0: ball (default), none, a map",
    )
    problem.add_argument(
        "--max-shift", type=non_negative, metavar="PX", help="largest shift from the centre, pixels"
    )
    problem.add_argument(
        "--prior-angle",
        type=positive,
        metavar="DEG",
        help="standard deviation of a prior about the poses of a round",
    )
    problem.add_argument("--prior-shift", type=positive, metavar="PX", help="the same for shifts, pixels")
    problem.add_argument(
        "--reg",
        choices=REGULARISERS,
        default="tv",
        metavar="R",
        help=f"{', '.join(REGULARISERS)}; default: tv",
    )
    problem.add_argument(
        "--lam",
        type=non_negative,
        default=0.3,
        metavar="X",
        help="weight of R in its natural unit; default: 0.3",
    )
    problem.add_argument(
        "--particle-scale", action="store_true", help="estimate a contrast of each particle, and use it"
    )
    problem.add_argument(
        "--exclude-flagged",
        action="store_true",
        help="leave flagged particles out of the final maps and of particles_refined.star; particles.csv names them",
    )
    problem.add_argument("--max-rounds", type=natural, default=40, metavar="N", help="default: 40")

    job = parser.add_argument_group("the job")
    add_output(job)
    add_fresh(job)
    add_seed(job)
    add_threads(job)


def run(args: argparse.Namespace, words: Sequence[str], console: Console) -> tuple[int, dict[str, Any]]:
    name_once(args)
    from ..backend import use

    started = time.time()
    with use(threads=args.threads), OutputFolder(args.output, RESULTS, overwrite=args.overwrite) as folder:
        stack = load(args)
        with Interrupts(console):
            result = solve(args, stack, console, folder.path)
        return save(args, words, console, folder, result, started)


def solve(args: argparse.Namespace, stack: ParticleStack, console: Console, folder: Path) -> Refinement:
    import math

    from ..io import read_map
    from ..refinement import refine

    console.note(f"{count(len(stack), 'particle')} of {stack.box} x {stack.box} pixels")
    reference = read_map(args.ref)
    mask: Any = args.mask
    if mask in ("ball", "none"):
        mask = None if mask == "none" else mask
    else:
        mask = read_map(mask, pixel_size=args.pixel_size).data
    checkpoint = open_checkpoint(args, folder, console)
    try:
        return refine(
            stack,
            reference.data,
            reference_pixel_size=reference.pixel_size,
            init_lowpass=args.init_lowpass,
            search=args.search,
            half_maps=args.half_maps,
            symmetry=args.sym,
            mask=mask,
            reg=args.reg,
            lam=args.lam,
            positivity=args.reg != "none",
            max_shift=args.max_shift,
            prior_angle=math.inf if args.prior_angle is None else math.radians(args.prior_angle),
            prior_shift=math.inf if args.prior_shift is None else args.prior_shift,
            particle_scale=args.particle_scale,
            exclude_flagged=args.exclude_flagged,
            max_rounds=args.max_rounds,
            checkpoint=checkpoint,
            rng=args.seed,
            progress=console.progress,
        )
    except KeyboardInterrupt:
        if not checkpoint.path.exists():
            raise
        raise Interrupted(
            f"interrupted: no map was written; the state of the last round is in {checkpoint.path}; the same command"
            " goes on from there"
        ) from None


def save(
    args: argparse.Namespace,
    words: Sequence[str],
    console: Console,
    folder: OutputFolder,
    result: Refinement,
    started: float,
) -> tuple[int, dict[str, Any]]:
    """Write the results and say what they are."""
    import numpy as np

    from ..io import write_map, write_particles
    from ..metrics import describe_views, write_fsc_star, write_fsc_xml

    for text in result.warnings:
        console.warn(text)
    halves = "half sets refined apart" if args.half_maps else "half sets that shared a map: too good"
    with folder.results() as staging:
        for name in MAPS:
            volume = getattr(result, name)
            if volume is not None:
                write_map(staging / f"{name}.mrc", volume, result.pixel_size, label=name)
        selected = (~result.flagged).astype(int)
        stack = dataclasses.replace(result.stack, table={**result.stack.table, "rlnSelected": selected})
        kept = np.flatnonzero(selected) if args.exclude_flagged else slice(None)
        write_particles(staging / "particles_refined.star", stack[kept])
        write_fsc_xml(staging / "fsc.xml", result.fsc)
        write_fsc_star(staging / "fsc.star", result.fsc)
        _write_tables(staging, result)
        if matplotlib_is_there(console):
            _draw(staging, result)
        report = {
            "particles": len(result.stack),
            "box": result.map.shape[0],
            "pixel_size": result.pixel_size,
            "rounds": result.history,
            "stopped_by": result.stopped_by,
            "half_maps": args.half_maps,
            "resolution_0.143_angstrom": result.fsc.resolution(0.143),
            "status": result.status_counts,
            "views": describe_views(result.poses, symmetry=args.sym),
            "no_signal": int(result.no_signal.sum()),
            "outliers": int(result.outlier.sum()),
            "particles_in_maps": len(result.stack) - int(result.flagged.sum()) * args.exclude_flagged,
            "median_angle_change_degrees": float(np.median(result.angle_change)),
            "median_shift_change_pixels": float(np.median(result.shift_change)),
            "seconds": result.seconds,
            "warnings": console.warnings,
            **record(args, words, started),
        }
        write_refine_page(staging, f"Refinement of {Path(args.particles).name}", result, report, halves)
        write_json(staging / "run.json", report)
    report = {"folder": folder.path, "files": [folder.path / name for name in folder.existing], **report}
    n = report["box"]
    console.say(f"{folder.path / 'map.mrc'}: {n} x {n} x {n} voxels of {result.pixel_size:g} angstrom")
    unsound = {name: k for name, k in result.status_counts.items() if k and name != "converged"}
    console.say(
        facts(
            [
                ("particles", report["particles"]),
                ("rounds", f"{len(result.history)}, stopped by {result.stopped_by}"),
                (
                    "searched",
                    f"{100 * max((h['searched'] for h in result.history), default=0):.0f} % at most in a round",
                ),
                ("poses", ", ".join(f"{k} {name}" for name, k in unsound.items()) or "all converged"),
                ("flagged", _flagged(result, args.exclude_flagged) or None),
                ("resolution at FSC 0.143", f"{resolution_text(result.fsc, 0.143)}, {halves}"),
                ("time", f"{report['wall_seconds']:.1f} s on {count(report['threads'], 'thread')}"),
            ]
        )
    )
    if args.reg != "none":
        console.say(
            "  (of the unregularised maps; regularised halves share their prior, which raises their FSC)"
        )
    console.say(f"look at {folder.path / PAGE}")
    return EXIT_DONE, report


def _flagged(result: Refinement, excluded: bool) -> str:
    counts = {"without signal": result.no_signal.sum(), "outliers": result.outlier.sum()}
    text = ", ".join(f"{k} {name}" for name, k in counts.items() if k)
    return f"{text}, left out" if text and excluded else text


def _write_tables(folder: Path, result: Refinement) -> None:
    from ..io.atomic import atomic_open
    from ..poses import STATUS

    with atomic_open(folder / "particles.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        columns: dict[str, Iterable[Any]] = {
            "particle": range(1, len(result.status) + 1),
            "status": [STATUS[i] for i in result.status],
            "no_signal": result.no_signal.astype(int),
            "outlier": result.outlier.astype(int),
            "score": [f"{v:.4g}" for v in result.score],
            "scale": [f"{v:.4g}" for v in result.particle_scale],
            "angle_change_degrees": [f"{v:.4f}" for v in result.angle_change],
            "shift_change_pixels": [f"{v:.4f}" for v in result.shift_change],
        }
        table.writerow(columns)
        table.writerows(zip(*columns.values(), strict=True))
    with atomic_open(folder / "rounds.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        flat = [
            {k: v for k, v in h.items() if not isinstance(v, dict)}
            | {f"{key} {k}": v for key in ("status", "seconds") for k, v in h[key].items()}
            for h in result.history
        ]
        if flat:
            table.writerow(flat[0])
            table.writerows(row.values() for row in flat)


def _draw(folder: Path, result: Refinement) -> None:
    import numpy as np

    from .. import plot
    from ..metrics.poses import PoseAlignment, pose_errors

    draw_slices(folder / "slices.png", {"map.mrc": result.map}, result.pixel_size)
    plot.save(plot.fsc_curves({"unregularised half sets": result.fsc}), folder / "fsc.png")
    unchanged = PoseAlignment(np.eye(3))
    changes = {"refined - start": pose_errors(result.start, result.poses, alignment=unchanged)}
    widest = max(15.0, float(np.quantile(result.angle_change, 0.99)))
    plot.save(plot.angular_errors(changes, limit=widest), folder / "angle_changes.png")
    widest = max(1.0, float(np.quantile(result.shift_change, 0.99)))
    plot.save(plot.shift_errors(changes, limit=widest), folder / "shift_changes.png")
    if result.history:
        by_round = [float("nan"), *(h["resolution_angstrom"] for h in result.history)]
        limits = {"Nyquist": 2 * result.pixel_size}
        plot.save(plot.resolution_by_round({"FSC 0.143": by_round}, limits=limits), folder / "resolution.png")
