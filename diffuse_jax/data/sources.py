"""What a data set is: sources of rows that are read by an array of indices, on the host, as NumPy arrays.

A source knows nothing of order, batches or devices; `Batches` gives it the indices of a step. A row is `x` (uint8
NHWC, or a float32 vector) and, where asked for, its conditions: `label` (int32), `image` (uint8 NHWC) and `tokens`
(int32, 0 is padding). What a user got wrong about data is a `DataError`, with a message of one line that says what was
given and what would do.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from diffuse_jax._memory import check_memory
from diffuse_jax.conditions import Condition

T = TypeVar("T")

#: The conditions that a row may have.
CONDITIONS = ("label", "image", "tokens")
SPLIT_SEED = 0
CACHE_BYTES = 2**30
THREADS = min(16, os.cpu_count() or 1)


class DataError(ValueError):
    """Data that cannot be used as given: an unknown name, a broken file, data that was never prepared."""


class Source(Protocol):
    """Random access to n rows: `source[indices]` takes an integer array (k,) and returns {"x": (k, ...)} and, by
    their names, the rows' conditions, each leading with k.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class Dataset:
    """A named pair of sources.

    Args:
        name: What the data are called.
        train: The rows to train on.
        test: The rows held out.
        shape: The shape of one x.
        levels: The number of grey levels of discrete data (256, or 17 for the digits); None where the data are
            continuous.
        conditions: What else a row carries, by name: the shape of one and the number of its values.
    """

    name: str
    train: Source
    test: Source
    shape: tuple[int, ...]
    levels: int | None
    conditions: Mapping[str, Condition]

    @property
    def num_classes(self) -> int | None:
        """The number of classes of the labels, None where the rows carry none."""
        return self.conditions["label"].values if "label" in self.conditions else None


@dataclass(frozen=True, eq=False)
class Arrays:
    """Rows held in memory: `x` (n, ...), and `label` (n,), `image` (n, h, w, c) and `tokens` (n, length), each perhaps
    None."""

    x: np.ndarray
    label: np.ndarray | None = None
    image: np.ndarray | None = None
    tokens: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        rows = {"x": self.x[indices]}
        if self.label is not None:
            rows["label"] = self.label[indices].astype(np.int32)
        if self.image is not None:
            rows["image"] = self.image[indices]
        if self.tokens is not None:
            rows["tokens"] = self.tokens[indices].astype(np.int32)
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
    """`length` images of one `shape`, decoded when they are first read by `load(i) -> {"x": image, …}`, several at a
    time on `threads` threads. A row has `conditions` beside its image.

    Where the whole set fits into `cache_bytes` every decoded row is kept, so that only the first epoch pays for
    decoding; a larger set is decoded batch by batch. `load` must be pure and safe to call from several threads.
    """

    load: Callable[[int], Mapping[str, ArrayLike]]
    length: int
    shape: tuple[int, ...]
    conditions: Mapping[str, Condition] = field(default_factory=dict)
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
        return {name: values[rows] for name, values in images.arrays.items()}

    @cached_property
    def _kept(self) -> "_Rows | None":
        one = _Rows.empty(1, self.shape, self.conditions)
        small = self.length * sum(values.nbytes for values in one.arrays.values()) <= self.cache_bytes
        return _Rows.empty(self.length, self.shape, self.conditions) if small else None

    def _decode(self, indices: np.ndarray) -> "_Rows":
        images = _Rows.empty(len(indices), self.shape, self.conditions)
        for row, values in enumerate(map_threads(self.load, indices.tolist(), self.threads)):
            for name, array in images.arrays.items():
                array[row] = values[name]
        return images


@dataclass(frozen=True, eq=False)
class _Rows:
    """Arrays (n, …) by name, and which of their rows are there (n,)."""

    arrays: dict[str, np.ndarray]
    there: np.ndarray

    @classmethod
    def empty(cls, n: int, shape: tuple[int, ...], conditions: Mapping[str, Condition]) -> "_Rows":
        # The system gives memory as it is written to.
        arrays = {"x": np.empty((n, *shape), np.uint8)}
        for name, condition in conditions.items():
            arrays[name] = np.empty((n, *condition.shape), np.uint8 if name == "image" else np.int32)
        return cls(arrays, np.zeros(n, bool))

    def put(self, indices: np.ndarray, rows: "_Rows") -> None:
        for name, array in self.arrays.items():
            array[indices] = rows.arrays[name]
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


def count_classes(labels: np.ndarray, num_classes: int | None, name: str) -> int:
    """The number of classes of labels (n,), one more than the largest where `num_classes` does not give it. DataError
    where most of these classes have no row, unless their number is given, and where it is given too small."""
    seen = np.unique(labels)
    largest = int(seen.max(initial=-1))
    if num_classes is None and 2 * len(seen) <= largest:
        raise DataError(
            f"{name} has a label {largest} and {len(seen)} distinct ones, so that most of {largest + 1} classes would "
            f"have no row: number them from 0 on without gaps, or give num_classes={largest + 1}"
        )
    if num_classes is not None and num_classes <= largest:
        raise DataError(f"{name}: num_classes={num_classes} with a label {largest}: give at least {largest + 1}")
    return num_classes or largest + 1


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
