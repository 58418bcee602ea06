"""What figures were taken on, for the head of a benchmark's table."""

import os
import platform

import jax


def this_machine() -> str:
    return f"{jax.devices()[0].device_kind}, {platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__}"
