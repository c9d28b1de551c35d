"""What solvers do with whole arrays, in place: compiled loops on the host, array code elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..backend import array_module
from ..backend import inner as _inner

__all__ = ["add_scaled", "inner", "scale_add"]


def compiled(*arrays: Any) -> bool:
    """Whether the compiled loops can take these arrays as they lie."""
    return all(array_module(a) is np and a.flags.c_contiguous for a in arrays)


def inner(x: NDArray, y: NDArray) -> float:
    """``sum x y``, in float64."""
    return kernels.dot(x.reshape(-1), y.reshape(-1)) if compiled(x, y) else _inner(x, y)


def add_scaled(y: NDArray, factor: float, x: NDArray) -> None:
    """``y += factor x``."""
    if compiled(y, x):
        kernels.add_scaled(y.reshape(-1), factor, x.reshape(-1))
    else:
        y += y.dtype.type(factor) * x


def scale_add(y: NDArray, factor: float, x: NDArray) -> None:
    """``y = x + factor y``."""
    if compiled(y, x):
        kernels.scale_add(y.reshape(-1), factor, x.reshape(-1))
    else:
        y *= y.dtype.type(factor)
        y += x
