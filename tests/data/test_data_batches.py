"""Order, shards, resuming and reading ahead."""

import threading

import numpy as np
import pytest

from diffuse_jax.data import Batches, prefetch, stack
from diffuse_jax.data.sources import Arrays

COUNT = Arrays(np.arange(10, dtype=np.float32)[:, None])


def order(batches, steps):
    return np.concatenate([batches[i]["x"][:, 0] for i in range(steps)]).astype(int)


@pytest.mark.parametrize("batch_size", [2, 4, 25])
def test_every_epoch_is_a_fresh_permutation_whatever_the_batch(batch_size):
    epochs = order(Batches(COUNT, batch_size, seed=3), 100 // batch_size).reshape(10, 10)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(10), (10, 1)))
    assert len(set(map(tuple, epochs))) == 10


def test_the_order_does_not_depend_on_the_batch_size_but_on_the_seed():
    one, other, seeded = (order(Batches(COUNT, b, seed=s), 40 // b) for b, s in ((4, 0), (10, 0), (10, 1)))
    np.testing.assert_array_equal(one, other)
    assert (one != seeded).any()


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_shares_of_all_processes_make_up_the_same_global_batch(processes):
    whole = Batches(COUNT, 8, seed=5)
    shares = [Batches(COUNT, 8, 5, p, processes) for p in range(processes)]
    for step in (0, 1, 7):
        joined = np.concatenate([share[step]["x"] for share in shares])
        np.testing.assert_array_equal(joined, whole[step]["x"])
        assert len({len(share.indices(step)) for share in shares}) == 1


def test_a_resumed_run_reads_what_an_unbroken_one_would_have_read():
    unbroken = [b["x"] for _, b in prefetch(Batches(COUNT, 4, seed=7), 0, 9)]
    resumed = [b["x"] for _, b in prefetch(Batches(COUNT, 4, seed=7), 5, 9)]
    np.testing.assert_array_equal(unbroken[5:], resumed)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_size": 6, "process_count": 4}, "batch_size=6 .* process_count=4"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 4, "process_index": 2, "process_count": 2}, "process_index=2"),
        ({"batch_size": 4, "seed": -1}, "seed=-1"),
        ({"batch_size": 4, "source": Arrays(np.empty((0, 1)))}, "no rows"),
    ],
)
def test_batches_that_cannot_be_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Batches(**({"source": COUNT, "seed": 0} | arguments))


def test_a_stack_is_consecutive_batches_and_prefetch_gives_them_by_the_step():
    batches = Batches(COUNT, 4, seed=0)
    np.testing.assert_array_equal(stack(batches, 3, 2)["x"], [batches[3]["x"], batches[4]["x"]])
    stacks = list(prefetch(batches, 1, 8, count=3))
    assert [(step, len(b["x"])) for step, b in stacks] == [(1, 3), (4, 3), (7, 1)]
    np.testing.assert_array_equal(np.concatenate([b["x"] for _, b in stacks]), [batches[i]["x"] for i in range(1, 8)])


class Recorder:
    """Batches that write down who reads which step, and fail at one of them."""

    def __init__(self, fails_at=None):
        self.fails_at, self.steps, self.threads = fails_at, [], set()

    def __getitem__(self, step):
        self.steps.append(step)
        self.threads.add(threading.current_thread())
        if step == self.fails_at:
            raise OSError(f"step {step} is lost")
        return {"x": np.array([step])}


def test_prefetch_yields_every_step_once_in_order_from_one_other_thread():
    recorder = Recorder()
    seen = [(step, int(b["x"][0])) for step, b in prefetch(recorder, 3, 9, depth=4)]
    assert seen == [(i, i) for i in range(3, 9)]
    assert recorder.steps == list(range(3, 9))
    assert len(recorder.threads) == 1
    assert threading.current_thread() not in recorder.threads
    assert list(prefetch(recorder, 9, 9)) == []


def test_prefetch_raises_what_a_batch_raised_at_its_step_and_ends_its_thread():
    recorder, seen = Recorder(fails_at=4), []
    with pytest.raises(OSError, match="step 4 is lost"):
        for step, _ in prefetch(recorder, 0, 100):
            seen.append(step)
    assert seen == [0, 1, 2, 3]
    assert not any(t.is_alive() for t in recorder.threads)


def test_prefetch_closed_early_stops_reading_and_ends_its_thread():
    recorder = Recorder()
    ahead = prefetch(recorder, 0, 10**9, depth=3)
    assert [next(ahead)[0] for _ in range(2)] == [0, 1]
    ahead.close()
    assert not any(t.is_alive() for t in recorder.threads)
    assert len(recorder.steps) <= 2 + 3


def test_a_depth_of_none_is_refused():
    with pytest.raises(ValueError, match="depth=0"):
        prefetch(Recorder(), 0, 1, depth=0)
