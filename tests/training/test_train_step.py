"""What a loss is told of its rows, and that scanning, sharding, `jit` and `pmap` are the same steps."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_training as toy
from jax.sharding import PartitionSpec
from tiers import proof

from diffuse_jax import VP, NetworkDenoiser, solvers, times, training
from diffuse_jax.evaluation import Sampler
from diffuse_jax.methods import solver_draw
from diffuse_jax.training.step import step_draws

# Kernels of (3, 1024) and (1024, 3) are large enough to be split.
WIDE = 1024


@functools.cache
def compiled(devices, dropout, accumulate, fsdp, width):
    mesh = training.make_mesh(jax.devices()[:devices], fsdp)
    sharding = training.state_sharding(mesh, jax.eval_shape(functools.partial(toy.state, width=width)))
    step = toy.step(dropout=dropout, accumulate=accumulate, mesh=mesh)
    return mesh, sharding, training.compile_step(step, mesh, sharding)


def run(devices, steps, per_call, *, dtype=np.float32, dropout=0.5, accumulate=1, fsdp=1, width=8):
    """The state after `steps` from the toy's start, and the metrics of all of them, on that many devices."""
    mesh, sharding, call = compiled(devices, dropout, accumulate, fsdp, width)
    state, metrics = jax.device_put(toy.state(dtype, width), sharding), []
    for start in range(0, steps, per_call):
        batches = training.global_batch(mesh, toy.stacked(start, per_call, dtype), scanned=True)
        state, values = call(state, batches)
        metrics.append(values)
    return jax.device_get(state), jax.tree.map(lambda *x: np.concatenate(x), *metrics)


def test_rows_and_dropout_draw_from_keys_that_never_meet():
    key = jax.random.key(0)
    data = [jax.random.key_data(jax.random.split(key, 4))]
    for step in range(3):
        draws = step_draws(key, jnp.int32(step), 64)
        data += [jax.random.key_data(draws.keys), jax.random.key_data(draws.rng)[None]]
        expected = jax.random.fold_in(jax.random.fold_in(key, step), 5)
        assert jnp.array_equal(jax.random.key_data(draws.keys[5]), jax.random.key_data(expected))
    distinct = np.unique(np.concatenate(data[1:]), axis=0)
    assert len(distinct) == 3 * 65


def test_a_row_draws_the_same_whatever_the_size_of_its_batch():
    small, large = (step_draws(jax.random.key(1), jnp.int32(4), n) for n in (8, 32))
    np.testing.assert_array_equal(jax.random.key_data(small.keys), jax.random.key_data(large.keys[:8]))
    assert (small.total, large.total) == (8, 32)


def test_the_metrics_are_the_mean_loss_and_the_norm_before_clipping():
    state, batch = toy.state(), toy.batch(0)
    _, metrics = jax.jit(toy.step())(state, batch)
    draws = step_draws(jax.random.key(3), state.step, toy.ROWS)
    value, gradient = jax.jit(jax.value_and_grad(lambda p: toy.loss(p, {}, batch, draws).each.mean()))(state.params)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(gradient)))
    assert norm > 1  # the toy clips at 1
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-6)
    assert all(m.dtype == jnp.float32 and m.shape == () for m in metrics.values())


def test_a_loss_that_is_not_one_value_a_row_is_refused():
    updates = (training.Update(lambda *args: training.LossOutput(jnp.zeros(())), toy.OPTIMIZER),)
    step = functools.partial(toy.step(), updates=updates)
    with pytest.raises(ValueError, match=r"one value a row, shape \(16,\), not \(\)"):
        step(toy.state(), toy.batch(0))


def test_scanned_steps_are_the_single_steps_bit_for_bit():
    single, single_metrics = run(1, 8, 1)
    scanned, scanned_metrics = run(1, 8, 4)
    jax.tree.map(np.testing.assert_array_equal, single, scanned)
    jax.tree.map(np.testing.assert_array_equal, single_metrics, scanned_metrics)


def test_a_single_step_is_compiled_without_a_loop():
    """In which a CPU would run the backward convolutions some fifty times slower."""
    step = functools.partial(training.scan_steps, toy.step())
    one, two = (str(jax.make_jaxpr(step)(toy.state(), toy.stacked(0, count))) for count in (1, 2))
    assert "scan[" in two and "scan[" not in one


def test_eight_devices_train_as_one_with_dropout_on():
    assert jax.device_count() == 8
    with jax.enable_x64(True):
        one, one_metrics = run(1, 20, 10, dtype=np.float64)
        eight, eight_metrics = run(8, 20, 10, dtype=np.float64)
    assert np.abs(one.params["out"]["kernel"] - toy.params()["out"]["kernel"]).min() > 1e-3
    chex.assert_trees_all_close(one, eight, rtol=1e-9, atol=1e-15)
    chex.assert_trees_all_close(one_metrics, eight_metrics, rtol=1e-6)


@pytest.fixture(scope="module")
def wide_run():
    with jax.enable_x64(True):
        return run(1, 20, 10, dtype=np.float64, width=WIDE)


@pytest.mark.parametrize("fsdp", [2, proof(8)])
def test_a_split_state_trains_as_a_whole_one_with_dropout_on(wide_run, fsdp):
    one, one_metrics = wide_run
    with jax.enable_x64(True):
        split, split_metrics = run(8, 20, 10, dtype=np.float64, fsdp=fsdp, width=WIDE)
    chex.assert_trees_all_close(one, split, rtol=1e-9, atol=1e-15)
    chex.assert_trees_all_close(one_metrics, split_metrics, rtol=1e-6)


def test_the_gradient_of_a_gathered_loss_is_split_whatever_becomes_of_it():
    mesh, params = training.make_mesh(fsdp=8), toy.params(width=WIDE)
    draws = step_draws(jax.random.key(3), jnp.int32(0), toy.ROWS)
    losses = toy.loss, training.gathered(toy.UPDATES, mesh)[0].loss
    whole, split = (jax.jit(jax.grad(lambda p, f=f: f(p, {}, toy.batch(0), draws).each.mean()))(params) for f in losses)
    chex.assert_trees_all_close(whole, jax.device_get(split), rtol=1e-4, atol=1e-3)
    chex.assert_trees_all_equal(jax.tree.map(lambda g: g.sharding, split), training.state_sharding(mesh, params))


def test_split_parameters_draw_the_samples_of_whole_ones(wide_run):
    def net(params, x, t):
        hidden = jnp.tanh(x @ params["in"]["kernel"] + params["in"]["bias"])
        return 0.1 * hidden @ params["out"]["kernel"] + t[:, None]

    with jax.enable_x64(True):
        drawn = []
        for devices, fsdp in ((1, 1), (8, 4)):
            mesh = training.make_mesh(jax.devices()[:devices], fsdp)
            params = jax.device_put(wide_run[0].params, training.state_sharding(mesh, wide_run[0].params))
            draw = Sampler(solver_draw(VP(), solvers.heun(), times.uniform(VP(), 4)), mesh=mesh, batch_size=8)
            drawn.append(draw(NetworkDenoiser(VP(), params, net, shape=(3,)), seed=0, n=11).x)
    assert drawn[0].shape == (11, 3) and drawn[0].dtype == np.float64
    np.testing.assert_allclose(*drawn, rtol=1e-9)


def test_large_arrays_are_split_along_their_longest_axis_that_divides():
    spec = training.split_over
    assert spec((3, 3, 64, 128), 8) == PartitionSpec(None, None, None, "fsdp")
    assert spec((3, 3, 128, 128), 8) == PartitionSpec(None, None, None, "fsdp")
    assert spec((3, 3, 128, 60), 8) == PartitionSpec(None, None, "fsdp")
    assert spec((4096,), 4) == PartitionSpec("fsdp")
    assert spec((3, 3, 6, 50), 4) == spec((2047,), 1) == spec((16, 64), 4) == spec((), 4) == PartitionSpec()
    assert spec((4096,), 1) == PartitionSpec()
    mesh = training.make_mesh(fsdp=4)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4}
    placed = training.state_sharding(mesh, jax.eval_shape(functools.partial(toy.state, width=WIDE)))
    kernels = (placed.params["in"]["kernel"], placed.ema["in"]["kernel"], placed.opt_state[1].mu["in"]["kernel"])
    assert {sharding.spec for sharding in kernels} == {PartitionSpec(None, "fsdp")}
    assert placed.step.is_fully_replicated and placed.params["in"]["bias"].is_fully_replicated


@pytest.mark.parametrize("fsdp", [0, 3, 16])
def test_groups_that_do_not_divide_the_devices_are_refused(fsdp):
    with pytest.raises(ValueError, match=f"fsdp = {fsdp} does not divide the 8 devices; 1, 2, 4, 8 would do"):
        training.make_mesh(fsdp=fsdp)


def test_devices_of_a_process_are_neighbours_and_processes_hold_as_many():
    class Device:
        def __init__(self, process_index):
            self.process_index = process_index

    mixed = [Device(process) for process in (1, 0, 0, 1)]
    with pytest.raises(ValueError, match=r"different numbers of devices, \{0: 2, 1: 1\}"):
        training.make_mesh(mixed[:3])
    assert [device.process_index for device in training.make_mesh(mixed).devices.flat] == [0, 0, 1, 1]


@pytest.mark.parametrize(("devices", "fsdp"), [(1, 1), proof(8, 1), (8, 4)])
def test_a_batch_in_parts_trains_as_the_whole_one(devices, fsdp):
    """Without dropout, whose key is each part's own; the rows' draws, stratified over the whole batch, are the same."""
    with jax.enable_x64(True):
        options = {"dtype": np.float64, "dropout": 0.0, "width": 8 if fsdp == 1 else WIDE}
        whole, whole_metrics = run(1, 20, 10, **options)
        parts, parts_metrics = run(devices, 20, 10, accumulate=2, fsdp=fsdp, **options)
    began = toy.params(width=options["width"])
    assert np.abs(whole.params["out"]["kernel"] - began["out"]["kernel"]).mean() > 1e-3
    chex.assert_trees_all_close(whole, parts, rtol=1e-9, atol=1e-15)
    chex.assert_trees_all_close(whole_metrics, parts_metrics, rtol=1e-6)


def test_every_part_of_a_batch_drops_out_by_itself():
    first, second = (
        jax.random.key_data(jax.random.fold_in(step_draws(jax.random.key(3), jnp.int32(0), 8).rng, i)) for i in range(2)
    )
    assert not np.array_equal(first, second)
    seen = []

    def loss(params, extra, batch, draws):
        jax.debug.callback(lambda data: seen.append(np.asarray(data).tolist()), jax.random.key_data(draws.rng))
        return toy.loss(params, extra, batch, draws)

    step = functools.partial(toy.step(accumulate=2), updates=(training.Update(loss, toy.OPTIMIZER),))
    jax.block_until_ready(jax.jit(step)(toy.state(), toy.batch(0)))
    jax.effects_barrier()
    assert sorted(seen) == sorted([first.tolist(), second.tolist()])


def test_parts_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ValueError, match="accumulate = 3 must divide the 16 rows"):
        toy.step(accumulate=3)(toy.state(), toy.batch(0))


def test_dropout_changes_what_is_learnt():
    """The toy's dropout is real: without it the claim above would be about nothing."""
    with_dropout, _ = run(1, 4, 4)
    without, _ = run(1, 4, 4, dropout=0.0)
    assert not np.allclose(with_dropout.params["out"]["kernel"], without.params["out"]["kernel"], rtol=1e-4)


def test_the_batch_is_split_and_the_state_is_on_every_device_from_one_program():
    mesh = training.make_mesh()
    batches = training.global_batch(mesh, toy.stacked(0, 2), scanned=True)
    assert {shard.data.shape for shard in batches["x"].addressable_shards} == {(2, toy.ROWS // 8, 3)}
    np.testing.assert_array_equal(batches["x"], toy.stacked(0, 2)["x"])
    single = training.global_batch(mesh, toy.batch(0))
    assert {shard.data.shape for shard in single["x"].addressable_shards} == {(toy.ROWS // 8, 3)}
    call = training.compile_step(toy.step(), mesh)
    state = training.make_state(toy.state, mesh)
    for _ in range(3):
        state, _ = call(state, batches)
    assert call._cache_size() == 1
    assert all(leaf.sharding.is_fully_replicated and len(leaf.devices()) == 8 for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize(("batch_size", "would_do"), [(12, "8 or 16"), (5, "8")])
def test_a_batch_that_does_not_split_is_refused_with_one_that_does(batch_size, would_do):
    mesh = training.make_mesh()
    training.check_batch(24, 8)
    with pytest.raises(ValueError, match=f"batch_size = {batch_size} .* 8 devices; {would_do} would do"):
        training.check_batch(batch_size, 8)
    with pytest.raises(ValueError, match="8 devices in 4 parts; 32 would do"):
        training.check_batch(24, 8, 4)
    with pytest.raises(ValueError, match=f"batch_size = {batch_size} "):
        training.global_batch(mesh, {"x": np.zeros((2, batch_size, 1))}, scanned=True)


def test_pmap_trains_as_jit_does():
    """Without dropout, whose key differs on each device; the rows' own draws, stratified over the global batch, do
    not.
    """
    jitted, jitted_metrics = run(1, 4, 4, dropout=0.0)
    step = training.pmap_step(toy.step(axis_name="batch", dropout=0.0))
    state, metrics = training.replicate(toy.state()), []
    for i in range(4):
        state, values = step(state, toy.batch(i))
        metrics.append(values)
    unreplicated = training.unreplicate(state)
    # Indexing would leave a copy on each device, by a program of all of them.
    assert all(x.devices() == {jax.devices()[0]} for x in jax.tree.leaves(unreplicated))
    chex.assert_trees_all_close(jitted, jax.device_get(unreplicated), rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(jitted_metrics, jax.tree.map(lambda *x: np.stack(x), *metrics), rtol=1e-5)


def test_every_device_under_pmap_has_its_rows_and_a_dropout_of_its_own():
    def seen(_, state, key):
        draws = step_draws(key, state, 2, "batch")
        return draws.index, jax.random.key_data(draws.keys), jax.random.key_data(draws.rng)

    key = jax.random.key(2)
    index, keys, rng = jax.pmap(seen, "batch", in_axes=(0, None, None))(jnp.arange(8), jnp.int32(1), key)
    draws = step_draws(key, jnp.int32(1), 16)
    np.testing.assert_array_equal(index.reshape(-1), np.arange(16))
    np.testing.assert_array_equal(keys.reshape(16, -1), jax.random.key_data(draws.keys))
    assert len(np.unique(rng, axis=0)) == 8


def test_a_sampler_under_pmap_gives_each_key_its_sample():
    def draw(keys, scale):
        return scale * jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys), jnp.arange(len(keys))

    keys = jax.random.split(jax.random.key(0), 16)
    samples, local = training.pmap_batched(draw)(keys, jnp.float32(2.0))
    np.testing.assert_allclose(samples, draw(keys, 2.0)[0], rtol=1e-6)
    np.testing.assert_array_equal(local, np.tile([0, 1], 8))
    with pytest.raises(ValueError, match="8 devices"):
        training.pmap_batched(draw)(keys[:12], jnp.float32(2.0))
