"""The linear-operator algebra.

An operator maps a real array of shape ``ishape`` to one of shape ``oshape``. A subclass states the two shapes
and writes ``_apply`` and ``_adjoint``; everything else follows. Operators are pure: they change neither
themselves nor their input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import array_module, real_dtype

__all__ = ["Adjoint", "Compose", "LinOp", "Scaled", "Stack", "Sum"]

Shape = tuple[int, ...]


class LinOp:
    """A linear operator between real arrays.

    Parameters
    ----------
    ishape, oshape : tuple of int
        Shapes of input and output.
    dtype : float32 or float64
        Arrays of another type are refused; nothing is cast in silence.

    Notes
    -----
    ``A.H``, ``A @ B``, ``A + B``, ``2 * A`` are new operators. SciPy's solvers take an operator as it is
    (``scipy.sparse.linalg.cg``, ``lsqr``, ``eigsh``, ``svds``), with flat vectors.
    """

    __array_ufunc__ = None  # so that np.float64(2) * A and array @ A reach us and not NumPy's loops

    def __init__(self, ishape: Sequence[int], oshape: Sequence[int], dtype: Any = np.float32) -> None:
        self.ishape: Shape = tuple(int(n) for n in ishape)
        self.oshape: Shape = tuple(int(n) for n in oshape)
        self.dtype = real_dtype(dtype)

    # -- what a subclass writes -------------------------------------------------------------------------

    def _apply(self, x: NDArray) -> NDArray:
        raise NotImplementedError(f"{type(self).__name__} does not define apply")

    def _adjoint(self, y: NDArray) -> NDArray:
        raise NotImplementedError(f"{type(self).__name__} does not define adjoint")

    def _gram(self, W: LinOp | None) -> LinOp:
        """``A^H W A`` for `gram`; structured operators return a fast equivalent."""
        return self.H @ self if W is None else self.H @ (W @ self)

    def _after(self, left: LinOp) -> Compose:
        """``left @ A`` for ``@``; operators that can do both at once return a `Compose` that does."""
        return Compose(left, self)

    def _as_weight(self) -> tuple[float, LinOp | None]:
        """The operator as (factor, W), W None for the identity: `_gram` meets W in its plain form."""
        return 1.0, self

    @property
    def spectrum(self) -> NDArray | None:
        """Eigenvalues on the half spectrum of ``rfftn`` if the operator is a periodic convolution, else None.

        May be an array that broadcasts to that shape.
        """
        return None

    def nearest_circulant(self) -> NDArray | None:
        """Spectrum of a periodic convolution close to the operator, for preconditioning; None if unknown."""
        return self.spectrum

    def rows(self, index: Any) -> LinOp:
        """The operator restricted to some images of its stack (first axis of the output)."""
        raise TypeError(f"{type(self).__name__} has no rows: it does not act on a stack of images")

    def rotated(self, matrix: NDArray) -> LinOp:
        """The operator that sees its input volume turned: views ``A_p @ matrix``."""
        raise TypeError(
            f"{type(self).__name__} cannot be rotated: it does not act on a volume seen from poses"
        )

    def resized(self, shape: Sequence[int]) -> LinOp:
        """The operator on an input volume of another shape with the same centre ``n // 2``."""
        raise TypeError(
            f"{type(self).__name__} cannot be resized: it does not act on a volume seen from poses"
        )

    # -- sums over the parts of a stack -----------------------------------------------------------------

    def adjoint_sum(self) -> Any:
        """Where `add_adjoint` of operators that differ from this one in their views alone adds up.

        An object with ``result()``, the sum of ``A_p^H y_p``, and ``total``, an array that is all its state.
        """
        return _PlainSum(self.ishape, self.dtype)

    def add_adjoint(self, y: NDArray, total: Any) -> None:
        """Add ``A^H y`` to a sum made by `adjoint_sum`; what work can wait for its end is left to ``result()``."""
        total.total += self._adjoint(y)

    def gram_sum(self, W: LinOp | None = None, beside: Any | None = None) -> Any | None:
        """The same for `add_gram`: ``result()`` is the kernel of the `Toeplitz` operator ``sum_p A_p^H W_p A_p``.

        None where that is no Toeplitz operator, or its kernel is not made view by view. ``beside`` is a sum made by
        `adjoint_sum`: `add_normal` adds to both.
        """
        return None

    def add_normal(self, y: NDArray, W: LinOp | None, right: Any, kernel: Any) -> None:
        """`add_adjoint` of images that ``W`` has weighted, and `add_gram`, to two sums made beside each other."""
        self.add_adjoint(y, right)
        self.add_gram(W, kernel)

    def add_gram(self, W: LinOp | None, total: Any) -> None:
        """Add the kernel of ``A^H W A`` to a sum made by `gram_sum`."""
        raise NotImplementedError(f"{type(self).__name__} has no kernel that adds up")

    # -- what users call --------------------------------------------------------------------------------

    def apply(self, x: NDArray) -> NDArray:
        """``A x``."""
        return self._apply(self._checked(x, self.ishape, "input"))

    def adjoint(self, y: NDArray) -> NDArray:
        """``A^H y``."""
        return self._adjoint(self._checked(y, self.oshape, "input of the adjoint"))

    def gram(self, W: LinOp | None = None) -> LinOp:
        """``A^H W A`` (``W = None``: ``A^H A``). Structured operators return a fast equivalent."""
        if W is None:
            return self._gram(None)
        if W.ishape != self.oshape or W.oshape != self.oshape:
            raise ValueError(f"the weight {W!r} does not fit the output of {self!r}")
        _same_dtype(self, W)
        factor, core = W._as_weight()
        return self._gram(core) if factor == 1.0 else factor * self._gram(core)

    __call__ = apply

    @property
    def H(self) -> LinOp:
        """The adjoint operator."""
        return Adjoint(self)

    def norm(self, *, tol: float = 1e-3, rng: np.random.Generator | int | None = 0) -> float:
        """Largest singular value, to relative accuracy ``tol``, by Lanczos iterations on ``A^H A``."""
        gram = self.gram()
        if gram.spectrum is not None:
            return float(np.abs(gram.spectrum).max()) ** 0.5
        if gram.shape[0] < 8:
            return float(np.linalg.norm(np.stack([gram.matvec(e) for e in np.eye(gram.shape[0])]), 2)) ** 0.5
        from scipy.sparse.linalg import eigsh

        start = np.random.default_rng(rng).standard_normal(gram.shape[0]).astype(gram.dtype)
        if not gram.matvec(start).any():  # the zero operator, which ARPACK refuses
            return 0.0
        value = eigsh(gram, k=1, v0=start, tol=tol, return_eigenvectors=False)[0]
        return float(max(value, 0.0)) ** 0.5

    # -- algebra ----------------------------------------------------------------------------------------

    def __matmul__(self, other: Any) -> LinOp:
        if not isinstance(other, LinOp):
            return NotImplemented
        return other._after(self)

    def __add__(self, other: Any) -> LinOp:
        if not isinstance(other, LinOp):
            return NotImplemented
        return Sum(self, other)

    def __sub__(self, other: Any) -> LinOp:
        if not isinstance(other, LinOp):
            return NotImplemented
        return Sum(self, Scaled(-1.0, other))

    def __mul__(self, factor: Any) -> LinOp:
        if np.ndim(factor) != 0 or isinstance(factor, LinOp):
            return NotImplemented
        return Scaled(float(factor), self)

    __rmul__ = __mul__

    def __neg__(self) -> LinOp:
        return Scaled(-1.0, self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.ishape} -> {self.oshape}, {self.dtype}>"

    # -- SciPy's protocol: flat vectors -----------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int]:
        """(size of the output, size of the input), as of a matrix."""
        return math.prod(self.oshape), math.prod(self.ishape)

    def matvec(self, v: NDArray) -> NDArray:
        """``A v`` for a flat vector, in the vector's own floating type."""
        return self._flat(self._apply, v, self.ishape)

    def rmatvec(self, u: NDArray) -> NDArray:
        """``A^H u`` for a flat vector."""
        return self._flat(self._adjoint, u, self.oshape)

    def _flat(self, function: Callable[[NDArray], NDArray], v: NDArray, shape: Shape) -> NDArray:
        v = np.asarray(v)
        if np.iscomplexobj(v):
            raise TypeError(f"{self!r} acts on real vectors, got {v.dtype}")
        if v.size != math.prod(shape):
            raise ValueError(f"{self!r}: a vector of {v.size} entries, expected {math.prod(shape)}")
        out = function(np.ascontiguousarray(v, self.dtype).reshape(shape)).reshape(-1)
        return out.astype(np.result_type(v.dtype, self.dtype), copy=False)

    # ---------------------------------------------------------------------------------------------------

    def _checked(self, x: Any, shape: Shape, what: str) -> Any:
        if not hasattr(x, "shape") or not hasattr(x, "dtype"):
            x = np.asarray(x)
        if tuple(x.shape) != shape:
            raise ValueError(f"{self!r}: {what} has shape {tuple(x.shape)}, expected {shape}")
        if x.dtype != self.dtype:
            raise TypeError(
                f"{self!r}: {what} has dtype {x.dtype}, expected {self.dtype}; cast it with"
                f" x.astype(np.{self.dtype}), or build the operator with dtype=np.{x.dtype}"
            )
        return x if array_module(x) is not np else np.ascontiguousarray(x)


class _PlainSum:
    """The sum of arrays, for operators that have nothing better."""

    def __init__(self, shape: Shape, dtype: np.dtype) -> None:
        self.total = np.zeros(shape, dtype)

    def result(self) -> NDArray:
        return self.total


class Adjoint(LinOp):
    """``A^H``."""

    def __init__(self, operator: LinOp) -> None:
        super().__init__(operator.oshape, operator.ishape, operator.dtype)
        self.operator = operator

    def _apply(self, x: NDArray) -> NDArray:
        return self.operator._adjoint(x)

    def _adjoint(self, y: NDArray) -> NDArray:
        return self.operator._apply(y)

    @property
    def H(self) -> LinOp:
        return self.operator

    @property
    def spectrum(self) -> NDArray | None:
        s = self.operator.spectrum
        return None if s is None else np.conj(s)


class Compose(LinOp):
    """``A B``."""

    def __init__(self, left: LinOp, right: LinOp) -> None:
        if left.ishape != right.oshape:
            raise ValueError(
                f"cannot compose {left!r} @ {right!r}: {right.oshape} does not fit {left.ishape}"
            )
        _same_dtype(left, right)
        super().__init__(right.ishape, left.oshape, left.dtype)
        self.left, self.right = left, right

    def _apply(self, x: NDArray) -> NDArray:
        return self.left._apply(self.right._apply(x))

    def _adjoint(self, y: NDArray) -> NDArray:
        return self.right._adjoint(self.left._adjoint(y))

    def _gram(self, W: LinOp | None) -> LinOp:
        return self.right.gram(self.left.gram(W))  # (A B)^H W (A B) = B^H (A^H W A) B

    @property
    def spectrum(self) -> NDArray | None:
        a, b = self.left.spectrum, self.right.spectrum
        return None if a is None or b is None else a * b

    def rows(self, index: Any) -> LinOp:
        return self.left.rows(index) @ self.right.rows(index)

    def rotated(self, matrix: NDArray) -> LinOp:
        return self.left @ self.right.rotated(matrix)

    def resized(self, shape: Sequence[int]) -> LinOp:
        return self.left @ self.right.resized(shape)

    def adjoint_sum(self) -> Any:
        return self.right.adjoint_sum()

    def add_adjoint(self, y: NDArray, total: Any) -> None:
        self.right.add_adjoint(self.left._adjoint(y), total)

    def gram_sum(self, W: LinOp | None = None, beside: Any | None = None) -> Any | None:
        return self.right.gram_sum(self.left.gram(W), beside)

    def add_gram(self, W: LinOp | None, total: Any) -> None:
        self.right.add_gram(self.left.gram(W), total)


class Sum(LinOp):
    """``A + B``."""

    def __init__(self, left: LinOp, right: LinOp) -> None:
        if left.ishape != right.ishape or left.oshape != right.oshape:
            raise ValueError(f"cannot add {left!r} and {right!r}: their shapes differ")
        _same_dtype(left, right)
        super().__init__(left.ishape, left.oshape, left.dtype)
        self.left, self.right = left, right

    def _apply(self, x: NDArray) -> NDArray:
        return self.left._apply(x) + self.right._apply(x)

    def _adjoint(self, y: NDArray) -> NDArray:
        return self.left._adjoint(y) + self.right._adjoint(y)

    @property
    def spectrum(self) -> NDArray | None:
        return _add(self.left.spectrum, self.right.spectrum)

    def nearest_circulant(self) -> NDArray | None:
        return _add(self.left.nearest_circulant(), self.right.nearest_circulant())

    def rows(self, index: Any) -> LinOp:
        return self.left.rows(index) + self.right.rows(index)


class Scaled(LinOp):
    """``factor A``."""

    def __init__(self, factor: float, operator: LinOp) -> None:
        super().__init__(operator.ishape, operator.oshape, operator.dtype)
        self.factor, self.operator = float(factor), operator

    def _apply(self, x: NDArray) -> NDArray:
        return self.factor * self.operator._apply(x)

    def _adjoint(self, y: NDArray) -> NDArray:
        return self.factor * self.operator._adjoint(y)

    def _gram(self, W: LinOp | None) -> LinOp:
        return self.factor**2 * self.operator.gram(W)

    def _as_weight(self) -> tuple[float, LinOp | None]:
        factor, W = self.operator._as_weight()
        return self.factor * factor, W

    @property
    def spectrum(self) -> NDArray | None:
        s = self.operator.spectrum
        return None if s is None else self.factor * s

    def nearest_circulant(self) -> NDArray | None:
        s = self.operator.nearest_circulant()
        return None if s is None else self.factor * s

    def rows(self, index: Any) -> LinOp:
        return Scaled(self.factor, self.operator.rows(index))

    def rotated(self, matrix: NDArray) -> LinOp:
        return Scaled(self.factor, self.operator.rotated(matrix))

    def resized(self, shape: Sequence[int]) -> LinOp:
        return Scaled(self.factor, self.operator.resized(shape))


class Stack(LinOp):
    """``x -> (A_1 x, A_2 x, ...)``: along a new first axis, or flat where the shapes of output differ."""

    def __init__(self, operators: Sequence[LinOp]) -> None:
        if not operators:
            raise ValueError("a stack needs at least one operator")
        first = operators[0]
        for other in operators[1:]:
            if other.ishape != first.ishape:
                raise ValueError(f"cannot stack {first!r} and {other!r}: their input shapes differ")
            _same_dtype(first, other)
        self.operators = tuple(operators)
        self._even = len({op.oshape for op in operators}) == 1
        size = sum(op.shape[0] for op in operators)
        super().__init__(
            first.ishape, (len(operators), *first.oshape) if self._even else (size,), first.dtype
        )

    def _apply(self, x: NDArray) -> NDArray:
        parts = [op._apply(x) for op in self.operators]
        xp = array_module(x)
        return xp.stack(parts) if self._even else xp.concatenate([p.reshape(-1) for p in parts])

    def _adjoint(self, y: NDArray) -> NDArray:
        ends = np.cumsum([op.shape[0] for op in self.operators])
        flat = y.reshape(-1)
        parts = (
            op._adjoint(flat[end - op.shape[0] : end].reshape(op.oshape))
            for op, end in zip(self.operators, ends, strict=True)
        )
        total = next(parts)
        for part in parts:
            total = total + part
        return total

    def _gram(self, W: LinOp | None) -> LinOp:
        if W is not None:
            return super()._gram(W)
        total = self.operators[0].gram()
        for op in self.operators[1:]:
            total = total + op.gram()
        return total


def _same_dtype(a: LinOp, b: LinOp) -> None:
    if a.dtype != b.dtype:
        raise TypeError(f"cannot combine {a!r} and {b!r}: their dtypes differ")


def _add(a: NDArray | None, b: NDArray | None) -> NDArray | None:
    return None if a is None or b is None else a + b
