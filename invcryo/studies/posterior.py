"""What a posterior of Fourier voxels is good for: the experiments of Ullrich et al. (2019), section 6, and two more.

Each function simulates projections of a map without CTF, as the paper does, fits, and writes a table and pictures into
a folder; a study that was cut short goes on.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..autograd.slices import Touched
from ..data import ParticleStack, Poses
from ..learned import VoxelPosterior
from ..learned.pose_surface import PoseErrors
from ..learned.spectra import VoxelGrid
from ..metrics import FSC, fsc
from ..rotation import euler_from_matrix, geodesic_distance, matrix_from_rotvec, random_rotations
from ..simulate import cone_orientations, simulate_particles
from ..symmetry import point_group
from .cells import StudyFolder, write_table

__all__ = [
    "area_under_roc",
    "dirac_and_gaussian",
    "limited_views",
    "pose_surfaces",
    "signal_to_noise_curves",
    "starts",
]

#: Of the paper: "medium" and "high" noise.
RATIOS = (0.04, 0.01)


def simulated(
    volume: NDArray, particles: int, pixel_size: float, snr: float | None, seed: int, **options: Any
) -> tuple[ParticleStack, NDArray]:
    """Projections without CTF, in memory, and the map in their units."""
    stack = simulate_particles(
        volume, particles, pixel_size, snr=snr, defocus_angstrom=None, rng=seed, **options
    )
    images = np.concatenate([stack.images[i : i + 500] for i in range(0, particles, 500)])
    return dataclasses.replace(stack, images=images), stack.images.truth


def _job(
    volume: NDArray, particles: int, pixel_size: float, seed: int, fit: dict[str, Any]
) -> dict[str, Any]:
    return {"volume": volume, "particles": particles, "pixel_size": pixel_size, "seed": seed, "fit": fit}


def _mse(volume: NDArray, truth: NDArray) -> float:
    """Mean square error per voxel, of a truth of unit variance."""
    return float(((volume - truth).astype(np.float64) ** 2).mean() / truth.var(dtype=np.float64))


def _shell(curve: FSC, threshold: float) -> float:
    """Where a curve first crosses a threshold, in shells, between them by a line; the last shell where it does not."""
    if curve.beyond_nyquist(threshold):
        return len(curve.correlation) - 1.0
    return curve.box * curve.pixel_size / curve.resolution(threshold, interpolate=True)


# -- 6.1 ---------------------------------------------------------------------------------------------------------------


def dirac_and_gaussian(
    folder: str | os.PathLike[str],
    volume: NDArray,
    pixel_size: float,
    *,
    particles: int = 4000,
    snr: float | None = None,
    seed: int = 0,
    fresh: bool = False,
    **fit: Any,
) -> list[dict[str, Any]]:
    """Both kinds of posterior on the same images, noise-free in the paper: error, resolution, time (table 1).

    Parameters
    ----------
    folder : path-like
        Of the results.
    volume : (box, box, box)
    pixel_size : float
        Angstrom.
    **fit
        Options of `VoxelPosterior.fit`.

    Returns
    -------
    list of dict
        ``kind``, ``mse`` (of a truth of unit variance), ``resolution`` (FSC with the truth at 0.5, angstrom, a line
        between shells), ``last_shell`` (the last one above), ``seconds``.
    """
    place = StudyFolder(folder, _job(volume, particles, pixel_size, seed, {**fit, "snr": snr}), fresh=fresh)

    def compute(kind: Any) -> tuple[dict[str, Any], dict[str, NDArray]]:
        stack, truth = simulated(volume, particles, pixel_size, snr, seed)
        begun = time.perf_counter()
        posterior = VoxelPosterior.fit(stack, kind=kind, rng=seed, progress=False, **fit)
        spent = time.perf_counter() - begun
        found, truth = posterior.mean_map(), posterior.grid.within(truth)
        curve = fsc(found, truth, pixel_size=pixel_size)
        row = {
            "mse": _mse(found, truth),
            "resolution": curve.resolution(0.5, interpolate=True),
            "last_shell": round(curve.box * pixel_size / curve.resolution(0.5)),
            "fit_seconds": round(spent, 2),
        }
        return row, {"map": found, "truth": truth, "fsc": curve.correlation}

    rows = [{"kind": kind, **place.cell(kind, lambda k=kind: compute(k))} for kind in ("dirac", "gaussian")]  # type: ignore[misc]
    write_table(place.path, rows)
    return rows


# -- 6.2 ---------------------------------------------------------------------------------------------------------------


def signal_to_noise_curves(
    folder: str | os.PathLike[str],
    volume: NDArray,
    pixel_size: float,
    *,
    particles: int = 4000,
    ratios: Sequence[float] = RATIOS,
    seed: int = 0,
    pictures: bool = True,
    fresh: bool = False,
    **fit: Any,
) -> list[dict[str, Any]]:
    """One Gaussian fit to all images against half sets and the truth (figure 4), and how well it is calibrated.

    Returns
    -------
    list of dict
        For each ratio where curves cross, in shells: ``expected_`` is of ``alpha / (1 + alpha)``, ``expected_truth_``
        of its square root, which is what it expects of the FSC with the truth, ``truth_`` of that FSC, ``halves_`` of
        the FSC of Dirac fits to half sets. Shells are those of the posterior's field, in which all maps are compared.
        ``above_halves`` is the part of the shells, up to where half sets agree, in which the expected curve lies above
        theirs. ``within_1`` and ``within_2`` are of coefficients of the map.
    """
    place = StudyFolder(folder, _job(volume, particles, pixel_size, seed, fit), fresh=fresh)

    def compute(snr: float) -> tuple[dict[str, Any], dict[str, NDArray]]:
        stack, truth = simulated(volume, particles, pixel_size, snr, seed)
        options = {"rng": seed, "progress": False, **fit}
        whole = VoxelPosterior.fit(stack, **options)
        dirac = VoxelPosterior.fit(stack, kind="dirac", **options)
        halves = [VoxelPosterior.fit(half, kind="dirac", **options) for half in stack.halves()]
        truth = whole.grid.within(truth)
        maps = {"gaussian": whole, "dirac": dirac, "half1": halves[0], "half2": halves[1]}
        with_truth = {
            name: fsc(found.mean_map(), truth, pixel_size=pixel_size) for name, found in maps.items()
        }
        split = fsc(halves[0].mean_map(), halves[1].mean_map(), pixel_size=pixel_size)
        expected, root = whole.fsc(), whole.fsc(with_truth=True)
        test = whole.calibration(truth)
        signal = slice(1, int(_shell(split, 0.143)) + 1)
        row: dict[str, Any] = {
            "expected_0.143": _shell(expected, 0.143),
            "expected_0.5": _shell(expected, 0.5),
            "expected_truth_0.5": _shell(root, 0.5),
            "expected_truth_0.143": _shell(root, 0.143),
            "truth_0.5": _shell(with_truth["gaussian"], 0.5),
            "truth_0.143": _shell(with_truth["gaussian"], 0.143),
            "dirac_truth_0.5": _shell(with_truth["dirac"], 0.5),
            "halves_0.143": _shell(split, 0.143),
            "halves_0.5": _shell(split, 0.5),
            "above_halves": float((expected.correlation >= split.correlation)[signal].mean()),
        }
        row["within_1"], row["within_2"] = test.overall()
        row["field"] = whole.field
        arrays = {f"truth_{name}": curve.correlation for name, curve in with_truth.items()}
        arrays |= {"halves": split.correlation, "expected": expected.correlation}
        arrays |= {"expected_truth": root.correlation, "within": test.within}
        arrays |= {"noise": whole.noise, "prior": whole.prior}
        return row, arrays

    rows = [{"snr": snr, **place.cell(f"snr-{snr:g}", lambda s=snr: compute(s))} for snr in ratios]  # type: ignore[misc]
    write_table(place.path, rows)
    if pictures:
        _draw_curves(place, ratios, int(rows[0]["field"]), pixel_size)
    return rows


def _draw_curves(place: StudyFolder, ratios: Sequence[float], field: int, pixel_size: float) -> None:
    from .. import plot

    shown = {
        "expected": "expected, α/(1+α)",
        "expected_truth": "expected with truth, its root",
        "truth_gaussian": "Gaussian with truth",
        "truth_dirac": "Dirac with truth",
        "truth_half1": "half set with truth",
        "halves": "half sets",
    }
    panels = plot.common.new_panels(1, len(ratios), (6.4 * len(ratios), 4.8)).ravel()
    for ax, snr in zip(panels, ratios, strict=True):
        arrays = place.arrays(f"snr-{snr:g}")
        frequency = np.arange(field // 2 + 1) / (field * pixel_size)
        curves = {
            label: FSC(frequency, arrays[name], np.ones(len(frequency), int), pixel_size, field)
            for name, label in shown.items()
        }
        plot.fsc_curves(curves, ax=ax)
        ax.set_title(f"signal to noise {snr:g}", fontsize=10)
    plot.save(panels, place.path / "curves.png", dpi=90)
    panels = plot.common.new_panels(1, len(ratios), (6.0 * len(ratios), 4.0)).ravel()
    for ax, snr in zip(panels, ratios, strict=True):
        arrays = place.arrays(f"snr-{snr:g}")
        plot.calibration(
            {"coefficients of the map": arrays["within"]}, pixel_size=pixel_size, box=field, ax=ax
        )
        ax.set_title(f"signal to noise {snr:g}", fontsize=10)
    plot.save(panels, place.path / "calibration.png", dpi=90)


# -- 6.3 ---------------------------------------------------------------------------------------------------------------


def limited_views(
    folder: str | os.PathLike[str],
    volume: NDArray,
    pixel_size: float,
    *,
    particles: int = 4000,
    ratios: Sequence[float | None] = (None, 0.04),
    cone_deg: float = 15.0,
    seed: int = 0,
    pictures: bool = True,
    fresh: bool = False,
    **fit: Any,
) -> list[dict[str, Any]]:
    """Views within a cone: whether sigma tells the voxels that were sampled from those that were not (figure 5).

    Returns
    -------
    list of dict
        For each ratio: ``area`` under the ROC curve of sigma over prior as a sign of voxels that no slice touches, and
        ``area_unpolished`` of deviations by stochastic gradients alone, after the last whole epoch (of which there
        must be one); ``seen`` and ``unseen``, medians of sigma over prior; ``touched``, part of the voxels.
    """
    place = StudyFolder(
        folder, _job(volume, particles, pixel_size, seed, {**fit, "cone": cone_deg}), fresh=fresh
    )

    def compute(snr: float | None) -> tuple[dict[str, Any], dict[str, NDArray]]:
        views = cone_orientations(particles, np.radians(cone_deg), rng=seed)
        stack, _ = simulated(volume, particles, pixel_size, snr, seed, orientations=views)
        learned: dict[str, VoxelPosterior] = {}  # of the last epoch, before the closed form
        posterior = VoxelPosterior.fit(
            stack,
            rng=seed,
            progress=False,
            callback=lambda p, _: learned.update(last=p),
            **fit,
        )
        grid = posterior.grid
        seen = np.zeros(grid.shape, bool)
        for first in range(0, particles, 500):
            turns = views[first : first + 500]
            seen |= Touched.by(turns, grid.field, stack.box).places >= 0
        part = grid.inside & (grid.shells < grid.field // 2)
        sigma = posterior.uncertainty
        row = {
            "area": area_under_roc(sigma[part], ~seen[part]),
            "area_unpolished": area_under_roc(learned["last"].uncertainty[part], ~seen[part]),
            "seen": float(np.median(sigma[part & seen])),
            "unseen": float(np.median(sigma[part & ~seen])),
            "touched": float(seen[part].mean()),
        }
        return row, {"sigma": sigma.astype(np.float16), "seen": seen}

    rows = []
    for snr in ratios:
        key = "no-noise" if snr is None else f"snr-{snr:g}"
        rows.append({"snr": snr, **place.cell(key, lambda s=snr: compute(s))})  # type: ignore[misc]
        if pictures:
            from .. import plot

            sigma = place.arrays(key)["sigma"].astype(np.float32)
            axes = plot.fourier_slices(sigma, title="no noise" if snr is None else f"SNR {snr:g}")
            plot.save(axes, place.path / f"sigma-{key}.png", dpi=90)
    write_table(place.path, rows)
    return rows


def area_under_roc(score: NDArray, positive: NDArray) -> float:
    """Chance that a positive has a higher score than a negative, ties counted half."""
    values, place = np.unique(score, return_inverse=True)
    ones = np.bincount(place, positive, len(values))
    zeros = np.bincount(place, ~positive, len(values))
    if not ones.any() or not zeros.any():
        raise ValueError("all voxels are of one class: there is no ROC curve")
    below = np.cumsum(zeros) - zeros
    return float((ones * (below + 0.5 * zeros)).sum() / (ones.sum() * zeros.sum()))


# -- 6.4 ---------------------------------------------------------------------------------------------------------------


def pose_surfaces(
    folder: str | os.PathLike[str],
    volume: NDArray,
    pixel_size: float,
    *,
    snr: float | None = 0.04,
    symmetry: str = "C1",
    images: int = 4,
    count: int = 100,
    steps: int = 200,
    points: int = 73,
    seed: int = 0,
    pictures: bool = True,
    fresh: bool = False,
) -> list[dict[str, Any]]:
    """Errors over two Euler angles with the true map, and where descents from random poses end (figure 6).

    Returns
    -------
    list of dict
        For each image: ``converged``, the part of ``count`` random starts that end within 5 degrees of the best pose
        found, or a symmetric one; ``near``, the same of starts 10 degrees from the truth; ``optima``, distinct ends of
        the random starts up to symmetry, 5 degrees apart; ``off``, degrees of the best pose from the truth, and
        ``bound``, what noise allows in the root mean square (`PoseErrors.bound`).
    """
    job = {"volume": volume, "pixel_size": pixel_size, "snr": 0.0 if snr is None else snr, "seed": seed}
    job |= {"count": count, "steps": steps, "points": points, "symmetry": symmetry}
    place = StudyFolder(folder, job, fresh=fresh)
    rot, tilt = np.linspace(-180, 180, points), np.linspace(0, 180, points // 2 + 1)

    def compute(image: int) -> tuple[dict[str, Any], dict[str, NDArray]]:
        stack, truth = simulated(volume, images, pixel_size, snr, seed)
        one = stack[np.full(count, image)]
        assert one.poses is not None
        errors = PoseErrors(truth, one, noise=1.0 if snr is not None else 1e-2 * float(one.images.var()))
        rng = np.random.default_rng([seed, image])
        surface = errors.surface(0, np.radians(rot), np.radians(tilt))
        true = one.poses.matrices
        group = point_group(symmetry)
        random = errors.descend(Poses(random_rotations(count, rng=rng)), steps=steps, progress=False)
        axes = rng.normal(size=(count, 3))
        turns = matrix_from_rotvec(np.radians(10) * axes / np.linalg.norm(axes, axis=1, keepdims=True))
        near = errors.descend(Poses(turns @ true), steps=steps, progress=False)
        ends = np.concatenate([random.poses.matrices, near.poses.matrices])
        best = ends[np.concatenate([random.errors, near.errors]).argmin()]
        row = {
            "converged": float((_apart(random.poses.matrices, best, group) < 5).mean()),
            "near": float((_apart(near.poses.matrices, best, group) < 5).mean()),
            "optima": _distinct(random.poses.matrices, group),
            "off": float(_apart(best[None], true[0], group)[0]),
            "bound": float(errors.bound(true[:1])[0]) if snr is not None else 0.0,
        }
        angles = np.stack(euler_from_matrix(true[:1]), 1)[0]
        psi = np.degrees(random.path[..., 2])
        keep = np.argsort(np.abs((psi[-1] - angles[2] + 180) % 360 - 180))[:8]
        path = np.degrees(random.path[:, keep, :2]).transpose(1, 0, 2)
        return row, {"surface": surface, "true": angles, "path": path}

    rows = [{"image": i, **place.cell(f"image-{i}", lambda k=i: compute(k))} for i in range(images)]  # type: ignore[misc]
    write_table(place.path, rows)
    if pictures:
        from .. import plot

        arrays = place.arrays("image-0")
        paths = [_on_sheet(p) for p in arrays["path"]]
        ax = plot.pose_errors_surface(
            arrays["surface"] - arrays["surface"].min(),
            rot,
            tilt,
            true=tuple(arrays["true"][:2]),
            paths=paths,
        )
        plot.save(ax, place.path / "surface.png", dpi=90)
    return rows


def _on_sheet(path: NDArray) -> NDArray:
    """Rot and tilt in -180 to 180 and 0 to 180 degrees."""
    rot, tilt = path.T
    tilt = tilt % 360
    back = tilt > 180
    rot = np.where(back, rot + 180, rot)
    return np.stack([(rot + 180) % 360 - 180, np.where(back, 360 - tilt, tilt)], 1)


def _apart(matrices: NDArray, true: NDArray, group: NDArray) -> NDArray:
    """Degrees to the nearest of the poses that look alike."""
    return np.degrees(np.min([geodesic_distance(matrices, true @ g) for g in group], axis=0))


def _distinct(matrices: NDArray, group: NDArray, apart: float = 5.0) -> int:
    """Poses that differ by more than this, up to symmetry."""
    left, found = matrices, 0
    while len(left):
        left, found = left[_apart(left, left[0], group) > apart], found + 1
    return found


# -- beyond the paper --------------------------------------------------------------------------------------------------


def starts(
    folder: str | os.PathLike[str],
    volume: NDArray,
    pixel_size: float,
    *,
    particles: int = 4000,
    ratios: Sequence[float | None] = (None, 0.04),
    epochs: Sequence[float] = (1, 2, 4, 8, 16),
    within: float = 0.25,
    seed: int = 0,
    fresh: bool = False,
    **fit: Any,
) -> list[dict[str, Any]]:
    """Time to the same resolution: of the start from the least-squares map, and of the paper's scheme from nothing.

    The scheme of the paper has trilinear slices of the voxels themselves, a prior that is the same for all (here the
    root mean square of the true ones), and stochastic gradients alone. Its rate falls to zero over the epochs, so that
    each number of epochs is a fit of its own.

    Parameters
    ----------
    epochs : sequence of float
        Of the scheme of the paper.
    within : float
        Angstrom by which a resolution may differ from that of the least-squares start and be the same.

    Returns
    -------
    list of dict
        For each ratio and each fit: ``cpu_seconds``, of the estimates and the least-squares map too;
        ``resolution`` (FSC with the truth at 0.5, angstrom, in the field of the posterior), ``mse``, and ``ratio`` of
        the time to that of the least-squares start where the resolution is the same.
    """
    job = _job(volume, particles, pixel_size, seed, {**fit, "within": within})
    place = StudyFolder(folder, job, fresh=fresh)

    def compute(snr: float | None, count: float) -> tuple[dict[str, Any], dict[str, NDArray]]:
        stack, truth = simulated(volume, particles, pixel_size, snr, seed)
        options: dict[str, Any] = {"rng": seed, "progress": False, "epochs": count}
        if count:
            power = np.abs(VoxelGrid(stack.box, 1).voxels(truth)) ** 2
            options |= {"prior": float(np.sqrt(power.mean())), "padding": 1, "polish": False}
        else:
            options |= {"start": "least-squares", **fit}
        VoxelPosterior.fit(stack[:64], **options | {"epochs": 1 if count else 0})  # kernels are compiled
        begun = time.process_time()
        posterior = VoxelPosterior.fit(stack, **options)
        spent = time.process_time() - begun
        grid = VoxelGrid(stack.box, 2, VoxelPosterior.field_of(stack, fit.get("diameter")))
        map_, truth = grid.within(posterior.mean_map()), grid.within(truth)
        curve = fsc(map_, truth, pixel_size=pixel_size)
        row = {"resolution": curve.resolution(0.5, interpolate=True), "mse": _mse(map_, truth)}
        return {"cpu_seconds": spent, **row}, {}

    rows: list[dict[str, Any]] = []
    for snr in ratios:
        own: list[dict[str, Any]] = []
        for count in (0, *epochs):
            name = "least-squares" if count == 0 else f"paper-{count:g}-epochs"
            key = f"{'no-noise' if snr is None else f'snr-{snr:g}'}-{name}"
            own.append({"snr": snr, "start": name, **place.cell(key, lambda s=snr, c=count: compute(s, c))})  # type: ignore[misc]
        for row in own:
            same = row["resolution"] <= own[0]["resolution"] + within
            row["ratio"] = row["cpu_seconds"] / own[0]["cpu_seconds"] if same else None
        rows += own
    write_table(place.path, rows)
    return rows
