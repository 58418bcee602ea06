"""The numbers of a run: one JSON object a line in `metrics.jsonl`, and the same in `tensorboard/`."""

import contextlib
import errno
import json
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import jax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from diffuse_jax._files import written_atomically

__all__ = ["MetricLog", "drop_lines_after"]


class MetricLog:
    """Appends lines to `workdir`/metrics.jsonl and scalars to `workdir`/tensorboard, from process 0 alone; with workdir
    None nothing is written.

    Opening it at step `start` takes back what an interrupted run had written after that step, in both. OSError, naming
    the file or folder, where a line cannot be written.
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
        self._board = folder / "tensorboard"
        with _naming(self._board):
            self._board.mkdir(exist_ok=True)
            # Written from here, for SummaryWriter's thread ends where the disk is full, and whoever writes then waits
            # for ever. The suffix keeps two runs begun within a second apart: the file is named after the second.
            self._events = EventsWriter(str(self._board / "events"), f".{start}.{os.getpid()}")
            self._write_event(start + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """One line {"step": step, **scalars}; a number that is not finite becomes null."""
        if self._path is None:
            return
        finite = {name: float(x) if math.isfinite(x) else None for name, x in scalars.items()}
        line = (json.dumps({"step": step, **finite}) + "\n").encode()
        with _naming(self._path):
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with _naming(self._board):
            for name, x in scalars.items():
                self._write_event(step, summary=scalar(name, float(x)))
            self._events.flush()

    def _write_event(self, step: int, **content: Any) -> None:
        self._events.write_event(Event(wall_time=time.time(), step=step, **content))

    def close(self) -> None:
        """Closes both."""
        if self._path is not None:
            self._file.close()
            with _naming(self._board):
                self._events.close()

    def __enter__(self) -> "MetricLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def drop_lines_after(path: str | os.PathLike[str], step: int) -> None:
    """Rewrites a file of JSON lines, in one atomic move, without those after `step` and what a kill cut short: lines
    that do not end, or are not JSON. JSON of another kind stays."""
    path = pathlib.Path(path)
    if not path.exists():
        return
    content = path.read_bytes()  # of which a torn end need not be text
    kept = b"".join(line for line in content.splitlines(keepends=True) if line.endswith(b"\n") and _stays(line, step))
    if kept != content:
        with written_atomically(path) as file:
            file.write(kept)


def _stays(line: bytes, step: int) -> bool:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return False
    number = fields.get("step") if isinstance(fields, dict) else None
    return not isinstance(number, int | float) or number <= step


@contextlib.contextmanager
def _naming(path: pathlib.Path) -> Iterator[None]:
    """An OSError says where."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
