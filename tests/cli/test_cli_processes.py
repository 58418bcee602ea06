"""The commands in two real processes: the numbers of one, every line once, and an end for all where one fails."""

import json
import shutil
import signal
import socket
import threading
import time

import jax
import numpy as np
import pytest
from cli_models import TINY, run
from processes import end, free_port, killed, reached, saved, start

from diffuse_jax.cli import distributed
from diffuse_jax.cli.arguments import read_arguments
from diffuse_jax.config import ConfigError


def begin(*argv, count=2, of_last=(), folders=None):
    """`diffuse-jax argv` in so many processes; `of_last` is given to the last alone."""
    address, commands = f"--coordinator=127.0.0.1:{free_port()}", []
    for number in range(count):
        flags = [address, f"--num_processes={count}", f"--process_id={number}", "--timeout=30"]
        more = of_last if number == count - 1 else ()
        commands.append(["-m", "diffuse_jax", *argv, *more, *(flags if count > 1 else [])])
    return start(commands, folders)


def flags(*argv):
    return read_arguments(["sample", *argv])[0]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--coordinator=here:1", "--num_processes=2"], "--process_id (or JAX_PROCESS_ID) too"),
        (["--coordinator=here", "--num_processes=2", "--process_id=0"], "--coordinator=here must be HOST:PORT"),
        (["--coordinator=here:0", "--num_processes=2", "--process_id=0"], "--coordinator=here:0 must be HOST:PORT"),
        (
            ["--coordinator=here:1", "--num_processes=2", "--process_id=2"],
            "--process_id=2 must be an integer from 0",
        ),
        (
            ["--coordinator=here:1", "--num_processes=x", "--process_id=0"],
            "--num_processes=x must be an integer",
        ),
        (["--distributed", "--process_id=0"], "by itself: leave it out, or --process_id"),
    ],
)
def test_flags_that_do_not_make_a_run_of_several_processes_are_named(argv, words):
    with pytest.raises(ConfigError) as caught:
        distributed.start(flags(*argv))
    assert words in str(caught.value)


def test_variables_stand_in_for_flags_and_are_named(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "5")
    with pytest.raises(ConfigError, match=r"JAX_NUM_PROCESSES=2 and JAX_PROCESS_ID=5 wants --coordinator"):
        distributed.start(flags())
    with pytest.raises(ConfigError, match="JAX_PROCESS_ID=5 must be an integer from 0 to 1"):
        distributed.start(flags("--coordinator=here:1"))
    with pytest.raises(ConfigError, match="--process_id=7 must be"):
        distributed.start(flags("--coordinator=here:1", "--process_id=7"))


def test_a_port_that_is_taken_is_named():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--coordinator=127.0.0.1:{port}: process 0 cannot listen there"):
            distributed.start(flags(f"--coordinator=127.0.0.1:{port}", "--num_processes=2", "--process_id=0"))


def test_processes_with_different_numbers_of_devices_are_told_apart(monkeypatch):
    class Device:
        def __init__(self, process_index):
            self.process_index = process_index

    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "devices", lambda: [Device(1), Device(0), Device(0)])
    with pytest.raises(distributed.Stopped, match="2 in process 0, 1 in process 1: give each as many"):
        distributed.check_command(flags())


def test_a_process_without_devices_ends_at_once(monkeypatch):
    """At the exit of Python it would wait for the others."""

    def no_backend(*_):
        raise AssertionError("no backend")

    ended = []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_index", no_backend)
    monkeypatch.setattr(distributed, "_end", lambda *said: ended.append(said))
    with distributed.leave():
        no_backend()
    assert ended == [("this process: AssertionError", 1)]


def test_a_folder_is_waited_for_that_a_file_system_shows_late(monkeypatch, tmp_path):
    """As NFS does, which remembers for a while that there was none."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "together", lambda function: function())
    monkeypatch.setattr(distributed, "first", lambda: False)
    monkeypatch.setattr(distributed, "from_first", lambda _: 7)
    late = tmp_path / "late"

    def appear():
        late.mkdir()
        (late / ".seen_by_all.7").touch()

    timer = threading.Timer(0.3, appear)
    timer.start()
    distributed.check_shared(late)
    timer.join()
    monkeypatch.setattr(distributed, "_STALE", 0)
    with pytest.raises(ConfigError, match="not the folder that process 0 sees"):
        distributed.check_shared(tmp_path)


@pytest.mark.proof
@pytest.mark.parametrize("number", [0, 1])
def test_processes_that_never_meet_end_with_one_line(toy_run, number):
    command = ["sample", f"--workdir={toy_run}", f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"]
    began = time.monotonic()
    ((status, _, said),) = end(begin(*command, f"--process_id={number}", "--timeout=3", count=1))
    assert status == 2 and said.count("\n") == 1 and "not all processes met within 3 s" in said
    assert time.monotonic() - began < 30


@pytest.mark.proof
def test_two_processes_draw_and_measure_what_one_does(toy_run, tmp_path):
    two = tmp_path / "two"
    shutil.copytree(toy_run, two)
    for command in (["sample", "--num=11", "--trajectory"], ["likelihood", "--num=9"], ["evaluate"]):
        assert run(*command, f"--workdir={toy_run}") == 0
        first, second = end(begin(*command, f"--workdir={two}"))
        assert first[0] == second[0] == 0, (first, second)
        assert "written" not in second[1] and not second[2], second
    for name in ("samples.npz", "likelihood.npz"):
        with np.load(toy_run / name) as a, np.load(two / name) as b:
            assert a.files == b.files
            for array in a.files:
                np.testing.assert_allclose(a[array], b[array], rtol=1e-4, atol=1e-4)
    one, both = (json.loads((folder / "evaluation.json").read_text()) for folder in (toy_run, two))
    assert one.keys() == both.keys()
    for name, value in one.items():
        assert both[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-4)), name
    for num in (5, 20):  # the second goes on from the first
        command = ["sample", f"--num={num}", "--format=shards", "--config.sampling.batch_size=8"]
        assert run(*command, f"--workdir={toy_run}") == 0
        first, second = end(begin(*command, f"--workdir={two}"))
        assert first[0] == second[0] == 0 and "samples" not in second[1] and not second[2]
    names = [sorted(path.name for path in (folder / "samples").glob("*-*.npz")) for folder in (toy_run, two)]
    assert names[0] == names[1] and len(names[0]) == 4
    for name in names[0]:
        with np.load(toy_run / "samples" / name) as a, np.load(two / "samples" / name) as b:
            np.testing.assert_allclose(a["samples"], b["samples"], rtol=1e-4, atol=1e-4)
    assert (two / "trajectory.gif").exists() and not list(two.glob(".seen*"))


LONG = [*TINY, "--config.training.sample_every=0", "--config.training.steps=100000"]


@pytest.mark.proof
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_killed_run_goes_on_in_another_number_of_processes(tmp_path, before, after):
    """Trained by the command, with its state split in two processes; the end is that of a run left alone."""
    argv = ["train", *LONG, "--config.model.width=64", "--config.training.steps=200"]
    alone, other = tmp_path / "alone", tmp_path / "other"
    ((status, _, said),) = end(begin(*argv, f"--workdir={alone}", count=1))
    assert status == 0, said
    started = begin(*argv, f"--workdir={other}", f"--config.training.fsdp={before}", count=before)
    with killed(started):
        reached(other, 20, started)
    assert {status for status, *_ in end(started)} == {-signal.SIGKILL} and 20 <= saved(other)[-1] < 200
    results = end(begin(*argv, f"--workdir={other}", f"--config.training.fsdp={after}", count=after))
    assert [status for status, *_ in results] == [0] * after, results
    assert "going on from step" in results[0][2] and all("step" not in said for _, _, said in results[1:])
    lines = [[json.loads(line) for line in (x / "metrics.jsonl").read_text().splitlines()] for x in (alone, other)]
    assert [line["step"] for line in lines[1]] == list(range(4, 201, 4))
    for name in ("loss", "heldout_loss"):
        np.testing.assert_allclose([x[name] for x in lines[0]], [x[name] for x in lines[1]], rtol=1e-4, err_msg=name)


@pytest.mark.proof
def test_a_mistake_is_told_once_and_ends_both(toy_run, tmp_path):
    (tmp_path / "file").touch()
    sample = ["sample", f"--workdir={toy_run}"]
    for argv, of_last, words in (
        (
            ["train", *TINY, f"--workdir={tmp_path / 'run'}", "--config.training.batch_size=6"],
            [],
            "batch_size = 6 does not split evenly",
        ),
        ([*sample, "--label=3"], [], "trained without labels"),
        (["train", *TINY, f"--workdir={tmp_path / 'file'}"], [], "/file is a file"),
        (sample, ["--seed=1"], "process 1 has another command than process 0"),
        (sample, ["--config.sampling.num=3"], "process 1 has another experiment than process 0"),
    ):
        results = end(begin(*argv, of_last=of_last))
        assert [status for status, *_ in results] == [2, 2]
        assert results[0][2].count("\n") == 1 and words in results[0][2] and results[1][2] == ""


@pytest.mark.proof
@pytest.mark.parametrize("command", ["train", "sample"])
def test_a_process_that_does_not_see_the_folder_of_the_run_is_named(toy_run, tmp_path, command):
    folders = [tmp_path / "a", tmp_path / "b"]
    shutil.copytree(toy_run, folders[0] / "run")
    folders[1].mkdir()
    if command == "train":  # a folder of that name, and not the same one
        shutil.copytree(toy_run, folders[1] / "run")
    first, second = end(begin(command, "--workdir=run", folders=folders))
    assert first[0] == second[0] == 2 and first[2].count("\n") == 1 and second[2] == "", (first, second)
    assert "process 1" in first[2] and "workdir=run" in first[2]


@pytest.mark.proof
@pytest.mark.parametrize("number", [0, 1])
def test_a_signal_to_one_process_ends_the_command_in_all_with_its_step_saved(tmp_path, number):
    started = begin("train", *LONG, "--config.training.checkpoint_every=40", f"--workdir={tmp_path}")
    reached(tmp_path, 40, started)
    started[number].send_signal(signal.SIGTERM)
    first, second = end(started)
    assert first[0] == second[0] == 130, (first, second)
    assert f"stopped at step {saved(tmp_path)[-1]} of 100000" in first[1] and "stopped" not in second[1]


@pytest.mark.proof
@pytest.mark.parametrize("number", [0, 1])
def test_a_killed_process_ends_the_other_soon(tmp_path, number):
    started = begin("train", *LONG, "--config.training.checkpoint_every=40", f"--workdir={tmp_path}")
    reached(tmp_path, 40, started)
    started[number].kill()
    status, _, said = end(started, timeout=60)[1 - number]
    # The computation broke off, or a checkpoint; or it waited for a sign of life, and the last word is JAX's.
    assert status not in (0, -signal.SIGKILL)
    assert any(words in said for words in (f"error: process {1 - number}: ", "another task died", "fatal errors")), said
