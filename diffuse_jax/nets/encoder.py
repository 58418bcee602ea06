"""The down half of a U-Net: a classifier that may know the noise (Dhariwal & Nichol 2021, arXiv:2105.05233), or the
encoder of an autoencoder (Rombach et al. 2022, arXiv:2112.10752)."""

from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffuse_jax.nets.attention import Implementation
from diffuse_jax.nets.halves import check_half, half_of
from diffuse_jax.nets.inputs import check_inputs, read_conditions
from diffuse_jax.nets.layers import (
    Embedding,
    FourierFeatures,
    Style,
    conv,
    init_kernel,
    norm_act,
    positional_features,
    require,
    whole,
)
from diffuse_jax.nets.transformer import HeadsAttention

_CHOICES = {"head": ("attention", "mean", "moments"), "embedding_type": ("fourier", "positional")}


class AttentionPool(nn.Module):
    """x (batch, h, w, c) as one row (batch, features): the mean of all pixels looks at them and at itself, each with a
    vector of its place added (Radford et al. 2021, arXiv:2103.00020). The parameters are those of one size of image."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, height, width, c = x.shape
        rows = x.reshape(b, height * width, c)
        rows = jnp.concatenate([rows.mean(axis=1, keepdims=True), rows], axis=1)
        rows += self.param("places", nn.initializers.normal(c**-0.5), rows.shape[1:])
        return HeadsAttention(features=self.features, name="attention")(rows[:, :1], rows)[:, 0]


class Encoder(nn.Module):
    """At each level num_res_blocks residual blocks, attention after each at the chosen heights, then the image is
    halved. After the last level block, attention, block, and a head.

    Args:
        out_features: The numbers that come out: classes, or for the head "moments" those of every place, twice the
            channels of the latent.
        head: "attention" pools all pixels by attention and "mean" takes their mean, for one row of logits an image;
            "moments" keeps the places.
        nf: The channels of the first level; level i has nf·ch_mult[i].
        ch_mult: The multiple of nf at each level; between levels the image is halved.
        num_res_blocks: Residual blocks a level.
        attn_resolutions: Attention where the image's *height* is one of these.
        dropout: The probability of dropout in training.
        conditional: Whether the network reads c_noise.
        embedding_type: "fourier" reads c_noise = σ > 0 through log σ; "positional" any number c_noise ≥ 0.
        resblock_type: "biggan" blocks halve the image themselves; "ddpm" ones leave it to convolutions between them.
        nonlinearity: The activation.
        dtype: The type of the convolutions and attention products; parameters, norms, softmax, embeddings and the head
            stay float32.
        attention: "xla", or "cudnn", a fused kernel on NVIDIA's GPUs (see `attend`).
        remat: Recompute residual blocks in the backward pass, to save memory.

    Raises:
        ValueError: When the module is made, for a value that cannot work.
    """

    out_features: int
    head: Literal["attention", "mean", "moments"] = "attention"
    nf: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.0
    conditional: bool = True
    embedding_type: Literal["fourier", "positional"] = "positional"
    resblock_type: Literal["biggan", "ddpm"] = "biggan"
    nonlinearity: Literal["swish", "elu", "relu", "lrelu"] = "swish"
    dtype: Any = jnp.float32
    attention: Implementation = "xla"
    remat: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_half(self)
        size = self.out_features
        require(whole(size) and size > 0, "out_features", size, "a positive integer")
        for field, choices in _CHOICES.items():
            require(getattr(self, field) in choices, field, getattr(self, field), f"one of {choices}")

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        c_noise: jax.Array | None = None,
        cond: Mapping[str, jax.Array] | None = None,
        *,
        train: bool = False,
    ) -> jax.Array:
        """x (batch, h, w, c), c_noise (batch,), no conditions: float32 logits (batch, out_features), or of the head
        "moments" (batch, h', w', out_features) with h' = h/2^(levels − 1).

        Without `conditional` c_noise is not read and may be left out. h and w must be multiples of 2^(levels − 1), else
        ValueError. With train=True dropout draws from the rng "dropout".
        """
        read_conditions(self, cond)
        check_inputs(self, x, c_noise, "ch_mult", len(self.ch_mult) - 1)
        half = half_of(self, self._embed(c_noise, x.shape[0]), train)
        h = conv(self.nf, self.dtype, "in_conv")(x)
        for level, mult in enumerate(self.ch_mult):
            if level > 0:
                h = half.resample(h, "down", f"down_{level - 1}_resample")
            h = half.level(h, self.nf * mult, self.num_res_blocks, f"down_{level}")
        return self._head(half.middle(h))

    @nn.nowrap
    def _embed(self, c_noise: jax.Array | None, batch: int) -> jax.Array | None:
        """The vector that every residual block reads."""
        if not self.conditional:
            return None
        if c_noise is None:
            raise ValueError("c_noise must be given to an Encoder unless its field conditional is False")
        c_noise = c_noise.astype(jnp.float32)
        if self.embedding_type == "fourier":
            features = FourierFeatures(self.nf, 16.0, name="fourier")(jnp.log(c_noise))
        else:
            features = positional_features(c_noise, self.nf)
        return Embedding(4 * self.nf, self._style().act, None, name="embedding")(features, None, batch)

    @nn.nowrap
    def _style(self) -> Style:
        """Of what is computed in float32 throughout: the embedding and the head."""
        return Style(self.nonlinearity, dropout=0.0)

    @nn.nowrap
    def _head(self, h: jax.Array) -> jax.Array:
        h = norm_act(h, self._style(), "out_norm")
        if self.head == "attention":
            return AttentionPool(self.out_features, name="pool")(h)
        if self.head == "mean":
            return nn.Dense(self.out_features, kernel_init=init_kernel(), name="out")(h.mean(axis=(1, 2)))
        return conv(self.out_features, jnp.float32, "out_conv")(h)
