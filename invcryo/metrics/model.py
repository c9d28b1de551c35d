"""A map against an atomic model: the model's density on the grid of the map, and their FSC."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .fsc import FSC, fsc

if TYPE_CHECKING:
    from ..io import Map

__all__ = ["map_model_fsc", "model_on_grid"]

Placement = Literal["header", "centre"]


def map_model_fsc(
    volume: Map,
    model: str | os.PathLike[str],
    *,
    mask: ArrayLike | None = None,
    placement: Placement = "header",
    resolution: float | None = None,
    b_factor: float | None = None,
    waters: bool = False,
) -> FSC:
    """FSC of a map against an atomic model; 0.5 is the customary threshold (one side has no noise).

    The fall-off of the amplitudes with frequency, so also ``resolution`` and a common B-factor, cancels in
    each shell but for its width. A model that was refined into this very map agrees with its noise too: test
    it against the half map that it was not refined into.

    Parameters
    ----------
    volume : Map
    model, placement, resolution, b_factor, waters
        As for `model_on_grid`.
    mask : array_like, optional
        See `fsc`. Without it the solvent's noise counts; ``soft_mask`` of `model_on_grid` keeps to the model.
    """
    density = model_on_grid(
        volume, model, placement=placement, resolution=resolution, b_factor=b_factor, waters=waters
    )
    return fsc(volume.data, density, pixel_size=volume.pixel_size, mask=mask)


def model_on_grid(
    volume: Map,
    model: str | os.PathLike[str],
    *,
    placement: Placement = "header",
    resolution: float | None = None,
    b_factor: float | None = None,
    waters: bool = False,
) -> NDArray[np.float32]:
    """Electron scattering potential of an atomic model, sampled as a map is, in angstrom^-2.

    Parameters
    ----------
    volume : Map
        Of cubic shape; gives the grid.
    model : path-like
        PDB or mmCIF file.
    placement : {"header", "centre"}
        ``"header"`` takes the coordinates of the file as they are, in the frame that origin and start of the
        map's header state, as for a model fitted into the map. ``"centre"`` moves the centre of the potential
        to the centre ``box // 2`` of the map.
    resolution, b_factor, waters
        As for `invcryo.simulate.model_to_volume`.
    """
    import gemmi

    from ..simulate import models

    shape, size = volume.data.shape, volume.pixel_size
    if len(shape) != 3 or len(set(shape)) > 1:
        raise ValueError(f"a model is compared with a cubic map, got shape {shape}; pad or crop it")
    box = shape[0]
    if placement == "centre":
        return models.model_to_volume(
            model, box, size, resolution=resolution, b_factor=b_factor, waters=waters
        )
    if placement != "header":
        raise ValueError(f"placement must be 'header' or 'centre', got {placement!r}")
    corner = np.array(volume.origin[::-1]) + size * np.array(volume.start[::-1])  # (x, y, z)
    resolution = 3 * size if resolution is None else resolution
    if not resolution >= 2 * size:
        raise ValueError(
            f"resolution = {resolution:g} angstrom cannot be sampled at {size:g} angstrom per voxel"
        )
    content = models._read_model(Path(model), waters)
    positions = np.array([atom.pos.tolist() for atom in models._atoms(content)]) - corner
    outside = ((positions < 0) | (positions > (box - 1) * size)).any(axis=1)
    if outside.any():
        raise ValueError(
            f"{os.fspath(model)}: {np.count_nonzero(outside)} of {len(outside)} atoms lie outside the map, whose"
            f" first voxel is at ({corner[0]:g}, {corner[1]:g}, {corner[2]:g}) angstrom by its header; fit the"
            " model into the map, or pass placement='centre' if both are centred on the particle"
        )
    for atom in models._atoms(content):
        atom.b_iso = (models._isotropic_b(atom) if b_factor is None else b_factor) + 4 * resolution**2
        atom.aniso = gemmi.SMat33f(0, 0, 0, 0, 0, 0)
    return models._density(content, positions, box, size)
