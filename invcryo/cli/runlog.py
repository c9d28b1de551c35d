"""The log of a run: ``run.log`` in the output folder, or a file that was named; lines with times, run after run."""

from __future__ import annotations

import logging
import os
import platform
import shlex
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

__all__ = ["LOG", "RunLog", "active_log", "working_folder"]

LOG = "run.log"


class RunLog(logging.Handler):
    """Keeps what is logged until there is a file to write it into, and writes through from then on.

    A log that cannot be written is said once, and does not end the run.

    Parameters
    ----------
    words : sequence of str
        The command, as typed after ``invcryo``.
    """

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__()
        formatter = logging.Formatter("%(asctime)sZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
        formatter.converter = time.gmtime
        self.setFormatter(formatter)
        self._words = list(words)
        self._early: deque[str] = deque(maxlen=1000)
        self._file: IO[str] | None = None
        self._path: Path | None = None

    def emit(self, record: logging.LogRecord) -> None:
        # what follows a line break is indented, so that no message can look like another one
        line = self.format(record).replace("\r", "\\r").replace("\n", "\n    ")
        if self._file is None:
            self._early.append(line)
        else:
            self._write(line)

    def open(self, path: Path) -> None:
        """Write into this file from now on; what an earlier run wrote there stays above."""
        if self._path is not None:  # what was named comes first; of several folders, the first
            return
        self._path = path
        try:
            self._file = self._path.open("a", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            self._give_up(error)
            return
        if self._file.tell():
            self._write("")
        for line in (*self._header(), *self._early):
            self._write(line)
        self._early.clear()

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None
        super().close()

    def discard(self) -> None:
        """Remove the log of a run that came to nothing, in a folder that it alone is in."""
        if self._path is not None and os.listdir(self._path.parent) == [LOG]:
            self.close()
            self._path.unlink()

    def _header(self) -> list[str]:
        from .output import versions

        shown = ", ".join(f"{name} {v}" for name, v in versions().items() if v is not None)
        return [
            f"# {shlex.join(['invcryo', *self._words])}".replace("\n", "\\n"),
            f"# in {working_folder()}, process {os.getpid()} on {platform.node()}, {platform.platform()}".replace(
                "\n", "\\n"
            ),
            f"# {shown}",
        ]

    def _write(self, line: str) -> None:
        if self._file is None:
            return
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            self._give_up(error)
        except RuntimeError:  # Ctrl-C while a line is being written: the message stands on the terminal
            pass

    def _give_up(self, error: OSError) -> None:
        self.close()
        print(f"invcryo: no log is written ({self._path}: {error.strerror})", file=sys.stderr)


def working_folder() -> str | None:
    """The folder of this process, None if it was removed meanwhile."""
    try:
        return os.getcwd()
    except OSError:
        return None


def active_log() -> RunLog | None:
    """The log of the command that is running, if one is."""
    return next((h for h in logging.getLogger("invcryo").handlers if isinstance(h, RunLog)), None)
