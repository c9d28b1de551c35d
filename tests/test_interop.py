"""Our operators in the hands of SciPy and PyLops, as they are."""

import numpy as np
import pytest
import scipy.sparse.linalg as ssl

from invcryo.backend import use
from invcryo.data import Poses
from invcryo.operators import Gradient, Identity, Projector, Stack
from invcryo.rotation import random_rotations
from invcryo.solvers import cg, run
from invcryo.window import KaiserBessel

SHAPE = (5, 6, 4)


@pytest.fixture(autouse=True)
def one_thread():
    with use(threads=1):
        yield


@pytest.fixture(scope="module", params=["f4", "f8"])
def problem(request):
    """(operator with full column rank, its matrix, data)"""
    P = Projector(Poses(random_rotations(6, rng=1)), KaiserBessel(), SHAPE, (9, 8), dtype=request.param)
    A = Stack([P, 2.0 * Identity(SHAPE, request.param)])
    matrix = np.stack([A.matvec(e) for e in np.eye(A.shape[1])], axis=1)
    return A, matrix, np.random.default_rng(2).standard_normal(A.shape[0]).astype(request.param)


def close(x, expected, A, digits=1.0):
    """To single precision of the non-uniform FFT, or to double."""
    tolerance = digits * (3e-4 if A.dtype == np.float32 else 1e-7)
    return np.linalg.norm(x - expected) <= tolerance * np.linalg.norm(expected)


def test_cg(problem):
    A, matrix, y = problem
    b = A.rmatvec(y)
    Q = A.gram()
    x, info = ssl.cg(Q, b, rtol=1e-9 if A.dtype == np.float64 else 1e-5, maxiter=500)
    expected = np.linalg.solve(matrix.T @ matrix, matrix.T @ y)
    assert info == 0 and close(x, expected, A)
    ours = run(cg(Q, b.reshape(SHAPE).astype(A.dtype)), 60, progress=False).x.ravel()
    assert close(ours, expected, A)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # SciPy's own estimate of the condition
@pytest.mark.parametrize("solver", [ssl.lsqr, ssl.lsmr])
def test_least_squares(problem, solver):
    A, matrix, y = problem
    x = solver(A, y, atol=1e-10, btol=1e-10)[0]
    assert close(x, np.linalg.lstsq(matrix, y, rcond=None)[0], A)
    regularised = solver(A, y, damp=3.0, atol=1e-10, btol=1e-10)[0]
    expected = np.linalg.solve(matrix.T @ matrix + 9 * np.eye(matrix.shape[1]), matrix.T @ y)
    assert close(regularised, expected, A)


def test_eigenvalues_and_singular_values(problem):
    A, matrix, _ = problem
    singular = np.linalg.svd(matrix, compute_uv=False)
    rng = np.random.default_rng(0)
    top = ssl.eigsh(
        A.gram(), k=3, return_eigenvectors=False, v0=rng.standard_normal(A.shape[1]).astype(A.dtype)
    )
    assert close(np.sort(top)[::-1], singular[:3] ** 2, A)
    u, s, vt = ssl.svds(A, k=3, v0=rng.standard_normal(A.shape[1]).astype(A.dtype))
    assert close(np.sort(s)[::-1], singular[:3], A)
    assert close(A.matvec(vt[0]), s[0] * u[:, 0], A, digits=10)


def test_aslinearoperator(problem):
    A, matrix, y = problem
    L = ssl.aslinearoperator(A)
    assert L.shape == A.shape and L.dtype == A.dtype
    x = np.random.default_rng(3).standard_normal((A.shape[1], 2)).astype(A.dtype)
    assert close(L @ x, matrix @ x, A) and close(L.T @ y, matrix.T @ y, A) and close(L.H @ y, matrix.T @ y, A)
    both = L.H @ L + ssl.aslinearoperator(Identity((A.shape[1],), A.dtype))
    assert close(both @ x[:, 0], matrix.T @ (matrix @ x[:, 0]) + x[:, 0], A)


def test_lobpcg(problem):
    """Calls private names of SciPy's class, so it needs the wrapper."""
    A, matrix, _ = problem
    x = np.random.default_rng(4).standard_normal((A.shape[1], 2)).astype(A.dtype)
    top, _ = ssl.lobpcg(ssl.aslinearoperator(A.gram()), x, largest=True, maxiter=200, tol=1e-5)
    assert close(top, np.linalg.svd(matrix, compute_uv=False)[:2] ** 2, A)


def test_pylops_dottest(problem):
    dottest = pytest.importorskip("pylops.utils").dottest
    A = problem[0]
    for operator in (A, A.H, Gradient(SHAPE, dtype=A.dtype)):
        # it draws from the global generator, and allows a part of a product that may by chance be almost zero
        np.random.seed(0)  # noqa: NPY002
        assert dottest(operator, *operator.shape, rtol=1e-5 if A.dtype == np.float32 else 1e-11)


def test_pylops_solver(problem):
    pylops = pytest.importorskip("pylops")
    A, matrix, y = problem
    Op = pylops.aslinearoperator(ssl.aslinearoperator(A))
    x = pylops.optimization.basic.cgls(Op, y, x0=np.zeros(A.shape[1], A.dtype), niter=60, tol=0)[0]
    assert close(x, np.linalg.lstsq(matrix, y, rcond=None)[0], A)
    stacked = pylops.VStack([Op, pylops.Identity(A.shape[1], dtype=A.dtype)])
    assert close(stacked.matvec(x)[: A.shape[0]], matrix @ x, A)
