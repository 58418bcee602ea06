"""Linear-Gaussian diffusion processes dx = f(t)·x dt + g(t) dw on [0, T], as pure functions of time.

A process is defined by log α(t) and log σ(t), where x(t) | x_0 ~ N(α(t)·x_0, σ(t)²·I). Everything else is derived from
them, once for all processes:

    log_snr = 2(log α − log σ),    f = d log α/dt,    g² = −σ²·d log_snr/dt,
    x(t) | x(s) ~ N((α_t/α_s)·x(s), −σ_t²·expm1(log_snr_t − log_snr_s)·I)    for s < t.

Small times are where α and σ lose their digits, so closed forms work in log space and through `expm1`; `1 - exp(…)`
appears nowhere.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffuse_jax.trees import pytree, static

__all__ = ["SDE", "Array", "TimeFunction", "VariancePreserving", "expand", "floating", "row_sums", "time_derivative"]

Array = jax.Array
"""`jax.Array`."""
TimeFunction = Callable[[Any], Array]
"""A function of time, elementwise: t () or (n,) to an array of the same shape."""


def expand(t: Any, x: Array) -> Array:
    """`t`, a scalar or (batch,), with trailing axes of length 1 so that it broadcasts against x (batch, …)."""
    t = jnp.asarray(t)
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim)) if t.ndim else t


def row_sums(values: Array) -> Array:
    """The sum over each sample's entries: (batch, …) to (batch,)."""
    return jnp.sum(values.reshape(values.shape[0], -1), axis=-1)


def time_derivative(function: TimeFunction, t: Any) -> Array:
    """d function/dt at every entry of `t`: one forward derivative, since entries do not depend on each other."""
    t = floating(t)
    return jax.jvp(function, (t,), (jnp.ones_like(t),))[1]


def floating(t: Any) -> Array:
    """`t` as an array of floating-point numbers."""
    return jnp.asarray(t, jnp.result_type(t, float))


@pytree
class SDE:
    """A process on [0, T]. A subclass defines `log_alpha` and `log_sigma`, both elementwise in t, and may override the
    rest.

    Subclasses are frozen dataclasses and pytrees, as the decorator `diffuse_jax.pytree` makes them, with their numbers
    as leaves: a process can be vmapped over a parameter, or learned. `marginal` is exact on [0, T]; `log_snr`, `f` and
    `g2` on (0, T), because at the ends they may be infinite.

    Args:
        T: The end of time, where x is noise. Static.
        t_min: The time at which sampling stops by default, t_min > 0. Static.
        t_max: The time at which sampling starts by default; None is T. Static.
    """

    T: float = static(default=1.0, kw_only=True)
    t_min: float = static(default=1e-3, kw_only=True)
    t_max: float | None = static(default=None, kw_only=True)

    @property
    def t_start(self) -> float:
        """`t_max`, or T where it is None."""
        return self.T if self.t_max is None else self.t_max

    def log_alpha(self, t: Any) -> Array:
        """log of the factor on x_0, elementwise in t."""
        raise TypeError(f"{type(self).__name__} states no log_alpha(t): a process needs log_alpha and log_sigma")

    def log_sigma(self, t: Any) -> Array:
        """log of the standard deviation of x(t) given x_0, elementwise in t; −inf where there is no noise."""
        raise TypeError(f"{type(self).__name__} states no log_sigma(t): a process needs log_alpha and log_sigma")

    def alpha(self, t: Any) -> Array:
        return jnp.exp(self.log_alpha(t))

    def sigma(self, t: Any) -> Array:
        return jnp.exp(self.log_sigma(t))

    def log_snr(self, t: Any) -> Array:
        """log α²/σ², strictly decreasing in t."""
        return 2 * (self.log_alpha(t) - self.log_sigma(t))

    def inverse_log_snr(self, log_snr: Any) -> Array:
        """The time at which log_snr(t) is the given value, clamped to [0, T].

        Bisection to the resolution of the floating-point type, then a Newton step of value zero, which carries the
        first derivatives (with respect to the value, and to the parameters of the process) of the implicit function.
        """
        value = floating(log_snr)

        def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bracket
            middle = 0.5 * (low + high)
            too_early = self.log_snr(middle) > value
            return jnp.where(too_early, middle, low), jnp.where(too_early, high, middle)

        # Times near 0 have a finer grid of floats than times near T: 30 halvings more than the mantissa reach 1e-9·T
        # with all digits.
        halvings = jnp.finfo(value.dtype).nmant + 30
        bracket = (jnp.zeros_like(value), jnp.full_like(value, self.T))
        low, high = jax.lax.fori_loop(0, halvings, halve, bracket)
        root = jax.lax.stop_gradient(0.5 * (low + high))
        slope = jax.lax.stop_gradient(time_derivative(self.log_snr, root))
        # Newton's step itself would add rounding errors of log_snr to a root that is as good as floats can tell.
        newton = (value - self.log_snr(root)) / slope
        late, early = value <= self.log_snr(self.T), value >= self.log_snr(0.0)
        return jnp.select([late, early], [self.T, 0.0], root + newton - jax.lax.stop_gradient(newton))

    def f(self, t: Any) -> Array:
        """The drift's coefficient d log α/dt."""
        return time_derivative(self.log_alpha, t)

    def g2(self, t: Any) -> Array:
        """The squared diffusion coefficient −σ²·d log_snr/dt."""
        return -jnp.exp(2 * self.log_sigma(t)) * time_derivative(self.log_snr, t)

    def drift(self, x: Array, t: Any) -> Array:
        """f(t)·x."""
        return expand(self.f(t), x) * x

    def diffusion(self, t: Any) -> Array:
        """g(t) ≥ 0."""
        return jnp.sqrt(self.g2(t))

    def alpha_rate(self, t: Any) -> Array:
        """dα/dt, the factor on x0 in the probability flow dx/dt = α′·x0 + σ′·eps."""
        return self.alpha(t) * self.f(t)

    def sigma_rate(self, t: Any) -> Array:
        """dσ/dt = f·σ + g²/(2σ), the factor on eps in the probability flow."""
        sigma = self.sigma(t)
        return self.f(t) * sigma + 0.5 * self.g2(t) / sigma

    def marginal(self, x0: Array, t: Any) -> tuple[Array, Array]:
        """Mean, shaped like x0, and standard deviation, broadcastable to it, of x(t) given the clean x0 (batch, …)."""
        return expand(self.alpha(t), x0) * x0, expand(self.sigma(t), x0)

    def perturb(self, x0: Array, t: Any, eps: Array) -> Array:
        """α(t)·x0 + σ(t)·eps: a draw of x(t) given x0 when eps is standard normal.

        Args:
            x0: Data (batch, …).
            t: Their times, a scalar or (batch,).
            eps: Noise, shaped like x0.

        Returns:
            x(t), shaped like x0.
        """
        mean, std = self.marginal(x0, t)
        return mean + std * eps

    def transition(self, s: Any, t: Any) -> tuple[Array, Array]:
        """Factor and standard deviation of x(t) given x(s), 0 < s ≤ t: x(t) = factor·x(s) + std·(standard normal)."""
        factor = jnp.exp(self.log_alpha(t) - self.log_alpha(s))
        return factor, self.sigma(t) * jnp.sqrt(-jnp.expm1(self.log_snr(t) - self.log_snr(s)))

    def prior_std(self) -> Array:
        """Standard deviation of the prior N(0, prior_std²·I) from which sampling starts at T; σ(T) unless the process
        says otherwise."""
        return self.sigma(self.T)

    def prior_log_prob(self, z: Array) -> Array:
        """Log density of the prior at z (batch, …), in nats, shape (batch,)."""
        dims = int(np.prod(z.shape[1:]))
        std = jnp.asarray(self.prior_std(), z.dtype)
        square = row_sums(jnp.square(z / std))
        return -0.5 * (dims * jnp.log(2 * jnp.pi) + square) - dims * jnp.log(std)


@pytree
class VariancePreserving(SDE):
    """What follows from α² + σ² = 1, where a subclass defines `log_alpha`: σ² = −expm1(2·log α), g² = −2f, prior N(0,
    I).

    Args:
        T: The end of time. Static.
        t_min: The time at which sampling stops by default. Static.
        t_max: The time at which sampling starts by default; None is T. Static.
    """

    def log_sigma(self, t: Any) -> Array:
        return 0.5 * jnp.log(-jnp.expm1(2 * self.log_alpha(t)))

    def g2(self, t: Any) -> Array:
        return -2 * self.f(t)

    def sigma_rate(self, t: Any) -> Array:
        # From σσ′ = −αα′: f·σ + g²/(2σ) is a difference of nearly equal numbers where σ is nearly 1.
        return -self.f(t) * jnp.exp(2 * self.log_alpha(t) - self.log_sigma(t))

    def prior_std(self) -> Array:
        return jnp.asarray(1.0)  # weakly typed: it takes the precision of what it scales
