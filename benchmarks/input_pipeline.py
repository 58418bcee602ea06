"""How many images a second the input pipeline delivers: python benchmarks/input_pipeline.py

Batches as training reads them, `data.prefetch` over `data.Batches`, each put on the device as training does, of

    digits     1,617 images 8×8×1 in memory, batch 64, 10 steps a call
    toy2d      50,000 points in the plane in memory, batch 512, 50 steps a call
    arrays     50,000 images 32×32×3 in memory, batch 128
    png        a folder of 4,000 PNGs of 32×32×3, batch 128
    prepared   as many images as array records of TFDS, batch 128

with nothing else to do; and the rows a second that one core makes of them, of which the order of rows is a part. `png`
and `prepared` are measured from files as well ("cold": every row is decoded), which only the first epoch pays where the
set fits into memory. Beside that stands what training consumes: of digits and toy2d on this machine (measured), and of
an H100 at 40 % of its 989 TFLOP/s in bfloat16, three times the forward pass for a step (computed). Exits with 1 where a
source delivers less than this machine or, of images 32×32, an H100 consumes.
"""

import argparse
import contextlib
import io
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from machine import this_machine
from PIL import Image

from diffuse_jax.config import build, load_data, read
from diffuse_jax.data import Batches, Source, from_arrays, load_dataset, prefetch, stack
from diffuse_jax.data.folder import folder
from diffuse_jax.training import compile_step, global_batch, make_mesh, make_state

IMAGES = 4000
SECONDS = 3.0
H100 = 0.4 * 989e12
#: Operations of the network for one image, forward: of NCSN++ for CIFAR-10 (62 M) and of the digits' network.
FORWARD = {"cifar10": 20.4e9, "digits": 0.031e9}


class Case(NamedTuple):
    """A source, read as the training of `consumer` reads it."""

    name: str
    source: Source
    batch_size: int
    steps_per_call: int
    consumer: str


def rate(run: Callable[[int], Any], rows: int) -> float:
    """Rows a second: `run(i)` for i = 0, 1, … handles `rows` of them."""
    run(0)
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        done += 1
        run(done)
    return done * rows / (time.perf_counter() - start)


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """This thread, and those that it starts, on one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


def delivered(case: Case) -> float:
    """Images a second on the device, read ahead by one thread."""
    mesh, calls = make_mesh(), 10**6
    ahead = prefetch(
        Batches(case.source, case.batch_size, 0), 0, calls * case.steps_per_call, count=case.steps_per_call
    )

    def call(_: int) -> None:
        jax.block_until_ready(global_batch(mesh, next(ahead)[1], scanned=True))

    found = rate(call, case.batch_size * case.steps_per_call)
    ahead.close()  # type: ignore[attr-defined]
    return found


def consumed(name: str) -> float:
    """Images a second that training an experiment takes on this machine, its batches being there."""
    config = read(name)
    experiment = build(config)
    mesh, count = make_mesh(), config.training.steps_per_call
    call = compile_step(experiment.update(), mesh)
    batches = Batches(load_data(config).train, config.training.batch_size, 0)
    batch = global_batch(mesh, stack(batches, 0, count), scanned=True)
    state = make_state(experiment.create_state, mesh)

    def step(_: int) -> None:
        nonlocal state
        state, metrics = call(state, batch)
        jax.block_until_ready(metrics)

    return rate(step, count * config.training.batch_size)


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def pictures(n: int) -> np.ndarray:
    """Smooth random images (n, 32, 32, 3), which PNG compresses by as much as photographs of that size."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (n, 8, 8, 3)).repeat(4, axis=1).repeat(4, axis=2)
    return (coarse + rng.integers(-8, 9, (n, 32, 32, 3))).clip(0, 255).astype(np.uint8)


def prepared_folder(root: pathlib.Path, images: np.ndarray) -> str:
    """TFDS array records of the images, as prepared data are."""
    import tensorflow_datasets as tfds

    class InputPipelineImages(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc]
        """Images of 32×32×3 in ten classes."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = {
                "image": tfds.features.Image(shape=(32, 32, 3)),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _: Any) -> Any:
            return {"train": self._generate_examples(images), "test": self._generate_examples(images[:8])}

        def _generate_examples(self, part: Any) -> Iterator[Any]:
            for i, image in enumerate(part):
                yield i, {"image": png(image), "label": i % 10}

    builder = InputPipelineImages(data_dir=root, file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_path)


def cases(root: pathlib.Path) -> Iterator[Case]:
    for name in ("digits", "toy2d"):
        config = read(name)
        yield Case(name, load_data(config).train, config.training.batch_size, config.training.steps_per_call, name)
    images = pictures(IMAGES)
    many = np.random.default_rng(0).integers(0, 256, (50_000, 32, 32, 3), np.uint8)
    yield Case("arrays", from_arrays(many, holdout=0).train, 128, 1, "cifar10")
    (root / "png").mkdir()
    for i, image in enumerate(images):
        (root / "png" / f"{i:05d}.png").write_bytes(png(image))
    prepared = prepared_folder(root / "tfds", images)
    for name, keep in (("", 2**30), (", cold", 0)):
        source = folder(root / "png", image_size=32, holdout=0, cache_bytes=keep).train
        yield Case(f"png{name}", source, 128, 1, "cifar10")
        source = load_dataset(f"tfds:{prepared}").train
        if not keep:
            object.__setattr__(source, "cache_bytes", 0)
        else:
            source[np.arange(len(source))]
        yield Case(f"prepared{name}", source, 128, 1, "cifar10")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="a JSON file for the figures")
    args = parser.parse_args()
    here = {name: consumed(name) for name in ("digits", "toy2d")}
    h100 = {name: H100 / (3 * flops) for name, flops in FORWARD.items()}
    rows = []
    with tempfile.TemporaryDirectory() as root:
        for case in cases(pathlib.Path(root)):
            batches = Batches(case.source, case.batch_size, 0)
            row: dict[str, Any] = {"source": case.name, "batch": case.batch_size, "delivered": delivered(case)}
            with one_core():
                row["order"] = rate(batches.indices, case.batch_size)
                row["rows"] = rate(lambda i, batches=batches: batches[i], case.batch_size)
            rows.append(row | {"consumed_here": here.get(case.consumer), "consumed_h100": h100.get(case.consumer)})
            print(f"{case.name}: {rows[-1]['delivered']:,.0f} images/s", file=sys.stderr, flush=True)
    device = this_machine()
    print(f"{device}\n\n| source | on the device | order, one core | rows, one core | training here | one H100 |")
    print("|---|---|---|---|---|---|")
    text = lambda number: "–" if number is None else f"{number:,.0f}"  # noqa: E731
    for row in rows:
        print(f"| {row['source']}, batch {row['batch']} |", " | ".join(text(v) for v in list(row.values())[2:]), "|")
    if args.out:
        pathlib.Path(args.out).write_text(json.dumps({"device": device, "sources": rows}, indent=2), encoding="utf-8")
    slow = [r["source"] for r in rows if r["delivered"] < (r["consumed_here"] or 0)]
    slow += [r["source"] for r in rows if r["source"] != "digits" and r["delivered"] < (r["consumed_h100"] or 0)]
    return int(bool(slow))


if __name__ == "__main__":
    sys.exit(main())
