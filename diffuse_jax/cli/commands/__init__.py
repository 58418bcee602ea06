"""The commands, a file each: its options, and beside them the function that does it.

Every command line reads all of these files, so none imports JAX, or what imports it, before it runs.
"""

from diffuse_jax.cli.command import Command
from diffuse_jax.cli.commands import evaluate, export, import_, likelihood_, list_, sample, show, train

__all__ = ["COMMANDS"]

#: In the order in which the help lists them.
COMMANDS: dict[str, Command] = {
    "train": train.COMMAND,
    "sample": sample.COMMAND,
    "evaluate": evaluate.COMMAND,
    "likelihood": likelihood_.COMMAND,
    "show": show.COMMAND,
    "import": import_.COMMAND,
    "export": export.COMMAND,
    "list": list_.COMMAND,
}
