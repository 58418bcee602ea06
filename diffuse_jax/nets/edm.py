"""EDM's networks (Karras et al. 2022, arXiv:2206.00364, appendix F): `SongUNet`, which is DDPM++ or NCSN++ (Song et al.
2021, arXiv:2011.13456), and `ADM` (Dhariwal & Nichol 2021, arXiv:2105.05233).

They read a number c_noise for the time, classes and a vector that says how the image was augmented (Karras et al. 2020,
arXiv:2006.06676); EDM's preconditioning around them is `diffuse_jax.parameterizations.edm`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffuse_jax.nets.attention import Implementation
from diffuse_jax.nets.edm_unet import DHARIWAL, SONG, EDMStyle, Role, UNet, dense
from diffuse_jax.nets.inputs import check_inputs, read_conditions
from diffuse_jax.nets.layers import (
    FourierFeatures,
    check_attention,
    check_dtype,
    check_probability,
    make_tuple,
    positional_features,
    real,
    require,
    whole,
)

# In float32, as the original rounds it.
_BASE = np.float32(1e-4)


class SongUNet(nn.Module):
    """EDM's DDPM++, and with embedding_type="fourier", channel_mult_noise=2, encoder_type="residual" and
    resample_filter=(1, 3, 3, 1) its NCSN++; with channel_mult (2, 2, 2) those of CIFAR-10.

    Args:
        img_resolution: The height of the image by which levels with attention are counted; None is the image's own.
        out_channels: The channels of the output; None is as many as the image has.
        label_dim: The length of the class vector; 0 has no classes.
        augment_dim: The length of the vector that says how the image was augmented; 0 has none.
        model_channels: The channels of the first level; level i has model_channels·channel_mult[i].
        channel_mult: The multiple of model_channels at each level.
        channel_mult_emb: The width of the embedding, in model_channels.
        num_blocks: Residual blocks a level on the way down.
        attn_resolutions: Attention where img_resolution/2^i is one of these.
        dropout: The probability of dropout in training.
        label_dropout: The probability that training hides a class.
        embedding_type: The features of c_noise: "positional" or "fourier".
        channel_mult_noise: Their number, in model_channels.
        encoder_type: The kind of the way down; see `edm_unet.UNet`.
        decoder_type: The kind of the way up; see `edm_unet.UNet`.
        resample_filter: A separable filter of even length.
        dtype: The type of the convolutions and attention products; parameters, norms, softmax, embeddings and output
            stay float32.
        attention: "xla", or "cudnn", a fused kernel on NVIDIA's GPUs (see `attend`).
        remat: Recompute blocks in the backward pass, to save memory.

    Raises:
        ValueError: When the module is made, for a value that cannot work.
    """

    img_resolution: int | None = None
    out_channels: int | None = None
    label_dim: int = 0
    augment_dim: int = 0
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    channel_mult_emb: int = 4
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.1
    label_dropout: float = 0.0
    embedding_type: Literal["positional", "fourier"] = "positional"
    channel_mult_noise: int = 1
    encoder_type: Literal["standard", "skip", "residual"] = "standard"
    decoder_type: Literal["standard", "skip"] = "standard"
    resample_filter: tuple[float, ...] = (1, 1)
    dtype: Any = jnp.float32
    attention: Implementation = "xla"
    remat: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_fields(self)
        for field, choices in _CHOICES.items():
            require(getattr(self, field) in choices, field, getattr(self, field), f"one of {choices}")
        noise = self.channel_mult_noise
        noise_ok = whole(noise) and noise > 0 and noise * self.model_channels % 2 == 0
        require(noise_ok, "channel_mult_noise", noise, "a positive integer that makes model_channels times it even")
        make_tuple(self, "resample_filter")
        taps = self.resample_filter
        taps_ok = len(taps) % 2 == 0 and all(real(tap) for tap in taps) and sum(taps) != 0
        require(taps_ok, "resample_filter", taps, "an even number of taps with a sum that is not 0")

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        c_noise: jax.Array,
        cond: Mapping[str, jax.Array] | None = None,
        *,
        augment: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """x (batch, h, w, c), c_noise (batch,), cond None or {"label": integer classes (batch,) or class vectors
        (batch, label_dim)}, augment None or (batch, augment_dim): float32 (batch, h, w, out_channels).

        No label, or a class outside 0..label_dim − 1, is the zero vector. h and w must be multiples of 2^(levels − 1),
        else ValueError. With train=True dropout draws from the rng "dropout".
        """
        check_inputs(self, x, c_noise, "channel_mult", len(self.channel_mult) - 1)
        features, width = self.model_channels * self.channel_mult_noise, self.model_channels * self.channel_mult_emb
        c_noise, label = c_noise.astype(jnp.float32), _class_vector(self, cond, x.shape[0], train)
        if self.embedding_type == "fourier":
            embedding = FourierFeatures(features // 2, 16.0, angular=True, name="fourier")(c_noise)
        else:
            exponents = _exponents(features, features // 2 - 1)
            embedding = positional_features(c_noise, features, exponents, base=_BASE)
        if label is not None:
            embedding += dense(label * self.label_dim**0.5, SONG, features, "classes")
        embedding = _add_augment(self, embedding, augment, SONG, "open")
        embedding = nn.silu(dense(embedding, SONG, width, "dense_0"))
        embedding = nn.silu(dense(embedding, SONG, width, "dense_1"))
        taps = tuple(self.resample_filter)
        return UNet(
            dataclasses.replace(SONG, dropout=self.dropout, taps=taps, dtype=self.dtype, attention=self.attention),
            self.model_channels,
            tuple(self.model_channels * mult for mult in self.channel_mult),
            self.num_blocks,
            _attention_levels(self, x),
            False,
            self.out_channels or x.shape[-1],
            self.encoder_type,
            self.decoder_type,
            self.remat,
            name="unet",
        )(x.astype(jnp.float32), embedding, train)


class ADM(nn.Module):
    """EDM's ADM, called DhariwalUNet there; the defaults are ImageNet-64's but for its 1000 classes, label_dim.

    It differs from `SongUNet` in this: attention is after every block of a level that has it, in heads of 64 channels
    (levels with fewer channels have none); the embedding scales as well as shifts; the class vector is added after the
    MLP; and the image is resampled by nearest pixel and 2×2 mean.

    Args:
        img_resolution: The height of the image by which levels with attention are counted; None is the image's own.
        out_channels: The channels of the output; None is as many as the image has.
        label_dim: The length of the class vector; 0 has no classes.
        augment_dim: The length of the vector that says how the image was augmented; 0 has none.
        model_channels: The even number by which channels are counted; level i has model_channels·channel_mult[i].
        channel_mult: The multiple of model_channels at each level.
        channel_mult_emb: The width of the embedding, in model_channels.
        num_blocks: Residual blocks a level on the way down.
        attn_resolutions: Attention where img_resolution/2^i is one of these.
        dropout: The probability of dropout in training.
        label_dropout: The probability that training hides a class.
        dtype: The type of the convolutions and attention products; parameters, norms, softmax, embeddings and output
            stay float32.
        attention: "xla", or "cudnn", a fused kernel on NVIDIA's GPUs (see `attend`).
        remat: Recompute blocks in the backward pass, to save memory.

    Raises:
        ValueError: When the module is made, for a value that cannot work.
    """

    img_resolution: int | None = None
    out_channels: int | None = None
    label_dim: int = 0
    augment_dim: int = 0
    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    channel_mult_emb: int = 4
    num_blocks: int = 3
    attn_resolutions: tuple[int, ...] = (32, 16, 8)
    dropout: float = 0.1
    label_dropout: float = 0.0
    dtype: Any = jnp.float32
    attention: Implementation = "xla"
    remat: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_fields(self)
        require(self.model_channels % 2 == 0, "model_channels", self.model_channels, "even")

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        c_noise: jax.Array,
        cond: Mapping[str, jax.Array] | None = None,
        *,
        augment: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """As `SongUNet.__call__`."""
        check_inputs(self, x, c_noise, "channel_mult", len(self.channel_mult) - 1)
        width = self.model_channels * self.channel_mult_emb
        label = _class_vector(self, cond, x.shape[0], train)
        c_noise, channels = c_noise.astype(jnp.float32), self.model_channels
        exponents = _exponents(channels, channels // 2)
        embedding = positional_features(c_noise, channels, exponents, base=_BASE, cosines_first=True)
        embedding = _add_augment(self, embedding, augment, DHARIWAL, "close")
        embedding = nn.silu(dense(embedding, DHARIWAL, width, "dense_0"))
        embedding = dense(embedding, DHARIWAL, width, "dense_1")
        if label is not None:
            normal = nn.initializers.normal(1.0)
            embedding += nn.Dense(width, use_bias=False, kernel_init=normal, name="classes")(label)
        widths = tuple(self.model_channels * mult for mult in self.channel_mult)
        return UNet(
            dataclasses.replace(DHARIWAL, dropout=self.dropout, dtype=self.dtype, attention=self.attention),
            widths[0],
            widths,
            self.num_blocks,
            _attention_levels(self, x),
            True,
            self.out_channels or x.shape[-1],
            remat=self.remat,
            name="unet",
        )(x.astype(jnp.float32), nn.silu(embedding), train)


_CHOICES = {
    "embedding_type": ("positional", "fourier"),
    "encoder_type": ("standard", "skip", "residual"),
    "decoder_type": ("standard", "skip"),
}


def _check_fields(net: Any) -> None:
    """Raises ValueError for a field that both networks have and that cannot work."""
    make_tuple(net, "channel_mult")
    make_tuple(net, "attn_resolutions")
    levels_ok = len(net.channel_mult) > 0 and all(whole(m) and m > 0 for m in net.channel_mult)
    require(levels_ok, "channel_mult", net.channel_mult, "a tuple of positive integers, one a level")
    for field in ("model_channels", "channel_mult_emb", "num_blocks"):
        value = getattr(net, field)
        require(whole(value) and value > 0, field, value, "a positive integer")
    for field in ("img_resolution", "out_channels"):
        value = getattr(net, field)
        require(value is None or (whole(value) and value > 0), field, value, "None or a positive integer")
    for field in ("label_dim", "augment_dim"):
        value = getattr(net, field)
        require(whole(value) and value >= 0, field, value, "an integer of at least 0")
    check_probability(net, "dropout")
    check_probability(net, "label_dropout")
    heights_ok = all(whole(height) for height in net.attn_resolutions)
    require(heights_ok, "attn_resolutions", net.attn_resolutions, "a tuple of image heights")
    check_dtype(net)
    check_attention(net)


def _attention_levels(net: Any, x: jax.Array) -> tuple[bool, ...]:
    resolution = net.img_resolution or x.shape[1]
    return tuple(resolution >> level in net.attn_resolutions for level in range(len(net.channel_mult)))


def _exponents(size: int, steps: int) -> np.ndarray:
    """k/steps for k < size/2, float32: the powers of 10⁻⁴ that are the frequencies of an embedding."""
    return np.arange(size // 2, dtype=np.float32) / np.float32(steps)


def _class_vector(net: Any, cond: Mapping[str, jax.Array] | None, batch: int, train: bool) -> jax.Array | None:
    """The class vectors (batch, label_dim) that the network reads, some of them hidden in training."""
    given = read_conditions(net, cond, label="label_dim")["label"]
    if net.label_dim == 0:
        return None
    if given is None:
        return jnp.zeros((batch, net.label_dim))
    label = jnp.asarray(given)
    if label.shape == (batch,) and jnp.issubdtype(label.dtype, jnp.integer):
        label = jax.nn.one_hot(label, net.label_dim)
    elif label.shape != (batch, net.label_dim):
        raise ValueError(
            f"label must be integer classes ({batch},) or class vectors ({batch}, {net.label_dim}); got {label.dtype} "
            f"of shape {label.shape}"
        )
    if train and net.label_dropout > 0:
        kept = jax.random.bernoulli(net.make_rng("dropout"), 1 - net.label_dropout, (batch, 1))
        label = jnp.where(kept, label, 0)
    return label.astype(jnp.float32)


def _add_augment(net: Any, embedding: jax.Array, augment: jax.Array | None, style: EDMStyle, role: Role) -> jax.Array:
    """The embedding (batch, k) with the augmentation's vector (batch, augment_dim) mapped and added."""
    if net.augment_dim == 0:
        require(augment is None, "augment", augment, "absent unless the network has an augment_dim")
        return embedding
    shape = (embedding.shape[0], net.augment_dim)
    augment = jnp.zeros(shape) if augment is None else jnp.asarray(augment, jnp.float32)
    require(augment.shape == shape, "augment", augment.shape, f"of shape {shape}")
    return embedding + dense(augment, style, embedding.shape[-1], "augment", role, use_bias=False)
