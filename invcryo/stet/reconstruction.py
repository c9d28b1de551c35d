"""A map from a tilt series of which only some pixels were measured."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..backend import fft
from ..costs import L21, LeastSquares, Quadratic
from ..direct import fbp, wbp
from ..inversion import penalty_for, regularised_map
from ..operators import Gradient, ImageFilter, Mask, SingleAxisProjector, ZeroPad
from ..progress import track
from ..selection import natural_lambda
from ..solvers import Result, run, sirt
from ..window import KaiserBessel, Window
from .analysis import hold_out

__all__ = ["METHODS", "SeriesMap", "inpaint", "measured", "reconstruct_series", "series_model"]

log = logging.getLogger(__name__)

METHODS = ("tv", "wavelet", "two-step", "zero-fill", "sirt", "wbp")

_FEW_VIEWS = 5  # below which a map is little more than its prior
_HELD = 0.1  # of the measured pixels, for the choice of lambda
_ROWS = 32  # along the tilt axis, on which lambda is chosen
_STEP = 4.0  # between two lambdas of the search
_TRIALS = 10


@dataclass
class SeriesMap:
    """What `reconstruct_series` returns.

    Attributes
    ----------
    volume : ndarray, (nz, ny, nx)
        Voxels, in units of the images per pixel.
    method : str
    lam : float or None
        Weight of the prior; None for methods without one.
    coefficients : ndarray or None
        On the window of the reconstruction; None where there are none.
    info : dict
        ``views``; ``fraction`` of the pixels measured; ``seconds``; where they apply ``iterations``, ``gap``,
        ``stopped_by``, ``trials`` of lambda with their held-out errors (relative to the pixels' root mean square), and
        ``inpainting``, the weight of the first of two steps.
    notes : list of str
        What to know before believing the map.
    """

    volume: NDArray
    method: str
    lam: float | None
    coefficients: NDArray | None = None
    info: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def measured(images: Any, mask: ArrayLike | None = None) -> tuple[NDArray, NDArray]:
    """Images with zeros where nothing was measured, and the mask of the pixels that were.

    Parameters
    ----------
    images : (n, height, width)
        float64 stays, all else becomes float32. NaN marks pixels that were not measured where there is no mask.
    mask : (n, height, width) or (height, width), bool, optional
        True where measured.
    """
    sizes = {np.shape(image) for image in images}
    if len(sizes) > 1:
        raise ValueError(f"the images of a series have one size, got {', '.join(map(str, sorted(sizes)))}")
    y = np.asarray(images)
    if y.ndim != 3 or 0 in y.shape:
        raise ValueError(f"a series has shape (n, height, width), got {y.shape}")
    if y.dtype != np.float64:
        y = y.astype(np.float32)
    if mask is None:
        kept = ~np.isnan(y)
        if not kept.all():
            log.info("%d of %d pixels are NaN: taken as not measured", np.count_nonzero(~kept), kept.size)
    else:
        kept = np.asarray(mask)
        if kept.dtype != bool:
            raise TypeError(
                f"a mask must be boolean, True where measured, got {kept.dtype}; write mask > 0.5"
            )
        if kept.shape not in (y.shape, y.shape[1:]):
            raise ValueError(f"the mask has shape {kept.shape}, the images {y.shape}")
        kept = np.broadcast_to(kept, y.shape)
    empty = np.flatnonzero(~kept.any(axis=(1, 2)))
    if len(empty):
        raise ValueError(
            f"no pixel of image {empty[0]} (counted from 0) is measured, nor of {len(empty) - 1} others: leave these"
            " images and their angles out, images[keep], angles[keep]"
        )
    bad = ~np.isfinite(y) & kept
    if bad.any():
        raise ValueError(
            f"image {np.argwhere(bad)[0][0]} (counted from 0) holds NaN or infinite pixels that count as measured: set"
            " the mask to False there"
        )
    return np.where(kept, y, 0).astype(y.dtype), kept


def series_model(
    angles: ArrayLike,
    volume_shape: Sequence[int],
    image_shape: Sequence[int],
    *,
    window: Window | None = None,
    axis: str = "y",
    in_plane_angle: float = 0.0,
    shifts: ArrayLike | None = None,
    dtype: Any = np.float32,
) -> tuple[SingleAxisProjector, ZeroPad]:
    """The projector of a series, on images wide enough for the whole volume, and the place of the real ones in these.

    Tilted, a slab reaches beyond its images. The projector takes images as periodic; so they are widened, and what is
    beyond the real ones counts as not measured.
    """
    window = KaiserBessel.narrow() if window is None else window
    make = {
        "window": window,
        "volume_shape": volume_shape,
        "axis": axis,
        "in_plane_angle": in_plane_angle,
        "shifts": shifts,
        "dtype": dtype,
    }
    poses = SingleAxisProjector(angles, image_shape=image_shape, **make).poses
    nz, ny, nx = volume_shape
    reach = np.abs(poses.matrices[:, :2]) @ np.array([nx, ny, nz]) + 2 * np.abs(poses.shifts)
    width, height = np.ceil(reach.max(axis=0) - 1e-6).astype(int)
    lib = fft(np.empty(0))
    wide = [
        m if m >= n else int(lib.next_fast_len(int(n), True))
        for m, n in zip(image_shape, (height, width), strict=True)
    ]
    A = SingleAxisProjector(angles, image_shape=wide, **make)
    return A, ZeroPad((len(poses), *image_shape), A.oshape, dtype)


@dataclass
class _Series:
    """Measured pixels, their geometry, and how they are to be explained."""

    images: NDArray
    mask: NDArray
    angles: NDArray
    depth: int
    axis: str
    in_plane_angle: float
    shifts: NDArray
    positivity: bool
    window: Window
    progress: bool | None

    @property
    def volume_shape(self) -> tuple[int, int, int]:
        height, width = self.images.shape[1:]
        return (height, self.depth, width) if self.axis == "z" else (self.depth, height, width)

    def model(self) -> tuple[SingleAxisProjector, ZeroPad]:
        return series_model(
            self.angles,
            self.volume_shape,
            self.images.shape[1:],
            window=self.window,
            axis=self.axis,
            in_plane_angle=self.in_plane_angle,
            shifts=self.shifts,
            dtype=self.images.dtype,
        )

    def data(self) -> LeastSquares:
        A, place = self.model()
        return LeastSquares(self._pixels(place) @ A, place(self.images), progress=False)

    def data_apart(self) -> tuple[LeastSquares, SingleAxisProjector]:
        """The same as a cost of images, and the projector that makes them."""
        A, place = self.model()
        return LeastSquares(self._pixels(place), place(self.images), progress=False), A

    def _pixels(self, place: ZeroPad) -> Mask:
        return Mask(place(self.mask.astype(self.images.dtype)) > 0, self.images.dtype)

    def with_pixels(self, mask: NDArray, images: NDArray | None = None) -> _Series:
        chosen = self.images if images is None else images
        return _Series(**{**self.__dict__, "mask": mask, "images": np.where(mask, chosen, 0)})

    def part(self) -> _Series:
        """A band of rows along the tilt axis, where the images vary most: enough to choose lambda on."""
        if self.in_plane_angle:
            return self
        along = 2 if self.axis == "x" else 1
        n = self.images.shape[along]
        if n <= _ROWS:
            return self
        energy = np.square(self.images, dtype=np.float64).sum(axis=(0, 3 - along))
        first = int(np.argmax(np.convolve(energy, np.ones(_ROWS), "valid")))
        rows = (slice(None),) * along + (slice(first, first + _ROWS),)
        return _Series(**{**self.__dict__, "images": self.images[rows], "mask": self.mask[rows]})


def reconstruct_series(
    images: Any,
    angles: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    method: str = "tv",
    lam: float | str = "auto",
    thickness: float | None = None,
    positivity: bool = True,
    axis: str = "y",
    in_plane_angle: float = 0.0,
    shifts: ArrayLike | None = None,
    window: Window | None = None,
    split_images: bool = False,
    max_iter: int = 200,
    tolerance: float = 1e-2,
    rng: np.random.Generator | int | None = 0,
    progress: bool | None = None,
) -> SeriesMap:
    """The map of a tilt series, from the pixels that were measured.

    Parameters
    ----------
    images : (n, height, width)
        Line integrals: matter positive, background zero. NaN marks what was not measured.
    angles : (n,)
        Radians.
    mask : bool, optional
        True where measured.
    method : str
        "tv" : ``min 1/2 ||S H c - b||^2 + lam TV(c)`` (Donati 2020, eq. 3.6), with ``c >= 0``.
        "wavelet" : the same with the l1 norm of wavelet coefficients.
        "two-step" : missing pixels of each image by total variation, then "tv" on the full images (Saghi et al. 2015).
        "wbp" : the same first step, then filtered back-projection.
        "zero-fill" : zeros for missing pixels, each image divided by the part of it that was measured, then filtered
        back-projection.
        "sirt" : simultaneous iterative reconstruction from the measured pixels, stopped by held-out ones.
    lam : float or "auto"
        Weight of the prior. "auto": the one from which pixels that were held out, a tenth, are predicted best, on a
        band of rows along the tilt axis.
    thickness : float, optional
        Of the object along the beam at tilt 0, in pixels; there is nothing outside of it. Default: the width of the
        images across the tilt axis.
    positivity : bool
        Where a method allows it.
    axis, in_plane_angle, shifts
        As in `SingleAxisProjector`.
    window : Window, optional
        Basis of the coefficients; default ``KaiserBessel.narrow()``. A wide one with positive coefficients is nearer to
        smooth objects, and far from those with sharp edges; the held-out errors in ``info["trials"]`` tell which is
        better. For "sirt" ``KaiserBessel.wide()``: it needs projections without a ripple below zero.
    split_images : bool
        Let the projections be a variable of their own in "tv" and "wavelet", so that the linear equations have the
        Toeplitz kernel of ``H^T H`` whatever the mask. The same map by another way, in twice the iterations.
    tolerance, max_iter
        As in `regularised_map`; "sirt" takes ``max_iter`` iterations at most.
    rng : seed or Generator
        Draws the pixels that are held out.
    """
    start = time.perf_counter()
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: expected {', '.join(METHODS)}")
    if isinstance(lam, str) and lam != "auto":
        raise ValueError(f"lam is a number or 'auto', got {lam!r}")
    if thickness is not None and not 0 < thickness < math.inf:
        raise ValueError(f"the thickness of the object is a positive number of pixels, got {thickness}")
    y, kept = measured(images, mask)
    theta = np.atleast_1d(np.asarray(angles, float))
    if theta.shape != (len(y),):
        raise ValueError(
            f"{len(y)} images but {theta.size} angles: the angles belong to another series, or images were left out of"
            " one of the two"
        )
    across = y.shape[1] if axis == "x" else y.shape[2]
    if window is None:
        window = KaiserBessel.wide() if method == "sirt" else KaiserBessel.narrow()
    series = _Series(
        y,
        kept,
        theta,
        across if thickness is None else math.ceil(thickness),
        axis,
        float(in_plane_angle),
        np.zeros((len(y), 2)) if shifts is None else np.asarray(shifts, float),
        positivity,
        window,
        progress,
    )
    out = SeriesMap(np.empty(0), method, None)
    out.info.update(views=len(y), fraction=float(kept.mean()))
    if len(y) < _FEW_VIEWS:
        out.notes.append(f"{len(y)} views: the map shows its prior more than the object")
        warnings.warn(f"a series of {out.notes[-1]}", RuntimeWarning, stacklevel=2)
    generator = np.random.default_rng(rng)
    if method == "zero-fill":
        share = series.mask.mean(axis=(1, 2), dtype=np.float64)[:, None, None]
        out.volume = _back_projected(series, y / share.astype(y.dtype))
    elif method == "sirt":
        _sirt(series, out, max_iter, generator)
    else:
        if method in ("two-step", "wbp") and not kept.all():
            full, out.info["inpainting"] = inpaint(y, kept, rng=generator, progress=progress)
            y = full
        if method == "wbp":
            out.volume = _back_projected(series, y)
        else:
            _variational(series, out, y, lam, split_images, tolerance, max_iter, generator)
    out.info["seconds"] = time.perf_counter() - start
    return out


# -- variational methods ----------------------------------------------------------------------------------------


def _variational(
    series: _Series,
    out: SeriesMap,
    full: NDArray,
    lam: float | str,
    split_images: bool,
    tolerance: float,
    max_iter: int,
    rng: np.random.Generator,
) -> None:
    prior = "wavelet" if out.method == "wavelet" else "tv"
    two_steps = "inpainting" in out.info

    def solve(part: _Series, weight: float | None, label: str) -> tuple[Result, float]:
        data = part.data().quadratic()
        penalty = penalty_for(prior, data.Q.ishape)
        pixels = int(part.mask.sum())
        value = 0.1 * natural_lambda(data, penalty, pixels) if weight is None else weight
        with warnings.catch_warnings():
            if label != "reconstruction":  # a trial need not be exact
                warnings.simplefilter("ignore", RuntimeWarning)
            result = regularised_map(
                data,
                penalty,
                value,
                pixels,
                positivity=part.positivity,
                tolerance=tolerance if label == "reconstruction" else 3 * tolerance,
                max_iter=max_iter,
                progress=part.progress,
                label=label,
                apart=part.data_apart() if split_images else None,
            )
        return result, value

    if isinstance(lam, str):
        part = series.part()
        fitted, held = _held_out(part.mask, rng)
        trial = part.with_pixels(fitted)
        if two_steps:
            filled, _ = inpaint(trial.images, fitted, out.info["inpainting"], progress=False)
            trial = part.with_pixels(np.ones_like(fitted), filled)
        A, place = part.model()

        def score(weight: float | None) -> tuple[float, float]:
            result, value = solve(trial, weight, "trial of lambda")
            if result.stopped_by == "interrupt":
                raise KeyboardInterrupt
            return value, _error(part.images, place.H(A(result.x)), held)

        lam, out.info["trials"] = _search(score)
        errors = [t["held_out"] for t in out.info["trials"]]
        best = errors.index(min(errors))
        if best in (0, len(errors) - 1):
            end = "smaller" if best == 0 else "larger"
            out.notes.append(
                f"lambda: held-out pixels were predicted the better the {end} it was, and the search ended at"
                f" {lam:.3g}; do the images have noise, and is their background 0?"
            )
            log.warning(out.notes[-1])
        # what was fitted is a part of what there is: the weight of a norm grows as the root of the data
        lam *= 1.0 if two_steps else (1 - _HELD) ** -0.5
    final = series.with_pixels(np.ones_like(series.mask), full) if two_steps else series
    result, _ = solve(final, float(lam), "reconstruction")
    out.lam, out.coefficients = float(lam), result.x
    out.volume = series.window.synthesize(result.x)
    out.info.update(
        iterations=result.history["iteration"][-1],
        gap=result.history["gap"][-1] if "gap" in result.history else None,
        stopped_by=result.stopped_by,
    )


def _held_out(mask: NDArray, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    if int(mask.sum(axis=(1, 2)).min()) < 1 / _HELD:
        raise ValueError(
            f"an image has only {int(mask.sum(axis=(1, 2)).min())} measured pixels where lambda is chosen, too few to"
            " hold some out: give lam"
        )
    return hold_out(np.ascontiguousarray(mask), _HELD, rng=rng)


def _error(images: NDArray, predicted: NDArray, held: NDArray) -> float:
    """Of held-out pixels, relative to their root mean square."""
    seen = images[held].astype(np.float64)
    return float(np.sqrt(np.mean((predicted[held] - seen) ** 2) / max(np.mean(seen**2), 1e-300)))


def _search(score: Callable[[float | None], tuple[float, float]]) -> tuple[float, list[dict[str, float]]]:
    """Downhill in steps of a factor, then to the vertex of the parabola through the best three.

    ``score(lam)`` returns lam, or where it is None one to begin with, and the error.
    """
    start, error = score(None)
    errors = {0: error}
    direction = -1
    while len(errors) < _TRIALS:
        best = min(errors, key=errors.__getitem__)
        beside = next((k for k in (best + direction, best - direction) if k not in errors), None)
        if beside is None:
            break
        errors[beside] = score(start * _STEP**beside)[1]
        direction = 1 if min(errors, key=errors.__getitem__) > best else direction
    best = min(errors, key=errors.__getitem__)
    vertex = float(best)
    if best - 1 in errors and best + 1 in errors:
        left, here, right = (errors[best + i] for i in (-1, 0, 1))
        bend = left - 2 * here + right
        vertex += 0.5 * (left - right) / bend if bend > 0 else 0.0
    trials = [{"lam": start * _STEP**k, "held_out": errors[k]} for k in sorted(errors)]
    return start * _STEP**vertex, trials


def inpaint(
    images: NDArray,
    mask: NDArray,
    lam: float | None = None,
    *,
    max_iter: int = 100,
    tolerance: float = 1e-2,
    rng: np.random.Generator | int | None = 0,
    progress: bool | None = None,
) -> tuple[NDArray, float]:
    """Missing pixels of each image by total variation, the first step of Saghi et al. 2015.

    Parameters
    ----------
    images, mask : (n, height, width)
        As from `measured`.
    lam : float, optional
        ``min 1/2 ||S x - b||^2 + lam TV(x)``; default: from pixels held out of the image with the largest sum.

    Returns
    -------
    ndarray, float
        Images and ``lam``. Measured pixels are denoised with the others.
    """

    def solve(image: NDArray, pixels: NDArray, weight: float | None) -> tuple[NDArray, float]:
        S = Mask(pixels, image.dtype)
        data = Quadratic(S, image * pixels, 0.5 * float(np.square(image[pixels], dtype=np.float64).sum()))
        penalty = L21() @ Gradient(image.shape, dtype=image.dtype)
        n = int(pixels.sum())
        value = 0.1 * natural_lambda(data, penalty, n) if weight is None else weight
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            result = regularised_map(
                data, penalty, value, n, tolerance=tolerance, max_iter=max_iter, progress=False
            )
        if result.stopped_by == "interrupt":
            raise KeyboardInterrupt
        return result.x, value

    if lam is None:
        i = int(np.argmax(images.sum(axis=(1, 2), dtype=np.float64)))
        fitted, held = (m[0] for m in _held_out(mask[i : i + 1], np.random.default_rng(rng)))

        def score(weight: float | None) -> tuple[float, float]:
            x, value = solve(images[i], fitted, weight)
            return value, _error(images[i], x, held)

        lam, _ = _search(score)
    out = np.empty_like(images)
    for k in track(range(len(images)), "inpainting", unit="image", show=progress):
        out[k] = images[k] if mask[k].all() else solve(images[k], mask[k], lam)[0]
    return out, float(lam)


# -- the others ---------------------------------------------------------------------------------------------------


def _back_projected(series: _Series, images: NDArray) -> NDArray:
    """Of full images, by the ramp of a single axis, or the exact weights of any geometry."""
    if series.shifts.any() and not series.in_plane_angle:
        images = ImageFilter.from_shifts(-series.shifts, images.shape[1:], dtype=images.dtype)(images)
    if series.in_plane_angle:
        poses = series.model()[0].poses
        return wbp(images, poses, volume_shape=series.volume_shape)
    return fbp(images, series.angles, axis=series.axis, volume_shape=series.volume_shape)


def _sirt(series: _Series, out: SeriesMap, max_iter: int, rng: np.random.Generator) -> None:
    """As many iterations as predict held-out pixels best."""
    part = series.part()
    fitted, held = _held_out(part.mask, rng)
    data = part.with_pixels(fitted).data()
    A, place = part.model()
    errors: list[float] = []

    def watch(state: Any) -> None:
        errors.append(_error(part.images, place.H(A(state.x)), held))
        if len(errors) > 10 and min(errors[-5:]) > min(errors):
            raise StopIteration

    run(
        sirt(data.A, data.y, nonnegative=series.positivity),
        max_iter,
        callback=watch,
        label="trial",
        progress=False,
    )
    best = int(np.argmin(errors)) + 1
    whole = series.data()
    result = run(
        sirt(whole.A, whole.y, nonnegative=series.positivity), best, label="sirt", progress=series.progress
    )
    out.coefficients = result.x
    out.volume = series.window.synthesize(result.x)
    out.info.update(
        iterations=best,
        stopped_by="max_iter" if best == max_iter else "held-out pixels",
        trials=[{"iterations": i + 1, "held_out": e} for i, e in enumerate(errors)],
    )
