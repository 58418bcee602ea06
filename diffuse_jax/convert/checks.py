"""Named arrays of another program against the names and shapes that a network there has."""

from collections.abc import Collection, Mapping
from typing import Any

__all__ = ["MOST_LEVELS", "ConversionError", "check_names"]

#: Of noise in a table. Those of other programs have thousands; a number of far more is a slip, and would fill memory.
MOST_LEVELS = 1_000_000


class ConversionError(ValueError):
    """Weights or options of another program that cannot be carried over; the message is one line."""


def check_names(
    expected: Mapping[str, tuple[int, ...]], given: Mapping[str, Any], ignored: Collection[str] = ()
) -> None:
    """Refuses arrays that are not those of a network.

    Args:
        expected: The shape of each array by name.
        given: The arrays by name.
        ignored: Names that may be there besides.

    Raises:
        ConversionError: Lists every missing, unknown and misshapen name, unless `given` has exactly the names and
            shapes of `expected`, and perhaps some of `ignored`; and where a value of `given` is no array.
    """
    others = [f"{name} is a {type(value).__name__}" for name, value in given.items() if not hasattr(value, "shape")]
    if others:
        raise ConversionError(f"each name must have an array, trees being flat already; {', '.join(others)}")
    shapes = {name: tuple(array.shape) for name, array in given.items()}
    problems = {
        "missing": [f"{name} {shape}" for name, shape in expected.items() if name not in shapes],
        "unknown": [f"{name} {shape}" for name, shape in shapes.items() if name not in {*expected, *ignored}],
        "of another shape": [
            f"{name} is {shapes[name]} and must be {shape}"
            for name, shape in expected.items()
            if name in shapes and shapes[name] != tuple(shape)
        ],
    }
    found = [f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names]
    if found:
        raise ConversionError(f"the weights are not those of this network; {'; '.join(found)}")
