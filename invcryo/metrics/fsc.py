"""Fourier shell (and ring) correlation, its thresholds, the correction for masks, and its files."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft

from ..grid import frequencies, shell_index
from ..progress import Meter

__all__ = [
    "FSC",
    "MaskedFSC",
    "fsc",
    "half_bit",
    "phase_randomised_fsc",
    "read_fsc_star",
    "read_fsc_xml",
    "write_fsc_star",
    "write_fsc_xml",
]

logger = logging.getLogger(__name__)

#: How the samples of a stored half-spectrum are counted; see `fsc`.
Counting = Literal["friedel", "relion"]

#: Times that `_phase_randomised` calls ``step``, about equally far apart.
MASKED_STEPS = 5

#: Samples of the spectrum accumulated at a time; bounds the temporary arrays to some tens of megabytes.
_CHUNK = 1 << 20


def half_bit(n: ArrayLike) -> NDArray:
    """The half-bit threshold for ``n`` independent Fourier voxels per shell (van Heel and Schatz, 2005).

    It is 1 at n = 1, 0.2164 at n = 1000, and falls to 0.1716.
    """
    root = np.sqrt(np.asarray(n, dtype=float))
    return (0.2071 * root + 1.9102) / (1.2071 * root + 0.9102)  # times sqrt(n): finite at n = 0


@dataclass(frozen=True, eq=False)
class FSC:
    """A Fourier shell correlation curve; shell i holds the Fourier voxels with ``round(|k|) = i``.

    Attributes
    ----------
    frequency : ndarray, (box // 2 + 1,)
        Of the shells, 1/angstrom: ``i / (box * pixel_size)``.
    correlation : ndarray, (box // 2 + 1,)
        Real part of the normalised cross-correlation; 0 in shells where one map has no power.
    voxels : ndarray of int, (box // 2 + 1,)
        Fourier voxels of each shell of the full spectrum, both Friedel mates counted.
    pixel_size : float
        Angstrom.
    box : int
        Side of the maps in pixels (the longest one).
    fraction : float
        Part of the box that the mask leaves, ``mean(mask)``; 1 without a mask.
    """

    frequency: NDArray
    correlation: NDArray
    voxels: NDArray
    pixel_size: float
    box: int
    fraction: float = 1.0

    def threshold(self, threshold: float | str, *, symmetry_order: int = 1) -> NDArray:
        """Values of a threshold at each shell: a number, or ``"half-bit"``.

        The half-bit threshold takes ``voxels / 2 * fraction / symmetry_order`` independent voxels per shell:
        half for Friedel's law, less for the mask (it smooths the spectrum) and for an imposed symmetry of
        that order.
        """
        if isinstance(threshold, str):
            if threshold != "half-bit":
                raise ValueError(f"unknown threshold {threshold!r}: give a number or 'half-bit'")
            return half_bit(0.5 * self.voxels * self.fraction / symmetry_order)
        return np.full(len(self.correlation), float(threshold))

    def resolution(
        self, threshold: float | str = 0.143, *, interpolate: bool = False, symmetry_order: int = 1
    ) -> float:
        """Resolution in angstrom by RELION's rule: the last shell before the first one below the threshold.

        Shell 0 (the product of the means) takes no part, nor do shells whose half-bit threshold is 1 or more,
        which no curve could pass. Without any crossing this is the Nyquist resolution, an upper bound on what
        was resolved: see `beyond_nyquist`. It is infinite when the first shell is already below.

        Parameters
        ----------
        threshold : float or "half-bit"
            0.143 for two half maps, 0.5 for a map against the truth or a model.
        interpolate : bool
            Place the crossing linearly in frequency between the two shells around it.
        symmetry_order : int
            For the half-bit threshold only.
        """
        limit, crossing = self._crossing(threshold, symmetry_order)
        if crossing is None:
            return float(1 / self.frequency[-1])
        before = crossing - 1
        if before == 0:
            return float("inf")
        position = self.frequency[before]
        if interpolate:
            above = self.correlation[before] - limit[before]
            below = limit[crossing] - self.correlation[crossing]
            if above > 0:  # not so only where the shell before took no part in the test
                position += (self.frequency[crossing] - position) * above / (above + below)
        return float(1 / position)

    def beyond_nyquist(self, threshold: float | str = 0.143, *, symmetry_order: int = 1) -> bool:
        """Whether the curve never falls below the threshold, so that `resolution` is only Nyquist."""
        return self._crossing(threshold, symmetry_order)[1] is None

    def _crossing(self, threshold: float | str, symmetry_order: int) -> tuple[NDArray, int | None]:
        limit = self.threshold(threshold, symmetry_order=symmetry_order)
        below = (self.correlation < limit) & (limit < 1)
        below[0] = False
        return limit, int(np.argmax(below)) if below.any() else None


@dataclass(frozen=True, eq=False)
class MaskedFSC:
    """The four curves of a masked comparison; see `phase_randomised_fsc`.

    Attributes
    ----------
    corrected, unmasked, masked : FSC
    randomised : FSC or None
        Masked curve of the maps with random phases; None when the phases were not randomised.
    randomised_from : int or None
        Shell from which phases were random.
    """

    corrected: FSC
    unmasked: FSC
    masked: FSC
    randomised: FSC | None
    randomised_from: int | None


def fsc(
    a: ArrayLike,
    b: ArrayLike,
    *,
    pixel_size: float | Sequence[float],
    mask: ArrayLike | None = None,
    counting: Counting = "friedel",
) -> FSC:
    """Fourier shell correlation of two maps (ring correlation of two images), shells 0 to ``box // 2``.

    Parameters
    ----------
    a, b : array_like
        Of equal shape, any number of axes. Boxes that are not cubic are compared on spheres in frequency.
    pixel_size : float or pair of float
        Angstrom per pixel; the pair states that of each map, and an error results where they differ by more
        than one part in a thousand.
    mask : array_like, optional
        Multiplies both maps. A mask adds correlation of its own; see `phase_randomised_fsc`.
    counting : {"friedel", "relion"}
        ``"friedel"`` counts every Fourier voxel of the full spectrum once. ``"relion"`` sums over the stored
        half of the spectrum as it is, as RELION does: the plane ``kx = 0``, which holds both Friedel mates,
        weighs twice there. Use it to reproduce RELION's columns; the curves differ where they are noisy (by
        up to 0.01 in a box of 64, within the noise of the curve).
    """
    _check_counting(counting)
    pixel_size = _single_pixel_size(pixel_size)
    a, b, weight = _checked(a, b, mask)
    return _curve(_transform(a, weight), _transform(b, weight), a.shape, pixel_size, weight, counting)


def phase_randomised_fsc(
    a: ArrayLike,
    b: ArrayLike,
    mask: ArrayLike,
    *,
    pixel_size: float | Sequence[float],
    randomise_below: float = 0.8,
    counting: Counting = "friedel",
    rng: np.random.Generator | int | None = None,
    progress: bool | None = None,
) -> MaskedFSC:
    """FSC of two masked half maps, corrected for the correlation that the mask itself makes.

    The phases of both maps are randomised from the first shell where the *unmasked* curve is below
    ``randomise_below``; the masked curve ``n`` of these maps is what the mask makes. The corrected curve is
    the masked curve ``t`` up to one shell past the first random one, and ``(t - n) / (1 - n)`` (or 0,
    where ``n > t``) from two shells past it on (Chen et al., 2013; as RELION does, which keeps negative
    values, though).

    Where the unmasked curve never falls below ``randomise_below``, no shell is random, the corrected curve is
    the masked one, and a warning is logged.

    Parameters
    ----------
    a, b, pixel_size
        As for `fsc`.
    mask : array_like
        In [0, 1].
    randomise_below : float
    counting : {"friedel", "relion"}
        As for `fsc`. With ``"relion"``, moreover, samples become random from the radius of that shell on (not
        from half a voxel before it), each with a phase of its own, and negative corrected values stay.
    rng : Generator or int, optional
    progress : bool, optional
        Whether to draw a progress bar; default: on a terminal.
    """
    with Meter("FSC and random phases", total=MASKED_STEPS, unit="steps", show=progress) as meter:
        return _phase_randomised(
            a, b, mask, pixel_size, randomise_below, counting, np.random.default_rng(rng), meter.step
        )


def _phase_randomised(
    a: ArrayLike,
    b: ArrayLike,
    mask: ArrayLike,
    pixel_size: float | Sequence[float],
    randomise_below: float,
    counting: Counting,
    rng: np.random.Generator,
    step: Callable[[], None],
) -> MaskedFSC:
    _check_counting(counting)
    pixel_size = _single_pixel_size(pixel_size)
    a, b, weight = _checked(a, b, mask)
    transforms = [_transform(a, None), _transform(b, None)]
    unmasked = _curve(transforms[0], transforms[1], a.shape, pixel_size, None, counting)
    step()
    masked = _curve(_transform(a, weight), _transform(b, weight), a.shape, pixel_size, weight, counting)
    step()
    below = unmasked.correlation < randomise_below
    below[0] = False
    if not below.any():
        logger.warning(
            "the unmasked FSC stays above %g up to Nyquist: no phases were randomised, and the corrected"
            " curve is the masked one",
            randomise_below,
        )
        for _ in range(MASKED_STEPS - 2):
            step()
        return MaskedFSC(masked, unmasked, masked, None, None)
    start = int(np.argmax(below))
    for transform in transforms:
        _randomise_phases(transform, a.shape, start, rng, counting)
        step()
    noise = [_transform(fft.irfftn(t, s=a.shape, overwrite_x=True), weight) for t in transforms]
    randomised = _curve(noise[0], noise[1], a.shape, pixel_size, weight, counting)
    corrected = FSC(
        masked.frequency,
        _corrected(masked.correlation, randomised.correlation, start, clip=counting == "friedel"),
        masked.voxels,
        pixel_size,
        masked.box,
        masked.fraction,
    )
    result = MaskedFSC(corrected, unmasked, masked, randomised, start)
    step()
    _warn_of_mask(result)
    return result


def write_fsc_xml(path: str | os.PathLike[str], curve: FSC, *, title: str = "invcryo FSC") -> None:
    """Write a curve as the XML file that EMDB takes with a deposition (x in 1/angstrom)."""
    head = f'<fsc title={quoteattr(title)} xaxis="Resolution (A-1)" yaxis="Correlation Coefficient">'
    points = [
        f"  <coordinate>\n    <x>{x:.6f}</x>\n    <y>{y:.6f}</y>\n  </coordinate>"
        for x, y in zip(curve.frequency, curve.correlation, strict=True)
    ]
    _write_text(path, "\n".join(['<?xml version="1.0" encoding="UTF-8"?>', head, *points, "</fsc>", ""]))


def read_fsc_xml(path: str | os.PathLike[str]) -> tuple[NDArray, NDArray]:
    """Frequencies (1/angstrom) and correlations of an EMDB FSC file."""
    root = ElementTree.parse(path).getroot()
    if root.tag != "fsc":
        raise ValueError(f"{os.fspath(path)}: root element is <{root.tag}>, an EMDB FSC file has <fsc>")
    points = [(float(c.findtext("x", "nan")), float(c.findtext("y", "nan"))) for c in root.iter("coordinate")]
    values = np.array(points).reshape(-1, 2)
    if len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"{os.fspath(path)}: no coordinates, or a coordinate without x or y")
    return values[:, 0], values[:, 1]


def write_fsc_star(
    path: str | os.PathLike[str], curve: FSC | MaskedFSC, *, threshold: float | str = 0.143
) -> None:
    """Write curves as the STAR file of RELION's post-processing: tables ``general`` and ``fsc``.

    A single curve is written as the unmasked one. As in RELION, shell 0 gets a resolution of 999 angstrom,
    and so does ``rlnFinalResolution`` where no shell passes the threshold.
    """
    main = curve.corrected if isinstance(curve, MaskedFSC) else curve
    final = main.resolution(threshold)
    general = [("rlnFinalResolution", f"{final if np.isfinite(final) else 999.0:.6f}")]
    if isinstance(curve, MaskedFSC) and curve.randomised_from is not None:
        general.append(("rlnRandomiseFrom", f"{1 / main.frequency[curve.randomised_from]:.6f}"))
    shells = np.arange(len(main.frequency))
    angstrom = np.concatenate([[999.0], 1 / main.frequency[1:]])
    columns: list[tuple[str, NDArray, str]] = [
        ("rlnSpectralIndex", shells, "12d"),
        ("rlnResolution", main.frequency, "12.6f"),
        ("rlnAngstromResolution", angstrom, "12.6f"),
    ]
    if isinstance(curve, MaskedFSC):
        columns.append(("rlnFourierShellCorrelationCorrected", main.correlation, "12.6f"))
        columns.append(("rlnFourierShellCorrelationUnmaskedMaps", curve.unmasked.correlation, "12.6f"))
        columns.append(("rlnFourierShellCorrelationMaskedMaps", curve.masked.correlation, "12.6f"))
        if curve.randomised is not None:
            name = "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps"
            columns.append((name, curve.randomised.correlation, "12.6f"))
    else:
        columns.append(("rlnFourierShellCorrelationUnmaskedMaps", main.correlation, "12.6f"))
    lines = ["", "# version 30001", "", "data_general", ""]
    lines += [f"_{name:<30} {value:>12}" for name, value in general]
    lines += ["", "", "# version 30001", "", "data_fsc", "", "loop_"]
    lines += [f"_{name} #{i}" for i, (name, _, _) in enumerate(columns, start=1)]
    lines += [" ".join(format(values[i], spec) for _, values, spec in columns) for i in shells]
    _write_text(path, "\n".join([*lines, "", ""]))


def read_fsc_star(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, FSC]]:
    """Tables ``general`` (as text) and ``fsc`` of a RELION post-processing file, one `FSC` per column.

    The file tells neither the box nor the pixel size; they follow from its shells for a box that is cubic and
    of even size, as RELION's are, and so do the voxels per shell.
    """
    from gemmi import cif

    document = cif.read_file(os.fspath(path))
    blocks = {block.name: block for block in document}
    if "fsc" not in blocks:
        raise ValueError(
            f"{os.fspath(path)} has no table data_fsc; tables found: {', '.join(blocks) or 'none'}"
        )
    pairs: list[Any] = [item.pair for item in blocks["general"]] if "general" in blocks else []
    general = {pair[0].removeprefix("_"): cif.as_string(pair[1]) for pair in pairs if pair is not None}
    loop = blocks["fsc"].find_loop("_rlnAngstromResolution").get_loop()
    if loop is None:
        raise ValueError(f"{os.fspath(path)}: table data_fsc has no column rlnAngstromResolution")
    names = [tag.removeprefix("_") for tag in loop.tags]
    values = np.array([float(v) for v in loop.values]).reshape(-1, len(names))
    table = dict(zip(names, values.T, strict=True))
    box = 2 * (len(values) - 1)
    pixel_size = float(table["rlnAngstromResolution"][1] / box)
    voxels = _voxels_of_cube(box)
    frequency = np.arange(len(values)) / (box * pixel_size)
    curves = {
        name: FSC(frequency, column, voxels, pixel_size, box)
        for name, column in table.items()
        if "FourierShellCorrelation" in name
    }
    return general, curves


def _single_pixel_size(pixel_size: float | Sequence[float]) -> float:
    sizes = np.atleast_1d(np.asarray(pixel_size, dtype=float))
    if sizes.ndim != 1 or not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise ValueError(f"pixel size must be positive angstrom, got {pixel_size}")
    if sizes.max() > 1.001 * sizes.min():
        raise ValueError(
            f"the maps differ in pixel size: {' and '.join(f'{s:g}' for s in sizes)} angstrom; resample one"
            " of them, or give the right pixel_size if a header is wrong"
        )
    return float(sizes[0])


def _checked(a: ArrayLike, b: ArrayLike, mask: ArrayLike | None) -> tuple[NDArray, NDArray, NDArray | None]:
    a, b = _as_float(a), _as_float(b)
    if a.shape != b.shape:
        raise ValueError(f"the maps differ in shape: {a.shape} and {b.shape}; pad or crop one of them")
    if a.ndim == 0 or max(a.shape) < 2:
        raise ValueError(f"maps of shape {a.shape} have no Fourier shells")
    for name, v in (("first", a), ("second", b)):
        if not np.isfinite(v).all():
            raise ValueError(f"the {name} map holds NaN or infinite values")
        if v.min() == v.max():
            raise ValueError(f"the {name} map is constant ({v.flat[0]:g}): its correlation does not exist")
    if mask is None:
        return a, b, None
    mask = _as_float(mask)
    if mask.shape != a.shape:
        raise ValueError(f"the mask has shape {mask.shape}, the maps have {a.shape}")
    if not np.isfinite(mask).all() or mask.min() < 0 or mask.max() > 1 or mask.max() == 0:
        raise ValueError(
            f"the mask must lie in [0, 1] and not be empty; its values run from {mask.min():g} to"
            f" {mask.max():g}"
        )
    return a, b, mask


def _transform(volume: NDArray, mask: NDArray | None) -> NDArray:
    """Half-spectrum, complex64 for float32 maps."""
    return fft.rfftn(volume if mask is None else volume * mask.astype(volume.dtype, copy=False))


def _as_float(values: ArrayLike) -> NDArray:
    """float32 and float64 as they are, half precision as float32, integers as float64."""
    values = np.asarray(values)
    if np.iscomplexobj(values):
        raise ValueError("the FSC takes real-space maps; an array is complex")
    if values.dtype == np.float16:
        return values.astype(np.float32)
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float64)


def _check_counting(counting: str) -> None:
    if counting not in ("friedel", "relion"):
        raise ValueError(f"counting must be 'friedel' or 'relion', got {counting!r}")


def _parts(shape: Sequence[int], counting: Counting = "friedel") -> Iterator[tuple[slice, NDArray, NDArray]]:
    """Walk through a half-spectrum: rows of the first axis, their shells, and the mates each stands for."""
    last = shape[-1] // 2 + 1
    weight = np.full(last, 2.0 if counting == "friedel" else 1.0)
    weight[0] = 1.0
    if shape[-1] % 2 == 0:
        weight[-1] = 1.0
    if len(shape) == 1:
        yield slice(None), shell_index(shape), weight
        return
    for rows in _slabs(shape):
        shells = shell_index(shape, rows=rows)
        yield rows, shells, np.broadcast_to(weight, shells.shape)


def _slabs(shape: Sequence[int]) -> list[slice]:
    """Rows of the first axis of a half-spectrum, so many at a time as `_parts` takes."""
    step = max(1, _CHUNK // (int(np.prod(shape[1:-1])) * (shape[-1] // 2 + 1)))
    return [slice(start, start + step) for start in range(0, shape[0], step)]


def _curve(
    fa: NDArray,
    fb: NDArray,
    shape: Sequence[int],
    pixel_size: float,
    mask: NDArray | None,
    counting: Counting = "friedel",
) -> FSC:
    box = max(shape)
    count = box // 2 + 1
    sums = np.zeros((4, count))  # cross, power of a, power of b, voxels
    for rows, shells, weight in _parts(shape, counting):
        inside = shells < count
        index, w = shells[inside], weight[inside]
        x, y = fa[rows][inside].astype(np.complex128), fb[rows][inside].astype(np.complex128)
        terms = (x.real * y.real + x.imag * y.imag, x.real**2 + x.imag**2, y.real**2 + y.imag**2, 1.0)
        for total, term in zip(sums, terms, strict=True):
            total += np.bincount(index, weights=w * term, minlength=count)
    cross, power_a, power_b, voxels = sums
    norm = np.sqrt(power_a) * np.sqrt(power_b)
    correlation = np.divide(cross, norm, out=np.zeros(count), where=norm > 0)
    if counting == "relion":  # the noise of a shell goes by its true number of voxels
        voxels = _full_count(shape)
    fraction = 1.0 if mask is None else float(mask.mean(dtype=np.float64))
    frequency = np.arange(count) / (box * pixel_size)
    return FSC(frequency, correlation, np.rint(voxels).astype(np.int64), pixel_size, box, fraction)


def _randomise_phases(
    transform: NDArray,
    shape: Sequence[int],
    start: int,
    rng: np.random.Generator,
    counting: Counting = "friedel",
) -> None:
    """Give the samples from shell ``start`` on the phases of white noise, in place; amplitudes stay."""
    if counting == "relion":
        axes = frequencies(shape, half=True)
        squared = sum((f * max(shape)) ** 2 for f in axes)
        # k * k is whole in a cubic box, up to rounding
        beyond = squared > start**2 - 1e-6
        phases = _uniform_phases(int(np.count_nonzero(beyond)), rng)
        transform[beyond] = np.abs(transform[beyond]) * np.exp(1j * phases)
        return
    # the transform of real noise has uniform phases and the Hermitian symmetry of a real map
    noise = fft.rfftn(rng.standard_normal(shape, dtype=np.float32))
    for rows, shells, _ in _parts(shape):
        beyond = shells >= start
        part = transform[rows]
        part[beyond] = np.abs(part[beyond]) * np.exp(1j * np.angle(noise[rows][beyond]))


def _uniform_phases(count: int, rng: np.random.Generator) -> NDArray:
    return rng.uniform(0, 2 * np.pi, count)


def _corrected(masked: NDArray, randomised: NDArray, start: int, clip: bool = True) -> NDArray:
    """RELION's correction: from two shells past the first random one, for artefacts at the edge itself."""
    where = masked > randomised if clip else randomised < 1
    gain = np.divide(masked - randomised, 1 - randomised, out=np.zeros_like(masked), where=where)
    gain[: start + 2] = masked[: start + 2]
    return gain


def _warn_of_mask(result: MaskedFSC) -> None:
    curve, noise = result.corrected, result.randomised
    limit, crossing = curve._crossing(0.143, 1)
    last = len(limit) - 1 if crossing is None else crossing - 1
    if noise is not None and noise.correlation[last] > 0.1:
        logger.warning(
            "the mask alone makes a correlation of %.2f at the resolution found, %.2f angstrom: it is too"
            " tight or too sharp; use a wider or softer one",
            noise.correlation[last],
            curve.resolution(),
        )
    if result.unmasked.resolution() < curve.resolution():
        logger.warning(
            "the unmasked curve reaches %.2f angstrom, further than the corrected one, %.2f: check the mask",
            result.unmasked.resolution(),
            curve.resolution(),
        )


def _voxels_of_cube(box: int) -> NDArray:
    """Fourier voxels per shell 0 to ``box // 2`` of a cubic box."""
    return np.rint(_full_count((box,) * 3)).astype(np.int64)


def _full_count(shape: Sequence[int]) -> NDArray:
    """Fourier voxels per shell 0 to ``max(shape) // 2`` of the full spectrum, float64."""
    count = max(shape) // 2 + 1
    total = np.zeros(count)
    for _, shells, weight in _parts(shape):
        inside = shells < count
        total += np.bincount(shells[inside], weights=weight[inside], minlength=count)
    return total


def _write_text(path: str | os.PathLike[str], text: str) -> None:
    from ..io.atomic import atomic_open

    with atomic_open(path, encoding="utf-8") as file:
        file.write(text)
