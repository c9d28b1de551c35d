"""Orientations and shifts of particles against a map: how well they fit, and better ones."""

from .fit import Derivatives, PoseFit, moved
from .theorem import footprint_cost, footprint_gradient

__all__ = ["Derivatives", "PoseFit", "footprint_cost", "footprint_gradient", "moved"]
