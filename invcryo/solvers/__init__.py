"""Solvers: generators of states, all driven by `run`."""

from .admm import admm
from .cg import cg, circulant_preconditioner
from .driver import NonFiniteError, Result, State, any_of, max_seconds, relative_change, residual_below, run
from .sirt import sirt

__all__ = [
    "NonFiniteError",
    "Result",
    "State",
    "admm",
    "any_of",
    "cg",
    "circulant_preconditioner",
    "max_seconds",
    "relative_change",
    "residual_below",
    "run",
    "sirt",
]
