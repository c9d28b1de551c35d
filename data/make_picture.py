"""Make the picture of the README from the demo set: ``python data/make_picture.py`` in the root of the repository."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import invcryo as ic

DEMO = Path(__file__).resolve().parent / "demo"


def main() -> None:
    stack = ic.read_particles(DEMO / "particles.star")
    truth = ic.read_map(DEMO / "truth.mrc").data
    result = ic.reconstruct(stack)
    z = truth.shape[0] // 2
    panels = {
        "2 of 500 particle images": np.concatenate([stack.images[:1][0], stack.images[3:4][0]], axis=1),
        "least squares": result.map_noreg[z],
        "total variation": result.map[z],
        "truth": truth[z],
    }
    figure = Figure(figsize=(10, 2.35), layout="constrained")
    axes = figure.subplots(1, len(panels), width_ratios=[p.shape[1] for p in panels.values()])
    top = truth[z].max()
    for ax, (title, image) in zip(axes, panels.items(), strict=True):
        low, high = (image.min(), image.max()) if "images" in title else (-0.1 * top, top)
        ax.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower", interpolation="nearest")
        ax.set_title(title, fontsize=11)
        ax.set_axis_off()
    figure.savefig(DEMO / "demo.png", dpi=110)


if __name__ == "__main__":
    main()
