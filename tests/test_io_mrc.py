"""Maps and stacks: what the field's files hold is read as meant, what we write is read by others."""

import logging
import os
import signal
import stat
import struct
import subprocess
import sys

import gemmi
import mrcfile
import numpy as np
import pytest

from invcryo.io import (
    Map,
    StackWriter,
    atomic_open,
    atomic_path,
    header_info,
    open_stack,
    read_map,
    write_map,
    write_stack,
)

MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
MACHINE = {"<": b"\x44\x44\0\0", ">": b"\x11\x11\0\0"}


def make_mrc(path, data, *, order="<", mode=2, extended=b"", cut=0, **words):
    """Write an MRC file byte by byte; ``words``: values of header words by number (w1 ...)."""
    nz, ny, nx = data.shape
    header = bytearray(1024)

    def put(word, value):
        struct.pack_into(order + ("f" if isinstance(value, float) else "i"), header, 4 * (word - 1), value)

    facts = {1: nx, 2: ny, 3: nz, 4: mode, 8: nx, 9: ny, 10: nz, 11: 2.0 * nx, 12: 2.0 * ny, 13: 2.0 * nz}
    facts |= {14: 90.0, 15: 90.0, 16: 90.0, 17: 1, 18: 2, 19: 3, 23: 1, 24: len(extended), 28: 20141}
    facts |= {int(k[1:]): v for k, v in words.items() if k[0] == "w"}
    for word, value in facts.items():
        put(word, value)
    header[208:212], header[212:216] = words.get("identifier", b"MAP "), words.get("stamp", MACHINE[order])
    body = data.astype(order + MODES.get(mode, "f4")).tobytes()
    path.write_bytes(bytes(header) + extended + body[: len(body) - cut])
    return path


@pytest.fixture
def volume(rng):
    return rng.standard_normal((3, 4, 5)).astype(np.float32)


# --- reading -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("mode", sorted(MODES))
def test_every_real_mode_and_byte_order(tmp_path, rng, mode, order):
    data = rng.integers(-100, 100, (3, 4, 5)) if mode in (0, 1) else rng.integers(0, 100, (3, 4, 5))
    read = read_map(make_mrc(tmp_path / "m.mrc", data, mode=mode, order=order))
    assert read.data.dtype == np.float32 and read.data.dtype.isnative and read.data.flags.writeable
    np.testing.assert_array_equal(read.data, data)
    assert read.voxel_size == (2.0, 2.0, 2.0) and read.pixel_size == 2.0


@pytest.mark.parametrize("mode, what", [(3, "complex"), (4, "complex"), (16, "RGB"), (101, "4-bit")])
def test_modes_that_are_not_real_values_are_refused(tmp_path, volume, mode, what):
    path = make_mrc(tmp_path / "m.mrc", volume, mode=mode)
    with pytest.raises(ValueError, match=rf"m\.mrc: MODE {mode} is not read: it holds .*{what}"):
        read_map(path)
    with pytest.raises(ValueError, match=f"MODE {mode}"):
        open_stack(path)
    assert what in header_info(path)["dtype"]


@pytest.mark.parametrize(
    "stamp, order, known",
    [
        (b"\x44\x44\0\0", "<", True),
        (b"\x44\x41\0\0", "<", True),
        (b"\x11\x11\0\0", ">", True),
        (b"\0\0\0\0", "<", False),
        (b"\0\0\0\0", ">", False),
        (b"\x36\x36\x33\x33", "<", False),
        (b"\x44\x44\0\0", ">", False),  # a stamp that lies
    ],
)
def test_machine_stamps(tmp_path, volume, caplog, stamp, order, known):
    path = make_mrc(tmp_path / "m.mrc", volume, order=order, stamp=stamp)
    np.testing.assert_array_equal(read_map(path).data, volume)
    assert ("machine stamp" in caplog.text) != known


@pytest.mark.parametrize("axes", [(1, 2, 3), (3, 1, 2), (2, 1, 3), (3, 2, 1), (1, 3, 2), (2, 3, 1)])
def test_axis_order_agrees_with_gemmi(tmp_path, volume, axes):
    c, r, s = axes
    starts = {"w5": 10, "w6": 20, "w7": 30}  # of columns, rows, sections
    # The unit cell is larger than the map: its sampling is by x, y, z whatever the order in the file.
    path = make_mrc(tmp_path / "m.ccp4", volume, w17=c, w18=r, w19=s, w8=50, w9=60, w10=70, **starts)
    read = read_map(path)
    other = gemmi.read_ccp4_map(str(path))
    other.setup(float("nan"), gemmi.MapSetup.ReorderOnly)
    np.testing.assert_array_equal(read.data, other.grid.array.transpose(2, 1, 0))
    assert read.start == tuple(other.header_i32(w) for w in (7, 6, 5))
    assert read.voxel_size == pytest.approx((2 * 3 / 70, 2 * 4 / 60, 2 * 5 / 50))


def test_axes_that_are_unset_or_nonsense_are_taken_as_xyz_and_said(tmp_path, volume, caplog):
    path = make_mrc(tmp_path / "m.mrc", volume, w17=10, w18=11, w19=12)
    np.testing.assert_array_equal(read_map(path).data, volume)
    assert "MAPC, MAPR, MAPS are 10, 11, 12 instead of a permutation of 1, 2, 3" in caplog.text


def test_unsigned_bytes_of_imod(tmp_path, caplog):
    data = np.arange(0, 240, 2).reshape(4, 5, 6)
    signed = data.astype(np.uint8).view(np.int8).reshape(data.shape)
    stamp = 1146047817
    unsigned = make_mrc(tmp_path / "u.mrc", signed, mode=0, w39=stamp, w40=0)
    np.testing.assert_array_equal(read_map(unsigned).data, data)
    np.testing.assert_array_equal(open_stack(unsigned)[:], data)
    assert "read as unsigned" in caplog.text
    np.testing.assert_array_equal(
        read_map(make_mrc(tmp_path / "s.mrc", signed, mode=0, w39=stamp, w40=1)).data, signed
    )
    # Without IMOD's stamp the statistics of the header can tell.
    np.testing.assert_array_equal(
        read_map(make_mrc(tmp_path / "h.mrc", signed, mode=0, w20=0.0, w21=238.0)).data, data
    )
    with pytest.raises(ValueError, match="4-bit"):
        read_map(make_mrc(tmp_path / "n.mrc", signed, mode=0, w39=stamp, w40=16))


def test_identifier_may_be_missing(tmp_path, volume, caplog):
    np.testing.assert_array_equal(
        read_map(make_mrc(tmp_path / "m.mrc", volume, identifier=b"\0\0\0\0")).data, volume
    )
    assert "no 'MAP ' identifier" in caplog.text


def test_extended_header_is_skipped(tmp_path, volume):
    path = make_mrc(
        tmp_path / "m.mrc", volume, extended=bytes(range(200)), w27=int.from_bytes(b"FEI1", "little")
    )
    np.testing.assert_array_equal(read_map(path).data, volume)
    np.testing.assert_array_equal(open_stack(path)[1], volume[1])


def test_broken_extended_header_length(tmp_path, volume):
    with pytest.raises(ValueError, match=r"NSYMBT.* is -5"):
        read_map(make_mrc(tmp_path / "m.mrc", volume, w24=-5))


def test_length_is_checked_before_anything_is_allocated(tmp_path, volume, caplog):
    with pytest.raises(
        ValueError, match=r"m\.mrc is cut off: 5 x 4 x 3 values of MODE 2 need 1264 bytes.* 1257"
    ):
        read_map(make_mrc(tmp_path / "m.mrc", volume, cut=7))
    huge = make_mrc(tmp_path / "h.mrc", volume, w1=60000, w2=60000, w3=60000)
    with pytest.raises(ValueError, match="need 864000000001024 bytes, the file has 1264"):
        read_map(huge)
    longer = make_mrc(tmp_path / "l.mrc", volume)
    longer.write_bytes(longer.read_bytes() + b"xyz")
    np.testing.assert_array_equal(read_map(longer).data, volume)
    assert "3 bytes more" in caplog.text


@pytest.mark.parametrize("content", [b"", b"MRC", b"# version 30001\ndata_optics\n" * 60, bytes(2000)])
def test_what_is_no_mrc_file(tmp_path, content):
    path = tmp_path / "m.mrc"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"m\.mrc"):
        read_map(path)
    with pytest.raises(FileNotFoundError, match="working folder"):
        read_map(tmp_path / "none.mrc")


@pytest.mark.parametrize("suffix", [".gz", ".bz2"])
def test_packed_files(tmp_path, volume, suffix):
    import bz2
    import gzip

    raw = make_mrc(tmp_path / "m.map", volume).read_bytes()
    pack = {".gz": gzip.compress, ".bz2": bz2.compress}[suffix]
    path = tmp_path / f"m.map{suffix}"
    path.write_bytes(pack(raw))
    np.testing.assert_array_equal(read_map(path).data, volume)
    with pytest.raises(ValueError, match="unpack it first"):
        open_stack(path)
    for content in (pack(raw)[:-20], pack(raw)[:8], b"not packed at all"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"m\.map\.\w+ cannot be unpacked"):
            read_map(path)
    path.write_bytes(pack(raw[:-4]))
    with pytest.raises(ValueError, match="need 1264 bytes, the file has 1260"):
        read_map(path)


@pytest.mark.parametrize(
    "name, mz, space_group, kind, by",
    [
        ("a.mrc", 3, 0, "volume", "suffix"),  # RELION writes ISPG 0 into its maps
        ("a.mrc", 3, 1, "volume", "suffix"),
        ("a.mrc", 1, 0, "volume", "suffix"),
        ("a.map", 3, 0, "volume", "suffix"),
        ("a.mrcs", 3, 1, "stack", "suffix"),
        ("a.st", 3, 0, "stack", "suffix"),
        ("a.rec", 3, 0, "volume", "MZ"),
        ("a.rec", 1, 1, "stack", "MZ"),
        ("a.rec", 0, 1, "volume", "ISPG"),
        ("a.rec", 0, 0, "stack", "ISPG"),
    ],
)
def test_volume_or_stack(tmp_path, volume, caplog, name, mz, space_group, kind, by):
    path = make_mrc(tmp_path / name, volume, w10=mz, w23=space_group)
    info = header_info(path)
    assert info["kind"] == kind and info["kind_reason"].startswith(
        f"by {'the ' if by == 'suffix' else ''}{by}"
    )
    with caplog.at_level(logging.INFO, "invcryo.io.mrc"):
        if kind == "volume":
            np.testing.assert_array_equal(read_map(path).data, volume)
            assert "is read as a volume, by" in caplog.text
        else:
            with pytest.raises(ValueError, match=r"stack of 3 images.*open_stack, or pass kind='volume'"):
                read_map(path)
    np.testing.assert_array_equal(read_map(path, kind="volume").data, volume)
    np.testing.assert_array_equal(open_stack(path)[:], volume)


def test_volume_stacks_are_refused(tmp_path, volume):
    path = make_mrc(tmp_path / "m.mrc", np.concatenate([volume, volume]), w10=3, w23=401)
    with pytest.raises(ValueError, match="several volumes of 3 sections"):
        read_map(path)


def test_pixel_size_unknown_anisotropic_and_given(tmp_path, volume, caplog):
    unset = read_map(make_mrc(tmp_path / "u.mrc", volume, w11=0.0, w12=0.0, w13=0.0))
    assert unset.voxel_size == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match=r"u\.mrc does not state its voxel size; pass pixel_size="):
        _ = unset.pixel_size
    uneven = make_mrc(tmp_path / "a.mrc", volume, w13=9.0)
    assert read_map(uneven).voxel_size == (3.0, 2.0, 2.0)
    with pytest.raises(ValueError, match=r"a\.mrc has voxels of 3 x 2 x 2 angstrom"):
        _ = read_map(uneven).pixel_size
    with caplog.at_level(logging.INFO, "invcryo.io.mrc"):
        assert read_map(uneven, pixel_size=1.5).pixel_size == 1.5
    assert "1.5 angstrom as asked, not 2 of the header" in caplog.text
    with pytest.raises(ValueError, match="positive"):
        read_map(uneven, pixel_size=-1)


def test_nan_in_a_map_is_said(tmp_path, volume, caplog):
    volume[1, 1, 1] = np.nan
    read_map(make_mrc(tmp_path / "m.mrc", volume))
    assert "1 NaN or infinite values of 60" in caplog.text


# --- writing -----------------------------------------------------------------------------------------------


def test_written_map_has_the_header_of_a_volume(tmp_path, volume):
    path = tmp_path / "m.mrc"
    write_map(path, volume, 1.06, origin=(1.5, -2.5, 3.5), start=(-7, 8, 9), label="made for a test")
    assert mrcfile.validate(path, print_file=open(os.devnull, "w"))
    with mrcfile.open(path) as other:
        assert other.is_volume() and not other.is_image_stack()
        np.testing.assert_array_equal(other.data, volume)
        h = other.header
        assert (h.nx, h.ny, h.nz) == (h.mx, h.my, h.mz) == (5, 4, 3)
        assert (h.nxstart, h.nystart, h.nzstart) == (9, 8, -7)
        assert h.origin.tolist() == (3.5, -2.5, 1.5)
        assert h.ispg == 1 and h.nversion == 20141 and h.mode == 2
        assert other.voxel_size.tolist() == pytest.approx((1.06, 1.06, 1.06), rel=1e-6)
        assert float(h.dmin) == volume.min() and float(h.dmax) == volume.max()
        assert float(h.dmean) == pytest.approx(volume.mean(dtype=np.float64), abs=1e-7)
        assert float(h.rms) == pytest.approx(volume.std(dtype=np.float64), rel=1e-6)
        assert "made for a test" in other.get_labels()[-1]


@pytest.mark.parametrize("dtype, mode", [(np.float32, 2), (np.float16, 12)])
def test_round_trip_keeps_grid_origin_start_and_labels(tmp_path, volume, dtype, mode):
    volume = volume.astype(dtype).astype(np.float32)
    first = Map(volume, (2.5, 2.5, 2.5), (1.0, 2.0, 3.0), (-4, -5, -6), ("one", "two"))
    path = tmp_path / "m.map"
    write_map(path, volume, like=first, dtype=dtype)
    again = read_map(path)
    np.testing.assert_array_equal(again.data, volume)
    assert again.voxel_size == first.voxel_size and again.pixel_size == 2.5
    assert again.origin == first.origin and again.start == first.start
    assert again.labels[:2] == first.labels and again.labels[2].startswith("invcryo")
    assert header_info(path)["mode"] == mode


def test_labels_stay_within_ten(tmp_path, volume):
    many = Map(volume, (1, 1, 1), labels=tuple(f"label {i}" for i in range(10)))
    write_map(tmp_path / "m.mrc", volume, like=many, label="x" * 200)
    labels = read_map(tmp_path / "m.mrc").labels
    assert len(labels) == 10 and labels[8] == "label 8" and len(labels[9]) == 80


def test_start_is_not_carried_to_another_grid(tmp_path, volume):
    first = Map(volume, (2.0, 2.0, 2.0), (1.0, 2.0, 3.0), (-4, -5, -6))
    with pytest.raises(ValueError, match=r"start .* counts voxels of its own grid.*pass start="):
        write_map(tmp_path / "m.mrc", volume[:2], like=first)
    write_map(tmp_path / "m.mrc", volume[:2], like=first, start=(0, -5, -6))
    again = read_map(tmp_path / "m.mrc")
    assert again.start == (0, -5, -6) and again.origin == (1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda v: v * np.where(np.arange(3) == 1, np.nan, 1)[:, None, None],
            "section 2 are NaN or infinite",
        ),
        (lambda v: v + 1e39 * (np.arange(3) == 2)[:, None, None], "section 3 are too large for float32"),
        (lambda v: v.astype(complex), "complex"),
        (lambda v: v[0], r"shape \(z, y, x\)"),
    ],
)
def test_what_cannot_be_written_leaves_the_old_file(tmp_path, volume, change, message):
    path = tmp_path / "m.mrc"
    write_map(path, volume, 1.0)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        write_map(path, change(volume.astype(np.float64)), 1.0)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.mrc"]


def test_other_refusals_on_writing(tmp_path, volume):
    with pytest.raises(ValueError, match=r"\.mrc, \.map or \.ccp4"):
        write_map(tmp_path / "m.mrcs", volume, 1.0)
    with pytest.raises(ValueError, match="give pixel_size="):
        write_map(tmp_path / "m.mrc", volume)
    for bad in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="positive"):
            write_map(tmp_path / "m.mrc", volume, bad)
    with pytest.raises(ValueError, match="float32 or float16"):
        write_map(tmp_path / "m.mrc", volume, 1.0, dtype=np.float64)
    with pytest.raises(ValueError, match="too large for float16"):
        write_map(tmp_path / "m.mrc", volume + 1e6, 1.0, dtype=np.float16)


def test_read_only_input_is_accepted(tmp_path, volume):
    volume.setflags(write=False)
    write_map(tmp_path / "m.mrc", volume, 1.0)
    write_stack(tmp_path / "m.mrcs", volume, 1.0)


# --- stacks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_stack_writer_streams(tmp_path, rng, dtype):
    # A large mean: a naive sum of squares would lose the deviation. (mrcfile itself sums in float16.)
    mean = 1000 if dtype is np.float32 else 20
    images = (rng.standard_normal((7, 6, 8)) + mean).astype(dtype).astype(np.float32)
    path = tmp_path / "s.mrcs"
    with StackWriter(path, 1.25, dtype=dtype) as writer:
        writer.append(images[:3])
        writer.append(images[3])
        writer.append(images[4:4])
        writer.append(images[4:])
        assert not path.exists()
    assert mrcfile.validate(path, print_file=open(os.devnull, "w"))
    with mrcfile.open(path) as other:
        assert other.is_image_stack()
        np.testing.assert_array_equal(other.data, images)
        h = other.header
        assert (h.mx, h.my, h.mz, h.ispg) == (8, 6, 1, 0)
        assert other.voxel_size.tolist() == pytest.approx((1.25, 1.25, 1.25))
        assert float(h.dmean) == pytest.approx(images.mean(dtype=np.float64), rel=1e-6)
        assert float(h.rms) == pytest.approx(images.std(dtype=np.float64), rel=1e-5)
        assert float(h.dmin) == images.min() and float(h.dmax) == images.max()


def test_open_stack_is_lazy_and_gives_float32(tmp_path, rng):
    images = rng.integers(-500, 500, (6, 4, 5)).astype(np.int16)
    stack = open_stack(make_mrc(tmp_path / "s.mrcs", images, mode=1, order=">", w10=1, w13=2.0))
    assert isinstance(stack.file, np.memmap) and not stack.file.flags.writeable
    assert stack.shape == (6, 4, 5) and len(stack) == 6 and stack.dtype == np.float32
    assert stack.pixel_size == 2.0
    for index in (slice(1, 5, 2), [3, 0, 3], np.array([5])):
        assert stack[index].dtype == np.float32
        np.testing.assert_array_equal(stack[index], images[index])
    assert stack[2].shape == (4, 5)


def test_write_stack_takes_anything_lazy(tmp_path, rng):
    images = rng.standard_normal((10, 4, 4)).astype(np.float32)
    write_stack(tmp_path / "a.mrcs", images, 2.0)
    lazy = open_stack(tmp_path / "a.mrcs")
    write_stack(tmp_path / "a.mrcs", lazy, 3.0, batch_size=3)  # onto its own source
    np.testing.assert_array_equal(open_stack(tmp_path / "a.mrcs")[:], images)
    assert open_stack(tmp_path / "a.mrcs").pixel_size == 3.0


def test_stack_writer_refusals(tmp_path, rng, caplog):
    path = tmp_path / "s.mrcs"
    with pytest.raises(ValueError, match="at least one"), StackWriter(path, 1.0):
        pass
    with pytest.raises(ValueError, match=r"expected images of shape \(4, 4\), got \(1, 4, 5\)"):
        with StackWriter(path, 1.0) as writer:
            writer.append(np.zeros((2, 4, 4)))
            writer.append(np.zeros((4, 5)))
    with pytest.raises(ValueError, match="section 4 are NaN"), StackWriter(path, 1.0) as writer:
        writer.append(np.zeros((2, 4, 4)))
        writer.append(np.where(np.arange(2)[:, None, None] == 1, np.inf, np.zeros((2, 4, 4))))
    with pytest.raises(RuntimeError, match="with StackWriter"):
        StackWriter(path, 1.0).append(np.zeros((4, 4)))
    assert os.listdir(tmp_path) == []
    StackWriter(tmp_path / "s.mrc", 1.0)
    assert "ends in .mrcs" in caplog.text
    with pytest.raises(ValueError, match="positive"):
        StackWriter(path, 0.0)


# --- complete or not at all --------------------------------------------------------------------------------


def test_error_inside_leaves_the_old_file(tmp_path):
    path = tmp_path / "s.mrcs"
    write_stack(path, np.ones((2, 4, 4)), 1.0)
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), StackWriter(path, 1.0) as writer:
        writer.append(np.zeros((2, 4, 4)))
        raise KeyboardInterrupt
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["s.mrcs"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_kill_in_the_middle_leaves_the_old_file(tmp_path):
    path = tmp_path / "s.mrcs"
    write_stack(path, np.ones((2, 4, 4)), 1.0)
    before = path.read_bytes()
    script = (
        "import sys, time, numpy as np\n"
        "from invcryo.io import StackWriter\n"
        "with StackWriter(sys.argv[1], 1.0) as writer:\n"
        "    writer.append(np.zeros((64, 64, 64)))\n"
        "    print('half way', flush=True)\n"
        "    time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"half way\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert path.read_bytes() == before
    np.testing.assert_array_equal(open_stack(path)[:], 1)


def test_atomic_folder_problems_are_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"folder .*missing does not exist; create it first"):
        write_map(tmp_path / "missing" / "m.mrc", np.zeros((2, 2, 2)), 1.0)
    (tmp_path / "m.mrc").mkdir()
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        write_map(tmp_path / "m.mrc", np.zeros((2, 2, 2)), 1.0)

    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.touch", refuse)
    with pytest.raises(
        PermissionError, match=r"takes no new file \(Permission denied\); choose another folder"
    ):
        write_map(tmp_path / "n.mrc", np.zeros((2, 2, 2)), 1.0)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_atomic_unwritable_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="takes no new file"):
        write_map(tmp_path / "m.mrc", np.zeros((2, 2, 2)), 1.0)
    tmp_path.chmod(0o700)


def test_atomic_keeps_rights_links_and_suffix(tmp_path):
    mask = os.umask(0o027)
    try:
        with atomic_open(tmp_path / "a.txt") as file:
            file.write("a")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640
    (tmp_path / "link.txt").symlink_to("a.txt")
    with atomic_path(tmp_path / "link.txt") as temporary:
        assert temporary.suffix == ".txt" and temporary.parent == tmp_path
        temporary.write_text("b")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "a.txt").read_text() == "b"


# --- real files --------------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize("name", ["EMD-3001.map", "3pqr-mode0.ccp4", "EMD-3197.map", "griddata_test.ccp4"])
def test_ccp4_maps_agree_with_gemmi(reference_data, name):
    path = reference_data / "formats-mrc" / name
    read, other = read_map(path), gemmi.read_ccp4_map(str(path))
    other.setup(float("nan"), gemmi.MapSetup.ReorderOnly)
    np.testing.assert_array_equal(read.data, other.grid.array.transpose(2, 1, 0))
    assert read.start == tuple(other.header_i32(w) for w in (7, 6, 5))


@pytest.mark.data
def test_packed_map_equals_the_plain_one(reference_data):
    folder = reference_data / "formats-mrc"
    plain = read_map(folder / "EMD-3001.map")
    assert plain.data.shape == (73, 25, 43)
    for name in ("EMD-3001.map.bz2", "emd_3001.map.gz"):
        packed = read_map(folder / name)
        np.testing.assert_array_equal(packed.data, plain.data)
        assert packed.voxel_size == plain.voxel_size and packed.start == plain.start


@pytest.mark.data
@pytest.mark.parametrize(
    "name, shape, said",
    [
        ("odl_test_mode1.mrc", (30, 20, 10), "machine stamp 36 36 33 33"),
        ("invalid_axes.mrc", (8, 10, 8), "MAPC, MAPR, MAPS are 10, 11, 12"),
        ("genfire_no_map_id.mrc", (60, 60, 60), "no 'MAP ' identifier"),
        ("EMD-3001.map", (73, 25, 43), "not a square grid"),
        ("3pqr-mode0.ccp4", (59, 69, 100), "they are read as steps"),
    ],
)
def test_awkward_files_are_read_and_said(reference_data, caplog, name, shape, said):
    path = reference_data / "formats-mrc" / name
    read = read_map(path)
    assert read.data.shape == shape and np.isfinite(read.data).all()
    assert said in caplog.text and any(said in note for note in header_info(path)["notes"])
    assert read.data.std() > 0


@pytest.mark.data
@pytest.mark.filterwarnings("ignore::RuntimeWarning:mrcfile")
def test_stack_without_identifier(reference_data):
    stack = open_stack(reference_data / "formats-mrc" / "cryodrgn_hand.5.mrcs")
    with mrcfile.open(reference_data / "formats-mrc" / "cryodrgn_hand.5.mrcs", permissive=True) as other:
        np.testing.assert_array_equal(stack[:], other.data)
    assert stack.shape == (5, 64, 64) and stack.pixel_size == 1.0


@pytest.mark.data
@pytest.mark.parametrize(
    "name, pixel, start",
    [
        ("maps/emd_3400_86.mrc", 8.6 / 3, (0, 0, 0)),
        ("maps/emd_7795_54.mrc", 1.8, (0, 0, 0)),
        ("maps/5j0n.mrc", 11 / 3, (0, 0, 0)),
        ("maps/groel-11.5A.mrc", 2.7, (-50, -50, -50)),
        ("spa-betagal-10061-a/reference_reconstruction_96.mrc", 2.548, (0, 0, 0)),
    ],
)
def test_real_maps_survive_a_round_trip(reference_data, tmp_path, name, pixel, start):
    first = read_map(reference_data / name)
    assert first.pixel_size == pytest.approx(pixel, rel=1e-5) and first.start == start
    with mrcfile.open(reference_data / name, permissive=True) as other:
        np.testing.assert_array_equal(first.data, other.data.astype(np.float32))
        assert first.origin == other.header.origin.tolist()[::-1]
    write_map(tmp_path / "m.mrc", first.data, like=first)
    again = read_map(tmp_path / "m.mrc")
    np.testing.assert_array_equal(again.data, first.data)
    assert again.origin == first.origin and again.start == first.start
    assert again.voxel_size == pytest.approx(first.voxel_size, rel=1e-6)
    assert mrcfile.validate(tmp_path / "m.mrc", print_file=open(os.devnull, "w"))


@pytest.mark.relion
def test_relion_reads_our_map(relion, tmp_path, rng):
    data = rng.standard_normal((16, 16, 16)).astype(np.float32)
    write_map(tmp_path / "m.mrc", data, 1.7)
    subprocess.run(
        ["relion_image_handler", "--i", "m.mrc", "--o", "n.mrc", "--multiply_constant", "2"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    again = read_map(tmp_path / "n.mrc")
    np.testing.assert_allclose(again.data, 2 * data, rtol=1e-6)
    assert again.pixel_size == pytest.approx(1.7, rel=1e-5)
