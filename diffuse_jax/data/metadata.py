"""What a folder says of its images: `metadata.jsonl`, as data sets of images have it, and captions beside the images.

Every line of a metadata.jsonl is a JSON object. It names its image as `file_name`, relative to the folder of the
metadata.jsonl, and may give `text` (its caption), `image_file_name` (the image that it is conditioned on, relative to
the same folder) and `label` (an integer). The caption of `a.png` may also stand in `a.txt` beside it.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffuse_jax.data.sources import DataError
from diffuse_jax.data.tokens import count_tokens

__all__ = ["METADATA", "Line", "captions", "condition_files", "read_metadata", "stated_labels"]

METADATA = "metadata.jsonl"


class Line(NamedTuple):
    """A line of a metadata.jsonl.

    Args:
        file: The file.
        number: The number of the line, from 1 on.
        says: The JSON object.
    """

    file: Path
    number: int
    says: dict[str, Any]

    @property
    def place(self) -> str:
        return f"{self.file}, line {self.number}"

    def path(self, name: str, example: str) -> Path:
        """The path that it gives as `name`; DataError where it gives none."""
        given = self.says.get(name)
        if not isinstance(given, str) or not given:
            raise DataError(f'{self.place} has no {name}: give a path relative to its folder, as "{name}": "{example}"')
        return Path(os.path.normpath(self.file.parent / given))


def read_metadata(files: Iterable[Path], images: Sequence[Path]) -> tuple[list[Path], dict[Path, Line]]:
    """The `images` that are rows, and the lines of the metadata `files` by the image that they name.

    An image that others are conditioned on is no row, unless a line names it as one. Raises DataError, with the file
    and the line, for what is no JSON object, names no image, or names one again.
    """
    found = {Path(os.path.normpath(image)): image for image in images}
    lines: dict[Path, Line] = {}
    behind = set()
    for line in (line for file in files for line in _lines(file)):
        image = found.get(line.path("file_name", "a.png"))
        if image is None:
            raise DataError(f"{line.place} names {line.says['file_name']!r}: {line.file.parent} has no such image")
        if image in lines:
            raise DataError(f"{line.place} names {image} again, after {lines[image].place}: leave one of them")
        lines[image] = line
        if "image_file_name" in line.says:
            behind.add(line.path("image_file_name", "conditions/a.png"))
    return [image for path, image in found.items() if image in lines or path not in behind], lines


def _lines(file: Path) -> Iterator[Line]:
    for number, text in enumerate(_read(file).splitlines(), 1):
        if not text.strip():
            continue
        try:
            says = json.loads(text.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            says = None
        if not isinstance(says, dict):
            raise DataError(
                f'{file}, line {number} is no JSON object: write {{"file_name": "a.png", "text": "a cat"}} or the like'
            )
        yield Line(file, number, says)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}): make it readable or move it away") from error


def stated_labels(rows: Sequence[Path], lines: Mapping[Path, Line]) -> list[int] | None:
    """The label of each row, or None where no line gives one. Raises DataError where only some of the rows have one,
    and for what is no integer from 0 on."""
    given = {image: line.says["label"] for image, line in lines.items() if "label" in line.says}
    if not given:
        return None
    if missing := [image for image in rows if image not in given]:
        raise DataError(f"{missing[0]} has no label in a {METADATA}, and others have: give every image one or none")
    for image in rows:
        label = given[image]
        if type(label) is not int or not 0 <= label < 2**31:
            raise DataError(
                f"{lines[image].place} has the label {label!r}: give an integer, 0 or more and below 2**31, or no "
                "label in any line for classes by folder"
            )
    return [given[image] for image in rows]


def condition_files(root: Path, rows: Sequence[Path], lines: Mapping[Path, Line]) -> list[Path]:
    """The image that each row is conditioned on.

    Args:
        root: The folder of the data, which messages name.
        rows: The images that are rows.
        lines: The lines of the metadata by the image that they name, of `read_metadata`.

    Returns:
        The path of an image for each row.

    Raises:
        DataError: Where a line names none or none that is there, and where a row has no line.
    """
    example = '{"file_name": "a.png", "image_file_name": "conditions/a.png"}'
    found = []
    for image in rows:
        if image not in lines:
            what = image if lines else f"the folder {root}"
            raise DataError(f"{what} has no image to be conditioned on (images=True): write {example} in a {METADATA}")
        path = lines[image].path("image_file_name", "conditions/a.png")
        if not path.is_file():
            line = lines[image]
            raise DataError(
                f"{line.place} names {line.says['image_file_name']!r}: {line.file.parent} has no such file, write its "
                "path relative to that folder"
            )
        found.append(path)
    return found


def captions(rows: Sequence[Path], lines: Mapping[Path, Line], tokens: int) -> list[str]:
    """The caption of each row: the text of its line, or else what stands in NAME.txt beside it.

    Args:
        rows: The images that are rows.
        lines: The lines of the metadata by the image that they name, of `read_metadata`.
        tokens: The most tokens that a caption may take.

    Returns:
        One text for each row.

    Raises:
        DataError: Where one is missing, is no text, or takes more tokens.
    """
    texts = [_caption(image, lines.get(image)) for image in rows]
    counts = [count_tokens(text) for text in texts]
    if long := [i for i, count in enumerate(counts) if count > tokens]:
        raise DataError(
            f"{rows[long[0]]} has a caption of {counts[long[0]]} tokens, more than tokens={tokens}: shorten it, or "
            f"give tokens={max(counts)}, which all captions fit"
        )
    return texts


def _caption(image: Path, line: Line | None) -> str:
    if line is not None and isinstance(line.says.get("text"), str):
        return line.says["text"]
    beside = image.with_suffix(".txt")
    if (line is None or "text" not in line.says) and beside.is_file():
        try:
            return _read(beside).decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise DataError(f"{beside} is no UTF-8 text: save it as UTF-8") from error
    if line is not None:
        raise DataError(f'{line.place} has no text, the caption of its image: write "text": "a cat"')
    raise DataError(
        f"{image} has no caption (tokens=N): write it to {beside.name} beside it, or as text in a {METADATA}"
    )
