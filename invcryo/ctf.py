"""The contrast transfer function, exactly as RELION computes it (src/ctf.h): ``CTF = -sin(gamma) exp(-B s^2/4) scale``
for particles that are white. Parameters are per particle, units are in the names."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["CTF", "electron_wavelength"]

#: What the plausible range of each parameter is, and what a value outside it usually means.
_PLAUSIBLE = {
    "defocus_u_angstrom": (-2e5, 1e6, "angstrom, positive for underfocus; micrometres need a factor 1e4"),
    "defocus_v_angstrom": (-2e5, 1e6, "angstrom, positive for underfocus; micrometres need a factor 1e4"),
    "voltage_kv": (20.0, 3000.0, "kilovolts; volts need a factor 1e-3"),
    "cs_mm": (-10.0, 100.0, "millimetres"),
    "amplitude_contrast": (-1.0, 1.0, "a fraction; per cent need a factor 0.01"),
}


def electron_wavelength(voltage_kv: ArrayLike) -> NDArray:
    """Relativistic wavelength in angstrom at ``voltage_kv`` kilovolts, with RELION's constants."""
    volts = 1e3 * np.asarray(voltage_kv, dtype=float)
    return 12.2643247 / np.sqrt(volts * (1.0 + 0.978466e-6 * volts))


@dataclass(frozen=True, eq=False)
class CTF:
    """CTF parameters of n particles; scalars are broadcast.

    Attributes
    ----------
    defocus_u_angstrom, defocus_v_angstrom : (n,)
        Defocus along the two principal axes, positive for underfocus.
    defocus_angle : (n,)
        Angle from the X axis to the axis of ``defocus_u_angstrom``, radians.
    voltage_kv, cs_mm, amplitude_contrast : (n,)
        Acceleration voltage, spherical aberration, fraction of amplitude contrast.
    phase_shift : (n,)
        Of a phase plate, radians.
    b_factor : (n,)
        Angstrom squared: envelope ``exp(-B s^2 / 4)``.
    scale : (n,)
        Factor of the whole CTF.
    """

    defocus_u_angstrom: NDArray
    defocus_v_angstrom: NDArray
    defocus_angle: NDArray
    voltage_kv: NDArray
    cs_mm: NDArray
    amplitude_contrast: NDArray
    phase_shift: NDArray = 0.0  # type: ignore[assignment]
    b_factor: NDArray = 0.0  # type: ignore[assignment]
    scale: NDArray = 1.0  # type: ignore[assignment]

    def __post_init__(self) -> None:
        names = [f.name for f in dataclasses.fields(self)]
        values = np.broadcast_arrays(
            *(np.atleast_1d(np.asarray(getattr(self, k), dtype=float)) for k in names)
        )
        if values[0].ndim != 1:
            raise ValueError(f"CTF parameters must be scalars or of shape (n,), got {values[0].shape}")
        for name, value in zip(names, values, strict=True):
            if not np.isfinite(value).all():
                raise ValueError(f"CTF parameter {name} holds NaN or infinite values")
            if name in _PLAUSIBLE and value.size:
                low, high, unit = _PLAUSIBLE[name]
                bad = (value < low) | (value > high)
                if bad.any():
                    raise ValueError(f"{name} = {value[bad][0]:g} is out of range: expected {unit}")
            value = np.array(value)
            value.setflags(write=False)
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.defocus_u_angstrom)

    def __getitem__(self, index: Any) -> CTF:
        return CTF(*(getattr(self, f.name)[index] for f in dataclasses.fields(self)))

    def __call__(self, frequency_x: ArrayLike, frequency_y: ArrayLike) -> NDArray:
        """Values at spatial frequencies in 1/angstrom: (n,) + the common shape of the frequencies, float64."""
        sx, sy = np.broadcast_arrays(np.asarray(frequency_x, float), np.asarray(frequency_y, float))
        column = (slice(None),) + (None,) * sx.ndim
        wavelength = electron_wavelength(self.voltage_kv)[column]
        s2 = (sx**2 + sy**2)[None]
        mean = 0.5 * (self.defocus_u_angstrom + self.defocus_v_angstrom)[column]
        half_difference = 0.5 * (self.defocus_u_angstrom - self.defocus_v_angstrom)[column]
        angle = self.defocus_angle[column]
        # s^2 cos 2(phi - angle), free of the arc tangent (and of its branch at s = 0)
        s2_cos = (sx**2 - sy**2)[None] * np.cos(2 * angle) + (2 * sx * sy)[None] * np.sin(2 * angle)
        w = self.amplitude_contrast[column]
        gamma = (
            -np.pi * wavelength * (mean * s2 + half_difference * s2_cos)
            + 0.5 * np.pi * (1e7 * self.cs_mm[column]) * wavelength**3 * s2**2
            - self.phase_shift[column]
            - np.arctan2(w, np.sqrt(1.0 - w**2))
        )
        return -np.sin(gamma) * np.exp(-0.25 * self.b_factor[column] * s2) * self.scale[column]
