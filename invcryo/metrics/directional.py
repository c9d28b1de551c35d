"""Anisotropy: FSC by direction, and how evenly the viewing directions sample Fourier space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..grid import frequencies
from ..progress import Meter
from ..rotation import spiral_views
from .fsc import FSC, _checked, _parts, _single_pixel_size, _slabs, _transform

if TYPE_CHECKING:
    from ..data import Poses

__all__ = [
    "DirectionalFSC",
    "OrientationEfficiency",
    "Sampling",
    "describe_views",
    "directional_fsc",
    "fibonacci_axes",
    "orientation_efficiency",
    "sampling_compensation",
]

#: Fourier voxels below which a cone's value in a shell says nothing.
_FEW = 10


@dataclass(frozen=True, eq=False)
class DirectionalFSC:
    """FSC within double cones about many axes; see `directional_fsc`.

    Attributes
    ----------
    axes : ndarray, (n, 3)
        Unit vectors (x, y, z), z >= 0.
    curves : ndarray, (n, shells)
        In the coarse shells where a cone holds fewer than 10 Fourier voxels, that of all directions stands.
    resolution : ndarray, (n,)
        Angstrom, by the rule of `FSC.resolution`.
    whole : FSC
        Over all directions.
    half_angle : float
        Of the cones, degrees.
    threshold : float
    """

    axes: NDArray
    curves: NDArray
    resolution: NDArray
    whole: FSC
    half_angle: float
    threshold: float

    @property
    def areas(self) -> NDArray:
        """Area under each curve up to its first fall below the threshold, in shells."""
        good = self.curves[:, 1:] >= self.threshold
        return np.where(np.logical_and.accumulate(good, axis=1), self.curves[:, 1:], 0.0).sum(axis=1)

    @property
    def cfar_like(self) -> float:
        """Least over largest area under the curves: 1 for an isotropic map, below 0.5 for preferred views.

        The conical FSC area ratio as SIMPLE defines it in the open; cryoSPARC's cFAR is meant to be the same,
        but its code is not public.
        """
        areas = self.areas
        return float(areas.min() / areas.max()) if areas.max() > 0 else 0.0


def directional_fsc(
    a: ArrayLike,
    b: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    pixel_size: float | Sequence[float],
    n_axes: int = 256,
    half_angle: float = 20.0,
    threshold: float = 0.143,
    progress: bool | None = None,
) -> DirectionalFSC:
    """FSC of two half maps within double cones about evenly spread axes, as 3DFSC and the cFAR take it.

    Parameters
    ----------
    a, b, mask, pixel_size
        As for `fsc`; three axes. A mask adds correlation in all directions, which is not corrected here: the
        figures compare directions, they do not replace the resolution.
    n_axes : int
        On half of the sphere: a direction and its opposite are one.
    half_angle : float
        Degrees.
    threshold : float
    progress : bool, optional
        Whether to draw a progress bar; default: on a terminal.
    """
    size = _single_pixel_size(pixel_size)
    first, second, weight = _checked(a, b, mask)
    if first.ndim != 3 or len(set(first.shape)) > 1:
        raise ValueError(f"directional FSC takes cubic maps, got shape {first.shape}; pad or crop them")
    if not 0 < half_angle <= 90:
        raise ValueError(f"half_angle lies between 0 and 90 degrees, got {half_angle}")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold lies between 0 and 1, got {threshold}")
    axes = fibonacci_axes(n_axes)
    shape, box = first.shape, first.shape[0]
    count = box // 2 + 1
    fa, fb = _transform(first, weight), _transform(second, weight)
    z, y, x = frequencies(shape, half=True)
    cosine = np.cos(np.deg2rad(half_angle)) - 1e-9
    sums = np.zeros((4, n_axes, count))  # cross, power of a, power of b, voxels
    total = np.zeros((4, count))
    work = len(_slabs(shape)) * n_axes
    with Meter("FSC by direction", total=work, unit="cones", show=progress) as meter:
        for rows, shells, mates in _parts(shape):
            inside = (shells < count) & (shells > 0)
            shell = shells[inside]
            u, v = fa[rows][inside].astype(np.complex128), fb[rows][inside].astype(np.complex128)
            w = mates[inside]
            terms = (w * (u.real * v.real + u.imag * v.imag), w * np.abs(u) ** 2, w * np.abs(v) ** 2, w)
            k = np.broadcast_arrays(x, y, z[rows])
            directions = np.stack([c[inside] for c in k])
            directions /= np.sqrt((directions**2).sum(axis=0))
            for part, term in zip(total, terms, strict=True):
                part += np.bincount(shell, weights=term, minlength=count)
            for i, axis in enumerate(axes):
                cone = np.abs(axis @ directions) >= cosine
                for j, term in enumerate(terms):
                    sums[j, i] += np.bincount(shell[cone], weights=term[cone], minlength=count)
                meter.step()
    frequency = np.arange(count) / (box * size)
    total[3, 0] = 1
    voxels = np.rint(total[3]).astype(np.int64)
    fraction = 1.0 if weight is None else float(weight.mean(dtype=np.float64))

    def curve(values: NDArray) -> FSC:
        return FSC(frequency, values, voxels, size, box, fraction)

    everywhere = _ratio(total)
    everywhere[0] = 1.0  # has no direction
    curves = np.where(sums[3] < _FEW, everywhere, _ratio(sums))
    return DirectionalFSC(
        axes=axes,
        curves=curves,
        resolution=np.array([curve(c).resolution(threshold) for c in curves]),
        whole=curve(everywhere),
        half_angle=float(half_angle),
        threshold=float(threshold),
    )


def _ratio(sums: NDArray) -> NDArray:
    norm = np.sqrt(sums[1]) * np.sqrt(sums[2])
    return np.divide(sums[0], norm, out=np.zeros_like(norm), where=norm > 0)


@dataclass(frozen=True, eq=False)
class Sampling:
    """How evenly views sample the directions of Fourier space; see `sampling_compensation`.

    Attributes
    ----------
    axes : ndarray, (n, 3)
        Directions in Fourier space, unit vectors (x, y, z), z >= 0.
    density : ndarray, (n,)
        Views that hold each direction, over what evenly spread views would give; 1 on average.
    scf : float
        Sampling compensation factor, 0 to 1.
    unsampled : float
        Part of the directions that no view holds.
    """

    axes: NDArray
    density: NDArray
    scf: float
    unsampled: float


def sampling_compensation(
    poses: Poses, *, symmetry: str = "C1", n_axes: int = 2000, shell: float | None = None
) -> Sampling:
    """Sampling compensation factor of viewing directions: harmonic mean of the sampling of Fourier space.

    A view fills the plane through the origin that is normal to its direction. Where directions in Fourier
    space are sampled unevenly, the SNR of a shell falls by the factor ``SCF = 1 / mean(1 / density)`` against
    even sampling (Baldwin and Lyumkis, 2020): 1 for views spread evenly over the sphere, ``8 / pi**2 = 0.81``
    for views spread evenly over a great circle (side views), and toward 0 where a cone of directions is not
    sampled at all (top views). A direction that no view holds is counted as if half a view held it, so the
    factor stays finite and falls with their number.

    Parameters
    ----------
    poses : Poses
    symmetry : str
        Point group of the particle: each view counts for all its equivalents.
    n_axes : int
        Directions at which the sampling is evaluated, on half of the sphere.
    shell : float, optional
        Radius in Fourier voxels: a view holds a direction q where ``|q . view| < 0.5 / shell``. Unless given,
        50, but less for few views, so that evenly spread ones would hold each direction at least 50 times:
        random numbers of views per direction lower the factor by about one part in that number.
    """
    from ..symmetry import point_group

    if len(poses) == 0:
        raise ValueError("no poses: there is no sampling to judge")
    group = point_group(symmetry)
    # the third row of a pose is the viewing direction; particle copies are turned by the group
    views = np.concatenate([np.asarray(poses.matrices)[:, 2] @ g for g in group])
    if shell is None:
        shell = min(50.0, max(1.0, 0.5 * len(views) / 50))
    if not shell >= 1:
        raise ValueError(f"shell is a radius of 1 Fourier voxel or more, got {shell}")
    half_width = 0.5 / shell
    axes = fibonacci_axes(n_axes)
    counts = np.zeros(n_axes)
    step = max(1, (1 << 22) // n_axes)
    for i in range(0, len(views), step):
        counts += np.count_nonzero(np.abs(axes @ views[i : i + step].T) < half_width, axis=1)
    expected = half_width * len(views)  # the band holds this part of the sphere
    floor = np.maximum(counts, 0.5)
    return Sampling(
        axes=axes,
        density=counts / expected,
        scf=min(1.0, 1 / float(np.mean(expected / floor))),
        unsampled=float(np.mean(counts == 0)),
    )


@dataclass(frozen=True, eq=False)
class OrientationEfficiency:
    """Extent of the point-spread function of a set of views, by direction; see `orientation_efficiency`.

    Attributes
    ----------
    axes : ndarray, (n, 3)
        Directions in the map, unit vectors (x, y, z), z >= 0.
    widths : ndarray, (n,)
        Distance at which it has fallen to the level, along each, over that of one image: 1 or more.
    """

    axes: NDArray
    widths: NDArray

    @property
    def efficiency(self) -> float:
        """``1 - 2 std(widths) / mean(widths)``, and not less than 0."""
        return max(0.0, 1 - 2 * float(self.widths.std() / self.widths.mean()))

    @property
    def anisotropy(self) -> float:
        """Largest over smallest width."""
        return float(self.widths.max() / self.widths.min())


def orientation_efficiency(
    poses: Poses, *, symmetry: str = "C1", extent: float = 50.0, level: float = 0.5, n_axes: int = 300
) -> OrientationEfficiency:
    """Efficiency of an orientation distribution: how alike all directions are resolved by back-projection.

    The point-spread function of the views is that of H^T H: each view smears a point along its direction v. Here an
    image sees a point as a Gaussian of standard deviation 1 (its envelope; the CTF is left out), and a particle ends
    after ``extent`` of these, as a Gaussian again, which gives a central section its thickness in Fourier space::

        PSF(r) = mean over v of exp(-|r|^2 / 2 (1 - c^2 + c^2 / extent^2)),   c = cosine between r and v

    The distance R at which it has fallen to ``level`` is found in many directions, and the efficiency is
    ``1 - 2 std(R) / mean(R)``: 1 where all directions are resolved alike, 0.71 for side views, evenly about one axis,
    and 0 for a single view. As the PSF is not divided by the sampling, it judges views as back-projection would, and
    is kinder than `sampling_compensation` to directions that few views hold.

    The formula is equation 1 of Naydenova and Russo (2017, Nat. Commun. 8, 629; their program is cryoEF). The rest is
    a definition of ours: cryoEF cuts a PSF of its own, made with a B-factor and a diameter, and does so at 1/e^2 by
    what the source of cisTEM says of it. Tails count for more there: with ``level=exp(-2)`` side views have 0.29. The
    two programs were not run side by side. Compare sets of poses by this figure, not with cryoEF's digits.

    Parameters
    ----------
    poses : Poses
    symmetry : str
        Point group of the particle: each view counts for all its equivalents.
    extent : float
        Size of the particle over the resolution. It matters only where nearly all views point the same way.
    level : float
        Part of the peak, between 0 and 1.
    n_axes : int
        Directions at which the width is found, on half of the sphere.
    """
    from ..symmetry import point_group

    if len(poses) == 0:
        raise ValueError("no poses: there is no sampling to judge")
    if not extent >= 1:
        raise ValueError(f"extent is 1 or more, got {extent}")
    if not 0 < level < 1:
        raise ValueError(f"level lies between 0 and 1, got {level}")
    views = np.concatenate([np.asarray(poses.matrices)[:, 2] @ g for g in point_group(symmetry)])
    views, weight = _thinned(views)
    axes = fibonacci_axes(n_axes)
    widths = np.empty(n_axes)
    step = max(1, (1 << 20) // len(views))
    for i in range(0, n_axes, step):
        squared = (axes[i : i + step] @ views.T) ** 2
        rate = 1 - np.minimum(squared, 1.0) * (1 - 1 / extent**2)
        widths[i : i + step] = np.sqrt(_fall(rate, weight, level) / -np.log(level))
    return OrientationEfficiency(axes, widths)


def describe_views(poses: Poses, *, symmetry: str = "C1", most: int = 20_000) -> dict[str, float]:
    """The figures of `orientation_efficiency` and `sampling_compensation` together, in less than a second.

    Of more views than ``most``, symmetry counted, so many are judged: drawn at random, the same ones every time.
    """
    from ..symmetry import point_group

    most = max(1, most // len(point_group(symmetry)))
    if len(poses) > most:
        poses = poses[np.random.default_rng(0).choice(len(poses), most, replace=False)]
    extent = orientation_efficiency(poses, symmetry=symmetry)
    sampling = sampling_compensation(poses, symmetry=symmetry, n_axes=500)
    return {
        "efficiency": extent.efficiency,
        "anisotropy": extent.anisotropy,
        "scf": sampling.scf,
        "unsampled": sampling.unsampled,
    }


def _fall(rate: NDArray, weight: NDArray, level: float) -> NDArray:
    """t at which ``sum weight exp(-rate t)`` is at the level, for each row of rates.

    Newton's method on the logarithm, which falls and is convex: from 0 it comes up to the root and never beyond.
    """
    t = np.zeros(len(rate))
    for _ in range(100):
        terms = weight * np.exp(-rate * t[:, None])
        value = terms.sum(axis=1)
        step = np.log(value / level) * value / (terms * rate).sum(axis=1)
        t += step
        if (step <= 1e-10 * t).all():
            break
    return t


def _thinned(views: NDArray, cells: int = 32) -> tuple[NDArray, NDArray]:
    """Many views by their means in cells of 1 / cells of a radian, and the weights of these; few as they are."""
    views = np.where(views[:, 2:] < 0, -views, views)  # a view and its opposite smear alike
    if len(views) <= 4 * cells**2:
        return views, np.full(len(views), 1 / len(views))
    cell = np.rint(views * cells).astype(np.int64) + cells
    _, place = np.unique(cell @ ((2 * cells + 1) ** np.arange(3)), return_inverse=True)
    means = np.stack([np.bincount(place, weights=column) for column in views.T], axis=1)
    return means / np.linalg.norm(means, axis=1, keepdims=True), np.bincount(place) / len(views)


def fibonacci_axes(n: int) -> NDArray:
    """``n`` unit vectors (x, y, z) spread evenly over the half sphere z > 0, by the golden angle."""
    if n < 1:
        raise ValueError(f"n_axes must be 1 or more, got {n}")
    return spiral_views(2 * n)[:n, 2]
