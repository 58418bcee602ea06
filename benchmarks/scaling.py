"""What a training step computes, keeps and sends on 1, 2, 4 and 8 devices: python benchmarks/scaling.py

The digits experiment, batch 64: three steps of training and four samples on each number of devices, and on 8 with the
state split over all of them, held against those of one device; and what one step keeps on a device and sends between
them as its compiled program says. The devices are simulated on a CPU, where the numbers and the bytes are real and
times mean nothing; `--real` uses those that there are, and times a step. Exits with 1 where numbers differ by more than
rounding, a data-parallel step sends more than the gradient and the loss, or a split state is gathered more than once.

`--paper` computes what the steps of CIFAR-10 networks would send on 8 and 64 devices and, from the bandwidths of data
sheets, how long that takes at best.
"""

import argparse
import collections
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
    operation in a loop stands once. A GPU's all-gather-start gives its operands before its results."""
    found: dict[str, tuple[int, int]] = collections.defaultdict(lambda: (0, 0))
    for shapes, name, begun in re.findall(rf"= (.+?) ({_SENDS})(-start)?\(", program):
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        if begun and name == "all-gather":
            arrays = arrays[len(arrays) // 2 :]
        count, size = found[name]
        size += sum(_BYTES[kind] * math.prod(int(n) for n in dims.split(",") if n) for kind, dims in arrays)
        found[name] = count + 1, size
    return dict(found)


#: Bytes a second that a device sends while it receives as many. NVLink: NVIDIA H100 data sheet, 900 GB/s both ways.
#: InfiniBand: NVIDIA DGX H100 data sheet, a 400 Gb/s ConnectX-7 for each GPU. ICI: Google Cloud's page on TPU v5p,
#: 1200 GB/s both ways.
BANDWIDTHS = {"NVLink, H100": 450e9, "InfiniBand NDR, DGX H100": 50e9, "ICI, TPU v5p": 600e9}
_PUBLISHED = {"62 M": "cifar10_ve_ncsnpp_continuous", "107 M": "cifar10_ve_ncsnpp_deep_continuous"}


def on_paper(devices: int, whole: int, split: int) -> dict[str, int]:
    """The bytes that each device sends in a step, by rings, of `whole` bytes of parameters that every device has and
    `split` ones that are split over all: an all-reduce takes 2·(n − 1)/n of its bytes, an all-gather and a
    reduce-scatter (n − 1)/n each."""
    part = (devices - 1) / devices
    return {
        "data parallel": round(2 * part * (whole + split)),
        "split": round(2 * part * whole + (part + part) * split),
    }


def paper() -> list[dict[str, Any]]:
    import jax

    from diffuse_jax.config import DataInfo, build, read
    from diffuse_jax.training import split_over

    rows = []
    for label, name in _PUBLISHED.items():
        leaves = jax.tree.leaves(build(read(name), DataInfo((32, 32, 3), 256)).params)
        for devices in (8, 64):
            size = {True: 0, False: 0}
            for leaf in leaves:
                size[any(split_over(leaf.shape, devices))] += 4 * leaf.size
            state = {"data parallel": 4 * sum(size.values()), "split": 4 * (size[False] + size[True] // devices)}
            for way, sent in on_paper(devices, size[False], size[True]).items():
                times = {link: 1e3 * sent / speed for link, speed in BANDWIDTHS.items()}
                rows.append(
                    {"network": label, "devices": devices, "way": way, "state": state[way], "sent": sent} | times
                )
    return rows


def measured(devices: list[Any], fsdp: int = 1, steps: int = 3) -> dict[str, Any]:
    """Losses, samples and what is kept and sent on these devices."""
    import jax
    import numpy as np

    from diffuse_jax import solvers, times
    from diffuse_jax.config import build, load_data, read
    from diffuse_jax.evaluation import Sampler
    from diffuse_jax.methods import solver_draw
    from diffuse_jax.training import compile_step, global_batch, make_mesh, make_state, state_sharding

    config = read("digits")
    experiment, rows = build(config), load_data(config).train
    mesh = make_mesh(devices, fsdp)
    state = make_state(experiment.create_state, mesh)
    sharding = state_sharding(mesh, state)
    batches = [global_batch(mesh, {"x": rows[np.arange(64) + 64 * i]["x"][None]}, scanned=True) for i in range(steps)]
    step = compile_step(experiment.update(mesh), mesh, sharding).lower(state, batches[0]).compile()
    memory = step.memory_analysis()
    placed = zip(jax.tree.leaves(state.params), jax.tree.leaves(sharding.params), strict=True)
    split = sum(leaf.nbytes for leaf, place in placed if any(place.spec))
    losses, began = [], time.perf_counter()
    for i, batch in enumerate(batches):
        if i == 1:
            began = time.perf_counter()
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"][0]))
    grid = times.uniform(experiment.sde, 10)
    draw = Sampler(solver_draw(experiment.sde, solvers.ddim(), grid), mesh=mesh, batch_size=8)
    return {
        "devices": len(devices),
        "fsdp": fsdp,
        "losses": losses,
        "samples": draw(experiment.denoiser(state.params), seed=0, n=4).x.tolist(),
        "sent": collectives(step.as_text()),
        "kept": {"arguments": memory.argument_size_in_bytes, "temporary": memory.temp_size_in_bytes},
        "split_bytes": split,
        "gradient_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state.params)),
        "step_ms": 1e3 * (time.perf_counter() - began) / (steps - 1),
    }


def expected(row: dict[str, Any]) -> bool:
    """Whether a step sends what it should, in however many pieces: the gradient and the loss, or what is split once,
    and its gradient summed (which a CPU does by an all-reduce, and accelerators by a reduce-scatter)."""
    sent = {name: size for name, (_, size) in row["sent"].items()}
    if row["fsdp"] == 1:
        return sent == ({} if row["devices"] == 1 else {"all-reduce": row["gradient_bytes"] + 4})
    return sent.pop("all-gather", 0) == row["split_bytes"] and set(sent) <= {"all-reduce", "reduce-scatter"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true", help="the devices of this machine")
    parser.add_argument("--paper", action="store_true", help="on paper, for larger networks")
    parser.add_argument("--out", help="a JSON file for the figures")
    args = parser.parse_args()
    if not args.real:
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    import jax
    import numpy as np

    if args.paper:
        rows = paper()
        print(
            "| network | devices | way | state of a device, MiB | sent by a device, MB | " + ", ms | ".join(BANDWIDTHS)
        )
        for row in rows:
            times = " | ".join(f"{row[link]:.2f}" for link in BANDWIDTHS)
            head = " | ".join(str(row[name]) for name in ("network", "devices", "way"))
            print(f"| {head} | {row['state'] / 2**20:.0f} | {row['sent'] / 1e6:.0f} | {times} |")
        return 0
    counts = [n for n in (1, 2, 4, 8) if n <= jax.device_count()]
    found = [measured(jax.devices()[:n]) for n in counts]
    if counts[-1] > 1:
        found.append(measured(jax.devices()[: counts[-1]], fsdp=counts[-1]))
    one, failed = found[0], False
    print(f"{jax.devices()[0].device_kind}, {'real' if args.real else 'simulated'} devices, jax {jax.__version__}\n")
    print("| devices | loss, largest relative difference | samples, largest difference | kept, MB | sent in a step |")
    print("|---|---|---|---|---|")
    for row in found:
        loss = float(np.max(np.abs(np.divide(row["losses"], one["losses"]) - 1)))
        sample = float(np.max(np.abs(np.subtract(row["samples"], one["samples"]))))
        row |= {"loss_difference": loss, "sample_difference": sample}
        failed |= loss > LOSS or sample > SAMPLE or not expected(row)
        sent = ", ".join(f"{count} {name} of {size:,} bytes" for name, (count, size) in sorted(row["sent"].items()))
        kept = "{arguments:.1f} + {temporary:.1f}".format(**{name: size / 1e6 for name, size in row["kept"].items()})
        devices = f"{row['devices']}" + (", state split" if row["fsdp"] > 1 else "")
        print(f"| {devices} | {loss:.1e} | {sample:.1e} | {kept} | {sent or 'nothing'} |")
    print(f"\nThe gradient has {one['gradient_bytes']:,} bytes, the loss 4.")
    if args.real:
        print("Steps: " + ", ".join(f"{row['devices']} devices {row['step_ms']:.1f} ms" for row in found))
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump([{k: v for k, v in row.items() if k != "samples"} for row in found], file, indent=2)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
