"""Processes by their schedules: the cosine schedule, EDM's σ = t, and rectified flow's straight line.

    Cosine          α = cos θ/cos θ_0,  θ = (t/T + s)/(1 + s)·π/2,   σ² = 1 − α²       (2102.09672, eq. 17)
    EDM             α = 1,              σ = t                                          (2206.00364, table 1)
    RectifiedFlow   α = 1 − t/T,        σ = t/T                                        (2209.03003, §2.1)

The first and the last reach α(T) = 0, where log-SNR is −∞. Their α is floored at the spacing of floating-point numbers
at 1, which keeps everything finite at T, and their grids start at 0.995·T and end at 10⁻³·T unless told otherwise.
"""

from typing import Any

import jax
import jax.numpy as jnp

from diffuse_jax.sde.process import SDE, Array, VariancePreserving, floating
from diffuse_jax.trees import pytree, static

__all__ = ["EDM", "Cosine", "RectifiedFlow"]


def _floored(alpha: Array) -> Array:
    return jnp.maximum(alpha, jnp.finfo(alpha.dtype).eps)


@pytree
class _EndsInNoise(SDE):
    """What the processes with α(T) = 0 share: as functions of t/T they are the same for every T, and so are the default
    ends of their grids, 0.995·T where `t_max` is None, and 10⁻³·T for a `t_min` that is not given."""

    t_min: float = static(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.t_min is None:
            object.__setattr__(self, "t_min", 1e-3 * self.T)

    @property
    def t_start(self) -> float:
        """`t_max`, or 0.995·T where it is None."""
        return 0.995 * self.T if self.t_max is None else self.t_max


@pytree
class Cosine(_EndsInNoise, VariancePreserving):
    """Nichol and Dhariwal's cosine schedule in continuous time (2102.09672, eq. 17), without their clipping of β,
    which exists for steps only.

    Args:
        s: The offset of the angle θ = (t/T + s)/(1 + s)·π/2, which keeps the noise of small times from vanishing.
        T: The end of time. Static.
        t_min: The time at which sampling stops by default; None is 10⁻³·T. Static.
        t_max: The time at which sampling starts by default; None is 0.995·T. Static.
    """

    s: Any = 0.008

    def _scale(self) -> Any:
        """dθ/dt·T."""
        return 0.5 * jnp.pi / (1 + self.s)

    def _angles(self, t: Any) -> tuple[Array, Array, Array]:
        """(θ, θ − θ_0, π/2 − θ), the last two without cancellation."""
        u, scale = floating(t) / self.T, self._scale()
        return (u + self.s) * scale, u * scale, (1 - u) * scale

    def _first(self) -> Any:
        """θ_0."""
        return self.s * self._scale()

    def alpha(self, t: Any) -> Array:
        return _floored(jnp.sin(self._angles(t)[2]) / jnp.cos(self._first()))

    def log_alpha(self, t: Any) -> Array:
        return jnp.log(self.alpha(t))

    def log_sigma(self, t: Any) -> Array:
        # sin²θ − sin²θ_0 = sin(θ − θ_0)·sin(θ + θ_0)
        theta, since, _ = self._angles(t)
        first = self._first()
        return 0.5 * jnp.log(jnp.sin(since) * jnp.sin(theta + first)) - jnp.log(jnp.cos(first))

    def inverse_log_snr(self, log_snr: Any) -> Array:
        # cosθ = α·cosθ_0 and sin²θ = sin²θ_0 + σ²·cos²θ_0; sin(θ − θ_0) = (sin²θ − sin²θ_0)/sin(θ + θ_0).
        value = floating(log_snr)
        sin, cos = jnp.sin(self._first()), jnp.cos(self._first())
        excess = jax.nn.sigmoid(-value) * jnp.square(cos)
        sin_theta = jnp.sqrt(jnp.square(sin) + excess)
        cos_theta = cos * jnp.exp(0.5 * jax.nn.log_sigmoid(value))
        since = jnp.arctan2(excess / (sin_theta * cos + cos_theta * sin), cos_theta * cos + sin_theta * sin)
        return jnp.clip(self.T * since / self._scale(), 0, self.T)

    def f(self, t: Any) -> Array:
        return self.alpha_rate(t) / self.alpha(t)

    def alpha_rate(self, t: Any) -> Array:
        return -self._scale() / self.T * jnp.sin(self._angles(t)[0]) / jnp.cos(self._first())

    def sigma_rate(self, t: Any) -> Array:
        return -self.alpha_rate(t) * jnp.exp(self.log_alpha(t) - self.log_sigma(t))


@pytree
class EDM(SDE):
    """Karras et al. (2206.00364, table 1): α = 1 and σ = t, so that time is the noise level.

    Args:
        T: The largest noise level, at which sampling starts: σ_max of EDM. Static.
        t_min: The noise level at which sampling stops by default: σ_min of EDM. Static.
        t_max: The noise level at which sampling starts by default; None is T. Static.
    """

    T: float = static(default=80.0, kw_only=True)
    t_min: float = static(default=0.002, kw_only=True)

    def alpha(self, t: Any) -> Array:
        return jnp.ones_like(floating(t))

    def log_alpha(self, t: Any) -> Array:
        return jnp.zeros_like(floating(t))

    def sigma(self, t: Any) -> Array:
        return floating(t)

    def log_sigma(self, t: Any) -> Array:
        return jnp.log(floating(t))

    def inverse_log_snr(self, log_snr: Any) -> Array:
        return jnp.clip(jnp.exp(-0.5 * floating(log_snr)), 0, self.T)

    def f(self, t: Any) -> Array:
        return self.log_alpha(t)

    def g2(self, t: Any) -> Array:
        return 2 * floating(t)

    def alpha_rate(self, t: Any) -> Array:
        return self.log_alpha(t)

    def sigma_rate(self, t: Any) -> Array:
        return self.alpha(t)


@pytree
class RectifiedFlow(_EndsInNoise):
    """The straight line from data to noise (Liu et al., 2209.03003): α = 1 − t/T and σ = t/T, prior N(0, I). Its
    probability flow moves at the rate (eps − x0)/T.

    Args:
        T: The end of time. Static.
        t_min: The time at which sampling stops by default; None is 10⁻³·T. Static.
        t_max: The time at which sampling starts by default; None is 0.995·T. Static.
    """

    def alpha(self, t: Any) -> Array:
        return _floored(1 - floating(t) / self.T)

    def log_alpha(self, t: Any) -> Array:
        return jnp.log(self.alpha(t))

    def sigma(self, t: Any) -> Array:
        return floating(t) / self.T

    def log_sigma(self, t: Any) -> Array:
        return jnp.log(floating(t) / self.T)

    def inverse_log_snr(self, log_snr: Any) -> Array:
        return self.T * jax.nn.sigmoid(-0.5 * floating(log_snr))

    def f(self, t: Any) -> Array:
        return -1 / (self.T * self.alpha(t))

    def g2(self, t: Any) -> Array:
        return 2 * self.sigma(t) / (self.T * self.alpha(t))

    def alpha_rate(self, t: Any) -> Array:
        return jnp.full_like(floating(t), -1 / self.T)

    def sigma_rate(self, t: Any) -> Array:
        return jnp.full_like(floating(t), 1 / self.T)

    def prior_std(self) -> Array:
        return jnp.asarray(1.0)
