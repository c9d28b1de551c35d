"""What a data set is: poses, and particle images with what is known of each. Fields and slicing only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .ctf import CTF
from .rotation import euler_from_matrix, matrix_from_euler

__all__ = ["ParticleStack", "Poses", "kept_rows"]


@dataclass(frozen=True, eq=False)
class Poses:
    """Orientations and in-plane positions of n views.

    Attributes
    ----------
    matrices : ndarray, (n, 3, 3), float64
        A point ``r = (x, y, z)`` of the map is seen at ``(matrices[p] @ r)[:2] + shifts[p]``.
    shifts : ndarray, (n, 2), float64
        Where the centre of the map is seen, (x, y), in pixels from the centre ``n // 2`` of the image.
        RELION stores the opposite, in angstrom: ``rlnOriginXAngst = -shift_x * pixel_size``.
    """

    matrices: NDArray
    shifts: NDArray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        matrices = np.array(self.matrices, dtype=np.float64)
        if matrices.ndim != 3 or matrices.shape[1:] != (3, 3):
            raise ValueError(f"poses need matrices of shape (n, 3, 3), got {matrices.shape}")
        shifts = (
            np.zeros((len(matrices), 2)) if self.shifts is None else np.array(self.shifts, dtype=np.float64)
        )
        if shifts.shape != (len(matrices), 2):
            raise ValueError(
                f"{len(matrices)} poses need shifts of shape ({len(matrices)}, 2), got {shifts.shape}"
            )
        if not (np.isfinite(matrices).all() and np.isfinite(shifts).all()):
            raise ValueError("poses hold NaN or infinite values")
        if len(matrices):
            gram = np.einsum("pij,pkj->pik", matrices, matrices)
            worst = np.abs(gram - np.eye(3)).max()
            if worst > 1e-4 or np.linalg.det(matrices).min() < 0:
                raise ValueError(
                    f"pose matrices must be rotations: A A^T differs from the identity by up to {worst:.2g}"
                    f" and the smallest determinant is {np.linalg.det(matrices).min():.2g}"
                )
        matrices.setflags(write=False)
        shifts.setflags(write=False)
        object.__setattr__(self, "matrices", matrices)
        object.__setattr__(self, "shifts", shifts)

    @classmethod
    def from_euler_deg(
        cls, rot: ArrayLike, tilt: ArrayLike, psi: ArrayLike, shifts: ArrayLike | None = None
    ) -> Poses:
        """Poses from RELION's angles in degrees and shifts in pixels (minus rlnOrigin / pixel size)."""
        return cls(np.atleast_3d(matrix_from_euler(np.atleast_1d(rot), tilt, psi)), shifts)  # type: ignore[arg-type]

    def euler_deg(self) -> tuple[NDArray, NDArray, NDArray]:
        """(rot, tilt, psi) in degrees, each (n,)."""
        return euler_from_matrix(self.matrices)

    def __len__(self) -> int:
        return len(self.matrices)

    def __getitem__(self, index: Any) -> Poses:
        index = _rows(index, len(self))
        return Poses(self.matrices[index], self.shifts[index])


@dataclass(frozen=True, eq=False)
class ParticleStack:
    """n particle images and what is known of each.

    Attributes
    ----------
    images : array-like, (n, height, width)
        Real images, protein white. May be lazy: only ``shape``, ``dtype`` and indexing by a slice or an
        integer array (which returns a float32 ndarray) are used; it is never read whole.
    pixel_size : float
        Angstrom per pixel.
    poses : Poses or None
    ctf : CTF or None
    half : ndarray of int or None, (n,)
        Half-set numbers 1 and 2 (rlnRandomSubset).
    table : mapping of str to ndarray
        Every column of the file that the stack came from, by name, one value per particle; kept so that
        writing loses nothing.
    """

    images: Any
    pixel_size: float
    poses: Poses | None = None
    ctf: CTF | None = None
    half: NDArray | None = None
    table: Mapping[str, NDArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.images.shape) != 3:
            raise ValueError(
                f"a particle stack needs images of shape (n, height, width), got {self.images.shape}"
            )
        if not (np.isfinite(self.pixel_size) and self.pixel_size > 0):
            raise ValueError(f"pixel size must be positive angstrom, got {self.pixel_size}")
        n = self.images.shape[0]
        for name in ("poses", "ctf", "half"):
            value = getattr(self, name)
            if value is not None and len(value) != n:
                raise ValueError(f"{n} images but {len(value)} rows of {name}")
        for name, column in self.table.items():
            if len(column) != n:
                raise ValueError(f"{n} images but {len(column)} values of column {name}")

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (int(self.images.shape[1]), int(self.images.shape[2]))

    @property
    def box(self) -> int:
        """Side of the images in pixels; an error where they are not square."""
        height, width = self.image_shape
        if height != width:
            raise ValueError(f"images are {height} x {width}, not square; use image_shape")
        return height

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def __getitem__(self, index: Any) -> ParticleStack:
        """A sub-stack; with a lazy ``images`` nothing is read."""
        index = _rows(index, len(self))
        take = getattr(self.images, "subset", None)
        return dataclasses.replace(
            self,
            images=take(index) if take is not None else self.images[index],
            poses=None if self.poses is None else self.poses[index],
            ctf=None if self.ctf is None else self.ctf[index],
            half=None if self.half is None else self.half[index],
            table={name: column[index] for name, column in self.table.items()},
        )

    def halves(self) -> tuple[ParticleStack, ParticleStack]:
        """The two half sets, by ``half``."""
        if self.half is None:
            raise ValueError("the stack has no half-set numbers; give half=, or split it first")
        return self[self.half == 1], self[self.half == 2]


def kept_rows(index: Any, n: int) -> NDArray:
    """Positions that an index along a first axis of length ``n`` keeps; an integer keeps one row."""
    return np.arange(n)[_rows(index, n)]


def _rows(index: Any, n: int) -> Any:
    """An index that keeps the first axis: slices and positions pass, an integer becomes a slice of one."""
    if isinstance(index, (int, np.integer)) and not isinstance(index, bool):
        if not -n <= index < n:
            raise IndexError(f"row {index} of {n}")
        return slice(int(index) % n, int(index) % n + 1)
    if isinstance(index, slice):
        return index
    index = np.asarray(index)
    if index.dtype != bool:
        return index
    if index.shape != (n,):
        raise IndexError(f"a boolean index of shape {index.shape} for {n} rows")
    return np.flatnonzero(index)
