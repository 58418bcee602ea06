"""Every solver that states an order, by name: what the proofs and the matrix go through."""

from diffuse_jax import solvers
from diffuse_jax.solvers import Solver

DETERMINISTIC: dict[str, Solver] = {
    "euler": solvers.euler_maruyama(kappa=0),
    "ddim": solvers.ddim(),
    "heun": solvers.heun(),
    "edm": solvers.edm(),
    "dpm 1s": solvers.dpm_solver_single(1),
    "dpm 2s": solvers.dpm_solver_single(2),
    "dpm 3s": solvers.dpm_solver_single(3),
    "dpm 2s eps": solvers.dpm_solver_single(2, "eps"),
    "dpm 3s eps": solvers.dpm_solver_single(3, "eps"),
    "dpm 2m": solvers.dpm_solver_multi(2),
    "dpm 2m taylor": solvers.dpm_solver_multi(2, form="taylor", start=2),
    "dpm 3m": solvers.dpm_solver_multi(3),
    "dpm 3m as published": solvers.dpm_solver_multi(3, legacy=True),
    "dpm 3m eps": solvers.dpm_solver_multi(3, "eps"),
    "unipc 1": solvers.unipc(1),
    "unipc 2": solvers.unipc(2),
    "unipc 2 bh1": solvers.unipc(2, "bh1"),
    "unipc 3": solvers.unipc(3),
    "ipndm": solvers.ipndm(),
    "deis 1": solvers.deis(1),
    "deis 2": solvers.deis(2),
    "deis 3": solvers.deis(3),
    "deis 4": solvers.deis(4),
}
STOCHASTIC: dict[str, Solver] = {
    "euler_maruyama": solvers.euler_maruyama(),
    "euler_maruyama 0.5": solvers.euler_maruyama(0.5),
    "euler_in_sigma": solvers.euler_in_sigma(),
    "euler_in_sigma 0.5": solvers.euler_in_sigma(0.5),
    "reverse_diffusion": solvers.reverse_diffusion(),
    "ancestral": solvers.ancestral(),
    "ancestral beta": solvers.ancestral("beta"),
    "ddim 0.5": solvers.ddim(0.5),
    "ddim 1": solvers.ddim(1.0),
    "edm with churn": solvers.edm(churn=10.0),
    "sde-dpm 1": solvers.sde_dpm_solver(1),
    "sde-dpm 2m": solvers.sde_dpm_solver(2),
    "sde-dpm 2m 0.5": solvers.sde_dpm_solver(2, 0.5),
    "sde-dpm 2m taylor": solvers.sde_dpm_solver(2, form="taylor"),
    "sde-dpm 3m": solvers.sde_dpm_solver(3),
    "sde-dpm 3m as published": solvers.sde_dpm_solver(3, form="taylor", legacy=True),
    "sa 1": solvers.sa_solver(1),
    "sa 2": solvers.sa_solver(2),
    "sa 3": solvers.sa_solver(3),
    "sa 3 0.5": solvers.sa_solver(3, 0.5),
    "stochastic runge-kutta": solvers.stochastic_runge_kutta(),
    "stochastic runge-kutta 0.5": solvers.stochastic_runge_kutta(0.5),
}

#: Variants of a formula whose other forms are here: the matrix of everything leaves them out; their orders are proofs.
VARIANTS = tuple(
    kind
    for kind in (*DETERMINISTIC, *STOCHASTIC)
    if kind.endswith(("eps", "taylor", "0.5", "bh1", "as published", " 1", "1s"))
)
