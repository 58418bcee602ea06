"""A run's folder: what it was trained as, whether a config still fits it, and its denoiser.

config.json      the experiment's fields and what is known of its data
checkpoints/     the training state at some steps
metrics.jsonl, tensorboard/, grids/     what happened
"""

import os
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from diffuse_jax._fields import GROUP, TEXT, Kind, check_fields, integer, optional, row
from diffuse_jax.checkpoints import CheckpointError, Checkpoints, read_json, write_json_atomic
from diffuse_jax.conditions import Condition
from diffuse_jax.config.build import DataInfo, Experiment, build
from diffuse_jax.config.errors import ConfigError
from diffuse_jax.config.experiment_files import OPEN
from diffuse_jax.config.sampling_section import forget_unread
from diffuse_jax.config.schema import METHOD_FIELDS, NETWORKS, base, field_kinds, method, network
from diffuse_jax.training import CHECKPOINTS

__all__ = ["CHECKPOINTS", "check_fits", "load", "read_run", "restore", "write_run"]

_CONFIG = "config.json"

_CONTENT = {"config": GROUP, "data": GROUP, "rows": optional(integer(1))}
_DATA: dict[str, Kind] = {
    "shape": row(integer(1), (1, 3)),
    "levels": optional(integer(2, 256)),
    "conditions": GROUP,
    "num_classes": optional(integer(1)),  # as it was written before there were conditions
}
_CONDITION = {"shape": row(integer(1), (0, 1, 3)), "values": integer(1)}

# What may change when a run goes on: how long it lasts, how often it does what, and what is done with its network.
_FREE_SECTIONS = ("sampling", "evaluation", *(f"own.{name}" for name in ("solver", "grid", "finish", "noise", "trace")))
_FREE_FIELDS = (
    "model.attention",
    "training.steps",
    "training.accumulate",
    "training.fsdp",
    "training.log_every",
    "training.checkpoint_every",
    "training.keep",
    "training.keep_every",
    "training.evaluate_every",
    "training.sample_every",
)


def write_run(workdir: str | os.PathLike[str], config: ConfigDict, data: DataInfo, rows: int | None = None) -> None:
    """Records what a run is trained as, in place of what was recorded before.

    Args:
        workdir: The folder of the run.
        config: The config.
        data: What is known of its data.
        rows: The number of their training rows; None where it is not known.

    Raises:
        ConfigError: Where JSON cannot hold a field.
    """
    content = {"config": config.to_dict(), "data": data.as_json(), "rows": rows}
    try:
        write_json_atomic(pathlib.Path(workdir) / _CONFIG, content)
    except TypeError as error:
        raise ConfigError(f"a field of the config is not a number, a string, a boolean or a tuple: {error}") from error


def is_run(workdir: str | os.PathLike[str]) -> bool:
    """Whether a run was begun there. CheckpointError where there are checkpoints that no run here recorded."""
    folder = pathlib.Path(workdir)
    if (folder / _CONFIG).exists():
        return True
    if (folder / CHECKPOINTS).exists():
        raise CheckpointError(f"workdir={folder} has {CHECKPOINTS}/ but no {_CONFIG}: it is no run of diffuse_jax")
    return False


def read_run(workdir: str | os.PathLike[str]) -> tuple[ConfigDict, DataInfo]:
    """The config and data of the run in `workdir`. CheckpointError where there is none, or one of another version."""
    content, where = _recorded(workdir), pathlib.Path(workdir) / _CONFIG
    stored = _renamed(_tuples(content["config"]))
    config = _sections(stored, f"{where}: config")
    for name, section in config.items():
        if isinstance(section, ConfigDict):
            check_fields(stored.get(name, {}), field_kinds(section), f"{where}: config.{name}", CheckpointError)
    check_fields(stored, field_kinds(config), f"{where}: config", CheckpointError)
    config.lock()
    try:
        config.update(stored)
        forget_unread(config.sampling)  # runs once recorded a value of every field
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        line = " ".join(str(error).split())
        raise CheckpointError(f"{where} does not fit this version of diffuse_jax: {line}") from error
    return config, _data_info(content["data"], f"{where}: data")


def _data_info(stored: dict[str, Any], where: str) -> DataInfo:
    """What is known of the data, as it was stored."""
    conditions = {}
    for name, known in stored.get("conditions", {}).items():
        check_fields(known, _CONDITION, f"{where}: {name}", CheckpointError, wanted=_CONDITION)
        conditions[name] = Condition(_tuples(known["shape"]), known["values"])
    if stored.get("num_classes") is not None:
        conditions["label"] = Condition((), stored["num_classes"])
    return DataInfo(_tuples(stored["shape"]), stored["levels"], conditions)


def _recorded(workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """What config.json of a run holds."""
    if not is_run(workdir):
        raise CheckpointError(f"workdir={workdir} holds no run of diffuse_jax: train one there, or name another folder")
    path = pathlib.Path(workdir) / _CONFIG
    content = read_json(path)
    check_fields(content, _CONTENT, str(path), CheckpointError, wanted=("config", "data"))
    check_fields(content["data"], _DATA, f"{path}: data", CheckpointError, wanted=("shape", "levels"))
    return content


#: (section, old name) -> the name of the field today.
_RENAMED = {("parameterization", "label"): "c_noise"}


def _renamed(stored: dict[str, Any]) -> dict[str, Any]:
    """A config as it was stored, its fields under today's names."""
    for (section, old), new in _RENAMED.items():
        fields = stored.get(section)
        if isinstance(fields, dict) and old in fields and new not in fields:
            stored |= {section: {new if name == old else name: value for name, value in fields.items()}}
    return stored


def _sections(stored: dict[str, Any], where: str) -> ConfigDict:
    """The fields and types of a config as it was stored: a network or process of one's own ("module:name") reads what
    fields it likes."""
    config = base()
    for name in OPEN:
        # Runs once recorded the names of a network and a process alone.
        wanted = ("name",) if name in ("model", "sde") else ()
        check_fields(stored.get(name, {}), {"name": TEXT}, f"{where}.{name}", CheckpointError, wanted=wanted)
        if ":" in stored.get(name, {}).get("name", ""):
            config[name] = ConfigDict(stored[name])
    check_fields(stored, {"own": GROUP}, where, CheckpointError)
    config.own = ConfigDict(stored.get("own", {}))
    if (name := stored.get("method", {}).get("name")) in METHOD_FIELDS:
        config.method = method(name)
    if (name := stored["model"]["name"]) in NETWORKS:
        config.model = network(name)
    elif ":" not in name:
        raise CheckpointError(f"{where}.model: name is {name!r}, and must be one of {', '.join(NETWORKS)}")
    return config


def check_fits(config: ConfigDict, data: DataInfo, workdir: str | os.PathLike[str], rows: int | None = None) -> None:
    """Checks that a run can go on with a config and data.

    Args:
        config: The config.
        data: What is known of the data.
        workdir: The folder of the run.
        rows: The number of training rows; None where it is not known.

    Raises:
        ConfigError: Naming every field in which the run's own config differs from this one and may not change, and its
            data where they have another shape or another number of training rows, of those known.
    """
    stored, stored_data = read_run(workdir)
    old, new = _flat(stored), _flat(config)
    if not old.get("data.source"):  # of imported weights; it may be given later
        old["data.source"] = new.get("data.source")
    differences = [
        f"config.{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not _is_free(name)
    ]
    if stored_data != data:
        differences.append(f"the data were {stored_data} and are {data}")
    stored_rows = _recorded(workdir).get("rows")
    if None not in (rows, stored_rows) and rows != stored_rows:
        differences.append(f"the data had {stored_rows} training rows and have {rows}")
    if differences:
        raise ConfigError(
            f"workdir={workdir} holds a run of another experiment: {'; '.join(differences)}. "
            "Give the same values to go on with it, or another folder"
        )


def _is_free(name: str) -> bool:
    """Whether a field may change when a run goes on."""
    return name in _FREE_FIELDS or any(name.startswith(f"{section}.") for section in _FREE_SECTIONS)


def restore(
    experiment: Experiment,
    workdir: str | os.PathLike[str],
    step: int | None = None,
    sharding: jax.sharding.Sharding | None = None,
) -> tuple[Any, Any, int]:
    """What a run trained, as arrays.

    Args:
        experiment: The experiment of the run.
        workdir: The folder of the run.
        step: The step of the checkpoint; None is the latest.
        sharding: Where the arrays are placed, as `Checkpoints.restore` does.

    Returns:
        The averaged parameters (EMA), what is carried beside them, and the step.

    Raises:
        CheckpointError: Where there is no such checkpoint.
    """
    with Checkpoints(pathlib.Path(workdir) / CHECKPOINTS, read_only=True) as checkpoints:
        step = checkpoints.latest_step() if step is None else step
        params = checkpoints.restore_part("ema", experiment.params, step, sharding)
        extra = checkpoints.restore_part("extra", experiment.extra, step, sharding) if experiment.extra else {}
        return params, extra, step or 0


def load(workdir: str | os.PathLike[str], step: int | None = None) -> Any:
    """What a run trained, with the averaged parameters of `step` (default: the latest checkpoint): a `NetworkDenoiser`,
    or what else its method makes.

    A run with conditions wants them as `cond`, by name. Raises CheckpointError where `workdir` holds no run or no such
    step.
    """
    config, data = read_run(workdir)
    experiment = build(config, data)
    params, extra, _ = restore(experiment, workdir, step)
    return experiment.method.model(params, extra)


def _flat(config: ConfigDict) -> dict[str, Any]:
    """The fields by their dotted names."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        inner = _flat(value) if isinstance(value, ConfigDict) else None
        fields |= {name: _tuples(value)} if inner is None else {f"{name}.{key}": leaf for key, leaf in inner.items()}
    return fields


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    if isinstance(value, dict):
        return {name: _tuples(inner) for name, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
