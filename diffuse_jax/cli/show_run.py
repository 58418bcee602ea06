"""diffuse-jax show."""

import argparse
import json
import pathlib
import reprlib
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from diffuse_jax.checkpoints import CheckpointError, Checkpoints, read_json
from diffuse_jax.cli.common import workdir_of
from diffuse_jax.cli.sample_files import FOLDER
from diffuse_jax.config import ConfigError, base
from diffuse_jax.config.build import DataInfo
from diffuse_jax.config.method_section import reads
from diffuse_jax.config.sampling_section import value_of
from diffuse_jax.config.workdir import CHECKPOINTS, read_run
from diffuse_jax.nets import param_count

_TAIL = 2**20  # bytes of metrics.jsonl in which the last of each number is looked for


def show(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Prints what a run is, how far it is, what files it has and how to go on. It reads files alone: nothing is
    computed, and nothing written, beside a training too."""
    if overrides:
        raise ConfigError(f"show takes --workdir alone, not {' '.join(overrides)}")
    # Orbax asks JAX which process this is, for which JAX would take hold of the devices of a training.
    jax.config.update("jax_platforms", "cpu")
    args.config = None
    workdir = workdir_of(args)
    config, data = read_run(workdir)
    kept = Checkpoints(workdir / CHECKPOINTS, read_only=True)
    steps = kept.steps()
    rows = [
        *_experiment(config, data, read_json(workdir / "config.json").get("rows"), _parameters(kept, steps)),
        ("progress", _progress(config, steps)),
        ("metrics", _metrics(workdir / "metrics.jsonl")),
        ("sampling", _sampling(config) if reads(config.method.name, "sampling.num") else ""),
        *_files(workdir),
    ]
    print(f"{workdir}")
    print("\n".join(f"  {name:17} {text}" for name, text in rows if text))
    print("next:\n" + "\n".join(f"  {line}" for line in _next(config, workdir, steps)))
    return 0


def _experiment(c: ConfigDict, data: DataInfo, rows: int | None, parameters: str) -> Iterator[tuple[str, str]]:
    """What is trained on what."""
    number = "" if rows is None else f"{rows} training "
    levels = "" if data.levels is None else f", {data.levels} grey levels"
    classes = "" if data.num_classes is None else f", {data.num_classes} classes"
    yield "data", f"{c.data.source or 'not known'}: {number}rows of shape {data.shape}{levels}{classes}"
    yield "method", _named(c.method)
    yield "process", _read(c, {"sde": _named(c.sde, base().sde)})
    yield "network", c.model.name + parameters
    parameterization, c_noise = c.parameterization.name, f"c_noise {c.parameterization.c_noise}"
    yield (
        "parameterization",
        _read(c, {"parameterization.name": parameterization, "parameterization.c_noise": c_noise}),
    )
    stratified = ", stratified" if c.loss.stratified else ""
    loss = _read(c, {"loss.weight": f"weight {c.loss.weight}", "loss.times": f"times {c.loss.times}{stratified}"})
    batches = f"batches of {c.training.batch_size}"
    yield ("loss", f"{loss}, {batches}") if loss else ("training", batches)


def _named(section: ConfigDict, defaults: Mapping[str, Any] = {}) -> str:
    """The name of a section, and those of its fields that are not as they are by default."""
    own = (f"{field}={value}" for field, value in section.items() if field != "name" and value != defaults.get(field))
    return ", ".join([section.name, *own])


def _read(config: ConfigDict, words: Mapping[str, str]) -> str:
    """Of the words for parts of a config those for what its method reads."""
    return ", ".join(text for part, text in words.items() if reads(config.method.name, part))


def _parameters(kept: Checkpoints, steps: Sequence[int]) -> str:
    """Their number, as far as a checkpoint tells it."""
    try:
        return f", {param_count(kept.shapes(steps[-1])['ema']):,} parameters" if steps else ""
    except (CheckpointError, KeyError):  # removed meanwhile by the training, which keeps the latest alone; or damaged
        return ", its latest checkpoint cannot be read"


def _progress(config: ConfigDict, steps: Sequence[int]) -> str:
    total = config.training.steps
    if not steps:
        return f"no checkpoint yet, of {total} steps"
    return f"step {steps[-1]} of {total}; checkpoints of steps {_few(steps)}"


def _few(steps: Sequence[int]) -> str:
    """All of a few numbers, the first and the last three of many."""
    texts = [str(step) for step in steps]
    return ", ".join(texts if len(texts) <= 6 else [*texts[:1], "…", *texts[-3:]])


def _metrics(path: pathlib.Path) -> str:
    """The last of each number, each with its step where that is not the last line's."""
    lines = _last_lines(path)
    found = []
    for name in _shown(lines):
        line = next(line for line in reversed(lines) if name in line)
        value = "not finite" if line[name] is None else _number(line[name])
        at = "" if line is lines[-1] else f" (step {line.get('step')})"
        found.append(f"{name.replace('heldout_', 'held-out ').replace('images_per_second', 'images/s')} {value}{at}")
    return f"step {lines[-1].get('step')}: {', '.join(found)}; {_when(path)}" if found else ""


def _shown(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the losses in some lines, then those of held-out numbers, then the speed."""
    names = dict.fromkeys(name for line in lines for name in line)
    kinds: tuple[Callable[[str], bool], ...] = (
        lambda name: name == "loss" or name.endswith("/loss"),
        lambda name: name.startswith("heldout_"),
        lambda name: name == "images_per_second",
    )
    return [name for kind in kinds for name in names if kind(name)]


def _last_lines(path: pathlib.Path) -> list[Mapping[str, Any]]:
    """The objects in whole lines at the end of a file of JSON lines; none where there is no file."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        lines = [_object(line) for line in file.read().split(b"\n")[:-1]]
    return [line for line in lines if line]


def _sampling(config: ConfigDict) -> str:
    c = config.sampling
    if not reads(config.method.name, "sampling.solver"):
        return f"{c.num} samples"
    dtype = f", {c.dtype}" if c.dtype else ""
    steps = len(c.times) - 1 if c.grid == "explicit" and c.times else value_of(c, "steps")
    return f"{c.solver}, {steps} steps on grid {c.grid}, finish {c.finish}{dtype}; {c.num} samples"


def _files(workdir: pathlib.Path) -> Iterator[tuple[str, str]]:
    """What the other commands left, each with its main numbers and the time of writing."""
    for name, table, describe in _WRITTEN:
        if (workdir / name).exists():
            facts = _object((workdir / table).read_bytes()) if (workdir / table).is_file() else {}
            yield (
                name,
                f"{describe(workdir / name, facts)}; {_when(workdir / table)}" if facts else _when(workdir / name),
            )
    if grids := sorted((workdir / "grids").glob("*.png")):
        yield "grids", f"{len(grids)}, the last {grids[-1].name}; {_when(grids[-1])}"


def _samples(path: pathlib.Path, facts: Mapping[str, Any]) -> str:
    return f"{facts.get('num')} samples of step {facts.get('checkpoint')}{_by(facts)}"


def _sample_files(path: pathlib.Path, facts: Mapping[str, Any]) -> str:
    count = sum(1 for file in path.iterdir() if file.suffix in (".png", ".npz") and not file.name.startswith("."))
    return f"{count} files, {facts.get('format')}, of step {facts.get('checkpoint')}{_by(facts)}"


def _by(facts: Mapping[str, Any]) -> str:
    """The solver, of samples that one drew."""
    return f", {facts['solver']}" if "solver" in facts else ""


def _numbers(*names: str) -> Callable[[pathlib.Path, Mapping[str, Any]], str]:
    def describe(path: pathlib.Path, facts: Mapping[str, Any]) -> str:
        found = [f"{name} {_number(facts[name])}" for name in names if name in facts]
        return ", ".join([*found, f"step {facts.get('checkpoint')}"])

    return describe


# Each file or folder, the JSON file that describes it, and how that reads.
_WRITTEN: tuple[tuple[str, str, Callable[[pathlib.Path, Mapping[str, Any]], str]], ...] = (
    ("samples.npz", "samples.json", _samples),
    (f"{FOLDER}/", f"{FOLDER}/samples.json", _sample_files),
    (
        "evaluation.json",
        "evaluation.json",
        _numbers("heldout_loss", "heldout_accuracy", "bits_per_dim", "frechet_distance"),
    ),
    ("likelihood.npz", "likelihood.json", _numbers("log_prob", "bits_per_dim", "rows")),
)


def _number(x: Any) -> str:
    """A number in few digits; as the file has it where it is none."""
    try:
        number = float(x)
    except (TypeError, ValueError, OverflowError):
        return reprlib.repr(x)
    return f"{number:,.0f}" if 1000 <= abs(number) < 1e12 else f"{number:.4g}"


def _object(text: bytes) -> Mapping[str, Any]:
    """A JSON object; an empty one for what is not, as half of a line is not."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _when(path: pathlib.Path) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))


def _next(config: ConfigDict, workdir: pathlib.Path, steps: Sequence[int]) -> Iterator[str]:
    """The commands that go on from here."""
    run = f"--workdir={shlex.quote(str(workdir))}"
    source = "" if config.data.source else " --config.data.source=PATH"
    if max(steps, default=-1) < config.training.steps:
        yield f"diffuse-jax train {run}{source}"
    if steps:
        if reads(config.method.name, "sampling.num"):
            yield f"diffuse-jax sample {run}"
        yield f"diffuse-jax evaluate {run}{source}"
