"""Overoptimization: gold reward of best-of-n by one learned proxy and by ensembles. `python benchmarks/overoptimization.py`, minutes.

Answers are points of R^10, most of them usual and a few odd (Student's t, 5 degrees of freedom). The gold reward (random features, a
preferred direction, and a price for being odd) judges 150 comparisons of such answers, a quarter of the verdicts are flipped. Five
reward models (64-64 perceptrons) fit them with the loss of `bt-rm`; what lies beyond the comparisons they extrapolate, each in its own
way. Of n answers the best by a single model, by the ensemble's mean, its minimum (WCO), or mean minus half the population variance
(UWO) is kept. Printed: gold reward of the kept one as a z-score, mean over seeds; where it is highest, what is lost from there to the
largest n, and the difference to a single model there, with 95% intervals; drawn over the divergence log n - (n-1)/n.
"""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path

import scipy.stats
import torch
from torch import Tensor

import anypo
from anypo import Comparisons, Trajectories
from anypo.estimators.best_of_n import best_of_n, kl
from anypo.parts.score import ConservativeScore

NS = (1, 4, 16, 64, 256, 1024)
MEMBERS, HIDDEN, UPDATES, WIDTH, TAILS, PAIRS, FLIPS = 5, 64, 500, 10, 5, 150, 0.25
RULES = {
    "single": None,
    "mean": ConservativeScore("mean"),
    "wco": ConservativeScore("wco"),
    "uwo": ConservativeScore("uwo", lam=0.5 * (MEMBERS - 1) / MEMBERS),  # 0.5 of the population variance
}


class Gold:
    """Random cosine features and a preferred direction, minus a price for answers far from the usual."""

    def __init__(self, g: torch.Generator):
        self.a = torch.randn(WIDTH, 50, generator=g) / math.sqrt(WIDTH)
        self.b, self.w = 2 * math.pi * torch.rand(50, generator=g), torch.randn(50, generator=g) / 5
        self.d = torch.nn.functional.normalize(torch.randn(WIDTH, generator=g), dim=0)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cos(x @ self.a + self.b) @ self.w + x @ self.d - 0.05 * x.square().sum(-1)


class Proxy:
    """A reward model, fitted by `bt-rm` with AdamW."""

    def __init__(self, better: Tensor, worse: Tensor, g: torch.Generator):
        sizes = (WIDTH, HIDDEN, HIDDEN, 1)
        self.layers = [
            torch.randn(n, m, generator=g).div_(math.sqrt(n)).requires_grad_() for n, m in itertools.pairwise(sizes)
        ]
        self.shifts = [torch.zeros(m, requires_grad=True) for m in sizes[1:-1]]
        method = anypo.method("bt-rm")
        optimizer = torch.optim.AdamW([*self.layers, *self.shifts], 3e-3, weight_decay=0.01)
        for _ in range(UPDATES):
            some = torch.randint(len(better), (64,), generator=g)
            loss, _ = method.loss(Comparisons(score_chosen=self(better[some]), score_rejected=self(worse[some])))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def __call__(self, x: Tensor) -> Tensor:
        for layer, shift in zip(self.layers, self.shifts, strict=False):
            x = (x @ layer + shift).relu()
        return (x @ self.layers[-1]).squeeze(-1)


def answers(*shape: int, g: torch.Generator) -> Tensor:
    """Points [*shape, WIDTH] of the t-distribution with TAILS degrees of freedom."""
    spread = torch.randn(*shape, TAILS, generator=g).square().mean(-1, keepdim=True)
    return torch.randn(*shape, WIDTH, generator=g) / spread.sqrt()


def one_seed(seed: int, samples: int) -> dict[str, list[float]]:
    """Gold z-score of the best of n, for every rule and n."""
    g = torch.Generator().manual_seed(seed)
    gold = Gold(g)
    one, other = answers(2, PAIRS, g=g)
    flipped = torch.rand(PAIRS, generator=g) < FLIPS
    first = ((gold(one) > gold(other)) ^ flipped).unsqueeze(1)
    better, worse = torch.where(first, one, other), torch.where(first, other, one)
    members = [Proxy(better, worse, g) for _ in range(MEMBERS)]
    x = answers(samples, g=g)
    truth = gold(x)
    z = (truth - truth.mean()) / truth.std()
    with torch.no_grad():
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


def interval(x: Tensor) -> str:
    """Mean with a 95% interval."""
    half = float(scipy.stats.t.ppf(0.975, len(x) - 1) * x.std() / math.sqrt(len(x)))
    return f"{x.mean():.2f} [{x.mean() - half:.2f}, {x.mean() + half:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--samples", type=int, default=12600)
    parser.add_argument("--png", type=Path, default=Path("docs/overoptimization.png"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = [one_seed(seed, options.samples) for seed in range(options.seeds)]
    rows = {name: torch.tensor([f[name] for f in found]) for name in RULES}
    heads = "".join(f"{'n=' + str(n):>8}" for n in NS)
    print(f"gold z-score  {heads}{'highest at':>12}  lost from there on   over single at n={NS[-1]}")
    for name, values in rows.items():
        mean = values.mean(0)
        top = int(mean.argmax())
        figures = "".join(f"{x:8.2f}" for x in mean.tolist())
        lost, gap = interval(values[:, top] - values[:, -1]), interval((values - rows["single"])[:, -1])
        print(f"{name:14}{figures}{NS[top]:>12}  {lost:20} {gap if name != 'single' else ''}")
    picture(rows, options.png)
    print(options.png)


if __name__ == "__main__":
    main()
