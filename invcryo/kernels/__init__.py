"""Loops that array code cannot do well, one function each; formulas stay with their callers.

Each function checks its arrays, picks the compiled twin by their type and sets the number of threads.
Numba is imported at the first call, not before.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import array_module, threads

__all__ = [
    "SEARCH_LANES",
    "SPREADING",
    "WIDEST",
    "SortedPoints",
    "TiltedLines",
    "add_slices",
    "best_turns",
    "ctf_values",
    "dead_zone",
    "difference_adjoint",
    "difference_apply",
    "extract_slices",
    "fill_margins",
    "fold_margins",
    "hessian_adjoint",
    "hessian_apply",
    "laplacian",
    "matrix_norms",
    "pick_distinct",
    "project_groups",
    "ring_harmonics",
    "shrink_groups",
    "shrink_weighted",
    "slice_gradients",
    "slice_products",
    "splat_adjoint",
    "splat_apply",
    "threshold_matrices",
    "tube_kernel",
    "wavelet_analysis",
    "wavelet_synthesis",
]

#: Of the spreading kernels, by type and by the number of cells that a point reaches per axis: lanes of the vector that
#: holds their weights, degree of the polynomials that give them.
SPREADING = {("float32", 8): (8, 9), ("float32", 6): (8, 8), ("float64", 14): (16, 19)}

#: Width of the most accurate one.
WIDEST = {"float32": 8, "float64": 14}

#: Directions that the search over rotations takes at a time: their number is padded to a multiple of it.
SEARCH_LANES = 64

_BLOCK = (16, 16, 32)  # cells (z, y, x): twice as wide as a point reaches, small enough for the second cache


def _cpu(*arrays: Any, work: int | None = None) -> Any:
    """The Numba twins, with threads set for the size of the ``work``; raises where an array is not NumPy's."""
    for a in arrays:
        if array_module(a) is not np:
            raise TypeError("this kernel has no GPU twin yet: move the array to the host first")
    module = importlib.import_module("invcryo.kernels.cpu")
    module.set_threads(threads(work))
    return module


def ctf_values(terms: NDArray, sx: NDArray, sy: NDArray, power: int, dtype: Any) -> NDArray:
    """``(-sin(t0 + t1 s2 + t2 (sx2 - sy2) + t3 2 sx sy + t4 s4) exp(-t5 s2) t6) ** power``, (n, len(sx))."""
    out = np.empty((len(terms), sx.size), dtype)
    _cpu(terms).ctf_values(np.ascontiguousarray(terms, np.float64), sx.ravel(), sy.ravel(), power, out)
    return out


def extract_slices(values: NDArray, index: NDArray, weight: NDArray, phase_x: NDArray, phase_y: NDArray,
                   out: NDArray) -> None:  # fmt: skip
    """``out[p, index[j]] = values[p, j] * weight[j] * phase_x[p, ix] * phase_y[p, iy]``, zero elsewhere.

    ``index`` counts in the flattened half spectrum ``out[p]`` (height, width).
    """
    _cpu(values).extract_slices(values, index, weight, phase_x, phase_y, out)


def add_slices(spectra: NDArray, index: NDArray, weight: NDArray, phase_x: NDArray, phase_y: NDArray,
               out: NDArray) -> None:  # fmt: skip
    """The adjoint gather of `extract_slices`: ``out[p, j] = spectra[p, index[j]] weight[j] conj(phases)``."""
    _cpu(spectra).add_slices(spectra, index, weight, phase_x, phase_y, out)


def tube_kernel(axes: NDArray, table: NDArray, radius: float, half: tuple[int, int, int]) -> NDArray:
    """``r[k] = sum_p table(|M_p k|^2)`` on lags ``-half..half`` per axis (z, y, x), float64.

    ``axes`` is (n, 2, 3): the two image axes of each view in (x, y, z). ``table`` samples the function at
    equal steps of the squared distance from 0 to ``radius**2``.
    """
    out = np.zeros(tuple(2 * h + 1 for h in half), np.float64)
    _cpu(axes).tube_kernel(np.ascontiguousarray(axes, np.float64), table, float(radius), out)
    return out


def splat_apply(coefficients: NDArray, axes: NDArray, shifts: NDArray, table: NDArray, radius: float,
                out: NDArray) -> None:  # fmt: skip
    """``out[p, j] = sum_k c[k] table(|j - M_p k - t_p|^2)``, ``j`` and ``k`` counted from their centres."""
    _cpu(coefficients).splat_apply(coefficients, axes, shifts, table, float(radius), out)


def splat_adjoint(images: NDArray, axes: NDArray, shifts: NDArray, table: NDArray, radius: float,
                  out: NDArray) -> None:  # fmt: skip
    """``out[k] = sum_p sum_j b[p, j] table(|j - M_p k - t_p|^2)``."""
    _cpu(images).splat_adjoint(images, axes, shifts, table, float(radius), out)


def difference_apply(x: NDArray, periodic: bool, out: NDArray) -> None:
    """Forward differences ``out[a] = x[.. + 1 along a] - x`` of a 3-D array; 0 or wrapped at the end."""
    _cpu(x, work=x.size).difference_apply(x, periodic, out)


def difference_adjoint(u: NDArray, periodic: bool, out: NDArray) -> None:
    """The adjoint of `difference_apply`."""
    _cpu(u, work=out.size).difference_adjoint(u, periodic, out)


def shrink_groups(z: NDArray, tau: float, out: NDArray) -> None:
    """``out[:, k] = z[:, k] max(1 - tau / ||z[:, k]||, 0)``; both (groups, n); ``out`` may be ``z``."""
    _cpu(z, work=z.size).shrink_groups(z, z.dtype.type(tau), out)


def project_groups(z: NDArray, radius: float, out: NDArray) -> None:
    """``out[:, k] = z[:, k] min(radius / ||z[:, k]||, 1)``; both (groups, n); ``out`` may be ``z``."""
    _cpu(z, work=z.size).project_groups(z, z.dtype.type(radius), out)


def dead_zone(z: NDArray, low: float, high: float, out: NDArray) -> None:
    """``out = z - clip(z, low, high)`` of flat arrays; ``out`` may be ``z``."""
    _cpu(z, work=z.size).dead_zone(z, z.dtype.type(low), z.dtype.type(high), out)


def shrink_weighted(z: NDArray, weight: NDArray, tau: float, clip: bool, out: NDArray) -> None:
    """``z - clip(z, -t, t)``, or ``clip(z, -t, t)`` itself, of flat arrays; ``out`` may be ``z``.

    ``t = tau * weight[j]`` for the j-th of ``weight.size`` runs of equal length.
    """
    _cpu(z, work=z.size).shrink_weighted(z, weight, float(tau), clip, out)


def threshold_matrices(z: NDArray, t: float, ball: bool, clip: bool, out: NDArray) -> None:
    """Eigenvalues clipped to [-s, s], or what such a clip leaves over; ``out`` may be ``z``.

    Both (c, n): a symmetric matrix per column, 3 x 3 as (zz, yy, xx, zy, zx, yx) or 2 x 2 as (yy, xx, yx), mixed
    components times sqrt(2). ``s`` is ``t``, or, with ``ball``, the one for which the left-overs lie on the l1 ball
    of radius ``t`` (0 where they are in it). Computed in float64.
    """
    _cpu(z, work=z.size)  # checks, and sets the threads
    importlib.import_module("invcryo.kernels.cpu_matrix").threshold_matrices(z, float(t), ball, clip, out)


def matrix_norms(x: NDArray, nuclear: bool) -> tuple[float, float]:
    """Sum and largest of the nuclear (sum of absolute eigenvalues), or of the spectral norms, of such matrices."""
    _cpu(x, work=x.size)
    totals, peaks = np.empty((2, max(1, min(256, x.shape[1]))))
    importlib.import_module("invcryo.kernels.cpu_matrix").matrix_norms(x, nuclear, totals, peaks)
    total = float(totals.sum())
    return total, float(peaks.max()) if np.isfinite(total) else total


def _reach(width: int) -> tuple[int, ...]:
    """The cells that a point reaches: a tuple, whose length is part of its type, so that loops over it are unrolled."""
    return tuple(range(width))


class SortedPoints:
    """Points ``frequencies[0, k] axes[p, 0] + frequencies[1, k] axes[p, 1]`` in the order of the blocks of a grid.

    Parameters
    ----------
    axes : (n, 2, 3), float64
        In the order x, y, z; points count in turns and are periodic.
    frequencies : (2, m), float64
    fine : (nz, ny, nx)
        Samples per turn. Points with negative z are replaced by their opposite.
    dtype : float32 or float64
    """

    def __init__(self, axes: NDArray, frequencies: NDArray, fine: tuple[int, ...], dtype: Any) -> None:
        loops = _nufft(axes, work=len(axes) * frequencies.shape[1])
        n, m = len(axes), frequencies.shape[1]
        self._block = _BLOCK
        blocks = [-(-size // b) for size, b in zip(fine, self._block, strict=True)]
        self._blocks = (fine[0] // 2 // self._block[0] + 1, blocks[1], blocks[2])
        parts = max(1, min(n, threads(n * m)))
        edges = np.arange(parts + 1) * n // parts
        keys = np.empty((n, m), np.int32)
        counts = np.empty((parts, math.prod(self._blocks)), np.int64)
        loops.count_points(axes, frequencies, fine, self._block, self._blocks, edges, keys, counts)
        ends = np.cumsum(counts.T).reshape(counts.T.shape)  # block by block, part by part
        self._starts = np.append(0, ends[:, -1])
        self._places, self._order = np.empty((n * m, 3), dtype), np.empty(n * m, np.int32)
        starts = np.ascontiguousarray(ends.T - counts)
        loops.sort_points(
            axes, frequencies, fine, self._block, self._blocks, edges, keys, starts, self._places, self._order
        )

    def _shares(self, apart: bool) -> Iterator[tuple[NDArray, NDArray]]:
        """Blocks, and where the share of each thread ends; with ``apart``, no two neighbours at the same time."""
        sizes = np.diff(self._starts)
        largest_first = np.argsort(-sizes, kind="stable")
        largest_first = largest_first[sizes[largest_first] > 0]
        z, y, x = np.unravel_index(largest_first, self._blocks)
        colour = z % 2 * 4 + y % 2 * 2 + x % 2 if apart else np.zeros_like(z)
        workers = threads(len(self._order))
        turns = [largest_first[colour == c] for c in range(8 if apart else 1)]
        if workers == 1:
            turns = [np.concatenate(turns)]  # in the same order, at one go
        for mine in turns:
            shares = [mine[t::workers] for t in range(workers)]
            yield np.concatenate(shares), np.cumsum([0, *map(len, shares)])

    def spread(
        self,
        strengths: NDArray,
        coefficients: NDArray,
        width: int,
        margin: int,
        grid: NDArray,
        finer: int = 1,
    ) -> None:
        """Add strengths (n * m,) to a grid with margins, those of points that were replaced as their conjugates.

        ``coefficients`` are the polynomials of a spreading kernel of ``width`` cells; ``finer`` is 2 for a grid of
        twice as many samples per turn.
        """
        loops = _nufft(strengths, grid, work=strengths.size)
        for blocks, ends in self._shares(apart=True):
            loops.spread(grid, margin, finer, self._block, self._blocks, blocks, ends, self._starts, self._places,
                         self._order, strengths, coefficients, _reach(width))  # fmt: skip

    def interpolate(
        self, grid: NDArray, coefficients: NDArray, width: int, margin: int, values: NDArray
    ) -> None:
        """The transpose of `spread`."""
        loops = _nufft(values, grid, work=values.size)
        for blocks, ends in self._shares(apart=False):
            loops.interpolate(grid, margin, self._block, self._blocks, blocks, ends, self._starts, self._places,
                              self._order, coefficients, _reach(width), values)  # fmt: skip


class TiltedLines:
    """Points ``frequencies[r] lines[p]`` of a periodic grid (rows, columns, planes), which all planes share.

    Parameters
    ----------
    lines : (n, 2), float64
        In turns, along rows and columns.
    frequencies : (m,), float64
    fine : (rows, columns)
        Samples per turn.
    coefficients : (degree + 1, lanes)
        Polynomials of the widest spreading kernel, of the type of the grid.

    Notes
    -----
    Grids are real arrays: planes of complex numbers are stored as pairs. The number of planes must be a multiple of
    `PLANES` complex, or 2 `PLANES` real ones; what `take` and `put` are given may have fewer.
    """

    PLANES = 16

    def __init__(
        self, lines: NDArray, frequencies: NDArray, fine: tuple[int, int], coefficients: NDArray
    ) -> None:
        dtype = coefficients.dtype
        width = WIDEST[dtype.name]
        shape = (len(lines), frequencies.size, 2, width)
        self._cells, self._weights = np.empty(shape, np.uint16), np.empty(shape, dtype)
        loops = _tilt(lines, work=self._cells.size)
        loops.find_cells(lines, frequencies, np.array(fine), width, coefficients, self._cells, self._weights)

    def take(self, grid: NDArray, transfer: NDArray, across: NDArray, along: NDArray, out: NDArray) -> None:
        """``out[p, r, k] = transfer[r, k] across[p, r] along[p, k]`` times plane k of the grid at point (p, r)."""
        _tilt(grid, work=out.size).take_lines(grid, self._cells, self._weights, transfer, across, along, out)

    def put(self, values: NDArray, transfer: NDArray, across: NDArray, along: NDArray, grid: NDArray) -> None:
        """The adjoint of `take`: added to the grid."""
        _tilt(grid, work=values.size).put_lines(
            values, self._cells, self._weights, transfer, across, along, grid
        )

    def put_strengths(self, strengths: NDArray, share: NDArray, grid: NDArray) -> None:
        """Add real ``share[p] strengths[r, k]`` at point (p, r) of plane k."""
        _tilt(grid, work=len(self._cells) * strengths.size).put_strengths(
            strengths, share, self._cells, self._weights, grid
        )


def _tilt(*arrays: Any, work: int) -> Any:
    _cpu(*arrays, work=work)
    return importlib.import_module("invcryo.kernels.cpu_tilt")


def fold_margins(grid: NDArray, margin: int, inside: tuple[int, ...]) -> None:
    """Move what lies in the margins around ``inside`` (planes, ny, nx) to where it belongs.

    Rows and columns are periodic. Planes are 0 to the middle of a periodic grid, and the planes beyond belong to
    their mirror images: ``grid[-l] += conj(grid[l])``.
    """
    _nufft(grid, work=grid.size).fold_margins(grid, margin, *inside)


def fill_margins(grid: NDArray, margin: int, inside: tuple[int, ...]) -> None:
    """The transpose of `fold_margins`: copies into the margins."""
    _nufft(grid, work=grid.size).fill_margins(grid, margin, *inside)


def _nufft(*arrays: Any, work: int) -> Any:
    _cpu(*arrays, work=work)
    return importlib.import_module("invcryo.kernels.cpu_nufft")


def slice_gradients(grid: NDArray, margin: int, fine: tuple[int, ...], coefficients: NDArray, width: int,
                    frames: NDArray, frequencies: NDArray, values: NDArray, gradients: NDArray) -> None:  # fmt: skip
    """Values (n, m) of a transform at ``wx frames[p, 0] + wy frames[p, 1]`` turns, and its gradients (n, m, 3) in x, y,
    z per turn: those of the interpolant."""
    _poses(grid, work=values.size).slice_gradients(
        grid, margin, fine, coefficients, _reach(width), frames, frequencies, values, gradients
    )


def slice_products(grid: NDArray, margin: int, fine: tuple[int, ...], coefficients: NDArray, width: int,
                   frames: NDArray, frequencies: NDArray, index: tuple[NDArray, NDArray],
                   phases: tuple[NDArray, NDArray], image: NDArray, data: NDArray, power: NDArray,
                   derivatives: bool) -> NDArray:  # fmt: skip
    """Sums over the points j of view p, whose values are ``v``, at a time against ``data[i]``, ``i = image[p]``::

        0       Re sum conj(data[i, j]) v[j] e[j],      e[j] = phase_x[p, ix[j]] phase_y[p, iy[j]]
        1       sum power[i, j] |v[j]|^2

    and with ``derivatives`` those of v e =: m by a small turn of the image frame about its x, y and z axis, to the
    left, and by a shift along x and y, ``e = exp(-i w . t)``::

        2..6    Re sum conj(data) dm/d(x, y, z, tx, ty)
        7..9    Re sum power conj(m) dm/d(x, y, z)        (0 for shifts)
        10..24  Re sum power conj(dm/da) dm/db, the upper triangle row by row

    (n, 2) or (n, 25), float64. ``frames`` (n, 3, 3): the axes of the image, in turns per unit of frequency. ``power``
    has one row for all images or one for each.
    """
    loops = _poses(grid, data, work=len(image) * frequencies.shape[1])
    out = np.empty((len(image), 25 if derivatives else 2))
    loop = loops.slice_derivatives if derivatives else loops.slice_products
    loop(
        grid,
        margin,
        fine,
        coefficients,
        _reach(width),
        frames,
        frequencies,
        *index,
        *phases,
        image,
        data,
        power,
        out,
    )
    return out


def _poses(*arrays: Any, work: int) -> Any:
    _cpu(*arrays, work=16 * work)  # a point is a few hundred products
    return importlib.import_module("invcryo.kernels.cpu_poses")


def hessian_apply(x: NDArray, periodic: bool, out: NDArray) -> None:
    """Second differences of a volume: zz, yy, xx, sqrt(2) zy, sqrt(2) zx, sqrt(2) yx, mixed ones forward.

    Beyond its ends the volume repeats its border, or starts again.
    """
    _cpu(x, work=x.size)
    importlib.import_module("invcryo.kernels.cpu_hessian").hessian_apply(x, periodic, out)


def hessian_adjoint(u: NDArray, periodic: bool, out: NDArray) -> None:
    """The adjoint of `hessian_apply`."""
    _cpu(u, work=out.size)
    importlib.import_module("invcryo.kernels.cpu_hessian").hessian_adjoint(u, periodic, out)


def laplacian(x: NDArray, periodic: bool, out: NDArray) -> None:
    """``6 x[k]`` minus the six neighbours of voxel k; beyond the ends the border, or the opposite end."""
    _cpu(x, work=x.size)
    importlib.import_module("invcryo.kernels.cpu_hessian").laplacian(x, periodic, out)


def wavelet_analysis(source: NDArray, box: tuple[int, ...], split: tuple[bool, ...], filters: NDArray,
                     out: NDArray) -> None:  # fmt: skip
    """The corner ``box`` of ``source`` into that of ``out``: along each axis to ``split``, filter (low, high), keep
    every other entry, low-pass half first. At most 3-D, C order; ``out`` may be ``source``.
    """
    _cpu(source, work=math.prod(box))
    loops = importlib.import_module("invcryo.kernels.cpu_wavelet")
    loops.analysis(source.reshape(-1, source.shape[-1]), *_corner(box, split, filters, out))


def wavelet_synthesis(box: tuple[int, ...], split: tuple[bool, ...], filters: NDArray, out: NDArray) -> None:
    """The transpose of `wavelet_analysis`, its inverse for orthonormal filters, in place."""
    _cpu(out, work=math.prod(box))
    importlib.import_module("invcryo.kernels.cpu_wavelet").synthesis(*_corner(box, split, filters, out))


def _corner(box: tuple[int, ...], split: tuple[bool, ...], filters: NDArray, out: NDArray) -> tuple[Any, ...]:
    """As the loops take them: three axes, two filters, rows per plane, and the rows of ``out``."""
    missing = 3 - out.ndim
    height = out.shape[-2] if out.ndim > 1 else 1
    rows = out.reshape(-1, out.shape[-1])
    return (1,) * missing + box, (False,) * missing + split, filters[0], filters[1], height, rows


def dot(x: NDArray, y: NDArray) -> float:
    """``sum x y`` of flat arrays in float64; the same bits on any number of threads."""
    return float(_vector(x, y, work=_light(x)).dot(x, y))


def add_scaled(y: NDArray, factor: float, x: NDArray) -> None:
    """``y += factor x``, flat."""
    _vector(y, x, work=_light(y)).add_scaled(y, y.dtype.type(factor), x)


def scale_add(y: NDArray, factor: float, x: NDArray) -> None:
    """``y = x + factor y``, flat."""
    _vector(y, x, work=_light(y)).scale_add(y, y.dtype.type(factor), x)


def spring(image: NDArray, u: NDArray, a: NDArray, rho: float, out: NDArray, add: bool) -> None:
    """``out = rho (u + a - image)``, or added to ``out``; flat, ``out`` may be ``image``."""
    _vector(image, u, a, work=_light(out)).spring(image, u, a, out.dtype.type(rho), out, add)


def relax(image: NDArray, u: NDArray, a: NDArray, relaxation: float) -> None:
    """``a = relaxation image + (1 - relaxation) u - a``, flat."""
    _vector(image, u, a, work=_light(a)).relax(image, u, a, a.dtype.type(relaxation))


def settle(image: NDArray, u: NDArray, a: NDArray) -> NDArray:
    """``a = u - a``, and the sums |image - u|^2, |image|^2, |u|^2, |a|^2, <a, image - u> in float64; flat."""
    return _vector(image, u, a, work=_light(a)).settle(image, u, a)


def sum_lengths(z: NDArray) -> float:
    """``sum_k ||z[:, k]||`` of z (groups, n)."""
    return float(_vector(z, work=z.size).sum_lengths(z))


def tv_square(x: NDArray, periodic: bool) -> float:
    """``||G x||^2``, G the forward differences of a volume."""
    return float(_vector(x, work=x.size).tv_square(x, periodic))


def tv_pull(x: NDArray, u: NDArray, a: NDArray, rho: float, periodic: bool, out: NDArray) -> None:
    """``out += rho G^H (u + a - G x)``."""
    _vector(x, u, a, out, work=x.size).tv_pull(x, u, a, x.dtype.type(rho), periodic, out)


def tv_move(x: NDArray, u: NDArray, a: NDArray, relaxation: float, tau: float, periodic: bool) -> NDArray:
    """`relax` of the image G x, the prox of ``tau`` x isotropic total variation, and `settle`, in one go.

    Returns the sums of `settle`, then those of the lengths of G x and of u.
    """
    kind = x.dtype.type
    return _vector(x, u, a, work=x.size).tv_move(x, u, a, kind(relaxation), kind(tau), periodic)


def _light(x: NDArray) -> int:
    """Work in the sense of `threads` of a loop that does next to nothing with each entry.

    One core does it at the speed of the memory, or within a millisecond; others would have to be woken for it.
    """
    return x.size >> 6


def _vector(*arrays: Any, work: int) -> Any:
    _cpu(*arrays, work=work)
    return importlib.import_module("invcryo.kernels.cpu_vector")


def ring_harmonics(data: NDArray, phases: NDArray, turn_real: NDArray, turn_imag: NDArray, start: NDArray,
                   stencil: NDArray, rings: int) -> tuple[NDArray, NDArray]:  # fmt: skip
    """``x[p, s, l, r] = sum_m stencil[m, r - start[m]] turn[m, l] part_l(data[p, m] phases[s, m])``.

    ``part_l`` is the real part for even l and the imaginary part for odd l. Real and imaginary parts of ``x``.
    """
    shape = (len(data), len(phases), turn_real.shape[1], rings)
    real, imag = np.empty((2, *shape), np.float32)
    loops = _search(data, work=data.size * len(phases))
    loops.ring_harmonics(data, phases, turn_real, turn_imag, start, stencil, real, imag)
    return real, imag


def best_turns(templates: tuple[NDArray, NDArray], data: tuple[NDArray, NDArray], first: NDArray, cosine: NDArray,
               sine: NDArray, turns: int) -> tuple[NDArray, NDArray]:  # fmt: skip
    """Over the columns s, the largest ``sum_l Re((sum_r conj(t[l, r, d]) x[p, s, l, r]) (cosine + i sine)[l, j])``.

    Parts of ``t`` (harmonics, rings, directions) and ``x`` (n, columns, harmonics, rings) are float32; harmonics are a
    multiple of 8, directions of `SEARCH_LANES`; ``t`` is zero at rings below ``first[l]``. ``cosine`` and ``sine``
    (harmonics, turns) are those of ``l psi_j`` times any factor of l, at ``psi_j = (j + 1/2) 2 pi / turns``, with 4 a
    divisor of turns. Returns the values (n, turns, directions) and their columns, uint16.
    """
    shape = (len(data[0]), turns, templates[0].shape[2])
    best, where = np.empty(shape, np.float32), np.zeros(shape, np.uint16)
    _search(*templates, *data, work=best.size).best_turns(*templates, *data, first, cosine, sine, best, where)
    return best, where


def pick_distinct(scores: NDArray, views: NDArray, angles: NDArray, group: NDArray, trace: float,
                  count: int) -> NDArray:  # fmt: skip
    """Indices (n, count, 2) of directions and turns of the largest ``scores`` (n, turns, directions), best first.

    Poses are ``turn(angles[j]) @ views[d]``; those with ``trace(A^T B g)`` above ``trace`` for a pose A taken before
    and a ``g`` of the group are passed over, and overwritten. -1 where none is left.
    """
    picked = np.empty((len(scores), count, 2), np.int64)
    cosine, sine = np.cos(angles), np.sin(angles)
    _search(scores, work=scores.size).pick_distinct(scores, views, cosine, sine, group, float(trace), picked)
    return picked


def _search(*arrays: Any, work: int) -> Any:
    _cpu(*arrays, work=work)
    return importlib.import_module("invcryo.kernels.cpu_search")
