"""STAR tables: exact round trips, agreement with starfile, and plain refusals."""

import os
import string

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from invcryo.io import StarBlock, read_star, write_star

FIXTURES = [
    "aspire_sample_incomplete_ctf_params",
    "aspire_sample_particles_relion30",
    "aspire_sample_particles_relion31",
    "basic_double_quote",
    "basic_single_quote",
    "cryodrgn_relion31.6opticsgroups",
    "cryodrgn_relion31",
    "cryodrgn_relion5",
    "default_pipeline",
    "empty_loop",
    "loop_double_quote",
    "loop_single_quote",
    "one_loop",
    "postprocess",
    "rln3.1_data_style",
    "run_it025_optimiser_2D",
    "run_it025_optimiser_3D",
    "run_it025_sampling_2D",
    "run_it025_sampling_3D",
    "single_line_end_of_multiblock",
    "single_line_middle_of_multiblock",
    "two_basic_blocks",
    "two_single_line_loop_blocks",
]


def test_loop_and_pairs(tmp_path):
    path = tmp_path / "a.star"
    path.write_text(
        "# a comment\n\ndata_general\n\n_rlnFinalResolution   16.363636\n_rlnMaskName  None\n\n"
        "# version 30001\n\ndata_fsc\n\nloop_ \n_rlnResolution #1 \n"
        "_rlnText #2 [of note]\n0.1  a#b\n  -2e3\t.  \n\n"
    )
    blocks = read_star(path)
    assert list(blocks) == ["general", "fsc"]
    assert not blocks["general"].loop and blocks["general"]["rlnMaskName"].tolist() == ["None"]
    assert blocks["general"].numbers("rlnFinalResolution").tolist() == [16.363636]
    fsc = blocks["fsc"]
    assert fsc.loop and fsc.rows == 2 and len(fsc) == 2 and list(fsc) == ["rlnResolution", "rlnText"]
    assert fsc.numbers("rlnResolution").tolist() == [0.1, -2000.0]
    assert fsc["rlnText"].tolist() == ["a#b", "."]
    with pytest.raises(ValueError, match=r"rlnText of row 1 is 'a#b', not a number"):
        fsc.numbers("rlnText")


@pytest.mark.data
@pytest.mark.parametrize("name", FIXTURES)
def test_fixtures_round_trip_and_agree_with_starfile(reference_data, tmp_path, name):
    starfile = pytest.importorskip("starfile")
    path = reference_data / "formats-star" / f"{name}.star"
    blocks = read_star(path)
    copy = tmp_path / "copy.star"
    write_star(copy, blocks)
    assert read_star(copy) == blocks
    # starfile reads the original and our copy as we do.
    for file in (path, copy):
        theirs = starfile.read(
            file, always_dict=True, parse_as_string=[c for b in blocks.values() for c in b]
        )
        assert list(theirs) == list(blocks)
        for key, table in theirs.items():
            if isinstance(table, dict):
                assert {k: [str(v)] for k, v in table.items()} == {
                    k: v.tolist() for k, v in blocks[key].items()
                }
            else:
                assert list(table.columns) == list(blocks[key]) and len(table) == blocks[key].rows
                for column in table.columns:
                    assert table[column].tolist() == blocks[key][column].tolist()


def test_what_starfile_writes_is_read(tmp_path):
    starfile, pd = pytest.importorskip("starfile"), pytest.importorskip("pandas")
    frame = pd.DataFrame({"rlnA": [1.5, -2e-7], "rlnB": ["x y", ""], "rlnC": [3, 4]})
    starfile.write({"optics": {"rlnV": 300, "rlnW": "k"}, "particles": frame}, tmp_path / "a.star")
    blocks = read_star(tmp_path / "a.star")
    assert blocks["optics"].numbers("rlnV").tolist() == [300]
    assert blocks["particles"]["rlnB"].tolist() == ["x y", ""]
    np.testing.assert_allclose(blocks["particles"].numbers("rlnA"), [1.5, -2e-7], atol=1e-6)
    assert blocks["particles"].numbers("rlnC").tolist() == [3, 4]


awkward = st.text(
    st.one_of(
        st.sampled_from(" \t\n'\"#_;$[]~u.?\u00fc\u00a0\u2003\U0001f52c"),
        st.sampled_from(string.ascii_letters + string.digits),
        st.characters(exclude_categories=["Cc", "Cs"]),
    ),
    max_size=12,
).filter(lambda s: "\n;" not in s)


@given(rows=st.lists(st.tuples(awkward, awkward), min_size=1, max_size=5))
@example(
    rows=[("", "loop_"), ("data_x", "_tag"), ("'it's", 'say "x" now'), ("a;b", ";c"), ("\n", "'\" '\" ")]
)
@example(rows=[("~u", "ü"), ("~ufc~", "ü~u"), ("STOP_", "global_ "), ("a\nb", ";\n"), ("'", '"')])
def test_any_text_survives(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("star") / "a.star"
    table = StarBlock(dict(zip(("rlnA", "rlnB"), map(list, zip(*rows, strict=True)), strict=True)))
    pairs = StarBlock({"x": [rows[0][0]], "y": [rows[0][1]]}, loop=False)
    write_star(path, {"": pairs, "loop": table})
    assert read_star(path) == {"": pairs, "loop": table}


@given(values=st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=5))
def test_numbers_survive(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("star") / "a.star"
    third = np.array(values) / 3
    write_star(path, {"a": {"double": third, "single": np.array(values, np.float32)}})
    block = read_star(path)["a"]
    assert block.numbers("double").tolist() == third.tolist()
    assert block.numbers("single").astype(np.float32).tolist() == values


def test_numbers_are_written_short(tmp_path):
    write_star(tmp_path / "a.star", {"a": {"x": np.float32([0.1]), "i": [3], "b": np.array([True])}})
    assert (tmp_path / "a.star").read_text() == (
        "\n# version 30001\n\ndata_a\n\nloop_\n_x #1\n_i #2\n_b #3\n0.1 3 1\n"
    )
    write_star(tmp_path / "a.star", {"a": {"x": 0.1, "name": "two words"}}, version=None)
    assert (tmp_path / "a.star").read_text() == '\n\ndata_a\n\n_x 0.1\n_name "two words"\n'


def test_frames_are_written(tmp_path):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"rlnA": [1, 2], "rlnB": ["x", "y z"]})
    write_star(tmp_path / "a.star", {"particles": frame})
    assert read_star(tmp_path / "a.star")["particles"]["rlnB"].tolist() == ["x", "y z"]


def test_empty_tables(tmp_path):
    blocks = {"nothing": StarBlock({}), "no rows".replace(" ", "_"): StarBlock({"rlnA": [], "rlnB": []})}
    write_star(tmp_path / "a.star", blocks)
    again = read_star(tmp_path / "a.star")
    assert again == blocks and again["no_rows"].rows == 0


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
def test_other_scripts_line_ends_and_byte_order_mark(tmp_path, encoding):
    text = "data_\r\nloop_\r\n_rlnImageName #1\r\n_rlnB\r\n1@Müller/a.mrcs 2\r\n'2@Mü ller' 3\r\n"
    (tmp_path / "a.star").write_bytes(text.encode(encoding))
    names = read_star(tmp_path / "a.star")[""]["rlnImageName"]
    expected = ["1@Müller/a.mrcs", "2@Mü ller"]
    if encoding == "latin-1":  # the bytes of a path are kept, whatever they mean
        expected = [os.fsdecode(name.encode("latin-1")) for name in expected]
    assert names.tolist() == expected
    write_star(tmp_path / "b.star", read_star(tmp_path / "a.star"))
    assert read_star(tmp_path / "b.star")[""]["rlnImageName"].tolist() == expected


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "holds no STAR table"),
        ("# only a comment\n", "holds no STAR table"),
        ("_rlnA 1\n", "line 1.*expected block header"),
        ("data_x\nloop_\n_a\n_b\n1 2 3\n", "Wrong number of values in loop"),
        ("data_x\n_a 1\ndata_x\n_a 2\n", "duplicate block name: x"),
        ("data_x\nloop_\n_a\n_a\n1 2\n", "duplicate tag _a"),
        ("data_x\n_a 1\nloop_\n_b\n1\n", "block data_x holds 1 loops and 1 single values"),
        ("data_x\nloop_\n_a\n1\nloop_\n_b\n1\n", "block data_x holds 2 loops"),
        ("\0\1\2\3" * 300, "not a valid STAR file"),
    ],
)
def test_what_is_no_star_file(tmp_path, text, message):
    (tmp_path / "a.star").write_text(text)
    with pytest.raises(ValueError, match=rf"(?s)a\.star.*{message}"):
        read_star(tmp_path / "a.star")


@pytest.mark.parametrize(
    "blocks, message",
    [
        ({"a b": {"x": [1]}}, "block name 'a b' holds white space"),
        ({"a": {"x y": [1]}}, "column name 'x y'"),
        ({"a": {"x": [1, 2], "y": [1]}}, "differ in length"),
        ({"a": {"x": [1, 2], "y": 1}}, "mixes single values and columns"),
        ({"a": {"x": [[1, 2]]}}, "one-dimensional"),
        ({"a": {"x": [np.nan]}}, "x holds NaN"),
        ({"a": {"x": ["a\x01"]}}, "control characters"),
        ({"a": {"x": ["a\n;b"]}}, "starts with a semicolon"),
    ],
)
def test_what_cannot_be_written_leaves_the_old_file(tmp_path, blocks, message):
    path = tmp_path / "a.star"
    path.write_text("old")
    with pytest.raises(ValueError, match=message):
        write_star(path, blocks)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.star"]


def test_pairs_hold_one_value_each():
    with pytest.raises(ValueError, match="one value per name"):
        StarBlock({"x": ["1", "2"]}, loop=False)
    assert StarBlock({"x": ["1"]}) != StarBlock({"x": ["1"]}, loop=False)
    assert StarBlock({"_x": ["1"]}) == StarBlock({"x": ["1"]})


def test_one_endless_value_does_not_take_all_memory(tmp_path):
    """A lost quote: rows times the longest text would be 80 GB."""
    rows = [f"{i}@x.mrcs" for i in range(20000)]
    rows[7000] = "'" + "x y " * 250000 + "'"
    path = tmp_path / "p.star"
    path.write_text("data_\n\nloop_\n_rlnImageName\n" + "\n".join(rows) + "\n")
    with pytest.raises(ValueError, match="row 7001 is 1000000 characters long and begins 'x y x y"):
        read_star(path)


def test_names_that_differ_in_case_only_are_refused(tmp_path):
    """Readers take them for one name, and refuse the file."""
    with pytest.raises(
        ValueError, match=r"a\.star: columns of block 'x': rlnOrigin and rlnorigin are one name"
    ):
        write_star(tmp_path / "a.star", {"x": {"rlnOrigin": [1], "rlnorigin": [2]}})
    with pytest.raises(ValueError, match=r"a\.star: blocks: x and X are one name"):
        write_star(tmp_path / "a.star", {"x": {"a": [1]}, "X": {"a": [1]}})
    assert not list(tmp_path.iterdir())
