"""The loop around a compiled step: batches in, metrics and checkpoints out, and a clean end whatever ends it.

What the loop does to the state depends only on the state's step: a run that is stopped, or killed, and started again
from its last checkpoint computes the same bits as one that never stopped. For that, all that happens between steps
happens at multiples of `steps_per_call`, so that an interruption never changes which steps share one compiled call.
"""

import contextlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffuse_jax._progress import progress_bar
from diffuse_jax.checkpoints import Checkpoints
from diffuse_jax.training.logs import MetricLog
from diffuse_jax.training.sharding import batch_sharding, compile_step, global_batch, replicated, state_sharding
from diffuse_jax.training.state import TrainState
from diffuse_jax.training.step import Metrics, Occasional, StepFn

__all__ = ["Callback", "Interrupt", "NonFiniteLoss", "Outcome", "fit"]

# Calls under way on the devices: enough that they never wait for the host, few enough that batches do not pile up.
_IN_FLIGHT = 2


def _shown(name: str) -> bool:
    """Whether a number stands beside the progress bar."""
    return name in ("loss", "images_per_second") or name.endswith("/loss")


# (start, count) -> (start, the batches of `count` steps, stacked), (start + count, …), …
Feed = Callable[[int, int], Iterator[tuple[int, Any]]]


@dataclass(frozen=True)
class Callback:
    """`function(state, step)`, called after every multiple of `every` steps, returns scalars to log at that step.

    The state's arrays are donated to the next step: what is to last must be copied before the function returns.
    """

    every: int
    function: Callable[[TrainState, int], Mapping[str, float]]


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the state after the last step made, and whether a signal ended it early."""

    state: TrainState
    interrupted: bool


class NonFiniteLoss(FloatingPointError):
    """The run diverged: `step` is the first update that was not finite, `last_good` the latest checkpoint or None."""

    def __init__(self, what: str, step: int, last_good: int | None) -> None:
        self.step, self.last_good = step, last_good
        good = "there is no checkpoint" if last_good is None else f"the last good checkpoint is step {last_good}"
        super().__init__(f"{what} not finite at step {step}: {good}")


class Interrupt:
    """While it is entered, SIGTERM and SIGINT only set `requested`; a second SIGINT raises KeyboardInterrupt at once.

    The earlier handlers are put back at the end. Only the main thread may set handlers: elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


def fit(
    state: TrainState,
    step_fn: StepFn,
    batches: Feed,
    *,
    steps: int,
    mesh: Mesh,
    checkpoints: Checkpoints | None = None,
    workdir: str | os.PathLike[str] | None = None,
    steps_per_call: int = 1,
    log_every: int = 100,
    checkpoint_every: int = 1000,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> Outcome:
    """Trains from `state.step` to `steps`.

    SIGTERM and SIGINT end the run with a checkpoint, after the compiled call under way or, where any of several
    processes got the signal, in all of them two calls later. Several processes all call this, each with its rows and a
    state that lies on the mesh; process 0 writes and draws the bar.

    Args:
        state: The state to go on from, placed as `state_sharding` says. Its arrays are donated: do not use it again.
        step_fn: `step_fn(state, batch)` is one pure update, `train_step` with its keywords bound; it is compiled here.
        batches: `batches(start, K)` iterates over (start, tree), (start + K, tree), …, a tree holding this process's
            rows of K batches as NumPy arrays (K, rows, …), such as `prefetch` of `Batches`; closed at the end if it can
            be.
        steps: The step at which the run ends.
        mesh: The devices, of `make_mesh`.
        checkpoints: Where the state is saved, every `checkpoint_every` steps, at the end and on a signal; None saves
            nothing.
        workdir: The folder of metrics.jsonl and tensorboard/ (see `MetricLog`); None writes no files.
        steps_per_call: The number K of steps in one compiled call; all other numbers of steps are multiples of it.
        log_every: Steps between two lines of metrics: their means since the line before, and `images_per_second`.
        checkpoint_every: Steps between two checkpoints.
        callbacks: What else happens every so many steps; the scalars that they return are logged.
        progress: Draw a progress bar on stderr.

    Returns:
        The last state, and whether a signal ended the run early.

    Raises:
        ValueError: Naming the field, where `steps`, a cadence or the state's step is not a multiple of
            `steps_per_call`, the state is past `steps` or behind the latest checkpoint, or the batches end early or are
            not those asked for.
        NonFiniteLoss: Where a loss, a gradient, a parameter or what is carried beside them stops being finite:
            looked for at every line and before every save, so that no such state is saved.
        OSError: Naming the file, where one cannot be written.
    """
    start = step = int(state.step)
    cadences = {"log_every": log_every, "checkpoint_every": checkpoint_every}
    cadences |= {f"callbacks[{i}].every": callback.every for i, callback in enumerate(callbacks)}
    _check(start, steps, steps_per_call, cadences, checkpoints)
    # Placed as the step returns it, or the second call would be compiled anew.
    sharding = state_sharding(mesh, state)
    state = jax.jit(lambda s: s, donate_argnums=0, out_shardings=sharding)(state)
    call = compile_step(step_fn, mesh, sharding)
    agreement = _Agreement(mesh)
    silent = not progress or jax.process_index() != 0
    with (
        MetricLog(workdir, start) as log,
        progress_bar(total=steps, initial=start, unit="step", disable=silent) as bar,
        contextlib.closing(_feed(batches, start, steps, steps_per_call)) as feed,
        Interrupt() as interrupt,
    ):
        window = _Window(start)
        for batch in feed:
            arrays = global_batch(mesh, batch, scanned=True)
            state, metrics = call(state, arrays)
            step += steps_per_call
            window.add(metrics, images=steps_per_call * jax.tree.leaves(arrays)[0].shape[1])
            bar.update(steps_per_call)

            line = step % log_every == 0 or step == steps
            stop = agreement.stop(interrupt.requested)
            save = step % checkpoint_every == 0 or step == steps or stop
            due = [callback for callback in callbacks if step % callback.every == 0]
            if not (line or save or due):
                continue
            if (bad := window.read()) is not None:
                raise _diverged(f"{bad[0]} is", bad[1], checkpoints)
            scalars = window.means() if line else {}
            for callback in due:
                scalars |= callback.function(state, step)
            if scalars:
                log.write(step, scalars)
            if line:
                bar.set_postfix({name: f"{value:.4g}" for name, value in scalars.items() if _shown(name)})
                window.clear(step)
            if save and checkpoints is not None:
                _save(checkpoints, step, state)
            window.resume()
            if stop:
                break
        if checkpoints is not None:
            checkpoints.wait()
    return Outcome(state=state, interrupted=step < steps)


class _Window:
    """The metrics of the calls since the last line, left on the devices until they are read, and the calls' speed.

    The clock starts after the run's first call, which compiles, and stands still from `read` to `resume`.
    """

    def __init__(self, step: int) -> None:
        self._clock: float | None = None
        self._timed = 0
        self.clear(step)

    def clear(self, step: int) -> None:
        self._start = step
        self._calls: list[Mapping[str, Any]] = []
        self._images, self._seconds = 0, 0.0

    def add(self, metrics: Metrics, images: int) -> None:
        self._calls.append(metrics)
        if self._clock is None:
            jax.block_until_ready(metrics)
            self.resume()
            return
        self._timed += images
        if len(self._calls) > _IN_FLIGHT:
            jax.block_until_ready(self._calls[-1 - _IN_FLIGHT])

    def resume(self) -> None:
        self._clock, self._timed = time.perf_counter(), 0

    def read(self) -> tuple[str, int] | None:
        """Waits for the metrics and stops the clock; returns the first one that is not finite, with its step."""
        calls = jax.device_get(self._calls)
        values: dict[str, Any] = jax.tree.map(lambda *parts: np.concatenate(parts), *calls)
        self._calls = [values]
        if self._clock is not None:
            self._images += self._timed
            self._seconds += time.perf_counter() - self._clock
        bad = {name: np.flatnonzero(~np.isfinite(_numbers(column))) for name, column in values.items()}
        first = [(int(where[0]), name) for name, where in bad.items() if where.size]
        if not first:
            return None
        offset, name = min(first, key=lambda found: (found[0], not found[1].endswith("loss")))
        return name, self._start + offset + 1

    def means(self) -> dict[str, float]:
        made = {name: _made(column) for name, column in self._calls[0].items()}
        means = {name: float(np.mean(values, dtype=np.float64)) for name, values in made.items() if values.size}
        return means | ({"images_per_second": self._images / self._seconds} if self._images else {})


def _numbers(column: Any) -> np.ndarray:
    """The numbers of a metric (steps,), 0 where it was not made."""
    return np.asarray(column.value if isinstance(column, Occasional) else column)


def _made(column: Any) -> np.ndarray:
    """The numbers of a metric at the steps that made it."""
    return _numbers(column)[column.made] if isinstance(column, Occasional) else _numbers(column)


def _feed(batches: Feed, start: int, steps: int, count: int) -> Generator[Any, None, None]:
    """The batches of each call, checked to be the ones asked for; closes the iterator they come from."""
    source = batches(start, count)
    try:
        for expected in range(start, steps, count):
            item = next(source, None)
            if item is None:
                raise ValueError(f"the batches ended at step {expected}, before {steps = }")
            step, batch = item
            counts = {np.shape(leaf)[0] for leaf in jax.tree.leaves(batch)}
            if step != expected or counts != {count}:
                raise ValueError(f"asked for {count} batches from step {expected}, and got {counts} from step {step}")
            yield batch
    finally:
        close = getattr(source, "close", None)
        if close is not None:
            close()


class _Agreement:
    """Whether any process was asked to stop, in all of them after the same call, or their collectives would not meet.

    One process decides by itself. Of several each tells the others after every call, and looks at what they told as
    many calls ago as may be under way, which has arrived, so that nobody waits.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._rows = mesh.size // jax.process_count()
        self._any = jax.jit(jnp.any, out_shardings=replicated(mesh))
        self._told: deque[jax.Array] = deque()

    def stop(self, requested: bool) -> bool:
        if jax.process_count() == 1:
            return requested
        told = jax.make_array_from_process_local_data(batch_sharding(self._mesh), np.full(self._rows, requested))
        self._told.append(self._any(told))
        return len(self._told) > _IN_FLIGHT and bool(self._told.popleft())


@jax.jit
def _all_finite(trees: Any) -> jax.Array:
    floats = [leaf for leaf in jax.tree.leaves(trees) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]).all()


def _save(checkpoints: Checkpoints, step: int, state: TrainState) -> None:
    # The metrics of step n are those of the parameters before it: what it made of them is looked at here.
    if not _all_finite((state.params, state.ema, state.extra)):
        raise _diverged("the parameters are", step, checkpoints)
    checkpoints.save(step, state)


def _diverged(what: str, step: int, checkpoints: Checkpoints | None) -> NonFiniteLoss:
    if checkpoints is None:
        return NonFiniteLoss(what, step, None)
    checkpoints.wait()
    return NonFiniteLoss(what, step, checkpoints.latest_step())


def _check(
    start: int,
    steps: int,
    steps_per_call: int,
    cadences: Mapping[str, int],
    checkpoints: Checkpoints | None,
) -> None:
    if steps_per_call < 1:
        raise ValueError(f"{steps_per_call = } must be at least 1")
    for name, every in {"steps": steps, **cadences}.items():
        if every < 1 or every % steps_per_call:
            raise ValueError(f"{name} = {every} must be a positive multiple of {steps_per_call = }")
    if start % steps_per_call:
        raise ValueError(f"the state is at step {start}, which is not a multiple of {steps_per_call = }")
    if start > steps:
        raise ValueError(f"the state is at step {start}, past {steps = }")
    latest = None if checkpoints is None else checkpoints.latest_step()
    if latest is not None and latest > start:
        raise ValueError(
            f"the state is at step {start}, but its checkpoints go to step {latest}: "
            "restore that one, or use an empty directory"
        )
