"""Conditions by name: their nulls, dropping by rows, and what is bound together with what is given."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffuse_jax import Conditioned, oracles, sample_keys
from diffuse_jax.conditions import Condition, drop_conditions, merge_conditions
from diffuse_jax.sde import VP

KNOWN = {"label": Condition((), 10), "image": Condition((2, 2, 1), 256), "tokens": Condition((3,), 257)}
NULLS = {"label": 10, "image": 0, "tokens": 0}
ROWS = 4000
COND = {
    "label": jnp.arange(ROWS) % 10,
    "image": jnp.full((ROWS, 2, 2, 1), 0.5),
    "tokens": jnp.ones((ROWS, 3), jnp.int32),
}


@pytest.mark.parametrize("probability", [0.0, 0.1, 1.0])
def test_rows_lose_all_their_conditions_together_with_that_probability(probability):
    dropped = drop_conditions(sample_keys(0, ROWS), COND, probability, KNOWN)
    lost = {name: np.asarray((dropped[name] == null).reshape(ROWS, -1).all(axis=1)) for name, null in NULLS.items()}
    assert all((rows == lost["label"]).all() for rows in lost.values())
    spread = np.sqrt(probability * (1 - probability) / ROWS)
    assert lost["label"].mean() == pytest.approx(probability, abs=4 * spread)
    for name, value in COND.items():
        np.testing.assert_array_equal(dropped[name][~lost["label"]], value[~lost["label"]])
        assert dropped[name].dtype == value.dtype


def test_what_a_row_loses_depends_on_its_key_alone():
    keys = sample_keys(0, ROWS)
    whole = drop_conditions(keys, COND, 0.3, KNOWN)
    part = drop_conditions(keys[7:20], {name: value[7:20] for name, value in COND.items()}, 0.3, KNOWN)
    assert all(np.array_equal(part[name], whole[name][7:20]) for name in COND)


def test_bound_and_given_conditions_are_merged_and_the_given_win():
    seen = []

    class Spy:
        sde = VP()

        def __call__(self, x, t, cond=None):
            seen.append(cond)
            return oracles.Gaussian(self.sde, jnp.zeros(2), jnp.eye(2))(x, t)

    bound = Conditioned(Spy(), {"label": 1, "image": 2})
    x = jnp.zeros((1, 2))
    for given in (None, {"tokens": 3}, {"label": 4}, 5):
        bound(x, 0.5, given)
    assert seen == [
        {"label": 1, "image": 2},
        {"label": 1, "image": 2, "tokens": 3},
        {"label": 4, "image": 2},
        5,  # what a denoiser of one's own reads, whole
    ]
    assert merge_conditions(None, {"label": 1}) == {"label": 1} and merge_conditions(7, None) == 7
