"""The table of all solvers: python benchmarks/solver_table.py

Measures the order of every solver of `diffuse_jax.solvers` and its error on two mixtures of Gaussians, in the plane and
in 3,072 dimensions, and puts the table into docs/solvers.md and the plot beside it. Four minutes on two cores; --quick
prints a coarse table in one, and writes nothing.
"""

import argparse
import importlib.metadata
import math
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
from solver_errors import MOST, SDE, Found, Problem, flow_errors, law_errors, problems

from diffuse_jax import oracles, solvers, times
from diffuse_jax.oracles import order_of
from diffuse_jax.sde import Array
from diffuse_jax.solvers import Solver

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, PICTURE = DOCS / "solvers.md", DOCS / "images" / "solvers.svg"
BUDGETS = (5, 10, 20, 50, MOST)

# --- every solver -----------------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A solver, as one calls it, and where its formula is from. `levels` is true of a corrector that runs alone: it
    moves x at each time of the grid, the last included."""

    name: str
    solver: Solver
    source: str
    noisy: bool
    levels: bool = False


class Call(NamedTuple):
    """A call of a function of `solvers`, and how it is written."""

    text: str
    solver: Solver


def call(function: Callable[..., Solver], *args: Any, **kwargs: Any) -> Call:
    """Calls `function`; arguments that are calls themselves are passed on as their solvers."""
    words = [a.text if isinstance(a, Call) else repr(a) for a in args]
    words += [f"{name}={value!r}" for name, value in kwargs.items()]
    made = function(*(a.solver if isinstance(a, Call) else a for a in args), **kwargs)
    return Call(f"{function.__name__}({', '.join(words)})", made)


def entries() -> Iterator[Entry]:
    """Every solver: those of the flow, those of the reverse SDE, those with a corrector."""
    for source, made in (
        ("2011.13456", call(solvers.euler_maruyama, 0)),
        ("2010.02502", call(solvers.ddim)),
        ("2206.00364", call(solvers.heun)),
        ("2206.00364", call(solvers.edm)),
        *(("2211.01095", call(solvers.dpm_solver_single, order)) for order in (1, 2, 3)),
        *(("2206.00927", call(solvers.dpm_solver_single, order, "eps")) for order in (2, 3)),
        ("2211.01095", call(solvers.dpm_solver_multi, 2)),
        ("2211.01095", call(solvers.dpm_solver_multi, 2, start=2)),
        ("2211.01095", call(solvers.dpm_solver_multi, 2, form="taylor")),
        ("2211.01095", call(solvers.dpm_solver_multi, 3)),
        ("2211.01095", call(solvers.dpm_solver_multi, 3, start=1)),
        ("2211.01095", call(solvers.dpm_solver_multi, 3, legacy=True)),
        *(("2211.01095", call(solvers.dpm_solver_multi, order, "eps")) for order in (2, 3)),
        *(("2302.04867", call(solvers.unipc, order)) for order in (1, 2, 3)),
        ("2302.04867", call(solvers.unipc, 2, "bh1")),
        ("2302.04867", call(solvers.unipc, 3, start=1)),
        *(("2204.13902", call(solvers.deis, order)) for order in (1, 2, 3, 4)),
        ("2204.13902", call(solvers.deis, 3, start=1)),
        ("2202.09778", call(solvers.ipndm)),
        *(("Dormand–Prince 5(4)", call(solvers.adaptive, tol, tol)) for tol in (1e-2, 1e-3)),
        ("Dormand–Prince 5(4)", call(solvers.adaptive)),
    ):
        yield Entry(made.text, made.solver, source, noisy=False)
    for source, made in (
        ("2011.13456", call(solvers.euler_maruyama)),
        ("2011.13456", call(solvers.euler_maruyama, 0.5)),
        *(("2011.13456", call(solvers.euler_in_sigma, kappa)) for kappa in (1.0, 0.5)),
        ("2011.13456", call(solvers.reverse_diffusion)),
        ("2011.13456", call(solvers.ancestral)),
        ("2006.11239", call(solvers.ancestral, "beta")),
        *(("2010.02502", call(solvers.ddim, eta)) for eta in (0.5, 1.0)),
        ("2206.00364", call(solvers.edm, churn=10.0)),
        *(("2211.01095", call(solvers.sde_dpm_solver, order)) for order in (1, 2, 3)),
        ("2211.01095", call(solvers.sde_dpm_solver, 2, 0.5)),
        ("2211.01095", call(solvers.sde_dpm_solver, 2, form="taylor")),
        ("2211.01095", call(solvers.sde_dpm_solver, 3, form="taylor", legacy=True)),
        *(("2309.05019", call(solvers.sa_solver, order)) for order in (1, 2, 3)),
        *(("2211.01095", call(solvers.stochastic_runge_kutta, eta)) for eta in (1.0, 0.5)),
        *(
            ("2011.13456", call(solvers.predictor_corrector, predictor, corrector))
            for predictor, corrector in (
                (call(solvers.reverse_diffusion), call(solvers.langevin)),
                (call(solvers.reverse_diffusion), call(solvers.langevin, norm="batch")),
                (call(solvers.dpm_solver_multi, 2), call(solvers.langevin)),
                (call(solvers.dpm_solver_multi, 2), call(solvers.annealed_langevin, 2e-5, steps=1)),
            )
        ),
    ):
        yield Entry(made.text, made.solver, source, noisy=True)
    for source, made in (
        ("2011.13456", call(solvers.langevin, steps=5)),
        ("2006.09011", call(solvers.annealed_langevin, steps=5)),
        ("1907.05600", call(solvers.annealed_langevin, steps=5, version=1)),
    ):
        yield Entry(made.text, made.solver, source, noisy=True, levels=True)


def grid_of(entry: Entry, budget: int) -> Array | None:
    """The grid with the most steps whose evaluations fit the budget; None where there is none."""
    solver = entry.solver
    if solver.evaluations is None:
        return times.log_snr(SDE, 1)
    steps = (budget - solver.start_evaluations) // solver.evaluations - entry.levels
    if steps < 1:
        return None
    grid = times.log_snr(SDE, steps)
    return jnp.append(grid, grid[-1]) if entry.levels else grid


def orders(listed: list[Entry]) -> dict[str, float]:
    """The measured orders of the solvers that state one, between log-SNR −4 and 3."""
    t_max, t_min = (float(SDE.inverse_log_snr(jnp.asarray(value))) for value in (-4.0, 3.0))
    found = {}
    for entry in listed:
        solver = entry.solver
        if solver.order is not None:
            # Of the fourth order, the next term is the larger one before.
            counts = (320, 640) if solver.order == 4 else (80, 240)
            data = oracles.Mixture(
                SDE, *(jnp.asarray(leaf) for leaf in ([0.3, 0.7], [[-1.0, 0.5], [0.8, -0.2]], [0.3, 0.5]))
            )
            found[entry.name] = order_of(solver, SDE, data, counts=counts, t_max=t_max, t_min=t_min).order
        elif solver.weak_order is not None:
            found[entry.name] = order_of(solver, SDE, counts=(128, 512), t_max=t_max, t_min=t_min).order
    return found


# --- the report -------------------------------------------------------------------------------------------------------

#: What is measured: "law" of all solvers, "flow" and "median" of those that do not draw.
KINDS = ("flow", "median", "law")
#: (entry's name, problem's name, kind, budget).
Errors = dict[tuple[str, str, str, int], Found]


def measure(problem: Problem, listed: list[Entry], budgets: tuple[int, ...]) -> tuple[Errors, list[float]]:
    """All errors on one problem, and those in law of exact draws. An adaptive solver runs once, for the last budget."""
    cases = [(e, b, grid_of(e, b)) for e in listed for b in (budgets if e.solver.evaluations else budgets[-1:])]
    ran = [(entry, budget, grid) for entry, budget, grid in cases if grid is not None]
    of_flow = [case for case in ran if not case[0].noisy]
    flow, median = zip(*flow_errors(problem, [(entry.solver, grid) for entry, _, grid in of_flow]), strict=True)
    law, exact = law_errors(problem, [(entry.solver, grid) for entry, _, grid in ran])
    errors: Errors = {}
    for kind, of_kind, found in zip(KINDS, (of_flow, of_flow, ran), (flow, median, law), strict=True):
        errors |= {(e.name, problem.name, kind, b): one for (e, b, _), one in zip(of_kind, found, strict=True)}
    return errors, exact


def cell(errors: Errors, entry: Entry, problem: Problem, kind: str, budget: int, budgets: tuple[int, ...]) -> str:
    if entry.solver.evaluations is not None:
        found = errors.get((entry.name, problem.name, kind, budget))
        return "–" if found is None else number(found.error)
    error, calls = errors[entry.name, problem.name, kind, budgets[-1]]
    column = next((b for b in budgets if calls <= b), budgets[-1])
    return f"{number(error)} ({calls})" if budget == column else "–"


def number(error: float) -> str:
    return f"{error:.1e}" if math.isfinite(error) else "diverges"


def order_stated(solver: Solver) -> str:
    if solver.weak_order is not None:
        return f"weak {solver.weak_order}"
    return "none" if solver.order is None else str(solver.order)


def evaluations_stated(solver: Solver) -> str:
    if solver.evaluations is None:
        return "to tolerance"
    return (
        f"{solver.evaluations} (+ {solver.start_evaluations})" if solver.start_evaluations else f"{solver.evaluations}"
    )


def table(
    listed: list[Entry],
    tried: tuple[Problem, ...],
    measured: dict[str, float],
    errors: Errors,
    budgets: tuple[int, ...],
) -> str:
    head = ["solver", "source", "noise", "evaluations a step", "order stated", "measured", "error"]
    head += [f"{problem.name}: {b}" if b == budgets[0] else str(b) for problem in tried for b in budgets]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for entry in listed:
        about = [
            f"`{entry.name}`",
            re.sub(r"^(\d{4}\.\d{5})$", r"[\1](https://arxiv.org/abs/\1)", entry.source),
            "yes" if entry.noisy else "no",
            evaluations_stated(entry.solver),
            order_stated(entry.solver),
            f"{measured[entry.name]:.2f}" if entry.name in measured else "–",
        ]
        for kind in KINDS[-1:] if entry.noisy else KINDS:
            cells = [cell(errors, entry, problem, kind, b, budgets) for problem in tried for b in budgets]
            lines.append("| " + " | ".join([*about, kind, *cells]) + " |")
            about = [""] * len(about)
    return "\n".join(lines)


#: The solvers in the plot; "adaptive" stands for all its tolerances.
DRAWN: dict[str, tuple[str, ...]] = {
    "median": (
        "euler_maruyama(0)",
        "ddim()",
        "heun()",
        "dpm_solver_single(2)",
        "dpm_solver_single(3)",
        "dpm_solver_multi(2)",
        "dpm_solver_multi(3)",
        "unipc(2)",
        "unipc(3)",
        "deis(3)",
        "adaptive",
    ),
    "law": (
        "ddim()",
        "unipc(2)",
        "euler_maruyama()",
        "reverse_diffusion()",
        "ancestral()",
        "edm(churn=10.0)",
        "sde_dpm_solver(2)",
        "sde_dpm_solver(3)",
        "stochastic_runge_kutta(1.0)",
        "predictor_corrector(reverse_diffusion(), langevin())",
    ),
}


TITLES = {"median": "from the exact flow, median over starts", "law": "from the exact law"}


def plot(tried: tuple[Problem, ...], errors: Errors, floors: dict[str, list[float]], path: Path) -> None:
    """Error against evaluations: a row for each kind in `DRAWN`, a column for each problem."""
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "solvers", "font.size": 9})
    figure, panels = plt.subplots(2, len(tried), figsize=(11, 8.5), sharex=True, sharey="row", layout="constrained")
    colours, markers = [*(f"C{i}" for i in range(10)), "black"], "osv^D<>Pphx"
    for row, kind in zip(panels, DRAWN, strict=True):
        for axes, problem in zip(row, tried, strict=True):
            for name, colour, marker in zip(DRAWN[kind], colours, markers, strict=False):
                found = sorted(
                    (one.evaluations, one.error)
                    for (solver, where, what, _), one in errors.items()
                    if name in (solver, solver.partition("(")[0]) and (where, what) == (problem.name, kind)
                )
                axes.plot(
                    *zip(*found, strict=True), label=name, color=colour, marker=marker, markersize=4, linewidth=1.2
                )
            if kind == "law":
                axes.axhspan(min(floors[problem.name]), max(floors[problem.name]), color="0.85", label="exact draws")
            axes.set(xscale="log", yscale="log", title=f"{problem.name}: {TITLES[kind]}")
            axes.set_xticks([5, 10, 20, 50, 100, 200], ["5", "10", "20", "50", "100", "200"])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
        # What diverges at a few evaluations is cut off.
        row[0].set_ylim(top=2.0 if kind == "median" else 8.0)
        row[0 if kind == "median" else -1].legend(
            loc="lower left" if kind == "median" else "upper right", fontsize=7, frameon=False
        )
        row[0].set_ylabel("error")
    for axes in panels[-1]:
        axes.set_xlabel("evaluations of the denoiser")
    figure.savefig(path, metadata={"Date": None})


def machine() -> str:
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    cpu = model.group(1) if model else platform.processor() or platform.machine()
    packages = ("diffuse-jax-sde", "jax", "jaxlib", "diffrax", "numpy", "scipy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return f"{cpu}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}. {versions}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three budgets, fewer samples, no orders; writes nothing")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_platforms", "cpu")
    budgets, listed, tried = BUDGETS[:3] if args.quick else BUDGETS, list(entries()), problems(args.quick)
    errors: Errors = {}
    floors: dict[str, list[float]] = {}
    for problem in tried:
        print(f"errors in {problem.name}", file=sys.stderr)
        found, floors[problem.name] = measure(problem, listed, budgets)
        errors |= found
    if not args.quick:
        print("orders", file=sys.stderr)
    measured = {} if args.quick else orders(listed)
    sampled = "; ".join(
        f"{p.name}: {p.starts} starts for `flow` and `median`, {p.samples:,} samples for `law`, whose floor is "
        f"{min(floors[p.name]):.1e} to {max(floors[p.name]):.1e}"
        for p in tried
    )
    report = f"{table(listed, tried, measured, errors, budgets)}\n\n{sampled}. {machine()}"
    print(report)
    if not args.quick:
        plot(tried, errors, floors, PICTURE)
        head, start, rest = PAGE.read_text(encoding="utf-8").partition("<!-- results -->")
        _, stop, tail = rest.partition("<!-- end of results -->")
        PAGE.write_text(f"{head}{start}\n\n{report}\n\n{stop}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
