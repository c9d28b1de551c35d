"""What the commands that read particles share: options, the particle set, and a run that is gone on with."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import (
    Console,
    UsageError,
    add_passthrough,
    add_pixel_size,
    natural,
    non_negative,
    positive,
    seed,
)

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint
    from ..data import ParticleStack


def add_particles(parser: argparse.ArgumentParser) -> Any:
    """The options of `load`; returns their group."""
    data = parser.add_argument_group("the particles")
    data.add_argument(
        "particles",
        metavar="PARTICLES.star",
        nargs="?",
        help="particle set of RELION 3.0 to 5, or cryoSPARC's .cs",
    )
    data.add_argument("--i", metavar="PARTICLES.star", dest="particles_option", help="the same, as in RELION")
    data.add_argument(
        "--data-dir",
        metavar="DIR",
        help="folder that the image names are relative to (the RELION project); the working folder, the folder"
        " of the STAR file and its parents are searched as well",
    )
    add_passthrough(data, "PARTICLES.cs")
    add_pixel_size(data, "angstrom per pixel, in place of what the STAR file says")
    data.add_argument(
        "--contrast",
        choices=("white", "dark"),
        default="white",
        help="of the protein in the images; dark images change sign when read; default: white, as RELION",
    )
    data.add_argument(
        "--angles",
        choices=("degrees", "radians"),
        help="unit of the angles; default: degrees, refused where they look like radians",
    )
    data.add_argument("--voltage", type=positive, metavar="KV", help="kilovolts, in place of rlnVoltage")
    data.add_argument(
        "--cs", type=non_negative, metavar="MM", help="millimetres, in place of rlnSphericalAberration"
    )
    data.add_argument(
        "--amplitude-contrast",
        type=non_negative,
        metavar="Q",
        help="a fraction, in place of rlnAmplitudeContrast",
    )
    data.add_argument("--optics-group", type=natural, metavar="N", help="use this optics group only")
    data.add_argument(
        "--ignore",
        nargs="+",
        action="extend",
        default=[],
        metavar="COLUMN",
        help="go on without a correction that is not modelled here, such as rlnBeamTiltX rlnBeamTiltY",
    )
    data.add_argument(
        "--subset",
        type=natural,
        metavar="N",
        help="use N particles only, drawn at random (by --seed); for a quick look",
    )
    return data


def add_fresh(job: Any) -> None:
    job.add_argument(
        "--fresh",
        action="store_true",
        help="begin anew where DIR holds the state of a run that was cut short; without it that run is gone on with",
    )


def add_seed(job: Any, what: str = "half sets if the file has none, --subset") -> None:
    job.add_argument(
        "--seed", type=seed, default=0, metavar="K", help=f"of what is random: {what}; default: 0"
    )


def name_once(args: argparse.Namespace) -> None:
    """The particle set may be given in two ways: puts the one into ``args.particles``."""
    given = [p for p in (args.particles, args.particles_option) if p is not None]
    if len(given) != 1:
        raise UsageError("give the particle set once, as PARTICLES.star or with --i")
    args.particles = given[0]
    del args.particles_option


def load(args: argparse.Namespace) -> ParticleStack:
    """The particles that the options ask for; images are not read yet."""
    import numpy as np

    from ..io import read_particles

    stack = read_particles(
        args.particles,
        passthrough=args.passthrough,
        data_dir=args.data_dir,
        pixel_size=args.pixel_size,
        degrees=None if args.angles is None else args.angles == "degrees",
        contrast=args.contrast,
        voltage_kv=args.voltage,
        cs_mm=args.cs,
        amplitude_contrast=args.amplitude_contrast,
        optics_group=args.optics_group,
        ignore=args.ignore,
    )
    half = getattr(args, "half", None)
    if half is not None:
        stack = stack.halves()[half - 1]
    if args.subset is not None:
        if args.subset > len(stack):
            raise ValueError(f"--subset {args.subset}, but there are {len(stack)} particles")
        chosen = np.random.default_rng(args.seed).choice(len(stack), args.subset, replace=False)
        stack = stack[np.sort(chosen)]
    return stack


def open_checkpoint(args: argparse.Namespace, folder: Path, console: Console) -> Checkpoint:
    """Of a run in ``folder``; says so when there is one to go on with."""
    from ..checkpoint import Checkpoint

    checkpoint = Checkpoint(folder, fresh=args.fresh)
    if checkpoint.path.exists() and not args.fresh:
        console.note(f"going on with the run that was cut short ({checkpoint.path})")
    return checkpoint
