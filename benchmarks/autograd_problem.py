"""The training steps that `training_steps.py` times: sizes, first parameters and data, the same for every engine.

Parameters are in our layout: filters (k, k, in, out), matrices (in, out), images (n, height, width, channels).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from invcryo.autograd.layers import conv_parameters, dense_parameters
from invcryo.rotation import random_rotations

CASES = ("wgan-64", "wgan-128", "posenet-64", "slices-8", "slices-64")


@dataclass
class Problem:
    kind: str
    size: int
    parameters: dict[str, Any]
    data: dict[str, NDArray]
    penalty: float = 10.0
    slope: float = 0.1
    rate: float = 1e-4


def make(case: str, dtype: Any = np.float32, **sizes: Any) -> Problem:
    """``case`` is kind-size, of slices kind-batch. ``sizes``: batch, channels (per block), hidden, size."""
    kind, _, number = case.partition("-")
    return {"wgan": _wgan, "posenet": _posenet, "slices": _slices}[kind](int(number), dtype, **sizes)


def _wgan(size: int, dtype: Any, batch: int = 8, channels: Any = (8, 16, 32, 64, 128, 256)) -> Problem:
    """The critic of CryoGAN (Donati 2020, chapter 6) with fewer channels: convolution, pooling, leaky ReLU."""
    rng = np.random.default_rng(1)
    widths = (1, *channels)
    tree: dict[str, Any] = {
        f"conv{k}": conv_parameters(*widths[k : k + 2], dtype=dtype, rng=rng) for k in range(len(channels))
    }
    side = size >> len(channels)
    tree["dense0"] = dense_parameters(side * side * widths[-1], 10, dtype=dtype, rng=rng)
    tree["dense1"] = dense_parameters(10, 1, dtype=dtype, rng=rng)
    real, fake = (rng.standard_normal((batch, size, size, 1)).astype(dtype) for _ in range(2))
    mix = rng.uniform(size=(batch, 1, 1, 1)).astype(dtype)
    return Problem("wgan", size, tree, {"real": real, "fake": fake, "between": mix * real + (1 - mix) * fake})


def _posenet(
    size: int, dtype: Any, batch: int = 8, channels: Any = (32, 64, 128), hidden: int = 512
) -> Problem:
    """CryoPoseNet (Nashed et al. 2021): images to poses, and a volume to images at these poses."""
    rng = np.random.default_rng(1)
    tree: dict[str, Any] = {}
    before = 1
    for k, width in enumerate(channels):
        tree[f"conv{k}a"] = conv_parameters(before, width, dtype=dtype, rng=rng)
        tree[f"conv{k}b"] = conv_parameters(width, width, dtype=dtype, rng=rng)
        before = width
    side = size >> len(channels)
    for k, (a, b) in enumerate(((side * side * before, hidden), (hidden, hidden), (hidden, 6))):
        tree[f"dense{k}"] = dense_parameters(a, b, dtype=dtype, rng=rng)
    tree["volume"] = (0.1 * rng.standard_normal((size, size, size))).astype(dtype)
    images = rng.standard_normal((batch, size, size, 1)).astype(dtype)
    ctf = np.cos(rng.uniform(0, 6, (batch, size, size // 2 + 1))).astype(dtype)
    return Problem("posenet", size, tree, {"images": images, "ctf": ctf}, slope=0.0, rate=5e-4)


def _slices(batch: int, dtype: Any, size: int = 64) -> Problem:
    """Central slices of a spectrum at ``batch`` poses, with the gradients of both."""
    rng = np.random.default_rng(1)
    spectrum = np.fft.rfftn(rng.standard_normal((size, size, size)))
    g = rng.standard_normal((2, batch, size, size // 2 + 1))
    kind = np.result_type(dtype, np.complex64)
    data = {"turns": random_rotations(batch, rng=2).astype(dtype), "g": (g[0] + 1j * g[1]).astype(kind)}
    return Problem("slices", size, {"spectrum": spectrum.astype(kind)}, data)


def moved(p: Problem, convert: Callable[[NDArray], Any]) -> Problem:
    """The same problem on other arrays: ``cupy.asarray`` takes it to a GPU."""

    def walk(item: Any) -> Any:
        return {k: walk(v) for k, v in item.items()} if isinstance(item, dict) else convert(item)

    return replace(p, parameters=walk(p.parameters), data=walk(p.data))
