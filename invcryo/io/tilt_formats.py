"""Tilt series in the formats of microscopes and of HyperSpy; the packages that read them are optional."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .tilt_series import Axis

__all__ = ["FoundSeries", "from_signal", "is_signal", "read_microscope_file", "read_tiff"]

#: Angstrom per unit of length, as HyperSpy and RosettaSciIO write them.
_LENGTHS = {
    "å": 1.0,
    "a": 1.0,
    "angstrom": 1.0,
    "nm": 10.0,
    "µm": 1e4,
    "um": 1e4,
    "micron": 1e4,
    "m": 1e10,
    "pm": 0.01,
}
_DEGREES = ("deg", "°", "degree", "degrees")
_RADIANS = ("rad", "radian", "radians")


@dataclass(frozen=True, eq=False)
class FoundSeries:
    """What a file holds: images (n, height, width), and of the rest what it states."""

    images: NDArray
    source: str
    angles_deg: NDArray | None = None
    pixel_size: float | None = None
    axis: Axis = "y"
    notes: tuple[str, ...] = ()


def read_microscope_file(path: Path) -> FoundSeries:
    """DM3, DM4, EMD, HSPY and what else RosettaSciIO reads."""
    try:
        import rsciio
    except ImportError as error:
        raise ImportError(
            f"{path}: files of this kind are read by RosettaSciIO; install it with pip install 'invcryo[stem]', or"
            " convert the file to MRC"
        ) from error
    import importlib

    suffix = path.suffix.lower().lstrip(".")
    plugins = [p for p in rsciio.IO_PLUGINS if suffix in [e.lower() for e in p["file_extensions"]]]
    if not plugins:
        raise ValueError(
            f"{path}: no reader knows .{suffix}; give a stack as .mrc, .st, .ali, .tif, .dm3, .emd or .hspy"
        )
    problems = []
    for plugin in plugins:
        try:
            found = importlib.import_module(plugin["api"]).file_reader(str(path))
        except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
            problems.append(f"{plugin['name']}: {error}")
            continue
        stacks = [entry for entry in found if np.ndim(entry["data"]) == 3]
        if len(stacks) != 1:
            raise ValueError(
                f"{path} holds {len(stacks)} stacks of images ({[np.shape(e['data']) for e in found]}); export the"
                " one that is meant"
            )
        return _from_axes(np.asarray(stacks[0]["data"]), stacks[0]["axes"], str(path), "y")
    raise ValueError(f"{path} could not be read: {'; '.join(problems)}")


def read_tiff(path: Path) -> FoundSeries:
    """The pages of a TIFF file; tilts and pixel size are to be given."""
    try:
        import tifffile
    except ImportError as error:
        raise ImportError(
            f"{path}: TIFF files are read by tifffile; install it with pip install 'invcryo[stem]'"
        ) from error
    with tifffile.TiffFile(path) as file:
        shapes = sorted({page.shape for page in file.pages})
        if len(shapes) > 1:
            raise ValueError(
                f"{path}: the images differ in size: {', '.join(map(str, shapes))}; crop or pad them"
            )
        images = file.asarray()
    return FoundSeries(images, str(path))


def is_signal(source: Any) -> bool:
    """Whether it looks like a HyperSpy signal, which is never imported."""
    return hasattr(source, "data") and hasattr(source, "axes_manager")


def from_signal(signal: Any) -> FoundSeries:
    """A HyperSpy signal with one navigation axis (the tilts) and two signal axes; ETSpy's tilt axis is x."""
    title = (
        str(getattr(getattr(getattr(signal, "metadata", None), "General", None), "title", "")) or "the signal"
    )
    manager = signal.axes_manager
    navigation, image = list(manager.navigation_axes), list(manager.signal_axes)
    if len(navigation) != 1 or len(image) != 2:
        raise ValueError(
            f"{title}: a tilt series has one navigation axis (the tilts) and two signal axes, found"
            f" {len(navigation)} and {len(image)}"
        )
    axes = [
        {"name": str(a.name), "scale": a.scale, "offset": a.offset, "units": str(a.units), "size": a.size}
        for a in (navigation[0], image[1], image[0])  # HyperSpy counts signal axes from x
    ]
    found = _from_axes(np.asarray(signal.data), axes, title, "x")
    tilts = getattr(signal, "tilts", None)  # of ETSpy
    if tilts is not None:
        values = np.asarray(getattr(tilts, "data", tilts), dtype=float).ravel()
        found = FoundSeries(found.images, title, values, found.pixel_size, "x", found.notes)
    return found


def _from_axes(data: NDArray, axes: list[dict[str, Any]], source: str, axis: Axis) -> FoundSeries:
    tilt, row, column = axes
    notes = []
    sizes = [_angstrom(a) for a in (row, column)]
    size = sizes[1] if sizes[1] is not None else sizes[0]
    if None not in sizes and abs(sizes[0] / sizes[1] - 1) > 1e-3:  # type: ignore[operator]
        raise ValueError(f"{source}: pixels of {sizes[0]:g} x {sizes[1]:g} angstrom; resample to square ones")
    if size is None:
        notes.append(f"no length in the calibration of the images ({column.get('units')!r})")
    unit = str(tilt.get("units", "")).strip().lower()
    angles = None
    if unit in _DEGREES or unit in _RADIANS:
        angles = float(tilt["offset"]) + float(tilt["scale"]) * np.arange(len(data))
        if unit in _RADIANS:
            angles = np.rad2deg(angles)
    return FoundSeries(data, source, angles, size, axis, tuple(notes))


def _angstrom(axis: dict[str, Any]) -> float | None:
    unit = str(axis.get("units", "")).strip().lower().replace("\u03bc", "µ")
    return abs(float(axis["scale"])) * _LENGTHS[unit] if unit in _LENGTHS else None
