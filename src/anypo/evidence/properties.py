"""Properties of every method, as functions that raise AssertionError with a sentence. `verify` runs them on seeded random batches,
the test suite with hypothesis, for every registered method. A procedure's known answers take their place."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from copy import deepcopy
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from anypo.errors import RunError, UsageError
from anypo.evidence.batches import (
    FLOAT_STEP_FIELDS,
    draw_batch,
    fill_masked,
    gradients,
    leaves_of,
    random_advantage,
    same_bits,
)
from anypo.method.method import Method
from anypo.method.procedure import Procedure, describe_check
from anypo.method.registry import method as find
from anypo.types import Trajectories

RUBBISH = (float("nan"), 1e9, -1e9, float("-inf"))


def demand(holds: Any, sentence: str) -> None:
    """Raise AssertionError with the sentence unless `holds` is true."""
    if not bool(holds):
        raise AssertionError(sentence)


def demand_close(actual: Tensor, expected: Tensor, sentence: str, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    """Raise AssertionError with the sentence unless |actual - expected| <= atol + rtol |expected|; NaN equals NaN."""
    close = torch.isclose(actual, expected, rtol=rtol, atol=atol, equal_nan=True)
    largest = float((actual - expected).abs().nan_to_num().max()) if actual.numel() else 0.0
    demand(close.all(), f"{sentence}: off by up to {largest:.3g}")


def all_tensors(b: Trajectories) -> dict[str, Tensor]:
    """Return every tensor of the batch by name."""
    values = {f.name: getattr(b, f.name) for f in fields(b)} | b.extra | b.trace
    return {k: t for k, t in values.items() if isinstance(t, Tensor)}


def prepare_for_loss(method: Method, b: Trajectories) -> Trajectories:
    """Assign credit, then put in an advantage without zeros and values that have moved since."""
    b = method.prepare(b)
    return random_advantage(b if b.value is None else b.but(value=b.value * 0.5 + 0.1))


def finite(method: Method, b: Trajectories) -> None:
    """Loss, gradient and metrics are finite for log-ratios up to +-100, in the precision given."""
    b = prepare_for_loss(method, b)
    logp = b.need("logp")
    loss, metrics, grads = gradients(method, b)
    demand(loss.isfinite(), f"the loss is {float(loss)}")
    precise = torch.float32 if logp.dtype == torch.bfloat16 else logp.dtype
    demand(loss.dtype == precise, f"the loss is {loss.dtype}, not {precise}")
    for leaf, grad in grads.items():
        demand(
            grad.isfinite().all() and grad.dtype == logp.dtype,
            f"the gradient of {leaf} is not finite or of another type",
        )
    for name, value in metrics.items():
        demand(value.isfinite(), f"the metric {name} is {float(value)}")


def masked_slots_never_matter(method: Method, b: Trajectories) -> None:
    """Whatever is under the mask: credit, loss, metrics and gradients are equal to the last bit, and 0 there."""
    one = method.prepare(fill_masked(b, 0.0))  # in the memory layout of the batches it is compared with
    demand(one.advantage is None or (one.advantage[~one.valid] == 0).all(), "the advantage is not 0 under the mask")
    ready = fill_masked(prepare_for_loss(method, b), 0.0)
    loss, metrics, grads = gradients(method, ready)
    for leaf, grad in grads.items():
        demand((grad[~ready.valid] == 0).all(), f"the gradient of {leaf} is not 0 under the mask")
    for rubbish in RUBBISH:
        other = method.prepare(fill_masked(b, rubbish))
        for field in ("advantage", "mask", "returns", "score"):
            x, y = one.get(field), other.get(field)
            same = x is y if x is None or y is None else same_bits(x, y)
            demand(same, f"{field} depends on {rubbish} under the mask")
        loss_, metrics_, grads_ = gradients(method, fill_masked(ready, rubbish))
        demand(same_bits(loss, loss_), f"the loss depends on {rubbish} under the mask")
        demand(metrics.keys() == metrics_.keys(), "the metrics depend on masked slots")
        for name in metrics:
            demand(same_bits(metrics[name], metrics_[name]), f"the metric {name} depends on {rubbish} under the mask")
        for leaf in grads:
            demand(same_bits(grads[leaf], grads_[leaf]), f"the gradient of {leaf} depends on {rubbish} under the mask")


def row_order_does_not_matter(method: Method, b: Trajectories) -> None:
    """Permuting rows permutes credit and gradients and leaves the loss, unless the card declares the method ordered."""
    if method.card.ordered:
        return
    order = torch.randperm(b.shape[0], generator=torch.Generator().manual_seed(b.shape[1]))
    straight, shuffled = method.prepare(b), method.prepare(b.rows(order))
    if straight.advantage is not None and shuffled.advantage is not None:
        demand_close(
            shuffled.advantage, straight.advantage[order], "the advantage depends on the order of rows", atol=1e-10
        )
    demand(torch.equal(shuffled.valid, straight.valid[order]), "the mask depends on the order of rows")
    ready = prepare_for_loss(method, b)
    (loss, _, grads), (loss_, _, grads_) = gradients(method, ready), gradients(method, ready.rows(order))
    demand_close(loss_, loss, "the loss depends on the order of rows")
    for leaf in grads:
        demand_close(grads_[leaf], grads[leaf][order], f"the gradient of {leaf} depends on the order of rows")


def loss_is_repeatable_and_moves_no_state(method: Method, b: Trajectories) -> None:
    """Twice the same loss, gradients and metrics to the last bit; knobs stay where they are."""
    ready = prepare_for_loss(method, b)
    state = deepcopy(method.state_dict())
    (loss, metrics, grads), (loss_, metrics_, grads_) = gradients(method, ready), gradients(method, ready)
    demand(str(method.state_dict()) == str(state), "the loss moved a knob")
    demand(same_bits(loss, loss_), "the second loss differs from the first")
    demand(all(same_bits(grads[k], grads_[k]) for k in grads), "the second gradient differs from the first")
    demand(all(same_bits(metrics[k], metrics_[k]) for k in metrics), "the second metrics differ from the first")


def input_is_left_alone(method: Method, b: Trajectories) -> None:
    """Neither prepare nor loss writes into the batch it was given."""
    b = fill_masked(b, float("nan"))
    before = {k: t.clone() for k, t in all_tensors(b).items()}
    method.loss(method.prepare(b))
    for name, t in all_tensors(b).items():
        demand(same_bits(t.to(torch.float64), before[name].to(torch.float64)), f"{name} was written into")


def splitting_does_not_matter(method: Method, b: Trajectories) -> None:
    """dF/dfield on the whole batch, then sum(dF/dfield * field) through a model split by split, is plain autograd."""
    ready = prepare_for_loss(method, b)
    rows = ready.shape[0]
    g = torch.Generator().manual_seed(rows)
    inputs = torch.randn(*ready.shape, 4, generator=g, dtype=torch.float64)
    leaves = [leaf for leaf in leaves_of(method) if ready.get(leaf) is not None]
    weights = torch.randn(4, len(leaves), generator=g, dtype=torch.float64, requires_grad=True)
    anchor = {leaf: ready.get(leaf).detach() for leaf in leaves}

    def model(index: Tensor) -> dict[str, Tensor]:
        out = torch.tanh(inputs[index] @ weights)
        return {
            leaf: (x := anchor[leaf][index]) + out[..., k].reshape(*out.shape[:2], *[1] * (x.ndim - 2))
            for k, leaf in enumerate(leaves)
        }

    all_rows = torch.arange(rows)
    loss, _ = method.loss(ready.put(model(all_rows)))
    direct = torch.autograd.grad(loss, weights, materialize_grads=True)[0]
    _, _, grads = gradients(method, ready.put(model(all_rows)))
    for piece in torch.randperm(rows, generator=g).tensor_split(1 + rows // 2):
        torch.stack([(grads[leaf][piece] * out).sum() for leaf, out in model(piece).items()]).sum().backward()
    demand_close(
        torch.zeros_like(direct) if weights.grad is None else weights.grad,
        direct,
        "the gradient depends on how rows are split",
    )


def gradient_is_the_weight_on_the_card(method: Method, b: Trajectories) -> None:
    """-dF/dlogp = W(r, A) times the coefficients of the mean, where the card has W and no other term reads logp."""
    if method.card.weight is None or "logp" in method.reads("terms", "critic"):
        return
    ready = prepare_for_loss(method, b)
    _, _, grads = gradients(method, ready)
    clean, part = ready.clean(), method.stages["ratio"]
    r = torch.ones(ready.shape, dtype=torch.float64) if part is None else part(clean).exp()
    coefficients = method.stages["reduce"].coefficients(clean) * (1.0 if clean.weight is None else clean.weight)
    expected = torch.where(ready.valid, -method.card.weight(r, clean.need("advantage")) * coefficients, 0.0)
    demand_close(grads["logp"], expected, "the gradient is not the weight on the card")


def rows_of_weight_zero_change_nothing(method: Method, b: Trajectories) -> None:
    """Other numbers in a row of weight 0 leave loss and gradient as they are, and its own gradient is 0."""
    ready = prepare_for_loss(method, b)
    idle = torch.arange(ready.shape[0]) % 2 == 1
    weight = torch.ones_like(ready.need("logp")) if ready.weight is None else ready.weight
    ready = ready.but(weight=weight.masked_fill(idle.unsqueeze(1), 0.0))
    changes = {f: (3 * t + 1).where(idle.unsqueeze(1), t) for f in FLOAT_STEP_FIELDS if (t := ready.get(f)) is not None}
    other = ready.but(**changes | {"weight": ready.weight})
    (loss, _, grads), (loss_, _, grads_) = gradients(method, ready), gradients(method, other)
    demand_close(loss_, loss, "the loss depends on rows of weight 0", 1e-12, 1e-13)
    for leaf in grads:
        demand_close(grads_[leaf], grads[leaf], f"the gradient of {leaf} depends on rows of weight 0", 1e-12, 1e-13)
        demand((grads[leaf][idle] == 0).all(), f"rows of weight 0 have a gradient in {leaf}")


def float64_stays_float64(method: Method, b: Trajectories) -> None:
    """No part loses precision."""
    ready = method.prepare(b)
    for name, t in all_tensors(ready).items():
        demand(not t.is_floating_point() or t.dtype == torch.float64, f"{name} became {t.dtype}")
    loss, _, grads = gradients(method, ready)
    demand({loss.dtype, *(s.dtype for s in grads.values())} == {torch.float64}, "loss or gradient lost precision")


def prepare_keeps_the_shape(method: Method, b: Trajectories) -> None:
    """prepare clears masks but never adds decisions, and its advantage has the batch's shape and no gradient."""
    after = method.prepare(b)
    demand(not (after.valid & ~b.valid).any(), "prepare added decisions")
    if after.advantage is not None:
        demand(
            after.advantage.shape == b.shape and not after.advantage.requires_grad,
            "the advantage has another shape, or a gradient",
        )


def a_batch_without_decisions_gives_zero(method: Method, b: Trajectories) -> None:
    """Loss and gradients are 0 and metrics finite where nothing counts."""
    loss, metrics, grads = gradients(method, method.prepare(b.but(mask=torch.zeros(b.shape, dtype=torch.bool))))
    demand(loss == 0, f"the loss is {float(loss)}")
    demand(all((s == 0).all() for s in grads.values()), "there is a gradient")
    demand(all(v.isfinite() for v in metrics.values()), "a metric is not finite")


def reductions_hold(method: Method, b: Trajectories) -> None:
    """With some stages replaced, credit and gradient are those of the other method, as the card says."""
    for identity in method.card.reduces:
        mine, theirs = method.but(**identity.stages), find(identity.to, **identity.its)
        one, other = mine.prepare(b), theirs.prepare(b)
        if one.advantage is not None and other.advantage is not None:
            demand_close(one.advantage, other.advantage, f"the advantage is not that of {identity.to}")
        ready = random_advantage(
            one if other.returns is None else one.but(returns=other.returns, value_old=other.value_old)
        )
        (_, _, grads), (_, _, grads_) = gradients(mine, ready), gradients(theirs, ready)
        for leaf in grads:
            demand_close(grads[leaf], grads_[leaf], f"the gradient of {leaf} is not that of {identity.to}")


PROPERTIES: dict[str, Callable[[Method, Trajectories], None]] = {
    f.__name__.replace("_", " "): f
    for f in (
        finite,
        masked_slots_never_matter,
        row_order_does_not_matter,
        loss_is_repeatable_and_moves_no_state,
        input_is_left_alone,
        splitting_does_not_matter,
        gradient_is_the_weight_on_the_card,
        rows_of_weight_zero_change_nothing,
        float64_stays_float64,
        prepare_keeps_the_shape,
        a_batch_without_decisions_gives_zero,
        reductions_hold,
    )
}


WILD: dict[str, list[dict[str, Any]]] = {
    "finite": [{"spread": 100.0, "dtype": d} for d in (torch.float64, torch.float32, torch.bfloat16)]
}
"""Further batches of a property."""


def check_properties(method: Method, cases: int) -> dict[str, Any]:
    """Check every property on `cases` random batches: {passed, cases, failed: [sentence, ...]}."""
    failed: list[str] = []
    done = passed = 0
    for name, holds in PROPERTIES.items():
        broken = None
        for seed, fixed in itertools.product(range(cases), WILD.get(name, [{}])):
            done += 1
            try:
                holds(method, draw_batch(method, seed, **fixed))
            except AssertionError as error:
                broken = f"{name}: {error} (seed {seed})"
                break
        passed += broken is None
        failed += [broken] if broken else []
    return {"passed": passed, "of": len(PROPERTIES), "cases": done, "failed": failed}


def check_known(procedure: Procedure) -> dict[str, Any]:
    """Run a procedure's checks with a known answer: {passed, of, cases, failed: [sentence, ...]}, as of a method's properties."""
    failed: list[str] = []
    for check in procedure.known:
        try:
            check()
        except (AssertionError, UsageError, RunError) as error:
            failed.append(f"{describe_check(check)}: {(str(error).splitlines() or ['does not hold'])[0]}")
    count = len(procedure.known)
    return {"passed": count - len(failed), "of": count, "cases": count, "failed": failed}
