"""A stand-in for CuPy on the host: an array that refuses all that CuPy refuses, and kernels run by `host_cuda`.

Nothing becomes a NumPy array in silence, or meets one; reductions and single entries stay arrays; fresh memory is full
of NaN; functions take what CuPy's take. `SIGNATURES` are CuPy's own: a test holds them to it where CuPy is installed.
"""

import contextlib
import copy
import inspect
import operator
import sys
import types

import host_cuda
import numpy as np
import scipy.fft

#: Of CuPy 14.
SIGNATURES = {
    "arange": "start, stop=None, step=1, dtype=None",
    "argsort": "a, axis=-1, kind=None",
    "array": "obj, dtype=None, copy=True, order='K', subok=False, ndmin=0, *, blocking=False",
    "asarray": "a, dtype=None, order=None, *, copy=None, blocking=False",
    "ascontiguousarray": "a, dtype=None",
    "broadcast_to": "array, shape",
    "concatenate": "tup, axis=0, out=None, *, dtype=None, casting='same_kind'",
    "dot": "a, b, out=None",
    "flatnonzero": "a",
    "full": "shape, fill_value, dtype=None, order='C'",
    "ones": "shape, dtype=float, order='C'",
    "ones_like": "a, dtype=None, order='K', subok=None, shape=None",
    "roll": "a, shift, axis=None",
    "searchsorted": "a, v, side='left', sorter=None",
    "where": "condition, x=None, y=None",
    "zeros": "shape, dtype=float, order='C'",
    "zeros_like": "a, dtype=None, order='K', subok=None, shape=None",
    "fft.fftshift": "x, axes=None",
    "fft.ifftshift": "x, axes=None",
}
FFT_SIGNATURES = {
    "rfftn": "x, s=None, axes=None, norm=None, overwrite_x=False, *, plan=None",
    "ifftn": "x, s=None, axes=None, norm=None, overwrite_x=False, *, plan=None",
    "irfft": "x, n=None, axis=-1, norm=None, overwrite_x=False, *, plan=None",
}
UFUNCS = "abs add arccos cos exp isfinite log log1p matmul maximum sin sqrt tanh".split()
METHODS = {
    "all": "axis=None, out=None, keepdims=False",
    "any": "axis=None, out=None, keepdims=False",
    "astype": "dtype, order='K', casting=None, subok=None, copy=True",
    "conj": "",
    "copy": "order='C'",
    "dot": "b, out=None",
    "fill": "value",
    "max": "axis=None, out=None, keepdims=False",
    "mean": "axis=None, dtype=None, out=None, keepdims=False",
    "min": "axis=None, out=None, keepdims=False",
    "ravel": "order='C'",
    "sum": "axis=None, dtype=None, out=None, keepdims=False",
    "view": "dtype=None",
}


def _binder(parameters):
    return inspect.signature(eval(f"lambda {parameters}: None"))


def _down(x):
    """Of arguments: our arrays as NumPy's, and a refusal of NumPy's own."""
    if isinstance(x, ndarray):
        return x._a
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    if isinstance(x, list | tuple):
        return type(x)(map(_down, x))
    return x


def _up(a):
    return ndarray(np.asarray(a)) if isinstance(a, np.ndarray | np.generic) else a


def _call(function, signature):
    def wrapped(*args, **kwargs):
        signature.bind(*args, **kwargs)
        out = kwargs.pop("out", None)
        result = function(*map(_down, args), **{k: _down(v) for k, v in kwargs.items()})
        if out is None:
            return _up(result)
        assert out.shape == result.shape and out.dtype == result.dtype
        out._a[...] = result
        return out

    return wrapped


class _Flags:
    """Contiguity, and nothing like ``writeable``."""

    def __init__(self, flags):
        self.c_contiguous, self.f_contiguous = flags.c_contiguous, flags.f_contiguous


class ndarray:
    __array_priority__ = 100

    def __init__(self, a):
        self._a = a

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_function__(self, function, *args):
        raise TypeError(f"numpy.{function.__name__} of an array on a GPU")

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        """NumPy's scalars and functions of one array."""
        assert method == "__call__" and not kwargs
        return _up(ufunc(*map(_down, inputs)))

    def __getitem__(self, index):
        return _up(self._a[_down(index)])

    def __setitem__(self, index, value):
        self._a[_down(index)] = _down(value)

    def reshape(self, *shape):
        return _up(self._a.reshape(*shape))

    def transpose(self, *axes):
        return _up(self._a.transpose(*axes))

    def get(self):
        return self._a.copy()

    def item(self):
        return self._a.item()

    def __len__(self):
        return len(self._a)

    def __bool__(self):
        return bool(self._a)

    def __float__(self):
        return float(self._a)

    def __int__(self):
        return int(self._a)

    __hash__ = None
    flags = property(lambda self: _Flags(self._a.flags))
    T = property(lambda self: _up(self._a.T))
    imag = property(lambda self: _up(self._a.imag))
    real = property(lambda self: _up(self._a.real))


def _operator(function, swapped=False, into=False):
    def method(self, *other):
        if other and getattr(other[0], "__array_ufunc__", 0) is None:  # as a Var says
            return NotImplemented
        operands = [self._a, *map(_down, other)]
        result = function(*(operands[::-1] if swapped else operands))
        return self if into else _up(result)

    return method


for _name in "add sub mul truediv pow floordiv mod matmul and or xor".split():
    _function = getattr(operator, _name, None) or getattr(operator, f"{_name}_")
    setattr(ndarray, f"__{_name}__", _operator(_function))
    setattr(ndarray, f"__r{_name}__", _operator(_function, swapped=True))
for _name in "lt le gt ge eq ne neg abs invert".split():
    setattr(ndarray, f"__{_name}__", _operator(getattr(operator, _name)))
for _name in "iadd isub imul itruediv".split():
    setattr(ndarray, f"__{_name}__", _operator(getattr(operator, _name), into=True))
for _name in "shape dtype ndim size nbytes itemsize strides".split():
    setattr(ndarray, _name, property(lambda self, _name=_name: getattr(self._a, _name)))


def _method(name, signature):
    return lambda self, *args, **kwargs: _call(getattr(self._a, name), signature)(*args, **kwargs)


for _name, _parameters in METHODS.items():
    setattr(ndarray, _name, _method(_name, _binder(_parameters)))


class RawModule:
    def __init__(self, *, code, options):
        self._code = code
        (self._real,) = (o.removeprefix("-DREAL=") for o in options if o.startswith("-DREAL="))

    def get_function(self, name):
        def kernel(grid, block, arguments):
            for a in arguments:
                assert not isinstance(a, np.ndarray), "an array of the host for a kernel"
            host_cuda.launch(self._code, self._real, name, grid, block, [_down(a) for a in arguments])

        return kernel


def _empty(shape, dtype=float, order="C"):
    a = np.empty(shape, dtype, order)
    a.reshape(-1).view(np.uint8)[...] = 0xFF
    return ndarray(a)


def _to_device(convert):
    """`array` and `asarray` take arrays of the host: they are how these get to the GPU."""

    def function(a, *args, **kwargs):
        return _up(convert(a._a if isinstance(a, ndarray) else copy.copy(a), *args, **kwargs))

    return function


def _argsort(a, axis=-1, kind=None):
    assert kind in (None, "stable")
    return np.argsort(a, axis, kind="stable")


class _Add:
    """`add` with its ``at``, for real numbers alone."""

    __call__ = staticmethod(_call(np.add, _binder("a, b, /, out=None")))

    def at(self, a, index, b):
        for x in (a, index, b):
            assert isinstance(x, ndarray), "CuPy adds at arrays of the GPU"
        if a.dtype.kind == "c":
            raise TypeError("cupy.add.at does not take complex numbers")
        np.add.at(a._a, index._a, b._a)


def modules():
    """What stands for cupy and cupyx in sys.modules."""
    cupy, fft = types.ModuleType("cupy"), types.ModuleType("cupyx.scipy.fft")
    cupy.ndarray, cupy.RawModule, cupy.empty, cupy.fft = ndarray, RawModule, _empty, types.SimpleNamespace()
    cupy.asnumpy = lambda a: a._a.copy()
    special = {"array": _to_device(np.array), "asarray": _to_device(np.asarray)}
    for name, parameters in SIGNATURES.items():
        room, _, last = name.rpartition(".")
        home, source = (cupy.fft, np.fft) if room else (cupy, np)
        function = _argsort if last == "argsort" else getattr(source, last)
        setattr(home, last, special.get(last) or _call(function, _binder(parameters)))
    for name in UFUNCS:
        takes = "a, b, /, out=None" if getattr(np, name).nin == 2 else "a, /, out=None"
        setattr(cupy, name, _call(getattr(np, name), _binder(takes)))
    cupy.add = _Add()
    for name, parameters in FFT_SIGNATURES.items():
        setattr(fft, name, _call(getattr(scipy.fft, name), _binder(parameters)))
    device = types.SimpleNamespace(synchronize=lambda: None)
    cupy.cuda = types.SimpleNamespace(
        Device=lambda: device,
        runtime=types.SimpleNamespace(
            getDeviceCount=lambda: 1, getDeviceProperties=lambda i: {"name": b"the host"}
        ),
    )
    scipy_room = types.ModuleType("cupyx.scipy")
    scipy_room.fft = fft
    return {
        "cupy": cupy,
        "cupyx": types.ModuleType("cupyx"),
        "cupyx.scipy": scipy_room,
        "cupyx.scipy.fft": fft,
    }


@contextlib.contextmanager
def installed():
    """Inside, ``import cupy`` gives the stand-in."""
    mine = modules()
    before = {name: sys.modules.get(name) for name in mine}
    sys.modules.update(mine)
    try:
        yield mine["cupy"]
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
