"""The experiments of Ullrich et al. (2019) and two more, for the record: ``python benchmarks/posterior.py FOLDER``.

    # 64 px
    python benchmarks/posterior.py out --data ../shared/data
    # the size of the paper
    python benchmarks/posterior.py out --data ../shared/data --box 128 --particles 40000 --epochs 1 --batch 128

Tables and pictures go into a folder for each part; parts that are done are not done again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from invcryo.simulate import model_to_volume
from invcryo.studies import posterior as study

FIELD = 2.8 * 128  # angstrom: the side of the paper's box
DIAMETER = 180.0  # of the ring, 145 angstrom across, blurred to twice the pixel of 64 in the field


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of the reference data, with models/1oel.pdb"
    )
    parser.add_argument("--box", type=int, default=64)
    parser.add_argument("--particles", type=int, default=4000)
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--batch", type=int, default=32, help="images of a step")
    parser.add_argument("--padding", type=int, default=2, help="of 6.2 and the starts")
    parser.add_argument("--diameter", type=float, default=DIAMETER, help="angstrom; 0: the whole box")
    parser.add_argument("--parts", nargs="+", default=["6.1", "6.2", "6.3", "6.4", "starts"])
    parser.add_argument("--start", default="least-squares", choices=["least-squares", "none"])
    args = parser.parse_args()
    size = FIELD / args.box
    volume = model_to_volume(args.data / "models" / "1oel.pdb", args.box, size, resolution=2 * size)
    common = {"particles": args.particles}
    start = None if args.start == "none" else args.start
    model = {"padding": args.padding, "diameter": args.diameter or None}
    fit = {"epochs": args.epochs, "batch": args.batch, "start": start}
    parts = {
        # slices of the voxels themselves, as in the paper
        "6.1": lambda place: study.dirac_and_gaussian(place, volume, size, **common, **fit, padding=1),
        "6.2": lambda place: study.signal_to_noise_curves(place, volume, size, **common, **fit, **model),
        "6.3": lambda place: study.limited_views(place, volume, size, **common, **fit, padding=1),
        "6.4": lambda place: study.pose_surfaces(place, volume, size, symmetry="C7"),
        "starts": lambda place: study.starts(place, volume, size, **common, **model),
    }
    for name in args.parts:
        begun = time.perf_counter()
        rows = parts[name](args.folder / name)
        print(f"{name}: {time.perf_counter() - begun:.0f} s")
        for row in rows:
            print(
                "  " + json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}),
                flush=True,
            )


if __name__ == "__main__":
    main()
