"""Orientations and shifts of particles against a map: how well they fit, and better ones."""

from .fit import Derivatives, PoseFit, moved
from .optimise import STATUS, PoseResult, gradient_descent, levenberg_marquardt
from .rotation_grid import RotationGrid, rotation_grid
from .search import Candidates, global_search
from .theorem import footprint_cost, footprint_gradient

__all__ = [
    "STATUS",
    "Candidates",
    "Derivatives",
    "PoseFit",
    "PoseResult",
    "RotationGrid",
    "footprint_cost",
    "footprint_gradient",
    "global_search",
    "gradient_descent",
    "levenberg_marquardt",
    "moved",
    "rotation_grid",
]
