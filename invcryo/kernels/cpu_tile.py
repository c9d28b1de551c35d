"""A product of matrices into a tile that stays in the registers: what convolutions are made of.

Compilers do not keep a tile of sums in registers of their own accord, so that its instructions are written out here.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_options: dict[str, Any] = {"cache": True, "nogil": True}
_features = llvm.get_host_cpu_features()
_WIDTH = 64 if _features.get("avx512f") else 32 if _features.get("avx2") else 16  # bytes of a register
#: Rows of a tile: with two vectors each its sums leave room for the factors, in 32 registers or 16.
ROWS = 6 if _WIDTH == 32 else 8


def _tile(width: int, vectors: int, by_rows: bool) -> Any:
    """The product with ``vectors`` vectors of ``width`` bytes a row: `rows_times`, or else `columns_times`."""

    @intrinsic
    def tile(typingctx, a, places, first, runs, step, run, b, start, out, place, pitch):
        index = types.intp
        sig = types.void(a, places, index, index, index, index, b, index, out, index, index)

        def codegen(context, builder, signature, args):
            _, _, first, runs, step, run, _, start, _, place, pitch = args
            a, places, b, out = (
                context.make_array(signature.args[k])(context, builder, args[k]).data for k in (0, 1, 6, 8)
            )
            scalar, word = context.get_data_type(signature.args[0].dtype), context.get_value_type(index)
            size = signature.args[0].dtype.bitwidth // 8
            lanes = width // size
            vector = ir.VectorType(scalar, lanes)
            none = ir.Constant(vector, ir.Undefined)
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), None)
            kind = ir.FunctionType(vector, [vector] * 3)
            fused = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{lanes}f{8 * size}")

            def at(p, *terms):
                for term in terms:
                    p = builder.gep(p, [word(term) if isinstance(term, int) else term])
                return p

            def vector_at(p, *terms):
                return builder.bitcast(at(p, *terms), vector.as_pointer())

            def multiply(left, right):
                ys = [builder.load(vector_at(right, v * lanes), align=size) for v in range(vectors)]
                for p, row in zip(left, sums, strict=True):
                    x = builder.insert_element(none, builder.load(p), ir.IntType(32)(0))
                    x = builder.shuffle_vector(x, none, zeros)
                    for s, y in zip(row, ys, strict=True):
                        builder.store(builder.call(fused, [x, y, builder.load(s)]), s)

            sums = [
                [cgutils.alloca_once_value(builder, ir.Constant(vector, None)) for _ in range(vectors)]
                for _ in range(ROWS)
            ]
            b = at(b, start)
            wide = word(vectors * lanes)
            if by_rows:
                rows = [at(a, builder.load(at(places, first, m))) for m in range(ROWS)]
                with cgutils.for_range(builder, runs) as outer:
                    left = [at(p, builder.mul(outer.index, step)) for p in rows]
                    right = at(b, builder.mul(builder.mul(outer.index, run), wide))
                    with cgutils.for_range(builder, run) as inner:
                        k = inner.index
                        multiply([at(p, k) for p in left], at(right, builder.mul(k, wide)))
            else:
                with cgutils.for_range(builder, run) as inner:
                    column = at(a, step, builder.load(at(places, first, inner.index)))
                    multiply([at(column, m) for m in range(ROWS)], at(b, builder.mul(inner.index, wide)))
            out = at(out, place)
            for row in sums:
                for v, s in enumerate(row):
                    builder.store(builder.load(s), vector_at(out, v * lanes), align=size)
                out = at(out, pitch)
            return context.get_dummy_value()

        return sig, codegen

    return tile


_WIDTHS = (_WIDTH // 2, 1), (_WIDTH, 1), (_WIDTH, 2)
_rows_half, _rows_one, _rows_two = (_tile(*w, True) for w in _WIDTHS)
_columns_half, _columns_one, _columns_two = (_tile(*w, False) for w in _WIDTHS)


@njit(**_options)
def width(columns, itemsize):
    """Columns of a tile for a matrix that has ``columns``: half a register, one or two."""
    lanes = _WIDTH // itemsize
    return lanes // 2 if columns <= lanes // 2 else lanes if columns <= lanes else 2 * lanes


@njit(**_options)
def rows_times(a, places, first, runs, step, run, b, start, wide, out, place, pitch):
    """``out[m, n] = sum_rk a[places[first + m] + r step + k] b[r run + k, n]``, m < ROWS, r < runs, k < run.

    ``b`` is from ``start`` on a matrix of ``wide`` columns, `width` of them; ``out`` begins at ``place``, its rows
    ``pitch`` apart. All arrays are flat.
    """
    lanes = _WIDTH // a.itemsize
    if wide == 2 * lanes:
        _rows_two(a, places, first, runs, step, run, b, start, out, place, pitch)
    elif wide == lanes:
        _rows_one(a, places, first, runs, step, run, b, start, out, place, pitch)
    elif runs == 3 and run == 3:  # images of one channel: written out
        _rows_half(a, places, first, 3, step, 3, b, start, out, place, pitch)
    else:
        _rows_half(a, places, first, runs, step, run, b, start, out, place, pitch)


@njit(**_options)
def columns_times(a, places, step, run, b, start, wide, out, place, pitch):
    """``out[m, n] = sum_k a[places[k] + step + m] b[k, n]``, m < ROWS, k < run; the rest as in `rows_times`."""
    lanes = _WIDTH // a.itemsize
    if wide == 2 * lanes:
        _columns_two(a, places, 0, 1, step, run, b, start, out, place, pitch)
    elif wide == lanes:
        _columns_one(a, places, 0, 1, step, run, b, start, out, place, pitch)
    else:
        _columns_half(a, places, 0, 1, step, run, b, start, out, place, pitch)
