"""diffusers' schedulers, each run by its own `step` with `sigmas` and `timesteps` replaced by the given grid.

`set_timesteps` builds grids of its own, in float32, from a table of 1000 steps; what `step` reads are the attributes
set here. DPMSolverMultistep, EulerDiscrete, EulerAncestralDiscrete and EDMEuler take the state to float32 within a
step. Where a scheduler's states are those of a variance-preserving process, x is scaled by 1/√(1 + σ²) on the way in
and back on the way out.
"""

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch

from peers.common import Counted, Data, Draws, Method

torch.set_default_dtype(torch.float64)


@dataclass(frozen=True)
class _Setup:
    """How a scheduler is put on a grid: `table` (σ for its attribute `sigmas`) and `evaluated` (σ of each call of
    `step`), as functions of the grid; whether its states are variance preserving; what its network predicts."""

    scheduler: str
    options: dict[str, Any] = field(default_factory=dict)
    table: Callable[[np.ndarray], np.ndarray] = lambda sigmas: sigmas
    evaluated: Callable[[np.ndarray], np.ndarray] = lambda sigmas: sigmas[:-1]
    preserving: bool = False
    predicts: str = "sample"
    prepare: Callable[[Any, np.ndarray], None] = lambda scheduler, sigmas: None
    step: Callable[[Any], dict[str, Any]] = lambda draws: {}


def _pairs(sigmas: np.ndarray) -> np.ndarray:
    """σ_0, σ_1, σ_1, …, σ_{n−1}, σ_{n−1}, σ_n: the table of schedulers with two calls a step."""
    return np.concatenate([sigmas[:1], np.repeat(sigmas[1:-1], 2), sigmas[-1:]])


def _between(parts: int, sigmas: np.ndarray) -> np.ndarray:
    """The grid with each step divided into equal parts in log σ, without its last point."""
    share = np.arange(parts) / parts
    return np.exp(np.log(sigmas[:-1, None]) * (1 - share) + np.log(sigmas[1:, None]) * share).ravel()


def _with_end(parts: int, sigmas: np.ndarray) -> np.ndarray:
    return np.append(_between(parts, sigmas), sigmas[-1])


def _output(predicts: str, x: torch.Tensor, x0: torch.Tensor, sigma: float, sigma_data: float) -> torch.Tensor:
    """What a network of this kind would have said, in the coordinates α = 1."""
    if predicts == "sample":
        return x0
    if predicts == "epsilon":
        return (x - x0) / sigma
    if predicts == "v":
        return ((x - x0) / sigma - sigma * x0) / (1 + sigma**2) ** 0.5
    total = sigma**2 + sigma_data**2
    return (x0 - sigma_data**2 / total * x) * total**0.5 / (sigma * sigma_data)


def _run(setup: _Setup, data: Data, sigmas: np.ndarray, x: np.ndarray, draws: Draws | None) -> tuple[np.ndarray, int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = getattr(diffusers, setup.scheduler + "Scheduler")(**setup.options)
    evaluated = setup.evaluated(sigmas)
    scheduler.set_timesteps(len(evaluated))
    scheduler.sigmas = torch.from_numpy(setup.table(sigmas))
    scheduler.timesteps = torch.arange(len(evaluated), 0, -1, dtype=torch.float64)
    setup.prepare(scheduler, sigmas)
    scale = (lambda sigma: 1 / (1 + sigma**2) ** 0.5) if setup.preserving else (lambda sigma: 1.0)
    if draws is not None:
        scheduler.noise_sampler = lambda a, b: torch.from_numpy(draws.between(a, b))
    module = sys.modules[type(scheduler).__module__]
    zero = torch.zeros(x.shape)
    drawn = (lambda *_, **__: torch.from_numpy(draws.next())) if draws else (lambda *_, **__: zero)
    noise = mock.patch.object(module, "randn_tensor", drawn, create=True)
    x0 = Counted(data, torch)
    state = torch.from_numpy(x) * scale(sigmas[0])
    with torch.no_grad(), noise:
        for time, sigma in zip(scheduler.timesteps, evaluated, strict=True):
            if not torch.is_floating_point(time):
                time = int(time)
            scheduler.scale_model_input(state, time)
            plain = state / scale(sigma)
            sigma_data = getattr(scheduler.config, "sigma_data", 0.0)
            output = _output(setup.predicts, plain, x0(plain, float(sigma)), float(sigma), sigma_data)
            state = scheduler.step(output, time, state, **setup.step(draws)).prev_sample
    return (state / scale(sigmas[-1])).numpy().astype(np.float64), x0.calls


def _alphas(scheduler: Any, sigmas: np.ndarray) -> None:
    """A table of cumulative α² in place of one of 1000 steps: entry i belongs to σ_{n−i}."""
    scheduler.alphas_cumprod = torch.from_numpy(1 / (1 + sigmas[::-1] ** 2))
    scheduler.num_inference_steps = scheduler.config.num_train_timesteps
    scheduler.timesteps = torch.arange(len(sigmas) - 1, 0, -1)


def _pndm(scheduler: Any, sigmas: np.ndarray) -> None:
    _alphas(scheduler, sigmas)
    times = scheduler.timesteps
    scheduler.timesteps = torch.cat([times[:2], times[1:]])


def _ipndm(scheduler: Any, sigmas: np.ndarray) -> None:
    scheduler.alphas = torch.from_numpy(1 / np.sqrt(1 + sigmas**2))
    scheduler.betas = torch.from_numpy(sigmas / np.sqrt(1 + sigmas**2))


def _kdpm2(scheduler: Any, sigmas: np.ndarray) -> None:
    middle = _between(2, sigmas)
    scheduler.sigmas_interpol = torch.from_numpy(np.append(middle, sigmas[-1]))


def methods() -> list[Method]:
    def one(name: str, family: str | None, setup: _Setup, per_step: int = 1, extra: int = 0, draws: int = 0) -> Method:
        return Method("diffusers", name, family, partial(_run, setup), per_step, extra, draws)

    def multi(order: int, kind: str = "dpmsolver++", form: str = "midpoint") -> _Setup:
        return _Setup(
            "DPMSolverMultistep",
            {
                "solver_order": order,
                "algorithm_type": kind,
                "solver_type": form,
                "lower_order_final": False,
                "final_sigmas_type": "sigma_min",
                "prediction_type": "sample",
            },
            preserving=True,
        )

    def edm_multi(order: int, form: str = "midpoint", kind: str = "dpmsolver++") -> _Setup:
        options = {
            "solver_order": order,
            "algorithm_type": kind,
            "solver_type": form,
            "lower_order_final": False,
            "final_sigmas_type": "sigma_min",
        }
        return _Setup("EDMDPMSolverMultistep", options, predicts="edm")

    def single(order: int, kind: str, form: str = "midpoint") -> _Setup:
        options = {
            "solver_order": order,
            "algorithm_type": kind,
            "solver_type": form,
            "lower_order_final": False,
            "final_sigmas_type": "sigma_min",
            "prediction_type": "sample",
        }
        points = partial(_between, order)
        return _Setup("DPMSolverSinglestep", options, partial(_with_end, order), points, preserving=True)

    def unipc(order: int, b: str) -> _Setup:
        options = {
            "solver_order": order,
            "solver_type": b,
            "lower_order_final": False,
            "final_sigmas_type": "sigma_min",
            "prediction_type": "sample",
        }
        return _Setup("UniPCMultistep", options, preserving=True)

    def deis(order: int) -> _Setup:
        options = {"solver_order": order, "lower_order_final": False, "prediction_type": "sample"}
        return _Setup("DEISMultistep", options, preserving=True)

    def sa(predictor: int, corrector: int, tau: float) -> _Setup:
        options = {
            "predictor_order": predictor,
            "corrector_order": corrector,
            "tau_func": lambda t: tau,
            "lower_order_final": False,
            "prediction_type": "sample",
        }
        return _Setup("SASolver", options, preserving=True)

    def tabled(scheduler: str, prepare: Any, **options: Any) -> Callable[[int], _Setup]:
        return lambda n: _Setup(
            scheduler,
            {"num_train_timesteps": n + 1, "set_alpha_to_one": False, **options},
            evaluated=(lambda s: np.concatenate([s[:2], s[1:-1]])) if scheduler == "PNDM" else (lambda s: s[:-1]),
            preserving=True,
            predicts="epsilon",
            prepare=prepare,
        )

    def on_table(make: Callable[[int], _Setup], eta: float = 0.0) -> Any:
        def run(data: Data, sigmas: np.ndarray, x: np.ndarray, draws: Draws | None) -> tuple[np.ndarray, int]:
            setup = make(len(sigmas) - 1)
            if eta:
                setup = _Setup(**{**setup.__dict__, "step": lambda draws: {"eta": eta}})
            return _run(setup, data, sigmas, x, draws)

        return run

    ddim = tabled("DDIM", _alphas, clip_sample=False)
    pndm = tabled("PNDM", _pndm, skip_prk_steps=True)
    evaluations_of_pairs = {"table": _pairs}
    heun = _Setup("HeunDiscrete", evaluated=lambda s: _pairs(s), predicts="epsilon", **evaluations_of_pairs)
    kdpm2 = _Setup(
        "KDPM2Discrete", evaluated=lambda s: _between(2, s), predicts="epsilon", prepare=_kdpm2, table=_pairs
    )
    sde2s = _Setup("DPMSolverSDE", evaluated=lambda s: _between(2, s), predicts="epsilon", table=_pairs)
    # What has no family is not the published definition: singlestep 3 takes its second stage by the midpoint rule, or
    # with "heun" its end by a parabola; multistep 3 sde has the ½ in its last weight with the other sign.
    legacy = "DPM-Solver++ 3M as shipped"
    return [
        one("Euler", "Euler", _Setup("EulerDiscrete", predicts="epsilon")),
        one("EDMEuler", "Euler", _Setup("EDMEuler", predicts="edm")),
        Method("diffusers", "DDIM", "Euler", on_table(ddim)),
        one("DPMSolverMultistep 1", "Euler", multi(1)),
        one("Heun", "Heun", heun, 2),
        one("KDPM2", "DPM-Solver-2", kdpm2, 2),
        one("DPMSolverSinglestep 2 dpmsolver", "DPM-Solver-2", single(2, "dpmsolver"), 2),
        one("DPMSolverSinglestep 3 dpmsolver", None, single(3, "dpmsolver"), 3),
        one("DPMSolverSinglestep 3 dpmsolver heun", None, single(3, "dpmsolver", "heun"), 3),
        one("DPMSolverSinglestep 2", "DPM-Solver++ 2S", single(2, "dpmsolver++"), 2),
        one("DPMSolverSinglestep 3", None, single(3, "dpmsolver++"), 3),
        one("DPMSolverSinglestep 3 heun", None, single(3, "dpmsolver++", "heun"), 3),
        one("DPMSolverMultistep 2", "DPM-Solver++ 2M", multi(2)),
        one("EDMDPMSolverMultistep 2", "DPM-Solver++ 2M", edm_multi(2)),
        one("DPMSolverMultistep 2 heun", "DPM-Solver++ 2M taylor", multi(2, form="heun")),
        one("EDMDPMSolverMultistep 2 heun", "DPM-Solver++ 2M taylor", edm_multi(2, "heun")),
        one("DPMSolverMultistep 3", f"{legacy}, midpoint start", multi(3)),
        one("EDMDPMSolverMultistep 3", f"{legacy}, midpoint start", edm_multi(3)),
        one("DPMSolverMultistep 3 heun", f"{legacy}, taylor start", multi(3, form="heun")),
        one("DPMSolverMultistep 2 dpmsolver", "DPM-Solver 2M", multi(2, "dpmsolver")),
        one("DPMSolverMultistep 2 dpmsolver heun", "DPM-Solver 2M taylor", multi(2, "dpmsolver", "heun")),
        *(one(f"DEISMultistep {k}", f"DPM-Solver {k}M taylor", deis(k)) for k in (2, 3)),
        *(
            one(f"LMS {k}", f"LMS {k}", _Setup("LMSDiscrete", predicts="epsilon", step=lambda draws, k=k: {"order": k}))
            for k in (2, 3, 4)
        ),
        *(one(f"UniPC {k} {b}", f"UniPC-{k} {b}", unipc(k, b)) for k in (1, 2, 3) for b in ("bh1", "bh2")),
        Method("diffusers", "PNDM (PLMS)", None, on_table(pndm), extra=1),
        one("IPNDM", "IPNDM", _Setup("IPNDM", preserving=True, predicts="v", prepare=_ipndm)),
        one("SASolver 2/2 τ=0", None, sa(2, 2, 0.0)),
        one("SASolver 3/4 τ=0", None, sa(3, 4, 0.0)),
        one("EulerAncestral", "ancestral", _Setup("EulerAncestralDiscrete", predicts="epsilon"), draws=1),
        Method("diffusers", "DDIM eta=1", "ancestral", on_table(ddim, 1.0), draws=1),
        one("DPMSolverMultistep 1 sde", "ancestral", multi(1, "sde-dpmsolver++"), draws=1),
        one("DPMSolverSDE", "stochastic 2S", sde2s, 2, draws=2),
        one("DPMSolverMultistep 2 sde", "SDE-DPM-Solver++ 2M", multi(2, "sde-dpmsolver++"), draws=1),
        one("EDMDPMSolverMultistep 2 sde", "SDE-DPM-Solver++ 2M", edm_multi(2, kind="sde-dpmsolver++"), draws=1),
        one(
            "DPMSolverMultistep 2 sde heun", "SDE-DPM-Solver++ 2M taylor", multi(2, "sde-dpmsolver++", "heun"), draws=1
        ),
        one("DPMSolverMultistep 3 sde", None, multi(3, "sde-dpmsolver++"), draws=1),
        one("SASolver 2/2 τ=1", None, sa(2, 2, 1.0), draws=1),
        one("SASolver 3/4 τ=1", "SA-Solver 3/4", sa(3, 4, 1.0), draws=1),
    ]
