"""Drawing samples in chunks over all devices: sample i is the same whatever the chunks, devices and processes."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffuse_jax.denoiser import Conditioned, Denoiser
from diffuse_jax.evaluation.chunks import everywhere, map_chunks, shard
from diffuse_jax.sampling import NoiseSource, count_evaluations, denoise_once, keyed_noise, sample_keys, solve
from diffuse_jax.solvers import Solver

__all__ = ["Drawn", "Sampler"]


class Drawn(NamedTuple):
    """Samples and what they cost.

    Args:
        x: The samples (n, …).
        evaluations: The evaluations that each took (n,); NaN where the solver does not say.
        path: Their states (n, N + 1, …) along the grid, where asked for.
    """

    x: np.ndarray
    evaluations: np.ndarray
    path: np.ndarray | None


class Sampler:
    """A solver on a grid of times, compiled once for chunks of samples that are spread over devices.

    A call draws the samples 0 … n − 1 of a seed; a denoiser with other parameters does not recompile.

    Args:
        solver: The solver.
        times: The grid (N + 1,).
        finish: What is returned of a solution, as in `diffuse_jax.sample`.
        mesh: The devices, of `training.make_mesh`.
        batch_size: The samples of one chunk.
        noise: What makes the draws of a step, as in `diffuse_jax.sample`.
    """

    def __init__(
        self,
        solver: Solver,
        times: jax.Array,
        finish: Callable[..., jax.Array],
        *,
        mesh: Mesh,
        batch_size: int,
        noise: NoiseSource = keyed_noise,
    ) -> None:
        self._mesh, self._batch_size = mesh, batch_size

        @partial(jax.jit, static_argnames="path")
        def run(keys: jax.Array, denoise: Denoiser, cond: Any, path: bool) -> tuple[Any, ...]:
            solution = solve(keys, denoise, solver, times, cond=cond, noise=noise, path=path)
            x = finish(solution, times[-1], Conditioned(denoise, cond))
            count = count_evaluations(solver, times, solution.memory) + (finish is denoise_once)
            each = jnp.broadcast_to(count, keys.shape[:1])
            return x, each, None if solution.path is None else jnp.moveaxis(solution.path, 0, 1)

        self._run = run

    def __call__(
        self,
        denoise: Denoiser,
        *,
        seed: int,
        n: int,
        labels: np.ndarray | None = None,
        path: bool = False,
        progress: str | None = None,
    ) -> Drawn:
        """Draws the samples 0 … n − 1 of a seed.

        Args:
            denoise: The denoiser.
            seed: The seed; sample i is a function of it and i alone.
            n: How many.
            labels: Class labels (n,), the condition of each sample.
            path: Keep every state.
            progress: The name of a progress bar on stderr; None draws none.

        Returns:
            The samples, the evaluations that each took, and their paths.

        Raises:
            FloatingPointError: Where a sample is not finite, as where the adaptive solver ran out of steps.
        """
        key = jax.random.key(seed)
        denoise = everywhere(self._mesh, denoise)

        def chunk(index: np.ndarray) -> Any:
            # Of this chunk alone: a function of all n would be compiled for every n.
            keys = jax.vmap(lambda i: sample_keys(key, i, 1)[0])(index.astype(np.uint32))
            cond = None if labels is None else shard(self._mesh, labels[index])
            return self._run(shard(self._mesh, keys), denoise, cond, path)

        drawn = Drawn(*map_chunks(chunk, n, self._batch_size, self._mesh, progress=progress))
        bad = ~np.isfinite(drawn.x).reshape(n, -1).all(axis=1)
        if bad.any():
            raise FloatingPointError(
                f"{bad.sum()} of {n} samples are not finite, the first being sample {bad.argmax()}: "
                "take more steps (with the adaptive solver, more evaluations: max_evaluations), or train longer"
            )
        return drawn
