"""Training: the state, one pure update, its compilation over devices, and the loop around it."""

from diffuse_jax.training.loop import Callback, NonFiniteLoss, Outcome, fit
from diffuse_jax.training.method import Density, Draw, Drawn, Draws, Likelihoods, Loss, LossOutput, Method, Update
from diffuse_jax.training.optimizers import adam, adamw, radam
from diffuse_jax.training.pmap import pmap_batched, pmap_step, replicate, unreplicate
from diffuse_jax.training.runs import CHECKPOINTS, begin, first_state, run_key, train
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
from diffuse_jax.training.state import TrainState, create_state, ema_decay
from diffuse_jax.training.step import Metrics, Occasional, StepFn, scan_steps, step_draws, train_step

__all__ = [
    "CHECKPOINTS",
    "Callback",
    "Density",
    "Draw",
    "Drawn",
    "Draws",
    "Likelihoods",
    "Loss",
    "LossOutput",
    "Method",
    "Metrics",
    "NonFiniteLoss",
    "Occasional",
    "Outcome",
    "StepFn",
    "TrainState",
    "Update",
    "adam",
    "adamw",
    "batch_sharding",
    "begin",
    "check_batch",
    "compile_step",
    "create_state",
    "ema_decay",
    "first_state",
    "fit",
    "gathered",
    "global_batch",
    "make_mesh",
    "make_state",
    "pmap_batched",
    "pmap_step",
    "radam",
    "replicate",
    "replicated",
    "run_key",
    "scan_steps",
    "split_over",
    "state_sharding",
    "step_draws",
    "train",
    "train_step",
    "unreplicate",
]
