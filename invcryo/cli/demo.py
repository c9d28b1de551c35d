"""``invcryo demo``: the main job on a small known data set, explained."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import reconstruct as job
from .common import (
    EXIT_DONE,
    Console,
    Interrupts,
    add_output,
    add_threads,
    count,
    facts,
    new_parser,
)
from .fsc import resolution_text
from .output import OutputFolder, record, write_json
from .pages import PAGE, end, reconstruct_page, short
from .pictures import draw, draw_slices

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..data import ParticleStack
    from ..reconstruction import Reconstruction

RESULTS = (*job.RESULTS, "truth.mrc", "images.png", "fsc_truth.png")

_DESCRIPTION = """\
A complete reconstruction that takes about a minute: 500 simulated particles of a known map, with noise of ten
times the power of the signal, are turned into a map by total variation, with half maps; the result is compared
with the truth, pictures are drawn, and every figure is explained.
"""
_EXAMPLES = """\
  invcryo demo
  invcryo demo -o somewhere --threads 2
"""


_ABOUT_LAMBDA = """\
  lambda weighs smoothness against the images. The map of each half of the particles was asked how
  well it predicts the other half, and the best lambda was taken: that needs no truth.
"""
_ABOUT_TRUTH = """\
  FSC 0.5: details down to this size agree with the truth; smaller is better, and pixels of
  {pixel:g} angstrom can show {finest:g} at best. Correlation: 1 would be the truth itself.
"""
_ABOUT_HALVES = """\
  The first is the resolution to quote. Halves that are regularised alike agree more than they
  know, so the second flatters.
"""
_LOOKS = (
    (PAGE, "all of what follows on one page"),
    ("slices.png", "truth, total variation and unregularised, cut through the centre"),
    ("images.png", "twelve of the images that went in"),
    ("fsc_truth.png", "agreement with the truth, by size of detail"),
    ("fsc.png", "agreement of the half maps"),
    ("map.mrc", "the map, for ChimeraX or any viewer of MRC files; truth.mrc is beside it"),
)
_CAPTIONS = {
    "images.png": "Twelve of the images that went in, each on its own grey scale.",
    "fsc_truth.png": "Agreement with the truth, by size of detail.",
}


def add_parser(commands: Any) -> None:
    parser = new_parser(commands, "demo", run, "a small reconstruction, explained", _DESCRIPTION, _EXAMPLES)
    add_output(parser, default="invcryo-demo")
    add_threads(parser)


def run(args: argparse.Namespace, words: Sequence[str], console: Console) -> tuple[int, dict[str, Any]]:
    from ..backend import use

    started = time.time()
    with use(threads=args.threads), OutputFolder(args.output, RESULTS, overwrite=args.overwrite) as folder:
        return _run(args, words, console, folder, started)


def _run(
    args: argparse.Namespace, words: Sequence[str], console: Console, folder: OutputFolder, started: float
) -> tuple[int, dict[str, Any]]:
    from ..io import write_map
    from ..metrics import correlation, fsc
    from ..reconstruction import reconstruct

    stack, truth, source = load()
    console.say(
        f"{len(stack)} images of {stack.box} x {stack.box} pixels, {stack.pixel_size:g} angstrom; {source}"
    )
    with Interrupts(console, patience=False):
        result = reconstruct(stack, reg="tv", half_maps=True, progress=console.progress)
    maps = {"map": result.map, "map_noreg": result.map_noreg}
    curves = {name: fsc(volume, truth, pixel_size=stack.pixel_size) for name, volume in maps.items()}
    against_truth = {
        name: {
            "resolution_0.5_angstrom": curves[name].resolution(0.5),
            "correlation": correlation(volume, truth),
        }
        for name, volume in maps.items()
    }
    with folder.results() as staging:
        job.write_maps(staging, result)
        write_map(staging / "truth.mrc", truth, stack.pixel_size, label="truth of the demo")
        _draw(staging, stack, truth, result, curves, console)
        report = {
            "particles": len(stack),
            "data": source,
            **job.summary(result),
            "against_truth": against_truth,
            "warnings": console.warnings,
            **record(args, words, started),
        }
        page = reconstruct_page("The demo of invcryo", result, report, staging, _CAPTIONS)
        page.section("Against the truth, which is known here because the data are simulated")
        page.table(
            [
                (words, short(curves[name], 0.5), f"{against_truth[name]['correlation']:.3f}")
                for name, words in (("map", "total variation"), ("map_noreg", "unregularised"))
            ],
            header=("", "FSC 0.5", "correlation"),
        )
        end(page, staging, report)
        write_json(staging / "run.json", report)
    report = {"folder": folder.path, "files": [folder.path / name for name in folder.existing], **report}
    _tell(console, folder, report, result, curves)
    return EXIT_DONE, report


def load() -> tuple[ParticleStack, NDArray, str]:
    """The demo particles, the truth, and where they come from: the files of a checkout, or simulated alike."""
    from ..io import read_map, read_particles

    star = data_file()
    if star is not None:
        return read_particles(star), read_map(star.with_name("truth.mrc")).data, f"read from {star.parent}"
    stack = simulate()
    return stack, stack.images.truth, "simulated now, as the files of data/demo were"


def data_file() -> Path | None:
    """The demo particles of a source checkout, which are not part of the installed package."""
    star = Path(__file__).resolve().parents[2] / "data" / "demo" / "particles.star"
    return star if star.is_file() else None


def simulate() -> ParticleStack:
    """What data/make_demo.py writes to data/demo."""
    from ..simulate import phantom, simulate_particles

    return simulate_particles(
        phantom("enzyme", 48, rng=2),
        500,
        5.0,
        snr=0.1,
        defocus_angstrom=(8000.0, 20000.0),
        astigmatism_angstrom=400.0,
        voltage_kv=300.0,
        cs_mm=2.7,
        amplitude_contrast=0.1,
        shift_px=2.0,
        rng=20261121,
    )


def _draw(
    folder: Path,
    stack: ParticleStack,
    truth: NDArray,
    result: Reconstruction,
    curves: dict[str, Any],
    console: Console,
) -> None:
    if not draw(folder, result, console):
        return
    from .. import plot

    rows = {
        "truth": truth,
        "map.mrc, total variation": result.map,
        "map_noreg.mrc, without regularisation": result.map_noreg,
    }
    draw_slices(folder / "slices.png", rows, result.pixel_size)
    against = {
        "unregularised against the truth": curves["map_noreg"],
        "total variation against the truth": curves["map"],
    }
    plot.save(plot.fsc_curves(against, (0.5,)), folder / "fsc_truth.png")
    plot.save(plot.projections(stack.images, 12, columns=4), folder / "images.png")


def _tell(
    console: Console,
    folder: OutputFolder,
    report: dict[str, Any],
    result: Reconstruction,
    curves: dict[str, Any],
) -> None:
    truth = report["against_truth"]
    place = folder.path
    solver = f"{count(report['iterations'], 'iteration')}, stopped by {result.stopped_by}"
    console.say(f"done in {report['wall_seconds']:.0f} s on {count(report['threads'], 'thread')}\n")
    console.say("how it was computed")
    console.say(facts([("lambda", f"{result.lam:.4g}"), ("solver", solver)]))
    console.say(_ABOUT_LAMBDA)
    console.say("against the truth, which is known here because the data are simulated")
    for name, words in (("map", "total variation"), ("map_noreg", "unregularised")):
        resolution, cc = resolution_text(curves[name], 0.5), truth[name]["correlation"]
        console.say(f"  {words:<16}  FSC 0.5 at {resolution}, correlation {cc:.3f}")
    console.say(_ABOUT_TRUTH.format(pixel=result.pixel_size, finest=2 * result.pixel_size))
    console.say(
        f"without the truth, as with real data: two half maps from {report['particles'] // 2} particles each"
    )
    if result.fsc is not None and result.fsc_noreg is not None:
        console.say(f"  unregularised     FSC 0.143 at {resolution_text(result.fsc_noreg, 0.143)}")
        console.say(f"  total variation   FSC 0.143 at {resolution_text(result.fsc, 0.143)}")
    console.say(_ABOUT_HALVES)
    console.say("look at")
    looks = [(str(place / name), text) for name, text in _LOOKS if (place / name).exists()]
    console.say(facts(looks))
    console.say("\nnext: invcryo reconstruct YOUR_PARTICLES.star -o run --half-maps")
