"""What the fields of a file may be: whatever is read from JSON is held against a table of kinds where it is read, so
that a wrong value is one line that names the file and the field, and nowhere else an exception of its own.
"""

import math
import reprlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

__all__ = ["FLAG", "GROUP", "ROW", "TEXT", "Kind", "check_fields", "integer", "number", "optional", "row"]

_LARGEST = 2**31 - 1  # of an integer that JAX can hold


class Kind(NamedTuple):
    """What a field may be: in words that follow "must be", and as a test of a value."""

    words: str
    fits: Callable[[Any], bool]


TEXT = Kind("a text", lambda value: isinstance(value, str))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
GROUP = Kind("an object of named fields", lambda value: isinstance(value, Mapping))
#: A list, or the tuple that it becomes here.
ROW = Kind("a list", lambda value: isinstance(value, (list, tuple)))


def integer(least: int = -_LARGEST, most: int = _LARGEST) -> Kind:
    """An integer from `least` to `most`."""
    bounds = "" if least == -_LARGEST else f" of at least {least}"
    bounds = bounds if most == _LARGEST else f" from {least} to {most}"
    return Kind(f"an integer{bounds}", lambda value: type(value) is int and least <= value <= most)


def number(above: float = -math.inf, *, least: float = -math.inf, infinite: bool = False) -> Kind:
    """A number above `above` and of at least `least`; finite, but for `infinite`."""
    bounds = [f"above {above:g}"] * (above > -math.inf) + [f"at least {least:g}"] * (least > -math.inf)

    def fits(value: Any) -> bool:
        if type(value) not in (int, float) or math.isnan(value):
            return False
        return value > above and value >= least and (infinite or abs(value) < math.inf)

    return Kind(" ".join([f"a {'' if infinite else 'finite '}number", *bounds]), fits)


def optional(kind: Kind) -> Kind:
    """That kind, or nothing: JSON's null."""
    return Kind(f"{kind.words}, or null", lambda value: value is None or kind.fits(value))


def row(of: Kind, lengths: Collection[int] = ()) -> Kind:
    """A list of one kind, perhaps of one of some lengths."""
    count = f"{' or '.join(map(str, lengths))} entries, " if lengths else ""
    return Kind(
        f"a list of {count}each {of.words}",
        lambda value: ROW.fits(value) and (not lengths or len(value) in lengths) and all(map(of.fits, value)),
    )


def check_fields(
    given: Any,
    kinds: Mapping[str, Kind],
    where: str,
    error: type[ValueError],
    wanted: Collection[str] = (),
) -> None:
    """Raises `error`, with one line that begins with `where`, unless `given` has named fields, the `wanted` ones among
    them, and each that is in `kinds` is of its kind. Other fields are not looked at."""
    if not GROUP.fits(given):
        raise error(f"{where} is {reprlib.repr(given)}, and must be {GROUP.words}")
    if missing := [name for name in wanted if name not in given]:
        raise error(f"{where} lacks {', '.join(missing)}")
    for name, kind in kinds.items():
        if name in given and not kind.fits(given[name]):
            raise error(f"{where}: {name} is {reprlib.repr(given[name])}, and must be {kind.words}")
