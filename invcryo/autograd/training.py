"""Training as a generator of states, for the driver of all iterative methods.

Progress, stopping rules, history, Ctrl-C and the stop at NaN are those of `invcryo.solvers.run`; a run that goes on
from a state, or from a checkpoint, gives the same bits as one that was never broken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import to_host
from ..checkpoint import Checkpoint
from ..kernels.network import one_blas_thread
from ..solvers.driver import State
from .optimise import Adam, SparseAdam
from .parameters import Parameters
from .tape import Var, value_and_grad

__all__ = ["Batch", "Batches", "descend", "keep", "load_state", "save_state", "train"]


@dataclass(frozen=True)
class Batch:
    """What one step sees: ``index`` of its images, increasing, and random numbers of its own."""

    index: NDArray
    rng: np.random.Generator


class Batches:
    """Mini-batches of a set, each image once per epoch in random order; what is left of an epoch is left out.

    Parameters
    ----------
    count : int
        Images in the set.
    size : int
        Images in a batch.
    rng : Generator, int or None
        Draws the seed. Batch k is a function of the seed and k alone, so that nothing but these two is kept.
    """

    def __init__(self, count: int, size: int, *, rng: np.random.Generator | int | None = None) -> None:
        if not 1 <= size <= count:
            raise ValueError(f"a batch of {size} images cannot be drawn from {count}: choose 1 to {count}")
        self.count, self.size = count, size
        self.seed = int(np.random.default_rng(rng).integers(2**63))
        self._order: tuple[int, NDArray] | None = None

    def __getitem__(self, k: int) -> Batch:
        """Batch ``k``, counted from 0."""
        epoch, place = divmod(k, self.count // self.size)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, 0, epoch]).permutation(self.count)
        chosen = self._order[1][place * self.size : (place + 1) * self.size]
        return Batch(np.sort(chosen), np.random.default_rng([self.seed, 1, k]))


Step = Callable[[Batch], Mapping[str, float]]


def descend(loss: Callable[..., Var], parameters: Parameters, optimiser: Adam) -> Step:
    """The step of plain training: ``loss(tree, batch)`` and its gradient, then the optimiser.

    Figures: "loss", and "gradient", its norm.
    """
    both = value_and_grad(loss)

    def step(batch: Batch) -> Mapping[str, float]:
        value, gradients = both(parameters.tree, batch)
        size = optimiser.step(gradients) if math.isfinite(float(value)) else math.nan
        return {"loss": float(value), "gradient": size}

    return step


def train(
    step: Step,
    parameters: Parameters,
    optimisers: Mapping[str, Adam | SparseAdam],
    batches: Batches,
    *,
    state: State | None = None,
) -> Iterator[State]:
    """Training steps without end, for `invcryo.solvers.run`.

    Parameters
    ----------
    step : callable
        ``step(batch) -> figures`` changes the parameters by the optimisers; see `descend`. It must leave them alone
        where a figure is not finite, as the optimisers do: the driver stops there, with the last good state in its
        error.
    parameters, optimisers, batches
        What ``step`` works with: they are kept in the states.
    state : State, optional
        To go on from: of the same architecture, optimisers and number of images.

    Yields
    ------
    State
        ``x`` is ``parameters.flat``, the figures are those of ``step``, of the parameters before it.
    """
    done = 0
    if state is not None:
        _restore(state, parameters, optimisers, batches)
        done = state.iteration
    memory = _memory(parameters, optimisers, batches)
    while True:
        # entered for each step: a generator may be left for long between two
        with one_blas_thread():
            figures = step(batches[done])
        done += 1
        yield State(done, parameters.flat, dict(figures), memory)


def _memory(parameters: Parameters, optimisers: Mapping[str, Any], batches: Batches) -> dict[str, Any]:
    memory = {
        "architecture": np.frombuffer(parameters.architecture.encode(), np.uint8),
        "batches": np.array([batches.seed, batches.count, batches.size]),
    }
    for name, optimiser in optimisers.items():
        memory |= {f"{name}/{key}": a for key, a in optimiser.memory().items()}
    return memory


def _restore(state: State, parameters: Parameters, optimisers: Mapping[str, Any], batches: Batches) -> None:
    mine = _memory(parameters, optimisers, batches)
    theirs = state.memory
    if not theirs:  # of an iteration that broke off: the values are good, the means are not
        parameters.assign(state.x)
        return
    if not np.array_equal(theirs["architecture"], mine["architecture"]):
        raise ValueError(
            f"the state is of another architecture: {theirs['architecture'].tobytes().decode()!r}, this model is"
            f" {parameters.architecture!r}"
        )
    if theirs.keys() != mine.keys():
        raise ValueError(f"the state is of other optimisers: {sorted(theirs)}, here {sorted(mine)}")
    if not np.array_equal(theirs["batches"][1:], mine["batches"][1:]):
        raise ValueError(
            f"the state is of batches of {theirs['batches'][2]} out of {theirs['batches'][1]} images, here"
            f" {batches.size} out of {batches.count}"
        )
    parameters.assign(state.x)
    batches.seed = int(theirs["batches"][0])
    for name, optimiser in optimisers.items():
        optimiser.restore({key: theirs[f"{name}/{key}"] for key in optimiser.memory()})


def save_state(checkpoint: Checkpoint, job: Mapping[str, Any], state: State) -> None:
    """Keep a state of `train` in a checkpoint; ``job`` is what decides the result besides the model, which is added."""
    whole = {"x": state.x, "iteration": np.array(state.iteration), **state.memory}
    arrays = {
        name.replace("/", "|"): to_host(a) for name, a in whole.items()
    }  # archives take a slash for a folder
    checkpoint.save(_job(job, state.memory["architecture"]), arrays)


def load_state(checkpoint: Checkpoint, job: Mapping[str, Any], parameters: Parameters) -> State | None:
    """The state of an unfinished job, None where there is none; an error if it is of another job or model."""
    arrays = checkpoint.load(_job(job, np.frombuffer(parameters.architecture.encode(), np.uint8)))
    if arrays is None:
        return None
    memory = {name.replace("|", "/"): a for name, a in arrays.items()}
    return State(int(memory.pop("iteration")), memory.pop("x"), {}, memory)


def keep(checkpoint: Checkpoint, job: Mapping[str, Any]) -> Callable[[State], None]:
    """A callback for the driver: `save_state` whenever a checkpoint is due."""

    def callback(state: State) -> None:
        if checkpoint.due():
            save_state(checkpoint, job, state)

    return callback


def _job(job: Mapping[str, Any], architecture: NDArray) -> dict[str, Any]:
    return {**job, "the model": architecture.tobytes().decode()}
