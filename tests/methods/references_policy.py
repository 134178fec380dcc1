"""Independent float64 references in numpy for the methods that change ratio, trust or terms: loops over rows and decisions,
gradients by hand, from the definitions. Nothing here uses torch or a function of the library.

A batch is a dict of arrays (None where a field is missing, extra inputs by their names). Every option of a method that has a
definition of its own stands in OPTIONS under an id of its own, `dhpo-entropy`, `rec-ring`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import cosh, exp, log, log1p, nan, sqrt, tanh
from typing import Any

import numpy as np
from references import Batch, clipped, discounted, gae, members_of, outcomes, valid_steps

LEAVES = ("logp", "entropy", "value", "value_b", "median")
Local = Callable[[int, int], tuple[float, float | dict[int, float]]]
"""What a decision adds to a loss, and its slope in the leaf: a number, or one per decision of the row."""

RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "dhpo": ("dhpo", {}),
    "dhpo-entropy": ("dhpo", {"mix": "entropy"}),
    "dhpo-wide": ("dhpo", {"row_box": (0.1, 0.1)}),
    "fiberpo": ("fiberpo", {}),
    "fiberpo-wide": ("fiberpo", {"up": 0.4, "down": 0.3, "eps": 0.5}),
    "mhpo": ("mhpo", {}),
    "mhpo-normalized": ("mhpo", {"normalize": True}),
    "rec": ("rec", {}),
    "rec-one-side-is": ("rec", {"weight": "ratio"}),
    "rec-two-side-is": ("rec", {"mask": "two-side", "weight": "ratio"}),
    "rec-ring": ("rec", {"mask": "ring"}),
    "rec-wide": ("rec", {"low": 0.6, "high": 2.0}),
    "rec-reinforce": ("rec", {"mask": "none"}),
    "rec-grpo": ("rec", {"weight": "ratio", "std": True, "over": "row"}),
    "rec-red-weight": ("rec", {"mask": "none", "weight": "exp"}),
    "rec-red-drop": ("rec", {"mask": "none", "drop": True}),
    "rec-opmd": ("rec", {"mask": "none", "reg": "k2"}),
    "rec-asymre": ("rec", {"mask": "none", "reg": "forward"}),
    "rec-one-side-opmd": ("rec", {"reg": "k2"}),
    "real": ("real", {}),
    "real-skip": ("real", {"skip": True}),
    "brrl": ("brrl", {}),
    "brrl-asymmetric": ("brrl", {"low": 0.1, "high": 0.3, "temp": 0.5}),
    "bpo": ("bpo", {}),
    "bpo-soft": ("bpo", {"low": 0.2, "high": 0.2, "temp": 1.0}),
    "r2vpo": ("r2vpo", {}),
    "r2vpo-moved": ("r2vpo", {"coef": 0.7}),
    "mdpo": ("mdpo", {}),
    "mdpo-late": ("mdpo", {"step": 0.25}),
    "safe": ("safe", {}),
    "safe-moved": ("safe", {"before": 5.0, "threshold": 0.33}),
    "safe-detached": ("safe", {"before": 5.0, "threshold": 0.33, "detached": True}),
    "hpt": ("hpt", {}),
    "hpt-quarter": ("hpt", {"above": 0.25, "sft": 0.3}),
    "chord": ("chord", {}),
    "chord-plain": ("chord", {"phi": "one", "mu": 0.9}),
    "chord-is": ("chord", {"phi": "likely", "cutoff": 0.5}),
    "remix": ("remix", {}),
    "remix-late": ("remix", {"lam": 0.8}),
    "remix-reincarnated": ("remix", {"lam": 0.5, "centred": True}),
    "t-ppo": ("t-ppo", {}),
}


def prepare(recipe: str, b: Batch) -> dict[str, Any]:
    name, options = RECIPES[recipe]
    return {
        "rec": rec_credit, "brrl": brrl_credit, "bpo": bpo_credit, "mdpo": mdpo_credit, "safe": safe_credit, "t-ppo": tppo_credit,
        "hpt": hpt_credit, "real": labels,
    }.get(name, group_credit)(b, **options)  # fmt: skip


def loss(recipe: str, b: Batch) -> tuple[float, dict[str, np.ndarray]]:
    """The loss and its gradient in every leaf."""
    name, options = RECIPES[recipe]
    found = Tally(b["mask"].shape)
    {
        "dhpo": dhpo, "fiberpo": fiberpo, "mhpo": mhpo, "rec": rec, "real": real, "brrl": brrl, "bpo": bpo, "r2vpo": r2vpo,
        "mdpo": mdpo, "safe": safe, "hpt": hpt, "chord": chord, "remix": remix, "t-ppo": tppo,
    }[name](found, b | {"mask": b["mask"].astype(bool)}, **options)  # fmt: skip
    return found.total, found.slopes


# ------------------------------------------------------------------------------------------------ small things


class Tally:
    """A loss and its gradient, added up decision by decision."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.total, self.slopes = 0.0, {leaf: np.zeros(shape) for leaf in LEAVES}

    def mean(self, b: Batch, over: str, local: Local, leaf: str = "logp", factor: float = 1.0) -> None:
        """Adds factor times the mean of `local`, weighted but counted by the mask alone."""
        rows, width = b["mask"].shape
        tokens = max(1, int(b["mask"].sum()))
        for i in range(rows):
            steps = valid_steps(b["mask"], i)
            c = {
                "token": 1 / tokens,
                "row": 1 / (rows * max(1, len(steps))),
                "constant": 1 / (rows * (b["budget"] or width)),
            }[over]
            for t in steps:
                value, slope = local(i, t)
                scale = factor * c * weight_of(b, i, t)
                self.total += scale * value
                for u, part in (slope if isinstance(slope, dict) else {t: slope}).items():
                    self.slopes[leaf][place(b, i), u] += scale * part

    def tilt(self, b: Batch, local: Local, leaf: str = "logp", factor: float = 1.0) -> None:
        """Adds the slopes of a token mean, and nothing to the total."""
        self.mean(b, "token", lambda i, t: (0.0, local(i, t)[1]), leaf, factor)


def place(b: Batch, i: int) -> int:
    """Where row i of a part of a batch stands in the whole."""
    return b["at"][i] if "at" in b else i


def part_of(b: Batch, rows: list[int]) -> Batch:
    n = len(b["mask"])
    cut = {k: v[rows] if isinstance(v, np.ndarray) and len(v) == n else v for k, v in b.items()}
    return cut | {"at": rows}


def weight_of(b: Batch, i: int, t: int) -> float:
    return 1.0 if b["weight"] is None else b["weight"][i, t]


def x_of(b: Batch, i: int, t: int) -> float:
    return b["logp"][i, t] - b["logp_old"][i, t]


def row_average(b: Batch, i: int, f: Callable[[int], float]) -> float:
    steps = valid_steps(b["mask"], i)
    return sum(f(t) for t in steps) / max(1, len(steps))


def weighted_token_mean(b: Batch, f: Callable[[int, int], float]) -> float:
    places = [(i, t) for i in range(len(b["mask"])) for t in valid_steps(b["mask"], i)]
    return sum(weight_of(b, i, t) * f(i, t) for i, t in places) / max(1, len(places))


def sigmoid(z: float) -> float:
    return 0.5 * (1 + tanh(z / 2))


def sample_std(values: list[float]) -> float:
    if len(values) < 2 or max(values) == min(values):
        return 0.0
    mean = sum(values) / len(values)
    return sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def clip_loss(b: Batch, low: float, high: float) -> Local:
    def local(i: int, t: int) -> tuple[float, float]:
        s, slope = clipped(x_of(b, i, t), b["advantage"][i, t], low, high)
        return -s, -slope

    return local


def k3(b: Batch, anchor: str) -> Local:
    def local(i: int, t: int) -> tuple[float, float]:
        d = b[anchor][i, t] - b["logp"][i, t]
        return exp(d) - d - 1, 1 - exp(d)

    return local


def squared_error(b: Batch, clip: float | None = None) -> Local:
    """Half the squared error of the value, or of the larger of it and its clipped twin."""

    def local(i: int, t: int) -> tuple[float, float]:
        v, goal = b["value"][i, t], b["returns"][i, t]
        if clip is not None:
            move = min(max(v - b["value_old"][i, t], -clip), clip)
            near = b["value_old"][i, t] + move
            if (near - goal) ** 2 > (v - goal) ** 2:
                return 0.5 * (near - goal) ** 2, (near - goal) * (abs(v - b["value_old"][i, t]) <= clip)
        return 0.5 * (v - goal) ** 2, v - goal

    return local


# ------------------------------------------------------------------------------------------------ credit


def judged(b: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Outcome per row, NaN where there is none or the row is a demonstration; and the mask, without rows whose outcome is missing."""
    scores, mask = outcomes(b), b["mask"].astype(bool).copy()
    for i in range(len(mask)):
        if is_expert(b, i):
            scores[i] = nan
        elif np.isnan(scores[i]):
            mask[i] = False
    return scores, mask


def is_expert(b: Batch, i: int) -> bool:
    return b.get("expert_mask") is not None and bool(b["expert_mask"][i])


def on_rows(mask: np.ndarray, values: list[float]) -> np.ndarray:
    out = np.zeros(mask.shape)
    for i in range(len(mask)):
        for t in valid_steps(mask, i):
            out[i, t] = values[i]
    return out


def centred(scores: np.ndarray, group: np.ndarray, std: bool) -> list[float]:
    found = []
    for i in range(len(scores)):
        some = members_of(scores, group, i)
        spread = sample_std(list(some))
        known = spread > 0 and not np.isnan(scores[i])
        found.append((scores[i] - sum(some) / len(some)) / (spread + 1e-6 if std else 1.0) if known else 0.0)
    return found


def group_credit(b: Batch, **options: Any) -> dict[str, Any]:
    scores, mask = judged(b)
    return {"advantage": on_rows(mask, centred(scores, b["group"], std=True)), "mask": mask, "score": scores}


def labels(b: Batch, **options: Any) -> dict[str, Any]:
    scores, mask = judged(b)
    return {"mask": mask, "score": scores}


def rec_credit(b: Batch, std: bool = False, drop: bool = False, **options: Any) -> dict[str, Any]:
    scores, mask = judged(b)
    if drop:
        scores = scores.copy()
        for g in set(b["group"]):
            rows = [i for i in range(len(mask)) if b["group"][i] == g]
            right = sum(scores[i] > 0.5 for i in rows)
            for i in [i for i in rows if scores[i] <= 0.5][right:]:
                scores[i], mask[i] = nan, False
    return {"advantage": on_rows(mask, centred(scores, b["group"], std)), "mask": mask}


def brrl_credit(b: Batch, **options: Any) -> dict[str, Any]:
    scores, mask = judged(b)
    a = centred(scores, b["group"], std=True)
    for i in range(len(a)):
        if len(members_of(scores, b["group"], i)) == 1 and not np.isnan(scores[i]):
            a[i] = scores[i] / (1 + 1e-6)
    return {"advantage": on_rows(mask, a), "mask": mask, "score": scores}


def per_decision(b: Batch) -> tuple[np.ndarray, np.ndarray]:
    """As `judged`, but with rewards per decision no outcome is asked for."""
    scores, mask = judged(b)
    return scores, b["mask"].astype(bool).copy() if b["reward"] is not None else mask


def bpo_credit(b: Batch, **options: Any) -> dict[str, Any]:
    scores, mask = per_decision(b)
    return gae(b, mask, scores, gamma=0.99, lam=0.95)


def mdpo_credit(b: Batch, **options: Any) -> dict[str, Any]:
    found = bpo_credit(b)
    mask, a = found["mask"], found["advantage"]
    values = [a[i, t] for i in range(len(mask)) for t in valid_steps(mask, i)]
    if values:
        mean = sum(values) / len(values)
        std = sqrt(sum((v - mean) ** 2 for v in values) / len(values))
        a = np.where(mask, (a - mean) / (std + 1e-8), 0.0)
    return found | {"advantage": a}


def finished(b: Batch, i: int) -> bool:
    return bool(b["done"][i]) if b["done"] is not None else b["bootstrap"] is None


def tppo_credit(b: Batch, **options: Any) -> dict[str, Any]:
    """GAE with gamma = 1, lam = 0.95; unfinished rows are continued by the value of their last decision."""
    scores, mask = per_decision(b)
    held = np.zeros(len(mask))
    for i in range(len(mask)):
        steps = valid_steps(mask, i)
        held[i] = b["value"][i, steps[-1]] if steps and not finished(b, i) else 0.0
    found = gae(b | {"bootstrap": held, "done": None}, mask, scores, gamma=1.0, lam=0.95)
    return found | {"returns": discounted(b, mask, scores)}


def soft_min(b: Batch, i: int, t: int) -> tuple[float, float, float]:
    """The soft minimum of both heads at temperature 0.3, and its slopes in them."""
    one = b["value"][i, t]
    if b.get("value_b") is None:
        return one, 1.0, 0.0
    other = b["value_b"][i, t]
    low = min(one, other)
    parts = [exp((low - v) / 0.3) for v in (one, other)]
    value = low - 0.3 * (log(sum(parts)) - log(2))
    return value, parts[0] / sum(parts), parts[1] / sum(parts)


def safe_credit(b: Batch, **options: Any) -> dict[str, Any]:
    scores, mask = judged(b)
    held = b | {"mask": mask}
    a = [s - row_average(held, i, lambda t, i=i: soft_min(b, i, t)[0]) for i, s in enumerate(scores)]
    known = [v for v in a if not np.isnan(v)]
    mean = sum(known) / max(1, len(known))
    std = sqrt(sum((v - mean) ** 2 for v in known) / max(1, len(known) - 1))
    return {
        "advantage": on_rows(mask, [0.0 if np.isnan(v) else (v - mean) / (std + 1e-8) for v in a]),
        "mask": mask,
        "returns": on_rows(mask, list(scores)),
        "value_old": np.array([[soft_min(b, i, t)[0] for t in range(mask.shape[1])] for i in range(len(mask))]),
    }


def hpt_credit(b: Batch, above: float = 0.0, **options: Any) -> dict[str, Any]:
    scores, mask = judged(b)
    a = centred(scores, b["group"], std=False)
    for i in range(len(mask)):
        some = members_of(scores, b["group"], i)
        solved = len(some) > 0 and sum(some) / len(some) > above
        if solved == is_expert(b, i):
            mask[i] = False
    return {"advantage": on_rows(mask, a), "mask": mask}


# ------------------------------------------------------------------------------------------------ losses


def dhpo(found: Tally, b: Batch, mix: str = "half", row_box: tuple[float, float] = (3e-4, 4e-4)) -> None:
    def local(i: int, t: int) -> tuple[float, dict[int, float]]:
        steps = valid_steps(b["mask"], i)
        h = [b["entropy"][i, u] for u in steps]
        w = 0.5 if mix == "half" or max(h) == min(h) else (b["entropy"][i, t] - min(h)) / (max(h) - min(h))
        s, slope = clipped(x_of(b, i, t), b["advantage"][i, t], 0.2, 0.2)
        x = row_average(b, i, lambda u: x_of(b, i, u))
        q, tilt = clipped(x, row_average(b, i, lambda u: b["advantage"][i, u]), *row_box)
        slopes = {u: -(1 - w) * tilt / len(steps) for u in steps}
        slopes[t] -= w * slope
        return -(w * s + (1 - w) * q), slopes

    found.mean(b, "row", local)


def fiberpo(found: Tally, b: Batch, up: float = 0.15, down: float = 0.10, eps: float = 0.02) -> None:
    def gate(y: float, bound: float, n: int) -> tuple[float, float]:
        if y <= bound:
            return y, 1.0
        return ((n + 1) * bound - n * y, -n) if y < (1 + 1 / n) * bound else (0.0, 0.0)

    def box(v: float) -> tuple[float, float]:
        return min(max(v, -eps), eps), float(-eps <= v <= eps)

    def local(i: int, t: int) -> tuple[float, dict[int, float]]:
        steps = valid_steps(b["mask"], i)
        x, n = {u: x_of(b, i, u) for u in steps}, len(steps)
        channel = {+1: sum(max(v, 0) for v in x.values()) / n, -1: sum(max(-v, 0) for v in x.values()) / n}
        # how a step of decision u moves the two channels
        tilt = {+1: {u: (x[u] > 0) / n for u in steps}, -1: {u: -float(x[u] < 0) / n for u in steps}}
        sign = 1 if x[t] >= 0 else -1
        (rise, rise_slope), (fall, fall_slope) = gate(channel[+1], up, n), gate(channel[-1], down, n)
        (own, inside), (other, beside) = box(x[t] - sign * channel[sign]), box(-sign * channel[-sign])
        gated = exp(rise - fall) * exp(own - other)
        a, slopes = b["advantage"][i, t], {}
        for u in steps:
            drift = rise_slope * tilt[+1][u] - fall_slope * tilt[-1][u]
            residual = inside * ((u == t) - sign * tilt[sign][u]) + beside * sign * tilt[-sign][u]
            slopes[u] = -gated * a * (drift + residual)
        return -gated * a, slopes

    found.mean(b, "row", local)


def mhpo(found: Tally, b: Batch, normalize: bool = False) -> None:
    def hazard(psi: float) -> float:
        return log1p(exp(psi)) ** 1.5 + (log1p(exp(-psi)) / 0.8) ** 2

    def local(i: int, t: int) -> tuple[float, float]:
        x, a = x_of(b, i, t), b["advantage"][i, t]
        psi = 1.5 * tanh(x / 1.5)
        multiplier = exp(psi - hazard(psi) + (hazard(0.0) if normalize else 0.0))
        return -multiplier * a, -multiplier * a / cosh(x / 1.5) ** 2

    found.mean(b, "row", local)


def rec(
    found: Tally,
    b: Batch,
    mask: str = "one-side",
    weight: str = "none",
    low: float = 0.2,
    high: float = 0.2,
    over: str = "token",
    reg: str | None = None,
    **options: Any,
) -> None:
    def allowed(r: float, a: float) -> bool:
        if mask == "none":
            return True
        if mask == "one-side":
            return (a > 0 and r <= 1 + high) or (a < 0 and r >= 1 - low)
        inside = 1 - low <= r <= 1 + high
        return inside or (mask == "ring" and ((a > 0 and r <= 0.4) or (a < 0 and r >= 3.0)))

    def local(i: int, t: int) -> tuple[float, float]:
        r, a = exp(x_of(b, i, t)), b["advantage"][i, t]
        w = {"none": 1.0, "ratio": r, "exp": exp(a)}[weight] * allowed(r, a)
        return -w * a * b["logp"][i, t], -w * a

    def regulariser(i: int, t: int) -> tuple[float, float]:
        x = x_of(b, i, t)
        return (0.1 * x**2, 0.2 * x) if reg == "k2" else (-0.1 * x, -0.1)

    found.mean(b, over, local)
    if reg is not None:
        found.mean(b, over, regulariser)


def real(found: Tally, b: Batch, skip: bool = False, tau: float = 0.5) -> None:
    groups = sorted(set(b["group"]))
    for g in groups:
        rows = [i for i in range(len(b["mask"])) if b["group"][i] == g and valid_steps(b["mask"], i)]
        classes = [
            (sign, [i for i in rows if (b["score"][i] > 0.5 if sign < 0 else b["score"][i] <= 0.5)]) for sign in (-1, 1)
        ]
        if skip and not all(some for _, some in classes):
            continue
        for sign, some in classes:  # e^{-s/tau} for the right rows, e^{+s/tau} for the wrong ones
            share = {
                i: row_average(b, i, lambda t, i=i: weight_of(b, i, t))
                * exp(sign * row_average(b, i, lambda t, i=i: x_of(b, i, t)) / tau)
                for i in some
            }
            total = 1 + sum(share.values())
            found.total += log(total) / len(groups)
            for i in some:
                steps = valid_steps(b["mask"], i)
                for t in steps:
                    found.slopes["logp"][i, t] += sign * share[i] / total / tau / len(steps) / len(groups)


def pulled(x: float, target: float, size: float) -> tuple[float, float]:
    """|r - target| size with log r limited to +-20, and its slope in x."""
    gap = exp(min(max(x, -20.0), 20.0)) - target
    inside = abs(x) <= 20
    return abs(gap) * size, float(np.sign(gap)) * exp(min(max(x, -20.0), 20.0)) * size * inside


def brrl(found: Tally, b: Batch, low: float = 0.2, high: float = 0.2, temp: float = 1.0) -> None:
    def local(i: int, t: int) -> tuple[float, float]:
        some = sorted(members_of(b["score"], b["group"], i))
        n = len(some)
        if n == 1:
            z = b["score"][i] / (1 + 1e-6) / temp
        else:
            median = some[n // 2] if n % 2 else (some[n // 2 - 1] + some[n // 2]) / 2
            z = (b["score"][i] - median) / (sample_std(some) + 1e-6) / temp
        return pulled(x_of(b, i, t), 1 - low + (low + high) * sigmoid(z), abs(b["advantage"][i, t]))

    found.mean(b, "token", local)


def bpo(found: Tally, b: Batch, low: float = 0.3, high: float = 0.3, temp: float = 1e-3) -> None:
    def local(i: int, t: int) -> tuple[float, float]:
        goal = b["returns"][i, t]
        target = 1 - low + (low + high) * sigmoid((goal - b["median"][i, t]) / temp)
        return pulled(x_of(b, i, t), target, abs(goal - b["value"][i, t]))

    def median(i: int, t: int) -> tuple[float, float]:
        y = b["returns"][i, t] - b["median"][i, t]
        return abs(y) / 2 + log1p(exp(-abs(y))), 0.5 - sigmoid(y)

    found.mean(b, "token", local)
    found.mean(b, "token", squared_error(b), leaf="value", factor=0.5)
    found.mean(b, "token", median, leaf="median", factor=0.5)


def r2vpo(found: Tally, b: Batch, coef: float = 0.04) -> None:
    def local(i: int, t: int) -> tuple[float, float]:
        r, a = exp(x_of(b, i, t)), b["advantage"][i, t]
        return -(r * a - coef * (r - 1) ** 2), -r * (a - 2 * coef * (r - 1))

    found.mean(b, "token", local)


def mdpo(found: Tally, b: Batch, step: float = 1.0) -> None:
    def local(i: int, t: int) -> tuple[float, float]:
        x, a = x_of(b, i, t), b["advantage"][i, t]
        return -exp(x) * a + (exp(x) * x - exp(x) + 1) / step, -exp(x) * a + exp(x) * x / step

    found.mean(b, "token", local)
    found.mean(b, "token", squared_error(b), leaf="value", factor=0.5)


def safe(found: Tally, b: Batch, before: float = 0.0, threshold: float = 0.45, detached: bool = False) -> None:
    def huber(e: float) -> tuple[float, float]:
        return (0.5 * e * e, e) if abs(e) <= 0.5 else (0.5 * (abs(e) - 0.25), 0.5 * float(np.sign(e)))

    def value_loss(head: int) -> Local:
        def local(i: int, t: int) -> tuple[float, float]:
            v, *shares = soft_min(b, i, t)
            old, goal = b["value_old"][i, t], b["returns"][i, t]
            far, slope = huber(v - goal)
            near, tilt = huber(old + min(max(v - old, -0.2), 0.2) - goal)
            return 0.5 * (far + near), 0.5 * (slope + tilt * (abs(v - old) <= 0.2)) * shares[head]

        return local

    found.mean(b, "token", clip_loss(b, 0.2, 0.2))
    found.mean(b, "token", value_loss(0), leaf="value", factor=0.5)
    if b.get("value_b") is not None:
        found.tilt(b, value_loss(1), leaf="value_b", factor=0.5)  # its value is counted already
    kl = weighted_token_mean(b, lambda i, t: b["logp"][i, t] - b["logp_ref"][i, t])
    gate = max(0.5, 2 / (weighted_token_mean(b, lambda i, t: b["entropy"][i, t]) + 0.1))
    over = max(0.9 * before + 0.1 * kl - threshold, 0.0) * b["mask"].any()
    found.total += 0.1 * over**2 * gate
    slope = 0.0 if detached else 0.2 * over * 0.1 * gate
    found.tilt(b, lambda i, t: (0.0, slope))
    found.mean(b, "token", lambda i, t: (b["entropy"][i, t], 1.0), leaf="entropy", factor=-0.01)


def split(b: Batch) -> tuple[Batch, Batch]:
    """The policy's own rows and the demonstrations."""
    rows = range(len(b["mask"]))
    return part_of(b, [i for i in rows if not is_expert(b, i)]), part_of(b, [i for i in rows if is_expert(b, i)])


def imitation(expert: Batch, phi: str, cutoff: float = 1.0) -> Local:
    def local(i: int, t: int) -> tuple[float, float]:
        p = exp(expert["logp"][i, t])
        w = {"one": 1.0, "uncertain": p * (1 - p), "likely": p}[phi]
        taught = cutoff >= 1 or p <= cutoff
        return -w * (log(p) if taught else log(cutoff)), -w * taught

    return local


def hpt(found: Tally, b: Batch, sft: float = 1.0, **options: Any) -> None:
    own, expert = split(b)

    def local(i: int, t: int) -> tuple[float, float]:
        s = exp(x_of(own, i, t)) * own["advantage"][i, t]
        return -s, -s

    found.mean(own, "constant", local)
    found.mean(own, "constant", lambda i, t: (own["entropy"][i, t], 1.0), leaf="entropy", factor=-0.001)
    found.mean(expert, "token", imitation(expert, "one"), factor=sft)


def chord(found: Tally, b: Batch, mu: float = 0.1, phi: str = "uncertain", cutoff: float = 1.0) -> None:
    own, expert = split(b)
    found.mean(own, "token", clip_loss(own, 0.2, 0.2), factor=1 - mu)
    found.mean(expert, "token", imitation(expert, phi, cutoff), factor=mu)


def remix(found: Tally, b: Batch, lam: float = 1.0, centred: bool = False) -> None:
    def local(i: int, t: int) -> tuple[float, float]:
        start = b.get("logp_start")
        c = 1.0 if centred or start is None else exp(start[i, t] - b["logp_old"][i, t])
        r, a = exp(x_of(b, i, t)), b["advantage"][i, t]
        held = min(max(r, c - 0.2), c + 0.2)
        return (-r * a, -r * a) if r * a <= held * a else (-held * a, 0.0)

    found.mean(b, "token", local)
    found.mean(b, "token", k3(b, "logp_ref"), factor=0.01 * lam)
    if lam < 1:
        found.mean(b, "token", k3(b, "logp_prev"), factor=0.01 * (1 - lam))


def tppo(found: Tally, b: Batch) -> None:
    new = b if b["fresh"] is None else b | {"mask": b["mask"] & b["fresh"].astype(bool)}
    ended = np.array([finished(b, i) for i in range(len(b["mask"]))], dtype=bool)
    found.mean(new, "token", clip_loss(new, 0.2, 0.2))
    found.mean(b | {"mask": b["mask"] & ended[:, None]}, "token", squared_error(b, 0.2), leaf="value", factor=0.5)


# ------------------------------------------------------------------------------------------------ SAFE's controller


class Controller:
    """Moving average of a divergence and the threshold it is held at, step by step over the whole history."""

    def __init__(self) -> None:
        self.average, self.integral, self.error, self.shift = 0.0, 0.0, 0.0, 0.0
        self.rewards: list[float] = []
        self.smooth: list[float] = []

    def step(self, kl: float, reward: float) -> None:
        self.average += 0.1 * (kl - self.average)
        self.rewards.append(reward)
        self.smooth.append(reward if not self.smooth else self.smooth[-1] + 0.05 * (reward - self.smooth[-1]))
        if len(self.smooth) > 1:
            error = self.smooth[-1] - self.smooth[-2] - 0.001
            self.integral = float(np.clip(self.integral + error, -1, 1))
            self.shift = 0.3 * error + 0.01 * self.integral + 0.05 * (error - self.error)
            self.error = error

    def phase(self) -> float:
        if len(self.rewards) < 50:
            return 1.5
        recent = np.array(self.rewards[-50:])
        earlier = np.array(self.rewards[-100:-50]) if len(self.rewards) >= 100 else recent
        if recent.mean() > earlier.mean() + 0.01:
            return 1.2
        return 1.0 if recent.std() < 0.02 and recent.mean() > 0.7 else 0.8

    def threshold(self) -> float:
        return float(np.clip((0.3 + self.shift) * self.phase(), 0.1, 0.6))
