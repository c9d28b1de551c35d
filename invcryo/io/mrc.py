"""Maps and image stacks in MRC2014 / CCP4 files, read and written.

What is odd about a file but readable is logged. All triples here are in the order (z, y, x) of the array axes.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .._version import __version__
from .atomic import atomic_open
from .mrc_header import (
    HEADER_BYTES,
    STACK_SUFFIXES,
    VOLUME_SUFFIXES,
    Kind,
    MrcHeader,
    header_info,
    open_file,
    read_header,
)

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
    with open_file(header.path) as file:
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
        if self.path.suffix.lower() not in STACK_SUFFIXES:
            logger.warning("%s: RELION takes a stack for a volume unless its name ends in .mrcs", path)

    def __enter__(self) -> StackWriter:
        self._file = self._exits.enter_context(atomic_open(self.path, "wb"))
        self._exits.push(self._write_header)
        self._file.write(bytes(HEADER_BYTES))
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
    if path.suffix.lower() not in VOLUME_SUFFIXES:
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
        file.write(bytes(HEADER_BYTES))
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
