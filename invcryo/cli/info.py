"""``invcryo info``: what is in a file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from .common import EXIT_DONE, Console, UsageError, add_passthrough, count, facts, new_parser

_DESCRIPTION = """\
Say what a file holds: a particle set (STAR, .cs) or another table (STAR), or a map or stack of images
(MRC, CCP4, MAP). Of image files only the header is read, so this is quick. Lengths are in angstrom, angles in degrees.

For a particle set it also tests what `invcryo reconstruct` needs: whether all stacks are there and whole,
and whether the file asks for corrections that are not modelled here. How evenly the views (without symmetry) cover the
sphere is told by their efficiency, of which side views have 0.71 and views of one kind 0, and by the sampling
compensation factor, which is 0.81 for side views and near 0 where directions of Fourier space are not seen at all.
"""
_EXAMPLES = """\
  invcryo info particles.star
  invcryo info particles.star --data-dir /data/relion_project
  invcryo info J24_particles.cs --passthrough J24_passthrough_particles.cs
  invcryo info map.mrc --json
"""


def add_parser(commands: Any) -> None:
    parser = new_parser(commands, "info", run, "say what a file holds", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("file", metavar="FILE", help="STAR, .cs, MRC, CCP4 or MAP file")
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help="folder that the image names of a STAR file are relative to (the RELION project); the working"
        " folder, the folder of the STAR file and its parents are searched as well",
    )
    add_passthrough(parser, "FILE")


def run(args: argparse.Namespace, words: Sequence[str], console: Console) -> tuple[int, dict[str, Any]]:
    from ..io import describe

    if args.passthrough and not args.file.lower().endswith(".cs"):
        raise UsageError("--passthrough goes with a .cs file")
    found = describe(args.file, data_dir=args.data_dir, passthrough=args.passthrough)
    console.say({"particles": _particles, "star": _tables}.get(found["kind"], _image)(found))
    return EXIT_DONE, found


def _particles(d: dict[str, Any]) -> str:
    def one_of(values: Sequence[float], unit: str) -> str:
        return " or ".join(f"{v:g}" for v in values) + unit if values else "not stated"

    span = d["defocus_angstrom"]
    halves = d["half_sets"]
    stacks = count(d["stacks"], "stack")
    missing, broken = d["missing_stacks"], d["broken_stacks"]
    rows = [
        ("particles", f"{d['particles']} in {stacks}, {count(d['optics_groups'], 'optics group')}"),
        ("box", " or ".join(f"{w} x {h}" for w, h in d["box"]) + " pixels" if d["box"] else "unknown"),
        ("pixel size", one_of(d["pixel_size"], " angstrom")),
        ("voltage", one_of(d["voltage_kv"], " kV")),
        ("spherical aberration", one_of(d["cs_mm"], " mm")),
        ("amplitude contrast", one_of(d["amplitude_contrast"], "")),
        ("defocus", f"{span[0]:.0f} to {span[1]:.0f} angstrom" if span else "no CTF"),
        ("half sets", f"{halves[1]} and {halves[2]} particles" if halves else "none"),
        ("poses", "yes" if d["poses"] else "none"),
    ]
    if d["views"]:
        rows.append(
            (
                "views",
                "efficiency {efficiency:.2f}, sampling compensation {scf:.2f}; 1 is even".format(
                    **d["views"]
                ),
            )
        )
    lines = [f"{d['path']}: particle set", facts(rows)]
    if d["tilt_histogram"]:
        most = max(d["tilt_histogram"].values())
        lines.append("  tilt (degrees): particles")
        lines += [f"    {k:>7}  {v:>7}  {'#' * round(40 * v / most)}" for k, v in d["tilt_histogram"].items()]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        lines.append(f"  MISSING: {len(missing)} of {stacks} not found ({shown}); try --data-dir")
    lines += [f"  BROKEN: {text}" for text in broken]
    if not missing and not broken:
        lines.append("  all stacks are there and whole")
    lines += [f"  NOT MODELLED: {name} = {what}" for name, what in d["unsupported_columns"].items()]
    lines += [f"  note: {text}" for text in d["notes"]]
    return "\n".join(lines)


def _tables(d: dict[str, Any]) -> str:
    lines = [f"{d['path']}: STAR file without particles (no column rlnImageName)"]
    for name, block in d["blocks"].items():
        lines.append(
            f"  data_{name}: {count(block['rows'], 'row')} of {', '.join(block['columns']) or 'nothing'}"
        )
    return "\n".join(lines)


def _image(d: dict[str, Any]) -> str:
    z, y, x = d["shape"]
    sizes = d["voxel_size"]
    if min(sizes) <= 0:
        voxel = "not stated"
    elif len({f"{s:.4g}" for s in sizes}) == 1:
        voxel = f"{sizes[2]:.6g} angstrom"
    else:
        voxel = " x ".join(f"{s:.6g}" for s in reversed(sizes)) + " angstrom (x, y, z)"
    size = f"{x} x {y} x {z} voxels" if d["kind"] == "volume" else f"{z} images of {x} x {y} pixels"
    rows = [
        ("size", size),
        ("pixel size", voxel),
        ("values", f"{d['dtype']} (MODE {d['mode']})"),
        ("header says", "min {min:.6g}, max {max:.6g}, mean {mean:.6g}, rms {rms:.6g}".format(**d)),
        ("origin (x, y, z)", " ".join(f"{v:g}" for v in reversed(d["origin"])) + " angstrom"),
        ("start (x, y, z)", " ".join(f"{v}" for v in reversed(d["start"])) + " voxels"),
        ("axes of the file", None if d["axes"] == (1, 2, 3) else ", ".join("-xyz"[i] for i in d["axes"])),
    ]
    lines = [f"{d['path']}: {d['kind']}, {d['kind_reason']}", facts(rows)]
    lines += [f"  label: {text}" for text in d["labels"]]
    lines += [f"  note: {text}" for text in d["notes"]]
    return "\n".join(lines)
