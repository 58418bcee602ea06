"""Pixels, or vectors, as they are: bytes become numbers of the model's range, and back."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffuse_jax.data.preprocess import CENTERED, UNIT, preprocess, preprocess_conditions, to_uint8
from diffuse_jax.data.sources import Dataset
from diffuse_jax.likelihood import nats_to_bits_per_dim
from diffuse_jax.trees import pytree, static

__all__ = ["Pixels", "of_dataset"]


@pytree
class Pixels:
    """The codec of images as uint8 NHWC, in [−1, 1] or [0, 1], and of float vectors, which become float32.

    Args:
        shape: The shape of one row.
        levels: The grey levels of images; None where the data are continuous.
        centered: Whether images lie in [−1, 1], else in [0, 1].
        flip: Mirror half of the images in training, left to right.
        dequantize: Spread each grey level uniformly over its cell in training.
    """

    shape: tuple[int, ...] = static()
    levels: int | None = static(default=None)
    centered: bool = static(default=True)
    flip: bool = static(default=False)
    dequantize: bool = static(default=False)

    @property
    def range(self) -> tuple[float, float]:
        """The least and the greatest value of an image."""
        return CENTERED if self.centered else UNIT

    def encode(
        self, batch: Mapping[str, jax.Array], keys: jax.Array, *, train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array] | None]:
        """A batch in the model's range (see `Codec`).

        Args:
            batch: {"x": …, conditions by name}.
            keys: One key a row, (B,), from which its augmentation is drawn.
            train: Whether rows are mirrored and dequantized, as the fields say.

        Returns:
            x (B, *shape) float32, and the conditions of its rows by name, or None.
        """
        spread = {"flip": train and self.flip, "dequantize": train and self.dequantize}
        x = preprocess(batch["x"], keys, levels=self.levels, centered=self.centered, **spread)
        return x, preprocess_conditions(batch, keys, centered=self.centered, flip=spread["flip"])

    def bits_per_dim(self, log_prob: jax.Array) -> jax.Array:
        """Nats of rows (…,) in the codec's range, dequantized where they have grey levels, as bits per dimension."""
        dims = math.prod(self.shape)
        return nats_to_bits_per_dim(log_prob, dims, levels=self.levels, range=self.range)

    def decode(self, x: jax.Array, cond: Any = None) -> jax.Array:
        """uint8 images, each value the nearest of 256, or float32 vectors."""
        return to_uint8(x, centered=self.centered) if len(self.shape) == 3 else x.astype(jnp.float32)


def of_dataset(dataset: Dataset, **options: Any) -> Pixels:
    """The pixels of a data set, with the options of `Pixels`."""
    return Pixels(dataset.shape, dataset.levels, **options)
