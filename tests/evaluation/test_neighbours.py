"""Nearest neighbours against scipy's, and the share of copies."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from diffuse_jax.evaluation import fraction_nearer, nearest_distances

RNG = np.random.default_rng(0)


def test_distances_are_those_of_all_pairs_whatever_the_chunk():
    a, b = RNG.normal(size=(37, 2, 3)), RNG.normal(size=(53, 2, 3))
    expected = cdist(a.reshape(37, 6), b.reshape(53, 6)).min(axis=1)
    for chunk in (1, 10, 100):
        np.testing.assert_allclose(nearest_distances(a, b, chunk=chunk), expected, rtol=1e-13)


def test_a_row_is_not_its_own_neighbour_but_its_copy_is_at_zero():
    a = RNG.integers(0, 256, (30, 64), np.uint8)
    pairs = cdist(a, a) + np.diag(np.full(30, np.inf))
    np.testing.assert_allclose(nearest_distances(a, a, chunk=7), pairs.min(axis=1), rtol=1e-13)
    np.testing.assert_array_equal(nearest_distances(a.copy(), a), 0)


def test_copies_are_counted_and_fresh_rows_are_about_one_in_a_hundred():
    real, fresh = RNG.normal(size=(1000, 3)), RNG.normal(size=(1000, 3))
    assert fraction_nearer(real.copy(), real) == 1
    mixed = np.concatenate([real[:300] + 1e-6, 10 + fresh[:700]])
    assert fraction_nearer(mixed, real) == pytest.approx(0.3)
    # Both the threshold and the count scatter by about √10 of 10 rows.
    assert fraction_nearer(fresh, real) < 0.03


def test_rows_of_different_sizes_and_a_lone_row_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\) and b \(2, 4\)"):
        nearest_distances(np.zeros((2, 3)), np.zeros((2, 4)))
    lone = np.zeros((1, 3))
    with pytest.raises(ValueError, match="at least 2"):
        nearest_distances(lone, lone)
