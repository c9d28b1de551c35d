"""The problem of the convergence study, and every method that is measured on it.

A method is a function of (problem, parameter) that gives an iterator over its ``x``, one array per iteration.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from invcryo.costs import L21, Cost, LeastSquares, NonNegative, Quadratic, Support
from invcryo.data import Poses
from invcryo.operators import Circulant, Gradient, LinOp, Projector, Toeplitz
from invcryo.rotation import matrix_from_rotvec
from invcryo.simulate import model_to_volume, phantom, uniform_orientations
from invcryo.solvers import admm
from invcryo.window import KaiserBessel

FIELD_ANGSTROM = 256.0  # side of the box, whatever the number of voxels
ANGLE_ERROR = 0.05  # radians, standard deviation about each axis
SEED = 20261121


class ZeroBorder(LinOp):
    """Periodic differences of a volume in a frame of zeros: what a padded volume has.

    As all differences that touch the volume fit into one more plane per axis, its sum of lengths is that of any
    larger frame.
    """

    def __init__(self, shape: Sequence[int], dtype: Any = np.float32) -> None:
        self._gradient = Gradient([n + 1 for n in shape], "periodic", dtype)
        super().__init__(shape, self._gradient.oshape, dtype)
        self._inside = tuple(slice(0, n) for n in shape)

    def _apply(self, x: NDArray) -> NDArray:
        padded = np.zeros(self._gradient.ishape, x.dtype)
        padded[self._inside] = x
        return self._gradient.apply(padded)

    def _adjoint(self, y: NDArray) -> NDArray:
        return np.ascontiguousarray(self._gradient.adjoint(y)[self._inside])

    def _gram(self, W: LinOp | None) -> LinOp:
        return _ZeroBorderGram(self) if W is None else super()._gram(W)


class _ZeroBorderGram(LinOp):
    def __init__(self, operator: ZeroBorder) -> None:
        super().__init__(operator.ishape, operator.ishape, operator.dtype)
        self._operator = operator

    def _apply(self, x: NDArray) -> NDArray:
        return self._operator._adjoint(self._operator._apply(x))

    def nearest_circulant(self) -> NDArray:
        return Gradient(self.ishape, "periodic", self.dtype).gram().nearest_circulant()  # type: ignore[return-value]


@dataclass(frozen=True)
class Problem:
    """``data(x) + lam TV(x)``, ``x >= 0``.

    Attributes
    ----------
    source : str
        What the volume is.
    truth : ndarray (size, size, size)
    data : Quadratic
        Without its constant: zero at ``x = 0``.
    lam : float
    """

    source: str
    truth: NDArray
    data: Quadratic
    lam: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.Q.ishape

    @property
    def toeplitz(self) -> Toeplitz:
        assert isinstance(self.data.Q, Toeplitz)
        return self.data.Q

    @cached_property
    def norm(self) -> float:
        """Largest eigenvalue of the normal operator."""
        return self.data.Q.norm()

    @cached_property
    def unit(self) -> float:
        """Where the scans of penalties are centred: between the mean and the largest eigenvalue."""
        return math.sqrt(float(self.mean) * self.norm)

    @cached_property
    def mean(self) -> float:
        """Mean eigenvalue of the normal operator: its kernel at lag zero."""
        return float(self.toeplitz.kernel[tuple(n - 1 for n in self.shape)])

    @cached_property
    def circulant_factor(self) -> float:
        """The smallest ``t`` for which ``t C`` is not below the normal operator, ``C`` its nearest circulant."""
        spectrum = self.circulant_spectrum
        half = Circulant(1.0 / np.sqrt(spectrum), self.shape, self.data.Q.dtype)
        return (half @ self.data.Q @ half).norm()

    @cached_property
    def circulant_spectrum(self) -> NDArray:
        spectrum = np.asarray(self.data.Q.nearest_circulant(), np.float64)
        return np.maximum(spectrum, 0.1 * self.mean)

    def difference(self, border: str) -> LinOp:
        """The differences of the total variation: "zero-flux", "periodic", or "zero" for zeros all around."""
        dtype = self.data.Q.dtype
        return ZeroBorder(self.shape, dtype) if border == "zero" else Gradient(self.shape, border, dtype)

    def cost(self, border: str = "zero-flux") -> Cost:
        return self.data + self.lam * (L21() @ self.difference(border)) + NonNegative()

    def value(self, x: NDArray, border: str) -> float:
        """The objective at ``max(x, 0)``."""
        x = np.maximum(x, 0)
        return self.data(x) + self.lam * L21()(self.difference(border)(x))


def make_problem(size: int, views: int, snr: float, fraction: float, model: Path | None) -> Problem:
    """30 views of beta-galactosidase in the thesis: Kaiser-Bessel window, no CTF, orientations that are wrong."""
    rng = np.random.default_rng(SEED)
    pixel_size = FIELD_ANGSTROM / size
    if model is not None:
        truth, source = model_to_volume(model, size, pixel_size), model.name
    else:
        truth, source = (
            phantom("enzyme", size, rng=SEED, symmetry="D2"),
            'phantom("enzyme", D2): no model was found',
        )
    truth = truth / truth.max()
    matrices = uniform_orientations(views, rng=rng)
    window = KaiserBessel()
    images = Projector(Poses(matrices), window, truth.shape)(truth)
    noise = math.sqrt(float(images.var(axis=(1, 2), dtype=np.float64).mean()) / snr)
    for image in images:
        image += noise * rng.standard_normal(image.shape, dtype=np.float32)
    wrong = matrix_from_rotvec(ANGLE_ERROR * rng.standard_normal((views, 3))) @ matrices
    data = LeastSquares(Projector(Poses(wrong), window, truth.shape), images, progress=False).quadratic()
    data = Quadratic(data.Q, data.b)
    return Problem(source, truth, data, fraction * lambda_bound(data.b))


def lambda_bound(b: NDArray) -> float:
    """An upper bound of the weight from which the minimiser without positivity is constant.

    ``max_n |y_n|`` of the smallest field ``y`` with ``L^H y = b - mean(b)``, ``y = L (L^H L)^+ (b - mean(b))``;
    the cosine transform diagonalises ``L^H L``.
    """
    from scipy.fft import dctn, idctn

    eigenvalues: Any = 0.0
    for axis, n in enumerate(b.shape):
        line = 4 * np.sin(0.5 * np.pi * np.arange(n) / n) ** 2
        eigenvalues = eigenvalues + line.reshape((-1,) + (1,) * (b.ndim - 1 - axis))
    spectrum = dctn(b.astype(np.float64))
    spectrum.flat[0], eigenvalues.flat[0] = 0.0, 1.0
    y = Gradient(b.shape, dtype=np.float64)(idctn(spectrum / eigenvalues))
    return L21().dual_norm(y)


# -- methods ------------------------------------------------------------------------------------------------

Start = Callable[[Problem, float], Iterator[Any]]


@dataclass(frozen=True)
class Method:
    """Something that is measured.

    Attributes
    ----------
    key, label : str
    start : callable
        ``start(problem, parameter)`` gives the iterator.
    parameter : str
        What is scanned: "rho" and "sigma" in the problem's unit, over four decades; "inner", numbers of inner
        iterations; "" for nothing.
    border : str
        Of its total variation; each border has its own minimum.
    twin : str
        The method that has the same iterates up to rounding, whose parameters are taken over.
    needs : str
        The module without which it is missing.
    """

    key: str
    label: str
    start: Start
    parameter: str = "rho"
    border: str = "zero-flux"
    twin: str = ""
    needs: str = ""

    @property
    def grid(self) -> list[float]:
        """The values of a full scan."""
        if self.parameter == "":
            return [0.0]
        if self.parameter == "inner":
            return [2.0, 5.0, 10.0, 20.0, 40.0]
        return [10.0 ** (j / 2) for j in range(-4, 5)]

    @property
    def missing(self) -> str | None:
        """Why it cannot be run, or None."""
        if self.needs and importlib.util.find_spec(self.needs) is None:
            return f"{self.needs} is not installed"
        return None


def default(problem: Problem, parameter: float = 0.0, border: str = "zero-flux") -> Iterator[NDArray]:
    """The library's own method, nothing chosen by hand."""
    return (s.x for s in admm(problem.cost(border)))


def tuned(problem: Problem, rho: float) -> Iterator[NDArray]:
    """The same with a penalty by hand."""
    return (s.x for s in admm(problem.cost(), rho * problem.unit))


def published(inner: int) -> Start:
    """ADMM with conjugate gradients as published, by the library: one product less, the last residual being known."""

    def start(problem: Problem, rho: float) -> Iterator[NDArray]:
        rho *= problem.unit
        states = admm(problem.cost(), rho, inner_iterations=inner, relaxation=1, precondition=False)
        return (s.x for s in states)

    return start


def afresh(inner: int) -> Start:
    """The same with the residual that each inner loop starts from computed: K + 1 products per iteration."""

    def start(problem: Problem, rho: float) -> Iterator[NDArray]:
        rho *= problem.unit
        Q, b, L, tv = problem.data.Q, problem.data.b, problem.difference("zero-flux"), L21()
        r = np.float32(rho)
        x = np.zeros_like(b)
        u, v = tv.prox(L(x), problem.lam / rho), np.maximum(x, 0)
        alpha, beta = np.zeros_like(u), np.zeros_like(v)

        def system(p: NDArray) -> NDArray:
            return Q(p) + r * (L.adjoint(L(p)) + p)

        while True:
            residual = b + L.adjoint(r * u + alpha) + r * v + beta - system(x)
            p, old = residual.copy(), _dot(residual, residual)
            for j in range(inner):
                q = system(p)
                length = np.float32(old / _dot(p, q))
                x += length * p
                if j + 1 < inner:
                    residual -= length * q
                    new = _dot(residual, residual)
                    p = residual + np.float32(new / old) * p
                    old = new
            gradient = L(x)
            u, v = tv.prox(gradient - alpha / r, problem.lam / rho), np.maximum(x - beta / r, 0)
            alpha += r * (u - gradient)
            beta += r * (v - x)
            yield x

    return start


def loop_free(problem: Problem, rho: float) -> Iterator[NDArray]:
    """Donati 2020, Algorithm 6."""
    rho *= problem.unit
    states = admm(problem.cost("periodic"), rho, relaxation=1, majoriser=1.01 * problem.norm)
    return (s.x for s in states)


def padded(problem: Problem, rho: float) -> Iterator[NDArray]:
    """On the padded grid, where Fourier transforms solve the linear equation exactly."""
    pad = problem.toeplitz.pad
    circulant = problem.toeplitz.circulant
    inside = pad(np.ones_like(problem.data.b)) > 0.5
    data = Quadratic(circulant, pad(problem.data.b))
    tv = problem.lam * (L21() @ Gradient(pad.oshape, "periodic", problem.data.Q.dtype))
    # less would not converge: the padded data term is indefinite
    hold = max(rho * problem.unit, -2.001 * float(circulant.spectrum.min()))
    states = admm(data + tv + Support(inside, nonnegative=True), [rho * problem.unit, hold], relaxation=1)
    return (pad.adjoint(s.x) for s in states)


def condat_vu(relaxed: bool) -> Start:
    """Condat 2013, Algorithm 3.1; steps at the edge of what is proven, ``1 / tau = L / 2 + 12 sigma``.

    Over-relaxed by 1.45 at ``1 / tau = L + 12 sigma``, which allows 1.5.
    """

    def start(problem: Problem, sigma: float) -> Iterator[NDArray]:
        sigma *= problem.unit
        Q, b, L, tv = problem.data.Q, problem.data.b, problem.difference("zero-flux"), problem.lam * L21()
        smooth = 1.01 * problem.norm
        tau = np.float32(1 / ((1.0 if relaxed else 0.5) * smooth + 12 * sigma))
        theta = np.float32(1.45 if relaxed else 1.0)
        x = np.zeros_like(b)
        y = np.zeros(L.oshape, b.dtype)
        while True:
            new = np.maximum(x - tau * (Q(x) - b + L.adjoint(y)), 0)
            dual = tv.prox_conjugate(y + np.float32(sigma) * L(2 * new - x), sigma)
            x = x + theta * (new - x)
            y += theta * (dual - y)
            yield x

    return start


def condat_vu_circulant(problem: Problem, sigma: float) -> Iterator[NDArray]:
    """The same in the metric ``t C + sigma (L^H L + 1)`` of periodic convolutions, over-relaxed; ``t C`` majorises Q.

    Positivity is dual, as it has no projection in this metric.
    """
    sigma *= problem.unit
    Q, b, L, tv = problem.data.Q, problem.data.b, problem.difference("zero-flux"), problem.lam * L21()
    laplacian = L.gram().nearest_circulant()
    metric = 1.01 * problem.circulant_factor * problem.circulant_spectrum + sigma * (laplacian + 1)  # type: ignore[operator]
    inverse = Circulant(1 / metric, problem.shape, Q.dtype)
    s, theta = np.float32(sigma), np.float32(1.45)
    x, y = np.zeros_like(b), np.zeros(L.oshape, b.dtype)
    z = np.zeros_like(b)
    while True:
        new = x - inverse(Q(x) - b + L.adjoint(y) + z)
        ahead = 2 * new - x
        dual, dual_z = tv.prox_conjugate(y + s * L(ahead), sigma), np.minimum(z + s * ahead, 0)
        x = x + theta * (new - x)
        y += theta * (dual - y)
        z += theta * (dual_z - z)
        yield x


def fista(problem: Problem, inner: float) -> Iterator[NDArray]:
    """Accelerated proximal gradients with restarts; the prox of TV and positivity by accelerated dual steps.

    Beck and Teboulle 2009, the dual field of one iteration being the start of the next.
    """
    Q, b, L = problem.data.Q, problem.data.b, problem.difference("zero-flux")
    step = 1 / (1.01 * problem.norm)
    tv = (problem.lam * step) * L21()
    x, y, t = np.zeros_like(b), np.zeros_like(b), 1.0
    p = np.zeros(L.oshape, b.dtype)
    while True:
        z = y - np.float32(step) * (Q(y) - b)
        q, s = p, 1.0
        for _ in range(int(inner)):
            new = tv.prox_conjugate(q + L(np.maximum(z - L.adjoint(q), 0)) / np.float32(12), 1.0)
            s, before = 0.5 * (1 + math.sqrt(1 + 4 * s * s)), s
            q = new + np.float32((before - 1) / s) * (new - p)
            p = new
        after = np.maximum(z - L.adjoint(p), 0)
        if _dot(y - after, after - x) > 0:
            t = 1.0
        t, before = 0.5 * (1 + math.sqrt(1 + 4 * t * t)), t
        y = after + np.float32((before - 1) / t) * (after - x)
        x = after
        yield x


def pyproximal_primal_dual(problem: Problem, sigma: float) -> Iterator[NDArray]:
    """PyProximal's PrimalDual; our Toeplitz product, its TV, positivity, and prox of a quadratic by three LSQR steps.

    It has no method for a data term that is known by its normal equations and several others; this is the nearest.
    """
    import pylops
    import pyproximal
    from pyproximal.optimization.cls_primaldual import PrimalDual

    n, dtype = math.prod(problem.shape), problem.data.Q.dtype
    product = pylops.FunctionOperator(problem.data.Q.matvec, problem.data.Q.matvec, n, n, dtype=dtype)
    # an edge of zero differences is the zero-flux border
    lines = [
        pylops.FirstDerivative(problem.shape, axis=a, kind="forward", edge=False, dtype=dtype)
        for a in range(3)
    ]
    stacked = pylops.VStack([*lines, pylops.Identity(n, dtype=dtype)], dtype=dtype)
    quadratic = pyproximal.Quadratic(Op=product, b=-problem.data.b.ravel(), niter=3)
    priors = pyproximal.VStack(
        [pyproximal.L21(ndim=3, sigma=problem.lam), pyproximal.Box(lower=0.0)], nn=[3 * n, n]
    )
    sigma *= problem.unit
    solver = PrimalDual()
    state = solver.setup(
        quadratic, priors, stacked, np.zeros(n, dtype), tau=0.99 / (13 * sigma), mu=sigma, gfirst=False
    )
    while True:
        state = solver.step(*state)
        yield state[0].reshape(problem.shape)


def scico_admm(problem: Problem, rho: float) -> Iterator[Any]:
    """SCICO's ADMM with three CG steps, all of it in JAX; the Toeplitz product by FFTs on the same padded grid."""
    import jax
    import jax.numpy as jnp
    from scico import functional, linop
    from scico.optimize.admm import ADMM, LinearSubproblemSolver

    shape, padded_shape = problem.shape, problem.toeplitz.circulant.ishape
    spectrum, b = jnp.asarray(problem.toeplitz.circulant.spectrum), jnp.asarray(problem.data.b)

    def convolve(x: Any) -> Any:
        y = jnp.fft.irfftn(spectrum * jnp.fft.rfftn(x, s=padded_shape), s=padded_shape)
        return y[tuple(slice(0, n) for n in shape)]

    product = linop.LinearOperator(shape, shape, eval_fn=convolve, adj_fn=convolve, input_dtype=np.float32)

    class NormalEquations(LinearSubproblemSolver):
        """Its data term wants an operator and its images; here are the normal equations."""

        def internal_init(self, solver: Any) -> None:
            super().internal_init(solver)
            self.lhs_op: Any = self.lhs_op + product

        def compute_rhs(self) -> Any:
            return super().compute_rhs() + b

    rho *= problem.unit
    solver = ADMM(
        f=None,
        g_list=[problem.lam * functional.L21Norm(), functional.NonNegativeIndicator()],
        C_list=[linop.FiniteDifference(shape, append=0), linop.Identity(shape)],
        rho_list=[rho, rho],
        x0=jnp.zeros(shape, jnp.float32),
        subproblem_solver=NormalEquations(cg_kwargs={"tol": 0.0, "maxiter": 3}),
    )
    while True:
        solver.step()
        jax.block_until_ready((solver.x, solver.z_list, solver.u_list))
        yield solver.x


def _dot(x: NDArray, y: NDArray) -> float:
    return float(np.einsum("i,i->", x.ravel(), y.ravel(), dtype=np.float64))


METHODS = [
    Method("default", "invcryo, no parameter", default, parameter=""),
    Method("tuned", "invcryo, penalty by hand", tuned),
    Method("admm-1", "published ADMM, K = 1, K products", published(1)),
    Method("admm-1-afresh", "published ADMM, K = 1", afresh(1), twin="admm-1"),
    Method("admm-3", "published ADMM, K = 3, K products", published(3)),
    Method("admm-3-afresh", "published ADMM, K = 3", afresh(3), twin="admm-3"),
    Method("loop-free", "published, inner-loop-free", loop_free, border="periodic"),
    Method("padded", "exact, on the padded grid", padded, border="zero"),
    Method("condat-vu", "Condat-Vu", condat_vu(False), parameter="sigma"),
    Method("condat-vu-relaxed", "Condat-Vu, over-relaxed", condat_vu(True), parameter="sigma"),
    Method("condat-vu-circulant", "Condat-Vu, circulant metric", condat_vu_circulant, parameter="sigma"),
    Method("fista", "FISTA, inner TV prox", fista, parameter="inner"),
    Method("scico", "SCICO ADMM, K = 3", scico_admm, needs="scico"),
    Method(
        "pyproximal", "PyProximal PrimalDual", pyproximal_primal_dual, parameter="sigma", needs="pyproximal"
    ),
]
