"""Experiment files: each one builds, a name finds it, an override takes effect, and what was recorded comes back."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from diffuse_jax.conditions import Condition
from diffuse_jax.config import (
    ConfigError,
    DataInfo,
    base,
    build,
    describe,
    experiments,
    network,
    override,
    read,
    resolve,
)
from diffuse_jax.config.workdir import check_fits, read_run, write_run
from diffuse_jax.nets import param_count
from diffuse_jax.training import step_draws


@pytest.mark.parametrize("name", [name for name in experiments() if name.startswith(("digits", "toy2d"))])
def test_the_small_experiments_build(name):
    experiment = build(read(name))
    state = jax.eval_shape(experiment.create_state)
    assert param_count(state.ema) == param_count(experiment.params) > 0
    after, metrics = jax.eval_shape(experiment.update(), state, batch_of(experiment))
    assert jax.tree.structure(after) == jax.tree.structure(state) and metrics["loss"].shape == ()
    if experiment.method.draw is not None:
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
        cond = {name: leaf for name, leaf in batch_of(experiment).items() if name != "x"} or None
        model = jax.eval_shape(experiment.method.model, state.ema, state.extra)
        drawn = jax.eval_shape(lambda *a: experiment.method.draw.function(*a, False), model, keys, cond)
        assert drawn.x.shape == (2, *experiment.data.shape)


def batch_of(experiment):
    """The shapes of two rows of its data."""
    x = jax.ShapeDtypeStruct((2, *experiment.data.shape), np.uint8 if experiment.data.levels else np.float32)
    label = {"label": jax.ShapeDtypeStruct((2,), np.int32)} if experiment.data.num_classes else {}
    return {"x": x, **label}


def test_the_published_processes_are_those_of_the_published_settings():
    ve, vp = (build(read(name)) for name in ("cifar10_ve_ncsnpp_continuous", "cifar10_vp_ddpmpp_continuous"))
    np.testing.assert_allclose([ve.sde.sigma(0.0), ve.sde.sigma(1.0), ve.sde.alpha(1.0)], [0.01, 50, 1], rtol=1e-5)
    np.testing.assert_allclose(vp.sde.alpha(1.0), np.exp(-(0.1 + 20) / 4), rtol=1e-5)
    assert len(ve.plan.times) == len(vp.plan.times) == 1001
    assert ve.plan.solver.evaluations * (len(ve.plan.times) - 1) == 2000


def test_a_name_finds_the_built_in_experiment_and_a_file_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    built_in = str(experiments()["toy2d"])
    for name in ("toy2d", "toy2d.py", "experiments/toy2d.py", built_in):
        assert resolve(name) == built_in
    assert resolve("toy2d:rings") == f"{built_in}:rings" and read("toy2d:rings").data.source == "rings"
    (tmp_path / "toy2d.py").write_text("from diffuse_jax.config import base\ndef get_config(): return base()\n")
    assert resolve("toy2d.py") == "toy2d.py" and read("toy2d.py").data.source == "digits"
    for name in ("elsewhere/toy2d.py", "/nowhere/digits"):
        with pytest.raises(ConfigError, match=name):
            resolve(name)


def test_overrides_are_read_by_the_type_of_their_field():
    config = override(
        base(),
        [
            "--config.training.steps=7",
            "--config.model.ch_mult=1,2",
            "--config.data.flip",
            "--noconfig.data.centered",
            "--config.ema.rate=0.5",
            "--config.sde.beta_max=3",
            "--config.data.image_size=8",
            "--config.data.image_size=None",
        ],
    )
    assert (config.training.steps, config.model.ch_mult, config.ema.rate) == (7, (1, 2), 0.5)
    assert config.data.flip is True and config.data.centered is False
    assert isinstance(config.sde.beta_max, float) and config.sde.beta_max == 3
    assert config.data.image_size is None
    with pytest.raises(ConfigError, match=r"config.training.steps=None must be an integer"):
        override(base(), ["--config.training.steps=None"])


def test_a_source_is_recorded_as_the_file_that_it_names_from_here_and_now(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.npz").touch()
    for given, recorded in (
        ("~/x.npz", f"{tmp_path}/x.npz"),
        ("x.npz", f"{tmp_path}/x.npz"),
        ("~/absent", f"{tmp_path}/absent"),
        ("tfds:~/prepared", f"tfds:{tmp_path}/prepared"),
        ("tfds:cifar10", "tfds:cifar10"),
        ("digits", "digits"),
        ("absent", "absent"),
    ):
        assert read("digits", [f"--config.data.source={given}"]).data.source == recorded


def test_a_decaying_rate_ends_at_the_experiments_number_of_steps():
    data = describe(read("toy2d"))
    options = ["--config.model.width=4", "--config.training.steps=400"]
    falling, constant = (
        build(read("toy2d", [*options, f"--config.optimizer.decay={decay}"]), data).method.updates[0].optimizer
        for decay in ("linear", "none")
    )
    for n, left in ((300, 1 / 4), (400, 0)):
        memory = optax.tree.set(falling.init(jnp.zeros(1)), count=jnp.int32(n), mu=jnp.ones(1), nu=jnp.ones(1))
        update, full = (optimizer.update(jnp.ones(1), memory, jnp.zeros(1))[0] for optimizer in (falling, constant))
        np.testing.assert_allclose(update / full, left, rtol=1e-6)


def test_a_recorded_run_comes_back_as_it_was(tmp_path):
    config = read("digits", ["--config.model.ch_mult=1,", "--config.ema.halflife_images=10"])
    write_run(tmp_path, config, describe(config), 1617)
    stored, data = read_run(tmp_path)
    assert stored.to_dict() == config.to_dict() and (data.shape, data.levels) == ((8, 8, 1), 17)
    assert stored.is_locked and stored.model.ch_mult == (1,)
    # A field that is empty may still be filled.
    assert override(stored, ["--config.data.channels=1"]).data.channels == 1


def test_a_run_may_go_on_with_another_kernel_of_attention_but_not_with_another_network(tmp_path):
    config = read("digits")
    write_run(tmp_path, config, describe(config))
    config.model.attention = "cudnn"
    check_fits(config, describe(config), tmp_path)
    config.model.nf = 8
    with pytest.raises(ConfigError, match=r"another experiment: config.model.nf was \d+ and is 8\. Give"):
        check_fits(config, describe(config), tmp_path)


@pytest.mark.parametrize("fields", [{"widths": [8, 8]}, {"widths": (8, 8)}])
def test_fields_of_ones_own_are_recorded_and_compared(tmp_path, fields):
    config = base()
    config.model = ConfigDict({"name": "package.module:Network", "inner": {"depth": 2}, **fields})
    config.sde = ConfigDict({"name": "package.module:process", "bend": 1.5})
    data = describe(config)
    write_run(tmp_path, config, data, 90)
    check_fits(config, data, tmp_path, 90)
    with pytest.raises(ConfigError, match="the data had 90 training rows and have 95"):
        check_fits(config, data, tmp_path, 95)
    config.model.inner.depth = 3
    config.training.steps = 10
    config.sampling.steps = 10
    with pytest.raises(ConfigError, match=r"config.model.inner.depth was 2 and is 3\. Give"):
        check_fits(config, data, tmp_path)


def test_a_network_lists_every_field_of_its_module_and_no_other():
    assert set(network("mlp")) == {"name", "width", "depth", "frequencies", "dropout"}
    with pytest.raises(ConfigError, match=r"config\.model: .*no_such_field"):
        config = base()
        config.model = network("mlp", no_such_field=3)
        build(config, describe(read("toy2d")))


def test_the_heldout_loss_has_no_flips_and_no_dequantization():
    tiny = [f"--config.model.{option}" for option in ("nf=4", "ch_mult=1,", "attn_resolutions=1,", "num_res_blocks=1")]
    experiment = build(read("digits", [*tiny, "--config.data.flip=True", "--config.data.dequantize=True"]))
    plain = build(read("digits", tiny), experiment.data)
    draws = step_draws(jax.random.key(0), jnp.int32(0), 4)
    batch = {"x": np.random.default_rng(0).integers(0, 17, (4, 8, 8, 1)).astype(np.uint8) * 15}
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, leaf.dtype), experiment.params)
    three = (experiment.method.heldout["loss"], plain.method.updates[0].loss, experiment.method.updates[0].loss)
    heldout, without, with_both = (np.asarray(jax.jit(loss)(params, {}, batch, draws).each) for loss in three)
    np.testing.assert_array_equal(heldout, without)
    assert not np.allclose(heldout, with_both, rtol=1e-4)


# Process, and what suits it: parameterization and c_noise.
SUITED = [
    ("cosine", "v", "t"),
    ("edm", "edm", "sigma"),
    ("flow", "flow", "t"),
    ("ddpm", "noise", "index"),
    ("ddpm", "x0", "nearest_index"),
    ("smld", "score", "reversed_index"),
]


@pytest.mark.parametrize("features", [1, 2, 5])
def test_a_network_whose_output_has_another_shape_than_the_data_is_refused_when_it_is_built(features, monkeypatch):
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parents[1] / "cli")
    config = read("toy2d")
    config.unlock()
    config.model = ConfigDict({"name": "cli_models:Features", "features": features})
    if features == 2:
        assert build(config, DataInfo((2,), None)).data.shape == (2,)
    else:
        message = rf"config\.model\.name='cli_models:Features' .*\(1, 2\) it returns \(1, {features}\)"
        with pytest.raises(ConfigError, match=message):
            build(config, DataInfo((2,), None))


def test_every_process_with_what_suits_it_takes_a_step_of_training_that_changes_its_parameters():
    tiny = ["--config.model.width=8", "--config.model.depth=1", "--config.optimizer.warmup=0"]
    data = describe(read("toy2d"))
    experiments = [
        build(
            read(
                "toy2d",
                [
                    *tiny,
                    f"--config.sde.name={sde}",
                    f"--config.parameterization.name={name}",
                    f"--config.parameterization.c_noise={label}",
                ],
            ),
            data,
        )
        for sde, name, label in SUITED
    ]
    batch = {"x": np.random.default_rng(0).uniform(-1, 1, (4, 2)).astype(np.float32)}

    @jax.jit
    def step(batch):
        results, state = [], experiments[0].create_state()
        for e in experiments:
            after, metrics = e.update()(state, batch)
            change = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), after.params, state.params)
            results.append((metrics, jnp.max(jnp.stack(jax.tree.leaves(change)))))
        return results

    for suited, (metrics, change) in zip(SUITED, step(batch), strict=True):
        assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"]) and 0 < change < 0.1, suited


def test_a_process_has_the_numbers_of_its_section():
    def sde_of(name, *options):
        return build(
            read("toy2d", [f"--config.sde.name={name}", *(f"--config.sde.{option}" for option in options)])
        ).sde

    edm, ours = sde_of("edm"), sde_of("edm", "sigma_max=20", "sigma_min=0.01")
    assert (edm.T, edm.t_min, ours.T, ours.t_min) == (80, 0.002, 20, 0.01)
    assert sde_of("cosine", "s=0.1").s == 0.1
    np.testing.assert_allclose(sde_of("ve").sigma(1.0), 50, rtol=1e-6)
    np.testing.assert_allclose(sde_of("ddpm").alpha(1.0), 0.006352818, rtol=1e-6)
    smld = sde_of("smld", "num_scales=10", "sigma_min=1", "sigma_max=10")
    np.testing.assert_allclose(smld.sigma(smld.table_times()), np.geomspace(1, 10, 10), rtol=1e-6)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sde.name=xx", "vp, subvp, ve, cosine, edm, flow, ddpm, smld"),
        ("sde.s=-1.0", r"config\.sde\.s=-1\.0 must be at least 0"),
        ("sde.num_scales=1", r"config\.sde\.num_scales=1 must be at least 2"),
        ("sde.sigma_min=60.0", r"config\.sde\.sigma_min=60\.0 must be below sigma_max=50\.0"),
        ("parameterization.c_noise=index", r"config\.parameterization\.c_noise='index': .* table, .* not VP"),
        ("parameterization.c_noise=edm", r"config\.parameterization\.c_noise='edm' is negative .* must be 'sigma'"),
        ("parameterization.sigma_data=0.0", r"config\.parameterization\.sigma_data=0\.0 must be above 0"),
    ],
)
def test_a_process_or_parameterization_that_cannot_be_met_is_refused_by_its_field(override, message):
    config = read("toy2d", ["--config.parameterization.name=edm", f"--config.{override}"])
    with pytest.raises(ConfigError, match=message):
        build(config, describe(read("toy2d")))


def test_a_table_too_short_for_its_beta_is_refused():
    with pytest.raises(ConfigError, match=r"config\.sde\.num_scales=20 must be above beta_max=20\.0"):
        build(read("toy2d", ["--config.sde.name=ddpm", "--config.sde.num_scales=20"]))


def test_a_run_of_before_there_were_methods_is_read_as_it_was_meant(tmp_path):
    """As config.json was written then: no method, codec, conditions or optimizer's name, and the time as a label."""
    config = read("digits", ["--config.data.labels=True"])
    config.parameterization.c_noise = "t"
    data = DataInfo((8, 8, 1), 17, {"label": Condition((), 10)})
    write_run(tmp_path, config, data)
    stored = json.loads((tmp_path / "config.json").read_text())
    for section in ("method", "codec", "own"):
        del stored["config"][section]
    newer = {"data": ("images", "tokens", "vocabulary"), "loss": ("drop_conditions",), "optimizer": ("name",)}
    for section, fields in (newer | {"evaluation": ("metrics",)}).items():
        for field in fields:
            del stored["config"][section][field]
    stored["config"]["parameterization"]["label"] = stored["config"]["parameterization"].pop("c_noise")
    stored["data"] = {"shape": [8, 8, 1], "levels": 17, "num_classes": 10}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    found, known = read_run(tmp_path)
    assert found.to_dict() == config.to_dict() and known == data
    check_fits(config, data, tmp_path)
