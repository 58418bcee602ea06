"""A folder of one's own images, of any size and mode, as uint8 squares of one size.

Every file is decoded once at the start, so that a broken one is known before training and not hours into it.
"""

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageOps

from diffuse_jax.conditions import Condition
from diffuse_jax.data.metadata import METADATA, Line, captions, condition_files, read_metadata, stated_labels
from diffuse_jax.data.sources import (
    CACHE_BYTES,
    THREADS,
    DataError,
    Dataset,
    LazyImages,
    Subset,
    count_classes,
    map_threads,
    split,
)
from diffuse_jax.data.tokens import VOCABULARY, tokenize

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
MODES = {1: "L", 3: "RGB"}


def opaque(image: Image.Image, mode: str) -> Image.Image:
    """The image in a mode of `MODES`, laid onto white where it is transparent, be it by an alpha channel or by a colour
    that stands for nothing."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    # What is as it should be is not copied: of small images that would be a fifth of the time to read them.
    return image if image.mode == mode else image.convert(mode)


def eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 bits, where Pillow alone would saturate it; the grey that stands for nothing is white."""
    values = np.asarray(image)
    grey = np.round(values / 257.0).clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.where(values == image.info.get("transparency"), np.uint8(255), grey))


def fit_image(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """The image as uint8 (size, size, channels): what is transparent laid onto white, converted to grey (channels 1) or
    RGB (3), cropped to its central square, and resized with Pillow's Lanczos filter, which averages over the area that
    it shrinks. 16-bit grey is scaled to 8 bits. Raises ValueError for floating-point pixels.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    if image.mode.startswith("I"):
        image = eight_bits(image)
    image = opaque(image, MODES[channels])
    side = min(image.size)
    if image.width != image.height:
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if side != size:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image, np.uint8).reshape(size, size, channels)


def read_image(path: Path, size: int, channels: int) -> np.ndarray:
    """`fit_image` of a file's first frame, turned upright by its EXIF orientation. Raises DataError where the file
    cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            ImageOps.exif_transpose(image, in_place=True)
            return fit_image(image, size, channels)
    except Exception as error:  # each of Pillow's decoders has its own ways to fail on a broken file
        raise DataError(f"{path} cannot be read as an image ({' '.join(str(error).split())})") from error


def image_files(root: Path) -> tuple[list[Path], dict[Path, Line]]:
    """The images below `root` that are rows, sorted by their path, and the lines of metadata.jsonl that describe them;
    hidden files are passed over. Raises DataError where there are none.
    """
    found = [Path(folder) / name for folder, _, names in os.walk(root) for name in names]
    images = [p for p in found if p.suffix.lower() in EXTENSIONS and not p.name.startswith(".")]
    metadata = [p for p in found if p.name == METADATA]
    if strange := [p for p in (*images, *metadata) if p.exists() and not p.is_file()]:
        raise DataError(f"{strange[0]} is no regular file, and would never be read to its end: move it away")
    if not images:
        raise DataError(
            f"the folder {root} holds no images: files ending in {' '.join(EXTENSIONS)} are read, at any depth"
        )
    return read_metadata(sorted(metadata), sorted(images, key=lambda p: p.relative_to(root).as_posix()))


def classes_of(
    root: Path, files: list[Path], lines: Mapping[Path, Line], num_classes: int | None
) -> tuple[list[int], int]:
    """The label of each file, and the number of classes: what metadata.jsonl states or, where it has no labels, the
    rank of the name of its folder directly below `root`. Raises DataError where a file lies outside such a folder.
    """
    stated = stated_labels(files, lines)
    if stated is not None:
        return stated, count_classes(np.asarray(stated), num_classes, f"the folder {root}")
    parts = [p.relative_to(root).parts for p in files]
    loose = [p[0] for p in parts if len(p) == 1]
    if loose:
        raise DataError(
            f"labels=True needs every image of {root} in a folder named after its class, or with a label in "
            f"{METADATA}, but {loose[0]} is in none"
        )
    names = sorted({p[0] for p in parts})
    rank = {name: i for i, name in enumerate(names)}
    return [rank[p[0]] for p in parts], len(names)


def folder(
    path: str | os.PathLike[str],
    *,
    image_size: int | None,
    channels: int | None = None,
    holdout: float = 0.1,
    labels: bool = False,
    num_classes: int | None = None,
    images: bool = False,
    tokens: int = 0,
    skip_unreadable: bool = False,
    cache_bytes: int = CACHE_BYTES,
) -> Dataset:
    """The images below `path` as uint8 (image_size, image_size, channels), RGB unless channels is 1; the test part is
    `holdout` of them.

    All files are decoded at the start, and kept where the whole set fits into `cache_bytes`; unreadable ones are a
    DataError that lists them, or are left out with a warning where `skip_unreadable`. With `labels` the classes are the
    integers of metadata.jsonl, `num_classes` of them or one more than the largest, or, where it has none, the folders
    directly below `path` in the order of their names. With `images` a row is conditioned on the image that its line of
    metadata.jsonl names; with `tokens` on its caption as so many tokens (`diffuse_jax.data.metadata`). Raises DataError
    where there are no images, where image_size is missing, and where a row has no such condition.
    """
    root, channels = Path(path), channels or 3
    if image_size is None:
        raise DataError(
            f"the folder {root} needs image_size=N: the side, in pixels, of the squares that its images become"
        )
    files, lines = image_files(root)
    shape = (image_size, image_size, channels)
    conditions: dict[str, Condition] = {}
    readers: dict[str, Callable[[int], ArrayLike]] = {"x": lambda i: read_image(files[i], image_size, channels)}
    if labels:
        classes, count = classes_of(root, files, lines, num_classes)
        conditions["label"], readers["label"] = Condition((), count), classes.__getitem__
    if images:
        given = condition_files(root, files, lines)
        conditions["image"] = Condition(shape, 256)
        readers["image"] = lambda i: read_image(given[i], image_size, channels)
    if tokens:
        texts = captions(files, lines, tokens)
        conditions["tokens"] = Condition((tokens,), VOCABULARY)
        readers["tokens"] = lambda i: tokenize(texts[i], tokens)

    def load(i: int) -> dict[str, ArrayLike]:
        return {name: read(i) for name, read in readers.items()}

    rows = LazyImages(load, len(files), shape, conditions, cache_bytes)
    readable = readable_rows(rows, [p.relative_to(root).as_posix() for p in files], root, skip_unreadable)
    train, test = split(Subset(rows, readable), holdout)
    return Dataset(str(path), train, test, shape, levels=256, conditions=conditions)


def readable_rows(images: LazyImages, names: list[str], root: Path, skip_unreadable: bool) -> np.ndarray:
    """The indices of the images that decode, all of which are tried. Raises DataError that lists the others, or warns
    of them where `skip_unreadable` and some are left.
    """

    def problem(i: int) -> str | None:
        try:
            images[np.array([i])]
        except DataError as error:
            return str(error)
        return None

    problems = map_threads(problem, range(len(names)), THREADS)
    broken = [i for i, text in enumerate(problems) if text is not None]
    if broken:
        listed = ", ".join([*(names[i] for i in broken[:5]), *["…"][: len(broken) > 5]])
        text = f"{len(broken)} of {len(names)} images of {root} cannot be read: {listed}; first, {problems[broken[0]]}"
        if not skip_unreadable:
            raise DataError(f"{text}; repair or remove them, or give skip_unreadable=True")
        if len(broken) == len(names):
            raise DataError(text)
        warnings.warn(f"left out: {text}", stacklevel=4)
    return np.setdiff1d(np.arange(len(names)), broken)
