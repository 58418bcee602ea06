"""The training objective: denoising score matching of a batch of data, each row with randomness of its own."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffuse_jax.data.augment import augment
from diffuse_jax.data.preprocess import preprocess
from diffuse_jax.denoiser import NetworkDenoiser
from diffuse_jax.losses import denoising_score_matching, stratify
from diffuse_jax.sde import SDE
from diffuse_jax.training.step import Rows

__all__ = ["Objective", "objective"]

# What `train_step` takes as its loss, and with rng=None the same without dropout.
Objective = Callable[[Any, dict[str, jax.Array], Rows, jax.Array | None], jax.Array]


def objective(
    denoiser: Callable[[Any], NetworkDenoiser],
    *,
    weight: Callable[[SDE, jax.Array], jax.Array],
    draw_times: Callable[..., tuple[jax.Array, jax.Array]],
    stratified: bool,
    t_min: float,
    half_sum: bool,
    levels: int | None,
    centered: bool,
    flip: bool = False,
    dequantize: bool = False,
    augmentation: float = 0.0,
) -> Objective:
    """The loss(params, batch, rows, rng) -> (B,) that `train_step` takes; a batch is {"x": uint8 images or float
    vectors, optionally "label": integers}.

    `denoiser(params)` makes the denoiser; `weight`, `draw_times` and `t_min` are those of `diffuse_jax.losses`, and
    `stratified` spreads the times of a batch evenly. A row's sum over its dimensions is halved where `half_sum`, else
    divided by their number. `levels`, `centered`, `flip` and `dequantize` are those of `diffuse_jax.data.preprocess`.
    Each transformation of `diffuse_jax.data.augment` has probability `augmentation`, and the network is told of
    it as its argument `augment` (EDM, 2206.00364, appendix F.2). Dropout is off where rng is None.
    """

    def loss(params: Any, batch: dict[str, jax.Array], rows: Rows, rng: jax.Array | None) -> jax.Array:
        denoise = denoiser(params)
        x0 = preprocess(
            batch["x"], _stream(rows, 0), levels=levels, centered=centered, flip=flip, dequantize=dequantize
        )
        if augmentation:
            x0, done = augment(_stream(rows, 3), x0, augmentation)
            denoise = dataclasses.replace(denoise, net=functools.partial(denoise.net, augment=done))
        eps = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:], x0.dtype))(_stream(rows, 1))
        u = jax.vmap(lambda key: jax.random.uniform(key, dtype=x0.dtype))(_stream(rows, 2))
        if stratified:
            u = stratify(u, rows.index, rows.total)
        t, density = draw_times(u, denoise.sde, t_min)
        each = denoising_score_matching(denoise, x0, eps, t, weight=weight, cond=batch.get("label"), rng=rng)
        return each / density * (0.5 if half_sum else 1 / np.prod(x0.shape[1:]))

    return loss


def _stream(rows: Rows, tag: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(rows.keys, jnp.uint32(tag))
