"""A study as a table of cells in a folder: each is computed once, and a study that was cut short goes on."""

from __future__ import annotations

import csv
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._version import __version__
from ..checkpoint import digest
from ..io.atomic import atomic_open, atomic_path

__all__ = ["StudyFolder", "plain", "write_table"]

logger = logging.getLogger(__name__)


class StudyFolder:
    """The folder of a study.

    ``study.json`` says what the study is of; ``cells/KEY.json`` and ``cells/KEY.npz`` hold the figures and arrays of a
    cell, complete or not there; ``table.csv`` and ``table.json`` gather the figures.

    Parameters
    ----------
    path : path-like
        Made if it is not there.
    job : mapping
        What decides the results and is the same for all cells: numbers, text, arrays. A folder that holds another
        study is refused.
    fresh : bool
        Leave out what the folder holds, and replace it.
    """

    def __init__(self, path: str | os.PathLike[str], job: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.path = Path(path)
        self._cells = self.path / "cells"
        self._cells.mkdir(parents=True, exist_ok=True)
        mark = {"version of invcryo": __version__} | {
            name: value if isinstance(value, int | float | str | bool) else digest(value)
            for name, value in job.items()
        }
        stated = self.path / "study.json"
        if fresh:
            for old in [stated, *self._cells.glob("*.json"), *self._cells.glob("*.npz")]:
                old.unlink(missing_ok=True)
        if stated.exists():
            theirs = json.loads(stated.read_text(encoding="utf-8"))
            other = [name for name in mark | theirs if mark.get(name) != theirs.get(name)]
            if other:
                raise ValueError(
                    f"{self.path} holds another study, which differs in {', '.join(other)}; choose another folder, or"
                    " pass fresh=True to begin anew"
                )
        else:
            _write(stated, mark)
        for left in self._cells.glob(".*.part.*"):  # of a process killed while it wrote
            left.unlink(missing_ok=True)

    def row(self, key: str) -> dict[str, Any] | None:
        """The figures of a cell, None where it is not done."""
        path = self._cells / f"{key}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def arrays(self, key: str) -> dict[str, NDArray]:
        """The arrays of a cell that is done."""
        with np.load(self._cells / f"{key}.npz", allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    def cell(
        self, key: str, compute: Callable[[], tuple[dict[str, Any], dict[str, NDArray]]]
    ) -> dict[str, Any]:
        """The figures of a cell, computed if they are not there yet."""
        if not key or set(key) & set('/\\:*?"<>| '):
            raise ValueError(f"the name of a cell becomes that of a file, got {key!r}")
        done = self.row(key)
        if done is not None:
            return done
        start = time.perf_counter()
        row, arrays = compute()
        row = {**row, "seconds": round(time.perf_counter() - start, 3)}
        with atomic_path(self._cells / f"{key}.npz") as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        _write(self._cells / f"{key}.json", row)  # last: where it is, the cell is complete
        logger.info("%s: %s", key, row)
        return plain(row)


def write_table(
    folder: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]], name: str = "table"
) -> None:
    """``NAME.csv`` and ``NAME.json`` in a folder; a figure that a row lacks stays empty."""
    rows = list(rows)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with atomic_open(Path(folder) / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows({k: "" if v is None else v for k, v in plain(row).items()} for row in rows)
    _write(Path(folder) / f"{name}.json", rows)


def plain(value: Any) -> Any:
    """``value`` in the types of JSON; what is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def _write(path: Path, content: Any) -> None:
    with atomic_open(path, "w", encoding="utf-8") as file:
        json.dump(plain(content), file, indent=1, allow_nan=False)
