"""The table of a particle set, from STAR or .cs: one value per particle, checked, in RELION's columns."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import cryosparc
from .star import StarBlock, read_star, text_to_numbers

__all__ = [
    "ParticleTable",
    "check_supported",
    "is_cs",
    "load_table",
    "optics_groups",
    "particle_block",
    "pixel_size_of",
    "pixel_sizes",
    "stated_shape",
    "unsupported",
]

logger = logging.getLogger(__name__)

ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")

ORIGINS = ("rlnOriginXAngst", "rlnOriginYAngst")

OLD_ORIGINS = ("rlnOriginX", "rlnOriginY")

#: In the order in which RELION asks for them.
_PIXEL_SIZE = (
    "rlnImagePixelSize",
    "rlnMicrographPixelSize",
    "rlnMicrographOriginalPixelSize",
    "rlnTomoTiltSeriesPixelSize",
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


@dataclass(frozen=True, eq=False)
class ParticleTable:
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


def is_cs(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one of cryoSPARC's, by its name."""
    return Path(path).suffix.lower() == ".cs"


def particle_block(blocks: dict[str, StarBlock]) -> StarBlock | None:
    names = [name for name, block in blocks.items() if "rlnImageName" in block]
    return blocks["particles" if "particles" in names else names[0]] if names else None


def load_table(
    path: Path,
    optics_group: int | Collection[int] | None,
    blocks: dict[str, StarBlock] | None = None,
    *,
    passthrough: Any = (),
    flip_y: bool = False,
) -> ParticleTable:
    if is_cs(path):
        cs = cryosparc.read_cs(path, passthrough)
        particles = cs | cryosparc.relion_columns(path, cs, flip_y=flip_y)
        return ParticleTable(path, *_chosen(path, particles, None, optics_group))
    if passthrough or flip_y:
        raise ValueError(f"{path}: passthrough= and flip_y= are for .cs files of cryoSPARC")
    blocks = read_star(path) if blocks is None else blocks
    block = particle_block(blocks)
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
    table = ParticleTable(path, particles, optics, row)
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


# --- what the table says of the whole ------------------------------------------------------------------------


def optics_groups(table: ParticleTable) -> int:
    if table.optics is not None:
        return table.optics.rows
    return len(table.distinct("rlnOpticsGroup")) if is_cs(table.path) and "rlnOpticsGroup" in table else 1


def stated_shape(table: ParticleTable) -> tuple[int, int]:
    """(height, width) of the images as the table says; 0 x 0 where it does not."""
    if "rlnImageSize" not in table:
        return (0, 0)
    sizes = np.unique(table.numbers("rlnImageSize"))
    if len(sizes) > 1:
        raise ValueError(f"{table.path} mixes boxes of {', '.join(f'{s:g}' for s in sizes)} pixels")
    return (int(sizes[0]), int(sizes[0]))


def unsupported(table: ParticleTable) -> dict[str, str]:
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


def check_supported(table: ParticleTable, ignore: Collection[str]) -> None:
    if isinstance(ignore, str):
        raise ValueError(f"ignore must be a collection of column names, such as ({ignore!r},)")
    found = unsupported(table)
    for name in found.keys() & set(ignore):
        logger.warning("%s: %s = %s is ignored, as asked", table.path, name, found[name])
    rest = {name: what for name, what in found.items() if name not in ignore}
    if rest:
        raise ValueError(
            f"{table.path} asks for corrections that are not modelled here: "
            + "; ".join(f"{name} = {what}" for name, what in rest.items())
            + f". If they are small, pass ignore={tuple(rest)!r} to go on without them"
        )


def pixel_sizes(table: ParticleTable) -> NDArray | None:
    """Angstrom per pixel of each particle, (n,); None where the file does not say."""
    for name in _PIXEL_SIZE:
        if name in table:
            return table.numbers(name)
    if "rlnDetectorPixelSize" in table and "rlnMagnification" in table:
        with np.errstate(divide="ignore", invalid="ignore"):
            return 1e4 * table.numbers("rlnDetectorPixelSize") / table.numbers("rlnMagnification")
    return None


def pixel_size_of(table: ParticleTable, given: float | None) -> float:
    sizes = pixel_sizes(table)
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
