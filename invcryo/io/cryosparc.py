"""Particle tables of cryoSPARC (.cs): NumPy records on disk, here columns by name.

A table is often spread over a main file and passthrough files, whose rows are joined by ``uid``, never by
their order. `relion_columns` says the same in RELION's columns, from where one code leads on; what STAR has
no word for stays in the table under cryoSPARC's name (such names hold a slash) and is written again by
`write_cs`.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..rotation import euler_from_matrix, matrix_from_rotvec

__all__ = [
    "UID",
    "alignment",
    "image_signs",
    "join_cs",
    "listed",
    "native",
    "read_cs",
    "relion_columns",
    "unsupported",
]

logger = logging.getLogger(__name__)

Columns = dict[str, NDArray]

_MAGIC = b"\x93NUMPY"
_COMPRESSED = b"\x94CSDAT"
#: Characters; wide tables go beyond NumPy's own limit of 10000.
_MAX_HEADER = 200_000
#: cryoSPARC's column, RELION's, and the factor.
CTF_COLUMNS = {
    "ctf/df1_A": ("rlnDefocusU", 1.0),
    "ctf/df2_A": ("rlnDefocusV", 1.0),
    "ctf/df_angle_rad": ("rlnDefocusAngle", 180 / math.pi),
    "ctf/accel_kv": ("rlnVoltage", 1.0),
    "ctf/cs_mm": ("rlnSphericalAberration", 1.0),
    "ctf/amp_contrast": ("rlnAmplitudeContrast", 1.0),
    "ctf/phase_shift_rad": ("rlnPhaseShift", 180 / math.pi),
    "ctf/bfactor": ("rlnCtfBfactor", 1.0),
    "ctf/scale": ("rlnCtfScalefactor", 1.0),
}
_UNSUPPORTED = {
    "ctf/tilt_A": "beam tilt",
    "ctf/shift_A": "a phase ramp",
    "ctf/trefoil_A": "trefoil",
    "ctf/tetra_A": "tetrafoil",
    "ctf/anisomag": "anisotropic magnification",
}
UID = "ucsfUid"  # pyem's word for cryoSPARC's uid in a STAR file


# --- files --------------------------------------------------------------------------------------------------


def read_cs(
    path: str | os.PathLike[str],
    passthrough: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = (),
) -> Columns:
    """Columns of a .cs file, each (n,) or (n, k), in the types of the file; text is bytes.

    Parameters
    ----------
    path : path-like
    passthrough : path-like or several
        Files with more columns of the same particles, joined by ``uid``. A column that is in several files is
        taken from the first.
    """
    path = Path(path)
    columns = _load(path)
    for other in [passthrough] if isinstance(passthrough, (str, os.PathLike)) else passthrough:
        columns = join_cs(columns, _load(Path(other)), names=(path, Path(other)))
    return columns


def _load(path: Path) -> Columns:
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path} (working folder {Path.cwd()})")
    with path.open("rb") as file:
        magic = file.read(8)
        if magic.startswith(_COMPRESSED):
            raise ValueError(
                f"{path} is in cryoSPARC's compressed stream format, which is not read; save it as .cs with"
                " cryosparc-tools: Dataset.load(IN).save(OUT)"
            )
        if not magic.startswith(_MAGIC) or len(magic) < 8:
            raise ValueError(f"{path} is no .cs file: it does not begin with the mark of a NumPy file")
        shape, dtype = _header(path, file, (magic[6], magic[7]))
        if dtype.hasobject:
            raise ValueError(f"{path} holds Python objects, which could run code; it is not read")
        if dtype.names is None or len(shape) != 1:
            raise ValueError(
                f"{path} is no particle table: a NumPy file of shape {shape} and type {dtype}, without named"
                " columns"
            )
        # Compared before any memory is taken: a broken header may ask for any amount.
        expected, actual = shape[0] * dtype.itemsize, path.stat().st_size - file.tell()
        if actual < expected:
            raise ValueError(
                f"{path} is cut off: {shape[0]} rows of {dtype.itemsize} bytes need {expected} bytes, the file"
                f" has {actual}; copy or download it again"
            )
        if actual > expected:
            raise ValueError(
                f"{path} has {actual - expected} bytes more than its {shape[0]} rows; it is damaged"
            )
        if not shape[0]:
            raise ValueError(f"{path} lists no particle")
        records = np.fromfile(file, dtype=dtype, count=shape[0])
    columns = {}
    for name in dtype.names:
        kind = dtype[name].base
        if kind.names is not None or kind.kind not in "buifSU" or dtype[name].itemsize == 0:
            raise ValueError(f"{path}: column {name} is of type {dtype[name]}, not numbers or text")
        columns[name] = np.ascontiguousarray(records[name]).astype(kind.newbyteorder("="), copy=False)
    return columns


def _header(path: Path, file: Any, version: tuple[int, int]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the records, from the header of a NumPy file."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"{path}: NumPy file format {version[0]}.{version[1]} is not read; save it as 1.0")
    try:
        shape, _, dtype = readers[version](file, max_header_size=_MAX_HEADER)
    except Exception as error:  # the header is parsed as Python, which has many ways to fail
        reason = str(error).partition("\n")[0][:200]
        raise ValueError(f"{path}: the header of this .cs file is broken ({reason}); copy it again") from None
    if not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"{path}: the header of this .cs file is broken (shape {shape}); copy it again")
    return shape, dtype


def join_cs(
    main: Mapping[str, NDArray], other: Mapping[str, NDArray], *, names: tuple[Any, Any] = ("main", "other")
) -> Columns:
    """``main`` with the columns of ``other`` that it lacks, joined by ``uid``; ``names`` are for errors."""
    for columns, name in zip((main, other), names, strict=True):
        if "uid" not in columns:
            raise ValueError(f"{name} has no column uid to join by; its columns: {listed(columns)}")
        if columns["uid"].ndim != 1 or columns["uid"].dtype.kind not in "ui":
            raise ValueError(
                f"{name}: column uid is {columns['uid'].dtype}, not one whole number per particle"
            )
    wanted, given = main["uid"], other["uid"]
    order = np.argsort(given, kind="stable")
    ordered = given[order]
    if (ordered[1:] == ordered[:-1]).any():
        twice = ordered[1:][ordered[1:] == ordered[:-1]][0]
        raise ValueError(f"{names[1]}: uid {twice} occurs twice, so that rows cannot be joined by it")
    place = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    missing = ordered[place] != wanted
    if missing.any():
        raise ValueError(
            f"{names[1]} lacks {missing.sum()} of the {len(wanted)} particles of {names[0]} (the first is uid"
            f" {wanted[missing][0]}); pass the passthrough file of the same job"
        )
    new = [name for name in other if name not in main]
    if not new:
        logger.warning("%s adds no column to %s", names[1], names[0])
    rows = order[place]
    return dict(main) | {name: other[name][rows] for name in new}


# --- in RELION's words --------------------------------------------------------------------------------------


def relion_columns(
    path: str | os.PathLike[str], cs: Mapping[str, NDArray], *, flip_y: bool = False
) -> Columns:
    """What a STAR file would say of the particles of a .cs file, in RELION's columns and units.

    Parameters
    ----------
    path : path-like
        Name of the file, for messages.
    cs : mapping
        Columns as `read_cs` gives them.
    flip_y : bool
        Count rlnCoordinateY from the other end of the micrograph: programs that correct motion differ in
        this, and the file does not say. It changes no pose and no image.

    Returns
    -------
    dict
        Text for names, numbers for the rest. Poses are those of ``alignments3D``, else of the most probable
        class of ``alignments3D_multi`` or of the ``alignments_class_*`` columns.
    """
    table = _Reader(Path(path), cs)
    columns = _images(table)
    size = columns["rlnImagePixelSize"].astype(np.float64)
    for name, (label, factor) in CTF_COLUMNS.items():
        if name in cs:
            values = table.numbers(name)
            if factor != 1:
                _radians(table, name, values)
                columns[label] = values * factor
            else:
                columns[label] = cs[name]  # float32: a STAR file then says 0.07, not 0.07000000029802322
    if "ctf/exp_group_id" in cs:
        group = table.numbers("ctf/exp_group_id").astype(np.int64) + 1
        columns["rlnOpticsGroup"] = group.astype(np.str_)
        columns["rlnOpticsGroupName"] = np.char.add("opticsGroup", group.astype(np.str_))
    columns |= _micrographs(table, flip_y)
    columns |= _alignments(table, size)
    if "uid" in cs:
        columns[UID] = cs["uid"].astype(np.str_)
    return columns


def image_signs(path: str | os.PathLike[str], cs: Mapping[str, NDArray]) -> NDArray:
    """``blob/sign`` of each particle, (n,): what the images are multiplied by for white protein."""
    if "blob/sign" not in cs:
        return np.ones(len(next(iter(cs.values()))), dtype=np.float32)
    sign = _Reader(Path(path), cs).numbers("blob/sign")
    if not np.isin(sign, (-1, 1)).all():
        raise ValueError(f"{path}: blob/sign is {sign[~np.isin(sign, (-1, 1))][0]:g}, not 1 or -1")
    return sign.astype(np.float32)


def unsupported(table: Mapping[str, NDArray]) -> dict[str, str]:
    """cryoSPARC's columns with an effect that we do not model: name to "value: what it is"."""
    found = {}
    for name, meaning in _UNSUPPORTED.items():
        if name not in table or table[name].dtype.kind not in "fiu":
            continue
        values = np.asarray(table[name], dtype=np.float64)
        acting = ~(np.abs(values) <= 1e-6)  # NaN acts as well
        if name == "ctf/anisomag" and values.ndim == 2 and values.shape[1] == 4:
            acting &= ~(np.abs(values - [1, 0, 0, 1]) <= 1e-6).all(axis=1, keepdims=True)
        if acting.any():
            row = values[np.flatnonzero(acting.reshape(len(values), -1).any(axis=1))[0]]
            found[name] = f"{np.array2string(np.atleast_1d(row), precision=4)}: {meaning}"
    return found


class _Reader:
    """Columns with checks: what is asked for is there, of the right shape, finite."""

    def __init__(self, path: Path, cs: Mapping[str, NDArray]) -> None:
        self.path, self.cs = path, cs

    def need(self, names: Iterable[str], what: str) -> None:
        missing = [name for name in names if name not in self.cs]
        if missing:
            beside = sorted(p.name for p in self.path.absolute().parent.glob("*passthrough*.cs"))[:3]
            raise ValueError(
                f"{self.path} does not say {what}: no column {', '.join(missing)}. cryoSPARC spreads columns"
                " over several files: pass passthrough= the other file of the job"
                + (f" (beside it: {', '.join(beside)})" if beside else "")
                + f". Its columns: {listed(self.cs)}"
            )

    def numbers(self, name: str, *shape: int) -> NDArray:
        """Column ``name`` as float64, (n, *shape)."""
        column = self.cs[name]
        if column.dtype.kind not in "uif" or column.shape[1:] != shape:
            raise ValueError(
                f"{self.path}: column {name} holds {column.dtype} of shape {column.shape[1:]} per particle,"
                f" not numbers of shape {shape}"
            )
        with np.errstate(invalid="ignore"):
            values = column.astype(np.float64)
        bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        if bad.any():
            raise ValueError(
                f"{self.path}: {name} of particle {np.flatnonzero(bad)[0] + 1} is NaN or infinite ({bad.sum()}"
                " such rows); remove these rows"
            )
        return values

    def text(self, name: str) -> tuple[list[str], NDArray]:
        """The different values of a text column, and which one each particle has."""
        column = self.cs[name]
        if column.dtype.kind not in "SU" or column.ndim != 1:
            raise ValueError(f"{self.path}: column {name} holds {column.dtype}, not text")
        values, which = np.unique(column, return_inverse=True)
        decoded = [os.fsdecode(v) if isinstance(v, bytes) else v for v in values.tolist()]
        # Exported jobs put a > before paths.
        cleaned = [value.removeprefix(">").strip() for value in decoded]
        if not all(cleaned) or any(ord(c) < 32 for value in cleaned for c in value):
            raise ValueError(f"{self.path}: column {name} holds an empty or unprintable name")
        return cleaned, which


def _images(table: _Reader) -> Columns:
    table.need(("blob/path", "blob/idx"), "where the images are")
    table.need(("blob/psize_A",), "the pixel size")
    paths, which = table.text("blob/path")
    index = table.numbers("blob/idx")
    if (index != np.floor(index)).any() or index.min() < 0 or index.max() >= 2**31:
        raise ValueError(
            f"{table.path}: blob/idx is not the number of an image, from 0 (seen {index.min():g})"
        )
    names = [
        f"{i + 1:06d}@{paths[w]}" for i, w in zip(index.astype(int).tolist(), which.tolist(), strict=True)
    ]
    size = table.numbers("blob/psize_A")
    if size.min() <= 0:
        raise ValueError(f"{table.path}: blob/psize_A is {size.min():g} angstrom, not positive")
    columns = {"rlnImageName": np.array(names), "rlnImagePixelSize": table.cs["blob/psize_A"]}
    if "blob/shape" in table.cs:
        shape = table.numbers("blob/shape", 2)
        if (shape < 1).any() or (shape > 2**20).any():
            raise ValueError(f"{table.path}: blob/shape is {shape.min():g} to {shape.max():g} pixels")
        columns["rlnImageSize"] = shape[:, 1].astype(np.int64)
    return columns


def _radians(table: _Reader, name: str, values: NDArray) -> None:
    largest = np.abs(values).max()
    if largest > 4 * np.pi:
        raise ValueError(
            f"{table.path}: {name} reaches {largest:.4g}; radians are expected and this looks like degrees"
        )


def _micrographs(table: _Reader, flip_y: bool) -> Columns:
    columns: Columns = {}
    cs = table.cs
    if "location/micrograph_path" in cs:
        paths, which = table.text("location/micrograph_path")
        columns["rlnMicrographName"] = np.array(paths)[which]
    if all(f"location/{k}" in cs for k in ("center_x_frac", "center_y_frac", "micrograph_shape")):
        x, y = table.numbers("location/center_x_frac"), table.numbers("location/center_y_frac")
        shape = table.numbers("location/micrograph_shape", 2)  # (y, x)
        columns["rlnCoordinateX"] = x * shape[:, 1]
        columns["rlnCoordinateY"] = (1 - y if flip_y else y) * shape[:, 0]
    return columns


def _alignments(table: _Reader, image_size: NDArray) -> Columns:
    """Poses, origins, class and half set of the alignment that the file holds."""
    prefix = alignment(table.cs)
    if prefix is None:
        return {}
    pick = _Pick(table, prefix)
    columns: Columns = {}
    if prefix == "alignments2D":
        pose = pick("pose")
        _radians(table, "alignments2D/pose", pose)
        columns["rlnAnglePsi"] = np.rad2deg(pose)
    else:
        vectors = pick("pose", 3)
        largest = np.linalg.norm(vectors, axis=1).max()
        if largest > 2 * np.pi * (1 + 1e-5):
            raise ValueError(
                f"{table.path}: a rotation vector of {pick.prefix}/pose has length {largest:.4g}, more than a"
                " full turn in radians; are these degrees, or another program's angles?"
            )
        angles = euler_from_matrix(matrix_from_rotvec(vectors))
        columns |= dict(zip(("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"), angles, strict=True))
    if pick.has("shift"):
        if pick.has("psize_A"):
            size = pick("psize_A")
        else:
            size = image_size
            logger.warning(
                "%s: no column %s/psize_A; shifts are taken as pixels of the images", table.path, prefix
            )
        columns |= dict(
            zip(("rlnOriginXAngst", "rlnOriginYAngst"), (pick("shift", 2) * size[:, None]).T, strict=True)
        )
    if pick.has("class"):
        columns["rlnClassNumber"] = pick("class").astype(np.int64) + 1
    if pick.has("split"):
        split = pick("split")
        if np.isin(split, (0, 1)).all() and split.min() < split.max():
            columns["rlnRandomSubset"] = split.astype(np.int64) + 1
        else:
            logger.info("%s: %s/split is not 0 and 1; no half sets", table.path, prefix)
    return columns


def alignment(cs: Mapping[str, NDArray]) -> str | None:
    """Name before the slash of the columns that hold the poses, None where there are none."""
    for prefix in ("alignments3D", "alignments3D_multi"):
        if f"{prefix}/pose" in cs:
            return prefix
    if _class_prefixes(cs):
        return "alignments_class"
    return "alignments2D" if "alignments2D/pose" in cs else None


def _class_prefixes(cs: Mapping[str, NDArray]) -> list[str]:
    """Prefixes of a heterogeneous refinement that keeps a set of columns for each class."""
    found = [name.removesuffix("/pose") for name in cs if name.endswith("/pose")]
    found = [p for p in found if p.startswith("alignments") and f"{p}/class_posterior" in cs]
    return [p for p in found if p not in ("alignments2D", "alignments3D", "alignments3D_multi")]


class _Pick:
    """The columns of an alignment; of several classes, those of the most probable one of each particle."""

    def __init__(self, table: _Reader, prefix: str) -> None:
        self.table, self.prefix = table, prefix
        self.parts: list[str] = []
        self.best: NDArray | None = None
        if prefix == "alignments_class":
            self.parts = _class_prefixes(table.cs)
            posterior = np.stack([table.numbers(f"{p}/class_posterior") for p in self.parts], axis=1)
        elif prefix == "alignments3D_multi":
            table.need((f"{prefix}/class_posterior",), "which class a particle belongs to")
            pose = table.cs[f"{prefix}/pose"]
            if pose.ndim != 3 or pose.shape[1] == 0:
                raise ValueError(f"{table.path}: {prefix}/pose has shape {pose.shape}, not (n, classes, 3)")
            self.classes = pose.shape[1]
            posterior = table.numbers(f"{prefix}/class_posterior", self.classes)
        else:
            return
        self.best = posterior.argmax(axis=1)
        logger.info("%s: poses of the most probable of %d classes", table.path, posterior.shape[1])

    def has(self, name: str) -> bool:
        return all(f"{p}/{name}" in self.table.cs for p in self.parts or [self.prefix])

    def __call__(self, name: str, *shape: int) -> NDArray:
        if self.parts:
            values = np.stack([self.table.numbers(f"{p}/{name}", *shape) for p in self.parts], axis=1)
        elif self.best is not None and self.table.cs[f"{self.prefix}/{name}"].ndim == 2 + len(shape):
            values = self.table.numbers(f"{self.prefix}/{name}", self.classes, *shape)
        else:  # one value for all classes
            return self.table.numbers(f"{self.prefix}/{name}", *shape)
        return values[np.arange(len(values)), self.best]


def listed(names: Iterable[str], most: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def native(name: str) -> bool:
    """Whether a column has a name of cryoSPARC's."""
    return name == "uid" or "/" in name
