"""What `Encoder` and `Decoder`, the two halves of a U-Net without its skips, share: their blocks, made of a network's
fields."""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax

from diffuse_jax.nets.dropout import dropout_seed, layer_seed
from diffuse_jax.nets.layers import Attention, ResampleConv, Resampling, ResBlock, Style, check_levels, require

__all__ = ["Half", "check_half", "half_of"]

_RESBLOCK_TYPES = ("biggan", "ddpm")


def check_half(net: Any) -> None:
    """Raises ValueError for a field that both halves have and that cannot work."""
    check_levels(net)
    require(net.resblock_type in _RESBLOCK_TYPES, "resblock_type", net.resblock_type, f"one of {_RESBLOCK_TYPES}")


@dataclasses.dataclass(frozen=True)
class Half:
    """The layers of one call of a network, inside its compact method: each maps (batch, h, w, c) to such an array.

    Args:
        net: The network.
        style: What its blocks agree on.
        temb: What every residual block reads, (batch, k); None: nothing.
        seed: The seed (2,) of dropout; None: none is dropped.
    """

    net: Any
    style: Style
    temb: jax.Array | None
    seed: jax.Array | None

    def block(self, h: jax.Array, features: int, name: str, direction: Resampling = "none") -> jax.Array:
        """A residual block.

        Args:
            h: What it reads, (batch, h, w, c).
            features: The channels that it gives.
            name: Its name.
            direction: Whether it resamples the image, "up" or "down", or "none".

        Returns:
            (batch, h', w', features).
        """
        block = nn.remat(ResBlock) if self.net.remat else ResBlock
        small = self.net.resblock_type == "ddpm"
        return block(self.style, features, direction, small, name=name)(h, self.temb, layer_seed(self.seed, name))

    def level(self, h: jax.Array, features: int, blocks: int, name: str) -> jax.Array:
        """The blocks of a level, with attention after each where the image's height is one that has it.

        Args:
            h: What the first reads, (batch, h, w, c).
            features: The channels that each gives.
            blocks: Their number.
            name: What their names begin with.

        Returns:
            (batch, h, w, features).
        """
        for i in range(blocks):
            h = self.block(h, features, f"{name}_block_{i}")
            if h.shape[1] in self.net.attn_resolutions:
                h = Attention(self.style, name=f"{name}_attention_{i}")(h)
        return h

    def resample(self, h: jax.Array, direction: Literal["up", "down"], name: str) -> jax.Array:
        """Halves or doubles the image as the type of block says; the channels stay.

        Args:
            h: The image, (batch, h, w, c).
            direction: "down" halves it, "up" doubles it.
            name: The name of the layer.

        Returns:
            (batch, h', w', c).
        """
        if self.net.resblock_type == "biggan":
            return self.block(h, h.shape[-1], name, direction)
        return ResampleConv(self.style, h.shape[-1], direction, name=name)(h)

    def middle(self, h: jax.Array) -> jax.Array:
        h = self.block(h, h.shape[-1], "middle_block_0")
        h = Attention(self.style, name="middle_attention")(h)
        return self.block(h, h.shape[-1], "middle_block_1")


def half_of(net: Any, temb: jax.Array | None, train: bool) -> Half:
    """The layers of a call of a network.

    Args:
        net: The network.
        temb: What every residual block reads, (batch, k); None: nothing.
        train: Whether there is dropout, whose seed is drawn from the network's rng "dropout".

    Returns:
        The layers.
    """
    style = Style(net.nonlinearity, net.dropout, dtype=net.dtype, attention=net.attention)
    return Half(net, style, temb, dropout_seed(net.make_rng("dropout")) if train and net.dropout else None)
