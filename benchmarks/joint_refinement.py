"""The proof of concept of joint refinement (Donati 2020, Figures 4.6-4.11): poses that are off by up to 40 degrees.

500 projections of Patched 1 (84 cubed, 3.58 dB) and of a Holliday junction (90 cubed, -0.57 dB, shifts up to 3 pixels),
Euler angles with errors uniform in +-0.7 rad, shifts that start at zero, a first map low-passed at 0.03 and 0.02 cycles
per voxel. The result is compared with the map from the true poses, made in the same way.

    python benchmarks/joint_refinement.py --maps $INVCRYO_TEST_DATA/maps --seeds 5 -o joint.json
    python benchmarks/joint_refinement.py --maps $INVCRYO_TEST_DATA/maps --descent -o descent.json

With ``--descent`` the published gradient descent on the poses stands beside Levenberg-Marquardt steps, on the same
images and the true map, band by band.

The signal-to-noise ratio is that of the variance of the noise-free images, over the whole image. Images are made on
voxels (a band-limited basis), reconstructed on Kaiser-Bessel windows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import invcryo as ic
from invcryo.metrics.poses import pose_errors
from invcryo.operators.nufft import GridReader
from invcryo.poses import PoseFit, gradient_descent, levenberg_marquardt
from invcryo.refinement import Refinement, refine
from invcryo.rotation import geodesic_distance

EULER_ERROR = 0.7  # rad
BANDS = (5, 9, 15, 24, 40)  # Fourier pixels


@dataclass(frozen=True)
class Case:
    """One of the two experiments."""

    map: str
    box: int
    pixel_size: float
    decibel: float
    shift: float
    lowpass: float
    """Of the first map, cycles per voxel."""


CASES = {
    "PTCH1": Case("emd_7795_54.mrc", 84, 1.8, 3.5781, 0.0, 0.03),
    "HJC": Case("emd_3400_86.mrc", 90, 2.867, -0.5733, 3.0, 0.02),
}


def problem(volume: NDArray, case: Case, seed: int, views: int = 500) -> tuple[Any, Any, NDArray]:
    """A stack with wrong poses, the true poses, and the true map in the units of the images."""
    padded = np.zeros((case.box,) * 3, np.float32)
    padded[tuple(slice(case.box // 2 - m // 2, case.box // 2 - m // 2 + m) for m in volume.shape)] = volume
    stack = ic.simulate_particles(
        padded,
        views,
        case.pixel_size,
        snr=10 ** (case.decibel / 10),
        defocus_angstrom=None,
        shift_px=case.shift,
        rng=seed,
    )
    truth, rng = stack.poses, np.random.default_rng(10_000 + seed)
    assert truth is not None
    off = np.rad2deg(rng.uniform(-EULER_ERROR, EULER_ERROR, (3, views)))
    start = ic.Poses.from_euler_deg(*(np.stack(truth.euler_deg()) + off))
    images = np.asarray(stack.images[:])  # drawn once, not in every round
    return dataclasses.replace(stack, images=images, poses=start), truth, stack.images.truth


def figures(result: Refinement, truth: Any, volume: NDArray, oracle: NDArray) -> dict[str, Any]:
    """Errors of the poses, and shells where the FSC with the truth falls to 0.5, with and without true poses."""
    errors = pose_errors(result.poses, truth)
    aligned = errors.alignment.volume(result.map)

    def shell(a: NDArray) -> float:
        resolution = ic.fsc(a, volume, pixel_size=result.pixel_size).resolution(0.5)
        return len(volume) * result.pixel_size / resolution

    angles = np.asarray(errors.angle)
    return {
        "seconds": result.seconds,
        "rounds": len(result.history),
        "median_degrees": float(np.median(angles)),
        "within_5_degrees": float((angles < 5).mean()),
        "median_shift_pixels": float(np.median(errors.shift_length)),
        "largest_shift_pixels_of_95_percent": float(np.quantile(errors.shift_length, 0.95)),
        "fsc_0.5_shell": shell(aligned),
        "fsc_0.5_shell_with_true_poses": shell(oracle),
        "searched": [h["searched"] for h in result.history],
        "found_better": [h["found_better"] for h in result.history],
        "status": result.status_counts,
        "flagged": int(result.flagged.sum()),
    }


def run(volume: NDArray, case: Case, seed: int) -> dict[str, Any]:
    stack, truth, true_map = problem(volume, case, seed)
    lowpass = case.pixel_size / case.lowpass
    begun = time.process_time()
    result = refine(stack, true_map, init_lowpass=lowpass, max_shift=1.5 * case.shift + 1.0, progress=False)
    cpu = time.process_time() - begun
    true = dataclasses.replace(stack, poses=truth)
    oracle = refine(true, true_map, init_lowpass=lowpass, max_rounds=0, progress=False)
    return {"cpu_seconds": cpu, **figures(result, truth, true_map, oracle.map)}


def descent(
    volume: NDArray, case: Case, seed: int, longest: int = 600, views: int = 500
) -> list[dict[str, Any]]:
    """Poses against the true map, from coarse to fine: the published gradient descent beside Levenberg-Marquardt.

    Both minimise the same cost from the same poses, band by band: `levenberg_marquardt` for as long as it moves, then
    `gradient_descent`, three steps at a time, until its median errors are within a tenth of the other's, or
    ``longest`` steps. The published step sizes are in the units of other images: here a search along the gradient
    begins at four over the typical curvature, and shortens by 4 as published.
    """
    stack, truth, true_map = problem(volume, case, seed, views)
    reader = GridReader(ic.KaiserBessel().analyze(true_map))
    poses, rows = stack.poses, []

    def errors(found: Any) -> tuple[float, float]:
        angle = np.rad2deg(geodesic_distance(found.matrices, truth.matrices))
        return float(np.median(angle)), float(np.median(np.linalg.norm(found.shifts - truth.shifts, axis=1)))

    for band in BANDS:
        fit = PoseFit(reader, stack.images, cutoff=2 * band / case.box)
        begun = time.perf_counter()
        newton = levenberg_marquardt(fit, poses, max_iter=20)
        seconds = time.perf_counter() - begun
        aim = errors(newton.poses)
        curvature = np.median(np.einsum("kii->ki", fit.derivatives(poses).hessian), axis=0)
        sizes = {"rotation_step": 4 / curvature[:3].mean(), "shift_step": 4 / curvature[3:].mean()}
        steps, evaluations, spent, now = 0, 0.0, 0.0, poses
        while steps < longest and any(a > 1.1 * b for a, b in zip(errors(now), aim, strict=True)):
            begun = time.perf_counter()
            found = gradient_descent(fit, now, steps=3, **sizes)
            spent += time.perf_counter() - begun
            now, steps, evaluations = found.poses, steps + 3, evaluations + found.iterations.mean()
        rows.append(
            {
                "band": band,
                "start": errors(poses),
                "newton": aim,
                "newton_evaluations": float(newton.iterations.mean()),
                "newton_seconds": seconds,
                "descent": errors(now),
                "descent_steps": steps,
                "descent_evaluations": evaluations,
                "descent_seconds": spent,
            }
        )
        poses = newton.poses
    return rows


def keep(output: Path | None, rows: list[dict[str, Any]]) -> None:
    """Write the record so far."""
    if output is not None:
        output.write_text(json.dumps(rows, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--maps", type=Path, required=True, help="folder with emd_7795_54.mrc and emd_3400_86.mrc"
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--descent", action="store_true", help="the published descent beside ours, first seed only"
    )
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    rows = []
    for name in args.cases:
        volume = ic.read_map(args.maps / CASES[name].map, pixel_size=CASES[name].pixel_size).data
        if args.descent:
            for row in descent(volume, CASES[name], 0):
                rows.append({"case": name, **row})
                print(
                    f"{name:6s} band {row['band']:2d}: from {row['start'][0]:5.2f} degrees {row['start'][1]:.2f} px;"
                    f" ours {row['newton'][0]:5.2f}, {row['newton'][1]:.2f} px, {row['newton_evaluations']:.1f}"
                    f" evaluations, {row['newton_seconds']:.2f} s; descent {row['descent'][0]:5.2f},"
                    f" {row['descent'][1]:.2f} px, {row['descent_steps']} steps, {row['descent_evaluations']:.0f}"
                    f" evaluations, {row['descent_seconds']:.1f} s",
                    flush=True,
                )
                keep(args.output, rows)
            continue
        for seed in range(args.seeds):
            row = {"case": name, "seed": seed, **run(volume, CASES[name], seed)}
            rows.append(row)
            print(
                f"{name:6s} seed {seed}: {row['seconds']:5.1f} s ({row['cpu_seconds']:.1f} s of processor), median"
                f" {row['median_degrees']:.2f} degrees, {100 * row['within_5_degrees']:.1f} % within 5,"
                f" {row['median_shift_pixels']:.2f} px, FSC 0.5 at shell {row['fsc_0.5_shell']:.0f}"
                f" ({row['fsc_0.5_shell_with_true_poses']:.0f} with the true poses)",
                flush=True,
            )
            keep(args.output, rows)


if __name__ == "__main__":
    main()
