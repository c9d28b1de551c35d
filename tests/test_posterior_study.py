"""The studies of posteriors in small versions, and their figures."""

import json

import numpy as np
import pytest

from invcryo import plot
from invcryo.simulate import phantom
from invcryo.studies.posterior import (
    area_under_roc,
    dirac_and_gaussian,
    limited_views,
    pose_surfaces,
    signal_to_noise_curves,
    starts,
)

SIZE = 6.0


@pytest.fixture(scope="module")
def volume():
    """A map whose power falls slowly, in the middle of its box."""
    return np.pad(phantom("enzyme", 16, rng=1), 6)


def test_area_under_the_curve(rng):
    positive = rng.random(500) < 0.3
    score = np.round(rng.normal(size=500) + positive, 1)  # with ties
    pairs = score[positive][:, None] - score[~positive]
    assert area_under_roc(score, positive) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    assert area_under_roc(positive.astype(float), positive) == 1
    with pytest.raises(ValueError, match="one class"):
        area_under_roc(score, np.ones(500, bool))


FIT = {"diameter": 96.0, "start": "least-squares"}  # the part of the volume that is not zero


def test_dirac_and_gaussian_agree(volume, tmp_path):
    """As the paper fits, to a quarter of an angstrom of each other and a shell of Nyquist."""
    options = {"particles": 300, "epochs": 6, "padding": 1}
    dirac, gaussian = dirac_and_gaussian(tmp_path, volume, SIZE, **options)
    assert abs(dirac["resolution"] - gaussian["resolution"]) < 0.25
    assert max(dirac["resolution"], gaussian["resolution"]) < 2 * SIZE * 14 / 13
    assert gaussian["mse"] < 2.62 / 2.29 * dirac["mse"] < 0.1  # the ratio of table 1
    again = dirac_and_gaussian(tmp_path, volume, SIZE, **options)
    assert again == [dirac, gaussian]  # from the folder
    with pytest.raises(ValueError, match="another study"):
        dirac_and_gaussian(tmp_path, volume, SIZE, **options | {"particles": 301})


def test_one_fit_tells_where_the_map_ends(volume, tmp_path):
    (row,) = signal_to_noise_curves(tmp_path, volume, SIZE, particles=500, ratios=(0.04,), epochs=2, **FIT)
    assert row["field"] == 18 and row["truth_0.5"] < 8  # of 9 shells: the curves fall within the box
    assert abs(row["expected_truth_0.5"] - row["truth_0.5"]) <= 1
    assert row["above_halves"] == 1 and row["halves_0.143"] < row["expected_0.143"]
    assert row["dirac_truth_0.5"] == pytest.approx(row["truth_0.5"], abs=0.1)  # means of the same bound
    # Gauss's inequality for deviations of the right variance and any law that has one peak
    assert row["within_1"] > 1 / np.sqrt(3) and row["within_2"] > 8 / 9
    assert {p.name for p in tmp_path.iterdir()} >= {"curves.png", "calibration.png", "table.csv"}
    assert json.loads((tmp_path / "table.json").read_text())[0]["snr"] == 0.04


def test_sigma_tells_what_no_view_saw(volume, tmp_path):
    """By the slices of the paper, which touch eight voxels each.

    The area must be 0.99; less with noise in a map so small, whose power in the last shells is so far below the noise
    that deviations of seen voxels are the prior's to the last digit of single precision: ties count half.
    """
    rows = limited_views(tmp_path, volume, SIZE, particles=300, ratios=(None, 2.0), epochs=1, padding=1)
    assert rows[0]["area"] > 0.99 and rows[0]["seen"] < 0.2
    assert rows[1]["area"] > 0.97
    for row, name in zip(rows, ("no-noise", "snr-2"), strict=True):
        assert row["area"] > row["area_unpolished"] and row["unseen"] > 0.99
        assert (tmp_path / f"sigma-{name}.png").exists()


def test_descents_in_poses_end_in_local_optima(volume, tmp_path):
    (row,) = pose_surfaces(
        tmp_path, volume, SIZE, snr=None, symmetry="C1", images=1, count=12, steps=120, points=13
    )
    assert row["near"] > 0.9 and row["converged"] < 0.7 and row["optima"] > 2
    assert row["off"] < 1 and row["bound"] == 0
    assert (tmp_path / "surface.png").exists()


def test_starts_to_the_same_resolution(volume, tmp_path):
    rows = starts(tmp_path, volume, SIZE, particles=200, ratios=(0.1,), epochs=(1, 3), **FIT)
    first, once, thrice = rows
    assert [r["start"] for r in rows] == ["least-squares", "paper-1-epochs", "paper-3-epochs"]
    assert first["ratio"] == 1 and first["mse"] < thrice["mse"] < once["mse"]
    for row in rows:
        assert (row["ratio"] is None) == (row["resolution"] > first["resolution"] + 0.25)


def test_fourier_slices_are_where_they_say(rng):
    for n in (6, 7):
        volume = rng.normal(size=(n, n, n))
        full = np.fft.fftshift(np.abs(np.fft.fftn(volume)))
        axes = plot.fourier_slices(np.abs(np.fft.rfftn(volume)))
        for ax, cut in zip(axes, (full[n // 2], full[:, n // 2], full[:, :, n // 2]), strict=True):
            np.testing.assert_allclose(ax.images[0].get_array(), cut, atol=1e-12)
    with pytest.raises(ValueError, match="half spectrum"):
        plot.fourier_slices(np.zeros((4, 4, 4)))


def test_calibration_and_surface():
    within = np.stack([np.full(9, 0.6), np.full(9, 0.9)])
    ax = plot.calibration({"a": within}, pixel_size=2.0, box=16)
    drawn = [line for line in ax.lines if len(line.get_xdata()) == 8]
    np.testing.assert_allclose([line.get_ydata()[0] for line in drawn], [0.6, 0.9])
    errors = np.arange(15.0).reshape(3, 5)
    path = np.array([[170.0, 20], [175, 30], [-175, 40]])
    ax = plot.pose_errors_surface(errors, np.arange(5), np.arange(3), true=(1, 2), paths=[path])
    np.testing.assert_array_equal(np.asarray(ax.collections[0].get_array()).reshape(3, 5), errors)
    assert np.isnan(ax.lines[0].get_xdata()[2])  # not across the whole sheet
