"""The table of the tape: for each primitive, calls that together reach all of its rules, and the checks of one call.

The same table runs on the CPU in both precisions, and on whatever else arrays live on.
"""

import gc
from dataclasses import dataclass
from typing import Any

import numpy as np

from invcryo import autograd as ag
from invcryo.autograd import network, ops, slices
from invcryo.autograd.bridge import apply, pose_backproject, project
from invcryo.autograd.rotations import (
    matrix_from_euler,
    matrix_from_quaternion,
    matrix_from_s2s2,
    quaternion_angle,
)
from invcryo.data import Poses
from invcryo.operators import Gradient, Projector
from invcryo.rotation import random_rotations
from invcryo.window import KaiserBessel


@dataclass
class Case:
    """A function of arrays that uses a primitive; its rules go to so many derivatives. ``h`` is the step to check with.

    Functions that are smooth in pieces (maxima, trilinear interpolation) need a step that leaves no piece.
    """

    function: Any
    inputs: tuple
    order: int = 2
    h: float = 1e-3


def _rng():
    return np.random.default_rng(20261121)


def _real(*shape, low=None, high=None):
    draw = _rng()
    return draw.standard_normal(shape) if low is None else draw.uniform(low, high, shape)


def _complex(*shape):
    draw = _rng()
    return draw.standard_normal(shape) + 1j * draw.standard_normal(shape)


def _binary(function):
    """Broadcast both ways, mixed kinds, numbers on either side."""
    r, z = _real(3, 4), _complex(3, 4)
    return [
        Case(function, (r, _real(4) + 3)),
        Case(function, (_real(2, 1, 4), _real(3, 1) + 3)),
        Case(function, (z, _complex(1, 4) + 2)),
        Case(function, (r, _complex(4) + 2)),
        Case(function, (z, _real(3, 1) + 3)),
        Case(lambda x: function(x, 2.5), (r,)),
        Case(lambda x: function(np.float64(2.5), x), (r + 4,)),
        Case(lambda x: function(x, 1.5 + 2j), (r,)),
        Case(lambda x: function(1.5 + 2j, x), (z + 3,)),
    ]


def _unary(function, *arrays):
    return [Case(function, (a,)) for a in arrays]


def like(a, x):
    """A constant array of the precision and in the memory of ``x``."""
    dtype = np.result_type(x.data.real.dtype, np.complex64 if np.iscomplexobj(a) else np.float32)
    return ag.namespace(x.data).asarray(np.asarray(a, dtype))


def beside(a, x):
    """Integers in the memory of ``x``."""
    return ag.namespace(x.data).asarray(a)


def _hermitian(n, size=None):
    """The spectrum of a real volume (n, n, n), padded."""
    with ag.no_grad():
        return slices.volume_spectrum(_real(n, n, n), size).data


def _sliced(name, n, height=None, radius=None):
    """Slices or their adjoint as functions of what is sliced; and of the poses too, to first order."""
    turns = random_rotations(3, rng=3)
    if name == "central_slice":
        x = _hermitian(n)

        def function(x, turns):
            return slices.central_slice(x, turns, height, radius)
    else:
        x = _complex(3, height or n, (height or n) // 2 + 1)

        def function(x, turns):
            return slices.slice_adjoint(x, turns, n, radius)

    return [Case(lambda x: function(x, like(turns, x)), (x,)), Case(function, (x, turns), 1, 1e-6)]


def _projector(x):
    shifts = np.array([[0.3, -0.8], [1.1, 0.2]])
    return Projector(Poses(random_rotations(2, rng=6), shifts), KaiserBessel(), 8, (7, 8), dtype=x.dtype)


def _project(x, angles, shifts):
    return project(_projector(x), x, matrix_from_euler(angles), shifts)


def _backproject(g, angles, shifts):
    turns = ops.reshape(matrix_from_euler(angles), (2, 9))
    return pose_backproject(_projector(g), g, ops.concatenate([turns, shifts], 1))


_VIEWS = (_real(2, 3), _real(2, 2))


def _sparse(n, volumes, height=None):
    """(the touched voxels for the arrays of a call, all voxels, factors, cotangent)."""
    turns = random_rotations(3, rng=3)

    def touched(x):
        return slices.Touched.by(like(turns, x), n, height)

    height = height or n
    voxels = _complex(n * n * (n // 2 + 1), volumes)
    return touched, voxels, _real(3, volumes), _complex(3, height, height // 2 + 1)


def _sparse_project(of):
    def function(voxels, factors):
        touched = of[0](voxels)
        return slices.sparse_project(ops.take(voxels, touched.index), factors, touched)

    return function


def _sparse_factors(of):
    def function(voxels, g):
        touched = of[0](voxels)
        return slices.sparse_factors(ops.take(voxels, touched.index), g, touched)

    return function


_SLICES = (slice(None), slice(3, 0, -2), None, 1)
_CODE = _rng().integers(0, 8, (2, 2, 3, 3)).astype(np.uint8)
_FOUR, _ODD = _sparse(4, 2), _sparse(7, 1, 5)
_INDEX = np.array([[0, 2], [2, 1]])

CASES = {
    "sum_to": [
        Case(lambda x: ops.sum_to(x, (3, 1)), (_real(2, 3, 4),)),
        Case(lambda x: ops.sum_to(x, ()), (_complex(2, 3),)),
    ],
    "broadcast_to": [
        Case(lambda x: ops.broadcast_to(x, (2, 3, 4)), (a,)) for a in (_real(3, 1), _complex(4))
    ],
    "reshape": _unary(lambda x: ops.reshape(x, (6, -1)), _real(2, 3, 4), _complex(3, 4)),
    "transpose": _unary(lambda x: ops.transpose(x, (1, 2, 0)), _real(2, 3, 4), _complex(2, 3, 4))
    + _unary(ops.transpose, _real(2, 3)),
    "sum": [
        Case(lambda x: ops.sum(x, (0, -1)), (_real(2, 3, 4),)),
        Case(lambda x: ops.sum(x, 1, keepdims=True), (_complex(2, 3),)),
        Case(ops.sum, (_real(5),)),
        Case(lambda x: ops.mean(x, 1), (_real(3, 4),)),
        Case(lambda x: ops.squared_norm(x, -1), (_complex(3, 4),)),
    ],
    "getitem": _unary(lambda x: x[_SLICES], _real(2, 4, 3), _complex(2, 4, 3))
    + _unary(lambda x: x[1], _real(2)),
    "setitem": _unary(lambda x: ops.setitem(x, _SLICES, (2, 4, 3)), _real(2, 2, 1), _complex(2, 2, 1)),
    "take": _unary(lambda x: ops.take(x, beside(_INDEX, x)), _real(3, 2), _complex(3)),
    "scatter_add": _unary(lambda x: ops.scatter_add(x, beside(_INDEX, x), 4), _real(2, 2, 3), _complex(2, 2)),
    "concatenate": [
        Case(lambda x, y: ops.concatenate([x, y, x], -1), (_real(2, 3), _real(2, 1))),
        Case(lambda x, y: ops.stack([x, y], 1), (_complex(3), _complex(3))),
        Case(lambda x: ops.mul(*ops.split(x, 2, 1)), (_real(3, 4),)),
    ],
    "add": _binary(ops.add),
    "sub": _binary(ops.sub),
    "mul": [*_binary(ops.mul), Case(lambda x: ops.mul(x, x), (_complex(3),))],
    "div": _binary(lambda x, y: ops.div(x, y)),
    "neg": _unary(ops.neg, _real(3), _complex(3)),
    "power": [Case(lambda x, p=p: x**p, (_real(4, low=0.5, high=2.0),)) for p in (2, -1, 0.5, 3.7)]
    + _unary(lambda x: x**3, _complex(4)),
    "exp": _unary(ops.exp, _real(4), _complex(4)),
    "log": _unary(ops.log, _real(4, low=0.5, high=2.0), _complex(4) + 3),
    "sqrt": _unary(ops.sqrt, _real(4, low=0.5, high=2.0), _complex(4) + 3)
    + _unary(ops.absolute, _complex(4) + 1, _real(4)),
    "sin": _unary(ops.sin, _real(4), _complex(4)),
    "cos": _unary(ops.cos, _real(4), _complex(4)),
    "tanh": _unary(ops.tanh, _real(4), 0.3 * _complex(4)),
    "sigmoid": _unary(ops.sigmoid, 2 * _real(9)),
    "softplus": _unary(ops.softplus, 2 * _real(9)),
    "arccos": _unary(ops.arccos, _real(5, low=-0.9, high=0.9)),
    "scale": [
        Case(lambda x: ops.scale(x, like(_real(3, 4), x)), (_real(3, 4),)),
        Case(lambda x: ops.scale(x, like(_complex(3), x)), (_complex(3),)),
        Case(lambda x: ops.leaky_relu(x, 0.1), (_real(20),)),
        Case(lambda x: ops.clip(x, -0.5, 0.7) ** 2, (_real(20),)),
    ],
    "conj": _unary(ops.conj, _complex(3)),
    "real": _unary(ops.real, _complex(3)),
    "imag": _unary(ops.imag, _complex(3)),
    "to_complex": _unary(ops.to_complex, _real(3)),
    "cast": _unary(lambda x: ops.cast(ops.cast(x, "f8"), x.dtype), _real(3)),
    "matmul": [
        Case(ops.matmul, (_real(2, 3), _real(3, 4))),
        Case(ops.matmul, (_complex(5, 2, 3), _complex(3, 4))),
        Case(ops.matmul, (_real(2, 3), _complex(5, 3, 2))),
        Case(ops.cross, (_real(4, 3), _real(2, 4, 3)[1])),
        Case(matrix_from_euler, (_real(4, 3),)),
        Case(matrix_from_quaternion, (_real(4, 4),)),
        Case(matrix_from_s2s2, (_real(4, 6),)),
        Case(quaternion_angle, (0.4 * _real(4, 4), 0.3 * _real(2, 4, 4)[1])),
    ],
    "fftshift": _unary(lambda x: ops.fftshift(x, (0, 1)), _real(3, 4), _complex(4, 5)),
    "ifftshift": _unary(lambda x: ops.ifftshift(x, (0, 1)), _real(3, 4), _complex(4, 5)),
    "rfftn": [
        Case(lambda x: ops.rfftn(x, (0, 1, 2)), (_real(2, 3, 4),)),
        Case(lambda x: ops.rfftn(x, (1, 2)), (_real(2, 4, 5),)),
        Case(lambda x: ops.rfftn(x, (2, 0)), (_real(5, 2, 3),)),
        Case(lambda x: ops.rfftn(x, (0,)), (_real(6),)),
    ],
    "irfftn": [
        Case(lambda x: ops.irfftn(x, (2, 3, 4), (0, 1, 2)), (_complex(2, 3, 3),)),
        Case(lambda x: ops.irfftn(x, (4, 5), (1, 2)), (_complex(2, 4, 3),)),
        Case(lambda x: ops.irfftn(x, (3, 5), (2, 0)), (_complex(3, 2, 3),)),
        Case(lambda x: ops.irfftn(x, (6,), (0,)), (_complex(4),)),
        Case(lambda x: slices.image_from_slice(x), (_complex(2, 5, 3),)),
        Case(lambda x: slices.volume_spectrum(x, 5), (_real(4, 4, 4),)),
    ],
    "apply": [Case(lambda x: apply(Gradient((3, 4, 5), dtype=x.dtype), x), (_real(3, 4, 5),))],
    "pose_project": [
        Case(lambda x: project(_projector(x), x), (_real(8, 8, 8),)),
        Case(_project, (_real(8, 8, 8), *_VIEWS), 1),
    ],
    "pose_backproject": [Case(_backproject, (_real(2, 7, 8), *_VIEWS), 1)],
    "pose_gradient": [
        Case(lambda x, t: project(_projector(x), x, shifts=t), (_real(8, 8, 8), _VIEWS[1]), 1),
        Case(lambda x, a: project(_projector(x), x, matrix_from_euler(a)), (_real(8, 8, 8), _VIEWS[0]), 1),
    ],
    "conv2d": [
        Case(network.conv2d, (_real(2, 4, 5, 3), _real(3, 3, 3, 2))),
        Case(network.conv2d, (_real(1, 2, 1, 2), _real(5, 5, 2, 1))),
        Case(network.conv2d, (_real(2, 3, 3, 1), _real(1, 1, 1, 2))),
    ],
    "conv2d_weights": [
        Case(lambda x, g: network.conv2d_weights(x, g, 3), (_real(2, 4, 5, 3), _real(2, 4, 5, 2)))
    ],
    "flip": _unary(network.flip, _real(3, 3, 2, 4)),
    "pool_bias_relu": [
        Case(lambda x, b: network.pool_bias_relu(x, b, 0.1), (_real(2, 4, 7, 3), _real(3)), h=1e-5),
        Case(network.pool_bias_relu, (_real(2, 5, 6, 1), _real(1)), h=1e-5),
        Case(network.maxpool2, (_real(2, 5, 4, 3),), h=1e-5),
    ],
    "bias_relu": [Case(lambda x, b: network.bias_relu(x, b, 0.1), (_real(2, 4, 3), _real(3)), h=1e-5)],
    "by_sign": _unary(lambda x: network.by_sign(x, beside(_CODE, x), 0.1), _real(2, 2, 3, 3)),
    "unpool2": _unary(lambda x: network.unpool2(x, beside(_CODE, x), (2, 5, 6, 3)), _real(2, 2, 3, 3)),
    "pick2": _unary(lambda x: network.pick2(x, beside(_CODE, x)), _real(2, 5, 6, 3)),
    "central_slice": _sliced("central_slice", 6) + _sliced("central_slice", 7, 5, 2.5),
    "slice_adjoint": _sliced("slice_adjoint", 6) + _sliced("slice_adjoint", 8, 6),
    "slice_rotations": [
        Case(lambda f, r: slices.central_slice(f, r, 5), (_hermitian(8), random_rotations(2, rng=4)), 1, 1e-6)
    ],
    "sparse_project": [Case(_sparse_project(_FOUR), _FOUR[1:3]), Case(_sparse_project(_ODD), _ODD[1:3])],
    "sparse_rows": [Case(lambda z, g: slices.sparse_rows(z, g, _FOUR[0](z)), _FOUR[2:4])],
    "sparse_factors": [Case(_sparse_factors(_FOUR), (_FOUR[1], _FOUR[3]))],
}


def cases():
    """(name of the primitive and number of the case, case)."""
    return [(f"{name}-{k}", case) for name, listed in CASES.items() for k, case in enumerate(listed)]


#: Projectors, whose loops run on the host alone.
ON_THE_HOST = ["pose_project", "pose_backproject", "pose_gradient"]


def on_a_gpu():
    """Those of `cases` that arrays of a GPU can have."""
    return [(name, case) for name, case in cases() if name.rpartition("-")[0] not in ON_THE_HOST]


def inner(a, b):
    """``Re sum conj(a) b``."""
    return float(np.real(np.vdot(a, b)))


def directional(function, inputs, directions, h):
    """Derivative of a scalar function along a direction, by five points."""

    def at(t):
        return function(*(a + t * d for a, d in zip(inputs, directions, strict=True)))

    return (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)


def randoms(arrays, seed):
    draw = np.random.default_rng(seed)
    out = []
    for a in arrays:
        d = draw.standard_normal(a.shape)
        out.append(d + 1j * draw.standard_normal(a.shape) if np.iscomplexobj(a) else d)
    return out


def value(function, *inputs):
    with ag.no_grad():
        return function(*(ag.const(a) for a in inputs)).data


def first_order_error(case):
    """Largest error of the derivative along random directions of each input, relative to the sizes involved."""
    inputs = case.inputs
    gy = randoms([value(case.function, *inputs)], 1)[0]
    leaves = [ag.leaf(a) for a in inputs]
    gradients = ag.grad(case.function(*leaves), leaves, gy)
    worst = 0.0
    for k, g in enumerate(gradients):
        directions = [np.zeros_like(a) for a in inputs]
        directions[k] = randoms([inputs[k]], 2 + k)[0]
        exact = directional(lambda *a: inner(gy, value(case.function, *a)), inputs, directions, case.h)
        mine = 0.0 if g is None else inner(g.data, directions[k])
        size = np.linalg.norm(directions[k]) * (0.0 if g is None else np.linalg.norm(g.data))
        worst = max(worst, abs(mine - exact) / max(size, 1e-12))
    return worst


def second_order_error(case):
    """The same of ``<w, gradient>`` as a function of the inputs and of the cotangent."""
    n = len(case.inputs)
    gy = randoms([value(case.function, *case.inputs)], 1)[0]
    points = [*case.inputs, gy]
    ws = randoms(case.inputs, 7)

    def pairing(*arrays):
        leaves = [ag.leaf(a) for a in arrays]
        gradients = ag.grad(case.function(*leaves[:n]), leaves[:n], leaves[n], create_graph=True)
        parts = [
            ops.sum(ops.real(ops.mul(ag.const(np.conj(w)), g)))
            for w, g in zip(ws, gradients, strict=True)
            if g is not None
        ]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total, leaves

    total, leaves = pairing(*points)
    gradients = ag.grad(total, leaves)
    scale = max(np.linalg.norm(g.data) for g in gradients if g is not None)
    worst = 0.0
    for k, g in enumerate(gradients):
        directions = [np.zeros_like(a) for a in points]
        directions[k] = randoms([points[k]], 20 + k)[0]
        exact = directional(lambda *a: float(pairing(*a)[0]), points, directions, case.h)
        mine = 0.0 if g is None else inner(g.data, directions[k])
        worst = max(worst, abs(mine - exact) / (scale * np.linalg.norm(directions[k])))
    return worst


def objects_left_by(step):
    """How many more objects there are after 30 steps with the collector off, and how many it then finds."""
    step()
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(30):
            step()
        after = len(gc.get_objects())
    finally:
        gc.enable()
    return after - before, gc.collect()


def derivatives(case, inputs):
    """Arrays: the value, the gradients for a cotangent, and theirs for cotangents, wherever the inputs are."""
    xp = ag.namespace(inputs[0])

    def cotangent(y, seed):
        a = randoms([np.empty(y.shape, y.dtype)], seed)[0]
        return xp.asarray(a.astype(y.dtype))

    leaves = [ag.leaf(a) for a in inputs]
    y = case.function(*leaves)
    gy = ag.leaf(cotangent(y, 1))
    first = ag.grad(y, leaves, gy, create_graph=case.order > 1)
    second = []
    if case.order > 1:
        for k, g in enumerate(first):
            second += ag.grad(g, [*leaves, gy], cotangent(g, 2 + k))
    return [v.data for v in (y, *first, *second) if v is not None]
