"""Conditions on the command line: --cond.NAME=VALUE, from its words to what a network reads.

    --cond.label=3             a class, which --label=3 says too
    --cond.image=path.png      a file, of any size and mode
    --cond.tokens='a caption'  a text

The command line is read before anything slow is imported, and so before the run is known whose conditions they are.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffuse_jax.cli.options import integer

if TYPE_CHECKING:
    import numpy as np

    from diffuse_jax.conditions import Condition

__all__ = ["parse", "read_conditions", "take_conditions"]

_PREFIX = "--cond."

#: Of each condition, what a data set has that has it, and how it is asked for where it must be given.
_DATA = {"label": "labels (config.data.labels)", "image": "images as conditions", "tokens": "captions"}
_ASKED = {"image": "an image: give --cond.image=PATH", "tokens": "a caption: give --cond.tokens=TEXT"}


def parse(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The values of the arguments --cond.NAME=VALUE by their names, and the other arguments.

    Raises argparse.ArgumentTypeError for one without a name or a value, and for a name that is given twice.
    """
    cond: dict[str, str] = {}
    rest = []
    for argument in arguments:
        if not argument.startswith(_PREFIX) and argument.partition("=")[0] != "--cond":
            rest.append(argument)
            continue
        name, _, value = argument.removeprefix(_PREFIX).partition("=")
        if not argument.startswith(_PREFIX) or not name.strip() or not value.strip():
            raise argparse.ArgumentTypeError(f"{argument!r}: give --cond.NAME=VALUE, as in --cond.label=3")
        if name in cond:
            raise argparse.ArgumentTypeError(f"--cond.{name} is given twice: give it once")
        cond[name] = value
    return cond, rest


def take_conditions(args: argparse.Namespace, arguments: Sequence[str]) -> list[str]:
    """Sets `args.cond` to the conditions that are given, --label among them, and returns the other arguments.

    `args.label` is that of --cond.label too. Raises argparse.ArgumentTypeError as `parse` does, and where both give it.
    """
    args.cond, rest = parse(arguments)
    if args.label is None and "label" in args.cond:
        try:
            args.label = integer(0)(args.cond["label"])
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"--cond.label: {error}") from error
    elif args.label is not None:
        if "label" in args.cond:
            raise argparse.ArgumentTypeError("--label and --cond.label are the same: give one of them")
        args.cond["label"] = str(args.label)
    return rest


def read_conditions(
    texts: Mapping[str, str], conditions: Mapping[str, "Condition"], *, centered: bool = True
) -> dict[str, "np.ndarray"]:
    """What the conditions that a run has are given as, of one sample.

    Args:
        texts: What is given of each by name: an integer, the path of an image, a caption.
        conditions: The conditions that the run was trained with.
        centered: Whether an image is to lie in [-1, 1], as a network of centred data reads it, and not in [0, 1].

    Returns:
        `label` as int32 (), `image` as float32 (h, w, c), cropped and resized to the condition's shape, and `tokens`
        as int32 (length,), padded with 0. A label that is not given is not among them.

    Raises:
        ConfigError: For a condition that the run does not have, an image or a caption that is missing, a label that is
            no class, a file that is no image, and a caption that is too long.
    """
    from diffuse_jax.config import ConfigError

    for name, text in texts.items():
        if name not in conditions:
            has = f"its conditions are {', '.join(conditions)}" if conditions else "it has no conditions"
            raise ConfigError(f"{_given(name, text)}: this run was trained without {_DATA.get(name, name)}; {has}")
    for name, how in _ASKED.items():
        if name in conditions and name not in texts:
            raise ConfigError(f"--cond.{name} is missing: this run draws with {how}")
    rows: dict[str, np.ndarray] = {}
    if "label" in texts:
        rows["label"] = _label(texts["label"], conditions["label"])
    if "image" in texts:
        rows["image"] = _image(texts["image"], conditions["image"], centered)
    if "tokens" in texts:
        rows["tokens"] = _tokens(texts["tokens"], conditions["tokens"])
    return rows


def _given(name: str, text: str) -> str:
    """The argument as one may have typed it, cut where it is long."""
    option = "--label" if name == "label" else f"--cond.{name}"
    return f"{option}={text[:40]}{'…' if len(text) > 40 else ''}"


def _label(text: str, condition: "Condition") -> "np.ndarray":
    import numpy as np

    from diffuse_jax.config import ConfigError

    try:
        label = int(text)
    except ValueError:
        label = -1
    if not 0 <= label < condition.values:
        raise ConfigError(f"{_given('label', text)} must be one of 0 … {condition.values - 1}")
    return np.array(label, np.int32)


def _image(text: str, condition: "Condition", centered: bool) -> "np.ndarray":
    import jax
    import jax.numpy as jnp
    import numpy as np

    from diffuse_jax.config import ConfigError
    from diffuse_jax.data import DataError, preprocess
    from diffuse_jax.data.folder import read_image

    size, _, channels = condition.shape
    try:
        pixels = read_image(Path(text), size, channels)
    except DataError as error:
        raise ConfigError(f"--cond.image={error}") from error
    # Nothing random is asked of it, which the keys would be for.
    return np.asarray(preprocess(jnp.asarray(pixels)[None], jax.random.key(0)[None], levels=256, centered=centered)[0])


def _tokens(text: str, condition: "Condition") -> "np.ndarray":
    from diffuse_jax.config import ConfigError
    from diffuse_jax.data.tokens import VOCABULARY, count_tokens, tokenize

    (length,), values = condition
    if values > VOCABULARY:
        raise ConfigError(
            f"--cond.tokens: the tokens of this run take {values} values, and those of a text {VOCABULARY}: they were "
            "made by another tokenizer, and are given from Python alone"
        )
    if (count := count_tokens(text)) > length:
        raise ConfigError(f"--cond.tokens: the caption has {count} tokens, and this run takes {length}: shorten it")
    tokens = tokenize(text, length)
    if (largest := int(tokens.max())) >= values:
        raise ConfigError(f"--cond.tokens: the caption has token {largest}, and this run takes 0 … {values - 1} alone")
    return tokens
