"""Numba loops of the iterative solvers: vector updates, inner products, and the steps of total variation.

Sums are taken in float64 over a fixed number of parts and added in order, so that they do not depend on the number
of threads.
"""

import math
from typing import Any

import numpy as np
from numba import njit, prange

_options: dict[str, Any] = {"cache": True, "nogil": True}
_PARTS = 64
# What the compiler may do with sums: reorder them, which is the same in every run. NaN and infinity stay.
_REORDER = {"reassoc", "contract", "nsz"}


@njit(**_options)
def _total(partial):
    """In order, on one thread: a sum inside a parallel function would be cut by the number of threads."""
    total = 0.0
    for value in partial:
        total += value
    return total


@njit(**_options)
def _columns(partial):
    out = np.zeros(partial.shape[1])
    for row in range(partial.shape[0]):
        for j in range(out.size):
            out[j] += partial[row, j]
    return out


@njit(parallel=True, **_options)
def dot(x, y):
    partial = np.zeros(_PARTS)
    n = x.size
    for part in prange(_PARTS):
        start = n * part // _PARTS
        stop = n * (part + 1) // _PARTS
        # short runs in four lanes: the compiler cannot reorder a sum of its own accord
        a = b = c = d = 0.0
        k = start
        while k + 4 <= stop:
            a += np.float64(x[k]) * y[k]
            b += np.float64(x[k + 1]) * y[k + 1]
            c += np.float64(x[k + 2]) * y[k + 2]
            d += np.float64(x[k + 3]) * y[k + 3]
            k += 4
        total = (a + b) + (c + d)
        while k < stop:
            total += np.float64(x[k]) * y[k]
            k += 1
        partial[part] = total
    return _total(partial)


@njit(parallel=True, **_options)
def add_scaled(y, factor, x):
    for k in prange(y.size):
        y[k] += factor * x[k]


@njit(parallel=True, **_options)
def scale_add(y, factor, x):
    for k in prange(y.size):
        y[k] = x[k] + factor * y[k]


@njit(parallel=True, **_options)
def spring(image, u, a, rho, out, add):
    if add:
        for k in prange(image.size):
            out[k] += rho * (u[k] + a[k] - image[k])
    else:
        for k in prange(image.size):
            out[k] = rho * (u[k] + a[k] - image[k])


@njit(parallel=True, **_options)
def relax(image, u, a, relaxation):
    rest = u.dtype.type(1) - relaxation
    for k in prange(image.size):
        a[k] = relaxation * image[k] + rest * u[k] - a[k]


@njit(parallel=True, **_options)
def settle(image, u, a):
    """``a = u - a`` and the sums |image - u|^2, |image|^2, |u|^2, |a|^2, <a, image - u>."""
    partial = np.zeros((_PARTS, 5))
    n = image.size
    for part in prange(_PARTS):
        s0 = s1 = s2 = s3 = s4 = 0.0
        for k in range(n * part // _PARTS, n * (part + 1) // _PARTS):
            v = u[k] - a[k]
            a[k] = v
            d = np.float64(image[k]) - u[k]
            s0 += d * d
            s1 += np.float64(image[k]) * image[k]
            s2 += np.float64(u[k]) * u[k]
            s3 += np.float64(v) * v
            s4 += v * d
        partial[part, 0] = s0
        partial[part, 1] = s1
        partial[part, 2] = s2
        partial[part, 3] = s3
        partial[part, 4] = s4
    return _columns(partial)


@njit(parallel=True, **_options)
def sum_lengths(z):
    partial = np.zeros(_PARTS)
    n = z.shape[1]
    for part in prange(_PARTS):
        total = 0.0
        for k in range(n * part // _PARTS, n * (part + 1) // _PARTS):
            square = z.dtype.type(0)
            for i in range(z.shape[0]):
                square += z[i, k] * z[i, k]
            total += math.sqrt(square)
        partial[part] = total
    return _total(partial)


@njit(parallel=True, **_options)
def tv_square(x, periodic):
    nz, ny, nx = x.shape
    partial = np.zeros(nz)
    for plane in prange(nz):
        z = np.int64(plane)
        up = z + 1 if z + 1 < nz else (0 if periodic else z)
        total = 0.0
        for y in range(ny):
            back = y + 1 if y + 1 < ny else (0 if periodic else y)
            row = x.dtype.type(0)  # a row is short enough for its own precision
            for i in range(nx - 1):
                v = x[z, y, i]
                d0 = x[up, y, i] - v
                d1 = x[z, back, i] - v
                d2 = x[z, y, i + 1] - v
                row += d0 * d0 + d1 * d1 + d2 * d2
            v = x[z, y, nx - 1]
            d0 = x[up, y, nx - 1] - v
            d1 = x[z, back, nx - 1] - v
            d2 = x[z, y, 0] - v if periodic else x.dtype.type(0)
            total += row + d0 * d0 + d1 * d1 + d2 * d2
        partial[plane] = total
    return _total(partial)


@njit(parallel=True, **_options)
def tv_pull(x, u, a, rho, periodic, out):
    """``out += rho G^H (u + a - G x)``."""
    nz, ny, nx = x.shape
    zero = x.dtype.type(0)
    for plane in prange(nz):
        z = np.int64(plane)
        up = z + 1 if z + 1 < nz else (0 if periodic else z)
        down = z - 1 if z > 0 else nz - 1
        from_z = z > 0 or periodic
        to_z = z + 1 < nz or periodic
        for y in range(ny):
            back = y + 1 if y + 1 < ny else (0 if periodic else y)
            front = y - 1 if y > 0 else ny - 1
            from_y = y > 0 or periodic
            to_y = y + 1 < ny or periodic
            # what goes out of a voxel along x comes into the next one
            last = nx - 1
            carried = u[2, z, y, last] + a[2, z, y, last] - (x[z, y, 0] - x[z, y, last]) if periodic else zero
            for i in range(nx):
                v = x[z, y, i]
                total = carried
                if from_z:
                    total += u[0, down, y, i] + a[0, down, y, i] - (v - x[down, y, i])
                if to_z:
                    total -= u[0, z, y, i] + a[0, z, y, i] - (x[up, y, i] - v)
                if from_y:
                    total += u[1, z, front, i] + a[1, z, front, i] - (v - x[z, front, i])
                if to_y:
                    total -= u[1, z, y, i] + a[1, z, y, i] - (x[z, back, i] - v)
                if i < last:
                    carried = u[2, z, y, i] + a[2, z, y, i] - (x[z, y, i + 1] - v)
                    total -= carried
                elif periodic:
                    total -= u[2, z, y, i] + a[2, z, y, i] - (x[z, y, 0] - v)
                out[z, y, i] += rho * total


@njit(error_model="numpy", fastmath=_REORDER, **_options)
def _tv_row(x, above, behind, after, u0, u1, u2, a0, a1, a2, relaxation, tau):
    """One row of `tv_move`; ``after`` is the row shifted by one voxel."""
    zero = x.dtype.type(0)
    rest = x.dtype.type(1) - relaxation
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = zero  # a row is short enough for its own precision
    for i in range(after.size):
        v = x[i]
        d0 = above[i] - v
        d1 = behind[i] - v
        d2 = after[i] - v
        w0 = relaxation * d0 + rest * u0[i] - a0[i]
        w1 = relaxation * d1 + rest * u1[i] - a1[i]
        w2 = relaxation * d2 + rest * u2[i] - a2[i]
        length = math.sqrt(w0 * w0 + w1 * w1 + w2 * w2)
        factor = zero if length <= tau else (length - tau) / length  # NaN stays NaN
        v0 = factor * w0
        v1 = factor * w1
        v2 = factor * w2
        b0 = v0 - w0
        b1 = v1 - w1
        b2 = v2 - w2
        u0[i] = v0
        u1[i] = v1
        u2[i] = v2
        a0[i] = b0
        a1[i] = b1
        a2[i] = b2
        image = d0 * d0 + d1 * d1 + d2 * d2
        size = factor * length
        e0 = d0 - v0
        e1 = d1 - v1
        e2 = d2 - v2
        s0 += e0 * e0 + e1 * e1 + e2 * e2
        s1 += image
        s2 += size * size
        s3 += b0 * b0 + b1 * b1 + b2 * b2
        s4 += b0 * e0 + b1 * e1 + b2 * e2
        s5 += math.sqrt(image)
        s6 += size
    return s0, s1, s2, s3, s4, s5, s6


@njit(parallel=True, **_options)
def tv_move(x, u, a, relaxation, tau, periodic):
    """One step of the split ``u = G x`` of isotropic total variation, and its sums.

    The sums are those of `settle`, then the lengths of G x and of u.
    """
    nz, ny, nx = x.shape
    n = nx - 1
    partial = np.zeros((nz, 7))
    for plane in prange(nz):
        z = np.int64(plane)
        up = z + 1 if z + 1 < nz else (0 if periodic else z)
        for y in range(ny):
            back = y + 1 if y + 1 < ny else (0 if periodic else y)
            row, above, behind = x[z, y], x[up, y], x[z, back]
            u0, u1, u2 = u[0, z, y], u[1, z, y], u[2, z, y]
            a0, a1, a2 = a[0, z, y], a[1, z, y], a[2, z, y]
            sums = _tv_row(row, above, behind, row[1:], u0, u1, u2, a0, a1, a2, relaxation, tau)
            for j in range(7):
                partial[plane, j] += sums[j]
            end = row[:1] if periodic else row[n:]
            sums = _tv_row(row[n:], above[n:], behind[n:], end, u0[n:], u1[n:], u2[n:],
                           a0[n:], a1[n:], a2[n:], relaxation, tau)  # fmt: skip
            for j in range(7):
                partial[plane, j] += sums[j]
    return _columns(partial)
