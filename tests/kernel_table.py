"""The table of the learned methods' kernels: for each a reference in plain NumPy, and calls that reach its branches.

Numba's loops are compared with the reference, and those of a GPU, or of what stands for one, with Numba's.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from invcryo.kernels import network as kernels
from invcryo.rotation import random_rotations

# -- references -------------------------------------------------------------------------------------------------------


def windows(x, kernel):
    """Neighbourhoods (n, height, width, k, k, channels) of padded images."""
    r = kernel // 2
    padded = np.pad(x, ((0, 0), (r, r), (r, r), (0, 0)))
    return np.moveaxis(np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), (1, 2)), 3, 5)


def _conv(x, w):
    return np.tensordot(windows(x, w.shape[0]), w, 3)


def _conv_weights(x, g, kernel):
    return np.tensordot(windows(x, kernel), g, ((0, 1, 2), (0, 1, 2)))


def _squares(x):
    """The four values of each square, (n, height // 2, width // 2, channels, 4)."""
    return np.stack(
        [x[:, i : x.shape[1] // 2 * 2 : 2, j : x.shape[2] // 2 * 2 : 2] for i in (0, 1) for j in (0, 1)], -1
    )


def _activated(value, code, slope):
    negative = value < 0
    return np.where(negative, slope * value, value), (code + 4 * negative).astype("u1")


def _pool(x, bias, slope):
    squares = _squares(x)
    return _activated(squares.max(-1) + bias, squares.argmax(-1), slope)


def _unpool(g, code, shape):
    out = np.zeros(shape)
    for k in range(4):
        part = out[:, k >> 1 : 2 * g.shape[1] : 2, k & 1 : 2 * g.shape[2] : 2]
        part[...] = np.where(code & 3 == k, g, 0)
    return out


def _pick(q, code):
    return np.take_along_axis(_squares(q), (code & 3)[..., None].astype(int), -1)[..., 0]


def _corners(turns, step, radius, height, n):
    """Of each point of the slices: index of its eight voxels, their weights, derivatives of these along x, y, z;
    whether it is mirrored, whether inside.
    """
    kx, ky = np.arange(height // 2 + 1), np.fft.fftfreq(height, 1 / height)[:, None]
    q = step * (kx[..., None] * turns[:, None, None, 0] + ky[..., None] * turns[:, None, None, 1])
    mirrored = q[..., 0] < 0
    q = np.where(mirrored[..., None], -q, q)[..., None, :]
    bits = np.array([[c & 1, c >> 1 & 1, c >> 2] for c in range(8)])  # x, y, z
    low = np.minimum(np.floor(q), [n // 2 - 1, n - 2, n - 2]).astype(int)
    factors = np.where(bits, q - low, 1 - (q - low))
    x, y, z = np.moveaxis(low + bits, -1, 0)
    index = (z % n * n + y % n) * (n // 2 + 1) + x
    others = [np.prod(np.delete(factors, a, -1), -1) for a in range(3)]
    slopes = (2 * bits - 1) * np.stack(others, -1)
    return (
        index,
        np.prod(factors, -1),
        slopes,
        mirrored,
        np.broadcast_to(kx**2 + ky**2 < radius**2, mirrored.shape),
    )


def _central_slice(spectrum, turns, step, radius, height):
    index, weights, _, mirrored, inside = _corners(turns, step, radius, height, len(spectrum))
    out = (weights * spectrum.ravel()[index]).sum(-1)
    return np.where(mirrored, out.conj(), out) * inside


def _slice_adjoint(g, turns, step, radius, n):
    index, weights, _, mirrored, inside = _corners(turns, step, radius, g.shape[1], n)
    out = np.zeros((n, n, n // 2 + 1), complex)
    np.add.at(out.reshape(-1), index, weights * (np.where(mirrored, g.conj(), g) * inside)[..., None])
    return out


def _slice_rotations(spectrum, turns, g, step, radius):
    height = g.shape[1]
    index, _, slopes, mirrored, inside = _corners(turns, step, radius, height, len(spectrum))
    d = np.einsum("byxca,byxc->byxa", slopes, spectrum.ravel()[index])
    d = np.where(mirrored[..., None], -d.conj(), d)
    t = (g.conj() * inside)[..., None] * d
    out = np.zeros((len(turns), 3, 3))
    out[:, 0] = step * np.einsum("byxa,x->ba", t.real, np.arange(height // 2 + 1))
    out[:, 1] = step * np.einsum("byxa,y->ba", t.real, np.fft.fftfreq(height, 1 / height))
    return out


def _mark(turns, step, radius, height, n):
    index, _, _, _, inside = _corners(turns, step, radius, height, n)
    out = np.zeros((n, n, n // 2 + 1), bool)
    out.reshape(-1)[index[inside]] = True
    return out


def _volumes(rows, places):
    """The sparse volumes in full, (volumes, n, n, n // 2 + 1)."""
    return np.moveaxis(np.where(places[..., None] >= 0, rows[places], 0), -1, 0)


def _sparse_project(rows, places, factors, turns, step, radius, height):
    parts = [_central_slice(v, turns, step, radius, height) for v in _volumes(rows, places)]
    return np.einsum("bk,kbyx->byx", factors, parts)


def _sparse_rows(places, factors, g, turns, step, radius, touched):
    out = np.empty((touched, factors.shape[1]), complex)
    for k, f in enumerate(factors.T):
        whole = _slice_adjoint(f[:, None, None] * g, turns, step, radius, len(places))
        out[places[places >= 0], k] = whole[places >= 0]
    return out


def _sparse_factors(rows, places, g, turns, step, radius):
    parts = [_central_slice(v, turns, step, radius, g.shape[1]) for v in _volumes(rows, places)]
    return np.einsum("byx,kbyx->bk", g.conj(), parts).real


def _adam(p, m, v, g, rate, betas, floor):
    m = betas[0] * m + (1 - betas[0]) * g
    v = betas[1] * v + (1 - betas[1]) * g**2
    return p - rate * m / (np.sqrt(v) + floor), m, v


def _adam_rows(p, m, v, g, rows, *options):
    out = p.copy(), m.copy(), v.copy()
    for whole, part in zip(out, _adam(p[rows], m[rows], v[rows], g, *options), strict=True):
        whole[rows] = part
    return out


# -- calls ------------------------------------------------------------------------------------------------------------


def real(*shape):
    return np.random.default_rng(sum(shape) + len(shape)).standard_normal(shape)


def complex_values(*shape):
    return real(*shape) + 1j * real(*shape[::-1]).reshape(shape)


def codes(*shape):
    return np.random.default_rng(7).integers(0, 8, shape).astype("u1")


def halved(shape):
    n, height, width, channels = shape
    return n, height // 2, width // 2, channels


def views(n, height, radius, images=3):
    return np.fft.rfftn(real(n, n, n)), random_rotations(images, rng=n), n / height, radius, height


def sparse(n, height, radius, volumes, images=3):
    """(rows, places, factors, cotangent, turns, step, radius, height)."""
    _, turns, step, radius, height = views(n, height, radius, images)
    marked = _mark(turns, step, radius, height, n)
    places = np.where(marked, np.cumsum(marked).reshape(marked.shape) - 1, -1).astype("i4")
    g = complex_values(images, height, height // 2 + 1)
    rows, factors = complex_values(int(marked.sum()), volumes), real(images, volumes)
    return rows, places, factors, g, turns, step, radius, height


_IMAGES = [
    (2, 7, 5, 3, 3, 4),
    (1, 1, 1, 2, 3, 1),
    (3, 2, 9, 1, 5, 2),
    (2, 33, 40, 24, 3, 8),
    (2, 33, 41, 8, 3, 24),
    (2, 9, 10, 41, 3, 50),
]
_POOLED = [(2, 5, 6, 3), (1, 4, 7, 1), (2, 32, 32, 8)]
_VIEWS = [(6, 6, 3.0), (7, 7, 3.0), (8, 5, 2.5), (9, 6, 2.2), (16, 16, 8.0)]
_SPARSE = [sparse(6, 6, 3.0, 1), sparse(9, 7, 3.1, 3)]
#: The last four are large enough for loops of our own.
_PRODUCTS = [(3, 5, 7), (40, 30, 50), (8, 1031, 1027), (1, 1100, 1000), (3, 16385, 65), (5, 66, 16385)]
_STEP = (1e-2, (0.8, 0.9), 1e-7)


def moments(*shape):
    return real(*shape), 0.1 * real(*shape), real(*shape) ** 2


@dataclass
class Kernel:
    """``reference`` on the arguments of each of ``calls``, in double precision; ``ulps`` of the norm between twins."""

    reference: Any
    calls: list[tuple]
    ulps: float = 10


KERNELS = {
    "conv": Kernel(_conv, [(real(n, h, w, c), real(k, k, c, f)) for n, h, w, c, k, f in _IMAGES], 40),
    "conv_weights": Kernel(
        _conv_weights, [(real(n, h, w, c), real(n, h, w, f), k) for n, h, w, c, k, f in _IMAGES], 50
    ),
    "pool": Kernel(_pool, [(real(*s), real(s[-1]), 0.1) for s in _POOLED]),
    "bias_relu": Kernel(
        lambda x, b, s: _activated(x + b, 0, s), [(real(*s), real(s[-1]), 0.1) for s in _POOLED]
    ),
    "by_sign": Kernel(
        lambda g, code, slope: np.where(code >= 4, slope * g, g),
        [(real(*s), codes(*s), 0.1) for s in _POOLED],
    ),
    "unpool": Kernel(_unpool, [(real(*halved(s)), codes(*halved(s)), s) for s in _POOLED]),
    "pick": Kernel(_pick, [(real(*s), codes(*halved(s))) for s in _POOLED]),
    "product": Kernel(
        np.matmul,
        [
            call
            for m, k, n in _PRODUCTS
            for call in (
                (real(m, k), real(k, n)),  # forward in a dense layer
                (real(m, n), real(k, n).T),  # in what came in
                (real(m, k).T, real(m, n)),  # in the weights
                (real(m, 2 * k)[:, ::2], real(k, 2 * n)[:, ::2]),
            )
        ],
    ),
    "central_slice": Kernel(_central_slice, [views(*v) for v in _VIEWS]),
    "slice_adjoint": Kernel(
        _slice_adjoint,
        [(complex_values(3, h, h // 2 + 1), *views(n, h, r)[1:4], n) for n, h, r in _VIEWS],
    ),
    "slice_rotations": Kernel(
        _slice_rotations,
        [(*views(n, h, r)[:2], complex_values(3, h, h // 2 + 1), n / h, r) for n, h, r in _VIEWS],
    ),
    "mark": Kernel(_mark, [(*views(*v)[1:], v[0]) for v in _VIEWS]),
    "sparse_project": Kernel(_sparse_project, [(*s[:3], *s[4:]) for s in _SPARSE]),
    "sparse_rows": Kernel(_sparse_rows, [(*s[1:7], len(s[0])) for s in _SPARSE]),
    "sparse_factors": Kernel(_sparse_factors, [(*s[:2], *s[3:7]) for s in _SPARSE]),
    "adam": Kernel(_adam, [(*moments(300), real(300), *_STEP)]),
    "adam_rows": Kernel(_adam_rows, [(*moments(9, 2), real(3, 2), np.array([7, 0, 4]), *_STEP)]),
}


def large():
    """Arguments at the sizes of training, for timing: {name: arguments}."""
    x, w, bias, pooled = real(8, 64, 64, 32), real(3, 3, 32, 32), real(32), (8, 32, 32, 32)
    turns = views(64, 64, 32.0, 64)
    g = complex_values(64, 64, 33)
    rows = sparse(64, 64, 32.0, 8, 16)
    entries = 1 << 20
    return {
        "conv": (x, w),
        "conv_weights": (x, x, 3),
        "pool": (x, bias, 0.1),
        "bias_relu": (x, bias, 0.1),
        "by_sign": (x, codes(*x.shape), 0.1),
        "unpool": (real(*pooled), codes(*pooled), x.shape),
        "pick": (x, codes(*pooled)),
        "product": (real(8, 8192), real(8192, 512)),
        "central_slice": turns,
        "slice_adjoint": (g, *turns[1:4], 64),
        "slice_rotations": (*turns[:2], g, *turns[2:4]),
        "mark": (*turns[1:], 64),
        "sparse_project": (*rows[:3], *rows[4:]),
        "sparse_rows": (*rows[1:7], len(rows[0])),
        "sparse_factors": (*rows[:2], *rows[3:7]),
        "adam": (*moments(entries), real(entries), *_STEP),
        "adam_rows": (*moments(entries, 2), real(entries // 2, 2), np.arange(0, entries, 2), *_STEP),
    }


def convert(arguments, change):
    return tuple(change(a) if isinstance(a, np.ndarray) else a for a in arguments)


def single(a):
    """Floats in single precision, a copy of anything else."""
    return a.astype({"f": "f4", "c": "c8"}.get(a.dtype.kind, a.dtype))


def double(a):
    return a.astype({"f": "f8", "c": "c16"}.get(a.dtype.kind, a.dtype))


def call(name, arguments):
    """What a kernel returns, or the arrays that it changes, as a list."""
    out = getattr(kernels, name)(*arguments)
    return list(arguments[:3]) if out is None else list(out) if isinstance(out, tuple) else [out]


def distance(name, expected, got):
    """Largest error of a kernel's outputs, at most 1 if they agree to what the table allows; whole numbers exactly."""
    worst = 0.0
    for e, g in zip(expected, got, strict=True):
        if g.dtype.kind in "fc":
            allowed = KERNELS[name].ulps * np.finfo(g.dtype).eps * np.linalg.norm(e)
            error = np.linalg.norm(g - e) / allowed if np.isfinite(g).all() else np.inf
        else:
            error = np.inf if (e != g).any() else 0.0
        worst = max(worst, float(error) if e.shape == g.shape else np.inf)
    return worst


def reference(name, arguments):
    """Of the same values, in double precision."""
    out = KERNELS[name].reference(*convert(arguments, double))
    return list(out) if isinstance(out, tuple) else [out]


def elsewhere(name, arguments, cupy):
    """`call` on a GPU, or what stands for one."""
    return [cupy.asnumpy(a) for a in call(name, convert(arguments, cupy.asarray))]
