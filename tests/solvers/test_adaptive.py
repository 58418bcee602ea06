"""The adaptive solver: accuracy, independence of samples, count of evaluations, and what it does when it cannot."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import ALL_SDES, SDES, gaussian_data, in_float64
from tiers import first

from diffuse_jax import solvers
from diffuse_jax.denoiser import Denoised, from_score
from diffuse_jax.oracles import Gaussian
from diffuse_jax.sampling import count_evaluations, decode, encode, sample_keys, solve
from diffuse_jax.sde import VP
from diffuse_jax.trees import pytree

MEAN, COV = gaussian_data(3)
KEYS = sample_keys(0, 4)


def gaussian(name: str) -> Gaussian:
    return Gaussian(SDES[name], jnp.asarray(MEAN), jnp.asarray(COV))


@pytest.mark.parametrize("name", first(SDES, keep=["ve"]))
@in_float64
def test_the_flow_is_followed_to_the_tolerance_whatever_the_batch_mates(name: str) -> None:
    oracle, times = gaussian(name), jnp.asarray([1.0, 0.3, 1e-3])
    x = SDES[name].prior_std() * jnp.asarray(np.random.default_rng(0).standard_normal((4, 3)))
    run = jax.jit(lambda tol, x: solve(KEYS, oracle, solvers.adaptive(tol, tol), times, x))
    loose, tight = run(1e-4, x), run(1e-8, x)
    exact = oracle.flow(x, 1.0, 1e-3)
    np.testing.assert_allclose(tight.x, exact, atol=1e-6)
    np.testing.assert_allclose(loose.x, exact, atol=1e-2)
    counts = [np.asarray(solution.memory.evaluations) for solution in (loose, tight)]
    assert np.all(counts[1] > counts[0])
    other = run(1e-4, x.at[1:].multiply(-30.0))
    np.testing.assert_array_equal(other.x[0], loose.x[0])
    others = np.asarray(other.memory.evaluations)
    assert others[0] == counts[0][0] and np.any(others[1:] != counts[0][1:])


CALLS: list[Any] = []


@pytree
class Counting:
    """An oracle that tells the host of every evaluation."""

    oracle: Gaussian

    @property
    def sde(self) -> Any:
        return self.oracle.sde

    def __call__(self, x: Any, t: Any, cond: Any = None) -> Denoised:
        jax.debug.callback(CALLS.append, t)
        return self.oracle(x, t, cond)


def test_evaluations_are_those_that_happened() -> None:
    """Over two intervals, at tolerances that reject steps and at one that does not."""
    start, times = jnp.full((1, 3), 4.0), jnp.asarray([1.0, 0.5, 1e-3])
    run = jax.jit(
        lambda tol: solve(KEYS[:1], Counting(gaussian("vp")), solvers.adaptive(tol, tol), times, start).memory
    )
    for tolerance in (1e-1, 1e-3, 1e-6):
        CALLS.clear()
        evaluations = int(run(tolerance).evaluations[0])
        jax.effects_barrier()
        assert evaluations == len(CALLS)


def test_a_sample_that_meets_the_bound_is_nan_and_marked_and_the_others_are_not() -> None:
    """A score whose stiffness is the sample's own: one sample is easy, the other is not."""
    denoise = from_score(SDES["vp"], lambda x, t: -jnp.where(x > 5, 1e4 * (x - 6), x))
    bound = 100
    run = jax.jit(lambda x: solvers.transport(denoise, x, 1.0, 0.5, max_evaluations=bound))
    end = run(jnp.asarray([[0.5], [10.0]]))
    assert np.isfinite(end.x[0, 0]) and np.isnan(end.x[1, 0])
    np.testing.assert_array_equal(end.exhausted, [False, True])
    assert end.evaluations[0] < bound and bound - 6 <= end.evaluations[1] <= bound
    assert end.largest_evaluations == end.evaluations[1] and end.mean_evaluations == np.mean(end.evaluations)
    solver, times = solvers.adaptive(max_evaluations=bound), jnp.asarray([1.0, 0.7, 0.5])
    memory = jax.jit(lambda x: solve(KEYS[:2], denoise, solver, times, x).memory)(jnp.asarray([[0.5], [10.0]]))
    np.testing.assert_array_equal(memory.exhausted, [False, True])
    with pytest.raises(ValueError, match="max_evaluations=6 must be at least 7"):
        solvers.transport(denoise, jnp.zeros((1, 1)), 1.0, 0.5, max_evaluations=6)


@pytest.mark.parametrize("name", first(["subvp", "edm", "flow"], keep=["flow"]))
@in_float64
def test_encoding_is_the_flow_to_the_end_of_time_and_decoding_its_inverse(name: str) -> None:
    sde = ALL_SDES[name]
    oracle, t_min, tolerance = Gaussian(sde, jnp.asarray(MEAN), jnp.asarray(COV)), 1e-2, 1e-9
    x = oracle.mean + jnp.asarray(np.random.default_rng(1).standard_normal((4, 3)))
    around = jax.jit(
        lambda x: (
            latent := encode(oracle, x, t_min=t_min, rtol=tolerance, atol=tolerance).x,
            decode(oracle, latent, t_min=t_min, rtol=tolerance, atol=tolerance).x,
        )
    )
    latent, back = around(x)
    end = sde.t_start
    np.testing.assert_allclose(latent, oracle.flow(x, t_min, end), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(back, x, rtol=1e-6, atol=1e-6)


@in_float64
def test_the_transport_is_differentiable_by_its_start_and_by_the_process() -> None:
    """The derivative of the Gaussian flow by x is C_s^{1/2}·C_t^{−1/2}; that by β_max is a finite difference of the
    closed form."""

    def end(x: Any, beta_max: Any) -> Any:
        oracle = Gaussian(VP(beta_max=beta_max), jnp.asarray(MEAN), jnp.asarray(COV))
        return solvers.transport(oracle, x, 1.0, 0.1, rtol=1e-9, atol=1e-9).x

    def exact(x: Any, beta_max: Any) -> Any:
        return Gaussian(VP(beta_max=beta_max), jnp.asarray(MEAN), jnp.asarray(COV)).flow(x, 1.0, 0.1)

    x, weights = jnp.asarray([[0.4, -1.0, 0.7]]), jnp.asarray([[0.5, 1.0, -2.0]])
    by_x, by_beta = jax.jit(jax.grad(lambda x, b: jnp.sum(weights * end(x, b)), (0, 1)))(x, 20.0)
    np.testing.assert_allclose(by_x, jax.grad(lambda x: jnp.sum(weights * exact(x, 20.0)))(x), rtol=1e-6)
    ahead, behind = (jnp.sum(weights * exact(x, 20.0 + h)) for h in (1e-4, -1e-4))
    np.testing.assert_allclose(by_beta, (ahead - behind) / 2e-4, rtol=1e-5)


def test_a_corrector_goes_with_it_and_its_evaluations_are_added() -> None:
    solver = solvers.predictor_corrector(solvers.adaptive(1e-3, 1e-3), solvers.langevin(0.1, steps=2))
    times = jnp.asarray([1.0, 0.5, 1e-2])
    run = jax.jit(lambda: solve(KEYS, gaussian("vp"), solver, times))
    solution = run()
    assert np.all(np.isfinite(solution.x))
    own = np.asarray(solution.memory[0].evaluations)
    np.testing.assert_array_equal(count_evaluations(solver, times, solution.memory), own + 2 * 2)


def test_a_denoiser_that_holds_arrays_of_every_sample_is_refused_and_low_precision_is_promoted() -> None:
    points = jnp.asarray([[1.0], [2.0]])
    held = from_score(SDES["vp"], lambda x, t: points - x)
    with pytest.raises(ValueError, match="must be given as cond"):
        solvers.transport(held, jnp.zeros((2, 1)), 0.5, 0.4)
    still = from_score(SDES["vp"], lambda x, t: -x)
    for x in (jnp.asarray([[2]]), jnp.asarray([[2.0]], jnp.bfloat16)):
        end = encode(still, x)
        assert end.x.dtype == np.float32
        np.testing.assert_allclose(end.x, [[2.0]], rtol=1e-5)
