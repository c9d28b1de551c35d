"""Norms."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import kernels
from ..backend import array_module, inner, to_host
from ..operators import Identity
from .base import Cost, Quadratic

__all__ = ["L1", "L21", "GroupLasso", "Schatten", "SquaredL2"]


class Norm(Cost):
    """A norm, or a semi-norm that ignores some entries. Its conjugate is the indicator of the dual unit ball."""

    def _conjugate(self, y: NDArray, factor: float) -> float:
        inside = self.dual_norm(y) <= factor * (1 + 16 * float(np.finfo(y.dtype).eps))
        return 0.0 if inside else np.inf

    def _prox_conjugate(self, z: NDArray, sigma: float, factor: float, out: NDArray) -> None:
        """The projection on the dual ball of radius ``factor``, whatever ``sigma``."""
        xp = array_module(z)
        p = xp.empty_like(z) if xp.may_share_memory(z, out) else out
        self._prox(z, factor, p)
        xp.subtract(z, p, out=out)


class L1(Norm):
    """``sum w |x|``; anisotropic total variation as ``L1() @ Gradient(shape)``.

    Parameters
    ----------
    weight : array-like, optional
        ``w``, not negative, of a shape that broadcasts to that of ``x``; default 1. Entries of weight zero are not
        penalised, e.g. the coarse band of a wavelet transform.
    """

    def __init__(self, weight: ArrayLike | None = None) -> None:
        self.weight: Any = None if weight is None else _weights(weight)

    def __call__(self, x: NDArray) -> float:
        size = array_module(x).abs(x)
        return float((size if self.weight is None else size * self._fitted(x)).sum(dtype=np.float64))

    def dual_norm(self, y: NDArray) -> float:
        """``max |y| / w``; infinite where ``y`` is not zero and ``w`` is."""
        size = array_module(y).abs(y)
        return float(size.max()) if self.weight is None else _largest_ratio(size, self._fitted(y))

    def _prox(self, z: NDArray, tau: float, out: NDArray) -> None:
        self._threshold(z, tau, out, clip=False)

    def _prox_conjugate(self, z: NDArray, sigma: float, factor: float, out: NDArray) -> None:
        self._threshold(z, factor, out, clip=True)

    def _threshold(self, z: NDArray, tau: float, out: NDArray, clip: bool) -> None:
        """``clip(z, -tau w, tau w)``, or ``z`` less that."""
        xp, w = array_module(z), self._fitted(z)
        if w is not None and _contiguous(z, out):
            kernels.shrink_weighted(z.reshape(-1), _runs(w, z.shape), tau, clip, out.reshape(-1))
            return
        t = z.dtype.type(tau) if w is None else (tau * w.astype(np.float64)).astype(z.dtype)
        if clip:
            xp.clip(z, -t, t, out=out)
        elif w is None and _contiguous(z, out):
            kernels.dead_zone(z.reshape(-1), -t, t, out.reshape(-1))
        else:
            xp.subtract(z, xp.clip(z, -t, t), out=out)

    def _fitted(self, x: NDArray) -> Any:
        """The weight with as many axes as ``x``, which it must fit."""
        w = self.weight
        if w is None:
            return None
        lead = (1,) * (x.ndim - w.ndim)
        if w.ndim > x.ndim or any(n not in (1, m) for n, m in zip(lead + w.shape, x.shape, strict=True)):
            raise ValueError(f"a weight of shape {w.shape} does not fit an array of shape {tuple(x.shape)}")
        return w.reshape(lead + w.shape)


class L21(Norm):
    """``sum_k ||x[:, k]||_2``: groups along the first axis; isotropic TV as ``L21() @ Gradient(shape)``."""

    def __call__(self, x: NDArray) -> float:
        return float(_lengths(x).sum(dtype=np.float64))

    def dual_norm(self, y: NDArray) -> float:
        """``max_k ||y[:, k]||_2``."""
        return float(_lengths(y).max())

    def _prox(self, z: NDArray, tau: float, out: NDArray) -> None:
        _shrink_lengths(z, tau, out)

    def _prox_conjugate(self, z: NDArray, sigma: float, factor: float, out: NDArray) -> None:
        _clip_lengths(z, factor, out)


class Schatten(Norm):
    """``sum_k ||X_k||_p``, norms of the eigenvalues of a field of symmetric matrices.

    With `Hessian` this is the Hessian-Schatten norm, a second-order total variation that keeps slopes where TV makes
    stairs: ``Schatten() @ Hessian(shape)`` (Lefkimmiatis, Ward, Unser 2013).

    Parameters
    ----------
    order : 1, 2 or inf
        ``p``: the sum of the absolute eigenvalues (nuclear norm), their length (Frobenius norm), or the largest
        (spectral norm).

    Notes
    -----
    The matrices lie along the first axis: (3, ny, nx) as (yy, xx, yx), or (6, nz, ny, nx) as (zz, yy, xx, zy, zx, yx),
    with the mixed components times sqrt(2), so that lengths along the axis are Frobenius norms. The prox shrinks the
    eigenvalues and leaves the eigenvectors.
    """

    def __init__(self, order: float = 1) -> None:
        if order not in (1, 2, np.inf):
            raise ValueError(f"the order of a Schatten norm is 1, 2 or inf here, got {order}")
        self.order = order

    def _check(self, x: NDArray) -> None:
        if x.ndim == 0 or len(x) not in (3, 6):
            raise ValueError(
                "a field of symmetric matrices has 3 components (yy, xx, yx) or 6 (zz, yy, xx, zy, zx, yx) along its"
                f" first axis, got shape {tuple(x.shape)}"
            )

    def __call__(self, x: NDArray) -> float:
        self._check(x)
        return self._sum_and_largest(x, self.order)[0]

    def dual_norm(self, y: NDArray) -> float:
        """The largest of the matrix norms of order ``q``, ``1/p + 1/q = 1``."""
        self._check(y)
        return self._sum_and_largest(y, {1: np.inf, 2: 2, np.inf: 1}[self.order])[1]

    @staticmethod
    def _sum_and_largest(x: NDArray, order: float) -> tuple[float, float]:
        if order != 2 and _contiguous(x):
            return kernels.matrix_norms(x.reshape(len(x), -1), order == 1)
        if order == 2:
            norms = _lengths(x)
        else:
            size = abs(array_module(x).linalg.eigvalsh(_matrices(x)))
            norms = size.sum(axis=-1) if order == 1 else size.max(axis=-1)
        return float(norms.sum(dtype=np.float64)), float(norms.max())

    def _prox(self, z: NDArray, tau: float, out: NDArray) -> None:
        self._check(z)
        if self.order == 2:
            _shrink_lengths(z, tau, out)
        else:
            self._threshold(z, tau, self.order == np.inf, out)

    def _prox_conjugate(self, z: NDArray, sigma: float, factor: float, out: NDArray) -> None:
        self._check(z)
        if self.order == 2:
            _clip_lengths(z, factor, out)
        else:
            self._threshold(z, factor, self.order == 1, out)

    def _threshold(self, z: NDArray, t: float, clip: bool, out: NDArray) -> None:
        """Eigenvalues clipped, or what a clip leaves over; order inf clips to what its dual ball leaves over."""
        ball = self.order == np.inf
        if _contiguous(z, out):
            kernels.threshold_matrices(z.reshape(len(z), -1), t, ball, clip, out.reshape(len(z), -1))
            return
        xp = array_module(z)
        values, vectors = xp.linalg.eigh(_matrices(z))
        s = _ball_threshold(xp.abs(values), t) if ball else t
        clipped = xp.clip(values, -s, s)
        kept = clipped if clip else values - clipped
        whole = xp.einsum("...ik,...k,...jk->...ij", vectors, kept, vectors)
        for component, (i, j) in zip(out, _PLACES[len(z)], strict=True):
            component[...] = whole[..., i, j] * (1 if i == j else 2**0.5)


class GroupLasso(Norm):
    """``sum_g w_g ||x_g||_2`` over groups of entries that do not overlap: whole groups become zero together.

    Parameters
    ----------
    labels : array-like of int
        The group of each entry, of the shape of ``x``; entries with a negative label are not penalised.
    weights : array-like, optional
        ``w_g``, not negative, for the labels 0, 1, ... in turn; default the square root of the size of the group.
    """

    def __init__(self, labels: ArrayLike, weights: ArrayLike | None = None) -> None:
        group: Any = labels if hasattr(labels, "dtype") else np.asarray(labels)
        if group.dtype.kind not in "iu" or group.size == 0:
            raise TypeError(f"labels of groups are integers, got {group.dtype} of shape {tuple(group.shape)}")
        xp = array_module(group)
        groups = max(int(group.max()) + 1, 0)
        self.shape = tuple(group.shape)
        # one group more, of weight zero, for what is not penalised
        self._index = xp.where(group < 0, groups, group).ravel().astype(np.intp)
        if weights is None:
            w = xp.bincount(self._index, minlength=groups + 1)[:groups] ** 0.5
        else:
            w = xp.asarray(_weights(weights), np.float64)
            if w.shape != (groups,):
                raise ValueError(
                    f"labels up to {groups - 1} need {groups} weights, got shape {tuple(w.shape)}"
                )
        self.weights: Any = xp.append(w, xp.zeros(1))

    def _lengths(self, x: NDArray) -> Any:
        if tuple(x.shape) != self.shape:
            raise ValueError(f"labels of shape {self.shape} do not fit an array of shape {tuple(x.shape)}")
        flat = x.ravel().astype(np.float64)
        return array_module(x).bincount(self._index, weights=flat * flat, minlength=self.weights.size) ** 0.5

    def __call__(self, x: NDArray) -> float:
        return float((self.weights * self._lengths(x)).sum())

    def dual_norm(self, y: NDArray) -> float:
        """``max_g ||y_g|| / w_g``; infinite where ``y`` is not zero and ``w`` is."""
        return _largest_ratio(self._lengths(y), self.weights)

    def _prox(self, z: NDArray, tau: float, out: NDArray) -> None:
        xp, lengths = array_module(z), self._lengths(z)
        t = tau * self.weights
        factor = xp.maximum(lengths - t, 0) / xp.where(lengths > 0, lengths, 1)
        self._scale(z, xp.where(t > 0, factor, 1), out)

    def _prox_conjugate(self, z: NDArray, sigma: float, factor: float, out: NDArray) -> None:
        xp, lengths = array_module(z), self._lengths(z)
        radius = factor * self.weights
        self._scale(z, xp.where(lengths > radius, radius / xp.where(lengths > 0, lengths, 1), 1), out)

    def _scale(self, z: NDArray, factor: Any, out: NDArray) -> None:
        array_module(z).multiply(z, factor.astype(z.dtype)[self._index].reshape(z.shape), out=out)


class SquaredL2(Cost):
    """``||x - center||^2 / 2``; without ``center``, ``||x||^2 / 2``.

    Examples
    --------
    Tikhonov and Sobolev regularisation, which keep the problem quadratic and the normal equations linear:

    >>> from invcryo.operators import Gradient
    >>> shape, lam = (32, 32, 32), 0.1
    >>> tikhonov = lam * SquaredL2()  # lam/2 |x|^2: small values
    >>> sobolev = lam * (SquaredL2() @ Gradient(shape))  # lam/2 |grad x|^2: small slopes
    """

    def __init__(self, center: NDArray | None = None) -> None:
        self.center = center

    def _center(self, x: NDArray) -> NDArray:
        """The centre in the type of ``x``, which stays what it is."""
        if self.center.shape != x.shape:  # type: ignore[union-attr]
            raise ValueError(f"the centre has shape {self.center.shape}, the argument {x.shape}")  # type: ignore
        return self.center.astype(x.dtype, copy=False)  # type: ignore[union-attr]

    def _plus_centre(self, z: NDArray, scale: float, out: NDArray) -> None:
        """``z + scale * center`` to ``out``, which may be ``z``."""
        xp = array_module(z)
        if self.center is None:
            xp.copyto(out, z)
            return
        moved = xp.empty_like(z) if xp.may_share_memory(z, out) else out
        xp.multiply(self._center(z), z.dtype.type(scale), out=moved)
        xp.add(z, moved, out=out)

    def _difference(self, x: NDArray) -> NDArray:
        return x if self.center is None else x - self._center(x)

    def __call__(self, x: NDArray) -> float:
        d = self._difference(x)
        return 0.5 * inner(d, d)

    def _prox(self, z: NDArray, tau: float, out: NDArray) -> None:
        self._plus_centre(z, tau, out)
        out /= 1 + z.dtype.type(tau)

    def _prox_conjugate(self, z: NDArray, sigma: float, factor: float, out: NDArray) -> None:
        """``(z - sigma c) factor / (factor + sigma)``."""
        self._plus_centre(z, -sigma, out)
        out *= z.dtype.type(factor / (factor + sigma))

    def _conjugate(self, y: NDArray, factor: float) -> float:
        """``||y||^2 / (2 factor) + <y, center>``."""
        if factor == 0:
            return np.inf if y.any() else 0.0
        return 0.5 / factor * inner(y, y) + (0.0 if self.center is None else inner(y, self._center(y)))

    def gradient(self, x: NDArray) -> NDArray:
        return self._difference(x).copy()

    def quadratic(self, shape: tuple[int, ...] | None = None, dtype: Any = None) -> Quadratic | None:
        y = self.center
        if y is not None:
            if shape is not None and tuple(shape) != y.shape:
                raise ValueError(f"the centre has shape {y.shape}, the argument {tuple(shape)}")
            return Quadratic(Identity(y.shape, y.dtype if dtype is None else dtype), y, 0.5 * inner(y, y))
        if shape is None:
            raise ValueError("SquaredL2 does not know the shape of its argument: quadratic(shape, dtype)")
        dtype = np.dtype(np.float32 if dtype is None else dtype)
        return Quadratic(Identity(shape, dtype), np.zeros(shape, dtype), 0.0)

    @property
    def domain(self) -> tuple[tuple[int, ...], np.dtype] | None:
        return None if self.center is None else (self.center.shape, self.center.dtype)


#: rows and columns of the components of a matrix that is stored along an axis of 3 or 6
_PLACES = {
    3: [(0, 0), (1, 1), (1, 0)],
    6: [(0, 0), (1, 1), (2, 2), (1, 0), (2, 0), (2, 1)],
}


def _matrices(x: NDArray) -> Any:
    """(..., d, d) in float64 from the components along the first axis."""
    places = _PLACES[len(x)]
    d = places[-1][0] + 1
    out = array_module(x).empty((*x.shape[1:], d, d), np.float64)
    for component, (i, j) in zip(x, places, strict=True):
        out[..., i, j] = component.astype(np.float64) * (1 if i == j else 0.5**0.5)
        out[..., j, i] = out[..., i, j]
    return out


def _ball_threshold(size: Any, t: float) -> Any:
    """The ``s`` for which ``sum_k max(size[..., k] - s, 0) = t``, or 0 where ``sum_k size[..., k] <= t``; (..., 1)."""
    xp = array_module(size)
    falling = xp.sort(size, axis=-1)[..., ::-1]
    mean_excess = (xp.cumsum(falling, axis=-1) - t) / xp.arange(1, size.shape[-1] + 1)
    return xp.maximum(mean_excess.max(axis=-1, keepdims=True), 0)


def _lengths(x: NDArray) -> NDArray:
    xp = array_module(x)
    return xp.sqrt(xp.einsum("i...,i...->...", x, x))


def _shrink_lengths(z: NDArray, tau: float, out: NDArray) -> None:
    """``z[:, k] max(1 - tau / ||z[:, k]||, 0)``."""
    if _contiguous(z, out):
        kernels.shrink_groups(z.reshape(len(z), -1), tau, out.reshape(len(z), -1))
        return
    xp, lengths = array_module(z), _lengths(z)
    # written so that a length of zero is no division by zero
    shrunk = xp.maximum(lengths - z.dtype.type(tau), 0)
    xp.multiply(z, shrunk / xp.maximum(lengths, np.finfo(z.dtype).tiny), out=out)


def _clip_lengths(z: NDArray, radius: float, out: NDArray) -> None:
    """``z[:, k] min(radius / ||z[:, k]||, 1)``."""
    if _contiguous(z, out):
        kernels.project_groups(z.reshape(len(z), -1), radius, out.reshape(len(z), -1))
        return
    xp, r, lengths = array_module(z), z.dtype.type(radius), _lengths(z)
    longer = xp.maximum(lengths, max(r, np.finfo(z.dtype).tiny))
    xp.multiply(z, xp.where(lengths > r, r / longer, z.dtype.type(1)), out=out)


def _contiguous(*arrays: Any) -> bool:
    """Whether compiled loops can run over the arrays as they lie."""
    return all(array_module(a) is np and a.flags.c_contiguous for a in arrays)


def _weights(weight: ArrayLike) -> Any:
    """A copy of some weights, all finite and not negative."""
    w: Any = weight.copy() if hasattr(weight, "dtype") else np.array(weight, np.float64)  # type: ignore[union-attr]
    if w.dtype.kind != "f":
        w = w.astype(np.float64)
    wrong = to_host(w[~((w >= 0) & (w < np.inf))])
    if wrong.size:
        raise ValueError(
            f"weights must be finite and not negative, got {wrong[0]}; a weight of 0 is no penalty"
        )
    return w


def _largest_ratio(size: Any, weight: Any) -> float:
    """``max size / weight``, where 0 / 0 is 0."""
    xp = array_module(size)
    free = weight == 0
    ratio = size / xp.where(free, 1.0, weight)
    return float(xp.where(free & (size > 0), np.inf, ratio * ~free).max())


def _runs(weight: NDArray, shape: tuple[int, ...]) -> NDArray:
    """Weights, each for a run of consecutive entries of an array; they have as many axes as it."""
    lead = max((axis + 1 for axis, n in enumerate(weight.shape) if n > 1), default=0)
    return np.broadcast_to(weight.reshape(weight.shape[:lead]), shape[:lead]).reshape(-1)
