"""Sampling: one sample's randomness is its own in every batch, shard and device; and what the ends of a solve mean."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import PROCESSES, SDES, gaussian_data
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from diffuse_jax import solvers, times
from diffuse_jax.denoiser import Conditioned, from_score
from diffuse_jax.likelihood import log_prob
from diffuse_jax.oracles import Gaussian, PointMass
from diffuse_jax.sampling import (
    denoise_once,
    keyed_noise,
    last_mean,
    last_state,
    prior_sample,
    sample,
    sample_keys,
    solve,
)

MEAN, COV = gaussian_data(2)
VP = SDES["vp"]
ORACLE = Gaussian(VP, jnp.asarray(MEAN, jnp.float32), jnp.asarray(COV, jnp.float32))
SOLVER = solvers.predictor_corrector(solvers.ancestral(), solvers.langevin(0.1))
GRID = np.linspace(1, 0.05, 9, dtype=np.float32)


@jax.jit
def run(keys: Any) -> tuple[Any, Any]:
    """The fifth step's noise and the sample, of each key."""
    noise = keyed_noise(keys, 5, jnp.zeros((keys.shape[0], 2)))(1)
    return noise, sample(keys, ORACLE, SOLVER, GRID)


@pytest.fixture(scope="module")
def of_64() -> tuple[np.ndarray, np.ndarray]:
    noise, x = run(sample_keys(0, 64))
    return np.asarray(noise), np.asarray(x)


@pytest.mark.parametrize(("first", "n"), [(0, 1), (50, 7)])
def test_a_sample_is_the_same_in_every_batch(of_64: Any, first: int, n: int) -> None:
    noise, x = run(sample_keys(0, n, first=first))
    np.testing.assert_array_equal(noise, of_64[0][first : first + n])
    np.testing.assert_allclose(x, of_64[1][first : first + n], rtol=1e-6, atol=1e-6)


def test_a_sample_is_the_same_on_eight_devices_of_a_mesh(of_64: Any) -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    keys = jax.device_put(sample_keys(0, 64), NamedSharding(mesh, PartitionSpec("data")))
    noise, x = run(keys)
    assert len(x.sharding.device_set) == 8
    np.testing.assert_array_equal(noise, of_64[0])
    np.testing.assert_allclose(x, of_64[1], rtol=1e-6, atol=1e-6)


def test_a_sample_is_the_same_under_pmap(of_64: Any) -> None:
    noise, x = jax.pmap(run)(sample_keys(0, 64).reshape(8, 8))
    np.testing.assert_array_equal(noise.reshape(64, 2), of_64[0])
    np.testing.assert_allclose(x.reshape(64, 2), of_64[1], rtol=1e-6, atol=1e-6)


def test_chunks_of_keys_are_one_call_and_a_seed_may_be_a_key() -> None:
    whole = sample_keys(3, 10)
    chunks = jnp.concatenate([sample_keys(3, 4), sample_keys(3, 6, first=4)])
    from_key = sample_keys(jax.random.key(3), 10)
    for keys in (chunks, from_key, jax.jit(sample_keys, static_argnums=1)(3, 10)):
        np.testing.assert_array_equal(jax.random.key_data(keys), jax.random.key_data(whole))
    assert len(np.unique(jax.random.key_data(whole), axis=0)) == 10


def test_vmapping_over_seeds_equals_a_loop() -> None:
    looped = jnp.stack([run(sample_keys(seed, 7))[1] for seed in (1, 2)])
    vmapped = jax.vmap(lambda seed: run(sample_keys(seed, 7))[1])(jnp.asarray([1, 2]))
    np.testing.assert_allclose(vmapped, looped, rtol=1e-6, atol=1e-6)
    assert not np.allclose(looped[0], looped[1])


@pytest.mark.parametrize("stream", [0, 1])
def test_draws_are_standard_normal_and_independent_between_streams_and_indices(stream: int) -> None:
    n = 4000
    noise = keyed_noise(sample_keys(0, n), stream, jnp.zeros((n, 2)))
    draws = np.concatenate(
        [noise(0), noise(1), keyed_noise(sample_keys(0, n), stream + 2, jnp.zeros((n, 2)))(0)], axis=1
    )
    np.testing.assert_allclose(draws.mean(0), 0, atol=5 / np.sqrt(n))
    np.testing.assert_allclose(np.cov(draws.T), np.eye(6), atol=5 * np.sqrt(2 / n))


@pytest.mark.parametrize("name", SDES)
def test_the_prior_sample_has_the_priors_deviation(name: str) -> None:
    n = 4000
    x = prior_sample(sample_keys(0, n), PointMass(SDES[name], jnp.zeros((2, 1))))
    assert x.shape == (n, 2, 1)
    np.testing.assert_allclose(np.std(x), 50.0 if name == "ve" else 1.0, rtol=5 / np.sqrt(4 * n))


def test_without_a_shape_the_prior_asks_for_one() -> None:
    denoise, keys = from_score(VP, lambda x, t: -x), sample_keys(0, 2)
    with pytest.raises(ValueError, match="shape of one sample is unknown"):
        sample(keys, denoise, solvers.ddim(), GRID)
    assert prior_sample(keys, denoise, (3,)).shape == (2, 3)
    with pytest.raises(ValueError, match="needs keys"):
        sample(None, ORACLE, solvers.ddim(), GRID)


# --- ends -------------------------------------------------------------------------------------------------------------


def test_a_path_has_both_ends_and_every_state_between() -> None:
    keys, x = sample_keys(0, 3), jnp.ones((3, 2))
    whole = jax.jit(lambda x: solve(keys, ORACLE, solvers.ddim(), GRID, x, path=True))(x)
    assert whole.path.shape == (len(GRID), 3, 2)
    np.testing.assert_array_equal(whole.path[0], x)
    np.testing.assert_array_equal(whole.path[-1], whole.x)
    half = solve(keys, ORACLE, solvers.ddim(), GRID[4:], whole.path[4])
    np.testing.assert_allclose(half.x, whole.x, rtol=1e-5, atol=1e-6)
    assert half.path is None


def test_a_solve_may_start_from_given_states_at_an_intermediate_time() -> None:
    """The flow of a point mass keeps eps, so the start at t = 0.4 is known at t = 0.05."""
    process, point, eps = PROCESSES["vp"], np.array([0.3, -0.8]), np.array([[1.0, -2.0], [0.5, 0.0]])
    start = process.alpha(0.4) * point + process.sigma(0.4) * eps
    grid = jnp.asarray([0.4, 0.2, 0.05])
    denoise = PointMass(VP, jnp.asarray(point))
    end = sample(sample_keys(0, 2), denoise, solvers.ddim(), grid, jnp.asarray(start), finish=last_state)
    np.testing.assert_allclose(end, process.alpha(0.05) * point + process.sigma(0.05) * eps, rtol=1e-5)
    np.testing.assert_allclose(
        sample(sample_keys(0, 2), denoise, solvers.ddim(), grid, jnp.asarray(start), finish=denoise_once),
        np.broadcast_to(point, (2, 2)),
        rtol=1e-6,
    )


def test_the_ends_of_a_solve_are_what_they_are_named_for() -> None:
    """last_mean, the default, is last_state less the last step's noise; denoise_once is E[x0 | x] of last_state."""
    keys = sample_keys(0, 5)

    @jax.jit
    def ends(keys: Any) -> Any:
        solver = solvers.ancestral()
        given = {finish: sample(keys, ORACLE, solver, GRID, finish=finish) for finish in (last_state, denoise_once)}
        return (
            sample(keys, ORACLE, solver, GRID),
            last_mean(solve(keys, ORACLE, solver, GRID), GRID[-1], ORACLE),
            *given.values(),
        )

    by_default, mean, state, denoised = ends(keys)
    t, s = (np.float64(v) for v in GRID[-2:])
    process = PROCESSES["vp"]
    variance = process.sigma(s) ** 2 * -np.expm1(process.log_snr(t) - process.log_snr(s))
    z = keyed_noise(keys, len(GRID) - 1, state)(0)
    np.testing.assert_allclose(mean + np.sqrt(variance) * z, state, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(by_default, mean)
    alpha, sigma = process.alpha(s), process.sigma(s)
    gain = alpha * COV @ np.linalg.inv(alpha**2 * COV + sigma**2 * np.eye(2))
    x = np.asarray(state, np.float64)
    np.testing.assert_allclose(denoised, MEAN + (x - alpha * MEAN) @ gain.T, rtol=1e-4, atol=1e-5)


def test_a_condition_reaches_every_evaluation_and_the_finish() -> None:
    """A score whose data are the point that the condition names."""
    denoise = from_score(VP, lambda x, t, point: (VP.alpha(t) * point - x) / jnp.square(VP.sigma(t)), shape=(2,))
    point = jnp.asarray([[1.0, 2.0], [-3.0, 0.5]])
    for solver in (solvers.heun(), solvers.adaptive(1e-4, 1e-4)):
        found = sample(sample_keys(0, 2), denoise, solver, times.uniform(VP, 2), cond=point, finish=denoise_once)
        np.testing.assert_allclose(found, point, rtol=1e-3)
        bound = sample(sample_keys(0, 2), Conditioned(denoise, point), solver, times.uniform(VP, 2))
        chex.assert_trees_all_equal(bound, sample(sample_keys(0, 2), denoise, solver, times.uniform(VP, 2), cond=point))


def test_a_bound_condition_is_that_of_each_sample_in_the_likelihood() -> None:
    denoise = from_score(VP, lambda x, t, mean: VP.alpha(t) * mean - x)  # data N(mean, I), whose flow is a shift
    mean, x = jnp.asarray([[1.0, 2.0], [-3.0, 0.5]]), jnp.zeros((2, 2))
    bound = log_prob(Conditioned(denoise, mean), x).log_prob
    chex.assert_trees_all_equal(bound, log_prob(denoise, x, cond=mean).log_prob)
    np.testing.assert_allclose(bound, -0.5 * jnp.sum(mean**2, -1) - jnp.log(2 * jnp.pi), rtol=1e-2)


def test_recorded_noise_replaces_the_keys() -> None:
    asked: list[Any] = []

    def noise(keys: Any, stream: Any, x: Any, span: Any) -> Any:
        asked.append(stream)
        return lambda i: jnp.zeros_like(x)

    keys, x = sample_keys(0, 2), jnp.ones((2, 2))
    still = sample(keys, ORACLE, solvers.ddim(1.0), GRID, x, noise=noise, finish=last_state)
    chex.assert_trees_all_close(still, sample(keys, ORACLE, solvers.ddim(1.0), GRID, x, noise=noise, finish=last_mean))
    assert asked
