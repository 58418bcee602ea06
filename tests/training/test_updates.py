"""Several updates of one state, against a game whose iterates are known: order, cadence, buffers, and all the ways that
a step is made."""

import functools
import itertools
import json

import chex
import game
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffuse_jax import training

KEY = jax.random.key(3)
STEPS = 12
INPUTS = np.random.default_rng(1).normal(size=(STEPS, game.ROWS, 2))


def step(updates=None, mesh=None, **options):
    updates = game.updates() if updates is None else updates
    return functools.partial(
        training.train_step,
        updates=updates if mesh is None else training.gathered(updates, mesh),
        ema=training.ema_decay(rate=0.9, batch_size=game.ROWS),
        key=KEY,
        **options,
    )


def state(updates=None, width=1):
    params, extra = game.start(width, jnp.float64)
    return training.create_state(params, game.updates() if updates is None else updates, extra)


def noise():
    """The means of the first player's noise, from the keys that the module says a row has."""
    rows = [
        [jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(KEY, n), i), 0) for i in range(game.ROWS)]
        for n in range(STEPS)
    ]
    return np.asarray([np.mean([jax.random.normal(key, (), jnp.float64) for key in keys]) for keys in rows])


@pytest.fixture(scope="module")
def played():
    """The states after each single step, and the metrics of all."""
    with jax.enable_x64(True):
        call, now, states, metrics = jax.jit(step()), state(), [], []
        for n in range(STEPS):
            now, found = call(now, {"x": INPUTS[n]})
            states.append(now)
            metrics.append(found)
        return jax.device_get((states, metrics, noise()))


def test_alternating_players_go_through_the_recursion(played):
    states, metrics, xi = played
    wanted = game.recursion(INPUTS[:, :, 0].mean(axis=1), xi)
    found = [(s.params["x"][0], s.params["y"][0], s.extra["mean"]) for s in states]
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose([m["x/noise"] for m in metrics], xi, rtol=1e-5)
    assert all(np.array_equal(s.extra["frozen"], np.arange(3)) for s in states)


@pytest.mark.parametrize("every", [1, 3])
def test_without_inputs_the_iterates_are_powers_of_a_matrix(every):
    first = np.array([[1 - game.RATE_X * game.A, -game.RATE_X * game.B], [0, 1]])
    second = np.array([[1, 0], [game.RATE_Y * game.B, 1 - game.RATE_Y * game.C]])
    cycle = np.linalg.matrix_power(first, every - 1) @ second @ first
    quiet = training.Update(
        lambda params, extra, batch, draws: training.LossOutput(jnp.full(draws.index.shape, game.payoff(params))),
        optax.sgd(game.RATE_X),
        of=("x",),
    )
    with jax.enable_x64(True):
        updates = (quiet, game.updates(every)[1])
        now, call = state(updates), jax.jit(step(updates))
        for _ in range(4 * every):
            now, _ = call(now, {"x": np.zeros((game.ROWS, 2))})
    wanted = np.linalg.matrix_power(cycle, 4) @ [1.0, -0.5]
    np.testing.assert_allclose([now.params["x"][0], now.params["y"][0]], wanted, rtol=1e-12)


def test_an_update_that_is_not_due_leaves_its_optimizer_and_says_so(played):
    states, metrics, _ = played
    assert [bool(m["y/loss"].made) for m in metrics] == [n % game.EVERY == 0 for n in range(STEPS)]
    assert set(metrics[0]) == {"x/loss", "x/grad_norm", "x/noise", "y/loss", "y/grad_norm", "y/y"}
    assert all(m["y/loss"].value == 0 for m in metrics[1 :: game.EVERY])
    still = [(a.params["y"], b.params["y"]) for a, b in itertools.pairwise(states)]
    assert [bool(a == b) for a, b in still] == [n % game.EVERY != 0 for n in range(1, STEPS)]


@pytest.mark.parametrize(
    ("devices", "options"),
    [(8, {}), (1, {"accumulate": 4}), (8, {"fsdp": 8}), (8, {"fsdp": 2, "accumulate": 2})],
    ids=["spread", "in parts", "split", "split and in parts"],
)
def test_devices_parts_and_split_states_play_the_same_game(played, devices, options):
    states, metrics, _ = played
    width = 2048 if "fsdp" in options else 1
    with jax.enable_x64(True):
        mesh = training.make_mesh(jax.devices()[:devices], options.get("fsdp", 1))
        made = step(mesh=mesh, accumulate=options.get("accumulate", 1))
        start = state(width=width)
        sharding = training.state_sharding(mesh, start)
        call = training.compile_step(made, mesh, sharding)
        batches = training.global_batch(mesh, {"x": INPUTS}, scanned=True)
        after, found = jax.device_get(call(jax.device_put(start, sharding), batches))
    assert options.get("fsdp", 1) == 1 or any(sharding.params["x"].spec)
    last = states[-1]
    for name in ("x", "y"):
        np.testing.assert_allclose(after.params[name], np.full(width, last.params[name][0]), rtol=1e-9)
        np.testing.assert_allclose(after.ema[name], np.full(width, last.ema[name][0]), rtol=1e-9)
    np.testing.assert_allclose(after.extra["mean"], last.extra["mean"], rtol=1e-9)
    np.testing.assert_allclose(found["x/noise"], [m["x/noise"] for m in metrics], rtol=1e-5)
    assert found["y/loss"].made.tolist() == [bool(m["y/loss"].made) for m in metrics]


@pytest.mark.parametrize("parts", [1, 3, 5])
def test_what_a_loss_leaves_as_it_is_stays_so_to_the_bit(parts):
    """Of three equal numbers the mean need not be the number."""
    frozen = jnp.asarray(np.random.default_rng(0).normal(size=1000), jnp.float32)

    def loss(params, extra, batch, draws):
        return training.LossOutput(batch * params, extra={"teacher": extra["teacher"]})

    updates = (training.Update(loss, optax.sgd(0.1)),)
    now = training.create_state(jnp.ones(()), updates, {"teacher": frozen})
    call = jax.jit(step(updates, accumulate=parts))
    for _ in range(3):
        now, _ = call(now, jnp.ones(15))
    np.testing.assert_array_equal(now.extra["teacher"], frozen)


def test_a_state_can_be_donated_whatever_its_parts_share_and_is_traced_once():
    """What is carried may begin as the parameters, and parameters as numbers of no type of their own."""
    traced = []

    def loss(params, extra, batch, draws):
        traced.append(None)
        return training.LossOutput(jnp.sum((params - extra["teacher"]) ** 2) * batch)

    params = jnp.full(2, 0.5)
    updates = (training.Update(loss, optax.sgd(0.1)),)
    now = training.create_state(params, updates, {"teacher": params})
    call = jax.jit(step(updates), donate_argnums=0)
    for _ in range(3):
        now, _ = call(now, jnp.ones(4))
    assert len(traced) == 1 and not now.params.weak_type


def test_pmap_plays_the_same_game(played):
    with jax.enable_x64(True):
        call = training.pmap_step(step(axis_name="batch"))
        now = training.replicate(state())
        for n in range(STEPS):
            now, _ = call(now, {"x": INPUTS[n]})
        after = training.unreplicate(now)
    last = played[0][-1]
    chex.assert_trees_all_close(jax.device_get((after.params, after.extra)), (last.params, last.extra), rtol=1e-9)


def test_a_game_that_stops_and_goes_on_has_the_bits_of_one_that_did_not(tmp_path):
    game.main(str(tmp_path / "whole"), "12")
    for steps in ("4", "8", "12"):
        game.main(str(tmp_path / "parts"), steps)
    whole, parts = (np.load(tmp_path / name / "final.npz") for name in ("whole", "parts"))
    assert whole.files == parts.files and ".extra['mean']" in whole.files
    for name in whole.files:
        np.testing.assert_array_equal(whole[name], parts[name], err_msg=name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"of": ("z",)}, "names 'z', and the parameters are x, y"),
        ({"of": "x"}, "must be a tuple of names"),
        ({"every": 0}, "every = 0 must be at least 1"),
    ],
)
def test_an_update_that_cannot_be_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        training.create_state(
            game.start()[0], (training.Update(game.descend, optax.sgd(0.1), **change),), game.start()[1]
        )


def test_a_loss_cannot_add_to_what_is_carried():
    bad = training.Update(
        lambda params, extra, batch, draws: training.LossOutput(jnp.zeros(16), extra={"new": 1.0}), optax.sgd(0.1)
    )
    with pytest.raises(ValueError, match=r"extra\['new'\] up to date, and extra has frozen, mean"):
        params, extra = game.start()
        step((bad,))(training.create_state(params, (bad,), extra), {"x": INPUTS[0]})


@pytest.mark.parametrize("where", ["params", "extra"])
def test_what_stops_being_finite_is_never_saved(tmp_path, where):
    broken = {"params": {"y": jnp.full(1, jnp.nan)}, "extra": {"mean": jnp.asarray(jnp.inf)}}[where]

    def made(state, batch):
        after, metrics = step()(state, batch)
        changed = {**getattr(after, where), **broken}
        return type(after)(**{**vars(after), where: changed}), {"x/loss": metrics["x/loss"]}

    params, extra = game.start()
    first = training.create_state(params, game.updates(), extra)
    feed = lambda start, count: iter([(0, {"x": INPUTS[None, 0].astype(np.float32)})])  # noqa: E731
    kept = training.runs.Checkpoints(tmp_path)
    with pytest.raises(training.NonFiniteLoss, match="not finite at step 1: there is no checkpoint"):
        mesh = training.make_mesh(jax.devices()[:1])
        training.fit(first, made, feed, steps=1, mesh=mesh, checkpoints=kept, checkpoint_every=1, progress=False)


def test_the_log_has_the_means_of_the_steps_that_an_update_was_made(tmp_path):
    game.main(str(tmp_path), "4")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert {"x/loss", "x/grad_norm", "y/loss", "y/y"} <= set(lines[0])
    # Of the two steps of a line the second player moved at the first alone, whose y is where it began.
    assert lines[0]["y/y"] == -0.5
