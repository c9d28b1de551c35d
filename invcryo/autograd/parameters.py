"""Parameters of a model: named leaves that share one array, so that the driver of all methods sees a vector."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import array_module, real_dtype, to_host
from ..io.atomic import atomic_path
from .tape import Var, leaf

__all__ = ["Parameters"]


class Parameters:
    """Named arrays as leaves of the tape, kept one after another in ``flat``.

    Parameters
    ----------
    tree : mapping
        Names to arrays or to further mappings, all of one precision, real or complex. Values are copied.

    Attributes
    ----------
    tree : dict
        The same names with leaves: what a loss takes. The leaves are views of ``flat``.
    flat : (count,), real
        All values; a complex one is two.
    """

    def __init__(self, tree: Mapping[str, Any]) -> None:
        arrays = dict(_walk(tree))
        if not arrays:
            raise ValueError("a model without parameters")
        kinds = {np.dtype(a.dtype.char.lower()) for a in arrays.values()}
        if len(kinds) != 1:
            raise TypeError(
                f"parameters must be of one precision, got {', '.join(sorted(map(str, kinds)))}: cast them"
            )
        dtype = real_dtype(kinds.pop())
        xp = array_module(next(iter(arrays.values())))
        self._places: dict[str, tuple[slice, tuple[int, ...], np.dtype]] = {}
        start = 0
        for name, a in arrays.items():
            stop = start + a.size * (2 if a.dtype.kind == "c" else 1)
            self._places[name] = (slice(start, stop), a.shape, a.dtype)
            start = stop
        self.flat = xp.empty(start, dtype=dtype)
        self._leaves: dict[str, Var] = {}
        self.tree: dict[str, Any] = {}
        for name, a in arrays.items():
            view = self.array(name)
            view[...] = a
            self._leaves[name] = leaf(view, copy=False)
            *folders, last = name.split("/")
            place = self.tree
            for folder in folders:
                place = place.setdefault(folder, {})
            place[last] = self._leaves[name]

    def array(self, name: str) -> Any:
        """The array of a parameter, a view; who changes it says so by `changed`."""
        part, shape, dtype = self._places[name]
        return self.flat[part].view(dtype).reshape(shape)

    def names(self, part: str | None = None) -> list[str]:
        """All names, as "folder/name"; or those in a folder, or the one."""
        if part is None:
            return list(self._places)
        found = [n for n in self._places if n == part or n.startswith(part + "/")]
        if not found:
            raise KeyError(f"no parameters {part!r}: there are {', '.join(self._places)}")
        return found

    def span(self, part: str | None = None) -> slice:
        """Where in ``flat`` such parameters are, which lie side by side."""
        places = [self._places[n][0] for n in self.names(part)]
        return slice(places[0].start, places[-1].stop)

    def changed(self, part: str | None = None) -> None:
        """Let graphs made before now refuse to be differentiated."""
        for name in self.names(part):
            node = self._leaves[name].node
            assert node is not None
            node.version += 1

    def fitted(self, gradients: Any, part: str | None = None) -> list[tuple[slice, Any]]:
        """Gradients nested like ``tree``, or like one part of it: flat and real, each with its place in that part."""
        given = dict(_walk(gradients if isinstance(gradients, Mapping) else {"": gradients}))
        prefix = "" if part is None else part + "/" if part not in self._places else part
        names = self.names(part)
        if [prefix + name for name in given] != names:
            raise ValueError(f"gradients of {list(given)} do not fit the parameters {names}")
        start = self.span(part).start
        out = []
        for name, g in zip(names, given.values(), strict=True):
            place, shape, dtype = self._places[name]
            if g.shape != shape or g.dtype != dtype:
                raise ValueError(
                    f"the gradient of {name!r} is {g.shape} {g.dtype}, the parameter {shape} {dtype}"
                )
            flat = array_module(g).ascontiguousarray(g).reshape(-1).view(self.flat.dtype)
            out.append((slice(place.start - start, place.stop - start), flat))
        return out

    @property
    def architecture(self) -> str:
        """Names, shapes and types: models with the same one may exchange their values."""
        return "; ".join(f"{n} {s} {d}" for n, (_, s, d) in self._places.items())

    def assign(self, flat: Any) -> None:
        """Take the values of a vector like ``flat``."""
        if flat.shape != self.flat.shape or flat.dtype != self.flat.dtype:
            raise ValueError(
                f"a vector {flat.shape} {flat.dtype} is no state of this model of {self.flat.size} {self.flat.dtype}"
            )
        self.flat[...] = array_module(self.flat).asarray(flat)
        self.changed()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an .npz file with an array for each name."""
        with atomic_path(Path(path)) as temporary, temporary.open("wb") as file:
            np.savez(file, **{name: to_host(self.array(name)) for name in self._places})  # type: ignore[arg-type]

    def load(self, path: str | os.PathLike[str]) -> None:
        """Take the values of a file by `save`; an error if it is of another model."""
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        theirs = {name: (a.shape, a.dtype) for name, a in arrays.items()}
        ours = {name: (s, np.dtype(d)) for name, (_, s, d) in self._places.items()}
        different = [n for n in ours | theirs if ours.get(n) != theirs.get(n)]
        if different:
            said = (
                f"{n}: {theirs.get(n, 'missing')} in the file, {ours.get(n, 'none')} here" for n in different
            )
            raise ValueError(f"{path} holds the parameters of another model: {'; '.join(said)}")
        xp = array_module(self.flat)
        for name, a in arrays.items():
            self.array(name)[...] = xp.asarray(a)
        self.changed()


def _walk(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, NDArray]]:
    for name, item in tree.items():
        if "/" in name:
            raise ValueError(f"a parameter cannot be called {name!r}: '/' separates folders")
        if isinstance(item, Mapping):
            yield from _walk(item, f"{prefix}{name}/")
        else:
            yield prefix + name, item.data if isinstance(item, Var) else item
