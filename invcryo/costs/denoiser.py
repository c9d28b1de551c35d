"""A denoiser in the place of a regulariser: plug and play."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import array_module
from .base import Cost

__all__ = ["Denoiser"]


class Denoiser(Cost):
    """Your denoiser as the prox of a cost that nobody knows.

    Parameters
    ----------
    function : callable
        ``function(z, sigma) -> ndarray``: the array ``z`` without its noise of standard deviation ``sigma``. It gets
        a copy of its own, and must return a finite array of the same shape.

    Notes
    -----
    The prox of a regulariser at ``z`` with step ``tau`` is the most likely image behind ``z`` in noise of variance
    ``tau``: ``sigma = sqrt(tau)`` (Venkatakrishnan 2013). ADMM calls it with ``tau = lam / rho``. There is no value,
    so ``has_value`` is False and solvers leave the term out of their objective; whether the iteration converges
    depends on the denoiser (bounded or non-expansive ones: Chan 2017).

    Examples
    --------
    >>> import scipy.ndimage
    >>> from invcryo.costs import Denoiser, LeastSquares
    >>> from invcryo.solvers import admm, run
    >>> cost = LeastSquares(A, y) + Denoiser(lambda z, sigma: scipy.ndimage.gaussian_filter(z, sigma)) # doctest: +SKIP
    >>> volume = run(admm(cost, rho=4.0), max_iter=50).x  # doctest: +SKIP
    """

    def __init__(self, function: Callable[[NDArray, float], NDArray]) -> None:
        if not callable(function):
            raise TypeError(f"a denoiser is a function of (z, sigma), got {type(function).__name__}")
        self.function = function

    @property
    def has_value(self) -> bool:
        return False

    def _prox(self, z: NDArray, tau: float, out: NDArray) -> None:
        sigma = math.sqrt(tau)
        result: Any = self.function(z.copy(), sigma)
        name = getattr(self.function, "__name__", type(self.function).__name__)
        if getattr(result, "shape", None) != z.shape:
            got = f"shape {tuple(result.shape)}" if hasattr(result, "shape") else f"a {type(result).__name__}"
            raise ValueError(
                f"the denoiser {name} got an array of shape {tuple(z.shape)} and returned {got}: it must return an"
                " array of the same shape"
            )
        if np.iscomplexobj(result):
            raise TypeError(f"the denoiser {name} returned {result.dtype}: it must return real numbers")
        isfinite = array_module(z).isfinite
        if not bool(isfinite(result).all()):
            cause = "" if bool(isfinite(z).all()) else ": its argument was not finite, the iteration diverges"
            raise ValueError(f"the denoiser {name} returned NaN or infinity at sigma = {sigma:.4g}{cause}")
        out[...] = result
