"""How few pixels of a tilt series are enough: every way of sampling with every way of reconstructing, at equal dose."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..io.tilt_series import TiltSeries
from ..metrics import elongation, fsc, psnr, ssim
from ..operators import SingleAxisProjector
from ..progress import track
from ..stet import add_poisson_noise, held_out_error, image_sampling, tilt_sampling
from ..stet.sampling import Sampling
from ..window import BandLimited
from .cells import StudyFolder, write_table
from .lines import line_figures, line_profiles, structure_lines

__all__ = ["METRICS", "figures_of_merit", "reconstructed", "summary", "tilt_study"]

logger = logging.getLogger(__name__)

#: Columns of the table that compare reconstructions, and what they are.
METRICS = {
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "fsc05_pixels": "resolution at FSC 0.5 (pixels)",
    "held_out": "error of unmeasured pixels (standard deviations)",
    "elongation": "elongation along the beam",
    "membranes": "agreement of lines across membranes",
    "filaments": "agreement of lines across filaments",
}


def tilt_study(
    series: TiltSeries,
    folder: str | os.PathLike[str],
    *,
    truth: NDArray | None = None,
    fractions: Sequence[float] = (0.5, 0.3, 0.2, 0.1, 0.03),
    modes: Sequence[str] = ("image", "tilt"),
    methods: Sequence[str] = ("tv",),
    seeds: Sequence[int] = (0,),
    kind: str = "pixel",
    electrons: float | None = None,
    equal_total: bool = False,
    lam: str | float = "auto",
    reference: str = "tv",
    settings: Mapping[str, Any] | None = None,
    pictures: bool = True,
    fresh: bool = False,
    progress: bool | None = None,
) -> list[dict[str, Any]]:
    """Reconstruct a series from parts of its pixels, and compare with the truth or with all of them.

    Parameters
    ----------
    series : TiltSeries
        Aligned, matter bright on a background of zero.
    folder : path-like
        Of the results. What it holds of this study already is not computed again.
    truth : ndarray, (z, y, x), optional
        What to compare with; by default the reconstruction of the whole series by ``reference``. Only a truth has its
        membranes and filaments looked for, see `structure_lines`.
    fractions : sequence of float
    modes : sequence of str
        "image": a random part of the pixels of every tilt. "tilt": a part of the tilts, whole. Equal dose.
    methods : sequence of str
        Of `reconstruct_series`.
    seeds : sequence of int
        Of masks and noise. A cell without anything random is computed for the first one only.
    kind : str
        Of the masks; see `image_sampling`.
    electrons : float, optional
        Poisson noise with that many detected electrons per pixel of a full scan, for a series without noise.
    equal_total : bool
        Spend the dose of the full series on what is measured; see `add_poisson_noise`.
    lam : "auto" or float
        Weight of the regulariser. Found by held-out pixels for the first seed, and kept for the others.
    reference : str
        Method for the whole series where there is no truth.
    settings : mapping, optional
        Further arguments of `reconstruct_series`.
    pictures : bool
        Draw curves, sections and spectra (needs matplotlib).
    fresh : bool
        Begin anew.

    Returns
    -------
    list of dict
        The table: ``mode``, ``fraction``, ``method``, ``seed``, ``tilts``, ``measured``, ``lam``, `METRICS`,
        ``seconds``, ``note``. It is in ``table.csv`` and ``table.json`` as well.
    """
    for mode in modes:
        if mode not in ("image", "tilt"):
            raise ValueError(f"a mode is 'image' or 'tilt', got {mode!r}")
    if not (fractions and methods and seeds):
        raise ValueError("a study needs at least one fraction, one method and one seed")
    settings = dict(settings or {})
    job = {
        "images": series.images,
        "mask": series.measured,
        "angles": series.angles,
        "axis": series.axis,
        "truth": "none" if truth is None else truth,
        "kind": kind,
        "electrons": electrons or 0.0,
        "equal_total": equal_total,
        "lam": lam,
        "reference": reference if truth is None else "truth",
        "settings": repr(sorted(settings.items())),
    }
    place = StudyFolder(folder, job, fresh=fresh)
    full = Sampling(np.arange(len(series)), None, series.images.shape, "full", 1.0)
    target = truth
    lines = {} if truth is None else structure_lines(truth)

    def compute(sampling: Sampling, method: str, seed: int, weight: Any) -> Any:
        part = sampling.apply(series)
        if electrons is not None:
            part = add_poisson_noise(
                part, electrons, equal_total=equal_total, full_fraction=sampling.fraction, rng=seed
            )
        volume, found = reconstructed(part, method, weight, settings)
        against = volume if target is None else target
        row = {
            "tilts": len(part),
            "measured": sampling.fraction,
            "lam": found,
            **figures_of_merit(volume, against, series, sampling, pixel_size=series.pixel_size),
            **line_figures(seen := line_profiles(volume, lines), true := line_profiles(against, lines)),
            "note": "; ".join(sampling.notes),
        }
        kept = _kept(volume, against, keep=sampling is full)
        return row, kept | seen | {f"target_{kind}": values for kind, values in true.items()}

    rows = []
    first_methods = list(dict.fromkeys([*([] if truth is not None else [reference]), *methods]))
    for method in first_methods:
        key = f"full-{method}"
        row = place.cell(key, lambda method=method: compute(full, method, seeds[0], lam))  # type: ignore[misc]
        if truth is None and method == reference:
            target = place.arrays(key)["volume"]
        rows.append({"mode": "full", "fraction": 1.0, "method": method, "seed": seeds[0], **row})
    cells = [
        (mode, fraction, method, seed)
        for fraction in fractions
        for mode in modes
        for method in methods
        for seed in (seeds if mode == "image" or electrons is not None else seeds[:1])
    ]
    for mode, fraction, method, seed in track(cells, "study", unit="cell", show=progress):
        key = f"{mode}-{fraction:g}-{method}-{seed}"
        weight: Any = lam
        if lam == "auto" and seed != seeds[0]:
            known = place.row(f"{mode}-{fraction:g}-{method}-{seeds[0]}")
            weight = lam if known is None or known.get("lam") is None else known["lam"]
        shape = series.images.shape
        if mode == "image":
            sampling = image_sampling(shape, fraction, kind=kind, rng=seed)  # type: ignore[arg-type]
        else:
            sampling = tilt_sampling(series.angles, fraction, image_shape=shape[1:])
        row = place.cell(key, lambda s=sampling, m=method, d=seed, w=weight: compute(s, m, d, w))  # type: ignore[misc]
        rows.append({"mode": mode, "fraction": fraction, "method": method, "seed": seed, **row})
        if row["note"]:
            logger.warning("%s at %g: %s", mode, fraction, row["note"])
    write_table(place.path, rows)
    if pictures:
        _draw(place, rows, series, seeds[0])
    return rows


def figures_of_merit(
    volume: NDArray,
    target: NDArray,
    series: TiltSeries,
    sampling: Sampling,
    *,
    pixel_size: float | None = None,
) -> dict[str, Any]:
    """`METRICS` of a reconstruction; the data range of PSNR and SSIM is that of the target, ``data_range``."""
    span = float(target.max() - target.min())
    same = volume is target
    unseen = series.measured & ~sampling.full_mask()
    held = None
    if unseen.any():
        held = held_out_error(series.images, _projected(volume, series), unseen)
    curve = fsc(volume, target, pixel_size=1.0)
    return {
        "psnr": None if same else psnr(volume, target, data_range=span),
        "ssim": None if same or min(volume.shape) < 11 else ssim(volume, target, data_range=span),
        "fsc05_pixels": None if same else curve.resolution(0.5, interpolate=True),
        "held_out": held,
        "elongation": elongation(volume, across=2 if series.axis == "y" else 1),
        "elongation_of_target": elongation(target, across=2 if series.axis == "y" else 1),
        "data_range": span,
        "pixel_size": pixel_size,
    }


def summary(rows: Sequence[Mapping[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Mean, standard deviation, lowest and highest of a metric over the seeds, for each mode, fraction and method."""
    groups: dict[tuple, list[float]] = {}
    for row in rows:
        if row.get(metric) is not None:
            groups.setdefault((row["mode"], row["fraction"], row["method"]), []).append(float(row[metric]))
    return [
        {
            "mode": mode,
            "fraction": fraction,
            "method": method,
            "metric": metric,
            "seeds": len(values),
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
            "lowest": min(values),
            "highest": max(values),
        }
        for (mode, fraction, method), values in groups.items()
    ]


def reconstructed(
    series: TiltSeries, method: str, lam: Any, settings: Mapping[str, Any]
) -> tuple[NDArray, float | None]:
    """The map of a series by a method of `reconstruct_series`, and the weight of its regulariser."""
    from ..stet.reconstruction import reconstruct_series

    result = reconstruct_series(
        series.images,
        series.angles,
        mask=series.mask,
        method=method,
        lam=lam,
        thickness=series.thickness,
        axis=series.axis,
        in_plane_angle=series.in_plane_angle,
        shifts=series.shifts,
        **settings,
    )
    return result.volume, result.lam


def _projected(volume: NDArray, series: TiltSeries) -> NDArray:
    A = SingleAxisProjector(
        series.angles,
        BandLimited(),
        volume.shape,
        series.images.shape[1:],
        axis=series.axis,
        in_plane_angle=series.in_plane_angle,
        shifts=series.shifts,
        dtype=volume.dtype,
    )
    return A(volume)


def _kept(volume: NDArray, target: NDArray, *, keep: bool) -> dict[str, NDArray]:
    """Sections, the FSC curve and a profile of a cell; the whole volume of a full series."""
    nz, ny, nx = volume.shape
    kept = {
        "xz": volume[:, ny // 2],
        "xy": volume[nz // 2],
        "yz": volume[:, :, nx // 2],
        "profile": volume[nz // 2, ny // 2],
        "fsc": fsc(volume, target, pixel_size=1.0).correlation,
        "target_xz": target[:, ny // 2],
        "target_xy": target[nz // 2],
        "target_profile": target[nz // 2, ny // 2],
    }
    return kept | ({"volume": volume} if keep else {})


def _draw(place: StudyFolder, rows: Sequence[Mapping[str, Any]], series: TiltSeries, seed: int) -> None:
    try:
        from .. import plot

        plot.common.new_axes((1, 1))
    except ImportError:
        logger.warning("no pictures: matplotlib is not installed; pip install 'invcryo[plot]'")
        return
    for metric, label in METRICS.items():
        if any(row.get(metric) is not None and row["mode"] != "full" for row in rows):
            part = [row for row in rows if row["mode"] != "full"]
            plot.save(plot.dose_curves(part, metric, label=label), place.path / f"{metric}.png")
    fractions = sorted({row["fraction"] for row in rows if row["mode"] != "full"}, reverse=True)
    kinds = list(dict.fromkeys((row["mode"], row["method"]) for row in rows if row["mode"] != "full"))
    columns = ["target", *(f"{100 * f:g} %" for f in fractions)]
    for plane in ("xz", "xy"):
        grid, some = [], None
        for mode, method in kinds:
            line: list[Any] = []
            for fraction in fractions:
                key = f"{mode}-{fraction:g}-{method}-{seed}"
                arrays = place.arrays(key) if place.row(key) else None
                line.append(None if arrays is None else arrays[plane])
                some = some if arrays is None else arrays
            grid.append([None if some is None else some[f"target_{plane}"], *line])
        panels = plot.section_grid(grid, rows=[f"{a}, {b}" for a, b in kinds], columns=columns, plane=plane)
        plot.save(panels, place.path / f"sections_{plane}.png")
    volume = place.arrays(f"full-{rows[0]['method']}")["volume"]
    spectrum = plot.wedge_spectrum(volume, series.angles, axis=series.axis)
    plot.save(spectrum, place.path / "spectrum.png")
