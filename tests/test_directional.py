"""FSC by direction and the sampling of Fourier space, against maps and views of known anisotropy."""

import itertools

import numpy as np
import pytest
from scipy import fft, integrate, optimize, special

from invcryo.data import Poses
from invcryo.grid import frequencies
from invcryo.metrics import (
    describe_views,
    directional_fsc,
    fibonacci_axes,
    fsc,
    orientation_efficiency,
    sampling_compensation,
    soft_sphere,
)
from invcryo.rotation import random_rotations
from invcryo.simulate import cone_orientations, preferred_orientations

PIXEL = 2.0


def halves(along_z, box=48, noise=0.4, fine=6.0, seed=0):
    """Half maps whose FSC is 0.143 at ``fine``, but at ``along_z`` within 40 degrees of the z axis."""
    rng = np.random.default_rng(seed)
    shape = (box,) * 3
    z, y, x = frequencies(shape, half=True)
    squared = (z**2 + y**2 + x**2) / PIXEL**2
    near = np.abs(z) > np.cos(np.deg2rad(40)) * np.sqrt(z**2 + y**2 + x**2)
    decay = -np.log(noise**2 * 0.143 / 0.857)  # of the power, at the resolution
    factor = np.exp(-decay * np.where(near, along_z, fine) ** 2 * squared / 2)
    signal = fft.irfftn(fft.rfftn(rng.standard_normal(shape)) * factor, s=shape)
    return [signal + noise * rng.standard_normal(shape) for _ in range(2)]


def test_axes_are_even():
    axes = fibonacci_axes(500)
    np.testing.assert_allclose(np.linalg.norm(axes, axis=1), 1, atol=1e-12)
    assert (axes[:, 2] > 0).all()
    # second moments of the half sphere, and any cap holds its share
    np.testing.assert_allclose(axes.T @ axes / 500, np.eye(3) / 3, atol=5e-3)
    both = np.concatenate([axes, -axes])
    for pole in random_rotations(20, rng=0)[:, 2]:
        assert np.mean(both @ pole > np.cos(np.deg2rad(30))) == pytest.approx(0.067, abs=0.01)
    with pytest.raises(ValueError, match="1 or more"):
        fibonacci_axes(0)


def test_isotropic_maps():
    a, b = halves(6.0)
    result = directional_fsc(a, b, pixel_size=PIXEL, n_axes=60)
    assert result.cfar_like > 0.8  # the noise of cones in a small box
    # the curve is 0.143 at shell 16 itself, of a box of 96 angstrom
    assert 96 / 16 - 1e-9 <= np.median(result.resolution) <= 96 / 15 + 1e-9
    np.testing.assert_allclose(result.whole.correlation[1:], fsc(a, b, pixel_size=PIXEL).correlation[1:])


def test_a_poor_direction_is_found():
    a, b = halves(12.0)
    result = directional_fsc(a, b, pixel_size=PIXEL, n_axes=60, half_angle=20)
    angle = np.rad2deg(np.arccos(result.axes[:, 2]))
    # shells of 1 / 96 angstrom: 5.65 and 6.4 are the neighbours of 6, 10.7 and 13.7 of 12
    poor, good = result.resolution[angle < 20], result.resolution[angle > 60]
    assert 10.6 < np.median(poor) < 13.8
    assert 5.6 < np.median(good) < 6.5
    assert result.cfar_like < 0.62
    assert result.areas[angle < 20].max() < result.areas[angle > 60].min()


def test_wide_cones_are_the_whole():
    a, b = halves(6.0, box=24)
    mask = soft_sphere(a.shape, 8, 3)
    result = directional_fsc(a, b, mask, pixel_size=PIXEL, n_axes=5, half_angle=90)
    whole = fsc(a, b, pixel_size=PIXEL, mask=mask)
    np.testing.assert_allclose(result.curves[:, 1:], np.tile(whole.correlation[1:], (5, 1)), atol=1e-9)
    assert result.resolution == pytest.approx(whole.resolution())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"half_angle": 91}, "between 0 and 90"),
        ({"threshold": 0}, "between 0 and 1"),
        ({"n_axes": 0}, "1 or more"),
    ],
)
def test_bad_options_are_refused(options, message):
    a, b = np.random.default_rng(0).standard_normal((2, 16, 16, 16))
    with pytest.raises(ValueError, match=message):
        directional_fsc(a, b, pixel_size=PIXEL, **options)
    with pytest.raises(ValueError, match="cubic"):
        directional_fsc(a[:10], b[:10], pixel_size=PIXEL)


# sampling


def side_views(n, rng):
    """Viewing directions on the equator, evenly."""
    return Poses.from_euler_deg(rng.uniform(-180, 180, n), np.full(n, 90.0), rng.uniform(-180, 180, n))


def test_even_views_give_one(rng):
    result = sampling_compensation(Poses(random_rotations(20000, rng=rng)))
    assert result.scf > 0.98 and result.unsampled == 0
    assert result.density.mean() == pytest.approx(1, abs=0.01)


def test_side_views_give_eight_over_pi_squared(rng):
    result = sampling_compensation(side_views(20000, rng))
    assert result.scf == pytest.approx(8 / np.pi**2, abs=0.01)
    # the density is 2 / (pi sin(angle to z))
    sine = np.sqrt(1 - result.axes[:, 2] ** 2)
    np.testing.assert_allclose(result.density[sine > 0.2], 2 / (np.pi * sine[sine > 0.2]), rtol=0.25)


def test_top_views_leave_directions_out(rng):
    """Tilts up to 30 degrees: directions within 60 degrees of z are in no view, half of the sphere."""
    result = sampling_compensation(Poses(cone_orientations(20000, np.deg2rad(30), rng=rng)))
    assert result.unsampled == pytest.approx(0.5, abs=0.03)
    assert result.scf < 0.02
    inside = result.axes[:, 2] > np.cos(np.deg2rad(58))
    assert (result.density[inside] == 0).all()
    # the weaker the preference, the better
    figures = [
        sampling_compensation(Poses(preferred_orientations(5000, (0, 0, 1), k, rng=rng))).scf
        for k in (0.5, 3.0, 10.0)
    ]
    assert figures[0] > figures[1] > figures[2]


def test_symmetry_fills_in(rng):
    top = Poses(preferred_orientations(5000, (0, 0, 1), 4.0, rng=rng))
    assert sampling_compensation(top, symmetry="O").scf > sampling_compensation(top).scf + 0.1
    # a fold about the preferred axis brings nothing new
    assert sampling_compensation(top, symmetry="C4").scf == pytest.approx(
        sampling_compensation(top).scf, abs=0.05
    )


def test_few_views_are_not_blamed_for_being_few(rng):
    assert sampling_compensation(Poses(random_rotations(300, rng=rng))).scf > 0.9


def test_sampling_refuses():
    with pytest.raises(ValueError, match="no poses"):
        sampling_compensation(Poses(np.zeros((0, 3, 3))))
    with pytest.raises(ValueError, match="1 Fourier voxel or more"):
        sampling_compensation(Poses(random_rotations(5, rng=0)), shell=0.5)


# efficiency


def half_width(psf, level=0.5):
    """Where psf(r), with a Gaussian of standard deviation 1 in each image, is half, over that of the Gaussian."""
    return optimize.brentq(lambda r: psf(r) - level, 1e-3, 1e3, xtol=1e-12) / np.sqrt(-2 * np.log(level))


def expected_efficiency(width):
    """Of widths that depend on the cosine to the z axis alone."""
    mean = integrate.quad(width, 0, 1, limit=200)[0]
    square = integrate.quad(lambda u: width(u) ** 2, 0, 1, limit=200)[0]
    return 1 - 2 * np.sqrt(square - mean**2) / mean


def test_even_views_are_efficient(rng):
    result = orientation_efficiency(Poses(random_rotations(20000, rng=rng)), extent=1e6)
    assert result.efficiency > 0.99 and result.anisotropy < 1.02
    # the mean of exp(-a (1 - u^2)) over u from 0 to 1 is Dawson's integral of sqrt(a), over sqrt(a)
    even = half_width(lambda r: special.dawsn(r / 2**0.5) / (r / 2**0.5))
    np.testing.assert_allclose(result.widths, even, rtol=0.01)
    assert orientation_efficiency(Poses(random_rotations(200, rng=rng))).efficiency > 0.9


@pytest.mark.parametrize(("level", "known"), [(0.5, 0.71), (np.exp(-2), 0.285)])  # as the docstring says
def test_side_views_have_a_known_efficiency(level, known):
    """The mean over a circle is a Bessel function; along the axis they see all that one image sees."""

    def width(u):
        def psf(r):
            a, part = r**2 / 2, (1 - u**2) / 2
            return special.i0e(a * part) * np.exp(-a * (1 - 2 * part))

        return half_width(psf, level)

    # equal steps: the tail along a direction rests on the few views that are near it
    views = Poses.from_euler_deg(np.arange(20000) * 0.018, np.full(20000, 90.0), np.zeros(20000))
    result = orientation_efficiency(views, extent=1e6, level=level)
    np.testing.assert_allclose(result.widths, [width(u) for u in result.axes[:, 2]], rtol=0.01)
    assert result.widths.min() == pytest.approx(1, abs=0.02)
    assert result.efficiency == pytest.approx(expected_efficiency(width), abs=0.01)
    assert expected_efficiency(width) == pytest.approx(known, abs=0.005)


@pytest.mark.parametrize("extent", [1.0, 2.0, 5.0])
def test_one_view_sees_an_ellipsoid(extent):
    """As long along the view as the particle: its widths and their moments in closed form."""
    result = orientation_efficiency(Poses(np.eye(3)[None]), extent=extent, n_axes=4000)
    squared = 1 - 1 / extent**2
    np.testing.assert_allclose(result.widths, (1 - result.axes[:, 2] ** 2 * squared) ** -0.5, rtol=1e-6)
    e = squared**0.5
    mean, square = (np.arcsin(e) / e, np.arctanh(e) / e) if e else (1.0, 1.0)
    expected = max(0.0, 1 - 2 * np.sqrt(square - mean**2) / mean)
    assert result.efficiency == pytest.approx(expected, abs=2e-3)
    assert orientation_efficiency(Poses(np.eye(3)[None])).efficiency == 0


def test_a_cone_of_views_is_long_along_its_axis(rng):
    """And the wider the cone, the less so."""
    figures = []
    for degrees in (15, 30, 50, 70, 90):
        cosine = np.cos(np.deg2rad(degrees))
        poses = Poses(cone_orientations(4000, np.deg2rad(degrees), rng=rng))
        result = orientation_efficiency(poses, extent=1e6, n_axes=500)

        def psf(r, cosine=cosine):
            a = r / 2**0.5
            low = cosine * np.exp(a**2 * (cosine**2 - 1)) * special.dawsn(a * cosine) / (a * cosine or 1)
            return (special.dawsn(a) / a - low) / (1 - cosine)

        assert result.widths[0] == pytest.approx(half_width(psf), rel=0.04)
        assert np.argmax(result.widths) < 20 or degrees == 90
        figures.append(result.efficiency)
    assert all(a < b for a, b in itertools.pairwise(figures))


def test_efficiency_turns_with_the_particle(rng):
    views = preferred_orientations(3000, (0, 0, 1), 3.0, rng=rng)
    turn = random_rotations(1, rng=rng)[0]
    first, turned = (orientation_efficiency(Poses(v)) for v in (views, views @ turn))
    assert first.efficiency < 0.8 and turned.efficiency == pytest.approx(first.efficiency, abs=5e-3)
    # in the plane of the images nothing changes, and a view's opposite is the same
    spin = Poses.from_euler_deg([0.0], [0.0], [70.0]).matrices[0]
    assert orientation_efficiency(Poses(spin @ views)).widths == pytest.approx(first.widths)
    flip = np.diag([1.0, -1.0, -1.0])
    assert orientation_efficiency(Poses(flip @ views)).widths == pytest.approx(first.widths)
    # views of two kinds: between the two
    many = np.concatenate([views, views @ turn])
    halves = [orientation_efficiency(Poses(v)).widths for v in (many, many[:3000], many[3000:])]
    assert (halves[0] > np.minimum(*halves[1:]) * 0.999).all()
    assert (halves[0] < np.maximum(*halves[1:]) * 1.001).all()


def test_symmetry_makes_views_efficient(rng):
    top = Poses(preferred_orientations(300, (0, 0, 1), 8.0, rng=rng))
    assert orientation_efficiency(top, symmetry="O").efficiency > orientation_efficiency(top).efficiency + 0.2


def test_thinned_views_give_the_same_widths(rng, monkeypatch):
    from invcryo.metrics import directional

    poses = Poses(preferred_orientations(6000, (1, 1, 0), 3.0, rng=rng))
    gathered = orientation_efficiency(poses)
    views, _ = directional._thinned(np.asarray(poses.matrices)[:, 2])
    assert len(views) < 4096
    monkeypatch.setattr(directional, "_thinned", lambda views: (views, np.full(len(views), 1 / len(views))))
    np.testing.assert_allclose(gathered.widths, orientation_efficiency(poses).widths, rtol=1e-3)


def test_efficiency_refuses():
    with pytest.raises(ValueError, match="no poses"):
        orientation_efficiency(Poses(np.zeros((0, 3, 3))))
    with pytest.raises(ValueError, match="1 or more"):
        orientation_efficiency(Poses(np.eye(3)[None]), extent=0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        orientation_efficiency(Poses(np.eye(3)[None]), level=1.0)


def test_figures_of_many_views_are_those_of_some(rng):
    poses = side_views(8000, rng)
    whole, some = describe_views(poses), describe_views(poses, most=2000)
    assert whole["efficiency"] == orientation_efficiency(poses).efficiency and whole["unsampled"] == 0
    assert some == describe_views(poses, most=2000) != whole
    for name, value in whole.items():
        assert some[name] == pytest.approx(value, abs=0.04), name
    assert describe_views(poses, symmetry="O")["efficiency"] > whole["efficiency"] + 0.1
