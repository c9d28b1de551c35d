"""From a particle stack to direct Fourier maps, half maps and their FSC."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import Checkpoint
from ..data import ParticleStack
from ..metrics import fsc
from ..reconstruction import Job, Reconstruction
from ..window import Window
from .fourier import direct_fourier, wiener_weight

__all__ = ["direct_reconstruction"]


def direct_reconstruction(
    stack: ParticleStack,
    *,
    wiener: bool = True,
    mask: NDArray | str | None = "ball",
    symmetry: str = "C1",
    scale: float = 1.0,
    window: Window | None = None,
    half_maps: bool = False,
    memory: float | None = None,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
    rng: np.random.Generator | int | None = 0,
    progress: bool | None = None,
) -> Reconstruction:
    """Maps by direct Fourier reconstruction, as `reconstruct` gives them by least squares.

    Parameters
    ----------
    wiener : bool
        Weigh by the FSC of the half maps (`wiener_weight`) in ``map``, ``half1`` and ``half2``; those named ``_noreg``
        are never weighted. Without it all are unweighted.
    stack, mask, symmetry, scale, window, half_maps, memory, checkpoint, rng, progress
        As for `reconstruct`.

    Notes
    -----
    ``fsc_noreg``, between the unweighted half maps, is the one to quote. A weight that depends on the shell alone does
    not change it, except through the mask; ``fsc`` differs where the density of views differs within a shell.
    """
    if len(stack) < 2:
        raise ValueError("a direct reconstruction takes 2 particles or more")
    halves = half_maps or wiener
    job = Job(
        stack,
        window=window,
        mask=mask,
        symmetry=symmetry,
        scale=scale,
        penalty=None,
        rule=None,
        halves=halves,
        half_maps=halves,
        memory=memory,
        checkpoint=checkpoint,
        rng=rng,
        progress=progress,
    )
    data, whole = job.data, job.whole
    begin = time.perf_counter()

    def voxels(quadratic: Any, weight: NDArray | None = None) -> NDArray:
        return job.voxels(direct_fourier(quadratic, weight))

    out = job.result(voxels(whole), "direct")
    if halves:
        pair = [voxels(q) for q in data]
        curve = fsc(*pair, pixel_size=stack.pixel_size)
        if half_maps:
            out.half1_noreg, out.half2_noreg = out.half1, out.half2 = pair
            out.fsc_noreg = out.fsc = curve
        if wiener:
            out.reg = "wiener"
            weights = [wiener_weight(q, curve.correlation) for q in data]
            out.map = voxels(whole, 0.5 * (weights[0] + weights[1]))
            if half_maps:
                out.half1, out.half2 = (voxels(q, w) for q, w in zip(data, weights, strict=True))
                out.fsc = fsc(out.half1, out.half2, pixel_size=stack.pixel_size)
    job.seconds["direct"] = time.perf_counter() - begin
    return job.finished(out)
