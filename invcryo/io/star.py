"""STAR files: text tables, read through gemmi's CIF parser and written by ourselves.

Values are kept as the text of the file, so that what is read and written again is the same; numbers are made
on request (`StarBlock.numbers`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
from numpy.typing import ArrayLike, NDArray

from .atomic import atomic_open

__all__ = ["StarBlock", "read_star", "write_star"]

#: A value that needs no quotes: no white space, no control character, no special first character, no keyword.
_PLAIN = re.compile(r"(?!(?i:data_|loop_|save_|stop_|global_))[^\s\x00-\x1f\x7f_#$'\";][^\s\x00-\x1f\x7f]*")


class StarBlock(Mapping[str, NDArray]):
    """One table of a STAR file: column name (without the leading underscore) to text values.

    Parameters
    ----------
    columns : mapping of str to array_like, (n,)
        Text is kept as it is; numbers become text that reads back to the same number.
    loop : bool
        True for a table of n rows, False for a list of name-value pairs (then n is 1).
    """

    def __init__(self, columns: Mapping[str, ArrayLike], *, loop: bool = True) -> None:
        self.loop = loop
        self._columns = {_column_name(k): _as_text(k, v) for k, v in columns.items()}
        lengths = {k: len(v) for k, v in self._columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns of a STAR table differ in length: {lengths}")
        if not loop and self.rows != 1:
            raise ValueError(f"a list of pairs has one value per name, got {self.rows}; use loop=True")

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self._columns.values()), ()))

    def __getitem__(self, name: str) -> NDArray:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StarBlock):
            return NotImplemented
        same = self.loop == other.loop and list(self) == list(other)
        return same and all(np.array_equal(self[name], other[name]) for name in self)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"StarBlock({self.rows} rows: {', '.join(self)})"

    def numbers(self, name: str) -> NDArray:
        """Column ``name`` as float64, (n,); an error names the first value that is no number."""
        return text_to_numbers(self[name], name)


def text_to_numbers(text: NDArray, name: str) -> NDArray:
    """Text values as float64; ``name`` is the column that an error names."""
    try:
        return text.astype(np.float64)
    except ValueError:
        for row, value in enumerate(text.tolist()):
            try:
                float(value)
            except ValueError:
                raise ValueError(f"{name} of row {row + 1} is {value!r}, not a number") from None
        raise


def read_star(path: str | os.PathLike[str]) -> dict[str, StarBlock]:
    """All tables of a STAR file by block name; the unnamed block ``data_`` is ''."""
    path = Path(path)
    text = path.read_bytes().decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    text, restore = _ascii(text)
    try:
        document = gemmi.cif.read_string(text)
    except (ValueError, RuntimeError) as error:
        reason = re.sub(r"^string:", "line ", str(error))
        raise ValueError(f"{path} is not a valid STAR file: {reason}") from None
    if not len(document):
        raise ValueError(f"{path} holds no STAR table (no line starts with data_); is it the right file?")
    quoted = any(mark in text for mark in "\"';")

    def clean(values: list[str]) -> NDArray:
        if quoted:
            values = [gemmi.cif.as_string(v) if v[0] in "\"';" else v for v in values]
        if restore is not None:
            values = [restore(v) for v in values]
        longest = max(map(len, values), default=0)
        # A column takes rows times its longest text: one lost quote may swallow a page, and memory with it.
        if len(values) > 1 and longest * len(values) > max(2**26, 50 * sum(map(len, values))):
            row = next(i for i, v in enumerate(values) if len(v) == longest)
            raise ValueError(
                f"{path}: a value in row {row + 1} is {longest} characters long and begins {values[row][:40]!r};"
                " is a quote or a semicolon before it not closed?"
            )
        return np.array(values, dtype=np.str_)

    blocks = {}
    for block in document:
        name = block.name.strip()
        loops = [item.loop for item in block if item.loop is not None]
        pairs: list[Any] = [item.pair for item in block if item.pair is not None]
        if len(loops) + bool(pairs) > 1:
            raise ValueError(
                f"{path}: block data_{name} holds {len(loops)} loops and {len(pairs)} single values; a RELION"
                " STAR file has one table per block, so give each its own data_ line"
            )
        if loops:
            values, width = loops[0].values, loops[0].width()
            columns = {tag: clean(values[i::width]) for i, tag in enumerate(loops[0].tags)}
        else:
            columns = {tag: clean([value]) for tag, value in pairs}
        blocks[name] = StarBlock(columns, loop=bool(loops) or not pairs)
    return blocks


def write_star(
    path: str | os.PathLike[str],
    blocks: Mapping[str, StarBlock | Mapping[str, Any]],
    *,
    version: int | None = 30001,
) -> None:
    """Write tables to a STAR file, complete or not at all.

    Parameters
    ----------
    path : path-like
    blocks : mapping
        Block name to `StarBlock`, or to a mapping of column name to values: scalars give name-value pairs,
        sequences a loop.
    version : int or None
        The number of the comment ``# version`` that RELION 3.1 and later look for.
    """
    try:
        lines = _lines(blocks, version)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    with atomic_open(path, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        file.write("\n".join(lines) + "\n")


def _lines(blocks: Mapping[str, StarBlock | Mapping[str, Any]], version: int | None) -> list[str]:
    lines: list[str] = []
    _unlike(blocks, "blocks")
    for name, block in blocks.items():
        if re.search(r"\s", name):
            raise ValueError(f"STAR block name {name!r} holds white space")
        if not isinstance(block, StarBlock):
            scalars = [np.ndim(v) == 0 for v in block.values()] if isinstance(block, Mapping) else [False]
            if any(scalars) != all(scalars):
                raise ValueError(f"block {name!r} mixes single values and columns; give each its own block")
            pairs = bool(scalars) and all(scalars)
            block = StarBlock({k: np.atleast_1d(v) for k, v in block.items()}, loop=not pairs)
        lines += ["", f"# version {version}"] if version is not None else [""]
        lines += ["", f"data_{name}", ""]
        if not len(block):
            continue
        _unlike(block, f"columns of block {name!r}")
        if block.loop:
            lines += ["loop_"] + [f"_{column} #{i}" for i, column in enumerate(block, 1)]
            lines += map(
                " ".join, zip(*(map(_quote, values.tolist()) for values in block.values()), strict=True)
            )
        else:
            lines += [f"_{column} {_quote(values.item())}" for column, values in block.items()]
    return lines


def _unlike(names: Iterable[str], what: str) -> None:
    """STAR files have no upper and lower case."""
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(name.lower(), name)) != name:
            raise ValueError(f"{what}: {other} and {name} are one name in a STAR file; rename or drop one")


def _column_name(name: str) -> str:
    name = str(name).removeprefix("_")
    if not re.fullmatch(r"[!-~]+", name):
        raise ValueError(f"STAR column name {name!r} must be printable ASCII without white space")
    return name


def _as_text(name: str, values: ArrayLike) -> NDArray:
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"STAR column {name} must be one-dimensional, got shape {array.shape}")
    if array.dtype.kind == "U":
        return array
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ValueError(f"STAR column {name} holds NaN or infinite values")
        return np.array([str(v) for v in array], dtype=np.str_)  # the shortest text for its precision
    if array.dtype.kind == "b":
        array = array.astype(int)
    return np.array([str(v) for v in array.tolist()], dtype=np.str_)


def _quote(value: str) -> str:
    """``value`` as one STAR token."""
    if _PLAIN.fullmatch(value):
        return value
    if any(ord(c) < 32 and c not in "\t\n" for c in value):
        raise ValueError(f"STAR value {value!r} holds control characters; remove them")
    if "\n" not in value:
        # A quote inside is allowed unless white space follows; better still is the quote that does not occur.
        for mark in sorted("\"'", key=value.count):
            if not re.search(mark + r"\s", value):
                return f"{mark}{value}{mark}"
    if "\n;" in value:
        raise ValueError(f"STAR cannot hold {value!r}: a line of it starts with a semicolon")
    return f"\n;{value}\n;\n"


def _ascii(text: str) -> tuple[str, Any]:
    """``text`` with every non-ASCII character written as a mark, and the function that undoes it.

    The CIF grammar takes ASCII only in unquoted values, but paths are written in any script.
    """
    if text.isascii():
        return text, None
    mark = "~u"
    while mark in text:
        mark += "~u"
    encoded = re.sub(r"[^\x00-\x7f]", lambda m: f"{mark}{ord(m[0]):x}~", text)
    pattern = re.compile(re.escape(mark) + r"([0-9a-f]+)~")
    return encoded, lambda value: pattern.sub(lambda m: chr(int(m[1], 16)), value)
