"""Compute the views a method declares: forward passes, probes, proposed actions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from anypo.errors import UsageError
from anypo.loops.minibatches import fits, microbatches
from anypo.loops.precision import autocast
from anypo.method.method import Method
from anypo.policies import policy_kind
from anypo.policies.curvature import STEP_PRODUCTS, Moments
from anypo.policies.weights import swap_params
from anypo.protocols import HasOptimizer, Policy, Proposes, ReadsNoise
from anypo.runs.run import Run
from anypo.types import MASK, NEXT_MASK, Trajectories
from anypo.views import PLAIN, Draw, View, rng_key


def with_views(run: Run, method: Method, rows: Trajectories) -> Trajectories:
    """Attach random numbers for the proposed actions, and compute the views.

    Args:
        run: the run.
        method: the phase that declares the views.
        rows: as sampled or drawn.
    """
    return compute_views(run, method, attach_noise(run.policy, rows, method.views | method.live, run.generator))


def compute_views(run: Run, method: Method, rows: Trajectories) -> Trajectories:
    """Add the views the method's parts declare, except those that sampling kept.

    Args:
        run: the run.
        method: the phase that declares the views.
        rows: with random numbers for the proposed actions.
    """
    missing = {n: view for n, view in method.views.items() if view != View(n) or rows.get(n) is None}
    return rows.put(views_of_run(run, rows, missing))


def views_of_run(run: Run, rows: Trajectories, wanted: Mapping[str, View]) -> dict[str, Tensor]:
    """Compute views of rows without gradient. Equal views run once.

    Args:
        run: the run.
        rows: with random numbers for the proposed actions.
        wanted: views by the name of the field.
    """
    values: dict[str, torch.Tensor] = {}
    for ablate in dict.fromkeys(view.ablate for view in wanted.values()):
        views = {name: view for name, view in wanted.items() if view.ablate == ablate}
        shown = run.policy.ablated(rows, ablate, run.generator) if ablate else rows
        with autocast(run), torch.no_grad():
            values |= run_probes(run, shown, views)
    return values


def run_probes(run: Run, rows: Trajectories, views: dict[str, View]) -> dict[str, torch.Tensor]:
    """Compute views of one input: functionals of the decisions, and probes (functions of the policy or of the store).

    Args:
        run: the run.
        rows: the input.
        views: by the name of the field.

    Raises:
        UsageError: the policy cannot give what a view asks for.
    """
    plain = {name: view for name, view in views.items() if view.functional in {*run.policy.functionals, "action"}}
    anchors = {view.of for view in plain.values()} | {view.draw.of for view in plain.values() if view.draw}
    for of in anchors - {"now"}:
        run.anchor(of)
    values = views_without_grad(run.policy, rows, plain, run.config.micro, run.anchors) if plain else {}
    for name in views.keys() - plain.keys():
        view = views[name]
        probe = getattr(run.policy, view.functional, None) or getattr(run.store, view.functional, None)
        if probe is None and view.optional:
            continue
        if probe is None:
            raise UsageError(
                f"the policy {run.config.policy['name']} cannot give {view.functional!r}, which"
                f" {run.method.card.id} needs"
            )
        shown = show_input(rows, view.input)
        if view.draw is not None:
            shown = shown.but(trace={**shown.trace, "action": propose(run.policy, shown, view.draw)[0]})
        with use_weights(run.policy, run.anchors, view.of):
            values[name] = probe(shown)
    return values


def minibatch_views(run: Run, method: Method, rows: Trajectories) -> Trajectories:
    """Add what minibatch links read about the present policy: views, products of the coming step, and its learning rate.

    Args:
        run: the run.
        method: the phase; without minibatch links the rows stay as they are.
        rows: a minibatch.
    """
    views = method.late_views
    if not views:
        return rows
    of_step = {name: view for name, view in views.items() if view.functional in STEP_PRODUCTS}
    late = {name: view for name, view in views.items() if name not in of_step}
    values = views_of_run(run, attach_noise(run.policy, rows, late, run.generator), late) if late else {}
    if of_step:
        chunks, memory = microbatches(rows, run.config.micro), moments(run)
        pieces = [run.policy.step_products(rows.rows(chunk), memory) for chunk in chunks]
        back = torch.cat(chunks).argsort()
        products = {name: torch.cat([piece[name] for piece in pieces])[back] for name in pieces[0]}
        values |= {name: products[view.functional] for name, view in of_step.items()}
    return rows.put(values | {"lr": torch.full((rows.shape[0],), run.stepper.lr(), device=rows.valid.device)})


def moments(run: Run) -> Moments | None:
    """Return the optimizer's moments of the policy's last layer; None for optimizers without (plain descent)."""
    weight, across = run.policy.last_layer()
    optimizer = run.stepper.optimizer if isinstance(run.stepper, HasOptimizer) else None
    if not isinstance(optimizer, torch.optim.Adam):
        return None
    state = optimizer.state.get(weight, {})
    zero = torch.zeros_like(weight)
    first, second = (state.get(name, zero).detach() for name in ("exp_avg", "exp_avg_sq"))
    group = optimizer.param_groups[0]
    if across:
        first, second = first.T, second.T
    return Moments(first, second, int(state.get("step", 0)), tuple(group["betas"]), group["eps"])


Anchor = dict[str, Tensor]


def evaluate_views(
    policy: Policy, batch: Trajectories, views: Mapping[str, View], anchors: Mapping[str, Anchor] | None = None
) -> dict[str, Tensor]:
    """Compute the views of a batch: one forward pass for all that share parameters, input and layer.

    Args:
        policy: evaluated with its present parameters, or those of an anchor.
        batch: its trace holds the random numbers of proposed actions (`attach_noise`), which are made once per draw.
        views: by the name of the field.
        anchors: weights by name.
    """
    values: dict[str, Tensor] = {}
    proposed: dict[Draw, tuple[Tensor, Tensor | None]] = {}
    passes: dict[tuple[Any, ...], dict[str, str]] = {}
    for name, view in views.items():
        key = (view.of, view.at, view.draw, view.layer, view.input, view.temperature)
        passes.setdefault(key, {})[name] = view.functional
    for (of, at, draw, layer, shown, temperature), names in passes.items():
        seen = show_input(batch, shown)
        seen = seen if at == "here" else shift_to_next_obs(seen)
        if draw is not None:
            if draw not in proposed:
                with use_weights(policy, anchors, draw.of):
                    proposed[draw] = propose(policy, batch if draw.at == "here" else shift_to_next_obs(batch), draw)
            action, logp = proposed[draw]
            ready = {"action": action, "logp": logp}
            values |= {name: ready[f] for name, f in names.items() if ready.get(f) is not None}  # pyright: ignore[reportAssignmentType]
            names = {name: f for name, f in names.items() if ready.get(f) is None}
            seen = seen.but(trace={**seen.trace, "action": action})
        check_given(policy, names, policy.functionals)
        if names:
            options = {"layer": layer, "temperature": temperature, "frozen": True if draw and draw.live else None}
            options = {option: value for option, value in options.items() if value is not None}
            with use_weights(policy, anchors, of):
                outputs = policy.evaluate(seen, set(names.values()), **options)
            check_given(policy, names, outputs)
            values |= {name: outputs[functional] for name, functional in names.items()}
    return values


def check_given(policy: Any, names: Mapping[str, str], given: Collection[str]) -> None:
    """Refuse functionals that a policy does not give, such as the values of all choices where actions are numbers.

    Args:
        policy: what is asked.
        names: the functional of each field.
        given: what there is.
    """
    for functional in names.values():
        if functional not in given:
            raise UsageError(f"the policy ({type(policy).__name__}) cannot give {functional!r}, which the method needs")


def use_weights(policy: Any, anchors: Mapping[str, Anchor] | None, of: str) -> AbstractContextManager[Any]:
    """Return a context in which the policy computes with other weights.

    Args:
        policy: the policy.
        anchors: weights by name.
        of: an anchor, or `now` for the policy's own.
    """
    return nullcontext() if of == "now" or anchors is None else swap_params(policy, anchors[of])


def show_input(batch: Trajectories, name: str | None) -> Trajectories:
    """Return the batch with every row's input replaced by its other one of that name: `KEY@NAME` in the trace replaces KEY.

    Args:
        batch: its trace may hold several inputs for one completion.
        name: of the input; None: that of sampling. Where no row has a `plain` one, none was shown a hint: the input is plain.

    Raises:
        UsageError: the rows have no such input.
    """
    if name is None:
        return batch
    other = {key.removesuffix(f"@{name}"): x for key, x in batch.trace.items() if key.endswith(f"@{name}")}
    if not other and name != PLAIN:
        raise UsageError(f"the method reads the policy under the input {name!r}, and the rows of this task have none")
    return batch.but(trace=batch.trace | other) if other else batch


def shift_to_next_obs(batch: Trajectories) -> Trajectories:
    """Return the batch with every observation, and its mask, replaced by the one that followed."""
    if "next" not in batch.trace:
        raise UsageError("the method looks one step ahead, and this batch does not say what was observed next")
    trace = {**batch.trace, "obs": batch.trace["next"]}
    if MASK in trace:
        trace[MASK] = trace[NEXT_MASK]
    return batch.but(trace=trace)


def propose(policy: Any, batch: Trajectories, draw: Draw) -> tuple[Tensor, Tensor | None]:
    """Propose actions for the observations of the batch; return them and their log-probabilities.

    Args:
        policy: asked to propose.
        batch: its trace holds the draw's random numbers.
        draw: how the actions are made, and whether the gradient runs through them.

    Raises:
        UsageError: the policy cannot propose actions.
    """
    if not isinstance(policy, Proposes):
        raise UsageError(f"the policy {policy_kind(policy)} cannot propose actions, which the method needs")
    if draw.live:
        return policy.propose(batch, draw, batch.trace.get(rng_key(draw)))
    with torch.no_grad():
        return policy.propose(batch, draw, batch.trace.get(rng_key(draw)))


def attach_noise(
    policy: Any, batch: Trajectories, views: Mapping[str, View], generator: torch.Generator
) -> Trajectories:
    """Add random numbers for every draw of the views, and for the functionals that need some, to the trace.

    Args:
        policy: says what its proposals need.
        batch: the rows.
        views: whose draws are served.
        generator: of the run.
    """
    if not isinstance(policy, ReadsNoise):
        return batch
    draws = dict.fromkeys(view.draw for view in views.values() if view.draw is not None)
    numbers: dict[str, Tensor | None] = {}
    if isinstance(policy, Proposes):
        numbers |= {rng_key(draw): policy.noise(batch, draw, generator) for draw in draws}
    for functional in dict.fromkeys(view.functional for view in views.values()):
        if (shape := policy.noise_shape(functional)) is not None:
            numbers[rng_key(functional)] = torch.randn(*batch.shape, *shape, generator=generator)
    if not numbers:
        return batch
    return batch.but(trace={**batch.trace, **{key: noise for key, noise in numbers.items() if noise is not None}})


@torch.no_grad()
def views_without_grad(
    policy: Policy,
    batch: Trajectories,
    views: Mapping[str, View],
    micro: int,
    anchors: Mapping[str, Anchor] | None = None,
) -> dict[str, Tensor]:
    """Compute the views of a batch without gradient, in the batch's row order.

    Args:
        policy, batch, views, anchors: as for `evaluate_views`.
        micro: decisions per forward pass at most.
    """
    if fits(batch, micro):
        return evaluate_views(policy, batch, views, anchors)
    chunks = microbatches(batch, micro)
    pieces = [evaluate_views(policy, batch.rows(rows), views, anchors) for rows in chunks]
    back = torch.cat(chunks).argsort()
    return {name: torch.cat([piece[name] for piece in pieces])[back] for name in views}


LOGP = {"logp": View()}
