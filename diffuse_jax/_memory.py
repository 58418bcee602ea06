"""Whether what is asked for can be held in memory: said in one line before it is made, where making it would end in a
kill by the system.
"""

import os
from pathlib import Path

__all__ = ["available_memory", "check_memory"]

# Where Linux keeps the limit of a container, in either version of its control groups.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def available_memory() -> int:
    """The bytes of memory of this machine, or of the container's limit where that is lower."""
    limits = [_number(Path(file)) for file in _LIMITS]
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *(limit for limit in limits if limit is not None)])


def check_memory(what: str, needed: int) -> None:
    """ValueError in one line, which begins with `what`, where `needed` bytes are more than this machine has."""
    if needed > (there := available_memory()):
        raise ValueError(f"{what} needs at least {_size(needed)}, and this machine has {_size(there)}")


def _number(file: Path) -> int | None:
    """The number in a file; None where there is no such file, or a word in it, as of no limit."""
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _size(count: int) -> str:
    """A number of bytes in the largest unit that leaves at least one of it."""
    power = min(max(count.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    return f"{count / 1024**power:,.{1 if power else 0}f} {_UNITS[power]}"
