"""The training step, and any function of a batch of keys, under `jax.pmap`, for those who ask for it by name.

`compile_step` does the same by `jit` over a mesh and needs no replicated copy of the state; today's `jax.pmap` is a
wrapper of that.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from diffuse_jax.training.sharding import check_batch
from diffuse_jax.training.state import TrainState
from diffuse_jax.training.step import Metrics, StepFn

__all__ = ["pmap_batched", "pmap_step", "replicate", "unreplicate"]


def replicate(tree: Any, devices: Sequence[jax.Device] | None = None) -> Any:
    """A copy of every leaf for each device (default: this process's), under a new leading axis."""
    devices = jax.local_devices() if devices is None else devices
    return jax.pmap(lambda _, x: x, in_axes=(0, None), devices=devices)(jnp.arange(len(devices)), tree)


def unreplicate(tree: Any) -> Any:
    """The first device's copy of a tree that `replicate` made, on that device.

    Indexing would be a program of all devices for each leaf; on fake CPU devices many of them behind a step that is
    still running end in a deadlock.
    """
    return jax.tree.map(lambda x: jnp.squeeze(x.addressable_data(0), 0), tree)


def pmap_step(
    step_fn: StepFn, axis_name: str = "batch", devices: Sequence[jax.Device] | None = None
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """A training step over this process's devices.

    Args:
        step_fn: A `train_step` given the same `axis_name`.
        axis_name: The name of the axis of devices.
        devices: The devices; None is all of this process's.

    Returns:
        A function (state, batch) -> (state, metrics). The state goes in as `replicate` makes it, is donated, and comes
            back replicated; the batch is (B, …) and is split over the devices, with a ValueError where B does not split
            evenly; the metrics are scalars.
    """
    devices = jax.local_devices() if devices is None else devices
    run = jax.pmap(step_fn, axis_name, devices=devices, donate_argnums=0)

    def call(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        state, metrics = run(state, _split(batch, len(devices)))
        return state, unreplicate(metrics)

    return call


def pmap_batched(fn: Callable[..., Any], devices: Sequence[jax.Device] | None = None) -> Callable[..., Any]:
    """`fn(keys, *args)`, such as a sampler, over this process's devices: each has its share of the rows of `keys`.

    `args` go whole to every device, and every leaf that `fn` returns must have the rows as its leading axis.
    ValueError where the rows do not split evenly.
    """
    devices = jax.local_devices() if devices is None else devices
    run = jax.pmap(lambda keys, args: fn(keys, *args), in_axes=(0, None), devices=devices)

    def call(keys: jax.Array, *args: Any) -> Any:
        parts = run(_split(keys, len(devices)), args)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), parts)

    return call


def _split(tree: Any, count: int) -> Any:
    check_batch(jax.tree.leaves(tree)[0].shape[0], count)
    return jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), tree)
