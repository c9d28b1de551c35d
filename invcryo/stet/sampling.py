"""Which pixels the beam visits: fewer tilts, or a few pixels of each; and the noise that a dose leaves."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..io.atomic import atomic_path
from ..io.tilt_series import TiltSeries

__all__ = [
    "KINDS",
    "Sampling",
    "add_poisson_noise",
    "image_sampling",
    "load_sampling",
    "saxton_angles",
    "tilt_sampling",
]

Kind = Literal["pixel", "block", "line", "grid"]


@dataclass(frozen=True, eq=False)
class Sampling:
    """Which tilts and pixels of a series are measured, and how they were drawn.

    Attributes
    ----------
    views : ndarray of int, (k,)
        The tilts that are kept.
    mask : ndarray of bool or None, (k, height, width)
        The pixels of these that are measured; None for all.
    shape : tuple of int, (n, height, width)
        Of the full series.
    kind : str
        "tilt", or one of `KINDS`.
    requested : float
        The fraction that was asked for; ``fraction`` is what whole tilts and pixels give.
    seed : int or None
        Gives the same sampling again; None where a generator was passed, or nothing is random.
    options : dict
        Of the kind.
    notes : tuple of str
    """

    views: NDArray
    mask: NDArray | None
    shape: tuple[int, int, int]
    kind: str
    requested: float
    seed: int | None = None
    options: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def measured(self) -> int:
        """Number of pixels measured."""
        return len(self.views) * self.shape[1] * self.shape[2] if self.mask is None else int(self.mask.sum())

    @property
    def fraction(self) -> float:
        """Part of the pixels of the full series."""
        return self.measured / (self.shape[0] * self.shape[1] * self.shape[2])

    def apply(self, series: TiltSeries) -> TiltSeries:
        """The series as it would have been measured; pixels that were not measured before stay so."""
        if series.images.shape != self.shape:
            raise ValueError(
                f"the sampling was drawn for images {self.shape}, {series.source} has {series.images.shape}"
            )
        kept = series[self.views]
        if self.mask is not None:
            mask = self.mask & kept.measured
            kept = kept.replace(mask=mask)
        return kept.replace(note=f"{self.kind} sampling, {100 * self.fraction:.3g} % of the pixels")

    def full_mask(self) -> NDArray:
        """Mask over all tilts, (n, height, width)."""
        full = np.zeros(self.shape, bool)
        full[self.views] = True if self.mask is None else self.mask
        return full

    def describe(self) -> dict[str, Any]:
        """The facts as plain values."""
        return {
            "kind": self.kind,
            "requested_fraction": self.requested,
            "fraction": self.fraction,
            "tilts": len(self.views),
            "of_tilts": self.shape[0],
            "pixels_per_tilt": self.measured / max(1, len(self.views)),
            "seed": self.seed,
            "options": self.options or {},
            "notes": list(self.notes),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``.npz``: ``mask`` over all tilts, and how it was drawn as JSON."""
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"{path}: name a file of masks .npz")
        text = json.dumps({**self.describe(), "views": self.views.tolist(), "all": self.mask is None})
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file, mask=self.full_mask(), sampling=np.frombuffer(text.encode(), dtype=np.uint8)
            )


def load_sampling(path: str | os.PathLike[str]) -> Sampling:
    """What `Sampling.save` wrote."""
    with np.load(path, allow_pickle=False) as file:
        if not {"mask", "sampling"} <= set(file.files):
            raise ValueError(f"{path} holds {', '.join(file.files)}; a sampling has mask and sampling")
        mask, d = file["mask"], json.loads(file["sampling"].tobytes())
    views = np.array(d["views"], dtype=np.intp)
    return Sampling(
        views,
        None if d["all"] else mask[views],
        mask.shape,
        d["kind"],
        d["requested_fraction"],
        d["seed"],
        d["options"],
        tuple(d["notes"]),
    )


def tilt_sampling(
    angles: ArrayLike, fraction: float, *, image_shape: Sequence[int] = (1, 1), phase: float = 0.5
) -> Sampling:
    """Keep a fraction of the tilts whole, as evenly spaced in their order as whole tilts allow.

    Parameters
    ----------
    angles : array_like, (n,)
    fraction : float
        ``max(1, round(fraction n))`` tilts are kept.
    image_shape : (height, width)
    phase : float
        Where in its interval each tilt is taken, 0 to 1: the middle by default, so that no end is favoured.
    """
    n = len(np.asarray(angles))
    _check_fraction(fraction)
    if not 0 <= phase <= 1:
        raise ValueError(f"phase must be in [0, 1], got {phase}")
    count = max(1, round(fraction * n))
    order = np.argsort(np.asarray(angles, dtype=float), kind="stable")
    places = np.minimum(np.floor((np.arange(count) + phase) * n / count).astype(np.intp), n - 1)
    views = np.sort(order[places])
    notes = () if count >= 5 else (f"only {count} of {n} tilts are left: this is hardly tomography",)
    height, width = image_shape
    return Sampling(
        views, None, (n, int(height), int(width)), "tilt", float(fraction), None, {"phase": phase}, notes
    )


def image_sampling(
    shape: Sequence[int],
    fraction: float,
    *,
    kind: Kind = "pixel",
    size: int = 4,
    jitter: int = 1,
    per_tilt: bool = True,
    rng: np.random.Generator | int | None = 0,
) -> Sampling:
    """Measure a fraction of the pixels of every tilt: exactly ``round(fraction height width)`` in each.

    Parameters
    ----------
    shape : (n, height, width)
    fraction : float
        In (0, 1].
    kind : {"pixel", "block", "line", "grid"}
        - ``"pixel"``: pixels drawn at random without replacement.
        - ``"block"``: squares of ``size`` pixels, on a lattice of random position.
        - ``"line"``: the beam crosses the image from left to right and hops up or down by at most ``jitter`` pixels
          from column to column, within a band of its own (0: straight lines at random heights).
        - ``"grid"``: every k-th pixel, nothing random: the coherent counterexample.
    size : int
        Side of a block.
    jitter : int
        Largest hop of a line.
    per_tilt : bool
        Draw each tilt on its own, or one mask for all.
    rng : int or Generator
        An integer is stored in the result, and gives the same masks again.
    """
    n, height, width = (int(v) for v in shape)
    _check_fraction(fraction)
    if kind not in _DRAW:
        raise ValueError(f"unknown kind of mask {kind!r}: expected {', '.join(KINDS)}")
    if size < 1 or jitter < 0:
        raise ValueError(f"size must be at least 1 and jitter 0 or more, got {size} and {jitter}")
    count = round(fraction * height * width)
    if count == 0:
        raise ValueError(
            f"{100 * fraction:g} % of {height} x {width} pixels is not one pixel; raise the fraction"
        )
    seed = rng if isinstance(rng, int) else None
    generator = np.random.default_rng(rng)
    mask = np.zeros((n, height, width), bool)
    for i in range(n if per_tilt else 1):
        mask[i] = _DRAW[kind](height, width, count, {"size": size, "jitter": jitter}, generator)
    if not per_tilt:
        mask[1:] = mask[0]
    options: dict[str, Any] = {"per_tilt": per_tilt}
    options |= {"size": size} if kind == "block" else {"jitter": jitter} if kind == "line" else {}
    return Sampling(np.arange(n), mask, (n, height, width), kind, float(fraction), seed, options)


def add_poisson_noise(
    series: TiltSeries,
    electrons: float,
    *,
    equal_total: bool = False,
    full_fraction: float | None = None,
    rng: np.random.Generator | int | None = 0,
) -> TiltSeries:
    """Counts of electrons in place of the images, in the units of the images.

    Parameters
    ----------
    series : TiltSeries
        Without noise, not negative; the mean of the measured pixels stands for ``electrons`` detected ones.
    electrons : float
        Mean number detected in a measured pixel, at the dwell time of a full scan.
    equal_total : bool
        False: every pixel gets the dwell time of a full scan, so that the dose falls with the fraction. True: the
        dose of the full series is spent on the pixels that are left, each of which is dwelt on ``1 / fraction`` times
        as long.
    full_fraction : float, optional
        The fraction measured (tilts included), for ``equal_total``; that of the mask by default.
    """
    if not (np.isfinite(electrons) and electrons > 0):
        raise ValueError(f"electrons must be a positive number per pixel, got {electrons}")
    known = series.measured
    if series.images[known].min() < 0:
        raise ValueError(
            f"{series.source}: images with negative values cannot be counts; subtract their background"
        )
    mean = float(series.images[known].mean(dtype=np.float64))
    if mean == 0:
        raise ValueError(f"{series.source}: the images are zero, no dose can be set")
    fraction = series.fraction if full_fraction is None else full_fraction
    _check_fraction(fraction)
    gain = electrons / mean * (1 / fraction if equal_total else 1.0)
    counts = np.random.default_rng(rng).poisson(series.images.astype(np.float64) * gain) / gain
    return series.replace(
        images=np.where(known, counts, 0).astype(series.images.dtype),
        note=f"Poisson noise of {gain * mean:.3g} electrons per measured pixel",
    )


def saxton_angles(limit_deg: float, step_deg: float) -> NDArray:
    """Saxton's tilts for a slab, degrees, from ``-limit`` to ``limit``: denser where the slab looks thicker.

    From 0 on either side, ``next = t + arcsin(sin(step) cos(t))``; about 100 tilts for 70 and 2 degrees.

    References
    ----------
    W. O. Saxton, W. Baumeister, M. Hahn, "Three-dimensional reconstruction of imperfect two-dimensional crystals",
    Ultramicroscopy 13 (1984).
    """
    if not (0 < step_deg < 90 and 0 < limit_deg < 90):
        raise ValueError(f"limit and step must lie between 0 and 90 degrees, got {limit_deg} and {step_deg}")
    sine, angles = np.sin(np.deg2rad(step_deg)), [0.0]
    while True:
        following = angles[-1] + np.rad2deg(np.arcsin(sine * np.cos(np.deg2rad(angles[-1]))))
        if following > limit_deg * (1 + 1e-12):
            break
        angles.append(float(following))
    half = np.array(angles[1:])
    return np.concatenate([-half[::-1], [0.0], half])


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise ValueError(f"a fraction lies in (0, 1], got {fraction}; 10 % is 0.1")


# -- one mask (height, width) with exactly `count` pixels ---------------------------------------------------------


def _pixels(
    height: int, width: int, count: int, options: dict[str, int], rng: np.random.Generator
) -> NDArray:
    mask = np.zeros(height * width, bool)
    mask[rng.choice(height * width, count, replace=False)] = True
    return mask.reshape(height, width)


def _blocks(
    height: int, width: int, count: int, options: dict[str, int], rng: np.random.Generator
) -> NDArray:
    size = options["size"]
    y0, x0 = rng.integers(size, size=2)
    rows, columns = -(-(height + y0) // size), -(-(width + x0) // size)
    # the blocks in random order, pixel by pixel: the last one may be cut short
    rank = rng.permutation(rows * columns).reshape(rows, columns)
    rank = np.repeat(np.repeat(rank, size, axis=0), size, axis=1)[y0 : y0 + height, x0 : x0 + width]
    return _first(rank, count)


def _lines(height: int, width: int, count: int, options: dict[str, int], rng: np.random.Generator) -> NDArray:
    jitter, paths = options["jitter"], -(-count // width)
    edges = np.floor(np.arange(paths + 1) * height / paths).astype(int)
    mask = np.zeros((height, width), bool)
    order, left = rng.permutation(paths), count
    for band in order:
        low, high = edges[band], edges[band + 1]
        length = min(width, left)
        place = int(rng.integers(low, high))
        first = int(rng.integers(width - length + 1))
        for x in range(first, first + length):
            mask[place, x] = True
            place = int(np.clip(place + rng.integers(-jitter, jitter + 1), low, high - 1))
        left -= length
    return mask


def _grid(height: int, width: int, count: int, options: dict[str, int], rng: np.random.Generator) -> NDArray:
    period = height * width / count
    step_y = min(np.sqrt(period), height)

    def every(n: int, step: float) -> NDArray:  # as evenly as whole pixels allow
        i = np.arange(n)
        return np.floor((i + 0.5) / step) != np.floor((i - 0.5) / step)

    y, x = every(height, step_y), every(width, period / step_y)
    mask = y[:, None] & x[None, :]
    flat = mask.ravel()
    chosen = np.flatnonzero(flat)
    if len(chosen) > count:
        flat[chosen[count:]] = False
    else:
        flat[np.flatnonzero(~flat)[: count - len(chosen)]] = True
    return flat.reshape(height, width)


def _first(rank: NDArray, count: int) -> NDArray:
    """The ``count`` pixels of lowest rank."""
    mask = np.zeros(rank.size, bool)
    mask[np.argsort(rank.ravel(), kind="stable")[:count]] = True
    return mask.reshape(rank.shape)


_DRAW: dict[str, Callable[[int, int, int, dict[str, int], np.random.Generator], NDArray]] = {
    "pixel": _pixels,
    "block": _blocks,
    "line": _lines,
    "grid": _grid,
}

#: Names of the masks that `image_sampling` draws.
KINDS = tuple(_DRAW)
