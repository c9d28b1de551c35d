"""The CPU projector ``linear`` of the ASTRA toolbox, slice by slice along the tilt axis: a matched pair.

ASTRA has no three-dimensional projector for the CPU. Volume and images are held slice by slice, as suits ASTRA, and its
algorithms are built before the timed call. It works on one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata

import astra
import numpy as np
from numpy.typing import NDArray
from problem import Problem, tilt_answer


def versions() -> dict[str, str]:
    return {"astra": metadata.version("astra-toolbox"), "numpy": metadata.version("numpy")}


class _Pair:
    """Projection of all slices, and backprojection of all images."""

    def __init__(self, problem: Problem) -> None:
        nz, _, nx = problem.volume.shape
        # (y, z, x), (y, tilt, x)
        self.volume = np.ascontiguousarray(problem.volume.transpose(1, 0, 2))
        self.images = np.ascontiguousarray(problem.images.transpose(1, 0, 2))
        self.projected = np.empty_like(self.images)
        self.backprojected = np.empty_like(self.volume)
        # pixel k lies at k - n // 2; ASTRA's second axis points against the rows
        x, y = -(nx // 2) - 0.5, nz // 2 + 0.5
        volume = astra.create_vol_geom(nz, nx, x, x + nx, y - nz, y)
        cos, sin = problem.matrices[:, 0, 0], problem.matrices[:, 0, 2]
        centre = (nx - 1) / 2 - nx // 2
        rays = np.stack([-sin, -cos, centre * cos, -centre * sin, cos, -sin], axis=1)
        sinogram = astra.create_proj_geom("parallel_vec", nx, rays)
        self._projector = astra.create_projector("linear", sinogram, volume)
        self._forward, self._adjoint = [], []
        for slice_, rows, into, out in zip(
            self.volume, self.images, self.projected, self.backprojected, strict=True
        ):
            self._forward.append(self._algorithm("FP", slice_, into, volume, sinogram))
            self._adjoint.append(self._algorithm("BP", out, rows, volume, sinogram))

    def _algorithm(self, name: str, slice_: NDArray, rows: NDArray, volume: dict, sinogram: dict) -> int:
        options = astra.astra_dict(name)
        options["ProjectorId"] = self._projector
        options["ProjectionDataId"] = astra.data2d.link("-sino", sinogram, rows)
        options["ReconstructionDataId" if name == "BP" else "VolumeDataId"] = astra.data2d.link(
            "-vol", volume, slice_
        )
        return astra.algorithm.create(options)

    def __call__(self) -> None:
        for algorithm in self._forward:
            astra.algorithm.run(algorithm)
        for algorithm in self._adjoint:
            astra.algorithm.run(algorithm)


def call(case: str, problem: Problem, variant: str) -> Callable[[], None]:
    return _Pair(problem)


def answer(case: str, problem: Problem, variant: str) -> NDArray:
    pair = _Pair(problem)
    pair()
    return tilt_answer(pair.projected.transpose(1, 0, 2), pair.backprojected.transpose(1, 0, 2))
