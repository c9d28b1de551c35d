"""Tilt series that others published, reconstructed from all and from part of their pixels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ..backend import inner
from ..io import read_map, read_tilt_series, straighten
from ..io.tilt_series import TiltSeries
from ..metrics import correlation, elongation, fsc, psnr
from ..stet import estimate_axis, image_sampling, line_integrals
from .cells import StudyFolder, write_table
from .tilt_study import reconstructed

__all__ = ["needle", "needle_study", "subtomogram", "subtomogram_study", "vesicle", "vesicle_study"]


def needle(folder: str | os.PathLike[str]) -> TiltSeries:
    """The HAADF series of a layered needle (of the ETSpy project), -90 to 90 degrees, made straight.

    Raw: its axis lies some 11 degrees off x, and the images drift. Both are estimated, and taken out by interpolation.
    """
    folder = Path(folder)
    series = read_tilt_series(
        folder / "haadf_needle_tilts.mrc",
        angles=folder / "haadf_needle.rawtlt",
        axis="x",
        check=False,  # 18 nm a pixel is what it has
    )
    series = line_integrals(series)
    return straighten(estimate_axis(series).apply(series))


def vesicle(folder: str | os.PathLike[str]) -> tuple[TiltSeries, NDArray]:
    """GENFIRE's projections of a vesicle, 0 to 180 degrees in steps of 3, and the vesicle."""
    folder = Path(folder)
    series = read_tilt_series(folder / "vesicle_tilts.mrc", angles=folder / "vesicle.rawtlt", pixel_size=10.0)
    return series, read_map(folder / "vesicle_ground_truth.mrc").data


def subtomogram(folder: str | os.PathLike[str]) -> tuple[TiltSeries, NDArray]:
    """Images about a particle in a cryo tomogram (of the PyTom project), and PyTom's back-projection of them.

    -60 to 60 degrees in steps of 3, with shifts. What PyTom has stored is weighted by a ramp across the tilt axis; the
    ramp is taken out again, but for the frequency that it has set to zero. Matter is dark in both.
    """
    folder = Path(folder)
    series = read_tilt_series(folder / "p1_tilts.mrc", angles=folder / "p1.rawtlt", check=False)
    width = series.images.shape[2]
    spectra = np.fft.rfft(series.images, axis=2)
    ramp = 2 * np.fft.rfftfreq(width)
    spectra[..., 1:] /= ramp[1:]
    images = np.fft.irfft(spectra, width, axis=2).astype(np.float32)
    shifts = np.loadtxt(folder / "p1_offset_xy_px.txt")
    theirs = np.fromfile(folder / "p1.em", "<f4", offset=512).reshape(100, 100, 100)
    return series.replace(images=images, shifts=shifts), theirs


def needle_study(
    data: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    methods: Sequence[str] = ("tv", "sirt"),
    **options: Any,
) -> list[dict[str, Any]]:
    """The needle from 30 % random pixels, and from -70 to 70 degrees, against all pixels of all tilts.

    Parameters
    ----------
    data : path-like
        Folder of the series.
    folder : path-like
        Of the results.
    methods : sequence of str
        Of `reconstruct_series`; each is compared with its own map from everything.
    **options
        Of `reconstruct_series`.
    """
    series = needle(data)
    inner = series[abs(series.angles_deg) <= 70]
    parts = {
        "full": series,
        "30_percent": _part(series),
        "70_degrees": inner,
        "70_degrees_30_percent": _part(inner),
    }
    return _reconstruct_parts(folder, parts, methods, options, None)


def vesicle_study(
    data: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    methods: Sequence[str] = ("tv", "sirt"),
    **options: Any,
) -> list[dict[str, Any]]:
    """The vesicle from all tilts, without those from 60 to 120 degrees, and from 30 % of the pixels of either.

    Parameters as of `needle_study`; compared with the truth.
    """
    series, truth = vesicle(data)
    wedge = series[(series.angles_deg <= 60) | (series.angles_deg >= 120)]
    parts = {
        "full": series,
        "30_percent": _part(series),
        "wedge": wedge,
        "wedge_30_percent": _part(wedge),
    }
    return _reconstruct_parts(folder, parts, methods, options, truth)


def subtomogram_study(
    data: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    methods: Sequence[str] = ("tv", "wbp"),
    **options: Any,
) -> list[dict[str, Any]]:
    """The particle from all and from 30 % of its pixels, beside PyTom's map.

    Parameters as of `needle_study`, ``positivity`` off by default, since there is matter everywhere. All maps, PyTom's
    too, are compared after a Gaussian of 2 pixels: voxel by voxel its map is mostly noise. PyTom's, which has units of
    its own, is brought to ours by one factor, from our back-projection.
    """
    options.setdefault("positivity", False)
    series, theirs = subtomogram(data)
    ours, _ = reconstructed(series, "wbp", "auto", {"positivity": False})
    theirs *= inner(theirs, ours) / inner(theirs, theirs)
    parts = {"full": series, "30_percent": _part(series)}
    return _reconstruct_parts(folder, parts, methods, options, theirs, smooth=2.0, called="PyTom")


def _part(series: TiltSeries) -> TiltSeries:
    return image_sampling(series.images.shape, 0.3, rng=0).apply(series)


def _reconstruct_parts(
    folder: str | os.PathLike[str],
    parts: Mapping[str, TiltSeries],
    methods: Sequence[str],
    options: Mapping[str, Any],
    truth: NDArray | None,
    *,
    smooth: float = 0.0,
    called: str = "truth",
) -> list[dict[str, Any]]:
    """Each part by each method, against the truth or else the method's map of the first part."""
    if truth is not None and smooth:
        truth = gaussian_filter(truth, smooth)
    first = next(iter(parts.values()))
    lam = options.get("lam", "auto")
    settings = {name: value for name, value in options.items() if name != "lam"}
    job = {
        "images": first.images,
        "angles": first.angles,
        "lam": lam,
        "settings": repr(sorted(settings.items())),
    }
    place = StudyFolder(folder, job)
    rows, volumes = [], {}
    for method in methods:
        target = truth
        for name, part in parts.items():

            def compute(part: TiltSeries = part, method: str = method) -> Any:
                volume, found = reconstructed(part, method, lam, settings)
                volume = gaussian_filter(volume, smooth) if smooth else volume
                return {"lam": found}, {"volume": volume}

            row = place.cell(f"{name}-{method}", compute)
            volume = place.arrays(f"{name}-{method}")["volume"]
            target = volume if target is None else target
            span = float(target.max() - target.min())
            rows.append(
                {
                    "data": name,
                    "method": method,
                    "tilts": len(part),
                    "measured": part.fraction,
                    "correlation": correlation(volume, target),
                    "psnr": None if volume is target else psnr(volume, target, data_range=span),
                    "fsc05_pixels": fsc(volume, target, pixel_size=1.0).resolution(0.5, interpolate=True),
                    "elongation": elongation(volume, across=2 if part.axis == "y" else 1, reference=target),
                    **row,
                }
            )
            volumes[name, method] = volume
    write_table(folder, rows)
    _draw(place.path, volumes, list(parts), methods, "xz" if first.axis == "y" else "yz", truth, called)
    return rows


def _draw(
    folder: Path,
    volumes: Mapping[tuple[str, str], NDArray],
    names: Sequence[str],
    methods: Sequence[str],
    plane: str,
    truth: NDArray | None,
    called: str,
) -> None:
    """Sections across the tilt axis and through it, by part and method."""
    try:
        from .. import plot

        plot.common.new_axes((1, 1))
    except ImportError:
        return
    for cut in (plane, "xy"):
        grid = [[volumes[name, method] for name in names] for method in methods]
        columns = [name.replace("_", " ") for name in names]
        if truth is not None:
            grid, columns = [[truth, *line] for line in grid], [called, *columns]
        panels = plot.section_grid(grid, rows=list(methods), columns=columns, plane=cut)
        plot.save(panels, folder / f"sections_{cut}.png")
