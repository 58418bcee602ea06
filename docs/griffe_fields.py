"""For the API pages: classes that become dataclasses by other means than `@dataclass` show their fields as arguments.

griffe reads the source and knows `dataclasses.dataclass` and `dataclasses.field` by name. `@pytree` with `static()`,
Flax's `nn.Module` and `NamedTuple` do the same by other names, so they are given those names before griffe looks.
"""

from typing import Any

import griffe

_BASES = {"nn.Module", "NamedTuple"}


class Fields(griffe.Extension):
    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        decorated = any(str(decorator.value) == "pytree" for decorator in cls.decorators)
        if not decorated and not _BASES & set(map(str, cls.bases)):
            return
        dataclass = griffe.ExprName("dataclasses.dataclass")
        cls.decorators.append(griffe.Decorator(dataclass, lineno=cls.lineno, endlineno=cls.lineno))
        for member in cls.members.values():
            value = getattr(member, "value", None)
            if isinstance(value, griffe.ExprCall) and str(value.function) == "static":
                value.function = griffe.ExprName("dataclasses.field")
