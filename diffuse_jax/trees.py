"""One decorator: a frozen dataclass that is also a JAX pytree."""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

from jax.tree_util import GetAttrKey, register_pytree_with_keys

__all__ = ["pytree", "static"]

T = TypeVar("T")


def static(**kwargs: Any) -> Any:
    """A dataclass field that is part of the tree's structure: compared by value and never traced."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static))
def pytree(cls: type[T]) -> type[T]:
    """Makes `cls` a frozen dataclass whose fields are leaves or subtrees, except those marked `static()`.

    Not by `jax.tree_util.register_dataclass`: of jax 0.10.2 two types of equal static fields are then of equal
    structure, and a function that was compiled for one may be called for the other (VP's program for a sub-VP).
    """
    made = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(made)  # type: ignore[arg-type]
    data = [field.name for field in fields if not field.metadata.get("static")]
    static_names = [field.name for field in fields if field.metadata.get("static")]
    keys = [GetAttrKey(name) for name in data]

    def structure(tree: T) -> tuple[Any, ...]:
        return tuple(getattr(tree, name) for name in static_names)

    def flatten(tree: T) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(tree, name) for name in data), structure(tree)

    def flatten_with_keys(tree: T) -> tuple[tuple[tuple[GetAttrKey, Any], ...], tuple[Any, ...]]:
        return tuple((key, getattr(tree, key.name)) for key in keys), structure(tree)

    def unflatten(values: tuple[Any, ...], children: Any) -> T:
        return made(**dict(zip(data, children, strict=True)), **dict(zip(static_names, values, strict=True)))

    register_pytree_with_keys(made, flatten_with_keys, unflatten, flatten)
    return made


@pytree
class Static:
    """A value bound to a function that a compilation depends on: compared by value, and never traced."""

    value: Any = static()
