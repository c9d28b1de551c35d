"""What users get wrong, from the words they type to the words they read: exit code 1, one plain paragraph."""

import io
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from invcryo.cli import main
from invcryo.io import open_stack, read_map, read_star, write_map, write_stack, write_star

N = 60


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A sound particle set; tests change copies of it."""
    folder = tmp_path_factory.mktemp("sound")
    words = ["simulate", "--phantom", "blobs", "-n", str(N), "--box", "16", "--pixel-size", "4", "--snr", "2"]
    assert main([*words, "-o", str(folder), "--quiet"]) == 0
    return folder


@pytest.fixture
def particles(sound, tmp_path):
    """A copy that may be spoilt."""
    for name in ("particles.star", "particles.mrcs"):
        (tmp_path / name).write_bytes((sound / name).read_bytes())
    return tmp_path / "particles.star"


@pytest.fixture
def reconstruct(particles, capsys):
    """Function that runs the command on the copy: exit code and standard error."""

    def call(*words):
        folder = particles.parent / "run"
        code = main(["reconstruct", str(particles), "-o", str(folder), "--reg", "none", *map(str, words)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        if code:
            assert captured.out == "" and not folder.exists()
        return code, captured.err

    return call


def edit(star: Path, table: str = "particles", **changes):
    """Write the STAR file with columns changed by functions of their numbers, or dropped (None)."""
    blocks = {name: dict(block) for name, block in read_star(star).items()}
    for column, change in changes.items():
        if change is None:
            del blocks[table][column]
        else:
            old = blocks[table].get(column)
            blocks[table][column] = change(old if old is None or "@" in old[0] else old.astype(float))
    write_star(star, blocks)


def drop_rows(star: Path, keep: int):
    blocks = {name: dict(block) for name, block in read_star(star).items()}
    blocks["particles"] = {name: column[:keep] for name, column in blocks["particles"].items()}
    write_star(star, blocks)


def test_the_sound_set_passes(reconstruct):
    assert reconstruct() == (0, "")


def test_no_such_file(particles, reconstruct):
    particles.unlink()
    code, err = reconstruct()
    assert code == 1 and "No such file or directory" in err and "particles.star" in err


def test_a_file_of_another_kind(particles, reconstruct):
    particles.write_bytes(particles.with_name("particles.mrcs").read_bytes())
    code, err = reconstruct()
    assert code == 1 and "not a valid STAR file" in err
    particles.write_text("data_general\n_rlnFinalResolution 3.2\n")
    code, err = reconstruct()
    assert code == 1 and "is no particle file" in err and "rlnImageName" in err


def test_missing_stack(particles, reconstruct):
    os.rename(particles.with_name("particles.mrcs"), particles.with_name("moved.mrcs"))
    code, err = reconstruct()
    assert code == 1 and "1 of 1 stacks are missing: particles.mrcs" in err
    assert "Tried in" in err and "RELION project folder, or pass --data-dir" in err
    code, err = reconstruct("--data-dir", particles.parent / "nowhere")
    assert code == 1 and "nowhere is not a folder" in err
    elsewhere = particles.parent / "elsewhere"
    elsewhere.mkdir()
    os.rename(particles.with_name("moved.mrcs"), elsewhere / "particles.mrcs")
    assert reconstruct("--data-dir", elsewhere)[0] == 0


def test_truncated_stack(particles, reconstruct):
    stack = particles.with_name("particles.mrcs")
    stack.write_bytes(stack.read_bytes()[:-100])
    code, err = reconstruct()
    whole = 1024 + N * 16 * 16 * 4
    assert code == 1 and f"is cut off: 16 x 16 x {N} values" in err
    assert f"need {whole} bytes, the file has {whole - 100}" in err


def test_index_beyond_the_stack(particles, reconstruct):
    edit(particles, rlnImageName=lambda names: np.array([*names[:-1], "000061@particles.mrcs"]))
    code, err = reconstruct()
    assert code == 1 and "image 61 of" in err and f"the file holds {N} (numbers start at 1)" in err


def test_nan_pixels(particles, reconstruct):
    stack = particles.with_name("particles.mrcs")
    raw = bytearray(stack.read_bytes())
    at = 1024 + 7 * 16 * 16 * 4  # the first pixel of image 8
    raw[at : at + 4] = np.float32(np.nan).tobytes()
    stack.write_bytes(raw)
    code, err = reconstruct()
    assert code == 1 and "1 images hold NaN or infinite pixels: 8@" in err and "leave them out" in err


def test_mixed_boxes(particles, reconstruct):
    images = open_stack(particles.with_name("particles.mrcs"))[:]
    write_stack(particles.with_name("small.mrcs"), images[:, 2:14, 2:14], 4.0)

    def names(old):
        return np.array([*old[:30], *(n.replace("particles", "small") for n in old[30:])])

    edit(particles, rlnImageName=names)
    code, err = reconstruct()
    assert code == 1 and "mixes boxes (16 x 16: 30 particles" in err and "12 x 12: 30 particles" in err
    assert "--optics-group" in err and "optics_group=" not in err


@pytest.mark.parametrize(
    "table, column, said",
    [
        ("particles", "rlnImageName", "is no particle file"),
        ("particles", "rlnAngleTilt", "have no poses"),
        ("optics", "rlnVoltage", "no column rlnVoltage, which the CTF needs; pass --voltage"),
        ("optics", "rlnSphericalAberration", "no column rlnSphericalAberration.*; pass --cs"),
        ("optics", "rlnAmplitudeContrast", "no column rlnAmplitudeContrast.*; pass --amplitude-contrast"),
        ("optics", "rlnImagePixelSize", "states no pixel size.*pass --pixel-size in angstrom"),
    ],
)
def test_missing_columns(particles, reconstruct, table, column, said):
    edit(particles, table, **{column: None})
    code, err = reconstruct()
    assert code == 1 and re.search(said, err)


def test_columns_given_on_the_command_line(particles, reconstruct):
    edit(particles, "optics", rlnVoltage=None, rlnSphericalAberration=None, rlnImagePixelSize=None)
    assert reconstruct("--voltage", "300", "--cs", "2.7", "--pixel-size", "4") == (0, "")


def test_degrees_as_radians(particles, reconstruct):
    angles = dict.fromkeys(("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"), np.deg2rad)
    edit(particles, **angles)
    code, err = reconstruct()
    assert code == 1 and "degrees are expected and these look like radians" in err
    assert "pass --angles radians (or --angles degrees if they are right)" in err
    assert reconstruct("--angles", "radians") == (0, "")


def test_radians_said_of_degrees(reconstruct):
    code, err = reconstruct("--angles", "radians")
    assert code == 1 and "too large for radians; use --angles degrees" in err


def test_micrometre_defocus(particles, reconstruct):
    edit(particles, rlnDefocusU=lambda u: u * 1e-4, rlnDefocusV=lambda v: v * 1e-4)
    code, err = reconstruct()
    assert (
        code == 1 and "this looks like micrometres; multiply it by 10000" in err and "rlnDefocusU = " in err
    )


def test_volts(particles, reconstruct):
    edit(particles, "optics", rlnVoltage=lambda v: v * 1000)
    code, err = reconstruct()
    assert code == 1 and "300000" in err and "volts need a factor 1e-3" in err


def test_corrections_that_are_not_modelled(particles, reconstruct):
    edit(particles, "optics", rlnBeamTiltX=lambda _: np.array([0.3]), rlnBeamTiltY=lambda _: np.array([0.1]))
    code, err = reconstruct()
    assert code == 1 and "beam tilt (mrad)" in err
    assert "pass --ignore rlnBeamTiltX rlnBeamTiltY to go on without them" in err
    code, err = reconstruct("--ignore", "rlnBeamTiltX", "rlnBeamTiltY")
    assert code == 0 and err.count("is ignored, as asked") == 2


def test_pixel_sizes_that_differ(particles, reconstruct):
    edit(particles, "optics", rlnImagePixelSize=lambda _: np.array([4.4]))
    code, err = reconstruct()
    assert code == 0 and "Pixel size 4.4 angstrom" in err and "but 4 (header of" in err
    assert "pass --pixel-size to choose" in err


def test_odd_box(tmp_path, capsys):
    words = ["--phantom", "blobs", "-n", "30", "--box", "17", "--pixel-size", "4", "--snr", "2", "--quiet"]
    assert main(["simulate", *words, "-o", str(tmp_path)]) == 0
    assert "box 17 is odd: RELION reads even boxes only" in capsys.readouterr().err
    star = str(tmp_path / "particles.star")
    assert main(["reconstruct", star, "-o", str(tmp_path / "run"), "--reg", "none"]) == 0
    assert read_map(tmp_path / "run" / "map.mrc").data.shape == (17, 17, 17)


def test_one_particle(particles, reconstruct):
    drop_rows(particles, 1)
    code, err = reconstruct("--half-maps")
    assert code == 1 and "one particle cannot be split into half sets" in err


def test_more_particles_than_there_are(reconstruct):
    code, err = reconstruct("--subset", "61")
    assert code == 1 and "--subset 61, but there are 60 particles" in err


def test_no_half_sets(particles, reconstruct):
    edit(particles, rlnRandomSubset=None)
    code, err = reconstruct("--half", "1")
    assert code == 1 and "no half-set numbers" in err
    code, err = reconstruct("--half-maps")
    assert code == 0 and err.count("split at random") == 1 and "not a gold standard" in err


def test_an_unknown_point_group(reconstruct):
    code, err = reconstruct("--sym", "Q7")
    assert code == 1 and "unknown point group 'Q7'" in err


def test_masks(particles, reconstruct):
    mask = particles.with_name("mask.mrc")
    code, err = reconstruct("--mask", mask)
    assert code == 1 and "no such file" in err
    write_map(mask, np.ones((12, 12, 12)), 4.0)
    code, err = reconstruct("--mask", mask)
    assert code == 1 and "(12, 12, 12)" in err and "(16, 16, 16)" in err
    write_map(mask, np.full((16, 16, 16), 0.2), 4.0)
    code, err = reconstruct("--mask", mask)
    assert code == 1 and "is empty: its largest value is 0.2" in err


# --- output -------------------------------------------------------------------------------------------------


@pytest.fixture
def no_computing(monkeypatch):
    def computed(*_, **__):
        raise AssertionError("the computation was started")

    monkeypatch.setattr("invcryo.reconstruction.reconstruct", computed)
    monkeypatch.setattr("invcryo.simulate.simulate_particles", computed)


COMMANDS = (["reconstruct", "STAR"], ["simulate", "--phantom", "shell"], ["demo"])


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
class TestOutputFolder:
    """Found out before anything is computed."""

    def run(self, words, sound, folder):
        words = [str(sound / "particles.star") if w == "STAR" else w for w in words]
        return main([*words, "-o", str(folder)])

    def test_a_file_in_its_place(self, words, sound, tmp_path, capsys, no_computing):
        (tmp_path / "file").write_text("mine")
        for folder in (tmp_path / "file", tmp_path / "file" / "below"):
            assert self.run(words, sound, folder) == 1
            err = capsys.readouterr().err
            assert f"cannot write into folder {folder}" in err and "choose another one with -o" in err
        assert (tmp_path / "file").read_text() == "mine"

    @pytest.mark.skipif(
        not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root and Windows may write anywhere"
    )
    def test_read_only(self, words, sound, tmp_path, capsys, no_computing):
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o500)
        assert self.run(words, sound, folder) == 1
        assert "Permission denied" in capsys.readouterr().err and not list(folder.iterdir())

    def test_no_right_to_write(self, words, sound, tmp_path, capsys, no_computing, monkeypatch):
        def denied(**_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("tempfile.TemporaryFile", denied)
        assert self.run(words, sound, tmp_path / "new") == 1
        assert "(Permission denied); choose another one with -o" in capsys.readouterr().err

    def test_results_are_there(self, words, sound, tmp_path, capsys, no_computing):
        (tmp_path / "run.json").write_text("{}")
        assert self.run(words, sound, tmp_path) == 1
        err = capsys.readouterr().err
        assert "holds results already (run.json); they were left alone" in err and "--overwrite" in err
        assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


# --- two maps -----------------------------------------------------------------------------------------------


@pytest.fixture
def fsc(tmp_path, capsys):
    """Function that compares two maps written with these arrays and pixel sizes."""

    def call(a, b, sizes=(4.0, 4.0), *words):
        for name, data, size in zip("ab", (a, b), sizes, strict=True):
            write_map(tmp_path / f"{name}.mrc", data, size)
        code = main(["fsc", str(tmp_path / "a.mrc"), str(tmp_path / "b.mrc"), *map(str, words)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err and (code == 0) == bool(captured.out)
        return code, captured.err

    return call


def test_maps_that_do_not_compare(fsc, rng):
    a, b = rng.standard_normal((2, 16, 16, 16)).astype(np.float32)
    assert fsc(a, b)[0] == 0
    code, err = fsc(a, b, (4.0, 4.2))
    assert code == 1 and "the maps differ in pixel size: 4 and 4.2 angstrom" in err
    assert fsc(a, b, (4.0, 4.2), "--pixel-size", "4")[0] == 0
    code, err = fsc(a, b[1:])
    assert code == 1 and "differ in shape: (16, 16, 16) and (15, 16, 16)" in err
    code, err = fsc(a, np.zeros_like(b))
    assert code == 1 and "the second map is constant" in err


def test_fsc_files(fsc, rng, tmp_path):
    a, b = rng.standard_normal((2, 16, 16, 16)).astype(np.float32)
    code, err = fsc(a, b, (4.0, 4.0), "--plot", tmp_path / "curve.txt")
    assert code == 2 and "must end in .png, .pdf or .svg" in err
    code, err = fsc(a, b, (4.0, 4.0), "-o", tmp_path / "no" / "prefix")
    assert code == 1 and "does not exist; create it first" in err
    code, err = fsc(a, b, (4.0, 4.0), "--sym", "C1.5")
    assert code == 1 and "unknown point group" in err


def test_a_stack_for_a_map(sound, capsys):
    stack = str(sound / "particles.mrcs")
    assert main(["fsc", stack, stack]) == 1
    err = capsys.readouterr().err
    assert f"is a stack of {N} images" in err and "rename it to end in .mrc" in err and "kind=" not in err


def test_a_name_that_the_terminal_cannot_show(tmp_path, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, encoding="ascii"))
    assert main(["info", str(tmp_path / "μ.mrc")]) == 1
    assert b"\\u03bc.mrc" in raw.getvalue()
