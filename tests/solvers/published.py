"""The published formulas of the solvers, transcribed in NumPy: whole trajectories in float64, in uneven steps.

Nothing here calls the library: the denoiser is NumPy's too, and the noise is recorded.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.integrate
import scipy.optimize
import scipy.special
from closed_forms import ALL_PROCESSES, ALL_SDES, MIXTURE
from numpy.polynomial import Polynomial

# λ = log(α/σ) at the times of the grid.
LAMBDAS = (-3.5, -2.2, -1.0, -0.4, 0.9, 2.1)
STEPS, DRAWS, MIXED = len(LAMBDAS) - 1, 2, 4
POINT = np.array([0.7, -0.4])

# --- what a transcription goes by -------------------------------------------------------------------------------------


class Setting:
    """A process in NumPy, its denoiser, the times of the grid, and the recorded noise (steps, draws, batch, d).

    The data of the first rows of a batch are the mixture; those of the others are one point.
    """

    def __init__(self, name: str) -> None:
        self.end, (self.alpha, self.sigma, self.f, self.g2) = ALL_SDES[name].T, ALL_PROCESSES[name]
        self.times = np.array([self.time(value) for value in LAMBDAS])
        rng = np.random.default_rng(0)
        # At the point: the mean of x(t), then the same with the state, or one of the draws, one deviation up.
        self.x = 3 * rng.standard_normal((MIXED + 2 + STEPS * DRAWS, 2))
        self.x[MIXED:] = self.alpha(self.times[0]) * POINT
        self.x[MIXED + 1] += self.sigma(self.times[0])
        self.z = np.zeros((STEPS, DRAWS, len(self.x), 2))
        self.z[:, :, :MIXED] = rng.standard_normal((STEPS, DRAWS, MIXED, 2))
        for row, draw in enumerate(itertools.product(range(STEPS), range(DRAWS))):
            self.z[(*draw, MIXED + 2 + row)] = 1

    def members(self, x: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
        """E[x_0 | x(t) = x], by Tweedie's formula for the mixture, and E[eps | x(t) = x]."""
        (weights, means, stds), alpha, sigma = MIXTURE, self.alpha(t), self.sigma(t)
        variance = (alpha * stds) ** 2 + sigma**2
        offset = x[:MIXED, None] - alpha * means
        share = scipy.special.softmax(np.log(weights / variance) - 0.5 * (offset**2).sum(-1) / variance, axis=1)
        score = -(share[..., None] * offset / variance[:, None]).sum(1)
        x0 = np.concatenate([(x[:MIXED] + sigma**2 * score) / alpha, np.broadcast_to(POINT, x[MIXED:].shape)])
        return x0, (x - alpha * x0) / sigma

    def score(self, x: np.ndarray, t: float) -> np.ndarray:
        return -self.members(x, t)[1] / self.sigma(t)

    def log_ratio(self, t: float) -> float:
        """λ = log(α/σ)."""
        return float(np.log(self.alpha(t) / self.sigma(t)))

    def time(self, log_ratio: float) -> float:
        low, high = 1e-7, self.end * (1 - 1e-7)
        return scipy.optimize.brentq(lambda t: self.log_ratio(t) - log_ratio, low, high, xtol=1e-16, rtol=1e-15)


#: The states (N + 1, batch, d) of a method, in the setting that it is given.
Published = Callable[[Setting], np.ndarray]
#: A time, by the clock of a method, and the value there.
Node = tuple[float, np.ndarray]
#: (setting, x, t, s, z (draws, batch, d)) -> x.
Step = Callable[[Setting, np.ndarray, float, float, np.ndarray], np.ndarray]


def steps_of(on: Setting) -> Any:
    return enumerate(itertools.pairwise(on.times))


def by_steps(step: Step) -> Published:
    """The states of a method that remembers nothing."""

    def path(on: Setting) -> np.ndarray:
        states = [on.x]
        for k, (t, s) in steps_of(on):
            states.append(step(on, states[-1], t, s, on.z[k]))
        return np.stack(states)

    return path


# --- DDIM, DDPM and the discretized SDE -------------------------------------------------------------------------------


def ddim(eta: float, noise: float | None = None) -> Step:
    """2010.02502, eq. 12 and 16; its σ̂ has the direction of η = 1 and noise of variance β = 1 − ᾱ_t/ᾱ_s."""

    def step(on: Setting, x: np.ndarray, t: float, s: float, z: np.ndarray) -> np.ndarray:
        x0, eps = on.members(x, t)
        std = eta * on.sigma(s) * np.sqrt(1 - (on.alpha(t) * on.sigma(s) / (on.alpha(s) * on.sigma(t))) ** 2)
        drawn = std if noise is None else noise * np.sqrt(1 - on.alpha(t) ** 2 / on.alpha(s) ** 2)
        return on.alpha(s) * x0 + np.sqrt(on.sigma(s) ** 2 - std**2) * eps + drawn * z[0]

    return step


def ddpm(on: Setting, x: np.ndarray, t: float, s: float, z: np.ndarray) -> np.ndarray:
    """The posterior of x(s) given x(t) and x0 (2006.11239, eq. 6 and 7), for VP."""
    beta, x0 = 1 - on.alpha(t) ** 2 / on.alpha(s) ** 2, on.members(x, t)[0]
    of_x0 = on.alpha(s) * beta / on.sigma(t) ** 2
    of_x = on.alpha(t) / on.alpha(s) * on.sigma(s) ** 2 / on.sigma(t) ** 2
    return of_x0 * x0 + of_x * x + np.sqrt(beta) * on.sigma(s) / on.sigma(t) * z[0]


def euler_ancestral(on: Setting, x: np.ndarray, t: float, s: float, z: np.ndarray) -> np.ndarray:
    """The step of that name with σ_up and σ_down, for VE."""
    before, after = on.sigma(t), on.sigma(s)
    up = min(after, np.sqrt(after**2 * (before**2 - after**2) / before**2))
    down = np.sqrt(after**2 - up**2)
    return x + (x - on.members(x, t)[0]) / before * (down - before) + up * z[0]


def euler_maruyama(kappa: float) -> Step:
    """On dx = (f·x − ½(1 + κ²)·g²·score) dt + κ·g dw, backwards (2011.13456, eq. 6 and 13 at κ = 1 and 0)."""

    def step(on: Setting, x: np.ndarray, t: float, s: float, z: np.ndarray) -> np.ndarray:
        drift = on.f(t) * x - 0.5 * (1 + kappa**2) * on.g2(t) * on.score(x, t)
        return x - (t - s) * drift + kappa * np.sqrt(on.g2(t) * (t - s)) * z[0]

    return step


def forward_variance(on: Setting, t: float, s: float) -> tuple[float, float]:
    """x(t) given x(s): the factor on it, and the variance."""
    a = on.alpha(t) / on.alpha(s)
    return a, on.sigma(t) ** 2 - a**2 * on.sigma(s) ** 2


def reverse_diffusion(on: Setting, x: np.ndarray, t: float, s: float, z: np.ndarray) -> np.ndarray:
    """x − F + G²·score + G·z for the forward step x(t) = x(s) + F + G·z (2011.13456, eq. 46)."""
    a, variance = forward_variance(on, t, s)
    return x - (a - 1) * x + variance * on.score(x, t) + np.sqrt(variance) * z[0]


def ancestral(variance_of: Callable[[Setting, float, float], float]) -> Step:
    """2011.13456, eq. 4 and 47, with F and G as in `reverse_diffusion`."""

    def step(on: Setting, x: np.ndarray, t: float, s: float, z: np.ndarray) -> np.ndarray:
        a, variance = forward_variance(on, t, s)
        return (x + variance * on.score(x, t)) / a + np.sqrt(variance_of(on, t, s)) * z[0]

    return step


# --- Heun's rule ------------------------------------------------------------------------------------------------------


def trapezoid(on: Setting, x: np.ndarray, t: float, s: float, z: np.ndarray) -> np.ndarray:
    """∫x0 dα + ∫eps dσ by the trapezoid, with the left end's rule in between."""
    alphas, sigmas = ([member(t), member(s)] for member in (on.alpha, on.sigma))
    first = on.members(x, t)
    second = on.members(alphas[1] * first[0] + sigmas[1] * first[1], s)
    parts = (np.trapezoid([a, b], c, axis=0) for a, b, c in zip(first, second, (alphas, sigmas), strict=True))
    return x + sum(parts)


def algorithm_2(churn: float = 0.0, low: float = 0.0, high: float = np.inf, scale: float = 1.0) -> Step:
    """2206.00364, algorithm 2, for x/α and σ̃ = σ/α; the level after `s` is another step's."""

    def step(on: Setting, x: np.ndarray, t: float, s: float, z: np.ndarray) -> np.ndarray:
        y, sigma, after = x / on.alpha(t), np.exp(-on.log_ratio(t)), np.exp(-on.log_ratio(s))
        gamma = min(churn / len(on.times), np.sqrt(2) - 1) if low <= sigma <= high else 0.0
        raised = sigma + gamma * sigma
        y = y + np.sqrt(raised**2 - sigma**2) * scale * z[0]

        def slope(y: np.ndarray, level: float) -> np.ndarray:
            time = on.time(-np.log(level))
            return (y - on.members(on.alpha(time) * y, time)[0]) / level

        first = slope(y, raised)
        second = slope(y + (after - raised) * first, after)
        return on.alpha(s) * (y + (after - raised) * (first + second) / 2)

    return step


# --- exponential integrators ------------------------------------------------------------------------------------------


class Form(NamedTuple):
    """Of DPM-Solver ("eps", 2206.00927) or DPM-Solver++ ("x0", 2211.01095) with noise of strength η."""

    predict: str = "x0"
    eta: float = 0.0

    def value(self, on: Setting, x: np.ndarray, t: float) -> np.ndarray:
        return on.members(x, t)[self.predict == "eps"]

    def step(self, on: Setting, t: float, s: float) -> tuple[float, tuple[float, ...], float]:
        """The factor on x, those on the value and on its first and second differences, and the deviation of the
        noise."""
        h = on.log_ratio(s) - on.log_ratio(t)
        if self.predict == "eps":
            phi_1 = np.expm1(h)
            phi_2 = phi_1 / h - 1
            phi_3 = phi_2 / h - 0.5
            return on.alpha(s) / on.alpha(t), tuple(-on.sigma(s) * c for c in (phi_1, phi_2, phi_3)), 0.0
        longer = (1 + self.eta) * h
        phi_1 = np.expm1(-longer)
        phi_2 = phi_1 / longer + 1
        phi_3 = phi_2 / longer - 0.5
        ratio = on.sigma(s) / on.sigma(t) * np.exp(-self.eta * h)
        std = on.sigma(s) * np.sqrt(1 - np.exp(-2 * self.eta * h))
        return ratio, tuple(on.alpha(s) * c for c in (-phi_1, phi_2, -phi_3)), std

    def weight(self, on: Setting, s: float, h: float, after: float) -> float:
        """Of the value at λ_t + after (2206.00927, prop. 3.1; 2211.01095, prop. 4.1; 2309.05019, prop. 4.2)."""
        if self.predict == "eps":
            return -on.sigma(s) * np.exp(h - after)
        return on.alpha(s) * (1 + self.eta) * np.exp((1 + self.eta) * (after - h))


DATA = Form()


def part_of_step(on: Setting, t: float, s: float, part: float) -> float:
    return on.time((1 - part) * on.log_ratio(t) + part * on.log_ratio(s))


def runge_kutta(
    order: int, form: Form, on: Setting, x: np.ndarray, t: float, s: float, two: str = "midpoint"
) -> tuple[np.ndarray, list[Node]]:
    """DPM-Solver-2 and -3 (2206.00927, algorithms 1 and 2 with r = 1/2, and 1/3, 2/3), and their ++ forms: the end, and
    the first and the last node with their values. `two` is how 2S takes the difference of its values."""
    y = form.value(on, x, t)
    ratio, (first, second, _), _ = form.step(on, t, s)
    r_1, r_2 = 1 / order, 2 / 3
    m_1 = part_of_step(on, t, s, r_1)
    to_m, (first_m, _, _), _ = form.step(on, t, m_1)
    at_m = form.value(on, to_m * x + first_m * y, m_1)
    if order == 2:
        difference = {"midpoint": first / 2, "taylor": second}[two] * (at_m - y) / r_1
        return ratio * x + first * y + difference, [(on.log_ratio(t), y), (on.log_ratio(m_1), at_m)]
    m_2 = part_of_step(on, t, s, r_2)
    to_m, (first_m, second_m, _), _ = form.step(on, t, m_2)
    at_m = form.value(on, to_m * x + first_m * y + r_2 / r_1 * second_m * (at_m - y), m_2)
    return ratio * x + first * y + second / r_2 * (at_m - y), [(on.log_ratio(t), y), (on.log_ratio(m_2), at_m)]


def singlestep(order: int, predict: str = "x0") -> Published:
    return by_steps(lambda on, x, t, s, z: runge_kutta(order, Form(predict), on, x, t, s)[0])


def stochastic_two_stages(eta: float, added: float = 1.0) -> Step:
    """2S with noise in its stage and at its end, times `added`, whose correlation is that of a Brownian motion in σ/α
    (k-diffusion's rule)."""
    form = Form("x0", eta)

    def step(on: Setting, x: np.ndarray, t: float, s: float, z: np.ndarray) -> np.ndarray:
        m = part_of_step(on, t, s, 0.5)
        (to_m, (first_m, *_), early), (ratio, (first, *_), std) = form.step(on, t, m), form.step(on, t, s)
        stage = to_m * x + first_m * form.value(on, x, t) + early * z[0]
        levels = [np.exp(-on.log_ratio(u)) for u in (t, m, s)]
        share = (levels[0] - levels[1]) / (levels[0] - levels[2])
        late = std * (np.sqrt(share) * z[0] + np.sqrt(1 - share) * z[1])
        return ratio * x + first * form.value(on, stage, m) + added * late

    return step


def multistep(order: int, form: Form = DATA, *, two: str = "midpoint", second: float = 2.0) -> Published:
    """2M and 3M with steps of lower order first (2211.01095, algorithm 2; 3M as its authors' program has it, which
    leaves out the factor 2 of the second difference)."""

    def path(on: Setting) -> np.ndarray:
        states: list[np.ndarray] = [on.x]
        values: list[np.ndarray] = []
        times: list[float] = []
        for k, (t, s) in steps_of(on):
            x = states[-1]
            values, times = [form.value(on, x, t), *values], [t, *times]
            ratio, (first, by_first, by_second), std = form.step(on, t, s)
            h = on.log_ratio(s) - on.log_ratio(t)
            x = ratio * x + first * values[0] + std * on.z[k][0]
            r = [(on.log_ratio(a) - on.log_ratio(b)) / h for a, b in itertools.pairwise(times[:order])]
            d = [(values[i] - values[i + 1]) / r[i] for i in range(len(r))]
            if len(d) == 1:
                x = x + (first / 2 if two == "midpoint" else by_first) * d[0]
            if len(d) == 2:
                x = x + by_first * (d[0] + r[0] / (r[0] + r[1]) * (d[0] - d[1]))
                x = x + by_second * second * (d[0] - d[1]) / (r[0] + r[1])
            states.append(x)
        return np.stack(states)

    return path


def lagrange(nodes: list[float], j: int) -> Polynomial:
    """1 at node j, and 0 at the others."""
    others = [node for i, node in enumerate(nodes) if i != j]
    unscaled = Polynomial.fromroots(others) if others else Polynomial([1.0])
    return unscaled / unscaled(nodes[j])


def multistep_after_2s(order: int, form: Form = DATA, two: str = "midpoint") -> Published:
    """The first step is 2S, whose two evaluations are earlier nodes of the next; from there Lagrange's polynomial
    through the latest `order` nodes, integrated against the weight by quadrature, but for 2M's midpoint."""

    def path(on: Setting) -> np.ndarray:
        (_, (t, s)), *rest = steps_of(on)
        end, nodes = runge_kutta(2, form, on, on.x, t, s, two)
        states = [on.x, end]
        for _, (t, s) in rest:
            x, start, h = states[-1], on.log_ratio(t), on.log_ratio(s) - on.log_ratio(t)
            nodes = [*nodes, (start, form.value(on, x, t))][-order:]
            ratio, (first, *_), _ = form.step(on, t, s)
            weights = [weight_of_node(on, form, s, h, [node - start for node, _ in nodes], j) for j in range(order)]
            if order == 2 and two == "midpoint":
                older = first / 2 * h / (nodes[0][0] - start)
                weights = [older, first - older]
            states.append(ratio * x + sum(c * value for c, (_, value) in zip(weights, nodes, strict=True)))
        return np.stack(states)

    return path


def weight_of_node(on: Setting, form: Form, s: float, h: float, nodes: list[float], j: int) -> float:
    """∫₀^h weight·ℓ_j."""
    basis = lagrange(nodes, j)
    integrand = lambda after: form.weight(on, s, h, after) * basis(after)  # noqa: E731
    return scipy.integrate.quad(integrand, 0, h, epsabs=0, epsrel=1e-13)[0]


def sa_solver(order: int, eta: float) -> Published:
    """2309.05019, algorithm 1 in PEC: the polynomial through the latest `order` values takes x ahead; with the value at
    its end, `order` + 1 of them take it there again, on the same noise. The last state is not corrected."""
    form = Form("x0", eta)

    def moved(on: Setting, x: np.ndarray, t: float, s: float, z: np.ndarray, nodes: list[Node]) -> np.ndarray:
        start, h = on.log_ratio(t), on.log_ratio(s) - on.log_ratio(t)
        ratio, _, std = form.step(on, t, s)
        weights = [weight_of_node(on, form, s, h, [node - start for node, _ in nodes], j) for j in range(len(nodes))]
        return ratio * x + sum(c * value for c, (_, value) in zip(weights, nodes, strict=True)) + std * z

    def path(on: Setting) -> np.ndarray:
        states, nodes, before = [on.x], list[Node](), on.x
        for k, (t, s) in steps_of(on):
            x = states[-1]
            nodes = [*nodes, (on.log_ratio(t), form.value(on, x, t))][-order - 1 :]
            if k > 0:
                x = moved(on, before, on.times[k - 1], t, on.z[k - 1][0], nodes)
            before = x
            states.append(moved(on, x, t, s, on.z[k][0], nodes[-order:]))
        return np.stack(states)

    return path


def deis(order: int, start: int = 1) -> Published:
    """2204.13902 with polynomials in σ̃ = σ/α, in which the flow of x/α has the slope eps: Adams–Bashforth, the first
    step by Euler's rule, the midpoint's, or Heun's of third order."""

    def path(on: Setting) -> np.ndarray:
        states, nodes = [on.x], list[Node]()
        for k, (t, s) in steps_of(on):
            y, clock = states[-1] / on.alpha(t), np.exp(-on.log_ratio(t))
            h = np.exp(-on.log_ratio(s)) - clock

            def slope(y: np.ndarray, clock: float) -> np.ndarray:
                time = on.time(-np.log(clock))
                return on.members(on.alpha(time) * y, time)[1]

            nodes = [*nodes, (clock, slope(y, clock))][-order:]
            if k == 0 and start == 2:
                nodes.append((clock + h / 2, slope(y + h / 2 * nodes[0][1], clock + h / 2)))
                y = y + h * nodes[1][1]
            elif k == 0 and start == 3:
                third = slope(y + h / 3 * nodes[0][1], clock + h / 3)
                nodes.append((clock + 2 * h / 3, slope(y + 2 * h / 3 * third, clock + 2 * h / 3)))
                y = y + h * (nodes[0][1] + 3 * nodes[1][1]) / 4
            else:
                integrals = [lagrange([node for node, _ in nodes], j).integ(lbnd=clock) for j in range(len(nodes))]
                y = y + sum(c(clock + h) * value for c, (_, value) in zip(integrals, nodes, strict=True))
            states.append(on.alpha(s) * y)
        return np.stack(states)

    return path


# --- UniPC ------------------------------------------------------------------------------------------------------------


def unified(b: str, on: Setting, x: np.ndarray, t: float, s: float, nodes: list[Node]) -> np.ndarray:
    """2302.04867, UniP and UniC for data prediction: a step from t to s with the value at t and others, r_m·h after it;
    R_p(h)·a = φ_p(h)/B(h), and a = ½ where there is one."""
    start = on.log_ratio(t)
    h = on.log_ratio(s) - start
    ((_, value),) = [node for node in nodes if node[0] == start]
    others = [node for node in nodes if node[0] != start]
    scale = {"bh1": h, "bh2": -np.expm1(-h)}[b]
    r = np.array([(node - start) / h for node, _ in others])
    p = len(others)
    x = on.sigma(s) / on.sigma(t) * x - on.alpha(s) * np.expm1(-h) * value
    if p == 0:
        return x
    a = np.array([0.5])
    if p > 1:
        a = np.linalg.solve(np.vander(r, p, increasing=True).T, [psi(k, h) / scale for k in range(1, p + 1)])
    differences = [(other - value) / r_m for (_, other), r_m in zip(others, r, strict=True)]
    return x + on.alpha(s) * scale * sum(a_m * d for a_m, d in zip(a, differences, strict=True))


def psi(k: int, h: float) -> float:
    """What UniPC calls φ_k, without the powers of h that R(h) has in it: h·∫₀¹ e^{(u − 1)h}·u^k du."""
    return h * scipy.integrate.quad(lambda u: np.exp((u - 1) * h) * u**k, 0, 1, epsabs=0, epsrel=1e-13)[0]


#: (setting, x, t, z) -> x: what a corrector of the user's does before a step.
Move = Callable[[Setting, np.ndarray, float, np.ndarray], np.ndarray]


#: Weights of the latest 1, 2, 3 and 4 slopes (2202.09778, eq. 12, and its start).
IPNDM = ([1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24])


def ipndm(on: Setting) -> np.ndarray:
    """eps replaced by a mean of the latest four, in DDIM's step."""
    states, latest = [on.x], list[np.ndarray]()
    for _, (t, s) in steps_of(on):
        x = states[-1]
        latest = [on.members(x, t)[1], *latest][:4]
        eps = sum(w * y for w, y in zip(IPNDM[len(latest) - 1], latest, strict=True))
        states.append(on.alpha(s) * (x - on.sigma(t) * eps) / on.alpha(t) + on.sigma(s) * eps)
    return np.stack(states)


def euler_in_sigma(kappa: float) -> Step:
    """d(x/α) = (1 + κ²)·eps·dσ̃ + κ·√(2σ̃)·dw, the drift held and the noise integrated over the step."""

    def step(on: Setting, x: np.ndarray, t: float, s: float, z: np.ndarray) -> np.ndarray:
        before, after = (on.sigma(u) / on.alpha(u) for u in (t, s))
        moved = x / on.alpha(t) + (1 + kappa**2) * (after - before) * on.members(x, t)[1]
        return on.alpha(s) * (moved + kappa * np.sqrt(before**2 - after**2) * z[0])

    return step


def unipc(order: int, b: str = "bh2", *, start: int = 1, move: Move | None = None) -> Published:
    """UniPC with one evaluation a step: the value at a predicted state corrects it and serves the next prediction. The
    last state is not corrected. What `move` adds to a state stays added."""

    def path(on: Setting) -> np.ndarray:
        states, nodes, before = [on.x], list[Node](), None
        for k, (t, s) in steps_of(on):
            predicted = states[-1]
            x = predicted if move is None else move(on, predicted, t, on.z[k])
            here = (on.log_ratio(t), on.members(x, t)[0])
            if before is not None:
                x = x + unified(b, on, *before, t, [*nodes[:order], here]) - predicted
            before = (x, t)
            if k == 0 and start == 3:
                end, (first, last) = runge_kutta(3, DATA, on, x, t, s)
                nodes = [last, first]
            else:
                nodes = [here, *nodes]
                end = unified(b, on, x, t, s, nodes[:order])
            states.append(end)
        return np.stack(states)

    return path
