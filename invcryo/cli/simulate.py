"""``invcryo simulate``: particles of a known map."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .common import (
    EXIT_DONE,
    Console,
    UsageError,
    add_output,
    add_pixel_size,
    add_threads,
    facts,
    natural,
    new_parser,
    non_negative,
    positive,
    seed,
)
from .output import OutputFolder, record, write_json
from .pages import PAGE, write_simulate_page
from .pictures import matplotlib_is_there

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESULTS = ("particles.mrcs", "particles.star", "truth.mrc", PAGE, "run.json")
#: Those of `invcryo.simulate.PHANTOMS`, which takes a second to import.
PHANTOM_NAMES = ("shepp-logan", "blobs", "helix", "shell", "enzyme")
_BOX, _PIXEL_SIZE = 64, 3.0

_DESCRIPTION = """\
Simulate a particle set of a known map: projections in random directions, with CTF, shifts and white noise. What
comes out can be read by `invcryo reconstruct` and by RELION (run in the output folder). Protein is white.

DIR receives particles.mrcs (the images, in units of the standard deviation of the noise), particles.star
(poses, CTF, half sets), truth.mrc (the map in the units of the images), report.html and run.json.
"""
_EXAMPLES = """\
  invcryo simulate --phantom enzyme -o sim -n 2000 --box 64 --pixel-size 3 --snr 0.1
  invcryo simulate --map emd_3400.mrc -o sim -n 5000 --defocus 8000 20000 --shift 3
  invcryo simulate --model 5a1a.pdb -o sim -n 5000 --box 96 --pixel-size 2.5 --seed 7
"""


def add_parser(commands: Any) -> None:
    parser = new_parser(commands, "simulate", run, "make particles of a known map", _DESCRIPTION, _EXAMPLES)
    source = parser.add_argument_group("the map (one of these)").add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--phantom",
        choices=PHANTOM_NAMES,
        metavar="NAME",
        help=f"a test object: {', '.join(PHANTOM_NAMES)} (protein-like)",
    )
    source.add_argument("--map", metavar="M.mrc", help="a density map, protein bright")
    source.add_argument("--model", metavar="F.pdb", help="an atomic model, PDB or mmCIF")
    grid = parser.add_argument_group("its grid")
    grid.add_argument(
        "--box",
        type=natural,
        metavar="B",
        help=f"side of the images and of the map in pixels; default: {_BOX}, or that of --map",
    )
    add_pixel_size(grid, f"angstrom per pixel; default: {_PIXEL_SIZE:g}, or that of --map")
    grid.add_argument(
        "--resolution", type=positive, metavar="R", help="of --model, angstrom; default: 3 pixels"
    )
    grid.add_argument(
        "--sym",
        default="C1",
        metavar="G",
        help="point group of the map (C1, C4, D2, T, O, I, ...): phantoms are made with it, maps and models"
        " averaged over it; default: C1",
    )
    images = parser.add_argument_group("the images")
    images.add_argument(
        "-n", type=natural, default=1000, metavar="N", help="number of particles; default: 1000"
    )
    images.add_argument(
        "--snr",
        type=_snr,
        default=0.1,
        metavar="S",
        help="variance of the signal over that of the noise, over the whole image, or none for no noise;"
        " default: 0.1",
    )
    images.add_argument(
        "--shift",
        type=non_negative,
        default=0.0,
        metavar="PX",
        help="largest shift along x and y, pixels; default: 0",
    )
    images.add_argument(
        "--preferred",
        type=non_negative,
        metavar="KAPPA",
        help="views gather about the z axis, seen from either side: concentration of the von Mises-Fisher"
        " distribution, 0 uniform, 10 within about 25 degrees; default: uniform",
    )
    ctf = parser.add_argument_group("the microscope")
    ctf.add_argument("--no-ctf", action="store_true", help="no contrast transfer function at all")
    ctf.add_argument(
        "--defocus",
        type=float,
        nargs=2,
        default=(8000.0, 20000.0),
        metavar=("LO", "HI"),
        help="range of the defocus, angstrom, positive for underfocus; default: 8000 20000",
    )
    ctf.add_argument(
        "--astigmatism",
        type=non_negative,
        default=0.0,
        metavar="A",
        help="largest difference of the defocus along two axes, angstrom; default: 0",
    )
    ctf.add_argument("--voltage", type=positive, default=300.0, metavar="KV", help="kilovolts; default: 300")
    ctf.add_argument(
        "--cs", type=non_negative, default=2.7, metavar="MM", help="spherical aberration, mm; default: 2.7"
    )
    ctf.add_argument(
        "--amplitude-contrast", type=non_negative, default=0.1, metavar="Q", help="a fraction; default: 0.1"
    )
    ctf.add_argument(
        "--b-factor",
        type=non_negative,
        default=0.0,
        metavar="B",
        help="damping exp(-B s^2 / 4) at frequency s, angstrom squared; default: 0",
    )
    job = parser.add_argument_group("the job")
    add_output(job)
    job.add_argument(
        "--seed",
        type=seed,
        default=0,
        metavar="K",
        help="of all that is random; default: 0",
    )
    add_threads(job)


def run(args: argparse.Namespace, words: Sequence[str], console: Console) -> tuple[int, dict[str, Any]]:
    from ..backend import use

    if args.resolution is not None and args.model is None:
        raise UsageError("--resolution goes with --model only")
    started = time.time()
    with use(threads=args.threads), OutputFolder(args.output, RESULTS, overwrite=args.overwrite) as folder:
        return _run(args, words, console, folder, started)


def _run(
    args: argparse.Namespace, words: Sequence[str], console: Console, folder: OutputFolder, started: float
) -> tuple[int, dict[str, Any]]:
    import numpy as np

    from ..simulate import preferred_orientations, simulate_particles, write_simulation

    rng = np.random.default_rng(args.seed)
    volume, pixel_size = _volume(args, rng)
    orientations: Any = "uniform"
    if args.preferred is not None:
        orientations = preferred_orientations(args.n, [(0, 0, 1), (0, 0, -1)], args.preferred, rng=rng)
    stack = simulate_particles(
        volume,
        args.n,
        pixel_size,
        snr=args.snr,
        defocus_angstrom=None if args.no_ctf else tuple(args.defocus),
        astigmatism_angstrom=args.astigmatism,
        voltage_kv=args.voltage,
        cs_mm=args.cs,
        amplitude_contrast=args.amplitude_contrast,
        b_factor=args.b_factor,
        shift_px=args.shift,
        orientations=orientations,
        rng=rng,
    )
    console.note(f"simulating {args.n} images of {stack.box} x {stack.box} pixels ...")
    with folder.results() as staging:
        write_simulation(staging, stack)
        report = {
            "particles": args.n,
            "box": stack.box,
            "pixel_size": pixel_size,
            "scale_of_map": stack.images.scale,
            "noise_sd": stack.images.noise_sd,
            "warnings": console.warnings,
            **record(args, words, started),
        }
        write_simulate_page(staging, _pictures(stack, console), report)
        write_json(staging / "run.json", report)
    noise = "no noise" if args.snr is None else f"signal-to-noise ratio {args.snr:g}"
    console.say(f"wrote {args.n} particles of {stack.box} x {stack.box} pixels, {noise}, to {folder.path}:")
    console.say(
        facts(
            [
                ("particles.star", f"poses, CTF, half sets; {pixel_size:g} angstrom per pixel"),
                ("particles.mrcs", "the images, protein white"),
                ("truth.mrc", "the map that a perfect reconstruction would give"),
                (PAGE, "the first images and the map, on one page"),
                ("run.json", "how this was made"),
            ]
        )
    )
    console.say(
        f"next: invcryo reconstruct {folder.path / 'particles.star'} -o {folder.path / 'run'} --half-maps"
    )
    return EXIT_DONE, {"folder": folder.path, "files": [folder.path / name for name in RESULTS], **report}


def _pictures(stack: Any, console: Console) -> dict[str, Any]:
    """Captions and axes."""
    if not matplotlib_is_there(console):
        return {}
    from .. import plot

    return {
        "The first images.": plot.projections(stack.images, 10, columns=5),
        "Central slices of the map.": plot.slices(stack.images.truth, pixel_size=stack.pixel_size),
        "Where the particles are seen from.": plot.orientations(stack.poses),
    }


def _volume(args: argparse.Namespace, rng: np.random.Generator) -> tuple[NDArray, float]:
    """The map to project, and its pixel size in angstrom."""
    from ..io import read_map
    from ..simulate import model_to_volume, phantom
    from ..symmetry import symmetrise

    if args.map is not None:
        found = read_map(args.map, pixel_size=args.pixel_size)
        box = found.data.shape[0]
        if args.box is not None and args.box != box:
            raise ValueError(
                f"--box {args.box}, but {args.map} has a box of {box}; leave --box out, or crop or pad the"
                f" map first: relion_image_handler --i {args.map} --o other.mrc --new_box {args.box}"
            )
        volume, pixel_size = found.data, found.pixel_size
    else:
        box, pixel_size = args.box or _BOX, args.pixel_size or _PIXEL_SIZE
        if args.phantom is not None:
            return phantom(args.phantom, box, rng=rng, symmetry=args.sym), pixel_size
        volume = model_to_volume(args.model, box, pixel_size, resolution=args.resolution)
    return symmetrise(volume, args.sym) if args.sym.upper() != "C1" else volume, pixel_size


def _snr(text: str) -> float | None:
    return None if text.lower() == "none" else positive(text)
