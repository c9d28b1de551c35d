"""What a data term needs of its images: the sums that make up its normal equations."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import inner
from ..operators import LinOp, Toeplitz
from ..symmetry import lattice_coset, point_group, symmetrise
from .base import Quadratic

__all__ = ["NormalSums", "Views"]


class Views:
    """The rotations of a point group from which each image counts as seen.

    Elements that move voxels onto voxels cost nothing: sums are made for one view of each coset (``turns``) and
    averaged over the others (``lattice``) at the end.
    """

    def __init__(self, symmetry: str, shape: tuple[int, ...]) -> None:
        self.lattice, self.turns = lattice_coset(symmetry)
        if len(set(shape)) > 1:
            # axes of unequal length cannot be exchanged: every element is a view of its own
            self.lattice, self.turns = self.lattice[:1], point_group(symmetry)

    @property
    def order(self) -> int:
        return len(self.turns) * len(self.lattice)

    def cosets(self, A: LinOp) -> list[LinOp]:
        """The operator from one pose of each coset."""
        return [A] if self.order == 1 else [A.rotated(turn) for turn in self.turns]

    def all(self, A: LinOp) -> list[LinOp]:
        """The operator from each pose of the group."""
        if self.order == 1:
            return [A]
        return [A.rotated(turn @ element) for turn in self.turns for element in self.lattice]


class NormalSums:
    """``A^H W y``, the kernel of ``A^H W A`` and ``||y||^2_W / 2``, added up over parts of a stack.

    Parameters
    ----------
    A : LinOp
        The model of the whole stack; parts are added as ``A.rows(...)``.
    weight : LinOp or None
    views : Views
    """

    def __init__(self, A: LinOp, weight: LinOp | None, views: Views) -> None:
        self._views, self._shape, self._dtype = views, A.ishape, A.dtype
        self._centre = _odd(A.ishape) if len(views.lattice) > 1 else A.ishape
        self.energy = 0.0
        self._b = self._centred(views.cosets(A)[0]).adjoint_sum()
        #: None where the operator has no kernel that adds up view by view
        self._kernel = A.gram_sum(weight, self._b)

    def _centred(self, A: LinOp) -> LinOp:
        return A if self._views.order == 1 else A.resized(self._centre)

    def add(self, images: NDArray, A: LinOp, weight: LinOp | None) -> None:
        """Add some images, the operator that makes them, and their weight."""
        weighted = images if weight is None else weight.apply(images)
        self.energy += 0.5 * inner(images, weighted)
        for view in self._views.cosets(A):
            if self._kernel is None:
                self._centred(view).add_adjoint(weighted, self._b)
            else:
                self._centred(view).add_normal(weighted, weight, self._b, self._kernel)

    @property
    def state(self) -> dict[str, NDArray]:
        """All that is needed to go on; the arrays themselves, not copies."""
        state = {"energy": np.array(self.energy), "right side": self._b.total}
        if self._kernel is not None:
            state["kernel"] = self._kernel.total
        return state

    def restore(self, state: dict[str, NDArray]) -> None:
        """Go on from the `state` of an earlier sum."""
        for name, array in self.state.items():
            if name != "energy":
                array[...] = state[name]
        self.energy = float(state["energy"])

    def quadratic(self, A: LinOp, weight: LinOp | None) -> Quadratic:
        """The normal equations of all that was added, whose model and weight these are; the sums are used up."""
        views, n = self._views, len(self._views.turns)
        b = self._b.result()
        self._b = None
        if n > 1:
            b /= n
        if len(views.lattice) > 1:
            b = symmetrise(b, views.lattice)[tuple(slice(0, m) for m in self._shape)]
        return Quadratic(self._gram(A, weight), np.ascontiguousarray(b), self.energy)

    def _gram(self, A: LinOp, weight: LinOp | None) -> LinOp:
        views, n = self._views, len(self._views.turns)
        if self._kernel is None:
            return _gram_of_all(A, weight, views)
        kernel: Any = self._kernel.result()
        self._kernel = None
        if n > 1:
            kernel /= n
        if len(views.lattice) > 1:
            kernel = symmetrise(kernel, views.lattice)
        return Toeplitz(kernel, self._dtype)


def _gram_of_all(A: LinOp, weight: LinOp | None, views: Views) -> LinOp:
    """The average of the grams of a group's views, for operators that have no kernel view by view."""
    turned = views.cosets(A)
    Q = turned[0].gram(weight)
    for view in turned[1:]:
        Q = Q + view.gram(weight)
    if len(turned) > 1:
        Q = (1.0 / len(turned)) * Q
    if len(views.lattice) > 1:
        if not isinstance(Q, Toeplitz):
            raise TypeError(f"symmetry needs an operator whose gram is a Toeplitz kernel; {A!r} gives {Q!r}")
        Q = Toeplitz(symmetrise(Q.kernel, views.lattice), Q.dtype)
    return Q


def _odd(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Sides raised to odd numbers, so that every voxel has its mirror image about index ``n // 2``."""
    return tuple(n + 1 - n % 2 for n in shape)
