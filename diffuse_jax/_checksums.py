"""SHA-256 of the files of a folder, kept beside them in the format of the program `sha256sum`."""

import hashlib
import re
from pathlib import Path

from diffuse_jax._files import written_atomically

__all__ = ["CHECKSUMS", "find_damage", "write_checksums"]

CHECKSUMS = "SHA256SUMS"

_LINE = re.compile(r"([0-9a-f]{64})  ([^\n]+)\n")


def write_checksums(folder: Path) -> None:
    """Lists every file under `folder` in its SHA256SUMS, which is on disk on return. OSError where it cannot be."""
    lines = [f"{_digest(folder / name)}  {name}\n" for name in sorted(_files(folder))]
    with written_atomically(folder / CHECKSUMS) as file:
        file.write("".join(lines).encode())


def find_damage(folder: Path) -> str | None:
    """What is not as `write_checksums` found it, in words that begin with the file; None where all of it is.

    Files are read in pieces, so that their size does not matter. One that is new is damage too, for its line may be
    what is lost, unless its name begins with a dot. OSError where a file cannot be read.
    """
    listed = _listed(folder / CHECKSUMS)
    if listed is None:
        return f"{CHECKSUMS} is not as it was written"
    there = _files(folder)
    for name in sorted(listed.keys() ^ there):
        if name in listed:
            return f"{name} is missing"
        if not any(part.startswith(".") for part in name.split("/")):
            return f"{name} is not listed in {CHECKSUMS}"
    return next((f"{name} is not as it was written" for name in listed if _digest(folder / name) != listed[name]), None)


def _listed(path: Path) -> dict[str, str] | None:
    """The digest of each name; None where the file is not of this format."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except UnicodeDecodeError:
        return None
    matches = [_LINE.fullmatch(line) for line in lines]
    return {match[2]: match[1] for match in matches if match} if all(matches) else None


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {CHECKSUMS}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
