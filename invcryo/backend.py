"""The one place that knows of array libraries, threads and FFT engines.

The type of an array decides where work is done (`array_module`); threads and FFT engine are chosen for a
block of code with `use`, and nothing here is switched for the whole process by an import.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["array_module", "fft", "inner", "norm", "real_dtype", "threads", "to_host", "use"]

_SMALL = 1 << 17  # entries below which a second thread costs more than it saves

_threads: contextvars.ContextVar[int | None] = contextvars.ContextVar("invcryo_threads", default=None)
_engine: contextvars.ContextVar[str] = contextvars.ContextVar("invcryo_fft", default="scipy")


def array_module(x: Any) -> ModuleType:
    """``cupy`` for a CuPy array, else ``numpy``; never imports CuPy itself."""
    cupy = sys.modules.get("cupy")
    return cupy if cupy is not None and isinstance(x, cupy.ndarray) else np


def to_host(x: Any) -> NDArray:
    """A NumPy array of the same values."""
    xp = array_module(x)
    return np.asarray(x) if xp is np else xp.asnumpy(x)


def threads(work: int | None = None) -> int:
    """Number of threads that operators may use: `use`, else $INVCRYO_NUM_THREADS, else every core we own.

    One for a small amount of ``work`` (entries of the array): there the start of a parallel loop costs more than it
    saves, and far more on a machine that others use too.
    """
    if work is not None and work < _SMALL:
        return 1
    chosen = _threads.get()
    if chosen is not None:
        return chosen
    named = os.environ.get("INVCRYO_NUM_THREADS")
    if named:
        if not named.isdigit() or int(named) < 1:
            raise ValueError(f"INVCRYO_NUM_THREADS must be a positive integer, got {named!r}")
        return int(named)
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        return os.cpu_count() or 1


@contextlib.contextmanager
def use(*, threads: int | None = None, fft: str | None = None) -> Iterator[None]:
    """Choose, inside a ``with`` block, the number of threads and the FFT engine ("scipy" or "pyfftw").

    SciPy's engine is the default: at the sizes of this toolbox it was measured as fast as pyFFTW with
    estimated plans, and measured plans make results depend on timing.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    if fft is not None and fft not in ("scipy", "pyfftw"):
        raise ValueError(f"unknown FFT engine {fft!r}: expected 'scipy' or 'pyfftw'")
    before = _threads.set(_threads.get() if threads is None else int(threads))
    engine_before = _engine.set(_engine.get() if fft is None else fft)
    try:
        yield
    finally:
        _engine.reset(engine_before)
        _threads.reset(before)


class _Threaded:
    """A ``scipy.fft``-like module with the number of threads filled in."""

    def __init__(self, module: ModuleType, **options: Any) -> None:
        self._module, self._options = module, options

    def __getattr__(self, name: str) -> Any:
        if name == "next_fast_len":  # one answer for both engines: it decides the shape of an operator
            return importlib.import_module("scipy.fft").next_fast_len
        function = getattr(self._module, name)
        return lambda *args, **kwargs: function(*args, **{**self._options, **kwargs})


def fft(x: Any) -> Any:
    """The FFT functions for arrays like ``x``: ``scipy.fft`` with threads, or ``cupyx.scipy.fft``."""
    if array_module(x) is not np:
        return importlib.import_module("cupyx.scipy.fft")
    if _engine.get() == "pyfftw":
        module = importlib.import_module("pyfftw.interfaces.scipy_fft")
        return _Threaded(module, workers=threads(x.size), planner_effort="FFTW_ESTIMATE")
    return _Threaded(importlib.import_module("scipy.fft"), workers=threads(x.size))


def real_dtype(dtype: Any) -> np.dtype:
    """float32 or float64; anything else is an error."""
    dtype = np.dtype(dtype)
    if dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"operators work in float32 or float64, got {dtype}")
    return dtype


def inner(x: Any, y: Any) -> float:
    """``sum(x * y)`` of two real arrays, accumulated in float64, as a Python float.

    The result does not depend on the number of threads.
    """
    if x.shape != y.shape:
        raise ValueError(f"inner product of arrays of shapes {x.shape} and {y.shape}")
    if array_module(x) is not np:
        return float((x.astype("f8").ravel() * y.ravel()).sum())
    # einsum converts in small buffers, on one thread: np.dot would start the threads of BLAS at every call, which
    # --threads does not limit, and which cost far more than they save on a machine that others use too
    return float(np.einsum("i,i->", np.ravel(x), np.ravel(y), dtype=np.float64))


def norm(x: Any) -> float:
    """Euclidean norm, accumulated in float64."""
    return inner(x, x) ** 0.5
