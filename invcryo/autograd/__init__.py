"""Reverse-mode differentiation of any order on NumPy and CuPy arrays, for the learned methods.

Nothing in the core imports it. Every operator of the toolbox becomes differentiable by `apply`, and projectors in their
poses by `project`.

>>> import numpy as np
>>> from invcryo import autograd as ag
>>> from invcryo.operators import Gradient
>>> x = ag.leaf(np.arange(8.0).reshape(2, 2, 2))
>>> loss = ag.ops.squared_norm(ag.apply(Gradient(x.shape, dtype=x.dtype), x))
>>> (slope,) = ag.grad(loss, [x])            # create_graph=True: to be differentiated again
>>> slope.shape
(2, 2, 2)
"""

from . import network, ops, slices
from .bridge import apply, project
from .tape import (
    PRIMITIVES,
    Var,
    const,
    grad,
    leaf,
    namespace,
    no_grad,
    primitive,
    record,
    value_and_grad,
)

__all__ = [
    "PRIMITIVES",
    "Var",
    "apply",
    "const",
    "grad",
    "leaf",
    "namespace",
    "network",
    "no_grad",
    "ops",
    "primitive",
    "project",
    "record",
    "slices",
    "value_and_grad",
]
