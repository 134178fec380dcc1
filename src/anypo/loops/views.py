"""Compute the views a method declares: forward passes, probes, proposed actions."""

from __future__ import annotations

from collections.abc import Mapping
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
from anypo.protocols import Policy
from anypo.runs.run import Run
from anypo.types import Trajectories
from anypo.views import Draw, View


def with_views(run: Run, method: Method, rows: Trajectories) -> Trajectories:
    """The rows with random numbers for what is proposed, and their views."""
    return compute_views(run, method, attach_noise(run.policy, rows, method.views | method.live, run.generator))


def compute_views(run: Run, method: Method, rows: Trajectories) -> Trajectories:
    """The rows with what the method's parts declare to need beside what sampling kept. Equal views run once."""
    wanted = dict(method.views)
    for name in [n for n, view in wanted.items() if view == View(n) and rows.get(n) is not None]:
        del wanted[name]  # sampling kept it
    found: dict[str, torch.Tensor] = {}
    for ablate in dict.fromkeys(view.ablate for view in wanted.values()):
        views = {name: view for name, view in wanted.items() if view.ablate == ablate}
        shown = run.policy.ablated(rows, ablate, run.generator) if ablate else rows
        with autocast(run), torch.no_grad():
            found |= run_probes(run, shown, views)
    return rows.put(found)


def run_probes(run: Run, rows: Trajectories, views: dict[str, View]) -> dict[str, torch.Tensor]:
    """Views on one input: functionals of the decisions, and probes: functions of the policy, or of the store."""
    plain = {name: view for name, view in views.items() if view.functional in {*run.policy.functionals, "action"}}
    anchors = {view.of for view in plain.values()} | {view.draw.of for view in plain.values() if view.draw}
    for of in anchors - {"now"}:
        run.anchor(of)
    found = views_without_grad(run.policy, rows, plain, run.config.micro, run.anchors) if plain else {}
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
            found[name] = probe(shown)
    return found


def minibatch_views(run: Run, method: Method, part: Trajectories) -> Trajectories:
    """A minibatch with what its minibatch links need to know about the policy as it is now, and the coming step's size."""
    views = method.late_views
    if not views:
        return part
    chunks, memory = microbatches(part, run.config.micro), moments(run)
    pieces = [run.policy.step_products(part.rows(rows), memory) for rows in chunks]
    back = torch.cat(chunks).argsort()
    found = {name: torch.cat([piece[name] for piece in pieces])[back] for name in pieces[0]}
    lr = torch.full((part.shape[0],), run.stepper.lr(), device=part.valid.device)
    return part.put({name: found[view.functional] for name, view in views.items()} | {"lr": lr})


def moments(run: Run) -> Moments | None:
    """What the optimizer remembers about the policy's last layer; None where it remembers nothing (plain descent)."""
    weight, across = run.policy.last_layer()
    optimizer = getattr(run.stepper, "optimizer", None)
    state = optimizer.state.get(weight, {}) if optimizer is not None else {}
    if not isinstance(optimizer, torch.optim.Adam):
        return None
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
    """The views of a batch by the name of the field: one pass for all that share parameters, input and layer.

    Parameters are the policy's present ones, or those of an anchor; proposed actions are made once per draw, from the
    random numbers that stand in the trace (`with_noise`).
    """
    found: dict[str, Tensor] = {}
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
            found |= {name: ready[f] for name, f in names.items() if ready.get(f) is not None}  # pyright: ignore[reportAssignmentType]
            names = {name: f for name, f in names.items() if ready.get(f) is None}
            seen = seen.but(trace={**seen.trace, "action": action})
        for functional in names.values():
            if functional not in policy.functionals:
                raise UsageError(
                    f"the policy ({type(policy).__name__}) cannot give {functional!r}, which the method needs"
                )
        if names:
            options = ({} if layer is None else {"layer": layer}) | ({"frozen": True} if draw and draw.live else {})
            with use_weights(policy, anchors, of):
                values = policy.evaluate(seen, set(names.values()), **options)
            found |= {name: values[functional] for name, functional in names.items()}
    return found


def use_weights(policy: Any, anchors: Mapping[str, Anchor] | None, of: str) -> AbstractContextManager[Any]:
    """Inside, the policy computes with the weights of an anchor, or with its own (`now`)."""
    return nullcontext() if of == "now" or anchors is None else swap_params(policy, anchors[of])


def shift_to_next_obs(batch: Trajectories) -> Trajectories:
    """The batch with every observation replaced by the one that followed."""
    if "next" not in batch.trace:
        raise UsageError("the method looks one step ahead, and this batch does not say what was observed next")
    return batch.but(trace={**batch.trace, "obs": batch.trace["next"]})


def propose(policy: Any, batch: Trajectories, draw: Draw) -> tuple[Tensor, Tensor | None]:
    """Actions for the observations of the batch, and their log-probabilities."""
    if not hasattr(policy, "propose"):
        raise UsageError(f"the policy ({type(policy).__name__}) cannot propose actions, which the method needs")
    if draw.live:
        return policy.propose(batch, draw, batch.trace.get(rng_key(draw)))
    with torch.no_grad():
        return policy.propose(batch, draw, batch.trace.get(rng_key(draw)))


@cache
def rng_key(draw: Draw) -> str:
    """Name under which the random numbers of a draw stand in the trace."""
    return f"noise of {draw}"


def attach_noise(
    policy: Any, batch: Trajectories, views: Mapping[str, View], generator: torch.Generator
) -> Trajectories:
    """The batch with random numbers for every draw of its views."""
    draws = dict.fromkeys(view.draw for view in views.values() if view.draw is not None)
    if not draws or not hasattr(policy, "noise"):
        return batch
    found = {rng_key(draw): policy.noise(batch, draw, generator) for draw in draws}
    if any(view.functional == "luck" for view in views.values()):
        found["luck"] = torch.randn(batch.shape, generator=generator)
    if latent := getattr(policy, "latent", 0):
        found["latent"] = torch.randn(*batch.shape, latent, generator=generator)
    return batch.but(trace={**batch.trace, **{key: noise for key, noise in found.items() if noise is not None}})


@torch.no_grad()
def views_without_grad(
    policy: Policy,
    batch: Trajectories,
    views: Mapping[str, View],
    micro: int,
    anchors: Mapping[str, Anchor] | None = None,
) -> dict[str, Tensor]:
    """The views of a batch without gradient, in the batch's row order."""
    if fits(batch, micro):
        return evaluate_views(policy, batch, views, anchors)
    chunks = microbatches(batch, micro)
    pieces = [evaluate_views(policy, batch.rows(rows), views, anchors) for rows in chunks]
    back = torch.cat(chunks).argsort()
    return {name: torch.cat([piece[name] for piece in pieces])[back] for name in views}


LOGP = {"logp": View()}
