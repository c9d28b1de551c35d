#!/usr/bin/env python
"""Peak memory of ``invcryo reconstruct --reg none`` against the number of particles.

The images are read in batches from a memory map, so that the peak should not grow by the size of an image
for every particle; pages of the map that the system keeps because memory is free do not count as the process's.
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
    parser.add_argument("--particles", type=int, nargs="+", default=[500, 1000, 2000])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file to write the record to")
    options = parser.parse_args(argv)
    if len(set(options.particles)) < 2:
        parser.error("give at least two different numbers of --particles")
    record = measure(options.size, options.particles, options.threads)
    print(f"{'particles':>9} {'images MB':>9} {'peak MB':>8} {'seconds':>8}")
    for row in record["rows"]:
        print(f"{row['particles']:9} {row['images_mb']:9.1f} {row['peak_mb']:8.1f} {row['seconds']:8.2f}")
    print(
        f"the peak grows by {record['bytes_per_particle']:.0f} bytes per particle;"
        f" an image has {record['image_bytes']}"
    )
    if options.json:
        processes.write_json(options.json, record)
    return 0


def measure(size: int, particles: list[int], threads: int) -> dict[str, Any]:
    """One reconstruction per number of particles; the growth is between the smallest and the largest."""
    rows = []
    for n in sorted(particles):
        with tempfile.TemporaryDirectory(prefix="invcryo-benchmark-") as name:
            scratch = Path(name)
            with processes.Worker(sys.executable, scratch, threads) as worker:
                worker.ask("simulate", folder=str(scratch / "stack"), size=size, particles=n)
            run = processes.reconstruct("invcryo", scratch / "stack", scratch / "out", threads)
        images_mb = n * 4 * size**2 / 1e6
        rows.append({"particles": n, "images_mb": images_mb, "peak_mb": run.peak_mb, "seconds": run.seconds})
    first, last = rows[0], rows[-1]
    growth = 1e6 * (last["peak_mb"] - first["peak_mb"]) / (last["particles"] - first["particles"])
    return {
        "schema": 1,
        "machine": processes.machine(),
        "size": size,
        "threads": threads,
        "rows": rows,
        "image_bytes": 4 * size**2,
        "bytes_per_particle": growth,
    }


if __name__ == "__main__":
    raise SystemExit(main())
