"""Alignment of pose sets and pose errors, against known gauges, outliers, hands and symmetries."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from invcryo.data import Poses
from invcryo.grid import centred_coordinates
from invcryo.metrics import PoseAlignment, align_poses, pose_errors
from invcryo.operators import Projector
from invcryo.rotation import align_rotations, geodesic_distance, random_rotations
from invcryo.symmetry import point_group
from invcryo.window import BandLimited


def true_poses(n, rng):
    return Poses(random_rotations(n, rng=rng), rng.uniform(-4, 4, (n, 2)))


def disguised(true, rotation, hand, origin, copies=None, rng=None):
    """The same views described in the frame of another map: the inverse of `PoseAlignment.poses`."""
    seen = true.matrices
    if copies is not None:
        seen = seen @ copies[rng.integers(len(copies), size=len(true))]
    matrices = np.diag([hand, hand, 1.0]) @ seen @ rotation.T
    return Poses(matrices, true.shifts - (matrices @ origin)[:, :2])


def nudged(poses, degrees, pixels, outliers, rng):
    """Small normal errors everywhere, and the first views replaced by others, all wrong in a similar way."""
    n = len(poses)
    small = Rotation.from_rotvec(np.deg2rad(degrees) * rng.standard_normal((n, 3))).as_matrix()
    matrices = small @ poses.matrices
    shifts = poses.shifts + pixels * rng.standard_normal((n, 2))
    bad = int(outliers * n)
    wrong = Rotation.from_rotvec(rng.normal([0.3, 0.9, 0.2], 0.3, (bad, 3))).as_matrix()
    matrices[:bad] = matrices[:bad] @ wrong
    shifts[:bad] += rng.normal([3, 1], 1, (bad, 2))
    return Poses(matrices, shifts), bad


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(5, 200),
    hand=st.sampled_from([1, -1]),
    group=st.sampled_from(["C1", "C4", "D2", "T"]),
)
def test_any_gauge_is_found_exactly(seed, n, hand, group):
    rng = np.random.default_rng(seed)
    copies = point_group(group)
    true = true_poses(n, rng)
    rotation, origin = random_rotations(1, rng=rng)[0], rng.uniform(-3, 3, 3)
    other = disguised(true, rotation, hand, origin, copies, rng)
    errors = pose_errors(other, true, group)
    assert errors.alignment.hand == hand
    assert errors.angle.max() < 1e-6 and np.abs(errors.shift).max() < 1e-6
    assert errors.within(1e-5) == 1.0
    np.testing.assert_allclose(errors.alignment.origin, origin, atol=1e-6)
    assert geodesic_distance(errors.alignment.rotation @ copies, rotation[None]).min() < 1e-7
    assert errors.alignment.other_cost > 10 * errors.alignment.cost


@pytest.mark.parametrize("group", ["C1", "D2"])
@pytest.mark.parametrize("hand", [1, -1])
def test_outliers_do_not_bias(group, hand, rng):
    """A fifth of poses wrong by 50 degrees the same way: least squares is off by degrees, this by 0.05."""
    n, copies = 500, point_group(group)
    true = true_poses(n, rng)
    rotation, origin = random_rotations(1, rng=rng)[0], np.array([1.5, -2.0, 0.7])
    noisy, bad = nudged(true, 0.5, 0.2, 0.2, rng)
    other = disguised(noisy, rotation, hand, origin, copies, rng)
    errors = pose_errors(other, true, group)
    found = errors.alignment
    assert found.hand == hand
    off = np.rad2deg(geodesic_distance(found.rotation @ copies, rotation[None]).min())
    # the mean of 400 rotations with 0.5 degrees per axis is known to 0.5 sqrt(3 / 400) = 0.04 degrees
    assert off < 0.1
    # of 400 x 2 shifts with 0.2 pixels, of which each shows two thirds of the origin: 0.2 / sqrt(800 / 3) x sqrt(3)
    assert np.linalg.norm(found.origin - origin) < 0.06
    assert np.median(errors.angle[bad:]) == pytest.approx(0.5 * 1.5382, rel=0.1)
    assert np.median(errors.shift_length[bad:]) == pytest.approx(0.2 * 1.1774, rel=0.1)
    assert errors.within(3) == pytest.approx(0.8, abs=0.02)
    if group == "C1" and hand == 1:
        least_squares = align_rotations(other.matrices, true.matrices)
        assert np.rad2deg(geodesic_distance(least_squares, rotation)) > 2


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31), hand=st.sampled_from([1, -1]), outliers=st.floats(0, 0.35))
def test_scattered_outliers(seed, hand, outliers):
    rng = np.random.default_rng(seed)
    true = true_poses(300, rng)
    poses, bad = nudged(true, 1.0, 0.3, outliers, rng)
    matrices = poses.matrices.copy()
    matrices[:bad] = random_rotations(bad, rng=rng) if bad else matrices[:bad]
    other = disguised(Poses(matrices, poses.shifts), random_rotations(1, rng=rng)[0], hand, np.zeros(3))
    errors = pose_errors(other, true)
    assert errors.alignment.hand == hand
    direct = np.rad2deg(geodesic_distance(matrices, true.matrices))
    np.testing.assert_allclose(errors.angle[bad:], direct[bad:], atol=0.4)


def test_large_errors_without_outliers(rng):
    """Euler angles off by up to 0.7 rad: no view names the rotation well, their median does."""
    true = Poses(random_rotations(500, rng=rng))
    off = Rotation.from_rotvec(rng.uniform(-0.7, 0.7, (500, 3))).as_matrix()
    rotation = random_rotations(1, rng=rng)[0]
    found = align_poses(Poses(off @ true.matrices @ rotation.T), true)
    assert np.rad2deg(geodesic_distance(found.rotation, rotation)) < 4


@pytest.mark.parametrize("hand", [1, -1])
def test_poses_and_volume_say_the_same(hand, rng):
    """The map under its poses, the moved map under the aligned ones: the same images."""
    n = 24
    spectrum = np.fft.rfftn(rng.standard_normal((n, n, n)))
    f = np.fft.fftfreq(n)
    radius = np.sqrt(f[:, None, None] ** 2 + f[None, :, None] ** 2 + np.fft.rfftfreq(n) ** 2)
    volume = np.fft.irfftn(spectrum * (radius < 0.3), s=(n, n, n), axes=(0, 1, 2))
    z, y, x = centred_coordinates((n, n, n))
    volume *= np.exp(-(z**2 + y**2 + x**2) / (2 * 2.5**2))  # inside the box wherever it is moved to
    poses = Poses(random_rotations(6, rng=rng), rng.uniform(-1, 1, (6, 2)))
    alignment = PoseAlignment(random_rotations(1, rng=rng)[0], hand, np.array([0.4, -0.9, 0.7]))
    before = Projector(poses, BandLimited(), n, dtype=np.float64)(volume)
    moved = alignment.volume(volume)
    after = Projector(alignment.poses(poses), BandLimited(), n, dtype=np.float64)(moved)
    assert np.linalg.norm(after - before) < 1e-3 * np.linalg.norm(before)
    assert alignment.volume(volume.astype(np.float32)).dtype == np.float32


def test_odd_boxes_and_scale(rng):
    """A quarter turn about z and whole voxels: nothing to interpolate."""
    volume = np.zeros((9, 9, 9))
    volume[4, 5, 6] = 1.0  # r = (2, 1, 0)
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    # reference(r) = map(turn r + origin): seen at r = turn^T ((2, 1, 0) - (0, 1, 2)) = (0, -2, -2)
    moved = PoseAlignment(turn, 1, np.array([0.0, 2.0, 4.0])).volume(volume, scale=2.0)
    assert np.unravel_index(moved.argmax(), moved.shape) == (2, 2, 4)
    np.testing.assert_allclose(moved[2, 2, 4], 1.0, atol=1e-2)


def test_figures_of_the_thesis_are_differences(rng):
    true = Poses.from_euler_deg([10, -170, 40], [50, 60, 70], [5, 179, -100], np.zeros((3, 2)))
    other = Poses.from_euler_deg([12, 175, 39], [50, 62, 70], [5, -178, -100], [[0, 1], [0, 0], [2, 0]])
    errors = pose_errors(other, true, alignment=PoseAlignment(np.eye(3)))
    np.testing.assert_allclose(errors.euler, [[-2, 0, 0], [15, -2, -3], [1, 0, 0]], atol=1e-9)
    np.testing.assert_allclose(errors.shift, [[0, -1], [0, 0], [-2, 0]])
    np.testing.assert_allclose(errors.angle[2], 1.0, atol=1e-9)
    summary = errors.summary(within=(1.5,))
    assert summary["within_1.5_deg"] == pytest.approx(2 / 3 if errors.angle[0] < 1.5 else 1 / 3)
    assert summary["shift_p50_px"] == 1.0 and summary["views"] == 3


def test_views_along_one_line_do_not_tell_the_hand(rng):
    angles = rng.uniform(-180, 180, 60)
    true = Poses.from_euler_deg(20, 30, angles)
    found = align_poses(true, true)
    assert found.hand == 1 and found.other_cost == pytest.approx(found.cost, abs=1e-6)
    np.testing.assert_allclose(found.rotation, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(found.origin, 0, atol=1e-9)


def test_the_same_for_all_views_pays_no_hand(rng):
    """Chosen as told: with one hand allowed the other is not tried."""
    true = true_poses(50, rng)
    other = disguised(true, np.eye(3), -1, np.zeros(3))
    found = align_poses(other, true, hands=(1,))
    assert found.hand == 1 and found.cost > 0.5 and np.isnan(found.other_cost)


def test_refused():
    one, two = Poses(np.eye(3)[None]), Poses(np.eye(3)[None].repeat(2, 0))
    with pytest.raises(ValueError, match="same views"):
        align_poses(one, two)
    with pytest.raises(ValueError, match="hands"):
        align_poses(one, one, hands=(2,))
    with pytest.raises(ValueError, match="group"):
        align_poses(one, one, np.eye(3))
    with pytest.raises(ValueError, match="cannot compare"):
        pose_errors(one, two, alignment=PoseAlignment(np.eye(3)))
