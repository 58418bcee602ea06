"""Runs with conditions from end to end: a folder with captions and images beside them, trained, drawn from and
evaluated, and what is refused in one line."""

import json
import pathlib

import jax
import numpy as np
import pytest
from cli_models import run
from PIL import Image

import diffuse_jax
from diffuse_jax.config import build, read
from diffuse_jax.training import make_mesh

TINY = [
    "--config=digits",
    *(f"--config.model.{field}" for field in ("nf=4", "ch_mult=(1,)", "attn_resolutions=()", "num_res_blocks=1")),
    *("--config.model.context_width=8", "--config.model.context_depth=1"),
    *(f"--config.training.{name}=2" for name in ("steps", "log_every", "checkpoint_every", "evaluate_every")),
    "--config.training.sample_every=2",
    "--config.training.steps_per_call=2",
    "--config.training.batch_size=8",
    "--config.sampling.steps=2",
    "--config.sampling.num=8",
    "--config.sampling.batch_size=8",
    "--config.evaluation.num_samples=8",
    "--config.evaluation.num_loss=8",
    "--config.evaluation.num_likelihood=2",
    "--config.evaluation.pca_dims=2",
]
CONDITIONS = [
    "--config.data.image_size=8",
    "--config.data.channels=1",
    "--config.data.holdout=0.25",
    "--config.data.images=True",
    "--config.data.tokens=8",
    "--config.data.labels=True",
    "--config.loss.drop_conditions=0.1",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Images of two classes, each with a caption and another image beside it."""
    root = tmp_path_factory.mktemp("captioned")
    rng, lines = np.random.default_rng(0), []
    for i in range(32):
        for name in (f"{i}.png", f"{i}_edges.png"):
            Image.fromarray(rng.integers(0, 256, (8, 8)).astype(np.uint8)).save(root / name)
        lines.append({"file_name": f"{i}.png", "text": f"no. {i}", "label": i % 2, "image_file_name": f"{i}_edges.png"})
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return root


@pytest.fixture(scope="module")
def conditional(folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("conditional") / "run"
    one = make_mesh(jax.devices()[:1])  # which compiles sooner than eight
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr("diffuse_jax.cli.train_run.make_mesh", lambda fsdp: one)
    assert run("train", *TINY, *CONDITIONS, f"--config.data.source={folder}", f"--workdir={workdir}") == 0
    monkeypatch.undo()
    return workdir


def asked(folder: pathlib.Path, **changes: str | None) -> list[str]:
    cond = {"label": "1", "image": f"{folder / '3_edges.png'}", "tokens": "no. 3"} | changes
    return [f"--cond.{name}={value}" for name, value in cond.items() if value is not None]


def drawn(workdir: pathlib.Path, *cond: str) -> np.ndarray:
    assert run("sample", f"--workdir={workdir}", "--num=2", *cond) == 0
    return np.load(workdir / "samples.npz")["samples"].astype(int)


def test_a_run_reads_the_conditions_of_its_data(conditional, folder):
    stored = json.loads((conditional / "config.json").read_text())["data"]["conditions"]
    assert stored == {
        "label": {"shape": [], "values": 2},
        "image": {"shape": [8, 8, 1], "values": 256},
        "tokens": {"shape": [8], "values": 257},
    }
    module = diffuse_jax.load(conditional).net.module
    assert (module.num_classes, module.image_channels, module.vocabulary, module.context_length) == (2, 1, 257, 8)
    assert (conditional / "grids" / "step_00000002.png").exists()


@pytest.mark.proof
def test_samples_are_those_of_the_conditions_asked_for(conditional, folder):
    """The network is hardly trained: its parameters are made large, so that what it reads shows in what it draws."""
    import jax.numpy as jnp

    from diffuse_jax import sample, sample_keys, solvers, times

    denoise = diffuse_jax.load(conditional)
    leaves, tree = jax.tree.flatten(denoise.params)
    grown = [leaf + 0.3 * jax.random.normal(jax.random.key(i), leaf.shape) for i, leaf in enumerate(leaves)]
    denoise = type(denoise)(
        denoise.sde, jax.tree.unflatten(tree, grown), denoise.net, denoise.parameterization, denoise.shape
    )
    cond = {
        "label": jnp.zeros(1, jnp.int32),
        "image": jnp.full((1, 8, 8, 1), 0.5),
        "tokens": jnp.ones((1, 8), jnp.int32),
    }
    others = {"label": jnp.ones(1, jnp.int32), "image": -cond["image"], "tokens": cond["tokens"].at[0, 1].set(7)}
    draw = jax.jit(
        lambda cond: sample(sample_keys(0, 1), denoise, solvers.ddim(), times.uniform(denoise.sde, 2), cond=cond)
    )
    plain = draw(cond)
    assert all(np.abs(draw({**cond, name: others[name]}) - plain).max() > 1e-4 for name in cond)


def test_the_command_takes_every_condition_and_records_it(conditional, folder, one_device):
    assert drawn(conditional, *asked(folder)).shape == (2, 8, 8, 1)
    facts = json.loads((conditional / "samples.json").read_text())
    assert facts["cond"]["tokens"] == "no. 3" and facts["label"] == 1
    assert (np.load(conditional / "samples.npz")["labels"] == 1).all()
    drawn(conditional, *asked(folder, label=None))
    assert np.load(conditional / "samples.npz")["labels"].tolist() == [0, 1]


@pytest.mark.proof
def test_evaluations_take_their_conditions_from_held_out_rows(conditional, capsys):
    assert run("evaluate", f"--workdir={conditional}") == 0
    table = json.loads((conditional / "evaluation.json").read_text())
    assert np.isfinite([table[name] for name in ("heldout_loss", "bits_per_dim", "frechet_distance")]).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens": None}, "--cond.tokens is missing: this run draws with a caption"),
        ({"image": None}, "--cond.image is missing: this run draws with an image"),
        ({"label": "2"}, "--label=2 must be one of 0 … 1"),
        ({"tokens": "much too long"}, "the caption has 13 tokens, and this run takes 8"),
        ({"image": "nowhere.png"}, "--cond.image=nowhere.png"),
        ({"depth": "1"}, "this run was trained without depth; its conditions are label, image, tokens"),
    ],
)
def test_conditions_that_cannot_be_are_refused_in_one_line(conditional, folder, capsys, changes, words):
    assert run("sample", f"--workdir={conditional}", "--num=1", *asked(folder, **changes)) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_network_that_does_not_read_a_condition_is_refused(folder):
    given = [*CONDITIONS, f"--config.data.source={folder}"]
    config = read("digits", given)
    from diffuse_jax.config import ConfigError, network

    config.model = network("song_unet")
    with pytest.raises(ConfigError, match=r"condition 'image', which config\.model\.name='song_unet' does not read"):
        build(config)
