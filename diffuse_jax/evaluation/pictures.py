"""Samples as pictures: grids of images, histograms of points, PNG and animated GIF. Files appear whole or not."""

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from diffuse_jax._files import written_atomically

GAP_GREY = 128


def image_grid(images: np.ndarray, *, columns: int | None = None, pad: int = 2, min_tile: int = 32) -> np.ndarray:
    """Images as one picture, row by row.

    Args:
        images: uint8 (n, h, w, 1 or 3).
        columns: The images in a row; None is ceil(√n).
        pad: The pixels of grey around every image.
        min_tile: Images with a side below it are enlarged, by the smallest whole factor that reaches it, without
            smoothing.

    Returns:
        uint8 (H, W, 1 or 3).

    Raises:
        ValueError: For other shapes and types.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3) or len(images) == 0:
        raise ValueError(f"images are {images.dtype} {images.shape}: give uint8 of shape (n, h, w, 1 or 3), n >= 1")
    n, height, width, channels = images.shape
    factor = max(1, -(-min_tile // min(height, width)))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    columns = columns or int(np.ceil(np.sqrt(n)))
    pitch_y, pitch_x = height * factor + pad, width * factor + pad
    rows = -(-n // columns)
    picture = np.full((rows * pitch_y + pad, columns * pitch_x + pad, channels), GAP_GREY, np.uint8)
    for i, image in enumerate(images):
        top, left = pad + i // columns * pitch_y, pad + i % columns * pitch_x
        picture[top : top + image.shape[0], left : left + image.shape[1]] = image
    return picture


def scatter_picture(points: np.ndarray, *, extent: float = 1.5, size: int = 256) -> np.ndarray:
    """Points in the plane as a grey picture: a histogram, black where most points lie and white where none do.

    Grey goes with the square root of the count. Points outside are left out.

    Args:
        points: The points (n, 2), the first coordinate to the right, the second upwards.
        extent: The picture shows [-extent, extent]².
        size: Its height and width.

    Returns:
        The picture (size, size, 1), uint8.

    Raises:
        ValueError: For points of another shape.
    """
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"points have shape {points.shape}: give (n, 2)")
    counts, _, _ = np.histogram2d(points[:, 1], points[:, 0], bins=size, range=[[-extent, extent]] * 2)
    shade = np.sqrt(counts / max(counts.max(), 1))
    return np.round(255 * (1 - shade[::-1, :, None])).astype(np.uint8)


def as_image(picture: np.ndarray) -> Image.Image:
    """A uint8 picture (h, w, 1 or 3) as a Pillow image."""
    picture = np.asarray(picture)
    if picture.ndim != 3 or picture.dtype != np.uint8 or picture.shape[-1] not in (1, 3):
        raise ValueError(f"the picture is {picture.dtype} {picture.shape}: give uint8 of shape (h, w, 1 or 3)")
    return Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)


def save_png(picture: np.ndarray, path: str | os.PathLike[str]) -> None:
    """Writes a uint8 picture (h, w, 1 or 3) as a PNG file."""
    image = as_image(picture)
    with written_atomically(path) as file:
        image.save(file, "PNG")


def save_gif(frames: Sequence[np.ndarray], path: str | os.PathLike[str], *, duration: float = 0.1) -> None:
    """Writes pictures as an endless animated GIF.

    Grey frames are kept exactly; coloured ones are brought to 256 colours each. Equal neighbours are stored once and
    shown longer.

    Args:
        frames: uint8 pictures (h, w, 1 or 3), at least one.
        path: The file.
        duration: How many seconds each is shown; GIF counts hundredths.

    Raises:
        ValueError: Without frames.
    """
    if len(frames) == 0:
        raise ValueError("an animation needs at least one frame")
    first, *rest = [as_image(frame) for frame in frames]
    with written_atomically(path) as file:
        first.save(file, "GIF", save_all=True, append_images=rest, duration=round(1000 * duration), loop=0)
