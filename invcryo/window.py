"""Basis functions of the volume: the Kaiser-Bessel window function, and the band-limited voxel.

A volume is ``f(x) = sum_k c[k] phi(x / s - k)`` with coefficients ``c`` on a grid (z, y, x) centred at
``n // 2``, positions ``x`` in pixels and the scale ``s`` in pixels per coefficient. The window ``phi`` is
isotropic, so its projection is the same from every direction (Donati 2020, sections 1 and 2).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from .backend import fft, real_dtype

__all__ = ["BandLimited", "KaiserBessel", "Window"]

_TABLE = 16384  # steps of the lookup tables in squared radius: linear interpolation is exact to about 1e-7


class Window:
    """What the rest of the toolbox asks of a basis function; angular frequencies in rad per coefficient."""

    #: Radius of the support in coefficients; infinite for `BandLimited`.
    radius: float
    #: No content above this angular frequency; infinite for a window of finite support.
    band: float

    def fourier(self, frequency: ArrayLike) -> NDArray:
        """Fourier transform at radial angular frequency, which is also that of the projection."""
        raise NotImplementedError

    def _transfer(self, shape: tuple[int, ...], scale: float) -> NDArray:
        """``s^3 phi^(s |w|)`` on the half spectrum of voxels, zero on the lines that have no partner."""
        axes = [2 * np.pi * np.fft.fftfreq(n) for n in shape[:-1]] + [2 * np.pi * np.fft.rfftfreq(shape[-1])]
        squared = sum(a**2 for a in np.meshgrid(*axes, indexing="ij", sparse=True))
        # One Bessel evaluation per distinct radius, of which a cubic grid has few
        radii, place = np.unique(np.round(scale * np.sqrt(squared), 12), return_inverse=True)
        out = scale**3 * self.fourier(radii)[place].reshape(squared.shape)
        for axis, n in enumerate(shape):
            if n % 2 == 0:
                out[(slice(None),) * axis + (n // 2,)] = 0.0
        return out

    def synthesize(
        self, coefficients: NDArray, shape: int | tuple[int, int, int] | None = None, *, scale: float = 1.0
    ) -> NDArray:
        """Voxel map of coefficients: ``f`` band-limited to the voxel grid and sampled there.

        Parameters
        ----------
        coefficients : ndarray, (nz, ny, nx), float32 or float64
        shape : int or tuple, optional
            Shape of the map in voxels (= pixels of the images); default: ``round(scale * n)`` per axis.
        scale : float
            Voxels per coefficient, at least 1.

        Notes
        -----
        The Fourier transform of ``f`` is ``s^3 phi^(s w) sum_k c[k] exp(-i s w.k)``. Values above the Nyquist
        frequency of the voxels are dropped, not folded, so that the map agrees with the projections at every
        frequency that they hold. `sample` gives plain point values.
        """
        full = voxel_shape(coefficients.shape, shape, scale)
        dtype = real_dtype(coefficients.dtype)
        lib = fft(coefficients)
        if scale == 1.0 and full == coefficients.shape:
            spectrum = lib.rfftn(coefficients)
        else:
            spectrum = scaled_spectrum(coefficients, full, scale)
        spectrum *= self._transfer(full, scale).astype(dtype)
        return lib.irfftn(spectrum, s=full)

    def analyze(self, volume: NDArray, *, floor: float = 1e-3) -> NDArray:
        """Coefficients at scale 1 whose synthesis is ``volume``: division by ``phi^`` in Fourier space.

        Frequencies where ``phi^`` is below ``floor`` of its value at zero (the corners of the Fourier cube)
        cannot be represented well and are left out.
        """
        transfer = self._transfer(volume.shape, 1.0)
        safe = np.where(transfer > floor * transfer.flat[0], transfer, np.inf)
        lib = fft(volume)
        return lib.irfftn(lib.rfftn(volume) * (1.0 / safe).astype(real_dtype(volume.dtype)), s=volume.shape)


class KaiserBessel(Window):
    """The Kaiser-Bessel window function (KBWF).

    ``phi(r) = beta^m I_m(alpha beta) / I_m(alpha)``, ``beta = sqrt(1 - (r/a)^2)``, zero for ``r > a``.

    Parameters
    ----------
    a : float
        Radius of the support, in coefficients.
    alpha : float
        Taper.
    order : int
        ``m``, at least 1.

    Notes
    -----
    Two sets are near a partition of unity: ``(2, 10.83, 2)``, the default, and ``(4, 19, 2)``
    (`KaiserBessel.wide`), better localised in Fourier space and slower. `KaiserBessel.narrow` is near enough (a sum of
    ones ripples by 4 %) and can follow an edge with coefficients that are all positive, which a wide one cannot.
    Formulas: Lewitt 1990; Donati 2020, section 2.

    Examples
    --------
    >>> float(KaiserBessel().value(0.0))
    1.0
    """

    band = np.inf

    def __init__(self, a: float = 2.0, alpha: float = 10.83, order: int = 2) -> None:
        if not (a > 0 and alpha > 0 and order >= 1):
            raise ValueError(f"a window needs a > 0, alpha > 0, order >= 1; got {a}, {alpha}, {order}")
        self.radius, self.alpha, self.order = float(a), float(alpha), int(order)

    @classmethod
    def wide(cls) -> KaiserBessel:
        """The set (4, 19, 2)."""
        return cls(4.0, 19.0, 2)

    @classmethod
    def narrow(cls) -> KaiserBessel:
        """The set (1.25, 4, 2): sums of positive coefficients keep the edges of voxels."""
        return cls(1.25, 4.0, 2)

    def __repr__(self) -> str:
        return f"KaiserBessel({self.radius:g}, {self.alpha:g}, {self.order})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KaiserBessel) and self._parameters == other._parameters

    def __hash__(self) -> int:
        return hash(self._parameters)

    @property
    def _parameters(self) -> tuple[float, float, int]:
        return self.radius, self.alpha, self.order

    def _bessel(self, r: ArrayLike, shift: float) -> NDArray:
        """``beta^(m + shift) I_(m + shift)(alpha beta) / I_m(alpha)``."""
        beta = np.sqrt(np.clip(1.0 - (np.asarray(r, float) / self.radius) ** 2, 0.0, None))
        nu = self.order + shift
        # scaled Bessel functions: exp(alpha beta - alpha) cannot overflow
        ratio = special.ive(nu, self.alpha * beta) / special.ive(self.order, self.alpha)
        return np.where(beta > 0, beta**nu * ratio * np.exp(self.alpha * (beta - 1.0)), 0.0)

    def value(self, r: ArrayLike) -> NDArray:
        """``phi`` at radius ``r`` (coefficients)."""
        return self._bessel(r, 0.0)

    def projection(self, r: ArrayLike) -> NDArray:
        """Line integral ``P{phi}`` at distance ``r`` from the centre."""
        return self.radius * np.sqrt(2 * np.pi / self.alpha) * self._bessel(r, 0.5)

    def slope(self, r: ArrayLike) -> NDArray:
        """``(1/r) dP{phi}/dr``: the gradient of the projection at ``y`` is ``slope(|y|) * y``."""
        return -self.alpha / self.radius * np.sqrt(2 * np.pi / self.alpha) * self._bessel(r, -0.5)

    def fourier(self, frequency: ArrayLike) -> NDArray:
        w = self.radius * np.abs(np.asarray(frequency, float))
        nu = self.order + 1.5
        inside = w < self.alpha
        z = np.sqrt(np.abs(self.alpha**2 - w**2))
        safe = np.where(z > 1e-6, z, 1.0)
        below = special.ive(nu, safe) * np.exp(np.minimum(safe, self.alpha) - self.alpha) / safe**nu
        above = special.jv(nu, safe) * np.exp(-self.alpha) / safe**nu
        limit = np.exp(-self.alpha) / (2.0**nu * special.gamma(nu + 1))
        values = np.where(z > 1e-6, np.where(inside, below, above), limit)
        factor = (
            (2 * np.pi) ** 1.5 * self.radius**3 * self.alpha**self.order / special.ive(self.order, self.alpha)
        )
        return factor * values

    def autocorrelation(self, r: ArrayLike) -> NDArray:
        """``(P{phi} * P{phi})(r)``, the radial kernel of H^T H (Donati 2020, Theorem 1); zero beyond ``2 a``.

        The inverse Hankel transform of ``phi^(w)^2``, which decays as ``w^-(2 m + 4)``.
        """
        r = np.asarray(r, float)
        w, density = self._power
        out = special.j0(r.reshape(-1, 1) * w) @ density
        return np.where(r < 2 * self.radius, out.reshape(r.shape), 0.0)

    def autocorrelation_slope(self, r: ArrayLike) -> NDArray:
        """``(1/r) d/dr`` of `autocorrelation`: its gradient at ``y`` is ``autocorrelation_slope(|y|) * y``."""
        r = np.asarray(r, float)
        w, density = self._power
        z = np.maximum(r.reshape(-1, 1) * w, 1e-8)  # J_1(z) / z is 1/2 up to there
        out = -(special.j1(z) / z) @ (density * w * w)
        return np.where(r < 2 * self.radius, out.reshape(r.shape), 0.0)

    @property
    def _power(self) -> tuple[NDArray, NDArray]:
        """Nodes and weights of the integral over frequencies of ``phi^2``."""
        top = 160.0 / self.radius
        nodes, weights = _gauss_legendre(600)
        w = 0.5 * top * (nodes + 1.0)
        return w, 0.5 * top * weights * self.fourier(w) ** 2 * w / (2 * np.pi)

    @property
    def projection_table(self) -> NDArray:
        """`projection` over squared distances 0 to ``radius**2``."""
        return _table(self, "projection", self.radius)

    @property
    def autocorrelation_table(self) -> NDArray:
        """`autocorrelation` over squared distances 0 to ``(2 radius)**2``."""
        return _table(self, "autocorrelation", 2 * self.radius)

    def sample(
        self, coefficients: NDArray, shape: int | tuple[int, int, int] | None = None, *, scale: float = 1.0
    ) -> NDArray:
        """Point values ``f(x) = sum_k c[k] phi(x / s - k)`` on the voxel grid, by direct summation.

        Unlike `synthesize` this folds what lies above the Nyquist frequency of the voxels.
        """
        full = voxel_shape(coefficients.shape, shape, scale)
        reach = int(np.ceil(self.radius))
        pad = [
            reach + 1 + max(0, int(np.ceil(m / 2 / scale - n / 2))) + 1
            for n, m in zip(coefficients.shape, full, strict=True)
        ]
        padded = np.pad(coefficients, [(p, p) for p in pad])
        places = []
        for n, m, p in zip(coefficients.shape, full, pad, strict=True):
            u = (np.arange(m) - m // 2) / scale + n // 2 + p
            places.append((np.floor(u).astype(int), u - np.floor(u)))
        (iz, fz), (iy, fy), (ix, fx) = places
        out = np.zeros(full, real_dtype(coefficients.dtype))
        for dz in range(1 - reach, reach + 1):
            for dy in range(1 - reach, reach + 1):
                for dx in range(1 - reach, reach + 1):
                    squared = (
                        (fz - dz)[:, None, None] ** 2
                        + (fy - dy)[None, :, None] ** 2
                        + (fx - dx)[None, None, :] ** 2
                    )
                    if squared.min() < self.radius**2:
                        block = padded[np.ix_(iz + dz, iy + dy, ix + dx)]
                        out += (block * self.value(np.sqrt(squared))).astype(out.dtype)
        return out


_gauss_legendre = lru_cache(maxsize=1)(np.polynomial.legendre.leggauss)  # an eigenvalue problem


@lru_cache(maxsize=16)
def _table(window: KaiserBessel, name: str, radius: float) -> NDArray:
    """A function of ``window`` at equal steps of squared distance, one more cell at the end; made once."""
    table = np.zeros(_TABLE + 2)
    table[:-1] = getattr(window, name)(radius * np.sqrt(np.arange(_TABLE + 1) / _TABLE))
    table.setflags(write=False)
    return table


class BandLimited(Window):
    """Voxels of a map themselves as coefficients: ``phi^ = 1`` for ``|w| <= pi``, else 0.

    The projector on this window takes central slices of the map's Fourier transform, as RELION does. It has
    no finite support, so it has no real-space twin and no tube evaluation of the kernel.
    """

    radius = np.inf
    band = np.pi

    def __repr__(self) -> str:
        return "BandLimited()"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BandLimited)

    def __hash__(self) -> int:
        return hash("BandLimited")

    def fourier(self, frequency: ArrayLike) -> NDArray:
        return (np.abs(np.asarray(frequency, float)) <= np.pi * (1 + 1e-12)).astype(float)


def voxel_shape(
    coefficients: tuple[int, ...], shape: int | tuple[int, ...] | None, scale: float
) -> tuple[int, ...]:
    """Shape of a voxel map for coefficients at ``scale``: as given, or ``round(scale * n)``."""
    if not scale >= 1.0:
        raise ValueError(f"scale must be at least 1 (voxels per coefficient), got {scale}")
    if shape is None:
        return tuple(round(scale * n) for n in coefficients)
    shape = (int(shape),) * 3 if np.ndim(shape) == 0 else tuple(int(n) for n in shape)  # type: ignore
    if len(shape) != len(coefficients) or min(shape) < 1:
        raise ValueError(f"a map of {len(coefficients)} dimensions cannot have shape {shape}")
    return shape


def scaled_dft(n: int, m: int, scale: float, *, half: bool, dtype: Any) -> NDArray:
    """Matrix of one axis: ``exp(-i w_a (s (k - n//2) + m//2))`` for the frequencies of ``m`` voxels, (m, n).

    With it a sum over ``n`` coefficients at ``scale`` becomes a spectrum that ``irfft`` turns into ``m``
    voxels; for ``n = m`` and scale 1 it is the plain DFT. ``half`` keeps the frequencies of ``rfft``.
    """
    w = 2 * np.pi * (np.fft.rfftfreq(m) if half else np.fft.fftfreq(m))
    phase = w[:, None] * (scale * (np.arange(n) - n // 2) + m // 2)
    return np.exp(-1j * phase).astype(np.result_type(dtype, np.complex64))


def scaled_spectrum(x: NDArray, shape: tuple[int, ...], scale: float) -> NDArray:
    """Half spectrum of coefficients ``x`` on the frequencies of a ``shape`` grid, axis by axis."""
    for axis in (2, 1, 0):
        matrix = scaled_dft(x.shape[axis], shape[axis], scale, half=axis == 2, dtype=x.dtype)
        x = np.moveaxis(np.tensordot(matrix, x, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(x)
