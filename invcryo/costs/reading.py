"""Reading ahead: the next part of a stack comes in while the present one is computed with."""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from ..backend import use

__all__ = ["ReadAhead"]

P = TypeVar("P")


class ReadAhead(Generic[P]):
    """Gives ``read(part)`` for one part after the other; each is read in a thread while the last is in use.

    A context manager. An error of ``read`` is raised where its part would have come.

    Parameters
    ----------
    read : callable
    parts : iterable
    ahead : bool
        False: read in the calling thread, when the part is wanted.

    Attributes
    ----------
    seconds_reading : float
        Spent in ``read`` so far.
    seconds_waiting : float
        What whoever calls `next` had to wait.
    """

    def __init__(self, read: Callable[[P], Any], parts: Iterable[P], *, ahead: bool = True) -> None:
        self._read, self._parts = read, iter(parts)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="invcryo-reader") if ahead else None
        self._coming: Future[Any] | None = None
        self.seconds_reading = self.seconds_waiting = 0.0

    def __enter__(self) -> ReadAhead[P]:
        self._submit()
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def next(self) -> Any:
        """The next part."""
        start = time.perf_counter()
        if self._pool is None:
            data = self._timed(next(self._parts))
        else:
            if self._coming is None:
                raise StopIteration("there are no more parts")
            data = self._coming.result()
        self.seconds_waiting += time.perf_counter() - start
        self._submit()
        return data

    def _submit(self) -> None:
        self._coming = None  # and with it, what it read
        if self._pool is not None:
            for part in self._parts:
                # a thread does not see the settings of `use` by itself
                self._coming = self._pool.submit(contextvars.copy_context().run, self._alone, part)
                break

    def _alone(self, part: P) -> Any:
        with use(threads=1):  # the others compute
            return self._timed(part)

    def _timed(self, part: P) -> Any:
        start = time.perf_counter()
        try:
            return self._read(part)
        finally:
            self.seconds_reading += time.perf_counter() - start
