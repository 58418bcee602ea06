"""Other programs' files as runs: the network of a run is the original's, and the other commands work on it."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli_models import run
from fixtures.make_edm import drawn
from flax.serialization import msgpack_serialize
from flax.traverse_util import unflatten_dict
from tiers import proof

import diffuse_jax
from diffuse_jax.checkpoints import Checkpoints
from diffuse_jax.config import describe, read
from diffuse_jax.config.workdir import CHECKPOINTS, read_run, write_run
from diffuse_jax.convert import to_diffusers, write_safetensors
from diffuse_jax.nets import LinenNet
from diffuse_jax.nets.unet2d import UNet2D
from diffuse_jax.sde import cosine_betas

# What makes any command a matter of seconds.
QUICK = [
    "--config.sampling.solver=ddim",
    "--config.sampling.steps=2",
    "--config.sampling.batch_size=2",
    "--config.evaluation.rtol=0.5",
    "--config.evaluation.atol=0.5",
    "--config.evaluation.num_loss=2",
    "--config.evaluation.num_likelihood=2",
    "--config.evaluation.num_samples=2",
    "--config.training.batch_size=2",
]


def contents(path: pathlib.Path) -> tuple[dict, dict, dict]:
    """Parameters by their original names, everything else, and the options, of a fixture."""
    with np.load(path) as file:
        data = dict(file)
    params = {name.removeprefix("param/"): data[name].astype(np.float32) for name in data if name.startswith("param/")}
    return params, data, json.loads(str(data["config"]))


def written(path: pathlib.Path, options: dict) -> pathlib.Path:
    path.write_text(json.dumps(options), encoding="utf-8")
    return path


def outputs(folder, data):
    """What the averaged network of a run gives for the inputs of a fixture."""
    denoise = diffuse_jax.load(folder)
    return denoise.net(denoise.params, jnp.asarray(data["x"]), jnp.asarray(data["t"]))


def assert_same_params(one, other):
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.net == other.net


def process_of(folder):
    config, data = read_run(folder)
    return (config.sde.name, config.parameterization.name, config.parameterization.c_noise), config, data


@pytest.fixture(scope="module")
def of_flax(fixtures_folder, tmp_path_factory):
    """The run of a checkpoint of score_sde's JAX program, whose raw parameters are not its averaged ones."""
    folder = tmp_path_factory.mktemp("flax")
    params, _, options = contents(fixtures_folder / "vp_ddpmpp_positional.flax.npz")
    tree = {tuple(name.split("/")): array for name, array in params.items()}
    state = {
        "step": 1234,
        "optimizer": {"target": unflatten_dict({path: array + 1 for path, array in tree.items()}), "state": {}},
        "lr": 2e-4,
        "model_state": {},
        "ema_rate": 0.9999,
        "params_ema": unflatten_dict(tree),
        "rng": np.zeros(2, np.uint32),
    }
    (folder / "checkpoint_1").write_bytes(msgpack_serialize(state))
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8)
    np.save(folder / "images.npy", images)
    config = written(folder / "config.json", {**options, "sde": "vpsde"})
    source = [f"--source={folder / 'checkpoint_1'}", f"--config={config}", f"--workdir={folder / 'run'}"]
    assert run("import", "--from=score_sde", *source, *QUICK, f"--config.data.source={folder / 'images.npy'}") == 0
    return folder / "run"


@pytest.fixture(scope="module")
def fixtures_folder():
    return pathlib.Path(__file__).parents[1] / "fixtures"


def test_a_checkpoint_of_score_sde_in_jax_becomes_a_run_of_its_network_process_and_step(of_flax, fixtures):
    _, data, _ = contents(fixtures / "vp_ddpmpp_positional.flax.npz")
    np.testing.assert_allclose(outputs(of_flax, data), data["y"], atol=1e-4, rtol=0)
    process, config, info = process_of(of_flax)
    assert process == ("vp", "noise", "999t")
    assert config.data.centered and config.ema.rate == 0.9999 and info.shape == (16, 16, 3)
    with Checkpoints(of_flax / CHECKPOINTS, read_only=True) as checkpoints:
        assert checkpoints.steps() == [1234]
        denoise = diffuse_jax.load(of_flax)
        raw = checkpoints.restore_part("params", denoise.params)
    for average, other in zip(jax.tree.leaves(denoise.params), jax.tree.leaves(raw), strict=True):
        np.testing.assert_array_equal(np.float32(average) + 1, other)


def test_an_imported_run_is_sampled(of_flax):
    assert run("sample", f"--workdir={of_flax}", "--num=2") == 0
    with np.load(of_flax / "samples.npz") as file:
        assert file["samples"].shape == (2, 16, 16, 3)


@pytest.mark.proof
def test_an_imported_run_is_evaluated(of_flax):
    assert run("evaluate", f"--workdir={of_flax}") == 0
    assert run("likelihood", f"--workdir={of_flax}", "--num=1") == 0
    assert json.loads((of_flax / "likelihood.json").read_text())["checkpoint"] == 1234


def test_export_and_import_give_the_same_run_bit_for_bit(of_flax, tmp_path):
    file, again = tmp_path / "weights.safetensors", tmp_path / "again"
    assert run("export", f"--workdir={of_flax}", f"--output={file}") == 0
    assert run("import", "--from=score_sde", f"--source={file}", f"--workdir={again}") == 0
    assert_same_params(diffuse_jax.load(of_flax), diffuse_jax.load(again))
    (process, config, info), (before, was, _) = process_of(again), process_of(of_flax)
    assert process == before and config.model == was.model and info.shape == (16, 16, 3)
    assert config.ema.rate == 0.9999 and config.sampling.solver == "score_sde:euler_maruyama"
    with Checkpoints(again / CHECKPOINTS, read_only=True) as checkpoints:
        assert checkpoints.steps() == [1234]


@pytest.fixture
def of_torch(tmp_path, fixtures):
    """What names torch's weights of an experiment to `import`, and the file of that experiment."""
    params, _, _ = contents(fixtures / "ve_ncsnpp_fir_residual.torch.npz")
    write_safetensors(tmp_path / "weights.bin", {f"module.{name}": array for name, array in params.items()})
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8))
    experiment = tmp_path / "mine.py"
    experiment.write_text(
        "from diffuse_jax.config import network, read\n"
        "def get_config():\n"
        "    config = read('cifar10_ve_ncsnpp_continuous')\n"
        f"    config.data.source = {str(tmp_path / 'images.npy')!r}\n"
        "    config.data.image_size = 16\n"
        "    config.model = network('ncsnpp', nf=16, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(8,))\n"
        "    return config\n"
    )
    return ["--from=score_sde", f"--source={tmp_path / 'weights.bin'}"], experiment


@pytest.mark.proof
def test_weights_of_score_sde_in_torch_fit_an_experiment_of_their_network(of_torch, tmp_path, fixtures):
    source, experiment = of_torch
    _, data, options = contents(fixtures / "ve_ncsnpp_fir_residual.torch.npz")
    assert run("import", *source, f"--config={experiment}", f"--workdir={tmp_path / 'run'}") == 0
    np.testing.assert_allclose(outputs(tmp_path / "run", data), data["y"], atol=1e-4, rtol=0)
    config = written(tmp_path / "config.json", {**options, "sde": "vesde"})
    assert run("import", *source, f"--config={config}", f"--workdir={tmp_path / 'other'}") == 0
    assert_same_params(diffuse_jax.load(tmp_path / "run"), diffuse_jax.load(tmp_path / "other"))
    assert process_of(tmp_path / "run")[0] == process_of(tmp_path / "other")[0] == ("ve", "score", "sigma")


@pytest.mark.proof
def test_an_imported_experiment_goes_on_training(of_torch, tmp_path):
    source, experiment = of_torch
    assert run("import", *source, f"--config={experiment}", f"--workdir={tmp_path / 'run'}") == 0
    before = diffuse_jax.load(tmp_path / "run")
    short = [f"--config.training.{name}={value}" for name, value in (("steps", 2), ("log_every", 1))]
    never = [f"--config.training.{name}=0" for name in ("evaluate_every", "sample_every")]
    few = ["--config.sampling.num=2", "--config.sampling.steps=2", "--config.sampling.batch_size=2"]
    assert (
        run("train", f"--workdir={tmp_path / 'run'}", *short, *never, *few, "--config.training.checkpoint_every=1") == 0
    )
    after = diffuse_jax.load(tmp_path / "run")
    moved = [
        float(np.abs(a - b).max())
        for a, b in zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True)
    ]
    # The second step is the first whose rate is not 0: Adam's steps are at most lr, and the average takes a thousandth.
    assert 0 < max(moved) < 1e-6


@pytest.mark.proof
def test_a_network_of_edm_becomes_a_run_with_its_preconditioning_and_classes(tmp_path, fixtures):
    with np.load(fixtures / "edm" / "ddpmpp.npz") as file:
        data = dict(file)
    options = json.loads(str(data["config"]))
    filters = {name.removeprefix("filter/"): data[name] for name in data if name.startswith("filter/")}
    weights = drawn(json.loads(str(data["shapes"]))) | filters
    write_safetensors(tmp_path / "net.safetensors", {f"model.{name}": array for name, array in weights.items()})
    config = written(tmp_path / "config.json", {**options, "precond": "EDMPrecond", "sigma_data": 0.4})
    source = ["--from=edm", f"--source={tmp_path / 'net.safetensors'}", f"--config={config}"]
    assert run("import", *source, f"--workdir={tmp_path / 'run'}") == 0
    denoise = diffuse_jax.load(tmp_path / "run")
    x, t, label, augment = (jnp.asarray(data[name]) for name in ("x", "t", "cond", "augment"))
    y = denoise.net.module.apply({"params": denoise.params}, x, t, {"label": label}, augment=augment)
    np.testing.assert_allclose(y, data["y"], atol=1e-4, rtol=0)
    process, stored, info = process_of(tmp_path / "run")
    assert process == ("edm", "edm", "edm") and stored.parameterization.sigma_data == 0.4
    assert info.num_classes == 10 and stored.data.labels


@pytest.mark.parametrize("layout", ["in parts", proof("flat")])
def test_a_pipeline_of_diffusers_becomes_a_run_of_its_network_and_table(layout, tmp_path, capsys):
    options = {
        "sample_size": 8,
        "block_out_channels": [8, 8],
        "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "add_attention": False,
    }
    module = UNet2D(**{name: value for name, value in options.items() if name != "sample_size"}, out_channels=3)
    params = LinenNet(module).init(jax.random.key(0), (8, 8, 3))
    net, scheduler = (tmp_path / "unet", tmp_path / "scheduler") if layout == "in parts" else (tmp_path, tmp_path)
    for folder in {net, scheduler}:
        folder.mkdir(exist_ok=True)
    write_safetensors(net / "diffusion_pytorch_model.safetensors", to_diffusers(module, params))
    written(net / "config.json", options)
    schedule = {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
    written(scheduler / "scheduler_config.json", schedule | {"num_train_timesteps": 500})
    assert run("import", "--from=diffusers", f"--source={tmp_path}", f"--workdir={tmp_path / 'run'}") == 0
    denoise = diffuse_jax.load(tmp_path / "run")
    for mine, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(denoise.params), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    process, config, _ = process_of(tmp_path / "run")
    assert process == ("ddpm", "v", "index") and config.data.centered
    capsys.readouterr()
    assert run("likelihood", f"--workdir={tmp_path / 'run'}") == 2
    assert "config.data.source is empty" in capsys.readouterr().err
    betas = cosine_betas(500)
    np.testing.assert_allclose(denoise.sde.alpha(denoise.sde.table_times()), np.sqrt(np.cumprod(1 - betas)), rtol=1e-5)


def refused(capsys, *argv):
    capsys.readouterr()
    assert run(*argv) == 2
    return capsys.readouterr().err


def test_what_cannot_be_imported_is_refused_in_one_line_and_leaves_nothing(of_flax, tmp_path, capsys, fixtures):
    params, _, options = contents(fixtures / "vp_ddpmpp_positional.flax.npz")
    weights, config = tmp_path / "w.safetensors", written(tmp_path / "c.json", {**options, "sde": "vpsde"})
    write_safetensors(weights, params)
    target = f"--workdir={tmp_path / 'run'}"
    good = ["--from=score_sde", f"--source={weights}", f"--config={config}"]
    no_process = f"--config={written(tmp_path / 'd.json', options)}"
    assert "vesde, vpsde or subvpsde" in refused(capsys, "import", *good[:2], no_process, target)
    params["Conv_9/kernel"] = params.pop("Conv_0/kernel")
    write_safetensors(weights, params)
    line = refused(capsys, "import", *good, target)
    assert "missing: Conv_0/kernel" in line and "unknown: Conv_9/kernel" in line
    assert "is not an empty folder" in refused(capsys, "import", *good, f"--workdir={of_flax}")
    assert "--config is missing" in refused(capsys, "import", *good[:2], target)
    assert "must be a JSON file" in refused(capsys, "import", "--from=edm", good[1], "--config=digits", target)
    assert "no file" in refused(capsys, "import", good[0], f"--source={tmp_path / 'none'}", good[2], target)
    odd = written(tmp_path / "e.json", {**options, "sde": "vpsde", "beta_min": "x"})
    line = refused(capsys, "import", *good[:2], f"--config={odd}", target)
    assert "e.json" in line and "beta_min is 'x', and must be a number" in line
    write_safetensors(weights, params, {"model": {}})
    for program, source in (("diffusers", good[1:2]), ("edm", good[1:2]), ("edm", good[1:])):
        line = refused(capsys, "import", f"--from={program}", *source, target)
        assert f"holds options of score_sde, not of {program}: give --from=score_sde" in line
    assert not list(tmp_path.glob("run*"))


def test_what_cannot_be_exported_is_refused_before_parameters_are_loaded(
    of_flax, toy_run, tmp_path, monkeypatch, capsys
):
    def restore(*args):
        raise AssertionError("parameters are loaded")

    monkeypatch.setattr("diffuse_jax.cli.common.restore", restore)
    monkeypatch.chdir(tmp_path)
    for argument, words in (
        ("", "--output is empty"),
        (".", "--output=. is a folder: give the name of a file"),
        (f"{of_flax}", f"--output={of_flax} is a folder"),
        (
            f"{of_flax}/config.json/w",
            f"--output={of_flax}/config.json/w would lie in {of_flax}/config.json, which is a",
        ),
        ("/dev/null", "--output=/dev/null is no regular file"),
    ):
        assert words in refused(capsys, "export", f"--workdir={of_flax}", f"--output={argument}")
    known = ["--config.parameterization.name=noise", "--config.parameterization.c_noise=999t"]
    for number, (overrides, words) in enumerate(
        (
            ([], "no process 'vp' with parameterization 'edm' and c_noise '999t'"),
            ([*known, "--config.data.labels=True"], "num_classes must be None: score_sde has no classes; got 10"),
        )
    ):
        config, folder = read("digits", overrides), tmp_path / str(number)
        write_run(folder, config, describe(config))
        with Checkpoints(folder / CHECKPOINTS) as checkpoints:
            checkpoints.save(1, {"x": np.zeros(1)})
        assert words in refused(capsys, "export", f"--workdir={folder}", "--output=weights.safetensors")
    assert not list(tmp_path.glob("*.safetensors"))
