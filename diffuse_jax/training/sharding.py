"""Data parallelism in one mesh axis: the global batch is split over 'data', the training state is replicated.

The same code serves one CPU, many devices and many processes: XLA inserts the all-reduce of the gradient.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffuse_jax.training.state import TrainState
from diffuse_jax.training.step import Metrics, StepFn, scan_steps

__all__ = ["batch_sharding", "check_batch", "compile_step", "global_batch", "make_mesh", "replicated"]


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis, 'data', over `devices` (default: all devices of all processes)."""
    devices = jax.devices() if devices is None else devices
    # Auto: under the Explicit default an index such as table[t] with a sharded t is refused inside jit.
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array. Make a state with `jax.jit(create, out_shardings=replicated(mesh))`."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, scanned: bool = False) -> NamedSharding:
    """The batch axis is split over the devices: axis 0, or axis 1 where axis 0 counts the scanned steps."""
    return NamedSharding(mesh, PartitionSpec(None, "data") if scanned else PartitionSpec("data"))


def global_batch(mesh: Mesh, batch: Any, scanned: bool = False) -> Any:
    """The global arrays of which the NumPy tree `batch` is this process's contiguous share of the rows.

    ValueError where the rows of all processes together do not split evenly over the mesh.
    """
    rows = np.shape(jax.tree.leaves(batch)[0])[1 if scanned else 0]
    check_batch(rows * jax.process_count(), mesh.size)
    sharding = batch_sharding(mesh, scanned)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch)


def check_batch(batch_size: int, device_count: int, accumulate: int = 1) -> None:
    """ValueError unless a global batch of `batch_size` rows splits evenly over `device_count` devices, and their shares
    into `accumulate` parts."""
    pieces = device_count * accumulate
    if batch_size < 1 or batch_size % pieces:
        below = batch_size - batch_size % pieces
        would_do = " or ".join(str(n) for n in (below, below + pieces) if n > 0)
        parts = f" in {accumulate} parts" if accumulate > 1 else ""
        raise ValueError(
            f"batch_size = {batch_size} does not split evenly over {device_count} devices{parts}; {would_do} would do"
        )


def compile_step(step_fn: StepFn, mesh: Mesh) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """`step_fn` over the mesh, K ≥ 1 steps a call (see `scan_steps`): (state, batches) -> (state, metrics).

    Every leaf of `batches` is (K, B, …), as `global_batch(…, scanned=True)` makes it, and the metrics are (K,). The
    given state is donated, gone after the call; the new one is replicated."""
    state, batches = replicated(mesh), batch_sharding(mesh, scanned=True)
    return jax.jit(
        partial(scan_steps, step_fn), donate_argnums=0, in_shardings=(state, batches), out_shardings=(state, state)
    )
