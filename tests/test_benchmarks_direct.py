"""The benchmark of direct methods, small: its data are right, and what it says of each program."""

import importlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("direct_study")
    sys.path.remove(str(FOLDER))
    sys.modules.pop("direct_study", None)


@pytest.fixture(scope="module")
def rows(bench):
    """Of sinograms and of a tilted map, and what was missing."""
    missing = []
    found = bench.sinograms(41, 64, missing) + bench.weighted(23, missing)
    return {row["case"]: row for row in found}, missing


def test_sinograms_are_those_of_the_map(bench):
    """A projection along an axis of the grid is a sum; the sum of each projection is that of the map."""
    angles = np.array([0.0, 0.3, np.pi / 2])
    truth, sinogram = bench.section(41, np.random.default_rng(1), angles)
    np.testing.assert_allclose(sinogram[0], truth.sum(axis=0), atol=2e-3 * sinogram.max())
    np.testing.assert_allclose(sinogram[2], truth.sum(axis=1)[::-1], atol=2e-3 * sinogram.max())
    np.testing.assert_allclose(sinogram.sum(axis=1), truth.sum(), rtol=2e-3)


def test_ours(rows):
    found, missing = rows
    assert found["FBP ram-lak, exact"]["ours"] < 0.01 and abs(found["FBP ram-lak, exact"]["ours, DC"]) < 2e-3
    noisy = [found[f"FBP {f}, noise of 2 %"]["ours"] for f in ("ram-lak", "shepp-logan", "hann")]
    assert noisy == sorted(noisy, reverse=True) and noisy[-1] > found["FBP hann, exact"]["ours"]
    sirt = [found[f"SIRT, 61 tilts to 60 degrees, {n} iterations"] for n in (20, 100)]
    assert sirt[1]["ours"] < sirt[0]["ours"] < sirt[0]["ours, FBP"]
    assert found["WBP, 36 views"]["ours"] < 0.08
    few = found["WBP, 61 tilts to 60 degrees"]
    assert few["ours"] < few["ours, FBP of sections"]
    assert set(missing) <= {"scikit-image", "ASTRA"}
    assert ("ASTRA" in missing) == ("ASTRA" not in few)


def test_beside_scikit_image(rows):
    pytest.importorskip("skimage", reason="scikit-image is not installed: no comparison with it")
    for filter in ("ram-lak", "shepp-logan", "hann"):
        assert rows[0][f"FBP {filter}, exact"]["between ours and scikit-image"] < 0.01, filter


def test_beside_astra(rows):
    pytest.importorskip("astra", reason="ASTRA is not installed: no comparison with it")
    found = rows[0]
    assert found["FBP ram-lak, exact"]["between ours and ASTRA"] < 0.03
    assert found["SIRT, 61 tilts to 60 degrees, 100 iterations"]["between ours and ASTRA"] < 0.1
    assert found["WBP, 36 views"]["between ours and ASTRA"] < 0.08
    few = found["WBP, 61 tilts to 60 degrees"]
    assert few["ASTRA"] == pytest.approx(few["ours, FBP of sections"], abs=0.03)


def test_beside_relion(bench):
    if shutil.which("relion_reconstruct") is None:
        pytest.skip("RELION is not on the PATH: no comparison with it")
    missing = []
    found = {row["case"].rpartition(": ")[2]: row for row in bench.particles(24, 150, missing)[:4]}
    assert missing == [] and list(found) == ["RELION", "direct", "direct, Wiener", "least squares"]
    assert found["RELION"]["mean FSC to RELION"] == pytest.approx(1)
    for name in found:
        assert found[name]["mean FSC to the truth"] > 0.9, name
        assert found[name]["mean FSC to RELION"] > 0.9, name


def test_what_is_missing_is_named(bench, monkeypatch):
    monkeypatch.setitem(sys.modules, "astra", None)
    monkeypatch.setattr(bench.shutil, "which", lambda name: None)
    missing = []
    assert "ASTRA" not in bench.weighted(15, missing)[0] and bench.particles(24, 10, missing) == []
    assert sorted(set(missing)) == ["ASTRA", "RELION"]
