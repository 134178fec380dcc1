from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from anypo.errors import UsageError
from anypo.kernels import kv_cache as cache
from anypo.kernels import unique_rows as equal_rows
from anypo.policies.language import forward, model, slots
from anypo.policies.language.filter import Filter
from anypo.policies.language.generate import draw_tokens, uniform
from anypo.policies.language.model import LanguageModel
from anypo.rng import row_seeds
from anypo.types import Trajectories

FILTERS = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.9},
    "all": {"temperature": 0.7, "top_k": 5, "top_p": 0.9},
}
PROMPTS = ["the cat", "on the mat sat the hat and what that is the cat said", "a", "1+2="]


@pytest.fixture(scope="module")
def llama(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def qwen2(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("qwen2", kind="char")


@pytest.fixture(scope="module")
def gemma2(tiny_model: Callable[..., Path]) -> Path:
    """Caps its logits, so the output layer alone is not the model's distribution."""
    return tiny_model("gemma2", head_dim=8, final_logit_softcapping=1.0)


@pytest.fixture(scope="module")
def gpt2(tiny_model: Callable[..., Path]) -> Path:
    """Learns its positions, so they must be right and not only right relative to each other; and has dropout."""
    return tiny_model("gpt2")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def streams(prompts: list[list[int]], samples: int, seed: int = 0) -> torch.Tensor:
    return row_seeds(seed, range(len(prompts)), [samples] * len(prompts))


def rows(policy: LanguageModel, prompts: list[list[int]], samples: int = 1, seed: int = 0, **more) -> Trajectories:
    """Sampled completions as a batch."""
    done = policy.sample(prompts, streams(prompts, samples, seed), samples=samples, **more)
    width = max(map(len, prompts))
    padded = torch.tensor([p + [0] * (width - len(p)) for p in prompts])
    trace = {
        "prompt": padded.repeat_interleave(samples, 0),
        "prompt_length": torch.tensor([len(p) for p in prompts]).repeat_interleave(samples),
        "completion": done.ids,
    }
    return Trajectories(logp_old=done.logp, mask=done.mask, truncated=~done.stopped, trace=trace)


def forget_eos(policy: LanguageModel) -> LanguageModel:
    """No token ends a completion."""
    policy.eos = ()
    return policy


def likely_to_end(policy: LanguageModel, share: int = 20) -> LanguageModel:
    """Every `share`-th token of the vocabulary ends a completion."""
    policy.eos = tuple(range(2, policy.vocabulary, share))
    return policy


def reading(policy: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(rows, tokens) of every pass that sampling makes from now on."""
    reads: list[tuple[int, int]] = []

    def read(ids: torch.Tensor, *given, following=policy.backbone.next_logits):
        reads.append(tuple(ids.shape))
        return following(ids, *given)

    monkeypatch.setattr(policy.backbone, "next_logits", read)
    return reads


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "gpt2"])
@pytest.mark.parametrize("filter", FILTERS)
def test_kept_log_probs_equal_evaluated_ones(name: str, filter: str, request: pytest.FixtureRequest):
    policy = LanguageModel.load(request.getfixturevalue(name), max_new=24, **FILTERS[filter])
    likely_to_end(policy)
    b = rows(policy, [policy.encode(p) for p in PROMPTS], samples=4)
    assert b.lengths.min() < b.lengths.max(), "rows end at different times, so some have left the cache"
    now = policy.evaluate(b, ["logp"])["logp"]
    torch.testing.assert_close(now, b.logp_old, rtol=0, atol=1e-4)
    assert (now[b.valid] < 0).any()
    assert (now[~b.valid] == 0).all()


def test_log_probs_are_those_of_plain_transformers(llama: Path):
    policy = LanguageModel.load(llama, temperature=0.7, max_new=12)
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    ids = policy.encode("the cat")
    b = rows(policy, [ids])
    taken = b.trace["completion"][0, : b.lengths[0]]
    logits = model(torch.cat([torch.tensor(ids), taken])[None]).logits[0, len(ids) - 1 : -1]
    want = (logits / 0.7).log_softmax(-1).gather(1, taken[:, None])[:, 0]
    torch.testing.assert_close(b.logp_old[0, : b.lengths[0]], want, rtol=0, atol=1e-4)


def test_models_that_change_their_logits_are_noticed(llama: Path, gemma2: Path):
    policy = LanguageModel.load(gemma2, max_new=6)
    assert LanguageModel.load(llama).backbone.splits
    assert not policy.backbone.splits
    b = rows(policy, [policy.encode("the cat")])
    entropy = policy.evaluate(b, ["entropy"])["entropy"]
    assert (entropy > math.log(policy.vocabulary) - 1).all(), "capped at +-1, so nearly uniform"


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_greedy_output_does_not_depend_on_the_rest_of_the_batch(name: str, request: pytest.FixtureRequest):
    policy = LanguageModel.load(request.getfixturevalue(name), max_new=20)
    likely_to_end(policy)
    prompts = [policy.encode(p) for p in PROMPTS]
    together = policy.sample(prompts, None, greedy=True)
    assert len(set(together.lengths.tolist())) > 1
    for i, prompt in enumerate(prompts):
        alone = policy.sample([prompt], None, greedy=True)
        n = int(alone.lengths[0])
        assert n == together.lengths[i]
        assert torch.equal(alone.ids[0], together.ids[i, :n])
        torch.testing.assert_close(alone.logp[0], together.logp[i, :n], rtol=0, atol=1e-4)


def test_samples_of_a_prompt_stand_together_and_differ(llama: Path):
    policy = forget_eos(LanguageModel.load(llama, max_new=8))
    prompts = [policy.encode(p) for p in PROMPTS[:2]]
    done = policy.sample(prompts, row_seeds(0, range(2), [3, 1]), samples=[3, 1])
    assert done.ids.shape == (4, 8)
    assert len({tuple(r) for r in done.ids.tolist()}) == 4
    first = [policy.evaluate(rows(policy, [p]), ["entropy"])["entropy"][0, 0] for p in prompts]
    b = Trajectories(
        mask=done.mask,
        trace={
            "prompt": torch.tensor([p + [0] * (len(prompts[1]) - len(p)) for p in prompts])[[0, 0, 0, 1]],
            "prompt_length": torch.tensor([len(p) for p in prompts])[[0, 0, 0, 1]],
            "completion": done.ids,
        },
    )
    entropy = policy.evaluate(b, ["entropy"])["entropy"][:, 0]
    torch.testing.assert_close(entropy, torch.stack([first[0]] * 3 + [first[1]]), rtol=0, atol=1e-5)


def test_equal_seeds_give_equal_samples_and_other_seeds_others(llama: Path):
    policy = forget_eos(LanguageModel.load(llama, max_new=8))
    prompts = [policy.encode("the cat")]
    torch.rand(3)  # the global generator plays no part
    one, two, three = (policy.sample(prompts, streams(prompts, 4, s), samples=4).ids for s in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_when_other_rows_end_does_not_change_a_rows_draws(llama: Path):
    policy = forget_eos(LanguageModel.load(llama, max_new=20))
    prompts = [policy.encode("the cat")]
    whole = policy.sample(prompts, streams(prompts, 8), samples=8)
    ended = likely_to_end(policy, 10).sample(prompts, streams(prompts, 8), samples=8)
    assert ended.lengths.min() < ended.lengths.max()
    for i, n in enumerate(ended.lengths.tolist()):
        assert torch.equal(whole.ids[i, :n], ended.ids[i, :n])


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "gpt2"])
@pytest.mark.parametrize("slots", [1, 3, 8])
def test_rows_that_wait_for_a_slot_are_written_as_if_they_had_not(
    name: str, slots: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cache, "BLOCK", 5)
    policy = likely_to_end(LanguageModel.load(request.getfixturevalue(name), max_new=24), 10)
    prompts = [policy.encode(p) for p in PROMPTS]
    whole = policy.sample(prompts, streams(prompts, 5), samples=5)
    assert whole.lengths.min() < whole.lengths.max()
    policy.slots = slots
    few = policy.sample(prompts, streams(prompts, 5), samples=5)
    for field in ("ids", "lengths", "stopped"):
        assert torch.equal(getattr(few, field), getattr(whole, field))
    torch.testing.assert_close(few.logp, whole.logp, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_samples_that_agree_are_written_as_one_row(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
):
    policy = LanguageModel.load(request.getfixturevalue(name), max_new=10, temperature=0.4)
    prompts = [policy.encode(p) for p in PROMPTS]
    reads = reading(policy, monkeypatch)
    with monkeypatch.context() as m:
        m.setattr(slots, "SHARED", 0.0)
        alone = rows(likely_to_end(policy, 10), prompts, samples=8)
    apart = reads.copy()
    reads.clear()
    together = rows(policy, prompts, samples=8)
    assert together.lengths.min() < together.lengths.max()
    assert torch.equal(together.trace["completion"], alone.trace["completion"])
    torch.testing.assert_close(together.logp_old, alone.logp_old, rtol=0, atol=1e-5)
    torch.testing.assert_close(policy.evaluate(together, ["logp"])["logp"], together.logp_old, rtol=0, atol=1e-4)
    assert reads[0][0] == len(prompts) < reads[1][0] < 0.75 * apart[1][0], "fewer than there are samples"


def test_no_more_rows_than_slots_are_written_at_a_time_and_a_prompt_is_read_once_for_them(
    llama: Path, monkeypatch: pytest.MonkeyPatch
):
    policy = likely_to_end(LanguageModel.load(llama, max_new=24), 10)
    seen = reading(policy, monkeypatch)
    prompts = [policy.encode(p) for p in PROMPTS]
    policy.sample(prompts, streams(prompts, 5), samples=5)
    assert [rows for rows, width in seen if width > 1] == [4]
    seen.clear()
    policy.slots = 6
    policy.sample(prompts, streams(prompts, 5), samples=5)
    assert max(rows for rows, _ in seen) == 6
    assert sum(width > 1 for _, width in seen) > 1, "slots were taken again"


def test_other_columns_and_rows_change_no_state_of_a_cache():
    """Growing, appending wider rows and dropping columns leave every row's keys at its end."""
    g = seeded()
    one, two = (cache.BlockLayer() for _ in range(2))
    x, y, z = (torch.randn(n, 2, t, 3, generator=g) for n, t in ((2, 4), (3, 7), (5, 1)))
    one.update(x, -x)
    two.update(y, -y)
    one.append(two)
    assert torch.equal(one.update(z, -z)[0][:2, :, 3:8], torch.cat([x, z[:2]], 2))
    one.drop(2)
    one.reorder_cache(torch.tensor([4, 0]))
    keys, values = (x[:, :, :7] for x in one.update(z[:2], -z[:2]))
    assert torch.equal(keys, torch.stack([torch.cat([y[2, :, 2:], z[4], z[0]], 1), keys[1]]))
    assert torch.equal(values, -keys)
    assert one.get_seq_length() == 7


@pytest.mark.parametrize("rounding", [True, False])
def test_a_cache_with_gradients_keeps_what_autocast_would_attend_to(rounding: bool, llama: Path):
    shared = cache.Rounded(config=LanguageModel.load(llama).inner.config)
    key, value = torch.randn(2, 2, 2, 3, 4, generator=seeded()).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=rounding):
        kept = shared.update(key, value, 0)
    for found, want in zip(kept, (key, value), strict=True):
        assert found.dtype == (torch.bfloat16 if rounding else torch.float32)
        torch.testing.assert_close(found, want.to(found.dtype), rtol=0, atol=0)
        assert found.requires_grad


def test_the_numbers_of_a_stream_are_uniform_and_those_of_others_are_independent():
    u = uniform(torch.arange(200).repeat_interleave(500), torch.arange(500).repeat(200)).reshape(200, 500)
    assert u.min() >= 0
    assert u.max() < 1
    counts = torch.histc(u.float(), 50, 0, 1)
    assert ((counts - 2000) ** 2 / 2000).sum() < 90, "chi-squared, 49 degrees of freedom"
    near = torch.corrcoef(torch.stack([u[:-1, :-1].flatten(), u[1:, :-1].flatten(), u[:-1, 1:].flatten()]))
    assert (near - torch.eye(3)).abs().max() < 0.02


def test_sampled_frequencies_are_the_probabilities():
    p = torch.tensor([[0.0, 0.5, 0.0, 0.3, 0.2, 0.0]])
    u = torch.linspace(0, 1, 10_001, dtype=torch.float64)[:-1]
    drawn = draw_tokens(p.expand(len(u), -1), u)
    assert torch.bincount(drawn, minlength=6).tolist() == pytest.approx([0, 5000, 0, 3000, 2000, 0], abs=2)


# ends


def written(policy: LanguageModel, prompt: list[int]) -> tuple[list[int], int]:
    """Greedy tokens after the prompt when nothing ends them, and the place (at least 2) of one that is new there."""
    eos, policy.eos = policy.eos, ()
    tokens = policy.sample([prompt], None, greedy=True, max_new=20).ids[0].tolist()
    policy.eos = eos
    return tokens, next(k for k in range(2, 20) if tokens[k] not in tokens[:k])


def test_a_terminator_is_trained_exactly_once(llama: Path):
    policy = LanguageModel.load(llama)
    prompts = [policy.encode(p) for p in PROMPTS]
    tokens, k = written(policy, prompts[0])
    policy.eos = (tokens[k],)
    done = policy.sample(prompts, None, greedy=True, max_new=20)
    assert done.ids[0, : k + 1].tolist() == tokens[: k + 1]
    assert done.lengths[0] == done.mask[0].sum() == k + 1
    assert done.stopped[0]


def test_a_terminator_equal_to_the_padding_is_trained_exactly_once(tmp_path: Path):
    """The model's output for token 0, which padding is written with, is swapped with that of the token it writes."""
    made = tiny.tokenizer(tmp_path, pad=False)
    made.eos_token = "<pad>"
    made.save_pretrained(tmp_path)
    tiny.model(tmp_path, "llama", vocabulary=len(made), eos_token_id=0)
    policy = LanguageModel.load(tmp_path)
    assert policy.tokenizer.pad_token_id is None
    assert policy.eos == (0, made.convert_tokens_to_ids("<|end|>")), "the tokenizer's and the chat template's"
    prompts = [policy.encode(p) for p in PROMPTS]
    tokens, k = written(policy, prompts[0])
    with torch.no_grad():
        head = policy.inner.get_output_embeddings().weight
        head[[0, tokens[k]]] = head[[tokens[k], 0]]
    b = rows(policy, prompts, greedy=True, max_new=20)
    assert b.mask.shape[1] > k + 1, "so the first row is padded"
    assert b.trace["completion"][0, : k + 2].tolist() == [*tokens[:k], 0, 0]
    assert b.mask[0].tolist() == [True] * (k + 1) + [False] * (b.mask.shape[1] - k - 1)
    torch.testing.assert_close(policy.evaluate(b, ["logp"])["logp"], b.logp_old, rtol=0, atol=1e-4)


def test_a_second_end_token_of_the_model_ends_a_completion(tmp_path: Path):
    source = tiny.language_model(tmp_path)
    policy = LanguageModel.load(source)
    tokens, k = written(policy, policy.encode("the cat"))
    config = json.loads((tmp_path / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": [3, tokens[k]]}))
    policy = LanguageModel.load(source)
    assert policy.eos == tuple(sorted({2, 3, tokens[k]})), "the tokenizer's, all of the model's, the template's"
    done = policy.sample([policy.encode("the cat")], None, greedy=True, max_new=20)
    assert done.ids.tolist() == [tokens[: k + 1]]
    assert done.stopped.all()


def test_a_completion_cut_by_the_budget_has_not_stopped(llama: Path):
    policy = LanguageModel.load(llama)
    tokens, k = written(policy, policy.encode("the cat"))
    policy.eos = (tokens[k],)
    done = policy.sample([policy.encode("the cat")], None, greedy=True, max_new=k)
    assert done.lengths.tolist() == [k]
    assert not done.stopped.any()
    assert done.mask.all()


def test_a_stop_string_ends_the_row_with_the_token_that_completes_it(qwen2: Path):
    policy = forget_eos(LanguageModel.load(qwen2, max_new=24))
    prompts = [policy.encode("the cat")]
    free = policy.sample(prompts, streams(prompts, 64), samples=64).ids.tolist()

    def pair(row: list[int], k: int) -> str:
        return policy.decode(row[k - 1 : k + 1])

    row, k = next(
        (i, k)
        for i, r in enumerate(free)
        for k in range(3, 24)
        if len(pair(r, k)) == 2 and pair(r, k).isascii() and pair(r, k) not in policy.decode(r[:k])
    )
    policy.stop = ("never written", pair(free[row], k))
    assert LanguageModel.load(qwen2, stop="ab").stop == ("ab",)
    done = policy.sample(prompts, streams(prompts, 64), samples=64)
    assert done.ids[row, : done.lengths[row]].tolist() == free[row][: k + 1]
    assert done.stopped[row]
    assert not done.stopped.all()


def test_sampled_ids_are_kept_though_the_text_would_encode_otherwise(llama: Path):
    policy = forget_eos(LanguageModel.load(llama, max_new=16))
    b = rows(policy, [policy.encode("the cat")], samples=4)
    ids = b.trace["completion"].tolist()
    again = [policy.encode_hint(policy.decode(row)) for row in ids]
    assert any(a != row for a, row in zip(again, ids, strict=True)), "this tokenizer does not round-trip these"
    torch.testing.assert_close(policy.evaluate(b, ["logp"])["logp"], b.logp_old, rtol=0, atol=1e-4)


# evaluation


def evaluated(policy: LanguageModel, b: Trajectories) -> dict[str, torch.Tensor]:
    """Functionals and the gradient of a mixture of them with respect to every parameter."""
    policy.zero_grad(set_to_none=True)
    want = ["logp", "entropy", "value"]
    found = policy.evaluate(b, want)
    g = seeded(5)
    sum((torch.randn(x.shape, generator=g) * x).sum() for x in found.values()).backward()
    gradients = {k: p.grad for k, p in policy.named_parameters() if p.grad is not None}
    return {k: x.detach() for k, x in found.items()} | gradients


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "gpt2"])
def test_tiles_shared_prompts_and_checkpointing_change_neither_value_nor_gradient(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
):
    policy = likely_to_end(LanguageModel.load(request.getfixturevalue(name), max_new=10, value=True), 10)
    torch.nn.init.normal_(policy.value_head.weight, generator=seeded(1))
    prompts = [policy.encode(p) for p in PROMPTS]
    b = rows(policy, prompts, samples=6)
    mask = b.mask.clone()
    mask[3, 1:] = False
    mask[7] = False
    b = b.but(mask=mask)
    reads: list[tuple[int, int]] = []
    policy.inner.base_model.register_forward_hook(
        lambda m, args, kwargs, out: reads.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    monkeypatch.setattr(forward, "open_cache", lambda config: None)
    plain = evaluated(policy, b)
    monkeypatch.undo()
    assert [n for n, _ in reads] == [23], "one pass, and nothing for a row without decisions"
    for tile in (2048, 30):
        monkeypatch.setattr(forward, "TILE", {True: tile})
        for checkpointing in (False, True):
            reads.clear()
            policy.backbone.checkpointing = checkpointing
            now = evaluated(policy, b)
            assert (reads[0] == (4, max(map(len, prompts)))) == (not checkpointing), "every prompt once"
            assert all(n * width <= tile or n == 1 for n, width in reads[1:])
            assert now.keys() == plain.keys()
            for key, want in plain.items():
                assert (now[key] - want).norm() <= 1e-5 * want.norm(), key


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "gpt2"])
def test_equal_rows_change_neither_value_nor_gradient(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
):
    policy = LanguageModel.load(request.getfixturevalue(name), max_new=5, value=True, temperature=0.5)
    torch.nn.init.normal_(policy.value_head.weight, generator=seeded(1))
    b = rows(likely_to_end(policy, 10), [policy.encode(p) for p in PROMPTS], samples=8)
    mask = b.mask.clone()
    mask[3, 1:] = False  # so that it differs from rows with the same tokens
    mask[9] = False
    b = b.but(mask=mask)
    reads: list[tuple[int, int]] = []
    policy.inner.base_model.register_forward_hook(
        lambda m, args, kwargs, out: reads.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    with monkeypatch.context() as m:
        m.setattr(forward, "open_cache", lambda config: None)
        m.setattr(model, "dedupe", lambda trace, valid: None)
        plain = evaluated(policy, b)
    tokens = sum(n * width for n, width in reads)
    for tile in (2048, 30):
        monkeypatch.setattr(forward, "TILE", {True: tile})
        reads.clear()
        now = evaluated(policy, b)
        assert sum(n * width for n, width in reads) < 0.75 * tokens
        assert now.keys() == plain.keys()
        for key, want in plain.items():
            assert (now[key] - want).norm() <= 1e-5 * want.norm(), key


def test_rows_are_equal_only_where_all_their_tokens_are(monkeypatch: pytest.MonkeyPatch):
    x = torch.randint(3, (500, 4), generator=seeded())
    for factor in (equal_rows.FACTOR, 0):  # with 0 the hash is that of the first column
        monkeypatch.setattr(equal_rows, "FACTOR", factor)
        first, line = equal_rows.unique_rows(x)
        assert len(first) == len({tuple(row) for row in x.tolist()})
        assert torch.equal(x[first[line]], x)
        assert all(first[k] == (line == k).nonzero()[0, 0] for k in range(len(first)))


def test_rows_that_differ_are_evaluated_as_they_are(llama: Path):
    policy = forget_eos(LanguageModel.load(llama, max_new=12))
    b = rows(policy, [policy.encode("a")], samples=8)
    assert equal_rows.dedupe(b.trace, b.valid) is None
    twice = {key: x.repeat(2, *[1] * (x.ndim - 1)) for key, x in b.trace.items()}
    first, line = equal_rows.dedupe(twice, b.valid.repeat(2, 1))
    assert torch.equal(first[line], torch.arange(8).repeat(2))
    assert equal_rows.dedupe(twice, torch.cat([b.valid, b.valid.tril(-1)])) is None, "other decisions"


def test_prompts_that_are_short_or_differ_are_not_shared(llama: Path):
    policy = forget_eos(LanguageModel.load(llama, max_new=24))
    reads: list[int] = []
    b = rows(policy, [policy.encode("a")], samples=6)
    policy.inner.base_model.register_forward_hook(
        lambda m, args, kwargs, out: reads.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    policy.evaluate(b, ["logp"])
    policy.evaluate(rows(policy, [policy.encode(PROMPTS[1])]), ["logp"])
    assert reads[0] == 6
    assert reads[-1] == 1


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_plain_products_on_a_cpu_are_the_fused_attention(name: str, request: pytest.FixtureRequest):
    """In bfloat16, where both round; padding on the left attends to nothing."""
    policy = LanguageModel.load(request.getfixturevalue(name), dtype="bfloat16")
    ids = torch.randint(5, policy.vocabulary, (3, 11), generator=seeded())
    mask = torch.arange(11) >= torch.tensor([0, 4, 10])[:, None]
    for given in (None, mask):
        want = policy.inner(input_ids=ids, attention_mask=given).logits
        with cache.fast_attention(policy.inner.config):
            found = policy.inner(input_ids=ids, attention_mask=given).logits
        kept = slice(None) if given is None else mask
        assert not torch.equal(found[kept], want[kept]), "another order of the same sums"
        torch.testing.assert_close(found[kept].softmax(-1), want[kept].softmax(-1), rtol=0.2, atol=0.05)
    assert policy.inner.config._attn_implementation == "sdpa"


def test_masked_slots_and_rows_neither_count_nor_matter(llama: Path):
    policy = forget_eos(LanguageModel.load(llama, max_new=8, value=True))
    torch.nn.init.normal_(policy.value_head.weight, generator=seeded(1))
    b = rows(policy, [policy.encode(p) for p in PROMPTS])
    full = policy.evaluate(b, ["logp", "entropy", "value"])
    mask = b.mask.clone()
    mask[0, 2:4] = False
    mask[1] = False
    gaps = policy.evaluate(b.but(mask=mask), ["logp", "entropy", "value"])
    for name, want in full.items():
        torch.testing.assert_close(gaps[name], torch.where(mask, want, 0.0), rtol=1e-5, atol=1e-5)
    none = policy.evaluate(b.but(mask=torch.zeros_like(mask)), ["logp", "entropy", "value"])
    assert all((x == 0).all() for x in none.values())


def test_evaluation_does_not_depend_on_the_rest_of_the_batch(llama: Path):
    policy = likely_to_end(LanguageModel.load(llama, max_new=12), 10)
    b = rows(policy, [policy.encode(p) for p in PROMPTS], samples=2)
    together = policy.evaluate(b, ["logp"])["logp"]
    for i in range(len(together)):
        alone = policy.evaluate(b.rows(torch.tensor([i])), ["logp"])["logp"]
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-5)


def test_the_value_starts_at_zero_and_learns(llama: Path):
    policy = LanguageModel.load(llama, value=True, max_new=6)
    b = rows(policy, [policy.encode("the cat")])
    value = policy.evaluate(b, ["value"])["value"]
    assert (value == 0).all()
    value.sum().backward()
    assert policy.value_head.weight.grad.abs().sum() > 0
    with pytest.raises(UsageError, match="no value head"):
        LanguageModel.load(llama).evaluate(b, ["value"])


def test_dropout_stays_off(tiny_model: Callable[..., Path]):
    policy = LanguageModel.load(tiny_model("llama", attention_dropout=0.5), max_new=6).train()
    b = rows(policy, [policy.encode("the cat")])
    one, two = (policy.evaluate(b, ["logp"])["logp"] for _ in range(2))
    assert torch.equal(one, two)
    torch.testing.assert_close(one, b.logp_old, rtol=0, atol=1e-4)


def test_half_precision_keeps_log_probs_in_float32(llama: Path):
    policy = LanguageModel.load(llama, dtype="bfloat16", top_k=5, value=True, max_new=6)
    b = rows(policy, [policy.encode(p) for p in PROMPTS])
    now = policy.evaluate(b, ["logp", "entropy", "value"])
    assert {x.dtype for x in now.values()} == {b.logp_old.dtype} == {torch.float32}
    torch.testing.assert_close(now["logp"], b.logp_old, rtol=0, atol=1.0)


def test_all_parameters_receive_a_gradient(llama: Path):
    policy = LanguageModel.load(llama, max_new=8)
    b = rows(policy, [policy.encode(p) for p in PROMPTS], samples=2)
    policy.evaluate(b, ["logp"])["logp"].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.parameters() if p.requires_grad)


# adapters


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_fresh_adapters_start_at_the_model_and_alone_are_trained(name: str, request: pytest.FixtureRequest):
    source = request.getfixturevalue(name)
    plain = LanguageModel.load(source, max_new=8)
    policy = LanguageModel.load(source, max_new=8, lora={"r": 4})
    b = rows(plain, [plain.encode(p) for p in PROMPTS])
    want = plain.evaluate(b, ["logp"])["logp"]
    assert torch.equal(policy.evaluate(b, ["logp"])["logp"], want), "KL is 0 at the start"
    trained = {k for k, p in policy.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in k for k in trained)
    assert len(trained) == 2 * 2 * 7, "A and B, two layers, seven linear maps, and not the output layer"
    before = {k: p.clone() for k, p in policy.named_parameters()}
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=1.0)
    policy.evaluate(b, ["logp"])["logp"].mean().backward()
    optimizer.step()
    moved = {k for k, p in policy.named_parameters() if not torch.equal(p, before[k])}
    assert moved
    assert moved <= trained
    assert not torch.equal(policy.evaluate(b, ["logp"])["logp"], want)


def test_adapters_depend_on_the_seed_alone(llama: Path):
    def first(seed: int) -> torch.Tensor:
        policy = LanguageModel.load(llama, lora={}, seed=seed)
        return next(p for k, p in policy.named_parameters() if "lora_A" in k)

    torch.manual_seed(3)
    state = torch.get_rng_state()
    one = first(0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, first(0))
    assert not torch.equal(one, first(1))


def train_a_little(policy: LanguageModel) -> Trajectories:
    b = rows(policy, [policy.encode(p) for p in PROMPTS])
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.5)
    found = policy.evaluate(b, ["logp"] if policy.value_head is None else ["logp", "value"])
    sum(x.mean() for x in found.values()).backward()
    optimizer.step()
    return b


@pytest.mark.parametrize("name", ["llama", "qwen2"])
@pytest.mark.parametrize("lora", [None, {"r": 4, "alpha": 8}])
def test_a_saved_model_is_a_plain_transformers_model(name, lora, tmp_path: Path, request: pytest.FixtureRequest):
    policy = LanguageModel.load(request.getfixturevalue(name), lora=lora, max_new=8)
    train_a_little(policy)
    policy.save(tmp_path)
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert not any("lora" in k for k in plain.state_dict())
    ids = torch.tensor([policy.encode("the cat sat")])
    torch.testing.assert_close(plain(ids).logits, policy.model(ids).logits, rtol=1e-4, atol=1e-4)
    assert tokenizer("the cat sat")["input_ids"] == ids[0].tolist()
    assert tokenizer.chat_template == tiny.CHAT


def test_a_saved_policy_is_restored_with_all_its_settings(llama: Path, tmp_path: Path):
    policy = LanguageModel.load(llama, temperature=0.7, top_k=5, top_p=0.9, stop=["!"], max_new=9, value=True)
    b = train_a_little(policy)
    policy.save(tmp_path)
    again = LanguageModel.load(tmp_path)
    assert (again.filter, again.stop, again.max_new) == (Filter(0.7, 5, 0.9), ("!",), 9)
    for name, want in policy.evaluate(b, ["logp", "entropy", "value"]).items():
        assert torch.equal(again.evaluate(b, [name])[name], want)
    assert LanguageModel.load(tmp_path, temperature=1.0).filter == Filter(1.0, 5, 0.9)


def test_a_damaged_save_is_one_clear_sentence(llama: Path, tmp_path: Path):
    LanguageModel.load(llama, value=True).save(tmp_path)
    head = (tmp_path / "value_head.safetensors").read_bytes()
    (tmp_path / "value_head.safetensors").write_bytes(head[:-8])
    with pytest.raises(UsageError, match=r"value_head\.safetensors in .* is damaged"):
        LanguageModel.load(tmp_path)


def test_a_source_that_is_an_adapter_is_loaded_trainable(llama: Path, tmp_path: Path):
    policy = LanguageModel.load(llama, lora={"r": 4}, max_new=8)
    b = train_a_little(policy)
    policy.save(tmp_path)
    again = LanguageModel.load(tmp_path / "adapter")
    assert {k for k, p in again.named_parameters() if p.requires_grad} == {
        k for k, p in policy.named_parameters() if p.requires_grad
    }
    assert torch.equal(again.evaluate(b, ["logp"])["logp"], policy.evaluate(b, ["logp"])["logp"])


def test_adapters_that_are_no_part_of_the_layers_are_refused(llama: Path, tmp_path: Path):
    from peft import PromptTuningConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(llama)
    get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"cannot load the model .* prompt learning"):
        LanguageModel.load(tmp_path)


# prompts


def test_chat_prompts_end_where_the_answer_begins(llama: Path):
    policy = LanguageModel.load(llama)
    ids = policy.encode([{"role": "user", "content": "the cat"}])
    assert policy.tokenizer.decode(ids) == "<|user|>the cat<|end|><|assistant|>"


def test_every_bad_source_is_one_clear_sentence(tmp_path: Path, llama: Path):
    def refuses(source: Path, match: str, **more) -> None:
        with pytest.raises(UsageError, match=match) as caught:
            LanguageModel.load(source, **more)
        assert "\n" not in str(caught.value)

    refuses(tmp_path / "nowhere", "no directory")
    (tmp_path / "empty").mkdir()
    refuses(tmp_path / "empty", r"neither config\.json nor adapter_config\.json")

    torn = tiny.language_model(tmp_path / "torn")
    weights = (torn / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    refuses(torn, "cannot load the model")

    tiny.tokenizer(tmp_path / "large")
    tiny.model(tmp_path / "large", vocabulary=100)
    refuses(tmp_path / "large", "299 tokens but the model embeds only 100")

    made = tiny.tokenizer(tmp_path / "endless", pad=False, eos=False)
    tiny.model(tmp_path / "endless", vocabulary=len(made))
    refuses(tmp_path / "endless", "neither a pad nor an eos token")

    refuses(llama, "temperature must be positive", temperature=0.0)
    refuses(llama, "top_p", top_p=1.5)
    refuses(llama, "rank", lora={"rank": 4})
    refuses(llama, "cannot adapt", lora={"target": "no_such_layer"})
    refuses(llama, "did you mean 'bfloat16'", dtype="bfloat")
    refuses(Path("no-such-model"), "cannot load the model no-such-model")


def test_prompts_the_tokenizer_cannot_take_are_refused(tmp_path: Path, llama: Path):
    made = tiny.tokenizer(tmp_path, chat=False)
    tiny.model(tmp_path, vocabulary=len(made))
    with pytest.raises(UsageError, match="no chat template"):
        LanguageModel.load(tmp_path).encode([{"role": "user", "content": "hi"}])
    with pytest.raises(UsageError, match="no tokens"):
        LanguageModel.load(llama).encode("")
    with pytest.raises(UsageError, match="prompt 1 has 100 tokens, which with 40 new ones exceeds the context of 128"):
        LanguageModel.load(llama).sample([[5], [5] * 100], None, max_new=40)
