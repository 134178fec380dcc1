"""Losses and gradients of TRL's own trainers on a small model and the same tokens. Skipped where TRL is not installed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from entries import entries

import anypo
from anypo.parts.ratio import LogRatio
from anypo.parts.trust import PairContrast
from anypo.policies.language.model import LanguageModel
from anypo.types import Trajectories

pytest.importorskip("trl")
pytestmark = pytest.mark.known
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

WORDS = ("cat", "hat", "mat", "flat", "that is", "said the")
ROWS = [
    {"prompt": f"the {w}", "chosen": f" sat on {w}" * (1 + i % 2), "rejected": f" 1{w}"} for i, w in enumerate(WORDS)
]
MARKS = [
    {"prompt": r["prompt"], "completion": r[k], "label": k == "chosen"} for r in ROWS for k in ("chosen", "rejected")
]
SHORT = {
    "per_device_train_batch_size": 6,
    "report_to": [],
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
}


@pytest.fixture(scope="module")
def models(tiny_model: Callable[..., Path]) -> tuple[LanguageModel, LanguageModel]:
    """A policy and a reference that differ."""
    policy, reference = (LanguageModel.load(tiny_model("qwen2", kind="char", seed=seed)) for seed in (0, 1))
    return policy, reference


def trainer(
    kind: Any, config: Any, models: tuple[LanguageModel, LanguageModel], folder: Path, rows: list, **settings: Any
):
    from datasets import Dataset

    policy, ref = models
    more = {"ref_model": ref.model} if "beta" in settings and kind.__name__ in ("DPOTrainer", "KTOTrainer") else {}
    args = config(output_dir=str(folder), **SHORT, **settings)
    return kind(
        model=policy.model, args=args, train_dataset=Dataset.from_list(rows), processing_class=policy.tokenizer, **more
    )


def batch(models: tuple[LanguageModel, LanguageModel], ids: Any, attended: Any, answered: Any) -> Trajectories:
    """Rows of token ids as anypo reads them, with the reference's log-probabilities; answers are where `answered` is 1."""
    policy, ref = models
    prompts, answers = [], []
    for row, real, said in zip(ids.tolist(), attended.tolist(), answered.tolist(), strict=True):
        prompts.append([x for x, a, s in zip(row, real, said, strict=True) if a and not s])
        answers.append([x for x, a, s in zip(row, real, said, strict=True) if a and s])
    b = policy.pack(prompts, answers)
    with torch.no_grad():
        return b.but(logp_ref=ref.evaluate(b, {"logp"})["logp"])


def halves(b: Trajectories) -> Trajectories:
    """Chosen rows first, then the rejected ones of the same pairs."""
    n = b.shape[0] // 2
    return b.but(group=torch.arange(n).repeat(2)).put({"preferred": torch.tensor([1.0, 0.0]).repeat_interleave(n)})


def agree(policy: LanguageModel, method: anypo.Method, b: Trajectories, theirs: torch.Tensor) -> None:
    parameters = list(policy.model.parameters())
    wanted = torch.autograd.grad(theirs, parameters)
    ours, _ = method.loss(b.but(logp=policy.evaluate(b, {"logp"})["logp"]))
    found = torch.autograd.grad(ours, parameters)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=2e-5, abs=1e-6)
    scale = max(float(g.abs().max()) for g in wanted)
    assert scale > 0
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=2e-3, atol=2e-4 * scale)


MEAN_REF, SUM_REF = LogRatio("row", "mean", "ref"), LogRatio("row", "sum", "ref")
DPO = {
    "dpo": ("sigmoid", {"beta": 0.1}, lambda: anypo.method("dpo")),
    # TRL divides the log-ratios of IPO by the answers' lengths; the paper and this library sum them
    "ipo of means": ("ipo", {"beta": 0.1}, lambda: anypo.method("ipo", ratio=MEAN_REF)),
    "slic's hinge against the reference": (
        "hinge",
        {"beta": 0.3},
        lambda: anypo.method("slic", ratio=SUM_REF, trust=PairContrast("hinge", 0.3, 1.0), terms=[]),
    ),
}


@pytest.mark.parametrize("name", entries(DPO, lambda name: DPO[name][2]().card.id))
def test_dpo_trainer(name: str, models: tuple[LanguageModel, LanguageModel], tmp_path: Path) -> None:
    from trl import DPOConfig, DPOTrainer

    kind, settings, method = DPO[name]
    made = trainer(DPOTrainer, DPOConfig, models, tmp_path, ROWS, loss_type=kind, **settings)
    inputs = next(iter(made.get_train_dataloader()))
    b = halves(batch(models, inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"]))
    agree(models[0], method(), b, made.compute_loss(made.model, inputs))


@pytest.mark.entry("kto")
def test_kto_trainer(models: tuple[LanguageModel, LanguageModel], tmp_path: Path) -> None:
    from trl import KTOConfig, KTOTrainer

    made = trainer(KTOTrainer, KTOConfig, models, tmp_path, MARKS, beta=0.1)
    inputs = next(iter(made.get_train_dataloader()))
    swapped = batch(models, inputs["KL_input_ids"], inputs["KL_attention_mask"], inputs["KL_completion_mask"])
    with torch.no_grad():
        now = models[0].evaluate(swapped, {"logp"})["logp"]
    shift = (now - swapped.logp_ref).sum(1)
    b = batch(models, inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"])
    b = b.but(group=torch.arange(b.shape[0])).put({"preferred": torch.as_tensor(inputs["label"]).float()})
    method = anypo.method("kto")
    b = method.prepare(b.put({"mismatched": shift, "mismatched_ref": torch.zeros_like(shift)}))
    assert b.extra["kl_shift"][0] == shift.mean().clamp(min=0.0)
    agree(models[0], method, b, made.compute_loss(made.model, inputs))


CPO = {
    "simpo": ({"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0}, lambda: anypo.method("simpo")),
    "cpo-contrastive": (
        {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 1.0},
        lambda: anypo.method("cpo-contrastive"),
    ),
    "slic's hinge": ({"loss_type": "hinge", "beta": 1.0, "cpo_alpha": 0.0}, lambda: anypo.method("slic", terms=[])),
}


def concatenated(models: tuple[LanguageModel, LanguageModel], inputs: dict[str, Any]) -> Trajectories:
    """Chosen rows below rejected ones of a batch with columns for each."""
    pad = torch.nn.utils.rnn.pad_sequence
    names = ("chosen", "rejected")
    ids, attended, labels = (
        pad([row for name in names for row in inputs[f"{name}_{what}"]], batch_first=True, padding_value=fill)
        for what, fill in (("input_ids", 0), ("attention_mask", 0), ("labels", -100))
    )
    return halves(batch(models, ids, attended, labels != -100))


@pytest.mark.parametrize("name", entries(CPO, lambda name: CPO[name][1]().card.id))
def test_cpo_trainer(name: str, models: tuple[LanguageModel, LanguageModel], tmp_path: Path) -> None:
    cpo = pytest.importorskip("trl.experimental.cpo")
    settings, method = CPO[name]
    made = trainer(cpo.CPOTrainer, cpo.CPOConfig, models, tmp_path, ROWS, **settings)
    inputs = next(iter(made.get_train_dataloader()))
    agree(models[0], method(), concatenated(models, inputs), made.compute_loss(made.model, inputs))


@pytest.mark.entry("orpo-odds")
def test_orpo_trainers_odds(models: tuple[LanguageModel, LanguageModel], tmp_path: Path) -> None:
    """The odds term alone: TRL's imitation term counts the prompt's tokens too."""
    orpo = pytest.importorskip("trl.experimental.orpo")
    made = trainer(orpo.ORPOTrainer, orpo.ORPOConfig, models, tmp_path, ROWS, beta=0.1)
    inputs = next(iter(made.get_train_dataloader()))
    chosen, rejected = made.concatenated_forward(made.model, inputs)[:2]
    theirs = -made.odds_ratio_loss(chosen, rejected)[0].mean()
    agree(models[0], anypo.method("orpo-odds", terms=[]), concatenated(models, inputs), theirs)


@pytest.mark.entry("bt-rm")
def test_reward_trainer_loss(tmp_path: Path, tiny_model: Callable[..., Path]) -> None:
    """TRL's RewardTrainer on a sequence classifier; the same scores through bt-rm."""
    from datasets import Dataset
    from transformers import Qwen2ForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    folder = tiny_model("qwen2", kind="char")
    torch.manual_seed(0)
    model = Qwen2ForSequenceClassification.from_pretrained(folder, num_labels=1)
    tokenizer = LanguageModel.load(folder).tokenizer
    args = RewardConfig(output_dir=str(tmp_path), **SHORT)
    made = RewardTrainer(model=model, args=args, train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer)
    inputs = next(iter(made.get_train_dataloader()))
    with torch.no_grad():
        scores = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, 0]
        theirs = made.compute_loss(model, inputs)
    w, l = scores.chunk(2)  # noqa: E741
    ours, _ = anypo.method("bt-rm").loss(anypo.Comparisons(score_chosen=w, score_rejected=l))
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
