"""A method invented in fifteen lines, and verified: its properties hold, its claim is tested on two seeds.

Shown: a part (the surrogate), a method as a difference from another one, a claim written before any run, `check_properties` and
`run_claim`. `anypo verify own_method.py:bounded` does the same with ten seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

import anypo
from anypo.evidence.properties import check_properties
from anypo.evidence.verify import run_claim
from anypo.parts.ops.log_ratio import importance_ratio
from anypo.parts.ops.surrogate import advantage_at


@dataclass(frozen=True)
class Bounded:
    """s = A h tanh((r - 1) / h): near r = 1 the ratio itself, farther away at most h, without a corner."""

    h: float = 0.2
    level = "decision"
    reads = ("advantage",)

    def __call__(self, x, b):
        return advantage_at(x, b) * self.h * torch.tanh((importance_ratio(x) - 1) / self.h), {}


claim = anypo.Claim("It bears reused batches as well as the clip.", "reuse", "curve", "grpo", settings={"batches": 12})
card = anypo.Card(
    "bounded", "A bounded ratio", 2026, None, "s = A h tanh((r - 1) / h)", "this file", claim.text, claims=(claim,)
)
bounded = anypo.register_method(anypo.method("grpo").but(trust=Bounded(), terms=[], card=card))


def main() -> None:
    """Show the difference, check the properties, test the claim."""
    print(bounded.explain())
    assert bounded.changed == ["trust", "terms"]

    record = check_properties(bounded, cases=3)
    print(f"{record['passed']} of {record['of']} properties hold on {record['cases']} random batches")
    assert record["failed"] == []

    result = run_claim(bounded, claim, seeds=[0, 1])
    low, high = result["interval"]
    print(f"{claim.text} {result['verdict']}: effect {result['effect']:.3f} [{low:.3f}, {high:.3f}] on two seeds")
    assert low <= result["effect"] <= high


if __name__ == "__main__":
    main()
