"""The progress bar of everything that takes long."""

import sys
from typing import Any

from tqdm import tqdm

__all__ = ["progress_bar"]


def progress_bar(**options: Any) -> tqdm:
    """A tqdm bar on stderr: live on a terminal, a line every ten seconds in a file."""
    every = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(mininterval=every, maxinterval=every, dynamic_ncols=True, **options)
