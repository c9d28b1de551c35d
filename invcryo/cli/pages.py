"""The report (report.html) of each command, from what it computed and the pictures it drew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import count

if TYPE_CHECKING:
    from ..metrics import FSC, PostProcess
    from ..metrics.local import LocalResolution
    from ..reconstruction import Reconstruction
    from ..refinement import Refinement
    from ..report import Report

PAGE = "report.html"

#: What the half sets of a refinement with a prior share beyond `SHARED_PRIOR`, even where they are refined apart.
REFINED_WITH_PRIOR = (
    "The poses were aligned to maps with this prior, from the same first map in both half sets: what that brings in,"
    " the FSC of the unregularised half maps does not tell."
)

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
    finish(page, folder / PAGE, record)


def finish(page: Report, path: str | Path, record: Mapping[str, Any]) -> None:
    """The same into a file."""
    page.warning(*record.get("warnings", ())).run(record).write(path)


def short(curve: FSC, threshold: float | str = 0.143, symmetry_order: int = 1) -> str:
    """A resolution for a headline."""
    value = curve.resolution(threshold, symmetry_order=symmetry_order)
    bound = curve.beyond_nyquist(threshold, symmetry_order=symmetry_order)
    return f"{'≤ ' if bound else ''}{value:.2f} Å" if value < float("inf") else "none"


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
    if result.stopped_by == "direct":
        how = "direct Fourier, " + ("Wiener weights" if result.reg == "wiener" else "no weights")
    elif result.lam is None:
        how = "least squares, no regularisation"
    else:
        how = f"{result.reg}, lambda {result.lam:.4g}"
    lead = f"{count(report['particles'], 'particle')}; {how}; {n} x {n} x {n} voxels of {size:g} Å."
    page = begin(title, lead)
    best = result.fsc_noreg if result.fsc_noreg is not None else result.fsc
    if best is not None:
        page.headline("Resolution", short(best), "unregularised half maps, FSC 0.143")
    page.headline("Particles", report["particles"])
    if result.lam is not None:
        page.headline("Lambda", f"{result.lam:.4g}", result.lam_rule or "")
    if result.stopped_by != "direct":
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


# --- the step of a RELION refinement -------------------------------------------------------------------------


def write_external_page(
    path: Path, star: str, pictures: Mapping[str, Any], record: Mapping[str, Any]
) -> None:
    """``pictures`` are captions and axes."""
    box = record["box"]
    page = begin(
        f"Reconstruction for {Path(star).name}",
        f"One step of a RELION refinement; prior: {record['regulariser']}; {box} x {box} x {box} voxels.",
    )
    if "lambda" in record:
        page.headline("Lambda", f"{record['lambda']:.4g}", record["lambda_rule"])
        page.headline("Iterations", record["iterations"], f"gap {record['gap']:.2g}")
    page.headline("Data reach", f"{record['radius']:g}", "Fourier voxels")
    page.headline("Time", f"{record['wall_seconds']:.0f} s", count(record["threads"], "thread"))
    if "note" in record:
        page.text(record["note"][0].upper() + record["note"][1:] + ".")
    _add_axes(page, pictures)
    if record.get("lambda_search"):
        page.section("Choice of lambda")
        rows = [
            (f"{row['lambda']:.4g}", f"{row['misfit'] - record['misfit_least']:.5g}")
            for row in record["lambda_search"]
        ]
        wanted = record["misfit_wanted"] - record["misfit_least"]
        page.table(
            rows,
            header=("lambda", "misfit above the least"),
            caption=f"wanted: {wanted:.5g}, as RELION's own prior leaves",
        )
    finish(page, path, record)


def _add_axes(page: Report, pictures: Mapping[str, Any]) -> None:
    if pictures:
        page.section("Pictures" if len(pictures) > 1 else "Picture")
    for caption, axes in pictures.items():
        page.figure(axes, caption)


# --- of two maps, of a mask, of a simulation -----------------------------------------------------------------


def write_fsc_page(
    path: str,
    names: tuple[str, str],
    curves: Mapping[str, FSC],
    symmetry_order: int,
    pictures: Mapping[str, Any],
    record: Mapping[str, Any],
) -> None:
    """``curves`` by name, the one to quote first."""
    main = next(iter(curves.values()))
    a, b = (Path(name).name for name in names)
    page = begin(f"FSC of {a} and {b}", f"Box {main.box}, {main.pixel_size:g} Å per pixel.")
    thresholds: tuple[float | str, ...] = (0.143, 0.5, "half-bit")
    for threshold in thresholds:
        page.headline(f"at {threshold}", short(main, threshold, symmetry_order))
    page.text(
        "0.143 is for two half maps, 0.5 for a map against a truth or a model. Half maps that were regularised share"
        " their prior: their FSC tells no resolution. A mirror image of both cannot be told."
    )
    _add_axes(page, pictures)
    page.section("Resolution")
    rows = [(name, *(short(curve, t, symmetry_order) for t in thresholds)) for name, curve in curves.items()]
    page.table(rows, header=("", *(f"at {t}" for t in thresholds)))
    finish(page, path, record)


def write_mask_page(path: str, name: str, pictures: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    page = begin(f"Mask of {Path(name).name}", f"{record['pixel_size']:g} Å per pixel.")
    how = "found by Otsu's rule" if record["threshold_is_automatic"] else "as given"
    page.headline("Threshold", f"{record['threshold']:.4g}", how)
    page.headline("Above it", f"{100 * record['fraction_above_threshold']:.1f} %", "of the box")
    page.headline("Mass there", f"{record['mass_kda']:.0f} kDa", "if it is protein")
    page.headline("Mask above 0.5", f"{100 * record['fraction_of_mask']:.1f} %", "of the box")
    _add_axes(page, pictures)
    page.section("Numbers")
    low = record["lowpass_angstrom"]
    page.facts(
        {
            "low-pass": "none" if low is None else f"{low:g} Å",
            "extension, pixels": record["extend_pixels"],
            "edge, pixels": record["edge_pixels"],
        }
    )
    finish(page, path, record)


def write_simulate_page(folder: Path, pictures: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    n, box, size = record["particles"], record["box"], record["pixel_size"]
    page = begin(
        "Simulated particles", f"{count(n, 'particle')} of {box} x {box} pixels, {size:g} Å per pixel."
    )
    snr = record["arguments"]["snr"]
    page.headline("Signal to noise", "no noise" if snr is None else f"{snr:g}")
    page.headline("Particles", n)
    page.headline("Box", box, f"{box * size:g} Å")
    page.text(
        "The images are in units of the standard deviation of the noise, protein white; truth.mrc is the map that a"
        " perfect reconstruction would give, in the units of the images."
    )
    _add_axes(page, pictures)
    end(page, folder, record)


# --- refine -------------------------------------------------------------------------------------------------

_REFINE = {
    "slices.png": "Central slices of the map.",
    "fsc.png": "Fourier shell correlation of the unregularised half sets.",
    "resolution.png": "Resolution by round. It must have come to rest.",
    "angle_changes.png": "By how much the angles changed from where they began.",
    "shift_changes.png": "By how much the shifts changed.",
}


def write_refine_page(
    folder: Path, title: str, result: Refinement, report: Mapping[str, Any], halves: str
) -> None:
    """``halves`` says how the half sets were refined."""
    from ..report import SHARED_PRIOR

    n, size = report["box"], result.pixel_size
    page = begin(title, f"{count(report['particles'], 'particle')}; {n} x {n} x {n} voxels of {size:g} Å.")
    page.headline("Resolution", short(result.fsc), f"FSC 0.143, {halves}")
    page.headline("Particles", report["particles"])
    page.headline("Rounds", len(result.history), f"stopped by {result.stopped_by}")
    page.headline("Change of angle", f"{report['median_angle_change_degrees']:.2f}°", "median")
    page.headline("Change of shift", f"{report['median_shift_change_pixels']:.2f} px", "median")
    page.headline("Time", f"{report['wall_seconds']:.0f} s", count(report["threads"], "thread"))
    page.section("Resolution")
    rows = [(name, short(result.fsc, t)) for name, t in (("FSC 0.143", 0.143), ("FSC 0.5", 0.5))]
    page.table(rows, caption="of the unregularised half sets")
    if report["arguments"]["reg"] != "none":
        page.text(f"{SHARED_PRIOR} {REFINED_WITH_PRIOR}")
    add_pictures(page, folder, _REFINE)
    page.section("Numbers")
    poses = {f"poses: {name}": k for name, k in report["status"].items() if k}
    flags = {"images without signal": report["no_signal"], "outliers": report["outliers"]}
    used = {"particles in the maps": report["particles_in_maps"]}
    page.facts({**_views(report.get("views")), **poses, **flags, **used})
    if result.history:
        page.section("Rounds")
        page.table(
            [
                (i + 1, h["band"], f"{h['resolution_angstrom']:.2f} Å", f"{100 * h['searched']:.0f} %")
                for i, h in enumerate(result.history)
            ],
            header=("round", "band, Fourier pixels", "FSC 0.143", "searched over all rotations"),
        )
    end(page, folder, report)


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


# --- tilt series --------------------------------------------------------------------------------------------

_SERIES = {
    "slices.png": "Central slices of the map.",
    "spectrum.png": "Power spectrum across the tilt axis. Between the drawn lines, about the z axis, no tilt has"
    " measured: what is there, the method made.",
}


def _begin_series(title: str, series: Mapping[str, Any], size: float | None) -> Report:
    low, high = series["tilt_range_deg"]
    height, width = series["image_shape"]
    lead = f"{count(series['tilts'], 'tilt')} of {width} x {height} pixels, {low:g} to {high:g} degrees"
    return begin(title, lead + (f"; {size:g} Å per pixel." if size else "; the pixel size is not known."))


def _end_series(page: Report, folder: Path, record: Mapping[str, Any]) -> None:
    series = record["series"]
    facts = _known(
        {
            "tilt axis": series["axis"],
            "turned in the images by, degrees": series["in_plane_angle_deg"],
            "matter": series["contrast"],
            "largest shift, pixels": series["largest_shift_pixels"],
            "thickness, pixels": series["thickness_pixels"],
        }
    )
    page.section("The series").facts(facts)
    if series["notes"]:
        page.text("; ".join(series["notes"]) + ".")
    end(page, folder, record)


def write_series_page(folder: Path, title: str, report: Mapping[str, Any]) -> None:
    """The page of `invcryo stet reconstruct`."""
    series = report["series"]
    page = _begin_series(title, series, series["pixel_size"])
    nz, ny, nx = report["shape"]
    low, high = series["tilt_range_deg"]
    page.headline("Method", report["method"])
    page.headline("Map", f"{nx} x {ny} x {nz}", "voxels")
    page.headline("Measured", f"{100 * series['measured_fraction']:.3g} %", "of the pixels")
    page.headline("Tilts", series["tilts"], f"{low:g} to {high:g} degrees")
    if report["lam"] is not None:
        page.headline("Lambda", f"{report['lam']:.4g}")
    page.headline("Time", f"{report['wall_seconds']:.0f} s", count(report["threads"], "thread"))
    page.section("Resolution")
    page.text(
        "One map tells no resolution. Two maps of every other tilt share the prior of the method, so their FSC"
        " flatters; invcryo stet study compares with a truth, or predicts pixels that were held out. Directions in"
        " the missing wedge were not measured, whatever the map shows there."
    )
    add_pictures(page, folder, _SERIES)
    _end_series(page, folder, report)


def write_study_page(
    folder: Path,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, str],
    record: Mapping[str, Any],
) -> None:
    """The page of `invcryo stet study`: its table, and a curve for each of its figures of merit."""
    series = record["series"]
    page = _begin_series(title, series, series["pixel_size"])
    smallest = min((row["measured"] for row in rows), default=1.0)
    page.headline("Reconstructions", len(rows))
    page.headline("Smallest dose", f"{100 * smallest:.3g} %", "of the pixels")
    page.headline("Time", f"{record['wall_seconds']:.0f} s", count(record["threads"], "thread"))
    against = "a truth" if record["arguments"].get("truth") else "the reconstruction from all pixels"
    page.text(
        f"Reconstructions from fewer pixels, compared with {against}. What is compared with a reconstruction shares"
        " its prior and its missing wedge: only a truth, and pixels that were held out, tell of these."
    )
    page.section("Figures of merit")
    page.table(
        [
            (
                row["mode"],
                f"{100 * row['measured']:.3g} %",
                row["method"],
                row["seed"],
                row["tilts"],
                *(None if row.get(name) is None else f"{row[name]:.3g}" for name in metrics),
            )
            for row in rows
        ],
        header=("mode", "dose", "method", "seed", "tilts", *metrics.values()),
    )
    curves = {f"{name}.png": f"{label}, against the dose." for name, label in metrics.items()}
    sections = {
        f"sections_{plane}.png": f"Sections {plane} of the target and of all cells." for plane in ("xz", "xy")
    }
    add_pictures(page, folder, {**curves, **sections, "spectrum.png": _SERIES["spectrum.png"]})
    _end_series(page, folder, record)
