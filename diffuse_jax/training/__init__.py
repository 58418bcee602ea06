"""Training: the state, one pure update, its compilation over devices, and the loop around it."""

from diffuse_jax.training.loop import Callback, NonFiniteLoss, Outcome, fit
from diffuse_jax.training.objectives import objective
from diffuse_jax.training.pmap import pmap_batched, pmap_step, replicate, unreplicate
from diffuse_jax.training.sharding import (
    batch_sharding,
    check_batch,
    compile_step,
    gathered,
    global_batch,
    make_mesh,
    make_state,
    replicated,
    split_over,
    state_sharding,
)
from diffuse_jax.training.state import TrainState, adam, create_state, ema_decay
from diffuse_jax.training.step import Rows, scan_steps, train_step

__all__ = [
    "Callback",
    "NonFiniteLoss",
    "Outcome",
    "Rows",
    "TrainState",
    "adam",
    "batch_sharding",
    "check_batch",
    "compile_step",
    "create_state",
    "ema_decay",
    "fit",
    "gathered",
    "global_batch",
    "make_mesh",
    "make_state",
    "objective",
    "pmap_batched",
    "pmap_step",
    "replicate",
    "replicated",
    "scan_steps",
    "split_over",
    "state_sharding",
    "train_step",
    "unreplicate",
]
