"""Trilinear central slices of a half spectrum, dense, and of sparse combinations of basis volumes.

A spectrum is that of ``rfftn`` of a cubic volume (n, n, n) with its origin at index 0 (`ops.ifftshift` first): (n, n,
n // 2 + 1). A slice (height, height // 2 + 1) is the half spectrum of an image in the same sense. Poses are matrices
(images, 3, 3) as everywhere: rows 0 and 1 are the axes of the image. ``n / height`` is how much finer the spectrum is
sampled than the slices: interpolation is the better the more the volume was padded.

Friedel's law makes slicing linear over the reals only. The first plane of the spectrum, ``k_x = 0``, must be Hermitian,
or slices jump where they cross it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import network as kernels
from . import ops
from .tape import Var, const, namespace, precision, primitive, record

__all__ = [
    "Touched",
    "central_slice",
    "image_from_slice",
    "slice_adjoint",
    "slice_rotations",
    "sparse_factors",
    "sparse_project",
    "sparse_rows",
    "volume_spectrum",
]


def _given(x: Any) -> Var:
    return x if isinstance(x, Var) else const(x)


def _geometry(n: int, turns: Var, height: int, radius: float | None) -> tuple[float, float]:
    """(step, radius): samples of the spectrum per sample of the slice, and where slices end, in theirs."""
    if turns.ndim != 3 or turns.shape[1:] != (3, 3) or turns.dtype.kind != "f":
        raise ValueError(f"poses are real matrices (images, 3, 3), got {turns!r}")
    step = n / height
    largest = min(height / 2, (n // 2) / step)
    return step, largest if radius is None else min(float(radius), largest)


def _checked(spectrum: Var, turns: Var) -> int:
    n = spectrum.shape[0]
    if spectrum.dtype.kind != "c" or spectrum.shape != (n, n, n // 2 + 1):
        raise ValueError(f"a half spectrum (n, n, n // 2 + 1) of a cube is needed, got {spectrum!r}")
    if precision(spectrum) != precision(turns):
        raise TypeError(f"spectrum and poses differ in precision: {spectrum!r}, {turns!r}")
    return n


@primitive
def central_slice(spectrum: Any, turns: Any, height: int | None = None, radius: float | None = None) -> Var:
    """Central slices, (images, height, height // 2 + 1) complex.

    Parameters
    ----------
    spectrum : (n, n, n // 2 + 1), complex
    turns : (images, 3, 3)
        Poses; differentiable once, in all entries of rows 0 and 1 as independent ones.
    height : int, optional
        Of the images in pixels of the same size as the voxels; default ``n``. Padded volumes have ``n > height``.
    radius : float, optional
        Samples at this distance from the origin or beyond are zero; default, and at most, the Nyquist frequency.
    """
    spectrum, turns = _given(spectrum), _given(turns)
    n = _checked(spectrum, turns)
    height = n if height is None else int(height)
    step, radius = _geometry(n, turns, height, radius)
    return record(
        kernels.central_slice(spectrum.data, turns.data, step, radius, height),
        (spectrum, lambda g: slice_adjoint(g, turns, n, radius)),
        (turns, lambda g: slice_rotations(spectrum, turns, g, radius)),
    )


@primitive
def slice_adjoint(g: Any, turns: Any, n: int, radius: float | None = None) -> Var:
    """The adjoint of `central_slice` in the inner product ``Re sum conj(x) y``, (n, n, n // 2 + 1)."""
    g, turns = _given(g), _given(turns)
    step, radius = _geometry(n, turns, g.shape[1], radius)
    return record(
        kernels.slice_adjoint(g.data, turns.data, step, radius, n),
        (g, lambda q: central_slice(q, turns, g.shape[1], radius)),
        (turns, lambda q: slice_rotations(q, turns, g, radius)),
    )


@primitive
def slice_rotations(spectrum: Any, turns: Any, g: Any, radius: float | None = None) -> Var:
    """``d Re <g, slice> / d turns``, (images, 3, 3). A first derivative of trilinear values: it has no further ones."""
    spectrum, turns, g = _given(spectrum), _given(turns), _given(g)
    n = _checked(spectrum, turns)
    step, radius = _geometry(n, turns, g.shape[1], radius)

    def refused(q: Var) -> Var:
        raise NotImplementedError(
            "the derivative of trilinear slices in their poses cannot be differentiated again: use it without"
            " create_graph, or take slices of constant poses"
        )

    out = kernels.slice_rotations(spectrum.data, turns.data, g.data, step, radius)
    return record(out, (spectrum, refused), (turns, refused), (g, refused))


def volume_spectrum(volume: Any, size: int | None = None) -> Var:
    """The half spectrum of a volume (n, n, n) centred at ``n // 2``, padded with zeros to ``size`` first."""
    volume = _given(volume)
    n = volume.shape[0]
    if volume.shape != (n, n, n):
        raise ValueError(f"slices are taken of cubic volumes, got {volume!r}")
    if size is not None and size != n:
        if size < n:
            raise ValueError(f"cannot pad a volume of {n} to {size}")
        start = size // 2 - n // 2
        volume = ops.setitem(volume, (slice(start, start + n),) * 3, (size,) * 3)
    return ops.rfftn(ops.ifftshift(volume, (0, 1, 2)), (0, 1, 2))


def image_from_slice(slices: Any) -> Var:
    """Images (n, height, height) centred at ``height // 2`` of slices; apply filters to the slices before."""
    slices = _given(slices)
    height = slices.shape[1]
    return ops.fftshift(ops.irfftn(slices, (height, height), (1, 2)), (1, 2))


# -- few voxels -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Touched:
    """Which samples of a spectrum some slices touch.

    Attributes
    ----------
    index : (touched,), integers, increasing
        In the flattened half spectrum. A parameter of shape (n * n * (n // 2 + 1), K) gives ``leaf(V[index])``, and
        sparse Adam takes ``index`` again.
    places : (n, n, n // 2 + 1), int32
        Row of each sample, -1 where it is not touched.
    turns : (images, 3, 3)
    height, radius
        As of `central_slice`.
    """

    index: NDArray
    places: NDArray
    turns: Any
    height: int
    radius: float

    @classmethod
    def by(cls, turns: Any, n: int, height: int | None = None, radius: float | None = None) -> Touched:
        """By the slices of these poses through a spectrum of side ``n``."""
        turns = _given(turns)
        height = n if height is None else int(height)
        step, radius = _geometry(n, turns, height, radius)
        xp = namespace(turns.data)
        marked = kernels.mark(turns.data, step, radius, height, n)
        index = xp.flatnonzero(marked)
        places = xp.full(marked.size, -1, dtype=np.int32)
        places[index] = xp.arange(index.size, dtype=np.int32)
        return cls(index, places.reshape(marked.shape), turns.data, height, radius)

    @property
    def step(self) -> float:
        return self.places.shape[0] / self.height


def _sparse(touched: Touched, factors: Any = None, rows: Any = None, g: Any = None) -> list[Var]:
    given = [_given(v) for v in (factors, rows, g) if v is not None]
    for v in given:
        if precision(v) != precision(touched.turns):
            raise TypeError(f"{v!r} and the poses {touched.turns.dtype} differ in precision")
    if rows is not None and _given(rows).shape[0] != touched.index.size:
        raise ValueError(f"{touched.index.size} samples are touched, got rows {_given(rows)!r}")
    if factors is not None and _given(factors).shape[0] != len(touched.turns):
        raise ValueError(f"{len(touched.turns)} slices need factors for each, got {_given(factors)!r}")
    return given


@primitive
def sparse_project(rows: Any, factors: Any, touched: Touched) -> Var:
    """Slices of ``sum_k factors[b, k] V_k``, with ``rows = V[touched.index]`` alone, (touched, K) complex.

    Linear in each of ``rows``, ``factors`` (images, K) and the cotangent, to every order.
    """
    factors, rows = _sparse(touched, factors, rows)
    if rows.shape[1] != factors.shape[1]:
        raise ValueError(f"rows {rows!r} and factors {factors!r} differ in the number of volumes")
    t = touched
    return record(
        kernels.sparse_project(rows.data, t.places, factors.data, t.turns, t.step, t.radius, t.height),
        (rows, lambda g: sparse_rows(factors, g, t)),
        (factors, lambda g: sparse_factors(rows, g, t)),
    )


@primitive
def sparse_rows(factors: Any, g: Any, touched: Touched) -> Var:
    """The adjoint of `sparse_project` in ``rows``."""
    factors, g = _sparse(touched, factors, g=g)
    t = touched
    return record(
        kernels.sparse_rows(t.places, factors.data, g.data, t.turns, t.step, t.radius, t.index.size),
        (factors, lambda q: sparse_factors(q, g, t)),
        (g, lambda q: sparse_project(q, factors, t)),
    )


@primitive
def sparse_factors(rows: Any, g: Any, touched: Touched) -> Var:
    """The adjoint of `sparse_project` in ``factors``."""
    rows, g = _sparse(touched, rows=rows, g=g)
    t = touched
    return record(
        kernels.sparse_factors(rows.data, t.places, g.data, t.turns, t.step, t.radius),
        (rows, lambda q: sparse_rows(q, g, t)),
        (g, lambda q: sparse_project(rows, q, t)),
    )
