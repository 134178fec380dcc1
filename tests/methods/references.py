"""Independent float64 references in numpy: loops over rows and decisions, gradients by hand, from the definitions.

A batch is a dict of arrays (None where a field is missing). Nothing here uses torch or a function of the library.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, sqrt
from typing import Any

import numpy as np

Batch = dict[str, Any]


@dataclass(frozen=True)
class Definition:
    """How a method fills its loss. clip: (low, high) of the surrogate; cap: of a detached weight; neither: A log pi."""

    reduce: str
    clip: tuple[float, float] | None = None
    cap: float | None = None
    row_ratio: bool = False
    prefix: bool = False
    kl: float = 0.0
    entropy: float = 0.0
    value: float = 0.0
    value_clip: float | None = None


DEFINITIONS = {
    "reinforce": Definition("sum"),
    "rloo": Definition("sum"),
    "a2c": Definition("token", entropy=0.01, value=0.5),
    "ppo": Definition("token", clip=(0.2, 0.2), value=0.5, value_clip=0.2),
    "grpo": Definition("row", clip=(0.2, 0.2), kl=0.04),
    "dr-grpo": Definition("constant", clip=(0.2, 0.2)),
    "dapo": Definition("token", clip=(0.2, 0.28)),
    "gspo": Definition("row", clip=(3e-4, 4e-4), row_ratio=True),
    "cispo": Definition("token", cap=5.0),
    "minpro": Definition("token", cap=5.0, prefix=True),
}


def valid_steps(mask: np.ndarray, i: int) -> list[int]:
    return [t for t in range(mask.shape[1]) if mask[i, t]]


# ------------------------------------------------------------------------------------------------ prepare


def prepare(name: str, b: Batch) -> dict[str, np.ndarray]:
    """advantage [N, T], mask [N, T] and, where there is a critic, returns [N, T]."""
    mask = b["mask"].astype(bool).copy()
    scores = outcomes(b)
    if name not in ("reinforce", "a2c", "ppo") or b["reward"] is None:
        for i in range(len(mask)):
            if np.isnan(scores[i]):
                mask[i] = False
    if name == "reinforce":
        return {"advantage": discounted(b, mask, scores), "mask": mask}
    if name == "a2c":
        return n_step(b, mask, scores, n=5, gamma=0.99)
    if name == "ppo":
        return whitened(gae(b, mask, scores, gamma=0.99, lam=0.95))
    advantage = np.zeros(mask.shape)
    for i in range(len(mask)):
        for t in valid_steps(mask, i):
            advantage[i, t] = row_advantage(name, scores, b["group"], i)
    if name == "dapo":
        for i in range(len(mask)):
            alike = len(set(members_of(scores, b["group"], i))) < 2
            if alike or (b["truncated"] is not None and b["truncated"][i]):
                mask[i], advantage[i] = False, 0.0
    return {"advantage": advantage, "mask": mask}


def outcomes(b: Batch) -> np.ndarray:
    n = len(b["mask"])
    if b["score"] is not None:
        return b["score"].copy()
    if b["scores"] is not None:
        known = [[c for c in row if not np.isnan(c)] for row in b["scores"]]
        return np.array([sum(row) if row else np.nan for row in known])
    return np.array([sum(b["reward"][i, t] for t in valid_steps(b["mask"], i)) for i in range(n)], dtype=float)


def members_of(scores: np.ndarray, group: np.ndarray, i: int) -> np.ndarray:
    return np.array([s for s, g in zip(scores, group, strict=True) if g == group[i] and not np.isnan(s)])


def row_advantage(name: str, scores: np.ndarray, group: np.ndarray, i: int) -> float:
    members = members_of(scores, group, i)
    size = len(members)
    if size < 2 or max(members) == min(members):
        return 0.0
    if name == "rloo":
        return scores[i] - (sum(members) - scores[i]) / (size - 1)
    mean = sum(members) / size
    if name == "dr-grpo":
        return scores[i] - mean
    std = sqrt(sum((s - mean) ** 2 for s in members) / (size - 1))
    return (scores[i] - mean) / (std + 1e-6)


def rewards_of(b: Batch, mask: np.ndarray, scores: np.ndarray, i: int) -> list[float]:
    """The rewards along the row's valid decisions, gaps left out; an outcome stands on the last one."""
    steps = valid_steps(mask, i)
    if b["reward"] is not None:
        return [b["reward"][i, t] for t in steps]
    return [0.0] * (len(steps) - 1) + [scores[i]] if steps else []


def bootstrap_of(b: Batch, i: int) -> float:
    if b["bootstrap"] is None or (b["done"] is not None and b["done"][i]):
        return 0.0
    return b["bootstrap"][i]


def discounted(b: Batch, mask: np.ndarray, scores: np.ndarray) -> np.ndarray:
    advantage = np.zeros(mask.shape)
    for i in range(len(mask)):
        rewards = rewards_of(b, mask, scores, i)
        for j, t in enumerate(valid_steps(mask, i)):
            advantage[i, t] = sum(rewards[j:])
    return advantage


def n_step(b: Batch, mask: np.ndarray, scores: np.ndarray, n: int, gamma: float) -> dict[str, np.ndarray]:
    advantage, returns = np.zeros(mask.shape), np.zeros(mask.shape)
    for i in range(len(mask)):
        steps, rewards = valid_steps(mask, i), rewards_of(b, mask, scores, i)
        values = [b["value"][i, t] for t in steps] + [bootstrap_of(b, i)]
        for j, t in enumerate(steps):
            end = min(j + n, len(steps))
            target = sum(gamma ** (k - j) * rewards[k] for k in range(j, end)) + gamma ** (end - j) * values[end]
            returns[i, t], advantage[i, t] = target, target - values[j]
    return {"advantage": advantage, "returns": returns, "mask": mask}


def gae(b: Batch, mask: np.ndarray, scores: np.ndarray, gamma: float, lam: float) -> dict[str, np.ndarray]:
    advantage, returns = np.zeros(mask.shape), np.zeros(mask.shape)
    for i in range(len(mask)):
        steps, rewards = valid_steps(mask, i), rewards_of(b, mask, scores, i)
        values = [b["value"][i, t] for t in steps] + [bootstrap_of(b, i)]
        delta = [rewards[j] + gamma * values[j + 1] - values[j] for j in range(len(steps))]
        for j, t in enumerate(steps):
            advantage[i, t] = sum((gamma * lam) ** (k - j) * delta[k] for k in range(j, len(steps)))
            returns[i, t] = advantage[i, t] + values[j]
    return {"advantage": advantage, "returns": returns, "mask": mask}


def whitened(prepared: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    mask, advantage = prepared["mask"], np.zeros(prepared["mask"].shape)
    found = [prepared["advantage"][i, t] for i in range(len(mask)) for t in valid_steps(mask, i)]
    if len(found) > 1:
        mean = sum(found) / len(found)
        std = sqrt(sum((a - mean) ** 2 for a in found) / (len(found) - 1))
        for i in range(len(mask)):
            for t in valid_steps(mask, i):
                advantage[i, t] = (prepared["advantage"][i, t] - mean) / (std + 1e-8)
    return {**prepared, "advantage": advantage}


# ------------------------------------------------------------------------------------------------ loss


def loss(name: str, b: Batch) -> tuple[float, dict[str, np.ndarray]]:
    """The loss and its gradient with respect to logp, value and entropy."""
    d, mask = DEFINITIONS[name], b["mask"].astype(bool)
    rows, width = mask.shape
    tokens = max(1, int(mask.sum()))
    total, grads = 0.0, {leaf: np.zeros(mask.shape) for leaf in ("logp", "value", "entropy")}
    for i in range(rows):
        steps = valid_steps(mask, i)
        surrogates, slopes = row_surrogate(d, b, i, steps)
        coefficient = {
            "token": 1 / tokens,
            "row": 1 / (rows * max(1, len(steps))),
            "sum": 1 / rows,
            "constant": 1 / (rows * (b["budget"] or width)),
        }[d.reduce]
        weights = [1.0 if b["weight"] is None else b["weight"][i, t] for t in steps]
        for j, t in enumerate(steps):
            c = coefficient * weights[j]
            total -= c * surrogates[j]
            for k, u in enumerate(steps):
                grads["logp"][i, u] -= c * slopes[j][k]
            if d.kl:
                gap = b["logp_ref"][i, t] - b["logp"][i, t]
                total += d.kl * c * (exp(gap) - gap - 1)
                grads["logp"][i, t] += d.kl * c * (1 - exp(gap))
            if d.entropy:
                total -= d.entropy * c * b["entropy"][i, t]
                grads["entropy"][i, t] -= d.entropy * c
            if d.value:
                error, slope = value_loss(d, b, i, t)
                c = d.value * weights[j] / tokens
                total += c * error
                grads["value"][i, t] += c * slope
    return total, grads


def row_surrogate(d: Definition, b: Batch, i: int, steps: list[int]) -> tuple[list[float], list[list[float]]]:
    """s_j for the row's j-th valid decision, and ds_j / dlogp_k; the advantage and a capped weight are constants."""
    logp = [b["logp"][i, t] for t in steps]
    advantage = [b["advantage"][i, t] for t in steps]
    size = len(steps)
    if d.row_ratio and steps:
        x = sum(b["logp"][i, t] - b["logp_old"][i, t] for t in steps) / size
        s, slope = clipped(x, sum(advantage) / size, *d.clip)
        return [s] * size, [[slope / size] * size for _ in steps]
    surrogates, slopes = [], []
    for j in range(size):
        x = [b["logp"][i, t] - b["logp_old"][i, t] for t in steps[: j + 1]] if d.clip or d.cap else [0.0]
        if d.clip:
            s, slope = clipped(x[-1], advantage[j], *d.clip)
        else:
            r = exp(x[-1]) * (min(exp(e) for e in x[:-1]) if d.prefix and j else 1.0)
            slope = advantage[j] * (min(r, d.cap) if d.cap else 1.0)
            s = slope * logp[j]
        surrogates.append(s)
        slopes.append([slope if k == j else 0.0 for k in range(size)])
    return surrogates, slopes


def clipped(x: float, a: float, low: float, high: float) -> tuple[float, float]:
    """min(r A, clip(r) A) and its derivative with respect to x."""
    r = exp(x)
    held = min(max(r, 1 - low), 1 + high)
    return (r * a, r * a) if r * a <= held * a else (held * a, 0.0)


def value_loss(d: Definition, b: Batch, i: int, t: int) -> tuple[float, float]:
    """0.5 (V - R)^2, or the larger of that and its clipped twin; and the derivative with respect to V."""
    v, target = b["value"][i, t], b["returns"][i, t]
    if d.value_clip is None:
        return 0.5 * (v - target) ** 2, v - target
    old = b["value_old"][i, t]
    move = min(max(v - old, -d.value_clip), d.value_clip)
    near = old + move
    if (near - target) ** 2 > (v - target) ** 2:
        return 0.5 * (near - target) ** 2, (near - target) * (1.0 if move == v - old else 0.0)
    return 0.5 * (v - target) ** 2, v - target
