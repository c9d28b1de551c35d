"""Rotations against SciPy, RELION's printed example and cryoSPARC's vector."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from invcryo.rotation import (
    align_rotations,
    euler_from_matrix,
    geodesic_distance,
    matrix_from_euler,
    matrix_from_rotvec,
    random_rotations,
    rotvec_from_matrix,
)

ANGLES = (30.0, 40.0, 50.0)
MATRIX = np.array(
    [[0.043412, 0.909616, -0.413176], [-0.829598, 0.263258, 0.492404], [0.556670, 0.321394, 0.766044]]
)
EPS = 1e-14  # a few roundings of float64

any_angle = st.floats(-360, 360)


def rotation_z(degrees):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def rotation_y(degrees):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def test_example_of_relion():
    a = matrix_from_euler(*ANGLES)
    np.testing.assert_allclose(a, MATRIX, atol=5.1e-7)
    np.testing.assert_allclose((a @ [10, 0, 0])[:2], [0.434120, -8.295984], atol=5.1e-7)
    np.testing.assert_allclose(euler_from_matrix(a), ANGLES, atol=1e-12)


@given(any_angle, any_angle, any_angle)
def test_product_of_active_rotations(rot, tilt, psi):
    expected = rotation_z(-psi) @ rotation_y(-tilt) @ rotation_z(-rot)
    np.testing.assert_allclose(matrix_from_euler(rot, tilt, psi), expected, atol=EPS)


@given(any_angle, any_angle, any_angle)
def test_equalities_with_scipy(rot, tilt, psi):
    a = matrix_from_euler(rot, tilt, psi)
    same = [
        Rotation.from_euler("ZYZ", [rot, tilt, psi], degrees=True).inv(),
        Rotation.from_euler("zyz", [-rot, -tilt, -psi], degrees=True),
        Rotation.from_euler("ZYZ", [-psi, -tilt, -rot], degrees=True),
        Rotation.from_euler("zyz", [psi, tilt, rot], degrees=True).inv(),
    ]
    for rotation in same:
        np.testing.assert_allclose(rotation.as_matrix(), a, atol=EPS)


def test_wrong_way_round_is_another_pose():
    """Reading A without the inverse gives (180 - rot, tilt, 180 - psi): the usual mistake must be seen."""
    wrong = Rotation.from_matrix(matrix_from_euler(*ANGLES)).as_euler("zyz", degrees=True)
    np.testing.assert_allclose(wrong, [150, 40, 130], atol=1e-10)
    assert geodesic_distance(matrix_from_euler(*wrong), matrix_from_euler(*ANGLES)) > 1


def test_view_direction_and_mirror_view():
    a = matrix_from_euler(*ANGLES)
    rot, tilt = np.deg2rad(ANGLES[:2])
    direction = [np.sin(tilt) * np.cos(rot), np.sin(tilt) * np.sin(rot), np.cos(tilt)]
    np.testing.assert_allclose(a[2], direction, atol=EPS)
    mirror = matrix_from_euler(180 + ANGLES[0], 180 - ANGLES[1], -ANGLES[2])
    # seen from behind: the opposite direction, and the image upside down
    np.testing.assert_allclose(mirror, np.diag([1, -1, -1]) @ a, atol=EPS)


@given(any_angle, st.floats(0, 180), any_angle)
def test_euler_round_trip(rot, tilt, psi):
    a = matrix_from_euler(rot, tilt, psi)
    back = matrix_from_euler(*euler_from_matrix(a))
    # within 1e-9 rad of a pole rot is set to 0, which turns the view direction by less than that
    assert geodesic_distance(a, back) < 3e-9


@pytest.mark.parametrize("tilt", [0.0, 180.0, -180.0])
@pytest.mark.parametrize(("rot", "psi"), [(0, 0), (30, 50), (-170, 100), (90, -90), (123, 180)])
def test_gimbal_lock_puts_the_angle_in_psi(rot, tilt, psi):
    a = matrix_from_euler(rot, tilt, psi)
    found_rot, found_tilt, found_psi = euler_from_matrix(a)
    assert found_rot == 0
    assert found_tilt == pytest.approx(abs(tilt), abs=1e-6)
    expected = psi + rot if tilt == 0 else psi - rot
    assert (found_psi - expected + 180) % 360 - 180 == pytest.approx(0, abs=1e-9)
    assert geodesic_distance(matrix_from_euler(found_rot, found_tilt, found_psi), a) < 1e-12


@pytest.mark.parametrize("tilt", [90.0, 1e-5, 180 - 1e-5])
def test_angles_near_the_poles_and_at_the_equator(tilt):
    found = euler_from_matrix(matrix_from_euler(30, tilt, 50))
    np.testing.assert_allclose(found, [30, tilt, 50], atol=1e-7)  # 1e-16 / sin(1e-5 degrees), in degrees


def test_radians_and_shapes(rng):
    angles = rng.uniform(-3, 3, (3, 7))
    angles[1] = np.abs(angles[1])
    a = matrix_from_euler(*angles, degrees=False)
    assert a.shape == (7, 3, 3)
    np.testing.assert_allclose(a, matrix_from_euler(*np.rad2deg(angles)), atol=EPS)
    np.testing.assert_allclose(euler_from_matrix(a, degrees=False), angles, atol=1e-12)
    assert matrix_from_euler(1, 2, 3).shape == (3, 3)
    assert matrix_from_euler([1, 2], 3, 4).shape == (2, 3, 3)


def test_cryosparc_vector():
    w = (0.131288, 0.744573, 1.335235)
    np.testing.assert_allclose(matrix_from_rotvec(w), MATRIX, atol=2e-6)  # six decimals in, six out
    np.testing.assert_allclose(rotvec_from_matrix(matrix_from_euler(*ANGLES)), w, atol=5.1e-7)
    angles = Rotation.from_rotvec(w).as_euler("ZYZ", degrees=True)
    np.testing.assert_allclose(angles, ANGLES, atol=1e-4)


@given(st.tuples(*[st.floats(-1.7, 1.7)] * 3))
def test_rotvec_round_trip(vector):
    back = rotvec_from_matrix(matrix_from_rotvec(vector))
    np.testing.assert_allclose(back, vector, atol=1e-9)  # |vector| < pi


def test_random_rotations_are_uniform_and_seeded(rng):
    a = random_rotations(4000, rng=7)
    np.testing.assert_array_equal(a, random_rotations(4000, rng=7))
    assert not np.array_equal(a, random_rotations(4000, rng=8))
    np.testing.assert_allclose(a @ a.transpose(0, 2, 1), np.tile(np.eye(3), (4000, 1, 1)), atol=EPS)
    np.testing.assert_allclose(np.linalg.det(a), 1, atol=EPS)
    # entries of a uniform rotation have mean 0 and variance 1/3; 5 standard errors
    np.testing.assert_allclose(a.mean(axis=0), 0, atol=5 * np.sqrt(1 / 3 / 4000))
    # uniform angles have density (1 - cos) / pi, hence mean pi / 2 + 2 / pi and s.d. 0.65
    angle = geodesic_distance(a, np.broadcast_to(np.eye(3), a.shape))
    assert angle.mean() == pytest.approx(np.pi / 2 + 2 / np.pi, abs=5 * 0.65 / np.sqrt(4000))


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-7, 0.3, np.pi - 1e-7, np.pi])
def test_geodesic_distance_is_accurate_at_both_ends(angle, rng):
    base = random_rotations(1, rng=rng)[0]
    axis = rng.standard_normal(3)
    turned = base @ Rotation.from_rotvec(angle * axis / np.linalg.norm(axis)).as_matrix()
    # products round at 1e-16; an arc cosine of the trace would lose half of the digits
    assert geodesic_distance(base, turned) == pytest.approx(angle, abs=1e-15)
    assert geodesic_distance(turned, base) == pytest.approx(angle, abs=1e-15)


def test_align_rotations_finds_the_global_rotation(rng):
    reference = random_rotations(50, rng=rng)
    g = random_rotations(1, rng=rng)[0]
    np.testing.assert_allclose(align_rotations(reference @ g.T, reference), g, atol=1e-13)
    noise = Rotation.from_rotvec(0.05 * rng.standard_normal((50, 3))).as_matrix()
    found = align_rotations(noise @ reference @ g.T, reference)
    np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-13)
    assert np.linalg.det(found) == pytest.approx(1)
    # the mean of 50 errors of 0.05 rad about each axis: 0.05 sqrt(3 / 50), three times over
    assert geodesic_distance(found, g) < 3 * 0.05 * np.sqrt(3 / 50)


def test_align_rotations_never_reflects():
    """Poses of the other hand: a mirror fits them best, and a rotation has to be returned all the same."""
    poses = random_rotations(200, rng=0)
    mirror = np.diag([1.0, 1.0, -1.0])
    reference = mirror @ poses @ mirror
    assert np.linalg.det(np.einsum("pji,pjk->ik", poses, reference)) < 0  # the best fit is a reflection
    assert np.linalg.det(align_rotations(poses, reference)) == pytest.approx(1)
