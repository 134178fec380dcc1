"""How parameters move, and what stands between collecting and learning."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
from torch import Tensor

from anypo import Trajectories
from anypo.errors import RunError
from anypo.parts.step import Adam, RMSProp
from anypo.parts.step.gradient import Gradient
from anypo.parts.store import Fresh

RECIPES = [Gradient(lr=0.1), Adam(lr=0.1), RMSProp(lr=0.1)]
every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: type(r).__name__)


def parameter(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def pull(theta: Tensor, slope: float):
    """A closure whose gradient is `slope` in every coordinate."""

    def closure() -> dict[str, float]:
        (theta * slope).sum().backward()
        return {"loss": 1.0}

    return closure


def test_plain_descent_goes_one_learning_rate_down_the_gradient() -> None:
    theta = parameter(1.0)
    metrics = Gradient(lr=0.1, grad_norm=None).bind([{"params": [theta]}]).update(pull(theta, 3.0))
    assert float(theta.detach()) == pytest.approx(0.7)
    assert metrics["grad_norm"] == pytest.approx(3.0)
    assert metrics["loss"] == 1.0
    assert metrics["skipped"] == 0


def test_the_gradient_is_scaled_down_to_its_bound_and_the_norm_before_is_reported() -> None:
    theta = parameter(0.0, 0.0)
    metrics = Gradient(lr=1.0, grad_norm=0.5).bind([{"params": [theta]}]).update(pull(theta, 3.0))
    assert float(theta.detach().norm()) == pytest.approx(0.5, rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(3 * math.sqrt(2))


@every_recipe
@pytest.mark.parametrize("slope", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_moves_nothing_and_says_so(recipe: Gradient, slope: float) -> None:
    theta, twin = parameter(1.0, 2.0), parameter(1.0, 2.0)
    hurt, healthy = recipe.bind([{"params": [theta]}]), recipe.bind([{"params": [twin]}])
    assert hurt.update(pull(theta, slope))["skipped"] == 1
    assert theta.tolist() == [1.0, 2.0]
    for _ in range(2):
        hurt.update(pull(theta, 0.3))
        healthy.update(pull(twin, 0.3))
    assert theta.tolist() == twin.tolist()


@every_recipe
def test_a_saved_and_loaded_optimizer_goes_on_as_if_never_stopped(recipe: Gradient) -> None:
    one, other = parameter(1.0), parameter(1.0)
    stepper = recipe.bind([{"params": [one]}])
    for slope in (1.0, -0.2):
        stepper.update(pull(one, slope))
    other.data.copy_(one.data)
    resumed = recipe.bind([{"params": [other]}])
    resumed.load_state_dict(deepcopy(stepper.state_dict()))  # as through a file
    for slope in (0.7, 0.1):
        stepper.update(pull(one, slope))
        resumed.update(pull(other, slope))
    assert one.tolist() == other.tolist()
    assert stepper.updates == resumed.updates == 4


def test_schedules_end_where_they_should_and_warm_up_counts_updates() -> None:
    theta = parameter(0.0)
    for schedule, halfway, end in (("constant", 1.0, 1.0), ("linear", 0.5, 0.0), ("cosine", 0.5, 0.0)):
        stepper = Gradient(lr=1.0, schedule=schedule).bind([{"params": [theta]}])
        for progress, wanted in ((0.0, 1.0), (0.5, halfway), (1.0, end), (1.5, end)):
            stepper.progress = progress
            assert stepper.lr() == pytest.approx(wanted, abs=1e-12)
    stepper = Gradient(lr=1.0, warmup=4).bind([{"params": [theta]}])
    moved = []
    for _ in range(6):
        before = float(theta.detach())
        stepper.update(pull(theta, 1.0))
        moved.append(before - float(theta.detach()))
    assert moved == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1], rel=1e-5)


def test_a_fresh_store_gives_the_rows_just_collected_once() -> None:
    store = Fresh().open()
    store.add(Trajectories(logp=torch.zeros(1, 2)))
    store.add(Trajectories(logp=torch.ones(2, 3)))
    rows = store.draw(torch.Generator())
    assert rows.shape == (3, 3)
    assert rows.lengths.tolist() == [2, 3, 3]
    with pytest.raises(RunError, match="nothing was collected"):
        store.draw(torch.Generator())


def test_stores_opened_from_one_recipe_do_not_share_rows() -> None:
    recipe = Fresh()
    one, other = recipe.open(), recipe.open()
    one.add(Trajectories(logp=torch.zeros(1, 1)))
    with pytest.raises(RunError):
        other.draw(torch.Generator())


def test_the_fused_adam_is_torchs_and_goes_on_from_its_state():
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(3, 4, generator=generator), torch.randn(4, generator=generator)]
    ours, theirs = ([torch.nn.Parameter(x.clone()) for x in start] for _ in range(2))
    descent = Adam(lr=0.01, grad_norm=None, weight_decay=0.1).bind([{"params": ours}])
    plain = torch.optim.AdamW(theirs, 0.01, weight_decay=0.1, fused=False)
    for step in range(6):
        slopes = [torch.randn(x.shape, generator=generator) for x in start]
        slopes = [None if step == 2 and k == 1 else g for k, g in enumerate(slopes)]
        for group in (ours, theirs):
            for p, g in zip(group, slopes, strict=True):
                p.grad = None if g is None else g.clone()
        descent.optimizer.step()
        plain.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
        again = Adam(lr=0.01, grad_norm=None, weight_decay=0.1).bind([{"params": ours}])
        again.load_state_dict(descent.state_dict())
        descent = again
