"""``invcryo fsc``: Fourier shell correlation of two maps."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import EXIT_DONE, Console, UsageError, add_pixel_size, add_report, facts, new_parser
from .output import check_new_files, record
from .pages import write_fsc_page
from .pictures import matplotlib_is_there

if TYPE_CHECKING:
    from ..metrics import FSC, MaskedFSC

_THRESHOLDS: tuple[float | str, ...] = (0.143, 0.5, "half-bit")

_DESCRIPTION = """\
Fourier shell correlation of two maps, and where it falls below 0.143 (for two half maps), 0.5 (for a map
against a model or the truth of a simulation) and the half-bit curve. The resolution is that of the last shell
before the first one below the threshold, in angstrom, as RELION reports it.

With --mask the masked curve is corrected for what the mask itself correlates, by randomising phases.

A mirror image cannot be told by the FSC of two halves, nor can a bias that the halves share: two regularised
half maps share their prior, so look at the curve of the unregularised ones (*_noreg.mrc) too.
"""
_EXAMPLES = """\
  invcryo fsc run/half1_noreg.mrc run/half2_noreg.mrc
  invcryo fsc half1.mrc half2.mrc --mask mask.mrc -o run/masked --plot run/masked.png
  invcryo fsc run/map.mrc truth.mrc --table
  invcryo fsc run/map.mrc model.pdb --mask mask.mrc
"""


def add_parser(commands: Any) -> None:
    parser = new_parser(commands, "fsc", run, "compare two maps, resolution", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("first", metavar="A.mrc", help="a map")
    parser.add_argument(
        "second", metavar="B.mrc", help="another one, on the same grid; or an atomic model (.pdb, .cif, .ent)"
    )
    parser.add_argument("--mask", metavar="M.mrc", help="soft mask with values from 0 to 1, on the same grid")
    add_pixel_size(parser, "angstrom per pixel of both maps, in place of what their headers say")
    parser.add_argument(
        "--sym",
        default="C1",
        metavar="G",
        help="point group imposed on the maps (C1, C4, D2, T, O, I, ...); raises the half-bit curve",
    )
    parser.add_argument(
        "--placement",
        choices=("header", "centre"),
        default="header",
        help="where a model lies: at its coordinates in the frame of the header of A.mrc, or moved to the"
        " centre of the map; default: header",
    )
    parser.add_argument("--table", action="store_true", help="print the curve, shell by shell")
    parser.add_argument(
        "-o",
        "--output",
        "--o",
        metavar="PREFIX",
        help="write the curve as PREFIX.xml (for EMDB) and PREFIX.star (as relion_postprocess does); for a"
        " folder that exists, or a name that ends in /, as fsc.xml and fsc.star in it",
    )
    parser.add_argument("--plot", metavar="P.png", help="draw the curve (PNG, PDF or SVG)")
    add_report(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already")


def run(args: argparse.Namespace, words: Sequence[str], console: Console) -> tuple[int, dict[str, Any]]:
    started = time.time()
    outputs = _outputs(args)
    from ..io import read_map
    from ..metrics import fsc, model_on_grid, phase_randomised_fsc, write_fsc_star, write_fsc_xml
    from ..symmetry import point_group

    order = len(point_group(args.sym))
    a = read_map(args.first, pixel_size=args.pixel_size)
    if _is_model(args.second):
        b = replace(a, data=model_on_grid(a, args.second, placement=args.placement), source=args.second)
    else:
        b = read_map(args.second, pixel_size=args.pixel_size)
    sizes = (a.pixel_size, b.pixel_size)
    curves: FSC | MaskedFSC
    if args.mask is None:
        main = curves = fsc(a.data, b.data, pixel_size=sizes)
        shown = {"FSC": main}
    else:
        mask = read_map(args.mask, pixel_size=args.pixel_size).data
        curves = phase_randomised_fsc(
            a.data, b.data, mask, pixel_size=sizes, rng=0, progress=console.progress
        )
        main = curves.corrected
        shown = {"corrected for the mask": main, "masked": curves.masked, "unmasked": curves.unmasked}
        if curves.randomised is not None:
            shown["masked, phases random"] = curves.randomised
    _warn_of_contrast(shown.get("unmasked", main), console)

    resolutions = {name: _resolutions(curve, order) for name, curve in shown.items()}
    console.say(f"{args.first} against {args.second}: box {main.box}, {main.pixel_size:g} angstrom per pixel")
    for name, curve in shown.items():
        if name != "masked, phases random":
            console.say(f"{name}:")
            console.say(facts([(f"at {t}", resolution_text(curve, t, order)) for t in _THRESHOLDS]))
    if args.table:
        console.say(_table(shown))
    if "star" in outputs:
        title = f"{Path(args.first).name} against {Path(args.second).name}"
        write_fsc_xml(outputs["xml"], main, title=title)
        write_fsc_star(outputs["star"], curves)
    if "plot" in outputs:
        from .. import plot

        plot.save(plot.fsc_curves(shown, (0.143, 0.5)), outputs["plot"])
    if "report" in outputs:
        pictures = {}
        if matplotlib_is_there(console):
            from .. import plot

            pictures["Fourier shell correlation."] = plot.fsc_curves(shown, (0.143, 0.5))
        run_record = {**record(args, words, started), "warnings": console.warnings}
        write_fsc_page(args.report, (args.first, args.second), shown, order, pictures, run_record)
    for path in outputs.values():
        console.say(f"wrote {path}")
    return EXIT_DONE, {
        "box": main.box,
        "pixel_size": main.pixel_size,
        "resolution_angstrom": resolutions,
        "frequency": main.frequency,
        "correlation": {name: curve.correlation for name, curve in shown.items()},
        "files": list(outputs.values()),
        "warnings": console.warnings,
    }


def _is_model(name: str) -> bool:
    return name.lower().removesuffix(".gz").endswith((".pdb", ".ent", ".cif", ".mmcif"))


def resolution_text(curve: FSC, threshold: float | str, symmetry_order: int = 1) -> str:
    """The resolution of a curve in words."""
    value = curve.resolution(threshold, symmetry_order=symmetry_order)
    if curve.beyond_nyquist(threshold, symmetry_order=symmetry_order):
        return f"{value:.2f} angstrom or better (Nyquist: the curve never falls below)"
    return f"{value:.2f} angstrom" if value < float("inf") else "none (the first shell is already below)"


def _resolutions(curve: FSC, order: int) -> dict[str, Any]:
    return {
        str(t): {
            "angstrom": curve.resolution(t, symmetry_order=order),
            "is_nyquist": curve.beyond_nyquist(t, symmetry_order=order),
        }
        for t in _THRESHOLDS
    }


def _warn_of_contrast(curve: FSC, console: Console) -> None:
    """The coarsest shells of two maps of one particle agree; if they are opposite, so is the contrast."""
    few = slice(1, min(6, len(curve.correlation)))
    mean = (curve.correlation[few] * curve.voxels[few]).sum() / curve.voxels[few].sum()
    if mean < -0.3:
        console.warn(
            f"the coarsest shells correlate negatively ({mean:.2f}): one of the maps is probably inverted (dark"
            " protein); multiply it by -1"
        )


def _table(shown: dict[str, FSC]) -> str:
    first = next(iter(shown.values()))
    lines = ["shell  1/angstrom  angstrom  " + "  ".join(shown)]
    for i, f in enumerate(first.frequency):
        values = "  ".join(f"{c.correlation[i]:{len(name)}.4f}" for name, c in shown.items())
        lines.append(f"{i:5d}  {f:10.6f}  {1 / f if i else float('inf'):8.2f}  {values}")
    return "\n".join(lines)


def _outputs(args: argparse.Namespace) -> dict[str, Path]:
    """The files to write, checked before anything is computed."""
    outputs: dict[str, Path] = {}
    if args.output is not None:
        prefix = Path(args.output)
        if prefix.is_dir() or args.output.endswith(("/", os.sep)):
            prefix.mkdir(parents=True, exist_ok=True)
            prefix = prefix / "fsc"
        outputs = {"xml": Path(f"{prefix}.xml"), "star": Path(f"{prefix}.star")}
    if args.plot is not None:
        outputs["plot"] = Path(args.plot)
        if outputs["plot"].suffix.lower() not in (".png", ".pdf", ".svg"):
            raise UsageError(f"--plot {args.plot}: the name must end in .png, .pdf or .svg")
    if args.report is not None:
        outputs["report"] = Path(args.report)
    check_new_files(outputs.values(), overwrite=args.overwrite)
    return outputs
