"""The written-out step of a decoder beside the modules it stands for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import MethodType

import pytest
import torch
from transformers import AutoModelForCausalLM

from anypo.kernels.kv_cache import open_cache
from anypo.kernels.llama_decode import DecodeStep, write_out

FAMILY = {
    "llama": {},
    "qwen2": {"num_key_value_heads": 1},
    "mistral": {"head_dim": 12, "sliding_window": None},
}


def loaded(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("architecture", FAMILY)
@pytest.mark.parametrize("rounding", [False, True])
@torch.no_grad()
def test_it_gives_the_hidden_states_of_the_modules(architecture: str, rounding: bool, tiny_model: Callable[..., Path]):
    """For rows that began at different columns, with room left in the cache."""
    base = loaded(tiny_model(architecture, **FAMILY[architecture])).base_model
    step = write_out(base)
    assert step is not None
    ids = torch.randint(3, 90, (3, 9), generator=torch.Generator().manual_seed(0))
    start = torch.tensor([0, 2, 4])
    mask = torch.arange(9) >= start[:, None]
    place = (torch.arange(9) - start[:, None]).clamp(min=0)
    with torch.autocast("cpu", torch.bfloat16, enabled=rounding):
        want = base(input_ids=ids, attention_mask=mask, position_ids=place).last_hidden_state
        cache = open_cache(base.config)
        base(input_ids=ids[:, :5], attention_mask=mask[:, :5], position_ids=place[:, :5], past_key_values=cache)
        for t in range(5, 9):
            found = step(ids[:, t : t + 1], mask[:, : t + 1], place[:, t : t + 1], cache)
            assert (found - want[:, t]).norm() <= (0.05 if rounding else 1e-5) * want[:, t].norm()
            assert cache.layers[0].keys.shape[2] > t + 1, "columns that are not in use must not count"


SAMPLES = """
import sys, torch
from anypo.policies.language.model import LanguageModel
from anypo.rng import row_seeds
found = []
for compiles in (False, True):
    policy = LanguageModel.load(sys.argv[1])
    if compiles:
        policy.compile_rollouts()
    found.append(policy.sample([[5, 6, 7], [8, 9]], row_seeds(0, range(2), [2, 2]), samples=2, max_new=3))
assert torch.equal(found[0].ids, found[1].ids)
torch.testing.assert_close(found[1].logp, found[0].logp, rtol=1e-5, atol=1e-5)
assert len(torch._dynamo.utils.counters["frames"]) and not torch._dynamo.utils.counters["graph_break"]
"""
"""In a process of its own: the compiler does not read functions whose types are checked."""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_samples_of_a_compiled_step_are_those_of_the_plain_one(tiny_model: Callable[..., Path]):
    subprocess.run([sys.executable, "-c", SAMPLES, str(tiny_model("llama"))], check=True)


@pytest.mark.parametrize("architecture", ["gemma2", "gpt2", "qwen3"])
def test_other_families_are_left_to_their_modules(architecture: str, tiny_model: Callable[..., Path]):
    assert write_out(loaded(tiny_model(architecture)).base_model) is None


@pytest.mark.parametrize("part", ["mlp", "input_layernorm", "self_attn"])
def test_a_model_that_computes_something_else_with_the_same_parts_is_noticed(
    part: str, tiny_model: Callable[..., Path]
):
    base = loaded(tiny_model("llama")).base_model
    assert isinstance(write_out(base), DecodeStep)
    changed = getattr(base.layers[1], part)
    plain = changed.forward

    def other(self, *given, **more):
        out = plain(*given, **more)
        return (1.01 * out[0], *out[1:]) if isinstance(out, tuple) else 1.01 * out

    changed.forward = MethodType(other, changed)
    assert (write_out(base) is None) == (part != "mlp"), "which is called as it is"
