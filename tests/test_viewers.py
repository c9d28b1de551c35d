"""Scripts for ChimeraX and layers for napari."""

import os
import re

import numpy as np
import pytest

from invcryo.io import Map, read_map, write_map
from invcryo.io.viewers import contour_level, napari_layers, write_cxc


def opened(script):
    """The files that a script opens, by the number of the model, as ChimeraX would find them."""
    names = re.findall(r'^open "(.+)"$', script.read_text(encoding="utf-8"), re.M)
    return {i: os.path.realpath(script.parent / name) for i, name in enumerate(names, 1)}


def test_a_script_finds_its_files_from_where_it_lies(tmp_path):
    maps, view = tmp_path / "my maps; é", tmp_path / "view"
    maps.mkdir()
    view.mkdir()
    files = [maps / f"{name}.mrc" for name in ("map", "half1", "half2", "local")]
    for file in files:
        write_map(file, np.ones((2, 2, 2)), 1.0)
    write_cxc(
        view / "v.cxc", files[0], 0.0123456789, others=files[1:3], resolution_file=files[3], limits=(3, 5)
    )
    text = (view / "v.cxc").read_text(encoding="utf-8")
    assert 'open "../my maps; é/map.mrc"' in text and str(tmp_path) not in text
    assert opened(view / "v.cxc") == {i: str(file) for i, file in enumerate(files, 1)}
    assert "volume #1 style surface level 0.0123457 " in text and "hide #4 models" in text
    palette = re.search(r"^color sample #1 map #4 palette (.+)$", text, re.M)[1]
    values = [entry.split(",") for entry in palette.split(":")]
    assert [float(v) for v, _ in values] == [3, 3.5, 4, 4.5, 5]
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for _, colour in values)
    assert all(line.isprintable() for line in text.splitlines())


#: Lines of the forms that the user guide of ChimeraX gives for each command.
COLOUR = "#[0-9a-f]{6}"
FORMS = "|".join(
    (
        r"#.*",  # a comment
        r"close",
        r'open "[^"]+"',
        rf"volume #\d+ style surface level -?[\d.e+-]+ step \d+( color {COLOUR})?",
        r"hide #\d+ models",
        rf"color sample #\d+ map #\d+ palette [\d.e+-]+,{COLOUR}(:[\d.e+-]+,{COLOUR})+",
        r"set bgColor white",
        r"lighting soft",
        r"view #\d+",
        rf"key( {COLOUR}:[\d.e+-]+){{2,}}",
    )
)


@pytest.mark.parametrize("level", [0.01234567, 1e-7, 3e9])
@pytest.mark.parametrize("limits", [None, (2.0, 9.87654), (1e-3, 1e6)])
def test_every_line_has_a_form_of_the_user_guide(tmp_path, level, limits):
    coloured = {} if limits is None else {"resolution_file": tmp_path / "l.mrc", "limits": limits}
    write_cxc(tmp_path / "v.cxc", tmp_path / "m.mrc", level, others=[tmp_path / "h.mrc"], **coloured)
    lines = (tmp_path / "v.cxc").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(FORMS, line)] == []
    assert sum(line.startswith("open ") for line in lines) == 2 + (limits is not None)


def test_a_script_may_be_written_elsewhere_and_moved(tmp_path):
    (tmp_path / "staging").mkdir()
    write_cxc(tmp_path / "staging" / "v.cxc", tmp_path / "a" / "m.mrc", 1.0, folder=tmp_path / "b")
    assert 'open "../a/m.mrc"' in (tmp_path / "staging" / "v.cxc").read_text()


def test_a_script_in_a_linked_folder(tmp_path):
    """The way up from a link leads elsewhere, so both ends are resolved first."""
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "near").symlink_to(tmp_path / "far" / "deep")
    write_map(tmp_path / "m.mrc", np.ones((2, 2, 2)), 1.0)
    write_cxc(tmp_path / "near" / "v.cxc", tmp_path / "m.mrc", 1.0)
    assert 'open "../../m.mrc"' in (tmp_path / "far" / "deep" / "v.cxc").read_text()
    assert opened(tmp_path / "near" / "v.cxc") == {1: str(tmp_path / "m.mrc")}


@pytest.mark.parametrize("name", ["a\nrun(session).mrc", 'a" ; exit "b.mrc', "a\\b.mrc"])
def test_names_that_would_be_commands_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="cannot be told of a file named"):
        write_cxc(tmp_path / "v.cxc", tmp_path / name, 1.0)
    assert not list(tmp_path.iterdir())


def test_a_script_refuses(tmp_path):
    with pytest.raises(ValueError, match=r"name the script \.cxc"):
        write_cxc(tmp_path / "v.py", tmp_path / "m.mrc", 1.0)
    with pytest.raises(ValueError, match="contour level is nan"):
        write_cxc(tmp_path / "v.cxc", tmp_path / "m.mrc", float("nan"))
    for limits in (None, (0.0, 3.0), (4.0, 3.0), (3.0, np.inf)):
        with pytest.raises(ValueError, match="need limits in angstrom"):
            write_cxc(tmp_path / "v.cxc", "m.mrc", 1.0, resolution_file="l.mrc", limits=limits)


def test_contour_level(rng):
    volume = rng.normal(2.0, 0.5, (20, 20, 20))
    assert contour_level(volume) == pytest.approx(2 + 3 * 0.5, rel=0.02)
    flat = np.zeros((4, 4, 4))
    flat[:2] = 1.0  # mean + 3 sd is 2, above all
    assert contour_level(flat) == 0.5


def test_layers_lie_where_the_map_says(tmp_path):
    volume = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    write_map(tmp_path / "m.mrc", volume, 1.5, origin=(30.0, 20.0, 10.0))
    ((data, keywords, kind),) = napari_layers(read_map(tmp_path / "m.mrc"), name="mine")
    assert kind == "image" and keywords["name"] == "mine"
    np.testing.assert_array_equal(data, volume)
    assert keywords["scale"] == pytest.approx((1.5,) * 3)
    assert keywords["translate"] == pytest.approx((30, 20, 10))
    low, high = keywords["contrast_limits"]
    assert low < keywords["iso_threshold"] < volume.max() and low < high
    shifted = Map(volume, (2.0,) * 3, origin=(1.0, 0.0, 0.0), start=(0, 3, 0))
    assert napari_layers(shifted)[0][1]["translate"] == (1.0, 6.0, 0.0)


def test_local_resolution_is_a_second_layer():
    volume = np.random.default_rng(0).normal(size=(4, 4, 4))
    known = np.where(volume > 0, 5.0 + volume, 0.0)
    (_, first, _), (data, second, kind) = napari_layers(volume, pixel_size=2.0, resolution=known)
    assert kind == "image" and data is known and second["scale"] == first["scale"] == (2.0,) * 3
    assert 5.0 < second["contrast_limits"][0] < second["contrast_limits"][1] < 10.0
    with pytest.raises(ValueError, match="pixel_size= in angstrom"):
        napari_layers(volume)
    with pytest.raises(ValueError, match="three axes"):
        napari_layers(volume[0], pixel_size=1.0)
    with pytest.raises(ValueError, match="known nowhere"):
        napari_layers(volume, pixel_size=1.0, resolution=np.zeros((4, 4, 4)))
    with pytest.raises(ValueError, match="but a local resolution of"):
        napari_layers(volume, pixel_size=1.0, resolution=known[:2])
