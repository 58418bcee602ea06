"""What a solver costs beside its network: python benchmarks/sampling.py

For the network of the digits experiment (random parameters; time does not depend on them) at batch 64, and for each of
PC-1000, Heun-18 and DDIM-50: the time of `sample`, compiled, over the number of evaluations times that of one compiled
evaluation of the network. Pairs of the two are interleaved, so that both see the machine as it is; the ratio is the
median of the pairs'. The single evaluations of a pair run one after the other, each waited for, `--calls` of them or as
many as the solver makes, whichever is less. Exits with 1 above 1.03.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffuse_jax import solvers, times
from diffuse_jax.config import build, read
from diffuse_jax.sampling import count_evaluations, sample, sample_keys, solve

ALLOWED = 1.03
METHODS: dict[str, tuple[solvers.Solver, int]] = {
    "PC-1000": (solvers.predictor_corrector(solvers.reverse_diffusion(), solvers.langevin()), 1000),
    "Heun-18": (solvers.heun(), 18),
    "DDIM-50": (solvers.ddim(), 50),
}


def seconds(run: Callable[[], Any], times: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(times):
        jax.block_until_ready(run())
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--out", help="a JSON file for every pair's ratio")
    args = parser.parse_args()
    experiment = build(read("digits"))
    denoise = experiment.denoiser(jax.jit(experiment.create_state)().params)
    keys = sample_keys(0, 0, args.batch)
    x = jax.random.normal(jax.random.key(0), (args.batch, *experiment.data.shape))
    evaluate = jax.jit(lambda denoise, x, t: denoise.raw(x, t))
    draw = jax.jit(sample)
    found: dict[str, Any] = {}
    for name, (solver, steps) in METHODS.items():
        grid = times.uniform(experiment.sde, steps)
        memory = jax.eval_shape(lambda solver=solver, grid=grid: solve(keys, denoise, solver, grid)).memory
        evaluations = int(count_evaluations(solver, grid, memory))
        calls = min(args.calls, evaluations)
        once = lambda: evaluate(denoise, x, jnp.asarray(0.5))  # noqa: E731
        whole = lambda solver=solver, grid=grid: draw(keys, denoise, solver, grid)  # noqa: E731
        seconds(once)
        seconds(whole)
        ratios, each = [], []
        for pair in range(args.pairs):
            # Half of the single evaluations on each side of the solve, so that a drift of the machine cancels.
            before = seconds(once, calls - calls // 2)
            took = seconds(whole)
            one = (before + seconds(once, calls // 2)) / calls
            ratios.append(took / (evaluations * one))
            each.append(one)
            print(f"{name} pair {pair + 1}: {took:.2f} s, ratio {ratios[-1]:.3f}", file=sys.stderr, flush=True)
        found[name] = {
            "evaluations": evaluations,
            "network_ms": 1e3 * statistics.median(each),
            "ratio": statistics.median(ratios),
            "ratios": ratios,
        }
    device = f"{jax.devices()[0].device_kind}, {platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__}"
    print(f"batch {args.batch}, {device}\n")
    print("| solver | evaluations | one evaluation | time / (evaluations × one evaluation) |\n|---|---|---|---|")
    for name, row in found.items():
        print(f"| {name} | {row['evaluations']} | {row['network_ms']:.2f} ms | {row['ratio']:.3f} |")
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump({"device": device, "batch": args.batch, "methods": found}, file, indent=2)
    return int(any(row["ratio"] > ALLOWED for row in found.values()))


if __name__ == "__main__":
    sys.exit(main())
