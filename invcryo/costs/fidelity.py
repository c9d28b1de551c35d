"""The data term: the only place that reads images."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..backend import array_module, inner
from ..operators import Diagonal, Identity, LinOp
from ..progress import track
from .base import Cost, Quadratic
from .normal import NormalSums, Views
from .reading import ReadAhead

__all__ = ["LeastSquares", "NormalEquations"]

log = logging.getLogger(__name__)

_BATCH_PIXELS = 1 << 22  # pixels of images that are held at a time: 16 MB in single precision


class Keeper(Protocol):
    """What a pass needs of a `Checkpoint`: a place for arrays that belong to a job."""

    def load(self, job: dict[str, Any]) -> dict[str, NDArray] | None: ...

    def due(self) -> bool: ...

    def save(self, job: dict[str, Any], arrays: dict[str, NDArray]) -> None: ...


@dataclass
class NormalEquations:
    """What a pass over the images gives.

    Attributes
    ----------
    quadratics : list of Quadratic
        One for each group of images.
    images : int
        Number of images; the pass began at number ``resumed_at``.
    chunk : int
        Images that were read at a time.
    seconds : dict
        Of this pass: ``computing``; ``reading``, most of it meanwhile; ``waiting`` for images, the part of the reading
        that computing did not hide; ``saving`` of checkpoints; ``finishing``, the transforms at the end.
    """

    quadratics: list[Quadratic]
    images: int
    chunk: int
    resumed_at: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


class LeastSquares(Cost):
    """``||A x - y||^2_W / 2``, averaged over the rotations of a point group if one is given.

    Parameters
    ----------
    A : LinOp
        From a volume to a stack of images, e.g. ``ImageFilter.from_ctf(...) @ Projector(...)``.
    y : array-like, shape ``A.oshape``
        The images. May be a lazy stack: `quadratic` reads it once, in chunks, in a thread of its own unless the stack
        has an attribute ``read_ahead`` that is False.
    weight : LinOp, optional
        ``W``, e.g. the inverse noise power as an `ImageFilter`.
    symmetry : str
        Point group ("C1", "C4", "D2", "T", "O", "I"): the average over the group of the cost of the images
        seen from rotated poses. Costs nothing per iteration.
    chunk : int, optional
        Images that are read at a time; default: 4 million pixels.
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
        chunk: int | None = None,
        progress: bool | None = None,
    ) -> None:
        if 0 in y.shape:
            raise ValueError(f"the data are empty: shape {tuple(y.shape)}")
        if tuple(y.shape) != A.oshape:
            raise ValueError(f"the data have shape {tuple(y.shape)}, {A!r} makes {A.oshape}")
        if weight is not None and (weight.ishape != A.oshape or weight.oshape != A.oshape):
            raise ValueError(f"the weight {weight!r} does not fit data of shape {A.oshape}")
        if chunk is not None and chunk < 1:
            raise ValueError(f"a chunk is at least one image, got {chunk}")
        self.A, self.y, self.weight = A, y, weight
        self.symmetry, self.chunk, self.progress = symmetry, chunk, progress
        self._views = Views(symmetry, A.ishape)

    @property
    def domain(self) -> tuple[tuple[int, ...], np.dtype]:
        return self.A.ishape, self.A.dtype

    def __call__(self, x: NDArray) -> float:
        total = 0.0
        for images, A, W in self._batches():
            for view in self._views.all(A):
                r = view.apply(x) - images
                total += 0.5 * inner(r, r if W is None else W.apply(r))
        return total / self._views.order

    def _prox(self, z: NDArray, tau: float, out: NDArray) -> None:
        """Entry by entry, where ``A`` and ``W`` are diagonal: a mask, for one."""
        d, w = _diagonal(self.A), 1.0 if self.weight is None else _diagonal(self.weight)
        if d is None or w is None or self._views.order > 1:
            return super()._prox(z, tau, out)
        pull = z.dtype.type(tau) * w * d
        images = self._read(slice(0, self.A.oshape[0]))
        out[...] = (z + pull * images) / (1 + pull * d)

    def gradient(self, x: NDArray) -> NDArray:
        total = array_module(x).zeros(self.A.ishape, self.A.dtype)
        for images, A, W in self._batches():
            for view in self._views.all(A):
                r = view.apply(x) - images
                total += view.adjoint(r if W is None else W.apply(r))
        return total / self._views.order

    def quadratic(self, shape: tuple[int, ...] | None = None, dtype: Any = None) -> Quadratic:
        """The normal equations: the images are read here, once, and nowhere else."""
        return self.normal_equations().quadratics[0]

    def normal_equations(
        self, groups: ArrayLike | None = None, *, checkpoint: Keeper | None = None
    ) -> NormalEquations:
        """The `quadratic` of each of several groups of images, such as half sets, in one pass over them.

        Parameters
        ----------
        groups : array_like (n,), optional
            The group of each image: one quadratic is made for each value that occurs, in increasing order.
        checkpoint : Checkpoint, optional
            Keeps the sums from time to time. A pass that finds those of an earlier one, which was cut short, goes on
            from there, to the same bits on any number of threads.
        """
        members = self._members(groups)
        parts = self._parts()
        sums = [NormalSums(self.A, self.weight, self._views) for _ in members]
        done, saving = 0, 0.0
        if checkpoint is not None:
            job = self._job(groups, parts)
            done = _restored(sums, checkpoint.load(job))
        first = 0 if done == 0 else parts[done - 1].stop
        if first:
            log.info("going on with an earlier pass: %d of %d images are done", first, self.A.oshape[0])
        start = time.perf_counter()
        with ReadAhead(self._read, parts[done:], ahead=getattr(self.y, "read_ahead", True)) as reader:
            for part in track(parts[done:], "reading images", unit="chunk", show=self.progress):
                images = reader.next()
                for rows, total in zip(members, sums, strict=True):
                    _add(total, self, part, images, rows)
                del images  # else it is held until the next chunk is there, while one more comes in
                done += 1
                if checkpoint is not None and checkpoint.due():
                    saving -= time.perf_counter()
                    checkpoint.save(job, _state(sums, done))
                    saving += time.perf_counter()
        passed = time.perf_counter() - start
        quadratics = []
        for i, rows in enumerate(members):
            total, sums[i] = sums[i], None  # type: ignore[call-overload]
            quadratics.append(total.quadratic(*self._model(rows)))
        seconds = {
            "computing": passed - reader.seconds_waiting - saving,
            "reading": reader.seconds_reading,
            "waiting": reader.seconds_waiting,
            "saving": saving,
            "finishing": time.perf_counter() - start - passed,
        }
        n = self.A.oshape[0]
        return NormalEquations(quadratics, n, min(n, self._step), first, seconds)

    # -- chunks -------------------------------------------------------------------------------------------

    @property
    def _step(self) -> int:
        if self.chunk is not None:
            return self.chunk
        return max(1, _BATCH_PIXELS // max(1, int(np.prod(self.A.oshape[1:]))))

    def _parts(self) -> list[slice]:
        """The chunks; everything at once where the operator has no rows."""
        n = self.A.oshape[0]
        step = self._step if self._has_rows else n
        return [slice(start, min(start + step, n)) for start in range(0, n, step)]

    @property
    def _has_rows(self) -> bool:
        try:
            self._model(slice(0, 1))
        except TypeError:
            return False
        return True

    def _model(self, rows: Any) -> tuple[LinOp, LinOp | None]:
        """The operator and the weight of some images; None: of all."""
        if rows is None:
            return self.A, self.weight
        return self.A.rows(rows), None if self.weight is None else self.weight.rows(rows)

    def _members(self, groups: ArrayLike | None) -> list[NDArray | None]:
        """The places of each group in the stack; None for all of it."""
        if groups is None:
            return [None]
        label, n = np.asarray(groups), self.A.oshape[0]
        if label.shape != (n,):
            raise ValueError(f"groups of {n} images have shape ({n},), got {label.shape}")
        if not self._has_rows:
            raise TypeError(
                f"{self.A!r} does not act on a stack of images, so these cannot be told apart by groups"
            )
        return [np.flatnonzero(label == g) for g in np.unique(label)]

    def _batches(self) -> Iterator[tuple[Any, LinOp, LinOp | None]]:
        """(images, operator, weight) of each chunk."""
        whole = not self._has_rows
        for part in track(self._parts(), "reading images", unit="chunk", show=self.progress):
            yield self._read(part), *self._model(None if whole else part)

    def _read(self, part: slice) -> Any:
        images = self.y[part]
        if images.dtype != self.A.dtype:
            images = images.astype(self.A.dtype)
        # a sum is finite only if every pixel is, and costs far less than a test of each
        if not np.isfinite(float(images.sum(dtype=np.float64))):
            bad = np.flatnonzero(~np.isfinite(np.asarray(images).reshape(len(images), -1)).all(axis=1))
            first = (bad[0] if len(bad) else 0) + part.start
            raise ValueError(
                f"image {first} (counted from 0) holds NaN or infinite pixels: leave it out, or repair it"
            )
        return images

    def _job(self, groups: ArrayLike | None, parts: list[slice]) -> dict[str, Any]:
        """What decides the sums, in words that tell a user what is different about another job."""
        n = self.A.oshape[0]
        sample = [np.asarray(self.y[i : i + 1]) for i in sorted({0, n // 2, n - 1})]
        return {
            "number of particles": n,
            "shape of the images": self.A.oshape[1:],
            "shape of the volume": self.A.ishape,
            "precision": self.A.dtype.name,
            "poses, CTF, window or scale": self.A,
            "weight": self.weight,
            "symmetry": self.symmetry,
            "half sets": None if groups is None else np.asarray(groups),
            "images": sample,
            "chunk size": parts[0].stop,
        }


def _diagonal(operator: LinOp) -> Any:
    """The diagonal of an operator that has nothing else; None where it is not known to be one."""
    if isinstance(operator, Identity):
        return 1.0
    return operator.diagonal if isinstance(operator, Diagonal) else None


def _add(total: NormalSums, cost: LeastSquares, part: slice, images: NDArray, rows: NDArray | None) -> None:
    """Add the images of a chunk that are in one group."""
    if rows is None:
        whole = part == slice(0, cost.A.oshape[0])
        total.add(images, *cost._model(None if whole else part))
        return
    mine = rows[np.searchsorted(rows, part.start) : np.searchsorted(rows, part.stop)]
    if len(mine):
        total.add(images[mine - part.start], *cost._model(mine))


def _state(sums: list[NormalSums], chunks: int) -> dict[str, NDArray]:
    arrays = {f"{name} {i}": array for i, total in enumerate(sums) for name, array in total.state.items()}
    return {"chunks": np.array(chunks), **arrays}


def _restored(sums: list[NormalSums], saved: dict[str, NDArray] | None) -> int:
    """How many chunks are done."""
    if saved is None:
        return 0
    for i, total in enumerate(sums):
        total.restore({name: saved[f"{name} {i}"] for name in total.state})
    return int(saved["chunks"])
