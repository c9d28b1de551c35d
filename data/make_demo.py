"""Make the demo stack of data/demo: run ``python data/make_demo.py`` in the root of the repository.

The numbers of the set are in `invcryo.cli.demo.simulate`, which ``invcryo demo`` falls back on where the files are not
installed; the same versions of NumPy and invcryo give the same files.
"""

from pathlib import Path

from invcryo.cli.demo import simulate
from invcryo.simulate import write_simulation


def main() -> None:
    write_simulation(Path(__file__).resolve().parent / "demo", simulate())


if __name__ == "__main__":
    main()
