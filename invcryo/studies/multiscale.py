"""What coarse scales withstand: wrong orientations and few classes (Donati 2020, section 4.1, Figures 4.1 and 4.2)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..costs import L21, LeastSquares
from ..data import Poses
from ..inversion import regularised_map
from ..metrics import FSC, fsc
from ..operators import Gradient, Projector
from ..rotation import euler_from_matrix, matrix_from_euler, random_rotations, spiral_views
from ..selection import natural_lambda
from ..window import KaiserBessel
from .cells import StudyFolder, write_table

__all__ = ["angular_error_study", "class_averages", "class_study", "scale_study"]

#: Weights of the regulariser that are tried, relative to `natural_lambda`; the best by FSC counts, as published.
LAMBDAS = (0.03, 0.1, 0.3, 1.0, 3.0)


def class_averages(images: NDArray, poses: Poses, classes: int | NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Means of the images that are seen from about the same direction, turned in their planes onto one.

    Parameters
    ----------
    images : ndarray (n, m, m)
    poses : Poses
        As they are believed to be. Each image joins the class whose direction is nearest, and is moved and turned, by
        cubic splines, to the pose of the class.
    classes : int or ndarray (classes, 3, 3)
        Poses of the classes; a number of them is spread evenly over the sphere.

    Returns
    -------
    averages : ndarray (used, m, m), float32
        Without the classes that no image joined.
    views : ndarray (used, 3, 3)
    members : ndarray of int (used,)
    """
    views = spiral_views(classes) if isinstance(classes, int) else np.asarray(classes, float)
    nearest = (poses.matrices[:, 2] @ views[:, 2].T).argmax(axis=1)
    # what is left of the turn from pose to class, but for the tilt
    turn = views[nearest] @ poses.matrices.transpose(0, 2, 1)
    angle = np.arctan2(turn[:, 1, 0] - turn[:, 0, 1], turn[:, 0, 0] + turn[:, 1, 1])
    sums = np.zeros((len(views), *images.shape[1:]))
    members = np.bincount(nearest, minlength=len(views))
    centre = np.array([m // 2 for m in images.shape[1:]], float)
    for image, k, a, shift in zip(images, nearest, angle, poses.shifts, strict=True):
        c, s = np.cos(a), np.sin(a)
        back = np.array([[c, -s], [s, c]])  # of (y, x): the inverse of the turn of (x, y)
        sums[k] += ndimage.affine_transform(image, back, centre - back @ centre + shift[::-1], order=3)
    used = members > 0
    averages = sums[used] / members[used, None, None]
    return averages.astype(np.float32), views[used], members[used]


def scale_study(
    folder: str | os.PathLike[str],
    volume: NDArray,
    pixel_size: float,
    *,
    views: int = 2000,
    scales: Sequence[float] = (1, 2, 4, 8),
    seed: int = 0,
    pictures: bool = True,
    fresh: bool = False,
) -> list[dict[str, Any]]:
    """Figure 4.1: what each scale of the basis can represent, from projections without noise.

    Parameters
    ----------
    folder : path-like
        Of ``table.csv``, ``table.json``, ``fsc.png``. A study that was cut short goes on.
    volume : ndarray, (box, box, box)
        The truth, zero near the faces.
    pixel_size : float
        Angstrom.
    views : int
    scales : sequence of float
        Pixels per coefficient.

    Returns
    -------
    list of dict
        ``scale``, ``resolution_angstrom`` (FSC 0.5 against the truth), ``coefficients``, ``seconds``.
    """
    volume = np.asarray(volume, np.float32)
    place = StudyFolder(folder, {"volume": volume, "views": views, "seed": seed}, fresh=fresh)
    poses = Poses(random_rotations(views, rng=seed))
    source = _Source(volume, pixel_size)
    images: list[NDArray] = []  # made when a cell is computed
    rows, curves = [], {}
    for scale in scales:

        def compute(scale: float = scale) -> Any:
            if not images:
                images.append(source.project(poses))
            curve, _ = source.best(images[0], poses, scale, (1e-2,))
            return source.figures(curve) | {"coefficients": source.side(scale) ** 3}, {
                "fsc": curve.correlation
            }

        row = place.cell(f"s{scale:g}", compute)
        rows.append({"scale": scale, **row})
        curves[f"s = {scale:g}"] = source.curve(place.arrays(f"s{scale:g}")["fsc"])
    write_table(place.path, rows)
    if pictures:
        from .. import plot

        plot.save(plot.fsc_curves(curves, thresholds=(0.5,)), place.path / "fsc.png")
    return rows


def angular_error_study(
    folder: str | os.PathLike[str],
    volume: NDArray,
    pixel_size: float,
    *,
    views: int = 2000,
    snr: float = 1.0,
    errors_deg: Sequence[float] = (0, 2, 4, 8, 12, 16),
    scales: Sequence[float] = (1, 2, 3, 4),
    classes: int = 80,
    seeds: Sequence[int] = (0,),
    pictures: bool = True,
    fresh: bool = False,
) -> list[dict[str, Any]]:
    """Figure 4.2a: resolution against the error of the orientations, at several scales, from class averages.

    Parameters
    ----------
    folder, volume, pixel_size, views, scales
        As for `scale_study`; the picture is ``robustness.png``.
    snr : float
        Variance of the images over that of the noise.
    errors_deg : sequence of float
        Standard deviations of the errors of each Euler angle, which are uniform.
    classes : int
        Directions that the projections are averaged by, before the reconstruction.

    Returns
    -------
    list of dict
        For each error and scale, means over the seeds: ``resolution_angstrom`` (FSC 0.5), ``loss`` (that over the
        resolution without error), ``area`` (under the FSC, in shells), ``lam`` (relative weight that was best).
    """
    cells = [(e, classes, seed) for e in errors_deg for seed in seeds]
    rows, _, place = _averaged(folder, volume, pixel_size, views, snr, cells, scales, fresh)
    table = []
    for scale in scales:
        first = None
        for error in errors_deg:
            mine = [r for r in rows if r["scale"] == scale and r["error_deg"] == error]
            row = {"scale": scale, "error_deg": error, "classes": classes} | _mean(mine)
            first = row["resolution_angstrom"] if first is None else first
            table.append(row | {"loss": row["resolution_angstrom"] / first})
    write_table(place.path, table)
    if pictures:
        from .. import plot

        plot.save(plot.robustness(table), place.path / "robustness.png")
    return table


def class_study(
    folder: str | os.PathLike[str],
    volume: NDArray,
    pixel_size: float,
    *,
    views: int = 2000,
    snr: float = 1.0,
    variance_deg2: float = 15.47,
    classes: Sequence[int] = (11, 31, 59, 99),
    scales: Sequence[float] = (1, 2, 3, 4),
    shown: float = 3,
    seeds: Sequence[int] = (0,),
    pictures: bool = True,
    fresh: bool = False,
) -> list[dict[str, Any]]:
    """Figure 4.2b: FSC from few class averages of projections with wrong orientations.

    Parameters
    ----------
    folder, volume, pixel_size, views, snr, scales
        As for `angular_error_study`; ``fsc.png`` shows the scale ``shown`` for each number of classes.
    variance_deg2 : float
        Of the errors of each Euler angle.

    Returns
    -------
    list of dict
        For each number of classes and scale, means over the seeds: ``resolution_angstrom``, ``area``, ``lam``.
    """
    cells = [(variance_deg2**0.5, count, seed) for count in classes for seed in seeds]
    rows, curves, place = _averaged(folder, volume, pixel_size, views, snr, cells, scales, fresh)
    table = []
    for scale in scales:
        for count in classes:
            mine = [r for r in rows if r["scale"] == scale and r["classes"] == count]
            table.append({"scale": scale, "classes": count, "error_deg": variance_deg2**0.5} | _mean(mine))
    write_table(place.path, table)
    if pictures:
        from .. import plot

        drawn = {f"{c} classes, s = {shown:g}": curves[c, shown] for c in classes if (c, shown) in curves}
        plot.save(plot.fsc_curves(drawn, thresholds=(0.5,)), place.path / "fsc.png")
    return table


class _Source:
    """A truth: its projections with one window, reconstructions with another, and how well these agree with it."""

    def __init__(self, volume: NDArray, pixel_size: float) -> None:
        if volume.ndim != 3 or len(set(volume.shape)) > 1:
            raise ValueError(f"the study takes a cubic map, got shape {volume.shape}")
        self.volume, self.pixel_size, self.box = volume, pixel_size, len(volume)
        self._window = KaiserBessel.wide()

    def project(self, poses: Poses) -> NDArray:
        window = KaiserBessel()
        return Projector(poses, window, self.volume.shape)(window.analyze(self.volume))

    def side(self, scale: float) -> int:
        return int(np.ceil(self.box / scale))

    def best(
        self, images: NDArray, poses: Poses, scale: float, lambdas: Sequence[float] = LAMBDAS
    ) -> tuple[FSC, float]:
        """The reconstruction with total variation whose FSC has the largest area, over some weights."""
        A = Projector(poses, self._window, self.side(scale), self.box, scale=scale)
        data = LeastSquares(A, images, progress=False).quadratic()
        assert data is not None
        penalty = L21() @ Gradient(A.ishape)
        unit = natural_lambda(data, penalty, images.size)
        found, x = [], None
        for lam in sorted(lambdas, reverse=True):
            x = regularised_map(data, penalty, lam * unit, images.size, x0=x, progress=False).x
            made = self._window.synthesize(x, self.box, scale=scale)
            found.append((fsc(made, self.volume, pixel_size=self.pixel_size), lam))
        return max(found, key=lambda pair: _area(pair[0]))

    def figures(self, curve: FSC) -> dict[str, float]:
        return {"resolution_angstrom": curve.resolution(0.5), "area": _area(curve)}

    def curve(self, correlation: NDArray) -> FSC:
        """A stored curve."""
        empty = fsc(self.volume, self.volume, pixel_size=self.pixel_size)
        return FSC(empty.frequency, correlation, empty.voxels, empty.pixel_size, empty.box)


def _averaged(
    folder: str | os.PathLike[str],
    volume: NDArray,
    pixel_size: float,
    views: int,
    snr: float,
    cells: Sequence[tuple[float, int, int]],
    scales: Sequence[float],
    fresh: bool,
) -> tuple[list[dict[str, Any]], dict[tuple[int, float], FSC], StudyFolder]:
    """A row for each cell (error, classes, seed) and scale, and the curve of each (classes, scale)."""
    volume = np.asarray(volume, np.float32)
    if not snr > 0:
        raise ValueError(f"snr must be positive, got {snr}")
    place = StudyFolder(folder, {"volume": volume, "views": views, "snr": snr}, fresh=fresh)
    source = _Source(volume, pixel_size)
    rows: list[dict[str, Any]] = []
    curves: dict[tuple[int, float], FSC] = {}
    for error, classes, seed in cells:
        made: list[Any] = []  # averages, made when one of the scales needs them
        for scale in scales:
            key = f"e{error:.4g}-c{classes}-r{seed}-s{scale:g}"

            def compute(
                e: float = error, c: int = classes, r: int = seed, s: float = scale, made: list[Any] = made
            ) -> Any:
                if not made:
                    made.extend(_noisy_averages(source, views, snr, e, c, r))
                curve, lam = source.best(made[0], Poses(made[1]), s)
                return source.figures(curve) | {"lam": lam}, {"fsc": curve.correlation}

            row = place.cell(key, compute)
            rows.append({"error_deg": error, "classes": classes, "seed": seed, "scale": scale, **row})
            curves.setdefault((classes, scale), source.curve(place.arrays(key)["fsc"]))
    return rows, curves, place


def _noisy_averages(
    source: _Source, views: int, snr: float, error_deg: float, classes: int, seed: int
) -> tuple[NDArray, NDArray]:
    """Averages and poses of classes; images and errors of a seed are the same for all errors and classes."""
    rng = np.random.default_rng(seed)
    true = random_rotations(views, rng=rng)
    images = source.project(Poses(true))
    images += (np.std(images) / snr**0.5 * rng.standard_normal(images.shape)).astype(np.float32)
    off = 3**0.5 * error_deg * rng.uniform(-1, 1, (3, views))
    rot, tilt, psi = (a + e for a, e in zip(euler_from_matrix(true), off, strict=True))
    averages, poses, _ = class_averages(images, Poses(matrix_from_euler(rot, tilt, psi)), classes)
    return averages, poses


def _area(curve: FSC) -> float:
    return float(np.sum(curve.correlation[1:]))


def _mean(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Of the figures; the mean resolution is that of the mean frequency."""
    frequency = np.mean([1 / r["resolution_angstrom"] if r["resolution_angstrom"] else 0.0 for r in rows])
    return {
        "resolution_angstrom": float(1 / frequency) if frequency > 0 else float("inf"),
        "area": float(np.mean([r["area"] for r in rows])),
        "lam": float(np.exp(np.mean([np.log(r["lam"]) for r in rows]))),
        "seeds": len(rows),
    }
