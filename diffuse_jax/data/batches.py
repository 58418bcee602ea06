"""Which rows make up the batch of a step, and fetching them ahead of time.

The global batch `step` is rows [step·B, (step + 1)·B) of an endless list of epochs, each a fresh permutation of the
data, and process p of P reads rows [p·B/P, (p + 1)·B/P) of it. It is a pure function of (seed, step): a resumed run
reads what it would have read, on any number of processes, and nothing is stored.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Protocol

import numpy as np

from diffuse_jax.data.order import Order
from diffuse_jax.data.sources import Source

Batch = dict[str, np.ndarray]


class Indexable(Protocol):
    """Anything that gives the batch of a step."""

    def __getitem__(self, step: int, /) -> Batch: ...


@dataclass(frozen=True, eq=False)
class Batches:
    """`batches[step]` is this process's share of global batch `step`, shuffled anew in every epoch; a batch may span
    epochs and may be larger than the source.

    Args:
        source: The rows, at least one.
        batch_size: The rows of the global batch, a positive multiple of `process_count`.
        seed: The seed of the order, 0 or more.
        process_index: The number of this process, below `process_count`.
        process_count: The number of processes.

    Raises:
        ValueError: When it is made, for an argument that is not so.
    """

    source: Source
    batch_size: int
    seed: int
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batch_size % self.process_count:
            raise ValueError(
                f"batch_size={self.batch_size} is not a positive multiple of process_count={self.process_count}: "
                "every process reads an equal share of the global batch"
            )
        if not 0 <= self.process_index < self.process_count:
            raise ValueError(f"process_index={self.process_index} is not in 0..{self.process_count - 1}")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} is negative: give 0 or more")
        if len(self.source) == 0:
            raise ValueError("the source has no rows to make batches of: is its holdout 0?")

    @cached_property
    def _order(self) -> Order:
        return Order(len(self.source), self.seed)

    def indices(self, step: int) -> np.ndarray:
        """The rows of the source, (batch_size / process_count,), that this process reads at `step` >= 0."""
        if step < 0:
            raise IndexError(f"step {step} is negative: steps count from 0")
        share = self.batch_size // self.process_count
        first = step * self.batch_size + self.process_index * share
        return self._order.rows(first, first + share)

    def __getitem__(self, step: int) -> Batch:
        return self.source[self.indices(step)]


def stack(batches: Indexable, step: int, count: int) -> Batch:
    """The batches of some steps: the input of as many training steps scanned in one call.

    Args:
        batches: What gives the batch of a step, such as `Batches`.
        step: The first of the steps.
        count: Their number.

    Returns:
        The batches of steps step, …, step + count - 1, each array with a leading axis of length `count`.
    """
    parts = [batches[i] for i in range(step, step + count)]
    return {name: np.stack([part[name] for part in parts]) for name in parts[0]}


def prefetch(
    batches: Indexable, start: int, stop: int, depth: int = 2, *, count: int | None = None
) -> Iterator[tuple[int, Batch]]:
    """Batches in order, read ahead of time by a background thread. What a batch raises is raised at its step. Closing
    the iterator, or leaving it to be collected, ends the thread after the batch that it is reading.

    Args:
        batches: What gives the batch of a step, such as `Batches`.
        start: The first step.
        stop: The step at which it ends, which is not read.
        depth: How many items the thread reads ahead at most, 1 or more.
        count: The steps of one item, 1 or more; None: one, whose batch is not stacked.

    Returns:
        An iterator over (step, batches[step]) for start <= step < stop; with `count` over (step, stack(batches, step,
            count)) for every count-th step, where the last stack is shorter if count does not divide stop - start.

    Raises:
        ValueError: For a depth or count below 1.
    """
    if depth < 1 or (count is not None and count < 1):
        raise ValueError(f"depth={depth} and count={count} must be at least 1")
    return _prefetch(batches, start, stop, depth, count)


def _prefetch(batches: Indexable, start: int, stop: int, depth: int, count: int | None) -> Iterator[tuple[int, Batch]]:
    def fetch(step: int) -> Batch:
        return batches[step] if count is None else stack(batches, step, min(count, stop - step))

    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    steps = iter(range(start, stop, count or 1))
    pending = deque((step, pool.submit(fetch, step)) for step in islice(steps, depth))
    try:
        while pending:
            step, future = pending.popleft()
            batch = future.result()
            if (ahead := next(steps, None)) is not None:
                pending.append((ahead, pool.submit(fetch, ahead)))
            yield step, batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
