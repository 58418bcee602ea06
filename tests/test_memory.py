"""What does not fit into memory is said, and not tried."""

import os
from pathlib import Path

import pytest

from diffuse_jax import _memory
from diffuse_jax._memory import available_memory, check_memory

PHYSICAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(("content", "wanted"), [("1048576\n", 2**20), ("max\n", PHYSICAL), (f"{2**63}\n", PHYSICAL)])
def test_a_containers_limit_counts_where_it_is_lower(
    content: str, wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.max").write_text(content)
    monkeypatch.setattr(_memory, "_LIMITS", (str(tmp_path / "memory.max"), str(tmp_path / "of no such version")))
    assert available_memory() == wanted


def test_more_than_there_is_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "available_memory", lambda: 3 * 2**30)
    check_memory("a batch", 3 * 2**30)
    with pytest.raises(ValueError, match=r"^a batch needs at least 3\.5 TiB, and this machine has 3\.0 GiB$"):
        check_memory("a batch", 7 * 2**39)
    with pytest.raises(ValueError, match=r"1,048,576\.0 EiB"):
        check_memory("a batch", 2**80)
