"""Maps in viewers: scripts for ChimeraX, layers for napari. Neither program is needed here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .atomic import atomic_open
from .mrc import Map

__all__ = ["contour_level", "napari_layers", "write_cxc"]

#: Five colours of viridis from dark to light: dark is the best resolution.
_COLOURS = ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725")


def contour_level(volume: ArrayLike) -> float:
    """A level to begin with: mean plus three standard deviations, or half the largest value where that is above all."""
    volume = np.asarray(volume)
    level = float(volume.mean(dtype=np.float64)) + 3 * float(volume.std(dtype=np.float64))
    largest = float(volume.max())
    return level if level < largest else 0.5 * largest


def write_cxc(
    path: str | os.PathLike[str],
    map_file: str | os.PathLike[str],
    level: float,
    *,
    others: Sequence[str | os.PathLike[str]] = (),
    resolution_file: str | os.PathLike[str] | None = None,
    limits: tuple[float, float] | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> None:
    """Write a script for ChimeraX that shows a map at a contour level.

    Parameters
    ----------
    path : path-like
        Ends in .cxc. Files are named relative to its folder, where ChimeraX works while it runs the script, so
        that the folder may be moved or copied as a whole.
    map_file : path-like
    level : float
        Density of the surface: see `contour_level`.
    others : sequence of path-like
        Further maps (the half maps, say) on the same grid: opened, contoured alike, and hidden.
    resolution_file : path-like, optional
        A map of local resolution that colours the surface, from dark (best) to light.
    limits : pair of float, optional
        Resolutions at the ends of the colours, angstrom; needed with ``resolution_file``.
    folder : path-like, optional
        Where the script will lie, if it is moved; names are relative to it.

    Notes
    -----
    ChimeraX itself is not among the tests. Its user guide, the parsers of ``volume`` and ``key``, and for the last five
    published scripts were read for these:
    ``volume`` (style, level, step, color), ``color sample`` (map, palette of ``value,color`` pairs), ``key`` (pairs
    ``color:label``), ``hide`` (models), ``set`` (bgColor), ``lighting`` (soft), ``view``, ``open``, ``close``. A test
    holds scripts to these forms.
    """
    path = Path(path)
    if path.suffix != ".cxc":
        raise ValueError(f"{path}: ChimeraX goes by the suffix; name the script .cxc")
    if not np.isfinite(level):
        raise ValueError(f"{path}: the contour level is {level}")
    folder = path.parent if folder is None else Path(folder)
    lines = [
        "# Open this file in ChimeraX. It closes what is open there, for the numbers of the models.",
        "close",
        f"open {_quoted(folder, map_file)}",
        f"volume #1 style surface level {level:.6g} step 1 color #a8b8c8",
    ]
    for number, other in enumerate(others, 2):
        lines += [
            f"open {_quoted(folder, other)}",
            f"volume #{number} style surface level {level:.6g} step 1",
            f"hide #{number} models",
        ]
    last = []
    if resolution_file is not None:
        if limits is None or not 0 < limits[0] <= limits[1] < np.inf:
            raise ValueError(f"{path}: colours of the local resolution need limits in angstrom, got {limits}")
        number = 2 + len(others)
        span = [f"{v:.4g}" for v in np.linspace(*limits, len(_COLOURS))]
        palette = ":".join(f"{value},{colour}" for value, colour in zip(span, _COLOURS, strict=True))
        lines += [
            f"open {_quoted(folder, resolution_file)}",
            f"hide #{number} models",
            f"color sample #1 map #{number} palette {palette}",
        ]
        last = ["key " + " ".join(f"{c}:{v}" for v, c in zip(span, _COLOURS, strict=True))]
    lines += ["set bgColor white", "lighting soft", "view #1", *last]
    with atomic_open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write("\n".join(lines) + "\n")


def _quoted(folder: Path, name: str | os.PathLike[str]) -> str:
    """``name`` relative to ``folder``, as a word of a ChimeraX command."""
    # both resolved: a way up from a folder that is a link leads elsewhere
    relative = os.path.relpath(os.path.realpath(name), os.path.realpath(folder)).replace(os.sep, "/")
    if any(not c.isprintable() for c in relative) or "\\" in relative or '"' in relative:
        raise ValueError(f"ChimeraX cannot be told of a file named {relative!r}; rename it")
    return f'"{relative}"'


def napari_layers(
    volume: Map | ArrayLike,
    *,
    pixel_size: float | None = None,
    name: str = "map",
    resolution: Map | ArrayLike | None = None,
) -> list[tuple[NDArray, dict[str, Any], str]]:
    """Layer tuples of napari, in angstrom: ``viewer.add_layer(napari.layers.Layer.create(*layer))``.

    Parameters
    ----------
    volume : Map, or array (z, y, x)
    pixel_size : float, optional
        Angstrom per voxel; needed with an array.
    name : str
        Of the layer.
    resolution : Map or array, optional
        Local resolution on the same grid, angstrom, 0 where it is not known: a second layer, in colour.

    Returns
    -------
    list of (data, keywords, "image")
        What `napari.layers.Layer.create` takes, and a reader or sample-data plugin returns.
    """
    data = np.asarray(volume.data if isinstance(volume, Map) else volume)
    if data.ndim != 3:
        raise ValueError(f"a map has three axes (z, y, x), got shape {data.shape}")
    if isinstance(volume, Map):
        size = volume.pixel_size if pixel_size is None else pixel_size
        place = tuple(o + s * size for o, s in zip(volume.origin, volume.start, strict=True))
    elif pixel_size is None:
        raise ValueError("pass pixel_size= in angstrom: an array does not know it")
    else:
        size, place = pixel_size, (0.0, 0.0, 0.0)
    where = {"scale": (size,) * 3, "translate": place}
    low, high = (float(v) for v in np.percentile(data, (0.5, 99.9)))
    layers: list[tuple[NDArray, dict[str, Any], str]] = [
        (
            data,
            {
                "name": name,
                **where,
                "contrast_limits": (low, high if high > low else low + 1.0),
                "colormap": "gray",
                "rendering": "iso",
                "iso_threshold": contour_level(data),
            },
            "image",
        )
    ]
    if resolution is not None:
        values = np.asarray(resolution.data if isinstance(resolution, Map) else resolution)
        if values.shape != data.shape:
            raise ValueError(f"a map of {data.shape} voxels, but a local resolution of {values.shape}")
        known = values[np.isfinite(values) & (values > 0)]
        if known.size == 0:
            raise ValueError("the resolution is known nowhere: no voxel is above 0")
        first, last = (float(v) for v in np.percentile(known, (2, 98)))
        layers.append(
            (
                values,
                {
                    "name": "local resolution (Å)",
                    **where,
                    "contrast_limits": (first, last if last > first else first + 1.0),
                    "colormap": "viridis",
                    "blending": "additive",
                    "opacity": 0.6,
                },
                "image",
            )
        )
    return layers
