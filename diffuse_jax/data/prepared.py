"""TensorFlow Datasets, read without TensorFlow: data that were prepared once in a random-access format are read
through `as_data_source`.

Preparing most data sets does need TensorFlow; the error for unprepared data holds the command.
"""

import os
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from diffuse_jax.conditions import Condition
from diffuse_jax.data.folder import MODES, fit_image, opaque
from diffuse_jax.data.sources import DataError, Dataset, LazyImages, Source, split


def prepare_command(name: str) -> str:
    """The shell command that downloads and prepares a TFDS data set in the format that is read here."""
    builder = f"tfds.builder('{name}', file_format='array_record')"
    return (
        "pip install 'diffuse-jax-sde[tfds-prepare]' && "
        f'python -c "import tensorflow_datasets as tfds; {builder}.download_and_prepare()"'
    )


def find_builder(name: str) -> Any:
    """The TFDS builder of a name ("cifar10", "lsun/bedroom", "mnist:3.0.1") or of a folder that holds prepared data."""
    import tensorflow_datasets as tfds  # seconds to import, and only this source needs it

    try:
        if os.path.isdir(name):
            return tfds.builder_from_directory(name)
        return tfds.builder(name)
    except Exception as error:  # TFDS raises a dozen types here, and its text runs over pages
        hint = next((f" {line}" for line in str(error).splitlines() if line.startswith("Did you mean")), "")
        raise DataError(
            f"tfds:{name} names no data set of TFDS nor a folder of prepared data: {first_line(error)}{hint}"
        ) from error


def open_splits(name: str, builder: Any) -> dict[str, Any]:
    """The TFDS data sources of the train split and of the test split, or of validation where there is no test."""
    recorded = set(builder.info.splits) or {"train", "test"}
    wanted = ["train", *[s for s in ("test", "validation") if s in recorded][:1]]
    try:
        return {s: builder.as_data_source(s) for s in wanted}
    except (AssertionError, NotImplementedError, OSError, ValueError) as error:
        if builder.info.initialized and "train" not in recorded:
            raise DataError(f"tfds:{name} has no split 'train', only {', '.join(sorted(recorded))}") from error
        where = f"{builder.data_path} (the variable TFDS_DATA_DIR chooses another folder)"
        if not builder.info.initialized:
            state = f"not prepared at {where};"
        elif isinstance(error, NotImplementedError):
            state = f"prepared without random access at {where}; after moving that folder away"
        else:
            state = f"damaged at {where} ({first_line(error)}); after removing that folder"
        raise DataError(f"tfds:{name} is {state} this prepares it: {prepare_command(name)}") from error


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type where it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def tfds_dataset(
    name: str,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    holdout: float = 0.1,
    labels: bool = False,
) -> Dataset:
    """The feature "image" (and, with `labels`, "label") of prepared TFDS data, as uint8 NHWC.

    `name` is a TFDS name or a folder of prepared data. Images keep their size and channels unless `image_size` (a
    central square, resized) or `channels` ask otherwise; where they differ in size, image_size is required. The test
    part is the split "test", else "validation", else `holdout` of the train split. Raises DataError for an unknown
    name, for data that are not prepared (with the command that prepares them), and for data without such features.
    """
    builder = find_builder(name)
    sources = open_splits(name, builder)
    features = builder.info.features
    if "image" not in features or np.dtype(features["image"].np_dtype) != np.uint8:
        raise DataError(f"tfds:{name} has no uint8 feature 'image': its features are {', '.join(features)}")
    if labels and not ("label" in features and hasattr(features["label"], "num_classes")):
        raise DataError(f"tfds:{name} has no class labels (labels=True): its features are {', '.join(features)}")
    height, width, depth = features["image"].shape
    if image_size is None and None in (height, width):
        raise DataError(
            f"the images of tfds:{name} differ in size: give image_size=N, the side of the squares they become"
        )
    channels = channels or depth
    if channels not in MODES:
        raise DataError(f"tfds:{name} has images of {depth} channels: give channels=1 or channels=3")
    shape = (image_size, image_size, channels) if image_size else (height, width, channels)

    conditions = {"label": Condition((), int(features["label"].num_classes))} if labels else {}

    def images(source: Any) -> Source:
        def load(i: int) -> dict[str, ArrayLike]:
            row = source[i]
            return {"x": fit_array(np.asarray(row["image"]), shape)} | {name: row[name] for name in conditions}

        return LazyImages(load, len(source), shape, conditions)

    parts = [images(source) for source in sources.values()]
    train, test = parts if len(parts) == 2 else split(parts[0], holdout)
    return Dataset(f"tfds:{name}", train, test, shape, levels=256, conditions=conditions)


def fit_array(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A decoded image (h, w, c) brought to `shape`: unchanged where it has it, otherwise by `fit_image`."""
    if image.shape == shape:
        return image
    pixels = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    if shape[0] != shape[1]:  # only the channels were asked to change, and a crop would change the size
        return np.asarray(opaque(pixels, MODES[shape[-1]]), np.uint8).reshape(shape)
    return fit_image(pixels, shape[0], shape[-1])
