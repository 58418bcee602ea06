"""From the command line to numbers: what each command writes is what the library computes and what is known."""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from cli_models import TINY, run
from PIL import Image
from tiers import first

import diffuse_jax
from diffuse_jax import solvers, times
from diffuse_jax.cli.common import as_asked
from diffuse_jax.config import load_data, read
from diffuse_jax.config.sampling_section import SOLVERS
from diffuse_jax.config.workdir import read_run


def samples(folder):
    with np.load(folder / "samples.npz") as file:
        return file["samples"]


def held_out(workdir):
    config, _ = read_run(workdir)
    test = load_data(config).test
    return test[np.arange(len(test))]["x"].astype(np.float64)


def test_five_lines_draw_what_the_command_writes(toy_run):
    assert run("sample", f"--workdir={toy_run}", "--num=11", "--seed=3", "--solver=heun", "--steps=4") == 0
    denoise = diffuse_jax.load(toy_run)
    keys = diffuse_jax.sample_keys(seed=3, n=11)
    x = diffuse_jax.sample(keys, denoise, solvers.heun(), times.uniform(denoise.sde, 4))
    assert samples(toy_run).dtype == np.float32
    np.testing.assert_allclose(samples(toy_run), x, rtol=1e-4, atol=1e-5)
    other = diffuse_jax.load(toy_run, step=4)
    changed = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), denoise.params, other.params)
    assert max(jax.tree.leaves(changed)) > 0


COMPOSED = ("pc", "ancestral+batch_langevin", "ddim+annealed_langevin")


@pytest.mark.parametrize("solver", first([*SOLVERS, *COMPOSED], keep=("heun", "sde_dpm_solver", "adaptive", *COMPOSED)))
def test_every_named_solver_draws_finite_samples(toy_run, solver, capsys):
    loose = ["--config.sampling.rtol=0.1", "--config.sampling.atol=0.1"] if solver == "adaptive" else []
    assert run("sample", f"--workdir={toy_run}", "--num=8", "--steps=3", f"--solver={solver}", *loose) == 0
    facts = json.loads((toy_run / "samples.json").read_text())
    assert facts["solver"] == {"pc": "reverse_diffusion+langevin"}.get(solver, solver) and facts["checkpoint"] == 8
    assert facts["evaluations"] >= 3 and np.isfinite(samples(toy_run)).all() and len(samples(toy_run)) == 8


def test_another_solver_takes_its_own_strength_of_noise_unless_one_is_given():
    config = read("digits")
    assert config.sampling.eta is not None

    def eta(*words, **given):
        return read("digits", as_asked(argparse.Namespace(**given), words)).sampling.eta

    assert eta() == eta(solver=config.sampling.solver) == eta(steps=3) == config.sampling.eta
    assert eta(solver="heun") is None and eta("--config.sampling.solver=heun") is None
    assert eta("--config.sampling.eta=0.5", solver="ddim") == 0.5


def test_the_flow_of_normal_data_leaves_the_prior_draws_where_they_are(normal_run):
    assert run("sample", f"--workdir={normal_run}", "--num=13", "--solver=adaptive", "--seed=5") == 0
    prior = diffuse_jax.prior_sample(diffuse_jax.sample_keys(5, 13), diffuse_jax.load(normal_run))
    np.testing.assert_allclose(samples(normal_run), prior, atol=1e-4)


@pytest.mark.proof
def test_the_type_of_sampling_rounds_the_samples_and_nothing_else(normal_run):
    half = "--config.sampling.dtype=bfloat16"
    drawn, tables = [], []
    for options in ([], [half]):
        assert run("sample", f"--workdir={normal_run}", "--num=24", "--solver=ddim", "--steps=8", *options) == 0
        drawn.append(samples(normal_run))
        assert json.loads((normal_run / "samples.json").read_text())["dtype"] == ("bfloat16" if options else None)
        assert run("evaluate", f"--workdir={normal_run}", "--solver=ddim", "--steps=8", *options) == 0
        tables.append(json.loads((normal_run / "evaluation.json").read_text()))
    # 2^-9 a step on numbers of unit size.
    assert 1e-4 < np.abs(drawn[1] - drawn[0]).max() < 8 * 2**-7
    same = [name for name in tables[0] if tables[0][name] == tables[1][name]]
    assert sorted(set(tables[0]) - set(same)) == ["frechet_distance"]


def test_the_likelihood_of_normal_data_is_that_of_scipy(normal_run):
    assert run("likelihood", f"--workdir={normal_run}", "--num=19") == 0
    rows = held_out(normal_run)[:19]
    expected = scipy.stats.norm.logpdf(rows).sum(1)
    with np.load(normal_run / "likelihood.npz") as file:
        np.testing.assert_allclose(file["log_prob"], expected, atol=5e-3)
        np.testing.assert_allclose(file["bits_per_dim"], -expected / 2 / np.log(2), atol=5e-3)
    table = json.loads((normal_run / "likelihood.json").read_text())
    assert table["rows"] == 19 and table["each"]["log_prob"] == pytest.approx(expected, abs=5e-3)
    error = scipy.stats.sem(-expected / 2 / np.log(2))
    assert table["bits_per_dim_error"] == pytest.approx(error, rel=1e-2)


@pytest.mark.proof
def test_several_probes_give_each_row_an_error_and_one_gives_none(normal_run):
    """The flow of normal data stands still, so that its divergence, and the error of its estimate, are nothing."""
    for probes, trace in ((1, "hutchinson"), (3, "gaussian")):
        options = [f"--config.evaluation.probes={probes}", f"--config.evaluation.trace={trace}"]
        assert run("likelihood", f"--workdir={normal_run}", "--num=8", *options) == 0
        table = json.loads((normal_run / "likelihood.json").read_text())
        assert (table["probes"], table["trace"]) == (probes, trace)
        with np.load(normal_run / "likelihood.npz") as file:
            error = file["error"]
        if probes == 1:
            assert np.all(np.isnan(error)) and table["log_prob_error_of_estimate"] is None
        else:
            np.testing.assert_allclose(error, 0, atol=5e-3)
            assert table["log_prob_error_of_estimate"] == pytest.approx(0, abs=5e-3)


def test_the_evaluation_of_normal_data_holds_against_closed_forms(normal_run):
    arguments = [f"--workdir={normal_run}", "--num=24", "--solver=heun", "--steps=4"]
    assert run("evaluate", *arguments) == 0
    assert run("sample", *arguments) == 0
    table = json.loads((normal_run / "evaluation.json").read_text())
    rows = held_out(normal_run)
    a, b = samples(normal_run).astype(np.float64), rows
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    distance = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert table["frechet_distance"] == pytest.approx(distance, rel=1e-5)
    assert (table["frechet_samples"], table["frechet_heldout"]) == (24, 40)
    expected = -scipy.stats.norm.logpdf(rows[:8]).sum(1) / 2 / np.log(2)
    assert table["bits_per_dim"] == pytest.approx(expected.mean(), abs=5e-3)
    # Of eps at x = α·x0 + σ·eps the exact denoiser leaves α²·(eps·α − σ·x0)², whose mean over all is α².
    assert table["heldout_loss"] == pytest.approx(alpha_squared(), abs=5 * table["heldout_loss_error"])
    assert (table["checkpoint"], table["evaluations"], table["solver"]) == (8, 8, "heun")


def alpha_squared():
    t = np.linspace(1e-5, 1, 10_001)
    return np.trapezoid(np.exp(-(0.1 * t + 9.95 * t**2)), t)


def test_what_a_command_wrote_before_is_kept(normal_run, capsys):
    arguments = ("sample", f"--workdir={normal_run}", "--num=2", "--steps=2")
    assert run(*arguments, "--seed=1") == 0
    before = samples(normal_run)
    assert run(*arguments, "--seed=2") == 0
    assert "kept the earlier samples.npz as samples." in capsys.readouterr().out
    kept = sorted(normal_run.glob("samples.*.npz"), key=os.path.getmtime)
    contents = [np.load(file)["samples"] for file in kept]
    assert any(np.array_equal(before, content) for content in contents)
    assert not np.array_equal(before, samples(normal_run))


def test_a_label_draws_its_class(tmp_path, capsys):
    experiment = tmp_path / "classes.py"
    experiment.write_text(
        "from ml_collections import ConfigDict\n"
        "from diffuse_jax.config import base\n"
        "def get_config():\n"
        "    config = base()\n"
        "    config.data.labels = True\n"
        "    config.model = ConfigDict({'name': 'cli_models:ClassConstant'})\n"
        "    config.parameterization.name = 'x0'\n"
        "    config.ema.rate = 0.9\n"
        "    return config\n"
    )
    tiny = [argument for argument in TINY[1:] if ".model." not in argument]
    workdir = f"--workdir={tmp_path / 'run'}"
    assert run("train", f"--config={experiment}", *tiny, workdir) == 0
    assert run("sample", workdir, "--num=3", "--label=7") == 0
    assert samples(tmp_path / "run").shape == (3, 8, 8, 1)
    finish = ["--config.sampling.finish=denoise", "--num=12"]
    for label, expected in (("--label=7", [7] * 12), (None, [*range(10), 0, 1])):
        assert run("sample", workdir, *finish, *([label] if label else [])) == 0
        grey = np.round(255 * ((2 * np.array(expected) - 9) / 18 + 1) / 2).astype(np.uint8)
        np.testing.assert_array_equal(
            samples(tmp_path / "run"), np.broadcast_to(grey[:, None, None, None], (12, 8, 8, 1))
        )
    capsys.readouterr()
    assert run("sample", workdir, "--label=10") == 2
    assert capsys.readouterr().err == "diffuse-jax: error: --label=10 must be one of 0 … 9\n"


@pytest.mark.proof
def test_the_digits_train_with_their_labels(tmp_path, one_device):
    tiny = [argument for argument in TINY[1:] if ".model." not in argument]
    net = ["nf=4", "ch_mult=1,", "num_res_blocks=1", "attn_resolutions=4,"]
    options = [f"--config.model.{option}" for option in net]
    workdir = f"--workdir={tmp_path}"
    options += ["--config.training.steps_per_call=1", "--config.training.evaluate_every=0", "--config.data.labels=True"]
    assert run("train", "--config=digits", *tiny, *options, workdir) == 0
    assert run("sample", workdir, "--label=3", "--num=16") == 0
    with np.load(tmp_path / "samples.npz") as file:
        assert (file["labels"] == 3).all() and file["samples"].dtype == np.uint8


@pytest.fixture
def photographs(tmp_path):
    """Crops (32 × 32) of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images

    folder = tmp_path / "crops"
    folder.mkdir()
    for i, image in enumerate(load_sample_images().images):
        for j in range(12):
            Image.fromarray(image[32 * j : 32 * j + 32, 64 : 64 + 32]).save(folder / f"{i}_{j}.png")
    return folder


def test_a_folder_of_photographs_trains_goes_on_and_samples(tmp_path, photographs, one_device, capsys):
    tiny = [argument for argument in TINY[1:] if ".model." not in argument and "evaluate_every" not in argument]
    options = [
        "--config=cifar10_ve_ncsnpp_continuous",
        f"--config.data.source={photographs}",
        *(f"--config.model.{option}" for option in ("nf=4", "ch_mult=1,", "num_res_blocks=1", "attn_resolutions=1,")),
        "--config.training.steps_per_call=1",
        "--config.training.evaluate_every=0",
        "--config.training.batch_size=4",
        "--config.sampling.solver=euler_maruyama",
        "--config.sampling.num=8",
        "--config.sampling.batch_size=8",
        "--config.sampling.steps=2",
    ]
    workdir = tmp_path / "run"
    assert run("train", *tiny, *options, f"--workdir={workdir}", "--config.training.steps=4") == 0
    assert run("train", *tiny, *options, f"--workdir={workdir}", "--config.training.steps=6") == 0
    assert "going on from step 4 to 6" in capsys.readouterr().err
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 6] and all(np.isfinite(line["loss"]) for line in lines)
    (photographs / "1_0.png").unlink()
    assert run("train", *tiny, *options, f"--workdir={workdir}", "--config.training.steps=8") == 2
    assert "the data had 22 training rows and have 21" in capsys.readouterr().err
    assert run("sample", f"--workdir={workdir}", "--num=8", "--trajectory") == 0
    assert samples(workdir).shape == (8, 32, 32, 3) and samples(workdir).dtype == np.uint8
    with Image.open(workdir / "trajectory.gif") as animation, Image.open(workdir / "samples.png") as grid:
        assert animation.n_frames > 1 and animation.size == grid.size == (3 * 34 + 2, 3 * 34 + 2)
        animation.seek(animation.n_frames - 1)
        pixels = np.asarray(grid).astype(int)
        np.testing.assert_array_equal(pixels[2:34, 2:34], samples(workdir)[0])


@pytest.mark.parametrize("name", first(["ve", "subvp", "cli_models:cosine"], keep=["cli_models:cosine"]))
def test_other_processes_train_and_sample(tmp_path, name, one_device):
    options = [*TINY, f"--config.sde.name={name}", "--config.training.evaluate_every=0"]
    if ":" in name:
        experiment = tmp_path / "bent.py"
        experiment.write_text(
            "from diffuse_jax.config import base, network\n"
            "def get_config():\n"
            "    config = base()\n"
            "    config.data.source = 'moons'\n"
            "    config.model = network('mlp')\n"
            "    config.ema.rate = 0.9\n"
            "    config.parameterization.c_noise = 't'\n"
            "    config.sde.bend = 1.5\n"
            "    return config\n"
        )
        options[0] = f"--config={experiment}"
    assert run("train", *options, f"--workdir={tmp_path / 'run'}") == 0
    assert run("sample", f"--workdir={tmp_path / 'run'}", "--num=9") == 0
    assert np.isfinite(samples(tmp_path / "run")).all()
    sde = diffuse_jax.load(tmp_path / "run").sde
    alpha = {"ve": 1.0, "subvp": np.exp(-0.5 * (0.05 + 9.95 / 4)), "cli_models:cosine": np.cos(0.75)}[name]
    assert float(sde.alpha(0.5)) == pytest.approx(alpha, rel=1e-5)


def test_a_run_on_which_one_goes_on_ends_where_the_uninterrupted_one_does(toy_run, tmp_path):
    assert run("train", *TINY, "--config.training.steps=4", f"--workdir={tmp_path}") == 0
    # Without --config it is the run's own; one of a version that knew one device to each state goes on too.
    record = json.loads((tmp_path / "config.json").read_text())
    del record["config"]["training"]["fsdp"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    more = ["--config.training.log_every=2", "--config.training.steps=8"]
    assert run("train", *more, f"--workdir={tmp_path}") == 0
    a, b = diffuse_jax.load(toy_run).params, diffuse_jax.load(tmp_path).params
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_batch_in_parts_trains_the_same_network(toy_run, tmp_path):
    assert run("train", *TINY, "--config.training.accumulate=2", f"--workdir={tmp_path}") == 0
    a, b = diffuse_jax.load(toy_run).params, diffuse_jax.load(tmp_path).params
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), a, b)


def test_a_dry_run_counts_without_writing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("train", *TINY, "--dry_run") == 0
    # time: 33·16 + 16 and 16·16 + 16; in: x and 6 waves of each entry, 14·16 + 16; layer: 16·16 + 16 twice, and 16·16
    # of time; out: 16·2 + 2
    count = (33 * 16 + 16) + (16 * 16 + 16) + (14 * 16 + 16) + 2 * (16 * 16 + 16) + 16 * 16 + (16 * 2 + 2)
    out = capsys.readouterr().out
    assert f"parameters   {count:,}" in out
    model = {"name": "mlp", "width": 16, "depth": 1, "frequencies": 3, "dropout": 0.0}
    assert json.loads(out[: out.index("\ndata ")])["model"] == model
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_plans_for_data_that_are_not_here_and_says_so(tmp_path, capsys):
    size = ["--config.data.image_size=8", "--config.data.channels=1"]
    assert run("train", "--config=digits", "--dry_run", *size, f"--config.data.source={tmp_path / 'images'}") == 0
    out = capsys.readouterr().out
    assert f"there is no file or folder {tmp_path / 'images'} here: training needs it" in out
    (tmp_path / "images").mkdir()
    assert run("train", "--config=digits", "--dry_run", *size, f"--config.data.source={tmp_path / 'images'}") == 0
    assert "no file or folder" not in capsys.readouterr().out


def test_a_dry_run_counts_what_a_device_holds_of_a_split_state(capsys):
    wide = ["--config.model.width=512", "--config.model.depth=1", "--config.training.fsdp=8"]
    assert run("train", "--config=toy2d", *wide, "--dry_run") == 0
    w = 512
    # Kernels of time (33·w, w·w), in (14·w), layer (w·w three times) and out (w·2, too small), and their biases.
    split, whole = 33 * w + 14 * w + 4 * w * w, 2 * w + 2 + 5 * w
    out = capsys.readouterr().out
    assert f"parameters   {split + whole:,}" in out
    assert f"state        {4 * 4 * (split / 8 + whole) / 2**20:.1f} MiB on each device" in out
    assert f"gradients    {4 * (split / 8 + whole) / 2**20:.1f} MiB on each device" in out
    assert f"gathered     {4 * (split + whole) / 2**20:.1f} MiB on each device" in out


def test_the_console_script_and_the_module_are_the_same_command():
    root = pathlib.Path(diffuse_jax.__file__).parents[1]
    module, function = tomllib.loads((root / "pyproject.toml").read_text())["project"]["scripts"]["diffuse-jax"].split(
        ":"
    )
    script = f"import sys; from {module} import {function}; sys.exit({function}())"  # what an installer writes
    environment = os.environ | {"PYTHONPATH": str(root), "XLA_FLAGS": ""}
    outputs = [
        subprocess.run(
            [sys.executable, *start, "list"], env=environment, capture_output=True, text=True, check=True
        ).stdout
        for start in (["-m", "diffuse_jax"], ["-c", script])
    ]
    assert outputs[0] == outputs[1] and "digits" in outputs[0]


def test_a_metric_of_ones_own_is_told_of_samples(toy_run, capsys):
    """Beside one that is there; a name that is neither is refused before parameters are read."""
    evaluate = ["evaluate", f"--workdir={toy_run}", "--num=8"]
    assert run(*evaluate, "--config.evaluation.metrics=('frechet', 'cli_models:brightness')") == 0
    table = json.loads((toy_run / "evaluation.json").read_text())
    assert np.isfinite([table["frechet_distance"], table["brightness"]]).all()
    assert table["of"] == diffuse_jax.config.read("toy2d").data.source
    assert run(*evaluate, "--config.evaluation.metrics=('fid',)") == 2
    assert "config.evaluation.metrics='fid' must be one of frechet" in capsys.readouterr().err
