"""A trained policy as a file that another program loads with torch alone, without anypo.

Shown: `export`, and a second Python process that imports torch and Gymnasium only and balances the pole with the file. The program takes
raw observations, a batch of them; normalization is inside. With `to="onnx"` it is one for ONNX. A language model needs no export:
RUN/model is a folder that transformers loads.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import anypo

ELSEWHERE = """
import sys
import gymnasium
import torch

act = torch.export.load(sys.argv[1]).module()
env = gymnasium.make("CartPole-v1")
(observation, _), total, over = env.reset(seed=0), 0.0, False
while not over:
    action = act(torch.from_numpy(observation).unsqueeze(0))[0]
    observation, reward, terminated, truncated, _ = env.step(action.item())
    total, over = total + reward, terminated or truncated
assert "anypo" not in sys.modules
print(total)
"""


def main(folder: Path) -> None:
    """Train, export, and use the file in another process."""
    run = anypo.train("ppo", task="gym:CartPole-v1", steps=16_384, out=folder / "run")
    path = run.export()
    print(f"{path.name}: {path.stat().st_size:,} bytes")
    shown = subprocess.run([sys.executable, "-c", ELSEWHERE, str(path)], capture_output=True, text=True, check=True)
    print(f"{run.result['before']:.0f} steps before training, {float(shown.stdout):.0f} with the file, elsewhere")
    assert float(shown.stdout) > 2 * run.result["before"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
