"""What a training step sends between devices, read off its compiled program."""

import functools
import pathlib
import sys

import jax
import numpy as np

from diffuse_jax.config import build, override, read
from diffuse_jax.training import compile_step, make_mesh, train_step

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
import scaling

# Convolutions, attention and normalisations, which all could ask for other devices' rows.
TINY = ["--config.model.nf=8", "--config.model.ch_mult=(1,)", "--config.model.attn_resolutions=(8,)"]


def test_a_data_parallel_step_sends_its_gradient_and_its_loss_once_and_nothing_else():
    experiment = build(override(read("digits"), TINY))
    update = functools.partial(
        train_step, loss=experiment.loss, optimizer=experiment.optimizer, ema=experiment.ema, key=experiment.key
    )
    state = jax.eval_shape(experiment.create_state)
    batch = {"x": jax.ShapeDtypeStruct((1, 16, 8, 8, 1), np.uint8)}
    program = compile_step(update, make_mesh()).lower(state, batch).compile().as_text()
    gradient = sum(4 * leaf.size for leaf in jax.tree.leaves(state.params))
    assert scaling.collectives(program) == {"all-reduce": (1, gradient + 4)}


def test_results_of_operations_between_devices_are_counted_in_bytes():
    program = """
      %a = (f32[2,3]{1,0}, bf16[4]{0}) all-reduce(%x, %y), replica_groups={}
      %b = u8[] all-gather-start(%z)
      %c = f32[5]{0} add(%all-reduce.1, %d)
    """
    assert scaling.collectives(program) == {"all-reduce": (1, 4 * 6 + 2 * 4), "all-gather": (1, 1)}
