"""The benchmark of growth runs and leaves a well-formed record. Nothing here depends on time."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "growth.py"


def test_growth(tmp_path):
    words = ["--particles", 20, 40, "--size", 16, "--threads", 1, "--at", 20, 16, 1, "--repeat", 1, "--whole"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}  # the script finds the package
    done = subprocess.run(
        [
            sys.executable,
            SCRIPT,
            *map(str, words),
            "--json",
            tmp_path / "g.json",
            "--png",
            tmp_path / "g.png",
        ],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "ms/image" in done.stdout and "reconstruction of 40 images" in done.stdout
    record = json.loads((tmp_path / "g.json").read_text())
    assert record["schema"] == 1 and record["at"] == {"particles": 20, "size": 16, "threads": 1}
    rows = record["sweeps"]["particles"]["rows"]
    assert [r["particles"] for r in rows] == [20, 40] and all(r["seconds"]["computing"] > 0 for r in rows)
    assert all(r["peak_mb"] > 50 for r in rows)
    assert record["sweeps"]["particles"]["exponent"] is not None
    assert record["sweeps"]["threads"]["exponent"] is None  # one point has no slope
    assert record["whole"]["particles"] == 40 and record["whole"]["total_seconds"] > 0
    assert (tmp_path / "g.png").read_bytes().startswith(b"\x89PNG")
