"""Maps and images: slices, projections, local resolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .common import COLOURS, draw_scale_bar, new_panels, round_length

if TYPE_CHECKING:
    from matplotlib.axes import Axes


__all__ = ["local_resolution", "map_projections", "masked_slices", "projections", "slices"]


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
    volume = _checked(volume, "slices")
    nz, ny, nx = volume.shape
    cuts = [volume[nz // 2], volume[:, ny // 2], volume[:, :, nx // 2]]
    names = [f"{plane} slice" for plane in ("xy", "xz", "yz")]
    return _three_views(cuts, names, (0.5, 99.5), pixel_size, title, contrast, scale_bar, axes)


def map_projections(
    volume: ArrayLike,
    *,
    pixel_size: float,
    title: str | None = None,
    contrast: tuple[float, float] | None = None,
    scale_bar: float | None = None,
    axes: Sequence[Axes] | None = None,
) -> NDArray:
    """The sums of a volume along z, y and x, in density times angstrom; the rest as in `slices`."""
    volume = _checked(volume, "map_projections")
    cuts = [volume.sum(axis=k, dtype=float) * pixel_size for k in range(3)]
    names = [f"along {axis}" for axis in "zyx"]
    return _three_views(cuts, names, (0.0, 100.0), pixel_size, title, contrast, scale_bar, axes)


def _checked(volume: ArrayLike, name: str) -> NDArray:
    volume = np.asarray(volume)
    if volume.ndim != 3:
        raise ValueError(f"{name} needs a volume of three axes (z, y, x), got shape {volume.shape}")
    return volume


def _three_views(
    cuts: Sequence[NDArray],
    names: Sequence[str],
    percentiles: tuple[float, float],
    pixel_size: float,
    title: str | None,
    contrast: tuple[float, float] | None,
    scale_bar: float | None,
    axes: Sequence[Axes] | None,
) -> NDArray:
    """Three planes (xy, xz, yz) side by side on one grey scale."""
    (ny, nx), (nz, _), _ = (cut.shape for cut in cuts)
    if contrast is None:
        low, high = np.percentile(np.concatenate([cut.ravel() for cut in cuts]), percentiles)
        contrast = (float(low), float(high))
    length = scale_bar if scale_bar is not None else round_length(0.3 * min(nx, ny) * pixel_size)
    if axes is None:
        widths = (nx, nx, ny)  # one scale for the three
        height = 0.7 + 8.4 * max(ny, nz) / sum(widths)
        panels = new_panels(1, 3, (9.0, height), width_ratios=widths).ravel()
    else:
        panels = np.asarray(axes, dtype=object).ravel()
    if len(panels) != 3:
        raise ValueError(f"slices draws on three axes, got {len(panels)}")
    sides = (("x", "y"), ("x", "z"), ("y", "z"))
    for ax, name, cut, (right, up) in zip(panels, names, cuts, sides, strict=True):
        ax.imshow(
            cut, cmap="gray", vmin=contrast[0], vmax=contrast[1], origin="lower", interpolation="nearest"
        )
        ax.set(xticks=[], yticks=[], xlabel=f"{right} →", ylabel=f"{up} →")
        ax.set_title(name, fontsize=10)
        draw_scale_bar(ax, length / pixel_size, f"{length:g} Å")
    if title is not None:
        panels[0].figure.suptitle(title)
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
        for level, colour, dash in ((0.5, COLOURS[4], "-"), (0.01, COLOURS[5], ":")):
            if cut.min() < level < cut.max():
                ax.contour(cut, levels=[level], colors=[colour], linewidths=1.2, linestyles=[dash])
    handles = [
        Line2D([], [], color=COLOURS[4], ls="-", label="mask 0.5"),
        Line2D([], [], color=COLOURS[5], ls=":", label="mask ends (0.01)"),
    ]
    panels[0].figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return panels


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
    grid = new_panels(rows, columns, (1.6 * columns, (1.6 * aspect + 0.22) * rows)).ravel()
    for i, ax in enumerate(grid):
        if i >= len(shown):
            ax.remove()
            continue
        low, high = np.percentile(shown[i], (1, 99))
        ax.imshow(shown[i], cmap="gray", vmin=low, vmax=high, origin="lower", interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.set_title(labels[i] if labels is not None else f"{i}", fontsize=8, pad=2)
    return grid[: len(shown)]
