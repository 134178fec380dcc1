"""Importing the library is light: what is heavy is loaded where it is used."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("transformers", "tokenizers", "gymnasium", "mujoco", "peft", "datasets", "reasoning_gym", "math_verify")
HEAVY += ("matplotlib", "scipy", "pandas", "rliable", "tensorboard", "trackio", "wandb")


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_import_loads_nothing_heavy_that_torch_does_not() -> None:
    loaded = modules_after("import anypo") - modules_after("import torch, numpy")
    assert "anypo" in loaded
    assert loaded & set(HEAVY) == set()


def test_listing_and_explaining_methods_loads_nothing_heavy_either() -> None:
    loaded = modules_after("import anypo; [anypo.method(m).explain() for m in anypo.methods()]")
    assert loaded & set(HEAVY) == set()


def test_public_names_are_all_there() -> None:
    import anypo

    assert all(hasattr(anypo, name) for name in anypo.__all__)
    assert all(hasattr(anypo.parts, name) for name in anypo.parts.__all__)
