"""The RefineNets: what they compute in closed form, how they start, what they refuse; that their numbers are those of
published programs is shown in tests/convert.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from random_params import random_params

from diffuse_jax.nets import LinenNet
from diffuse_jax.nets.ncsn import NCSN, NCSNV2_FORMS, NCSNv2, RefineResBlock
from diffuse_jax.nets.ncsn_layers import InstanceNorm, InstanceNormPlus, RefineStyle, VarianceNorm, interpolate

TINY = {"nf": 2, "ch_mult": (1, 2), "dilations": (1, 1), "refine_mult": (2, 1)}


@pytest.mark.parametrize("unbiased", [False, True])
def test_normalizations_are_their_formulas_in_float64(unbiased):
    rng = np.random.default_rng(0)
    x = rng.normal(1.0, 2.0, (2, 3, 4, 5))
    gamma, alpha, beta = rng.normal(size=(3, 5))
    flat = x.reshape(2, 12, 5)
    mean, deviation = flat.mean(1, keepdims=True), np.sqrt(flat.var(1, keepdims=True) + 1e-5)
    plus = (mean - mean.mean(2, keepdims=True)) / np.sqrt(mean.var(2, keepdims=True, ddof=int(unbiased)) + 1e-5)
    wide = np.sqrt(flat.var(1, keepdims=True, ddof=int(unbiased)) + 1e-5)
    expected = {
        InstanceNormPlus(unbiased, None): gamma * ((flat - mean) / deviation + alpha * plus) + beta,
        InstanceNorm(True, 1e-5): gamma * (flat - mean) / deviation + beta,
        InstanceNorm(False, 7.0): (flat - mean) / np.sqrt(flat.var(1, keepdims=True) + 7),
        VarianceNorm(unbiased): gamma * flat / wide,
    }
    values = {"gamma": gamma, "alpha": alpha, "beta": beta, "scale": gamma, "bias": beta}
    for module, y in expected.items():
        inputs = (jnp.asarray(x, jnp.float32), None)[: 2 if isinstance(module, InstanceNormPlus) else 1]
        names = jax.eval_shape(module.init, jax.random.key(0), *inputs).get("params", {})
        got = module.apply({"params": {name: jnp.asarray(values[name], jnp.float32) for name in names}}, *inputs)
        np.testing.assert_allclose(np.asarray(got).reshape(2, 12, 5), y, atol=2e-5)


def test_a_normalization_that_knows_the_noise_is_the_plain_one_of_its_row():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, 4, 4, 2)), jnp.float32)
    table = rng.normal(size=(5, 6)).astype(np.float32)
    index = jnp.array([4, 0, 4])
    y = jax.jit(InstanceNormPlus(False, 5).apply)({"params": {"table": table}}, x, index)
    rows = dict(zip(("gamma", "alpha", "beta"), table[index].reshape(3, 3, 2).swapaxes(0, 1), strict=True))
    plain = jax.vmap(lambda params, x: InstanceNormPlus(False, None).apply({"params": params}, x[None], None)[0])
    np.testing.assert_allclose(y, jax.jit(plain)(rows, x), atol=1e-6)


def test_enlarging_with_corners_kept_is_exact_on_what_is_linear():
    def plane(height, width):
        rows, columns = np.linspace(0, 3, height), np.linspace(-1, 1, width)
        return jnp.asarray(2 * rows[:, None] - 5 * columns + rows[:, None] * columns, jnp.float32)[None, ..., None]

    y = interpolate(plane(3, 4), (6, 9), "bilinear_corners")
    np.testing.assert_allclose(y, plane(6, 9), atol=1e-5)


def test_enlarging_by_the_nearest_pixel_repeats_it():
    x = jnp.arange(12.0).reshape(1, 3, 4, 1)
    np.testing.assert_array_equal(
        interpolate(x, (6, 8), "nearest"), np.repeat(np.repeat(np.asarray(x), 2, axis=1), 2, axis=2)
    )


@pytest.fixture(scope="module")
def x():
    return jax.random.uniform(jax.random.key(1), (3, 4, 4, 2))


apply = jax.jit(lambda net, *args, **kwargs: net(*args, **kwargs), static_argnums=0)


def test_ncsnv2_reads_the_noise_level_only_to_divide_by_it(x):
    net = LinenNet(NCSNv2(**TINY, sigma_min=0.5, sigma_max=8.0, num_scales=5))
    params = random_params(net, x.shape[1:])
    x = x.at[:].set(x[0])
    y = apply(net, params, x, jnp.array([0.0, 2.9, 4.0]))
    np.testing.assert_allclose(8 * y[0], 2 * y[1], rtol=1e-4)
    np.testing.assert_allclose(8 * y[0], 0.5 * y[2], rtol=1e-4)


def test_ncsn_is_another_network_at_each_whole_index(x):
    net = LinenNet(NCSN(**TINY))
    params = random_params(net, x.shape[1:])
    x = x.at[:].set(x[0])
    y = apply(net, params, x, jnp.array([3.0, 3.9, 4.0]))
    np.testing.assert_allclose(y[0], y[1], atol=1e-5)
    assert jnp.abs(y[2] - y[0]).max() > 1e-2


def test_half_precision_stays_close_and_keeps_the_output_in_float32(x):
    module = NCSN(**TINY)
    params, t = random_params(LinenNet(module), x.shape[1:]), jnp.arange(3.0)
    y = apply(LinenNet(module), params, x, t)
    half = apply(LinenNet(module.clone(dtype=jnp.bfloat16)), params, x, t)
    assert half.dtype == jnp.float32
    assert 0 < np.linalg.norm(half - y) / np.linalg.norm(y) < 0.05


@pytest.mark.slow
def test_rematerialisation_changes_neither_value_nor_gradients_and_every_kernel_is_trained(x):
    module = NCSN(**TINY)
    params, t = random_params(LinenNet(module), x.shape[1:]), jnp.arange(3.0)

    def loss(params, module):
        return jnp.mean(LinenNet(module)(params, x, t, rng=jax.random.key(2)) ** 2)

    grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    keep, recompute = grad.trace(params, module), grad.trace(params, module.clone(remat=True))
    assert "remat" in str(recompute.jaxpr) and "remat" not in str(keep.jaxpr)
    value, grads = keep.lower().compile()(params)
    value_, grads_ = recompute.lower().compile()(params)
    np.testing.assert_allclose(value, value_, rtol=1e-5)
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), grads, grads_)
    assert all(jnp.any(leaf != 0) for path, leaf in flatten_dict(grads).items() if path[-1] in ("kernel", "table"))


@pytest.mark.parametrize("size", [28, 64])
@pytest.mark.parametrize("form", NCSNV2_FORMS)
def test_every_form_reads_every_size_that_it_can_halve(form, size):
    module = NCSNv2(nf=4, **NCSNV2_FORMS[form])
    images = jnp.zeros((1, size, size, 1))
    halvings = {64: 1, 128: 2, 256: 3}[form]
    if size % 2**halvings:
        with pytest.raises(ValueError, match=rf"multiples of {2**halvings}; got {size}×{size}"):
            jax.eval_shape(lambda: module.init(jax.random.key(0), images, jnp.zeros(1)))
    else:
        shapes = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), images, jnp.zeros(1)))
        assert shapes[0].shape == images.shape


def test_parameters_start_as_published():
    """Kernels uniform in ±1/√(fan in), where a mean follows normal of variance 1/fan in; γ and α about 1, β at 0."""
    style = RefineStyle("elu", "instance++", "bilinear", False, True, 3, jnp.float32)
    block = RefineResBlock(style, 64, dilation=1, down=True)
    params = jax.jit(block.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 32)), jnp.zeros(1, int))["params"]
    bound = (9 * 32) ** -0.5
    for leaf in params["conv_0"].values():
        assert 0.9 * bound < np.abs(leaf).max() <= bound
    pooled = params["conv_1"]
    assert abs(pooled["kernel"].var() * 9 * 32 - 1) < 0.1 and np.abs(pooled["kernel"]).max() > 1.9 * bound
    assert not pooled["bias"].any()
    gamma, alpha, beta = np.split(params["norm_1"]["table"], 3, axis=1)
    for about_one in (gamma, alpha):
        assert abs(about_one.mean() - 1) < 0.01 and 0.01 < about_one.std() < 0.03
    assert not beta.any()


@pytest.mark.parametrize(
    ("network", "field", "value"),
    [
        (NCSN, "nf", 0),
        (NCSN, "ch_mult", ()),
        (NCSN, "dilations", (1, 1, 2)),
        (NCSN, "refine_mult", (2, 2, 1.5, 1)),
        (NCSN, "nonlinearity", "gelu"),
        (NCSN, "interpolation", "cubic"),
        (NCSN, "sigma_min", 2.0),
        (NCSN, "sigma_max", "1"),
        (NCSN, "num_scales", 0),
        (NCSN, "dtype", jnp.int32),
        (NCSNv2, "normalization", "InstanceNorm++"),
        (NCSNv2, "last_epsilon", 0.0),
        (NCSNv2, "last_epsilon", "1e-5"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name_when_the_network_is_made(network, field, value):
    with pytest.raises(ValueError, match=rf"(?s){field} must be .+; got ") as error:
        network(**{field: value})
    assert repr(value) in str(error.value)


def test_groups_need_a_width_that_they_divide():
    with pytest.raises(ValueError, match="nf must be a multiple of 32"):
        NCSNv2(nf=48, normalization="group")


@pytest.mark.parametrize(
    ("shape", "cond", "message"),
    [
        ((2, 5, 4, 3), None, "multiples of 2; got 5×4"),
        ((4, 4, 3), None, "x must be images"),
        ((2, 4, 4, 3), (2,), "cond has 'label', which NCSN does not read"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(shape, cond, message):
    cond = None if cond is None else {"label": jnp.zeros(cond, int)}
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: NCSN(**TINY).init(jax.random.key(0), jnp.zeros(shape), jnp.zeros(2), cond))
