"""``invcryo external-reconstruct``: the reconstruction step of a RELION refinement."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .common import (
    EXIT_DONE,
    Console,
    Interrupts,
    UsageError,
    add_threads,
    facts,
    new_parser,
    non_negative,
    positive,
)
from .output import record, write_json
from .pages import write_external_page
from .pictures import matplotlib_is_there
from .runlog import active_log

#: Of `invcryo.inversion.PENALTIES`, written out so that the help needs no NumPy.
REGULARISERS = ("tv", "tv-aniso", "wavelet", "hessian", "wiener")

_SHARED = (
    "half maps made with this prior share it: quote no FSC of theirs, but that of RELION's *_unfil.mrc, and know that"
    " their poses were aligned with the prior"
)

_SLICES = "Central slices of the map. RELION does not say here how large its voxels are."

_DESCRIPTION = """\
Reconstruct in place of RELION within its own refinement: RELION does the alignment, and this command makes each new
reference from the Fourier sums that RELION hands over, with a prior that RELION does not have. It is not called by
hand: put it, with its options, into an environment variable, and give relion_refine one more option:

  export RELION_EXTERNAL_RECONSTRUCT_EXECUTABLE="invcryo external-reconstruct --reg tv"
  relion_refine_mpi ... --auto_refine --split_random_halves --external_reconstruct

The map minimises  <u, W u> / 2 - <u, data> + lambda R(u)  with RELION's weights W = sum CTF^2 / sigma^2, and R as in
`invcryo reconstruct`. lambda needs no choice: the map is to fit the data as well as the one with RELION's own prior
(its tau2, which follows from the FSC of the half maps), but never worse than noise explains. It is found anew for
every reference. --reg wiener is RELION's own prior, and within a few per cent its map.

The FSC that RELION quotes and stops by is made from its own unregularised half maps and does not know of the prior; but
the alignment does, in both halves alike. As with every regularised refinement, verify a resolution with maps
reconstructed anew without a prior (`invcryo reconstruct --reg none --half-maps`).

Beside the map that RELION reads, STARFILE with .html in place of .star shows it and says how it was made, with .json
the same for programs, and with .log what happened when.
"""
_EXAMPLES = """\
  RELION_EXTERNAL_RECONSTRUCT_EXECUTABLE="invcryo external-reconstruct" relion_refine ... --external_reconstruct
  invcryo external-reconstruct Refine3D/job012/run_it005_half1_class001_external_reconstruct.star --reg wavelet
"""


def add_parser(commands: Any) -> None:
    parser = new_parser(
        commands,
        "external-reconstruct",
        run,
        "reconstruct for relion_refine --external_reconstruct",
        _DESCRIPTION,
        _EXAMPLES,
    )
    parser.add_argument("star", metavar="STARFILE", help="*_external_reconstruct.star, as RELION writes it")
    parser.add_argument(
        "--reg",
        choices=REGULARISERS,
        default="tv",
        metavar="R",
        help=f"{', '.join(REGULARISERS)}; default: tv",
    )
    parser.add_argument(
        "--lam",
        type=_lam,
        default="auto",
        metavar="X",
        help="weight of the regularisation: auto (default), or a number, 0 or more, in the unit of RELION's sums",
    )
    parser.add_argument(
        "--lam-factor",
        type=positive,
        default=1.0,
        metavar="F",
        help="multiplies the lambda that was found; default: 1",
    )
    parser.add_argument("--positivity", action="store_true", help="ask for a map without negative values")
    parser.add_argument(
        "-o", "--output", metavar="M.mrc", help="write the map here, not where RELION looks for it"
    )
    add_threads(parser)


def run(args: argparse.Namespace, words: Sequence[str], console: Console) -> tuple[int, dict[str, Any]]:
    if args.reg == "wiener" and (args.lam != "auto" or args.lam_factor != 1 or args.positivity):
        raise UsageError("--reg wiener has no lambda and no positivity: its weight is RELION's tau2")
    if args.lam != "auto" and args.lam_factor != 1:
        raise UsageError("--lam-factor multiplies a lambda that was found: give --lam or --lam-factor")
    from ..backend import use
    from ..direct.external import read_external, regularised_external, wiener_map
    from ..io import write_map

    started = time.time()
    star = Path(args.star)
    log = active_log()
    if log is not None and star.is_file():
        log.open(star.with_suffix(".log"))
    with use(threads=args.threads), Interrupts(console, patience=False):
        sums = read_external(args.star)
        report: dict[str, Any] = {"regulariser": args.reg, "box": sums.box, "radius": sums.radius}
        if args.reg == "wiener":
            volume = wiener_map(sums)
        else:
            made = regularised_external(
                sums,
                args.reg,
                lam=args.lam,
                factor=args.lam_factor,
                positivity=args.positivity,
                progress=console.progress,
            )
            volume = made.map
            report |= {
                "lambda": made.lam,
                "lambda_rule": made.lam_rule,
                "lambda_search": [{"lambda": a, "misfit": m} for a, m in made.trials],
                "misfit_wanted": made.wanted,
                "misfit_least": made.least,
                "iterations": made.iterations,
                "gap": made.gap,
            }
            report["note"] = _SHARED
    path = sums.result if args.output is None else Path(args.output)
    # RELION does not say here how large a voxel is, and does not ask
    write_map(path, volume, 1.0, label="invcryo external-reconstruct")
    report = {"map": path, **report, **record(args, words, started)}
    report["warnings"] = console.warnings
    pictures = {}
    if matplotlib_is_there(console):
        from .. import plot

        panels = plot.slices(volume, pixel_size=1.0)
        for label in (label for ax in panels for label in ax.texts):
            label.set_text(label.get_text().replace("Å", "voxels"))
        pictures[_SLICES] = panels
    write_external_page(star.with_suffix(".html"), args.star, pictures, report)
    write_json(star.with_suffix(".json"), report)
    console.say(
        f"{path}: {sums.box} x {sums.box} x {sums.box} voxels\n"
        + facts(
            [
                ("prior", args.reg),
                (
                    "lambda",
                    f"{report['lambda']:.4g}, {report['lambda_rule']}" if "lambda" in report else None,
                ),
                ("time", f"{report['wall_seconds']:.1f} s"),
            ]
        )
    )
    if "note" in report:
        console.say(f"  ({_SHARED})")
    return EXIT_DONE, report


def _lam(text: str) -> float | str:
    return text if text == "auto" else non_negative(text)
