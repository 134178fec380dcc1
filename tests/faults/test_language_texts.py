"""What a language model reads, writes and is trained on is the text, as its tokenizer and chat template have it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from anypo.cli import app as cli
from anypo.config import from_dict
from anypo.errors import UsageError
from anypo.loops.learn import learn
from anypo.policies.language.model import LanguageModel
from anypo.report.plan import plan_lines
from anypo.rng import row_seeds
from anypo.runs.build import build
from anypo.tasks.text.jsonl import make_jsonl_task
from anypo.tasks.text.pairs import make_pairs_task
from anypo.tasks.text.records import is_prompt, load_records, read_tools
from anypo.tasks.text.task import TextTask
from anypo.types import Request

CHATML = (
    "{% if tools %}<TOOLS>{{ tools | tojson }}</TOOLS>\n{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + (m['content'] or '') + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TRIM = CHATML.replace("(m['content'] or '')", "(m['content'] | trim)")
THINK = CHATML.replace(
    "+ (m['content'] or '')",
    "+ ('<think>\n\n</think>\n\n' if loop.last and m['role'] == 'assistant' else '') + m['content']",
)
BARE = CHATML.replace("<|im_end|>", "")
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def write_model(
    folder: Path,
    special: tuple[str, ...] = (),
    eos: str = "<|end|>",
    bos: str | None = None,
    both: bool = False,
    chat: str | None = None,
    rows: int = 0,
) -> Path:
    """A model of random weights with a byte tokenizer; `both`: the tokenizer puts BOS before and EOS behind a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    names = ["<pad>", eos, *([bos] if bos else []), *special]
    vocab = {t: i for i, t in enumerate([*names, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    if both:
        known = [(t, vocab[t]) for t in (bos, eos) if t]
        single = f"{bos} $A {eos}"
        core.post_processor = processors.TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=known)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token=eos, bos_token=bos, additional_special_tokens=list(special)
    )
    if chat:
        tokenizer.chat_template = chat
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        ends = {"bos_token_id": None, "eos_token_id": vocab[eos], "pad_token_id": 0}
        config = LlamaConfig(vocab_size=len(vocab) + rows, max_position_embeddings=256, **sizes, **ends)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


IM = ("<|im_start|>", "<|im_end|>")
CASES = [
    ("another end than eos", {"special": IM, "chat": CHATML}, "good", "good<|im_end|>"),
    ("another end than eos", {"special": IM, "chat": CHATML}, "good<|im_end|>\n", "good<|im_end|>"),
    ("another end than eos", {"special": IM, "chat": CHATML}, "good<|end|>", "good<|im_end|>"),
    ("another end than eos", {"special": IM, "chat": CHATML}, " good \n", " good \n<|im_end|>"),
    ("eos itself", {"special": IM[:1], "eos": IM[1], "chat": CHATML}, "good<|im_end|><|im_end|>", "good<|im_end|>"),
    ("trims", {"special": IM[:1], "eos": IM[1], "chat": TRIM}, " good \n", "good<|im_end|>"),
    ("thinks first", {"special": IM, "chat": THINK}, "good", "<think>\n\n</think>\n\ngood<|im_end|>"),
    ("no end", {"special": IM[:1], "chat": BARE}, "good", "good\n<|end|>"),
]


@pytest.mark.parametrize(("kind", "options", "text", "trained"), CASES)
def test_an_answer_in_chat_data_ends_as_the_template_ends_it_once(
    kind: str, options: dict[str, Any], text: str, trained: str, tmp_path: Path
):
    policy = LanguageModel.load(write_model(tmp_path / "lm", **options))
    prompt = [{"role": "user", "content": "q"}]
    rows = [
        {"prompt": [{"role": "user", "content": f"q{i}"}], "solution": text, "answer": text}
        | {"chosen": [{"role": "assistant", "content": text}], "rejected": "bad"}
        for i in range(4)
    ]
    path = write_rows(tmp_path / "c.jsonl", rows)
    pairs = make_pairs_task(path)
    pairs.prepare(policy)
    b, _ = pairs.rollout(policy, [Request(0, 2)], 0)
    ids = b.trace["completion"][0, : b.lengths[0]].tolist()
    assert policy.tokenizer.decode(ids) == trained
    assert ids[-1] in policy.eos
    demonstrated = make_jsonl_task(path, "exact").demonstrate(policy, [Request(0, 1)])
    assert demonstrated.trace["completion"][0].tolist() == ids
    assert policy.encode_answer(prompt, text) == ids


def test_an_answer_to_plain_text_keeps_exactly_one_end(tmp_path: Path):
    policy = LanguageModel.load(write_model(tmp_path))
    good = policy.encode_hint("good")
    for text in ("good", "good<|end|>", "good<|end|>\n", "good<|end|><|end|>"):
        assert policy.encode_answer("q", text) == [*good, policy.end]
    assert policy.encode_answer("q", "good \n") == [*policy.encode_hint("good \n"), policy.end]


def test_the_end_of_the_template_ends_sampled_answers(tmp_path: Path):
    policy = LanguageModel.load(write_model(tmp_path, special=IM, chat=CHATML))
    end = policy.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert policy.eos == (policy.end, end)
    with torch.no_grad():
        policy.inner.get_output_embeddings().weight[end] *= 30
    done = policy.sample([policy.encode([{"role": "user", "content": "q"}])] * 8, row_seeds(0, [0], [8]), max_new=32)
    ended = done.ids.gather(1, done.lengths[:, None] - 1)[:, 0]
    assert bool((ended == end).any())
    assert all(
        policy.decode(row[:n]).count("<|im_end|>") == 0
        for row, n in zip(done.ids.tolist(), done.lengths.tolist(), strict=True)
    )


def test_rewards_and_samples_see_special_tokens_but_for_the_end(tmp_path: Path):
    policy = LanguageModel.load(write_model(tmp_path, special=("<think>", "</think>")))
    ids = [*policy.encode_hint("<think>ab</think>c"), policy.end]
    assert policy.decode(ids) == policy.decode([*ids, 0, 0]) == "<think>ab</think>c"


def test_a_column_of_tools_reaches_the_template(tmp_path: Path):
    policy = LanguageModel.load(write_model(tmp_path / "lm", special=IM, chat=CHATML))

    def shown(tools: Any) -> str:
        rows = [{"prompt": [{"role": "user", "content": f"hi {i}"}], "tools": tools, "answer": "1"} for i in range(3)]
        task = TextTask("t", rows, rows, ["exact"], max_new=2)
        task.prepare(policy)
        b, _ = task.rollout(policy, [Request(0, 1)], 0)
        assert task.show_prompt(policy) == policy.tokenizer.decode(b.trace["prompt"][0])
        return task.show_prompt(policy)

    assert f"<TOOLS>{json.dumps([TOOL])}</TOOLS>" in shown([TOOL]) == shown(json.dumps([TOOL]))
    assert "TOOLS" not in shown([])
    assert "TOOLS" not in shown(None)
    with pytest.raises(UsageError, match="record 0 of the records: its `tools` must be a list of tools"):
        shown("add")


def test_an_answer_that_was_begun_is_continued(tmp_path: Path):
    policy = LanguageModel.load(write_model(tmp_path, special=IM, chat=CHATML))
    prompt = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "It is"}]
    text = policy.tokenizer.decode(policy.encode(prompt))
    assert text == "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\nIt is"
    assert policy.tokenizer.decode(policy.encode_answer(prompt, " 4")) == " 4<|im_end|>"


def test_a_message_that_calls_tools_may_lack_content():
    call = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {}}}]}
    assert is_prompt([{"role": "user", "content": "hi"}, call, {"role": "tool", "content": "3"}])
    assert not is_prompt([{"role": "user"}])


def test_a_plain_prompt_begins_with_one_bos_and_does_not_end(tmp_path: Path):
    policy = LanguageModel.load(write_model(tmp_path / "lm", bos="<s>", both=True))
    bos, eos = policy.tokenizer.bos_token_id, policy.tokenizer.eos_token_id
    text = policy.encode_hint("ab")
    assert policy.encode("ab") == policy.encode("<s>ab") == [bos, *text]
    assert policy.encode("ab<|end|>") == [bos, *text, eos], "an end that the user wrote stays"
    rows = [{"prompt": f"a{i}", "chosen": "b", "rejected": "c"} for i in range(4)]
    pairs = make_pairs_task(write_rows(tmp_path / "p.jsonl", rows))
    pairs.prepare(policy)
    b, _ = pairs.rollout(policy, [Request(0, 2)], 0)
    assert b.trace["prompt"][0, : b.trace["prompt_length"][0]].tolist() == policy.encode(pairs.records[0]["prompt"])
    assert b.trace["completion"][0].tolist() == [*policy.encode_hint("b"), eos]


def test_sampling_draws_only_tokens_that_have_text(tmp_path: Path):
    policy = LanguageModel.load(write_model(tmp_path, rows=2000))
    done = policy.sample([policy.encode("ab")] * 64, row_seeds(0, [0], [64]), max_new=8)
    assert int(done.ids.max()) < len(policy.tokenizer)
    rows = policy.pack(
        [policy.encode("ab")] * 64, [r[:n] for r, n in zip(done.ids.tolist(), done.lengths.tolist(), strict=True)]
    )
    logp = policy.evaluate(rows, {"logp", "entropy"})
    torch.testing.assert_close(logp["logp"], done.logp, rtol=0, atol=1e-5)
    assert bool(logp["entropy"].isfinite().all())


# weights


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_of_half_precision_are_refused_for_training_but_carry_adapters_of_float32(dtype: str, tmp_path: Path):
    pytest.importorskip("peft")
    model = write_model(tmp_path / "lm")
    rows = write_rows(tmp_path / "p.jsonl", [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(6)])
    config = {
        "method": "grpo",
        "task": {"name": f"jsonl:{rows}", "reward": ["exact"], "max_new": 4},
        "policy": {"name": f"hf:{model}", "dtype": dtype},
        "steps": 1,
        "collect": {"requests": 2, "samples": 2},
    }
    with pytest.raises(UsageError, match=f"weights in {dtype} are too coarse to train") as error:
        build(from_dict(config))
    assert "\n" not in str(error.value)
    run = build(from_dict(config | {"policy": {**config["policy"], "lora": {"r": 2}}}))
    assert {p.dtype for p in run.policy.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in run.policy.parameters() if not p.requires_grad} == {getattr(torch, dtype)}
    learn(run)


def test_weights_that_the_configuration_asks_for_and_the_files_lack_are_refused(tmp_path: Path):
    write_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UsageError, match=r"its files have no weights for model\.layers\.2\..*config\.json asks for"):
        LanguageModel.load(tmp_path)


def test_a_model_with_code_of_its_own_is_refused_without_a_question(tmp_path: Path):
    write_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    own = {"auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}, "model_type": "own"}
    (tmp_path / "config.json").write_text(json.dumps(config | own))
    (tmp_path / "own.py").write_text("raise SystemExit('executed')\n")
    with pytest.raises(UsageError, match="custom code") as error:
        LanguageModel.load(tmp_path)
    assert "\n" not in str(error.value)


# data


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "x \ud83d y"},
        {"prompt": "x", "answer": "\ud83d"},
        {"prompt": [{"role": "user", "content": "\ude00"}]},
    ],
)
def test_half_a_surrogate_pair_in_data_is_one_sentence_that_names_its_line(row: dict[str, Any], tmp_path: Path):
    path = write_rows(tmp_path / "s.jsonl", [{"prompt": "whole \U0001f600"}, row])
    with pytest.raises(
        UsageError, match=r"s\.jsonl line 2 in its (prompt|answer) has half a surrogate pair \(.ud"
    ) as error:
        load_records(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("depth", [150, 100_000])
@pytest.mark.parametrize("column", ["prompt", "answer"])
def test_data_nested_too_deeply_are_one_sentence_that_names_their_line(depth: int, column: str, tmp_path: Path):
    path = tmp_path / "deep.jsonl"
    row = '{"prompt": "x", "answer": "y"}\n'
    path.write_text(row + row.replace('"x"' if column == "prompt" else '"y"', "[" * depth + "]" * depth))
    with pytest.raises(UsageError, match=r"deep\.jsonl line 2 (is nested too deeply|needs a `prompt`)") as error:
        load_records(path)
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="its `tools` must be a list of tools"):
        read_tools({"tools": "[" * 100_000})


def test_the_plan_counts_the_tokens_of_completions_whose_length_is_left_to_the_model(tmp_path: Path):
    path = write_rows(tmp_path / "p.jsonl", [{"prompt": f"the {i}", "answer": "a"} for i in range(9)])
    task = {"name": f"jsonl:{path}", "reward": "exact"}
    run = build(
        from_dict({"method": "grpo", "task": task, "policy": f"hf:{write_model(tmp_path / 'model')}", "steps": 1})
    )
    longest = run.task.max_new * 128
    lines = dict(plan_lines(run))
    assert lines["batch"] == f"16 starts x 8 samples = 128 rows, at most {longest:,} decisions"
    assert lines["length"] == f"1 batches: at most {longest:,} decisions and about 1 updates"


def test_half_a_surrogate_pair_in_a_typed_prompt_is_one_sentence(tmp_path: Path):
    policy = LanguageModel.load(write_model(tmp_path))
    with pytest.raises(UsageError, match="the prompt has half a surrogate pair"):
        policy.encode("x \ud83d y")


@pytest.mark.parametrize("learner", ["grpo", "rloo", "dr-grpo"])
def test_one_sample_of_a_prompt_is_refused_by_methods_that_compare_them(learner: str, tmp_path: Path):
    rows = write_rows(tmp_path / "p.jsonl", [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(6)])
    command = ["train", learner, "--task", f"jsonl:{rows}", "--reward", "exact", "--policy", "hf:none"]
    done = CliRunner().invoke(cli.app, [*command, "--collect.samples", "1", "--out", str(tmp_path / "run")])
    assert isinstance(done.exception, UsageError)
    assert f"{learner} compares the samples of a start; --collect.samples 1" in str(done.exception)
    assert not (tmp_path / "run").exists()


def test_the_plan_shows_the_first_prompt_as_the_model_reads_it(tmp_path: Path):
    from anypo.report.plan import plan_lines

    model = write_model(tmp_path / "lm", special=IM, chat=CHATML)
    rows = [
        {"prompt": [{"role": "user", "content": "hi"}], "answer": "1"},
        {"prompt": [{"role": "user", "content": "ho"}], "answer": "1"},
    ]
    task = {
        "name": f"jsonl:{write_rows(tmp_path / 'p.jsonl', rows)}",
        "reward": ["exact"],
        "heldout": 0.5,
        "max_new": 4,
    }
    run = build(from_dict({"method": "grpo", "task": task, "policy": {"name": f"hf:{model}"}, "steps": 1}))
    (shown,) = [text for label, text in plan_lines(run) if label == "prompt"]
    assert shown in {repr(f"<|im_start|>user\n{w}<|im_end|>\n<|im_start|>assistant\n") for w in ("hi", "ho")}
