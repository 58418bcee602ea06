"""Networks of score_sde's two programs here: their numbers, their names, their options, and back."""

import json
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict
from tiers import first

from diffuse_jax.convert import (
    ConversionError,
    from_score_sde,
    named_ema,
    network_of,
    options_of,
    score_sde_params,
    to_score_sde,
)
from diffuse_jax.convert.network_options import UNREAD_OPTIONS
from diffuse_jax.nets import DDPM, MLP, LinenNet, NCSNpp
from diffuse_jax.nets.ncsn import NCSN, NCSNV2_FORMS, NCSNv2

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
SHARED = [
    f"{name}.{program}"
    for name in ("ve_ncsnpp_fir_residual", "ve_skip_pyramids", "vp_ddpmpp_positional", "vp_ddpm")
    for program in ("flax", "torch")
]
OWN = sorted(path.stem for path in (FIXTURES / "score_sde").glob("*.npz"))


def load(name):
    """The arrays, options, named parameters of a fixture."""
    folder = FIXTURES if "." in name else FIXTURES / "score_sde"
    with np.load(folder / f"{name}.npz") as file:
        data = dict(file)
    return data, json.loads(str(data["config"])), {k[6:]: v for k, v in data.items() if k.startswith("param/")}


apply = jax.jit(lambda module, variables, x, t: module.apply(variables, x, t), static_argnums=0)


@pytest.mark.parametrize(
    "name",
    first([*SHARED, *OWN], keep=("vp_ddpm.flax", "ve_skip_pyramids.torch", "jax_ncsnv2_64", "torch_ncsnpp_plain")),
)
def test_network_reproduces_the_output_of_the_program_that_stored_it(name):
    data, config, params = load(name)
    module, variables = from_score_sde(params, config)
    y = apply(module, variables, data["x"], data["t"])
    size = np.abs(data["y"]).max()
    assert size > 0.1
    np.testing.assert_allclose(y, data["y"], atol=1e-4 * max(1, size / 10), rtol=0)


def test_fixtures_have_every_value_of_every_option():
    """Those of this test file, in one program's names or the other's."""
    configs = [load(name)[1] for name in OWN]

    def seen(option, network=""):
        values = (config.get(option) for config in configs if config["name"].startswith(network))
        return {str(value).lower() for value in values if value is not None}

    flags = ("resamp_with_conv", "conditional", "fir", "skip_rescale", "scale_by_sigma", "centered")
    assert all(seen(flag) == {"true", "false"} for flag in flags)
    assert seen("resblock_type") == {"biggan", "ddpm"}
    assert seen("progressive") == {"none", "output_skip", "residual"}
    assert seen("progressive_input") == {"none", "input_skip", "residual"}
    assert seen("progressive_combine") == {"sum", "cat"}
    assert seen("embedding_type") == {"fourier", "positional"}
    assert seen("nonlinearity") == {"swish", "elu", "relu", "lrelu"}
    assert seen("name") == {"ncsnpp", "ddpm", "ncsn", "ncsnv2_64", "ncsnv2_128", "ncsnv2_256"}
    assert seen("normalization", "ncsnv2") == {"instancenorm++", "instancenorm", "variancenorm"}
    assert seen("interpolation") == {"bilinear", "nearest_neighbor"}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("vp_ddpm.flax", np.float64),
        ("vp_ddpmpp_positional.flax", np.float16),
        ("vp_ddpmpp_positional.torch", ml_dtypes.bfloat16),
    ],
)
def test_arrays_of_any_floating_type_below_any_prefix_become_the_same_float32(name, dtype):
    _, config, params = load(name)
    prefix = "params/" if name.endswith("flax") else "module."
    given = {prefix + key: array.astype(dtype) for key, array in params.items()}
    expected = {key: array.astype(dtype).astype(np.float32) for key, array in params.items()}
    module, variables = from_score_sde(given, config)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    same = from_score_sde(expected, config)
    assert module == same[0]
    jax.tree.map(np.testing.assert_array_equal, variables, same[1])


@pytest.mark.parametrize("name", ["ve_skip_pyramids.flax", "ve_skip_pyramids.torch", "jax_ncsn", "torch_ncsnv2_64"])
def test_every_name_that_does_not_fit_is_listed_as_it_was_given(name):
    _, config, params = load(name)
    prefix, separator = ("", ".") if "torch" in name else ("params/", "/")
    first, second, *_, last = (key for key in params if key != "sigmas" and not key.endswith("0.W"))
    wrong = {prefix + key: array for key, array in params.items()}
    del wrong[prefix + first]
    wrong[prefix + second] = np.zeros((1, 2, 3))
    extra = f"{prefix}{last}{separator}more"
    wrong[extra] = np.zeros(5)
    with pytest.raises(ConversionError) as error:
        from_score_sde(wrong, config)
    message = str(error.value)
    assert f"missing: {prefix}{first} {tuple(params[first].shape)}" in message
    assert f"unknown: {extra} (5,)" in message
    assert f"of another shape: {prefix}{second} is (1, 2, 3) and must be {tuple(params[second].shape)}" in message


def test_the_two_forms_of_the_options_say_the_same():
    _, config, params = load("ve_ncsnpp_fir_residual.flax")
    data = {key: config[key] for key in ("image_size", "centered")}
    nested = {
        "model": {key: value for key, value in config.items() if key not in (*data, "continuous")},
        "data": data | {"dataset": "CIFAR10", "num_channels": 3},
        "training": {"continuous": True, "batch_size": 128},
        "optim": {"lr": 2e-4},
    }
    assert network_of(nested) == network_of(config) == from_score_sde(params, nested)[0]
    assert network_of(ConfigDict(nested)) == network_of(config)
    together = {key: value for section in nested.values() for key, value in section.items()}
    assert network_of(together) == network_of(config)


def test_an_option_that_is_null_is_missing_but_for_the_filter_which_is_then_the_plain_one():
    _, config, _ = load("ve_skip_pyramids.flax")
    with pytest.raises(ConversionError, match="config lacks dropout, init_scale, which 'ncsnpp' needs"):
        network_of(config | {"dropout": None, "init_scale": None})
    assert network_of(config | {"fir_kernel": None}).fir_kernel == (1, 1)


def test_parameters_that_are_still_a_tree_are_refused_by_name():
    _, config, params = load("vp_ddpm.flax")
    tree = unflatten_dict({tuple(name.split("/")): array for name, array in params.items()})
    with pytest.raises(ConversionError, match=r"trees being flat already; .*Conv_0 is a dict"):
        from_score_sde(tree, config)


def test_options_are_read_in_any_case_that_the_programs_read():
    _, config, _ = load("ve_skip_pyramids.flax")
    spelled = {
        **{"resblock_type": "BigGAN", "progressive": "Output_Skip", "progressive_input": "INPUT_SKIP"},
        **{"progressive_combine": "Sum", "embedding_type": "Fourier", "nonlinearity": "Swish"},
    }
    assert network_of(config | spelled) == network_of(config)
    assert network_of(config | dict.fromkeys(UNREAD_OPTIONS, "anything")) == network_of(config)


@pytest.mark.parametrize(
    ("name", "spelling", "change", "message"),
    [
        ("jax_ncsnpp_joined", "flax", {"name": "ncsn++"}, "name must be one of ncsnpp, ddpm, .*got 'ncsn\\+\\+'"),
        ("jax_ncsnpp_joined", "flax", {"nf": None, "fir": None}, "config lacks nf, fir, which 'ncsnpp' needs"),
        ("jax_ncsnpp_joined", "flax", {"fourier_scale": None}, "config lacks fourier_scale"),
        ("jax_ncsnpp_joined", "flax", {"fir": "false"}, "fir must be true or false; got 'false'"),
        ("jax_ncsnpp_joined", "flax", {"continuous": False}, "continuous must be true where embedding_type"),
        ("jax_ncsnpp_joined", "flax", {"resblock_type": "stylegan"}, "resblock_type must be one of .*'stylegan'"),
        ("jax_ncsnpp_joined", "flax", {"progressive": "input_skip"}, "progressive must be one of .*'input_skip'"),
        ("jax_ncsnpp_joined", "flax", {"fir_kernel": [[1, 1], [1, 1]]}, "fir_kernel must be one row"),
        ("jax_ncsnpp_joined", "flax", {"conv_shortcut": True}, "options that .* do not: conv_shortcut"),
        ("jax_ddpm_unscaled", "flax", {"normalization": "InstanceNorm++"}, "normalization must be .*'InstanceNorm"),
        ("jax_ncsn", "flax", {"normalization": "VarianceNorm"}, "normalization must be one of InstanceNorm\\+\\+ for"),
        ("jax_ncsn", "flax", {"interpolation": "cubic"}, "interpolation must be one of .*'cubic'"),
        ("jax_ncsn", "flax", {"num_classes": 3}, "num_classes must be num_scales, 10"),
        ("jax_ncsnv2_64", "torch", {"normalization": "GroupNorm"}, "normalization 'GroupNorm' is not one"),
        ("jax_ncsnv2_64", "flax", {"scale_by_sigma": None}, "config lacks scale_by_sigma"),
    ],
)
def test_an_option_that_is_missing_or_cannot_be_honoured_is_named(name, spelling, change, message):
    """None: the option is taken out."""
    config = load(name)[1] | change
    with pytest.raises(ConversionError, match=message):
        network_of({key: value for key, value in config.items() if change.get(key, "") is not None}, spelling)


def test_an_option_that_one_program_does_not_read_changes_its_network_alone():
    """PyTorch's NCSNv2 divides by σ whatever scale_by_sigma says, and its DDPM always normalises groups."""
    config = load("torch_ncsnv2_256")[1]
    ignored = config | {"scale_by_sigma": False, "interpolation": "nearest_neighbor"}
    assert network_of(ignored, "torch") == network_of(config, "torch")
    assert network_of(ignored, "flax") != network_of(config, "flax")
    config = load("torch_ddpm_scaled")[1]
    assert network_of(config | {"normalization": "VarianceNorm"}, "torch") == network_of(config, "torch")


@pytest.mark.parametrize(("option", "value"), [("sigma_max", 60.0), ("sigma_min", 0.02), ("num_scales", 999)])
def test_a_stored_table_of_noise_levels_that_the_options_contradict_is_refused(option, value):
    _, config, params = load("vp_ddpmpp_positional.torch")
    with pytest.raises(
        ConversionError, match=f"stored sigmas are 1000 levels from 50 to 0.01, but .*{option} {value:g}"
    ):
        from_score_sde(params, config | {option: value})


def test_an_image_that_the_network_cannot_read_is_refused():
    _, config, params = load("ve_skip_pyramids.torch")
    with pytest.raises(ConversionError, match=r"cannot read images of shape \(18, 18, 3\): ch_mult = \(1, 1, 2\)"):
        from_score_sde(params, config | {"image_size": 18})


@pytest.mark.parametrize("name", [name for name in (*SHARED, *OWN) if "torch" in name])
def test_the_averages_are_in_the_order_of_the_state_without_what_is_not_trained(name):
    """The fixtures of this test file recorded that program's own order."""
    data, _, params = load(name)
    trained = [key for key in params if key not in ("sigmas", "all_modules.0.W")]
    if "averaged" in data:
        assert trained == json.loads(str(data["averaged"]))
    averages = [params[key] + 1 for key in trained]
    state = {f"module.{key}": array for key, array in params.items()}
    named = named_ema(state, averages)
    assert list(named) == list(state)
    for key, array in params.items():
        np.testing.assert_array_equal(named[f"module.{key}"], array + (key in trained))


def test_averages_that_do_not_fit_the_state_are_refused_saying_what_was_expected():
    _, _, params = load("ve_ncsnpp_fir_residual.torch")
    averages = [array for key, array in params.items() if key not in ("sigmas", "all_modules.0.W")]
    with pytest.raises(ConversionError, match=r"shadow_params must be 156 .*all but sigmas, all_modules.0.W.* got 158"):
        named_ema(params, list(params.values()))
    with pytest.raises(ConversionError, match=r"all_modules.1.bias is \(64, 32\) and must be \(64,\)"):
        named_ema(params, [averages[1], averages[0], *averages[2:]])
    with pytest.raises(ConversionError, match=r"in the order of its state_dict: .*weight just before .*bias"):
        named_ema(dict(sorted(params.items())), averages)


STRUCTURES = [
    NCSNpp(nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), progressive="residual"),
    NCSNpp(nf=8, ch_mult=(1, 1, 2), num_res_blocks=1, attn_resolutions=(8, 2), progressive="output_skip", fir=False),
    NCSNpp(
        **{"nf": 4, "ch_mult": (2, 1), "num_res_blocks": 1, "attn_resolutions": (), "resblock_type": "ddpm"},
        **{"progressive_input": "input_skip", "progressive_combine": "cat", "conditional": False, "centered": True},
        **{"resamp_with_conv": False, "embedding_type": "positional", "nonlinearity": "lrelu", "fourier_scale": 8.0},
    ),
    NCSNpp(nf=4, ch_mult=(1, 2), num_res_blocks=1, resblock_type="ddpm", fir_kernel=(1, 2, 1), init_scale=1.0),
    DDPM(nf=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(8,), scale_by_sigma=True, num_scales=7),
    DDPM(nf=32, ch_mult=(1,), num_res_blocks=1, resamp_with_conv=False, conditional=False, centered=False),
]


@pytest.mark.parametrize(
    "module", first(STRUCTURES, keep=(STRUCTURES[0], STRUCTURES[-1])), ids=lambda module: type(module).__name__
)
def test_weights_come_back_bit_for_bit_and_the_network_with_them(module):
    shape, rng = (8, 8, 2), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: LinenNet(module).init(key, shape), jax.random.key(0))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    state, options = to_score_sde(module, params, shape), options_of(module, shape)
    assert {array.dtype for array in state.values()} == {np.dtype(np.float32)}
    again, variables = from_score_sde(state, json.loads(json.dumps(options)))
    assert again == module
    jax.tree.map(np.testing.assert_array_equal, variables["params"], params)


@pytest.mark.parametrize("name", ["ve_skip_pyramids.torch", "torch_ncsnpp_layers_between", "torch_ddpm_scaled"])
def test_an_exported_state_is_the_one_that_was_read_name_by_name(name):
    data, config, params = load(name)
    module, variables = from_score_sde(params, config)
    state = to_score_sde(module, variables["params"], data["x"].shape[1:])
    assert list(state) == list(params)
    for key, array in params.items():
        unused = not config["conditional"] and ".Dense_0." in key
        np.testing.assert_allclose(state[key], 0 * array if unused else array, rtol=1e-5 if key == "sigmas" else 0)


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (NCSNpp(num_classes=10), (32, 32, 3), "num_classes must be None"),
        (DDPM(image_channels=3), (32, 32, 3), "image_channels must be 0"),
        (NCSNpp(), (32, 64, 3), "image_shape must be square"),
        (NCSNv2(), (32, 32, 3), "module must be an NCSNpp or a DDPM; got NCSNv2"),
        (MLP(), (2, 2, 3), "module must be an NCSNpp or a DDPM; got MLP"),
        (STRUCTURES[0], (8, 8, 3), r"missing: fourier/frequencies \(8,\), embedding/dense_0/kernel \(16, 32\)"),
    ],
)
def test_what_score_sde_does_not_have_is_not_exported(module, shape, message):
    with pytest.raises(ConversionError, match=message):
        to_score_sde(module, {}, shape)


def test_a_network_made_here_reads_the_weights_that_fit_it():
    """In the height of its own images: attention is where the height says."""
    _, config, params = load("vp_ddpm.torch")
    module, variables = from_score_sde(params, config)
    again = score_sde_params(module.clone(dtype=jnp.bfloat16, remat=True), (16, 16, 3), params)
    jax.tree.map(np.testing.assert_array_equal, again, variables["params"])
    with pytest.raises(ConversionError, match=r"missing: .*of another shape|unknown"):
        score_sde_params(module, (32, 32, 3), params)


REFINENETS = [NCSN(nf=4), *(NCSNv2(nf=4, **form) for form in NCSNV2_FORMS.values())]


@pytest.mark.parametrize("module", first(REFINENETS, keep=REFINENETS[:2]), ids=["ncsn", "64", "128", "256"])
def test_every_parameter_of_a_refinenet_has_one_name_of_its_own_in_each_program(module):
    """Weights named after either program fill the tree, and fill it with the numbers that bear the names."""
    from diffuse_jax.convert.parameter_names import leaves

    shapes = jax.eval_shape(lambda key: LinenNet(module).init(key, (16, 16, 3)), jax.random.key(0))
    flat = {path: leaf.shape for path, leaf in flatten_dict(shapes).items()}
    table = list(leaves(module, flat))
    assert sorted(leaf.path for leaf in table) == sorted(flat)
    assert len({leaf.flax for leaf in table}) == len({leaf.torch for leaf in table}) == len(flat)
    tree = unflatten_dict({leaf.path: np.full(leaf.shape, i, np.float32) for i, leaf in enumerate(table)})
    for name, shape in (("flax", "flax_shape"), ("torch", "torch_shape")):
        arrays = {getattr(leaf, name): np.full(getattr(leaf, shape), i) for i, leaf in enumerate(table)}
        jax.tree.map(np.testing.assert_array_equal, score_sde_params(module, (16, 16, 3), arrays), tree)
