"""Captions as integers, without a vocabulary file: the bytes of their UTF-8 encoding.

Token k = 1 … 256 is the byte k − 1, and 0 is padding. Bytes write every language and symbol, are the same everywhere
and need nothing beside the program; a letter of English takes one token, most other letters two or three. The integers
of any other tokenizer can be given instead, as the array `tokens` of a `.npz` file or of `from_arrays`.
"""

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["VOCABULARY", "count_tokens", "detokenize", "tokenize"]

#: The number of values that a token can take: 256 bytes and padding.
VOCABULARY = 257

# Half of a surrogate pair, which JSON can hold and UTF-8 cannot, is written as if it were a character.
_LONE = "surrogatepass"


def count_tokens(text: str) -> int:
    """How many tokens a text takes before padding."""
    return len(text.encode("utf-8", _LONE))


def tokenize(text: str, length: int) -> np.ndarray:
    """The text as (length,) int32 in 0 … 256, padded with 0 at its end.

    Raises ValueError where it takes more than `length` tokens.
    """
    encoded = text.encode("utf-8", _LONE)
    if len(encoded) > length:
        raise ValueError(f"a text of {len(encoded)} bytes does not fit into length={length}: {text[:40]!r} …")
    tokens = np.zeros(length, np.int32)
    tokens[: len(encoded)] = np.frombuffer(encoded, np.uint8).astype(np.int32) + 1
    return tokens


def detokenize(tokens: ArrayLike) -> str:
    """The text of which `tokens` (length,) were made by `tokenize`; padding is passed over.

    Raises ValueError for other integers than 0 … 256, and for bytes that are no UTF-8.
    """
    values = np.asarray(tokens)
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer) or ((values < 0) | (values > 256)).any():
        raise ValueError(f"tokens are {values.dtype} {values.shape}: give integers 0 … 256 of shape (length,)")
    return (values[values > 0] - 1).astype(np.uint8).tobytes().decode("utf-8", _LONE)
