"""The convention passport: the printed example, SciPy's Euler angles as an oracle, and round trips."""

import dataclasses
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from invcryo.conventions import CONVENTIONS, Passport, conventions_table
from invcryo.ctf import CTF
from invcryo.data import Poses
from invcryo.rotation import geodesic_distance, matrix_from_rotvec

EXAMPLE = {"rlnAngleRot": 30.0, "rlnAngleTilt": 40.0, "rlnAnglePsi": 50.0}
SHIFTED = EXAMPLE | {"rlnOriginXAngst": 1.5, "rlnOriginYAngst": -3.0}
WITH_CTF = [name for name, c in CONVENTIONS.items() if c.ctf]

angle = st.floats(-360, 360)
vector = st.tuples(*[st.floats(-4, 4)] * 3)
pixels = st.floats(-500, 500)
pixel_size = st.floats(0.05, 100)
ctf_values = st.builds(
    CTF,
    st.floats(-2e4, 9e4),
    st.floats(-2e4, 9e4),
    st.floats(-6, 6),
    st.floats(60, 1000),
    st.floats(0, 10),
    st.floats(-1, 1),
    phase_shift=st.floats(-6, 6),
    b_factor=st.floats(-100, 500),
    scale=st.floats(0.01, 10),
)


def one(vector, shift=(0.0, 0.0), size=1.5, ctf=None):
    return Passport(Poses(matrix_from_rotvec([vector]), [shift]), size, ctf)


def test_the_example():
    """A.4 of the conventions: rot, tilt, psi = 30, 40, 50 degrees in every program's words."""
    p = Passport.from_columns("relion", SHIFTED, 1.5)
    expected = {
        "relion": [30, 40, 50, 1.5, -3],
        "cryosparc": [0.131288, 0.744573, 1.335235, 1, -2],
        "eman2": [120, 40, -40, -1, 2],
        "thesis": [np.pi / 6, 2 * np.pi / 9, 5 * np.pi / 18, -1, 2],
        "invcryo": [0.043412, 0.909616, -0.413176, -0.829598, 0.263258, 0.492404, 0.556670, 0.321394, 0.766044,
                    -1, 2],
    }  # fmt: skip
    for name, values in expected.items():
        np.testing.assert_allclose(
            [v[0] for v in p.columns(name).values()], values, atol=5.1e-7, err_msg=name
        )
    quaternion = [p.columns("scipy")[f"quat_{k}"][0] for k in "xyzw"]
    a = Rotation.from_quat(quaternion).as_matrix()
    np.testing.assert_allclose(a @ [10, 0, 0], [0.434120, -8.295984, 5.566704], atol=5.1e-7)


@pytest.mark.parametrize("name", [k for k, c in CONVENTIONS.items() if c.form == "euler"])
@given(vector=vector)
@settings(deadline=None)
def test_euler_angles_are_what_the_table_says(name, vector):
    """SciPy builds the same matrix from the columns, the axes and the direction that the row names."""
    c, p = CONVENTIONS[name], one(vector)
    angles = [p.columns(name)[k][0] for k in c.rotation]
    built = Rotation.from_euler(c.axes, angles, degrees=c.rotation_unit == "deg")
    built = (built.inv() if c.inverse else built).as_matrix()
    # Closer to the poles than 1e-9 the tilt counts as 0.
    np.testing.assert_allclose(built, p.poses.matrices[0], atol=2e-9)


def test_forgetting_the_inverse_is_seen():
    """The wrong way gives (150, 40, 130), the classic bug."""
    a = Passport.from_columns("relion", EXAMPLE, 1.0).poses.matrices[0]
    np.testing.assert_allclose(
        Rotation.from_matrix(a).as_euler("zyz", degrees=True), [150, 40, 130], atol=1e-10
    )


@pytest.mark.parametrize("name", CONVENTIONS)
@given(vector=vector, x=pixels, y=pixels, size=pixel_size)
@settings(deadline=None)
def test_round_trip_of_poses_and_shifts(name, vector, x, y, size):
    p = one(vector, (x, y), size)
    again = Passport.from_columns(name, p.columns(name), size)
    assert geodesic_distance(again.poses.matrices, p.poses.matrices)[0] < 1e-8
    # Two roundings of float64; of numbers below 1e-300 the digits go when they are multiplied.
    np.testing.assert_allclose(again.poses.shifts, p.poses.shifts, rtol=4.5e-16, atol=1e-300)


@pytest.mark.parametrize("name", WITH_CTF)
@given(ctf=ctf_values)
@settings(deadline=None)
def test_round_trip_of_the_ctf(name, ctf):
    """The CTF of the image, at frequencies in all directions: parameters may change, as U and V exchanged."""
    if name == "eman2":  # which has no place for the others here
        ctf = dataclasses.replace(ctf, phase_shift=0.0, b_factor=0.0, scale=1.0)
    p = one((0.1, 0.2, 0.3), ctf=ctf)
    again = Passport.from_columns(name, p.columns(name), 1.5).ctf
    phi = np.linspace(0, np.pi, 7)
    for s in (0.0, 0.05, 0.2):
        sx, sy = s * np.cos(phi), s * np.sin(phi)
        # The phase, up to pi lambda df s^2 = 500, multiplies roundings.
        np.testing.assert_allclose(again(sx, sy), ctf(sx, sy), atol=2e-12 * max(1, abs(ctf(sx, sy)).max()))


def test_ctf_in_all_units():
    p = dataclasses.replace(
        Passport.from_columns("relion", EXAMPLE, 1.0), ctf=CTF(14000, 15000, np.pi / 6, 300, 2.7, 0.07, 0.5)
    )
    relion, sparc, eman = (p.columns(k) for k in ("relion", "cryosparc", "eman2"))
    assert relion["rlnDefocusAngle"][0] == pytest.approx(30) and sparc["ctf/df_angle_rad"][0] == np.pi / 6
    assert relion["rlnPhaseShift"][0] == pytest.approx(np.rad2deg(0.5))
    assert [eman[k][0] for k in ("defocus", "dfdiff", "dfang", "ampcont")] == pytest.approx(
        [1.45, 0.1, 120, 7]
    )


def test_what_a_program_cannot_say_is_said(caplog):
    p = one((0, 0, 1), ctf=CTF(14000, 15000, 0, 300, 2.7, 0.07, phase_shift=1.0, b_factor=30))
    with caplog.at_level(logging.WARNING):
        p.columns("eman2")
    assert "no place for phase_shift, b_factor here" in caplog.text


def test_pole():
    """At tilt 0, where only one angle counts, RELION puts it into psi."""
    p = Passport.from_columns("relion", {"rlnAngleRot": 20, "rlnAngleTilt": 0, "rlnAnglePsi": 30}, 1.0)
    found = p.columns("relion")
    assert [found[k][0] for k in EXAMPLE] == pytest.approx([0, 0, 50])
    assert p.columns("cryosparc")["alignments3D/pose[2]"][0] == pytest.approx(np.deg2rad(50))


def test_table_is_made_from_the_conventions():
    text = conventions_table()
    rows = text.strip().splitlines()
    assert len(rows) == 2 + len(CONVENTIONS) and len({row.count(" | ") for row in rows}) == 1
    for key, c in CONVENTIONS.items():
        row = next(r for r in rows if r.startswith(f"| `{key}`"))
        assert c.note in row and c.shift[0] in row and c.shift_unit in row
    assert "rot + 90, tilt, psi - 90 of RELION" in text and "micrometre" in text


def test_show_has_every_number():
    p = dataclasses.replace(
        Passport.from_columns("relion", SHIFTED, 1.5), ctf=CTF(15000, 14000, 0, 300, 2.7, 0.1)
    )
    text = p.show()
    for name in CONVENTIONS:
        for column, values in p.columns(name).items():
            assert f"{column} {values[0]:.6g}" in text
    assert text.splitlines()[0] == "particle 1 (1.5 angstrom per pixel)"
    assert "cryosparc" not in p.show(("relion", "eman2"))


@pytest.mark.parametrize(
    ("convention", "columns", "message"),
    [
        ("xmipp", {}, "no convention 'xmipp'; there are relion"),
        ("relion", {"rlnAngleRot": 1}, "rlnAngleTilt, rlnAnglePsi not given"),
        ("relion", EXAMPLE | {"rlnOriginX": 1}, "RELION .* has no rlnOriginX"),
        ("relion", EXAMPLE | {"rlnDefocusU": 15000}, "CTF needs rlnDefocusV"),
        ("relion", EXAMPLE | {"rlnAngleRot": np.nan}, "NaN or infinite"),
        ("scipy", {f"quat_{k}": 1 for k in "xyzw"}, "quaternion of length 2, not 1"),
        ("invcryo", {f"A{i}{j}": 1 for i in range(3) for j in range(3)}, "must be rotations"),
    ],
)
def test_bad_columns(convention, columns, message):
    with pytest.raises(ValueError, match=message):
        Passport.from_columns(convention, columns, 1.0)


def test_bad_pixel_size():
    with pytest.raises(ValueError, match="positive number of angstrom, got 0"):
        Passport.from_columns("relion", EXAMPLE, 0)
