"""Convolutions 3 x 3 by Winograd's F(2 x 2, 3 x 3): 16 products of matrices that take 4/9 of the operations.

With the matrices A, B, G of Lavin and Gray (2016), a tile of 2 x 2 output pixels is ``A^T [(G w G^T) * (B^T d B)] A``
of its 4 x 4 input pixels ``d``, summed over channels in between: a product per entry of the 4 x 4 tiles. The gradient
in the filters is the transpose of it, ``G^T [sum (B^T d B) * (A g A^T)] G``. Rows of tiles are worked on in blocks that
stay in the second cache; blocks and parts of sums do not depend on the number of threads.
"""

from typing import Any

import numpy as np
from numba import njit, prange

_options: dict[str, Any] = {"cache": True, "nogil": True}
_SCRATCH = 1 << 18  # entries


@njit(**_options)
def _combine(a, i, b, j, sign, out, k, count):
    """``out = a + sign b`` over runs; unsigned, as an index that may be negative keeps compilers from vectors."""
    i, j, k = np.uint64(i), np.uint64(j), np.uint64(k)
    if sign > 0:
        for c in range(np.uint64(count)):
            out[k + c] = a[i + c] + b[j + c]
    else:
        for c in range(np.uint64(count)):
            out[k + c] = a[i + c] - b[j + c]


@njit(**_options)
def _combine3(a, i, j, k, sign, out, place, count):
    """``a_i + sign a_j + sign a_k``, the three runs and the result of one length."""
    i, j, k, place = np.uint64(i), np.uint64(j), np.uint64(k), np.uint64(place)
    if sign > 0:
        for c in range(np.uint64(count)):
            out[place + c] = a[i + c] + a[j + c] + a[k + c]
    else:
        for c in range(np.uint64(count)):
            out[place + c] = a[i + c] - a[j + c] - a[k + c]


@njit(**_options)
def _set(a, i, factor, out, k, count):
    i, k = np.uint64(i), np.uint64(k)
    for c in range(np.uint64(count)):
        out[k + c] = factor * a[i + c]


@njit(**_options)
def _input_tiles(x, first, last, strip, padded, out):
    """``B^T d B`` of tile rows ``first`` to ``last``, as 16 matrices (tiles, channels) one after another."""
    height, width, channels = x.shape[1], x.shape[2], x.shape[3]
    flat = x.reshape(-1)
    high, wide = (height + 1) // 2, (width + 1) // 2
    run = width * channels
    line = (2 * wide + 2) * channels  # a row with zeros on both sides
    plane = (last - first) * wide * channels
    one = x.dtype.type(1)
    for row in range(first, last):
        b = row // high
        top = 2 * (row - b * high) - 1
        for r in range(4):
            y = top + r
            padded[r * line : (r + 1) * line] = 0
            if 0 <= y < height:
                _set(flat, (b * height + y) * run, one, padded, r * line + channels, run)
        _combine(padded, 0, padded, 2 * line, -1, strip, 0, line)
        _combine(padded, line, padded, 2 * line, 1, strip, line, line)
        _combine(padded, 2 * line, padded, line, -1, strip, 2 * line, line)
        _combine(padded, line, padded, 3 * line, -1, strip, 3 * line, line)
        for r in range(4):
            for tile in range(wide):
                s = r * line + 2 * tile * channels
                t = 4 * r * plane + ((row - first) * wide + tile) * channels
                _combine(strip, s, strip, s + 2 * channels, -1, out, t, channels)
                _combine(strip, s + channels, strip, s + 2 * channels, 1, out, t + plane, channels)
                _combine(strip, s + 2 * channels, strip, s + channels, -1, out, t + 2 * plane, channels)
                _combine(strip, s + channels, strip, s + 3 * channels, -1, out, t + 3 * plane, channels)


@njit(**_options)
def _output_of_tiles(tiles, first, last, strip, out):
    """``A^T m A`` of 16 matrices (tiles, channels) into tile rows ``first`` to ``last``."""
    height, width, channels = out.shape[1], out.shape[2], out.shape[3]
    flat = out.reshape(-1)
    high, wide = (height + 1) // 2, (width + 1) // 2
    run = width * channels
    line = 2 * wide * channels
    plane = (last - first) * wide * channels
    for row in range(first, last):
        for r in range(4):
            for tile in range(wide):
                s = 4 * r * plane + ((row - first) * wide + tile) * channels
                t = r * line + 2 * tile * channels
                _combine3(tiles, s, s + plane, s + 2 * plane, 1, strip, t, channels)
                _combine3(tiles, s + plane, s + 2 * plane, s + 3 * plane, -1, strip, t + channels, channels)
        b = row // high
        y = 2 * (row - b * high)
        place = (b * height + y) * run
        _combine3(strip, 0, line, 2 * line, 1, flat, place, run)
        if y + 1 < height:
            _combine3(strip, line, 2 * line, 3 * line, -1, flat, place + run, run)


@njit(**_options)
def _gradient_tiles(g, first, last, strip, padded, out):
    """``A g A^T`` of tile rows ``first`` to ``last``, as 16 matrices (tiles, channels)."""
    height, width, channels = g.shape[1], g.shape[2], g.shape[3]
    flat = g.reshape(-1)
    high, wide = (height + 1) // 2, (width + 1) // 2
    run = width * channels
    line = 2 * wide * channels
    plane = (last - first) * wide * channels
    one = g.dtype.type(1)
    for row in range(first, last):
        b = row // high
        y = 2 * (row - b * high)
        padded[: 2 * line] = 0
        _set(flat, (b * height + y) * run, one, padded, 0, run)
        if y + 1 < height:
            _set(flat, (b * height + y + 1) * run, one, padded, line, run)
        _set(padded, 0, one, strip, 0, line)
        _combine(padded, 0, padded, line, 1, strip, line, line)
        _combine(padded, 0, padded, line, -1, strip, 2 * line, line)
        _set(padded, line, -one, strip, 3 * line, line)
        for r in range(4):
            for tile in range(wide):
                s = r * line + 2 * tile * channels
                t = 4 * r * plane + ((row - first) * wide + tile) * channels
                _set(strip, s, one, out, t, channels)
                _combine(strip, s, strip, s + channels, 1, out, t + plane, channels)
                _combine(strip, s, strip, s + channels, -1, out, t + 2 * plane, channels)
                _set(strip, s + channels, -one, out, t + 3 * plane, channels)


@njit(**_options)
def _filters_of_tiles(u, out):
    """``G^T u G``, (16, in, out) to (3, 3, in, out)."""
    half = u.dtype.type(0.5)
    for i in range(u.shape[1]):
        for f in range(u.shape[2]):
            for r in range(4):
                a, b, c, d = u[4 * r, i, f], u[4 * r + 1, i, f], u[4 * r + 2, i, f], u[4 * r + 3, i, f]
                u[4 * r, i, f] = a + half * (b + c)
                u[4 * r + 1, i, f] = half * (b - c)
                u[4 * r + 2, i, f] = half * (b + c) + d
            for s in range(3):
                a, b, c, d = u[s, i, f], u[4 + s, i, f], u[8 + s, i, f], u[12 + s, i, f]
                out[0, s, i, f] = a + half * (b + c)
                out[1, s, i, f] = half * (b - c)
                out[2, s, i, f] = half * (b + c) + d


@njit(**_options)
def _tiles_of_filters(w, i, out):
    """``G w G^T`` for input channel ``i``."""
    half = w.dtype.type(0.5)
    for f in range(w.shape[3]):
        for s in range(3):
            a, b, c = w[0, s, i, f], w[1, s, i, f], w[2, s, i, f]
            out[s, i, f] = a
            out[4 + s, i, f] = half * (a + b + c)
            out[8 + s, i, f] = half * (a - b + c)
            out[12 + s, i, f] = c
        for r in range(4):
            a, b, c = out[4 * r, i, f], out[4 * r + 1, i, f], out[4 * r + 2, i, f]
            out[4 * r + 1, i, f] = half * (a + b + c)
            out[4 * r + 2, i, f] = half * (a - b + c)
            out[4 * r + 3, i, f] = c


@njit(**_options)
def _block_rows(rows, wide, channels):
    """Rows of tiles per block; blocks enough for a few threads."""
    return max(1, min(_SCRATCH // (16 * wide * channels), (rows + 3) // 4))


@njit(**_options)
def _conv_blocks(x, u, start, stop, step, rows, out):
    channels, filters = u.shape[1], u.shape[2]
    wide = (x.shape[2] + 1) // 2
    line = (2 * wide + 2) * max(channels, filters)
    padded, strip = np.empty(4 * line, x.dtype), np.empty(4 * line, x.dtype)
    v = np.empty(16 * step * wide * channels, x.dtype)
    m = np.empty(16 * step * wide * filters, x.dtype)
    for block in range(start, stop):
        first, last = block * step, min((block + 1) * step, rows)
        tiles = (last - first) * wide
        _input_tiles(x, first, last, strip, padded, v)
        for k in range(16):
            left = v[k * tiles * channels : (k + 1) * tiles * channels].reshape(tiles, channels)
            np.dot(left, u[k], m[k * tiles * filters : (k + 1) * tiles * filters].reshape(tiles, filters))
        _output_of_tiles(m, first, last, strip, out)


@njit(parallel=True, **_options)
def conv(x, w, parts, out):
    channels, filters = w.shape[2], w.shape[3]
    u = np.empty((16, channels, filters), x.dtype)
    for i in prange(channels):
        _tiles_of_filters(w, i, u)
    rows = x.shape[0] * ((x.shape[1] + 1) // 2)
    step = _block_rows(rows, (x.shape[2] + 1) // 2, channels + filters)
    blocks = (rows + step - 1) // step
    for part in prange(parts):
        _conv_blocks(x, u, blocks * part // parts, blocks * (part + 1) // parts, step, rows, out)


@njit(**_options)
def _weights_of_blocks(x, g, start, stop, step, rows, total):
    channels, filters = total.shape[1], total.shape[2]
    wide = (x.shape[2] + 1) // 2
    line = (2 * wide + 2) * max(channels, filters)
    padded, strip = np.empty(4 * line, x.dtype), np.empty(4 * line, x.dtype)
    v = np.empty(16 * step * wide * channels, x.dtype)
    m = np.empty(16 * step * wide * filters, x.dtype)
    one = np.empty((channels, filters), x.dtype)
    for block in range(start, stop):
        first, last = block * step, min((block + 1) * step, rows)
        tiles = (last - first) * wide
        _input_tiles(x, first, last, strip, padded, v)
        _gradient_tiles(g, first, last, strip, padded, m)
        for k in range(16):
            left = v[k * tiles * channels : (k + 1) * tiles * channels].reshape(tiles, channels).T
            right = m[k * tiles * filters : (k + 1) * tiles * filters].reshape(tiles, filters)
            if block == start:
                np.dot(left, right, total[k])
            else:
                np.dot(left, right, one)
                _combine(total[k].reshape(-1), 0, one.reshape(-1), 0, 1, total[k].reshape(-1), 0, one.size)


@njit(parallel=True, **_options)
def conv_weights(x, g, out):
    channels, filters = out.shape[2], out.shape[3]
    rows = x.shape[0] * ((x.shape[1] + 1) // 2)
    step = _block_rows(rows, (x.shape[2] + 1) // 2, channels + filters)
    blocks = (rows + step - 1) // step
    parts = min(blocks, max(2, min(8, (1 << 18) // (16 * channels * filters))))
    sums = np.empty((parts, 16, channels, filters), x.dtype)
    for part in prange(parts):
        start, stop = blocks * part // parts, blocks * (part + 1) // parts
        _weights_of_blocks(x, g, start, stop, step, rows, sums[part])
    for part in range(1, parts):
        _combine(
            sums.reshape(-1), 0, sums.reshape(-1), part * sums[0].size, 1, sums.reshape(-1), 0, sums[0].size
        )
    _filters_of_tiles(sums[0], out)
