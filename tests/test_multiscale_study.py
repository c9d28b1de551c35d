"""The multiscale study at a small size: class averages are what they should be, coarse scales lose less."""

import numpy as np
import pytest

from invcryo.data import Poses
from invcryo.metrics import correlation
from invcryo.operators import Projector
from invcryo.rotation import matrix_from_euler, spiral_views
from invcryo.studies.multiscale import angular_error_study, class_averages, class_study, scale_study
from invcryo.window import BandLimited

BOX = 32


@pytest.fixture(scope="module")
def volume():
    rng = np.random.default_rng(5)
    grid = np.arange(BOX) - BOX // 2
    places = rng.normal(0, 3.5, (80, 3))
    places = places[np.linalg.norm(places, axis=1) < 10]
    z, y, x = (np.exp(-((grid[None] - c[:, None]) ** 2) / (2 * 0.9**2)) for c in places.T)
    return np.einsum("az,ay,ax->zyx", z, y, x).astype(np.float32)


def test_class_averages_turn_and_move(volume, rng):
    """Views that differ by a turn in the plane and a shift alone: their average is the view of the class."""
    views = spiral_views(3)
    psi = rng.uniform(-180, 180, 12)
    turns = matrix_from_euler(np.zeros(12), np.zeros(12), psi)
    poses = Poses(turns @ np.repeat(views, 4, axis=0), rng.uniform(-2, 2, (12, 2)))
    images = Projector(poses, BandLimited(), BOX)(volume)
    averages, used, members = class_averages(images, poses, 3)
    np.testing.assert_array_equal(members, 4)
    np.testing.assert_allclose(used, views)
    expected = Projector(Poses(views), BandLimited(), BOX)(volume)
    for a, b in zip(averages, expected, strict=True):
        assert correlation(a, b) > 0.998
    # classes that nothing joins are left out
    assert class_averages(images[:4], poses[:4], views)[2].tolist() == [4]


def test_coarse_scales_represent_less(volume, tmp_path):
    rows = scale_study(tmp_path, volume, 2.0, views=150, scales=(1, 2, 4))
    resolution = [r["resolution_angstrom"] for r in rows]
    assert resolution[0] <= 5 and resolution[1] < 0.8 * resolution[2]
    # the window is nearly band-limited to the coarse grid: no finer than its Nyquist, nor much coarser
    assert 8 * 0.8 < resolution[1] < 12 and 16 * 0.8 < resolution[2] < 24
    assert (tmp_path / "fsc.png").exists()
    before = (tmp_path / "cells" / "s2.json").stat().st_mtime_ns
    assert scale_study(tmp_path, volume, 2.0, views=150, scales=(1, 2, 4), pictures=False) == rows
    assert (tmp_path / "cells" / "s2.json").stat().st_mtime_ns == before  # not computed again


def test_coarse_scales_lose_less(volume, tmp_path):
    """Figure 4.2a: the fine scale is the better one with right orientations, and loses the more with wrong ones."""
    rows = angular_error_study(
        tmp_path, volume, 2.0, views=300, errors_deg=(0, 14), scales=(1, 3), classes=80, snr=1.0
    )
    at = {(r["scale"], r["error_deg"]): r for r in rows}
    assert at[1, 0]["resolution_angstrom"] < at[3, 0]["resolution_angstrom"]
    assert at[1, 14]["loss"] > at[3, 14]["loss"] >= 1
    assert (tmp_path / "robustness.png").exists() and (tmp_path / "table.csv").exists()


def test_more_classes_resolve_more(volume, tmp_path):
    """Figure 4.2b, and all scales are alike from 11 classes."""
    rows = class_study(tmp_path, volume, 2.0, views=300, classes=(11, 99), scales=(1, 3), shown=3)
    at = {(r["scale"], r["classes"]): r["area"] for r in rows}
    assert at[1, 99] > at[1, 11] and at[3, 99] > at[3, 11]
    assert at[1, 99] - at[3, 99] > at[1, 11] - at[3, 11]
    with pytest.raises(ValueError, match="another study"):
        class_study(tmp_path, volume, 2.0, views=301, classes=(11,), scales=(3,))


def test_refused(tmp_path):
    with pytest.raises(ValueError, match="cubic"):
        scale_study(tmp_path, np.zeros((8, 8, 9)), 1.0, views=3)
    with pytest.raises(ValueError, match="snr"):
        class_study(tmp_path, np.zeros((8, 8, 8)), 1.0, views=3, snr=0)
