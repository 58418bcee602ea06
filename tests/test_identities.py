"""Methods that a user composes from denoisers and solvers, on Gaussian data, where what they must give is known."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import ALL_SDES, MIXTURE, PROCESSES, gaussian_data, gaussian_flow_log_prob, in_float64
from tiers import first, proof

from diffuse_jax import solvers, times
from diffuse_jax.denoiser import Denoised
from diffuse_jax.likelihood import log_prob
from diffuse_jax.oracles import Gaussian, Mixture
from diffuse_jax.sampling import decode, encode, last_state, sample, sample_keys
from diffuse_jax.sde import EDM, SDE, VE, VP, expand
from diffuse_jax.solvers import Solver
from diffuse_jax.trees import pytree

X = np.random.default_rng(0).standard_normal((4, 2))
MEAN, COV = gaussian_data(2)
SDES = pytest.mark.parametrize("sde", [proof(VP()), VE(sigma_max=20.0)], ids=["vp", "ve"])


def one_step(solver: Solver, denoise: Any, x: Any, t: float, s: float) -> Any:
    t, s = jnp.asarray(t), jnp.asarray(s)
    memory = solver.init(x, jnp.stack([t, s]), denoise)
    return solver.step(lambda i: jnp.zeros_like(x), jnp.asarray(x), memory, t, s, denoise)[0]


# --- distillation, reverse variance -----------------------------------------------------------------------------------


@pytree
class Fixed:
    """A student that says x0."""

    sde: SDE
    x0: Any

    def __call__(self, x: Any, t: Any, cond: Any = None) -> Denoised:
        return Denoised(self.x0, (x - expand(self.sde.alpha(t), x) * self.x0) / expand(self.sde.sigma(t), x))


@SDES
@in_float64
def test_the_target_of_progressive_distillation_makes_one_step_of_two(sde: SDE) -> None:
    """2202.00512, eq. 36: x̃ = (z″ − (σ″/σ_t)·z)/(α″ − (σ″/σ_t)·α_t), z″ being two DDIM steps of the teacher."""
    teacher = Mixture(sde, *map(jnp.asarray, MIXTURE))
    t, middle, end = 0.8, 0.7, 0.6
    two = one_step(solvers.ddim(), teacher, one_step(solvers.ddim(), teacher, X, t, middle), middle, end)
    ratio = sde.sigma(end) / sde.sigma(t)
    target = (two - ratio * X) / (sde.alpha(end) - ratio * sde.alpha(t))
    np.testing.assert_allclose(one_step(solvers.ddim(), Fixed(sde, target), X, t, end), two, rtol=1e-10)


@SDES
@in_float64
def test_the_variance_of_analytic_dpm_is_that_of_the_exact_reverse_step(sde: SDE) -> None:
    """2201.06503, eq. 8 in (α, σ), with the posterior variance ς² of DDPM: ς² + (σ_t·α_s/α_t − √(σ_s² − ς²))²·(1 −
    σ_t²·Γ), Γ = E‖eps/σ_t‖²/d. On isotropic Gaussian data x(s) given x(t) is Gaussian, of a variance in closed form."""
    v, t, s = 0.3, 0.5, 0.4
    alpha_t, alpha_s, sigma_t, sigma_s = (float(f(u)) for f in (sde.alpha, sde.sigma) for u in (t, s))
    total_t, total_s = alpha_t**2 * v + sigma_t**2, alpha_s**2 * v + sigma_s**2
    factor, std = map(float, sde.transition(s, t))
    exact = 1 / (1 / total_s + factor**2 / std**2)
    # E‖eps‖²/d over x(t), by the oracle at ±√(its variance), which is exact for what is affine.
    data = Gaussian(sde, jnp.zeros(1), jnp.full((1, 1), v))
    eps = data(jnp.sqrt(total_t) * jnp.asarray([[1.0], [-1.0]]), t).eps
    gamma = np.mean(np.square(eps)) / sigma_t**2
    posterior = std**2 * sigma_s**2 / sigma_t**2
    lead = sigma_t * alpha_s / alpha_t - np.sqrt(sigma_s**2 - posterior)
    np.testing.assert_allclose(posterior + lead**2 * (1 - sigma_t**2 * gamma), exact, rtol=1e-9)


@pytest.mark.parametrize("name", first(["vp", "ve"], keep=["ve"]))
@in_float64
def test_the_likelihood_of_a_gaussian_is_its_flows_to_a_millionth_of_a_nat(name: str) -> None:
    data = Gaussian(ALL_SDES[name], jnp.asarray(MEAN), jnp.asarray(COV))
    run = jax.jit(lambda x: log_prob(data, x, t_min=1e-3, rtol=1e-10, atol=1e-10).log_prob)
    expected, _ = gaussian_flow_log_prob(PROCESSES[name], MEAN, COV, X, 1e-3, float(ALL_SDES[name].prior_std()))
    np.testing.assert_allclose(run(jnp.asarray(X)), expected, atol=1e-6)


# --- conditioning -----------------------------------------------------------------------------------------------------

OBSERVE, Y, NOISE = np.array([[1.0, 0.5]]), np.array([0.8]), 0.3


def posterior(sde: SDE) -> Gaussian:
    gain = COV @ OBSERVE.T @ np.linalg.inv(OBSERVE @ COV @ OBSERVE.T + NOISE**2 * np.eye(1))
    return Gaussian(sde, jnp.asarray(MEAN + gain @ (Y - OBSERVE @ MEAN)), jnp.asarray(COV - gain @ OBSERVE @ COV))


@SDES
@in_float64
def test_moment_matching_and_classifier_guidance_are_the_posteriors_denoiser(sde: SDE) -> None:
    """y = A·x_0 + noise. MMPS (2405.13712): D + V·Aᵀ(Σ + A·V·Aᵀ)⁻¹(y − A·D), V = (σ²/α)·∂D/∂x; classifier guidance
    (2105.05233): eps − σ·∇log p(y | x_t), p(y | x_t) = N(A·D, A·V·Aᵀ + Σ): exact where the prior is Gaussian."""
    prior, t = Gaussian(sde, jnp.asarray(MEAN), jnp.asarray(COV)), 0.4
    alpha, sigma = sde.alpha(t), sde.sigma(t)

    def clean(x: Any) -> Any:
        return prior(x[None], t).x0[0]

    def log_likelihood(x: Any) -> Any:
        spread = OBSERVE @ (sigma**2 / alpha * jax.jacfwd(clean)(x)) @ OBSERVE.T + NOISE**2 * jnp.eye(1)
        residual = Y - OBSERVE @ clean(x)
        return -0.5 * residual @ jnp.linalg.solve(spread, residual)

    expected = posterior(sde)(jnp.asarray(X), t)
    for x, x0, eps in zip(jnp.asarray(X), expected.x0, expected.eps, strict=True):
        cov = sigma**2 / alpha * jax.jacfwd(clean)(x)
        pull = np.linalg.solve(OBSERVE @ cov @ OBSERVE.T + NOISE**2 * np.eye(1), Y - OBSERVE @ clean(x))
        np.testing.assert_allclose(clean(x) + cov @ OBSERVE.T @ pull, x0, rtol=1e-8)
        np.testing.assert_allclose(prior(x[None], t).eps[0] - sigma * jax.grad(log_likelihood)(x), eps, rtol=1e-8)


@in_float64
def test_resampling_takes_repaints_bias_away() -> None:
    """RePaint (2201.09865) on a correlated Gaussian whose first coordinate is known: the mean of the second, exactly,
    for U repeats of each step; the answer is the conditional mean."""
    sde, known = VP(), 1.5
    data = Gaussian(sde, jnp.zeros(2), jnp.asarray([[1.0, 0.8], [0.8, 1.0]]))
    grid = np.asarray(times.log_snr(sde, 40))
    step = jax.jit(lambda x, t, s: one_step(solvers.ancestral("beta"), data, x, t, s))
    again = {(t, s): float(sde.transition(s, t)[0]) for t, s in itertools.pairwise(grid)}

    def bias(repeats: int) -> float:
        # Every map is affine, so the mean of the samples is what the maps make of means, their noise left out.
        x = jnp.zeros((1, 2))
        for t, s in itertools.pairwise(grid):
            for u in range(repeats):
                x = step(x, t, s).at[:, 0].set(sde.alpha(s) * known)
                if u < repeats - 1:
                    x = again[t, s] * x
        return abs(float(x[0, 1]) - 0.8 * known)

    found = [bias(repeats) for repeats in (1, 3, 10)]
    assert found[0] > 0.1 and found[1] < 0.7 * found[0] and found[2] < 0.5 * found[1], found


# --- editing ----------------------------------------------------------------------------------------------------------


def test_noising_and_denoising_a_guide_has_sdedits_law() -> None:
    """SDEdit (2108.01073) and ES-DDPM (2205.12524): from g + σ·z back along the reverse SDE, N(m + J(g − m), σ²·J·Jᵀ +
    σ²·J) with J = S(S + σ²)⁻¹, on a process with α = 1."""
    sde, t, guide, n = EDM(), 0.8, np.array([2.0, -1.0]), 20_000
    data = Gaussian(sde, jnp.asarray(MEAN, jnp.float32), jnp.asarray(COV, jnp.float32))
    keys = sample_keys(0, n)
    start = guide + t * np.random.default_rng(0).standard_normal((n, 2))
    grid = times.log_snr(sde, 60, t_max=t)
    run = jax.jit(lambda x: sample(keys, data, solvers.sde_dpm_solver(2), grid, x, finish=last_state))
    x = np.asarray(run(start), np.float64)
    pull = COV @ np.linalg.inv(COV + t**2 * np.eye(2))
    cov = t**2 * (pull @ pull.T + pull)
    deviations = np.sqrt(np.diag(cov))
    np.testing.assert_allclose((x.mean(0) - MEAN - pull @ (guide - MEAN)) / deviations, 0, atol=4 / np.sqrt(n) + 2e-3)
    np.testing.assert_allclose((np.cov(x.T) - cov) / np.outer(deviations, deviations), 0, atol=6 / np.sqrt(n) + 1e-2)


@in_float64
def test_a_bridge_through_the_latents_is_optimal_transport_and_comes_back() -> None:
    """DDIB (2203.08382): N(0, s_a²) encoded, decoded as N(0, s_b²), is x·√((s_b² + ε²)(s_a² + σ_T²)/((s_a² + ε²)(s_b²
    + σ_T²))), and as σ_T → ∞ and ε → 0 the optimal map (s_b/s_a)·x."""
    sde, spreads = EDM(), (0.5, 0.84)
    models = [Gaussian(sde, jnp.zeros(1), jnp.full((1, 1), s**2)) for s in spreads]
    tight = {"rtol": 1e-9, "atol": 1e-9}

    @jax.jit
    def across(x: Any, source: Any, target: Any) -> Any:
        return decode(target, encode(source, x, **tight).x, **tight).x

    x = jnp.asarray([[1.0], [-0.3]])
    there = across(x, *models)
    np.testing.assert_allclose(there, 1.68 * x, rtol=2e-4)
    np.testing.assert_allclose(across(there, *models[::-1]), x, rtol=1e-6)


@in_float64
def test_a_constrained_step_has_the_low_frequencies_of_its_reference() -> None:
    """ILVR (2108.02938): x′ + φ(y_s) − φ(x′) has φ(x) = φ(y_s) for a linear low-pass φ = up∘down with down∘up = 1."""
    sde, reference = VP(), np.random.default_rng(1).standard_normal((1, 8, 8, 1))

    def low_pass(x: Any) -> Any:
        small = x.reshape(x.shape[0], 4, 2, 4, 2, 1).mean((2, 4))
        return jnp.repeat(jnp.repeat(small, 2, axis=1), 2, axis=2)

    def step(noise: Any, x: Any, memory: Any, t: Any, s: Any, denoise: Any) -> Any:
        x, mean, memory = solvers.ancestral().step(noise, x, memory, t, s, denoise)
        noised = denoise.sde.perturb(jnp.asarray(reference), s, noise(1))
        return x + low_pass(noised) - low_pass(x), mean, memory

    draws = np.random.default_rng(2).standard_normal((2, 3, 8, 8, 1))
    recorded = lambda keys, stream, x, span: lambda i: jnp.asarray(draws)[i]  # noqa: E731
    grid = jnp.asarray([0.9, 0.5, 0.2])
    x = jnp.asarray(np.random.default_rng(3).standard_normal((3, 8, 8, 1)))
    end = sample(None, Fixed(sde, jnp.zeros_like(x)), Solver(step), grid, x, noise=recorded, finish=last_state)
    noised = sde.alpha(0.2) * reference + sde.sigma(0.2) * draws[1]
    np.testing.assert_allclose(low_pass(end), low_pass(jnp.asarray(noised)), atol=1e-12)
    assert not np.allclose(end, noised)
