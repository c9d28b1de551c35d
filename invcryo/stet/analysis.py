"""Why random sampling works: sparsity, and incoherence by the transform point-spread function; held-out pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..operators import Wavelet
from .sampling import Sampling

__all__ = ["TPSF", "held_out_error", "hold_out", "sparse_approximation", "sparsity", "tpsf"]


def sparse_approximation(
    x: ArrayLike, fraction: float, *, wavelet: str = "haar", levels: int | None = None
) -> NDArray:
    """``x`` from the ``round(fraction size)`` largest of its wavelet coefficients, the others set to zero."""
    array = _real(x)
    transform = Wavelet(array.shape, wavelet, levels, array.dtype)
    coefficients = transform(array)
    count = _count(fraction, array.size)
    if count < array.size:
        size = abs(coefficients).ravel()
        kept = np.argpartition(size, array.size - count)[array.size - count :]
        thin = np.zeros_like(coefficients)
        thin.ravel()[kept] = coefficients.ravel()[kept]
        coefficients = thin
    return transform.adjoint(coefficients)


def sparsity(
    x: ArrayLike,
    *,
    fractions: Sequence[float] = (0.05, 0.10),
    wavelet: str = "haar",
    levels: int | None = None,
) -> list[dict[str, float]]:
    """What the K largest wavelet coefficients hold of an image or volume (Donati 2020, section 3.3).

    Returns
    -------
    list of dict
        For each fraction: ``fraction``, ``coefficients`` (K), ``energy`` (their part of the squares, after the mean
        is taken off), ``relative_error`` (of the approximation, by the standard deviation of ``x``).
    """
    array = _real(x)
    array = array - array.mean(dtype=np.float64).astype(array.dtype)
    total = float(np.sum(np.square(array), dtype=np.float64))
    if total == 0:
        raise ValueError("the array is constant: it has no coefficients but one")
    squares = np.sort(np.square(Wavelet(array.shape, wavelet, levels, array.dtype)(array)).ravel())[::-1]
    sums = np.cumsum(squares, dtype=np.float64)
    rows = []
    for fraction in fractions:
        count = _count(fraction, array.size)
        energy = min(1.0, float(sums[count - 1]) / total)
        rows.append(
            {
                "fraction": float(fraction),
                "coefficients": float(count),
                "energy": energy,
                "relative_error": float(np.sqrt(1 - energy)),
            }
        )
    return rows


@dataclass(frozen=True, eq=False)
class TPSF:
    """What becomes of one wavelet coefficient that is synthesised, projected, sampled, inverted and analysed.

    Attributes
    ----------
    index : tuple of int
        Of the coefficient.
    response : ndarray
        Coefficients that come back, over that at ``index`` under full sampling.
    leakage : ndarray
        ``response`` minus that of full sampling: what the sampling alone adds, at every other coefficient
        (0 at ``index``).
    """

    index: tuple[int, ...]
    response: NDArray
    leakage: NDArray

    @property
    def peak_sidelobe(self) -> float:
        """Largest leak, relative to the coefficient itself."""
        return float(abs(self.leakage).max())

    @property
    def rms(self) -> float:
        return float(np.sqrt(np.square(self.leakage, dtype=np.float64).mean()))

    @property
    def kurtosis(self) -> float:
        """Excess kurtosis of the leakage: 0 for Gaussian noise, large where it gathers in a few coefficients."""
        v = self.leakage.astype(np.float64).ravel()
        second = np.square(v).mean()
        return float((v**4).mean() / second**2 - 3) if second > 0 else 0.0

    def describe(self) -> dict[str, float]:
        return {"peak_sidelobe": self.peak_sidelobe, "rms": self.rms, "kurtosis": self.kurtosis}


def tpsf(
    forward: Callable[[NDArray], NDArray],
    inverse: Callable[[NDArray], NDArray],
    transform: Wavelet,
    index: Sequence[int],
    sampling: Sampling | NDArray,
) -> TPSF:
    """Transform point-spread function of a sampling.

    Parameters
    ----------
    forward : callable
        Images (n, height, width) of an object: a projector.
    inverse : callable
        Object from images: its adjoint, or a filtered back-projection.
    transform : Wavelet
        Of the object.
    index : sequence of int
        The coefficient that is put in.
    sampling : Sampling or ndarray of bool, (n, height, width)
        Pixels that were not measured are set to zero, and the result divided by the fraction measured.

    References
    ----------
    M. Lustig, D. Donoho, J. M. Pauly, "Sparse MRI", Magn. Reson. Med. 58 (2007). Donati 2020, section 3.4.2.
    """
    mask = sampling.full_mask() if isinstance(sampling, Sampling) else np.asarray(sampling)
    place = tuple(int(i) for i in index)
    unit = np.zeros(transform.ishape, transform.dtype)
    unit[place] = 1
    images = forward(transform.adjoint(unit))
    if mask.shape != images.shape:
        raise ValueError(f"the sampling is of images {mask.shape}, the projector makes {images.shape}")
    full = transform(np.ascontiguousarray(inverse(images), dtype=transform.dtype))
    height = float(full[place])
    if not abs(height) > 0:
        raise ValueError(
            f"nothing of coefficient {place} comes back even under full sampling; take another one"
        )
    masked = np.where(mask, images, 0).astype(images.dtype)
    part = transform(np.ascontiguousarray(inverse(masked), dtype=transform.dtype))
    response = part / (height * float(mask.mean()))
    leakage = response - full / height
    leakage[place] = 0
    return TPSF(place, response, leakage)


def hold_out(
    mask: NDArray, fraction: float, *, rng: np.random.Generator | int | None = 0
) -> tuple[NDArray, NDArray]:
    """Split the measured pixels: masks of those that are fitted, and of the ``fraction`` held out of every tilt."""
    if mask.ndim != 3 or mask.dtype != bool:
        raise ValueError(
            f"a mask is boolean and has shape (n, height, width), got {mask.dtype} of {mask.shape}"
        )
    if not 0 < fraction < 1:
        raise ValueError(f"the part held out must lie in (0, 1), got {fraction}")
    generator = np.random.default_rng(rng)
    held = np.zeros_like(mask)
    for out, one in zip(held, mask, strict=True):
        known = np.flatnonzero(one)
        count = round(fraction * len(known))
        if count == 0 or count == len(known):
            raise ValueError(
                f"{fraction:g} of {len(known)} measured pixels of a tilt leaves none to fit or to test"
            )
        out.ravel()[generator.choice(known, count, replace=False)] = True
    return mask & ~held, held


def held_out_error(images: NDArray, prediction: NDArray, held: NDArray) -> float:
    """Root mean square error of predicted pixels over the standard deviation of these pixels; below 1 is useful."""
    seen = images[held].astype(np.float64)
    deviation = seen.std()
    if seen.size < 2 or deviation == 0:
        raise ValueError("fewer than two different pixels were held out")
    return float(np.sqrt(np.square(seen - prediction[held]).mean()) / deviation)


def _count(fraction: float, size: int) -> int:
    if not 0 < fraction <= 1:
        raise ValueError(f"a fraction lies in (0, 1], got {fraction}; 10 % is 0.1")
    return max(1, round(fraction * size))


def _real(x: Any) -> NDArray:
    x = np.asarray(x)
    return np.ascontiguousarray(x, dtype=x.dtype if x.dtype in (np.float32, np.float64) else np.float32)
