"""Maps from tilt series with missing pixels: every method on one small cell, and what is refused."""

import numpy as np
import pytest

from invcryo.backend import norm
from invcryo.operators import Gradient
from invcryo.stet import add_poisson_noise, hold_out, image_sampling, reconstruction
from invcryo.stet.reconstruction import (
    METHODS,
    _search,
    inpaint,
    measured,
    reconstruct_series,
    series_model,
)
from invcryo.studies.simulated_series import simulated_cell
from invcryo.window import KaiserBessel

SHAPE, ANGLES = (12, 32, 32), np.deg2rad(np.arange(-66, 67, 6.0))
WINDOW = KaiserBessel()


@pytest.fixture(scope="module")
def cell():
    """A shell with a core, its images with a little noise on another window than the reconstruction's."""
    z, y, x = np.meshgrid(*(np.arange(n) - n // 2 for n in SHAPE), indexing="ij")
    d = np.sqrt((1.6 * z) ** 2 + (y - 2) ** 2 + (x + 1) ** 2)
    c = np.where((d < 9) & (d > 6), 1.0, np.where(d < 3, 0.6, 0.0)).astype(np.float32)
    A, place = series_model(ANGLES, SHAPE, SHAPE[1:], window=WINDOW)
    rng = np.random.default_rng(3)
    images = place.H(A(c))
    images += (0.03 * images.std() * rng.standard_normal(images.shape)).astype(np.float32)
    return images, rng.random(images.shape) < 0.3, WINDOW.synthesize(c)


def error(volume, truth):
    return norm(volume - truth) / norm(truth)


def test_the_priors_beat_the_baselines(cell):
    """30 % of the pixels, all on one window. The bounds lie between the methods' errors with other seeds."""
    images, mask, truth = cell
    found = {
        m: reconstruct_series(
            images, ANGLES, mask=mask, method=m, thickness=12, window=KaiserBessel.wide(), progress=False
        )
        for m in METHODS
    }
    errors = {m: error(r.volume, truth) for m, r in found.items()}
    assert errors["tv"] < 0.35 and errors["wavelet"] < 0.45
    for baseline in ("two-step", "zero-fill", "sirt", "wbp"):
        assert errors["tv"] < errors[baseline]
    assert errors["zero-fill"] > errors["wbp"]
    for m, r in found.items():
        assert r.volume.shape == SHAPE and r.volume.dtype == np.float32 and r.method == m and not r.notes
        assert (r.lam is None) == (m in ("zero-fill", "sirt", "wbp"))
        assert r.info["views"] == len(ANGLES) and r.info["fraction"] == pytest.approx(0.3, abs=0.01)
    trials = found["tv"].info["trials"]
    best = min(trials, key=lambda t: t["held_out"])
    assert trials[0] != best != trials[-1] and best["lam"] / 4 < found["tv"].lam < best["lam"] * 4
    assert found["tv"].coefficients.min() > -0.05  # ADMM's map meets the constraint up to its tolerance


def test_nan_is_a_mask_and_the_seed_decides(cell):
    images, mask, _ = cell
    one = reconstruct_series(images, ANGLES, mask=mask, lam=2.0, thickness=12, progress=False)
    two = reconstruct_series(np.where(mask, images, np.nan), ANGLES, lam=2.0, thickness=12, progress=False)
    np.testing.assert_array_equal(one.volume, two.volume)
    assert one.lam == 2.0 and "trials" not in one.info


def stated_cost(images, mask):
    """What "tv" minimises over coefficients, with lambda = 2, written out."""
    A, place = series_model(ANGLES, SHAPE, SHAPE[1:])
    L = Gradient(SHAPE)

    def cost(c):
        c = np.maximum(c, 0)
        misfit = (place.H(A(c)) - images)[mask].astype(float)
        return 0.5 * (misfit @ misfit) + 2.0 * np.sqrt((L(c).astype(float) ** 2).sum(axis=0)).sum()

    return cost


def test_minimum_of_the_stated_cost(cell):
    """The objective at the map is below that at maps beside it."""
    images, mask, _ = cell
    r = reconstruct_series(
        images, ANGLES, mask=mask, lam=2.0, thickness=12, tolerance=1e-4, max_iter=400, progress=False
    )
    cost = stated_cost(images, mask)
    best = cost(r.coefficients)
    rng = np.random.default_rng(0)
    for _ in range(5):
        step = rng.standard_normal(SHAPE).astype(np.float32)
        assert cost(r.coefficients + 0.02 * step) > best
    assert cost(1.01 * r.coefficients) > best and cost(0.99 * r.coefficients) > best


def test_split_images_have_the_same_minimum(cell):
    images, mask, _ = cell
    options = {
        "mask": mask,
        "lam": 2.0,
        "thickness": 12,
        "tolerance": 3e-4,
        "max_iter": 1000,
        "progress": False,
    }
    plain = reconstruct_series(images, ANGLES, **options)
    split = reconstruct_series(images, ANGLES, split_images=True, **options)
    assert plain.info["stopped_by"] == split.info["stopped_by"] == "gap_below(0.0003)"
    assert error(split.volume, plain.volume) < 0.01 < error(0.9 * plain.volume, plain.volume)
    cost = stated_cost(images, mask)
    assert cost(split.coefficients) == pytest.approx(cost(plain.coefficients), rel=1e-3)


@pytest.mark.filterwarnings("ignore:.*stopped at max_iter")
@pytest.mark.parametrize("axis, options", [("x", {}), ("z", {}), ("y", {"in_plane_angle": 0.1})])
def test_other_axes_and_shifts(axis, options, rng):
    """Filtered back-projection and total variation put an object where it is, about any axis."""
    shape = (10, 22, 22) if axis != "z" else (22, 10, 22)
    image = (22, 22)
    c = np.zeros(shape, np.float32)
    c[tuple(n // 2 + k for n, k in zip(shape, (2, -3, 4), strict=True))] = 1
    shifts = rng.uniform(-2, 2, (len(ANGLES), 2))
    A, place = series_model(ANGLES, shape, image, window=WINDOW, axis=axis, shifts=shifts, **options)
    images = place.H(A(c))
    for method in ("tv", "wbp"):
        r = reconstruct_series(
            images, ANGLES, method=method, lam=0.01, thickness=10, axis=axis, shifts=shifts, max_iter=30,
            progress=False, **options,
        )  # fmt: skip
        assert r.volume.shape == shape
        peak = np.array(np.unravel_index(np.argmax(r.volume), shape)) - [n // 2 for n in shape]
        np.testing.assert_array_equal(peak, (2, -3, 4))


def test_what_leaves_the_images_does_not_come_back(rng):
    """A slab reaches beyond its images when it is tilted: none of it may appear on the other side."""
    shape = (12, 8, 32)
    c = np.zeros(shape, np.float32)
    c[-2, :, -2:] = 1
    A, place = series_model(np.array([-0.4, 0.0, 0.4]), shape, shape[1:], window=WINDOW)
    images = place.H(A(c))
    assert A.image_shape[1] > 32 and A.image_shape[0] == 8
    assert np.abs(images[:, :, :8]).max() < 0.01 * images.max()


def test_inpainting_keeps_what_was_measured(rng):
    y, x = np.mgrid[:24, :24]
    image = np.where(np.hypot(y - 12, x - 10) < 6, 2.0, 0.5).astype(np.float32)[None]
    mask = rng.random(image.shape) < 0.5
    filled, lam = inpaint(np.where(mask, image, 0), mask, progress=False)
    assert norm(filled - image) < 0.15 * norm(image) and lam > 0
    assert norm((filled - image)[mask]) < 0.1 * norm(image)
    same, _ = inpaint(image, np.ones_like(mask), 0.1, progress=False)
    np.testing.assert_array_equal(same, image)


def test_without_noise():
    """Lambda neither runs away nor costs the map: near the best of those that were given by hand."""
    z, y, x = np.meshgrid(*(np.arange(n) - n // 2 for n in SHAPE), indexing="ij")
    ball = (np.sqrt((1.6 * z) ** 2 + (y - 2) ** 2 + (x + 1) ** 2) < 8).astype(np.float32)
    A, place = series_model(ANGLES, SHAPE, SHAPE[1:], window=WINDOW)
    images, truth = place.H(A(ball)), WINDOW.synthesize(ball)
    options = {"thickness": 12, "progress": False}
    found = reconstruct_series(images, ANGLES, **options)
    by_hand = [
        error(reconstruct_series(images, ANGLES, lam=lam, **options).volume, truth)
        for lam in (found.lam / 16, found.lam / 4, found.lam, 4 * found.lam, 16 * found.lam)
    ]
    # held-out pixels are predicted to 0.2 % by the three smallest of the five: they can hardly tell them apart
    assert error(found.volume, truth) < 0.015 and error(found.volume, truth) < 2 * min(by_hand)
    assert len(found.info["trials"]) <= 10 and not found.notes


def test_more_measured_pixels_are_worth_more():
    """With little noise too it goes on to the minimum, where all pixels tell more than half of them."""
    series, cell = simulated_cell((24, 32, 32), angles_deg=np.arange(-60.0, 61.0, 4.0))
    noisy = add_poisson_noise(series, 100.0, rng=0)
    half = image_sampling(series.images.shape, 0.5, rng=0).apply(noisy)
    options = {"thickness": series.thickness, "axis": series.axis, "progress": False}
    a = reconstruct_series(half.images, half.angles, mask=half.mask, **options)
    b = reconstruct_series(noisy.images, noisy.angles, **options)
    assert error(b.volume, cell) < error(a.volume, cell)
    exact = reconstruct_series(
        noisy.images, noisy.angles, lam=b.lam, **options | {"tolerance": 1e-4, "max_iter": 500}
    )
    assert norm(b.volume - exact.volume) < 0.3 * norm(exact.volume - cell)


@pytest.mark.filterwarnings("ignore:.*stopped at max_iter")
def test_a_search_that_finds_no_end_is_flagged(cell, monkeypatch, caplog):
    images, mask, _ = cell
    monkeypatch.setattr(reconstruction, "_TRIALS", 2)
    r = reconstruct_series(images, ANGLES, mask=mask, thickness=12, max_iter=10, progress=False)
    assert "the search ended at" in r.notes[0] and "the search ended at" in caplog.text


def test_the_search_finds_the_vertex():
    for place in (-3.2, 0.4, 2.7):
        lam, trials = _search(lambda v, p=place: (v or 1.0, 1.0 + (np.log(v or 1.0) / np.log(4) - p) ** 2))
        assert lam == pytest.approx(4**place) and len(trials) <= 10


@pytest.mark.filterwarnings("ignore:.*stopped at max_iter")
def test_two_views_are_computed_and_flagged(cell):
    images, mask, _ = cell
    with pytest.warns(RuntimeWarning, match="2 views"):
        r = reconstruct_series(
            images[[3, 19]],
            ANGLES[[3, 19]],
            mask=mask[[3, 19]],
            lam=1.0,
            thickness=12,
            max_iter=5,
            progress=False,
        )
    assert "2 views" in r.notes[0] and np.isfinite(r.volume).all()


def bad(cell, **changes):
    images, mask, _ = cell
    options = {"mask": mask, "lam": 1.0, "thickness": 12, "progress": False} | changes
    return reconstruct_series(options.pop("images", images), options.pop("angles", ANGLES), **options)


def test_bad_input_is_refused_by_name(cell):
    images, mask, _ = cell
    blind = mask.copy()
    blind[4] = False
    broken = images.copy()
    broken[2][mask[2]] = np.nan
    dead = images.copy()
    dead[7] = np.nan
    for message, changes in {
        r"no pixel of image 4 .*leave these": {"mask": blind},
        r"image 2 .* holds NaN .* count as measured": {"images": broken},
        r"no pixel of image 7": {"images": dead, "mask": None},
        r"thickness .* positive number": {"thickness": -3},
        r"one size, got \(31, 32\), \(32, 32\)": {"images": [*images[:-1], images[-1][1:]]},
        r"23 images but 22 angles": {"angles": ANGLES[1:]},
        r"radians here; .*np\.deg2rad": {"angles": np.rad2deg(ANGLES)},
        r"'x', 'y' or 'z'": {"axis": "tilt"},
        r"unknown method 'art'": {"method": "art"},
        r"a number or 'auto'": {"lam": "best"},
        r"lam, the weight": {"lam": -1.0},
        r"the mask has shape": {"mask": mask[:3]},
        r"\(n, height, width\)": {"images": images[0]},
    }.items():
        with pytest.raises(ValueError, match=message):
            bad(cell, **changes)
    with pytest.raises(TypeError, match="must be boolean"):
        bad(cell, mask=mask.astype(float))
    few = np.zeros_like(mask)
    few[:, 5, 5:8] = True
    with pytest.raises(ValueError, match=r"only 3 measured pixels.*give lam"):
        bad(cell, mask=few, lam="auto")
    with pytest.raises(ValueError, match="infinite"):
        measured(np.full((1, 4, 4), np.inf))
    fitted, held = hold_out(mask, 0.1)
    assert not (fitted & held).any()
