"""``invcryo reconstruct``: from particles with known poses to a map."""

from __future__ import annotations

import argparse
import csv
import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import (
    EXIT_DONE,
    Console,
    Interrupted,
    Interrupts,
    UsageError,
    add_output,
    add_threads,
    count,
    facts,
    natural,
    new_parser,
    non_negative,
    positive,
)
from .fsc import resolution_text
from .output import OutputFolder, record, write_json
from .pages import PAGE, end, reconstruct_page
from .particles import add_fresh, add_particles, add_seed, load, name_once, open_checkpoint
from .pictures import draw, load_matplotlib_meanwhile

if TYPE_CHECKING:
    from ..data import ParticleStack
    from ..reconstruction import Reconstruction

MAPS = ("map", "map_noreg", "half1", "half2", "half1_noreg", "half2_noreg")
CURVES = ("fsc", "fsc_noreg")
RESULTS = (
    *(f"{name}.mrc" for name in MAPS),
    *(f"{name}{suffix}" for name in CURVES for suffix in (".xml", ".star")),
    "map.cxc",
    "fsc.png",
    "slices.png",
    "convergence.csv",
    "convergence.png",
    "lcurve.png",
    PAGE,
    "run.json",
)

#: "none" and the names of `invcryo.inversion.PENALTIES`, written out so that the help needs no NumPy.
REGULARISERS = ("tv", "tv-aniso", "wavelet", "hessian", "tikhonov", "sobolev", "none")

_DESCRIPTION = """\
Reconstruct a map from a particle set whose poses and CTF are known, as the minimiser of
  1/2 |images - CTF projection map|^2 + lambda R(map)
where R is chosen by --reg:
  tv          total variation, the sum of the lengths of the map's gradient (default)
  tv-aniso    the same of its components, which favours faces along the axes
  wavelet     the sum of the sizes of wavelet coefficients, but the coarsest
  hessian     second-order total variation, which keeps slopes where tv makes stairs
  tikhonov    half the map's energy
  sobolev     half the energy of its gradient
  none        no regularisation
and lambda by --lam:
  auto        the map of one half set is to predict the images of the other (default)
  discrepancy the misfit is to be that of the noise in the corners of the images; at a low signal-to-noise ratio this
              cannot be told, and is refused
  X           a number, 0 or more

--method direct solves nothing: it divides, voxel by voxel in Fourier space, the sum of CTF times image by the sum of
CTF squared and a Wiener weight, the noise over the signal power of the shell by the FSC of the half maps. It is the
classical method, a baseline for those above and a quick look: no iterations.

DIR receives
  report.html    all of it on one page, to look at first
  map.mrc        the map, and map_noreg.mrc, the same without regularisation
  map.cxc        script that shows the map in ChimeraX
  half1.mrc      with --half-maps: the map of half set 1; half2.mrc;
                 half1_noreg.mrc, half2_noreg.mrc, the same without regularisation
  fsc.xml        with --half-maps: FSC of half1 and half2, for EMDB; fsc.star, as RELION's;
                 fsc_noreg.xml, fsc_noreg.star, of the unregularised halves: the FSC to quote
  slices.png     central slices; fsc.png, the curves; convergence.png, the solver
  lcurve.png     misfit and R of every lambda that was tried
  run.json       options, versions, inputs, times; convergence.csv, iteration by iteration
With --reg none the maps are unregularised themselves, and there are no files *_noreg.

The sums over the images are kept in DIR every minute (unfinished.npz) until the maps are there: a run that was cut
short goes on from there when the same command is given again.
"""
_EXAMPLES = """\
  invcryo reconstruct particles.star -o run --half-maps
  invcryo reconstruct particles.star -o run --half-maps --mask mask.mrc --sym D2 --positivity
  invcryo reconstruct particles.star -o run --half-maps --dry-run    (how much memory does it take?)
  invcryo reconstruct particles.star -o direct --half-maps --method direct
  invcryo reconstruct --i particles.star --o run --angpix 1.06 --j 8
  relion_postprocess --i run/half1_noreg.mrc --mask mask.mrc --o run/postprocess   (finds half2 itself)
"""


def add_parser(commands: Any) -> None:
    parser = new_parser(commands, "reconstruct", run, "particles to a map", _DESCRIPTION, _EXAMPLES)
    data = add_particles(parser)
    data.add_argument("--half", type=int, choices=(1, 2), help="use one half set (rlnRandomSubset) only")

    problem = parser.add_argument_group("the problem")
    problem.add_argument(
        "--method",
        choices=("regularised", "direct"),
        default="regularised",
        help="regularised least squares (default), or direct Fourier reconstruction, see above",
    )
    problem.add_argument(
        "--reg",
        choices=(*REGULARISERS, "wiener"),
        metavar="R",
        help=f"{', '.join(REGULARISERS)}; default: tv. With --method direct: wiener (default) or none",
    )
    problem.add_argument(
        "--lam",
        type=_lam,
        default="auto",
        metavar="X",
        help="weight of the regularisation: auto (default), discrepancy, or a number, 0 or more",
    )
    problem.add_argument("--positivity", action="store_true", help="ask for a map without negative values")
    problem.add_argument(
        "--mask",
        default="ball",
        metavar="M.mrc",
        help="where the map may differ from 0: ball (default, the ball that fits the box), none, or a map on"
        " the same grid (inside where it is 0.5 or more)",
    )
    problem.add_argument(
        "--sym", default="C1", metavar="G", help="point group: C1, C4, D2, T, O, I, ..., in RELION's setting"
    )
    problem.add_argument(
        "--scale",
        type=positive,
        default=1.0,
        metavar="S",
        help="pixels per unknown, 1 or more: 2 to 4 are coarse, fast and robust; the map keeps the box of the"
        " images; default: 1",
    )
    problem.add_argument(
        "--half-maps", action="store_true", help="reconstruct the two half sets too, and FSC"
    )

    job = parser.add_argument_group("the job")
    add_output(job)
    add_fresh(job)
    job.add_argument(
        "--memory",
        type=positive,
        metavar="GB",
        help="1e9 bytes of memory that may be used; default: all that is free",
    )
    job.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would be held in memory, array by array, and stop: no image is read, nothing is written",
    )
    job.add_argument("--max-iter", type=natural, metavar="N", help="most iterations of the solver")
    add_seed(job)
    add_threads(job)


def run(args: argparse.Namespace, words: Sequence[str], console: Console) -> tuple[int, dict[str, Any]]:
    _check(args)
    from ..backend import use

    started = time.time()
    if args.dry_run:
        with use(threads=args.threads):
            return dry_run(args, console)
    with use(threads=args.threads), OutputFolder(args.output, RESULTS, overwrite=args.overwrite) as folder:
        stack = load(args)
        mask = _mask(args.mask, args.pixel_size)
        load_matplotlib_meanwhile()
        with Interrupts(console) as interrupts:
            result = solve(args, stack, mask, console, folder.path)
        if interrupts.seen:
            result.stopped_by = "interrupt"
        return save(args, words, console, folder, stack, result, started)


def dry_run(args: argparse.Namespace, console: Console) -> tuple[int, dict[str, Any]]:
    """The memory that the command would take."""
    from ..memory import TooLargeError
    from ..reconstruction import plan

    stack = load(args)
    try:
        direct = args.method == "direct"
        planned = plan(
            stack,
            reg="none" if direct else args.reg,
            lam=args.lam,
            scale=args.scale,
            half_maps=args.half_maps or (direct and args.reg == "wiener"),
            memory=args.memory,
        )
    except TooLargeError as error:
        raise ValueError(str(error)) from error
    console.say(f"{count(len(stack), 'particle')} of {stack.box} x {stack.box} pixels\n{planned}")
    return EXIT_DONE, {"particles": len(stack), "memory": planned.as_dict()}


def solve(
    args: argparse.Namespace, stack: ParticleStack, mask: Any, console: Console, folder: Path
) -> Reconstruction:
    from ..memory import TooLargeError
    from ..reconstruction import reconstruct

    height, width = stack.image_shape
    console.note(
        f"{count(len(stack), 'particle')} of {width} x {height} pixels, {stack.pixel_size:g} angstrom"
    )
    checkpoint = open_checkpoint(args, folder, console)
    common: dict[str, Any] = {
        "mask": mask,
        "symmetry": args.sym,
        "scale": args.scale,
        "half_maps": args.half_maps,
        "memory": args.memory,
        "checkpoint": checkpoint,
        "rng": args.seed,
        "progress": console.progress,
    }
    try:
        if args.method == "direct":
            from ..direct import direct_reconstruction

            result = direct_reconstruction(stack, wiener=args.reg == "wiener", **common)
        else:
            result = reconstruct(
                stack,
                reg=args.reg,
                lam=args.lam,
                positivity=args.positivity,
                max_iter=args.max_iter,
                **common,
            )
    except TooLargeError as error:
        raise ValueError(str(error)) from error
    except KeyboardInterrupt:
        if not checkpoint.path.exists():
            raise
        raise Interrupted(
            f"interrupted: no map was written; the sums over the images so far are in {checkpoint.path}, and the same"
            " command goes on from there"
        ) from None
    if args.reg == "none":  # the maps themselves are the unregularised ones
        result = replace(result, map_noreg=None, half1_noreg=None, half2_noreg=None, fsc_noreg=None)  # type: ignore[arg-type]
    return result


def save(
    args: argparse.Namespace,
    words: Sequence[str],
    console: Console,
    folder: OutputFolder,
    stack: ParticleStack,
    result: Reconstruction,
    started: float,
) -> tuple[int, dict[str, Any]]:
    """Write the results and say what they are."""
    from ..metrics import describe_views

    interrupted = result.stopped_by == "interrupt"
    if interrupted and folder.existing:
        raise Interrupted(
            f"interrupted: nothing was written, the earlier results in {folder.path} are as they were"
        )
    for text in result.warnings:
        console.warn(text)
    with folder.results() as staging:
        write_maps(staging, result)
        draw(staging, result, console)
        report = {
            "particles": len(stack),
            **summary(result),
            "views": None if stack.poses is None else describe_views(stack.poses, symmetry=args.sym),
            "inputs": _inputs(args, stack),
            "seed": args.seed,
            "warnings": console.warnings,
            **record(args, words, started),
        }
        title = f"Reconstruction of {Path(args.particles).name}"
        end(reconstruct_page(title, result, report, staging), staging, report)
        write_json(staging / "run.json", report)
    report = {"folder": folder.path, "files": [folder.path / name for name in folder.existing], **report}
    tell(console, folder, report, result)
    if interrupted:
        raise Interrupted(
            f"interrupted: the map reached so far was saved in {folder.path}; it has not converged", report
        )
    return EXIT_DONE, report


def summary(result: Reconstruction) -> dict[str, Any]:
    """The figures of a reconstruction, as they go into run.json."""
    from ..memory import peak_memory

    return {
        "box": result.map.shape[0],
        "pixel_size": result.pixel_size,
        "regulariser": result.reg,
        "lambda": result.lam,
        "lambda_rule": result.lam_rule,
        "lambda_max": result.lam_max,
        "lambda_search": result.lam_search,
        "stopped_by": result.stopped_by,
        "iterations": len(result.history.get("iteration", ())),
        "gram_error": result.gram_error,
        "memory": None if result.memory is None else result.memory.as_dict(),
        "peak_memory_bytes": peak_memory(),
        "first_pass": result.first_pass,
        "resolution_0.143_angstrom": {
            name: None if curve is None else curve.resolution(0.143)
            for name, curve in (("fsc", result.fsc), ("fsc_noreg", result.fsc_noreg))
        },
        "seconds": result.seconds,
    }


def write_maps(folder: Path, result: Reconstruction) -> None:
    """Maps, a script to see them, curves and the history of the solver."""
    from ..io import write_map
    from ..io.atomic import atomic_open
    from ..io.viewers import contour_level, write_cxc
    from ..metrics import write_fsc_star, write_fsc_xml

    for name in MAPS:
        volume = getattr(result, name)
        if volume is not None:
            write_map(folder / f"{name}.mrc", volume, result.pixel_size, label=name)
    halves = [] if result.half1 is None else [folder / "half1.mrc", folder / "half2.mrc"]
    write_cxc(folder / "map.cxc", folder / "map.mrc", contour_level(result.map), others=halves)
    for name in CURVES:
        curve = getattr(result, name)
        if curve is not None:
            suffix = "" if name == "fsc" else "_noreg"
            write_fsc_xml(folder / f"{name}.xml", curve, title=f"half1{suffix} against half2{suffix}")
            write_fsc_star(folder / f"{name}.star", curve)
    if not result.history:  # of a direct method
        return
    with atomic_open(folder / "convergence.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(result.history)
        table.writerows(zip_longest(*result.history.values(), fillvalue=""))


def tell(console: Console, folder: OutputFolder, report: dict[str, Any], result: Reconstruction) -> None:
    """The result in a few lines."""
    n = report["box"]
    if result.stopped_by == "direct":
        lam = "direct Fourier, " + ("Wiener weights" if result.reg == "wiener" else "no weights")
    elif result.lam is None:
        lam = "no regularisation"
    else:
        how = "" if result.lam_rule == "given" else f", by {result.lam_rule}"
        lam = f"{result.lam:.4g}{how} ({result.reg})"
    console.say(f"{folder.path / 'map.mrc'}: {n} x {n} x {n} voxels of {result.pixel_size:g} angstrom")
    seconds = report["first_pass"]["seconds"]
    if seconds["waiting"] > max(1.0, seconds["computing"]):
        console.warn(
            f"reading the images took {seconds['reading']:.0f} s, of which {seconds['waiting']:.0f} s were waited for,"
            f" and computing with them {seconds['computing']:.0f} s: a faster disk would help"
        )
    rows: list[tuple[str, Any]] = [
        ("particles", report["particles"]),
        ("method" if result.stopped_by == "direct" else "lambda", lam),
        (
            "solver",
            f"{count(report['iterations'], 'iteration')}, stopped by {result.stopped_by}"
            if result.history
            else None,
        ),
        ("time", f"{report['wall_seconds']:.1f} s on {count(report['threads'], 'thread')}"),
    ]
    if result.fsc is not None and result.fsc_noreg is not None:
        rows.append(
            ("resolution at FSC 0.143", f"{resolution_text(result.fsc_noreg, 0.143)}, unregularised halves")
        )
        rows.append(("", f"{resolution_text(result.fsc, 0.143)}, regularised halves"))
    elif result.fsc is not None:
        rows.append(("resolution at FSC 0.143", resolution_text(result.fsc, 0.143)))
    console.say(facts(rows))
    if result.fsc is not None and result.fsc_noreg is not None:
        console.say("  (quote the first: regularised halves share their prior, which raises their FSC)")
    console.say(f"look at {folder.path / PAGE}")


def _check(args: argparse.Namespace) -> None:
    """Options that do not go together."""
    name_once(args)
    if args.subset is not None and args.subset < 3:
        raise UsageError(
            f"--subset {args.subset} is a number of particles here; for one half set, as in RELION, use --half"
            f" {args.subset}"
        )
    direct = args.method == "direct"
    if args.reg is None:
        args.reg = "wiener" if direct else "tv"
    if direct != (args.reg == "wiener") and not (direct and args.reg == "none"):
        raise UsageError(
            "--method direct goes with --reg wiener or none, and --reg wiener with --method direct"
        )
    if direct and (args.positivity or args.lam != "auto" or args.max_iter is not None):
        raise UsageError("--method direct has no --lam, no --positivity and no --max-iter")
    if args.half is not None and args.half_maps:
        raise UsageError("--half uses one half set, --half-maps needs both")
    if args.reg == "none" and (args.positivity or args.lam != "auto"):
        raise UsageError("--lam and --positivity need a regularisation, but --reg none was asked")
    if args.scale < 1:
        raise UsageError(f"--scale is 1 or more, got {args.scale:g}")


def _mask(name: str, pixel_size: float | None) -> Any:
    """The mask in the words of `reconstruct`: "ball", None, or a boolean volume."""
    if name in ("ball", "none"):
        return None if name == "none" else name
    import numpy as np

    from ..io import read_map

    volume = read_map(name, pixel_size=pixel_size).data
    if not np.isfinite(volume).all():
        raise ValueError(f"mask {name} holds NaN or infinite values")
    inside = volume >= 0.5
    if not inside.any():
        raise ValueError(
            f"mask {name} is empty: its largest value is {volume.max():g}, inside is 0.5 or more"
        )
    return inside


def _inputs(args: argparse.Namespace, stack: ParticleStack) -> dict[str, Any]:
    """What the result was made from: a hash of the tables and maps, size and date of the (large) stacks."""
    files = [args.particles, *args.passthrough] + ([] if args.mask in ("ball", "none") else [args.mask])
    stacks = []
    for path in getattr(stack.images, "paths", []):
        status = path.stat()
        modified = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(status.st_mtime))
        stacks.append({"path": path, "bytes": status.st_size, "modified": modified})
    return {"sha256": {str(path): _sha256(path) for path in files}, "stacks": stacks}


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lam(text: str) -> float | str:
    return text if text in ("auto", "discrepancy") else non_negative(text)
