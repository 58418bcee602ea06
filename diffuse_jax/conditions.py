"""Conditions: what a sample is asked to be, as a mapping from name to array, every array leading with the batch.

    name      one row                                     null: what says "not asked for"
    label     an integer 0 … values − 1                   values, one past the last
    image     (h, w, c) in the model's range              0 everywhere
    tokens    (length,) integers 0 … values − 1           0 everywhere, which is padding

A network reads by name what it knows of, and takes a condition that is not given as its null. Dropping conditions in
training, a row at a time, makes one network of the conditional and the unconditional one, for classifier-free guidance
(Ho & Salimans, 2207.12598, algorithm 1).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffuse_jax.sde import expand

__all__ = ["Condition", "drop_conditions", "merge_conditions", "null_like", "null_row"]


class Condition(NamedTuple):
    """What is known of a condition of a data set.

    Args:
        shape: The shape of one row: () for a label, (h, w, c) for an image, (length,) for tokens.
        values: How many values an entry can take: classes, grey levels of the stored image, or words of a vocabulary.
    """

    shape: tuple[int, ...]
    values: int


def null_like(name: str, value: jax.Array, condition: Condition) -> jax.Array:
    """The null of a condition.

    Args:
        name: The name of the condition.
        value: An array (batch, …) of it.
        condition: What is known of it.

    Returns:
        An array of the shape and type of `value`.
    """
    return jnp.full_like(value, condition.values if name == "label" else 0)


def null_row(conditions: Mapping[str, Condition]) -> dict[str, jax.Array]:
    """The nulls of conditions for a batch of one row, by name: what a network's parameters are made for."""
    empty = {
        name: jnp.zeros((1, *known.shape), jnp.float32 if name == "image" else jnp.int32)
        for name, known in conditions.items()
    }
    return {name: null_like(name, value, conditions[name]) for name, value in empty.items()}


def drop_conditions(
    keys: jax.Array, cond: Mapping[str, jax.Array], probability: float, conditions: Mapping[str, Condition]
) -> dict[str, jax.Array]:
    """`cond` with, in each row with this `probability`, every condition replaced by its null.

    Args:
        keys: One key a row, (batch,).
        cond: The conditions of the rows.
        probability: That with which a row loses its conditions, all of them together.
        conditions: What is known of each by name.

    Returns:
        Conditions of the same shapes and types.
    """
    dropped = jax.vmap(lambda key: jax.random.bernoulli(key, probability))(keys)
    return {
        name: jnp.where(expand(dropped, value), null_like(name, value, conditions[name]), value)
        for name, value in cond.items()
    }


def merge_conditions(bound: Any, given: Any) -> Any:
    """Conditions that are bound together with those given at a call, which win where both name one. What is no mapping,
    as a denoiser of one's own may read, is taken as a whole."""
    if isinstance(bound, Mapping) and isinstance(given, Mapping):
        return {**bound, **given}
    return bound if given is None else given
