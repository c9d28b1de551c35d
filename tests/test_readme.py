"""What the README says can be done as it stands."""

import re
import shutil
from pathlib import Path

import numpy as np

from invcryo.io import read_map
from invcryo.metrics import correlation

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_the_five_lines_run(tmp_path, monkeypatch):
    code, more = blocks("python")
    shutil.copytree(ROOT / "data" / "demo", tmp_path / "data" / "demo")
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert scope["result"].converged
    truth = read_map("data/demo/truth.mrc").data
    made = read_map("map.mrc")
    assert made.pixel_size == 5.0 and correlation(made.data, truth) > 0.98
    exec(compile(more, "README.md", "exec"), scope)  # a denoiser as prior
    assert scope["result"].converged
    smooth = scope["ic"].KaiserBessel().synthesize(scope["result"].x)
    assert correlation(smooth, truth) > 0.97


def test_the_operator_is_scipys_as_it_is():
    from scipy.sparse.linalg import lsqr

    import invcryo as ic

    stack = ic.read_particles(ROOT / "data" / "demo" / "particles.star")[:20]
    A = ic.forward_model(stack, scale=4.0)
    solution = lsqr(A, stack.images[:].ravel(), iter_lim=5)[0]
    assert np.isfinite(solution).all() and solution.shape == (12**3,)


def test_every_command_named_exists():
    from invcryo.cli import main

    named = set(re.findall(r"invcryo (\w+) [\w./-]", "\n".join(blocks("sh"))))
    assert {"demo", "info", "reconstruct", "fsc"} <= named
    for command in named:
        assert main([command, "--help"]) == 0


def test_the_test_command_is_there_for_ci():
    assert re.search(r"<!-- test command -->\n```sh\npython3 -m venv .* -m pytest", README)
    assert (ROOT / "data" / "demo" / "demo.png").exists()
