"""Losses of the learned methods and all their gradients against PyTorch, where it is installed."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="PyTorch is an oracle of these tests: benchmarks/requirements-torch.txt"
)
FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def engines():
    """The modules of the benchmark: problem, ours, PyTorch's."""
    sys.path.insert(0, str(FOLDER))
    yield [importlib.import_module(f"autograd_{name}") for name in ("problem", "ours", "torch")]
    sys.path.remove(str(FOLDER))
    for path in FOLDER.glob("*.py"):
        sys.modules.pop(path.stem, None)


def compare(ours, theirs, tolerance, name="loss"):
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            compare(ours[key], theirs[key], tolerance, f"{name}/{key}")
    else:
        assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs), name


SMALL = {
    "wgan-16": {"batch": 3, "channels": (2, 3, 4)},
    "posenet-16": {"batch": 3, "channels": (4, 3), "hidden": 8},
    "slices-5": {"size": 12},
}


@pytest.mark.parametrize("variant", ["nchw", "nhwc gather"])
@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 2e-4)])
def test_losses_and_gradients_equal_those_of_pytorch(engines, case, variant, dtype, tolerance):
    """WGAN-GP differentiates twice; CryoPoseNet runs through convolutions, poses, slices and transforms."""
    problem, ours, theirs = engines
    p = problem.make(case, dtype, **SMALL[case])
    loss, gradients = ours.value_and_gradients(p)
    other, expected = theirs.value_and_gradients(p, variant)
    assert abs(loss - other) <= tolerance * abs(other)
    compare(gradients, expected, tolerance)


def test_training_steps_go_the_same_way(engines):
    """Some steps with Adam on both sides, double precision."""
    problem, ours, theirs = engines
    p = problem.make("posenet-16", np.float64, **SMALL["posenet-16"])
    one, two = ours.step(p), theirs.step(p)
    np.testing.assert_allclose([one() for _ in range(5)], [two() for _ in range(5)], rtol=1e-8)
