"""Images and seconds from nothing to good digits: python benchmarks/time_to_quality.py

Trains each recipe and at some steps draws 1,000 samples from the averaged parameters, as `diffuse-jax sample` would.
Good is what `diffuse_jax.evaluation.digits_report` finds of them when all three marks hold:

    Fréchet ratio to the real digits        at most 1.2
    a support vector machine is confident   of at least 90 %
    nearer to a real digit than the 1st percentile of real neighbours        at most 1 %: no copies

Seconds are those of the steps alone and, with compilation, those from the experiment file on; reading the quality is
not counted, and nothing is compiled ahead. Exits with 1 where the default recipe is not good at its end.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

RATIO, CONFIDENT, COPIES = 1.2, 0.9, 0.01
SAMPLES = 1000

_PLAIN = (
    "--config.parameterization.name=noise",
    "--config.loss.weight=sigma2",
    "--config.loss.times=uniform",
)
_CONSTANT = ("--config.optimizer.decay=none",)
_ANCESTRAL = (
    "--config.sampling.solver=ancestral",
    "--config.sampling.steps=200",
    "--config.sampling.eta=None",
)
#: What differs from the experiment `digits`, and the steps after which the quality is read.
RECIPES: dict[str, tuple[Sequence[str], Sequence[int]]] = {
    "the default": ((), (3000,)),
    "the default, seed 1": (("--config.seed=1",), (3000,)),
    "in 2,000 steps": (("--config.training.steps=2000",), (2000,)),
    "at a constant rate": (_CONSTANT, (2000, 3000)),
    "the plain loss on noise, at a constant rate, and ancestral": ((*_PLAIN, *_CONSTANT, *_ANCESTRAL), (3000,)),
}


def trained(experiment: Any, dataset: Any, at: Sequence[int], began: float) -> Iterator[tuple[int, float, float, Any]]:
    """(step, seconds of the steps, seconds since `began`, averaged parameters) at the steps `at`; the consumer's own
    time is not counted."""
    import jax

    from diffuse_jax.data import Batches, prefetch, stack
    from diffuse_jax.training import compile_step, global_batch, make_mesh, make_state, state_sharding

    config, mesh = experiment.config, make_mesh()
    state = make_state(experiment.create_state, mesh)
    batches = Batches(dataset.train, config.training.batch_size, config.seed)
    together = config.training.steps_per_call
    compiled: Any = compile_step(experiment.update(), mesh, state_sharding(mesh, state))
    step = compiled.lower(state, global_batch(mesh, stack(batches, 0, together), scanned=True)).compile()
    jax.block_until_ready(state)
    before, seconds = time.perf_counter() - began, 0.0
    clock = time.perf_counter()
    for index, batch in prefetch(batches, 0, max(at), count=together):
        state, metrics = step(state, global_batch(mesh, batch, scanned=True))
        jax.block_until_ready(metrics)  # never far ahead of the device, as in `fit`
        if index + together in at:
            jax.block_until_ready(state)
            seconds += time.perf_counter() - clock
            yield index + together, seconds, before + seconds, state.ema
            clock = time.perf_counter()


def measured(overrides: Sequence[str], at: Sequence[int]) -> list[dict[str, Any]]:
    """The quality of one recipe at each of the steps, with the images and the seconds it took."""
    began = time.perf_counter()
    from diffuse_jax.cli.common import sampler, to_data
    from diffuse_jax.config import build, describe, load_data, read
    from diffuse_jax.evaluation import digits_report
    from diffuse_jax.training import make_mesh

    config = read("digits", overrides)
    dataset = load_data(config)
    experiment = build(config, describe(config, dataset))
    draw = sampler(experiment, make_mesh())
    rows = []
    for step, seconds, compiled, average in trained(experiment, dataset, at, began):
        clock = time.perf_counter()
        drawn = draw(experiment.denoiser(average), seed=0, n=SAMPLES)
        sampling = time.perf_counter() - clock
        report = digits_report(to_data(experiment, drawn.x))
        rows.append(
            {
                "step": step,
                "images": step * config.training.batch_size,
                "training_s": seconds,
                "with_compilation_s": compiled,
                "sampling_s": sampling,
                "evaluations": float(drawn.evaluations.mean()),
                **report,
                "good": good(report),
            }
        )
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def good(report: dict[str, Any]) -> bool:
    """Whether all three marks hold."""
    near_enough = report["frechet_ratio"] <= RATIO and report["confident"] >= CONFIDENT
    return near_enough and report["nearer_than_1_percent"] <= COPIES


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """The recipes as a table, one line a reading."""
    lines = [
        "| recipe | images | training | with compilation | evaluations | ratio | confident | copies | classes | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in found.items():
        for row in rows:
            shares = [100 * share for share in row["class_shares"]]
            lines.append(
                f"| {name} | {row['images']:,} | {row['training_s']:.0f} s | {row['with_compilation_s']:.0f} s | "
                f"{row['evaluations']:.0f} | {row['frechet_ratio']:.2f} | {100 * row['confident']:.1f} % | "
                f"{100 * row['nearer_than_1_percent']:.1f} % | {min(shares):.1f}–{max(shares):.1f} % | "
                f"{'good' if row['good'] else ''} |"
            )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", action="append", choices=RECIPES, help="only these; the others stay as in --out")
    parser.add_argument("--out", help="a JSON file for the figures")
    args = parser.parse_args()
    import jax
    from machine import this_machine

    jax.config.update("jax_enable_compilation_cache", False)
    known: dict[str, Any] = {}
    if args.recipe and args.out and os.path.exists(args.out):
        with open(args.out, encoding="utf-8") as file:
            known = json.load(file)["recipes"]
    device = this_machine()
    measure = {name: measured(*RECIPES[name]) for name in args.recipe or RECIPES}
    found = {name: rows for name in RECIPES if (rows := measure.get(name, known.get(name))) is not None}
    print(f"{device}\n\n{table(found)}\n")
    for name, rows in found.items():
        first = next((row for row in rows if row["good"]), None)
        said = f"{first['images']:,} images, {first['training_s']:.0f} s" if first else "not good at any step read"
        print(f"{name}: {said}")
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump({"device": device, "samples": SAMPLES, "recipes": found}, file, indent=2)
            file.write("\n")
    default = found.get(next(iter(RECIPES)))
    return int(default is not None and not default[-1]["good"])


if __name__ == "__main__":
    sys.exit(main())
