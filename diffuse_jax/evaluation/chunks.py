"""Many rows through one compiled function, a chunk at a time: constant memory, one compilation, all devices at work."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from diffuse_jax._progress import progress_bar
from diffuse_jax.training.sharding import batch_sharding

__all__ = ["map_chunks", "shard"]


def map_chunks(
    run: Callable[[np.ndarray], Any], n: int, batch_size: int, mesh: Mesh, *, progress: str | None = None
) -> Any:
    """The rows 0 … n − 1 of `run`, as a tree of NumPy arrays (n, …).

    `run(index)` gives a tree of arrays whose leading axis is that of `index`, always as long: `batch_size`, or n where
    that is less, rounded up to a multiple of the devices. The last chunk repeats row n − 1 and is cut. `progress` names
    a bar on stderr.
    """
    size = -(-min(batch_size, n) // mesh.size) * mesh.size
    parts = []
    with progress_bar(total=n, desc=progress, disable=progress is None) as bar:
        for first in range(0, n, size):
            out = jax.device_get(run(np.minimum(np.arange(first, first + size), n - 1)))
            parts.append(jax.tree.map(lambda leaf, first=first: leaf[: n - first], out))
            bar.update(min(size, n - first))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def shard(mesh: Mesh, tree: Any) -> Any:
    """Arrays with a leading axis of rows, split over the devices."""
    return jax.device_put(tree, batch_sharding(mesh))
