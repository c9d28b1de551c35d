"""Direct methods, without iterations: the classical maps to set beside the regularised ones."""

from .backprojection import fbp, ramp_filter, wbp
from .fourier import direct_fourier, wiener_weight
from .particles import direct_reconstruction

__all__ = ["direct_fourier", "direct_reconstruction", "fbp", "ramp_filter", "wbp", "wiener_weight"]
