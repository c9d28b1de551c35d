"""Figures. Every function returns the matplotlib Axes it drew on (an array of them when it drew several).

Matplotlib is imported when a function is called, never shown, and without ``pyplot``: figures made here
belong to no global state and need no display. Pass ``ax`` to draw into a figure of your own.
"""

from .common import save
from .curves import convergence, ctf_curve, directional_fsc, fsc_curves, guinier, lcurve, resolution_histogram
from .images import ctf_image, residuals, thon_rings
from .maps import local_resolution, map_projections, masked_slices, projections, slices
from .poses import angular_errors, orientations, resolution_by_round, robustness, shift_errors
from .posterior import calibration, fourier_slices, pose_errors_surface
from .tilt import dose_curves, profiles, section_grid, tilt_masks, tpsf, wedge_spectrum

__all__ = [
    "angular_errors",
    "calibration",
    "convergence",
    "ctf_curve",
    "ctf_image",
    "directional_fsc",
    "dose_curves",
    "fourier_slices",
    "fsc_curves",
    "guinier",
    "lcurve",
    "local_resolution",
    "map_projections",
    "masked_slices",
    "orientations",
    "pose_errors_surface",
    "profiles",
    "projections",
    "residuals",
    "resolution_by_round",
    "resolution_histogram",
    "robustness",
    "save",
    "section_grid",
    "shift_errors",
    "slices",
    "thon_rings",
    "tilt_masks",
    "tpsf",
    "wedge_spectrum",
]
