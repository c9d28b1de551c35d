"""Numba loops over fields of small symmetric matrices; `invcryo.kernels` says how they are stored.

Eigenvalues are found in float64 without iteration. Of a 3 x 3 matrix, first the eigenvalue that lies far from the two
others, from the cubic, and its eigenvector; then the two others, from the 2 x 2 matrix that is left on the plane
across it. Each step is well conditioned, so equal eigenvalues lose no digits. No eigenvector of the 2 x 2 matrix is
formed: a function of it is ``s 1 + g (M - m 1)``.
"""

import math
from typing import Any

import numpy as np
from numba import njit, prange

_options: dict[str, Any] = {"cache": True, "nogil": True}
_HALF = math.sqrt(0.5)  # mixed components are stored times sqrt(2)
_TINY = 1e-140  # a spread of eigenvalues whose square is near the smallest float64


@njit(**_options)
def _split(zz, yy, xx, zy, zx, yx):
    """``(scale, centre, e, v, u, w, m, d, b, h)``.

    The matrix is ``centre 1 + scale (e v v' + [u w] [[m + d, b], [b, m - d]] [u w]')`` with orthonormal ``v, u, w``;
    its eigenvalues are ``centre + scale * (e, m + h, m - h)``.
    """
    centre = (zz + yy + xx) / 3.0
    zz, yy, xx = zz - centre, yy - centre, xx - centre
    scale = math.sqrt((zz * zz + yy * yy + xx * xx) / 6.0 + (zy * zy + zx * zx + yx * yx) / 3.0)
    if scale <= _TINY:
        return 0.0, centre, 0.0, (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), 0.0, 0.0, 0.0, 0.0
    zz, yy, xx, zy, zx, yx = zz / scale, yy / scale, xx / scale, zy / scale, zx / scale, yx / scale
    cosine = 0.5 * (zz * (yy * xx - yx * yx) - zy * (zy * xx - yx * zx) + zx * (zy * yx - yy * zx))
    angle = math.acos(min(max(cosine, -1.0), 1.0)) / 3.0
    # the largest or the smallest of the three: at least sqrt(3) from the others
    e = 2.0 * math.cos(angle if cosine >= 0.0 else angle + 2.0 * math.pi / 3.0)

    # the eigenvector is orthogonal to every row of B - e 1: of the cross products, the longest
    a0, b1, c2 = zz - e, yy - e, xx - e
    p = (zy * yx - zx * b1, zx * zy - a0 * yx, a0 * b1 - zy * zy)
    q = (zy * c2 - zx * yx, zx * zx - a0 * c2, a0 * yx - zy * zx)
    r = (b1 * c2 - yx * yx, yx * zx - zy * c2, zy * yx - b1 * zx)
    pp = p[0] * p[0] + p[1] * p[1] + p[2] * p[2]
    qq = q[0] * q[0] + q[1] * q[1] + q[2] * q[2]
    rr = r[0] * r[0] + r[1] * r[1] + r[2] * r[2]
    if qq > pp:
        p, pp = q, qq
    if rr > pp:
        p, pp = r, rr
    n = 1.0 / math.sqrt(pp)
    v = (p[0] * n, p[1] * n, p[2] * n)
    if abs(v[0]) > abs(v[1]):
        n = 1.0 / math.sqrt(v[0] * v[0] + v[2] * v[2])
        u = (-v[2] * n, 0.0, v[0] * n)
    else:
        n = 1.0 / math.sqrt(v[1] * v[1] + v[2] * v[2])
        u = (0.0, v[2] * n, -v[1] * n)
    w = (v[1] * u[2] - v[2] * u[1], v[2] * u[0] - v[0] * u[2], v[0] * u[1] - v[1] * u[0])

    bu = (
        zz * u[0] + zy * u[1] + zx * u[2],
        zy * u[0] + yy * u[1] + yx * u[2],
        zx * u[0] + yx * u[1] + xx * u[2],
    )
    bw = (
        zz * w[0] + zy * w[1] + zx * w[2],
        zy * w[0] + yy * w[1] + yx * w[2],
        zx * w[0] + yx * w[1] + xx * w[2],
    )
    uu = u[0] * bu[0] + u[1] * bu[1] + u[2] * bu[2]
    ww = w[0] * bw[0] + w[1] * bw[1] + w[2] * bw[2]
    b = w[0] * bu[0] + w[1] * bu[1] + w[2] * bu[2]
    d = 0.5 * (uu - ww)
    return scale, centre, e, v, u, w, 0.5 * (uu + ww), d, b, math.sqrt(d * d + b * b)


@njit(**_options)
def _ball_threshold(x, y, z, t):
    """The ``s`` for which ``max(|.| - s, 0)`` of the three numbers sums to ``t``; 0 where the sum is at most ``t``."""
    x, y, z = abs(x), abs(y), abs(z)
    total = x + y + z
    if total <= t:
        return 0.0
    top = max(x, y, z)
    if t == 0.0:
        return top
    low = min(x, y, z)
    s = (total - t) / 3.0
    if s > low:
        s = (total - low - t) / 2.0
        if s > total - top - low:
            s = top - t
    return s


@njit(**_options)
def _soft(x, t):
    return x - t if x > t else (x + t if x < -t else x - x)


@njit(**_options)
def _clip(x, t):
    return t if x > t else (-t if x < -t else x)


@njit(**_options)
def _thresholded(x, y, z, t, ball, clip):
    if ball:
        t = _ball_threshold(x, y, z, t)
    if clip:
        return _clip(x, t), _clip(y, t), _clip(z, t)
    return _soft(x, t), _soft(y, t), _soft(z, t)


@njit(parallel=True, **_options)
def threshold_matrices(z, t, ball, clip, out):
    small = (
        t / math.sqrt(3.0) if ball else t
    )  # a Frobenius norm below which the threshold is above, or is zero
    keep = clip != ball
    for k in prange(z.shape[1]):
        square = 0.0
        for i in range(z.shape[0]):
            square += np.float64(z[i, k]) * np.float64(z[i, k])
        if math.sqrt(square) <= small:
            for i in range(z.shape[0]):
                out[i, k] = z[i, k] if keep else z.dtype.type(0)
        elif z.shape[0] == 3:
            yy, xx, yx = np.float64(z[0, k]), np.float64(z[1, k]), _HALF * z[2, k]
            m = 0.5 * (yy + xx)
            d = 0.5 * (yy - xx)
            h = math.sqrt(d * d + yx * yx)
            f, g, _ = _thresholded(m + h, m - h, 0.0, t, ball, clip)
            if f == m + h and g == m - h:  # as it was, to the bit
                for i in range(3):
                    out[i, k] = z[i, k]
                continue
            mean = 0.5 * (f + g)
            slope = 0.5 * (f - g) / h if h > 0.0 else 0.0
            out[0, k] = mean + slope * d
            out[1, k] = mean - slope * d
            out[2, k] = slope * yx / _HALF
        else:
            scale, centre, e, v, u, w, m, d, b, h = _split(
                np.float64(z[0, k]), np.float64(z[1, k]), np.float64(z[2, k]),
                _HALF * z[3, k], _HALF * z[4, k], _HALF * z[5, k],
            )  # fmt: skip
            first, second, third = centre + scale * e, centre + scale * (m + h), centre + scale * (m - h)
            c, f, g = _thresholded(first, second, third, t, ball, clip)
            if c == first and f == second and g == third:
                for i in range(6):
                    out[i, k] = z[i, k]
                continue
            mean = 0.5 * (f + g)
            slope = 0.5 * (f - g) / h if h > 0.0 else 0.0
            uu, uw, ww = mean + slope * d, slope * b, mean - slope * d
            for i in range(6):
                row = i if i < 3 else (0 if i < 5 else 1)
                column = i if i < 3 else (1 if i == 3 else 2)
                value = (
                    c * v[row] * v[column]
                    + uu * u[row] * u[column]
                    + uw * (u[row] * w[column] + w[row] * u[column])
                    + ww * w[row] * w[column]
                )
                out[i, k] = value if i < 3 else value / _HALF


@njit(parallel=True, **_options)
def matrix_norms(x, nuclear, totals, peaks):
    # a fixed number of parts, one cell each: the sum does not depend on the number of threads
    parts = totals.size
    for i in prange(parts):
        part = np.int64(i)  # the loop index is unsigned: times a signed number it would become a float
        total = 0.0
        peak = 0.0
        for k in range(part * x.shape[1] // parts, (part + 1) * x.shape[1] // parts):
            if x.shape[0] == 3:
                m = 0.5 * (np.float64(x[0, k]) + np.float64(x[1, k]))
                d = 0.5 * (np.float64(x[0, k]) - np.float64(x[1, k]))
                b = _HALF * x[2, k]
                h = math.sqrt(d * d + b * b)
                first, second, third = m + h, m - h, 0.0
            else:
                scale, centre, e, _, _, _, m, _, _, h = _split(
                    np.float64(x[0, k]), np.float64(x[1, k]), np.float64(x[2, k]),
                    _HALF * x[3, k], _HALF * x[4, k], _HALF * x[5, k],
                )  # fmt: skip
                first = centre + scale * e
                second, third = centre + scale * (m + h), centre + scale * (m - h)
            first, second, third = abs(first), abs(second), abs(third)
            value = first + second + third if nuclear else max(first, second, third)
            total += value
            peak = max(peak, value)
        totals[part], peaks[part] = total, peak
