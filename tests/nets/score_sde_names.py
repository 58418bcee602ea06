"""Reads a checkpoint of score_sde's JAX program into our parameters.

That program numbers the modules of each class in the order in which it makes them, and ours are made in the same
order: of the residual blocks that have parameters, the n-th here is the n-th there, and so on. Inside a module the
names correspond one to one.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

# Our module's name -> the start of the original's class name.
CLASSES = {
    r"fourier": "GaussianFourierProjection",
    r"dense_\d": "Dense",
    r".*_conv": "Conv",
    r".*_norm": "GroupNorm",
    r".*_attention(_\d+)?": "AttnBlock",
    r".*_block_\d+": "ResnetBlock",
    r".*_combine": "Combine",
    r"down_\d+_(pyramid|resample)": "Downsample",
    r"up_\d+_(pyramid|resample)": "Upsample",
}
# Our parameter inside its module -> the names that the original may have for it.
INSIDE = {
    "AttnBlock": {"norm": "GroupNorm_0", "query": "NIN_0", "key": "NIN_1", "value": "NIN_2", "out": "NIN_3"},
    "ResnetBlock": {
        "norm_0": "GroupNorm_0",
        "conv_0": "Conv_0",
        "time": "Dense_0",
        "norm_1": "GroupNorm_1",
        "conv_1": "Conv_1",
        "shortcut": "(Conv_2|NIN_0)",
    },
    "Combine": {"conv": "Conv_0"},
    "Downsample": {"conv": "Conv_0", "": "Conv2d_0"},
    "Upsample": {"conv": "Conv_0", "": "Conv2d_0"},
}
LEAVES = {"kernel": "(kernel|weight|W)", "bias": "(bias|b)", "scale": "scale", "frequencies": "W"}


def creation_order(module: nn.Module, shape: tuple[int, ...]) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The paths and shapes of the module's parameters, in the order of their making."""
    paths: dict[tuple[str, ...], tuple[int, ...]] = {}

    def make(key: jax.Array) -> None:
        params = module.init(key, jnp.zeros((1, *shape)), jnp.ones((1,)), train=False)["params"]
        paths.update({path: leaf.shape for path, leaf in flatten_dict(params).items()})

    jax.eval_shape(make, jax.random.key(0))
    return paths


def convert(module: nn.Module, shape: tuple[int, ...], original: Mapping[str, Any]) -> dict[str, Any]:
    """The original's parameters, "Class_n/…/leaf" -> array, as those of our module for samples of `shape`; every one
    is used.
    """
    left = dict(original)
    theirs: dict[str, list[str]] = defaultdict(list)
    for name in sorted({key.split("/")[0] for key in left}, key=lambda name: int(name.rsplit("_", 1)[1])):
        theirs[re.sub(r"(DDPM|BigGAN)?(pp)?_\d+$", "", name)].append(name)

    paths = creation_order(module, shape)
    blocks = {path[-3] for path in paths if path[-2] == "norm_0"}
    numbered: dict[str, list[str]] = defaultdict(list)
    ours = {}
    for path, wanted in paths.items():
        top, *inner, leaf = (part for part in path if part not in ("unet", "embedding"))
        cls = (
            "ResnetBlock" if top in blocks else next(c for pattern, c in CLASSES.items() if re.fullmatch(pattern, top))
        )
        if top not in numbered[cls]:
            numbered[cls].append(top)
        parts = [theirs[cls][numbered[cls].index(top)], INSIDE.get(cls, {}).get("/".join(inner), ""), LEAVES[leaf]]
        (name,) = [key for key in left if re.fullmatch("/".join(filter(None, parts)), key)]
        ours[path] = jnp.asarray(left.pop(name), jnp.float32)
        assert ours[path].shape == wanted, (path, name)
    assert not left, f"parameters without a place: {sorted(left)}"
    return unflatten_dict(ours)
