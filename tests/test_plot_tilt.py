"""Figures of tilt series: that they show what they are given."""

import numpy as np
import pytest

import invcryo as ic
from invcryo import plot
from invcryo.stet import TPSF, image_sampling

pytest.importorskip("matplotlib")


def test_dose_curves(tmp_path):
    rows = [
        {
            "mode": mode,
            "method": "tv",
            "fraction": f,
            "seed": seed,
            "psnr": 20 * f + seed + 5 * (mode == "image"),
        }
        for mode in ("image", "tilt")
        for f in (0.5, 0.1)
        for seed in (0, 1)
    ]
    ax = plot.dose_curves([*rows, {**rows[0], "psnr": None}, {**rows[0], "psnr": np.nan}], "psnr")
    lines = {c.get_label(): c[0] for c in ax.containers}
    assert list(lines) == ["image, tv", "tilt, tv"]
    np.testing.assert_allclose(lines["image, tv"].get_xdata(), [10, 50])
    np.testing.assert_allclose(lines["image, tv"].get_ydata(), [7.5, 15.5])
    bars = ax.containers[0][2][0].get_segments()
    np.testing.assert_allclose(bars[0][:, 1], [7, 8])
    plot.save(ax, tmp_path / "c.png")
    with pytest.raises(ValueError, match="no row"):
        plot.dose_curves(rows, "ssim")


def test_section_grid():
    volume = np.arange(4 * 5 * 6.0).reshape(4, 5, 6)
    grid = plot.section_grid([[volume, None]], rows=["a"], columns=["b", "c"])
    np.testing.assert_array_equal(grid[0, 0].images[0].get_array(), volume[:, 2])
    assert not grid[0, 1].images and grid[0, 0].get_ylabel() == "a"
    for plane, section in (("xy", volume[2]), ("yz", volume[:, :, 3])):
        drawn = plot.section_grid([[volume]], rows=["a"], columns=["b"], plane=plane)
        np.testing.assert_array_equal(drawn[0, 0].images[0].get_array(), section)
    with pytest.raises(ValueError, match="no volume"):
        plot.section_grid([[None]], rows=["a"], columns=["b"])


@pytest.mark.parametrize("axis", ["x", "y"])
def test_wedge_is_drawn_where_it_is(axis, rng):
    """Tilts to one side only: what was measured lies between the lines drawn, on the right side."""
    angles = np.deg2rad(np.arange(-20.0, 61.0, 2.0))
    blank = np.zeros((len(angles), 32, 32), np.float32)
    series = ic.TiltSeries(blank, angles, axis=axis)
    A = ic.Projector(series.poses(), ic.KaiserBessel(), 32, 32)
    seen = A.adjoint(A(rng.standard_normal((32, 32, 32)).astype(np.float32)))
    ax = plot.wedge_spectrum(seen, angles, axis=axis)
    power = 10 ** np.asarray(ax.images[0].get_array())
    f = np.fft.fftshift(np.fft.fftfreq(32))
    kz, kx = np.meshgrid(f, f, indexing="ij")
    radius = np.hypot(kz, kx)
    slopes = [line.get_ydata()[1] / line.get_xdata()[1] for line in ax.lines]
    assert sorted(slopes) == pytest.approx([-np.tan(np.deg2rad(60)), np.tan(np.deg2rad(20))])
    inside = (kz <= slopes[0] * kx) & (kz >= slopes[1] * kx) & (kx > 0)
    outside = (kx > 0) & ((kz > slopes[0] * kx + 0.1) | (kz < slopes[1] * kx - 0.1))
    ring = (radius > 0.1) & (radius < 0.3)
    assert power[inside & ring].mean() > 10 * power[outside & ring].mean()


def test_tpsf_and_masks():
    leakage = np.zeros((8, 8), np.float32)
    leakage[2, 3] = -0.25
    point = TPSF((5, 5), leakage, leakage)
    grid = plot.tpsf({"one": point, "two": point})
    assert grid.shape == (2, 2) and grid[0, 0].images[0].get_array()[2, 3] == 0.25
    assert "peak 0.250" in grid[1, 0].texts[0].get_text()
    sampling = image_sampling((9, 6, 7), 0.5)
    shown = plot.tilt_masks(sampling.mask, np.arange(9.0))
    np.testing.assert_array_equal(shown[0, 3].images[0].get_array(), sampling.mask[8])


def test_profiles():
    ax = plot.profiles({"truth": [0, 1, 2], "map": [0, 1, 1]}, pixel_size=2.0)
    np.testing.assert_array_equal(ax.lines[1].get_xdata(), [0, 2, 4])
    assert ax.get_xlabel() == "position (Å)" and ax.lines[0].get_color() == "black"
