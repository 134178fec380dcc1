"""Networks that a policy carries beside its own: their kinds, and those of one policy."""

from anypo.networks.autoencoder import Autoencoder
from anypo.networks.carried import Carried
from anypo.networks.perceptrons import ActionValues, StateValues
from anypo.networks.registry import NETWORKS, NetworkKind, Sizes, find_network, outputs_of, register_network

__all__ = [
    "NETWORKS",
    "ActionValues",
    "Autoencoder",
    "Carried",
    "NetworkKind",
    "Sizes",
    "StateValues",
    "find_network",
    "outputs_of",
    "register_network",
]
