"""Entry points that compile themselves, so that a plain call in a notebook is traced once and not at every call."""

import functools
import numbers
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np

__all__ = ["compiled"]

P = ParamSpec("P")
R = TypeVar("R")


def compiled(*static: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: `jax.jit` with those arguments static, which must be given by name.

    What cannot be an argument of a compiled function, a denoiser that is no pytree of arrays or a static argument that
    cannot be hashed, is traced at every call, as a plain function is.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        jitted = jax.jit(function, static_argnames=static)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            traced = {name: value for name, value in kwargs.items() if name not in static}
            fits = _all_arrays((args, traced)) and _hashable([kwargs[name] for name in static if name in kwargs])
            return (jitted if fits else function)(*args, **kwargs)

        return call

    return decorate


def _all_arrays(tree: Any) -> bool:
    return all(isinstance(leaf, (jax.Array, np.ndarray, np.generic, numbers.Number)) for leaf in jax.tree.leaves(tree))


def _hashable(values: Sequence[Any]) -> bool:
    try:
        return isinstance(hash(tuple(values)), int)
    except TypeError:
        return False
