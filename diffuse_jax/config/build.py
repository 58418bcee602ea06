"""From an experiment's fields to objects."""

import contextlib
import re
from collections.abc import Iterator

from ml_collections import ConfigDict

from diffuse_jax.conditions import Condition
from diffuse_jax.config.errors import ConfigError
from diffuse_jax.config.experiment import DataInfo, Experiment
from diffuse_jax.config.method_section import build_method
from diffuse_jax.config.numbers import check_numbers
from diffuse_jax.data import TOYS, DataError, Dataset, load_dataset
from diffuse_jax.data.load import check_asked, check_conditions
from diffuse_jax.data.tokens import VOCABULARY

__all__ = ["DataInfo", "Experiment", "build", "describe", "load_data"]

_ARGUMENT = re.compile(
    r"(?<![\w./=-])(image_size|channels|holdout|labels|num_classes|images|tokens|vocabulary|skip_unreadable)="
)


def load_data(config: ConfigDict) -> Dataset:
    """The data set of `config.data`; DataError where it cannot be had."""
    c = config.data
    if not c.source:
        raise ConfigError("config.data.source is empty: it is not known what the network was trained on; name the data")
    with _flags_in_errors():
        return load_dataset(
            c.source,
            image_size=c.image_size,
            channels=c.channels,
            holdout=c.holdout,
            labels=c.labels,
            num_classes=c.num_classes,
            images=c.images,
            tokens=c.tokens,
            vocabulary=c.vocabulary,
            skip_unreadable=c.skip_unreadable,
        )


@contextlib.contextmanager
def _flags_in_errors() -> Iterator[None]:
    """A DataError within names the flags of a command where it would name arguments of `load_dataset`."""
    try:
        yield
    except DataError as error:
        raise DataError(_ARGUMENT.sub(r"--config.data.\1=", str(error))) from error


def describe(config: ConfigDict, dataset: Dataset | None = None) -> DataInfo:
    """What the network must know of the data, without reading data of which the config says it all. ConfigError
    where it says another number of classes than they have, DataError for fields that no data could meet."""
    c = config.data
    with _flags_in_errors():
        check_asked(c.image_size, c.channels, c.holdout, c.tokens)
    # What becomes images of the size that is asked for: a prepared data set, or a folder, be it here or not.
    images = c.source.startswith("tfds:") or not (c.source in ("digits", *TOYS) or c.source.endswith((".npy", ".npz")))
    if dataset is None and images and c.image_size and c.channels and (c.num_classes or not c.labels):
        conditions = _asked(c)
        if c.source.startswith("tfds:"):
            check_conditions(c.source, ("label",), conditions)
        return DataInfo((c.image_size, c.image_size, c.channels), 256, conditions)
    dataset = dataset or load_data(config)
    if c.labels and c.num_classes not in (None, dataset.num_classes):
        raise ConfigError(
            f"config.data.num_classes={c.num_classes}, but {dataset.name} has {dataset.num_classes} classes"
        )
    return DataInfo(dataset.shape, dataset.levels, dict(dataset.conditions))


def _asked(c: ConfigDict) -> dict[str, Condition]:
    """The conditions that `config.data` asks for, of images of which it says the size."""
    conditions = {
        "label": Condition((), c.num_classes) if c.labels else None,
        "image": Condition((c.image_size, c.image_size, c.channels), 256) if c.images else None,
        "tokens": Condition((c.tokens,), VOCABULARY) if c.tokens else None,
    }
    return {name: known for name, known in conditions.items() if known is not None}


def build(config: ConfigDict, data: DataInfo | None = None) -> Experiment:
    """The experiment of a config; ConfigError, in one line, naming the field that cannot be met."""
    check_numbers(config)
    return build_method(config, describe(config) if data is None else data)
