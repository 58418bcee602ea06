"""The up half of a U-Net without its skips: the decoder of an autoencoder (Rombach et al. 2022, arXiv:2112.10752)."""

from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffuse_jax.nets.attention import Implementation
from diffuse_jax.nets.halves import check_half, half_of
from diffuse_jax.nets.inputs import check_inputs, read_conditions
from diffuse_jax.nets.layers import Style, conv, norm_act, require, whole


class Decoder(nn.Module):
    """Block, attention, block; then at each level num_res_blocks + 1 residual blocks, attention after each at the
    chosen heights, and the image is doubled but after the last. Levels are counted from the image's size, as those of
    the `Encoder` with the same fields.

    Args:
        out_channels: The channels of the image that comes out.
        nf: The channels of the last level; level i has nf·ch_mult[i].
        ch_mult: The multiple of nf at each level; between levels the image is doubled.
        num_res_blocks: One less than the residual blocks of a level.
        attn_resolutions: Attention where the image's *height* is one of these.
        dropout: The probability of dropout in training.
        resblock_type: "biggan" blocks double the image themselves; "ddpm" ones leave it to convolutions between them.
        nonlinearity: The activation.
        dtype: The type of the convolutions and attention products; parameters, norms, softmax and output stay float32.
        attention: "xla", or "cudnn", a fused kernel on NVIDIA's GPUs (see `attend`).
        remat: Recompute residual blocks in the backward pass, to save memory.

    Raises:
        ValueError: When the module is made, for a value that cannot work.
    """

    out_channels: int
    nf: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.0
    resblock_type: Literal["biggan", "ddpm"] = "ddpm"
    nonlinearity: Literal["swish", "elu", "relu", "lrelu"] = "swish"
    dtype: Any = jnp.float32
    attention: Implementation = "xla"
    remat: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_half(self)
        channels = self.out_channels
        require(whole(channels) and channels > 0, "out_channels", channels, "a positive integer")

    @nn.compact
    def __call__(
        self,
        z: jax.Array,
        c_noise: jax.Array | None = None,
        cond: Mapping[str, jax.Array] | None = None,
        *,
        train: bool = False,
    ) -> jax.Array:
        """z (batch, h, w, c), no conditions: float32 (batch, h·2^(levels − 1), w·2^(levels − 1), out_channels).

        c_noise is part of the call of every network, and not read. With train=True dropout draws from the rng
        "dropout".
        """
        read_conditions(self, cond)
        check_inputs(self, z, None, "ch_mult", 0)
        half = half_of(self, None, train)
        h = half.middle(conv(self.nf * self.ch_mult[-1], self.dtype, "in_conv")(z))
        for level in reversed(range(len(self.ch_mult))):
            h = half.level(h, self.nf * self.ch_mult[level], self.num_res_blocks + 1, f"up_{level}")
            if level > 0:
                h = half.resample(h, "up", f"up_{level}_resample")
        h = norm_act(h, Style(self.nonlinearity, dropout=0.0), "out_norm")
        return conv(self.out_channels, jnp.float32, "out_conv")(h)
