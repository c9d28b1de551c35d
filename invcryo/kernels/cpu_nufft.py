"""Numba loops between non-uniform points and a grid: sort into blocks, spread, interpolate, fold the margins.

The spreading kernel is a product over the axes, per cell a polynomial of the point's place between two samples.
Points are sorted into blocks of the grid, as wide as the kernel at least. A block is one thread's work, and blocks
worked on at the same time are not neighbours: no cell is written by two threads, and the order in which a cell's
parts are added depends neither on the number of threads nor on their speed.
"""

import math
from typing import Any

import numba.extending
import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils

from . import SPREADING
from .cpu import _options

intrinsic: Any = numba.extending.intrinsic  # its first argument is not the caller's, which no checker knows

_F32, _F64 = ir.FloatType(), ir.DoubleType()
_I32, _I64 = ir.IntType(32), ir.IntType(64)


def _real(dtype):
    return getattr(dtype, "underlying_float", dtype)


class _Point:
    """LLVM code for one point: rows as vectors, and every weight in a register.

    A plain loop would have to allow for rows and weights that overlap in memory.
    """

    def __init__(self, context, builder, dtype, coefficients, width):
        self.builder, self.complex = builder, isinstance(dtype, types.Complex)
        self.width = width
        self.lanes, self.degree = SPREADING[_real(dtype).name, width]
        self.scalar, self.bytes = (_F32, 4) if _real(dtype) == types.float32 else (_F64, 8)
        self.row = self.lanes * (2 if self.complex else 1)
        table = coefficients.data
        self.table = [
            self.load(
                builder.bitcast(
                    builder.gep(table, [_I64(d * self.lanes)]), self.vector(self.lanes).as_pointer()
                )
            )
            for d in range(self.degree + 1)
        ]

    def vector(self, n):
        return ir.VectorType(self.scalar, n)

    def load(self, pointer):
        out = self.builder.load(pointer)
        out.align = self.bytes
        return out

    def shuffled(self, v, lanes):
        return self.builder.shuffle_vector(v, v, ir.Constant(ir.VectorType(_I32, len(lanes)), lanes))

    def everywhere(self, scalar, n):
        v = self.builder.insert_element(ir.Constant(self.vector(n), ir.Undefined), scalar, _I32(0))
        return self.shuffled(v, [0] * n)

    def lane(self, v, i, n):
        return self.everywhere(self.builder.extract_element(v, _I32(i)), n)

    def multiply_add(self, a, b, c):
        kind = ir.FunctionType(a.type, [a.type] * 3)
        name = f"llvm.fmuladd.v{a.type.count}f{8 * self.bytes}"
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), [a, b, c])

    def weights(self, u):
        """Of the cells along one axis, for a place ``u`` in -1..1."""
        u = self.everywhere(u, self.lanes)
        out = self.table[0]
        for c in self.table[1:]:
            out = self.multiply_add(out, u, c)
        return out

    def rows(self, first, strides):
        """Pointers to the cells from ``first`` on, a list of rows for every plane."""
        builder = self.builder
        plane = builder.bitcast(first, ir.IntType(8).as_pointer())
        strides = [builder.extract_value(strides, i) for i in range(2)]
        out = []
        for _ in range(self.width):
            row, pointers = plane, []
            for _ in range(self.width):
                pointers.append(builder.bitcast(row, self.vector(self.row).as_pointer()))
                row = builder.gep(row, [strides[1]])
            out.append(pointers)
            plane = builder.gep(plane, [strides[0]])
        return out


def _cells(context, builder, kind, grid, places):
    """Numba's array, and the pointer to its entry ``places`` = (z, y, x)."""
    array = context.make_array(kind)(context, builder, grid)
    return array, cgutils.get_item_pointer(context, builder, kind, array, places)


@intrinsic
def _add_point(typingctx, grid, z, y, x, coefficients, reach, uz, uy, ux, strength):
    """``grid[z + i, y + j, x + k] += strength w(uz)[i] w(uy)[j] w(ux)[k]`` for i, j, k in ``reach``."""

    def code(context, builder, signature, args):
        table = context.make_array(signature.args[4])(context, builder, args[4])
        p = _Point(context, builder, grid.dtype, table, reach.count)
        array, first = _cells(context, builder, grid, args[0], args[1:4])
        wz, wy, wx = (p.weights(u) for u in args[6:9])
        if p.complex:
            s = context.make_complex(builder, grid.dtype, value=args[9])
            pair = ir.Constant(p.vector(p.row), ir.Undefined)
            pair = builder.insert_element(pair, s.real, _I32(0))
            pair = builder.insert_element(pair, s.imag, _I32(1))
            wx = builder.fmul(
                p.shuffled(wx, [k // 2 for k in range(p.row)]), p.shuffled(pair, [0, 1] * p.lanes)
            )
        else:
            wx = builder.fmul(wx, p.everywhere(args[9], p.row))
        along_y = [p.lane(wy, j, p.row) for j in range(p.width)]
        for i, plane in enumerate(p.rows(first, array.strides)):
            part = builder.fmul(wx, p.lane(wz, i, p.row))
            for weight, row in zip(along_y, plane, strict=True):
                builder.store(p.multiply_add(weight, part, p.load(row)), row).align = p.bytes
        return context.get_dummy_value()

    u = _real(grid.dtype)
    return types.void(
        grid, types.intp, types.intp, types.intp, coefficients, reach, u, u, u, grid.dtype
    ), code


@intrinsic
def _value_at_point(typingctx, grid, z, y, x, coefficients, reach, uz, uy, ux):
    """The transpose of `_add_point` for one complex value."""

    def code(context, builder, signature, args):
        table = context.make_array(signature.args[4])(context, builder, args[4])
        p = _Point(context, builder, grid.dtype, table, reach.count)
        array, first = _cells(context, builder, grid, args[0], args[1:4])
        wz, wy, wx = (p.weights(u) for u in args[6:9])
        along_y = [p.lane(wy, j, p.row) for j in range(p.width)]
        total = ir.Constant(p.vector(p.row), [0.0] * p.row)
        for i, plane in enumerate(p.rows(first, array.strides)):
            part = builder.fmul(along_y[0], p.load(plane[0]))
            for weight, row in zip(along_y[1:], plane[1:], strict=True):
                part = p.multiply_add(weight, p.load(row), part)
            total = p.multiply_add(p.lane(wz, i, p.row), part, total)
        total = builder.fmul(total, p.shuffled(wx, [k // 2 for k in range(p.row)]))
        n = p.row
        while n > 2:
            n //= 2
            total = builder.fadd(p.shuffled(total, list(range(n))), p.shuffled(total, list(range(n, 2 * n))))
        out = context.make_complex(builder, grid.dtype)
        out.real, out.imag = (builder.extract_element(total, _I32(i)) for i in range(2))
        return out._getvalue()

    u = _real(grid.dtype)
    return grid.dtype(grid, types.intp, types.intp, types.intp, coefficients, reach, u, u, u), code


# -- sorting -----------------------------------------------------------------------------------------------


@njit(inline="always")
def _place(axes, wx, wy, fine):
    """Where a point lies on the fine grid, (z, y, x) with z in 0..size / 2, and whether it was turned round."""
    z = axes[0, 2] * wx + axes[1, 2] * wy
    y = axes[0, 1] * wx + axes[1, 1] * wy
    x = axes[0, 0] * wx + axes[1, 0] * wy
    z -= np.rint(z)
    sign = -1.0 if z < 0.0 else 1.0
    y *= sign
    x *= sign
    y = (y - math.floor(y)) * fine[1]
    x = (x - math.floor(x)) * fine[2]
    # rounding may have made a whole turn of a tiny negative number
    y = y if y < fine[1] else 0.0
    x = x if x < fine[2] else 0.0
    return sign * z * fine[0], y, x, z < 0.0


@njit(parallel=True, **_options)
def count_points(axes, frequencies, fine, block, blocks, edges, keys, counts):
    for c in prange(edges.size - 1):
        counts[c] = 0
        for p in range(edges[c], edges[c + 1]):
            for k in range(keys.shape[1]):
                z, y, x, _ = _place(axes[p], frequencies[0, k], frequencies[1, k], fine)
                bz, by, bx = int(z) // block[0], int(y) // block[1], int(x) // block[2]
                keys[p, k] = (bz * blocks[1] + by) * blocks[2] + bx
            for k in range(keys.shape[1]):
                counts[c, keys[p, k]] += 1


@njit(parallel=True, **_options)
def sort_points(axes, frequencies, fine, block, blocks, edges, keys, starts, places, order):
    for c in prange(edges.size - 1):
        for p in range(edges[c], edges[c + 1]):
            for k in range(keys.shape[1]):
                z, y, x, opposite = _place(axes[p], frequencies[0, k], frequencies[1, k], fine)
                key = keys[p, k]
                i = starts[c, key]
                starts[c, key] = i + 1
                rest = key // blocks[2]
                places[i, 0] = z - rest // blocks[1] * block[0]
                places[i, 1] = y - rest % blocks[1] * block[1]
                places[i, 2] = x - key % blocks[2] * block[2]
                j = p * keys.shape[1] + k
                order[i] = ~j if opposite else j


# -- between points and grid -------------------------------------------------------------------------------


@njit(inline="always")
def _corner(key, block, blocks, margin):
    """Of a block, in the grid with margins."""
    rest = key // blocks[2]
    return (
        rest // blocks[1] * block[0] + margin,
        rest % blocks[1] * block[1] + margin,
        key % blocks[2] * block[2] + margin,
    )


@njit(parallel=True, **_options)
def spread(
    grid, margin, finer, block, blocks, work, ends, starts, places, order, strengths, coefficients, reach
):
    real = places.dtype.type
    half, last, times = real(len(reach) / 2), real(len(reach) - 1), real(finer)
    block = (finer * block[0], finer * block[1], finer * block[2])
    for t in prange(ends.size - 1):
        for key in work[ends[t] : ends[t + 1]]:
            z0, y0, x0 = _corner(key, block, blocks, margin)
            for i in range(starts[key], starts[key + 1]):
                z, y, x = times * places[i, 0], times * places[i, 1], times * places[i, 2]
                iz, iy, ix = math.ceil(z - half), math.ceil(y - half), math.ceil(x - half)
                j = order[i]
                s = np.conj(strengths[~j]) if j < 0 else strengths[j]
                _add_point(
                    grid, z0 + iz, y0 + iy, x0 + ix, coefficients, reach,
                    real(2) * (real(iz) - z) + last, real(2) * (real(iy) - y) + last, real(2) * (real(ix) - x) + last,
                    s,
                )  # fmt: skip


@njit(parallel=True, **_options)
def interpolate(grid, margin, block, blocks, work, ends, starts, places, order, coefficients, reach, values):
    real = places.dtype.type
    half, last = real(len(reach) / 2), real(len(reach) - 1)
    for t in prange(ends.size - 1):
        for key in work[ends[t] : ends[t + 1]]:
            z0, y0, x0 = _corner(key, block, blocks, margin)
            for i in range(starts[key], starts[key + 1]):
                z, y, x = places[i, 0], places[i, 1], places[i, 2]
                iz, iy, ix = math.ceil(z - half), math.ceil(y - half), math.ceil(x - half)
                v = _value_at_point(
                    grid, z0 + iz, y0 + iy, x0 + ix, coefficients, reach,
                    real(2) * (real(iz) - z) + last, real(2) * (real(iy) - y) + last, real(2) * (real(ix) - x) + last,
                )  # fmt: skip
                j = order[i]
                if j < 0:
                    values[~j] = np.conj(v)
                else:
                    values[j] = v


# -- margins -----------------------------------------------------------------------------------------------


@njit(parallel=True, **_options)
def fold_margins(grid, margin, planes, ny, nx):
    zero = grid.dtype.type(0)
    for z in prange(grid.shape[0]):
        plane = grid[z]
        for y in range(plane.shape[0]):
            row = plane[y]
            for x in range(margin):
                row[x + nx] += row[x]
                row[x] = zero
            for x in range(margin + nx, row.size):
                row[x - nx] += row[x]
                row[x] = zero
        for y in range(plane.shape[0]):
            if y < margin or y >= margin + ny:
                row, out = plane[y], plane[y + ny if y < margin else y - ny]
                for x in range(margin, margin + nx):
                    out[x] += row[x]
                    row[x] = zero
    last = margin + planes - 1
    for k in prange(2 * margin):
        i = np.int64(k) // 2 + 1  # the loop index is unsigned
        source, out = grid[margin - i], grid[margin + i]
        if k % 2:
            source, out = grid[last + i], grid[last - i]
        for y in range(ny):
            row, into = source[margin + y], out[margin + (ny - y) % ny]
            for x in range(nx):
                into[margin + (nx - x) % nx] += np.conj(row[margin + x])
                row[margin + x] = zero


@njit(parallel=True, **_options)
def fill_margins(grid, margin, planes, ny, nx):
    for z in prange(planes):
        plane = grid[margin + z]
        for y in range(margin, margin + ny):
            row = plane[y]
            for x in range(margin):  # assignments of slices take four times as long to compile
                row[x] = row[x + nx]
            for x in range(margin + nx, row.size):
                row[x] = row[x - nx]
        for y in range(plane.shape[0]):
            if y < margin or y >= margin + ny:
                row, source = plane[y], plane[y + ny if y < margin else y - ny]
                for x in range(row.size):
                    row[x] = source[x]
    last = margin + planes - 1
    for k in prange(2 * margin):
        i = np.int64(k) // 2 + 1  # the loop index is unsigned
        source, out = grid[margin + i], grid[margin - i]
        if k % 2:
            source, out = grid[last - i], grid[last + i]
        for y in range(out.shape[0]):
            row, mirrored = out[y], source[margin + (margin - y) % ny]
            for x in range(row.size):
                row[x] = np.conj(mirrored[margin + (margin - x) % nx])
