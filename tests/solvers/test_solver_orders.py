"""The orders that solvers state, measured: pathwise against SciPy's flow of a mixture, in moments by exact
recursion."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import ALL_PROCESSES, ALL_SDES, MIXTURE, in_float64, mixture_flow, slope
from menu import DETERMINISTIC, STOCHASTIC, VARIANTS
from tiers import proof

from diffuse_jax import solvers, times
from diffuse_jax.oracles import Gaussian, Mixture, moments, order_of
from diffuse_jax.sampling import sample_keys, solve
from diffuse_jax.solvers import Solver

PROCESSES = ("vp", "subvp", "ve", "edm")


def on_every_process(kinds: Any) -> Any:
    """(name, kind): in the first tier every formula on VP, and Heun and SDE-DPM-Solver++ 2M on every process."""
    quick = {kind: ("vp",) for kind in kinds if kind not in VARIANTS}
    quick |= {kind: PROCESSES for kind in ("heun", "sde-dpm 2m")}
    return pytest.mark.parametrize(
        ("name", "kind"),
        [(name, kind) if name in quick.get(kind, ()) else proof(name, kind) for name in PROCESSES for kind in kinds],
    )


# log_snr, from noise to data, of all that follows: nearer to its ends the flow of any data is straight, which flatters.
NOISE, DATA = -4.0, 3.0


def ends(name: str) -> dict[str, float]:
    found = {end: float(ALL_SDES[name].inverse_log_snr(value)) for end, value in (("t_max", NOISE), ("t_min", DATA))}
    np.testing.assert_allclose([ALL_PROCESSES[name].log_snr(t) for t in found.values()], [NOISE, DATA], rtol=1e-5)
    return found


def adams_bashforth() -> Solver:
    """A user's multistep method: x + h·(3v − v′)/2, v′ being the velocity one step ago, which it carries as memory."""

    def init(x: Any, times: Any, denoise: Any) -> tuple[Any, Any]:
        return jnp.zeros_like(x), jnp.asarray(True)

    def step(noise: Any, x: Any, memory: Any, t: Any, s: Any, denoise: Any) -> Any:
        previous, first = memory
        v = solvers.velocity(denoise, x, t)
        x = x + (s - t) * jnp.where(first, v, 1.5 * v - 0.5 * previous)
        return x, x, (v, jnp.asarray(False))

    return Solver(step=step, init=init, order=2, evaluations=1)


@on_every_process([*DETERMINISTIC, "users"])
@in_float64
def test_a_solver_of_the_flow_has_its_order_on_a_mixture(name: str, kind: str) -> None:
    solver = adams_bashforth() if kind == "users" else DETERMINISTIC[kind]
    span, sde = ends(name), ALL_SDES[name]
    # In equal steps of time for the user's, which is not made for others.
    grid = times.uniform if kind == "users" else times.log_snr
    start, end = mixture_flow(name, span["t_max"], span["t_min"])
    # Of the fourth order, the next term is the larger one before.
    counts = (320, 640) if solver.order == 4 else (80, 240)
    denoise = Mixture(sde, *map(jnp.asarray, MIXTURE))
    run = jax.jit(lambda times: solve(None, denoise, solver, times, jnp.asarray(start)).x)
    errors = [np.max(np.abs(run(grid(sde, n, **span)) - end)) for n in counts]
    assert abs(slope(counts, errors) - solver.order) < 0.2, errors


@on_every_process(STOCHASTIC)
@in_float64
def test_a_stochastic_solver_has_its_weak_order_in_exact_moments(name: str, kind: str) -> None:
    found = order_of(STOCHASTIC[kind], ALL_SDES[name], counts=(128, 512), **ends(name))
    assert abs(found.order - STOCHASTIC[kind].weak_order) < 0.2, found


# --- the measure itself -----------------------------------------------------------------------------------------------


@in_float64
def test_moments_are_those_of_many_samples() -> None:
    """A multistep solver with noise, a grid of four steps, 100,000 samples."""
    sde, solver = ALL_SDES["vp"], solvers.sde_dpm_solver(2)
    data = Gaussian(sde, jnp.asarray([0.7, -0.4]), jnp.asarray([[0.3, 0.1], [0.1, 2.0]]))
    grid, n = times.log_snr(sde, 4, **ends("vp")), 100_000
    mean, cov = data.marginal(grid[0])
    x = mean + np.random.default_rng(0).standard_normal((n, 2)) @ jnp.linalg.cholesky(cov).T
    drawn = np.asarray(solve(sample_keys(0, n), data, solver, grid, x).x)
    mean, cov = moments(solver, data, grid)
    deviations = np.sqrt(np.diag(cov))
    np.testing.assert_allclose((drawn.mean(0) - mean) / deviations, 0, atol=4 / np.sqrt(n))
    np.testing.assert_allclose((np.cov(drawn.T) - cov) / np.outer(deviations, deviations), 0, atol=6 / np.sqrt(n))


@in_float64
def test_order_of_tells_a_broken_solver_from_the_one_it_claims_to_be() -> None:
    """Heun whose second slope is taken at the wrong time has order 1, on Gaussian data and on others."""

    def step(noise: Any, x: Any, memory: Any, t: Any, s: Any, denoise: Any) -> Any:
        first = solvers.velocity(denoise, x, t)
        second = solvers.velocity(denoise, x + (s - t) * first, t)
        x = x + (s - t) * 0.5 * (first + second)
        return x, x, memory

    sde, broken = ALL_SDES["vp"], Solver(step=step)
    mixture = Mixture(sde, *map(jnp.asarray, MIXTURE))
    for solver, data, order in ((broken, None, 1.0), (broken, mixture, 1.0), (solvers.heun(), None, 2.0)):
        found = order_of(solver, sde, data, counts=(64, 192), grid=times.uniform, **ends("vp"))
        assert abs(found.order - order) < 0.2, found
    assert found.counts == (64, 192) and len(found.errors) == 2


def test_order_of_says_what_it_cannot_measure() -> None:
    sde = ALL_SDES["vp"]
    mixture = Mixture(sde, *map(jnp.asarray, MIXTURE))
    for measure, message in (
        (lambda: order_of(solvers.ddim(), sde, counts=(64,)), r"counts=\(64,\)"),
        (lambda: order_of(solvers.ddim(), ALL_SDES["edm"], mixture), "not of sde=EDM"),
        (lambda: order_of(solvers.ddim(1.0), sde, mixture), "oracles.Gaussian alone"),
        (lambda: order_of(solvers.adaptive(), sde), "counts its own evaluations"),
    ):
        with pytest.raises(ValueError, match=message):
            measure()


@in_float64
def test_the_moments_of_many_langevin_steps_take_all_their_draws() -> None:
    """Variance a fixed point of V ↦ (1 − ε/v)²·V + 2ε after n steps from v; too few draws give NaN, not repeats."""
    sde, t = ALL_SDES["vp"], 0.5
    data = Gaussian(sde, jnp.zeros(1), jnp.eye(1))
    epsilon, variance = 2 * (0.2 * float(sde.sigma(t))) ** 2, 1.0
    for _ in range(20):
        variance = (1 - epsilon) ** 2 * variance + 2 * epsilon
    solver, grid = solvers.langevin(0.2, steps=20), jnp.asarray([t, t])
    np.testing.assert_allclose(moments(solver, data, grid)[1], [[variance]], rtol=1e-6)
    assert np.isnan(moments(solver, data, grid, draws=5)[0])


# --- evaluations ------------------------------------------------------------------------------------------------------


def test_solvers_state_their_evaluations() -> None:
    calls = []

    class Counted:
        sde = ALL_SDES["vp"]

        def __call__(self, x: Any, t: Any, cond: Any = None) -> Any:
            calls.append(t)
            return Gaussian(self.sde, jnp.zeros(1), jnp.eye(1))(x, t)

    pc = solvers.predictor_corrector(solvers.heun(), solvers.langevin())
    for solver in (*DETERMINISTIC.values(), *STOCHASTIC.values(), solvers.langevin(), pc):
        calls.clear()
        x, grid = jnp.ones((2, 1)), jnp.asarray([0.5, 0.4])
        memory = solver.init(x, grid, Counted())
        assert len(calls) == solver.start_evaluations
        solver.step(lambda i: jnp.ones((2, 1)), x, memory, *grid, Counted())
        # A loop is traced once: these take one step each.
        assert len(calls) == solver.start_evaluations + solver.evaluations
    pc = solvers.predictor_corrector(solvers.unipc(3, start=1), solvers.annealed_langevin(steps=7))
    assert (solvers.langevin(steps=5).evaluations, pc.evaluations, pc.start_evaluations) == (5, 8, 0)
    assert solvers.unipc(3).start_evaluations == 2
