"""Loops that array code cannot do well, one function each; formulas stay with their callers.

Each function checks its arrays, picks the compiled twin by their type and sets the number of threads.
Numba is imported at the first call, not before.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import array_module, threads

__all__ = [
    "add_planes",
    "add_slices",
    "ctf_values",
    "difference_adjoint",
    "difference_apply",
    "extract_slices",
    "fill_margins",
    "fold_points",
    "shrink_groups",
    "splat_adjoint",
    "splat_apply",
    "tube_kernel",
]


def _cpu(*arrays: Any, work: int | None = None) -> Any:
    """The Numba twins, with threads set for the size of the ``work``; raises where an array is not NumPy's."""
    for a in arrays:
        if array_module(a) is not np:
            raise TypeError("this kernel has no GPU twin yet: move the array to the host first")
    module = importlib.import_module("invcryo.kernels.cpu")
    module.set_threads(threads(work))
    return module


def ctf_values(terms: NDArray, sx: NDArray, sy: NDArray, power: int, dtype: Any) -> NDArray:
    """``(-sin(t0 + t1 s2 + t2 (sx2 - sy2) + t3 2 sx sy + t4 s4) exp(-t5 s2) t6) ** power``, (n, len(sx))."""
    out = np.empty((len(terms), sx.size), dtype)
    _cpu(terms).ctf_values(np.ascontiguousarray(terms, np.float64), sx.ravel(), sy.ravel(), power, out)
    return out


def extract_slices(values: NDArray, index: NDArray, weight: NDArray, phase_x: NDArray, phase_y: NDArray,
                   out: NDArray) -> None:  # fmt: skip
    """``out[p, index[j]] = values[p, j] * weight[j] * phase_x[p, ix] * phase_y[p, iy]``, zero elsewhere.

    ``index`` counts in the flattened half spectrum ``out[p]`` (height, width).
    """
    _cpu(values).extract_slices(values, index, weight, phase_x, phase_y, out)


def add_slices(spectra: NDArray, index: NDArray, weight: NDArray, phase_x: NDArray, phase_y: NDArray,
               out: NDArray) -> None:  # fmt: skip
    """The adjoint gather of `extract_slices`: ``out[p, j] = spectra[p, index[j]] weight[j] conj(phases)``."""
    _cpu(spectra).add_slices(spectra, index, weight, phase_x, phase_y, out)


def tube_kernel(axes: NDArray, table: NDArray, radius: float, half: tuple[int, int, int]) -> NDArray:
    """``r[k] = sum_p table(|M_p k|^2)`` on lags ``-half..half`` per axis (z, y, x), float64.

    ``axes`` is (n, 2, 3): the two image axes of each view in (x, y, z). ``table`` samples the function at
    equal steps of the squared distance from 0 to ``radius**2``.
    """
    out = np.zeros(tuple(2 * h + 1 for h in half), np.float64)
    _cpu(axes).tube_kernel(np.ascontiguousarray(axes, np.float64), table, float(radius), out)
    return out


def splat_apply(coefficients: NDArray, axes: NDArray, shifts: NDArray, table: NDArray, radius: float,
                out: NDArray) -> None:  # fmt: skip
    """``out[p, j] = sum_k c[k] table(|j - M_p k - t_p|^2)``, ``j`` and ``k`` counted from their centres."""
    _cpu(coefficients).splat_apply(coefficients, axes, shifts, table, float(radius), out)


def splat_adjoint(images: NDArray, axes: NDArray, shifts: NDArray, table: NDArray, radius: float,
                  out: NDArray) -> None:  # fmt: skip
    """``out[k] = sum_p sum_j b[p, j] table(|j - M_p k - t_p|^2)``."""
    _cpu(images).splat_adjoint(images, axes, shifts, table, float(radius), out)


def difference_apply(x: NDArray, periodic: bool, out: NDArray) -> None:
    """Forward differences ``out[a] = x[.. + 1 along a] - x`` of a 3-D array; 0 or wrapped at the end."""
    _cpu(x, work=x.size).difference_apply(x, periodic, out)


def difference_adjoint(u: NDArray, periodic: bool, out: NDArray) -> None:
    """The adjoint of `difference_apply`."""
    _cpu(u, work=out.size).difference_adjoint(u, periodic, out)


def shrink_groups(z: NDArray, tau: float, out: NDArray) -> None:
    """``out[:, k] = z[:, k] max(1 - tau / ||z[:, k]||, 0)``; both (groups, n)."""
    _cpu(z, work=z.size).shrink_groups(z, z.dtype.type(tau), out)


def fold_points(points: NDArray, size: int, margin: int, planes: int, opposite: NDArray) -> None:
    """Move points (3, J) = (x, y, z), rad, to the half space z >= 0, and there to a grid of its own, in place.

    Points with negative z, modulo one turn, change sign; ``opposite`` (J,) says which. Then z = 0, which is plane
    ``margin`` of ``planes``, and z = pi, ``size // 2`` planes on, become angles over all ``planes`` from -pi.
    """
    _cpu(points, work=points.size).fold_points(points, size, margin, planes, opposite)


def add_planes(grid: NDArray, margin: int, total: NDArray) -> None:
    """``total += conj(grid)`` without its margins, whose planes are added where their mirror images lie.

    ``total`` holds planes 0 to the middle of a periodic grid; these two, their own mirror images, count double.
    """
    _cpu(grid, work=grid.size).add_planes(grid, margin, total)


def fill_margins(grid: NDArray, margin: int) -> None:
    """The margins of `add_planes` from their mirror images: ``grid[l] = conj(grid[-l])``."""
    _cpu(grid, work=grid.size).fill_margins(grid, margin)
