"""Held-out data under a trained network: the loss with fixed noise, and log p with its bits a dimension."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffuse_jax.data.preprocess import preprocess
from diffuse_jax.data.sources import Source
from diffuse_jax.denoiser import Denoiser
from diffuse_jax.evaluation.chunks import everywhere, map_chunks, shard
from diffuse_jax.likelihood import log_prob, nats_to_bits_per_dim
from diffuse_jax.sampling import sample_keys
from diffuse_jax.training.objectives import Objective
from diffuse_jax.training.step import Rows

__all__ = ["HeldoutLoss", "Likelihoods", "likelihoods", "mean_and_error"]


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean of independent values (n,) and its standard error, NaN for n = 1."""
    values = np.asarray(values, np.float64)
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


class HeldoutLoss:
    """The loss of the first n rows of a source, or of all where there are fewer, each always with the same time and
    noise: two networks differ by their parameters alone. A call maps parameters to losses (n,), and compiles once.

    Args:
        loss: The objective, `loss(params, batch, rows, rng) -> (batch,)`.
        source: The held-out rows.
        n: How many of them.
        seed: The seed of times and noise.
        mesh: The devices, of `training.make_mesh`.
        batch_size: The rows of one compiled call.
    """

    def __init__(self, loss: Objective, source: Source, n: int, *, seed: int, mesh: Mesh, batch_size: int) -> None:
        self._source, self._n, self._mesh, self._batch_size = source, min(n, len(source)), mesh, batch_size
        self._keys = sample_keys(seed, self._n)
        self._run = jax.jit(lambda params, batch, rows: loss(params, batch, rows, None))

    def __call__(self, params: Any) -> np.ndarray:
        params = everywhere(self._mesh, params)

        def chunk(index: np.ndarray) -> jax.Array:
            rows = Rows(keys=self._keys[index], index=jnp.asarray(index, jnp.int32), total=self._n)
            return self._run(params, shard(self._mesh, self._source[index]), shard(self._mesh, rows))

        losses: np.ndarray = map_chunks(chunk, self._n, self._batch_size, self._mesh)
        return losses


class Likelihoods(NamedTuple):
    """The likelihood of each row, all (n,).

    Args:
        log_prob: log p in nats of the (dequantized) data in the model's range.
        error: Its standard error from the estimate of the trace: 0 for the exact one, NaN for one probe.
        bits_per_dim: Bits per dimension.
        evaluations: The evaluations of the network.
    """

    log_prob: np.ndarray
    error: np.ndarray
    bits_per_dim: np.ndarray
    evaluations: np.ndarray


def likelihoods(
    denoise: Denoiser,
    source: Source,
    n: int,
    *,
    seed: int,
    levels: int | None,
    centered: bool,
    trace: Callable[..., Any],
    probes: int = 1,
    t_min: float,
    rtol: float,
    atol: float,
    mesh: Mesh,
    batch_size: int,
    progress: str | None = None,
) -> Likelihoods:
    """The likelihoods of the first n rows of a source.

    Discrete data are dequantized uniformly, and their bits are an upper bound on a code length; bits of continuous data
    are those of the density itself.

    Args:
        denoise: The denoiser.
        source: The rows.
        n: How many of them.
        seed: The seed of dequantization and probes.
        levels: The number of grey levels; None for continuous data.
        centered: Whether the model's data lie in [−1, 1], else in [0, 1].
        trace: `likelihood.exact_trace`, `hutchinson_trace` or `gaussian_trace`.
        probes: Probes of an estimated trace for each row.
        t_min: The time of which x(t_min) is the data.
        rtol: Relative tolerance of the ODE solver.
        atol: Absolute tolerance.
        mesh: The devices, of `training.make_mesh`.
        batch_size: The rows of one compiled call.
        progress: The name of a progress bar on stderr; None draws none.

    Returns:
        log p, its error, bits per dimension and evaluations of each row.

    Raises:
        FloatingPointError: Where a row's solve did not finish.
    """
    keys = sample_keys(seed, n)
    low, high = (-1.0, 1.0) if centered else (0.0, 1.0)

    @jax.jit
    def run(denoise: Denoiser, batch: dict[str, jax.Array], keys: jax.Array) -> tuple[jax.Array, ...]:
        # Stream 0 of a key makes the probes of the trace, stream 1 the dequantization.
        stream = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 1)
        x = preprocess(batch["x"], stream, levels=levels, centered=centered, dequantize=levels is not None)
        solve: dict[str, Any] = {"trace": trace, "probes": probes, "t_min": t_min, "rtol": rtol, "atol": atol}
        nats = log_prob(denoise, x, keys=keys, cond=batch.get("label"), **solve)
        dims = int(np.prod(x.shape[1:]))
        bits = nats_to_bits_per_dim(nats.log_prob, dims, levels=levels, range=(low, high))
        return nats.log_prob, nats.error, bits, nats.evaluations

    denoise = everywhere(mesh, denoise)

    def chunk(index: np.ndarray) -> Any:
        return run(denoise, shard(mesh, source[index]), shard(mesh, keys[index]))

    found = Likelihoods(*map_chunks(chunk, n, batch_size, mesh, progress=progress))
    unfinished = int(np.sum(~np.isfinite(found.log_prob)))
    if unfinished:
        raise FloatingPointError(
            f"the likelihood of {unfinished} of {n} rows is not finite: loosen rtol and atol, or train longer"
        )
    return found
