"""Accuracy of the solvers side by side with other libraries': python benchmarks/solver_accuracy.py

One problem with a closed-form denoiser, in float64 on all sides; the same start, the same grid of σ and the same number
of calls of the denoiser. Errors are at the last σ of the grid, σ_min > 0: no method takes a last step to 0.

    flow  deterministic solvers: the root mean square over fixed starts of |x − exact flow|, on a mixture in the plane.
    law   stochastic solvers: the Wasserstein-2 distance of the law of x from the exact law, on Gaussian data. There
          every solver is an affine map of its start and its draws, which unit inputs recover: no sampling error.
    samples  stochastic solvers on the mixture: sliced Wasserstein-2 distance of samples from the exact law, beside that
          of as many exact draws ("floor"); all methods get the same starts and draws.

Prints the tables and exits with 1 where a solver of ours is worse than 1.02 times the best peer's solver of the same
definition. Peers that are not installed are left out.
"""

import argparse
import functools
import importlib.metadata
import itertools
import json
import math
import os
import platform
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import peers
import scipy.integrate
from peers import ours
from peers.common import Draws, Method, Mixture, Normals, normal_draws, unit_draws

from diffuse_jax import times
from diffuse_jax.sde import EDM

ROOT = Path(__file__).resolve().parents[1]
SIGMA_MAX, SIGMA_MIN = 80.0, 0.002
BUDGETS = (5, 10, 20, 50, 100)
ALLOWED = 1.02
#: Two libraries' versions of one solver differ by rounding.
TIED = 1.0005
MIXTURE = Mixture(
    weights=np.array([0.2, 0.3, 0.5]),
    means=np.array([[-1.2, 0.6], [0.9, 0.8], [0.2, -0.9]]),
    stds=np.array([0.2, 0.3, 0.4]),
)
NORMALS = Normals(means=np.array([0.5, -1.0, 0.2]), stds=np.array([0.1, 0.3, 1.0]))
GRIDS: dict[str, Callable[[int], Any]] = {
    "Karras, ρ = 7": lambda n: times.karras(EDM(), n, SIGMA_MIN, SIGMA_MAX),
    "even in log-SNR": lambda n: times.log_snr(EDM(), n, SIGMA_MIN, SIGMA_MAX),
}


@functools.cache
def grid_of(name: str, n: int) -> np.ndarray:
    """σ_0 > … > σ_n, from σ_max to σ_min."""
    return np.array(GRIDS[name](n), np.float64)


class Row(NamedTuple):
    """One method at one budget on one grid. `measure` is flow, law or samples."""

    measure: str
    grid: str
    library: str
    name: str
    family: str | None
    budget: int
    evaluations: int
    error: float


def exact_flow(x: np.ndarray) -> np.ndarray:
    """Where dx/d(log σ) = x − E[x_0 | x] takes x from σ_max to σ_min (SciPy, DOP853 to 1e-12)."""

    def rate(log_sigma: float, flat: np.ndarray) -> np.ndarray:
        state = flat.reshape(x.shape)
        return (state - MIXTURE.x0(np, state, math.exp(log_sigma))).ravel()

    span = (math.log(SIGMA_MAX), math.log(SIGMA_MIN))
    end = scipy.integrate.solve_ivp(rate, span, x.ravel(), method="DOP853", rtol=1e-12, atol=1e-13)
    return end.y[:, -1].reshape(x.shape)


def flow_error(method: Method, sigmas: np.ndarray, x: np.ndarray, end: np.ndarray) -> tuple[float, int]:
    found, calls = method.run(MIXTURE, sigmas, x, None)
    return float(np.sqrt(np.mean(np.sum((found - end) ** 2, axis=-1)))), calls


def law_error(method: Method, sigmas: np.ndarray) -> tuple[float, int]:
    """Root mean square over the coordinates of the Wasserstein-2 distance √(Δmean² + Δstd²) between two Gaussians.

    Rows 0 and 1 of the input start at 0 and 1 without noise; row k + 2 starts at 0 and takes the k-th draw alone.
    """
    rows, dims = 2 + max(BUDGETS), len(NORMALS.means)
    x = np.zeros((rows, dims))
    x[1] = 1
    knots = sigmas if method.draws == 1 else _with_middles(sigmas)
    end, calls = method.run(NORMALS, sigmas, x, Draws(unit_draws(rows, dims), knots))
    offset, gains = end[0], end[1:] - end[0]
    mean = offset + gains[0] * NORMALS.means
    std = np.sqrt(gains[0] ** 2 * (NORMALS.stds**2 + SIGMA_MAX**2) + np.sum(gains[1:] ** 2, axis=0))
    exact = np.sqrt(NORMALS.stds**2 + SIGMA_MIN**2)
    return float(np.sqrt(np.mean((mean - NORMALS.means) ** 2 + (std - exact) ** 2))), calls


ANGLES = np.pi * np.arange(16) / 16
DIRECTIONS = np.stack([np.cos(ANGLES), np.sin(ANGLES)])


@functools.cache
def exact_quantiles(n: int) -> np.ndarray:
    """n quantiles of the mixture at σ_min along the 16 directions: (n, 16)."""
    return np.stack([MIXTURE.quantiles(direction, n, SIGMA_MIN) for direction in DIRECTIONS.T], axis=1)


def sliced_distance(x: np.ndarray) -> float:
    """Wasserstein-2 distance of samples x (n, 2) from the mixture at σ_min, along 16 directions: root mean square."""
    return float(np.sqrt(np.mean((np.sort(x @ DIRECTIONS, axis=0) - exact_quantiles(len(x))) ** 2)))


def samples_error(method: Method, sigmas: np.ndarray, x: np.ndarray) -> tuple[float, int]:
    knots = sigmas if method.draws == 1 else _with_middles(sigmas)
    found, calls = method.run(MIXTURE, sigmas, x, Draws(normal_draws(x.shape, 1), knots))
    return sliced_distance(found), calls


def floor(n: int) -> float:
    """The distance of n exact draws, root mean square over eight sets."""
    rng = np.random.default_rng(2)
    return float(np.sqrt(np.mean([sliced_distance(MIXTURE.draw(rng, n, SIGMA_MIN)) ** 2 for _ in range(8)])))


def _with_middles(sigmas: np.ndarray) -> np.ndarray:
    """The grid with the middle of every step in log σ, where two-stage methods evaluate."""
    return np.append(np.stack([sigmas[:-1], np.sqrt(sigmas[:-1] * sigmas[1:])], axis=1).ravel(), sigmas[-1])


def measure(methods: Iterable[Method], budgets: Iterable[int], starts: int, samples: int) -> list[Row]:
    """Every error of every method. `starts` are those of flow; `samples` are drawn for budgets up to 20, beyond which
    they no longer tell a good solver from an exact one."""
    rng = np.random.default_rng(0)
    x, many = MIXTURE.draw(rng, starts, SIGMA_MAX), MIXTURE.draw(rng, samples, SIGMA_MAX)
    end = exact_flow(x)
    rows = []
    for grid, method, budget in itertools.product(GRIDS, methods, budgets):
        steps = method.steps(budget)
        if steps < 1:
            continue
        sigmas = grid_of(grid, steps)
        if method.draws:
            errors = {"law": law_error(method, sigmas)}
            if budget <= 20:
                errors["samples"] = samples_error(method, sigmas, many)
        else:
            errors = {"flow": flow_error(method, sigmas, x, end)}
        for kind, (error, calls) in errors.items():
            if calls > budget:
                raise RuntimeError(f"{method.library} {method.name}: {calls} calls, more than the {budget} allowed")
            rows.append(Row(kind, grid, method.library, method.name, method.family, budget, calls, error))
    return rows


class Comparison(NamedTuple):
    """Ours against the best peer, on one grid at one budget."""

    ours: Row
    peer: Row

    @property
    def ratio(self) -> float:
        return self.ours.error / self.peer.error


def _best(rows: Iterable[Row]) -> Row | None:
    return min((row for row in rows if math.isfinite(row.error)), key=lambda row: row.error, default=None)


def same_solver(rows: list[Row]) -> list[Comparison]:
    """Every solver of ours against the best peer of its family."""
    found = []
    for row in rows:
        if row.library != ours.LIBRARY or row.family is None or row.measure == "samples":
            continue
        key = (row.measure, row.grid, row.family, row.budget)
        peer = _best(r for r in rows if r.library != ours.LIBRARY and (r.measure, r.grid, r.family, r.budget) == key)
        if peer is not None:
            found.append(Comparison(row, peer))
    return found


def best_solver(rows: list[Row]) -> list[Comparison]:
    """The best of ours against the best of all peers, whatever their definitions."""
    found = []
    for kind, grid, budget in dict.fromkeys((row.measure, row.grid, row.budget) for row in rows):
        here = [row for row in rows if (row.measure, row.grid, row.budget) == (kind, grid, budget)]
        best = [_best(r for r in here if (r.library == ours.LIBRARY) is mine) for mine in (True, False)]
        if best[0] is not None and best[1] is not None:
            found.append(Comparison(*best))
    return found


def failures(comparisons: Iterable[Comparison]) -> list[Comparison]:
    return [c for c in comparisons if not c.ratio <= ALLOWED]


def _cell(comparison: Comparison | None) -> str:
    return "" if comparison is None else f"{comparison.ours.error:.2e} ({comparison.ratio:.3f})"


def same_solver_table(comparisons: list[Comparison], budgets: Iterable[int]) -> str:
    budgets = list(budgets)
    lines = [
        "| error | grid | ours | peers | " + " | ".join(map(str, budgets)) + " |",
        "|" + "---|" * (4 + len(budgets)),
    ]
    for kind, grid, name in dict.fromkeys((c.ours.measure, c.ours.grid, c.ours.name) for c in comparisons):
        mine = {
            c.ours.budget: c for c in comparisons if (c.ours.measure, c.ours.grid, c.ours.name) == (kind, grid, name)
        }
        peer = next(iter(mine.values())).peer
        cells = " | ".join(_cell(mine.get(budget)) for budget in budgets)
        lines.append(f"| {kind} | {grid} | `{name}` | {peer.family} | {cells} |")
    return "\n".join(lines)


def best_solver_table(comparisons: list[Comparison]) -> str:
    lines = ["| error | grid | calls | ours | error | best peer | error | ratio |", "|" + "---|" * 8]
    for c in sorted(comparisons, key=lambda c: (c.ours.measure, c.ours.grid, c.ours.budget)):
        lines.append(
            f"| {c.ours.measure} | {c.ours.grid} | {c.ours.budget} | `{c.ours.name}` | {c.ours.error:.2e} "
            f"| {c.peer.library} {c.peer.name} | {c.peer.error:.2e} | {c.ratio:.3f} |"
        )
    return "\n".join(lines)


def _sentence(c: Comparison) -> str:
    return (
        f"- Above it: {c.ours.measure}, {c.ours.grid}, {c.ours.budget} calls: `{c.ours.name}` {c.ours.error:.3e} is "
        f"{c.ratio:.3f} times {c.peer.library} {c.peer.name} {c.peer.error:.3e}"
    )


def _machine() -> str:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"model name\s*: (.+)", info.read_text())):
        cpu = found.group(1)
    return f"{cpu}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def _versions(found: dict[str, str]) -> dict[str, str]:
    own = {name: importlib.metadata.version(name) for name in ("diffuse-jax-sde", "jax", "numpy", "scipy")}
    return {**own, **found}


def _by_method(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """One entry a method and grid, with `errors` {budget: [calls, error or None where it is not finite]}."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        about = row[:5]
        entry = found.setdefault(about, {**dict(zip(Row._fields, about, strict=False)), "errors": {}})
        error = float(f"{row.error:.6g}") if math.isfinite(row.error) else None
        entry["errors"][row.budget] = [row.evaluations, error]
    return list(found.values())


def _write_docs(page: Path, table: str) -> None:
    text = page.read_text()
    start, stop = "<!-- results -->", "<!-- end of results -->"
    head, _, rest = text.partition(start)
    _, _, tail = rest.partition(stop)
    page.write_text(f"{head}{start}\n\n{table}\n\n{stop}{tail}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write every error as JSON here")
    parser.add_argument("--docs", action="store_true", help="put the tables into docs/benchmarks.md")
    parser.add_argument("--quick", action="store_true", help="three budgets, fewer starts and samples")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    theirs, found = peers.installed()
    for library, version in found.items():
        if version.startswith("not installed"):
            print(f"{library}: left out, {version}", file=sys.stderr)
    budgets, starts, samples = ((5, 10, 20), 16, 1000) if args.quick else (BUDGETS, 256, 10000)
    rows = measure([*ours.methods(), *theirs], budgets, starts, samples)
    same, best = same_solver(rows), best_solver(rows)
    failed = failures(same)
    versions = _versions(found)
    behind = [c for c in best if c.ratio > TIED]
    parts = [
        f"{_machine()}. " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        "### Same solver, same grid: our error (our error / the best peer's)",
        same_solver_table(same, budgets),
        f"{len(same) - len(failed)} of {len(same)} ratios are at most {ALLOWED}.",
        "\n".join(map(_sentence, failed)),
        "### Best solver against best solver",
        best_solver_table(best),
        f"Ours are at least as good in {len(best) - len(behind)} of {len(best)}. The distance of {samples} exact draws "
        f"from the exact law, the floor of `samples`, is {floor(samples):.1e}.",
    ]
    report = "\n\n".join(part for part in parts if part)
    print(report)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        found_rows = ",\n".join(map(json.dumps, _by_method(rows)))
        head = json.dumps({"machine": _machine(), "versions": versions})[1:-1]
        args.out.write_text(f'{{{head}, "methods": [\n{found_rows}\n]}}\n')
    if args.docs:
        _write_docs(ROOT / "docs" / "benchmarks.md", report)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
