"""The layers of docs/design.md: a module imports from its own layer and from lower ones, and has a name of its own."""

import ast
import collections
import functools
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "diffuse_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
ROW = re.compile(r"^\| (\d) \w+ \| (`.+) \| ", re.MULTILINE)
#: Modules that begin with _ serve every layer; they may import numerics.
HELPERS = 0


@functools.cache
def layers() -> dict[str, int]:
    """The layer of each room, as the table of docs/design.md has it."""
    rows = ROW.findall((ROOT / "docs" / "design.md").read_text(encoding="utf-8"))
    assert [int(number) for number, _ in rows] == [1, 2, 3]
    return {room: int(number) for number, rooms in rows for room in re.findall(r"`(\w+)/?`", rooms)}


def room(file: pathlib.Path) -> str:
    """The folder or module directly below the package."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def parsed(file: pathlib.Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imported(file: pathlib.Path) -> set[str]:
    """The full names of all modules that a file imports, in functions too, and of what it imports from them."""
    names: set[str] = set()
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def of(layer: int) -> list[pathlib.Path]:
    """The files of a layer; the package's own __init__ and __main__ are above all."""
    return [file for file in FILES if layers().get(room(file), HELPERS) == layer and not room(file).startswith("__")]


def test_every_room_of_the_package_has_a_layer() -> None:
    rooms = {room(file) for file in FILES}
    assert {name for name in rooms if not name.startswith("_")} == layers().keys()


@pytest.mark.parametrize("layer", [HELPERS, 1, 2])
def test_imports_point_to_no_higher_layer(layer: int) -> None:
    higher = {name for name, number in layers().items() if number > max(layer, 1)}
    for file in of(layer):
        rooms = {name.split(".")[1] for name in imported(file) if name.startswith("diffuse_jax.")}
        assert not rooms & higher, f"{file.relative_to(ROOT)} imports {sorted(rooms & higher)}"


def test_numerics_know_arrays_alone_and_no_network() -> None:
    """Of other packages jax, numpy and diffrax, and Flax in networks; and they do not print."""
    allowed = {"diffuse_jax", "jax", "numpy", "diffrax", *sys.stdlib_module_names}
    for file in of(1):
        found, own = imported(file), room(file) == "nets"
        others = {name.partition(".")[0] for name in found} - allowed - ({"flax"} if own else set())
        assert not others, f"{file.relative_to(ROOT)} imports {sorted(others)}"
        assert own or not any(name.startswith("diffuse_jax.nets") for name in found), f"{file} imports networks"
        names = {node.id for node in ast.walk(parsed(file)) if isinstance(node, ast.Name)}
        assert "print" not in names, f"{file.relative_to(ROOT)} prints"


def test_no_two_modules_have_one_name() -> None:
    counted = collections.Counter(file.name for file in FILES if not file.name.startswith("__"))
    assert [name for name, count in counted.items() if count > 1] == []
