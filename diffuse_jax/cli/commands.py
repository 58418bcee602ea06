"""What each command does, by its name."""

import argparse
from collections.abc import Sequence

from diffuse_jax.cli.evaluate import evaluate, likelihood
from diffuse_jax.cli.sample import sample
from diffuse_jax.cli.train import train
from diffuse_jax.config import experiments

__all__ = ["evaluate", "likelihood", "list", "sample", "train"]


def list(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Prints the built-in experiments with the first line of their files."""
    for name, path in experiments().items():
        print(f"{name:32} {path.read_text(encoding='utf-8').splitlines()[0].strip(chr(34))}")
    return 0
