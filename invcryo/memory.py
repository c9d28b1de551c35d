"""What a reconstruction holds in memory, array by array, before it begins.

The sizes follow from the shapes alone; the interpreter and the libraries are measured in the running process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.fft import next_fast_len

__all__ = [
    "MemoryPlan",
    "PlannedArray",
    "TooLargeError",
    "available_memory",
    "peak_memory",
    "plan_memory",
    "resident_memory",
]

#: The stages of a reconstruction, in order; the largest decides.
STAGES = ("pass over the images", "kernels", "least squares", "regularised", "map")

_SMALLEST_CHUNK = 8
_CHUNK_PIXELS = 1 << 22
_POINTS = 1 << 20  # points that a projector holds at a time
_MARGIN = 4  # of the fine grids


@dataclass(frozen=True)
class PlannedArray:
    """An array, or several of one shape (``count``), and the stages in which it is there."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    stages: tuple[str, ...]
    count: int = 1

    @property
    def bytes(self) -> int:
        return self.count * math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class MemoryPlan:
    """The arrays of a reconstruction and the size of the chunks of images.

    Attributes
    ----------
    arrays : tuple of PlannedArray
    libraries : int
        Bytes that the process held when the plan was made: the interpreter, libraries, tables of particles.
    chunk : int
        Images that are read at a time: the largest that fits, up to the number that is as fast as any.
    limit : float
        Bytes that the process may hold.
    """

    arrays: tuple[PlannedArray, ...]
    libraries: int
    chunk: int
    limit: float

    @property
    def stages(self) -> dict[str, int]:
        """Bytes of each stage, the libraries included."""
        return {
            stage: self.libraries + sum(a.bytes for a in self.arrays if stage in a.stages) for stage in STAGES
        }

    @property
    def peak(self) -> int:
        """Bytes at the largest stage."""
        return max(self.stages.values())

    @property
    def fits(self) -> bool:
        return self.peak <= self.limit

    def as_dict(self) -> dict[str, Any]:
        """For a record in JSON."""
        return {
            "peak_bytes": self.peak,
            "limit_bytes": self.limit,
            "libraries_bytes": self.libraries,
            "chunk": self.chunk,
            "stages": self.stages,
            "arrays": [
                {"name": a.name, "count": a.count, "shape": a.shape, "dtype": a.dtype, "bytes": a.bytes}
                | {"stages": a.stages}
                for a in self.arrays
            ],
        }

    def __str__(self) -> str:
        lines = [f"{'MB':>9}  array"]
        for a in sorted(self.arrays, key=lambda a: -a.bytes):
            times = "" if a.count == 1 else f"{a.count} x "
            shape = " x ".join(map(str, a.shape))
            lines.append(f"{a.bytes / 1e6:9.1f}  {a.name}: {times}{shape} {a.dtype}; {', '.join(a.stages)}")
        lines.append(f"{self.libraries / 1e6:9.1f}  interpreter, libraries and tables, as measured")
        lines += [f"{size / 1e6:9.1f}  in all during: {stage}" for stage, size in self.stages.items()]
        free = "no limit known" if math.isinf(self.limit) else f"of {self.limit / 1e6:.0f} MB allowed"
        lines.append(f"{self.peak / 1e6:9.1f}  at the peak, {free}; {self.chunk} images are read at a time")
        return "\n".join(lines)


def plan_memory(
    particles: int,
    box: int,
    *,
    scale: float = 1.0,
    reg: str = "tv",
    splits: int = 3,
    groups: int = 2,
    half_maps: bool = False,
    ctf: bool = True,
    limit: float | None = None,
    libraries: int | None = None,
) -> MemoryPlan:
    """The memory of `reconstruct`, and the largest chunk of images that keeps it below a limit.

    Parameters
    ----------
    particles, box : int
        Number of images and their side in pixels.
    scale : float
        Pixels per coefficient.
    reg : str
        "none", or the name of a regulariser.
    splits : int
        Volumes that the operator of the regulariser makes of one, 3 for total variation; 0 if it is quadratic.
    groups : int
        Half sets that are kept apart: 2, or 1.
    half_maps : bool
        Whether their maps are kept.
    ctf : bool
        Whether the images have a CTF.
    limit : float, optional
        Bytes that the process may hold; default: what it holds now and what the machine has free.
    libraries : int, optional
        Bytes of all but the arrays; default: what the process holds now.

    Raises
    ------
    TooLargeError
        A MemoryError: with small chunks the job does not fit; it names a scale that does.
    """
    if libraries is None:
        libraries = resident_memory()
    if limit is None:
        limit = libraries + available_memory()

    def plan(chunk: int, scale: float = scale) -> MemoryPlan:
        side = round(box / scale)
        fixed = _sums(side, groups) + _kernels(side, groups) + _solving(side, reg, splits, groups)
        arrays = fixed + _maps(box, half_maps, reg) + _images(min(chunk, particles), box, groups, ctf)
        return MemoryPlan(tuple(arrays), libraries, min(chunk, particles), limit)

    chunk = max(_CHUNK_PIXELS // box**2, _SMALLEST_CHUNK)
    while chunk > _SMALLEST_CHUNK and not plan(chunk).fits:
        chunk = max(chunk // 2, _SMALLEST_CHUNK)
    best = plan(chunk)
    if not best.fits:
        raise TooLargeError(_refusal(best, box, scale, plan))
    return best


class TooLargeError(MemoryError):
    """The arrays of a job do not fit into the memory, found out before it begins."""


def _refusal(best: MemoryPlan, box: int, scale: float, plan: Callable[..., MemoryPlan]) -> str:
    cures = (s for s in (1.5, 2.0, 3.0, 4.0, 6.0, 8.0) if s > scale and plan(_SMALLEST_CHUNK, s).fits)
    coarser = next(cures, None)
    if coarser is None:
        cure = "bin the particles to a smaller box, or use a machine with more memory"
    else:
        needs = plan(_SMALLEST_CHUNK, coarser).peak / 1e9
        binned = 2 * round(box * scale / coarser / 2)
        cure = f"use scale {coarser:g}, which needs {needs:.2f} GB, or bin the particles to a box of {binned}"
    return (
        f"a box of {box} at scale {scale:g} needs {best.peak / 1e9:.2f} GB of memory with chunks of {best.chunk}"
        f" images, and {best.limit / 1e9:.2f} GB may be used: {cure}"
    )


# -- the arrays of each stage -------------------------------------------------------------------------------


def _sums(n: int, groups: int) -> list[PlannedArray]:
    """What the pass adds up: half of the fine grids of two non-uniform FFTs per group."""
    arrays = []
    for name, side, kind in (("H^T y", n, "complex64"), ("the kernel", 2 * n - 1, "float32")):
        fine = _fine(side)
        half = (fine // 2 + 1 + 2 * _MARGIN, fine + 2 * _MARGIN, fine + 2 * _MARGIN)
        arrays.append(PlannedArray(f"sum of {name} on its fine grid", half, kind, STAGES[:1], groups))
        if groups > 1:  # of the groups after the one whose kernel is made
            arrays.append(PlannedArray(f"sum of {name}, waiting", half, kind, STAGES[1:2], groups - 1))
    return arrays


def _images(chunk: int, box: int, groups: int, ctf: bool) -> list[PlannedArray]:
    during = STAGES[:1]
    mine = -(-chunk // groups)
    points = max(min(round(math.pi / 8 * box**2 * mine), _POINTS), box * box // 2)
    arrays = [
        PlannedArray("images in use and coming", (chunk, box, box), "float32", during, 2),
        PlannedArray("images of one group, as they are and filtered", (mine, box, box), "float32", during, 2),
        PlannedArray("spectra of images", (mine, box, box // 2 + 1), "complex64", during),
        PlannedArray("points in order, and their values", (8, points), "float32", during),
    ]
    if ctf:
        arrays.append(PlannedArray("CTF", (mine, box, box // 2 + 1), "float32", during))
    return arrays


def _kernels(n: int, groups: int) -> list[PlannedArray]:
    """The kernels and right sides that are kept, and what making them takes."""
    sets = 3 if groups == 2 else 1
    padded = next_fast_len(2 * n - 1, True)
    cube, after = (padded,) * 3, STAGES[2:]
    return [
        PlannedArray("a kernel in the making", cube, "float32", STAGES[1:2], 4),
        PlannedArray("spectrum of the kernel", (padded, padded, padded // 2 + 1), "float32", after, sets),
        PlannedArray("H^T y", (n, n, n), "float32", after, sets),
        PlannedArray("nearest periodic kernel", (n, n, n // 2 + 1), "float32", after, sets),
        PlannedArray("the same in the making", cube, "float64", STAGES[2:3], 2),
    ]


def _solving(n: int, reg: str, splits: int, groups: int) -> list[PlannedArray]:
    """The solvers' share, in volumes as counted at their peak: the one place to adjust when a solver changes.

    Conjugate gradients are left out: their 8 volumes come after the nearest periodic kernel was made, which takes more.
    """
    volume = (n, n, n)
    arrays = [PlannedArray("a solution by least squares and its state", volume, "float32", STAGES[2:3], 4)]
    if reg != "none":
        # as measured with 1, 3 and 6 volumes per split; a quadratic regulariser takes conjugate gradients
        solver = 14 + 3 * splits if splits else 8
        arrays.append(PlannedArray("the regularised solver", volume, "float32", ("regularised",), solver))
    return arrays


def _maps(box: int, half_maps: bool, reg: str) -> list[PlannedArray]:
    number = (3 if half_maps else 1) * (1 if reg == "none" else 2)
    return [
        PlannedArray("maps", (box,) * 3, "float32", STAGES[2:], number),
        PlannedArray("synthesis of a map", (box,) * 3, "float32", ("map",), 8),
    ]


def _fine(side: int) -> int:
    """Side of the fine grid for a wanted side."""
    size = next_fast_len(max(math.ceil(1.25 * side), 32))
    while size % 2:
        size = next_fast_len(size + 1)
    return size


# -- what the system says -----------------------------------------------------------------------------------


def available_memory() -> float:
    """Free bytes of memory where the system tells, else infinity."""
    return _from_proc("/proc/meminfo", "MemAvailable", math.inf)


def resident_memory() -> int:
    """Bytes that this process holds now; where the system does not tell, what it commonly is."""
    return int(_from_proc("/proc/self/status", "VmRSS", 2.5e8))


def peak_memory() -> int | None:
    """The most bytes that this process has held so far, where the system tells."""
    peak = _from_proc("/proc/self/status", "VmHWM", 0.0)
    return int(peak) or None


def _from_proc(path: str, name: str, otherwise: float) -> float:
    try:
        with open(path) as file:
            for line in file:
                if line.startswith(name):
                    return 1024.0 * int(line.split()[1])
    except OSError:
        pass
    return otherwise
