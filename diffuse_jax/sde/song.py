"""VP, sub-VP and VE, the processes of Song et al., "Score-Based Generative Modeling through SDEs" (arXiv 2011.13456,
§3.4 and appendix B)."""

from typing import Any

import jax
import jax.numpy as jnp

from diffuse_jax.sde.process import SDE, Array, VariancePreserving, floating
from diffuse_jax.trees import pytree, static

__all__ = ["VE", "VP", "SubVP"]


@pytree
class _LinearBeta(SDE):
    """What VP and sub-VP share: β(t) = β_min + t(β_max − β_min), B(t) = ∫β, α = exp(−B/2), prior N(0, I)."""

    beta_min: Any = 0.1
    beta_max: Any = 20.0

    def beta(self, t: Any) -> Array:
        return self.beta_min + jnp.asarray(t) * (self.beta_max - self.beta_min)

    def integrated_beta(self, t: Any) -> Array:
        """B(t) = ∫₀ᵗ β."""
        t = jnp.asarray(t)
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def time_of_integrated_beta(self, b: Any) -> Array:
        """The t in [0, T] with B(t) = b: the root of a quadratic, in the form that does not cancel."""
        root = jnp.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * b)
        return jnp.clip(2 * b / (self.beta_min + root), 0, self.T)

    def log_alpha(self, t: Any) -> Array:
        return -0.5 * self.integrated_beta(t)

    def f(self, t: Any) -> Array:
        return -0.5 * self.beta(t)

    def prior_std(self) -> Array:
        return jnp.asarray(1.0)


@pytree
class VP(VariancePreserving, _LinearBeta):
    """Variance preserving (2011.13456, eq. 11): f = −β/2, g² = β, σ² = 1 − e^{−B}; the continuous limit of DDPM.

    β(t) = beta_min + t·(beta_max − beta_min) and B(t) = ∫₀ᵗ β; the prior is N(0, I).

    Args:
        beta_min: β(0), the rate of noise at the data's end of time.
        beta_max: β(1), the rate of noise at time 1.
        T: The end of time. Static.
        t_min: The time at which sampling stops by default. Static.
        t_max: The time at which sampling starts by default; None is T. Static.
    """

    def inverse_log_snr(self, log_snr: Any) -> Array:
        value = jnp.maximum(log_snr, self.log_snr(self.T))
        return self.time_of_integrated_beta(jax.nn.softplus(-value))

    def g2(self, t: Any) -> Array:
        return self.beta(t)


@pytree
class SubVP(_LinearBeta):
    """Sub-variance-preserving (2011.13456, eq. 12): f = −β/2, g² = β(1 − e^{−2B}), σ = 1 − e^{−B}.

    β(t) = beta_min + t·(beta_max − beta_min) and B(t) = ∫₀ᵗ β; the prior is N(0, I).

    Args:
        beta_min: β(0), the rate of noise at the data's end of time.
        beta_max: β(1), the rate of noise at time 1.
        T: The end of time. Static.
        t_min: The time at which sampling stops by default. Static.
        t_max: The time at which sampling starts by default; None is T. Static.
    """

    def log_sigma(self, t: Any) -> Array:
        return jnp.log(-jnp.expm1(-self.integrated_beta(t)))

    def inverse_log_snr(self, log_snr: Any) -> Array:
        # α/σ = e^{−B/2}/(1 − e^{−B}) = 1/(2 sinh(B/2))
        value = jnp.maximum(log_snr, self.log_snr(self.T))
        return self.time_of_integrated_beta(2 * jnp.arcsinh(0.5 * jnp.exp(-0.5 * value)))

    def g2(self, t: Any) -> Array:
        return -self.beta(t) * jnp.expm1(-2 * self.integrated_beta(t))

    def sigma_rate(self, t: Any) -> Array:
        return self.beta(t) * jnp.exp(-self.integrated_beta(t))


@pytree
class VE(SDE):
    """Variance exploding (2011.13456, eq. 9): f = 0, σ = σ_min(σ_max/σ_min)^{t/T}; x(0) already carries the noise
    σ_min, and the prior is N(0, σ_max²·I).

    Args:
        sigma_min: The noise level at t = 0, in units of the data, > 0.
        sigma_max: The noise level at t = T.
        T: The end of time. Static.
        t_min: The time at which sampling stops by default. Static.
        t_max: The time at which sampling starts by default; None is T. Static.
    """

    sigma_min: Any = 0.01
    sigma_max: Any = 50.0
    t_min: float = static(default=1e-5, kw_only=True)

    def _log_ratio(self) -> Array:
        return jnp.log(jnp.asarray(self.sigma_max) / self.sigma_min)

    def log_alpha(self, t: Any) -> Array:
        return jnp.zeros_like(floating(t))

    def log_sigma(self, t: Any) -> Array:
        return jnp.log(self.sigma_min) + jnp.asarray(t) / self.T * self._log_ratio()

    def inverse_log_snr(self, log_snr: Any) -> Array:
        log_sigma = -0.5 * jnp.asarray(log_snr)
        return jnp.clip(self.T * (log_sigma - jnp.log(self.sigma_min)) / self._log_ratio(), 0, self.T)

    def f(self, t: Any) -> Array:
        return self.log_alpha(t)

    def g2(self, t: Any) -> Array:
        return jnp.square(self.sigma(t)) * 2 * self._log_ratio() / self.T
