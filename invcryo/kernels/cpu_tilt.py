"""Numba loops between the points of tilted lines and planes of a grid, for many planes at once.

All planes share their points, so that a point's cells and weights are found once, and the innermost loop runs over the
planes, which lie side by side in memory. Planes are shared out among the threads, `CHUNK` at a time: no cell is written
by two threads, and the order in which a cell's parts are added depends neither on the number of threads nor on their
speed.
"""

import math
from typing import Any

import numba.extending
import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils

from . import WIDEST
from .cpu import _options
from .cpu_nufft import _F32, _F64, _I32, _I64

intrinsic: Any = numba.extending.intrinsic

#: Numbers of planes that a loop holds in registers: a complex one counts twice.
CHUNK = 32


class _Cells:
    """LLVM code for the cells of one point: each a vector of `CHUNK` numbers, of as many planes."""

    def __init__(self, context, builder, signature, args):
        """``args`` begin with the grid, the first number of the chunk, two lists of cells and two of weights."""
        self.builder = builder
        grid = signature.args[0]
        self.width = WIDEST[grid.dtype.name]
        self.scalar, self.bytes = (_F32, 4) if grid.dtype == types.float32 else (_F64, 8)
        array = context.make_array(grid)(context, builder, args[0])
        strides = [builder.extract_value(array.strides, i) for i in range(3)]
        start = builder.gep(
            builder.bitcast(array.data, ir.IntType(8).as_pointer()), [builder.mul(args[1], strides[2])]
        )
        rows, columns, along_rows, along_columns = (
            [self._entry(context, signature.args[i], args[i], j) for j in range(self.width)]
            for i in range(2, 6)
        )
        rows = [builder.mul(builder.zext(r, _I64(0).type), strides[0]) for r in rows]
        columns = [builder.mul(builder.zext(c, _I64(0).type), strides[1]) for c in columns]
        kind = ir.VectorType(self.scalar, CHUNK)
        self.places = [
            [builder.bitcast(builder.gep(builder.gep(start, [r]), [c]), kind.as_pointer()) for c in columns]
            for r in rows
        ]
        self.along_rows, self.along_columns = along_rows, along_columns
        self.zero = ir.Constant(kind, [0.0] * CHUNK)

    def _entry(self, context, kind, array, j):
        pointer = context.make_array(kind)(context, self.builder, array).data
        return self.builder.load(self.builder.gep(pointer, [_I64(j)]))

    def load(self, pointer):
        out = self.builder.load(pointer)
        out.align = self.bytes
        return out

    def store(self, value, pointer):
        self.builder.store(value, pointer).align = self.bytes

    def everywhere(self, scalar):
        v = self.builder.insert_element(ir.Constant(self.zero.type, ir.Undefined), scalar, _I32(0))
        return self.builder.shuffle_vector(
            v, v, ir.Constant(ir.VectorType(ir.IntType(32), CHUNK), [0] * CHUNK)
        )

    def multiply_add(self, a, b, c):
        kind = ir.FunctionType(a.type, [a.type] * 3)
        name = f"llvm.fmuladd.v{CHUNK}f{8 * self.bytes}"
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), [a, b, c])

    def vector(self, context, kind, array):
        """Pointer to an array of `CHUNK` numbers."""
        pointer = context.make_array(kind)(context, self.builder, array).data
        return self.builder.bitcast(pointer, self.zero.type.as_pointer())


@intrinsic
def _take(typingctx, grid, first, rows, columns, along_rows, along_columns, out):
    """``out[:] = sum_ij along_rows[i] along_columns[j] grid[rows[i], columns[j], first:first + CHUNK]``."""

    def code(context, builder, signature, args):
        cells = _Cells(context, builder, signature, args)
        total = cells.zero
        for row, weight in zip(cells.places, cells.along_rows, strict=True):
            part = cells.zero
            for place, w in zip(row, cells.along_columns, strict=True):
                part = cells.multiply_add(cells.everywhere(w), cells.load(place), part)
            total = cells.multiply_add(cells.everywhere(weight), part, total)
        cells.store(total, cells.vector(context, signature.args[6], args[6]))
        return context.get_dummy_value()

    return types.void(grid, types.intp, rows, columns, along_rows, along_columns, out), code


@intrinsic
def _put(typingctx, grid, first, rows, columns, along_rows, along_columns, values):
    """The transpose of `_take`: adds to the grid."""

    def code(context, builder, signature, args):
        cells = _Cells(context, builder, signature, args)
        values = cells.load(cells.vector(context, signature.args[6], args[6]))
        for row, weight in zip(cells.places, cells.along_rows, strict=True):
            part = builder.fmul(cells.everywhere(weight), values)
            for place, w in zip(row, cells.along_columns, strict=True):
                cells.store(cells.multiply_add(cells.everywhere(w), part, cells.load(place)), place)
        return context.get_dummy_value()

    return types.void(grid, types.intp, rows, columns, along_rows, along_columns, values), code


@njit(parallel=True, **_options)
def find_cells(lines, frequencies, fine, width, coefficients, cells, weights):
    real = weights.dtype.type
    half = width / 2
    for p in prange(lines.shape[0]):
        for r in range(frequencies.size):
            for axis in range(2):
                place = lines[p, axis] * frequencies[r]
                place = (place - math.floor(place)) * fine[axis]
                first = math.ceil(place - half)
                u = real(2.0 * (first - place) + width - 1.0)
                for i in range(width):
                    cell = first + i
                    cells[p, r, axis, i] = (
                        cell - fine[axis] if cell >= fine[axis] else (cell + fine[axis] if cell < 0 else cell)
                    )
                    w = coefficients[0, i]
                    for d in range(1, coefficients.shape[0]):
                        w = w * u + coefficients[d, i]
                    weights[p, r, axis, i] = w


@njit(parallel=True, **_options)
def take_lines(grid, cells, weights, transfer, across, along, out):
    chunk = CHUNK // 2
    chunks = (out.shape[2] + chunk - 1) // chunk
    for task in prange(chunks * out.shape[0]):
        c = np.int64(task) // out.shape[0]
        p = np.int64(task) - c * out.shape[0]
        numbers = np.empty(CHUNK, grid.dtype)
        first = c * chunk
        last = min(chunk, out.shape[2] - first)
        for r in range(out.shape[1]):
            _take(
                grid, CHUNK * c, cells[p, r, 0], cells[p, r, 1], weights[p, r, 0], weights[p, r, 1], numbers
            )
            for k in range(last):
                factor = transfer[r, first + k] * (across[p, r] * along[p, first + k])
                out[p, r, first + k] = complex(numbers[2 * k], numbers[2 * k + 1]) * factor


@njit(parallel=True, **_options)
def put_lines(values, cells, weights, transfer, across, along, grid):
    chunk = CHUNK // 2
    for c in prange((values.shape[2] + chunk - 1) // chunk):
        first = np.int64(c) * chunk
        last = min(chunk, values.shape[2] - first)
        numbers = np.zeros(CHUNK, grid.dtype)
        for p in range(values.shape[0]):
            for r in range(values.shape[1]):
                for k in range(last):
                    factor = transfer[r, first + k] * np.conj(across[p, r] * along[p, first + k])
                    v = values[p, r, first + k] * factor
                    numbers[2 * k] = v.real
                    numbers[2 * k + 1] = v.imag
                _put(
                    grid, 2 * first, cells[p, r, 0], cells[p, r, 1], weights[p, r, 0], weights[p, r, 1], numbers
                )  # fmt: skip


@njit(parallel=True, **_options)
def put_strengths(strengths, share, cells, weights, grid):
    for c in prange((strengths.shape[1] + CHUNK - 1) // CHUNK):
        first = np.int64(c) * CHUNK
        last = min(CHUNK, strengths.shape[1] - first)
        numbers = np.zeros(CHUNK, grid.dtype)
        for p in range(cells.shape[0]):
            for r in range(strengths.shape[0]):
                for k in range(last):
                    numbers[k] = share[p] * strengths[r, first + k]
                _put(
                    grid, first, cells[p, r, 0], cells[p, r, 1], weights[p, r, 0], weights[p, r, 1], numbers
                )  # fmt: skip
