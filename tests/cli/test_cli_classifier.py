"""A classifier from the command line: trained, gone on with, evaluated by noise level, described and loaded."""

import json
import shutil

import numpy as np
import pytest
from cli_models import TINY_CLASSIFIER, run

import diffuse_jax
from diffuse_jax.data import load_dataset
from diffuse_jax.methods import Classifier


def test_a_run_is_evaluated_by_noise_level_and_loaded(classifier_run, one_device, tmp_path, capsys):
    folder = shutil.copytree(classifier_run, tmp_path / "run")
    assert not list(folder.glob("grids/*"))
    assert run("evaluate", f"--workdir={folder}") == 0
    printed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    table = json.loads((folder / "evaluation.json").read_text())
    assert table["heldout_rows"] == 40 and 0 <= table["heldout_accuracy"] <= 1
    names = [name for name in printed if name.startswith("accuracy_at_noise") and not name.endswith("_error")]
    levels = [float(name.removeprefix("accuracy_at_noise_")) for name in names]
    assert len(levels) == 7 and levels == sorted(levels) and set(names) <= table.keys()
    classify = diffuse_jax.load(folder)
    assert isinstance(classify, Classifier)
    rows = load_dataset("digits", labels=True).test[np.arange(40)]
    x = rows["x"].astype(np.float32) / 127.5 - 1
    first = np.argmax(classify(x, classify.sde.t_min), axis=1) == rows["label"]
    # The noise of the least level decides a few rows at most.
    assert abs(first.mean() - table[names[0]]) <= 0.1
    np.testing.assert_allclose(np.exp(classify.log_prob(x[:1], 0.5, np.arange(1))), 0.1, atol=0.09)


@pytest.mark.proof
def test_a_run_is_described_and_gone_on_with(classifier_run, one_device, tmp_path, capsys):
    folder = shutil.copytree(classifier_run, tmp_path / "run")
    assert run("show", f"--workdir={folder}") == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    shown = {words[0]: words[1] for words in lines if len(words) == 2}
    assert shown["method"] == "classifier" and shown["process"] == "vp"
    assert shown["parameterization"] == "c_noise 999t"
    assert shown["loss"] == "times log_normal, stratified, batches of 16"
    assert "held-out accuracy" in shown["metrics"] and "sampling" not in shown
    assert [words[1].split()[0] for words in lines if words[0] == "diffuse-jax"] == ["evaluate"]
    assert run("train", f"--workdir={folder}", "--config.training.steps=8") == 0
    said = capsys.readouterr()
    assert "going on from step 4 to 8" in said.err and "diffuse-jax sample" not in said.out
    assert run("train", *TINY_CLASSIFIER, "--dry_run") == 0
    assert '"name": "classifier"' in capsys.readouterr().out
