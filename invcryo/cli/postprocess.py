"""``invcryo postprocess``: resolution of two half maps, and their mean sharpened."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import (
    EXIT_DONE,
    Console,
    add_output,
    add_pixel_size,
    facts,
    finite,
    new_parser,
    non_negative,
    positive,
    seed,
)
from .fsc import resolution_text
from .output import OutputFolder, record, write_json
from .pages import PAGE, write_postprocess_page
from .pictures import draw_slices, matplotlib_is_there, write_script

if TYPE_CHECKING:
    from ..metrics import PostProcess

_RESULTS = (
    "postprocess.mrc",
    "postprocess_masked.mrc",
    "postprocess.star",
    "postprocess_fsc.xml",
    "postprocess.cxc",
    "fsc.png",
    "guinier.png",
    "slices.png",
    "directional_fsc.png",
    PAGE,
    "run.json",
)

_DESCRIPTION = """\
Resolution of two half maps, and their mean sharpened, by the steps and rules of relion_postprocess: FSC at 0.143
corrected for the mask by random phases, division by the MTF of the detector, weights sqrt(2 FSC / (1 + FSC)), a
B-factor given or fitted to the Guinier plot, a low-pass filter where asked.

DIR receives
  report.html           all of it on one page, to look at first
  postprocess.mrc       the sharpened map, and postprocess_masked.mrc, times the mask
  postprocess.star      RELION's tables general, fsc and guinier
  postprocess_fsc.xml   the curve behind the resolution, for EMDB
  postprocess.cxc       script that shows the map in ChimeraX
  fsc.png, guinier.png, slices.png; directional_fsc.png with --directional
  run.json              options, versions, numbers

The half maps must be unfiltered and UNREGULARISED (half1_noreg.mrc, half2_noreg.mrc of invcryo reconstruct;
run_half1_class001_unfil.mrc of RELION). Two regularised half maps share their prior: their FSC is too good, tells
no resolution, and the weights made from it have no meaning.

--counting relion reproduces the columns of RELION's table: it sums over the stored half of the spectrum as it
is, in which one plane weighs twice. The default, friedel, counts every Fourier voxel once. They differ by up to
0.01 in noisy shells.
"""
_EXAMPLES = """\
  invcryo postprocess run/half1_noreg.mrc run/half2_noreg.mrc --mask mask.mrc -o post
  invcryo postprocess h1.mrc h2.mrc --mask mask.mrc -o post --bfactor -80 --lowpass final
  invcryo postprocess h1.mrc h2.mrc --mask mask.mrc -o post --mtf mtf_k2_300kV.star --mtf-pixel-size 0.65
"""


def add_parser(commands: Any) -> None:
    summary = "resolution of half maps, sharpened map"
    parser = new_parser(commands, "postprocess", run, summary, _DESCRIPTION, _EXAMPLES)
    parser.add_argument("half1", metavar="H1.mrc", help="half map 1, unfiltered and unregularised")
    parser.add_argument("half2", metavar="H2.mrc", help="half map 2, on the same grid")
    parser.add_argument(
        "--mask", metavar="M.mrc", help="soft mask with values from 0 to 1 (see invcryo mask)"
    )
    add_output(parser)
    add_pixel_size(parser, "angstrom per pixel of the maps, in place of what their headers say")
    group = parser.add_argument_group("sharpening")
    group.add_argument(
        "--bfactor",
        "--adhoc-bfac",
        "--adhoc_bfac",
        type=_bfactor,
        default="auto",
        metavar="B",
        help="angstrom squared, negative to sharpen, 0 for none; default: auto, fitted to the Guinier plot",
    )
    group.add_argument(
        "--fit-from",
        "--autob-lowres",
        "--autob_lowres",
        type=positive,
        default=10.0,
        metavar="A",
        help="lowest resolution of that fit, angstrom; default: 10",
    )
    group.add_argument(
        "--fit-to",
        "--autob-highres",
        "--autob_highres",
        type=non_negative,
        default=0.0,
        metavar="A",
        help="highest resolution of the fit, angstrom; default: 0, to the end of the weighted spectrum",
    )
    group.add_argument("--mtf", metavar="MTF.star", help="MTF of the detector, as RELION takes it")
    group.add_argument(
        "--mtf-pixel-size",
        "--mtf-angpix",
        "--mtf_angpix",
        type=positive,
        metavar="A",
        help="angstrom per pixel of the detector; default: that of the maps",
    )
    group.add_argument(
        "--skip-fsc-weighting",
        "--skip_fsc_weighting",
        action="store_true",
        help="no weights by the FSC",
    )
    group.add_argument(
        "--lowpass",
        "--low-pass",
        "--low_pass",
        type=_lowpass,
        metavar="A",
        help="low-pass filter at this resolution, or 'final' for the one found; default: none",
    )
    expert = parser.add_argument_group("FSC")
    expert.add_argument(
        "--counting",
        choices=("friedel", "relion"),
        default="friedel",
        help="how the stored half of the spectrum is counted, see above; default: friedel",
    )
    expert.add_argument(
        "--randomise-below",
        "--randomize-at-fsc",
        "--randomize_at_fsc",
        type=positive,
        default=0.8,
        metavar="C",
        help="phases are random from where the unmasked FSC falls below this; default: 0.8",
    )
    expert.add_argument(
        "--force-mask",
        "--force_mask",
        action="store_true",
        help="keep the corrected curve even where the unmasked one reaches further",
    )
    expert.add_argument(
        "--directional",
        action="store_true",
        help="also the FSC in cones of 20 degrees about 256 axes, and the least over the largest area under"
        " these curves: below 0.5 some directions are hardly seen",
    )
    expert.add_argument("--seed", type=seed, default=0, metavar="N", help="of the random phases; default: 0")


def run(args: argparse.Namespace, words: Sequence[str], console: Console) -> tuple[int, dict[str, Any]]:
    started = time.time()
    with OutputFolder(args.output, _RESULTS, overwrite=args.overwrite) as folder:
        from ..io import read_map
        from ..metrics import postprocess, read_mtf, write_postprocess

        a, b = (read_map(path, pixel_size=args.pixel_size) for path in (args.half1, args.half2))
        mask = None if args.mask is None else read_map(args.mask, pixel_size=args.pixel_size).data
        warn_of_regularised(console, args.half1, args.half2)
        result = postprocess(
            a.data,
            b.data,
            mask,
            pixel_size=(a.pixel_size, b.pixel_size),
            bfactor=args.bfactor,
            fit_range=(args.fit_from, args.fit_to),
            mtf=None if args.mtf is None else read_mtf(args.mtf),
            mtf_pixel_size=args.mtf_pixel_size,
            fsc_weighting=not args.skip_fsc_weighting,
            lowpass=args.lowpass,
            randomise_below=args.randomise_below,
            force_mask=args.force_mask,
            counting=args.counting,
            rng=args.seed,
            progress=console.progress,
        )
        cones = None
        if args.directional:
            from ..metrics import directional_fsc

            cones = directional_fsc(
                a.data, b.data, mask, pixel_size=(a.pixel_size, b.pixel_size), progress=console.progress
            )
        _warn(console, args, result)
        report = _report(args, result, console)
        if cones is not None:
            report["directional"] = {
                "cfar_like": cones.cfar_like,
                "best_angstrom": float(cones.resolution.min()),
                "poorest_angstrom": float(cones.resolution.max()),
            }
        with folder.results() as staging:
            write_postprocess(
                staging / "postprocess", result, like=a, halves=(args.half1, args.half2), mask=args.mask
            )
            if matplotlib_is_there(console):
                _draw(staging, result, a.data, b.data)
                if cones is not None:
                    from .. import plot

                    plot.save(plot.directional_fsc(cones), staging / "directional_fsc.png")
            final = result.map if result.masked is None else result.masked
            shown = "postprocess.mrc" if result.masked is None else "postprocess_masked.mrc"
            write_script(
                staging,
                folder.path,
                "postprocess.cxc",
                folder.path / shown,
                final,
                console,
                others=(args.half1, args.half2),
            )
            run_record = record(args, words, started)
            write_postprocess_page(staging, (args.half1, args.half2), result, report, run_record)
            write_json(staging / "run.json", {**run_record, **report})
    _tell(args, result, console)
    console.say("  (it holds for unregularised half maps only: regularised ones share their prior)")
    if cones is not None:
        best, poorest = cones.resolution.min(), cones.resolution.max()
        console.say(
            facts(
                [
                    (
                        "by direction",
                        f"{best:.2f} to {poorest:.2f} angstrom, ratio of areas {cones.cfar_like:.2f}",
                    )
                ]
            )
        )
    files = [str(folder.path / name) for name in folder.existing]
    console.say(f"wrote {len(files)} files into {args.output}; look at {folder.path / PAGE}")
    return EXIT_DONE, {
        **report,
        "frequency": result.fsc.frequency,
        "fsc": result.fsc.correlation,
        "files": files,
    }


def warn_of_regularised(console: Console, *paths: str) -> None:
    """Warn of half maps that were regularised: their unregularised twins, of invcryo or RELION, lie beside them."""
    for name in paths:
        path = Path(name)
        for suffix in ("_noreg", "_unfil"):
            twin = path.with_name(f"{path.stem}{suffix}{path.suffix}")
            if twin.exists():
                console.warn(
                    f"{path} is a regularised map: two halves share their prior, so their FSC is too good and tells"
                    f" no resolution; use {twin}"
                )


def _bfactor(text: str) -> float | str:
    return text if text == "auto" else finite(text)


def _lowpass(text: str) -> float | str:
    return text if text == "final" else positive(text)


def _warn(console: Console, args: argparse.Namespace, result: PostProcess) -> None:
    if result.bfactor > 0:
        how = "the fit gave" if args.bfactor == "auto" else "you asked for"
        console.warn(
            f"{how} a positive B-factor, {result.bfactor:.1f}: it dampens the map; negative ones sharpen"
        )
    if result.fsc.beyond_nyquist():
        console.warn("the FSC never falls below 0.143: the resolution is that of Nyquist, a bound only")
    if args.bfactor == "auto" and result.resolution > 8:
        console.warn(
            f"a B-factor fitted at a resolution of {result.resolution:.1f} angstrom rests on few shells below"
            f" {args.fit_from:g} angstrom: judge it by guinier.png"
        )


def _report(args: argparse.Namespace, result: PostProcess, console: Console) -> dict[str, Any]:
    fit = result.guinier.fit
    curves = result.curves
    return {
        "resolution_angstrom": result.resolution,
        "is_nyquist": result.fsc.beyond_nyquist(),
        "rule": "last shell before the first one below 0.143",
        "curve": "unmasked" if curves is None or result.mask_passed_over else "corrected for the mask",
        "unmasked_resolution_angstrom": (curves.unmasked if curves else result.fsc).resolution(),
        "counting": args.counting,
        "randomised_from_angstrom": 1 / result.fsc.frequency[curves.randomised_from]
        if curves and curves.randomised_from
        else None,
        "bfactor": result.bfactor,
        "guinier_fit": None
        if fit is None
        else {"slope": fit.slope, "intercept": fit.intercept, "r_squared": fit.correlation},
        "lowpass_angstrom": result.lowpass,
        "mask_fraction_factor": result.mask_fraction,
        "box": result.fsc.box,
        "pixel_size": result.fsc.pixel_size,
        "warnings": console.warnings,
    }


def _tell(args: argparse.Namespace, result: PostProcess, console: Console) -> None:
    curves, fit = result.curves, result.guinier.fit
    start = curves.randomised_from if curves else None
    console.say(
        f"{args.half1} and {args.half2}: box {result.fsc.box}, {result.fsc.pixel_size:g} angstrom per pixel"
    )
    console.say(
        facts(
            [
                ("resolution at 0.143", resolution_text(result.fsc, 0.143)),
                ("curve", "unmasked" if not curves or result.mask_passed_over else "corrected for the mask"),
                ("unmasked", resolution_text(curves.unmasked, 0.143) if curves else None),
                ("phases random from", f"{1 / result.fsc.frequency[start]:.2f} angstrom" if start else None),
                ("counting", args.counting),
                (
                    "B-factor",
                    f"{result.bfactor:.1f} angstrom^2"
                    + (f", fitted, r^2 = {fit.correlation:.3f}" if fit else ", as given"),
                ),
                ("low-pass", "none" if result.lowpass is None else f"{result.lowpass:.2f} angstrom"),
            ]
        )
    )


def _draw(folder: Path, result: PostProcess, first: Any, second: Any) -> None:
    from .. import plot

    if result.curves is None:
        shown = {"half maps": result.fsc}
    else:
        shown = {
            "corrected for the mask": result.curves.corrected,
            "masked": result.curves.masked,
            "unmasked": result.curves.unmasked,
        }
        if result.curves.randomised is not None:
            shown["masked, phases random"] = result.curves.randomised
    plot.save(plot.fsc_curves(shown, (0.143,)), folder / "fsc.png")
    plot.save(plot.guinier(result.guinier), folder / "guinier.png")
    final = result.map if result.masked is None else result.masked
    rows = {
        "mean of the half maps": 0.5 * (first + second),
        "postprocess.mrc" if result.masked is None else "postprocess_masked.mrc": final,
    }
    draw_slices(folder / "slices.png", rows, result.fsc.pixel_size)
