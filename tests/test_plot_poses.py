"""Figures of poses: what is drawn is what was measured."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from invcryo import plot
from invcryo.data import Poses
from invcryo.metrics import PoseAlignment, pose_errors
from invcryo.rotation import random_rotations


@pytest.fixture
def errors(rng):
    true = Poses(random_rotations(400, rng=rng))
    out = {}
    for label, size in {"start": 0.4, "refined": 0.01}.items():
        off = Rotation.from_rotvec(rng.uniform(-size, size, (400, 3))).as_matrix()
        other = Poses(off @ true.matrices, rng.normal(0, 5 * size, (400, 2)))
        out[label] = pose_errors(other, true, alignment=PoseAlignment(np.eye(3)))
    return out


def test_angular_errors(errors, tmp_path):
    panels = plot.angular_errors(errors, limit=15)
    assert len(panels) == 4
    start, refined = (p.get_data() for p in panels[3].patches)
    for data, label in ((start, "start"), (refined, "refined")):
        # fractions of all views: what is missing lies beyond the axis
        assert data.values.sum() == pytest.approx(errors[label].within(15), abs=1e-9)
    for axis in range(3):
        inside = np.abs(errors["start"].euler[:, axis]) <= 15
        assert panels[axis].patches[0].get_data().values.sum() == pytest.approx(inside.mean(), abs=1e-9)
    text = [t.get_text() for t in panels[3].get_legend().get_texts()]
    assert text[1].startswith("refined: median 0.") and text[1].endswith("0.0 % beyond")
    plot.save(panels, tmp_path / "angles.png")
    assert (tmp_path / "angles.png").stat().st_size > 10_000


def test_shift_errors(errors, tmp_path):
    panels = plot.shift_errors(errors, limit=3)
    shown = panels[1].patches[0].get_data().values.sum()
    assert shown == pytest.approx((np.abs(errors["start"].shift[:, 1]) <= 3).mean(), abs=1e-9)
    plot.save(panels, tmp_path / "shifts.png")


def test_resolution_by_round(tmp_path):
    rounds = {"ours": [40, 12, 7, 4.5, 4.2, 4.2], "start poses": [40, np.inf, 15]}
    ax = plot.resolution_by_round(rounds, limits={"true poses": 4.1, "Nyquist": 3.6})
    np.testing.assert_allclose(ax.lines[0].get_ydata(), 1 / np.array(rounds["ours"]))
    np.testing.assert_array_equal(ax.lines[1].get_xdata(), [0, 2])  # infinite: left out
    np.testing.assert_allclose(ax.lines[2].get_ydata(), 1 / 4.1)
    labels = [float(t.get_text()) for t in ax.get_yticklabels()]
    np.testing.assert_allclose(ax.get_yticks(), 1 / np.array(labels))
    assert {4.0, 5.0, 10.0} <= set(labels)
    plot.save(ax, tmp_path / "rounds.png")
