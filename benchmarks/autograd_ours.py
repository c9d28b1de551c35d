"""The steps of `autograd_problem` by `invcryo.autograd`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from autograd_problem import Problem

from invcryo import autograd as ag
from invcryo.autograd import ops
from invcryo.autograd.layers import conv_relu, conv_relu_pool, dense
from invcryo.autograd.optimise import Adam
from invcryo.autograd.parameters import Parameters
from invcryo.autograd.rotations import matrix_from_s2s2
from invcryo.autograd.slices import central_slice, image_from_slice, volume_spectrum
from invcryo.kernels.network import one_blas_thread


def versions() -> dict[str, str]:
    import numba

    return {"numpy": np.__version__, "numba": numba.__version__}


def _critic(tree: dict[str, Any], x: Any, slope: float) -> Any:
    for name, layer in tree.items():
        if name.startswith("conv"):
            x = conv_relu_pool(x, layer, slope)
    x = ops.leaky_relu(dense(ops.reshape(x, (x.shape[0], -1)), tree["dense0"]), slope)
    return dense(x, tree["dense1"])


def wgan_loss(tree: dict[str, Any], p: Problem) -> Any:
    """``sum D(fake) - sum D(real) + penalty sum (|grad D(between)| - 1)^2``."""
    batch = len(p.data["real"])
    scores = _critic(tree, ops.concatenate([p.data["fake"], p.data["real"]]), p.slope)
    between = ag.leaf(p.data["between"], copy=False)
    (slope,) = ag.grad(ops.sum(_critic(tree, between, p.slope)), [between], create_graph=True)
    lengths = ops.sqrt(ops.squared_norm(slope, (1, 2, 3)) + 1e-12)
    return ops.sum(scores[:batch]) - ops.sum(scores[batch:]) + p.penalty * ops.squared_norm(lengths - 1.0)


def posenet_loss(tree: dict[str, Any], p: Problem) -> Any:
    """``mean |images - C slice(volume, pose(images))|^2``."""
    x = p.data["images"]
    for k in range(sum(name.endswith("a") for name in tree)):
        x = conv_relu_pool(conv_relu(x, tree[f"conv{k}a"]), tree[f"conv{k}b"])
    x = ops.reshape(x, (x.shape[0], -1))
    x = ops.leaky_relu(dense(x, tree["dense0"]))
    x = ops.leaky_relu(dense(x, tree["dense1"]))
    turns = matrix_from_s2s2(dense(x, tree["dense2"]))
    views = image_from_slice(central_slice(volume_spectrum(tree["volume"]), turns) * p.data["ctf"])
    return ops.squared_norm(views - p.data["images"][..., 0]) / views.size


LOSSES = {"wgan": wgan_loss, "posenet": posenet_loss}


def value_and_gradients(p: Problem) -> tuple[float, dict[str, Any]]:
    """Loss and gradients in our layout, for the comparison of engines."""
    if p.kind == "slices":
        return _slices(p)()
    loss, gradients = ag.value_and_grad(LOSSES[p.kind])(Parameters(p.parameters).tree, p)
    return float(loss), gradients


def _slices(p: Problem) -> Callable[[], tuple[float, dict[str, Any]]]:
    spectrum, turns = ag.leaf(p.parameters["spectrum"]), ag.leaf(p.data["turns"])

    def call() -> tuple[float, dict[str, Any]]:
        out = central_slice(spectrum, turns)
        a, b = ag.grad(out, [spectrum, turns], p.data["g"])
        return float(np.abs(out.data[0, 1, 1])), {"spectrum": a.data, "turns": b.data}

    return call


def step(p: Problem, variant: str = "") -> Callable[[], Any]:
    """What is timed: loss, gradients and Adam."""
    if p.kind == "slices":
        return _slices(p)
    parameters = Parameters(p.parameters)
    adam = Adam(parameters, rate=p.rate)
    both = ag.value_and_grad(LOSSES[p.kind])

    def call() -> float:
        with one_blas_thread():
            loss, gradients = both(parameters.tree, p)
            adam.step(gradients)
        return float(loss)

    return call
