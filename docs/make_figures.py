"""Make the figures of these pages from simulated data: ``python docs/make_figures.py`` (a minute or two).

The functions of `invcryo.plot` are called as a user would call them, and the report of the demo is photographed where
Chromium is installed.
"""

from __future__ import annotations

import argparse
import html
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

import invcryo as ic
from invcryo import plot
from invcryo.ctf import CTF
from invcryo.io import TiltSeries
from invcryo.metrics import (
    directional_fsc,
    fsc,
    local_resolution,
    phase_randomised_fsc,
    pose_errors,
    postprocess,
    soft_mask,
)
from invcryo.refinement import refine
from invcryo.rotation import matrix_from_rotvec
from invcryo.simulate import cell_phantom, phantom, simulate_particles
from invcryo.stet import image_sampling, reconstruct_series
from invcryo.studies.incoherence import incoherence_study
from invcryo.studies.simulated_series import simulated_cell
from invcryo.studies.tilt_study import tilt_study

FOLDER = Path(__file__).resolve().parent / "figures"
SIZE = 3.0  # angstrom per pixel


def save(ax, name, folder, dpi=100, colours=160):
    """As a PNG of few colours: a tenth of the bytes, and nobody sees the difference."""
    plot.save(ax, folder / f"{name}.png", dpi=dpi)
    _fewer_colours(folder / f"{name}.png", colours)


def _fewer_colours(path, colours=160):
    from PIL import Image  # comes with Matplotlib

    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(
            160, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE
        )
    small.save(path, optimize=True)


def simulated():
    return simulate_particles(
        phantom("enzyme", 64, rng=2),
        600,
        SIZE,
        snr=0.1,
        defocus_angstrom=(8000.0, 20000.0),
        astigmatism_angstrom=600.0,
        voltage_kv=300.0,
        cs_mm=2.7,
        amplitude_contrast=0.1,
        shift_px=2.0,
        rng=7,
    )


def reconstruction(folder):
    """Everything that starts from particles."""
    stack = simulated()
    result = ic.reconstruct(stack, reg="tv", half_maps=True, progress=False)
    truth = stack.images.truth
    save(plot.slices(result.map, pixel_size=SIZE), "slices", folder)
    save(plot.map_projections(result.map, pixel_size=SIZE), "map_projections", folder)
    save(plot.projections(stack.images, 8, columns=4), "projections", folder, 80, 32)
    curves = {"unregularised half maps": result.fsc_noreg, "regularised half maps": result.fsc}
    curves["total variation against the truth"] = fsc(result.map, truth, pixel_size=SIZE)
    save(plot.fsc_curves(curves, (0.143, 0.5)), "fsc_curves", folder)
    save(plot.convergence(result.history, ["primal", "dual", "gap"]), "convergence", folder)
    save(plot.lcurve(result.lam_search, chosen=result.lam), "lcurve", folder)
    save(plot.orientations(stack.poses), "orientations", folder)
    save(plot.ctf_curve(stack.ctf, pixel_size=SIZE), "ctf_curve", folder)

    A = ic.forward_model(stack)
    data = ic.LeastSquares(A, stack.images, progress=False).quadratic()
    cost = data + result.lam * (ic.L21() @ ic.Gradient(A.ishape)) + ic.NonNegative()
    fit = ic.run(ic.admm(cost), 60, stop=ic.residual_below(1e-2, "gap"), progress=False)
    save(plot.residuals(stack.images[:200], A.rows(slice(0, 200))(fit.x), 2), "residuals", folder, 80, 32)
    return truth


def halves(truth, uneven=False):
    """Two half maps whose noise grows from left to right and with frequency, with fewer views along z if ``uneven``."""
    rng = np.random.default_rng(3)
    n = len(truth)
    z, y, x = np.meshgrid(*(np.fft.fftfreq(n, SIZE),) * 3, indexing="ij")
    squared = z**2 + y**2 + x**2
    blur = np.exp(-60 / 4 * squared)
    strength = 0.02 + 0.1 * np.linspace(0, 1, n) ** 2
    if uneven:
        blur = blur * np.exp(-((np.abs(z) / np.sqrt(squared + 1e-9)) ** 4) * 500 / 4 * squared)
        strength = np.full(n, 0.03)
    soft = np.fft.ifftn(np.fft.fftn(truth) * blur).real
    return [(soft + strength * rng.standard_normal(truth.shape)).astype(np.float32) for _ in range(2)]


def validation(truth, folder):
    """Everything that starts from half maps."""
    a, b = halves(truth)
    mask = soft_mask(truth, 0.05, pixel_size=SIZE, lowpass=None, extend=2, edge=5)
    mean = 0.5 * (a + b)
    save(plot.masked_slices(mean, mask, pixel_size=SIZE), "masked_slices", folder)
    sharp = postprocess(a, b, mask, pixel_size=SIZE, fit_range=(20.0, 0.0), rng=0)
    save(plot.guinier(sharp.guinier), "guinier", folder)
    masked = phase_randomised_fsc(a, b, mask, pixel_size=SIZE, rng=0)
    curves = {
        "corrected for the mask": masked.corrected,
        "masked": masked.masked,
        "unmasked": masked.unmasked,
    }
    curves["masked, phases random"] = masked.randomised
    save(plot.fsc_curves(curves, (0.143,)), "fsc_masked", folder)
    local = local_resolution(a, b, mask, pixel_size=SIZE, rng=0, progress=False)
    save(plot.local_resolution(mean, local.map, pixel_size=SIZE), "local_resolution", folder)
    whole = local.whole.resolution()
    save(plot.resolution_histogram(local.map[local.map > 0], whole=whole), "resolution_histogram", folder)
    save(
        plot.directional_fsc(directional_fsc(*halves(truth, True), mask, pixel_size=SIZE)),
        "directional_fsc",
        folder,
    )


def micrograph(folder):
    """White noise through a CTF, which shows rings as carbon film does."""
    ctf, side, size = CTF(8000.0, 6500.0, 0.5, 300.0, 2.7, 0.1), 2048, 1.5
    rng = np.random.default_rng(0)
    fy, fx = np.fft.fftfreq(side, size)[:, None], np.fft.rfftfreq(side, size)
    image = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((side, side))) * ctf(fx, fy)[0], s=(side, side))
    image += 0.5 * rng.standard_normal(image.shape)
    save(plot.ctf_image(ctf, pixel_size=size), "ctf_image", folder, 80, 64)
    save(plot.thon_rings(image, pixel_size=size, ctf=ctf, box=192), "thon_rings", folder, 80, 24)


def poses(folder):
    """Errors of poses that were moved at random, a tenth of them by far."""
    rng = np.random.default_rng(4)
    n = 2000
    true = ic.Poses(ic.random_rotations(n, rng=rng), rng.normal(0, 2, (n, 2)))
    turns = np.deg2rad(np.where(rng.random((n, 1)) < 0.1, 40.0, 2.0)) * rng.standard_normal((n, 3))
    moved = ic.Poses(matrix_from_rotvec(turns) @ true.matrices, true.shifts + rng.normal(0, 0.5, (n, 2)))
    errors = {"moved": pose_errors(moved, true)}
    save(plot.angular_errors(errors), "angular_errors", folder, 70)
    save(plot.shift_errors(errors), "shift_errors", folder, 80)


def tilts(folder):
    """A simulated cell, tilted from -60 to 60 degrees, with a tenth of the pixels measured."""
    cell = cell_phantom((24, 48, 96))
    angles = np.deg2rad(np.arange(-60.0, 61.0, 3.0))
    shape = (len(angles), 48, 96)
    series = TiltSeries(np.zeros(shape, np.float32), angles)
    P = ic.Projector(series.poses(), ic.BandLimited(), cell.shape, shape[1:])  # voxels are its coefficients
    rng = np.random.default_rng(0)
    clean = P(cell)
    images = clean + 0.02 * clean.std() * rng.standard_normal(shape).astype(np.float32)
    sampling = image_sampling(shape, 0.1, kind="line")
    save(plot.tilt_masks(sampling.full_mask(), np.rad2deg(angles)), "tilt_masks", folder, 80, 8)
    maps = {"truth": cell}
    for name, mask, method in (
        ("all pixels, total variation", None, "tv"),
        ("a tenth, total variation", sampling.full_mask(), "tv"),
        ("a tenth, zero-fill", sampling.full_mask(), "zero-fill"),
    ):
        maps[name] = reconstruct_series(
            images, angles, mask=mask, method=method, lam="auto", thickness=24, progress=False
        ).volume
    volumes = list(maps.values())
    grid = plot.section_grid(
        [[v] for v in volumes], rows=["truth", "all, TV", "10 %, TV", "10 %, zeros"], columns=["xz"]
    )
    save(grid, "section_grid", folder)
    lines = {name: v[12, 24] for name, v in maps.items() if "zero" not in name}
    save(plot.profiles(lines), "profiles", folder)
    save(plot.wedge_spectrum(volumes[-1], angles), "wedge_spectrum", folder, 80, 64)


def studies(folder):
    """Small versions of the studies of sampling, and a refinement of poses that were moved by some degrees."""
    with tempfile.TemporaryDirectory() as work:
        incoherence_study(Path(work) / "tpsf", size=64, views=60, fractions=(0.2,), seeds=(0,))
        picture = folder / "tpsf.png"
        shutil.copyfile(Path(work) / "tpsf" / "tpsf.png", picture)
        _fewer_colours(picture)
        series, cell = simulated_cell((24, 48, 48), angles_deg=np.arange(-60.0, 61.0, 3.0))
        rows = tilt_study(
            series,
            Path(work) / "dose",
            truth=cell,
            fractions=(0.5, 0.2, 0.1),
            seeds=(0, 1),
            electrons=100.0,
            pictures=False,
            progress=False,
        )
    ax = plot.dose_curves(rows, "psnr", label="PSNR (dB)")
    save(ax, "dose_curves", folder, 70, 32)
    rng = np.random.default_rng(5)
    truth = phantom("enzyme", 48, rng=2)
    stack = simulate_particles(truth, 400, SIZE, snr=1.0, rng=rng)
    turns = matrix_from_rotvec(rng.uniform(-0.2, 0.2, (len(stack), 3)))
    rough = replace(stack, poses=ic.Poses(turns @ stack.poses.matrices, stack.poses.shifts))
    result = refine(rough, truth, init_lowpass=40.0, progress=False)
    found = {"joint refinement": [h["resolution_angstrom"] for h in result.history]}
    save(plot.resolution_by_round(found, limits={"Nyquist": 2 * SIZE}), "resolution_by_round", folder, 70, 32)


def report(folder):
    """The report of the demo, on a screen and on a phone."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("no Chromium: the report is not photographed", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as work:
        subprocess.run([sys.executable, "-m", "invcryo", "demo", "-o", f"{work}/demo", "--quiet"], check=True)
        page = html.escape((Path(work) / "demo" / "report.html").read_text(encoding="utf-8"), quote=True)
        for name, width, height in (("report", 1000, 1150), ("report_phone", 400, 1150)):
            frame = Path(work) / f"{name}.html"
            # in a frame: windows of headless Chromium do not get narrower than about 500 pixels
            style = f"border:0;width:{width}px;height:{height}px"
            frame.write_text(
                f'<meta charset="utf-8"><body style="margin:0"><iframe srcdoc="{page}" style="{style}">'
            )
            flags = (
                "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking".split()
            )
            flags += ["--disable-component-update", "--disable-sync", "--disable-quic", "--hide-scrollbars"]
            flags += [f"--user-data-dir={work}/profile", f"--window-size={max(width, 500)},{height}"]
            shot = folder / f"{name}.png"
            subprocess.run(
                [browser, *flags, f"--screenshot={shot}", frame.as_uri()], check=True, capture_output=True
            )
            _crop(shot, width)
            _fewer_colours(shot)


def _crop(path, width):
    from PIL import Image

    with Image.open(path) as picture:
        part = picture.crop((0, 0, width, picture.height))
    part.save(path)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=FOLDER)
    parser.add_argument("--no-report", action="store_true", help="leave out the photographs of the report")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    micrograph(args.output)
    poses(args.output)
    tilts(args.output)
    studies(args.output)
    truth = reconstruction(args.output)
    validation(truth, args.output)
    if not args.no_report:
        report(args.output)
    for path in sorted(args.output.glob("*.png")):
        print(f"{path.stat().st_size:7d}  {path.name}")


if __name__ == "__main__":
    main()
