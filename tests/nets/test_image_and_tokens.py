"""The conditions `image` and `tokens` of `NCSNpp` and `DDPM`, their nulls, and the transformer that reads tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax.traverse_util import flatten_dict
from random_params import random_params

from diffuse_jax.nets import DDPM, LinenNet, NCSNpp, TransformerBlock, param_count
from diffuse_jax.nets.attention import attend

QUICK = {"xla_backend_optimization_level": 0}  # compiles in half the time
TINY = {"nf": 8, "ch_mult": (1,), "num_res_blocks": 1, "attn_resolutions": (4,)}
TOKENS = {"vocabulary": 7, "context_length": 6, "context_width": 8, "context_depth": 1}
X, C_NOISE = jax.random.normal(jax.random.key(1), (2, 4, 4, 3)), jnp.array([0.3, 5.0])


@pytest.fixture(scope="module")
def apply():
    return jax.jit(lambda net, *args, **kwargs: net(*args, **kwargs), static_argnums=0, compiler_options=QUICK)


@pytest.fixture(scope="module")
def reader():
    """A network that reads all conditions, with attention in its middle, and random parameters of it."""
    net = LinenNet(NCSNpp(**TINY | {"attn_resolutions": ()}, **TOKENS, image_channels=2, num_classes=3))
    return net, random_params(net, (4, 4, 3))


def conditions(tokens, image=(0.0, 0.0), label=(3, -1)):
    """By default without image and label."""
    filled = jnp.broadcast_to(jnp.array(image)[:, None, None, None], (2, 4, 4, 2))
    return {"tokens": jnp.array(tokens), "image": filled, "label": jnp.array(label)}


def far(a, b):
    return list(jnp.abs(a - b).max(axis=(1, 2, 3)) > 1e-2)


NO_TOKENS = [[0, 0, 0], [0, 0, 0]]


def test_conditions_change_the_output_row_by_row_and_nulls_are_no_conditions(reader, apply):
    net, params = reader
    plain = apply(net, params, X, C_NOISE)
    null = apply(net, params, X, C_NOISE, cond=conditions(NO_TOKENS))
    np.testing.assert_allclose(null, plain, rtol=1e-4, atol=1e-4)
    for given in (conditions([[0, 0, 0], [2, 0, 5]]), conditions(NO_TOKENS, image=(0.0, 1.0))):
        y = apply(net, params, X, C_NOISE, cond=given)
        assert far(y, null) == [False, True]
        np.testing.assert_array_equal(y[0], null[0])


def test_padding_changes_nothing_and_the_order_of_words_does(reader, apply):
    net, params = reader
    tokens = [[4, 2, 6], [1, 3, 0]]
    y = apply(net, params, X, C_NOISE, cond=conditions(tokens))
    longer = conditions([[*row, 0, 0, 0] for row in tokens])
    np.testing.assert_allclose(apply(net, params, X, C_NOISE, cond=longer), y, rtol=1e-4, atol=1e-4)
    swapped = conditions([[2, 4, 6], [1, 3, 0]])
    assert far(apply(net, params, X, C_NOISE, cond=swapped), y) == [True, False]


def test_every_parameter_of_the_conditions_learns_and_only_words_that_are_there(reader):
    net, params = reader
    cond = conditions([[4, 2, 0], [0, 0, 0]], image=(1.0, 1.0))

    def loss(params):
        y = net(params, X, C_NOISE, cond=cond)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size)).reshape(y.shape))

    gradient = jax.jit(jax.grad(loss), compiler_options=QUICK)(params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))  # the second row has padding alone
    tokens = flatten_dict(gradient["tokens"]) | {
        path: leaf for path, leaf in flatten_dict(gradient["unet"]).items() if "_tokens" in path[0]
    }
    # The softmax of weights does not see what is the same for all keys.
    still = {path for path, leaf in tokens.items() if jnp.abs(leaf).max() < 1e-5}
    assert len(tokens) > 25 and all(path[-2:] == ("key", "bias") for path in still)
    moved = jnp.abs(gradient["tokens"]["words"]["embedding"]).max(axis=1) > 1e-4
    assert [i for i in range(7) if moved[i]] == [2, 4]
    assert jnp.any(gradient["unet"]["in_conv"]["kernel"][:, :, 3:] != 0)


def attention_size(channels, context):
    """Query, key, value and output, each with a bias."""
    return 2 * channels * (channels + 1) + 2 * channels * (context + 1)


def test_conditions_add_the_parameters_of_their_parts_alone():
    def count(**options):
        module = DDPM(**TINY | {"nf": 32}, **options)
        return param_count(jax.eval_shape(lambda: LinenNet(module).init(jax.random.key(0), (4, 4, 3))))

    assert count(image_channels=2) - count() == 9 * 2 * 32
    block = attention_size(8, 8) + 2 * (8 + 8) + (8 + 1) * 32 + (32 + 1) * 8
    encoder = 7 * 8 + 6 * 8 + block + (8 + 8)
    attentions = 3 * (attention_size(32, 8) + 32 + 32)  # down, middle and up, each with a normalisation
    assert count(**TOKENS) - count() == encoder + attentions


@pytest.mark.parametrize(
    ("options", "cond", "message"),
    [
        ({}, {"image": jnp.zeros((2, 4, 4, 1))}, "cond has 'image', which NCSNpp without the field image_channels"),
        ({}, {"tokens": jnp.ones((2, 1), int)}, "cond has 'tokens', which NCSNpp without the field vocabulary"),
        ({"image_channels": 1}, {"image": jnp.zeros((2, 8, 8, 1))}, r"image must .* shape \(2, 4, 4, 1\)"),
        ({"image_channels": 1}, {"image": jnp.zeros((2, 4, 4, 1), jnp.uint8)}, "image must be numbers in the model's"),
        (TOKENS, {"tokens": jnp.ones((2, 7), int)}, "context_length = 6; got int32 of shape"),
        (TOKENS, {"tokens": jnp.ones((2, 3))}, "tokens must be integers"),
    ],
)
def test_conditions_that_do_not_fit_are_refused_by_name(options, cond, message):
    module = NCSNpp(**TINY, **options)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: module.init(jax.random.key(0), X, C_NOISE, cond))


@pytest.mark.parametrize(
    ("field", "value"), [("image_channels", -1), ("vocabulary", 1), ("context_length", 0), ("context_width", 1.5)]
)
def test_a_field_of_the_conditions_that_cannot_work_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=rf"{field} must be .+; got {value}"):
        NCSNpp(**{field: value})


def test_masked_keys_are_not_there_and_a_row_without_keys_gets_zeros():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, n, 3, 5)), jnp.float32) for n in (4, 6, 6))
    mask = jnp.array([[True, False, True, True, False, False], [False] * 6])
    found = attend(q, k, v, mask=mask)
    np.testing.assert_allclose(found[0], attend(q, k[:, mask[0]], v[:, mask[0]])[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[1], 0)
    with pytest.raises(ValueError, match="'cudnn' has no mask"):
        attend(q, k, v, "cudnn", mask)


def block_and_params(width=128):
    block = TransformerBlock()
    x, context = jax.random.normal(jax.random.key(2), (1, 3, width)), jax.random.normal(jax.random.key(3), (1, 2, 4))
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x, None, context))
    rng = np.random.default_rng(4)
    return block, jax.tree.map(lambda leaf: jnp.asarray(0.1 * rng.normal(size=leaf.shape)), shapes), x, context


def test_a_transformer_block_whose_branches_are_closed_is_the_identity():
    block, variables, x, context = block_and_params()
    closed = {("self_attention", "out"), ("cross_attention", "out"), ("mlp_out",)}
    shut = jax.tree.map_with_path(
        lambda path, leaf: 0 * leaf if tuple(key.key for key in path[1:-1]) in closed else leaf, variables
    )
    np.testing.assert_array_equal(block.apply(shut, x, None, context), x)
    assert jnp.abs(block.apply(variables, x, None, context) - x).max() > 0.1


def test_a_transformer_block_is_its_formula():
    """Pre-norm, with a head for every 64 channels, in float64 by hand."""
    block, variables, x, context = block_and_params()
    p, y = jax.tree.map(np.float64, variables["params"]), np.float64(x[0])

    def dense(name, h, *path):
        layer = p[path[0]][name] if path else p[name]
        return h @ layer["kernel"] + layer["bias"]

    def norm(name, h):
        return (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-6) * p[name]["scale"] + p[name][
            "bias"
        ]

    def attention(name, h, read):
        q, k, v = (dense(part, of, name) for part, of in (("query", h), ("key", read), ("value", read)))
        heads = [slice(0, 64), slice(64, 128)]
        mixed = [scipy.special.softmax(q[:, i] @ k[:, i].T / 8, axis=1) @ v[:, i] for i in heads]
        return dense("out", np.concatenate(mixed, axis=1), name)

    h = norm("self_norm", y)
    y = y + attention("self_attention", h, h)
    y = y + attention("cross_attention", norm("cross_norm", y), np.float64(context[0]))
    y = y + dense("mlp_out", np.float64(jax.nn.gelu(dense("mlp_in", norm("mlp_norm", y)))))
    np.testing.assert_allclose(block.apply(variables, x, None, context)[0], y, rtol=1e-4, atol=1e-4)
