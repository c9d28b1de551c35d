"""Numba loop of sums of trilinear weights and their squares; see `cpu_slices`, whose geometry it shares."""

from numba import njit, prange

from .cpu_slices import _cell, _options, _reach, _signed, _weight, _wrap


@njit(parallel=True, **_options)
def slice_weights(g, turns, step, radius, parts, sums, squares):
    n = sums.shape[0]
    height = g.shape[1]
    one = turns.dtype.type(1)
    for part in prange(parts):
        for b in range(g.shape[0]):
            turn = turns[b]
            for iy in range(height):
                ky = _signed(iy, height)
                for kx in range(min(_reach(radius, ky), g.shape[2])):
                    x0, y0, z0, fx, fy, fz, _ = _cell(turn, kx, ky, step, n)
                    value = g[b, iy, kx]
                    for corner in range(8):
                        z = _wrap(z0 + (corner >> 2), n)
                        if z % parts != part:
                            continue
                        y = _wrap(y0 + (corner >> 1 & 1), n)
                        x = x0 + (corner & 1)
                        weight = _weight(corner, fx, fy, fz, one)
                        sums[z, y, x] += weight * value
                        squares[z, y, x] += weight * weight * value
