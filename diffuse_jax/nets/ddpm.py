"""The U-Net of DDPM (Ho et al. 2020, arXiv:2006.11239), with the defaults of its CIFAR-10 network."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffuse_jax.nets.attention import Implementation
from diffuse_jax.nets.layers import (
    Embedding,
    Style,
    check_inputs,
    check_unet,
    positional_features,
    require,
    sigma_table,
)
from diffuse_jax.nets.unet import UNet


class DDPM(nn.Module):
    """The DDPM U-Net. It normalises in 32 groups, so nf is a multiple of 32.

    Level i has nf·ch_mult[i] channels and num_res_blocks blocks on the way down; attention where the image's *height*
    is in attn_resolutions. The image is halved and doubled by nearest pixel and 2×2 mean, or with a convolution if
    `resamp_with_conv`. t is a label in 0..num_scales − 1, embedded by position unless `conditional` is False.
    `scale_by_sigma` divides the output by entry ⌊t⌋ of the geometric table of num_scales levels from sigma_max down to
    sigma_min. `centered=False` says that x lies in [0, 1] and maps it to 2x − 1. `num_classes`, `dtype`, `attention`
    and `remat` are those of `NCSNpp`. A value that cannot work raises ValueError when the module is made.
    """

    nf: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.1
    resamp_with_conv: bool = True
    conditional: bool = True
    nonlinearity: Literal["swish", "elu", "relu", "lrelu"] = "swish"
    scale_by_sigma: bool = False
    centered: bool = True
    sigma_min: float = 0.01
    sigma_max: float = 50.0
    num_scales: int = 1000
    num_classes: int | None = None
    dtype: Any = jnp.float32
    attention: Implementation = "xla"
    remat: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_unet(self)
        require(self.nf % 32 == 0, "nf", self.nf, "a multiple of 32, the number of groups of a normalisation")

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, cond: jax.Array | None = None, *, train: bool = False) -> jax.Array:
        """x (batch, h, w, c), t (batch,), cond None or integer labels (batch,), as `NCSNpp`: float32 of x's shape."""
        check_inputs(self, x, t, "ch_mult", len(self.ch_mult) - 1)
        style = Style(self.nonlinearity, self.dropout, group_size=1, dtype=self.dtype, attention=self.attention)
        embed = Embedding(4 * self.nf, style.act, self.num_classes, name="embedding")
        features = positional_features(t.astype(jnp.float32), self.nf) if self.conditional else None
        temb = embed(features, cond, x.shape[0])
        h = UNet(
            style,
            self.nf,
            self.ch_mult,
            self.num_res_blocks,
            self.attn_resolutions,
            self.resamp_with_conv,
            remat=self.remat,
            name="unet",
        )(x if self.centered else 2 * x - 1, temb, train)
        if not self.scale_by_sigma:
            return h
        sigma = sigma_table(self.sigma_min, self.sigma_max, self.num_scales)[t.astype(jnp.int32)]
        return h / sigma[:, None, None, None]
