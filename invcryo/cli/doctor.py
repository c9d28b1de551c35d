"""``invcryo doctor``: is the installation sound?"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .common import (
    EXIT_DONE,
    EXIT_FAILED,
    Console,
    add_threads,
    count,
    facts,
    new_parser,
    plain_message,
)
from .demo import data_file
from .output import OPTIONAL_PACKAGES, PACKAGES, versions

#: Relative error allowed of the float32 operators; their non-uniform FFT is good to 3e-5.
_ADJOINT_TOLERANCE = 1e-5
_GRAM_TOLERANCE = 2e-3

_DESCRIPTION = """\
Test the installation: versions, threads, FFT engine, GPU, the cache of compiled code, and a small computation
whose result is known (a projector against its adjoint, and against its normal operator). Takes seconds; the
first time up to a minute, while loops are compiled. A missing GPU is fine.

Exit code 0 if all that is needed works, 1 if not.
"""
_EXAMPLES = """\
  invcryo doctor
  python -m invcryo doctor --json
"""


def add_parser(commands: Any) -> None:
    parser = new_parser(commands, "doctor", run, "test the installation", _DESCRIPTION, _EXAMPLES)
    add_threads(parser)


def run(args: argparse.Namespace, words: Sequence[str], console: Console) -> tuple[int, dict[str, Any]]:
    from ..backend import use

    with use(threads=args.threads):
        return _run(console)


def _run(console: Console) -> tuple[int, dict[str, Any]]:
    found = versions()
    console.say("versions")
    console.say(facts([(name, version or "not installed") for name, version in found.items()]))
    machine = {"threads": _threads(), "memory_gib": _memory(), "fft_engine": _fft_engine(), "gpu": _gpu()}
    demo = data_file()
    console.say("machine")
    console.say(
        facts(
            [
                ("threads", machine["threads"]),
                ("memory", None if machine["memory_gib"] is None else f"{machine['memory_gib']:.1f} GiB"),
                ("FFT engine", machine["fft_engine"]),
                ("GPU", machine["gpu"] or "absent (fine: everything runs on the processor)"),
                ("demo data", demo or "not installed (fine: `invcryo demo` simulates them)"),
            ]
        )
    )
    console.say("tests")
    checks = [
        _check(console, "packages", lambda: _packages(found)),
        _check(console, "compiled loops", _compiled),
        _check(console, "projector and its adjoint", _adjoint),
        _check(console, "normal operator", _gram),
        _check(console, "pictures", lambda: _pictures(found), needed=False),
    ]
    broken = [c["name"] for c in checks if c["needed"] and not c["ok"]]
    if broken:
        console.error(f"needed but broken: {', '.join(broken)} (see above, or --json, for the reasons)")
    else:
        console.say("everything that is needed works")
    report = {"ok": not broken, "versions": found, **machine, "demo_data": demo, "checks": checks}
    return EXIT_FAILED if broken else EXIT_DONE, report


def _check(console: Console, name: str, test: Callable[[], str], *, needed: bool = True) -> dict[str, Any]:
    """The outcome of a test, which returns what to say of its success and raises what is wrong."""
    start = time.perf_counter()
    try:
        ok, detail = True, test()
    except Exception as error:  # whatever is broken, the other tests are still worth running
        ok, detail = False, plain_message(error)
    console.say(f"  {'ok    ' if ok else 'BROKEN' if needed else 'absent'}  {name}: {detail}")
    seconds = round(time.perf_counter() - start, 3)
    return {"name": name, "ok": ok, "needed": needed, "detail": detail, "seconds": seconds}


# --- tests --------------------------------------------------------------------------------------------------


def _packages(found: dict[str, str | None]) -> str:
    missing = [name for name in PACKAGES if found[name] is None]
    if missing:
        raise ImportError(f"not installed: {', '.join(missing)}; run: pip install {' '.join(missing)}")
    for name in PACKAGES:
        importlib.import_module(name)
    return f"{len(PACKAGES)} packages are installed and load"


def _pictures(found: dict[str, str | None]) -> str:
    missing = [name for name in OPTIONAL_PACKAGES if found[name] is None]
    if missing:
        raise ImportError(f"{', '.join(missing)} is not installed, so no pictures are drawn; run: pip install"
                          " 'invcryo[plot]'")  # fmt: skip
    return "matplotlib is there"


def _compiled() -> str:
    """Compile a loop and find its cache, without which every start compiles anew."""
    import numpy as np

    from ..kernels import ctf_values

    ctf_values(np.zeros((1, 7)), np.zeros(1), np.zeros(1), 1, np.float32)
    from ..kernels import cpu

    folder = Path(cpu.ctf_values.stats.cache_path)
    if not os.access(folder, os.W_OK):
        raise PermissionError(
            f"the cache of compiled code, {folder}, is read-only: set the environment variable NUMBA_CACHE_DIR"
            " to a folder that you may write to"
        )
    return f"Numba compiles, and keeps what it compiled in {folder}"


def _projector() -> tuple[Any, Any]:
    from ..data import Poses
    from ..operators import ImageFilter, Projector
    from ..simulate import random_ctf, uniform_orientations
    from ..window import KaiserBessel

    poses = Poses(uniform_orientations(8, rng=1))
    projector = Projector(poses, KaiserBessel(), 16)
    return projector, ImageFilter.from_ctf(random_ctf(8, (8000.0, 20000.0), rng=2), 16, 5.0)


def _adjoint() -> str:
    import numpy as np

    from ..backend import inner, norm

    projector, _ = _projector()
    rng = np.random.default_rng(0)
    x = rng.standard_normal(projector.ishape).astype(np.float32)
    y = rng.standard_normal(projector.oshape).astype(np.float32)
    image = projector(x)
    error = abs(inner(image, y) - inner(x, projector.adjoint(y))) / (norm(image) * norm(y))
    if not error <= _ADJOINT_TOLERANCE:
        raise ArithmeticError(
            f"<Hx, y> and <x, H'y> differ by {error:.1e} of |Hx| |y|, {_ADJOINT_TOLERANCE:g} is allowed: the"
            " compiled loops or the FFT give wrong results here; reinstall numba and scipy"
        )
    return f"agree to {error:.1e} (the non-uniform FFT works)"


def _gram() -> str:
    projector, ctf = _projector()
    weight = ctf.gram()
    error = projector.check_gram(projector.gram(weight), weight)
    if not error <= _GRAM_TOLERANCE:
        raise ArithmeticError(
            f"the normal operator is off by {error:.1e}, {_GRAM_TOLERANCE:g} is allowed: the"
            " compiled loops or the FFT give wrong results here; reinstall numba and scipy"
        )
    return f"agrees with projecting and backprojecting to {error:.1e}"


# --- the machine --------------------------------------------------------------------------------------------


def _threads() -> int:
    from ..backend import threads

    return threads()


def _memory() -> float | None:
    """Memory of the machine in GiB, where the system tells."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def _fft_engine() -> str:
    import numpy as np

    from ..backend import fft

    module = fft(np.empty(0))._module.__name__
    return {"scipy.fft": "scipy.fft (pocketfft)"}.get(module, module)


def _gpu() -> str | None:
    """Names of the GPUs that CuPy finds; None without CuPy or without a GPU."""
    if importlib.util.find_spec("cupy") is None:
        return None
    try:
        import cupy

        number = cupy.cuda.runtime.getDeviceCount()
        names = [cupy.cuda.runtime.getDeviceProperties(i)["name"].decode() for i in range(number)]
    except Exception as error:  # CuPy's own errors need CuPy to be named; none of them matters here
        return f"CuPy is installed but finds no GPU ({type(error).__name__}: {error})"
    return f"{count(number, 'GPU')}: {', '.join(names)}" if names else None
