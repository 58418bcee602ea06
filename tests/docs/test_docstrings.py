"""The docstrings of the public interface explain every argument, and what is returned."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import flax.linen as nn
import pytest

import diffuse_jax

#: The parts of the package; what begins with an underscore is not public.
PARTS = [part.name for part in pkgutil.iter_modules(diffuse_jax.__path__) if not part.name.startswith("_")]


def modules(part: str) -> Iterator[ModuleType]:
    """A part of the package and the modules in it, however deep."""
    module = importlib.import_module(f"diffuse_jax.{part}")
    yield module
    for inner in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{module.__name__}."):
        yield importlib.import_module(inner.name)


def parameters(function: Callable[..., Any]) -> list[str]:
    module = inspect.isclass(function) and issubclass(function, nn.Module)
    unnamed = {"self", *(("parent", "name") if module else ())}  # the latter Flax gives to every module
    return [name for name in inspect.signature(function).parameters if name not in unnamed]


def public(module: ModuleType) -> dict[str, Callable[..., Any]]:
    """Our functions and classes in the module's `__all__`, and the public methods of the classes, by name."""
    found = {}
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        plain = inspect.unwrap(value) if callable(value) else value
        if not (inspect.isfunction(plain) or inspect.isclass(plain)) or not plain.__module__.startswith("diffuse_jax"):
            continue
        if inspect.isclass(plain):
            if issubclass(plain, BaseException):  # a message is all that it takes
                continue
            functions = {f"{name}.{key}": member for key, member in vars(plain).items() if inspect.isfunction(member)}
            # Of these a field's default is none of the class's own.
            own = {key: function for key, function in functions.items() if function.__qualname__ == key}
            found |= {key: function for key, function in own.items() if "._" not in key}
        found[name] = plain
    return found


def unexplained(function: Callable[..., Any]) -> list[str]:
    """What the docstring's sections leave out: names of arguments, and "Returns" where there is something. One that
    refers to another, as in "As `Kernel.interval`.", leaves out nothing."""
    docstring = inspect.getdoc(function) or ""
    if re.fullmatch(r"As `[\w.]+`\.", docstring):
        return []
    _, _, sections = docstring.partition("Args:\n")
    missing = [name for name in parameters(function) if not re.search(rf"^    \**{name}: \S", sections, re.MULTILINE)]
    returns = inspect.isfunction(function) and inspect.signature(function).return_annotation is not None
    # The API pages take what is before a colon there for a type.
    return missing + ["Returns"] * (returns and not re.search(r"\nReturns:\n    [^:\n]+(\n|$)", sections))


#: Whose public functions have one or two arguments.
FEW = ("trees",)


@pytest.mark.parametrize("part", PARTS)
def test_docstrings_name_every_argument_of_more_than_two_and_what_is_returned(part):
    functions = [item for module in modules(part) for item in public(module).items()]
    many = {f"{function.__module__}.{name}": function for name, function in functions if len(parameters(function)) > 2}
    assert many or part in FEW, f"diffuse_jax.{part} has nothing public with more than two arguments"
    missing = {name: names for name, function in many.items() if (names := unexplained(function))}
    assert not missing, f"docstrings of diffuse_jax.{part} leave out {missing}"


def test_an_argument_that_is_not_named_is_found():
    def documented(x: int, y: int, z: int) -> int:
        """Adds.

        Args:
            x: The first, and y: the second.
            z: The third.
        """
        return x + y + z

    assert unexplained(documented) == ["y", "Returns"]
