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
from .maps import correlation, nrmse, psnr, radial_average
from .masks import soft_mask, soft_sphere

__all__ = [
    "FSC",
    "MaskedFSC",
    "correlation",
    "fsc",
    "half_bit",
    "nrmse",
    "phase_randomised_fsc",
    "psnr",
    "radial_average",
    "read_fsc_star",
    "read_fsc_xml",
    "soft_mask",
    "soft_sphere",
    "write_fsc_star",
    "write_fsc_xml",
]
