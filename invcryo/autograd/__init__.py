"""Reverse-mode differentiation of any order on NumPy and CuPy arrays, for the learned methods.

Nothing in the core imports it. Every operator of the toolbox becomes differentiable by `apply`.
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
