"""Identities and exact cases of the solvers' steps, score_sde's loop, and solvers as values."""

import itertools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import PROCESSES, SDES, gaussian_data, in_float64

from diffuse_jax import solvers, times
from diffuse_jax.oracles import Gaussian, Mixture
from diffuse_jax.sampling import sample, sample_keys, solve
from diffuse_jax.solvers import Solver

every_sde = pytest.mark.parametrize("name", SDES)
RNG = np.random.default_rng(0)
X, Z = RNG.standard_normal((2, 4, 2))
MEAN, COV = gaussian_data(2)


def gaussian(name: str) -> Gaussian:
    return Gaussian(SDES[name], jnp.asarray(MEAN), jnp.asarray(COV))


def given(*draws: Any) -> Any:
    """Noise that is recorded: draw i is draws[i]."""
    stacked = jnp.stack([jnp.asarray(d) for d in draws])
    return lambda i: stacked[i]


def one_step(solver: Solver, denoise: Any, x: Any, t: float, s: float, *draws: Any) -> tuple[Any, Any]:
    memory = solver.init(x, jnp.asarray([t, s]), denoise)
    return solver.step(given(*draws), jnp.asarray(x), memory, jnp.asarray(t), jnp.asarray(s), denoise)[:2]


# --- DDIM's family ----------------------------------------------------------------------------------------------------


@every_sde
@in_float64
def test_ddim_with_eta_one_is_ancestral_sampling(name: str) -> None:
    for t, s in ((1.0, 0.9), (0.5, 0.1), (0.01, 0.009)):
        steps = [one_step(solver, gaussian(name), X, t, s, Z) for solver in (solvers.ddim(1.0), solvers.ancestral())]
        chex.assert_trees_all_close(*steps, rtol=1e-10)


@in_float64
def test_beta_ancestral_is_exact_for_unit_variance_data_under_vp_alone() -> None:
    def variance_at(name: str, t: float, s: float) -> tuple[float, float]:
        unit, zero, one = Gaussian(SDES[name], jnp.zeros(1), jnp.eye(1)), np.zeros((1, 1)), np.ones((1, 1))
        p, c = (one_step(solvers.ancestral("beta"), unit, x, t, s, z)[0][0, 0] for x, z in ((one, zero), (zero, one)))
        before, after = (PROCESSES[name].alpha(u) ** 2 + PROCESSES[name].sigma(u) ** 2 for u in (t, s))
        return float(p**2 * before + c**2), float(after)

    np.testing.assert_allclose(*variance_at("vp", 1.0, 0.1), rtol=1e-10)
    for name in ("subvp", "ve"):
        found, exact = variance_at(name, 0.5, 0.3)
        assert found > 1.01 * exact


# --- predictor and corrector ------------------------------------------------------------------------------------------


@in_float64
def test_predictor_corrector_is_score_sdes_loop_step_by_step() -> None:
    """VE, reverse diffusion and Langevin by batch norms, on recorded noise, in NumPy: corrector first, both at t."""
    n, snr, process = 12, 0.16, PROCESSES["ve"]
    grid = np.linspace(1, 1e-5, n + 1)
    recorded = np.random.default_rng(3).standard_normal((n, 2, 4, 2))
    start = 50 * X

    def score(x: np.ndarray, t: float) -> np.ndarray:
        return -(x - MEAN) @ np.linalg.inv(COV + process.sigma(t) ** 2 * np.eye(2))

    x, states = start, [start]
    for k, (t, s) in enumerate(itertools.pairwise(grid)):
        z, gradient = recorded[k, 0], score(x, t)
        norms = [np.mean(np.sqrt(np.sum(a**2, axis=1))) for a in (z, gradient)]
        epsilon = 2 * (snr * norms[0] / norms[1]) ** 2
        x = x + epsilon * gradient + np.sqrt(2 * epsilon) * z
        variance = process.sigma(t) ** 2 - process.sigma(s) ** 2
        mean = x + variance * score(x, t)
        x = mean + np.sqrt(variance) * recorded[k, 1]
        states.append(x)

    solver = solvers.predictor_corrector(solvers.reverse_diffusion(), solvers.langevin(snr, norm="batch"))
    noise = lambda keys, stream, x, span: lambda i: jnp.asarray(recorded)[stream - 1, i]  # noqa: E731
    run = jax.jit(
        lambda x: solve(sample_keys(0, 4), gaussian("ve"), solver, jnp.asarray(grid), x, noise=noise, path=True)
    )
    solution = run(start)
    np.testing.assert_allclose(solution.path, np.stack(states), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(solution.mean, mean, rtol=1e-9, atol=1e-9)


def test_predictor_and_corrector_draw_from_separate_streams() -> None:
    """A corrector of three draws and a predictor of two take five different draws; the corrector comes first."""
    used: list[tuple[str, int]] = []

    def drawing(name: str, count: int) -> Solver:
        def step(noise: Any, x: Any, memory: Any, t: Any, s: Any, denoise: Any) -> Any:
            used.extend((name, noise(i)) for i in range(count))
            return x, x, memory

        return Solver(step=step)

    solvers.predictor_corrector(drawing("predictor", 2), drawing("corrector", 3)).step(
        lambda i: i, jnp.zeros(1), ((), ()), jnp.asarray(1.0), jnp.asarray(0.5), gaussian("vp")
    )
    assert [name for name, _ in used] == ["corrector"] * 3 + ["predictor"] * 2
    assert len({draw for _, draw in used}) == 5


# --- Langevin ---------------------------------------------------------------------------------------------------------

BY_SIGMA = {
    "langevin": lambda steps: solvers.langevin(0.3, steps),
    "annealed": lambda steps: solvers.annealed_langevin(1e-3, 0.1, steps),
}


@every_sde
@pytest.mark.parametrize("rule", BY_SIGMA)
@in_float64
def test_langevin_leaves_the_variance_of_its_closed_form(name: str, rule: str) -> None:
    """A step is p·x + q + c·z, with fixed points c²/(1 − p²) = v/(1 − ε/(2v)), v that of x(t), and q/(1 − p) = α·m."""
    process, t = PROCESSES[name], 0.4
    mean, variance = 0.7, 0.3
    oracle = Gaussian(SDES[name], jnp.full(1, mean), jnp.full((1, 1), variance))
    epsilon = {"langevin": 2 * (0.3 * process.sigma(t)) ** 2, "annealed": 1e-3 * (process.sigma(t) / 0.1) ** 2}[rule]
    v = process.alpha(t) ** 2 * variance + process.sigma(t) ** 2
    solver = BY_SIGMA[rule](1)

    def step(x: float, z: float) -> Any:
        return one_step(solver, oracle, jnp.full((1, 1), x), t, t, jnp.full((1, 1), z))[0][0, 0]

    q = step(0.0, 0.0)
    p, c = step(1.0, 0.0) - q, step(0.0, 1.0) - q
    np.testing.assert_allclose(c**2, 2 * epsilon, rtol=1e-9)
    np.testing.assert_allclose(c**2 / (1 - p**2), v / (1 - epsilon / (2 * v)), rtol=1e-9)
    np.testing.assert_allclose(q / (1 - p), process.alpha(t) * mean, rtol=1e-9)


@pytest.mark.parametrize("rule", [*BY_SIGMA, "batch"])
@in_float64
def test_n_langevin_steps_are_n_times_one_step(rule: str) -> None:
    make = {**BY_SIGMA, "batch": lambda steps: solvers.langevin(0.3, steps, norm="batch")}[rule]
    draws = np.random.default_rng(0).standard_normal((3, 4, 2))
    at_once = one_step(make(3), gaussian("vp"), X, 0.5, 0.5, *draws)
    x = jnp.asarray(X)
    for z in draws:
        x, mean = one_step(make(1), gaussian("vp"), x, 0.5, 0.5, z)
    chex.assert_trees_all_close(at_once, (x, mean), rtol=1e-10)


# --- solvers as values ------------------------------------------------------------------------------------------------


def test_a_users_plain_function_is_a_solver_under_jit() -> None:
    def step(noise: Any, x: Any, memory: Any, t: Any, s: Any, denoise: Any) -> Any:
        out = denoise(x, t)
        x = denoise.sde.alpha(s) * out.x0 + denoise.sde.sigma(s) * out.eps
        return x, x, memory

    run = jax.jit(lambda solver, keys: sample(keys, gaussian("subvp"), solver, times.uniform(SDES["subvp"], 8)))
    keys = sample_keys(0, 4)
    np.testing.assert_allclose(run(Solver(step=step), keys), run(solvers.ddim(), keys), rtol=1e-5)


def test_changing_a_solvers_numbers_does_not_recompile() -> None:
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(solver: Solver, keys: Any) -> Any:
        return sample(keys, gaussian("vp"), solver, times.uniform(SDES["vp"], 3))

    made = [
        solvers.predictor_corrector(solvers.ddim(eta), solvers.langevin(snr)) for eta, snr in ((0.3, 0.1), (1.0, 0.2))
    ]
    ends = [run(solver, sample_keys(0, 2)) for solver in made]
    assert not np.allclose(*ends)


@pytest.mark.parametrize("name", ["subvp", "ve"])
@in_float64
def test_gradients_by_eta_snr_and_times_are_those_of_finite_differences(name: str) -> None:
    oracle, keys = gaussian(name), sample_keys(0, 4)

    @jax.jit
    @jax.value_and_grad
    def loss(leaves: dict[str, Any]) -> Any:
        solver = solvers.predictor_corrector(solvers.ddim(leaves["eta"]), solvers.langevin(leaves["snr"]))
        return jnp.mean(jnp.square(sample(keys, oracle, solver, leaves["times"], jnp.asarray(X)))) / 2

    leaves = {"eta": jnp.asarray(0.5), "snr": jnp.asarray(0.2), "times": jnp.linspace(1, 0.1, 5)}
    gradient = loss(leaves)[1]
    directions = {"eta": 1.0, "snr": 1.0, "times": np.array([0.0, 1.0, -0.5, 0.3, 0.2])}
    for leaf, direction in directions.items():
        ahead, behind = (loss({**leaves, leaf: leaves[leaf] + h * direction})[0] for h in (1e-6, -1e-6))
        np.testing.assert_allclose(np.sum(gradient[leaf] * direction), (ahead - behind) / 2e-6, rtol=1e-5)


@every_sde
def test_the_gradient_by_eta_is_finite_at_the_ends_of_its_range(name: str) -> None:
    def loss(eta: Any) -> Any:
        return jnp.sum(one_step(solvers.ddim(eta), gaussian(name), X, 0.5, 0.4, Z)[0])

    slopes = jax.jit(jax.vmap(jax.grad(loss)))(jnp.asarray([0.0, 1.0]))
    assert np.all(np.isfinite(slopes)) and np.all(slopes != 0)


EVERY_SOLVER = {
    "euler_maruyama": solvers.euler_maruyama(),
    "reverse_diffusion": solvers.reverse_diffusion(),
    "ancestral": solvers.ancestral(),
    "ancestral beta": solvers.ancestral("beta"),
    "ddim": solvers.ddim(),
    "ddim 0.5": solvers.ddim(0.5),
    "heun": solvers.heun(),
    "pc": solvers.predictor_corrector(solvers.reverse_diffusion(), solvers.langevin(0.1)),
    "pc by batch": solvers.predictor_corrector(solvers.euler_maruyama(), solvers.langevin(0.1, norm="batch")),
    "pc annealed": solvers.predictor_corrector(solvers.ancestral(), solvers.annealed_langevin(1e-8, steps=2)),
}


@every_sde
def test_every_solver_goes_from_the_prior_to_near_the_datas_moments(name: str) -> None:
    """In float32, 100 steps down to the process's own t_min, 512 samples."""
    grid, rng = times.uniform(SDES[name], 100), np.random.default_rng(0)
    draws = rng.standard_normal((100, 4, 512, 2), np.float32)
    oracle, start = (
        Mixture(SDES[name], jnp.ones(1), MEAN[None], jnp.full(1, 0.5)),
        rng.standard_normal((512, 2), np.float32),
    )

    @jax.jit
    def run(start: Any, draws: Any) -> dict[str, Any]:
        def noise(keys: Any, stream: Any, x: Any, span: Any) -> Any:
            return lambda i: draws[stream - 1, i]

        x = SDES[name].prior_std() * start
        return {kind: sample(None, oracle, solver, grid, x, noise=noise) for kind, solver in EVERY_SOLVER.items()}

    for kind, x in run(start, draws).items():
        assert x.dtype == np.float32
        x = np.asarray(x, np.float64)
        np.testing.assert_allclose(x.mean(0), MEAN, atol=0.12, err_msg=kind)
        np.testing.assert_allclose(np.cov(x.T), 0.25 * np.eye(2), atol=0.12, err_msg=kind)
