"""Curves: FSC, Guinier, convergence, L-curve, CTF."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .common import COLOURS, GREY, new_axes, new_panels, open_frame, resolution_axis, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..ctf import CTF
    from ..metrics.directional import DirectionalFSC
    from ..metrics.fsc import FSC
    from ..metrics.postprocess import Guinier

__all__ = [
    "convergence",
    "ctf_curve",
    "directional_fsc",
    "fsc_curves",
    "guinier",
    "lcurve",
    "resolution_histogram",
]


def fsc_curves(
    curves: Mapping[str, FSC], thresholds: Sequence[float | str] = (0.143, 0.5), ax: Axes | None = None
) -> Axes:
    """FSC curves over frequency, with angstrom on the axis above and the resolutions in the legend.

    Parameters
    ----------
    curves : mapping of str to FSC
        Labels and curves.
    thresholds : sequence of float or "half-bit"
        Drawn in grey (the half-bit curve is that of the first FSC). The legend gives the resolution of every
        curve at each; ``≤`` marks a curve that never falls below it, which says only that Nyquist is reached.
    """
    if not curves:
        raise ValueError("no FSC curves to draw")
    ax = ax if ax is not None else new_axes((6.4, 4.6))
    open_frame(ax)
    last = max(curve.frequency[-1] for curve in curves.values())
    for i, (label, curve) in enumerate(curves.items()):
        text = ", ".join(_resolution_text(curve, threshold) for threshold in thresholds)
        ax.plot(
            curve.frequency[1:],
            curve.correlation[1:],
            label=f"{label}: {text}" if text else label,
            **style(i),
        )
    first = next(iter(curves.values()))
    limits = sorted(((str(t), first.threshold(t)) for t in thresholds), key=lambda item: item[1][-1])
    label_height = -np.inf
    for name, values in limits:
        ax.plot(first.frequency[1:], np.minimum(values[1:], 1.0), color=GREY, lw=0.9, ls=":", zorder=1)
        label_height = max(values[-1], label_height + 0.05)  # labels of close thresholds move apart
        ax.annotate(
            name,
            (1.0, label_height),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            color=GREY,
            fontsize=8,
            va="center",
        )
    ax.axhline(0, color="0.8", lw=0.8, zorder=0)
    lowest = min(float(curve.correlation[1:].min()) for curve in curves.values())
    ax.set(xlim=(0, last), ylim=(min(-0.08, lowest - 0.03), 1.04))
    ax.set(xlabel="spatial frequency (1/Å)", ylabel="Fourier shell correlation")
    resolution_axis(ax)
    # below the axes, where no curve can hide it
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, fontsize=9)
    return ax


def _resolution_text(curve: FSC, threshold: float | str) -> str:
    resolution = curve.resolution(threshold)
    sign = "≤" if curve.beyond_nyquist(threshold) else ""
    value = f"{sign}{resolution:.3g} Å" if np.isfinite(resolution) else "none"
    return f"{value} at {threshold}"


def directional_fsc(result: DirectionalFSC, axes: Sequence[Axes] | None = None) -> NDArray:
    """FSC curves of all directions, and a map of the resolution over the half sphere seen from +z.

    Parameters
    ----------
    result : DirectionalFSC
    axes : two Axes, optional
        For the curves and for the map (equal areas: Lambert's projection).

    Returns
    -------
    ndarray of Axes, (2,)
    """
    panels = (
        new_panels(1, 2, (9.4, 4.2), width_ratios=(1.25, 1)).ravel() if axes is None else np.asarray(axes)
    )
    ax, disc = panels
    open_frame(ax)
    frequency = result.whole.frequency[1:]
    ax.plot(frequency, result.curves[:, 1:].T, color=COLOURS[5], lw=0.5, alpha=0.35)
    best, poorest = (result.areas.argmax(), result.areas.argmin())
    for i, (label, values) in enumerate(
        {
            "all directions": result.whole.correlation,
            "best direction": result.curves[best],
            "poorest direction": result.curves[poorest],
        }.items()
    ):
        ax.plot(frequency, values[1:], label=label, **style(i))
    ax.axhline(result.threshold, color=GREY, lw=0.9, ls=":")
    ax.set(xlim=(0, frequency[-1]), ylim=(-0.15, 1.04))
    ax.set(xlabel="spatial frequency (1/Å)", ylabel=f"FSC in cones of {result.half_angle:g}°")
    resolution_axis(ax)
    title = f"least over largest area: {result.cfar_like:.2f}"
    ax.legend(frameon=False, fontsize=9, title=title, loc="lower left")
    x, y, z = result.axes.T
    scale = np.sqrt(2 / (1 + z)) / np.sqrt(2)  # the equator at radius 1
    finite = np.isfinite(result.resolution)
    dots = disc.scatter(
        (x * scale)[finite], (y * scale)[finite], c=result.resolution[finite], cmap="viridis", s=42
    )
    disc.scatter((x * scale)[~finite], (y * scale)[~finite], color=COLOURS[1], marker="x", s=30)
    turn = np.linspace(0, 2 * np.pi, 200)
    for tilt in (30, 60, 90):
        radius = np.sqrt(2) * np.sin(np.deg2rad(tilt) / 2)
        disc.plot(radius * np.cos(turn), radius * np.sin(turn), color="0.75", lw=0.7, zorder=0)
        disc.annotate(f"{tilt}°", (0, radius), color=GREY, fontsize=8, ha="center", va="bottom")
    disc.set(aspect="equal", xticks=[], yticks=[], xlabel="x →", ylabel="y →", title="z axis in the middle")
    disc.spines[:].set_visible(False)
    disc.figure.colorbar(dots, ax=disc, shrink=0.8, label=f"resolution at {result.threshold:g} (Å)")
    return panels


def guinier(data: Guinier, ax: Axes | None = None) -> Axes:
    """Guinier plot: logarithm of the mean amplitude of each shell over squared frequency, step by step.

    Empty shells are left out; the line is the fit of the B-factor over the whole range.
    """
    ax = ax if ax is not None else new_axes((6.4, 4.6))
    open_frame(ax)
    curves = {
        "mean of the half maps": data.original,
        "divided by the MTF": data.mtf_corrected,
        "weighted by the FSC": data.weighted,
        "sharpened": data.sharpened,
    }
    lowest = np.inf
    for i, (label, values) in enumerate(curves.items()):
        if values is None:
            continue
        shown = values > -99.0
        shown[0] = False  # the mean of the map, far above all else
        ax.plot(data.squared_frequency[shown], values[shown], label=label, **style(i))
        lowest = min(lowest, float(values[shown].min(initial=np.inf)))
    if data.fit is not None:
        x = data.squared_frequency[[0, -1]]
        label = f"fit: B = {4 * data.fit.slope:.1f} Å², r² = {data.fit.correlation:.3f}"
        ax.plot(x, data.fit.intercept + data.fit.slope * x, color=GREY, lw=1, label=label, zorder=1)
    if np.isfinite(lowest):
        ax.set_ylim(bottom=lowest - 0.5)  # the line may go far below the curves
    ax.set(xlim=(0, data.squared_frequency[-1]))
    ax.set(xlabel="squared spatial frequency (1/Å²)", ylabel="ln of the mean amplitude")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, fontsize=9, ncols=2)
    return ax


def resolution_histogram(values: ArrayLike, *, whole: float | None = None, ax: Axes | None = None) -> Axes:
    """Histogram of local resolutions in angstrom, with their median and the resolution of the whole map."""
    shown = np.asarray(values, dtype=float).ravel()
    shown = shown[np.isfinite(shown)]
    if shown.size == 0:
        raise ValueError("no resolutions to draw")
    ax = ax if ax is not None else new_axes((6.4, 4.0))
    open_frame(ax)
    ax.hist(shown, bins=40, color=COLOURS[5], edgecolor="white", linewidth=0.4)
    median = float(np.median(shown))
    ax.axvline(median, color=COLOURS[0], lw=1.6, label=f"median {median:.2f} Å")
    if whole is not None and np.isfinite(whole):
        ax.axvline(whole, color=COLOURS[1], lw=1.6, ls=(0, (6, 2)), label=f"whole map {whole:.2f} Å")
    ax.set(xlabel="local resolution (Å)", ylabel="voxels in the mask")
    ax.legend(frameon=False, fontsize=9)
    return ax


def convergence(
    history: Mapping[str, Sequence[float]], keys: Sequence[str] | None = None, ax: Axes | None = None
) -> Axes:
    """Values of a solver's history over iterations, on a logarithmic scale where all of them are positive.

    Parameters
    ----------
    history : mapping of str to sequence of float
        One value per iteration under each name.
    keys : sequence of str, optional
        Which names to draw; all by default.
    """
    from matplotlib.ticker import MaxNLocator

    keys = list(history) if keys is None else list(keys)
    missing = [key for key in keys if key not in history]
    if missing or not keys:
        raise ValueError(f"history has no {missing or 'entries'}; it holds {list(history)}")
    ax = ax if ax is not None else new_axes((6.4, 4.0))
    open_frame(ax)
    positive = True
    for i, key in enumerate(keys):
        values = np.asarray(history[key], dtype=float)
        positive = positive and bool((values > 0).all())
        marker = "o" if len(values) <= 30 else None
        ax.plot(np.arange(1, len(values) + 1), values, label=key, marker=marker, markersize=3.5, **style(i))
    if positive:
        ax.set_yscale("log")
    ax.set_xlabel("iteration")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(keys) == 1:
        ax.set_ylabel(keys[0])
    else:
        ax.legend(frameon=False, fontsize=9)
    return ax


def lcurve(
    trials: Sequence[Mapping[str, Any]], *, chosen: float | None = None, ax: Axes | None = None
) -> Axes:
    """Misfit against regulariser for several weights: the L-curve.

    Parameters
    ----------
    trials : sequence of mapping
        Each with ``lam``, ``misfit`` and ``penalty``, such as the trials of `choose_lambda`.
    chosen : float, optional
        A weight whose place, between its two neighbours, is marked.

    Notes
    -----
    The misfit axis is linear: most of the misfit is noise, which is the same for all weights.
    """
    if not trials or any(trial.get("penalty") is None for trial in trials):
        raise ValueError(
            "an L-curve needs the value of the regulariser of every trial, which a denoiser has not"
        )
    rows = sorted(trials, key=lambda trial: trial["lam"])
    lam, misfit, value = (np.array([row[k] for row in rows], float) for k in ("lam", "misfit", "penalty"))
    ax = ax if ax is not None else new_axes((6.4, 4.4))
    open_frame(ax)
    ax.plot(misfit, value, marker="o", markersize=3.5, **style(0))
    for row in rows:
        ax.annotate(
            f"{row['lam']:.3g}",
            (row["misfit"], row["penalty"]),
            (4, 4),
            textcoords="offset points",
            fontsize=8,
        )
    if chosen is not None and chosen > 0 and lam[0] > 0:
        place = [np.interp(np.log(chosen), np.log(lam), figure) for figure in (misfit, value)]
        ax.plot(*place, ls="none", marker="D", color=COLOURS[1], label=f"chosen: {chosen:.3g}")
        ax.legend(frameon=False, fontsize=9)
    if (value > 0).all():
        ax.set_yscale("log")
    ax.set(xlabel="misfit, ½ |H c - y|²", ylabel="regulariser")
    return ax


def ctf_curve(
    ctf: CTF, *, pixel_size: float, index: int = 0, size: int = 1024, ax: Axes | None = None
) -> Axes:
    """The CTF of one particle from 0 to Nyquist along its two principal axes (one curve without astigmatism).

    Parameters
    ----------
    ctf : CTF
    pixel_size : float
        Angstrom; sets Nyquist.
    index : int
        Which particle.
    size : int
        Samples of the curve.
    """
    one = ctf[[index]]
    ax = ax if ax is not None else new_axes((6.4, 4.0))
    open_frame(ax)
    s = np.linspace(0, 0.5 / pixel_size, size)
    u, v = float(one.defocus_u_angstrom[0]), float(one.defocus_v_angstrom[0])
    angle = float(one.defocus_angle[0])
    directions = [(u, angle)] if u == v else [(u, angle), (v, angle + np.pi / 2)]
    for i, (defocus, direction) in enumerate(directions):
        values = one(s * np.cos(direction), s * np.sin(direction))[0]
        ax.plot(s, values, label=f"defocus {defocus * 1e-4:.3f} µm", **style(i))
    ax.axhline(0, color="0.8", lw=0.8, zorder=0)
    ax.set(xlim=(0, s[-1]), xlabel="spatial frequency (1/Å)", ylabel="CTF")
    resolution_axis(ax)
    ax.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    return ax
