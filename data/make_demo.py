"""Make the demo stack of data/demo: run ``python data/make_demo.py`` in the root of the repository.

Every number of the set is here; the same versions of NumPy and invcryo give the same files.
"""

from pathlib import Path

from invcryo.simulate import phantom, simulate_particles, write_simulation

BOX = 48
PIXEL_SIZE = 5.0
PARTICLES = 500


def main() -> None:
    stack = simulate_particles(
        phantom("enzyme", BOX, rng=2),
        PARTICLES,
        PIXEL_SIZE,
        snr=0.1,
        defocus_angstrom=(8000.0, 20000.0),
        astigmatism_angstrom=400.0,
        voltage_kv=300.0,
        cs_mm=2.7,
        amplitude_contrast=0.1,
        shift_px=2.0,
        rng=20261121,
    )
    write_simulation(Path(__file__).resolve().parent / "demo", stack)


if __name__ == "__main__":
    main()
