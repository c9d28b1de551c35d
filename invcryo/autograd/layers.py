"""Layers of networks as plain functions, and their first parameters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import ops
from .network import bias_relu, conv2d, pool_bias_relu
from .tape import Var

__all__ = ["conv_parameters", "conv_relu", "conv_relu_pool", "dense", "dense_parameters"]


def conv_parameters(
    channels: int, filters: int, *, kernel: int = 3, dtype: Any = np.float32, rng: Any = None
) -> dict[str, Any]:
    """``{"w": (k, k, channels, filters), "b": (filters,)}``: He's normal weights for ReLU, and zeros."""
    rng = np.random.default_rng(rng)
    w = rng.standard_normal((kernel, kernel, channels, filters)) * math.sqrt(2 / (kernel**2 * channels))
    return {"w": w.astype(dtype), "b": np.zeros(filters, dtype)}


def dense_parameters(
    inputs: int, outputs: int, *, dtype: Any = np.float32, rng: Any = None
) -> dict[str, Any]:
    """``{"w": (inputs, outputs), "b": (outputs,)}``, of the same kind."""
    w = np.random.default_rng(rng).standard_normal((inputs, outputs)) * math.sqrt(2 / inputs)
    return {"w": w.astype(dtype), "b": np.zeros(outputs, dtype)}


def dense(x: Any, layer: dict[str, Any]) -> Var:
    """``x w + b`` of (n, inputs)."""
    return ops.matmul(x, layer["w"]) + layer["b"]


def conv_relu(x: Any, layer: dict[str, Any], slope: float = 0.0) -> Var:
    """``leaky_relu(conv2d(x, w) + b)``."""
    return bias_relu(conv2d(x, layer["w"]), layer["b"], slope)


def conv_relu_pool(x: Any, layer: dict[str, Any], slope: float = 0.0) -> Var:
    """``maxpool2(leaky_relu(conv2d(x, w) + b))``, the last three in one loop."""
    return pool_bias_relu(conv2d(x, layer["w"]), layer["b"], slope)
