"""NumPy's files, whose headers are held against the file's own size and against memory before an array is made."""

import math
import os
import zipfile
from collections.abc import Collection
from typing import IO, NamedTuple

import numpy as np

from diffuse_jax.data.sources import CONDITIONS, DataError, require_memory

__all__ = ["read_arrays"]

_KNOWN = tuple(f"{name}{part}" for part in ("", "_test") for name in ("x", *CONDITIONS))


class _Header(NamedTuple):
    """What a file says of an array in it."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_arrays(path: str, names: Collection[str]) -> dict[str, np.ndarray]:
    """Those of `names` that there are in a `.npy` file, whose one array is x, or in a `.npz` file of x and, perhaps,
    label, image, tokens and the same of the test part (x_test, …). DataError where the file is damaged, has no x or
    other arrays, and where the arrays do not fit into memory.
    """
    try:
        headers = _headers(path)
    except Exception as error:  # a damaged file fails in each way that its parts can
        raise _unreadable(path, error) from error
    if "x" not in headers or not set(headers) <= set(_KNOWN):
        raise DataError(
            f"{path} holds the arrays {', '.join(headers) or 'none'}: it needs x, and may have {', '.join(_KNOWN[1:])}"
        )
    wanted = {name: header for name, header in headers.items() if name in names}
    told = ", ".join(f"{name} {header.dtype} {header.shape}" for name, header in wanted.items())
    require_memory(f"{path}, which holds {told},", sum(header.nbytes for header in wanted.values()))
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return {"x": content}
        with content:
            return {name: content[name] for name in wanted}
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> DataError:
    words = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{path} cannot be read as a NumPy file ({words})")


def _headers(path: str) -> dict[str, _Header]:
    with open(path, "rb") as file:
        if file.read(2) != b"PK":  # as zip archives begin
            file.seek(0)
            return {"x": _header(file, "x", os.path.getsize(path))}
    headers = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            with archive.open(info) as member:
                headers[name] = _header(member, name, info.file_size)
    return headers


def _header(file: IO[bytes], name: str, size: int) -> _Header:
    """The header at the start of a file of `size` bytes; ValueError where the array cannot be in what follows it."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    header, left = _Header(shape, dtype), size - file.tell()
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which are not read")
    if header.nbytes > left:
        raise ValueError(f"it is cut short: {name} {dtype} {shape} takes {header.nbytes} bytes, and {left} are there")
    return header
