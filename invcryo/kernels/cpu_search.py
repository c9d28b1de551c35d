"""Numba loops of the search over a grid of rotations."""

from typing import Any

import numpy as np
from numba import njit, prange

_options: dict[str, Any] = {"cache": True, "nogil": True, "fastmath": {"contract", "reassoc", "nsz"}}

LANES = 64  # views at a time: four columns of their sums stay in the first cache


@njit(parallel=True, **_options)
def ring_harmonics(data, phases, turn_real, turn_imag, start, stencil, real, imag):
    """See `kernels.ring_harmonics`."""
    harmonics, rings = real.shape[2:]
    points, width = stencil.shape
    for p in prange(data.shape[0]):
        u = np.empty(harmonics, np.float32)
        v = np.empty(harmonics, np.float32)
        a = np.empty((rings, harmonics), np.float32)
        b = np.empty((rings, harmonics), np.float32)
        for s in range(phases.shape[0]):
            a[:] = 0
            b[:] = 0
            for m in range(points):
                value = data[p, m] * phases[s, m]
                x, y = value.real, value.imag
                for l in range(0, harmonics, 2):
                    u[l], u[l + 1] = x * turn_real[m, l], y * turn_real[m, l + 1]
                    v[l], v[l + 1] = x * turn_imag[m, l], y * turn_imag[m, l + 1]
                for k in range(width):
                    w = stencil[m, k]
                    to_a, to_b = a[start[m] + k], b[start[m] + k]
                    for l in range(harmonics):
                        to_a[l] += w * u[l]
                        to_b[l] += w * v[l]
            for l in range(harmonics):
                for r in range(rings):
                    real[p, s, l, r] = a[r, l]
                    imag[p, s, l, r] = b[r, l]


@njit(parallel=True, **_options)
def best_turns(tr, ti, xr, xi, first, cosine, sine, best, where):
    """See `kernels.best_turns`."""
    harmonics, rings, views = tr.shape
    columns, turns = xr.shape[1], best.shape[1]
    quarter = turns // 4
    for p in prange(xr.shape[0]):
        zr = np.empty((harmonics, 4, LANES), np.float32)
        zi = np.empty((harmonics, 4, LANES), np.float32)
        sums = np.empty((4, LANES), np.float32)
        best[p] = -np.inf
        for d0 in range(0, views, LANES):
            for s0 in range(0, columns, 4):
                # beyond the last column, that one again
                s1 = min(s0 + 1, columns - 1)
                s2 = min(s0 + 2, columns - 1)
                s3 = min(s0 + 3, columns - 1)
                for l in range(harmonics):
                    r0, r1, r2, r3 = zr[l]
                    i0, i1, i2, i3 = zi[l]
                    zr[l] = 0
                    zi[l] = 0
                    for r in range(first[l], rings):
                        a0, b0 = xr[p, s0, l, r], xi[p, s0, l, r]
                        a1, b1 = xr[p, s1, l, r], xi[p, s1, l, r]
                        a2, b2 = xr[p, s2, l, r], xi[p, s2, l, r]
                        a3, b3 = xr[p, s3, l, r], xi[p, s3, l, r]
                        tre = tr[l, r, d0 : d0 + LANES]
                        tim = ti[l, r, d0 : d0 + LANES]
                        for d in range(LANES):
                            u, v = tre[d], tim[d]
                            r0[d] += u * a0 + v * b0
                            i0[d] += u * b0 - v * a0
                            r1[d] += u * a1 + v * b1
                            i1[d] += u * b1 - v * a1
                            r2[d] += u * a2 + v * b2
                            i2[d] += u * b2 - v * a2
                            r3[d] += u * a3 + v * b3
                            i3[d] += u * b3 - v * a3
                for s in range(s0, min(s0 + 4, columns)):
                    column = s - s0
                    for j in range(quarter):
                        # turns j, -j, half - j, half + j share the sums over even and odd harmonics
                        sums[:] = 0
                        ce, co, se, so = sums
                        for l in range(0, harmonics, 8):
                            _add_harmonics(zr, zi, l, column, cosine[:, j], sine[:, j], ce, se)
                            _add_harmonics(zr, zi, l + 1, column, cosine[:, j], sine[:, j], co, so)
                        for d in range(LANES):
                            e, o, f, g = ce[d], co[d], se[d], so[d]
                            ce[d] = e + o - f - g
                            co[d] = e + o + f + g
                            se[d] = e - o + f - g
                            so[d] = e - o - f + g
                        _keep_best(ce, s, best[p, j, d0 : d0 + LANES], where[p, j, d0 : d0 + LANES])
                        _keep_best(
                            co,
                            s,
                            best[p, turns - 1 - j, d0 : d0 + LANES],
                            where[p, turns - 1 - j, d0 : d0 + LANES],
                        )
                        half = turns // 2
                        _keep_best(
                            se,
                            s,
                            best[p, half - 1 - j, d0 : d0 + LANES],
                            where[p, half - 1 - j, d0 : d0 + LANES],
                        )
                        _keep_best(
                            so, s, best[p, half + j, d0 : d0 + LANES], where[p, half + j, d0 : d0 + LANES]
                        )


@njit(**_options)
def _add_harmonics(zr, zi, l, column, cosine, sine, c, s):
    """Every other one of eight."""
    c0, c1, c2, c3 = cosine[l], cosine[l + 2], cosine[l + 4], cosine[l + 6]
    s0, s1, s2, s3 = sine[l], sine[l + 2], sine[l + 4], sine[l + 6]
    r0, r1, r2, r3 = zr[l, column], zr[l + 2, column], zr[l + 4, column], zr[l + 6, column]
    i0, i1, i2, i3 = zi[l, column], zi[l + 2, column], zi[l + 4, column], zi[l + 6, column]
    for d in range(LANES):
        c[d] += (c0 * r0[d] + c1 * r1[d]) + (c2 * r2[d] + c3 * r3[d])
        s[d] += (s0 * i0[d] + s1 * i1[d]) + (s2 * i2[d] + s3 * i3[d])


@njit(**_options)
def _keep_best(values, label, best, where):
    for d in range(LANES):
        better = values[d] > best[d]
        best[d] = values[d] if better else best[d]
        where[d] = label if better else where[d]


@njit(parallel=True, **_options)
def pick_distinct(scores, views, cosine, sine, group, limit, picked):
    """See `kernels.pick_distinct`."""
    turns, directions = scores.shape[1], views.shape[0]
    for p in prange(scores.shape[0]):
        table = scores[p]
        for k in range(picked.shape[1]):
            top = np.float32(-np.inf)
            jt, dt = -1, -1
            for j in range(turns):
                for d in range(directions):
                    if table[j, d] > top:
                        top = table[j, d]
                        jt, dt = j, d
            picked[p, k, 0] = dt
            picked[p, k, 1] = jt
            if jt < 0:
                continue
            c, s = cosine[jt], sine[jt]
            mine = np.empty((3, 3))
            for i in range(3):
                mine[0, i] = c * views[dt, 0, i] - s * views[dt, 1, i]
                mine[1, i] = s * views[dt, 0, i] + c * views[dt, 1, i]
                mine[2, i] = views[dt, 2, i]
            for g in range(group.shape[0]):
                copy = np.zeros((3, 3))
                for i in range(3):
                    for m in range(3):
                        for n in range(3):
                            copy[i, m] += mine[i, n] * group[g, n, m]
                for d in range(directions):
                    # trace of turn(j)^T B with B = copy view^T
                    same, cross, out = 0.0, 0.0, 0.0
                    for i in range(3):
                        same += copy[0, i] * views[d, 0, i] + copy[1, i] * views[d, 1, i]
                        cross += copy[1, i] * views[d, 0, i] - copy[0, i] * views[d, 1, i]
                        out += copy[2, i] * views[d, 2, i]
                    if out + np.sqrt(same * same + cross * cross) > limit:
                        for j in range(turns):
                            if cosine[j] * same + sine[j] * cross + out > limit:
                                table[j, d] = -np.inf
