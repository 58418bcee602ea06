"""Two players of a bilinear–quadratic game, whose iterates are those of a recursion.

    f(x, y) = ½·A·x² + B·x·y − ½·C·y² + (u + ξ)·x + v·y

x descends f at every step; y ascends it at every other one, and sees the x that was just made. u is the mean of the
batch, ξ noise from the rows' keys, and v a running mean of u that the first player keeps in `extra`.

As a program, `python game.py WORKDIR STEPS [ADDRESS COUNT NUMBER]` trains it from the last checkpoint in WORKDIR,
slowly, and writes the final state's bytes to WORKDIR/final.npz. With an address it is one of so many processes. Each
that is interrupted writes the step to WORKDIR/stopped.NUMBER.
"""

import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from diffuse_jax import training
from diffuse_jax.data import from_arrays

A, B, C, RATE_X, RATE_Y, KEPT, EVERY, ROWS = 0.5, 1.0, 0.25, 0.1, 0.2, 0.8, 2, 16


def payoff(params):
    x, y = params["x"], params["y"]
    return jnp.sum(A / 2 * x**2 + B * x * y - C / 2 * y**2)


def descend(params, extra, batch, draws: training.Draws) -> training.LossOutput:
    u = batch["x"][:, 0]
    xi = jax.vmap(lambda key: jax.random.normal(key, (), u.dtype))(draws.stream(0))
    each = payoff(params) + (u + xi) * jnp.sum(params["x"])
    mean = KEPT * extra["mean"] + (1 - KEPT) * jnp.mean(u)
    return training.LossOutput(each, {"noise": xi}, {"mean": mean})


def ascend(params, extra, batch, draws: training.Draws) -> training.LossOutput:
    value = payoff(params) + extra["mean"] * jnp.sum(params["y"])
    return training.LossOutput(jnp.full(draws.index.shape, -value), {"y": params["y"][0]})


def updates(every: int = EVERY) -> tuple[training.Update, ...]:
    return (
        training.Update(descend, optax.sgd(RATE_X), of=("x",), name="x"),
        training.Update(ascend, optax.sgd(RATE_Y), of=("y",), every=every, name="y"),
    )


def start(width: int = 1, dtype=jnp.float32):
    """(params, extra) of players that are vectors of `width` equal numbers."""
    players = {"x": jnp.full(width, 1.0, dtype), "y": jnp.full(width, -0.5, dtype)}
    return players, {"mean": jnp.zeros((), dtype), "frozen": jnp.arange(3, dtype=jnp.int32)}


METHOD = training.Method(
    init=lambda key: start(),
    updates=updates(),
    ema=training.ema_decay(rate=0.9, batch_size=ROWS),
    model=lambda params, extra: params,
)


def recursion(inputs: np.ndarray, noise: np.ndarray, every: int = EVERY) -> list[tuple[float, float, float]]:
    """(x, y, v) after each step, of the means of the batches (steps,) and of the noise (steps,)."""
    x, y, v, after = 1.0, -0.5, 0.0, []
    for n, (u, xi) in enumerate(zip(inputs, noise, strict=True)):
        x -= RATE_X * (A * x + B * y + u + xi)
        v = KEPT * v + (1 - KEPT) * u
        if n % every == 0:
            y += RATE_Y * (B * x - C * y + v)
        after.append((x, y, v))
    return after


def main(workdir: str, steps: str, *who: str) -> None:
    if who:
        address, count, number = who
        jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM
        jax.distributed.initialize(address, int(count), int(number), initialization_timeout=60)
    folder = pathlib.Path(workdir)
    data = from_arrays({"x": np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)})
    slow = training.Callback(2, lambda state, step: time.sleep(0.02) or {})
    outcome = training.train(
        METHOD,
        data,
        folder,
        steps=int(steps),
        batch_size=ROWS,
        seed=3,
        steps_per_call=2,
        log_every=2,
        checkpoint_every=4,
        keep=2,
        callbacks=[slow],
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
