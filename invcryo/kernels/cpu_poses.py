"""Numba loops over central slices: values and gradients at their points, and the sums that a fit of poses needs.

A view is one thread's work and its points are taken in their order: sums have the same bits on any number of threads.
Points are not sorted; neighbours in a slice are neighbours in the grid.
"""

import math

from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils

from .cpu import _options
from .cpu_nufft import _cells, _place, _Point, _real, _value_at_point, intrinsic


class _SteepPoint(_Point):
    """A point with the derivatives of its weights."""

    def weights_and_slopes(self, u):
        """Of the cells along one axis, and their derivatives in ``u``."""
        u = self.everywhere(u, self.lanes)
        value, slope = self.table[0], ir.Constant(self.vector(self.lanes), [0.0] * self.lanes)
        for c in self.table[1:]:
            slope = self.multiply_add(slope, u, value)
            value = self.multiply_add(value, u, c)
        return value, slope

    def total(self, along_x, weights):
        """The complex sum of a row of cells times their weights."""
        builder, n = self.builder, self.row
        out = builder.fmul(along_x, self.shuffled(weights, [k // 2 for k in range(n)]))
        while n > 2:
            n //= 2
            out = builder.fadd(self.shuffled(out, list(range(n))), self.shuffled(out, list(range(n, 2 * n))))
        return out


@intrinsic
def _value_and_slopes_at_point(typingctx, grid, z, y, x, coefficients, reach, uz, uy, ux):
    """`_value_at_point`, and its derivatives in ``uz``, ``uy`` and ``ux``."""

    def code(context, builder, signature, args):
        table = context.make_array(signature.args[4])(context, builder, args[4])
        p = _SteepPoint(context, builder, grid.dtype, table, reach.count)
        array, first = _cells(context, builder, grid, args[0], args[1:4])
        (wz, dz), (wy, dy), (wx, dx) = (p.weights_and_slopes(u) for u in args[6:9])
        along_y = [(p.lane(wy, j, p.row), p.lane(dy, j, p.row)) for j in range(p.width)]
        nothing = ir.Constant(p.vector(p.row), [0.0] * p.row)
        value = steep_z = steep_y = nothing
        for i, plane in enumerate(p.rows(first, array.strides)):
            flat = steep = nothing
            for (weight, slope), row in zip(along_y, plane, strict=True):
                cells = p.load(row)
                flat = p.multiply_add(weight, cells, flat)
                steep = p.multiply_add(slope, cells, steep)
            weight = p.lane(wz, i, p.row)
            value = p.multiply_add(weight, flat, value)
            steep_y = p.multiply_add(weight, steep, steep_y)
            steep_z = p.multiply_add(p.lane(dz, i, p.row), flat, steep_z)
        numbers = []
        for total in (p.total(value, wx), p.total(steep_z, wx), p.total(steep_y, wx), p.total(value, dx)):
            number = context.make_complex(builder, grid.dtype)
            number.real, number.imag = (
                builder.extract_element(total, ir.Constant(ir.IntType(32), i)) for i in range(2)
            )
            numbers.append(number._getvalue())
        return cgutils.pack_array(builder, numbers)

    u = _real(grid.dtype)
    out = types.UniTuple(grid.dtype, 4)
    return out(grid, types.intp, types.intp, types.intp, coefficients, reach, u, u, u), code


@njit(inline="always")
def _value(grid, margin, fine, coefficients, reach, frame, wx, wy):
    """Of the transform at ``wx frame[0] + wy frame[1]`` turns."""
    real = coefficients.dtype.type
    half, last = len(reach) / 2, len(reach) - 1
    z, y, x, turned = _place(frame, wx, wy, fine)
    iz, iy, ix = math.ceil(z - half), math.ceil(y - half), math.ceil(x - half)
    v = _value_at_point(
        grid, margin + iz, margin + iy, margin + ix, coefficients, reach,
        real(2 * (iz - z) + last), real(2 * (iy - y) + last), real(2 * (ix - x) + last),
    )  # fmt: skip
    v = complex(v)
    return v.conjugate() if turned else v


@njit(inline="always")
def _value_and_gradient(grid, margin, fine, coefficients, reach, frame, wx, wy):
    """Of the transform at ``wx frame[0] + wy frame[1]`` turns: value, derivatives along x, y, z per turn."""
    real = coefficients.dtype.type
    half, last = len(reach) / 2, len(reach) - 1
    z, y, x, turned = _place(frame, wx, wy, fine)
    iz, iy, ix = math.ceil(z - half), math.ceil(y - half), math.ceil(x - half)
    v, gz, gy, gx = _value_and_slopes_at_point(
        grid, margin + iz, margin + iy, margin + ix, coefficients, reach,
        real(2 * (iz - z) + last), real(2 * (iy - y) + last), real(2 * (ix - x) + last),
    )  # fmt: skip
    value = complex(v)
    gz, gy, gx = -2.0 * fine[0] * complex(gz), -2.0 * fine[1] * complex(gy), -2.0 * fine[2] * complex(gx)
    if turned:  # v(q) = conj(v(-q))
        return value.conjugate(), -gx.conjugate(), -gy.conjugate(), -gz.conjugate()
    return value, gx, gy, gz


@njit(parallel=True, **_options)
def slice_gradients(grid, margin, fine, coefficients, reach, frames, frequencies, values, gradients):
    for p in prange(values.shape[0]):
        for j in range(values.shape[1]):
            v, gx, gy, gz = _value_and_gradient(
                grid, margin, fine, coefficients, reach, frames[p], frequencies[0, j], frequencies[1, j]
            )
            values[p, j] = v
            gradients[p, j, 0], gradients[p, j, 1], gradients[p, j, 2] = gx, gy, gz


@njit(parallel=True, **_options)
def slice_products(grid, margin, fine, coefficients, reach, frames, frequencies, ix, iy, phase_x, phase_y, image,
                   data, power, out):  # fmt: skip
    for p in prange(out.shape[0]):
        frame, dx, dy = frames[p], phase_x[p], phase_y[p]
        b = data[image[p]]
        weight = power[image[p] if power.shape[0] > 1 else 0]
        xy = 0.0
        xx = 0.0
        for j in range(ix.size):
            v = _value(grid, margin, fine, coefficients, reach, frame, frequencies[0, j], frequencies[1, j])
            shifted = v * (dx[ix[j]] * dy[iy[j]])
            xy += b[j].real * shifted.real + b[j].imag * shifted.imag
            xx += weight[j] * (v.real * v.real + v.imag * v.imag)
        out[p, 0] = xy
        out[p, 1] = xx


@njit(parallel=True, **_options)
def slice_derivatives(grid, margin, fine, coefficients, reach, frames, frequencies, ix, iy, phase_x, phase_y, image,
                      data, power, out):  # fmt: skip
    for p in prange(out.shape[0]):
        frame, dx, dy = frames[p], phase_x[p], phase_y[p]
        b = data[image[p]]
        weight = power[image[p] if power.shape[0] > 1 else 0]
        xy = xx = xy_x = xy_y = xy_z = xy_tx = xy_ty = xx_x = xx_y = xx_z = 0.0
        rxx = rxy = ryy = rxz = ryz = rzz = cxx = cxy = cyy = czx = czy = txx = txy = tyy = 0.0
        for j in range(ix.size):
            wx, wy = frequencies[0, j], frequencies[1, j]
            v, gx, gy, gz = _value_and_gradient(grid, margin, fine, coefficients, reach, frame, wx, wy)
            # derivatives out of the slice, and along the circle about its centre
            out_of = gx * frame[2, 0] + gy * frame[2, 1] + gz * frame[2, 2]
            around = (
                gx * (wy * frame[0, 0] - wx * frame[1, 0])
                + gy * (wy * frame[0, 1] - wx * frame[1, 1])
                + gz * (wy * frame[0, 2] - wx * frame[1, 2])
            )
            d = complex(b[j]).conjugate() * (dx[ix[j]] * dy[iy[j]])
            dv = d * v
            pull = d.real * out_of.real - d.imag * out_of.imag
            xy += dv.real
            xy_x -= wy * pull
            xy_y += wx * pull
            xy_z += d.real * around.real - d.imag * around.imag
            xy_tx += wx * dv.imag
            xy_ty += wy * dv.imag
            a = float(weight[j])
            f = a * (v.real * v.real + v.imag * v.imag)
            g = a * (v.real * out_of.real + v.imag * out_of.imag)
            xx += f
            xx_x -= wy * g
            xx_y += wx * g
            xx_z += a * (v.real * around.real + v.imag * around.imag)
            steep = a * (out_of.real * out_of.real + out_of.imag * out_of.imag)
            mixed = a * (out_of.real * around.real + out_of.imag * around.imag)
            turn = a * (out_of.real * v.imag - out_of.imag * v.real)
            spin = a * (around.real * v.imag - around.imag * v.real)
            rxx += wy * wy * steep
            rxy -= wx * wy * steep
            ryy += wx * wx * steep
            rxz -= wy * mixed
            ryz += wx * mixed
            rzz += a * (around.real * around.real + around.imag * around.imag)
            cxx += wx * wx * turn
            cxy += wx * wy * turn
            cyy += wy * wy * turn
            czx += wx * spin
            czy += wy * spin
            txx += wx * wx * f
            txy += wx * wy * f
            tyy += wy * wy * f
        sums = (
            xy, xx, xy_x, xy_y, xy_z, xy_tx, xy_ty, xx_x, xx_y, xx_z,
            rxx, rxy, rxz, -cxy, -cyy, ryy, ryz, cxx, cxy, rzz, czx, czy, txx, txy, tyy,
        )  # fmt: skip
        for i in range(25):
            out[p, i] = sums[i]
