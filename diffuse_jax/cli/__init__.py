"""The command line: diffuse-jax train | sample | evaluate | likelihood | show | import | export | list."""

import argparse
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

__all__ = ["main"]

_DESCRIPTION = "Train diffusion models and draw from them. One experiment file drives every command."

_EPILOG = """\
A run lives in its --workdir: config.json, checkpoints/, metrics.jsonl, tensorboard/, grids/ and what the other commands
write. The same train command again goes on from the last checkpoint, after a kill too.

Any field of an experiment can be given as --config.section.field=value; `train --dry_run` prints them all.

  diffuse-jax train --config=digits --workdir=runs/digits
  diffuse-jax sample --workdir=runs/digits --num=100 --solver=heun --steps=20
  diffuse-jax evaluate --workdir=runs/digits
  diffuse-jax show --workdir=runs/digits
  diffuse-jax train --config=digits --workdir=runs/mine --config.data.source=path/to/images --config.data.image_size=32
  diffuse-jax import --from=score_sde --source=checkpoint_14.pth --config=cifar10_ve_ncsnpp_continuous --workdir=runs/ve
"""

_COMMANDS = {
    "train": "Train an experiment, or go on with it; ends by drawing a grid of samples.",
    "sample": "Draw samples of a trained run into samples.npz and samples.png, or into numbered files.",
    "evaluate": "Held-out loss, bits/dim and Fréchet distance of a trained run, as a table and evaluation.json.",
    "likelihood": "log p and bits/dim of each held-out image, into likelihood.npz and likelihood.json.",
    "show": "What a run is, how far it is, what files it has, and how to go on.",
    "import": "Make a run of weights that score_sde, diffusers or EDM trained.",
    "export": "Write a run's averaged parameters as safetensors, under the names of score_sde's PyTorch program.",
    "list": "The built-in experiments.",
}

_SOLVERS = """\
solvers: euler_maruyama, reverse_diffusion, ancestral, ddpm (stochastic); ddim, heun, unipc, dpm_solver_multi, adaptive
(probability flow), and the others of docs/solvers.md. A corrector follows a plus: reverse_diffusion+langevin (short:
pc), or +batch_langevin, +annealed_langevin. score_sde:PREDICTOR[+CORRECTOR] is score_sde's own sampler:
euler_maruyama, reverse_diffusion, ancestral or none; langevin or ald.
"""


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} ({self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="diffuse-jax", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=raw, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command", parser_class=_Parser)
    made = {}
    for name, text in _COMMANDS.items():
        epilog = _SOLVERS if name in ("sample", "evaluate") else None
        made[name] = commands.add_parser(
            name, help=text, description=text, epilog=epilog, formatter_class=raw, allow_abbrev=False
        )
    _add_conversions(made["import"], made["export"])
    for name in ("train", "sample", "evaluate", "likelihood", "export"):
        made[name].add_argument(
            "--config",
            help="an experiment: a file, or the name of a built-in one (default: "
            + ("that of the run, digits for a new one)" if name == "train" else "that of the run)"),
        )
        made[name].add_argument("--workdir", help="the folder of the run (default: runs/NAME of --config)")
    for name in ("train", "sample", "evaluate", "likelihood"):
        _add_processes(made[name].add_argument_group("several processes, each given the same command"))
    made["train"].add_argument(
        "--dry_run", action="store_true", help="print the resolved config, parameter count and memory, and stop"
    )
    for name in ("sample", "evaluate", "likelihood", "export"):
        made[name].add_argument(
            "--checkpoint", type=_integer(0), metavar="STEP", help="the step to load (default: the latest)"
        )
    for name in ("sample", "evaluate", "likelihood"):
        made[name].add_argument(
            "--seed", type=_integer(0, 2**32), default=0, help="the seed of what is random (default: 0)"
        )
    for name, least, text in (
        ("sample", 1, "how many samples (default: config.sampling.num)"),
        ("evaluate", 2, "how many samples (default: config.evaluation.num_samples)"),
        ("likelihood", 1, "how many held-out rows (default: all)"),
    ):
        made[name].add_argument("--num", type=_integer(least), metavar="N", help=text)
    for name in ("sample", "evaluate"):
        made[name].add_argument("--solver", help="the solver (default: config.sampling.solver)")
        made[name].add_argument(
            "--steps", type=_integer(1), metavar="N", help="its steps (default: config.sampling.steps)"
        )
    made["sample"].add_argument(
        "--label", type=_integer(0), metavar="K", help="the class to draw, of a run with config.data.labels"
    )
    made["sample"].add_argument(
        "--first", type=_integer(0, 2**31), default=0, metavar="K", help="draw samples K … K + N - 1 (default: 0)"
    )
    made["sample"].add_argument(
        "--format",
        choices=("npz", "png", "shards"),
        default="npz",
        help="npz: all in samples.npz (the default); png: samples/00000000.png, …; shards: an npz a chunk in samples/; "
        "the last two are written as they are drawn, and the same command goes on from what is there",
    )
    made["sample"].add_argument(
        "--trajectory", action="store_true", help="also write trajectory.gif, an animation of the denoising"
    )
    made["show"].add_argument("--workdir", required=True, help="the folder of the run")
    return parser


def _add_processes(group: Any) -> None:
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens (JAX_COORDINATOR_ADDRESS)")
    group.add_argument("--num_processes", metavar="N", help="how many there are (JAX_NUM_PROCESSES)")
    group.add_argument("--process_id", metavar="I", help="which this is, from 0 to N - 1 (JAX_PROCESS_ID)")
    group.add_argument("--distributed", action="store_true", help="let JAX find the three: on SLURM, on a TPU pod")
    group.add_argument(
        "--timeout",
        type=_integer(1),
        default=100,
        metavar="S",
        help="seconds to wait for the others, at the start and for a sign of life (default: 100)",
    )


def _add_conversions(import_: argparse.ArgumentParser, export: argparse.ArgumentParser) -> None:
    import_.add_argument(
        "--from",
        dest="program",
        required=True,
        choices=("score_sde", "diffusers", "edm"),
        help="the program that trained the weights",
    )
    import_.add_argument(
        "--source",
        required=True,
        help="its file: a checkpoint of score_sde (flax or .pth), a state_dict (.pth, .bin) or .safetensors; or the "
        "folder of a diffusers pipeline",
    )
    import_.add_argument(
        "--config",
        help="the network's options: a JSON file of that program, or for score_sde an experiment of diffuse_jax "
        "(default: what the files themselves say)",
    )
    import_.add_argument("--workdir", required=True, help="the folder of the run that is made")
    export.add_argument("--output", required=True, metavar="FILE", help="the .safetensors file that is written")


def _integer(least: int, end: int | None = None) -> Callable[[str], int]:
    """What reads an integer from `least` up to, but without, `end`."""
    wanted = f"an integer of at least {least}" + ("" if end is None else f" and below {end}")

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or number < least or (end is not None and number >= end):
            raise argparse.ArgumentTypeError(f"{text!r} must be {wanted}")
        return number

    return parse


def _joined(overrides: Sequence[str]) -> list[str]:
    """["--config.a.b", "1"] as ["--config.a.b=1"]: both spellings are accepted."""
    joined: list[str] = []
    for argument in overrides:
        if joined and not argument.startswith("--") and joined[-1].startswith("--config.") and "=" not in joined[-1]:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0; 2 for bad input and 1 for a run that diverged, after one line on
    stderr; 130 where it was interrupted."""
    parser = _parser()
    args, overrides = parser.parse_known_args(argv)
    if overrides and args.command == "list":
        parser.error(f"list takes no arguments, not {' '.join(overrides)}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Modules that a config names may lie in the folder one works in; last, so that they shadow no installed one.
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    _keep_compilations()
    from diffuse_jax.cli import commands, distributed

    try:
        if hasattr(args, "coordinator"):
            distributed.start(args)
        with distributed.leave():
            distributed.check_command(args)
            return commands.COMMANDS[args.command](args, _joined(overrides))
    except distributed.BAD_INPUT as error:
        print(f"diffuse-jax: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        if distributed.first():
            print(f"diffuse-jax: error: {error}", file=sys.stderr)
        return 1
    except distributed.Stopped as stop:
        if distributed.first():
            print(f"diffuse-jax: error: {stop}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("diffuse-jax: interrupted", file=sys.stderr)
        return 130


def _keep_compilations() -> None:
    """JAX's compilation cache, in the user's cache folder unless JAX_COMPILATION_CACHE_DIR names another."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(home) / "diffuse_jax"))
