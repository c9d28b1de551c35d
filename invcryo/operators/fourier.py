"""Products in Fourier space: filters of image stacks, periodic and Toeplitz convolutions."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..backend import array_module, fft, real_dtype
from ..ctf import CTF
from ..data import kept_rows
from .base import LinOp
from .basic import ZeroPad

__all__ = ["Circulant", "ImageFilter", "Toeplitz"]

_BATCH_PIXELS = 1 << 22  # pixels of images that are filtered at a time


class ImageFilter(LinOp):
    """One filter per image of a stack (n, height, width), applied as a product in Fourier space.

    Build it with `from_ctf`, `from_shifts`, `from_array` or `from_radial`. Filters compose with ``@``; the
    gram of a filter is the filter of its squared modulus. CTF values are computed batch by batch, never
    stored for the whole stack.
    """

    def __init__(
        self, response: _Response, n: int, image_shape: Sequence[int], dtype: Any = np.float32
    ) -> None:
        shape = (int(n), *image_shape)
        super().__init__(shape, shape, dtype)
        self._response = response

    @classmethod
    def from_ctf(
        cls, ctf: CTF, image_shape: int | Sequence[int], pixel_size: float, *, dtype: Any = np.float32
    ) -> ImageFilter:
        """The CTF of each image, with ``pixel_size`` in angstrom."""
        if not pixel_size > 0:
            raise ValueError(f"pixel size must be positive angstrom, got {pixel_size}")
        shape = _image_shape(image_shape)
        return cls(_CTFResponse(ctf, shape, float(pixel_size)), len(ctf), shape, dtype)

    @classmethod
    def from_shifts(
        cls, shifts: ArrayLike, image_shape: int | Sequence[int], *, dtype: Any = np.float32
    ) -> ImageFilter:
        """Moves image ``p`` by ``shifts[p]`` = (x, y) pixels, periodically."""
        shape = _image_shape(image_shape)
        t = np.asarray(shifts, float).reshape(-1, 2)
        return cls(_ShiftResponse(t, shape), len(t), shape, dtype)

    @classmethod
    def from_array(
        cls,
        values: ArrayLike,
        image_shape: int | Sequence[int],
        n: int | None = None,
        *,
        dtype: Any = np.float32,
    ) -> ImageFilter:
        """Real responses on the half spectrum of ``rfft2``: (height, width // 2 + 1), or one per image.

        The response of a real filter is even; on the columns that hold both signs of a frequency, 0 and
        Nyquist, the mean of the two is taken.
        """
        shape = _image_shape(image_shape)
        v = np.asarray(values)
        if np.iscomplexobj(v):
            raise TypeError(f"from_array takes real responses, got {v.dtype}")
        v = np.array(v[None] if v.ndim == 2 else v, real_dtype(dtype))
        if v.shape[1:] != (shape[0], shape[1] // 2 + 1):
            raise ValueError(
                f"a filter of {shape} images needs {(shape[0], shape[1] // 2 + 1)}, got {v.shape[1:]}"
            )
        if n is not None and len(v) not in (1, n):
            raise ValueError(f"{len(v)} responses for {n} images: give one response, or one for each image")
        return cls(_ArrayResponse(_hermitian(v, shape)), len(v) if n is None else n, shape, dtype)

    @classmethod
    def from_radial(
        cls, profile: ArrayLike, image_shape: int | Sequence[int], n: int, *, dtype: Any = np.float32
    ) -> ImageFilter:
        """One response per shell: ``profile[i]`` at ``i`` Fourier pixels of the shorter side, interpolated.

        Beyond the last shell the last value holds. With ``profile = 1 / sigma^2`` this is the weight of
        coloured noise.
        """
        shape = _image_shape(image_shape)
        p = np.asarray(profile, float)
        if p.ndim != 1 or not np.isfinite(p).all():
            raise ValueError("a radial profile must be a finite vector, one value per shell")
        radius = min(shape) * np.hypot(np.fft.rfftfreq(shape[1])[None, :], np.fft.fftfreq(shape[0])[:, None])
        return cls.from_array(np.interp(radius, np.arange(len(p)), p), shape, n, dtype=dtype)

    @property
    def image_shape(self) -> tuple[int, int]:
        return (self.oshape[1], self.oshape[2])

    def values(self, index: slice) -> NDArray:
        """The response on the half spectrum, for some images: broadcasts to (b, height, width // 2 + 1)."""
        return self._response.values(index, self.dtype)

    def _filtered(self, y: NDArray, conjugate: bool) -> NDArray:
        out = np.empty_like(y)
        lib = fft(y)
        batch = max(1, _BATCH_PIXELS // (y.shape[1] * y.shape[2]))
        for start in range(0, len(y), batch):
            part = slice(start, min(start + batch, len(y)))
            response = self.values(part)
            spectrum = lib.rfft2(y[part])
            spectrum *= response.conj() if conjugate and np.iscomplexobj(response) else response
            out[part] = lib.irfft2(spectrum, s=self.image_shape)
        return out

    def _apply(self, x: NDArray) -> NDArray:
        return self._filtered(x, conjugate=False)

    def _adjoint(self, y: NDArray) -> NDArray:
        return self._filtered(y, conjugate=True)

    def _gram(self, W: LinOp | None) -> LinOp:
        power = _PowerResponse(self._response)
        if W is None:
            return ImageFilter(power, self.oshape[0], self.image_shape, self.dtype)
        if isinstance(W, ImageFilter):
            both = _ProductResponse(power, W._response)
            return ImageFilter(both, self.oshape[0], self.image_shape, self.dtype)
        return super()._gram(W)

    def __matmul__(self, other: Any) -> LinOp:
        if isinstance(other, ImageFilter) and other.oshape == self.ishape and other.dtype == self.dtype:
            both = _ProductResponse(self._response, other._response)
            return ImageFilter(both, self.oshape[0], self.image_shape, self.dtype)
        return super().__matmul__(other)

    def rows(self, index: Any) -> ImageFilter:
        kept = kept_rows(index, self.oshape[0])
        return ImageFilter(self._response.rows(kept), len(kept), self.image_shape, self.dtype)


class _Response:
    """Values of a filter for some images of the stack."""

    def values(self, index: Any, dtype: np.dtype) -> NDArray:
        raise NotImplementedError

    def rows(self, index: Any) -> _Response:
        raise NotImplementedError

    def power(self, index: Any, dtype: np.dtype) -> NDArray:
        v = self.values(index, dtype)
        return (v.conj() * v).real


class _CTFResponse(_Response):
    def __init__(self, ctf: CTF, shape: tuple[int, int], pixel_size: float) -> None:
        self.ctf, self.shape, self.pixel_size = ctf, shape, pixel_size

    def _evaluate(self, index: Any, dtype: np.dtype, power: int) -> NDArray:
        sx = np.fft.rfftfreq(self.shape[1], self.pixel_size)[None, :]
        sy = np.fft.fftfreq(self.shape[0], self.pixel_size)[:, None]
        return _hermitian(self.ctf[index](sx, sy, power=power, dtype=dtype), self.shape)

    def values(self, index: Any, dtype: np.dtype) -> NDArray:
        return self._evaluate(index, dtype, 1)

    def power(self, index: Any, dtype: np.dtype) -> NDArray:
        v = self._evaluate(index, dtype, 1)
        return np.multiply(v, v, out=v)

    def rows(self, index: Any) -> _CTFResponse:
        return _CTFResponse(self.ctf[index], self.shape, self.pixel_size)


class _ShiftResponse(_Response):
    def __init__(self, shifts: NDArray, shape: tuple[int, int]) -> None:
        self.shifts, self.shape = shifts, shape

    def values(self, index: Any, dtype: np.dtype) -> NDArray:
        t = self.shifts[index]
        wx, wy = 2 * np.pi * np.fft.rfftfreq(self.shape[1]), 2 * np.pi * np.fft.fftfreq(self.shape[0])
        out = np.exp(-1j * wy * t[:, 1:])[:, :, None] * np.exp(-1j * wx * t[:, :1])[:, None, :]
        return _hermitian(out.astype(np.result_type(dtype, np.complex64)), self.shape)

    def rows(self, index: Any) -> _ShiftResponse:
        return _ShiftResponse(self.shifts[index], self.shape)


class _ArrayResponse(_Response):
    def __init__(self, array: NDArray) -> None:
        self.array = array

    def values(self, index: Any, dtype: np.dtype) -> NDArray:
        return self.array if len(self.array) == 1 else self.array[index]

    def rows(self, index: Any) -> _ArrayResponse:
        return self if len(self.array) == 1 else _ArrayResponse(self.array[index])


class _PowerResponse(_Response):
    def __init__(self, inner: _Response) -> None:
        self.inner = inner

    def values(self, index: Any, dtype: np.dtype) -> NDArray:
        return self.inner.power(index, dtype)

    def rows(self, index: Any) -> _PowerResponse:
        return _PowerResponse(self.inner.rows(index))


class _ProductResponse(_Response):
    def __init__(self, first: _Response, second: _Response) -> None:
        self.first, self.second = first, second

    def values(self, index: Any, dtype: np.dtype) -> NDArray:
        return self.first.values(index, dtype) * self.second.values(index, dtype)

    def rows(self, index: Any) -> _ProductResponse:
        return _ProductResponse(self.first.rows(index), self.second.rows(index))


def _hermitian(values: NDArray, shape: tuple[int, int]) -> NDArray:
    """On the columns that ``irfft2`` takes as self-conjugate, the part of the response that it uses.

    A response like an astigmatic CTF or a shift differs between the two Nyquist frequencies +pi and -pi that
    the half spectrum stores once; averaging them here keeps the gram of a filter equal to its product.
    """
    columns = [0] + ([shape[1] // 2] if shape[1] % 2 == 0 else [])
    mirror = (-np.arange(shape[0])) % shape[0]
    for c in columns:
        column = values[:, :, c]
        values[:, :, c] = 0.5 * (column + np.conj(column[:, mirror]))
    return values


def _image_shape(shape: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(shape, (int, np.integer)):
        return (int(shape), int(shape))
    height, width = shape
    return (int(height), int(width))


class Circulant(LinOp):
    """Periodic convolution, given by its eigenvalues on the half spectrum of ``rfftn``."""

    def __init__(self, spectrum: NDArray, shape: Sequence[int], dtype: Any = np.float32) -> None:
        super().__init__(shape, shape, dtype)
        half = (*self.ishape[:-1], self.ishape[-1] // 2 + 1)
        try:
            fits = np.broadcast_shapes(spectrum.shape, half) == half
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"the spectrum of a {self.ishape} convolution has shape {half}, got {spectrum.shape}"
            )
        kind = np.result_type(self.dtype, np.complex64) if np.iscomplexobj(spectrum) else self.dtype
        self._spectrum = spectrum.astype(kind)

    @property
    def spectrum(self) -> NDArray:
        return self._spectrum

    def _product(self, x: NDArray, spectrum: NDArray) -> NDArray:
        lib = fft(x)
        transform = lib.rfftn(x)
        transform *= spectrum
        return lib.irfftn(transform, s=self.ishape)

    def _apply(self, x: NDArray) -> NDArray:
        return self._product(x, self._spectrum)

    def _adjoint(self, y: NDArray) -> NDArray:
        return self._product(y, self._spectrum.conj())

    def _gram(self, W: LinOp | None) -> LinOp:
        if W is None:
            return Circulant((self._spectrum.conj() * self._spectrum).real, self.ishape, self.dtype)
        return super()._gram(W)


def _padded_length(n: int, lib: Any) -> int:
    """A good length for a transform, at least ``n``, that can be halved for a coarser problem."""
    length = lib.next_fast_len(n, True)
    while length % 4 and n > 8:
        length = lib.next_fast_len(length + 1, True)
    return int(length)


class Toeplitz(LinOp):
    """Convolution of a volume with a kernel on all its lags: ``(T x)[k] = sum_l r[k - l] x[l]``.

    Parameters
    ----------
    kernel : ndarray, (2 nz - 1, 2 ny - 1, 2 nx - 1)
        ``r`` at lags ``-(n-1) .. n-1``; must be even, ``r[-k] = r[k]`` (the operator is symmetric).

    Notes
    -----
    Applied by zero-padding to at least ``2 n - 1``, axis by axis, with the transforms pruned where the input
    is known to be zero and the output is not needed; the padded spectrum is never held whole in complex
    form. The padded operator ``circulant`` may have slightly negative eigenvalues although ``T`` has none
    (about -1 % of the largest): a truncated kernel is not positive definite beyond its own lags.
    """

    _SLAB = 16  # rows of the padded y axis that are transformed along z at a time

    def __init__(self, kernel: NDArray, dtype: Any = np.float32) -> None:
        shape = tuple((n + 1) // 2 for n in kernel.shape)
        if len(shape) != 3 or any(n % 2 == 0 for n in kernel.shape):
            raise ValueError(f"a kernel holds lags -(n-1)..n-1 on three axes, got shape {kernel.shape}")
        super().__init__(shape, shape, dtype)
        half = kernel[shape[0] - 1 :]  # lags z >= 0, which the others mirror
        pairs = zip(half, kernel[shape[0] - 1 :: -1], strict=True)
        worst = max(float(np.abs(plane - mirror[::-1, ::-1]).max()) for plane, mirror in pairs)
        if worst > 1e-3 * max(float(half.max()), -float(half.min())):
            raise ValueError(f"the kernel is not even: r[k] and r[-k] differ by up to {worst:.3g}")
        lib = fft(kernel)
        self._padded = tuple(_padded_length(n, lib) for n in kernel.shape)
        embedded = np.zeros((shape[0], *self._padded[1:]), np.result_type(kernel.dtype, self.dtype))
        # lag 0 goes to index 0, and the lags before it to the end
        rows, columns = (
            ((slice(0, n), slice(n - 1, None)), (slice(size - n + 1, size), slice(0, n - 1)))
            for n, size in zip(shape[1:], self._padded[1:], strict=True)
        )
        for (y, from_y), (x, from_x) in itertools.product(rows, columns):
            embedded[:, y, x] = half[:, from_y, from_x]
        planes = lib.rfft2(embedded, overwrite_x=True)
        self._spectrum = lib.hfft(planes, self._padded[0], axis=0).astype(self.dtype, copy=False)

    @classmethod
    def from_spectrum(cls, spectrum: NDArray, shape: Sequence[int], padded: Sequence[int]) -> Toeplitz:
        """From the eigenvalues of the padded convolution on the half spectrum of ``rfftn``.

        Sides may be padded by less than ``2 n - 1`` where the kernel has the period of the padded side.
        """
        out = cls.__new__(cls)
        LinOp.__init__(out, shape, shape, spectrum.dtype)
        out._padded = tuple(int(n) for n in padded)
        half = (*out._padded[:-1], out._padded[-1] // 2 + 1)
        if spectrum.shape != half or any(n > m for n, m in zip(out.ishape, out._padded, strict=True)):
            raise ValueError(
                f"a {out.ishape} convolution padded to {out._padded} has a spectrum of shape {half}, got"
                f" {spectrum.shape}"
            )
        out._spectrum = spectrum
        return out

    @property
    def pad(self) -> ZeroPad:
        """The embedding: ``T = pad.H @ circulant @ pad``."""
        return ZeroPad(self.ishape, self._padded, self.dtype)

    @property
    def circulant(self) -> Circulant:
        """The periodic convolution on the padded grid."""
        return Circulant(self._spectrum, self._padded, self.dtype)

    @property
    def kernel(self) -> NDArray:
        """``r`` on lags ``-(n-1) .. n-1``."""
        r = fft(self._spectrum).irfftn(
            self._spectrum.astype(np.result_type(self.dtype, np.complex64)), s=self._padded
        )
        for axis, n in enumerate(self.ishape):
            r = np.take(r, range(-(n - 1), n), axis=axis, mode="wrap")
        return r

    def coarsened(self) -> Toeplitz | None:
        """``E^H T E`` for the interpolation E of `Refinement`, but for its ends; None where the sides do not halve.

        A kernel filtered by the autocorrelation of a tent and thinned out: in Fourier space, the spectrum times
        ``prod (1 + cos w)^2`` with the frequencies that become equal added up.
        """
        coarse = tuple((n + 1) // 2 for n in self.ishape)
        halves = tuple(n // 2 for n in self._padded)
        # a side that is padded by less is periodic, and stays so
        wraps = (m < 2 * n - 1 for m, n in zip(self._padded, self.ishape, strict=True))
        enough = (h >= (n if wrap else 2 * n - 1) for h, n, wrap in zip(halves, coarse, wraps, strict=True))
        if any(n % 4 for n in self._padded) or not all(enough):
            return None
        xp = array_module(self._spectrum)
        s = self._spectrum
        for axis in (0, 1):
            tent = self._tent(self._padded[axis]).reshape((-1,) + (1,) * (2 - axis))
            first, second = (slice(0, halves[axis]), slice(halves[axis], None))
            before = (slice(None),) * axis
            s = s[(*before, first)] * tent[first] + s[(*before, second)] * tent[second]
        tent = self._tent(self._padded[2])[: s.shape[2]]
        columns = halves[2] // 2 + 1
        # along x, where half of the spectrum is stored, frequency w + pi is the mirror image of pi - w
        mirror = s[:, :, : halves[2] // 2 - 1 : -1] * tent[: halves[2] // 2 - 1 : -1]
        mirror = xp.roll(mirror[::-1, ::-1], 1, axis=(0, 1))
        out = copy.copy(self)
        out.__dict__.pop("_nearest", None)
        out.ishape = out.oshape = coarse
        out._padded = halves
        out._spectrum = xp.ascontiguousarray((s[:, :, :columns] * tent[:columns] + mirror) / 8)
        return out

    def _tent(self, n: int) -> NDArray:
        return ((1 + np.cos(2 * np.pi * np.arange(n) / n)) ** 2).astype(self.dtype)

    def _apply(self, x: NDArray) -> NDArray:
        lib, xp = fft(self._spectrum), array_module(x)  # threads for the padded size
        nz, ny, nx = self.ishape
        lz, ly, lx = self._padded
        rows = lib.fft(lib.rfft(x, lx, axis=2), ly, axis=1)
        for y in range(0, ly, self._SLAB):
            part = slice(y, y + self._SLAB)
            pencil = lib.fft(rows[:, part], lz, axis=0)
            pencil *= self._spectrum[:, part]
            rows[:, part] = lib.ifft(pencil, axis=0, overwrite_x=True)[:nz]
        rows = lib.ifft(rows, axis=1, overwrite_x=True)[:, :ny]
        return xp.ascontiguousarray(lib.irfft(rows, lx, axis=2)[:, :, :nx])

    def _adjoint(self, y: NDArray) -> NDArray:
        return self._apply(y)

    def __add__(self, other: Any) -> LinOp:
        if isinstance(other, Toeplitz) and other.ishape == self.ishape and other.dtype == self.dtype:
            return self._with(self._spectrum + other._spectrum)
        return super().__add__(other)

    def __mul__(self, factor: Any) -> LinOp:
        if np.ndim(factor) == 0 and not isinstance(factor, LinOp):
            return self._with(self.dtype.type(factor) * self._spectrum)
        return NotImplemented

    __rmul__ = __mul__

    def _with(self, spectrum: NDArray) -> Toeplitz:
        out = copy.copy(self)
        out._spectrum = spectrum
        out.__dict__.pop("_nearest", None)
        return out

    def nearest_circulant(self) -> NDArray:
        """T. Chan's optimal circulant: the closest periodic convolution in the Frobenius norm, never negative
        where the Toeplitz operator is not. Computed once; read-only."""
        return self._nearest

    @functools.cached_property
    def _nearest(self) -> NDArray:
        lib = fft(self._spectrum)
        r = lib.irfftn(self._spectrum.astype(np.result_type(self.dtype, np.complex64)), s=self._padded)
        for axis, n in enumerate(self.ishape):
            # fold lag k and lag k - n onto one place of a period
            share = (np.arange(n) / n).reshape((-1,) + (1,) * (2 - axis))
            head = np.take(r, range(n), axis=axis) * (1.0 - share)
            r = head + np.take(r, range(-n, 0), axis=axis, mode="wrap") * share
        spectrum = fft(r).rfftn(r).real.astype(self.dtype)
        spectrum.setflags(write=False)  # it is shared by every caller
        return spectrum
