"""Attention: between all pixels of an image, and from them to a context."""

from typing import Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

__all__ = ["IMPLEMENTATIONS", "Implementation", "attend"]

Implementation = Literal["xla", "cudnn"]
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, implementation: Implementation = "xla", mask: jax.Array | None = None
) -> jax.Array:
    """softmax(q·k/√c)·v in each head, the softmax in float32.

    Args:
        q: Queries (batch, pixels, heads, c).
        k: Keys (batch, keys, heads, c), of the type of q.
        v: Values, of the shape and type of k.
        implementation: "xla" makes it of ordinary operations. "cudnn" is NVIDIA's fused kernel, which keeps no pixels ×
            pixels array: for float16 and bfloat16 and c a multiple of 8 up to 128 (256 from compute capability 9.0),
            and without derivatives in forward mode.
        mask: To which keys a row's pixels may look, (batch, keys), all by default; where there are none the result is
            zero. It is of "xla" alone.

    Returns:
        (batch, pixels, heads, c) of the type of q.

    Raises:
        ValueError: Where "cudnn" is asked for on another platform, in another type, or with a mask.
        NotImplementedError: JAX's own, where "cudnn" is asked for with another c.
    """
    if implementation == "cudnn":
        if mask is not None:
            raise ValueError("attention='cudnn' has no mask: set attention to 'xla'")
        platform = jax.default_backend()
        if platform != "gpu" or q.dtype not in (jnp.float16, jnp.bfloat16):
            raise ValueError(
                f"attention='cudnn' needs an NVIDIA GPU and dtype bfloat16 or float16; got {platform} and {q.dtype}: "
                "set attention to 'xla', or the dtype to bfloat16"
            )
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    logits = jnp.einsum("bqhc,bkhc->bhqk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask[:, None, None, :], logits, jnp.finfo(logits.dtype).min)
        v = jnp.where(mask[:, :, None, None], v, 0)  # where all is masked, all weights are equal
    return jnp.einsum("bhqk,bkhc->bqhc", nn.softmax(logits).astype(v.dtype), v)
