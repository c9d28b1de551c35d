"""Local resolution against maps whose two halves were given two resolutions, and against RELION's."""

import subprocess

import mrcfile
import numpy as np
import pytest
from scipy import fft

from invcryo.grid import frequencies
from invcryo.metrics import fsc, local_resolution, soft_sphere
from invcryo.metrics.local import _Grid, _Windows

BOX, PIXEL, FINE, COARSE = 64, 2.0, 6.0, 12.0


def two_resolutions(box=BOX, noise=0.4, seed=0):
    """Half maps whose FSC is 0.143 at FINE where x < 0 and at COARSE where x > 0.

    The signal falls off as a Gaussian in frequency over white noise, so FSC = S^2 / (S^2 + N^2) is known; the
    two sides blend over about ten voxels.
    """
    rng = np.random.default_rng(seed)
    shape = (box,) * 3
    squared = sum(f**2 for f in frequencies(shape, half=True)) / PIXEL**2
    white = fft.rfftn(rng.standard_normal(shape))
    decay = -np.log(noise**2 * 0.143 / 0.857)  # of the power, at the resolution
    fine, coarse = (fft.irfftn(white * np.exp(-decay * r**2 * squared / 2), s=shape) for r in (FINE, COARSE))
    left = 1 / (1 + np.exp((np.arange(box) - box // 2) / 2.0))
    signal = left * fine + (1 - left) * coarse
    return [(signal + noise * rng.standard_normal(shape)).astype(np.float32) for _ in range(2)]


@pytest.fixture(scope="module")
def halves():
    return two_resolutions()


@pytest.fixture(scope="module")
def found(halves):
    return local_resolution(*halves, soft_sphere((BOX,) * 3, 28, 3), pixel_size=PIXEL, rng=0)


def sides(resolution):
    """Local resolutions at x < -14 and x > 14."""
    left, right = resolution[:, :, :18], resolution[:, :, 46:]
    return left[left > 0], right[right > 0]


def test_each_side_has_its_resolution(found):
    fine, coarse = sides(found.map)
    assert np.median(fine) == pytest.approx(FINE, rel=0.03)
    assert np.median(coarse) == pytest.approx(COARSE, rel=0.06)
    # the uncertainty of one window, 1 / window in frequency, holds for nine in ten voxels
    for values, truth in ((fine, FINE), (coarse, COARSE)):
        off = np.abs(1 / values - 1 / truth)
        assert np.percentile(off, 90) < 1 / found.window
    # one figure for the whole map hides it
    assert FINE < found.whole.resolution() < 8


def test_map_and_points(found, halves):
    mask = soft_sphere((BOX,) * 3, 28, 3)
    np.testing.assert_array_equal(found.map > 0, mask > 0.5)
    assert found.map.dtype == np.float32
    assert found.window == pytest.approx(7 * found.whole.resolution())
    assert found.step == PIXEL * round(found.window / 4 / PIXEL)
    inside = mask[tuple(found.points.T)] > 0.5
    at_points = found.map[tuple(found.points[inside].T)]
    np.testing.assert_allclose(at_points, found.values[inside], rtol=1e-5)
    assert (BOX // 2,) * 3 in map(tuple, found.points)


def test_noise_is_at_the_worst():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 48, 48, 48)).astype(np.float32)
    mask = soft_sphere(a.shape, 12, 3)
    result = local_resolution(a, b, mask, pixel_size=PIXEL, window=50, worst=40, rng=0)
    assert np.median(result.values) == 40
    with pytest.raises(ValueError, match="do not correlate above"):
        local_resolution(a, b, mask, pixel_size=PIXEL, rng=0, threshold=0.9)


def test_equal_maps_reach_nyquist(rng):
    a = rng.standard_normal((32, 32, 32))
    result = local_resolution(a, a, pixel_size=PIXEL, window=32)
    np.testing.assert_allclose(result.map, 2 * PIXEL, rtol=1e-6)


def test_crossing_is_linear_between_shells():
    windows = _Windows(40.0, PIXEL)
    curve = np.ones(len(windows.frequency))
    curve[6:] = 0.0
    s = windows.frequency
    expected = 1 / (s[5] + (1 - 0.143) * (s[6] - s[5]))
    assert windows.crossing(curve, 0.143, 100.0) == pytest.approx(expected)
    assert windows.crossing(curve, 0.143, 1 / s[5]) == 1 / s[5]  # below in the first shell that counts
    curve[1] = 0.0  # a coarse shell counts only where it is finer than the worst
    assert windows.crossing(curve, 0.143, 50.0) == pytest.approx(expected)
    assert windows.crossing(np.ones_like(curve), 0.143, 50.0) == pytest.approx(1 / s[-1])


def test_window_at_the_border_sees_zeros_beyond(rng):
    """A window about a corner gives what a padded map gives."""
    a, b = rng.standard_normal((2, 24, 24, 24))
    windows = _Windows(24.0, PIXEL)
    pad = windows.side
    corner = np.array([[0, 0, 0], [23, 5, 0]])
    direct = windows.correlations((a, b), corner, None)
    padded = windows.correlations((np.pad(a, pad), np.pad(b, pad)), corner + pad, None)
    np.testing.assert_allclose(direct, padded, atol=1e-12)
    assert np.abs(direct).max() > 0.01


@pytest.mark.parametrize(("shape", "pitch"), [((20, 21, 22), 4), ((9, 9, 9), 5), ((8, 8, 8), 1)])
def test_spread_is_exact_for_linear_values(shape, pitch):
    z, y, x = np.meshgrid(*map(np.arange, shape), indexing="ij")
    grid = _Grid(np.ones(shape, bool), pitch)
    linear = 1.0 + 0.1 * z + 0.2 * y - 0.05 * x
    back = grid.spread(linear[tuple(grid.points.T)], shape)
    low, high = grid.points.min(0), grid.points.max(0)
    core = tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))
    np.testing.assert_allclose(back[core], linear[core], atol=1e-12)
    assert np.isfinite(back).all()  # beyond the outermost points too


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 10.0}, r"16 \(8 pixels\) or more"),
        ({"step": -1.0}, "step must be positive"),
        ({"threshold": 1.5}, "between 0 and 1"),
        ({"worst": 3.0}, "beyond Nyquist"),
    ],
)
def test_bad_options_are_refused(halves, options, message):
    with pytest.raises(ValueError, match=message):
        local_resolution(*halves, pixel_size=PIXEL, **{"window": 40.0, **options})
    with pytest.raises(ValueError, match=r"nowhere above 0\.5"):
        local_resolution(*halves, np.full(halves[0].shape, 0.4), pixel_size=PIXEL, window=40.0)


@pytest.mark.relion
def test_local_resolution_of_relion(tmp_path, relion, halves):
    """The same windows: a radius of 6 and an edge of 13 pixels."""
    for i, half in enumerate(halves, start=1):
        with mrcfile.new(tmp_path / f"run_half{i}_class001_unfil.mrc") as file:
            file.set_data(half)
            file.voxel_size = PIXEL
    whole = fsc(*halves, pixel_size=PIXEL).correlation
    start = BOX * PIXEL / (np.argmax(whole < 0.8) + 0.01)  # the shell where ours begin to be random
    subprocess.run(
        ["relion_postprocess", "--i", "run_half1_class001_unfil.mrc", "--angpix", str(PIXEL), "--o", "post"]
        + [
            "--locres",
            "--locres_randomize_at",
            f"{start:.4f}",
            "--locres_sampling",
            "16",
            "--locres_maskrad",
            "12.5",
            "--locres_edgwidth",
            "25",
        ],
        cwd=tmp_path,
        capture_output=True,
        check=True,
        timeout=60,
    )
    theirs = mrcfile.read(tmp_path / "post_locres.mrc")
    # the same points, then each spread over its whole window, as RELION does
    points = local_resolution(*halves, pixel_size=PIXEL, window=50, step=16, rng=0)
    sums = np.zeros((2, BOX, BOX, BOX))
    ball = np.pad(soft_sphere((39,) * 3, 6, 13), BOX)
    for (z, y, x), value in zip(points.points, points.values, strict=True):
        if np.hypot(np.hypot(z - 32, y - 32), x - 32) < 26:
            low = [BOX + 19 - c for c in (z, y, x)]
            window = ball[tuple(slice(c, c + BOX) for c in low)]
            sums += window * np.array([1 / value, 1.0])[:, None, None, None]
    ball = soft_sphere((BOX,) * 3, 24, 0) > 0
    ours = np.where(ball, sums[1] / np.maximum(sums[0], 1e-9), 0)
    assert np.corrcoef(1 / ours[ball], 1 / theirs[ball])[0, 1] > 0.95
    # its curves have shells of 1 / 128 angstrom, several for one that is independent, and the first of them
    # that is below decides: it stops earlier, by no more than one independent value, 1 / window
    for mine, other in zip(sides(ours), sides(np.where(ball, theirs, 0)), strict=True):
        assert 0 < np.median(1 / mine - 1 / other) < 1 / 50
