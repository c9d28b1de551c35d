"""The order of the layers, and how light an import is."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "invcryo"

#: An import may only go to a lower layer, or stay in its own without a cycle.
LAYERS = [
    ["backend", "progress", "kernels", "testing", "_version"],
    ["grid", "rotation", "symmetry", "window", "ctf", "data"],
    ["operators"],
    ["costs"],
    ["solvers"],
    [
        "metrics",
        "io",
        "conventions",
        "simulate",
        "plot",
        "inversion",
        "selection",
        "checkpoint",
        "memory",
        "reconstruction",
        "direct",
        "poses",
        "refinement",
        "report",
        "stet",
    ],
    ["autograd"],
    ["learned"],
    ["cli", "__main__", "studies"],
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def module_name(path):
    parts = ("invcryo", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room(module):
    """The first name below the package: ``invcryo.operators.base`` lives in ``operators``."""
    return module.split(".")[1]


def nodes(tree, at_import):
    """Every node of a module, or only those that run when it is imported: not the bodies of functions."""
    for node in ast.iter_child_nodes(tree):
        if not (at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            yield node
            yield from nodes(node, at_import)


def imported(source, module, is_package, at_import=False):
    """Modules of the package that ``source`` imports, in functions too unless ``at_import``, or loads by name."""
    for node in nodes(ast.parse(source), at_import):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")
            if node.level:
                base = base[: len(base) - node.level + is_package]
            stem = ".".join(base) if node.level else ""
            stem = ".".join(filter(None, [stem, node.module]))
            names = [f"{stem}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            names = [a.value for a in node.args if isinstance(a, ast.Constant)]
        else:
            continue
        for name in names:
            # the longest part of a dotted name that is a module: the rest is an attribute of it
            while name and name not in MODULES:
                name = name.rpartition(".")[0]
            if name.startswith("invcryo"):
                yield name


EDGES = {
    module: set(imported(path.read_text(), module, path.name == "__init__.py")) - {module}
    for module, path in MODULES.items()
}


def test_every_module_has_a_layer():
    assert "invcryo.operators.base" in MODULES and EDGES["invcryo.operators.base"] >= {"invcryo.backend"}
    unknown = {room(m) for m in MODULES if m != "invcryo"} - set(RANK)
    assert not unknown, f"say in LAYERS where {unknown} belong"


def test_imports_only_go_down():
    wrong = [
        f"{module} imports {name}"
        for module, names in EDGES.items()
        for name in names
        if module != "invcryo" and (name == "invcryo" or RANK[room(name)] > RANK[room(module)])
    ]
    assert not wrong


def test_no_cycle():
    """Of what runs at import: between rooms, and between the modules of a room.

    The sum over large arrays in `backend` calls a kernel when it is first needed, which is not a cycle in this
    sense. A package gathers its own parts, so it is left out of the second test.
    """
    modules, rooms = {}, {}
    for module, path in MODULES.items():
        if module == "invcryo":
            continue
        names = set(imported(path.read_text(), module, path.name == "__init__.py", at_import=True)) - {module}
        rooms.setdefault(room(module), set()).update(room(n) for n in names if room(n) != room(module))
        if path.name != "__init__.py":
            modules[module] = {n for n in names if not module.startswith(n + ".")}
    assert len(rooms) > 10 and rooms["operators"] >= {"backend", "kernels"}
    TopologicalSorter(rooms).prepare()
    TopologicalSorter(modules).prepare()
    with pytest.raises(CycleError):
        TopologicalSorter(rooms | {"backend": {"operators"}}).prepare()


def test_only_the_learned_commands_load_what_is_learned():
    """That they do so when they run, and no other command does, a fresh process shows: `test_cli_posterior`."""
    learned = {"autograd", "learned"}
    above = {
        module
        for module, names in EDGES.items()
        if module != "invcryo" and room(module) not in learned and learned & {room(n) for n in names}
    }
    assert above == {"invcryo.cli.posterior", "invcryo.studies.posterior"}
    leading = {m for m in MODULES if "invcryo.studies.posterior" in EDGES[m]}
    assert not leading


def test_a_wrong_import_would_be_seen():
    """The reader of imports, on sources that it must not miss."""
    for source in (
        "from ..solvers import admm",
        "from invcryo.solvers.admm import admm",
        "def f():\n    import invcryo.solvers.admm",
        "from .. import solvers",
        "import importlib\nimportlib.import_module('invcryo.solvers')",
    ):
        found = set(imported(source, "invcryo.operators.base", False))
        assert any(room(n) == "solvers" for n in found), source
        assert list(imported(source, "invcryo.operators.base", False, at_import=True)) == list(
            imported(source, "invcryo.operators.base", False)
        ) * (not source.startswith("def"))
    assert set(imported("from . import base", "invcryo.operators", True)) == {"invcryo.operators.base"}


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


IMPORT_ALL = """
import invcryo
import invcryo.operators, invcryo.costs, invcryo.solvers, invcryo.testing
"""


def test_import_is_light():
    """The median of three fresh processes: under 1 s, under 600 modules, nothing heavy (T25)."""
    code = (
        "import sys, time\nstart = time.perf_counter()\nimport invcryo\n"
        "print(time.perf_counter() - start, len(sys.modules), *sys.modules)"
    )
    runs = [run(code).split() for _ in range(3)]
    seconds = sorted(float(r[0]) for r in runs)[1]
    assert seconds < 1.0, f"import invcryo takes {seconds:.2f} s"
    assert int(runs[0][1]) < 600
    heavy = {
        "matplotlib",
        "numba",
        "scipy.sparse",
        "scipy.sparse.linalg",
        "pandas",
        "cupy",
        "pyfftw",
        "torch",
    }
    assert not heavy & set(runs[0][2:])


def test_core_is_light():
    """The core without its solvers' Krylov helpers: no matplotlib, no Numba before the first loop runs."""
    loaded = run(IMPORT_ALL + "import sys; print(*sys.modules)").split()
    assert not {"matplotlib", "numba", "pandas", "cupy", "pyfftw", "pylops"} & set(loaded)
    assert "invcryo.solvers.admm" in loaded


@pytest.mark.parametrize(
    "hidden", ["cupy", "pyfftw", "matplotlib", "cupy pyfftw matplotlib pylops starfile pywt"]
)
def test_works_without_optional_packages(hidden):
    """One reconstruction step with the packages out of reach."""
    code = f"""
import sys
for name in {hidden.split()!r}:
    sys.modules[name] = None
import numpy as np, invcryo
from invcryo.costs import LeastSquares
from invcryo.data import Poses
from invcryo.operators import Projector
from invcryo.solvers import cg, run
from invcryo.window import KaiserBessel
P = Projector(Poses(np.eye(3)[None]), KaiserBessel(), 8)
q = LeastSquares(P, P(np.ones((8, 8, 8), np.float32)), progress=False).quadratic()
print(run(cg(q.Q, q.b), 2, progress=False).x.shape)
"""
    assert run(code) == "(8, 8, 8)"


def test_import_has_no_effects(tmp_path):
    """No file, no environment variable, no seed, no print option, no log handler."""
    code = f"""
import os, sys, logging
sys.path.insert(0, {str(PACKAGE.parent)!r})
os.chdir({str(tmp_path)!r})
import numpy as np
np.random.seed(3); before = (dict(os.environ), np.get_printoptions(), np.random.get_state()[1].sum())
import invcryo, invcryo.operators, invcryo.costs, invcryo.solvers, invcryo.testing
assert before == (dict(os.environ), np.get_printoptions(), np.random.get_state()[1].sum())
assert not logging.getLogger().handlers
assert all(type(h) is logging.NullHandler for h in logging.getLogger("invcryo").handlers)
print(len(os.listdir(".")))
"""
    assert run(code) == "0"


def test_every_public_name_is_there():
    """Names are loaded on first use, so that a name that moved would go unnoticed."""
    import invcryo

    missing = [name for name in invcryo.__all__ if not hasattr(invcryo, name)]
    assert not missing and len(set(invcryo.__all__)) == len(invcryo.__all__)
