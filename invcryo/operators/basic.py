"""Identity, diagonal, support mask, zero-padding and cropping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..backend import array_module
from ..data import kept_rows
from .base import LinOp

__all__ = ["Crop", "Diagonal", "Identity", "Mask", "ZeroPad"]


class Identity(LinOp):
    """``x``, as a copy."""

    def __init__(self, shape: Sequence[int], dtype: Any = np.float32) -> None:
        super().__init__(shape, shape, dtype)

    def _apply(self, x: NDArray) -> NDArray:
        return x.copy()  # never the caller's own array: what is done to the output must not reach the input

    def _adjoint(self, y: NDArray) -> NDArray:
        return y.copy()

    def _gram(self, W: LinOp | None) -> LinOp:
        return self if W is None else W

    def _as_weight(self) -> tuple[float, LinOp | None]:
        return 1.0, None

    @property
    def spectrum(self) -> NDArray:
        return np.ones((1,) * len(self.ishape), self.dtype)

    def rows(self, index: Any) -> LinOp:
        return Identity((len(kept_rows(index, self.ishape[0])), *self.ishape[1:]), self.dtype)


class Diagonal(LinOp):
    """``d x``, entry by entry; ``d`` may be any real array of the shape of ``x``."""

    def __init__(self, diagonal: ArrayLike, dtype: Any = None) -> None:
        d: Any = diagonal if hasattr(diagonal, "dtype") else np.asarray(diagonal)
        dtype = dtype if dtype is not None else (d.dtype if d.dtype == np.float64 else np.float32)
        super().__init__(d.shape, d.shape, dtype)
        self.diagonal = d.astype(self.dtype)

    def _apply(self, x: NDArray) -> NDArray:
        return self.diagonal * x

    def _adjoint(self, y: NDArray) -> NDArray:
        return self.diagonal * y

    def _gram(self, W: LinOp | None) -> LinOp:
        if W is None:
            return Diagonal(self.diagonal**2)
        if isinstance(W, Diagonal):
            return Diagonal(self.diagonal**2 * W.diagonal)
        return super()._gram(W)

    def rows(self, index: Any) -> LinOp:
        return Diagonal(self.diagonal[kept_rows(index, self.ishape[0])])

    def nearest_circulant(self) -> NDArray:
        mean = float(self.diagonal.mean(dtype=np.float64))
        return np.full((1,) * len(self.ishape), mean, self.dtype)


class Mask(Diagonal):
    """Keeps the entries where ``mask`` is True, sets the others to zero."""

    def __init__(self, mask: ArrayLike, dtype: Any = np.float32) -> None:
        m: Any = mask if hasattr(mask, "dtype") else np.asarray(mask)
        if m.dtype != bool:
            raise TypeError(f"a mask must be boolean, got {m.dtype}; write mask > 0.5, or use Diagonal")
        super().__init__(m, dtype)

    @classmethod
    def measured(cls, data: ArrayLike, dtype: Any = np.float32) -> Mask:
        """Keeps what was measured: NaN marks what was not."""
        return cls(~np.isnan(np.asarray(data)), dtype)

    def _gram(self, W: LinOp | None) -> LinOp:
        return self if W is None else super()._gram(W)

    def rows(self, index: Any) -> LinOp:
        return Mask(self.diagonal[kept_rows(index, self.ishape[0])] != 0, self.dtype)


class ZeroPad(LinOp):
    """Puts ``x`` into zeros of shape ``oshape`` so that index ``n // 2`` falls on index ``m // 2``."""

    def __init__(self, ishape: Sequence[int], oshape: Sequence[int], dtype: Any = np.float32) -> None:
        super().__init__(ishape, oshape, dtype)
        if len(self.ishape) != len(self.oshape) or any(
            n > m for n, m in zip(self.ishape, self.oshape, strict=True)
        ):
            raise ValueError(f"cannot pad {self.ishape} to {self.oshape}")
        self._place = tuple(
            slice(m // 2 - n // 2, m // 2 - n // 2 + n) for n, m in zip(self.ishape, self.oshape, strict=True)
        )

    def _apply(self, x: NDArray) -> NDArray:
        out = array_module(x).zeros(self.oshape, x.dtype)
        out[self._place] = x
        return out

    def _adjoint(self, y: NDArray) -> NDArray:
        return y[self._place].copy()

    def _gram(self, W: LinOp | None) -> LinOp:
        return Identity(self.ishape, self.dtype) if W is None else super()._gram(W)


class Crop(LinOp):
    """Keeps the central part of shape ``oshape``; the adjoint of `ZeroPad`."""

    def __init__(self, ishape: Sequence[int], oshape: Sequence[int], dtype: Any = np.float32) -> None:
        super().__init__(ishape, oshape, dtype)
        self._pad = ZeroPad(oshape, ishape, dtype)

    def _apply(self, x: NDArray) -> NDArray:
        return self._pad._adjoint(x)

    def _adjoint(self, y: NDArray) -> NDArray:
        return self._pad._apply(y)
