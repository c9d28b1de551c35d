"""invcryo: variational reconstruction for cryo-electron microscopy.

Operators, costs and solvers that compose; files, simulation and validation around them. Names are loaded on first
use, so that importing the package is quick and touches nothing.

>>> import invcryo as ic
>>> stack = ic.read_particles("particles.star")                          # doctest: +SKIP
>>> A = ic.forward_model(stack)                                          # doctest: +SKIP
>>> data = ic.LeastSquares(A, stack.images).quadratic()                  # doctest: +SKIP
>>> cost = data + lam * (ic.L21() @ ic.Gradient(A.ishape)) + ic.NonNegative()   # doctest: +SKIP
>>> result = ic.run(ic.admm(cost), max_iter=200, stop=ic.residual_below(1e-3, "gap"))   # doctest: +SKIP
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

from ._version import __version__

logging.getLogger(__name__).addHandler(logging.NullHandler())

#: Every public name and the module it lives in.
_WHERE = {
    "backend": ["inner", "norm", "threads", "use"],
    "costs": [
        "Box",
        "Cost",
        "Denoiser",
        "GroupLasso",
        "L1",
        "L21",
        "LeastSquares",
        "NonNegative",
        "Quadratic",
        "Schatten",
        "SquaredL2",
        "Support",
    ],
    "ctf": ["CTF", "electron_wavelength"],
    "data": ["ParticleStack", "Poses"],
    "direct": ["direct_fourier", "direct_reconstruction", "fbp", "wbp"],
    "inversion": ["PENALTIES", "least_squares_map", "regularised_map"],
    "io": [
        "Map",
        "TiltSeries",
        "describe",
        "read_map",
        "read_particles",
        "read_star",
        "read_tilt_series",
        "write_map",
        "write_particles",
        "write_star",
        "write_tilt_series",
    ],
    "metrics": ["FSC", "fsc", "phase_randomised_fsc", "soft_mask", "soft_sphere"],
    "operators": [
        "Circulant",
        "Crop",
        "Diagonal",
        "Gradient",
        "Hessian",
        "Identity",
        "ImageFilter",
        "LinOp",
        "Mask",
        "Projector",
        "RealSpaceProjector",
        "SingleAxisProjector",
        "Stack",
        "Synthesis",
        "Toeplitz",
        "Wavelet",
        "ZeroPad",
    ],
    "poses": ["PoseFit", "gradient_descent", "levenberg_marquardt"],
    "reconstruction": ["Reconstruction", "forward_model", "reconstruct"],
    "refinement": ["Refinement", "refine"],
    "rotation": [
        "align_rotations",
        "euler_from_matrix",
        "geodesic_distance",
        "matrix_from_euler",
        "random_rotations",
    ],
    "selection": ["choose_lambda", "lambda_max", "noise_level"],
    "simulate": ["cell_phantom", "model_to_volume", "phantom", "simulate_particles", "write_simulation"],
    "solvers": [
        "NonFiniteError",
        "Result",
        "State",
        "admm",
        "any_of",
        "cg",
        "circulant_preconditioner",
        "max_seconds",
        "relative_change",
        "residual_below",
        "run",
    ],
    "stet": ["image_sampling", "reconstruct_series", "tilt_sampling"],
    "symmetry": ["point_group", "symmetrise", "symmetry_correlation"],
    "window": ["BandLimited", "KaiserBessel", "Window"],
}
_MODULES = (*_WHERE, "grid", "plot", "testing")
_HOME = {name: module for module, names in _WHERE.items() for name in names}

__all__ = ["__version__", "plot", "testing", *_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
