"""What a network in bfloat16 does to samples: python benchmarks/sampling_precision.py runs/digits

The same samples (seed, keys, noise) of a run on digits are drawn three times by DDIM-50 and by ancestral-200: as
`config.sampling.dtype` float32, as bfloat16, and in float32 again in chunks of another size, which XLA rounds
differently. Printed are the root mean square and the largest difference of pixels in [-1, 1] from the first, the share
of images that come out as the same 17 grey levels, and the Fréchet ratio to the real digits of all three. A CPU
emulates bfloat16: this tells of its effect and nothing of its speed.
"""

import argparse
import json
import sys
from typing import Any

import numpy as np
from machine import this_machine

from diffuse_jax.cli.common import sampler, to_data
from diffuse_jax.config import Experiment, build, override
from diffuse_jax.config.workdir import read_run, restore
from diffuse_jax.evaluation import digits_report
from diffuse_jax.training import make_mesh

METHODS = {"DDIM-50": ("ddim", 50), "ancestral-200": ("ancestral", 200)}
CHUNKS = (250, 50)
KINDS = {
    "float32": ("float32", CHUNKS[0]),
    f"float32, chunks of {CHUNKS[1]}": ("float32", CHUNKS[1]),
    "bfloat16": ("bfloat16", CHUNKS[0]),
}


def drawn(experiment: Experiment, params: Any, num: int, seed: int) -> np.ndarray:
    return sampler(experiment, make_mesh())(experiment.denoiser(params), seed=seed, n=num).x


def compared(experiment: Experiment, x: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """A set of samples beside the reference's, in the model's range and as images."""
    images, others = (to_data(experiment, part) for part in (x, reference))
    levels, other_levels = (np.round(part / (255 / 16)) for part in (images, others))
    return {
        "rms": float(np.sqrt(np.mean(np.square(x - reference, dtype=np.float64)))),
        "largest": float(np.abs(x - reference).max()),
        "same_images": float((levels == other_levels).all(axis=(1, 2, 3)).mean()),
        "frechet_ratio": digits_report(images)["frechet_ratio"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir")
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="a JSON file for the figures")
    args = parser.parse_args()
    config, data = read_run(args.workdir)
    params, _, step = restore(build(config, data), args.workdir)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for method, (solver, steps) in METHODS.items():
        sets = {}
        for kind, (dtype, chunk) in KINDS.items():
            asked = override(config, [])
            fields = {"solver": solver, "steps": steps, "order": None, "eta": None, "dtype": dtype, "batch_size": chunk}
            asked.sampling.update(fields)
            experiment = build(asked, data)
            sets[kind] = drawn(experiment, params, args.num, args.seed)
            print(f"{method}, {kind}: drawn", file=sys.stderr, flush=True)
        found[method] = {kind: compared(experiment, x, sets["float32"]) for kind, x in sets.items()}
    device = this_machine()
    print(f"step {step}, {args.num} samples, {device}\n")
    print("| solver | network | rms difference | largest | same images | Fréchet ratio |\n|---|---|---|---|---|---|")
    for method, rows in found.items():
        for kind, row in rows.items():
            numbers = f"{row['rms']:.1e} | {row['largest']:.1e} | {row['same_images']:.1%} | {row['frechet_ratio']:.3f}"
            print(f"| {method} | {kind} | {numbers} |")
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            facts = {"device": device, "step": step, "num": args.num, "seed": args.seed, "grid": config.sampling.grid}
            json.dump({**facts, "methods": found}, file, indent=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
