"""Linear operators: one file each, all with the interface of `LinOp`."""

from .base import Adjoint, Compose, LinOp, Scaled, Stack, Sum
from .basic import Crop, Diagonal, Identity, Mask, ZeroPad
from .fourier import Circulant, ImageFilter, Toeplitz
from .gradient import Gradient, Laplacian
from .projector import Projector, RealSpaceProjector
from .synthesis import Synthesis

__all__ = [
    "Adjoint",
    "Circulant",
    "Compose",
    "Crop",
    "Diagonal",
    "Gradient",
    "Identity",
    "ImageFilter",
    "Laplacian",
    "LinOp",
    "Mask",
    "Projector",
    "RealSpaceProjector",
    "Scaled",
    "Stack",
    "Sum",
    "Synthesis",
    "Toeplitz",
    "ZeroPad",
]
