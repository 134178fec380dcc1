"""The laboratory, verdicts, the ledger and the microscope."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from entries import entries
from scipy import stats

import anypo
from anypo import Claim, Method
from anypo.errors import UsageError
from anypo.evidence import verify
from anypo.evidence.experiments.assemble import assemble_in_memory
from anypo.evidence.experiments.registry import CHEAP, EXPERIMENTS, run_experiment
from anypo.evidence.microscope import find_dead_terms, gain, measure_gradient, plot_weights, weight_curve
from anypo.evidence.properties import PROPERTIES, check_properties
from anypo.evidence.toys import Codes, Sequences
from anypo.method.registry import entries as ids
from anypo.method.registry import entry
from anypo.parts.terms import Divergence, EntropyGatedKl
from anypo.types import Request

NAMES = anypo.methods()


@dataclass(frozen=True)
class Biased:
    """Not what the card says, and rows of weight 0 reach the others."""

    level: ClassVar[str] = "decision"
    reads = ("advantage", "logp")

    def __call__(self, x, b):
        return b.advantage * b.logp * (1 + b.logp.detach().mean()), {}


def requests(toy, samples):
    return [Request(start, samples) for start in range(toy.starts)]


# ---------------------------------------------------------------- toys


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"graded": True},
        {"slack": 1},
        {"filler": True},
        {"share": True},
        {"critical": 1, "alive": False},
        {"head": 0.6},
    ],
    ids=str,
)
def test_the_exact_success_of_codes_is_that_of_many_rollouts(settings):
    toy = Codes(problems=4, length=3, symbols=3, seed=1, **settings)
    policy = toy.policy((), 0)
    with torch.no_grad():
        policy.logits.add_(0.7 * torch.randn(policy.logits.shape, generator=torch.Generator().manual_seed(0)))
    exact = toy.evaluate(policy, 0)["success"]
    rows, _ = toy.rollout(policy, requests(toy, 8000), 2)
    sampled = rows.score
    assert float(sampled.mean()) == pytest.approx(exact, abs=4 * float(sampled.std()) / len(sampled) ** 0.5)


def test_the_exact_gradient_of_sequences_is_that_of_the_enumerated_return():
    toy = Sequences(seed=3)
    policy = toy.policy((), 0)
    found = toy.exact_gradient(policy)

    def value(logits):
        total = 0.0
        for symbols in itertools.product(range(3), repeat=3):
            chance, state, width = 1.0, 0, 1
            for t, a in enumerate(symbols):
                place = sum(3**k for k in range(t)) + state
                chance *= float(logits[place].softmax(0)[a])
                state, width = 3 * state + a, 3 * width
            total += chance * float(toy.rewards[state])
        return total

    logits = policy.logits.detach().double()
    for place in ((0, 0), (2, 1), (9, 2)):
        up, down = logits.clone(), logits.clone()
        up[place] += 1e-5
        down[place] -= 1e-5
        assert float(found[place]) == pytest.approx((value(up) - value(down)) / 2e-5, abs=1e-8)


def test_hinted_rows_act_only_where_nothing_was_given():
    toy = Codes(problems=2, length=4, symbols=2)
    asked = [Request(0, 3, hint=0.5), Request(1, 3)]
    rows, _ = toy.rollout(toy.policy((), 0), asked, 0)
    assert rows.lengths.tolist() == [2, 2, 2, 4, 4, 4]


def test_demonstrations_of_full_quality_are_right_and_poor_ones_are_not():
    asked = requests(Codes(), 1)
    for quality, right in ((1.0, True), (0.3, False)):
        toy = Codes(quality=quality)
        rows = toy.demonstrate(toy.policy((), 0), asked)
        assert bool((rows.trace["action"] == toy.codes).all()) == right


def test_a_stale_sampler_is_renewed_only_when_it_is_due():
    toy = Codes(sync=3)
    policy, found = toy.policy((), 0), []
    for _ in range(4):
        rows, _ = toy.rollout(policy, requests(toy, 2), 0)
        found.append(rows.trace["action"])
        with torch.no_grad():
            policy.logits.copy_(5 * torch.randn(policy.logits.shape, generator=torch.Generator().manual_seed(9)))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[3])


@pytest.mark.parametrize("name", [n for n in EXPERIMENTS if n not in ("control", "layers")])
def test_experiments_give_the_same_numbers_again_and_others_for_another_seed(name):
    small = {"repeats": 5} if name in CHEAP and name != "direction" else {"batches": 6}
    small = {"updates": 20} if name == "recovery" else small
    small = {"samples": 64} if name == "selection" else small
    under_test = {"direction": "reinforce", "recovery": "bt-rm", "selection": "best-of-n"}.get(name, "grpo")
    one, two, other = (run_experiment(name, entry(under_test), seed, small) for seed in (0, 0, 1))
    assert one == two
    assert one != other


def test_unknown_experiments_and_settings_are_one_sentence():
    with pytest.raises(UsageError, match="unknown experiment 'stalenes'; did you mean 'staleness'"):
        run_experiment("stalenes", anypo.method("grpo"), 0, {})
    with pytest.raises(UsageError, match="has no such setting"):
        run_experiment("learning", anypo.method("grpo"), 0, {"lenght": 3})


@pytest.mark.slow
def test_reinforce_is_unbiased_on_the_enumerable_problem_and_its_estimate_converges():
    few, many = (run_experiment("gradient", anypo.method("reinforce"), 0, {"repeats": n})["bias"] for n in (20, 2000))
    assert many < few / 3
    assert run_experiment("gradient", anypo.method("reinforce"), 0, {"repeats": 2000})["gain"] == pytest.approx(
        1, abs=0.1
    )


# ---------------------------------------------------------------- claims and verdicts


@pytest.mark.parametrize("name", entries(NAMES))
def test_every_method_states_a_claim_that_the_laboratory_can_run(name):
    claims = anypo.method(name).card.claims
    assert claims
    for claim in claims:
        assert claim.experiment in EXPERIMENTS
        assert claim.against in {*NAMES, "self"} - {name}


def test_the_interval_is_that_of_the_t_distribution():
    effects = [0.3, 0.1, 0.4, -0.1, 0.2]
    mean, (low, high) = verify.interval(effects)
    wanted = stats.ttest_1samp(effects, 0.0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((0.18, wanted.low, wanted.high))


@pytest.mark.parametrize(
    ("mean", "bounds", "said"),
    [
        (1.0, (0.5, 1.5), verify.SUPPORTED),
        (0.1, (-0.1, 0.3), verify.MIXED),
        (0.0, (0.0, 0.0), verify.UNSUPPORTED),
        (-1.0, (-2.0, -0.1), verify.UNSUPPORTED),
    ],
)
def test_the_rule_of_a_verdict(mean, bounds, said):
    assert verify.verdict(mean, bounds) == said


def test_several_claims_are_supported_together_or_the_verdict_is_mixed():
    yes, no, some = verify.SUPPORTED, verify.UNSUPPORTED, verify.MIXED
    assert verify.overall_verdict([yes, yes]) == yes
    assert verify.overall_verdict([no, no]) == no
    assert verify.overall_verdict([yes, no]) == verify.overall_verdict([some]) == some


def test_a_method_against_itself_has_no_effect_and_a_better_one_is_found():
    method = anypo.method("grpo")
    same = verify.run_claim(method, Claim("", "learning", "success", "grpo", settings={"batches": 5}), [0, 1])
    assert same["effect"] == 0
    assert same["verdict"] == verify.UNSUPPORTED
    better = Claim("", "sparse", "success", "grpo", settings={"batches": 60, "length": 5})
    assert verify.run_claim(anypo.method("ghpo"), better, [0, 1, 2])["verdict"] == verify.SUPPORTED


def test_broken_parts_fail_their_properties_with_a_sentence():
    found = check_properties(
        Method(anypo.method("dr-grpo").card, **{**anypo.method("dr-grpo").stages, "trust": Biased()}), 4
    )
    assert found["passed"] < found["of"]
    assert any("weight" in sentence for sentence in found["failed"])


def test_the_ledger_is_merged_sorted_and_rounded(tmp_path):
    path = tmp_path / "evidence" / "ledger.json"
    record = {"properties": {"passed": 1, "of": 1, "cases": 2, "failed": []}, "claims": [], "effect": 1 / 3}
    verify.record_verdicts(path, {"b": record})
    verify.record_verdicts(path, {"a": record})
    found = json.loads(path.read_text())["methods"]
    assert list(found) == ["a", "b"]
    assert found["a"]["effect"] == 0.333333
    assert set(found["a"]["versions"]) == {"anypo", "torch"}


def test_the_committed_ledger_holds_every_entry_and_follows_the_rule():
    found = verify.ledger()
    assert sorted(found) == ids()
    for name, record in found.items():
        assert record["properties"]["failed"] == [], name
        for claim in record["claims"]:
            sign = 1 if claim["better"] == "higher" else -1
            mean, bounds = verify.interval([sign * (a - b) - claim["margin"] for a, b in claim["values"]])
            assert claim["effect"] == pytest.approx(mean, rel=1e-3, abs=1e-4), name
            assert claim["verdict"] == verify.verdict(mean, bounds), name
        if record["claims"]:
            assert record["verdict"] == verify.overall_verdict([c["verdict"] for c in record["claims"]])


def test_the_ledger_matches_the_claims_in_the_files():
    for name, record in verify.ledger().items():
        stated = [(c.text, c.experiment, c.measure, c.against, c.settings, c.ablate) for c in entry(name).card.claims]
        assert [
            (c["text"], c["experiment"], c["measure"], c["against"], c["settings"], c.get("ablate", {}))
            for c in record["claims"]
        ] == stated


# ---------------------------------------------------------------- the microscope


@pytest.mark.parametrize(
    ("name", "wanted"),
    entries([("mhpo", 0.265), ("grpo", 1.0), ("reinforce", 1.0), ("cispo", 1.0), ("ppo", 1.0)], lambda value: value[0]),
)
def test_the_on_policy_gain_is_measured(name, wanted):
    assert gain(anypo.method(name)) == pytest.approx(wanted, abs=5e-4)


@pytest.mark.entry("mhpo")
def test_normalising_the_hazard_restores_the_gain():
    method = anypo.method("mhpo").configure({"trust": {"normalize": True}})
    assert gain(method) == pytest.approx(1.0)


@pytest.mark.entry("safe")
def test_the_released_penalty_of_safe_is_dead_and_the_differentiated_one_is_not():
    dead, _ = find_dead_terms(anypo.method("safe", terms=[EntropyGatedKl(detached=True)]))
    assert any("entropy-gated-kl" in name for name in dead)
    assert find_dead_terms(anypo.method("safe")) == ([], [])


def test_a_term_with_coefficient_zero_is_switched_off_rather_than_dead():
    dead, idle = find_dead_terms(anypo.method("grpo", terms=[Divergence(coef=0.0)]))
    assert dead == []
    assert any("divergence" in name for name in idle)


@pytest.mark.parametrize("name", entries(NAMES))
def test_no_method_has_a_dead_term_as_registered(name):
    assert find_dead_terms(anypo.method(name))[0] == []


def test_the_weight_curve_of_a_clip_is_the_ratio_inside_and_zero_outside():
    for x, up, down in weight_curve(anypo.method("dr-grpo")):
        r = torch.tensor(x).exp().item()
        assert up == pytest.approx(r if r <= 1.2 else 0, abs=1e-6)
        assert down == pytest.approx(-r if r >= 0.8 else 0, abs=1e-6)


@pytest.mark.entry("mhpo")
def test_the_curve_of_the_hazard_peaks_at_its_known_multiplier():
    curve = weight_curve(anypo.method("mhpo"), points=601)
    x, peak, _ = max(curve, key=lambda row: row[1])
    assert peak == pytest.approx(0.396, abs=1e-3)
    assert torch.tensor(x).exp().item() == pytest.approx(1.78, abs=0.02)


def test_the_picture_is_written(tmp_path):
    plot_weights(measure_gradient(anypo.method("mhpo")), "mhpo", tmp_path / "w.png")
    assert (tmp_path / "w.png").stat().st_size > 5000


def test_the_experiments_use_the_methods_own_settings_where_it_has_any():
    run = assemble_in_memory(
        anypo.method("n-pg-igt"), Sequences(), 0, batches=1, lr=0.7, requests=1, samples=4, epochs=1, minibatch=0
    )
    assert run.method.stages["step"].lr == 1e-2


@pytest.mark.parametrize("name", list(PROPERTIES))
def test_every_property_is_a_sentence(name):
    assert PROPERTIES[name].__doc__


def test_the_table_of_verdicts_is_that_of_the_ledger():
    from pathlib import Path

    page = Path(__file__).parents[2] / "docs" / "verdicts.md"
    assert page.read_text() == verify.markdown()
