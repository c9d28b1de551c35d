"""Learned methods: models fitted to particles by stochastic gradients, on the tape of `invcryo.autograd`.

Nothing in the core imports it.
"""

from .voxel_posterior import VoxelPosterior

__all__ = ["VoxelPosterior"]
