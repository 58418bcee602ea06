"""The evidence bound of data whose entropy, and whose every term, is a closed form."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from closed_forms import ALL_PROCESSES, ALL_SDES, PROCESSES, SDES, in_float64

from diffuse_jax import times
from diffuse_jax.denoiser import Conditioned, from_score
from diffuse_jax.likelihood import nats_to_bits_per_dim
from diffuse_jax.oracles import Gaussian, Mixture
from diffuse_jax.sampling import sample_keys
from diffuse_jax.sde import SDE, from_log_alpha_sigma
from diffuse_jax.variational_bound import ELBO, discrete_reconstruction, elbo, gaussian_reconstruction, prior_kl

VARIANCE = 0.3
ENTROPY = 0.5 * np.log(2 * np.pi * np.e * VARIANCE)


def gaussian(sde: SDE, variance: float = VARIANCE) -> Gaussian:
    return Gaussian(sde, jnp.zeros(1), jnp.full((1, 1), variance))


# Gauss–Hermite nodes for data and noise: for Gaussian data the error is a quadratic, on which two nodes each are exact.
# All rows share a key, and so their times: the weighted sum is an expectation over data and noise.
NODES = np.array([-1.0, 1.0])
X, EPS = (a.reshape(4, 1) for a in np.meshgrid(np.sqrt(VARIANCE) * NODES, NODES, indexing="ij"))


def given(eps: Any) -> Any:
    """A source of noise that is always eps."""
    return lambda keys, stream, x: lambda i: jnp.asarray(eps)


def expected(denoise: Any, x: Any = X, eps: Any = EPS, weights: Any = None, **options: Any) -> ELBO:
    """The expectations of the terms, by quadrature."""
    keys = sample_keys(0, 1).repeat(x.shape[0])
    terms = elbo(denoise, jnp.asarray(x), keys, draw=given(eps), **options)
    return ELBO(*(jnp.average(term, weights=weights) for term in terms))


def linear_log_snr() -> SDE:
    """γ = −log-SNR linear in t from −6 to 6."""
    return from_log_alpha_sigma(
        lambda t: 0.5 * jax.nn.log_sigmoid(6 - 12 * jnp.asarray(t)),
        lambda t: 0.5 * jax.nn.log_sigmoid(12 * jnp.asarray(t) - 6),
        prior_std=1.0,
    )


def error_of(snr: Any, variance: float = VARIANCE) -> Any:
    """E‖eps − E[eps | x]‖² in one dimension."""
    return variance * snr / (1 + variance * snr)


@in_float64
def test_the_chains_bound_falls_to_the_one_of_infinitely_many_steps() -> None:
    """The figures of a linear log-SNR on [−6, 6] and data of variance 0.3."""
    denoise = gaussian(linear_log_snr())
    run = jax.jit(lambda grid: expected(denoise, times=grid))
    limit = 0.5 * np.log((1 + VARIANCE * np.exp(6)) / (1 + VARIANCE * np.exp(-6)))
    np.testing.assert_allclose(limit, 2.4018, atol=5e-5)
    for steps, figure in {10: 4.07, 100: 2.52, 1000: 2.413, 10000: 2.4029}.items():
        found = run(jnp.linspace(1, 0, steps + 1))
        snr = np.exp(np.linspace(-6, 6, steps + 1))
        terms = 0.5 * (snr[1:] / snr[:-1] - 1) * error_of(snr[:-1])
        np.testing.assert_allclose(found.diffusion, terms.sum(), rtol=1e-9)
        np.testing.assert_allclose(found.diffusion, figure, atol=5e-3 if steps < 1000 else 5e-4)
        assert found.diffusion > limit and -found.total > ENTROPY
    found = jax.jit(lambda: expected(denoise, t_min=0.0, draws=4096))()
    np.testing.assert_allclose(found.diffusion, limit, atol=1e-4)
    np.testing.assert_allclose(-found.total - ENTROPY, 0.0041, atol=2e-4)


@in_float64
def test_on_every_process_the_diffusion_term_is_the_information_lost_and_the_bound_the_entropys() -> None:
    """½·log of the ratio of 1 + s²·SNR at the two ends, whatever the process; and the bound of a model of variance r is
    worse by KL(p ‖ q) at t_min less KL(p ‖ q) at the end, which is theorem 1 of 2101.09258 as an equation."""
    wrong = 0.5

    @jax.jit
    def both() -> Any:
        return {
            name: [expected(gaussian(sde, v), draws=1024) for v in (VARIANCE, wrong)] for name, sde in ALL_SDES.items()
        }

    for name, (right, worse) in both().items():
        sde, process = ALL_SDES[name], ALL_PROCESSES[name]
        ends = np.array([sde.t_min, sde.t_start])
        alpha, sigma = process.alpha(ends), process.sigma(ends)
        snr = (alpha / sigma) ** 2
        lost = 0.5 * np.log((1 + VARIANCE * snr[0]) / (1 + VARIANCE * snr[1]))
        np.testing.assert_allclose(right.diffusion, lost, atol=2e-3, err_msg=name)
        assert -right.total > ENTROPY - 1e-3, name
        assert -right.total < ENTROPY + 0.02, name
        ratio = (alpha**2 * VARIANCE + sigma**2) / (alpha**2 * wrong + sigma**2)
        divergence = 0.5 * (ratio - 1 - np.log(ratio))
        np.testing.assert_allclose(
            right.total - worse.total, divergence[0] - divergence[1], atol=1e-3, rtol=1e-3, err_msg=name
        )


@pytest.mark.parametrize("name", ["vp", "ve", "flow"])
@in_float64
def test_the_priors_term_is_the_divergence_of_two_gaussians(name: str) -> None:
    """By SciPy's quadrature in one dimension, at the end of the grids and well before it; a sum over dimensions."""
    sde, process, x = ALL_SDES[name], ALL_PROCESSES[name], np.array([1.3, -0.4])
    prior = scipy.stats.norm(0, 50.0 if name == "ve" else 1.0)
    for t in (0.6, float(sde.t_start)):
        total = 0.0
        for entry in x:
            law = scipy.stats.norm(process.alpha(t) * entry, process.sigma(t))
            span = law.mean() - 9 * law.std(), law.mean() + 9 * law.std()
            total += scipy.integrate.quad(lambda z: law.pdf(z) * (law.logpdf(z) - prior.logpdf(z)), *span)[0]  # noqa: B023
        np.testing.assert_allclose(prior_kl(sde, jnp.asarray(x[None]), t), [total], rtol=1e-6, atol=1e-9)


@in_float64
def test_the_estimate_is_unbiased_and_belongs_to_the_sample() -> None:
    """Random data, noise and times, one evaluation each: within four standard errors of the expectation, for the chain
    and for infinitely many steps; and a row alone is what it is in its batch."""
    sde, n = SDES["vp"], 4096
    x = jnp.asarray(np.random.default_rng(0).normal(0, np.sqrt(VARIANCE), (n, 1)))
    snr = PROCESSES["vp"].log_snr(np.asarray(times.log_snr(sde, 20)))
    chain = np.sum(0.5 * np.expm1(np.diff(snr)) * error_of(np.exp(snr[:-1])))
    infinite = 0.5 * np.log((1 + VARIANCE * np.exp(snr[-1])) / (1 + VARIANCE * np.exp(snr[0])))

    for options, exact in (({"times": times.log_snr(sde, 20)}, chain), ({"draws": 2}, infinite)):
        run = jax.jit(lambda x, keys, options=options: elbo(gaussian(sde), x, keys, **options))
        found = run(x, sample_keys(0, n))
        assert abs(np.mean(found.diffusion) - exact) < 4 * np.std(found.diffusion) / np.sqrt(n)
        np.testing.assert_allclose(run(x[5:7], sample_keys(0, 2, first=5)).total, found.total[5:7], rtol=1e-9)


@in_float64
def test_more_draws_a_step_are_independent_and_have_the_same_mean() -> None:
    sde, n = linear_log_snr(), 4096
    x, keys, grid = jnp.zeros((n, 1)), sample_keys(1, n), jnp.linspace(1, 0, 4)
    one, four = (
        np.asarray(jax.jit(lambda d=d: elbo(gaussian(sde), x, keys, times=grid, draws=d).diffusion)()) for d in (1, 4)
    )
    assert abs(one.mean() - four.mean()) < 4 * one.std() / np.sqrt(n)
    np.testing.assert_allclose(one.var() / four.var(), 4, rtol=0.2)


# --- discrete data ----------------------------------------------------------------------------------------------------

LEVELS, BOUNDS = 5, (-1.0, 1.0)
VALUES = np.linspace(*BOUNDS, LEVELS)
PROBABILITIES = np.array([0.4, 0.05, 0.25, 0.2, 0.1])


@in_float64
def test_the_discrete_reconstruction_is_the_probability_of_the_level() -> None:
    """Against the weights of SciPy's normal densities, summed over the entries of a sample."""
    sde, t = SDES["vp"], 0.2
    sigma = PROCESSES["vp"].sigma(t) / PROCESSES["vp"].alpha(t)
    rng = np.random.default_rng(0)
    k, eps = rng.integers(0, LEVELS, (6, 2, 3)), rng.standard_normal((6, 2, 3))
    density = scipy.stats.norm.pdf((VALUES[k] + sigma * eps)[..., None], VALUES, sigma)
    chosen = np.take_along_axis(density, k[..., None], -1)[..., 0] / density.sum(-1)
    found = discrete_reconstruction(LEVELS, BOUNDS)(sde, jnp.asarray(VALUES[k]), jnp.asarray(eps), jnp.asarray(t))
    np.testing.assert_allclose(found, -np.log(chosen).sum((1, 2)), rtol=1e-10)


@in_float64
def test_the_gaussian_reconstruction_is_the_mean_of_its_density() -> None:
    sde, t = SDES["subvp"], 0.1
    sigma = PROCESSES["subvp"].sigma(t) / PROCESSES["subvp"].alpha(t)
    found = gaussian_reconstruction(sde, jnp.ones((2, 3, 4)), jnp.zeros((2, 3, 4)), jnp.asarray(t))
    np.testing.assert_allclose(found, np.full(2, 12 * scipy.stats.norm(0, sigma).entropy()), rtol=1e-10)


@in_float64
def test_the_discrete_bound_exceeds_the_entropy_and_reaches_it_where_reconstruction_is_certain() -> None:
    """The denoiser of the law itself, so that nothing is lost but what the prior and the reconstruction are off by: a
    tenth of a nat at least at t = 0.3, and some thousandths at t = 0.001."""
    entropy = -np.sum(PROBABILITIES * np.log(PROBABILITIES))
    nodes, weights = np.polynomial.hermite_e.hermegauss(32)
    x, eps = (a.reshape(-1, 1) for a in np.meshgrid(VALUES, nodes, indexing="ij"))
    weights = np.outer(PROBABILITIES, weights).ravel()
    denoise = Mixture(SDES["vp"], jnp.asarray(PROBABILITIES), jnp.asarray(VALUES[:, None]), jnp.zeros(LEVELS))
    options = {"reconstruction": discrete_reconstruction(LEVELS, BOUNDS), "weights": weights, "draws": 1024}
    early, late = (
        -float(jax.jit(lambda t=t: expected(denoise, x, eps, t_min=t, **options).total)()) for t in (1e-3, 0.3)
    )
    assert entropy - 2e-3 < early < entropy + 5e-3
    assert late > entropy + 0.1
    np.testing.assert_allclose(nats_to_bits_per_dim(-early, 1, levels=None), early / np.log(2), rtol=1e-12)


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_a_condition_is_given_or_bound() -> None:
    """A model N(shift, 1) under VP: the condition of each row is its own shift."""
    denoise = from_score(SDES["vp"], lambda x, t, shift: SDES["vp"].alpha(t)[..., None] * shift - x)
    shift, x, keys = jnp.asarray([[0.5], [3.0]]), jnp.asarray([[0.5], [3.0]]), sample_keys(0, 2)
    found = jax.jit(lambda: elbo(denoise, x, keys, cond=shift, draws=256))()
    np.testing.assert_allclose(found.total[0] + 0.5 * np.log(2 * np.pi), 0, atol=0.4)
    bound = jax.jit(lambda: elbo(Conditioned(denoise, shift), x, keys, draws=256))()
    np.testing.assert_allclose(bound.total, found.total, rtol=1e-6)


def test_what_does_not_fit_together_is_refused() -> None:
    denoise, x, keys = gaussian(SDES["vp"]), jnp.zeros((2, 1)), sample_keys(0, 2)
    with pytest.raises(ValueError, match="draws=0"):
        elbo(denoise, x, keys, draws=0)
    with pytest.raises(ValueError, match=r"t_min=0.1 beside times"):
        elbo(denoise, x, keys, times=times.uniform(SDES["vp"], 4), t_min=0.1)
