"""A held-out episode as a video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from anypo.errors import UsageError
from anypo.rng import EpisodeRng, held_out_seeds
from anypo.tasks.control.env_copy import EnvCopy
from anypo.tasks.control.gym import Gym
from anypo.tasks.control.starts import start_seed

FRAMES_PER_SECOND = 30
"""Where the environment names no rate."""


class FilmedCopy(EnvCopy):
    """An environment whose every state is rendered."""

    def __init__(self, env: Any, name: str):
        super().__init__(env, name)
        self.frames: list[np.ndarray] = []

    def _observe(self, observation: Any, info: dict[str, Any]) -> None:
        super()._observe(observation, info)
        self.frames.append(np.asarray(self.env.render(), np.uint8))


def film_episode(task: Any, policy: Any, seed: int, path: Path) -> None:
    """Write the first held-out episode of a greedy policy as a video, in the format of the file's ending.

    Args:
        task: of Gymnasium.
        policy: acts.
        seed: of what is random in its decisions.
        path: of the file: .gif, or .mp4 and others where imageio has ffmpeg.

    Raises:
        UsageError: the task shows nothing, or packages are missing.
    """
    if not isinstance(task, Gym):
        raise UsageError(f"{task.name} cannot be filmed; a video needs an environment of Gymnasium")
    try:
        import imageio
        from gymnasium.error import DependencyNotInstalled
    except ImportError as error:
        raise UsageError('--video needs imageio; run `pip install "anypo[video]"`') from error
    env = task.make_env(render_mode="rgb_array")
    if env.render_mode != "rgb_array":
        raise UsageError(f"{task.name} cannot be filmed: its render_mode is {env.render_mode!r}, not 'rgb_array'")
    copy = FilmedCopy(env, task.name)
    try:
        with torch.no_grad():
            starts = iter([(start_seed(0, held_out=True), task.limit)])
            task.play(policy, [copy], starts, EpisodeRng(held_out_seeds(seed, 1)), greedy=True)
    except DependencyNotInstalled as error:
        raise UsageError(f"{task.name} cannot draw itself: {error}") from error
    rate = env.metadata.get("render_fps") or FRAMES_PER_SECOND
    timing: dict[str, Any] = {"duration": 1000 / rate, "loop": 0} if path.suffix == ".gif" else {"fps": rate}
    try:
        imageio.mimsave(path, list[Any](copy.frames), **timing)
    except (ImportError, ValueError) as error:  # imageio's ways to say that a format's package is missing
        raise UsageError(
            f"imageio cannot write {path}: {str(error).splitlines()[0]} A .gif needs no further package"
        ) from error
