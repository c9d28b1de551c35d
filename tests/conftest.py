"""Fixtures shared by all tests."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # one process per core already
    os.environ.setdefault("INVCRYO_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """Folder of the reference data sets: $INVCRYO_TEST_DATA, or shared/data beside the repository."""
    named = os.environ.get("INVCRYO_TEST_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not (folder / "README.md").exists():
        pytest.skip("reference data not found: set INVCRYO_TEST_DATA to the folder that holds them")
    return folder


@pytest.fixture(scope="session")
def relion() -> None:
    """RELION's programs on the PATH, or a visible skip."""
    if shutil.which("relion_project") is None:
        pytest.skip("RELION is not installed: relion_project is not on the PATH")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261121)


@pytest.fixture
def cli(capsys):
    """Function that runs a command in this process: exit code, standard output, standard error."""

    def call(*words):
        from invcryo.cli import main

        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
