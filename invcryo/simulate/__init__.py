"""Simulated data: phantoms, atomic models, orientations, particle stacks."""

from .cell import cell_phantom
from .models import model_to_volume
from .orientations import cone_orientations, preferred_orientations, uniform_orientations
from .phantoms import PHANTOMS, gaussian_beads, phantom
from .stack import SimulatedImages, random_ctf, simulate_particles, write_simulation

__all__ = [
    "PHANTOMS",
    "SimulatedImages",
    "cell_phantom",
    "cone_orientations",
    "gaussian_beads",
    "model_to_volume",
    "phantom",
    "preferred_orientations",
    "random_ctf",
    "simulate_particles",
    "uniform_orientations",
    "write_simulation",
]
