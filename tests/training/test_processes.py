"""Two real processes train as one does, and either goes on from where the other was killed or stopped."""

import pathlib
import signal

import numpy as np
import processes
import pytest
from tiers import proof

TOY, GAME = (str(pathlib.Path(__file__).parent / f"{name}.py") for name in ("toy_training", "game"))
STEPS, WIDTH = 60, 1024


def start(folder, count, fsdp=1, program=TOY):
    """The toy, or the game, in so many processes, in float64."""
    options = [str(WIDTH), str(fsdp)] if program == TOY else []
    toy, address = [program, str(folder), str(STEPS), *options], f"127.0.0.1:{processes.free_port()}"
    several = [[*toy, address, str(count), str(number)] for number in range(count)]
    return processes.start(several if count > 1 else [toy], JAX_ENABLE_X64="1")


def finish(started):
    ends = processes.end(started)
    assert [status for status, *_ in ends] == [0] * len(started), ends


def final(folder):
    with np.load(folder / "final.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The final state of one process that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    finish(start(folder, 1))
    return final(folder)


def assert_same(found, whole):
    assert found.keys() == whole.keys() and int(found[".step"]) == STEPS
    for name, leaf in whole.items():
        assert leaf.dtype == found[name].dtype
        np.testing.assert_allclose(found[name], leaf, rtol=1e-9, atol=1e-15, err_msg=name)


@pytest.mark.proof
def test_runs_killed_in_two_processes_and_in_one_go_on_in_the_other_number(whole, tmp_path):
    """Two processes, their state split over all four devices, are killed; one, which has it whole, goes on and is
    killed; two finish."""
    for count, fsdp, step in ((2, 4, 8), (1, 1, 28)):
        started = start(tmp_path, count, fsdp)
        with processes.killed(started):
            processes.reached(tmp_path, step, started)
        assert {process.returncode for process in started} == {-signal.SIGKILL}
    assert not (tmp_path / "final.npz").exists()
    finish(start(tmp_path, 2, 2))
    assert_same(final(tmp_path), whole)


@pytest.mark.parametrize(
    ("number", "to"),
    [
        (signal.SIGTERM, [1]),
        proof(signal.SIGINT, [0]),
        proof(signal.SIGTERM, [0, 1]),
    ],
)
def test_a_signal_to_any_process_stops_all_at_one_step_which_is_saved(whole, tmp_path, number, to):
    started = start(tmp_path, 2)
    processes.reached(tmp_path, 4, started)
    for i in to:
        started[i].send_signal(number)
    finish(started)
    stopped = [int((tmp_path / f"stopped.{i}").read_text()) for i in range(2)]
    assert stopped == [processes.saved(tmp_path)[-1]] * 2 and 4 < stopped[0] < STEPS
    finish(start(tmp_path, 1))
    assert_same(final(tmp_path), whole)


@pytest.mark.proof
def test_two_players_in_two_processes_are_stopped_and_go_on_in_one(tmp_path):
    """A method of two updates, one of which is made at every other step, and a buffer."""
    alone, several = tmp_path / "alone", tmp_path / "several"
    finish(start(alone, 1, program=GAME))
    started = start(several, 2, program=GAME)
    processes.reached(several, 4, started)
    started[1].send_signal(signal.SIGTERM)
    finish(started)
    stopped = [int((several / f"stopped.{i}").read_text()) for i in range(2)]
    assert stopped == [processes.saved(several)[-1]] * 2 and 4 < stopped[0] < STEPS
    finish(start(several, 1, program=GAME))
    assert_same(final(several), final(alone))
