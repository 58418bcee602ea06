"""The training state on disk, one numbered folder a step, and small JSON files beside it.

A thin layer over Orbax that says when to save, what to keep and, in one line, what does not fit or is damaged. A step
exists exactly when it is whole on disk with the checksums of its files (`SHA256SUMS`), for only then it is renamed into
place: a process killed at any moment leaves the earlier steps whole and at most a temporary folder, which the next
writer removes. Whatever is read is compared with its checksums first.
"""

import dataclasses
import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from diffuse_jax._checksums import CHECKSUMS, find_damage, write_checksums
from diffuse_jax._files import written_atomically

__all__ = ["CheckpointError", "Checkpoints", "read_json", "write_json_atomic"]

_MARKER = "_CHECKPOINT_METADATA"  # Orbax writes this file into every complete step.
_UNFINISHED = ".orbax-checkpoint-tmp"  # In the name of a step that is being written (it is Orbax's) or removed.


_STEP = re.compile(r"0|[1-9][0-9]*")  # the name of a step's folder


class CheckpointError(ValueError):
    """A checkpoint that is missing, is not one, is damaged, or does not fit what is asked of it."""


class Checkpoints:
    """The checkpoints in a directory; a context manager that closes itself.

    The writer makes the directory and removes what a killed writer left half done; a step is only removed when a later
    one is whole, or when it is itself saved anew. Of several processes all call `save`, `wait`, `close` and `restore`.

    Args:
        directory: The directory, which may be empty or absent.
        keep: The number of latest steps that are kept.
        keep_every: Every multiple of it is kept too; None keeps no more.
        read_only: For sampling and evaluation: nothing on disk is made or removed, and a training run may go on writing
            meanwhile.

    Raises:
        ValueError: Where `keep` or `keep_every` is less than 1.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int = 3,
        keep_every: int | None = None,
        read_only: bool = False,
    ) -> None:
        if keep < 1 or (keep_every is not None and keep_every < 1):
            raise ValueError(f"{keep=} and {keep_every=} must be at least 1")
        self.directory = pathlib.Path(directory).absolute()
        self._keep, self._keep_every, self._read_only = keep, keep_every, read_only
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._pending: Future[None] | None = None
        if not read_only:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._clean()

    def steps(self) -> list[int]:
        """The steps on disk, ascending; a save in progress is not among them."""
        if not self.directory.is_dir():
            return []
        # By either file: one that lost the other is damaged, and no reader may take an earlier step for the latest.
        return sorted(
            int(path.name)
            for path in self.directory.iterdir()
            if _STEP.fullmatch(path.name) and ((path / _MARKER).exists() or (path / CHECKSUMS).exists())
        )

    def latest_step(self) -> int | None:
        """The last step on disk, or None."""
        return max(self.steps(), default=None)

    def save(self, step: int, state: Any) -> None:
        """Starts to write a state in the background, and returns when its arrays may be donated. It first waits for the
        save before.

        Args:
            step: The number of the step; one that exists is replaced.
            state: A tree of arrays.

        Raises:
            OSError: Names the folder, where this save or the one before cannot be written.
            CheckpointError: On a read-only object.
        """
        if self._read_only:
            raise CheckpointError(f"{self.directory} was opened read-only; open it with read_only=False to save")
        self._finish()
        partial = self.directory / f"{step}.partial{_UNFINISHED}"
        try:
            self._clean()
            if jax.process_count() > 1:  # the others must not come upon what process 0 removes
                multihost_utils.sync_global_devices(f"save {step}")
            response = ocp.save_async(partial, _filled(state), custom_metadata={"checksums": CHECKSUMS})
        except Exception as error:
            raise self._failed(step, error) from error
        self._pending = self._thread.submit(self._commit, step, partial, response)

    def _commit(self, step: int, partial: pathlib.Path, response: ocp.AsyncResponse[None]) -> None:
        """In the background: waits for Orbax, in process 0 makes what it wrote a step, and removes what is not kept."""
        try:
            response.result()
            if jax.process_index() != 0:
                return
            write_checksums(partial)
            if step in self.steps():
                self._set_aside(step)
            partial.rename(self.directory / str(step))
            for old in self.steps()[: -self._keep]:
                if not self._keep_every or old % self._keep_every:
                    self._set_aside(old)
            self._clean()
        except Exception as error:
            raise self._failed(step, error) from error

    def wait(self) -> None:
        """Returns when the save in progress is on disk and what is no longer kept is removed. OSError, naming the
        folder, where it cannot be written.
        """
        if self._finish() and jax.process_count() > 1:
            multihost_utils.sync_global_devices("saved")

    def _finish(self) -> bool:
        """As `wait`, but of this process's part alone; whether there was a save in progress."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
        return pending is not None

    def close(self) -> None:
        """Waits for the save in progress. OSError as in `wait`."""
        self.wait()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:  # which the other processes need not have, nor come here
            self._finish()

    def restore(self, abstract: Any, step: int | None = None, sharding: Any = None) -> Any:
        """The state stored at a step.

        How many devices and processes wrote the state, and how it was split over them, does not matter.

        Args:
            abstract: The structure, shapes and dtypes: a tree of arrays or `jax.ShapeDtypeStruct`, as `jax.eval_shape`
                gives it.
            step: The step; None is the latest.
            sharding: Where the arrays are placed, one for all or a tree of them; None is the sharding of each leaf of
                `abstract`, or this process's first device.

        Returns:
            The state, in the structure of `abstract`.

        Raises:
            CheckpointError: Names the first leaf that differs, where the stored tree is another; the file, and the
                latest step that is whole, where the step is damaged; and the steps that exist, where the directory, the
                step or any checkpoint at all is missing.
        """
        return self._restore(abstract, step, sharding, part=None)

    def restore_part(self, part: str, abstract: Any, step: int | None = None, sharding: Any = None) -> Any:
        """One field of the stored state, and no more of it.

        Args:
            part: The name of the field, such as "ema" or "params".
            abstract: The structure, shapes and dtypes of the field, as in `restore`.
            step: The step; None is the latest.
            sharding: Where the arrays are placed, as in `restore`.

        Returns:
            The field, in the structure of `abstract`.

        Raises:
            CheckpointError: As `restore` does.
        """
        placed = None if sharding is None else {part: sharding}
        return self._restore({part: abstract}, step, placed, part=part)[part]

    def _restore(self, abstract: Any, step: int | None, sharding: Any, part: str | None) -> Any:
        step = self.step(step)
        path = self.directory / str(step)
        if damage := self._damage(path):
            raise self._unreadable(step, f"is damaged: {damage}", damaged=True)
        tree = self.shapes(step)
        stored = _named_leaves(tree)
        if part is not None:
            stored = {name: leaf for name, leaf in stored.items() if name.split("/")[0] == part}
        difference = _first_difference(stored, _named_leaves(abstract))
        if difference:
            raise self._unreadable(step, f"does not fit: {difference}")
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        if sharding is None:
            sharding = jax.tree.map(lambda x: getattr(x, "sharding", None) or here, abstract)
        wanted = jax.tree.map(
            lambda x, placed: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed),
            abstract,
            jax.tree.broadcast(sharding, abstract),
        )
        if part is not None:  # the rest of the stored tree is passed over
            wanted = jax.tree.map(lambda _: ocp.PLACEHOLDER, tree) | wanted
        try:
            found = ocp.load(path, _filled(wanted))
        except Exception as error:
            raise self._unreadable(step, f"could not be read: {_first_line(error)}") from error
        if not dataclasses.is_dataclass(abstract):
            return found
        make: Any = type(abstract)
        return make(**{**vars(abstract), **found})  # fields that hold nothing are as they were asked for

    def step(self, step: int | None = None) -> int:
        """`step`, or the latest where it is None. CheckpointError where it does not exist, with those that do."""
        steps = self.steps()
        if not self.directory.is_dir():
            raise CheckpointError(f"there is no directory {self.directory}")
        if not steps:
            raise CheckpointError(f"{self.directory} holds no checkpoint")
        if step is not None and step not in steps:
            raise CheckpointError(f"{self.directory} holds no step {step}, but {', '.join(map(str, steps))}")
        return steps[-1] if step is None else step

    def shapes(self, step: int | None = None) -> Any:
        """The stored tree of `step` (default: the latest), each leaf with its `shape` and `dtype`; no array is read.
        CheckpointError where it is missing or not a readable checkpoint."""
        step = self.step(step)
        try:
            shapes = ocp.metadata(self.directory / str(step)).metadata
        except Exception as error:
            raise self._unreadable(step, f"is not a readable checkpoint: {_first_line(error)}") from error
        if shapes is None:
            raise self._unreadable(step, "is not a readable checkpoint: it holds no arrays")
        return shapes

    def _damage(self, path: pathlib.Path) -> str | None:
        """What is damaged in a step, in words; None also for one that was written before there were checksums."""
        try:
            if (path / CHECKSUMS).exists():
                return find_damage(path)
            written = CHECKSUMS.encode() in (path / _MARKER).read_bytes()
        except OSError as error:
            return f"{error.filename}: {error.strerror}"
        return f"{CHECKSUMS} is missing" if written else None

    def _unreadable(self, step: int, what: str, damaged: bool = False) -> CheckpointError:
        """The error of a step, with what to read in its place where it is, or may be, damaged."""
        path = self.directory / str(step)
        if not path.exists():
            there = ", ".join(map(str, self.steps())) or "none"
            return CheckpointError(f"{path} was removed while it was read; the steps there are now: {there}")
        if damaged:
            return CheckpointError(f"{path} {what}; {self._instead(step)}")
        if not (path / CHECKSUMS).exists():
            return CheckpointError(f"{path} {what}; without checksums it may be damaged: {self._instead(step)}")
        return CheckpointError(f"{path} {what}")

    def _instead(self, step: int) -> str:
        away = f"; to train on from it, move {self.directory / str(step)} away"
        for other in reversed([other for other in self.steps() if other != step]):
            path = self.directory / str(other)
            if self._damage(path) is None:
                found = "whole step" if (path / CHECKSUMS).exists() else "other step, without checksums too,"
                return f"the latest {found} is {other} (--checkpoint={other})" + (away if other < step else "")
        return "no other step is whole"

    def _set_aside(self, step: int) -> None:
        """Renamed first: a kill while its files go cannot leave a part of a step that looks like one."""
        (self.directory / str(step)).rename(self.directory / f"{step}.removed{_UNFINISHED}")

    def _clean(self) -> None:
        if jax.process_index() == 0:
            for path in self.directory.glob(f"*{_UNFINISHED}*"):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _failed(self, step: int, error: Exception) -> OSError:
        return OSError(f"the checkpoint {self.directory / str(step)} could not be written: {_first_line(error)}")


def write_json_atomic(path: str | os.PathLike[str], obj: Any) -> None:
    """Writes `obj` as JSON so that `path` holds the old text or the new one, never a part. OSError where it cannot."""
    with written_atomically(path) as file:
        file.write((json.dumps(obj, indent=2) + "\n").encode())


def read_json(path: str | os.PathLike[str]) -> Any:
    """The object in a JSON file. CheckpointError, naming file and place, where there is none or it is not JSON."""
    path = pathlib.Path(path)
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is {'a folder' if path.is_dir() else 'no regular file'}, not a JSON file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no file {path}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error


def _filled(state: Any) -> Any:
    """A state of named fields as a dict of those that hold arrays: one that is empty leaves no trace on disk, so that a
    state that gains a field still reads what was written before."""
    if not dataclasses.is_dataclass(state):
        return state
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if jax.tree.leaves(value)}


def _named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by the path of their names: tuples and lists, fields and keys are stored alike, so they compare alike."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _first_difference(stored: Mapping[str, Any], requested: Mapping[str, Any]) -> str | None:
    def describe(leaves: Mapping[str, Any], name: str) -> str:
        return f"{leaves[name].dtype}{tuple(leaves[name].shape)}" if name in leaves else "nothing"

    for name in sorted({*stored, *requested}):
        have, want = describe(stored, name), describe(requested, name)
        if have != want:
            return f"{name} is {have} in the checkpoint, and {want} was requested"
    return None


def _first_line(error: BaseException) -> str:
    """Orbax wraps the sentence that matters: it is the first line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
