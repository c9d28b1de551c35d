"""The same calls through the public interface of ASPIRE-Python; its own defaults for batches and accuracy."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np
from aspire.nufft import anufft, nufft
from aspire.operators import CTFFilter
from aspire.reconstruction import FourierKernel, MeanEstimator
from aspire.source import ArrayImageSource
from aspire.utils import Rotation
from aspire.volume import Volume
from floor import ITERATIONS
from numpy.typing import NDArray
from problem import AMPLITUDE_CONTRAST, CS_MM, PIXEL_SIZE, VOLTAGE_KV, Problem

#: The accuracy of invcryo in single precision; ASPIRE asks FINUFFT for 1e-8, which is rounded up to 1.2e-7.
SAME_ACCURACY = 3e-5


def versions() -> dict[str, str]:
    return {package: metadata.version(package) for package in ("aspire", "numpy", "scipy", "finufft")}


def _variant(name: str) -> None:
    if name == "same-accuracy":  # the accuracy is the default of an argument that its callers do not give
        nufft.__defaults__ = (*nufft.__defaults__[:-1], SAME_ACCURACY)
        anufft.__defaults__ = (*anufft.__defaults__[:-1], SAME_ACCURACY)


def _source(problem: Problem, ctf: bool) -> ArrayImageSource:
    # the public setters of a source are open until the end of its construction, hence update()
    source = ArrayImageSource(problem.images.copy(), pixel_size=PIXEL_SIZE)
    source = source.update(rotations=_rotations(problem))
    if ctf:
        source.unique_filters = [
            CTFFilter(VOLTAGE_KV, u, v, angle, CS_MM, np.arcsin(AMPLITUDE_CONTRAST))
            for u, v, angle in zip(problem.defocus_u, problem.defocus_v, problem.defocus_angle, strict=True)
        ]
        source = source.update(filter_indices=np.arange(len(problem.images)))
    return source


def _rotations(problem: Problem) -> NDArray:
    # ASPIRE's rotations take the image plane into the volume, ours the volume to the image plane
    return np.ascontiguousarray(problem.matrices.transpose(0, 2, 1).astype(problem.volume.dtype))


def call(case: str, problem: Problem, variant: str) -> Callable[[], Any]:
    _variant(variant)
    volume = Volume(problem.volume, pixel_size=PIXEL_SIZE)
    if case == "forward":
        rotations = Rotation(_rotations(problem))
        return lambda: volume.project(rotations)
    if case.startswith("gram"):
        side = 2 * problem.size
        kernel = FourierKernel(np.ones((side, side, side), problem.volume.dtype))
        return lambda: kernel.convolve_volume(volume)
    source = _source(problem, case == "mean" or case.endswith("ctf"))
    if case == "mean":  # a new estimator each time: it keeps the kernel that it has made
        return lambda: _mean(source)
    estimator = MeanEstimator(source, checkpoint_iterations=None)
    return estimator.src_backward if case.startswith("adjoint") else estimator.compute_kernel


def _mean(source: ArrayImageSource) -> Volume:
    # a tolerance that no answer meets, so that all iterations are done; `None` would mean its default
    return MeanEstimator(source, checkpoint_iterations=None, maxiter=ITERATIONS).estimate(tol=1e-30)


def answer(case: str, problem: Problem, variant: str) -> NDArray:
    if case.startswith("gram"):  # the timed kernel is a dummy: its values do not change the work
        return answer("kernel", problem, variant)
    result = call(case, problem, variant)()
    if case.startswith("kernel"):
        result = result.convolve_volume(Volume(problem.volume, pixel_size=PIXEL_SIZE))
    array = result if isinstance(result, np.ndarray) else result.asnumpy()
    return array.reshape(problem.images.shape if case == "forward" else problem.volume.shape)
