"""Solvers of the probability flow dx/dt = α′·x0 + σ′·eps (2011.13456, eq. 13, without ∞ − ∞), and DDIM's family around
it.

∫x0 dα + ∫eps dσ over [s, t] is all there is to integrate, so a rule for Stieltjes integrals needs α and σ at two times
and no derivative: the left-point rule is DDIM, the trapezoid is Heun.
"""

from numbers import Real
from typing import Any

import jax.numpy as jnp
from jax.tree_util import Partial

from diffuse_jax._checks import check_not_negative
from diffuse_jax.denoiser import Denoised, Denoiser
from diffuse_jax.sde import Array, expand
from diffuse_jax.solvers.exponential import root, sigma_ratio
from diffuse_jax.solvers.solver import Noise, Solver

__all__ = ["ddim", "edm", "heun", "velocity"]


def ddim(eta: float = 0.0) -> Solver:
    """DDIM, with noise of strength η (2010.02502, eq. 12 and 16). Order 1, or weak order 1 with noise.

        x_s = α_s·x0 + √(σ_s² − ς²)·eps + ς·z,    ς = η·σ_s·√(1 − (α_t·σ_s/(α_s·σ_t))²)

    Args:
        eta: η in [0, 1]. 0 is the first-order solver of the flow, exact in one step for a point mass; 1 is ancestral
            sampling.

    Returns:
        The solver.

    Raises:
        ValueError: For η outside of [0, 1].
    """
    if isinstance(eta, Real) and not 0 <= eta <= 1:
        raise ValueError(f"ddim: eta={eta} must lie in [0, 1]")
    if isinstance(eta, Real) and eta == 0:
        return Solver(step=_ddim_without_noise, order=1, evaluations=1)
    return Solver(step=Partial(_ddim, eta), weak_order=1, evaluations=1)


def _ddim_without_noise(
    noise: Noise, x: Array, memory: tuple[()], t: Array, s: Array, denoise: Denoiser
) -> tuple[Array, Array, tuple[()]]:
    x0, eps = denoise(x, t)
    x = denoise.sde.alpha(s) * x0 + denoise.sde.sigma(s) * eps
    return x, x, memory


def _ddim(
    eta: Array, noise: Noise, x: Array, memory: tuple[()], t: Array, s: Array, denoise: Denoiser
) -> tuple[Array, Array, tuple[()]]:
    sde = denoise.sde
    x0, eps = denoise(x, t)
    tau = -jnp.expm1(sde.log_snr(t) - sde.log_snr(s))
    x_mean = sde.alpha(s) * x0 + sde.sigma(s) * root(1 - jnp.square(eta) * tau) * eps
    # η·√τ, not √(η²·τ): the square root has no derivative at η = 0.
    return x_mean + eta * sde.sigma(s) * root(tau) * noise(0), x_mean, memory


def heun() -> Solver:
    """Heun's rule for the flow. Order 2.

        x_s = x + (α_s − α_t)·(x0 + x0′)/2 + (σ_s − σ_t)·(eps + eps′)/2,    primes taken at the DDIM step

    On VE this is the deterministic sampler of EDM (2206.00364, algorithm 1) on the grid's own σ.
    """
    return Solver(step=_heun, order=2, evaluations=2)


def _heun(
    noise: Noise, x: Array, memory: tuple[()], t: Array, s: Array, denoise: Denoiser
) -> tuple[Array, Array, tuple[()]]:
    sde = denoise.sde
    d_alpha, d_sigma = sde.alpha(s) - sde.alpha(t), sde.sigma(s) - sde.sigma(t)
    first = denoise(x, t)
    second = denoise(x + d_alpha * first.x0 + d_sigma * first.eps, s)
    mean = Denoised(0.5 * (first.x0 + second.x0), 0.5 * (first.eps + second.eps))
    x = x + d_alpha * mean.x0 + d_sigma * mean.eps
    return x, x, memory


def edm(
    churn: float = 0.0, churn_min: float = 0.0, churn_max: float = float("inf"), noise_scale: float = 1.0
) -> Solver:
    """EDM's sampler (2206.00364, algorithm 2) in x/α and σ̃ = σ/α, so on any process.

    Where churn_min ≤ σ̃_t ≤ churn_max noise first raises σ̃_t to σ̂ = (1 + γ)·σ̃_t, γ = min(churn/N, √2 − 1), N being
    the number of times in the grid; then Heun's step goes from σ̂ to σ̃_s by d(x/α) = eps·dσ̃. σ̂ stays at or below σ̃
    at T, the last that the process has.

    EDM's last step, from the grid's last level to σ̃ = 0, is `finish=denoise_once`, which adds no churn at that level.
    Order 2 without churn, weak order 2 with it: churn is exact in law where noise_scale = 1.

    Args:
        churn: The strength of the churn, S_churn of EDM, at least 0; 0 is the deterministic sampler.
        churn_min: The smallest σ̃ with churn.
        churn_max: The largest σ̃ with churn.
        noise_scale: A factor on the noise that is added, S_noise of EDM.

    Returns:
        The solver.

    Raises:
        ValueError: For a churn, churn_min or noise_scale that is negative or not finite, or levels that do not ascend.
    """
    check_not_negative("edm", churn=churn, churn_min=churn_min, noise_scale=noise_scale)
    if isinstance(churn_min, Real) and isinstance(churn_max, Real) and not churn_min <= churn_max:
        raise ValueError(f"edm: churn_min={churn_min} must not be above churn_max={churn_max}")
    if isinstance(churn, Real) and churn == 0:
        return Solver(step=_edm, order=2, evaluations=2)
    return Solver(
        step=Partial(_edm_churned, churn_min, churn_max, noise_scale),
        init=Partial(_gamma, churn),
        weak_order=2,
        evaluations=2,
    )


def _gamma(churn: Any, x: Array, times: Array, denoise: Denoiser) -> Array:
    return jnp.minimum(jnp.asarray(churn / times.shape[0], times.dtype), 2**0.5 - 1)


def _edm(
    noise: Noise, x: Array, memory: tuple[()], t: Array, s: Array, denoise: Denoiser
) -> tuple[Array, Array, tuple[()]]:
    sde = denoise.sde
    x, d_sigma = x / sde.alpha(t), sigma_ratio(sde, s) - sigma_ratio(sde, t)
    first = denoise(sde.alpha(t) * x, t).eps
    second = denoise(sde.alpha(s) * (x + d_sigma * first), s).eps
    x = sde.alpha(s) * (x + d_sigma * 0.5 * (first + second))
    return x, x, memory


def _edm_churned(
    low: Array, high: Array, scale: Array, noise: Noise, x: Array, gamma: Array, t: Array, s: Array, denoise: Denoiser
) -> tuple[Array, Array, Array]:
    sde = denoise.sde
    sigma = sigma_ratio(sde, t)
    churned = jnp.where((low <= sigma) & (sigma <= high), (1 + gamma) * sigma, sigma)
    churned = jnp.minimum(churned, sigma_ratio(sde, sde.T))
    up = sde.inverse_log_snr(-2 * jnp.log(churned))
    more = root((churned - sigma) * (churned + sigma))
    x = sde.alpha(up) * (x / sde.alpha(t) + scale * more * noise(0))
    x, _, _ = _edm(noise, x, (), up, s, denoise)
    return x, x, gamma


def velocity(denoise: Denoiser, x: Array, t: Any, cond: Any = None) -> Array:
    """The velocity dx/dt = α′·x0 + σ′·eps of the probability flow.

    Args:
        denoise: The denoiser.
        x: States (batch, …).
        t: Their time, a scalar or (batch,).
        cond: The condition of each sample, a pytree whose leaves lead with batch.

    Returns:
        dx/dt, shaped like x.
    """
    x0, eps = denoise(x, t, cond)
    return expand(denoise.sde.alpha_rate(t), x) * x0 + expand(denoise.sde.sigma_rate(t), x) * eps
