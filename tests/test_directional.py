"""FSC by direction and the sampling of Fourier space, against maps and views of known anisotropy."""

import numpy as np
import pytest
from scipy import fft

from invcryo.data import Poses
from invcryo.grid import frequencies
from invcryo.metrics import directional_fsc, fibonacci_axes, fsc, sampling_compensation, soft_sphere
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
