"""The tape: every rule against finite differences, to first and second order, over one table."""

import sys

import numpy as np
import pytest
from autograd_table import (
    CASES,
    cases,
    first_order_error,
    inner,
    objects_left_by,
    randoms,
    second_order_error,
    value,
)

from invcryo import autograd as ag
from invcryo.autograd import ops

ALL = [pytest.param(case, id=name) for name, case in cases()]


def test_every_primitive_is_in_the_table():
    assert set(CASES) == set(ag.PRIMITIVES) and all(CASES.values())


@pytest.mark.parametrize("case", ALL)
def test_first_order(case):
    assert first_order_error(case) < 1e-6


@pytest.mark.parametrize("case", [p for p in ALL if p.values[0].order > 1])
def test_second_order(case):
    assert second_order_error(case) < 1e-5


def test_the_checker_sees_wrong_rules():
    """A rule off by a conjugate, one of a wrong size in its derivative alone, one that is missing."""
    from autograd_table import Case

    def conjugated(x):
        return ag.record(x.data * (1 + 2j), (x, lambda g: g * (1 + 2j)))

    def cut(x):  # right, but its rule forgets that it depends on x
        return ag.record(x.data**2, (x, lambda g: g * ag.const(2 * x.data)))

    def missing(x, y):
        return ag.record(x.data * y.data, (x, lambda g: g * y))

    a = np.array([1.0, 2.0, 3.0])
    assert first_order_error(Case(conjugated, (a + 1j * a[::-1],))) > 1e-2
    assert first_order_error(Case(cut, (a,))) < 1e-6 and second_order_error(Case(cut, (a,))) > 1e-2
    assert first_order_error(Case(missing, (a, a + 1))) > 1e-2


def single(a):
    return a.astype(np.complex64 if np.iscomplexobj(a) else np.float32)


@pytest.mark.parametrize("case", ALL)
def test_single_precision_stays(case):
    """Value and derivatives of both orders are float32 or complex64, and agree with double precision."""
    if "cast" in str(case.function.__code__.co_names):
        assert ops.cast(np.float32(1) * np.ones(3, np.float32), "f8").dtype == np.float64
    leaves = [ag.leaf(single(a)) for a in case.inputs]
    y = case.function(*leaves)
    assert y.dtype in (np.float32, np.complex64)
    np.testing.assert_allclose(y.data, value(case.function, *case.inputs), rtol=1e-4, atol=1e-4)
    gy = ag.leaf(single(randoms([y.data], 1)[0]))
    gradients = ag.grad(y, leaves, gy, create_graph=case.order > 1)
    double = [ag.leaf(a) for a in case.inputs]
    exact = ag.grad(case.function(*double), double, randoms([y.data], 1)[0])
    for a, g, e in zip(leaves, gradients, exact, strict=True):
        assert g.dtype == a.dtype and g.shape == a.shape
        assert np.linalg.norm(g.data - e.data) <= 1e-4 * np.linalg.norm(e.data)
        if case.order > 1:
            for second, b in zip(ag.grad(g, leaves, ag.const(g.data)), leaves, strict=True):
                assert second is None or second.dtype == b.dtype


LINEAR = [
    "sum_to", "broadcast_to", "reshape", "transpose", "getitem", "setitem", "take", "scatter_add", "neg", "conj",
    "real", "imag", "to_complex", "fftshift", "ifftshift", "rfftn", "irfftn",
]  # fmt: skip


@pytest.mark.parametrize("name", LINEAR)
def test_adjoint_identities(name):
    """``<A x, y> = <x, A^H y>`` in the real inner product, to 1e-12 of the norms."""
    for case in CASES[name]:
        x = ag.leaf(case.inputs[0])
        forward = case.function(x)
        y = randoms([forward.data], 3)[0]
        back = ag.grad(forward, [x], y)[0].data
        size = np.linalg.norm(forward.data) * np.linalg.norm(y) + np.linalg.norm(x.data) * np.linalg.norm(
            back
        )
        assert abs(inner(forward.data, y) - inner(x.data, back)) <= 1e-12 * size


def test_convention_of_complex_gradients():
    """``|z|^2`` at 1 + 2j has the gradient 2 + 4j."""
    z = ag.leaf(np.array([1 + 2j]))
    (g,) = ag.grad(ops.squared_norm(z), [z])
    assert g.data[0] == 2 + 4j


def test_transform_of_a_spectrum_that_is_not_hermitian_equals_numpy(rng):
    """The way taken on a GPU, on the CPU."""
    from invcryo.autograd import ops as module

    spectrum = rng.standard_normal((2, 4, 6, 4)) + 1j * rng.standard_normal((2, 4, 6, 4))
    for n, axes in ((6, (1, 2, 3)), (7, (1, 2, 3)), (6, (3,)), (7, (2, 3))):
        sizes = (*(spectrum.shape[a] for a in axes[:-1]), n)
        mine = module._irfftn_by_planes(np.fft, spectrum, sizes, axes)
        np.testing.assert_allclose(mine, np.fft.irfftn(spectrum, sizes, axes), atol=1e-14)


def test_derivatives_of_values_on_the_way_and_of_what_does_not_matter():
    x, other = ag.leaf(np.array([2.0, 3.0])), ag.leaf(np.ones(2))
    square = x * x
    y = ops.sum(square * x)
    on_the_way, nothing, same = ag.grad(y, [square, other, y])
    np.testing.assert_array_equal(on_the_way.data, x.data)
    assert nothing is None and float(same) == 1.0
    assert ag.grad(ops.sum(ag.const(x) * other), [x]) == [None]


def test_only_what_leads_to_an_input_is_computed():
    """The rule of a parent that is not asked for must not run: in a gradient penalty that is most of the work."""
    called = []

    def both(x, y):
        return ag.record(
            x.data * y.data,
            (x, lambda g: called.append("x") or g * y),
            (y, lambda g: called.append("y") or g * x),
        )

    x, y = ag.leaf(np.ones(2)), ag.leaf(np.ones(2))
    ag.grad(ops.sum(both(x, y)), [x])
    assert called == ["x"]


def test_third_order():
    x = ag.leaf(np.array(0.7))
    y = ops.exp(ops.sin(x))
    for _ in range(3):
        (y,) = ag.grad(y, [x], create_graph=True)
    c, s = np.cos(0.7), np.sin(0.7)
    assert abs(float(y) - np.exp(s) * (c**3 - 3 * s * c - c)) < 1e-14


def test_a_cotangent_passed_to_several_parents_is_not_changed():
    """Sums that pass their cotangent through, and one input that comes back many times."""
    x, y = ag.leaf(np.ones(3)), ag.leaf(np.ones(3))
    s = x + y
    gy = np.array([1.0, 2.0, 3.0])
    gx, g_y = ag.grad(s + s + x + x * 2.0, [x, y], gy)
    np.testing.assert_array_equal(gx.data, 5 * gy)
    np.testing.assert_array_equal(g_y.data, 2 * gy)
    np.testing.assert_array_equal(gy, [1, 2, 3])


def test_a_deep_graph_needs_no_recursion():
    x = ag.leaf(np.array(1.0))
    y = x
    for _ in range(2 * sys.getrecursionlimit()):
        y = y + x
    assert float(ag.grad(y, [x])[0]) == 2 * sys.getrecursionlimit() + 1
    del y  # freed without recursion, too


def test_no_object_stays_after_a_step():
    """With the collector off: no reference cycle, through both orders."""
    x = ag.leaf(np.linspace(0.5, 1.5, 8))

    def step():
        y = ops.sum(ops.sqrt(ops.exp(x) * ops.tanh(x)) + ops.sigmoid(x))
        (g,) = ag.grad(y, [x], create_graph=True)
        ag.grad(ops.sqrt(ops.squared_norm(g) + 1e-12), [x])

    grown, cycles = objects_left_by(step)
    assert grown <= 2 and cycles == 0


def test_no_grad_and_value_and_grad():
    x = ag.leaf(np.array([1.0, 2.0]))
    with ag.no_grad():
        assert (x * x).node is None
    params = {"a": x, "b": [ag.leaf(np.array(3.0)), ag.leaf(np.array(4.0))]}
    loss, g = ag.value_and_grad(lambda p, c: ops.sum(p["a"] * p["a"]) * p["b"][0] * c)(params, 2.0)
    assert float(loss) == 30.0
    np.testing.assert_array_equal(g["a"], [12.0, 24.0])
    assert g["b"][0] == 10.0 and g["b"][1] == 0.0


# -- bad input --------------------------------------------------------------------------------------------------------


def test_a_leaf_changed_in_place_in_a_kept_graph():
    w = ag.leaf(np.array([1.0, 2.0]))
    y = ops.sum(w * w)
    with pytest.raises(ValueError, match="read-only"):
        w.data[0] = 5.0
    with w.updating() as values:
        values[0] = 5.0
    with pytest.raises(RuntimeError, match="changed in place"):
        ag.grad(y, [w])
    np.testing.assert_array_equal(ag.grad(ops.sum(w * w), [w])[0].data, [10.0, 4.0])
    with pytest.raises(ValueError, match="only a leaf"), y.updating():
        pass
    source = np.ones(2)
    kept = ag.leaf(source)
    source[0] = 7.0
    assert kept.data[0] == 1.0


def test_wrong_types():
    x = ag.leaf(np.ones(3, np.float32))
    for wrong in (np.ones(3), np.ones(3, int), np.ones(3, bool), np.ones(3, np.float16)):
        with pytest.raises(TypeError, match=r"float32|precision"):
            x * wrong
    with pytest.raises(TypeError, match="int64"):
        ag.leaf(np.arange(3))
    with pytest.raises(TypeError, match="array"):
        ag.leaf([1.0, 2.0])
    for function in (ops.sigmoid, ops.softplus, ops.arccos, ops.leaky_relu):
        with pytest.raises(TypeError, match="real values"):
            function(np.ones(2, complex))
    with pytest.raises(TypeError, match="precision alone"):
        ops.cast(x, complex)
    with pytest.raises(TypeError, match="take"):
        x[np.array([0, 1])]
    with pytest.raises(TypeError, match="types"):
        ops.concatenate([x, np.ones(3)])


def test_values_do_not_leave_the_tape_unseen():
    x = ag.leaf(np.ones(3))
    with pytest.raises(TypeError, match="off the tape"):
        np.asarray(x)
    with pytest.raises(TypeError, match="no truth"):
        bool(x)
    assert isinstance(np.ones(3) * x, ag.Var) and isinstance(np.float64(2) * x, ag.Var)


def test_wrong_questions():
    x = ag.leaf(np.ones(3))
    with pytest.raises(ValueError, match="cotangent"):
        ag.grad(x * x, [x])
    with pytest.raises(ValueError, match="does not fit"):
        ag.grad(x * x, [x], np.ones(2))
    with pytest.raises(ValueError, match="does not fit"):
        ag.grad(x * x, [x], np.ones(3, np.float32))
    with pytest.raises(TypeError, match="Var"):
        ag.grad(np.ones(3), [x])
    with pytest.raises(ValueError, match="equal parts"):
        ops.split(x, 2)
