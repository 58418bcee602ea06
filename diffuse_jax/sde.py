"""Linear-Gaussian diffusion processes dx = f(t)·x dt + g(t) dw on [0, T], as pure functions of time.

A process states log α(t) and log σ(t), where x(t) | x_0 ~ N(α(t)·x_0, σ(t)²·I). Everything else follows once, for all:

    log_snr = 2(log α − log σ),    f = d log α/dt,    g² = −σ²·d log_snr/dt,
    x(t) | x(s) ~ N((α_t/α_s)·x(s), −σ_t²·expm1(log_snr_t − log_snr_s)·I)    for s < t.

VP, sub-VP and VE are those of Song et al., "Score-Based Generative Modeling through SDEs" (arXiv 2011.13456, §3.4 and
appendix B). Small times are where α and σ lose their digits, so the closed forms work in log space and through `expm1`;
`1 - exp(…)` appears nowhere.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffuse_jax._pytree import pytree, static

__all__ = ["SDE", "VE", "VP", "SubVP", "expand", "from_drift_diffusion", "from_log_alpha_sigma"]

Array = jax.Array
TimeFunction = Callable[[Any], Array]


def expand(t: Any, x: Array) -> Array:
    """`t`, a scalar or (batch,), with trailing axes of length 1 so that it broadcasts against x (batch, …)."""
    t = jnp.asarray(t)
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim)) if t.ndim else t


def _time_derivative(function: TimeFunction, t: Any) -> Array:
    """d function/dt at every entry of `t`: one forward derivative, since entries do not depend on each other."""
    t = jnp.asarray(t, jnp.result_type(t, float))
    return jax.jvp(function, (t,), (jnp.ones_like(t),))[1]


@pytree
class SDE:
    """A process on [0, T]. A subclass states `log_alpha` and `log_sigma`, both elementwise in t, and may override the
    rest.

    Subclasses are frozen dataclasses registered as pytrees (`jax.tree_util.register_dataclass`), with their numbers as
    leaves: a process can be vmapped over a parameter, or learned. `marginal` is exact on [0, T]; `log_snr`, `f` and
    `g2` on (0, T), because at the ends they may be infinite. `T` is the end of time and `t_min` the time at which
    sampling stops by default; both are static.
    """

    T: float = static(default=1.0, kw_only=True)
    t_min: float = static(default=1e-3, kw_only=True)

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
        value = jnp.asarray(log_snr, jnp.result_type(log_snr, float))

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
        slope = jax.lax.stop_gradient(_time_derivative(self.log_snr, root))
        # Newton's step itself would add rounding errors of log_snr to a root that is as good as floats can tell.
        newton = (value - self.log_snr(root)) / slope
        late, early = value <= self.log_snr(self.T), value >= self.log_snr(0.0)
        return jnp.select([late, early], [self.T, 0.0], root + newton - jax.lax.stop_gradient(newton))

    def f(self, t: Any) -> Array:
        """The drift's coefficient d log α/dt."""
        return _time_derivative(self.log_alpha, t)

    def g2(self, t: Any) -> Array:
        """The squared diffusion coefficient −σ²·d log_snr/dt."""
        return -jnp.exp(2 * self.log_sigma(t)) * _time_derivative(self.log_snr, t)

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
        """α(t)·x0 + σ(t)·eps: a draw of x(t) given x0 when eps is standard normal."""
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
        std = self.prior_std()
        square = jnp.sum(jnp.square(z / std).reshape(z.shape[0], -1), axis=-1)
        return -0.5 * (dims * jnp.log(2 * jnp.pi) + square) - dims * jnp.log(std)


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
        return jnp.ones(())


@pytree
class VP(_LinearBeta):
    """Variance preserving (2011.13456, eq. 11): f = −β/2, g² = β, σ² = 1 − e^{−B}; the continuous limit of DDPM."""

    def log_sigma(self, t: Any) -> Array:
        return 0.5 * jnp.log(-jnp.expm1(-self.integrated_beta(t)))

    def inverse_log_snr(self, log_snr: Any) -> Array:
        value = jnp.maximum(log_snr, self.log_snr(self.T))
        return self.time_of_integrated_beta(jax.nn.softplus(-value))

    def g2(self, t: Any) -> Array:
        return self.beta(t)


@pytree
class SubVP(_LinearBeta):
    """Sub-variance-preserving (2011.13456, eq. 12): f = −β/2, g² = β(1 − e^{−2B}), σ = 1 − e^{−B}."""

    def log_sigma(self, t: Any) -> Array:
        return jnp.log(-jnp.expm1(-self.integrated_beta(t)))

    def inverse_log_snr(self, log_snr: Any) -> Array:
        # α/σ = e^{−B/2}/(1 − e^{−B}) = 1/(2 sinh(B/2))
        value = jnp.maximum(log_snr, self.log_snr(self.T))
        return self.time_of_integrated_beta(2 * jnp.arcsinh(0.5 * jnp.exp(-0.5 * value)))

    def g2(self, t: Any) -> Array:
        return -self.beta(t) * jnp.expm1(-2 * self.integrated_beta(t))


@pytree
class VE(SDE):
    """Variance exploding (2011.13456, eq. 9): f = 0, σ = σ_min(σ_max/σ_min)^{t/T}; x(0) already carries the noise
    σ_min."""

    sigma_min: Any = 0.01
    sigma_max: Any = 50.0
    t_min: float = static(default=1e-5, kw_only=True)

    def _log_ratio(self) -> Array:
        return jnp.log(jnp.asarray(self.sigma_max) / self.sigma_min)

    def log_alpha(self, t: Any) -> Array:
        return jnp.zeros_like(jnp.asarray(t, jnp.result_type(t, float)))

    def log_sigma(self, t: Any) -> Array:
        return jnp.log(self.sigma_min) + jnp.asarray(t) / self.T * self._log_ratio()

    def inverse_log_snr(self, log_snr: Any) -> Array:
        log_sigma = -0.5 * jnp.asarray(log_snr)
        return jnp.clip(self.T * (log_sigma - jnp.log(self.sigma_min)) / self._log_ratio(), 0, self.T)

    def f(self, t: Any) -> Array:
        return self.log_alpha(t)

    def g2(self, t: Any) -> Array:
        return jnp.square(self.sigma(t)) * 2 * self._log_ratio() / self.T


# --- processes that a user states by two functions -------------------------------------------------------------------


@pytree
class _FromLogAlphaSigma(SDE):
    log_alpha_function: Any = None
    log_sigma_function: Any = None
    prior_std_value: Any = None

    def log_alpha(self, t: Any) -> Array:
        return jnp.broadcast_to(self.log_alpha_function(t), jnp.shape(t))

    def log_sigma(self, t: Any) -> Array:
        return jnp.broadcast_to(self.log_sigma_function(t), jnp.shape(t))

    def prior_std(self) -> Array:
        return super().prior_std() if self.prior_std_value is None else jnp.asarray(self.prior_std_value)


# Gauss–Legendre nodes on [0, 1], their weights, and the matrix that integrates the interpolating polynomial from 0 to
# each node. With s = t·u the nodes follow t, so the relative accuracy is the same at t = 1e-5 as at T, and every term
# of σ² is positive: nothing cancels.
def _quadrature(order: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(order)
    vandermonde = np.polynomial.legendre.legvander(nodes, order - 1)
    degrees = np.arange(order)
    # Discrete orthogonality inverts the Vandermonde matrix exactly: coefficients = (2k + 1)/2 · Σ_j w_j P_k(x_j)
    # values_j.
    to_coefficients = (2 * degrees + 1)[:, None] / 2 * (vandermonde * weights[:, None]).T
    # ∫_{−1}^x P_k = (P_{k+1} − P_{k−1})/(2k + 1), and 1 + x for k = 0.
    high = np.polynomial.legendre.legvander(nodes, order)
    integrals = np.empty((order, order))
    integrals[:, 0] = 1 + nodes
    integrals[:, 1:] = (high[:, 2:] - high[:, : order - 1]) / (2 * degrees[1:] + 1)
    return 0.5 * (nodes + 1), 0.5 * weights, 0.5 * integrals @ to_coefficients


@pytree
class _FromDriftDiffusion(SDE):
    f_function: Any = None
    g_function: Any = None
    sigma_0: Any = 0.0
    prior_std_value: Any = None
    order: int = static(default=64)

    def _integrate(self, t: Any) -> tuple[Array, Array]:
        """(log α(t), log σ(t)) with log α = ∫₀ᵗ f and σ² = α²·σ_0² + ∫₀ᵗ g(s)²·(α_t/α_s)² ds."""
        t = jnp.asarray(t, jnp.result_type(t, float))
        nodes, weights, cumulative = (jnp.asarray(a, t.dtype) for a in _quadrature(self.order))
        s = t[..., None] * nodes
        f = jnp.broadcast_to(self.f_function(s), s.shape)
        # A sum of products, not a matrix product: accelerators would round the factors of the latter.
        log_alpha_s = t[..., None] * jnp.sum(cumulative * f[..., None, :], axis=-1)
        log_alpha = t * jnp.sum(weights * f, axis=-1)
        gain = jnp.square(self.g_function(s)) * jnp.exp(2 * (log_alpha[..., None] - log_alpha_s))
        variance = jnp.square(self.sigma_0 * jnp.exp(log_alpha)) + t * jnp.sum(weights * gain, axis=-1)
        return log_alpha, 0.5 * jnp.log(variance)

    def log_alpha(self, t: Any) -> Array:
        return self._integrate(t)[0]

    def log_sigma(self, t: Any) -> Array:
        return self._integrate(t)[1]

    def f(self, t: Any) -> Array:
        t = jnp.asarray(t, jnp.result_type(t, float))
        return jnp.broadcast_to(self.f_function(t), t.shape)

    def g2(self, t: Any) -> Array:
        t = jnp.asarray(t, jnp.result_type(t, float))
        return jnp.broadcast_to(jnp.square(self.g_function(t)), t.shape)

    def prior_std(self) -> Array:
        return super().prior_std() if self.prior_std_value is None else jnp.asarray(self.prior_std_value)


def from_log_alpha_sigma(
    log_alpha: TimeFunction,
    log_sigma: TimeFunction,
    *,
    T: float = 1.0,
    t_min: float = 1e-3,
    prior_std: float | None = None,
) -> SDE:
    """A process from log α(t) and log σ(t), each elementwise in t. The prior is N(0, σ(T)²) unless `prior_std` is
    given.

    A plain function is compared by identity under jit; `jax.tree_util.Partial(function, parameters)` keeps its
    parameters as leaves. Raises TypeError where a function does not map times to values of the same shape.
    """
    return _FromLogAlphaSigma(
        log_alpha_function=_time_function(log_alpha, "log_alpha"),
        log_sigma_function=_time_function(log_sigma, "log_sigma"),
        prior_std_value=prior_std,
        T=T,
        t_min=t_min,
    )


def from_drift_diffusion(
    f: TimeFunction,
    g: TimeFunction,
    sigma_0: float = 0.0,
    *,
    T: float = 1.0,
    t_min: float = 1e-3,
    prior_std: float | None = None,
    order: int = 64,
) -> SDE:
    """The process dx = f(t)·x dt + g(t) dw with x(0) ~ N(x_0, sigma_0²), whose α and σ are integrated by the library.

    `f` and `g` are smooth functions of t on [0, T], elementwise; the integrals take `order` Gauss–Legendre nodes on [0,
    t], which reaches float32 precision for coefficients such as those of VP, sub-VP and VE at 64. The prior is N(0,
    σ(T)²) unless `prior_std` is given. Raises TypeError for a drift that is not linear in x or a diffusion that is not
    one number a time: both are out of scope.
    """
    return _FromDriftDiffusion(
        f_function=_time_function(f, "f"),
        g_function=_time_function(g, "g"),
        sigma_0=sigma_0,
        prior_std_value=prior_std,
        order=order,
        T=T,
        t_min=t_min,
    )


def _time_function(function: TimeFunction, name: str) -> jax.tree_util.Partial:
    """`function` as a pytree, once it is seen to map times (n,) to values (n,), or to one constant."""
    scope = "dx = f(t)·x dt + g(t) dw: a drift that is not linear in x or a matrix-valued noise is out of scope"
    times = jax.ShapeDtypeStruct((3,), jnp.float32)
    try:
        out = jax.eval_shape(lambda t: jnp.asarray(function(t)), times)
    except TypeError as error:
        raise TypeError(f"{name} must be a function of t alone, for the process {scope} ({error})") from error
    if out.shape not in ((3,), ()):
        raise TypeError(
            f"{name} must map times of shape (3,) to values of shape (3,), not {out.shape}, for the process {scope}"
        )
    return function if isinstance(function, jax.tree_util.Partial) else jax.tree_util.Partial(function)
