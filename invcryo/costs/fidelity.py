"""The data term."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import array_module, inner
from ..operators import LinOp, Toeplitz
from ..progress import track
from ..symmetry import lattice_coset, point_group, symmetrise
from .base import Cost, Quadratic

__all__ = ["LeastSquares"]

_BATCH_PIXELS = 1 << 22  # pixels of images that are held at a time: 16 MB in single precision


class LeastSquares(Cost):
    """``||A x - y||^2_W / 2``, averaged over the rotations of a point group if one is given.

    Parameters
    ----------
    A : LinOp
        From a volume to a stack of images, e.g. ``ImageFilter.from_ctf(...) @ Projector(...)``.
    y : array-like, shape ``A.oshape``
        The images. May be a lazy stack: it is read in batches, once, by `quadratic`.
    weight : LinOp, optional
        ``W``, e.g. the inverse noise power as an `ImageFilter`.
    symmetry : str
        Point group ("C1", "C4", "D2", "T", "O", "I"): the average over the group of the cost of the images
        seen from rotated poses. Costs nothing per iteration.
    progress : bool, optional
        Show a bar while the images are read; default: only on a terminal.
    """

    def __init__(
        self,
        A: LinOp,
        y: Any,
        weight: LinOp | None = None,
        *,
        symmetry: str = "C1",
        progress: bool | None = None,
    ) -> None:
        if 0 in y.shape:
            raise ValueError(f"the data are empty: shape {tuple(y.shape)}")
        if tuple(y.shape) != A.oshape:
            raise ValueError(f"the data have shape {tuple(y.shape)}, {A!r} makes {A.oshape}")
        if weight is not None and (weight.ishape != A.oshape or weight.oshape != A.oshape):
            raise ValueError(f"the weight {weight!r} does not fit data of shape {A.oshape}")
        self.A, self.y, self.weight = A, y, weight
        self.symmetry, self.progress = symmetry, progress
        self._lattice, self._turns = lattice_coset(symmetry)
        if len(set(A.ishape)) > 1:
            # axes of unequal length cannot be exchanged: every element is a view of its own
            self._lattice, self._turns = self._lattice[:1], point_group(symmetry)

    @property
    def domain(self) -> tuple[tuple[int, ...], np.dtype]:
        return self.A.ishape, self.A.dtype

    def _batches(self) -> Iterator[tuple[Any, LinOp, LinOp | None]]:
        """(images, operator, weight) part by part; everything at once where the operator has no rows."""
        n = self.A.oshape[0]
        step = max(1, _BATCH_PIXELS // max(1, int(np.prod(self.A.oshape[1:]))))
        try:
            self.A.rows(slice(0, 1))
            if self.weight is not None:
                self.weight.rows(slice(0, 1))
        except TypeError:
            yield self._read(slice(None)), self.A, self.weight
            return
        for start in track(range(0, n, step), "reading images", unit="batch", show=self.progress):
            part = slice(start, min(start + step, n))
            yield self._read(part), self.A.rows(part), None if self.weight is None else self.weight.rows(part)

    def _read(self, part: slice) -> Any:
        images = self.y[part]
        if images.dtype != self.A.dtype:
            images = images.astype(self.A.dtype)
        # a sum is finite only if every pixel is, and costs far less than a test of each
        if not np.isfinite(float(images.sum(dtype=np.float64))):
            bad = np.flatnonzero(~np.isfinite(np.asarray(images).reshape(len(images), -1)).all(axis=1))
            first = bad[0] + (part.start or 0) if len(bad) else part.start
            raise ValueError(
                f"image {first} (counted from 0) holds NaN or infinite pixels: leave it out, or repair it"
            )
        return images

    def _views(self, A: LinOp) -> Iterator[LinOp]:
        """The operator from each rotated pose of the group."""
        for turn in self._turns:
            for element in self._lattice:
                yield A if self._order == 1 else A.rotated(turn @ element)

    @property
    def _order(self) -> int:
        return len(self._turns) * len(self._lattice)

    def __call__(self, x: NDArray) -> float:
        total = 0.0
        for images, A, W in self._batches():
            for view in self._views(A):
                r = view.apply(x) - images
                total += 0.5 * inner(r, r if W is None else W.apply(r))
        return total / self._order

    def gradient(self, x: NDArray) -> NDArray:
        total = array_module(x).zeros(self.A.ishape, self.A.dtype)
        for images, A, W in self._batches():
            for view in self._views(A):
                r = view.apply(x) - images
                total += view.adjoint(r if W is None else W.apply(r))
        return total / self._order

    def quadratic(self, shape: tuple[int, ...] | None = None, dtype: Any = None) -> Quadratic:
        """The normal equations: the images are read here, once, and nowhere else.

        Group elements that move voxels onto voxels cost nothing: the kernel and ``A^H y`` are computed for
        one view of each coset and then averaged over them.
        """
        centre = _odd(self.A.ishape) if len(self._lattice) > 1 else self.A.ishape
        b: Any = 0.0
        c = 0.0
        for images, A, W in self._batches():
            weighted = images if W is None else W.apply(images)
            c += 0.5 * inner(images, weighted)
            for turn in self._turns:
                view = A if self._order == 1 else A.rotated(turn).resized(centre)
                b = b + view.adjoint(weighted)
        if len(self._turns) > 1:
            b /= len(self._turns)
        if len(self._lattice) > 1:
            b = symmetrise(b, self._lattice)[tuple(slice(0, n) for n in self.A.ishape)]
        return Quadratic(self._gram(), np.ascontiguousarray(b), c)

    def _gram(self) -> LinOp:
        turns = [self.A.rotated(t) for t in self._turns] if self._order > 1 else [self.A]
        Q = turns[0].gram(self.weight)
        for A in turns[1:]:
            Q = Q + A.gram(self.weight)
        if len(turns) > 1:
            Q = (1.0 / len(turns)) * Q
        if len(self._lattice) > 1:
            if not isinstance(Q, Toeplitz):
                raise TypeError(
                    f"symmetry needs an operator whose gram is a Toeplitz kernel; {self.A!r} gives {Q!r}"
                )
            Q = Toeplitz(symmetrise(Q.kernel, self._lattice), Q.dtype)
        return Q


def _odd(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Sides raised to odd numbers, so that every voxel has its mirror image about index ``n // 2``."""
    return tuple(n + 1 - n % 2 for n in shape)
