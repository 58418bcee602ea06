"""Solvers of the reverse SDE dx = (f·x − g²·score) dt + g dw, run from t down to s < t (Song et al., 2011.13456, eq. 6
and appendix E–F).

With score = −eps/σ. A step over [s, t] of the forward process multiplies by a = α_t/α_s and adds noise of variance
σ²_{t|s} = σ_t² − a²σ_s², whatever the process: what the papers write with β_i or σ_i² − σ_{i−1}² follows from these
two.
"""

from numbers import Real

import jax.numpy as jnp
from jax.tree_util import Partial

from diffuse_jax._checks import check_not_negative
from diffuse_jax.denoiser import Denoiser
from diffuse_jax.sde import SDE, Array
from diffuse_jax.solvers.exponential import sigma_ratio
from diffuse_jax.solvers.flow import ddim
from diffuse_jax.solvers.solver import Noise, Solver

__all__ = ["ancestral", "euler_in_sigma", "euler_maruyama", "reverse_diffusion"]

Step = tuple[Array, Array, tuple[()]]


def euler_maruyama(kappa: float = 1.0) -> Solver:
    """Euler's rule for every process with the marginals of the forward one, all taken at t. Order 1, or weak order 1
    with noise.

        x_mean = x − (t − s)(α′·x0 + σ′·eps + ½κ²(g²/σ)·eps),    x = x_mean + κ·g·√(t − s)·z

    At κ = 1 it is x − (t − s)(f·x + (g²/σ)·eps). The actual spacing of the grid is used; steps must be short against
    1/g².

    Args:
        kappa: κ, the strength of the noise: 0 is the probability flow, 1 the reverse SDE.

    Returns:
        The solver.

    Raises:
        ValueError: For a κ that is negative or not finite.
    """
    check_not_negative("euler_maruyama", kappa=kappa)
    if isinstance(kappa, Real) and kappa == 0:
        return Solver(step=_euler, order=1, evaluations=1)
    return Solver(step=Partial(_euler_maruyama, kappa), weak_order=1, evaluations=1)


def _euler(noise: Noise, x: Array, memory: tuple[()], t: Array, s: Array, denoise: Denoiser) -> Step:
    sde = denoise.sde
    x0, eps = denoise(x, t)
    x = x - (t - s) * (sde.alpha_rate(t) * x0 + sde.sigma_rate(t) * eps)
    return x, x, memory


def _euler_maruyama(
    kappa: Array, noise: Noise, x: Array, memory: tuple[()], t: Array, s: Array, denoise: Denoiser
) -> Step:
    sde = denoise.sde
    g2 = sde.g2(t)
    x0, eps = denoise(x, t)
    eps_rate = sde.sigma_rate(t) + 0.5 * jnp.square(kappa) * g2 / sde.sigma(t)
    x_mean = x - (t - s) * (sde.alpha_rate(t) * x0 + eps_rate * eps)
    return x_mean + kappa * jnp.sqrt(g2 * (t - s)) * noise(0), x_mean, memory


def euler_in_sigma(kappa: float = 1.0) -> Solver:
    """`euler_maruyama`'s family in x/α and the clock σ̃ = σ/α, by Euler's rule with the noise of the whole step. Order
    1, or weak order 1 with noise; steps may be long.

        x_mean = (α_s/α_t)·x + (1 + κ²)·α_s·(σ̃_s − σ̃_t)·eps,    x = x_mean + κ·α_s·√(σ̃_t² − σ̃_s²)·z

    It integrates d(x/α) = (1 + κ²)·eps·dσ̃ + κ·√(2σ̃)·dw, and is DDIM at κ = 0.

    Args:
        kappa: κ, the strength of the noise: 0 is the probability flow, 1 the reverse SDE.

    Returns:
        The solver.

    Raises:
        ValueError: For a κ that is negative or not finite.
    """
    check_not_negative("euler_in_sigma", kappa=kappa)
    if isinstance(kappa, Real) and kappa == 0:
        return ddim()
    return Solver(step=Partial(_euler_in_sigma, kappa), weak_order=1, evaluations=1)


def _euler_in_sigma(
    kappa: Array, noise: Noise, x: Array, memory: tuple[()], t: Array, s: Array, denoise: Denoiser
) -> Step:
    sde = denoise.sde
    alpha, sigma_t, sigma_s = sde.alpha(s), sigma_ratio(sde, t), sigma_ratio(sde, s)
    x_mean = alpha / sde.alpha(t) * x + (1 + jnp.square(kappa)) * alpha * (sigma_s - sigma_t) * denoise(x, t).eps
    std = kappa * alpha * jnp.sqrt((sigma_t - sigma_s) * (sigma_t + sigma_s))
    return x_mean + std * noise(0), x_mean, memory


def reverse_diffusion() -> Solver:
    """The discretized forward step, reversed. Weak order 1.

        x_mean = (2 − a)·x − (σ²_{t|s}/σ_t)·eps,    x = x_mean + σ_{t|s}·z

    For VP a² = 1 − β_i and σ²_{t|s} = β_i; for VE a = 1 and σ²_{t|s} = σ_i² − σ_{i−1}² (2011.13456, eq. 46 and appendix
    E).
    """
    return Solver(step=_reverse_diffusion, weak_order=1, evaluations=1)


def _reverse_diffusion(noise: Noise, x: Array, memory: tuple[()], t: Array, s: Array, denoise: Denoiser) -> Step:
    sde = denoise.sde
    a, std = sde.transition(s, t)
    x_mean = (2 - a) * x - jnp.square(std) / sde.sigma(t) * denoise(x, t).eps
    return x_mean + std * noise(0), x_mean, memory


def ancestral(variance: str = "posterior") -> Solver:
    """The mean of x(s) given x(t) and x0, plus noise. Weak order 1.

        x_mean = (x − (σ²_{t|s}/σ_t)·eps)/a

    Args:
        variance: "posterior" adds noise of variance σ²_{t|s}·σ_s²/σ_t², exact for a point mass (score_sde's VE
            ancestral sampler, and DDIM at η = 1); "beta" adds σ²_{t|s}, exact where the variance of x(t) is constant,
            as of unit-variance Gaussian data under VP (score_sde's VP ancestral sampler, DDPM's σ² = β, the σ̂ of
            DDIM's paper).

    Returns:
        The solver.

    Raises:
        ValueError: For another variance.
    """
    choices = {"posterior": _posterior_std, "beta": _beta_std}
    if variance not in choices:
        raise ValueError(f"ancestral: variance={variance!r} must be one of {', '.join(map(repr, choices))}")
    return Solver(step=Partial(_ancestral, Partial(choices[variance])), weak_order=1, evaluations=1)


def _posterior_std(sde: SDE, t: Array, s: Array) -> Array:
    return sde.sigma(s) * jnp.sqrt(-jnp.expm1(sde.log_snr(t) - sde.log_snr(s)))


def _beta_std(sde: SDE, t: Array, s: Array) -> Array:
    return sde.transition(s, t)[1]


def _ancestral(std: Partial, noise: Noise, x: Array, memory: tuple[()], t: Array, s: Array, denoise: Denoiser) -> Step:
    sde = denoise.sde
    x0, eps = denoise(x, t)
    # The same mean in terms of both components, which does not cancel: √(σ_s² − posterior variance) =
    # σ_s·exp((log_snr_t − log_snr_s)/2).
    x_mean = sde.alpha(s) * x0 + sde.sigma(s) * jnp.exp(0.5 * (sde.log_snr(t) - sde.log_snr(s))) * eps
    return x_mean + std(sde, t, s) * noise(0), x_mean, memory
