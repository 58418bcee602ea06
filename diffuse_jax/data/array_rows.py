"""Arrays that a user gives, held against what the rest of the library relies on."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from diffuse_jax.conditions import Condition
from diffuse_jax.data.folder import MODES
from diffuse_jax.data.sources import CONDITIONS, Arrays, DataError, count_classes, require_memory

__all__ = ["check_alike", "checked", "conditions_of", "pad_tokens"]


def checked(part: np.ndarray | Mapping[str, np.ndarray], name: str) -> Arrays:
    """A part of the data as `Arrays` of known types and shapes; DataError for a field that has another."""
    fields: dict[str, Any] = dict(part) if isinstance(part, Mapping) else {"x": part}
    if not {"x"} <= set(fields) <= {"x", *CONDITIONS}:
        raise DataError(
            f"{name} has the fields {', '.join(fields) or 'none'}: give x and, where rows have them, "
            f"{', '.join(CONDITIONS)}"
        )
    x = _checked_x(np.asarray(fields["x"]), name)
    given = {field: np.asarray(fields[field]) for field in CONDITIONS if fields.get(field) is not None}
    checks = {"label": _checked_label, "image": _checked_image, "tokens": _checked_tokens}
    return Arrays(x, **{field: checks[field](value, len(x), name) for field, value in given.items()})


def _checked_x(x: np.ndarray, name: str) -> np.ndarray:
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
    return x


def _checked_label(label: np.ndarray, rows: int, name: str) -> np.ndarray:
    if label.shape != (rows,) or not _counts(label):
        raise DataError(
            f"{name} has labels {label.dtype} {label.shape}: give one integer, 0 or more and below 2**31, for each of "
            f"{rows} rows"
        )
    return label.astype(np.int32)


def _checked_image(image: np.ndarray, rows: int, name: str) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 4 or len(image) != rows or 0 in image.shape[1:]:
        raise DataError(
            f"{name} has as conditions images {image.dtype} {image.shape}: give uint8 (n, height, width, channels), "
            f"one for each of {rows} rows"
        )
    return image


def _checked_tokens(tokens: np.ndarray, rows: int, name: str) -> np.ndarray:
    if tokens.ndim != 2 or len(tokens) != rows or tokens.shape[1] == 0 or not _counts(tokens):
        raise DataError(
            f"{name} has tokens {tokens.dtype} {tokens.shape}: give integers (n, length), 0 or more and below 2**31, "
            f"padded with 0, for each of {rows} rows"
        )
    return tokens.astype(np.int32)


def _counts(values: np.ndarray) -> bool:
    """Whether these are integers from 0 on that fit into int32."""
    return np.issubdtype(values.dtype, np.integer) and bool((values >= 0).all() and (values < 2**31).all())


def pad_tokens(part: Arrays, length: int, name: str) -> Arrays:
    """A part of the data with tokens of one length, padded with 0 or cut where all is 0.

    Args:
        part: The part, which may have no tokens.
        length: The number of tokens that a row is to have.
        name: What messages call the part.

    Returns:
        The part, its tokens (n, length).

    Raises:
        DataError: Where a row has more tokens.
    """
    tokens = part.tokens
    if tokens is None or tokens.shape[1] == length:
        return part
    if (long := np.flatnonzero(tokens[:, length:].any(axis=1))).size:
        ends = [int(np.flatnonzero(row)[-1]) + 1 for row in tokens[long]]
        raise DataError(
            f"{name}: row {long[0]} has {ends[0]} tokens, more than tokens={length}: cut it, or give "
            f"tokens={max(ends)}, which all rows fit"
        )
    require_memory(f"{name} with tokens={length}", len(tokens) * length * tokens.itemsize)
    padded = np.zeros((len(tokens), length), np.int32)
    padded[:, : tokens.shape[1]] = tokens[:, :length]
    return replace(part, tokens=padded)


def check_alike(first: Arrays, other: Arrays, name: str) -> None:
    """Checks that two parts of the data have the same conditions and the same shape of rows, but for tokens' length.

    Args:
        first: The part to train on.
        other: The part to test with.
        name: What messages call the data.

    Raises:
        DataError: Where they differ.
    """
    for field in ("x", *CONDITIONS):
        one, two = getattr(first, field), getattr(other, field)
        if (one is None) != (two is None):
            raise DataError(f"{name}: train and test differ in having {field}: give it for both or for neither")
        if one is not None and field != "tokens" and one.shape[1:] != two.shape[1:]:
            raise DataError(
                f"{name}: train and test differ in the shape of their rows: {field} is {one.shape[1:]} and "
                f"{two.shape[1:]}"
            )


def conditions_of(
    parts: Sequence[Arrays], num_classes: int | None, vocabulary: int | None, name: str
) -> dict[str, Condition]:
    """What is known of the conditions of parts that are alike (`check_alike`).

    Args:
        parts: The parts, at least one.
        num_classes: The number of classes; None: one more than the largest label.
        vocabulary: The number of tokens that there are; None: one more than the largest.
        name: What messages call the data.

    Returns:
        The conditions by name; {} where rows carry none.

    Raises:
        DataError: Where a number that is given is too small.
    """
    first, conditions = parts[0], {}
    if first.label is not None:
        labels = np.concatenate([part.label for part in parts if part.label is not None])
        conditions["label"] = Condition((), count_classes(labels, num_classes, name))
    if first.image is not None:
        conditions["image"] = Condition(first.image.shape[1:], 256)
    if first.tokens is not None:
        largest = max(int(part.tokens.max(initial=0)) for part in parts if part.tokens is not None)
        if vocabulary is not None and vocabulary <= largest:
            raise DataError(f"{name}: vocabulary={vocabulary} with a token {largest}: give at least {largest + 1}")
        conditions["tokens"] = Condition(first.tokens.shape[1:], vocabulary or largest + 1)
    return conditions
