"""Ensembles of perceptrons: values of actions and of states."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anypo.kernels.ensemble_mlp import MIN_HALF_ROWS, autocast_off, ensemble_mlp
from anypo.networks.registry import NetworkKind, Sizes, register_network
from anypo.views import Functional, Network


class Ensemble(nn.Module):
    """`size` perceptrons with the same shape and ReLU between layers, [M, inputs] -> [M, size, outputs].

    Weights and biases are drawn from U(-1/sqrt(inputs), 1/sqrt(inputs)), independently for each member. norm: layer
    normalization, with a gain and a shift for each member, before every activation (arXiv 2302.02948, sec. 4.2). smooth: it can be
    differentiated twice, by recorded operations instead of a written-out gradient.
    """

    def __init__(self, size: int, widths: Sequence[int], norm: bool, generator: torch.Generator, smooth: bool = False):
        super().__init__()
        self.size, self.norm, self.smooth = size, norm, smooth

        def uniform(bound: float, *shape: int) -> nn.Parameter:
            return nn.Parameter((2 * torch.rand(*shape, generator=generator) - 1) * bound)

        pairs = list(pairwise(widths))
        self.weights = nn.ParameterList([uniform(1 / math.sqrt(a), size, a, b) for a, b in pairs])
        self.biases = nn.ParameterList([uniform(1 / math.sqrt(a), size, 1, b) for a, b in pairs])
        inner = widths[1:-1] if norm else ()
        self.gains = nn.ParameterList([nn.Parameter(torch.ones(size, 1, width)) for width in inner])
        self.shifts = nn.ParameterList([nn.Parameter(torch.zeros(size, 1, width)) for width in inner])

    def forward(
        self,
        x: Float[Tensor, "sample part"],
        more: Float[Tensor, "sample rest"] | None = None,
        frozen: bool = False,
    ) -> Float[Tensor, "sample member output"]:
        """Evaluate every member. Under autocast the products between hidden layers, nearly all of the work, are in bfloat16;
        inputs and outputs, whose differences matter, are not.

        Args:
            x: the input of all members.
            more: further columns of the input.
            frozen: the parameters are constants; the gradient reaches the inputs alone.
        """
        weights, biases = _tensors(self.weights, frozen), _tensors(self.biases, frozen)
        with autocast_off(x.device.type) as half:
            half = half and len(x) >= MIN_HALF_ROWS
            if self.norm or self.smooth:
                x = x if more is None else torch.cat([x, more], -1)
                out = self._recorded(x.expand(self.size, *x.shape), weights, biases, frozen, half and not self.smooth)
            else:
                out = ensemble_mlp(x, more, weights, biases, half)
        return out.transpose(0, 1)

    def _recorded(
        self, out: Tensor, weights: list[Tensor], biases: list[Tensor], frozen: bool, half: bool
    ) -> Float[Tensor, "member sample output"]:
        """Evaluate every member at its own input by recorded operations."""
        gains, shifts = _tensors(self.gains, frozen), _tensors(self.shifts, frozen)
        last = len(weights) - 1
        for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            if half and 0 < k < last:
                out = torch.bmm(out.bfloat16(), weight.bfloat16()).float() + bias
            else:
                out = torch.baddbmm(bias, out, weight)
            if k < last:
                out = nn.functional.layer_norm(out, out.shape[-1:]) * gains[k] + shifts[k] if self.norm else out
                out = out.relu()
        return out

    def slopes(
        self, inputs: Mapping[str, Float[Tensor, "sample part"]], read: Callable[[Tensor], Tensor], frozen: bool = False
    ) -> dict[str, Float[Tensor, "sample member part"]]:
        """Compute the gradient of one output of every member in each input; differentiable where gradients are recorded.

        Args:
            inputs: parts of the input, in order.
            read: takes the output from all, [sample, member, output] -> [sample, member].
            frozen: the parameters are constants.
        """
        live = torch.is_grad_enabled()
        with torch.enable_grad(), autocast_off(next(iter(inputs.values())).device.type):
            each = {key: x.expand(self.size, *x.shape) for key, x in inputs.items()}
            each = {key: x if x.requires_grad else x.detach().requires_grad_() for key, x in each.items()}
            weights, biases = _tensors(self.weights, frozen), _tensors(self.biases, frozen)
            out = self._recorded(torch.cat(list(each.values()), -1), weights, biases, frozen, half=False)
            grads = torch.autograd.grad(read(out.transpose(0, 1)).sum(), list(each.values()), create_graph=live)
        return {key: grad.transpose(0, 1) for key, grad in zip(each, grads, strict=True)}


def _tensors(parameters: nn.ParameterList, frozen: bool) -> list[Tensor]:
    """Return the parameters, detached when frozen; by the dictionary, since to index a ParameterList takes as long as a small product."""
    tensors = cast(list[Tensor], list(parameters._parameters.values()))
    return [p.detach() for p in tensors] if frozen else tensors


@register_network("action")
class ActionValues(Ensemble, NetworkKind):
    """Q_i(s, a) of an ensemble: NAME [M, member], or [M, draw, member] of several proposed actions.

    With `spread` NAME_std, the deviations; of choices NAME_all [M, choice, member]. With `smooth` the gradients NAME_slope_obs
    [M, member, D] and NAME_slope_action [M, member, A], for numbers.
    """

    reads: ClassVar[tuple[str, ...]] = ("obs", "action")

    def __init__(self, spec: Network, sizes: Sizes, generator: torch.Generator):
        inputs = sizes.obs + (0 if sizes.choices else sizes.action)
        outputs = (sizes.choices or 1) * (2 if spec.spread else 1)
        super().__init__(spec.ensemble, (inputs, *sizes.hidden, outputs), spec.norm, generator, spec.smooth)
        self.discrete, self.spread = bool(sizes.choices), spec.spread

    @classmethod
    def outputs(cls, name: str, spec: Network) -> list[Functional]:
        members = (spec.ensemble,)
        deviations = [Functional(f"{name}_std", members, positive=True)] if spec.spread else []
        inputs = {"obs": "input", "action": "action"} if spec.smooth else {}
        slopes = [Functional(f"{name}_slope_{key}", (*members, size)) for key, size in inputs.items()]
        return [Functional(name, members), Functional(f"{name}_all", ("choice", *members)), *deviations, *slopes]

    def values(self, name: str, at: Mapping[str, Any], want: Collection[str], frozen: bool) -> dict[str, Tensor]:
        obs, action = at["obs"], at["action"]
        if self.discrete:
            of_choices = self(obs, frozen=frozen).transpose(1, 2)
            taken = action.reshape(-1, 1)
            values = {f"{name}_all": of_choices, name: _pick(of_choices, taken)}
            if f"{name}_slope_obs" in want:
                slopes = self.slopes({"obs": obs}, lambda out: _pick(out.transpose(1, 2), taken), frozen)
                values[f"{name}_slope_obs"] = slopes["obs"]
            return values
        if action.ndim > obs.ndim:
            obs = obs.unsqueeze(1).expand(*action.shape[:-1], obs.shape[-1])
        lead = action.shape[:-1]
        inputs = {"obs": obs.flatten(0, -2), "action": action.flatten(0, -2)}
        out = self(*inputs.values(), frozen)
        values = {name: out[..., 0].reshape(*lead, self.size)}
        if self.spread:
            values[f"{name}_std"] = nn.functional.softplus(out[..., 1]).reshape(*lead, self.size)
        if any(key.startswith(f"{name}_slope_") for key in want):
            slopes = self.slopes(inputs, lambda out: out[..., 0], frozen)
            values |= {f"{name}_slope_{key}": x.reshape(*lead, *x.shape[1:]) for key, x in slopes.items()}
        return values


def _pick(of_choices: Float[Tensor, "sample choice member"], taken: Tensor) -> Float[Tensor, "sample member"]:
    """Return the values of the choices taken."""
    return of_choices.gather(1, taken.unsqueeze(-1).expand(-1, 1, of_choices.shape[-1])).squeeze(1)


@register_network("state")
class StateValues(Ensemble, NetworkKind):
    """V(s): NAME [M], of an ensemble [M, member]. With `smooth` its gradient NAME_slope_obs, [M, D] or [M, member, D]."""

    reads: ClassVar[tuple[str, ...]] = ("obs",)

    def __init__(self, spec: Network, sizes: Sizes, generator: torch.Generator):
        super().__init__(spec.ensemble, (sizes.obs, *sizes.hidden, 1), spec.norm, generator, spec.smooth)

    @classmethod
    def outputs(cls, name: str, spec: Network) -> list[Functional]:
        members = () if spec.ensemble == 1 else (spec.ensemble,)
        slope = [Functional(f"{name}_slope_obs", (*members, "input"))] if spec.smooth else []
        return [Functional(name, members), *slope]

    def values(self, name: str, at: Mapping[str, Any], want: Collection[str], frozen: bool) -> dict[str, Tensor]:
        out = self(at["obs"], frozen=frozen)
        values = {name: out[..., 0]}
        if f"{name}_slope_obs" in want:
            values[f"{name}_slope_obs"] = self.slopes({"obs": at["obs"]}, lambda x: x[..., 0], frozen)["obs"]
        return {key: x[:, 0] for key, x in values.items()} if self.size == 1 else values
