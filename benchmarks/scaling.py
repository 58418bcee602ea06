"""What a data-parallel step computes and sends on 1, 2, 4 and 8 devices: python benchmarks/scaling.py

The digits experiment, batch 64: three steps of training and four samples on each number of devices, held against those
of one device, and what one step sends between devices as its compiled program says. The devices are simulated on a CPU,
where the numbers and the bytes are real and times mean nothing; `--real` uses those that there are, and times a step.
Exits with 1 where numbers differ by more than rounding, or a step sends more than the gradient and the loss.
"""

import argparse
import collections
import functools
import json
import math
import os
import re
import sys
import time
from typing import Any

_SENDS = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all"
_BYTES = {"pred": 1, "u8": 1, "s8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
#: Allowed differences from one device, in float32: of losses relative, of samples in the range [-1, 1].
LOSS, SAMPLE = 1e-5, 1e-3


def collectives(program: str) -> dict[str, tuple[int, int]]:
    """How often a compiled program's text names each operation between devices, and the bytes of their results. An
    operation in a loop stands once."""
    found: dict[str, tuple[int, int]] = collections.defaultdict(lambda: (0, 0))
    for shapes, name in re.findall(rf"= (.+?) ({_SENDS})(?:-start)?\(", program):
        count, size = found[name]
        for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            size += _BYTES[kind] * math.prod(int(n) for n in dims.split(",") if n)
        found[name] = count + 1, size
    return dict(found)


def measured(devices: list[Any], steps: int = 3) -> dict[str, Any]:
    """Losses, samples and what is sent on these devices."""
    import jax
    import numpy as np

    from diffuse_jax import solvers, times
    from diffuse_jax.config import build, load_data, read
    from diffuse_jax.evaluation import Sampler
    from diffuse_jax.sampling import last_mean
    from diffuse_jax.training import compile_step, global_batch, make_mesh, replicated, train_step

    config = read("digits")
    experiment, rows = build(config), load_data(config).train
    mesh = make_mesh(devices)
    update = functools.partial(
        train_step, loss=experiment.loss, optimizer=experiment.optimizer, ema=experiment.ema, key=experiment.key
    )
    state = jax.jit(experiment.create_state, out_shardings=replicated(mesh))()
    batches = [global_batch(mesh, {"x": rows[np.arange(64) + 64 * i]["x"][None]}, scanned=True) for i in range(steps)]
    step = compile_step(update, mesh).lower(state, batches[0]).compile()
    losses, began = [], time.perf_counter()
    for i, batch in enumerate(batches):
        if i == 1:
            began = time.perf_counter()
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"][0]))
    grid = times.uniform(experiment.sde, 10)
    draw = Sampler(solvers.ddim(), grid, last_mean, mesh=mesh, batch_size=8)
    return {
        "devices": len(devices),
        "losses": losses,
        "samples": draw(experiment.denoiser(state.params), seed=0, n=4).x.tolist(),
        "sent": collectives(step.as_text()),
        "gradient_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state.params)),
        "step_ms": 1e3 * (time.perf_counter() - began) / (steps - 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true", help="the devices of this machine")
    parser.add_argument("--out", help="a JSON file for the figures")
    args = parser.parse_args()
    if not args.real:
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    import jax
    import numpy as np

    counts = [n for n in (1, 2, 4, 8) if n <= jax.device_count()]
    found = [measured(jax.devices()[:n]) for n in counts]
    one, failed = found[0], False
    print(f"{jax.devices()[0].device_kind}, {'real' if args.real else 'simulated'} devices, jax {jax.__version__}\n")
    print("| devices | loss, largest relative difference | samples, largest difference | sent in a step |")
    print("|---|---|---|---|")
    for row in found:
        loss = float(np.max(np.abs(np.divide(row["losses"], one["losses"]) - 1)))
        sample = float(np.max(np.abs(np.subtract(row["samples"], one["samples"]))))
        row |= {"loss_difference": loss, "sample_difference": sample}
        allowed = {} if row["devices"] == 1 else {"all-reduce": row["gradient_bytes"] + 4}
        bytes_sent = {name: size for name, (_, size) in row["sent"].items()}
        failed |= loss > LOSS or sample > SAMPLE or bytes_sent != allowed
        sent = ", ".join(f"{count} {name} of {size:,} bytes" for name, (count, size) in row["sent"].items())
        print(f"| {row['devices']} | {loss:.1e} | {sample:.1e} | {sent or 'nothing'} |")
    print(f"\nThe gradient has {one['gradient_bytes']:,} bytes, the loss 4.")
    if args.real:
        print("Steps: " + ", ".join(f"{row['devices']} devices {row['step_ms']:.1f} ms" for row in found))
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump([{k: v for k, v in row.items() if k != "samples"} for row in found], file, indent=2)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
