"""Tilt series with few electrons: sampling, its analysis, alignment checks, reconstruction."""

from .alignment import AxisEstimate, estimate_axis
from .analysis import TPSF, held_out_error, hold_out, sparse_approximation, sparsity, tpsf
from .intensity import line_integrals
from .reconstruction import METHODS, SeriesMap, inpaint, measured, reconstruct_series, series_model
from .sampling import (
    Sampling,
    add_poisson_noise,
    image_sampling,
    load_sampling,
    saxton_angles,
    tilt_sampling,
)

__all__ = [
    "METHODS",
    "TPSF",
    "AxisEstimate",
    "Sampling",
    "SeriesMap",
    "add_poisson_noise",
    "estimate_axis",
    "held_out_error",
    "hold_out",
    "image_sampling",
    "inpaint",
    "line_integrals",
    "load_sampling",
    "measured",
    "reconstruct_series",
    "saxton_angles",
    "series_model",
    "sparse_approximation",
    "sparsity",
    "tilt_sampling",
    "tpsf",
]
