"""Captions as bytes: every text comes back, and what is no text is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffuse_jax.data import VOCABULARY, detokenize, tokenize


@given(st.text(st.characters(exclude_categories=())), st.integers(0, 9))
def test_every_text_comes_back_from_its_tokens_whatever_the_padding(text, padding):
    length = len(text.encode("utf-8", "surrogatepass"))
    tokens = tokenize(text, length + padding)
    assert (tokens.dtype, tokens.shape) == (np.int32, (length + padding,))
    assert ((tokens[:length] > 0) & (tokens[:length] < VOCABULARY)).all() and not tokens[length:].any()
    assert detokenize(tokens) == text


def test_tokens_are_the_bytes_of_utf_8_and_one():
    assert tokenize("aé\0", 6).tolist() == [98, 0xC3 + 1, 0xA9 + 1, 1, 0, 0]


def test_a_text_that_is_too_long_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match="5 bytes does not fit into length=4"):
        tokenize("café", 4)


@pytest.mark.parametrize("tokens", [[257], [-1], [1.0], [[1]], [256]], ids=str)
def test_integers_that_no_text_has_are_refused(tokens):
    with pytest.raises(ValueError, match=r"0 … 256|can't decode"):
        detokenize(tokens)
