"""The halves of a U-Net: their shapes and parameters, what they read, and the pooling of a classifier."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from random_params import random_params

from diffuse_jax.nets import Decoder, Encoder, LinenNet, param_count
from diffuse_jax.nets.encoder import AttentionPool

QUICK = {"xla_backend_optimization_level": 0}  # compiles in half the time
TINY = {"nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (4,)}
X = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))


def shapes(module, shape=(8, 8, 3)):
    return jax.eval_shape(lambda: LinenNet(module).init_with_output(jax.random.key(0), shape))


def block(before, after, time=0, resampled=False):
    """Two normalisations, two convolutions, what reads an embedding of `time` numbers, and the shortcut."""
    shortcut = (before + 1) * after if before != after or resampled else 0
    reads = (time + 1) * after if time else 0
    return 2 * before + 9 * before * after + after + reads + 2 * after + 9 * after**2 + after + shortcut


def attention(channels):
    return 2 * channels + 4 * channels * (channels + 1)


def middle(channels, time=0):
    return 2 * block(channels, channels, time) + attention(channels)


HEADS = {
    "attention": ((1, 5), 17 * 16 + 3 * 16 * 17 + 17 * 5),  # places, query, key and value, output
    "mean": ((1, 5), 17 * 5),
    "moments": ((1, 4, 4, 5), (9 * 16 + 1) * 5),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", ["biggan", "ddpm"])
def test_an_encoder_has_the_shape_of_its_head_and_the_parameters_of_its_parts(head, kind):
    output, params = shapes(Encoder(5, head, **TINY, conditional=False, resblock_type=kind))
    shape, last = HEADS[head]
    assert (output.shape, output.dtype) == (shape, jnp.float32)
    halving = block(8, 8, resampled=True) if kind == "biggan" else 9 * 8 * 8 + 8
    walk = (9 * 3 + 1) * 8 + block(8, 8) + halving + block(8, 16) + attention(16) + middle(16)
    assert param_count(params) == walk + 2 * 16 + last


@pytest.mark.parametrize("kind", ["biggan", "ddpm"])
def test_a_decoder_brings_a_latent_to_the_images_size_with_the_parameters_of_its_parts(kind):
    output, params = shapes(Decoder(3, **TINY, resblock_type=kind), (4, 6, 2))
    assert (output.shape, output.dtype) == ((1, 8, 12, 3), jnp.float32)
    doubling = block(16, 16, resampled=True) if kind == "biggan" else 9 * 16 * 16 + 16
    low = 2 * block(16, 16) + 2 * attention(16)
    walk = (9 * 2 + 1) * 16 + middle(16) + low + doubling + block(16, 8) + block(8, 8)
    assert param_count(params) == walk + 2 * 8 + (9 * 8 + 1) * 3


def test_only_a_conditional_encoder_has_parameters_for_the_noise():
    _, plain = shapes(Encoder(5, **TINY, conditional=False))
    _, told = shapes(Encoder(5, **TINY))
    read = (32 + 1) * (8 + 8 + 16 + 2 * 16)  # by the blocks of two levels, between them, and in the middle
    assert param_count(told) - param_count(plain) == (8 + 1) * 32 + (32 + 1) * 32 + read
    _, fourier = shapes(Encoder(5, **TINY, embedding_type="fourier"))
    assert param_count(fourier) - param_count(told) == 8 + 8 * 32  # frequencies, and twice as many features


def test_the_attention_pool_of_a_constant_image_is_what_its_layers_make_of_one_pixel():
    """All rows being alike but for their places, a zero here, their mean is each of them."""
    pool, pixel = AttentionPool(3), np.random.default_rng(0).normal(size=(2, 128)).astype(np.float32)
    x = jnp.broadcast_to(pixel[:, None, None, :], (2, 2, 3, 128))
    variables = jax.jit(pool.init)(jax.random.key(0), x)
    params = {"attention": variables["params"]["attention"], "places": jnp.zeros((7, 128))}
    layer = jax.tree.map(lambda a: np.float64(a) + 0.1, params["attention"])
    value = pixel @ layer["value"]["kernel"] + layer["value"]["bias"]
    expected = value @ layer["out"]["kernel"] + layer["out"]["bias"]
    found = pool.apply({"params": params | {"attention": jax.tree.map(jnp.float32, layer)}}, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    moved = pool.apply({"params": params | {"places": variables["params"]["places"]}}, x)
    assert jnp.abs(moved - pool.apply({"params": params}, x)).max() > 1e-3


def test_an_encoder_reads_the_noise_row_by_row_exactly_where_it_is_conditional():
    told, plain = (LinenNet(Encoder(5, nf=8, ch_mult=(1,), num_res_blocks=1, conditional=c)) for c in (True, False))
    run = jax.jit(lambda net, *args: net(*args), static_argnums=0, compiler_options=QUICK)
    params = random_params(told, (4, 4, 3))
    y, other = (run(told, params, X[:, :4, :4], jnp.array([1.0, t])) for t in (2.0, 9.0))
    np.testing.assert_allclose(y[0], other[0], rtol=1e-4, atol=1e-5)
    assert jnp.abs(y[1] - other[1]).max() > 1e-2
    params = random_params(plain, (4, 4, 3))
    np.testing.assert_array_equal(run(plain, params, X[:, :4, :4]), run(plain, params, X[:, :4, :4], jnp.ones(2)))


def test_every_parameter_of_an_autoencoder_learns_and_dropout_acts_in_training():
    small = {"nf": 8, "ch_mult": (1, 1), "num_res_blocks": 1, "attn_resolutions": (), "dropout": 0.5}
    encoder = LinenNet(Encoder(2, "moments", **small, conditional=False, resblock_type="ddpm"))
    decoder = LinenNet(Decoder(3, **small))
    params = {"down": random_params(encoder, (8, 8, 3)), "up": random_params(decoder, (4, 4, 1))}

    def loss(params, key):
        mean, _ = jnp.split(encoder(params["down"], X, rng=key), 2, axis=-1)
        return jnp.mean((decoder(params["up"], mean, rng=key) - X) ** 2)

    step = jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)
    first, gradient = step(params, jax.random.key(0))
    assert abs(first - step(params, jax.random.key(1))[0]) > 1e-3
    still = {path for path, leaf in flatten_dict(gradient).items() if not jnp.any(jnp.abs(leaf) > 1e-6)}
    assert all(path[-2:] == ("key", "bias") for path in still)  # to which a softmax is blind


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Encoder(0), "out_features must be a positive integer; got 0"),
        (lambda: Encoder(5, "max"), r"head must be one of \('attention', 'mean', 'moments'\); got 'max'"),
        (lambda: Encoder(5, ch_mult=()), "ch_mult must be"),
        (lambda: Decoder(1.5), "out_channels must be a positive integer; got 1.5"),
        (lambda: Decoder(3, resblock_type="adm"), "resblock_type must be one of"),
        (lambda: Encoder(5, **TINY).init(jax.random.key(0), X), "c_noise must be given to an Encoder unless"),
        (lambda: shapes(Encoder(5, **TINY), (7, 8, 3)), "multiples of 2; got 7×8"),
        (lambda: Decoder(3).init(jax.random.key(0), X, None, {"label": jnp.ones(2, int)}), "which Decoder does not"),
    ],
)
def test_what_cannot_work_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
