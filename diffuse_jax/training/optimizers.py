"""Optimizers, each a chain of four links: the gradient clipped, scaled by its moments, weights decayed, times the rate.

    g ← g·min(1, clip/‖g‖),    u = moments(g),    p ← p − rate(step)·(u + weight_decay·p)

The rate of the update made at step n is learning_rate·min(n/warmup, 1), counted from n = 0: as published, the first
update has rate 0 and only fills the moments. With u = n/steps it is multiplied by 1 − u where it decays linearly, by
(1 + cos πu)/2 as a cosine (Loshchilov & Hutter, 1608.03983, eq. 5, of one period).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from diffuse_jax._checks import check_not_negative

__all__ = ["adam", "adamw", "radam"]


def adam(
    learning_rate: float,
    *,
    warmup: float = 0,
    clip: float | None = None,
    weight_decay: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    decay: str = "none",
    steps: int | None = None,
) -> optax.GradientTransformation:
    """Adam (Kingma & Ba, 1412.6980).

    Args:
        learning_rate: The rate after the warm-up.
        warmup: The steps over which it rises from 0. It need not be whole: a ramp over so many images is their number
            over the batch's size.
        clip: The largest global norm of the gradient; None or ≤ 0 does not clip.
        weight_decay: The share of each weight, times the rate, that is taken off after the step of the moments
            (Loshchilov & Hutter, 1711.05101).
        b1: The decay of the first moment.
        b2: That of the second.
        eps: What is added to the root of the second.
        decay: "none", of which the rate depends on no total number of steps, so that a run can be prolonged; "linear"
            or "cosine", which end at 0 at `steps`: prolonged, a run is from then on at the rate of the longer one.
        steps: The length of the run, read where the rate decays.

    Returns:
        The optimizer.

    Raises:
        ValueError: On a rate or `eps` that is not positive, a negative warm-up or weight decay, b1 or b2 outside of
            [0, 1), another `decay`, one without `steps` ≥ 1, and on NaN.
    """
    _check_moments(b1, b2, eps)
    return _chain(optax.scale_by_adam(b1, b2, eps), learning_rate, warmup, clip, weight_decay, decay, steps)


def adamw(learning_rate: float, *, weight_decay: float, **options: Any) -> optax.GradientTransformation:
    """`adam` with weight decay (Loshchilov & Hutter, 1711.05101).

    Args:
        learning_rate: The rate after the warm-up.
        weight_decay: The share of each weight, times the rate, that each update takes off; above 0.
        options: The further arguments of `adam`.

    Returns:
        The optimizer.

    Raises:
        ValueError: Unless weight_decay > 0, without which this is Adam and is asked for by that name, and as `adam`
            raises it.
    """
    if not weight_decay > 0:
        raise ValueError(f"weight_decay = {weight_decay} must be above 0: AdamW without it is adam")
    return adam(learning_rate, weight_decay=weight_decay, **options)


def radam(
    learning_rate: float,
    *,
    warmup: float = 0,
    clip: float | None = None,
    weight_decay: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    decay: str = "none",
    steps: int | None = None,
) -> optax.GradientTransformation:
    """Rectified Adam (Liu et al., 1908.03265, algorithm 2, with the bound ρ_t ≥ 5 of its authors' program), as
    consistency models are trained: while its second moment is known from too few steps it takes the first alone.

    Args:
        learning_rate: The rate after the warm-up.
        warmup: The steps over which it rises from 0, as for `adam`.
        clip: The largest global norm of the gradient; None or ≤ 0 does not clip.
        weight_decay: The share of each weight, times the rate, that each update takes off, as for `adam`.
        b1: The decay of the first moment.
        b2: That of the second.
        eps: What is added to the root of the second.
        decay: "none", "linear" or "cosine", as for `adam`.
        steps: The length of the run, read where the rate decays.

    Returns:
        The optimizer.

    Raises:
        ValueError: As `adam` raises it.
    """
    _check_moments(b1, b2, eps)
    return _chain(optax.scale_by_radam(b1, b2, eps), learning_rate, warmup, clip, weight_decay, decay, steps)


def _check_moments(b1: float, b2: float, eps: float) -> None:
    if not 0 < eps < math.inf:
        raise ValueError(f"eps = {eps} must be positive and finite")
    for name, value in (("b1", b1), ("b2", b2)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} = {value} must lie in [0, 1)")


def _chain(
    scale: optax.GradientTransformation,
    learning_rate: float,
    warmup: float,
    clip: float | None,
    weight_decay: float,
    decay: str,
    steps: int | None,
) -> optax.GradientTransformation:
    check_not_negative("optimizer", warmup=warmup, weight_decay=weight_decay)
    if clip is not None and math.isnan(clip):
        raise ValueError(f"clip = {clip} must be a number")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate = {learning_rate} must be positive and finite")
    left = _decay_factor(decay, steps)

    def rate(step: jax.Array) -> Any:
        return learning_rate * (jnp.minimum(step / warmup, 1.0) if warmup else 1.0) * left(step)

    # Four links with the same states, whatever is switched off: a checkpoint's tree does not depend on the options.
    return optax.chain(
        optax.stateless(lambda g, _: _clipped(g, clip)) if clip is not None and clip > 0 else optax.identity(),
        scale,
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        optax.scale_by_learning_rate(rate),
    )


def _clipped(gradient: Any, most: float) -> Any:
    """The gradient scaled to a global norm of at most `most`: optax's clip_by_global_norm as one multiplication, which
    is fused with what reads the gradient, where its division is a pass over memory of its own."""
    scale = jnp.minimum(most / optax.tree.norm(gradient), 1.0)
    return jax.tree.map(lambda g: g * scale.astype(g.dtype), gradient)


def _decay_factor(decay: str, steps: int | None) -> Callable[[jax.Array], Any]:
    """The factor of the learning rate as a function of the step."""
    if decay == "none":
        return lambda step: 1.0
    if decay not in ("linear", "cosine"):
        raise ValueError(f"decay = {decay!r} must be one of none, linear, cosine")
    if steps is None or steps < 1:
        raise ValueError(f"decay = {decay!r} ends with the run, and steps = {steps}: give its number of steps")
    return optax.linear_schedule(1.0, 0.0, steps) if decay == "linear" else optax.cosine_decay_schedule(1.0, steps)
