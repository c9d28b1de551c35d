"""The convergence study: its operators, its own methods against the library's, its record. Nothing depends on time."""

import importlib
import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from invcryo.costs import L21, NonNegative
from invcryo.operators import Gradient, ZeroPad
from invcryo.solvers import admm

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def methods():
    """The module of the methods; forgotten afterwards."""
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("convergence_methods")
    sys.path.remove(str(FOLDER))
    for name in ("convergence_methods", "convergence"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def problem(methods):
    return methods.make_problem(16, 12, 1.0, 0.02, None)


def after(states, n):
    return np.array(next(islice(states, n - 1, None)))


def test_zero_border_is_that_of_a_padded_volume(methods, rng):
    x = rng.standard_normal((3, 4, 5))
    D, pad = methods.ZeroBorder(x.shape, np.float64), ZeroPad(x.shape, (7, 9, 8), np.float64)
    wide = L21()(Gradient(pad.oshape, "periodic", np.float64)(pad(x)))
    assert L21()(D(x)) == pytest.approx(wide, rel=1e-13)
    y = rng.standard_normal(D.oshape)
    assert np.vdot(D(x), y) == pytest.approx(np.vdot(x, D.adjoint(y)), rel=1e-12)
    np.testing.assert_allclose(D.gram()(x), D.adjoint(D(x)), atol=1e-12)


def test_the_bound_of_lambda(methods, rng):
    """``y`` must have the divergence ``b``, so that at this weight a constant is optimal."""
    b = rng.standard_normal((4, 5, 6))
    G = Gradient(b.shape, dtype=np.float64)
    laplacian = np.array([G.gram()(e.reshape(b.shape)).ravel() for e in np.eye(b.size)])
    y = G((np.linalg.pinv(laplacian) @ b.ravel()).reshape(b.shape))
    np.testing.assert_allclose(G.adjoint(y), b - b.mean(), atol=1e-10)
    assert methods.lambda_bound(b) == pytest.approx(np.sqrt((y**2).sum(axis=0)).max(), rel=1e-10)


@pytest.mark.parametrize("inner", [1, 3])
def test_published_with_and_without_the_known_residual_is_the_same(methods, problem, inner):
    library, afresh = (after(f(inner)(problem, 0.5), 12) for f in (methods.published, methods.afresh))
    np.testing.assert_allclose(afresh, library, atol=1e-4 * library.max())


def optimum(problem, border):
    for state in admm(problem.cost(border)):
        if state.info["gap"] < 1e-7 or state.iteration == 3000:
            return problem.value(state.x, border)


@pytest.mark.parametrize(
    ("key", "parameter", "iterations"),
    [
        ("tuned", 0.5, 80),
        ("loop-free", 0.5, 400),
        ("padded", 0.3, 200),
        ("condat-vu", 0.3, 400),
        ("condat-vu-relaxed", 0.3, 400),
        ("condat-vu-circulant", 1.0, 300),
        ("fista", 20.0, 150),
        ("scico", 0.5, 80),
        ("pyproximal", 0.5, 200),
    ],
)
def test_every_method_ends_at_the_same_minimum(methods, problem, key, parameter, iterations):
    method = next(m for m in methods.METHODS if m.key == key)
    if method.missing:
        pytest.skip(method.missing)
    best = optimum(problem, method.border)
    x = after(method.start(problem, parameter), iterations).astype(np.float32)
    gap = 1 - problem.value(x, method.border) / best
    assert -1e-5 < gap < 1e-3  # single precision; these are slow methods, the study is about how slow


def test_objective_is_that_of_the_cost(problem, rng):
    x = np.maximum(rng.standard_normal(problem.shape), 0).astype(np.float32)
    for border in ("zero-flux", "periodic", "zero"):
        assert NonNegative()(x) == 0
        assert problem.value(x, border) == pytest.approx(problem.cost(border)(x), rel=1e-6)
    assert problem.value(-x, "zero") == 0


def test_study_from_start_to_end_and_again(tmp_path):
    record, figure = tmp_path / "out.json", tmp_path / "out.png"
    words = ["--size", 18, "--scan-size", 16, "--threads", 1, "--repeat", 1, "--max-iter", 40]
    words += ["--reference-iterations", 150, "--methods", "default", "admm-1", "admm-1-afresh", "fista"]
    words += ["--json", record, "--plot", figure]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["INVCRYO_TEST_DATA"] = str(tmp_path)  # where no model is: a phantom does

    def study(*more):
        command = [sys.executable, str(FOLDER / "convergence.py"), *map(str, [*words, *more])]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    first = study()
    assert first.returncode == 0, first.stderr
    assert "published ADMM, K = 1" in first.stdout and figure.read_bytes()[:4] == b"\x89PNG"
    kept = json.loads(record.read_text())
    curves = kept["curves"]
    assert {c["method"] for c in curves.values()} == {"default", "admm-1", "admm-1-afresh", "fista"}
    small = [
        c["parameter"] for c in curves.values() if c["method"] == "admm-1" and c["problem"].startswith("16|")
    ]
    assert len(small) == 9 and max(small) / min(small) == pytest.approx(1e4)
    for c in curves.values():
        assert len(c["iterations"]) == len(c["values"]) == len(c["seconds"])
    again = study()
    assert again.returncode == 0, again.stderr
    assert (
        json.loads(record.read_text())["curves"] == curves
    )  # nothing was computed twice: the seconds are the same
    other = study("--snr", 2)
    assert other.returncode != 0 and "other options" in other.stderr
