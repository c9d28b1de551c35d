"""cryoSPARC's .cs files: meaning of the columns against cryoDRGN's tables, joining, writing, bad files."""

import dataclasses
import logging
import subprocess

import numpy as np
import pytest

from invcryo.ctf import CTF
from invcryo.data import ParticleStack, Poses
from invcryo.io import describe, read_cs, read_particles, read_star, write_cs, write_particles, write_stack
from invcryo.io.cryosparc import join_cs, relion_columns
from invcryo.io.cs_particles import lost_in_cs, lost_in_star
from invcryo.rotation import geodesic_distance, matrix_from_rotvec, random_rotations, rotvec_from_matrix

N = 6
MAIN = "ref-pose-ctf-parse/cryosparc_P12_J24_001_particles.cs"


def columns(n=N, seed=0, **changes):
    """Columns of a refinement; None drops one."""
    rng = np.random.default_rng(seed)
    found = {
        "uid": rng.permutation(n).astype(np.uint64) + 2**63,
        "blob/path": np.full(n, b">J1/extract/stack.mrcs"),
        "blob/idx": np.arange(n, dtype=np.uint32)[::-1],
        "blob/shape": np.full((n, 2), 8, np.uint32),
        "blob/psize_A": np.full(n, 1.5, np.float32),
        "blob/sign": np.full(n, -1, np.float32),
        "ctf/exp_group_id": (np.arange(n) % 2).astype(np.uint32),
        "ctf/accel_kv": np.full(n, 300, np.float32),
        "ctf/cs_mm": np.full(n, 2.7, np.float32),
        "ctf/amp_contrast": np.full(n, 0.1, np.float32),
        "ctf/df1_A": rng.uniform(1e4, 2e4, n).astype(np.float32),
        "ctf/df2_A": rng.uniform(1e4, 2e4, n).astype(np.float32),
        "ctf/df_angle_rad": rng.uniform(-1.5, 1.5, n).astype(np.float32),
        "ctf/phase_shift_rad": np.full(n, 0.25, np.float32),
        "ctf/anisomag": np.zeros((n, 4), np.float32),
        "alignments3D/split": (np.arange(n) % 2).astype(np.uint32),
        "alignments3D/shift": rng.normal(size=(n, 2)).astype(np.float32),
        "alignments3D/pose": rotvec_from_matrix(random_rotations(n, rng=rng)).astype(np.float32),
        "alignments3D/psize_A": np.full(n, 3.0, np.float32),
        "alignments3D/error": np.arange(n, dtype=np.float32),
        "alignments3D/class": np.zeros(n, np.uint32),
    } | changes
    return {name: np.asarray(v) for name, v in found.items() if v is not None}


def save(path, table):
    """Columns as NumPy records; rows as many as the first column has."""
    n = len(next(iter(table.values())))
    records = np.zeros(n, [(name, v.dtype, v.shape[1:]) for name, v in table.items()])
    for name, values in table.items():
        records[name] = values
    with path.open("wb") as file:
        np.lib.format.write_array(file, records)
    return path


@pytest.fixture
def project(tmp_path):
    """Function that writes a stack, whose image i is filled with i, and a .cs file; gives its path."""

    def make(name="particles.cs", **changes):
        place = tmp_path / "J1/extract"
        place.mkdir(parents=True, exist_ok=True)
        write_stack(place / "stack.mrcs", np.ones((N, 8, 8)) * np.arange(N)[:, None, None], 1.5)
        return save(tmp_path / name, columns(**changes))

    return make


# --- meaning ------------------------------------------------------------------------------------------------


@pytest.mark.data
def test_poses_shifts_and_ctf_are_those_of_cryodrgn(reference_data):
    folder = reference_data / "ref-pose-ctf-parse"
    stack = read_particles(reference_data / MAIN, open_images=False)
    ctf = np.load(folder / "cs_ctf.npy").astype(np.float64)
    # The tables are float32: 4.5e-7 are its roundings in the exponential of a vector of length 4.
    np.testing.assert_allclose(stack.poses.matrices, np.load(folder / "cs_rotations.npy"), atol=6e-7)
    np.testing.assert_allclose(-stack.poses.shifts / 180, np.load(folder / "cs_translations.npy"), atol=6e-8)
    assert stack.pixel_size == pytest.approx(ctf[0, 1], rel=1e-7)
    np.testing.assert_array_equal(stack.ctf.defocus_u_angstrom, ctf[:, 2])
    np.testing.assert_array_equal(stack.ctf.defocus_v_angstrom, ctf[:, 3])
    np.testing.assert_allclose(np.rad2deg(stack.ctf.defocus_angle), ctf[:, 4], rtol=2e-7)
    np.testing.assert_array_equal(stack.ctf.voltage_kv, ctf[:, 5])
    np.testing.assert_array_equal(stack.ctf.cs_mm, ctf[:, 6])
    np.testing.assert_array_equal(stack.ctf.amplitude_contrast, ctf[:, 7])
    np.testing.assert_array_equal(np.rad2deg(stack.ctf.phase_shift), ctf[:, 8])
    assert np.bincount(stack.half).tolist() == [0, 1010, 1009]
    assert (stack.images.sign == -1).all() and stack.images.shape == (2019, 180, 180)


@pytest.mark.data
def test_same_particles_from_star_and_cs(reference_data):
    folder = reference_data / "spa-empiar-10076-7"
    a = read_particles(folder / "empiar_10076_7.cs")
    b = read_particles(folder / "empiar_10076_7.star", contrast="dark")
    for field in dataclasses.fields(CTF):
        np.testing.assert_allclose(
            getattr(a.ctf, field.name), getattr(b.ctf, field.name), rtol=6e-8, err_msg=field.name
        )
    np.testing.assert_array_equal(a.images[:], b.images[:])
    assert a.pixel_size == pytest.approx(b.pixel_size, rel=1e-5)


def test_units_signs_and_numbers_from_zero(project):
    table = columns()
    stack = read_particles(project())
    np.testing.assert_allclose(
        stack.poses.matrices, matrix_from_rotvec(table["alignments3D/pose"]), atol=1e-14
    )
    # The refinement had pixels of 3 angstrom, the images have 1.5.
    np.testing.assert_allclose(stack.poses.shifts, -2.0 * table["alignments3D/shift"], rtol=1e-14)
    np.testing.assert_array_equal(stack.half, table["alignments3D/split"] + 1)
    np.testing.assert_array_equal(stack.images[:][:, 0, 0], -table["blob/idx"].astype(float))
    np.testing.assert_allclose(stack.ctf.phase_shift, 0.25, rtol=1e-15)
    assert stack.table["rlnImageName"][0] == "000006@J1/extract/stack.mrcs"
    assert stack.table["rlnClassNumber"].tolist() == [1] * N
    assert stack.table["rlnOpticsGroupName"].tolist() == ["opticsGroup1", "opticsGroup2"] * 3
    assert stack.table["alignments3D/error"].tolist() == list(range(N))


def test_the_example_of_the_conventions(project):
    pose = np.tile(np.float32([0.131288, 0.744573, 1.335235]), (N, 1))
    stack = read_particles(project(**{"alignments3D/pose": pose}))
    np.testing.assert_allclose(np.array(stack.poses.euler_deg())[:, 0], [30, 40, 50], atol=5e-5)


def test_signs_may_differ_between_images(project):
    sign = np.float32([1, -1, 1, 1, -1, -1])
    path = project(**{"blob/sign": sign})
    stack = read_particles(path)
    np.testing.assert_array_equal(stack.images[:][:, 3, 3], sign * np.arange(N)[::-1])
    np.testing.assert_array_equal(stack[[4, 0]].images[:][:, 3, 3], [-1, 5])
    np.testing.assert_array_equal(read_particles(path, contrast="dark").images.sign, -sign)


def test_most_probable_class(project):
    rng = np.random.default_rng(5)
    poses = rotvec_from_matrix(random_rotations(3 * N, rng=rng)).reshape(N, 3, 3).astype(np.float32)
    posterior = rng.dirichlet(np.ones(3), N).astype(np.float32)
    shifts = rng.normal(size=(N, 3, 2)).astype(np.float32)
    best = posterior.argmax(axis=1)
    none = {f"alignments3D/{k}": None for k in ("pose", "shift", "split", "psize_A", "class", "error")}
    multi = none | {
        "alignments3D_multi/pose": poses,
        "alignments3D_multi/shift": shifts,
        "alignments3D_multi/class": np.tile(np.arange(3, dtype=np.uint32), (N, 1)),
        "alignments3D_multi/class_posterior": posterior,
        "alignments3D_multi/psize_A": np.full(N, 3, np.float32),
    }
    apart = none.copy()
    for k in range(3):
        apart |= {
            f"alignments_class_{k}/pose": poses[:, k],
            f"alignments_class_{k}/shift": shifts[:, k],
            f"alignments_class_{k}/class": np.full(N, k, np.uint32),
            f"alignments_class_{k}/class_posterior": posterior[:, k],
            f"alignments_class_{k}/psize_A": np.full(N, 3, np.float32),
        }
    for changes in (multi, apart):
        stack = read_particles(project(**changes))
        expected = matrix_from_rotvec(poses[np.arange(N), best])
        np.testing.assert_allclose(stack.poses.matrices, expected, atol=1e-14)
        np.testing.assert_allclose(stack.poses.shifts, -2.0 * shifts[np.arange(N), best], rtol=1e-14)
        np.testing.assert_array_equal(stack.table["rlnClassNumber"], best + 1)


def test_2d_alignments_are_no_3d_poses(project, caplog):
    changes = {name: None for name in columns() if name.startswith("alignments3D")}
    changes["alignments2D/pose"] = np.linspace(0, 6, N).astype(np.float32)
    changes["alignments2D/class"] = np.arange(N, dtype=np.uint32)
    changes["alignments2D/split"] = np.zeros(N, np.uint32)
    stack = read_particles(project(**changes))
    assert stack.poses is None and stack.half is None
    assert "holds no poses" in caplog.text
    np.testing.assert_allclose(
        np.deg2rad(stack.table["rlnAnglePsi"]), changes["alignments2D/pose"], rtol=1e-15
    )
    np.testing.assert_array_equal(stack.table["rlnClassNumber"], np.arange(N) + 1)


@pytest.mark.data
def test_exported_file_with_2d_classes(reference_data):
    path = reference_data / "spa-empiar-10076-7/cryosparc_J2_particles_exported.cs"
    found = describe(path)
    assert found["particles"] == 22 and found["box"] == [(300, 300)] and not found["poses"]
    # Exported paths begin with >, which is no part of the name.
    assert found["missing_stacks"] == ["J1/imported/000090334788266266069_18jam15b_0345_ali_DW.mrcs"]


def test_coordinates(project):
    location = {
        "location/micrograph_path": np.full(N, b"J1/motion/m.mrc"),
        "location/micrograph_shape": np.tile(np.uint32([300, 400]), (N, 1)),
        "location/center_x_frac": np.full(N, 0.25, np.float32),
        "location/center_y_frac": np.full(N, 0.25, np.float32),
    }
    path = project(**location)
    for flip, y in ((False, 75), (True, 225)):
        table = read_particles(path, flip_y=flip).table
        assert (table["rlnCoordinateX"][0], table["rlnCoordinateY"][0]) == (100, y)
        assert table["rlnMicrographName"][0] == "J1/motion/m.mrc"


def test_optics_group_and_describe(project):
    path = project()
    assert len(read_particles(path, optics_group=2)) == N // 2
    found = describe(path)
    assert found["optics_groups"] == 2 and found["half_sets"] == {1: 3, 2: 3} and found["poses"]
    assert found["stacks"] == 1 and not found["missing_stacks"] and found["unsupported_columns"] == {}


# --- several files ------------------------------------------------------------------------------------------


def test_passthrough_is_joined_by_uid(project, tmp_path):
    """Rows in another order, rows of other particles, columns in both files."""
    table = columns(2 * N)
    order = np.random.default_rng(1).permutation(2 * N)
    beyond = [name for name in table if name.startswith("ctf/") or name in ("uid", "blob/idx")]
    other = {name: table[name][order] for name in beyond}
    other["blob/idx"] = other["blob/idx"] + 1000
    main = {name: v[:N] for name, v in table.items() if not name.startswith("ctf/")}
    main["blob/idx"] = np.arange(N, dtype=np.uint32)
    project()
    a, b = save(tmp_path / "a.cs", main), save(tmp_path / "b.cs", other)
    stack = read_particles(a, passthrough=b)
    np.testing.assert_array_equal(stack.ctf.defocus_u_angstrom, table["ctf/df1_A"][:N])
    np.testing.assert_array_equal(stack.table["blob/idx"], np.arange(N))
    assert read_particles(a).ctf is None
    assert describe(a, passthrough=[b])["defocus_angstrom"] is not None


def test_join_errors():
    table = columns()
    other = {"uid": table["uid"], "x": np.arange(N)}
    with pytest.raises(ValueError, match=r"B lacks 1 of the 6 particles of A \(the first is uid"):
        join_cs(table, {k: v[1:] for k, v in other.items()}, names=("A", "B"))
    with pytest.raises(ValueError, match="occurs twice"):
        join_cs(table, {k: np.concatenate([v, v[:1]]) for k, v in other.items()})
    with pytest.raises(ValueError, match="B has no column uid"):
        join_cs(table, {"x": np.arange(N)}, names=("A", "B"))


def test_passthrough_for_star_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"are for \.cs files"):
        read_particles(tmp_path / "x.star", passthrough="y.cs")


# --- writing ------------------------------------------------------------------------------------------------


def test_star_says_the_same(project, tmp_path, caplog):
    stack = read_particles(project())
    write_particles(tmp_path / "p.star", stack)
    again = read_particles(tmp_path / "p.star", contrast="dark")
    assert geodesic_distance(again.poses.matrices, stack.poses.matrices).max() < 1e-13
    np.testing.assert_allclose(again.poses.shifts, stack.poses.shifts, rtol=1e-13)
    np.testing.assert_array_equal(again.half, stack.half)
    np.testing.assert_array_equal(again.images[:], stack.images[:])
    for field in dataclasses.fields(CTF):
        # As text, float32 is written with the digits it has.
        np.testing.assert_allclose(getattr(again.ctf, field.name), getattr(stack.ctf, field.name), rtol=6e-8)
    blocks = read_star(tmp_path / "p.star")
    assert blocks["optics"]["rlnOpticsGroupName"].tolist() == ["opticsGroup1", "opticsGroup2"]
    assert blocks["optics"]["rlnAmplitudeContrast"][0] == "0.1"
    assert blocks["particles"]["ucsfUid"].tolist() == [str(u) for u in columns()["uid"]]
    assert not any("/" in name for name in blocks["particles"])
    assert lost_in_star(stack.table) == ["blob/sign", "ctf/anisomag", "alignments3D/error"]
    assert "no word for blob/sign, ctf/anisomag, alignments3D/error" in caplog.text


def test_a_part_is_written_as_it_was(project, tmp_path):
    path = project()
    table = read_cs(path)
    rows = [4, 1, 3]
    write_cs(tmp_path / "part.cs", read_particles(path)[rows])
    again = read_cs(tmp_path / "part.cs")
    assert next(iter(again)) == "uid"
    for name, values in table.items():
        np.testing.assert_array_equal(again[name], values[rows], err_msg=name)
        assert again[name].dtype == values.dtype
    assert set(again) - set(table) == {"ctf/bfactor", "ctf/scale", "ctf/type"}


def test_new_poses_replace_the_old_ones(project, tmp_path):
    stack = read_particles(project())
    poses = Poses(random_rotations(N, rng=3), np.random.default_rng(4).normal(size=(N, 2)))
    changed = dataclasses.replace(stack, poses=poses, half=3 - stack.half, ctf=stack.ctf[::-1])
    write_cs(tmp_path / "new.cs", changed)
    again = read_particles(tmp_path / "new.cs")
    # float32 vectors of length up to pi
    assert (
        geodesic_distance(again.poses.matrices, poses.matrices).max() < 4 * np.pi * np.finfo(np.float32).eps
    )
    np.testing.assert_allclose(again.poses.shifts, poses.shifts, rtol=1e-6)
    np.testing.assert_array_equal(again.half, 3 - stack.half)
    np.testing.assert_array_equal(again.ctf.defocus_u_angstrom, stack.ctf.defocus_u_angstrom[::-1])


def test_from_star_and_back(project, tmp_path, caplog):
    stack = read_particles(project())
    write_particles(tmp_path / "p.star", stack)
    star = read_particles(tmp_path / "p.star", contrast="dark")
    star = dataclasses.replace(star, table=dict(star.table) | {"rlnGroupNumber": np.full(N, "1")})
    write_cs(tmp_path / "back.cs", star)
    again = read_particles(tmp_path / "back.cs")
    np.testing.assert_array_equal(again.table["uid"], stack.table["uid"])
    np.testing.assert_array_equal(again.images[:], stack.images[:])
    assert geodesic_distance(again.poses.matrices, stack.poses.matrices).max() < 2e-6
    assert lost_in_cs(star.table) == ["rlnGroupNumber"] and "no place for rlnGroupNumber" in caplog.text


def test_uids_of_names(project, tmp_path):
    stack = read_particles(project())
    table = {k: v for k, v in stack.table.items() if k.startswith("rln")}
    plain = dataclasses.replace(stack, table=table)
    write_cs(tmp_path / "a.cs", plain)
    write_cs(tmp_path / "b.cs", plain[::-1])
    a, b = read_cs(tmp_path / "a.cs"), read_cs(tmp_path / "b.cs")
    assert len(set(a["uid"].tolist())) == N
    np.testing.assert_array_equal(a["uid"], b["uid"][::-1])
    with pytest.raises(ValueError, match="occurs twice"):
        write_cs(tmp_path / "c.cs", plain[[0, 0]])
    assert not (tmp_path / "c.cs").exists()


@pytest.mark.relion
def test_relion_reads_the_converted_star(project, tmp_path, relion):
    """RELION keeps the column that it does not know, and puts all numbers where they belong."""
    write_particles(tmp_path / "p.star", read_particles(project()))
    done = subprocess.run(
        ["relion_star_handler", "--i", "p.star", "--o", "r.star", "--select", "rlnDefocusU", "--minval", "0"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    a, b = (read_star(tmp_path / name)["particles"] for name in ("p.star", "r.star"))
    assert set(a) == set(b)
    np.testing.assert_array_equal(a["ucsfUid"], b["ucsfUid"])
    for name in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnDefocusU", "rlnOriginXAngst"):
        # RELION writes 5 or 6 decimals
        np.testing.assert_allclose(a.numbers(name), b.numbers(name), atol=6e-6, err_msg=name)


# --- bad files ----------------------------------------------------------------------------------------------


def spoil(path, change):
    path.write_bytes(change(path.read_bytes()))


BAD_BYTES = {
    "truncated": (lambda b: b[:-10], r"cut off: 6 rows of \d+ bytes need \d+ bytes, the file has"),
    "too long": (lambda b: b + b"123", "3 bytes more than its 6 rows"),
    "empty": (lambda b: b"", r"is no \.cs file"),
    "text": (lambda b: b"data_particles\n\nloop_\n", r"is no \.cs file"),
    "compressed": (lambda b: b"\x94CSDAT" + b[6:], "compressed stream format"),
    "header cut": (lambda b: b[:40], "header of this .cs file is broken"),
    "no literal": (lambda b: b.replace(b"{'descr'", b"{'des(((", 1), "header of this .cs file is broken"),
    "format 9": (lambda b: b[:6] + b"\x09" + b[7:], r"format 9\.0 is not read"),
    "huge": (lambda b: b.replace(b"(6,)", b"(6000000000000,)", 1)[: len(b)], "cut off|broken"),
    "negative": (lambda b: b.replace(b"(6,), ", b"(-6,),", 1), "broken"),
}


@pytest.mark.parametrize("case", BAD_BYTES)
def test_bad_bytes(project, case):
    change, message = BAD_BYTES[case]
    path = project()
    spoil(path, change)
    with pytest.raises(ValueError, match=message) as caught:
        read_particles(path)
    assert "particles.cs" in str(caught.value)


class Bomb:
    """Unpickling it would run code."""

    def __reduce__(self):
        return (exec, ("raise SystemExit",))


def test_objects_are_not_unpickled(tmp_path):
    records = np.zeros(2, [("uid", "u8"), ("blob/path", object)])
    records["blob/path"] = [Bomb(), Bomb()]
    with (tmp_path / "x.cs").open("wb") as file:
        np.lib.format.write_array(file, records, allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects"):
        read_cs(tmp_path / "x.cs")


@pytest.mark.parametrize("array", [np.zeros((3, 3)), np.zeros((2, 2), [("uid", "u8")])])
def test_no_table(tmp_path, array):
    with (tmp_path / "x.cs").open("wb") as file:
        np.save(file, array)
    with pytest.raises(ValueError, match="no particle table"):
        read_cs(tmp_path / "x.cs")


BAD_COLUMNS = {
    "degrees": ({"alignments3D/pose": np.full((N, 3), 90, np.float32)}, "more than a full turn"),
    "angle in degrees": ({"ctf/df_angle_rad": np.full(N, 45, np.float32)}, "looks like degrees"),
    "no images": ({"blob/path": None}, r"where the images are: no column blob/path.*passthrough="),
    "no pixel size": ({"blob/psize_A": None}, "does not say the pixel size"),
    "pixel size 0": ({"blob/psize_A": np.zeros(N, np.float32)}, "0 angstrom, not positive"),
    "index": ({"blob/idx": np.full(N, 99, np.uint32)}, r"image 100 of .*, but the file holds 6"),
    "negative index": ({"blob/idx": np.full(N, -1, np.int32)}, "number of an image, from 0"),
    "pose of 4": ({"alignments3D/pose": np.zeros((N, 4), np.float32)}, r"shape \(4,\) per particle"),
    "text as number": ({"ctf/df1_A": np.full(N, b"1.5")}, "not numbers"),
    "number as text": ({"blob/path": np.zeros(N)}, "not text"),
    "NaN": ({"alignments3D/shift": np.full((N, 2), np.nan, np.float32)}, "NaN or infinite"),
    "sign": ({"blob/sign": np.zeros(N, np.float32)}, "blob/sign is 0, not 1 or -1"),
    "micrometres": ({"ctf/df1_A": np.full(N, 1.5, np.float32)}, "looks like micrometres"),
    "no voltage": ({"ctf/accel_kv": None}, "no column rlnVoltage.*voltage_kv="),
    "beam tilt": ({"ctf/tilt_A": np.ones((N, 2), np.float32)}, r"not modelled here: ctf/tilt_A = \[1\. 1\.\]: beam"),
    "magnification": ({"ctf/anisomag": np.full((N, 4), 0.1, np.float32)}, "anisotropic magnification"),
    "no name": ({"blob/path": np.full(N, b">")}, "empty or unprintable"),
    "mixed pixels": ({"blob/psize_A": np.float32([1, 1, 1, 2, 2, 2])}, "mixes pixel sizes"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_COLUMNS)
def test_bad_columns(project, case):
    changes, message = BAD_COLUMNS[case]
    with pytest.raises(ValueError, match=message) as caught:
        read_particles(project(**changes))
    assert "particles.cs" in str(caught.value) or case == "index"


def test_effects_may_be_ignored(project):
    path = project(**{"ctf/tilt_A": np.ones((N, 2), np.float32)})
    assert len(read_particles(path, ignore=("ctf/tilt_A",))) == N


def test_an_isotropic_magnification_is_none(project):
    path = project(**{"ctf/anisomag": np.tile(np.float32([1, 0, 0, 1]), (N, 1))})
    assert describe(path)["unsupported_columns"] == {}


def test_the_other_file_is_named(project, tmp_path):
    save(tmp_path / "J1_passthrough_particles.cs", columns())
    path = project(**{"blob/path": None})
    with pytest.raises(ValueError, match=r"beside it: J1_passthrough_particles\.cs"):
        read_particles(path)


def test_degrees_do_not_apply(project):
    with pytest.raises(ValueError, match="radians always"):
        read_particles(project(), degrees=False)


def test_unread_images(project, tmp_path):
    path = project()
    (tmp_path / "J1/extract/stack.mrcs").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 1 stacks are missing"):
        read_particles(path)
    stack = read_particles(path, open_images=False)[1:3]
    assert stack.images.shape == (2, 8, 8) and len(stack.images) == 2
    with pytest.raises(ValueError, match="read without their images"):
        stack.images[:]


def test_shifts_without_their_pixel_size(project, caplog):
    stack = read_particles(project(**{"alignments3D/psize_A": None}))
    np.testing.assert_allclose(stack.poses.shifts, -columns()["alignments3D/shift"], rtol=1e-14)
    assert "shifts are taken as pixels of the images" in caplog.text


def test_one_half_is_no_half_set(project, caplog):
    with caplog.at_level(logging.INFO):
        assert read_particles(project(**{"alignments3D/split": np.zeros(N, np.uint32)})).half is None
    assert "no half sets" in caplog.text


def test_relion_columns_of_a_table_in_memory():
    found = relion_columns("x.cs", columns())
    assert found["rlnOriginXAngst"] == pytest.approx(
        3.0 * columns()["alignments3D/shift"][:, 0].astype(float)
    )


def test_a_shift_beyond_single_precision_is_not_written(tmp_path):
    """It would be infinite in the file, which could then not be read."""
    images = np.zeros((2, 4, 4), np.float32)
    poses = Poses(np.tile(np.eye(3), (2, 1, 1)), np.array([[0.0, 0.0], [1e39, 0.0]]))
    star = tmp_path / "p.star"
    write_particles(star, ParticleStack(images, 1.5, poses), stack_path=tmp_path / "p.mrcs")
    with pytest.raises(ValueError, match=r"alignments3D/shift of particle 2 is beyond .* single precision"):
        write_cs(tmp_path / "p.cs", read_particles(star))
    assert not (tmp_path / "p.cs").exists()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("rlnClassNumber", "descr", "rlnClassNumber of row 2 is 'descr', not a number"),
        ("rlnClassNumber", "nan", "rlnClassNumber of particle 2 is nan, not the number of a class"),
        ("rlnClassNumber", "1e12", "rlnClassNumber of particle 2 is 1e.12, not the number of a class"),
        ("rlnMicrographName", "", "rlnMicrographName of particle 2 is '': empty or unprintable"),
        ("rlnMicrographName", "a\x01b", "rlnMicrographName of particle 2 is .*: empty or unprintable"),
    ],
)
def test_what_a_cs_file_could_not_hold_is_refused_by_name(tmp_path, column, value, message):
    images = np.zeros((2, 4, 4), np.float32)
    write_particles(
        tmp_path / "p.star",
        ParticleStack(images, 1.5, Poses(np.stack([np.eye(3)] * 2), np.zeros((2, 2)))),
        stack_path=tmp_path / "p.mrcs",
    )
    stack = read_particles(tmp_path / "p.star")
    stack.table[column] = np.array(["1", value])
    with pytest.raises(ValueError, match=f"new.cs: {message}"):
        write_cs(tmp_path / "new.cs", stack)
    assert not (tmp_path / "new.cs").exists()
    stack.table[column] = np.array(["1", "2"])
    write_cs(tmp_path / "new.cs", stack)
    assert len(read_particles(tmp_path / "new.cs")) == 2


def test_an_image_without_its_number_is_refused_and_columns_of_objects_are_written(tmp_path):
    """Both came up among spoilt files, with errors that named no file."""
    images = np.zeros((2, 4, 4), np.float32)
    poses = Poses(np.stack([np.eye(3)] * 2), np.zeros((2, 2)))
    write_particles(tmp_path / "p.star", ParticleStack(images, 1.5, poses), stack_path=tmp_path / "p.mrcs")
    stack = read_particles(tmp_path / "p.star")
    stack.table["some/column"] = np.array(["a", "bc"], dtype=object)
    write_cs(tmp_path / "new.cs", stack)
    assert read_cs(tmp_path / "new.cs")["some/column"].tolist() == [b"a", b"bc"]
    stack.table["rlnImageName"] = np.array(["1@p.mrcs", "F:/x@p.mrcs"])
    with pytest.raises(
        ValueError, match=r"two\.cs: rlnImageName of particle 2 is 'F:/x@p.mrcs': no number of"
    ):
        write_cs(tmp_path / "two.cs", stack)
    assert not (tmp_path / "two.cs").exists()


def test_a_column_no_star_file_can_name_is_refused_with_the_name_of_the_file(tmp_path):
    images = np.zeros((1, 4, 4), np.float32)
    stack = ParticleStack(images, 1.5, Poses(np.eye(3)[None], np.zeros((1, 2))), table={"blö b": np.ones(1)})
    with pytest.raises(ValueError, match=r"p\.star: STAR column name 'blö b'"):
        write_particles(tmp_path / "p.star", stack, stack_path=tmp_path / "p.mrcs")
