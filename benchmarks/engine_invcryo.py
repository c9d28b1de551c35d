"""The timed calls of invcryo: each case returns a function of no arguments that makes an array, or an operator."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from problem import AMPLITUDE_CONTRAST, CS_MM, PIXEL_SIZE, VOLTAGE_KV, Problem

from invcryo._version import __version__
from invcryo.ctf import CTF
from invcryo.data import Poses
from invcryo.operators import ImageFilter, LinOp, Projector, RealSpaceProjector
from invcryo.window import KaiserBessel, Window


def versions() -> dict[str, str]:
    named = {package: metadata.version(package) for package in ("numpy", "scipy", "numba")}
    return {"invcryo": __version__, **named}


class Voxels(Window):
    """``phi^ = 1`` at every frequency: what ASPIRE takes a voxel to be. For checks, where answers must be equal."""

    radius = np.inf
    band = np.inf

    def fourier(self, frequency: ArrayLike) -> NDArray:
        return np.ones_like(np.asarray(frequency, float))


def _operators(problem: Problem, window: Window) -> tuple[Projector, ImageFilter]:
    dtype, poses = problem.volume.dtype, Poses(problem.matrices)
    ctf = CTF(
        problem.defocus_u, problem.defocus_v, problem.defocus_angle, VOLTAGE_KV, CS_MM, AMPLITUDE_CONTRAST
    )
    projector = Projector(poses, window, problem.size, dtype=dtype)
    return projector, ImageFilter.from_ctf(ctf, problem.size, PIXEL_SIZE, dtype=dtype)


def call(case: str, problem: Problem, variant: str) -> Callable[[], Any]:
    """The function to time. Operators are built here; the images and the volume are in memory."""
    projector, ctf = _operators(problem, KaiserBessel())
    if variant == "tube":
        tube = RealSpaceProjector(projector.poses, KaiserBessel(), problem.size, dtype=projector.dtype)
        return {"kernel": tube.gram}[case]
    if case == "gram":
        # the kernel is of the right kind whatever the number of views, and a few are quicker to set up
        gram = projector.rows(slice(0, 32)).gram()
        return lambda: gram(problem.volume)
    with_ctf: LinOp = ctf @ projector
    calls: dict[str, Callable[[], Any]] = {
        "forward": lambda: projector(problem.volume),
        "adjoint": lambda: projector.H(problem.images),
        "adjoint-ctf": lambda: with_ctf.H(problem.images),
        "kernel": projector.gram,
        "kernel-ctf": with_ctf.gram,
    }
    return calls[case]


def answer(case: str, problem: Problem, variant: str) -> NDArray:
    """What the call computes, as an array: kernels are applied to the volume."""
    if variant == "tube":
        return call(case, problem, variant)()(problem.volume)
    projector, ctf = _operators(problem, Voxels())
    with_ctf: LinOp = ctf @ projector
    if case == "forward":
        return projector(problem.volume)
    if case.startswith("adjoint"):
        return (with_ctf if case.endswith("ctf") else projector).H(problem.images)
    return (with_ctf if case.endswith("ctf") else projector).gram()(problem.volume)


def reference(case: str, problem: Problem, variant: str) -> NDArray:
    """The answer by forward and adjoint, for a problem in double precision; the tube's by its own projector."""
    projector, ctf = _operators(problem, Voxels())
    A: LinOp = ctf @ projector if case.endswith("ctf") else projector
    if variant == "tube":
        A = RealSpaceProjector(projector.poses, KaiserBessel(), problem.size, dtype=projector.dtype)
    if case == "forward":
        return A(problem.volume)
    if case.startswith("adjoint"):
        return A.H(problem.images)
    return A.H(A(problem.volume))
