"""Masks and doses, the analysis of sampling, and figures of image quality."""

import numpy as np
import pytest

import invcryo as ic
from invcryo.io.tilt_series import TiltSeries
from invcryo.metrics.image_quality import affine_grey_fit, elongation, expected_elongation, ssim
from invcryo.simulate.cell import cell_phantom
from invcryo.stet import (
    add_poisson_noise,
    held_out_error,
    hold_out,
    image_sampling,
    line_integrals,
    load_sampling,
    saxton_angles,
    sparse_approximation,
    sparsity,
    tilt_sampling,
    tpsf,
)
from invcryo.stet.sampling import KINDS

FRACTIONS = (0.5, 0.3, 0.2, 0.1, 0.03)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fraction", [*FRACTIONS, 1.0])
def test_counts_are_exact(kind, fraction):
    made = image_sampling((5, 37, 50), fraction, kind=kind, rng=3)
    assert (made.mask.sum(axis=(1, 2)) == round(fraction * 37 * 50)).all()
    again = image_sampling((5, 37, 50), fraction, kind=kind, rng=made.seed)
    assert (again.mask == made.mask).all() and made.seed == 3


@pytest.mark.parametrize("kind", ["pixel", "block", "line"])
def test_tilts_are_independent(kind):
    """Two tilts share as many pixels as chance gives them."""
    n, f = 40, 0.2
    mask = image_sampling((n, 40, 40), f, kind=kind, rng=1).mask.reshape(n, -1).astype(float)
    shared = (mask @ mask.T)[np.triu_indices(n, 1)] / 1600
    assert shared.mean() == pytest.approx(f * f, rel=0.03)
    # and every pixel has the same chance, but for a block cut short or the rows of a band
    assert abs(mask.mean(axis=0) - f).max() < 7 * np.sqrt(f * (1 - f) / n)
    same = image_sampling((4, 40, 40), f, kind=kind, per_tilt=False).mask
    assert (same == same[0]).all()


def test_shapes_of_the_kinds():
    blocks = image_sampling((1, 64, 64), 0.25, kind="block", size=8).mask[0]
    # neighbours are measured together inside a block: 7 of 8 pairs
    pairs = (blocks[:, 1:] & blocks[:, :-1]).sum() / blocks.sum()
    assert 0.8 < pairs < 0.95
    lines = image_sampling((1, 64, 64), 0.25, kind="line", jitter=2).mask[0]
    assert (lines.sum(axis=0) == 16).all()
    straight = image_sampling((1, 64, 64), 0.25, kind="line", jitter=0).mask[0]
    assert (straight.sum(axis=1) % 64 == 0).all()
    grid = image_sampling((2, 64, 64), 1 / 16, kind="grid").mask
    assert (grid[0] == grid[1]).all() and set(np.diff(np.flatnonzero(grid[0].any(axis=1)))) == {4}
    thin = image_sampling((1, 1, 64), 0.25, kind="grid").mask[0, 0]
    assert set(np.diff(np.flatnonzero(thin))) == {4}


def test_tilts_kept():
    angles = np.arange(-60, 61, 2.0)
    assert [len(tilt_sampling(angles, f).views) for f in FRACTIONS] == [30, 18, 12, 6, 2]
    few = tilt_sampling(angles, 0.03)
    assert "only 2 of 61 tilts" in few.notes[0] and few.fraction == pytest.approx(2 / 61)
    assert not tilt_sampling(angles, 0.1).notes
    half = tilt_sampling(angles, 0.5, image_shape=(4, 5))
    assert set(np.diff(half.views)) <= {2, 3} and half.measured == 30 * 20
    # by order of the angles, not of the file
    rng = np.random.default_rng(0)
    mixed = rng.permutation(angles)
    assert set(mixed[tilt_sampling(mixed, 0.2).views]) == set(angles[tilt_sampling(angles, 0.2).views])


def test_save_and_load(tmp_path):
    for made in (
        image_sampling((4, 9, 8), 0.3, kind="line", rng=5),
        tilt_sampling(np.arange(6), 0.5, image_shape=(3, 3)),
    ):
        made.save(tmp_path / "m.npz")
        again = load_sampling(tmp_path / "m.npz")
        assert again.describe() == made.describe() and (again.full_mask() == made.full_mask()).all()
        assert (again.mask is None) == (made.mask is None)
    with pytest.raises(ValueError, match=r"\.npz"):
        made.save(tmp_path / "m.mrc")


def test_apply_and_refuse():
    series = TiltSeries(np.ones((6, 9, 8), np.float32), np.linspace(-1, 1, 6))
    part = image_sampling((6, 9, 8), 0.5).apply(series)
    assert part.fraction == pytest.approx(0.5)
    twice = image_sampling((6, 9, 8), 0.5, rng=9).apply(part)
    assert not (twice.mask & ~part.mask).any() and twice.fraction < 0.4
    assert len(tilt_sampling(series.angles, 0.5, image_shape=(9, 8)).apply(series)) == 3
    with pytest.raises(ValueError, match="drawn for images"):
        image_sampling((6, 9, 9), 0.5).apply(series)
    for fraction in (0.0, -0.1, 1.5, 10, np.nan):
        with pytest.raises(ValueError, match=r"10 % is 0\.1"):
            image_sampling((6, 9, 8), fraction)
        with pytest.raises(ValueError, match=r"10 % is 0\.1"):
            tilt_sampling(series.angles, fraction)
    with pytest.raises(ValueError, match="not one pixel"):
        image_sampling((6, 9, 8), 0.001)
    with pytest.raises(ValueError, match="unknown kind"):
        image_sampling((6, 9, 8), 0.1, kind="spiral")


@pytest.mark.parametrize("equal_total", [False, True])
def test_poisson_noise_is_that_of_the_dose(equal_total):
    """Variance of the counts over their mean is 1, in the units of counts."""
    ramp = np.tile(np.linspace(0.5, 1.5, 100, dtype=np.float32), (8, 100, 1))
    series = TiltSeries(ramp, np.linspace(-1, 1, 8))
    part = image_sampling(ramp.shape, 0.25, rng=2).apply(series)
    noisy = add_poisson_noise(part, 40.0, equal_total=equal_total, rng=4)
    electrons = 160.0 if equal_total else 40.0
    mean = ramp[part.mask].mean(dtype=float)
    gain = electrons / mean
    known = part.mask
    counts = noisy.images[known] * gain
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-3)
    expected = ramp[known] * gain
    z = (counts - expected) / np.sqrt(expected)
    assert abs(z.mean()) < 5 / np.sqrt(z.size) and z.var() == pytest.approx(1, abs=0.05)
    assert not noisy.images[~known].any()
    with pytest.raises(ValueError, match="negative values"):
        add_poisson_noise(series.replace(images=ramp - 1), 10)
    with pytest.raises(ValueError, match="positive number per pixel"):
        add_poisson_noise(series, 0)


def test_saxton():
    """Thickness of the slab over the step is the same throughout; 70 and 2 degrees give about 100 tilts."""
    angles = saxton_angles(70, 2)
    assert 98 <= len(angles) <= 101 and angles.max() <= 70 and (angles == -angles[::-1]).all()
    upper = np.deg2rad(angles[angles >= 0])
    np.testing.assert_allclose(np.sin(np.diff(upper)) / np.cos(upper[:-1]), np.sin(np.deg2rad(2)), rtol=1e-9)
    with pytest.raises(ValueError, match="between 0 and 90"):
        saxton_angles(90, 2)


# -- analysis -----------------------------------------------------------------------------------------------------


def test_sparse_approximation():
    cell = cell_phantom((32, 64, 64))
    five, ten = sparsity(cell)
    assert five["coefficients"] == round(0.05 * cell.size) and 0.8 < five["energy"] < ten["energy"] < 1
    approximation = sparse_approximation(cell, 0.1)
    error = np.sqrt(np.square(approximation - cell, dtype=float).mean()) / cell.std(dtype=float)
    # the mean takes one coefficient per coarse block with it
    assert error == pytest.approx(ten["relative_error"], rel=0.05)
    np.testing.assert_allclose(sparse_approximation(cell, 1.0), cell, atol=1e-6)
    noise = np.random.default_rng(0).standard_normal(cell.shape).astype(np.float32)
    assert sparsity(noise)[1]["energy"] < 0.5
    with pytest.raises(ValueError, match="constant"):
        sparsity(np.ones((8, 8)))


def test_tpsf_tells_random_from_uniform():
    angles = np.deg2rad(np.arange(-88, 91, 4.0))
    images = (len(angles), 4, 32)
    series = TiltSeries(np.zeros(images, np.float32), angles)
    A = ic.Projector(series.poses(), ic.KaiserBessel(), (32, 4, 32), images[1:])
    transform = ic.Wavelet((32, 4, 32), "haar", 2)
    index = (11, 0, 3)  # of a band of details

    def ramp(y):  # filtered back-projection
        return A.adjoint(np.fft.irfft(np.fft.rfft(y) * np.fft.rfftfreq(32) * 2, 32).astype(np.float32))

    full = tpsf(A, ramp, transform, index, np.ones(images, bool))
    assert full.peak_sidelobe < 1e-5
    random = tpsf(A, ramp, transform, index, image_sampling(images, 0.25, rng=1))
    regular = tpsf(A, ramp, transform, index, image_sampling(images, 0.25, kind="grid"))
    tilts = tpsf(A, ramp, transform, index, tilt_sampling(angles, 0.25, image_shape=(4, 32)))
    assert random.peak_sidelobe < 0.6 * regular.peak_sidelobe
    for uniform in (regular, tilts):
        assert random.kurtosis < 0.5 * uniform.kurtosis
    with pytest.raises(ValueError, match="the projector makes"):
        tpsf(A, ramp, transform, index, np.ones((3, 4, 32), bool))


def test_hold_out():
    mask = image_sampling((4, 20, 20), 0.3).mask
    fit, held = hold_out(mask, 0.1, rng=0)
    assert not (fit & held).any() and ((fit | held) == mask).all()
    assert (held.sum(axis=(1, 2)) == 12).all()
    images = np.random.default_rng(1).standard_normal(mask.shape)
    assert held_out_error(images, images, held) == 0
    assert held_out_error(images, np.full(images.shape, images[held].mean()), held) == pytest.approx(1)
    with pytest.raises(ValueError, match="leaves none"):
        hold_out(mask, 0.001)


# -- figures of quality -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 33), (20, 24, 19)])
def test_ssim_is_that_of_scikit_image(shape, rng):
    metrics = pytest.importorskip("skimage.metrics")
    a = rng.standard_normal(shape)
    b = a + 0.5 * rng.standard_normal(shape)
    theirs = metrics.structural_similarity(
        a, b, data_range=4.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(a, b, data_range=4.0) == pytest.approx(theirs, rel=1e-12)


def test_ssim_by_hand(rng):
    """One window: the formula with the moments written out."""
    a, b = rng.standard_normal((2, 11, 11))
    r = np.arange(11) - 5
    w = np.exp(-0.5 * (r / 1.5) ** 2)
    w = np.outer(w, w) / np.outer(w, w).sum()
    ma, mb = (w * a).sum(), (w * b).sum()
    va, vb, vab = (w * a * a).sum() - ma**2, (w * b * b).sum() - mb**2, (w * a * b).sum() - ma * mb
    c1, c2 = 0.03**2, 0.09**2
    expected = (2 * ma * mb + c1) * (2 * vab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    assert ssim(a, b, data_range=3.0) == pytest.approx(expected)
    assert ssim(a, a, data_range=3.0) == pytest.approx(1)
    with pytest.raises(ValueError, match="more than 10 pixels"):
        ssim(a[:9], b[:9], data_range=1.0)
    with pytest.raises(ValueError, match="data_range"):
        ssim(a, b, data_range=0.0)


def test_elongation(rng):
    z, y, x = np.ogrid[-24:24, -24:24, -24:24]
    blob = np.exp(-0.5 * ((z / 4.5) ** 2 + (y / 3) ** 2 + (x / 3) ** 2))
    assert elongation(blob) == pytest.approx(1.5, rel=1e-3)
    assert elongation(blob, reference=blob) == 1
    assert elongation(blob, across=0, beam=1) == pytest.approx(1 / 1.5, rel=1e-3)
    # a wedge cut out of noise without preferred direction
    f = np.fft.fftfreq(64)
    kz, kx = f[:, None, None], f[None, None, :]
    spectrum = np.fft.fftn(rng.standard_normal((64, 64, 64))) * (np.hypot(kz, kx) < 0.45)
    for limit, value in ((60, 1.55), (70, 1.31), (80, 1.13)):
        assert expected_elongation(limit) == pytest.approx(value, abs=0.005)
        seen = np.arctan2(abs(kz), abs(kx)) <= np.deg2rad(limit)
        cut = np.fft.ifftn(spectrum * seen).real
        assert elongation(cut) == pytest.approx(expected_elongation(limit), rel=0.02)
    assert expected_elongation(90) == pytest.approx(1)


def test_grey_fit(rng):
    a = rng.standard_normal((5, 6))
    np.testing.assert_allclose(affine_grey_fit(3 * a - 2, a), a)
    np.testing.assert_allclose(affine_grey_fit(np.ones((5, 6)), a), a.mean())


# -- the cell -----------------------------------------------------------------------------------------------------


def test_cell():
    small = cell_phantom((32, 64, 64), rng=1)
    assert small.dtype == np.float32 and 0 <= small.min() and 0.8 < small.max() <= 1
    assert not (small == cell_phantom((32, 64, 64), rng=2)).all()
    assert (small == cell_phantom((32, 64, 64), rng=1)).all()
    for axis in range(3):
        for end in (0, -1):
            assert small.take(end, axis).max() < 0.05
    # one cell at every size
    large = cell_phantom((48, 96, 96), rng=1)
    coarse = large.reshape(24, 2, 48, 2, 48, 2).mean(axis=(1, 3, 5))
    assert np.corrcoef(coarse.ravel(), cell_phantom((24, 48, 48), rng=1).ravel())[0, 1] > 0.7
    assert cell_phantom((25, 40, 31)).shape == (25, 40, 31)
    with pytest.raises(ValueError, match="at least 24"):
        cell_phantom((16, 64, 64))


# -- intensities --------------------------------------------------------------------------------------------------


def test_line_integrals(rng):
    """A dark field, a bright one and its logarithm of the same matter give the same integrals."""
    matter = np.zeros((3, 40, 40), np.float32)
    matter[:, 10:30, 12:28] = rng.random((3, 20, 16))
    angles = np.array([-0.5, 0.0, 0.5])
    levels = np.array([500.0, 510.0, 520.0], np.float32)[:, None, None]
    bright = TiltSeries(matter + levels, angles)
    dark = TiltSeries(levels - matter, angles, contrast="dark")
    absorbed = TiltSeries(levels * np.exp(-matter), angles, contrast="dark")
    for series, options in ((bright, {}), (dark, {}), (absorbed, {"logarithm": True})):
        made = line_integrals(series, **options)
        np.testing.assert_allclose(made.images, matter, atol=2e-4)
        assert made.contrast == "bright" and "background (median of the border, 510)" in made.notes[-1]
    part = image_sampling(matter.shape, 0.5).apply(bright)
    made = line_integrals(part)
    np.testing.assert_allclose(made.images, np.where(part.mask, matter, 0), atol=2e-4)
    assert line_integrals(bright, background=500).images[1].min() == pytest.approx(10)
    with pytest.raises(ValueError, match="positive counts"):
        line_integrals(dark.replace(images=dark.images - 600), logarithm=True)
    with pytest.raises(ValueError, match="contrast 'dark'"):
        line_integrals(bright, logarithm=True)
    with pytest.raises(ValueError, match="'border' or a number"):
        line_integrals(bright, background="corner")
