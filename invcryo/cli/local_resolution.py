"""``invcryo local-resolution``: resolution around each point of a map."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

from .common import (
    EXIT_DONE,
    Console,
    Interrupts,
    add_output,
    add_pixel_size,
    add_threads,
    facts,
    new_parser,
    positive,
    seed,
)
from .fsc import resolution_text
from .output import OutputFolder, record, write_json
from .pages import PAGE, write_local_page
from .pictures import matplotlib_is_there, write_script
from .postprocess import warn_of_regularised

_RESULTS = (
    "local_resolution.mrc",
    "local_resolution.cxc",
    "local_resolution.png",
    "histogram.png",
    "histogram.csv",
    PAGE,
    "run.json",
)

_DESCRIPTION = """\
Local resolution of two half maps: their FSC in soft balls that slide over the particle, corrected by random
phases, and where it falls below 0.143.

DIR receives
  report.html            all of it on one page, to look at first
  local_resolution.mrc   angstrom at each voxel where the mask is above 0.5, 0 elsewhere
  local_resolution.cxc   script that colours half map 1, or --map, by it in ChimeraX
  local_resolution.png   coloured slices; histogram.png and histogram.csv, over the voxels of the mask
  run.json               options, versions, numbers

A figure holds for a window, not for a voxel, and is uncertain by about 1 / window in frequency: at a window of 50
angstrom, 5.4 or 6.8 for 6 angstrom. Amplitudes that end abruptly look better than they are by as much.

The half maps must be unfiltered and UNREGULARISED: two regularised half maps share their prior, which makes
their local FSC too good everywhere.
"""
_EXAMPLES = """\
  invcryo local-resolution run/half1_noreg.mrc run/half2_noreg.mrc --mask mask.mrc -o local
  invcryo local-resolution h1.mrc h2.mrc --mask mask.mrc -o local --map post/postprocess.mrc
  invcryo local-resolution h1.mrc h2.mrc --mask mask.mrc -o local --window 50 --step 25   (RELION's defaults)
"""


def add_parser(commands: Any) -> None:
    summary = "resolution around each point"
    parser = new_parser(commands, "local-resolution", run, summary, _DESCRIPTION, _EXAMPLES)
    parser.add_argument("half1", metavar="H1.mrc", help="half map 1, unfiltered and unregularised")
    parser.add_argument("half2", metavar="H2.mrc", help="half map 2, on the same grid")
    parser.add_argument("--mask", metavar="M.mrc", help="where to look (above 0.5); default: the whole box")
    parser.add_argument(
        "--map",
        metavar="MAP.mrc",
        help="the map to show in colours in ChimeraX, such as post/postprocess.mrc; default: H1.mrc",
    )
    add_output(parser)
    add_pixel_size(parser, "angstrom per pixel of the maps, in place of what their headers say")
    parser.add_argument(
        "--window",
        type=positive,
        metavar="A",
        help="diameter of the soft ball at half its height, angstrom; default: 7 times the resolution of the"
        " whole map, at least 16 pixels",
    )
    parser.add_argument(
        "--step",
        "--locres-sampling",
        "--locres_sampling",
        type=positive,
        metavar="A",
        help="distance between the centres of the balls, angstrom; default: a quarter of the window",
    )
    parser.add_argument(
        "--threshold", type=positive, default=0.143, metavar="C", help="of the FSC; default: 0.143"
    )
    parser.add_argument(
        "--worst",
        "--locres-minres",
        "--locres_minres",
        type=positive,
        default=50.0,
        metavar="A",
        help="the lowest resolution reported, angstrom; default: 50",
    )
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of the random phases; default: 0")
    add_threads(parser)


def run(args: argparse.Namespace, words: Sequence[str], console: Console) -> tuple[int, dict[str, Any]]:
    started = time.time()
    from ..backend import use

    with use(threads=args.threads), OutputFolder(args.output, _RESULTS, overwrite=args.overwrite) as folder:
        import numpy as np

        from ..io import read_map, write_map
        from ..metrics import local_resolution

        a, b = (read_map(path, pixel_size=args.pixel_size) for path in (args.half1, args.half2))
        mask = None if args.mask is None else read_map(args.mask, pixel_size=args.pixel_size).data
        shown = a if args.map is None else read_map(args.map, pixel_size=args.pixel_size)
        if shown.data.shape != a.data.shape:
            raise ValueError(f"{args.map} has {shown.data.shape} voxels, the half maps {a.data.shape}")
        warn_of_regularised(console, args.half1, args.half2)
        with Interrupts(console, patience=False):
            result = local_resolution(
                a.data,
                b.data,
                mask,
                pixel_size=(a.pixel_size, b.pixel_size),
                window=args.window,
                step=args.step,
                threshold=args.threshold,
                worst=args.worst,
                rng=args.seed,
                progress=console.progress,
            )
        size = result.whole.pixel_size
        values = result.map[result.map > 0].astype(float)
        quantiles = np.percentile(values, (5, 50, 95)).tolist()
        counts, edges = np.histogram(values, bins=40)
        report = {
            "whole_map_angstrom": result.whole.resolution(args.threshold),
            "local_angstrom": dict(zip(("percentile_5", "median", "percentile_95"), quantiles, strict=True)),
            "threshold": args.threshold,
            "window_angstrom": result.window,
            "step_angstrom": result.step,
            "windows": len(result.points),
            "part_at_worst": float(np.mean(values >= args.worst * 0.999)),
            "voxels": len(values),
            "pixel_size": size,
            "warnings": console.warnings,
        }
        if report["part_at_worst"] > 0.1:
            console.warn(
                f"{100 * report['part_at_worst']:.0f} % of the voxels are at the lowest resolution reported,"
                f" {args.worst:g} angstrom: the mask holds solvent, or the window is too small"
            )
        with folder.results() as staging:
            write_map(staging / "local_resolution.mrc", result.map, size, like=a, label="local resolution")
            rows = zip(edges[:-1], edges[1:], counts, strict=True)
            lines = ["from_angstrom,to_angstrom,voxels"] + [f"{x:.4f},{y:.4f},{n}" for x, y, n in rows]
            (staging / "histogram.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
            if matplotlib_is_there(console):
                from .. import plot

                mean = 0.5 * (a.data + b.data)
                coloured = plot.local_resolution(mean, result.map, pixel_size=size)
                plot.save(coloured, staging / "local_resolution.png")
                whole = result.whole.resolution(args.threshold)
                plot.save(plot.resolution_histogram(values, whole=whole), staging / "histogram.png")
            write_script(
                staging,
                folder.path,
                "local_resolution.cxc",
                args.map or args.half1,
                shown.data,
                console,
                resolution_file=folder.path / "local_resolution.mrc",
                limits=tuple(np.percentile(values, (2, 98)).tolist()),
            )
            run_record = record(args, words, started)
            write_local_page(staging, (args.half1, args.half2), result, report, run_record)
            write_json(staging / "run.json", {**run_record, **report})
    console.say(f"{args.half1} and {args.half2}: {size:g} angstrom per pixel")
    low, median, high = quantiles
    console.say(
        facts(
            [
                ("local resolution", f"{median:.2f} angstrom (median), {low:.2f} to {high:.2f} (5 to 95 %)"),
                ("whole map", resolution_text(result.whole, args.threshold)),
                ("window and step", f"{result.window:.1f} and {result.step:.1f} angstrom"),
                ("windows", len(result.points)),
            ]
        )
    )
    files = [str(folder.path / name) for name in folder.existing]
    console.say(f"wrote {len(files)} files into {args.output}; look at {folder.path / PAGE}")
    return EXIT_DONE, {**report, "files": files}
