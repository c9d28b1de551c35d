"""Point groups: their matrices in RELION's settings, their lattice part, and averaging over them.

A group is an array (|G|, 3, 3) of rotations of the map frame that act on column vectors (x, y, z). A map has
the symmetry when ``v(g r) = v(r)`` for each g, and then a view A sees what the views ``A @ g`` see.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from .grid import centred_coordinates

__all__ = ["lattice_coset", "point_group", "symmetrise", "symmetry_correlation"]

_GOLDEN = (1 + 5**0.5) / 2

#: Generators as (fold, axis) in (x, y, z).
_GENERATORS: dict[str, list[tuple[int, tuple[float, float, float]]]] = {
    "T": [(3, (0, 0, 1)), (2, (0, 2**0.5, 1))],
    "O": [(4, (0, 0, 1)), (3, (1, 1, 1))],
    "I1": [(2, (0, 0, 1)), (5, (_GOLDEN, 0, -1))],
    "I2": [(2, (0, 0, 1)), (5, (1, 0, _GOLDEN))],
    "I3": [(5, (0, 0, 1)), (2, (-1, 0, _GOLDEN))],
    "I4": [(5, (0, 0, 1)), (2, (1, 0, _GOLDEN))],
}
_ORDER = {"T": 12, "O": 24, "I1": 60, "I2": 60, "I3": 60, "I4": 60}
_SAME = 1e-6


def point_group(name: str) -> NDArray:
    """Rotations of a point group in RELION's setting, (|G|, 3, 3) float64, the identity first.

    Parameters
    ----------
    name : str
        Upper or lower case. ``C1, C2, ...`` (order n, axis z); ``D1, D2, ...`` (order 2n, n-fold axis z,
        a 2-fold axis along x); ``T`` (order 12, a 3-fold axis along z and a 2-fold axis in the yz plane);
        ``O`` (order 24, 4-fold axes along x, y, z); the four settings of the icosahedral group (order 60):

        ======  =======================================================================
        I1      2-fold axes along x, y, z; a 5-fold axis in the xz plane, 58.28 degrees off z
        I2, I   2-fold axes along x, y, z; a 5-fold axis in the xz plane, 31.72 degrees off z
        I3      a 5-fold axis along z; a 2-fold axis in the xz plane along (-0.526, 0, 0.851)
        I4      a 5-fold axis along z; a 2-fold axis in the xz plane along (0.526, 0, 0.851)
        ======  =======================================================================

    Notes
    -----
    The sets equal those that RELION 3.1.3 prints (``relion_refine --print_symmetry_ops --sym I``), where
    ``I`` is ``I2`` too. I1 is I2 turned by 90 degrees about z, I3 is I4 turned by 180 degrees about z. Groups
    with mirrors do not apply to molecules and are refused.
    """
    key = name.strip().upper()
    key = "I2" if key == "I" else key
    axial = re.fullmatch(r"([CD])([1-9]\d*)", key)
    if axial is not None:
        n = int(axial.group(2))
        turns = Rotation.from_rotvec(np.outer(2 * np.pi * np.arange(n) / n, [0, 0, 1])).as_matrix()
        if axial.group(1) == "D":
            turns = np.concatenate([turns, turns @ np.diag([1.0, -1.0, -1.0])])
        return _snap(turns)
    if key in _GENERATORS:
        return _closure([_rotation(fold, axis) for fold, axis in _GENERATORS[key]], _ORDER[key])
    raise ValueError(
        f"unknown point group {name!r}: known are C1, C2, ... Cn, D1, D2, ... Dn, T, O, I (= I2), I1, I2, I3,"
        " I4"
    )


def lattice_coset(group: str | ArrayLike) -> tuple[NDArray, NDArray]:
    """Split a group into the elements that map the voxel lattice onto itself and representatives of the rest.

    Parameters
    ----------
    group : str or array_like, (|G|, 3, 3)
        A name for `point_group`, or its matrices.

    Returns
    -------
    lattice : ndarray, (m, 3, 3), int64
        The subgroup L of the signed permutation matrices in (x, y, z), the identity first.
    representatives : ndarray, (k, 3, 3), float64
        One element of each coset ``r L``, the identity first, with ``k * m = |G|``.

    Notes
    -----
    Each element g of the group is exactly one product ``representatives[i] @ lattice[j]``, in that order. The
    symmetric copies ``A @ g`` of a view A are then ``A @ representatives[i] @ lattice[j]``: the lattice
    element acts on the map first. So a sum over all views and copies (a backprojection, a kernel) is the sum
    over ``A @ representatives[i]`` alone, followed by ``m`` times the average over the lattice part, which
    only moves voxels (`symmetrise` with ``group=lattice``) and costs no interpolation.
    """
    matrices = _as_group(group)
    for g in matrices:
        images = np.array([_distance(product, matrices).argmin() for product in g @ matrices])
        worst = max(_distance(g @ h, matrices[i : i + 1])[0] for h, i in zip(matrices, images, strict=True))
        if worst > _SAME or len(np.unique(images)) != len(matrices):
            raise ValueError(
                f"the {len(matrices)} matrices are not a group: a product of two of them is off by"
                f" {worst:.2g} from the nearest one, or one of them is given twice"
            )
    lattice = np.rint(matrices[_is_lattice(matrices)]).astype(np.int64)
    representatives: list[NDArray] = []
    left = list(matrices)
    while left:
        representatives.append(left[0])
        coset = left[0] @ lattice
        left = [g for g in left if _distance(g, coset).min() > _SAME]
    return lattice, np.array(representatives)


def symmetrise(volume: ArrayLike, group: str | ArrayLike) -> NDArray:
    """Average of a map over a group: the mean of its copies ``v(g^-1 r)``.

    Lattice elements (see `lattice_coset`) move voxels exactly. On an axis of even size the plane of index 0,
    at ``-n/2``, has no partner at ``+n/2``; it is taken as periodic, as the FFT does, so it is its own mirror
    image. That makes these moves a permutation of the voxels: nothing is lost and averaging twice changes
    nothing. The other elements turn the map by cubic spline interpolation, with zeros outside the box.

    Parameters
    ----------
    volume : array_like, (nz, ny, nx)
        The axes pass through index ``n // 2``. Sides may differ where no element exchanges them.
    group : str or array_like, (|G|, 3, 3)

    Returns
    -------
    ndarray
        Same shape; float32 and float64 are kept, other types become float64.
    """
    volume = _as_volume(volume)
    lattice, representatives = lattice_coset(group)
    mean = np.zeros(volume.shape)
    for g in lattice:
        mean += _permuted(volume, g)
    mean /= len(lattice)
    if len(representatives) > 1:
        spline = ndimage.spline_filter(mean, order=3)
        for g in representatives[1:]:
            mean += _turned(spline, g)
        mean /= len(representatives)
    return mean.astype(volume.dtype, copy=False)


def symmetry_correlation(volume: ArrayLike, group: str | ArrayLike) -> NDArray:
    """Pearson correlation of a map with its copy turned by each element of a group, (|G|,) float64.

    Compared inside the largest ball about ``n // 2`` that the box holds, where no copy lacks data. A map that
    has the symmetry gives values near 1 throughout (0.95 and more for real maps filtered to their
    resolution); one low value means that the axis, the setting or the order is wrong. The lowest value is the
    one to read: proper subgroups score high by themselves, and the identity always gives 1.
    """
    volume = _as_volume(volume)
    radius = min((n - 1) // 2 for n in volume.shape)
    inside = sum(c**2 for c in centred_coordinates(volume.shape)) <= radius**2
    reference = volume[inside].astype(float)
    reference -= reference.mean()
    norm = np.linalg.norm(reference)
    if norm == 0:
        raise ValueError("the map is constant inside the box's largest ball: no correlation exists")
    spline = None
    values = []
    for g in _as_group(group):
        if _is_lattice(g):
            copy = _permuted(volume, np.rint(g).astype(int))[inside].astype(float)
        else:
            spline = ndimage.spline_filter(volume, order=3) if spline is None else spline
            copy = _turned(spline, g)[inside]
        copy = copy - copy.mean()
        values.append(float(reference @ copy / (norm * np.linalg.norm(copy))))
    return np.array(values)


def _rotation(fold: int, axis: Sequence[float]) -> NDArray:
    unit = np.asarray(axis, dtype=float) / np.linalg.norm(axis)
    return Rotation.from_rotvec(2 * np.pi / fold * unit).as_matrix()


def _distance(one: NDArray, many: NDArray) -> NDArray:
    """Largest difference of entries between one matrix and each of many."""
    return np.abs(one - many).max(axis=(1, 2))


def _closure(generators: Sequence[NDArray], order: int) -> NDArray:
    """All products of the generators, which are known to be ``order`` many."""
    found = [np.eye(3)]
    for element in found:  # grows while it is walked
        for generator in generators:
            product = element @ generator
            if _distance(product, np.array(found)).min() > _SAME:
                found.append(product)
    if len(found) != order:
        raise RuntimeError(f"generators close to {len(found)} elements instead of {order}")
    return _snap(np.array(found))


def _snap(matrices: NDArray) -> NDArray:
    """Set entries within rounding of 0, 1/2 and 1 to these values, so that lattice elements are exact."""
    near = np.rint(2 * matrices) / 2
    return np.where(np.abs(matrices - near) < 1e-12, near, matrices) + 0.0


def _is_lattice(matrices: NDArray) -> NDArray:
    return (np.abs(matrices - np.rint(matrices)) < _SAME).all(axis=(-2, -1))


def _as_group(group: str | ArrayLike) -> NDArray:
    if isinstance(group, str):
        return point_group(group)
    matrices = np.asarray(group, dtype=float)
    if matrices.ndim != 3 or matrices.shape[1:] != (3, 3) or len(matrices) == 0:
        raise ValueError(f"a group needs matrices of shape (n, 3, 3), got {matrices.shape}")
    gram = np.einsum("gij,gkj->gik", matrices, matrices)
    if np.abs(gram - np.eye(3)).max() > _SAME or np.linalg.det(matrices).min() < 0:
        raise ValueError("a group needs rotation matrices: some are not orthogonal, or are reflections")
    identity = np.abs(matrices - np.eye(3)).max(axis=(1, 2)) < _SAME
    if not identity.any():
        raise ValueError("the identity is missing from the matrices of the group")
    return np.concatenate([matrices[identity], matrices[~identity]])


def _as_volume(volume: ArrayLike) -> NDArray:
    volume = np.asarray(volume)
    if volume.ndim != 3:
        raise ValueError(f"symmetry needs a volume of three axes (z, y, x), got shape {volume.shape}")
    if volume.dtype not in (np.float32, np.float64):
        volume = volume.astype(np.float64)
    if not np.isfinite(volume).all():
        raise ValueError("the volume holds NaN or infinite values")
    return volume


def _permuted(volume: NDArray, g: NDArray) -> NDArray:
    """``v(g^-1 r)`` for a signed permutation g, by moving voxels."""
    # Row i of g^-1 = g^T in (x, y, z) says from which axis, and with which sign, coordinate i is read.
    # In array order the axis of coordinate i is 2 - i.
    source = [0, 0, 0]  # for each axis of the result: the axis of the volume that runs along it
    reverse = [False, False, False]
    for i in range(3):
        j = int(np.flatnonzero(g[:, i])[0])  # (g^-1 r)_i = g[j, i] r_j
        source[2 - j] = 2 - i
        reverse[2 - j] = g[j, i] < 0
    result = volume.transpose(source)
    if result.shape != volume.shape:
        raise ValueError(
            f"the group exchanges axes of unequal sides, {volume.shape}: pad the volume to a cube first"
        )
    for axis, flip in enumerate(reverse):
        if flip:
            result = np.flip(result, axis)
            if volume.shape[axis] % 2 == 0:
                result = np.roll(result, 1, axis)  # about index n // 2: index i comes from n - i, 0 from 0
    return result


def _turned(spline: NDArray, g: NDArray) -> NDArray:
    """``v(g^-1 r)`` from the cubic spline coefficients of v, zero outside the box."""
    matrix = g.T[::-1, ::-1]  # g^-1 in array order
    centre = np.array([n // 2 for n in spline.shape], dtype=float)
    return ndimage.affine_transform(
        spline, matrix, offset=centre - matrix @ centre, order=3, prefilter=False, output=np.float64
    )
