#!/usr/bin/env python
"""Peak memory of ``invcryo reconstruct --reg none`` against the number of particles.

Images are read in batches from a mapped file. While all of them fit into one batch (8 million pixels: 2048 images of
64 pixels) the memory grows with their number; beyond, only by what is known of each particle.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import processes


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64, help="side of the images")
    parser.add_argument("--particles", type=int, nargs="+", default=[500, 1000, 2000, 4000, 8000])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file to write the record to")
    options = parser.parse_args(argv)
    if len(set(options.particles)) < 2:
        parser.error("give at least two different numbers of --particles")
    record = measure(options.size, options.particles, options.threads)
    print(f"{'particles':>9} {'images MB':>9} {'peak MB':>8} {'own MB':>8} {'seconds':>8}")
    for row in record["rows"]:
        own = "unknown" if row["own_mb"] is None else f"{row['own_mb']:.1f}"
        print(
            f"{row['particles']:9} {row['images_mb']:9.1f} {row['peak_mb']:8.1f} {own:>8} {row['seconds']:8.2f}"
        )
    print("peak: resident, with the pages of the mapped images; own: without them")
    growth = record["own_bytes_per_particle"]
    if growth is not None:
        print(
            f"own memory grows by {growth:.0f} bytes per particle between the last two rows;"
            f" an image has {record['image_bytes']}"
        )
    if options.json:
        processes.write_json(options.json, record)
    return 0


def measure(size: int, particles: list[int], threads: int) -> dict[str, Any]:
    """One reconstruction per number of particles; the growth is between the two largest."""
    rows = []
    for n in sorted(set(particles)):
        with tempfile.TemporaryDirectory(prefix="invcryo-benchmark-") as name:
            scratch = Path(name)
            with processes.Worker(sys.executable, scratch, threads) as worker:
                worker.ask("simulate", folder=str(scratch / "stack"), size=size, particles=n)
            run = processes.reconstruct("invcryo", scratch / "stack", scratch / "out", threads)
        rows.append(
            {
                "particles": n,
                "images_mb": n * 4 * size**2 / 1e6,
                "peak_mb": run.peak_mb,
                "own_mb": run.own_mb,
                "seconds": run.seconds,
            }
        )
    known = all(row["own_mb"] is not None for row in rows)
    return {
        "schema": 1,
        "machine": processes.machine(),
        "size": size,
        "threads": threads,
        "rows": rows,
        "image_bytes": 4 * size**2,
        "own_bytes_per_particle": _growth(rows[-2], rows[-1]) if known else None,
    }


def _growth(a: dict[str, Any], b: dict[str, Any]) -> float:
    return 1e6 * (b["own_mb"] - a["own_mb"]) / (b["particles"] - a["particles"])


if __name__ == "__main__":
    raise SystemExit(main())
