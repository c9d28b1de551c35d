"""The one driver of all iterative methods: progress, stopping, history, interruption."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from ..progress import Meter

__all__ = [
    "NonFiniteError",
    "Result",
    "State",
    "any_of",
    "max_seconds",
    "relative_change",
    "residual_below",
    "run",
]

log = logging.getLogger(__name__)


@dataclass
class State:
    """What a solver yields after each iteration.

    Attributes
    ----------
    iteration : int
        Counted from 1, and on through a resumed run.
    x : ndarray
        The iterate. A live view that the next iteration changes: copy it to keep it.
    info : dict of str to float
        Figures of this iteration, e.g. ``objective``, ``residual``.
    memory : dict
        What the solver needs besides ``x`` to go on from here; live views as well. Empty where an iteration broke off
        half done: a solver then starts anew from ``x``.
    """

    iteration: int
    x: NDArray
    info: dict[str, float]
    memory: dict[str, Any] = field(default_factory=dict)


@dataclass
class Result:
    """What `run` returns.

    Attributes
    ----------
    x : ndarray
        The last iterate.
    stopped_by : str
        "max_iter", "interrupt", "callback", "non-finite" (only in a `NonFiniteError`), "solver" (nothing left
        to do), or the name of the stopping rule.
    history : dict of str to list
        ``iteration``, ``seconds`` and every figure of ``State.info``.
    state : State
        Hand it to the solver as ``state=`` to go on.
    seconds : float
    """

    x: NDArray
    stopped_by: str
    history: dict[str, list[float]]
    state: State
    seconds: float

    @property
    def converged(self) -> bool:
        """Whether a stopping rule, or the solver itself, ended the run."""
        return self.stopped_by not in ("max_iter", "interrupt", "callback", "non-finite")


class NonFiniteError(ArithmeticError):
    """An iteration gave NaN or infinity; ``result`` holds the last finite state."""

    def __init__(self, message: str, result: Result | None) -> None:
        super().__init__(message)
        self.result = result


StopRule = Callable[[State], bool]


def run(
    states: Iterator[State],
    max_iter: int,
    *,
    stop: StopRule | None = None,
    callback: Callable[[State], None] | None = None,
    label: str = "iterations",
    progress: bool | None = None,
) -> Result:
    """Drive a solver until it ends, a rule holds, or ``max_iter`` iterations are done.

    Parameters
    ----------
    states : iterator of State
        A solver: ``admm(cost, ...)``, ``cg(Q, b)``, or any generator of states.
    max_iter : int
        Iterations of this call. Reaching it with a ``stop`` rule that never held is a warning.
    stop : callable, optional
        ``stop(state) -> bool``: see `residual_below`, `relative_change`, `max_seconds`, `any_of`.
    callback : callable, optional
        Called with each state; may raise StopIteration to end the run.
    progress : bool, optional
        Show a bar; default: only on a terminal.

    Returns
    -------
    Result
        Ctrl-C lets the present iteration end and returns what has been reached, with
        ``stopped_by == "interrupt"``; a second Ctrl-C does not wait for the iteration.

    Raises
    ------
    NonFiniteError
        Where an iteration gives NaN or infinity; it carries the last finite state.
    """
    if max_iter < 1:
        raise ValueError(f"max_iter must be at least 1, got {max_iter}")
    history: dict[str, list[float]] = {"iteration": [], "seconds": []}
    good: State | None = None
    whole = True  # whether the solver is between two iterations
    reason = "solver"
    start = time.perf_counter()

    def result() -> Result:
        if good is None:
            raise RuntimeError("the solver ended before its first iteration")
        state = good if whole else State(good.iteration, good.x, good.info)
        return Result(good.x, reason, history, state, time.perf_counter() - start)

    meter = Meter(label, total=max_iter, unit="iterations", show=progress, at_most=stop is not None)
    with meter, _DelayedInterrupt() as interrupt:
        try:
            for count in range(1, max_iter + 1):
                whole = False
                state = next(states, None)
                whole = True
                if state is None:
                    break
                if not all(math.isfinite(v) for v in state.info.values()):
                    figures = ", ".join(f"{k} = {v:g}" for k, v in state.info.items())
                    reason, whole = "non-finite", False
                    raise NonFiniteError(
                        f"iteration {state.iteration} gave {figures}: a step size or penalty is too large, or"
                        " the input holds NaN; the last finite state is in the error's `result`",
                        result() if good is not None else None,
                    )
                if good is None or good.x.shape != state.x.shape:
                    kept = state.x.copy()
                else:
                    kept = good.x
                    kept[...] = state.x
                good = State(state.iteration, kept, dict(state.info), state.memory)
                history["iteration"].append(state.iteration)
                history["seconds"].append(time.perf_counter() - start)
                for key, value in state.info.items():
                    history.setdefault(key, []).append(value)
                meter.step(**state.info)
                if callback is not None:
                    callback(state)
                if stop is not None and stop(state):
                    reason = _name(stop)
                    break
                if interrupt.asked:
                    raise KeyboardInterrupt
                if count == max_iter:
                    reason = "max_iter"
        except StopIteration:
            reason = "callback"
        except KeyboardInterrupt:
            if good is None:
                raise
            reason = "interrupt"
            log.warning("interrupted at iteration %d: the state reached so far is returned", good.iteration)
    if reason == "max_iter" and stop is not None:
        warnings.warn(
            f"{label}: stopped at max_iter = {max_iter} before the stopping rule held; raise max_iter, or"
            " resume with state=result.state",
            RuntimeWarning,
            stacklevel=2,
        )
    return result()


class _DelayedInterrupt:
    """Notes the first Ctrl-C instead of raising it, so that an iteration that works in place is never torn apart.

    Only the main thread can, and only where Ctrl-C raises KeyboardInterrupt; elsewhere it does nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> _DelayedInterrupt:
        ours = threading.current_thread() is threading.main_thread()
        if ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *error: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)


class _Rule:
    """A stopping rule that can say its name, and which part of it held."""

    def __init__(self, name: str, test: Callable[[State], str | None]) -> None:
        self.__name__, self._test = name, test
        self.reason: str | None = None

    def __call__(self, state: State) -> bool:
        self.reason = self._test(state)
        return self.reason is not None


def _name(rule: StopRule) -> str:
    """What ended a run: the reason that a rule gives, or its name."""
    return str(getattr(rule, "reason", None) or getattr(rule, "__name__", "stop"))


def _figure(state: State, key: str) -> float:
    if key not in state.info:
        raise KeyError(f"this solver has no figure {key!r} to stop by: it gives {', '.join(state.info)}")
    return state.info[key]


def residual_below(tolerance: float, *keys: str) -> StopRule:
    """Stop when each of the named figures (default "residual") is at most ``tolerance``."""
    names = keys or ("residual",)

    def test(state: State) -> str | None:
        below = all(_figure(state, k) <= tolerance for k in names)
        return f"residual_below({tolerance:g})" if below else None

    return _Rule("residual_below", test)


def relative_change(tolerance: float, key: str = "objective") -> StopRule:
    """Stop when a figure changed by at most ``tolerance`` of its size since the last iteration."""
    last: list[float] = []

    def test(state: State) -> str | None:
        value = _figure(state, key)
        done = bool(last) and abs(value - last[-1]) <= tolerance * max(abs(value), abs(last[-1]), 1e-300)
        last[:] = [value]
        return f"relative_change({tolerance:g})" if done else None

    return _Rule("relative_change", test)


def max_seconds(seconds: float) -> StopRule:
    """Stop once this much time has passed since the rule was made."""
    start = time.perf_counter()

    def test(state: State) -> str | None:
        return f"max_seconds({seconds:g})" if time.perf_counter() - start >= seconds else None

    return _Rule("max_seconds", test)


def any_of(*rules: StopRule) -> StopRule:
    """Stop when one of the rules holds; each sees every state."""

    def test(state: State) -> str | None:
        held = [rule for rule in rules if rule(state)]
        return _name(held[0]) if held else None

    return _Rule("any_of", test)
