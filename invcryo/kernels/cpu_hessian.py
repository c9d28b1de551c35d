"""Numba loops of second differences of a volume.

Inner loops run along rows, with few arrays each: the compiler vectorises a loop only where it can check that its
arrays do not overlap, and it checks eight pairs at most. Rows one entry later are slices for the same reason.
"""

import math
from typing import Any

import numpy as np
from numba import njit, prange

_options: dict[str, Any] = {"cache": True, "nogil": True}
_ROOT = math.sqrt(2.0)  # of the mixed components


@njit(inline="always")
def _neighbours(i, n, periodic):
    """The entries before and after ``i``; beyond the ends, the border entry or the opposite one."""
    if periodic:
        return (i - 1 if i > 0 else n - 1), (i + 1 if i + 1 < n else 0)
    return max(i - 1, 0), min(i + 1, n - 1)


@njit(**_options)
def _second(before, row, after, out):
    for i in range(out.size):
        out[i] = (after[i] - row[i]) - (row[i] - before[i])


@njit(**_options)
def _add_second(before, row, after, out):
    for i in range(out.size):
        out[i] += (after[i] - row[i]) - (row[i] - before[i])


@njit(**_options)
def _second_along(row, periodic, out):
    n = row.size
    if n > 2:
        _second(row[: n - 2], row[1 : n - 1], row[2:], out[1 : n - 1])
    for i in (0, n - 1):
        before, after = _neighbours(i, n, periodic)
        out[i] = (row[after] - row[i]) - (row[i] - row[before])


@njit(**_options)
def _mixed(row, after, other, other_after, out):
    root = out.dtype.type(_ROOT)
    for i in range(out.size):
        out[i] = root * ((other_after[i] - other[i]) - (after[i] - row[i]))


@njit(**_options)
def _mixed_along(row, other, periodic, out):
    n = row.size
    _mixed(row[: n - 1], row[1:], other[: n - 1], other[1:], out[: n - 1])
    end = n - 1
    wrapped = out.dtype.type(_ROOT) * ((other[0] - other[end]) - (row[0] - row[end]))
    out[end] = wrapped if periodic else out.dtype.type(0)


@njit(parallel=True, **_options)
def hessian_apply(x, periodic, out):
    nz, ny = x.shape[:2]
    for plane in prange(nz):
        z = np.int64(plane)  # the loop index is unsigned: mixed with -1 it would become a float
        z0, z1 = _neighbours(z, nz, periodic)
        for y in range(ny):
            y0, y1 = _neighbours(y, ny, periodic)
            row = x[z, y]
            _second(x[z0, y], row, x[z1, y], out[0, z, y])
            _second(x[z, y0], row, x[z, y1], out[1, z, y])
            _second_along(row, periodic, out[2, z, y])
            _mixed(row, x[z, y1], x[z1, y], x[z1, y1], out[3, z, y])
            _mixed_along(row, x[z1, y], periodic, out[4, z, y])
            _mixed_along(row, x[z, y1], periodic, out[5, z, y])


@njit(**_options)
def _add_back(before, row, has_before, has_after, factor, out):
    """``out += factor (before - row)``, a transposed forward difference: what came in, minus what went out.

    At the ends of an axis without periods one of them is missing.
    """
    factor = out.dtype.type(factor)
    if has_before and has_after:
        for i in range(out.size):
            out[i] += factor * (before[i] - row[i])
    elif has_before:
        for i in range(out.size):
            out[i] += factor * before[i]
    elif has_after:
        for i in range(out.size):
            out[i] -= factor * row[i]


@njit(parallel=True, **_options)
def hessian_adjoint(u, periodic, out):
    nz, ny, nx = out.shape
    for plane in prange(nz):
        z = np.int64(plane)
        z0, z1 = _neighbours(z, nz, periodic)
        into_z, out_of_z = z > 0 or periodic, z + 1 < nz or periodic
        along = np.empty(nx, u.dtype)
        for y in range(ny):
            y0, y1 = _neighbours(y, ny, periodic)
            into_y, out_of_y = y > 0 or periodic, y + 1 < ny or periodic
            total = out[z, y]
            _second_along(u[2, z, y], periodic, total)
            _add_second(u[0, z0, y], u[0, z, y], u[0, z1, y], total)
            _add_second(u[1, z, y0], u[1, z, y], u[1, z, y1], total)
            if into_y:
                _add_back(u[3, z0, y0], u[3, z, y0], into_z, out_of_z, _ROOT, total)
            if out_of_y:
                _add_back(u[3, z0, y], u[3, z, y], into_z, out_of_z, -_ROOT, total)
            along[:] = 0
            _add_back(u[4, z0, y], u[4, z, y], into_z, out_of_z, _ROOT, along)
            _add_back(u[5, z, y0], u[5, z, y], into_y, out_of_y, _ROOT, along)
            if periodic:
                total[0] += along[nx - 1]
                total[nx - 1] -= along[nx - 1]
            _add_back(along[: nx - 1], along[1:], True, False, 1.0, total[1:])
            _add_back(along[: nx - 1], along[: nx - 1], False, True, 1.0, total[: nx - 1])


@njit(parallel=True, **_options)
def laplacian(x, periodic, out):
    nz, ny, nx = x.shape
    for plane in prange(nz):
        z = np.int64(plane)
        z0, z1 = _neighbours(z, nz, periodic)
        for y in range(ny):
            y0, y1 = _neighbours(y, ny, periodic)
            row, total = x[z, y], out[z, y]
            a, b, c, d = x[z0, y], x[z1, y], x[z, y0], x[z, y1]
            for i in range(nx):
                total[i] = (row[i] - a[i]) + (row[i] - b[i]) + (row[i] - c[i]) + (row[i] - d[i])
            before, after = (row[nx - 1], row[0]) if periodic else (row[0], row[nx - 1])
            total[0] += row[0] - before
            total[nx - 1] += row[nx - 1] - after
            _add_back(row[1:], row[: nx - 1], True, True, -1.0, total[: nx - 1])
            _add_back(row[: nx - 1], row[1:], True, True, -1.0, total[1:])
