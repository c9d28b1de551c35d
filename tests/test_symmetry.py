"""Point groups against RELION and group theory; averaging against moved deltas and analytic blobs."""

import re
import subprocess

import numpy as np
import pytest
from scipy import ndimage

from invcryo.grid import centred_coordinates
from invcryo.rotation import random_rotations
from invcryo.symmetry import (
    _permuted,
    _turned,
    lattice_coset,
    point_group,
    symmetrise,
    symmetry_correlation,
)

ORDER = {
    "C1": 1, "C2": 2, "C4": 4, "C7": 7, "D1": 2, "D2": 4, "D3": 6, "D4": 8, "D7": 14,
    "T": 12, "O": 24, "I": 60, "I1": 60, "I2": 60, "I3": 60, "I4": 60,
}  # fmt: skip
#: Order of the part that maps the voxel lattice onto itself.
LATTICE = {
    "C1": 1, "C2": 2, "C4": 4, "C7": 1, "D1": 2, "D2": 4, "D3": 2, "D4": 8, "D7": 2,
    "T": 1, "O": 24, "I": 12, "I1": 12, "I2": 12, "I3": 2, "I4": 2,
}  # fmt: skip


def distance_of_sets(a, b):
    """Largest distance from a matrix of one set to the nearest of the other, both ways."""
    gaps = np.abs(a[:, None] - b[None]).max(axis=(-2, -1))
    return max(gaps.min(axis=0).max(), gaps.min(axis=1).max())


def turned_about_z(group, degrees):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    r = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return r @ group @ r.T


def blobs(n, centres, weights, width=2.0):
    z, y, x = centred_coordinates((n, n, n))
    return sum(
        w * np.exp(-((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2) / (2 * width**2))
        for (cx, cy, cz), w in zip(centres, weights, strict=True)
    )


@pytest.mark.parametrize("name", ORDER)
def test_group_laws(name):
    g = point_group(name)
    assert g.shape == (ORDER[name], 3, 3)
    np.testing.assert_array_equal(g[0], np.eye(3))
    np.testing.assert_allclose(g @ g.transpose(0, 2, 1), np.tile(np.eye(3), (len(g), 1, 1)), atol=1e-14)
    np.testing.assert_allclose(np.linalg.det(g), 1, atol=1e-14)
    products = (g[:, None] @ g[None]).reshape(-1, 3, 3)
    assert distance_of_sets(products, g) < 1e-14  # closed
    apart = np.abs(g[:, None] - g[None]).max(axis=(-2, -1)) + np.eye(len(g))
    assert apart.min() > 0.05  # each element once
    np.testing.assert_array_equal(point_group(f" {name.lower()} "), g)


def test_order_is_read_as_written():
    """D7 is of order 14, not D14, and C12 is not C1 or C2."""
    assert [len(point_group(n)) for n in ("D7", "D14", "C1", "C12", "C120")] == [14, 28, 1, 12, 120]


@pytest.mark.parametrize("name", ["", "C", "C0", "C-1", "D0", "C02", "E", "I5", "Oh", "C4v", "7"])
def test_unknown_names_are_refused_with_a_list(name):
    with pytest.raises(ValueError, match=r"unknown point group .*C1, C2.*D1, D2.*I1, I2"):
        point_group(name)


@pytest.mark.relion
@pytest.mark.parametrize("name", ORDER)
def test_matrices_of_relion(name, relion):
    done = subprocess.run(
        ["relion_refine", "--print_symmetry_ops", "--sym", name], capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    starts = [i for i, line in enumerate(lines) if re.match(r"\s*R\(\d+\)=", line)]
    printed = np.array([[lines[i + j].split() for j in (1, 2, 3)] for i in starts], dtype=float)
    assert len(printed) == ORDER[name]
    # RELION's own axes are written with about six digits
    assert distance_of_sets(point_group(name), printed) < 1e-5


def test_icosahedral_settings_differ_and_are_related_as_documented():
    i1, i2, i3, i4 = (point_group(f"I{k}") for k in (1, 2, 3, 4))
    for a, b in [(i1, i2), (i1, i3), (i2, i3), (i3, i4), (i2, i4)]:
        assert distance_of_sets(a, b) > 0.3
    assert distance_of_sets(turned_about_z(i1, 90), i2) < 1e-14
    assert distance_of_sets(turned_about_z(i3, 180), i4) < 1e-14
    np.testing.assert_array_equal(point_group("I"), i2)


@pytest.mark.parametrize("name", ORDER)
def test_lattice_coset_gives_each_element_once(name):
    g = point_group(name)
    lattice, representatives = lattice_coset(name)
    assert lattice.dtype.kind == "i" and len(lattice) == LATTICE[name]
    assert len(lattice) * len(representatives) == len(g)
    assert (np.abs(lattice).sum(axis=1) == 1).all() and (np.abs(lattice).sum(axis=2) == 1).all()
    np.testing.assert_array_equal(lattice[0], np.eye(3))
    np.testing.assert_array_equal(representatives[0], np.eye(3))
    # A @ representative @ lattice runs through A @ g, each g exactly once
    a = random_rotations(1, rng=3)[0]
    products = (a @ representatives[:, None] @ lattice[None]).reshape(-1, 3, 3)
    gaps = np.abs(products[:, None] - (a @ g)[None]).max(axis=(-2, -1)) < 1e-12
    np.testing.assert_array_equal(gaps.sum(axis=0), 1)
    np.testing.assert_array_equal(gaps.sum(axis=1), 1)


def test_product_order_matters():
    """Representatives on the other side do not make the group: the documented order is the right one."""
    lattice, representatives = lattice_coset("I4")
    g = point_group("I4")
    swapped = (lattice[:, None] @ representatives[None]).reshape(-1, 3, 3)
    counts = (np.abs(swapped[:, None] - g[None]).max(axis=(-2, -1)) < 1e-9).sum(axis=0)
    assert not (counts == 1).all()


def test_what_is_no_group_is_refused():
    c5 = point_group("C5")
    with pytest.raises(ValueError, match="not a group"):
        lattice_coset(c5[:4])
    with pytest.raises(ValueError, match="not a group"):
        lattice_coset(np.concatenate([c5, c5[:1]]))
    with pytest.raises(ValueError, match="identity is missing"):
        lattice_coset(c5[1:])
    with pytest.raises(ValueError, match="reflections"):
        lattice_coset(np.array([np.eye(3), np.diag([1.0, 1, -1])]))
    with pytest.raises(ValueError, match=r"\(n, 3, 3\)"):
        lattice_coset(np.eye(3))


@pytest.mark.parametrize("n", [12, 13])
@pytest.mark.parametrize("name", ["C2", "C4", "D2", "D4", "O", "lattice of I1"])
def test_lattice_average_moves_a_delta_to_its_orbit(name, n):
    """A voxel at r appears at g r, for each g; exact for even and odd sides."""
    group = lattice_coset("I1")[0] if name == "lattice of I1" else point_group(name)
    c = n // 2
    r = np.array([1, 2, 4])  # (x, y, z), of no symmetry
    volume = np.zeros((n, n, n))
    volume[tuple(c + r[::-1])] = 1.0
    expected = np.zeros_like(volume)
    for g in group:
        expected[tuple(c + np.rint(g @ r).astype(int)[::-1])] += 1 / len(group)
    np.testing.assert_allclose(symmetrise(volume, group), expected, atol=1e-16)


@pytest.mark.parametrize("n", [12, 13])
def test_one_element_turns_the_map_and_not_its_inverse(n):
    """``v(g^-1 r)`` for each rotation of the cube, by moved voxels and by interpolation."""
    r = np.array([1, 2, 4])
    volume = np.zeros((n, n, n))
    volume[tuple(n // 2 + r[::-1])] = 1.0
    spline = ndimage.spline_filter(volume, order=3)
    for g in np.rint(point_group("O")).astype(int):
        expected = np.zeros_like(volume)
        expected[tuple(n // 2 + (g @ r)[::-1])] = 1.0
        np.testing.assert_array_equal(_permuted(volume, g), expected)
        np.testing.assert_allclose(_turned(spline, g), expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 9, 9), (8, 10, 10), (7, 6, 6), (5, 6, 9)])
@pytest.mark.parametrize("name", ["C2", "D2", "D4", "O"])
def test_lattice_average_is_a_projection(name, shape, rng):
    volume = rng.standard_normal(shape)  # also in the planes at -n/2, which have no partner
    if (name == "O" and len(set(shape)) > 1) or (name == "D4" and shape[1] != shape[2]):
        with pytest.raises(ValueError, match="unequal sides"):
            symmetrise(volume, name)
        return
    once = symmetrise(volume, name)
    np.testing.assert_allclose(symmetrise(once, name), once, atol=1e-15)
    assert once.sum() == pytest.approx(volume.sum(), abs=1e-11)
    other = rng.standard_normal(shape)
    # self-adjoint: <S u, v> = <u, S v>
    assert np.vdot(once, other) == pytest.approx(np.vdot(volume, symmetrise(other, name)), abs=1e-12)


@pytest.mark.parametrize("n", [40, 41])
@pytest.mark.parametrize("name", ["C3", "D7", "T", "O", "I1", "I2", "I4"])
def test_average_of_blobs_against_their_orbit(name, n, rng):
    centres = rng.uniform(-7, 7, (4, 3))
    weights = rng.uniform(0.5, 1.0, 4)
    group = point_group(name)
    expected = sum(blobs(n, centres @ g.T, weights) for g in group) / len(group)
    found = symmetrise(blobs(n, centres, weights), name)
    # cubic interpolation of Gaussians of s.d. 2 voxels (1e-3 measured); O only moves voxels
    assert np.abs(found - expected).max() < (1e-9 if name == "O" else 2e-3) * expected.max()


def test_dtype_is_kept_and_input_is_not_touched(rng):
    volume = rng.standard_normal((9, 9, 9)).astype(np.float32)
    copy = volume.copy()
    volume.setflags(write=False)
    assert symmetrise(volume, "D3").dtype == np.float32
    assert symmetrise(volume, "C2").dtype == np.float32
    assert symmetrise((volume * 10).astype(np.int16), "C2").dtype == np.float64
    np.testing.assert_array_equal(volume, copy)
    with pytest.raises(ValueError, match="three axes"):
        symmetrise(volume[0], "C2")
    with pytest.raises(ValueError, match="NaN"):
        symmetrise(np.full((4, 4, 4), np.nan), "C2")


@pytest.mark.parametrize("name", ["I1", "I2", "D7"])
def test_correlation_tells_settings_and_orders_apart(name, rng):
    group = point_group(name)
    centres = np.concatenate([[[9.0, 4.0, 2.0]] @ g.T for g in group])
    volume = blobs(36, centres, np.ones(len(centres)), width=1.7)
    assert symmetry_correlation(volume, name).min() > 0.999
    wrong = {"I1": ["I2", "I3"], "I2": ["I1", "O"], "D7": ["D14", "D6", "C14"]}[name]
    for other in wrong:
        assert symmetry_correlation(volume, other).min() < 0.7


def test_correlation_of_a_constant_is_refused():
    with pytest.raises(ValueError, match="constant"):
        symmetry_correlation(np.ones((5, 5, 5)), "C2")


@pytest.mark.data
def test_beta_galactosidase_has_d2(reference_data):
    import gemmi

    structure = gemmi.read_structure(str(reference_data / "models" / "5a1a.pdb"))
    structure.remove_waters()
    xyz = np.array([a.pos.tolist() for chain in structure[0] for res in chain for a in res]) - 93.0
    edges = (np.arange(65) - 32.5) * 4.0
    density = ndimage.gaussian_filter(np.histogramdd(xyz[:, ::-1], bins=(edges,) * 3)[0], 1.5)
    assert symmetry_correlation(density, "D2").min() > 0.9999
    for wrong in ("C3", "D3", "C4", "T", "O"):
        assert symmetry_correlation(density, wrong).min() < 0.8


@pytest.mark.data
def test_groel_has_c7_about_z(reference_data):
    import mrcfile

    volume = mrcfile.read(reference_data / "maps" / "groel-11.5A.mrc")
    volume = volume[14:87, 14:87, 14:87]  # index 50, the centre of 100, is the centre of these 73 voxels
    assert symmetry_correlation(volume, "C7").min() > 0.99
    assert symmetry_correlation(volume, "D7").min() > 0.99  # two rings back to back
    about_x = point_group("C7")[:, [2, 0, 1]][:, :, [2, 0, 1]]
    np.testing.assert_array_equal(about_x[:, 0, 0], 1.0)
    assert symmetry_correlation(volume, about_x)[1:].max() < 0.6
    for wrong in ("C6", "C8", "C14"):
        assert symmetry_correlation(volume, wrong).min() < 0.9
