"""``invcryo convert``, from its words to its files."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from invcryo.cli import main
from invcryo.conventions import CONVENTIONS
from invcryo.io import read_cs, read_map, read_particles
from invcryo.rotation import geodesic_distance


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A small simulation: particles.star and particles.mrcs."""
    folder = tmp_path_factory.mktemp("sound")
    words = ["simulate", "--phantom", "blobs", "-n", "12", "--box", "16", "--pixel-size", "4", "--shift", "1"]
    assert main([*words, "-o", str(folder), "--quiet"]) == 0
    return folder


@pytest.fixture
def folder(sound, tmp_path, monkeypatch):
    """A copy of it, as the working folder."""
    for name in ("particles.star", "particles.mrcs"):
        (tmp_path / name).write_bytes((sound / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def convert(capsys, folder):
    """Function that runs the command: exit code, standard output, standard error."""

    def call(*words):
        before = sorted(p.name for p in folder.iterdir())
        code = main(["convert", *map(str, words)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        if code:
            assert sorted(p.name for p in folder.iterdir()) == before  # nothing half, no temporary file
        return code, captured.out, captured.err

    return call


def test_there_and_back(convert, folder):
    code, out, _ = convert("particles.star", "p.cs")
    assert code == 0 and "wrote p.cs" in out and "12 particles, 4 angstrom per pixel, poses yes" in out
    assert convert("p.cs", "again.star")[0] == 0
    a, b = read_particles("particles.star"), read_particles("again.star")
    assert geodesic_distance(a.poses.matrices, b.poses.matrices).max() < 2e-6  # a .cs file holds float32
    np.testing.assert_allclose(a.poses.shifts, b.poses.shifts, atol=1e-6)
    np.testing.assert_array_equal(a.images[:], b.images[:])
    np.testing.assert_array_equal(a.half, b.half)
    np.testing.assert_allclose(a.ctf.defocus_u_angstrom, b.ctf.defocus_u_angstrom, rtol=6e-8)


def test_json(convert):
    code, out, _ = convert("particles.star", "p.cs", "--json")
    report = json.loads(out)
    assert code == 0 and report["particles"] == 12 and report["output"] == "p.cs" and report["poses"] is True
    assert isinstance(report["left_out"], list)


def test_show(convert, folder):
    code, out, _ = convert("particles.star", "--show", 2)
    assert code == 0 and out.count("angstrom per pixel)") == 2
    assert all(f"  {name} " in out for name in CONVENTIONS)
    code, out, _ = convert("particles.star", "--show", 3, "--json")
    passport = json.loads(out)["passport"]
    assert set(passport) == set(CONVENTIONS) and len(passport["eman2"]["az"]) == 3
    stack = read_particles("particles.star")
    np.testing.assert_allclose(passport["relion"]["rlnAngleTilt"], stack.poses.euler_deg()[1][:3], atol=1e-12)
    assert not (folder / "p.cs").exists()


@pytest.mark.parametrize("name", CONVENTIONS)
def test_table_of_numbers(convert, name):
    assert convert("particles.star", "t.csv", "--to", name)[0] == 0
    with open("t.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    c = CONVENTIONS[name]
    assert rows[0][: len(c.rotation)] == list(c.rotation) and len(rows) == 13
    column = rows[0].index(c.shift[0])
    unit = c.shift_sign * (4 if c.shift_unit == "angstrom" else 1)
    shifts = read_particles("particles.star").poses.shifts[:, 0]
    np.testing.assert_allclose([float(r[column]) for r in rows[1:]], unit * shifts, rtol=1e-15)


def test_images_need_not_be_there(convert, folder):
    (folder / "particles.mrcs").unlink()
    assert convert("particles.star", "p.cs")[0] == 0
    code, _, err = convert("particles.star", "q.star", "--stack", "q.mrcs")
    assert code == 1 and "stacks are missing" in err


def test_stack_is_written_with_white_protein(convert, folder):
    assert convert("particles.star", "dark.cs", "--contrast", "dark")[0] == 0
    assert (read_cs("dark.cs")["blob/sign"] == -1).all()
    code, _, err = convert("dark.cs", "as_is.star")
    assert code == 0 and "protein is dark in the images of 12 of 12 particles" in err
    code, _, err = convert("dark.cs", "white.star", "--stack", "white.mrcs")
    assert code == 0 and "dark" not in err
    expected = -read_particles("particles.star").images[:]
    np.testing.assert_array_equal(read_particles("white.star").images[:], expected)


def test_what_is_left_out_is_named(convert):
    assert convert("particles.star", "p.cs")[0] == 0
    code, out, err = convert("p.cs", "q.star", "--json")
    left = json.loads(out)["left_out"]
    assert code == 0 and "ctf/type" in left and "a STAR file has no word for" in err and "ctf/type" in err


def test_passthrough(convert, folder, capsys):
    assert convert("particles.star", "p.cs")[0] == 0
    table = read_cs("p.cs")

    def save(name, columns, rows):
        records = np.zeros(len(rows), [(k, table[k].dtype, table[k].shape[1:]) for k in columns])
        for k in columns:
            records[k] = table[k][rows]
        with open(name, "wb") as file:
            np.save(file, records)

    ctf = [k for k in table if k.startswith("ctf/")]
    save("main.cs", [k for k in table if k not in ctf], np.arange(12))
    save("passthrough.cs", ["uid", *ctf], np.arange(12)[::-1])
    save("few.cs", ["uid", *ctf], np.arange(5))
    assert convert("--passthrough", "passthrough.cs", "main.cs", "joined.star")[0] == 0
    assert (
        convert("main.cs", "twice.star", "--passthrough", "passthrough.cs", "--passthrough", "main.cs")[0]
        == 0
    )
    joined, direct = read_particles("joined.star").ctf, read_particles("particles.star").ctf
    np.testing.assert_allclose(joined.defocus_u_angstrom, direct.defocus_u_angstrom, rtol=6e-8)
    code, _, err = convert("main.cs", "none.star", "--passthrough", "few.cs")
    assert code == 1 and "few.cs lacks 7 of the 12 particles of main.cs" in err

    # the commands that read particles take it too
    assert main(["info", "main.cs", "--passthrough", "passthrough.cs", "--json"]) == 0
    span = json.loads(capsys.readouterr().out)["defocus_angstrom"]
    assert span[1] == pytest.approx(direct.defocus_u_angstrom.max(), rel=1e-3)
    assert main(["info", "particles.star", "--passthrough", "passthrough.cs"]) == 2
    words = ["--reg", "none", "--max-iter", "2", "--quiet"]
    assert main(["reconstruct", "main.cs", "--passthrough", "passthrough.cs", "-o", "joined", *words]) == 0
    assert main(["reconstruct", "particles.star", "-o", "whole", *words]) == 0
    maps = [read_map(f"{name}/map.mrc").data for name in ("joined", "whole")]
    np.testing.assert_allclose(*maps, atol=1e-3 * np.abs(maps[1]).max())
    assert "passthrough.cs" in json.loads(Path("joined/run.json").read_text())["inputs"]["sha256"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["particles.star"], 2, "give OUT, a file to write, or --show"),
        (["particles.star", "x.hdf"], 2, ".star, .cs or .csv"),
        (["particles.mrcs", "x.star"], 2, "a particle set ends in .star or .cs"),
        (["particles.star", "x.cs", "--to", "eman2"], 2, "name it .csv"),
        (["particles.star", "x.cs", "--stack", "x.mrcs"], 2, "--stack goes with a .star file"),
        (["particles.star", "--show", "--to", "eman2"], 2, "of no use without OUT"),
        (["particles.star", "--show", "0"], 2, "1 or more"),
        (["particles.star", "particles.star", "--overwrite"], 2, "is a file to read as well"),
        (["particles.star", "particles.mrcs", "--overwrite"], 2, "the suffix says what to write"),
        (["particles.star", "there.cs"], 1, "is there already; it was left alone"),
        (["absent.cs", "x.star"], 1, "no such file: absent.cs"),
        (["there.cs", "x.star"], 1, "there.cs is no .cs file"),
        (["particles.star", "no/where.cs"], 1, "folder"),
        (["particles.star", "x.cs", "--passthrough", "there.cs"], 1, "are for .cs files"),
    ],
)
def test_refusals(convert, folder, words, code, message):
    (folder / "there.cs").write_bytes(b"precious")
    found, out, err = convert(*words)
    assert found == code and message in err and out == ""
    assert (folder / "there.cs").read_bytes() == b"precious"


def test_overwrite(convert, folder):
    (folder / "p.cs").write_bytes(b"old")
    assert convert("particles.star", "p.cs", "--overwrite")[0] == 0
    assert len(read_cs("p.cs")["uid"]) == 12


def test_no_poses_no_passport(convert, folder):
    text = (folder / "particles.star").read_text().replace("_rlnAngleRot", "_rlnOther")
    (folder / "q.star").write_text(text)
    code, _, err = convert("q.star", "--show")
    assert code == 1 and "holds no poses" in err


@pytest.mark.data
def test_reference_file(convert, reference_data):
    path = reference_data / "ref-pose-ctf-parse/cryosparc_P12_J24_001_particles.cs"
    code, _, err = convert(path, "p.star")
    assert code == 0 and "RELION takes for volumes" in err
    again = read_particles("p.star", open_images=False)
    reference = np.load(reference_data / "ref-pose-ctf-parse/cs_rotations.npy")
    np.testing.assert_allclose(again.poses.matrices, reference, atol=6e-7)
