"""Between bytes and the model's range, in pure JAX, inside the compiled step.

Discrete data have grey levels k = 0..L-1, stored as the byte round(255·k/(L - 1)), which determines k. A level becomes
lo + (hi - lo)·k/(L - 1), with (lo, hi) = (-1, 1) or (0, 1). Dequantised it becomes lo + (hi - lo)·(k + u)/L with u
uniform on [0, 1) (`diffuse_jax.likelihood.dequantize`), for which a density of discrete data is defined.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from diffuse_jax.likelihood import dequantize as add_uniform

CENTERED, UNIT = (-1.0, 1.0), (0.0, 1.0)


def preprocess(
    x: jax.Array,
    keys: jax.Array,
    *,
    levels: int | None,
    centered: bool = True,
    flip: bool = False,
    dequantize: bool = False,
) -> jax.Array:
    """A batch as the model reads it.

    Args:
        x: uint8 images (batch, h, w, c), or floating-point rows (batch, …).
        keys: Typed keys (batch,), one a row, so that a row comes out the same in every batch and shard.
        levels: The number of grey levels of uint8 images; None for floating-point rows.
        centered: Images become [-1, 1], else [0, 1].
        flip: Mirror each image left to right with probability 1/2.
        dequantize: Add uniform noise within the grey levels.

    Returns:
        float32 of the shape of x, images in their range and floating-point rows as they are.

    Raises:
        ValueError: For a flip of vectors, uint8 without `levels`, another integer type, and floating-point rows with
            `dequantize`.
    """
    x = jnp.asarray(x)
    if flip and x.ndim != 4:
        raise ValueError(f"flip mirrors images (batch, h, w, c), and x has shape {x.shape}: leave flip out for vectors")
    if flip:
        mirrored = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, 0)))(keys)
        x = jnp.where(mirrored[:, None, None, None], x[:, :, ::-1], x)
    if jnp.issubdtype(x.dtype, jnp.floating):
        if dequantize:
            raise ValueError(f"dequantize is for grey levels, and x is already continuous ({x.dtype}): leave it out")
        return x.astype(jnp.float32)
    if x.dtype != jnp.uint8 or levels is None:
        raise ValueError(f"x is {x.dtype} with levels={levels}: give uint8 and its number of grey levels, or floats")
    low, high = CENTERED if centered else UNIT
    level = jnp.round(x.astype(jnp.float32) * ((levels - 1) / 255))
    x_01 = level / (levels - 1)
    x_in_range = low + (high - low) * x_01
    if not dequantize:
        return x_in_range
    u = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), x.shape[1:]))(keys)
    return add_uniform(x_in_range, u, levels=levels, range=(low, high))


def preprocess_conditions(
    batch: Mapping[str, jax.Array], keys: jax.Array, *, centered: bool = True, flip: bool = False
) -> dict[str, jax.Array] | None:
    """The conditions of a batch as a network reads them.

    Args:
        batch: {"x": …, conditions by name}.
        keys: Those that `preprocess` is given for x.
        centered: As for `preprocess`.
        flip: As for `preprocess`: an `image` is mirrored in just those rows whose x is.

    Returns:
        The conditions by name, or None where the batch has none. An `image`, of bytes in 256 grey levels, becomes
            float32 in the model's range as `preprocess` makes it, without noise, for it is given and not modelled; the
            others stay as they are.
    """
    cond = {name: value for name, value in batch.items() if name != "x"}
    if "image" in cond:
        cond["image"] = preprocess(cond["image"], keys, levels=256, centered=centered, flip=flip)
    return cond or None


def to_uint8(x: jax.Array, *, centered: bool = True) -> jax.Array:
    """Images in [-1, 1] (`centered`) or [0, 1] as bytes: rounded to the nearest of 256, and clipped."""
    low, high = CENTERED if centered else UNIT
    return jnp.clip(jnp.round((x - low) * (255 / (high - low))), 0, 255).astype(jnp.uint8)
