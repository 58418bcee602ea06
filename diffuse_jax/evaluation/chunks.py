"""Many rows through one compiled function, a chunk at a time: constant memory, one compilation, all devices of all
processes at work."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from diffuse_jax._progress import progress_bar
from diffuse_jax.training.sharding import batch_sharding, replicated

__all__ = ["chunks", "everywhere", "joined", "map_chunks", "shard"]


def chunks(
    run: Callable[[np.ndarray], Any], n: int, batch_size: int, mesh: Mesh, *, first: int = 0, skip: int = 0
) -> Iterator[tuple[int, Any]]:
    """Rows a chunk at a time. While the caller works on one, the next is computed.

    Args:
        run: `run(index)` is given this process's share of the numbers of a chunk's rows, always as long, and gives a
            tree of arrays that hold the rows of the whole chunk. The last chunk repeats the last row and is cut.
        n: The number of rows.
        batch_size: The rows of a chunk, or n where that is less, rounded up to a multiple of the devices.
        mesh: The devices.
        first: The number of the first row.
        skip: Chunks of which all rows are among the first `skip` are left out; the others are what they would be.

    Returns:
        An iterator over the chunks of rows first … first + n − 1, in every process, each as the number of its first row
            and a tree of NumPy arrays.
    """
    size, stop = -(-min(batch_size, n) // mesh.size) * mesh.size, first + n
    share = size // jax.process_count()
    own = slice(share * jax.process_index(), share * (jax.process_index() + 1))

    def begin(start: int) -> Any:
        return _gathered(mesh, run(np.minimum(np.arange(start, start + size), stop - 1)[own]))

    starts = range(first + skip // size * size, stop, size) if skip < n else range(0)
    under_way = begin(starts[0]) if starts else None
    for start in starts:
        done = jax.device_get(under_way)
        # Begun when the one before has ended: two at once would need the memory of two.
        under_way = begin(start + size) if start + size < stop else None
        yield start, jax.tree.map(lambda leaf, start=start: leaf[: stop - start], done)


def joined(parts: Iterable[tuple[int, Any]], n: int, *, progress: str | None = None) -> Any:
    """The rows of all chunks together.

    Args:
        parts: The chunks, as `chunks` gives them.
        n: The number of rows in all.
        progress: The name of a bar on stderr, of process 0; None draws none.

    Returns:
        One tree of NumPy arrays (n, …).
    """
    trees = []
    with progress_bar(total=n, desc=progress, disable=progress is None or jax.process_index() != 0) as bar:
        for _, tree in parts:
            trees.append(tree)
            bar.update(len(jax.tree.leaves(tree)[0]))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *trees)


def map_chunks(
    run: Callable[[np.ndarray], Any], n: int, batch_size: int, mesh: Mesh, *, progress: str | None = None
) -> Any:
    """The rows of a function, by way of `chunks`.

    Args:
        run: As for `chunks`.
        n: The number of rows.
        batch_size: The rows of a chunk, as for `chunks`.
        mesh: The devices.
        progress: The name of a bar on stderr, of process 0; None draws none.

    Returns:
        The rows 0 … n − 1 as one tree of NumPy arrays (n, …), in every process.
    """
    return joined(chunks(run, n, batch_size, mesh), n, progress=progress)


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


def _gathered(mesh: Mesh, tree: Any) -> Any:
    """A tree of which this process has every row."""
    return tree if jax.process_count() == 1 else jax.jit(_same, out_shardings=replicated(mesh))(tree)


def _same(tree: Any) -> Any:
    return tree
