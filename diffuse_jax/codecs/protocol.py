"""What a codec is. Nothing outside of codecs knows how data are stored."""

from typing import Any, Protocol

import jax

__all__ = ["Codec"]


class Codec(Protocol):
    """A pytree between data and the space in which a process runs; the parameters that it has are its leaves."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample in that space."""
        ...

    def encode(self, batch: Any, keys: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
        """A batch of data in that space.

        Args:
            batch: The data, a tree of arrays that lead with B.
            keys: One key a row, (B,): what is random of row i is drawn from keys[i].
            train: False leaves out the augmentation.

        Returns:
            x (B, *shape) float32, and the conditions of its rows by name, or None.
        """
        ...

    def decode(self, x: jax.Array, cond: Any = None) -> jax.Array:
        """Samples x (B, *shape) as data: uint8 images, or float32 vectors."""
        ...
