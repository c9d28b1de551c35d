"""``invcryo stet``: tilt series with few electrons."""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import (
    EXIT_DONE,
    EXIT_USAGE,
    Console,
    Interrupts,
    UsageError,
    add_output,
    add_pixel_size,
    add_talking,
    add_threads,
    facts,
    natural,
    new_parser,
    non_negative,
    positive,
    seed,
)
from .output import OutputFolder, check_new_files, record, write_json
from .pages import PAGE, write_series_page, write_study_page
from .pictures import matplotlib_is_there

if TYPE_CHECKING:
    from ..io import TiltSeries

#: Those of `invcryo.stet`, which takes a second to import.
METHODS = ("tv", "wavelet", "two-step", "zero-fill", "sirt", "wbp")
KINDS = ("pixel", "block", "line", "grid")
WINDOWS = ("narrow", "wide")
_FRACTIONS = (0.5, 0.3, 0.2, 0.1, 0.03)
_RESULTS = ("map.mrc", "slices.png", "spectrum.png", PAGE, "run.json")

_DESCRIPTION = """\
Electron tomography from few electrons: plan which pixels to scan, reconstruct a tilt series of which only some pixels
were measured, and study how few are enough.

  invcryo stet info         what a tilt series holds, what is doubtful, where its tilt axis seems to lie
  invcryo stet mask         draw random masks for a scan
  invcryo stet reconstruct  a map from a series, with total variation or a baseline
  invcryo stet study        fewer pixels against fewer tilts at equal dose, on your own series

SERIES is .mrc .st .ali (with .rawtlt, .tlt, .xf or .mdoc beside it), .tif, or .dm3 .dm4 .emd .hspy, for which
RosettaSciIO is needed: pip install 'invcryo[stem]'.
"""
_EXAMPLES = """\
  invcryo stet info series.st
  invcryo stet mask series.st -o mask.npz --fraction 0.1
  invcryo stet reconstruct series.st -o run --mask mask.npz
  invcryo stet study series.st -o study --fractions 0.5 0.3 0.2 0.1 0.03 --modes image tilt --methods tv two-step sirt
"""
_INFO = """\
Say what a tilt series holds and what looks wrong with it. With --estimate-axis the tilt axis and the shifts are
estimated, and printed; nothing is changed.
"""
_MASK = """\
Draw which pixels the beam visits, tilt by tilt, each tilt on its own and with an exact count. MASK.npz holds the
boolean array `mask` (tilts, rows, columns) and how it was drawn; MASK.png shows a few tilts.
"""
_RECONSTRUCT = """\
Reconstruct a tilt series. Pixels that were not measured (--mask, or NaN in the images) are left out of the fit, not
filled in, except by the baselines zero-fill and two-step. The images should be aligned: a tilt axis that lies askew
(--axis-angle) is taken into account, warps are not.

DIR receives report.html, to look at first, map.mrc, slices.png, spectrum.png with the missing wedge drawn, and
run.json.
"""
_STUDY = """\
Reconstruct a series again and again from fewer of its pixels: random pixels of all tilts (mode image) against whole
tilts (mode tilt), at equal dose, by every method; compare each with the truth (--truth) or with the reconstruction
from all pixels.

DIR receives report.html, to look at first, table.csv, table.json, a curve for each figure of merit, sections,
spectrum.png, and cells/ with what is done. A study that was cut short goes on where it was: give the same command
again.
"""


def add_parser(commands: Any) -> None:
    parser = new_parser(commands, "stet", _info, "tomography from few electrons", _DESCRIPTION, _EXAMPLES)
    parser.set_defaults(run=functools.partial(_help, parser))
    inner = parser.add_subparsers(dest="stet_command", metavar="COMMAND", title="commands", help="what to do")
    _add_info(inner)
    _add_mask(inner)
    _add_reconstruct(inner)
    _add_study(inner)
    for command in inner.choices.values():
        add_talking(command)


def _help(parser: argparse.ArgumentParser, *_: Any) -> tuple[int, dict[str, Any]]:
    parser.print_help(sys.stderr)
    return EXIT_USAGE, {"error": "give a command: info, mask, reconstruct or study"}


# --- the series -------------------------------------------------------------------------------------------------


def _add_series(parser: argparse.ArgumentParser, *, mask: bool = True) -> None:
    parser.add_argument("series", metavar="SERIES", help="the tilt series")
    group = parser.add_argument_group("the series")
    group.add_argument(
        "--tilts", metavar="FILE", help="tilts, one a line; default: found beside the series, or in it"
    )
    group.add_argument("--radians", action="store_true", help="the tilts are in radians, not in degrees")
    add_pixel_size(group, "angstrom per pixel, in place of what the file says")
    group.add_argument("--axis", choices=("x", "y"), help="tilt axis; default: y, as IMOD has it")
    group.add_argument(
        "--axis-angle",
        type=float,
        metavar="DEG",
        help="degrees from that axis to where it lies in the images, from x towards y; default: the .mdoc's, or 0",
    )
    group.add_argument("--flip-tilt", action="store_true", help="turn the sign of the tilts")
    group.add_argument(
        "--contrast",
        choices=("bright", "dark"),
        help="how matter looks: bright (HAADF), dark (bright field, cryo); default: bright",
    )
    group.add_argument("--no-xf", action="store_true", help="do not apply the .xf file beside the series")
    group.add_argument(
        "--background",
        default="border",
        metavar="B",
        help="counts where there is no matter: border (median of the border of each image), none, or a number;"
        " default: border",
    )
    if mask:
        group.add_argument(
            "--mask", metavar="MASK.npz", help="which pixels were measured; default: all that are not NaN"
        )


def _read(args: argparse.Namespace, console: Console, *, integrals: bool = True) -> TiltSeries:
    from ..io import read_tilt_series
    from ..stet import line_integrals

    series = read_tilt_series(
        args.series,
        angles=args.tilts,
        degrees=not args.radians,
        pixel_size=args.pixel_size,
        axis=args.axis,
        in_plane_angle_deg=args.axis_angle,
        flip_tilt=args.flip_tilt,
        contrast=args.contrast,
        thickness=getattr(args, "thickness", None),
        mask=getattr(args, "mask", None),
        xf=False if args.no_xf else None,
    )
    if not integrals or (args.background == "none" and series.contrast == "bright"):
        return series
    if args.background == "none":
        return line_integrals(series, background=0.0)
    try:
        level: Any = args.background if args.background == "border" else float(args.background)
    except ValueError as error:
        raise UsageError(f"--background is border, none or a number, got {args.background!r}") from error
    return line_integrals(series, background=level)


def _echo(series: TiltSeries) -> str:
    d = series.describe()
    low, high = d["tilt_range_deg"]
    steps = d["tilt_step_deg"]
    height, width = d["image_shape"]
    size = d["pixel_size"]
    turned = (
        f", turned by {d['in_plane_angle_deg']:g} degrees in the images" if d["in_plane_angle_deg"] else ""
    )
    rows = [
        ("images", f"{d['tilts']} of {width} x {height} pixels"),
        ("pixel size", "not stated" if size is None else f"{size:g} angstrom ({size / 10:g} nm)"),
        (
            "tilts",
            f"{low:g} to {high:g} degrees" + (f", steps {steps[0]:g} to {steps[1]:g}" if steps else ""),
        ),
        ("tilt axis", d["axis"] + turned),
        ("sign of the tilts", "turned" if d["sign_turned"] else "as in the file"),
        ("contrast", f"matter {d['contrast']}"),
        ("thickness", None if d["thickness_pixels"] is None else f"{d['thickness_pixels']:g} pixels"),
        ("measured", f"{100 * d['measured_fraction']:.3g} % of the pixels"),
        ("largest shift", f"{d['largest_shift_pixels']:.2f} pixels" if d["largest_shift_pixels"] else None),
        *(("note", text) for text in d["notes"]),
    ]
    return f"{d['source']}: tilt series\n" + facts(rows)


# --- info -------------------------------------------------------------------------------------------------------


def _add_info(commands: Any) -> None:
    parser = new_parser(
        commands,
        "info",
        _info,
        "what a tilt series holds",
        _INFO,
        "  invcryo stet info series.st\n  invcryo stet info series.st --axis x --estimate-axis\n",
    )
    _add_series(parser)
    parser.add_argument("--estimate-axis", action="store_true", help="estimate the tilt axis and the shifts")


def _info(args: argparse.Namespace, words: Sequence[str], console: Console) -> tuple[int, dict[str, Any]]:
    series = _read(args, console, integrals=False)
    report = series.describe()
    console.say(_echo(series))
    if args.estimate_axis:
        from ..stet import estimate_axis

        found = estimate_axis(series).describe()
        report["estimate"] = found
        console.say("estimated from the images, and not applied:")
        console.say(
            facts(
                [
                    (
                        "tilt axis",
                        f"{found['axis']}, turned by {found['in_plane_angle_deg']:.1f} degrees"
                        f" (+- {found['uncertainty_deg']:.1f}): --axis {found['axis']} --axis-angle"
                        f" {found['in_plane_angle_deg']:.1f}",
                    ),
                    (
                        "what contradicts it",
                        f"{found['error']:.3f}; the stated axis: {found['stated_error']:.3f}",
                    ),
                    (
                        "residual shifts",
                        f"{found['shift_rms_pixels']:.2f} pixels rms, {found['largest_shift_pixels']:.2f} at most",
                    ),
                ]
            )
        )
    return EXIT_DONE, report


# --- mask -------------------------------------------------------------------------------------------------------


def _add_mask(commands: Any) -> None:
    parser = new_parser(
        commands,
        "mask",
        _mask,
        "random masks for a scan",
        _MASK,
        "  invcryo stet mask series.st -o mask.npz --fraction 0.1\n"
        "  invcryo stet mask series.st -o mask.npz --fraction 0.2 --kind line --jitter 2 --seed 7\n",
    )
    _add_series(parser, mask=False)
    parser.add_argument("-o", "--output", "--o", metavar="MASK.npz", required=True, help="the masks to write")
    parser.add_argument(
        "--fraction",
        type=_fraction,
        required=True,
        metavar="F",
        help="part of the pixels of each tilt, such as 0.1",
    )
    parser.add_argument(
        "--kind", choices=KINDS, default="pixel", help="shape of what is scanned; default: pixel"
    )
    parser.add_argument("--size", type=natural, default=4, metavar="PX", help="side of a block; default: 4")
    parser.add_argument(
        "--jitter",
        type=seed,
        default=1,
        metavar="PX",
        help="largest hop of a line between two columns; default: 1",
    )
    parser.add_argument("--same", action="store_true", help="one mask for all tilts")
    parser.add_argument("--seed", type=seed, default=0, metavar="K", help="of all that is random; default: 0")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already")


def _mask(args: argparse.Namespace, words: Sequence[str], console: Console) -> tuple[int, dict[str, Any]]:
    output = Path(args.output)
    if output.suffix != ".npz":
        raise UsageError(f"-o {args.output}: masks are written as .npz")
    picture = output.with_suffix(".png")
    check_new_files([output, picture], overwrite=args.overwrite)
    from ..stet import image_sampling

    series = _read(args, console, integrals=False)
    sampling = image_sampling(
        series.images.shape,
        args.fraction,
        kind=args.kind,
        size=args.size,
        jitter=args.jitter,
        per_tilt=not args.same,
        rng=args.seed,
    )
    sampling.save(output)
    files = [output]
    if matplotlib_is_there(console):
        from .. import plot

        plot.save(plot.tilt_masks(sampling.full_mask(), series.angles_deg), picture)
        files.append(picture)
    d = sampling.describe()
    console.say(_echo(series))
    console.say(
        f"{d['pixels_per_tilt']:.0f} pixels of each tilt ({100 * d['fraction']:.3g} %), {args.kind}, seed {args.seed}"
    )
    for path in files:
        console.say(f"wrote {path}")
    return EXIT_DONE, {**d, "files": files, "warnings": console.warnings}


# --- reconstruct ------------------------------------------------------------------------------------------------


def _add_solver(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the reconstruction")
    group.add_argument(
        "--lam",
        type=_lam,
        default="auto",
        metavar="L",
        help="weight of the regulariser, or auto: found by predicting pixels that are held out; default: auto",
    )
    group.add_argument(
        "--thickness",
        type=positive,
        metavar="PX",
        help="of the object along the beam; default: the width of the images",
    )
    group.add_argument("--no-positivity", action="store_true", help="let the map be negative")
    group.add_argument(
        "--window",
        choices=WINDOWS,
        help="basis of the map: narrow keeps sharp edges, wide is better for smooth objects; default: narrow,"
        " and for sirt wide",
    )
    add_threads(group)


def _window(args: argparse.Namespace) -> Any:
    from ..window import KaiserBessel

    return None if args.window is None else getattr(KaiserBessel, args.window)()


def _add_reconstruct(commands: Any) -> None:
    parser = new_parser(
        commands,
        "reconstruct",
        _reconstruct,
        "a map from a series",
        _RECONSTRUCT,
        "  invcryo stet reconstruct series.st -o run\n"
        "  invcryo stet reconstruct series.st -o run --mask mask.npz --method tv --lam auto --thickness 64\n",
    )
    _add_series(parser)
    parser.add_argument("--method", choices=METHODS, default="tv", help="default: tv")
    _add_solver(parser)
    parser.add_argument(
        "--iterations", type=natural, default=200, metavar="N", help="at most so many; default: 200"
    )
    parser.add_argument(
        "--tolerance",
        type=positive,
        default=0.01,
        metavar="T",
        help="stop when what is left to gain is so small beside the noise; default: 0.01",
    )
    parser.add_argument(
        "--split-images",
        action="store_true",
        help="tv and wavelet: another way to the same map, with the Toeplitz kernel whatever the mask; slower",
    )
    add_output(parser)


def _reconstruct(
    args: argparse.Namespace, words: Sequence[str], console: Console
) -> tuple[int, dict[str, Any]]:
    started = time.time()
    from ..backend import use

    with use(threads=args.threads), OutputFolder(args.output, _RESULTS, overwrite=args.overwrite) as folder:
        from ..io import write_map
        from ..stet.reconstruction import reconstruct_series

        series = _read(args, console)
        console.say(_echo(series))
        with Interrupts(console, patience=False):
            result = reconstruct_series(
                series.images,
                series.angles,
                mask=series.mask,
                method=args.method,
                lam=args.lam,
                thickness=series.thickness,
                positivity=not args.no_positivity,
                axis=series.axis,
                in_plane_angle=series.in_plane_angle,
                shifts=series.shifts,
                window=_window(args),
                split_images=args.split_images,
                max_iter=args.iterations,
                tolerance=args.tolerance,
                progress=console.progress,
            )
        size = series.pixel_size or 1.0
        if series.pixel_size is None:
            console.warn("the pixel size is not known: 1 angstrom is written into the map; pass --pixel-size")
        report = {
            "series": series.describe(),
            "method": args.method,
            "lam": result.lam,
            "shape": result.volume.shape,
            "notes": result.notes,
            "warnings": console.warnings,
        }
        with folder.results() as staging:
            write_map(staging / "map.mrc", result.volume, size, label=f"{args.method} reconstruction")
            if matplotlib_is_there(console):
                from .. import plot

                plot.save(plot.slices(result.volume, pixel_size=size), staging / "slices.png")
                spectrum = plot.wedge_spectrum(result.volume, series.angles, axis=series.axis)
                plot.save(spectrum, staging / "spectrum.png")
            run_record = {**record(args, words, started), **report}
            write_series_page(staging, f"Tilt series {Path(args.series).name}", run_record)
            write_json(staging / "run.json", run_record)
    nz, ny, nx = result.volume.shape
    console.say(f"{args.method}: map of {nx} x {ny} x {nz} voxels")
    if result.lam is not None:
        console.say(facts([("lambda", f"{result.lam:.4g}")]))
    files = [str(folder.path / name) for name in folder.existing]
    console.say(f"wrote {len(files)} files into {args.output}; look at {folder.path / PAGE}")
    return EXIT_DONE, {**report, "files": files}


# --- study ------------------------------------------------------------------------------------------------------


def _add_study(commands: Any) -> None:
    parser = new_parser(
        commands,
        "study",
        _study,
        "how few pixels are enough",
        _STUDY,
        "  invcryo stet study series.st -o study --fractions 0.5 0.3 0.2 0.1 0.03 --modes image tilt"
        " --methods tv two-step sirt\n"
        "  invcryo stet study clean.st --truth model.mrc -o study --electrons 50 --equal-total --seeds 5\n",
    )
    _add_series(parser)
    what = parser.add_argument_group("the study")
    what.add_argument(
        "--fractions",
        type=_fraction,
        nargs="+",
        default=_FRACTIONS,
        metavar="F",
        help="parts of the dose; default: 0.5 0.3 0.2 0.1 0.03",
    )
    what.add_argument(
        "--modes",
        nargs="+",
        choices=("image", "tilt"),
        default=("image", "tilt"),
        help="random pixels of all tilts, whole tilts, or both; default: both",
    )
    what.add_argument("--methods", nargs="+", choices=METHODS, default=("tv",), help="default: tv")
    what.add_argument("--kind", choices=KINDS, default="pixel", help="of the masks; default: pixel")
    what.add_argument("--seeds", type=natural, default=1, metavar="N", help="masks of each kind; default: 1")
    what.add_argument(
        "--truth", metavar="MAP.mrc", help="what to compare with; default: the map from all pixels"
    )
    what.add_argument(
        "--electrons",
        type=positive,
        metavar="E",
        help="add the noise of so many detected electrons per pixel to a series that has none",
    )
    what.add_argument(
        "--equal-total",
        action="store_true",
        help="spend the dose of the full series on the pixels that are left",
    )
    _add_solver(parser)
    parser.add_argument("-o", "--output", "--o", metavar="DIR", required=True, help="folder for the results")
    parser.add_argument("--fresh", action="store_true", help="begin anew, whatever the folder holds")


def _study(args: argparse.Namespace, words: Sequence[str], console: Console) -> tuple[int, dict[str, Any]]:
    started = time.time()
    if args.equal_total and args.electrons is None:
        raise UsageError("--equal-total goes with --electrons: a series that has its noise already keeps it")
    from ..backend import use
    from ..io import read_map
    from ..studies.tilt_study import METRICS, tilt_study

    with use(threads=args.threads):
        series = _read(args, console)
        console.say(_echo(series))
        with Interrupts(console, patience=False):
            rows = tilt_study(
                series,
                args.output,
                truth=None if args.truth is None else read_map(args.truth).data,
                fractions=args.fractions,
                modes=args.modes,
                methods=args.methods,
                seeds=range(args.seeds),
                kind=args.kind,
                electrons=args.electrons,
                equal_total=args.equal_total,
                lam=args.lam,
                settings={"positivity": not args.no_positivity, "window": _window(args)},
                pictures=matplotlib_is_there(console),
                fresh=args.fresh,
                progress=console.progress,
            )
    folder = Path(args.output)
    run_record = {
        **record(args, words, started),
        "series": series.describe(),
        "warnings": console.warnings,
    }
    write_study_page(folder, f"Dose study of {Path(args.series).name}", rows, METRICS, run_record)
    write_json(folder / "run.json", run_record)
    console.say(_table(rows, [name for name in METRICS if name != "elongation"]))
    console.say(f"wrote {args.output}: table.csv, table.json, pictures; look at {folder / PAGE}")
    return EXIT_DONE, {"rows": rows, "folder": args.output, "warnings": console.warnings}


def _table(rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> str:
    head = ["mode", "dose", "method", "seed", "tilts", *metrics]
    lines = [head]
    for row in rows:
        figures = [f"{row[m]:.3g}" if row.get(m) is not None else "-" for m in metrics]
        lines.append(
            [
                row["mode"],
                f"{100 * row['measured']:.3g} %",
                row["method"],
                str(row["seed"]),
                str(row["tilts"]),
                *figures,
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _fraction(text: str) -> float:
    value = positive(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"must be a fraction, at most 1, got {text!r}; 10 % is 0.1")
    return value


def _lam(text: str) -> float | str:
    return "auto" if text == "auto" else non_negative(text)
