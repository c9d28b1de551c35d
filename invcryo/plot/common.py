"""What the figures share: axes without pyplot, styles, saving.

Matplotlib is imported when a function is called, never shown: figures made here belong to no global state and need no
display.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "COLOURS",
    "DASHES",
    "GREY",
    "draw_scale_bar",
    "new_axes",
    "new_figure",
    "new_panels",
    "open_frame",
    "resolution_axis",
    "round_length",
    "save",
    "style",
]

#: Okabe and Ito's colours, told apart by colour-blind readers, with a dash pattern as a second sign.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)))
GREY = "0.45"


def save(ax: Any, path: str | os.PathLike[str], *, dpi: float = 150) -> None:
    """Write the figure of ``ax`` (Axes, or an array of them) to ``path``, whole or not at all."""
    from ..io.atomic import atomic_path

    figure = np.asarray(ax, dtype=object).ravel()[0].figure
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi, bbox_inches="tight")


def new_figure(size: tuple[float, float]) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_axes(size: tuple[float, float]) -> Any:
    return new_figure(size).subplots()


def new_panels(rows: int, columns: int, size: tuple[float, float], **options: Any) -> NDArray:
    return new_figure(size).subplots(rows, columns, squeeze=False, **options)


def style(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % len(COLOURS)], "ls": DASHES[i % len(DASHES)], "lw": 1.6}


def open_frame(ax: Any) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, color="0.93", lw=0.8)
    ax.set_axisbelow(True)


def resolution_axis(ax: Any) -> None:
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


def round_length(length: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not above ``length``."""
    power = 10 ** np.floor(np.log10(length))
    return float(max(m * power for m in (1, 2, 5) if m * power <= length * (1 + 1e-9)))


def draw_scale_bar(ax: Any, pixels: float, label: str) -> None:
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
