"""Real particles refined: 53 of beta-galactosidase with D2, and what their model says of the maps.

The estimated poses that come with them were found by matching against the model up to 12 angstrom: there the FSC of the
start with the model is too good. Hence four cases: refined against that model once more, in the continuum; refined to
the end against their own map; the same from a search against the model at 30 angstrom; and simulated twins of the
particles, whose true poses are known, refined to the end from poses that were matched to the model likewise.

    python benchmarks/betagal_refinement.py --data $INVCRYO_TEST_DATA/spa-betagal-10061-a -o betagal.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

import invcryo as ic
from invcryo.metrics.poses import pose_errors
from invcryo.operators import ImageFilter, Projector
from invcryo.poses import PoseFit, global_search, levenberg_marquardt
from invcryo.refinement import Refinement, refine

LOWPASS = 12.0  # angstrom: what the estimated poses were made from
COARSE = 30.0  # angstrom
SPHERE = 110.0  # angstrom, of the FSC, as in the README of the data
LAST = 32  # shells beyond are noise
MAX_SHIFT = 20.0  # angstrom
CASES = ("model", "own", "coarse", "twin")


def binned(array: NDArray, side: int) -> NDArray:
    """Images or a map with fewer pixels, cut in Fourier space."""
    axes = (1, 2) if len(set(array.shape)) > 1 else (0, 1, 2)
    spectrum = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(array, axes=axes), axes=axes), axes=axes)
    n = array.shape[-1]
    cut = slice(n // 2 - side // 2, n // 2 - side // 2 + side)
    spectrum = spectrum[tuple(cut if i in axes else slice(None) for i in range(array.ndim))]
    small = np.fft.ifftn(np.fft.ifftshift(spectrum, axes=axes), axes=axes).real
    return np.fft.fftshift(small, axes=axes).astype(np.float32)


class Problem:
    """The particles and the model at one size."""

    def __init__(self, folder: Path, side: int) -> None:
        stack = ic.read_particles(folder / "betagal_particles.star", data_dir=folder)
        images = binned(stack.images[:], side)
        assert stack.poses is not None and stack.ctf is not None
        poses = ic.Poses(stack.poses.matrices, stack.poses.shifts * side / stack.box)
        self.pixel = stack.pixel_size * stack.box / side
        self.stack = dataclasses.replace(
            stack, images=images / images.std(), pixel_size=self.pixel, poses=poses
        )
        self.model = binned(ic.read_map(folder / "model_5a1a_molmap_96.mrc").data, side)
        self.window = ic.KaiserBessel()
        self.filters = ImageFilter.from_ctf(stack.ctf, (side, side), self.pixel)
        self.mask: NDArray | str = "ball"
        self.mask = soft_mask(self.refined(self.stack, self.model, 0).map)

    def refined(self, stack: Any, reference: NDArray, rounds: int, lowpass: float = LOWPASS) -> Refinement:
        return refine(stack, reference, init_lowpass=lowpass, symmetry="D2", mask=self.mask, max_rounds=rounds,
                      max_shift=MAX_SHIFT / self.pixel, progress=False)  # fmt: skip

    def curve(self, volume: NDArray) -> NDArray:
        c = (np.arange(len(volume)) - len(volume) // 2) * self.pixel
        sphere = c[:, None, None] ** 2 + c[:, None] ** 2 + c**2 <= SPHERE**2
        found = ic.fsc(volume * sphere, self.model * sphere, pixel_size=self.pixel)
        return found.correlation[1 : LAST + 1]

    def cutoff(self, resolution: float) -> float:
        return 2 * self.pixel / resolution

    def simulated(self, seed: int) -> Any:
        """The model at the estimated poses, with the contrast and the noise of the images; and matched poses."""
        poses, clean = self.stack.poses, self.filters(
            Projector(self.stack.poses, self.window, len(self.model))(self.window.analyze(self.model))
        )  # fmt: skip
        fit = PoseFit(self.window.analyze(self.model), self.stack.images, filters=self.filters,
                      cutoff=self.cutoff(LOWPASS))  # fmt: skip
        overlap, power = fit.overlaps(poses.matrices, poses.shifts, np.arange(len(poses)))
        amplitude = overlap.sum() / power.sum()
        variance = float(np.mean(fit.residual_power(poses, amplitude)[5:]))  # coarser shells hold the ice
        noise = np.random.default_rng(seed).normal(0, variance**0.5, clean.shape)
        stack = dataclasses.replace(self.stack, images=(amplitude * clean + noise).astype(np.float32))
        fit = PoseFit(self.window.analyze(self.model), stack.images, filters=self.filters, weights=[1 / variance],
                      cutoff=self.cutoff(LOWPASS))  # fmt: skip
        matched = levenberg_marquardt(fit, poses, free_amplitude=True).poses
        return stack, dataclasses.replace(stack, poses=matched)

    def searched(self) -> Any:
        """The particles at the best poses of a search against the coarse model."""
        found = global_search(self.window.analyze(self.model), self.stack.images, window=self.window,
                              filters=self.filters, band=len(self.model) * self.pixel / COARSE,
                              max_shift=MAX_SHIFT / self.pixel, group="D2", progress=False)  # fmt: skip
        return dataclasses.replace(self.stack, poses=found.poses())


def figures(before: NDArray, after: NDArray, shells: int) -> dict[str, Any]:
    """``shells`` are those up to 12 angstrom."""
    parts = slice(0, shells), slice(shells, None)
    return {
        "mean_before": [float(before[p].mean()) for p in parts],
        "mean_after": [float(after[p].mean()) for p in parts],
        "least_change": [float((after - before)[p].min()) for p in parts],
        "before": before.round(4).tolist(),
        "after": after.round(4).tolist(),
    }


def run(problem: Problem, case: str, seed: int = 0) -> dict[str, Any]:
    stack, true, rounds, lowpass = problem.stack, None, 40, LOWPASS
    if case == "twin":
        true, stack = problem.simulated(seed)
    if case == "coarse":
        stack, lowpass = problem.searched(), COARSE
    if case == "model":
        rounds = 1
    start = problem.refined(stack, problem.model, 0)
    # where the solver starts from no map, that of no rounds has seen the model in its poses alone
    reference = start.map if case in ("own", "twin") else problem.model
    result = problem.refined(stack, reference, rounds, lowpass)
    shells = int(len(problem.model) * problem.pixel / LOWPASS)
    row = figures(problem.curve(start.map), problem.curve(result.map), shells)
    row |= {"case": case, "rounds": len(result.history), "seconds": result.seconds}
    row["median_turn"] = float(np.median(result.angle_change))
    if true is not None:
        best = problem.curve(problem.refined(true, problem.model, 0).map)
        row["mean_with_true_poses"] = [float(best[:shells].mean()), float(best[shells:].mean())]
        for name, poses in (("start", stack.poses), ("end", result.poses)):
            errors = pose_errors(poses, true.poses, "D2")
            row[f"median_error_{name}"] = [
                float(np.median(errors.angle)),
                float(np.median(errors.shift_length)),
            ]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder spa-betagal-10061-a")
    parser.add_argument("--side", type=int, default=96, help="pixels of the images, of 245 angstrom")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    problem, rows = Problem(args.data, args.side), []
    print(f"{'':8}{'to 12 A: mean':>18} {'least change':>13}{'beyond: mean':>20} {'least change':>13}")
    for case in args.cases:
        rows.append(r := run(problem, case))
        near, far = (
            f"{r['mean_before'][i]:7.3f} -> {r['mean_after'][i]:.3f} {r['least_change'][i]:+13.4f}"
            for i in (0, 1)
        )
        print(f"{case:8}{near} {far}  {r['rounds']} rounds, {r['median_turn']:.2f} degrees", flush=True)
        if case == "twin":
            print(*(f"  {k}: {r[k]}" for k in r if k.startswith(("median_error", "mean_with"))), sep="\n")
        if args.output is not None:
            args.output.write_text(json.dumps(rows, indent=1))


def soft_mask(volume: NDArray) -> NDArray:
    """Of the largest piece of a blurred map, ten angstrom wider, with an edge as wide, of some 245 angstrom."""
    voxel = 245.0 / len(volume)
    smooth = ndimage.gaussian_filter(volume, 5 / voxel)
    label, _ = ndimage.label(smooth > np.quantile(smooth, 0.93))
    piece = label == 1 + np.argmax(np.bincount(label.ravel())[1:])
    distance = voxel * ndimage.distance_transform_edt(~piece)
    return np.clip(2 - distance / 10, 0, 1).astype(np.float32)


if __name__ == "__main__":
    main()
