"""The order of rows against grain's, whose shuffle it computes a block at a time."""

import grain
import numpy as np
import pytest

from diffuse_jax.data.order import Order


@pytest.mark.parametrize("n", [1, 3, 10, 1617, 16_385, 65_535, 65_536, 65_538, 70_000, 1_281_167, 300_000_000])
@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**40])
def test_the_order_is_that_of_grain(n, seed):
    order, reference = Order(n, seed), grain.MapDataset.range(n).seed(seed).shuffle().repeat()
    for first in (0, max(0, 2**16 - 3), max(0, n - 4), 3 * 10**9):
        places = range(first, first + 8)
        np.testing.assert_array_equal(order.rows(places.start, places.stop), [reference[i] for i in places])


@pytest.mark.parametrize("n", [1, 5, 1617, 65_536, 65_537, 131_073, 262_145])
def test_every_epoch_is_a_permutation_unlike_the_others(n):
    epochs = Order(n, seed=3).rows(0, 3 * n).reshape(3, n)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(n), (3, 1)))
    assert n < 5 or all((epochs[i] != epochs[i - 1]).any() for i in range(3))


@pytest.mark.parametrize("n", [20_000, 100_000])
def test_a_part_of_the_order_is_the_same_wherever_it_begins(n):
    whole = Order(n, seed=1).rows(0, 210_000)
    for first, stop in ((0, 0), (65_530, 65_540), (99_990, 170_000), (131_071, 131_073)):
        np.testing.assert_array_equal(Order(n, seed=1).rows(first, stop), whole[first:stop])


def test_no_place_prefers_a_row():
    """χ² of the rows at each place, over 300 epochs of 10 rows: 9² degrees of freedom, and cells of variance
    300·0.1·0.9, so 90 ± 14."""
    epochs = Order(10, seed=0).rows(0, 3000).reshape(-1, 10)
    counts = np.stack([np.bincount(column, minlength=10) for column in epochs.T])
    assert 48 < np.square(counts - 30).sum() / 30 < 132
