"""The loop: what it writes, what stops it, and that stopping changes nothing."""

import json
import os
import resource
import signal
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_training as toy
from tiers import proof

from diffuse_jax import training
from diffuse_jax.checkpoints import Checkpoints
from diffuse_jax.training.logs import MetricLog, drop_lines_after
from diffuse_jax.training.loop import Interrupt


@pytest.fixture(scope="module")
def mesh():
    return training.make_mesh(jax.devices()[:1])


@pytest.fixture
def fit(mesh, tmp_path):
    """Trains the toy in tmp_path from its last checkpoint, like a command that is started again."""

    def run(feed=toy.feed, *, steps=12, step=None, folder=tmp_path, **options):
        with Checkpoints(folder / "checkpoints") as checkpoints:
            start = training.make_state(toy.state, mesh)
            if checkpoints.latest_step() is not None:
                start = checkpoints.restore(start, sharding=training.replicated(mesh))
            defaults = {"steps_per_call": 2, "log_every": 4, "checkpoint_every": 6, "progress": False}
            return training.fit(
                start,
                step or toy.step(),
                feed,
                steps=steps,
                mesh=mesh,
                checkpoints=checkpoints,
                workdir=folder,
                **(defaults | options),
            )

    return run


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def saved(folder):
    return Checkpoints(folder / "checkpoints", read_only=True).steps()


def disturbed(at, action):
    """The toy's batches, with `action()` just before those of step `at` are handed over."""

    def feed(start, count):
        for step, batch in toy.feed(start, count):
            if step == at:
                action()
            yield step, batch

    return feed


def assert_same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def test_a_run_logs_means_over_each_window_and_saves_at_its_cadence(fit, tmp_path, mesh):
    outcome = fit(steps=14)
    assert (int(outcome.state.step), outcome.interrupted) == (14, False)
    assert [line["step"] for line in lines(tmp_path)] == [4, 8, 12, 14]
    assert saved(tmp_path) == [6, 12, 14]
    call, state, losses = training.compile_step(toy.step(), mesh), toy.state(), []
    for start in range(0, 14, 2):
        state, metrics = call(state, training.global_batch(mesh, toy.stacked(start, 2), scanned=True))
        losses.extend(np.asarray(metrics["loss"], np.float64))
    assert_same(state, outcome.state)
    means = [np.mean(losses[a:b]) for a, b in ((0, 4), (4, 8), (8, 12), (12, 14))]
    np.testing.assert_allclose([line["loss"] for line in lines(tmp_path)], means, rtol=1e-12)
    assert all(line["images_per_second"] > 0 for line in lines(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGTERM, proof(signal.SIGINT)])
def test_a_signal_saves_and_the_run_goes_on_as_if_it_had_not_come(fit, tmp_path, number):
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    whole = fit(folder=tmp_path / "whole")
    part = fit(disturbed(6, lambda: signal.raise_signal(number)))
    assert part.interrupted and saved(tmp_path)[-1] == int(part.state.step) == 8
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    rest = fit()
    assert not rest.interrupted
    assert_same(whole.state, rest.state)
    columns = [[(line["step"], line["loss"]) for line in lines(folder)] for folder in (tmp_path, tmp_path / "whole")]
    assert columns[0] == columns[1]


def test_a_second_interrupt_does_not_wait(fit):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(disturbed(2, twice))


def test_two_requests_to_terminate_still_end_in_order():
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.requested


@pytest.mark.parametrize("log_every", [2, 12])
def test_a_loss_that_is_not_finite_names_its_step_and_is_never_saved(fit, tmp_path, log_every):
    def poisoned(start, count):
        for step, batch in toy.feed(start, count):
            batch["x"][max(0, 9 - step) :] *= np.nan if step >= 8 else 1.0  # from the batch of step 9 on
            yield step, batch

    with pytest.raises(training.NonFiniteLoss, match=r"loss is not finite at step 10: .* step 6") as caught:
        fit(poisoned, log_every=log_every)
    assert (caught.value.step, caught.value.last_good) == (10, 6)
    assert saved(tmp_path) == [6]


def test_parameters_that_are_not_finite_are_never_saved(fit, tmp_path):
    """The loss of a step is that of the parameters before it, so a bad last update does not show in it."""

    def step(state, batch):
        new, metrics = toy.step()(state, batch)
        broken = jax.tree.map(lambda p: jnp.where(new.step == 6, jnp.inf, p), new.params)
        return training.TrainState(step=new.step, params=broken, ema=new.ema, opt_state=new.opt_state), metrics

    with pytest.raises(training.NonFiniteLoss, match="parameters are not finite at step 6: there is no checkpoint"):
        fit(step=step)
    assert saved(tmp_path) == []


def test_callbacks_see_the_state_at_their_cadence_and_are_logged_with_it(fit, tmp_path):
    seen = []

    def held_out(state, step):
        seen.append((step, int(state.step)))
        return {"held_out": 10.0 * step}

    fit(callbacks=[training.Callback(6, held_out), training.Callback(4, lambda state, step: {"bad": np.nan})])
    assert seen == [(6, 6), (12, 12)]
    assert [line["step"] for line in lines(tmp_path)] == [4, 6, 8, 12]
    assert [line.get("held_out") for line in lines(tmp_path)] == [None, 60.0, None, 120.0]
    assert lines(tmp_path)[0]["bad"] is None


def test_tensorboard_has_the_lines_of_both_halves(fit, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    fit(disturbed(6, lambda: signal.raise_signal(signal.SIGTERM)))
    fit()
    board = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("loss")] == [4, 8, 12]


def test_tensorboard_takes_back_what_the_log_takes_back(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for start, steps in ((0, (2, 4, 6)), (4, (8,))):
        with MetricLog(tmp_path, start) as log:
            for step in steps:
                log.write(step, {"loss": step / 2})
    board = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(2, 1), (4, 2), (8, 4)]
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 8]


def test_a_finished_run_started_again_does_nothing(fit, tmp_path):
    done = fit()
    before = (tmp_path / "metrics.jsonl").read_text()
    again = fit(lambda start, count: iter(()))
    assert_same(done.state, again.state)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_lines_after_the_restored_step_and_torn_lines_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = "".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (2, 4))
    path.write_text(whole + '{"step": 6, "loss": 1.0}\n{"step": 3, "lo')
    drop_lines_after(path, 4)
    assert path.read_text() == whole
    assert os.listdir(tmp_path) == ["metrics.jsonl"]
    drop_lines_after(tmp_path / "absent", 4)


@pytest.mark.parametrize(
    "tail",
    [b'{"step": 3, "lo\xff\xfe\x00', "é".encode()[:1], b"\x00" * 4096, b"\x00\n\xc3\n\n{\n" + b"[" * 10_000 + b"\n"],
)
def test_bytes_that_are_no_lines_are_dropped_from_the_log(tmp_path, tail):
    """As a kill, or a loss of power, leaves them. JSON that is not ours is left alone."""
    path = tmp_path / "metrics.jsonl"
    whole = b'{"step": 2, "loss": null}\n[]\n3\n{"step": "x"}\n{"note": "\xc3\xa9"}\n{"step": 4, "loss": 1.0}\n'
    path.write_bytes(whole + tail)
    drop_lines_after(path, 4)
    assert path.read_bytes() == whole


@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")  # of another layout than the state's
@pytest.mark.parametrize("fsdp", [proof(1), 8])
def test_a_run_is_traced_once_and_lays_its_state_as_the_rule_says(fsdp):
    """From a state on one device, of arrays that are large enough to be split."""
    chex.clear_trace_counter()

    @chex.assert_max_traces(n=1)
    def step(state, batch):
        return toy.step()(state, batch)

    mesh, state = training.make_mesh(fsdp=fsdp), toy.state(width=1024)
    placed = training.state_sharding(mesh, state)
    outcome = training.fit(state, step, toy.feed, steps=8, mesh=mesh, steps_per_call=2, log_every=4, progress=False)
    assert int(outcome.state.step) == 8
    chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf.sharding, outcome.state), placed)
    assert placed.ema["in"]["kernel"].is_fully_replicated == (fsdp == 1)


def test_the_batches_are_closed_however_the_run_ends(fit):
    closed = []

    def feed(start, count):
        try:
            yield from toy.feed(start, count)
        finally:
            closed.append(start)

    fit(feed, steps=2)
    with pytest.raises(ZeroDivisionError):
        fit(feed, steps=8, callbacks=[training.Callback(4, lambda state, step: {"x": 1 / 0})])
    assert closed == [0, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"log_every": 3}, r"log_every = 3 must be a positive multiple of steps_per_call = 2"),
        ({"checkpoint_every": 5}, "checkpoint_every = 5"),
        ({"steps": 7}, "steps = 7"),
        ({"callbacks": [training.Callback(3, lambda state, step: {})]}, r"callbacks\[0\]\.every = 3"),
        ({"steps_per_call": 0}, "steps_per_call = 0"),
        ({"feed": lambda start, count: iter([(0, toy.stacked(0, 2))])}, "ended at step 2"),
        ({"feed": lambda start, count: toy.feed(start + 2, count)}, "from step 0, and got .* from step 2"),
        ({"feed": lambda start, count: toy.feed(start, 1)}, r"asked for 2 batches .* got \{1\}"),
    ],
)
def test_a_run_that_does_not_fit_together_is_refused_by_field(fit, options, message):
    with pytest.raises(ValueError, match=message):
        fit(**options)


def test_a_state_that_is_not_its_checkpoints_is_refused(fit, mesh, tmp_path):
    fit(steps=6, checkpoint_every=6)
    with pytest.raises(ValueError, match="not a multiple of steps_per_call = 4"):
        fit(steps=12, steps_per_call=4, checkpoint_every=4)
    with pytest.raises(ValueError, match="step 6, past steps = 4"):
        fit(steps=4)
    with (
        Checkpoints(tmp_path / "checkpoints") as checkpoints,
        pytest.raises(ValueError, match="at step 0, but its checkpoints go to step 6"),
    ):
        training.fit(toy.state(), toy.step(), toy.feed, steps=8, mesh=mesh, checkpoints=checkpoints)


def test_a_full_disk_ends_the_run_with_the_file_that_did_not_fit(mesh, tmp_path):
    path = tmp_path / "metrics.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():  # no file may grow beyond a little more than the log is now
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limits[1]))

    path.write_text('{"step": 0}\n' * 100)
    try:
        with pytest.raises(OSError, match=r"metrics\.jsonl"):
            training.fit(
                toy.state(),
                toy.step(),
                disturbed(2, fill),
                steps=9,
                mesh=mesh,
                workdir=tmp_path,
                log_every=1,
                progress=False,
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    drop_lines_after(path, 9)
    assert [line["step"] for line in lines(tmp_path)] == [0] * 100 + [1, 2]


def test_the_progress_bar_goes_to_stderr_and_only_when_asked(fit, capsys):
    fit(steps=2, progress=True)
    captured = capsys.readouterr()
    assert captured.out == "" and "2/2" in captured.err and "loss=" in captured.err
    fit(steps=4)
    assert capsys.readouterr() == ("", "")


def test_data_that_hold_more_than_one_array_are_stacked_and_split_alike(mesh):
    """Labels beside images, and float16 beside uint8, reach the loss as they were given."""

    def feed(start, count):
        yield start, {"x": np.full((count, 4, 2, 2), 3, np.uint8), "label": np.tile(np.arange(4), (count, 1))}

    def loss(params, extra, batch, draws):
        assert batch["x"].dtype == jnp.uint8 and batch["x"].shape == (4, 2, 2)
        return training.LossOutput(params * batch["label"] + batch["x"].sum((1, 2), dtype=jnp.float32))

    updates = (training.Update(loss, training.adam(1.0)),)
    step = partial(
        training.train_step,
        updates=updates,
        ema=training.ema_decay(rate=0.5, batch_size=4),
        key=jax.random.key(0),
    )
    state = training.create_state(jnp.ones(()), updates)
    outcome = training.fit(state, step, feed, steps=1, mesh=mesh, progress=False)
    np.testing.assert_allclose(
        outcome.state.params, 0.0, atol=1e-4
    )  # Adam's first step is the rate, down the slope 1.5
