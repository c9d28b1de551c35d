"""The tape: values that remember how they came about, and derivatives of any order.

A rule is a closure from the cotangent of an output, a `Var`, to that of one input, written in operations of the tape. A
derivative is therefore itself on the tape wherever ``create_graph`` asks for it, and can be differentiated again.

For complex ``z = a + i b`` the gradient is ``dL/da + i dL/db``, so that the rule of a linear map is its adjoint in the
inner product ``Re sum conj(x) y``. This is PyTorch's choice; JAX and HIPS autograd give the conjugate.
"""

from __future__ import annotations

import contextlib
import contextvars
import heapq
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .. import backend

__all__ = [
    "PRIMITIVES",
    "Var",
    "const",
    "grad",
    "leaf",
    "namespace",
    "no_grad",
    "precision",
    "primitive",
    "record",
    "value_and_grad",
]

_recording: contextvars.ContextVar[bool] = contextvars.ContextVar("invcryo_tape", default=True)
_count = itertools.count()
#: Every primitive by name: the tests go through them, and the operators of `Var` find theirs.
PRIMITIVES: dict[str, Callable[..., Var]] = {}
_PRECISION = {"f": "single", "F": "single", "d": "double", "D": "double"}


namespace = backend.array_module


def precision(x: Any) -> str:
    """ "single" or "double"; anything but float32, float64, complex64, complex128 is an error."""
    try:
        return _PRECISION[x.dtype.char]
    except KeyError:
        raise TypeError(
            f"the tape holds float32, float64, complex64 and complex128, got {x.dtype}: cast with x.astype(...)"
        ) from None


def primitive(function: Callable[..., Var]) -> Callable[..., Var]:
    """List a function that enters operations, so that the tests find it."""
    PRIMITIVES[function.__name__] = function
    return function


class _Node:
    """How a value came about: parents with their rules, oldest first to be found by number."""

    __slots__ = ("dtype", "number", "output", "parents", "shape", "version", "versions")

    def __init__(self, data: Any, parents: tuple[tuple[_Node, Callable], ...], output: Any = None) -> None:
        self.number = next(_count)
        self.parents, self.output = parents, output
        self.shape, self.dtype = data.shape, data.dtype
        self.version = 0  # counts the changes of a leaf's values
        self.versions = tuple(parent.version for parent, _ in parents)


class Var:
    """An array on the tape. Made by `leaf`, `const` and the operations; ``data`` is the array itself.

    Operators and ``x[...]`` act as on arrays. Nothing changes a value in place but `updating`, which the optimisers use
    for leaves.
    """

    __slots__ = ("_data", "node")
    __array_ufunc__ = None  # so that array * var reaches us and not NumPy's loops

    def __init__(self, data: Any, node: _Node | None = None) -> None:
        self._data, self.node = data, node

    @property
    def data(self) -> Any:
        """The array; read-only for leaves on the CPU, whose graph would not notice the change."""
        return self._data

    @contextlib.contextmanager
    def updating(self) -> Iterator[Any]:
        """The array of a leaf, to be changed in place. Graphs made before then refuse to be differentiated."""
        if self.node is None or self.node.parents:
            raise ValueError("only a leaf can be changed in place: other values belong to the graph")
        self.node.version += 1
        if isinstance(self._data, np.ndarray):
            self._data.flags.writeable = True
        try:
            yield self._data
        finally:
            if isinstance(self._data, np.ndarray):
                self._data.flags.writeable = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self._data.shape

    @property
    def dtype(self) -> np.dtype:
        return self._data.dtype

    @property
    def ndim(self) -> int:
        return self._data.ndim

    @property
    def size(self) -> int:
        return self._data.size

    def __add__(self, other: Any) -> Var:
        return PRIMITIVES["add"](self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Var:
        return PRIMITIVES["sub"](self, other)

    def __rsub__(self, other: Any) -> Var:
        return PRIMITIVES["sub"](other, self)

    def __mul__(self, other: Any) -> Var:
        return PRIMITIVES["mul"](self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Var:
        return PRIMITIVES["div"](self, other)

    def __rtruediv__(self, other: Any) -> Var:
        return PRIMITIVES["div"](other, self)

    def __matmul__(self, other: Any) -> Var:
        return PRIMITIVES["matmul"](self, other)

    def __rmatmul__(self, other: Any) -> Var:
        return PRIMITIVES["matmul"](other, self)

    def __neg__(self) -> Var:
        return PRIMITIVES["neg"](self)

    def __pow__(self, p: float) -> Var:
        return PRIMITIVES["power"](self, p)

    def __getitem__(self, index: Any) -> Var:
        return PRIMITIVES["getitem"](self, index)

    def __len__(self) -> int:
        return len(self._data)

    def __float__(self) -> float:
        return float(self._data)

    def __bool__(self) -> bool:
        raise TypeError("a value on the tape has no truth: compare float(x), or x.data")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("NumPy would take this value off the tape: use x.data for its array")

    def __repr__(self) -> str:
        kind = "constant" if self.node is None else "value" if self.node.parents else "leaf"
        return f"<{kind} {self.shape} {self.dtype}>"


def leaf(a: Any, *, copy: bool = True) -> Var:
    """A value with respect to which to differentiate: float or complex, of its own memory.

    Parameters
    ----------
    copy : bool
        With False the memory of a contiguous array is shared: for arrays that nothing else changes.
    """
    a = a.data if isinstance(a, Var) else a
    xp = namespace(a)
    if not hasattr(a, "dtype"):
        raise TypeError(f"a leaf is made of an array, got {type(a).__name__}")
    precision(a)
    a = xp.array(a, copy=True, order="C") if copy else xp.ascontiguousarray(a).reshape(a.shape)
    if isinstance(a, np.ndarray):
        a = a.view()  # of memory that can be written, by `updating`
        a.flags.writeable = False
    return Var(a, _Node(a, ()))


def const(a: Any) -> Var:
    """A value that no derivative reaches; of a `Var`, its value cut from the graph."""
    if isinstance(a, Var):
        return Var(a.data)
    if not hasattr(a, "dtype"):
        raise TypeError(f"a constant is made of an array, got {type(a).__name__}")
    precision(a)
    return Var(a)


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Inside, operations compute and remember nothing."""
    token = _recording.set(False)
    try:
        yield
    finally:
        _recording.reset(token)


def record(out: Any, *parents: tuple[Var, Callable[..., Var]], keep: bool = False) -> Var:
    """Enter an operation: the only way that one gets on the tape.

    Parameters
    ----------
    out : array
        The value.
    parents : pairs (Var, rule)
        ``rule(g)`` maps the cotangent of ``out`` to that of the parent, shape and type of the parent, by operations of
        the tape. It is called only where that parent leads to an input asked for.
    keep : bool
        The rules need the output: they are called as ``rule(g, out)``. A closure over the output would be a cycle.
    """
    if isinstance(out, np.generic):  # NumPy's reductions give scalars, CuPy's 0-d arrays
        out = np.asarray(out)
    if not _recording.get():
        return Var(out)
    kept = tuple((p.node, rule) for p, rule in parents if p.node is not None)
    return Var(out, _Node(out, kept, out if keep else None)) if kept else Var(out)


def _between(start: _Node, ends: set[_Node]) -> set[_Node]:
    """The nodes on a way from ``start`` back to ``ends``."""
    oldest = min((node.number for node in ends), default=0)
    seen, stack = {start}, [start]
    while stack:
        for parent, _ in stack.pop().parents:
            if parent not in seen and parent.number >= oldest:
                seen.add(parent)
                stack.append(parent)
    leading: set[_Node] = set()
    for node in sorted(seen, key=lambda n: n.number):  # parents come first
        if node in ends or any(parent in leading for parent, _ in node.parents):
            leading.add(node)
    return leading


def grad(y: Var, xs: Sequence[Var], gy: Any = None, *, create_graph: bool = False) -> list[Var | None]:
    """Derivatives of ``y`` with respect to each of ``xs``; None for one that ``y`` does not depend on.

    Parameters
    ----------
    y : Var
        A real scalar, unless ``gy`` is given.
    xs : sequence of Var
        Leaves or values on the way.
    gy : array or Var, optional
        Cotangent of ``y``, of its shape and type.
    create_graph : bool
        The derivatives are on the tape themselves, for derivatives of higher order.
    """
    if not isinstance(y, Var):
        raise TypeError(f"can differentiate a Var, got {type(y).__name__}")
    if gy is None:
        if y.size != 1 or y.dtype.kind == "c":
            raise ValueError(f"the derivative of {y!r}, which is no real scalar, needs a cotangent gy")
        gy = Var(namespace(y.data).ones_like(y.data))
    elif not isinstance(gy, Var):
        gy = const(gy)
    if gy.shape != y.shape or gy.dtype != y.dtype:
        raise ValueError(f"the cotangent {gy!r} does not fit {y!r}")
    ends = {x.node for x in xs if x.node is not None}
    found: dict[_Node, Var] = {}
    if y.node is None or not ends:
        return [None] * len(xs)
    leading = _between(y.node, ends)
    heap: list[tuple[int, _Node]] = []
    cotangents: dict[_Node, Var] = {}
    ours: set[_Node] = set()  # whose cotangent is an array that was made here, and may be added to
    if y.node in leading:
        cotangents[y.node] = gy
        heap.append((-y.node.number, y.node))
    token = _recording.set(_recording.get() and create_graph)
    try:
        while heap:
            _, node = heapq.heappop(heap)
            g = cotangents.pop(node)
            if node in ends:
                found[node] = g
            for (parent, rule), version in zip(node.parents, node.versions, strict=True):
                if parent.version != version:
                    raise RuntimeError(
                        f"a leaf of shape {parent.shape} was changed in place after this graph was made: take"
                        " derivatives first, and make a new graph for every step"
                    )
                if parent not in leading:
                    continue
                part = rule(g) if node.output is None else rule(g, Var(node.output, node))
                if part.shape != parent.shape or part.dtype != parent.dtype:
                    raise AssertionError(
                        f"a rule gave a cotangent {part!r} for an input {parent.shape} {parent.dtype}"
                    )
                if parent not in cotangents:
                    cotangents[parent] = part
                    heapq.heappush(heap, (-parent.number, parent))
                elif create_graph:
                    cotangents[parent] = PRIMITIVES["add"](cotangents[parent], part)
                elif parent in ours:
                    xp = namespace(part.data)
                    xp.add(cotangents[parent].data, part.data, out=cotangents[parent].data)
                else:
                    cotangents[parent] = Var(cotangents[parent].data + part.data)
                    if part.ndim:  # NumPy gives a scalar for the sum of two 0-d arrays
                        ours.add(parent)
                    else:
                        cotangents[parent] = record(cotangents[parent].data)
    finally:
        _recording.reset(token)
    return [None if x.node is None else found.get(x.node) for x in xs]


def value_and_grad(function: Callable[..., Any]) -> Callable[..., tuple[Var, Any]]:
    """``f(params, ...) -> loss`` as ``(params, ...) -> (loss, gradients)``, gradients nested like ``params``.

    ``params`` is a leaf, a sequence or a mapping of such things. What the loss does not depend on has gradient zero.
    """

    def both(params: Any, *args: Any, **kwargs: Any) -> tuple[Var, Any]:
        loss = function(params, *args, **kwargs)
        leaves = list(_leaves(params))
        gradients = iter(grad(loss, leaves))
        return loss, _like(params, gradients)

    return both


def _leaves(params: Any) -> Iterator[Var]:
    if isinstance(params, Var):
        yield params
    else:
        for item in params.values() if isinstance(params, Mapping) else params:
            yield from _leaves(item)


def _like(params: Any, gradients: Iterator[Var | None]) -> Any:
    if isinstance(params, Var):
        g = next(gradients)
        return namespace(params.data).zeros_like(params.data) if g is None else g.data
    if isinstance(params, Mapping):
        return {name: _like(item, gradients) for name, item in params.items()}
    return [_like(item, gradients) for item in params]
