"""Figures: what they return and show, that they need no display, and that importing them costs nothing."""

import subprocess
import sys

import numpy as np
import pytest

from invcryo import plot
from invcryo.ctf import CTF
from invcryo.data import Poses
from invcryo.metrics import FSC
from invcryo.rotation import random_rotations

axes_module = pytest.importorskip("matplotlib.axes")


def curve(values, box=32, pixel_size=3.0):
    values = np.asarray(values, dtype=float)
    shells = np.arange(len(values))
    voxels = np.maximum(1, (4 * np.pi * shells**2).astype(int))
    return FSC(shells / (box * pixel_size), values, voxels, pixel_size, box)


@pytest.fixture
def falling():
    return curve(1 / (1 + np.exp(np.arange(17) - 8.0)))


def test_import_needs_neither_matplotlib_nor_pyplot():
    script = (
        "import sys, numpy as np; import invcryo.plot as p; assert 'matplotlib' not in sys.modules;"
        "p.convergence({'cost': [3, 2, 1]}); assert 'matplotlib' in sys.modules;"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_fsc_curves(falling, tmp_path):
    whole = curve(np.ones(17))
    ax = plot.fsc_curves({"half maps": falling, "same": whole}, (0.143, 0.5, "half-bit"))
    assert isinstance(ax, axes_module.Axes)
    labels = [t.get_text() for t in ax.get_legend().get_texts()]
    assert labels[0].startswith(f"half maps: {falling.resolution():.3g} Å at 0.143")
    assert labels[1].startswith("same: ≤6 Å at 0.143")
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), falling.frequency[1:])
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), falling.correlation[1:])
    (top,) = ax.child_axes
    assert "Å" in top.get_xlabel() and "1/Å" in ax.get_xlabel()
    for position, tick in zip(top.get_xticks(), top.get_xticklabels(), strict=True):
        assert 1 / position == pytest.approx(float(tick.get_text()))
    plot.save(ax, tmp_path / "fsc.png")
    assert (tmp_path / "fsc.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [p.name for p in tmp_path.iterdir()] == ["fsc.png"]
    nothing = plot.fsc_curves({"noise": curve(np.zeros(17))})
    assert nothing.get_legend().get_texts()[0].get_text() == "noise: none at 0.143, none at 0.5"
    with pytest.raises(ValueError, match="no FSC curves"):
        plot.fsc_curves({})


def test_labels_of_close_thresholds_do_not_touch(falling):
    ax = plot.fsc_curves({"a": falling}, (0.143, 0.15, "half-bit"))
    ax.figure.canvas.draw()
    bottom, middle, top = sorted((t.get_window_extent() for t in ax.texts), key=lambda b: b.y0)
    assert bottom.y1 <= middle.y0 + 0.5 and middle.y1 <= top.y0 + 0.5  # pixels


def test_given_axes_are_used(falling):
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots(1, 3)
    assert plot.fsc_curves({"a": falling}, ax=axes[0]) is axes[0]
    assert plot.convergence({"cost": [1.0, 2.0]}, ax=axes[1]) is axes[1]
    axes = Figure().subplots(1, 3)
    panels = plot.slices(np.ones((4, 4, 4)), pixel_size=1.0, axes=list(axes))
    assert panels[2] is axes[2]


def test_slices_show_the_central_planes(rng):
    volume = rng.standard_normal((8, 10, 13))
    panels = plot.slices(volume, pixel_size=2.0, title="map")
    assert panels.shape == (3,)
    expected = [volume[4], volume[:, 5], volume[:, :, 6]]
    for ax, cut in zip(panels, expected, strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), cut)
        assert ax.images[0].get_clim() == panels[0].images[0].get_clim()
    # 30 % of the shorter side of 10 voxels of 2 A is 6 A: a bar of 5 A, 2.5 voxels
    assert [t.get_text() for t in panels[0].texts] == ["5 Å"]
    assert panels[0].patches[0].get_width() == pytest.approx(2.5)
    bar = plot.slices(volume, pixel_size=2.0, scale_bar=8)[0]
    assert (bar.texts[0].get_text(), bar.patches[0].get_width()) == ("8 Å", 4.0)
    with pytest.raises(ValueError, match="three axes"):
        plot.slices(volume[0], pixel_size=1.0)


def test_slices_of_a_long_box_share_one_scale():
    panels = plot.slices(np.zeros((84, 68, 90)), pixel_size=1.0)
    panels[0].figure.canvas.draw()
    scales = []
    for ax in panels:
        ax.apply_aspect()
        scales.append(ax.get_window_extent().width / np.ptp(ax.get_xlim()))
    assert max(scales) / min(scales) == pytest.approx(1, abs=0.02)


def test_convergence():
    history = {"cost": [10.0, 1.0, 0.1], "step": [1.0, 1.0, 0.0], "other": [1.0]}
    ax = plot.convergence(history, ["cost"])
    assert ax.get_yscale() == "log" and ax.get_ylabel() == "cost"
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [1, 2, 3])
    both = plot.convergence(history, ["cost", "step"])
    assert both.get_yscale() == "linear"
    assert [t.get_text() for t in both.get_legend().get_texts()] == ["cost", "step"]
    with pytest.raises(ValueError, match=r"\['gap'\].*'cost'"):
        plot.convergence(history, ["gap"])


def test_lcurve():
    trials = [{"lam": lam, "misfit": 10.0 + lam, "penalty": 4 / lam} for lam in (4.0, 1.0, 2.0)]
    ax = plot.lcurve(trials, chosen=2.0)
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[11, 4], [12, 2], [14, 1]])
    np.testing.assert_allclose(ax.lines[1].get_xydata(), [[12, 2]])
    assert ax.get_yscale() == "log" and {t.get_text() for t in ax.texts} == {"1", "2", "4"}
    with pytest.raises(ValueError, match="which a denoiser has not"):
        plot.lcurve([{"lam": 1.0, "misfit": 1.0, "penalty": None}])


def test_projections_read_only_what_they_show(rng):
    class Lazy:
        shape = (1000, 6, 8)
        dtype = np.dtype(np.float32)

        def __getitem__(self, index):
            assert index == slice(None, 5)
            return images

    images = rng.standard_normal((5, 6, 8)).astype(np.float32)
    grid = plot.projections(Lazy(), 5)
    assert grid.shape == (5,)
    np.testing.assert_array_equal(grid[3].images[0].get_array(), images[3])
    assert len(grid[0].figure.axes) == 5  # the empty place of the 2 x 3 montage is removed
    assert [ax.get_title() for ax in plot.projections(images, 2, labels=["a", "b"])] == ["a", "b"]
    with pytest.raises(ValueError, match="count, height, width"):
        plot.projections(images[0])
    with pytest.raises(ValueError, match="no images"):
        plot.projections(images[:0])


def test_orientations_are_flat_for_uniform_views(rng):
    poses = Poses(random_rotations(6000, rng=rng))
    ax = plot.orientations(poses, bins=10)
    counts = np.asarray(ax.collections[0].get_array())
    assert counts.sum() == 6000 and counts.size == 50
    # equal areas: 120 views per bin, 5 Poisson standard deviations
    assert np.abs(counts - 120).max() < 5 * np.sqrt(120)
    # tilt 10 and rot 100 lands in the top row and the bin of 72 to 108 degrees
    one = plot.orientations(Poses.from_euler_deg([100.0], [10.0], [0.0]), bins=10)
    np.testing.assert_array_equal(
        np.argwhere(np.asarray(one.collections[0].get_array()).reshape(5, 10)), [[4, 7]]
    )


def test_ctf_curve():
    ctf = CTF([15000.0, 20000.0], [15000.0, 18000.0], 0.3, 300.0, 2.7, 0.1)
    ax = plot.ctf_curve(ctf, pixel_size=1.5)
    s, values = ax.lines[0].get_data()
    assert s[0] == 0 and s[-1] == pytest.approx(1 / 3)
    assert values[0] == pytest.approx(0.1)
    np.testing.assert_allclose(values, ctf[[0]](s, 0 * s)[0], atol=1e-9)
    two = plot.ctf_curve(ctf, pixel_size=1.5, index=1)
    assert [t.get_text() for t in two.get_legend().get_texts()] == ["defocus 2.000 µm", "defocus 1.800 µm"]
    s, along_v = two.lines[1].get_data()
    np.testing.assert_allclose(along_v, CTF(18000.0, 18000.0, 0.0, 300.0, 2.7, 0.1)(s, 0 * s)[0], atol=1e-9)


def test_save_writes_arrays_of_axes_and_nothing_half(tmp_path, rng):
    panels = plot.slices(rng.standard_normal((5, 5, 5)), pixel_size=1.0)
    plot.save(panels, tmp_path / "slices.png")
    before = (tmp_path / "slices.png").read_bytes()
    with pytest.raises(ValueError, match="nonsense"):
        plot.save(panels, tmp_path / "slices.nonsense")
    assert (tmp_path / "slices.png").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["slices.png"]


def test_projections_of_a_map(rng):
    volume = rng.standard_normal((4, 6, 5))
    panels = plot.map_projections(volume, pixel_size=2.0)
    for ax, k in zip(panels, range(3), strict=True):
        np.testing.assert_allclose(ax.images[0].get_array(), 2.0 * volume.sum(axis=k))
        assert ax.images[0].get_clim() == panels[0].images[0].get_clim()
    assert [ax.get_title() for ax in panels] == ["along z", "along y", "along x"]
    with pytest.raises(ValueError, match="three axes"):
        plot.map_projections(volume[0], pixel_size=1.0)


def coloured_noise(rng, shape):
    """Noise whose amplitude falls with frequency by a factor of about ten."""
    fy, fx = np.fft.fftfreq(shape[1])[:, None], np.fft.rfftfreq(shape[2])
    return np.fft.irfft2(np.fft.rfft2(rng.standard_normal(shape)) / (0.05 + np.hypot(fy, fx)), s=shape[1:])


@pytest.mark.parametrize("side", [(32, 32), (31, 33), (24, 30)])
def test_residuals_of_the_right_model_are_white(rng, side):
    predicted = np.zeros((40, *side))
    predicted[:, 8:16, 8:16] = 5.0
    axes = plot.residuals(predicted + coloured_noise(rng, predicted.shape), predicted, 40)
    assert axes.shape == (40, 3)
    shown = np.array([row[2].images[0].get_array() for row in axes])
    assert shown.var() == pytest.approx(1, abs=0.02)  # the mean of shells, each of variance 1
    power = (np.abs(np.fft.fft2(shown)) ** 2).mean(axis=0) / (side[0] * side[1])
    low = np.hypot(np.fft.fftfreq(side[0])[:, None], np.fft.fftfreq(side[1])) < 0.2
    # 40 images, at least 100 coefficients (in conjugate pairs) in each part
    assert power[low].mean() == pytest.approx(1, abs=0.1) and power[~low].mean() == pytest.approx(1, abs=0.1)
    matches = [float(row[2].get_xlabel().split()[1]) for row in axes]
    assert abs(np.mean(matches)) < 5 / np.sqrt(40 * side[0] * side[1])
    assert axes[0, 2].images[0].get_clim() == (-3, 3)
    np.testing.assert_array_equal(axes[3, 1].images[0].get_array(), predicted[3])


def test_residuals_of_a_weak_model_show_it(rng):
    predicted = np.zeros((20, 32, 32))
    for i, (y, x) in enumerate(rng.integers(4, 20, (20, 2))):
        predicted[i, y : y + 8, x : x + 8] = 1.0
    axes = plot.residuals(2 * predicted + 0.3 * rng.standard_normal(predicted.shape), predicted, 20)
    matches = [float(row[2].get_xlabel().split()[1]) for row in axes]
    assert min(matches) > 0.1


def test_residuals_of_nothing_and_of_wrong_shapes():
    same = np.ones((2, 8, 8))
    axes = plot.residuals(same, same, labels=["a", "b"])
    assert not axes[0, 2].images[0].get_array().any() and axes[1, 0].get_ylabel() == "b"
    with pytest.raises(ValueError, match=r"\(2, 8, 8\) and \(2, 8, 9\)"):
        plot.residuals(same, np.ones((2, 8, 9)))


def astigmatic():
    return CTF([14000.0, 12000.0], [10000.0, 12000.0], [0.5, 0.0], 300.0, 2.7, 0.1)


@pytest.mark.parametrize("box", [64, 65])
def test_ctf_image(box):
    ctf = astigmatic()
    ax = plot.ctf_image(ctf, pixel_size=1.5, box=box)
    values = ax.images[0].get_array()
    assert values[box // 2, box // 2] == pytest.approx(0.1)
    s = np.fft.fftshift(np.fft.fftfreq(box, 1.5))
    left, right, bottom, top = ax.images[0].get_extent()
    for iy, ix in ((box // 2, 5), (7, box // 2), (10, 20)):
        # the middle of a pixel, by the extent of the image
        x = left + (ix + 0.5) * (right - left) / box
        y = bottom + (iy + 0.5) * (top - bottom) / box
        assert (x, y) == pytest.approx((s[ix], s[iy]))
        assert values[iy, ix] == pytest.approx(float(ctf[[0]](x, y)[0]))
    assert [t.get_text() for t in ax.texts] == ["9 Å", "4.5 Å", "3 Å"]
    again = plot.ctf_image(ctf, pixel_size=1.5, box=box, index=1).images[0].get_array()
    assert not np.allclose(again, values)


def test_thon_rings_agree_with_their_ctf_and_no_other(rng):
    """Noise through an astigmatic CTF: the rings of the data go on in those of the right CTF."""
    ctf, side, size = astigmatic(), 1024, 1.5
    fy, fx = np.fft.fftfreq(side, size)[:, None], np.fft.rfftfreq(side, size)
    image = np.fft.irfft2(
        np.fft.rfft2(rng.standard_normal((side, side))) * ctf[[0]](fx, fy)[0], s=(side, side)
    )
    image += 0.3 * rng.standard_normal(image.shape)
    alone = plot.thon_rings(image, pixel_size=size, box=128).images[0].get_array()
    s = np.fft.fftshift(np.fft.fftfreq(128, size))
    ring = (np.hypot(s[:, None], s) > 0.03) & (np.hypot(s[:, None], s) < 0.25)

    def match(index):
        return np.corrcoef(alone[ring], ctf[[index]](s[None, :], s[:, None], power=2)[0][ring])[0, 1]

    turned = CTF(14000.0, 10000.0, 0.5 + np.pi / 2, 300.0, 2.7, 0.1)(s[None, :], s[:, None], power=2)[0]
    assert match(0) > 0.6 and match(1) < 0.4 and np.corrcoef(alone[ring], turned[ring])[0, 1] < 0.3
    ax = plot.thon_rings(image, pixel_size=size, box=128, ctf=ctf)
    shown = ax.images[0].get_array()
    np.testing.assert_array_equal(shown[:, :64], alone[:, :64])
    np.testing.assert_allclose(shown[:, 64:], ctf[[0]](s[None, 64:], s[:, None], power=2)[0])
    with pytest.raises(ValueError, match="squares of 1100 pixels"):
        plot.thon_rings(image, pixel_size=size, box=1100)
