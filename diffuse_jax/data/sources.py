"""What a data set is: sources of rows that are read by an array of indices, on the host, as NumPy arrays.

A source knows nothing of order, batches or devices; `Batches` gives it the indices of a step. A row is `x` (uint8
NHWC, or a float32 vector) and, where asked for, `label` (int32). What a user got wrong about data is a `DataError`,
with a message of one line that says what was given and what would do.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar

import numpy as np

from diffuse_jax._memory import check_memory

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

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        indices = np.asarray(indices, np.int64)
        if self._kept is None:
            wanted, rows = np.unique(indices, return_inverse=True)
            images = self._decode(wanted)
        else:
            images, rows = self._kept, indices
            missing = np.unique(indices[~images.there[indices]])
            if missing.size:
                images.put(missing, self._decode(missing))
        batch = {"x": images.x[rows]}
        if self.labelled:
            batch["label"] = images.label[rows]
        return batch

    @cached_property
    def _kept(self) -> "_Images | None":
        small = self.length * int(np.prod(self.shape)) <= self.cache_bytes
        return _Images.empty(self.length, self.shape) if small else None

    def _decode(self, indices: np.ndarray) -> "_Images":
        images = _Images.empty(len(indices), self.shape)
        for row, (x, label) in enumerate(map_threads(self.load, indices.tolist(), self.threads)):
            images.x[row], images.label[row] = x, label
        return images


@dataclass(frozen=True, eq=False)
class _Images:
    """Images (n, ...) with their labels (n,), and which of them are there (n,)."""

    x: np.ndarray
    label: np.ndarray
    there: np.ndarray

    @classmethod
    def empty(cls, n: int, shape: tuple[int, ...]) -> "_Images":
        # The system gives memory as it is written to.
        return cls(np.empty((n, *shape), np.uint8), np.empty(n, np.int32), np.zeros(n, bool))

    def put(self, indices: np.ndarray, images: "_Images") -> None:
        self.x[indices], self.label[indices] = images.x, images.label
        self.there[indices] = True


def map_threads(f: Callable[[int], T], indices: Sequence[int], threads: int) -> list[T]:
    """[f(i) for i in indices], several at a time: Pillow decodes outside the interpreter's lock."""
    if threads <= 1 or len(indices) <= 1:
        return [f(i) for i in indices]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(f, indices))


def require_memory(what: str, needed: int) -> None:
    """DataError where `what` needs more bytes than this machine has."""
    try:
        check_memory(what, needed)
    except ValueError as error:
        raise DataError(str(error)) from error


def check_holdout(holdout: float) -> None:
    """DataError unless it is a share of the rows that leaves some."""
    if not 0 <= holdout < 1:
        raise DataError(f"holdout={holdout}: give the share of the rows kept for testing, at least 0 and below 1")


def split(source: Source, holdout: float) -> tuple[Source, Source]:
    """The (train, test) parts of a source that has no test split of its own: round(holdout·n) rows drawn without
    replacement with `SPLIT_SEED` are the test part, and both parts keep the source's order. Raises DataError where
    holdout is outside [0, 1) or leaves no row to train on.
    """
    n = len(source)
    check_holdout(holdout)
    held = round(holdout * n)
    if held >= n:
        raise DataError(f"holdout={holdout} of {n} rows leaves none to train on: give a smaller holdout or more data")
    test = np.zeros(n, bool)
    test[np.random.default_rng(SPLIT_SEED).permutation(n)[:held]] = True
    return Subset(source, np.flatnonzero(~test)), Subset(source, np.flatnonzero(test))
