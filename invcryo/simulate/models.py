"""From an atomic model (PDB, mmCIF) to the electron scattering potential on a grid."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import gemmi

__all__ = ["model_to_volume"]

logger = logging.getLogger(__name__)

#: Residue names of protonation states that force fields write and the chemical component dictionary lacks.
_FORCE_FIELD_RESIDUES = frozenset(
    "HSD HSE HSP HID HIE HIP CYX CYM ASH GLH LYN LSN ARN TYM NMA ACE NME".split()
)
_FORCE_FIELD_WATERS = frozenset("TIP TIP3 TIP4 TIP5 TP3 TP4 SOL SPC".split())
_ORGANIC = frozenset(("H", "D", "C", "N", "O", "S", "P"))


def model_to_volume(
    path: str | os.PathLike[str],
    box: int,
    pixel_size: float,
    *,
    resolution: float | None = None,
    b_factor: float | None = None,
    center: bool = True,
    waters: bool = False,
) -> NDArray[np.float32]:
    """Electron scattering potential of an atomic model, by gemmi's ``DensityCalculatorE``.

    Parameters
    ----------
    path : path
        PDB or mmCIF file, may be gzipped. The first model is taken, with the atoms as they are listed: no
        biological assembly is built and no crystal symmetry applied.
    box : int
        Side of the volume in voxels, odd or even.
    pixel_size : float
        Angstrom per voxel.
    resolution : float, optional
        Angstrom. Every atom is blurred by a Gaussian whose Fourier transform falls to 1/e at
        ``1 / resolution`` (the rule of ChimeraX's molmap), which adds ``4 * resolution**2`` to its B-factor.
        Three voxels unless given, at least two: less could not be sampled.
    b_factor : float, optional
        B-factor of all atoms before that blur, angstrom squared; those of the file unless given.
    center : bool
        Whether to move the centre of the potential to the centre ``box // 2`` of the volume. If not, the
        origin of the file's coordinates is there.
    waters : bool
        Whether to keep water molecules.

    Returns
    -------
    ndarray, (box, box, box), float32
        Potential in angstrom^-2 (its sum times ``pixel_size**3`` is the sum of the atoms' scattering factors
        at zero angle, in angstrom); times 47.878 it is in volts. Solvent is vacuum.

    Raises
    ------
    ValueError
        Where the model does not fit; the message says the smallest box that holds it.
    """
    import gemmi

    if box < 1 or not pixel_size > 0:
        raise ValueError(
            f"box and pixel size must be positive, got box = {box}, pixel_size = {pixel_size:g} angstrom"
        )
    if resolution is None:
        resolution = 3.0 * pixel_size
    if not resolution >= 2.0 * pixel_size:
        raise ValueError(
            f"resolution = {resolution:g} angstrom cannot be sampled at {pixel_size:g} angstrom per voxel;"
            f" use {2 * pixel_size:g} angstrom or more, or smaller voxels"
        )
    model = _read_model(Path(path), waters)
    blur = 4.0 * resolution**2
    xyz, weights = [], []
    for atom in _atoms(model):
        xyz.append(atom.pos.tolist())
        weights.append(atom.occ * _scattering_factor(atom))
        own = b_factor if b_factor is not None else _isotropic_b(atom)
        atom.b_iso = own + blur
        atom.aniso = gemmi.SMat33f(0, 0, 0, 0, 0, 0)
    positions, charge = np.array(xyz), np.array(weights)
    if center:
        positions -= charge @ positions / charge.sum()
    _check_fit(positions, box, pixel_size, margin=resolution, path=Path(path), center=center)
    return _density(model, positions + box // 2 * pixel_size, box, pixel_size)


def _density(model: gemmi.Model, positions: NDArray, box: int, pixel_size: float) -> NDArray[np.float32]:
    """Density of the atoms of ``model``, moved to ``positions`` in angstrom from the corner voxel."""
    import gemmi

    for atom, place in zip(_atoms(model), positions, strict=True):
        atom.pos = gemmi.Position(*place)
    side = box * pixel_size
    calculator = gemmi.DensityCalculatorE()
    calculator.grid.set_unit_cell(gemmi.UnitCell(side, side, side, 90, 90, 90))
    calculator.grid.spacegroup = gemmi.SpaceGroup("P 1")
    calculator.grid.set_size(box, box, box)
    calculator.add_model_density_to_grid(model)
    return np.ascontiguousarray(np.array(calculator.grid, copy=True).T, dtype=np.float32)


def _read_model(path: Path, waters: bool) -> gemmi.Model:
    import gemmi

    if not path.is_file():
        raise FileNotFoundError(f"no atomic model at {path}")
    structure = gemmi.read_structure(str(path))
    if not len(structure) or not structure[0].count_atom_sites():
        raise ValueError(f"{path} holds no atoms; is it a PDB or mmCIF file with ATOM records?")
    if len(structure) > 1:
        logger.info("%s holds %d models; the first is taken", path.name, len(structure))
    model = structure[0].clone()
    _repair_elements(model, path.name)
    if not waters:
        for chain in model:
            for i in reversed(range(len(chain))):
                if _is_water(chain[i]):
                    del chain[i]
        if not model.count_atom_sites():
            raise ValueError(f"{path} holds water only; pass waters=True to keep it")
    return model


def _atoms(model: gemmi.Model) -> Any:
    return (atom for chain in model for residue in chain for atom in residue)


def _is_water(residue: gemmi.Residue) -> bool:
    return residue.is_water() or residue.name in _FORCE_FIELD_WATERS


def _is_organic(residue: gemmi.Residue) -> bool:
    """Whether the residue is known to hold H, C, N, O, S and P alone."""
    import gemmi

    entry = gemmi.find_tabulated_residue(residue.name)
    standard = entry.found() and entry.is_standard() and (entry.is_amino_acid() or entry.is_nucleic_acid())
    return standard or residue.name in _FORCE_FIELD_RESIDUES or _is_water(residue)


def _repair_elements(model: gemmi.Model, name: str) -> None:
    """Correct elements that cannot be: without an element column CA is read as calcium, HG as mercury."""
    import gemmi

    repaired: Counter[str] = Counter()
    for chain in model:
        for residue in chain:
            organic = _is_organic(residue)
            for atom in residue:
                if organic and atom.element.name not in _ORGANIC:
                    letter = atom.name.lstrip("'\"")[:1].upper()
                    if letter in _ORGANIC:
                        repaired[f"{atom.element.name} -> {letter}"] += 1
                        atom.element = gemmi.Element(letter)
                if atom.element.name == "X" or atom.element.c4322 is None:
                    raise ValueError(
                        f"{name}: the element of atom {atom.name!r} of residue {residue.name} {residue.seqid}"
                        f" in chain {chain.name!r} is unknown ({atom.element.name}); write it into columns"
                        " 77-78 of the PDB file, or convert the file to mmCIF"
                    )
    if repaired:
        logger.warning(
            "%s: corrected the element of %d atoms of standard residues by their names (%s);"
            " the file seems to have no element column, so check its ligands and ions",
            name,
            repaired.total(),
            ", ".join(f"{change}: {count}" for change, count in repaired.most_common()),
        )


def _scattering_factor(atom: gemmi.Atom) -> float:
    """Electron scattering factor at zero angle, angstrom."""
    return float(sum(atom.element.c4322.a))


def _isotropic_b(atom: gemmi.Atom) -> float:
    return float(atom.aniso.trace() * 8 * np.pi**2 / 3 if atom.aniso.nonzero() else atom.b_iso)


def _check_fit(
    positions: NDArray, box: int, pixel_size: float, *, margin: float, path: Path, center: bool
) -> None:
    """The atoms and a margin must lie between the first and the last voxel."""
    low = (-positions.min(axis=0) + margin).max() / pixel_size
    high = (positions.max(axis=0) + margin).max() / pixel_size
    if low <= box // 2 and high <= (box - 1) // 2:
        return
    smallest = 2 * max(int(np.ceil(low)), int(np.ceil(high)) + 1)
    radius = (np.linalg.norm(positions, axis=1).max() + margin) / pixel_size
    cause = "" if center else "; with center=False its coordinates may be far from the origin"
    raise ValueError(
        f"{path.name} does not fit into a box of {box} voxels of {pixel_size:g} angstrom{cause}."
        f" The smallest even box that holds it is {smallest};"
        f" to hold it in every orientation take {2 * int(np.ceil(radius) + 1)}"
    )
