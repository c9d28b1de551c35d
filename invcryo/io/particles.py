"""Particle sets of RELION (STAR tables of 3.0, 3.1, 4 and 5) and cryoSPARC (.cs) with their stacks.

Angles are turned into matrices and offsets into pixels here and nowhere else. Images stay on disk:
`StackImages` reads what is indexed.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..ctf import CTF
from ..data import ParticleStack, Poses
from . import cryosparc
from .mrc import MrcHeader, header_info, read_header, write_stack
from .star import StarBlock, read_star, text_to_numbers, write_star

__all__ = ["StackImages", "describe", "read_particles", "write_particles"]

logger = logging.getLogger(__name__)

#: In the order in which RELION asks for them.
_PIXEL_SIZE = (
    "rlnImagePixelSize",
    "rlnMicrographPixelSize",
    "rlnMicrographOriginalPixelSize",
    "rlnTomoTiltSeriesPixelSize",
)
_ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
_ORIGINS = ("rlnOriginXAngst", "rlnOriginYAngst")
_OLD_ORIGINS = ("rlnOriginX", "rlnOriginY")
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
#: What we do not model: column, the value that means "nothing", and what the column says.
_UNSUPPORTED = {
    "rlnMagMat00": (1.0, "anisotropic magnification"),
    "rlnMagMat01": (0.0, "anisotropic magnification"),
    "rlnMagMat10": (0.0, "anisotropic magnification"),
    "rlnMagMat11": (1.0, "anisotropic magnification"),
    "rlnBeamTiltX": (0.0, "beam tilt (mrad)"),
    "rlnBeamTiltY": (0.0, "beam tilt (mrad)"),
    "rlnOddZernike": (0.0, "antisymmetric aberrations"),
    "rlnEvenZernike": (0.0, "symmetric aberrations beyond defocus and Cs"),
    "rlnCtfDataAreCtfPremultiplied": (0.0, "images already multiplied by their CTF"),
    "rlnCtfDataArePhaseFlipped": (0.0, "images already phase-flipped"),
}
_CONTRAST = {"white": 1.0, "dark": -1.0}
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
    table = _load(path, optics_group, passthrough=passthrough, flip_y=flip_y)
    if open_images:
        _check_supported(table, ignore)
    size = _pixel_size(table, pixel_size)
    poses = _poses(table, size, degrees)
    ctf = _ctf(table, voltage_kv, cs_mm, amplitude_contrast)
    sign = _CONTRAST[contrast] * cryosparc.image_signs(path, table.particles)
    images: StackImages | UnreadImages
    if open_images:
        names, file, index = _image_names(table)
        headers = _open_stacks(table, names, file, index, size, None if data_dir is None else Path(data_dir))
        images = StackImages(headers, file, index, sign=sign)
        _check_box(table, images, poses)
    else:
        images = UnreadImages((table.n, *_stated_shape(table)), sign)
    return ParticleStack(
        images=images, pixel_size=size, poses=poses, ctf=ctf, half=_half(table), table=table.columns()
    )


def is_cs(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one of cryoSPARC's, by its name."""
    return Path(path).suffix.lower() == ".cs"


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
    n, table = len(stack), {k: np.asarray(v) for k, v in stack.table.items() if not cryosparc.native(k)}
    table = {k: v.astype(np.str_) for k, v in table.items()}
    readable = isinstance(stack.images, (StackImages, UnreadImages)) and "rlnImageName" in table
    if stack_path is None and not readable:
        raise ValueError("the images are not those of a STAR file; pass stack_path= to write them to a stack")
    if stack.box % 2:
        logger.warning("box %d is odd: RELION reads even boxes only", stack.box)
    lost = cryosparc.lost_in_star(stack.table)
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
            "optics": StarBlock({"rlnOpticsGroup": numbers, "rlnOpticsGroupName": named, **optics}),
            "particles": StarBlock({**table, "rlnOpticsGroup": group + 1}),
        },
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
        table = _load(path, None, passthrough=passthrough)
    elif path.suffix.lower() != ".star":
        return header_info(path)
    else:
        blocks = read_star(path)
        if _particle_block(blocks) is None:
            return {
                "path": str(path),
                "kind": "star",
                "blocks": {name: {"rows": b.rows, "columns": list(b)} for name, b in blocks.items()},
            }
        table = _load(path, None, blocks)
    names, file, index = _image_names(table)
    found, missing, _ = _find_stacks(table.path, names, None if data_dir is None else Path(data_dir))
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
            broken.append(_beyond(int(last[position]) + 1, header))
    try:
        poses_known = _has_poses(table)
    except ValueError as error:
        poses_known = False
        notes.append(str(error))
    half = _half(table)
    return {
        "path": str(path),
        "kind": "particles",
        "particles": table.n,
        "optics_groups": _optics_groups(table),
        "box": sorted(boxes) or [(int(n), int(n)) for n in _distinct(table, "rlnImageSize")],
        "pixel_size": np.unique(sizes).tolist() if (sizes := _pixel_sizes(table)) is not None else [],
        "voltage_kv": _distinct(table, "rlnVoltage"),
        "cs_mm": _distinct(table, "rlnSphericalAberration"),
        "amplitude_contrast": _distinct(table, "rlnAmplitudeContrast"),
        "defocus_angstrom": _span(table, "rlnDefocusU"),
        "half_sets": None if half is None else {1: int((half == 1).sum()), 2: int((half == 2).sum())},
        "poses": poses_known,
        "tilt_histogram": _tilt_histogram(table) if poses_known else None,
        "stacks": len(names),
        "missing_stacks": missing,
        "broken_stacks": broken,
        "unsupported_columns": _unsupported(table),
        "columns": list(table.particles),
        "notes": notes,
    }


# --- tables -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Table:
    """Particles with the optics table joined: ``text`` and ``numbers`` give one value per particle."""

    path: Path
    particles: dict[str, NDArray]
    optics: StarBlock | None
    row: NDArray | None  # of the optics table, for each particle

    @property
    def n(self) -> int:
        return len(next(iter(self.particles.values())))

    def __contains__(self, name: str) -> bool:
        return name in self.particles or (self.optics is not None and name in self.optics)

    def text(self, name: str) -> NDArray:
        if name in self.particles:
            return self.particles[name]
        if self.optics is None:
            raise KeyError(name)
        return self.optics[name][self.row]

    def distinct(self, name: str) -> NDArray:
        """The different values of a column, as text."""
        if name in self.particles or self.optics is None:
            return np.unique(self.text(name))
        return np.unique(self.optics[name][np.unique(self.row)])  # type: ignore[arg-type]

    def parsed(self, name: str, text: NDArray) -> NDArray:
        """``text``, of column ``name``, as float64."""
        try:
            return text_to_numbers(text, name)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None

    def numbers(self, name: str) -> NDArray:
        values = self.parsed(name, self.text(name))
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise ValueError(
                f"{self.path}: {name} of particle {bad[0] + 1} is {values[bad[0]]} ({len(bad)} such rows);"
                " remove these rows"
            )
        return values

    def columns(self) -> dict[str, NDArray]:
        """All columns, one value per particle; those of the optics table share their few long texts."""
        spread = [] if self.optics is None else [k for k in self.optics if k not in self.particles]
        return self.particles | {name: self.optics[name].astype(object)[self.row] for name in spread}  # type: ignore[index]


def _particle_block(blocks: dict[str, StarBlock]) -> StarBlock | None:
    names = [name for name, block in blocks.items() if "rlnImageName" in block]
    return blocks["particles" if "particles" in names else names[0]] if names else None


def _load(
    path: Path,
    optics_group: int | Collection[int] | None,
    blocks: dict[str, StarBlock] | None = None,
    *,
    passthrough: Any = (),
    flip_y: bool = False,
) -> _Table:
    if is_cs(path):
        cs = cryosparc.read_cs(path, passthrough)
        particles = cs | cryosparc.relion_columns(path, cs, flip_y=flip_y)
        return _Table(path, *_chosen(path, particles, None, optics_group))
    if passthrough or flip_y:
        raise ValueError(f"{path}: passthrough= and flip_y= are for .cs files of cryoSPARC")
    blocks = read_star(path) if blocks is None else blocks
    block = _particle_block(blocks)
    if block is None:
        raise ValueError(
            f"{path} is no particle file: no table has a column rlnImageName (tables:"
            f" {', '.join('data_' + name for name in blocks)})"
        )
    if block.rows == 0:
        raise ValueError(f"{path} lists no particle")
    particles, optics, row = dict(block), blocks.get("optics"), None
    if optics is not None:
        if not optics.rows:
            raise ValueError(f"{path}: the optics table has no row; copy the file again")
        if "rlnOpticsGroup" not in particles and optics.rows == 1:
            row = np.zeros(block.rows, dtype=np.intp)
        elif "rlnOpticsGroup" in particles and "rlnOpticsGroup" in optics:
            row = _join(path, block, optics)
        else:
            raise ValueError(
                f"{path}: particles and optics groups are joined by rlnOpticsGroup, which is missing in"
                f" {'the particle' if 'rlnOpticsGroup' in optics else 'the optics'} table"
            )
    particles, optics, row = _chosen(path, particles, optics, optics_group, row)
    table = _Table(path, particles, optics, row)
    if "rlnImageDimensionality" in table and (table.numbers("rlnImageDimensionality") == 3).any():
        raise ValueError(
            f"{path} lists subtomograms (rlnImageDimensionality 3); particles here are 2D images"
        )
    if "rlnTomoVisibleFrames" in table:
        raise ValueError(
            f"{path} lists tilt-series particles (rlnTomoVisibleFrames); particles here are 2D images"
        )
    return table


def _chosen(
    path: Path,
    particles: dict[str, NDArray],
    optics: StarBlock | None,
    optics_group: int | Collection[int] | None,
    row: NDArray | None = None,
) -> tuple[dict[str, NDArray], StarBlock | None, NDArray | None]:
    """The particles of some optics groups: columns, optics table, and row of it for each."""
    if optics_group is None:
        return particles, optics, row
    if "rlnOpticsGroup" not in particles:
        raise ValueError(f"{path} has no column rlnOpticsGroup to select optics_group={optics_group} by")
    numbers = _group_numbers(path, particles["rlnOpticsGroup"])
    keep = np.flatnonzero(np.isin(numbers, np.atleast_1d(np.asarray(optics_group))))
    if not len(keep):
        raise ValueError(f"{path} has no particle of optics group {optics_group}, only {np.unique(numbers)}")
    particles = {name: column[keep] for name, column in particles.items()}
    return particles, optics, None if row is None else row[keep]


def _optics_groups(table: _Table) -> int:
    if table.optics is not None:
        return table.optics.rows
    return len(table.distinct("rlnOpticsGroup")) if is_cs(table.path) and "rlnOpticsGroup" in table else 1


def _stated_shape(table: _Table) -> tuple[int, int]:
    """(height, width) of the images as the table says; 0 x 0 where it does not."""
    if "rlnImageSize" not in table:
        return (0, 0)
    sizes = np.unique(table.numbers("rlnImageSize"))
    if len(sizes) > 1:
        raise ValueError(f"{table.path} mixes boxes of {', '.join(f'{s:g}' for s in sizes)} pixels")
    return (int(sizes[0]), int(sizes[0]))


def _group_numbers(path: Path, text: NDArray) -> NDArray:
    """rlnOpticsGroup as whole numbers."""
    try:
        numbers = text_to_numbers(text, "rlnOpticsGroup")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    odd = ~(np.abs(numbers) < 2**31) | (numbers != np.floor(numbers))
    if odd.any():
        raise ValueError(f"{path}: rlnOpticsGroup is {text[odd][0]}, not a whole number")
    return numbers.astype(int)


def _join(path: Path, particles: StarBlock, optics: StarBlock) -> NDArray:
    """Row of the optics table for each particle, by group number."""
    wanted = _group_numbers(path, particles["rlnOpticsGroup"])
    given = _group_numbers(path, optics["rlnOpticsGroup"])
    if len(np.unique(given)) < len(given):
        raise ValueError(f"{path}: optics group numbers occur twice in the optics table: {given.tolist()}")
    if wanted.min() == 0 and given.min() == 1 and wanted.max() < given.max():
        logger.warning("%s: particles count optics groups from 0, the optics table from 1; 1 was added", path)
        wanted = wanted + 1
    order = np.argsort(given)
    place = np.minimum(np.searchsorted(given, wanted, sorter=order), len(given) - 1)
    row = order[place]
    unknown = np.unique(wanted[given[row] != wanted])
    if len(unknown):
        raise ValueError(
            f"{path}: particles are in optics groups {unknown[:5].tolist()}, which the optics table does not"
            f" have (it has {np.sort(given).tolist()})"
        )
    return row


def _unsupported(table: _Table) -> dict[str, str]:
    """Columns with an effect that we do not model: name to "value: what it is"."""
    found = cryosparc.unsupported(table.particles)
    for name, (neutral, meaning) in _UNSUPPORTED.items():
        if name in table:
            for value in table.distinct(name).tolist():
                parts = table.parsed(name, np.array([v for v in value.strip("[]").split(",") if v]))
                if not (np.abs(parts - neutral) <= 1e-6).all():  # NaN is no neutral value
                    found[name] = f"{value if len(value) < 40 else value[:36] + '...'}: {meaning}"
                    break
    return found


def _check_supported(table: _Table, ignore: Collection[str]) -> None:
    if isinstance(ignore, str):
        raise ValueError(f"ignore must be a collection of column names, such as ({ignore!r},)")
    found = _unsupported(table)
    for name in found.keys() & set(ignore):
        logger.warning("%s: %s = %s is ignored, as asked", table.path, name, found[name])
    rest = {name: what for name, what in found.items() if name not in ignore}
    if rest:
        raise ValueError(
            f"{table.path} asks for corrections that are not modelled here: "
            + "; ".join(f"{name} = {what}" for name, what in rest.items())
            + f". If they are small, pass ignore={tuple(rest)!r} to go on without them"
        )


def _pixel_sizes(table: _Table) -> NDArray | None:
    """Angstrom per pixel of each particle, (n,); None where the file does not say."""
    for name in _PIXEL_SIZE:
        if name in table:
            return table.numbers(name)
    if "rlnDetectorPixelSize" in table and "rlnMagnification" in table:
        with np.errstate(divide="ignore", invalid="ignore"):
            return 1e4 * table.numbers("rlnDetectorPixelSize") / table.numbers("rlnMagnification")
    return None


def _pixel_size(table: _Table, given: float | None) -> float:
    sizes = _pixel_sizes(table)
    if given is not None and not (np.isfinite(given) and given > 0):
        raise ValueError(f"pixel_size must be a positive number of angstrom, got {given}")
    if sizes is None:
        if given is None:
            raise ValueError(
                f"{table.path} states no pixel size: none of {', '.join(_PIXEL_SIZE)}, nor"
                " rlnDetectorPixelSize with rlnMagnification; pass pixel_size= in angstrom"
            )
        return float(given)
    if given is not None:
        if not np.abs(sizes / given - 1).max() <= 0.01:
            logger.warning(
                "%s: pixel size %.4g angstrom as asked, not %.4g of the file", table.path, given, sizes[0]
            )
        return float(given)
    if not (np.isfinite(sizes).all() and sizes.min() > 0):
        raise ValueError(f"{table.path} states a pixel size of {sizes.min():g} angstrom; pass pixel_size=")
    if np.ptp(sizes) > 1e-4 * sizes.max():
        lines = []
        for size in np.unique(sizes):
            rows = sizes == size
            groups = np.unique(table.text("rlnOpticsGroup")[rows]) if "rlnOpticsGroup" in table else ["?"]
            lines.append(f"{size:.6g} angstrom: {rows.sum()} particles, optics groups {', '.join(groups)}")
        raise ValueError(
            f"{table.path} mixes pixel sizes ({'; '.join(lines)}); read one at a time with optics_group=, or"
            " pass pixel_size= if one of them is wrong"
        )
    return float(sizes[0])


def _has_poses(table: _Table) -> bool:
    """Whether there are angles; an error where only some particles have them (-999 stands for none)."""
    if any(name not in table for name in _ANGLES):
        return False
    unset = np.any([table.numbers(name) == -999 for name in _ANGLES], axis=0)
    if unset.any() and not unset.all():
        raise ValueError(
            f"{table.path}: {unset.sum()} of {table.n} particles have no pose (angle -999), the first is"
            f" particle {np.flatnonzero(unset)[0] + 1}; remove these rows"
        )
    return not unset.any()


def _poses(table: _Table, pixel_size: float, degrees: bool | None) -> Poses | None:
    if not _has_poses(table):
        missing = [name for name in _ANGLES if name not in table]
        why = f"no column {', '.join(missing)}" if missing else "all angles are -999"
        logger.warning("%s holds no poses: %s", table.path, why)
        return None
    angles = np.stack([table.numbers(name) for name in _ANGLES])
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
    if all(name in table for name in _ORIGINS):
        shifts = -np.stack([table.numbers(name) for name in _ORIGINS], axis=1) / pixel_size
    elif all(name in table for name in _OLD_ORIGINS):
        shifts = -np.stack([table.numbers(name) for name in _OLD_ORIGINS], axis=1)
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


def _ctf(table: _Table, voltage: float | None, cs: float | None, contrast: float | None) -> CTF | None:
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


def _half(table: _Table) -> NDArray | None:
    if "rlnRandomSubset" not in table:
        return None
    half = table.numbers("rlnRandomSubset").astype(int)
    if not np.isin(half, (1, 2)).all():
        logger.warning("%s: rlnRandomSubset is not 1 or 2 throughout; half sets are left out", table.path)
        return None
    return half


# --- image files --------------------------------------------------------------------------------------------


def _image_names(table: _Table) -> tuple[list[str], NDArray, NDArray]:
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


def _find_stacks(
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


def _open_stacks(
    table: _Table,
    names: Sequence[str],
    file: NDArray,
    index: NDArray,
    pixel_size: float,
    data_dir: Path | None,
) -> list[MrcHeader]:
    """Headers of the stacks, checked against the table; completes ``index`` in place where no @ is given."""
    found, missing, folders = _find_stacks(table.path, names, data_dir)
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
    beyond = np.flatnonzero(index >= counts[file])
    if len(beyond):
        raise ValueError(f"{table.path}: " + _beyond(int(index[beyond[0]]) + 1, headers[file[beyond[0]]]))
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


def _beyond(number: int, header: MrcHeader) -> str:
    return f"image {number} of {header.path}, but the file holds {header.shape[0]} (numbers start at 1)"


def _check_box(table: _Table, images: StackImages, poses: Poses | None) -> None:
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


# --- facts for describe -------------------------------------------------------------------------------------


def _distinct(table: _Table, name: str) -> list[float]:
    return np.unique(table.parsed(name, table.distinct(name))).tolist() if name in table else []


def _span(table: _Table, name: str) -> tuple[float, float] | None:
    if name not in table:
        return None
    values = table.parsed(name, table.text(name))
    return float(values.min()), float(values.max())


def _tilt_histogram(table: _Table) -> dict[str, int]:
    """Number of particles per 18 degrees of tilt, folded to 0..180."""
    tilt = np.rad2deg(np.arccos(np.cos(np.deg2rad(table.numbers("rlnAngleTilt")))))
    counts, edges = np.histogram(tilt, bins=10, range=(0, 180))
    return {f"{a:g}-{b:g}": int(c) for a, b, c in zip(edges[:-1], edges[1:], counts, strict=True)}


# --- writing ------------------------------------------------------------------------------------------------


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
    if all(name in table for name in _ANGLES):
        old = Poses.from_euler_deg(*(table[name].astype(np.float64) for name in _ANGLES))
        kept = bool(np.abs(old.matrices - poses.matrices).max(initial=0) < 1e-9)
    if not kept:
        for name, values in zip(_ANGLES, poses.euler_deg(), strict=True):
            table[name] = np.char.mod("%.6f", values)
    for i, (name, old_name) in enumerate(zip(_ORIGINS, _OLD_ORIGINS, strict=True)):
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
