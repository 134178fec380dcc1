"""Independent float64 references in numpy for the methods of every family: loops over rows and decisions, from the definitions.

`advantages(name, b)` is what prepare has to fill. `objective(name, b, x)` is the loss as a function of the differentiable arrays in x
(logp, entropy, value, ...); whatever a definition detaches is read from the batch b instead, so that differences of the objective
are its gradient. Nothing here uses torch or a function of the library.
"""

from __future__ import annotations

from itertools import groupby
from math import ceil, exp, gamma, log, sqrt, tanh
from typing import Any

import numpy as np

Batch = dict[str, Any]


def steps(b: Batch, i: int) -> list[int]:
    return [t for t in range(b["mask"].shape[1]) if b["mask"][i, t]]


def members(b: Batch) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for i, g in enumerate(b["group"]):
        found.setdefault(int(g), []).append(i)
    return dict(sorted(found.items()))


def std(values: list[float]) -> float:
    if len(values) < 2 or max(values) == min(values):
        return 0.0
    mean = sum(values) / len(values)
    return sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def z_scores(b: Batch, values: np.ndarray, eps: float, center: str = "mean", scale: bool = True) -> np.ndarray:
    out = np.zeros(len(values))
    for rows in members(b).values():
        some = [values[i] for i in rows]
        if std(some) == 0:
            continue
        for i in rows:
            out[i] = (values[i] - sum(some) / len(some)) / (std(some) + eps if scale else 1.0)
    return out


def broadcast(b: Batch, row: np.ndarray) -> np.ndarray:
    out = np.zeros(b["mask"].shape)
    for i in range(len(out)):
        for t in steps(b, i):
            out[i, t] = row[i]
    return out


# ------------------------------------------------------------------------------------------------ prepare


def advantages(name: str, b: Batch) -> np.ndarray:
    return {
        "gdpo": gdpo, "bnpo": bnpo, "riskpo": riskpo, "empg": empg, "oblr-po": oblr, "safe": safe_credit, "t-ppo": egae,
        "mdpo": mdpo_credit, "brrl": brrl_credit,
    }.get(name, plain(name))(b)  # fmt: skip


def plain(name: str) -> Any:
    centred = name in ("rec", "thinkless", "hpt")
    eps = 1e-4 if name == "ghpo" else 1e-6
    return lambda b: broadcast(b, z_scores(b, b["score"], eps, scale=not centred))


def gdpo(b: Batch) -> np.ndarray:
    columns = b["scores"].T if b["scores"] is not None else [b["score"]]
    z = [z_scores(b, np.asarray(c), 1e-4) for c in columns]
    if len(z) == 1:
        return broadcast(b, z[0])
    total = list(sum(z))
    spread, mean = std(total), sum(total) / len(total)
    return broadcast(b, np.array([(s - mean) / (spread + 1e-4) if spread else 0.0 for s in total]))


def beta_pdf(p: float, a: float, c: float) -> float:
    return p ** (a - 1) * (1 - p) ** (c - 1) * gamma(a + c) / (gamma(a) * gamma(c))


def bnpo(b: Batch) -> np.ndarray:
    groups = [rows for rows in members(b).values() if len(rows) > 1]
    p = [sum(b["score"][i] for i in rows) / len(rows) for rows in groups]
    alpha = beta = 1.0
    if len(p) > 1 and (v := std(p) ** 2) > 1e-12:
        mu = sum(p) / len(p)
        c = mu * (1 - mu) / v - 1
        alpha, beta = max(1 + c * mu / 3, 1), max(1 + c * (1 - mu) / 3, 1)
    out = np.zeros(len(b["score"]))
    for rows, rate in zip(groups, p, strict=True):
        density = beta_pdf(rate, alpha, beta)
        for i in rows:
            out[i] = (b["score"][i] - rate) * min(1 / density if density else 1e6, 1e6) if 0 < rate < 1 else 0.0
    return broadcast(b, out)


def riskpo(b: Batch) -> np.ndarray:
    groups = list(members(b).values())
    out = np.zeros(len(b["score"]))
    for k in range(0, len(groups), 5):
        bundle = groups[k : k + 5]
        n = min(len(rows) for rows in bundle)
        x = np.array([sum(b["score"][rows[j]] for rows in bundle) for j in range(n)])
        lo, hi = np.quantile(x, 0.2), np.quantile(x, 0.9)
        scale = float(np.std(x, ddof=1)) if n > 1 else 1.0
        for j in range(n):
            middle = (max(x[j] - lo, 0) - max(x[j] - hi, 0) + lo - hi) / (0.7 + 1e-6)
            tail = -max(lo - x[j], 0) / (0.2 + 1e-6)
            paper = (1.5 * tail + middle) / 2.5 / (scale + 1e-6)
            for rows in bundle:
                own = std([b["score"][i] for i in rows])
                out[rows[j]] = paper / ((own if own > 1e-3 else 1.0) + 1e-6)
    return broadcast(b, out)


def empg(b: Batch) -> np.ndarray:
    base, blocks = z_scores(b, b["score"], 1e-6), []
    for i in range(len(base)):
        by = sorted((int(b["segment"][i, t]), t) for t in steps(b, i))
        blocks += [(i, [t for _, t in some]) for _, some in groupby(by, key=lambda pair: pair[0])]
    out = np.zeros(b["mask"].shape)
    if not blocks:
        return out
    h = np.array([np.mean([b["entropy"][i, t] for t in ts]) for i, ts in blocks])
    h = (h - h.min()) / (h.max() - h.min() + 1e-8)
    g = np.exp(-h) / np.mean(np.exp(-h))
    mod = [
        base[i] * g[k] + (0.05 * exp(-h[k + 1]) if k + 1 < len(blocks) and blocks[k + 1][0] == i else 0.0)
        for k, (i, _) in enumerate(blocks)
    ]
    for k, (i, ts) in enumerate(blocks):
        for t in ts:
            out[i, t] = mod[k] - np.mean(mod)
    return out


def oblr(b: Batch) -> np.ndarray:
    out = np.zeros(len(b["score"]))
    w = [max(sum(b["score_norm"][i, t] for t in steps(b, i)), 0.0) for i in range(len(out))]
    for rows in members(b).values():
        if std([b["score"][i] for i in rows]) == 0:
            continue
        total = sum(w[i] for i in rows)
        mean = sum(b["score"][i] for i in rows) / len(rows)
        base = sum(w[i] * b["score"][i] for i in rows) / total if total > 1e-12 else mean
        for i in rows:
            out[i] = b["score"][i] - base
    return broadcast(b, out)


def safe_credit(b: Batch) -> np.ndarray:
    a = []
    for i in range(len(b["score"])):
        values = [b["value"][i, t] for t in steps(b, i)]
        a.append(b["score"][i] - (sum(values) / len(values) if values else 0.0))
    mean = sum(a) / len(a)
    spread = sqrt(sum((x - mean) ** 2 for x in a) / max(len(a) - 1, 1))
    return broadcast(b, np.array([(x - mean) / (spread + 1e-8) for x in a]))


def gae_rows(b: Batch, gamma_: float, lam: float, held: bool) -> np.ndarray:
    out = np.zeros(b["mask"].shape)
    for i in range(len(out)):
        order = steps(b, i)
        ended = b["done"] is None or bool(b["done"][i])
        after = 0.0 if ended else (b["value"][i, order[-1]] if held and order else b["bootstrap"][i])
        carry = 0.0
        for k in reversed(range(len(order))):
            t = order[k]
            r = b["score"][i] if k == len(order) - 1 else 0.0
            delta = r + gamma_ * after - b["value"][i, t]
            carry = delta + gamma_ * lam * carry
            out[i, t], after = carry, b["value"][i, t]
    return out


def egae(b: Batch) -> np.ndarray:
    return gae_rows(b, 1.0, 0.95, held=True)


def mdpo_credit(b: Batch) -> np.ndarray:
    a, m = gae_rows(b, 0.99, 0.95, held=False), b["mask"]
    values = a[m]
    if len(values) == 0:
        return a
    return np.where(m, (a - values.mean()) / (values.std() + 1e-8), 0.0)


def brrl_credit(b: Batch) -> np.ndarray:
    out = z_scores(b, b["score"], 1e-6)
    for rows in members(b).values():
        if len(rows) == 1:
            out[rows[0]] = b["score"][rows[0]] / (1 + 1e-6)
    return broadcast(b, out)


def d3s_mask(b: Batch, share: float = 0.25, tokens: float = 0.2) -> np.ndarray:
    """Brute force over every subset of low and high values, then a sort of all keys."""
    a = z_scores(b, b["score"], 1e-6)
    order = sorted(range(len(a)), key=lambda i: a[i])
    size = ceil(share * len(a) - 1e-9)
    best, kept = -1.0, []
    for i in range(size + 1):
        some = order[:i] + order[len(a) - size + i :]
        spread = float(np.var([a[k] for k in some]))
        if spread > best * (1 + 1e-12) + 1e-15 or best < 0:
            best, kept = spread, some
    places = [(i, t) for i in sorted(kept) for t in steps(b, i)]
    ranked = sorted(places, key=lambda p: -abs(a[p[0]]) * b["entropy"][p])  # stable: earlier first
    mask = np.zeros(b["mask"].shape, bool)
    for p in ranked[: ceil(tokens * len(places) - 1e-9)]:
        mask[p] = True
    return mask


# ------------------------------------------------------------------------------------------------ objectives


def token_mean(b: Batch, f: Any) -> float:
    places = [(i, t) for i in range(len(b["mask"])) for t in steps(b, i)]
    return sum(f(i, t) for i, t in places) / max(len(places), 1)


def row_mean(b: Batch, f: Any) -> float:
    rows = range(len(b["mask"]))
    return sum(sum(f(i, t) for t in steps(b, i)) / max(len(steps(b, i)), 1) for i in rows) / max(len(b["mask"]), 1)


def clip(r: float, a: float, low: float, high: float, centre: float = 1.0, dual: float | None = None) -> float:
    s = min(r * a, min(max(r, centre - low), centre + high) * a)
    return max(s, dual * a) if dual is not None and a < 0 else s


def k3(d: float) -> float:
    return exp(d) - d - 1


def objective(name: str, b: Batch, x: Batch) -> float:
    a, old = b["advantage"], b["logp_old"]

    def u(i: int, t: int) -> float:
        return x["logp"][i, t] - old[i, t]

    def r(i: int, t: int) -> float:
        return exp(u(i, t))

    def mean_x(i: int) -> float:
        return sum(u(i, t) for t in steps(b, i)) / max(len(steps(b, i)), 1)

    def row_a(i: int) -> float:
        return sum(a[i, t] for t in steps(b, i)) / max(len(steps(b, i)), 1)

    def value_loss(target: Any = None, clipped: float | None = None, rows: Any = None) -> float:
        def one(i: int, t: int) -> float:
            v, goal = x["value"][i, t], b["returns"][i, t]
            e = (v - goal) ** 2
            if clipped is not None:
                near = b["value_old"][i, t] + min(max(v - b["value_old"][i, t], -clipped), clipped)
                e = max(e, (near - goal) ** 2)
            return 0.5 * e

        part = b if rows is None else {**b, "mask": b["mask"] & rows[:, None]}
        return 0.5 * token_mean(part, one)

    if name in ("gdpo", "empg", "ghpo", "grpo-vps", "oblr-po", "capo-curvature"):
        mean = token_mean if name == "ghpo" else row_mean
        return -mean(b, lambda i, t: clip(r(i, t), a[i, t], 0.2, 0.2))
    if name == "d3s":
        return -token_mean(b, lambda i, t: clip(r(i, t), a[i, t], 0.2, 0.2))
    if name == "bnpo":
        rows = range(len(b["mask"]))
        return -sum(clip(r(i, t), a[i, t], 0.2, 0.28, dual=10) for i in rows for t in steps(b, i)) / max(
            len(b["mask"]), 1
        )
    if name == "riskpo":
        return -token_mean(b, lambda i, t: clip(r(i, t), a[i, t], 0.2, 0.2, dual=3))
    if name == "bupo":
        return -token_mean(b, lambda i, t: clip(r(i, t), a[i, t], 0.2, 0.2, dual=10))
    if name == "thinkless":
        first = {(i, steps(b, i)[0]) for i in range(len(b["mask"])) if steps(b, i)}
        rest = [(i, t) for i in range(len(b["mask"])) for t in steps(b, i) if (i, t) not in first]
        parts = [sum(clip(r(*p), a[p], 0.2, 0.2) for p in some) / max(len(some), 1) for some in (first, rest)]
        kl = token_mean(b, lambda i, t: k3(b["logp_ref"][i, t] - x["logp"][i, t]))
        return -(1e-3 * parts[0] + parts[1]) + 1e-3 * kl
    if name == "knapsack-rl":
        total = 0.0
        for rows in members(b).values():
            each = [sum(clip(r(i, t), a[i, t], 0.2, 0.2) for t in steps(b, i)) / max(len(steps(b, i)), 1) for i in rows]
            total += sum(each) / len(rows)
        return -total / max(len(members(b)), 1)
    if name == "papo":
        kl = token_mean(b, lambda i, t: k3(b["logp_ref"][i, t] - x["logp"][i, t]))
        seen = token_mean(b, lambda i, t: min(k3(min(max(b["logp_ablated"][i, t] - x["logp"][i, t], -20), 20)), 10))
        return -token_mean(b, lambda i, t: clip(r(i, t), a[i, t], 0.2, 0.2)) + 0.01 * kl - 0.02 * seen
    if name == "remix":
        kl = token_mean(b, lambda i, t: k3(b["logp_ref"][i, t] - x["logp"][i, t]))
        return 0.01 * kl - token_mean(
            b, lambda i, t: clip(r(i, t), a[i, t], 0.2, 0.2, centre=exp(b["logp_start"][i, t] - old[i, t]))
        )
    if name == "t-ppo":
        ended = np.ones(len(b["mask"]), bool) if b["done"] is None else b["done"].astype(bool)
        return -token_mean(b, lambda i, t: clip(r(i, t), a[i, t], 0.2, 0.2)) + value_loss(clipped=0.2, rows=ended)
    if name == "hpt":
        rows, width = len(b["mask"]), b["budget"] or b["mask"].shape[1]
        rl = sum(r(i, t) * a[i, t] for i in range(rows) for t in steps(b, i)) / (rows * width)
        bonus = sum(x["entropy"][i, t] for i in range(rows) for t in steps(b, i)) / (rows * width)
        return -rl - 0.001 * bonus
    if name == "chord":
        return -0.9 * token_mean(b, lambda i, t: clip(r(i, t), a[i, t], 0.2, 0.2))
    if name == "dhpo":
        return -row_mean(
            b,
            lambda i, t: 0.5 * clip(r(i, t), a[i, t], 0.2, 0.2) + 0.5 * clip(exp(mean_x(i)), row_a(i), 3e-4, 4e-4),
        )
    if name == "fiberpo":
        return -row_mean(b, lambda i, t: fiber(b, u, i, t) * a[i, t])
    if name == "mhpo":

        def damped(i: int, t: int) -> float:
            psi, held = 1.5 * tanh(u(i, t) / 1.5), 1.5 * tanh((b["logp"][i, t] - old[i, t]) / 1.5)
            return exp(psi - log(1 + exp(held)) ** 1.5 - (log(1 + exp(-held)) / 0.8) ** 2) * a[i, t]

        return -row_mean(b, damped)
    if name == "rec":

        def allowed(i: int, t: int) -> bool:
            held = exp(b["logp"][i, t] - old[i, t])
            return (a[i, t] > 0 and held <= 1.2) or (a[i, t] < 0 and held >= 0.8)

        return -token_mean(b, lambda i, t: a[i, t] * x["logp"][i, t] if allowed(i, t) else 0.0)
    if name == "real":
        total = 0.0
        for rows in members(b).values():
            there = [i for i in rows if steps(b, i)]
            total += log(1 + sum(exp(-mean_x(i) / 0.5) for i in there if b["score"][i] > 0.5))
            total += log(1 + sum(exp(mean_x(i) / 0.5) for i in there if b["score"][i] <= 0.5))
        return total / max(len(members(b)), 1)
    if name == "drpo":
        total = 0.0
        for rows in members(b).values():
            there = [i for i in rows if steps(b, i)]
            good = [i for i in there if b["score"][i] > 0.5]
            bad = [i for i in there if b["score"][i] <= 0.5]
            if not good or not bad:
                continue
            likely = {i: sum(x["logp"][i, t] for t in steps(b, i)) / len(steps(b, i)) for i in there}
            w = [exp((1 - len(steps(b, i)) / b["mask"].shape[1]) / 0.1) for i in good]
            total += sum(v * likely[i] for v, i in zip(w, good, strict=True)) / sum(w)
            total -= 10 * log(sum(exp(likely[j] / 10) for j in bad) / len(bad))
        kl = token_mean(b, lambda i, t: old[i, t] - x["logp"][i, t])
        return -total / max(len(members(b)), 1) + 500 * max(kl - 1e-4, 0) ** 2
    if name == "brrl":

        def pulled(i: int, t: int) -> float:
            rows = members(b)[int(b["group"][i])]
            some = [b["score"][k] for k in rows]
            z = b["score"][i] / (1 + 1e-6) if len(rows) == 1 else (b["score"][i] - np.median(some)) / (std(some) + 1e-6)
            return abs(r(i, t) - (0.8 + 0.4 / (1 + exp(-z)))) * abs(a[i, t])

        return token_mean(b, pulled)
    if name == "r2vpo":
        return -token_mean(b, lambda i, t: r(i, t) * a[i, t] - 0.04 * (r(i, t) - 1) ** 2)
    if name == "mdpo":
        surrogate = token_mean(b, lambda i, t: -r(i, t) * a[i, t] + r(i, t) * u(i, t) - r(i, t) + 1)
        return surrogate + value_loss()
    if name == "safe":

        def huber(e: float) -> float:
            return 0.5 * e * e if abs(e) < 0.5 else 0.5 * (abs(e) - 0.25)

        def value(i: int, t: int) -> float:
            v, goal, before = x["value"][i, t], b["returns"][i, t], b["value_old"][i, t]
            return 0.5 * (huber(v - goal) + huber(before + min(max(v - before, -0.2), 0.2) - goal))

        kl = token_mean(b, lambda i, t: x["logp"][i, t] - b["logp_ref"][i, t])
        gate = max(0.5, 2 / (token_mean(b, lambda i, t: b["entropy"][i, t]) + 0.1))
        penalty = 0.1 * max(0.1 * kl - 0.45, 0) ** 2 * gate
        bonus = 0.01 * token_mean(b, lambda i, t: x["entropy"][i, t])
        return (
            -token_mean(b, lambda i, t: clip(r(i, t), a[i, t], 0.2, 0.2)) + 0.5 * token_mean(b, value) + penalty - bonus
        )
    raise KeyError(name)


def fiber(b: Batch, u: Any, i: int, t: int) -> float:
    order = steps(b, i)
    n = len(order)
    rise, fall = sum(max(u(i, s), 0) for s in order) / n, sum(max(-u(i, s), 0) for s in order) / n

    def gate(y: float, c: float) -> float:
        return y if y <= c else (n + 1) * c - n * y if y < (1 + 1 / n) * c else 0.0

    def box(v: float) -> float:
        return min(max(v, -0.02), 0.02)

    sign = 1 if u(i, t) >= 0 else -1
    mine, other = (rise, fall) if sign > 0 else (fall, rise)
    return exp(gate(rise, 0.15) - gate(fall, 0.10) + box(u(i, t) - sign * mine) - box(-sign * other))
