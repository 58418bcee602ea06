"""The order in which rows are read: in every epoch a fresh permutation, of which any part can be had by itself.

Place i of an epoch holds row P(i), P being a block cipher on b bits, 2^b ≥ n, applied until its value is below n (cycle
walking: Black & Rogaway, Ciphers with Arbitrary Finite Domains, 2002, §4). The cipher is four rounds of Simon's
(Beaulieu et al., eprint 2013/404) on halves of w = b/2 ≥ 8 bits,

    (x, y) ← (y ⊕ F(x) ⊕ k, x),    F(x) = ((x ⋘ 1) & (x ⋘ 8)) ⊕ (x ⋘ 2),

whose keys k are C++'s `std::seed_seq` of the epoch's seed. It is the order of grain's
`MapDataset.seed(seed).shuffle().repeat()`, computed for a block of places at a time. Where n − 1 = 4^k with k ≥ 8 that
reads one row twice and one never, its b being too small by 2; here it is a permutation.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

_FEWEST_BITS = 16
_BLOCK = 2**16


@dataclass(frozen=True)
class Order:
    """An endless list of epochs, each a permutation of 0 … n − 1, that is a function of the seed ≥ 0 alone."""

    n: int
    seed: int

    @cached_property
    def _seed_of_first_epoch(self) -> int:
        return int(np.random.SeedSequence([self.seed, 1]).generate_state(1)[0])

    def rows(self, first: int, stop: int) -> np.ndarray:
        """Places first … stop − 1 of the list, (stop − first,) int64."""
        parts = []
        while first < stop:
            epoch, place = divmod(first, self.n)
            block, offset = divmod(place, _BLOCK)
            seed = (self._seed_of_first_epoch + epoch) % 2**32
            part = _permuted(self.n, seed, block)[offset : offset + stop - first]
            parts.append(part)
            first += len(part)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)


@lru_cache(maxsize=8)
def _permuted(n: int, seed: int, block: int) -> np.ndarray:
    """The rows at the places [block·`_BLOCK`, (block + 1)·`_BLOCK`) of the n of an epoch; read only."""
    if n == 1:
        return np.zeros(1, np.int64)
    bits = max(_FEWEST_BITS, (n - 1).bit_length())
    half, keys = (bits + 1) // 2, _keys(seed)
    places = np.arange(block * _BLOCK, min(n, (block + 1) * _BLOCK))
    rows = _walk_table(n, half, keys) if bits == _FEWEST_BITS else _walk(places, n, half, keys)
    rows.flags.writeable = False
    return rows


def _walk(places: np.ndarray, n: int, half: int, keys: list[int]) -> np.ndarray:
    """Four times as many values as places at most: few places take a second turn, fewer a third."""
    rows = _encrypt(places, half, keys)
    outside = np.flatnonzero(rows >= n)
    while outside.size:
        again = _encrypt(rows[outside], half, keys)
        rows[outside] = again
        outside = outside[again >= n]
    return rows


def _walk_table(n: int, half: int, keys: list[int]) -> np.ndarray:
    """All n places at once, where values may be outside for thousands of turns: from a table of what a value becomes in
    1, 2, 4, … turns, or sooner if it is below n sooner."""
    value = np.arange(4**half)
    once = _encrypt(value, half, keys)
    rows, turns = once[:n], np.where(value < n, value, once).astype(np.uint16)
    while (rows >= n).any():
        rows, turns = turns[rows], turns[turns]
    return rows.astype(np.int64)


def _encrypt(value: np.ndarray, half: int, keys: list[int]) -> np.ndarray:
    kind = np.uint32 if half <= 16 else np.uint64
    mask = 2**half - 1
    y, x = (value >> half).astype(kind), (value & mask).astype(kind)
    for key in keys:
        mixed = _rotated(x, 1, half) & _rotated(x, 8, half) ^ _rotated(x, 2, half)
        x, y = (y ^ mixed ^ kind(key & mask)) & kind(mask), x
    return y.astype(np.int64) << half | x.astype(np.int64)


def _rotated(x: np.ndarray, by: int, half: int) -> np.ndarray:
    """x ⋘ by in the lowest `half` bits; above them stands rubbish."""
    return x << by | x >> (half - by)


def _keys(seed: int) -> list[int]:
    """Four words of `std::seed_seq{seed}` (C++ standard, [rand.util.seedseq])."""
    words, low = [0x8B8B8B8B] * 4, 2**32 - 1
    for k in range(4):
        mixed = words[k] ^ words[(k + 1) % 4] ^ words[k - 1]
        first = 1664525 * (mixed ^ mixed >> 27) & low
        second = first + (1, 1 + seed, 2, 3)[k] & low
        words[(k + 1) % 4] = words[(k + 1) % 4] + first & low
        words[(k + 2) % 4] = words[(k + 2) % 4] + second & low
        words[k] = second
    for k in range(4):
        mixed = words[k] + words[(k + 1) % 4] + words[k - 1] & low
        first = 1566083941 * (mixed ^ mixed >> 27) & low
        second = first - k & low
        words[(k + 1) % 4] ^= first
        words[(k + 2) % 4] ^= second
        words[k] = second
    return words
