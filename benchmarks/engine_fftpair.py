"""The bare pair of FFTs inside every convolution with a padded kernel, and nothing else: what `gram` cannot avoid.

Real to complex, zero-padded to the same length as the operator's, each axis transformed only where something is or is
kept, by the FFT engine of invcryo. Along the last axis a few rows at a time, the quickest order that was found.
"""

from __future__ import annotations

from collections.abc import Callable

import engine_invcryo
from numpy.typing import NDArray
from problem import Problem

from invcryo.backend import fft

_ROWS = 8  # of the padded y axis that are transformed along z at a time

versions = engine_invcryo.versions


def call(case: str, problem: Problem, variant: str) -> Callable[[], NDArray]:
    return lambda: pair(problem.volume)


def pair(x: NDArray) -> NDArray:
    """``x`` again."""
    lib, n = fft(x), len(x)
    length = lib.next_fast_len(2 * n - 1, True)
    rows = lib.fft(lib.rfft(x, length, axis=2), length, axis=1)
    for y in range(0, length, _ROWS):
        part = slice(y, y + _ROWS)
        rows[:, part] = lib.ifft(lib.fft(rows[:, part], length, axis=0), axis=0, overwrite_x=True)[:n]
    rows = lib.ifft(rows, axis=1, overwrite_x=True)[:, :n]
    return lib.irfft(rows, length, axis=2)[:, :, :n]


def answer(case: str, problem: Problem, variant: str) -> NDArray:
    return pair(problem.volume)
