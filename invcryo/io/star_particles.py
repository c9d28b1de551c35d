"""Particle sets to STAR files of RELION 3.1."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..ctf import CTF
from ..data import ParticleStack, Poses
from .cryosparc import native
from .cs_particles import lost_in_star
from .images import StackImages, UnreadImages
from .mrc import write_stack
from .star import write_star
from .table import ANGLES, OLD_ORIGINS, ORIGINS

__all__ = ["write_particles"]

logger = logging.getLogger(__name__)

#: Columns that belong into the optics table when a file is written.
_OPTICS = (
    "rlnOpticsGroupName",
    "rlnMtfFileName",
    "rlnMicrographOriginalPixelSize",
    "rlnMicrographPixelSize",
    "rlnVoltage",
    "rlnSphericalAberration",
    "rlnAmplitudeContrast",
    "rlnImagePixelSize",
    "rlnImageSize",
    "rlnImageDimensionality",
    "rlnCtfDataAreCtfPremultiplied",
    "rlnCtfDataArePhaseFlipped",
    "rlnBeamTiltX",
    "rlnBeamTiltY",
    "rlnOddZernike",
    "rlnEvenZernike",
    "rlnMagMat00",
    "rlnMagMat01",
    "rlnMagMat10",
    "rlnMagMat11",
)


def write_particles(
    path: str | os.PathLike[str],
    stack: ParticleStack,
    *,
    stack_path: str | os.PathLike[str] | None = None,
    dtype: DTypeLike = np.float32,
) -> None:
    """Write a particle set as STAR 3.1, with its images where ``stack_path`` is given.

    All columns of ``stack.table`` are kept, as they were read where they still hold; poses, shifts, CTF and
    half sets are those of ``stack``. One optics group is made for each set of optics values.

    Parameters
    ----------
    path : path-like
        STAR file.
    stack : ParticleStack
    stack_path : path-like, optional
        A .mrcs file for the images, protein white. It is named in the STAR file as it is given here, so give
        it relative to the RELION project. Without it the STAR file names the stacks that the images came
        from, in which dark protein stays dark.
    dtype : float32 or float16
        Of the images in the file.
    """
    n, table = len(stack), {k: np.asarray(v) for k, v in stack.table.items() if not native(k)}
    table = {k: v.astype(np.str_) for k, v in table.items()}
    readable = isinstance(stack.images, (StackImages, UnreadImages)) and "rlnImageName" in table
    if stack_path is None and not readable:
        raise ValueError("the images are not those of a STAR file; pass stack_path= to write them to a stack")
    if stack.box % 2:
        logger.warning("box %d is odd: RELION reads even boxes only", stack.box)
    lost = lost_in_star(stack.table)
    if lost:
        logger.warning("%s: a STAR file has no word for %s; left out", path, ", ".join(lost))

    if stack_path is not None:
        write_stack(stack_path, stack.images, stack.pixel_size, dtype=dtype)
        place = os.fspath(stack_path)
        table["rlnImageName"] = np.array([f"{i:06d}@{place}" for i in range(1, n + 1)])
    _put_poses(table, stack)
    if stack.ctf is not None:
        _put_ctf(table, stack.ctf)
    if stack.half is not None:
        table["rlnRandomSubset"] = np.asarray(stack.half).astype(int).astype(np.str_)
    _put(table, "rlnImagePixelSize", np.full(n, stack.pixel_size))
    if stack.box:
        _put(table, "rlnImageSize", np.full(n, stack.box), "%d")
    _put(table, "rlnImageDimensionality", np.full(n, 2), "%d")

    optics = {name: table.pop(name) for name in _OPTICS if name in table}
    group, first = _groups(list(optics.values()), table.pop("rlnOpticsGroup", None))
    optics = {name: column[first] for name, column in optics.items()}
    numbers = np.arange(1, len(first) + 1)
    named = optics.pop("rlnOpticsGroupName", None)
    if named is None or len(set(named.tolist())) < len(named):
        named = np.array([f"opticsGroup{i}" for i in numbers])
    write_star(
        path,
        {
            "optics": {"rlnOpticsGroup": numbers, "rlnOpticsGroupName": named, **optics},
            "particles": {**table, "rlnOpticsGroup": group + 1},
        },
    )


def _put(table: dict[str, NDArray], name: str, values: NDArray, form: str = "%.6f") -> None:
    """Set a column, keeping the old text where it says the same number to the digits we write."""
    new = np.char.mod(form, values)
    if name in table:
        try:
            same = np.abs(table[name].astype(np.float64) - values) <= 5.1e-7
        except ValueError:
            same = np.zeros(len(values), dtype=bool)
        new = np.where(same, table[name], new)
    table[name] = new


def _put_poses(table: dict[str, NDArray], stack: ParticleStack) -> None:
    poses = stack.poses
    if poses is None:
        return
    kept = False
    if all(name in table for name in ANGLES):
        old = Poses.from_euler_deg(*(table[name].astype(np.float64) for name in ANGLES))
        kept = bool(np.abs(old.matrices - poses.matrices).max(initial=0) < 1e-9)
    if not kept:
        for name, values in zip(ANGLES, poses.euler_deg(), strict=True):
            table[name] = np.char.mod("%.6f", values)
    for i, (name, old_name) in enumerate(zip(ORIGINS, OLD_ORIGINS, strict=True)):
        table.pop(old_name, None)
        _put(table, name, -poses.shifts[:, i] * stack.pixel_size + 0.0)


def _put_ctf(table: dict[str, NDArray], ctf: CTF) -> None:
    columns = {
        "rlnDefocusU": ctf.defocus_u_angstrom,
        "rlnDefocusV": ctf.defocus_v_angstrom,
        "rlnDefocusAngle": np.rad2deg(ctf.defocus_angle),
        "rlnVoltage": ctf.voltage_kv,
        "rlnSphericalAberration": ctf.cs_mm,
        "rlnAmplitudeContrast": ctf.amplitude_contrast,
        "rlnPhaseShift": np.rad2deg(ctf.phase_shift),
        "rlnCtfBfactor": ctf.b_factor,
        "rlnCtfScalefactor": ctf.scale,
    }
    usual = {"rlnPhaseShift": 0.0, "rlnCtfBfactor": 0.0, "rlnCtfScalefactor": 1.0}
    for name, values in columns.items():
        if name in table or (values != usual.get(name)).any():
            _put(table, name, values)


def _groups(columns: Sequence[NDArray], number: NDArray | None) -> tuple[NDArray, NDArray]:
    """Group of each row (from 0) by equal values of ``columns``, and the first row of each group.

    Groups are in the order of their old ``number``, then of appearance.
    """
    keys = list(zip(*(column.tolist() for column in columns), strict=True))
    first_row: dict[tuple[str, ...], int] = {}
    for row, key in enumerate(keys):
        first_row.setdefault(key, row)
    old = {key: float(number[row]) if number is not None else 0.0 for key, row in first_row.items()}
    order = sorted(first_row, key=lambda key: (old[key], first_row[key]))
    position = {key: i for i, key in enumerate(order)}
    return np.array([position[key] for key in keys]), np.array([first_row[key] for key in order])
