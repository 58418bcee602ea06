"""The evidence lower bound of a diffusion model, a bound on log p(x) without an ODE (Kingma et al., 2107.00630).

With the process as the encoder and the denoiser as the decoder, in nats,

    −log p(x) ≤ KL(q(z_1 | x) ‖ prior) + L + E[−log p(x | z_0)],

where z_0 and z_1 are x with the noise of the first and the last time. The diffusion term is

    L_T = ½·Σ_i expm1(log_snr(s_i) − log_snr(t_i))·E‖eps − eps(z_{t_i}, t_i)‖²      over the steps t_i → s_i of a chain,
    L_∞ = ½·(log_snr_max − log_snr_min)·E‖eps − eps(z_t, t)‖²                       over a uniform log-SNR, T → ∞

The bound of an autoencoder with one latent (Kingma & Welling, 1312.6114) has two terms alone,
`discretized_gaussian` and `standard_normal_kl`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr

from diffuse_jax._checks import (
    check_batched,
    check_denoiser,
    check_first_time,
    check_keys,
    check_levels,
    check_times,
)
from diffuse_jax._compile import compiled
from diffuse_jax.denoiser import Denoiser
from diffuse_jax.losses import stratify
from diffuse_jax.sampling import keyed_noise
from diffuse_jax.sde import SDE, Array
from diffuse_jax.sde.process import row_sums
from diffuse_jax.solvers.solver import Noise

__all__ = [
    "ELBO",
    "Reconstruction",
    "discrete_reconstruction",
    "discretized_gaussian",
    "elbo",
    "gaussian_reconstruction",
    "prior_kl",
    "standard_normal_kl",
]

#: (sde, x, eps, t) → −log p(x | z) in nats (batch,), at z = α·x + σ·eps.
Reconstruction = Callable[[SDE, Array, Array, Array], Array]


class ELBO(NamedTuple):
    """The terms of the bound in nats, each (batch,).

    Args:
        prior: What the prior costs, KL(q(z_1 | x) ‖ prior).
        diffusion: What the diffusion costs, L_T or L_∞.
        reconstruction: What the reconstruction costs, E[−log p(x | z_0)].
    """

    prior: Array
    diffusion: Array
    reconstruction: Array

    @property
    def total(self) -> Array:
        """The lower bound on log p(x), −(prior + diffusion + reconstruction)."""
        return -(self.prior + self.diffusion + self.reconstruction)


def prior_kl(sde: SDE, x: Array, t: Any) -> Array:
    """KL(N(α·x, σ²) ‖ N(0, P²)) = ½[α²‖x‖²/P² + d·(σ²/P² − 1 − ln(σ²/P²))], P being the process's prior_std.

    Args:
        sde: The process.
        x: Data (batch, …).
        t: The time of α and σ, a scalar.

    Returns:
        The divergence in nats, (batch,).
    """
    std = jnp.asarray(sde.prior_std(), x.dtype)
    log_ratio = 2 * (sde.log_sigma(t) - jnp.log(std))
    square = row_sums(jnp.square(x * sde.alpha(t) / std))
    return 0.5 * (square + _dims(x) * (jnp.expm1(log_ratio) - log_ratio))


def standard_normal_kl(mean: Array, log_variance: Array) -> Array:
    """KL(N(μ, diag σ²) ‖ N(0, I)) = ½·Σ(μ² + σ² − 1 − ln σ²) (1312.6114, appendix B).

    Args:
        mean: μ (batch, …).
        log_variance: ln σ², shaped like it.

    Returns:
        The divergence in nats, (batch,).
    """
    return 0.5 * row_sums(jnp.square(mean) + jnp.expm1(log_variance) - log_variance)


def discretized_gaussian(
    x: Array, mean: Array, log_scale: Array, *, levels: int = 256, range: tuple[float, float] = (-1.0, 1.0)
) -> Array:
    """log P(x) of data with equally spaced values: of each entry the mass that N(mean, scale²) has in the cell of its
    value, which reaches halfway to the next ones, and of the outermost to infinity. Over all values it sums to 1.

    Args:
        x: Data (batch, …), each entry one of the values.
        mean: The means, shaped like x.
        log_scale: The logarithms of the standard deviations, which broadcast against x.
        levels: The number of values, at least 2.
        range: The smallest and the largest of them.

    Returns:
        The log probability in nats, (batch,).

    Raises:
        ValueError: For less than two levels, and a range that does not ascend.
    """
    check_levels(levels, range)
    low, high = range
    spacing = (high - low) / (levels - 1)
    level = jnp.round((x - low) / spacing)
    above = (x + spacing / 2 - mean) * jnp.exp(-log_scale)
    below = (x - spacing / 2 - mean) * jnp.exp(-log_scale)
    # Φ(above) − Φ(below) = Φ(−below) − Φ(−above): of the two the one whose terms are not near 1.
    right = above + below > 0
    greater = log_ndtr(jnp.where(right, -below, above))
    less = log_ndtr(jnp.where(right, -above, below))
    inside = greater + jnp.log(-jnp.expm1(less - greater))
    outermost = log_ndtr(jnp.where(level == 0, above, -below))
    return row_sums(jnp.where((level == 0) | (level == levels - 1), outermost, inside))


def gaussian_reconstruction(sde: SDE, x: Array, eps: Array, t: Array) -> Array:
    """E[−log N(x; z/α, σ²/α²)] of continuous data, its mean ½·d·(1 + ln(2π) − log_snr(t)) whatever x and eps.

    Args:
        sde: The process.
        x: Data (batch, …).
        eps: The noise of z = α·x + σ·eps, shaped like x; not read.
        t: The time of z, a scalar.

    Returns:
        The cost in nats, (batch,).
    """
    return jnp.full(x.shape[0], 0.5 * _dims(x) * (1 + np.log(2 * np.pi) - sde.log_snr(t)), x.dtype)


@functools.cache  # one object for equal arguments: a rebuilt one does not recompile
def discrete_reconstruction(levels: int = 256, range: tuple[float, float] = (-1.0, 1.0)) -> Reconstruction:
    """−log p(x | z) of data with equally spaced values: each entry is one of them, with probability ∝ N(z/α; level,
    σ²/α²) (2107.00630).

    The bound is then one on the probability of x, in nats: `nats_to_bits_per_dim(…, levels=None)` turns it into bits.

    Args:
        levels: The number of values, at least 2.
        range: The smallest and the largest of them.

    Returns:
        The function (sde, x, eps, t) -> (batch,); the same object for equal arguments.

    Raises:
        ValueError: For less than two levels, and a range that does not ascend.
    """
    check_levels(levels, range)
    low, high = range
    spacing = (high - low) / (levels - 1)

    def reconstruction(sde: SDE, x: Array, eps: Array, t: Array) -> Array:
        noise = jnp.exp(-0.5 * sde.log_snr(t))
        # Levels counted from x itself: subtracting two positions in the range would cost digits.
        k = jnp.round((x - low) / spacing)[..., None]
        offset = (jnp.arange(levels) - k) * spacing / noise
        log_odds = -0.5 * offset * (offset - 2 * eps[..., None])
        return row_sums(jax.nn.logsumexp(log_odds, axis=-1))

    return reconstruction


def elbo(
    denoise: Denoiser,
    x: Array,
    keys: Array,
    *,
    times: Array | None = None,
    draws: int = 1,
    reconstruction: Reconstruction = gaussian_reconstruction,
    cond: Any = None,
    t_min: float | None = None,
    draw: Callable[[Array, Any, Array], Noise] = keyed_noise,
) -> ELBO:
    """An unbiased estimate of the evidence lower bound on log p, by its terms.

    Args:
        denoise: The denoiser.
        x: Data (batch, …); computed with in float32 at least.
        keys: Keys (batch,), of `sample_keys`: each sample's randomness is a function of its own.
        times: The times (n + 1,), decreasing, of the chain of L_T; None is L_∞, continuous time.
        draws: The noises for each step of the chain; or, in continuous time, the evaluations at stratified uniform
            log-SNRs between t_min and the start of the process's grids.
        reconstruction: −log p(x | z_0): `gaussian_reconstruction`, `discrete_reconstruction(levels, range)`, or a
            function of yours.
        cond: The condition of each sample, a pytree whose leaves lead with batch.
        t_min: The last time in continuous time; None is the process's own, as for `log_prob`.
        draw: `draw(keys, stream, x)` makes the noise, independent for each stream: 0 for the reconstruction, j + 1 for
            evaluation j.

    Returns:
        The three terms in nats, each (batch,); `total` is the bound on log p.

    Raises:
        ValueError: Where `draws` < 1, or t_min is given beside `times`, which end at their own.
    """
    if draws < 1:
        raise ValueError(f"draws={draws}: at least 1 is needed")
    check_denoiser(denoise)
    sde = denoise.sde
    check_first_time(t_min, sde)
    check_batched(x)
    x = jnp.asarray(x)
    check_keys(keys, x.shape[0])
    x = x.astype(jnp.result_type(x, jnp.float32))
    if times is not None and t_min is not None:
        raise ValueError(f"t_min={t_min} beside times: the chain ends at times[-1]")
    if times is not None:
        check_times(times, sde)
    t_min = sde.t_min if t_min is None else t_min
    return _elbo(denoise, x, keys, times, cond, t_min, draws=draws, reconstruction=reconstruction, draw=draw)


@compiled("draws", "reconstruction", "draw")
def _elbo(
    denoise: Denoiser,
    x: Array,
    keys: Array,
    times: Array | None,
    cond: Any,
    t_min: Any,
    *,
    draws: int,
    reconstruction: Reconstruction,
    draw: Callable[[Array, Any, Array], Noise],
) -> ELBO:
    sde = denoise.sde
    if times is None:
        first, last = (jnp.asarray(t, x.dtype) for t in (t_min, sde.t_start))
        t, weight = _uniform_log_snr(sde, keys, first, last, draws)
    else:
        x = x.astype(jnp.result_type(x, times))
        first, last = times[-1], times[0]
        log_snr = sde.log_snr(times)
        t = jnp.repeat(times[:-1], draws)
        weight = jnp.repeat(0.5 * jnp.expm1(log_snr[1:] - log_snr[:-1]) / draws, draws)

    def add(total: Array, evaluation: tuple[Array, Array, Array]) -> tuple[Array, None]:
        stream, t, weight = evaluation
        eps = draw(keys, stream, x)(0)
        error = jnp.square(eps - denoise(sde.perturb(x, t, eps), t, cond).eps)
        return total + weight * row_sums(error), None

    evaluations = (jnp.arange(1, t.shape[0] + 1), t, weight)
    diffusion = jax.lax.scan(add, jnp.zeros(x.shape[0], x.dtype), evaluations)[0]
    return ELBO(prior_kl(sde, x, last), diffusion, reconstruction(sde, x, draw(keys, 0, x)(0), first))


def _uniform_log_snr(sde: SDE, keys: Array, first: Array, last: Array, draws: int) -> tuple[Array, Array]:
    """Times (draws, batch) of log-SNRs uniform between those at two times, one in each of `draws` equal cells, and the
    weights (draws,) of ½·(log_snr_max − log_snr_min)·mean."""
    # Stream 0's first draw is the reconstruction's noise.
    own = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, 0), 1))(keys)
    u = jax.vmap(lambda key: jax.random.uniform(key, (draws,), first.dtype), out_axes=1)(own)
    ends = sde.log_snr(jnp.stack([first, last]))
    cells = stratify(u, jnp.arange(draws)[:, None], draws)
    t = jnp.clip(sde.inverse_log_snr(ends[0] + cells * (ends[1] - ends[0])), first, last)
    return t, jnp.full(draws, 0.5 * (ends[0] - ends[1]) / draws)


def _dims(x: Array) -> int:
    return int(np.prod(x.shape[1:]))
