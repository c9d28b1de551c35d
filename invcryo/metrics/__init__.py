"""Validation: Fourier shell correlation, masks, and figures that compare maps."""

from .directional import (
    DirectionalFSC,
    OrientationEfficiency,
    Sampling,
    describe_views,
    directional_fsc,
    fibonacci_axes,
    orientation_efficiency,
    sampling_compensation,
)
from .fsc import (
    FSC,
    MaskedFSC,
    fsc,
    half_bit,
    phase_randomised_fsc,
    read_fsc_star,
    read_fsc_xml,
    write_fsc_star,
    write_fsc_xml,
)
from .image_quality import affine_grey_fit, elongation, expected_elongation, ssim
from .local import LocalResolution, local_resolution
from .maps import correlation, nrmse, psnr, radial_average
from .masks import automatic_threshold, soft_mask, soft_sphere
from .model import map_model_fsc, model_on_grid
from .poses import PoseAlignment, PoseErrors, align_poses, pose_errors
from .postprocess import (
    Guinier,
    GuinierFit,
    PostProcess,
    mask_fraction_fsc,
    postprocess,
    read_mtf,
    write_postprocess,
)

__all__ = [
    "FSC",
    "DirectionalFSC",
    "Guinier",
    "GuinierFit",
    "LocalResolution",
    "MaskedFSC",
    "OrientationEfficiency",
    "PoseAlignment",
    "PoseErrors",
    "PostProcess",
    "Sampling",
    "affine_grey_fit",
    "align_poses",
    "automatic_threshold",
    "correlation",
    "describe_views",
    "directional_fsc",
    "elongation",
    "expected_elongation",
    "fibonacci_axes",
    "fsc",
    "half_bit",
    "local_resolution",
    "map_model_fsc",
    "mask_fraction_fsc",
    "model_on_grid",
    "nrmse",
    "orientation_efficiency",
    "phase_randomised_fsc",
    "pose_errors",
    "postprocess",
    "psnr",
    "radial_average",
    "read_fsc_star",
    "read_fsc_xml",
    "read_mtf",
    "sampling_compensation",
    "soft_mask",
    "soft_sphere",
    "ssim",
    "write_fsc_star",
    "write_fsc_xml",
    "write_postprocess",
]
