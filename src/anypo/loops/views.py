"""Compute the views a method declares: forward passes, probes, proposed actions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from anypo.errors import UsageError
from anypo.loops.minibatches import fits, microbatches
from anypo.loops.precision import autocast
from anypo.method.method import Method
from anypo.policies.curvature import Moments
from anypo.policies.weights import swap_params
from anypo.protocols import HasOptimizer, Policy, Proposes
from anypo.runs.run import Run
from anypo.types import MASK, NEXT_MASK, Trajectories
from anypo.views import Draw, View


def with_views(run: Run, method: Method, rows: Trajectories) -> Trajectories:
    """Attach random numbers for the proposed actions, and compute the views.

    Args:
        run: the run.
        method: the phase that declares the views.
        rows: as sampled or drawn.
    """
    return compute_views(run, method, attach_noise(run.policy, rows, method.views | method.live, run.generator))


def compute_views(run: Run, method: Method, rows: Trajectories) -> Trajectories:
    """Add the views the method's parts declare, except those that sampling kept. Equal views run once.

    Args:
        run: the run.
        method: the phase that declares the views.
        rows: with random numbers for the proposed actions.
    """
    wanted = dict(method.views)
    for name in [n for n, view in wanted.items() if view == View(n) and rows.get(n) is not None]:
        del wanted[name]  # sampling kept it
    values: dict[str, torch.Tensor] = {}
    for ablate in dict.fromkeys(view.ablate for view in wanted.values()):
        views = {name: view for name, view in wanted.items() if view.ablate == ablate}
        shown = run.policy.ablated(rows, ablate, run.generator) if ablate else rows
        with autocast(run), torch.no_grad():
            values |= run_probes(run, shown, views)
    return rows.put(values)


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
        shown = rows
        if view.draw is not None:
            shown = rows.but(trace={**rows.trace, "action": propose(run.policy, rows, view.draw)[0]})
        with use_weights(run.policy, run.anchors, view.of):
            values[name] = probe(shown)
    return values


def minibatch_views(run: Run, method: Method, rows: Trajectories) -> Trajectories:
    """Add what minibatch links read about the present policy, and the learning rate of the coming step.

    Args:
        run: the run.
        method: the phase; without minibatch links the rows stay as they are.
        rows: a minibatch.
    """
    views = method.late_views
    if not views:
        return rows
    chunks, memory = microbatches(rows, run.config.micro), moments(run)
    pieces = [run.policy.step_products(rows.rows(chunk), memory) for chunk in chunks]
    back = torch.cat(chunks).argsort()
    products = {name: torch.cat([piece[name] for piece in pieces])[back] for name in pieces[0]}
    lr = torch.full((rows.shape[0],), run.stepper.lr(), device=rows.valid.device)
    return rows.put({name: products[view.functional] for name, view in views.items()} | {"lr": lr})


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
        passes.setdefault((view.of, view.at, view.draw, view.layer), {})[name] = view.functional
    for (of, at, draw, layer), names in passes.items():
        seen = batch if at == "here" else shift_to_next_obs(batch)
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
            options = ({} if layer is None else {"layer": layer}) | ({"frozen": True} if draw and draw.live else {})
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


def policy_kind(policy: Any) -> str:
    """Name of a policy on the command line, or of its class."""
    return getattr(policy, "kind", type(policy).__name__)


@cache
def rng_key(draw: Draw) -> str:
    """Name of the random numbers of a draw in the trace."""
    return f"noise of {draw}"


def attach_noise(
    policy: Any, batch: Trajectories, views: Mapping[str, View], generator: torch.Generator
) -> Trajectories:
    """Add random numbers for every draw of the views to the trace.

    Args:
        policy: says what its proposals need.
        batch: the rows.
        views: whose draws are served.
        generator: of the run.
    """
    draws = dict.fromkeys(view.draw for view in views.values() if view.draw is not None)
    if not draws or not isinstance(policy, Proposes):
        return batch
    numbers = {rng_key(draw): policy.noise(batch, draw, generator) for draw in draws}
    if any(view.functional == "luck" for view in views.values()):
        numbers["luck"] = torch.randn(batch.shape, generator=generator)
    if policy.latent:
        numbers["latent"] = torch.randn(*batch.shape, policy.latent, generator=generator)
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
