"""Figures. Every function returns the matplotlib Axes it drew on (an array of them when it drew several).

Matplotlib is imported when a function is called, never shown, and without ``pyplot``: figures made here
belong to no global state and need no display. Pass ``ax`` to draw into a figure of your own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .ctf import CTF
    from .data import Poses
    from .metrics.directional import DirectionalFSC
    from .metrics.fsc import FSC
    from .metrics.postprocess import Guinier

__all__ = [
    "convergence",
    "ctf_curve",
    "directional_fsc",
    "fsc_curves",
    "guinier",
    "lcurve",
    "local_resolution",
    "masked_slices",
    "orientations",
    "projections",
    "resolution_histogram",
    "save",
    "slices",
]

#: Okabe and Ito's colours, told apart by colour-blind readers, with a dash pattern as a second sign.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)))
_GREY = "0.45"


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
    ax = ax if ax is not None else _axes((6.4, 4.6))
    _open_frame(ax)
    last = max(curve.frequency[-1] for curve in curves.values())
    for i, (label, curve) in enumerate(curves.items()):
        text = ", ".join(_resolution_text(curve, threshold) for threshold in thresholds)
        ax.plot(
            curve.frequency[1:],
            curve.correlation[1:],
            label=f"{label}: {text}" if text else label,
            **_style(i),
        )
    first = next(iter(curves.values()))
    limits = sorted(((str(t), first.threshold(t)) for t in thresholds), key=lambda item: item[1][-1])
    label_height = -np.inf
    for name, values in limits:
        ax.plot(first.frequency[1:], np.minimum(values[1:], 1.0), color=_GREY, lw=0.9, ls=":", zorder=1)
        label_height = max(values[-1], label_height + 0.05)  # labels of close thresholds move apart
        ax.annotate(
            name,
            (1.0, label_height),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            color=_GREY,
            fontsize=8,
            va="center",
        )
    ax.axhline(0, color="0.8", lw=0.8, zorder=0)
    lowest = min(float(curve.correlation[1:].min()) for curve in curves.values())
    ax.set(xlim=(0, last), ylim=(min(-0.08, lowest - 0.03), 1.04))
    ax.set(xlabel="spatial frequency (1/Å)", ylabel="Fourier shell correlation")
    _resolution_axis(ax)
    # below the axes, where no curve can hide it
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, fontsize=9)
    return ax


def slices(
    volume: ArrayLike,
    *,
    pixel_size: float,
    title: str | None = None,
    contrast: tuple[float, float] | None = None,
    scale_bar: float | None = None,
    axes: Sequence[Axes] | None = None,
) -> NDArray:
    """The three central slices of a volume, through index ``n // 2``, on one grey scale, with scale bars.

    Parameters
    ----------
    volume : array_like, (nz, ny, nx)
    pixel_size : float
        Angstrom per voxel.
    contrast : pair of float, optional
        Values shown black and white; the 0.5 and 99.5 percentiles of the three slices by default.
    scale_bar : float, optional
        Length in angstrom; a round length of about a quarter of the box by default.
    axes : three Axes, optional

    Returns
    -------
    ndarray of Axes, (3,)
    """
    volume = np.asarray(volume)
    if volume.ndim != 3:
        raise ValueError(f"slices needs a volume of three axes (z, y, x), got shape {volume.shape}")
    nz, ny, nx = volume.shape
    cuts = [
        ("xy", volume[nz // 2], "x", "y"),
        ("xz", volume[:, ny // 2], "x", "z"),
        ("yz", volume[:, :, nx // 2], "y", "z"),
    ]
    if contrast is None:
        low, high = np.percentile(np.concatenate([cut.ravel() for _, cut, _, _ in cuts]), (0.5, 99.5))
        contrast = (float(low), float(high))
    length = scale_bar if scale_bar is not None else _round_length(0.3 * min(nx, ny) * pixel_size)
    if axes is None:
        widths = (nx, nx, ny)  # one scale for the three
        height = 0.7 + 8.4 * max(ny, nz) / sum(widths)
        panels = _panels(1, 3, (9.0, height), width_ratios=widths).ravel()
    else:
        panels = np.asarray(axes, dtype=object).ravel()
    if len(panels) != 3:
        raise ValueError(f"slices draws on three axes, got {len(panels)}")
    for ax, (name, cut, right, up) in zip(panels, cuts, strict=True):
        ax.imshow(
            cut, cmap="gray", vmin=contrast[0], vmax=contrast[1], origin="lower", interpolation="nearest"
        )
        ax.set(xticks=[], yticks=[], xlabel=f"{right} →", ylabel=f"{up} →")
        ax.set_title(f"{name} slice", fontsize=10)
        _scale_bar(ax, length / pixel_size, f"{length:g} Å")
    if title is not None:
        panels[0].figure.suptitle(title)
    return panels


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
    panels = _panels(1, 2, (9.4, 4.2), width_ratios=(1.25, 1)).ravel() if axes is None else np.asarray(axes)
    ax, disc = panels
    _open_frame(ax)
    frequency = result.whole.frequency[1:]
    ax.plot(frequency, result.curves[:, 1:].T, color=_COLOURS[5], lw=0.5, alpha=0.35)
    best, poorest = (result.areas.argmax(), result.areas.argmin())
    for i, (label, values) in enumerate(
        {
            "all directions": result.whole.correlation,
            "best direction": result.curves[best],
            "poorest direction": result.curves[poorest],
        }.items()
    ):
        ax.plot(frequency, values[1:], label=label, **_style(i))
    ax.axhline(result.threshold, color=_GREY, lw=0.9, ls=":")
    ax.set(xlim=(0, frequency[-1]), ylim=(-0.15, 1.04))
    ax.set(xlabel="spatial frequency (1/Å)", ylabel=f"FSC in cones of {result.half_angle:g}°")
    _resolution_axis(ax)
    ax.legend(frameon=False, fontsize=9, title=f"least over largest area: {result.cfar_like:.2f}")
    x, y, z = result.axes.T
    scale = np.sqrt(2 / (1 + z)) / np.sqrt(2)  # the equator at radius 1
    finite = np.isfinite(result.resolution)
    dots = disc.scatter(
        (x * scale)[finite], (y * scale)[finite], c=result.resolution[finite], cmap="viridis", s=42
    )
    disc.scatter((x * scale)[~finite], (y * scale)[~finite], color=_COLOURS[1], marker="x", s=30)
    turn = np.linspace(0, 2 * np.pi, 200)
    for tilt in (30, 60, 90):
        radius = np.sqrt(2) * np.sin(np.deg2rad(tilt) / 2)
        disc.plot(radius * np.cos(turn), radius * np.sin(turn), color="0.75", lw=0.7, zorder=0)
        disc.annotate(f"{tilt}°", (0, radius), color=_GREY, fontsize=8, ha="center", va="bottom")
    disc.set(aspect="equal", xticks=[], yticks=[], xlabel="x →", ylabel="y →", title="z axis in the middle")
    disc.spines[:].set_visible(False)
    disc.figure.colorbar(dots, ax=disc, shrink=0.8, label=f"resolution at {result.threshold:g} (Å)")
    return panels


def masked_slices(
    volume: ArrayLike, mask: ArrayLike, *, pixel_size: float, title: str | None = None
) -> NDArray:
    """The central slices of a map with the outline of a soft mask: where it is 0.5, and where it ends.

    Parameters
    ----------
    volume, mask : array_like, (nz, ny, nx)
    pixel_size : float
        Angstrom per voxel.

    Returns
    -------
    ndarray of Axes, (3,)
    """
    from matplotlib.lines import Line2D

    mask = np.asarray(mask, dtype=float)
    panels = slices(volume, pixel_size=pixel_size, title=title)
    nz, ny, nx = mask.shape
    for ax, cut in zip(panels, (mask[nz // 2], mask[:, ny // 2], mask[:, :, nx // 2]), strict=True):
        for level, colour, dash in ((0.5, _COLOURS[4], "-"), (0.01, _COLOURS[5], ":")):
            if cut.min() < level < cut.max():
                ax.contour(cut, levels=[level], colors=[colour], linewidths=1.2, linestyles=[dash])
    handles = [
        Line2D([], [], color=_COLOURS[4], ls="-", label="mask 0.5"),
        Line2D([], [], color=_COLOURS[5], ls=":", label="mask ends (0.01)"),
    ]
    panels[0].figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return panels


def guinier(data: Guinier, ax: Axes | None = None) -> Axes:
    """Guinier plot: logarithm of the mean amplitude of each shell over squared frequency, step by step.

    Empty shells are left out; the line is the fit of the B-factor over the whole range.
    """
    ax = ax if ax is not None else _axes((6.4, 4.6))
    _open_frame(ax)
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
        ax.plot(data.squared_frequency[shown], values[shown], label=label, **_style(i))
        lowest = min(lowest, float(values[shown].min(initial=np.inf)))
    if data.fit is not None:
        x = data.squared_frequency[[0, -1]]
        label = f"fit: B = {4 * data.fit.slope:.1f} Å², r² = {data.fit.correlation:.3f}"
        ax.plot(x, data.fit.intercept + data.fit.slope * x, color=_GREY, lw=1, label=label, zorder=1)
    if np.isfinite(lowest):
        ax.set_ylim(bottom=lowest - 0.5)  # the line may go far below the curves
    ax.set(xlim=(0, data.squared_frequency[-1]))
    ax.set(xlabel="squared spatial frequency (1/Å²)", ylabel="ln of the mean amplitude")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, fontsize=9, ncols=2)
    return ax


def local_resolution(
    volume: ArrayLike,
    resolution: ArrayLike,
    *,
    pixel_size: float,
    limits: tuple[float, float] | None = None,
    title: str | None = None,
) -> NDArray:
    """The central slices of a map in grey, coloured by local resolution where it is known (above 0).

    Parameters
    ----------
    volume : array_like, (nz, ny, nx)
    resolution : array_like, (nz, ny, nx)
        Angstrom; 0 or NaN where it was not estimated.
    pixel_size : float
        Angstrom per voxel.
    limits : pair of float, optional
        Ends of the colour scale in angstrom; the 2 and 98 percentiles by default.

    Returns
    -------
    ndarray of Axes, (3,)
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    resolution = np.asarray(resolution, dtype=float)
    known = np.isfinite(resolution) & (resolution > 0)
    if not known.any():
        raise ValueError("the resolution is known nowhere: no voxel is above 0")
    low, high = np.percentile(resolution[known], (2, 98)) if limits is None else limits
    scale = Normalize(low, high if high > low else low + 1e-3)
    panels = slices(volume, pixel_size=pixel_size, title=title)
    nz, ny, nx = resolution.shape
    cuts = (np.s_[nz // 2], np.s_[:, ny // 2], np.s_[:, :, nx // 2])
    for ax, cut in zip(panels, cuts, strict=True):
        shown = np.where(known[cut], resolution[cut], np.nan)
        ax.imshow(shown, cmap="viridis", norm=scale, alpha=0.6, origin="lower", interpolation="nearest")
    bar = panels[0].figure.colorbar(
        ScalarMappable(scale, "viridis"), ax=list(panels), location="bottom", aspect=40, shrink=0.6
    )
    bar.set_label("local resolution (Å)")
    return panels


def resolution_histogram(values: ArrayLike, *, whole: float | None = None, ax: Axes | None = None) -> Axes:
    """Histogram of local resolutions in angstrom, with their median and the resolution of the whole map."""
    shown = np.asarray(values, dtype=float).ravel()
    shown = shown[np.isfinite(shown)]
    if shown.size == 0:
        raise ValueError("no resolutions to draw")
    ax = ax if ax is not None else _axes((6.4, 4.0))
    _open_frame(ax)
    ax.hist(shown, bins=40, color=_COLOURS[5], edgecolor="white", linewidth=0.4)
    median = float(np.median(shown))
    ax.axvline(median, color=_COLOURS[0], lw=1.6, label=f"median {median:.2f} Å")
    if whole is not None and np.isfinite(whole):
        ax.axvline(whole, color=_COLOURS[1], lw=1.6, ls=(0, (6, 2)), label=f"whole map {whole:.2f} Å")
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
    ax = ax if ax is not None else _axes((6.4, 4.0))
    _open_frame(ax)
    positive = True
    for i, key in enumerate(keys):
        values = np.asarray(history[key], dtype=float)
        positive = positive and bool((values > 0).all())
        marker = "o" if len(values) <= 30 else None
        ax.plot(np.arange(1, len(values) + 1), values, label=key, marker=marker, markersize=3.5, **_style(i))
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
    ax = ax if ax is not None else _axes((6.4, 4.4))
    _open_frame(ax)
    ax.plot(misfit, value, marker="o", markersize=3.5, **_style(0))
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
        ax.plot(*place, ls="none", marker="D", color=_COLOURS[1], label=f"chosen: {chosen:.3g}")
        ax.legend(frameon=False, fontsize=9)
    if (value > 0).all():
        ax.set_yscale("log")
    ax.set(xlabel="misfit, ½ |H c - y|²", ylabel="regulariser")
    return ax


def projections(
    images: Any, n: int = 16, *, columns: int | None = None, labels: Sequence[str] | None = None
) -> NDArray:
    """A montage of the first ``n`` images, each on its own grey scale (1st to 99th percentile).

    Parameters
    ----------
    images : array-like, (count, height, width)
        May be lazy: only the first ``n`` are read.
    columns : int, optional
        Of the montage; about as many as rows by default.
    labels : sequence of str, optional
        Written above the images; their numbers by default.

    Returns
    -------
    ndarray of Axes, one per image
    """
    if len(images.shape) != 3:
        raise ValueError(f"projections needs images of shape (count, height, width), got {images.shape}")
    shown = np.asarray(images[: min(n, images.shape[0])], dtype=float)
    if len(shown) == 0:
        raise ValueError("no images to draw")
    columns = columns if columns is not None else int(np.ceil(np.sqrt(len(shown))))
    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    aspect = shown.shape[1] / shown.shape[2]
    grid = _panels(rows, columns, (1.6 * columns, (1.6 * aspect + 0.22) * rows)).ravel()
    for i, ax in enumerate(grid):
        if i >= len(shown):
            ax.remove()
            continue
        low, high = np.percentile(shown[i], (1, 99))
        ax.imshow(shown[i], cmap="gray", vmin=low, vmax=high, origin="lower", interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.set_title(labels[i] if labels is not None else f"{i}", fontsize=8, pad=2)
    return grid[: len(shown)]


def orientations(poses: Poses, *, bins: int = 24, ax: Axes | None = None) -> Axes:
    """Viewing directions: number of views over rot and cos(tilt), in bins of equal solid angle.

    Equal spacing in cos(tilt) is equal area on the sphere, so uniform views give a flat picture; the axis is
    marked in degrees of tilt.

    Parameters
    ----------
    poses : Poses
    bins : int
        Along rot; half as many along tilt.
    """
    rot, tilt, _ = poses.euler_deg()
    ax = ax if ax is not None else _axes((6.4, 3.8))
    rows = max(1, bins // 2)
    counts, rot_edges, height_edges = np.histogram2d(
        rot, np.cos(np.deg2rad(tilt)), bins=(bins, rows), range=((-180, 180), (-1, 1))
    )
    mesh = ax.pcolormesh(rot_edges, height_edges, counts.T, cmap="viridis", vmin=0, rasterized=True)
    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.02)
    bar.set_label(f"views per bin (mean {len(poses) / (bins * rows):.3g})")
    ticks = np.array([0, 30, 60, 90, 120, 150, 180])
    ax.set_yticks(np.cos(np.deg2rad(ticks)), [f"{t}" for t in ticks])
    ax.set(xticks=range(-180, 181, 60), xlabel="rot (degrees)", ylabel="tilt (degrees, equal area)")
    ax.set_ylim(-1, 1)  # tilt 0, the pole of the z axis, on top
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
    ax = ax if ax is not None else _axes((6.4, 4.0))
    _open_frame(ax)
    s = np.linspace(0, 0.5 / pixel_size, size)
    u, v = float(one.defocus_u_angstrom[0]), float(one.defocus_v_angstrom[0])
    angle = float(one.defocus_angle[0])
    directions = [(u, angle)] if u == v else [(u, angle), (v, angle + np.pi / 2)]
    for i, (defocus, direction) in enumerate(directions):
        values = one(s * np.cos(direction), s * np.sin(direction))[0]
        ax.plot(s, values, label=f"defocus {defocus * 1e-4:.3f} µm", **_style(i))
    ax.axhline(0, color="0.8", lw=0.8, zorder=0)
    ax.set(xlim=(0, s[-1]), xlabel="spatial frequency (1/Å)", ylabel="CTF")
    _resolution_axis(ax)
    ax.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    return ax


def save(ax: Any, path: str | os.PathLike[str], *, dpi: float = 150) -> None:
    """Write the figure of ``ax`` (Axes, or an array of them) to ``path``, whole or not at all."""
    from .io.atomic import atomic_path

    figure = np.asarray(ax, dtype=object).ravel()[0].figure
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi, bbox_inches="tight")


def _figure(size: tuple[float, float]) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _axes(size: tuple[float, float]) -> Any:
    return _figure(size).subplots()


def _panels(rows: int, columns: int, size: tuple[float, float], **options: Any) -> NDArray:
    return _figure(size).subplots(rows, columns, squeeze=False, **options)


def _style(i: int) -> dict[str, Any]:
    return {"color": _COLOURS[i % len(_COLOURS)], "ls": _DASHES[i % len(_DASHES)], "lw": 1.6}


def _open_frame(ax: Any) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, color="0.93", lw=0.8)
    ax.set_axisbelow(True)


def _resolution_text(curve: FSC, threshold: float | str) -> str:
    resolution = curve.resolution(threshold)
    sign = "≤" if curve.beyond_nyquist(threshold) else ""
    value = f"{sign}{resolution:.3g} Å" if np.isfinite(resolution) else "none"
    return f"{value} at {threshold}"


def _resolution_axis(ax: Any) -> None:
    """An upper axis in angstrom for a lower one in 1/angstrom that starts at 0."""
    last = ax.get_xlim()[1]
    candidates = [m * 10**e for e in range(-1, 4) for m in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)]
    chosen: list[float] = []
    for value in sorted(candidates, reverse=True):
        # at least a tenth of the axis apart, so that labels never touch
        position = 1 / value
        if position <= last * 1.0001 and position - (1 / chosen[-1] if chosen else 0.0) >= 0.1 * last:
            chosen.append(value)
    top = ax.secondary_xaxis("top")
    top.set_ticks([1 / v for v in chosen], [f"{v:g}" for v in chosen])
    top.set_xlabel("resolution (Å)")
    top.spines["top"].set_visible(True)


def _round_length(length: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not above ``length``."""
    power = 10 ** np.floor(np.log10(length))
    return float(max(m * power for m in (1, 2, 5) if m * power <= length * (1 + 1e-9)))


def _scale_bar(ax: Any, pixels: float, label: str) -> None:
    from matplotlib.patches import Rectangle

    left, right = ax.get_xlim()
    bottom, top = ax.get_ylim()
    x, y = left + 0.05 * (right - left), bottom + 0.05 * (top - bottom)
    ax.add_patch(
        Rectangle((x, y), pixels, 0.015 * (top - bottom), facecolor="white", edgecolor="black", lw=0.5)
    )
    ax.annotate(
        label,
        (x + pixels / 2, y + 0.03 * (top - bottom)),
        color="white",
        ha="center",
        va="bottom",
        fontsize=9,
        bbox={"boxstyle": "round,pad=0.15", "facecolor": "black", "alpha": 0.5, "edgecolor": "none"},
    )
