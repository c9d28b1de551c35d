"""A map against an atomic model."""

import json

import numpy as np
import pytest

from invcryo.cli import main
from invcryo.io import Map, read_map, write_map
from invcryo.metrics import fsc, map_model_fsc, model_on_grid, soft_mask
from invcryo.simulate import model_to_volume

BOX, PIXEL = 40, 3.0

# a few residues' worth of carbon atoms, none of them symmetric
ATOMS = np.random.default_rng(4).uniform(-25, 25, (60, 3)) + [4.0, -3.0, 1.5]


@pytest.fixture
def model(tmp_path):
    """A model about the origin of its coordinates."""
    line = "ATOM  {:5d}  CA  GLY A{:4d}    {:8.3f}{:8.3f}{:8.3f}  1.00 30.00           C\n"
    text = "".join(line.format(i, i, *xyz) for i, xyz in enumerate(ATOMS, start=1))
    path = tmp_path / "model.pdb"
    path.write_text(text + "END\n")
    return path


@pytest.fixture
def density(model):
    """The model's density with the origin of its coordinates at voxel BOX // 2."""
    return model_to_volume(model, BOX, PIXEL, center=False)


CORNER = -(BOX // 2) * PIXEL


def as_map(data, origin=(0.0, 0.0, 0.0), start=(0, 0, 0)):
    return Map(data, (PIXEL,) * 3, origin, start)


@pytest.mark.parametrize(
    ("origin", "start"),
    [
        ((CORNER,) * 3, (0, 0, 0)),
        ((0.0, 0.0, 0.0), (-(BOX // 2),) * 3),
        ((CORNER + 6.0, CORNER, CORNER), (-2, 0, 0)),
    ],
)
def test_origin_and_start_place_the_model(model, density, origin, start):
    volume = as_map(density, origin, start)
    np.testing.assert_allclose(model_on_grid(volume, model), density, atol=1e-5 * density.max())
    curve = map_model_fsc(volume, model)
    assert curve.correlation.min() > 0.9999


def test_axes_are_told_apart(model, density):
    """A header that is off by 6 angstrom along one axis alone moves the model along that axis."""
    for axis in range(3):
        origin = [CORNER] * 3
        origin[axis] += 6.0  # the map lies two voxels further
        moved = model_on_grid(as_map(density, tuple(origin)), model)
        np.testing.assert_allclose(moved, np.roll(density, -2, axis), atol=1e-4 * density.max())


def test_centre_needs_no_header(model, density):
    centred = model_to_volume(model, BOX, PIXEL)
    found = map_model_fsc(as_map(centred), model, placement="centre")
    assert found.correlation.min() > 0.9999


def test_noise_and_mask(model, density):
    rng = np.random.default_rng(0)
    noisy = as_map(density + 2.0 * density.std() * rng.standard_normal(density.shape), (CORNER,) * 3)
    mask = soft_mask(density, 0.05 * density.max(), pixel_size=PIXEL, lowpass=None, extend=2, edge=4)
    whole, masked = map_model_fsc(noisy, model), map_model_fsc(noisy, model, mask=mask)
    np.testing.assert_allclose(whole.correlation, fsc(noisy.data, density, pixel_size=PIXEL).correlation)
    assert masked.resolution(0.5) < whole.resolution(0.5)
    # the blur cancels within each shell
    sharper = map_model_fsc(noisy, model, resolution=6.0, b_factor=80.0)
    np.testing.assert_allclose(sharper.correlation[1:14], whole.correlation[1:14], atol=0.03)


def test_refusals(model, density):
    with pytest.raises(ValueError, match=r"of 60 atoms lie outside the map.*\(0, 0, 0\).*placement='centre'"):
        model_on_grid(as_map(density), model)
    with pytest.raises(ValueError, match="cubic"):
        model_on_grid(as_map(density[:20]), model)
    with pytest.raises(ValueError, match="'header' or 'centre'"):
        model_on_grid(as_map(density), model, placement="best")
    with pytest.raises(ValueError, match="cannot be sampled"):
        model_on_grid(as_map(density, (CORNER,) * 3), model, resolution=2.0)


def test_command(model, density, tmp_path, capsys):
    write_map(tmp_path / "map.mrc", density, PIXEL, origin=(CORNER,) * 3)
    assert main(["fsc", str(tmp_path / "map.mrc"), str(model), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert min(report["correlation"]["FSC"]) > 0.9999
    write_map(tmp_path / "far.mrc", density, PIXEL)
    assert main(["fsc", str(tmp_path / "far.mrc"), str(model)]) == 1
    assert "pass --placement centre" in capsys.readouterr().err


@pytest.mark.data
def test_betagal_map_and_its_model(reference_data):
    """The same curve as with the model density that comes with the data, which ChimeraX made."""
    folder = reference_data / "spa-betagal-10061-a"
    volume = read_map(folder / "reference_reconstruction_96.mrc", pixel_size=2.548)
    theirs = read_map(folder / "model_5a1a_molmap_96.mrc", pixel_size=2.548).data
    ours = map_model_fsc(volume, reference_data / "models" / "5a1a.pdb", placement="centre")
    expected = fsc(volume.data, theirs, pixel_size=2.548)
    np.testing.assert_allclose(ours.correlation[1:], expected.correlation[1:], atol=0.025)
    assert ours.resolution(0.5) == expected.resolution(0.5)
