"""Where arrays lie on a mesh of two axes, 'data' and 'fsdp', by rules that look at shapes alone.

    batch              its rows over both axes: every device has its share
    training state     on every device whole; with fsdp > 1, each array of at least 2048 elements is split over 'fsdp'
                       along its longest axis that divides (the last of equals), and 'data' counts the copies
    parameters in use  gathered by `gathered`, whose gradients go back to the split ones summed over all devices

The same code serves one CPU, many devices and many processes: XLA inserts what is sent. Devices of one process are
neighbours on the mesh: process p holds the p-th part of the batch's rows, and a group of 'fsdp' lies within a process
wherever its size divides the number of the process's devices.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffuse_jax.training.method import Draws, Loss, LossOutput, Update
from diffuse_jax.training.state import TrainState
from diffuse_jax.training.step import Metrics, StepFn, scan_steps

__all__ = [
    "batch_sharding",
    "check_batch",
    "compile_step",
    "gathered",
    "global_batch",
    "make_mesh",
    "make_state",
    "replicated",
    "split_over",
    "state_sharding",
]

# Smaller arrays (biases, norms, scalars) are a thousandth of a state and most of its arrays: to send each would cost
# more time than to keep it costs memory.
_SMALLEST = 2048


def make_mesh(devices: Sequence[jax.Device] | None = None, fsdp: int = 1) -> Mesh:
    """A mesh ('data', 'fsdp') of len(devices)/fsdp × fsdp over `devices` (default: all devices of all processes), in
    the order of their processes. ValueError where `fsdp` does not divide their number, or the processes have different
    numbers of them."""
    ordered = sorted(jax.devices() if devices is None else devices, key=lambda device: device.process_index)
    processes = [device.process_index for device in ordered]
    counts = {process: processes.count(process) for process in processes}
    if len(set(counts.values())) > 1:
        raise ValueError(f"the processes have different numbers of devices, {counts}: give each as many")
    if fsdp < 1 or len(ordered) % fsdp:
        would_do = ", ".join(str(n) for n in range(1, len(ordered) + 1) if len(ordered) % n == 0)
        raise ValueError(f"fsdp = {fsdp} does not divide the {len(ordered)} devices; {would_do} would do")
    # Auto: under the Explicit default an index such as table[t] with a sharded t is refused inside jit.
    return Mesh(np.asarray(ordered).reshape(-1, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, scanned: bool = False) -> NamedSharding:
    """The batch axis is split over all devices: axis 0, or axis 1 where axis 0 counts the scanned steps."""
    rows = ("data", "fsdp")
    return NamedSharding(mesh, PartitionSpec(None, rows) if scanned else PartitionSpec(rows))


def split_over(shape: Sequence[int], parts: int) -> PartitionSpec:
    """How an array of the training state is split over the `parts` devices of a group of 'fsdp': along its longest axis
    that `parts` divides, the last of equals; not at all below 2048 elements, or where there is no such axis."""
    fitting = [(length, axis) for axis, length in enumerate(shape) if length % parts == 0]
    if parts == 1 or math.prod(shape) < _SMALLEST or not fitting:
        return PartitionSpec()
    return PartitionSpec(*[None] * max(fitting)[1], "fsdp")


def state_sharding(mesh: Mesh, state: Any) -> Any:
    """Where each array of a state (or of its shapes) lies, as a tree like it."""
    parts = mesh.shape["fsdp"]
    return jax.tree.map(lambda leaf: NamedSharding(mesh, split_over(leaf.shape, parts)), state)


def make_state(create: Callable[[], TrainState], mesh: Mesh) -> TrainState:
    """create(), compiled, every array being made where `state_sharding` says it lies."""
    # Hundreds of small random kernels that run once: on a CPU, optimizing them takes longer than running them.
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
    return jax.jit(create, out_shardings=state_sharding(mesh, jax.eval_shape(create)), compiler_options=quick)()


def gathered(updates: Sequence[Update], mesh: Mesh) -> tuple[Update, ...]:
    """`updates` of a state that lies as `state_sharding` says: parameters and extra are gathered before a loss is
    computed, and its gradient is split as they are. Without it XLA may as well split the computation of a layer, and
    send activations. Where 'fsdp' has size 1, `updates` themselves."""
    if mesh.shape["fsdp"] == 1:
        return tuple(updates)
    return tuple(dataclasses.replace(update, loss=_of_gathered(update.loss, mesh)) for update in updates)


def _of_gathered(loss: Loss, mesh: Mesh) -> Loss:
    def whole(tree: Any) -> Any:
        return jax.lax.with_sharding_constraint(tree, replicated(mesh))

    gather = jax.custom_vjp(whole)

    def split(_: None, gradient: Any) -> tuple[Any]:
        return (jax.lax.with_sharding_constraint(gradient, state_sharding(mesh, gradient)),)

    gather.defvjp(lambda params: (whole(params), None), split)

    def of_gathered(params: Any, extra: Any, batch: Any, draws: Draws) -> LossOutput:
        return loss(gather(params), whole(extra), batch, draws)

    return of_gathered


def global_batch(mesh: Mesh, batch: Any, scanned: bool = False) -> Any:
    """The global arrays of a batch of which each process has a share.

    Args:
        mesh: The devices, of `make_mesh`.
        batch: This process's contiguous share of the rows, a tree of NumPy arrays (rows, …), or (K, rows, …) if
            `scanned`.
        scanned: Axis 0 counts steps, and the rows are axis 1.

    Returns:
        The same tree of global arrays, which lie as `batch_sharding` says.

    Raises:
        ValueError: Where the rows of all processes together do not split evenly over the mesh.
    """
    rows = np.shape(jax.tree.leaves(batch)[0])[1 if scanned else 0]
    check_batch(rows * jax.process_count(), mesh.size)
    sharding = batch_sharding(mesh, scanned)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch)


def check_batch(batch_size: int, device_count: int, accumulate: int = 1) -> None:
    """Checks that a global batch splits evenly over the devices, and their shares into parts.

    Args:
        batch_size: The rows of the global batch.
        device_count: The number of devices.
        accumulate: The parts of each device's share that a step goes through one after the other.

    Raises:
        ValueError: Where it does not split evenly, naming sizes that do.
    """
    if accumulate < 1:
        raise ValueError(f"accumulate = {accumulate} must be at least 1")
    pieces = device_count * accumulate
    if batch_size < 1 or batch_size % pieces:
        below = batch_size - batch_size % pieces
        would_do = " or ".join(str(n) for n in (below, below + pieces) if n > 0)
        parts = f" in {accumulate} parts" if accumulate > 1 else ""
        raise ValueError(
            f"batch_size = {batch_size} does not split evenly over {device_count} devices{parts}; {would_do} would do"
        )


def compile_step(
    step_fn: StepFn, mesh: Mesh, sharding: Any = None
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """Compiles a step over the mesh, for K ≥ 1 steps a call (see `scan_steps`).

    Args:
        step_fn: `step_fn(state, batch) -> (state, metrics)`, one pure update.
        mesh: The devices, of `make_mesh`.
        sharding: How the state lies before and after a call, of `state_sharding`; None: replicated.

    Returns:
        A compiled function (state, batches) -> (state, metrics). Every leaf of `batches` is (K, B, …), as
            `global_batch(…, scanned=True)` makes it, and the metrics are (K,). The state that it is given is donated,
            gone after the call.
    """
    whole = replicated(mesh)
    state = whole if sharding is None else sharding
    return jax.jit(
        partial(scan_steps, step_fn),
        donate_argnums=0,
        in_shardings=(state, batch_sharding(mesh, scanned=True)),
        out_shardings=(state, whole),
    )
