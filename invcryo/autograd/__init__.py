"""Reverse-mode differentiation of any order on NumPy and CuPy arrays, for the learned methods.

Nothing in the core imports it. Every operator of the toolbox becomes differentiable by `apply`.
"""

from . import ops
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
    register_namespace,
    value_and_grad,
)

__all__ = [
    "PRIMITIVES",
    "Var",
    "const",
    "grad",
    "leaf",
    "namespace",
    "no_grad",
    "ops",
    "primitive",
    "record",
    "register_namespace",
    "value_and_grad",
]
