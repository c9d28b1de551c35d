"""Progress bars for long loops: shown on a terminal, silent elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

__all__ = ["track"]

T = TypeVar("T")


def track(
    items: Iterable[T], label: str, *, total: int | None = None, unit: str = "it", show: bool | None = None
) -> Iterator[T]:
    """Yield ``items`` behind a progress bar on standard error.

    Parameters
    ----------
    show : bool, optional
        True or False; default: only where standard error is a terminal.
    """
    from tqdm import tqdm

    # tqdm reads disable=None as "off when not a terminal"
    with tqdm(
        items, desc=label, total=total, unit=unit, disable=None if show is None else not show, leave=False
    ) as bar:
        yield from bar
