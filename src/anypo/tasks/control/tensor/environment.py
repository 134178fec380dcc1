"""What a batched environment is: three functions of tensors."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

State = Float[Tensor, "quantity env"]
"""One contiguous row per quantity; the last one is the clock: the steps the episode has taken."""


Actions = Shaped[Tensor, "env *component"]


Observations = Float[Tensor, "env feature"]


Rewards = Float[Tensor, " env"]


Flags = Bool[Tensor, " env"]


class Environment(Protocol):
    """Many copies of one Markov decision process.

    reset: states drawn from the start distribution. step: pure, the same for every dtype; terminated says that the state reached
    is terminal, truncated that its episode has lasted `limit` steps. observe: what a policy sees of states.
    """

    limit: ClassVar[int]

    @property
    def observation_space(self) -> Any: ...
    @property
    def action_space(self) -> Any: ...
    def reset(self, generator: torch.Generator, n: int) -> State: ...
    def step(self, state: State, action: Actions) -> tuple[State, Rewards, Flags, Flags]: ...
    def observe(self, state: State) -> Observations: ...
