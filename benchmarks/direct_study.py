"""Direct methods beside those of other programs: filtered and weighted back-projection, SIRT, direct Fourier.

    python benchmarks/direct_study.py --json direct.json

Needs scikit-image and the ASTRA toolbox for the sinogram, RELION on the PATH for the particles; what is missing is
named. Sinograms are analytic: neither program's projector made them. All figures are relative errors within the circle
(or ball) that fits the box, but for the FSC.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import invcryo as ic
from invcryo.direct import direct_reconstruction, fbp, wbp
from invcryo.operators import SingleAxisProjector
from invcryo.operators.single_axis import tilt_poses
from invcryo.solvers import run, sirt
from invcryo.window import KaiserBessel


def blobs(n: int, rng: np.random.Generator) -> list[tuple[float, float, float, float]]:
    """(height, x, z, width) of 40 Gaussian blobs in a disc, some narrow, one wide."""
    radius, turn = 0.36 * n * np.sqrt(rng.random(40)), 2 * np.pi * rng.random(40)
    found = zip(
        rng.uniform(0.3, 1, 40),
        radius * np.cos(turn),
        radius * np.sin(turn),
        rng.uniform(1.2, 4, 40),
        strict=True,
    )
    return [(0.4, 0.0, 0.0, 0.14 * n), *((float(a), float(b), float(c), float(d)) for a, b, c, d in found)]


def section(n: int, rng: np.random.Generator, angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A map (z, x) and its sinogram (angle, x), both in closed form."""
    k = np.arange(n) - n // 2
    truth, sinogram = np.zeros((n, n)), np.zeros((len(angles), n))
    for height, x, z, width in blobs(n, rng):
        truth += height * np.exp(-((k - x) ** 2 + (k[:, None] - z) ** 2) / (2 * width**2))
        centre = (x * np.cos(angles) - z * np.sin(angles))[:, None]
        sinogram += height * (2 * np.pi) ** 0.5 * width * np.exp(-((k - centre) ** 2) / (2 * width**2))
    return truth, sinogram


class Astra:
    """FBP and SIRT of ASTRA on the same grid: pixel k at k - n // 2, seen at x cos - z sin."""

    def __init__(self, n: int, angles: np.ndarray) -> None:
        import astra

        self.astra = astra
        low = -(n // 2) - 0.5
        self.volume = astra.create_vol_geom(n, n, low, low + n, -low - n, -low)
        cos, sin = np.cos(angles), np.sin(angles)
        centre = (n - 1) / 2 - n // 2
        rays = np.stack([-sin, -cos, centre * cos, -centre * sin, cos, -sin], axis=1)
        self.rays = astra.create_proj_geom("parallel_vec", n, rays)
        # FBP takes no vectors: the same geometry in its words, but for half a pixel of an even width, which is moved
        self.parallel = astra.create_proj_geom("parallel", 1.0, n, angles)

    def sirt(self, sinogram: np.ndarray, iterations: int) -> np.ndarray:
        return self._run("SIRT", "linear", self.rays, self.volume, sinogram, iterations)

    def fbp(self, sinogram: np.ndarray, filter: str) -> np.ndarray:
        """An odd width puts ASTRA's centre on a pixel."""
        n = sinogram.shape[1]
        if n % 2 == 0:
            raise ValueError("ASTRA's FBP is compared on an odd width")
        volume = self.astra.create_vol_geom(n, n)
        return self._run("FBP", "linear", self.parallel, volume, sinogram, 1, {"FilterType": filter})

    def _run(self, name, projector, rays, volume, sinogram, iterations, option=None):  # type: ignore[no-untyped-def]
        astra = self.astra
        options = astra.astra_dict(name)
        options["ProjectorId"] = astra.create_projector(projector, rays, volume)
        options["ProjectionDataId"] = astra.data2d.create("-sino", rays, sinogram.astype(np.float32))
        options["ReconstructionDataId"] = astra.data2d.create("-vol", volume, 0.0)
        if option:
            options["option"] = option
        algorithm = astra.algorithm.create(options)
        astra.algorithm.run(algorithm, iterations)
        return astra.data2d.get(options["ReconstructionDataId"])


def sinograms(n: int, views: int, missing: list[str]) -> list[dict]:
    """FBP of a full set of views, SIRT of a tilt series of 120 degrees."""
    rng = np.random.default_rng(1)
    angles = np.arange(views) * np.pi / views
    truth, sinogram = section(n, rng, angles)
    k = np.arange(n) - n // 2
    inside = np.hypot(k, k[:, None]) < n / 2 - 1

    def error(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.linalg.norm((a - b)[inside]) / np.linalg.norm(b[inside]))

    rows = []
    noisy = sinogram + 0.02 * sinogram.max() * rng.standard_normal(sinogram.shape)
    for filter, theirs in (("ram-lak", "ramp"), ("shepp-logan", "shepp-logan"), ("hann", "hann")):
        for name, y in (("exact", sinogram), ("noise of 2 %", noisy)):
            ours = fbp(y, angles, filter=filter)
            row = {"case": f"FBP {filter}, {name}", "ours": error(ours, truth)}
            row["ours, DC"] = float(ours[inside].sum() / truth[inside].sum() - 1)
            try:
                from skimage.transform import iradon

                found = iradon(y.T, np.rad2deg(angles), filter_name=theirs, interpolation="cubic")
                row |= {
                    "scikit-image": error(found, truth),
                    "between ours and scikit-image": error(ours, found),
                }
                row["scikit-image, DC"] = float(found[inside].sum() / truth[inside].sum() - 1)
            except ImportError:
                missing.append("scikit-image")
            try:
                found = _aligned(Astra(n, angles), y, theirs.replace("ramp", "ram-lak"), truth)
                row |= {"ASTRA": error(found, truth), "between ours and ASTRA": error(ours, found)}
                row["ASTRA, DC"] = float(found[inside].sum() / truth[inside].sum() - 1)
            except ImportError:
                missing.append("ASTRA")
            rows.append(row)
    tilts = np.deg2rad(np.arange(-60, 61, 2.0))
    truth, sinogram = section(n, np.random.default_rng(1), tilts)
    A = SingleAxisProjector(tilts, KaiserBessel(), (n, 1, n), (1, n), dtype=np.float64)
    for iterations in (20, 100):
        x = run(sirt(A, np.ascontiguousarray(sinogram[:, None])), iterations, progress=False).x
        ours = KaiserBessel().synthesize(np.ascontiguousarray(x))[:, 0]
        row = {"case": f"SIRT, 61 tilts to 60 degrees, {iterations} iterations", "ours": error(ours, truth)}
        row["ours, FBP"] = error(fbp(sinogram, tilts), truth)
        try:
            found = _nearest(Astra(n, tilts).sirt(sinogram, iterations), truth)
            row |= {"ASTRA": error(found, truth), "between ours and ASTRA": error(ours, found)}
        except ImportError:
            missing.append("ASTRA")
        rows.append(row)
    return rows


def weighted(n: int, missing: list[str]) -> list[dict]:
    """Weighted back-projection in three dimensions, whose sections ASTRA's FBP makes one by one.

    ASTRA takes any views for a full half turn: its map of a tilt series is brought down to the part that was seen.
    """
    height = n // 3 | 1
    k, rows_at = np.arange(n) - n // 2, np.arange(height) - height // 2
    inside = np.hypot(k, k[:, None]) < n / 2 - 1
    found = []
    views = int(np.pi / 2 * n)
    for name, angles in (
        (f"{views} views", np.arange(views) * np.pi / views),
        ("61 tilts to 60 degrees", np.deg2rad(np.arange(-60, 61, 2.0))),
    ):
        rng = np.random.default_rng(2)
        truth, images = np.zeros((n, height, n)), np.zeros((len(angles), height, n))
        for size, x, z, width in blobs(n, rng):
            across = np.exp(-((rows_at - rng.uniform(-0.25, 0.25) * height) ** 2) / (2 * width**2))
            flat = np.exp(-((k - x) ** 2 + (k[:, None] - z) ** 2) / (2 * width**2))
            truth += size * flat[:, None] * across[:, None]
            centre = (x * np.cos(angles) - z * np.sin(angles))[:, None]
            line = (2 * np.pi) ** 0.5 * width * np.exp(-((k - centre) ** 2) / (2 * width**2))
            images += size * line[:, None] * across[:, None]

        def error(a: np.ndarray, b: np.ndarray) -> float:
            """Without the rows near the ends, of which a window beyond the box knows nothing."""
            part = slice(height // 4, height - height // 4)
            a, b = np.moveaxis(a, 1, 0)[part][:, inside], np.moveaxis(b, 1, 0)[part][:, inside]
            return float(np.linalg.norm(a - b) / np.linalg.norm(b))

        ours = wbp(images, tilt_poses(angles), volume_shape=truth.shape)
        row = {"case": f"WBP, {name}", "ours": error(ours, truth)}
        row["ours, FBP of sections"] = error(fbp(images, angles), truth)
        try:
            astra = Astra(n, angles)
            seen = len(angles) * (angles[1] - angles[0]) / np.pi
            sections = [astra.fbp(images[:, j], "ram-lak") for j in range(height)]
            theirs = _nearest(seen * np.stack(sections, axis=1), truth)
            row |= {"ASTRA": error(theirs, truth), "between ours and ASTRA": error(ours, theirs)}
        except ImportError:
            missing.append("ASTRA")
        found.append(row)
    return found


def _aligned(astra: Astra, sinogram: np.ndarray, filter: str, truth: np.ndarray) -> np.ndarray:
    return _nearest(astra.fbp(sinogram, filter), truth)


def _nearest(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """A map of ASTRA, whose second axis points the other way, turned over into our frame: first and last axes."""
    frames = (found, found[::-1], found[..., ::-1], found[::-1, ..., ::-1])
    return min(frames, key=lambda f: float(np.linalg.norm(f - truth)))


def particles(box: int, count: int, missing: list[str]) -> list[dict]:
    """Direct Fourier beside relion_reconstruct, from one STAR file."""
    from invcryo.simulate import phantom

    if shutil.which("relion_reconstruct") is None:
        missing.append("RELION")
        return []
    pixel_size = 3.0
    truth = phantom("enzyme", box)
    rows = []
    for snr in (None, 0.1):
        with tempfile.TemporaryDirectory() as folder:
            stack = ic.simulate_particles(
                truth, count, pixel_size, snr=snr, shift_px=2.0, normalise=False, rng=1
            )
            ic.write_particles(Path(folder) / "p.star", stack, stack_path=Path(folder) / "p.mrcs")
            command = ["relion_reconstruct", "--i", "p.star", "--o", "r.mrc", "--ctf", "--angpix", "3"]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
            theirs = ic.read_map(Path(folder) / "r.mrc").data
            read = ic.read_particles(Path(folder) / "p.star", data_dir=folder)
            maps = {"RELION": theirs}
            direct = direct_reconstruction(read, progress=False)
            maps |= {"direct": direct.map_noreg, "direct, Wiener": direct.map}
            maps["least squares"] = ic.reconstruct(read, reg="none", progress=False).map
        inside = sum(c**2 for c in ic.grid.centred_coordinates(truth.shape)) < (box / 2 - 4) ** 2
        shells = slice(1, int(0.8 * box / 2) + 1)
        for name, volume in maps.items():
            curve = ic.fsc(volume, np.asarray(truth, np.float32), pixel_size=pixel_size)
            between = ic.fsc(volume, theirs, pixel_size=pixel_size)
            scale = float((volume * truth)[inside].sum() / (truth**2)[inside].sum())
            rows.append(
                {
                    "case": f"{count} particles of {box} pixels, SNR {snr or 'infinite'}: {name}",
                    "mean FSC to the truth": float(curve.correlation[shells].mean()),
                    "least FSC to the truth": float(curve.correlation[shells].min()),
                    "resolution at 0.5, angstrom": curve.resolution(0.5),
                    "mean FSC to RELION": float(between.correlation[shells].mean()),
                    "error of voxels": float(
                        np.linalg.norm((volume - truth)[inside]) / np.linalg.norm(truth[inside])
                    ),
                    "scale": scale,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=127, help="width of the sinogram, odd; default: 127")
    parser.add_argument("--views", type=int, default=180)
    parser.add_argument("--depth", type=int, default=47, help="width of the tilted map, odd; default: 47")
    parser.add_argument("--box", type=int, default=64)
    parser.add_argument("--particles", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    missing: list[str] = []
    rows = sinograms(args.size, args.views, missing) + weighted(args.depth, missing)
    rows += particles(args.box, args.particles, missing)
    for row in rows:
        figures = ", ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "case")
        sys.stdout.write(f"{row['case']}\n    {figures}\n")
    for name in sorted(set(missing)):
        sys.stdout.write(f"missing: {name}\n")
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, "missing": sorted(set(missing))}, indent=2) + "\n")


if __name__ == "__main__":
    main()
