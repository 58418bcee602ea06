"""Networks of score_sde (Song et al. 2021, arXiv:2011.13456), from its JAX and its PyTorch program, and back.

A published network is named arrays and options. The options give the network here (network_options.py), the network
and the size of its images give every name (parameter_names.py), and the names carry the arrays over: `from_score_sde`
in, `to_score_sde` out.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from diffuse_jax.convert.checks import ConversionError, check_names
from diffuse_jax.convert.network_options import Spelling, flat_options, network_of, options_of, take
from diffuse_jax.convert.parameter_names import Leaf, leaves
from diffuse_jax.nets import DDPM, LinenNet, NCSNpp
from diffuse_jax.nets.layers import sigma_table
from diffuse_jax.nets.ncsn import NCSN, NCSNv2

__all__ = ["from_score_sde", "named_ema", "network_of", "options_of", "score_sde_params", "to_score_sde"]


def _leaves(module: nn.Module, image_shape: tuple[int, ...]) -> list[Leaf]:
    """Of `module` for images (h, w, c)."""
    if type(module) not in (NCSNpp, DDPM, NCSN, NCSNv2):
        raise ConversionError(f"module must be an NCSNpp, DDPM, NCSN or NCSNv2; got {type(module).__name__}")
    try:
        params = jax.eval_shape(lambda key: LinenNet(module).init(key, image_shape), jax.random.key(0))
    except Exception as error:  # Flax has types of its own
        raise ConversionError(f"{type(module).__name__} cannot read images of shape {image_shape}: {error}") from error
    return list(leaves(module, {path: leaf.shape for path, leaf in flatten_dict(params).items()}))


def _spelling(arrays: Mapping[str, Any]) -> tuple[Spelling, str]:
    """Whose names these are, and the prefix that all of them have."""
    spelling: Spelling = "torch" if not any("/" in name for name in arrays) else "flax"
    prefix = "module." if spelling == "torch" else "params/"
    return spelling, prefix if arrays and all(name.startswith(prefix) for name in arrays) else ""


def _check_sigmas(module: Any, sigmas: Any) -> None:
    """Raises ConversionError where a stored table is not the module's but for what bfloat16 rounds off."""
    stored = np.asarray(sigmas, np.float64)
    expected = np.asarray(sigma_table(module.sigma_min, module.sigma_max, module.num_scales), np.float64)
    if stored.shape != expected.shape or not np.allclose(stored, expected, rtol=5e-3, atol=0):
        ends = f"{stored.size} levels from {stored.flat[0]:g} to {stored.flat[-1]:g}" if stored.size else "no levels"
        raise ConversionError(
            f"the stored sigmas are {ends}, but sigma_max {module.sigma_max:g}, sigma_min {module.sigma_min:g} and "
            f"num_scales {module.num_scales} say {expected.size} from {expected[0]:g} to {expected[-1]:g}"
        )


def score_sde_params(module: nn.Module, image_shape: tuple[int, ...], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a network from arrays named by either program.

    Args:
        module: The network.
        image_shape: The shape (h, w, c) of its images.
        arrays: Arrays by the paths of the JAX program joined with "/", perhaps below "params/", or by the keys of a
            PyTorch state_dict, perhaps below "module."; those of any floating type become float32.

    Returns:
        The tree of parameters.

    Raises:
        ConversionError: With every name that is missing, unknown or of another shape, and where a stored table `sigmas`
            is not the module's.
    """
    spelling, prefix = _spelling(arrays)
    table = {}
    for leaf in _leaves(module, image_shape):
        if spelling == "torch":
            table[prefix + leaf.torch] = leaf, leaf.torch_shape
        elif leaf.flax is not None:
            table[prefix + leaf.flax] = leaf, leaf.flax_shape
    sigmas = f"{prefix}sigmas" if spelling == "torch" else ""
    check_names({name: shape for name, (_, shape) in table.items()}, arrays, [sigmas])
    if sigmas in arrays:
        _check_sigmas(module, arrays[sigmas])
    params = {}
    for name, (leaf, _) in table.items():
        if leaf.path is not None:
            array = np.asarray(arrays[name]).astype(np.float32)
            array = array.transpose(leaf.axes) if spelling == "torch" else array.reshape(leaf.shape)
            params[leaf.path] = jnp.asarray(array)
    return unflatten_dict(params)


# The first convolution, of a U-Net or a RefineNet: in PyTorch's list it comes after what embeds the time, if anything.
_FIRST = ("Conv_0/kernel", "begin_conv.weight", *(f"all_modules.{place}.weight" for place in range(4)))


def _channels(arrays: Mapping[str, Any]) -> int:
    """Of the images, as the first convolution has them; 3 where it is not there."""
    spelling, prefix = _spelling(arrays)
    shapes = [np.shape(arrays[prefix + name]) for name in _FIRST if prefix + name in arrays]
    kernel = next((shape for shape in shapes if len(shape) == 4), (3, 3, 3, 3))
    return int(kernel[1 if spelling == "torch" else 2])


def from_score_sde(params: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """The network and variables of a checkpoint of score_sde.

    module.apply(variables, x, t) is the output of the original for x (batch, h, w, c) and its own time argument t
    (batch,): σ for embedding_type "fourier", a step number or an index otherwise.

    Args:
        params: Named arrays as in `score_sde_params`.
        config: The options as in `network_of`, with image_size.

    Returns:
        The network, and its variables with the parameters under "params".

    Raises:
        ConversionError: As those two do.
    """
    module, options = network_of(config, _spelling(params)[0]), flat_options(config)
    size = int(take(options, ["image_size"])["image_size"])
    channels = options.get("num_channels", options.get("channels")) or _channels(params)
    return module, {"params": score_sde_params(module, (size, size, int(channels)), params)}


def to_score_sde(module: nn.Module, params: Mapping[str, Any], image_shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The state_dict, in float32, that the PyTorch program's network with `options_of(module, image_shape)` loads.

    `from_score_sde` reads back the same numbers bit for bit. Layers that PyTorch makes and does not use (those that
    read the time where `conditional` is False) are zero.

    Args:
        module: The network.
        params: Its parameters.
        image_shape: The shape (h, h, c) of its images.

    Returns:
        Arrays by name, in the order of that program.

    Raises:
        ConversionError: As `options_of` does, and where `params` are not those of `module` for images of image_shape.
    """
    options_of(module, image_shape)
    table, flat = _leaves(module, image_shape), flatten_dict(dict(params))
    check_names(
        {"/".join(leaf.path): leaf.shape for leaf in table if leaf.path},
        {"/".join(path): a for path, a in flat.items()},
    )
    net: Any = module
    state = {"sigmas": np.asarray(sigma_table(net.sigma_min, net.sigma_max, net.num_scales), np.float32)}
    for leaf in table:
        array = np.zeros(leaf.shape, np.float32) if leaf.path is None else np.asarray(flat[leaf.path], np.float32)
        state[leaf.torch] = np.ascontiguousarray(array.transpose(np.argsort(leaf.axes)))
    return state


# In a state_dict a bias follows its kernel: names in another order, such as the alphabet's, do not tell whose is what.
_BEFORE = {"bias": "weight", "b": "W"}


def named_ema(model_state: Mapping[str, Any], shadow_params: Sequence[Any]) -> dict[str, Any]:
    """The averaged weights of a PyTorch checkpoint by name.

    The list has no names: it is the trained tensors in the order of the state_dict. The others (`sigmas`, and the
    frequencies `all_modules.0.W` of Fourier features) are taken from `model_state`.

    Args:
        model_state: The checkpoint's `state["model"]`, which must have kept its order.
        shadow_params: Its `state["ema"]["shadow_params"]`.

    Returns:
        The averages by the names of `model_state`.

    Raises:
        ConversionError: Says what was expected, for a list of another length or other shapes, and for names in another
            order.
    """
    prefix = _spelling(model_state)[1]
    untrained = [name for name in (f"{prefix}sigmas", f"{prefix}all_modules.0.W") if name in model_state]
    trained = [name for name in model_state if name not in untrained]
    for before, name in pairwise(["", *trained]):
        stem, _, leaf = name.rpartition(".")
        if leaf in _BEFORE and before != f"{stem}.{_BEFORE[leaf]}":
            raise ConversionError(
                f"model_state must be in the order of its state_dict: {stem}.{_BEFORE[leaf]} just before {name}; "
                f"got {before or 'nothing'} there"
            )
    if len(shadow_params) != len(trained):
        besides = f" (all but {', '.join(untrained)})" if untrained else ""
        raise ConversionError(
            f"shadow_params must be {len(trained)} arrays, one for each trained tensor of model_state{besides}, from "
            f"{trained[0] if trained else 'none'} on; got {len(shadow_params)}"
        )
    averages = dict(zip(trained, shadow_params, strict=True))
    check_names({name: tuple(model_state[name].shape) for name in trained}, averages)
    return {name: averages.get(name, array) for name, array in model_state.items()}
