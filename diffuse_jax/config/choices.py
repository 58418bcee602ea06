"""What a config chooses by name: an entry of a table, or what "package.module:name" names, with options of its own."""

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from diffuse_jax.config.errors import ConfigError

__all__ = ["OWN", "choose", "function_of", "imported", "line", "own_options", "section"]

#: The fields for which "module:name" stands without a section of its own: its options are those of config.own.FIELD.
OWN = {
    "solver": "sampling.solver",
    "grid": "sampling.grid",
    "finish": "sampling.finish",
    "noise": "sampling.noise",
    "weight": "loss.weight",
    "times": "loss.times",
    "trace": "evaluation.trace",
}


def choose(table: Mapping[str, Any], name: str, field: str) -> Any:
    """What a field of the config chooses by name.

    Args:
        table: The entries by name.
        name: The name of one, or "module:name".
        field: The field, without "config.", which errors name.

    Returns:
        The entry, or what the module has by that name.

    Raises:
        ConfigError: For another name, with the names that there are, and for what cannot be imported.
    """
    if ":" in name:
        return imported(name, field)
    if name not in table:
        raise ConfigError(f"config.{field}={name!r} must be one of {', '.join(table)}, or 'module:name' of one's own")
    return table[name]


def imported(path: str, field: str) -> Any:
    """What "package.module:name" names; ConfigError where it cannot be imported."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # an import runs a file, which may raise anything
        raise ConfigError(f"config.{field}={path!r} cannot be imported: {line(error)}") from error


def own_options(config: ConfigDict, field: str) -> dict[str, Any]:
    """The options of what "module:name" names in a field of `OWN`."""
    options = config.own.get(field, ConfigDict())
    return dict(options.items())


def function_of(config: ConfigDict, table: Mapping[str, Callable[[ConfigDict], Any]], field: str) -> Any:
    """A function that a field of `OWN` names.

    Args:
        config: The experiment's config.
        table: Entries by name, each a function of the config that returns the one that is meant.
        field: The name in `OWN`.

    Returns:
        What the entry of the table returns, or one's own function with its options bound.

    Raises:
        ConfigError: Naming the field, where there is no such entry or function.
    """
    where = OWN[field]
    part, _, leaf = where.partition(".")
    name = config[part][leaf]
    found = choose(table, name, where)
    if ":" not in name:
        return section(found, part, config)
    if not callable(found):
        raise ConfigError(f"config.{where}={name!r} names a {type(found).__name__}, and must name a function")
    options = own_options(config, field)
    return functools.partial(found, **options) if options else found


def section(make: Callable[..., Any], name: str, *values: Any, **options: Any) -> Any:
    """Makes what a section of the config is about.

    Args:
        make: What is called.
        name: The section, without "config.", which errors name.
        values: The positional arguments of `make`.
        options: Its keyword arguments.

    Returns:
        make(*values, **options).

    Raises:
        ConfigError: Naming the section, for whatever `make` raises.
    """
    try:
        return make(*values, **options)
    except ConfigError:
        raise
    except Exception as error:  # what is made may be the user's own
        raise ConfigError(f"config.{name}: {line(error)}") from error


def line(error: Exception) -> str:
    """An error in one line."""
    words = " ".join(str(error).split())
    return words if isinstance(error, (TypeError, ValueError)) else f"{type(error).__name__}: {words}"
