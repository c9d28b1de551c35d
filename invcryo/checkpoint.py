"""Unfinished work in a folder, so that a job that was cut short goes on where it was."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._version import __version__
from .io.atomic import atomic_path

__all__ = ["Checkpoint", "digest"]

_NAME = "unfinished.npz"


class Checkpoint:
    """Arrays of one job, kept in ``folder / "unfinished.npz"``.

    Parameters
    ----------
    folder : path-like
        Made when the first checkpoint is written.
    every : float
        Seconds between two checkpoints; more where writing takes over a twentieth of them.
    fresh : bool
        Ignore what the folder holds, and replace it.
    """

    def __init__(self, folder: str | os.PathLike[str], every: float = 60.0, *, fresh: bool = False) -> None:
        self.path, self.every = Path(folder) / _NAME, every
        self._fresh, self._wait, self._last = fresh, every, time.perf_counter()

    def load(self, job: Mapping[str, Any]) -> dict[str, NDArray] | None:
        """The arrays of an unfinished job, None where there is none; an error if it is another job's.

        ``job`` names whatever decides the result: numbers, text, arrays, operators. The version of this package
        is added.
        """
        self._last = time.perf_counter()
        for left in self.path.parent.glob(f".*.part.{_NAME}"):  # of a process killed while it wrote
            left.unlink(missing_ok=True)
        if self._fresh or not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as file:
                theirs = json.loads(file["job"].tobytes())
                ours = _fingerprint(job)
                other = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
                if not other:
                    return {name: file[name] for name in file.files if name != "job"}
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{self.path}, the state of an unfinished job, cannot be read ({error}): pass fresh=True to begin anew"
            ) from error
        raise ValueError(
            f"{self.path} holds the unfinished pass of another job, which differs in"
            f" {', '.join(_said(name, theirs, ours) for name in other)}: go on with it by the options it had, choose"
            " another folder, or pass fresh=True to begin anew"
        )

    def due(self) -> bool:
        """Whether it is time for the next checkpoint."""
        return time.perf_counter() - self._last >= self._wait

    def save(self, job: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> None:
        """Replace the checkpoint; it is complete or the earlier one at any moment."""
        start = time.perf_counter()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = np.frombuffer(json.dumps(_fingerprint(job)).encode(), np.uint8)
        with atomic_path(self.path) as temporary, temporary.open("wb") as file:
            np.savez(file, job=text, **arrays)  # type: ignore[arg-type]
        self._last = time.perf_counter()
        self._wait = max(self.every, 20 * (self._last - start))

    def remove(self) -> None:
        """The job is done."""
        self.path.unlink(missing_ok=True)


def _fingerprint(job: Mapping[str, Any]) -> dict[str, str]:
    named = {"version of invcryo": __version__, **job}
    return {
        name: str(v) if isinstance(v, (int, float, str, tuple)) else digest(v) for name, v in named.items()
    }


def _said(name: str, theirs: Mapping[str, str], ours: Mapping[str, str]) -> str:
    """The name of what differs, with its two values where they are not digests."""
    values = [fingerprint.get(name, "none") for fingerprint in (theirs, ours)]
    return name if any(len(v) == 64 for v in values) else f"{name} ({values[0]}, now {values[1]})"


def digest(thing: Any) -> str:
    """SHA-256 of the values in arrays, dataclasses, operators and the like; equal for equal contents."""
    state = hashlib.sha256()
    _feed(state, thing)
    return state.hexdigest()


def _feed(state: Any, thing: Any) -> None:
    state.update(f"<{type(thing).__qualname__}>".encode())
    if isinstance(thing, np.ndarray):
        state.update(f"{thing.dtype.str}{thing.shape}".encode())
        state.update(np.ascontiguousarray(thing).view(np.uint8).data if thing.size else b"")
    elif thing is None or isinstance(thing, (bool, int, float, complex, str, bytes, np.generic, np.dtype)):
        state.update(repr(thing).encode())
    elif isinstance(thing, (list, tuple)):
        for item in thing:
            _feed(state, item)
    elif isinstance(thing, Mapping):
        for key in sorted(thing, key=str):
            _feed(state, key)
            _feed(state, thing[key])
    elif isinstance(thing, slice):
        _feed(state, [thing.start, thing.stop, thing.step])
    else:
        # what is computed once and kept says nothing new, and may be there or not
        kept = {k for k, v in vars(type(thing)).items() if isinstance(v, functools.cached_property)}
        fields = (
            [f.name for f in dataclasses.fields(thing)] if dataclasses.is_dataclass(thing) else vars(thing)
        )
        _feed(state, {name: getattr(thing, name) for name in fields if name not in kept})
