"""Rules for lambda: their bounds, what they agree with, and what they refuse."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from invcryo.costs import L1, L21, Denoiser, LeastSquares, Quadratic, SquaredL2
from invcryo.grid import centred_coordinates
from invcryo.inversion import PENALTIES, penalty_for, regularised_map, supported
from invcryo.operators import Gradient, Identity
from invcryo.reconstruction import forward_model
from invcryo.selection import (
    NoiseLevel,
    _vertex,
    choose_lambda,
    lambda_max,
    natural_lambda,
    noise_level,
    scaled_lambda,
)
from invcryo.simulate import phantom, simulate_particles

BOX = 24
SHAPE = (BOX,) * 3
BALL = np.asarray(sum(c**2 for c in centred_coordinates(SHAPE)) <= 10**2)
SQUARES = ("tikhonov", "sobolev")
NORMS = sorted(set(PENALTIES) - set(SQUARES))


@pytest.fixture(scope="module")
def particles():
    """(stack, the quadratics of its half sets, the sum, pixels of each half)"""
    stack = simulate_particles(phantom("enzyme", BOX, rng=2), 120, 5.0, snr=0.2, rng=3)
    cost = LeastSquares(forward_model(stack), stack.images, progress=False)
    halves = cost.normal_equations(stack.half).quadratics
    return stack, halves, halves[0].plus(halves[1]), [60 * BOX**2] * 2


# -- the largest weight -------------------------------------------------------------------------------------------


def trivial_part(x, name, support):
    """What of a map the regulariser does not see."""
    if support is not None:
        return np.zeros_like(x)
    if name == "wavelet":
        term = penalty_for(name, SHAPE).terms()[0]
        return term.operator.adjoint(term.operator.apply(x) * (term.cost.weight == 0))
    return np.full_like(x, x.mean(dtype=np.float64))


@pytest.mark.filterwarnings("ignore:.*stopped at max_iter:RuntimeWarning")
@pytest.mark.parametrize("support", [None, BALL], ids=["everywhere", "ball"])
@pytest.mark.parametrize("name", NORMS)
def test_above_lambda_max_the_map_is_trivial_and_below_it_is_not(particles, name, support):
    _, _, data, n = particles
    penalty = penalty_for(name, SHAPE)
    largest = lambda_max(data, penalty, support)
    if name == "wavelet" and support is not None:
        assert largest is None  # the coarse band is free, and no function of it fits into the ball
        return
    sizes = {}
    for factor in (0.3, 1.0):
        result = regularised_map(
            data, penalty, factor * largest, sum(n), support, tolerance=1e-4, max_iter=300
        )
        x = supported(result.x, support)
        sizes[factor] = np.linalg.norm(x - trivial_part(x, name, support))
    plain = np.linalg.norm(regularised_map(data, SquaredL2(), 1.0, sum(n), support).x)
    assert sizes[1.0] < 1e-3 * plain
    assert sizes[0.3] > 5e-3 * plain and sizes[0.3] > 20 * sizes[1.0]


def test_lambda_max_where_it_is_known():
    b = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    data = Quadratic(Identity(SHAPE), b, 1.0)
    assert lambda_max(data, L1()) == pytest.approx(abs(b).max(), rel=1e-3)
    assert lambda_max(data, 2.0 * L1()) == pytest.approx(abs(b).max() / 2, rel=1e-3)
    assert lambda_max(data, L1(), BALL) == pytest.approx(abs(b[BALL]).max(), rel=1e-3)
    free = np.ones(SHAPE, np.float32)
    free[5] = 0
    assert lambda_max(data, L1(free)) == pytest.approx(abs(np.delete(b, 5, 0)).max(), rel=1e-3)
    # one dimension of change: y is unique, the running sum of b less its mean
    line = np.broadcast_to(np.random.default_rng(1).standard_normal(BOX), (1, 1, BOX)).astype(np.float32)
    sums = np.cumsum(line - line.mean())
    data = Quadratic(Identity((1, 1, BOX)), line.copy(), 1.0)
    assert lambda_max(data, L21() @ Gradient((1, 1, BOX))) == pytest.approx(abs(sums).max(), rel=1e-2)
    assert lambda_max(Quadratic(Identity(SHAPE), 0 * b, 1.0), L1()) == 0.0


def test_what_is_no_norm_has_no_largest_weight(particles):
    data = particles[2]
    for penalty in (SquaredL2(), Denoiser(lambda z, s: z), L1() + SquaredL2(), 0.0 * L1()):
        assert lambda_max(data, penalty, BALL) is None


# -- cross-validation ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*stopped at max_iter:RuntimeWarning")
@pytest.mark.parametrize("name", PENALTIES)
def test_cross_validation_is_within_a_decibel_of_the_best(particles, name):
    stack, halves, data, n = particles
    penalty = penalty_for(name, SHAPE)
    chosen = choose_lambda(halves, n, penalty, BALL, largest=lambda_max(data, penalty, BALL))
    assert chosen.rule == "cross-validation" and chosen.iterations == sum(
        t["iterations"] for t in chosen.trials
    )
    lams = [t["lam"] for t in chosen.trials]
    assert lams == sorted(lams) and lams[0] < chosen.lam < lams[-1]
    scores = [t["score"] for t in chosen.trials]
    assert min(scores) < 0 and min(scores) not in (scores[0], scores[-1])
    # misfit and penalty are monotonic, up to the tolerance of the trials: 1 % of the energy that a map explains
    misfits, values = (np.array([t[key] for t in chosen.trials]) for key in ("misfit", "penalty"))
    assert (np.diff(misfits) > -0.01 * (data.c - misfits[0])).all() and misfits[-1] > misfits[0]
    assert (np.diff(values) < 0.01 * values[0]).all() and values[-1] < values[0]
    # the truth of the score: the error of the maps against noise-free images
    clean = stack.images.clean(slice(None))
    model = forward_model(stack)

    def error(lam):
        x = supported(regularised_map(data, penalty, lam, sum(n), BALL).x, BALL)
        return 10 * np.log10((np.asarray(model.apply(x) - clean, np.float64) ** 2).sum())

    best = min(error(chosen.lam * 2.0**k) for k in (-2, -1, -0.5, 0, 0.5, 1, 2))
    assert error(chosen.lam) <= best + 1.0


def test_cross_validation_of_a_denoiser(particles):
    _, halves, _, n = particles
    chosen = choose_lambda(halves, n, Denoiser(lambda z, sigma: z / np.float32(1 + sigma**2)), BALL)
    as_cost = choose_lambda(halves, n, SquaredL2(), BALL)
    assert all(t["penalty"] is None for t in chosen.trials)
    assert chosen.lam == pytest.approx(as_cost.lam, rel=0.2)


def test_the_scale_of_lambda(particles):
    """Of parts of the data: a norm's weight grows as the noise of H^T y, a variance stays."""
    _, halves, data, n = particles
    tv, square, denoiser = penalty_for("tv", SHAPE), SquaredL2(), Denoiser(lambda z, s: z)
    assert scaled_lambda(2.0, tv, data, 0.25) == 1.0
    assert scaled_lambda(2.0, square, data, 0.25) == scaled_lambda(2.0, denoiser, data, 0.25) == 2.0
    ratio = {
        p: natural_lambda(data, p, sum(n)) / natural_lambda(halves[0], p, n[0])
        for p in (tv, square, denoiser)
    }
    assert ratio[tv] == pytest.approx(2**0.5, rel=0.1) and ratio[square] == pytest.approx(2, rel=0.1)
    assert ratio[denoiser] == pytest.approx(1, rel=0.1)


def test_the_parabola():
    for centre in (-0.4, 0.0, 0.3):
        for x in ((-1.0, 0.0, 1.0), (-1.5, 0.0, 1.0)):
            y = tuple(3 * (t - centre) ** 2 + 7 for t in x)
            assert _vertex(x, y) == pytest.approx(centre, abs=1e-12)
    assert _vertex((0.0, 1.0, 2.0), (5.0, 5.0, 5.0)) == 0.0


# -- discrepancy --------------------------------------------------------------------------------------------------


def test_the_noise_of_white_images():
    images = 3.0 * np.random.default_rng(0).standard_normal((400, 32, 32)).astype(np.float32)
    level = noise_level(images)
    assert abs(level.variance - 9) < 4 * level.error
    corners = 1 - np.pi / 4
    assert level.error == pytest.approx(9 * (2 / (400 * 32**2 * corners)) ** 0.5, rel=0.2)
    assert noise_level(images[:1]).error == pytest.approx(9 * (2 / (32**2 * corners)) ** 0.5, rel=0.3)


def test_the_noise_level_reads_a_sample_only():
    class Counting:
        shape, read = (10**6, 16, 16), 0

        def __getitem__(self, index):
            self.read += index.stop - index.start
            return np.random.default_rng(index.start).standard_normal((index.stop - index.start, 16, 16))

    images = Counting()
    assert noise_level(images).variance == pytest.approx(1, abs=0.02) and images.read == 5000


def test_masked_images_have_no_noise_level():
    with pytest.raises(ValueError, match=r"mean square of 0.0: were the images masked\?"):
        noise_level(np.zeros((5, 16, 16), np.float32))


def test_the_discrepancy_is_met(particles):
    _, _, data, n = particles
    total, penalty = sum(n), penalty_for("tv", SHAPE)
    largest = lambda_max(data, penalty, BALL)
    for variance in (1.0, 1.05):  # of normalised images, and a little more
        noise = NoiseLevel(variance, 1e-3)
        chosen = choose_lambda(
            [data], [total], penalty, BALL, rule="discrepancy", noise=noise, largest=largest
        )
        x = regularised_map(data, penalty, chosen.lam, total, BALL, tolerance=1e-3).x
        misfit = 2 * data(supported(x, BALL)) / total
        assert misfit == pytest.approx(variance, abs=0.004)  # the energy of the signal is 0.2 per pixel
        assert len(chosen.trials) <= 14 and all("score" not in t for t in chosen.trials)


def test_a_discrepancy_that_cannot_be_resolved_says_so(particles):
    _, _, data, n = particles
    total, penalty = sum(n), penalty_for("tv", SHAPE)
    for noise in (NoiseLevel(1.0, 0.1), NoiseLevel(1.3, 1e-3)):
        with pytest.raises(ValueError, match=r"cannot tell signal from noise .*--lam auto"):
            choose_lambda([data], [total], penalty, BALL, rule="discrepancy", noise=noise)
    with pytest.raises(ValueError, match=r"leaves lambda uncertain by a factor of .*--lam auto"):
        choose_lambda([data], [total], penalty, BALL, rule="discrepancy", noise=NoiseLevel(1.0, 0.04))
    with pytest.raises(ValueError, match=r"even the smallest weight leaves a misfit above .*--lam auto"):
        choose_lambda([data], [total], penalty, BALL, rule="discrepancy", noise=NoiseLevel(0.5, 1e-3))


# -- the study ----------------------------------------------------------------------------------------------------


def test_the_study_of_a_small_case(tmp_path):
    """One case, its record, and that a second run does nothing again."""
    script = Path(__file__).resolve().parent.parent / "benchmarks" / "selection_study.py"
    small = ["--structure", "blobs", "--snr", "0.5", "--views", "60", "--box", "20", "--reg", "tv"]
    command = [sys.executable, str(script), *small, "--json", str(tmp_path / "record.json")]
    outs = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        outs.append(done.stdout)
    (case,) = json.loads((tmp_path / "record.json").read_text())["cases"]
    assert case["of"] == ["tv", "blobs", 0.5, 60, 20, 0] and len(case["scan"]) == 17
    assert "tv auto: of 1 cases 0 refused, 1 within 1 dB" in outs[0]
    assert outs[1].splitlines() == outs[0].splitlines()[1:]  # the verdict alone


# -- bad input ----------------------------------------------------------------------------------------------------


def test_bad_input(particles):
    _, halves, data, n = particles
    tv = penalty_for("tv", SHAPE)
    with pytest.raises(ValueError, match="unknown rule 'gcv': expected one of cross-validation, discrepancy"):
        choose_lambda(halves, n, tv, rule="gcv")
    with pytest.raises(ValueError, match="cross-validation needs the data terms of two half sets, got 1"):
        choose_lambda([data], [sum(n)], tv)
    with pytest.raises(ValueError, match=r"2 data terms need as many numbers of pixels, above 0, got \[5\]"):
        choose_lambda(halves, [5], tv)
    with pytest.raises(ValueError, match="discrepancy needs one data term, got 2"):
        choose_lambda(halves, n, tv, rule="discrepancy")
    with pytest.raises(ValueError, match="needs the noise level"):
        choose_lambda([data], [sum(n)], tv, rule="discrepancy")
    nothing = Quadratic(halves[1].Q, 0 * halves[1].b, 0.0)
    with pytest.raises(ValueError, match="half set 2 holds no data"):
        choose_lambda([halves[0], nothing], n, tv)
