"""GRPO on a Gaussian and on a flow policy where four actions are equally good (docs/modes.png), and on a flow that draws images.

python benchmarks/modes.py [--seeds 3]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor, nn

import anypo
from anypo.evidence.experiments.assemble import assemble_in_memory
from anypo.loops.learn import learn
from anypo.policies.control.mlp import MLPPolicy
from anypo.policies.generative.flow import FlowPolicy
from anypo.policies.generative.pretrain import pretrain
from anypo.tasks.plane import Multimodal

PICTURE = Path(__file__).parents[1] / "docs" / "modes.png"


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cloned(cls: type[MLPPolicy], task: Multimodal, steps: int, seed: int, **options) -> MLPPolicy:
    policy = cls(task.observation_space, task.action_space, value=False, seed=seed, **options)
    pretrain(policy, task.experts(policy, 2000, seeded(seed)), steps, seed=seed)
    return policy


def trained(method: anypo.Method, task: Multimodal, policy: MLPPolicy, batches: int, lr: float, seed: int) -> None:
    run = assemble_in_memory(
        method, task, seed, batches=batches, lr=lr, requests=8, samples=16, epochs=1, minibatch=0,
        policy=policy,
    )  # fmt: skip
    learn(run)


def modes(seeds: int) -> None:
    """Shares of the samples near each of four modes that pay alike, before and after GRPO without a reference."""
    panels = {}
    for name, cls, steps, batches, lr in (
        ("Gaussian", MLPPolicy, 300, 200, 3e-2),
        ("flow", FlowPolicy, 1500, 60, 1e-3),
    ):
        for seed in range(seeds):
            task = Multimodal()
            policy = cloned(cls, task, steps, seed)
            for when in ("before", "after"):
                if when == "after":
                    trained(anypo.method("grpo", terms=[]), task, policy, batches, lr, seed)
                action = task.sample(policy, seed)
                measures, shares = task.evaluate(policy, seed), task.shares(action).tolist()
                print(
                    f"{name:8} seed {seed} {when:6}  reward {measures['reward']:.2f}  modes kept {measures['modes']:.0f}"
                    f"  shares {' '.join(f'{s:.2f}' for s in shares)}"
                )
                if seed == 0:
                    panels[f"{name} policy, {when}"] = action
    draw(panels, Multimodal().modes)


def draw(panels: dict[str, Tensor], centres: Tensor) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(3.1 * len(panels), 3.2), layout="constrained", sharey=True)
    for axis, (title, action) in zip(axes, panels.items(), strict=True):
        axis.scatter(*action.T, s=4, alpha=0.4, linewidths=0)
        axis.scatter(*centres.T, marker="x", color="black", s=40)
        axis.set(title=title, xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect="equal")
    figure.suptitle("GRPO where four actions (x) are equally good")
    figure.savefig(PICTURE, dpi=110)
    pyplot.close(figure)


# ------------------------------------------------------------------ images


def pictures(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """8x8 images in [-1, 1] and their classes: handwritten digits where scikit-learn is there, else four kinds of shapes."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        kind = torch.randint(4, (count,), generator=generator)
        at = torch.randint(1, 7, (count,), generator=generator)
        row, column = torch.arange(8)[None, :, None], torch.arange(8)[None, None, :]
        place, kinds = at[:, None, None], kind[:, None, None]
        inside = (torch.stack([row, row.flip(1)]).amin(0) >= 1) & (torch.stack([column, column.flip(2)]).amin(0) >= 1)
        border = inside & ((row == 1) | (row == 6) | (column == 1) | (column == 6))
        shapes = [row == place, column == place, row == (column + place) % 8, border.expand(count, 8, 8)]
        drawn = sum(((kinds == k) & shape).float() for k, shape in enumerate(shapes))
        noise = 0.1 * torch.randn(count, 8, 8, generator=generator)
        return (1.6 * drawn - 0.8 + noise).clamp(-1, 1).flatten(1), kind
    digits = load_digits()
    some = torch.randint(len(digits.data), (count,), generator=generator)
    return torch.from_numpy(digits.data).float()[some] / 8 - 1, torch.from_numpy(digits.target)[some]


class Pictures(Multimodal):
    """One image per row, paid by the probability that a classifier gives to one class."""

    name = "pictures"

    def __init__(self, wanted: int = 3):
        super().__init__()
        self.wanted = wanted
        images, kind = pictures(4000, seeded(0))
        self.judge = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, int(kind.max()) + 1))
        optimizer = torch.optim.Adam(self.judge.parameters(), 3e-3)
        for i in range(400):
            some = torch.randint(3000, (128,), generator=seeded(i))
            noisy = images[some] + 0.3 * torch.randn(128, 64, generator=seeded(i))
            loss = nn.functional.cross_entropy(self.judge(noisy), kind[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        right = self.judge(images[3000:]).argmax(1) == kind[3000:]
        self.accuracy = float(right.float().mean())

    @property
    def action_space(self) -> Box:
        return Box(-1, 1, (64,), np.float32)

    @torch.no_grad()
    def reward(self, action: Tensor) -> Tensor:
        return self.judge(action).softmax(1)[:, self.wanted]

    gold = reward

    def experts(self, policy: MLPPolicy, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.observations(policy, count), pictures(count, generator)[0]

    def evaluate(self, policy: MLPPolicy, seed: int, episodes: int | None = None) -> dict[str, float]:
        action = self.sample(policy, seed)
        return {"reward": float(self.reward(action).mean()), "spread": float(action.std(0).mean())}


def images(seeds: int) -> None:
    """Reward of the images before and after, by the classifier that pays for them, and how much they differ from each other."""
    for method in ("ddpo", "flow-grpo"):
        for seed in range(seeds):
            torch.manual_seed(seed)
            task = Pictures()
            policy = cloned(FlowPolicy, task, 3000, seed, hidden=(128, 128))
            before = task.evaluate(policy, 1)
            trained(anypo.method(method), task, policy, 150, 1e-3, seed)
            after = task.evaluate(policy, 1)
            print(
                f"images, {method:9} seed {seed}  classifier {task.accuracy:.2f}  reward {before['reward']:.2f} ->"
                f" {after['reward']:.2f}  spread of pixels {before['spread']:.2f} -> {after['spread']:.2f}"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    wanted = parser.parse_args().seeds
    torch.set_num_threads(1)
    modes(wanted)
    images(wanted)
