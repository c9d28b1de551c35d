"""``invcryo convert``: particle sets between programs, and their convention passport."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import (
    EXIT_DONE,
    Console,
    UsageError,
    add_passthrough,
    add_pixel_size,
    count,
    natural,
    new_parser,
)

if TYPE_CHECKING:
    from ..conventions import Passport
    from ..data import ParticleStack

_DESCRIPTION = """\
Convert a particle set between RELION (.star) and cryoSPARC (.cs), or write its poses, shifts and CTF as a
table of numbers (.csv) in the convention of another program. The images stay where they are, and need not be
there, unless --stack asks for a copy of them. What the new format has no place for is named.

With --show, print the first particles in all conventions: how RELION, cryoSPARC, EMAN2, SciPy and the thesis
would each write the same pose, shift and CTF. OUT may then be left out.

cryoSPARC often spreads the columns over two files of a job; give the second one with --passthrough. Rows are
joined by their uid.
"""
_EXAMPLES = """\
  invcryo convert J24_particles.cs particles.star --passthrough J24_passthrough_particles.cs
  invcryo convert run_data.star particles.cs
  invcryo convert particles.star poses.csv --to eman2
  invcryo convert particles.star --show 3
"""
_SUFFIXES = {".star": "relion", ".cs": "cryosparc"}
_CONVENTIONS = ("relion", "cryosparc", "eman2", "scipy", "thesis", "invcryo")


def add_parser(commands: Any) -> None:
    parser = new_parser(
        commands, "convert", run, "between RELION and cryoSPARC, and all conventions", _DESCRIPTION, _EXAMPLES
    )
    parser.add_argument("input", metavar="IN", help="particle set: .star or .cs")
    parser.add_argument(
        "output", metavar="OUT", nargs="?", help="file to write: .star, .cs or .csv; directly after IN"
    )
    parser.add_argument(
        "--to",
        choices=_CONVENTIONS,
        help="convention of the new file; a .star file is always relion's, a .cs file cryosparc's, a .csv file"
        " any one (default there: relion)",
    )
    add_passthrough(parser, "IN")
    parser.add_argument(
        "--show",
        metavar="N",
        type=natural,
        nargs="?",
        const=1,
        help="print the first N particles (default 1) in all conventions",
    )
    parser.add_argument(
        "--stack",
        metavar="FILE",
        help="also copy the images, protein white, into one stack (.mrcs), which the new .star file then names",
    )
    parser.add_argument(
        "--data-dir", metavar="DIR", help="folder that the image names are relative to; used with --stack"
    )
    add_pixel_size(parser, "angstrom per pixel, in place of what IN says")
    parser.add_argument(
        "--contrast",
        choices=("white", "dark"),
        default="white",
        help="of the protein in the images of IN (of a .cs file: of the images times blob/sign); default: white",
    )
    parser.add_argument(
        "--flip-y",
        action="store_true",
        help="of a .cs file: count rlnCoordinateY from the other end of the micrograph, where the motion"
        " correction turned it over; poses and images stay as they are",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there already")


def run(args: argparse.Namespace, words: Sequence[str], console: Console) -> tuple[int, dict[str, Any]]:
    kind = _kind(args)
    from ..io import read_particles
    from ..io.cs_particles import lost_in_cs, lost_in_star

    stack = read_particles(
        args.input,
        passthrough=args.passthrough,
        data_dir=args.data_dir,
        pixel_size=args.pixel_size,
        contrast=args.contrast,
        flip_y=args.flip_y,
        open_images=args.stack is not None,
    )
    has = {
        "poses": stack.poses is not None,
        "ctf": stack.ctf is not None,
        "half_sets": stack.half is not None,
    }
    report: dict[str, Any] = {
        "input": args.input,
        "output": args.output,
        "particles": len(stack),
        "pixel_size": stack.pixel_size,
        **has,
        "left_out": {"relion": lost_in_star, "cryosparc": lost_in_cs}[kind](stack.table)
        if kind in ("relion", "cryosparc")
        else [],
    }
    text = [
        f"{args.input}: {count(len(stack), 'particle')}, {stack.pixel_size:g} angstrom per pixel, "
        + ", ".join(f"{name.replace('_', ' ')} {'yes' if there else 'none'}" for name, there in has.items())
    ]
    if args.show is not None:
        passport = _passport(args, stack, args.show)
        report["passport"] = {name: passport.columns(name) for name in _CONVENTIONS}
        text.append(passport.show(_CONVENTIONS))
    if args.output is not None:
        _write(args, kind, stack, console)
        text += [f"wrote {path}" for path in (args.stack, args.output) if path is not None]
    console.say("\n".join(text))
    return EXIT_DONE, report


def _kind(args: argparse.Namespace) -> str:
    """What is to be written: relion, cryosparc, table or nothing; options that do not go together are refused."""
    if Path(args.input).suffix.lower() not in _SUFFIXES:
        raise UsageError(f"{args.input}: a particle set ends in .star or .cs")
    if args.output is None:
        if args.show is None:
            raise UsageError("give OUT, a file to write, or --show")
        if args.to or args.stack:
            raise UsageError("--to and --stack are of no use without OUT")
        return "nothing"
    suffix = Path(args.output).suffix.lower()
    if suffix == ".csv":
        if args.stack:
            raise UsageError("--stack goes with a .star file")
        kind = "table"
    elif suffix in _SUFFIXES:
        kind = _SUFFIXES[suffix]
        if args.to not in (None, kind):
            raise UsageError(
                f"{args.output}: a {suffix} file is in {kind}'s convention, not {args.to}'s; for a table of"
                " numbers name it .csv"
            )
    else:
        raise UsageError(f"{args.output}: the suffix says what to write: .star, .cs or .csv")
    if args.stack and kind != "relion":
        raise UsageError("--stack goes with a .star file")
    for name in filter(None, (args.output, args.stack)):
        if not args.overwrite and os.path.lexists(name):
            raise FileExistsError(
                f"{name} is there already; it was left alone. Pass --overwrite to replace it"
            )
        if any(_same(name, other) for other in (args.input, *args.passthrough)):
            raise UsageError(f"{name} is a file to read as well; give another name")
    return kind


def _same(a: str, b: str) -> bool:
    return os.path.realpath(a) == os.path.realpath(b)


def _passport(args: argparse.Namespace, stack: ParticleStack, rows: int | None = None) -> Passport:
    from ..conventions import Passport

    if stack.poses is None:
        raise ValueError(
            f"{args.input} holds no poses, so there is nothing to show in other conventions; choose the file of a"
            " refinement, or pass --passthrough with the file that has them"
        )
    keep = slice(0, rows)
    return Passport(stack.poses[keep], stack.pixel_size, None if stack.ctf is None else stack.ctf[keep])


def _write(args: argparse.Namespace, kind: str, stack: ParticleStack, console: Console) -> None:
    from ..io import write_cs, write_particles
    from ..io.atomic import atomic_open

    if kind == "cryosparc":
        write_cs(args.output, stack)
    elif kind == "relion":
        if args.stack is None:
            _warn_of_images(stack, console)
        write_particles(args.output, stack, stack_path=args.stack)
    else:
        columns = _passport(args, stack).columns(args.to or "relion")
        rows = zip(*(values.tolist() for values in columns.values()), strict=True)
        with atomic_open(args.output, "w", encoding="utf-8") as file:
            file.write(",".join(columns) + "\n")
            file.writelines(",".join(map(repr, row)) + "\n" for row in rows)


def _warn_of_images(stack: ParticleStack, console: Console) -> None:
    """What a STAR file cannot say of images that stay as they are."""
    dark = int((stack.images.sign < 0).sum())
    if dark:
        console.warn(
            f"protein is dark in the images of {dark} of {len(stack)} particles, and a STAR file cannot say so:"
            " read it with --contrast dark, or let --stack write the images with protein white"
        )
    names = stack.table["rlnImageName"]
    if any("@" in name and name.endswith(".mrc") for name in names.tolist()):
        console.warn(
            "some stacks end in .mrc, which RELION takes for volumes: link or rename them to .mrcs, there and in"
            " the STAR file, or let --stack write one"
        )
