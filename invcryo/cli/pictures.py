"""The pictures of a reconstruction."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import Console

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..reconstruction import Reconstruction


def load_matplotlib_meanwhile() -> threading.Thread:
    """Import what the pictures need in a thread, while images are read and summed in others."""

    def load() -> None:
        with suppress(ImportError):  # said when the pictures are drawn
            import matplotlib.backends.backend_agg
            import matplotlib.figure
            import matplotlib.legend  # noqa: F401

    thread = threading.Thread(target=load, name="matplotlib", daemon=True)
    thread.start()
    return thread


def matplotlib_is_there(console: Console) -> bool:
    """Whether pictures can be drawn; a warning where not."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        console.warn("no pictures were drawn: matplotlib is not installed; run: pip install 'invcryo[plot]'")
        return False
    return True


def draw(folder: Path, result: Reconstruction, console: Console) -> bool:
    """Draw the pictures; False, with a warning, where Matplotlib is not installed."""
    if not matplotlib_is_there(console):
        return False
    from .. import plot

    rows = {"map.mrc": result.map}
    if result.map_noreg is not None:
        rows["map_noreg.mrc, without regularisation"] = result.map_noreg
    draw_slices(folder / "slices.png", rows, result.pixel_size)
    name = "half maps" if result.fsc_noreg is None else "regularised half maps"
    curves = {"unregularised half maps": result.fsc_noreg, name: result.fsc}
    shown = {name: curve for name, curve in curves.items() if curve is not None}
    if shown:
        plot.save(plot.fsc_curves(shown), folder / "fsc.png")
    _draw_convergence(folder / "convergence.png", result.history)
    if result.lam_search and result.lam_search[0]["penalty"] is not None:
        plot.save(plot.lcurve(result.lam_search, chosen=result.lam), folder / "lcurve.png")
    return True


def _draw_convergence(path: Path, history: dict[str, list[float]]) -> None:
    """The objective above, what should vanish below."""
    from .. import plot

    shown = [key for key, values in history.items() if key not in ("iteration", "seconds") and len(values)]
    panels = [
        keys for keys in (["objective"], [k for k in shown if k != "objective"]) if set(keys) & set(shown)
    ]
    if not panels:
        return
    figure = _figure(6.4, 3.0 * len(panels))
    for ax, keys in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
        plot.convergence(history, keys, ax=ax)
        if keys == ["objective"]:
            ax.set_yscale("linear")
    _save(figure, path)


def draw_slices(path: Path, volumes: dict[str, NDArray], pixel_size: float) -> None:
    """Central slices of several maps, one row for each."""
    from .. import plot

    figure = _figure(9.0, 3.5 * len(volumes))
    parts = figure.subfigures(len(volumes), 1, squeeze=False).ravel()
    for part, (title, volume) in zip(parts, volumes.items(), strict=True):
        plot.slices(volume, pixel_size=pixel_size, title=title, axes=part.subplots(1, 3))
    _save(figure, path)


def _figure(width: float, height: float) -> Any:
    """A figure of this size in inches, of no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    from ..io.atomic import atomic_path

    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)


def write_script(
    folder: Path,
    final: Path,
    name: str,
    map_file: str | Path,
    volume: NDArray,
    console: Console,
    **options: Any,
) -> None:
    """A script for ChimeraX in ``folder``, which will lie in ``final``; a warning where a name cannot be said."""
    from ..io.viewers import contour_level, write_cxc

    try:
        write_cxc(folder / name, map_file, contour_level(volume), folder=final, **options)
    except ValueError as error:
        console.warn(f"no script for ChimeraX was written: {error}")
