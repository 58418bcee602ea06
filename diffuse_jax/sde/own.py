"""Processes that a user defines by functions of time: (log α, log σ), (f, g) with σ(0), or β."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffuse_jax.sde.process import SDE, Array, TimeFunction, VariancePreserving, floating
from diffuse_jax.trees import pytree, static

__all__ = ["from_beta", "from_drift_diffusion", "from_log_alpha_sigma"]


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
        t = floating(t)
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
        t = floating(t)
        return jnp.broadcast_to(self.f_function(t), t.shape)

    def g2(self, t: Any) -> Array:
        t = floating(t)
        return jnp.broadcast_to(jnp.square(self.g_function(t)), t.shape)

    def prior_std(self) -> Array:
        return super().prior_std() if self.prior_std_value is None else jnp.asarray(self.prior_std_value)


@pytree
class _FromBeta(VariancePreserving):
    beta_function: Any = None
    integrated_function: Any = None
    order: int = static(default=64)

    def log_alpha(self, t: Any) -> Array:
        t = floating(t)
        if self.integrated_function is not None:
            return -0.5 * jnp.broadcast_to(self.integrated_function(t), t.shape)
        nodes, weights, _ = (jnp.asarray(a, t.dtype) for a in _quadrature(self.order))
        return -0.5 * t * jnp.sum(weights * self.beta_function(t[..., None] * nodes), axis=-1)

    def f(self, t: Any) -> Array:
        t = floating(t)
        return -0.5 * jnp.broadcast_to(self.beta_function(t), t.shape)


def from_log_alpha_sigma(
    log_alpha: TimeFunction,
    log_sigma: TimeFunction,
    *,
    T: float = 1.0,
    t_min: float = 1e-3,
    t_max: float | None = None,
    prior_std: float | None = None,
) -> SDE:
    """A process from log α(t) and log σ(t).

    A plain function is compared by identity under jit; `jax.tree_util.Partial(function, parameters)` keeps its
    parameters as leaves.

    Args:
        log_alpha: log α, elementwise in t.
        log_sigma: log σ, elementwise in t.
        T: The end of time. Static.
        t_min: The time at which sampling stops by default. Static.
        t_max: The time at which sampling starts by default; None is T. Static.
        prior_std: The standard deviation of the prior; None is σ(T).

    Returns:
        The process.

    Raises:
        TypeError: Where a function does not map times to values of the same shape.
    """
    return _FromLogAlphaSigma(
        log_alpha_function=_time_function(log_alpha, "log_alpha"),
        log_sigma_function=_time_function(log_sigma, "log_sigma"),
        prior_std_value=prior_std,
        T=T,
        t_min=t_min,
        t_max=t_max,
    )


def from_drift_diffusion(
    f: TimeFunction,
    g: TimeFunction,
    sigma_0: float = 0.0,
    *,
    T: float = 1.0,
    t_min: float = 1e-3,
    t_max: float | None = None,
    prior_std: float | None = None,
    order: int = 64,
) -> SDE:
    """The process dx = f(t)·x dt + g(t) dw with x(0) ~ N(x_0, sigma_0²), whose α and σ are integrated by the library.

    Args:
        f: The drift's coefficient, elementwise and smooth on [0, T].
        g: The diffusion coefficient, elementwise and smooth on [0, T].
        sigma_0: The standard deviation of the noise at t = 0.
        T: The end of time. Static.
        t_min: The time at which sampling stops by default. Static.
        t_max: The time at which sampling starts by default; None is T. Static.
        prior_std: The standard deviation of the prior; None is σ(T).
        order: The number of Gauss–Legendre nodes on [0, t] for the integrals; 64 reach float32 precision for
            coefficients such as those of VP, sub-VP and VE. Static.

    Returns:
        The process.

    Raises:
        TypeError: For a drift that is not linear in x or a diffusion that is not one number for each time, both out of
            scope.
    """
    return _FromDriftDiffusion(
        f_function=_time_function(f, "f"),
        g_function=_time_function(g, "g"),
        sigma_0=sigma_0,
        prior_std_value=prior_std,
        order=order,
        T=T,
        t_min=t_min,
        t_max=t_max,
    )


def from_beta(
    beta: TimeFunction,
    *,
    integrated_beta: TimeFunction | None = None,
    T: float = 1.0,
    t_min: float = 1e-3,
    t_max: float | None = None,
    order: int = 64,
) -> SDE:
    """The variance-preserving process dx = −½β(t)·x dt + √β(t) dw (2011.13456, eq. 11) of any β > 0 on (0, T].

    α = e^{−B/2} and σ² = 1 − e^{−B} with B(t) = ∫₀ᵗ β; the prior is N(0, I). Functions bound with
    `jax.tree_util.Partial` keep their numbers as leaves.

    Args:
        beta: β, elementwise in t.
        integrated_beta: B, elementwise in t; None integrates β by quadrature.
        T: The end of time. Static.
        t_min: The time at which sampling stops by default. Static.
        t_max: The time at which sampling starts by default; None is T. Static.
        order: The number of Gauss–Legendre nodes on [0, t] for the quadrature. Static.

    Returns:
        The process.

    Raises:
        TypeError: Where a function does not map times to values of the same shape.
    """
    return _FromBeta(
        beta_function=_time_function(beta, "beta"),
        integrated_function=None if integrated_beta is None else _time_function(integrated_beta, "integrated_beta"),
        order=order,
        T=T,
        t_min=t_min,
        t_max=t_max,
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
