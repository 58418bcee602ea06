"""Score matching for a plain score: no process and no noise schedule, only data and a function score(x), or an energy
with score = −∇energy.

All three objectives differ from ½·E‖score(x) − ∇ log p(x)‖² by a constant of the density p alone: that of the data for
the implicit and the sliced objective (Hyvärinen 2005; 1905.07088), that of the data with noise σ for the denoising one
(Vincent 2011). Their values are those of each sample, so that any reduction, weight or stratification can be made of
them; a score maps x (batch, …), row by row, to an array like it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffuse_jax.likelihood import exact_trace
from diffuse_jax.sde import Array, expand
from diffuse_jax.sde.process import row_sums

__all__ = [
    "Score",
    "denoising_score_matching_of",
    "implicit_score_matching",
    "score_of_energy",
    "sliced_score_matching",
]

Score = Callable[[Array], Array]


def score_of_energy(energy: Callable[[Array], Array]) -> Score:
    """The score −∇energy of the density ∝ exp(−energy(x)), energy mapping x (batch, …) to (batch,), row by row."""
    return lambda x: -jax.grad(lambda x: jnp.sum(energy(x)))(x)


def implicit_score_matching(score: Score, x: Array) -> Array:
    """∇·score(x) + ½‖score(x)‖² of each sample x (batch, …), (batch,) (Hyvärinen 2005, theorem 1).

    The divergence is exact, from as many derivatives as a sample has entries. Its mean over data whose density vanishes
    at infinity is ½·E‖score − ∇ log p‖² − ½·E‖∇ log p‖²; a density that ends in a jump has no such formula.
    """

    def one(x: Array) -> Array:
        value, divergence = exact_trace(lambda point: score(point[None])[0], x, None)
        return divergence + 0.5 * jnp.sum(jnp.square(value))

    return jax.vmap(one)(x)


def sliced_score_matching(score: Score, x: Array, v: Array, *, variance_reduced: bool = True) -> Array:
    """vᵀ·∇(vᵀ·score(x)) + ½‖score(x)‖² of each sample, from one Jacobian-vector product (1905.07088).

    Its mean over v is `implicit_score_matching`. Several directions a sample are several calls, or a vmap over v.

    Args:
        score: The score, mapping x (batch, …) row by row to an array like it.
        x: Data (batch, …).
        v: Directions, shaped like x: draws with E[v·vᵀ] = I, standard normal or random signs.
        variance_reduced: False has ½(vᵀ·score)² for the second term, with the same mean.

    Returns:
        The objective of each sample, (batch,).
    """
    value, derivative = jax.jvp(score, (x,), (v,))
    projected, curvature, square = (row_sums(a) for a in (v * value, v * derivative, jnp.square(value)))
    return curvature + 0.5 * (square if variance_reduced else jnp.square(projected))


def denoising_score_matching_of(score: Score, x: Array, eps: Array, sigma: Array | float) -> Array:
    """½‖score(x + σ·eps) + eps/σ‖² of each sample (Vincent 2011). Its minimiser is the score of the data with that
    noise.

    Args:
        score: The score, mapping x (batch, …) row by row to an array like it.
        x: Data (batch, …).
        eps: Standard normal, shaped like x.
        sigma: σ > 0, one number, or one a sample (batch,).

    Returns:
        The objective of each sample, (batch,).
    """
    std = expand(sigma, x)
    return 0.5 * row_sums(jnp.square(score(x + std * eps) + eps / std))
