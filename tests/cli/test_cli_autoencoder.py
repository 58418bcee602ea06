"""A run of an autoencoder through every command: what each gives of it, and what it is refused."""

import json

import jax
import numpy as np
import pytest
from cli_models import STEPS, run
from PIL import Image

import diffuse_jax
from diffuse_jax.config import ConfigError, DataInfo, base, build, method, network
from diffuse_jax.methods import KLAutoencoder
from diffuse_jax.training import make_mesh

TINY = [
    "--config=digits_kl_autoencoder",
    *("--config.model.nf=4", "--config.model.ch_mult=1,2", "--config.model.latent_channels=2"),
    *("--config.training.batch_size=16", "--config.training.steps=4", "--config.training.steps_per_call=1"),
    *(f"--config.training.{name}={value}" for name, value in STEPS.items()),
    *("--config.sampling.num=16", "--config.sampling.batch_size=16"),
    *("--config.evaluation.num_loss=20", "--config.evaluation.num_likelihood=8", "--config.evaluation.probes=3"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("autoencoder") / "run"
    one = make_mesh(jax.devices()[:1])  # which compiles sooner than eight
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffuse_jax.cli.train_run.make_mesh", lambda fsdp: one)
        assert run("train", *TINY, f"--workdir={folder}") == 0
    return folder


def read(folder, name):
    return json.loads((folder / name).read_text())


def last_line(capfd):
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "error: " in line]
    return line


def test_training_draws_grids_and_reconstructions_and_logs_both_terms(trained):
    grids = {file.name: np.asarray(Image.open(file)).shape for file in (trained / "grids").iterdir()}
    # 16 tiles four times as large, 2 pixels of grey around each; a reconstruction is beside its original.
    assert grids == {"step_00000004.png": (138, 138), "reconstructions_00000004.png": (138, 266)}
    line = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["loss"] == pytest.approx(line["reconstruction"] + line["kl"], rel=1e-5)
    assert line["heldout_loss"] == pytest.approx(line["heldout_reconstruction"] + line["heldout_kl"], rel=1e-5)
    assert isinstance(diffuse_jax.load(trained), KLAutoencoder) and diffuse_jax.load(trained).shape == (4, 4, 2)


def test_it_is_sampled_and_its_bound_told(trained, one_device, capfd):
    assert run("sample", f"--workdir={trained}", "--num=5", "--first=3") == 0
    facts = read(trained, "samples.json")
    assert (facts["prior"], facts["evaluations"], facts["num"]) == ("N(0, I)", 1.0, 5) and "solver" not in facts
    assert np.load(trained / "samples.npz")["samples"].shape == (5, 8, 8, 1)

    assert run("likelihood", f"--workdir={trained}", "--num=6") == 0
    table = read(trained, "likelihood.json")
    assert (table["bound"], table["draws"], table["evaluations"], table["rows"]) == ("evidence", 3, 3.0, 6)
    assert "trace" not in table and table["log_prob_error_of_estimate"] > 0
    np.testing.assert_allclose(table["bits_per_dim"], -table["log_prob"] / 64 / np.log(2), rtol=1e-5)

    capfd.readouterr()
    assert run("show", f"--workdir={trained}") == 0
    rows = dict(line.split(maxsplit=1) for line in capfd.readouterr().out.splitlines()[1:-3])
    assert rows["method"] == "autoencoder, kl_weight=1.0" and rows["training"] == "batches of 16"
    assert rows["network"].startswith("autoencoder, ") and rows["sampling"] == "16 samples"
    assert not {"process", "parameterization", "loss"} & rows.keys() and "None" not in rows["samples.npz"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["sample", "--trajectory"], "--trajectory: this kind of run draws in one step"),
        (["sample", "--solver=ddim"], "config.sampling.solver='ddim' is not read by config.method.name='autoencoder'"),
        (["sample", "--steps=7"], "config.sampling.steps=7 is not read by"),
        (["likelihood", "--config.evaluation.trace=exact"], "config.evaluation.trace='exact' is not read by"),
        (["export", "--output=x.safetensors"], "config.method.name='autoencoder' trains no denoiser"),
        (["train", "--config.method.kl_weight=0.5"], "config.method.kl_weight was 1.0 and is 0.5"),
    ],
)
def test_what_it_has_not_is_refused_in_one_line(trained, argv, words, capfd):
    command, *options = argv
    assert run(command, f"--workdir={trained}", *options) == 2
    assert words in last_line(capfd)


@pytest.mark.parametrize(
    ("name", "net", "words"),
    [
        ("autoencoder", "ncsnpp", "config.model.name='ncsnpp' is no autoencoder .* has no method 'encode'"),
        (
            "denoising",
            "autoencoder",
            "config.model.name='autoencoder' does not fit .* must return floats shaped like x",
        ),
    ],
)
def test_a_network_of_another_method_is_refused(name, net, words):
    config = base()
    config.method, config.model, config.ema.rate = method(name), network(net), 0.9
    with pytest.raises(ConfigError, match=words):
        build(config, DataInfo((8, 8, 1), 17))


@pytest.mark.proof
def test_it_is_evaluated_by_its_losses_bound_and_draws(trained, one_device):
    assert run("evaluate", f"--workdir={trained}", "--num=24") == 0
    table = read(trained, "evaluation.json")
    for name in ("heldout_loss", "heldout_kl", "bits_per_dim", "mse", "psnr"):
        assert np.isfinite([table[name], table[f"{name}_error"]]).all()
    assert table["frechet_distance"] > 0 and table["evaluations"] == 1 and "solver" not in table


def test_the_network_takes_its_channels_from_the_data():
    config = base()
    config.method, config.ema.rate = method("autoencoder"), 0.9
    config.model = network("autoencoder", nf=4, ch_mult=(1,), num_res_blocks=1)
    params = build(config, DataInfo((8, 8, 3), 256)).params
    assert params["log_scale"].shape == (3,) and params["decoder"]["out_conv"]["kernel"].shape[-1] == 3
