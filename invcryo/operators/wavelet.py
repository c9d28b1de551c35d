"""Orthonormal wavelets: the filters are computed here, no table is stored."""

from __future__ import annotations

import decimal
import functools
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..backend import array_module
from .base import LinOp
from .basic import Identity

__all__ = ["Wavelet", "scaling_filter"]

_ORDERS = {"db": range(1, 21), "sym": range(2, 21)}
#: Symlets that PyWavelets stores with their energy behind the middle; the others have it before the middle.
_LATE = (4, 5, 6, 8, 9, 10, 13, 18)
_DEFAULT_LEVELS = 4
_SLABS = 8  # pieces in which array code works, so that temporaries stay small beside the array

Box = tuple[int, ...]
Split = tuple[bool, ...]


class Wavelet(LinOp):
    """Orthonormal separable wavelet transform with periodic boundary, in any number of dimensions.

    Parameters
    ----------
    shape : tuple of int
        Any sizes, at least one of them even. A level splits every axis whose low-pass length is even; an axis
        whose length is odd stays as it is from there on, so that the transform is orthonormal for all shapes.
    wavelet : str
        "haar", "db1" to "db20" (Daubechies, minimum phase), "sym2" to "sym20" (least asymmetric).
    levels : int, optional
        By default the largest number up to 4 for which every axis that is split keeps a low-pass length of at
        least that of the filter (twice the order of the wavelet), but at least 1.

    Attributes
    ----------
    coarse : tuple of slice
        Where the approximation lies in the output, for costs that leave it alone: ``W(x)[W.coarse]``.

    Notes
    -----
    The output has the shape of the input: per level and axis the low-pass half, then the high-pass half, the next
    level inside the low-pass corner. Where all axes are even at every level this is
    ``pywt.coeffs_to_array(pywt.wavedecn(x, wavelet, mode="periodization", level=levels))[0]``, value for value.

    The adjoint is the inverse, and ``gram()`` the identity. Beside input and output only temporaries of a small
    part of their size are needed (of 1.5 times their size for a vector).

    References
    ----------
    I. Daubechies, *Ten Lectures on Wavelets*, SIAM 1992, sections 6.4 (db) and 8.1.1 (sym).
    S. Mallat, "A theory for multiresolution signal decomposition", IEEE Trans. PAMI 11(7), 1989.
    """

    def __init__(
        self,
        shape: Sequence[int],
        wavelet: str = "db4",
        levels: int | None = None,
        dtype: Any = np.float32,
    ) -> None:
        shape = tuple(int(n) for n in shape)
        super().__init__(shape, shape, dtype)
        self.wavelet = wavelet
        low = scaling_filter(wavelet)
        high = low[::-1] * np.where(np.arange(len(low)) % 2, -1.0, 1.0)
        self._filters = np.stack([low, high]).astype(self.dtype)
        steps = _steps(shape)
        if not steps:
            raise ValueError(
                f"no axis of shape {shape} can be split: a wavelet transform needs an axis of even length, so pad"
                " the array"
            )
        if levels is None:
            levels = _default_levels(steps, len(low))
        if levels not in range(1, len(steps) + 1):
            raise ValueError(
                f"levels = {levels}, but shape {shape} admits 1 to {len(steps)}: an axis is halved as long as it"
                " is even"
            )
        self.levels = int(levels)
        self._steps = steps[: self.levels]
        box, split = self._steps[-1]
        self.coarse = tuple(slice(0, n // 2 if s else n) for n, s in zip(box, split, strict=True))

    def _apply(self, x: NDArray) -> NDArray:
        out = array_module(x).empty(self.oshape, x.dtype)
        analyse = kernels.wavelet_analysis if self._compiled(x) else _analysis
        source = x
        for box, split in self._steps:
            analyse(source, box, split, self._filters, out)
            source = out
        return out

    def _adjoint(self, y: NDArray) -> NDArray:
        out = y.copy()
        synthesise = kernels.wavelet_synthesis if self._compiled(y) else _synthesis
        for box, split in reversed(self._steps):
            synthesise(box, split, self._filters, out)
        return out

    def _compiled(self, x: NDArray) -> bool:
        return array_module(x) is np and x.ndim <= 3

    def _gram(self, W: LinOp | None) -> LinOp:
        return Identity(self.ishape, self.dtype) if W is None else super()._gram(W)


def _steps(shape: Sequence[int]) -> list[tuple[Box, Split]]:
    """For each level that ``shape`` admits, the low-pass corner it acts on and the axes it splits."""
    if not shape or min(shape) < 1:
        raise ValueError(f"a wavelet transform needs at least one axis and no empty one, got shape {shape}")
    box, steps = tuple(shape), []
    while any(n % 2 == 0 for n in box):
        split = tuple(n % 2 == 0 for n in box)
        steps.append((box, split))
        box = tuple(n // 2 if s else n for n, s in zip(box, split, strict=True))
    return steps


def _default_levels(steps: list[tuple[Box, Split]], length: int) -> int:
    def roomy(step: tuple[Box, Split]) -> bool:
        return all(n // 2 >= length for n, s in zip(*step, strict=True) if s)

    return max(1, len(list(itertools.takewhile(roomy, steps[:_DEFAULT_LEVELS]))))


# -- array code: any number of dimensions, and the reference for the compiled loops ------------------------------


def _analysis(source: NDArray, box: Box, split: Split, filters: NDArray, out: NDArray) -> None:
    """One level: the corner ``box`` of ``source`` into that of ``out`` (which may be the same array)."""
    corner = tuple(slice(0, n) for n in box)
    if out is not source:
        out[corner] = source[corner]
    for axis in np.flatnonzero(split):
        for part in _slabs(out[corner], int(axis)):
            _split(part, filters)


def _synthesis(box: Box, split: Split, filters: NDArray, out: NDArray) -> None:
    """The inverse of `_analysis`, in place."""
    corner = tuple(slice(0, n) for n in box)
    for axis in np.flatnonzero(split)[::-1]:
        for part in _slabs(out[corner], int(axis)):
            _merge(part, filters)


def _slabs(x: NDArray, axis: int) -> Iterator[NDArray]:
    """Views of ``x`` with ``axis`` first, which together cover it."""
    x = array_module(x).moveaxis(x, axis, 0)
    if x.ndim == 1:
        yield x
        return
    other = 1 + int(np.argmax(x.shape[1:]))
    size = -(-x.shape[other] // _SLABS)
    for start in range(0, x.shape[other], size):
        yield x[(slice(None),) * other + (slice(start, start + size),)]


def _split(x: NDArray, filters: NDArray) -> None:
    """Filters along the first axis, in place: entry k of the first half of ``x`` becomes
    ``sum_i low[i] x[2 k + i + 1 - len(low) / 2]``, of the second half the same with ``high``.
    """
    n, taps = len(x), filters.shape[1]
    wrapped = x[array_module(x).arange(1 - taps // 2, n - 1 + taps // 2) % n]
    for half, coefficients in zip((x[: n // 2], x[n // 2 :]), filters.tolist(), strict=True):
        half[...] = 0
        for i, c in enumerate(coefficients):
            half += c * wrapped[i : i + n - 1 : 2]


def _merge(x: NDArray, filters: NDArray) -> None:
    """The transpose of `_split`, which is its inverse."""
    half, m = len(x) // 2, filters.shape[1] // 2
    index = array_module(x).arange(1 - m, half + m // 2) % half
    halves = x[:half][index], x[half:][index]
    for r in (0, 1):
        start, p = divmod(m - 1 + r, 2)  # entry 2 k + r meets taps 2 t + p of coefficients k + start - t
        x[r::2] = 0
        for wrapped, coefficients in zip(halves, filters[:, p::2].tolist(), strict=True):
            for t, c in enumerate(coefficients):
                first = m - 1 + start - t
                x[r::2] += c * wrapped[first : first + half]


# -- filters -----------------------------------------------------------------------------------------------------


@functools.cache
def scaling_filter(wavelet: str) -> NDArray:
    """The low-pass filter of a wavelet, float64, of sum sqrt(2) and norm 1; read-only.

    This is ``pywt.Wavelet(name).rec_lo``, whose symlets are given to 12 digits only (1.5e-11 for sym20).

    Notes
    -----
    The filter of order N is ``(1 + z)^N Q(z)`` with ``|Q|^2 = sum_{k<N} C(N - 1 + k, k) y^k`` on the unit circle,
    ``y = sin^2(w / 2)`` (Daubechies 1992, eq. 6.1.12). The zeros of ``Q`` come in pairs z, 1 / z, of which Q has
    one: for "db" the one inside the unit circle, for "sym" the choice whose phase departs least, in the mean
    square over frequencies, from a straight line through its values at 0 and pi. The factors are multiplied in
    50 digits, since their product cancels.
    """
    found = re.fullmatch(r"(db|sym)([1-9]\d?)", "db1" if wavelet == "haar" else str(wavelet))
    if not found or int(found[2]) not in _ORDERS[found[1]]:
        raise ValueError(f"unknown wavelet {wavelet!r}: expected haar, db1 to db20 or sym2 to sym20")
    family, order = found[1], int(found[2])
    with decimal.localcontext(decimal.Context(prec=50)):
        factors = _factors(order)
        if family == "sym":
            outside = _least_asymmetric([np.roots(f.astype(float)) for f in factors])
            # the factor whose zeros are the reciprocal ones has the coefficients in reverse order
            factors = [f[::-1] if out else f for f, out in zip(factors, outside, strict=True)]
        h = functools.reduce(np.convolve, factors + [np.array([Decimal(1), Decimal(1)])] * order)
        h = (h * (Decimal(2).sqrt() / h.sum())).astype(np.float64)
    if family == "sym":
        late = float(np.arange(2 * order) @ h**2) > order - 0.5
        if late != (order in _LATE):
            h = h[::-1].copy()
    h.setflags(write=False)
    return h


def _factors(order: int) -> list[NDArray]:
    """Real factors of the minimum-phase ``Q``, linear or quadratic, highest power first, of `Decimal` numbers."""
    coefficients = [math.comb(order - 1 + k, k) for k in range(order)][::-1]
    slope = [k * c for k, c in zip(range(order - 1, 0, -1), coefficients, strict=False)]
    y = np.roots(coefficients)
    root = np.sqrt((1 - 2 * y) ** 2 - 1 + 0j)
    z = np.where(abs(1 - 2 * y - root) < 1, 1 - 2 * y - root, 1 - 2 * y + root)
    factors = []
    for start in z[y.imag >= 0]:
        value = _Complex(Decimal(start.real), Decimal(start.imag))
        for _ in range(3):  # Newton's method doubles the digits, of which there are about 8 at first
            inverse = value.inverse()
            at = (_Complex(Decimal(2)) - value - inverse) * _Complex(Decimal("0.25"))
            rate = (
                (inverse * inverse - _Complex(Decimal(1))) * _Complex(Decimal("0.25")) * at.polynomial(slope)
            )
            value = value - at.polynomial(coefficients) * rate.inverse()
        if start.imag:
            factors.append(np.array([Decimal(1), -2 * value.real, value.real**2 + value.imag**2]))
        else:
            factors.append(np.array([Decimal(1), -value.real]))
    return factors


class _Complex:
    """A complex number of two decimals, with the few operations needed here."""

    def __init__(self, real: Decimal, imag: Decimal = Decimal(0)) -> None:
        self.real, self.imag = real, imag

    def __sub__(self, other: _Complex) -> _Complex:
        return _Complex(self.real - other.real, self.imag - other.imag)

    def __mul__(self, other: _Complex) -> _Complex:
        return _Complex(
            self.real * other.real - self.imag * other.imag, self.real * other.imag + self.imag * other.real
        )

    def inverse(self) -> _Complex:
        square = self.real**2 + self.imag**2
        return _Complex(self.real / square, -self.imag / square)

    def polynomial(self, coefficients: Sequence[int]) -> _Complex:
        total = _Complex(Decimal(0))
        for c in coefficients:
            total = total * self - _Complex(Decimal(-c))
        return total


def _least_asymmetric(zeros: list[NDArray]) -> tuple[bool, ...]:
    """Which factors take their zeros outside the unit circle; the first one stays inside.

    The phase of a factor with zeros z inside is ``sum_n Re(z^n) sin(n w) / n``, summed over z, beside a linear
    term; outside, its negative. The sines are orthogonal, so the mean square is that of the coefficients.
    """
    n = np.arange(1, 200)  # |z| < 0.65 for order 20
    phases = np.stack([(z[:, None] ** n).real.sum(0) / n for z in zeros])
    signs = np.array(list(itertools.product([1.0], *[[1.0, -1.0]] * (len(zeros) - 1))))
    best = signs[np.argmin(np.linalg.norm(signs @ phases, axis=1))]
    return tuple(bool(s < 0) for s in best)
