"""Closed forms to hold everything else against: denoisers, densities and flows of Gaussian, Gaussian-mixture,
point-mass and uniform data.

Data N(m, S) gives x(t) ~ N(α·m, C) with C = α²·S + σ²·I, and E[x_0 | x] = m + α·S·C⁻¹(x − α·m); a mixture weighs its
components by their responsibilities; on a box, x_0 given x is a truncated Gaussian in each coordinate. All are
denoisers (`diffuse_jax.denoiser.Denoiser`), over vectors x (batch, d), or any shape for a point or a box.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffuse_jax.denoiser import Denoised
from diffuse_jax.sde import SDE, Array, expand
from diffuse_jax.sde.process import row_sums
from diffuse_jax.trees import pytree

__all__ = ["Gaussian", "Mixture", "PointMass", "UniformBox"]


@pytree
class Gaussian:
    """Data N(mean, cov).

    Args:
        sde: The process.
        mean: The mean (d,).
        cov: The covariance (d, d), positive semi-definite.
    """

    sde: SDE
    mean: Array
    cov: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.mean.shape

    def marginal(self, t: Any) -> tuple[Array, Array]:
        """Mean (…, d) and covariance (…, d, d) of x(t), for t of shape (…)."""
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        identity = jnp.eye(self.mean.shape[0], dtype=self.mean.dtype)
        square = jnp.square(alpha)[..., None, None] * self.cov + jnp.square(sigma)[..., None, None] * identity
        return alpha[..., None] * self.mean, square

    def __call__(self, x: Array, t: Any, cond: Any = None) -> Denoised:
        mean, cov = self.marginal(t)
        # One factorization for the whole batch where the time is one.
        solved = jnp.linalg.solve(cov, (x - mean).T).T if cov.ndim == 2 else _solve_each(cov, x - mean)
        alpha, sigma = expand(self.sde.alpha(t), x), expand(self.sde.sigma(t), x)
        return Denoised(self.mean + alpha * jnp.matvec(self.cov, solved), sigma * solved)

    def log_prob(self, x: Array, t: Any) -> Array:
        """Log density of x(t) at x (batch, d), shape (batch,)."""
        mean, cov = self.marginal(jnp.broadcast_to(t, x.shape[:1]))
        return _normal_log_prob(x, mean, cov)

    def flow(self, x: Array, t: Any, s: Any) -> Array:
        """Where the probability flow takes x: α_s·m + C_s^{1/2}·C_t^{−1/2}·(x − α_t·m).

        Args:
            x: States (batch, d) at time t.
            t: The time at which they start, a scalar.
            s: The time to which they go, a scalar.

        Returns:
            The states at time s, (batch, d).
        """
        values, vectors = jnp.linalg.eigh(self.cov)
        gain = jnp.sqrt(self._eigenvalues(values, s) / self._eigenvalues(values, t))
        centred = jnp.matvec(vectors.T, x - self.sde.alpha(t) * self.mean)
        return self.sde.alpha(s) * self.mean + jnp.matvec(vectors, gain * centred)

    def _eigenvalues(self, values: Array, t: Any) -> Array:
        return jnp.square(self.sde.alpha(t)) * values + jnp.square(self.sde.sigma(t))


@pytree
class Mixture:
    """Data Σ_k weights_k·N(means_k, stds_k²·I).

    Args:
        sde: The process.
        weights: The weights of the components (k,), summing to 1.
        means: Their means (k, d).
        stds: Their standard deviations (k,).
    """

    sde: SDE
    weights: Array
    means: Array
    stds: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.means.shape[1:]

    def _components(self, x: Array, t: Any) -> tuple[Array, Array, Array]:
        """Log joint density (batch, k), offsets x − α·means (batch, k, d) and variances (batch, k, 1) of x(t)."""
        t = jnp.broadcast_to(t, x.shape[:1])
        alpha, sigma = self.sde.alpha(t)[:, None, None], self.sde.sigma(t)[:, None, None]
        variance = jnp.square(alpha * self.stds[:, None]) + jnp.square(sigma)
        offset = x[:, None, :] - alpha * self.means
        dims = x.shape[-1]
        log_density = -0.5 * (
            jnp.sum(jnp.square(offset) / variance, -1) + dims * jnp.log(2 * jnp.pi * variance[..., 0])
        )
        return jnp.log(self.weights) + log_density, offset, variance

    def __call__(self, x: Array, t: Any, cond: Any = None) -> Denoised:
        log_joint, offset, variance = self._components(x, t)
        responsibility = jax.nn.softmax(log_joint, axis=-1)[..., None]
        t = jnp.broadcast_to(t, x.shape[:1])
        alpha, sigma = self.sde.alpha(t)[:, None, None], self.sde.sigma(t)[:, None]
        x0 = self.means + alpha * jnp.square(self.stds)[:, None] / variance * offset
        return Denoised(jnp.sum(responsibility * x0, 1), sigma * jnp.sum(responsibility * offset / variance, 1))

    def log_prob(self, x: Array, t: Any) -> Array:
        """Log density of x(t) at x (batch, d), shape (batch,)."""
        return jax.nn.logsumexp(self._components(x, t)[0], axis=-1)


@pytree
class PointMass:
    """Data that is always one point: x0 = point and eps = (x − α·point)/σ, whatever x (batch, …).

    Args:
        sde: The process.
        point: The point, of any shape.
    """

    sde: SDE
    point: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.point.shape

    def __call__(self, x: Array, t: Any, cond: Any = None) -> Denoised:
        x0 = jnp.broadcast_to(self.point, x.shape)
        mean, std = self.sde.marginal(x0, t)
        return Denoised(x0, (x - mean) / std)


# A truncated Gaussian is integrated over what is within _NATS of its mode in log density, on which Gauss–Legendre
# quadrature of this order is exact to the rounding of float64. Unlike a difference of distribution functions, a sum of
# positive terms cancels nowhere: not in the far tails, not where the box is narrow against the noise.
_NATS = 40.0
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)


@pytree
class UniformBox:
    """Data uniform on the box low ≤ x_0 ≤ high.

    Given x(t) = x, each coordinate of x_0 is N(x/α, σ²/α²) truncated to [low, high]. Its score is neither a Gaussian's
    nor a mixture's: near 0 inside the box's image α·[low, high], and bending within σ of its ends.

    Args:
        sde: The process.
        low: The smallest value of each coordinate.
        high: The largest, low < high; both broadcast to the shape of one sample, which may be any.
    """

    sde: SDE
    low: Array
    high: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return jnp.broadcast_shapes(jnp.shape(self.low), jnp.shape(self.high))

    def _truncated(self, x: Array, t: Any) -> tuple[Array, Array, Array, Array]:
        """The posterior's mode x0 in the box, its distance z = (α·mode − x)/σ from x, and of y = α·(x0 − mode)/σ, with
        density ∝ exp(−z·y − y²/2): the mean, and the log of its integral. All shaped like x."""
        alpha, sigma = expand(self.sde.alpha(t), x), expand(self.sde.sigma(t), x)
        free = x / alpha
        below, above = free < self.low, free > self.high
        mode = jnp.where(below, self.low, jnp.where(above, self.high, free))
        z = jnp.where(below | above, (alpha * mode - x) / sigma, 0.0)
        # The y with z·y + y²/2 = _NATS.
        reach = 2 * _NATS / (jnp.abs(z) + jnp.sqrt(jnp.square(z) + 2 * _NATS))
        down = jnp.minimum(alpha * (mode - self.low) / sigma, reach)[..., None]
        up = jnp.minimum(alpha * (self.high - mode) / sigma, reach)[..., None]
        nodes, weights = jnp.asarray(_NODES, x.dtype), jnp.asarray(_WEIGHTS, x.dtype)
        y = 0.5 * (up * (1 + nodes) - down * (1 - nodes))
        density = weights * jnp.exp(-y * (z[..., None] + 0.5 * y))
        mass = jnp.sum(density, axis=-1)
        return mode, z, jnp.sum(y * density, axis=-1) / mass, jnp.log(0.5 * (up + down)[..., 0] * mass)

    def __call__(self, x: Array, t: Any, cond: Any = None) -> Denoised:
        mode, z, mean, _ = self._truncated(x, t)
        return Denoised(mode + expand(self.sde.sigma(t) / self.sde.alpha(t), x) * mean, -(z + mean))

    def log_prob(self, x: Array, t: Any) -> Array:
        """Log density of x(t) at x (batch, …), shape (batch,)."""
        _, z, _, log_integral = self._truncated(x, t)
        log_volume = expand(self.sde.log_alpha(t), x) + jnp.log(jnp.asarray(self.high) - self.low)
        each = log_integral - 0.5 * (jnp.square(z) + jnp.log(2 * jnp.pi)) - log_volume
        return row_sums(each)


def _normal_log_prob(x: Array, mean: Array, cov: Array) -> Array:
    factor = jnp.linalg.cholesky(cov)
    white = jax.scipy.linalg.solve_triangular(factor, (x - mean)[..., None], lower=True)[..., 0]
    log_det = jnp.sum(jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)), -1)
    return -0.5 * (jnp.sum(jnp.square(white), -1) + x.shape[-1] * jnp.log(2 * jnp.pi)) - log_det


def _solve_each(cov: Array, x: Array) -> Array:
    return jnp.linalg.solve(cov, x[..., None])[..., 0]
