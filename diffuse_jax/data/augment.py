"""EDM's augmentation of images for a network that is told of it (Karras et al. 2022, arXiv:2206.00364, appendix F.2;
the transformations are those of Karras et al. 2020, arXiv:2006.06676), in pure JAX, inside the compiled step.

An image is mirrored, then scaled, turned, stretched and moved by one affine map about its centre, at twice its
resolution: between the wavelet's low-pass filter and its adjoint, which undo each other, the image is read by bilinear
interpolation. Outside its frame it goes on as its own reflection, without end, where EDM's program reads zeros beyond
the first. A network that reads which transformation was drawn can be asked for untransformed images, so that nothing
leaks into them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from diffuse_jax.trees import pytree

__all__ = ["AUGMENT_DIM", "Augmentation", "augment", "draw_augmentation"]

#: The entries of an augmentation's label.
AUGMENT_DIM = 9

SCALE_STD, ANISO_STD = 0.2, 0.2  # of log₂ of the factor
ANISO_TURN_PROBABILITY = 0.5
TRANSLATE_STD = 0.125  # of the image's width and height

# The low-pass filter of Daubechies' least asymmetric wavelet of six vanishing moments, "sym6".
_SYM6 = np.asarray(
    [
        0.015404109327027373,
        0.0034907120842174702,
        -0.11799011114819057,
        -0.048311742585633,
        0.4910559419267466,
        0.787641141030194,
        0.3379294217276218,
        -0.07263752278646252,
        -0.021060292512300564,
        0.04472490177066578,
        0.0017677118642428036,
        -0.007800708325034148,
    ]
)
_LEAD = (len(_SYM6) - 1) // 2

# In full float32: accelerators would round the factors, and so move pixels about.
_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


@pytree
class Augmentation:
    """What is done to an image.

    Args:
        mirror_x: Whether it is mirrored left to right, 0 or 1.
        mirror_y: Whether it is mirrored top to bottom, 0 or 1.
        scale: log₂ of the factor by which it is scaled, over its standard deviation.
        turn: The angle by which it is turned.
        stretch: log₂ of the factor by which it is stretched along one axis, over its standard deviation.
        axis: The angle of that axis.
        move: How far it is moved to the right and down, (2,), over the standard deviations.
    """

    mirror_x: jax.Array
    mirror_y: jax.Array
    scale: jax.Array
    turn: jax.Array
    stretch: jax.Array
    axis: jax.Array
    move: jax.Array

    def label(self) -> jax.Array:
        """(9,), zero where nothing is done: what the network is told."""
        turn = [jnp.cos(self.turn) - 1, jnp.sin(self.turn)]
        stretch = [self.stretch * jnp.cos(self.axis), self.stretch * jnp.sin(self.axis)]
        entries = [self.mirror_x, self.mirror_y, self.scale, *turn, *stretch, self.move[0], self.move[1]]
        return jnp.stack([jnp.asarray(entry, jnp.float32) for entry in entries])

    def __call__(self, image: jax.Array) -> jax.Array:
        """The transformed image (h, w, c), float32."""
        image = jnp.where(self.mirror_x > 0, image[:, ::-1], image)
        image = jnp.where(self.mirror_y > 0, image[::-1], image)
        return _warp(image.astype(jnp.float32), *self._source(*image.shape[:2]))

    def _source(self, height: int, width: int) -> tuple[jax.Array, jax.Array]:
        """The linear map (2, 2) and the shift (2,) from a pixel's place (x, y) about the centre to where it is read."""
        stretch = jnp.exp2(ANISO_STD * self.stretch)
        stretched = jnp.stack([1 / stretch, stretch])[:, None] * _rotation(self.axis)
        linear = jnp.exp2(-SCALE_STD * self.scale) * _matmul(_rotation(self.turn - self.axis), stretched)
        return linear, -_matmul(linear, self.move * TRANSLATE_STD * jnp.asarray([width, height]))


def draw_augmentation(key: jax.Array, probability: float) -> Augmentation:
    """EDM's law: a mirror image in half of the cases, and each other transformation with chance `probability`."""
    keys = iter(jax.random.split(key, 13))

    def happens(chance: float) -> jax.Array:
        return jax.random.bernoulli(next(keys), chance)

    def perhaps(value: jax.Array, chance: float = probability) -> jax.Array:
        return jnp.where(happens(chance), value, 0)

    def normal(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), shape, jnp.float32)

    def angle() -> jax.Array:
        return jax.random.uniform(next(keys), (), jnp.float32, -np.pi, np.pi)

    return Augmentation(
        mirror_x=happens(0.5).astype(jnp.float32),
        mirror_y=perhaps(happens(0.5).astype(jnp.float32)),
        scale=perhaps(normal()),
        turn=perhaps(angle()),
        stretch=perhaps(normal()),
        axis=perhaps(angle(), ANISO_TURN_PROBABILITY),
        move=perhaps(normal(2)),
    )


def augment(keys: jax.Array, images: jax.Array, probability: float = 0.12) -> tuple[jax.Array, jax.Array]:
    """Images, each transformed at random as EDM does, and what was done to them.

    Args:
        keys: Typed keys (batch,), one a row, so that a row comes out the same in every batch and shard.
        images: Floats (batch, h, w, c), at least 2×2.
        probability: That of each transformation but the mirror image, which has ½; in [0, 1].

    Returns:
        The transformed images, float32 of the same shape, which may leave their range a little, as sharp filters make
            them, and their labels (batch, 9).

    Raises:
        ValueError: For other images and for a probability outside of [0, 1].
    """
    if images.ndim != 4 or min(images.shape[1:3]) < 2 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be floats (batch, h, w, c), at least 2×2; got {images.dtype} {images.shape}")
    if not 0 <= probability <= 1:
        raise ValueError(f"probability = {probability} must lie in [0, 1]")

    def one(key: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        drawn = draw_augmentation(key, probability)
        return drawn(image), drawn.label()

    return jax.vmap(one)(keys, images)


def _rotation(angle: jax.Array) -> jax.Array:
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])


@functools.cache
def _finer(size: int) -> np.ndarray:
    """The matrix (4·(size − 1), size) from an axis of an image to one period of its reflected continuation at twice the
    resolution: entry m of the latter is Σ_i x_i·f[m + 5 − 2i], so that pixel i lies at 2i."""
    period = 4 * (size - 1)
    matrix = np.zeros((period, size))
    for pixel in range(2 * (size - 1)):
        for tap, value in enumerate(_SYM6):
            matrix[(2 * pixel + tap - _LEAD) % period, min(pixel, 2 * (size - 1) - pixel)] += value
    return matrix.astype(np.float32)


@functools.cache
def _coarser(size: int) -> np.ndarray:
    """The matrix (size, 2·size + 10) back, from the entries −5 … 2·size + 4: its transpose's columns are the filter."""
    matrix = np.zeros((size, 2 * size + 2 * _LEAD))
    for pixel in range(size):
        matrix[pixel, 2 * pixel : 2 * pixel + len(_SYM6)] = _SYM6
    return matrix.astype(np.float32)


def _warp(image: jax.Array, linear: jax.Array, shift: jax.Array) -> jax.Array:
    """image (h, w, c), each pixel p about the centre read at linear·p + shift."""
    height, width, _ = image.shape
    fine = _einsum("yh,xw,hwc->yxc", _finer(height), _finer(width), image)
    # The pixels' places, in pixels about the centre, at twice the resolution.
    centre = 0.5 * np.asarray([width - 1, height - 1])
    x = 0.5 * np.arange(-_LEAD, 2 * width + _LEAD) - centre[0]
    y = 0.5 * np.arange(-_LEAD, 2 * height + _LEAD) - centre[1]
    place = linear[:, 0] * x[None, :, None] + linear[:, 1] * y[:, None, None] + shift
    place = 2 * (place + centre)
    low = jnp.floor(place)
    part = place - low
    x_low, y_low = low[..., 0].astype(jnp.int32), low[..., 1].astype(jnp.int32)
    x_part, y_part = part[..., :1], part[..., 1:]

    def read(dy: int, dx: int) -> jax.Array:
        return fine[(y_low + dy) % fine.shape[0], (x_low + dx) % fine.shape[1]]

    upper = (1 - x_part) * read(0, 0) + x_part * read(0, 1)
    lower = (1 - x_part) * read(1, 0) + x_part * read(1, 1)
    moved = (1 - y_part) * upper + y_part * lower
    return _einsum("hy,wx,yxc->hwc", _coarser(height), _coarser(width), moved)
