"""A convolution of images whose derivatives on a CPU are faster.

`convolve` is `lax.conv_general_dilated`, and so are its derivatives wherever XLA has a library of convolutions. On a
CPU XLA computes the gradient of the kernel as a convolution with a kernel the size of the image, at half the speed of
its matrix products (in a loop's body, by a path some fifty times slower yet). Here it is such products: a k × k kernel
with p = (k − 1)/2 has the gradient

    gradient[i, j] = Σ over images and pixels (y, x) of input[y + i − p, x] ⊗ cotangent[y, x + p − j]

and with a stride of s, over the padded input, Σ of input[s·y + i, s·x + j] ⊗ cotangent[y, x]. The gradient of such an
input is s × s interlaced images, each a convolution of the cotangent with every s-th row and column of the kernel.

This is a primitive of its own, since nothing less can be differentiated in both modes, batched and sharded.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

__all__ = ["convolve"]

_NHWC = ("NHWC", "HWIO", "NHWC")


def convolve(
    x: jax.Array, kernel: jax.Array, stride: int = 1, padding: str | Sequence[tuple[int, int]] = "SAME"
) -> jax.Array:
    """A convolution of images.

    Args:
        x: Images (batch, h, w, c).
        kernel: The kernel (k, k, c, features), of the type of x; with a stride of 1 k must be odd.
        stride: The stride in both directions.
        padding: The zeros around an image, as in `lax.conv_general_dilated`; with a stride of 1 they must keep its
            size.

    Returns:
        (batch, h', w', features).

    Raises:
        ValueError: For another kernel or padding.
    """
    if kernel.ndim != 4 or kernel.shape[0] != kernel.shape[1]:
        raise ValueError(f"the kernel must be (k, k, channels, features); got shape {kernel.shape}")
    k = kernel.shape[0]
    pads = lax.padtype_to_pads(x.shape[1:3], (k, k), (stride, stride), padding) if isinstance(padding, str) else padding
    if stride > 1:
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    elif k % 2 == 0 or any(pad != (k // 2, k // 2) for pad in map(tuple, pads)):
        raise ValueError(f"with a stride of 1 the kernel's k must be odd and padding {k // 2}; got {k} and {padding}")
    # Inside `shard_map` images differ between devices and kernels do not, until they meet.
    over = {*jax.typeof(x).mat.varying, *jax.typeof(kernel).mat.varying}
    return _convolve_p.bind(*(_spread(a, over) for a in (x, kernel)), stride=stride)


def _spread(a: jax.Array, axes: set[str]) -> jax.Array:
    missing = tuple(axes - jax.typeof(a).mat.varying)
    return lax.pcast(a, missing, to="varying") if missing else a


def _library(x: jax.Array, kernel: jax.Array, *, stride: int) -> jax.Array:
    """With zeros around the image for a stride of 1, without for another."""
    if kernel.shape[0] == stride == 1:
        return lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))
    padding = "SAME" if stride == 1 else "VALID"
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=_NHWC)


def _to_input(cotangent: jax.Array, x: Any, kernel: jax.Array, *, stride: int) -> jax.Array:
    def on_cpu(ct: jax.Array, kernel: jax.Array) -> jax.Array:
        ct = lax.optimization_barrier(ct)
        if stride == 1:
            return convolve(ct, jnp.swapaxes(kernel[::-1, ::-1], 2, 3))
        return _interlaced(ct, kernel, x.aval.shape, stride)

    library = functools.partial(_library, stride=stride)
    return lax.platform_dependent(
        cotangent,
        kernel,
        cpu=on_cpu,
        default=lambda ct, kernel: jax.linear_transpose(lambda x: library(x, kernel), x.aval)(ct)[0],
    )


def _to_kernel(cotangent: jax.Array, x: jax.Array, kernel: Any, *, stride: int) -> jax.Array:
    library, k = functools.partial(_library, stride=stride), kernel.aval.shape[0]
    return lax.platform_dependent(
        cotangent,
        x,
        cpu=lambda ct, x: _products(ct, x, k) if stride == 1 else _strided_products(ct, x, k, stride),
        default=lambda ct, x: jax.linear_transpose(lambda kernel: library(x, kernel), kernel.aval)(ct)[0],
    )


def _interlaced(cotangent: jax.Array, kernel: jax.Array, shape: tuple[int, ...], s: int) -> jax.Array:
    """The gradient of an input of `shape`, as the head of this module says."""
    b, h, w, c = shape
    rows, columns = -(-h // s), -(-w // s)  # of each of the interlaced images, the last of which may lack one

    def image(i: int, j: int) -> jax.Array:
        part = jnp.swapaxes(kernel[i::s, j::s][::-1, ::-1], 2, 3)
        if 0 in part.shape:
            return jnp.zeros((b, rows, columns, c), cotangent.dtype)
        pads = [(part.shape[axis] - 1, (rows, columns)[axis] - cotangent.shape[1 + axis]) for axis in (0, 1)]
        return lax.conv_general_dilated(cotangent, part, (1, 1), pads, dimension_numbers=_NHWC)

    images = jnp.stack([jnp.stack([image(i, j) for j in range(s)], 3) for i in range(s)], 2)
    return images.reshape(b, rows * s, columns * s, c)[:, :h, :w]


def _strided_products(cotangent: jax.Array, x: jax.Array, k: int, s: int) -> jax.Array:
    """The gradient of the kernel, (k, k, c, features), for a stride of s: a product for each i, of all j."""
    cotangent, x = lax.optimization_barrier((cotangent, x))
    h, w = (s * (n - 1) + 1 for n in cotangent.shape[1:3])
    columns = lax.optimization_barrier(jnp.concatenate([x[:, :, j : j + w : s] for j in range(k)], axis=-1))
    shifted = lax.optimization_barrier(tuple(columns[:, i : i + h : s] for i in range(k)))
    products = [lax.dot_general(rows, cotangent, (((0, 1, 2), (0, 1, 2)), ((), ()))) for rows in shifted]
    return jnp.stack(products).reshape(k, k, x.shape[-1], -1)


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


def _batched(args: tuple[jax.Array, jax.Array], axes: tuple[Any, Any], *, stride: int) -> tuple[jax.Array, int]:
    """Under `vmap`: more images, unless the kernels differ too."""
    (x, kernel), (x_axis, kernel_axis) = args, axes
    if kernel_axis is not None:
        return jax.vmap(functools.partial(_library, stride=stride), (x_axis, kernel_axis))(x, kernel), 0
    x = jnp.moveaxis(x, x_axis, 0)
    y = _convolve_p.bind(x.reshape(-1, *x.shape[2:]), kernel, stride=stride)
    return y.reshape(*x.shape[:2], *y.shape[1:]), 0


def _shape_of_output(x: Any, kernel: Any, *, stride: int) -> Any:
    return jax.make_jaxpr(functools.partial(_library, stride=stride))(x, kernel).out_avals[0]


_convolve_p = Primitive("convolve")
_convolve_p.def_impl(jax.jit(_library, static_argnames="stride"))
_convolve_p.def_abstract_eval(_shape_of_output)
mlir.register_lowering(_convolve_p, mlir.lower_fun(_library, multiple_results=False))
ad.defbilinear(_convolve_p, _to_input, _to_kernel)
batching.primitive_batchers[_convolve_p] = _batched
