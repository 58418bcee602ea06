"""diffuse-jax import: its options."""

import argparse
from collections.abc import Sequence

from diffuse_jax.cli.command import Command
from diffuse_jax.cli.options import text

__all__ = ["COMMAND"]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from",
        dest="program",
        required=True,
        choices=("score_sde", "diffusers", "edm"),
        help="the program that trained the weights",
    )
    parser.add_argument(
        "--source",
        type=text,
        required=True,
        help="its file: a checkpoint of score_sde (flax or .pth), a state_dict (.pth, .bin) or .safetensors; or the "
        "folder of a diffusers pipeline",
    )
    parser.add_argument(
        "--config",
        type=text,
        help="the network's options: a JSON file of that program, or for score_sde an experiment of diffuse_jax "
        "(default: what the files themselves say)",
    )
    parser.add_argument("--workdir", type=text, required=True, help="the folder of the run that is made")


def _run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    from diffuse_jax.cli.import_export import import_

    return import_(args, overrides)


COMMAND = Command(help="Make a run of weights that score_sde, diffusers or EDM trained.", options=_options, run=_run)
