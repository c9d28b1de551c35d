"""What the posterior of Fourier voxels needs beside slices and their adjoint; on the host alone."""

from __future__ import annotations

import importlib

import numpy as np
from numpy.typing import NDArray

from ..backend import threads

__all__ = ["slice_weights"]


def slice_weights(
    g: NDArray, turns: NDArray, step: float, radius: float, sums: NDArray, squares: NDArray
) -> None:
    """Add ``sum_s w_s(voxel) g_s`` and ``sum_s w_s(voxel)^2 g_s``, with the weights of `slice_adjoint`, g real.

    The second is the diagonal of ``S^T diag(g) S``, which no product with S and its adjoint gives.

    Parameters
    ----------
    g : (images, height, height // 2 + 1)
    turns : (images, 3, 3)
    sums, squares : (n, n, n // 2 + 1)
        All of one type.
    """
    shares = threads(8 * g.size)
    importlib.import_module("invcryo.kernels.cpu").set_threads(shares)
    loops = importlib.import_module("invcryo.kernels.cpu_posterior")
    g, turns = (np.array(a, sums.dtype, order="C") for a in (g, turns))
    loops.slice_weights(g, turns, float(step), float(radius), shares, sums, squares)
