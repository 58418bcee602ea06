"""score_sde's sampler against its formulas in float64 NumPy, state by state, on the same noise."""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import SDES, in_float64
from tiers import first

from diffuse_jax import parameterizations, solvers, times
from diffuse_jax.config import ConfigError, base, sampling_plan
from diffuse_jax.denoiser import NetworkDenoiser, from_score
from diffuse_jax.sampling import count_evaluations, denoise_once, keyed_noise, last_mean, last_state, sample_keys, solve
from diffuse_jax.sde import EDM, SDE, VE, VP, DiscreteVE, DiscreteVP, SubVP, geometric_sigmas, linear_betas

SHAPE = (3, 2, 2, 2)
EPS = {"vp": 1e-3, "subvp": 1e-3, "ve": 1e-5, "ddpm": 1e-3, "smld": 1e-5}
DISCRETIZATION = {"subvp": "euler"}
VPS = ("vp", "ddpm")


# --- the formulas -----------------------------------------------------------------------------------------------------


def alpha_sigma(xp: Any, name: str, t: Any) -> tuple[Any, Any]:
    if name in ("ve", "smld"):
        return 1.0, 0.01 * 5000.0**t
    b = 0.1 * t + 9.95 * t**2
    return xp.exp(-b / 2), (xp.sqrt(1 - xp.exp(-b)) if name in VPS else 1 - xp.exp(-b))


def score_of_mixture(xp: Any, name: str, x: Any, t: Any) -> Any:
    """The score of entries that are ±0.7 with deviation 0.3."""
    alpha, sigma = alpha_sigma(xp, name, t)
    mean, variance = 0.7 * alpha, (0.3 * alpha) ** 2 + sigma**2
    return (mean * xp.tanh(mean * x / variance) - x) / variance


def network(xp: Any, name: str, n: int, x: Any, label: Any) -> Any:
    """A network that reads labels 0 … N − 1: eps of DDPM's, the score of SMLD's, whose labels descend in noise."""
    if name == "ddpm":
        return 0.8 * xp.tanh(1.5 * x) + 0.1 * xp.sin(label / 3)
    return score_of_mixture(xp, name, x, 1 - label / (n - 1))


class Sampler(NamedTuple):
    """score_sde's options."""

    name: str
    predictor: str
    corrector: str | None = None
    n: int = 30
    n_steps: int = 1
    probability_flow: bool = False
    snr: float = 0.16


class Draws(NamedTuple):
    """x(T), and the normal draws of each step."""

    x: np.ndarray
    predictor: np.ndarray
    corrector: np.ndarray


def draws(sampler: Sampler) -> Draws:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(SHAPE) * (50.0 if sampler.name in ("ve", "smld") else 1.0)
    shape = (sampler.n, sampler.n_steps, *SHAPE)
    return Draws(x, rng.standard_normal((sampler.n, *SHAPE)), rng.standard_normal(shape))


def transcription(sampler: Sampler, given: Draws) -> tuple[np.ndarray, np.ndarray]:
    """The states after each step (N, …), and the last mean."""
    name, predictor, corrector, n, _, flow, snr = sampler
    betas, sigmas = np.linspace(0.1 / n, 20 / n, n), np.exp(np.linspace(np.log(0.01), np.log(50), n))
    std_table = np.sqrt(1 - np.cumprod(1 - betas))
    half = 0.5 if flow else 1.0

    def score(x: np.ndarray, t: float) -> np.ndarray:
        if name == "ddpm":
            return -network(np, name, n, x, t * (n - 1)) / std_table[int(t * (n - 1))]
        if name == "smld":
            return network(np, name, n, x, np.round((1 - t) * (n - 1)))
        return score_of_mixture(np, name, x, t)

    def norm(a: np.ndarray) -> float:
        return float(np.mean(np.sqrt(np.sum(a.reshape(len(a), -1) ** 2, axis=1))))

    x, x_mean, states = given.x, given.x, []
    for k, t in enumerate(np.linspace(1, EPS[name], n)):
        i = int(t * (n - 1))
        beta, sigma, below = betas[i], sigmas[i], sigmas[i - 1] if i else 0.0
        for z in given.corrector[k] if corrector else ():
            s = score(x, t)
            ratio = snr * norm(z) / norm(s) if corrector == "langevin" else snr * alpha_sigma(np, name, t)[1]
            epsilon = 2 * (1 - beta if name in VPS else 1.0) * ratio**2
            x = x + epsilon * s + np.sqrt(2 * epsilon) * z
        z, b = given.predictor[k], 0.1 + 19.9 * t
        if predictor == "none":
            x_mean = x
        elif predictor == "ancestral" and name in VPS:
            x_mean = (x + beta * score(x, t)) / np.sqrt(1 - beta)
            x = x_mean + np.sqrt(beta) * z
        elif predictor == "ancestral":
            x_mean = x + (sigma**2 - below**2) * score(x, t)
            x = x_mean + np.sqrt(below**2 * (sigma**2 - below**2) / sigma**2) * z
        else:
            g2 = {
                **dict.fromkeys(VPS, b),
                "subvp": b * (1 - np.exp(-0.2 * t - 19.9 * t**2)),
                **dict.fromkeys(("ve", "smld"), (0.01 * 5000.0**t) ** 2 * 2 * np.log(5000)),
            }[name]
            drift = 0.0 if name in ("ve", "smld") else -b / 2 * x
            if predictor == "euler_maruyama" or name == "subvp":
                f, variance = drift / n, g2 / n
            elif name in VPS:
                f, variance = (np.sqrt(1 - beta) - 1) * x, beta
            else:
                f, variance = 0.0, sigma**2 - below**2
            x_mean = x - (f - variance * score(x, t) * half)
            x = x_mean if flow else x_mean + np.sqrt(variance) * z
        states.append(x)
    return np.stack(states), x_mean


# --- the library ------------------------------------------------------------------------------------------------------


def process(name: str, n: int) -> SDE:
    if name == "ddpm":
        return DiscreteVP(linear_betas(n, 0.1 / n, 20 / n))
    return DiscreteVE(geometric_sigmas(0.01, 50.0, n)) if name == "smld" else SDES[name]


def denoiser(name: str, n: int) -> Any:
    if name not in ("ddpm", "smld"):
        return from_score(SDES[name], functools.partial(score_of_mixture, jnp, name))

    def net(params: Any, x: Any, label: Any) -> Any:
        return network(jnp, name, n, x, label[:, None, None, None])

    kinds = {
        "ddpm": parameterizations.noise._replace(c_noise=parameterizations.c_noise_index),
        "smld": parameterizations.score._replace(c_noise=parameterizations.c_noise_reversed_index),
    }
    return NetworkDenoiser(process(name, n), None, net, kinds[name])


def solver_of(sampler: Sampler) -> solvers.Solver:
    return solvers.score_sde(
        sampler.predictor,
        sampler.corrector,
        DISCRETIZATION.get(sampler.name, sampler.name),
        snr=sampler.snr,
        steps=sampler.n_steps,
        probability_flow=sampler.probability_flow,
    )


def grid_of(name: str, n: int) -> Any:
    return times.score_sde(process(name, n), n, EPS[name])


def run(sampler: Sampler, given: Draws) -> tuple[np.ndarray, np.ndarray]:
    """What `transcription` gives, of the library."""
    predicted, corrected = jnp.asarray(given.predictor), jnp.asarray(given.corrector)

    def recorded(keys: Any, stream: Any, x: Any, span: Any) -> Callable[[Any], Any]:
        if sampler.corrector is None:
            return lambda i: predicted[stream - 1]
        # predictor_corrector's: even draws are the corrector's, odd ones the predictor's
        return lambda i: jnp.where(i % 2, predicted[stream - 1], corrected[stream - 1, i // 2])

    @jax.jit
    def go(x: Any) -> Any:
        network, grid = denoiser(sampler.name, sampler.n), grid_of(sampler.name, sampler.n)
        return solve(None, network, solver_of(sampler), grid, x, noise=recorded, path=True)

    solution = go(jnp.asarray(given.x))
    assert solution.path is not None
    return np.asarray(solution.path[1:]), np.asarray(solution.mean)


def deviation(sampler: Sampler) -> float:
    """The largest difference of a state, or of the last mean, relative to the largest entry of that state."""
    given = draws(sampler)
    worst = 0.0
    for found, expected in zip(run(sampler, given), transcription(sampler, given), strict=True):
        assert found.shape == expected.shape and np.all(np.isfinite(expected))
        found, expected = (a.reshape(-1, np.prod(SHAPE)) for a in (found, expected))
        worst = max(worst, np.max(np.max(np.abs(found - expected), 1) / np.max(np.abs(expected), 1)))
    return worst


PUBLISHED = [
    Sampler("vp", "reverse_diffusion", "langevin", n=1000),
    Sampler("ve", "reverse_diffusion", "langevin", n=1000),
    Sampler("smld", "reverse_diffusion", "langevin", n=1000),
    Sampler("vp", "euler_maruyama", n=1000),
    Sampler("subvp", "euler_maruyama", n=1000),
    Sampler("ddpm", "ancestral", n=1000),
    Sampler("smld", "none", "ald", n=10, n_steps=100, snr=0.316),
]
REST = [
    Sampler("vp", "ancestral", "ald", n_steps=2),
    Sampler("vp", "reverse_diffusion", probability_flow=True),
    Sampler("vp", "euler_maruyama", "langevin", n_steps=3, probability_flow=True),
    Sampler("vp", "none", "langevin", n_steps=2),
    Sampler("ve", "ancestral", "langevin"),
    Sampler("ve", "euler_maruyama", "ald", n=200),
    Sampler("ve", "reverse_diffusion", probability_flow=True),
    Sampler("subvp", "reverse_diffusion"),
    Sampler("subvp", "reverse_diffusion", probability_flow=True),
    Sampler("ddpm", "reverse_diffusion", "langevin", n_steps=2),
    Sampler("smld", "ancestral", "ald"),
]


def label(sampler: Sampler) -> str:
    return " ".join(str(value) for value in sampler if value not in (None, False))


@pytest.mark.parametrize("sampler", first([*PUBLISHED, *REST], keep=[*PUBLISHED[:2], *REST[::4]]), ids=label)
@in_float64
def test_every_state_is_that_of_score_sde(sampler: Sampler) -> None:
    assert deviation(sampler) < 1e-9


@pytest.mark.parametrize("sampler", PUBLISHED[:2], ids=label)
def test_in_float32_the_published_samplers_stay_with_the_formulas(sampler: Sampler) -> None:
    assert deviation(sampler) < 2e-3


@pytest.mark.parametrize(("name", "n"), [("vp", 1000), ("ve", 1000), ("ve", 2000), ("ddpm", 1000), ("smld", 1086)])
def test_in_float32_each_entry_of_the_table_is_met_once_in_order(name: str, n: int) -> None:
    """From x = 0 under no score a reverse-diffusion step is √v_i·z, here for z = 1."""

    def net(params: Any, x: Any, label: Any) -> Any:
        return jnp.zeros_like(x)

    silent = NetworkDenoiser(process(name, n), None, net)
    solver, grid, zero = solver_of(Sampler(name, "reverse_diffusion")), grid_of(name, n), jnp.zeros((1, 1))
    memory = solver.init(zero, grid, silent)
    moved = jax.jit(jax.vmap(lambda t: solver.step(lambda i: 1.0, zero, memory, t, t, silent)[0]))(grid[:-1])
    sigmas = np.geomspace(0.01, 50, n)
    steps = np.linspace(0.1 / n, 20 / n, n) if name in VPS else np.diff(sigmas**2, prepend=0)
    assert moved.dtype == jnp.float32
    # Neighbours differ by more, except β's at the far end, by 1/N.
    np.testing.assert_allclose(np.squeeze(moved), np.sqrt(steps[::-1]), rtol=2e-4)


@in_float64
def test_the_grid_is_a_linspace_with_its_end_twice() -> None:
    np.testing.assert_allclose(times.score_sde(VE(), 7), [*np.linspace(1, 1e-5, 7), 1e-5], rtol=1e-14)
    # Of a table, in its labels.
    of_table = times.score_sde(process("ddpm", 30), 30, 1e-3)
    labels = np.linspace(1, 1e-3, 30) * 29
    np.testing.assert_allclose(of_table, [*(labels + 1) / 30, (labels[-1] + 1) / 30], rtol=1e-14)
    own = process("smld", 7)
    np.testing.assert_allclose(times.score_sde(own, 7)[:-1], own.table_times()[::-1], rtol=1e-14)


@pytest.mark.parametrize(
    ("predictor", "corrector", "per_step"),
    [("reverse_diffusion", None, 1), ("ancestral", "langevin", 4), ("none", "ald", 3)],
)
def test_evaluations_are_counted_as_they_are_made(predictor: str, corrector: str | None, per_step: int) -> None:
    calls: list[None] = []

    def counted(x: Any, t: Any) -> Any:
        jax.debug.callback(lambda: calls.append(None))
        return -x

    solver, grid = solvers.score_sde(predictor, corrector, "ve", steps=3), times.score_sde(VE(), 5)
    keys, denoise = sample_keys(0, 3), from_score(VE(), counted)
    solution = jax.jit(lambda x: solve(keys, denoise, solver, grid, x))(jnp.ones((3, 2)))
    jax.effects_barrier()
    assert len(calls) == count_evaluations(solver, grid, solution.memory) == 5 * per_step


def test_a_step_size_can_be_traced_and_equal_solvers_compile_once() -> None:
    denoise, grid = from_score(VP(), functools.partial(score_of_mixture, jnp, "vp")), times.score_sde(VP(), 30)
    traced = []

    @jax.jit
    def go(solver: Any, x: Any) -> Any:
        traced.append(None)
        return solve(sample_keys(0, 2), denoise, solver, grid, x).x

    x = jnp.ones((2, 2))
    first, second = (go(solvers.score_sde("ancestral", "ald", snr=snr), x) for snr in (0.1, 0.2))
    assert len(traced) == 1 and not np.allclose(first, second)


# --- what it has not --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"predictor": "heun"}, "predictor='heun' must be one of 'euler_maruyama', 'reverse_diffusion'"),
        ({"corrector": "mala"}, "corrector='mala' must be one of None, 'langevin', 'ald'"),
        ({"discretization": "edm"}, "discretization='edm' must be one of 'vp', 've'"),
        ({"predictor": "none"}, "would do nothing"),
        ({"predictor": "ancestral", "discretization": "euler"}, "no ancestral steps for sub-VP"),
        ({"corrector": "langevin", "discretization": "euler"}, "correctors fail for sub-VP"),
        ({"predictor": "ancestral", "probability_flow": True}, "no probability flow"),
        ({"predictor": "euler_maruyama", "discretization": "smld"}, "continuous time"),
        ({"corrector": "ald", "steps": 0}, "steps=0"),
        ({"corrector": "ald", "snr": -0.1}, "snr=-0.1"),
    ],
)
def test_what_score_sde_has_not_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"score_sde: .*{re.escape(message)}"):
        solvers.score_sde(**arguments)


@pytest.mark.parametrize(
    ("predictor", "corrector"), [("reverse_diffusion", None), ("ancestral", None), ("euler_maruyama", "langevin")]
)
def test_so_few_steps_that_a_beta_reaches_one_are_refused(predictor: str, corrector: str | None) -> None:
    denoise, solver = from_score(VP(), lambda x, t: -x), solvers.score_sde(predictor, corrector, "vp")
    with pytest.raises(ValueError, match="20 steps are too few for vp, whose last β is β_max/N = 1 "):
        solver.init(jnp.zeros((1, 1)), times.score_sde(VP(), 20), denoise)
    solver.init(jnp.zeros((1, 1)), times.score_sde(VP(), 21), denoise)


def test_a_table_of_another_length_is_refused() -> None:
    sde = process("ddpm", 50)
    with pytest.raises(ValueError, match="n=40 must be 50"):
        times.score_sde(sde, 40)
    solver = solvers.score_sde("ancestral", None, "ddpm")
    with pytest.raises(ValueError, match="40 steps do not suit ddpm, whose table has 50"):
        solver.init(jnp.zeros((1, 1)), times.uniform(sde, 40), from_score(sde, lambda x, t: -x))
    with pytest.raises(ValueError, match=r"t_min=0\.03 must be at least 0 and below 0\.02041"):
        times.score_sde(sde, 50, 0.03)


@pytest.mark.parametrize(("discretization", "name"), [("vp", "subvp"), ("vp", "ve"), ("ve", "smld"), ("ddpm", "vp")])
def test_the_discretization_of_another_process_is_refused(discretization: str, name: str) -> None:
    sde, solver = process(name, 30), solvers.score_sde("reverse_diffusion", None, discretization)
    with pytest.raises(ValueError, match=f"discretization='{discretization}' is that of .*, not of "):
        solver.init(jnp.zeros((1, 1)), times.score_sde(sde, 30), from_score(sde, lambda x, t: -x))


# --- config.sampling --------------------------------------------------------------------------------------------------


def plan(sde: SDE, solver: str, **fields: Any) -> Any:
    config = base()
    config.sampling.update(solver=solver, **fields)
    return sampling_plan(config, sde)


@pytest.mark.parametrize(
    ("name", "solver", "fields", "sampler"),
    [
        ("vp", "euler_maruyama", {}, Sampler("vp", "euler_maruyama")),
        ("subvp", "euler_maruyama", {"kappa": 0.0}, Sampler("subvp", "euler_maruyama", probability_flow=True)),
        (
            "ve",
            "reverse_diffusion+langevin",
            {"snr": 0.17, "corrector_steps": 2},
            Sampler("ve", "reverse_diffusion", "langevin", n_steps=2, snr=0.17),
        ),
        ("ddpm", "ancestral", {}, Sampler("ddpm", "ancestral")),
        ("smld", "none+ald", {}, Sampler("smld", "none", "ald")),
    ],
)
def test_a_name_in_a_config_brings_its_process_and_its_grid(
    name: str, solver: str, fields: dict[str, Any], sampler: Sampler
) -> None:
    found = plan(process(name, 30), f"score_sde:{solver}", steps=30, **fields)
    assert jax.tree.structure(found.solver) == jax.tree.structure(solver_of(sampler))
    assert jax.tree.leaves(found.solver) == jax.tree.leaves(solver_of(sampler))
    np.testing.assert_array_equal(found.times, grid_of(name, 30))
    assert found.finish is last_mean and found.noise is keyed_noise
    assert plan(process(name, 30), f"score_sde:{solver}", steps=30, finish="state").finish is last_state


def test_the_cut_off_of_a_config_is_its_own() -> None:
    assert plan(VP(), "score_sde:ancestral", steps=30, t_min=1e-5).times[-1] == np.float32(1e-5)
    assert plan(VP(), "score_sde:ancestral", steps=30, finish="denoise").finish is denoise_once


@pytest.mark.parametrize(
    ("sde", "solver", "fields", "message"),
    [
        (EDM(), "score_sde:ancestral", {}, "config.sampling.solver='score_sde:ancestral' is not for EDM, but for VP"),
        (VP(), "score_sde:heun", {}, "config.sampling: score_sde: predictor='heun'"),
        (VP(), "score_sde:ancestral+batch_langevin", {}, "config.sampling: score_sde: corrector='batch_langevin'"),
        (SubVP(), "score_sde:euler_maruyama+langevin", {}, "config.sampling: score_sde: .*correctors fail for sub-VP"),
        (VP(), "score_sde:ancestral", {"grid": "karras"}, "config.sampling.grid='karras' is not read by score_sde:"),
        (VP(), "score_sde:ancestral", {"kappa": 0.5}, "config.sampling.kappa=0.5 must be 1 .* or 0"),
        (VP(), "score_sde:ancestral", {"eta": 0.5}, "config.sampling.eta=0.5 is not read by score_sde:ancestral"),
        (VP(), "score_sde:ancestral", {"steps": 20}, "config.sampling: score_sde: 20 steps are too few"),
        (DiscreteVP(linear_betas(50)), "score_sde:ancestral", {}, "config.sampling: n=30 must be 50"),
    ],
)
def test_what_a_config_cannot_have_is_named(sde: SDE, solver: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(sde, solver, **{"steps": 30, **fields})
