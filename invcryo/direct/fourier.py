"""Direct Fourier reconstruction: one division by the sampling density and the power of the CTF."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..costs import Quadratic
from ..grid import shell_index
from ..inversion import FLOOR, mean_eigenvalue
from ..operators import Circulant

__all__ = ["direct_fourier", "wiener_weight"]


def direct_fourier(data: Quadratic, weight: ArrayLike | None = None) -> NDArray:
    """Coefficients by one division in Fourier space: ``sum CTF y / (sum CTF^2 + weight)``.

    Parameters
    ----------
    data : Quadratic
        From ``LeastSquares(...).quadratic()``: the numerator is its ``H^H y``, the denominator comes from its kernel.
    weight : float or array_like, optional
        What is added to the denominator, in the unit of the eigenvalues of H^H H: one number, or one per Fourier
        shell, such as `wiener_weight`, which holds on beyond the last. Default: 0.03 of the mean eigenvalue, as in
        `least_squares_map`, for frequencies that were hardly measured.

    Returns
    -------
    ndarray, (nz, ny, nx)

    Notes
    -----
    The denominator is the spectrum of the periodic convolution nearest to H^H H (T. Chan's optimal circulant), which
    weighs every Fourier voxel by all views that pass near it, with the transform of the box as the gridding kernel.
    As numerator and kernel are exact non-uniform transforms there is no gridding kernel in real space to divide by but
    the window of the coefficients, which `Window.synthesize` puts in. The gridding weights of Pipe and Menon (1999)
    are iterated to the point where density times weights is 1 on average over the box; for this denominator that
    holds from the start. What one division leaves of ``H^H H x = H^H y`` is the start of `least_squares_map`.

    One division blurs what the density does from one Fourier voxel to the next: amplitudes are some ten per cent low,
    and without noise the FSC to the truth is 0.97 to 0.99 where RELION's gridding reaches 0.999 and least squares 1.
    """
    density = np.asarray(data.Q.nearest_circulant())
    if weight is None:
        weight = FLOOR * mean_eigenvalue(data)
    added = np.asarray(weight, float)
    if not (np.isfinite(added).all() and (added >= 0).all() and added.ndim <= 1):
        raise ValueError("the weight is one number or one per shell, finite and not negative")
    if added.ndim:
        added = added[np.minimum(shell_index(data.Q.ishape), len(added) - 1)]
    # where nothing was measured nothing is divided by
    denominator = np.maximum(density, 0) + added
    denominator = np.maximum(denominator, 1e-6 * float(denominator.max()))
    return Circulant(1.0 / denominator, data.Q.ishape, data.Q.dtype).apply(data.b)


def wiener_weight(data: Quadratic, correlation: ArrayLike) -> NDArray:
    """Noise over signal power per shell, for the denominator of `direct_fourier`, from the FSC of two half maps.

    The signal-to-noise ratio of each half map is FSC / (1 - FSC), and its noise the inverse of the mean density
    (Scheres 2012, J. Struct. Biol. 180, 519). The weight belongs to the images, not to their number: made from the
    density of one half set it also serves the whole set.

    Parameters
    ----------
    data : Quadratic
        Of one half set.
    correlation : array_like (shells,)
        FSC of the half maps, held between 0.001 and 0.999. What comes after its first value below 0.001 is noise.
    """
    c = np.asarray(correlation, float)
    if c.ndim != 1 or not np.isfinite(c).all():
        raise ValueError("an FSC is a finite vector, one value per shell")
    c = np.clip(np.where(np.logical_or.accumulate(c < 1e-3), 0.0, c), 1e-3, 0.999)
    density = np.maximum(np.asarray(data.Q.nearest_circulant(), np.float64), 0)
    shells = np.minimum(shell_index(data.Q.ishape), len(c) - 1).ravel()
    density = np.broadcast_to(density, (*data.Q.ishape[:-1], data.Q.ishape[-1] // 2 + 1)).ravel()
    mean = np.bincount(shells, density, len(c)) / np.maximum(np.bincount(shells, minlength=len(c)), 1)
    return mean * (1 - c) / c
