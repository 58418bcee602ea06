"""Experiment files: where they are, and how they and the command line's overrides become a locked ConfigDict."""

import difflib
import importlib.util
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

__all__ = ["ConfigError", "experiments", "override", "read", "resolve"]


class ConfigError(ValueError):
    """An experiment that cannot be read or built; the message is one line that names the field or the file."""


def _folders() -> list[pathlib.Path]:
    """Where built-in experiments lie: inside the installed package, or beside it in a checkout."""
    package = pathlib.Path(__file__).parents[1]
    return [folder for folder in (package / "experiments", package.parent / "experiments") if folder.is_dir()]


def experiments() -> dict[str, pathlib.Path]:
    """The built-in experiments by name."""
    files = (file for folder in reversed(_folders()) for file in sorted(folder.glob("*.py")))
    return {file.stem: file for file in files if not file.stem.startswith("_")}


def resolve(name: str) -> str:
    """The file of an experiment: `name` itself where it is a file, else the built-in experiment of that name. What
    follows a colon is the argument of its get_config and is kept. ConfigError where there is neither."""
    path, colon, argument = name.partition(":")
    if os.path.isfile(path):
        return name
    known = experiments()
    stem = os.path.basename(path).removesuffix(".py")
    if stem not in known:
        raise ConfigError(
            f"--config={name}: there is no such file or built-in experiment; the built-in ones are {', '.join(known)}"
        )
    return f"{known[stem]}{colon}{argument}"


def read(name: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The config of an experiment file, by path or built-in name, with overrides such as "--config.training.steps=10".

    ConfigError, in one line, for an experiment that cannot be run or an override of an unknown field or wrong type.
    """
    path = resolve(name)
    file, _, argument = path.partition(":")
    try:
        spec = importlib.util.spec_from_file_location("diffuse_jax_experiment", file)
        assert spec is not None and spec.loader is not None  # a path that ends in .py always has them
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config(argument) if argument else module.get_config()
    except Exception as error:
        raise ConfigError(f"--config={name}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"--config={name}: get_config() returned {type(config).__name__}, not a ConfigDict")
    return override(config, overrides)


def override(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """`config`, locked, with "--config.section.field=value" overrides applied, parsed by the type of the field.

    ConfigError, in one line, for an unknown field or a value of another type.
    """
    for argument in overrides:
        if not argument.startswith(("--config.", "--noconfig.")):
            raise ConfigError(f"unknown argument {argument!r}: overrides read --config.section.field=value")
    values = flags.FlagValues()
    config.lock()
    argv = ["diffuse-jax", *overrides]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
        return values.config
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, SyntaxError) as error:
        raise ConfigError(_one_line(config, overrides, error)) from error


def _one_line(config: ConfigDict, overrides: Sequence[str], error: Exception) -> str:
    """What was wrong with the overrides: the first that names no field, else the library's own words."""
    for argument in overrides:
        path = argument.removeprefix("--no").removeprefix("--").partition("=")[0].removeprefix("config.")
        section: Any = config
        for depth, part in enumerate(path.split(".")):
            if not isinstance(section, ConfigDict) or part not in section:
                where = ".".join(["config", *path.split(".")[:depth]])
                return f"--config.{path}: {where} has no field {part!r}{_suggestion(part, section)}"
            section = section[part]
    words = error.args[-1] if len(error.args) > 1 else error
    message = " ".join(str(words).split())
    return message if "config." in message else f"{' '.join(overrides)}: {message}"


def _suggestion(part: str, section: Any) -> str:
    if not isinstance(section, ConfigDict):
        return ""
    close = difflib.get_close_matches(part, list(section), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(section)}"
