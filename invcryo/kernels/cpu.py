"""Numba loops. No formulas of the domain live here, only sums, tables and indices.

Each loop runs in parallel over the axis that it writes, so no two threads touch one cell and the result
does not depend on the number of threads.
"""

import math
from typing import Any

import numba
import numpy as np
from numba import njit, prange

_options: dict[str, Any] = {"cache": True, "nogil": True}


def set_threads(n: int) -> None:
    numba.set_num_threads(min(n, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]


@njit(parallel=True, **_options)
def ctf_values(terms, sx, sy, power, out):
    for p in prange(out.shape[0]):
        t0, t1, t2, t3, t4, t5, t6 = terms[p]
        for j in range(out.shape[1]):
            x = sx[j]
            y = sy[j]
            s2 = x * x + y * y
            v = -math.sin(t0 + s2 * (t1 + t4 * s2) + t2 * (x * x - y * y) + t3 * 2.0 * x * y) * t6
            if t5 != 0.0:
                v *= math.exp(-t5 * s2)
            out[p, j] = v * v if power == 2 else v


@njit(parallel=True, **_options)
def extract_slices(values, index, weight, phase_x, phase_y, out):
    width = out.shape[2]
    for p in prange(out.shape[0]):
        flat = out[p].reshape(-1)
        flat[:] = 0
        for j in range(index.size):
            i = index[j]
            iy = i // width
            flat[i] = values[p, j] * (weight[j] * (phase_x[p, i - iy * width] * phase_y[p, iy]))


@njit(parallel=True, **_options)
def add_slices(spectra, index, weight, phase_x, phase_y, out):
    width = spectra.shape[2]
    for p in prange(spectra.shape[0]):
        flat = spectra[p].reshape(-1)
        for j in range(index.size):
            i = index[j]
            iy = i // width
            out[p, j] = flat[i] * (weight[j] * np.conj(phase_x[p, i - iy * width] * phase_y[p, iy]))


@njit(inline="always")
def _lookup(table, inverse_step, u):
    position = u * inverse_step
    i = int(position)
    t = position - i
    return table[i] + t * (table[i + 1] - table[i])


@njit(parallel=True, **_options)
def tube_kernel(axes, table, radius, out):
    # The kernel is even, r[-k] = r[k]: planes z >= 0 are computed and copied to the others.
    hz, hy, hx = out.shape[0] // 2, out.shape[1] // 2, out.shape[2] // 2
    r2 = radius * radius
    inverse_step = (table.size - 2) / r2
    for z in prange(hz + 1):
        plane = out[hz + z]
        for p in range(axes.shape[0]):
            # M k = a + b y + c x, vectors of the image plane
            cx, cy = axes[p, 0, 0], axes[p, 1, 0]
            bx, by = axes[p, 0, 1], axes[p, 1, 1]
            ax, ay = axes[p, 0, 2] * z, axes[p, 1, 2] * z
            cc = cx * cx + cy * cy
            along_x = cc < 1e-12  # the x axis is the viewing direction: every x sees the same point
            y_low, y_high = -hy, hy
            if not along_x:
                # the part of a + b y across c must be within the radius
                across = (ax * cy - ay * cx) / math.sqrt(cc)
                slope = (bx * cy - by * cx) / math.sqrt(cc)
                if abs(slope) > 1e-9:
                    e0 = (-radius - across) / slope
                    e1 = (radius - across) / slope
                    if e0 > e1:
                        e0, e1 = e1, e0
                    y_low = max(-hy, math.ceil(max(e0, -hy - 1.0)))
                    y_high = min(hy, math.floor(min(e1, hy + 1.0)))
            for y in range(y_low, y_high + 1):
                dx = ax + bx * y
                dy = ay + by * y
                dd = dx * dx + dy * dy
                if along_x:
                    if dd >= r2:
                        continue
                    x_low, x_high = -hx, hx
                else:
                    dc = dx * cx + dy * cy
                    root = dc * dc - cc * (dd - r2)
                    if root <= 0.0:
                        continue
                    root = math.sqrt(root)
                    x_low = max(-hx, math.ceil(max((-dc - root) / cc, -hx - 1.0)))
                    x_high = min(hx, math.floor(min((-dc + root) / cc, hx + 1.0)))
                row = plane[hy + y]
                for x in range(x_low, x_high + 1):
                    ux = dx + cx * x
                    uy = dy + cy * x
                    u = ux * ux + uy * uy
                    if u < r2:
                        row[hx + x] += _lookup(table, inverse_step, u)
    for z in prange(1, hz + 1):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                out[hz - z, y, x] = out[hz + z, 2 * hy - y, 2 * hx - x]


@njit(parallel=True, **_options)
def splat_apply(coefficients, axes, shifts, table, radius, out):
    nz, ny, nx = coefficients.shape
    height, width = out.shape[1], out.shape[2]
    r2 = radius * radius
    inverse_step = (table.size - 2) / r2
    for p in prange(out.shape[0]):
        image = out[p]
        image[:] = 0
        for kz in range(nz):
            z = kz - nz // 2
            for ky in range(ny):
                y = ky - ny // 2
                for kx in range(nx):
                    c = coefficients[kz, ky, kx]
                    if c == 0:
                        continue
                    x = kx - nx // 2
                    u = axes[p, 0, 0] * x + axes[p, 0, 1] * y + axes[p, 0, 2] * z + shifts[p, 0] + width // 2
                    v = axes[p, 1, 0] * x + axes[p, 1, 1] * y + axes[p, 1, 2] * z + shifts[p, 1] + height // 2
                    for i in range(
                        max(0, math.ceil(v - radius)), min(height - 1, math.floor(v + radius)) + 1
                    ):
                        dv = (i - v) * (i - v)
                        for j in range(
                            max(0, math.ceil(u - radius)), min(width - 1, math.floor(u + radius)) + 1
                        ):
                            d = dv + (j - u) * (j - u)
                            if d < r2:
                                image[i, j] += c * _lookup(table, inverse_step, d)


@njit(parallel=True, **_options)
def splat_adjoint(images, axes, shifts, table, radius, out):
    nz, ny, nx = out.shape
    height, width = images.shape[1], images.shape[2]
    r2 = radius * radius
    inverse_step = (table.size - 2) / r2
    for kz in prange(nz):
        z = kz - nz // 2
        for ky in range(ny):
            y = ky - ny // 2
            for kx in range(nx):
                x = kx - nx // 2
                total = 0.0
                for p in range(images.shape[0]):
                    u = axes[p, 0, 0] * x + axes[p, 0, 1] * y + axes[p, 0, 2] * z + shifts[p, 0] + width // 2
                    v = axes[p, 1, 0] * x + axes[p, 1, 1] * y + axes[p, 1, 2] * z + shifts[p, 1] + height // 2
                    for i in range(
                        max(0, math.ceil(v - radius)), min(height - 1, math.floor(v + radius)) + 1
                    ):
                        dv = (i - v) * (i - v)
                        for j in range(
                            max(0, math.ceil(u - radius)), min(width - 1, math.floor(u + radius)) + 1
                        ):
                            d = dv + (j - u) * (j - u)
                            if d < r2:
                                total += images[p, i, j] * _lookup(table, inverse_step, d)
                out[kz, ky, kx] = total


@njit(parallel=True, **_options)
def difference_apply(x, periodic, out):
    nz, ny, nx = x.shape
    for plane in prange(nz):
        z = np.int64(plane)  # the loop index is unsigned: mixed with -1 it would become a float
        up = z + 1 if z + 1 < nz else (0 if periodic else z)
        for y in range(ny):
            back = y + 1 if y + 1 < ny else (0 if periodic else y)
            for i in range(nx - 1):
                v = x[z, y, i]
                out[0, z, y, i] = x[up, y, i] - v
                out[1, z, y, i] = x[z, back, i] - v
                out[2, z, y, i] = x[z, y, i + 1] - v
            i = nx - 1
            v = x[z, y, i]
            out[0, z, y, i] = x[up, y, i] - v
            out[1, z, y, i] = x[z, back, i] - v
            out[2, z, y, i] = x[z, y, 0 if periodic else i] - v


@njit(parallel=True, **_options)
def difference_adjoint(u, periodic, out):
    nz, ny, nx = out.shape
    for plane in prange(nz):
        z = np.int64(plane)
        for y in range(ny):
            for i in range(nx):
                total = u.dtype.type(0)
                # each axis: what came in from the voxel before, minus what went out to the one after
                if z > 0:
                    total += u[0, z - 1, y, i]
                elif periodic:
                    total += u[0, nz - 1, y, i]
                if z + 1 < nz or periodic:
                    total -= u[0, z, y, i]
                if y > 0:
                    total += u[1, z, y - 1, i]
                elif periodic:
                    total += u[1, z, ny - 1, i]
                if y + 1 < ny or periodic:
                    total -= u[1, z, y, i]
                if i > 0:
                    total += u[2, z, y, i - 1]
                elif periodic:
                    total += u[2, z, y, nx - 1]
                if i + 1 < nx or periodic:
                    total -= u[2, z, y, i]
                out[z, y, i] = total


_RUN = 512  # entries whose lengths are held at a time, in the nearest cache


@njit(error_model="numpy", **_options)
def _shrink_run(z, start, stop, tau, ball, length, out):
    """One run of `shrink_groups` or `project_groups`: plain loops along the groups, which the compiler makes wide."""
    zero = z.dtype.type(0)
    one = z.dtype.type(1)
    n = stop - start
    length[:n] = zero
    for i in range(z.shape[0]):
        row = z[i, start:stop]
        for k in range(n):
            length[k] += row[k] * row[k]
    if ball:
        for k in range(n):
            size = math.sqrt(length[k])
            length[k] = one if size <= tau else tau / size
    else:
        for k in range(n):
            size = math.sqrt(length[k])
            length[k] = zero if size <= tau else (size - tau) / size  # NaN stays NaN
    for i in range(z.shape[0]):
        row = z[i, start:stop]
        to = out[i, start:stop]
        for k in range(n):
            to[k] = length[k] * row[k]


@njit(parallel=True, **_options)
def _shrink(z, tau, ball, out):
    n = z.shape[1]
    runs = (n + _RUN - 1) // _RUN
    parts = min(runs, 64)
    for part in prange(parts):
        length = np.empty(_RUN, z.dtype)
        for run in range(runs * part // parts, runs * (part + 1) // parts):
            _shrink_run(z, run * _RUN, min(n, (run + 1) * _RUN), tau, ball, length, out)


def shrink_groups(z, tau, out):
    _shrink(z, tau, False, out)


def project_groups(z, radius, out):
    _shrink(z, radius, True, out)


@njit(parallel=True, **_options)
def dead_zone(z, low, high, out):
    for k in prange(z.size):
        v = z[k]
        out[k] = v - high if v > high else (v - low if v < low else v - v)


@njit(inline="always")
def _shrink_or_clip(v, t, clip):
    if clip:
        return t if v > t else (-t if v < -t else v)
    return v - t if v > t else (v + t if v < -t else v - v)


@njit(parallel=True, **_options)
def shrink_weighted(z, weight, tau, clip, out):
    run = z.size // weight.size
    if run == 1:
        for k in prange(z.size):
            out[k] = _shrink_or_clip(z[k], z.dtype.type(tau * weight[k]), clip)
    else:
        for j in prange(weight.size):
            t = z.dtype.type(tau * weight[j])
            first = np.int64(j) * run
            for k in range(first, first + run):
                out[k] = _shrink_or_clip(z[k], t, clip)
