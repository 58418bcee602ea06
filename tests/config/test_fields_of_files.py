"""Whatever a file says where a field should be: it is taken, or refused in one line; there is no other exception."""

import copy
import json
import math

import jax
import numpy as np
import pytest
from tiers import first

from diffuse_jax._fields import FLAG, ROW, TEXT, check_fields, integer, number, optional, row
from diffuse_jax.cli.distributed import BAD_INPUT
from diffuse_jax.config import build, describe, override, read
from diffuse_jax.config.foreign_options import diffusers_fields, edm_fields, score_sde_fields, score_sde_options
from diffuse_jax.config.imported import of_options
from diffuse_jax.config.workdir import check_fits, read_run, write_run
from diffuse_jax.convert import Weights, network_of, read_weights, to_diffusers, to_score_sde, write_safetensors
from diffuse_jax.convert.edm_checkpoints import _plan
from diffuse_jax.nets import LinenNet
from diffuse_jax.nets.unet2d import UNet2D

REMOVED = object()
VALUES = (None, "", "x", [], {}, -1, 0, 1e30, math.nan, True, [[1]], REMOVED)


@pytest.mark.parametrize(
    ("kind", "fitting", "others"),
    [
        (TEXT, ["", "x"], [None, 1]),
        (FLAG, [True, False], [0, 1, None, "true"]),
        (ROW, [[], (1,)], ["x", {}, None]),
        (integer(1, 3), [1, 3], [0, 4, 1.0, True, "1", None]),
        (integer(), [-5, 2**31 - 1], [2**31]),
        (number(0), [1e-9, 3], [0, -1.0, math.nan, math.inf, True, "1"]),
        (number(least=0, infinite=True), [0, math.inf], [-1e-9, math.nan]),
        (optional(integer(1)), [None, 1], [0, "x"]),
        (row(integer(1), (1, 3)), [[8], (8, 8, 3)], [[], [8, 8], [8, 0, 3], 8]),
    ],
)
def test_a_kind_takes_what_fits_it_and_nothing_else(kind, fitting, others):
    for value in fitting:
        check_fields({"a": value, "b": None}, {"a": kind}, "the file", ValueError)
    for value in others:
        with pytest.raises(ValueError, match=r"^the file: a is .*, and must be ") as refused:
            check_fields({"a": value}, {"a": kind}, "the file", ValueError)
        assert kind.words in str(refused.value)


def places(content, path=()):
    """The path of every field of a JSON object, sections among them."""
    for name, value in content.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from places(value, (*path, name))


def changed(content, path, value):
    """A copy of an object with another value at one place."""
    content = copy.deepcopy(content)
    section = content
    for name in path[:-1]:
        section = section[name]
    if value is REMOVED:
        del section[path[-1]]
    else:
        section[path[-1]] = value
    return content


def changes(content, count):
    """Some of all objects with one field changed, always the same ones, and what was changed in each."""
    every = [(path, value) for path in places(content) for value in VALUES]
    rng = np.random.default_rng(0)
    for i in sorted(rng.permutation(len(every))[:count]):
        path, value = every[i]
        yield f"{'.'.join(path)} = {value!r}", changed(content, path, value)


def assert_taken_or_refused(content, use, count, error=BAD_INPUT):
    """`use(content)` works, or raises an error of one line, whatever stands in one field of the content."""
    outcomes = [0, 0]
    for what, other in changes(content, count):
        try:
            use(other)
        except error as refusal:
            assert str(refusal).strip() and "\n" not in str(refusal), what
            outcomes[1] += 1
        except Exception as other_error:
            raise AssertionError(f"{what}: {type(other_error).__name__}: {other_error}") from other_error
        else:
            outcomes[0] += 1
    assert min(outcomes) > 0, outcomes


def test_a_runs_config(tmp_path):
    config = override(read("toy2d"), ["--config.model.width=4", "--config.model.depth=1"])
    write_run(tmp_path, config, describe(config), 10)
    file = tmp_path / "config.json"

    def use(content):
        file.write_text(json.dumps(content))
        stored, data = read_run(tmp_path)
        check_fits(stored, data, tmp_path, 10)
        build(stored, data)

    content = json.loads(file.read_text())
    use(content)
    assert_taken_or_refused(content, use, 200)


@pytest.fixture(scope="module")
def score_sde():
    """The options of a small experiment in score_sde's words, and its weights."""
    small = ["nf=4", "num_res_blocks=1", "ch_mult=(1,)", "attn_resolutions=()"]
    config = override(read("cifar10_vp_ddpmpp_continuous"), [f"--config.model.{field}" for field in small])
    config = override(config, ["--config.data.image_size=4", "--config.data.channels=1"])
    experiment = build(config)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), experiment.params)
    options = json.loads(json.dumps(score_sde_options(experiment)))
    return options, to_score_sde(experiment.net.module, params, experiment.data.shape)


DIFFUSERS = {
    "sample_size": 4,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [4],
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "norm_num_groups": 2,
    "layers_per_block": 1,
    "add_attention": False,
    "num_class_embeds": None,
    "time_embedding_type": "positional",
    "center_input_sample": False,
    "act_fn": "silu",
    "freq_shift": 0,
}
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 100,
    "prediction_type": "epsilon",
    "trained_betas": None,
    "variance_type": "fixed_small",
    "rescale_betas_zero_snr": False,
}
VE_SCHEDULER = {
    "_class_name": "ScoreSdeVeScheduler",
    "num_train_timesteps": 100,
    "snr": 0.15,
    "sigma_min": 0.01,
    "sigma_max": 1348.0,
    "sampling_eps": 1e-5,
    "correct_steps": 1,
}
EDM = {
    "model_type": "SongUNet",
    "img_resolution": 4,
    "img_channels": 1,
    "label_dim": 3,
    "augment_dim": 0,
    "model_channels": 4,
    "channel_mult": [1],
    "num_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.1,
    "embedding_type": "positional",
    "resample_filter": [1, 1],
    "sigma_data": 0.5,
    "beta_min": 0.1,
    "beta_d": 19.9,
    "class_name": "training.networks.VPPrecond",
    "precond": None,
}


def test_options_of_score_sde(score_sde):
    def use(content):
        network_of(content, "torch")
        score_sde_fields(content)

    assert_taken_or_refused(score_sde[0], use, 400)
    assert_taken_or_refused({name: value for part in score_sde[0].values() for name, value in part.items()}, use, 400)


@pytest.mark.parametrize("scheduler", [SCHEDULER, VE_SCHEDULER], ids=["table", "ve"])
def test_options_of_diffusers(scheduler):
    content = {"unet_config": DIFFUSERS, "scheduler_config": scheduler}
    assert_taken_or_refused(content, lambda options: diffusers_fields(**{**content, **options}), 300)


def test_options_of_edm():
    assert_taken_or_refused(EDM, edm_fields, 300)


@pytest.fixture(scope="module")
def weights(score_sde):
    """The weights of each program's small network."""
    unet = UNet2D(**{name: DIFFUSERS[name] for name in DIFFUSERS if name in UNet2D.__dataclass_fields__})
    params = LinenNet(unet).init(jax.random.key(0), (4, 4, 1))
    return {
        "score_sde": Weights(score_sde[1]),
        "diffusers": Weights(to_diffusers(unet, params)),
        "edm": Weights({name: np.zeros(shape, np.float32) for name, shape in _plan(EDM)[2].items()}),
    }


@pytest.mark.parametrize("program", first(["score_sde", "diffusers", "edm"], keep=["diffusers"]))
def test_an_import(program, score_sde, weights):
    """All that reads options, networks included."""
    options = {
        "score_sde": score_sde[0],
        "diffusers": {"unet_config": DIFFUSERS, "scheduler_config": SCHEDULER},
        "edm": EDM,
    }[program]
    assert_taken_or_refused(options, lambda content: of_options(program, weights[program], content), 20)


def test_the_header_of_safetensors(tmp_path):
    path = tmp_path / "a.safetensors"

    def use(content):
        write_safetensors(path, {"a": np.zeros(2)}, content["options"], content["step"])
        read_weights(path)

    for options in VALUES[:-1]:
        for step in VALUES[:-1]:
            fits = options in (None, {}) and step == 0 and step is not False
            try:
                use({"options": options, "step": step})
            except BAD_INPUT as refusal:
                assert not fits and str(path) in str(refusal) and "\n" not in str(refusal)
            else:
                assert fits, (options, step)
