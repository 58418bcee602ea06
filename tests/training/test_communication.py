"""What a training step sends between devices, read off its compiled program."""

import math
import pathlib
import sys

import jax
import numpy as np

from diffuse_jax.config import build, override, read
from diffuse_jax.training import compile_step, make_mesh, state_sharding

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
import scaling

# Convolutions, attention and normalisations, which all could ask for other devices' rows.
TINY = ["--config.model.nf=8", "--config.model.ch_mult=(1,)", "--config.model.attn_resolutions=(8,)"]


def test_a_data_parallel_step_sends_its_gradient_and_its_loss_once_and_nothing_else():
    experiment = build(override(read("digits"), TINY))
    state = jax.eval_shape(experiment.create_state)
    batch = {"x": jax.ShapeDtypeStruct((1, 16, 8, 8, 1), np.uint8)}
    program = compile_step(experiment.update(), make_mesh()).lower(state, batch).compile().as_text()
    gradient = sum(4 * leaf.size for leaf in jax.tree.leaves(state.params))
    assert scaling.collectives(program) == {"all-reduce": (1, gradient + 4)}


def test_a_step_of_a_split_state_gathers_each_array_once_and_holds_its_share():
    experiment = build(override(read("digits"), [*TINY, "--config.model.nf=16"]))
    mesh = make_mesh(fsdp=8)
    abstract = jax.eval_shape(experiment.create_state)
    placed = state_sharding(mesh, abstract)
    batch = {"x": jax.ShapeDtypeStruct((1, 16, 8, 8, 1), np.uint8)}
    program = compile_step(experiment.update(mesh), mesh, placed).lower(abstract, batch).compile()
    leaves = zip(jax.tree.leaves(abstract.params), jax.tree.leaves(placed.params), strict=True)
    split = [leaf.size for leaf, place in leaves if any(place.spec)]
    sent = scaling.collectives(program.as_text())
    assert len(split) > 5 and sent["all-gather"] == (len(split), 4 * sum(split))
    assert set(sent) == {"all-gather", "all-reduce"}  # a CPU has no reduce-scatter
    shares = jax.tree.map(lambda leaf, place: 4 * math.prod(place.shard_shape(leaf.shape)), abstract, placed)
    share, whole = sum(jax.tree.leaves(shares)), sum(4 * leaf.size for leaf in jax.tree.leaves(abstract))
    memory = program.memory_analysis()
    assert memory.argument_size_in_bytes == share + 16 * 64 // 8
    assert memory.alias_size_in_bytes == share < whole / 2  # the new state takes the place of the old one


def test_results_of_operations_between_devices_are_counted_in_bytes():
    program = """
      %a = (f32[2,3]{1,0}, bf16[4]{0}) all-reduce(%x, %y), replica_groups={}
      %b = ((f32[2]{0}, u8[1]{0}), (f32[16]{0}, u8[8]{0})) all-gather-start(%z, %w)
      %c = f32[5]{0} add(%all-reduce.1, %d)
    """
    assert scaling.collectives(program) == {"all-reduce": (1, 4 * 6 + 2 * 4), "all-gather": (1, 4 * 16 + 8)}
