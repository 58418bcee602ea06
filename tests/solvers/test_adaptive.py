"""The adaptive solver: accuracy, independence of samples, count of evaluations, and what it does when it cannot."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import SDES, gaussian_data, in_float64

from diffuse_jax import solvers
from diffuse_jax._pytree import pytree
from diffuse_jax.denoiser import Denoised, from_score
from diffuse_jax.oracles import Gaussian
from diffuse_jax.sampling import sample_keys, solve

every_sde = pytest.mark.parametrize("name", SDES)
MEAN, COV = gaussian_data(3)
KEYS = sample_keys(0, 0, 4)


def gaussian(name: str) -> Gaussian:
    return Gaussian(SDES[name], jnp.asarray(MEAN), jnp.asarray(COV))


@every_sde
@in_float64
def test_the_flow_is_followed_to_the_tolerance_whatever_the_batch_mates(name: str) -> None:
    oracle, times = gaussian(name), jnp.asarray([1.0, 0.3, 1e-3])
    x = SDES[name].prior_std() * jnp.asarray(np.random.default_rng(0).standard_normal((4, 3)))
    run = jax.jit(lambda tol, x: solve(KEYS, oracle, solvers.adaptive(tol, tol), times, x))
    loose, tight = run(1e-4, x), run(1e-8, x)
    exact = oracle.flow(x, 1.0, 1e-3)
    np.testing.assert_allclose(tight.x, exact, atol=1e-6)
    np.testing.assert_allclose(loose.x, exact, atol=1e-2)
    assert np.all(tight.memory > loose.memory)
    other = run(1e-4, x.at[1:].multiply(-30.0))
    np.testing.assert_array_equal(other.x[0], loose.x[0])
    assert other.memory[0] == loose.memory[0] and np.any(other.memory[1:] != loose.memory[1:])


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
        evaluations = int(run(tolerance)[0])
        jax.effects_barrier()
        assert evaluations == len(CALLS)


def test_a_sample_that_needs_too_many_steps_is_nan_and_says_so_alone() -> None:
    """A score whose stiffness is the sample's own: one sample is easy, the other is not."""
    denoise = from_score(SDES["vp"], lambda x, t: -jnp.where(x > 5, 1e4 * (x - 6), x))
    run = jax.jit(lambda x: solve(KEYS[:2], denoise, solvers.adaptive(max_steps=16), jnp.asarray([1.0, 0.5]), x).x)
    end = run(jnp.asarray([[0.5], [10.0]]))
    assert np.isfinite(end[0, 0]) and np.isnan(end[1, 0])
