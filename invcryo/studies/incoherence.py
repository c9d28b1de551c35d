"""How noise-like the artefacts of a sampling are: transform point-spread functions (Donati 2020, section 3.4)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..direct import fbp
from ..operators import SingleAxisProjector, Wavelet
from ..stet import TPSF, image_sampling, tilt_sampling, tpsf
from ..stet.sampling import Sampling
from ..window import KaiserBessel
from .cells import StudyFolder, write_table

__all__ = ["SCHEMES", "incoherence_study"]

#: Ways of sampling a sinogram that are compared.
SCHEMES = ("random", "uniform", "tilt")


def incoherence_study(
    folder: str | os.PathLike[str],
    *,
    size: int = 64,
    views: int = 180,
    fractions: Sequence[float] = (0.5, 0.25, 0.1),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    wavelet: str = "haar",
    pictures: bool = True,
    fresh: bool = False,
) -> list[dict[str, Any]]:
    """Leakage of single wavelet coefficients under random and uniform sampling of a sinogram.

    A slice of ``size`` pixels a side is seen from ``views`` directions round the half circle, sampled, zero-filled and
    back by filtered back-projection. "random": pixels drawn for each view on its own. "uniform": every k-th pixel,
    the same ones in all views. "tilt": every k-th view.

    Parameters
    ----------
    folder : path-like
        Of ``table.csv``, ``table.json``, and ``tpsf.png``.

    Returns
    -------
    list of dict
        For each fraction, scheme and seed, averaged over a coefficient of every scale: ``peak_sidelobe`` (the largest
        leak over the coefficient), ``kurtosis`` (0 for Gaussian noise) and ``rms``.
    """
    job = {"size": size, "views": views, "wavelet": wavelet}
    place = StudyFolder(folder, job, fresh=fresh)
    angles = np.arange(views) * np.pi / views
    A = SingleAxisProjector(angles, KaiserBessel(), (size, 1, size))
    transform = Wavelet((size, 1, size), wavelet, 3)

    def inverse(y: NDArray) -> NDArray:
        return fbp(y, angles, volume_shape=(size, 1, size))

    def sampling(scheme: str, fraction: float, seed: int) -> Sampling:
        if scheme == "tilt":
            return tilt_sampling(angles, fraction, image_shape=A.oshape[1:])
        kind = "pixel" if scheme == "random" else "grid"
        return image_sampling(A.oshape, fraction, kind=kind, rng=seed)  # type: ignore[arg-type]

    def respond(scheme: str, fraction: float, seed: int) -> list[TPSF]:
        chosen = sampling(scheme, fraction, seed)
        return [tpsf(A, inverse, transform, index, chosen) for index in _one_of_each_scale(size)]

    def compute(scheme: str, fraction: float, seed: int) -> Any:
        found = [r.describe() for r in respond(scheme, fraction, seed)]
        return {name: float(np.mean([d[name] for d in found])) for name in found[0]}, {}

    rows = []
    for fraction in fractions:
        for scheme in SCHEMES:
            for seed in seeds if scheme == "random" else seeds[:1]:
                key = f"{scheme}-{fraction:g}-{seed}"
                row = place.cell(key, lambda s=scheme, f=fraction, d=seed: compute(s, f, d))  # type: ignore[misc]
                rows.append({"scheme": scheme, "fraction": fraction, "seed": seed, **row})
    write_table(place.path, rows)
    if pictures:
        from .. import plot

        middle = fractions[len(fractions) // 2]
        shown = {f"{s}, {100 * middle:g} %": respond(s, middle, seeds[0])[1] for s in SCHEMES}
        plot.save(plot.tpsf(shown), place.path / "tpsf.png")
    return rows


def _one_of_each_scale(size: int) -> list[tuple[int, int, int]]:
    """A coefficient of the coarse square and of the details of each of three levels, near the middle."""
    eighth = size // 8
    found = [(eighth // 2, 0, eighth // 2 - 1)]
    for n in (eighth, 2 * eighth, 4 * eighth):
        found.append((n + n // 2, 0, n // 2 - 1))
    return found
