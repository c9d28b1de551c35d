"""``invcryo posterior``: a map with the uncertainty of each of its Fourier coefficients."""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import (
    EXIT_DONE,
    Console,
    Interrupted,
    UsageError,
    add_output,
    add_threads,
    count,
    facts,
    natural,
    new_parser,
    positive,
)
from .fsc import resolution_text
from .output import OutputFolder, record, write_json
from .pages import PAGE, add_pictures, begin, end, short
from .particles import add_fresh, add_particles, add_seed, load, name_once, open_checkpoint
from .pictures import matplotlib_is_there

if TYPE_CHECKING:
    from ..data import ParticleStack
    from ..learned import VoxelPosterior
    from ..metrics import FSC

PICTURES = {
    "slices.png": "Central slices of the mean, and of a map drawn from the posterior. What the draw shows and the mean"
    " does not is noise that the data cannot tell from protein.",
    "sigma.png": "Central planes of Fourier space: the standard deviation of each coefficient over that of the prior. 1"
    " (yellow) where nothing was seen, near 0 (dark) where much was.",
    "sigma_map.png": "Standard deviation of the map by place. Fourier coefficients that are taken as independent say"
    " nothing of places: it is alike everywhere in the cube of the map; with a padding of 1 it falls towards its faces,"
    " as trilinear slices see less of them.",
    "fsc.png": "What the posterior of all particles expects of the FSC of two such data sets, alpha / (1 + alpha) with"
    " alpha the spectral signal-to-noise ratio, beside the FSC of the half maps. Each half map has half the particles,"
    " so its curve lies lower.",
    "ss_snr.png": "Spectral signal-to-noise ratio by shell.",
    "noise.png": "Standard deviation of the noise by shell, as it was learned or given.",
    "convergence.png": "The evidence bound per Fourier sample. It must have become flat.",
}
RESULTS = (
    "mean.mrc",
    "uncertainty.mrc",
    "posterior.npz",
    "shells.csv",
    "convergence.csv",
    "fsc.xml",
    "fsc.star",
    *PICTURES,
    PAGE,
    "run.json",
)

_DESCRIPTION = """\
Learn a posterior over the Fourier coefficients of the map from particles with known poses: each has a mean and a
standard deviation of its own, fitted by stochastic gradients (Ullrich et al. 2019). One fit to all particles says how
sure each coefficient is, and predicts the FSC without half sets.

DIR receives
  report.html       all of it on one page, to look at first
  mean.mrc          the mean, a map, in the box of the images
  uncertainty.mrc   in Fourier space, origin in the middle: standard deviation over that of the prior, 1 where nothing
                    was seen
  posterior.npz     means, deviations, prior and noise; invcryo.learned.VoxelPosterior.load reads it
  shells.csv        by shell: signal-to-noise ratio, expected FSC, FSC of the half maps, prior, noise
  fsc.xml, fsc.star FSC of the half maps, by least squares
  slices.png, sigma.png, sigma_map.png, fsc.png, ss_snr.png, noise.png, convergence.png, convergence.csv
  run.json          options, versions, times

The coefficients are those of a cube of side --diameter in the middle of the box; nothing is outside it. Take it as
large as the particle and a little more: noise beyond counts in the FSC, and each step costs Fourier transforms of twice
that side. With --padding 1 it costs none, as in the paper; deviations are then those of a mean field on trilinear
slices, and the expected FSC is too low where the particle is in the middle of the box alone.

The state is kept in DIR every minute (unfinished.npz) until the map is there: a run that was cut short goes on from
there, to the same result, when the same command is given again.
"""
_EXAMPLES = """\
  invcryo posterior particles.star -o posterior --diameter 180
  invcryo posterior particles.star -o posterior --diameter 180 --noise 1 --epochs 20
  invcryo posterior particles.star -o paper --padding 1 --start none --no-half-maps   (the scheme of the paper)
"""


def add_parser(commands: Any) -> None:
    parser = new_parser(
        commands, "posterior", run, "a map and how sure each coefficient is", _DESCRIPTION, _EXAMPLES
    )
    add_particles(parser)
    model = parser.add_argument_group("the model")
    model.add_argument(
        "--noise",
        type=_learned,
        default="learned",
        metavar="V",
        help="variance of the noise of a pixel; default: learned by shell",
    )
    model.add_argument(
        "--prior",
        type=_estimated,
        default="estimated",
        metavar="S",
        help="standard deviation of the coefficients before the data, all alike; default: estimated by shell",
    )
    model.add_argument(
        "--diameter",
        type=positive,
        metavar="A",
        help="of the particle, angstrom: side of the cube that the map is of; default: the box",
    )
    model.add_argument(
        "--padding",
        type=natural,
        default=2,
        metavar="N",
        help="how much finer than the map's the Fourier space is sampled that slices are taken of; 1 is faster, but its"
        " deviations are not calibrated; default: 2",
    )
    model.add_argument(
        "--dirac",
        action="store_true",
        help="the most probable map alone, without deviations (maximum a posteriori)",
    )
    fit = parser.add_argument_group("the fit")
    fit.add_argument(
        "--start",
        default="least-squares",
        metavar="M",
        help="least-squares (default), none, or a map to start from",
    )
    fit.add_argument("--epochs", type=positive, default=5.0, metavar="N", help="default: 5")
    fit.add_argument("--batch", type=natural, default=32, metavar="N", help="images of a step; default: 32")
    fit.add_argument(
        "--rate", type=positive, default=0.03, metavar="X", help="of Adam at the start; default: 0.03"
    )
    fit.add_argument(
        "--no-half-maps", action="store_true", help="leave out the half maps, and their FSC for comparison"
    )
    job = parser.add_argument_group("the job")
    add_output(job)
    add_fresh(job)
    add_seed(job, "batches, draws, half sets if the file has none, --subset")
    add_threads(job)


def _learned(text: str) -> float | str:
    return text if text == "learned" else positive(text)


def _estimated(text: str) -> float | str:
    return text if text == "estimated" else positive(text)


@dataclass
class _Found:
    posterior: VoxelPosterior
    halves: FSC | None
    seconds: dict[str, float]


def run(args: argparse.Namespace, words: Sequence[str], console: Console) -> tuple[int, dict[str, Any]]:
    name_once(args)
    if args.diameter is not None and args.padding == 1:
        raise UsageError("--diameter needs a --padding of 2 or more")
    if args.dirac and not args.no_half_maps:
        raise UsageError("--dirac has no deviations to compare with half maps: add --no-half-maps")
    from ..backend import use

    started = time.time()
    with use(threads=args.threads), OutputFolder(args.output, RESULTS, overwrite=args.overwrite) as folder:
        stack = load(args)
        if args.batch > len(stack):
            raise ValueError(f"--batch {args.batch}, but there are {len(stack)} particles")
        found = solve(args, stack, console, folder.path)
        return save(args, words, console, folder, stack, found, started)


def solve(args: argparse.Namespace, stack: ParticleStack, console: Console, folder: Path) -> _Found:
    from ..io import read_map
    from ..learned import VoxelPosterior
    from ..metrics import fsc
    from ..reconstruction import reconstruct

    console.note(f"{count(len(stack), 'particle')} of {stack.box} x {stack.box} pixels")
    checkpoint = open_checkpoint(args, folder, console)
    seconds: dict[str, float] = {}
    halves, start = None, args.start
    begun = time.perf_counter()
    if start not in ("least-squares", "none"):
        start = read_map(start, pixel_size=args.pixel_size).data
    elif start == "none":
        start = None
    if not args.no_half_maps or isinstance(start, str):
        plain = reconstruct(
            stack, reg="none", half_maps=not args.no_half_maps, rng=args.seed, progress=console.progress
        )
        if plain.stopped_by == "interrupt":
            raise KeyboardInterrupt
        halves = plain if not args.no_half_maps else None
        start = plain.map_noreg if isinstance(start, str) else start
        seconds["least squares"] = time.perf_counter() - begun
    begun = time.perf_counter()
    posterior = VoxelPosterior.fit(
        stack,
        kind="dirac" if args.dirac else "gaussian",
        noise=args.noise,
        prior=args.prior,
        diameter=args.diameter,
        padding=args.padding,
        start=start,
        epochs=args.epochs,
        batch=args.batch,
        rate=args.rate,
        rng=args.seed,
        checkpoint=checkpoint,
        progress=console.progress,
    )
    seconds["posterior"] = time.perf_counter() - begun
    if posterior.stopped_by == "interrupt":
        raise Interrupted(
            f"interrupted: no map was written; the state reached so far is in {checkpoint.path}, and the same command"
            " goes on from there"
        )
    grid = posterior.grid
    split = None
    if halves is not None:
        # of the cube that the posterior is of
        first, second = halves.half1_noreg, halves.half2_noreg
        assert first is not None and second is not None
        split = fsc(grid.within(first), grid.within(second), pixel_size=stack.pixel_size)
    return _Found(posterior, split, seconds)


def save(
    args: argparse.Namespace,
    words: Sequence[str],
    console: Console,
    folder: OutputFolder,
    stack: ParticleStack,
    found: _Found,
    started: float,
) -> tuple[int, dict[str, Any]]:
    """Write the results and say what they are."""
    from ..io import write_map
    from ..metrics import write_fsc_star, write_fsc_xml
    from ..operators import ZeroPad
    from ..plot.posterior import centred_spectrum

    posterior, size = found.posterior, stack.pixel_size
    mean = posterior.mean_map()
    expected = None if args.dirac else posterior.fsc()
    with folder.results() as staging:
        in_box = ZeroPad(mean.shape, (stack.box,) * 3, mean.dtype)(mean)
        write_map(staging / "mean.mrc", in_box, size, label="mean of the posterior")
        posterior.save(staging / "posterior.npz")
        if expected is not None:
            # of Fourier voxels, whose side is the inverse of the map's
            side = 1 / (posterior.field * size)
            whole = centred_spectrum(posterior.uncertainty)
            write_map(staging / "uncertainty.mrc", whole, side, label="sigma over prior")
        if found.halves is not None:
            write_fsc_xml(staging / "fsc.xml", found.halves)
            write_fsc_star(staging / "fsc.star", found.halves)
        _write_tables(staging, found, expected)
        if matplotlib_is_there(console):
            _draw(staging, found, expected, mean, args.seed)
        report = {
            "particles": len(stack),
            "box": stack.box,
            "pixel_size": size,
            "kind": posterior.kind,
            "field": posterior.field,
            "padding": posterior.padding,
            "steps": int(posterior.history["iteration"][-1]),
            "loss": posterior.history["loss"][-1],
            "expected_resolution_0.143_angstrom": None if expected is None else expected.resolution(0.143),
            "half_map_resolution_0.143_angstrom": None
            if found.halves is None
            else found.halves.resolution(0.143),
            "undetermined": None if args.dirac else _undetermined(posterior),
            "seconds": found.seconds,
            "warnings": console.warnings,
            **record(args, words, started),
        }
        _write_page(staging, f"Posterior of {Path(args.particles).name}", found, expected, report)
        write_json(staging / "run.json", report)
    report = {"folder": folder.path, "files": [folder.path / name for name in folder.existing], **report}
    n = stack.box
    console.say(f"{folder.path / 'mean.mrc'}: {n} x {n} x {n} voxels of {size:g} angstrom")
    console.say(
        facts(
            [
                ("particles", len(stack)),
                ("steps", f"{report['steps']}, evidence bound {report['loss']:.4f} nats per Fourier sample"),
                (
                    "expected FSC at 0.143",
                    None if expected is None else f"{resolution_text(expected, 0.143)}, all particles",
                ),
                (
                    "half maps at 0.143",
                    None if found.halves is None else f"{resolution_text(found.halves, 0.143)}, half of them",
                ),
                (
                    "not determined",
                    None
                    if report["undetermined"] is None
                    else f"{100 * report['undetermined']:.1f} % of the coefficients",
                ),
                ("time", f"{report['wall_seconds']:.1f} s on {count(report['threads'], 'thread')}"),
            ]
        )
    )
    console.say(f"look at {folder.path / PAGE}")
    return EXIT_DONE, report


def _undetermined(posterior: VoxelPosterior) -> float:
    """Part of the coefficients within the Nyquist sphere whose deviation is above 0.9 of the prior's."""
    grid = posterior.grid
    weight = grid.multiplicity * grid.inside
    return float((weight * (posterior.uncertainty > 0.9)).sum() / weight.sum())


def _write_tables(folder: Path, found: _Found, expected: FSC | None) -> None:
    import numpy as np

    from ..io.atomic import atomic_open

    posterior = found.posterior
    length = len(posterior.prior)
    frequency = np.arange(length) / (posterior.field * posterior.pixel_size)
    own = np.arange(len(posterior.noise)) / (posterior.box * posterior.pixel_size)
    with atomic_open(folder / "convergence.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(posterior.history)
        table.writerows(zip(*posterior.history.values(), strict=True))
    columns: dict[str, Any] = {
        "shell": range(length),
        "frequency_per_angstrom": frequency,
        "prior_sd": posterior.prior,
        "noise_variance": np.interp(frequency, own, posterior.noise),
    }
    if expected is not None:
        columns |= {"ss_snr": posterior.ss_snr(), "expected_fsc": expected.correlation}
    if found.halves is not None:
        columns["half_map_fsc"] = found.halves.correlation
    with atomic_open(folder / "shells.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows(zip(*columns.values(), strict=True))


def _draw(folder: Path, found: _Found, expected: FSC | None, mean: Any, seed: int) -> None:
    import numpy as np

    from .. import plot
    from .pictures import draw_slices

    posterior, size = found.posterior, found.posterior.pixel_size
    volumes = {"mean": mean}
    if expected is not None:
        volumes["drawn from the posterior"] = posterior.sample(rng=seed)
        plot.save(plot.fourier_slices(posterior.uncertainty), folder / "sigma.png")
        draw_slices(folder / "sigma_map.png", {"standard deviation": posterior.sigma_map()}, size)
        curves = {"expected, all particles": expected}
        if found.halves is not None:
            curves["half maps"] = found.halves
        plot.save(plot.fsc_curves(curves), folder / "fsc.png")
    draw_slices(folder / "slices.png", volumes, size)
    lines = {"noise": ("standard deviation of the noise", np.sqrt(posterior.noise), posterior.box)}
    if expected is not None:
        lines["ss_snr"] = ("signal-to-noise ratio", posterior.ss_snr(), posterior.field)
    for name, (label, values, side) in lines.items():
        shells = np.arange(len(values)) / (side * size)
        scale = "linear" if name == "noise" else "log"
        ax = plot.common.new_axes((6.4, 3.6))
        plot.common.open_frame(ax)
        ax.plot(shells[1:], values[1:], **plot.common.style(0))
        ax.set(xlabel="frequency (1/Å)", ylabel=label, yscale=scale)
        if scale == "linear":
            ax.set_ylim(bottom=0)
        plot.save(ax, folder / f"{name}.png")
    ax = plot.convergence(posterior.history, ["loss"])
    ax.set_yscale("linear")
    plot.save(ax, folder / "convergence.png")


def _write_page(
    folder: Path, title: str, found: _Found, expected: FSC | None, report: Mapping[str, Any]
) -> None:
    n, size = report["box"], report["pixel_size"]
    page = begin(title, f"{count(report['particles'], 'particle')}; {n} x {n} x {n} voxels of {size:g} Å.")
    if expected is not None:
        page.headline("Expected resolution", short(expected), "alpha / (1 + alpha) at 0.143, all particles")
    if found.halves is not None:
        page.headline("Half maps", short(found.halves), "unregularised, FSC 0.143")
    if report["undetermined"] is not None:
        page.headline("Not determined", f"{100 * report['undetermined']:.1f} %", "of the coefficients")
    page.headline("Steps", report["steps"])
    page.headline("Time", f"{report['wall_seconds']:.0f} s", count(report["threads"], "thread"))
    page.text(
        "The expected resolution is that of a model: independent Gaussian coefficients and noise. It is too good where"
        " the poses are wrong, which a model that takes them as known cannot see. Half maps whose poses were refined"
        " apart can."
    )
    add_pictures(page, folder, PICTURES)
    page.section("Numbers")
    page.facts(
        {
            "posterior": report["kind"],
            "side of the map, pixels": report["field"],
            "padding": report["padding"],
            "evidence bound, nats per Fourier sample": round(report["loss"], 5),
            **{f"{k}, seconds": round(v, 2) for k, v in report["seconds"].items()},
        }
    )
    end(page, folder, report)
