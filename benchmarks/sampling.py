"""What a solver costs beside its network: python benchmarks/sampling.py --net digits

    digits    the network of the digits experiment, batch 64: PC-1000, Heun-18 and DDIM-50
    ncsnpp    NCSN++ for CIFAR-10 at full width (62 M parameters), batch 4: PC-20, Heun-20 and DDIM-20

Parameters are random: time does not depend on them. For each solver the time of `sample`, compiled, over the number of
evaluations times that of one compiled evaluation of the network. Pairs of the two are interleaved, so that both see the
machine as it is; the ratio is the median of the pairs'. The single evaluations of a pair run one after the other, each
waited for, `--calls` of them or as many as the solver makes, whichever is less. Exits with 1 above 1.03.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from machine import this_machine

from diffuse_jax import solvers, times
from diffuse_jax.config import DataInfo, build, read
from diffuse_jax.sampling import count_evaluations, prior_sample, sample, sample_keys, solve
from diffuse_jax.training import make_mesh, make_state

ALLOWED = 1.03
PC = solvers.predictor_corrector(solvers.reverse_diffusion(), solvers.langevin())


class Net(NamedTuple):
    """An experiment, the data of it, and with how many samples, pairs and steps of which solvers it is measured."""

    experiment: str
    data: DataInfo
    batch: int
    pairs: int
    methods: dict[str, tuple[solvers.Solver, int]]


NETS = {
    "digits": Net(
        "digits",
        DataInfo((8, 8, 1), 17),
        64,
        10,
        {"PC-1000": (PC, 1000), "Heun-18": (solvers.heun(), 18), "DDIM-50": (solvers.ddim(), 50)},
    ),
    "ncsnpp": Net(
        "cifar10_ve_ncsnpp_continuous",
        DataInfo((32, 32, 3), 256),
        4,
        4,
        {"PC-20": (PC, 20), "Heun-20": (solvers.heun(), 20), "DDIM-20": (solvers.ddim(), 20)},
    ),
}


def seconds(run: Callable[[], Any], times: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(times):
        jax.block_until_ready(run())
    return time.perf_counter() - start


def measured(net: Net, names: list[str], batch: int, pairs: int, most_calls: int) -> dict[str, Any]:
    """Of each solver: its evaluations, the milliseconds of one, and the ratios of all pairs with their median."""
    experiment = build(read(net.experiment), net.data)
    denoise = experiment.denoiser(make_state(experiment.create_state, make_mesh()).params)
    keys = sample_keys(0, batch)
    t = jnp.asarray(0.5)
    x = prior_sample(keys, denoise) / denoise.sde.prior_std() * denoise.sde.sigma(t)
    evaluate = jax.jit(lambda denoise, x, t: denoise.raw(x, t))
    draw = jax.jit(sample)
    found: dict[str, Any] = {}
    for name in names:
        solver, steps = net.methods[name]
        grid = times.uniform(experiment.sde, steps)
        memory = jax.eval_shape(lambda solver=solver, grid=grid: solve(keys, denoise, solver, grid)).memory
        evaluations = int(count_evaluations(solver, grid, memory))
        calls = min(most_calls, evaluations)
        once = lambda: evaluate(denoise, x, t)  # noqa: E731
        whole = lambda solver=solver, grid=grid: draw(keys, denoise, solver, grid)  # noqa: E731
        seconds(once)
        seconds(whole)
        ratios, each = [], []
        for pair in range(pairs):
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
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=NETS, default="digits")
    parser.add_argument("--solvers", nargs="+", help="by the names above; all of the net's where not given")
    parser.add_argument("--batch", type=int, help="the net's own where not given")
    parser.add_argument("--pairs", type=int, help="the net's own where not given")
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--out", help="a JSON file for every pair's ratio; what else it holds is kept")
    args = parser.parse_args()
    net = NETS[args.net]
    batch = args.batch or net.batch
    found = measured(net, args.solvers or list(net.methods), batch, args.pairs or net.pairs, args.calls)
    device = this_machine()
    print(f"{args.net}, batch {batch}, {device}\n")
    print("| network | solver | evaluations | one evaluation | time / (evaluations × one) |\n|---|---|---|---|---|")
    for name, row in found.items():
        print(f"| {args.net} | {name} | {row['evaluations']} | {row['network_ms']:.1f} ms | {row['ratio']:.3f} |")
    if args.out:
        path = pathlib.Path(args.out)
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        earlier = content.get(args.net, {}).get("methods", {})
        content[args.net] = {"device": device, "batch": batch, "methods": {**earlier, **found}}
        path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return int(any(row["ratio"] > ALLOWED for row in found.values()))


if __name__ == "__main__":
    sys.exit(main())
