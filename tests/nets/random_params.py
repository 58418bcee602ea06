"""Parameters of order one for a network, so that no branch is hidden by an initialisation near zero."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffuse_jax.nets import LinenNet


def random_params(net: LinenNet, shape: tuple[int, ...], seed: int = 0) -> Any:
    """Kernels of variance 1 / fan in, everything else N(0, 0.3²) about its usual centre; made from shapes alone, so
    that nothing compiles.
    """
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        value = rng.normal(size=leaf.shape)
        if path[-1].key == "kernel":
            return jnp.asarray(value / np.sqrt(np.prod(leaf.shape[:-1])), leaf.dtype)
        return jnp.asarray(0.3 * value + (path[-1].key == "scale"), leaf.dtype)

    return jax.tree.map_with_path(draw, jax.eval_shape(lambda key: net.init(key, shape), jax.random.key(0)))
