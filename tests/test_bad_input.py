"""What users get wrong, and what they are told: the value seen, the likely cause, the cure."""

import logging

import numpy as np
import pytest

from invcryo.io import read_map, read_particles, read_star, write_stack, write_star

N = 60


def table(**changes):
    rng = np.random.default_rng(3)
    columns = {
        "rlnImageName": [f"{i + 1:06d}@stack.mrcs" for i in range(N)],
        "rlnAngleRot": rng.uniform(-180, 180, N),
        "rlnAngleTilt": rng.uniform(0, 180, N),
        "rlnAnglePsi": rng.uniform(-180, 180, N),
        "rlnOriginXAngst": rng.uniform(-3, 3, N),
        "rlnOriginYAngst": rng.uniform(-3, 3, N),
        "rlnDefocusU": rng.uniform(10000, 20000, N),
        "rlnDefocusV": rng.uniform(10000, 20000, N),
        "rlnDefocusAngle": rng.uniform(0, 90, N),
        "rlnOpticsGroup": np.ones(N, int),
    } | changes
    return {k: v for k, v in columns.items() if v is not None}


def optics(groups=1, **changes):
    columns = {
        "rlnOpticsGroup": list(range(1, groups + 1)),
        "rlnOpticsGroupName": [f"g{i}" for i in range(groups)],
        "rlnVoltage": [300.0] * groups,
        "rlnSphericalAberration": [2.7] * groups,
        "rlnAmplitudeContrast": [0.1] * groups,
        "rlnImagePixelSize": [1.06] * groups,
    } | changes
    return {k: v for k, v in columns.items() if v is not None}


@pytest.fixture
def particles(tmp_path):
    """Function that writes a set with the tables given and returns its STAR file."""

    def write(particle_table=None, optics_table=None, *, box=8, pixel=1.06, stack="stack.mrcs"):
        write_stack(tmp_path / stack, np.ones((N, box, box)), pixel)
        blocks = {"optics": optics_table or optics(), "particles": particle_table or table()}
        write_star(tmp_path / "particles.star", blocks)
        return tmp_path / "particles.star"

    return write


def test_a_sound_set_is_read_without_a_word(particles, caplog):
    with caplog.at_level(logging.INFO, "invcryo"):
        stack = read_particles(particles())
        assert stack.images[:].shape == (N, 8, 8) and stack.poses is not None and stack.ctf is not None
    assert caplog.text == ""


def test_pixel_size_of_header_and_table_differ(particles, caplog):
    assert read_particles(particles(pixel=1.0)).pixel_size == 1.06
    assert "Pixel size 1.06 angstrom" in caplog.text and "but 1 (header of" in caplog.text
    assert "pass pixel_size= to choose" in caplog.text
    caplog.clear()
    assert read_particles(particles(pixel=1.065)).pixel_size == 1.06  # within 1 %
    assert caplog.text == ""
    assert read_particles(particles(), pixel_size=1.2).pixel_size == 1.2
    assert "pixel size 1.2 angstrom as asked, not 1.06 of the file" in caplog.text


@pytest.mark.parametrize("size", [0.0, -1.0, np.nan])
def test_pixel_size_must_be_positive(particles, size):
    with pytest.raises(ValueError, match="positive"):
        read_particles(particles(), pixel_size=size)
    if size == 0:
        with pytest.raises(ValueError, match="states a pixel size of 0 angstrom; pass pixel_size="):
            read_particles(particles(optics_table=optics(rlnImagePixelSize=[0.0])))


def test_no_pixel_size(particles):
    star = particles(optics_table=optics(rlnImagePixelSize=None))
    with pytest.raises(
        ValueError, match=r"states no pixel size: none of rlnImagePixelSize, .*; pass pixel_size="
    ):
        read_particles(star)
    assert read_particles(star, pixel_size=1.06).pixel_size == 1.06


def test_several_pixel_sizes(particles):
    groups = np.arange(N) % 3 + 1
    star = particles(table(rlnOpticsGroup=groups), optics(3, rlnImagePixelSize=[1.06, 1.1, 1.06]))
    with pytest.raises(
        ValueError, match=r"mixes pixel sizes \(1\.06 angstrom: 40 particles, optics groups 1, 3; 1\.1"
    ):
        read_particles(star)
    assert len(read_particles(star, optics_group=(1, 3))) == 40
    assert read_particles(star, optics_group=2).pixel_size == 1.1
    with pytest.raises(ValueError, match=r"no particle of optics group 5, only \[1 2 3\]"):
        read_particles(star, optics_group=5)


@pytest.mark.parametrize(
    "factor, unit", [(1e-4, "looks like micrometres; multiply it by 10000"), (1e3, "beyond any")]
)
def test_defocus_unit(particles, factor, unit):
    columns = table()
    columns["rlnDefocusU"] = columns["rlnDefocusU"] * factor
    with pytest.raises(ValueError, match=rf"rlnDefocusU = [\d.e+]+ .*{unit}"):
        read_particles(particles(columns))


@pytest.mark.parametrize(
    "name, value, keyword, hint",
    [
        ("rlnVoltage", 300000.0, "voltage_kv", "kilovolts; volts need a factor 1e-3"),
        ("rlnAmplitudeContrast", 7.0, "amplitude_contrast", "a fraction; per cent need a factor 0.01"),
        ("rlnSphericalAberration", 2.7e7, "cs_mm", "millimetres"),
    ],
)
def test_microscope_values(particles, name, value, keyword, hint):
    with pytest.raises(
        ValueError, match=rf"particles\.star: {keyword} = .* is out of range: expected {hint}"
    ):
        read_particles(particles(optics_table=optics(**{name: [value]})))
    star = particles(optics_table=optics(**{name: None}))
    with pytest.raises(ValueError, match=f"has no column {name}, which the CTF needs; pass {keyword}="):
        read_particles(star)
    given = {"voltage_kv": 200.0, "amplitude_contrast": 0.07, "cs_mm": 1.4}[keyword]
    assert getattr(read_particles(star, **{keyword: given}).ctf, keyword)[0] == given


def test_radians(particles):
    columns = table()
    for name in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"):
        columns[name] = np.deg2rad(columns[name])
    star = particles(columns)
    with pytest.raises(ValueError, match=r"lie within ±3\.\d+; degrees are expected .* pass degrees=False"):
        read_particles(star)
    in_degrees = read_particles(particles()).poses
    star = particles(columns)
    np.testing.assert_allclose(
        read_particles(star, degrees=False).poses.matrices, in_degrees.matrices, atol=1e-9
    )
    assert read_particles(star, degrees=True).poses is not None
    with pytest.raises(ValueError, match=r"angles reach 17\d\.\d, too large for radians; use degrees=True"):
        read_particles(particles(), degrees=False)
    zero = dict.fromkeys(("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"), np.zeros(N))
    assert (read_particles(particles(table(**zero))).poses.matrices == np.eye(3)).all()


def test_some_poses_missing(particles):
    angles = table()["rlnAngleRot"].copy()
    angles[[4, 9]] = -999
    with pytest.raises(
        ValueError, match=r"2 of 60 particles have no pose \(angle -999\), the first is particle 5"
    ):
        read_particles(particles(table(rlnAngleRot=angles)))


def test_shifts_beyond_half_the_box(particles, caplog):
    far = table()["rlnOriginXAngst"].copy()
    far[3] = 90.0
    read_particles(particles(table(rlnOriginXAngst=far)))
    assert "1 particles are shifted by more than half the box (up to 84.9 of 8 pixels)" in caplog.text


@pytest.mark.parametrize(
    "name, value",
    [
        ("rlnMagMat00", 1.01),
        ("rlnMagMat01", -0.001),
        ("rlnBeamTiltX", 0.3),
        ("rlnOddZernike", "[0,0,0.5,0]"),
        ("rlnEvenZernike", "[1e-3,0]"),
        ("rlnCtfDataAreCtfPremultiplied", 1),
        ("rlnCtfDataArePhaseFlipped", 1),
    ],
)
def test_effects_that_are_not_modelled(particles, caplog, name, value):
    star = particles(optics_table=optics(**{name: [value]}))
    with pytest.raises(
        ValueError, match=rf"corrections that are not modelled here: {name} = .*ignore=\('{name}',\)"
    ):
        read_particles(star)
    assert len(read_particles(star, ignore=(name,))) == N
    assert f"{name} = " in caplog.text and "is ignored, as asked" in caplog.text
    with pytest.raises(ValueError, match="collection of column names"):
        read_particles(star, ignore=name)


def test_trivial_corrections_pass(particles, caplog):
    neutral = {"rlnMagMat00": [1.0], "rlnMagMat01": [0.0], "rlnMagMat10": [0.0], "rlnMagMat11": [1.0]}
    neutral |= {"rlnBeamTiltX": [0.0], "rlnOddZernike": ["[0,0,0]"], "rlnCtfDataAreCtfPremultiplied": [0]}
    assert len(read_particles(particles(optics_table=optics(**neutral)))) == N
    assert caplog.text == ""


def test_missing_stacks(particles, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [f"1@Extract/job1/{i}.mrcs" for i in range(N - 1)] + ["1@stack.mrcs"]
    star = particles(table(rlnImageName=names))
    (tmp_path / "data").mkdir()
    with pytest.raises(FileNotFoundError) as error:
        read_particles(star, data_dir=tmp_path / "data")
    text = str(error.value)
    assert (
        "59 of 60 stacks are missing: Extract/job1/0.mrcs, Extract/job1/1.mrcs, Extract/job1/2.mrcs, ..."
        in text
    )
    assert f"Tried in: {tmp_path / 'data'}, {tmp_path}, {tmp_path.parent}" in text
    assert "Run in the RELION project folder, or pass data_dir=" in text
    with pytest.raises(NotADirectoryError, match=r"data_dir .* is not a folder"):
        read_particles(star, data_dir=tmp_path / "none")


@pytest.mark.parametrize(
    "name, message",
    [
        ("000061@stack.mrcs", r"image 61 of .*stack\.mrcs, but the file holds 60 \(numbers start at 1\)"),
        (
            "000000@stack.mrcs",
            "'000000@stack.mrcs' of particle 8 does not read NUMBER@STACK with a number from 1",
        ),
        ("x@stack.mrcs", "'x@stack.mrcs' of particle 8 does not read NUMBER@STACK"),
    ],
)
def test_image_numbers(particles, name, message):
    names = table()["rlnImageName"]
    names[7] = name
    with pytest.raises(ValueError, match=message):
        read_particles(particles(table(rlnImageName=names)))


def test_truncated_stack(particles, tmp_path):
    star = particles()
    stack = tmp_path / "stack.mrcs"
    stack.write_bytes(stack.read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=r"stack\.mrcs is cut off: 8 x 8 x 60 values of MODE 2 need 16384 bytes.* 16284"
    ):
        read_particles(star)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_pixels_name_the_image(particles, tmp_path, value):
    star = particles()
    stack = tmp_path / "stack.mrcs"
    raw = bytearray(stack.read_bytes())
    raw[1024 + 11 * 256 : 1028 + 11 * 256] = np.float32(value).tobytes()
    stack.write_bytes(raw)
    images = read_particles(star).images
    assert images[:11].shape == (11, 8, 8)
    with pytest.raises(
        ValueError, match=r"1 images hold NaN or infinite pixels: 12@.*stack\.mrcs; leave them out"
    ):
        images[5:20]


def test_nan_in_a_column(particles):
    text = [str(v) for v in table()["rlnDefocusU"]]
    text[6] = "nan"
    with pytest.raises(ValueError, match="rlnDefocusU of particle 7 is nan"):
        read_particles(particles(table(rlnDefocusU=text)))
    text[6] = "n/a"
    with pytest.raises(ValueError, match="rlnDefocusU of row 7 is 'n/a', not a number"):
        read_particles(particles(table(rlnDefocusU=text)))


def test_mixed_boxes(particles, tmp_path):
    write_stack(tmp_path / "other.mrcs", np.ones((N, 10, 10)), 1.06)
    names = [f"{i + 1}@{'stack' if i < 40 else 'other'}.mrcs" for i in range(N)]
    columns = table(rlnImageName=names, rlnOpticsGroup=[1] * 40 + [2] * 20)
    with pytest.raises(ValueError) as error:
        read_particles(particles(columns, optics(2)))
    text = str(error.value)
    assert "8 x 8: 40 particles, optics groups 1, such as" in text
    assert "10 x 10: 20 particles, optics groups 2, such as" in text and "optics_group=" in text
    assert read_particles(particles(columns, optics(2)), optics_group=2).box == 10


def test_stack_of_a_mode_that_is_not_read(particles, tmp_path):
    star = particles()
    raw = bytearray((tmp_path / "stack.mrcs").read_bytes())
    raw[12:16] = (101).to_bytes(4, "little")
    (tmp_path / "stack.mrcs").write_bytes(raw)
    with pytest.raises(ValueError, match=r"stack\.mrcs: MODE 101 is not read"):
        read_particles(star)


def test_optics_tables_that_do_not_join(particles):
    with pytest.raises(
        ValueError, match=r"optics groups \[2\], which the optics table does not have \(it has \[1\]\)"
    ):
        read_particles(particles(table(rlnOpticsGroup=[1] * 59 + [2])))
    with pytest.raises(ValueError, match="numbers occur twice"):
        read_particles(particles(optics_table=optics(2, rlnOpticsGroup=[1, 1])))
    with pytest.raises(ValueError, match="rlnOpticsGroup, which is missing in the particle table"):
        read_particles(particles(table(rlnOpticsGroup=None), optics(2)))
    assert len(read_particles(particles(table(rlnOpticsGroup=None), optics(1)))) == N
    with pytest.raises(ValueError, match="no column rlnOpticsGroup to select"):
        read_particles(particles(table(rlnOpticsGroup=None), optics(1)), optics_group=1)


def test_files_that_are_no_particle_sets(particles, tmp_path):
    write_star(tmp_path / "fsc.star", {"general": {"a": 1}, "fsc": {"rlnResolution": [0.1, 0.2]}})
    with pytest.raises(
        ValueError, match=r"no table has a column rlnImageName .tables: data_general, data_fsc"
    ):
        read_particles(tmp_path / "fsc.star")
    write_star(tmp_path / "none.star", {"particles": {"rlnImageName": [], "rlnAngleRot": []}})
    with pytest.raises(ValueError, match="lists no particle"):
        read_particles(tmp_path / "none.star")
    with pytest.raises(FileNotFoundError):
        read_particles(tmp_path / "absent.star")
    with pytest.raises(ValueError, match="subtomograms"):
        read_particles(particles(optics_table=optics(rlnImageDimensionality=[3])))
    with pytest.raises(ValueError, match="tilt-series particles"):
        read_particles(particles(table(rlnTomoVisibleFrames=["[1,1]"] * N)))


def test_map_that_calls_itself_a_stack(tmp_path, caplog):
    """RELION up to 5.0 writes ISPG 0 into its maps."""
    write_stack(tmp_path / "m.mrcs", np.ones((8, 8, 8)), 2.0)
    raw = bytearray((tmp_path / "m.mrcs").read_bytes())
    raw[36:40] = (8).to_bytes(4, "little")
    (tmp_path / "m.mrc").write_bytes(raw)
    with caplog.at_level(logging.INFO, "invcryo"):
        assert read_map(tmp_path / "m.mrc").data.shape == (8, 8, 8)
    assert "is read as a volume, by the suffix .mrc (MZ = 8, NZ = 8, ISPG = 0)" in caplog.text


@pytest.mark.data
def test_column_missing_in_a_real_file(reference_data, tmp_path):
    star = reference_data / "formats-star" / "aspire_sample_incomplete_ctf_params.star"
    write_stack(tmp_path / "sample.mrcs", np.ones((1, 8, 8)), 1.338)
    with pytest.raises(ValueError, match="has no column rlnVoltage, which the CTF needs; pass voltage_kv="):
        read_particles(star, data_dir=tmp_path)
    assert read_particles(star, data_dir=tmp_path, voltage_kv=300).ctf.voltage_kv.tolist() == [300]


@pytest.mark.data
@pytest.mark.parametrize(
    "name", ["default_pipeline", "postprocess", "run_it025_sampling_3D", "two_basic_blocks"]
)
def test_real_files_that_are_no_particle_sets(reference_data, name):
    path = reference_data / "formats-star" / f"{name}.star"
    assert len(read_star(path)) >= 1
    with pytest.raises(ValueError, match=rf"{name}\.star is no particle file"):
        read_particles(path)
