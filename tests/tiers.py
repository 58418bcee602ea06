"""The two tiers of tests. The first holds every claim once; a proof holds it again, of more processes, solvers, types,
shapes, published experiments or moments of a kill, and runs with `pytest -m proof`.
"""

from collections.abc import Container, Iterable
from typing import Any

import pytest


def proof(*values: Any) -> Any:
    """One set of parameters of a test, which is a proof."""
    return pytest.param(*values, marks=pytest.mark.proof)


def first(values: Iterable[Any], keep: Container[Any]) -> list[Any]:
    """The values of one parameter: those of `keep` are in the first tier, the others are proofs.

    Raises ValueError where none is kept: then nothing of the claim would be in the first tier.
    """
    values = list(values)
    if not any(value in keep for value in values):
        raise ValueError(f"none of {values} is in {keep}: the first tier would not hold the claim")
    return [value if value in keep else proof(value) for value in values]
