"""Studies: cells that are computed once, tables, and the results they are made for."""

import csv
import json

import numpy as np
import pytest

from invcryo.studies.cells import StudyFolder, write_table
from invcryo.studies.incoherence import incoherence_study


def test_cells_are_computed_once(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"value": np.float64(2.5), "none": float("nan"), "list": (1, 2)}, {"a": np.arange(3)}

    place = StudyFolder(tmp_path / "s", {"size": 3, "images": np.ones(4)})
    row = place.cell("one", compute)
    assert row["value"] == 2.5 and row["none"] is None and row["list"] == [1, 2] and row["seconds"] >= 0
    again = StudyFolder(tmp_path / "s", {"size": 3, "images": np.ones(4)})
    assert again.cell("one", compute) == row and len(calls) == 1
    np.testing.assert_array_equal(again.arrays("one")["a"], [0, 1, 2])
    assert again.row("two") is None
    with pytest.raises(ValueError, match="another study, which differs in size"):
        StudyFolder(tmp_path / "s", {"size": 4, "images": np.ones(4)})
    with pytest.raises(ValueError, match="differs in images"):
        StudyFolder(tmp_path / "s", {"size": 3, "images": np.zeros(4)})
    with pytest.raises(ValueError, match="becomes that of a file"):
        place.cell("a/b", compute)
    anew = StudyFolder(tmp_path / "s", {"size": 4, "images": np.ones(4)}, fresh=True)
    assert anew.row("one") is None


def test_a_cell_cut_short_is_computed_again(tmp_path):
    place = StudyFolder(tmp_path, {})

    def fails():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place.cell("a", fails)
    # killed between the two files of a cell, or inside one
    np.savez(tmp_path / "cells" / "a.npz", a=np.zeros(2))
    (tmp_path / "cells" / ".1234abcd.part.a.json").write_text("{")
    again = StudyFolder(tmp_path, {})
    assert again.row("a") is None and not list((tmp_path / "cells").glob(".*"))
    assert again.cell("a", lambda: ({"v": 1}, {"a": np.ones(2)}))["v"] == 1
    np.testing.assert_array_equal(again.arrays("a")["a"], [1, 1])


def test_table(tmp_path):
    write_table(tmp_path, [{"a": 1, "b": None}, {"a": 2, "c": "x, y"}])
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"a": "1", "b": "", "c": ""}, {"a": "2", "b": "", "c": "x, y"}]
    assert json.loads((tmp_path / "table.json").read_text())[0] == {"a": 1, "b": None}


def test_random_sampling_is_incoherent_and_uniform_is_not(tmp_path):
    """The thesis' third result, small; with the spread over the seeds between them."""
    rows = incoherence_study(
        tmp_path, size=32, views=90, fractions=(0.5, 0.25), seeds=(0, 1, 2), pictures=False
    )
    assert len(rows) == 2 * (3 + 1 + 1) and (tmp_path / "table.csv").exists()
    for fraction in (0.5, 0.25):
        by = {
            scheme: [r for r in rows if r["scheme"] == scheme and r["fraction"] == fraction]
            for scheme in ("random", "uniform")
        }
        (uniform,) = by["uniform"]
        for metric in ("peak_sidelobe", "kurtosis"):
            assert max(r[metric] for r in by["random"]) < 0.5 * uniform[metric], (fraction, metric)
