"""Numba loops of the wavelet transform: one level of a volume.

A level goes through memory twice: plane by plane, where x and y are filtered by way of a buffer of one plane, and by
slabs across the planes. Arrays are passed as lists of rows, (z y, x), so that all inner loops are known to run over
contiguous entries.
"""

from typing import Any

import numpy as np
from numba import njit, prange

_options: dict[str, Any] = {"cache": True, "nogil": True}


@njit(**_options)
def _analyse_rows(slab, low, high, first, step, out):
    """Rows ``first + step k`` of ``out`` become the low-pass, then the high-pass half of the filtered slab.

    Row k: ``sum_i low[i] slab[2 k + i + 1 - len(low) / 2]``, row n / 2 + k the same with ``high``.
    """
    n, m, width = slab.shape[0], low.size // 2, slab.shape[1]
    for k in range(n // 2):
        a, b = out[first + step * k, :width], out[first + step * (n // 2 + k), :width]
        for t in range(m):
            i = (2 * (k + t) + 1 - m) % n
            even, odd = slab[i], slab[(i + 1) % n]
            l0, l1, h0, h1 = low[2 * t], low[2 * t + 1], high[2 * t], high[2 * t + 1]
            if t == 0:
                for c in range(width):
                    a[c] = l0 * even[c] + l1 * odd[c]
                    b[c] = h0 * even[c] + h1 * odd[c]
            else:
                for c in range(width):
                    a[c] += l0 * even[c] + l1 * odd[c]
                    b[c] += h0 * even[c] + h1 * odd[c]


@njit(**_options)
def _synthesise_rows(slab, low, high, first, step, out):
    """The inverse of `_analyse_rows`."""
    half, m, width = slab.shape[0] // 2, low.size // 2, slab.shape[1]
    for i in range(2 * half):
        start, p = divmod(m - 1 + i % 2, 2)  # entry 2 k + r meets taps 2 t + p of coefficients k + start - t
        a = out[first + step * i, :width]
        for t in range(m):
            k = (i // 2 + start - t) % half
            coarse, fine = slab[k], slab[half + k]
            l, h = low[2 * t + p], high[2 * t + p]
            if t == 0:
                for c in range(width):
                    a[c] = l * coarse[c] + h * fine[c]
            else:
                for c in range(width):
                    a[c] += l * coarse[c] + h * fine[c]


@njit(**_options)
def _analyse_line(row, low, high, even, odd, out):
    """One row, filtered along itself: `_analyse_rows` for its entries."""
    n, m = row.size, low.size // 2
    half = n // 2
    i = (1 - m) % n
    for j in range(half + m - 1):
        even[j] = row[i]
        odd[j] = row[i + 1 if i + 1 < n else 0]
        i += 2
        if i >= n:
            i -= n
    a, b = out[:half], out[half:]
    for t in range(m):
        e, o = even[t : t + half], odd[t : t + half]
        l0, l1, h0, h1 = low[2 * t], low[2 * t + 1], high[2 * t], high[2 * t + 1]
        if t == 0:
            for c in range(half):
                a[c] = l0 * e[c] + l1 * o[c]
                b[c] = h0 * e[c] + h1 * o[c]
        else:
            for c in range(half):
                a[c] += l0 * e[c] + l1 * o[c]
                b[c] += h0 * e[c] + h1 * o[c]


@njit(**_options)
def _synthesise_line(row, low, high, coarse, fine, total):
    """The inverse of `_analyse_line`, in place."""
    half, m = row.size // 2, low.size // 2
    i = (1 - m) % half
    for j in range(half + m - 1 + m // 2):
        coarse[j] = row[i]
        fine[j] = row[half + i]
        i = i + 1 if i + 1 < half else 0
    for r in range(2):
        start, p = divmod(m - 1 + r, 2)
        for t in range(m):
            j = m - 1 + start - t
            a, b = coarse[j : j + half], fine[j : j + half]
            l, h = low[2 * t + p], high[2 * t + p]
            if t == 0:
                for c in range(half):
                    total[c] = l * a[c] + h * b[c]
            else:
                for c in range(half):
                    total[c] += l * a[c] + h * b[c]
        for c in range(half):
            row[2 * c + r] = total[c]


@njit(**_options)
def _copy(line, out):
    """Apart, since a parallel loop with assignments of slices takes several times as long to compile."""
    for c in range(line.size):
        out[c] = line[c]


@njit(parallel=True, **_options)
def analysis(source, box, split, low, high, height, out):
    nz, ny, nx = box
    for z in prange(nz):
        slab = np.empty((ny, nx), out.dtype)
        even, odd = np.empty(nx // 2 + low.size, out.dtype), np.empty(nx // 2 + low.size, out.dtype)
        for y in range(ny):
            row = source[z * height + y, :nx]
            if split[2]:
                _analyse_line(row, low, high, even, odd, slab[y])
            else:
                _copy(row, slab[y])
        if split[1]:
            _analyse_rows(slab, low, high, z * height, 1, out)
        else:
            for y in range(ny):
                _copy(slab[y], out[z * height + y, :nx])
    if split[0]:
        for y in prange(ny):
            slab = np.empty((nz, nx), out.dtype)
            for z in range(nz):
                _copy(out[z * height + y, :nx], slab[z])
            _analyse_rows(slab, low, high, y, height, out)


@njit(parallel=True, **_options)
def synthesis(box, split, low, high, height, out):
    nz, ny, nx = box
    if split[0]:
        for y in prange(ny):
            slab = np.empty((nz, nx), out.dtype)
            for z in range(nz):
                _copy(out[z * height + y, :nx], slab[z])
            _synthesise_rows(slab, low, high, y, height, out)
    for z in prange(nz):
        if split[1]:
            slab = np.empty((ny, nx), out.dtype)
            for y in range(ny):
                _copy(out[z * height + y, :nx], slab[y])
            _synthesise_rows(slab, low, high, z * height, 1, out)
        if split[2]:
            coarse, fine = np.empty(nx // 2 + low.size, out.dtype), np.empty(nx // 2 + low.size, out.dtype)
            total = np.empty(nx // 2, out.dtype)
            for y in range(ny):
                _synthesise_line(out[z * height + y, :nx], low, high, coarse, fine, total)
