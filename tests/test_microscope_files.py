"""Series in the formats of microscopes: files made here from their descriptions, not by the readers' own writers."""

import json
import struct

import numpy as np
import pytest

from invcryo.io.tilt_files import read_tilt_series

rsciio = pytest.importorskip("rsciio")
h5py = pytest.importorskip("h5py")

ANGLES = np.array([-60.0, -44.0, -30.0, -18.0, -6.0, 6.0, 18.0, 30.0, 44.0, 60.0])  # uneven, after Saxton


@pytest.fixture
def images(rng):
    return rng.uniform(1, 9, (10, 6, 8)).astype(np.float32)


# -- DigitalMicrograph: a tree of tags ----------------------------------------------------------------------------


def dm_group(content, version):
    """A group of tags; a list has tags without names."""
    items = [("", v) for v in content] if isinstance(content, list) else list(content.items())
    out = struct.pack(">BB" + ("q" if version == 4 else "i"), 1, 0, len(items))
    for name, value in items:
        body = dm_group(value, version) if isinstance(value, dict | list) else dm_data(value, version)
        kind = 20 if isinstance(value, dict | list) else 21
        out += struct.pack(">BH", kind, len(name)) + name.encode()
        out += (struct.pack(">q", len(body)) if version == 4 else b"") + body
    return out


def dm_data(value, version):
    """``%%%%``, how many words describe the type, these words, and the value: little endian."""
    if isinstance(value, str):
        value = np.frombuffer(value.encode("utf-16-le"), "<u2")
    if isinstance(value, np.ndarray):
        kind = {"uint16": 4, "float32": 6}[value.dtype.name]
        words, raw = [20, kind, value.size], value.astype(value.dtype.newbyteorder("<")).tobytes()
    elif isinstance(value, float):
        words, raw = [6], struct.pack("<f", value)
    else:
        words, raw = [5], struct.pack("<I", value)
    form = "q" if version == 4 else "i"
    return b"%%%%" + struct.pack(f">{1 + len(words)}{form}", len(words), *words) + raw


def write_dm(path, images, version, tilt_units="deg"):
    """DM3 or DM4; axes are calibrated from x on, and an origin is counted in pixels against the scale."""
    dimensions = [
        {"Origin": 0.0, "Scale": 1.5, "Units": "nm"},
        {"Origin": 0.0, "Scale": 1.5, "Units": "nm"},
        {"Origin": 30.0, "Scale": 2.0, "Units": tilt_units},
    ]
    data = {
        "Calibrations": {
            "Brightness": {"Origin": 0.0, "Scale": 1.0, "Units": ""},
            "Dimension": dimensions,
        },
        "Data": images.ravel(),
        "DataType": 2,
        "Dimensions": [int(n) for n in images.shape[::-1]],
        "PixelDepth": 4,
    }
    tree = dm_group({"ImageList": [{"ImageData": data, "ImageTags": {}, "Name": "needle"}]}, version)
    size = struct.pack(">q" if version == 4 else ">i", len(tree))
    path.write_bytes(struct.pack(">i", version) + size + struct.pack(">i", 1) + tree + bytes(8))


@pytest.mark.parametrize("version", [3, 4])
def test_digital_micrograph(tmp_path, images, version):
    path = tmp_path / f"a.dm{version}"
    write_dm(path, images, version)
    made = read_tilt_series(path, check=False)
    np.testing.assert_array_equal(made.images, images)
    np.testing.assert_allclose(made.angles_deg, -60 + 2.0 * np.arange(10), atol=1e-4)
    assert made.pixel_size == pytest.approx(15.0)
    write_dm(path, images, version, tilt_units="")
    with pytest.raises(ValueError, match="angles"):
        read_tilt_series(path, check=False)
    given = read_tilt_series(path, angles=ANGLES, check=False)
    np.testing.assert_allclose(given.angles_deg, ANGLES)


def test_cut_short(tmp_path, images):
    path = tmp_path / "a.dm4"
    write_dm(path, images, 4)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(ValueError, match="could not be read"):
        read_tilt_series(path, angles=ANGLES)


# -- EMD ----------------------------------------------------------------------------------------------------------


def write_ncem(path, data, dims):
    with h5py.File(path, "w") as file:
        file.attrs.update(version_major=0, version_minor=2)
        group = file.create_group("data/series")
        group.attrs["emd_group_type"] = 1
        group["data"] = data
        for k, (values, name, units) in enumerate(dims, 1):
            group[f"dim{k}"] = values
            group[f"dim{k}"].attrs.update(name=np.bytes_(name), units=np.bytes_(units))


@pytest.mark.parametrize("last", [False, True])
def test_emd_of_ncem(tmp_path, images, last):
    """Tilts first, or last as tomviz has them; each where the file says, evenly spaced or not."""
    y, x = (("y", 1.5 * np.arange(6), "[n_m]"), ("x", 1.5 * np.arange(8), "[n_m]"))
    tilt = ("tilt", ANGLES, "[deg]")
    order = (x, y, tilt) if last else (tilt, y, x)
    dims = [(values, name, units) for name, values, units in order]
    write_ncem(tmp_path / "a.emd", images.transpose(2, 1, 0) if last else images, dims)
    made = read_tilt_series(tmp_path / "a.emd", check=False)
    np.testing.assert_array_equal(made.images, images)
    np.testing.assert_allclose(made.angles_deg, ANGLES)
    assert made.pixel_size == pytest.approx(15.0)
    if last:
        radians = [(np.deg2rad(v) if u == "[deg]" else v, n, u.replace("deg", "rad")) for v, n, u in dims]
        write_ncem(tmp_path / "b.emd", images.transpose(2, 1, 0), radians)
        np.testing.assert_allclose(read_tilt_series(tmp_path / "b.emd", check=False).angles_deg, ANGLES)
    unknown = [(values, name, "[]") for values, name, _ in dims]
    write_ncem(tmp_path / "c.emd", images, unknown)
    with pytest.raises(ValueError, match="degrees or radians"):
        read_tilt_series(tmp_path / "c.emd", angles=ANGLES)


def test_emd_of_velox(tmp_path, images):
    """Frames last, metadata as text in bytes; no tilts."""
    metadata = {
        "BinaryResult": {
            "PixelSize": {"width": "1.5e-9", "height": "1.5e-9"},
            "PixelUnitX": "m",
            "PixelUnitY": "m",
            "Offset": {"x": "0", "y": "0"},
            "Detector": "HAADF",
        },
        "Core": {"MetadataDefinitionVersion": "7.9"},
        "Instrument": {},
        "Acquisition": {"AcquisitionStartDatetime": {"DateTime": "1500000000"}},
        "Optics": {},
        "Stage": {},
        "Scan": {"FrameTime": "1.0"},
        "Detectors": {},
    }
    with h5py.File(tmp_path / "a.emd", "w") as file:
        file["Version"] = np.array([json.dumps({"format": "Velox", "version": "11"})], h5py.string_dtype())
        group = file.create_group("Data/Image/0123456789abcdef0123456789abcdef")
        group["Data"] = images.transpose(1, 2, 0)
        text = np.frombuffer(json.dumps(metadata).encode(), np.uint8)
        group["Metadata"] = np.repeat(text[:, None], len(images), axis=1)
    made = read_tilt_series(tmp_path / "a.emd", angles=ANGLES, check=False)
    np.testing.assert_array_equal(made.images, images)
    assert made.pixel_size == pytest.approx(15.0)
    with pytest.raises(ValueError, match="angles"):
        read_tilt_series(tmp_path / "a.emd", check=False)


# -- HSPY ---------------------------------------------------------------------------------------------------------


def test_hspy_with_uneven_tilts(tmp_path, images):
    axes = [{"_type": "DataAxis", "name": "tilt", "units": "deg", "navigate": True, "axis": ANGLES}]
    axes += [
        {
            "_type": "UniformDataAxis",
            "name": n,
            "units": "nm",
            "navigate": False,
            "size": s,
            "scale": 1.5,
            "offset": 0.0,
        }
        for n, s in (("y", 6), ("x", 8))
    ]
    with h5py.File(tmp_path / "a.hspy", "w") as file:
        file.attrs.update(file_format="HyperSpy", file_format_version="3.3")
        group = file.create_group("Experiments/needle")
        group["data"] = images
        for k, axis in enumerate(axes):
            place = group.create_group(f"axis-{k}")
            for name, value in axis.items():
                if name == "axis":
                    place["axis"] = value
                else:
                    place.attrs[name] = value
        for name in ("metadata", "original_metadata", "learning_results"):
            group.create_group(name)
        group["metadata"].create_group("General").attrs["title"] = "needle"
    made = read_tilt_series(tmp_path / "a.hspy", check=False)
    np.testing.assert_array_equal(made.images, images)
    np.testing.assert_allclose(made.angles_deg, ANGLES)
    assert made.pixel_size == pytest.approx(15.0)
