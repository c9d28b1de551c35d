"""``invcryo mask``: a soft mask from a map."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .common import (
    EXIT_DONE,
    Console,
    UsageError,
    add_pixel_size,
    add_report,
    facts,
    finite,
    new_parser,
    non_negative,
)
from .output import check_new_files, record
from .pages import write_mask_page
from .pictures import matplotlib_is_there

#: Protein, kilodalton per cubic angstrom: 1.35 g/ml (0.81 Da per cubic angstrom).
_KDA = 0.81e-3

_DESCRIPTION = """\
Make a soft mask from a map, by the steps of relion_mask_create: low-pass, threshold, extension by some pixels, a
raised-cosine edge. Values run from 0 to 1.

Without --threshold it is found by Otsu's rule on the low-passed map (the split that leaves the least variance on
either side); the output states it, with the mass that it encloses at the density of protein. Look at the picture
MASK.png, which shows slices of the map with the outline of the mask: a mask that cuts into the particle or has a
sharp edge makes the FSC look better than it is.

Protein must be bright.
"""
_EXAMPLES = """\
  invcryo mask run/map.mrc -o mask.mrc
  invcryo mask map.mrc -o mask.mrc --threshold 0.02 --lowpass 20 --extend 4 --edge 8
  invcryo postprocess half1.mrc half2.mrc --mask mask.mrc -o post
"""


def add_parser(commands: Any) -> None:
    parser = new_parser(commands, "mask", run, "soft mask from a map", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("map", metavar="MAP.mrc", help="a map, protein bright")
    parser.add_argument(
        "-o", "--output", "--o", metavar="MASK.mrc", required=True, help="the mask to write (.mrc or .map)"
    )
    parser.add_argument(
        "--threshold",
        "--ini-threshold",
        "--ini_threshold",
        type=finite,
        metavar="T",
        help="density of the low-passed map where the particle begins; default: found, and stated",
    )
    parser.add_argument(
        "--lowpass",
        type=non_negative,
        metavar="A",
        help="low-pass filter before the threshold, angstrom, 0 for none; default: 15, or 4 pixels if that is"
        " more",
    )
    parser.add_argument(
        "--extend",
        "--extend-inimask",
        "--extend_inimask",
        type=non_negative,
        default=3.0,
        metavar="PX",
        help="pixels by which the thresholded region grows; default: 3",
    )
    parser.add_argument(
        "--edge",
        "--width-soft-edge",
        "--width_soft_edge",
        type=non_negative,
        default=6.0,
        metavar="PX",
        help="width of the soft edge in pixels; default: 6",
    )
    add_pixel_size(parser, "angstrom per pixel, in place of what the header says")
    add_report(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already")


def run(args: argparse.Namespace, words: Sequence[str], console: Console) -> tuple[int, dict[str, Any]]:
    started = time.time()
    output = Path(args.output)
    if output.suffix.lower() not in (".mrc", ".map", ".ccp4"):
        raise UsageError(f"-o {args.output}: the mask is a map, its name must end in .mrc, .map or .ccp4")
    picture = output.with_suffix(".png")
    page = [] if args.report is None else [Path(args.report)]
    check_new_files([output, picture, *page], overwrite=args.overwrite)
    from ..io import read_map, write_map
    from ..metrics import automatic_threshold, soft_mask

    volume = read_map(args.map, pixel_size=args.pixel_size)
    size = volume.pixel_size
    lowpass = max(15.0, 4 * size) if args.lowpass is None else (args.lowpass or None)
    automatic = args.threshold is None
    threshold = args.threshold
    if automatic:
        threshold = automatic_threshold(volume.data, pixel_size=size, lowpass=lowpass)
    options: dict[str, Any] = {"pixel_size": size, "lowpass": lowpass}
    seed = soft_mask(volume.data, threshold, extend=0.0, edge=0.0, **options)
    mask = soft_mask(volume.data, threshold, extend=args.extend, edge=args.edge, **options)
    inside = float(seed.mean(dtype=float))
    mass = inside * seed.size * size**3 * _KDA
    fraction = float((mask > 0.5).mean())
    _warn(console, mask, inside, args.edge)
    write_map(output, mask, size, like=volume, label="mask")
    files = [output]
    pictures = {}
    if matplotlib_is_there(console):
        from .. import plot

        drawn = plot.masked_slices(volume.data, mask, pixel_size=size)
        plot.save(drawn, picture)
        pictures["Slices of the map with the outline of the mask, which must not cut into the particle."] = (
            drawn
        )
        files.append(picture)
    report = {
        "threshold": threshold,
        "threshold_is_automatic": automatic,
        "lowpass_angstrom": lowpass,
        "extend_pixels": args.extend,
        "edge_pixels": args.edge,
        "fraction_above_threshold": inside,
        "mass_kda": mass,
        "fraction_of_mask": fraction,
        "pixel_size": size,
        "warnings": console.warnings,
    }
    if page:
        write_mask_page(args.report, args.map, pictures, {**record(args, words, started), **report})
        files += page
    console.say(f"mask of {args.map}: box {' x '.join(map(str, mask.shape))}, {size:g} angstrom per pixel")
    console.say(
        facts(
            [
                ("threshold", f"{threshold:.4g}, " + ("found by Otsu's rule" if automatic else "as given")),
                ("low-pass", "none" if lowpass is None else f"{lowpass:g} angstrom"),
                ("above the threshold", f"{100 * inside:.1f} % of the box, {mass:.0f} kDa of protein"),
                ("mask above 0.5", f"{100 * fraction:.1f} % of the box"),
                ("extension and edge", f"{args.extend:g} and {args.edge:g} pixels"),
            ]
        )
    )
    for path in files:
        console.say(f"wrote {path}")
    return EXIT_DONE, {**report, "files": files}


def _warn(console: Console, mask: Any, inside: float, edge: float) -> None:
    faces = [mask[i] if axis == 0 else mask.take(i, axis) for axis in range(3) for i in (0, -1)]
    if max(float(face.max()) for face in faces) > 0.5:
        console.warn("the mask reaches the border of the box: raise --threshold, or use a larger box")
    if inside > 0.5:
        console.warn(
            f"{100 * inside:.0f} % of the box is above the threshold: is the map inverted (dark protein)?"
        )
    if 0 <= edge < 3:
        console.warn(
            f"an edge of {edge:g} pixels is sharp: the mask alone will correlate; 5 or more are safer"
        )
