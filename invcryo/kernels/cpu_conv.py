"""Numba loops of the networks: convolutions, pooling, Adam. Channels last, odd kernels, zeros beyond the border.

A convolution is a product of matrices, whose left factor holds the neighbourhood of each pixel. Every thread makes it
for a block of image rows in a scratch array of its own that stays in the second cache, and calls BLAS on it, which must
be held at one thread. Blocks and the parts of sums do not depend on the number of threads, nor do the results.
"""

import math
from typing import Any

import numpy as np
from numba import njit, prange

_options: dict[str, Any] = {"cache": True, "nogil": True}
_SCRATCH = 1 << 17  # entries


@njit(**_options)
def _block_rows(rows, width, length):
    """Image rows per block: what the scratch holds; blocks enough for a few threads, of 64 pixels at least."""
    enough = max((rows + 3) // 4, (63 + width) // width)
    return max(1, min(_SCRATCH // (width * length), enough))


@njit(**_options)
def _copy(source, start, count, target, place):
    # unsigned, because an index that may be negative keeps the compiler from copying more than one entry at once
    i, j = np.uint64(start), np.uint64(place)
    for c in range(np.uint64(count)):
        target[j + c] = source[i + c]


@njit(**_options)
def _clear(count, target, place):
    j = np.uint64(place)
    for c in range(np.uint64(count)):
        target[j + c] = 0


@njit(**_options)
def _gather(x, kernel, first, last, scratch):
    """Neighbourhoods of the pixels of image rows ``first`` to ``last``, counted through the stack."""
    _, height, width, channels = x.shape
    flat = x.reshape(-1)
    reach = kernel // 2
    run = kernel * channels
    length = kernel * run
    for row in range(first, last):
        y = row % height
        for dy in range(kernel):
            target = (row - first) * width * length + dy * run
            if y + dy < reach or y + dy - reach >= height:
                for _ in range(width):
                    _clear(run, scratch, target)
                    target += length
                continue
            source = (row + dy - reach) * width * channels
            for j in range(width):
                left = max(0, reach - j)
                right = max(0, j + reach + 1 - width)
                if left + right == 0 and run < 16:  # shorter than the start of a vector loop
                    place = source + (j - reach) * channels
                    for c in range(run):
                        scratch[target + c] = flat[place + c]
                elif left + right == 0:
                    _copy(flat, source + (j - reach) * channels, run, scratch, target)
                else:
                    _clear(left * channels, scratch, target)
                    inside = max(0, kernel - left - right) * channels
                    _copy(
                        flat,
                        source + (j - reach + left) * channels,
                        inside,
                        scratch,
                        target + left * channels,
                    )
                    _clear(right * channels, scratch, target + run - right * channels)
                target += length


@njit(**_options)
def _conv_blocks(x, weights, kernel, start, stop, step, rows, flat):
    length, filters = weights.shape
    width = x.shape[2]
    scratch = np.empty(step * width * length, x.dtype)
    for block in range(start, stop):
        first, last = block * step, min((block + 1) * step, rows)
        pixels = (last - first) * width
        _gather(x, kernel, first, last, scratch)
        part = flat[first * width * filters : last * width * filters].reshape(pixels, filters)
        np.dot(scratch[: pixels * length].reshape(pixels, length), weights, part)


@njit(parallel=True, **_options)
def conv(x, w, threads, out):
    kernel, filters = w.shape[0], w.shape[3]
    weights = w.reshape(-1, filters)
    flat = out.reshape(-1)
    rows = x.shape[0] * x.shape[1]
    step = _block_rows(rows, x.shape[2], weights.shape[0])
    blocks = (rows + step - 1) // step
    parts = min(blocks, threads)
    for part in prange(parts):
        start, stop = blocks * part // parts, blocks * (part + 1) // parts
        _conv_blocks(x, weights, kernel, start, stop, step, rows, flat)


@njit(**_options)
def _weights_of_blocks(x, flat, kernel, start, stop, step, rows, total):
    """Of blocks ``start`` to ``stop``, in order."""
    length, filters = total.shape
    width = x.shape[2]
    scratch = np.empty(step * width * length, x.dtype)
    one = np.empty((length, filters) if stop > start + 1 else (0, 0), x.dtype)
    for block in range(start, stop):
        first, last = block * step, min((block + 1) * step, rows)
        pixels = (last - first) * width
        _gather(x, kernel, first, last, scratch)
        left = scratch[: pixels * length].reshape(pixels, length).T
        right = flat[first * width * filters : last * width * filters].reshape(pixels, filters)
        if block == start:
            np.dot(left, right, total)
        else:
            np.dot(left, right, one)
            a, b = total.reshape(-1), one.reshape(-1)
            for k in range(a.size):
                a[k] += b[k]


@njit(parallel=True, **_options)
def conv_weights(x, g, out):
    kernel, filters = out.shape[0], out.shape[3]
    weights = out.reshape(-1, filters)
    length = weights.shape[0]
    flat = g.reshape(-1)
    rows = x.shape[0] * x.shape[1]
    step = _block_rows(rows, x.shape[2], length)
    blocks = (rows + step - 1) // step
    parts = min(blocks, max(2, min(8, (1 << 18) // (length * filters))))
    if parts == 1:
        _weights_of_blocks(x, flat, kernel, 0, blocks, step, rows, weights)
        return
    sums = np.empty((parts, length, filters), x.dtype)
    for part in prange(parts):
        start, stop = blocks * part // parts, blocks * (part + 1) // parts
        _weights_of_blocks(x, flat, kernel, start, stop, step, rows, sums[part])
    for row in prange(length):
        for f in range(filters):
            total = sums[0, row, f]
            for part in range(1, parts):
                total += sums[part, row, f]
            weights[row, f] = total


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
