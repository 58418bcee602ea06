"""Transformer blocks (Vaswani et al. 2017, arXiv:1706.03762), and what image networks make of them to read tokens.

A block adds to x, each after a normalisation of its own (Xiong et al. 2020, arXiv:2002.04745): attention among its
rows, attention to a context where there is one, and an MLP of every row. `TokenEncoder` makes a context of tokens, to
which `CrossAttention` lets every pixel look (Rombach et al. 2022, arXiv:2112.10752). Products run in `dtype`;
parameters, normalisations and the softmax are float32.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffuse_jax.nets.attention import attend
from diffuse_jax.nets.layers import Style, group_norm, init_kernel

__all__ = ["CrossAttention", "HeadsAttention", "TokenEncoder", "TransformerBlock", "head_count", "token_context"]

_HEAD_SIZE = 64


def head_count(channels: int) -> int:
    """One head for every 64 channels; one in all where these do not divide so."""
    return 1 if channels % _HEAD_SIZE else channels // _HEAD_SIZE


class HeadsAttention(nn.Module):
    """Attention from x (batch, n, c) to context (batch, m, k), or to x itself without one: (batch, n, features), by
    default as many as x has.

    There is one head for every 64 channels of x (see `head_count`). The mask (batch, m) of a call says to which rows of
    the context x may look, all by default; where it may look to none, the result is the last layer's bias.

    Args:
        dtype: The type of the products.
        init_scale: The factor on the variance of the last kernel at its start.
        features: The channels of the result; None is as many as x has.
    """

    dtype: Any = jnp.float32
    init_scale: float = 1.0
    features: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None = None, mask: jax.Array | None = None) -> jax.Array:
        channels = x.shape[-1]
        context = x if context is None else context
        q, k, v = (
            nn.Dense(channels, dtype=self.dtype, kernel_init=init_kernel(), name=name)(read).reshape(
                *read.shape[:2], head_count(channels), -1
            )
            for name, read in (("query", x), ("key", context), ("value", context))
        )
        h = attend(q, k, v, mask=mask).reshape(x.shape)
        out = self.features or channels
        return nn.Dense(out, dtype=self.dtype, kernel_init=init_kernel(self.init_scale), name="out")(h)


class TransformerBlock(nn.Module):
    """x (batch, n, c), context (batch, m, k) or None, to (batch, n, c).

    Args:
        mlp_ratio: The width of the MLP, in channels of x.
        dtype: The type of the products.
        init_scale: The factor on the variance of the last kernel of each branch at its start (0: almost zero).
    """

    mlp_ratio: int = 4
    dtype: Any = jnp.float32
    init_scale: float = 1.0

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        context: jax.Array | None = None,
        context_mask: jax.Array | None = None,
    ) -> jax.Array:
        """`mask` (batch, n) and `context_mask` (batch, m) say which rows may be looked at, all by default."""

        def norm(h: jax.Array, name: str) -> jax.Array:
            return nn.LayerNorm(dtype=jnp.float32, name=name)(h)

        def attention(name: str) -> HeadsAttention:
            return HeadsAttention(self.dtype, self.init_scale, name=name)

        x = x + attention("self_attention")(norm(x, "self_norm"), mask=mask)
        if context is not None:
            x = x + attention("cross_attention")(norm(x, "cross_norm"), context, context_mask)
        hidden = nn.Dense(self.mlp_ratio * x.shape[-1], dtype=self.dtype, kernel_init=init_kernel(), name="mlp_in")
        out = nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=init_kernel(self.init_scale), name="mlp_out")
        return x + out(nn.gelu(hidden(norm(x, "mlp_norm"))))


class TokenEncoder(nn.Module):
    """Tokens (batch, n) as a context (batch, n, width) and its mask (batch, n), which leaves out padding, the token 0.

    Each token is a vector of its own plus one of its place, of which there are `length`; then come `depth` blocks. What
    is read of a padded place is masked, so that padding changes nothing.

    Args:
        vocabulary: The number of tokens that there are.
        length: The most tokens that a row may have.
        width: The length of a token's vector.
        depth: The number of blocks.
        dtype: The type of the products.
    """

    vocabulary: int
    length: int
    width: int
    depth: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array | None, batch: int) -> tuple[jax.Array, jax.Array]:
        """Tokens in 0..vocabulary − 1; None is padding alone. ValueError for another shape or type."""
        tokens = jnp.zeros((batch, 1), jnp.int32) if tokens is None else jnp.asarray(tokens)
        whole = jnp.issubdtype(tokens.dtype, jnp.integer)
        if tokens.ndim != 2 or tokens.shape[0] != batch or not 0 < tokens.shape[1] <= self.length or not whole:
            raise ValueError(
                f"tokens must be integers of shape ({batch}, length) with a length of 1 to context_length = "
                f"{self.length}; got {tokens.dtype} of shape {tokens.shape}"
            )
        normal = nn.initializers.normal(0.02)
        places = self.param("places", normal, (self.length, self.width))
        h = nn.Embed(self.vocabulary, self.width, embedding_init=normal, name="words")(tokens)
        h, mask = h + places[: tokens.shape[1]], tokens != 0
        for i in range(self.depth):
            h = TransformerBlock(dtype=self.dtype, name=f"block_{i}")(h, mask)
        return nn.LayerNorm(dtype=jnp.float32, name="norm")(h), mask


class CrossAttention(nn.Module):
    """Attention from all pixels of x (batch, h, w, c) to a context (batch, m, k) with its mask (batch, m), as a
    residual branch."""

    style: Style

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array, mask: jax.Array) -> jax.Array:
        style, (b, height, width, c) = self.style, x.shape
        h = group_norm(x, style, "norm").reshape(b, height * width, c)
        h = HeadsAttention(style.dtype, style.init_scale, name="attention")(h, context, mask)
        return style.merge(x, h.reshape(x.shape))


def token_context(net: Any, tokens: jax.Array | None, batch: int) -> tuple[jax.Array, jax.Array] | None:
    """What a network reads of tokens, inside its compact call.

    Args:
        net: The network.
        tokens: The tokens (batch, n); None is padding alone.
        batch: The number of rows.

    Returns:
        The context and mask that `TokenEncoder` makes; None where the network has no vocabulary.
    """
    if net.vocabulary == 0:
        return None
    encoder = TokenEncoder(
        net.vocabulary, net.context_length, net.context_width, net.context_depth, net.dtype, name="tokens"
    )
    return encoder(tokens, batch)
