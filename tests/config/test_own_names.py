"""Wherever a name is chosen in a config, "module:name" serves too, with options of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import own_names
import pytest
from ml_collections import ConfigDict

from diffuse_jax import solvers, times
from diffuse_jax.cli import main
from diffuse_jax.config import ConfigError, DataInfo, base, build, load, network
from diffuse_jax.sde import VP
from diffuse_jax.training.step import step_draws

DATA = DataInfo((2,), None)


def config(own=None, **sections):
    made = base()
    made.model = network("mlp", width=8, depth=1)
    made.parameterization.c_noise = "t"
    made.ema.rate = 0.9
    made.own = ConfigDict(own or {})
    for name, fields in sections.items():
        made[name].update(fields)
    return made


def losses_of(made):
    loss = made.method.updates[0].loss
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1), made.params)
    draws = step_draws(jax.random.key(0), jnp.int32(0), 64)
    return np.asarray(loss(params, {}, {"x": jnp.ones((64, 2))}, draws).each)


def test_a_weighting_of_ones_own_weighs_the_loss():
    """σ^p on the score's error is σ^(p − 2) times the plain loss."""
    plain, own, squared = (
        losses_of(build(c, DATA))
        for c in (
            config(loss={"weight": "sigma2"}),
            config(loss={"weight": "own_names:weight"}, own={"weight": {"power": 3.0}}),
            config(loss={"weight": "own_names:weight"}, own={"weight": {"power": 2.0}}),
        )
    )
    np.testing.assert_allclose(squared, plain, rtol=1e-5)
    assert (own < plain).all()  # σ < 1


def test_times_of_ones_own_are_drawn():
    early, late = (
        losses_of(build(config(loss=loss, own=own), DATA))
        for loss, own in (({}, {}), ({"times": "own_names:late_times"}, {"times": {"share": 1e-6}}))
    )
    assert np.ptp(early) > 0 and not np.allclose(early, late)


def test_a_solver_grid_and_finish_of_ones_own_draw():
    own = {"solver": {"eta": 0.5}, "grid": {"ratio": 3.0}, "finish": {"scale": 2.0}}
    names = {"solver": "own_names:solver", "grid": "own_names:grid", "finish": "own_names:finish", "steps": 5}
    plan = build(config(sampling={**names, "noise": "own_names:noise"}, own=own), DATA).plan
    assert jax.tree.leaves(plan.solver) == jax.tree.leaves(solvers.ddim(0.5))
    np.testing.assert_array_equal(plan.times, times.karras(VP(), 5, rho=3.0))
    assert plan.noise is own_names.noise and plan.finish.keywords == {"scale": 2.0}
    with_corrector = {"solver": "own_names:solver+langevin", "steps": 5}
    assert build(config(sampling=with_corrector), DATA).plan.name == "own_names:solver+langevin"


def test_other_choices_of_ones_own_are_taken():
    made = config(
        parameterization={"name": "own_names:parameterization", "c_noise": "own_names:c_noise"},
        evaluation={"trace": "own_names:trace"},
    )
    made.optimizer = ConfigDict({"name": "own_names:optimizer", "learning_rate": 0.5})
    experiment = build(made, DATA)
    assert float(experiment.parameterization.c_noise(VP(), 1.0)) == pytest.approx(7.0, rel=1e-4)
    optimizer = experiment.method.updates[0].optimizer
    change, _ = optimizer.update(jnp.ones(()), optimizer.init(jnp.ones(())))
    assert float(change) == -0.5


def test_a_codec_of_ones_own_stands_between_data_and_model():
    """The loss is that of what the codec makes of the data, which have no likelihood through it."""
    made = config()
    made.codec = ConfigDict({"name": "own_names:codec"})
    coded, plain = build(made, DATA), build(config(), DATA)
    x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    halves = np.stack([x.sum(axis=1) / 2, (x[:, 0] - x[:, 1]) / 2], axis=1)
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1), plain.params)
    draws = step_draws(jax.random.key(0), jnp.int32(0), 64)
    own, wanted = (
        e.method.updates[0].loss(params, {}, {"x": rows}, draws).each for e, rows in ((coded, x), (plain, halves))
    )
    np.testing.assert_allclose(own, wanted, rtol=1e-4)
    assert coded.method.log_prob is None and plain.method.log_prob is not None


def test_a_codec_of_another_shape_than_it_says_is_refused():
    made = config()
    made.codec = ConfigDict({"name": "own_names:codec", "broken": True})
    with pytest.raises(ConfigError, match=r"encodes rows of data of shape \(2,\) to \(2,\), and must to \(3,\)"):
        build(made, DATA)


@pytest.mark.parametrize(
    ("section", "fields", "words"),
    [
        ("loss", {"weight": "own_names:none"}, r"config\.loss\.weight='own_names:none' cannot be imported"),
        ("sampling", {"solver": "own_names:nothing"}, r"config\.sampling\.solver='own_names:nothing' made a NoneType"),
        ("sampling", {"grid": "own_names:nothing"}, r"config\.sampling\.grid='own_names:nothing' must give falling"),
        ("optimizer", {"name": "own_names:nothing"}, r"config\.optimizer\.name='own_names:nothing' made a NoneType"),
        ("parameterization", {"name": "own_names:nothing"}, r"made a NoneType, no Parameterization"),
        ("method", {"name": "own_names:nothing"}, r"config\.method\.name='own_names:nothing' made a NoneType"),
        ("method", {"name": "x"}, r"config\.method\.name='x' must be one of denoising"),
    ],
)
def test_what_is_not_what_it_stands_for_is_refused(section, fields, words):
    with pytest.raises(ConfigError, match=words):
        build(config(**{section: fields}), DATA)


def test_a_method_of_ones_own_trains_evaluates_and_says_what_it_cannot(tmp_path, capsys):
    file = tmp_path / "mean.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        "from diffuse_jax.config import base\n"
        "def get_config():\n"
        "    config = base()\n"
        "    config.data.source = 'moons'\n"
        "    config.method = ConfigDict({'name': 'own_names:method', 'rate': 0.5})\n"
        "    return config\n"
    )
    steps = [f"--config.training.{name}=4" for name in ("steps", "checkpoint_every", "log_every")]
    run = f"--workdir={tmp_path / 'run'}"
    assert main(["train", f"--config={file}", run, *steps, "--config.training.batch_size=4096"]) == 0
    # Each step of rate 1/2 on (x − p)² goes all the way to the mean of its batch.
    mean = np.asarray(load(tmp_path / "run"))
    assert "samples " not in capsys.readouterr().out
    assert main(["evaluate", run]) == 0
    assert "heldout_loss" in capsys.readouterr().out
    from diffuse_jax.data import load_dataset

    rows = load_dataset("moons").train
    np.testing.assert_allclose(mean, rows[np.arange(len(rows))]["x"].mean(axis=0), atol=0.05)
    for command, words in (("sample", "has nothing to sample"), ("likelihood", "has no density")):
        assert main([command, run]) == 2
        error = capsys.readouterr().err
        assert words in error and "own_names:method" in error and error.count("\n") == 1
