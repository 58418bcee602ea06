"""One update of the parameters as a pure function, and K of them in one call.

Every random number is a function of (key, step, row of the global batch), so that neither the number of devices nor an
interruption changes a run:

    row_key[i] = fold_in(fold_in(key, step), i)          for row i of the global batch
    rng        = fold_in(fold_in(key, step), 2³² − 1)    for dropout
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffuse_jax._pytree import pytree, static
from diffuse_jax.training.state import TrainState

__all__ = ["Loss", "Metrics", "Rows", "StepFn", "scan_steps", "step_randomness", "train_step"]

Metrics = dict[str, jax.Array]
StepFn = Callable[[TrainState, Any], tuple[TrainState, Metrics]]

# `split` would not do: its keys are those of fold_in(key, 0), fold_in(key, 1), …, which belong to the rows.
_DROPOUT = np.uint32(2**32 - 1)


@pytree
class Rows:
    """Which rows of the global batch a loss sees: `keys` (B,), one typed key a row; `index` (B,) int32, their positions
    in the global batch; and its size `total`, a Python int. B = total, except under `jax.pmap`, where a device sees its
    share.
    """

    keys: jax.Array
    index: jax.Array
    total: int = static()


Loss = Callable[[Any, Any, Rows, jax.Array], jax.Array]


def step_randomness(key: jax.Array, step: jax.Array, size: int, axis_name: str | None = None) -> tuple[Rows, jax.Array]:
    """The rows of this step and the key of its dropout, for a (local) batch of `size` rows.

    Under `axis_name` device d holds the rows d·size … (d + 1)·size − 1, and a dropout key of its own.
    """
    key = jax.random.fold_in(key, step)
    rng = jax.random.fold_in(key, _DROPOUT)
    index, total = jnp.arange(size, dtype=jnp.int32), size
    if axis_name is not None:
        device = jax.lax.axis_index(axis_name)
        index, total = index + size * device, size * jax.lax.axis_size(axis_name)
        rng = jax.random.fold_in(rng, device)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)
    return Rows(keys=keys, index=index, total=total), rng


def train_step(
    state: TrainState,
    batch: Any,
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    ema: Callable[[jax.Array], jax.Array],
    key: jax.Array,
    axis_name: str | None = None,
    accumulate: int = 1,
) -> tuple[TrainState, Metrics]:
    """One update of the state from a batch.

    Args:
        state: The state before it.
        batch: A tree of arrays that share their leading axis B.
        loss: `loss(params, batch, rows, rng) -> (B,)` gives the loss of each sample, drawing what concerns row i from
            `rows.keys[i]` and dropout from `rng`; the step minimises its mean.
        optimizer: The optimizer, such as `adam`.
        ema: `ema(step)` is the decay of the moving average, `step` counting the updates made before this one.
        key: The key of the run, from which the randomness of all steps follows.
        axis_name: For `jax.pmap`, the axis over which loss and gradient are averaged, the batch being this device's
            share; None knows nothing of devices.
        accumulate: The number k of parts of the batch, gone through one after the other, over which the gradient is
            averaged, each with the memory of its B/k rows: the same update, but for rounding and for dropout, whose key
            is the part's own.

    Returns:
        The state after it, and float32 scalars: `loss`, and `grad_norm`, the global norm of the gradient before
            clipping.

    Raises:
        ValueError: Where the loss is not one value a row, or k does not divide B.
    """
    size = jax.tree.leaves(batch)[0].shape[0]
    rows, rng = step_randomness(key, state.step, size, axis_name)

    def mean_loss(params: Any, batch: Any, rows: Rows, rng: jax.Array) -> jax.Array:
        each = loss(params, batch, rows, rng)
        if each.shape != rows.index.shape:
            raise ValueError(f"the loss must give one value a row, shape {rows.index.shape}, not {each.shape}")
        return jnp.mean(each)

    def value_and_gradient(batch: Any, rows: Rows, rng: jax.Array) -> tuple[jax.Array, Any]:
        return jax.value_and_grad(mean_loss)(state.params, batch, rows, rng)

    if accumulate == 1:
        value, gradient = value_and_gradient(batch, rows, rng)
    else:
        value, gradient = _mean_over_parts(value_and_gradient, batch, rows, rng, accumulate)
    if axis_name is not None:
        value, gradient = jax.lax.pmean((value, gradient), axis_name)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = ema(state.step)
    average = jax.tree.map(lambda e, p: (decay * e + (1 - decay) * p).astype(e.dtype), state.ema, params)
    metrics = {"loss": value, "grad_norm": optax.tree.norm(gradient)}
    return (
        TrainState(step=state.step + 1, params=params, ema=average, opt_state=opt_state),
        jax.tree.map(lambda m: m.astype(jnp.float32), metrics),
    )


def _mean_over_parts(
    function: Callable[[Any, Rows, jax.Array], Any], batch: Any, rows: Rows, rng: jax.Array, parts: int
) -> Any:
    """The mean of function(batch, rows, rng) over so many parts of the rows, one after the other, row r being of part r
    mod `parts`: where a batch is spread over devices, each of them has its share of every part."""
    size = rows.index.shape[0]
    if size % parts:
        raise ValueError(f"accumulate = {parts} must divide the {size} rows of the batch")

    def split(leaf: jax.Array) -> jax.Array:
        return jnp.swapaxes(leaf.reshape(size // parts, parts, *leaf.shape[1:]), 0, 1)

    def of(part: tuple[jax.Array, Any, Rows]) -> Any:
        i, batch, rows = part
        return function(batch, rows, jax.random.fold_in(rng, i))

    split_up = jnp.arange(parts), jax.tree.map(split, batch), jax.tree.map(split, rows)
    shapes = jax.eval_shape(of, jax.tree.map(lambda leaf: leaf[0], split_up))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, of(part)), None), zeros, split_up)
    return jax.tree.map(lambda leaf: leaf / parts, total)


def scan_steps(step_fn: StepFn, state: TrainState, batches: Any) -> tuple[TrainState, Metrics]:
    """K updates in one call: every leaf of `batches` has a leading axis K, and the metrics come back stacked, (K,).

    They are the K single updates up to the rounding of another program. K = 1 is compiled without a loop: in a loop's
    body XLA runs the gradient of a kernel of `nn.Conv` on a CPU by a path some fifty times slower (`nets.convolution`).
    """
    if jax.tree.leaves(batches)[0].shape[0] > 1:
        return jax.lax.scan(step_fn, state, batches)
    state, metrics = step_fn(state, jax.tree.map(lambda leaf: leaf[0], batches))
    return state, jax.tree.map(lambda m: m[None], metrics)
