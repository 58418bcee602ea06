"""Held-out data under what was trained: numbers of each row, always with the same randomness, and likelihoods."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffuse_jax.data.sources import Source
from diffuse_jax.evaluation.chunks import everywhere, map_chunks, shard
from diffuse_jax.sampling import sample_keys
from diffuse_jax.training.method import Density, Draws, Likelihoods, Loss

__all__ = ["HeldoutRows", "likelihoods", "mean_and_error", "of_loss"]


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean of independent values (n,) and its standard error, NaN for n = 1."""
    values = np.asarray(values, np.float64)
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def of_loss(loss: Loss) -> Callable[..., dict[str, jax.Array]]:
    """A loss as a function ((params, extra), batch, draws) of rows: {"loss": (B,)} and those of its metrics that are
    of rows."""

    def of_rows(trained: tuple[Any, Any], batch: Any, draws: Draws) -> dict[str, jax.Array]:
        output = loss(*trained, batch, draws)
        metrics = {name: value for name, value in output.metrics.items() if value.shape == output.each.shape}
        return {"loss": output.each, **metrics}

    return of_rows


class HeldoutRows:
    """A function of the first n rows of a source, or of all where there are fewer, each always with the same
    randomness: two networks differ by their parameters alone. A call maps what was trained to a tree of arrays (n, …),
    and compiles once.

    Args:
        function: `function(trained, batch, draws)`, a tree of arrays that lead with the rows, such as
            `of_loss(method.heldout["loss"])` or one of `method.evaluations`.
        source: The held-out rows.
        n: How many of them.
        seed: The seed of what is random.
        mesh: The devices, of `training.make_mesh`.
        batch_size: The rows of one compiled call.
    """

    def __init__(
        self, function: Callable[..., Any], source: Source, n: int, *, seed: int, mesh: Mesh, batch_size: int
    ) -> None:
        self._source, self._n, self._mesh, self._batch_size = source, min(n, len(source)), mesh, batch_size
        self._keys = sample_keys(seed, self._n)

        @jax.jit
        def run(trained: Any, batch: Any, keys: jax.Array, index: jax.Array, step: jax.Array) -> Any:
            return function(trained, batch, Draws(keys=keys, index=index, rng=None, step=step, total=self._n))

        self._run = run

    def __call__(self, trained: Any, step: int = 0) -> Any:
        """The rows under `trained`, the argument of the function, at that `step` of training."""
        trained = everywhere(self._mesh, trained)

        def chunk(index: np.ndarray) -> Any:
            rows = shard(self._mesh, (self._source[index], self._keys[index], jnp.asarray(index, jnp.int32)))
            return self._run(trained, *rows, np.int32(step))

        return map_chunks(chunk, self._n, self._batch_size, self._mesh)


def likelihoods(
    log_prob: Density,
    model: Any,
    source: Source,
    n: int,
    *,
    seed: int,
    mesh: Mesh,
    batch_size: int,
    progress: str | None = None,
) -> Likelihoods:
    """The likelihoods of the first n rows of a source.

    Discrete data are dequantized uniformly, and their bits are an upper bound on a code length; bits of continuous data
    are those of the density itself.

    Args:
        log_prob: That of a method, such as `methods.flow_log_prob(codec)`.
        model: The model.
        source: The rows.
        n: How many of them.
        seed: The seed of dequantization and probes.
        mesh: The devices, of `training.make_mesh`.
        batch_size: The rows of one compiled call.
        progress: The name of a progress bar on stderr; None draws none.

    Returns:
        log p, its error, bits per dimension and evaluations of each row.

    Raises:
        FloatingPointError: Where a row's solve did not finish.
    """
    keys = sample_keys(seed, n)
    run = jax.jit(log_prob.function)
    model = everywhere(mesh, model)

    def chunk(index: np.ndarray) -> Any:
        return run(model, shard(mesh, source[index]), shard(mesh, keys[index]))

    found = Likelihoods(*map_chunks(chunk, n, batch_size, mesh, progress=progress))
    unfinished = int(np.sum(~np.isfinite(found.log_prob)))
    if unfinished:
        raise FloatingPointError(
            f"the likelihood of {unfinished} of {n} rows is not finite: loosen rtol and atol, or train longer"
        )
    return found
