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


@njit(parallel=True, **_options)
def central_slice(spectrum, turns, step, radius, out):
    n = spectrum.shape[0]
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
            y1, z1 = _wrap(y0 + 1, n), _wrap(z0 + 1, n)
            y0, z0 = _wrap(y0, n), _wrap(z0, n)
            gx = one - fx
            a = gx * spectrum[z0, y0, x0] + fx * spectrum[z0, y0, x0 + 1]
            c = gx * spectrum[z0, y1, x0] + fx * spectrum[z0, y1, x0 + 1]
            lower = (one - fy) * a + fy * c
            a = gx * spectrum[z1, y0, x0] + fx * spectrum[z1, y0, x0 + 1]
            c = gx * spectrum[z1, y1, x0] + fx * spectrum[z1, y1, x0 + 1]
            upper = (one - fy) * a + fy * c
            value = (one - fz) * lower + fz * upper
            line[kx] = value.conjugate() if mirrored else value


@njit(parallel=True, **_options)
def slice_adjoint(g, turns, step, radius, parts, out):
    n = out.shape[0]
    height = g.shape[1]
    real = turns.dtype.type
    one = real(1)
    for part in prange(parts):
        mine = _planes(part, parts, n)
        for z in range(part, n, parts):
            out[z] = 0
        for b in range(g.shape[0]):
            turn = turns[b]
            for iy in range(height):
                ky = _signed(iy, height)
                for kx in range(min(_reach(radius, ky), g.shape[2])):
                    x0, y0, z0, fx, fy, fz, mirrored = _cell(turn, kx, ky, step, n)
                    value = g[b, iy, kx]
                    if mirrored:
                        value = value.conjugate()
                    y1 = _wrap(y0 + 1, n)
                    y0 = _wrap(y0, n)
                    near, far = (one - fx) * value, fx * value
                    for side in range(2):
                        z = _wrap(z0 + side, n)
                        if mine[z]:
                            fraction = fz if side else one - fz
                            weight = (one - fy) * fraction
                            out[z, y0, x0] += weight * near
                            out[z, y0, x0 + 1] += weight * far
                            weight = fy * fraction
                            out[z, y1, x0] += weight * near
                            out[z, y1, x0 + 1] += weight * far


@njit(parallel=True, **_options)
def slice_rotations(spectrum, turns, g, step, radius, out):
    n = spectrum.shape[0]
    height = g.shape[1]
    real = turns.dtype.type
    one = real(1)
    for b in prange(g.shape[0]):
        turn = turns[b]
        sums = np.zeros((2, 3))
        for iy in range(height):
            ky = _signed(iy, height)
            for kx in range(min(_reach(radius, ky), g.shape[2])):
                x0, y0, z0, fx, fy, fz, mirrored = _cell(turn, kx, ky, step, n)
                y1, z1 = _wrap(y0 + 1, n), _wrap(z0 + 1, n)
                y0, z0 = _wrap(y0, n), _wrap(z0, n)
                gx, gy, gz = one - fx, one - fy, one - fz
                a000, a001 = spectrum[z0, y0, x0], spectrum[z0, y0, x0 + 1]
                a010, a011 = spectrum[z0, y1, x0], spectrum[z0, y1, x0 + 1]
                a100, a101 = spectrum[z1, y0, x0], spectrum[z1, y0, x0 + 1]
                a110, a111 = spectrum[z1, y1, x0], spectrum[z1, y1, x0 + 1]
                dx = gz * (gy * (a001 - a000) + fy * (a011 - a010)) + fz * (
                    gy * (a101 - a100) + fy * (a111 - a110)
                )
                b00, b01 = gx * a000 + fx * a001, gx * a010 + fx * a011
                b10, b11 = gx * a100 + fx * a101, gx * a110 + fx * a111
                dy = gz * (b01 - b00) + fz * (b11 - b10)
                dz = gy * (b10 - b00) + fy * (b11 - b01)
                value = g[b, iy, kx]
                if mirrored:  # S = conj(F(-q)): both signs enter the derivative
                    value = -value.conjugate()
                tx = value.real * dx.real + value.imag * dx.imag
                ty = value.real * dy.real + value.imag * dy.imag
                tz = value.real * dz.real + value.imag * dz.imag
                sums[0, 0] += kx * tx
                sums[0, 1] += kx * ty
                sums[0, 2] += kx * tz
                sums[1, 0] += ky * tx
                sums[1, 1] += ky * ty
                sums[1, 2] += ky * tz
        for i in range(2):
            for j in range(3):
                out[b, i, j] = step * sums[i, j]
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
