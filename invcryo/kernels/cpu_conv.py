"""Numba loops of the networks: convolutions, pooling, Adam. Channels last, odd kernels, zeros beyond the border.

A convolution is a product of matrices, whose left factor holds the neighbourhoods of the pixels. It is never made: of a
copy of some image rows with their border, a neighbourhood is ``kernel`` runs of ``kernel channels`` entries, which the
product of `cpu_tile` reads where they are. Blocks of rows stay in the cache; no result depends on the number of
threads. In single precision the error grows with the length of the sums, to 1e-6 of the norm for 512 channels, and for
the gradient of filters that sixteen images of 128 pixels give.
"""

import math
from typing import Any

import numpy as np
from numba import njit, prange

from .cpu_tile import ROWS, columns_times, rows_times, width

_options: dict[str, Any] = {"cache": True, "nogil": True}
_SCRATCH = 1 << 14  # entries
_LARGE = 1 << 14  # entries of filters, from which threads share them and not the pixels


@njit(**_options)
def _empty(count, like):
    """Entries that begin with a line of the cache."""
    memory = np.empty(count + 64 // like.itemsize, like.dtype)
    skip = (-memory.ctypes.data % 64) // like.itemsize
    return memory[skip : skip + count]


@njit(**_options)
def _copy(source, start, count, target, place):
    # unsigned, because an index that may be negative keeps the compiler from copying more than one entry at once
    i, j = np.uint64(start), np.uint64(place)
    for c in range(np.uint64(count)):
        target[j + c] = source[i + c]


@njit(**_options)
def _add(source, start, count, target, place):
    i, j = np.uint64(start), np.uint64(place)
    for c in range(np.uint64(count)):
        target[j + c] += source[i + c]


@njit(**_options)
def _scratch(x, reach, step):
    """For `_bordered`: of ``step`` image rows, and room for what a last tile reads too much."""
    line = (x.shape[2] + 2 * reach) * x.shape[3]
    bordered = _empty((step + 2 * reach * (step // x.shape[1] + 2)) * line + ROWS, x)
    bordered[-ROWS:] = 0
    return bordered, np.zeros(step * x.shape[2] + ROWS, np.int64)


@njit(**_options)
def _bordered(x, reach, first, last, out, places):
    """Image rows ``first`` to ``last``, counted through the stack, their neighbours, and a border of zeros.

    ``places`` are where the neighbourhoods of the pixels begin. Returns the number of pixels.
    """
    _, height, width, channels = x.shape
    flat = x.reshape(-1)
    tall = height + 2 * reach
    run, edge = width * channels, reach * channels
    line = run + 2 * edge
    top = first + 2 * reach * (first // height)
    target = 0
    for row in range(top, last + 2 * reach * ((last - 1) // height + 1)):
        b = row // tall
        y = row - b * tall - reach
        if 0 <= y < height:
            out[target : target + edge] = 0
            _copy(flat, (b * height + y) * run, run, out, target + edge)
            out[target + edge + run : target + line] = 0
        else:
            out[target : target + line] = 0
        target += line
    k = 0
    for row in range(first, last):
        start = (row + 2 * reach * (row // height) - top) * line
        for j in range(width):
            places[k] = start + j * channels
            k += 1
    places[k : k + ROWS] = 0
    return k


@njit(**_options)
def _panel(b, first, rows, columns, f, wide, out, place):
    """Columns ``f`` to ``f + wide`` of some rows of a matrix, zeros beyond its last."""
    count = min(wide, columns - f)
    for row in range(first, first + rows):
        if count < wide:
            out[place : place + wide] = 0
        _copy(b, row * columns + f, count, out, place)
        place += wide


@njit(**_options)
def _conv_blocks(x, panels, kernel, wide, start, stop, step, rows, filters, flat):
    line, run = (x.shape[2] + kernel - 1) * x.shape[3], kernel * x.shape[3]
    bordered, places = _scratch(x, kernel // 2, step)
    tile = _empty(ROWS * wide, x)
    for block in range(start, stop):
        first, last = block * step, min((block + 1) * step, rows)
        pixels = _bordered(x, kernel // 2, first, last, bordered, places)
        for f in range(0, filters, wide):
            panel = f * kernel * run
            for j in range(0, pixels, ROWS):
                place = (first * x.shape[2] + j) * filters + f
                if f + wide <= filters and j + ROWS <= pixels:
                    rows_times(
                        bordered, places, j, kernel, line, run, panels, panel, wide, flat, place, filters
                    )
                    continue
                rows_times(bordered, places, j, kernel, line, run, panels, panel, wide, tile, 0, wide)
                for m in range(min(ROWS, pixels - j)):
                    _copy(tile, m * wide, min(wide, filters - f), flat, place + m * filters)


@njit(parallel=True, **_options)
def conv(x, w, threads, out):
    kernel, filters = w.shape[0], w.shape[3]
    length = kernel * kernel * x.shape[3]
    wide = width(filters, x.itemsize)
    count = (filters + wide - 1) // wide
    panels = _empty(count * length * wide, x)
    for p in prange(count):
        _panel(w.reshape(-1), 0, length, filters, p * wide, wide, panels, p * length * wide)
    rows = x.shape[0] * x.shape[1]
    step = max(1, min(_SCRATCH // (x.shape[2] * x.shape[3]), (rows + threads - 1) // threads))
    blocks = (rows + step - 1) // step
    flat = out.reshape(-1)
    for part in prange(threads):
        start, stop = blocks * part // threads, blocks * (part + 1) // threads
        _conv_blocks(x, panels, kernel, wide, start, stop, step, rows, filters, flat)


@njit(**_options)
def _weights_of_blocks(x, g, kernel, wide, start, stop, step, rows, share, shares, filters, total):
    """The ``share``-th of ``shares`` parts of the filters, of blocks ``start`` to ``stop`` in order."""
    line, run = (x.shape[2] + kernel - 1) * x.shape[3], kernel * x.shape[3]
    bordered, places = _scratch(x, kernel // 2, step)
    tile = _empty(ROWS * wide, x)
    copied = filters != wide
    panels = _empty((filters + wide - 1) // wide * wide * step * x.shape[2], x) if copied else g
    tiles = (run + ROWS - 1) // ROWS
    for block in range(start, stop):
        first, last = block * step, min((block + 1) * step, rows)
        pixels = _bordered(x, kernel // 2, first, last, bordered, places)
        if copied:
            for f in range(0, filters, wide):
                _panel(g, first * x.shape[2], pixels, filters, f, wide, panels, f * pixels)
        for t in range(kernel * tiles * share // shares, kernel * tiles * (share + 1) // shares):
            i = t // tiles
            k = (t - i * tiles) * ROWS
            for f in range(0, filters, wide):
                place = (i * run + k) * filters + f
                panel = f * pixels if copied else first * x.shape[2] * filters
                if block == start and f + wide <= filters and k + ROWS <= run:
                    columns_times(
                        bordered, places, i * line + k, pixels, panels, panel, wide, total, place, filters
                    )
                    continue
                columns_times(bordered, places, i * line + k, pixels, panels, panel, wide, tile, 0, wide)
                for m in range(min(ROWS, run - k)):
                    if block == start:
                        _copy(tile, m * wide, min(wide, filters - f), total, place + m * filters)
                    else:
                        _add(tile, m * wide, min(wide, filters - f), total, place + m * filters)


@njit(parallel=True, **_options)
def conv_weights(x, g, threads, out):
    kernel, filters = out.shape[0], out.shape[3]
    wide = width(filters, x.itemsize)
    rows = x.shape[0] * x.shape[1]
    size = out.size
    step = max(1, min(2 * _SCRATCH // (x.shape[2] * max(x.shape[3], filters)), rows))
    g, flat = g.reshape(-1), out.reshape(-1)
    if size >= _LARGE:
        blocks = (rows + step - 1) // step
        shares = min(threads, 1 + size // filters // ROWS)
        for share in prange(shares):
            _weights_of_blocks(x, g, kernel, wide, 0, blocks, step, rows, share, shares, filters, flat)
        return
    step = min(step, (rows + 7) // 8)
    blocks = (rows + step - 1) // step
    parts = min(blocks, 8)
    sums = np.empty((parts, size), x.dtype)
    for part in prange(parts):
        start, stop = blocks * part // parts, blocks * (part + 1) // parts
        _weights_of_blocks(x, g, kernel, wide, start, stop, step, rows, 0, 1, filters, sums[part])
    flat[:] = sums[0]
    for part in range(1, parts):
        _add(sums[part], 0, size, flat, 0)


@njit(parallel=True, **_options)
def pool(x, bias, slope, out, code):
    images, height, width, channels = out.shape
    for row in prange(images * height):
        b = row // height
        y = row - b * height
        for j in range(width):
            for c in range(channels):
                best = x[b, 2 * y, 2 * j, c]
                which = 0
                v = x[b, 2 * y, 2 * j + 1, c]
                which = 1 if v > best else which
                best = v if v > best else best
                v = x[b, 2 * y + 1, 2 * j, c]
                which = 2 if v > best else which
                best = v if v > best else best
                v = x[b, 2 * y + 1, 2 * j + 1, c]
                which = 3 if v > best else which
                best = v if v > best else best
                best += bias[c]
                negative = best < 0
                code[b, y, j, c] = which + 4 if negative else which
                out[b, y, j, c] = best * slope if negative else best


@njit(parallel=True, **_options)
def bias_relu(x, bias, slope, out, code):
    for k in prange(x.shape[0]):
        for c in range(x.shape[1]):
            v = x[k, c] + bias[c]
            negative = v < 0
            code[k, c] = 4 if negative else 0
            out[k, c] = v * slope if negative else v


@njit(parallel=True, **_options)
def by_sign(g, code, slope, out):
    for k in prange(g.size):
        out[k] = g[k] * slope if code[k] >= 4 else g[k]


@njit(parallel=True, **_options)
def unpool(g, code, out):
    images, height, width, channels = g.shape
    tall, wide = out.shape[1], out.shape[2]
    zero = g.dtype.type(0)
    for row in prange(images * height):
        b = row // height
        y = row - b * height
        for j in range(width):
            for c in range(channels):
                k = code[b, y, j, c] & 3
                v = g[b, y, j, c]
                out[b, 2 * y, 2 * j, c] = v if k == 0 else zero
                out[b, 2 * y, 2 * j + 1, c] = v if k == 1 else zero
                out[b, 2 * y + 1, 2 * j, c] = v if k == 2 else zero
                out[b, 2 * y + 1, 2 * j + 1, c] = v if k == 3 else zero
        if wide > 2 * width:
            out[b, 2 * y : 2 * y + 2, 2 * width] = 0
        if tall > 2 * height and y == height - 1:
            out[b, 2 * height] = 0


@njit(parallel=True, **_options)
def pick(q, code, out):
    images, height, width, channels = out.shape
    for row in prange(images * height):
        b = row // height
        y = row - b * height
        for j in range(width):
            for c in range(channels):
                i = code[b, y, j, c] & 3
                v = q[b, 2 * y, 2 * j, c]
                v = q[b, 2 * y, 2 * j + 1, c] if i == 1 else v
                v = q[b, 2 * y + 1, 2 * j, c] if i == 2 else v
                v = q[b, 2 * y + 1, 2 * j + 1, c] if i == 3 else v
                out[b, y, j, c] = v


@njit(parallel=True, **_options)
def adam(p, m, v, g, rate, beta1, beta2, floor):
    one = p.dtype.type(1)
    for k in prange(p.size):
        m[k] = beta1 * m[k] + (one - beta1) * g[k]
        v[k] = beta2 * v[k] + (one - beta2) * g[k] * g[k]
        p[k] -= rate * m[k] / (np.sqrt(v[k]) + floor)


@njit(parallel=True, **_options)
def adam_rows(p, m, v, g, rows, rate, beta1, beta2, floor):
    one = p.dtype.type(1)
    for j in prange(rows.size):
        k = rows[j]
        for c in range(p.shape[1]):
            m[k, c] = beta1 * m[k, c] + (one - beta1) * g[j, c]
            v[k, c] = beta2 * v[k, c] + (one - beta2) * g[j, c] * g[j, c]
            p[k, c] -= rate * m[k, c] / (math.sqrt(v[k, c]) + floor)
