"""The command line: what it prints, and how it refuses."""

import json

import pytest
import tiny
import yaml

import anypo


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("llama")


SHORT = ("--task", "bandit", "--steps", "3", "--out", "run")


def test_train_evaluate_and_resume_print_what_they_promise(call, tmp_path):
    code, out, _ = call("train", "grpo", *SHORT)
    assert code == 0
    assert out[-1].startswith("run  reward ")
    assert " -> " in out[-1]
    assert any(line.startswith("batch") and "8 starts x 8 samples = 64 rows" in line for line in out)
    after = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["eval/reward"]
    code, out, _ = call("evaluate", "run")
    assert (code, float(out[-1])) == (0, pytest.approx(after, rel=1e-5))
    code, out, _ = call("resume", "run")
    assert code == 0
    assert "finished" in out[0]


def test_a_run_of_a_language_model_can_be_sampled_and_loads_with_transformers(call, tmp_path, model):
    from transformers import AutoModelForCausalLM

    (tmp_path / "p.jsonl").write_text('{"prompt": "the cat"}\n{"prompt": "the hat"}\n{"prompt": "a mat"}\n' * 4)
    code, _, error = call(
        "train", "rloo", "--task", "jsonl:p.jsonl", "--reward", "regex:a", "--task.max_new", 5, "--policy", f"hf:{model}",
        "--collect.requests", 2, "--collect.samples", 2, "--steps", 1, "--out", "run",
    )  # fmt: skip
    assert (code, error) == (0, "")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model") is not None
    code, out, _ = call("sample", "run", "the cat", "-n", 3)
    assert code == 0
    assert [line for line in out if line.startswith("--- ")] == ["--- 1", "--- 2", "--- 3"]
    code, out, _ = call("sample", "run", "the cat", "--tokens")
    assert code == 0
    assert "|" in out[0]
    (tmp_path / "p.jsonl").write_text('{"prompt": "another"}\n{"prompt": "file"}\n')
    assert "not those the run in run started with" in call("evaluate", "run")[2]


def test_metrics_reach_tensorboard(call, tmp_path):
    assert call("train", "grpo", *SHORT, "--trackers", "tensorboard")[0] == 0
    assert list((tmp_path / "run").glob("events.out.tfevents*"))


def test_flags_are_paths_of_the_yaml_file(call, tmp_path):
    assert (
        call(
            "train", "grpo", *SHORT, "--trust.low", "1e-1", "--credit.baseline.scale", "none", "--set", "step.epochs=2"
        )[0]
        == 0
    )
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["trust"]["low"] == 0.1
    assert written["credit"][1]["scale"] is None
    assert written["step"]["epochs"] == 2
    assert call("train", "run/config.yaml", "--out", "again")[0] == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == (tmp_path / "again" / "metrics.jsonl").read_text()


def test_the_plan_names_settings_that_cannot_act_and_what_a_replacement_changes(call):
    _, out, _ = call("train", "grpo", *SHORT, "--step.minibatch", "none", "--reduce.over", "token", "--trust.low", 0.1)
    text = " ".join(out)
    assert "cannot bind" in text
    assert "trust: clip(low=0.1, high=0.2) changes the gradient" in text
    assert "reduce: mean(over=token) changes the gradient" in text


def test_compare_writes_table_and_picture_and_does_not_repeat_runs(call, tmp_path):
    command = ("compare", "reinforce", "grpo", "--task", "bandit", "--seeds", 2, "--steps", 8, "--out", "c")
    assert call(*command)[0] == 0
    table = json.loads((tmp_path / "c" / "table.json").read_text())
    rows = {row["method"]: row for row in table["methods"]}
    assert set(rows) == {"reinforce", "grpo"}
    assert 0 <= rows["grpo"]["improves"] <= 1
    assert rows["grpo"]["interval"][0] <= rows["grpo"]["iqm"] <= rows["grpo"]["interval"][1]
    assert (tmp_path / "c" / "learning-curve.png").stat().st_size > 1000
    before = (tmp_path / "c" / "grpo-1" / "metrics.jsonl").stat().st_mtime_ns
    assert call(*command)[0] == 0
    assert (tmp_path / "c" / "grpo-1" / "metrics.jsonl").stat().st_mtime_ns == before


def test_a_method_is_compared_with_itself_under_other_settings(call, tmp_path):
    flags = ("--task", "bandit", "--seeds", 1, "--steps", 3, "--out", "c")
    other = "grpo:step.lr=0.5,trust.high=0.3"
    assert call("compare", "grpo", other, *flags)[0] == 0
    rows = json.loads((tmp_path / "c" / "table.json").read_text())["methods"]
    assert [row["method"] for row in rows] == ["grpo", other]
    configs = [
        yaml.safe_load((tmp_path / "c" / name / "config.yaml").read_text())
        for name in ("grpo-0", "grpo-step.lr-0.5-trust.high-0.3-0")
    ]
    assert [config["step"]["lr"] == 0.5 for config in configs] == [False, True]
    assert configs[1]["trust"]["high"] == 0.3
    code, _, errors = call("compare", "grpo", "grpo:trust.hihg=0.3", *flags)
    assert code == 2
    assert "hihg" in errors


def test_methods_as_json_say_what_each_changes(call):
    code, out, _ = call("methods", "--json")
    cards = {card["id"]: card for card in json.loads("\n".join(out))}
    assert code == 0
    assert sorted(name for name, card in cards.items() if card["kind"] == "method") == anypo.methods()
    assert cards["minpro"]["base"] == "cispo"
    assert cards["minpro"]["changed"] == ["ratio"]
    assert cards["minpro"]["stages"]["ratio"] == ["min-prefix"]
    assert set(cards["dapo"]["changed"]) == {"collect", "credit", "trust", "reduce", "terms"}


@pytest.mark.parametrize(
    "command",
    [("--help",), ("train", "--help"), ("parts",), ("parts", "--stage", "trust", "--json"), ("tasks",), ("methods",)],
)
def test_what_there_is_can_be_listed(call, command):
    code, out, _ = call(*command)
    assert code == 0
    assert out


def test_explain_marks_the_changed_stages(call):
    _, out, _ = call("explain", "gspo")
    assert any(line.strip().startswith("* ratio") for line in out)
    _, out, _ = call("explain", "gspo", "--json")
    assert json.loads("\n".join(out))["equation"]


REFUSED = {
    "unknown method": (("train", "grppo"), "unknown method 'grppo'; did you mean 'grpo'?"),
    "unknown part": (("train", "grpo", "--trust", "clp"), "unknown trust part 'clp'; did you mean 'clip'?"),
    "unknown setting": (("train", "grpo", "--trust.lo", "1"), "did you mean 'low'?"),
    "wrong type": (("train", "grpo", "--trust.low", "much"), "trust.low is 'much'; it takes a number"),
    "unknown task": (("train", "grpo", "--task", "sum"), "unknown task 'sum'; did you mean 'sums'?"),
    "unknown task option": (("train", "grpo", "--task", "bandit", "--task.arm", "3"), "did you mean 'arms'?"),
    "unknown policy": (("train", "grpo", "--policy", "mpl"), "unknown policy 'mpl'; did you mean 'mlp'?"),
    "policy of another kind": (("train", "grpo", "--policy", "mlp"), "cannot act in the task sums"),
    "unknown flag": (("train", "grpo", "--sede", "1"), "did you mean '--seed'?"),
    "unknown key": (("train", "bad.yaml"), "unknown key 'sedd'; did you mean 'seed'?"),
    "no steps": (("train", "grpo", "--steps", "-3"), "steps is -3, it must be at least 1"),
    "unknown environment": (("train", "ppo", "--task", "gym:CartPol-v1"), "CartPole-v1"),
    "action space": (("train", "ppo", "--task", "gym:Odd-v0"), "action space"),
    "missing yaml": (("train", "nothing.yaml"), "there is no file nothing.yaml"),
    "missing data": (
        ("train", "grpo", "--task", "jsonl:no.jsonl", "--reward", "exact", "--policy", "MODEL"),
        "no.jsonl",
    ),
    "malformed line": (
        ("train", "grpo", "--task", "jsonl:bad.jsonl", "--reward", "exact", "--policy", "MODEL"),
        "bad.jsonl line 2",
    ),
    "empty data": (
        ("train", "grpo", "--task", "jsonl:empty.jsonl", "--reward", "exact", "--policy", "MODEL"),
        "empty.jsonl",
    ),
    "no reward": (("train", "grpo", "--task", "jsonl:ok.jsonl", "--policy", "MODEL"), "has no reward: --reward"),
    "no policy": (("train", "grpo", "--task", "jsonl:ok.jsonl", "--reward", "exact"), "--policy hf:NAME_OR_DIR"),
    "no reward file": (
        ("train", "grpo", "--task", "jsonl:ok.jsonl", "--reward", "no.py:f", "--policy", "MODEL"),
        "no.py",
    ),
    "no reward function": (
        ("train", "grpo", "--task", "jsonl:ok.jsonl", "--reward", "r.py:nam", "--policy", "MODEL"),
        "r.py has no reward 'nam'; it has nan",
    ),
    "long prompt": (
        ("train", "grpo", "--task", "jsonl:long.jsonl", "--reward", "exact", "--policy", "MODEL"),
        "long.jsonl line 2",
    ),
    "no chat template": (
        ("train", "grpo", "--task", "jsonl:chat.jsonl", "--reward", "exact", "--policy", "PLAIN"),
        "chat template",
    ),
    "no model": (("train", "grpo", "--task", "jsonl:ok.jsonl", "--reward", "exact", "--policy", "hf:./no"), "no"),
    "no ratio": (("train", "ppo", "--task", "bandit", "--ratio", "none"), "needs a ratio"),
    "no device": (("train", "ppo", "--task", "bandit", "--device", "banana"), "unknown device 'banana'"),
    "no run": (("evaluate", "nowhere"), "holds no run"),
    "unwritable": (("train", "grpo", "--task", "bandit", "--out", "/proc/run"), "/proc/run"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory, model):
    """A model whose tokenizer has no chat template."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("plain")
    tiny.tokenizer(folder, chat=False)
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(folder)
    return folder


@pytest.fixture
def files(tmp_path, model, plain):
    row = '{"prompt": "the cat", "answer": "a"}\n'
    (tmp_path / "ok.jsonl").write_text(row.replace("cat", "hat") + row + row.replace("cat", "mat"))
    (tmp_path / "bad.jsonl").write_text(row + '{"prompt": \n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "long.jsonl").write_text(row + json.dumps({"prompt": "the cat " * 60, "answer": "a"}) + "\n" + row)
    (tmp_path / "chat.jsonl").write_text(
        "".join(json.dumps({"prompt": [{"role": "user", "content": f"{i}"}], "answer": "a"}) + "\n" for i in range(9))
    )
    (tmp_path / "bad.yaml").write_text("method: grpo\nsedd: 1\n")
    (tmp_path / "r.py").write_text(
        "import time\n"
        "def nan(completions, **k): return [float('nan')] * len(completions)\n"
        "def short(completions, **k): return [1.0]\n"
        "def raises(completions, **k): raise KeyError('gold')\n"
        "def hangs(completions, **k): time.sleep(60)\n"
    )
    return {"MODEL": f"hf:{model}", "PLAIN": f"hf:{plain}"}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_ends_in_one_sentence_and_leaves_nothing(call, files, tmp_path, case):
    import gymnasium

    if "Odd-v0" not in gymnasium.registry:
        gymnasium.register("Odd-v0", entry_point=Odd)
    command, sentence = REFUSED[case]
    existing = set(tmp_path.iterdir())
    code, _, error = call(*[files.get(word, word) for word in command])
    assert code == 2
    assert error.count("\n") == 1
    assert error.startswith("anypo: ")
    assert sentence in error
    assert {p for p in tmp_path.iterdir() if p.name != "__pycache__"} <= existing


class Odd:
    """An environment whose actions are texts."""

    def __new__(cls, **_):
        import gymnasium

        class Env(gymnasium.Env):
            observation_space = gymnasium.spaces.Box(0, 1, (2,))
            action_space = gymnasium.spaces.Text(3)

        return Env()


@pytest.mark.parametrize("reward", ["nan", "short", "raises", "hangs"])
def test_a_reward_that_fails_during_a_run_ends_it_in_one_sentence(call, files, reward):
    code, _, error = call(
        "train", "grpo", "--task", "jsonl:ok.jsonl", "--reward", f"r.py:{reward}", "--policy", files["MODEL"],
        "--task.timeout", "1.0", "--task.max_new", 4, "--steps", 1,
    )  # fmt: skip
    assert code == 1
    assert error.count("\n") == 1
    assert reward in error


def test_verify_prints_effect_interval_and_verdict_and_records_only_when_asked(call, tmp_path):
    code, out, _ = call("verify", "rloo", "--seeds", "3-4")
    assert code == 0
    assert out[0].startswith("rloo: 12 of 12 properties")
    assert "2 seeds" in out[1]
    assert out[-1].startswith("1 entries: 0 properties failed")
    assert not (tmp_path / "evidence").exists()
    code, _, _ = call("verify", "rloo", "--seeds", "2", "--record", "--ledger", "evidence/ledger.json")
    ledger = json.loads((tmp_path / "evidence" / "ledger.json").read_text())
    assert code == 0
    assert ledger["methods"]["rloo"]["seeds"] == [0, 1]
    code, out, _ = call("explain", "rloo")  # the ledger of the working folder comes first
    assert any(line.startswith("Verdict") for line in out)
    assert any("2 seeds" in line for line in out)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("verify",), "name methods or procedures, or give --family F, or --all"),
        (("verify", "grpo", "--all"), "name methods or procedures, or give --family F, or --all"),
        (("verify", "grop"), "did you mean 'grpo'"),
        (("verify", "--family", "advantages"), "did you mean 'advantage'"),
        (("verify", "grpo", "--seeds", "ten"), "--seeds takes a number or a range"),
        (("verify", "grpo", "--seeds", "4-4"), "--seeds 4-4 names one seed, which gives no interval; name two or more"),
        (("verify", "grpo", "--quick", "--record"), "leave --quick out"),
    ],
)
def test_verify_refuses_in_one_sentence(call, words, sentence):
    code, _, error = call(*words)
    assert code == 2
    assert sentence in error
    assert len(error.splitlines()) == 1


def test_the_microscope_prints_gain_and_names_the_dead_term(call, tmp_path):
    code, out, _ = call("microscope", "mhpo", "--png", "w.png")
    assert code == 0
    assert any("on-policy gain 0.265" in line for line in out)
    assert (tmp_path / "w.png").exists()
    _, out, _ = call("microscope", "safe", "--terms.entropy-gated-kl.detached", "true")
    assert any(line.startswith("DEAD: terms: entropy-gated-kl") for line in out)
    _, out, _ = call("microscope", "mhpo", "--json")
    assert json.loads("\n".join(out))["gain"] == pytest.approx(0.2651, abs=1e-3)


def test_methods_carry_their_recorded_evidence(call):
    code, out, _ = call("methods", "--json")
    found = [card for card in json.loads("\n".join(out)) if card["kind"] == "method"]
    assert code == 0
    assert all(card["evidence"]["properties"]["passed"] == card["evidence"]["properties"]["of"] for card in found)
    assert {card["evidence"]["verdict"] for card in found} == {"supported", "mixed", "not supported at this scale"}
    assert all(len(card["evidence"]["interval"]) == 2 for card in found)


def test_matched_gains_lengthen_the_steps_of_a_method_whose_gradient_is_short(call, tmp_path):
    flags = ("--task", "bandit", "--steps", "2", "--seeds", "1", "--match-gain", "--out", "c")
    code, _, _ = call("compare", "grpo", "mhpo", *flags)
    rates = [
        yaml.safe_load((tmp_path / "c" / f"{m}-0" / "config.yaml").read_text())["step"]["lr"] for m in ("grpo", "mhpo")
    ]
    assert code == 0
    assert rates[0] == pytest.approx(0.05)
    assert rates[1] == pytest.approx(0.05 / 0.2651, rel=1e-3)
