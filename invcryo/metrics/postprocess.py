"""Sharpening of a map by its half maps, as RELION's post-processing: FSC weights, MTF, B-factor, low-pass."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft

from ..grid import frequencies
from ..progress import Meter
from .fsc import (
    FSC,
    MASKED_STEPS,
    Counting,
    MaskedFSC,
    _checked,
    _parts,
    _phase_randomised,
    _single_pixel_size,
    fsc,
    write_fsc_xml,
)
from .masks import lowpass_weight

if TYPE_CHECKING:
    from ..io import Map

__all__ = [
    "Guinier",
    "GuinierFit",
    "PostProcess",
    "mask_fraction_fsc",
    "postprocess",
    "read_mtf",
    "write_postprocess",
]

logger = logging.getLogger(__name__)

#: Value of the logarithm where a shell is empty, as in RELION's tables.
_EMPTY = -99.0

#: The FSC weights are zero from the first shell below this on, as in RELION.
_LEAST_FSC = 1e-4


@dataclass(frozen=True)
class GuinierFit:
    """A straight line through a Guinier plot: ``ln|F| = intercept + slope * s**2``, ``B = 4 * slope``.

    ``correlation`` is the squared correlation coefficient of the points, as in RELION's table.
    """

    slope: float
    intercept: float
    correlation: float


@dataclass(frozen=True, eq=False)
class Guinier:
    """Logarithm of the mean amplitude of each shell, after each step; -99 where a shell is empty.

    Amplitudes are those of the transform divided by the number of voxels, RELION's normalisation.

    Attributes
    ----------
    squared_frequency : ndarray, (box // 2 + 1,)
        1/angstrom^2.
    original, mtf_corrected, weighted, sharpened : ndarray or None
        None for a step that was not asked for.
    fit : GuinierFit or None
        Of the weighted curve; None without an automatic B-factor.
    """

    squared_frequency: NDArray
    original: NDArray
    mtf_corrected: NDArray | None
    weighted: NDArray | None
    sharpened: NDArray | None
    fit: GuinierFit | None


@dataclass(frozen=True, eq=False)
class PostProcess:
    """What `postprocess` found.

    Attributes
    ----------
    map : ndarray, (z, y, x), float32
        Mean of the half maps, sharpened.
    masked : ndarray or None
        The same times the mask.
    fsc : FSC
        The curve that gave the resolution and the weights.
    curves : MaskedFSC or None
        All curves, with a mask.
    mask_fraction : float or None
        RELION's factor f of `mask_fraction_fsc`.
    particle : FSC or None
        The unmasked curve rescaled by it.
    resolution : float
        Angstrom, at 0.143; infinite when there is none.
    mask_passed_over : bool
        The unmasked curve reached further than the corrected one and took its place.
    bfactor : float
        Applied, angstrom^2; negative sharpens.
    lowpass : float or None
        Applied, angstrom.
    guinier : Guinier
    """

    map: NDArray
    masked: NDArray | None
    fsc: FSC
    curves: MaskedFSC | None
    mask_fraction: float | None
    particle: FSC | None
    resolution: float
    mask_passed_over: bool
    bfactor: float
    lowpass: float | None
    guinier: Guinier


def postprocess(
    half1: ArrayLike,
    half2: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    pixel_size: float | Sequence[float],
    bfactor: float | Literal["auto"] = "auto",
    fit_range: tuple[float, float] = (10.0, 0.0),
    mtf: tuple[ArrayLike, ArrayLike] | None = None,
    mtf_pixel_size: float | None = None,
    fsc_weighting: bool = True,
    lowpass: float | Literal["final"] | None = None,
    randomise_below: float = 0.8,
    force_mask: bool = False,
    counting: Counting = "friedel",
    rng: np.random.Generator | int | None = None,
    progress: bool | None = None,
) -> PostProcess:
    """Resolution of two half maps, and their mean sharpened, by the steps and rules of `relion_postprocess`.

    The steps: FSC, corrected for the mask by random phases (`phase_randomised_fsc`); mean of the two maps;
    division by the MTF of the detector; weights ``sqrt(2 FSC / (1 + FSC))`` (Rosenthal and Henderson, 2003),
    zero from the first shell below 1e-4 on; ``exp(-B s**2 / 4)`` with the B-factor given or fitted to the
    Guinier plot; a low-pass filter where asked.

    The half maps must be unfiltered and come from particles that share nothing but the starting model.
    Regularised half maps share their prior: their FSC tells no resolution, and the weights have no meaning.

    Parameters
    ----------
    half1, half2 : array_like, (n, n, n)
    mask : array_like, optional
        In [0, 1], soft.
    pixel_size : float or pair of float
        Angstrom; see `fsc`.
    bfactor : float or "auto"
        Angstrom^2, negative to sharpen, 0 for none; ``"auto"`` fits it.
    fit_range : pair of float
        Lowest and highest resolution of the fit in angstrom; 0 as the second means to the end of the weighted
        spectrum, RELION's default. Where the noisy shells at that end decide the fit, so do the random phases:
        give the resolution found as the second. At resolutions lower than about 10 angstrom the amplitudes
        show the shape of the particle, not the B-factor.
    mtf : pair of array_like, optional
        Frequencies in 1/pixel, ascending, and the MTF there; see `read_mtf`. Linear between them.
    mtf_pixel_size : float, optional
        Angstrom per pixel of the detector at the specimen; that of the maps if left out.
    fsc_weighting : bool
    lowpass : float, "final" or None
        Angstrom, with a cosine edge of two shells; ``"final"`` is the resolution found. As in RELION 3.1 and
        later there is none by default: the FSC weights end the spectrum.
    randomise_below : float
        Phases are random from where the unmasked FSC falls below it.
    force_mask : bool
        Keep the corrected curve even where the unmasked one reaches further.
    counting : {"friedel", "relion"}
        How the stored half of the spectrum is counted, see `fsc`: ``"relion"`` reproduces the columns of
        RELION's table, ``"friedel"`` counts every Fourier voxel once.
    rng : Generator or int, optional
        Of the random phases.
    progress : bool, optional
        Whether to draw a progress bar; default: on a terminal.
    """
    size = _single_pixel_size(pixel_size)
    first, second, weight = _checked(half1, half2, mask)
    if first.ndim != 3 or len(set(first.shape)) > 1:
        raise ValueError(f"post-processing takes cubic maps, got shape {first.shape}; pad or crop them")
    if np.array_equal(first, second):
        raise ValueError("the two half maps are the same map: their FSC is 1 everywhere and tells nothing")
    table = None if mtf is None else _checked_mtf(mtf, size if mtf_pixel_size is None else mtf_pixel_size)
    # transform, sharpening and the way back, beside those that are asked for
    steps = (1 if weight is None else MASKED_STEPS) + (table is not None) + fsc_weighting + 3
    with Meter("post-processing", total=steps, unit="steps", show=progress) as meter:
        curves, particle, fraction = None, None, None
        if weight is None:
            curve, passed_over = fsc(first, second, pixel_size=size, counting=counting), False
            meter.step()
        else:
            generator = np.random.default_rng(rng)
            curves = _phase_randomised(
                first, second, weight, size, randomise_below, counting, generator, meter.step
            )
            fraction, particle = mask_fraction_fsc(curves.unmasked, weight)
            passed_over = not force_mask and curves.unmasked.resolution() < curves.corrected.resolution()
            curve = curves.unmasked if passed_over else curves.corrected
            if passed_over:
                logger.warning(
                    "the unmasked curve is used in place of the corrected one; force_mask=True keeps it"
                )
        resolution = curve.resolution()
        spectrum = _Spectrum(0.5 * (first + second), size, counting)
        original = spectrum.log_amplitudes()
        meter.step()
        mtf_corrected = None
        if table is not None:
            spectrum.multiply(lambda k: _inverse_mtf(k, table, size, counting))
            mtf_corrected = spectrum.log_amplitudes()
            meter.step()
        weighted = None
        if fsc_weighting:
            gains = _fsc_weights(curve.correlation)
            spectrum.multiply(
                lambda k: gains[np.minimum(np.rint(k * first.shape[0]).astype(int), len(gains) - 1)]
            )
            weighted = spectrum.log_amplitudes()
            meter.step()
        fit = None
        if bfactor == "auto":
            latest = next(c for c in (weighted, mtf_corrected, original) if c is not None)
            fit = _fit_line(spectrum.squared_frequency, latest, fit_range)
            bfactor = 4 * fit.slope
        sharpened = None
        if bfactor != 0:
            spectrum.multiply(
                lambda k: np.where(k <= 0.5 * (1 + 1e-9), np.exp(-bfactor / 4 * (k / size) ** 2), 0.0)
            )
            sharpened = spectrum.log_amplitudes()
        meter.step()
        if lowpass == "final":
            lowpass = resolution
            if not np.isfinite(resolution):
                raise ValueError("no low-pass at the final resolution: the FSC is below 0.143 from the start")
        if lowpass is not None:
            cut = float(lowpass)
            spectrum.multiply(lambda k: lowpass_weight(k, cut, box=first.shape[0], pixel_size=size))
        result = spectrum.to_map()
        meter.step()
    return PostProcess(
        map=result,
        masked=None if weight is None else result * weight.astype(np.float32),
        fsc=curve,
        curves=curves,
        mask_fraction=fraction,
        particle=particle,
        resolution=resolution,
        mask_passed_over=passed_over,
        bfactor=float(bfactor),
        lowpass=lowpass,
        guinier=Guinier(spectrum.squared_frequency, original, mtf_corrected, weighted, sharpened, fit),
    )


def mask_fraction_fsc(unmasked: FSC, mask: ArrayLike) -> tuple[float, FSC]:
    """The unmasked curve rescaled to the part of the box that the particle fills, and the factor.

    ``f FSC / (1 + (f - 1) FSC)``, the particle FSC of cisTEM, with RELION's factor ``f = 0.476 / (fraction of
    voxels where the mask is above 0.5)``.
    """
    inside = float(np.mean(np.asarray(mask) > 0.5))
    if inside == 0:
        raise ValueError("the mask is nowhere above 0.5: it holds no particle")
    f = 0.476 / inside
    values = f * unmasked.correlation / (1 + (f - 1) * unmasked.correlation)
    curve = FSC(
        unmasked.frequency, values, unmasked.voxels, unmasked.pixel_size, unmasked.box, unmasked.fraction
    )
    return f, curve


def read_mtf(path: str | os.PathLike[str]) -> tuple[NDArray, NDArray]:
    """Frequencies (1/pixel) and values of the MTF of a detector, from the STAR file that RELION takes."""
    from ..io import read_star

    for block in read_star(path).values():
        if "rlnResolutionInversePixel" in block and "rlnMtfValue" in block:
            return block.numbers("rlnResolutionInversePixel"), block.numbers("rlnMtfValue")
    raise ValueError(
        f"{os.fspath(path)} holds no MTF: no table has the columns rlnResolutionInversePixel and rlnMtfValue"
    )


def write_postprocess(
    root: str | os.PathLike[str],
    result: PostProcess,
    *,
    like: Map | None = None,
    halves: tuple[str, str] | None = None,
    mask: str | None = None,
) -> list[str]:
    """Write the files that RELION's post-processing leaves, under its names; each is complete or not there.

    ``ROOT.mrc``, ``ROOT_masked.mrc`` (with a mask), ``ROOT.star`` (tables general, fsc and guinier with
    RELION's column names) and ``ROOT_fsc.xml`` (the curve behind the resolution, for EMDB).

    Parameters
    ----------
    root : path-like
        ``postprocess`` by RELION's custom.
    like : Map, optional
        Gives origin and start to the maps.
    halves : pair of str, optional
        Names of the half maps, for the table.
    mask : str, optional
        Name of the mask, for the table.

    Returns
    -------
    list of str
        The files.
    """
    from ..io import write_map, write_star

    root = os.fspath(root)
    size = result.fsc.pixel_size
    files = [f"{root}.mrc"]
    write_map(files[0], result.map, size, like=like, label="post-processed")
    if result.masked is not None:
        files.append(f"{root}_masked.mrc")
        write_map(files[-1], result.masked, size, like=like, label="post-processed, masked")
    files.append(f"{root}.star")
    write_star(files[-1], _tables(result, halves, mask))
    files.append(f"{root}_fsc.xml")
    kind = "FSC corrected for the mask" if result.curves and not result.mask_passed_over else "unmasked FSC"
    write_fsc_xml(files[-1], result.fsc, title=f"invcryo {kind}")
    return files


def _tables(result: PostProcess, halves: tuple[str, str] | None, mask: str | None) -> dict[str, Any]:
    curve, curves, guinier = result.fsc, result.curves, result.guinier
    general: dict[str, Any] = {
        "rlnFinalResolution": f"{result.resolution if np.isfinite(result.resolution) else 999.0:.6f}",
        "rlnBfactorUsedForSharpening": f"{result.bfactor:.6f}",
    }
    if halves is not None:
        general |= {"rlnUnfilteredMapHalf1": halves[0], "rlnUnfilteredMapHalf2": halves[1]}
    if result.mask_fraction is not None:
        general["rlnParticleBoxFractionSolventMask"] = f"{result.mask_fraction:.6f}"
    if mask is not None:
        general["rlnMaskName"] = mask
    if curves is not None and curves.randomised_from is not None:
        general["rlnRandomiseFrom"] = f"{1 / curve.frequency[curves.randomised_from]:.6f}"
    if guinier.fit is not None:
        general |= {
            "rlnFittedSlopeGuinierPlot": f"{guinier.fit.slope:.6f}",
            "rlnFittedInterceptGuinierPlot": f"{guinier.fit.intercept:.6f}",
            "rlnCorrelationFitGuinierPlot": f"{guinier.fit.correlation:.6f}",
        }
    shells = np.arange(len(curve.frequency))
    angstrom = np.concatenate([[999.0], 1 / curve.frequency[1:]])  # RELION's word for infinity
    table = {
        "rlnSpectralIndex": [f"{i:d}" for i in shells],
        "rlnResolution": _text(1 / angstrom),
        "rlnAngstromResolution": _text(angstrom),
    }
    name = "rlnFourierShellCorrelation"
    if curves is None:
        table[f"{name}UnmaskedMaps"] = _text(curve.correlation)
    else:
        table[f"{name}Corrected"] = _text(curve.correlation)
        if result.particle is not None:
            table[f"{name}ParticleMaskFraction"] = _text(result.particle.correlation)
        table[f"{name}UnmaskedMaps"] = _text(curves.unmasked.correlation)
        table[f"{name}MaskedMaps"] = _text(curves.masked.correlation)
        if curves.randomised is not None:
            random = curves.randomised.correlation
            table["rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps"] = _text(random)
    plot = {
        "rlnResolutionSquared": [f"{x:.6e}" for x in guinier.squared_frequency],
        "rlnLogAmplitudesOriginal": _text(guinier.original),
    }
    for column, values in (
        ("rlnLogAmplitudesMTFCorrected", guinier.mtf_corrected),
        ("rlnLogAmplitudesWeighted", guinier.weighted),
        ("rlnLogAmplitudesSharpened", guinier.sharpened),
    ):
        if values is not None:
            plot[column] = _text(values)
    if guinier.fit is not None:
        plot["rlnLogAmplitudesIntercept"] = _text(np.full(len(shells), guinier.fit.intercept))
    return {"general": general, "fsc": table, "guinier": plot}


def _text(values: NDArray) -> list[str]:
    return [f"{v:.6f}" for v in values]


class _Spectrum:
    """The half-spectrum of a cubic map, changed in place by factors that depend on the radius only."""

    def __init__(self, volume: NDArray, pixel_size: float, counting: Counting) -> None:
        self._shape, self._counting = volume.shape, counting
        self._data = fft.rfftn(volume, overwrite_x=True)
        box = volume.shape[0]
        self._count = box // 2 + 1
        self.squared_frequency = (np.arange(self._count) / (box * pixel_size)) ** 2

    def multiply(self, factor: Callable[[NDArray], NDArray]) -> None:
        """Multiply by ``factor(radius in cycles/pixel)``."""
        z, y, x = frequencies(self._shape, half=True)
        across = y**2 + x**2
        for i in range(self._shape[0]):  # a plane at a time, for memory
            self._data[i] *= factor(np.sqrt(z[i] ** 2 + across[0]))

    def log_amplitudes(self) -> NDArray:
        sums = np.zeros((2, self._count))
        for rows, shells, weight in _parts(self._shape, self._counting):
            inside = shells < self._count
            index, w = shells[inside], weight[inside]
            amplitude = np.abs(self._data[rows][inside])
            sums[0] += np.bincount(index, weights=w * amplitude, minlength=self._count)
            sums[1] += np.bincount(index, weights=w, minlength=self._count)
        mean = sums[0] / sums[1] / np.prod(self._shape, dtype=float)
        return np.log(mean, out=np.full(self._count, _EMPTY), where=mean > 0)

    def to_map(self) -> NDArray:
        return fft.irfftn(self._data, s=self._shape).astype(np.float32, copy=False)


def _fsc_weights(correlation: NDArray) -> NDArray:
    """``sqrt(2 FSC / (1 + FSC))`` per shell up to the first below 1e-4, then 0, with a 0 for the corners."""
    good = correlation >= _LEAST_FSC
    good[0] = True  # the product of the means, which says nothing of noise, may be negative
    good = np.logical_and.accumulate(good)
    value = np.where(good, correlation, 0.0)
    value[0] = 1.0 if correlation[0] < _LEAST_FSC else correlation[0]
    return np.append(np.sqrt(2 * value / (1 + value)), 0.0)


def _fit_line(squared: NDArray, values: NDArray, fit_range: tuple[float, float]) -> GuinierFit:
    low, high = fit_range
    if not (low > high >= 0):
        raise ValueError(f"fit_range runs from the lowest resolution to the highest, got {low:g} to {high:g}")
    # in angstrom, with room for rounding at the two ends
    angstrom = 1 / np.sqrt(np.maximum(squared, 1e-30))
    used = (angstrom <= low * (1 + 1e-9)) & (angstrom >= high * (1 - 1e-9)) & (values > _EMPTY)
    if np.count_nonzero(used) < 2:
        raise ValueError(
            f"no B-factor can be fitted between {low:g} and {max(high, angstrom[-1]):.3g} angstrom:"
            f" {np.count_nonzero(used)} shells there have signal, 2 are needed; give bfactor= a number (0 for"
            " none), or begin the fit at a lower resolution (fit_range)"
        )
    x, y = squared[used], values[used]
    dx, dy = x - x.mean(), y - y.mean()
    slope = float(dx @ dy / (dx @ dx))
    power = float(dy @ dy)
    correlation = float((dx @ dy) ** 2 / ((dx @ dx) * power)) if power > 0 else 1.0
    return GuinierFit(slope, float(y.mean() - slope * x.mean()), correlation)


def _checked_mtf(mtf: tuple[ArrayLike, ArrayLike], pixel_size: float) -> tuple[NDArray, NDArray]:
    """Frequencies in 1/angstrom and values."""
    frequency, value = (np.asarray(v, dtype=float) for v in mtf)
    if frequency.ndim != 1 or frequency.shape != value.shape or len(frequency) < 2:
        raise ValueError(f"the MTF takes two equal rows of numbers, got {frequency.shape} and {value.shape}")
    if not (np.diff(frequency) > 0).all():
        raise ValueError("the frequencies of the MTF do not ascend")
    if not (np.isfinite(value).all() and value.min() > 1e-10):
        raise ValueError(f"the MTF holds values that are not positive (least: {value.min():g})")
    if not pixel_size > 0:
        raise ValueError(f"mtf_pixel_size must be positive angstrom, got {pixel_size}")
    return frequency / pixel_size, value


def _inverse_mtf(
    radius: NDArray, table: tuple[NDArray, NDArray], pixel_size: float, counting: Counting
) -> NDArray:
    """1 / MTF below Nyquist; samples at Nyquist and in the corners stay as they are, as in RELION."""
    frequency, value = table
    wanted = radius / pixel_size
    if counting == "relion":  # its step is short by one part in n: it looks a row too far near the end
        rows = len(frequency)
        row = np.floor(wanted * rows / (frequency[-1] - frequency[0])).astype(int)
        low = np.clip(row, 0, rows - 2)
        slope = (value[low + 1] - value[low]) / (frequency[low + 1] - frequency[low])
        found = value[low] + slope * (wanted - frequency[low])
        found = np.where(row >= rows - 1, value[-1], np.where(row <= 0, value[0], found))
    else:
        found = np.interp(wanted, frequency, value)
    return np.where(radius < 0.5 * (1 - 1e-9), 1 / found, 1.0)
