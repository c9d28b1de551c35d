"""The report of a run: what it shows, that nothing in a name becomes markup, and how it looks in a browser."""

import base64
import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import browser
import numpy as np
import pytest
from test_external import write_sums

from invcryo import plot
from invcryo.report import Report, escape, png, words

HOSTILE = '"><img src=x onerror=alert(1)><script>alert(2)<\\script>&amp;.star'


class Page(HTMLParser):
    """Tags, attributes and text of a page; open tags must be closed in order."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def picture():
    pytest.importorskip("matplotlib")
    return plot.convergence({"cost": [3.0, 2.0, 1.0]})


def full(picture, name="particles.star"):
    """A report with everything in it."""
    record = {
        "command_line": ["invcryo", "reconstruct", name, "-o", "my run"],
        "working_folder": "/data/my project",
        "arguments": {"lam": "auto", "half_maps": True, "pixel_size": None},
        "versions": {"python": "3.11.7", "matplotlib": None},
        "wall_seconds": 12.5,
        "threads": 2,
    }
    return (
        Report(f"Reconstruction of {name}", f"From {name}.")
        .headline("Resolution", "8.02 Å", "unregularised halves")
        .section("Numbers")
        .text(f"Read {name}.")
        .table([(name, 1.5, "x"), ("b", np.float32(2), None)], header=("", "one", name), caption=name)
        .facts({name: name, "b": [1, 2]})
        .figure(picture, f"Cost of {name}. It falls.")
        .code(name)
        .warning(f"{name} is odd")
        .run(record)
    )


def test_a_report_shows_what_it_was_given(picture):
    page = Page(full(picture).html())
    for text in (
        "Reconstruction of particles.star",
        "8.02 Å",
        "Warning",
        "particles.star is odd",
        "cd '/data/my project'\ninvcryo reconstruct particles.star -o 'my run'",
        "half-maps",
        "not installed",
        "12.5",
    ):
        assert text in page.text, text
    assert page.text.index("is odd") < page.text.index(
        "Numbers"
    )  # warnings stand on top, whenever they are said
    (image,) = page.all("img")
    assert image["alt"] == "Cost of particles.star"
    kind, _, data = image["src"].partition(",")
    assert kind == "data:image/png;base64" and base64.b64decode(data) == png(picture)
    assert 300 < int(image["width"]) < 1000


def test_a_report_is_one_file(picture):
    """No script, no link and no address but those of inline data; and a policy that would stop them."""
    text = full(picture).html()
    page = Page(text)
    assert not {"script", "a", "iframe", "object", "embed", "video"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert value.startswith("data:"), (tag, name)
    assert "url(" not in text and "@import" not in text and "http:" not in text and "https:" not in text
    policy = next(m["content"] for m in page.all("meta") if "http-equiv" in m)
    assert "default-src 'none'" in policy and "script-src" not in policy


def test_nothing_in_a_name_becomes_markup(picture):
    plain, hostile = Page(full(picture).html()), Page(full(picture, HOSTILE).html())
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert [sorted(a) for _, a in hostile.tags] == [sorted(a) for _, a in plain.tags]
    assert hostile.text.count(HOSTILE) >= 8
    assert hostile.all("img")[0]["alt"] == f"Cost of {HOSTILE.removesuffix('.star')}.star"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x00b\x1b[31m", r"a\x00b\x1b[31m"),
        ("caf\udce9.star", r"caf\udce9.star"),
        ("abc\u202etxt.exe", r"abc\u202etxt.exe"),
        ("<&>\"'", "&lt;&amp;&gt;&quot;&#x27;"),
        ("one\ntwo", "one\ntwo"),
        ("Å ≤ 3", "Å ≤ 3"),
    ],
)
def test_escape(text, shown, tmp_path):
    assert escape(text) == shown
    Report(text).write(tmp_path / "r.html")
    assert f"<h1>{shown}</h1>" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_values_in_words():
    assert [words(v) for v in (None, True, 0.1 + 0.2, np.float32(2.5), np.int64(3), [1, 2.5], {"a": None}, ())] == [
        "–", "yes", "0.3", "2.5", "3", "1, 2.5", "a: –", "–",
    ]  # fmt: skip


def test_pictures_come_from_axes_files_and_bytes(picture, tmp_path):
    plot.save(picture, tmp_path / "p.png")
    data = (tmp_path / "p.png").read_bytes()
    assert png(tmp_path / "p.png") == data == png(data)
    assert png(picture.figure) == png(picture) == png(np.array([picture, picture], dtype=object))
    with pytest.raises(ValueError, match="PNG pictures only, and these bytes"):
        png(b"GIF89a")
    with pytest.raises(FileNotFoundError):
        Report("x").figure(tmp_path / "none.png", "none")


def test_a_report_is_written_whole_or_not_at_all(tmp_path):
    page = tmp_path / "report.html"
    Report("first").write(page)
    before = page.read_bytes()
    broken = Report("second")
    broken._body.append(None)
    with pytest.raises(TypeError):
        broken.write(page)
    assert page.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["report.html"]


# --- of commands, in a browser ------------------------------------------------------------------------------


PAGES = ("run", "post", "local", "refine", "tilt", "study", "simulated", "fsc", "mask", "external")


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """The reports of the commands, of files with hostile names."""
    pytest.importorskip("matplotlib")
    from invcryo.cli import main
    from invcryo.io import write_map, write_tilt_series
    from invcryo.metrics import soft_sphere
    from invcryo.studies.simulated_series import simulated_cell

    folder = tmp_path_factory.mktemp("reports")

    def call(*arguments):
        assert main([str(a) for a in (*arguments, "--quiet")]) == 0

    small = (
        "--phantom",
        "blobs",
        "-n",
        "60",
        "--box",
        "16",
        "--pixel-size",
        "4",
        "--snr",
        "2",
        "--shift",
        "1",
    )
    call("simulate", *small, "-o", folder)
    shutil.copy(folder / "particles.star", folder / HOSTILE)
    call("reconstruct", folder / HOSTILE, "-o", folder / "run", "--half-maps", "--data-dir", folder)
    halves = [folder / f"half{i}<b>.mrc" for i in (1, 2)]
    for i, half in enumerate(halves, 1):
        shutil.copy(folder / "run" / f"half{i}_noreg.mrc", half)
    write_map(folder / "mask.mrc", soft_sphere((16,) * 3, 5.0, 3.0), 4.0)
    call(
        "postprocess",
        *halves,
        "--mask",
        folder / "mask.mrc",
        "-o",
        folder / "post",
        "--directional",
        "--fit-from",
        40,
    )
    call("local-resolution", *halves, "--mask", folder / "mask.mrc", "-o", folder / "local", "--window", "40")
    words = ("--init-lowpass", 30, "--max-rounds", 1, "--half-maps", "--data-dir", folder)
    call("refine", folder / HOSTILE, "--ref", folder / "run" / "map.mrc", "-o", folder / "refine", *words)
    series, _ = simulated_cell((24, 24, 32), angles_deg=np.arange(-60, 61, 10.0))
    write_tilt_series(folder / "a<b>.st", series)
    words = (folder / "a<b>.st", "--lam", 5, "--thickness", 24, "--background", "none")
    call("stet", "reconstruct", *words, "-o", folder / "tilt")
    call("stet", "study", *words, "-o", folder / "study", "--fractions", 0.2, 0.1)
    for name in ("fsc", "mask", "external"):
        (folder / name).mkdir()
    call("fsc", *halves, "--mask", folder / "mask.mrc", "--report", folder / "fsc" / "report.html")
    page = folder / "mask" / "report.html"
    call("mask", folder / "truth.mrc", "-o", folder / "mask" / "m.mrc", "--edge", 2, "--report", page)
    k = np.fft.fftfreq(16) * 16
    weight = np.exp(-0.02 * (k[:, None, None] ** 2 + k[:, None] ** 2 + np.arange(9) ** 2))
    data = weight * np.fft.rfftn(np.fft.ifftshift(soft_sphere((16,) * 3, 3.0, 2.0)))
    star = write_sums(folder / "external", data, weight, np.ones(5), np.ones(5), box=8, stem="report")
    call("external-reconstruct", star)
    return {name: folder / name for name in PAGES} | {"simulated": folder}


@pytest.mark.parametrize(
    ("name", "pictures", "shown"),
    [
        (
            "run",
            4,
            [
                "Reconstruction of",
                HOSTILE,
                "Quote the FSC of the unregularised half maps",
                "SHA-256",
                "efficiency of the views",
            ],
        ),
        ("post", 4, ["half1<b>.mrc and half2<b>.mrc", "B-factor", "share their prior", "Guinier"]),
        ("local", 2, ["Local resolution of half1<b>.mrc", "Median", "Window"]),
        (
            "refine",
            5,
            [
                "Refinement of",
                HOSTILE,
                "Quote the FSC of the unregularised",
                "aligned to maps with this prior",
            ],
        ),
        ("tilt", 2, ["Tilt series a<b>.st", "13 tilts of 32 x 24 pixels", "32 x 24 x 24", "missing wedge"]),
        ("study", 8, ["Dose study of a<b>.st", "PSNR (dB)", "pixels that were held out", "10 %"]),
        ("simulated", 3, ["60 particles of 16 x 16 pixels", "Signal to noise", "protein white"]),
        ("fsc", 1, ["FSC of half1<b>.mrc and half2<b>.mrc", "corrected for the mask", "at half-bit"]),
        ("mask", 1, ["Mask of truth.mrc", "found by Otsu's rule", "an edge of 2 pixels is sharp", "kDa"]),
        ("external", 1, ["Reconstruction for report.star", "prior: tv", "Choice of lambda", "_unfil.mrc"]),
    ],
)
def test_reports_of_the_commands(reports, name, pictures, shown):
    folder = reports[name]
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    files = [file for file in (folder / "run.json", folder / "report.json") if file.exists()]
    record = (
        json.loads(files[0].read_text()) if files else {"warnings": [], "versions": {"numpy": np.__version__}}
    )
    assert len(page.all("img")) == pictures and not page.all("script") and not page.all("b")[pictures:]
    for text in (*shown, *record["warnings"], "How to make it again", record["versions"]["numpy"]):
        assert text in page.text, text
    resolution = record.get("resolution_angstrom") or record.get("local_angstrom", {}).get("median")
    if resolution is not None:
        assert f"{resolution:.2f} Å" in page.text


@pytest.mark.browser
@pytest.mark.parametrize("name", PAGES)
def test_reports_in_a_browser(reports, name, tmp_path):
    """On a phone and on a screen: every picture is there, nothing is cut off, the console is silent."""
    source = (reports[name] / "report.html").read_text(encoding="utf-8")
    seen, complaints = browser.look(reports[name] / "report.html", tmp_path)
    assert complaints == ""
    assert [page["width"] for page in seen] == [400, 1280]
    for page in seen:
        assert page["images"] == source.count("<img ") > 0
        assert (page["broken"], page["unnamed"], page["active"], page["cut"]) == (0, 0, 0, 0), page
        assert page["content"] <= page["width"]
        assert page["title"] == html.unescape(re.search("<title>(.*?)</title>", source)[1])
        assert "How to make it again" in page["text"]


@pytest.mark.browser
def test_the_browser_would_tell(tmp_path):
    """That what the tests look for is seen: a broken picture, a wide block, a script, a complaint."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<!DOCTYPE html><title>bad</title><main><img src='data:image/png;base64,AAAA'>"
        "<div style='width:700px'>wide</div><script>console.error('oh')</script></main>"
    )
    (phone, screen), complaints = browser.look(page, tmp_path)
    assert (phone["broken"], phone["unnamed"], phone["active"]) == (1, 1, 1)
    assert phone["content"] > 400 and phone["cut"] > 0 and screen["cut"] == 0 and "oh" in complaints


@pytest.mark.parametrize("hidden", [False, True])
def test_matplotlib_is_loaded_in_a_thread(hidden):
    """Without pyplot; and where it is missing, nothing is said before the pictures."""
    code = (
        "import sys; from invcryo.cli.pictures import load_matplotlib_meanwhile as load\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"if {hidden}: sys.modules['matplotlib'] = None\n"
        "load().join(); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    loaded = done.stdout.split()
    assert ("matplotlib.figure" in loaded) is not hidden and "matplotlib.pyplot" not in loaded
