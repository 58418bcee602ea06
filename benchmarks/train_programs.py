"""The training steps that benchmarks/train_step.py times, each in a process of its own:

    python benchmarks/train_programs.py PROGRAM NET BATCH [CHECKOUT]

builds the program, makes its first call, prints what that took as one line of JSON, and then makes as many steps as
each line of its input says, or the few more that whole calls are, printing the seconds of a step of each call. All
programs do the same work: uint8 images of the batch on the device, noise, the network with dropout, the squared error,
its gradient clipped by its norm, Adam, the average.

The two programs of score_sde are imported from a checkout; what today's libraries need for that is said in
tests/fixtures/make_score_sde.py.
"""

import functools
import json
import math
import pathlib
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

sys.path[:0] = [str(pathlib.Path(__file__).parents[1] / "tests" / "fixtures")]

#: Makes one call, and returns when it is done: one step, or as many as the fact "steps_a_call" says.
Step = Callable[[], None]
Facts = dict[str, float]


@dataclass(frozen=True)
class Net:
    """A network as the programs name it: our experiment, score_sde's config, what differs from it in the digits'
    network, and diffusers' arguments (None where UNet2DModel has no such network)."""

    experiment: str
    score_sde: str
    batch: int
    changes: dict[str, Any]
    diffusers: dict[str, Any] | None


# Heads None: one head of all channels. The digits' network resamples in its residual blocks ("resnet").
_DDPM = {
    **{"sample_size": 32, "in_channels": 3, "out_channels": 3, "layers_per_block": 2, "dropout": 0.1},
    **{"block_out_channels": (128, 256, 256, 256), "downsample_padding": 0, "attention_head_dim": None},
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    **{"flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6},
}
_DIGITS = _DDPM | {
    **{"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "dropout": 0.0},
    **{"block_out_channels": (32, 64), "norm_num_groups": 8},
    **{"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
    **{"downsample_type": "resnet", "upsample_type": "resnet"},
}
NETS = {
    "ncsnpp": Net("cifar10_ve_ncsnpp_continuous", "ve.cifar10_ncsnpp_continuous", 4, {}, None),
    "ddpm": Net("cifar10_vp_ddpm", "vp.ddpm.cifar10", 8, {}, _DDPM),
    "digits": Net(
        "digits",
        "vp.cifar10_ncsnpp_continuous",
        64,
        {
            "model": {"nf": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (4,), "dropout": 0.0}
            | {"fir": False, "progressive_input": "none", "embedding_type": "positional", "scale_by_sigma": False},
            "data": {"image_size": 8, "num_channels": 1},
        },
        _DIGITS,
    ),
}


def images(net: Net, batch: int) -> np.ndarray:
    digits = net.experiment == "digits"
    shape = (batch, 8, 8, 1) if digits else (batch, 32, 32, 3)
    return np.random.default_rng(0).integers(0, 17 if digits else 256, shape, dtype=np.uint8)


def ours(net: Net, batch: int, overrides: tuple[str, ...] = (), steps: int = 1) -> tuple[Facts, Step]:
    """`steps` of them in a call."""
    import jax

    from diffuse_jax.config import build, override, read
    from diffuse_jax.training import compile_step, global_batch, make_mesh, make_state

    experiment = build(override(read(net.experiment), [f"--config.{text}" for text in overrides]))
    mesh = make_mesh()
    began = time.perf_counter()
    state = jax.block_until_ready(make_state(experiment.create_state, mesh))
    started = time.perf_counter()
    on_device = global_batch(mesh, {"x": np.stack(steps * [images(net, batch)])}, scanned=True)
    traced = compile_step(experiment.update(), mesh).lower(state, on_device)
    lowered = time.perf_counter()
    run = traced.compile()
    facts = {"init_s": started - began, "trace_s": lowered - started, "compile_s": time.perf_counter() - lowered}
    memory = run.memory_analysis()
    facts |= {"parameters": _count(state.params), "temporary_mib": memory.temp_size_in_bytes / 2**20}
    facts |= {"forward_gflop": _forward_gflop(experiment), "steps_a_call": steps}
    return facts, _jax_steps(run, state, on_device)


def _forward_gflop(experiment: Any) -> float:
    """Operations of one evaluation of one image in 10⁹, a multiplication and an addition being two."""
    import jax
    import jax.numpy as jnp

    params = jax.eval_shape(experiment.create_state).params
    image, t = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, *experiment.data.shape), ()))
    lowered = jax.jit(lambda params, x, t: experiment.denoiser(params).raw(x, t)).lower(params, image, t)
    return lowered.cost_analysis()["flops"] / 1e9


def _count(tree: Any) -> int:
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _jax_steps(run: Any, state: Any, batch: Any) -> Step:
    import jax

    def step() -> None:
        nonlocal state
        state, metrics = run(state, batch)
        jax.block_until_ready((state, metrics))

    return step


def score_sde(net: Net, batch: int, checkout: str) -> tuple[Facts, Step]:
    """The JAX program's network and loss. Its optimizer (`flax.optim`) is gone, and optax's is in its place; its loop
    of several steps a call is left out, since on a CPU its convolutions would take fifty times as long; `init_model`
    pops a dictionary as flax no longer does, and the network is made without it."""
    import importlib

    import jax
    import jax.numpy as jnp
    import optax
    from make_score_sde import import_jax

    models = import_jax(checkout)
    losses, sde_lib = importlib.import_module("losses"), importlib.import_module("sde_lib")
    config = _score_sde_config(net, checkout)
    began = time.perf_counter()
    model = models.get_model(config.model.name)(config=config)
    label = jnp.zeros(1, jnp.int32)
    params = model.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, images(net, 1) / 255.0, label)[
        "params"
    ]
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.optim.lr))
    state = jax.block_until_ready((params, params, jax.jit(optimizer.init)(params), jnp.zeros((), jnp.int32)))
    started = time.perf_counter()
    sde = _score_sde_process(config, sde_lib)
    shared = {"train": True, "reduce_mean": config.training.reduce_mean}
    if config.training.continuous:
        loss = losses.get_sde_loss_fn(sde, model, continuous=True, likelihood_weighting=False, **shared)
    else:
        loss = losses.get_ddpm_loss_fn(sde, model, **shared)

    def update(state: Any, batch: jax.Array) -> Any:
        params, average, memory, step = state
        x = batch / 255.0
        x = 2 * x - 1 if config.data.centered else x
        key = jax.random.fold_in(jax.random.key(1), step)
        value, gradient = jax.value_and_grad(lambda p: loss(key, p, {}, {"image": x})[0])(params)
        updates, memory = optimizer.update(gradient, memory, params)
        params = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda a, p: config.model.ema_rate * (a - p) + p, average, params)
        return (params, average, memory, step + 1), value

    state = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), state)
    on_device = jnp.asarray(images(net, batch))
    traced = jax.jit(update, donate_argnums=0).lower(state, on_device)
    lowered = time.perf_counter()
    run = traced.compile()
    facts = {"init_s": started - began, "trace_s": lowered - started, "compile_s": time.perf_counter() - lowered}
    memory = run.memory_analysis().temp_size_in_bytes
    return facts | {"parameters": _count(params), "temporary_mib": memory / 2**20}, _jax_steps(run, state, on_device)


def _score_sde_config(net: Net, checkout: str) -> Any:
    import importlib
    import types

    # The program's folder of configs is no package, and one of that name elsewhere would come before it.
    package = sys.modules["configs"] = types.ModuleType("configs")
    package.__path__ = [f"{checkout}/configs"]
    config = importlib.import_module(f"configs.{net.score_sde}").get_config()
    for section, values in net.changes.items():
        config[section].update(values)
    return config


def _score_sde_process(config: Any, sde_lib: Any) -> Any:
    if config.training.sde == "vesde":
        return sde_lib.VESDE(config.model.sigma_min, config.model.sigma_max, config.model.num_scales)
    return sde_lib.VPSDE(config.model.beta_min, config.model.beta_max, config.model.num_scales)


def score_sde_pytorch(net: Net, batch: int, checkout: str) -> tuple[Facts, Step]:
    """The PyTorch program's network, loss, optimizer and average; its FIR filter is the one without a kernel of its
    own, which is what it uses on a CPU."""
    import importlib

    import torch
    from make_score_sde import import_torch

    began = time.perf_counter()
    models = import_torch(checkout)
    losses, sde_lib, averaging = (importlib.import_module(name) for name in ("losses", "sde_lib", "models.ema"))
    config = _score_sde_config(net, checkout)
    model = models.create_model(config)
    state = {
        "model": model,
        "optimizer": losses.get_optimizer(config, model.parameters()),
        "ema": averaging.ExponentialMovingAverage(model.parameters(), decay=config.model.ema_rate),
        "step": 0,
    }
    update = losses.get_step_fn(
        _score_sde_process(config, sde_lib),
        train=True,
        optimize_fn=losses.optimization_manager(config),
        reduce_mean=config.training.reduce_mean,
        continuous=config.training.continuous,
    )
    on_device = torch.tensor(images(net, batch), device=config.device).permute(0, 3, 1, 2).contiguous()

    def step() -> None:
        x = on_device / 255.0
        update(state, 2 * x - 1 if config.data.centered else x)
        _finished(config.device)

    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {"init_s": time.perf_counter() - began, "parameters": count}, step


def diffusers(net: Net, batch: int, *, channels_last: bool = False, compiled: bool = False, bf16: bool = False) -> Any:
    """UNet2DModel with the loss of DDPM."""
    import torch
    from diffusers import UNet2DModel

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    began = time.perf_counter()
    torch.manual_seed(0)
    model = UNet2DModel(**net.diffusers).to(device, memory_format=layout)
    run = torch.compile(model) if compiled else model
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, 2e-4)
    average = [parameter.detach().clone() for parameter in parameters]
    x0 = torch.tensor(images(net, batch), device=device).permute(0, 3, 1, 2)
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, device=device), 0)

    def step() -> None:
        x = (x0 / 127.5 - 1).contiguous(memory_format=layout)
        label, noise = torch.randint(0, 1000, (batch,), device=device), torch.randn_like(x)
        a = alphas[label][:, None, None, None]
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            guess = run(a.sqrt() * x + (1 - a).sqrt() * noise, label).sample
        loss = (guess.float() - noise).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1e-4)
        _finished(device)

    return {"init_s": time.perf_counter() - began, "parameters": sum(p.numel() for p in parameters)}, step


def _finished(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


PROGRAMS: dict[str, Callable[..., tuple[Facts, Step]]] = {
    "diffuse_jax": ours,
    "diffuse_jax by five": functools.partial(ours, steps=5),
    "diffuse_jax bf16": functools.partial(ours, overrides=("model.dtype=bfloat16",)),
    "score_sde": score_sde,
    "score_sde_pytorch": score_sde_pytorch,
    "diffusers": diffusers,
    "diffusers channels_last": functools.partial(diffusers, channels_last=True),
    "diffusers bf16": functools.partial(diffusers, bf16=True, channels_last=True),
    "diffusers compiled bf16": functools.partial(diffusers, bf16=True, channels_last=True, compiled=True),
}


def main() -> None:
    name, net, batch, *checkout = sys.argv[1:]
    facts, step = PROGRAMS[name](NETS[net], int(batch), *checkout)
    together = int(facts.get("steps_a_call", 1))
    began = time.perf_counter()
    step()
    facts["first_step_s"] = time.perf_counter() - began
    facts["resident_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(math.ceil(int(line) / together)):
            began = time.perf_counter()
            step()
            seconds.append((time.perf_counter() - began) / together)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
