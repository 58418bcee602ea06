"""`convolve` is the library's convolution, and so are its derivatives in every mode."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from tiers import first, proof

from diffuse_jax.nets.convolution import convolve
from diffuse_jax.nets.layers import convolution

KEEPING = [(4, 4, 3, 5, 3), (4, 6, 2, 3, 5), (2, 2, 4, 4, 1), (1, 2, 3, 2, 3)]
STRIDED = [
    ((6, 8, 2, 3, 3), 2, "SAME"),  # DDPM's: zeros after the last row and column
    ((6, 8, 2, 3, 3), 2, ((1, 1), (1, 1))),
    ((7, 5, 2, 3, 3), 2, "VALID"),
    ((6, 7, 2, 3, 4), 3, ((2, 0), (0, 1))),  # the last rows are read by no output
    ((5, 5, 2, 3, 1), 2, "VALID"),  # three pixels of four are read by none
]


def library(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: object = "SAME") -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def drawn(h: int, w: int, channels: int, features: int, size: int) -> tuple[jax.Array, ...]:
    shapes = ((8, h, w, channels), (size, size, channels, features), (8, h, w, features))
    return tuple(jnp.asarray(np.random.default_rng(i).standard_normal(shape)) for i, shape in enumerate(shapes))


@pytest.mark.parametrize(
    ("case", "stride", "padding"),
    [(KEEPING[0], 1, "SAME"), *(proof(case, 1, "SAME") for case in KEEPING[1:]), *STRIDED],
)
def test_derivatives_are_those_of_the_librarys_convolution(case, stride, padding):
    with jax.enable_x64(True):
        x, kernel, _ = drawn(*case)
        tangents = (jnp.sin(x), jnp.cos(kernel))
        cotangent = jnp.cos(jnp.arange(library(x, kernel, stride, padding).size, dtype=x.dtype))

        def derivatives(conv, x, kernel):
            value, tangent = jax.jvp(lambda x, kernel: conv(x, kernel, stride, padding), (x, kernel), tangents)
            gradient = jax.grad(
                lambda x, kernel: jnp.sum(conv(x, kernel, stride, padding).ravel() ** 3 * cotangent), (0, 1)
            )
            second = jax.jvp(gradient, (x, kernel), tangents)  # forward over reverse
            return value, tangent, second

        ours, theirs = (jax.jit(functools.partial(derivatives, conv))(x, kernel) for conv in (convolve, library))
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("axes", first([(0, None), (None, 0), (1, 3)], keep=[(1, 3)]))
def test_vmap_over_images_kernels_or_both_equals_a_loop(axes, stride):
    x, kernel, _ = drawn(4, 4, 3, 2, 3)
    batched = tuple(
        a if axis is None else jnp.stack([a, 2 * a, a + 1], axis) for a, axis in zip((x, kernel), axes, strict=True)
    )
    gradient = jax.grad(lambda x, kernel: jnp.sum(convolve(x, kernel, stride) ** 2), (0, 1))
    found = jax.jit(jax.vmap(gradient, axes))(*batched)
    for i in range(3):
        each = gradient(*(a if axis is None else a.take(i, axis) for a, axis in zip(batched, axes, strict=True)))
        for a, b in zip(found, each, strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("check", [True, False])
def test_inside_shard_map_the_gradient_is_the_sum_over_devices(check, stride):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x, kernel, _ = drawn(4, 4, 3, 2, 3)

    def loss(kernel, x):
        return jnp.sum(convolve(x, kernel, stride) ** 2)

    split = jax.shard_map(
        lambda kernel, x: lax.psum(loss(kernel, x), "data"),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("data")),
        out_specs=PartitionSpec(),
        check_vma=check,
    )
    np.testing.assert_allclose(jax.jit(jax.grad(split))(kernel, x), jax.grad(loss)(kernel, x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (3, 1), (3, 2)])
def test_on_a_cpu_the_gradient_of_a_kernel_is_products_of_matrices_and_no_convolution(size, stride):
    x, kernel, cotangent = drawn(4, 4, 3, 2, size)
    gradient = jax.jit(lambda x, kernel, ct: jax.vjp(lambda kernel: convolve(x, kernel, stride), kernel)[1](ct))
    lowered = gradient.lower(x, kernel, cotangent[:, ::stride, ::stride])
    assert lowered.as_text(dialect="hlo").count(" dot(") == size
    assert " convolution(" not in lowered.compile().as_text()


@pytest.mark.parametrize(
    ("shape", "padding", "says"),
    [
        ((3, 5, 3, 4), "SAME", r"\(k, k"),
        ((3, 3, 4), "SAME", r"\(k, k"),
        ((2, 2, 3, 4), "SAME", "must be odd"),
        ((3, 3, 3, 4), "VALID", "padding 1; got 3 and VALID"),
    ],
)
def test_a_kernel_or_padding_that_would_change_the_size_is_refused(shape, padding, says):
    with pytest.raises(ValueError, match=says):
        convolve(jnp.zeros((1, 4, 4, 3)), jnp.zeros(shape), padding=padding)


@pytest.mark.parametrize("options", [{}, {"strides": 2}, {"padding": 1}, {"strides": 2, "padding": "VALID"}])
def test_a_layer_of_flax_with_it_is_the_layer_without(options):
    x = drawn(6, 6, 3, 4, 3)[0]
    layer = nn.Conv(4, (3, 3), **options)
    params = layer.init(jax.random.key(0), x)
    found = layer.clone(conv_general_dilated=convolution).apply(params, x)
    np.testing.assert_allclose(found, layer.apply(params, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"strides": (1, 2)}, {"kernel_dilation": 2}, {"feature_group_count": 2}, {"precision": "highest"}]
)
def test_a_layer_of_flax_that_it_does_not_have_is_refused(options):
    layer = nn.Conv(4, (3, 3), conv_general_dilated=convolution, **options)
    with pytest.raises(ValueError, match="a convolution's"):
        layer.init(jax.random.key(0), jnp.zeros((1, 6, 6, 4)))
