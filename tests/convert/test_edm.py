"""EDM's networks with its weights against the outputs, names and initializations of its own program."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.make_edm import drawn
from tiers import first, proof

from diffuse_jax.convert.checks import ConversionError
from diffuse_jax.convert.edm_checkpoints import _plan, from_edm
from diffuse_jax.nets.edm import ADM, SongUNet

NETWORKS = ["ddpmpp", "ncsnpp", "skips", "adm"]


def load(fixtures, name):
    """The file's arrays, its options, and all that the original's state dict holds."""
    with np.load(fixtures / "edm" / f"{name}.npz") as file:
        data = dict(file)
    config, shapes = json.loads(str(data["config"])), json.loads(str(data["shapes"]))
    filters = {key.removeprefix("filter/"): value for key, value in data.items() if key.startswith("filter/")}
    return data, config, drawn(shapes) | filters


def conditions(data):
    """What a network reads beside the image and the noise, of a fixture whose empty arrays stand for none."""
    given = {"cond": {"label": data["cond"]}, "augment": data["augment"]}
    return {key: value for key, value in given.items() if data[key].shape[1]}


@pytest.mark.parametrize("name", first(NETWORKS, keep=("skips", "adm")))
def test_a_network_with_the_originals_weights_gives_the_originals_output(fixtures, name):
    data, config, weights = load(fixtures, name)
    network, variables = from_edm({f"module.model.{key}": value for key, value in weights.items()}, config)
    y = jax.jit(network.apply)(variables, data["x"], data["t"], **conditions(data))
    assert np.abs(data["y"]).max() > 1
    np.testing.assert_allclose(y, data["y"], atol=3e-5, rtol=0)


PUBLISHED = {
    "cifar10_cond_vp": 55_735_299,
    "cifar10_uncond_ve": 56_397_955,
    "ffhq_vp": 61_805_571,
    "ffhq_ve": 62_761_219,
    "imagenet64": 295_899_267,
}


@pytest.mark.parametrize("name", [proof(name) if "ffhq" in name else name for name in PUBLISHED])
def test_the_published_networks_have_the_originals_names_and_shapes(fixtures, name):
    """And so as many parameters; a Fourier embedding's 128 frequencies, which are not trained, are counted."""
    with np.load(fixtures / "edm" / "published.npz") as file:
        config, shapes = json.loads(str(file[name]))
    _, _, found = _plan(config | {"use_fp16": True, "sigma_data": 0.5, "class_name": "training.networks.EDMPrecond"})
    assert found == {key: tuple(shape) for key, shape in shapes.items()}
    assert sum(np.prod(shape, dtype=int) for shape in found.values()) == PUBLISHED[name]


@pytest.mark.parametrize("named", [{"class_name": "training.networks.iDDPMPrecond"}, {"precond": "iddpm"}])
def test_a_network_of_iddpms_preconditioning_has_two_outputs_a_channel(fixtures, named):
    _, config, weights = load(fixtures, "ddpmpp")
    options = {key: value for key, value in config.items() if "channels" not in key}
    options |= {"img_channels": 3, "model_channels": 8} | named
    doubled = {
        key: np.concatenate([value, value]) if "aux_conv" in key else value for key, value in weights.items()
    } | {"u": np.zeros(1001)}
    network, variables = from_edm(doubled, options)
    assert network.out_channels == 6
    kernel = variables["params"]["unet"]["out_conv"]["kernel"]
    np.testing.assert_array_equal(kernel[..., 3:], np.moveaxis(weights["dec.8x8_aux_conv.weight"], (0, 1), (3, 2)))


# --- errors -----------------------------------------------------------------------------------------------------------


def test_every_name_that_does_not_fit_is_listed(fixtures):
    _, config, weights = load(fixtures, "ncsnpp")
    del weights["map_layer0.bias"], weights["enc.8x8_conv.weight"]
    weights |= {"u": np.zeros(5), "enc.8x8_conv.extra": np.zeros(2), "map_noise.freqs": np.zeros(3)}
    weights["enc.4x4_down.skip.resample_filter"] = np.zeros((1, 1, 2, 2))
    with pytest.raises(ConversionError) as error:
        from_edm(weights, config)
    message = str(error.value)
    for listed in (
        r"missing: .*map_layer0.bias \(32,\)",
        r"missing: .*enc.8x8_conv.weight \(8, 3, 3, 3\)",
        r"; unknown: enc.8x8_conv.extra \(2,\);",
        r"map_noise.freqs is \(3,\) and must be \(8,\)",
        r"enc.4x4_down.skip.resample_filter is \(1, 1, 2, 2\) and must be \(1, 1, 4, 4\)",
    ):
        assert re.search(listed, message), (listed, message)


def test_a_resampling_filter_other_than_the_options_is_refused(fixtures):
    _, config, weights = load(fixtures, "skips")
    with pytest.raises(
        ConversionError, match=r"resample_filter is not the filter that resample_filter = \(1, 3, 3, 1\)"
    ):
        from_edm(weights, config | {"resample_filter": [1, 3, 3, 1]})
    bare = {key: value for key, value in weights.items() if not key.endswith("resample_filter")}
    from_edm(bare, config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 4}, "SongUNet has no option num_heads"),
        ({"model_type": "DhariwalUNet", "encoder_type": "residual"}, "DhariwalUNet has no option encoder_type"),
        ({"model_type": "UNet"}, "model_type must be one of"),
        ({"model_type": None}, "lack model_type"),
        ({"out_channels": None}, "lack out_channels"),
        ({"model_channels": 130}, "a layer of 130 channels"),
        ({"embedding_type": "Fourier"}, "embedding_type must be one of"),
        ({"resample_filter": [1, 2, 1]}, "resample_filter must be an even number of taps"),
        ({"img_resolution": 6, "channel_mult": [1, 1, 1]}, "multiples of 4; got 6×6"),
        ({"model_type": "DhariwalUNet", "model_channels": 224, "channel_mult": [1]}, "do not divide into its 3 heads"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused_by_name(change, message):
    options = {"model_type": "SongUNet", "img_resolution": 8, "in_channels": 3, "out_channels": 3}
    with pytest.raises(ConversionError, match=message):
        from_edm({}, options | change)


def test_names_with_and_without_a_prefix_are_refused(fixtures):
    _, config, weights = load(fixtures, "skips")
    with pytest.raises(ConversionError, match="with and without the prefix"):
        from_edm(weights | {"model.map_layer0.bias": np.zeros(32)}, config)


# --- the networks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["skips", *map(proof, ("ddpmpp", "ncsnpp", "adm"))])
def test_a_new_network_is_as_the_originals_new_networks(fixtures, name):
    """The deviation of every parameter over fresh initializations, to five standard errors of a normal's."""
    data, config, weights = load(fixtures, name)
    network, _ = from_edm(weights, config)

    @jax.jit
    def fresh(key):
        return network.init(key, data["x"][:1], jnp.ones(1))["params"]

    # The converter itself says where the deviation of each of the original's names belongs.
    shapes = json.loads(str(data["shapes"]))
    deviations = {key: np.full(shape, std) for (key, shape), std in zip(shapes.items(), data["init_std"], strict=True)}
    _, expected = from_edm(deviations, config)

    # This generator compiles in a fraction of the time.
    draws = [fresh(jax.random.key(seed, impl="rbg")) for seed in range(4)]

    def check(path, std, *values):
        count = np.size(values)
        np.testing.assert_allclose(np.std(values), std.ravel()[0], rtol=4 / np.sqrt(count), err_msg=str(path))

    jax.tree.map_with_path(check, expected["params"], *draws)


TINY = {"img_resolution": 4, "model_channels": 8, "channel_mult": (1,), "num_blocks": 1, "attn_resolutions": ()}


@pytest.fixture(scope="module")
def one_level():
    """A tiny network with classes, drawn weights, its inputs for four images, and the compiled network."""
    options = {"model_type": "SongUNet", "in_channels": 3, "out_channels": 3, "label_dim": 5} | TINY
    options |= {"label_dropout": 0.5, "dropout": 0.0}
    _, _, shapes = _plan(options)
    network, variables = from_edm(drawn(shapes), options)
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(4, 4, 4, 3)).astype(np.float32), np.full(4, 0.3, np.float32)

    @jax.jit
    def run(classes, rng):
        rngs, cond = {"dropout": rng}, {"label": classes}
        return {
            "class": network.apply(variables, x, t, cond),
            "vector": network.apply(variables, x, t, {"label": jax.nn.one_hot(classes, 5)}),
            "none": network.apply(variables, x, t),
            "training": network.apply(variables, x, t, cond, train=True, rngs=rngs),
        }

    return run


def test_a_class_is_its_unit_vector_and_none_or_one_out_of_range_is_zero(one_level):
    y = one_level(jnp.asarray([0, 4, -1, 5]), jax.random.key(0))
    np.testing.assert_allclose(y["class"], y["vector"], atol=1e-5)
    np.testing.assert_allclose(y["class"][2:], y["none"][2:], atol=1e-5)
    assert np.all(np.abs(y["class"] - y["none"]).max(axis=(1, 2, 3))[:2] > 1e-2)


def test_label_dropout_hides_whole_classes_and_only_in_training(one_level):
    hidden = []
    for seed in range(25):
        y = one_level(jnp.arange(4), jax.random.key(seed))
        to_class, to_none = (np.abs(y["training"] - y[key]).max(axis=(1, 2, 3)) for key in ("class", "none"))
        assert np.all(np.minimum(to_class, to_none) < 1e-5) and np.all(np.maximum(to_class, to_none) > 1e-2)
        hidden += list(to_none < to_class)
    assert abs(np.mean(hidden) - 0.5) < 4 * 0.5 / np.sqrt(len(hidden))


@pytest.mark.proof
@pytest.mark.parametrize("kind", [SongUNet, ADM])
def test_remat_changes_no_gradient_and_dropout_acts_in_training_alone(kind):
    networks = [kind(dropout=0.5, remat=remat, **(TINY | {"channel_mult": (1, 2)})) for remat in (False, True)]
    x, t = jax.random.normal(jax.random.key(0), (2, 4, 4, 3)), jnp.ones(2)
    params = networks[0].init(jax.random.key(1), x, t)["params"]
    params = jax.tree.map(lambda p: p + 0.1 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), params)

    def gradients(network, train):
        def total(params, rng):
            return jnp.sum(network.apply({"params": params}, x, t, train=train, rngs={"dropout": rng}) ** 2)

        run = jax.jit(jax.grad(total))
        return [jax.tree.leaves(run(params, jax.random.key(seed))) for seed in range(2)]

    plain, saving, certain = gradients(networks[0], True), gradients(networks[1], True), gradients(networks[0], False)
    for a, b in zip(plain[0], saving[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    assert any(np.abs(a - b).max() > 1e-2 for a, b in zip(*plain, strict=True))
    jax.tree.map(np.testing.assert_array_equal, *certain)


@pytest.mark.proof
@pytest.mark.parametrize("name", ["ncsnpp", "adm"])
def test_bfloat16_convolutions_give_float32_near_the_full_precision(fixtures, name):
    data, config, weights = load(fixtures, name)
    network, variables = from_edm(weights, config)
    y = jax.jit(network.clone(dtype=jnp.bfloat16).apply)(variables, data["x"], data["t"], **conditions(data))
    assert y.dtype == jnp.float32
    assert 1e-4 < np.sqrt(np.mean((y - data["y"]) ** 2) / np.mean(data["y"] ** 2)) < 0.05


def test_inputs_that_do_not_fit_are_refused_by_name():
    network = SongUNet(**TINY, label_dim=5, augment_dim=9)

    def run(network, shape=(2, 4, 4, 3), times=2, **more):
        return jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros(shape), jnp.ones(times), **more))

    for message, call in {
        "x must be images": lambda: run(network, shape=(2, 4)),
        "c_noise must have shape": lambda: run(network, times=3),
        "label must be integer classes": lambda: run(network, cond={"label": jnp.zeros((2, 4))}),
        r"augment must be of shape \(2, 9\)": lambda: run(network, augment=jnp.zeros((2, 8))),
        "ADM without the field label_dim": lambda: run(ADM(**TINY), cond={"label": jnp.zeros(2, int)}),
        "augment must be absent": lambda: run(ADM(**TINY), augment=jnp.zeros((2, 9))),
        "label_dropout must be": lambda: SongUNet(label_dropout=1.0),
        "dropout must be a number": lambda: ADM(dropout="0.1"),
        "resample_filter must be": lambda: SongUNet(resample_filter=("1", "1")),
        "img_resolution must be": lambda: ADM(img_resolution=0),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
