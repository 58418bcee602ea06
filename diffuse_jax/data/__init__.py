"""Data: from what a user names to uint8 batches in a fixed order, and from those to the model's range."""

from diffuse_jax.data.batches import Batches, prefetch, stack
from diffuse_jax.data.builtin import EIGHT_GAUSSIANS, TOYS, GaussianMixture
from diffuse_jax.data.load import from_arrays, load_dataset
from diffuse_jax.data.preprocess import preprocess, preprocess_conditions, to_uint8
from diffuse_jax.data.sources import SPLIT_SEED, DataError, Dataset, Source
from diffuse_jax.data.tokens import VOCABULARY, detokenize, tokenize

__all__ = [
    "EIGHT_GAUSSIANS",
    "SPLIT_SEED",
    "TOYS",
    "VOCABULARY",
    "Batches",
    "DataError",
    "Dataset",
    "GaussianMixture",
    "Source",
    "detokenize",
    "from_arrays",
    "load_dataset",
    "prefetch",
    "preprocess",
    "preprocess_conditions",
    "stack",
    "to_uint8",
    "tokenize",
]
