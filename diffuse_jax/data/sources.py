"""What a data set is: sources of rows that are read by an array of indices, on the host, as NumPy arrays.

A source knows nothing of order, batches or devices; `Batches` gives it the indices of a step. A row is `x` (uint8
NHWC, or a float32 vector) and, where asked for, `label` (int32). What a user got wrong about data is a `DataError`,
with a message of one line that says what was given and what would do.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np

T = TypeVar("T")

SPLIT_SEED = 0
CACHE_BYTES = 2**30
THREADS = min(16, os.cpu_count() or 1)


class DataError(ValueError):
    """Data that cannot be used as given: an unknown name, a broken file, data that was never prepared."""


class Source(Protocol):
    """Random access to n rows: `source[indices]` takes an integer array (k,) and returns {"x": (k, ...), optionally
    "label": (k,) int32}.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class Dataset:
    """A named pair of sources. `shape` is the shape of one x; `levels` counts the grey levels of discrete data (256,
    or 17 for the digits; None where the data are continuous); `num_classes` counts the labels (None where the rows
    carry none).
    """

    name: str
    train: Source
    test: Source
    shape: tuple[int, ...]
    levels: int | None
    num_classes: int | None


@dataclass(frozen=True, eq=False)
class Arrays:
    """Rows held in memory: `x` (n, ...), and `label` (n,) or None."""

    x: np.ndarray
    label: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        rows = {"x": self.x[indices]}
        if self.label is not None:
            rows["label"] = self.label[indices].astype(np.int32)
        return rows


@dataclass(frozen=True, eq=False)
class Subset:
    """The rows of `source` at `indices` (k,), in that order."""

    source: Source
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return self.source[self.indices[indices]]


@dataclass(frozen=True, eq=False)
class LazyImages:
    """`length` images of one `shape`, decoded when they are first read by `load(i) -> (image uint8, label)`, several
    at a time on `threads` threads.

    Where the whole set fits into `cache_bytes` every decoded row is kept, so that only the first epoch pays for
    decoding; a larger set is decoded batch by batch. `load` must be pure and safe to call from several threads.
    """

    load: Callable[[int], tuple[np.ndarray, int]]
    length: int
    shape: tuple[int, ...]
    labelled: bool = False
    cache_bytes: int = CACHE_BYTES
    threads: int = THREADS
    _rows: dict[int, tuple[np.ndarray, int]] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        wanted = [int(i) for i in indices]
        missing = [i for i in dict.fromkeys(wanted) if i not in self._rows]
        decoded = dict(zip(missing, map_threads(self.load, missing, self.threads), strict=True))
        if self.length * int(np.prod(self.shape)) <= self.cache_bytes:
            self._rows.update(decoded)
        rows = [decoded[i] if i in decoded else self._rows[i] for i in wanted]
        batch = {"x": np.stack([x for x, _ in rows]) if rows else np.empty((0, *self.shape), np.uint8)}
        if self.labelled:
            batch["label"] = np.array([label for _, label in rows], np.int32)
        return batch


def map_threads(f: Callable[[int], T], indices: Sequence[int], threads: int) -> list[T]:
    """[f(i) for i in indices], several at a time: Pillow decodes outside the interpreter's lock."""
    if threads <= 1 or len(indices) <= 1:
        return [f(i) for i in indices]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(f, indices))


def split(source: Source, holdout: float) -> tuple[Source, Source]:
    """The (train, test) parts of a source that has no test split of its own: round(holdout·n) rows drawn without
    replacement with `SPLIT_SEED` are the test part, and both parts keep the source's order. Raises DataError where
    holdout is outside [0, 1) or leaves no row to train on.
    """
    n = len(source)
    if not 0 <= holdout < 1:
        raise DataError(f"holdout is {holdout}: give the share of the rows kept for testing, at least 0 and below 1")
    held = round(holdout * n)
    if held >= n:
        raise DataError(f"holdout={holdout} of {n} rows leaves none to train on: give a smaller holdout or more data")
    test = np.zeros(n, bool)
    test[np.random.default_rng(SPLIT_SEED).permutation(n)[:held]] = True
    return Subset(source, np.flatnonzero(~test)), Subset(source, np.flatnonzero(test))
