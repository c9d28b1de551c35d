"""The contrast transfer function, exactly as RELION computes it.

``CTF = -sin(gamma) exp(-B s^2 / 4) scale`` for particles that are white, with
``gamma = -pi lambda df(s) s^2 + pi/2 Cs lambda^3 s^4 - phase_shift - atan(Q0 / sqrt(1 - Q0^2))``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import kernels

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

    def _terms(self) -> NDArray:
        """Seven numbers per particle for `kernels.ctf_values`: the phase as a polynomial in (sx, sy)."""
        wavelength = electron_wavelength(self.voltage_kv)
        mean = 0.5 * (self.defocus_u_angstrom + self.defocus_v_angstrom)
        half_difference = 0.5 * (self.defocus_u_angstrom - self.defocus_v_angstrom)
        w = self.amplitude_contrast
        return np.stack(
            [
                -self.phase_shift - np.arctan2(w, np.sqrt(1.0 - w**2)),
                -np.pi * wavelength * mean,
                -np.pi * wavelength * half_difference * np.cos(2 * self.defocus_angle),
                -np.pi * wavelength * half_difference * np.sin(2 * self.defocus_angle),
                0.5 * np.pi * (1e7 * self.cs_mm) * wavelength**3,
                0.25 * self.b_factor,
                self.scale,
            ],
            axis=1,
        )

    def __call__(
        self, frequency_x: ArrayLike, frequency_y: ArrayLike, *, power: int = 1, dtype: Any = np.float64
    ) -> NDArray:
        """Values at spatial frequencies in 1/angstrom, raised to ``power`` (1 or 2).

        Returns an array (n,) + the common shape of the frequencies.
        """
        if power not in (1, 2):
            raise ValueError(f"power must be 1 or 2, got {power}")
        sx, sy = np.broadcast_arrays(np.asarray(frequency_x, float), np.asarray(frequency_y, float))
        return kernels.ctf_values(self._terms(), sx, sy, power, dtype).reshape((len(self),) + sx.shape)
