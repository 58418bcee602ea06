"""From what a user names to a `Dataset`: one function for every source."""

import os
from collections.abc import Collection, Container, Mapping

import numpy as np

from diffuse_jax.data.array_files import read_arrays
from diffuse_jax.data.array_rows import check_alike, checked, conditions_of, pad_tokens
from diffuse_jax.data.builtin import TOYS, digits, toy
from diffuse_jax.data.folder import MODES, folder
from diffuse_jax.data.prepared import tfds_dataset
from diffuse_jax.data.sources import CONDITIONS, DataError, Dataset, check_holdout, require_memory, split

ArraysLike = np.ndarray | Mapping[str, np.ndarray]


def load_dataset(
    source: str,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    holdout: float = 0.1,
    labels: bool = False,
    num_classes: int | None = None,
    images: bool = False,
    tokens: int = 0,
    vocabulary: int | None = None,
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
        labels: Add class labels to the rows, as the condition `label`.
        num_classes: How many classes the labels of an array file, or those in a folder's metadata.jsonl, name; None is
            one more than the largest label.
        images: Add the image beside each row, as the condition `image`: of a folder, that which metadata.jsonl names,
            at the same size and channels; of a `.npz` file, its array `image`.
        tokens: The length of the captions to add to the rows, as the condition `tokens`; 0 adds none. Of a folder they
            are the bytes of its captions (`diffuse_jax.data.tokens`), of a `.npz` file its array `tokens`.
        vocabulary: How many values the tokens of an array file take; None is one more than the largest.
        skip_unreadable: Leave out images of a folder that cannot be decoded, instead of refusing the folder.

    Returns:
        The training and the test rows, with their shape, grey levels and conditions.

    Raises:
        DataError: With one line that says what would do, for anything that cannot be loaded as asked, and for what this
            machine's memory cannot hold.
    """
    check_asked(image_size, channels, holdout, tokens)
    asked = [name for name, wanted in zip(CONDITIONS, (labels, images, tokens), strict=True) if wanted]
    if os.path.isdir(source):
        return folder(
            source,
            image_size=image_size,
            channels=channels,
            holdout=holdout,
            labels=labels,
            num_classes=num_classes,
            images=images,
            tokens=tokens,
            skip_unreadable=skip_unreadable,
        )
    if source.startswith("tfds:"):
        check_conditions(source, ("label",), asked)  # whether there are labels is known when it is opened
        return tfds_dataset(
            source.removeprefix("tfds:"), image_size=image_size, channels=channels, holdout=holdout, labels=labels
        )
    if source == "digits":
        dataset = digits(holdout=holdout, labels=labels)
    elif source in TOYS:
        dataset = toy(source)
    elif source.endswith((".npy", ".npz")) and os.path.isfile(source):
        dataset = array_file(
            source, holdout=holdout, conditions=asked, tokens=tokens, num_classes=num_classes, vocabulary=vocabulary
        )
    else:
        raise DataError(
            f"there is no data set, file or folder {source!r}: give one of digits, {', '.join(TOYS)}, tfds:NAME, "
            "the path of a .npy or .npz file, or the path of a folder of images"
        )
    check_conditions(dataset.name, dataset.conditions, asked)
    return check_as_asked(dataset, image_size, channels)


def check_asked(image_size: int | None, channels: int | None, holdout: float, tokens: int = 0) -> None:
    """DataError for a size, a number of channels, a share or a length that no source could have; nothing is read."""
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size={image_size}: give the side of the images in pixels, at least 1")
    if channels is not None and channels not in MODES:
        raise DataError(f"channels={channels}: give 1 for grey or 3 for RGB")
    check_holdout(holdout)
    if tokens < 0:
        raise DataError(f"tokens={tokens}: give the length of the captions, or 0 for none")
    require_memory(f"one caption of tokens={tokens}", 4 * tokens)
    if image_size is not None:
        require_memory(f"one image of image_size={image_size} in float32", 4 * (channels or 3) * image_size**2)


#: What a message says of data without a condition that was asked for.
_LACKING = {
    "label": "class labels: leave out labels=True",
    "image": "images beside its rows: leave out images=True, or give a folder of images or a .npz file that has them",
    "tokens": "captions: leave out tokens=N, or give a folder of images or a .npz file that has them",
}


def check_conditions(name: str, has: Container[str], asked: Collection[str]) -> None:
    """DataError where the data called `name` lack one of the conditions that are asked for."""
    for condition in asked:
        if condition not in has:
            raise DataError(f"{name} has no {_LACKING[condition]}")


def check_as_asked(dataset: Dataset, image_size: int | None, channels: int | None) -> Dataset:
    """The dataset, whose arrays are used as they are: raises DataError where another size or other channels were asked
    for.
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
    return dataset


def from_arrays(
    train: ArraysLike,
    test: ArraysLike | None = None,
    *,
    name: str = "arrays",
    levels: int | None = None,
    num_classes: int | None = None,
    tokens: int = 0,
    vocabulary: int | None = None,
    holdout: float = 0.1,
) -> Dataset:
    """A data set of arrays in memory.

    Args:
        train: uint8 images (n, h, w, 1 or 3), or numbers (n, d) that become float32; with conditions as {"x": …} and
            any of "label" (n,), "image" (n, h, w, c) uint8 and "tokens" (n, length), integers padded with 0.
        test: The same, for the test part; None takes it from `train`.
        name: What messages call the data.
        levels: The number of grey levels of images whose bytes are round(255·k/(levels − 1)); None is 256.
        num_classes: The number of classes; None is one more than the largest label, and then at least half of them must
            have a row.
        tokens: The length that tokens are padded to; 0 is that of the longer part.
        vocabulary: The number of values of tokens; None is one more than the largest.
        holdout: The share of rows that are the test part where `test` is None.

    Returns:
        The training and the test rows, with their shape, grey levels and conditions.

    Raises:
        DataError: Where a shape, type, length or value does not fit.
    """
    check_asked(None, None, holdout, tokens)
    named = [(f"{name}, {which}", part) for which, part in (("train", train), ("test", test)) if part is not None]
    parts = [checked(part, where) for where, part in named]
    if len(parts[0]) == 0:
        raise DataError(f"{name} has no rows to train on")
    check_alike(parts[0], parts[-1], name)
    length = tokens or max(0 if part.tokens is None else part.tokens.shape[1] for part in parts)
    parts = [pad_tokens(part, length, where) for (where, _), part in zip(named, parts, strict=True)]
    first = parts[0]
    if levels is not None and (first.x.dtype != np.uint8 or not 2 <= levels <= 256):
        raise DataError(f"{name}: levels={levels} with rows of {first.x.dtype}: give 2 to 256 for uint8, else none")
    pair = split(first, holdout) if len(parts) == 1 else (parts[0], parts[1])
    levels = (levels or 256) if first.x.dtype == np.uint8 else None
    conditions = conditions_of(parts, num_classes, vocabulary, name)
    return Dataset(name, *pair, tuple(first.x.shape[1:]), levels, conditions)


def array_file(
    path: str,
    *,
    holdout: float = 0.1,
    conditions: Collection[str] = (),
    tokens: int = 0,
    num_classes: int | None = None,
    vocabulary: int | None = None,
) -> Dataset:
    """A data set from a NumPy file; see `from_arrays`.

    Args:
        path: A `.npy` file of one array, or a `.npz` file with x and, optionally, label, image and tokens, and the same
            of the test part as x_test, label_test, image_test and tokens_test.
        holdout: The share of rows that are the test part where the file has no x_test.
        conditions: The names of those to add to the rows where the file has them; others are not read.
        tokens: The length that tokens are padded to; 0 is that of the longer part.
        num_classes: As in `from_arrays`.
        vocabulary: As in `from_arrays`.

    Returns:
        The training and the test rows, with their shape, grey levels and conditions.

    Raises:
        DataError: Where the file cannot be read, or its arrays do not fit.
    """
    names = ("x", *conditions)
    fields = read_arrays(path, [*names, *(f"{name}_test" for name in names)])
    train = {k: fields[k] for k in names if k in fields}
    test = {k: fields[f"{k}_test"] for k in names if f"{k}_test" in fields}
    return from_arrays(
        train,
        test or None,
        name=path,
        num_classes=num_classes,
        tokens=tokens,
        vocabulary=vocabulary,
        holdout=holdout,
    )
