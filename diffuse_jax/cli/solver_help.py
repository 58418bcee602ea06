"""What `sample --help` and `evaluate --help` say of the names that `--solver` takes.

Typed here, and held by a test against `config.sampling_section`, so that the help needs none of what that module
imports.
"""

__all__ = ["CORRECTORS", "GROUPS", "solver_help"]

#: Solvers by what they integrate, each with what it is for.
GROUPS: dict[str, dict[str, str]] = {
    "reverse SDE (fresh noise every step; 100 to 1000 steps unless said otherwise)": {
        "euler_maruyama": "the plain scheme; sampling.kappa=0 makes it the flow's Euler method",
        "euler_in_sigma": "the same, exact in the drift: steps in sigma/alpha",
        "reverse_diffusion": "Song et al.'s predictor of VE and VP",
        "ancestral": "DDPM's sampler with the posterior variance",
        "ddpm": "DDPM's sampler with the variance beta",
        "sde_dpm_solver": "SDE-DPM-Solver++, order 1 to 3: 20 to 100 steps",
        "sa_solver": "Adams methods with noise, predictor and corrector: 20 to 100 steps",
        "stochastic_runge_kutta": "two evaluations a step, weak order 2",
        "annealed_langevin": "NCSN's: Langevin steps at each noise level, no predictor",
    },
    "probability flow (the same noise gives the same image; 10 to 50 steps)": {
        "ddim": "first order; sampling.eta > 0 adds noise, 1 is ancestral",
        "heun": "second order, two evaluations a step",
        "edm": "EDM's Heun in sigma; sampling.churn > 0 adds noise",
        "dpm_solver_single": "DPM-Solver++(S), order 1 to 3, as many evaluations a step",
        "dpm_solver_multi": "DPM-Solver++(M), order 1 to 3, one evaluation a step",
        "unipc": "multistep predictor and corrector, one evaluation a step: among the best with few",
        "deis": "multistep in eps, order 1 to 4, one evaluation a step",
        "ipndm": "multistep with the weights of equal steps, one evaluation a step",
        "adaptive": "Dormand-Prince 5(4) to sampling.rtol and atol, whatever --steps",
    },
}

#: Solvers whose step leaves t as it is: they follow a predictor and a plus.
CORRECTORS: dict[str, str] = {
    "langevin": "a step set by sampling.snr and sigma alone",
    "batch_langevin": "score_sde's rule: a step set by norms over the batch",
    "annealed_langevin": "NCSN's step, sampling.epsilon*(sigma/sigma_last)^2",
}

_END = """\
score_sde:PREDICTOR[+CORRECTOR] is score_sde's own loop, step for step: euler_maruyama, reverse_diffusion, ancestral or
none; langevin or ald. Measured errors of each with 5 to 100 evaluations: docs/solvers.md."""


def solver_help() -> str:
    """The names by group, a line each."""
    titled = {f"solvers of the {group}:": names for group, names in GROUPS.items()}
    titled["correctors, as in reverse_diffusion+langevin (short: pc):"] = CORRECTORS
    parts = [
        "\n".join([title, *(f"  {name:<24}{text}" for name, text in names.items())]) for title, names in titled.items()
    ]
    return "\n\n".join([*parts, _END])
