"""The numbers of a run: one JSON object a line in `metrics.jsonl`, and the same in `tensorboard/`."""

import errno
import json
import math
import os
import pathlib
from collections.abc import Mapping
from types import TracebackType

import jax
from tensorboardX import SummaryWriter

from diffuse_jax._files import written_atomically

__all__ = ["MetricLog", "drop_lines_after"]


class MetricLog:
    """Appends lines to `workdir`/metrics.jsonl and scalars to `workdir`/tensorboard, from process 0 alone; with workdir
    None nothing is written.

    Opening it at step `start` takes back what an interrupted run had written after that step, in both. OSError, naming
    the file, where a line cannot be written.
    """

    def __init__(self, workdir: str | os.PathLike[str] | None, start: int) -> None:
        self._path: pathlib.Path | None = None
        if workdir is None or jax.process_index() != 0:
            return
        folder = pathlib.Path(workdir)
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        drop_lines_after(self._path, start)
        # Unbuffered: a line is in the file when `write` returns, and one that did not fit is not tried again.
        self._file = self._path.open("ab", buffering=0)
        # The suffix keeps two runs begun within a second apart: the file is named after the second.
        self._board = SummaryWriter(
            str(folder / "tensorboard"), purge_step=start + 1, filename_suffix=f".{start}.{os.getpid()}"
        )

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """One line {"step": step, **scalars}; a number that is not finite becomes null."""
        if self._path is None:
            return
        finite = {name: float(x) if math.isfinite(x) else None for name, x in scalars.items()}
        line = (json.dumps({"step": step, **finite}) + "\n").encode()
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        for name, x in scalars.items():
            self._board.add_scalar(name, float(x), step)

    def close(self) -> None:
        """Flushes and closes both."""
        if self._path is not None:
            self._file.close()
            self._board.close()

    def __enter__(self) -> "MetricLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def drop_lines_after(path: str | os.PathLike[str], step: int) -> None:
    """Rewrites a file of JSON lines, in one atomic move, without those after `step` and those that a kill cut short."""
    path = pathlib.Path(path)
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= step]
    if kept != lines:
        with written_atomically(path) as file:
            file.write("".join(kept).encode())


def _step_of(line: str) -> float:
    """The step of a line, infinite for one that is not an object with a step."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf
