"""The U-Net between an image and an image of the same size that `NCSNpp` and `DDPM` are made of.

Down: at each level num_res_blocks residual blocks, attention after each at the chosen heights, then the size is
halved. Middle: block, attention, block. Up: at each level num_res_blocks + 1 blocks, each of which also reads one
saved activation of the way down, then attention once, then the size is doubled. Two pyramids may run beside it (Song
et al. 2021, arXiv:2011.13456, appendix H): one brings ever smaller copies of the input to the levels on the way down,
the other gathers the output from the levels on the way up. With a context every attention is followed by one of all
pixels to the context.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffuse_jax.nets.dropout import dropout_seed, layer_seed
from diffuse_jax.nets.layers import (
    Attention,
    Combine,
    ResampleConv,
    Resampling,
    ResBlock,
    Style,
    conv,
    norm_act,
    resample,
)
from diffuse_jax.nets.transformer import CrossAttention

Context = tuple[jax.Array, jax.Array]  # (batch, m, k) and its mask (batch, m)


class UNet(nn.Module):
    """See the head of this module. Type "biggan" halves and doubles in a residual block, "ddpm" in a layer between."""

    style: Style
    nf: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    resamp_with_conv: bool
    resblock_type: Literal["biggan", "ddpm"] = "ddpm"
    progressive: Literal["none", "output_skip", "residual"] = "none"
    progressive_input: Literal["none", "input_skip", "residual"] = "none"
    progressive_combine: Literal["sum", "cat"] = "sum"
    remat: bool = False
    out_channels: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array | None, train: bool, context: Context | None = None) -> jax.Array:
        """x (batch, h, w, c), temb (batch, k) or None: float32 (batch, h, w, out_channels), of x by default."""
        seed = dropout_seed(self.make_rng("dropout")) if train and self.style.dropout else None
        saved = self._down(x, temb, seed, context)
        h = saved[-1]
        h = self._block(h, temb, seed, h.shape[-1], "middle_block_0")
        h = self._attend(h, context, "middle_attention")
        h = self._block(h, temb, seed, h.shape[-1], "middle_block_1")
        return self._up(h, saved, temb, seed, context, self.out_channels or x.shape[-1])

    @nn.nowrap
    def _block(
        self,
        h: jax.Array,
        temb: jax.Array | None,
        seed: jax.Array | None,
        features: int,
        name: str,
        direction: Resampling = "none",
    ) -> jax.Array:
        block = nn.remat(ResBlock) if self.remat else ResBlock
        return block(self.style, features, direction, self.resblock_type == "ddpm", name=name)(
            h, temb, layer_seed(seed, name)
        )

    @nn.nowrap
    def _attend(self, h: jax.Array, context: Context | None, name: str) -> jax.Array:
        h = Attention(self.style, name=name)(h)
        return h if context is None else CrossAttention(self.style, name=f"{name}_tokens")(h, *context)

    @nn.nowrap
    def _resample(
        self, h: jax.Array, temb: jax.Array | None, seed: jax.Array | None, direction: Literal["up", "down"], name: str
    ) -> jax.Array:
        """Halves or doubles the trunk as the block type says; the channels stay."""
        if self.resblock_type == "biggan":
            return self._block(h, temb, seed, h.shape[-1], name, direction)
        if self.resamp_with_conv:
            return ResampleConv(self.style, h.shape[-1], direction, name=name)(h)
        return resample(h, self.style, direction)

    @nn.nowrap
    def _down(
        self, x: jax.Array, temb: jax.Array | None, seed: jax.Array | None, context: Context | None
    ) -> list[jax.Array]:
        """All activations that the way up reads, the last being the trunk's."""
        style, pyramid = self.style, x
        h = conv(self.nf, style.dtype, "in_conv")(x)
        saved = [h]
        for level, mult in enumerate(self.ch_mult):
            for i in range(self.num_res_blocks):
                h = self._block(h, temb, seed, self.nf * mult, f"down_{level}_block_{i}")
                if h.shape[1] in self.attn_resolutions:
                    h = self._attend(h, context, f"down_{level}_attention_{i}")
                saved.append(h)
            if level == len(self.ch_mult) - 1:
                break
            h = self._resample(h, temb, seed, "down", f"down_{level}_resample")
            if self.progressive_input == "input_skip":
                pyramid = resample(pyramid, style, "down")
                h = Combine(self.progressive_combine, style.dtype, name=f"down_{level}_combine")(pyramid, h)
            elif self.progressive_input == "residual":
                pyramid = ResampleConv(style, h.shape[-1], "down", name=f"down_{level}_pyramid")(pyramid)
                h = pyramid = style.merge(pyramid, h)
            saved.append(h)
        return saved

    @nn.nowrap
    def _up(
        self,
        h: jax.Array,
        saved: list[jax.Array],
        temb: jax.Array | None,
        seed: jax.Array | None,
        context: Context | None,
        channels: int,
    ) -> jax.Array:
        """From the trunk at the smallest size to the image, using up `saved` from its end."""
        style, pyramid, deepest = self.style, h, len(self.ch_mult) - 1
        for level in reversed(range(len(self.ch_mult))):
            for i in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, saved.pop()], axis=-1)
                h = self._block(h, temb, seed, self.nf * self.ch_mult[level], f"up_{level}_block_{i}")
            if h.shape[1] in self.attn_resolutions:
                h = self._attend(h, context, f"up_{level}_attention")
            if self.progressive == "output_skip":
                image = self._image(h, channels, f"up_{level}_out")
                pyramid = image if level == deepest else resample(pyramid, style, "up") + image
            elif self.progressive == "residual" and level == deepest:
                normed = norm_act(h, style, f"up_{level}_pyramid_norm")
                pyramid = conv(h.shape[-1], style.dtype, f"up_{level}_pyramid_conv")(normed)
            elif self.progressive == "residual":
                pyramid = ResampleConv(style, h.shape[-1], "up", name=f"up_{level}_pyramid")(pyramid)
                h = pyramid = style.merge(pyramid, h)
            if level > 0:
                h = self._resample(h, temb, seed, "up", f"up_{level}_resample")
        return pyramid if self.progressive == "output_skip" else self._image(h, channels, "out")

    @nn.nowrap
    def _image(self, h: jax.Array, channels: int, name: str) -> jax.Array:
        """Norm, nonlinearity and a convolution to the image's channels, all in float32."""
        full = dataclasses.replace(self.style, dtype=jnp.float32)
        return conv(channels, full.dtype, f"{name}_conv", scale=full.init_scale)(norm_act(h, full, f"{name}_norm"))
