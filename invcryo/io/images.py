"""Images of particles, which stay in their stacks until they are asked for, and where these stacks are."""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import Poses
from .mrc import MrcHeader, read_header
from .table import ParticleTable

__all__ = ["StackImages", "UnreadImages", "beyond", "check_box", "find_stacks", "image_names", "open_stacks"]

logger = logging.getLogger(__name__)

_OPEN_FILES = 16


class StackImages:
    """Images of many stack files, read when indexed; (n, height, width), float32.

    Indexing by a slice, an integer array or an integer returns an ndarray. Reads are grouped by file, at most
    16 files are mapped at a time, and an image with a NaN or infinite pixel is an error that names it.

    Parameters
    ----------
    headers : sequence of MrcHeader
        Of the files, all with images of one shape.
    file : array_like of int, (n,)
        Which of the files each image is in.
    index : array_like of int, (n,)
        Its place in the file, from 0.
    sign : float or array_like of float, (n,)
        Factor applied on reading: -1 for images with dark protein.
    """

    def __init__(
        self, headers: Sequence[MrcHeader], file: NDArray, index: NDArray, *, sign: float | NDArray = 1.0
    ) -> None:
        shapes = {header.shape[1:] for header in headers}
        if len(shapes) != 1:
            raise ValueError(f"all stacks must hold images of one shape, found {sorted(shapes)}")
        self._image_shape = shapes.pop()
        self._headers = tuple(headers)
        self._file = np.asarray(file, dtype=np.intp)
        self._index = np.asarray(index, dtype=np.intp)
        self.sign = np.broadcast_to(np.asarray(sign, dtype=np.float32), self._file.shape)
        self._open: OrderedDict[int, NDArray] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, height, width)."""
        return (len(self._file), *self._image_shape)

    @property
    def dtype(self) -> np.dtype:
        """float32."""
        return np.dtype(np.float32)

    @property
    def paths(self) -> list[Path]:
        """The files that hold the images, each once."""
        return [self._headers[i].path for i in np.unique(self._file)]

    def name(self, position: int) -> str:
        """``index@file`` of one image, the index from 1 as in a STAR file."""
        return f"{self._index[position] + 1}@{self._headers[self._file[position]].path}"

    def subset(self, index: Any) -> StackImages:
        """The images of ``index``, still unread."""
        return StackImages(self._headers, self._file[index], self._index[index], sign=self.sign[index])

    def __len__(self) -> int:
        return len(self._file)

    def __getitem__(self, index: Any) -> NDArray:
        positions = np.arange(len(self))[index]
        if positions.ndim == 0:
            return self[positions[None]][0]
        if positions.ndim != 1:
            raise IndexError("index images by a slice or a one-dimensional array of positions")
        images = np.empty((len(positions), *self._image_shape), dtype=np.float32)
        files, places = self._file[positions], self._index[positions]
        order = np.lexsort((places, files))
        for rows in np.split(order, np.flatnonzero(np.diff(files[order])) + 1):
            if len(rows):
                images[rows] = self._mapped(int(files[rows[0]]))[places[rows]]
        bad = ~np.isfinite(images).all(axis=(1, 2))
        if bad.any():
            names = [self.name(p) for p in positions[bad]]
            raise ValueError(
                f"{len(names)} images hold NaN or infinite pixels: {', '.join(names[:3])}; leave them out or"
                " extract them again"
            )
        sign = self.sign[positions]
        if (sign != 1).any():
            images *= sign[:, None, None]
        return images

    def _mapped(self, file: int) -> NDArray:
        with self._lock:
            if file in self._open:
                self._open.move_to_end(file)
            else:
                self._open[file] = self._headers[file].memory_map()
                if len(self._open) > _OPEN_FILES:
                    self._open.popitem(last=False)
            return self._open[file]

    def __getstate__(self) -> dict[str, Any]:
        # Neither maps nor locks travel to another process.
        return {k: v for k, v in self.__dict__.items() if k not in ("_open", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _open=OrderedDict(), _lock=threading.Lock())


class UnreadImages:
    """Stands for images that are known by name alone; indexing them is an error.

    Parameters
    ----------
    shape : tuple of int
        (n, height, width); 0 x 0 where the box is unknown.
    sign : array_like of float, (n,)
        What they would be multiplied by on reading.
    """

    def __init__(self, shape: tuple[int, int, int], sign: NDArray) -> None:
        self.shape, self.sign = shape, np.asarray(sign, dtype=np.float32)

    @property
    def dtype(self) -> np.dtype:
        """float32."""
        return np.dtype(np.float32)

    def subset(self, index: Any) -> UnreadImages:
        """The images of ``index``, unread as ever."""
        sign = self.sign[index]
        return UnreadImages((len(sign), *self.shape[1:]), sign)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> NDArray:
        raise ValueError("these particles were read without their images; read them with open_images=True")


# --- from the table to the files ------------------------------------------------------------------------------


def image_names(table: ParticleTable) -> tuple[list[str], NDArray, NDArray]:
    """Stack names as in the file, and of each particle the stack and the place in it, from 0 (-1: no @)."""
    positions: dict[str, int] = {}
    file = np.empty(table.n, dtype=np.intp)
    index = np.empty(table.n, dtype=np.intp)
    for row, name in enumerate(table.text("rlnImageName").tolist()):
        number, at, stack = name.partition("@")
        if not at:
            number, stack = "0", name
        elif not number.isdecimal() or int(number) < 1:
            raise ValueError(
                f"{table.path}: rlnImageName {name!r} of particle {row + 1} does not read NUMBER@STACK with a"
                " number from 1"
            )
        file[row] = positions.setdefault(stack, len(positions))
        index[row] = int(number) - 1
    return list(positions), file, index


def find_stacks(
    star: Path, names: Sequence[str], data_dir: Path | None
) -> tuple[dict[int, Path], list[str], list[Path]]:
    """Where each stack is, by position in ``names``; the names not found; the folders tried."""
    folder = Path(os.path.abspath(star)).parent
    folders = list(dict.fromkeys([*([data_dir] if data_dir else []), Path.cwd(), folder, *folder.parents]))
    if data_dir is not None and not data_dir.is_dir():
        raise NotADirectoryError(f"data_dir {data_dir} is not a folder")
    found: dict[int, Path] = {}
    for position, name in enumerate(names):
        place = next((f / name for f in folders if (f / name).is_file()), None)
        if place is not None:
            found[position] = place
    by_base_name = {}
    taken = {place: names[position] for position, place in found.items()}
    for position, name in enumerate(names):
        if position in found or data_dir is None:
            continue
        base = Path(name).name
        swapped = Path(base).with_suffix(".mrc" if base.endswith(".mrcs") else ".mrcs").name
        place = next((data_dir / b for b in (base, swapped) if (data_dir / b).is_file()), None)
        if place is None:
            continue
        if place in taken:
            raise ValueError(
                f"{star}: {taken[place]} and {name} are two stacks, but only {place} is there for both; set"
                " data_dir to the folder that their paths are relative to"
            )
        taken[place] = name
        by_base_name[name] = found[position] = place
    if by_base_name:
        name, place = next(iter(by_base_name.items()))
        logger.warning(
            "%s: %d stacks found by file name alone: %s for %s", star, len(by_base_name), place, name
        )
    return found, [name for position, name in enumerate(names) if position not in found], folders


def open_stacks(
    table: ParticleTable,
    names: Sequence[str],
    file: NDArray,
    index: NDArray,
    pixel_size: float,
    data_dir: Path | None,
) -> list[MrcHeader]:
    """Headers of the stacks, checked against the table; completes ``index`` in place where no @ is given."""
    found, missing, folders = find_stacks(table.path, names, data_dir)
    if missing:
        raise FileNotFoundError(
            f"{table.path}: {len(missing)} of {len(names)} stacks are missing: {', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}. Tried in: {', '.join(map(str, folders))}. Run in the"
            " RELION project folder, or pass data_dir="
        )
    headers = [read_header(found[position]) for position in range(len(names))]
    for header in headers:
        header.readable_dtype()
    whole = index < 0
    for position in np.unique(file[whole]):
        if headers[position].shape[0] > 1:
            raise ValueError(
                f"{table.path}: rlnImageName {names[position]!r} has no NUMBER@, but the file holds"
                f" {headers[position].shape[0]} images"
            )
    index[whole] = 0
    counts = np.array([header.shape[0] for header in headers])
    outside = np.flatnonzero(index >= counts[file])
    if len(outside):
        raise ValueError(f"{table.path}: " + beyond(int(index[outside[0]]) + 1, headers[file[outside[0]]]))
    boxes: dict[tuple[int, int], list[int]] = {}
    for position, header in enumerate(headers):
        boxes.setdefault((header.shape[2], header.shape[1]), []).append(position)
    if len(boxes) > 1:
        lines = []
        for box, members in boxes.items():
            rows = np.isin(file, members)
            groups = np.unique(table.text("rlnOpticsGroup")[rows]) if "rlnOpticsGroup" in table else ["?"]
            lines.append(
                f"{box[0]} x {box[1]}: {rows.sum()} particles, optics groups {', '.join(groups)}, such as"
                f" {headers[members[0]].path}"
            )
        raise ValueError(
            f"{table.path} mixes boxes ({'; '.join(lines)}); read one at a time with optics_group=, or"
            " extract the particles again with one box"
        )
    differing = [
        header for header in headers
        if 0 < header.in_plane_pixel_size() and abs(header.in_plane_pixel_size() / pixel_size - 1) > 0.01
    ]  # fmt: skip
    if differing:
        logger.warning(
            "Pixel size %.4g angstrom (%s) but %.4g (header of %s; %d such stacks): the first is used; pass"
            " pixel_size= to choose",
            pixel_size, table.path, differing[0].in_plane_pixel_size(), differing[0].path, len(differing),
        )  # fmt: skip
    noted = [header for header in headers if header.notes]
    for note in noted[0].notes if noted else ():
        logger.warning("%s (and %d more stacks with notes): %s", noted[0].path, len(noted) - 1, note)
    return headers


def beyond(number: int, header: MrcHeader) -> str:
    return f"image {number} of {header.path}, but the file holds {header.shape[0]} (numbers start at 1)"


def check_box(table: ParticleTable, images: StackImages, poses: Poses | None) -> None:
    _, height, width = images.shape
    if "rlnImageSize" in table:
        stated = table.parsed("rlnImageSize", table.distinct("rlnImageSize"))
        if (stated != width).any():
            logger.warning(
                "%s: rlnImageSize is %g but the images are %d x %d pixels: rescaled images need their own"
                " pixel size, check it", table.path, stated[stated != width][0], width, height,
            )  # fmt: skip
    if poses is not None and len(poses):
        far = np.abs(poses.shifts).max(axis=1) > max(height, width) / 2
        if far.any():
            logger.warning(
                "%s: %d particles are shifted by more than half the box (up to %.1f of %d pixels); are the"
                " offsets in the unit that their column name says?",
                table.path, far.sum(), np.abs(poses.shifts).max(), max(height, width),
            )  # fmt: skip
