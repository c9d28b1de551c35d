"""The GPU path without a GPU: CUDA source compiled for real, run on the host beside its twins, and under all the tape.

`nvrtc` compiles the source, `host_cuda` runs it, `strict_cupy` stands for CuPy. ``python benchmarks/gpu.py`` makes the
same comparisons on a GPU.
"""

import importlib
import importlib.util
import inspect
import json
import re
import sys
from pathlib import Path

import host_cuda
import numpy as np
import nvrtc
import pytest
import strict_cupy
from autograd_table import CASES, ON_THE_HOST, derivatives, on_a_gpu
from kernel_table import KERNELS, call, convert, distance, double, elsewhere, reference, single

from invcryo import autograd as ag
from invcryo.autograd import network, ops, slices
from invcryo.autograd.layers import conv_parameters, conv_relu, conv_relu_pool, dense, dense_parameters
from invcryo.autograd.optimise import Adam, SparseAdam
from invcryo.autograd.parameters import Parameters
from invcryo.autograd.training import Batches, descend, load_state, save_state, train
from invcryo.checkpoint import Checkpoint
from invcryo.kernels import cuda
from invcryo.kernels import network as kernels
from invcryo.rotation import random_rotations
from invcryo.solvers import run

DTYPES = [pytest.param(single, id="float32"), pytest.param(double, id="float64")]


@pytest.fixture
def benchmark():
    """Imports a module of the benchmarks, and forgets all of them afterwards."""
    folder = Path(__file__).resolve().parent.parent / "benchmarks"
    sys.path.insert(0, str(folder))
    yield importlib.import_module
    sys.path.remove(str(folder))
    for path in folder.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def cupy():
    """The stand-in for CuPy."""
    if host_cuda.COMPILER is None:
        pytest.skip("no C++ compiler (g++, clang++) to run CUDA source with")
    with strict_cupy.installed() as module:
        yield module


# -- the compiler -------------------------------------------------------------------------------------------------

NVRTC = pytest.mark.skipif(nvrtc.library() is None, reason="no NVRTC: pip install nvidia-cuda-nvrtc")


@NVRTC
@pytest.mark.parametrize("machine", ["sm_75", "sm_90", "sm_120"])
@pytest.mark.parametrize("real", ["float", "double"])
def test_machine_code_without_spills(real, machine):
    """Turing to Blackwell: every kernel in registers alone."""
    log, code = nvrtc.compile_source(cuda.SOURCE.read_text(), [*cuda.OPTIONS, f"-DREAL={real}"], machine)
    assert code.startswith(b"\x7fELF")
    assert set(re.findall(r"Compiling entry function '(\w+)'", log)) == set(cuda.types(real))
    used = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert len(used) >= len(cuda.types(real)) and set(sum(used, ())) == {"0"}


@NVRTC
def test_single_precision_stays_single_and_nothing_is_fused():
    options = [*cuda.OPTIONS, "-DREAL=float"]
    _, code = nvrtc.compile_source(cuda.SOURCE.read_text(), options, "compute_80")
    entries = dict(re.findall(r"\.entry (\w+)\((.*?)(?=\.entry|\Z)", code.decode(), re.DOTALL))
    assert set(entries) == set(cuda.types("float"))
    # places of points and sums are float64 on purpose
    doubles = {name for name, text in entries.items() if ".f64" in text}
    assert doubles == {
        name for name in entries if "slice" in name or "sparse" in name or name in ("mark", "cells")
    }
    assert not [name for name, text in entries.items() if "fma." in text]
    with pytest.raises(RuntimeError, match="undefined"):
        nvrtc.compile_source("__global__ void wrong() { nothing(); }", options, "sm_90")


# -- twins ------------------------------------------------------------------------------------------------------------


def test_every_kernel_is_in_the_table():
    assert set(KERNELS) == set(kernels.__all__) - {"one_blas_thread"}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KERNELS)
def test_loops_equal_plain_numpy(name, dtype):
    for arguments in KERNELS[name].calls:
        assert (
            distance(name, reference(name, convert(arguments, dtype)), call(name, convert(arguments, dtype)))
            <= 1
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KERNELS)
def test_cuda_equals_the_loops_in_any_order_of_threads(name, dtype, cupy, monkeypatch):
    for arguments in KERNELS[name].calls:
        expected = call(name, convert(arguments, dtype))
        found = []
        for order in ("forward", "backward", "mixed"):
            monkeypatch.setattr(host_cuda, "order", order)
            found.append(elsewhere(name, convert(arguments, dtype), cupy))
        assert distance(name, expected, found[0]) <= 1
        for others in found[1:]:
            for a, b in zip(found[0], others, strict=True):
                np.testing.assert_array_equal(a, b)


def test_all_of_the_source_has_run(cupy, monkeypatch):
    monkeypatch.setattr(host_cuda, "seen", set())
    for name, kernel in KERNELS.items():
        elsewhere(name, convert(kernel.calls[0], single), cupy)
    assert host_cuda.seen == set(cuda.types("float")) and len(host_cuda.seen) > 15


def test_convolutions_in_parts_equal_those_at_once(cupy, monkeypatch):
    """Neighbourhoods that do not fit into the scratch."""
    for name in ("conv", "conv_weights"):
        arguments = convert(KERNELS[name].calls[0], double)
        monkeypatch.setattr(cuda, "_SCRATCH", 1 << 26)
        whole = elsewhere(name, arguments, cupy)
        monkeypatch.setattr(cuda, "_SCRATCH", 500)
        assert distance(name, whole, elsewhere(name, arguments, cupy)) <= 1


WRONG = {
    "central_slice": ("mirrored ? -a.y : a.y", "a.y"),
    "slice_adjoint": ("if (cx >= n / 2) continue;", "if (cx > n / 2) continue;"),
    "slice_rotations": ("value.x = -value.x", "value.y = -value.y"),
    "unpool": ("(down & 1) * 2 + (across & 1)", "(across & 1) * 2 + (down & 1)"),
    "bias_relu": ("i < (count)", "i <= (count)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_comparison_sees_wrong_kernels(name, cupy, monkeypatch, tmp_path):
    right, wrong = WRONG[name]
    source = cuda.SOURCE.read_text()
    assert source.count(right) == 1
    changed = tmp_path / "wrong.cu"
    changed.write_text(source.replace(right, wrong))
    monkeypatch.setattr(cuda, "SOURCE", changed)
    monkeypatch.setattr(cuda, "_module", cuda._module.__wrapped__)  # keeps nothing
    arguments = convert(KERNELS[name].calls[0], double)
    try:
        error = distance(name, call(name, arguments), elsewhere(name, arguments, cupy))
    except AssertionError as caught:
        assert "wrote beyond" in str(caught)
    else:
        assert error > 1e3


# -- all of the tape ------------------------------------------------------------------------------------------------

TAPE = [pytest.param(case, id=name) for name, case in on_a_gpu()]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", TAPE)
def test_values_and_derivatives_of_both_orders(case, dtype, cupy):
    inputs = [dtype(a) for a in case.inputs]
    expected = derivatives(case, inputs)
    found = derivatives(case, [cupy.asarray(a) for a in inputs])
    tolerance = 1e-12 if dtype is double else 1e-4
    for e, f in zip(expected, found, strict=True):
        assert isinstance(f, cupy.ndarray) and f.dtype == e.dtype and f.shape == e.shape
        assert np.linalg.norm(f.get() - e) <= tolerance * max(np.linalg.norm(e), 1e-3)


def test_projectors_refuse_arrays_of_a_gpu(cupy):
    for name in ON_THE_HOST:
        case = CASES[name][0]
        with pytest.raises(TypeError, match="on the host"):
            derivatives(case, [cupy.asarray(a) for a in case.inputs])


IMAGES = np.random.default_rng(5).standard_normal((12, 8, 8, 1)).astype(np.float32)


def training(xp, state=None):
    """A network that learns the means of images, all its arrays made by ``xp``."""
    rng = np.random.default_rng(0)
    tree = {
        "conv": conv_parameters(1, 4, rng=rng),
        "pooled": conv_parameters(4, 4, rng=rng),
        "dense": dense_parameters(64, 1, rng=rng),
    }
    parameters = Parameters({a: {b: xp.asarray(v) for b, v in layer.items()} for a, layer in tree.items()})

    def loss(tree, batch):
        x = xp.asarray(IMAGES[batch.index])
        h = conv_relu_pool(conv_relu(x, tree["conv"], 0.1), tree["pooled"], 0.1)
        out = dense(ops.reshape(h, (len(batch.index), -1)), tree["dense"])
        return ops.squared_norm(out[:, 0] - x.mean((1, 2, 3))) / len(batch.index)

    adam = Adam(parameters, rate=3e-3)
    batches = Batches(len(IMAGES), 4, rng=1)
    return parameters, train(
        descend(loss, parameters, adam), parameters, {"adam": adam}, batches, state=state
    )


def test_training_goes_the_same_way_and_resumes(cupy, tmp_path):
    _, there = training(cupy)
    whole = run(there, 6, progress=False)
    here = run(training(np)[1], 6, progress=False)
    assert isinstance(whole.x, cupy.ndarray) and whole.x.dtype == np.float32
    np.testing.assert_allclose(whole.history["loss"], here.history["loss"], rtol=1e-4)
    np.testing.assert_allclose(whole.x.get(), here.x, atol=2e-5)
    save_state(Checkpoint(tmp_path), {}, run(training(cupy)[1], 4, progress=False).state)
    state = load_state(Checkpoint(tmp_path), {}, training(np)[0])
    resumed = run(training(cupy, state)[1], 2, progress=False)
    np.testing.assert_array_equal(resumed.x.get(), whole.x.get())


def test_parameters_move_between_host_and_gpu_by_files(cupy, tmp_path):
    there, _ = training(cupy)
    there.save(tmp_path / "model.npz")
    here, _ = training(np)
    here.flat[...] = 0
    here.load(tmp_path / "model.npz")
    np.testing.assert_array_equal(here.flat, there.flat.get())
    there.flat[...] = 0
    there.load(tmp_path / "model.npz")
    np.testing.assert_array_equal(here.flat, there.flat.get())


def test_sparse_training_on_a_gpu_equals_that_on_the_host(cupy):
    """Posterior means of touched voxels, moved by sparse Adam."""
    turns, n, volumes = random_rotations(3, rng=3), 6, 2
    draw = np.random.default_rng(1)
    table = draw.standard_normal((n * n * (n // 2 + 1), 2 * volumes)).view(complex)
    target = draw.standard_normal((3, n, n + 2)).view(complex)
    results = []
    for xp in (np, cupy):
        parameters = Parameters({"volume": xp.asarray(table)})
        adam = SparseAdam(parameters, "volume", rate=0.1)
        touched = slices.Touched.by(xp.asarray(turns), n)
        for _ in range(3):
            rows = ag.leaf(parameters.tree["volume"].data[touched.index])
            seen = slices.sparse_project(rows, xp.ones((3, volumes)), touched)
            (g,) = ag.grad(ops.squared_norm(seen - xp.asarray(target)), [rows])
            adam.step(g.data, touched.index)
        results.append(parameters.flat if xp is np else parameters.flat.get())
    np.testing.assert_allclose(*results, rtol=1e-12)
    assert not np.allclose(results[0], table.view(float).ravel())


SMALL = {
    "wgan-16": {"batch": 3, "channels": (2, 3, 4)},
    "posenet-16": {"batch": 3, "channels": (4, 3), "hidden": 8},
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-4), (np.float64, 1e-11)])
@pytest.mark.parametrize("case", SMALL)
def test_whole_steps(case, dtype, tolerance, cupy, benchmark):
    """The two losses of the benchmark, with double backward, slices and poses, and Adam's steps after them."""
    problem, ours = (benchmark(f"autograd_{name}") for name in ("problem", "ours"))
    p = problem.make(case, dtype, **SMALL[case])
    loss, gradients = ours.value_and_gradients(p)
    here = ours.step(p)
    there = problem.moved(p, cupy.asarray)
    other, found = ours.value_and_gradients(there)
    assert abs(loss - other) <= tolerance * abs(loss)
    for (name, e), (_, f) in zip(_leaves(gradients), _leaves(found), strict=True):
        assert np.linalg.norm(f.get() - e) <= tolerance * np.linalg.norm(e), name
    step = ours.step(there)
    np.testing.assert_allclose([step() for _ in range(3)], [here() for _ in range(3)], rtol=10 * tolerance)


def _leaves(tree, name=""):
    if not isinstance(tree, dict):
        yield name, tree
    else:
        for key, item in tree.items():
            yield from _leaves(item, f"{name}/{key}")


# -- the command ----------------------------------------------------------------------------------------------------


def few(module, monkeypatch):
    """The command with less to do."""
    few = ("pool", "central_slice")
    monkeypatch.setattr(module.kernel_table, "KERNELS", {name: KERNELS[name] for name in few})
    monkeypatch.setattr(module.kernel_table, "large", lambda: {name: KERNELS[name].calls[0] for name in few})
    monkeypatch.setattr(module.autograd_table, "on_a_gpu", lambda: on_a_gpu()[::40])
    monkeypatch.setattr(module, "SMALL", {"wgan-16": SMALL["wgan-16"]})
    return ["--rounds", "2", "--case", "slices-8"]


def test_the_command_compares_and_times(cupy, benchmark, monkeypatch, tmp_path, capsys):
    module = benchmark("gpu")
    assert module.main([*few(module, monkeypatch), "--json", str(tmp_path / "gpu.json")]) == 0
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert record["gpu"] == "the host" and set(record["seconds"]) == {"pool", "central_slice", "slices-8"}
    assert all(error <= 1 for error in record["errors"].values()) and len(record["errors"]) > 20
    assert all(t > 0 for both in record["seconds"].values() for t in both.values())
    assert "0 differ" in capsys.readouterr().out


def test_the_command_names_what_differs(cupy, benchmark, monkeypatch, capsys):
    module = benchmark("gpu")
    arguments = few(module, monkeypatch)
    monkeypatch.setattr(cuda, "pool", lambda x, bias, slope, out, code: [out.fill(1.0), code.fill(0)])
    assert module.main(arguments) == 1
    assert "DIFFERS pool-0 float32" in (out := capsys.readouterr().out) and "DIFFERS central" not in out


def test_the_command_without_a_gpu(benchmark, monkeypatch, capsys):
    module = benchmark("gpu")
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert module.main([]) == 2
    assert "invcryo[cuda12]" in capsys.readouterr().err

    def no_driver():
        raise RuntimeError("cudaErrorInsufficientDriver")

    for count, said in ((no_driver, "InsufficientDriver"), (lambda: 0, "finds no GPU")):
        empty = strict_cupy.modules()["cupy"]
        empty.cuda.runtime.getDeviceCount = count
        monkeypatch.setitem(sys.modules, "cupy", empty)
        assert module.main([]) == 2
        assert said in (err := capsys.readouterr().err) and "nvidia-smi" in err


# -- bad input ------------------------------------------------------------------------------------------------------


def strided(a, xp):
    """The same values with strides that a kernel would not see."""
    wide = xp.zeros((*a.shape, 2), dtype=a.dtype)
    wide[..., 0] = xp.asarray(a)
    return wide[..., 0]


@pytest.mark.parametrize("name", sorted(set(KERNELS) - {"adam", "adam_rows"}))
def test_arrays_that_are_not_contiguous_are_not_misread(name, cupy):
    arguments = convert(KERNELS[name].calls[0], double)
    expected = call(name, arguments)
    here, there = (convert(arguments, lambda a, xp=xp: strided(a, xp)) for xp in (np, cupy))
    assert not any(a.flags.c_contiguous for a in (*here, *there) if hasattr(a, "flags") and a.ndim)
    assert distance(name, expected, call(name, here)) <= 1
    assert distance(name, expected, [a.get() for a in call(name, there)]) <= 1


@pytest.mark.parametrize("name", ["adam", "adam_rows"])
def test_arrays_changed_in_place_must_be_contiguous(name, cupy):
    for xp in (np, cupy):
        arguments = convert(KERNELS[name].calls[0], lambda a, xp=xp: strided(a, xp))
        with pytest.raises(ValueError, match="must be contiguous"):
            call(name, arguments)


def test_what_a_kernel_would_misread_is_refused(cupy, monkeypatch):
    x, code = cupy.zeros((2, 4, 4, 3)), cupy.zeros((2, 2, 2, 3), dtype="u1")
    with pytest.raises(ValueError, match="not contiguous"):
        cuda.pick(x.transpose(0, 2, 1, 3), code, cupy.zeros(code.shape))
    with pytest.raises(TypeError, match="int64 where the kernel takes uint8"):
        kernels.pick(x, code.astype("i8"))
    with pytest.raises(TypeError, match="float32 where the kernel takes float64"):
        kernels.pool(x, cupy.zeros(3, dtype="f4"), 0.1)
    for mixed in ((x, np.zeros(3), 0.1), (x.get(), cupy.zeros(3), 0.1)):
        with pytest.raises(TypeError, match=r"some on a GPU.*cupy\.asarray"):
            kernels.pool(*mixed)
    monkeypatch.setattr(cuda, "_LARGEST", 96)
    with pytest.raises(ValueError, match="smaller batches"):
        kernels.pick(x, code)


def test_poses_that_are_none_stay_inside_the_array(cupy):
    spectrum = cupy.asarray(np.fft.rfftn(np.ones((6, 6, 6))))
    for bad in (np.full((1, 3, 3), np.nan), np.full((1, 3, 3), np.inf), 1e9 * random_rotations(1, rng=0)):
        turns = cupy.asarray(bad)
        with np.errstate(all="ignore"):
            g = slices.central_slice(spectrum, turns).data
            slices.slice_adjoint(g, turns, 6)
            slices.slice_rotations(spectrum, turns, g)
            slices.Touched.by(turns, 6)


def test_empty_batches(cupy):
    x = cupy.zeros((0, 4, 4, 3))
    assert network.conv2d(x, cupy.zeros((3, 3, 3, 2))).shape == (0, 4, 4, 2)
    assert network.maxpool2(x).shape == (0, 2, 2, 3)


# -- the stand-in -----------------------------------------------------------------------------------------------------


def test_the_stand_in_refuses_what_cupy_refuses(cupy):
    x = cupy.asarray(np.ones(3))
    for wrong in (
        lambda: np.asarray(x),
        lambda: x + np.ones(3),
        lambda: np.ones(3) * x,
        lambda: x * np.array(2.0),
        lambda: np.concatenate([x, x]),
        lambda: cupy.concatenate([x, np.ones(3)]),
        lambda: x[np.array([0, 1])],
        lambda: x.__setitem__(slice(None), np.ones(3)),
        lambda: x.sum(where=True),
        lambda: cupy.zeros(3, float, "C", None),
    ):
        with pytest.raises(TypeError):
            wrong()
    assert isinstance(x.sum(), cupy.ndarray) and isinstance(x[0], cupy.ndarray)
    assert isinstance(np.float64(2) * x, cupy.ndarray) and np.isnan(cupy.empty(2).get()).all()
    with pytest.raises(AssertionError, match="wrong width"):
        function = cupy.RawModule(code=cuda.SOURCE.read_text(), options=("-DREAL=double",)).get_function(
            "by_sign"
        )
        function((1,), (256,), (x, cupy.zeros(3, dtype="u1"), 0.1, np.uint32(3), x))


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
def test_the_stand_in_has_cupys_own_signatures():
    import cupy
    import cupyx.scipy.fft

    for room, listed in ((cupy, strict_cupy.SIGNATURES), (cupyx.scipy.fft, strict_cupy.FFT_SIGNATURES)):
        for name, parameters in listed.items():
            function = room
            for part in name.split("."):
                function = getattr(function, part)
            theirs = [(p.name, p.kind) for p in inspect.signature(function).parameters.values()]
            mine = [
                (p.name, p.kind)
                for p in inspect.signature(eval(f"lambda {parameters}: None")).parameters.values()
            ]
            assert mine == theirs, name
    assert all(isinstance(getattr(cupy, name), cupy.ufunc) or name == "matmul" for name in strict_cupy.UFUNCS)
    assert all(hasattr(cupy.ndarray, name) for name in strict_cupy.METHODS)
