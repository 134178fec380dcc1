"""The change of a decision's distribution by its own gradient step, from the last layer z = W h."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anypo.views import Functional, register_functionals

STEP_PRODUCTS = register_functionals(Functional("step_along"), Functional("step_spread"))
"""What `step_products` computes."""

ROWS_AT_ONCE = 2**24
"""Elements of [decision, choice, width] held at once."""


@dataclass(frozen=True)
class Moments:
    """Adam's state of the last layer: first and second moment [choice, width], updates made, and its constants."""

    first: Float[Tensor, "choice width"]
    second: Float[Tensor, "choice width"]
    updates: int
    betas: tuple[float, float]
    eps: float


@torch.no_grad()
def step_products(
    hidden: Float[Tensor, "decision width"],
    logps: Float[Tensor, "decision choice"],
    taken: Int[Tensor, " decision"],
    advantage: Float[Tensor, " decision"],
    moments: Moments | None,
) -> dict[str, Float[Tensor, " decision"]]:
    """With v = onehot(a) - pi, g = A v h^T and u = G h, where G is the step that g alone would cause (g itself, or Adam's
    step): `step_along` = v.u and `step_spread` = u^T (diag(pi) - pi pi^T) u.

    Source: CAPO, arXiv 2510.00819, sec. 4: from these follow the predicted change of the objective and of the policy.
    """
    p = logps.exp()
    v = -p
    v[torch.arange(len(v)), taken] += 1
    if moments is None:
        u = advantage[:, None] * hidden.square().sum(1, keepdim=True) * v
    else:
        size = max(1, ROWS_AT_ONCE // (v.shape[1] * hidden.shape[1]))
        u = torch.cat(
            [
                _adam(*rows, moments)
                for rows in zip(v.split(size), hidden.split(size), advantage.split(size), strict=True)
            ]
        )
    return {"step_along": (v * u).sum(1), "step_spread": (p * u.square()).sum(1) - (p * u).sum(1).square()}


def _adam(v: Tensor, h: Tensor, a: Tensor, m: Moments) -> Float[Tensor, "decision choice"]:
    """Return G h, with the moments updated by each decision's gradient alone."""
    g = (a[:, None] * v)[:, :, None] * h[:, None]
    (b1, b2), t = m.betas, m.updates + 1
    first = (b1 * m.first + (1 - b1) * g) / (1 - b1**t)
    second = (b2 * m.second + (1 - b2) * g.square()) / (1 - b2**t)
    return torch.einsum("dcw,dw->dc", first / (second.sqrt() + m.eps), h)
