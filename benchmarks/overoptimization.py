"""Overoptimization: gold reward of best-of-n by one learned proxy and by ensembles. `python benchmarks/overoptimization.py`, a minute.

A gold reward on R^10 (random features and a quadratic form) judges 150 comparisons, a quarter of the verdicts are flipped. Five reward
models (30 random features each) fit them with the loss of `bt-rm`. Of n points the best by a single model, by the ensemble's mean, its
minimum (WCO), or mean minus half the population variance (UWO) is kept. Printed: gold reward of the kept one as a z-score, mean over
seeds, with the standard error of its difference to the single model; drawn over the divergence log n - (n-1)/n.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

import anypo
from anypo import Comparisons, Trajectories
from anypo.estimators.best_of_n import best_of_n, kl
from anypo.parts import ConservativeScore

NS = (1, 4, 16, 64, 256, 1024)
MEMBERS, FEATURES, WIDTH, PAIRS, FLIPS = 5, 30, 10, 150, 0.25
RULES = {
    "single": None,
    "mean": ConservativeScore("mean"),
    "wco": ConservativeScore("wco"),
    "uwo": ConservativeScore("uwo", lam=0.5 * (MEMBERS - 1) / MEMBERS),  # 0.5 of the population variance
}


class Gold:
    """Random cosine features and a quadratic form, each of unit variance."""

    def __init__(self, g: torch.Generator):
        self.a = torch.randn(WIDTH, 50, generator=g) / math.sqrt(WIDTH)
        self.b, self.w = 2 * math.pi * torch.rand(50, generator=g), torch.randn(50, generator=g) / 5
        q = torch.randn(WIDTH, WIDTH, generator=g)
        self.q = (q + q.T) / (2 * WIDTH)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cos(x @ self.a + self.b) @ self.w + torch.einsum("ni,ij,nj->n", x, self.q, x)


class Proxy:
    """A reward model that is linear in random features, fitted by `bt-rm` with weight decay just enough to stay finite."""

    def __init__(self, better: Tensor, worse: Tensor, g: torch.Generator):
        self.a = torch.randn(WIDTH, FEATURES, generator=g) / math.sqrt(WIDTH)
        self.b = 2 * math.pi * torch.rand(FEATURES, generator=g)
        self.w = torch.zeros(FEATURES, requires_grad=True)
        method, optimizer = anypo.method("bt-rm"), torch.optim.LBFGS([self.w], max_iter=100)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss, _ = method.loss(Comparisons(score_chosen=self(better), score_rejected=self(worse)))
            loss = loss + 1e-3 * self.w.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)  # pyright: ignore[reportArgumentType]
        self.w = self.w.detach()

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cos(x @ self.a + self.b) @ self.w


def one_seed(seed: int, samples: int) -> dict[str, list[float]]:
    """Gold z-score of the best of n, for every rule and n."""
    g = torch.Generator().manual_seed(seed)
    gold = Gold(g)
    one, other = torch.randn(2, PAIRS, WIDTH, generator=g)
    scale = gold(torch.randn(4096, WIDTH, generator=g)).std()
    flipped = torch.rand(PAIRS, generator=g) < FLIPS
    first = ((gold(one) > gold(other)) ^ flipped).unsqueeze(1)
    better, worse = torch.where(first, one, other), torch.where(first, other, one)
    members = [Proxy(better, worse, g) for _ in range(MEMBERS)]
    x = torch.randn(samples, WIDTH, generator=g)
    truth = gold(x)
    z = (truth - truth.mean()) / scale
    scores = torch.stack([m(x) for m in members], 1)
    scores = scores - scores.mean(0)  # a reward model knows its scores up to a constant
    batch = Trajectories(mask=torch.ones(samples, 1), scores=scores)
    found = {}
    for name, rule in RULES.items():
        if rule is None:  # every member on its own
            each = [[best_of_n(scores[:, k], z, n) for n in NS] for k in range(MEMBERS)]
            found[name] = torch.tensor(each).mean(0).tolist()
        else:
            score = rule(batch).score
            assert score is not None
            found[name] = [best_of_n(score, z, n) for n in NS]
    return found


def picture(rows: dict[str, Tensor], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, values in rows.items():
        mean, error = values.mean(0), values.std(0) / math.sqrt(len(values))
        axes.errorbar([kl(n) for n in NS], mean, 2 * error, label=name, marker="o", capsize=3)
    axes.set(xlabel="KL(best of n || one sample), nats", ylabel="gold reward of the chosen one (z-score)")
    axes.set_title("Best of n = 1 ... 1024 by learned proxies, 25% of the preferences flipped", fontsize=10)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--samples", type=int, default=12600)
    parser.add_argument("--png", type=Path, default=Path("docs/overoptimization.png"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = [one_seed(seed, options.samples) for seed in range(options.seeds)]
    rows = {name: torch.tensor([f[name] for f in found]) for name in RULES}
    print("gold z-score  " + "".join(f"{'n=' + str(n):>8}" for n in NS) + f"{'over single at n=1024':>28}")
    for name, values in rows.items():
        gap = (values - rows["single"])[:, -1]
        told = "" if name == "single" else f"{gap.mean():+.2f} +- {gap.std() / math.sqrt(len(gap)):.2f} (s.e.)"
        print(f"{name:14}" + "".join(f"{x:8.2f}" for x in values.mean(0).tolist()) + f"{told:>28}")
    picture(rows, options.png)
    print(options.png)


if __name__ == "__main__":
    main()
