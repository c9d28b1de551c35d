"""Headers of MRC2014 / CCP4 files: what a file says, checked against what it is.

The layout is mrcfile's; the reading is ours, because files in the field break the standard in ways that want a
plain answer: a missing identifier, an unset cell, swapped axes, volumes that call themselves stacks, unsigned
bytes, cut-off data. What is odd but readable is noted; what is not is refused with the cure.

All triples here are in the order (z, y, x) of the array axes.
"""

from __future__ import annotations

import bz2
import gzip
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE
from numpy.typing import NDArray

__all__ = ["Kind", "MrcHeader", "header_info", "open_file", "read_header"]

Kind = Literal["volume", "stack"]

HEADER_BYTES = 1024

_DTYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}

_REFUSED = {
    3: "complex 16-bit integers, a Fourier transform; transform it back to real space first",
    4: "complex numbers, a Fourier transform; transform it back to real space first",
    16: "RGB colour; convert it to grey values first",
    101: "packed 4-bit integers; unpack it first, for instance with IMOD: newstack -mode 1 IN OUT",
}

VOLUME_SUFFIXES = (".mrc", ".map", ".ccp4")

STACK_SUFFIXES = (".mrcs", ".st")

_COMPRESSED: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open}

_IMOD_STAMP = 1146047817


@dataclass(frozen=True, eq=False)
class MrcHeader:
    """What the header of a file says, checked against the size of the file.

    Attributes
    ----------
    path : Path
    shape : tuple of int
        (sections, rows, columns), as the data lie in the file.
    axes : tuple of int
        Which axis (1 x, 2 y, 3 z) the sections, rows and columns run along.
    mode : int
        MRC mode.
    dtype : dtype or None
        Of the values in the file; None for the modes that we do not read.
    offset : int
        Byte at which the data begin.
    voxel_size, origin, start : tuple of 3
        Angstrom, angstrom, voxels; (z, y, x). A voxel size of 0 means that the file does not say.
    mz, space_group : int
        MZ and ISPG.
    statistics : tuple of float
        (min, max, mean, rms), as written.
    labels : tuple of str
    stamp : bytes
        Machine stamp, 4 bytes.
    notes : tuple of str
        What is odd about the file and how it was taken.
    """

    path: Path
    shape: tuple[int, int, int]
    axes: tuple[int, int, int]
    mode: int
    dtype: np.dtype | None
    offset: int
    voxel_size: tuple[float, float, float]
    origin: tuple[float, float, float]
    start: tuple[int, int, int]
    mz: int
    space_group: int
    statistics: tuple[float, float, float, float]
    labels: tuple[str, ...]
    stamp: bytes
    notes: tuple[str, ...]

    def kind(self, asked: Kind | None = None) -> tuple[Kind, str]:
        """("volume" or "stack", why): by what was asked, else the suffix, else MZ, else ISPG."""
        says = f"MZ = {self.mz}, NZ = {self.shape[0]}, ISPG = {self.space_group}"
        if asked is not None:
            if asked not in ("volume", "stack"):
                raise ValueError(f"kind must be 'volume' or 'stack', got {asked!r}")
            return asked, f"as asked ({says})"
        path = self.path.with_suffix("") if self.path.suffix in _COMPRESSED else self.path
        suffix = path.suffix.lower()
        if suffix in STACK_SUFFIXES or suffix in VOLUME_SUFFIXES:
            return ("stack" if suffix in STACK_SUFFIXES else "volume"), f"by the suffix {suffix} ({says})"
        if self.shape[0] > 1 and self.mz in (1, self.shape[0]):
            return ("stack" if self.mz == 1 else "volume"), f"by MZ ({says})"
        return ("volume" if self.space_group >= 1 else "stack"), f"by ISPG ({says})"

    def in_plane_pixel_size(self) -> float:
        """Angstrom per pixel of the images of a stack; 0 where the file does not say."""
        _, y, x = self.voxel_size
        return x if x == y or abs(x - y) <= 1e-3 * x else 0.0

    def readable_dtype(self) -> np.dtype:
        """The dtype of the values, or an error that names the mode and the cure."""
        if self.dtype is None:
            raise ValueError(f"{self.path}: MODE {self.mode} is not read: it holds {_REFUSED[self.mode]}")
        return self.dtype

    def memory_map(self) -> NDArray:
        """The data as they lie in the file, (sections, rows, columns), read-only."""
        dtype = self.readable_dtype()
        if self.path.suffix in _COMPRESSED:
            raise ValueError(
                f"{self.path} is compressed and cannot be read in parts; unpack it first (gunzip)"
            )
        return np.memmap(self.path, dtype=dtype, mode="r", offset=self.offset, shape=self.shape)


def read_header(path: str | os.PathLike[str]) -> MrcHeader:
    """Read and check the header of an MRC file; a file of the wrong length is refused."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path} (working folder {Path.cwd()})")
    with _unpacking(path), open_file(path) as file:
        raw = file.read(HEADER_BYTES)
    if len(raw) < HEADER_BYTES:
        raise ValueError(
            f"{path}: the header of an MRC file has {HEADER_BYTES} bytes, the file {len(raw)};"
            " it is cut off, empty or no MRC file"
        )
    notes: list[str] = []
    order = _byte_order(path, raw, notes)
    record = np.frombuffer(raw, HEADER_DTYPE.newbyteorder(order))[0]
    shape = (int(record["nz"]), int(record["ny"]), int(record["nx"]))
    extended = int(record["nsymbt"])
    if extended < 0:
        raise ValueError(
            f"{path}: NSYMBT, the length of the extended header, is {extended}; the header is broken"
        )
    if raw[208:211] != b"MAP":
        notes.append(
            "the header has no 'MAP ' identifier (it is older than MRC2000, or no MRC program wrote it)"
        )

    mode = int(record["mode"])
    dtype = _dtype(path, raw, order, record, notes)
    offset = HEADER_BYTES + extended
    if dtype is not None:
        _check_length(path, offset + math.prod(shape) * dtype.itemsize, shape, mode, notes)

    axes = tuple(int(record[k]) for k in ("maps", "mapr", "mapc"))
    if sorted(axes) != [1, 2, 3]:
        found = ", ".join(str(a) for a in reversed(axes))
        notes.append(f"MAPC, MAPR, MAPS are {found} instead of a permutation of 1, 2, 3; taken as 1, 2, 3")
        axes = (3, 2, 1)
    starts = [int(record[k]) for k in ("nzstart", "nystart", "nxstart")]  # section, row, column
    angles = [float(record["cellb"][k]) for k in ("alpha", "beta", "gamma")]
    if any(a != 0 and abs(a - 90) > 0.01 for a in angles):
        notes.append(
            f"the cell angles are {angles[0]:g}, {angles[1]:g}, {angles[2]:g} degrees: not a square grid"
        )
    count = min(max(int(record["nlabl"]), 0), 10)
    return MrcHeader(
        path=path,
        shape=shape,
        axes=axes,  # type: ignore[arg-type]
        mode=mode,
        dtype=dtype,
        offset=offset,
        voxel_size=tuple(_voxel(record, k) for k in "zyx"),  # type: ignore[arg-type]
        origin=tuple(float(record["origin"][k]) for k in "zyx"),  # type: ignore[arg-type]
        start=tuple(starts[axes.index(k)] for k in (3, 2, 1)),  # type: ignore[arg-type]
        mz=int(record["mz"]),
        space_group=int(record["ispg"]),
        statistics=tuple(float(record[k]) for k in ("dmin", "dmax", "dmean", "rms")),  # type: ignore[arg-type]
        labels=tuple(b.decode("ascii", "replace").rstrip("\0 ") for b in record["label"][:count].tolist()),
        stamp=raw[212:216],
        notes=tuple(notes),
    )


def header_info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The facts of a header as plain values, and what is odd about the file under ``notes``."""
    header = read_header(path)
    kind, reason = header.kind()
    dtype = "not readable: " + _REFUSED[header.mode] if header.dtype is None else header.dtype.name
    return {
        "path": str(header.path),
        "kind": kind,
        "kind_reason": reason,
        "shape": header.shape,
        "mode": header.mode,
        "dtype": dtype,
        "voxel_size": header.voxel_size,
        "origin": header.origin,
        "start": header.start,
        "axes": header.axes[::-1],
        "space_group": header.space_group,
        "mz": header.mz,
        "min": header.statistics[0],
        "max": header.statistics[1],
        "mean": header.statistics[2],
        "rms": header.statistics[3],
        "labels": list(header.labels),
        "notes": list(header.notes),
    }


def open_file(path: Path) -> IO[bytes]:
    if path.suffix in _COMPRESSED:
        return _COMPRESSED[path.suffix](path, "rb")
    return path.open("rb")


@contextmanager
def _unpacking(path: Path) -> Iterator[None]:
    """Names the file where gzip or bzip2 gives up on it."""
    try:
        yield
    except (EOFError, OSError, zlib.error) as error:
        if path.suffix not in _COMPRESSED:
            raise
        raise ValueError(f"{path} cannot be unpacked: {error}; copy or download it again") from error


def _byte_order(path: Path, raw: bytes, notes: list[str]) -> str:
    """'<' or '>': the machine stamp where it makes sense with the size and mode, else what does."""
    names = {"<": "little", ">": "big"}

    def numbers(order: str) -> list[int]:
        return np.frombuffer(raw[:16], order + "i4").tolist()

    def plausible(order: str) -> bool:
        *size, mode = numbers(order)
        return all(0 < n < 2**24 for n in size) and (mode in _DTYPES or mode in _REFUSED)

    stamp = raw[212:216]
    stamped = {b"\x44\x44": "<", b"\x44\x41": "<", b"\x11\x11": ">"}.get(stamp[:2])
    candidates = [order for order in "<>" if plausible(order)]
    if not candidates:
        nx, ny, nz, mode = numbers(stamped or "<")
        raise ValueError(
            f"{path} is no MRC file: NX, NY, NZ = {nx}, {ny}, {nz} and MODE = {mode} make no sense"
            f" (modes read: {', '.join(map(str, _DTYPES))})"
        )
    order = stamped if stamped in candidates else candidates[0]
    if order != stamped:
        notes.append(
            f"machine stamp {stamp.hex(' ')} does not fit; taken as {names[order]}-endian, by size and mode"
        )
    return order


def _dtype(path: Path, raw: bytes, order: str, record: Any, notes: list[str]) -> np.dtype | None:
    """The dtype of the values in the file, None where we do not read the mode."""
    mode = int(record["mode"])
    if mode in _REFUSED:
        return None
    if mode != 0:
        return np.dtype(order + _DTYPES[mode])
    stamp, flags, after = np.frombuffer(raw[152:164], order + "i4").tolist()
    if (flags, after) == (-128, 127):
        notes.append(
            "MODE 0 with steps -128..127 that stand for the range"
            f" {float(record['dmin']):g}..{float(record['dmax']):g}; they are read as steps"
        )
    if stamp == _IMOD_STAMP and flags & 16:
        raise ValueError(f"{path}: MODE 0 with IMOD's flag for 4-bit values: it holds {_REFUSED[101]}")
    if stamp == _IMOD_STAMP and not flags & 1:
        notes.append("MODE 0 with IMOD's stamp and without its flag for signed bytes: read as unsigned")
        return np.dtype("u1")
    if stamp != _IMOD_STAMP and float(record["dmin"]) >= 0 and 127 < float(record["dmax"]) <= 255:
        notes.append(f"MODE 0 with a maximum of {float(record['dmax']):g} in the header: read as unsigned")
        return np.dtype("u1")
    return np.dtype(_DTYPES[0])


def _check_length(path: Path, expected: int, shape: tuple[int, ...], mode: int, notes: list[str]) -> None:
    if path.suffix in _COMPRESSED:
        with _unpacking(path), open_file(path) as file:
            actual = sum(len(part) for part in iter(lambda: file.read(2**20), b""))
    else:
        actual = path.stat().st_size
    if actual < expected:
        raise ValueError(
            f"{path} is cut off: {shape[2]} x {shape[1]} x {shape[0]} values of MODE {mode} need {expected}"
            f" bytes, the file has {actual}; copy or download it again"
        )
    if actual > expected:
        notes.append(
            f"the file has {actual - expected} bytes more than its header asks for; they are not read"
        )


def _voxel(record: Any, axis: str) -> float:
    cell, count = float(record["cella"][axis]), int(record[f"m{axis}"])
    return cell / count if count > 0 and math.isfinite(cell) and cell > 0 else 0.0
