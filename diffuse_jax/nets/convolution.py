"""A convolution of images that keeps their size, whose derivatives on a CPU are faster.

`convolve` is `lax.conv_general_dilated`, and so are its derivatives wherever XLA has a library of convolutions. On a
CPU XLA computes the gradient of the kernel as a convolution with a kernel the size of the image, at half the speed of
its matrix products (in a loop's body, by a path some fifty times slower yet). Here it is such products: a k × k kernel
with p = (k − 1)/2 has the gradient

    gradient[i, j] = Σ over images and pixels (y, x) of input[y + i − p, x] ⊗ cotangent[y, x + p − j]

This is a primitive of its own, since nothing less can be differentiated in both modes, batched and sharded.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

__all__ = ["convolve"]


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x (batch, h, w, c) with kernel (k, k, c, features), k odd, strides of 1 and zeros outside the image: (batch, h,
    w, features). Both are of one type. ValueError for another kernel."""
    if kernel.ndim != 4 or kernel.shape[0] != kernel.shape[1] or kernel.shape[0] % 2 == 0:
        raise ValueError(f"the kernel must be (k, k, channels, features) with k odd; got shape {kernel.shape}")
    # Inside `shard_map` images differ between devices and kernels do not, until they meet.
    over = {*jax.typeof(x).mat.varying, *jax.typeof(kernel).mat.varying}
    return _convolve_p.bind(*(_spread(a, over) for a in (x, kernel)))


def _spread(a: jax.Array, axes: set[str]) -> jax.Array:
    missing = tuple(axes - jax.typeof(a).mat.varying)
    return lax.pcast(a, missing, to="varying") if missing else a


def _library(x: jax.Array, kernel: jax.Array) -> jax.Array:
    if kernel.shape[0] == 1:
        return lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _to_input(cotangent: jax.Array, x: Any, kernel: jax.Array) -> jax.Array:
    return lax.platform_dependent(
        cotangent,
        kernel,
        cpu=lambda ct, kernel: convolve(lax.optimization_barrier(ct), jnp.swapaxes(kernel[::-1, ::-1], 2, 3)),
        default=lambda ct, kernel: jax.linear_transpose(lambda x: _library(x, kernel), x.aval)(ct)[0],
    )


def _to_kernel(cotangent: jax.Array, x: jax.Array, kernel: Any) -> jax.Array:
    return lax.platform_dependent(
        cotangent,
        x,
        cpu=lambda ct, x: _products(ct, x, kernel.aval.shape[0]),
        default=lambda ct, x: jax.linear_transpose(lambda kernel: _library(x, kernel), kernel.aval)(ct)[0],
    )


def _products(cotangent: jax.Array, x: jax.Array, k: int) -> jax.Array:
    """The gradient of the kernel, (k, k, c, features), as the head of this module says: a product for each i, of all j.
    Pixels are ordered by row, image, column, so that a shift by rows is a slice. The images' axis stays one, along
    which devices may split it."""
    # The barriers keep operands as they are laid out here, since products of other layouts take twice as long, and keep
    # XLA from computing them anew in a second layout: in a residual network a cotangent is a sum over all later blocks.
    cotangent, x = lax.optimization_barrier((cotangent, x))
    if k == 1:
        return lax.dot_general(x, cotangent, (((0, 1, 2), (0, 1, 2)), ((), ())))[None, None]
    p, (_, h, w, c), features = k // 2, x.shape, cotangent.shape[-1]
    rows = jnp.pad(x.transpose(3, 1, 0, 2), ((0, 0), (p, p), (0, 0), (0, 0)))
    columns = jnp.pad(cotangent.transpose(1, 0, 2, 3), ((0, 0), (0, 0), (p, p), (0, 0)))
    columns = jnp.concatenate([columns[:, :, 2 * p - j : 2 * p - j + w] for j in range(k)], axis=-1)
    *shifted, columns = lax.optimization_barrier((*(rows[:, i : i + h] for i in range(k)), columns))
    products = [lax.dot_general(rows, columns, (((1, 2, 3), (0, 1, 2)), ((), ()))) for rows in shifted]
    return jnp.stack(products).reshape(k, c, k, features).transpose(0, 2, 1, 3)


def _batched(args: tuple[jax.Array, jax.Array], axes: tuple[Any, Any]) -> tuple[jax.Array, int]:
    """Under `vmap`: more images, unless the kernels differ too."""
    (x, kernel), (x_axis, kernel_axis) = args, axes
    if kernel_axis is not None:
        return jax.vmap(_library, (x_axis, kernel_axis))(x, kernel), 0
    x = jnp.moveaxis(x, x_axis, 0)
    y = convolve(x.reshape(-1, *x.shape[2:]), kernel)
    return y.reshape(*x.shape[:2], *y.shape[1:]), 0


_convolve_p = Primitive("convolve")
_convolve_p.def_impl(jax.jit(_library))
_convolve_p.def_abstract_eval(lambda x, kernel: jax.make_jaxpr(_library)(x, kernel).out_avals[0])
mlir.register_lowering(_convolve_p, mlir.lower_fun(_library, multiple_results=False))
ad.defbilinear(_convolve_p, _to_input, _to_kernel)
batching.primitive_batchers[_convolve_p] = _batched
