"""From a particle stack to direct Fourier maps, half maps and their FSC."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import Checkpoint
from ..costs import LeastSquares
from ..data import ParticleStack
from ..inversion import supported
from ..metrics import fsc
from ..reconstruction import (
    ACCURACY,
    Reconstruction,
    doubts_about,
    forward_model,
    plan_with_check,
    support_mask,
    with_halves,
)
from ..window import KaiserBessel, Window
from .fourier import direct_fourier, wiener_weight

__all__ = ["direct_reconstruction"]

log = logging.getLogger(__name__)


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
    start = time.perf_counter()
    window = KaiserBessel() if window is None else window
    notes: list[str] = []
    model = forward_model(stack, window, scale=scale, tol=ACCURACY)
    support = support_mask(mask, model.ishape, stack.box, scale)
    halves = half_maps or wiener
    planned, error = plan_with_check(stack, model, None, None, scale, halves, memory)
    if halves:
        stack = with_halves(stack, rng, notes)
    if isinstance(checkpoint, (str, os.PathLike)):
        checkpoint = Checkpoint(checkpoint)
    cost = LeastSquares(model, stack.images, symmetry=symmetry, chunk=planned.chunk, progress=progress)
    first_pass = cost.normal_equations(stack.half if halves else None, checkpoint=checkpoint)
    data = first_pass.quadratics
    whole = data[0] if len(data) == 1 else data[0].plus(data[1])
    seconds = {"data": time.perf_counter() - start}
    begin = time.perf_counter()

    def voxels(quadratic: Any, weight: NDArray | None = None) -> NDArray:
        return window.synthesize(
            supported(direct_fourier(quadratic, weight), support), stack.box, scale=scale
        )

    plain = voxels(whole)
    out = Reconstruction(
        map=plain,
        map_noreg=plain,
        pixel_size=stack.pixel_size,
        stopped_by="direct",
        gram_error=error,
        seconds=seconds,
        warnings=notes,
        memory=planned,
        first_pass={k: v for k, v in vars(first_pass).items() if k != "quadratics"},
    )
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
    notes.extend(doubts_about(out))
    for note in notes:
        log.warning(note)
    seconds["direct"] = time.perf_counter() - begin
    seconds["total"] = time.perf_counter() - start
    if checkpoint is not None:
        checkpoint.remove()
    return out
