"""Particle sets to .cs files of cryoSPARC, and what is lost between the two formats."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data import ParticleStack
from ..rotation import geodesic_distance, matrix_from_rotvec, rotvec_from_matrix
from .atomic import atomic_open
from .cryosparc import CTF_COLUMNS, UID, Columns, alignment, listed, native
from .star import text_to_numbers

__all__ = ["lost_in_cs", "lost_in_star", "write_cs"]

logger = logging.getLogger(__name__)

#: Of cryoSPARC's own columns, those that a STAR file says in its own words.
_SAID_IN_STAR = {
    "uid", "blob/path", "blob/idx", "blob/shape", "blob/psize_A", "ctf/exp_group_id", *CTF_COLUMNS,
    "location/micrograph_path", "location/micrograph_shape", "location/center_x_frac",
    "location/center_y_frac",
}  # fmt: skip
_SAID_OF_POSES = ("pose", "shift", "psize_A", "split", "class")
_SAID_IN_CS = {
    "rlnImageName", "rlnImagePixelSize", "rlnImageSize", "rlnImageDimensionality", "rlnOpticsGroup",
    "rlnOpticsGroupName", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst",
    "rlnOriginX", "rlnOriginY", "rlnRandomSubset", "rlnClassNumber", "rlnMicrographName", UID,
    *(name for name, _ in CTF_COLUMNS.values()),
}  # fmt: skip


def lost_in_star(table: Mapping[str, NDArray]) -> list[str]:
    """Columns of ``table`` that are cryoSPARC's and that a STAR file has no word for."""
    chosen = alignment(table)
    said = _SAID_IN_STAR | {f"{chosen}/{name}" for name in _SAID_OF_POSES}
    return [name for name in table if native(name) and name not in said]


def lost_in_cs(table: Mapping[str, NDArray]) -> list[str]:
    """Columns of ``table`` that are RELION's and that `write_cs` has no word for."""
    said = _SAID_IN_CS
    if "location/center_x_frac" in table:
        said = said | {"rlnCoordinateX", "rlnCoordinateY"}
    return [name for name in table if not native(name) and name not in said]


def write_cs(path: str | os.PathLike[str], stack: ParticleStack) -> None:
    """Write a particle set as a .cs file that names the images where they are, complete or not at all.

    Columns of cryoSPARC's that ``stack.table`` holds are kept, as they are in the file where they still hold;
    poses, shifts, CTF and half sets are those of ``stack``. Poses go to ``alignments3D``, also those that came
    from one of several classes. Particles that come from a STAR file get a uid from the name of their image,
    unless the file has pyem's column ucsfUid.

    Parameters
    ----------
    path : path-like
        Ends in .cs.
    stack : ParticleStack
        As `read_particles` gives it, or a part of it.
    """
    path = Path(path)
    if path.suffix.lower() != ".cs":
        raise ValueError(f"{path}: cryoSPARC goes by the suffix; name the file .cs")
    if not len(stack):
        raise ValueError(f"{path}: there is no particle to write")
    # columns of optics groups that were shared out to the particles are of Python's objects
    old = {
        name: np.asarray(np.asarray(v).tolist()) if np.asarray(v).dtype.kind == "O" else np.asarray(v)
        for name, v in stack.table.items()
        if native(name)
    }
    columns = _blob_columns(path, stack, old) | _ctf_columns(stack, old) | _pose_columns(path, stack, old)
    for name, values in columns.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            bad = int(np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))[0])
            raise ValueError(
                f"{path}: {name} of particle {bad + 1} is beyond the range of single precision, which .cs files use;"
                " is it in the right unit?"
            )
    lost = lost_in_cs(stack.table)
    if lost:
        logger.warning("%s: a .cs file has no place for %s; left out", path, listed(lost))
    columns = old | columns
    for name, values in columns.items():
        if values.dtype.kind == "U":
            columns[name] = np.char.encode(values, "utf-8", "surrogateescape")
    columns = {"uid": columns.pop("uid")} | columns
    kinds = [(name, values.dtype, values.shape[1:]) for name, values in columns.items()]
    records = np.zeros(len(stack), dtype=kinds)
    for name, values in columns.items():
        records[name] = values
    with atomic_open(path, "wb") as file:
        np.lib.format.write_array(file, records, allow_pickle=False)


def _blob_columns(path: Path, stack: ParticleStack, old: Columns) -> Columns:
    n = len(stack)
    sign = np.broadcast_to(np.asarray(getattr(stack.images, "sign", 1.0), np.float32), (n,))
    columns = {
        "blob/psize_A": _kept(old, "blob/psize_A", np.full(n, stack.pixel_size)),
        "blob/sign": sign.copy(),
    }
    if min(stack.image_shape) > 0:
        columns["blob/shape"] = np.tile(np.array(stack.image_shape, dtype=np.uint32), (n, 1))
    if "blob/path" in old and "uid" in old:
        return columns
    if "rlnImageName" not in stack.table:
        raise ValueError(
            f"{path}: the particles have no column rlnImageName, so the file cannot say where the images are;"
            " write them with write_particles and its stack_path= first"
        )
    places, index = [], []
    for i, name in enumerate(np.asarray(stack.table["rlnImageName"]).tolist()):
        number, at, place = name.partition("@")
        places.append(place if at else name)
        try:
            index.append(int(number) - 1 if at else 0)
        except ValueError:
            raise ValueError(
                f"{path}: rlnImageName of particle {i + 1} is {name!r}: no number of an image stands before @"
            ) from None
    columns["blob/path"], columns["blob/idx"] = np.array(places), np.array(index, dtype=np.uint32)
    columns["uid"] = _uids(path, stack)
    if "rlnMicrographName" in stack.table:
        names = np.asarray(stack.table["rlnMicrographName"]).astype(np.str_)
        for i, name in enumerate(names.tolist()):
            if not name.removeprefix(">").strip() or any(ord(c) < 32 for c in name):
                raise ValueError(
                    f"{path}: rlnMicrographName of particle {i + 1} is {name!r}: empty or unprintable"
                )
        columns["location/micrograph_path"] = names
    if "rlnOpticsGroup" in stack.table:
        groups = np.unique(np.asarray(stack.table["rlnOpticsGroup"]).astype(np.str_), return_inverse=True)[1]
        columns["ctf/exp_group_id"] = groups.astype(np.uint32)
    return columns


def _uids(path: Path, stack: ParticleStack) -> NDArray:
    """One number per particle: that of ucsfUid, else one made of the name of its image."""
    if UID in stack.table:
        try:
            return np.array([int(v) for v in np.asarray(stack.table[UID]).tolist()], dtype=np.uint64)
        except (ValueError, OverflowError):
            raise ValueError(f"{path}: column {UID} does not hold whole numbers of 64 bits") from None
    names = np.asarray(stack.table["rlnImageName"]).tolist()
    digests = (
        hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest() for name in names
    )
    uids = np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)
    if len(np.unique(uids)) < len(uids):
        raise ValueError(
            f"{path}: an image occurs twice in the particle set, so that uids cannot be made of names"
        )
    return uids


def _ctf_columns(stack: ParticleStack, old: Columns) -> Columns:
    ctf = stack.ctf
    if ctf is None:
        return {}
    values = {
        "ctf/df1_A": ctf.defocus_u_angstrom,
        "ctf/df2_A": ctf.defocus_v_angstrom,
        "ctf/df_angle_rad": ctf.defocus_angle,
        "ctf/accel_kv": ctf.voltage_kv,
        "ctf/cs_mm": ctf.cs_mm,
        "ctf/amp_contrast": ctf.amplitude_contrast,
        "ctf/phase_shift_rad": ctf.phase_shift,
        "ctf/bfactor": ctf.b_factor,
        "ctf/scale": ctf.scale,
    }
    columns = {name: _kept(old, name, v) for name, v in values.items()}
    if "ctf/type" not in old:
        columns["ctf/type"] = np.full(len(stack), b"imported")
    return columns


def _pose_columns(path: Path, stack: ParticleStack, old: Columns) -> Columns:
    n, columns = len(stack), {}
    if stack.poses is not None:
        size = old.get("alignments3D/psize_A", np.full(n, stack.pixel_size)).astype(np.float64)
        columns["alignments3D/psize_A"] = size.astype(np.float32)
        columns["alignments3D/shift"] = _kept(
            old, "alignments3D/shift", -stack.poses.shifts * stack.pixel_size / size[:, None] + 0.0
        )
        pose = old.get("alignments3D/pose")
        if pose is None or geodesic_distance(matrix_from_rotvec(pose), stack.poses.matrices).max() > 1e-7:
            pose = rotvec_from_matrix(stack.poses.matrices).astype(np.float32)
        columns["alignments3D/pose"] = pose
        if "rlnClassNumber" in stack.table and "alignments3D/class" not in old:
            classes = text_to_numbers(np.asarray(stack.table["rlnClassNumber"]), f"{path}: rlnClassNumber")
            good = (classes == np.floor(classes)) & (classes >= 0) & (classes < 2**32)
            if not good.all():
                bad = int(np.flatnonzero(~good)[0])
                raise ValueError(
                    f"{path}: rlnClassNumber of particle {bad + 1} is {classes[bad]:g}, not the number of a class"
                )
            columns["alignments3D/class"] = np.maximum(classes - 1, 0).astype(np.uint32)
    if stack.half is not None:
        columns["alignments3D/split"] = (np.asarray(stack.half) - 1).astype(np.uint32)
    return columns


def _kept(old: Mapping[str, NDArray], name: str, values: NDArray) -> NDArray:
    """``values`` as float32, or the old column where it says the same to the digits of float32."""
    with np.errstate(over="ignore"):  # refused later
        new = np.asarray(values).astype(np.float32)
    column = old.get(name)
    if column is None or column.shape != new.shape or column.dtype.kind != "f":
        return new
    same = np.abs(column.astype(np.float64) - values) <= 4 * np.finfo(np.float32).eps * np.abs(column)
    return np.where(same, column, new)
