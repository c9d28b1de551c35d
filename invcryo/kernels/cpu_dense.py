"""Numba loops for products of a few rows with a large matrix, which read or write that matrix once.

Batches of a dense layer have few rows: what takes the time is to move the weights, and BLAS packs them first, on one
thread. Sums go over blocks of a fixed size, so that they do not depend on the number of threads.
"""

import numpy as np
from numba import njit, prange

from .cpu_vector import _REORDER, _options

#: Rows of the large matrix that a thread takes at a time.
BLOCK = 128


@njit(parallel=True, fastmath=_REORDER, **_options)
def rows(x, w, out):
    """``out = x w`` of (m, k) and (k, n), both contiguous."""
    m, k = x.shape
    n = w.shape[1]
    blocks = (k + BLOCK - 1) // BLOCK
    partial = np.zeros((blocks, m, n), out.dtype)
    for block in prange(blocks):
        mine = partial[block]
        stop = min(k, (block + 1) * BLOCK)
        j = block * BLOCK
        while j + 4 <= stop:  # four at a time: sums are read and written once for all four
            w0, w1, w2, w3 = w[j], w[j + 1], w[j + 2], w[j + 3]
            for i in range(m):
                x0, x1, x2, x3 = x[i, j], x[i, j + 1], x[i, j + 2], x[i, j + 3]
                to = mine[i]
                for c in range(n):
                    to[c] += x0 * w0[c] + x1 * w1[c] + x2 * w2[c] + x3 * w3[c]
            j += 4
        while j < stop:
            row = w[j]
            for i in range(m):
                factor = x[i, j]
                to = mine[i]
                for c in range(n):
                    to[c] += factor * row[c]
            j += 1
    for i in prange(m):
        total = np.zeros(n)
        for block in range(blocks):
            add = partial[block, i]
            for c in range(n):
                total[c] += add[c]
        out[i] = total


@njit(parallel=True, fastmath=_REORDER, **_options)
def dots(g, w, out):
    """``out = g w^T`` of (m, n) and (k, n), both contiguous."""
    m, n = g.shape
    k = w.shape[0]
    for block in prange((k + BLOCK - 1) // BLOCK):
        stop = min(k, (block + 1) * BLOCK)
        j = block * BLOCK
        zero = g.dtype.type(0)
        while j + 4 <= stop:
            w0, w1, w2, w3 = w[j], w[j + 1], w[j + 2], w[j + 3]
            for i in range(m):
                one = g[i]
                t0 = t1 = t2 = t3 = zero
                for c in range(n):
                    t0 += one[c] * w0[c]
                    t1 += one[c] * w1[c]
                    t2 += one[c] * w2[c]
                    t3 += one[c] * w3[c]
                out[i, j], out[i, j + 1], out[i, j + 2], out[i, j + 3] = t0, t1, t2, t3
            j += 4
        while j < stop:
            row = w[j]
            for i in range(m):
                one = g[i]
                total = zero
                for c in range(n):
                    total += one[c] * row[c]
                out[i, j] = total
            j += 1


@njit(parallel=True, fastmath=_REORDER, **_options)
def outer(x, g, out):
    """``out = x^T g`` of (m, k) and (m, n), both contiguous."""
    m, k = x.shape
    n = g.shape[1]
    for block in prange((k + BLOCK - 1) // BLOCK):
        for j in range(block * BLOCK, min(k, (block + 1) * BLOCK)):
            to = out[j]
            to[:] = 0
            i = 0
            while i + 4 <= m:
                g0, g1, g2, g3 = g[i], g[i + 1], g[i + 2], g[i + 3]
                x0, x1, x2, x3 = x[i, j], x[i + 1, j], x[i + 2, j], x[i + 3, j]
                for c in range(n):
                    to[c] += x0 * g0[c] + x1 * g1[c] + x2 * g2[c] + x3 * g3[c]
                i += 4
            while i < m:
                factor = x[i, j]
                one = g[i]
                for c in range(n):
                    to[c] += factor * one[c]
                i += 1
