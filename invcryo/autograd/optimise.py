"""Adam, for all of some parameters or for few rows of a large one (Kingma and Ba 2015)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..backend import array_module
from ..kernels import network as kernels
from .parameters import Parameters

__all__ = ["Adam", "SparseAdam"]


class _Moments:
    """What both have: running means of gradients and of their squares, a count of steps, and the size of a step."""

    def __init__(
        self,
        parameters: Parameters,
        part: str | None = None,
        *,
        rate: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if not (rate >= 0 and all(0 <= b < 1 for b in betas) and eps > 0):
            raise ValueError(f"Adam needs rate >= 0, betas in [0, 1), eps > 0: got {rate}, {betas}, {eps}")
        self.parameters, self.part, self.rate, self.betas, self.eps = parameters, part, rate, betas, eps
        self._values = parameters.flat[parameters.span(part)]
        xp = array_module(self._values)
        self._mean, self._square = xp.zeros_like(self._values), xp.zeros_like(self._values)
        self._count = np.zeros((), np.int64)

    def memory(self) -> dict[str, Any]:
        """All that is needed to go on: live views."""
        return {"mean": self._mean, "square": self._square, "count": self._count}

    def restore(self, memory: dict[str, Any]) -> None:
        for name, mine in self.memory().items():
            mine[...] = array_module(mine).asarray(memory[name])

    def _size(self) -> tuple[float, float]:
        """Rate and floor of the next step, the corrections for its count in them."""
        self._count += 1
        first, second = (1 - beta ** int(self._count) for beta in self.betas)
        return self.rate * math.sqrt(second) / first, self.eps * math.sqrt(second)


class Adam(_Moments):
    """Adam.

    Parameters
    ----------
    parameters : Parameters
    part : str, optional
        The folder or name to change; default: all.
    rate : float
        May be set between steps, for a schedule.
    betas, eps
        As in the paper and in PyTorch. Complex parameters are pairs of real ones.
    """

    def step(self, gradients: Any) -> float:
        """Descend, with gradients nested like the parameters; returns their norm.

        Where it is not finite nothing is changed: given to the driver as a figure, it ends the run at the last good
        state.
        """
        parts = self.parameters.fitted(gradients, self.part)
        norm = math.sqrt(sum(_square(g) for _, g in parts))
        if math.isfinite(norm):
            rate, floor = self._size()
            for place, g in parts:
                p, m, v = self._values[place], self._mean[place], self._square[place]
                kernels.adam(p, m, v, g, rate, self.betas, floor)
            self.parameters.changed(self.part)
        return norm


class SparseAdam(_Moments):
    """Adam for a parameter (n, K) of which each step sees few rows: the others and their means stay as they are.

    ``part`` is its name. The count of steps is one for all rows, as in PyTorch.
    """

    def step(self, gradient: Any, rows: Any) -> float:
        """Descend in ``rows``, of which none comes twice, by the gradient (len(rows), K); returns its norm."""
        if self.part is None:
            raise ValueError("SparseAdam needs the name of one parameter")
        shape = self.parameters.array(self.part).shape
        if len(shape) != 2 or gradient.shape != (len(rows), shape[1]):
            raise ValueError(f"a gradient {gradient.shape} is not of {len(rows)} rows of a parameter {shape}")
        if gradient.dtype != self.parameters.array(self.part).dtype:
            raise ValueError(f"a gradient of {gradient.dtype} for {self.parameters.array(self.part).dtype}")
        xp = array_module(gradient)
        g = xp.ascontiguousarray(gradient).view(self._values.dtype)
        norm = math.sqrt(_square(g.reshape(-1)))
        if math.isfinite(norm):
            rate, floor = self._size()
            p, m, v = (a.reshape(shape[0], g.shape[1]) for a in (self._values, self._mean, self._square))
            kernels.adam_rows(p, m, v, g, rows, rate, self.betas, floor)
            self.parameters.changed(self.part)
        return norm


def _square(g: Any) -> float:
    """``sum g^2`` of a flat array: in its own precision over runs of 65536 entries, these added in double precision."""
    if array_module(g) is not np:
        return float((g.astype("f8") ** 2).sum())
    return math.fsum(float(np.dot(run, run)) for run in np.array_split(g, -(-g.size // 65536)))
