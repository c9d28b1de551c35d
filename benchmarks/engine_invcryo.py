"""The timed calls of invcryo: each case returns a function of no arguments that makes an array, or an operator."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np
from floor import ITERATIONS
from numpy.typing import ArrayLike, NDArray
from problem import (
    AMPLITUDE_CONTRAST,
    CS_MM,
    PIXEL_SIZE,
    TV_THRESHOLD,
    VOLTAGE_KV,
    Problem,
    tilt_answer,
)

from invcryo._version import __version__
from invcryo.costs import L21
from invcryo.ctf import CTF
from invcryo.data import Poses
from invcryo.operators import (
    Gradient,
    ImageFilter,
    LinOp,
    Projector,
    RealSpaceProjector,
    SingleAxisProjector,
)
from invcryo.solvers import cg, circulant_preconditioner
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


def _operators(problem: Problem, window: Window) -> tuple[Projector, LinOp]:
    """The projector, and the same with a CTF per image."""
    dtype, poses, shape = problem.volume.dtype, Poses(problem.matrices), problem.images.shape[1:]
    ctf = CTF(
        problem.defocus_u, problem.defocus_v, problem.defocus_angle, VOLTAGE_KV, CS_MM, AMPLITUDE_CONTRAST
    )
    projector = Projector(poses, window, problem.volume.shape, shape, dtype=dtype)
    return projector, ImageFilter.from_ctf(ctf, shape, PIXEL_SIZE, dtype=dtype) @ projector


def _tilted(problem: Problem, window: Window) -> LinOp:
    # the problem turns its views against the sense of our angles
    angles = -np.arctan2(problem.matrices[:, 0, 2], problem.matrices[:, 0, 0])
    images = problem.images.shape[1:]
    return SingleAxisProjector(angles, window, problem.volume.shape, images, dtype=problem.volume.dtype)


def _tube(problem: Problem) -> RealSpaceProjector:
    poses, shape = Poses(problem.matrices), problem.volume.shape
    return RealSpaceProjector(poses, KaiserBessel(), shape, dtype=problem.volume.dtype)


def call(case: str, problem: Problem, variant: str) -> Callable[[], Any]:
    """The function to time. Operators are built here; the images and the volume are in memory."""
    if variant == "tube":
        return _tube(problem).gram
    if case == "tv":
        return _total_variation(problem)
    if case == "tilt":
        tilted = _tilted(problem, KaiserBessel())
        return lambda: (tilted(problem.volume), tilted.H(problem.images))
    projector, with_ctf = _operators(problem, KaiserBessel())
    if case.startswith("gram"):
        # the kernel is of the right kind whatever the number of views, and a few are quicker to set up
        gram = projector.rows(slice(0, 32)).gram()
        return lambda: gram(problem.volume)
    calls: dict[str, Callable[[], Any]] = {
        "forward": lambda: projector(problem.volume),
        "adjoint": lambda: projector.H(problem.images),
        "adjoint-ctf": lambda: with_ctf.H(problem.images),
        "kernel": projector.gram,
        "kernel-ctf": with_ctf.gram,
        "mean": lambda: _mean(with_ctf, problem.images),
    }
    return calls[case]


def _mean(A: LinOp, images: NDArray) -> NDArray:
    Q = A.gram()
    states = cg(Q, A.H(images), M=circulant_preconditioner(Q).apply)
    x: NDArray
    for _, state in zip(range(ITERATIONS), states, strict=False):
        x = state.x
    return x


def _total_variation(problem: Problem) -> Callable[[], NDArray]:
    gradient, norm = Gradient(problem.volume.shape, dtype=problem.volume.dtype), L21()

    def step() -> NDArray:
        slopes = gradient(problem.volume)
        return norm.prox(slopes, TV_THRESHOLD, out=slopes)

    return step


def answer(case: str, problem: Problem, variant: str) -> NDArray:
    """What the call computes, as an array: kernels are applied to the volume."""
    if variant == "tube":
        return call(case, problem, variant)()(problem.volume)
    if case == "tv":
        return _total_variation(problem)()
    projector, with_ctf = _operators(problem, Voxels())
    A: LinOp = with_ctf if case == "mean" or case.endswith("ctf") else projector
    if case == "forward":
        return A(problem.volume)
    if case.startswith("adjoint"):
        return A.H(problem.images)
    if case == "tilt":
        tilted = _tilted(problem, Voxels())
        return tilt_answer(tilted(problem.volume), tilted.H(problem.images))
    if case == "mean":
        return _mean(A, problem.images)
    return A.gram()(problem.volume)


def error(case: str, problem: Problem, engine: str, got: NDArray) -> float:
    """Relative error of an engine's answer, after one best factor; ``problem`` in double precision.

    Forward and adjoint are the reference of kernels, the tube's own projector that of the tube. Of `mean` it is what
    the answer leaves of the normal equations, relative to their right side.
    """
    projector, with_ctf = _operators(problem, Voxels())
    got = got.astype(np.float64)
    if case == "mean":
        exact = with_ctf.H(problem.images)
        got = with_ctf.H(with_ctf(got.reshape(exact.shape)))
    elif engine == "fftpair":
        exact = problem.volume
    elif case.startswith(("gram", "kernel")):
        A: LinOp = with_ctf if case.endswith("ctf") else projector
        if engine == "invcryo:tube":
            A = _tube(problem)
        exact = A.H(A(problem.volume))
    else:
        exact = answer(case, problem, "")
    exact, got = exact.ravel(), got.ravel()
    difference = exact - got * (got @ exact / (got @ got))
    return float(np.linalg.norm(difference) / np.linalg.norm(exact))
