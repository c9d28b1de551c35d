"""Files: maps and stacks (MRC), tables (STAR), particle sets (RELION, cryoSPARC)."""

from .atomic import atomic_open, atomic_path
from .cryosparc import read_cs
from .cs_particles import write_cs
from .images import StackImages
from .mrc import Map, Stack, StackWriter, header_info, open_stack, read_map, write_map, write_stack
from .particles import describe, read_particles
from .star import StarBlock, read_star, write_star
from .star_particles import write_particles
from .tilt_files import apply_xf, read_mdoc, read_tilt_series, read_xf, straighten, write_tilt_series
from .tilt_series import TiltSeries

__all__ = [
    "Map",
    "Stack",
    "StackImages",
    "StackWriter",
    "StarBlock",
    "TiltSeries",
    "apply_xf",
    "atomic_open",
    "atomic_path",
    "describe",
    "header_info",
    "open_stack",
    "read_cs",
    "read_map",
    "read_mdoc",
    "read_particles",
    "read_star",
    "read_tilt_series",
    "read_xf",
    "straighten",
    "write_cs",
    "write_map",
    "write_particles",
    "write_stack",
    "write_star",
    "write_tilt_series",
]
