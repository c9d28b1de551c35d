"""A single-axis tilt series and what is known of it; everything is stated, and checked when it is made."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..data import Poses

__all__ = ["TiltSeries", "radians_from_file"]

logger = logging.getLogger(__name__)

Axis = Literal["x", "y"]
Contrast = Literal["bright", "dark"]


@dataclass(frozen=True, eq=False)
class TiltSeries:
    """Images of one object, tilted about one axis.

    Attributes
    ----------
    images : ndarray, (n, height, width), float32 or float64
        NaN marks a pixel that was not measured; it becomes 0 here, and False in ``mask``.
    angles : ndarray, (n,), float64
        Tilts in radians (degrees in files).
    pixel_size : float or None
        Angstrom per pixel.
    axis : "y" or "x"
        The tilt axis in the object, which is an axis of its grid: IMOD takes y, HyperSpy and ETSpy x.
    in_plane_angle : float
        Radians by which that axis is turned in the images, from x towards y (counter-clockwise with y up).
    contrast : "bright" or "dark"
        How matter looks: bright in a dark field (HAADF), dark in a bright field and in cryo-EM.
    thickness : float or None
        Of the object along the beam at tilt 0, in pixels.
    mask : ndarray of bool or None, (n, height, width)
        Which pixels were measured; None for all.
    shifts : ndarray, (n, 2), float64
        Where the centre of the object is seen, (x, y), in pixels from the centre ``n // 2`` of the image.
    flipped : bool
        Whether the sign of the tilts was turned when the file was read; for the record.
    source : str
        Name of the file, for messages.
    notes : tuple of str
        What was found or done on the way here.

    Notes
    -----
    With axis y, a point (x, y, z) at tilt t is seen at ``(x cos t - z sin t, y)``; with axis x at
    ``(x, y cos t - z sin t)``; that is then turned by ``in_plane_angle`` and moved by ``shifts``.
    """

    images: NDArray
    angles: NDArray
    pixel_size: float | None = None
    axis: Axis = "y"
    in_plane_angle: float = 0.0
    contrast: Contrast = "bright"
    thickness: float | None = None
    mask: NDArray | None = None
    shifts: NDArray = None  # type: ignore[assignment]
    flipped: bool = False
    source: str = "the tilt series"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        images, angles = _stacked(self.images, self.source), np.array(self.angles, dtype=np.float64)
        n = len(images)
        if angles.ndim != 1 or len(angles) != n:
            raise ValueError(
                f"{self.source}: {n} images but {angles.size} angles; the file of angles belongs to another series,"
                " or images were left out of one of the two"
            )
        if not np.isfinite(angles).all():
            raise ValueError(f"{self.source}: the angles hold NaN or infinite values")
        if abs(angles).max() > 2 * np.pi * 1.001:
            raise ValueError(
                f"{self.source}: tilts reach {abs(angles).max():g} rad, more than a turn; they look like degrees:"
                " give np.deg2rad(angles), or degrees=True to the reader"
            )
        angles = np.where(abs(angles) > np.pi, angles - np.copysign(2 * np.pi, angles), angles)
        for name, value in (("pixel_size", self.pixel_size), ("thickness", self.thickness)):
            if value is not None and not (np.isfinite(value) and value > 0):
                raise ValueError(f"{self.source}: {name} must be positive, got {value}")
        if self.axis not in ("x", "y"):
            raise ValueError(f"{self.source}: the tilt axis is 'x' or 'y', got {self.axis!r}")
        if self.contrast not in ("bright", "dark"):
            raise ValueError(f"{self.source}: contrast is 'bright' or 'dark', got {self.contrast!r}")
        if not (np.isfinite(self.in_plane_angle) and abs(self.in_plane_angle) <= 2 * np.pi):
            raise ValueError(f"{self.source}: in_plane_angle is in radians, got {self.in_plane_angle}")
        shifts = np.zeros((n, 2)) if self.shifts is None else np.array(self.shifts, dtype=np.float64)
        if shifts.shape != (n, 2) or not np.isfinite(shifts).all():
            raise ValueError(
                f"{self.source}: {n} images need finite shifts of shape ({n}, 2), got {shifts.shape}"
            )
        mask, notes = self._measured(images)
        if mask is not None:
            images[~mask] = 0
        for array in (images, angles, shifts):
            array.setflags(write=False)
        for name, array in (("images", images), ("angles", angles), ("shifts", shifts)):
            object.__setattr__(self, name, array)
        object.__setattr__(self, "mask", mask)
        object.__setattr__(self, "notes", (*self.notes, *notes))
        object.__setattr__(self, "source", str(self.source))

    def _measured(self, images: NDArray) -> tuple[NDArray | None, list[str]]:
        """The mask, with the pixels that are NaN left out, and what to note."""
        if np.isinf(images).any():
            raise ValueError(f"{self.source}: the images hold infinite values")
        missing = np.isnan(images)
        if self.mask is None:
            if not missing.any():
                return None, []
            mask = ~missing
            note = f"NaN taken as not measured: {100 * missing.mean():.3g} % of the pixels"
            logger.warning("%s: %s", self.source, note)
        else:
            mask = np.array(self.mask)
            if mask.dtype != bool:
                raise TypeError(f"{self.source}: a mask is boolean, True where measured, got {mask.dtype}")
            if mask.shape != images.shape:
                raise ValueError(
                    f"{self.source}: the mask has shape {mask.shape}, the images have {images.shape}"
                )
            if (missing & mask).any():
                raise ValueError(
                    f"{self.source}: {int((missing & mask).sum())} pixels are NaN that the mask calls measured;"
                    " leave the mask out to take NaN as not measured, or correct it"
                )
            note = None
        empty = np.flatnonzero(~mask.any(axis=(1, 2)))
        if empty.size:
            raise ValueError(
                f"{self.source}: no pixel is measured in image {', '.join(map(str, empty[:5]))}"
                f"{', ...' if empty.size > 5 else ''} (counted from 0); leave these tilts out"
            )
        mask.setflags(write=False)
        return mask, [note] if note else []

    # -- what it is ---------------------------------------------------------------------------------------

    @property
    def angles_deg(self) -> NDArray:
        """Tilts in degrees, (n,)."""
        return np.rad2deg(self.angles)

    @property
    def measured(self) -> NDArray:
        """``mask``, or an array of True."""
        return np.ones(self.images.shape, bool) if self.mask is None else self.mask

    @property
    def fraction(self) -> float:
        """Part of the pixels of the images that were measured."""
        return 1.0 if self.mask is None else float(self.mask.mean())

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> TiltSeries:
        """The tilts that ``index`` (slice, positions, or boolean) keeps."""
        rows = np.arange(len(self))[index]
        if rows.ndim == 0:
            rows = rows[None]
        return dataclasses.replace(
            self,
            images=self.images[rows],
            angles=self.angles[rows],
            mask=None if self.mask is None else self.mask[rows],
            shifts=self.shifts[rows],
        )

    def replace(self, **changes: Any) -> TiltSeries:
        """A copy with other values, checked anew; ``note=`` adds a line to ``notes``."""
        note = changes.pop("note", None)
        notes = (*self.notes, note) if note else self.notes
        return dataclasses.replace(self, **{"notes": notes, **changes})

    def poses(self) -> Poses:
        """The geometry as rotation matrices, for `Projector`."""
        from ..operators.single_axis import tilt_poses

        return tilt_poses(self.angles, axis=self.axis, in_plane_angle=self.in_plane_angle, shifts=self.shifts)

    def describe(self) -> dict[str, Any]:
        """The facts as plain values: lengths in angstrom (pixels where said), angles in degrees."""
        degrees = self.angles_deg
        steps = np.diff(np.sort(degrees))
        return {
            "source": self.source,
            "kind": "tilt series",
            "tilts": len(self),
            "image_shape": list(self.images.shape[1:]),
            "pixel_size": self.pixel_size,
            "tilt_range_deg": [float(degrees.min()), float(degrees.max())],
            "tilt_step_deg": [float(steps.min()), float(steps.max())] if len(steps) else None,
            "axis": self.axis,
            "in_plane_angle_deg": float(np.rad2deg(self.in_plane_angle)),
            "sign_turned": self.flipped,
            "contrast": self.contrast,
            "thickness_pixels": self.thickness,
            "measured_fraction": self.fraction,
            "largest_shift_pixels": float(abs(self.shifts).max()),
            "notes": list(self.notes),
        }


def radians_from_file(angles: ArrayLike, degrees: bool, source: str) -> NDArray:
    """Tilts as a file gives them, in radians; an error where they look like the other unit."""
    values = np.atleast_1d(np.array(angles, dtype=np.float64))
    largest = float(abs(values).max(initial=0.0))
    if degrees and len(values) >= 10 and 0 < largest <= 2 * np.pi:
        raise ValueError(
            f"{source}: all {len(values)} tilts lie within {largest:.4g}; degrees are expected, these look like"
            " radians: pass degrees=False"
        )
    return np.deg2rad(values) if degrees else values


def _stacked(images: Any, source: str) -> NDArray:
    """A copy as one floating-point array."""
    if isinstance(images, Sequence):
        shapes = {np.shape(image) for image in images}
        if len(shapes) > 1:
            raise ValueError(
                f"{source}: the images differ in size: {', '.join(map(str, sorted(shapes)))}; crop or pad them to"
                " one size"
            )
    array = np.asarray(images)
    if array.ndim != 3 or array.size == 0:
        raise ValueError(f"{source}: a tilt series has images of shape (n, height, width), got {array.shape}")
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{source}: the images must be real numbers, got {array.dtype}")
    return np.array(array, dtype=np.float64 if array.dtype == np.float64 else np.float32)
