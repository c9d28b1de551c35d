"""Costs: one file per family, all with the interface of `Cost`."""

from .base import Composed, Cost, Quadratic, ScaledCost, SumOfCosts, Term
from .denoiser import Denoiser
from .fidelity import LeastSquares
from .indicators import Box, NonNegative, Support
from .norms import L1, L21, GroupLasso, Schatten, SquaredL2

__all__ = [
    "L1",
    "L21",
    "Box",
    "Composed",
    "Cost",
    "Denoiser",
    "GroupLasso",
    "LeastSquares",
    "NonNegative",
    "Quadratic",
    "ScaledCost",
    "Schatten",
    "SquaredL2",
    "SumOfCosts",
    "Support",
    "Term",
]
