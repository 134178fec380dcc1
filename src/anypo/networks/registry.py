"""The registry of kinds of networks: what each reads of a decision, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from anypo.errors import UsageError, unknown
from anypo.views import Functional, Network


@dataclass(frozen=True)
class Sizes:
    """What networks are built for.

    obs: features of what the policy saw; of a language model the width of its hidden states. action: components of an action.
    choices: of a discrete action; 0 for numbers. hidden: widths of the hidden layers.
    """

    obs: int
    action: int = 0
    choices: int = 0
    hidden: Sequence[int] = ()


class NetworkKind(nn.Module):
    """A kind of network, called with a `Network`, `Sizes` and the generator of its weights.

    reads: of every decision, among `obs` [M, D] (features of what the policy saw, of a language model its last hidden state before the
    decision), `action` ([M, A], or [M, draw, A] where several are proposed; the number of a choice [M]) and `next` [M, D], the
    features of what followed. latent: standard normal numbers per decision that it also reads, `noise` [M, latent], or None.
    """

    reads: ClassVar[tuple[str, ...]] = ("obs",)
    latent: int = 0

    @classmethod
    def outputs(cls, name: str, spec: Network) -> Sequence[Functional]:
        """Return the functionals of the network `name`."""
        raise NotImplementedError

    def values(self, name: str, at: Mapping[str, Any], want: Collection[str], frozen: bool) -> dict[str, Tensor]:
        """Return functionals of M decisions, [M, ...] each; at least those wanted.

        Args:
            name: of the network.
            at: what it reads.
            want: functionals.
            frozen: its parameters are constants; the gradient reaches the inputs alone.
        """
        raise NotImplementedError


NETWORKS: dict[str, type[NetworkKind]] = {}
"""By the name that `Network.of` gives."""

_Kind = TypeVar("_Kind", bound=type[NetworkKind])


def register_network(name: str) -> Callable[[_Kind], _Kind]:
    """Register a kind of network under the name that `Network.of` gives; a class decorator.

    Raises:
        UsageError: the name is taken.
    """

    def add(kind: _Kind) -> _Kind:
        if name in NETWORKS:
            raise UsageError(f"there is a kind of network called {name!r} already; choose another name")
        NETWORKS[name] = kind
        return kind

    return add


def find_network(name: str) -> type[NetworkKind]:
    """Return the kind of that name; the error for an unknown one names the nearest."""
    if name not in NETWORKS:
        raise unknown("kind of network", name, NETWORKS)
    return NETWORKS[name]


def outputs_of(networks: Mapping[str, Network]) -> dict[str, Functional]:
    """Return what networks give, by name."""
    outputs = [find_network(spec.of).outputs(name, spec) for name, spec in networks.items()]
    return {functional.name: functional for functionals in outputs for functional in functionals}
