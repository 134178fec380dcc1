"""Independent float64 references in numpy for the methods that change credit, selection or the mean: loops over rows and decisions,
gradients by hand, from the definitions. Nothing here uses torch or a function of the library.

A batch is a dict of arrays (None where a field is missing, extra inputs by their names). Every option of a method that has a
definition of its own stands in RECIPES under an id of its own, `gdpo-tokens`, `drpo-flat`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, exp, lgamma, log, sqrt
from typing import Any

import numpy as np
from references import Batch, clipped, outcomes, valid_steps

LEAVES = ("logp", "entropy", "value")
Local = Callable[[int, int], tuple[float, float]]
"""What a decision adds to a loss, and its slope in the decision's log-probability."""

RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gdpo": ("gdpo", {}),
    "gdpo-weights": ("gdpo", {"weights": (2.0, 0.25)}),
    "gdpo-tokens": ("gdpo", {"tokens": True}),
    "gdpo-gated": ("gdpo", {"gate": 0}),
    "bnpo": ("bnpo", {}),
    "riskpo": ("riskpo", {}),
    "riskpo-tracked": ("riskpo", {"tracked": (0.7, 2.1)}),
    "riskpo-neutral": ("riskpo", {"averse": 0.0, "bundle": 2}),
    "riskpo-levels": ("riskpo", {"levels": (0.4, 0.6), "averse": 3.0, "bundle": 1}),
    "empg": ("empg", {}),
    "empg-strong": ("empg", {"k": 2.0, "k_next": 0.5, "zeta": 0.4}),
    "empg-rows": ("empg", {}),
    "d3s": ("d3s", {}),
    "d3s-half": ("d3s", {"rows": 0.375, "tokens": 0.4}),
    "d3s-late": ("d3s", {"rows": 0.5, "tokens": 0.6}),
    "d3s-all": ("d3s", {"rows": 1.0, "tokens": 1.0}),
    "thinkless": ("thinkless", {}),
    "thinkless-half": ("thinkless", {"alpha": 0.5}),
    "oblr-po": ("oblr-po", {}),
    "oblr-po-others": ("oblr-po", {"others": True}),
    "grpo-vps": ("grpo-vps", {}),
    "grpo-vps-third": ("grpo-vps", {"alpha": 1 / 3}),
    "knapsack-rl": ("knapsack-rl", {}),
    "papo": ("papo", {}),
    "papo-entropy": ("papo", {"gamma": 0.5, "eta": 0.05}),
    "papo-dapo": ("papo", {"gamma": 0.01, "eta": 0.03, "beta": 0.0, "high": 0.28, "drop": True}),
    "drpo": ("drpo", {}),
    "drpo-flat": ("drpo", {"lam": 1e9}),
    "drpo-sharp": ("drpo", {"tau": 0.5, "lam": 0.5, "beta": 3.0, "delta": 0.05}),
}


def prepare(recipe: str, b: Batch) -> dict[str, np.ndarray]:
    """mask [N, T] and, unless the method needs none, advantage [N, T]."""
    name, options = RECIPES[recipe]
    b = b | {"mask": b["mask"].astype(bool)}
    b["mask"] = b["mask"] & ~np.isnan(outcomes(b))[:, None]  # a row without an outcome is out
    found = {
        "gdpo": gdpo_credit, "bnpo": bnpo_credit, "riskpo": riskpo_credit, "empg": empg_credit, "d3s": d3s_credit,
        "oblr-po": oblr_credit, "grpo-vps": vps_credit, "papo": papo_credit, "thinkless": centred_credit,
        "drpo": lambda b, **_: {"mask": b["mask"]},
    }.get(name, group_credit)(b, **options)  # fmt: skip
    return {"mask": b["mask"]} | found


def loss(recipe: str, b: Batch) -> tuple[float, dict[str, np.ndarray]]:
    """The loss and its gradient in every leaf."""
    name, options = RECIPES[recipe]
    b = b | {"mask": b["mask"].astype(bool)}
    found = Tally(b)
    if name == "drpo":
        drpo(found, b, **options)
    elif name == "papo":
        papo(found, b, **options)
    elif name == "thinkless":
        thinkless(found, b, **options)
    else:
        over = {"bnpo": "sum", "riskpo": "token", "d3s": "token", "knapsack-rl": "group"}.get(name, "row")
        high, dual = {"bnpo": (0.28, 10.0), "riskpo": (0.2, 3.0)}.get(name, (0.2, None))
        found.mean(coefficients(b, over), surrogate(b, high, dual), -1.0)
    return found.total, found.slopes


# ------------------------------------------------------------------------------------------------ small things


class Tally:
    """A loss and its gradient, added up decision by decision."""

    def __init__(self, b: Batch) -> None:
        self.b, self.total = b, 0.0
        self.slopes = {leaf: np.zeros(b["mask"].shape) for leaf in LEAVES}

    def mean(self, c: np.ndarray, local: Local, factor: float = 1.0) -> None:
        """Adds factor * sum_{i,t} c_{i,t} w_{i,t} local(i, t)."""
        for i, t in places(self.b):
            value, slope = local(i, t)
            scale = factor * c[i, t] * weight_of(self.b, i, t)
            self.total += scale * value
            self.slopes["logp"][i, t] += scale * slope


def places(b: Batch) -> list[tuple[int, int]]:
    return [(i, t) for i in range(len(b["mask"])) for t in valid_steps(b["mask"], i)]


def weight_of(b: Batch, i: int, t: int) -> float:
    return 1.0 if b["weight"] is None else b["weight"][i, t]


def groups_of(b: Batch) -> list[list[int]]:
    """Rows of every group in batch order; groups in ascending id."""
    ids = sorted({int(g) for g in b["group"]})
    return [[i for i, g in enumerate(b["group"]) if g == want] for want in ids]


def total_of(values: Sequence[float]) -> float:
    """From left to right, nothing compensated, so that rows with equal credit have it to the last bit."""
    found = 0.0
    for v in values:
        found += v
    return found


def mean_of(values: Sequence[float]) -> float:
    return total_of(values) / len(values)


def std_of(values: Sequence[float]) -> float:
    """Sample standard deviation; exactly 0 for one value and for equal ones."""
    if len(values) < 2 or max(values) == min(values):
        return 0.0
    m = mean_of(values)
    return sqrt(total_of([(v - m) * (v - m) for v in values]) / (len(values) - 1))


def z_scores(values: Sequence[float], eps: float) -> list[float]:
    s = std_of(values)
    return [(v - mean_of(values)) / (s + eps) if s > 0 else 0.0 for v in values]


def within_groups(b: Batch, scores: np.ndarray, f: Callable[[list[float]], list[float]]) -> np.ndarray:
    """f of every group's known scores, 0 for rows without one."""
    found = np.zeros(len(scores))
    for rows in groups_of(b):
        known = [i for i in rows if not np.isnan(scores[i])]
        for i, a in zip(known, f([scores[i] for i in known]), strict=True):
            found[i] = a
    return found


def on_decisions(b: Batch, a: np.ndarray) -> np.ndarray:
    found = np.zeros(b["mask"].shape)
    for i, t in places(b):
        found[i, t] = a[i]
    return found


def channels_of(b: Batch) -> np.ndarray:
    return b["scores"].copy() if b["scores"] is not None else outcomes(b)[:, None]


def coefficients(b: Batch, over: str) -> np.ndarray:
    """c_{i,t} of the mean sum_{i,t} c_{i,t} x_{i,t}."""
    rows, c = len(b["mask"]), np.zeros(b["mask"].shape)
    groups = groups_of(b)
    for i, t in places(b):
        length = len(valid_steps(b["mask"], i))
        size = next(len(g) for g in groups if i in g)
        c[i, t] = {
            "token": 1 / len(places(b)),
            "row": 1 / (rows * length),
            "sum": 1 / rows,
            "group": 1 / (len(groups) * size * length),
        }[over]
    return c


def log_ratio(b: Batch, i: int, t: int) -> float:
    return b["logp"][i, t] - b["logp_old"][i, t]


def surrogate(b: Batch, high: float = 0.2, dual: float | None = None) -> Local:
    def local(i: int, t: int) -> tuple[float, float]:
        a = b["advantage"][i, t]
        s, slope = clipped(log_ratio(b, i, t), a, 0.2, high)
        return (dual * a, 0.0) if dual is not None and a < 0 and s < dual * a else (s, slope)

    return local


def k3(b: Batch) -> Local:
    def local(i: int, t: int) -> tuple[float, float]:
        d = b["logp_ref"][i, t] - b["logp"][i, t]
        return exp(d) - d - 1, 1 - exp(d)

    return local


# ------------------------------------------------------------------------------------------------ credit


def group_credit(b: Batch) -> dict[str, np.ndarray]:
    return {"advantage": on_decisions(b, within_groups(b, outcomes(b), lambda s: z_scores(s, 1e-6)))}


def centred_credit(b: Batch, **_: Any) -> dict[str, np.ndarray]:
    def centred(s: list[float]) -> list[float]:
        return [v - mean_of(s) if std_of(s) > 0 else 0.0 for v in s]

    return {"advantage": on_decisions(b, within_groups(b, outcomes(b), centred))}


def gdpo_credit(
    b: Batch, weights: tuple[float, ...] | None = None, tokens: bool = False, gate: int | None = None
) -> dict[str, np.ndarray]:
    raw = channels_of(b)
    there = [i for i in range(len(raw)) if not all(np.isnan(raw[i]))]
    raw = np.where(np.isnan(raw), 0.0, raw)  # a channel that does not apply
    if gate is not None:
        for i in there:
            for k in range(raw.shape[1]):
                if k != gate and not raw[i, gate] > 0.5:
                    raw[i, k] = 0.0
    raw[[i for i in range(len(raw)) if i not in there]] = np.nan
    s = np.zeros(len(raw))
    for k in range(raw.shape[1]):
        z = within_groups(b, raw[:, k], lambda v: z_scores(v, 1e-4))
        s += (1.0 if weights is None else weights[k]) * z
    if raw.shape[1] == 1:
        return {"advantage": on_decisions(b, s)}
    if not tokens:
        a = np.zeros(len(s))
        a[there] = z_scores([s[i] for i in there], 1e-4)
        return {"advantage": on_decisions(b, a)}
    found, everywhere = np.zeros(b["mask"].shape), [s[i] for i, _ in places(b)]
    if len(everywhere) > 1:
        m = mean_of(everywhere)
        spread = sqrt(total_of([(v - m) ** 2 for v in everywhere]) / (len(everywhere) - 1))
        for i, t in places(b):
            found[i, t] = (s[i] - m) / (spread + 1e-8)
    return {"advantage": found}


def beta_density(p: float, alpha: float, beta: float) -> float:
    if p in (0.0, 1.0) and (alpha if p == 0.0 else beta) > 1:
        return 0.0
    area = lgamma(alpha) + lgamma(beta) - lgamma(alpha + beta)
    return exp((log(p) * (alpha - 1) if alpha > 1 else 0.0) + (log(1 - p) * (beta - 1) if beta > 1 else 0.0) - area)


def beta_parameters(rates: Sequence[float]) -> tuple[float, float]:
    """Of the normaliser, from the success rates of the groups by moments."""
    if len(rates) < 2 or (v := std_of(rates) ** 2) <= 1e-12:
        return 1.0, 1.0
    mu = mean_of(rates)
    c = mu * (1 - mu) / v - 1
    return max(1 + c * mu / 3, 1.0), max(1 + c * (1 - mu) / 3, 1.0)


def bnpo_credit(b: Batch) -> dict[str, np.ndarray]:
    raw = channels_of(b)
    total = np.zeros(len(raw))
    for k in range(raw.shape[1]):
        r = raw[:, k]
        large = [s for rows in groups_of(b) if len(s := [r[i] for i in rows if not np.isnan(r[i])]) > 1]
        alpha, beta = beta_parameters([mean_of(s) for s in large])

        def normalized(s: list[float], alpha: float = alpha, beta: float = beta) -> list[float]:
            if len(s) < 2:
                return [0.0] * len(s)
            density = beta_density(mean_of(s), alpha, beta)
            return [(v - mean_of(s)) * (min(1 / density, 1e6) if density > 0 else 1e6) for v in s]

        total += within_groups(b, r, normalized)
    return {"advantage": on_decisions(b, total / raw.shape[1])}


def bundles_of(b: Batch, bundle: int) -> list[list[list[int]]]:
    """Papers of every bundle, each a list of one row per prompt."""
    scores = outcomes(b)
    members = [known for rows in groups_of(b) if (known := [i for i in rows if not np.isnan(scores[i])])]
    chunks = [members[k : k + bundle] for k in range(0, len(members), bundle)]
    return [[[rows[j] for rows in chunk] for j in range(min(len(rows) for rows in chunk))] for chunk in chunks]


def quantile(values: Sequence[float], level: float) -> float:
    ordered, at = sorted(values), level * (len(values) - 1)
    low = int(at)
    high = min(low + 1, len(values) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def riskpo_credit(
    b: Batch,
    levels: tuple[float, float] = (0.2, 0.9),
    averse: float = 1.5,
    bundle: int = 5,
    tracked: tuple[float, float] | None = None,
) -> dict[str, np.ndarray]:
    scores, (low, high) = outcomes(b), levels
    own = np.ones(len(scores))
    for rows in groups_of(b):
        s = std_of([scores[i] for i in rows if not np.isnan(scores[i])])
        own[rows] = s if s > 1e-3 else 1.0
    a = np.zeros(len(scores))
    for papers in bundles_of(b, bundle):
        x = [total_of([scores[i] for i in paper]) for paper in papers]
        q_lo, q_hi = tracked or (quantile(x, low), quantile(x, high))
        spread = std_of(x) if len(x) > 1 else 1.0
        for paper, v in zip(papers, x, strict=True):
            middle = (max(v - q_lo, 0) - max(v - q_hi, 0) + q_lo - q_hi) / (high - low + 1e-6)
            tail = -max(q_lo - v, 0) / (low + 1e-6)
            for i in paper:
                a[i] = (averse * tail + middle) / (averse + 1) / (spread + 1e-6) / (own[i] + 1e-6)
    return {"advantage": on_decisions(b, a)}


def empg_credit(b: Batch, k: float = 1.0, k_next: float = 1.0, zeta: float = 0.05) -> dict[str, np.ndarray]:
    base = within_groups(b, outcomes(b), lambda s: z_scores(s, 1e-6))
    blocks: list[tuple[int, list[int]]] = []
    for i in range(len(base)):
        steps = valid_steps(b["mask"], i)
        names = [0] * len(steps) if b["segment"] is None else [int(b["segment"][i, t]) for t in steps]
        blocks += [(i, [t for t, n in zip(steps, names, strict=True) if n == name]) for name in sorted(set(names))]
    found = np.zeros(b["mask"].shape)
    if not blocks:
        return {"advantage": found}
    h = [mean_of([b["entropy"][i, t] for t in ts]) for i, ts in blocks]
    h = [(v - min(h)) / (max(h) - min(h) + 1e-8) for v in h]
    scale = mean_of([exp(-k * v) for v in h])
    modulated = []
    for at, (i, _) in enumerate(blocks):
        follows = at + 1 < len(blocks) and blocks[at + 1][0] == i
        modulated.append(base[i] * exp(-k * h[at]) / scale + (zeta * exp(-k_next * h[at + 1]) if follows else 0.0))
    for (i, ts), m in zip(blocks, modulated, strict=True):
        found[i, ts] = m - mean_of(modulated)
    return {"advantage": found}


def variance_of(values: Sequence[float]) -> float:
    """Of a population; exactly 0 for equal values."""
    if not len(values) or max(values) == min(values):
        return 0.0
    m = mean_of(values)
    return mean_of([(v - m) * (v - m) for v in values])


def d3s_credit(b: Batch, rows: float = 0.25, tokens: float = 0.2) -> dict[str, np.ndarray]:
    a = within_groups(b, outcomes(b), lambda s: z_scores(s, 1e-6))
    size, order = ceil(rows * len(a)), sorted(range(len(a)), key=lambda i: a[i])
    choices = [order[:i] + order[len(a) - size + i :] for i in range(size + 1)]
    spread = [variance_of([a[k] for k in some]) for some in choices]
    kept = choices[next(i for i, v in enumerate(spread) if v >= max(spread) * (1 - 1e-9))]
    found = [p for p in places(b) if p[0] in kept]
    ranked = sorted(found, key=lambda p: -abs(a[p[0]]) * b["entropy"][p])  # stable: earlier ones first
    mask = np.zeros(b["mask"].shape, bool)
    for p in ranked[: ceil(round(tokens * len(found), 9))]:
        mask[p] = True
    return {"mask": mask, "advantage": on_decisions({**b, "mask": mask}, a)}


def oblr_credit(b: Batch, others: bool = False) -> dict[str, np.ndarray]:
    scores, w = outcomes(b), []
    for i in range(len(scores)):
        if b.get("grad_norm") is not None:
            w.append(b["grad_norm"][i])
        elif b.get("score_norm") is not None:
            w.append(total_of([b["score_norm"][i, t] for t in valid_steps(b["mask"], i)]))
        else:
            w.append(1.0)
    a = np.zeros(len(scores))
    for rows in groups_of(b):
        known = [i for i in rows if not np.isnan(scores[i])]
        if std_of([scores[i] for i in known]) == 0:
            continue
        for i in known:
            of = [j for j in known if j != i] if others else known
            whole = total_of([w[j] for j in of])
            plain = mean_of([scores[j] for j in of])
            a[i] = scores[i] - (total_of([w[j] * scores[j] for j in of]) / whole if whole > 1e-12 else plain)
    return {"advantage": on_decisions(b, a)}


def vps_credit(b: Batch, alpha: float = 1.0) -> dict[str, np.ndarray]:
    found = group_credit(b)["advantage"]
    for i, t in places(b):
        found[i, t] += alpha * (0.0 if b["reward"] is None else b["reward"][i, t])
    return {"advantage": found}


def papo_credit(b: Batch, drop: bool = False, **_: Any) -> dict[str, np.ndarray]:
    """drop: as in DAPO, groups that agree and rows that were cut leave the mask."""
    if not drop:
        return group_credit(b)
    scores, mask = outcomes(b), b["mask"].copy()
    for rows in groups_of(b):
        if std_of([scores[i] for i in rows if not np.isnan(scores[i])]) == 0:
            mask[rows] = False
    if b["truncated"] is not None:
        mask[b["truncated"].astype(bool)] = False
    return {"mask": mask, "advantage": np.where(mask, group_credit(b)["advantage"], 0.0)}


# ------------------------------------------------------------------------------------------------ losses


def thinkless(found: Tally, b: Batch, alpha: float = 1e-3) -> None:
    control = {(i, valid_steps(b["mask"], i)[0]) for i in range(len(b["mask"])) if valid_steps(b["mask"], i)}
    rest = [p for p in places(b) if p not in control]
    c = np.zeros(b["mask"].shape)
    for p in places(b):
        c[p] = alpha / len(control) if p in control else 1 / len(rest)
    found.mean(c, surrogate(b), -1.0)
    found.mean(coefficients(b, "token"), k3(b), 1e-3)


def papo(
    found: Tally,
    b: Batch,
    gamma: float = 0.02,
    eta: float = 0.0,
    beta: float = 0.01,
    high: float = 0.2,
    drop: bool = False,
) -> None:
    def perception(i: int, t: int) -> tuple[float, float]:
        d = b["logp_ablated"][i, t] - b["logp"][i, t]
        held = min(max(d, -20.0), 20.0)
        value = exp(held) - held - 1
        if value > 10:
            return 10.0, 0.0
        return value, 1 - exp(d) if d == held else 0.0

    c = coefficients(b, "token")
    found.mean(c, surrogate(b, high), -1.0)
    found.mean(c, k3(b), beta)
    found.mean(c, perception, -gamma)
    found.mean(c, lambda i, t: (-b["logp"][i, t] - b["logp_ablated"][i, t], -1.0), eta)


def drpo(found: Tally, b: Batch, tau: float = 10.0, lam: float = 0.1, beta: float = 1e3, delta: float = 1e-4) -> None:
    """A row counts as much as its decisions weigh on average."""
    width, groups = b["mask"].shape[1], groups_of(b)
    for rows in groups:
        there = [i for i in rows if valid_steps(b["mask"], i)]
        size = {i: len(valid_steps(b["mask"], i)) for i in there}
        likely = {i: total_of([b["logp"][i, t] for t in valid_steps(b["mask"], i)]) / size[i] for i in there}
        counts = {i: mean_of([weight_of(b, i, t) for t in valid_steps(b["mask"], i)]) for i in there}
        right = [i for i in there if b["score"][i] > 0.5 and counts[i] > 0]
        wrong = [i for i in there if b["score"][i] <= 0.5 and counts[i] > 0]
        if not right or not wrong:
            continue
        w = {i: counts[i] * exp((1 - size[i] / width) / lam) for i in right}
        v = {j: counts[j] * exp(likely[j] / tau) for j in wrong}
        whole = sum(w.values())
        j_q = sum(w[i] / whole * likely[i] for i in right)
        j_q -= tau * log(sum(v.values()) / sum(counts[j] for j in wrong))
        found.total -= j_q / len(groups)
        slope = {i: w[i] / whole for i in right} | {j: -v[j] / sum(v.values()) for j in wrong}
        for i, s in slope.items():
            for t in valid_steps(b["mask"], i):
                found.slopes["logp"][i, t] -= s / size[i] / len(groups)
    c = coefficients(b, "token")
    kl = sum(c[p] * weight_of(b, *p) * -log_ratio(b, *p) for p in places(b))
    excess = max(kl - delta, 0.0)
    found.total += beta / 2 * excess**2
    for p in places(b):
        found.slopes["logp"][p] -= beta * excess * c[p] * weight_of(b, *p)


# ------------------------------------------------------------------------------------------------ what outlives a batch


def tracked(history: Sequence[Sequence[float]], level: float, rate: float = 0.1) -> float:
    """The followed quantile after batches with these papers."""
    q = quantile(history[0], level)
    for x in history[1:]:
        q += rate * (level - sum(v < q for v in x) / len(x))
    return q


def paper_scores(b: Batch, bundle: int = 5) -> list[float]:
    scores = outcomes(b)
    return [total_of([scores[i] for i in paper]) for papers in bundles_of(b, bundle) for paper in papers]


def budget_value(n: int, p: float) -> float:
    return (1 - p**n - (1 - p) ** n) * p * (1 - p) ** 2


def best_budget(rates: Sequence[float], total: int, low: int, high: int) -> float:
    """The largest sum of values within the total, by dynamic programming over the prompts."""
    best = [0.0] + [-np.inf] * total
    for p in rates:
        best = [
            max((best[spent - n] + budget_value(n, p) for n in range(low, min(high, spent) + 1)), default=-np.inf)
            for spent in range(total + 1)
        ]
    return max(best)
