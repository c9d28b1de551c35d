"""NVIDIA's run-time compiler without a driver or a GPU: the wheel ``nvidia-cuda-nvrtc``, or a library of the system."""

import ctypes
import ctypes.util
import functools
import importlib.util
from pathlib import Path


@functools.cache
def library():
    """The library, None where there is none."""
    spec = importlib.util.find_spec("nvidia")
    rooms = spec.submodule_search_locations if spec else ()
    found = [path for room in rooms for path in Path(room).glob("*/lib/libnvrtc.so.*")]
    name = str(max(found)) if found else ctypes.util.find_library("nvrtc")
    return ctypes.CDLL(name) if name else None


def _get(program, what):
    size = ctypes.c_size_t()
    assert getattr(library(), f"nvrtcGet{what}Size")(program, ctypes.byref(size)) == 0
    text = ctypes.create_string_buffer(size.value)
    assert getattr(library(), f"nvrtcGet{what}")(program, text) == 0
    return text.raw


def compile_source(source, options, machine):
    """(log of the compiler, machine code) for ``sm_90`` and so on; PTX for ``compute_90``."""
    program = ctypes.c_void_p()
    source, name = source.encode(), b"kernels.cu"
    assert library().nvrtcCreateProgram(ctypes.byref(program), source, name, 0, None, None) == 0
    words = [*options, f"-arch={machine}", "--ptxas-options=-v"]
    given = (ctypes.c_char_p * len(words))(*(word.encode() for word in words))
    failed = library().nvrtcCompileProgram(program, len(words), given)
    log = _get(program, "ProgramLog").decode().rstrip("\0")
    if failed:
        raise RuntimeError(log)
    made = _get(program, "CUBIN" if machine.startswith("sm_") else "PTX")
    library().nvrtcDestroyProgram(ctypes.byref(program))
    return log, made
