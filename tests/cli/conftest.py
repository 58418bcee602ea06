"""Runs that several proofs look at, each trained once, and a count of compilations."""

import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from cli_models import TINY, TINY_CLASSIFIER, run
from jax import monitoring

from diffuse_jax.training import make_mesh


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Eight steps of a tiny MLP on toy2d. Nothing may be changed in it but by the commands that add to it."""
    folder = tmp_path_factory.mktemp("toy") / "run"
    assert run("train", *TINY, f"--workdir={folder}") == 0
    return folder


@pytest.fixture(scope="session")
def classifier_run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Four steps of a tiny classifier of digits, trained on one device. Nothing may be changed in it."""
    folder, one = tmp_path_factory.mktemp("classifier") / "run", make_mesh(jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffuse_jax.cli.train_run.make_mesh", lambda fsdp: one)
        assert run("train", *TINY_CLASSIFIER, f"--workdir={folder}") == 0
    return folder


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands run on one device, which compiles sooner than eight."""
    mesh = make_mesh(jax.devices()[:1])
    monkeypatch.setattr("diffuse_jax.cli.train_run.make_mesh", lambda fsdp: mesh)
    monkeypatch.setattr("diffuse_jax.cli.common.make_mesh", lambda: mesh)


@pytest.fixture(scope="session")
def normal_run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run on draws of N(0, I₂) whose denoiser is exact."""
    folder = tmp_path_factory.mktemp("normal")
    np.save(folder / "normal.npy", np.random.default_rng(0).normal(size=(400, 2)).astype(np.float32))
    (folder / "normal.py").write_text(
        "from ml_collections import ConfigDict\n"
        "from diffuse_jax.config import base\n"
        "def get_config():\n"
        "    config = base()\n"
        "    config.ema.rate = 0.9\n"
        "    config.evaluation.trace = 'exact'\n"
        f"    config.data.source = {str(folder / 'normal.npy')!r}\n"
        "    config.model = ConfigDict({'name': 'cli_models:ExactNormal'})\n"
        "    config.parameterization.c_noise = 'sigma'\n"
        "    return config\n"
    )
    tiny = [argument for argument in TINY[1:] if ".model." not in argument]
    assert run("train", f"--config={folder / 'normal.py'}", *tiny, f"--workdir={folder / 'run'}") == 0
    return folder / "run"


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    """The names of what was compiled since the test began, as many times as it was."""
    names: list[str] = []

    def listen(event: str, duration: float, **facts: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(str(facts.get("fun_name")))

    monitoring.register_event_duration_secs_listener(listen)
    yield names
    monitoring.unregister_event_duration_listener(listen)
