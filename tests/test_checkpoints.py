"""Checkpoints: what is kept, what is restored where, and what is said when it cannot be."""

import contextlib
import json
import os
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from diffuse_jax import training
from diffuse_jax.checkpoints import CheckpointError, Checkpoints, read_json, write_json_atomic

UPDATES = (training.Update(None, training.adam(1e-3)),)


def state(step=0, width=2):
    params = {"Dense_0": {"kernel": jnp.arange(3.0 * width).reshape(3, width), "bias": jnp.ones(width)}}
    made = training.create_state(params, UPDATES)
    ema = jax.tree.map(lambda p: p + step, made.ema)
    return training.TrainState(step=jnp.int32(step), params=made.params, ema=ema, opt_state=made.opt_state)


ABSTRACT = jax.eval_shape(state)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three steps on disk: 2, 4 and 6."""
    path = tmp_path_factory.mktemp("checkpoints")
    with Checkpoints(path) as checkpoints:
        for step in (2, 4, 6):
            checkpoints.save(step, state(step))
    return path


@pytest.fixture
def reader(folder):
    return Checkpoints(folder, read_only=True)


def test_the_latest_or_a_named_step_is_restored(reader):
    assert reader.steps() == [2, 4, 6] and reader.latest_step() == 6
    assert_same(reader.restore(ABSTRACT), state(6))
    assert_same(reader.restore(ABSTRACT, step=4), state(4))


def test_a_state_may_be_restored_to_other_devices_than_wrote_it(tmp_path):
    mesh = training.make_mesh()
    rows = jax.sharding.NamedSharding(mesh, PartitionSpec("data"))
    x = np.arange(16.0, dtype=np.float32)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": jax.device_put(x, rows)})
    reader = Checkpoints(tmp_path, read_only=True)
    for sharding, devices in ((rows, 8), (training.replicated(training.make_mesh(jax.devices()[:2])), 2), (None, 1)):
        restored = reader.restore({"x": jax.ShapeDtypeStruct((16,), np.float32)}, sharding=sharding)["x"]
        np.testing.assert_array_equal(restored, x)
        assert len(restored.devices()) == devices


def test_a_state_moves_between_whole_and_split_over_eight_devices(tmp_path):
    abstract = jax.eval_shape(lambda: state(width=1024))
    split, whole = (training.make_mesh(jax.devices()[:n], n) for n in (8, 1))
    assert not training.state_sharding(split, abstract).params["Dense_0"]["kernel"].is_fully_replicated
    made = state(5, width=1024)
    for number, mesh in ((1, split), (2, whole)):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(number, made)
        placed = training.state_sharding(mesh, abstract)
        made = Checkpoints(tmp_path, read_only=True).restore(abstract, sharding=placed)
        assert_same(made, state(5, width=1024))
        assert jax.tree.leaves(jax.tree.map(lambda x: x.sharding, made)) == jax.tree.leaves(placed)


def test_every_dtype_of_a_state_comes_back_bit_for_bit(tmp_path):
    tree = {
        "bf16": jnp.asarray([1.5, -0.0, jnp.inf], jnp.bfloat16),
        "f32": jnp.float32(np.nextafter(1, 2)),
        "i32": jnp.arange(4, dtype=jnp.int32),
        "u8": jnp.arange(4, dtype=jnp.uint8),
        "bool": jnp.asarray([True, False]),
    }
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, tree)
        checkpoints.wait()
        restored = checkpoints.restore(tree)
    for name, leaf in tree.items():
        assert restored[name].dtype == leaf.dtype
        assert np.asarray(restored[name]).tobytes() == np.asarray(leaf).tobytes()


@pytest.mark.parametrize("part", ["params", "ema"])
def test_parameters_are_restored_without_the_optimizer(reader, part):
    assert_same(reader.restore_part(part, ABSTRACT.params), getattr(state(6), part))
    assert_same(reader.restore_part(part, ABSTRACT.params, step=2), getattr(state(2), part))


@pytest.mark.parametrize(
    ("keep", "keep_every", "left"), [(1, None, [10]), (2, None, [9, 10]), (2, 4, [4, 8, 9, 10]), (1, 10, [10])]
)
def test_the_last_and_every_nth_are_kept(tmp_path, keep, keep_every, left):
    with Checkpoints(tmp_path, keep=keep, keep_every=keep_every) as checkpoints:
        for step in range(1, 11):
            checkpoints.save(step, {"x": jnp.float32(step)})
    assert Checkpoints(tmp_path, read_only=True).steps() == left


def test_what_is_kept_survives_a_second_writer(tmp_path):
    for steps in ((3, 6, 9), (12, 15)):
        with Checkpoints(tmp_path, keep=2, keep_every=6) as checkpoints:
            for step in steps:
                checkpoints.save(step, {"x": jnp.float32(step)})
    assert Checkpoints(tmp_path, read_only=True).steps() == [6, 12, 15]


def test_a_donated_state_is_saved_as_it_was(tmp_path):
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros((256, 256))
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        for i in range(6):
            checkpoints.save(i, {"x": x})
            for _ in range(10):
                x = step(x)
        checkpoints.wait()
        for i in range(6):
            restored = checkpoints.restore({"x": jax.ShapeDtypeStruct(x.shape, x.dtype)}, step=i)
            np.testing.assert_array_equal(restored["x"], 10.0 * i)


def test_a_kill_during_the_removal_of_a_step_leaves_nothing_that_looks_like_one(tmp_path, monkeypatch):
    """The files go one by one; here the process dies at the first."""

    def die(path):
        (next(p for p in path.rglob("*") if p.is_file())).unlink()
        raise KeyboardInterrupt

    writer = Checkpoints(tmp_path, keep=1)
    writer.save(1, {"x": jnp.float32(1)})
    writer.wait()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", die)
        writer.save(2, {"x": jnp.float32(2)})
        writer.wait()
    assert Checkpoints(tmp_path, read_only=True).steps() == [2]
    with Checkpoints(tmp_path) as writer:
        assert os.listdir(tmp_path) == ["2"]
        assert float(writer.restore({"x": jnp.float32(0)})["x"]) == 2.0


def test_saving_a_step_again_replaces_it(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for value in (1.0, 2.0):
            checkpoints.save(5, {"x": jnp.float32(value)})
            checkpoints.wait()
            assert float(checkpoints.restore({"x": jnp.float32(0)})["x"]) == value
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, {"x": jnp.float32(3.0)})
    assert float(Checkpoints(tmp_path, read_only=True).restore({"x": jnp.float32(0)})["x"]) == 3.0


def test_only_a_writer_removes_what_a_killed_one_left(folder, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(folder, work)
    unfinished = work / "8.orbax-checkpoint-tmp"
    shutil.copytree(work / "6", unfinished)
    reader = Checkpoints(work, read_only=True)
    assert reader.steps() == [2, 4, 6] and unfinished.exists()
    with Checkpoints(work) as writer:
        assert not unfinished.exists()
        assert_same(writer.restore(ABSTRACT), state(6))
        writer.save(8, state(8))
        writer.save(10, state(10))
    assert reader.steps() == [6, 8, 10]
    assert not [name for name in os.listdir(work) if "tmp" in name]


def test_a_reader_makes_no_directory(tmp_path):
    reader = Checkpoints(tmp_path / "absent", read_only=True)
    assert reader.steps() == [] and reader.latest_step() is None
    with pytest.raises(CheckpointError, match=r"there is no directory .*absent"):
        reader.restore(ABSTRACT)
    with pytest.raises(CheckpointError, match="read_only"):
        reader.save(1, state())
    assert not (tmp_path / "absent").exists()


def replaced(**fields):
    return training.TrainState(**{name: getattr(ABSTRACT, name) for name in ABSTRACT.__dataclass_fields__} | fields)


@pytest.mark.parametrize(
    ("abstract", "difference"),
    [
        (jax.eval_shape(lambda: state(width=5)), r"ema/Dense_0/bias is float32\(2,\) .* float32\(5,\) was requested"),
        (replaced(step=jax.ShapeDtypeStruct((), np.int16)), r"step is int32\(\) .* int16\(\) was requested"),
        (replaced(params={}), r"params/Dense_0/bias is float32\(2,\) in the checkpoint, and nothing was requested"),
        (
            replaced(params=ABSTRACT.params | {"Extra": jax.ShapeDtypeStruct((7,), np.float32)}),
            r"params/Extra is nothing in the checkpoint, and float32\(7,\) was requested",
        ),
    ],
)
def test_a_tree_that_does_not_fit_is_refused_in_a_line_by_its_first_leaf(reader, folder, abstract, difference):
    with pytest.raises(CheckpointError, match=f"{folder}/6 does not fit: {difference}$"):
        reader.restore(abstract)


def test_a_part_that_does_not_fit_or_is_not_there_is_refused(reader):
    with pytest.raises(CheckpointError, match=r"ema/kernel is nothing|ema/Dense_0/bias is float32"):
        reader.restore_part("ema", {"kernel": jax.ShapeDtypeStruct((3, 2), np.float32)})
    with pytest.raises(CheckpointError, match="weights/Dense_0/bias is nothing in the checkpoint"):
        reader.restore_part("weights", ABSTRACT.params)


def test_what_is_missing_is_named_with_what_there_is(reader, folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no step 3, but 2, 4, 6$"):
        reader.restore(ABSTRACT, step=3)
    with pytest.raises(CheckpointError, match=r"holds no checkpoint$"):
        Checkpoints(tmp_path, read_only=True).restore(ABSTRACT)
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "notes.txt").write_text("not ours")
    with pytest.raises(CheckpointError, match=r"holds no checkpoint$"):
        Checkpoints(tmp_path, read_only=True).restore(ABSTRACT)


@pytest.mark.parametrize("bad", [{"keep": 0}, {"keep_every": 0}])
def test_a_policy_that_keeps_nothing_is_refused(tmp_path, bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}=0"):
        Checkpoints(tmp_path, **bad)


@contextlib.contextmanager
def disk_of(size):
    """Lets this process write no file beyond `size` bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_save_that_does_not_fit_the_disk_is_an_error_and_leaves_the_one_before(tmp_path):
    noise = {"x": jnp.asarray(np.random.default_rng(0).normal(size=100_000), jnp.float32)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, noise)
        checkpoints.wait()
        with disk_of(50_000), pytest.raises(OSError, match=f"{tmp_path}/2 could not be written: ."):
            checkpoints.save(2, noise)
            checkpoints.wait()
        assert checkpoints.steps() == [1]
        checkpoints.save(3, noise)
    assert Checkpoints(tmp_path, read_only=True).steps() == [1, 3]


def test_json_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "config.json"
    write_json_atomic(path, {"a": [1, 2.5, None, "é"]})
    assert read_json(path) == {"a": [1, 2.5, None, "é"]}
    with pytest.raises(TypeError):
        write_json_atomic(path, {"a": object()})
    with disk_of(4), pytest.raises(OSError, match=rf"{path}"):
        write_json_atomic(path, {"a": "long enough"})
    assert read_json(path) == {"a": [1, 2.5, None, "é"]} and os.listdir(tmp_path) == ["config.json"]


def test_json_that_is_missing_or_broken_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no file .*config.json"):
        read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text(json.dumps({"a": 1})[:-1])
    with pytest.raises(CheckpointError, match=r"config.json is not JSON: .* line 1"):
        read_json(tmp_path / "config.json")


def test_a_field_of_the_state_that_is_empty_leaves_no_trace(tmp_path):
    """So a run of before the field still reads, and one that has something there is told of what is missing."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state(0))
    assert set(Checkpoints(tmp_path, read_only=True).shapes()) == {"step", "params", "ema", "opt_state"}
    restored = Checkpoints(tmp_path, read_only=True).restore(ABSTRACT)
    assert restored.extra == {} and isinstance(restored, training.TrainState)
    with pytest.raises(CheckpointError, match=r"extra/teacher is nothing in the checkpoint, and float32\(3,\) was"):
        wanted = replaced(extra={"teacher": jax.ShapeDtypeStruct((3,), np.float32)})
        Checkpoints(tmp_path, read_only=True).restore(wanted)
