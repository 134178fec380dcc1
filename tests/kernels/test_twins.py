"""Every kernel computes what its plain twin computes, values and gradients, and the switch chooses between them.

A row is a function that calls the implementation it is handed and returns tensors by name; `@compare("MODULE.FUNCTION")` adds it.
"""

import functools
import importlib
import inspect
import json
import pkgutil
import shutil
from itertools import pairwise
from types import SimpleNamespace

import pytest
import tiny
import torch
from entries import entries
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from anypo import kernels
from anypo.config import from_dict
from anypo.errors import UsageError
from anypo.kernels import adamw, mlp
from anypo.kernels.compiler import trace
from anypo.kernels.kv_cache import open_cache
from anypo.kernels.llama_decode import DecodeStep
from anypo.loops.learn import learn
from anypo.runs.build import build

ROWS = {}


def compare(name, rtol=1e-5, atol=1e-6):
    """Add a row for a kernel; a kernel may have several."""

    def add(case):
        ROWS[f"{name}-{case.__name__}"] = (name, case, {"rtol": rtol, "atol": atol})
        return case

    return add


def leaf(*shape, seed=0, dtype=torch.float32):
    """Normal random numbers with a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()


def with_gradients(out, **inputs):
    """The outputs and the gradients of their weighted sum."""
    outputs = out if isinstance(out, tuple) else (out,)
    total = sum((x * leaf(*x.shape, seed=9).detach()).sum() for x in outputs)
    gradients = torch.autograd.grad(total, list(inputs.values()))
    named = {f"out{i}": x.detach() for i, x in enumerate(outputs)}
    return named | {f"gradient of {name}": x for name, x in zip(inputs, gradients, strict=True)}


# language models


@functools.cache
def llama():
    """A Llama of random weights; its query heads share groups."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, initializer_range=0.3, attn_implementation="sdpa",
        )  # fmt: skip
        return LlamaForCausalLM(config).eval()


def padded_prompts():
    """Token ids of rows that begin at different columns, which columns count, and positions."""
    ids = torch.randint(3, 50, (3, 9), generator=torch.Generator().manual_seed(0))
    start = torch.tensor([0, 2, 4])[:, None]
    return ids, torch.arange(9) >= start, (torch.arange(9) - start).clamp(min=0)


@compare("rms_norm.rms_norm")
def rows_of_a_batch(rms_norm):
    x, weight = leaf(3, 5, 16), leaf(16, seed=1)
    return with_gradients(rms_norm(x, weight, 1e-6), x=x, weight=weight)


# small networks and their optimizer


@compare("mlp.tanh_", atol=3e-7)
def few_numbers(tanh_):
    return {"out": tanh_(torch.linspace(-30, 30, 100))}


@compare("mlp.tanh_", atol=3e-7)
def many_numbers(tanh_):
    return {"out": tanh_(torch.linspace(-30, 30, 2 * mlp.SMALL))}


def layers(*widths):
    """Weights and biases in turn, of the size they have in a network."""
    return [
        (0.3 * leaf(*shape, seed=k)).detach().requires_grad_()
        for k, (inputs, outputs) in enumerate(pairwise(widths))
        for shape in ((outputs, inputs), (outputs,))
    ]


def evaluated(mlp, rows, widths, kinds):
    """Output and gradients; the sums over rows are compared as means."""
    x, weights = leaf(rows, widths[0], seed=7), layers(*widths)
    found = with_gradients(mlp(x, weights, kinds), x=x, **{f"weight {k}": w for k, w in enumerate(weights)})
    return {name: t / rows if "weight" in name else t for name, t in found.items()}


@compare("mlp.mlp", atol=1e-5)
def few_rows(mlp):
    return evaluated(mlp, 40, (4, 64, 64, 2), (nn.Tanh, nn.Tanh))


@compare("mlp.mlp", atol=1e-5)
def many_rows_in_chunks(mlp):
    return evaluated(mlp, 4096 + 515, (20, 64, 64, 33), (nn.ReLU, nn.ReLU))


@compare("mlp.mlp", atol=1e-5)
def an_activation_after_the_last_layer(mlp):
    return evaluated(mlp, 600, (40, 32, 24), (nn.Tanh, nn.Tanh))


@compare("mlp.tanh_mlp", rtol=1e-4, atol=1e-5)
def frozen_weights(tanh_mlp):
    with torch.no_grad():
        return {"out": tanh_mlp(layers(4, 64, 64, 2))(leaf(30, 4, seed=7))}


def ensemble(ensemble_mlp, outputs, half):
    weights = [(0.3 * leaf(3, *shape, seed=k)).detach().requires_grad_() for k, shape in enumerate(((7, 24), (24, 24)))]
    weights.append((0.3 * leaf(3, 24, outputs, seed=2)).detach().requires_grad_())
    biases = [leaf(3, 1, width, seed=width) for width in (24, 24, outputs)]
    x, more = leaf(40, 4, seed=5), leaf(40, 3, seed=6)
    named = {f"weight {k}": w for k, w in enumerate(weights)} | {f"bias {k}": b for k, b in enumerate(biases)}
    return with_gradients(ensemble_mlp(x, more, weights, biases, half), x=x, more=more, **named)


@compare("ensemble_mlp.ensemble_mlp", rtol=1e-4, atol=1e-4)
def one_output(ensemble_mlp):
    return ensemble(ensemble_mlp, 1, half=False)


@compare("ensemble_mlp.ensemble_mlp", rtol=1e-4, atol=1e-4)
def many_outputs(ensemble_mlp):
    return ensemble(ensemble_mlp, 20, half=False)


@compare("ensemble_mlp.ensemble_mlp", rtol=1e-2, atol=2e-2)
def rounded_products(ensemble_mlp):
    return ensemble(ensemble_mlp, 1, half=True)


@compare("squashed_normal.squashed_sample")
def actions(squashed_sample):
    mean, log_std = leaf(9, 3), leaf(9, 3, seed=1)
    return with_gradients(squashed_sample(mean, log_std, leaf(9, 3, seed=2).detach()), mean=mean, log_std=log_std)


@compare("adamw.optimizer_step")
def steps_of_adamw(optimizer_step):
    parameters = [leaf(5, 3), leaf(3, seed=1)]
    optimizer = adamw.FusedAdamW(
        [{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.1}], 0.01, weight_decay=0.1, fused=True
    )
    for step in range(4):
        for p in parameters:
            p.grad = leaf(*p.shape, seed=step).detach()
        optimizer_step(optimizer)
    state = [optimizer.state[p] for p in parameters]
    return {f"parameter {k}": p.detach() for k, p in enumerate(parameters)} | {
        f"{name} {k}": s[name] for k, s in enumerate(state) for name in ("step", "exp_avg", "exp_avg_sq")
    }


@compare("adamw.total_norm")
def norm_of_gradients(total_norm):
    return {"norm": torch.tensor(total_norm([leaf(5, 3).detach(), leaf(7, seed=1).detach()]))}


@compare("linear_head.chunked_linear")
def log_probs_and_entropies(chunked_linear):
    def read(logits, token):
        logp = logits.log_softmax(-1)
        return logp.gather(1, token[:, None])[:, 0], -(logp.exp() * logp).sum(-1)

    hidden, weight = leaf(11, 6), leaf(17, 6, seed=1)
    taken = torch.randint(17, (11,), generator=torch.Generator().manual_seed(0))
    return with_gradients(chunked_linear(read, 4, hidden, weight, taken), hidden=hidden, weight=weight)


@compare("unique_rows.unique_rows")
def numbers_of_few_kinds(unique_rows):
    x = torch.randint(3, (500, 4), generator=torch.Generator().manual_seed(0))
    first, kind = unique_rows(x)
    return {"first": first.sort().values, "rows": x[first[kind]], "first of the kind": first[kind]}


@compare("unique_rows.dedupe")
def values_of_equal_texts(dedupe):
    """What is computed of each kind of rows is what is computed of each row."""
    completion = torch.randint(3, 5, (40, 3), generator=torch.Generator().manual_seed(0))
    valid = torch.arange(3) < torch.tensor([1, 2, 3, 2]).repeat(10)[:, None]
    trace = {
        "prompt": torch.ones(40, 2, dtype=torch.long),
        "prompt_length": torch.full((40,), 2),
        "completion": completion,
    }
    first, kind = dedupe(trace, valid) or (torch.arange(40), torch.arange(40))
    values = torch.where(valid[first], completion[first].cumsum(1), 0)
    return {"values": values[kind]}


@compare("kv_cache.open_cache", atol=1e-5)
@torch.no_grad()
def logits_token_by_token(open_cache):
    model, (ids, mask, positions) = llama(), padded_prompts()
    cache, logits = open_cache(model.config), []
    for ends in (5, 6, 7, 8, 9):
        new = slice(0 if ends == 5 else ends - 1, ends)
        inputs = {"input_ids": ids[:, new], "attention_mask": mask[:, :ends], "position_ids": positions[:, new]}
        out = model(**inputs, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits.append(out.logits[:, -1])
    return {"logits": torch.stack(logits)}


@compare("kv_cache.short_attention")
def a_single_query_of_grouped_heads(attention):
    query, key, value = leaf(3, 4, 1, 8), leaf(3, 2, 7, 8, seed=1), leaf(3, 2, 7, 8, seed=2)
    mask = (torch.arange(7) >= torch.tensor([0, 2, 6])[:, None])[:, None, None]
    module = SimpleNamespace(num_key_value_groups=2, is_causal=True)
    out, _ = attention(module, query, key, value, mask)
    return with_gradients(out, query=query, key=key, value=value)


@compare("kv_cache.short_attention", rtol=0.02, atol=0.02)
def causal_queries_in_bfloat16(attention):
    query, key, value = (leaf(3, 4, 7, 8, seed=seed, dtype=torch.bfloat16) for seed in range(3))
    out, _ = attention(SimpleNamespace(num_key_value_groups=1, is_causal=True), query, key, value, None)
    return with_gradients(out, value=value)


@compare("llama_decode.decode", atol=1e-5)
@torch.no_grad()
def hidden_states_of_the_next_token(decode):
    model, (ids, mask, positions) = llama().model, padded_prompts()
    cache = open_cache(model.config)
    model(input_ids=ids[:, :8], attention_mask=mask[:, :8], position_ids=positions[:, :8], past_key_values=cache)
    hidden = decode(DecodeStep(model), ids[:, 8:], mask, positions[:, 8:], cache)
    return {"hidden": hidden, "keys": cache.layers[1].keys[:, :, :9], "values": cache.layers[1].values[:, :, :9]}


# compiled code


@compare("compiler.compile_graph")
def elementwise_operations(compile_graph):
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    x, y = leaf(8, 4).detach(), leaf(8, 4, seed=1).detach()
    (out,) = compile_graph(trace(lambda a, b: [(a * b).tanh() + a], [x, y]), [x, y])(x, y)
    return {"out": out}


# the comparison


@pytest.mark.parametrize("row", ROWS)
def test_a_kernel_computes_what_its_twin_computes(row):
    name, case, tolerance = ROWS[row]
    importlib.import_module(f"anypo.kernels.{name.split('.')[0]}")
    kernel = kernels.KERNELS[name]
    fast, plain = case(kernel.fast), case(kernel.plain)
    assert fast.keys() == plain.keys()
    assert any(bool(x.any()) for x in plain.values())
    for key, want in plain.items():
        torch.testing.assert_close(fast[key], want, **tolerance, msg=lambda m, key=key: f"{key}: {m}")


def test_every_kernel_has_a_row_and_the_signature_of_its_twin():
    for module in pkgutil.iter_modules(kernels.__path__):
        importlib.import_module(f"anypo.kernels.{module.name}")
    assert {name for name, _, _ in ROWS.values()} == kernels.KERNELS.keys()
    for name, kernel in kernels.KERNELS.items():
        assert inspect.signature(kernel.fast) == inspect.signature(kernel.plain), name


def test_the_switch_chooses_for_a_block_and_is_put_back():
    @kernels.kernel(lambda x: x + 1)
    def double(x):
        return 2 * x

    del kernels.KERNELS["test_twins.double"]
    assert (double(3), kernels.plain()) == (6, False)
    with kernels.using("plain"):
        assert (double(3), kernels.plain()) == (4, True)
    assert (double(3), kernels.plain()) == (6, False)
    with pytest.raises(UsageError, match="fast"):
        kernels.use("fats")


def test_a_run_sets_the_switch():
    values = {"method": "ppo", "task": "gym:CartPole-v1", "steps": 1}
    with kernels.using("fast"):
        for kind in kernels.KINDS:
            build(from_dict(values | {"kernels": kind}))
            assert kernels.plain() == (kind == "plain")
        with pytest.raises(UsageError, match="leave out --compile on"):
            build(from_dict(values | {"kernels": "plain", "compile": "on"}))
    with pytest.raises(UsageError, match="kernels"):
        from_dict({"kernels": "slow"})


RUNS = {
    "grpo": {
        "collect": {"requests": 4, "samples": 4},
        "step": {"epochs": 2, "minibatch": 8},
        "steps": 3,
        "episodes": 4,
    },
    "ppo": {"task": "gym:CartPole-v1", "step": {"minibatch": 64}, "steps": 2048, "episodes": 2},
    "sac": {
        "task": "gym:Pendulum-v1",
        "store": {"start": 100},
        "policy": {"hidden": [32, 32]},
        "steps": 130,
        "episodes": 1,
    },
}


@pytest.mark.parametrize("method", entries(RUNS))
def test_a_run_with_plain_kernels_learns_what_a_fast_one_learns(method, tmp_path):
    values = {"method": method, "autocast": "off", "threads": 1, **RUNS[method]}
    if method == "grpo":
        source = tiny.language_model(tmp_path / "model", "llama", kind="char", scale=0.1)
        values["policy"] = {"name": f"hf:{source}", "max_new": 6}
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": f"the {i}"}) + "\n" for i in range(20)))
        (tmp_path / "reward.py").write_text(
            "def kinds(prompts, completions, **_):\n    return [float(len(set(c))) for c in completions]\n"
        )
        values["task"] = {"name": f"jsonl:{tmp_path / 'rows.jsonl'}", "reward": f"{tmp_path / 'reward.py'}:kinds"}
    metrics, weights = [], []
    with kernels.using("fast"):
        for kind in kernels.KINDS:
            run, records = build(from_dict(values | {"kernels": kind})), []
            learn(run, records.append)
            metrics.append(records)
            weights.append({name: p.detach() for name, p in run.policy.named_parameters()})
    assert any(record.get("grad_norm") for record in metrics[0])
    for fast, plain in zip(*metrics, strict=True):
        assert fast == pytest.approx(plain, rel=0.01, abs=1e-3)
    for name, fast in weights[0].items():
        assert (fast - weights[1][name]).norm() <= 1e-3 * (1 + fast.norm()), name
