"""One step of training as a pure function of the state and a batch, and K of them in one call.

Every random number is a function of (key, step, row of the global batch), so that neither the number of devices nor an
interruption changes a run. Of the first update of a step:

    row_key[i] = fold_in(fold_in(key, step), i)          for row i of the global batch
    rng        = fold_in(fold_in(key, step), 2³² − 1)    for dropout

and of update k > 0 the same with fold_in(key, 2³² − 1 − k) in place of key.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffuse_jax.training.method import Draws, Update
from diffuse_jax.training.state import TrainState
from diffuse_jax.trees import pytree

__all__ = ["Metrics", "Occasional", "StepFn", "scan_steps", "step_draws", "train_step"]


@pytree
class Occasional:
    """A metric of an update that is not made at every step: `value`, 0 where it was not, and whether it was `made`."""

    value: jax.Array
    made: jax.Array


Metrics = dict[str, Any]
StepFn = Callable[[TrainState, Any], tuple[TrainState, Metrics]]

# `split` would not do: its keys are those of fold_in(key, 0), fold_in(key, 1), …, which belong to the rows.
_LAST = 2**32 - 1


def step_draws(key: jax.Array, step: jax.Array, size: int, axis_name: str | None = None) -> Draws:
    """The randomness of one update of a step.

    Args:
        key: The key of the run, or of the update (see the head of this module).
        step: The steps made before this one.
        size: The rows of the (local) batch.
        axis_name: For `jax.pmap`, the axis of devices, of which device d holds the rows d·size … (d + 1)·size − 1, and
            a dropout key of its own; None: the batch is the global one.

    Returns:
        The draws of these rows.
    """
    key = jax.random.fold_in(key, step)
    rng = jax.random.fold_in(key, np.uint32(_LAST))
    index, total = jnp.arange(size, dtype=jnp.int32), size
    if axis_name is not None:
        device = jax.lax.axis_index(axis_name)
        index, total = index + size * device, size * jax.lax.axis_size(axis_name)
        rng = jax.random.fold_in(rng, device)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)
    return Draws(keys=keys, index=index, rng=rng, step=step, total=total)


def train_step(
    state: TrainState,
    batch: Any,
    *,
    updates: Sequence[Update],
    ema: Callable[[jax.Array], jax.Array],
    key: jax.Array,
    axis_name: str | None = None,
    accumulate: int = 1,
) -> tuple[TrainState, Metrics]:
    """One step: every update in turn, then the moving average.

    Args:
        state: The state before it, as `create_state` makes it for the same updates.
        batch: A tree of arrays that share their leading axis B.
        updates: What is done, as a `Method` has it; each sees what the one before left.
        ema: `ema(step)` is the decay of the moving average, `step` counting the steps made before this one.
        key: The key of the run, from which the randomness of all steps follows.
        axis_name: For `jax.pmap`, the axis over which losses and gradients are averaged, the batch being this device's
            share; None knows nothing of devices.
        accumulate: The number k of parts of the batch, gone through one after the other, over which each gradient is
            averaged, each with the memory of its B/k rows: the same step, but for rounding and for dropout, whose key
            is the part's own.

    Returns:
        The state after it, and the metrics, float32 scalars of each update by name. They are `loss`, `grad_norm`, the
            global norm of the gradient before clipping, and those of its loss; `Occasional` ones where it is not made
            at every step.

    Raises:
        ValueError: Where a loss is not one value a row, an update names parameters or a loss brings up to date entries
            of `extra` that there are not, or k does not divide B.
    """
    size = jax.tree.leaves(batch)[0].shape[0]
    params, extra = state.params, state.extra
    metrics: Metrics = {}
    opt_states = list(state.opt_state) if len(updates) > 1 else [state.opt_state]
    for number, update in enumerate(updates):
        own_key = jax.random.fold_in(key, np.uint32(_LAST - number)) if number else key
        draws = step_draws(own_key, state.step, size, axis_name)

        def make(before: tuple[Any, Any, Any], update: Update = update, draws: Draws = draws) -> Any:
            return _make(update, *before, batch, draws, axis_name, accumulate)

        before = params, extra, opt_states[number]
        if update.every == 1:
            (params, extra, opt_states[number]), found = make(before)
        else:
            due = state.step % update.every == 0
            zeros = jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), jax.eval_shape(make, before)[1])
            after, found = jax.lax.cond(due, make, lambda before, zeros=zeros: (before, zeros), before)
            params, extra, opt_states[number] = after
            found = {name: Occasional(value, due) for name, value in found.items()}
        metrics |= {f"{update.name}/{name}" if update.name else name: value for name, value in found.items()}
    decay = ema(state.step)
    average = jax.tree.map(lambda e, p: (decay * e + (1 - decay) * p).astype(e.dtype), state.ema, params)
    opt_state = tuple(opt_states) if len(updates) > 1 else opt_states[0]
    return TrainState(step=state.step + 1, params=params, ema=average, opt_state=opt_state, extra=extra), metrics


def _make(
    update: Update,
    params: Any,
    extra: Any,
    opt_state: Any,
    batch: Any,
    draws: Draws,
    axis_name: str | None,
    accumulate: int,
) -> tuple[tuple[Any, Any, Any], Metrics]:
    """One update: (params, extra, opt_state) after it, and its metrics."""
    moved = update.moved(params)

    def mean_loss(moved: Any, batch: Any, draws: Draws) -> tuple[jax.Array, tuple[Metrics, Any]]:
        output = update.loss(update.put(params, moved), extra, batch, draws)
        if output.each.shape != draws.index.shape:
            given = output.each.shape
            raise ValueError(f"the loss must give one value a row, shape {draws.index.shape}, not {given}")
        further = {name: jnp.mean(value) for name, value in output.metrics.items()}
        return jnp.mean(output.each), (further, dict(output.extra or {}))

    def found(batch: Any, draws: Draws) -> Any:
        (value, (further, new)), gradient = jax.value_and_grad(mean_loss, has_aux=True)(moved, batch, draws)
        return value, gradient, further, new

    if accumulate == 1:
        value, gradient, further, new = found(batch, draws)
    else:
        value, gradient, further, new = _mean_over_parts(found, batch, draws, accumulate)
    if axis_name is not None:
        value, gradient, further = jax.lax.pmean((value, gradient, further), axis_name)
        new = jax.tree.map(lambda leaf: _mean_over_devices(leaf, axis_name) if _inexact(leaf) else leaf, new)
    if unknown := sorted(set(new) - set(extra)):
        raise ValueError(
            f"the loss brings extra[{unknown[0]!r}] up to date, and extra has {', '.join(extra) or 'none'}"
        )
    change, opt_state = update.optimizer.update(gradient, opt_state, moved)
    params = update.put(params, optax.apply_updates(moved, change))
    metrics = {"loss": value, "grad_norm": optax.tree.norm(gradient), **further}
    metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
    return (params, {**extra, **new} if new else extra, opt_state), metrics


def _mean_over_devices(leaf: jax.Array, axis_name: str) -> jax.Array:
    """The mean over an axis, to the bit the number itself where all devices have the same."""
    first = jax.lax.psum(jnp.where(jax.lax.axis_index(axis_name) == 0, leaf, 0), axis_name)
    return first + jax.lax.pmean(leaf - first, axis_name)


def _inexact(leaf: jax.Array) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def _mean_over_parts(function: Callable[[Any, Draws], Any], batch: Any, draws: Draws, parts: int) -> Any:
    """The mean of function(batch, draws) over so many parts of the rows, one after the other, row r being of part r mod
    `parts`: where a batch is spread over devices, each of them has its share of every part. Of what a loss brings up to
    date, the last of four results, it is to the bit the number itself where all parts have the same, as of what is
    frozen; and of numbers that are no floats the last part's."""
    size = draws.index.shape[0]
    if size % parts:
        raise ValueError(f"accumulate = {parts} must divide the {size} rows of the batch")

    def split(leaf: jax.Array) -> jax.Array:
        return jnp.swapaxes(leaf.reshape(size // parts, parts, *leaf.shape[1:]), 0, 1)

    def of(part: tuple[jax.Array, Any, jax.Array, jax.Array]) -> Any:
        i, batch, keys, index = part
        rng = None if draws.rng is None else jax.random.fold_in(draws.rng, i)
        return function(batch, Draws(keys=keys, index=index, rng=rng, step=draws.step, total=draws.total))

    split_up = jnp.arange(parts), jax.tree.map(split, batch), split(draws.keys), split(draws.index)
    shapes = jax.eval_shape(of, jax.tree.map(lambda leaf: leaf[0], split_up))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(carry: tuple[Any, Any], part: Any) -> tuple[tuple[Any, Any], None]:
        total, first = carry
        *summed, new = of(part)
        first = jax.tree.map(lambda f, n: jnp.where(part[0] == 0, n, f), first, new)
        beyond = jax.tree.map(lambda n, f: n - f if _inexact(n) else n, new, first)
        *sums, last = total
        last = jax.tree.map(lambda t, b: t + b if _inexact(t) else b, last, beyond)
        return ((*jax.tree.map(jnp.add, tuple(sums), tuple(summed)), last), first), None

    ((*sums, beyond), first), _ = jax.lax.scan(add, (tuple(zeros), zeros[-1]), split_up)
    new = jax.tree.map(lambda f, b: f + b / parts if _inexact(f) else b, first, beyond)
    return (*jax.tree.map(lambda leaf: leaf / parts, tuple(sums)), new)


def scan_steps(step_fn: StepFn, state: TrainState, batches: Any) -> tuple[TrainState, Metrics]:
    """K steps in one call.

    They are the K single steps up to the rounding of another program. K = 1 is compiled without a loop: in a loop's
    body XLA runs the gradient of a kernel of `nn.Conv` on a CPU by a path some fifty times slower (`nets.convolution`).

    Args:
        step_fn: `step_fn(state, batch) -> (state, metrics)`, one pure update.
        state: The state before them.
        batches: A tree of arrays that lead with K, one batch a step.

    Returns:
        The state after them, and the metrics stacked, (K,).
    """
    if jax.tree.leaves(batches)[0].shape[0] > 1:
        return jax.lax.scan(step_fn, state, batches)
    state, metrics = step_fn(state, jax.tree.map(lambda leaf: leaf[0], batches))
    return state, jax.tree.map(lambda m: m[None], metrics)
