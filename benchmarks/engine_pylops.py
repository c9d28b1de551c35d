"""The gradient of PyLops and the prox of the L21 norm of pyproximal."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata

import pylops
import pyproximal
from numpy.typing import NDArray
from problem import TV_THRESHOLD, Problem


def versions() -> dict[str, str]:
    return {package: metadata.version(package) for package in ("pylops", "pyproximal", "numpy")}


def call(case: str, problem: Problem, variant: str) -> Callable[[], NDArray]:
    x = problem.volume.ravel()
    gradient = pylops.Gradient(problem.volume.shape, kind="forward", dtype=x.dtype)
    norm = pyproximal.L21(ndim=3)
    return lambda: norm.prox(gradient.matvec(x), TV_THRESHOLD)


def answer(case: str, problem: Problem, variant: str) -> NDArray:
    return call(case, problem, variant)()
