"""Tilt series: what is read, what is refused, what is doubted, and what is written."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import invcryo as ic
from invcryo.io.mrc import write_stack
from invcryo.io.tilt_checks import _binned, contrast_score, fit_axis, line_moments, suspicions
from invcryo.io.tilt_files import (
    apply_xf,
    read_mdoc,
    read_tilt_series,
    read_xf,
    straighten,
    write_tilt_series,
)
from invcryo.io.tilt_series import TiltSeries
from invcryo.stet.alignment import estimate_axis

ANGLES = np.arange(-60.0, 61.0, 4.0)


def projections(axis="y", degrees=0.0, shifts=None, angles=ANGLES, shape=(40, 44)):
    """Images of blobs about an axis, by the general projector."""
    blank = np.zeros((len(angles), *shape), np.float32)
    series = TiltSeries(
        blank, np.deg2rad(angles), 10.0, axis=axis, in_plane_angle=np.deg2rad(degrees), shifts=shifts
    )
    volume = ic.phantom("blobs", 32, rng=1)
    return series.replace(images=ic.Projector(series.poses(), ic.KaiserBessel(), volume.shape, shape)(volume))


@pytest.fixture(scope="module")
def series():
    return projections()


@pytest.fixture
def stack(tmp_path, series):
    path = tmp_path / "a.st"
    write_stack(path, series.images, 10.0)
    np.savetxt(tmp_path / "a.rawtlt", ANGLES, fmt="%.4f")
    return path


# -- bad input ----------------------------------------------------------------------------------------------------


def test_count_of_angles(stack, series):
    with pytest.raises(ValueError, match="31 images but 30 angles"):
        read_tilt_series(stack, angles=ANGLES[:30])
    with pytest.raises(ValueError, match="31 images but 30 angles"):
        TiltSeries(series.images, series.angles[:30])


def test_degrees_and_radians(stack, series):
    with pytest.raises(ValueError, match=r"look like radians: pass degrees=False"):
        read_tilt_series(stack, angles=np.deg2rad(ANGLES))
    with pytest.raises(ValueError, match=r"look like degrees"):
        read_tilt_series(stack, angles=ANGLES, degrees=False)
    with pytest.raises(ValueError, match=r"np.deg2rad"):
        TiltSeries(series.images, ANGLES)
    again = read_tilt_series(stack, angles=np.deg2rad(ANGLES), degrees=False)
    np.testing.assert_allclose(again.angles_deg, ANGLES)


def test_wrong_axis_is_doubted(stack, caplog):
    wrong = read_tilt_series(stack, axis="x")
    assert any("axis looks like y, not x" in note for note in wrong.notes)
    assert "pass axis='y'" in caplog.text
    assert not any("axis" in note for note in read_tilt_series(stack).notes)


def test_wrong_contrast_is_doubted(series):
    assert contrast_score(series) > 0.5
    dark = series.replace(images=5 - series.images, contrast="dark")
    assert not suspicions(series) and not suspicions(dark)
    assert "pass contrast='dark'" in suspicions(dark.replace(contrast="bright"))[0]
    assert "pass contrast='bright'" in suspicions(series.replace(contrast="dark"))[0]


def test_empty_tilt_and_nan(series):
    mask = np.ones(series.images.shape, bool)
    mask[[3, 7]] = False
    with pytest.raises(ValueError, match="no pixel is measured in image 3, 7"):
        series.replace(mask=mask)
    images = np.array(series.images)
    images[:, :, 5:9] = np.nan
    some = series.replace(images=images)
    assert some.fraction == pytest.approx(1 - 4 / 44) and not some.measured[:, :, 5].any()
    assert np.isfinite(some.images).all() and "NaN taken as not measured: 9.09 %" in some.notes[-1]
    with pytest.raises(ValueError, match="NaN that the mask calls measured"):
        series.replace(images=images, mask=np.ones(images.shape, bool))
    images[0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="infinite"):
        series.replace(images=images)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"thickness": -3.0}, "thickness must be positive, got -3"),
        ({"pixel_size": 0.0}, "pixel_size must be positive"),
        ({"axis": "q"}, "the tilt axis is 'x' or 'y'"),
        ({"contrast": "white"}, "contrast is 'bright' or 'dark'"),
        ({"in_plane_angle": 80.0}, "in radians"),
        ({"shifts": np.zeros((3, 2))}, r"shifts of shape \(31, 2\)"),
        ({"mask": np.ones((31, 3, 3), bool)}, "the mask has shape"),
        ({"images": [np.zeros((4, 5)), np.zeros((5, 5))]}, "differ in size"),
        ({"images": np.zeros((4, 5))}, "has images of shape"),
    ],
)
def test_bad_values(series, changes, words):
    with pytest.raises(ValueError, match=words):
        series.replace(**changes)


def test_types(series):
    with pytest.raises(TypeError, match="boolean"):
        series.replace(mask=np.ones(series.images.shape))
    with pytest.raises(TypeError, match="real numbers"):
        series.replace(images=series.images.astype(complex))
    assert series.replace(images=(series.images * 9).astype(np.uint16)).images.dtype == np.float32
    assert series.replace(images=series.images.astype(float)).images.dtype == np.float64


def test_callers_arrays_stay(series):
    images, angles = np.array(series.images), np.array(series.angles)
    images[0, 0, 0] = np.nan
    made = TiltSeries(images, angles)
    assert np.isnan(images[0, 0, 0]) and made.images[0, 0, 0] == 0 and images.flags.writeable
    assert len(made[::2]) == 16 and len(made[3]) == 1 and made[made.angles > 0].angles.min() > 0


# -- files --------------------------------------------------------------------------------------------------------


def test_round_trip(tmp_path, series, rng):
    mask = rng.random(series.images.shape) < 0.3
    made = series.replace(
        mask=mask, contrast="dark", thickness=20.0, in_plane_angle=0.1, shifts=rng.normal(size=(31, 2))
    )
    paths = write_tilt_series(tmp_path / "b.st", made)
    assert {p.suffix for p in paths} == {".st", ".rawtlt", ".npz", ".json"}
    again = read_tilt_series(tmp_path / "b.st", check=False)
    for name in ("pixel_size", "axis", "contrast", "thickness"):
        assert getattr(again, name) == getattr(made, name), name
    np.testing.assert_allclose(again.shifts, made.shifts)
    np.testing.assert_allclose(again.angles, made.angles, atol=1e-7)
    assert again.in_plane_angle == pytest.approx(0.1)
    assert (again.measured == mask).all() and (again.images == made.images).all()
    assert json.loads((tmp_path / "b.json").read_text())["tilts"] == 31
    assert read_tilt_series(tmp_path / "b.st", flip_tilt=True, check=False).flipped
    with pytest.raises(ValueError, match=r"\.st or \.mrcs"):
        write_tilt_series(tmp_path / "b.mrc", made)


def test_names_beside(tmp_path, series):
    with pytest.raises(ValueError, match="no tilt angles found"):
        write_stack(tmp_path / "c.st", series.images, 10.0)
        read_tilt_series(tmp_path / "c.st")
    (tmp_path / "c.st.mdoc").write_text(mdoc(ANGLES[::-1], 82.9))
    made = read_tilt_series(tmp_path / "c.st", check=False)
    assert np.rad2deg(made.in_plane_angle) == pytest.approx(82.9)
    # the file is in the order of acquisition: the images follow their angles
    assert (np.diff(made.angles) > 0).all() and (made.images == series.images[::-1]).all()
    assert "images sorted by angle" in made.notes
    np.savetxt(tmp_path / "c.tlt", ANGLES + 0.5)
    assert read_tilt_series(tmp_path / "c.st", check=False).angles_deg[0] == pytest.approx(-59.5)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_tilt_series(tmp_path / "nothing.st")
    (tmp_path / "bad.tlt").write_text("one\n")
    with pytest.raises(ValueError, match="no list of angles"):
        read_tilt_series(tmp_path / "c.st", angles=tmp_path / "bad.tlt")


def mdoc(angles, axis):
    sections = "".join(
        f"\n[ZValue = {i}]\nTiltAngle = {a}\nRotationAngle = 172.9\n" for i, a in enumerate(angles)
    )
    return (
        f"PixelSpacing = 1.971\nVoltage = 300\n\n[T =     Tilt axis angle = {axis}, binning = 1]\n{sections}"
    )


def test_mdoc_refuses(tmp_path):
    path = tmp_path / "x.mdoc"
    path.write_text("nothing")
    with pytest.raises(ValueError, match="no section"):
        read_mdoc(path)
    path.write_text("[ZValue = 0]\nTiltAngle = 3\n[ZValue = 1]\n")
    with pytest.raises(ValueError, match=r"missing in \[1\]"):
        read_mdoc(path)


@pytest.mark.data
def test_real_mdoc(reference_data):
    folder = reference_data / "et-metadata"
    found = read_mdoc(folder / "017.mdoc")
    assert found["pixel_size"] == 1.971 and found["voltage_kv"] == 300
    assert found["in_plane_angle_deg"] == 82.9  # of the title, not RotationAngle = 172.9
    np.testing.assert_allclose(found["angles"], np.loadtxt(folder / "017.tlt"), atol=0.006)


def test_xf_undoes_what_was_done(tmp_path, rng):
    """Images turned and moved, and IMOD's transform that takes them back: the axis is y again."""
    turn, shifts = 25.0, np.round(rng.uniform(-2, 2, (31, 2)), 2)
    crooked = projections(degrees=turn, shifts=shifts, shape=(41, 41))  # odd: both centres are one
    straight = projections(shape=(41, 41))
    c, s = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    back = np.array([[c, s], [-s, c]])
    rows = np.hstack([np.tile(back.ravel(), (31, 1)), -(shifts @ back.T)])
    write_stack(tmp_path / "d.st", crooked.images, 10.0)
    np.savetxt(tmp_path / "d.rawtlt", ANGLES)
    np.savetxt(tmp_path / "d.xf", rows, fmt="%12.7f")
    made = read_tilt_series(tmp_path / "d.st")
    assert any("d.xf applied by cubic interpolation" in note for note in made.notes)
    inside = made.measured
    assert 0.8 < inside.mean() < 0.9  # corners are lost
    error = np.sqrt(np.square(made.images - straight.images)[inside].mean()) / straight.images.std()
    assert error < 0.02
    raw = read_tilt_series(tmp_path / "d.st", xf=False, check=False)
    assert (raw.images == crooked.images).all()
    (tmp_path / "d.st").rename(tmp_path / "d.ali")
    assert any("not applied" in note for note in read_tilt_series(tmp_path / "d.ali", check=False).notes)
    stretched = rows * [1.02, 1, 1, 1, 1, 1]
    assert "changes lengths by up to" in apply_xf(raw, stretched).notes[-1]
    with pytest.raises(ValueError, match="30 transforms"):
        apply_xf(raw, rows[:30])
    with pytest.raises(ValueError, match="stated too"):
        apply_xf(raw.replace(in_plane_angle=0.1), rows)
    np.savetxt(tmp_path / "e.xf", rows[:, :4])
    with pytest.raises(ValueError, match="six finite numbers"):
        read_xf(tmp_path / "e.xf")


@pytest.mark.parametrize("shape", [(40, 44), (41, 45)])
def test_straighten(shape, rng):
    """What the projector makes of a turned and shifted axis, taken back to that of a straight one."""
    crooked = projections("x", 12.0, rng.uniform(-2, 2, (31, 2)), shape=shape)
    straight, made = projections("x", shape=shape), straighten(crooked)
    assert made.in_plane_angle == 0 and not made.shifts.any() and "by cubic interpolation" in made.notes[-1]
    difference = (made.images - straight.images)[made.measured]
    assert np.sqrt(np.square(difference).mean()) < 0.02 * straight.images.std()
    assert straighten(straight) is straight


def test_centre_of_aligned_stacks(tmp_path):
    """IMOD's axis is in the middle of the field: our centre on odd sides, half a pixel before it on even ones."""
    for width, shift in ((9, 0.0), (8, -0.5)):
        write_stack(tmp_path / "f.st", np.ones((3, 7, width), np.float32), 10.0)
        (tmp_path / "f.st").rename(tmp_path / "f.ali")
        made = read_tilt_series(tmp_path / "f.ali", angles=[-40, 0, 40], check=False)
        np.testing.assert_array_equal(made.shifts, [[shift, 0]] * 3)
    # and an alignment that does nothing brings that axis to our centre
    image = np.zeros((1, 8, 8), np.float32)
    image[0, 3:5, 3:5] = 1
    made = apply_xf(TiltSeries(image, [0.0]), np.array([[1.0, 0, 0, 1, 0, 0]]))
    y, x = np.mgrid[:8, :8] - 4
    assert abs((x * made.images[0]).sum()) < 1e-5 and abs((y * made.images[0]).sum()) < 1e-5


class FakeAxis(SimpleNamespace):
    pass


def signal(data, units="nm", tilts=None):
    def axis(name, scale, offset, units, size):
        return FakeAxis(name=name, scale=scale, offset=offset, units=units, size=size)

    n, height, width = data.shape
    manager = SimpleNamespace(
        navigation_axes=(axis("Projections", 4.0, -60.0, "degrees", n),),
        signal_axes=(axis("x", 1.5, 0, units, width), axis("y", 1.5, 0, units, height)),
    )
    extra = {} if tilts is None else {"tilts": SimpleNamespace(data=tilts)}
    general = SimpleNamespace(General=SimpleNamespace(title="needle"))
    return SimpleNamespace(data=data, axes_manager=manager, metadata=general, **extra)


def test_hyperspy_signal(series):
    made = read_tilt_series(signal(series.images), check=False)
    assert made.axis == "x" and made.source == "needle" and made.pixel_size == pytest.approx(15.0)
    np.testing.assert_allclose(made.angles_deg, ANGLES)
    own = read_tilt_series(signal(series.images, tilts=ANGLES[:, None] + 1), check=False)
    np.testing.assert_allclose(own.angles_deg, ANGLES + 1)
    unknown = read_tilt_series(signal(series.images, units="<undefined>"), check=False)
    assert unknown.pixel_size is None and "no length in the calibration" in unknown.notes[0]
    wrong = signal(series.images)
    wrong.axes_manager.navigation_axes = ()
    with pytest.raises(ValueError, match="one navigation axis"):
        read_tilt_series(wrong)


@pytest.mark.parametrize("name, package", [("a.dm3", "rsciio"), ("a.emd", "rsciio"), ("a.tif", "tifffile")])
def test_missing_packages_are_named(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ImportError, match=r"invcryo\[stem\]"):
        read_tilt_series(tmp_path / name, angles=ANGLES)


@pytest.mark.data
def test_dm3_is_the_mrc(reference_data):
    pytest.importorskip("rsciio")
    folder = reference_data / "stet-haadf-needle"
    dm3 = read_tilt_series(folder / "HAADF.dm3", check=False)
    mrc = read_tilt_series(
        folder / "haadf_needle_tilts.mrc", angles=folder / "haadf_needle.rawtlt", check=False
    )
    assert (dm3.images == mrc.images).all()
    np.testing.assert_allclose(dm3.angles, mrc.angles, atol=1e-6)
    assert dm3.pixel_size == pytest.approx(179.95, abs=0.01) == mrc.pixel_size


def test_tiff_and_hspy(tmp_path, series):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", series.images)
    np.savetxt(tmp_path / "a.rawtlt", ANGLES)
    made = read_tilt_series(tmp_path / "a.tif", pixel_size=3.0)
    assert (made.images == series.images).all() and made.pixel_size == 3.0
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        for size in (8, 9):
            file.write(np.zeros((size, size), np.float32))
    with pytest.raises(ValueError, match="differ in size"):
        read_tilt_series(tmp_path / "b.tif", angles=[0.0, 1.0])
    hspy = pytest.importorskip("rsciio.hspy")
    axes = [
        {"size": n, "name": name, "scale": scale, "offset": offset, "units": units, "navigate": i == 0}
        for i, (n, name, scale, offset, units) in enumerate(
            [
                (31, "tilt", 4.0, -60.0, "deg"),
                (40, "y", 1.2, 0.0, "nm"),
                (44, "x", 1.2, 0.0, "nm"),
            ]
        )
    ]
    empty: dict = {
        name: {} for name in ("original_metadata", "package_info", "learning_results", "tmp_parameters")
    }
    entry = {"data": np.array(series.images), "axes": axes, "metadata": {"General": {"title": "a"}}, **empty}
    entry |= {"attributes": {"_lazy": False, "ragged": False}, "models": None}
    hspy.file_writer(str(tmp_path / "a.hspy"), entry)
    made = read_tilt_series(tmp_path / "a.hspy")
    np.testing.assert_allclose(made.angles_deg, ANGLES)
    assert made.pixel_size == pytest.approx(12.0) and (made.images == series.images).all()


# -- the axis -----------------------------------------------------------------------------------------------------


def test_line_moments_of_a_pixel():
    image = np.zeros((1, 20, 20))
    image[0, 10 + 3, 10 + 4] = 2.0  # (x, y) = (4, 3)
    mass, moment = line_moments(image, np.deg2rad(30.0))
    along = 4 * np.cos(np.pi / 6) + 3 * np.sin(np.pi / 6)
    bins = np.arange(mass.shape[1]) - mass.shape[1] // 2
    assert mass.sum() == pytest.approx(2) and mass[0] @ bins == pytest.approx(2 * along)
    assert moment.sum() == pytest.approx(2 * (4 * np.sin(np.pi / 6) - 3 * np.cos(np.pi / 6)))


@pytest.mark.parametrize("n", [95, 96, 97, 98, 99, 100])
@pytest.mark.parametrize("factor", [3, 5])
def test_binning_keeps_the_centre(n, factor):
    """The mean position of the pixels in the middle bin is the middle pixel, whatever the sides."""
    ramp = np.arange(n, dtype=float)[None, None, :]
    small = _binned(ramp, factor, 2)[0, 0]
    assert small[len(small) // 2] == n // 2 and np.allclose(np.diff(small), factor)
    assert n - 2 * factor < factor * len(small) <= n


@pytest.mark.parametrize("axis", ["x", "y"])
def test_axis_and_shifts_are_found(axis, rng):
    shifts = rng.uniform(-2, 2, (31, 2))
    made = projections(axis, -17.0, shifts)
    estimate = estimate_axis(made.replace(in_plane_angle=0.0, shifts=None))
    assert estimate.axis == axis and estimate.error < 0.3 * estimate.stated_error
    assert abs(np.rad2deg(estimate.in_plane_angle) + 17) < 1
    # known but for a displacement of the object: a constant along the axis, cosine and sine across it
    direction = np.deg2rad(-17) + (np.pi / 2 if axis == "y" else 0)
    left = estimate.shifts - shifts
    along = left @ [np.cos(direction), np.sin(direction)]
    across = left @ [np.sin(direction), -np.cos(direction)]
    basis = np.stack([np.cos(made.angles), np.sin(made.angles)], axis=1)
    across -= basis @ np.linalg.lstsq(basis, across, rcond=None)[0]
    assert along.std() < 0.2 and across.std() < 0.1
    applied = estimate.apply(made)
    assert (applied.images == made.images).all() and "as estimated" in applied.notes[-1]


@pytest.mark.data
def test_axis_of_the_needle(reference_data):
    """By other means it was found at 11 +- 1 degrees from x."""
    folder = reference_data / "stet-haadf-needle"
    needle = read_tilt_series(
        folder / "haadf_needle_tilts.mrc",
        angles=folder / "haadf_needle.rawtlt",
        axis="x",
        check=False,
    )
    estimate = estimate_axis(needle)
    assert estimate.axis == "x" and abs(np.rad2deg(estimate.in_plane_angle) - 11) < 2
    assert fit_axis(needle, estimate.in_plane_angle).error == pytest.approx(estimate.error)
    with pytest.raises(ValueError, match="91 images but 77 angles"):
        read_tilt_series(
            folder / "haadf_needle_tilts.mrc", angles=folder / "HAADF_other_series_-76_76.rawtlt"
        )
