"""The U-Net of DDPM (Ho et al. 2020, arXiv:2006.11239), with the defaults of its CIFAR-10 network."""

from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffuse_jax.nets.attention import Implementation
from diffuse_jax.nets.inputs import check_inputs, read_conditions, with_image
from diffuse_jax.nets.layers import (
    Embedding,
    Style,
    check_unet,
    positional_features,
    require,
    sigma_table,
)
from diffuse_jax.nets.transformer import token_context
from diffuse_jax.nets.unet import UNet


class DDPM(nn.Module):
    """The DDPM U-Net. It normalises in 32 groups, so nf is a multiple of 32.

    Args:
        nf: The channels of the first level; level i has nf·ch_mult[i].
        ch_mult: The multiple of nf at each level; between levels the image is halved.
        num_res_blocks: Residual blocks a level on the way down.
        attn_resolutions: Attention where the image's *height* is one of these.
        dropout: The probability of dropout in training.
        resamp_with_conv: Halve and double the image with a convolution, else by nearest pixel and 2×2 mean.
        conditional: Whether the network reads c_noise, a number that is embedded by position.
        nonlinearity: The activation.
        scale_by_sigma: Divide the output by entry ⌊c_noise⌋ of the geometric table of num_scales levels from sigma_max
            down to sigma_min.
        centered: Whether x lies in [−1, 1]; if not, it lies in [0, 1] and is mapped to 2x − 1.
        sigma_min: The smallest level of the table that `scale_by_sigma` reads.
        sigma_max: The largest.
        num_scales: The number of its levels; c_noise is in 0..num_scales − 1.
        num_classes: The number of classes of the condition `label`; None reads none.
        image_channels: The channels of the condition `image`, of x's height and width, which is put after those of x; 0
            reads none.
        vocabulary: The number of words of the condition `tokens`, of which 0 is padding; 0 reads none. A transformer
            encodes them, and after every attention of the U-Net all pixels look at them.
        context_length: The most tokens that a row may have.
        context_width: The width of that transformer.
        context_depth: The number of its blocks.
        dtype: The type of the convolutions and attention products; parameters, norms, softmax, embeddings and output
            stay float32.
        attention: "xla", or "cudnn", a fused kernel on NVIDIA's GPUs (see `attend`).
        remat: Recompute residual blocks in the backward pass, to save memory.

    Raises:
        ValueError: When the module is made, for a value that cannot work.
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
    image_channels: int = 0
    vocabulary: int = 0
    context_length: int = 64
    context_width: int = 256
    context_depth: int = 2
    dtype: Any = jnp.float32
    attention: Implementation = "xla"
    remat: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_unet(self)
        require(self.nf % 32 == 0, "nf", self.nf, "a multiple of 32, the number of groups of a normalisation")

    @nn.compact
    def __call__(
        self, x: jax.Array, c_noise: jax.Array, cond: Mapping[str, jax.Array] | None = None, *, train: bool = False
    ) -> jax.Array:
        """x (batch, h, w, c), c_noise (batch,), cond None or conditions as `NCSNpp`: float32 of x's shape."""
        check_inputs(self, x, c_noise, "ch_mult", len(self.ch_mult) - 1)
        given = read_conditions(self, cond, label="num_classes", image="image_channels", tokens="vocabulary")
        style = Style(self.nonlinearity, self.dropout, group_size=1, dtype=self.dtype, attention=self.attention)
        embed = Embedding(4 * self.nf, style.act, self.num_classes, name="embedding")
        features = positional_features(c_noise.astype(jnp.float32), self.nf) if self.conditional else None
        temb = embed(features, given["label"], x.shape[0])
        read = with_image(x, given["image"], self.image_channels)
        h = UNet(
            style,
            self.nf,
            self.ch_mult,
            self.num_res_blocks,
            self.attn_resolutions,
            self.resamp_with_conv,
            remat=self.remat,
            out_channels=x.shape[-1],
            name="unet",
        )(read if self.centered else 2 * read - 1, temb, train, token_context(self, given["tokens"], x.shape[0]))
        if not self.scale_by_sigma:
            return h
        sigma = sigma_table(self.sigma_min, self.sigma_max, self.num_scales)[c_noise.astype(jnp.int32)]
        return h / sigma[:, None, None, None]
