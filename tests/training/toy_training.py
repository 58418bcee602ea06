"""A two-layer network on random rows: small enough to train in a test, with all the randomness of the real thing.

As a program, `python toy_training.py WORKDIR STEPS [WIDTH FSDP [ADDRESS COUNT NUMBER]]` trains it from the last
checkpoint in WORKDIR, slowly, and writes the final state's bytes to WORKDIR/final.npz. With an address it is one of so
many processes. Each that is interrupted writes the step to WORKDIR/stopped.NUMBER.
"""

import pathlib
import sys
import time
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from diffuse_jax import training
from diffuse_jax.checkpoints import Checkpoints

ROWS = 16
OPTIMIZER = training.adam(1e-2, warmup=4, clip=1.0)
EMA = training.ema_decay(rate=0.9, batch_size=ROWS)


def params(dtype=np.float32, width: int = 8) -> dict:
    rng = np.random.default_rng(0)
    return {
        "in": {"kernel": jnp.asarray(rng.normal(size=(3, width)), dtype), "bias": jnp.zeros(width, dtype)},
        "out": {"kernel": jnp.asarray(rng.normal(size=(width, 3)), dtype)},
    }


def loss(params, extra, batch, draws: training.Draws, *, dropout: float = 0.5) -> training.LossOutput:
    """Each row predicts the noise it drew for itself, at its own stratified level."""
    rng = draws.rng
    x = batch["x"]
    eps = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), x.shape[1:], x.dtype))(draws.keys)
    u = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), dtype=x.dtype))(draws.keys)
    level = (draws.index + u) / draws.total
    hidden = jnp.tanh((x + level[:, None] * eps) @ params["in"]["kernel"] + params["in"]["bias"])
    if dropout:
        hidden = hidden * jax.random.bernoulli(rng, 1 - dropout, hidden.shape) / (1 - dropout)
    return training.LossOutput(jnp.sum(jnp.square(hidden @ params["out"]["kernel"] - eps), axis=-1))


UPDATES = (training.Update(loss, OPTIMIZER),)


def step(axis_name: str | None = None, accumulate: int = 1, mesh=None, **loss_options):
    updates = (training.Update(partial(loss, **loss_options), OPTIMIZER),)
    return partial(
        training.train_step,
        updates=updates if mesh is None else training.gathered(updates, mesh),
        ema=EMA,
        key=jax.random.key(3),
        axis_name=axis_name,
        accumulate=accumulate,
    )


def state(dtype=np.float32, width: int = 8) -> training.TrainState:
    return training.create_state(params(dtype, width), UPDATES)


def batch(step: int, dtype=np.float32) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng([7, step]).normal(size=(ROWS, 3)).astype(dtype)}


def stacked(start: int, count: int, dtype=np.float32) -> dict[str, np.ndarray]:
    return {"x": np.stack([batch(i, dtype)["x"] for i in range(start, start + count)])}


def feed(
    start: int, count: int, *, pause: float = 0.0, dtype=np.float32
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    share = ROWS // jax.process_count()
    own = slice(share * jax.process_index(), share * (jax.process_index() + 1))
    while True:
        time.sleep(pause)
        yield start, {"x": stacked(start, count, dtype)["x"][:, own]}
        start += count


def main(workdir: str, steps: str, width: str = "8", fsdp: str = "1", *who: str) -> None:
    if who:
        address, count, number = who
        jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM
        jax.distributed.initialize(address, int(count), int(number), initialization_timeout=60)
    dtype = np.float64 if jax.config.jax_enable_x64 else np.float32
    mesh = training.make_mesh(fsdp=int(fsdp))
    create = partial(state, dtype, int(width))
    folder = pathlib.Path(workdir)
    with Checkpoints(folder / "checkpoints", keep=2) as checkpoints:
        if checkpoints.latest_step() is None:
            start = training.make_state(create, mesh)
        else:
            abstract = jax.eval_shape(create)
            start = checkpoints.restore(abstract, sharding=training.state_sharding(mesh, abstract))
        outcome = training.fit(
            start,
            step(mesh=mesh),
            partial(feed, pause=0.02, dtype=dtype),
            steps=int(steps),
            mesh=mesh,
            checkpoints=checkpoints,
            workdir=folder,
            steps_per_call=2,
            log_every=2,
            checkpoint_every=4,
            progress=False,
        )
    if outcome.interrupted:
        (folder / f"stopped.{jax.process_index()}").write_text(str(int(outcome.state.step)))
    final = multihost_utils.process_allgather(outcome.state, tiled=True)
    if jax.process_index() == 0:
        leaves = jax.tree_util.tree_flatten_with_path(final)[0]
        np.savez(folder / "final.npz", **{jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves})


if __name__ == "__main__":
    main(*sys.argv[1:])
