"""Damaged checkpoints: seen before anything is read of them, and told in one line with the step to read instead."""

import os
import pathlib
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffuse_jax import checkpoints as module
from diffuse_jax.checkpoints import CheckpointError, Checkpoints

TREE = {"ema": {"w": jnp.asarray(np.random.default_rng(0).normal(size=(40, 50)), jnp.float32)}, "step": jnp.int32(8)}
ABSTRACT = jax.eval_shape(lambda: TREE)
SUMS = "SHA256SUMS"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two whole steps: 4 and 8."""
    folder = tmp_path_factory.mktemp("written")
    with Checkpoints(folder) as checkpoints:
        for step in (4, 8):
            checkpoints.save(step, TREE)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    """A copy of the two steps, to be damaged."""
    return pathlib.Path(shutil.copytree(written, tmp_path / "checkpoints"))


def unchecked(folder, *steps):
    """The steps as they were written before there were checksums."""
    for step in steps:
        (folder / str(step) / SUMS).unlink()
        marker = folder / str(step) / "_CHECKPOINT_METADATA"
        marker.write_text(marker.read_text().replace('{"checksums": "SHA256SUMS"}', "{}"))


def files(step):
    return sorted(path for path in step.rglob("*") if path.is_file())


def truncate(content, rng):
    return content[: rng.integers(len(content))]


def flip(content, rng):
    place = int(rng.integers(8 * len(content)))
    return bytes(byte ^ (1 << place % 8 if i == place // 8 else 0) for i, byte in enumerate(content))


def lines(folder, step=None):
    """The errors of reading the whole and a part, each of which is one line."""
    found = []
    for read in (lambda r: r.restore(ABSTRACT, step), lambda r: r.restore_part("ema", ABSTRACT["ema"], step)):
        with pytest.raises(CheckpointError) as caught:
            read(Checkpoints(folder, read_only=True))
        found.append(str(caught.value))
        assert "\n" not in found[-1]
    return found


@pytest.mark.parametrize("change", [truncate, flip])
def test_any_truncation_and_any_flipped_bit_of_any_file_is_damage_and_the_whole_step_is_named(folder, change):
    """Twenty of each kind, over every file that has content, the checksums too."""
    rng, damaged = np.random.default_rng(0), folder / "8"
    targets = [path for path in files(damaged) if path.stat().st_size]
    assert {path.name for path in targets} >= {SUMS, "_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt"}
    for i in range(max(20, len(targets))):
        path = targets[i % len(targets)]
        content = path.read_bytes()
        path.write_bytes(change(content, rng))
        for line in lines(folder):
            assert line.startswith(f"{damaged} is damaged: "), line
            assert line.endswith(
                f"; the latest whole step is 4 (--checkpoint=4); to train on from it, move {damaged} away"
            )
            assert path.name in line or path.name == SUMS, line
        path.write_bytes(content)
    np.testing.assert_array_equal(Checkpoints(folder, read_only=True).restore(ABSTRACT)["ema"]["w"], TREE["ema"]["w"])


def test_any_lost_file_is_damage(folder):
    for path in files(folder / "8"):
        path.rename(folder / "lost")
        assert Checkpoints(folder, read_only=True).steps() == [4, 8]
        name = path.relative_to(folder / "8")
        assert all(f"{folder}/8 is damaged: {name} is missing; the latest whole step is 4" in x for x in lines(folder))
        (folder / "lost").rename(path)


def test_a_new_file_is_damage_unless_it_is_hidden(folder):
    (folder / "8" / ".DS_Store").touch()
    assert Checkpoints(folder, read_only=True).restore(ABSTRACT)["step"] == 8
    (folder / "8" / "state" / "new").touch()
    assert "state/new is not listed in SHA256SUMS" in lines(folder)[0]


def test_a_later_whole_step_is_named_and_none_where_none_is(folder):
    for step in ("4", "8"):
        (folder / step / "state" / "_METADATA").write_text("{}")
        if step == "4":
            assert lines(folder, 4)[0].endswith("; the latest whole step is 8 (--checkpoint=8)")
    assert lines(folder)[0].endswith("; no other step is whole")


def test_steps_of_before_there_were_checksums_are_read_and_told_in_a_line_where_they_cannot_be(folder):
    unchecked(folder, 4, 8)
    reader = Checkpoints(folder, read_only=True)
    np.testing.assert_array_equal(reader.restore(ABSTRACT)["ema"]["w"], TREE["ema"]["w"])
    hint = (
        "; without checksums it may be damaged: the latest other step, without checksums too, is 4 (--checkpoint=4); "
        "to train on from it, move "
    )
    for name in ("_METADATA", "manifest.ocdbt", "array_metadatas/process_0"):
        path = folder / "8" / "state" / name
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        assert all(line.startswith(f"{folder}/8 ") and hint in line for line in lines(folder)), lines(folder)
        path.write_bytes(content)


def test_a_step_that_the_training_removes_meanwhile_is_not_called_damaged(folder, monkeypatch):
    def look(path):
        shutil.rmtree(folder / "4", ignore_errors=True)
        return find_damage(path)

    find_damage = module.find_damage
    monkeypatch.setattr(module, "find_damage", look)
    with pytest.raises(CheckpointError, match=r"/4 was removed while it was read; the steps there are now: 8$"):
        Checkpoints(folder, read_only=True).restore(ABSTRACT, 4)


def test_a_kill_between_orbax_and_the_checksums_leaves_no_step(folder, monkeypatch):
    def die(path):
        raise KeyboardInterrupt

    writer = Checkpoints(folder)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "write_checksums", die)
        writer.save(12, TREE)
        writer.wait()
    assert Checkpoints(folder, read_only=True).steps() == [4, 8] and len(os.listdir(folder)) == 3
    with Checkpoints(folder):
        assert sorted(os.listdir(folder)) == ["4", "8"]


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_the_checksums_are_those_of_sha256sum(folder):
    check = ["sha256sum", "--check", "--strict", SUMS]
    done = subprocess.run(check, cwd=folder / "8", capture_output=True, text=True, check=True)
    listed = {line.removesuffix(": OK") for line in done.stdout.splitlines()}
    assert listed == {str(path.relative_to(folder / "8")) for path in files(folder / "8")} - {SUMS}
