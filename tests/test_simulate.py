"""Phantoms, atomic models, orientations, simulated stacks."""

import logging
import subprocess
from pathlib import Path

import numpy as np
import pytest

from invcryo.data import ParticleStack
from invcryo.grid import centred_coordinates
from invcryo.io import open_stack, read_map, read_particles
from invcryo.operators import ImageFilter, Projector
from invcryo.simulate import (
    PHANTOMS,
    SimulatedImages,
    cone_orientations,
    gaussian_beads,
    model_to_volume,
    phantom,
    preferred_orientations,
    random_ctf,
    simulate_particles,
    uniform_orientations,
    write_simulation,
)
from invcryo.simulate.stack import _noise_amplitude
from invcryo.symmetry import symmetry_correlation
from invcryo.window import BandLimited


def centre_of_mass(image):
    """(..., y, x) in voxels from n // 2."""
    total = image.sum(dtype=float)
    return np.array([(image * c).sum(dtype=float) / total for c in centred_coordinates(image.shape)])


# --- phantoms -------------------------------------------------------------------------------------


@pytest.mark.parametrize("box", [16, 31, 32, 33, 48])
@pytest.mark.parametrize("name", PHANTOMS)
def test_phantom_is_a_usable_map(name, box):
    volume = phantom(name, box, rng=3)
    assert volume.shape == (box,) * 3 and volume.dtype == np.float32
    assert volume.min() >= 0 and volume.max() == 1
    z, y, x = centred_coordinates(volume.shape)
    assert not volume[z**2 + y**2 + x**2 > (0.4 * box) ** 2].any()
    if name != "shepp-logan":
        # beads are cut at 5 sigma and at the ball, 3 sigma from the outermost bead: less than 1 % of a voxel
        np.testing.assert_allclose(centre_of_mass(volume), 0.0, atol=0.01)
    else:  # the head is not symmetric, but its outline along z and x is
        for axis in (0, 2):
            inside = np.flatnonzero((volume > 0.01).any(axis=tuple({0, 1, 2} - {axis})))
            assert inside[0] + inside[-1] == 2 * (box // 2)


@pytest.mark.parametrize("name", PHANTOMS)
def test_phantom_has_little_beyond_nyquist(name):
    box = 48
    power = np.abs(np.fft.fftn(phantom(name, box, rng=1))) ** 2
    f = np.fft.fftfreq(box)
    radius = np.sqrt(f[:, None, None] ** 2 + f[:, None] ** 2 + f**2)
    assert power[radius >= 0.5].sum() < 1e-4 * power[radius > 0].sum()


@pytest.mark.parametrize("name", ["blobs", "enzyme"])
def test_random_phantoms_follow_the_seed(name):
    first, again, other = phantom(name, 32, rng=5), phantom(name, 32, rng=5), phantom(name, 32, rng=6)
    np.testing.assert_array_equal(first, again)
    assert np.corrcoef(first.ravel(), other.ravel())[0, 1] < 0.9


@pytest.mark.parametrize("name", ["blobs", "enzyme"])
@pytest.mark.parametrize(("group", "floor"), [("D2", 0.9999), ("C7", 0.98), ("I", 0.97)])
def test_phantom_symmetry(name, group, floor):
    # lattice elements are exact to float32; the others are measured through cubic interpolation
    assert symmetry_correlation(phantom(name, 48, rng=2, symmetry=group), group).min() > floor
    assert symmetry_correlation(phantom(name, 48, rng=2), group).min() < 0.9


def test_helix_is_right_handed():
    volume = phantom("helix", 64)
    _, y, x = centred_coordinates(volume.shape)
    angles = []
    for plane in volume:
        if plane.sum() > 0.05 * volume.sum(axis=(1, 2)).max():
            angles.append(np.angle((plane * (x[0] + 1j * y[0])).sum()))
    turned = np.diff(np.unwrap(angles))
    assert turned.sum() > 3 * np.pi  # anticlockwise as z grows, nearly two turns
    mirrored = volume[:, :, ::-1]
    assert np.corrcoef(volume[:, :, 1:].ravel(), mirrored[:, :, :-1].ravel())[0, 1] < 0.5
    assert (
        volume.sum(axis=(1, 2), dtype=float) * np.arange(-32.0, 32.0) ** 3
    ).sum() < 0  # heavier towards +z


def test_shell_projection_is_known():
    box = 64
    projection = phantom("shell", box).sum(axis=0)
    y, x = centred_coordinates(projection.shape)
    rho2 = y**2 + x**2
    outer = 0.4 * box - 3
    chord = 2 * np.sqrt(np.maximum(outer**2 - rho2, 0)) - 2 * np.sqrt(
        np.maximum((0.7 * outer) ** 2 - rho2, 0)
    )
    inside = np.sqrt(rho2) < 0.6 * outer
    # the soft edge (sd 1 voxel) changes chords by sd^2 times the curvature of the chord: below 3 %
    np.testing.assert_allclose(projection[inside], chord[inside], rtol=0.03)


def test_shepp_logan_values():
    volume = phantom("shepp-logan", 128)
    peak = 0.2 / volume[64, 64 - 26, 64 + 4]  # brain matter is 0.2 of the skull
    unit = (0.4 * 128 - 3) / 0.92
    for (x, y, z), value in {(0.0, 0.35, -0.15): 0.3, (0.22, 0.0, 0.0): 0.0, (0.0, -0.4, 0.3): 0.2}.items():
        i = np.rint(64 + unit * np.array([z, y, x])).astype(int)
        assert volume[tuple(i)] * peak == pytest.approx(value, abs=0.004)


def test_gaussian_beads_by_hand():
    volume = gaussian_beads(21, np.array([[3.25, -2.0, 1.5]]), 1.5, 2.0)
    z, y, x = centred_coordinates(volume.shape)
    d2 = (x - 3.25) ** 2 + (y + 2.0) ** 2 + (z - 1.5) ** 2
    np.testing.assert_allclose(volume, 2.0 * np.exp(-0.5 * d2 / 1.5**2), atol=2 * np.exp(-12.5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: phantom("sheep", 32), "shepp-logan"),
        (lambda: phantom("blobs", 12), "16 or more"),
        (lambda: phantom("helix", 32, symmetry="C3"), "no symmetry"),
    ],
)
def test_phantom_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- atomic models --------------------------------------------------------------------------------

#: Electron scattering factors of carbon, sum of a exp(-b s^2 / 4): International Tables C, table 4.3.2.2.
CARBON = ((0.0893, 0.2465), (0.2563, 1.71), (0.757, 6.4094), (1.0487, 18.6113), (0.3575, 50.2523))

ATOM = "ATOM  {:5d} {:<4s} {:3s} A{:4d}    {:8.3f}{:8.3f}{:8.3f}{:6.2f}{:6.2f}          {:>2s}\n"


def write_pdb(path, atoms):
    """Atoms are (name, residue, xyz, occupancy, b, element)."""
    lines = [
        ATOM.format(i + 1, name, residue, i + 1, *xyz, occupancy, b, element)
        for i, (name, residue, xyz, occupancy, b, element) in enumerate(atoms)
    ]
    path.write_text("".join(lines) + "END\n")
    return path


@pytest.mark.parametrize("box", [31, 32])
def test_model_density_is_a_sum_of_gaussians(tmp_path, box):
    atoms = [
        (" CA ", "ALA", (3.0, -4.0, 6.5), 1.0, 20.0, "C"),
        (" CB ", "ALA", (-2.5, 1.25, 0.0), 0.5, 60.0, "C"),
    ]
    pixel_size, resolution = 1.5, 4.0
    volume = model_to_volume(
        write_pdb(tmp_path / "two.pdb", atoms), box, pixel_size, resolution=resolution, center=False
    )
    z, y, x = (pixel_size * c for c in centred_coordinates(volume.shape))
    expected = np.zeros(volume.shape)
    for _, _, (ax, ay, az), occupancy, b, _ in atoms:
        d2 = (x - ax) ** 2 + (y - ay) ** 2 + (z - az) ** 2
        for a, width in CARBON:
            total = width + b + 4 * resolution**2
            expected += occupancy * a * (4 * np.pi / total) ** 1.5 * np.exp(-4 * np.pi**2 * d2 / total)
    # gemmi cuts each atom where it falls below 1e-5 in these units
    np.testing.assert_allclose(volume, expected, atol=2e-5)
    assert expected.max() > 1e3 * 2e-5
    charge = 1.5 * sum(a for a, _ in CARBON)
    assert volume.sum(dtype=float) * pixel_size**3 == pytest.approx(charge, rel=0.01)


def test_model_is_centred_on_its_potential(tmp_path):
    atoms = [
        (" CA ", "ALA", (103.0, 94.0, 106.5), 1.0, 20.0, "C"),
        (" CB ", "ALA", (98.5, 101.25, 100.0), 0.5, 60.0, "C"),
    ]
    volume = model_to_volume(write_pdb(tmp_path / "far.pdb", atoms), 33, 1.5)
    np.testing.assert_allclose(centre_of_mass(volume), 0.0, atol=0.01)


def test_model_waters_and_b_factor(tmp_path):
    atoms = [
        (" CA ", "ALA", (0.0, 0.0, 0.0), 1.0, 20.0, "C"),
        (" O  ", "HOH", (6.0, 0.0, 0.0), 1.0, 20.0, "O"),
    ]
    path = write_pdb(tmp_path / "wet.pdb", atoms)
    dry, wet = (model_to_volume(path, 32, 1.5, center=False, waters=w) for w in (False, True))
    assert dry[16, 16, 20] < 0.2 * wet[16, 16, 20]
    np.testing.assert_array_equal(dry, model_to_volume(path, 32, 1.5, center=False, b_factor=20.0))
    assert model_to_volume(path, 32, 1.5, center=False, b_factor=200.0).max() < 0.5 * dry.max()


def test_model_errors(tmp_path):
    atoms = [(" CA ", "ALA", (0.0, 0.0, 0.0), 1.0, 20.0, "C"), (" CA ", "ALA", (30.0, 0, 0), 1.0, 20.0, "C")]
    path = write_pdb(tmp_path / "long.pdb", atoms)
    with pytest.raises(ValueError, match="smallest even box that holds it is 28") as caught:
        model_to_volume(path, 20, 1.5)
    assert "20 voxels of 1.5" in str(caught.value)
    assert model_to_volume(path, 28, 1.5).shape == (28, 28, 28)
    assert model_to_volume(path, 27, 1.5).shape == (27, 27, 27)  # 10 voxels and a margin of 3 on either side
    with pytest.raises(ValueError, match="smallest even box that holds it is 28"):
        model_to_volume(path, 26, 1.5)
    with pytest.raises(ValueError, match="cannot be sampled"):
        model_to_volume(path, 64, 1.5, resolution=2.0)
    with pytest.raises(FileNotFoundError, match="no atomic model"):
        model_to_volume(tmp_path / "none.pdb", 32, 1.5)
    unknown = write_pdb(tmp_path / "x.pdb", [(" Q1 ", "LIG", (0.0, 0.0, 0.0), 1.0, 20.0, "")])
    with pytest.raises(ValueError, match="columns 77-78"):
        model_to_volume(unknown, 32, 1.5)
    (tmp_path / "empty.pdb").write_text("END\n")
    with pytest.raises(ValueError, match="no atoms"):
        model_to_volume(tmp_path / "empty.pdb", 32, 1.5)


def test_true_metal_stays(tmp_path, caplog):
    path = write_pdb(tmp_path / "ion.pdb", [("CA  ", " CA", (0.0, 0.0, 0.0), 1.0, 20.0, "CA")])
    with caplog.at_level(logging.WARNING):
        calcium = model_to_volume(path, 32, 1.5)
    assert not caplog.records
    carbon_path = write_pdb(tmp_path / "carbon.pdb", [("CA  ", "ALA", (0.0, 0.0, 0.0), 1.0, 20.0, "")])
    with caplog.at_level(logging.WARNING):
        carbon = model_to_volume(carbon_path, 32, 1.5)
    assert "Ca -> C: 1" in caplog.text
    assert calcium.sum() > 3 * carbon.sum()


@pytest.mark.parametrize(("name", "element"), [("'HB ", "H"), ("1DG1", "D"), ("SD  ", "S"), ("NE  ", "N")])
def test_element_from_the_name(tmp_path, name, element):
    atom = (0.0, 0.0, 0.0), 1.0, 20.0
    guessed, stated = (
        model_to_volume(write_pdb(tmp_path / f"{i}.pdb", [(name, "MET", *atom, symbol)]), 32, 1.5)
        for i, symbol in enumerate(["", element])
    )
    np.testing.assert_array_equal(guessed, stated)


@pytest.mark.data
def test_model_without_element_column(reference_data, caplog):
    with caplog.at_level(logging.WARNING):
        volume = model_to_volume(reference_data / "models" / "adk_open.pdb", 64, 2.0)
    assert "Ca -> C: 214" in caplog.text and "Hg -> H: 179" in caplog.text
    # 4AKE, chain A, is the same molecule without hydrogens in a file that has its elements:
    # add the hydrogens of the CHARMM file by count (3341 atoms in all)
    import gemmi

    chain = gemmi.read_structure(str(reference_data / "models" / "mmcif_4ake_scipion.cif"))[0]["A"]
    heavy = [a.element for r in chain if not r.is_water() for a in r]
    f0 = sum(sum(e.c4322.a) for e in heavy) + (3341 - len(heavy)) * sum(gemmi.Element("H").c4322.a)
    assert volume.sum(dtype=float) * 8.0 == pytest.approx(f0, rel=0.005)


@pytest.mark.data
def test_model_of_beta_galactosidase(reference_data):
    import mrcfile

    pixel_size = 2.548
    volume = model_to_volume(
        reference_data / "models" / "5a1a.pdb", 96, pixel_size, b_factor=40.0, resolution=7.5
    )
    assert symmetry_correlation(volume, "D2").min() > 0.999
    other = mrcfile.read(reference_data / "spa-betagal-10061-a" / "model_5a1a_molmap_96.mrc")
    f = np.fft.fftfreq(96, pixel_size)
    s2 = f[:, None, None] ** 2 + f[:, None] ** 2 + np.fft.rfftfreq(96, pixel_size) ** 2
    blurred = np.fft.irfftn(np.fft.rfftn(other) * np.exp(-s2 * 7.5**2), s=other.shape, axes=(0, 1, 2))
    assert np.corrcoef(volume.ravel(), blurred.ravel())[0, 1] > 0.99  # 0.9975 measured


# --- orientations ---------------------------------------------------------------------------------

N = 20000


def assert_in_plane_uniform(matrices):
    # psi = atan2(A[1, 2], -A[0, 2]) is the angle of the map's z axis in the image, defined off the poles
    psi = np.arctan2(matrices[:, 1, 2], -matrices[:, 0, 2])
    for order in (1, 2):
        assert abs(np.exp(1j * order * psi).mean()) < 4 / np.sqrt(len(matrices))


def test_uniform_orientations():
    matrices = uniform_orientations(N, rng=1)
    assert matrices.shape == (N, 3, 3)
    # entries have variance 1/3 and mean 0: 5 standard errors
    assert np.abs(matrices.mean(axis=0)).max() < 5 * np.sqrt(1 / 3 / N)
    np.testing.assert_allclose(np.linalg.det(matrices), 1.0, atol=1e-9)
    np.testing.assert_array_equal(matrices, uniform_orientations(N, rng=1))
    assert_in_plane_uniform(matrices)


@pytest.mark.parametrize("kappa", [0.0, 0.5, 5.0, 300.0])
def test_preferred_orientations_are_von_mises_fisher(kappa):
    axis = np.array([1.0, -2.0, 0.5])
    axis /= np.linalg.norm(axis)
    matrices = preferred_orientations(N, 3 * axis, kappa, rng=2)
    cosine = matrices[:, 2] @ axis
    mean = 0.0 if kappa == 0 else 1 / np.tanh(kappa) - 1 / kappa
    variance = 1 / 3 if kappa == 0 else 1 - 2 * mean / kappa - mean**2
    assert cosine.mean() == pytest.approx(mean, abs=5 * np.sqrt(variance / N))
    assert cosine.var() == pytest.approx(variance, rel=0.1)
    across = np.cross(axis, [0, 0, 1.0])
    azimuth = np.arctan2(matrices[:, 2] @ np.cross(axis, across), matrices[:, 2] @ across)
    # the two vectors are orthogonal but of equal length, so the azimuth must be uniform
    assert abs(np.exp(1j * azimuth).mean()) < 4 / np.sqrt(N)
    assert_in_plane_uniform(matrices)


def test_preferred_orientations_about_two_faces():
    matrices = preferred_orientations(N, [[0, 0, 1], [0, 0, -1]], 50.0, rng=3)
    up = (matrices[:, 2, 2] > 0).mean()
    assert up == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(N))
    assert np.abs(matrices[:, 2, 2]).min() > 0.7
    mixed = preferred_orientations(N, [[0, 0, 1], [1, 0, 0]], [1e4, 0.0], rng=3)
    assert (mixed[:, 2, 2] > 0.99).mean() == pytest.approx(0.5 + 0.5 * 0.005, abs=0.02)


def test_cone_orientations():
    axis = np.array([0.0, 1.0, 1.0]) / np.sqrt(2)
    low, high = np.deg2rad([20.0, 50.0])
    matrices = cone_orientations(N, high, axis, min_angle=low, rng=4)
    cosine = matrices[:, 2] @ axis
    assert cosine.min() >= np.cos(high) - 1e-9 and cosine.max() <= np.cos(low) + 1e-9
    span = np.cos(low) - np.cos(high)
    assert cosine.mean() == pytest.approx((np.cos(low) + np.cos(high)) / 2, abs=5 * span / np.sqrt(12 * N))
    assert_in_plane_uniform(matrices)
    with pytest.raises(ValueError, match="deg2rad"):
        cone_orientations(10, 60.0)


@pytest.mark.parametrize(
    ("axes", "kappa", "message"),
    [([0, 0, 0], 1.0, "not zero"), ([1, 0], 1.0, "shape"), ([0, 0, 1], -1.0, "not negative")],
)
def test_preferred_orientation_errors(axes, kappa, message):
    with pytest.raises(ValueError, match=message):
        preferred_orientations(5, axes, kappa)


# --- stacks ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    return phantom("enzyme", 32, rng=1)


def test_image_by_hand():
    """Gaussians at known places, seen through the CTF: pose, shift, pixel size and scale in one."""
    box, image_box, pixel_size, sigma = 33, 40, 3.0, 1.5
    points = np.array([[5.0, -3.0, 2.0], [-4.0, 4.5, -5.0], [1.0, 6.0, 4.0]])
    weights = np.array([1.0, 0.5, 2.0])
    volume = gaussian_beads(box, points, sigma, weights)
    stack = simulate_particles(
        volume,
        5,
        pixel_size,
        snr=None,
        defocus_angstrom=(9000.0, 15000.0),
        astigmatism_angstrom=2000.0,
        voltage_kv=200.0,
        cs_mm=2.0,
        amplitude_contrast=0.07,
        phase_shift=0.3,
        b_factor=50.0,
        shift_px=4.0,
        image_box=image_box,
        rng=7,
    )
    images = stack.images[:]
    assert images.shape == (5, image_box, image_box) and images.dtype == np.float32
    y, x = centred_coordinates((image_box, image_box))
    s = np.fft.fftfreq(image_box, pixel_size)
    for p in range(5):
        seen = points @ stack.poses.matrices[p, :2].T + stack.poses.shifts[p]
        d2 = [(x - u) ** 2 + (y - v) ** 2 for u, v in seen]
        height = weights * sigma * np.sqrt(2 * np.pi)
        clean = sum(h * np.exp(-0.5 * d / sigma**2) for h, d in zip(height, d2, strict=True))
        ctf = stack.ctf[p : p + 1](s[None, :], s[:, None])[0]
        expected = np.fft.ifft2(np.fft.fft2(clean) * ctf).real
        # float32 and single-precision NUFFT (1e-5), and Gaussians cut at 5 sigma
        np.testing.assert_allclose(images[p], expected, atol=2e-4 * np.abs(expected).max())
    assert np.ptp(stack.ctf.defocus_u_angstrom - stack.ctf.defocus_v_angstrom) > 0
    assert (stack.ctf.voltage_kv == 200).all() and (stack.ctf.phase_shift == 0.3).all()


@pytest.mark.parametrize("image_box", [31, 32, 45, 46])
@pytest.mark.parametrize("box", [32, 33])
def test_projection_keeps_centre_and_mass(box, image_box):
    volume = phantom("helix", box)
    stack = simulate_particles(
        volume, 6, 2.0, snr=None, defocus_angstrom=None, shift_px=1.5, image_box=image_box, rng=0
    )
    assert stack.ctf is None
    for image, shift in zip(stack.images[:], stack.poses.shifts, strict=True):
        # the even boxes lose the Nyquist frequency of a map with 0.2 % there
        np.testing.assert_allclose(centre_of_mass(image), shift[::-1], atol=0.02)
        assert image.sum(dtype=float) == pytest.approx(volume.sum(dtype=float), rel=1e-4)


def test_particle_is_white(small):
    stack = simulate_particles(small, 50, 4.0, snr=None, rng=0, defocus_angstrom=(15000.0, 15000.0))
    images = stack.images[:]
    y, x = centred_coordinates(images.shape[1:])
    inside = np.hypot(y, x) < 8
    assert images[:, inside].mean() > images[:, ~inside].mean()
    skew = ((images - images.mean()) ** 3).mean()
    assert skew > 0


def test_same_seed_same_particles_for_any_batch(small):
    stack = simulate_particles(small, 60, 4.0, snr=0.2, shift_px=2, rng=3)
    whole = stack.images[:]
    again = simulate_particles(small, 60, 4.0, snr=0.2, shift_px=2, rng=3)
    np.testing.assert_array_equal(again.poses.matrices, stack.poses.matrices)
    # single-precision NUFFT: 1e-5 of the signal; the noise is the same bit by bit
    for step in (1, 7, 60):
        batches = np.concatenate([again.images[i : i + step] for i in range(0, 60, step)])
        np.testing.assert_allclose(batches, whole, atol=1e-4)
    pick = np.array([41, 3, 17])
    np.testing.assert_allclose(stack.images[pick], whole[pick], atol=1e-4)
    np.testing.assert_allclose(stack[pick][::-1].images[:2], whole[[17, 3]], atol=1e-4)
    np.testing.assert_allclose(stack.images[-1], whole[-1], atol=1e-4)
    odd, even = stack.halves()
    np.testing.assert_array_equal(stack.half[:4], [1, 2, 1, 2])
    np.testing.assert_allclose(even.images[1:3], whole[[3, 5]], atol=1e-4)
    np.testing.assert_allclose(odd.images.clean(slice(0, 2)), stack.images.clean(slice(0, 3))[::2], atol=1e-4)
    other = simulate_particles(small, 60, 4.0, snr=0.2, shift_px=2, rng=4)
    assert np.abs(np.corrcoef(other.images[:].ravel(), whole.ravel())[0, 1]) < 0.3


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("spectrum", [None, [4.0, 2.0, 1.0]])
def test_snr_is_what_was_asked(small, spectrum, normalise):
    n, snr = 200, 0.3
    stack = simulate_particles(small, n, 4.0, snr=snr, noise_spectrum=spectrum, normalise=normalise, rng=5)
    clean, noisy = stack.images.clean(slice(None)), stack.images[:]
    measured = clean.var(axis=(1, 2), dtype=float).mean() / (noisy - clean).var(dtype=float)
    # the variance of N normal values has the relative error sqrt(2 / N); colour leaves a third of them free
    assert measured == pytest.approx(snr, rel=5 * np.sqrt(2 / (n * 32 * 32 / 3)))
    if normalise:
        assert stack.images.noise_sd == 1
        np.testing.assert_allclose(stack.images.truth, small * stack.images.scale, rtol=1e-6)
    else:
        assert stack.images.scale == 1
        np.testing.assert_array_equal(stack.images.truth, small)


@pytest.mark.parametrize("spectrum", [None, [4.0, 2.0, 1.0]])
@pytest.mark.parametrize("box", [32, 33])
def test_noise_spectrum(box, spectrum):
    n = 200
    stack = simulate_particles(phantom("blobs", box, rng=0), n, 4.0, snr=0.1, noise_spectrum=spectrum, rng=6)
    noise = (stack.images[:] - stack.images.clean(slice(None))).astype(float)
    f = np.fft.fftfreq(box)
    radius = np.hypot(f[:, None], f)
    shape = (
        np.interp(radius, np.linspace(0, 0.5, len(spectrum)), spectrum) if spectrum else np.ones_like(radius)
    )
    power = (np.abs(np.fft.fft2(noise)) ** 2).mean(axis=0) / box**2 / (shape / shape.mean())
    shell = np.rint(radius * box).astype(int)
    for i in range(shell.max() + 1):
        inside = shell == i
        # |F|^2 is exponential, half of the frequencies are free; 5 standard errors
        assert power[inside].mean() == pytest.approx(1.0, abs=5 * np.sqrt(2 / (n * inside.sum())))
    flat = noise.reshape(n, -1)
    across = (flat[:-1] * flat[1:]).mean(axis=1)
    spread = np.sqrt((shape**2).mean()) / shape.mean()
    assert np.abs(across).max() < 5 * spread / box


@pytest.mark.parametrize("box", [16, 17])
def test_noise_filter_keeps_the_variance(box):
    amplitude = _noise_amplitude([30.0, 3.0, 1.0], box)
    response = np.fft.fft2(np.fft.irfft2(amplitude, s=(box, box)))  # on the full grid
    assert (np.abs(response) ** 2).mean() == pytest.approx(1.0, rel=1e-12)


def test_background_is_normalised(small):
    stack = simulate_particles(small, 100, 4.0, snr=0.05, image_box=48, rng=8)
    images = stack.images[:]
    y, x = centred_coordinates((48, 48))
    background = images[:, np.hypot(y, x) > 18]
    assert background.mean(dtype=float) == pytest.approx(0, abs=0.01)
    # what the CTF spreads of the particle adds its own variance to that of the noise
    assert background.std(dtype=float) == pytest.approx(1, abs=0.01)


def test_orientations_are_used(small):
    matrices = preferred_orientations(20, [0, 0, 1], 50.0, rng=0)
    stack = simulate_particles(small, 20, 4.0, snr=None, orientations=matrices, rng=0)
    np.testing.assert_array_equal(stack.poses.matrices, matrices)


def test_random_ctf_ranges():
    ctf = random_ctf(4000, (5000.0, 9000.0), astigmatism_angstrom=400.0, rng=0)
    mean = (ctf.defocus_u_angstrom + ctf.defocus_v_angstrom) / 2
    difference = ctf.defocus_u_angstrom - ctf.defocus_v_angstrom
    assert 5000 <= mean.min() < 5010 and 8990 < mean.max() <= 9000
    assert 0 <= difference.min() < 1 and 399 < difference.max() <= 400
    assert abs(np.exp(2j * ctf.defocus_angle).mean()) < 4 / np.sqrt(4000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"snr": 0.0}, "positive ratio"),
        ({"snr": np.inf}, "snr=None"),
        ({"shift_px": -1}, "not be negative"),
        ({"defocus_angstrom": (2.0, 1.0)}, "lowest, highest"),
        ({"defocus_angstrom": (1e7, 2e7)}, "out of range"),
        ({"astigmatism_angstrom": -1.0}, "not be negative"),
        ({"orientations": "random"}, '"uniform"'),
        ({"orientations": np.eye(3)[None]}, r"\(4, 3, 3\)"),
        ({"noise_spectrum": [1.0, -1.0]}, "not negative"),
        ({"volume": np.zeros((16, 16, 16))}, "is the map zero"),
        ({"volume": np.zeros((16, 16, 18))}, "cube"),
        ({"volume": np.full((16, 16, 16), np.nan)}, "NaN"),
        ({"pixel_size": 0.0}, "pixel size"),
    ],
)
def test_simulation_errors(change, message):
    arguments = {"volume": phantom("shell", 16), "n": 4, "pixel_size": 4.0, "snr": 1.0, "rng": 0} | change
    with pytest.raises(ValueError, match=message):
        simulate_particles(**arguments)


def test_write_simulation(small, tmp_path, monkeypatch):
    stack = simulate_particles(small, 25, 4.2, snr=0.5, shift_px=3, astigmatism_angstrom=300, rng=9)
    asked = []
    get = SimulatedImages.__getitem__
    monkeypatch.setattr(
        SimulatedImages, "__getitem__", lambda self, index: asked.append(index) or get(self, index)
    )
    star = write_simulation(tmp_path / "a", stack, batch_size=7)
    assert max(part.stop - part.start for part in asked) == 7  # never the whole stack
    write_simulation(tmp_path / "b", stack, batch_size=100)
    for name in ("particles.star", "truth.mrc"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    back = read_particles(star)
    # FFTs of other batches may round differently: 1e-5 of the signal
    np.testing.assert_allclose(back.images[:], stack.images[:], atol=1e-4)
    other = open_stack(tmp_path / "b" / "particles.mrcs")[:]
    np.testing.assert_allclose(back.images[:], other, atol=1e-4)
    np.testing.assert_allclose(back.poses.matrices, stack.poses.matrices, atol=1e-7)
    np.testing.assert_allclose(back.poses.shifts, stack.poses.shifts, atol=1e-6)
    np.testing.assert_allclose(back.ctf.defocus_u_angstrom, stack.ctf.defocus_u_angstrom, atol=1e-6)
    np.testing.assert_array_equal(back.half, stack.half)
    assert back.pixel_size == 4.2
    truth = read_map(tmp_path / "a" / "truth.mrc")
    np.testing.assert_array_equal(truth.data, stack.images.truth)
    assert truth.pixel_size == pytest.approx(4.2)
    write_simulation(tmp_path / "half", stack, dtype=np.float16)
    error = np.abs(read_particles(tmp_path / "half" / "particles.star").images[:] - stack.images[:])
    assert 1e-4 < error.max() <= 1e-4 + 2.0**-11 * np.abs(stack.images[:]).max()


def test_write_simulation_leaves_nothing_half_done(small, tmp_path, monkeypatch):
    stack = simulate_particles(small, 10, 4.0, snr=0.5, rng=9)
    get = SimulatedImages.__getitem__

    def fail(self, index):
        if index.start:
            raise KeyboardInterrupt
        return get(self, index)

    monkeypatch.setattr(SimulatedImages, "__getitem__", fail)
    with pytest.raises(KeyboardInterrupt):
        write_simulation(tmp_path, stack, batch_size=4)
    assert not list(tmp_path.iterdir())
    with pytest.raises(TypeError, match="simulate_particles"):
        write_simulation(tmp_path, ParticleStack(np.zeros((2, 8, 8)), 1.0))


# --- the demo set that the repository ships ---------------------------------------------------------


def test_demo_set():
    folder = Path(__file__).resolve().parent.parent / "data" / "demo"
    stack, truth = read_particles(folder / "particles.star"), read_map(folder / "truth.mrc")
    assert (len(stack), stack.box, stack.pixel_size) == (500, 48, 5.0)
    assert truth.pixel_size == pytest.approx(5.0) and truth.data.shape == (48, 48, 48)
    assert sum(f.stat().st_size for f in folder.iterdir()) < 6e6
    project = Projector(stack.poses, BandLimited(), truth.data.shape, stack.image_shape)
    signal = ImageFilter.from_ctf(stack.ctf, stack.image_shape, stack.pixel_size)(project(truth.data))
    noise = (stack.images[:] - signal).astype(float)
    # what poses, CTF and truth do not explain is the noise, of variance 1: 5 standard errors
    assert noise.var() == pytest.approx(1.0, abs=5 * np.sqrt(2 / noise.size))
    assert signal.var(axis=(1, 2)).mean() == pytest.approx(0.1, rel=0.02)  # set on the first 200 images


# --- against RELION -------------------------------------------------------------------------------


def run_in(folder, *command):
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)


@pytest.fixture(scope="module")
def relion_folder(relion, small, tmp_path_factory):
    stack = simulate_particles(small, 300, 5.0, snr=None, shift_px=2, astigmatism_angstrom=500, rng=1)
    folder = tmp_path_factory.mktemp("relion")
    write_simulation(folder, stack)
    return folder


@pytest.mark.relion
def test_relion_projects_the_same_images(relion_folder):
    run_in(
        relion_folder, "relion_project", "--i", "truth.mrc", "--ang", "particles.star", "--o", "projected",
        "--ctf", "--angpix", "5",
    )  # fmt: skip
    ours, theirs = (open_stack(relion_folder / f"{name}.mrcs")[:] for name in ("particles", "projected"))
    correlation = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(ours, theirs, strict=True)]
    # RELION interpolates linearly at padding 2: 0.99976 measured, and its scale is 0.998 of ours
    assert min(correlation) > 0.999
    scale = (ours * theirs).sum(dtype=float) / (ours**2).sum(dtype=float)
    assert scale == pytest.approx(1.0, abs=0.01)


@pytest.mark.relion
def test_relion_reconstructs_the_truth(relion_folder):
    run_in(
        relion_folder, "relion_reconstruct", "--i", "particles.star", "--o", "map.mrc", "--ctf",
        "--angpix", "5",
    )  # fmt: skip
    truth, found = (np.fft.fftn(read_map(relion_folder / f"{name}.mrc").data) for name in ("truth", "map"))
    z, y, x = (np.fft.ifftshift(c) for c in centred_coordinates(truth.shape))
    shell = np.rint(np.sqrt(z**2 + y**2 + x**2))
    for i in range(1, 9):
        a, b = truth[shell == i], found[shell == i]
        fsc = (a * b.conj()).sum().real / np.sqrt((np.abs(a) ** 2).sum() * (np.abs(b) ** 2).sum())
        assert fsc > 0.99, (i, fsc)  # 0.999 measured
