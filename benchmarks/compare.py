#!/usr/bin/env python
"""Compare two records of ``run.py``: ``python benchmarks/compare.py before.json after.json``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    options = parser.parse_args(argv)
    print(comparison(json.loads(options.before.read_text()), json.loads(options.after.read_text())))
    return 0


def comparison(before: dict[str, Any], after: dict[str, Any]) -> str:
    """One line per case and engine that both records hold; what differs in their settings comes first."""
    lines = []
    for group in ("machine", "options"):
        for key in before[group]:
            if before[group][key] != after[group].get(key):
                lines.append(
                    f"note: {key} differs: {before[group][key]} before, {after[group].get(key)} after"
                )
    old, new = _timed(before), _timed(after)
    for case, engine in sorted(old.keys() ^ new.keys()):
        lines.append(f"note: {case} by {engine} is in one record only")
    lines.append(
        f"{'case':15} {'engine':20} {'before s':>9} {'after s':>9} {'after/before':>13} {'peak MB':>15}"
    )
    for key in (k for k in old if k in new):
        a, b = old[key], new[key]
        # a difference inside ranges that overlap is what one machine does from minute to minute
        apart = a["max"] < b["min"] or b["max"] < a["min"]
        lines.append(
            f"{key[0]:15} {key[1]:20} {a['median']:9.3f} {b['median']:9.3f} {b['median'] / a['median']:13.2f}"
            f" {a['peak_mb']:7.0f} {b['peak_mb']:7.0f}{'' if apart else '  (ranges overlap)'}"
        )
    return "\n".join(lines)


def _timed(record: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (result["case"], e["engine"]): e
        for result in record["results"]
        for e in result["engines"]
        if "missing" not in e
    }


if __name__ == "__main__":
    raise SystemExit(main())
