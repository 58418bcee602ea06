"""k-diffusion's samplers, `sample_*(model, x, sigmas)`, whose model is the denoiser itself."""

import importlib.machinery
import importlib.util
import sys
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch

from peers.common import CHURN, Counted, Data, Draws, Method

torch.set_default_dtype(torch.float64)
LIBRARY = "k-diffusion"


def _sampling() -> Any:
    """`k_diffusion.sampling` without the package's own imports, which want CLIP, wandb and a compiler."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None:
        raise ImportError("No module named 'k_diffusion'")
    if "k_diffusion" not in sys.modules:
        spec.loader = None
        package = importlib.util.module_from_spec(spec)
        package.__path__ = list(spec.submodule_search_locations or [])
        sys.modules["k_diffusion"] = package
    return importlib.import_module("k_diffusion.sampling")


sampling = _sampling()


def _sample(
    function: str, options: dict[str, Any], data: Data, sigmas: np.ndarray, x: np.ndarray, draws: Draws | None
) -> tuple[np.ndarray, int]:
    x0 = Counted(data, torch)
    extra = {}
    if draws is not None:
        extra["noise_sampler"] = lambda sigma, sigma_next: torch.from_numpy(draws.between(sigma, sigma_next))
    end = getattr(sampling, function)(
        lambda x, sigma: x0(x, sigma[0]),
        torch.from_numpy(x),
        torch.from_numpy(sigmas),
        disable=True,
        **options,
        **extra,
    )
    return end.numpy(), x0.calls


def _churned(
    options: dict[str, float], data: Data, sigmas: np.ndarray, x: np.ndarray, draws: Draws | None
) -> tuple[np.ndarray, int]:
    """`sample_heun` with churn, whose share per step is s_churn/(len(sigmas) − 1) of a grid that ends with 0; the same
    share of this one, which does not, is of one level more."""
    steps = len(sigmas) - 1
    scaled = {**options, "s_churn": options["s_churn"] * steps / (steps + 1)}
    drawn = (lambda x: torch.from_numpy(draws.next())) if draws else torch.zeros_like
    with mock.patch.object(torch, "randn_like", drawn):
        return _sample("sample_heun", scaled, data, sigmas, x, None)


def _dpm_solver(
    order: int, data: Data, sigmas: np.ndarray, x: np.ndarray, draws: Draws | None
) -> tuple[np.ndarray, int]:
    """`DPMSolver.dpm_solver_{order}_step` along the grid."""
    x0 = Counted(data, torch)
    solver = sampling.DPMSolver(lambda x, sigma: x0(x, sigma[0]))
    state = torch.from_numpy(x)
    with torch.no_grad():
        for t, s in zip(-np.log(sigmas[:-1]), -np.log(sigmas[1:]), strict=True):
            state, _ = getattr(solver, f"dpm_solver_{order}_step")(state, torch.tensor(t), torch.tensor(s))
    return state.numpy(), x0.calls


def methods() -> list[Method]:
    def one(name: str, family: str | None, per_step: int = 1, draws: int = 0, **options: Any) -> Method:
        shown = name + "".join(f" {key}={value}" for key, value in options.items())
        return Method(LIBRARY, shown, family, partial(_sample, f"sample_{name}", options), per_step, draws=draws)

    names = {"churn": "s_churn", "churn_min": "s_tmin", "churn_max": "s_tmax", "noise_scale": "s_noise"}
    churn = {names[name]: value for name, value in CHURN.items()}
    return [
        one("euler", "Euler"),
        one("heun", "Heun", 2),
        one("dpm_2", "DPM-Solver-2", 2),
        Method(LIBRARY, "DPMSolver 2_step", "DPM-Solver-2", partial(_dpm_solver, 2), 2),
        Method(LIBRARY, "DPMSolver 3_step", "DPM-Solver-3", partial(_dpm_solver, 3), 3),
        *(one("lms", f"LMS {k}", order=k) for k in (2, 3, 4)),
        one("dpmpp_2s_ancestral", "DPM-Solver++ 2S", 2, eta=0.0),
        one("dpmpp_2m", "DPM-Solver++ 2M"),
        one("dpmpp_2m_sde", "DPM-Solver++ 2M", eta=0.0),
        one("dpmpp_2m_sde", "DPM-Solver++ 2M taylor", eta=0.0, solver_type="heun"),
        one("dpmpp_3m_sde", "DPM-Solver++ 3M as shipped, taylor start", eta=0.0),
        one("euler_ancestral", "ancestral", draws=1),
        Method(LIBRARY, "heun with churn", "EDM with churn", partial(_churned, churn), 2, draws=1),
        one("dpmpp_sde", "stochastic 2S", 2, draws=2),
        one("dpmpp_2m_sde", "SDE-DPM-Solver++ 2M", draws=1),
        one("dpmpp_2m_sde", "SDE-DPM-Solver++ 2M taylor", draws=1, solver_type="heun"),
        one("dpmpp_3m_sde", "SDE-DPM-Solver++ 3M as shipped", draws=1),
    ]
