"""The networks of one policy, beside its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from anypo.errors import UsageError
from anypo.networks.registry import NetworkKind, Sizes, find_network, outputs_of
from anypo.views import Network, rng_key


class Carried(nn.ModuleDict):
    """The networks a policy carries, by name.

    networks: as parts declare them. offers: what the policy can show them of a decision. sizes: of what it shows. generator: draws
    the weights, network by network. wrap: puts a network behind what turns the inputs into features; None: they are features.
    outputs: what the networks give, by name.
    """

    def __init__(
        self,
        networks: Mapping[str, Network],
        offers: Collection[str],
        sizes: Sizes,
        generator: torch.Generator,
        wrap: Callable[[NetworkKind], nn.Module] | None = None,
    ):
        super().__init__()
        self.specs = dict(networks)
        self.outputs = outputs_of(self.specs)
        self.names = {name: tuple(outputs_of({name: spec})) for name, spec in self.specs.items()}
        for name, spec in self.specs.items():
            kind = find_network(spec.of)
            if missing := [key for key in kind.reads if key not in offers]:
                raise UsageError(
                    f"the method learns the network {name!r}, which reads `{missing[0]}` of every decision; this policy can"
                    f" show it only {' and '.join(f'`{key}`' for key in offers)}; use --policy with another kind"
                )
            net = kind(spec, sizes, generator)
            self[name] = net if wrap is None else wrap(net)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the parameters."""
        return next(self.parameters()).dtype

    def latent(self, functional: str) -> tuple[int, ...] | None:
        """Return the shape of the normal numbers per decision that the network of that name reads; None: it needs none."""
        size = self[functional].latent if functional in self else 0
        return (size,) if size else None  # pyright: ignore[reportReturnType]

    def evaluate(self, want: Collection[str], show: Callable[[str], Any], frozen: bool = False) -> dict[str, Tensor]:
        """Evaluate the networks that give functionals in `want`, for M decisions; others are not touched.

        Args:
            want: functionals; those of no network are ignored.
            show: returns an input of the networks, or the noise of one (`rng_key`), None where there is none.
            frozen: the parameters are constants; the gradient reaches the inputs alone.
        """
        out: dict[str, Tensor] = {}
        for name, names in self.names.items():
            if wanted := [key for key in names if key in want]:
                net: Any = self[name]
                at = {key: show(key) for key in net.reads}
                if net.latent:
                    at["noise"] = show(rng_key(name))
                values = net.values(name, at, wanted, frozen)
                out |= {key: values[key] for key in wanted}
        return out
