"""A run from Python: a method trained on a data set in a folder, from its last checkpoint where there is one."""

import contextlib
import functools
import os
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from diffuse_jax.checkpoints import CheckpointError, Checkpoints
from diffuse_jax.data.batches import Batches, prefetch
from diffuse_jax.data.sources import Dataset
from diffuse_jax.training.loop import Callback, Outcome, fit
from diffuse_jax.training.method import Method
from diffuse_jax.training.sharding import check_batch, gathered, make_mesh, make_state, state_sharding
from diffuse_jax.training.state import TrainState, create_state
from diffuse_jax.training.step import train_step

__all__ = ["CHECKPOINTS", "begin", "first_state", "run_key", "train"]

#: The folder of a run's checkpoints.
CHECKPOINTS = "checkpoints"


def run_key(seed: int, purpose: int) -> jax.Array:
    """The key of what is random in a run of that seed: purpose 0 is its initial parameters, 1 its steps."""
    # From the end of the numbers: those from 0 on are the keys of samples of the same seed (`sample_keys`).
    return jax.random.fold_in(jax.random.key(seed), np.uint32(2**32 - 1 - purpose))


def first_state(method: Method, seed: int) -> TrainState:
    """The state at step 0 of a run of that seed."""
    params, extra = method.init(run_key(seed, 0))
    return create_state(params, method.updates, extra)


def train(
    method: Method,
    dataset: Dataset,
    workdir: str | os.PathLike[str] | None = None,
    *,
    steps: int,
    batch_size: int = 128,
    seed: int = 0,
    mesh: Mesh | None = None,
    accumulate: int = 1,
    steps_per_call: int = 1,
    log_every: int = 100,
    checkpoint_every: int = 500,
    keep: int = 3,
    keep_every: int | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    checkpoints: Checkpoints | None = None,
    state: TrainState | None = None,
) -> Outcome:
    """Trains a method, or goes on from the last checkpoint in `workdir`, to the bit as if it had never stopped. SIGTERM
    and SIGINT end it with a checkpoint. Several processes all call this.

    Args:
        method: What is trained, such as `methods.denoising(sde, net, codec)`.
        dataset: The data, such as `load_dataset("digits")`.
        workdir: The folder of checkpoints/, metrics.jsonl and tensorboard/; None writes no files.
        steps: The step at which the run ends.
        batch_size: The rows of a global batch.
        seed: The seed of initial parameters, the order of the data, and all that is random in a step.
        mesh: The devices, of `make_mesh`; None is all of them.
        accumulate: The parts of a batch that a step goes through one after the other.
        steps_per_call: Steps in one compiled call; all other numbers of steps are multiples of it.
        log_every: Steps between two lines of metrics.
        checkpoint_every: Steps between two checkpoints.
        keep: Checkpoints kept: the latest.
        keep_every: And every so many steps; None: no others.
        callbacks: What else happens every so many steps.
        progress: Draw a progress bar on stderr.
        checkpoints: Those of the run where they are open already; None opens them.
        state: What to begin with, where `begin` has made it already; it is donated.

    Returns:
        The last state, of which `method.model(state.ema, state.extra)` is what was trained, and whether a signal ended
            the run early.

    Raises:
        ValueError: Naming the argument that cannot be, as `fit` does.
        CheckpointError: Where the checkpoints in `workdir` are of another method or network.
        NonFiniteLoss: Where the run diverged.
    """
    mesh = make_mesh() if mesh is None else mesh
    check_batch(batch_size, mesh.size, accumulate)
    step_fn = functools.partial(
        train_step,
        updates=gathered(method.updates, mesh),
        ema=method.ema,
        key=run_key(seed, 1),
        accumulate=accumulate,
    )
    batches = Batches(dataset.train, batch_size, seed, jax.process_index(), jax.process_count())
    with contextlib.ExitStack() as held:
        if checkpoints is None and workdir is not None:
            folder = pathlib.Path(workdir) / CHECKPOINTS
            checkpoints = held.enter_context(Checkpoints(folder, keep=keep, keep_every=keep_every))
        return fit(
            begin(method, checkpoints, seed=seed, mesh=mesh) if state is None else state,
            step_fn,
            lambda start, count: prefetch(batches, start, steps, count=count),
            steps=steps,
            mesh=mesh,
            checkpoints=checkpoints,
            workdir=workdir,
            steps_per_call=steps_per_call,
            log_every=log_every,
            checkpoint_every=checkpoint_every,
            callbacks=callbacks,
            progress=progress,
        )


def begin(method: Method, checkpoints: Checkpoints | None, *, seed: int, mesh: Mesh) -> TrainState:
    """The state that a run begins with.

    Args:
        method: What is trained.
        checkpoints: Those of the run; None, or a folder without any, begins anew.
        seed: The seed of the run, of which a new state is made (`first_state`).
        mesh: The devices, of `make_mesh`.

    Returns:
        The state of the last checkpoint, or a new one, placed as `state_sharding` says.

    Raises:
        CheckpointError: Where a checkpoint cannot be read, or is of another method or network.
    """

    def create() -> TrainState:
        return first_state(method, seed)

    if checkpoints is None or (step := _agreed(checkpoints.latest_step())) is None:
        return make_state(create, mesh)
    abstract = jax.eval_shape(create)
    state: TrainState = checkpoints.restore(abstract, step, state_sharding(mesh, abstract))
    if int(state.step) != step:
        raise CheckpointError(
            f"{checkpoints.directory / str(step)} holds step {int(state.step)}: give the folder that name again"
        )
    return state


def _agreed(step: int | None) -> int | None:
    """What process 0 sees: the others may see a folder later."""
    if jax.process_count() == 1:
        return step
    told = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if step is None else step)))
    return None if told < 0 else told
