"""Simulated particle stacks: projections, CTF, noise; computed when they are read, or streamed to files."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..ctf import CTF
from ..data import ParticleStack, Poses
from ..grid import frequencies
from ..io import StackImages, StackWriter, open_stack, write_map, write_particles
from ..operators import ImageFilter, LinOp, Projector
from ..window import BandLimited
from .orientations import uniform_orientations

__all__ = ["SimulatedImages", "random_ctf", "simulate_particles", "write_simulation"]

logger = logging.getLogger(__name__)

#: Particles from which the power of the signal is measured.
PILOT = 200


def random_ctf(
    n: int,
    defocus_angstrom: tuple[float, float],
    *,
    astigmatism_angstrom: float = 0.0,
    voltage_kv: float = 300.0,
    cs_mm: float = 2.7,
    amplitude_contrast: float = 0.1,
    phase_shift: float = 0.0,
    b_factor: float = 0.0,
    rng: np.random.Generator | int | None = None,
) -> CTF:
    """CTF parameters of ``n`` particles.

    Parameters
    ----------
    n : int
        Number of particles.
    defocus_angstrom : (float, float)
        The mean defocus of each particle is uniform between these, positive for underfocus.
    astigmatism_angstrom : float
        ``defocus_u - defocus_v`` is uniform from 0 to this, along an axis that is uniform.
    voltage_kv, cs_mm, amplitude_contrast, phase_shift, b_factor : float
        As of `CTF`, the same for all: kilovolts, millimetres, a fraction, radians, angstrom squared.
    rng : Generator or int, optional
        Source of randomness.
    """
    rng = np.random.default_rng(rng)
    low, high = defocus_angstrom
    if not low <= high:
        raise ValueError(f"defocus_angstrom is (lowest, highest), got ({low:g}, {high:g})")
    if astigmatism_angstrom < 0:
        raise ValueError(f"astigmatism_angstrom must not be negative, got {astigmatism_angstrom:g}")
    mean = rng.uniform(low, high, n)
    half_difference = 0.5 * rng.uniform(0.0, astigmatism_angstrom, n)
    return CTF(
        mean + half_difference,
        mean - half_difference,
        rng.uniform(0.0, np.pi, n),
        voltage_kv,  # type: ignore[arg-type]
        cs_mm,  # type: ignore[arg-type]
        amplitude_contrast,  # type: ignore[arg-type]
        phase_shift,  # type: ignore[arg-type]
        b_factor,  # type: ignore[arg-type]
    )


class SimulatedImages:
    """Simulated images (n, box, box), float32, computed when indexed.

    Image i is ``CTF_i P_i truth + noise_i``. Its noise depends on the seed and on i alone, so the same
    particle comes out whatever is read with it.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
    truth : ndarray, (box, box, box), float32
        The map in the units of the images: the volume that was given, times ``scale``.
    scale : float
        1 where the images are in the units of the volume that was given, else 1 / standard deviation of the
        noise in those units.
    noise_sd : float
        Standard deviation of the noise in the units of the images; 0 without noise.
    """

    # For `LeastSquares`: indexing runs parallel loops, which must not start in a second thread, beside those of the
    # pass over the images.
    read_ahead = False

    def __init__(
        self,
        volume: NDArray[np.float32],
        poses: Poses,
        ctf: CTF | None,
        pixel_size: float,
        image_box: int,
        *,
        seed: int,
        noise_spectrum: ArrayLike | None = None,
    ) -> None:
        self.truth = volume
        self.scale = 1.0
        self.noise_sd = 0.0
        self.dtype = np.dtype(np.float32)
        self.shape = (len(poses), image_box, image_box)
        self._projector: LinOp = Projector(poses, BandLimited(), volume.shape, image_box)
        self._filter = None if ctf is None else ImageFilter.from_ctf(ctf, image_box, pixel_size)
        self._seed = seed
        self._amplitude = None if noise_spectrum is None else _noise_amplitude(noise_spectrum, image_box)
        self._rows = np.arange(len(poses))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> NDArray[np.float32]:
        if isinstance(index, (int, np.integer)):
            return self[index : index + 1 or None][0]
        images = self.clean(index)
        if self.noise_sd > 0:
            for image, row in zip(images, self._rows[index], strict=True):
                image += self._noise(int(row))
        return images

    def subset(self, index: Any) -> SimulatedImages:
        """The images at ``index``, a slice or an array, with nothing computed yet."""
        part = copy.copy(self)
        part._rows = self._rows[index]
        part._projector = self._projector.rows(index)
        part._filter = None if self._filter is None else self._filter.rows(index)
        part.shape = (len(part._rows),) + self.shape[1:]
        return part

    def clean(self, index: Any) -> NDArray[np.float32]:
        """The images at ``index``, a slice or an array, without noise."""
        images = self._projector.rows(index)(self.truth)
        return images if self._filter is None else self._filter.rows(index)(images)

    def add_noise(self, snr: float, normalise: bool) -> None:
        """Set the noise to the ratio ``snr``, and the scale; see `simulate_particles`."""
        signal = float(self.clean(slice(0, PILOT)).var(axis=(1, 2), dtype=np.float64).mean())
        if signal == 0:
            raise ValueError(
                "the images are constant, so no signal-to-noise ratio can be set; is the map zero?"
            )
        self.noise_sd = float(np.sqrt(signal / snr))
        if normalise:
            self.scale = 1.0 / self.noise_sd
            self.truth = (self.truth * self.scale).astype(np.float32)
            self.noise_sd = 1.0

    def _noise(self, row: int) -> NDArray[np.float32]:
        # a counter-based generator can start anywhere: one stream per particle, in any order of reading
        stream = np.random.Generator(np.random.Philox(key=self._seed, counter=[0, 0, 0, row]))
        noise: NDArray = stream.standard_normal(self.shape[1:], dtype=np.float32)
        if self._amplitude is not None:
            noise = np.fft.irfft2(np.fft.rfft2(noise) * self._amplitude, s=self.shape[1:], axes=(0, 1))
        return (self.noise_sd * noise).astype(np.float32)


def simulate_particles(
    volume: ArrayLike,
    n: int,
    pixel_size: float,
    *,
    snr: float | None,
    defocus_angstrom: tuple[float, float] | None = (8000.0, 20000.0),
    astigmatism_angstrom: float = 0.0,
    voltage_kv: float = 300.0,
    cs_mm: float = 2.7,
    amplitude_contrast: float = 0.1,
    phase_shift: float = 0.0,
    b_factor: float = 0.0,
    shift_px: float = 0.0,
    orientations: str | ArrayLike = "uniform",
    noise_spectrum: ArrayLike | None = None,
    normalise: bool = True,
    image_box: int | None = None,
    rng: np.random.Generator | int | None = None,
) -> ParticleStack:
    """A stack of ``n`` simulated particles, protein white, whose images are computed when they are read.

    Parameters
    ----------
    volume : array_like, (box, box, box)
        The map; its voxels are band-limited samples, and its projections central slices of its spectrum.
    n : int
        Number of particles.
    pixel_size : float
        Angstrom per voxel of the map and per pixel of the images.
    snr : float or None
        Signal-to-noise ratio: variance over the whole image of the noise-free image (CTF included), averaged
        over the first 200 particles, over the variance of the noise; the noise has the same variance in all
        images. It is a plain ratio: ``10 ** (decibel / 10)``. None: no noise. A wider box lowers the ratio.
    defocus_angstrom, astigmatism_angstrom, voltage_kv, cs_mm, amplitude_contrast, phase_shift, b_factor
        As of `random_ctf`. ``defocus_angstrom=None``: no CTF at all.
    shift_px : float
        Largest shift along x and along y, pixels: both are uniform in ``[-shift_px, shift_px]``.
    orientations : "uniform" or array_like, (n, 3, 3)
        Pose matrices, of `preferred_orientations` for instance.
    noise_spectrum : array_like, (m,), optional
        Power of the noise at m radial frequencies, evenly spaced from 0 to Nyquist, interpolated linearly and
        constant in the corners beyond. Only its shape counts, the variance follows from ``snr``. White unless
        given.
    normalise : bool
        Divide by the standard deviation of the noise, so that the background has mean 0 and deviation 1, as
        RELION expects, up to what the CTF spreads of the particle. One factor serves all images; it is
        ``stack.images.scale``, and ``stack.images.truth`` is the map in the units of the images. Without
        noise there is nothing to divide by, and the images stay in the units of the map.
    image_box : int, optional
        Side of the images in pixels; that of the map unless given.
    rng : Generator or int, optional
        Source of randomness. A seed gives the same particles however they are read.

    Returns
    -------
    ParticleStack
        Its ``images`` are `SimulatedImages`; half sets 1, 2, 1, 2, ...

    Notes
    -----
    As in RELION's own projections, what the CTF spreads over the edge of the image comes back on the other
    side: leave room for it, about ``wavelength * defocus / resolution``.
    """
    volume = np.array(volume, dtype=np.float32)
    if volume.ndim != 3 or len(set(volume.shape)) != 1:
        raise ValueError(f"the map must be a cube (box, box, box), got {volume.shape}; pad it")
    if not np.isfinite(volume).all():
        raise ValueError("the map holds NaN or infinite values")
    if snr is not None and not (np.isfinite(snr) and snr > 0):
        raise ValueError(f"snr must be a positive ratio, got {snr}; use snr=None for images without noise")
    if not shift_px >= 0:
        raise ValueError(f"shift_px must not be negative, got {shift_px:g}")
    rng = np.random.default_rng(rng)
    poses = Poses(_orientations(orientations, n, rng), rng.uniform(-shift_px, shift_px, (n, 2)))
    ctf = None
    if defocus_angstrom is not None:
        ctf = random_ctf(
            n,
            defocus_angstrom,
            astigmatism_angstrom=astigmatism_angstrom,
            voltage_kv=voltage_kv,
            cs_mm=cs_mm,
            amplitude_contrast=amplitude_contrast,
            phase_shift=phase_shift,
            b_factor=b_factor,
            rng=rng,
        )
    box = volume.shape[0] if image_box is None else image_box
    seed = int(rng.integers(2**63))
    images = SimulatedImages(volume, poses, ctf, pixel_size, box, seed=seed, noise_spectrum=noise_spectrum)
    if snr is not None:
        images.add_noise(snr, normalise)
    return ParticleStack(images, pixel_size, poses, ctf, half=np.arange(n) % 2 + 1)


def write_simulation(
    folder: str | os.PathLike[str], stack: ParticleStack, *, batch_size: int = 256, dtype: Any = np.float32
) -> Path:
    """Write a simulated stack to ``particles.mrcs``, ``particles.star`` and ``truth.mrc``.

    Parameters
    ----------
    folder : path
        Made if it is not there. RELION finds the images when it runs in this folder.
    stack : ParticleStack
        Of `simulate_particles`.
    batch_size : int
        Images in memory at a time; what is written does not depend on it.
    dtype : dtype
        float32, or float16 (MRC mode 12, which RELION reads from version 4).

    Returns
    -------
    Path
        That of ``particles.star``, which is written last. ``truth.mrc`` is ``stack.images.truth``: the map in
        the units of the images.
    """
    images = stack.images
    if not isinstance(images, SimulatedImages):
        raise TypeError(
            f"write_simulation takes a stack of simulate_particles, its images are {type(images)}"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    star, stack_path = folder / "particles.star", folder / "particles.mrcs"
    n = len(stack)
    with StackWriter(stack_path, stack.pixel_size, dtype=dtype, label="simulated particles") as writer:
        for start in range(0, n, batch_size):
            writer.append(images[start : start + batch_size])
    write_map(folder / "truth.mrc", images.truth, stack.pixel_size, label="truth of the simulation")
    written = StackImages([open_stack(stack_path).header], np.zeros(n), np.arange(n))
    # named relative to the folder, so that it can be moved
    names = np.array([f"{i:06d}@{stack_path.name}" for i in range(1, n + 1)])
    write_particles(star, dataclasses.replace(stack, images=written, table={"rlnImageName": names}))
    logger.info("wrote %d particles to %s", n, folder)
    return star


def _orientations(orientations: str | ArrayLike, n: int, rng: np.random.Generator) -> NDArray:
    if isinstance(orientations, str):
        if orientations != "uniform":
            raise ValueError(f'orientations must be "uniform" or matrices (n, 3, 3), got {orientations!r}')
        return uniform_orientations(n, rng=rng)
    matrices = np.asarray(orientations, dtype=float)
    if matrices.shape != (n, 3, 3):
        raise ValueError(f"orientations of {n} particles must have shape ({n}, 3, 3), got {matrices.shape}")
    return matrices


def _noise_amplitude(spectrum: ArrayLike, box: int) -> NDArray:
    """Filter (box, box // 2 + 1) that gives white noise a spectrum and leaves its variance."""
    power = np.asarray(spectrum, dtype=float)
    if (
        power.ndim != 1
        or len(power) < 2
        or not np.isfinite(power).all()
        or power.min() < 0
        or not power.any()
    ):
        raise ValueError(
            "noise_spectrum must be at least two powers, finite, not negative and not all zero,"
            f" got {power.shape} with values from {power.min():g} to {power.max():g}"
        )
    radii = np.linspace(0.0, 0.5, len(power))

    def on_grid(half: bool) -> NDArray:
        y, x = frequencies((box, box), half)
        return np.interp(np.hypot(y, x), radii, power)

    return np.sqrt(on_grid(half=True) / on_grid(half=False).mean())
