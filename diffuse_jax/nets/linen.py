"""The bridge from a Flax Linen module to what the rest of the library calls: a pure function of its parameters."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class LinenNet:
    """A Linen module `module(x, c_noise, cond=None, *, train)` as a function of (params, x, c_noise).

    It holds no arrays. Two of them are equal, and hash alike, when their modules have the same type and fields: as a
    static argument or field of a jitted function, a rebuilt one does not recompile.
    """

    module: nn.Module

    def __call__(
        self,
        params: Any,
        x: jax.Array,
        c_noise: jax.Array | float | None = None,
        *,
        cond: Any = None,
        rng: jax.Array | None = None,
        **more: Any,
    ) -> jax.Array:
        """x (batch, …), c_noise a scalar or (batch,), or None for a module that reads none: what the module gives, an
        array like x if it is to denoise.

        With `rng` the module is in training mode and draws its dropout from it. `cond` reaches the module only where it
        is given, so that a module without conditions need not name it; so do other keywords, such as `augment`.
        """
        told = () if c_noise is None else (jnp.broadcast_to(jnp.asarray(c_noise), x.shape[:1]),)
        extra = more if cond is None else {"cond": cond, **more}
        rngs = None if rng is None else {"dropout": rng}
        y = self.module.apply({"params": params}, x, *told, train=rng is not None, rngs=rngs, **extra)
        return cast(jax.Array, y)

    def init(self, key: jax.Array, shape: tuple[int, ...], cond: Mapping[str, Any] | None = None) -> Any:
        """Fresh parameters. Runs under jax.jit and jax.eval_shape.

        Args:
            key: A key.
            shape: That of one sample, without the batch axis.
            cond: Arrays of a batch of one by the conditions' names, or their shapes and types
                (`jax.ShapeDtypeStruct`), for a module that makes parameters for the conditions that it is given; their
                values are not read. Networks of this package make them by their fields and need none.

        Returns:
            The tree of parameters.

        Raises:
            ValueError: Where the module keeps variables besides "params", such as running averages: a network here has
                no state.
        """
        return self.init_with_output(key, shape, cond)[1]

    def init_with_output(
        self, key: jax.Array, shape: tuple[int, ...], cond: Mapping[str, Any] | None = None
    ) -> tuple[jax.Array, Any]:
        """`init`, and what a batch of one sample of zeros becomes.

        Args:
            key: A key.
            shape: That of one sample, without the batch axis.
            cond: As for `init`.

        Returns:
            The module's output, and the tree of parameters.

        Raises:
            ValueError: As `init`.
        """
        extra: dict[str, Any] = {}
        if cond is not None:
            extra["cond"] = {name: jnp.zeros(a.shape, a.dtype) for name, a in cond.items()}
        x, c_noise = jnp.zeros((1, *shape)), jnp.ones((1,))
        output, variables = self.module.init_with_output(key, x, c_noise, train=False, **extra)
        others = sorted(set(variables) - {"params"})
        if others:
            raise ValueError(
                f"module must keep its variables in 'params' alone; got also {others}: use layers without state"
            )
        return output, variables.get("params", {})


def param_count(params: Any) -> int:
    """The number of scalars in a tree of arrays or of their shapes (such as jax.eval_shape gives)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
