"""From what a user names to a `Dataset`: one function for every source."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffuse_jax.conditions import Condition
from diffuse_jax.data.array_files import read_arrays
from diffuse_jax.data.builtin import TOYS, digits, toy
from diffuse_jax.data.folder import MODES, folder
from diffuse_jax.data.prepared import tfds_dataset
from diffuse_jax.data.sources import Arrays, DataError, Dataset, check_holdout, require_memory, split

ArraysLike = np.ndarray | Mapping[str, np.ndarray]


def load_dataset(
    source: str,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    holdout: float = 0.1,
    labels: bool = False,
    num_classes: int | None = None,
    skip_unreadable: bool = False,
) -> Dataset:
    """The data set that `source` names: what `config.data` is read by.

    Args:
        source: `digits`; `moons`, `checkerboard`, `eight_gaussians` or `rings`; `tfds:NAME` (or `tfds:FOLDER`) for
            prepared TFDS data; the path of a `.npy` or `.npz` file; or the path of a folder of images. An existing
            folder wins over a name.
        image_size: The side of the images in pixels: required for a folder, whose images are cropped and resized to it,
            and checked against other sources.
        channels: 1 for grey, 3 for RGB; None is what the data have.
        holdout: The share of rows kept for testing, where the source has no test split of its own.
        labels: Add class labels to the rows.
        num_classes: How many classes the labels of an array file name; None is one more than the largest label.
        skip_unreadable: Leave out images of a folder that cannot be decoded, instead of refusing the folder.

    Returns:
        The training and the test rows, with their shape, grey levels and number of classes.

    Raises:
        DataError: With one line that says what would do, for anything that cannot be loaded as asked, and for what this
            machine's memory cannot hold.
    """
    check_asked(image_size, channels, holdout)
    if os.path.isdir(source):
        return folder(
            source,
            image_size=image_size,
            channels=channels,
            holdout=holdout,
            labels=labels,
            skip_unreadable=skip_unreadable,
        )
    if source.startswith("tfds:"):
        return tfds_dataset(
            source.removeprefix("tfds:"), image_size=image_size, channels=channels, holdout=holdout, labels=labels
        )
    if source == "digits":
        dataset = digits(holdout=holdout, labels=labels)
    elif source in TOYS:
        dataset = toy(source)
    elif source.endswith((".npy", ".npz")) and os.path.isfile(source):
        dataset = array_file(source, holdout=holdout, labels=labels, num_classes=num_classes)
    else:
        raise DataError(
            f"there is no data set, file or folder {source!r}: give one of digits, {', '.join(TOYS)}, tfds:NAME, "
            "the path of a .npy or .npz file, or the path of a folder of images"
        )
    return check_as_asked(dataset, image_size, channels, labels)


def check_asked(image_size: int | None, channels: int | None, holdout: float) -> None:
    """DataError for a size, a number of channels or a share that no source could have; nothing is read."""
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size={image_size}: give the side of the images in pixels, at least 1")
    if channels is not None and channels not in MODES:
        raise DataError(f"channels={channels}: give 1 for grey or 3 for RGB")
    check_holdout(holdout)
    if image_size is not None:
        require_memory(f"one image of image_size={image_size} in float32", 4 * (channels or 3) * image_size**2)


def check_as_asked(dataset: Dataset, image_size: int | None, channels: int | None, labels: bool) -> Dataset:
    """The dataset, whose arrays are used as they are: raises DataError where another size, other channels or missing
    labels were asked for.
    """
    if len(dataset.shape) == 3:
        height, width, depth = dataset.shape
        fits = image_size in (None, height) and image_size in (None, width) and channels in (None, depth)
    else:
        fits = image_size is None and channels is None
    if not fits:
        raise DataError(
            f"{dataset.name} has rows of shape {dataset.shape}, which are used as they are: "
            f"image_size={image_size} and channels={channels} do not fit, leave them out"
        )
    if labels and dataset.num_classes is None:
        raise DataError(f"{dataset.name} has no class labels: leave out labels=True")
    return dataset


def from_arrays(
    train: ArraysLike,
    test: ArraysLike | None = None,
    *,
    name: str = "arrays",
    levels: int | None = None,
    num_classes: int | None = None,
    holdout: float = 0.1,
) -> Dataset:
    """A data set of arrays in memory.

    Args:
        train: uint8 images (n, h, w, 1 or 3), or numbers (n, d) that become float32; with labels as
            {"x": …, "label": (n,) integers}.
        test: The same, for the test part; None takes it from `train`.
        name: What messages call the data.
        levels: The number of grey levels of images whose bytes are round(255·k/(levels − 1)); None is 256.
        num_classes: The number of classes; None is one more than the largest label, and then at least half of them must
            have a row.
        holdout: The share of rows that are the test part where `test` is None.

    Returns:
        The training and the test rows, with their shape, grey levels and number of classes.

    Raises:
        DataError: Where a shape, type, length or value does not fit.
    """
    parts = [
        checked(part, f"{name}, {which}") for which, part in (("train", train), ("test", test)) if part is not None
    ]
    first = parts[0]
    if len(first) == 0:
        raise DataError(f"{name} has no rows to train on")
    for other in parts[1:]:
        if other.x.shape[1:] != first.x.shape[1:] or (other.label is None) != (first.label is None):
            raise DataError(f"{name}: train and test differ in the shape of their rows or in having labels")
    if levels is not None and (first.x.dtype != np.uint8 or not 2 <= levels <= 256):
        raise DataError(f"{name}: levels={levels} with rows of {first.x.dtype}: give 2 to 256 for uint8, else none")
    pair = split(first, holdout) if len(parts) == 1 else (parts[0], parts[1])
    levels = (levels or 256) if first.x.dtype == np.uint8 else None
    classes = count_classes(parts, num_classes, name)
    conditions = {} if classes is None else {"label": Condition((), classes)}
    return Dataset(name, *pair, tuple(first.x.shape[1:]), levels, conditions)


def count_classes(parts: list[Arrays], num_classes: int | None, name: str) -> int | None:
    """The number of classes of labelled parts, at least one more than their largest label; None without labels.
    DataError where most of these classes have no row, unless their number is given."""
    labels = [part.label for part in parts if part.label is not None]
    seen = np.unique(np.concatenate([np.empty(0, np.int32), *labels]))
    largest = int(seen[-1]) if len(seen) else -1
    if num_classes is None and 2 * len(seen) <= largest:
        raise DataError(
            f"{name} has a label {largest} and {len(seen)} distinct ones, so that most of {largest + 1} classes would "
            f"have no row: number them from 0 on without gaps, or give num_classes={largest + 1}"
        )
    if num_classes is not None and num_classes <= largest:
        raise DataError(f"{name}: num_classes={num_classes} with a label {largest}: give at least {largest + 1}")
    return (num_classes or largest + 1) if largest >= 0 else None


def checked(part: ArraysLike, name: str) -> Arrays:
    """A part of the data as `Arrays` whose types and shapes the rest of the library can rely on."""
    fields: dict[str, Any] = dict(part) if isinstance(part, Mapping) else {"x": part}
    if not {"x"} <= set(fields) <= {"x", "label"}:
        raise DataError(f"{name} has the fields {', '.join(fields) or 'none'}: give x and, if there are labels, label")
    x, label = np.asarray(fields["x"]), fields.get("label")
    if x.ndim == 4 and (x.dtype != np.uint8 or x.shape[-1] not in MODES):
        raise DataError(f"{name} is {x.dtype} {x.shape}: images are uint8 of shape (n, height, width, 1 or 3)")
    if x.ndim not in (2, 4) or not np.issubdtype(x.dtype, np.number) or np.iscomplexobj(x):
        raise DataError(
            f"{name} is {x.dtype} {x.shape}: give uint8 images (n, height, width, 1 or 3) or numbers (n, d)"
        )
    if x.ndim == 2:
        with np.errstate(over="ignore"):  # what is refused next
            x = x.astype(np.float32)
        if not np.isfinite(x).all():
            raise DataError(f"{name} has numbers that are not finite in float32: remove those rows")
    if label is not None:
        label = np.asarray(label)
        whole = label.shape == x.shape[:1] and np.issubdtype(label.dtype, np.integer)
        if not whole or label.min(initial=0) < 0 or label.max(initial=0) >= 2**31:
            raise DataError(
                f"{name} has labels {label.dtype} {label.shape}: give one integer, 0 or more and below 2**31, for each "
                f"of {len(x)} rows"
            )
        label = label.astype(np.int32)
    return Arrays(x, label)


def array_file(path: str, *, holdout: float = 0.1, labels: bool = False, num_classes: int | None = None) -> Dataset:
    """A data set from a NumPy file; see `from_arrays`.

    Args:
        path: A `.npy` file of one array, or a `.npz` file with x and, optionally, label, x_test and label_test.
        holdout: The share of rows that are the test part where the file has no x_test.
        labels: Add the labels to the rows.
        num_classes: As in `from_arrays`.

    Returns:
        The training and the test rows, with their shape, grey levels and number of classes.

    Raises:
        DataError: Where the file cannot be read, or its arrays do not fit.
    """
    names = ("x", "label") if labels else ("x",)
    fields = read_arrays(path, [*names, *(f"{name}_test" for name in names)])
    train = {k: fields[k] for k in names if k in fields}
    test = {k: fields[f"{k}_test"] for k in names if f"{k}_test" in fields}
    return from_arrays(train, test or None, name=path, holdout=holdout, num_classes=num_classes)
