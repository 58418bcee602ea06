"""Langevin correctors: x ← x + ε·score + √(2ε)·z at a fixed time (2011.13456, algorithms 4 and 5; annealed in
1907.05600).

On data N(0, v) the stationary variance of this step is v/(1 − ε/(2v)). The step does not depend on the number of
predictor steps: score_sde multiplies ε by 1 − β_i for VP, which tends to 1 with the number of steps, and is left out.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from diffuse_jax._checks import check_not_negative
from diffuse_jax.denoiser import Denoiser
from diffuse_jax.sde import Array
from diffuse_jax.solvers.solver import Noise, Solver
from diffuse_jax.trees import pytree, static

__all__ = ["annealed_langevin", "langevin"]


def langevin(snr: float = 0.16, steps: int = 1, norm: str | None = None) -> Solver:
    """Langevin steps at time t with ε = 2(snr·σ_t)², which depends on the time alone: what score_sde calls annealed
    Langevin dynamics.

    Args:
        snr: The signal-to-noise ratio of a step.
        steps: The number of steps, each with one evaluation.
        norm: None, or "batch" for score_sde's rule ε = 2(snr·‖z‖/‖score‖)², its norms averaged over the batch, so that
            a sample depends on its batch-mates; it serves parity only.

    Returns:
        The solver.

    Raises:
        ValueError: For another norm, no steps, and an snr that is negative or not finite.
    """
    rules: dict[str | None, Callable[..., Array]] = {None: _sigma_rule, "batch": _batch_norm_rule}
    if norm not in rules:
        raise ValueError(f"langevin: norm={norm!r} must be None or 'batch'")
    if steps < 1:
        raise ValueError(f"langevin: steps={steps} must be at least 1")
    check_not_negative("langevin", snr=snr)
    return Solver(step=Partial(_langevin, _Form(rules[norm], steps), snr), evaluations=steps)


def annealed_langevin(
    epsilon: float = 2e-5, sigma_last: float | None = None, steps: int = 100, version: int = 2
) -> Solver:
    """Langevin steps at time t with the step size a = epsilon·(σ_t/sigma_last)²: annealed Langevin dynamics as NCSN and
    NCSNv2 define it.

    As a solver it visits each level at times[:-1], so the last level belongs twice in the grid (`jnp.append(times,
    times[-1])`); NCSNv2's final x + σ_L²·score is `finish=denoise_once`.

    Args:
        epsilon: The step size at the last level.
        sigma_last: The smallest σ of the schedule; None is that at the end of the grid.
        steps: The number of steps a level, each with one evaluation.
        version: 2 moves by x + a·score + √(2a)·z (NCSNv2, 2006.09011, algorithm 1), 1 by x + (a/2)·score + √a·z (NCSN,
            1907.05600, algorithm 1).

    Returns:
        The solver.

    Raises:
        ValueError: For another version, no steps, and numbers that are negative or not finite.
    """
    if version not in (1, 2):
        raise ValueError(f"annealed_langevin: version={version!r} must be 1 (NCSN) or 2 (NCSNv2)")
    if steps < 1:
        raise ValueError(f"annealed_langevin: steps={steps} must be at least 1")
    check_not_negative("annealed_langevin", epsilon=epsilon, sigma_last=sigma_last)
    scale = epsilon if version == 2 else epsilon / 2
    return Solver(
        step=Partial(_annealed, _Form(_annealed_rule, steps), scale),
        init=Partial(_last_sigma, sigma_last),
        evaluations=steps,
    )


def _last_sigma(sigma_last: Any, x: Array, times: Array, denoise: Denoiser) -> Array:
    return denoise.sde.sigma(times[-1]) if sigma_last is None else jnp.asarray(sigma_last, times.dtype)


def _annealed(
    form: "_Form", scale: Any, noise: Noise, x: Array, sigma_last: Array, t: Array, s: Array, denoise: Denoiser
) -> tuple[Array, Array, Array]:
    return _langevin(form, scale / jnp.square(sigma_last), noise, x, sigma_last, t, s, denoise)


def _annealed_rule(scale: Array, sigma: Array, z: Array, score: Array) -> Array:
    return scale * jnp.square(sigma)


@pytree
class _Form:
    """What a compilation depends on, compared by value."""

    rule: Callable[..., Array] = static()
    steps: int = static()


def _langevin(
    form: _Form,
    snr: Array,
    noise: Noise,
    x: Array,
    memory: Any,
    t: Array,
    s: Array,
    denoise: Denoiser,
) -> tuple[Array, Array, Any]:
    sigma = denoise.sde.sigma(t)

    def score_and_size(x: Array, z: Array) -> tuple[Array, Array]:
        score = -denoise(x, t).eps / sigma
        return score, form.rule(snr, sigma, z, score)

    x, x_mean = langevin_steps(form.steps, noise, x, score_and_size)
    return x, x_mean, memory


def langevin_steps(
    steps: int, noise: Noise, x: Array, score_and_size: Callable[[Array, Array], tuple[Array, Array]]
) -> tuple[Array, Array]:
    """x and x_mean after `steps` of x_mean = x + ε·score, x = x_mean + √(2ε)·z, (score, ε) = score_and_size(x, z)."""

    def move(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
        x, _ = carry
        z = noise(i)
        score, epsilon = score_and_size(x, z)
        x_mean = x + epsilon * score
        return (x_mean + jnp.sqrt(2 * epsilon) * z, x_mean), None

    # One step needs no loop, and a network in a loop within a loop is slow on CPU.
    return jax.lax.scan(move, (x, x), jnp.arange(steps), unroll=steps == 1)[0]


def _sigma_rule(snr: Array, sigma: Array, z: Array, score: Array) -> Array:
    return 2 * jnp.square(snr * sigma)


def _batch_norm_rule(snr: Array, sigma: Array, z: Array, score: Array) -> Array:
    return 2 * jnp.square(snr * batch_norm_ratio(z, score))


def batch_norm_ratio(z: Array, score: Array) -> Array:
    """‖z‖/‖score‖, each averaged over the batch."""
    z_norm, score_norm = (jnp.mean(jnp.linalg.norm(a.reshape(a.shape[0], -1), axis=-1)) for a in (z, score))
    return z_norm / score_norm
