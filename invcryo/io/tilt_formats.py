"""Tilt series in the formats of microscopes and of HyperSpy; the packages that read them are optional."""

from __future__ import annotations

import struct
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

#: What readers raise at files that are not theirs, or cut short.
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    LookupError,
    ImportError,
    AttributeError,
    TypeError,
    struct.error,
)


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
    found = _ncem_series(path) if suffix == "emd" else None
    if found is not None:
        return found
    plugins = [p for p in rsciio.IO_PLUGINS if suffix in [e.lower() for e in p["file_extensions"]]]
    if not plugins:
        raise ValueError(
            f"{path}: no reader knows .{suffix}; give a stack as .mrc, .st, .ali, .tif, .dm3, .emd or .hspy"
        )
    problems = []
    for plugin in plugins:
        try:
            found = importlib.import_module(plugin["api"]).file_reader(str(path))
        except _UNREADABLE as error:
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


def _ncem_series(path: Path) -> FoundSeries | None:
    """The series of an EMD file as NCEM defines them; None for another kind, such as Velox writes.

    RosettaSciIO turns the order of the axes round and takes the tilts for evenly spaced.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            f"{path}: EMD files are read by h5py; install it with pip install 'invcryo[stem]'"
        ) from error
    if not h5py.is_hdf5(path):
        return None
    with h5py.File(path, "r") as file:
        groups: list[Any] = []

        def collect(_: str, item: Any) -> None:
            if item.attrs.get("emd_group_type") == 1 and "data" in item:
                groups.append(item)

        file.visititems(collect)
        if not groups:
            return None
        stacks = [group for group in groups if group["data"].ndim == 3]
        if len(stacks) != 1:
            raise ValueError(
                f"{path} holds {len(stacks)} stacks of images ({[g['data'].shape for g in groups]}); export the one"
                " that is meant"
            )
        first = 0 if "dim0" in stacks[0] else 1
        dims = [stacks[0][f"dim{first + k}"] for k in range(3)]
        axes: list[dict[str, Any]] = [
            {
                "name": _text(dim.attrs.get("name")),
                "units": _text(dim.attrs.get("units")).replace("[", "").replace("]", "").replace("_", ""),
                "axis": np.asarray(dim, dtype=float),
            }
            for dim in dims
        ]
        data = np.asarray(stacks[0]["data"])
    tilts = [k for k, a in enumerate(axes) if _is_angle(a) and len(a["axis"]) == data.shape[k]]
    if len(tilts) != 1 or tilts[0] == 1:
        raise ValueError(
            f"{path}: one axis of a tilt series has degrees or radians, the first or the last; the axes are"
            f" {', '.join(repr(a['name']) + ' in ' + repr(a['units']) for a in axes)}"
        )
    if tilts[0] == 2:  # (x, y, tilt), as tomviz writes them
        data, axes = data.transpose(2, 1, 0), axes[::-1]
    for a in axes[1:]:
        a["scale"] = float(a["axis"][1] - a["axis"][0]) if len(a["axis"]) > 1 else 1.0
    return _from_axes(data, axes, str(path), "y")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else "" if value is None else str(value)


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
    angles = None
    if _is_angle(tilt):
        if "axis" in tilt:  # not evenly spaced
            angles = np.asarray(tilt["axis"], dtype=float)
        else:
            angles = float(tilt["offset"]) + float(tilt["scale"]) * np.arange(len(data))
        if _unit(tilt) in _RADIANS:
            angles = np.rad2deg(angles)
    return FoundSeries(data, source, angles, size, axis, tuple(notes))


def _unit(axis: dict[str, Any]) -> str:
    return str(axis.get("units", "")).strip().lower().replace("\u03bc", "µ")


def _is_angle(axis: dict[str, Any]) -> bool:
    return _unit(axis) in (*_DEGREES, *_RADIANS)


def _angstrom(axis: dict[str, Any]) -> float | None:
    unit = _unit(axis)
    return abs(float(axis["scale"])) * _LENGTHS[unit] if unit in _LENGTHS else None
