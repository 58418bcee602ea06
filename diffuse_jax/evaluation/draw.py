"""Drawing samples in chunks over all devices: sample i is the same whatever the chunks, devices and processes."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from diffuse_jax.evaluation.chunks import chunks, everywhere, joined, shard
from diffuse_jax.sampling import sample_keys
from diffuse_jax.training.method import Draw, Drawn

__all__ = ["Sampler"]

# The conditions of samples by their numbers.
Conditions = Callable[[np.ndarray], Mapping[str, np.ndarray]]


class Sampler:
    """How a method draws, compiled once for chunks of samples that are spread over devices.

    A call draws n samples of a seed, `chunks` gives them out as they are drawn; a model with other parameters does not
    recompile.

    Args:
        draw: What draws, as `Method.draw` has it.
        mesh: The devices, of `training.make_mesh`.
        batch_size: The samples of one chunk.
    """

    def __init__(self, draw: Draw, *, mesh: Mesh, batch_size: int) -> None:
        self._mesh, self._batch_size = mesh, batch_size
        self._run = partial(jax.jit, static_argnames="path")(
            lambda model, keys, cond, path: draw.function(model, keys, cond, path)
        )

    def __call__(
        self,
        model: Any,
        *,
        seed: int,
        n: int,
        first: int = 0,
        cond: Mapping[str, np.ndarray] | None = None,
        path: bool = False,
        progress: str | None = None,
    ) -> Drawn:
        """Draws n samples of a seed.

        Args:
            model: The model.
            seed: The seed; sample i is a function of it and i alone.
            n: How many.
            first: The number of the first of them.
            cond: The conditions of each sample by name, (n, …).
            path: Keep every state.
            progress: The name of a progress bar on stderr; None draws none.

        Returns:
            The samples first … first + n − 1, the evaluations that each took, and their paths.

        Raises:
            FloatingPointError: At the first chunk in which a sample is not finite, as where the adaptive solver ran out
                of steps.
        """
        given = None if cond is None else {name: np.asarray(rows) for name, rows in cond.items()}
        of = None if given is None else lambda index: {name: rows[index - first] for name, rows in given.items()}
        parts = self.chunks(model, seed=seed, n=n, first=first, conditions=of, path=path)
        drawn: Drawn = joined(parts, n, progress=progress)
        return drawn

    def chunks(
        self,
        model: Any,
        *,
        seed: int,
        n: int,
        first: int = 0,
        skip: int = 0,
        conditions: Conditions | None = None,
        path: bool = False,
    ) -> Iterator[tuple[int, Drawn]]:
        """Draws samples a chunk at a time, of which no more than two are held.

        Args:
            model: The model.
            seed: The seed.
            n: How many.
            first: The number of the first of them.
            skip: Chunks that lie in the first so many samples are left out.
            conditions: Gives the conditions of samples by their numbers, all below 2**32.
            path: Keep every state.

        Returns:
            An iterator over (the number of a chunk's first sample, the chunk).

        Raises:
            FloatingPointError: At the first chunk in which a sample is not finite.
        """
        key = jax.random.key(seed)
        model = everywhere(self._mesh, model)

        def chunk(index: np.ndarray) -> Drawn:
            # Of this chunk alone: a function of all n would be compiled for every n.
            keys = jax.vmap(lambda i: sample_keys(key, 1, first=i)[0])(index.astype(np.uint32))
            cond = None if conditions is None else shard(self._mesh, conditions(index))
            return Drawn(*self._run(model, shard(self._mesh, keys), cond, path))

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
