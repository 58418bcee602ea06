"""The training state, the optimizer and the rate of the moving average (Song et al., 2011.13456, appendix G and H)."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from diffuse_jax._checks import check_not_negative
from diffuse_jax._pytree import pytree

__all__ = ["TrainState", "adam", "create_state", "ema_decay"]


@pytree
class TrainState:
    """All that a run carries: `step` (int32 scalar, the updates made so far), the raw parameters, their exponential
    moving average (same tree) and the optimizer's state. There is no random key: randomness follows from the step.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any


def create_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update. The moving average starts as a copy of `params`, in buffers of its own, so
    that the whole state can be donated."""
    copy = jax.tree.map(lambda p: jnp.array(p, copy=True), params)
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, ema=copy, opt_state=optimizer.init(params))


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
    """Adam (Kingma & Ba, 1412.6980), with the global norm of the gradient clipped to `clip` before (None or ≤ 0: not
    clipped) and decoupled weight decay −lr·`weight_decay`·p after (Loshchilov & Hutter, 1711.05101).

    The rate of the update made at step n is `learning_rate`·min(n/`warmup`, 1), counted from n = 0: as published, the
    first update has rate 0 and only fills the moments. `warmup` need not be whole: a ramp over so many images is their
    number over the batch's size. `decay` takes the rate to 0 at n = `steps`, the length of the run: with u = n/`steps`
    it is multiplied by 1 − u ("linear") or by (1 + cos πu)/2 ("cosine"; Loshchilov & Hutter, 1608.03983, eq. 5, of one
    period). With "none" it depends on no total number of steps, so a run can be prolonged, and `steps` is not read; one
    that decays is, with larger `steps`, from then on at the rate of the longer run. ValueError on a rate or
    `eps` that is not positive, a negative warm-up or weight decay, b1 or b2 outside of [0, 1), another `decay`, one
    without `steps` ≥ 1, and on NaN.
    """
    check_not_negative("adam", warmup=warmup, weight_decay=weight_decay)
    if clip is not None and math.isnan(clip):
        raise ValueError(f"clip = {clip} must be a number")
    for name, value in (("learning_rate", learning_rate), ("eps", eps)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} = {value} must be positive and finite")
    for name, value in (("b1", b1), ("b2", b2)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} = {value} must lie in [0, 1)")
    left = _decay_factor(decay, steps)

    def rate(step: jax.Array) -> Any:
        return learning_rate * (jnp.minimum(step / warmup, 1.0) if warmup else 1.0) * left(step)

    # Four links with the same states, whatever is switched off: a checkpoint's tree does not depend on the options.
    return optax.chain(
        optax.stateless(lambda g, _: _clipped(g, clip)) if clip is not None and clip > 0 else optax.identity(),
        optax.scale_by_adam(b1, b2, eps),
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


def ema_decay(
    *,
    rate: float | None = None,
    halflife_images: float | None = None,
    rampup_ratio: float | None = None,
    batch_size: int,
    warmup: bool = False,
) -> Callable[[jax.Array], jax.Array]:
    """The decay r of ema ← r·ema + (1 − r)·params as a function of the step: `rate` itself, or the rate under which a
    parameter's weight halves every `halflife_images` images, 0.5^(batch_size/halflife_images); exactly one is given.

    A young average forgets its random start in one of two ways: with `rampup_ratio` the half-life is at most that part
    of the images seen before the step (Karras et al., 2206.00364, appendix F: 0.05), so that step 0 copies the
    parameters; with `warmup` r is at most (1 + step)/(10 + step). ValueError unless 0 ≤ rate < 1, or halflife_images >
    0, batch_size > 0 and, where given, rampup_ratio > 0.
    """
    if (rate is None) == (halflife_images is None):
        raise ValueError(f"give exactly one of rate and halflife_images, not {rate=} and {halflife_images=}")
    if halflife_images is not None and not (0 < halflife_images < math.inf and batch_size > 0):
        raise ValueError(f"{halflife_images=} and {batch_size=} must be positive and finite")
    if rampup_ratio is not None and (halflife_images is None or not rampup_ratio > 0):
        raise ValueError(f"{rampup_ratio=} must be positive, and is for an average with halflife_images")
    if rate is not None and not 0 <= rate < 1:
        raise ValueError(f"rate = {rate} must lie in [0, 1)")

    def decay(step: jax.Array) -> jax.Array:
        r = jnp.asarray(rate if halflife_images is None else 0.5 ** (batch_size / halflife_images))
        if rampup_ratio is not None:
            # The images seen are no int32: long runs see more than 2³¹. At step 0 the half-life is 0.
            r = jnp.minimum(r, jnp.exp2(-1 / (rampup_ratio * jnp.asarray(step, r.dtype))))
        return jnp.minimum(r, (1 + step) / (10 + step)) if warmup else r

    return decay
