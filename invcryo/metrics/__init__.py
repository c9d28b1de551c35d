"""Validation: Fourier shell correlation, masks, and figures that compare maps."""

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
from .local import LocalResolution, local_resolution
from .maps import correlation, nrmse, psnr, radial_average
from .masks import automatic_threshold, soft_mask, soft_sphere
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
    "Guinier",
    "GuinierFit",
    "LocalResolution",
    "MaskedFSC",
    "PostProcess",
    "automatic_threshold",
    "correlation",
    "fsc",
    "half_bit",
    "local_resolution",
    "mask_fraction_fsc",
    "nrmse",
    "phase_randomised_fsc",
    "postprocess",
    "psnr",
    "radial_average",
    "read_fsc_star",
    "read_fsc_xml",
    "read_mtf",
    "soft_mask",
    "soft_sphere",
    "write_fsc_star",
    "write_fsc_xml",
    "write_postprocess",
]
