"""Experiment files: where they are, and how they and the command line's overrides become a locked ConfigDict."""

import difflib
import importlib.util
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from diffuse_jax._fields import TEXT, check_fields
from diffuse_jax.config.errors import ConfigError
from diffuse_jax.config.sampling_section import settle
from diffuse_jax.config.schema import METHOD_FIELDS, NETWORKS, base, field_kinds, method, network

__all__ = ["OPEN", "experiments", "override", "read", "resolve"]


_KINDS = {int: "an integer", float: "a number", bool: "true or false", tuple: "a tuple, such as 1,2"}


def _folder() -> pathlib.Path:
    """Where built-in experiments lie: inside the installed package, or beside it in a checkout."""
    package = pathlib.Path(__file__).parents[1]
    installed = package / "experiments"
    return installed if installed.is_dir() else package.parent / "experiments"


def experiments() -> dict[str, pathlib.Path]:
    """The built-in experiments by name."""
    return {file.stem: file for file in sorted(_folder().glob("*.py")) if not file.stem.startswith("_")}


def resolve(name: str) -> str:
    """The file of an experiment: `name` itself where it is a file, else the built-in experiment of that name, which may
    be spelled NAME, NAME.py or experiments/NAME.py. What follows a colon is the argument of its get_config and is kept.
    ConfigError where there is neither."""
    path, colon, argument = name.partition(":")
    if os.path.isfile(path):
        return name
    known = experiments()
    folder, file = os.path.split(path)
    stem = file.removesuffix(".py")
    if stem not in known or folder not in ("", "experiments"):
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
    if not file.endswith(".py"):
        raise ConfigError(f"--config={name}: an experiment is a Python file that ends in .py")
    try:
        spec = importlib.util.spec_from_file_location("diffuse_jax_experiment", file)
        assert spec is not None and spec.loader is not None  # a path that ends in .py always has them
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config(argument) if argument else module.get_config()
    except (Exception, SystemExit) as error:  # a file may raise anything, and may end the program
        raise ConfigError(f"--config={name}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"--config={name}: get_config() returned {type(config).__name__}, not a ConfigDict")
    where = f"--config={name}: config"
    _check_fields(config, where)
    config = override(config, overrides)
    _check_names(config, where)  # of the process and the network that the overrides may have named
    return config


def _check_fields(config: ConfigDict, where: str) -> None:
    """ConfigError, in one line that begins with `where`, unless a config has the fields of `base()`, each of its type.
    A network or process of one's own ("module:name") has what fields it likes."""
    given, defaults = config.to_dict(), base()
    check_fields(given, field_kinds(defaults), where, ConfigError, wanted=defaults)
    for section in (name for name, content in defaults.items() if isinstance(content, ConfigDict)):
        named = {"name": TEXT} if section in OPEN else {}
        check_fields(given[section], named, f"{where}.{section}", ConfigError, wanted=named)
        if (fields := _fields_of(section, given[section])) is not None:
            check_fields(given[section], field_kinds(fields), f"{where}.{section}", ConfigError, wanted=fields)


def _check_names(config: ConfigDict, where: str) -> None:
    """ConfigError for a field that no section of `base()` has."""
    for section, content in config.items():
        fields = _fields_of(section, content) if isinstance(content, ConfigDict) else None
        if unknown := [] if fields is None else [field for field in content if field not in fields]:
            raise ConfigError(f"{where}.{section} has no field {unknown[0]!r}{_suggestion(unknown[0], fields)}")


#: Sections whose fields depend on a name.
OPEN = ("model", "sde", "method", "codec", "parameterization", "optimizer")


def _fields_of(section: str, content: Mapping[str, Any]) -> ConfigDict | None:
    """The fields that a section may have; None where these are one's own, or of a network or method that there is not,
    which is refused by its name where it would be made."""
    if section == "own":
        return None
    name = content["name"] if section in OPEN else ""
    if ":" in name or (section == "model" and name not in NETWORKS):
        return None
    if section == "method":
        return method(name) if name in METHOD_FIELDS else None
    return network(name) if section == "model" else base().get(section)


def override(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """`config`, locked, with "--config.section.field=value" overrides applied, parsed by the type of the field; None
    empties a field that `base()` leaves empty. With another solver or grid, what the new one does not read is emptied,
    unless it is given too. ConfigError, in one line, for an unknown field or a value of another type.
    """
    for argument in overrides:
        if not argument.startswith(("--config.", "--noconfig.")):
            raise ConfigError(f"unknown argument {argument!r}: overrides read --config.section.field=value")
    values = flags.FlagValues()
    config.lock()
    before = config.sampling.solver, config.sampling.grid
    overrides = list({argument.partition("=")[0]: argument for argument in overrides}.values())  # the last one counts
    emptied = [argument for argument in overrides if _empties(argument)]
    argv = ["diffuse-jax", *(argument for argument in overrides if argument not in emptied)]
    try:
        for argument in emptied:
            section, name = argument.removeprefix("--config.").removesuffix("=None").split(".")
            config[section][name] = None
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
        config = values.config
        settle(config.sampling, before, given={argument.partition("=")[0] for argument in overrides})
        config.data.source = _located(config.data.source)
        return config
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, SyntaxError) as error:
        raise ConfigError(_one_line(config, overrides, error)) from error


def _located(source: str) -> str:
    """A file or folder by its absolute path, so that a run finds its data from wherever it is gone on with, and with
    `~` as a shell reads it; what else names data as it is."""
    kind = "tfds:" if source.startswith("tfds:") else ""
    path = os.path.expanduser(source.removeprefix(kind))
    return kind + (os.path.abspath(path) if os.path.exists(path) and not kind else path)


def _empties(argument: str) -> bool:
    """Whether it is "--config.section.field=None" for a field that is empty by default."""
    path, _, value = argument.removeprefix("--config.").partition("=")
    section, _, name = path.partition(".")
    fields = base().get(section)
    return value == "None" and isinstance(fields, ConfigDict) and name in fields and fields[name] is None


def _one_line(config: ConfigDict, overrides: Sequence[str], error: Exception) -> str:
    """What was wrong with the overrides: the first that names no field, else the library's own words."""
    for argument in overrides:
        path = argument.removeprefix("--no").removeprefix("--").partition("=")[0].removeprefix("config.")
        section: Any = config
        for depth, part in enumerate(path.split(".")):
            if not isinstance(section, ConfigDict) or part not in section:
                where = ".".join(["config", *path.split(".")[:depth]])
                return f"--config.{path}: {where} has no field {part!r}{_suggestion(part, section)}"
            kind = section.get_type(part)
            section = section[part]
        if isinstance(section, ConfigDict):
            return f"--config.{path} is a section: give one of its fields, {', '.join(section)}"
        if argument in str(error):
            return f"{argument} must be {_KINDS.get(kind, kind.__name__)}"
    message = " ".join(str(error).split())
    return message if "config." in message else f"{' '.join(overrides)}: {message}"


def _suggestion(part: str, section: Any) -> str:
    if not isinstance(section, ConfigDict):
        return ""
    close = difflib.get_close_matches(part, list(section), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(section)}"
