"""Maps and image stacks in MRC2014 / CCP4 files.

The header layout is mrcfile's; the reading is ours, because files in the field break the standard in ways
that want a plain answer: a missing identifier, an unset cell, swapped axes, volumes that call themselves
stacks, unsigned bytes, cut-off data. What is odd but readable is logged; what is not is refused with the
cure.

All triples here are in the order (z, y, x) of the array axes.
"""

from __future__ import annotations

import bz2
import gzip
import logging
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .._version import __version__
from .atomic import atomic_open

__all__ = [
    "Map",
    "MrcHeader",
    "Stack",
    "StackWriter",
    "header_info",
    "open_stack",
    "read_header",
    "read_map",
    "write_map",
    "write_stack",
]

logger = logging.getLogger(__name__)

Kind = Literal["volume", "stack"]

_HEADER_BYTES = 1024
_DTYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
_REFUSED = {
    3: "complex 16-bit integers, a Fourier transform; transform it back to real space first",
    4: "complex numbers, a Fourier transform; transform it back to real space first",
    16: "RGB colour; convert it to grey values first",
    101: "packed 4-bit integers; unpack it first, for instance with IMOD: newstack -mode 1 IN OUT",
}
_VOLUME_SUFFIXES = (".mrc", ".map", ".ccp4")
_STACK_SUFFIXES = (".mrcs", ".st")
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
        if suffix in _STACK_SUFFIXES or suffix in _VOLUME_SUFFIXES:
            return ("stack" if suffix in _STACK_SUFFIXES else "volume"), f"by the suffix {suffix} ({says})"
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
    with _unpacking(path), _open(path) as file:
        raw = file.read(_HEADER_BYTES)
    if len(raw) < _HEADER_BYTES:
        raise ValueError(
            f"{path}: the header of an MRC file has {_HEADER_BYTES} bytes, the file {len(raw)};"
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
    offset = _HEADER_BYTES + extended
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


@dataclass(frozen=True, eq=False)
class Map:
    """A volume and where it lies.

    Attributes
    ----------
    data : ndarray, (z, y, x), float32
    voxel_size : tuple of float, (z, y, x)
        Angstrom; 0 where the file did not say.
    origin : tuple of float, (z, y, x)
        ORIGIN of the header, angstrom.
    start : tuple of int, (z, y, x)
        NZSTART, NYSTART, NXSTART: index of the first voxel.
    labels : tuple of str
    source : str
        Name of the file, for messages.
    """

    data: NDArray
    voxel_size: tuple[float, float, float]
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    start: tuple[int, int, int] = (0, 0, 0)
    labels: tuple[str, ...] = ()
    source: str = "the map"

    @property
    def pixel_size(self) -> float:
        """Angstrom per voxel; an error where it is unknown or differs between the axes."""
        size = self.voxel_size
        if min(size) <= 0:
            raise ValueError(f"{self.source} does not state its voxel size; pass pixel_size= in angstrom")
        if max(size) - min(size) > 1e-3 * max(size):
            raise ValueError(
                f"{self.source} has voxels of {size[0]:.4g} x {size[1]:.4g} x {size[2]:.4g} angstrom (z, y,"
                " x), not cubic ones; resample it to cubic voxels, or pass pixel_size= if the header is wrong"
            )
        return size[2]


def read_map(
    path: str | os.PathLike[str], *, pixel_size: float | None = None, kind: Kind | None = None
) -> Map:
    """Read a volume as float32 with axes (z, y, x), whatever the order of the axes in the file.

    Parameters
    ----------
    path : path-like
        MRC, CCP4 or MAP file; also packed by gzip or bzip2.
    pixel_size : float, optional
        Angstrom per voxel, in place of what the header says.
    kind : "volume", optional
        Says that a file named as a stack (.mrcs, .st) holds a volume all the same.
    """
    header = read_header(path)
    _log_notes(header)
    found, reason = header.kind(kind)
    logger.info("%s is read as a %s, %s", path, found, reason)
    if found == "stack":
        raise ValueError(
            f"{path} is a stack of {header.shape[0]} images, {reason}; use open_stack, or pass kind='volume'"
        )
    if 401 <= header.space_group <= 630 and header.mz not in (0, header.shape[0]):
        raise ValueError(
            f"{path} holds several volumes of {header.mz} sections (ISPG = {header.space_group},"
            f" NZ = {header.shape[0]}); split it into one file per volume"
        )
    dtype = header.readable_dtype()
    with _open(header.path) as file:
        file.seek(header.offset)
        raw = np.frombuffer(file.read(math.prod(header.shape) * dtype.itemsize), dtype=dtype)
    order = [header.axes.index(k) for k in (3, 2, 1)]
    data = np.ascontiguousarray(raw.reshape(header.shape).transpose(order), dtype=np.float32)
    if not data.flags.writeable:
        data = data.copy()
    bad = int(data.size - np.count_nonzero(np.isfinite(data)))
    if bad:
        logger.warning("%s holds %d NaN or infinite values of %d", path, bad, data.size)
    voxel_size = header.voxel_size
    if pixel_size is not None:
        voxel_size = (_positive(pixel_size),) * 3
        if header.voxel_size[2] > 0 and abs(voxel_size[2] / header.voxel_size[2] - 1) > 0.01:
            logger.info(
                "%s: pixel size %.4g angstrom as asked, not %.4g of the header",
                path, voxel_size[2], header.voxel_size[2],
            )  # fmt: skip
    return Map(data, voxel_size, header.origin, header.start, header.labels, str(path))


@dataclass(frozen=True, eq=False)
class Stack:
    """Images that stay in their file until asked for: ``stack[index]`` reads, as float32.

    Attributes
    ----------
    file : ndarray, (n, y, x)
        Read-only memory map, in the dtype of the file.
    header : MrcHeader
    """

    file: NDArray
    header: MrcHeader

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, height, width)."""
        return self.file.shape

    @property
    def dtype(self) -> np.dtype:
        """float32, what indexing returns."""
        return np.dtype(np.float32)

    @property
    def pixel_size(self) -> float:
        """Angstrom per pixel; an error where the file does not say."""
        size = self.header.in_plane_pixel_size()
        if size <= 0:
            raise ValueError(
                f"{self.header.path} states no usable pixel size (voxel {self.header.voxel_size}, z, y, x);"
                " give it in angstrom yourself"
            )
        return size

    def __len__(self) -> int:
        return len(self.file)

    def __getitem__(self, index: Any) -> NDArray:
        return np.array(self.file[index], dtype=np.float32)


def open_stack(path: str | os.PathLike[str]) -> Stack:
    """Open a stack of images without reading them; ``open_stack(path)[:]`` reads all."""
    header = read_header(path)
    _log_notes(header)
    if header.kind()[0] == "volume" and header.shape[0] > 1:
        logger.info("%s is read as a stack of images; alone it would be a volume, %s", path, header.kind()[1])
    if header.axes != (3, 2, 1):
        raise ValueError(f"{path}: a stack needs MAPC, MAPR, MAPS = 1, 2, 3, found {header.axes[::-1]}")
    return Stack(header.memory_map(), header)


class StackWriter:
    """Write a stack image by image, never holding it whole; a context manager.

    The file appears under its name when the block ends well, and not at all after an error.

    Parameters
    ----------
    path : path-like
        Should end in .mrcs: RELION takes .mrc for a volume.
    pixel_size : float
        Angstrom per pixel.
    dtype : float32 or float16
        Of the values in the file (float16 is MRC mode 12, which older programs do not read).
    label : str, optional
        Text for the header.

    Examples
    --------
    >>> with StackWriter("particles.mrcs", 1.06) as writer:  # doctest: +SKIP
    ...     for batch in batches:
    ...         writer.append(batch)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        pixel_size: float,
        *,
        dtype: DTypeLike = np.float32,
        label: str | None = None,
    ) -> None:
        self.path = Path(path)
        self.pixel_size = _positive(pixel_size)
        self.dtype = _writable_dtype(dtype)
        self.label = label
        self.count = 0
        self._statistics = _Statistics()
        self._shape: tuple[int, ...] | None = None
        self._exits = ExitStack()
        self._file: IO[bytes] | None = None
        if self.path.suffix.lower() not in _STACK_SUFFIXES:
            logger.warning("%s: RELION takes a stack for a volume unless its name ends in .mrcs", path)

    def __enter__(self) -> StackWriter:
        self._file = self._exits.enter_context(atomic_open(self.path, "wb"))
        self._exits.push(self._write_header)
        self._file.write(bytes(_HEADER_BYTES))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._exits.__exit__(kind, error, trace)

    def append(self, images: ArrayLike) -> None:
        """Add one image (height, width) or several (k, height, width)."""
        if self._file is None:
            raise RuntimeError(
                "StackWriter is a context manager: append inside `with StackWriter(...) as w:`"
            )
        images = np.asarray(images)
        if images.ndim == 2:
            images = images[None]
        if images.ndim != 3 or (self._shape is not None and images.shape[1:] != self._shape):
            raise ValueError(
                f"{self.path}: expected images of shape {self._shape or '(k, height, width)'},"
                f" got {images.shape}"
            )
        self._shape = images.shape[1:]
        images = _finite(images, self.dtype, self.path, first=self.count)
        self._statistics.add(images)
        images.tofile(self._file)
        self.count += len(images)

    def _write_header(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            return
        if not self.count or self._shape is None or self._file is None:
            raise ValueError(f"{self.path}: no image was given; a stack needs at least one")
        header = _new_header(
            (self.count, *self._shape),
            self.dtype,
            (self.pixel_size,) * 3,
            self._statistics,
            volume=False,
            labels=_labels((), self.label),
        )
        self._file.seek(0)
        self._file.write(header)


def write_stack(
    path: str | os.PathLike[str],
    images: Any,
    pixel_size: float,
    *,
    dtype: DTypeLike = np.float32,
    label: str | None = None,
    batch_size: int = 64,
) -> None:
    """Write images (n, height, width), an array or anything lazy with ``shape`` and slicing, to a stack."""
    if len(images.shape) != 3:
        raise ValueError(f"a stack needs images of shape (n, height, width), got {images.shape}")
    with StackWriter(path, pixel_size, dtype=dtype, label=label) as writer:
        for first in range(0, images.shape[0], batch_size):
            writer.append(images[first : first + batch_size])


def write_map(
    path: str | os.PathLike[str],
    data: ArrayLike,
    pixel_size: float | Sequence[float] | None = None,
    *,
    like: Map | None = None,
    origin: Sequence[float] | None = None,
    start: Sequence[int] | None = None,
    label: str | None = None,
    dtype: DTypeLike = np.float32,
) -> None:
    """Write a volume (ISPG 1, MZ = NZ), complete or not at all.

    Parameters
    ----------
    path : path-like
        Ends in .mrc, .map or .ccp4.
    data : array_like, (z, y, x)
        Real and finite.
    pixel_size : float or (z, y, x), optional
        Angstrom; that of ``like`` if left out.
    like : Map, optional
        The map that ``data`` derives from: gives origin, start and labels.
    origin : (z, y, x), optional
        Angstrom.
    start : (z, y, x), optional
        Index of the first voxel.
    label : str, optional
        Text for the header.
    dtype : float32 or float16
        Of the values in the file (float16 is MRC mode 12, which older programs do not read).
    """
    path, data, dtype = Path(path), np.asarray(data), _writable_dtype(dtype)
    if path.suffix.lower() not in _VOLUME_SUFFIXES:
        raise ValueError(
            f"{path}: a volume must be named .mrc, .map or .ccp4; other programs go by the suffix"
        )
    if data.ndim != 3 or data.size == 0:
        raise ValueError(f"{path}: a volume has shape (z, y, x), got {data.shape}")
    if pixel_size is None:
        if like is None:
            raise ValueError(f"{path}: give pixel_size= in angstrom, or like= a map that has one")
        pixel_size = like.voxel_size
    voxel_size = tuple(_positive(v) for v in np.broadcast_to(np.asarray(pixel_size, float), (3,)))
    if like is not None:
        origin = like.origin if origin is None else origin
        if start is None:
            same_grid = data.shape == like.data.shape and np.allclose(voxel_size, like.voxel_size, rtol=1e-3)
            if any(like.start) and not same_grid:
                raise ValueError(
                    f"{path}: start {like.start} of {like.source} counts voxels of its own grid (shape"
                    f" {like.data.shape}, {like.voxel_size} angstrom), not of shape {data.shape}; pass start="
                )
            start = like.start
    statistics = _Statistics()
    with atomic_open(path, "wb") as file:
        file.write(bytes(_HEADER_BYTES))
        for i in range(len(data)):
            section = _finite(data[i : i + 1], dtype, path, first=i)
            statistics.add(section)
            section.tofile(file)
        header = _new_header(
            data.shape,
            dtype,
            voxel_size,
            statistics,
            volume=True,
            origin=(0.0, 0.0, 0.0) if origin is None else origin,
            start=(0, 0, 0) if start is None else start,
            labels=_labels(like.labels if like is not None else (), label),
        )
        file.seek(0)
        file.write(header)


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


class _Statistics:
    """Minimum, maximum, mean and standard deviation of values that come in parts, in float64."""

    def __init__(self) -> None:
        self.n, self.mean, self.squares = 0, 0.0, 0.0
        self.low, self.high = math.inf, -math.inf

    def add(self, values: NDArray) -> None:
        if not values.size:
            return
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        mean = float(values.mean(dtype=np.float64))
        squares = float(np.square(np.subtract(values, mean, dtype=np.float64)).sum())
        # Chan's update: sums of squares of large values would cancel.
        total = self.n + values.size
        difference = mean - self.mean
        self.squares += squares + difference**2 * self.n * values.size / total
        self.mean += difference * values.size / total
        self.n = total

    @property
    def deviation(self) -> float:
        return math.sqrt(self.squares / self.n)


def _open(path: Path) -> IO[bytes]:
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
        with _unpacking(path), _open(path) as file:
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


def _log_notes(header: MrcHeader) -> None:
    for note in header.notes:
        logger.warning("%s: %s", header.path, note)


def _positive(pixel_size: float) -> float:
    value = float(pixel_size)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"pixel size must be a positive number of angstrom, got {pixel_size}")
    return value


def _writable_dtype(dtype: DTypeLike) -> np.dtype:
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float16):
        raise ValueError(f"MRC files are written as float32 or float16, got {dtype}")
    return dtype.newbyteorder("<")


def _finite(images: NDArray, dtype: np.dtype, path: Path, *, first: int) -> NDArray:
    """``images`` in the dtype of the file, or an error that names the section with NaN or infinite values."""
    if np.iscomplexobj(images):
        raise ValueError(f"{path}: values are complex; write the real part, or transform back first")
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(images, dtype=dtype)
    bad = ~np.isfinite(converted).all(axis=(1, 2))
    if bad.any():
        where = int(np.flatnonzero(bad)[0])
        cause = (
            "are too large for " + dtype.name if np.isfinite(images[where]).all() else "are NaN or infinite"
        )
        raise ValueError(f"{path}: values of section {first + where + 1} {cause}; nothing was written")
    return converted


def _labels(old: Sequence[str], new: str | None) -> list[str]:
    """Up to ten lines of text; ours comes last."""
    return [*old[:9], f"invcryo {__version__}" + (f": {new}" if new else "")]


def _new_header(
    shape: Sequence[int],
    dtype: np.dtype,
    voxel_size: Sequence[float],
    statistics: _Statistics,
    *,
    volume: bool,
    labels: Sequence[str],
    origin: Sequence[float] = (0.0, 0.0, 0.0),
    start: Sequence[int] = (0, 0, 0),
) -> bytes:
    record = np.zeros((), dtype=HEADER_DTYPE.newbyteorder("<"))
    grid = (shape[0] if volume else 1, shape[1], shape[2])
    for i, axis in enumerate("zyx"):
        record["n" + axis] = shape[i]
        record["m" + axis] = grid[i]
        record[f"n{axis}start"] = start[i]
        record["cella"][axis] = grid[i] * voxel_size[i]
        record["origin"][axis] = origin[i]
    for name in ("alpha", "beta", "gamma"):
        record["cellb"][name] = 90.0
    record["mapc"], record["mapr"], record["maps"] = 1, 2, 3
    record["mode"] = 2 if dtype.itemsize == 4 else 12
    record["ispg"] = 1 if volume else 0
    record["nversion"] = 20141
    record["map"] = b"MAP "
    record["machst"] = np.frombuffer(b"\x44\x44\x00\x00", dtype=np.uint8)
    record["dmin"], record["dmax"] = statistics.low, statistics.high
    record["dmean"], record["rms"] = statistics.mean, statistics.deviation
    record["nlabl"] = len(labels)
    for i, text in enumerate(labels):
        record["label"][i] = text.encode("ascii", "replace")[:80].ljust(80)
    return record.tobytes()
