"""The gradient of the misfit in the poses as published: in real space, from footprints (Donati 2020, Theorem 3).

It takes ``O(N^3 a^2)`` and a convolution of the volume per view, where `PoseFit` takes ``O(m)``: this is the reference
that it is tested against.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from ..grid import centred_coordinates
from ..window import KaiserBessel

__all__ = ["footprint_cost", "footprint_gradient"]


def footprint_cost(
    coefficients: NDArray,
    image: NDArray,
    matrix: NDArray,
    shift: NDArray,
    *,
    window: KaiserBessel | None = None,
    scale: float = 1.0,
) -> float:
    """``J = c'(w * c) / 2 - c' H'b + |b|^2 / 2``, the misfit of a view with its normal kernel ``w`` of Theorem 1."""
    window = KaiserBessel() if window is None else window
    c = np.asarray(coefficients, float)
    lags = _points(tuple(2 * n - 1 for n in c.shape)) @ matrix[:2].T
    kernel = scale**4 * _in_tube(window.autocorrelation, lags, window).reshape([2 * n - 1 for n in c.shape])
    back, _ = _backprojected(image, scale * _points(c.shape) @ matrix[:2].T + shift, window, scale)
    quadratic = float((c * fftconvolve(c, kernel, "same")).sum())
    return 0.5 * quadratic - float(c.ravel() @ back) + 0.5 * float((np.asarray(image, float) ** 2).sum())


def footprint_gradient(
    coefficients: NDArray,
    image: NDArray,
    matrix: NDArray,
    shift: NDArray,
    *,
    window: KaiserBessel | None = None,
    scale: float = 1.0,
    turns: NDArray | None = None,
) -> NDArray:
    """``dJ/dv = c'(r_v * c - 2 q_v) / 2`` of `footprint_cost`, for each unknown v of one view.

    Parameters
    ----------
    coefficients : ndarray, (nz, ny, nx)
    image : ndarray, (height, width)
        ``b``, without CTF.
    matrix : ndarray, (3, 3)
    shift : ndarray, (2,)
        Pixels.
    window : KaiserBessel, optional
    scale : float
        Pixels per coefficient.
    turns : ndarray, (i, 2, 3), optional
        ``dM/dtheta_i`` of the unknowns of the rotation; default: a small turn on the left about x, y, z of the image,
        as in `PoseFit`. Of Euler angles, the derivatives of the matrix in each.

    Returns
    -------
    ndarray, (i + 2,), float64
        The rotation's, then those of the shift along x and y.
    """
    window = KaiserBessel() if window is None else window
    if turns is None:
        turns = np.cross(np.eye(3)[:, :, None], matrix[None], axis=1)[:, :2]
    c = np.asarray(coefficients, float)
    whole = tuple(2 * n - 1 for n in c.shape)
    lags, places = _points(whole), _points(c.shape)
    seen = lags @ matrix[:2].T
    slope = scale**4 * _in_tube(window.autocorrelation_slope, seen, window)
    _, gradient = _backprojected(image, scale * places @ matrix[:2].T + shift, window, scale)
    out = []
    for turn in turns:
        r = (slope * ((lags @ turn.T) * seen).sum(axis=1)).reshape(whole)
        q = (scale * (places @ turn.T) * gradient).sum(axis=1)
        out.append(0.5 * float((c * fftconvolve(c, r, "same")).sum()) - float(c.ravel() @ q))
    # r_v = 0 for shifts
    return np.array([*out, *(-c.ravel() @ gradient)])


def _in_tube(function: Callable[[NDArray], NDArray], at: NDArray, window: KaiserBessel) -> NDArray:
    """A function of the distance that vanishes beyond twice the radius of the window."""
    distance = np.hypot(*at.T)
    near = distance < 2 * window.radius
    out = np.zeros(len(at))
    out[near] = function(distance[near])
    return out


def _points(shape: tuple[int, ...]) -> NDArray:
    """Grid points (x, y, z) from the centre, (n, 3)."""
    z, y, x = np.broadcast_arrays(*centred_coordinates(shape))
    return np.stack([x.ravel(), y.ravel(), z.ravel()], axis=1)


def _backprojected(
    image: NDArray, at: NDArray, window: KaiserBessel, scale: float
) -> tuple[NDArray, NDArray]:
    """``(b * psi^v)(y)`` at points y (n, 2) of the image, and its gradient (n, 2)."""
    height, width = image.shape
    reach = int(np.ceil(scale * window.radius))
    pad = 2 * reach + 2
    padded = np.pad(np.asarray(image, float), pad)
    corner = np.floor(at).astype(int)
    inside = (np.abs(at) < np.array([width, height]) / 2 + reach + 1).all(axis=1)
    corner = np.where(inside[:, None], corner, 0)
    value, gradient = np.zeros(len(at)), np.zeros((len(at), 2))
    for dy in range(-reach, reach + 2):
        for dx in range(-reach, reach + 2):
            j = corner + (dx, dy)
            b = padded[j[:, 1] + height // 2 + pad, j[:, 0] + width // 2 + pad]
            b = np.where(inside, b, 0.0)
            # psi_s(j - y) = s psi((j - y) / s)
            y = (j - at) / scale
            distance = np.hypot(*y.T)
            value += scale * b * window.projection(distance)
            gradient -= (b * window.slope(distance))[:, None] * y
    return value, gradient
