"""Store: between what was collected and what the learner sees."""

from anypo.parts.store.rows import Fresh, Replay
from anypo.parts.store.transitions import Transitions, WeightedTrajectories

__all__ = ["Fresh", "Replay", "Transitions", "WeightedTrajectories"]
