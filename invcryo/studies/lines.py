"""Lines across the membranes and filaments of a volume, and what a reconstruction shows along them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

__all__ = ["line_figures", "line_profiles", "structure_lines"]

_SHEET = 0.35  # of a membrane: second curvature over the first, at most
_TUBE = 0.65  # of a filament: second over the first, at least
_STRONGEST = 0.1  # part of the voxels, by curvature, among which structures are looked for
_CANDIDATES = 200_000  # of these at most, evenly spread


def structure_lines(
    truth: NDArray, *, count: int = 60, length: int = 15, scale: float = 1.0
) -> dict[str, NDArray]:
    """Lines straight across the clearest bright membranes and filaments.

    Parameters
    ----------
    truth : ndarray, (z, y, x)
    count : int
        Lines of each kind, at most; no two begin within ``length / 2`` of each other.
    length : int
        Points of a line, a voxel apart.
    scale : float
        Standard deviation in voxels of the smoothing under which curvatures are measured.

    Returns
    -------
    dict
        ``"membranes"`` (bright, curved in one direction) and ``"filaments"`` (in two): positions of the points,
        (lines, length, 3), the structure in the middle. A kind of which there is none has no lines, nor have volumes
        thinner than a line is long.
    """
    v = np.asarray(truth, np.float32)
    if min(v.shape) <= length:
        return {kind: np.zeros((0, length, 3)) for kind in ("membranes", "filaments")}
    pairs = list(combinations_with_replacement(range(3), 2))
    strength = -gaussian_filter(v, scale, order=(2, 0, 0))
    for axis in (1, 2):
        order = [2 if k == axis else 0 for k in range(3)]
        np.maximum(strength, -gaussian_filter(v, scale, order=order), out=strength)
    half = length // 2
    inner = (slice(half, -half),) * 3  # lines stay in the volume
    bound = np.quantile(strength[inner], 1 - _STRONGEST)
    places = np.argwhere(strength[inner] > max(float(bound), 0.0)) + half
    places = places[:: -(-len(places) // _CANDIDATES) or 1]
    hessian = np.empty((len(places), 3, 3))
    for i, j in pairs:
        order = [(k == i) + (k == j) for k in range(3)]
        hessian[:, i, j] = hessian[:, j, i] = gaussian_filter(v, scale, order=order)[tuple(places.T)]
    curvature, directions = np.linalg.eigh(hessian)  # the most negative first: across a bright structure
    first, second, third = -curvature.T
    smooth = gaussian_filter(v, scale)
    kinds = {
        "membranes": np.maximum(abs(second), abs(third)) < _SHEET * first,
        "filaments": (second > _TUBE * first) & (abs(third) < _SHEET * first),
    }
    lines = {}
    for kind, suits in kinds.items():
        chosen: list[int] = []
        for k in np.flatnonzero(suits)[np.argsort(-first[suits], kind="stable")]:
            if len(chosen) == count:
                break
            apart = np.linalg.norm(places[chosen] - places[k], axis=1) if chosen else np.array([np.inf])
            along = places[k] + np.outer((-1, 0, 1), directions[k, :, 0])
            ridge = map_coordinates(smooth, along.T, order=1)
            if apart.min() > length / 2 and ridge[1] >= max(ridge[0], ridge[2]):
                chosen.append(int(k))
        steps = np.arange(length) - half
        lines[kind] = places[chosen, None] + steps[:, None] * directions[chosen, :, 0][:, None]
    return lines


def line_profiles(volume: NDArray, lines: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """Values of a volume on `structure_lines`: (lines, length) of each kind."""
    return {
        kind: map_coordinates(np.asarray(volume, np.float32), points.reshape(-1, 3).T, order=3).reshape(
            points.shape[:2]
        )
        for kind, points in lines.items()
    }


def line_figures(volume: Mapping[str, NDArray], truth: Mapping[str, NDArray]) -> dict[str, Any]:
    """What profiles have of the true ones, of each kind.

    ``KIND``: mean correlation of a line with the true one; ``KIND_contrast``: the factor that fits the true lines to
    these best, each less its mean: 1 is the whole contrast, 0 none.
    """
    out: dict[str, Any] = {}
    for kind, theirs in truth.items():
        a = volume[kind].astype(np.float64)
        b = theirs.astype(np.float64)
        if not len(b):
            out[kind] = out[f"{kind}_contrast"] = None
            continue
        a, b = (p - p.mean(axis=1, keepdims=True) for p in (a, b))
        products, squares = (a * b).sum(axis=1), (b * b).sum(axis=1)
        sizes = np.sqrt((a * a).sum(axis=1) * squares)
        out[kind] = float(np.mean(products / np.maximum(sizes, 1e-300)))
        out[f"{kind}_contrast"] = float(products.sum() / squares.sum())
    return out
