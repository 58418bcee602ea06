"""The training state, and the decay of the moving average (Song et al., 2011.13456, appendix G and H)."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from diffuse_jax.training.method import Update
from diffuse_jax.trees import pytree

__all__ = ["TrainState", "create_state", "ema_decay"]


@pytree
class TrainState:
    """All that a run carries. There is no random key: randomness follows from the step.

    Args:
        step: The steps made so far, an int32 scalar.
        params: The raw parameters.
        ema: Their exponential moving average, the same tree.
        opt_state: The state of the optimizer; of several updates a tuple of those of each.
        extra: What is carried and not trained, by name; {} where there is nothing.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any
    extra: Any = dataclasses.field(default_factory=dict)


def create_state(params: Any, updates: Sequence[Update], extra: Any = None) -> TrainState:
    """The state before the first step. The moving average starts as a copy of the parameters; it and `extra`, which may
    share arrays with them, are in buffers of their own, so that the whole state can be donated.

    Args:
        params: The initial parameters.
        updates: What a step does, as a `Method` has it, with the optimizers whose states are made.
        extra: What is carried and not trained, by name; None: nothing.

    Returns:
        The state at step 0.
    """

    def copied(tree: Any) -> Any:
        # With a type of its own: after a step nothing is weakly typed, and the second would be traced anew.
        return jax.tree.map(lambda leaf: jnp.array(leaf, dtype=jnp.asarray(leaf).dtype, copy=True), tree)

    params = copied(params)
    opt_states = tuple(update.optimizer.init(update.moved(params)) for update in updates)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=copied(params),
        opt_state=opt_states if len(opt_states) > 1 else opt_states[0],
        extra={} if extra is None else copied(extra),
    )


def ema_decay(
    *,
    rate: float | None = None,
    halflife_images: float | None = None,
    rampup_ratio: float | None = None,
    batch_size: int,
    warmup: bool = False,
) -> Callable[[jax.Array], jax.Array]:
    """The decay r of ema ← r·ema + (1 − r)·params as a function of the step. Exactly one of `rate` and
    `halflife_images` is given; a young average forgets its random start by `rampup_ratio` or by `warmup`.

    Args:
        rate: r itself, in [0, 1).
        halflife_images: The images, above 0, in which a parameter's weight halves, with which r is
            0.5^(batch_size/halflife_images).
        rampup_ratio: The half-life is at most this part, above 0, of the images seen before the step (Karras et al.,
            2206.00364, appendix F: 0.05), so that step 0 copies the parameters; only with `halflife_images`.
        batch_size: The rows of a global batch, above 0; read with `halflife_images`.
        warmup: r is at most (1 + step)/(10 + step).

    Returns:
        A function of the step that gives r.

    Raises:
        ValueError: Where a number is outside of these ranges, both or none of `rate` and `halflife_images` are given,
            or `rampup_ratio` without `halflife_images`.
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
