"""The pages of docs/: their links lead somewhere, every figure is shown, none is heavy."""

import re
from pathlib import Path

import pytest

from invcryo.plot import curves, images, maps

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md")) + [ROOT / "README.md"]


def anchors(page):
    """The names of a page's headings, as they are made of their words."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert links
    for link in links:
        if not link.startswith("http"):
            place, _, anchor = link.partition("#")
            target = page.parent / place if place else page
            assert target.exists(), f"{page.name}: {link}"
            assert not anchor or anchor in anchors(target), f"{page.name}: {link}"
    assert all(alt.strip() for alt in re.findall(r"!\[(.*?)\]", text))


def test_every_figure_is_shown_and_light():
    figures = {path.name: path.stat().st_size for path in (DOCS / "figures").iterdir()}
    shown = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert {name for name in figures if f"figures/{name})" not in shown} == set()
    assert {name: size for name, size in figures.items() if size > 60_000} == {}
    assert sum(figures.values()) < 1_500_000


def test_figures_of_maps_images_and_curves_are_in_the_gallery():
    """Each by its name, and in the script that draws it."""
    gallery = (DOCS / "gallery.md").read_text(encoding="utf-8")
    script = (DOCS / "make_figures.py").read_text(encoding="utf-8")
    drawn = {*curves.__all__, *images.__all__, *maps.__all__}
    assert {name for name in drawn if f"plot.{name}(" not in gallery} == set()
    assert {name for name in drawn if f"plot.{name}(" not in script} == set()


def test_the_code_on_the_pages_is_python():
    for page in DOCS.glob("*.md"):
        for code in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
            compile(code, page.name, "exec")
