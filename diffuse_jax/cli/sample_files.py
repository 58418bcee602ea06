"""Samples as numbered files of the folder `samples/`, written as they are drawn: however many they are, memory holds
two chunks, and the same command goes on from the files that are there."""

import argparse
import contextlib
import fcntl
import json
import pathlib
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from diffuse_jax._files import written_atomically
from diffuse_jax._progress import progress_bar
from diffuse_jax.checkpoints import read_json, write_json_atomic
from diffuse_jax.cli.common import TrainedRun, free_name, sampler, to_data
from diffuse_jax.cli.distributed import first, from_first, together
from diffuse_jax.config import ConfigError
from diffuse_jax.evaluation import save_png
from diffuse_jax.evaluation.draw import Conditions

__all__ = ["FOLDER", "sample_files"]

FOLDER = "samples"
_FACTS = "samples.json"
_LOCK = ".lock"
_SHARD = re.compile(r"\d{8,}-\d{8,}\.npz")
_PNG_END = b"IEND\xaeB`\x82"  # without it a file was cut short


class _Files(Protocol):
    """How samples lie in a folder. What is there is never written again."""

    def missing(self, start: int, stop: int) -> int:
        """The first sample from `start` on that is not there, or `stop`."""

    def write(self, start: int, samples: np.ndarray, labels: np.ndarray | None) -> None:
        """Writes consecutive samples, of which `start` is the first; each file appears whole."""


class _Images:
    """A PNG file a sample, of its grey levels as they are: 00000000.png, 00000001.png, …"""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder

    def missing(self, start: int, stop: int) -> int:
        return next((i for i in range(start, stop) if not _ends_with(self._path(i), _PNG_END)), stop)

    def write(self, start: int, samples: np.ndarray, labels: np.ndarray | None) -> None:
        for i, image in enumerate(samples, start):
            if not _ends_with(self._path(i), _PNG_END):
                save_png(image, self._path(i))

    def _path(self, i: int) -> pathlib.Path:
        return self._folder / f"{i:08d}.png"


class _Shards:
    """An npz file a chunk, with arrays `samples` and, of classes, `labels`: 00000000-00000063.npz, …"""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        shards = (path for path in folder.iterdir() if _SHARD.fullmatch(path.name) and zipfile.is_zipfile(path))
        self._there = _merged(map(_range, shards))

    def missing(self, start: int, stop: int) -> int:
        return next(self._gaps(start, stop), (stop, stop))[0]

    def write(self, start: int, samples: np.ndarray, labels: np.ndarray | None) -> None:
        for a, b in self._gaps(start, start + len(samples)):
            rows = slice(a - start, b - start)
            arrays: dict[str, Any] = {"samples": samples[rows]}
            if labels is not None:
                arrays["labels"] = labels[rows]
            with written_atomically(self._folder / f"{a:08d}-{b - 1:08d}.npz") as file:
                np.savez(file, **arrays)

    def _gaps(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The parts of start … stop − 1, as (a, b) for a … b − 1, that were not there when this began."""
        for a, b in self._there:
            if start < min(a, stop):
                yield start, min(a, stop)
            start = max(start, b)
        if start < stop:
            yield start, stop


_KINDS: dict[str, Callable[[pathlib.Path], _Files]] = {"png": _Images, "shards": _Shards}


def sample_files(args: argparse.Namespace, run: TrainedRun, n: int, conditions: Conditions | None) -> None:
    """Draws samples args.first … args.first + n − 1 into files of format args.format, but for those that are there.

    Args:
        args: The arguments of the command.
        run: The run.
        n: The number of samples.
        conditions: Those of samples by their numbers; None for a run without conditions.
    """
    folder, start, stop = run.workdir / FOLDER, args.first, args.first + n
    with contextlib.ExitStack() as held:
        together(lambda: _check(args, run))
        facts = _facts(args, run)
        files = together(lambda: held.enter_context(_opened(folder, facts)) if first() else None)
        there = from_first(0 if files is None else files.missing(start, stop) - start)
        if files is not None and 0 < there < n:
            print(f"going on after {there} of {n} samples in {folder}", file=sys.stderr)
        if files is not None and there < n:
            _sweep(folder, start + there)
        draw = sampler(run.experiment, run.mesh)
        bar = held.enter_context(progress_bar(total=n, initial=there, desc="samples", disable=not first()))
        for a, drawn in draw.chunks(run.model, seed=args.seed, n=n, first=start, skip=there, conditions=conditions):
            b = a + len(drawn.x)
            if files is not None:
                cond = {} if conditions is None else conditions(np.arange(a, b))
                files.write(a, to_data(run.experiment, drawn.x), cond.get("label"))
            bar.update(b - max(a, start + there))
    if first():
        by = facts.get("solver", run.experiment.config.method.name)
        print(f"samples {start} … {stop - 1} of step {run.step} ({n}, {by}):\n  {folder}")


def _check(args: argparse.Namespace, run: TrainedRun) -> None:
    shape = run.experiment.data.shape
    if args.format == "png" and (len(shape) != 3 or shape[-1] not in (1, 3)):
        raise ConfigError(
            f"--format=png: {run.workdir} draws rows of shape {shape}, not grey or RGB images: give --format=shards"
        )


def _facts(args: argparse.Namespace, run: TrainedRun) -> dict[str, Any]:
    """What decides what sample i is and how it lies in the folder, as JSON gives it back."""
    data, draw = run.experiment.data, run.experiment.method.draw
    facts = {
        "format": args.format,
        "checkpoint": run.step,
        "seed": args.seed,
        "shape": data.shape,
        "classes": data.num_classes,
        "label": args.label if args.label is not None or data.num_classes is None else "index mod classes",
        "cond": args.cond,
        **({} if draw is None else draw.facts),
    }
    stored: dict[str, Any] = json.loads(json.dumps(facts))
    return stored


@contextlib.contextmanager
def _opened(folder: pathlib.Path, facts: dict[str, Any]) -> Iterator[_Files]:
    """The files of a folder with these facts. A folder of others is moved aside, unless a command writes there now:
    ConfigError. Several may write other samples into the same."""
    if folder.is_file() or folder.is_symlink():
        raise ConfigError(f"{folder} is no folder: move it away, and the samples get one of that name")
    # What a kill left before it wrote a fact is begun anew.
    begun = folder.exists() and any(path.name != _LOCK for path in folder.iterdir())
    if begun and (not (folder / _FACTS).exists() or read_json(folder / _FACTS) != facts):
        with _locked(folder, fcntl.LOCK_EX):
            free_name(folder)
    if not (folder / _FACTS).exists():
        write_json_atomic(folder / _FACTS, facts)
    with _locked(folder, fcntl.LOCK_SH):
        yield _KINDS[facts["format"]](folder)


@contextlib.contextmanager
def _locked(folder: pathlib.Path, kind: int) -> Iterator[None]:
    with (folder / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"{folder} is being written by a command with other settings: wait for its end"
            ) from error
        yield


def _sweep(folder: pathlib.Path, i: int) -> None:
    """Removes what a kill left of the file that was to begin with sample i."""
    for part in folder.glob(f".{i:08d}*"):
        part.unlink(missing_ok=True)


def _ends_with(path: pathlib.Path, end: bytes) -> bool:
    """Whether a file is there, to its end."""
    if not path.is_file() or path.stat().st_size < len(end):
        return False
    with path.open("rb") as file:
        file.seek(-len(end), 2)
        return file.read() == end


def _range(path: pathlib.Path) -> tuple[int, int]:
    """(a, b) of the shard of samples a … b − 1."""
    a, _, b = path.stem.partition("-")
    return int(a), int(b) + 1


def _merged(ranges: Iterator[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges (a, b) in order, neighbours made one."""
    merged: list[tuple[int, int]] = []
    for a, b in sorted(ranges):
        if merged and a <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(b, merged[-1][1])
        else:
            merged.append((a, b))
    return merged
