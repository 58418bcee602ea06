"""How fast a training step is beside other programs' on the same network: python benchmarks/train_step.py

For each of NCSN++ (CIFAR-10, 62.8 M parameters), DDPM (CIFAR-10) and the digits' network: images a second, the share
of this machine's rate of a large matrix product (float32, or bfloat16 where the program computes in it), memory, and
seconds to start. The programs run as processes of their own (benchmarks/train_programs.py) that take turns of a few
steps, so that all see the machine as it is; a ratio is the median of the turns' ratios, to the last of our programs
that is run (by default the one of five steps a call, which only ours has on a CPU). Peers that are not installed,
or whose checkout is not given, are left out:

    pip install torch diffusers
    git clone https://github.com/yang-song/score_sde && git clone https://github.com/yang-song/score_sde_pytorch
    python benchmarks/train_step.py --score_sde=score_sde --score_sde_pytorch=score_sde_pytorch

On a GPU give the batch and the programs, such as --net=ddpm --batch=128 --programs="diffuse_jax bf16,diffusers
compiled bf16".
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from train_programs import NETS, PROGRAMS

_HERE = os.path.dirname(os.path.abspath(__file__))
_DEFAULT = "diffuse_jax,diffuse_jax by five,score_sde,score_sde_pytorch,diffusers,diffusers channels_last"


class Worker:
    """A process that holds one program, and its first words: what starting it took."""

    def __init__(self, program: str, net: str, batch: int, checkout: str | None, cache: str) -> None:
        command = [sys.executable, os.path.join(_HERE, "train_programs.py"), program, net, str(batch)]
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": os.pathsep.join([os.path.dirname(_HERE), os.environ.get("PYTHONPATH", "")]),
        }
        self.process = subprocess.Popen(
            command + ([checkout] if checkout else []),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.facts = self._answer()

    def _answer(self) -> Any:
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise RuntimeError(f"{' '.join(self.process.args)} ended without an answer: run it alone")  # type: ignore[arg-type]
        return json.loads(line)

    def seconds(self, steps: int) -> float:
        """The median of so many steps."""
        self.process.stdin.write(f"{steps}\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        return statistics.median(self._answer())

    def close(self) -> None:
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.wait()


def matrix_rate(dtype: str) -> float:
    """10⁹ operations a second of a product of two large matrices: what a network could reach at most here."""
    import jax
    import jax.numpy as jnp

    n = 8192 if jax.default_backend() == "gpu" else 2048
    a = jnp.ones((n, n), dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, a))
    best = float("inf")
    for _ in range(8):
        began = time.perf_counter()
        jax.block_until_ready(product(a, a))
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best / 1e9


def measured(net: str, batch: int, programs: dict[str, str | None], turns: int, steps: int) -> list[dict[str, Any]]:
    """One row a program: its facts, images a second, and our speed over its."""
    own = [program for program in programs if program.startswith("diffuse_jax")]
    with tempfile.TemporaryDirectory() as cache:
        workers = {}
        for program, checkout in programs.items():
            workers[program] = Worker(program, net, batch, checkout, cache)
            print(f"{net}: {program} started: {workers[program].facts}", file=sys.stderr, flush=True)
        again = {program: Worker(program, net, batch, None, cache) for program in own}
        for worker in again.values():
            worker.close()
        times: dict[str, list[float]] = {program: [] for program in workers}
        for _ in range(turns):
            for program, worker in workers.items():
                times[program].append(worker.seconds(steps))
        for worker in workers.values():
            worker.close()
    forward = workers[own[-1]].facts["forward_gflop"]
    rows: list[dict[str, Any]] = []
    for program, worker in workers.items():
        ratios = [theirs / ours for ours, theirs in zip(times[own[-1]], times[program], strict=True)]
        step = statistics.median(times[program])
        rows.append(
            {"net": net, "batch": batch, "program": program, **worker.facts}
            | {"step_ms": 1e3 * step, "images_per_second": batch / step, "speed_of_ours": statistics.median(ratios)}
            | {"gflop_per_second": 3 * forward * batch / step, "turns": times[program]}
        )
        if program in again:
            trace, compilation = (again[program].facts[name] for name in ("trace_s", "compile_s"))
            rows[-1] |= {"second_start_s": trace + compilation, "second_compile_s": compilation}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=list(NETS), action="append", help="default: all")
    parser.add_argument("--batch", type=int, help="default: what suits a CPU")
    parser.add_argument("--programs", default=_DEFAULT, help=f"of {', '.join(PROGRAMS)}; default: {_DEFAULT}")
    parser.add_argument("--score_sde", metavar="CHECKOUT")
    parser.add_argument("--score_sde_pytorch", metavar="CHECKOUT")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--steps", type=int, default=3, help="of a turn")
    parser.add_argument("--out", help="a JSON file for the figures")
    args = parser.parse_args()
    checkouts = {"score_sde": args.score_sde, "score_sde_pytorch": args.score_sde_pytorch}
    rows: list[dict[str, Any]] = []
    for net in args.net or NETS:
        programs: dict[str, str | None] = {}
        for program in args.programs.split(","):
            has = checkouts.get(program, "") is not None
            if has and not (program.startswith("diffusers") and NETS[net].diffusers is None):
                programs[program] = os.path.abspath(checkouts[program]) if program in checkouts else None
        rows += measured(net, args.batch or NETS[net].batch, programs, args.turns, args.steps)
    from machine import this_machine

    rates = {dtype: matrix_rate(dtype) for dtype in ("float32", "bfloat16")}
    device = this_machine()
    print(f"{device}; a large matrix product: {rates['float32']:.0f} GFLOP/s in float32\n")
    print(
        "| network, batch | program | images/s | ours is faster by | share of a matrix product | start: init, trace, "
        "compile (s) | memory (MiB) |\n|---|---|---|---|---|---|---|"
    )
    for row in rows:
        share = row["gflop_per_second"] / rates["bfloat16" if "bf16" in row["program"] else "float32"]
        start = ", ".join(f"{row[name]:.1f}" for name in ("init_s", "trace_s", "compile_s") if name in row)
        print(
            f"| {row['net']}, {row['batch']} | {row['program']} | {row['images_per_second']:.2f} | "
            f"{row['speed_of_ours']:.2f} | {share:.0%} | {start} | {row['resident_mib']:.0f} |"
        )
        if "second_start_s" in row:
            print(
                f"| | a second start | | | | trace and compile: {row['second_start_s']:.1f}, of which compile "
                f"{row['second_compile_s']:.1f} | |"
            )
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump({"device": device, "matrix_gflop_per_second": rates, "rows": rows}, file, indent=2)


if __name__ == "__main__":
    main()
