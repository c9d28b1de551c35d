"""Read and write tilt series: MRC stacks with IMOD's and SerialEM's files beside them, and other formats."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .atomic import atomic_open, atomic_path
from .mrc import StackWriter, open_stack
from .tilt_checks import suspicions
from .tilt_formats import FoundSeries, from_signal, is_signal, read_microscope_file, read_tiff
from .tilt_series import Axis, Contrast, TiltSeries, radians_from_file

__all__ = ["apply_xf", "read_mdoc", "read_tilt_series", "read_xf", "straighten", "write_tilt_series"]

logger = logging.getLogger(__name__)

_MRC = (".mrc", ".mrcs", ".st", ".ali", ".rec", ".map")
_TIFF = (".tif", ".tiff")
#: What our own JSON file calls itself, and the fields of a series that it holds.
_FORMAT = "invcryo tilt series 1"


def read_tilt_series(
    source: Any,
    *,
    angles: ArrayLike | str | os.PathLike[str] | None = None,
    degrees: bool = True,
    pixel_size: float | None = None,
    axis: Axis | None = None,
    in_plane_angle_deg: float | None = None,
    flip_tilt: bool = False,
    contrast: Contrast | None = None,
    thickness: float | None = None,
    mask: ArrayLike | str | os.PathLike[str] | None = None,
    xf: str | os.PathLike[str] | bool | None = None,
    check: bool = True,
) -> TiltSeries:
    """Read a tilt series, with whatever lies beside it, and check that it makes sense.

    Parameters
    ----------
    source : path-like or HyperSpy signal
        ``.mrc .st .ali .rec`` (axis y unless stated, as IMOD has it); ``.tif``; ``.dm3 .dm4 .emd .hspy`` and what
        else RosettaSciIO reads (extra ``invcryo[stem]``); or an object with ``data`` and ``axes_manager``.
    angles : array_like or path-like, optional
        Tilts; by default those of a file ``.rawtlt``, ``.tlt`` or ``.mdoc`` of the same name, or of the file itself.
    degrees : bool
        Unit of the angles, where they are given or in a text file.
    pixel_size : float, optional
        Angstrom, in place of the file's.
    axis : "y" or "x", optional
        Tilt axis: "y" by default, for a HyperSpy signal "x".
    in_plane_angle_deg : float, optional
        See `TiltSeries`; by default what an ``.mdoc`` states for a stack that is not aligned yet, else 0.
    flip_tilt : bool
        Turn the sign of the tilts.
    contrast : "bright" or "dark", optional
        How matter looks in the images; "bright" by default.
    thickness : float, optional
        Of the object along the beam at tilt 0, in pixels.
    mask : array_like of bool or path-like (.npz, .npy), optional
        Which pixels were measured, in the order of the file.
    xf : path-like or bool, optional
        Alignment to apply (see `apply_xf`). By default a file ``.xf`` beside a stack that is not called ``.ali`` or
        ``.rec``; False: none.
    check : bool
        Compare axis, contrast and pixel size with what the images suggest; doubts are logged and noted.

    Returns
    -------
    TiltSeries
        Sorted by angle. ``notes`` says what was found, done and doubted.
    """
    if is_signal(source):
        found, path = from_signal(source), None
    else:
        path = Path(source)
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        found = _open(path)
    name = found.source
    stated = {} if path is None else _own_json(path)
    beside = {} if path is None else _beside(path)
    notes = list(found.notes)
    mdoc = read_mdoc(beside["mdoc"]) if "mdoc" in beside else {}
    tilts = _angles(angles, degrees, found, beside, mdoc, notes)
    if flip_tilt:
        tilts = -tilts
        notes.append("sign of the tilts turned, as asked")
    aligned = path is not None and path.suffix.lower() in (".ali", ".rec")
    chosen_xf = beside.get("xf") if xf is None or xf is True else (None if xf is False else Path(xf))
    if xf is True and chosen_xf is None:
        raise FileNotFoundError(f"no .xf file beside {path}; give its name: xf='name.xf'")
    if xf is None and aligned and chosen_xf is not None:
        notes.append(f"{chosen_xf.name} not applied: {name} is aligned already, by its suffix")
        chosen_xf = None
    turn = in_plane_angle_deg
    if turn is None:
        turn = stated.get("in_plane_angle_deg", 0.0)
        if "in_plane_angle_deg" in mdoc and not stated and chosen_xf is None and not aligned:
            turn = mdoc["in_plane_angle_deg"]
            notes.append(f"tilt axis at {turn:g} degrees from y, as {beside['mdoc'].name} states")
    size = pixel_size or stated.get("pixel_size") or found.pixel_size or mdoc.get("pixel_size")
    shifts = stated.get("shifts")
    height, width = found.images.shape[1:]
    if (
        shifts is None
        and path is not None
        and path.suffix.lower() == ".ali"
        and not (height % 2 and width % 2)
    ):
        # the middle of the field, where IMOD puts the axis, is half a pixel before n // 2 on an even side
        shifts = np.tile([0.5 * (width % 2 - 1), 0.5 * (height % 2 - 1)], (len(tilts), 1))
        notes.append("tilt axis in the middle of the field, (n - 1) / 2, as IMOD has it in aligned stacks")
    series = TiltSeries(
        found.images,
        tilts,
        size,
        axis or stated.get("axis") or found.axis,
        float(np.deg2rad(turn)),
        contrast or stated.get("contrast", "bright"),
        thickness if thickness is not None else stated.get("thickness_pixels"),
        _mask(mask, path, stated),
        shifts,  # type: ignore[arg-type]
        flipped=bool(flip_tilt) != bool(stated.get("sign_turned", False)),
        source=name,
        notes=tuple(notes),
    )
    if chosen_xf is not None:
        series = apply_xf(series, read_xf(chosen_xf), name=chosen_xf.name)
    if (np.diff(series.angles) < 0).any():
        order = np.argsort(series.angles, kind="stable")
        series = series[order].replace(note="images sorted by angle")
    if check:
        for doubt in suspicions(series):
            logger.warning("%s: %s", name, doubt)
            series = series.replace(note=doubt)
    logger.info("%s: %s", name, series.describe())
    return series


def write_tilt_series(path: str | os.PathLike[str], series: TiltSeries) -> list[Path]:
    """Write a series as ``NAME.st`` (or ``.mrcs``), ``NAME.rawtlt``, ``NAME.mask.npz`` (with a mask), ``NAME.json``.

    `read_tilt_series` gives the same series back; IMOD reads the stack and the ``.rawtlt``.
    """
    path = Path(path)
    if path.suffix.lower() not in (".st", ".mrcs"):
        raise ValueError(f"{path}: name the stack .st or .mrcs, by which other programs know a stack")
    if series.pixel_size is None:
        raise ValueError(
            f"{path}: the pixel size of the series is unknown; series.replace(pixel_size=...) first"
        )
    written = [path, path.with_suffix(".rawtlt"), path.with_suffix(".json")]
    with StackWriter(path, series.pixel_size, label="tilt series") as writer:
        writer.append(series.images)
    with atomic_open(written[1], "w") as file:
        file.writelines(f"{angle:.6f}\n" for angle in series.angles_deg)
    if series.mask is not None:
        written.append(path.with_suffix(".mask.npz"))
        with atomic_path(written[-1]) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, mask=series.mask)
    content = {"format": _FORMAT, "stack": path.name, **series.describe(), "shifts": series.shifts.tolist()}
    with atomic_open(written[2], "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
    return written


def read_xf(path: str | os.PathLike[str]) -> NDArray:
    """IMOD's alignment, (n, 6): A11 A12 A21 A22 DX DY of each image."""
    try:
        rows = np.loadtxt(path, ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path} is no table of numbers: {error}") from error
    if rows.shape[1] != 6 or not np.isfinite(rows).all():
        raise ValueError(
            f"{path}: an .xf file has six finite numbers per line (A11 A12 A21 A22 DX DY), this one {rows.shape[1]};"
            " warping transforms are not read: apply them with IMOD's newstack"
        )
    if np.linalg.det(rows[:, :4].reshape(-1, 2, 2)).min() <= 0:
        raise ValueError(f"{path}: a transform mirrors or flattens its image (determinant not positive)")
    return rows


def apply_xf(series: TiltSeries, transforms: NDArray, *, name: str = "the alignment") -> TiltSeries:
    """The series resampled by IMOD's affine transforms ``X' = A X + D``.

    Cubic splines; magnification and stretch are applied too, and noted. Pixels that the transform brings in from
    outside the image, or from pixels that were not measured, are marked as not measured. ``X`` counts from the middle
    of the field, ``(n - 1) / 2``, where IMOD has its tilt axis; it comes to lie on our centre ``n // 2``.
    """
    if len(transforms) != len(series):
        raise ValueError(f"{series.source}: {len(series)} images but {len(transforms)} transforms in {name}")
    if abs(series.in_plane_angle) > 0 or series.shifts.any():
        raise ValueError(
            f"{series.source}: the images are to be moved by {name}, but an axis angle or shifts are stated too;"
            " leave one of the two out"
        )
    forward = transforms[:, :4].reshape(-1, 2, 2)
    stretch = float(abs(np.linalg.svd(forward)[1] - 1).max())
    height, width = series.images.shape[1:]
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    images, mask = resampled(series, forward, middle, transforms[:, 4:])
    note = f"{name} applied by cubic interpolation"
    if stretch > 1e-3:
        note += f"; it changes lengths by up to {100 * stretch:.2g} %"
    return series.replace(images=images, mask=mask, note=note)


def straighten(series: TiltSeries) -> TiltSeries:
    """The series resampled so that its axis lies on the grid and its shifts are 0, by cubic splines."""
    if not (series.in_plane_angle or series.shifts.any()):
        return series
    c, s = np.cos(series.in_plane_angle), np.sin(series.in_plane_angle)
    back = np.broadcast_to([[c, s], [-s, c]], (len(series), 2, 2))
    height, width = series.images.shape[1:]
    centre = np.array([width // 2, height // 2])
    images, mask = resampled(series, back, centre + series.shifts, np.zeros((len(series), 2)))
    note = f"turned by {-np.rad2deg(series.in_plane_angle):.2f} degrees and shifted, by cubic interpolation"
    return series.replace(images=images, mask=mask, in_plane_angle=0.0, shifts=None, note=note)


def resampled(
    series: TiltSeries, forward: NDArray, centre: NDArray, moved: NDArray
) -> tuple[NDArray, NDArray | None]:
    """Images where ``p`` (x, y) comes to ``n // 2 + forward (p - centre) + moved``, and what is known of them."""
    from scipy.ndimage import affine_transform

    n, height, width = series.images.shape
    target = np.array([width // 2, height // 2])
    centre = np.broadcast_to(centre, (n, 2))
    images, mask = np.empty_like(series.images), np.empty(series.images.shape, bool)
    for i in range(n):
        back = np.linalg.inv(forward[i])
        offset = (centre[i] - back @ (target + moved[i]))[::-1]
        matrix = back[::-1, ::-1]  # in (y, x)
        images[i] = affine_transform(series.images[i], matrix, offset, order=3, mode="nearest")
        known = series.measured[i].astype(float)
        mask[i] = affine_transform(known, matrix, offset, order=1, mode="constant") > 0.999
    return images, None if mask.all() else mask


def read_mdoc(path: str | os.PathLike[str]) -> dict[str, Any]:
    """SerialEM's ``.mdoc``: ``angles`` (degrees), ``pixel_size``, ``voltage_kv``, ``in_plane_angle_deg``."""
    found: dict[str, Any] = {}
    sections: dict[int, dict[str, str]] = {}
    current: dict[str, str] = {}
    top = current
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        if section := re.match(r"\[ZValue\s*=\s*(\d+)\]", line.strip()):
            current = sections.setdefault(int(section[1]), {})
        elif line.strip().startswith("[T"):
            # the direction of the axis in the images, from y; RotationAngle is that of the camera
            if stated := re.search(r"[Tt]ilt axis (?:angle|rotation)\s*=\s*(-?\d+\.?\d*|-?\.\d+)", line):
                found["in_plane_angle_deg"] = float(stated[1])
        elif "=" in line:
            key, _, value = line.partition("=")
            current[key.strip()] = value.strip()
    if not sections:
        raise ValueError(f"{path} has no section [ZValue = ...]; is it a SerialEM .mdoc file?")
    missing = [z for z in sorted(sections) if "TiltAngle" not in sections[z]]
    if missing or sorted(sections) != list(range(len(sections))):
        raise ValueError(
            f"{path}: sections {sorted(sections)[:3]}... must be 0 to {len(sections) - 1}, each with TiltAngle"
            f" (missing in {missing[:3]})"
        )

    def number(label: str, text: str) -> float:
        try:
            return float(text)
        except ValueError:
            raise ValueError(f"{path}: {label} = {text!r} is not a number") from None

    found["angles"] = np.array([number("TiltAngle", sections[z]["TiltAngle"]) for z in range(len(sections))])
    for key, label in (("pixel_size", "PixelSpacing"), ("voltage_kv", "Voltage")):
        if stated_value := top.get(label) or sections[0].get(label):
            found[key] = number(label, stated_value)
    return found


def _open(path: Path) -> FoundSeries:
    suffix = path.suffix.lower()
    if suffix in _MRC:
        stack = open_stack(path)
        size = stack.header.in_plane_pixel_size()
        # programs that know no pixel size write 1 or nothing
        return FoundSeries(
            stack[:], str(path), None, size if size > 0 else None, "y", tuple(stack.header.notes)
        )
    if suffix in _TIFF:
        return read_tiff(path)
    return read_microscope_file(path)


def _beside(path: Path) -> dict[str, Path]:
    """Files that belong to a stack: ``x.tlt`` beside ``x.mrc``, ``x.mdoc`` or ``x.mrc.mdoc``."""
    found = {}
    for kind in ("rawtlt", "tlt", "xf", "mdoc"):
        for candidate in (path.with_suffix(f".{kind}"), Path(f"{path}.{kind}")):
            if candidate.is_file():
                found[kind] = candidate
                break
    return found


def _own_json(path: Path) -> dict[str, Any]:
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return {}
    try:
        content = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return content if isinstance(content, dict) and content.get("format") == _FORMAT else {}


def _angles(
    given: Any,
    degrees: bool,
    found: FoundSeries,
    beside: dict[str, Path],
    mdoc: dict[str, Any],
    notes: list[str],
) -> NDArray:
    name = found.source
    if given is None and found.angles_deg is not None:
        notes.append("tilts from the file itself")
        return np.deg2rad(found.angles_deg)
    if given is None:
        # an aligned stack goes with the refined angles
        order = ("tlt", "rawtlt") if Path(name).suffix.lower() in (".ali", ".rec") else ("rawtlt", "tlt")
        given = next((beside[kind] for kind in order if kind in beside), None)
        if given is None and mdoc:
            notes.append(f"tilts from {beside['mdoc'].name}")
            return radians_from_file(mdoc["angles"], True, name)
    if given is None:
        raise ValueError(
            f"{name}: no tilt angles found, neither in it nor beside it (.rawtlt, .tlt, .mdoc); pass angles="
        )
    if isinstance(given, str | os.PathLike):
        notes.append(f"tilts from {Path(given).name}")
        try:
            given = np.loadtxt(given, ndmin=1)
        except ValueError as error:
            raise ValueError(f"{given} is no list of angles: {error}") from error
        if given.ndim != 1:
            raise ValueError(f"{name}: one angle per line is expected, found {given.shape[1]} numbers a line")
    return radians_from_file(given, degrees, name)


def _mask(given: Any, path: Path | None, stated: dict[str, Any]) -> NDArray | None:
    if given is None and stated and path is not None and stated["measured_fraction"] < 1:
        given = path.with_suffix(".mask.npz")
    if given is None or not isinstance(given, str | os.PathLike):
        return None if given is None else np.asarray(given)
    loaded = np.load(given, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        if "mask" not in loaded.files:
            raise ValueError(f"{given} holds {', '.join(loaded.files)}, no array called mask")
        return np.asarray(loaded["mask"])
