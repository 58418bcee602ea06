"""What disks do to a run: damaged checkpoints, full disks, folders that cannot be written. One line each, no other."""

import collections
import os
import resource
import shutil
import tempfile

import jax
import numpy as np
import pytest
from cli_models import TINY, run

import diffuse_jax
from diffuse_jax.checkpoints import Checkpoints

SPACE = "diffuse_jax.cli.resources.shutil.disk_usage"


def lines(capfd, *argv, status=2):
    """What a refused command writes to stderr, of libraries written in C++ too; without the progress bar."""
    capfd.readouterr()
    assert run(*argv) == status
    return [line for line in capfd.readouterr().err.replace("\r", "\n").split("\n") if line and "%|" not in line]


def truncate(content):
    return content[: len(content) // 2]


def flip(content):
    return content[:-40] + bytes([content[-40] ^ 4]) + content[-39:]


@pytest.mark.parametrize("change", [truncate, flip])
@pytest.mark.parametrize("file", ["state/d", "state/manifest.ocdbt", "state/_METADATA", "_CHECKPOINT_METADATA"])
def test_a_damaged_checkpoint_is_one_line_that_names_it_and_the_whole_step(toy_run, tmp_path, file, change, capfd):
    folder = shutil.copytree(toy_run, tmp_path / "run")
    step = folder / "checkpoints" / "8"
    path = step / file if (step / file).is_file() else next((step / file).iterdir())
    path.write_bytes(change(path.read_bytes()))
    line = (
        f"diffuse-jax: error: {step} is damaged: {path.relative_to(step)} is not as it was written; the latest whole "
        f"step is 4 (--checkpoint=4); to train on from it, move {step} away"
    )
    for command in (["sample", "--num=4"], ["train", "--config.training.steps=12"]):
        assert lines(capfd, *command, f"--workdir={folder}") == [line]


def test_a_damaged_checkpoint_of_before_there_were_checksums_is_one_line_too(toy_run, tmp_path, capfd):
    folder = shutil.copytree(toy_run, tmp_path / "run")
    for step in (folder / "checkpoints").iterdir():
        (step / "SHA256SUMS").unlink()
        marker = step / "_CHECKPOINT_METADATA"
        marker.write_text(marker.read_text().replace('{"checksums": "SHA256SUMS"}', "{}"))
    for path in (
        (folder / "checkpoints" / "8").rglob("process_0"),
        (folder / "checkpoints" / "8" / "state/d").iterdir(),
    ):
        file = next(path)
        file.write_bytes(truncate(file.read_bytes()))
        (line,) = lines(capfd, "sample", "--num=4", f"--workdir={folder}")
        assert f"{folder}/checkpoints/8 " in line and "may be damaged: the latest other step" in line


def test_what_the_line_of_a_damaged_checkpoint_says_helps(toy_run, tmp_path):
    folder = shutil.copytree(toy_run, tmp_path / "run")
    step = folder / "checkpoints" / "8"
    (step / "state" / "_METADATA").write_text("")
    assert run("sample", f"--workdir={folder}", "--num=4", "--checkpoint=4") == 0
    step.rename(folder / "damaged")
    assert run("train", f"--workdir={folder}") == 0
    assert sorted(os.listdir(folder / "checkpoints")) == ["4", "8"]
    jax.tree.map(np.testing.assert_array_equal, diffuse_jax.load(folder).params, diffuse_jax.load(toy_run).params)


@pytest.mark.parametrize("command", ["train", "sample", "evaluate", "likelihood"])
def test_a_folder_that_no_file_can_be_written_to_is_named_before_anything_is_computed(
    toy_run, command, monkeypatch, capfd
):
    def refuse(**options):
        raise PermissionError(13, "Permission denied", str(options["dir"]))

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    line = f"diffuse-jax: error: the folder {toy_run} cannot be written to: Permission denied"
    assert lines(capfd, command, f"--workdir={toy_run}") == [line]


def test_the_output_of_an_export_is_tried_and_the_run_need_not_be_writable(toy_run, tmp_path, monkeypatch, capfd):
    def refuse(**options):
        raise PermissionError(13, "Permission denied", str(options["dir"]))

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    export = ("export", f"--workdir={toy_run}", f"--output={tmp_path / 'new' / 'x.safetensors'}")
    assert lines(capfd, *export) == [
        f"diffuse-jax: error: the folder {tmp_path / 'new'} cannot be written to: Permission denied"
    ]
    new = ("import", "--from=edm", f"--source={tmp_path / 'x'}", f"--workdir={tmp_path / 'run'}")
    assert lines(capfd, *new) == [
        f"diffuse-jax: error: the folder {tmp_path / 'run'} cannot be written to: Permission denied"
    ]


@pytest.mark.parametrize("command", [["train"], ["sample"], ["import", "--from=edm", "--source=x"]])
def test_a_workdir_that_is_not_utf_8_is_refused_at_once(tmp_path, command, capfd):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/run\xff")
    line = f"diffuse-jax: error: --workdir={tmp_path}/run\\xff is not UTF-8, which checkpoints need: give another name"
    assert lines(capfd, *command, f"--workdir={name}") == [line]
    assert not os.listdir(tmp_path)


def disk_with(free):
    return lambda path: collections.namedtuple("usage", "free")(free)


def test_a_disk_without_room_for_the_checkpoints_to_come_is_refused_with_both_numbers(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(SPACE, disk_with(2**20))
    wide = ["--config.model.width=256", "--config.training.steps=40"]
    (line,) = lines(capfd, "train", *TINY, *wide, f"--workdir={tmp_path}")
    # 4 bytes, 4 times (parameters, average, moments): the kernels 33·w, 14·w, w·2 and w·w four times, and six biases.
    size = 4 * 4 * (33 * 256 + 14 * 256 + 2 * 256 + 4 * 256**2 + 5 * 256 + 2) / 2**20
    assert f"has 1.0 MiB free, and checkpoints need {4 * size:.1f} MiB more (4 of {size:.1f} MiB)" in line
    assert "config.training.keep" in line


def test_a_run_that_goes_on_needs_room_for_what_is_not_there_yet(toy_run, tmp_path, monkeypatch, capfd):
    """Two checkpoints are there and three are to come: one more than is kept must fit."""
    folder = shutil.copytree(toy_run, tmp_path / "run")
    go_on = ("train", f"--workdir={folder}", "--config.training.steps=20")
    monkeypatch.setattr(SPACE, disk_with(1))
    for keep, more in ((3, 2), (2, 1), (1, 1)):
        assert f"({more} of " in lines(capfd, *go_on, f"--config.training.keep={keep}")[0]
    state = sum(path.stat().st_size for path in (folder / "checkpoints" / "8").rglob("*"))
    monkeypatch.setattr(SPACE, disk_with(state))
    assert run(*go_on, "--config.training.keep=1") == 0


def test_a_disk_that_fills_up_meanwhile_is_one_line(tmp_path, monkeypatch, capfd):
    limits, save = resource.getrlimit(resource.RLIMIT_FSIZE), Checkpoints.save

    def fill(*args):  # no file may be larger than this
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        save(*args)

    monkeypatch.setattr(Checkpoints, "save", fill)
    try:
        found = lines(capfd, "train", *TINY, f"--workdir={tmp_path}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert found[0] == f"training from step 0 to 8 in {tmp_path}" and len(found) == 2, found
    assert f"the checkpoint {tmp_path}/checkpoints/4 could not be written: " in found[1]
