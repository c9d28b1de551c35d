"""One self-contained HTML page per run: what came out, how to read it, how to make it again.

The page needs no script and nothing from the network: figures are inline, and its content security policy forbids the
rest. It is made for a phone, a screen and paper.

>>> page = Report("Local resolution of map.mrc", "box 128, 1.06 Å per pixel")
>>> page.headline("Median", "4.1 Å", "in the mask").warning("The mask holds solvent.")   # doctest: +SKIP
>>> page.section("Pictures").figure("slices.png", "Slices, coloured by resolution.")   # doctest: +SKIP
>>> page.write("report.html")   # doctest: +SKIP
"""

from __future__ import annotations

import base64
import html
import io
import os
import shlex
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ._version import __version__

__all__ = ["SHARED_PRIOR", "Report"]

#: What must be said wherever the FSC of regularised half maps is shown.
SHARED_PRIOR = (
    "Quote the FSC of the unregularised half maps. Two half maps that are regularised alike share their prior and agree"
    " more than their data do: their FSC flatters, and tells no resolution."
)
_PNG = b"\x89PNG\r\n\x1a\n"
_DPI = 150  # of the figures: a page shows 100 pixels of them per inch, so that they are sharp on fine screens


class Report:
    """A page that grows from top to bottom; every method but `html` and `write` returns the report itself.

    Parameters
    ----------
    title : str
    lead : str
        A line or two below the title: what was computed from what.
    """

    def __init__(self, title: str, lead: str = "") -> None:
        self.title, self.lead = title, lead
        self._headlines: list[str] = []
        self._warnings: list[str] = []
        self._body: list[str] = []
        self._figures = 0

    def headline(self, name: str, value: Any, note: str = "") -> Report:
        """One of the few numbers that matter, shown large on top."""
        note = f'<span class="note">{escape(note)}</span>' if note else ""
        self._headlines.append(f"<div><dt>{escape(name)}</dt><dd>{escape(words(value))}{note}</dd></div>")
        return self

    def warning(self, *texts: str) -> Report:
        """What the reader must know before trusting the numbers; shown on top, whenever it is said."""
        self._warnings += [f"<li>{escape(text)}</li>" for text in texts]
        return self

    def section(self, title: str) -> Report:
        return self._add(f"<h2>{escape(title)}</h2>")

    def text(self, text: str) -> Report:
        """A paragraph."""
        return self._add(f"<p>{escape(text)}</p>")

    def table(
        self, rows: Iterable[Sequence[Any]], *, header: Sequence[str] | None = None, caption: str = ""
    ) -> Report:
        """A table; the first cell of each row is its heading."""
        parts = [f"<caption>{escape(caption)}</caption>"] if caption else []
        if header is not None:
            names = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
            parts.append(f"<thead><tr>{names}</tr></thead>")
        for first, *cells in rows:
            rest = "".join(_cell(value) for value in cells)
            parts.append(f'<tr><th scope="row">{escape(words(first))}</th>{rest}</tr>')
        return self._add(f'<div class="wide"><table>{"".join(parts)}</table></div>')

    def facts(self, facts: Mapping[str, Any]) -> Report:
        """Many small facts, in as many columns as there is room for."""
        items = "".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(words(value))}</dd></div>"
            for name, value in facts.items()
        )
        return self._add(f'<dl class="facts">{items}</dl>')

    def figure(self, drawing: Any, caption: str, *, alt: str | None = None) -> Report:
        """A picture with its caption.

        Parameters
        ----------
        drawing : Axes, array of Axes, Figure, path to a PNG file, or bytes of one
        caption : str
            What is seen, and what to look for.
        alt : str, optional
            What it shows, for those who do not see it; by default the first sentence of the caption.
        """
        data = png(drawing)
        width, height = struct.unpack(">II", data[16:24])
        alt = caption.partition(". ")[0].rstrip(".") if alt is None else alt
        self._figures += 1
        uri = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
        size = f'width="{round(width * 100 / _DPI)}" height="{round(height * 100 / _DPI)}"'
        return self._add(
            f'<figure><img src="{uri}" {size} alt="{escape(alt)}">'
            f"<figcaption><b>Figure {self._figures}.</b> {escape(caption)}</figcaption></figure>"
        )

    def code(self, text: str) -> Report:
        """Text to copy, such as a command."""
        return self._add(f"<pre><code>{escape(text)}</code></pre>")

    def run(self, record: Mapping[str, Any]) -> Report:
        """How to make it again, from the record of a run (``run.json``); entries that are missing are left out.

        Parameters
        ----------
        record : mapping
            ``command_line`` (list of words), ``working_folder``, ``arguments``, ``versions``, ``platform``,
            ``threads``, ``started``, ``wall_seconds``.
        """
        self.section("How to make it again")
        if record.get("command_line"):
            command = shlex.join(str(word) for word in record["command_line"])
            folder = record.get("working_folder")
            self.code(f"cd {shlex.quote(str(folder))}\n{command}" if folder else command)
        names = {
            "started": "started",
            "wall_seconds": "took, seconds",
            "threads": "threads",
            "platform": "computer",
        }
        ran = {shown: record[key] for key, shown in names.items() if record.get(key) is not None}
        if ran:
            self.facts(ran)
        if record.get("arguments"):
            self._add("<h3>Options</h3>")
            self.facts({name.replace("_", "-"): value for name, value in record["arguments"].items()})
        if record.get("versions"):
            self._add("<h3>Versions</h3>")
            self.facts({k: "not installed" if v is None else v for k, v in record["versions"].items()})
        return self

    def html(self) -> str:
        """The whole page."""
        lead = f'<p class="lead">{escape(self.lead)}</p>' if self.lead else ""
        top = f'<dl class="headlines">{"".join(self._headlines)}</dl>' if self._headlines else ""
        if self._warnings:
            title = "Warning" if len(self._warnings) == 1 else f"{len(self._warnings)} warnings"
            items = "".join(self._warnings)
            top += f'<section class="warnings"><h2>{title}</h2><ul>{items}</ul></section>'
        return _PAGE.format(
            title=escape(self.title),
            style=_STYLE,
            top=lead + top,
            body="\n".join(self._body),
            version=__version__,
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the page, whole or not at all."""
        from .io.atomic import atomic_open

        with atomic_open(path, "w", encoding="utf-8", newline="\n") as file:
            file.write(self.html())

    def _add(self, part: str) -> Report:
        self._body.append(part)
        return self


def escape(text: str) -> str:
    """``text`` as HTML shows it, in an element or a quoted attribute; what cannot be shown becomes visible."""
    # bytes of a file name that are no UTF-8, then characters that no HTML may hold or that turn the text around
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    shown = (
        c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )
    return html.escape("".join(shown), quote=True)


def words(value: Any) -> str:
    """A value in words: numbers short, lists with commas, None as a dash."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{words(k)}: {words(v)}" for k, v in value.items()) or "–"
    if isinstance(value, (list, tuple, np.ndarray)):
        return ", ".join(words(v) for v in value) or "–"
    return str(value)


def png(drawing: Any) -> bytes:
    """The PNG of a figure, of its axes, or of a file."""
    if isinstance(drawing, bytes):
        data, name = drawing, "these bytes"
    elif isinstance(drawing, (str, os.PathLike)):
        data, name = Path(drawing).read_bytes(), str(drawing)
    else:
        figure = drawing
        if not hasattr(figure, "savefig"):
            figure = np.asarray(drawing, dtype=object).ravel()[0].figure
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=_DPI, bbox_inches="tight")
        data, name = file.getvalue(), "the figure"
    if not data.startswith(_PNG):
        raise ValueError(f"a report shows PNG pictures only, and {name} is none")
    return data


def _cell(value: Any) -> str:
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    return f"<td{' class=number' if number else ''}>{escape(words(value))}</td>"


_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="invcryo {version}">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{top}
{body}
</main>
<footer>Made by invcryo {version}.</footer>
</body>
</html>
"""

_STYLE = """\
:root { color-scheme: light dark; --ink: #1c2127; --soft: #59636e; --line: #d5dae0; --page: #fff; --card: #f5f7f9;
  --mark: #0072b2; --warn: #fff5e2; --warn-line: #d98200; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #9fa9b4; --line: #3a424b; --page: #15191d;
  --card: #1e242a; --mark: #56b4e9; --warn: #35290f; --warn-line: #e69f00; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; color: var(--ink); background: var(--page); overflow-wrap: anywhere;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main, footer { max-width: 60rem; margin: 0 auto; padding: 0 clamp(1rem, 4vw, 2.5rem); }
main { padding-top: 2rem; }
footer { margin-top: 3rem; padding-bottom: 2rem; color: var(--soft); font-size: .875rem; }
h1 { margin: 0; font-size: clamp(1.45rem, 1.1rem + 1.6vw, 2.1rem); line-height: 1.2; letter-spacing: -.01em; }
h2 { margin: 2.6rem 0 .8rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); font-size: 1.25rem; }
h3 { margin: 1.6rem 0 .5rem; font-size: 1rem; }
p { max-width: 44rem; margin: .7rem 0; }
.lead { color: var(--soft); }
dl, dd { margin: 0; }
dt { color: var(--soft); font-size: .8125rem; line-height: 1.35; }
.headlines { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .75rem;
  margin: 1.6rem 0; }
.headlines > div { padding: .7rem .9rem .8rem; background: var(--card); border-left: 3px solid var(--mark);
  border-radius: 0 .4rem .4rem 0; }
.headlines dd { font-size: 1.45rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.note { display: block; color: var(--soft); font-size: .8125rem; line-height: 1.35; }
.warnings { margin: 1.6rem 0; padding: .8rem 1.1rem .9rem; background: var(--warn);
  border-left: 3px solid var(--warn-line); border-radius: 0 .4rem .4rem 0; }
.warnings h2 { margin: 0; padding: 0; border: 0; font-size: 1rem; }
.warnings ul { margin: .3rem 0 0; padding-left: 1.1rem; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .9375rem; }
caption { padding-bottom: .4rem; color: var(--soft); text-align: left; font-size: .875rem; }
th, td { padding: .32rem 1.4rem .32rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; font-weight: 400; font-variant-numeric: tabular-nums; overflow-wrap: break-word; }
thead th, tbody th { color: var(--soft); }
.number { text-align: right; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .6rem 1.2rem;
  font-size: .875rem; }
figure { margin: 1.4rem 0 2rem; }
img { display: block; max-width: 100%; height: auto; padding: .5rem; background: #fff;
  border: 1px solid var(--line); border-radius: .4rem; }
figcaption { max-width: 44rem; margin-top: .5rem; color: var(--soft); font-size: .875rem; line-height: 1.45; }
pre { margin: .8rem 0; padding: .8rem 1rem; background: var(--card); border-radius: .4rem; white-space: pre-wrap;
  font: .875rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
code { font: inherit; }
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #444; --line: #bbb; --page: #fff; --card: #f3f3f3;
    --mark: #0072b2; --warn: #fff; --warn-line: #d98200; }
  body { font-size: 10pt; }
  main, footer { max-width: none; padding: 0; }
  figure, .headlines > div, .warnings, .facts > div, tr, pre { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .wide { overflow: visible; }
  img { max-height: 20cm; width: auto; }
}
"""
