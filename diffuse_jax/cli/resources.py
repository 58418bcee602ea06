"""What a command needs of memory and of the disk, held against what there is before it begins."""

import math
import os
import pathlib
import shutil
import tempfile
from typing import Any

import jax
from jax.sharding import Mesh

from diffuse_jax._memory import check_memory
from diffuse_jax.checkpoints import Checkpoints
from diffuse_jax.config import ConfigError, Experiment
from diffuse_jax.training import state_sharding

__all__ = ["check_disk", "check_file", "check_samples", "check_training", "check_writable", "device_bytes"]


def check_file(name: str | os.PathLike[str]) -> pathlib.Path:
    """The path of a file that can be written: ConfigError for what exists and is no file, as a folder is, and for what
    would lie in a file."""
    path = pathlib.Path(name)
    if above := [folder for folder in path.parents if folder.is_file()]:
        raise ConfigError(f"{path} would lie in {above[0]}, which is a file: give another name")
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path} is {'a folder' if path.is_dir() else 'no regular file'}: give the name of a file")
    return path


def check_writable(folder: pathlib.Path) -> None:
    """ConfigError where no file can be written in a folder, or the folder cannot be made; known before an hour is spent
    on what would go there. Nothing is left behind."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
    if not there.is_dir():
        raise ConfigError(f"{there} is no folder, and {folder} must be one: move it away")
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".writable.") as file:
            file.write(bytes(4096))
    except OSError as error:
        raise ConfigError(f"the folder {folder} cannot be written to: {error.strerror}") from error


def check_disk(experiment: Experiment, kept: Checkpoints) -> None:
    """ConfigError where the disk has no room for the checkpoints to come.

    One more than is kept must fit, for an old one is removed when the new one is whole; what is there already, of a run
    that goes on, has its room. Of `keep_every` only what `keep` holds is counted: those may be moved away meanwhile.
    """
    c, there = experiment.config.training, kept.steps()
    saves = math.ceil((c.steps - (there[-1] if there else 0)) / c.checkpoint_every)
    old = min(len(there), c.keep)
    more = min(old + saves, c.keep + 1) - old
    state = experiment.state_shapes
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(kept.directory).free
    if free < more * size:
        raise ConfigError(
            f"the disk of {kept.directory} has {free / 2**20:.1f} MiB free, and checkpoints need "
            f"{more * size / 2**20:.1f} MiB more ({more} of {size / 2**20:.1f} MiB): free some, or give a smaller "
            "config.training.keep or another --workdir"
        )


def check_training(experiment: Experiment, mesh: Mesh) -> None:
    """ConfigError where this machine's memory cannot hold this process's share of the batches of a call, nor, on a CPU,
    the state."""
    c, row = experiment.config.training, math.prod(experiment.data.shape)
    # On their way they are bytes of images, or float32; one batch at a time becomes float32.
    stored = 1 if experiment.data.levels else 4
    batches = c.batch_size * row * (c.steps_per_call * stored + 4) // jax.process_count()
    _check(f"config.training.batch_size={c.batch_size} with steps_per_call={c.steps_per_call}", batches)
    if mesh.devices.flat[0].platform == "cpu":
        state = experiment.state_shapes
        whole = device_bytes(state, state_sharding(mesh, state)) * jax.local_device_count()
        _check(f"config.model.name={experiment.config.model.name!r}, whose state is on every device,", whole)
    check_samples(experiment, experiment.config.sampling.num, "config.sampling.num")


def check_samples(experiment: Experiment, n: int, what: str) -> None:
    """Checks that memory can hold n samples, and a chunk of them.

    Args:
        experiment: The experiment.
        n: The number of samples.
        what: The option or field that says so, which the error names.

    Raises:
        ConfigError: Where it cannot.
    """
    row, batch_size = 4 * math.prod(experiment.data.shape), experiment.config.sampling.batch_size
    _check(f"config.sampling.batch_size={batch_size}", min(n, batch_size) * row)
    _check(f"{what}={n}", 2 * n * row)  # in chunks, and joined


def device_bytes(tree: Any, sharding: Any) -> int:
    """What one device holds of a tree."""
    counts = jax.tree.map(lambda leaf, placed: math.prod(placed.shard_shape(leaf.shape)), tree, sharding)
    sizes = jax.tree.map(lambda leaf, count: count * leaf.dtype.itemsize, tree, counts)
    return sum(jax.tree.leaves(sizes))


def _check(what: str, needed: int) -> None:
    try:
        check_memory(what, needed)
    except ValueError as error:
        raise ConfigError(str(error)) from error
