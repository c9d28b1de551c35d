"""Output folders, whose results appear together, and the record of a run."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from .._version import __version__
from .common import plain
from .runlog import LOG, active_log, working_folder

PACKAGES = ("numpy", "scipy", "numba", "pyfftw", "mrcfile", "gemmi", "tqdm")
OPTIONAL_PACKAGES = ("matplotlib",)


class OutputFolder:
    """A folder whose results appear together, when all of them are made; a context manager.

    Entering it makes the folder and proves, before anything is computed, that results can be written there; from
    then on the log of the run is there too. A folder made for nothing is removed again.

    Parameters
    ----------
    path : path-like
    names : collection of str
        Every file that the command may write. One of them, ``run.json``, is written last and removed first:
        where it is, the other results belong to it.
    overwrite : bool
        Whether results that are there may be replaced.
    """

    def __init__(self, path: str | os.PathLike[str], names: Collection[str], *, overwrite: bool) -> None:
        self.path, self.names, self.overwrite = Path(path), tuple(names), overwrite
        self._made = False

    @property
    def existing(self) -> list[str]:
        """Results that are there already."""
        return [name for name in self.names if os.path.lexists(self.path / name)]

    def __enter__(self) -> OutputFolder:
        if self.existing and not self.overwrite:
            shown = ", ".join(self.existing[:3]) + (", ..." if len(self.existing) > 3 else "")
            raise FileExistsError(
                f"folder {self.path} holds results already ({shown}); they were left alone. Choose another"
                " folder with -o, or pass --overwrite to replace them"
            )
        try:
            self._made = not self.path.is_dir()
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise type(error)(
                f"cannot write into folder {self.path} ({error.strerror}); choose another one with -o, or ask"
                " for the right to write there"
            ) from error
        log = active_log()
        if log is not None:
            log.open(self.path / LOG)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._made and kind is not None:
            log = active_log()
            with suppress(OSError):  # not empty: then it stays
                if log is not None:
                    log.discard()
                self.path.rmdir()

    @contextmanager
    def results(self) -> Iterator[Path]:
        """A folder to write into, whose files move to their place when the block ends well."""
        staging = Path(tempfile.mkdtemp(prefix=".invcryo-", suffix=".part", dir=self.path))
        try:
            yield staging
            self._publish(staging)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _publish(self, staging: Path) -> None:
        new = {file.name for file in staging.iterdir()}
        if new - set(self.names):
            raise RuntimeError(f"results without a declared name: {sorted(new - set(self.names))}")
        (self.path / "run.json").unlink(missing_ok=True)
        for name in sorted(new - {"run.json"}):
            os.replace(staging / name, self.path / name)
        for name in self.existing:  # of an earlier run with other options
            if name not in new:
                (self.path / name).unlink()
        if "run.json" in new:
            os.replace(staging / "run.json", self.path / "run.json")


def check_new_files(paths: Iterable[Path], *, overwrite: bool) -> None:
    """Refuse, before anything is computed, what could not be written or must not be replaced."""
    for path in paths:
        if os.path.lexists(path) and not overwrite:
            raise FileExistsError(
                f"{path} exists and was left alone; choose another name or pass --overwrite"
            )
        if not path.parent.is_dir():
            raise FileNotFoundError(
                f"cannot write {path}: folder {path.parent} does not exist; create it first"
            )
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(
                f"cannot write {path}: folder {path.parent} is read-only; choose another one"
            )


def versions() -> dict[str, str | None]:
    """Versions of Python, invcryo and the packages it stands on; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "invcryo": __version__}
    for name in (*PACKAGES, *OPTIONAL_PACKAGES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def record(args: argparse.Namespace, words: Sequence[str], started: float) -> dict[str, Any]:
    """What ``run.json`` says of every run: the command as typed, all options, versions, time."""
    from ..backend import threads

    hidden = ("run", "command", "json", "quiet", "debug", "log")
    return {
        "command_line": ["invcryo", *words],
        "working_folder": working_folder(),
        "arguments": {k: v for k, v in sorted(vars(args).items()) if k not in hidden},
        "versions": versions(),
        "platform": platform.platform(),
        "threads": threads(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "wall_seconds": round(time.time() - started, 3),
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    from ..io.atomic import atomic_open

    with atomic_open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(plain(content), indent=2, allow_nan=False) + "\n")
