"""Compiled loops against slow twins, layers, rotations, Adam, training, and what is refused."""

import subprocess
import sys

import numpy as np
import pytest
from autograd_table import objects_left_by

from invcryo import autograd as ag
from invcryo.autograd import ops, slices
from invcryo.autograd.layers import conv_parameters, conv_relu, conv_relu_pool, dense, dense_parameters
from invcryo.autograd.optimise import Adam, SparseAdam
from invcryo.autograd.parameters import Parameters
from invcryo.autograd.rotations import (
    SMALLEST_ANGLE,
    matrix_from_euler,
    matrix_from_quaternion,
    matrix_from_s2s2,
    quaternion_angle,
)
from invcryo.autograd.training import Batches, descend, keep, load_state, save_state, train
from invcryo.backend import use
from invcryo.checkpoint import Checkpoint
from invcryo.kernels import network as kernels
from invcryo.rotation import geodesic_distance, random_rotations
from invcryo.rotation import matrix_from_euler as plain_euler
from invcryo.solvers import NonFiniteError, residual_below, run

# -- twins ----------------------------------------------------------------------------------------------------------


def slow_slice(spectrum, turns, height, radius):
    """Central slices by interpolation of the full, shifted spectrum; what a point reads for both of its signs."""
    n = spectrum.shape[0]
    full = np.zeros((n, n, n), complex)
    index = np.arange(n)
    half = spectrum.shape[2]
    full[:, :, :half] = spectrum
    for x in range(half, n):
        full[:, :, x] = np.conj(spectrum[-index][:, -index][:, :, n - x])
    out = np.zeros((len(turns), height, height // 2 + 1), complex)
    for b, turn in enumerate(turns):
        for iy in range(height):
            ky = iy if 2 * iy < height else iy - height
            for kx in range(height // 2 + 1):
                if kx**2 + ky**2 >= radius**2:
                    continue
                q = n / height * (kx * turn[0] + ky * turn[1])
                low = np.floor(q).astype(int)
                f = q - low
                for c in np.ndindex(2, 2, 2):
                    weight = np.prod([f[a] if c[a] else 1 - f[a] for a in range(3)])
                    x, y, z = (low[a] + c[a] for a in range(3))
                    out[b, iy, kx] += weight * full[z % n, y % n, x % n]
    return out


def test_filters_of_no_images():
    none = np.zeros((0, 4, 4, 2))
    assert kernels.conv(none, np.ones((3, 3, 2, 2))).shape == (0, 4, 4, 2)
    np.testing.assert_array_equal(kernels.conv_weights(none, none, 3), np.zeros((3, 3, 2, 2)))


def test_pooling_of_nan():
    assert np.isnan(kernels.pool(np.full((1, 2, 2, 1), np.nan), np.zeros(1), 0.1)[0]).all()


@pytest.mark.parametrize(("n", "height", "radius"), [(6, 6, 3.0), (7, 7, 3.0), (8, 5, 2.5), (9, 6, 2.2)])
def test_slices_equal_the_full_spectrum(n, height, radius, rng):
    volume = rng.standard_normal((n, n, n))
    spectrum = np.fft.rfftn(volume)
    turns = random_rotations(4, rng=1)
    mine = slices.central_slice(spectrum, turns, height, radius).data
    exact = slow_slice(spectrum, turns, height, radius)
    assert np.linalg.norm(mine - exact) <= 1e-13 * np.linalg.norm(exact)
    voxels = spectrum.reshape(-1, 1)
    touched = slices.Touched.by(turns, n, height, radius)
    few = slices.sparse_project(voxels[touched.index], np.ones((4, 1)), touched).data
    assert np.linalg.norm(few - exact) <= 1e-13 * np.linalg.norm(exact)
    used = slices.slice_adjoint(np.ones_like(mine), turns, n, radius).data.ravel() != 0
    assert set(np.flatnonzero(used)) <= set(touched.index)


@pytest.mark.parametrize("padded", [16, 19])
def test_projection_along_an_axis(padded, rng):
    """The identity pose sums along z; psi = 90 degrees turns the image: x' = y, y' = -x. Centres are at n // 2."""
    n = 16
    volume = np.zeros((n, n, n))
    volume[5:12, 4:11, 6:12] = rng.uniform(size=(7, 7, 6))
    turns = plain_euler([0.0, 0.0], [0.0, 0.0], [0.0, 90.0])
    spectrum = slices.volume_spectrum(volume, padded)
    images = slices.image_from_slice(slices.central_slice(spectrum, turns)).data
    summed = np.zeros((padded, padded))
    start = padded // 2 - n // 2
    summed[start : start + n, start : start + n] = volume.sum(0)
    k = np.fft.fftfreq(padded) * padded
    inside = np.hypot(k[:, None], k[: padded // 2 + 1]) < padded // 2  # the corners are left out
    exact = np.fft.irfft2(np.fft.rfft2(np.fft.ifftshift(summed)) * inside, s=summed.shape)
    np.testing.assert_allclose(images[0], np.fft.fftshift(exact), atol=1e-12)
    c = padded // 2
    y, x = np.mgrid[-c + 1 : c, -c + 1 : c]
    np.testing.assert_allclose(images[1][c - x, c + y], images[0][c + y, c + x], atol=1e-12)


def test_results_do_not_depend_on_threads(rng):
    spectrum = np.fft.rfftn(rng.standard_normal((24, 24, 24)).astype(np.float32)).astype(np.complex64)
    turns = random_rotations(40, rng=1).astype(np.float32)
    x = rng.standard_normal((8, 32, 32, 8)).astype(np.float32)
    y, w = x.reshape(8, 8, 8, 128)[..., :50], rng.standard_normal((3, 3, 50, 50)).astype(np.float32)
    few, large = (rng.standard_normal(s).astype(np.float32) for s in ((8, 2100), (2100, 512)))
    results = []
    for count in (1, 2):
        with use(threads=count):
            g = slices.central_slice(spectrum, turns).data
            filters = [kernels.conv_weights(a, a, 3) for a in (x, y)]  # shared by pixels, and by filters
            filters.append(kernels.product(few, large))
            results.append((g, slices.slice_adjoint(g, turns, 24).data, kernels.conv(y, w), *filters))
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("rows", [8, 40])
def test_products_of_matrices_that_do_not_fit(rows):
    with pytest.raises(ValueError, match="mismatch"):
        kernels.product(np.ones((rows, 1200)), np.ones((1100, 1000)))


def test_a_product_keeps_nan(rng):
    x, w = rng.standard_normal((4, 1100)), rng.standard_normal((1100, 1000))
    x[1, 7] = np.nan
    assert np.isnan(kernels.product(x, w)).any(axis=1).tolist() == [False, True, False, False]


def test_a_pose_that_is_none_stays_inside_the_array(rng):
    """What a diverging network may give: NaN, infinity, matrices far from rotations."""
    spectrum = np.fft.rfftn(rng.standard_normal((6, 6, 6)))
    for bad in (np.full((1, 3, 3), np.nan), np.full((1, 3, 3), np.inf), 1e9 * random_rotations(1, rng=0)):
        g = slices.central_slice(spectrum, bad).data
        slices.slice_adjoint(g, bad, 6)
        slices.slice_rotations(spectrum, bad, g)
        slices.Touched.by(bad, 6)


# -- rotations ------------------------------------------------------------------------------------------------------


def test_parametrisations_of_rotations(rng):
    from scipy.spatial.transform import Rotation

    angles = rng.uniform(-3, 3, (5, 3))
    np.testing.assert_allclose(
        matrix_from_euler(angles).data, plain_euler(*angles.T, degrees=False), atol=1e-14
    )
    q = rng.standard_normal((5, 4))
    np.testing.assert_allclose(matrix_from_quaternion(q).data, Rotation.from_quat(q).as_matrix(), atol=1e-14)
    turns = random_rotations(5, rng=2)
    pairs = np.concatenate([2.1 * turns[:, 0], 1.3 * turns[:, 1] + 0.7 * turns[:, 0]], axis=1)
    np.testing.assert_allclose(matrix_from_s2s2(pairs).data, turns, atol=1e-14)
    p, q = (Rotation.random(5, rng=k) for k in (3, 4))
    angle = quaternion_angle(p.as_quat(), -q.as_quat()).data
    np.testing.assert_allclose(angle, geodesic_distance(p.as_matrix(), q.as_matrix()), atol=1e-12)
    x = ag.leaf(p.as_quat())
    same = quaternion_angle(x, p.as_quat())
    np.testing.assert_allclose(same.data, SMALLEST_ANGLE)
    assert np.isfinite(ag.grad(ops.sum(same), [x])[0].data).all()
    for function, count in ((matrix_from_euler, 3), (matrix_from_quaternion, 4), (matrix_from_s2s2, 6)):
        with pytest.raises(ValueError, match=f"images, {count}"):
            function(np.ones((2, count + 1)))


# -- parameters, Adam, training -------------------------------------------------------------------------------------


def model(dtype=np.float32, rng=0):
    rng = np.random.default_rng(rng)
    return Parameters(
        {
            "conv": conv_parameters(1, 4, dtype=dtype, rng=rng),
            "pooled": conv_parameters(4, 4, dtype=dtype, rng=rng),
            "dense": dense_parameters(4 * 16, 1, dtype=dtype, rng=rng),
        }
    )


IMAGES = np.random.default_rng(5).standard_normal((20, 8, 8, 1)).astype(np.float32)


def loss(tree, batch):
    """Learn the sum of an image from noisy sight of it."""
    x = IMAGES[batch.index] + 0.01 * batch.rng.standard_normal((len(batch.index), 8, 8, 1)).astype(np.float32)
    h = conv_relu_pool(conv_relu(x, tree["conv"], 0.1), tree["pooled"], 0.1)
    out = dense(ops.reshape(h, (len(x), -1)), tree["dense"])
    return ops.squared_norm(out[:, 0] - IMAGES[batch.index].mean((1, 2, 3))) / len(x)


def training(state=None, rng=3, size=5, parameters=None):
    parameters = model() if parameters is None else parameters
    adam = Adam(parameters, rate=3e-3)
    batches = Batches(len(IMAGES), size, rng=rng)
    return train(descend(loss, parameters, adam), parameters, {"adam": adam}, batches, state=state)


def test_training_learns_and_is_the_same_every_time():
    one = run(training(), 60, progress=False)
    assert one.stopped_by == "max_iter" and set(one.history) == {"iteration", "seconds", "loss", "gradient"}
    assert np.mean(one.history["loss"][-10:]) < 0.2 * np.mean(one.history["loss"][:5])
    np.testing.assert_array_equal(one.x, run(training(), 60, progress=False).x)
    assert not np.array_equal(one.x, run(training(rng=4), 60, progress=False).x)
    assert one.x.dtype == np.float32
    stopped = run(training(), 60, stop=residual_below(1.0, "loss"), progress=False)
    assert stopped.converged and stopped.state.iteration < 60


def test_a_resumed_run_equals_an_unbroken_one(tmp_path):
    whole = run(training(), 14, progress=False)
    first = run(training(), 9, progress=False)
    np.testing.assert_array_equal(run(training(state=first.state, rng=99), 5, progress=False).x, whole.x)
    # and through a file
    job = {"data": IMAGES, "rate": 3e-3}
    save_state(Checkpoint(tmp_path), job, first.state)
    state = load_state(Checkpoint(tmp_path), job, model())
    assert state.iteration == 9
    np.testing.assert_array_equal(run(training(state=state), 5, progress=False).x, whole.x)
    assert load_state(Checkpoint(tmp_path / "nothing"), job, model()) is None


def test_resume_with_another_architecture(tmp_path):
    state = run(training(), 2, progress=False).state
    other = Parameters(
        {**{k: v for k, v in model().tree.items() if k != "dense"}, "dense": dense_parameters(64, 2)}
    )
    with pytest.raises(ValueError, match="another architecture"):
        next(training(state=state, parameters=other))
    with pytest.raises(ValueError, match="batches of 5 out of 20"):
        next(training(state=state, size=4))
    job = {"rate": 3e-3}
    run(training(), 1, callback=keep(Checkpoint(tmp_path, every=0.0), job), progress=False)
    with pytest.raises(ValueError, match=r"another job.*the model"):
        load_state(Checkpoint(tmp_path), job, other)
    with pytest.raises(ValueError, match=r"another job.*rate"):
        load_state(Checkpoint(tmp_path), {"rate": 1.0}, model())


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_stops_with_the_last_good_state(where, tmp_path):
    parameters = model()
    adam = Adam(parameters, rate=3e-3)
    batches = Batches(len(IMAGES), 5, rng=3)

    def broken(tree, batch):
        value = loss(tree, batch)
        if len(seen) == 4:
            zero = ops.sum(tree["dense"]["b"]) * 0.0
            value = value + (ops.log(zero) if where == "loss" else ops.sqrt(zero))
        seen.append(1)
        return value

    seen = []
    saved = Checkpoint(tmp_path, every=0.0)
    with np.errstate(all="ignore"), pytest.raises(NonFiniteError, match=f"{where} = (nan|inf|-inf)") as error:
        run(
            train(descend(broken, parameters, adam), parameters, {"adam": adam}, batches),
            10,
            callback=lambda state: save_state(saved, {}, state),
            progress=False,
        )
    good = run(training(), 4, progress=False)
    np.testing.assert_array_equal(error.value.result.x, good.x)
    np.testing.assert_array_equal(parameters.flat, good.x)  # the model itself is still good
    np.testing.assert_array_equal(load_state(saved, {}, parameters).x, good.x)


def test_no_object_stays_after_a_step_of_a_network():
    """Thirty steps with a gradient penalty, through convolutions, pooling and slices, with the collector off."""
    tree = model().tree
    volume = ag.leaf(np.random.default_rng(1).standard_normal((8, 8, 8)).astype(np.float32))
    turns = random_rotations(3, rng=0).astype(np.float32)

    def step():
        x = slices.image_from_slice(slices.central_slice(slices.volume_spectrum(volume), turns))
        h = conv_relu_pool(conv_relu(ops.reshape(x, (3, 8, 8, 1)), tree["conv"], 0.1), tree["pooled"], 0.1)
        score = ops.sum(dense(ops.reshape(h, (3, -1)), tree["dense"]))
        (slope,) = ag.grad(score, [x], create_graph=True)
        penalty = ops.squared_norm(ops.sqrt(ops.squared_norm(slope, (1, 2)) + 1e-12) - 1.0)
        ag.grad(score + penalty, [volume, tree["conv"]["w"]])

    grown, cycles = objects_left_by(step)
    assert grown <= 2 and cycles == 0


def test_batches():
    batches = Batches(10, 3, rng=1)
    drawn = [batches[k].index for k in range(6)]
    for epoch in (drawn[:3], drawn[3:]):
        assert len(np.unique(np.concatenate(epoch))) == 9
    np.testing.assert_array_equal(batches[1].index, drawn[1])  # in any order
    assert batches[1].rng.random() == Batches(10, 3, rng=1)[1].rng.random() != batches[2].rng.random()
    for size in (11, 0, -1):
        with pytest.raises(ValueError, match=f"a batch of {size} images cannot be drawn from 10"):
            Batches(10, size)


def reference_adam(p, gradients, rate=1e-3, betas=(0.9, 0.999), eps=1e-8):
    m = v = 0.0
    for t, g in enumerate(gradients, 1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        p = p - rate * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return p


def test_adam_follows_the_paper(rng):
    values = {
        "a": rng.standard_normal((3, 4)),
        "b": {"z": rng.standard_normal(5) + 1j * rng.standard_normal(5)},
    }
    parameters = Parameters(values)
    adam = Adam(parameters, rate=0.1, betas=(0.8, 0.9))
    steps = [
        {"a": rng.standard_normal((3, 4)), "b": {"z": rng.standard_normal(5) + 1j * rng.standard_normal(5)}}
        for _ in range(4)
    ]
    for g in steps:
        size = adam.step(g)
        assert abs(size - np.sqrt(np.sum(g["a"] ** 2) + np.sum(np.abs(g["b"]["z"]) ** 2))) < 1e-12
    exact = reference_adam(values["a"], [g["a"] for g in steps], 0.1, (0.8, 0.9))
    np.testing.assert_allclose(parameters.tree["a"].data, exact, rtol=1e-13)
    z = values["b"]["z"]
    for part in ("real", "imag"):
        exact = reference_adam(getattr(z, part), [getattr(g["b"]["z"], part) for g in steps], 0.1, (0.8, 0.9))
        np.testing.assert_allclose(getattr(parameters.tree["b"]["z"].data, part), exact, rtol=1e-13)
    with pytest.raises(ValueError, match="Adam needs"):
        Adam(parameters, rate=-1.0)


def test_adam_of_a_part(rng):
    parameters = Parameters({"critic": {"w": np.ones(3), "b": np.ones(2)}, "volume": np.ones(4)})
    Adam(parameters, "critic", rate=0.1).step({"w": np.ones(3), "b": np.ones(2)})
    np.testing.assert_allclose(parameters.flat, [0.9] * 5 + [1.0] * 4)
    Adam(parameters, "volume", rate=0.1).step(np.ones(4))
    np.testing.assert_allclose(parameters.flat, 0.9)
    with pytest.raises(KeyError, match="no parameters 'other'"):
        Adam(parameters, "other")
    with pytest.raises(ValueError, match="do not fit"):
        Adam(parameters).step({"volume": np.ones(4)})
    with pytest.raises(ValueError, match="the gradient of 'volume'"):
        Adam(parameters, "volume").step(np.ones(4, np.float32))


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_sparse_adam_moves_the_rows_it_is_given(dtype, rng):
    def draw(*shape):
        a = rng.standard_normal(shape)
        return a + 1j * rng.standard_normal(shape) if dtype == np.complex128 else a

    table = draw(6, 2)
    parameters = Parameters({"volume": table, "other": np.ones(2)})
    adam = SparseAdam(parameters, "volume", rate=0.1)
    rows = np.array([4, 1])
    gradients = [draw(2, 2) for _ in range(3)]
    for g in gradients:
        adam.step(g, rows)
    mine = parameters.tree["volume"].data
    for part in ("real", "imag"):
        exact = reference_adam(getattr(table[rows], part), [getattr(g, part) for g in gradients], 0.1)
        np.testing.assert_allclose(getattr(mine[rows], part), exact, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(mine[[0, 2, 3, 5]], table[[0, 2, 3, 5]])
    with pytest.raises(ValueError, match="of 3 rows"):
        adam.step(gradients[0], np.array([0, 1, 2]))


def test_parameters_are_leaves_that_share_an_array(tmp_path):
    parameters = model()
    w = parameters.tree["conv"]["w"]
    assert np.shares_memory(w.data, parameters.flat)
    y = ops.squared_norm(w)
    Adam(parameters).step(ag.value_and_grad(lambda t: ops.squared_norm(t["conv"]["w"]))(parameters.tree)[1])
    with pytest.raises(RuntimeError, match="changed in place"):
        ag.grad(y, [w])
    parameters.save(tmp_path / "model.npz")
    other = model(rng=1)
    other.load(tmp_path / "model.npz")
    np.testing.assert_array_equal(other.flat, parameters.flat)
    with np.load(tmp_path / "model.npz", allow_pickle=False) as file:
        assert set(file.files) == set(parameters.names())
    with pytest.raises(ValueError, match=r"another model.*conv/b: missing in the file"):
        Parameters({"conv": {"w": np.ones(2, np.float32), "b": np.ones(1, np.float32)}}).load(
            _saved(Parameters({"conv": {"w": np.ones(2, np.float32)}}), tmp_path)
        )
    with pytest.raises(ValueError, match=r"another model.*dtype"):
        model(np.float64).load(tmp_path / "model.npz")
    with pytest.raises(TypeError, match="one precision"):
        Parameters({"a": np.ones(2), "b": np.ones(2, np.float32)})
    with pytest.raises(ValueError, match="separates folders"):
        Parameters({"a/b": np.ones(2)})


def _saved(parameters, folder):
    parameters.save(folder / "other.npz")
    return folder / "other.npz"


# -- what it needs ----------------------------------------------------------------------------------------------------


def test_without_threadpoolctl_the_error_names_the_extra():
    code = """
import sys
sys.modules["threadpoolctl"] = None
from invcryo.kernels import network
try:
    with network.one_blas_thread():
        pass
except ImportError as error:
    assert "invcryo[learned]" in str(error), error
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_blas_is_held_at_one_thread_and_released():
    from threadpoolctl import threadpool_info

    def counts():
        return {i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas"}

    before = counts()
    with kernels.one_blas_thread(), kernels.one_blas_thread():
        assert counts() == {1}
    assert counts() == before


def test_core_loads_neither_autograd_nor_learned():
    code = (
        "import sys, invcryo, invcryo.cli, invcryo.reconstruction\n"
        "bad = [m for m in sys.modules if m.startswith(('invcryo.autograd', 'invcryo.learned', 'torch', 'jax'))]\n"
        "assert not bad, bad\n"
        "import invcryo.autograd\n"
        "assert not {'torch', 'jax', 'cupy', 'numba'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_wrong_shapes(rng):
    x = rng.standard_normal((2, 4, 4, 3))
    from invcryo.autograd import network

    with pytest.raises(ValueError, match="odd filters"):
        network.conv2d(x, np.ones((2, 2, 3, 1)))
    with pytest.raises(ValueError, match="2 channels"):
        network.conv2d(x, np.ones((3, 3, 2, 1)))
    with pytest.raises(TypeError, match="one precision"):
        network.conv2d(x, np.ones((3, 3, 3, 1), np.float32))
    with pytest.raises(ValueError, match="bias per channel"):
        network.pool_bias_relu(x, np.ones(2))
    turns = random_rotations(2, rng=0)
    with pytest.raises(ValueError, match="half spectrum"):
        slices.central_slice(np.ones((4, 4, 4), complex), turns)
    with pytest.raises(TypeError, match="precision"):
        slices.central_slice(np.ones((4, 4, 3), complex), turns.astype(np.float32))
    with pytest.raises(ValueError, match="images, 3, 3"):
        slices.central_slice(np.ones((4, 4, 3), complex), turns[0])
    r = ag.leaf(turns)
    spectrum = np.fft.rfftn(rng.standard_normal((4, 4, 4)))
    (g,) = ag.grad(ops.squared_norm(slices.central_slice(spectrum, r)), [r], create_graph=True)
    with pytest.raises(NotImplementedError, match="again"):
        ag.grad(ops.squared_norm(g), [r])
