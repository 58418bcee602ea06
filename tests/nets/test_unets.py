"""What every U-Net must do, whatever its options: trace, refuse, compute in half precision, rematerialise, drop out,
read labels; and have as many parameters as published ones.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from random_params import random_params
from tiers import first, proof

from diffuse_jax.nets import DDPM, LinenNet, NCSNpp, param_count
from diffuse_jax.nets.layers import Attention, ResBlock, Style

QUICK = {"xla_backend_optimization_level": 0}  # compiles in half the time
TINY = {"nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (4,)}
STRUCTURE = {
    "resblock_type": ("biggan", "ddpm"),
    "progressive": ("none", "output_skip", "residual"),
    "progressive_input": ("none", "input_skip", "residual"),
    "progressive_combine": ("sum", "cat"),
    "fir": (True, False),
    "resamp_with_conv": (True, False),
}
POINTWISE = {
    "embedding_type": ("fourier", "positional"),
    "conditional": (True, False),
    "skip_rescale": (True, False),
    "scale_by_sigma": (True, False),
    "centered": (True, False),
    "nonlinearity": ("swish", "elu", "relu", "lrelu"),
}


def product(choices):
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def assert_traces(module):
    x, t = jnp.zeros((2, 4, 8, 3)), jnp.ones(2)
    y, _ = jax.eval_shape(lambda key: module.init_with_output(key, x, t, train=False), jax.random.key(0))
    assert (y.shape, y.dtype) == (x.shape, jnp.float32), module


def structures():
    """Every structure, each with another treatment of time and scale."""
    pointwise = itertools.cycle(product(POINTWISE)[::5])  # 5 is coprime to 2 and 4: each value of each option comes by
    for options in product(STRUCTURE):
        combines = options["progressive_combine"] == "sum" or options["progressive_input"] == "input_skip"
        resamples = options["resamp_with_conv"] or options["resblock_type"] == "ddpm"
        if combines and resamples:  # otherwise the option is not read
            yield NCSNpp(**TINY, **options, **next(pointwise))


@pytest.mark.parametrize("fifth", first(range(5), keep=[0]))
def test_every_structure_traces_to_the_shape_of_its_input(fifth):
    """In fifths, in each of which every value of every option comes by."""
    for module in itertools.islice(structures(), fifth, None, 5):
        assert_traces(module)


@pytest.mark.slow
def test_every_structure_traces_with_every_treatment_of_time_and_scale():
    elementwise = itertools.cycle(product({key: POINTWISE[key] for key in ("centered", "nonlinearity")}))
    treatments = product({key: POINTWISE[key] for key in POINTWISE if key not in ("centered", "nonlinearity")})
    for structure, treatment in itertools.product(product(STRUCTURE), treatments):
        assert_traces(NCSNpp(**TINY, **structure, **treatment, **next(elementwise)))


@pytest.mark.parametrize("options", product({"resamp_with_conv": (True, False), "conditional": (True, False)}), ids=str)
def test_every_structure_of_ddpm_traces_to_the_shape_of_its_input(options):
    assert_traces(DDPM(**TINY | {"nf": 32}, **options, scale_by_sigma=True, centered=False))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("nf", 0),
        ("ch_mult", ()),
        ("ch_mult", (1, 2.5)),
        ("num_res_blocks", 0),
        ("dropout", 1.0),
        ("dropout", "0.1"),
        ("attn_resolutions", 16),
        ("fir_kernel", (1, -1)),
        ("fir_kernel", ("1", "3")),
        ("resblock_type", "BigGAN"),
        ("progressive", "input_skip"),
        ("progressive_input", "output_skip"),
        ("progressive_combine", "concat"),
        ("embedding_type", "sinusoidal"),
        ("nonlinearity", "gelu"),
        ("fourier_scale", 0.0),
        ("fourier_scale", "16"),
        ("init_scale", -1.0),
        ("init_scale", "0."),
        ("init_scale", None),
        ("sigma_min", 60.0),
        ("sigma_min", "0.01"),
        ("sigma_max", "50"),
        ("num_scales", 0),
        ("num_classes", 0),
        ("dtype", jnp.int32),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name_when_the_network_is_made(field, value):
    with pytest.raises(ValueError, match=rf"(?s){field} must be .+; got ") as error:
        NCSNpp(**{field: value})
    assert repr(value) in str(error.value)


def test_ddpm_refuses_a_width_that_its_32_groups_do_not_divide():
    with pytest.raises(ValueError, match=r"nf must be a multiple of 32.*got 48"):
        DDPM(nf=48)


@pytest.mark.parametrize(
    ("module", "x", "t", "cond", "message"),
    [
        (NCSNpp(), (2, 20, 32, 3), (2,), None, r"ch_mult = \(1, 2, 2, 2\).*multiples of 8; got 20×32"),
        (DDPM(), (2, 32, 36, 3), (2,), None, r"ch_mult = \(1, 2, 2, 2\).*multiples of 8; got 32×36"),
        (NCSNpp(), (32, 32, 3), (32,), None, "x must be images"),
        (NCSNpp(), (2, 32, 32, 3), (3,), None, r"c_noise must have shape \(2,\)"),
        (NCSNpp(**TINY | {"nf": 10}), (2, 4, 4, 3), (2,), None, "nf and ch_mult give a layer of 30 channels"),
        (NCSNpp(**TINY), (2, 8, 8, 3), (2,), (2,), "cond has 'label', which NCSNpp without the field num_classes"),
        (NCSNpp(**TINY, num_classes=3), (2, 8, 8, 3), (2,), (2, 3), r"label must be integers of shape \(2,\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(module, x, t, cond, message):
    cond = None if cond is None else {"label": jnp.zeros(cond, int)}
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda key: module.init(key, jnp.zeros(x), jnp.ones(t), cond, train=False), jax.random.key(0))


@pytest.fixture(scope="module")
def problem():
    """A small network with both pyramids, attention and classes; its random parameters, an input and the compiled
    network.
    """
    module = NCSNpp(**TINY, progressive="output_skip", num_classes=3, dropout=0.5)
    net = LinenNet(module)
    x = jax.random.uniform(jax.random.key(1), (3, 8, 8, 3))
    return module, random_params(net, x.shape[1:]), x, jnp.array([0.3, 1.0, 7.0])


@pytest.fixture(scope="module")
def apply():
    return jax.jit(lambda net, *args, **kwargs: net(*args, **kwargs), static_argnums=0, compiler_options=QUICK)


def test_half_precision_stays_within_three_percent_and_keeps_parameters_and_output_in_float32(problem, apply):
    module, params, x, t = problem
    half = LinenNet(module.clone(dtype=jnp.bfloat16))
    shapes = jax.eval_shape(lambda key: half.init(key, x.shape[1:]), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    y, y_half = apply(LinenNet(module), params, x, t), apply(half, params, x, t)
    assert y_half.dtype == jnp.float32
    error = np.linalg.norm(y_half - y) / np.linalg.norm(y)
    assert 0 < error < 0.03


def test_rematerialisation_changes_neither_parameters_nor_values_nor_gradients(problem):
    _, _, x, t = problem
    module = NCSNpp(nf=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), dropout=0.5)
    params = random_params(LinenNet(module), x.shape[1:])

    def loss(params, module):
        return jnp.mean(LinenNet(module)(params, x, t, rng=jax.random.key(2)) ** 2)

    grad = jax.jit(jax.value_and_grad(loss), static_argnums=1, compiler_options=QUICK)
    keep, recompute = grad.trace(params, module), grad.trace(params, module.clone(remat=True))
    assert "remat" in str(recompute.jaxpr) and "remat" not in str(keep.jaxpr)
    value, grads = keep.lower().compile()(params)
    value_, grads_ = recompute.lower().compile()(params)
    np.testing.assert_allclose(value, value_, rtol=1e-5)
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), grads, grads_)
    kernels = {path: leaf for path, leaf in flatten_dict(grads).items() if path[-1] == "kernel"}
    assert all(jnp.any(g != 0) for g in kernels.values())
    assert not grads["fourier"]["frequencies"].any()  # stored, but not trained


def test_dropout_acts_exactly_where_a_key_is_given(problem, apply):
    module, params, x, t = problem
    net = LinenNet(module)
    key, other = jax.random.split(jax.random.key(3))
    y = apply(net, params, x, t)
    dropped = apply(net, params, x, t, rng=key)
    assert jnp.abs(dropped - y).max() > 1e-2
    assert jnp.abs(dropped - apply(net, params, x, t, rng=other)).max() > 1e-2
    np.testing.assert_array_equal(dropped, apply(net, params, x, t, rng=key))


def test_labels_change_the_output_row_by_row_and_the_null_label_is_no_label(problem, apply):
    module, params, x, t = problem
    net = LinenNet(module)
    plain = apply(net, params, x, t)
    y = apply(net, params, x, t, cond={"label": jnp.array([0, 3, 2])})
    differs = jnp.abs(y - plain).max(axis=(1, 2, 3))
    assert differs[0] > 1e-2 and differs[2] > 1e-2
    np.testing.assert_allclose(y[1], plain[1], rtol=1e-4, atol=1e-4)
    swapped = apply(net, params, x, t, cond={"label": jnp.array([1, -1, 2])})
    assert jnp.abs(swapped[0] - y[0]).max() > 1e-2
    np.testing.assert_allclose(swapped[1:], y[1:], rtol=1e-4, atol=1e-4)


def test_without_key_and_labels_a_network_is_one_that_has_neither_dropout_nor_classes(problem, apply):
    module, params, x, t = problem
    bare = {k: v for k, v in params["embedding"].items() if k != "classes"}
    y = apply(LinenNet(module.clone(num_classes=None, dropout=0.0)), params | {"embedding": bare}, x, t)
    np.testing.assert_allclose(y, apply(LinenNet(module), params, x, t), rtol=1e-5, atol=1e-5)


def test_kernels_start_uniform_with_the_stated_variance_and_branches_closed():
    """Half-width of a uniform law of variance s / mean(fan in, fan out): √(3·s·2 / (fan in + fan out)); a scale of 0
    is 1e-10.
    """
    x = jnp.ones((1, 4, 4, 32))
    style = Style("swish", 0.0, init_scale=0.0)
    block, attention = ResBlock(style, 64, small_shortcut=True), Attention(style)
    params = jax.jit(block.init, static_argnums=3)(jax.random.key(0), x, jnp.ones((1, 8)), False)["params"]
    params["attention"] = jax.jit(attention.init)(jax.random.key(1), x)["params"]
    expected = {
        ("conv_0", "kernel"): (1.0, 9 * (32 + 64)),
        ("time", "kernel"): (1.0, 8 + 64),
        ("conv_1", "kernel"): (1e-10, 9 * (64 + 64)),
        ("shortcut", "kernel"): (0.1, 32 + 64),
        ("attention", "query", "kernel"): (0.1, 32 + 32),
        ("attention", "value", "kernel"): (0.1, 32 + 32),
        ("attention", "out", "kernel"): (1e-10, 32 + 32),
    }
    kernels = flatten_dict(params)
    for path, (scale, fans) in expected.items():
        width = np.sqrt(6 * scale / fans)
        assert 0.9 * width < np.abs(kernels[path]).max() <= width, path
        assert abs(np.var(kernels[path]) / (width**2 / 3) - 1) < 0.15, path
    assert not any(leaf.any() for path, leaf in kernels.items() if path[-1] == "bias")


POSITIONAL = {"fir": False, "embedding_type": "positional", "progressive_input": "none", "scale_by_sigma": False}
PYRAMIDS = {"progressive": "output_skip", "progressive_input": "input_skip"}


@pytest.mark.parametrize(
    ("module", "size", "published"),
    [
        proof(NCSNpp(embedding_type="positional"), 32, 62_693_251),
        (NCSNpp(), 32, 62_758_915),
        proof(NCSNpp(num_res_blocks=8), 32, 107_587_075),
        (NCSNpp(**POSITIONAL), 32, 61_804_419),
        proof(NCSNpp(**POSITIONAL, num_res_blocks=8), 32, 106_632_579),
        (DDPM(), 32, 35_218_947),
        proof(NCSNpp(ch_mult=(1, 1, 2, 2, 2, 2, 2), num_res_blocks=2, **PYRAMIDS), 256, 65_574_549),
        proof(NCSNpp(nf=16, ch_mult=(1, 2, 4, 8, 16, 32, 32, 32), num_res_blocks=1, **PYRAMIDS), 1024, 105_785_896),
    ],
    ids=["ncsnpp", "ncsnpp_continuous", "ncsnpp_deep", "ddpmpp", "ddpmpp_deep", "ddpm", "lsun_256", "ffhq_1024"],
)
def test_published_parameter_counts(module, size, published):
    """The fixed frequencies of a Fourier embedding count as parameters, as they do in the published numbers."""
    shapes = jax.eval_shape(lambda key: LinenNet(module).init(key, (size, size, 3)), jax.random.key(0))
    assert param_count(shapes) == published
