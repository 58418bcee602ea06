"""Codecs: between data, as they are stored and shown, and the space in which a process runs."""

from diffuse_jax.codecs.pixels import Pixels, of_dataset
from diffuse_jax.codecs.protocol import Codec

__all__ = ["Codec", "Pixels", "of_dataset"]
