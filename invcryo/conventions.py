"""The convention passport: what each program means by a pose, a shift and a CTF, and the way between them.

`CONVENTIONS` has one row per program; the conversions are made from it, and so is the text of
`conventions_table`, so that what is written is what is done.

Inside invcryo a pose is a matrix ``A`` that takes a point (x, y, z) of the map to the image, where it is seen at
``(A r)[:2] + shift``; shifts are in pixels and say where the centre of the map is seen. Mirror images of a map
fit the same particles equally well: no convention here tells the hand of a map.

>>> from invcryo.conventions import Passport
>>> passport = Passport.from_columns("relion", {"rlnAngleRot": 30, "rlnAngleTilt": 40, "rlnAnglePsi": 50}, 1.5)
>>> {name: round(float(v[0]), 3) for name, v in passport.columns("eman2").items()}
{'az': 120.0, 'alt': 40.0, 'phi': -40.0, 'tx': 0.0, 'ty': 0.0}
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from .ctf import CTF
from .data import Poses
from .rotation import euler_from_matrix, matrix_from_euler

__all__ = ["CONVENTIONS", "Convention", "Passport", "conventions_table"]

logger = logging.getLogger(__name__)

#: Parameters of `CTF`, in the order of the columns that a convention names for them.
_PARAMETERS = (
    "defocus_u_angstrom", "defocus_v_angstrom", "defocus_angle", "voltage_kv", "cs_mm", "amplitude_contrast",
    "phase_shift", "b_factor", "scale",
)  # fmt: skip
_NEUTRAL = {"phase_shift": 0.0, "b_factor": 0.0, "scale": 1.0}


@dataclass(frozen=True)
class Convention:
    """What one program means by its numbers.

    Attributes
    ----------
    program : str
    rotation : tuple of str
        Columns of the orientation.
    form : "euler", "rotvec", "quaternion" or "matrix"
        What these columns are.
    rotation_unit : "deg", "rad" or ""
    inverse : bool
        True: as active rotations the numbers build the transpose of ``A``, from the image to the map. False:
        they build ``A``.
    axes : str
        Of Euler angles: the axes they turn about, in SciPy's letters (upper case: axes that turn along).
    offset : tuple of float
        Of Euler angles: what is added to RELION's rot, tilt, psi, degrees.
    shift : tuple of str
        Columns of the shift along x and y.
    shift_unit : "pixel" or "angstrom"
    shift_sign : int
        +1: where the centre of the map is seen. -1: what to add to the image to centre it.
    ctf : mapping of str to (str, float)
        Parameter of `CTF` to column, and the number by which to multiply.
    split_defocus : bool
        True: the two defocus columns are the mean and the difference (U - V, not negative).
    note : str
    """

    program: str
    rotation: tuple[str, ...]
    form: Literal["euler", "rotvec", "quaternion", "matrix"]
    shift: tuple[str, str]
    rotation_unit: str = ""
    inverse: bool = False
    axes: str = ""
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shift_unit: Literal["pixel", "angstrom"] = "pixel"
    shift_sign: int = 1
    ctf: Mapping[str, tuple[str, float]] | None = None
    split_defocus: bool = False
    note: str = ""


def _ctf_columns(names: Sequence[str], factors: Sequence[float]) -> dict[str, tuple[str, float]]:
    return dict(zip(_PARAMETERS, zip(names, factors, strict=True), strict=False))


_DEG = 180 / math.pi

#: One row per program.
CONVENTIONS: dict[str, Convention] = {
    "relion": Convention(
        program="RELION (3.1 and later)",
        rotation=("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"),
        form="euler",
        rotation_unit="deg",
        inverse=True,
        axes="ZYZ",
        shift=("rlnOriginXAngst", "rlnOriginYAngst"),
        shift_unit="angstrom",
        shift_sign=-1,
        ctf=_ctf_columns(
            ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnVoltage", "rlnSphericalAberration",
             "rlnAmplitudeContrast", "rlnPhaseShift", "rlnCtfBfactor", "rlnCtfScalefactor"),
            (1, 1, _DEG, 1, 1, 1, _DEG, 1, 1),
        ),
        note="the standard of 3DEM; RELION 3.0 gives origins in pixels (rlnOriginX); at tilt 0 rot is 0",
    ),
    "cryosparc": Convention(
        program="cryoSPARC",
        rotation=("alignments3D/pose[0]", "alignments3D/pose[1]", "alignments3D/pose[2]"),
        form="rotvec",
        rotation_unit="rad",
        inverse=True,
        shift=("alignments3D/shift[0]", "alignments3D/shift[1]"),
        shift_sign=-1,
        ctf=_ctf_columns(
            ("ctf/df1_A", "ctf/df2_A", "ctf/df_angle_rad", "ctf/accel_kv", "ctf/cs_mm", "ctf/amp_contrast",
             "ctf/phase_shift_rad", "ctf/bfactor", "ctf/scale"),
            (1, 1, 1, 1, 1, 1, 1, 1, 1),
        ),
        note="shifts are in pixels of alignments3D/psize_A, which may differ from blob/psize_A; numbers of"
        " images, classes and half sets start at 0",
    ),
    "eman2": Convention(
        program="EMAN2",
        rotation=("az", "alt", "phi"),
        form="euler",
        rotation_unit="deg",
        inverse=True,
        axes="ZXZ",
        offset=(90.0, 0.0, -90.0),
        shift=("tx", "ty"),
        ctf=_ctf_columns(
            ("defocus", "dfdiff", "dfang", "voltage", "cs", "ampcont"), (1e-4, 1e-4, _DEG, 1, 1, 100)
        ),
        split_defocus=True,
        note="xform.projection; defocus is the mean in micrometres, ampcont per cent",
    ),
    "scipy": Convention(
        program="SciPy",
        rotation=("quat_x", "quat_y", "quat_z", "quat_w"),
        form="quaternion",
        shift=("shift_x", "shift_y"),
        note="Rotation.from_matrix(A).as_quat(), w not negative;"
        " A = Rotation.from_euler('ZYZ', [rot, tilt, psi], degrees=True).inv()",
    ),
    "thesis": Convention(
        program="the thesis behind invcryo",
        rotation=("theta_1", "theta_2", "theta_3"),
        form="euler",
        rotation_unit="rad",
        inverse=True,
        axes="ZYZ",
        shift=("t_1", "t_2"),
        note="M is the first two rows of A; its printed equation (1.3) has theta_1 and theta_3 exchanged",
    ),
    "invcryo": Convention(
        program="invcryo",
        rotation=tuple(f"A{i}{j}" for i in range(3) for j in range(3)),
        form="matrix",
        shift=("shift_x", "shift_y"),
        ctf={name: (name, 1.0) for name in _PARAMETERS},
        note="the matrix row by row; angles of the CTF in radians",
    ),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Passport:
    """Poses, shifts and CTF of n particles, to be read in any convention.

    Attributes
    ----------
    poses : Poses
    pixel_size : float
        Angstrom per pixel of the shifts.
    ctf : CTF or None
    """

    poses: Poses
    pixel_size: float
    ctf: CTF | None = None

    def __post_init__(self) -> None:
        _checked(self.pixel_size)
        if self.ctf is not None and len(self.ctf) not in (1, len(self.poses)):
            raise ValueError(f"{len(self.poses)} poses but {len(self.ctf)} rows of the CTF")

    @classmethod
    def from_columns(cls, convention: str, columns: Mapping[str, ArrayLike], pixel_size: float) -> Passport:
        """From the numbers of a program.

        Parameters
        ----------
        convention : str
            A key of `CONVENTIONS`.
        columns : mapping of str to array_like, (n,) or scalars
            Orientations are needed; shifts left out are 0; the CTF is read where its first column is there.
        pixel_size : float
            Angstrom per pixel.
        """
        c = _convention(convention)
        given = {name: np.atleast_1d(np.asarray(v, dtype=np.float64)) for name, v in columns.items()}
        missing = [name for name in c.rotation if name not in given]
        if missing:
            raise ValueError(
                f"{c.program} says a pose by {', '.join(c.rotation)}: {', '.join(missing)} not given"
            )
        known = {*c.rotation, *c.shift, *(name for name, _ in (c.ctf or {}).values())}
        if given.keys() - known:
            raise ValueError(
                f"{c.program} has no {', '.join(sorted(given.keys() - known))} in its convention"
            )
        parts = np.stack(np.broadcast_arrays(*(given[name] for name in c.rotation)), axis=-1)
        unit = c.shift_sign * (1.0 if c.shift_unit == "pixel" else _checked(pixel_size))
        zero = np.zeros(len(parts))
        shifts = np.stack([np.broadcast_to(given.get(k, zero), zero.shape) for k in c.shift], axis=1) / unit
        return cls(Poses(_to_matrices(c, parts), shifts), float(pixel_size), _to_ctf(c, given))

    def columns(self, convention: str) -> dict[str, NDArray]:
        """The numbers that a program would write, each (n,)."""
        c = _convention(convention)
        unit = c.shift_sign * (1.0 if c.shift_unit == "pixel" else self.pixel_size)
        found = dict(zip(c.rotation, _from_matrices(c, self.poses.matrices).T, strict=True))
        found |= dict(zip(c.shift, self.poses.shifts.T * unit + 0.0, strict=True))
        if self.ctf is not None and c.ctf is not None:
            found |= _from_ctf(c, self.ctf, len(self.poses))
        return found

    def show(self, conventions: Sequence[str] = tuple(CONVENTIONS)) -> str:
        """A readable table: each particle as each program would write it."""
        numbers = {name: self.columns(name) for name in conventions}
        lines = []
        width = max(len(name) for name in conventions)
        for row in range(len(self.poses)):
            lines.append(f"particle {row + 1} ({self.pixel_size:.6g} angstrom per pixel)")
            for name, columns in numbers.items():
                c = CONVENTIONS[name]
                head = f"  {name:<{width}}  "
                for group, unit in _groups(c, columns):
                    words = "  ".join(f"{column} {columns[column][row]:.6g}" for column in group)
                    lines.append(f"{head}{words}{unit}")
                    head = " " * len(head)
        return "\n".join(lines)


def conventions_table() -> str:
    """The rows of `CONVENTIONS` as a table in Markdown."""
    titles = ("", "orientation", "built from it", "shift", "CTF", "note")
    rows = [
        (f"`{key}`: {c.program}", _orientation_words(c), "Aᵀ" if c.inverse else "A", _shift_words(c),
         _ctf_words(c), c.note)
        for key, c in CONVENTIONS.items()
    ]  # fmt: skip
    lines = [titles, tuple("---" for _ in titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _checked(pixel_size: float) -> float:
    if not (math.isfinite(pixel_size) and pixel_size > 0):
        raise ValueError(f"pixel_size must be a positive number of angstrom, got {pixel_size}")
    return pixel_size


# --- rotations ----------------------------------------------------------------------------------------------


def _convention(name: str) -> Convention:
    if name not in CONVENTIONS:
        raise ValueError(f"no convention {name!r}; there are {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]


def _to_matrices(c: Convention, parts: NDArray) -> NDArray:
    """Pose matrices (n, 3, 3) of the numbers (n, k) of a convention."""
    if not np.isfinite(parts).all():
        raise ValueError(f"{', '.join(c.rotation)} hold NaN or infinite values")
    if c.form == "euler":
        angles = np.rad2deg(parts) if c.rotation_unit == "rad" else parts
        return matrix_from_euler(*(angles - c.offset).T)
    if c.form == "matrix":
        built = parts.reshape(-1, 3, 3)
    elif c.form == "rotvec":
        built = Rotation.from_rotvec(parts).as_matrix()
    else:
        norm = np.linalg.norm(parts, axis=1)
        if (np.abs(norm - 1) > 1e-3).any():
            raise ValueError(f"a quaternion of length {norm[np.abs(norm - 1).argmax()]:.6g}, not 1")
        built = Rotation.from_quat(parts).as_matrix()
    return built.transpose(0, 2, 1) if c.inverse else built


def _from_matrices(c: Convention, matrices: NDArray) -> NDArray:
    if c.form == "euler":
        angles = np.stack(euler_from_matrix(matrices), axis=-1) + c.offset
        return np.deg2rad(angles) if c.rotation_unit == "rad" else angles
    if c.form == "matrix":
        return matrices.reshape(-1, 9)
    rotation = Rotation.from_matrix(matrices)
    if c.inverse:
        rotation = rotation.inv()
    return rotation.as_rotvec() if c.form == "rotvec" else rotation.as_quat(canonical=True)


# --- CTF ----------------------------------------------------------------------------------------------------


def _to_ctf(c: Convention, given: Mapping[str, NDArray]) -> CTF | None:
    if c.ctf is None or c.ctf["defocus_u_angstrom"][0] not in given:
        return None
    values = {}
    for name, (column, factor) in c.ctf.items():
        if column in given:
            values[name] = given[column] / factor
        elif name not in _NEUTRAL:
            raise ValueError(f"{c.program}'s CTF needs {column}, which is not given")
    if c.split_defocus:
        mean, difference = values["defocus_u_angstrom"], values["defocus_v_angstrom"]
        values["defocus_u_angstrom"] = mean + difference / 2
        values["defocus_v_angstrom"] = mean - difference / 2
    return CTF(**values)


def _from_ctf(c: Convention, ctf: CTF, n: int) -> dict[str, NDArray]:
    values: dict[str, Any] = {name: np.broadcast_to(getattr(ctf, name), (n,)) for name in _PARAMETERS}
    if c.split_defocus:
        u, v, angle = (values[name] for name in _PARAMETERS[:3])
        # The difference is written without a sign: the angle then is that of the other axis.
        values["defocus_u_angstrom"], values["defocus_v_angstrom"] = (u + v) / 2, np.abs(u - v)
        values["defocus_angle"] = np.where(u >= v, angle, angle + np.pi / 2)
    columns = c.ctf or {}
    lost = [k for k in _PARAMETERS if k not in columns and (values[k] != _NEUTRAL[k]).any()]
    if lost:
        logger.warning("the CTF of %s has no place for %s here; left out", c.program, ", ".join(lost))
    return {column: values[name] * factor for name, (column, factor) in columns.items()}


# --- words --------------------------------------------------------------------------------------------------


def _groups(c: Convention, columns: Mapping[str, NDArray]) -> list[tuple[list[str], str]]:
    """Columns that belong on one line, with their unit."""
    rotation = [list(c.rotation)] if c.form != "matrix" else [list(c.rotation[i : i + 3]) for i in (0, 3, 6)]
    groups = [(names, f"  {c.rotation_unit}".rstrip()) for names in rotation]
    groups.append((list(c.shift), f"  {c.shift_unit}"))
    ctf = [column for column, _ in (c.ctf or {}).values() if column in columns]
    return groups + [(part, "") for part in (ctf[:3], ctf[3:6], ctf[6:]) if part]


def _orientation_words(c: Convention) -> str:
    if c.form == "matrix":
        return "A00 ... A22: the matrix A"
    names = ", ".join(c.rotation)
    if c.form == "euler":
        words = f"{names}: Euler angles {c.axes}, {c.rotation_unit}"
        if any(c.offset):
            from_relion = ", ".join(
                word + (f" {'+' if o > 0 else '-'} {abs(o):g}" if o else "")
                for word, o in zip(("rot", "tilt", "psi"), c.offset, strict=True)
            )
            words += f" ({from_relion} of RELION)"
        return words
    return f"{names}: " + ("axis times angle, rad" if c.form == "rotvec" else "unit quaternion")


def _shift_words(c: Convention) -> str:
    meaning = "where the centre is seen" if c.shift_sign > 0 else "what to add to the image to centre it"
    return f"{c.shift[0]}, {c.shift[1]}, {c.shift_unit}: {meaning}"


def _ctf_words(c: Convention) -> str:
    if c.ctf is None:
        return "none"
    u, v, angle = (c.ctf[name] for name in _PARAMETERS[:3])
    contrast, contrast_factor = c.ctf["amplitude_contrast"]
    unit = {1.0: "angstrom", 1e-4: "micrometre"}[u[1]]
    meaning = "mean and U - V" if c.split_defocus else "along both axes"
    return (
        f"{u[0]}, {v[0]}: {meaning}, {unit}, underfocus positive; {angle[0]} from x to U,"
        f" {'deg' if angle[1] != 1 else 'rad'}; {contrast}: {'per cent' if contrast_factor != 1 else 'fraction'}"
    )
