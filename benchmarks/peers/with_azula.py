"""azula's samplers on the schedule α = 1, σ = t, with `timesteps` overridden by the given grid."""

from functools import partial
from typing import Any
from unittest import mock

import azula.denoise
import azula.noise
import azula.sample
import numpy as np
import torch

from peers.common import Counted, Data, Draws, Method

torch.set_default_dtype(torch.float64)


class _Schedule(azula.noise.Schedule):
    def __call__(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ones_like(t), t


class _Denoiser(azula.denoise.Denoiser):
    def __init__(self, x0: Counted):
        super().__init__()
        self.schedule, self.exact = _Schedule(), x0

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, **kwargs: Any) -> azula.denoise.Posterior:
        return azula.denoise.DiracPosterior(self.exact(x_t, t))


def _sample(
    name: str, options: dict[str, Any], data: Data, sigmas: np.ndarray, x: np.ndarray, draws: Draws | None
) -> tuple[np.ndarray, int]:
    grid = torch.from_numpy(sigmas)
    sampler_of = getattr(azula.sample, name)
    on_grid = type(name, (sampler_of,), {"timesteps": property(lambda self: grid)})
    x0 = Counted(data, torch)
    sampler = on_grid(_Denoiser(x0), steps=len(sigmas) - 1, silent=True, **options)
    with mock.patch.object(torch, "randn_like", lambda x: torch.from_numpy(draws.next()) if draws else 0 * x):
        return sampler(torch.from_numpy(x)).numpy(), x0.calls


def methods() -> list[Method]:
    def one(name: str, family: str | None, per_step: int = 1, draws: int = 0, **options: Any) -> Method:
        shown = name.removesuffix("Sampler") + "".join(f" {key}={value}" for key, value in options.items())
        return Method("azula", shown, family, partial(_sample, name, options), per_step, draws=draws)

    return [
        one("EulerSampler", "Euler"),
        one("DDIMSampler", "Euler", eta=0.0),
        one("HeunSampler", "Heun", 2),
        *(one("zABSampler", f"LMS {k}", order=k) for k in (2, 3, 4)),
        *(one("vABSampler", None, order=k) for k in (2, 3)),
        *(one("zEABSampler", f"DPM-Solver {k}M taylor", order=k) for k in (2, 3)),
        one("xEABSampler", "DPM-Solver++ 2M taylor", order=2),
        one("xEABSampler", "DPM-Solver++ 3M", order=3),
        *(one("REABSampler", None, order=k) for k in (2, 3)),
        one("DDPMSampler", "ancestral", draws=1),
        one("DDIMSampler", "ancestral", draws=1, eta=1.0),
        one("ItoSampler", "Euler in σ, noise integrated", draws=1, eta=1.0),
    ]
