"""Orientations and shifts of particles against a map: how well they fit, and better ones."""

from .fit import Derivatives, PoseFit, moved
from .optimise import STATUS, PoseResult, gradient_descent, levenberg_marquardt
from .theorem import footprint_cost, footprint_gradient

__all__ = [
    "STATUS",
    "Derivatives",
    "PoseFit",
    "PoseResult",
    "footprint_cost",
    "footprint_gradient",
    "gradient_descent",
    "levenberg_marquardt",
    "moved",
]
