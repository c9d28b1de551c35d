"""Files that are either complete or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

__all__ = ["atomic_open", "atomic_path"]


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name in the folder of ``path``, renamed to ``path`` when the block ends well.

    After an exception the temporary file is removed and ``path`` is as it was. The temporary name keeps the
    suffix, for writers that choose the format by it.
    """
    # A link stays a link: what it points to is replaced.
    target = Path(os.path.realpath(path))
    folder = target.parent
    if not folder.is_dir():
        raise FileNotFoundError(f"cannot write {path}: folder {folder} does not exist; create it first")
    if target.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder; give the name of a file")
    temporary = folder / f".{secrets.token_hex(4)}.part.{target.name}"
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise type(error)(
            f"cannot write {path}: folder {folder} takes no new file ({error.strerror});"
            " choose another folder or ask for the right to write there"
        ) from error
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_open(path: str | os.PathLike[str], mode: str = "w", **options: Any) -> Iterator[IO[Any]]:
    """`open` for writing through `atomic_path`: the old file stays until the new one is complete."""
    with atomic_path(path) as temporary, temporary.open(mode, **options) as file:
        yield file
