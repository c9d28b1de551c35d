"""Linear operators: one file each, all with the interface of `LinOp`."""

from .base import Adjoint, Compose, LinOp, Scaled, Stack, Sum
from .basic import Crop, Diagonal, Identity, Mask, ZeroPad
from .fourier import Circulant, ImageFilter, Toeplitz
from .gradient import Gradient, Laplacian
from .hessian import Bilaplacian, Hessian
from .projector import Projector, RealSpaceProjector
from .refinement import Refinement
from .single_axis import SingleAxisProjector
from .synthesis import Synthesis
from .wavelet import Wavelet

__all__ = [
    "Adjoint",
    "Bilaplacian",
    "Circulant",
    "Compose",
    "Crop",
    "Diagonal",
    "Gradient",
    "Hessian",
    "Identity",
    "ImageFilter",
    "Laplacian",
    "LinOp",
    "Mask",
    "Projector",
    "RealSpaceProjector",
    "Refinement",
    "Scaled",
    "SingleAxisProjector",
    "Stack",
    "Sum",
    "Synthesis",
    "Toeplitz",
    "Wavelet",
    "ZeroPad",
]
