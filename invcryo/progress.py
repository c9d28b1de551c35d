"""Progress of long loops: a bar on a terminal, and lines in the log for those who look later."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

__all__ = ["Meter", "track"]

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds between two lines in the log.
_EVERY = 30.0
#: Where the loop may end early, nobody knows when: no share of the work, no time to go.
_OPEN_END = "{desc}: {n_fmt} of at most {total_fmt} [{elapsed}, {rate_fmt}{postfix}]"


class Meter:
    """Progress of one loop, a context manager; call `step` after each round.

    Parameters
    ----------
    label : str
    total : int, optional
        Rounds to come.
    unit : str
        What a round is.
    show : bool, optional
        Whether to draw a bar on standard error; default: only where that is a terminal.
    at_most : bool
        ``total`` is a bound and the loop usually ends before it: no time to go is promised.
    """

    def __init__(
        self,
        label: str,
        *,
        total: int | None = None,
        unit: str = "rounds",
        show: bool | None = None,
        at_most: bool = False,
    ) -> None:
        from tqdm import tqdm

        self.label, self.total, self.unit, self.at_most = label, total, unit, at_most
        self.done = 0
        self._start = self._said = time.perf_counter()
        # tqdm reads disable=None as "off when not a terminal"
        self._bar = tqdm(
            desc=label,
            total=total,
            unit=f" {unit}",
            disable=None if show is None else not show,
            leave=False,
            bar_format=_OPEN_END if at_most and total is not None else None,
        )

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        log.info("%s: %s after %.1f s", self.label, self._state(), time.perf_counter() - self._start)

    def step(self, **figures: float) -> None:
        """One round is done; ``figures`` are shown beside the bar."""
        self.done += 1
        self._bar.update()
        if figures:
            self._bar.set_postfix({k: f"{v:.3g}" for k, v in figures.items()}, refresh=False)
        now = time.perf_counter()
        if now - self._said >= _EVERY:
            self._said = now
            log.info("%s: %s after %.0f s%s", self.label, self._state(), now - self._start, self._to_go(now))

    def _state(self) -> str:
        if self.total is None:
            return f"{self.done} {self.unit}"
        return f"{self.done} of {'at most ' if self.at_most else ''}{self.total} {self.unit}"

    def _to_go(self, now: float) -> str:
        if self.total is None or self.at_most:
            return ""
        return f", about {(now - self._start) / self.done * (self.total - self.done):.0f} s to go"


def track(items: Iterable[T], label: str, *, total: int | None = None, **options: Any) -> Iterator[T]:
    """Yield ``items`` behind a `Meter`, whose ``options`` are ``unit``, ``show`` and ``at_most``."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Meter(label, total=total, **options) as meter:
        for item in items:
            yield item
            meter.step()
