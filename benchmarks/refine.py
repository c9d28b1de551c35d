#!/usr/bin/env python
"""Joint refinement beside RELION's auto-refine: same files, same start, resolution and poses against the truth.

python benchmarks/refine.py --map emd_7795_54.mrc --json refine.json

The realistic scenario of Donati 2020 (Figures 4.12-4.15), with a tenth of its views, from what our own search over
all rotations finds at low resolution:

python benchmarks/refine.py --map emd_3400_86.mrc --pixel 2 --size 124 --views 2000 --snr-db -14.2 --shift 3 \
    --search ours --half-maps --lowpass 30 --json realistic.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import processes

ENGINES = ("invcryo", "relion")


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="invcryo-refine-") as scratch:
        folder = Path(options.keep or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        problem = make_problem(folder, options)
        record: dict[str, Any] = {
            "machine": processes.machine(),
            "options": {k: v for k, v in vars(options).items() if k not in ("json", "keep")},
            "problem": problem,
            "load_before": list(os.getloadavg()),
            "engines": [],
        }
        record["engines"] += reference_rows(folder, options)
        for engine in options.engine:
            print(f"{engine} ...", file=sys.stderr, flush=True)
            row = measure(engine, folder, options)
            record["engines"].append(row)
            if engine == "relion" and "missing" not in row:
                record["engines"].append(postprocessed(folder, options))
            record["load_after"] = list(os.getloadavg())
            if options.json:  # after every engine: the second takes long
                processes.write_json(Path(options.json), record)
    print(table(record))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--map", required=True, help="the truth; padded to --size")
    parser.add_argument("--size", type=int, default=84, help="side of the box; smaller than the map: binned")
    parser.add_argument(
        "--pixel", type=float, help="angstrom: resample the map, to finer pixels, before that"
    )
    parser.add_argument("--views", type=int, default=500)
    parser.add_argument("--snr-db", type=float, default=3.58, help="variance of images over that of noise")
    parser.add_argument(
        "--angle-error", type=float, default=0.7, help="of each Euler angle, uniform, radians"
    )
    parser.add_argument("--shift", type=float, default=0.0, help="largest, pixels; the start has none")
    parser.add_argument(
        "--defocus", type=float, nargs=2, help="angstrom, lowest and highest; default: no CTF"
    )
    parser.add_argument(
        "--search",
        choices=("local", "global", "ours"),
        default="local",
        help="global: start from random angles, each with its own search over all rotations; ours: both start from"
        " what the first round of our search finds",
    )
    parser.add_argument("--half-maps", action="store_true", help="ours too refines the half sets apart")
    parser.add_argument("--lowpass", type=float, default=60.0, help="of the first map, angstrom")
    parser.add_argument("--symmetry", default="C1")
    parser.add_argument("--engine", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument(
        "--healpix-order",
        type=int,
        help="of RELION's first grid; default: 2, its own (15 degrees, 7.5 with oversampling); after our search 3, with"
        " local searches from the start",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="file to write the record to")
    parser.add_argument("--keep", help="folder for the files, which are else removed")
    return parser


# -- the files that both get ------------------------------------------------------------------------------


def make_problem(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """``particles.star`` (true poses), ``start.star`` (rough ones), ``truth.mrc``, ``first.mrc``."""
    import dataclasses

    import numpy as np

    import invcryo as ic

    truth = ic.read_map(options.map)
    volume, pixel = np.asarray(truth.data, np.float32), float(truth.pixel_size)
    if options.pixel:
        volume, pixel = resampled(volume, pixel, options.pixel, options.size)
    volume, pixel = boxed(volume, pixel, options.size)
    rng = np.random.default_rng(options.seed)
    stack = ic.simulate_particles(
        volume,
        options.views,
        pixel,
        snr=10 ** (options.snr_db / 10),
        defocus_angstrom=tuple(options.defocus) if options.defocus else None,
        shift_px=options.shift,
        rng=rng,
    )
    ic.write_simulation(folder, stack)
    if options.search != "local":
        rough = ic.Poses(ic.random_rotations(len(stack), rng=rng))
    else:
        off = np.rad2deg(rng.uniform(-options.angle_error, options.angle_error, (3, len(stack))))
        rough = ic.Poses.from_euler_deg(*(np.stack(stack.poses.euler_deg()) + off))
    first = lowpassed(np.asarray(stack.images.truth), pixel / options.lowpass)
    ic.write_map(folder / "first.mrc", first, pixel)
    problem: dict[str, Any] = {"pixel_size": pixel, "lowpass_angstrom": options.lowpass}
    written = ic.read_particles(folder / "particles.star")
    start = dataclasses.replace(written, poses=rough)
    ic.write_particles(folder / "start.star", start)
    if options.search == "ours":
        problem["search_seconds"] = searched(folder, problem, options)
        start = ic.read_particles(folder / "start.star")
    # RELION reads no file without a voltage, even where it applies no CTF
    microscope = start.ctf or ic.CTF(np.full(len(stack), 1e4), 1e4, 0.0, 300.0, 2.7, 0.1)
    ic.write_particles(folder / "relion.star", dataclasses.replace(start, ctf=microscope))
    processes.write_json(folder / "problem.json", problem)
    return problem


def searched(folder: Path, problem: dict[str, Any], options: argparse.Namespace) -> float:
    """Give ``start.star`` the poses of the first round of our search; returns its seconds."""
    out = folder / "search"
    shutil.rmtree(out, ignore_errors=True)
    words = [*ours(out, problem["lowpass_angstrom"], "global", options), "--max-rounds", "1"]
    begun = time.perf_counter()
    subprocess.run(words, cwd=folder, env=processes.environment(options.threads), check=True)
    seconds = time.perf_counter() - begun
    shutil.copy(out / "particles_refined.star", folder / "start.star")
    return seconds


def resampled(volume: Any, pixel: float, wanted: float, largest: int) -> tuple[Any, float]:
    """The map on finer pixels, by quintic splines about its centre; without empty margins beyond a box."""
    import numpy as np
    from scipy import ndimage

    if wanted > pixel:
        raise SystemExit(
            f"--pixel: the map has pixels of {pixel:g} angstrom, {wanted:g} would lose some of it"
        )
    shape = [min(largest, int(np.ceil(n * pixel / wanted))) for n in volume.shape]
    step = wanted / pixel
    start = [n // 2 - m // 2 * step for n, m in zip(volume.shape, shape, strict=True)]
    out = ndimage.affine_transform(volume, np.full(3, step), start, shape, order=5)
    lost = 1 - np.sum(out.astype(float) ** 2) * step**3 / np.sum(volume.astype(float) ** 2)
    if lost > 0.01:
        raise SystemExit(
            f"a box of {largest} pixels of {wanted:g} angstrom loses {100 * lost:.0f} % of the map"
        )
    return out.astype(np.float32), wanted


def boxed(volume: Any, pixel: float, size: int) -> tuple[Any, float]:
    """The map in a cube of ``size``: padded, or binned in Fourier space where it is larger."""
    import numpy as np

    side = max(size, *volume.shape)
    before = [(side // 2) - (n // 2) for n in volume.shape]
    whole = np.pad(volume, [(b, side - n - b) for b, n in zip(before, volume.shape, strict=True)])
    if side == size:
        return whole, pixel
    spectrum = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(whole)))
    cut = slice(side // 2 - size // 2, side // 2 - size // 2 + size)
    small = np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(spectrum[cut, cut, cut])).real)
    return (small * (size / side) ** 3).astype(np.float32), pixel * side / size


def lowpassed(volume: Any, cutoff: float) -> Any:
    import numpy as np

    f = np.fft.fftfreq(len(volume))
    radius = np.sqrt(f[:, None, None] ** 2 + f[None, :, None] ** 2 + np.fft.rfftfreq(len(volume)) ** 2)
    spectrum = np.fft.rfftn(volume) * (radius <= cutoff)
    return np.fft.irfftn(spectrum, s=volume.shape, axes=(0, 1, 2)).astype(np.float32)


# -- the programs -----------------------------------------------------------------------------------------


def ours(out: Path, lowpass: float, search: str, options: argparse.Namespace) -> list[str]:
    return [
        sys.executable, "-m", "invcryo", "refine", "start.star", "--ref", "first.mrc",
        "--init-lowpass", f"{lowpass:.2f}", "--sym", options.symmetry, "--threads", str(options.threads),
        "-o", str(out), "--quiet", "--search", search, *(["--half-maps"] if options.half_maps else []),
        *(["--max-shift", f"{1.5 * options.shift + 1:g}"] if options.shift else []),
    ]  # fmt: skip


def command(engine: str, folder: Path, out: Path, options: argparse.Namespace) -> list[str]:
    problem = json.loads((folder / "problem.json").read_text())
    if engine == "invcryo":
        search = "global" if options.search == "global" else "local"
        return ours(out / "run", problem["lowpass_angstrom"], search, options)
    lowpass = f"{problem['lowpass_angstrom']:.2f}"
    coarsest, local = (3, 3) if options.search == "ours" else (2, 4)
    if options.healpix_order is not None:
        coarsest = options.healpix_order
    ranks = max(3, options.threads + 1)  # one that leads, one for each half set
    return [
        "mpirun", "--allow-run-as-root", "--oversubscribe", "-n", str(ranks), "relion_refine_mpi",
        "--auto_refine", "--split_random_halves", "--i", "relion.star", "--ref", "first.mrc",
        "--o", str(out / "run"), "--ini_high", lowpass,
        "--particle_diameter", f"{0.95 * options.size * problem['pixel_size']:.0f}",
        "--flatten_solvent", "--zero_mask", "--norm", "--scale", "--oversampling", "1",
        "--healpix_order", str(coarsest), "--auto_local_healpix_order", str(local),
        "--low_resol_join_halves", "40", "--sym", options.symmetry,
        "--offset_range", f"{options.shift + 1:g}", "--offset_step", "1",
        "--dont_combine_weights_via_disc", "--pool", "30", "--pad", "2", "--j", "1",
        *(["--ctf"] if options.defocus else []),
    ]  # fmt: skip


def measure(engine: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    program = {"relion": "relion_refine_mpi"}.get(engine)
    if program and not (shutil.which(program) and shutil.which("mpirun")):
        return {"engine": engine, "missing": f"{program} or mpirun is not on the PATH"}
    out = folder / engine
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    words = command(engine, folder, out, options)
    with open(out / "log.txt", "w") as log:
        start = time.perf_counter()
        process = subprocess.Popen(
            words,
            cwd=folder,
            env=processes.environment(options.threads if engine == "invcryo" else 1),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        peak = _peak_of_session(process)
        seconds = time.perf_counter() - start
    if process.returncode != 0:
        return {"engine": engine, "missing": (out / "log.txt").read_text()[-1500:]}
    found = {
        "invcryo": ("run/map.mrc", "run/particles_refined.star"),
        "relion": ("run_class001.mrc", "run_data.star"),
    }[engine]
    row = score(out / found[0], out / found[1], folder, options.symmetry)
    return {"engine": engine, "seconds": seconds, "peak_mb": peak, "command": words[:6], **row}


def postprocessed(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """RELION's half maps after relion_postprocess, in a soft mask made of its own map."""
    import invcryo as ic

    name, out = "relion, post-processed", folder / "relion"
    threshold = 0.1 * float(ic.read_map(out / "run_class001.mrc").data.max())
    start = time.perf_counter()
    log = ""
    for words in (
        [
            "relion_mask_create", "--i", "run_class001.mrc", "--o", "mask.mrc", "--lowpass", "15",
            "--ini_threshold", f"{threshold:g}", "--extend_inimask", "3", "--width_soft_edge", "6",
        ],
        [
            "relion_postprocess", "--i", "run_half1_class001_unfil.mrc", "--o", "post", "--mask", "mask.mrc",
            "--skip_fsc_weighting", "--adhoc_bfac", "0",
        ],
    ):  # fmt: skip
        done = subprocess.run(words, cwd=out, capture_output=True, text=True)
        log = done.stdout + done.stderr
    if not (out / "post_masked.mrc").exists():  # it may fail later, where it draws its plot
        return {"engine": name, "missing": log[-1500:]}
    row = score(out / "post_masked.mrc", out / "run_data.star", folder, options.symmetry)
    return {"engine": name, "seconds": time.perf_counter() - start, "peak_mb": None, **row}


def _peak_of_session(process: subprocess.Popen) -> float | None:  # type: ignore[type-arg]
    """Largest sum of what the processes of a session hold, without the pages of files; 1e6 bytes."""
    peak = 0
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.2):
            total = 0
            for entry in Path("/proc").glob("[0-9]*"):
                try:
                    if int((entry / "stat").read_text().rpartition(")")[2].split()[3]) != process.pid:
                        continue
                    lines = (entry / "status").read_text().splitlines()
                except (OSError, ValueError, IndexError):
                    continue  # it ended meanwhile
                total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
            peak = max(peak, total)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        process.wait()
    finally:
        done.set()
        thread.join()
    return peak / 1e6 if peak else None


# -- what they found --------------------------------------------------------------------------------------


def score(made: Path, star: Path, folder: Path, symmetry: str) -> dict[str, Any]:
    """FSC 0.5 of the map moved onto the truth by what aligns the poses, and pose errors."""
    import invcryo as ic
    from invcryo.metrics import fsc, pose_errors

    truth = ic.read_map(folder / "truth.mrc")
    true = ic.read_particles(folder / "particles.star").poses
    errors = pose_errors(_in_order(star, folder), true, symmetry)
    moved = errors.alignment.volume(ic.read_map(made).data)
    curve = fsc(moved, truth.data, pixel_size=truth.pixel_size)
    return _figures(curve) | errors.summary()


def _figures(curve: Any) -> dict[str, float]:
    resolution = curve.resolution(0.5)
    return {"resolution_A": resolution, "shell": round(curve.box * curve.pixel_size / resolution)}


def _in_order(star: Path, folder: Path) -> Any:
    """Poses in the order of the simulation: RELION sorts the particles."""
    import numpy as np

    import invcryo as ic

    stack = ic.read_particles(star, data_dir=folder)
    number = [int(str(name).partition("@")[0]) for name in stack.table["rlnImageName"]]
    return stack.poses[np.argsort(number)]


def reference_rows(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Our reconstruction from the true poses, and from those of the start."""
    import invcryo as ic
    from invcryo.metrics import fsc, pose_errors

    truth = ic.read_map(folder / "truth.mrc")
    true = ic.read_particles(folder / "particles.star")
    rows = []
    for name, file in (("true poses", "particles.star"), ("poses of the start", "start.star")):
        stack = ic.read_particles(folder / file)
        start = time.perf_counter()
        made = ic.reconstruct(
            stack, reg="tv", lam=0.3, positivity=True, symmetry=options.symmetry, progress=False
        )
        seconds = time.perf_counter() - start
        errors = pose_errors(stack.poses, true.poses, options.symmetry)
        curve = fsc(made.map, truth.data, pixel_size=truth.pixel_size)
        rows.append(
            {"engine": name, "seconds": seconds, "peak_mb": None, **_figures(curve), **errors.summary()}
        )
    return rows


def table(record: dict[str, Any]) -> str:
    o = record["options"]
    lines = [
        f"{o['size']}^3, {o['views']} views, {o['snr_db']} dB, angles off by {o['angle_error']} rad; load"
        f" {record['load_before'][0]:.1f} before",
        f"{'':20} {'seconds':>9} {'MB':>7} {'FSC 0.5':>9} {'shell':>6} {'median':>8} {'within 1':>9}"
        f" {'within 5':>9} {'shift':>8}",
    ]
    for e in record["engines"]:
        if "missing" in e:
            lines.append(f"{e['engine']:20} missing: {e['missing']}")
            continue
        memory = f"{e['peak_mb']:.0f}" if e["peak_mb"] else "-"
        lines.append(
            f"{e['engine']:20} {e['seconds']:9.1f} {memory:>7} {e['resolution_A']:7.2f} A {e['shell']:6d}"
            f" {e['angle_p50_deg']:6.2f} d {100 * e['within_1_deg']:7.1f} % {100 * e['within_5_deg']:7.1f} %"
            f" {e['shift_p50_px']:5.2f} px"
        )
    timed = {e["engine"]: e for e in record["engines"] if "missing" not in e}
    if {"invcryo", "relion"} <= timed.keys():
        lines.append(
            f"relion / invcryo: {timed['relion']['seconds'] / timed['invcryo']['seconds']:.1f} in time"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
