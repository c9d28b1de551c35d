"""Headless Chromium, for tests that look at a page as a reader does."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

#: What a reader would notice, told by the page that holds the others in frames.
_LOOK = """
addEventListener("load", () => {
  found.textContent = JSON.stringify([...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, root = page.documentElement, width = frame.contentWindow.innerWidth;
    const images = [...page.images];
    return {
      width, content: Math.max(root.scrollWidth, page.body.scrollWidth),
      images: images.length,
      broken: images.filter(i => !i.complete || !i.naturalWidth).length,
      unnamed: images.filter(i => !i.alt.trim()).length,
      active: page.scripts.length + page.querySelectorAll("[onerror], [onload], iframe, object, embed, a").length,
      cut: [...page.querySelectorAll("main *")].filter(e => !e.closest(".wide")
        && e.getBoundingClientRect().right > width + 0.5).length,
      title: page.title, text: page.body.innerText,
    };
  }));
});
"""


def chromium() -> str:
    """The browser's program; a visible skip where there is none."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("Chromium is not installed: pages are not looked at")
    return found


def look(page: Path, folder: Path, widths=(400, 1280)) -> tuple[list[dict], str]:
    """What is seen of a page in windows of these widths, and what the browser complained about.

    The page stands in frames: the windows of headless Chromium do not get narrower than about 500 pixels.
    """
    inner = html.escape(page.read_text(encoding="utf-8"), quote=True)
    frames = "".join(
        f'<iframe srcdoc="{inner}" style="border:0;width:{w}px;height:900px"></iframe>' for w in widths
    )
    outer = folder / "look.html"
    outer.write_text(
        f'<!DOCTYPE html><meta charset="utf-8">{frames}<pre id="found"></pre><script>{_LOOK}</script>',
        encoding="utf-8",
    )
    out, complaints = run(folder, outer, "--dump-dom")
    found = re.search(r'<pre id="found">(.+?)</pre>', out, re.S)
    assert found, f"the page did not load:\n{complaints}"
    return json.loads(html.unescape(found[1])), complaints


def run(folder: Path, page: Path, *options: str) -> tuple[str, str]:
    """Output of the browser, and the lines of its log that come from the page."""
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        " --disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars --enable-logging=stderr"
    ).split()
    profile = folder / "profile"
    done = subprocess.run(
        [chromium(), *flags, f"--user-data-dir={profile}", *options, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    shutil.rmtree(profile, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
