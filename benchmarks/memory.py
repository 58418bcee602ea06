"""What a training step keeps, predicted from shapes and held against the compiler: python benchmarks/memory.py

    temporary    gradient + B·activations      B rows, everything in float32
    arguments    state = 4·P                   the parameters, P bytes, their average and Adam's two moments

Activations are what the backward pass keeps of the forward one, read off the derivative as JAX traces it, of CIFAR-10
networks at full width; the compiler's are those of its own report on one training step on one CPU. XLA fuses what is
cheap and computes it again in place of keeping it, so that the prediction is an upper bound. Exits with 1 where the
compiler wants more than is predicted, or less than two thirds of it.
"""

import argparse
import collections
import json
import math
import os
import sys
from typing import Any

NETWORKS = {"62 M": "cifar10_ve_ncsnpp_continuous", "107 M": "cifar10_ve_ncsnpp_deep_continuous"}
MIB = 2**20
_PROBE = 7  # a batch whose length no other axis has


def experiment_of(name: str, remat: bool) -> Any:
    """A published experiment, without reading its data."""
    from diffuse_jax.config import DataInfo, build, override, read

    config = override(read(name), [f"--config.model.remat={remat}"])
    return build(config, DataInfo((32, 32, 3), 256))


def kept(experiment: Any) -> dict[int, float]:
    """The bytes that the backward pass keeps of one row, by the side of the images that they belong to, 1 for vectors.

    With rematerialization these are what enters each block; one block's own come on top while it is gone back through.
    """
    import jax
    import numpy as np

    from diffuse_jax.training import step_draws

    def backward(params: Any, batch: Any) -> Any:
        draws = step_draws(jax.random.key(0), jax.numpy.int32(0), _PROBE)
        return jax.vjp(lambda p: experiment.method.updates[0].loss(p, {}, batch, draws).each.mean(), params)[1]

    batch = {"x": jax.ShapeDtypeStruct((_PROBE, *experiment.data.shape), np.uint8)}
    sides: dict[int, float] = collections.defaultdict(float)
    for leaf in jax.tree.leaves(jax.eval_shape(backward, experiment.params, batch)):
        if leaf.shape[:1] == (_PROBE,) and not jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            sides[_side(leaf.shape)] += leaf.size * leaf.dtype.itemsize / _PROBE
    return dict(sorted(sides.items(), reverse=True))


def _side(shape: tuple[int, ...]) -> int:
    """Of images, also padded ones, of groups of their channels, and of their pixels as one axis, also beside heads."""
    if len(shape) < 3:
        return 1
    axes = shape[1:3] if len(shape) > 3 else shape[1:2]
    length = axes[0] if len(axes) > 1 and max(axes) < 2 * min(axes) else math.isqrt(max(axes))
    return 2 ** int(math.log2(length))


def compiled(experiment: Any, batch_size: int) -> dict[str, float]:
    """The compiler's report on one training step on one device."""
    import jax
    import numpy as np

    from diffuse_jax.training import compile_step, make_mesh

    batch = {"x": jax.ShapeDtypeStruct((1, batch_size, *experiment.data.shape), np.uint8)}
    step = compile_step(experiment.update(), make_mesh(jax.devices()[:1]))
    program = step.lower(jax.eval_shape(experiment.create_state), batch).compile()
    memory = program.memory_analysis()
    return {
        "arguments": memory.argument_size_in_bytes,
        "donated": memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "flops": program.cost_analysis()["flops"],
    }


def measured(label: str, name: str, remat: bool, batches: list[int]) -> dict[str, Any]:
    """The prediction for a network and, at each of the batches, the compiler's report beside it."""
    import jax

    experiment = experiment_of(name, remat)
    size = sum(4 * leaf.size for leaf in jax.tree.leaves(experiment.params))
    sides = kept(experiment)
    rows = []
    for batch in batches:
        found = compiled(experiment, batch)
        rows.append(found | {"batch": batch, "predicted": size + batch * sum(sides.values())})
    return {"network": label, "experiment": name, "remat": remat, "parameters": size, "kept": sides, "compiled": rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="*", default=[4, 8], help="batches at which the 62 M is compiled")
    parser.add_argument("--out", help="a JSON file for the figures")
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    found = [
        measured(label, name, remat, args.batches if label == "62 M" and not remat else [])
        for label, name in NETWORKS.items()
        for remat in (False, True)
    ]
    sides = sorted({side for row in found for side in row["kept"]}, reverse=True)
    print("| network | rematerialized | parameters | state | kept of a row | of", *(f"{side}² |" for side in sides))
    for row in found:
        sizes = [row["parameters"], 4 * row["parameters"]]
        kept_mib = [f"{row['kept'].get(side, 0) / MIB:.1f}" for side in sides]
        cells = [*(f"{size / MIB:.0f}" for size in sizes), f"{sum(row['kept'].values()) / MIB:.1f}", *kept_mib]
        print(f"| {row['network']} | {row['remat']} |", " | ".join(cells), "|")
    failed = False
    for row in found:
        for one in row["compiled"]:
            share = one["temporary"] / one["predicted"]
            failed |= not 2 / 3 <= share <= 1
            predicted, temporary = (f"{one[name] / MIB:.0f} MiB" for name in ("predicted", "temporary"))
            print(
                f"{row['network']} at batch {one['batch']}: predicted {predicted}, compiled {temporary} ({share:.2f})"
            )
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=2)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
