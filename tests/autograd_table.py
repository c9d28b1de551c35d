"""The table of the tape: for each primitive, calls that together reach all of its rules, and the checks of one call.

The same table runs on the CPU in both precisions, and on whatever else arrays live on.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from invcryo import autograd as ag
from invcryo.autograd import ops


@dataclass
class Case:
    """A function of arrays that uses a primitive; ``order`` is to how many derivatives its rules go."""

    function: Any
    inputs: tuple
    order: int = 2


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


_SLICES = (slice(None), slice(3, 0, -2), None, 1)
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
    "take": _unary(lambda x: ops.take(x, _INDEX), _real(3, 2), _complex(3)),
    "scatter_add": _unary(lambda x: ops.scatter_add(x, _INDEX, 4), _real(2, 2, 3), _complex(2, 2)),
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
    ],
}


def like(a, x):
    """A constant array of the precision and in the memory of ``x``."""
    dtype = np.result_type(x.data.real.dtype, np.complex64 if np.iscomplexobj(a) else np.float32)
    return ag.namespace(x.data).asarray(np.asarray(a, dtype))


def cases():
    """(name of the primitive and number of the case, case)."""
    return [(f"{name}-{k}", case) for name, listed in CASES.items() for k, case in enumerate(listed)]


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
        exact = directional(lambda *a: inner(gy, value(case.function, *a)), inputs, directions, 1e-3)
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
        exact = directional(lambda *a: float(pairing(*a)[0]), points, directions, 1e-3)
        mine = 0.0 if g is None else inner(g.data, directions[k])
        worst = max(worst, abs(mine - exact) / (scale * np.linalg.norm(directions[k])))
    return worst
