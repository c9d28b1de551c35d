"""What the thesis found with a simulated tilt series (Donati 2020, section 3.6.1), each with its spread over seeds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..window import KaiserBessel
from .cells import write_table
from .simulated_series import simulated_cell
from .tilt_study import summary, tilt_study

__all__ = ["one_step_against_two", "random_pixels_against_tilts"]

_SHAPE = (64, 128, 128)
_COMPARED = (
    "psnr",
    "ssim",
    "fsc05_pixels",
    "held_out",
    "membranes",
    "membranes_contrast",
    "filaments",
    "filaments_contrast",
)


def random_pixels_against_tilts(
    folder: str | os.PathLike[str],
    *,
    shape: Sequence[int] = _SHAPE,
    fractions: Sequence[float] = (0.5, 0.1, 0.03),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    electrons: float | None = 100.0,
    angles_deg: ArrayLike | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Random image-downsampling against uniform tilt-downsampling at equal dose, both reconstructed with TV.

    Parameters
    ----------
    folder : path-like
        Of the results; ``profiles.png`` shows lines across membranes and filaments, in the mean, and one through the
        middle; ``comparison.csv`` the differences.
    shape : (nz, ny, nx)
        Of the cell.
    angles_deg : array_like, optional
        Tilts; by default 141 from -70 to 70 degrees.
    electrons : float, optional
        Detected per pixel on average, so that both ways have seeds; None for no noise.
    **options
        Of `tilt_study`. The window is that of the thesis, ``KaiserBessel.wide()``, unless ``settings`` name one.

    Returns
    -------
    list of dict
        For each fraction and metric: ``image`` and ``tilt`` (means over the seeds), ``difference`` of the means,
        ``sd`` (of one seed's value, the larger of the two), ``seeds``.
    """
    return _compare(
        folder,
        shape,
        fractions,
        seeds,
        electrons,
        angles_deg,
        modes=("image", "tilt"),
        methods=("tv",),
        options=options,
    )


def one_step_against_two(
    folder: str | os.PathLike[str],
    *,
    shape: Sequence[int] = _SHAPE,
    fractions: Sequence[float] = (0.5, 0.2),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    electrons: float | None = 100.0,
    angles_deg: ArrayLike | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """The reconstruction from the measured pixels against inpainting the images first (Saghi et al. 2015), with TV.

    As `random_pixels_against_tilts`, with ``tv`` and ``two-step`` in the place of ``image`` and ``tilt``.
    """
    return _compare(
        folder,
        shape,
        fractions,
        seeds,
        electrons,
        angles_deg,
        modes=("image",),
        methods=("tv", "two-step"),
        options=options,
    )


def _compare(
    folder: str | os.PathLike[str],
    shape: Sequence[int],
    fractions: Sequence[float],
    seeds: Sequence[int],
    electrons: float | None,
    angles_deg: ArrayLike | None,
    *,
    modes: Sequence[str],
    methods: Sequence[str],
    options: dict[str, Any],
) -> list[dict[str, Any]]:
    series, truth = simulated_cell(shape, angles_deg=angles_deg)
    options = {**options, "settings": {"window": KaiserBessel.wide(), **options.get("settings", {})}}
    rows = tilt_study(
        series,
        folder,
        truth=truth,
        fractions=fractions,
        modes=modes,
        methods=methods,
        seeds=seeds,
        electrons=electrons,
        **options,
    )
    column = "mode" if len(modes) > 1 else "method"
    names = modes if len(modes) > 1 else methods
    table = []
    for metric in _COMPARED:
        means = summary([r for r in rows if r["mode"] != "full"], metric)
        for fraction in fractions:
            pair = {m[column]: m for m in means if m["fraction"] == fraction}
            if set(names) <= set(pair):
                a, b = (pair[name] for name in names)
                table.append(
                    {
                        "metric": metric,
                        "fraction": fraction,
                        names[0]: a["mean"],
                        names[1]: b["mean"],
                        "difference": a["mean"] - b["mean"],
                        "sd": max(a["sd"], b["sd"]),
                        "seeds": min(a["seeds"], b["seeds"]),
                    }
                )
    place = Path(folder)
    write_table(place, table, "comparison")
    if options.get("pictures", True):
        _draw_profiles(place, rows, column, seeds[0], fractions, series.pixel_size)
    return table


def _draw_profiles(
    place: Path,
    rows: Sequence[dict[str, Any]],
    column: str,
    seed: int,
    fractions: Sequence[float],
    pixel_size: float | None,
) -> None:
    try:
        from .. import plot

        plot.common.new_axes((1, 1))
    except ImportError:
        return
    titles = {
        "membranes": "across membranes",
        "filaments": "across filaments",
        "profile": "through the middle",
    }
    curves: dict[tuple[float, str], dict[str, Any]] = {}
    for row in rows:
        if row["mode"] == "full" or row["seed"] != seed:
            continue
        key = f"{row['mode']}-{row['fraction']:g}-{row['method']}-{seed}"
        with np.load(place / "cells" / f"{key}.npz") as arrays:
            for kind in titles:
                true, seen = arrays[f"target_{kind}"], arrays[kind]
                if not len(true):
                    continue  # there is no such structure
                if kind != "profile":
                    true, seen = true.mean(axis=0), seen.mean(axis=0)
                curves.setdefault((row["fraction"], kind), {"truth": true})[row[column]] = seen
    kinds = [kind for kind in titles if any(k == kind for _, k in curves)]
    panels = plot.common.new_panels(len(fractions), len(kinds), (4.0 * len(kinds), 2.6 * len(fractions)))
    for line, fraction in zip(panels, fractions, strict=True):
        for ax, kind in zip(line, kinds, strict=True):
            plot.profiles(curves[fraction, kind], pixel_size=pixel_size, ax=ax)
            ax.set_title(f"{100 * fraction:g} %, {titles[kind]}", fontsize=9)
    plot.save(panels, place / "profiles.png")
