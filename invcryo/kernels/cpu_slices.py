"""Numba loops of trilinear central slices through half spectra, and of those that touch few voxels.

A spectrum (n, n, n // 2 + 1) is that of a real volume, its origin at index 0. Row ``iy``, column ``kx`` of a slice lies
at ``q = step (kx R[0] + ky R[1])``, ``ky`` counted in the order of the FFT; a point with negative ``q_x`` is the
conjugate of its opposite. Points at ``radius`` or beyond, in units of the slice, are zero.

Sums into a spectrum are shared out by planes z, in turn: no two threads write one cell, and each cell sees its terms in
one order.
"""

import math
from typing import Any

import numpy as np
from numba import njit, prange

_options: dict[str, Any] = {"cache": True, "nogil": True}
_ONE, _TWO, _THREE = np.uint64(1), np.uint64(2), np.uint64(3)


@njit(**_options)
def _reach(radius, ky):
    """Columns 0 to this one, exclusive, of a row lie inside the radius."""
    rest = radius * radius - ky * ky
    if rest <= 0:
        return 0
    return math.ceil(math.sqrt(rest))


@njit(**_options)
def _cell(turn, kx, ky, step, n):
    """Where a point lies: lower corner, fractions, and whether it stands for its opposite."""
    real = turn.dtype.type
    u = real(step * kx)
    v = real(step * ky)
    x = u * turn[0, 0] + v * turn[1, 0]
    y = u * turn[0, 1] + v * turn[1, 1]
    z = u * turn[0, 2] + v * turn[1, 2]
    mirrored = x < 0
    if mirrored:
        x, y, z = -x, -y, -z
    # a matrix that is no rotation, or NaN, must not lead out of the array
    ix = max(0, min(int(x), n // 2 - 1))
    iy = max(-n, min(math.floor(y), n - 2))
    iz = max(-n, min(math.floor(z), n - 2))
    return ix, iy, iz, x - real(ix), y - real(iy), z - real(iz), mirrored


@njit(**_options)
def _wrap(i, n):
    """Index of a frequency from -n to n - 1."""
    return i if i >= 0 else i + n


@njit(**_options)
def _signed(i, n):
    """Frequency of an index from 0 to n - 1."""
    return i if 2 * i < n else i - n


@njit(**_options)
def _planes(part, parts, n):
    """Which planes z a part of a sum writes to: a division for each point would take longer than all else."""
    mine = np.zeros(n, np.bool_)
    mine[part::parts] = True
    return mine


@njit(**_options)
def _weight(corner, fx, fy, fz, one):
    """Trilinear weight of a corner, whose bits say z, y and x; ``one`` is that of the type of the fractions."""
    weight = fz if corner & 4 else one - fz
    weight *= fy if corner & 2 else one - fy
    return weight * (fx if corner & 1 else one - fx)


def _reals(a):
    """Complex values as pairs of real ones: Numba would multiply by a real number as by a complex one."""
    return a.view(a.real.dtype)


@njit(**_options)
def _rows(x0, y0, z0, n):
    """Where the two voxels along x begin, of the lower and upper ones along z and y, counted in reals.

    Unsigned, because an index that may be negative keeps the compiler from reading more than one entry at once.
    """
    y1, z1 = _wrap(y0 + 1, n), _wrap(z0 + 1, n)
    y0, z0 = _wrap(y0, n), _wrap(z0, n)
    run = 2 * (n // 2 + 1)
    i, j = (z0 * n + y0) * run + 2 * x0, (z0 * n + y1) * run + 2 * x0
    k, l = (z1 * n + y0) * run + 2 * x0, (z1 * n + y1) * run + 2 * x0
    return np.uint64(i), np.uint64(j), np.uint64(k), np.uint64(l)


@njit(**_options)
def _mix(f, a, b):
    return a + f * (b - a)


@njit(**_options)
def _across(s, i, j, k, l, fy, fz):
    """Interpolated along y and z."""
    return _mix(fz, _mix(fy, s[i], s[j]), _mix(fy, s[k], s[l]))


def central_slice(spectrum, turns, step, radius, out):
    _central_slice(_reals(spectrum).reshape(-1), turns, step, radius, len(spectrum), _reals(out))


@njit(parallel=True, **_options)
def _central_slice(s, turns, step, radius, n, out):
    height, half = out.shape[1], out.shape[2] // 2
    for row in prange(out.shape[0] * height):
        b = row // height
        iy = row - b * height
        ky = _signed(iy, height)
        last = min(_reach(radius, ky), half)
        turn = turns[b]
        line = out[b, iy]
        line[2 * last :] = 0
        for kx in range(last):
            x0, y0, z0, fx, fy, fz, mirrored = _cell(turn, kx, ky, step, n)
            i, j, k, l = _rows(x0, y0, z0, n)
            low = _across(s, i, j, k, l, fy, fz)
            low_i = _across(s, i + _ONE, j + _ONE, k + _ONE, l + _ONE, fy, fz)
            high = _across(s, i + _TWO, j + _TWO, k + _TWO, l + _TWO, fy, fz)
            high_i = _across(s, i + _THREE, j + _THREE, k + _THREE, l + _THREE, fy, fz)
            line[2 * kx] = _mix(fx, low, high)
            imag = _mix(fx, low_i, high_i)
            line[2 * kx + 1] = -imag if mirrored else imag


@njit(**_options)
def _spread(out, i, weight, low, low_i, high, high_i):
    out[i] += weight * low
    out[i + _ONE] += weight * low_i
    out[i + _TWO] += weight * high
    out[i + _THREE] += weight * high_i


def slice_adjoint(g, turns, step, radius, parts, out):
    _slice_adjoint(_reals(g), turns, step, radius, parts, len(out), _reals(out).reshape(-1))


@njit(parallel=True, **_options)
def _slice_adjoint(g, turns, step, radius, parts, n, out):
    height, half = g.shape[1], g.shape[2] // 2
    one = turns.dtype.type(1)
    plane = out.size // n
    for part in prange(parts):
        mine = _planes(part, parts, n)
        for z in range(part, n, parts):
            out[z * plane : (z + 1) * plane] = 0
        for b in range(g.shape[0]):
            turn = turns[b]
            for iy in range(height):
                ky = _signed(iy, height)
                for kx in range(min(_reach(radius, ky), half)):
                    x0, y0, z0, fx, fy, fz, mirrored = _cell(turn, kx, ky, step, n)
                    i, j, k, l = _rows(x0, y0, z0, n)
                    real, imag = g[b, iy, 2 * kx], g[b, iy, 2 * kx + 1]
                    if mirrored:
                        imag = -imag
                    gx, gy, gz = one - fx, one - fy, one - fz
                    low, low_i, high, high_i = gx * real, gx * imag, fx * real, fx * imag
                    if mine[_wrap(z0, n)]:
                        _spread(out, i, gy * gz, low, low_i, high, high_i)
                        _spread(out, j, fy * gz, low, low_i, high, high_i)
                    if mine[_wrap(z0 + 1, n)]:
                        _spread(out, k, gy * fz, low, low_i, high, high_i)
                        _spread(out, l, fy * fz, low, low_i, high, high_i)


@njit(**_options)
def _along(s, i, real, imag):
    """``Re conj(g) s`` at the two voxels along x."""
    return real * s[i] + imag * s[i + _ONE], real * s[i + _TWO] + imag * s[i + _THREE]


def slice_rotations(spectrum, turns, g, step, radius, out):
    _slice_rotations(_reals(spectrum).reshape(-1), turns, _reals(g), step, radius, len(spectrum), out)


@njit(parallel=True, **_options)
def _slice_rotations(s, turns, g, step, radius, n, out):
    height, half = g.shape[1], g.shape[2] // 2
    for b in prange(g.shape[0]):
        turn = turns[b]
        sums = np.zeros((2, 3))
        for iy in range(height):
            ky = _signed(iy, height)
            ax = ay = az = 0.0
            for kx in range(min(_reach(radius, ky), half)):
                x0, y0, z0, fx, fy, fz, mirrored = _cell(turn, kx, ky, step, n)
                i, j, k, l = _rows(x0, y0, z0, n)
                real, imag = g[b, iy, 2 * kx], g[b, iy, 2 * kx + 1]
                if mirrored:  # S = conj(F(-q)): both signs enter the derivative
                    real = -real
                a00, a01 = _along(s, i, real, imag)
                a10, a11 = _along(s, j, real, imag)
                b00, b01 = _along(s, k, real, imag)
                b10, b11 = _along(s, l, real, imag)
                tx = _mix(fz, _mix(fy, a01 - a00, a11 - a10), _mix(fy, b01 - b00, b11 - b10))
                a0, a1 = _mix(fx, a00, a01), _mix(fx, a10, a11)
                b0, b1 = _mix(fx, b00, b01), _mix(fx, b10, b11)
                ty = _mix(fz, a1 - a0, b1 - b0)
                tz = _mix(fy, b0 - a0, b1 - a1)
                ax += tx
                ay += ty
                az += tz
                sums[0, 0] += kx * tx
                sums[0, 1] += kx * ty
                sums[0, 2] += kx * tz
            sums[1, 0] += ky * ax
            sums[1, 1] += ky * ay
            sums[1, 2] += ky * az
        for r in range(2):
            for c in range(3):
                out[b, r, c] = step * sums[r, c]
        out[b, 2] = 0


@njit(parallel=True, **_options)
def mark(turns, step, radius, height, parts, out):
    """Set the voxels that slices of this height touch."""
    n = out.shape[0]
    for part in prange(parts):
        mine = _planes(part, parts, n)
        for z in range(part, n, parts):
            out[z] = False
        for b in range(turns.shape[0]):
            turn = turns[b]
            for iy in range(height):
                ky = _signed(iy, height)
                for kx in range(min(_reach(radius, ky), height // 2 + 1)):
                    x0, y0, z0, _, _, _, _ = _cell(turn, kx, ky, step, n)
                    y1 = _wrap(y0 + 1, n)
                    y0 = _wrap(y0, n)
                    for side in range(2):
                        z = _wrap(z0 + side, n)
                        if mine[z]:
                            out[z, y0, x0] = True
                            out[z, y0, x0 + 1] = True
                            out[z, y1, x0] = True
                            out[z, y1, x0 + 1] = True


@njit(parallel=True, **_options)
def sparse_project(rows, places, factors, turns, step, radius, out):
    n = places.shape[0]
    height = out.shape[1]
    real = turns.dtype.type
    one = real(1)
    for row in prange(out.shape[0] * height):
        b = row // height
        iy = row - b * height
        ky = _signed(iy, height)
        last = min(_reach(radius, ky), out.shape[2])
        turn = turns[b]
        line = out[b, iy]
        line[last:] = 0
        for kx in range(last):
            x0, y0, z0, fx, fy, fz, mirrored = _cell(turn, kx, ky, step, n)
            value = rows[0, 0] * real(0)
            for corner in range(8):
                z = _wrap(z0 + (corner >> 2), n)
                y = _wrap(y0 + (corner >> 1 & 1), n)
                weight = _weight(corner, fx, fy, fz, one)
                place = places[z, y, x0 + (corner & 1)]
                for k in range(rows.shape[1]):
                    value += (weight * factors[b, k]) * rows[place, k]
            line[kx] = value.conjugate() if mirrored else value


@njit(parallel=True, **_options)
def sparse_rows(places, factors, g, turns, step, radius, parts, out):
    n = places.shape[0]
    height = g.shape[1]
    real = turns.dtype.type
    one = real(1)
    out[:] = 0
    for part in prange(parts):
        mine = _planes(part, parts, n)
        for b in range(g.shape[0]):
            turn = turns[b]
            for iy in range(height):
                ky = _signed(iy, height)
                for kx in range(min(_reach(radius, ky), g.shape[2])):
                    x0, y0, z0, fx, fy, fz, mirrored = _cell(turn, kx, ky, step, n)
                    value = g[b, iy, kx]
                    if mirrored:
                        value = value.conjugate()
                    for corner in range(8):
                        z = _wrap(z0 + (corner >> 2), n)
                        if not mine[z]:
                            continue
                        y = _wrap(y0 + (corner >> 1 & 1), n)
                        weight = _weight(corner, fx, fy, fz, one)
                        place = places[z, y, x0 + (corner & 1)]
                        for k in range(out.shape[1]):
                            out[place, k] += (weight * factors[b, k]) * value


@njit(parallel=True, **_options)
def sparse_factors(rows, places, g, turns, step, radius, out):
    n = places.shape[0]
    height = g.shape[1]
    real = turns.dtype.type
    one = real(1)
    for b in prange(g.shape[0]):
        turn = turns[b]
        sums = np.zeros(rows.shape[1])
        for iy in range(height):
            ky = _signed(iy, height)
            for kx in range(min(_reach(radius, ky), g.shape[2])):
                x0, y0, z0, fx, fy, fz, mirrored = _cell(turn, kx, ky, step, n)
                value = g[b, iy, kx]
                if mirrored:
                    value = value.conjugate()
                for corner in range(8):
                    z = _wrap(z0 + (corner >> 2), n)
                    y = _wrap(y0 + (corner >> 1 & 1), n)
                    weight = _weight(corner, fx, fy, fz, one)
                    place = places[z, y, x0 + (corner & 1)]
                    for k in range(rows.shape[1]):
                        a = rows[place, k]
                        sums[k] += weight * (value.real * a.real + value.imag * a.imag)
        for k in range(rows.shape[1]):
            out[b, k] = sums[k]
