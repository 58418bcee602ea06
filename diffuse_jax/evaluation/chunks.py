"""Many rows through one compiled function, a chunk at a time: constant memory, one compilation, all devices of all
processes at work."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from diffuse_jax._progress import progress_bar
from diffuse_jax.training.sharding import batch_sharding, replicated

__all__ = ["everywhere", "map_chunks", "shard"]


def map_chunks(
    run: Callable[[np.ndarray], Any], n: int, batch_size: int, mesh: Mesh, *, progress: str | None = None
) -> Any:
    """The rows 0 … n − 1 of `run`, as a tree of NumPy arrays (n, …), in every process.

    A chunk has `batch_size` rows, or n where that is less, rounded up to a multiple of the devices. `run(index)` is
    given this process's share of a chunk, always as long, and gives a tree of arrays that hold the rows of the whole
    chunk. The last chunk repeats row n − 1 and is cut. `progress` names a bar on stderr, of process 0.
    """
    size = -(-min(batch_size, n) // mesh.size) * mesh.size
    share = size // jax.process_count()
    own = slice(share * jax.process_index(), share * (jax.process_index() + 1))
    parts = []
    with progress_bar(total=n, desc=progress, disable=progress is None or jax.process_index() != 0) as bar:
        for first in range(0, n, size):
            out = _fetch(mesh, run(np.minimum(np.arange(first, first + size), n - 1)[own]))
            parts.append(jax.tree.map(lambda leaf, first=first: leaf[: n - first], out))
            bar.update(min(size, n - first))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def shard(mesh: Mesh, tree: Any) -> Any:
    """Arrays split over all devices by their leading axis, of which the rows of `tree` are this process's share."""
    if jax.process_count() == 1:
        return jax.device_put(tree, batch_sharding(mesh))
    return jax.tree.map(lambda leaf: _shard(batch_sharding(mesh), leaf), tree)


def everywhere(mesh: Mesh, tree: Any) -> Any:
    """A tree whole on every device, from one on this process's devices, which is the same in every process, or on the
    mesh."""
    if jax.process_count() == 1:
        return jax.device_put(tree, replicated(mesh))
    # A copy on this process's device goes by way of NumPy: it cannot be moved to devices of others.
    leaves = jax.tree.map(lambda x: np.asarray(x) if getattr(x, "is_fully_addressable", True) else x, tree)
    return jax.jit(_same, out_shardings=replicated(mesh))(leaves)


def _shard(sharding: NamedSharding, leaf: Any) -> jax.Array:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _shard(sharding, jax.random.key_data(leaf))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))


def _fetch(mesh: Mesh, tree: Any) -> Any:
    if jax.process_count() > 1:
        tree = jax.jit(_same, out_shardings=replicated(mesh))(tree)
    return jax.device_get(tree)


def _same(tree: Any) -> Any:
    return tree
