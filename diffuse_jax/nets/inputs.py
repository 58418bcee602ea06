"""What networks are called with: images, what they are told of the time, and conditions by name."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["check_inputs", "read_conditions", "with_image"]


def check_inputs(net: Any, x: jax.Array, c_noise: jax.Array | None, field: str, halvings: int) -> None:
    """Checks the shapes of what a network is called with.

    Args:
        net: The network.
        x: Images, (batch, h, w, c).
        c_noise: What it is told of the time, (batch,), or None.
        field: The field of the network that says how often images are halved, which the error names.
        halvings: How often they are.

    Raises:
        ValueError: For other shapes, and where h or w cannot be halved so often.
    """
    if x.ndim != 4:
        raise ValueError(f"x must be images of shape (batch, height, width, channels); got shape {x.shape}")
    if c_noise is not None and c_noise.shape != x.shape[:1]:
        raise ValueError(f"c_noise must have shape ({x.shape[0]},), one number an image; got shape {c_noise.shape}")
    factor = 2**halvings
    if x.shape[1] % factor or x.shape[2] % factor:
        raise ValueError(
            f"{field} = {getattr(net, field)} brings the image to 1/{factor} of its size, so its height and width must "
            f"be multiples of {factor}; got {x.shape[1]}×{x.shape[2]}: choose fewer halvings or another image size"
        )


def read_conditions(net: Any, cond: Mapping[str, Any] | None, **fields: str) -> dict[str, Any]:
    """The conditions that a network of some kind can read.

    Args:
        net: The network that reads them.
        cond: The conditions by name, or None.
        fields: Of each condition that a network of this kind can read, the field that says whether this one does; of
            several, separated by spaces, one is enough.

    Returns:
        The conditions by name, None where one is not given.

    Raises:
        ValueError: For conditions that are no mapping, and for one that the network does not read.
    """
    if cond is not None and not isinstance(cond, Mapping):
        raise ValueError(f"cond must be a mapping from name to array, such as {{'label': labels}}; got {cond!r}")
    given = {} if cond is None else cond
    for name in given:
        needed = fields.get(name, "").split()
        if not any(getattr(net, field) for field in needed):
            without = f" without the field {' or '.join(needed)}" if needed else ""
            raise ValueError(f"cond has {name!r}, which {type(net).__name__}{without} does not read")
    return {name: given.get(name) for name in fields}


def with_image(x: jax.Array, image: jax.Array | None, channels: int) -> jax.Array:
    """Images with the condition `image` after their channels.

    Args:
        x: Images (batch, h, w, c).
        image: The condition (batch, h, w, channels), floats in the model's range; None is zeros.
        channels: Its channels, as the network reads it; 0 reads none.

    Returns:
        (batch, h, w, c + channels), of the type of x.

    Raises:
        ValueError: For an image of another size, or of integers, which are not in the model's range.
    """
    if channels == 0:
        return x
    wanted = (*x.shape[:3], channels)
    image = jnp.zeros(wanted, x.dtype) if image is None else jnp.asarray(image)
    if image.shape != wanted or not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(
            f"image must be numbers in the model's range of shape {wanted}, with x's height and width and "
            f"image_channels; got {image.dtype} of shape {image.shape}"
        )
    return jnp.concatenate([x, image.astype(x.dtype)], axis=-1)
