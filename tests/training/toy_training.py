"""A two-layer network on random rows: small enough to train in a test, with all the randomness of the real thing.

As a program, `python toy_training.py WORKDIR STEPS` trains it from the last checkpoint in WORKDIR, slowly, and writes
the final state's bytes to WORKDIR/final.npz.
"""

import pathlib
import sys
import time
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from diffuse_jax import training
from diffuse_jax.checkpoints import Checkpoints

ROWS = 16
OPTIMIZER = training.adam(1e-2, warmup=4, clip=1.0)
EMA = training.ema_decay(rate=0.9, batch_size=ROWS)


def params(dtype=np.float32) -> dict:
    rng = np.random.default_rng(0)
    return {
        "in": {"kernel": jnp.asarray(rng.normal(size=(3, 8)), dtype), "bias": jnp.zeros(8, dtype)},
        "out": {"kernel": jnp.asarray(rng.normal(size=(8, 3)), dtype)},
    }


def loss(params, batch, rows: training.Rows, rng, *, dropout: float = 0.5):
    """Each row predicts the noise it drew for itself, at its own stratified level; (B,)."""
    x = batch["x"]
    eps = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), x.shape[1:], x.dtype))(rows.keys)
    u = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), dtype=x.dtype))(rows.keys)
    level = (rows.index + u) / rows.total
    hidden = jnp.tanh((x + level[:, None] * eps) @ params["in"]["kernel"] + params["in"]["bias"])
    if dropout:
        hidden = hidden * jax.random.bernoulli(rng, 1 - dropout, hidden.shape) / (1 - dropout)
    return jnp.sum(jnp.square(hidden @ params["out"]["kernel"] - eps), axis=-1)


def step(axis_name: str | None = None, accumulate: int = 1, **loss_options):
    return partial(
        training.train_step,
        loss=partial(loss, **loss_options),
        optimizer=OPTIMIZER,
        ema=EMA,
        key=jax.random.key(3),
        axis_name=axis_name,
        accumulate=accumulate,
    )


def state(dtype=np.float32) -> training.TrainState:
    return training.create_state(params(dtype), OPTIMIZER)


def batch(step: int, dtype=np.float32) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng([7, step]).normal(size=(ROWS, 3)).astype(dtype)}


def stacked(start: int, count: int, dtype=np.float32) -> dict[str, np.ndarray]:
    return {"x": np.stack([batch(i, dtype)["x"] for i in range(start, start + count)])}


def feed(start: int, count: int, *, pause: float = 0.0) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    while True:
        time.sleep(pause)
        yield start, stacked(start, count)
        start += count


def main(workdir: str, steps: str) -> None:
    mesh = training.make_mesh()
    folder = pathlib.Path(workdir)
    with Checkpoints(folder / "checkpoints", keep=2) as checkpoints:
        start = jax.jit(state, out_shardings=training.replicated(mesh))()
        if checkpoints.latest_step() is not None:
            start = checkpoints.restore(start, sharding=training.replicated(mesh))
        outcome = training.fit(
            start,
            step(),
            partial(feed, pause=0.02),
            steps=int(steps),
            mesh=mesh,
            checkpoints=checkpoints,
            workdir=folder,
            steps_per_call=2,
            log_every=2,
            checkpoint_every=4,
            progress=False,
        )
    leaves = jax.tree_util.tree_flatten_with_path(outcome.state)[0]
    np.savez(folder / "final.npz", **{jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves})


if __name__ == "__main__":
    main(*sys.argv[1:])
