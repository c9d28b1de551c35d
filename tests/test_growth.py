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


def test_estimate(tmp_path):
    """Exact where the measured times are exact powers."""

    def row(particles, size):
        milliseconds = 1e-4 * size**2
        seconds = {"computing": 1e-3 * milliseconds * particles, "finishing": 1e-7 * size**3}
        return {
            "particles": particles,
            "size": size,
            "threads": 2,
            "seconds": seconds,
            "milliseconds_per_particle": milliseconds,
        }

    sweeps = {
        "particles": {"rows": [row(10, 64), row(100, 64)], "exponent": 1.0},
        "size": {"rows": [row(10, 64), row(10, 128)], "exponent": 2.0},
    }
    record = {
        "machine": {"cpu": "a processor"},
        "at": {"particles": 10, "size": 64, "threads": 2},
        "sweeps": sweeps,
    }
    path = tmp_path / "g.json"
    path.write_text(json.dumps(record))
    done = subprocess.run([sys.executable, SCRIPT, "--estimate", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # 1e-4 * 512^2 = 26.21 ms, times a million = 7.28 hours; 1e-7 * 512^3 s times log 2560 / log 640
    assert "26.21 ms per image, 7.3 hours" in done.stdout and "16 s for its end" in done.stdout
    assert "1000000 particles of 512 pixels" in done.stdout and "1049 GB" in done.stdout
    done = subprocess.run(
        [sys.executable, SCRIPT, "--estimate", path, "--of", "10", "128"], capture_output=True, text=True
    )
    assert "1.64 ms per image" in done.stdout
