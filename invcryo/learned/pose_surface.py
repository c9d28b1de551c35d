"""How well images fit a map that is held fixed, over their poses: error surfaces, and descent on them.

Ullrich et al. 2019, section 6.4: the surface has many local optima, of which a descent by gradients finds the nearest.
`invcryo.poses` refines poses in earnest; this is to look at the surface, and at where descents end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..autograd import Var, const, no_grad, ops, slices, value_and_grad
from ..autograd.optimise import Adam
from ..autograd.parameters import Parameters
from ..autograd.rotations import matrix_from_euler
from ..autograd.training import Batch, Batches, train
from ..data import ParticleStack, Poses
from ..rotation import euler_from_matrix, matrix_from_rotvec
from ..solvers import run
from .spectra import VoxelGrid, image_spectra, image_weights

__all__ = ["PoseDescent", "PoseErrors"]


@dataclass(frozen=True, eq=False)
class PoseDescent:
    """What `PoseErrors.descend` returns.

    Attributes
    ----------
    poses : Poses
        Where the descents ended.
    errors : ndarray, (n,)
        Misfit there, and ``start_errors`` where they began, as of `PoseErrors.errors`.
    path : ndarray, (kept, n, 3)
        Matrices' Euler angles rot, tilt, psi in radians along the way, the start first.
    """

    poses: Poses
    errors: NDArray
    start_errors: NDArray
    path: NDArray


class PoseErrors:
    """The misfit of images to projections of a map, as a function of their poses.

    Parameters
    ----------
    volume : (box, box, box)
        The map, in the units of the images.
    stack : ParticleStack
        Images, with their CTF; their poses are where searches begin, their shifts are taken off.
    noise : float or (box // 2 + 1,)
        Variance of the noise of a pixel, of all shells or each.
    padding : int
        How much finer than the images the spectrum of the map is sampled.
    radius : float, optional
        Use frequencies below this shell only.
    """

    def __init__(
        self,
        volume: NDArray,
        stack: ParticleStack,
        *,
        noise: ArrayLike = 1.0,
        padding: int = 2,
        radius: float | None = None,
    ) -> None:
        if stack.poses is None:
            raise ValueError("the particles have no poses to start from")
        if np.shape(volume) != (stack.box,) * 3:
            raise ValueError(f"the map is {np.shape(volume)}, the images need {(stack.box,) * 3}")
        self.stack, self.box = stack, stack.box
        grid = VoxelGrid(stack.box, padding)
        self.dtype = np.dtype(volume.dtype)
        self.voxels = const(grid.sliced(volume) / self.dtype.type(self.box))
        index = np.arange(len(stack))
        weights, shells = image_weights(grid)
        self.radius = grid.radius if radius is None else float(radius)
        weights[shells >= self.radius] = 0
        variance = np.broadcast_to(np.asarray(noise, float), (self.box // 2 + 1,))
        if not (np.isfinite(variance).all() and (variance > 0).all()):
            raise ValueError(f"the variance of the noise must be positive, got {noise!r}")
        self.precision = (weights / variance[shells]).astype(self.dtype)
        self.images = image_spectra(stack, index).astype(self.voxels.dtype)
        size = stack.pixel_size
        ky, kx = np.fft.fftfreq(self.box, size)[:, None], np.fft.rfftfreq(self.box, size)
        self.filters = None if stack.ctf is None else stack.ctf(kx, ky, dtype=self.dtype)

    def errors(self, matrices: NDArray, image: int | None = None) -> NDArray:
        """Minus the logarithm of the likelihood at poses (n, 3, 3), less a constant, (n,).

        Of image i at pose i, or of one ``image`` at all of them.
        """
        found = []
        for part in _parts(len(matrices)):
            rows = part if image is None else np.full(len(part), image)
            with no_grad():
                found.append(self._errors(const(matrices[part].astype(self.dtype)), rows).data)
        return np.concatenate(found).astype(np.float64)

    def bound(self, matrices: NDArray) -> NDArray:
        """Root mean square angle in degrees by which noise alone puts off the best pose, (n,), if images are of poses.

        The bound of Cramer and Rao, for the image i at pose i: no unbiased estimate is nearer. Derivatives of slices
        are differences over a quarter of a degree, of rotations about three axes.
        """
        step = math.radians(0.25)
        turns = matrix_from_rotvec(step * np.concatenate([np.eye(3), -np.eye(3)]))
        weights = 2 * self.precision.astype(np.float64)  # an error is half of what it is weighed with
        found = []
        for part in _parts(len(matrices)):
            with no_grad():
                near = [
                    self._model(const((turn @ matrices[part]).astype(self.dtype)), part).data
                    for turn in turns
                ]
            slopes = (np.stack(near[:3]) - np.stack(near[3:])).astype(np.complex128) / (2 * step)
            information = np.einsum("anyx,bnyx,yx->nab", slopes.conj(), slopes, weights).real
            found.append(np.trace(np.linalg.inv(information), axis1=1, axis2=2))
        return np.degrees(np.sqrt(np.concatenate(found)))

    def surface(self, image: int, rot: NDArray, tilt: NDArray, *, psi: float | None = None) -> NDArray:
        """`errors` of an image over two Euler angles in radians, (len(tilt), len(rot)).

        ``psi`` is that of the image's pose unless given.
        """
        assert self.stack.poses is not None
        if psi is None:
            psi = math.radians(float(self.stack.poses[image].euler_deg()[2][0]))
        grids = np.broadcast_arrays(*np.meshgrid(rot, tilt), psi)
        angles = np.stack([g.ravel() for g in grids], 1)
        matrices = matrix_from_euler(const(angles)).data
        return self.errors(matrices, image).reshape(len(tilt), len(rot))

    def descend(
        self,
        starts: Poses | None = None,
        *,
        steps: int = 200,
        rate: float = 0.02,
        keep: int = 20,
        progress: bool | None = None,
    ) -> PoseDescent:
        """Descend from poses in all three Euler angles, each image on its own, by Adam.

        Parameters
        ----------
        starts : Poses, optional
            One for each image; default: those of the particles.
        steps : int
        rate : float
            Radians of a step at the start; it falls to zero as a cosine.
        keep : int
            Points of the path to return.
        """
        starts = self.stack.poses if starts is None else starts
        assert starts is not None
        if len(starts) != len(self.stack):
            raise ValueError(f"{len(self.stack)} images need as many starts, got {len(starts)}")
        angles = np.stack(euler_from_matrix(starts.matrices), 1)
        angles = np.radians(angles).astype(self.dtype)
        parameters = Parameters({"angles": angles})
        adam = Adam(parameters, rate=rate)
        rows = np.arange(len(starts))

        def loss(tree: Mapping[str, Var]) -> Var:
            return ops.sum(self._errors(matrix_from_euler(tree["angles"]), rows))

        both = value_and_grad(loss)

        def step(batch: Batch) -> Mapping[str, float]:
            value, gradients = both(parameters.tree)
            done = int(adam.memory()["count"])
            adam.rate = 0.5 * rate * (1 + math.cos(math.pi * done / steps))
            return {"loss": float(value), "gradient": adam.step(gradients)}

        path = [angles]
        every = max(1, steps // keep)

        def follow(state: Any) -> None:
            if state.iteration % every == 0:
                path.append(parameters.array("angles").copy())

        states = train(step, parameters, {"angles": adam}, Batches(len(starts), len(starts), rng=0))
        run(states, steps, callback=follow, label="poses", progress=progress)
        found = matrix_from_euler(const(parameters.array("angles").astype(np.float64))).data
        return PoseDescent(
            Poses(found, starts.shifts), self.errors(found), self.errors(starts.matrices), np.stack(path)
        )

    def _model(self, turns: Var, rows: NDArray) -> Var:
        model = slices.central_slice(self.voxels, turns, self.box, self.radius)
        return model if self.filters is None else ops.scale(model, self.filters[rows])

    def _errors(self, turns: Var, rows: NDArray) -> Var:
        rest = self._model(turns, rows) - self.images[rows]
        weights = np.broadcast_to(np.sqrt(self.precision), rest.shape)
        return ops.squared_norm(ops.scale(rest, weights), (1, 2))


def _parts(count: int) -> list[NDArray]:
    """Indices of images that are sliced at a time: their spectra take memory."""
    return [np.arange(first, min(first + 64, count)) for first in range(0, count, 64)]
