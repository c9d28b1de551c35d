"""From coefficients to voxels, as an operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import fft
from ..window import Window, scaled_dft, voxel_shape
from .base import LinOp

__all__ = ["Synthesis"]


class Synthesis(LinOp):
    """``c -> f`` on voxels: `Window.synthesize` as an operator, to regularise the map itself.

    Parameters
    ----------
    window : Window
    shape : (nz, ny, nx)
        Of the coefficients.
    volume_shape : optional
        Of the map; default ``round(scale * n)``.
    scale : float
        Voxels per coefficient, at least 1.
    """

    def __init__(
        self,
        window: Window,
        shape: Sequence[int],
        volume_shape: int | Sequence[int] | None = None,
        *,
        scale: float = 1.0,
        dtype: Any = np.float32,
    ) -> None:
        full = voxel_shape(tuple(shape), volume_shape, scale)  # type: ignore[arg-type]
        super().__init__(shape, full, dtype)
        self.window, self.scale = window, float(scale)

    @property
    def spectrum(self) -> NDArray | None:
        if self.scale == 1.0 and self.ishape == self.oshape:
            return self.window._transfer(self.oshape, 1.0).astype(self.dtype)
        return None

    def _apply(self, x: NDArray) -> NDArray:
        return self.window.synthesize(x, self.oshape, scale=self.scale)  # type: ignore[arg-type]

    def _adjoint(self, y: NDArray) -> NDArray:
        lib = fft(y)
        transfer = self.window._transfer(self.oshape, self.scale)
        if self.spectrum is not None:
            return lib.irfftn(lib.rfftn(y) * transfer.astype(self.dtype), s=self.ishape)
        # irfftn counts every frequency but those of the first column twice (the Nyquist column is zero here)
        weight = 2.0 * transfer / np.prod(self.oshape)
        weight[..., 0] *= 0.5
        part = lib.rfftn(y) * weight.astype(self.dtype)
        for axis in (0, 1, 2):
            matrix = scaled_dft(
                self.ishape[axis], self.oshape[axis], self.scale, half=axis == 2, dtype=self.dtype
            ).conj()
            part = np.moveaxis(np.tensordot(matrix, part, axes=(0, axis)), 0, axis)
        return np.ascontiguousarray(part.real)
