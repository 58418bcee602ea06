"""Drawing samples in chunks over all devices: sample i is the same whatever the chunks, devices and processes."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffuse_jax.denoiser import Conditioned, Denoiser
from diffuse_jax.evaluation.chunks import chunks, everywhere, joined, shard
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

    A call draws n samples of a seed, `chunks` gives them out as they are drawn; a denoiser with other parameters does
    not recompile.

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
        first: int = 0,
        labels: np.ndarray | None = None,
        path: bool = False,
        progress: str | None = None,
    ) -> Drawn:
        """Draws n samples of a seed.

        Args:
            denoise: The denoiser.
            seed: The seed; sample i is a function of it and i alone.
            n: How many.
            first: The number of the first of them.
            labels: Class labels (n,), the condition of each sample.
            path: Keep every state.
            progress: The name of a progress bar on stderr; None draws none.

        Returns:
            The samples first … first + n − 1, the evaluations that each took, and their paths.

        Raises:
            FloatingPointError: At the first chunk in which a sample is not finite, as where the adaptive solver ran out
                of steps.
        """
        given = None if labels is None else np.asarray(labels)
        classes = None if given is None else lambda index: given[index - first]
        parts = self.chunks(denoise, seed=seed, n=n, first=first, classes=classes, path=path)
        drawn: Drawn = joined(parts, n, progress=progress)
        return drawn

    def chunks(
        self,
        denoise: Denoiser,
        *,
        seed: int,
        n: int,
        first: int = 0,
        skip: int = 0,
        classes: Callable[[np.ndarray], np.ndarray] | None = None,
        path: bool = False,
    ) -> Iterator[tuple[int, Drawn]]:
        """Draws samples a chunk at a time, of which no more than two are held.

        Args:
            denoise: The denoiser.
            seed: The seed.
            n: How many.
            first: The number of the first of them.
            skip: Chunks that lie in the first so many samples are left out.
            classes: Gives the labels of samples by their numbers, all below 2**32.
            path: Keep every state.

        Returns:
            An iterator over (the number of a chunk's first sample, the chunk).

        Raises:
            FloatingPointError: At the first chunk in which a sample is not finite.
        """
        key = jax.random.key(seed)
        denoise = everywhere(self._mesh, denoise)

        def chunk(index: np.ndarray) -> Drawn:
            # Of this chunk alone: a function of all n would be compiled for every n.
            keys = jax.vmap(lambda i: sample_keys(key, 1, first=i)[0])(index.astype(np.uint32))
            cond = None if classes is None else shard(self._mesh, classes(index))
            return Drawn(*self._run(shard(self._mesh, keys), denoise, cond, path))

        for start, drawn in chunks(chunk, n, self._batch_size, self._mesh, first=first, skip=skip):
            _check_finite(start, drawn.x)
            yield start, drawn


def _check_finite(first: int, x: np.ndarray) -> None:
    bad = ~np.isfinite(x).reshape(len(x), -1).all(axis=1)
    if bad.any():
        raise FloatingPointError(
            f"{bad.sum()} of {len(x)} samples are not finite, the first being sample {first + bad.argmax()}: "
            "take more steps (with the adaptive solver, more evaluations: max_evaluations), or train longer"
        )
