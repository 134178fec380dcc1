"""Networks beside the policy's own: kinds, rates and norms of their own, slopes, what critics learn from; killed runs go on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from killed import train_and_kill
from torch import Tensor, nn

import anypo
from anypo import Trajectories
from anypo.config import from_dict
from anypo.errors import UsageError
from anypo.evidence.experiments.assemble import assemble_in_memory
from anypo.evidence.toys import Codes
from anypo.loops.gradients import gradient
from anypo.loops.learn import learn
from anypo.loops.views import attach_noise, evaluate_views, views_without_grad
from anypo.networks import NetworkKind, outputs_of, register_network
from anypo.parts.collect import WithDemonstrations
from anypo.parts.critic import ActionValue, GradientPenalty, NextState
from anypo.parts.ops.averages import token_mean
from anypo.parts.step.gradient import Gradient
from anypo.policies import make_policy
from anypo.policies.control.mlp import MLPPolicy
from anypo.policies.control.off_policy import GaussianActor
from anypo.policies.tabular import SoftmaxTable
from anypo.runs.binding import param_groups
from anypo.runs.build import build
from anypo.runs.checkpoint import newest
from anypo.runs.folder import continue_run, create
from anypo.stages import Level
from anypo.tasks import make_task
from anypo.types import Request
from anypo.views import Draw, Functional, Network, View

F64 = torch.float64


@dataclass(frozen=True)
class SecondValue:
    """Half the mean of (V2 - R)^2, V2 of a network beside the policy."""

    lr: float | None = None
    grad_norm: float | None = None
    level: ClassVar[Level] = "decision"
    heads: ClassVar[tuple[str, ...]] = ()
    live: ClassVar[dict[str, View]] = {"v2": View("v2")}
    reads = ("v2", "returns")

    @property
    def networks(self) -> dict[str, Network]:
        return {"v2": Network("state", lr=self.lr, grad_norm=self.grad_norm)}

    def __call__(self, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        loss = 0.5 * token_mean((b.need("v2") - b.need("returns").detach()).square(), b)
        return loss, {"v2_loss": loss.detach()}


PART = f"{Path(__file__).resolve()}:SecondValue"
CONTROL = {
    "method": "ppo", "task": "gym:CartPole-v1", "steps": 8192, "checkpoint_every": 1, "episodes": 1, "evaluate_every": 1000,
    "collect": {"requests": 8}, "step": {"epochs": 2}, "policy": {"hidden": [8]}, "threads": 1,
}  # fmt: skip


def beside(**settings: Any) -> dict[str, Any]:
    """The critics of ppo with a second network."""
    return {"critic": [{"part": "value", "clip": 0.2}, {"part": PART, **settings}]}


@pytest.fixture(scope="module")
def text(tmp_path_factory, tiny_model):
    """Ppo on a small language model."""
    folder = tmp_path_factory.mktemp("text")
    rows = [{"prompt": f"{i}+{i}=", "answer": str(2 * i)} for i in range(8)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward.py").write_text(
        "def size(prompts, completions, **_):\n    return [len(c) / 4 for c in completions]\n"
    )
    return {
        "method": "ppo", "steps": 4, "checkpoint_every": 1, "collect": {"requests": 4, "samples": 2}, "threads": 1,
        "step": {"lr": 1e-3, "epochs": 2, "minibatch": 4}, "evaluate_every": 100,
        "task": {"name": f"jsonl:{folder / 'sums.jsonl'}", "reward": f"{folder / 'reward.py'}:size", "max_new": 4},
        "policy": f"hf:{tiny_model('qwen2')}",
    }  # fmt: skip


def trained(values: dict[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
    """Train in memory; returns the run and the records."""
    records: list[dict[str, Any]] = []
    run = build(from_dict(values))
    learn(run, records.append)
    return run, records


def beginning(policy: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in policy.named_parameters()}


# ---------------------------------------------------------------- beside any policy


@pytest.mark.parametrize("policy", ["mlp", "language model"])
def test_a_second_network_whose_rate_is_0_leaves_metrics_and_weights_equal(policy, request):
    values = CONTROL if policy == "mlp" else request.getfixturevalue("text")
    alone, records = trained(values)
    second, more = trained(values | beside(lr=0.0))
    assert len(records) == len(more) >= 4
    for one, two in zip(records, more, strict=True):
        timed = {name for name in one if "second" in name or "time" in name or "memory" in name}
        for name in one.keys() - timed - {"loss"}:  # the loss is the sum of all objectives
            assert one[name] == two[name], name
    weights = beginning(second.policy)
    for name, p in alone.policy.named_parameters():
        assert torch.equal(p, weights.pop(name)), name
    assert {name.partition(".")[0] for name in weights} == {"critics"}


@pytest.mark.parametrize("policy", ["mlp", "language model"])
def test_a_second_network_learns_beside_ppo(policy, request):
    values = CONTROL if policy == "mlp" else request.getfixturevalue("text")
    run, records = trained(values | beside(lr=1e-2))
    assert records[-1]["v2_loss"] != records[-2]["v2_loss"]
    fresh = build(from_dict(values | beside(lr=1e-2)))
    before, after = beginning(fresh.policy), beginning(run.policy)
    assert all(not torch.equal(before[name], after[name]) for name in before if name.startswith("critics."))


@pytest.mark.parametrize("kind", ["mlp", "flow", "diffusion", "gaussian"])
def test_a_policy_without_networks_has_none_and_other_weights_do_not_depend_on_them(kind):
    task = make_task({"name": "gym:Pendulum-v1"}, seed=0)
    plain = make_policy({"name": kind}, task, value=(), seed=0)
    more = make_policy({"name": kind}, task, value=(), seed=0, networks={"v2": Network("state")})
    without, given = beginning(plain), beginning(more)
    assert not any("critics" in name for name in without)
    assert {name for name in given if name not in without} == {n for n in given if n.startswith("critics.v2.")}
    assert all(torch.equal(p, given[name]) for name, p in without.items())


def test_a_table_carries_tables():
    policy = SoftmaxTable(4, 3, value=False, networks={"q": Network("action", 2), "v2": Network("state")})
    b = Trajectories(trace={"obs": torch.tensor([[0, 3]]), "action": torch.tensor([[2, 1]])})
    out = policy.evaluate(b, {"q", "q_all", "v2"})
    weight, bias = policy.critics["q"].weights[0], policy.critics["q"].biases[0]
    torch.testing.assert_close(out["q"][0, 1], weight[:, 3, 1] + bias[:, 0, 1])
    torch.testing.assert_close(out["q_all"][0, 0], (weight[:, 0] + bias[:, 0]).T)
    assert sum(p.numel() for p in policy.critics["v2"].parameters()) == 4 + 1


@pytest.mark.parametrize("loop", ["control", "text"])
def test_a_killed_run_with_such_a_network_resumes_to_the_same_bytes(loop, tmp_path, request):
    values = (CONTROL if loop == "control" else request.getfixturevalue("text") | {"steps": 8}) | beside(grad_norm=0.5)
    killed, whole = tmp_path / "killed", tmp_path / "whole"

    def under_way(folder: Path) -> bool:
        metrics = folder / "metrics.jsonl"
        return (
            metrics.exists() and len(metrics.read_text().splitlines()) >= 3 and newest(folder).name > "batch-00000000"
        )

    train_and_kill({**values, "out": str(killed)}, under_way)
    again, uninterrupted = continue_run(killed), create(from_dict({**values, "out": str(whole)}))
    learn(again)
    learn(uninterrupted)
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    expected = beginning(uninterrupted.policy)
    assert any(name.startswith("critics.") for name in expected)
    assert all(torch.equal(p, expected[name]) for name, p in again.policy.named_parameters())


# ---------------------------------------------------------------- kinds


class Surprise(NetworkKind):
    """The squared error of a linear prediction of the next observation."""

    reads = ("obs", "action", "next")

    def __init__(self, spec: Network, sizes: Any, generator: torch.Generator):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(sizes.obs + sizes.action, sizes.obs, generator=generator))

    @classmethod
    def outputs(cls, name, spec):
        return (Functional(name, positive=True),)

    def values(self, name, at, want, frozen):
        return {name: (torch.cat([at["obs"], at["action"]], -1) @ self.weight - at["next"]).square().sum(-1)}


def observed(rows: int = 5, dtype: torch.dtype = torch.float32) -> Trajectories:
    g = torch.Generator().manual_seed(1)
    trace = {name: torch.randn(rows, 2, 3, generator=g, dtype=dtype) for name in ("obs", "next")}
    trace["action"] = torch.rand(rows, 2, 2, generator=g, dtype=dtype) * 2 - 1
    return Trajectories(mask=torch.arange(2) < torch.tensor([2, 1, 2, 2, 1])[:, None], trace=trace)


def box(cls: Any = MLPPolicy, networks: Any = None, **options: Any) -> Any:
    return cls(Box(-1, 1, (3,)), Box(-1, 1, (2,)), hidden=(8, 8), value=(), networks=networks, **options)


@pytest.fixture(scope="module")
def surprise():
    register_network("surprise")(Surprise)
    with pytest.raises(UsageError, match="'surprise' already"):
        register_network("surprise")(Surprise)
    return "surprise"


def test_a_registered_kind_reads_what_followed_and_gives_its_functional(surprise):
    policy, b = box(networks={"s": Network(surprise)}, normalize=False), observed()
    assert "s" in policy.functionals
    x, weight = torch.cat([b.trace["obs"], b.trace["action"]], -1), policy.critics["s"].weight
    expected = torch.where(b.valid, (x @ weight - b.trace["next"]).square().sum(-1), 0.0)
    torch.testing.assert_close(policy.evaluate(b, {"s"})["s"], expected)
    assert outputs_of(policy.networks)["s"].positive
    del b.trace["next"]
    with pytest.raises(UsageError, match="what was observed next"):
        policy.evaluate(b, {"s"})


def test_a_network_that_the_policy_cannot_serve_is_refused_when_it_is_made(surprise, tiny_model):
    with pytest.raises(UsageError, match=r"kind of network.*stat.*did you mean.*state"):
        box(networks={"v2": Network("stat")})
    task = make_task({"name": "gym:Pendulum-v1"}, seed=0)
    with pytest.raises(UsageError, match="'s', which reads `next`"):
        make_policy({"name": "flow"}, task, value=(), seed=0, networks={"s": Network(surprise)})
    with pytest.raises(UsageError, match="'q', which reads `action`"):
        MLPPolicy(Box(-1, 1, (3,)), MultiDiscrete([2, 3]), networks={"q": Network("action")})
    with pytest.raises(UsageError, match=r"'q', which reads `action`.*only `obs`"):
        build(from_dict({"method": "sac", "task": "sums", "policy": f"hf:{tiny_model('qwen2')}"}))


@pytest.mark.parametrize(
    ("learner", "task", "sentence"),
    [
        ("sac", "gym:Pendulum-v1", "mlp cannot propose actions"),
        ("dqn", "gym:CartPole-v1", "trains networks alone, by which"),
    ],
)
def test_a_policy_that_is_of_no_use_to_the_method_is_refused_before_the_first_batch(learner, task, sentence):
    with pytest.raises(UsageError, match=sentence):
        build(from_dict({"method": learner, "task": task, "policy": "mlp"}))


def test_an_autoencoder_beside_a_policy_that_proposes_nothing_reads_noise():
    policy, b = box(networks={"vae": Network("autoencoder")}), observed()
    seen = attach_noise(policy, b, {"vae": View("vae")}, torch.Generator().manual_seed(0))
    assert not torch.equal(policy.evaluate(seen, {"vae"})["vae"], policy.evaluate(b, {"vae"})["vae"])


# ---------------------------------------------------------------- norms of their own


def test_a_network_with_a_bound_is_scaled_apart_from_all_others():
    policy = box(
        networks={"v2": Network("state", grad_norm=0.1), "v3": Network("state"), "v4": Network("state", lr=0.0)}
    )
    stepper = Gradient(lr=1.0, grad_norm=0.5).bind(param_groups(policy))
    before = beginning(policy)

    def closure() -> dict[str, float]:
        for p in policy.parameters():
            p.grad = torch.ones_like(p)
        return {"loss": 0.0}

    record = stepper.update(closure)
    moved = {name: before[name] - p.detach() for name, p in policy.named_parameters()}
    own = {name: x for name, x in moved.items() if name.startswith("critics.v2.")}
    still = {name: x for name, x in moved.items() if name.startswith("critics.v4.")}
    common = [x for name, x in moved.items() if name not in own and name not in still]
    assert record["grad_norm"] == pytest.approx(sum(x.numel() for x in common) ** 0.5)
    assert float(torch.nn.utils.get_total_norm(list(own.values()))) == pytest.approx(0.1, rel=1e-4)
    assert float(torch.nn.utils.get_total_norm(common)) == pytest.approx(0.5, rel=1e-4)
    assert all(not x.any() for x in still.values())


def test_a_gradient_beyond_all_numbers_moves_nothing_wherever_it_is():
    policy = box(networks={"v2": Network("state", grad_norm=0.1)})
    stepper = Gradient(lr=1.0).bind(param_groups(policy))
    before = beginning(policy)

    def closure() -> dict[str, float]:
        for name, p in policy.named_parameters():
            p.grad = torch.full_like(p, torch.inf if name.startswith("critics.") else 1.0)
        return {"loss": 0.0}

    assert stepper.update(closure)["skipped"] == 1.0
    assert all(torch.equal(p, before[name]) for name, p in policy.named_parameters())


# ---------------------------------------------------------------- slopes


def plain_q(net: Any, x: Tensor) -> Tensor:
    """Every member by plain operations, [member, sample]."""
    out, last = x.expand(net.size, *x.shape), len(net.weights) - 1
    for k, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
        out = out @ weight + bias
        if k < last:
            out = nn.functional.layer_norm(out, out.shape[-1:]) * net.gains[k] + net.shifts[k] if net.norm else out
            out = out.relu()
    return out[..., 0]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("micro", [10_000, 3])
def test_a_gradient_penalty_has_the_value_and_gradient_of_plain_autograd(norm, micro):
    head = ActionValue("q", NextState("v"), penalties=(GradientPenalty(coef=2.0, bound=0.05),), norm=norm)
    assert head.networks["q"].smooth
    policy, b = box(GaussianActor, head.networks | {"v": Network("state")}, seed=3).double(), observed(dtype=F64)
    method = anypo.method("iql", critic=[PenaltyAlone(head)])
    net = policy.critics["q"]
    gradient(method, policy, b.but(advantage=torch.zeros(b.shape, dtype=F64)), micro)
    got = [p.grad.clone() for p in net.parameters() if p.grad is not None]

    x = torch.cat([b.trace["obs"], b.trace["action"]], -1)[b.valid].requires_grad_()
    expected = torch.zeros((), dtype=F64)
    for member in range(2):
        (slope,) = torch.autograd.grad(plain_q(net, x)[member].sum(), x, create_graph=True)
        expected = expected + 2.0 * (slope[:, 3:].norm(dim=1) - 0.05).clamp(min=0).square().mean()
    wanted = torch.autograd.grad(expected, list(net.parameters()), allow_unused=True)
    loss = evaluate_penalty(head, policy, b)
    assert float(expected.detach()) > 1e-3
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    wanted = [grad for grad in wanted if grad is not None]
    assert len(wanted) == len(got) > 0
    for one, two in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)


@dataclass(frozen=True)
class PenaltyAlone:
    """The penalties of a head without its regression."""

    head: Any
    level: ClassVar[Level] = "decision"
    heads: ClassVar[tuple[str, ...]] = ()

    @property
    def networks(self):
        return self.head.networks

    @property
    def live(self):
        return self.head.penalties[0].live(self.head.head)

    @property
    def reads(self):
        return tuple(self.live)

    def __call__(self, b):
        return self.head.penalties[0](b, self.head.head)


def evaluate_penalty(head: Any, policy: Any, b: Trajectories) -> Tensor:
    penalty = head.penalties[0]
    return penalty(b.put_clean(evaluate_views(policy, b, penalty.live("q"))), "q")[0]


def test_a_slope_is_differentiable_where_it_is_live_and_a_number_elsewhere():
    policy, b = box(networks={"v2": Network("state", smooth=True)}), observed()
    views = {"slope": View("v2_slope_obs")}
    live = evaluate_views(policy, b, views)["slope"]
    assert live.shape == (5, 2, 3)
    assert live.requires_grad
    without = views_without_grad(policy, b, views, 10_000)["slope"]
    assert not without.requires_grad
    torch.testing.assert_close(without, live.detach())


def test_slopes_of_choices_are_those_of_the_choice_taken():
    policy = GaussianActor(
        Box(-1, 1, (3,)), Discrete(4), hidden=(8,), networks={"q": Network("action", 2, smooth=True)}
    )
    b = Trajectories(trace={"obs": torch.randn(1, 2, 3), "action": torch.tensor([[1, 3]])})
    slope = policy.evaluate(b, {"q_slope_obs"})["q_slope_obs"]
    obs = b.trace["obs"].clone().requires_grad_()
    q = policy.evaluate(b.but(trace={**b.trace, "obs": obs}), {"q"})["q"]
    (expected,) = torch.autograd.grad(q[0, 1, 1], obs)
    torch.testing.assert_close(slope[0, 1, 1], expected[0, 1])


def test_a_slope_at_a_proposed_action_moves_the_actor_alone():
    policy, b = box(GaussianActor, {"q": Network("action", 2, smooth=True, norm=True)}), observed()
    views = {"slope": View("q_slope_action", draw=Draw(live=True))}
    b = attach_noise(policy, b, views, torch.Generator().manual_seed(0))
    evaluate_views(policy, b, views)["slope"].square().sum().backward()
    assert all(p.grad is None for p in policy.critics.parameters())
    assert any(p.grad is not None and bool(p.grad.any()) for p in policy.actor.parameters())


def test_xql_trains_with_the_penalty_of_its_code_by_replayed_updates(tmp_path, recwarn):
    task = {"name": f"data:{write_transitions(tmp_path / 'd.npz')}", "env": "Pendulum-v1"}
    values = {
        "method": "xql", "task": task, "steps": 40, "episodes": 1, "evaluate_every": 1000, "store": {"batch": 16},
        "policy": {"hidden": [16, 16]}, "threads": 1, "critic": {"q": {"penalties": ["gradient-penalty"]}},
    }  # fmt: skip
    run, records = trained(values)
    assert {name: net.smooth for name, net in run.policy.networks.items()} == {"q": True, "v": False}
    assert records[-1]["q_slope"] > 0
    assert not any("are not replayed" in str(warning.message) for warning in recwarn)


def write_transitions(path: Path) -> Path:
    import numpy as np

    rng = np.random.default_rng(0)
    columns = {"observations": rng.normal(size=(200, 3)), "actions": rng.uniform(-2, 2, (200, 1))}
    np.savez(path, **columns, rewards=rng.normal(size=200), terminals=np.arange(200) % 50 == 49)
    return path


# ---------------------------------------------------------------- rows of critics


@dataclass(frozen=True)
class Discriminator:
    """Tell demonstrations from the policy's rows by a network."""

    rows: str = "all"
    level: ClassVar[Level] = "decision"
    heads: ClassVar[tuple[str, ...]] = ()
    networks: ClassVar[dict[str, Network]] = {"d": Network("action")}
    live: ClassVar[dict[str, View]] = {"d": View("d")}
    reads = ("d",)

    def __call__(self, b: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        sign = torch.where(b.expert_mask, 1.0, -1.0).unsqueeze(1)  # pyright: ignore[reportAttributeAccessIssue]
        loss = token_mean(nn.functional.softplus(-sign * b.need("d").squeeze(-1)), b)
        return loss, {"told_apart": loss.detach()}


@pytest.mark.parametrize(("rows", "learned"), [("all", [1, 1, 1]), ("own", [1, 1, 0]), ("expert", [0, 0, 1])])
def test_a_critic_learns_from_the_rows_it_names(rows, learned):
    method = anypo.method("ppo", terms=[], critic=[Discriminator(rows)])
    d = torch.zeros(3, 2, 1, requires_grad=True)
    zeros = torch.zeros(3, 2)
    b = Trajectories(logp_old=zeros, logp=zeros, advantage=zeros, source=torch.tensor([0, 0, 1]), extra={"d": d})
    loss, _ = method.loss(b)
    (grad,) = torch.autograd.grad(loss, d)
    count = 2 * sum(learned)
    sign = torch.tensor([[1.0], [1.0], [-1.0]]) * torch.tensor(learned).unsqueeze(1)
    torch.testing.assert_close(grad[..., 0], (0.5 * sign / count).expand(3, 2))


def test_a_network_learns_in_a_run_which_rows_are_demonstrations():
    task = Codes(problems=4, length=3)
    method = anypo.method("grpo", collect=WithDemonstrations(apart=8), terms=[], critic=[Discriminator("all")])
    policy = SoftmaxTable(task.states, task.symbols, value=(), networks=method.networks)
    run = assemble_in_memory(
        method, task, 0, batches=30, lr=0.3, requests=4, samples=4, epochs=1, minibatch=0, policy=policy
    )
    learn(run)
    shown = task.demonstrate(policy, [Request(k % 4, expert=True) for k in range(4)])
    arms = policy.evaluate(shown, {"d_all"})["d_all"][..., 0]
    right = arms.gather(2, shown.trace["action"].unsqueeze(2)).squeeze(2)
    assert bool((right > arms.mean(2)).all())
