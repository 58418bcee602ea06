"""Dropout's masks: the rate, and independence between elements, layers and steps."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffuse_jax.nets.dropout import dropout, dropout_seed, layer_seed

SHAPE = (64, 8, 8, 32)


def mask(seed: int, layer: str, rate: float = 0.5) -> np.ndarray:
    given = layer_seed(dropout_seed(jax.random.key(seed)), layer)
    return np.asarray(dropout(jnp.ones(SHAPE), rate, given)) > 0


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_an_element_is_dropped_at_the_rate_and_the_rest_keep_the_mean(rate):
    given = layer_seed(dropout_seed(jax.random.key(0)), "block")
    kept = np.asarray(dropout(jnp.full(SHAPE, 3.0), rate, given))
    n = kept.size
    assert abs((kept == 0).sum() - rate * n) < 4 * np.sqrt(n * rate * (1 - rate))
    np.testing.assert_allclose(kept[kept != 0], 3 / (1 - rate), rtol=1e-6)


def test_masks_of_elements_layers_and_keys_are_independent():
    masks = [mask(seed, layer).ravel() for seed, layer in itertools.product(range(3), ("down_0_block_0", "up"))]
    signs = np.stack(masks).astype(np.float64) * 2 - 1
    n = signs.shape[1]
    # Under independence each correlation of n signs has the deviation 1/√n; 4.5 of them over some 200 draws.
    between = signs @ signs.T / n
    assert np.abs(between - np.eye(len(masks))).max() < 4.5 / np.sqrt(n)
    for shift in (1, 2, 3, 32, 256, 2048, 2**14):
        assert np.abs((signs[:, shift:] * signs[:, :-shift]).mean(1)).max() < 4.5 / np.sqrt(n - shift)


def test_runs_of_equal_elements_have_the_lengths_of_coin_tosses():
    signs = mask(7, "middle").ravel()
    lengths = np.diff(np.flatnonzero(np.diff(signs.astype(np.int8))))
    expected = lengths.size * 0.5 ** np.arange(1, 9)
    found = np.bincount(lengths, minlength=9)[1:9]
    assert np.sum((found - expected) ** 2 / expected) < 26  # χ² with 8 degrees of freedom: one in a thousand


def test_without_a_seed_or_with_rate_0_nothing_is_dropped():
    x = jnp.arange(4.0)
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, dropout_seed(jax.random.key(0))) is x
