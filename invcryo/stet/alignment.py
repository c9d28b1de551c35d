"""Where the tilt axis lies and how far images are shifted: estimates, offered and never applied in silence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..io.tilt_checks import fit_axis
from ..io.tilt_series import Axis, TiltSeries

__all__ = ["AxisEstimate", "estimate_axis"]


@dataclass(frozen=True, eq=False)
class AxisEstimate:
    """What `estimate_axis` found.

    Attributes
    ----------
    axis : "y" or "x"
    in_plane_angle : float
        Radians, within 45 degrees of ``axis``.
    shifts : ndarray, (n, 2)
        Residual shifts (x, y) of the images in pixels, as `TiltSeries` has them.
    error : float
        What contradicts that axis; see `fit_axis`. Near that of the stated axis: nothing was gained.
    stated_error : float
        The same for the axis that the series states.
    uncertainty : float
        Radians to either side within which the error is at most 1.05 times the least.
    directions, errors : ndarray
        The curve: directions of the axis, radians from x towards y, and their errors.
    """

    axis: Axis
    in_plane_angle: float
    shifts: NDArray
    error: float
    stated_error: float
    uncertainty: float
    directions: NDArray
    errors: NDArray

    def apply(self, series: TiltSeries, *, shifts: bool = True) -> TiltSeries:
        """The series with this axis (and these shifts) stated; its images stay as they are."""
        note = f"axis {self.axis} turned by {np.rad2deg(self.in_plane_angle):.2f} degrees, as estimated" + (
            ", and shifts" if shifts else ""
        )
        changes: dict[str, Any] = {"axis": self.axis, "in_plane_angle": self.in_plane_angle}
        if shifts:
            changes["shifts"] = self.shifts
        return series.replace(note=note, **changes)

    def describe(self) -> dict[str, Any]:
        """The facts as plain values, angles in degrees."""
        return {
            "axis": self.axis,
            "in_plane_angle_deg": float(np.rad2deg(self.in_plane_angle)),
            "uncertainty_deg": float(np.rad2deg(self.uncertainty)),
            "error": self.error,
            "stated_error": self.stated_error,
            "shift_rms_pixels": float(np.sqrt((self.shifts**2).sum(axis=1).mean())),
            "largest_shift_pixels": float(abs(self.shifts).max()),
        }


def estimate_axis(series: TiltSeries, *, step_deg: float = 5.0) -> AxisEstimate:
    """The tilt axis, and the shift of each image, that contradict the images least.

    All directions are tried in steps, the best one is refined. Shifts that the series states are ignored. The object
    should lie within the images on an empty background: matter that enters the field as it tilts is taken for an
    inconsistency, and moves the answer.

    Notes
    -----
    The sign of the tilts cannot be found this way: a series with the wrong sign is the projection of the mirror image.
    A shift that goes as a cosine and sine of the tilt is a displacement of the object, and stays.
    """
    from scipy.optimize import minimize_scalar

    if len(series) < 5:
        raise ValueError(f"{series.source}: {len(series)} tilts are too few to find their axis; 5 at least")
    if not 0 < step_deg <= 30:
        raise ValueError(f"step_deg must be in (0, 30], got {step_deg}")
    turn = np.pi / 2 if series.axis == "y" else 0.0

    def error(direction: float) -> float:
        return fit_axis(series, direction - turn).error

    directions = np.deg2rad(np.arange(0.0, 180.0, step_deg))
    errors = np.array([error(d) for d in directions])
    best = float(directions[errors.argmin()])
    width = np.deg2rad(step_deg)
    found = minimize_scalar(error, bounds=(best - width, best + width), options={"xatol": np.deg2rad(0.05)})
    direction, least = float(found.x), float(found.fun)
    fit = fit_axis(series, direction - turn)
    cos, sin = np.cos(direction), np.sin(direction)
    shifts = np.stack([fit.along * cos + fit.across * sin, fit.along * sin - fit.across * cos], axis=1)
    axis: Axis = "x" if abs(np.cos(direction)) > np.sqrt(0.5) else "y"
    angle = direction - (0.0 if axis == "x" else np.pi / 2)
    angle = (angle + np.pi / 2) % np.pi - np.pi / 2
    return AxisEstimate(
        axis,
        float(angle),
        shifts,
        least,
        error(turn + series.in_plane_angle),
        _width(error, direction, least, width),
        directions,
        errors,
    )


def _width(error: Any, direction: float, least: float, step: float) -> float:
    """Half the range of directions whose error is at most 1.05 of the least, by a parabola through three of them."""
    sides = 0.5 * (error(direction - step) + error(direction + step))
    curvature = (sides - least) / step**2
    return float(np.sqrt(0.05 * least / curvature)) if curvature > 0 else np.pi / 2
