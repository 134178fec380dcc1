"""Heads are made of pieces: each piece by hand, its names in configurations, and the names critic parts had before."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor
from typer.testing import CliRunner

import anypo
from anypo import Trajectories
from anypo.cli.app import app
from anypo.config import from_dict, merge
from anypo.errors import UsageError
from anypo.flags import parse_flags
from anypo.numbers import TracedScalar
from anypo.parts.critic import (
    ActionValue,
    Conservative,
    DoubleGreedyAction,
    DualValue,
    EnsembleMin,
    Expectile,
    GaussianReturn,
    GreedyAction,
    Gumbel,
    Huber,
    NextState,
    OneStep,
    PolicySample,
    RandomSubset,
    SoftBackup,
    Squared,
    StateValue,
    TargetAction,
)
from anypo.parts.knobs import Clock, Linear, Temperature
from anypo.parts.ops.settings import all_settings, change_settings
from anypo.parts.registry import build_stage, describe
from anypo.policies.control.off_policy import Deterministic
from anypo.runs.settings import spec_of

F64 = torch.float64


def f64(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=F64)


def critic(method: str, *flags: str) -> Any:
    """The critic chain of `anypo train METHOD FLAGS`."""
    _, values = parse_flags(list(flags))
    return anypo.method(method).configure(from_dict({"method": method, **values}).stages).stages["critic"]


# ------------------------------------------------------------------------------------------------ pieces by hand


@pytest.mark.parametrize(
    ("regress", "wanted"),
    [
        (Squared(), [2.0, 0.125]),
        (Squared(coef=1.0), [4.0, 0.25]),
        (Huber(1.0), [1.5, 0.125]),
        (Expectile(t=0.9), [0.1 * 4, 0.9 * 0.25]),
        (Gumbel(beta=0.5, clip=None, scaled=False), [math.exp(-4) + 3, math.e - 2]),
        (DualValue(lam=0.7), [0.3 * 2, 0.7 * 0.5 - 0.3 * 0.5]),
    ],
    ids=lambda x: type(x).__name__,
)
def test_a_regression_of_2_below_and_a_half_above_by_hand(regress: Any, wanted: list[float]) -> None:
    """f of the values 3 and 1 with the targets 1 and 1.5."""
    b = Trajectories(mask=torch.ones(1, 2, dtype=torch.bool))
    found = regress.f(f64([3.0, 1.0]), f64([1.0, 1.5]), b)
    torch.testing.assert_close(found, f64(wanted))


def test_a_head_of_any_name_reads_and_names_its_own_fields() -> None:
    head = ActionValue("cost", PolicySample(), SoftBackup(0.5, alpha=2.0), penalties=(Conservative(1.0, draws=None),))
    assert set(head.networks) == {"cost"}
    assert set(head.live) == {"cost", "cost_all"}
    assert set(head.views) == {"cost_next", "cost_next_logp"}
    fields = {"cost": f64([[0.0]]), "cost_all": f64([[[0.0], [0.0]]]), "cost_next": f64([[4.0]])}
    b = Trajectories(mask=torch.ones(1, 1, dtype=torch.bool), reward=f64([1.0])).put(
        fields | {"cost_next_logp": f64([1.0]), "terminal": f64([0.0])}
    )
    loss, metrics = head(b)
    assert float(metrics["cost_loss"]) == pytest.approx((1 + 0.5 * (4 - 2)) ** 2 / 2)
    assert float(loss) == pytest.approx(2.0 + math.log(2))


def test_pieces_that_do_not_fit_are_refused_in_one_sentence() -> None:
    with pytest.raises(UsageError, match="needs a sampled next action, `policy-sample`, not `greedy-action`"):
        ActionValue(next=GreedyAction(), backup=SoftBackup())
    with pytest.raises(UsageError, match="needs a next action that is proposed, not `next-state"):
        ActionValue(next=NextState(), regress=GaussianReturn())
    with pytest.raises(UsageError, match="is for an ensemble of 2"):
        ActionValue(regress=GaussianReturn(), ensemble=3)


@pytest.mark.parametrize("kind", ["next", "aggregate", "regress"])
def test_only_the_backup_may_be_none(kind: str) -> None:
    with pytest.raises(UsageError, match=f"the head 'q' needs a part of the kind '{kind}'"):
        critic("td3", f"--critic.q.{kind}", "none")
    assert critic("td3", "--critic.q.backup", "none")[0].backup is None


def test_a_deterministic_policy_refuses_pieces_that_sample_in_one_sentence() -> None:
    box = spaces.Box(-1.0, 1.0, (2,))
    policy = Deterministic(box, box, hidden=(8,))
    b = Trajectories(mask=torch.ones(1, 1, dtype=torch.bool), trace={"obs": torch.zeros(1, 1, 2)})
    for draw in (PolicySample().draw, Conservative().proposals["here"]):
        noise = policy.noise(b, draw, torch.Generator())
        with pytest.raises(UsageError, match="a deterministic policy proposes one"):
            policy.propose(b, draw, noise)


def test_the_level_of_a_head_is_the_largest_of_its_pieces() -> None:
    assert StateValue().level == "decision"
    assert StateValue(regress=Gumbel()).level == "batch"


def test_a_head_without_a_backup_regresses_on_the_recorded_actions_value_alone() -> None:
    assert set(StateValue().reads) == {"v", "q_taken"}
    assert set(StateValue(next=NextState("u"), backup=OneStep()).reads) == {"v", "u_next", "reward", "terminal"}


# ------------------------------------------------------------------------------------------------ settings of pieces


def test_knobs_of_pieces_are_knobs_of_the_method_and_are_traced() -> None:
    alpha, clock = Temperature(), Clock()
    method = anypo.method(
        "sac", critic=[ActionValue("q", PolicySample(), SoftBackup(alpha=alpha), RandomSubset(2, clock))]
    )
    paths = dict(method.knobs())
    assert paths["critic.0.backup.alpha"] is alpha
    assert paths["critic.0.aggregate.clock"] is clock
    (head,) = method.stages["critic"]
    value = TracedScalar(torch.tensor(3.0))
    traced = change_settings(head, lambda x: value if x is alpha else x)
    assert traced.backup.alpha is value
    assert traced.aggregate is head.aggregate
    assert change_settings(head, lambda x: x) is head


def test_settings_are_listed_with_those_of_pieces() -> None:
    head = ActionValue(next=TargetAction(0.1, 0.2), penalties=(Conservative(3.0),))
    settings = dict(all_settings(head))
    assert settings["next.noise"] == 0.1
    assert settings["penalties.0.alpha"] == 3.0
    assert "next" not in settings
    assert "critic.q.backup.gamma" in anypo.method("sac").setting_paths("gamma")


@pytest.mark.parametrize("learner", ["sac", "td3", "dqn", "iql", "cql", "xql", "dsac-t", "a2pr", "rlpd"])
def test_heads_written_as_configuration_build_themselves_again(learner: str) -> None:
    method = anypo.method(learner)
    again = method.configure({"critic": spec_of("critic", method)})
    assert again.texts()["critic"] == method.texts()["critic"]


@pytest.mark.parametrize(
    ("learner", "flags", "wanted"),
    [
        ("td3", ["--critic.q.next.noise", "0.1"], ActionValue("q", TargetAction(0.1, 0.5), every=2)),
        ("dqn", ["--critic.q.next", "double-greedy-action"], "double-greedy-action"),
        ("dqn", ["--critic.next", "double-greedy-action"], "double-greedy-action"),
        ("sac", ["--critic.q.next", "target-action", "--critic.q.next.noise", "0.1", "--critic.q.backup", "one-step"], "noise=0.1"),
        ("td3", ["--critic.q.regress", "huber", "--critic.q.regress.delta", "3"], "regress=huber(delta=3)"),
        ("sac", ["--critic.q.penalties", "conservative", "--critic.q.penalties.alpha", "2"], "conservative(alpha=2"),
        ("cql", ["--critic.q.penalties.conservative.alpha", "2"], "conservative(alpha=2"),
        ("cql", ["--critic.q.penalties", "none"], ActionValue("q", PolicySample())),
        ("iql", ["--critic.v.regress.t", "0.9"], "expectile(t=0.9)"),
        ("iql", ["--critic.v.regress", "gumbel"], "gumbel(beta=2, clip=7, scaled=True)"),
    ],
)  # fmt: skip
def test_pieces_are_chosen_and_changed_from_the_command_line(learner: str, flags: list[str], wanted: Any) -> None:
    chain = critic(learner, *flags)
    if isinstance(wanted, str):
        assert wanted in " -> ".join(map(describe, chain))
    else:
        assert chain == (wanted,)


def test_settings_of_a_piece_go_over_its_name_in_a_file() -> None:
    layers = merge(
        {"critic": [{"part": "action-value", "next": "target-action"}]}, {"critic": {"q": {"next": {"noise": 1}}}}
    )
    assert layers["critic"] == [{"part": "action-value", "next": {"part": "target-action", "noise": 1}}]


def test_a_wrong_setting_of_a_piece_is_refused_in_one_sentence() -> None:
    with pytest.raises(UsageError, match="unknown setting of the next part 'policy-sample': 'noise'"):
        critic("sac", "--critic.q.next.noise", "0.1")
    with pytest.raises(UsageError, match=r"backup.gamma is 2, it must be from 0 to 1"):
        critic("sac", "--critic.q.backup.gamma", "2")
    with pytest.raises(UsageError, match="unknown next part 'greedy-actoin'; did you mean 'greedy-action'"):
        critic("dqn", "--critic.q.next", "greedy-actoin")


# ------------------------------------------------------------------------------------------------ former names


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("td", ActionValue()),
        ({"part": "td", "next": "policy", "alpha": 0.2, "noise": 0.0, "clip": 0.0, "subset": None, "clock": 0.0, "huber": None},
         ActionValue(backup=SoftBackup(alpha=0.2))),
        ({"part": "td", "next": "policy", "alpha": 0.0}, ActionValue()),
        ({"part": "td", "next": "target", "noise": 0.2, "clip": 0.5, "gamma": 0.9, "every": 2},
         ActionValue(next=TargetAction(0.2, 0.5), backup=OneStep(0.9), every=2)),
        ({"part": "td", "next": "target"}, ActionValue(next=TargetAction())),
        ({"part": "td", "next": "max", "alpha": 0.0, "ensemble": 1, "huber": 1.0, "tau": 1.0, "every": 128},
         ActionValue(next=GreedyAction(), regress=Huber(1.0), ensemble=1, tau=1.0, every=128)),
        ({"part": "td", "next": "double"}, ActionValue(next=DoubleGreedyAction())),
        ({"part": "td", "next": "value", "noise": 0.0, "norm": True}, ActionValue(next=NextState(), norm=True)),
        ({"part": "td", "subset": 2, "clock": 3.0, "ensemble": 10}, ActionValue(aggregate=RandomSubset(2, 3.0), ensemble=10)),
        ({"part": "expectile", "t": 0.8}, StateValue(regress=Expectile(0.8))),
        ({"part": "gumbel", "beta": 1.0, "norm": True}, StateValue(regress=Gumbel(1.0), norm=True)),
        ({"part": "dual-value", "f_divergence": "chi2"}, StateValue(regress=DualValue(f_divergence="chi2"))),
        ({"part": "policy-value", "noise": 0.1},
         StateValue(next=TargetAction(0.1, 0.5, by="both", head="q"), backup=OneStep(), regress=Squared(1.0))),
        ({"part": "gaussian-td", "alpha": 0.1, "rate": 0.5, "every": 2},
         ActionValue(next=PolicySample("target"), backup=SoftBackup(alpha=0.1), regress=GaussianReturn(rate=0.5), every=2)),
    ],
)  # fmt: skip
def test_a_former_part_of_a_chain_is_the_head_it_was(spec: Any, wanted: Any) -> None:
    with pytest.warns(UserWarning, match="is the head '(action|state)-value' now"):
        assert build_stage("critic", [spec]) == (wanted,)


def test_a_former_penalty_joins_the_head_before_it() -> None:
    with pytest.warns(UserWarning, match=r"is a penalty of the head before it now, critic\.q\.penalties"):
        chain = build_stage("critic", ["td", {"part": "conservative", "alpha": 1.0}])
    assert chain == (ActionValue(penalties=(Conservative(1.0),)),)
    with pytest.raises(UsageError, match="is a penalty of a head"):
        build_stage("critic", ["conservative"])


@pytest.mark.parametrize(
    ("learner", "flags", "wanted", "sentence"),
    [
        ("td3", ["--critic.td.noise", "0.1"], TargetAction(0.1, 0.5), "critic.td.noise is critic.q.next.noise now"),
        ("td3", ["--critic.noise", "0.1"], TargetAction(0.1, 0.5), "critic.td.noise is critic.q.next.noise now"),
        ("td3", ["--critic.0.gamma", "0.9"], OneStep(0.9), "critic.td.gamma is critic.q.backup.gamma now"),
        ("dqn", ["--critic.td.next", "double"], DoubleGreedyAction(), "critic.td.next is critic.q.next now"),
        ("dqn", ["--critic.next", "double"], DoubleGreedyAction(), "critic.td.next is critic.q.next now"),
        ("dqn", ["--critic.td.huber", "none"], Squared(), "critic.td.huber is critic.q.regress.delta now"),
        ("rlpd", ["--critic.td.subset", "none"], EnsembleMin(), "critic.td.subset is critic.q.aggregate.size now"),
        ("awac", ["--critic.td.alpha", "0.2", "--critic.td.gamma", "0.9"], SoftBackup(0.9, 0.2),
         "critic.td.alpha is critic.q.backup.alpha now"),
        ("sac", ["--critic.td.gamma", "0.9", "--critic.td.alpha", "0"], OneStep(0.9), "critic.td.alpha is critic.q.backup.alpha"),
        ("sac", ["--critic.td.next", "value"], NextState(), "critic.td.next is critic.q.next now"),
        ("iql", ["--critic.expectile.t", "0.9"], Expectile(0.9), "critic.expectile.t is critic.v.regress.t now"),
        ("iql", ["--critic.td.gamma", "0.9"], OneStep(0.9), "critic.td.gamma is critic.q.backup.gamma now"),
        ("cql", ["--critic.conservative.alpha", "2"], Conservative(2.0),
         "critic.conservative.alpha is critic.q.penalties.conservative.alpha now"),
        ("dsac-t", ["--critic.gaussian-td.rate", "0.5"], 0.5, "critic.gaussian-td.rate is critic.q.regress.rate now"),
        ("a2pr", ["--critic.policy-value.gamma", "0.9"], OneStep(0.9), "critic.policy-value.gamma is critic.v.backup.gamma now"),
    ],
)  # fmt: skip
def test_a_former_flag_still_works_and_says_the_new_one(
    learner: str, flags: list[str], wanted: Any, sentence: str
) -> None:
    with pytest.warns(UserWarning, match=sentence):
        chain = critic(learner, *flags)
    heads = [head for head in chain if hasattr(head, "pieces")]
    pieces = [
        piece for head in heads for piece in (head.next, head.backup, head.aggregate, head.regress, *head.penalties)
    ]
    assert wanted in pieces or wanted in [value for head in heads for _, value in all_settings(head)]


def test_a_former_setting_with_a_knob_keeps_it() -> None:
    with pytest.warns(UserWarning, match="backup.alpha now"):
        (head,) = critic("awac", "--critic.td.alpha", "{knob: linear, start: 0.5, end: 0.1}")
    assert head.backup == SoftBackup(alpha=Linear(0.5, 0.1))


def test_a_former_setting_that_never_was_is_refused() -> None:
    with (
        pytest.warns(UserWarning, match="is the head 'action-value' now"),
        pytest.raises(UsageError, match="unknown setting of the critic part 'action-value': 'gama'"),
    ):
        build_stage("critic", [{"part": "td", "gama": 0.9}])


def test_pieces_are_listed_with_the_parts() -> None:
    rows = {row["part"]: row for row in json.loads(CliRunner().invoke(app, ["parts", "--json"]).stdout)}
    assert rows["target-action"]["stage"] == "next"
    assert rows["action-value"]["settings"]["regress"] == "squared(coef=0.5)"
    assert rows["action-value"]["takes"]["regress"] == "parts of the kind regress"
    assert rows["state-value"]["settings"]["backup"] is None


@pytest.mark.parametrize("name", ["reward", "logp", "action", "a.b", "", "two words"])
def test_a_head_is_not_called_as_a_field_of_the_batch(name: str) -> None:
    for part in ("action-value", "state-value", "value"):
        with pytest.raises(UsageError, match=f"critic.{part}.head is '{name}', it must be a word of letters"):
            build_stage("critic", [{"part": part, "head": name}])


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ([{"part": ["td"]}], "unknown critic part"),
        ({"q": "none"}, "unknown critic part 'none'"),
        ({0: "nothing"}, "unknown critic part 'nothing'"),
        ({"p": "nothing"}, "unknown setting of the critic part 'action-value': 'p'"),
    ],
)
def test_odd_configurations_of_heads_end_in_one_sentence(spec: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        build_stage("critic", spec, anypo.method("td3").stages["critic"])


def test_a_piece_is_changed_by_the_position_of_its_head() -> None:
    (head,) = build_stage("critic", {"0": {"next": {"noise": 0.1}}}, anypo.method("td3").stages["critic"])
    assert head.next == TargetAction(0.1, 0.5)
