"""The report (report.html) of each command, from what it computed and the pictures it drew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import count

if TYPE_CHECKING:
    from ..metrics import FSC, PostProcess
    from ..metrics.local import LocalResolution
    from ..reconstruction import Reconstruction
    from ..report import Report

PAGE = "report.html"

_STAGES = {
    "data": "pass over the images",
    "least squares": "unregularised maps",
    "lambda": "choice of lambda",
    "regularised": "regularised maps",
    "total": "in all",
}


def begin(title: str, lead: str = "") -> Report:
    from ..report import Report

    return Report(title, lead)


def add_pictures(page: Report, folder: Path, captions: Mapping[str, str]) -> None:
    """Those of the pictures that were drawn, in this order."""
    drawn = {name: text for name, text in captions.items() if (folder / name).exists()}
    if drawn:
        page.section("Pictures")
    for name, text in drawn.items():
        page.figure(folder / name, text)


def end(page: Report, folder: Path, record: Mapping[str, Any]) -> None:
    """Add the warnings and how to make it again, and write the page into ``folder``."""
    page.warning(*record.get("warnings", ())).run(record).write(folder / PAGE)


def short(curve: FSC, threshold: float | str = 0.143) -> str:
    """A resolution for a headline."""
    value = curve.resolution(threshold)
    return (
        f"{'≤ ' if curve.beyond_nyquist(threshold) else ''}{value:.2f} Å" if value < float("inf") else "none"
    )


# --- reconstruct --------------------------------------------------------------------------------------------

_RECONSTRUCT = {
    "slices.png": "Central slices of the map, and of the map without regularisation, each on its own grey scale. What"
    " is seen only with regularisation may be the prior's doing.",
    "fsc.png": "Fourier shell correlation of the half maps. Quote that of the unregularised halves.",
    "convergence.png": "The solver. The objective must have become flat, and what is below it small.",
    "lcurve.png": "Misfit against regulariser for every lambda that was tried.",
}


def reconstruct_page(
    title: str,
    result: Reconstruction,
    report: Mapping[str, Any],
    folder: Path,
    more: Mapping[str, str] | None = None,
) -> Report:
    """The page of a reconstruction, but for its end; ``more`` are captions of further pictures."""
    from ..report import SHARED_PRIOR

    n, size = report["box"], result.pixel_size
    how = (
        "least squares, no regularisation" if result.lam is None else f"{result.reg}, lambda {result.lam:.4g}"
    )
    lead = f"{count(report['particles'], 'particle')}; {how}; {n} x {n} x {n} voxels of {size:g} Å."
    page = begin(title, lead)
    best = result.fsc_noreg if result.fsc_noreg is not None else result.fsc
    if best is not None:
        page.headline("Resolution", short(best), "unregularised half maps, FSC 0.143")
    page.headline("Particles", report["particles"])
    if result.lam is not None:
        page.headline("Lambda", f"{result.lam:.4g}", result.lam_rule or "")
    page.headline("Iterations", report["iterations"], f"stopped by {result.stopped_by}")
    page.headline("Time", f"{report['wall_seconds']:.0f} s", count(report["threads"], "thread"))
    if result.fsc is not None:
        page.section("Resolution")
        rows = [
            (name, *(short(curve, t) for t in (0.143, 0.5)))
            for name, curve in (
                ("unregularised half maps", result.fsc_noreg),
                ("regularised half maps", result.fsc),
            )
            if curve is not None
        ]
        if result.fsc_noreg is None:
            rows = [("half maps", *rows[0][1:])]
        page.table(rows, header=("", "FSC 0.143", "FSC 0.5"))
        if result.fsc_noreg is not None:
            page.text(SHARED_PRIOR)
    add_pictures(page, folder, {**_RECONSTRUCT, **(more or {})})
    page.section("Numbers")
    peak = report.get("peak_memory_bytes")
    page.facts(
        _known(
            {
                **_views(report.get("views")),
                "lambda": result.lam,
                "lambda chosen by": result.lam_rule,
                "lambda that gives a constant map": result.lam_max,
                "error of the normal kernel": result.gram_error,
                "peak memory": None if peak is None else f"{peak / 1e9:.2f} GB",
                **{f"{_STAGES.get(k, k)}, seconds": round(v, 2) for k, v in report["seconds"].items()},
            }
        )
    )
    _add_inputs(page, report.get("inputs"))
    return page


def _add_inputs(page: Report, inputs: Mapping[str, Any] | None) -> None:
    if not inputs:
        return
    page.section("Inputs")
    rows = [(path, f"SHA-256 {digest}") for path, digest in inputs["sha256"].items()]
    stacks = inputs["stacks"]
    rows += [(row["path"], f"{row['bytes']} bytes, of {row['modified']}") for row in stacks[:10]]
    if len(stacks) > 10:
        rows.append((f"and {len(stacks) - 10} more", "see run.json"))
    page.table(rows)


# --- postprocess --------------------------------------------------------------------------------------------

_POSTPROCESS = {
    "fsc.png": "Fourier shell correlation of the half maps. Corrected for the mask: what the mask alone makes agree,"
    " seen with random phases, is taken off.",
    "guinier.png": "Guinier plot: the fall of the amplitudes, and the line whose slope is the B-factor.",
    "slices.png": "Central slices before and after sharpening, each on its own grey scale.",
    "directional_fsc.png": "FSC in cones about 256 axes, and the resolution by direction seen from +z.",
}


def write_postprocess_page(
    folder: Path,
    names: tuple[str, str],
    result: PostProcess,
    report: Mapping[str, Any],
    record: Mapping[str, Any],
) -> None:
    from ..report import SHARED_PRIOR

    a, b = (Path(name).name for name in names)
    lead = f"Box {result.fsc.box}, {result.fsc.pixel_size:g} Å per pixel; the steps and rules of relion_postprocess."
    page = begin(f"Resolution and sharpening of {a} and {b}", lead)
    page.headline("Resolution", short(result.fsc), f"FSC 0.143, {report['curve']}")
    page.headline("B-factor", f"{result.bfactor:.1f} Å²", "negative sharpens")
    if result.curves is not None:
        page.headline("Unmasked", short(result.curves.unmasked), "FSC 0.143")
    if "directional" in report:
        cones = report["directional"]
        span = f"{cones['best_angstrom']:.2f} to {cones['poorest_angstrom']:.2f} Å"
        page.headline("By direction", span, f"least over largest area {cones['cfar_like']:.2f}")
    page.text(
        "The half maps must be unregularised. "
        + SHARED_PRIOR
        + " The weights made from such an FSC have no meaning."
    )
    add_pictures(page, folder, _POSTPROCESS)
    page.section("Numbers")
    fit = report["guinier_fit"] or {}
    page.facts(
        _known(
            {
                "rule": report["rule"],
                "counting of Fourier voxels": report["counting"],
                "phases random from": _angstrom(report["randomised_from_angstrom"]),
                "r² of the Guinier fit": fit.get("r_squared"),
                "low-pass": _angstrom(report["lowpass_angstrom"]),
                "RELION's factor f of the mask": report["mask_fraction_factor"],
            }
        )
    )
    end(page, folder, {**record, **report})


def _views(views: Mapping[str, float] | None) -> dict[str, str]:
    """How evenly the views cover the sphere."""
    if not views:
        return {}
    return {
        "efficiency of the views, 1 if even": f"{views['efficiency']:.2f}",
        "widest over narrowest extent of a point": f"{views['anisotropy']:.2f}",
        "sampling compensation factor, 1 if even": f"{views['scf']:.2f}",
        "directions of Fourier space in no view": f"{100 * views['unsampled']:.1f} %",
    }


def _known(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value is not None and value == value}


def _angstrom(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f} Å"


# --- local resolution ---------------------------------------------------------------------------------------

_LOCAL = {
    "local_resolution.png": "Central slices of the mean of the half maps, coloured by local resolution.",
    "histogram.png": "Local resolution over the voxels of the mask.",
}


def write_local_page(
    folder: Path,
    names: tuple[str, str],
    result: LocalResolution,
    report: Mapping[str, Any],
    record: Mapping[str, Any],
) -> None:
    a, b = (Path(name).name for name in names)
    page = begin(
        f"Local resolution of {a} and {b}",
        f"FSC {report['threshold']:g} in soft balls that slide over the map.",
    )
    local = report["local_angstrom"]
    page.headline("Median", f"{local['median']:.2f} Å", "over the voxels of the mask")
    page.headline("5 to 95 %", f"{local['percentile_5']:.2f} to {local['percentile_95']:.2f} Å")
    page.headline("Whole map", short(result.whole, report["threshold"]))
    page.headline("Window", f"{result.window:.1f} Å", f"a step of {result.step:.1f} Å")
    page.text(
        "A figure holds for a window, not for a voxel, and is uncertain by about 1 / window in frequency. The half maps"
        " must be unregularised: two halves that share their prior agree too well everywhere."
    )
    add_pictures(page, folder, _LOCAL)
    page.section("Numbers")
    page.facts(
        _known(
            {
                "voxels in the mask": report["voxels"],
                "windows": report["windows"],
                "of the voxels at the lowest resolution reported": f"{100 * report['part_at_worst']:.1f} %",
                "pixel size": f"{report['pixel_size']:g} Å",
            }
        )
    )
    end(page, folder, {**record, **report})
