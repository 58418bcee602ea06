"""Likelihoods by the flow against closed forms, the trace estimators, and bits a dimension of laws that are known."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from closed_forms import MIXTURE, PROCESSES, SDES, gaussian_data, gaussian_flow_log_prob, in_float64

from diffuse_jax.denoiser import from_score
from diffuse_jax.likelihood import (
    bits_per_dim,
    dequantize,
    exact_trace,
    hutchinson_trace,
    log_prob,
    nats_to_bits_per_dim,
)
from diffuse_jax.oracles import Gaussian, Mixture
from diffuse_jax.sampling import sample_keys

MEAN, COV = gaussian_data(8)
X = np.random.default_rng(0).multivariate_normal(MEAN, COV, 4)


def gaussian(name: str, cov: np.ndarray = COV) -> Gaussian:
    return Gaussian(SDES[name], jnp.asarray(MEAN), jnp.asarray(cov))


@pytest.mark.parametrize("name", SDES)
def test_a_full_gaussian_has_its_density_to_a_thousandth_of_a_nat_in_float32(name: str) -> None:
    """In 8 dimensions: the density of x(t_min) under the process's own prior, whatever a sample's batch-mates."""
    run, x = jax.jit(lambda x: log_prob(gaussian(name), x)), jnp.asarray(X, jnp.float32)
    found = run(x)
    expected, latent = gaussian_flow_log_prob(PROCESSES[name], MEAN, COV, X, 1e-5, 50.0 if name == "ve" else 1.0)
    np.testing.assert_allclose(found.log_prob, expected, atol=1e-3)
    np.testing.assert_allclose(found.latent, latent, rtol=1e-3, atol=1e-3)
    other = run(x.at[1:].multiply(5.0))
    np.testing.assert_array_equal(other.log_prob[0], found.log_prob[0])
    assert other.evaluations[0] == found.evaluations[0] and found.evaluations.shape == (4,)


@pytest.mark.parametrize("name", ["vp", "ve"])
@in_float64
def test_a_mixture_has_its_density_but_for_the_priors_mismatch(name: str) -> None:
    """The gap is log p_T(x(T)) − log prior(x(T)), known at the flow's end; it is below 0.02 nats at these x."""
    oracle = Mixture(SDES[name], *map(jnp.asarray, MIXTURE))
    x = jnp.asarray([[-1.0, 0.5], [0.6, 0.1], [0.0, 0.0]])
    found = jax.jit(lambda x: log_prob(oracle, x, t_min=1e-3, rtol=1e-7, atol=1e-7))(x)
    mismatch = oracle.log_prob(found.latent, 1.0) - SDES[name].prior_log_prob(found.latent)
    np.testing.assert_allclose(found.log_prob + mismatch, oracle.log_prob(x, 1e-3), atol=1e-5)
    assert np.all(np.abs(mismatch) < 0.02)


# --- traces -----------------------------------------------------------------------------------------------------------

MATRIX = np.random.default_rng(1).standard_normal((6, 6))


def cubic(x: Any) -> Any:
    """A field on (2, 3) with divergence tr M + 3·Σx²."""
    return (jnp.asarray(MATRIX, x.dtype) @ x.ravel()).reshape(x.shape) + x**3


@in_float64
def test_the_exact_trace_is_the_divergence() -> None:
    x = jnp.asarray(np.random.default_rng(2).standard_normal((2, 3)))
    value, divergence = exact_trace(cubic, x, jnp.zeros_like(x))
    np.testing.assert_allclose(value, cubic(x))
    np.testing.assert_allclose(divergence, np.trace(MATRIX) + 3 * np.sum(np.asarray(x) ** 2), rtol=1e-12)


@in_float64
def test_hutchinsons_trace_is_unbiased_and_exact_for_a_diagonal() -> None:
    x = jnp.asarray(np.random.default_rng(2).standard_normal((2, 3)))
    probes = jnp.asarray(np.random.default_rng(3).standard_normal((4000, 2, 3)))
    estimates = np.asarray(jax.vmap(lambda v: hutchinson_trace(cubic, x, v)[1])(probes))
    exact = np.trace(MATRIX) + 3 * np.sum(np.asarray(x) ** 2)
    assert abs(estimates.mean() - exact) < 4 * estimates.std() / np.sqrt(len(estimates))
    # The variance of the estimate with random signs is 2·Σ_{i<j} of the symmetric part's entries, doubled and squared.
    symmetric = (MATRIX + MATRIX.T)[np.triu_indices(6, 1)]
    np.testing.assert_allclose(estimates.var(), np.sum(symmetric**2), rtol=0.15)
    one = hutchinson_trace(lambda x: x**3, x, probes[0])[1]
    np.testing.assert_allclose(one, 3 * np.sum(np.asarray(x) ** 2), rtol=1e-12)


def test_hutchinsons_likelihood_is_unbiased_and_exact_for_a_diagonal_covariance() -> None:
    full, keys = gaussian("vp"), sample_keys(0, 0, 512)
    estimate = jax.jit(lambda denoise, x, keys: log_prob(denoise, x, trace=hutchinson_trace, keys=keys))
    x = jnp.broadcast_to(jnp.asarray(X[:1], jnp.float32), (512, 8))
    values = np.asarray(estimate(full, x, keys).log_prob, np.float64)
    exact = gaussian_flow_log_prob(PROCESSES["vp"], MEAN, COV, X[:1], 1e-5, 1.0)[0][0]
    assert abs(values.mean() - exact) < 4 * values.std() / np.sqrt(len(values))
    assert values.std() > 0.1
    diagonal = np.diag(np.linspace(0.1, 1.5, 8))
    once = estimate(gaussian("vp", diagonal), x, keys).log_prob
    expected = gaussian_flow_log_prob(PROCESSES["vp"], MEAN, diagonal, X[:1], 1e-5, 1.0)[0]
    np.testing.assert_allclose(once, np.broadcast_to(expected, 512), atol=2e-3)


def test_one_probe_is_held_through_the_solve_and_belongs_to_the_sample() -> None:
    seen: list[Any] = []

    def spying(field: Any, x: Any, probe: Any) -> Any:
        jax.debug.callback(lambda v: seen.append(tuple(np.asarray(v))), probe)
        return hutchinson_trace(field, x, probe)

    run = jax.jit(lambda x, keys: log_prob(gaussian("vp"), x, trace=spying, keys=keys))
    x = jnp.asarray(X, jnp.float32)
    found = run(x, sample_keys(0, 0, 4))
    jax.effects_barrier()
    assert len(seen) > 100 and len(set(seen)) == 4
    shifted = run(x[1:].repeat(2, axis=0)[:4], sample_keys(0, 1, 3)[jnp.asarray([0, 0, 1, 1])])
    np.testing.assert_allclose(shifted.log_prob[::2], found.log_prob[1:3], rtol=1e-6)


def test_missing_keys_are_asked_for() -> None:
    with pytest.raises(ValueError, match="hutchinson_trace draws a probe"):
        log_prob(gaussian("vp"), jnp.asarray(X, jnp.float32), trace=hutchinson_trace)


# --- bits a dimension -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bounds", "levels", "offset"), [((-1.0, 1.0), 256, 7.0), ((0.0, 1.0), 256, 8.0), ((0.0, 17.0), 17, 0.0)]
)
def test_the_offset_of_bits_is_the_volume_of_a_cell(bounds: Any, levels: int, offset: float) -> None:
    assert nats_to_bits_per_dim(jnp.zeros(()), 3, levels=levels, range=bounds) == offset
    np.testing.assert_allclose(
        nats_to_bits_per_dim(jnp.asarray(-6 * np.log(2)), 3, levels=levels, range=bounds), offset + 2
    )


@pytest.mark.parametrize(("bounds", "levels"), [((-1.0, 1.0), 256), ((0.0, 1.0), 17)])
def test_dequantization_spreads_each_level_over_its_cell(bounds: Any, levels: int) -> None:
    low, high = bounds
    k = np.arange(levels)
    x = jnp.asarray(low + (high - low) * k / (levels - 1), jnp.float32)
    u = jax.random.uniform(jax.random.key(0), x.shape)
    position = (np.asarray(dequantize(x, u, levels=levels, range=bounds), np.float64) - low) / (high - low) * levels
    np.testing.assert_allclose(position - k, u, atol=1e-4)
    edges = [np.asarray(dequantize(x, jnp.full(x.shape, v), levels=levels, range=bounds)) for v in (0.0, 1.0)]
    np.testing.assert_allclose(edges[0][1:], edges[1][:-1], atol=1e-6)
    np.testing.assert_allclose((edges[0][0], edges[1][-1]), bounds, atol=1e-6)


def test_bits_of_a_known_discrete_law_are_their_closed_form() -> None:
    """17 levels in [0, 1] under a Gaussian: −E log2 of its density over a level's cell, by SciPy, plus log2 17."""
    n, level, t_min = 2048, 11, 1e-3
    process = PROCESSES["vp"]
    model = Gaussian(SDES["vp"], jnp.asarray([0.4]), jnp.asarray([[0.09]]))

    def model_log_prob(y: float) -> float:
        return float(
            gaussian_flow_log_prob(process, np.array([0.4]), np.array([[0.09]]), np.array([[y]]), t_min, 1.0)[0][0]
        )

    nats = scipy.integrate.quad(lambda u: model_log_prob((level + u) / 17), 0, 1)[0]
    x = jnp.full((n, 1), level / 16, jnp.float32)
    keys = sample_keys(0, 0, n)

    @jax.jit
    def bits(x: Any) -> tuple[Any, Any]:
        given = {"levels": 17, "range": (0.0, 1.0), "t_min": t_min}
        return bits_per_dim(model, x, keys, **given), bits_per_dim(model, x[:1], keys[:1], dequantization=None, **given)

    found, already = map(np.asarray, bits(x))
    expected = -nats / np.log(2) + np.log2(17)
    assert abs(found.mean() - expected) < 4 * found.std() / np.sqrt(n) + 1e-3
    np.testing.assert_allclose(already, [-model_log_prob(level / 16) / np.log(2) + np.log2(17)], atol=2e-3)


def test_a_condition_goes_to_each_samples_own_flow() -> None:
    """A model N(shift, 1) under VP stays N(α·shift, 1): so log p is that at t_min, up to the prior's mismatch."""
    denoise = from_score(SDES["vp"], lambda x, t, shift: SDES["vp"].alpha(t) * shift - x)
    shift = jnp.asarray([[0.5, -0.5], [2.0, 1.0]])
    x = jnp.asarray([[0.1, 0.2], [1.5, 1.5]])
    found = jax.jit(lambda x, shift: log_prob(denoise, x, cond=shift).log_prob)(x, shift)
    expected = -0.5 * np.sum(np.square(x - shift), -1) - np.log(2 * np.pi)
    np.testing.assert_allclose(found, expected, atol=0.05)
