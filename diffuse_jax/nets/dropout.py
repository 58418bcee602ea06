"""Dropout whose masks are a hash of the element's index, the layer's name and one seed for the whole network.

Flax draws each mask with the generator of JAX's keys: in a U-Net of 45 residual blocks these make a quarter of the time
to compile a training step. A mask needs no cryptography, and this hash fuses with what it is applied to. It depends
on the index in the whole array, so that the number of devices does not change a mask.
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = ["dropout", "dropout_seed", "layer_seed"]


def dropout_seed(key: jax.Array) -> jax.Array:
    """The seed (2,) uint32 of one application of a network, from its rng "dropout"."""
    return jax.random.bits(key, (2,), jnp.uint32)


def layer_seed(seed: jax.Array | None, layer: str) -> jax.Array | None:
    """The seed of one place of a network, of that name."""
    return None if seed is None else seed ^ np.array([0, zlib.crc32(layer.encode())], np.uint32)


def dropout(x: jax.Array, rate: float, seed: jax.Array | None) -> jax.Array:
    """Dropout of single elements.

    Args:
        x: Any array.
        rate: The probability that an element is dropped.
        seed: The seed (2,) uint32, of `layer_seed`; None drops nothing.

    Returns:
        x with each element kept with probability 1 − rate, then divided by it, and otherwise 0; without a seed, or with
            rate 0, x itself.
    """
    if seed is None or rate == 0:
        return x
    index = lax.iota(jnp.uint32, x.size).reshape(x.shape)
    bits = _mixed(_mixed(index ^ seed[0]) + seed[1])
    return jnp.where(bits >= np.uint32(rate * 2**32), x / (1 - rate), 0)


def _mixed(bits: jax.Array) -> jax.Array:
    """A permutation of 32-bit integers in which each bit of the input changes about half of the output's (Wellons'
    "triple32", of the hash-prospector)."""
    for shift, factor in ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB)):
        bits = (bits ^ (bits >> shift)) * np.uint32(factor)
    return bits ^ (bits >> 14)
