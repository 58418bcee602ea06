"""An encoder and a decoder that share their fields: the network of an autoencoder (Kingma & Welling 2014,
arXiv:1312.6114; Rombach et al. 2022, arXiv:2112.10752)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffuse_jax.nets.attention import Implementation
from diffuse_jax.nets.decoder import Decoder
from diffuse_jax.nets.encoder import Encoder
from diffuse_jax.nets.layers import require, whole
from diffuse_jax.nets.linen import LinenNet


class Autoencoder(nn.Module):
    """Images to the moments of their latents, and latents to the images that they stand for. A latent has 1/2^(levels −
    1) of the height and width. Its parameters are those of "encoder" and "decoder", and "log_scale".

    Args:
        out_channels: The channels of the images.
        latent_channels: The channels of the latents.
        nf: The channels of the first level; level i has nf·ch_mult[i].
        ch_mult: The multiple of nf at each level; between levels the image is halved.
        num_res_blocks: Residual blocks a level, of which the decoder has one more.
        attn_resolutions: Attention where the image's *height* is one of these.
        dropout: The probability of dropout in training.
        resblock_type: "biggan" blocks resample the image themselves; "ddpm" ones leave it to convolutions.
        nonlinearity: The activation.
        dtype: The type of the convolutions and attention products; parameters, norms, softmax and the outputs stay
            float32.
        attention: "xla", or "cudnn", a fused kernel on NVIDIA's GPUs (see `attend`).
        remat: Recompute residual blocks in the backward pass, to save memory.

    Raises:
        ValueError: When the module is made, for a value that cannot work.
    """

    out_channels: int
    latent_channels: int = 4
    nf: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = ()
    dropout: float = 0.0
    resblock_type: Literal["biggan", "ddpm"] = "ddpm"
    nonlinearity: Literal["swish", "elu", "relu", "lrelu"] = "swish"
    dtype: Any = jnp.float32
    attention: Implementation = "xla"
    remat: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        channels = self.latent_channels
        require(whole(channels) and channels > 0, "latent_channels", channels, "a positive integer")
        self._halves()

    def setup(self) -> None:
        self.encoder, self.decoder = self._halves()
        # About that of images in [-1, 1], which a network that has learnt nothing cannot tell apart.
        self.log_scale = self.param("log_scale", nn.initializers.constant(-1.0), (self.out_channels,))

    @nn.nowrap
    def _halves(self) -> tuple[Encoder, Decoder]:
        shared = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(Decoder)
            if field.name not in ("out_channels", "name", "parent")
        }
        encoder = Encoder(2 * self.latent_channels, "moments", conditional=False, **shared, parent=None)
        return encoder, Decoder(self.out_channels, **shared, parent=None)

    def encode(self, x: jax.Array, *, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """x (batch, h, w, c) as the mean and the log-variance of its latent, each (batch, h', w', latent_channels)."""
        mean, log_variance = jnp.split(self.encoder(x, train=train), 2, axis=-1)
        return mean, log_variance

    def decode(self, z: jax.Array, *, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """z (batch, h', w', latent_channels) as the mean (batch, h, w, out_channels) of its image, and the logarithm of
        its standard deviation, which is learnt of each channel, (out_channels,)."""
        return self.decoder(z, train=train), self.log_scale

    def __call__(
        self,
        x: jax.Array,
        c_noise: jax.Array | None = None,
        cond: Mapping[str, jax.Array] | None = None,
        *,
        train: bool = False,
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        """`encode` of x, and `decode` of the mean. c_noise is part of the call of every network, and not read."""
        moments = self.encode(x, train=train)
        return moments, self.decode(moments[0], train=train)


@dataclasses.dataclass(frozen=True)
class LinenAutoencoder(LinenNet):
    """The bridge from a Linen module with methods `encode` and `decode`, such as `Autoencoder`, to functions of its
    parameters. What is random draws from `rng`, without which there is no dropout.

    Raises:
        TypeError: When it is made, for a module without these methods.
    """

    def __post_init__(self) -> None:
        for method in ("encode", "decode"):
            if not callable(getattr(self.module, method, None)):
                raise TypeError(f"module {type(self.module).__name__} has no method {method!r}: take Autoencoder")

    def encode(self, params: Any, x: jax.Array, *, rng: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """The distribution of latents, given their data.

        Args:
            params: The parameters.
            x: The data (batch, …).
            rng: The key of the dropout; None turns it off.

        Returns:
            The mean and the log-variance of the latents.
        """
        mean, log_variance = self(params, x, rng=rng, method="encode")
        return mean, log_variance

    def decode(self, params: Any, z: jax.Array, *, rng: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """The distribution of data, given their latents.

        Args:
            params: The parameters.
            z: The latents (batch, …).
            rng: The key of the dropout; None turns it off.

        Returns:
            The mean of the data, and the logarithm of their standard deviation.
        """
        mean, log_scale = self(params, z, rng=rng, method="decode")
        return mean, log_scale
