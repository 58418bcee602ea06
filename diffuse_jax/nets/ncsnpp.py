"""NCSN++ and, as settings of it, DDPM++: the score networks of Song et al. 2021 (arXiv:2011.13456, appendix H)."""

from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffuse_jax.nets.attention import Implementation
from diffuse_jax.nets.inputs import check_inputs, read_conditions, with_image
from diffuse_jax.nets.layers import (
    Embedding,
    FourierFeatures,
    Style,
    check_unet,
    make_tuple,
    positional_features,
    real,
    require,
    sigma_table,
)
from diffuse_jax.nets.transformer import token_context
from diffuse_jax.nets.unet import UNet

_CHOICES = {
    "resblock_type": ("biggan", "ddpm"),
    "progressive": ("none", "output_skip", "residual"),
    "progressive_input": ("none", "input_skip", "residual"),
    "progressive_combine": ("sum", "cat"),
    "embedding_type": ("fourier", "positional"),
}


class NCSNpp(nn.Module):
    """The NCSN++ U-Net; by default the CIFAR-10 network of the VE process trained in continuous time.

    Args:
        nf: The channels of the first level; level i has nf·ch_mult[i].
        ch_mult: The multiple of nf at each level; between levels the image is halved.
        num_res_blocks: Residual blocks a level on the way down.
        attn_resolutions: Attention where the image's *height* is one of these.
        dropout: The probability of dropout in training.
        resamp_with_conv: The layers between "ddpm" blocks resample with a convolution.
        conditional: Whether the blocks read c_noise; the division by σ does in any case.
        fir: Resample with a separable FIR filter, else by nearest pixel and 2×2 mean.
        fir_kernel: The filter.
        skip_rescale: Divide sums of branches by √2.
        resblock_type: "biggan" blocks halve and double the image themselves; "ddpm" ones leave it to layers between
            them.
        progressive: The output is that of the last level ("none"), the sum of one image a level ("output_skip"), or of
            features a level ("residual").
        progressive_input: The levels on the way down also read a smaller copy of the input ("input_skip") or of its
            features ("residual").
        progressive_combine: How the copy of "input_skip" is joined: "sum" or "cat".
        embedding_type: "fourier" reads c_noise = σ > 0 through log σ; "positional" any number c_noise ≥ 0.
        fourier_scale: The frequencies of "fourier" are drawn from N(0, fourier_scale²).
        init_scale: The factor on the variance of the last kernel of each branch at its start (0: almost zero).
        nonlinearity: The activation.
        scale_by_sigma: Divide the output by σ: c_noise itself, or for "positional" entry ⌊c_noise⌋ of the geometric
            table of num_scales levels from sigma_max down to sigma_min.
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
    num_res_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.1
    resamp_with_conv: bool = True
    conditional: bool = True
    fir: bool = True
    fir_kernel: tuple[float, ...] = (1, 3, 3, 1)
    skip_rescale: bool = True
    resblock_type: Literal["biggan", "ddpm"] = "biggan"
    progressive: Literal["none", "output_skip", "residual"] = "none"
    progressive_input: Literal["none", "input_skip", "residual"] = "residual"
    progressive_combine: Literal["sum", "cat"] = "sum"
    embedding_type: Literal["fourier", "positional"] = "fourier"
    fourier_scale: float = 16.0
    init_scale: float = 0.0
    nonlinearity: Literal["swish", "elu", "relu", "lrelu"] = "swish"
    scale_by_sigma: bool = True
    centered: bool = False
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
        for field, choices in _CHOICES.items():
            require(getattr(self, field) in choices, field, getattr(self, field), f"one of {choices}")
        scale, start = self.fourier_scale, self.init_scale
        require(real(scale) and scale > 0, "fourier_scale", scale, "a positive number")
        require(real(start) and start >= 0, "init_scale", start, "a number of at least 0")
        make_tuple(self, "fir_kernel")
        taps_ok = all(real(tap) for tap in self.fir_kernel) and sum(self.fir_kernel) != 0
        require(taps_ok, "fir_kernel", self.fir_kernel, "numbers with a sum that is not 0")

    @nn.compact
    def __call__(
        self, x: jax.Array, c_noise: jax.Array, cond: Mapping[str, jax.Array] | None = None, *, train: bool = False
    ) -> jax.Array:
        """x (batch, h, w, c), c_noise (batch,), cond None or {"label": integers (batch,), "image": (batch, h, w,
        image_channels), "tokens": integers (batch, length)} or some of them: float32 of x's shape.

        Label num_classes (or any outside 0..num_classes − 1), an image of zeros, and tokens that are all 0 equal none
        given. The image is in the range of x. h and w must be
        multiples of 2^(levels − 1), else ValueError. With train=True dropout draws from the rng "dropout".
        """
        check_inputs(self, x, c_noise, "ch_mult", len(self.ch_mult) - 1)
        given = read_conditions(self, cond, label="num_classes", image="image_channels", tokens="vocabulary")
        c_noise = c_noise.astype(jnp.float32)
        if self.embedding_type == "fourier":
            # Also made where `conditional` is False, so that the parameters are those of published checkpoints.
            features, sigma = FourierFeatures(self.nf, self.fourier_scale, name="fourier")(jnp.log(c_noise)), c_noise
        else:
            features = positional_features(c_noise, self.nf)
            sigma = sigma_table(self.sigma_min, self.sigma_max, self.num_scales)[c_noise.astype(jnp.int32)]
        style = Style(
            self.nonlinearity,
            self.dropout,
            skip_rescale=self.skip_rescale,
            init_scale=self.init_scale,
            fir_kernel=self.fir_kernel if self.fir else None,
            dtype=self.dtype,
            attention=self.attention,
        )
        embed = Embedding(4 * self.nf, style.act, self.num_classes, name="embedding")
        temb = embed(features if self.conditional else None, given["label"], x.shape[0])
        read = with_image(x, given["image"], self.image_channels)
        h = UNet(
            style,
            self.nf,
            self.ch_mult,
            self.num_res_blocks,
            self.attn_resolutions,
            self.resamp_with_conv,
            self.resblock_type,
            self.progressive,
            self.progressive_input,
            self.progressive_combine,
            self.remat,
            out_channels=x.shape[-1],
            name="unet",
        )(read if self.centered else 2 * read - 1, temb, train, token_context(self, given["tokens"], x.shape[0]))
        return h / sigma[:, None, None, None] if self.scale_by_sigma else h
