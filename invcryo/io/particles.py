"""Particle sets of RELION (STAR tables of 3.0, 3.1, 4 and 5) and cryoSPARC (.cs) with their stacks.

Angles are turned into matrices and offsets into pixels here and nowhere else. Images stay on disk:
`StackImages` reads what is indexed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..ctf import CTF
from ..data import ParticleStack, Poses
from . import cryosparc
from .images import StackImages, UnreadImages, beyond, check_box, find_stacks, image_names, open_stacks
from .mrc import header_info, read_header
from .star import read_star
from .table import (
    ANGLES,
    OLD_ORIGINS,
    ORIGINS,
    ParticleTable,
    check_supported,
    is_cs,
    load_table,
    optics_groups,
    particle_block,
    pixel_size_of,
    pixel_sizes,
    stated_shape,
    unsupported,
)

__all__ = ["describe", "read_particles"]

logger = logging.getLogger(__name__)

_CONTRAST = {"white": 1.0, "dark": -1.0}


def read_particles(
    path: str | os.PathLike[str],
    *,
    passthrough: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    data_dir: str | os.PathLike[str] | None = None,
    pixel_size: float | None = None,
    degrees: bool | None = None,
    contrast: Literal["white", "dark"] = "white",
    voltage_kv: float | None = None,
    cs_mm: float | None = None,
    amplitude_contrast: float | None = None,
    optics_group: int | Collection[int] | None = None,
    ignore: Collection[str] = (),
    flip_y: bool = False,
    open_images: bool = True,
) -> ParticleStack:
    """Read a particle set of RELION 3.0, 3.1, 4 or 5, or of cryoSPARC; the images stay on disk.

    Parameters
    ----------
    path : path-like
        STAR file, or .cs file.
    passthrough : path-like or several
        Further .cs files of the same particles, for columns that the first one lacks; joined by uid.
    data_dir : path-like, optional
        Folder that the image names are relative to (the project), or that holds the stacks themselves.
        The working folder, the folder of the file and its parents are tried as well.
    pixel_size : float, optional
        Angstrom per pixel, in place of the file's. Offsets in angstrom are divided by it.
    degrees : bool, optional
        Unit of the angles of a STAR file. Left out they are taken as degrees, and refused where they look
        like radians.
    contrast : "white" or "dark"
        Of the protein in the images; dark images change sign when read. In a .cs file, of the images times
        ``blob/sign``: cryoSPARC writes there what dark protein needs, so "white" is right as a rule.
    voltage_kv, cs_mm, amplitude_contrast : float, optional
        In place of rlnVoltage, rlnSphericalAberration, rlnAmplitudeContrast.
    optics_group : int or several, optional
        Read the particles of these optics groups (rlnOpticsGroup) only.
    ignore : collection of str
        Columns with effects that we do not model, to be passed over: rlnBeamTiltX, ctf/tilt_A, ...
    flip_y : bool
        Of a .cs file: count rlnCoordinateY from the other end of the micrograph. No pose changes.
    open_images : bool
        False reads the table alone, wherever the images are; nothing can be reconstructed from it.

    Returns
    -------
    ParticleStack
        ``table`` holds the columns of the file, those of the optics table spread over the particles; of a .cs
        file both in RELION's words and in cryoSPARC's own (whose names hold a slash). ``poses`` is None where
        the file has no angles, ``ctf`` where it has no defocus, ``half`` where rlnRandomSubset is not 1 or 2
        throughout.
    """
    if contrast not in _CONTRAST:
        raise ValueError(f"contrast must be 'white' or 'dark', got {contrast!r}")
    path = Path(path)
    if is_cs(path):
        if degrees is not None:
            raise ValueError(f"{path}: the angles of a .cs file are radians always; leave degrees= out")
        degrees = True  # as translated
    table = load_table(path, optics_group, passthrough=passthrough, flip_y=flip_y)
    if open_images:
        check_supported(table, ignore)
    size = pixel_size_of(table, pixel_size)
    poses = _poses(table, size, degrees)
    ctf = _ctf(table, voltage_kv, cs_mm, amplitude_contrast)
    sign = _CONTRAST[contrast] * cryosparc.image_signs(path, table.particles)
    images: StackImages | UnreadImages
    if open_images:
        names, file, index = image_names(table)
        headers = open_stacks(table, names, file, index, size, None if data_dir is None else Path(data_dir))
        images = StackImages(headers, file, index, sign=sign)
        check_box(table, images, poses)
    else:
        images = UnreadImages((table.n, *stated_shape(table)), sign)
    return ParticleStack(
        images=images, pixel_size=size, poses=poses, ctf=ctf, half=_half(table), table=table.columns()
    )


def describe(
    path: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    passthrough: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
) -> dict[str, Any]:
    """The facts of a file as plain values: a particle set, another STAR file, or a map or stack.

    Images are not read; of each stack only the header is. Never fails on missing stacks: it lists them.
    """
    path = Path(path)
    if is_cs(path):
        table = load_table(path, None, passthrough=passthrough)
    elif path.suffix.lower() != ".star":
        return header_info(path)
    else:
        blocks = read_star(path)
        if particle_block(blocks) is None:
            return {
                "path": str(path),
                "kind": "star",
                "blocks": {name: {"rows": b.rows, "columns": list(b)} for name, b in blocks.items()},
            }
        table = load_table(path, None, blocks)
    names, file, index = image_names(table)
    found, missing, _ = find_stacks(table.path, names, None if data_dir is None else Path(data_dir))
    last = np.full(len(names), -1)
    np.maximum.at(last, file, index)
    notes, boxes, broken = [], set(), []
    for position, place in found.items():
        try:
            header = read_header(place)
        except ValueError as error:
            broken.append(str(error))
            continue
        boxes.add((header.shape[2], header.shape[1]))
        if last[position] >= header.shape[0]:
            broken.append(beyond(int(last[position]) + 1, header))
    try:
        poses_known = _has_poses(table)
    except ValueError as error:
        poses_known = False
        notes.append(str(error))
    views = None
    if poses_known:
        try:
            views = _views(_angles(table, None))
        except ValueError as error:
            notes.append(str(error))
    half = _half(table)
    return {
        "path": str(path),
        "kind": "particles",
        "particles": table.n,
        "optics_groups": optics_groups(table),
        "box": sorted(boxes) or [(int(n), int(n)) for n in _distinct(table, "rlnImageSize")],
        "pixel_size": np.unique(sizes).tolist() if (sizes := pixel_sizes(table)) is not None else [],
        "voltage_kv": _distinct(table, "rlnVoltage"),
        "cs_mm": _distinct(table, "rlnSphericalAberration"),
        "amplitude_contrast": _distinct(table, "rlnAmplitudeContrast"),
        "defocus_angstrom": _span(table, "rlnDefocusU"),
        "half_sets": None if half is None else {1: int((half == 1).sum()), 2: int((half == 2).sum())},
        "poses": poses_known,
        "views": views,
        "tilt_histogram": _tilt_histogram(table) if poses_known else None,
        "stacks": len(names),
        "missing_stacks": missing,
        "broken_stacks": broken,
        "unsupported_columns": unsupported(table),
        "columns": list(table.particles),
        "notes": notes,
    }


# --- meaning of the columns -----------------------------------------------------------------------------------


def _has_poses(table: ParticleTable) -> bool:
    """Whether there are angles; an error where only some particles have them (-999 stands for none)."""
    if any(name not in table for name in ANGLES):
        return False
    unset = np.any([table.numbers(name) == -999 for name in ANGLES], axis=0)
    if unset.any() and not unset.all():
        raise ValueError(
            f"{table.path}: {unset.sum()} of {table.n} particles have no pose (angle -999), the first is"
            f" particle {np.flatnonzero(unset)[0] + 1}; remove these rows"
        )
    return not unset.any()


def _angles(table: ParticleTable, degrees: bool | None) -> NDArray:
    """Rot, tilt and psi in degrees."""
    angles = np.stack([table.numbers(name) for name in ANGLES])
    largest = np.abs(angles).max()
    if degrees is None and table.n > 50 and 0 < largest <= 2 * np.pi:
        raise ValueError(
            f"{table.path}: all rot, tilt and psi lie within ±{largest:.2f}; degrees are expected and these"
            " look like radians: pass degrees=False (or degrees=True if they are right)"
        )
    if degrees is False:
        if largest > 4 * np.pi:
            raise ValueError(
                f"{table.path}: angles reach {largest:.1f}, too large for radians; use degrees=True"
            )
        angles = np.rad2deg(angles)
    return angles


def _poses(table: ParticleTable, pixel_size: float, degrees: bool | None) -> Poses | None:
    if not _has_poses(table):
        missing = [name for name in ANGLES if name not in table]
        why = f"no column {', '.join(missing)}" if missing else "all angles are -999"
        logger.warning("%s holds no poses: %s", table.path, why)
        return None
    angles = _angles(table, degrees)
    if all(name in table for name in ORIGINS):
        shifts = -np.stack([table.numbers(name) for name in ORIGINS], axis=1) / pixel_size
    elif all(name in table for name in OLD_ORIGINS):
        shifts = -np.stack([table.numbers(name) for name in OLD_ORIGINS], axis=1)
        logger.info("%s: offsets of RELION 3.0 or older, in pixels of %.4g angstrom", table.path, pixel_size)
    else:
        logger.warning("%s has no offsets (rlnOriginXAngst, rlnOriginYAngst): taken as 0", table.path)
        shifts = np.zeros((table.n, 2))
    if "rlnClassNumber" in table and len(classes := table.distinct("rlnClassNumber")) > 1:
        logger.warning(
            "%s holds particles of %d classes, whose poses may refer to different maps",
            table.path,
            len(classes),
        )
    return Poses.from_euler_deg(angles[0], angles[1], angles[2], shifts)


def _ctf(table: ParticleTable, voltage: float | None, cs: float | None, contrast: float | None) -> CTF | None:
    if "rlnDefocusU" not in table:
        logger.warning("%s holds no CTF: no column rlnDefocusU", table.path)
        return None
    given = {
        "rlnVoltage": ("voltage_kv", voltage),
        "rlnSphericalAberration": ("cs_mm", cs),
        "rlnAmplitudeContrast": ("amplitude_contrast", contrast),
    }
    optics = []
    for name, (keyword, value) in given.items():
        if value is not None:
            optics.append(np.full(table.n, float(value)))
        elif name in table:
            optics.append(table.numbers(name))
        else:
            raise ValueError(f"{table.path} has no column {name}, which the CTF needs; pass {keyword}=")

    def column(name: str, default: float) -> NDArray:
        return table.numbers(name) if name in table else np.full(table.n, default)

    u = table.numbers("rlnDefocusU")
    v = table.numbers("rlnDefocusV") if "rlnDefocusV" in table else u
    for name, values in (("rlnDefocusU", u), ("rlnDefocusV", v)):
        largest = np.abs(values).max()
        if 0 < largest < 100:
            raise ValueError(
                f"{table.path}: {name} = {values[np.abs(values).argmax()]:g} is the largest defocus: STAR"
                " files hold angstrom, this looks like micrometres; multiply it by 10000"
            )
        if largest > 1e6:
            raise ValueError(
                f"{table.path}: {name} = {values[np.abs(values).argmax()]:g} angstrom is beyond any"
                " microscope (100 micrometres); correct the unit"
            )
    try:
        return CTF(
            u,
            v,
            np.deg2rad(column("rlnDefocusAngle", 0.0)),
            voltage_kv=optics[0],
            cs_mm=optics[1],
            amplitude_contrast=optics[2],
            phase_shift=np.deg2rad(column("rlnPhaseShift", 0.0)),
            b_factor=column("rlnCtfBfactor", 0.0),
            scale=column("rlnCtfScalefactor", 1.0),
        )
    except ValueError as error:
        raise ValueError(f"{table.path}: {error}") from None


def _half(table: ParticleTable) -> NDArray | None:
    if "rlnRandomSubset" not in table:
        return None
    half = table.numbers("rlnRandomSubset").astype(int)
    if not np.isin(half, (1, 2)).all():
        logger.warning("%s: rlnRandomSubset is not 1 or 2 throughout; half sets are left out", table.path)
        return None
    return half


# --- facts for describe -------------------------------------------------------------------------------------


def _distinct(table: ParticleTable, name: str) -> list[float]:
    return np.unique(table.parsed(name, table.distinct(name))).tolist() if name in table else []


def _span(table: ParticleTable, name: str) -> tuple[float, float] | None:
    if name not in table:
        return None
    values = table.parsed(name, table.text(name))
    return float(values.min()), float(values.max())


def _views(angles: NDArray) -> dict[str, float]:
    """How evenly the views cover the sphere; of many particles, those of 10 000 drawn at random."""
    from ..metrics import describe_views

    count = angles.shape[1]
    if count > 10_000:
        angles = angles[:, np.random.default_rng(0).choice(count, 10_000, replace=False)]
    return describe_views(Poses.from_euler_deg(*angles))


def _tilt_histogram(table: ParticleTable) -> dict[str, int]:
    """Number of particles per 18 degrees of tilt, folded to 0..180."""
    tilt = np.rad2deg(np.arccos(np.cos(np.deg2rad(table.numbers("rlnAngleTilt")))))
    counts, edges = np.histogram(tilt, bins=10, range=(0, 180))
    return {f"{a:g}-{b:g}": int(c) for a, b, c in zip(edges[:-1], edges[1:], counts, strict=True)}
