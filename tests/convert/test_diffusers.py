"""Weights and options of diffusers' UNet2DModel, held against its own outputs and against published numbers."""

import functools
import json
import math
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit
from tiers import first, proof

from diffuse_jax.convert.checks import ConversionError
from diffuse_jax.convert.diffusers_checkpoints import diffusers_process, from_diffusers, to_diffusers
from diffuse_jax.nets import LinenNet, param_count
from diffuse_jax.nets.unet2d import UNet2D
from diffuse_jax.sde import linear_betas

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures" / "diffusers"
NAMES = sorted(path.stem for path in FIXTURES.glob("*.npz"))

D, A, R, S, AS = "DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D"
U, AU, RU, SU, ASU = "UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D"

DDPM = {
    "layers_per_block": 2,
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
NCSNPP = {
    "attention_head_dim": None,
    "norm_eps": 1e-6,
    "norm_num_groups": None,
    "mid_block_scale_factor": 2**0.5,
    "time_embedding_type": "fourier",
}
#: The published configs, without "google/".
PUBLISHED: dict[str, dict[str, Any]] = {
    "ddpm-cifar10-32": {
        **DDPM,
        "block_out_channels": [128, 256, 256, 256],
        "down_block_types": [D, A, D, D],
        "up_block_types": [U, U, AU, U],
    },
    "ddpm-church-256": {
        **DDPM,
        "block_out_channels": [128, 128, 256, 256, 512, 512],
        "down_block_types": [D, D, D, D, A, D],
        "up_block_types": [U, AU, U, U, U, U],
    },
    # celebahq-256 too.
    "ncsnpp-church-256": {
        **NCSNPP,
        "layers_per_block": 2,
        "block_out_channels": [128, 128, 256, 256, 256, 256, 256],
        "down_block_types": [S, S, S, S, AS, S, S],
        "up_block_types": [SU, SU, ASU, SU, SU, SU, SU],
    },
    "ncsnpp-ffhq-1024": {
        **NCSNPP,
        "layers_per_block": 1,
        "block_out_channels": [16, 32, 64, 128, 256, 512, 512, 512],
        "down_block_types": [S, S, S, S, S, S, AS, S],
        "up_block_types": [SU, ASU, SU, SU, SU, SU, SU, SU],
    },
}
SMALL: dict[str, Any] = {
    "block_out_channels": [8, 16],
    "down_block_types": [D, A],
    "up_block_types": [AU, U],
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
    "time_embedding_dim": 24,
}


class Fixture(NamedTuple):
    config: dict[str, Any]
    params: dict[str, np.ndarray]
    x: np.ndarray
    t: np.ndarray
    cond: np.ndarray | None
    y: np.ndarray


@functools.cache
def load(name: str) -> Fixture:
    with np.load(FIXTURES / f"{name}.npz") as file:
        config, shapes = json.loads(str(file["config"])), json.loads(str(file["shapes"]))
        flat, params, start = file["params"].astype(np.float32), {}, 0
        for key, shape in shapes.items():
            params[key] = flat[start : start + math.prod(shape)].reshape(shape)
            start += math.prod(shape)
        cond = file.get("cond")
        return Fixture(config, params, file["x"].astype(np.float32), file["t"], cond, file["y"])


@functools.cache
def converted(name: str) -> tuple[UNet2D, Any]:
    return from_diffusers(load(name).params, load(name).config)


def network_of(config: dict[str, Any]) -> UNet2D:
    """The network of a config that has no option of another name here."""
    return UNet2D(**({"out_channels": 3} | config))


def shapes(network: UNet2D) -> Any:
    size = 2 ** (len(network.block_out_channels) - 1)
    return jax.eval_shape(lambda key: LinenNet(network).init(key, (size, size, 3)), jax.random.key(0))


def zeros(network: UNet2D) -> dict[str, np.ndarray]:
    """Weights of nothing under the names and in the shapes of diffusers."""
    return to_diffusers(network, jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes(network)))


def output(network: Any, variables: Any, x: Any, t: Any, label: Any) -> np.ndarray:
    cond = None if label is None else {"label": label}
    return np.asarray(jax.jit(network.apply)(variables, x, t, cond))


@pytest.mark.parametrize("name", first(NAMES, keep=("ddpm", "ncsnpp", "pyramid_attention")))
def test_the_output_is_the_originals(name):
    fixture, (network, variables) = load(name), converted(name)
    y = output(network, variables, fixture.x, fixture.t, fixture.cond)
    assert 0.1 < np.abs(fixture.y).mean() < 10
    np.testing.assert_allclose(y, fixture.y, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_weights_return_to_diffusers_as_they_were(name):
    fixture, (network, variables) = load(name), converted(name)
    returned = to_diffusers(network, variables["params"])
    assert set(returned) == set(fixture.params)
    assert all(np.array_equal(returned[key], value) for key, value in fixture.params.items())


def test_old_names_of_attention_and_frequencies_are_read():
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    fixture = load("pyramid_attention")
    renamed = {}
    for name, array in fixture.params.items():
        path, leaf = name.rsplit(".", 1)
        for new in old:
            if path.endswith(new):
                path = path.removesuffix(new) + old[new]
        renamed[f"{path}.{leaf}"] = array
    renamed["time_proj.W"] = renamed.pop("time_proj.weight")
    assert not set(renamed) & {name for name in fixture.params if "to_" in name}
    _, expected = converted("pyramid_attention")
    _, found = from_diffusers(renamed, {"_class_name": "UNet2DModel", "sample_size": 64, **fixture.config})
    assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))


def test_prefixed_block_types_and_absent_keys_mean_what_diffusers_takes_them_for():
    stated = {"block_out_channels": [32, 32], "down_block_types": [D, A], "up_block_types": [AU, U]}
    wanted = network_of(stated | {"layers_per_block": 2, "norm_num_groups": 32, "downsample_type": "conv"})
    config = stated | {"down_block_types": [f"UNetRes{D}", f"UNetRes{A}"], "downsample_type": None, "sample_size": 64}
    network, _ = from_diffusers(zeros(wanted), config)
    assert network == wanted


def test_missing_unknown_and_misshapen_weights_are_all_listed():
    fixture = load("ddpm")
    broken = dict(fixture.params) | {"conv_in.bias": np.zeros(5), "extra.weight": np.zeros(1)}
    del broken["mid_block.resnets.1.conv2.weight"]
    with pytest.raises(ConversionError) as error:
        from_diffusers(broken, fixture.config)
    for words in (
        "missing: mid_block.resnets.1.conv2.weight (12, 12, 3, 3)",
        "unknown: extra.weight (1,)",
        "conv_in.bias is (5,) and must be (8,)",
    ):
        assert words in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"down_block_types": [D, "CrossAttnDownBlock2D"]},
        {"up_block_types": ["KUpBlock2D", U]},
        {"up_block_types": [U]},
        {"mid_block_type": "UNetMidBlock2DCrossAttn"},
        {"class_embed_type": "projection"},
        {"time_embedding_type": "learned"},
        {"resnet_time_scale_shift": "spatial"},
        {"act_fn": "tanh"},
        {"downsample_padding": 2},
        {"upsample_type": "none"},
        {"norm_num_groups": None},
        {"norm_num_groups": 5},
        {"norm_eps": "1e-6"},
        {"dropout": "0.1"},
        {"attention_head_dim": 32},
        {"cross_attention_dim": 8},
        {"freq_shift": 4},
        {"down_block_types": [D, S, D], "up_block_types": [U, U, U], "block_out_channels": [8, 8, 8]},
        {"up_block_types": [SU, U], "norm_num_groups": 2},
    ],
    ids=str,
)
def test_options_that_cannot_be_carried_over_are_refused_by_name(change):
    option, value = next(iter(change.items()))
    with pytest.raises(ConversionError) as error:
        from_diffusers({}, SMALL | change)
    # The learned times lack their number, and 5 groups do not divide some layer's channels.
    named = {"learned": "num_train_timesteps"}.get(str(value), option)
    assert named in str(error.value)
    (offender,) = [part for part in (value if isinstance(value, list) else []) if part not in (D, U, S, SU)] or [""]
    assert offender in str(error.value)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        # Ho et al. 2020, appendix B: 35.7 million and 114 million.
        ("ddpm-cifar10-32", 35_746_307),
        proof("ddpm-church-256", 113_673_219),
        # The same networks in score_sde's terms.
        proof("ncsnpp-church-256", 65_574_549),
        ("ncsnpp-ffhq-1024", 105_785_896),
    ],
)
def test_published_parameter_counts(name, published):
    assert param_count(shapes(network_of(PUBLISHED[name]))) == published


def test_every_parameter_learns_except_the_frequencies_and_dropout_acts_in_training():
    fixture = load("pyramid_attention")
    network, variables = from_diffusers(fixture.params, fixture.config | {"dropout": 0.5})
    x, t = fixture.x[:, :4, :4], fixture.t

    def loss(params: Any, key: jax.Array) -> jax.Array:
        y = LinenNet(network)(params, x, t, rng=key)
        return jnp.sum(jnp.sin(jnp.arange(y.size)) * y.ravel())

    step = jax.jit(jax.value_and_grad(loss))
    first, gradient = step(variables["params"], jax.random.key(0))
    again, _ = step(variables["params"], jax.random.key(1))
    assert abs(first - again) > 0.01
    still = {jax.tree_util.keystr(path) for path, leaf in jax.tree.leaves_with_path(gradient) if not np.any(leaf)}
    assert still == {"['fourier']['frequencies']"}


def test_a_new_network_starts_with_an_output_near_zero_whatever_the_condition():
    network = UNet2D(
        block_out_channels=(8,), down_block_types=(D,), up_block_types=(U,), norm_num_groups=4, num_classes=3
    )
    x, t = jnp.ones((2, 4, 4, 1)), jnp.array([1.0, 900.0])
    y, _ = jax.jit(network.init_with_output)(jax.random.key(0), x, t, {"label": jnp.array([0, 2])})
    assert y.shape == x.shape and 0 < np.abs(y).max() < 1e-3


@pytest.mark.proof
def test_labels_outside_the_classes_are_no_label():
    name = "heads_and_residual_resampling"
    fixture, (network, variables) = load(name), converted(name)
    outside = output(network, variables, fixture.x, fixture.t, np.array([5, -1]))
    assert np.abs(outside - fixture.y).max() > 0.01
    none = output(network, variables, fixture.x, fixture.t, None)
    np.testing.assert_allclose(none, outside, atol=1e-5)


def test_recomputed_blocks_have_the_same_parameters_and_output():
    fixture, (network, variables) = load("pyramid_attention"), converted("pyramid_attention")
    y = output(network.clone(remat=True), variables, fixture.x, fixture.t, fixture.cond)
    np.testing.assert_allclose(y, fixture.y, rtol=0, atol=1e-4)


# --- processes --------------------------------------------------------------------------------------------------------


def test_a_linear_table_is_said_by_its_ends():
    process = diffusers_process({"sample_size": 32, "num_class_embeds": 10})
    sde = process["sde"]
    n = sde["num_scales"]
    betas = linear_betas(n, sde["beta_min"] / n, sde["beta_max"] / n)
    np.testing.assert_allclose(betas, np.linspace(1e-4, 0.02, 1000))
    assert process["parameterization"] == {"name": "noise", "c_noise": "index"}
    assert (process["shape"], process["num_classes"], process["centered"]) == ((32, 32, 3), 10, True)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"beta_schedule": "scaled_linear", "beta_start": 0.01, "beta_end": 0.04}, np.linspace(0.1, 0.2, 50) ** 2),
        ({"beta_schedule": "sigmoid"}, 1e-4 + 0.0199 * expit(np.linspace(-6, 6, 50))),
        ({"trained_betas": [0.1, 0.3, 0.2]}, np.array([0.1, 0.3, 0.2])),
    ],
    ids=["scaled_linear", "sigmoid", "trained"],
)
def test_other_tables_are_given_as_arrays(schedule, expected):
    sde = diffusers_process({}, {"_class_name": "DDIMScheduler", "num_train_timesteps": 50, **schedule})["sde"]
    assert sde["name"] == "ddpm" and sde["num_scales"] == len(expected)
    np.testing.assert_allclose(sde["betas"], expected)


def test_the_cosine_table_follows_its_cumulative_product():
    scheduler = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 20, "prediction_type": "v_prediction"}
    process = diffusers_process({}, {"_class_name": "DDPMScheduler", **scheduler})
    alpha_bar = np.cos((np.arange(20) / 20 + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = process["sde"]["betas"]
    np.testing.assert_allclose(np.cumprod(1 - betas[:-1]), alpha_bar[1:] / alpha_bar[0])
    assert betas[-1] == 0.999
    assert process["parameterization"]["name"] == "v"


@pytest.mark.parametrize("scheduler", [None, {"_class_name": "ScoreSdeVeScheduler", "snr": 0.15}])
def test_fourier_networks_have_the_ve_process(scheduler):
    process = diffusers_process({"time_embedding_type": "fourier", "center_input_sample": True}, scheduler)
    assert process["sde"] == {"name": "ve", "sigma_min": 0.01, "sigma_max": 1348.0}
    assert process["parameterization"] == {"name": "score", "c_noise": "sigma"}
    assert process["centered"] is False and process["shape"] is None


@pytest.mark.parametrize(
    ("scheduler", "words"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler"),
        ({"beta_schedule": "laplace"}, "beta_schedule='laplace'"),
        ({"prediction_type": "flow_prediction"}, "prediction_type='flow_prediction'"),
        ({"variance_type": "learned_range"}, "variance_type='learned_range'"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
    ],
)
def test_schedulers_of_other_processes_are_refused_by_name(scheduler, words):
    with pytest.raises(ConversionError, match=words):
        diffusers_process({}, scheduler)


# --- side by side with diffusers itself -------------------------------------------------------------------------------

NARROW = {
    name: config | {"block_out_channels": [max(32, c // 8) if name.startswith("d") else 32 for c in channels]}
    for name, config in PUBLISHED.items()
    for channels in [config["block_out_channels"]]
}
SWEEP: dict[str, dict[str, Any]] = {
    **NARROW,
    "small": SMALL,
    "heads_that_do_not_divide": SMALL | {"attention_head_dim": 3},
    "one_head": SMALL | {"attention_head_dim": None},
    "fourier": SMALL | {"time_embedding_type": "fourier"},
    "learned": SMALL | {"time_embedding_type": "learned", "num_train_timesteps": 20},
    "odd_positional": SMALL | {"block_out_channels": [9, 18], "norm_num_groups": 3},
    "sines_first": SMALL | {"flip_sin_to_cos": False, "freq_shift": 1},
    "centering": SMALL | {"center_input_sample": True},
    "scaled_middle": SMALL | {"mid_block_scale_factor": 1.7},
    "no_middle": SMALL | {"mid_block_type": None},
    "no_middle_attention": SMALL | {"add_attention": False},
    "groups_of_attention": SMALL | {"attn_norm_num_groups": 2},
    "padding_at_the_end": SMALL | {"downsample_padding": 0, "down_block_types": ["UNetResDownBlock2D", A]},
    "residual_resampling": SMALL
    | {
        "block_out_channels": [8, 12, 16],
        "down_block_types": [A, R, A],
        "up_block_types": [AU, RU, AU],
        "downsample_type": "resnet",
        "upsample_type": "resnet",
    },
    "no_resampling_type": SMALL | {"down_block_types": [A, D], "downsample_type": None, "upsample_type": None},
    "scale_shift": SMALL | {"resnet_time_scale_shift": "scale_shift"},
    "scale_shift_with_groups": SMALL | {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8},
    "mish": SMALL | {"act_fn": "Mish"},
    "gelu": SMALL | {"act_fn": "gelu"},
    "relu": SMALL | {"act_fn": "relu"},
    "channels": SMALL | {"in_channels": 4, "out_channels": 2, "layers_per_block": 3, "norm_eps": 1e-2},
    "pyramid_with_scale_shift": NCSNPP
    | {
        "block_out_channels": [8, 12, 16],
        "layers_per_block": 2,
        "down_block_types": [S, S, S],
        "up_block_types": [SU, SU, SU],
        "resnet_time_scale_shift": "scale_shift",
        "center_input_sample": True,
    },
    "pyramids_at_the_large_sizes": SMALL
    | {"block_out_channels": [8, 8, 8], "down_block_types": [S, D, A], "up_block_types": [AU, SU, SU]},
    "pyramid_of_nothing": SMALL
    | {"block_out_channels": [8, 8], "down_block_types": [D, S], "up_block_types": [U, SU], "out_channels": 5},
    "pyramid_attention": NCSNPP
    | {
        "block_out_channels": [32, 32, 32],
        "layers_per_block": 1,
        "down_block_types": [AS, AS, AS],
        "up_block_types": [ASU, ASU, ASU],
        "attention_head_dim": 8,
    },
    "labels": SMALL | {"num_class_embeds": 5},
    "classes_as_times": SMALL | {"class_embed_type": "timestep", "num_class_embeds": 3},
    "class_vectors": SMALL | {"class_embed_type": "identity"},
}
CONDITIONS = {
    "labels": np.array([4, 0]),
    "classes_as_times": np.array([4, 33]),
    "class_vectors": np.random.default_rng(3).normal(size=(2, 24)).astype(np.float32),
}
TIMES = {"positional": [3.0, 517.0], "fourier": [0.7, 31.5], "learned": [3, 17]}


def random_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Kernels of variance 1 / fan in, the rest about its usual centre."""
    noise = np.random.default_rng(list(name.encode())).normal(size=shape).astype(np.float32)
    if name == "time_proj.weight":
        return 16 * noise if len(shape) == 1 else noise
    if name == "class_embedding.weight":
        return noise
    if name.endswith("bias"):
        return 0.3 * noise
    return 1 + 0.3 * noise if len(shape) == 1 else noise / np.float32(math.prod(shape[1:])) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEP)
def test_diffusers_side_by_side(name):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    config, cond = SWEEP[name], CONDITIONS.get(name)
    model = diffusers.UNet2DModel(**config).eval()
    params = {key: random_weight(key, tuple(value.shape)) for key, value in model.state_dict().items()}
    model.load_state_dict({key: torch.tensor(value) for key, value in params.items()})
    size = 2 ** len(config["block_out_channels"])
    x = np.random.default_rng(1).normal(size=(2, size, size, config.get("in_channels", 3))).astype(np.float32)
    t = np.asarray(TIMES[config.get("time_embedding_type", "positional")])
    labels = None if cond is None else torch.tensor(cond)
    with torch.no_grad():
        expected = model(torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(t), labels).sample.numpy()
    network, variables = from_diffusers(params, config)
    found = output(network, variables, x, t, cond).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * max(1, np.abs(expected).std()))


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_at_full_width_are_those_of_diffusers(name):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    with torch.device("meta"):
        model = diffusers.UNet2DModel(**PUBLISHED[name])
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in zeros(network_of(PUBLISHED[name])).items()} == expected


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
def test_tables_are_those_of_diffusers_schedulers(schedule):
    diffusers = pytest.importorskip("diffusers")
    for name in ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler"):
        if schedule == "sigmoid" and name != "DDPMScheduler":
            continue
        scheduler = getattr(diffusers, name)(beta_schedule=schedule, num_train_timesteps=200, beta_end=0.03)
        sde = diffusers_process({}, dict(scheduler.config) | {"_class_name": name})["sde"]
        betas = sde["betas"] if "betas" in sde else linear_betas(200, sde["beta_min"] / 200, sde["beta_max"] / 200)
        np.testing.assert_allclose(betas, scheduler.betas.numpy(), rtol=1e-4)
